// SPDX-License-Identifier: GPL-2.0-only
/*
 * Protected VMs of arm64 lose pages of in-place files: the VMM punches or discards them,
 * memory fails, or the guest gives them up.
 */
#include "pkvm_fixture.h"

/* ---- Taking pages back ---- */

PVM_TEST(punch_owned)
{
	struct pvm *p = &self->p;
	u32 id = self->id;
	struct gmem g;

	new_filled_file(p, &g, 0);
	guest_check(p, id, &g, 1, 3, VAL + 1);

	/* 0 was never the guest's: it gets a fresh page.  1 and 2 were. */
	gmem_punch(&g, 0, 3);
	gmem_assert_private(&g, 0, NR);
	TEST_ASSERT(!gmem_page_is_present(&g, 1), "Punched page is present");
	guest_check_zero(p, id, &g, 0, 1);
	expect_lost(p, id, &g, 1);
	expect_lost(p, id, &g, 2);
	guest_check(p, id, &g, 3, NR - 3, VAL + 3);

	/* Whatever the host does: not the guest's old memory, nor new one. */
	gmem_allocate(&g, 1, 1);
	expect_lost(p, id, &g, 1);
	gmem_punch(&g, 1, 1);
	expect_lost(p, id, &g, 1);
	TEST_ASSERT_EQ(hvc(p, id, PVM_HVC_SHARE, gpa_of(&g, 1)), PVM_INVALID);
	TEST_ASSERT_EQ(hvc(p, id, PVM_HVC_UNSHARE, gpa_of(&g, 1)), PVM_INVALID);
	expect_lost(p, 0, &g, 1);

	/* It is the host's memory now, and tells nothing. */
	gmem_to_shared(&g, 1, 2, 0);
	gmem_host_check_zero(&g, 1, 2);
	gmem_host_fill(&g, 1, 2, VAL + 1);
	gmem_to_private(&g, 1, 1, 0);
	expect_lost(p, id, &g, 1);
	expect_lost(p, id, &g, 2);
}

PVM_TEST(punch_shared)
{
	struct pvm *p = &self->p;
	u32 id = self->id;
	struct gmem g;

	new_filled_file(p, &g, 0);
	share(p, id, &g, 1);
	gmem_host_check(&g, 1, 1, VAL + 1);

	gmem_punch(&g, 1, 1);
	gmem_assert_shared(&g, 1, 1);
	gmem_host_check_zero(&g, 1, 1);
	expect_lost(p, id, &g, 1);
	gmem_host_fill(&g, 1, 1, OTHER);
	expect_lost(p, id, &g, 1);
	TEST_ASSERT_EQ(hvc(p, id, PVM_HVC_UNSHARE, gpa_of(&g, 1)), PVM_INVALID);

	/* A page in the file that is no longer the guest's: only the host uses it. */
	gmem_host_check(&g, 1, 1, OTHER);
	guest_check(p, id, &g, 2, 1, VAL + 2);
}

/* The VMM answers a request by taking the page away. */
PVM_TEST(punch_while_asked)
{
	struct pvm *p = &self->p;
	u32 id = self->id;
	struct gmem g;

	new_used_file(p, id, &g, NR);
	ask(p, id, PVM_HVC_SHARE, &g, 1);
	gmem_punch(&g, 1, 1);
	TEST_ASSERT_EQ(answer(p, id), PVM_INVALID);
	expect_lost(p, id, &g, 1);

	share(p, id, &g, 2);
	ask(p, id, PVM_HVC_UNSHARE, &g, 2);
	gmem_punch(&g, 2, 1);
	TEST_ASSERT_EQ(answer(p, id), PVM_INVALID);
	expect_lost(p, id, &g, 2);

	/* Converted as asked, and then taken. */
	ask(p, id, PVM_HVC_SHARE, &g, 3);
	gmem_to_shared(&g, 3, 1, 0);
	gmem_punch(&g, 3, 1);
	TEST_ASSERT_EQ(answer(p, id), PVM_INVALID);
	expect_lost(p, id, &g, 3);
	guest_check(p, id, &g, 4, NR - 4, VAL + 4);
}

/*
 * DISCARD is a hole and a change of state: nobody has to ask, and the guest loses
 * what it had, whichever side that was on.
 */
PVM_TEST(discard)
{
	struct pvm *p = &self->p;
	u32 id = self->id;
	struct gmem g;

	new_used_file(p, id, &g, 5);
	share(p, id, &g, 2);
	share(p, id, &g, 4);

	gmem_to_private(&g, 1, 1, GMEM_DISCARD);
	assert_unreachable(&g, 1, 1);
	gmem_to_shared(&g, 2, 2, GMEM_DISCARD);
	gmem_host_check_zero(&g, 2, 2);
	gmem_to_private(&g, 4, 1, GMEM_DISCARD);
	assert_unreachable(&g, 4, 1);
	expect_lost(p, id, &g, 1);
	expect_lost(p, id, &g, 2);
	expect_lost(p, id, &g, 3);
	expect_lost(p, id, &g, 4);

	/* Never the guest's: nothing to lose. */
	gmem_to_shared(&g, 5, 1, GMEM_DISCARD);
	gmem_host_check_zero(&g, 5, 1);
	gmem_to_private(&g, 5, 1, 0);
	guest_check_zero(p, id, &g, 5, 1);
	guest_check(p, id, &g, 0, 1, VAL);
	guest_check(p, id, &g, 6, NR - 6, VAL + 6);
}

/* The VMM that drops what it was asked to share or take back. */
PVM_TEST(discard_while_asked)
{
	struct pvm *p = &self->p;
	u32 id = self->id;
	struct gmem g;

	new_used_file(p, id, &g, NR);
	share(p, id, &g, 2);

	ask(p, id, PVM_HVC_SHARE, &g, 1);
	gmem_to_shared(&g, 1, 1, GMEM_DISCARD);
	gmem_host_check_zero(&g, 1, 1);
	TEST_ASSERT_EQ(answer(p, id), PVM_INVALID);
	expect_lost(p, id, &g, 1);

	ask(p, id, PVM_HVC_UNSHARE, &g, 2);
	gmem_to_private(&g, 2, 1, GMEM_DISCARD);
	assert_unreachable(&g, 2, 1);
	TEST_ASSERT_EQ(answer(p, id), PVM_INVALID);
	expect_lost(p, id, &g, 2);
	guest_check(p, id, &g, 3, NR - 3, VAL + 3);
}

/* A guest that shares with ZERO asked gets what it gave back as zeros. */
PVM_TEST(share_zeroed)
{
	struct pvm *p = &self->p;
	struct gmem g;

	new_used_file(p, self->id, &g, NR);
	ask(p, self->id, PVM_HVC_SHARE, &g, 1);
	gmem_to_shared(&g, 1, 1, GMEM_ZERO);
	TEST_ASSERT_EQ(answer(p, self->id), PVM_SUCCESS);
	gmem_host_check_zero(&g, 1, 1);
	guest_check_zero(p, self->id, &g, 1, 1);
	guest_check(p, self->id, &g, 2, NR - 2, VAL + 2);
}

/* ---- Giving pages up ---- */

PVM_TEST(relinquish)
{
	struct pvm *p = &self->p;
	u32 id = self->id;
	struct gmem g;

	if (!(pvm_exit_hypercalls() & KVM_ARM_EXIT_HYPERCALL_MEM_RELINQUISH))
		SKIP(return, "No MEM_RELINQUISH");

	new_used_file(p, id, &g, 4);
	share(p, id, &g, 2);

	/* The VMM takes the page, and the guest gets another when it wants one. */
	TEST_ASSERT_EQ(hvc(p, id, PVM_HVC_RELINQUISH, gpa_of(&g, 1)), PVM_SUCCESS);
	TEST_ASSERT(!gmem_page_is_present(&g, 1), "Relinquished page is present");
	guest_check_zero(p, id, &g, 1, 1);
	guest_fill(p, id, &g, 1, 1, OTHER);
	guest_check(p, 0, &g, 1, 1, OTHER);
	assert_unreachable(&g, 1, 1);

	/* It may give up the new page, too. */
	TEST_ASSERT_EQ(hvc(p, id, PVM_HVC_RELINQUISH, gpa_of(&g, 1)), PVM_SUCCESS);
	guest_check_zero(p, id, &g, 1, 1);

	/* The VMM does not: the page is in the file, and no longer the guest's. */
	ask(p, id, PVM_HVC_RELINQUISH, &g, 3);
	TEST_ASSERT_EQ(answer(p, id), PVM_SUCCESS);
	TEST_ASSERT(gmem_page_is_present(&g, 3), "Relinquished page is absent");
	gmem_to_shared(&g, 3, 1, 0);
	gmem_host_check_zero(&g, 3, 1);
	gmem_to_private(&g, 3, 1, 0);
	guest_check_zero(p, id, &g, 3, 1);
	gmem_punch(&g, 3, 1);
	expect_lost(p, id, &g, 3);

	/* What is lost or was never there can be given up, without an exit. */
	pvm_prepare(p, id, pvm_guest_hvc, PVM_HVC_RELINQUISH, gpa_of(&g, 3));
	TEST_ASSERT_EQ(answer(p, id), PVM_SUCCESS);
	expect_lost(p, id, &g, 3);
	pvm_prepare(p, id, pvm_guest_hvc, PVM_HVC_RELINQUISH, gpa_of(&g, 5));
	TEST_ASSERT_EQ(answer(p, id), PVM_SUCCESS);
	guest_check(p, id, &g, 5, 1, VAL + 5);
	pvm_prepare(p, id, pvm_guest_hvc, PVM_HVC_RELINQUISH, NO_SLOT_GPA);
	TEST_ASSERT_EQ(answer(p, id), PVM_SUCCESS);

	/* Nor is it a licence to share. */
	guest_check(p, id, &g, 4, 1, VAL + 4);
	ask(p, id, PVM_HVC_RELINQUISH, &g, 4);
	expect_veto(&g, 4, 1, 0);
	gmem_punch(&g, 4, 1);
	TEST_ASSERT_EQ(answer(p, id), PVM_SUCCESS);
	guest_check_zero(p, id, &g, 4, 1);
}

/* A page that is shared is given up as well, with what is in it. */
PVM_TEST(relinquish_shared)
{
	struct pvm *p = &self->p;
	u32 id = self->id;
	struct gmem g;

	new_used_file(p, id, &g, 4);
	share(p, id, &g, 1);
	ask(p, id, PVM_HVC_RELINQUISH, &g, 1);
	TEST_ASSERT_EQ(answer(p, id), PVM_SUCCESS);
	gmem_host_check(&g, 1, 1, VAL + 1);
	pvm_prepare(p, id, pvm_guest_read, gpa_of(&g, 1));
	expect_memory_fault(p, id, &g, 1);
	gmem_to_private(&g, 1, 1, 0);
	pvm_finish(p, id);
	guest_check(p, id, &g, 0, NR, VAL);

	/* The VMM that has other plans doesn't decline either. */
	ask(p, id, PVM_HVC_RELINQUISH, &g, 2);
	set_mp_state(self->vcpu, KVM_MP_STATE_STOPPED);
	set_mp_state(self->vcpu, KVM_MP_STATE_RUNNABLE);
	TEST_ASSERT_EQ(answer(p, id), PVM_SUCCESS);
	guest_check_zero(p, id, &g, 2, 1);
}

/* ---- Memory errors ---- */

#define CORRUPT_PFN	GMEM_HWPOISON_DIR "corrupt-pfn"

static bool have_error(u64 frame)
{
	return frame && !access(CORRUPT_PFN, W_OK) && !gmem_write_number(CORRUPT_PFN, frame);
}

/* As expect_lost(), and the VMM hears where. */
static void expect_broken(struct pvm *p, u32 id, struct gmem *g, u64 page)
{
	struct kvm_run *run = p->vcpus[id]->run;

	pvm_prepare(p, id, pvm_guest_read, gpa_of(g, page));
	expect_run_error(p->vcpus[id], EHWPOISON);
	TEST_ASSERT_EQ(run->exit_reason, KVM_EXIT_MEMORY_FAULT);
	TEST_ASSERT_EQ(run->memory_fault.gpa, gpa_of(g, page));
	pvm_vcpu_reset(p->vcpus[id]);
	pvm_finish(p, id);
}

#define expect_user_error(g, page)						\
do {										\
	u64 __val;								\
										\
	TEST_ASSERT_EQ(gmem_try_read(mem_of(g, page), &__val), BUS_MCEERR_AR);	\
} while (0)

/*
 * An error in a page that the guest has: whoever touches it is told, nobody reads it,
 * not even to clear it, and nobody gets the frame again.
 */
PVM_TEST(memory_error)
{
	struct pvm *p = &self->p;
	u32 id = self->id;
	u64 frames[NR];
	struct gmem g;
	u64 i;

	new_file(p, &g, 0, GMEM_SHARED_FILE);
	gmem_host_fill(&g, 0, NR, VAL);
	for (i = 0; i < NR; i++)
		frames[i] = gmem_page_frame(mem_of(&g, i));
	gmem_to_private(&g, 0, NR, 0);
	guest_check(p, id, &g, 0, NR, VAL);
	share(p, id, &g, 2);

	if (!have_error(frames[1]))
		SKIP(return, "No " CORRUPT_PFN);
	expect_broken(p, id, &g, 1);
	expect_broken(p, 0, &g, 1);
	gmem_assert_private(&g, 0, 2);
	TEST_ASSERT_EQ(hvc(p, id, PVM_HVC_SHARE, gpa_of(&g, 1)), PVM_INVALID);

	/* Shared, and while the guest waits for a page to be shared or taken. */
	TEST_ASSERT(have_error(frames[2]), "Shared page");
	expect_broken(p, id, &g, 2);
	expect_user_error(&g, 2);
	ask(p, id, PVM_HVC_SHARE, &g, 3);
	TEST_ASSERT(have_error(frames[3]), "Page that is to be shared");
	gmem_to_shared(&g, 3, 1, 0);
	TEST_ASSERT_EQ(answer(p, id), PVM_INVALID);
	expect_user_error(&g, 3);
	expect_broken(p, id, &g, 3);
	ask(p, id, PVM_HVC_RELINQUISH, &g, 4);
	TEST_ASSERT(have_error(frames[4]), "Page that is given up");
	TEST_ASSERT_EQ(answer(p, id), PVM_SUCCESS);
	expect_broken(p, id, &g, 4);

	/* A hole removes it; the guest has lost its page all the same. */
	gmem_punch(&g, 1, 1);
	expect_broken(p, id, &g, 1);
	gmem_to_shared(&g, 1, 1, 0);
	gmem_host_check_zero(&g, 1, 1);
	guest_check(p, id, &g, 5, NR - 5, VAL + 5);
}

int main(int argc, char **argv)
{
	setbuf(stdout, NULL);
	return test_harness_run(argc, argv);
}
