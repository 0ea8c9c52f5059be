// SPDX-License-Identifier: GPL-2.0-only
/*
 * Protected VMs of arm64 whose memory is filled on demand.  What is absent is missing: a
 * bitmap would have to take pages away from the guest, and they would be lost.
 */
#include "gmem_userfault.h"
#include "pkvm_fixture.h"

#define PAGE		3ul

static void new_missing(struct pvm *p, struct gmem *g)
{
	new_file(p, g, 0, GMEM_PRIVATE_FILE);
	set_userfault(g, KVM_MEM_USERFAULT, NULL);
}

/* The statistics have the memory of the guest's code, too. */
static void assert_empty(struct gmem *g)
{
	TEST_ASSERT(lseek(g->fd, 0, SEEK_DATA) == -1 && errno == ENXIO, "There is data");
}

static void expect_missing(struct pvm *p, u32 id, struct gmem *g, u64 page)
{
	struct kvm_run *run = p->vcpus[id]->run;

	expect_run_error(p->vcpus[id], EFAULT);
	TEST_ASSERT_EQ(run->exit_reason, KVM_EXIT_MEMORY_FAULT);
	TEST_ASSERT_EQ(run->memory_fault.flags,
		       KVM_MEMORY_EXIT_FLAG_PRIVATE | KVM_MEMORY_EXIT_FLAG_USERFAULT);
	TEST_ASSERT_EQ(run->memory_fault.gpa, gpa_of(g, page));
	TEST_ASSERT_EQ(run->memory_fault.size, PAGE_SIZE);
}

PVM_TEST(missing)
{
	struct pvm *p = &self->p;
	struct gmem g;

	new_missing(p, &g);
	pvm_prepare(p, self->id, pvm_guest_fill, gpa_of(&g, PAGE), 2ul, VAL, 1ul);
	expect_missing(p, self->id, &g, PAGE);
	expect_missing(p, self->id, &g, PAGE);
	assert_empty(&g);

	gmem_allocate(&g, PAGE, 1);
	expect_missing(p, self->id, &g, PAGE + 1);
	gmem_allocate(&g, PAGE + 1, 1);
	pvm_finish(p, self->id);
	guest_check(p, self->id, &g, PAGE, 2, VAL);
	assert_unreachable(&g, PAGE, 2);

	gmem_punch(&g, PAGE, 2);
	assert_empty(&g);
}

/* The flag goes and comes while the guest has pages: it keeps them. */
PVM_TEST(switched)
{
	struct pvm *p = &self->p;
	unsigned long map = 0;
	struct gmem g;

	new_missing(p, &g);
	TEST_ASSERT_EQ(set_region(p->vm, region_of(&g, KVM_MEM_USERFAULT, &map)), EINVAL);
	TEST_ASSERT_EQ(vm_check_cap(p->vm, KVM_CAP_GUEST_MEMFD_USERFAULT) &
		       KVM_GUEST_MEMFD_USERFAULT_BITMAP, 0);

	pvm_prepare(p, self->id, pvm_guest_fill, gpa_of(&g, 0), NR, VAL, 1ul);
	expect_missing(p, self->id, &g, 0);
	set_userfault(&g, 0, NULL);
	pvm_finish(p, self->id);

	set_userfault(&g, KVM_MEM_USERFAULT, NULL);
	guest_check(p, 0, &g, 0, NR, VAL);
	set_userfault(&g, 0, NULL);
	guest_check(p, 0, &g, 0, NR, VAL);
}

/* The slot that the guest's request was opened for is replaced before it is closed. */
PVM_TEST(request)
{
	struct pvm *p = &self->p;
	struct gmem g;

	new_missing(p, &g);
	gmem_allocate(&g, 0, NR);
	guest_fill(p, self->id, &g, 0, NR, VAL);

	ask(p, self->id, PVM_HVC_SHARE, &g, PAGE);
	set_userfault(&g, 0, NULL);
	expect_convert(&g, PAGE, 1, GMEM_SHARED, 0, 0);
	set_userfault(&g, KVM_MEM_USERFAULT, NULL);
	TEST_ASSERT_EQ(answer(p, self->id), PVM_SUCCESS);
	gmem_host_check(&g, PAGE, 1, VAL + PAGE);
}

/* A page that is shared before it is touched is to be filled first. */
PVM_TEST(share_missing)
{
	struct pvm *p = &self->p;
	struct gmem g;

	new_missing(p, &g);
	ask(p, self->id, PVM_HVC_SHARE, &g, PAGE);
	expect_convert(&g, PAGE, 1, GMEM_SHARED, 0, 0);
	TEST_ASSERT(answer(p, self->id) != PVM_SUCCESS, "A missing page is shared");
	assert_empty(&g);

	ask(p, self->id, PVM_HVC_SHARE, &g, PAGE);
	gmem_allocate(&g, PAGE, 1);
	TEST_ASSERT_EQ(answer(p, self->id), PVM_SUCCESS);
	guest_check_zero(p, self->id, &g, PAGE, 1);
	gmem_host_fill(&g, PAGE, 1, OTHER);
	guest_check(p, self->id, &g, PAGE, 1, OTHER);
}

TEST_HARNESS_MAIN
