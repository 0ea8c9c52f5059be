/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The fixture of most tests of in-place conversion: a VM with one vCPU, whose
 * guest does what it is told, and the names that all of them use.
 */
#ifndef SELFTEST_KVM_GMEM_FIXTURE_H
#define SELFTEST_KVM_GMEM_FIXTURE_H

#include "gmem_util.h"
#include "kvm_test_harness.h"

/* Pages in most files, and pages of the guest's 1:1 mapping at GMEM_GPA. */
#define NR		16ul
#define NR_MAPPED	64ul

/* The part of a file that most cases convert. */
#define FIRST		4ul
#define COUNT		8ul
#define END		(FIRST + COUNT)

/* Page i holds VAL + i; OTHER is what the next writer leaves there. */
#define VAL		0x1122334455660000ul
#define OTHER		0x99aabbccddee0000ul

FIXTURE(inplace) {
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
};

FIXTURE_SETUP(inplace)
{
	if (!gmem_conversion_supported())
		SKIP(return, "No in-place conversion of guest_memfd");

	gmem_test_init();
	self->vm = gmem_vm_create(1, gmem_guest_server, &self->vcpu);
	vcpu_args_set(self->vcpu, 1, 0);
	virt_map(self->vm, GMEM_GPA, GMEM_GPA, NR_MAPPED);
}

FIXTURE_TEARDOWN(inplace)
{
	kvm_vm_free(self->vm);
}

#define GMEM_TEST(name)		TEST_F_TIMEOUT(inplace, name, GMEM_TIMEOUT_S)

/* A case that needs @cond of the machine. */
#define GMEM_TEST_IF(name, cond, reason)					\
static void name##_case(struct kvm_vcpu *vcpu);					\
										\
GMEM_TEST(name)									\
{										\
	if (!(cond))								\
		SKIP(return, reason);						\
										\
	name##_case(self->vcpu);						\
}										\
										\
static void name##_case(struct kvm_vcpu *vcpu)

/* ---- What many cases begin with, and look at ---- */

/* A shared file that the user has filled. */
static inline void new_filled_file(struct gmem *g, struct kvm_vm *vm)
{
	gmem_new(g, vm, NR, GMEM_SHARED_FILE);
	gmem_host_fill(g, 0, NR, VAL);
}

/* The same with the part that most cases convert already private. */
static inline void new_mixed_file(struct gmem *g, struct kvm_vm *vm)
{
	new_filled_file(g, vm);
	gmem_to_private(g, FIRST, COUNT, 0);
}

/* That part is of one state, and what is around it of the other. */
#define assert_part(g, want_private)						\
do {										\
	struct gmem *__part_g = (g);						\
	bool __part_want = (want_private);					\
										\
	gmem_assert_state(__part_g, 0, FIRST, !__part_want);			\
	gmem_assert_state(__part_g, FIRST, COUNT, __part_want);			\
	gmem_assert_state(__part_g, END, NR - END, !__part_want);		\
} while (0)

#endif /* SELFTEST_KVM_GMEM_FIXTURE_H */
