// SPDX-License-Identifier: GPL-2.0-only
/* What the two VMMs of the guest_memfd sample share. */
#include <err.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <linux/kvm_para.h>

#include "guest.h"
#include "vmm.h"

asm(".section .rodata\n"
	".globl guest_image, guest_image_end\n"
	"guest_image: .incbin \"guest.bin\"\n"
	"guest_image_end:\n"
	".text\n");

double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

const char *num(size_t n)
{
	static char buffers[4][32];
	static int next;
	char *p = &buffers[next++ % 4][31];
	int digits = 0;

	do {
		if (digits && digits % 3 == 0)
			*--p = ',';
		*--p = '0' + n % 10;
		digits++;
	} while (n /= 10);
	return p;
}

const char *pages(size_t n)
{
	static char buffers[4][40];
	static int next;
	char *p = buffers[next++ % 4];

	snprintf(p, sizeof(buffers[0]), "%s page%s", num(n), n == 1 ? "" : "s");
	return p;
}

int xioctl(int fd, unsigned long request, unsigned long arg, const char *what)
{
	int ret = ioctl(fd, request, arg);

	if (ret < 0)
		err(1, "%s", what);
	return ret;
}

void require(int vm, unsigned long cap, int bits, const char *what)
{
	int ret = ioctl(vm, KVM_CHECK_EXTENSION, cap);

	if (ret < 0 || (ret & bits) != bits)
		errx(1, "this kernel has no %s", what);
}

/* All of CPUID that the guest looks at: KVM, and what of it the VMM serves. */
static void set_cpuid(int vcpu)
{
	struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 entries[2];
	} cpuid = {
		.head.nent = 2,
		.entries[0] = {
			.function = KVM_CPUID_SIGNATURE,
			.eax = KVM_CPUID_FEATURES,
			.ebx = 0x4b4d564b,	/* KVMKVMKVM */
			.ecx = 0x564b4d56,
			.edx = 0x4d,
		},
		.entries[1] = {
			.function = KVM_CPUID_FEATURES,
			.eax = 1u << KVM_FEATURE_HC_MAP_GPA_RANGE |
			       1u << KVM_FEATURE_MAP_GPA_RANGE_PRESERVE,
		},
	};

	IOCTL(vcpu, KVM_SET_CPUID2, &cpuid);
}

void create_vcpu(struct vcpu *vcpu, int vm, int kvm)
{
	struct kvm_segment flat = {
		.limit = 0xffffffff, .selector = 8, .type = 11, .present = 1,
		.db = 1, .s = 1, .g = 1,
	};
	struct kvm_regs regs = { .rip = GUEST_CODE, .rflags = 2 };
	struct kvm_sregs sregs;

	vcpu->run_size = IOCTL(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	vcpu->fd = IOCTL(vm, KVM_CREATE_VCPU, 0);
	vcpu->run = mmap(NULL, vcpu->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
	if (vcpu->run == MAP_FAILED)
		err(1, "mmap of the vCPU");

	set_cpuid(vcpu->fd);
	IOCTL(vcpu->fd, KVM_GET_SREGS, &sregs);
	sregs.cr0 |= 1;		/* protected mode */
	sregs.cs = flat;
	flat.type = 3;
	flat.selector = 16;
	sregs.ds = flat;
	sregs.es = flat;
	sregs.ss = flat;
	IOCTL(vcpu->fd, KVM_SET_SREGS, &sregs);
	IOCTL(vcpu->fd, KVM_SET_REGS, &regs);
}

void destroy_vcpu(struct vcpu *vcpu)
{
	munmap(vcpu->run, vcpu->run_size);
	close(vcpu->fd);
}
