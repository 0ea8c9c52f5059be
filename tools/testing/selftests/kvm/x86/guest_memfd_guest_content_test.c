// SPDX-License-Identifier: GPL-2.0-only
/*
 * GUEST_MEMFD_FLAG_GUEST_CONTENT: the bytes of pages that change sides are kept if, and
 * only if, the guest waits for exactly that.
 */
#include "gmem_fixture.h"

#define CONTENT		GUEST_MEMFD_FLAG_GUEST_CONTENT
#define FILE_FLAGS	(GMEM_SHARED_FILE | CONTENT)

#define SHARE		((u64)KVM_MAP_GPA_RANGE_DECRYPTED)
#define UNSHARE		((u64)KVM_MAP_GPA_RANGE_ENCRYPTED)
#define KEEP		((u64)KVM_MAP_GPA_RANGE_PRESERVE)

#define X86_FEATURE_KVM_MAP_GPA_RANGE_PRESERVE	\
	KVM_X86_CPU_FEATURE(0x40000001, 0, EAX, KVM_FEATURE_MAP_GPA_RANGE_PRESERVE)

/* A second file, and the number of its slot. */
#define OTHER_GPA	(GMEM_GPA + NR * PAGE_SIZE)
#define OTHER_SLOT	(GMEM_SLOT + 1)

/* Of each vCPU, before it ran: what it runs is changed again and again, on one stack. */
static struct kvm_regs first_regs[2];

static void enter_at(struct kvm_vcpu *vcpu, void *code)
{
	vcpu_regs_set(vcpu, &first_regs[vcpu->id]);
	vcpu_arch_set_entry_point(vcpu, code);
}

FIXTURE(content) {
	struct kvm_vcpu *vcpus[2];
	struct kvm_vm *vm;
};

FIXTURE_SETUP(content)
{
	int i;

	if (!gmem_conversion_supported())
		SKIP(return, "No in-place conversion of guest_memfd");

	gmem_test_init();
	self->vm = gmem_vm_create(2, gmem_guest_server, self->vcpus);
	vm_enable_cap(self->vm, KVM_CAP_EXIT_HYPERCALL, BIT(KVM_HC_MAP_GPA_RANGE));
	virt_map(self->vm, GMEM_GPA, GMEM_GPA, NR_MAPPED);
	for (i = 0; i < 2; i++) {
		vcpu_regs_get(self->vcpus[i], &first_regs[i]);
		enter_at(self->vcpus[i], gmem_guest_server);
		vcpu_args_set(self->vcpus[i], 1, (u64)i);
		vcpu_set_cpuid_feature(self->vcpus[i], X86_FEATURE_KVM_MAP_GPA_RANGE_PRESERVE);
	}
}

FIXTURE_TEARDOWN(content)
{
	kvm_vm_free(self->vm);
}

#define CONTENT_TEST(name)	TEST_F_TIMEOUT(content, name, GMEM_TIMEOUT_S)

static void guest_ask(gpa_t gpa, u64 size, u64 what)
{
	GUEST_SYNC(__kvm_hypercall_map_gpa_range(gpa, size, what));
}

/* The guest asks, and waits. */
static void __ask(struct kvm_vcpu *vcpu, gpa_t gpa, u64 nr, u64 what)
{
	struct kvm_run *run = vcpu->run;

	enter_at(vcpu, guest_ask);
	vcpu_args_set(vcpu, 3, gpa, nr * PAGE_SIZE, what);
	vcpu_run(vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_HYPERCALL);
	TEST_ASSERT_EQ(run->hypercall.nr, KVM_HC_MAP_GPA_RANGE);
	TEST_ASSERT_EQ(run->hypercall.args[0], gpa);
	TEST_ASSERT_EQ(run->hypercall.args[1], nr);
	/* Asked or not, user space sees what the guest has said. */
	TEST_ASSERT_EQ(run->hypercall.args[2], what);
}

static void ask(struct kvm_vcpu *vcpu, struct gmem *g, u64 first, u64 nr, u64 what)
{
	__ask(vcpu, g->gpa + first * PAGE_SIZE, nr, what);
}

/* It gets its answer, and then does what it is told again. */
static void answer(struct kvm_vcpu *vcpu, long ret)
{
	struct ucall uc;

	vcpu->run->hypercall.ret = ret;
	vcpu_run(vcpu);
	TEST_ASSERT_EQ(get_ucall(vcpu, &uc), UCALL_SYNC);
	TEST_ASSERT_EQ((long)uc.args[1], ret);
	enter_at(vcpu, gmem_guest_server);
	vcpu_args_set(vcpu, 1, (u64)vcpu->id);
}

static int keep(struct gmem *g, u64 first, u64 nr, u64 attributes)
{
	return gmem_convert_retry(g->fd, first * PAGE_SIZE, nr * PAGE_SIZE, attributes,
				  GMEM_PRESERVE);
}

#define expect_kept(g, first, nr, attributes)					\
	TEST_ASSERT_EQ(keep(g, first, nr, attributes), 0)
#define expect_refused(g, first, nr, attributes)				\
	TEST_ASSERT_EQ(keep(g, first, nr, attributes), EPERM)

/* All pages are private, and the guest has filled them. */
static void new_private_file(struct gmem *g, struct kvm_vcpu *vcpu, u64 flags)
{
	gmem_new(g, vcpu->vm, NR, FILE_FLAGS | flags);
	gmem_to_private(g, 0, NR, 0);
	gmem_guest_fill(vcpu, g, 0, NR, VAL);
}

/* Whatever the VMM does by itself, it does not see the guest's bytes, nor change them. */
CONTENT_TEST(unasked)
{
	struct kvm_vcpu *vcpu = self->vcpus[0];
	u64 error_offset = 0;
	struct gmem g;

	new_private_file(&g, vcpu, 0);
	TEST_ASSERT_EQ(__gmem_convert(g.fd, FIRST * PAGE_SIZE, PAGE_SIZE, GMEM_SHARED,
				      GMEM_PRESERVE, &error_offset), EPERM);
	TEST_ASSERT_EQ(error_offset, FIRST * PAGE_SIZE);
	expect_refused(&g, 0, NR, GMEM_SHARED);
	/* Even if nothing would move. */
	expect_refused(&g, 0, NR, GMEM_PRIVATE);
	gmem_assert_private(&g, 0, NR);
	gmem_guest_check_fill(vcpu, &g, 0, NR, VAL);

	/* No flag is ZERO. */
	gmem_to_shared(&g, 0, 1, 0);
	gmem_to_shared(&g, 1, 1, GMEM_ZERO);
	gmem_to_shared(&g, 2, 1, GMEM_DISCARD);
	gmem_host_check_zero(&g, 0, 3);
	gmem_host_fill(&g, 0, 3, OTHER);
	expect_refused(&g, 0, 3, GMEM_PRIVATE);
	gmem_to_private(&g, 0, 1, 0);
	gmem_to_private(&g, 1, 1, GMEM_ZERO);
	gmem_to_private(&g, 2, 1, GMEM_DISCARD);
	gmem_guest_check_zero(vcpu, &g, 0, 3);
	gmem_guest_check_fill(vcpu, &g, 3, NR - 3, VAL + 3);
	gmem_destroy(&g);
}

/* What the guest has asked for, that and nothing else. */
CONTENT_TEST(share)
{
	struct kvm_vcpu *vcpu = self->vcpus[0];
	struct gmem g;

	new_private_file(&g, vcpu, 0);
	ask(vcpu, &g, FIRST, COUNT, SHARE | KEEP);
	expect_refused(&g, FIRST, COUNT, GMEM_PRIVATE);
	expect_refused(&g, FIRST, COUNT - 1, GMEM_SHARED);
	expect_refused(&g, FIRST + 1, COUNT - 1, GMEM_SHARED);
	expect_refused(&g, FIRST - 1, COUNT, GMEM_SHARED);
	expect_refused(&g, FIRST, COUNT + 1, GMEM_SHARED);
	expect_refused(&g, 0, NR, GMEM_SHARED);
	gmem_assert_private(&g, 0, NR);

	expect_kept(&g, FIRST, COUNT, GMEM_SHARED);
	gmem_host_check(&g, FIRST, COUNT, VAL + FIRST);
	assert_part(&g, false);
	/* Twice does no harm, back is another matter. */
	expect_kept(&g, FIRST, COUNT, GMEM_SHARED);
	expect_refused(&g, FIRST, COUNT, GMEM_PRIVATE);

	answer(vcpu, 0);
	expect_refused(&g, FIRST, COUNT, GMEM_SHARED);
	gmem_guest_check_fill(vcpu, &g, 0, NR, VAL);
	gmem_destroy(&g);
}

CONTENT_TEST(unshare)
{
	struct kvm_vcpu *vcpu = self->vcpus[0];
	struct gmem g;

	gmem_new(&g, self->vm, NR, FILE_FLAGS);
	gmem_host_fill(&g, 0, NR, VAL);
	ask(vcpu, &g, FIRST, COUNT, UNSHARE | KEEP);
	expect_refused(&g, FIRST, COUNT, GMEM_SHARED);
	expect_kept(&g, FIRST, COUNT, GMEM_PRIVATE);
	answer(vcpu, 0);
	gmem_guest_check_fill(vcpu, &g, FIRST, COUNT, VAL + FIRST);
	assert_part(&g, true);

	/* The guest has got what it wanted: now its bytes are its own. */
	expect_refused(&g, FIRST, COUNT, GMEM_SHARED);
	gmem_to_shared(&g, FIRST, COUNT, 0);
	gmem_host_check_zero(&g, FIRST, COUNT);
	gmem_destroy(&g);
}

/* VMM and guest both have to want it. */
CONTENT_TEST(not_asked_so)
{
	struct kvm_vcpu *vcpu = self->vcpus[0];
	struct gmem g;

	new_private_file(&g, vcpu, 0);
	ask(vcpu, &g, 0, 1, SHARE);
	expect_refused(&g, 0, 1, GMEM_SHARED);
	/* The VMM may do less than the guest has asked for. */
	answer(vcpu, -KVM_EINVAL);
	ask(vcpu, &g, 0, 1, SHARE | KEEP);
	gmem_to_shared(&g, 0, 1, 0);
	gmem_host_check_zero(&g, 0, 1);
	answer(vcpu, 0);

	/* Without the CPUID bit the guest's is passed on, and means nothing to KVM. */
	vcpu_clear_cpuid_feature(self->vcpus[1], X86_FEATURE_KVM_MAP_GPA_RANGE_PRESERVE);
	ask(self->vcpus[1], &g, 1, 1, SHARE | KEEP);
	expect_refused(&g, 1, 1, GMEM_SHARED);
	answer(self->vcpus[1], 0);
	gmem_guest_check_fill(vcpu, &g, 1, NR - 1, VAL + 1);
	gmem_destroy(&g);
}

/* Every entry of KVM_RUN ends a request, one that does not enter the guest, too. */
CONTENT_TEST(immediate_exit)
{
	struct kvm_vcpu *vcpu = self->vcpus[0];
	struct gmem g;

	new_private_file(&g, vcpu, 0);
	ask(vcpu, &g, FIRST, COUNT, SHARE | KEEP);
	vcpu->run->immediate_exit = 1;
	TEST_ASSERT(__vcpu_run(vcpu) == -1 && errno == EINTR, "KVM_RUN: %s", strerror(errno));
	vcpu->run->immediate_exit = 0;
	expect_refused(&g, FIRST, COUNT, GMEM_SHARED);
	gmem_assert_private(&g, 0, NR);
	gmem_destroy(&g);
}

/* Each vCPU has a request of its own. */
CONTENT_TEST(two_vcpus)
{
	struct gmem g;

	new_private_file(&g, self->vcpus[0], 0);
	ask(self->vcpus[0], &g, 0, 4, SHARE | KEEP);
	ask(self->vcpus[1], &g, 2, 4, SHARE | KEEP);
	expect_refused(&g, 0, 6, GMEM_SHARED);
	answer(self->vcpus[1], -KVM_EINVAL);
	expect_refused(&g, 2, 4, GMEM_SHARED);
	expect_kept(&g, 0, 4, GMEM_SHARED);
	answer(self->vcpus[0], 0);
	gmem_host_check(&g, 0, 4, VAL);
	gmem_guest_check_fill(self->vcpus[1], &g, 0, NR, VAL);
	gmem_destroy(&g);
}

/* The second one's counts as much, and ends with the slot as well. */
CONTENT_TEST(second_vcpu)
{
	struct kvm_vcpu *vcpu = self->vcpus[1];
	struct gmem g;

	new_private_file(&g, self->vcpus[0], 0);
	ask(vcpu, &g, FIRST, COUNT, SHARE | KEEP);
	gmem_unbind(&g);
	gmem_bind(&g, GMEM_SLOT, GMEM_GPA);
	expect_refused(&g, FIRST, COUNT, GMEM_SHARED);
	answer(vcpu, -KVM_EINVAL);

	ask(vcpu, &g, FIRST, COUNT, SHARE | KEEP);
	expect_kept(&g, FIRST, COUNT, GMEM_SHARED);
	answer(vcpu, 0);
	gmem_host_check(&g, FIRST, COUNT, VAL + FIRST);
	gmem_destroy(&g);
}

/* What comes to the same address later is not what the guest has asked for. */
CONTENT_TEST(slot_goes)
{
	struct kvm_vcpu *vcpu = self->vcpus[0];
	struct gmem g, other;

	new_private_file(&g, vcpu, 0);
	ask(vcpu, &g, 0, 4, SHARE | KEEP);
	gmem_unbind(&g);
	expect_refused(&g, 0, 4, GMEM_SHARED);
	gmem_bind(&g, GMEM_SLOT, GMEM_GPA);
	expect_refused(&g, 0, 4, GMEM_SHARED);
	answer(vcpu, -KVM_EINVAL);
	gmem_guest_check_fill(vcpu, &g, 0, NR, VAL);

	/* The file goes, the slot stays. */
	gmem_create(&other, self->vm, NR * PAGE_SIZE, FILE_FLAGS);
	gmem_bind(&other, OTHER_SLOT, OTHER_GPA);
	gmem_to_private(&other, 0, NR, 0);
	ask(vcpu, &other, 0, 4, SHARE | KEEP);
	kvm_munmap(other.mem, other.size);
	kvm_close(other.fd);
	vm_set_user_memory_region2(self->vm, OTHER_SLOT, KVM_MEM_GUEST_MEMFD, OTHER_GPA, 0, 0,
				   g.fd, 0);
	gmem_unbind(&g);
	gmem_bind(&g, OTHER_SLOT, OTHER_GPA);
	expect_refused(&g, 0, 4, GMEM_SHARED);
	answer(vcpu, -KVM_EINVAL);
	gmem_guest_check_fill(vcpu, &g, 0, NR, VAL);
	gmem_destroy(&g);
}

/* Nor is what comes to an address that had no such memory when the guest asked. */
CONTENT_TEST(not_yet_there)
{
	struct kvm_vcpu *vcpu = self->vcpus[0];
	void *mem = kvm_mmap(NR * PAGE_SIZE, PROT_READ | PROT_WRITE,
			     MAP_ANONYMOUS | MAP_PRIVATE, -1);
	struct gmem g, other;

	gmem_create(&g, self->vm, NR * PAGE_SIZE, FILE_FLAGS);
	gmem_to_private(&g, 0, NR, 0);

	/* Memory of the VMM. */
	vm_set_user_memory_region(self->vm, OTHER_SLOT, 0, OTHER_GPA, NR * PAGE_SIZE, mem);
	__ask(vcpu, OTHER_GPA, 4, SHARE | KEEP);
	vm_set_user_memory_region(self->vm, OTHER_SLOT, 0, OTHER_GPA, 0, mem);
	gmem_bind(&g, OTHER_SLOT, OTHER_GPA);
	expect_refused(&g, 0, 4, GMEM_SHARED);
	gmem_unbind(&g);
	answer(vcpu, -KVM_EINVAL);

	/* A slot whose file has gone. */
	gmem_create(&other, self->vm, NR * PAGE_SIZE, FILE_FLAGS);
	gmem_bind(&other, OTHER_SLOT, OTHER_GPA);
	kvm_munmap(other.mem, other.size);
	kvm_close(other.fd);
	__ask(vcpu, OTHER_GPA, 4, SHARE | KEEP);
	vm_set_user_memory_region2(self->vm, OTHER_SLOT, KVM_MEM_GUEST_MEMFD, OTHER_GPA, 0, 0,
				   g.fd, 0);
	gmem_bind(&g, OTHER_SLOT, OTHER_GPA);
	expect_refused(&g, 0, 4, GMEM_SHARED);
	answer(vcpu, -KVM_EINVAL);
	gmem_destroy(&g);
	kvm_munmap(mem, NR * PAGE_SIZE);
}

/* A slot that has a part of the file: the rest of it isn't what the guest means. */
CONTENT_TEST(part_of_file)
{
	struct kvm_vcpu *vcpu = self->vcpus[0];
	const u64 size = (NR - FIRST) * PAGE_SIZE;
	struct gmem g;

	gmem_create(&g, self->vm, NR * PAGE_SIZE, FILE_FLAGS);
	gmem_to_private(&g, 0, NR, 0);
	vm_set_user_memory_region2(self->vm, GMEM_SLOT, KVM_MEM_GUEST_MEMFD, GMEM_GPA, size,
				   g.mem + FIRST * PAGE_SIZE, g.fd, FIRST * PAGE_SIZE);
	__ask(vcpu, GMEM_GPA, COUNT, SHARE | KEEP);

	/* As many pages, from the first of the slot on, but not all of them are in it. */
	expect_refused(&g, FIRST - 1, COUNT, GMEM_SHARED);
	expect_refused(&g, 0, COUNT, GMEM_SHARED);
	gmem_assert_private(&g, 0, NR);
	expect_kept(&g, FIRST, COUNT, GMEM_SHARED);
	answer(vcpu, 0);
	vm_set_user_memory_region2(self->vm, GMEM_SLOT, KVM_MEM_GUEST_MEMFD, GMEM_GPA, 0,
				   g.mem + FIRST * PAGE_SIZE, g.fd, FIRST * PAGE_SIZE);
	gmem_destroy(&g);
}

/* A slot, or memory, that is somewhere else. */
CONTENT_TEST(elsewhere)
{
	struct kvm_vcpu *vcpu = self->vcpus[0];
	struct gmem g, other;

	new_private_file(&g, vcpu, 0);
	gmem_create(&other, self->vm, NR * PAGE_SIZE, FILE_FLAGS);
	gmem_bind(&other, OTHER_SLOT, OTHER_GPA);
	gmem_to_private(&other, 0, NR, 0);

	/* Across both, and where there is none. */
	ask(vcpu, &g, NR - 1, 2, SHARE | KEEP);
	expect_refused(&g, NR - 1, 1, GMEM_SHARED);
	expect_refused(&other, 0, 1, GMEM_SHARED);
	answer(vcpu, -KVM_EINVAL);
	ask(vcpu, &other, NR, 1, SHARE | KEEP);
	answer(vcpu, -KVM_EINVAL);

	/* The same page numbers, the other file. */
	ask(vcpu, &other, 3, 1, SHARE | KEEP);
	expect_refused(&g, 3, 1, GMEM_SHARED);
	expect_kept(&other, 3, 1, GMEM_SHARED);
	answer(vcpu, 0);

	/* The other slot goes, and takes nothing along. */
	ask(vcpu, &g, 3, 1, SHARE | KEEP);
	gmem_unbind(&other);
	expect_kept(&g, 3, 1, GMEM_SHARED);
	answer(vcpu, 0);
	gmem_destroy(&other);
	gmem_destroy(&g);
}

/* A request for more than the slot has, up to all there could be. */
CONTENT_TEST(huge_request)
{
	static const u64 nrs[] = { NR + 1, 1ul << 40, (1ul << 51) };
	struct kvm_vcpu *vcpu = self->vcpus[0];
	struct gmem g;
	int i;

	new_private_file(&g, vcpu, 0);
	for (i = 0; i < ARRAY_SIZE(nrs); i++) {
		ask(vcpu, &g, 0, nrs[i], SHARE | KEEP);
		expect_refused(&g, 0, NR, GMEM_SHARED);
		answer(vcpu, -KVM_EINVAL);
	}
	ask(vcpu, &g, 0, NR, SHARE | KEEP);
	expect_kept(&g, 0, NR, GMEM_SHARED);
	answer(vcpu, 0);
	gmem_host_check(&g, 0, NR, VAL);
	gmem_destroy(&g);
}

/* The flag makes a file in place, and other files are what they were. */
CONTENT_TEST(files)
{
	const u64 all = vm_check_cap(self->vm, KVM_CAP_GUEST_MEMFD_FLAGS);
	struct kvm_vcpu *vcpu = self->vcpus[0];
	struct kvm_vm *plain;
	struct gmem g;

	TEST_ASSERT(all & CONTENT, "The flag isn't offered");
	gmem_new(&g, self->vm, NR, CONTENT);
	gmem_guest_fill(vcpu, &g, 0, NR, VAL);
	expect_refused(&g, 0, 1, GMEM_SHARED);
	gmem_to_shared(&g, 0, 1, 0);
	gmem_guest_check_zero(vcpu, &g, 0, 1);
	gmem_guest_check_fill(vcpu, &g, 1, NR - 1, VAL + 1);
	gmem_destroy(&g);

	gmem_new(&g, self->vm, NR, GMEM_SHARED_FILE);
	gmem_host_fill(&g, 0, NR, VAL);
	expect_kept(&g, 0, NR, GMEM_PRIVATE);
	gmem_guest_check_fill(vcpu, &g, 0, NR, VAL);
	gmem_destroy(&g);

	plain = vm_create_barebones();
	TEST_ASSERT(!(vm_check_cap(plain, KVM_CAP_GUEST_MEMFD_FLAGS) & CONTENT),
		    "A VM without private memory offers the flag");
	gmem_expect_error(__vm_create_guest_memfd(plain, PAGE_SIZE, CONTENT), EINVAL);
	kvm_vm_free(plain);
}

/* Large pages, out of the direct map: a part of one is kept, the rest stays private. */
CONTENT_TEST(large_and_hidden)
{
	const u64 flags = GUEST_MEMFD_FLAG_HUGE | GUEST_MEMFD_FLAG_NO_DIRECT_MAP;
	const u64 nr = SZ_2M / PAGE_SIZE;
	struct kvm_vcpu *vcpu = self->vcpus[0];
	struct gmem g;

	if ((vm_check_cap(self->vm, KVM_CAP_GUEST_MEMFD_FLAGS) & flags) != flags)
		SKIP(return, "No large pages outside the direct map");

	gmem_new(&g, self->vm, nr, FILE_FLAGS | flags);
	gmem_to_private(&g, 0, nr, 0);
	gmem_guest_fill(vcpu, &g, 0, NR, VAL);
	ask(vcpu, &g, FIRST, COUNT, SHARE | KEEP);
	expect_refused(&g, 0, nr, GMEM_SHARED);
	expect_kept(&g, FIRST, COUNT, GMEM_SHARED);
	answer(vcpu, 0);
	gmem_host_check(&g, FIRST, COUNT, VAL + FIRST);
	gmem_guest_check_fill(vcpu, &g, 0, NR, VAL);

	ask(vcpu, &g, 0, nr, SHARE | KEEP);
	expect_kept(&g, 0, nr, GMEM_SHARED);
	answer(vcpu, 0);
	gmem_host_check(&g, 0, NR, VAL);
	gmem_host_check_zero(&g, NR, nr - NR);
	gmem_destroy(&g);
}

/* ---- A VMM that tries all the time ---- */

static bool greedy_stop;

static void *greedy_thread(void *arg)
{
	struct gmem *g = arg;

	while (!READ_ONCE(greedy_stop))
		keep(g, FIRST, COUNT, GMEM_SHARED);
	return NULL;
}

/*
 * Whenever the guest runs, its bytes are its own: what is private then stays so, or comes
 * to the host as zeros.
 */
CONTENT_TEST(greedy)
{
	struct kvm_vcpu *vcpu = self->vcpus[0];
	pthread_t thread;
	struct gmem g;
	u64 i, seen;

	new_private_file(&g, vcpu, 0);
	kvm_pthread_create(&thread, NULL, greedy_thread, &g);
	for (i = 0; i < GMEM_LOOPS(200); i++) {
		ask(vcpu, &g, FIRST, COUNT, SHARE | KEEP);
		gmem_wait_until(!gmem_try_read(g.mem + FIRST * PAGE_SIZE, &seen));
		answer(vcpu, 0);

		/* No request is open any more, nor does a conversion rely on one. */
		gmem_host_check(&g, FIRST, COUNT, VAL + FIRST);
		gmem_to_private(&g, FIRST, COUNT, 0);
		gmem_guest_fill(vcpu, &g, FIRST, COUNT, VAL + FIRST);
		gmem_assert_private(&g, FIRST, COUNT);
		gmem_guest_check_fill(vcpu, &g, FIRST, COUNT, VAL + FIRST);
	}
	WRITE_ONCE(greedy_stop, true);
	kvm_pthread_join(thread, NULL);
	gmem_assert_private(&g, FIRST, COUNT);
	gmem_destroy(&g);
}

TEST_HARNESS_MAIN
