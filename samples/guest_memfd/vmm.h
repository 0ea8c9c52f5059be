/* SPDX-License-Identifier: GPL-2.0-only */
/* What the two VMMs of the guest_memfd sample share. */
#ifndef VMM_H
#define VMM_H

#include <stddef.h>
#include <linux/kvm.h>

#define PAGE_SIZE	4096ul
#define MIB		1048576ul
#define PAGES(bytes)	(((bytes) + PAGE_SIZE - 1) / PAGE_SIZE)

/* Seconds since some moment. */
double now(void);

/* 1234567 -> "1,234,567", and the same with "page" or "pages"; good for four a printf(). */
const char *num(size_t n);
const char *pages(size_t n);

/* An ioctl() that ends the program if it fails. */
int xioctl(int fd, unsigned long request, unsigned long arg, const char *what);
#define IOCTL(fd, request, arg) xioctl(fd, request, (unsigned long)(arg), #request)

/* Ask the VM, not /dev/kvm: the answers depend on the type of the VM. */
void require(int vm, unsigned long cap, int bits, const char *what);

struct vcpu {
	int fd;
	struct kvm_run *run;
	int run_size;
};

/* One vCPU in flat 32-bit mode, at the start of the guest's code. */
void create_vcpu(struct vcpu *vcpu, int vm, int kvm);
void destroy_vcpu(struct vcpu *vcpu);

#endif
