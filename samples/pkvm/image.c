// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is in the guest's memory when it starts, and where:
 *
 *   RAM_BASE                Image and its bss
 *   ... from the end down   the pool for DMA, the device tree, the initramfs
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "vmm.h"

#define POOL_SIZE	MIB
#define FDT_ROOM	(64 * KIB)
#define IMAGE_ALIGN	(2 * MIB)

/* The start of an Image, see Documentation/arch/arm64/booting.rst. */
struct image_header {
	__u32 code[2];
	__u64 text_offset, image_size, flags, reserved[3];
	__u32 magic, pe_offset;
};

#define IMAGE_MAGIC	0x644d5241	/* "ARM\x64" */

static struct input {
	const char *path;
	int fd;
	size_t size;
} kernel, initrd;

static void open_input(struct input *in, const char *path)
{
	struct stat st;

	in->path = path;
	in->fd = open(path, O_RDONLY | O_CLOEXEC);
	if (in->fd < 0 || fstat(in->fd, &st))
		err(2, "%s", path);
	if (!S_ISREG(st.st_mode))
		errx(2, "%s: not a regular file", path);
	in->size = st.st_size;
}

static void read_input(struct vm *vm, const struct input *in, __u64 gpa)
{
	__u8 *to = vm->ram + (gpa - RAM_BASE);
	size_t left = in->size;
	ssize_t n;

	while (left) {
		n = read(in->fd, to, left);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			errx(2, "%s: %s", in->path, n ? strerror(errno) : "has become shorter");
		to += n;
		left -= n;
	}
	close(in->fd);
}

static void __noreturn no_room(const struct vm *vm, const struct input *in)
{
	errx(2, "%s does not fit into %s MiB (see --memory)", in->path,
	     num(vm->ram_size / MIB));
}

/* Opens what is to be loaded, and finds a place for each. Bad input ends here. */
void plan_guest(struct vm *vm, const char *kernel_path, const char *initrd_path)
{
	struct layout *l = &vm->layout;
	struct image_header h;
	__u64 need;

	open_input(&kernel, kernel_path);
	open_input(&initrd, initrd_path);
	if (pread(kernel.fd, &h, sizeof(h), 0) != sizeof(h) || h.magic != IMAGE_MAGIC)
		errx(2, "%s: not an arm64 Image", kernel.path);

	l->pool_size = POOL_SIZE;
	l->pool = RAM_BASE + vm->ram_size - POOL_SIZE;
	l->fdt = l->pool - FDT_ROOM;
	if (initrd.size > vm->ram_size / 2)
		no_room(vm, &initrd);
	l->initrd = (l->fdt - initrd.size) & ~(PAGE_SIZE - 1);
	l->initrd_end = l->initrd + initrd.size;

	/* Before it runs, the kernel wants room for its bss as well. */
	l->kernel = RAM_BASE + h.text_offset % IMAGE_ALIGN;
	need = h.image_size > kernel.size ? h.image_size : kernel.size;
	if (l->kernel > l->initrd || need > l->initrd - l->kernel)
		no_room(vm, &kernel);
	l->kernel_end = (l->kernel + need + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1);
}

/* Lazy: only the pages that were written. What is absent stays so either way. */
static void make_private(struct vm *vm)
{
	const struct layout *l = &vm->layout;
	int ret;

	if (!vm->lazy)
		ret = convert(vm, RAM_BASE, vm->ram_size, true);
	else
		ret = convert(vm, l->kernel, l->kernel_end - l->kernel, true) ?:
		      convert(vm, l->initrd, l->pool - l->initrd, true);
	if (ret) {
		errno = -ret;
		err(1, "the guest's memory cannot be made private");
	}
}

/* Writes all that the guest finds. In place, takes it from the host's reach. */
void load_guest(struct vm *vm)
{
	const struct layout *l = &vm->layout;

	read_input(vm, &kernel, l->kernel);
	read_input(vm, &initrd, l->initrd);
	build_devtree(vm, vm->ram + (l->fdt - RAM_BASE), FDT_ROOM);
	say(vm, "VMM: wrote the guest's kernel (%s KiB), initramfs (%s KiB) and device tree",
	    num(kernel.size / KIB), num(initrd.size / KIB));
	if (vm->mode == MODE_IN_PLACE)
		make_private(vm);
}
