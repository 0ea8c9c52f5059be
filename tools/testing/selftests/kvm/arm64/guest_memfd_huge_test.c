// SPDX-License-Identifier: GPL-2.0-only
/*
 * guest_memfd files with GUEST_MEMFD_FLAG_HUGE in VMs without private memory: the
 * guest has them mapped by blocks where it can, and nothing else may be told from it.
 *
 * No statistics tell of blocks, hence faults are counted: the guest touches many pages,
 * and exits for few of them.
 */
#include "gmem_util.h"
#include "kvm_test_harness.h"

/* Page i holds VAL + i; OTHER is what the next writer leaves there. */
#define VAL		0x1122334455660000ul
#define OTHER		0x99aabbccddee0000ul

#define SHARED_HUGE	(GMEM_SHARED_FILE | GUEST_MEMFD_FLAG_HUGE)

#define NR_BLOCKS	2ul

/* Pages of a block, i.e. entries of a table of 8 bytes each. */
#define BLOCK		(PAGE_SIZE / 8)
#define NR		(NR_BLOCKS * BLOCK)

/* A page amid the first block. */
#define MID		(BLOCK / 2 - 3)

/* Interrupts of the host are exits, too. */
#define FEW		(NR / 8)

FIXTURE(blocks) {
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
};

FIXTURE_SETUP(blocks)
{
	gmem_page_size = getpagesize();
	gmem_test_init();
	self->vm = vm_create_with_one_vcpu(&self->vcpu, gmem_guest_server);

	/* The system answers for the most capable type of VM, which may be another. */
	if (!(vm_check_cap(self->vm, KVM_CAP_GUEST_MEMFD_FLAGS) & GUEST_MEMFD_FLAG_HUGE))
		SKIP(return, "No large folios in guest_memfd");

	sync_global_to_guest(self->vm, gmem_page_size);
	vcpu_args_set(self->vcpu, 1, 0);
	virt_map(self->vm, GMEM_GPA, GMEM_GPA, NR + BLOCK);
	gmem_guest_do(self->vcpu, GMEM_GUEST_NOP, 0, 0, 0, 0);
}

FIXTURE_TEARDOWN(blocks)
{
	TEST_ASSERT_EQ(vm_get_stat(self->vm, gmem_pages_shared), 0);
	kvm_vm_free(self->vm);
}

#define BLOCK_TEST(name)	TEST_F_TIMEOUT(blocks, name, GMEM_TIMEOUT_S)

/* The guest touches @nr pages, all absent from its tables: by blocks, or by pages? */
#define expect_exits(vcpu, nr, by_blocks, action)				\
do {										\
	u64 __exits = vcpu_get_stat(vcpu, exits), __nr = (nr);			\
	bool __blocks = (by_blocks);						\
										\
	action;									\
	__exits = vcpu_get_stat(vcpu, exits) - __exits;				\
	TEST_ASSERT(__blocks ? __exits < FEW : __exits >= __nr,			\
		    "%lu exits for %lu pages, should be mapped by %s",		\
		    __exits, __nr, __blocks ? "blocks" : "pages");		\
} while (0)

static void fill(struct kvm_vcpu *vcpu, struct gmem *g, u64 first, u64 nr, bool by_blocks)
{
	expect_exits(vcpu, nr, by_blocks, gmem_guest_fill(vcpu, g, first, nr, VAL + first));
}

static void check(struct kvm_vcpu *vcpu, struct gmem *g, u64 first, u64 nr, bool by_blocks)
{
	expect_exits(vcpu, nr, by_blocks,
		     gmem_guest_check_fill(vcpu, g, first, nr, VAL + first));
}

BLOCK_TEST(few_faults)
{
	struct gmem g;

	gmem_new(&g, self->vm, NR, SHARED_HUGE);
	fill(self->vcpu, &g, 0, NR, true);
	gmem_host_check(&g, 0, NR, VAL);
	TEST_ASSERT_EQ(vm_get_stat(self->vm, gmem_pages_shared), NR);
	gmem_destroy(&g);

	/* A fault a page without the flag, or the count is worth nothing. */
	gmem_new(&g, self->vm, NR, GMEM_SHARED_FILE);
	fill(self->vcpu, &g, 0, NR, false);
	gmem_destroy(&g);
}

/* Blocks take guest addresses and offsets that agree, and a slot that has all of it. */
BLOCK_TEST(alignment)
{
	struct gmem g;

	gmem_create(&g, self->vm, NR * PAGE_SIZE, SHARED_HUGE);
	gmem_bind(&g, GMEM_SLOT, GMEM_GPA + PAGE_SIZE);
	fill(self->vcpu, &g, 0, NR, false);
	gmem_guest_check_fill(self->vcpu, &g, 0, NR, VAL);
	gmem_unbind(&g);

	/* The memory is where it was, and goes by blocks now. */
	gmem_bind(&g, GMEM_SLOT, GMEM_GPA);
	check(self->vcpu, &g, 0, NR, true);
	gmem_unbind(&g);

	vm_set_user_memory_region2(self->vm, GMEM_SLOT, KVM_MEM_GUEST_MEMFD, GMEM_GPA,
				   (NR - 1) * PAGE_SIZE, NULL, g.fd, 0);
	g.gpa = GMEM_GPA;
	fill(self->vcpu, &g, 0, BLOCK, true);
	fill(self->vcpu, &g, BLOCK, BLOCK - 1, false);
	gmem_guest_check_fill(self->vcpu, &g, 0, NR - 1, VAL);
	g.slot = GMEM_SLOT;
	gmem_destroy(&g);
}

/* A page amid a block goes; the rest is where it was, and so are the other blocks. */
BLOCK_TEST(punch)
{
	struct gmem g;
	u64 i;

	for (i = 0; i < 2; i++) {
		/* With and without the MMU notifier's help. */
		__gmem_new(&g, self->vm, NR, SHARED_HUGE, i);
		gmem_guest_fill(self->vcpu, &g, 0, NR, VAL);
		gmem_punch(&g, MID, 1);
		TEST_ASSERT_EQ(vm_get_stat(self->vm, gmem_pages_shared), NR - 1);
		gmem_guest_check_zero(self->vcpu, &g, MID, 1);
		gmem_guest_check_fill(self->vcpu, &g, 0, MID, VAL);
		gmem_guest_check_fill(self->vcpu, &g, MID + 1, NR - MID - 1, VAL + MID + 1);

		/* What is written now is seen by the host: no mapping is stale. */
		gmem_guest_fill(self->vcpu, &g, 0, NR, OTHER);
		gmem_host_check(&g, 0, NR, OTHER);

		gmem_punch(&g, 0, NR);
		gmem_guest_check_zero(self->vcpu, &g, 0, NR);
		gmem_host_check_zero(&g, 0, NR);
		gmem_destroy(&g);
	}
}

/* Users and guest see the same pages, whoever is first. */
BLOCK_TEST(users_first)
{
	struct gmem g;

	gmem_new(&g, self->vm, NR, SHARED_HUGE);
	gmem_host_fill(&g, 0, NR, VAL);
	check(self->vcpu, &g, 0, NR, true);
	gmem_host_fill(&g, MID, BLOCK, OTHER);
	gmem_guest_check_fill(self->vcpu, &g, MID, BLOCK, OTHER);
	gmem_destroy(&g);
}

/* ---- Code in a block: a permission fault, unless the CPU has DIC ---- */

#define INSN_RET	0xd65f03c0u

/* Write a function to page after page, and call it. */
static void guest_call(gva_t gva, u64 nr)
{
	u32 *insn;
	u64 i;

	for (i = 0; i < nr; i++) {
		insn = (u32 *)(gva + i * PAGE_SIZE);
		WRITE_ONCE(*insn, INSN_RET);
		asm volatile("dc cvau, %0\n\tdsb ish\n\tic ivau, %0\n\tdsb ish\n\tisb"
			     : : "r" (insn) : "memory");
		((void (*)(void))insn)();
	}
	GUEST_DONE();
}

BLOCK_TEST(execute)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	struct gmem g;
	u64 exits;

	vm = vm_create_with_one_vcpu(&vcpu, guest_call);
	sync_global_to_guest(vm, gmem_page_size);
	virt_map(vm, GMEM_GPA, GMEM_GPA, NR);
	gmem_new(&g, vm, NR, SHARED_HUGE);
	vcpu_args_set(vcpu, 2, GMEM_GPA, NR);

	exits = vcpu_get_stat(vcpu, exits);
	vcpu_run(vcpu);
	TEST_ASSERT_EQ(gmem_get_ucall(vcpu), UCALL_DONE);
	TEST_ASSERT(vcpu_get_stat(vcpu, exits) - exits < FEW, "Too many exits");

	gmem_destroy(&g);
	kvm_vm_free(vm);
}

TEST_HARNESS_MAIN
