// SPDX-License-Identifier: GPL-2.0-only
/*
 * The guest: takes the file in the window into private memory, computes its
 * SHA-256 there and shares the digest.
 *
 * Where hypercalls are made from.  A processor without NRIP save makes KVM
 * decode the guest's code to step over an instruction such as vmcall.  If the
 * memory has two backings, KVM reads that code, and page tables on the way to
 * it, through userspace_addr, where only shared pages can be reached.  (In an
 * in-place file KVM finds it.)  Real processors have NRIP save; QEMU's emulated
 * one has not.  So that the sample runs there too, the
 * hypercall instructions have a shared page of their own, and the guest runs in
 * flat 32-bit mode, which needs no page tables.  Port I/O needs no decoding.
 * Do not copy this: the host can write to that page.  On a real processor all
 * of a guest's code is private.
 */
#include <stddef.h>
#include <linux/kvm_para.h>

#include "guest.h"
#include "sha256.h"

#define PAGE_SIZE	4096

/* The VMM zeroes all registers; the stack is the first thing to set up. */
asm(".section .text.start, \"ax\"\n"
	"mov $0x10000, %esp\n"	/* GUEST_STACK */
	"call guest_main\n"
	".section .stub, \"ax\"\n"
	"vmcall\n"		/* GUEST_STUB: Intel */
	"ret\n"
	"vmmcall\n"		/* GUEST_STUB + 4: AMD */
	"ret\n"
	".text\n");

/* GCC may call these two even in freestanding code. */
void *memcpy(void *to, const void *from, size_t length)
{
	size_t words;
	void *d = to;

	asm volatile("rep movsl\n"
		     "mov %3, %%ecx\n"
		     "rep movsb" : "+D"(d), "+S"(from), "=&c"(words)
		     : "r"(length % 4), "2"(length / 4) : "memory");
	return to;
}

void *memset(void *to, int byte, size_t length)
{
	void *d = to;

	asm volatile("rep stosb" : "+D"(d), "+c"(length) : "a"(byte) : "memory");
	return to;
}

static void done(__u8 code)
{
	for (;;)
		asm volatile("outb %0, %1" :: "a"(code), "Nd"(PORT_DONE) : "memory");
}

/* Asks the VMM to make a range private (encrypted) or shared (decrypted). */
static void convert(const struct guest_mailbox *m, __u32 gpa, __u32 length,
		    __u32 attributes)
{
	__u32 stub = m->vmmcall ? GUEST_STUB + 4 : GUEST_STUB;
	long ret;

	asm volatile("call *%1" : "=a"(ret)
		     : "r"(stub), "0"(KVM_HC_MAP_GPA_RANGE), "b"(gpa),
		       "c"((length + PAGE_SIZE - 1) / PAGE_SIZE), "d"(attributes)
		     : "memory");
	if (ret)
		done(1);
}

/* What the VMM offers. */
static __u32 kvm_features(void)
{
	__u32 eax = KVM_CPUID_FEATURES, ebx, ecx = 0, edx;

	asm volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
	return eax;
}

/* Nobody shares memory with this guest, it has ports alone. */
static void tell_digest(const void *file, __u32 length)
{
	__u8 digest[SHA256_SIZE];
	int i;

	sha256(file, length, digest);
	for (i = 0; i < SHA256_SIZE; i++)
		asm volatile("outb %0, %1" :: "a"(digest[i]), "Nd"(PORT_DIGEST));
	done(0);
}

void guest_main(void)
{
	__u8 *result = (__u8 *)GUEST_RESULT;
	const void *file = (void *)GUEST_WINDOW;
	__u8 digest[SHA256_SIZE];
	struct guest_mailbox m;
	__u32 keep = 0;

	/* The VMM can write the mailbox at any time: read it once, then check. */
	memcpy(&m, (void *)GUEST_MAILBOX, sizeof(m));
	if (m.copy_to && (m.copy_to < GUEST_WINDOW ||
			  m.copy_to - GUEST_WINDOW < m.length))
		done(1);

	if (m.plain)
		tell_digest(file, m.length);

	/* Two backings: converted pages lose their bytes, so copy them first. */
	if (m.copy_to)
		file = memcpy((void *)m.copy_to, file, m.length);
	else if (kvm_features() & 1u << KVM_FEATURE_MAP_GPA_RANGE_PRESERVE)
		keep = KVM_MAP_GPA_RANGE_PRESERVE;
	else
		done(1);
	convert(&m, GUEST_WINDOW, m.length, KVM_MAP_GPA_RANGE_ENCRYPTED | keep);

	/* Only now is the content final: the VMM cannot change it any more. */
	sha256(file, m.length, digest);

	/* In place the bytes go along if asked for; with two backings they would be lost. */
	if (!m.copy_to)
		memcpy(result, digest, sizeof(digest));
	convert(&m, GUEST_RESULT, PAGE_SIZE, KVM_MAP_GPA_RANGE_DECRYPTED | keep);
	if (m.copy_to)
		memcpy(result, digest, sizeof(digest));
	done(0);
}
