// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM_SET_MEMORY_ATTRIBUTES on a slot with two backings: which of them the guest
 * sees, page by page, and how large the mappings are that it sees them through.
 *
 * The shared half is of huge pages, so that KVM maps it with huge pages wherever
 * the attributes allow it: were a page of another attribute in such a mapping,
 * the guest would read and write the wrong half.
 */
#include "gmem_util.h"
#include "kvm_test_harness.h"

/* Pages to a huge page, and to the slot: two of them. */
#define HUGE_NR		(SZ_2M / PAGE_SIZE)
#define SLOT_NR		(2 * HUGE_NR)

/* A page of each half holds its number plus this. */
#define SHARED_VAL	0x1122334455660000ul
#define PRIVATE_VAL	0x99aabbccddee0000ul

FIXTURE(attributes) {
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	u8 *shared;
};

FIXTURE_SETUP(attributes)
{
	u64 i;

	if (!(kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM)))
		SKIP(return, "No software-protected VMs");

	gmem_test_init();
	self->vm = gmem_vm_create(1, gmem_guest_server, &self->vcpu);
	vcpu_args_set(self->vcpu, 1, 0);
	vm_mem_add(self->vm, VM_MEM_SRC_ANONYMOUS_THP, GMEM_GPA, GMEM_SLOT, SLOT_NR,
		   KVM_MEM_GUEST_MEMFD, -1, 0);
	virt_map(self->vm, GMEM_GPA, GMEM_GPA, SLOT_NR);

	self->shared = addr_gpa2hva(self->vm, GMEM_GPA);
	for (i = 0; i < SLOT_NR; i++)
		gmem_fill_words((u64 *)(self->shared + i * PAGE_SIZE), SHARED_VAL + i);
}

FIXTURE_TEARDOWN(attributes)
{
	kvm_vm_free(self->vm);
}

#define ATTRIBUTES_TEST(name)	TEST_F_TIMEOUT(attributes, name, GMEM_TIMEOUT_S)

static void set_private(struct kvm_vm *vm, u64 first, u64 nr)
{
	vm_mem_set_private(vm, GMEM_GPA + first * PAGE_SIZE, nr * PAGE_SIZE);
}

static void set_shared(struct kvm_vm *vm, u64 first, u64 nr)
{
	vm_mem_set_shared(vm, GMEM_GPA + first * PAGE_SIZE, nr * PAGE_SIZE);
}

static void guest_fill(struct kvm_vcpu *vcpu, u64 first, u64 nr, u64 val)
{
	gmem_guest_do(vcpu, GMEM_GUEST_FILL, GMEM_GPA + first * PAGE_SIZE, nr,
		      val + first, 1);
}

#define guest_check(vcpu, page, val)						\
do {										\
	u64 __page = (page), __val = (val) + __page;				\
	struct gmem_guest_cmd *__cmd;						\
										\
	__cmd = gmem_guest_do(vcpu, GMEM_GUEST_CHECK,				\
			      GMEM_GPA + __page * PAGE_SIZE, 1, __val, 0);	\
	TEST_ASSERT(__cmd->bad_page == 1, "Guest, page %lu: 0x%lx, want 0x%lx",	\
		    __page, __cmd->bad_val, __val);				\
} while (0)

/* The guest reads a page of the shared half; is that a new huge mapping? */
static bool maps_huge(struct kvm_vcpu *vcpu, u64 page)
{
	u64 was = vm_get_stat(vcpu->vm, pages_2m), is;

	guest_check(vcpu, page, SHARED_VAL);
	is = vm_get_stat(vcpu->vm, pages_2m);
	TEST_ASSERT(is == was || is == was + 1, "%lu huge mappings, after %lu", is, was);
	return is != was;
}

static void test_mixed(struct kvm_vcpu *vcpu, u8 *shared, u64 page)
{
	u64 neighbour = page ? page - 1 : 1;

	TEST_ASSERT(maps_huge(vcpu, neighbour), "Nothing is mapped huge");

	set_private(vcpu->vm, page, 1);
	TEST_ASSERT(!vm_get_stat(vcpu->vm, pages_2m),
		    "The huge mapping outlived the change of page %lu", page);
	TEST_ASSERT(!maps_huge(vcpu, neighbour),
		    "Page %lu is private, and in a huge mapping", page);

	guest_fill(vcpu, page, 1, PRIVATE_VAL);
	guest_check(vcpu, neighbour, SHARED_VAL);
	guest_check(vcpu, page, PRIVATE_VAL);
	TEST_ASSERT_EQ(*(u64 *)(shared + page * PAGE_SIZE), SHARED_VAL + page);

	set_shared(vcpu->vm, page, 1);
	/* The neighbour's small mapping stays, this page is what was zapped. */
	TEST_ASSERT(maps_huge(vcpu, page), "All is shared, and not mapped huge");
	guest_check(vcpu, neighbour, SHARED_VAL);
	set_private(vcpu->vm, page, 1);
	guest_check(vcpu, page, PRIVATE_VAL);
	set_shared(vcpu->vm, page, 1);
}

/*
 * A huge page with one private page in it is mapped page by page: otherwise the
 * guest, which touches a shared neighbour first, reads and writes the shared
 * half where its private page is.  All shared again, the mapping is huge again.
 */
ATTRIBUTES_TEST(mixed_is_not_huge)
{
	test_mixed(self->vcpu, self->shared, 0);
	test_mixed(self->vcpu, self->shared, 5);
	test_mixed(self->vcpu, self->shared, HUGE_NR - 1);
}

/* What is private beside a huge page doesn't concern it. */
ATTRIBUTES_TEST(neighbour_is_huge)
{
	set_private(self->vm, HUGE_NR, HUGE_NR);
	TEST_ASSERT(maps_huge(self->vcpu, HUGE_NR - 1), "Not mapped huge");
	guest_fill(self->vcpu, HUGE_NR, 1, PRIVATE_VAL);

	set_shared(self->vm, HUGE_NR, HUGE_NR);
	TEST_ASSERT(maps_huge(self->vcpu, HUGE_NR), "Not mapped huge");
	set_private(self->vm, HUGE_NR - 1, 2);
	TEST_ASSERT(!maps_huge(self->vcpu, 0), "A mixed huge page is mapped huge");
	TEST_ASSERT(!maps_huge(self->vcpu, SLOT_NR - 1), "A mixed huge page is mapped huge");
	guest_check(self->vcpu, HUGE_NR, PRIVATE_VAL);
}

/* A slot that comes after the attributes obeys them. */
ATTRIBUTES_TEST(attributes_before_slot)
{
	gpa_t gpa = GMEM_GPA + SZ_16M;
	struct gmem_guest_cmd *cmd;

	vm_mem_set_private(self->vm, gpa + 7 * PAGE_SIZE, PAGE_SIZE);
	vm_mem_add(self->vm, VM_MEM_SRC_ANONYMOUS_THP, gpa, GMEM_SLOT + 1, HUGE_NR,
		   KVM_MEM_GUEST_MEMFD, -1, 0);
	virt_map(self->vm, gpa, gpa, 16);
	memset(addr_gpa2hva(self->vm, gpa), 0x55, SZ_2M);

	cmd = gmem_guest_do(self->vcpu, GMEM_GUEST_CHECK, gpa, 8, 0x5555555555555555ul, 0);
	TEST_ASSERT_EQ(cmd->bad_page, 7);
	TEST_ASSERT_EQ(cmd->bad_val, 0);
	TEST_ASSERT(!vm_get_stat(self->vm, pages_2m), "A mixed huge page is mapped huge");
}

/* A page of the model; beyond the slot there is nothing to see. */
static void check_page(struct kvm_vcpu *vcpu, const bool *private, u64 page)
{
	if (page < SLOT_NR)
		guest_check(vcpu, page, private[page] ? PRIVATE_VAL : SHARED_VAL);
}

/* Changes at random; after each the guest sees the half that it should. */
ATTRIBUTES_TEST(random)
{
	bool private[SLOT_NR] = {}, to_private;
	unsigned int seed = 1;
	u64 i, j, first, nr;

	set_private(self->vm, 0, SLOT_NR);
	guest_fill(self->vcpu, 0, SLOT_NR, PRIVATE_VAL);
	set_shared(self->vm, 0, SLOT_NR);

	for (i = 0; i < GMEM_LOOPS(300); i++) {
		to_private = rand_r(&seed) % 2;
		first = rand_r(&seed) % SLOT_NR;
		nr = 1 + rand_r(&seed) % (1 << rand_r(&seed) % 11);
		nr = min_t(u64, nr, SLOT_NR - first);

		if (to_private)
			set_private(self->vm, first, nr);
		else
			set_shared(self->vm, first, nr);
		memset(private + first, to_private, nr);

		/* Both sides of both edges, and anything. */
		check_page(self->vcpu, private, first - 1);
		check_page(self->vcpu, private, first);
		check_page(self->vcpu, private, first + nr - 1);
		check_page(self->vcpu, private, first + nr);
		for (j = 0; j < 4; j++)
			check_page(self->vcpu, private, rand_r(&seed) % SLOT_NR);
	}
}

TEST_HARNESS_MAIN
