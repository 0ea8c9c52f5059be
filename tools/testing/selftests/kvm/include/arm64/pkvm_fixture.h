/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The fixtures of the tests of protected VMs on guest_memfd, and what all of them
 * use: files, guests that ask, a VMM that answers as the test wants it to.
 */
#ifndef SELFTEST_KVM_PKVM_FIXTURE_H
#define SELFTEST_KVM_PKVM_FIXTURE_H

#include "pkvm_util.h"
#include "kvm_test_harness.h"

/* Pages in most files, and files that a VM may have at a time. */
#define NR			8ul
#define MAX_FILES		8ul

/* Pages of the guest's 1:1 mapping at GMEM_GPA: the files, and what has no slot. */
#define NR_MAPPED		((MAX_FILES + 1) * NR)
#define NO_SLOT_GPA		(GMEM_GPA + MAX_FILES * NR * PAGE_SIZE)

/* Anonymous memory, as protected VMs had it before. */
#define ANON_SLOT		5
#define ANON_GPA		(GMEM_GPA + SZ_1G)
#define ANON_NR			8ul

#define VAL			0x1122334455660000ul
#define OTHER			0x99aabbccddee0000ul

static inline bool supported(void)
{
	return pvm_supported() && (pvm_exit_hypercalls() & PVM_EXITS) == PVM_EXITS;
}

static inline void start_vm(struct pvm *p, u32 nr_vcpus)
{
	gmem_test_init();
	pvm_create(p, nr_vcpus, pvm_exit_hypercalls());
	virt_map(p->vm, GMEM_GPA, GMEM_GPA, NR_MAPPED);
	virt_map(p->vm, ANON_GPA, ANON_GPA, ANON_NR);
	pvm_load_gmem(p);
}

/* ---- VMs with one vCPU and with four; calls are made by the last ---- */

FIXTURE(pvm) {
	struct pvm p;
	u32 id;
	struct kvm_vcpu *vcpu;
};

FIXTURE_VARIANT(pvm) {
	u32 nr_vcpus;
};

FIXTURE_VARIANT_ADD(pvm, one_vcpu) {
	.nr_vcpus = 1,
};

FIXTURE_VARIANT_ADD(pvm, four_vcpus) {
	.nr_vcpus = 4,
};

/* Not every program has tests with both fixtures. */
__maybe_unused FIXTURE_SETUP(pvm);
__maybe_unused __FIXTURE_TEARDOWN(pvm);

FIXTURE_SETUP(pvm)
{
	if (!supported())
		SKIP(return, "No protected VMs on guest_memfd");

	start_vm(&self->p, variant->nr_vcpus);
	self->id = variant->nr_vcpus - 1;
	self->vcpu = self->p.vcpus[self->id];
}

FIXTURE_TEARDOWN(pvm)
{
	pvm_free(&self->p);
}

#define PVM_TEST(name)		TEST_F_TIMEOUT(pvm, name, GMEM_TIMEOUT_S)

/* ---- Nothing but protected VMs: the test makes its own ---- */

FIXTURE(setup) {
};

__maybe_unused FIXTURE_SETUP(setup);
__maybe_unused __FIXTURE_TEARDOWN(setup);

FIXTURE_SETUP(setup)
{
	if (!supported())
		SKIP(return, "No protected VMs on guest_memfd");
	gmem_test_init();
	gmem_page_size = getpagesize();
}

FIXTURE_TEARDOWN(setup)
{
}

#define SETUP_TEST(name)	TEST_F_TIMEOUT(setup, name, GMEM_TIMEOUT_S)

/* ---- Files ---- */

/* File @i of the VM: in slot GMEM_SLOT + i, NR pages at its place in GMEM_GPA. */
static inline void new_file(struct pvm *p, struct gmem *g, u32 i, u64 flags)
{
	gmem_create(g, p->vm, NR * PAGE_SIZE, flags);
	gmem_bind(g, GMEM_SLOT + i, GMEM_GPA + i * NR * PAGE_SIZE);
	pvm_add_file(p, g);
}

/* Page i holds VAL + i, and is private. */
static inline void new_filled_file(struct pvm *p, struct gmem *g, u32 i)
{
	new_file(p, g, i, GMEM_SHARED_FILE);
	gmem_host_fill(g, 0, NR, VAL);
	gmem_to_private(g, 0, NR, 0);
}

static inline gpa_t gpa_of(struct gmem *g, u64 page)
{
	return g->gpa + page * PAGE_SIZE;
}

static inline u8 *mem_of(struct gmem *g, u64 page)
{
	return g->mem + page * PAGE_SIZE;
}

#define expect_convert(g, page, nr, attrs, flags, error)			\
	TEST_ASSERT_EQ(gmem_convert_retry((g)->fd, (page) * PAGE_SIZE,		\
					  (nr) * PAGE_SIZE, attrs, flags), error)

#define expect_slot(vm, slot, flags, gpa, size, hva, fd, error)			\
do {										\
	int __want = (error);							\
	int __r = __vm_set_user_memory_region2(vm, slot, flags, gpa, size, hva,	\
					       fd, 0);				\
										\
	__r = __r ? errno : 0;							\
	TEST_ASSERT(__r == __want, "Slot: %s, want %s", strerror(__r),		\
		    strerror(__want));						\
} while (0)

#define SLOT_FLAGS	KVM_MEM_GUEST_MEMFD

#define expect_delete(g, error)							\
do {										\
	struct gmem *__g = (g);							\
										\
	expect_slot(__g->vm, __g->slot, SLOT_FLAGS, __g->gpa, 0, __g->mem,	\
		    __g->fd, error);						\
} while (0)

/* ---- Guests ---- */

static inline void guest_fill(struct pvm *p, u32 id, struct gmem *g, u64 first, u64 nr, u64 val)
{
	pvm_call(p, id, pvm_guest_fill, gpa_of(g, first), nr, val, 1ul);
}

#define __guest_check(p, id, gpa, nr, val, step)				\
do {										\
	u64 __nr = (nr), __val = (val);						\
	struct pvm_cmd *__cmd = pvm_call(p, id, pvm_guest_check, gpa, __nr,	\
					 __val, step);				\
										\
	TEST_ASSERT(__cmd->ret[0] == __nr, "Guest, page %lu of %lu: 0x%lx, from 0x%lx", \
		    __cmd->ret[0], __nr, __cmd->ret[1], __val);			\
} while (0)

#define guest_check(p, id, g, first, nr, val)	\
	__guest_check(p, id, gpa_of(g, first), nr, val, 1ul)
#define guest_check_zero(p, id, g, first, nr)	\
	__guest_check(p, id, gpa_of(g, first), nr, 0ul, 0ul)

/* The same as new_filled_file(), and the guest has its first @nr pages in its stage-2. */
static inline void new_used_file(struct pvm *p, u32 id, struct gmem *g, u64 nr)
{
	new_filled_file(p, g, 0);
	guest_check(p, id, g, 0, nr, VAL);
}

/* Run until the hypercall that was prepared exits. */
#define expect_hypercall(vcpu, function, gpa)					\
do {										\
	struct kvm_vcpu *__vcpu = (vcpu);					\
										\
	vcpu_run(__vcpu);							\
	TEST_ASSERT_KVM_EXIT_REASON(__vcpu, KVM_EXIT_HYPERCALL);		\
	TEST_ASSERT_EQ(__vcpu->run->hypercall.nr, function);			\
	TEST_ASSERT_EQ(__vcpu->run->hypercall.args[0], gpa);			\
	TEST_ASSERT_EQ(__vcpu->run->hypercall.args[1], PAGE_SIZE);		\
	TEST_ASSERT_EQ(__vcpu->run->hypercall.ret, 0);				\
} while (0)

/* The guest asks for a page, and the VMM has not answered yet. */
#define ask(p, id, function, g, page)						\
do {										\
	struct pvm *__p = (p);							\
	u32 __id = (id), __fn = (function);					\
	gpa_t __gpa = gpa_of(g, page);						\
										\
	pvm_prepare(__p, __id, pvm_guest_hvc, __fn, __gpa);			\
	expect_hypercall(__p->vcpus[__id], __fn, __gpa);			\
} while (0)

/* What the guest is told if the vCPU goes on now, without another exit. */
static inline u64 answer(struct pvm *p, u32 id)
{
	vcpu_run(p->vcpus[id]);
	TEST_ASSERT_EQ(gmem_get_ucall(p->vcpus[id]), UCALL_SYNC);
	return p->cmds[id].ret[0];
}

/* A hypercall that a good VMM serves, if there is something to serve. */
static inline u64 hvc(struct pvm *p, u32 id, u32 function, gpa_t gpa)
{
	return pvm_call(p, id, pvm_guest_hvc, function, gpa)->ret[0];
}

#define share(p, id, g, page)							\
	TEST_ASSERT_EQ(hvc(p, id, PVM_HVC_SHARE, gpa_of(g, page)), PVM_SUCCESS)
#define unshare(p, id, g, page)							\
	TEST_ASSERT_EQ(hvc(p, id, PVM_HVC_UNSHARE, gpa_of(g, page)), PVM_SUCCESS)

/* The run that must fail. */
#define expect_run_error(vcpu, error)						\
do {										\
	struct kvm_vcpu *__vcpu = (vcpu);					\
	int __r = _vcpu_run(__vcpu), __errno = errno, __want = (error);		\
										\
	TEST_ASSERT(__r == -1 && __errno == __want,				\
		    "KVM_RUN: %d, %s (exit %s), want %s", __r, strerror(__errno), \
		    exit_reason_str(__vcpu->run->exit_reason), strerror(__want)); \
} while (0)

/* Touch a page that is lost: fails, and fails again, and the vCPU lives on. */
static inline void expect_lost(struct pvm *p, u32 id, struct gmem *g, u64 page)
{
	pvm_prepare(p, id, pvm_guest_read, gpa_of(g, page));
	expect_run_error(p->vcpus[id], EHWPOISON);
	expect_run_error(p->vcpus[id], EHWPOISON);
	pvm_vcpu_reset(p->vcpus[id]);
	pvm_finish(p, id);
}

/* Touch a page whose file state is shared though the guest did not share it. */
static inline void expect_memory_fault(struct pvm *p, u32 id, struct gmem *g, u64 page)
{
	struct kvm_run *run = p->vcpus[id]->run;

	expect_run_error(p->vcpus[id], EFAULT);
	TEST_ASSERT_EQ(run->exit_reason, KVM_EXIT_MEMORY_FAULT);
	TEST_ASSERT_EQ(run->memory_fault.flags, KVM_MEMORY_EXIT_FLAG_PRIVATE);
	TEST_ASSERT_EQ(run->memory_fault.gpa, gpa_of(g, page));
	TEST_ASSERT_EQ(run->memory_fault.size, PAGE_SIZE);
}

static inline void expect_veto(struct gmem *g, u64 first, u64 nr, u64 attrs)
{
	expect_convert(g, first, nr, attrs, 0, EPERM);
	expect_convert(g, first, nr, attrs, GMEM_PRESERVE, EPERM);
	if (!attrs)
		expect_convert(g, first, nr, attrs, GMEM_ZERO, EPERM);
}

/* ---- What the host can reach ---- */

static inline void assert_unreachable(struct gmem *g, u64 first, u64 nr)
{
	u64 i;

	gmem_assert_private(g, first, nr);
	for (i = first; i < first + nr; i++)
		pvm_check_syscalls(mem_of(g, i), EFAULT);
}

/* ---- What a VMM does ---- */

static inline int enable_exits(struct kvm_vm *vm, u64 mask)
{
	return __vm_enable_cap(vm, KVM_CAP_EXIT_HYPERCALL, mask) ? errno : 0;
}

static inline void set_mp_state(struct kvm_vcpu *vcpu, u32 state)
{
	struct kvm_mp_state mp_state = { .mp_state = state };

	vcpu_mp_state_set(vcpu, &mp_state);
}

#define BIG_NR		512ul

/* A guest of two vCPUs that has filled a file of BIG_NR pages. */
static inline void run_big_guest(struct pvm *p, struct gmem *g)
{
	gmem_test_init();
	pvm_create(p, 2, pvm_exit_hypercalls());
	virt_map(p->vm, GMEM_GPA, GMEM_GPA, BIG_NR);
	pvm_load_gmem(p);
	gmem_create(g, p->vm, BIG_NR * PAGE_SIZE, GMEM_PRIVATE_FILE);
	gmem_bind(g, GMEM_SLOT, GMEM_GPA);
	pvm_add_file(p, g);
	guest_fill(p, 1, g, 0, BIG_NR, VAL);
}

#endif /* SELFTEST_KVM_PKVM_FIXTURE_H */
