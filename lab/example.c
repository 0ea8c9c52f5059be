// SPDX-License-Identifier: GPL-2.0
/*
 * The worked example of guest_memfd.rst, run: a guest in long mode whose memory
 * the example creates and whose requests it answers.
 *
 * guest_memfd_example.h is the document's code, made by example.awk.  What the
 * document leaves out is here: the vCPU, the guest, and the judging.
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <linux/kvm.h>
#include <linux/kvm_para.h>

#include "guest_memfd_example.h"

/* The image, by gpa. */
#define STUB		0x0000	/* shared: the hypercall instruction */
#define PML4		0x1000	/* shared: page tables, three pages */
#define CODE		0x4000
#define DATA		0x5000
#define STACK		0x6000
#define IMAGE_END	0x7000
/* Not in the image, shared at first. */
#define WINDOW		0x8000
#define HELD		0x9000

#define MAGIC		0x1badf00d
#define PORT		0x10

/*
 * The guest.  After each step it tells eax by port I/O, which KVM needs no look
 * at its code for.
 */
asm(".section .rodata\n"
	".globl guest, guest_end\n"
	"guest:\n"
	"mov 0x5000, %eax\n"		/* DATA */
	"out %eax, $0x10\n"
	"mov $0x8000, %ebx\n"		/* WINDOW, private */
	"mov $0x10, %edx\n"
	"call 1f\n"
	"movl $0x1badf00d, 0x8000\n"
	"xor %edx, %edx\n"		/* shared */
	"call 1f\n"
	"mov $0x9000, %ebx\n"		/* HELD, private, twice */
	"mov $0x10, %edx\n"
	"call 1f\n"
	"call 1f\n"
	"hlt\n"
	"1: mov $12, %eax\n"		/* KVM_HC_MAP_GPA_RANGE */
	"mov $1, %ecx\n"
	"xor %esi, %esi\n"		/* STUB */
	"call *%rsi\n"
	"out %eax, $0x10\n"
	"ret\n"
	"guest_end:\n"
	".text\n");

extern const __u8 guest[], guest_end[];

static __u8 image[IMAGE_END];
static int nr;

static void result(bool good, const char *what)
{
	printf("%sok %d %s\n", good ? "" : "not ", ++nr, what);
	if (!good)
		exit(1);
}

static void build_image(void)
{
	unsigned int eax, ebx, ecx, edx;
	__u32 magic = MAGIC;
	__u64 entry;

	/* vmcall or vmmcall, and ret. */
	__cpuid(0, eax, ebx, ecx, edx);
	memcpy(image + STUB, ecx == signature_INTEL_ecx ? "\x0f\x01\xc1\xc3" :
							  "\x0f\x01\xd9\xc3", 4);
	entry = PML4 + 0x1000 + 0x03;	/* present, writable */
	memcpy(image + PML4, &entry, sizeof(entry));
	entry += 0x1000;
	memcpy(image + PML4 + 0x1000, &entry, sizeof(entry));
	entry = 0x83;			/* 2 MiB, from 0 on */
	memcpy(image + PML4 + 0x2000, &entry, sizeof(entry));
	memcpy(image + CODE, guest, guest_end - guest);
	memcpy(image + DATA, &magic, sizeof(magic));
}

/* All that KVM can: long mode is a matter of CPUID. */
static void set_cpuid(int kvm, int vcpu)
{
	struct kvm_cpuid2 *cpuid;

	cpuid = calloc(1, sizeof(*cpuid) + 256 * sizeof(cpuid->entries[0]));
	if (!cpuid)
		err(1, "CPUID");
	cpuid->nent = 256;
	if (ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid) ||
	    ioctl(vcpu, KVM_SET_CPUID2, cpuid))
		err(1, "CPUID");
	free(cpuid);
}

static int create_vcpu(int kvm, struct kvm_run **run)
{
	struct kvm_segment code = {
		.limit = 0xffffffff, .selector = 8, .type = 11, .present = 1,
		.s = 1, .l = 1, .g = 1,
	};
	struct kvm_regs regs = { .rip = CODE, .rsp = IMAGE_END, .rflags = 2 };
	int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	struct kvm_sregs sregs;

	set_cpuid(kvm, vcpu);
	*run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (*run == MAP_FAILED || ioctl(vcpu, KVM_GET_SREGS, &sregs))
		err(1, "vCPU");
	sregs.cr0 = 0x80000001;		/* PG, PE */
	sregs.cr3 = PML4;
	sregs.cr4 = 0x20;		/* PAE */
	sregs.efer = 0x500;		/* LME, LMA */
	sregs.cs = code;
	code.type = 3;
	code.selector = 16;
	sregs.ds = code;
	sregs.es = code;
	sregs.ss = code;
	if (ioctl(vcpu, KVM_SET_SREGS, &sregs) || ioctl(vcpu, KVM_SET_REGS, &regs))
		err(1, "vCPU registers");
	return vcpu;
}

/* Run to the next step's end.  What does the guest say? */
static __u32 step(int vcpu, struct kvm_run *run)
{
	int r = run_vcpu(vcpu, run);
	__u32 value;

	if (r || run->exit_reason != KVM_EXIT_IO || run->io.port != PORT)
		printf("# run_vcpu() %d, exit reason %u\n", r, run->exit_reason);
	result(!r && run->exit_reason == KVM_EXIT_IO && run->io.port == PORT,
	       "the guest comes to its next step");
	memcpy(&value, (__u8 *)run + run->io.data_offset, sizeof(value));
	return value;
}

/* Can the host read the page?  As a system call would. */
static bool readable(const __u8 *page)
{
	int p[2];
	bool good = !pipe(p) && write(p[1], page, 4) == 4;

	close(p[0]);
	close(p[1]);
	return good;
}

/* The values that KVM takes for each VM type, see the document. */
static void test_answers(void)
{
	static const unsigned long types[] = { KVM_X86_SNP_VM, KVM_X86_TDX_VM };
	static const int errors[] = { -EAGAIN, -EINVAL, -ENOMEM, -EIO };
	unsigned long mine = type;
	bool good = true;
	size_t i, j;

	for (i = 0; i < 2; i++) {
		type = types[i];
		good &= answer(0) == 0;
		for (j = 0; j < 4; j++)
			good &= answer(errors[j]) == EINVAL || answer(errors[j]) == EAGAIN;
		good &= answer(-EAGAIN) == EAGAIN;
	}
	type = mine;
	result(good, "SNP and TDX guests are told 0, EINVAL or EAGAIN");
	result((int)answer(-EAGAIN) == -KVM_EINVAL, "others a hypercall's error");
}

int main(void)
{
	int kvm = open("/dev/kvm", O_RDWR), vcpu, pipe_of_holder[2];
	struct kvm_run *run;
	struct iovec held;
	__u8 *ram;

	printf("KTAP version 1\n");
	test_answers();

	size = 2 << 20;
	build_image();
	create(kvm, image, IMAGE_END / 4096, CODE / 4096);
	vcpu = create_vcpu(kvm, &run);
	ram = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, gmem, 0);
	result(readable(ram + STUB) && readable(ram + WINDOW), "the stub is shared");
	result(!readable(ram + CODE) && !readable(ram + STACK), "the rest of the image isn't");

	result(step(vcpu, run) == MAGIC, "the guest finds the image's bytes");
	result(!step(vcpu, run), "it has a page made private");
	result(!readable(ram + WINDOW), "the host cannot read that");
	result(!step(vcpu, run), "it has the page made shared");
	result(*(__u32 *)(ram + WINDOW) == MAGIC, "the host reads what the guest wrote");

	held = (struct iovec){ ram + HELD, 4096 };
	if (pipe(pipe_of_holder) || vmsplice(pipe_of_holder[1], &held, 1, 0) != 4096)
		err(1, "vmsplice");
	result((int)step(vcpu, run) == -KVM_EINVAL, "a held page is refused");
	result(readable(ram + HELD), "and still shared");
	/* This VM would take what the example does for an SNP VM. */
	type = KVM_X86_SNP_VM;
	result(!step(vcpu, run), "for an SNP guest the held page is replaced");
	result(!readable(ram + HELD), "and then private");
	result(!run_vcpu(vcpu, run) && run->exit_reason == KVM_EXIT_HLT, "the guest halts");

	printf("1..%d\n", nr);
	return 0;
}
