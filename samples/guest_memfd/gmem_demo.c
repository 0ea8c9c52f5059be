// SPDX-License-Identifier: GPL-2.0-only
/*
 * gmem_demo: a small VMM whose guest has all its memory, private and shared, in
 * one guest_memfd, and moves pages between the two in place.
 *
 * The parts to copy from: create_vm() for the file and its slot, load() for the
 * initial image, convert() for conversions, on_hypercall() for a guest's request.
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <linux/kvm_para.h>

#include "guest.h"
#include "sha256.h"
#include "vmm.h"

#define MAX_TRIES	100
#define MIN_MEMORY	2	/* MiB */
#define MAX_MEMORY	1024ul
#define INDENT		"                "
#define STATE		INDENT "[private %s | shared %s]"

struct vm {
	int fd, gmem;
	struct vcpu vcpu;
	__u8 *mem;		/* guest memory as the VMM sees it */
	size_t size;
	bool two_backings;	/* else in place */
	bool *private;		/* by page */
	size_t nr_private;
	size_t peak;		/* most pages that were in memory; 0: not known */
	double start, seconds;
};

/* The user's file. */
static const char *name;
static const __u8 *file;
static size_t length;

static bool quiet;
static double aside;		/* seconds of printing and counting: not the job's */

static void say(struct vm *vm, const char *fmt, ...)
{
	double begin = now();
	static int step;
	va_list args;

	if (quiet)
		return;
	printf("%3d. %7.3f s  ", ++step, begin - vm->start);
	va_start(args, fmt);
	vprintf(fmt, args);
	va_end(args);
	printf("\n");
	fflush(stdout);
	aside += now() - begin;
}

/* Counts the pages in memory: in the guest_memfd, and in the other half if any. */
static void measure(struct vm *vm)
{
	struct { __u64 off, len; } all = { 0, vm->size };
	struct { __u64 present, rest[4]; } cs;
	__u8 resident[PAGES(vm->size)];
	double begin = now();
	size_t i;

	if (syscall(__NR_cachestat, vm->gmem, &all, &cs, 0))
		return;		/* CONFIG_CACHESTAT_SYSCALL=n */
	if (vm->two_backings) {
		if (mincore(vm->mem, vm->size, resident))
			err(1, "mincore");
		for (i = 0; i < PAGES(vm->size); i++)
			cs.present += resident[i] & 1;
	}
	if (cs.present > vm->peak)
		vm->peak = cs.present;
	aside += now() - begin;
}

static void account(struct vm *vm, __u64 gpa, __u64 size, bool private)
{
	size_t i;

	for (i = gpa / PAGE_SIZE; i < (gpa + size) / PAGE_SIZE; i++) {
		vm->nr_private += private - vm->private[i];
		vm->private[i] = private;
	}
}

/* Two backings: the half that is no longer in use goes back to the system. */
static void discard(struct vm *vm, __u64 gpa, __u64 size, bool private)
{
	if (private ? madvise(vm->mem + gpa, size, MADV_DONTNEED) :
		      fallocate(vm->gmem, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, gpa, size))
		err(1, "discard");
}

/*
 * Makes a range of guest memory private or shared; keeps the bytes if the guest waits for
 * that, and isn't allowed to otherwise. Returns 0 or -errno.
 */
static int convert(struct vm *vm, __u64 gpa, __u64 size, bool private, bool keep)
{
	/* One slot, one file: the offset in the file is the guest's address. */
	struct kvm_memory_attributes2 a = {
		.offset = gpa,
		.size = size,
		.attributes = private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0,
		.flags = keep ? KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE : 0,
	};
	int tries = 0, ret;
	double start, took;

	measure(vm);
	start = now();
	/*
	 * EAGAIN: somebody holds a page, and nothing has changed.  It may be a
	 * passing reference of the kernel's own (compaction, say), so try again
	 * a few times; a VMM with DMA to the range must unmap that first.
	 * error_offset says which page; a retry is for the whole range.
	 */
	do {
		if (vm->two_backings)	/* takes the first four fields */
			ret = ioctl(vm->fd, KVM_SET_MEMORY_ATTRIBUTES, &a);
		else
			ret = ioctl(vm->gmem, KVM_SET_MEMORY_ATTRIBUTES2, &a);
	} while (ret && errno == EAGAIN && ++tries < MAX_TRIES && !usleep(1000));
	if (ret) {
		ret = -errno;
		warn("conversion, page at 0x%llx", ret == -EAGAIN ? a.error_offset : gpa);
		return ret;
	}
	if (vm->two_backings)
		discard(vm, gpa, size, private);

	took = now() - start;
	account(vm, gpa, size, private);
	say(vm, "VMM: %s at 0x%llx made %s in %.3f ms%s\n" STATE, pages(PAGES(size)), gpa,
	    private ? "private" : "shared", took * 1e3, tries ? ", with retries" : "",
	    pages(vm->nr_private), pages(PAGES(vm->size) - vm->nr_private));
	return 0;
}

static void must_convert(struct vm *vm, __u64 gpa, __u64 size, bool private)
{
	if (convert(vm, gpa, size, private, false))
		exit(1);
}

static sigjmp_buf refused;

static void on_sigbus(int sig)
{
	siglongjmp(refused, sig);
}

/* Really tries to read a private page. */
static void try_read(struct vm *vm, __u64 gpa)
{
	/* With two backings the VMM sees the other half, which says nothing. */
	if (quiet || vm->two_backings || !vm->private[gpa / PAGE_SIZE])
		return;
	if (!sigsetjmp(refused, 1))
		errx(1, "a private page, 0x%llx, could be read: 0x%02x", gpa, vm->mem[gpa]);
	say(vm, "VMM: reading the private page at 0x%llx is refused (SIGBUS)", gpa);
}

/* Really tries to take a private page with its bytes, which the guest has not asked for. */
static void try_take(struct vm *vm, __u64 gpa)
{
	struct kvm_memory_attributes2 a = {
		.offset = gpa,
		.size = PAGE_SIZE,
		.flags = KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE,
	};

	if (quiet || vm->two_backings)
		return;
	if (!ioctl(vm->gmem, KVM_SET_MEMORY_ATTRIBUTES2, &a) || errno != EPERM)
		err(1, "taking a private page, 0x%llx, was not refused", gpa);
	say(vm, "VMM: sharing it with its bytes, unasked, is refused (EPERM)");
}

static void create_vm(struct vm *vm, int kvm)
{
	int prot = PROT_READ | PROT_WRITE;
	struct kvm_enable_cap cap = {
		.cap = KVM_CAP_EXIT_HYPERCALL,
		.args[0] = 1 << KVM_HC_MAP_GPA_RANGE,
	};
	struct kvm_create_guest_memfd gmem = { .size = vm->size };
	struct kvm_userspace_memory_region2 slot = {
		.flags = KVM_MEM_GUEST_MEMFD,
		.memory_size = vm->size,
	};

	vm->start = now();
	vm->fd = ioctl(kvm, KVM_CREATE_VM, KVM_X86_SW_PROTECTED_VM);
	if (vm->fd < 0)
		err(1, "a VM of type SW_PROTECTED_VM");
	require(vm->fd, KVM_CAP_EXIT_HYPERCALL, cap.args[0], "exits for KVM_HC_MAP_GPA_RANGE");
	IOCTL(vm->fd, KVM_ENABLE_CAP, &cap);

	if (vm->two_backings) {
		vm->gmem = IOCTL(vm->fd, KVM_CREATE_GUEST_MEMFD, &gmem);
		vm->mem = mmap(NULL, vm->size, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		madvise(vm->mem, vm->size, MADV_NOHUGEPAGE);	/* count exactly */
	} else {
		require(vm->fd, KVM_CAP_GUEST_MEMFD_FLAGS, GUEST_MEMFD_FLAG_MMAP,
			"shared guest_memfd");
		require(vm->fd, KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES,
			KVM_MEMORY_ATTRIBUTE_PRIVATE,
			"conversion in place");
		gmem.flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_WRITE |
			     GUEST_MEMFD_FLAG_GUEST_CONTENT;
		require(vm->fd, KVM_CAP_GUEST_MEMFD_FLAGS, gmem.flags,
			"content at the guest's request");
		vm->gmem = IOCTL(vm->fd, KVM_CREATE_GUEST_MEMFD, &gmem);
		vm->mem = mmap(NULL, vm->size, prot, MAP_SHARED, vm->gmem, 0);
	}
	vm->private = calloc(PAGES(vm->size), sizeof(*vm->private));
	if (vm->mem == MAP_FAILED || !vm->private)
		err(1, "guest memory");

	/* With two backings this is the shared half; else it is for KVM's error reports. */
	slot.guest_memfd = vm->gmem;
	slot.userspace_addr = (unsigned long)vm->mem;
	IOCTL(vm->fd, KVM_SET_USER_MEMORY_REGION2, &slot);

	if (!vm->two_backings)
		account(vm, 0, vm->size, true);	/* an in-place file starts private */
	say(vm, "VMM: a VM of %s MiB on %s\n" STATE, num(vm->size / MIB),
	    vm->two_backings ? "a guest_memfd and anonymous memory" : "one guest_memfd",
	    pages(vm->nr_private), pages(PAGES(vm->size) - vm->nr_private));
	if (vm->two_backings)
		must_convert(vm, 0, vm->size, true);
}

/* The guest's code, in private pages that are not there yet: write() fills them. */
static void load_private(struct vm *vm)
{
	size_t size = guest_image_end - guest_image - (GUEST_CODE - GUEST_STUB);
	size_t room = PAGES(size) * PAGE_SIZE;
	__u8 *code = calloc(1, room);

	if (!code)
		err(1, "the guest's code");
	memcpy(code, guest_image + GUEST_CODE - GUEST_STUB, size);
	if (pwrite(vm->gmem, code, room, GUEST_CODE) != (ssize_t)room)
		err(1, "writing the guest's code");
	free(code);
	say(vm, "VMM: wrote the guest's code to private memory, %s", pages(PAGES(size)));
	try_read(vm, GUEST_CODE);
	try_take(vm, GUEST_CODE);
}

/* The initial image: what is shared is made so, and filled; what is private is written. */
static void load(struct vm *vm)
{
	struct guest_mailbox mailbox = { .length = length };
	size_t image = guest_image_end - guest_image;
	unsigned int eax, ebx, ecx, edx;

	__cpuid(0, eax, ebx, ecx, edx);
	mailbox.vmmcall = ecx != signature_INTEL_ecx;
	if (vm->two_backings)	/* the VM is larger for this, see main() */
		mailbox.copy_to = vm->size - PAGES(length) * PAGE_SIZE;

	/* With two backings the VMM cannot fill private memory: the code is shared, too. */
	if (!vm->two_backings)
		image = GUEST_RESULT - GUEST_STUB;
	must_convert(vm, GUEST_STUB, PAGES(image) * PAGE_SIZE, false);
	must_convert(vm, GUEST_WINDOW, PAGES(length) * PAGE_SIZE, false);
	memcpy(vm->mem + GUEST_STUB, guest_image, image);
	memcpy(vm->mem + GUEST_MAILBOX, &mailbox, sizeof(mailbox));
	memcpy(vm->mem + GUEST_WINDOW, file, length);
	say(vm, "VMM: wrote hypercalls, a mailbox and %s bytes of %s to them", num(length), name);
	if (vm->two_backings)
		must_convert(vm, GUEST_RESULT, PAGE_SIZE, true);
	else
		load_private(vm);
}

/* The guest asks for a conversion: check what it says like any input. */
static void on_hypercall(struct vm *vm)
{
	__u64 gpa = vm->vcpu.run->hypercall.args[0], n = vm->vcpu.run->hypercall.args[1];
	bool private = vm->vcpu.run->hypercall.args[2] & KVM_MAP_GPA_RANGE_ENCRYPTED;
	bool keep = vm->vcpu.run->hypercall.args[2] & KVM_MAP_GPA_RANGE_PRESERVE;

	/*
	 * The guest of this VM type finds it in its register.  For a request of
	 * an SNP or TDX guest only 0, EINVAL and EAGAIN are valid, anything else
	 * ends the VM; guest_memfd.rst tells what to answer when.
	 */
	vm->vcpu.run->hypercall.ret = -KVM_EINVAL;
	if (vm->vcpu.run->hypercall.nr != KVM_HC_MAP_GPA_RANGE || gpa >= vm->size ||
	    n > (vm->size - gpa) / PAGE_SIZE)
		return;

	if (!private)
		try_read(vm, gpa);
	say(vm, "guest: please make %s at 0x%llx %s%s", pages(n), gpa,
	    private ? "private" : "shared", keep ? ", and keep the bytes" : "");
	if (convert(vm, gpa, n * PAGE_SIZE, private, keep))
		return;
	if (private)
		try_read(vm, gpa);
	vm->vcpu.run->hypercall.ret = 0;
}

/* Runs the guest to its end. */
static void run(struct vm *vm)
{
	for (;;) {
		if (ioctl(vm->vcpu.fd, KVM_RUN, 0))
			err(1, "KVM_RUN (exit reason %u)", vm->vcpu.run->exit_reason);
		switch (vm->vcpu.run->exit_reason) {
		case KVM_EXIT_HYPERCALL:
			on_hypercall(vm);
			break;
		case KVM_EXIT_IO:
			if (((__u8 *)vm->vcpu.run)[vm->vcpu.run->io.data_offset])
				errx(1, "the guest gave up");
			return;
		default:
			errx(1, "the guest stopped (exit reason %u)", vm->vcpu.run->exit_reason);
		}
	}
}

static void destroy_vm(struct vm *vm)
{
	destroy_vcpu(&vm->vcpu);
	munmap(vm->mem, vm->size);
	free(vm->private);
	close(vm->gmem);
	close(vm->fd);
}

/* The whole job in one VM. The digest must be the one that the host computed. */
static void run_job(struct vm *vm, int kvm, const __u8 *expected)
{
	char hex[2 * SHA256_SIZE + 1];
	const __u8 *digest;
	int i;

	aside = 0;
	create_vm(vm, kvm);
	create_vcpu(&vm->vcpu, vm->fd, kvm);
	load(vm);
	say(vm, "VMM: the guest starts");
	run(vm);
	digest = vm->mem + GUEST_RESULT;
	vm->seconds = now() - vm->start - aside;
	measure(vm);

	for (i = 0; i < SHA256_SIZE; i++)
		sprintf(hex + 2 * i, "%02x", digest[i]);
	say(vm, "VMM: the guest is done; the page it shared holds the digest\n" INDENT "%s", hex);
	if (memcmp(digest, expected, SHA256_SIZE))
		errx(1, "the digest is NOT the host's own");
	say(vm, "VMM: it equals the host's own");
	destroy_vm(vm);
}

/*
 * Both ways once more, without a word, until it has taken a few seconds: the
 * first run paid for what both need, which is more than a small file takes.
 * Returns the number of runs, the best of which count.
 */
static int compare(struct vm *in_place, struct vm *two, int kvm, const __u8 *expected)
{
	double end = now() + 3;
	struct vm a, b;
	int runs = 0;

	if (in_place->seconds + two->seconds > 3)
		return 1;
	quiet = true;
	do {
		a = (struct vm){ .size = in_place->size };
		b = (struct vm){ .size = two->size, .two_backings = true };
		run_job(&a, kvm, expected);
		run_job(&b, kvm, expected);
		if (!runs || a.seconds < in_place->seconds)
			in_place->seconds = a.seconds;
		if (!runs || b.seconds < two->seconds)
			two->seconds = b.seconds;
	} while (++runs < 20 && now() < end);
	return runs;
}

static void report(const char *how, const struct vm *vm)
{
	printf("  %-13s  %14s  %8.3f s\n", how, vm->peak ? pages(vm->peak) : "not measured",
	       vm->seconds);
}

/*
 * Opens the user's file.  Returns the size of a VM that has room for it: @mib MiB,
 * or if that is 0 as many as it takes.  Bad input is one clear line and exit code 2.
 */
static size_t open_file(size_t mib)
{
	int fd = open(name, O_RDONLY);
	struct stat st;
	size_t room;

	if (fd < 0 || fstat(fd, &st))
		err(2, "%s", name);
	if (!S_ISREG(st.st_mode))
		errx(2, "%s: not a regular file", name);
	if (!st.st_size)
		errx(2, "%s: the file is empty", name);
	length = st.st_size;
	room = (mib ? mib : MAX_MEMORY) * MIB - GUEST_WINDOW;
	if (length > room)
		errx(2, "%s: %s bytes, but a VM of %zu MiB has room for %s", name, num(length),
		     mib ? mib : MAX_MEMORY, num(room));
	if (!mib) {
		mib = (GUEST_WINDOW + length + MIB - 1) / MIB;
		if (mib < 64)
			mib = 64;
	}
	file = mmap(NULL, length, PROT_READ, MAP_PRIVATE, fd, 0);
	if (file == MAP_FAILED)
		err(2, "%s", name);
	close(fd);
	return mib * MIB;
}

static const char help[] =
	"usage: gmem_demo [--memory MIB] [--two-backings] [--verbose] FILE\n"
	"A guest computes the SHA-256 of FILE in private memory, converted in place;\n"
	"then the same is done with two backings, to compare time and memory.\n"
	"  -m, --memory MIB    memory of the VM, 2 to 1024 (64, or what the file needs)\n"
	"  -t, --two-backings  that way only; it needs no conversion in place\n"
	"  -v, --verbose       tell the steps of both ways\n";

static const struct option options[] = {
	{ "memory", required_argument, NULL, 'm' },
	{ "two-backings", no_argument, NULL, 't' },
	{ "verbose", no_argument, NULL, 'v' },
	{ "help", no_argument, NULL, 'h' },
	{}
};

int main(int argc, char **argv)
{
	struct sigaction sa = { .sa_handler = on_sigbus };
	struct vm in_place = {}, two = { .two_backings = true };
	bool only_two = false, verbose = false;
	__u8 expected[SHA256_SIZE];
	int opt, kvm, runs = 1;
	long mib = 0;

	while ((opt = getopt_long(argc, argv, "m:tvh", options, NULL)) != -1) {
		if (opt == 'h' || opt == '?') {
			fputs(help, opt == 'h' ? stdout : stderr);
			return opt == 'h' ? 0 : 2;
		}
		if (opt == 'm') {
			mib = atol(optarg);
			if (mib < MIN_MEMORY || mib > (long)MAX_MEMORY)
				errx(2, "2 to 1024 MiB are possible (see --help)");
		}
		only_two |= opt == 't';
		verbose |= opt == 'v';
	}
	if (optind != argc - 1)
		errx(2, "one file is wanted (see --help)");
	name = argv[optind];
	in_place.size = open_file(mib);
	two.size = in_place.size + PAGES(length) * PAGE_SIZE;	/* room for the copy */
	sha256(file, length, expected);

	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0)
		err(1, "/dev/kvm");
	sigaction(SIGBUS, &sa, NULL);
	if (!only_two) {
		run_job(&in_place, kvm, expected);
		quiet = !verbose;
	}
	run_job(&two, kvm, expected);
	if (!only_two)
		runs = compare(&in_place, &two, kvm, expected);

	printf("\nMost memory in use at a time, for a file of %s, and time without printing\n"
	       "(the best of %d):\n", pages(PAGES(length)), runs);
	if (!only_two)
		report("in place", &in_place);
	report("two backings", &two);
	printf("With two backings the guest copies the file from shared to private pages; the\n"
	       "VMM gives back the half not in use, but not before the copy is made.\n");
	return 0;
}
