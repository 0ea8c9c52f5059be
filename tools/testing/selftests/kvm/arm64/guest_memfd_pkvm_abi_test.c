// SPDX-License-Identifier: GPL-2.0-only
/*
 * The uAPI of protected VMs of arm64 whose memory is in-place files: opting in,
 * capabilities, arguments and errors, slots.
 */
#include "pkvm_fixture.h"

#define ALL_EXITS		(PVM_EXITS | KVM_ARM_EXIT_HYPERCALL_MEM_RELINQUISH)

/* ---- Opting in ---- */

/* The slot of an in-place file is refused unless both calls exit. */
SETUP_TEST(opt_in)
{
	static const struct {
		u64 exits;
		int error;
	} cases[] = {
		{ 0, EPERM },
		{ KVM_ARM_EXIT_HYPERCALL_MEM_SHARE, EPERM },
		{ KVM_ARM_EXIT_HYPERCALL_MEM_UNSHARE, EPERM },
		{ KVM_ARM_EXIT_HYPERCALL_MEM_RELINQUISH, EPERM },
		{ PVM_EXITS, 0 },
	};
	struct kvm_vm *vm;
	struct gmem g;
	int i;

	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		vm = vm_create_barebones_type(KVM_VM_TYPE_ARM_PROTECTED);
		if (cases[i].exits)
			TEST_ASSERT_EQ(enable_exits(vm, cases[i].exits), 0);

		gmem_create(&g, vm, NR * PAGE_SIZE, GMEM_SHARED_FILE);
		expect_slot(vm, GMEM_SLOT, KVM_MEM_GUEST_MEMFD, GMEM_GPA, g.size,
			    g.mem, g.fd, cases[i].error);
		if (cases[i].error)
			expect_slot(vm, GMEM_SLOT, KVM_MEM_GUEST_MEMFD, GMEM_GPA,
				    g.size, NULL, g.fd, cases[i].error);
		gmem_destroy(&g);
		kvm_vm_free(vm);
	}
}

SETUP_TEST(opt_in_errors)
{
	struct kvm_enable_cap cap = {
		.cap = KVM_CAP_EXIT_HYPERCALL,
		.args = { PVM_EXITS, 1 },
	};
	u64 known = pvm_exit_hypercalls();
	struct kvm_vm *vm;
	int bit;

	vm = vm_create_barebones_type(KVM_VM_TYPE_ARM_PROTECTED);
	for (bit = 0; bit < 64; bit++)
		if (!(known & BIT(bit)))
			TEST_ASSERT_EQ(enable_exits(vm, PVM_EXITS | BIT(bit)), EINVAL);
	TEST_ASSERT(__vm_ioctl(vm, KVM_ENABLE_CAP, &cap) && errno == EINVAL,
		    "An unknown argument is accepted");
	TEST_ASSERT_EQ(enable_exits(vm, known), 0);

	/* Too late once there is a vCPU. */
	TEST_ASSERT(__vm_ioctl(vm, KVM_CREATE_VCPU, (void *)0ul) >= 0, "KVM_CREATE_VCPU failed");
	TEST_ASSERT_EQ(enable_exits(vm, known), EBUSY);
	kvm_vm_free(vm);
}

/* What a slot relies on can't be taken back while there is one. */
SETUP_TEST(opt_in_is_final)
{
	static const u64 others[] = {
		0,
		KVM_ARM_EXIT_HYPERCALL_MEM_SHARE,
		KVM_ARM_EXIT_HYPERCALL_MEM_UNSHARE,
		ALL_EXITS,
	};
	struct kvm_vm *vm;
	struct gmem g;
	int i;

	vm = vm_create_barebones_type(KVM_VM_TYPE_ARM_PROTECTED);
	TEST_ASSERT_EQ(enable_exits(vm, PVM_EXITS), 0);
	gmem_create(&g, vm, NR * PAGE_SIZE, GMEM_SHARED_FILE);
	gmem_bind(&g, GMEM_SLOT, GMEM_GPA);
	for (i = 0; i < ARRAY_SIZE(others); i++)
		TEST_ASSERT_EQ(enable_exits(vm, others[i]), EINVAL);
	TEST_ASSERT_EQ(enable_exits(vm, PVM_EXITS), 0);

	gmem_unbind(&g);
	TEST_ASSERT_EQ(enable_exits(vm, KVM_ARM_EXIT_HYPERCALL_MEM_SHARE), 0);
	expect_slot(vm, GMEM_SLOT, KVM_MEM_GUEST_MEMFD, GMEM_GPA, g.size, g.mem, g.fd, EPERM);
	TEST_ASSERT_EQ(enable_exits(vm, ALL_EXITS), 0);
	gmem_bind(&g, GMEM_SLOT, GMEM_GPA);
	TEST_ASSERT_EQ(enable_exits(vm, PVM_EXITS), EINVAL);
	gmem_destroy(&g);
	kvm_vm_free(vm);
}

/* The VMM that takes its opt-in back while another thread binds the file. */
static void opt_out(void *arg, u64 turn)
{
	struct gmem *g = arg;
	int error;

	error = enable_exits(g->vm, turn & 1 ? PVM_EXITS : KVM_ARM_EXIT_HYPERCALL_MEM_SHARE);
	TEST_ASSERT(!error || error == EINVAL, "Opt-out: %s", strerror(error));
}

SETUP_TEST(opt_in_races)
{
	struct gmem_worker thread;
	u64 turns = 0, i, bound = 0;
	bool stop = false;
	struct gmem g;
	int r;

	g.vm = vm_create_barebones_type(KVM_VM_TYPE_ARM_PROTECTED);
	gmem_create(&g, g.vm, NR * PAGE_SIZE, GMEM_SHARED_FILE);
	gmem_worker_start(&thread, opt_out, &g, &stop, &turns);
	for (i = 0; i < GMEM_LOOPS(500); i++) {
		r = __vm_set_user_memory_region2(g.vm, GMEM_SLOT, KVM_MEM_GUEST_MEMFD, GMEM_GPA,
						 g.size, g.mem, g.fd, 0);
		TEST_ASSERT(!r || errno == EPERM, "Bind: %s", strerror(errno));
		if (r)
			continue;
		/* Bound: the opt-in is what it has to be, and stays so. */
		TEST_ASSERT_EQ(enable_exits(g.vm, PVM_EXITS), 0);
		TEST_ASSERT_EQ(enable_exits(g.vm, KVM_ARM_EXIT_HYPERCALL_MEM_SHARE), EINVAL);
		expect_slot(g.vm, GMEM_SLOT, KVM_MEM_GUEST_MEMFD, GMEM_GPA, 0, g.mem, g.fd, 0);
		bound++;
	}
	WRITE_ONCE(stop, true);
	gmem_worker_join(&thread);
	TEST_ASSERT(bound, "The file was never bound");
	gmem_destroy(&g);
	kvm_vm_free(g.vm);
}

/* ---- Capabilities and errors ---- */

/*
 * What KVM says, as a row of the table in Documentation/virt/kvm/guest_memfd.rst.  The
 * default can't be asked for; that it is PRESERVE, other cases rely on.
 */
static void check_content_row(struct kvm_vm *vm, bool to_private, const char *want)
{
	u64 flags = vm_check_cap(vm, to_private ? KVM_CAP_GUEST_MEMFD_FLAGS_TO_PRIVATE :
						  KVM_CAP_GUEST_MEMFD_FLAGS_TO_SHARED);
	char row[128];

	snprintf(row, sizeof(row), "%-25s %-8s %-15s%s%s%s", "arm64 protected VM",
		 to_private ? "private" : "shared", "PRESERVE",
		 flags & GMEM_ZERO ? " ZERO," : "",
		 flags & GMEM_PRESERVE ? " PRESERVE," : "",
		 flags & GMEM_DISCARD ? " DISCARD" : "");
	TEST_ASSERT(!(flags & ~GMEM_ALL_CONTENT), "Unknown flags 0x%lx", flags);
	TEST_ASSERT(!strcmp(row, want), "\"%s\", want \"%s\"", row, want);
}

SETUP_TEST(capabilities)
{
	struct kvm_vm *vm = vm_create_barebones_type(KVM_VM_TYPE_ARM_PROTECTED);
	struct kvm_vm *other = vm_create_barebones();

	TEST_ASSERT(vm_check_cap(vm, KVM_CAP_GUEST_MEMFD), "No guest_memfd");
	TEST_ASSERT_EQ(vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_FLAGS) & GMEM_SHARED_FILE,
		       GMEM_SHARED_FILE);
	TEST_ASSERT_EQ(vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES),
		       GMEM_PRIVATE);
	check_content_row(vm, true,
			  "arm64 protected VM        private  PRESERVE        PRESERVE, DISCARD");
	check_content_row(vm, false,
			  "arm64 protected VM        shared   PRESERVE        ZERO, PRESERVE, DISCARD");
	TEST_ASSERT_EQ(vm_check_cap(vm, KVM_CAP_EXIT_HYPERCALL) & PVM_EXITS, PVM_EXITS);
	TEST_ASSERT_EQ(vm_check_cap(vm, KVM_CAP_MEMORY_FAULT_INFO), 1);

	/* What is not protected has no part in it. */
	TEST_ASSERT_EQ(vm_check_cap(other, KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES), 0);
	TEST_ASSERT_EQ(vm_check_cap(other, KVM_CAP_EXIT_HYPERCALL), 0);
	TEST_ASSERT_EQ(vm_check_cap(other, KVM_CAP_MEMORY_FAULT_INFO), 0);
	TEST_ASSERT_EQ(kvm_check_cap(KVM_CAP_EXIT_HYPERCALL), 0);
	TEST_ASSERT(enable_exits(other, PVM_EXITS) == EINVAL, "Enabled for any VM");

	kvm_vm_free(vm);
	kvm_vm_free(other);
}

/* Arguments and content flags, as for every VM type with in-place conversion. */
SETUP_TEST(conversion_errors)
{
	struct gmem g;

	g.vm = vm_create_barebones_type(KVM_VM_TYPE_ARM_PROTECTED);
	gmem_create(&g, g.vm, NR * PAGE_SIZE, GMEM_SHARED_FILE);
	gmem_host_fill(&g, 0, NR, VAL);

	TEST_ASSERT_EQ(__gmem_convert(g.fd, 1, PAGE_SIZE, 0, 0, NULL), EINVAL);
	TEST_ASSERT_EQ(__gmem_convert(g.fd, 0, g.size + PAGE_SIZE, 0, 0, NULL), EINVAL);
	TEST_ASSERT_EQ(__gmem_convert(g.fd, 0, PAGE_SIZE, 1, 0, NULL), EINVAL);
	expect_convert(&g, 0, NR, GMEM_PRIVATE, GMEM_ZERO, EOPNOTSUPP);
	gmem_host_check(&g, 0, NR, VAL);

	/* No vCPU has seen it: both ways, and all that may be asked. */
	gmem_to_private(&g, 0, NR, GMEM_PRESERVE);
	assert_unreachable(&g, 0, NR);
	gmem_to_shared(&g, 0, NR, 0);
	gmem_host_check(&g, 0, NR, VAL);
	gmem_to_private(&g, 0, 1, GMEM_DISCARD);
	gmem_to_shared(&g, 0, 1, 0);
	gmem_host_check_zero(&g, 0, 1);
	gmem_to_shared(&g, 1, 1, GMEM_ZERO);
	gmem_host_check_zero(&g, 1, 1);
	gmem_to_shared(&g, 2, 1, GMEM_DISCARD);
	gmem_host_check_zero(&g, 2, 1);
	gmem_host_check(&g, 3, NR - 3, VAL + 3);
	gmem_destroy(&g);
	kvm_vm_free(g.vm);
}

/* ---- Slots ---- */

#define expect_move(g, to, error)						\
do {										\
	struct gmem *__g = (g);							\
										\
	expect_slot(__g->vm, __g->slot, SLOT_FLAGS, to, __g->size, __g->mem,	\
		    __g->fd, error);						\
} while (0)

PVM_TEST(slots)
{
	struct pvm *p = &self->p;
	struct gmem g, h;
	u32 id = self->id;

	/* Memory may come at any time, and stays, be it touched or not. */
	new_filled_file(p, &g, 0);
	expect_move(&g, NO_SLOT_GPA, EINVAL);
	expect_delete(&g, EPERM);

	/* Owned by the guest, then shared by it. */
	guest_check(p, id, &g, 1, 1, VAL + 1);
	expect_delete(&g, EPERM);
	share(p, id, &g, 1);
	expect_delete(&g, EPERM);
	expect_move(&g, NO_SLOT_GPA, EINVAL);
	ask(p, id, PVM_HVC_UNSHARE, &g, 1);
	expect_delete(&g, EPERM);
	gmem_to_private(&g, 1, 1, 0);
	TEST_ASSERT_EQ(answer(p, id), PVM_SUCCESS);
	guest_check(p, id, &g, 1, 1, VAL + 1);

	/* The VMM may take all of it away, but not have it read as a device's. */
	gmem_punch(&g, 0, NR);
	expect_delete(&g, EPERM);
	expect_lost(p, id, &g, 1);
	guest_check_zero(p, id, &g, 2, 1);

	/* Nor that of a file that nobody has touched. */
	new_file(p, &h, 1, GMEM_PRIVATE_FILE);
	expect_delete(&h, EPERM);
	pvm_prepare(p, id, pvm_guest_write, gpa_of(&h, 1), VAL);
	pvm_finish(p, id);
	TEST_ASSERT_EQ(pvm_call(p, 0, pvm_guest_read, gpa_of(&h, 1))->ret[0], VAL);
}

/* Before the VM has run slots come and go as for any VM. */
SETUP_TEST(slots_before_run)
{
	struct kvm_vm *vm = vm_create_barebones_type(KVM_VM_TYPE_ARM_PROTECTED);
	struct gmem g;
	int i;

	TEST_ASSERT_EQ(enable_exits(vm, PVM_EXITS), 0);
	gmem_create(&g, vm, NR * PAGE_SIZE, GMEM_SHARED_FILE);
	TEST_ASSERT(__vm_ioctl(vm, KVM_CREATE_VCPU, (void *)0ul) >= 0, "KVM_CREATE_VCPU failed");
	for (i = 0; i < 3; i++) {
		gmem_bind(&g, GMEM_SLOT + i, GMEM_GPA + i * NR * PAGE_SIZE);
		gmem_host_fill(&g, 0, NR, VAL + i);
		gmem_unbind(&g);
		gmem_host_check(&g, 0, NR, VAL + i);
	}
	gmem_destroy(&g);
	kvm_vm_free(vm);
}

int main(int argc, char **argv)
{
	setbuf(stdout, NULL);
	return test_harness_run(argc, argv);
}
