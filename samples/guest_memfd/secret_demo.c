// SPDX-License-Identifier: GPL-2.0-only
/*
 * secret_demo: a small VMM of an ordinary VM whose memory the host kernel cannot read,
 * and which the VMM never maps.
 *
 * The memory is a guest_memfd outside the kernel's direct map.  The VMM writes the
 * guest's code to it, and starts the guest.  The rest, a snapshot so to speak, is FILE:
 * the guest exits when it touches a page that is not there yet, and the VMM writes it.
 *
 * The parts to copy from: create_vm() for the file and its slot, fill() for memory on
 * demand.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <linux/elf.h>
#include <linux/kvm.h>

#include "guest.h"
#include "sha256.h"
#include "vmm.h"

#define FILL		(2 * MIB)	/* the most that is written at once */
#define MAX_FILE	(1024 * MIB)
#define GMEM_FLAGS	(GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED |	\
			 GUEST_MEMFD_FLAG_WRITE | GUEST_MEMFD_FLAG_HUGE)

struct vm {
	int fd, gmem;
	struct vcpu vcpu;
	size_t size;
	bool hidden;		/* outside the direct map */
	bool on_demand;		/* else all is copied first */
	double start, started, seconds;
	size_t exits, filled;	/* pages */
	__u8 digest[SHA256_SIZE];
};

/* The user's file. */
static const char *name;
static const __u8 *file;
static size_t length;
static int kvm;

static void say(struct vm *vm, const char *fmt, ...)
{
	static int step;
	va_list args;

	printf("%3d. %7.3f s  ", ++step, now() - vm->start);
	va_start(args, fmt);
	vprintf(fmt, args);
	va_end(args);
	printf("\n");
	fflush(stdout);
}

static void create_vm(struct vm *vm)
{
	struct kvm_create_guest_memfd gmem = {
		.size = vm->size,
		.flags = GMEM_FLAGS | (vm->hidden ? GUEST_MEMFD_FLAG_NO_DIRECT_MAP : 0),
	};
	struct kvm_userspace_memory_region2 slot = {
		.flags = KVM_MEM_GUEST_MEMFD | (vm->on_demand ? KVM_MEM_USERFAULT : 0),
		.memory_size = vm->size,
	};

	vm->start = now();
	vm->fd = IOCTL(kvm, KVM_CREATE_VM, 0);
	require(vm->fd, KVM_CAP_GUEST_MEMFD_FLAGS, gmem.flags,
		"guest_memfd that is written to, and outside the direct map");
	require(vm->fd, KVM_CAP_GUEST_MEMFD_USERFAULT, KVM_GUEST_MEMFD_USERFAULT_ABSENT,
		"memory on demand");

	/* No bitmap: what is absent in the file is what the VMM has yet to fill. */
	vm->gmem = IOCTL(vm->fd, KVM_CREATE_GUEST_MEMFD, &gmem);
	slot.guest_memfd = vm->gmem;
	IOCTL(vm->fd, KVM_SET_USER_MEMORY_REGION2, &slot);
	create_vcpu(&vm->vcpu, vm->fd, kvm);
}

/* Whoever is first fills a page; here there is nobody else, so EEXIST is a mistake. */
static void put(struct vm *vm, const void *from, size_t size, __u64 gpa)
{
	ssize_t done = pwrite(vm->gmem, from, size, gpa);

	if (done != (ssize_t)size)
		err(1, "writing %zu bytes at 0x%llx: %zd", size, gpa, done);
	vm->filled += PAGES(size);
}

/* What the snapshot has at @gpa: the file, from the window on, zeros elsewhere. */
static void fill(struct vm *vm, __u64 gpa, size_t size)
{
	static __u8 buffer[FILL];
	size_t from = gpa < GUEST_WINDOW ? GUEST_WINDOW - gpa : 0;
	size_t offset = gpa + from - GUEST_WINDOW;

	if (gpa % PAGE_SIZE || !size || size > FILL || gpa > vm->size - size)
		errx(1, "the guest misses 0x%zx bytes at 0x%llx, which it cannot have", size, gpa);

	memset(buffer, 0, size);
	if (from < size && offset < length)
		memcpy(buffer + from, file + offset,
		       size - from < length - offset ? size - from : length - offset);
	put(vm, buffer, size, gpa);
}

/* The guest's code, and what it has to know.  All other memory can wait. */
static void load(struct vm *vm)
{
	struct guest_mailbox mailbox = { .length = length, .plain = 1 };
	size_t image = PAGES(guest_image_end - guest_image) * PAGE_SIZE;
	__u8 *buffer = aligned_alloc(PAGE_SIZE, image);
	__u64 gpa;

	memset(buffer, 0, image);
	memcpy(buffer, guest_image, guest_image_end - guest_image);
	memcpy(buffer + GUEST_MAILBOX - GUEST_STUB, &mailbox, sizeof(mailbox));
	put(vm, buffer, image, GUEST_STUB);
	free(buffer);
	if (vm->on_demand)
		return;

	fill(vm, 0, GUEST_STUB);
	fill(vm, GUEST_STUB + image, FILL - GUEST_STUB - image);
	for (gpa = FILL; gpa < vm->size; gpa += FILL)
		fill(vm, gpa, FILL);
}

/* Runs the guest to its end. */
static void run(struct vm *vm)
{
	struct kvm_run *run = vm->vcpu.run;
	size_t got = 0;
	__u8 byte;
	int r;

	for (;;) {
		r = ioctl(vm->vcpu.fd, KVM_RUN, 0);
		if (r && errno == EFAULT && run->exit_reason == KVM_EXIT_MEMORY_FAULT &&
		    run->memory_fault.flags & KVM_MEMORY_EXIT_FLAG_USERFAULT) {
			vm->exits++;
			fill(vm, run->memory_fault.gpa, run->memory_fault.size);
			continue;
		}
		if (r)
			err(1, "KVM_RUN (exit reason %u)", run->exit_reason);
		if (run->exit_reason != KVM_EXIT_IO)
			errx(1, "the guest stopped (exit reason %u)", run->exit_reason);

		byte = ((__u8 *)run)[run->io.data_offset];
		if (run->io.port == PORT_DONE && !byte && got == SHA256_SIZE)
			return;
		if (run->io.port != PORT_DIGEST || got == SHA256_SIZE)
			errx(1, "the guest gave up");
		vm->digest[got++] = byte;
	}
}

/* ---- What the host kernel can read ---- */

/* The first word of the page at physical address @pa, by the direct map; 0 if it has none. */
static __u64 kernel_reads(int kcore, __u64 pa)
{
	struct elf64_hdr ehdr;
	struct elf64_phdr phdr;
	__u64 val;
	int i;

	if (pread(kcore, &ehdr, sizeof(ehdr), 0) != sizeof(ehdr))
		err(1, "/proc/kcore");
	for (i = 0; i < ehdr.e_phnum; i++) {
		if (pread(kcore, &phdr, sizeof(phdr), ehdr.e_phoff + i * sizeof(phdr)) !=
		    sizeof(phdr))
			err(1, "/proc/kcore");
		if (phdr.p_type == PT_LOAD && pa >= phdr.p_paddr &&
		    pa - phdr.p_paddr < phdr.p_memsz &&
		    pread(kcore, &val, sizeof(val), phdr.p_offset + pa - phdr.p_paddr) ==
		    sizeof(val))
			return val;
	}
	errx(1, "/proc/kcore does not have physical address 0x%llx", pa);
}

/*
 * Asks the kernel itself, by /proc/kcore, for each page of the file that does not begin
 * with zeros.  That takes their physical addresses, hence a mapping, the only one there
 * ever is, now that the guest is done.
 */
static void look(struct vm *vm)
{
	int kcore = open("/proc/kcore", O_RDONLY), pagemap = open("/proc/self/pagemap", O_RDONLY);
	const __u8 *mem = mmap(NULL, vm->size, PROT_READ, MAP_SHARED, vm->gmem, 0);
	size_t offset, asked = 0, read = 0;
	__u64 val, entry;

	if (kcore < 0 || pagemap < 0 || mem == MAP_FAILED) {
		say(vm, "VMM: what the kernel can read is for root to see: %s", strerror(errno));
		return;
	}
	for (offset = 0; offset + sizeof(val) <= length; offset += PAGE_SIZE) {
		const __u8 *p = mem + GUEST_WINDOW + offset;

		memcpy(&val, p, sizeof(val));
		if (!val)
			continue;
		if (pread(pagemap, &entry, sizeof(entry), (size_t)p / PAGE_SIZE * 8) !=
		    sizeof(entry) || !(entry & ((1ull << 55) - 1)))
			errx(1, "no physical address for %p, which takes root", p);
		asked++;
		read += kernel_reads(kcore, (entry & ((1ull << 55) - 1)) * PAGE_SIZE) == val;
	}
	munmap((void *)mem, vm->size);
	close(kcore);
	close(pagemap);
	say(vm, "VMM: the host kernel reads %s of the %s that have something to read",
	    num(read), pages(asked));
	if (vm->hidden && read)
		errx(1, "the memory is NOT out of the kernel's reach");
}

/* ---- The job ---- */

static void run_job(struct vm *vm, const __u8 *expected)
{
	say(vm, "VMM: a VM of %s MiB, %s the kernel's direct map, %s", num(vm->size / MIB),
	    vm->hidden ? "outside" : "in", vm->on_demand ? "on demand" : "copied first");
	create_vm(vm);
	load(vm);
	vm->started = now() - vm->start;
	say(vm, "VMM: wrote %s, maps none, and starts the guest", pages(vm->filled));
	run(vm);
	vm->seconds = now() - vm->start;
	say(vm, "VMM: the guest is done, after %s exits for missing memory; %s of %s are there",
	    num(vm->exits), num(vm->filled), pages(PAGES(vm->size)));
	if (memcmp(vm->digest, expected, SHA256_SIZE))
		errx(1, "the digest is NOT the host's own");
	say(vm, "VMM: its digest of %s equals the host's own", name);
	look(vm);
	destroy_vcpu(&vm->vcpu);
	close(vm->gmem);
	close(vm->fd);
}

static void open_file(void)
{
	int fd = open(name, O_RDONLY);
	struct stat st;

	if (fd < 0 || fstat(fd, &st))
		err(2, "%s", name);
	if (!S_ISREG(st.st_mode) || !st.st_size || st.st_size > (off_t)MAX_FILE)
		errx(2, "%s: not a regular file of 1 byte to %lu MiB", name, MAX_FILE / MIB);
	length = st.st_size;
	file = mmap(NULL, length, PROT_READ, MAP_PRIVATE, fd, 0);
	if (file == MAP_FAILED)
		err(2, "%s", name);
	close(fd);
}

static void report(const char *how, const struct vm *vm)
{
	printf("  %-42s  %8.3f s  %8.3f s  %6s\n", how, vm->started, vm->seconds,
	       num(vm->exits));
}

int main(int argc, char **argv)
{
	struct vm secret = { .hidden = true, .on_demand = true };
	struct vm copied = { .hidden = true };
	struct vm plain = { .on_demand = true };
	__u8 expected[SHA256_SIZE];
	size_t size;

	if (argc != 2 || argv[1][0] == '-') {
		fprintf(argc == 2 && !strcmp(argv[1], "--help") ? stdout : stderr,
			"usage: secret_demo FILE\n"
			"A guest computes the SHA-256 of FILE in memory that the host kernel cannot\n"
			"read and that is filled on demand; then with all of it copied first, and\n"
			"in the kernel's direct map, to compare.\n");
		return argc == 2 && !strcmp(argv[1], "--help") ? 0 : 2;
	}
	name = argv[1];
	open_file();
	sha256(file, length, expected);
	size = (GUEST_WINDOW + length + FILL - 1) / FILL * FILL;
	if (size < 64 * MIB)
		size = 64 * MIB;
	secret.size = size;
	copied.size = size;
	plain.size = size;

	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0)
		err(1, "/dev/kvm");
	secret.start = now();
	run_job(&secret, expected);
	copied.start = now();
	run_job(&copied, expected);
	plain.start = now();
	run_job(&plain, expected);

	printf("\n  %-42s  %10s  %10s  %6s\n", "", "to start", "in all", "exits");
	report("outside the direct map, on demand", &secret);
	report("outside the direct map, copied first", &copied);
	report("in the direct map, on demand", &plain);
	return 0;
}
