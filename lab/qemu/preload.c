// SPDX-License-Identifier: GPL-2.0
/*
 * A library to preload into a VMM that has never heard of guest_memfd's mmap(): it
 * makes one guest_memfd the RAM of the VM.
 *
 *   GMEM_RAM=bytes	mappings of just this size are RAM, which begins at gpa 0
 *   GMEM_FLAGS=n	flags of KVM_CREATE_GUEST_MEMFD
 *   GMEM_VM_TYPE=n	type of the VM, if not what the VMM asks for
 *
 * The VMM creates its VM, then maps RAM, then tells KVM where it is.  The library
 * remembers the VM, replaces the mapping by one of the file, and has slots that lie
 * in it refer to the file.  What guest_memfd doesn't have is left out: read-only slots
 * and dirty logs.  It also does the conversions that guest.c asks for, and at the end
 * reports what client.c judges.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "report.h"

#define NR_SLOTS	1024
#define COM1		0x3f8

static int vm_fd = -1, ram_fd = -1;
static char *ram;
static size_t ram_size;

/* What KVM has been told of each slot in RAM, by address space. */
static struct kvm_userspace_memory_region2 slots[2][NR_SLOTS];

static struct report report;

static unsigned long number(const char *name)
{
	const char *text = getenv(name);

	return text ? strtoul(text, NULL, 0) : 0;
}

static void say(const char *fmt, ...)
{
	char buf[256];
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(buf, sizeof(buf), fmt, ap);
	va_end(ap);
	if (write(2, buf, n) != n)
		_exit(1);
}

static void fail(const char *what)
{
	say(FAILED "%s: %s\n", what, strerror(errno));
	_exit(1);
}

static int real_ioctl(int fd, unsigned long cmd, void *arg)
{
	return syscall(SYS_ioctl, fd, cmd, arg);
}

/* ---- RAM ---- */

static void *map_ram(void *addr, size_t size)
{
	struct kvm_create_guest_memfd args = {
		.size = size,
		.flags = number("GMEM_FLAGS"),
	};

	ram_fd = real_ioctl(vm_fd, KVM_CREATE_GUEST_MEMFD, &args);
	if (ram_fd < 0)
		fail("KVM_CREATE_GUEST_MEMFD");

	ram = (void *)syscall(SYS_mmap, addr, size, PROT_READ | PROT_WRITE,
			      MAP_SHARED | (addr ? MAP_FIXED : 0), ram_fd, 0);
	if (ram == MAP_FAILED)
		fail("mmap() of a guest_memfd");
	ram_size = size;
	return ram;
}

void *mmap(void *addr, size_t size, int prot, int flags, int fd, off_t offset)
{
	if (vm_fd >= 0 && !ram && size == number("GMEM_RAM") && prot & PROT_WRITE &&
	    flags & MAP_ANONYMOUS)
		return map_ram(flags & MAP_FIXED ? addr : NULL, size);

	return (void *)syscall(SYS_mmap, addr, size, prot, flags, fd, offset);
}

void *mmap64(void *addr, size_t size, int prot, int flags, int fd, off_t offset)
{
	return mmap(addr, size, prot, flags, fd, offset);
}

/* ---- Slots ---- */

/* What stays as it was need not be said, and can't. */
static int set_slot(struct kvm_userspace_memory_region2 *region)
{
	unsigned int as = region->slot >> 16, id = region->slot & 0xffff;
	size_t offset = region->userspace_addr - (unsigned long)ram;
	bool bind = region->memory_size && ram && offset < ram_size;
	int r;

	if (as >= 2 || id >= NR_SLOTS)
		return real_ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION2, region);

	if (bind) {
		region->flags = KVM_MEM_GUEST_MEMFD;
		region->guest_memfd = ram_fd;
		region->guest_memfd_offset = offset;
		if (!memcmp(&slots[as][id], region, sizeof(*region)))
			return 0;
	}
	r = real_ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION2, region);
	if (r && bind)
		say(FAILED "slot 0x%x at 0x%llx, 0x%llx bytes of RAM at 0x%zx: %s\n",
		    region->slot, region->guest_phys_addr, region->memory_size, offset,
		    strerror(errno));
	if (r)
		return r;

	slots[as][id] = *region;
	report.bound += bind;
	report.bound_smm += bind && as == 1;
	report.bound_twice += bind && region->guest_phys_addr != offset;
	return 0;
}

/* ---- Conversion ---- */

static bool readable(size_t offset)
{
	bool good;
	int p[2];

	if (pipe(p))
		fail("pipe");
	good = write(p[1], ram + offset, 1) == 1;
	close(p[0]);
	close(p[1]);
	return good;
}

static void convert(size_t offset, size_t size, bool private)
{
	struct kvm_memory_attributes2 args = {
		.offset = offset,
		.size = size,
		.attributes = private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0,
		.flags = KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE,
	};

	while (real_ioctl(ram_fd, KVM_SET_MEMORY_ATTRIBUTES2, &args)) {
		if (errno != EAGAIN)
			fail("KVM_SET_MEMORY_ATTRIBUTES2");
		usleep(1000);
	}
	if (readable(offset) == private || readable(offset + size - 1) == private) {
		say(FAILED "0x%zx bytes at 0x%zx: %s\n", size, offset,
		    private ? "private, and can be read" : "shared, and cannot be read");
		_exit(1);
	}
}

static void obey(const char *line)
{
	const char *request = strstr(line, "vmm: ");
	size_t offset, size;
	char what[16];

	if (!request || sscanf(request, "vmm: %15s %zx %zx", what, &offset, &size) != 3)
		return;
	if (!strcmp(what, "cycle")) {
		convert(0, ram_size, true);
		convert(0, ram_size, false);
	} else {
		convert(offset, size, !strcmp(what, "private"));
	}
	report.requests++;
}

/*
 * Listen to the guest's console.  Its CPU waits meanwhile, and the VMM must have no
 * device that looks at RAM of its own accord.
 */
static void after_run(int vcpu)
{
	static struct kvm_run *run;
	static char line[128];
	static size_t len;
	char c;

	if (!run)
		run = (void *)syscall(SYS_mmap, NULL, 8192, PROT_READ, MAP_SHARED, vcpu, 0);
	if (run == MAP_FAILED)
		fail("mmap() of a vCPU");
	if (run->exit_reason != KVM_EXIT_IO || run->io.port != COM1 ||
	    run->io.direction != KVM_EXIT_IO_OUT)
		return;

	c = ((char *)run)[run->io.data_offset];
	if (c != '\n') {
		line[len] = c;
		len = len < sizeof(line) - 1 ? len + 1 : 0;
		return;
	}
	line[len] = '\0';
	len = 0;
	obey(line);
}

int ioctl(int fd, unsigned long cmd, ...)
{
	struct kvm_userspace_memory_region2 region;
	va_list ap;
	void *arg;
	int r;

	va_start(ap, cmd);
	arg = va_arg(ap, void *);
	va_end(ap);

	switch (cmd) {
	case KVM_CREATE_VM:
		if (getenv("GMEM_VM_TYPE"))
			arg = (void *)number("GMEM_VM_TYPE");
		vm_fd = real_ioctl(fd, cmd, arg);
		return vm_fd;
	case KVM_SET_USER_MEMORY_REGION:
		memset(&region, 0, sizeof(region));
		memcpy(&region, arg, sizeof(struct kvm_userspace_memory_region));
		return set_slot(&region);
	case KVM_SET_USER_MEMORY_REGION2:
		region = *(struct kvm_userspace_memory_region2 *)arg;
		return set_slot(&region);
	case KVM_RUN:
		r = real_ioctl(fd, cmd, arg);
		if (!r)
			after_run(fd);
		return r;
	case KVM_SMI:
		report.smis++;
		break;
	}
	return real_ioctl(fd, cmd, arg);
}

/* ---- Report ---- */

/* How many pages are in the file, and in how many of them can the VMM look? */
static void count_pages(void)
{
	size_t i, n = ram_size / 4096;
	unsigned char *in_file = calloc(n, 1);
	__u64 *mapped = calloc(n, sizeof(*mapped));
	ssize_t len = n * sizeof(*mapped);
	int fd = open("/proc/self/pagemap", O_RDONLY);

	if (!in_file || !mapped || mincore(ram, ram_size, in_file) ||
	    pread(fd, mapped, len, (unsigned long)ram / 4096 * sizeof(*mapped)) != len)
		fail("mincore, pagemap");

	for (i = 0; i < n; i++) {
		report.in_file += in_file[i] & 1;
		report.mapped += mapped[i] >> 63;
	}
}

/* Large pages that the guest has mapped. */
static void count_large(void)
{
	char path[128];
	FILE *f;

	snprintf(path, sizeof(path), "/sys/kernel/debug/kvm/%d-%d/pages_2m", getpid(), vm_fd);
	f = fopen(path, "r");
	if (!f || fscanf(f, "%u", &report.large) != 1)
		fail(path);
	fclose(f);
}

__attribute__((destructor))
static void at_end(void)
{
	if (!ram)
		return;
	count_pages();
	count_large();
	say(REPORT_FORMAT "\n", report.bound, report.bound_smm, report.bound_twice, report.smis,
	    report.requests, report.in_file, report.mapped, report.large);
}
