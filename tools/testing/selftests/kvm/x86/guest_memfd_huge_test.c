// SPDX-License-Identifier: GPL-2.0-only
/*
 * guest_memfd files with GUEST_MEMFD_FLAG_HUGE: memory comes 2 MiB at a time where
 * it can, is mapped so, and nothing else may be told from it.
 *
 * Large pages are counted, by KVM where the guest has them mapped and by
 * FileHugePages of /proc/meminfo where they are allocated; nothing else on the
 * machine has large pages of files.
 */
#include "gmem_util.h"
#include "kvm_test_harness.h"
#include "numaif.h"

#include <sys/stat.h>

/* Page i holds VAL + i; OTHER is what the next writer leaves there. */
#define VAL		0x1122334455660000ul
#define OTHER		0x99aabbccddee0000ul

/* Pages of a large page, and of most files here. */
#define HUGE		512ul
#define NR_HUGE		2ul
#define NR_FILE		(NR_HUGE * HUGE)

/* A page amid the first large page. */
#define MID		(HUGE / 2 - 3)

#define SHARED_HUGE	(GMEM_SHARED_FILE | GUEST_MEMFD_FLAG_HUGE)
#define PRIVATE_HUGE	(GMEM_PRIVATE_FILE | GUEST_MEMFD_FLAG_HUGE)

/* Turns of the race for a stale mapping; few, as each zeroes a large page twice. */
#define STALE_ROUNDS	GMEM_LOOPS(150)

FIXTURE(huge) {
	struct kvm_vcpu *vcpus[2];
	struct kvm_vm *vm;
	u64 nr_2m;
	u64 nr_file;
	u64 nr_cached;
};

/* ---- Counting ---- */

/* As the guest has them mapped; slot 0 may have some, but they stay. */
static u64 mapped_2m(struct kvm_vm *vm)
{
	return vm_get_stat(vm, pages_2m);
}

static u64 present(struct kvm_vm *vm)
{
	return vm_get_stat(vm, gmem_pages_private) + vm_get_stat(vm, gmem_pages_shared);
}

#define assert_allocated(want)							\
do {										\
	u64 __nr = gmem_large_pages() - self->nr_file, __want = (want);		\
										\
	TEST_ASSERT(__nr == __want, "%ld large pages allocated, want %lu",	\
		    __nr, __want);						\
} while (0)

#define assert_mapped(want)							\
do {										\
	u64 __nr = mapped_2m(self->vm) - self->nr_2m, __want = (want);		\
										\
	TEST_ASSERT(__nr == __want, "%ld large pages mapped, want %lu",		\
		    __nr, __want);						\
} while (0)

FIXTURE_SETUP(huge)
{
	if (!gmem_conversion_supported() ||
	    !(kvm_check_cap(KVM_CAP_GUEST_MEMFD_FLAGS) & GUEST_MEMFD_FLAG_HUGE))
		SKIP(return, "No large pages in guest_memfd");

	gmem_test_init();
	self->vm = gmem_vm_create(2, gmem_guest_server, self->vcpus);
	vcpu_args_set(self->vcpus[0], 1, 0);
	vcpu_args_set(self->vcpus[1], 1, 1);
	virt_map(self->vm, GMEM_GPA, GMEM_GPA, NR_FILE + 2 * HUGE);
	gmem_guest_do(self->vcpus[0], GMEM_GUEST_NOP, 0, 0, 0, 0);
	self->nr_2m = mapped_2m(self->vm);
	self->nr_file = gmem_large_pages();
	self->nr_cached = gmem_nr_file_pages();
}

/* "Accounting exact at the end of every test." */
FIXTURE_TEARDOWN(huge)
{
	TEST_ASSERT_EQ(present(self->vm), 0);
	assert_allocated(0);
	TEST_ASSERT_EQ(gmem_nr_file_pages(), self->nr_cached);
	kvm_vm_free(self->vm);
}

#define HUGE_TEST(name)		TEST_F_TIMEOUT(huge, name, GMEM_TIMEOUT_S)

/* A full file in which all is large. */
static void new_huge_file(struct gmem *g, struct kvm_vm *vm, u64 flags)
{
	gmem_new(g, vm, NR_FILE, flags);
	gmem_allocate(g, 0, NR_FILE);
}

/* All of a file of one state, filled by the guest, which has it mapped. */
static void new_mapped_file(struct gmem *g, struct kvm_vcpu *vcpu, u64 flags)
{
	new_huge_file(g, vcpu->vm, flags);
	gmem_guest_fill(vcpu, g, 0, NR_FILE, VAL);
}

static void check_all_but(struct kvm_vcpu *vcpu, struct gmem *g, u64 page)
{
	gmem_guest_check_fill(vcpu, g, 0, page, VAL);
	gmem_guest_check_fill(vcpu, g, page + 1, NR_FILE - page - 1, VAL + page + 1);
}

/* ---- Creation ---- */

static int create_with(struct kvm_vm *vm, struct kvm_create_guest_memfd args)
{
	int fd = __vm_ioctl(vm, KVM_CREATE_GUEST_MEMFD, &args);

	if (fd < 0)
		return errno;

	close(fd);
	return 0;
}

HUGE_TEST(create)
{
	const u64 huge = GUEST_MEMFD_FLAG_HUGE;
	struct kvm_create_guest_memfd args = { .size = PAGE_SIZE, .flags = huge };
	int i;

	TEST_ASSERT(vm_check_cap(self->vm, KVM_CAP_GUEST_MEMFD_FLAGS) & huge,
		    "The VM does not have what the system has");
	TEST_ASSERT_EQ(create_with(self->vm, args), 0);
	args.flags |= GMEM_SHARED_FILE | GUEST_MEMFD_FLAG_ZERO;
	TEST_ASSERT_EQ(create_with(self->vm, args), 0);

	/* "Best effort", and there is one large size to name. */
	args.page_shift = PAGE_SHIFT;
	TEST_ASSERT_EQ(create_with(self->vm, args), EINVAL);
	args.page_shift = 22;
	TEST_ASSERT_EQ(create_with(self->vm, args), EINVAL);
	args.page_shift = 21;
	TEST_ASSERT_EQ(create_with(self->vm, args), 0);

	for (i = 1; i < ARRAY_SIZE(args.reserved); i++) {
		args = (struct kvm_create_guest_memfd) { .size = PAGE_SIZE, .flags = huge };
		args.reserved[i] = 1ull << (7 * i);
		TEST_ASSERT_EQ(create_with(self->vm, args), EINVAL);

		/* Old clients may leave garbage there. */
		args.flags = GMEM_SHARED_FILE;
		TEST_ASSERT_EQ(create_with(self->vm, args), 0);
	}
}

/* ---- Allocation ---- */

HUGE_TEST(allocate)
{
	struct gmem g;

	gmem_new(&g, self->vm, NR_FILE, SHARED_HUGE);
	assert_allocated(0);

	/* A page of a piece brings all of it. */
	gmem_allocate(&g, MID, 1);
	assert_allocated(1);
	TEST_ASSERT_EQ(present(self->vm), HUGE);
	gmem_host_check_zero(&g, 0, HUGE);

	/* Two states in a piece are no reason to fail. */
	gmem_to_private(&g, HUGE + 1, 1, 0);
	gmem_allocate(&g, HUGE, 3);
	assert_allocated(1);
	TEST_ASSERT_EQ(present(self->vm), HUGE + 3);

	/* Nor is a piece that isn't empty. */
	gmem_to_shared(&g, HUGE + 1, 1, 0);
	gmem_allocate(&g, HUGE, HUGE);
	assert_allocated(1);
	TEST_ASSERT_EQ(present(self->vm), 2 * HUGE);
	gmem_host_check_zero(&g, HUGE, HUGE);

	gmem_punch(&g, HUGE, HUGE);
	gmem_allocate(&g, HUGE, HUGE);
	assert_allocated(2);
	gmem_destroy(&g);
}

/* "Never allocates what the file does not cover." */
HUGE_TEST(end_of_file)
{
	const u64 nr = HUGE + HUGE / 2;
	struct gmem g;

	gmem_new(&g, self->vm, nr, PRIVATE_HUGE);
	gmem_guest_fill(self->vcpus[0], &g, 0, nr, VAL);
	TEST_ASSERT_EQ(present(self->vm), nr);
	assert_allocated(1);
	assert_mapped(1);
	gmem_guest_check_fill(self->vcpus[0], &g, 0, nr, VAL);
	gmem_destroy(&g);

	gmem_new(&g, self->vm, 1, SHARED_HUGE);
	gmem_host_fill(&g, 0, 1, VAL);
	gmem_guest_check_fill(self->vcpus[0], &g, 0, 1, VAL);
	TEST_ASSERT_EQ(present(self->vm), 1);
	gmem_destroy(&g);
}

/* A large page that would be against somebody's wish isn't taken. */
HUGE_TEST(numa_policy)
{
	const unsigned long node0 = 1, maxnode = 8 * sizeof(node0);
	struct gmem g;

	if (access("/sys/devices/system/node", F_OK))
		SKIP(return, "No NUMA policies");

	gmem_new(&g, self->vm, NR_FILE, SHARED_HUGE);
	kvm_mbind(g.mem + MID * PAGE_SIZE, PAGE_SIZE, MPOL_BIND, &node0, maxnode, 0);
	gmem_allocate(&g, 0, HUGE);
	assert_allocated(0);
	TEST_ASSERT_EQ(present(self->vm), HUGE);

	gmem_punch(&g, 0, HUGE);
	kvm_mbind(g.mem, NR_FILE * PAGE_SIZE, MPOL_BIND, &node0, maxnode, 0);
	gmem_allocate(&g, 0, NR_FILE);
	assert_allocated(NR_HUGE);
	gmem_destroy(&g);
}

/* ---- Mapping ---- */

/* Bind pages [@pgoff, @pgoff + @nr) of the file at page @page of the guest. */
static void bind_part(struct gmem *g, u64 page, u64 nr, u64 pgoff)
{
	g->slot = GMEM_SLOT;
	g->gpa = GMEM_GPA + page * PAGE_SIZE;
	vm_set_user_memory_region2(g->vm, g->slot, KVM_MEM_GUEST_MEMFD, g->gpa,
				   nr * PAGE_SIZE, NULL, g->fd, pgoff * PAGE_SIZE);
}

HUGE_TEST(mapping_level)
{
	static const struct {
		u64 page, nr, pgoff, want;
	} binds[] = {
		{ 0,	NR_FILE,	0,	2 },
		/* The gfn is aligned, the offset isn't, and vice versa. */
		{ 0,	NR_FILE - 1,	1,	0 },
		{ 1,	NR_FILE,	0,	0 },
		/* Neither is, but they agree. */
		{ 1,	NR_FILE - 1,	1,	1 },
		/* The slot ends amid a large page. */
		{ 0,	NR_FILE - 1,	0,	1 },
		{ HUGE,	HUGE - 1,	HUGE,	0 },
		{ 0,	HUGE,		HUGE,	1 },
	};
	struct kvm_vcpu *vcpu = self->vcpus[0];
	struct gmem g;
	int i, shared;

	for (shared = 0; shared < 2; shared++) {
		gmem_create(&g, self->vm, NR_FILE * PAGE_SIZE,
			    shared ? SHARED_HUGE : PRIVATE_HUGE);
		g.no_user_addr = true;
		for (i = 0; i < ARRAY_SIZE(binds); i++) {
			bind_part(&g, binds[i].page, binds[i].nr, binds[i].pgoff);
			gmem_guest_fill(vcpu, &g, 0, binds[i].nr, VAL);
			gmem_guest_check_fill(vcpu, &g, 0, binds[i].nr, VAL);
			assert_mapped(binds[i].want);
			gmem_unbind(&g);
			assert_mapped(0);
		}
		gmem_destroy(&g);
	}
}

/* Without the address of a user a slot needs no more than that. */
HUGE_TEST(pre_fault)
{
	struct gmem g;

	__gmem_new(&g, self->vm, NR_FILE, PRIVATE_HUGE, true);
	TEST_ASSERT_EQ(gmem_pre_fault(self->vcpus[0], g.gpa, NR_FILE), 0);
	assert_mapped(NR_HUGE);
	gmem_guest_check_zero(self->vcpus[0], &g, 0, NR_FILE);
	gmem_destroy(&g);
}

/* In two-backing files, too, whose state is the VM's. */
HUGE_TEST(two_backings)
{
	struct kvm_vcpu *vcpu = self->vcpus[0];
	struct gmem g = { .vm = self->vm, .gpa = GMEM_GPA };
	u8 *mem;

	mem = kvm_mmap(NR_FILE * PAGE_SIZE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1);
	g.fd = vm_create_guest_memfd(self->vm, NR_FILE * PAGE_SIZE, GUEST_MEMFD_FLAG_HUGE);
	vm_set_user_memory_region2(self->vm, GMEM_SLOT, KVM_MEM_GUEST_MEMFD, g.gpa,
				   NR_FILE * PAGE_SIZE, mem, g.fd, 0);
	vm_mem_set_private(self->vm, g.gpa, NR_FILE * PAGE_SIZE);
	gmem_guest_fill(vcpu, &g, 0, NR_FILE, VAL);
	assert_allocated(NR_HUGE);

	/* Shared memory is elsewhere, and makes a mapping of two states. */
	vm_mem_set_shared(self->vm, g.gpa + MID * PAGE_SIZE, PAGE_SIZE);
	gmem_guest_check_fill(vcpu, &g, 0, MID, VAL);
	gmem_guest_check_zero(vcpu, &g, MID, 1);
	gmem_guest_check_fill(vcpu, &g, MID + 1, NR_FILE - MID - 1, VAL + MID + 1);
	assert_allocated(NR_HUGE);

	gmem_punch(&g, MID, 1);
	assert_allocated(NR_HUGE - 1);
	vm_set_user_memory_region2(self->vm, GMEM_SLOT, KVM_MEM_GUEST_MEMFD, g.gpa,
				   0, mem, g.fd, 0);
	close(g.fd);
	kvm_munmap(mem, NR_FILE * PAGE_SIZE);
}

static u64 user_mapped_2m(void)
{
	char line[256];
	u64 kib, sum = 0;
	FILE *f;

	f = fopen("/proc/self/smaps", "r");
	TEST_ASSERT(f, "fopen(/proc/self/smaps) failed");
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "FilePmdMapped: %lu", &kib) == 1)
			sum += kib;
	fclose(f);
	return sum * SZ_1K / SZ_2M;
}

/* "PMD mappings of wholly shared aligned folios in user space" */
HUGE_TEST(user_mapping)
{
	struct gmem g;
	u64 val;

	new_huge_file(&g, self->vm, SHARED_HUGE);
	gmem_host_fill(&g, 0, NR_FILE, VAL);
	TEST_ASSERT_EQ(user_mapped_2m(), NR_HUGE);

	gmem_to_private(&g, MID, 1, 0);
	TEST_ASSERT_EQ(user_mapped_2m(), NR_HUGE - 1);
	TEST_ASSERT_EQ(gmem_try_read(g.mem + MID * PAGE_SIZE, &val), BUS_ADRERR);
	gmem_host_check(&g, 0, MID, VAL);
	gmem_host_check(&g, MID + 1, NR_FILE - MID - 1, VAL + MID + 1);
	gmem_guest_check_fill(self->vcpus[0], &g, 0, NR_FILE, VAL);

	gmem_to_private(&g, HUGE, HUGE, 0);
	TEST_ASSERT_EQ(user_mapped_2m(), 0);
	gmem_to_shared(&g, HUGE, HUGE, 0);
	gmem_host_check(&g, HUGE, HUGE, VAL + HUGE);
	TEST_ASSERT_EQ(user_mapped_2m(), 1);
	gmem_destroy(&g);
}

/*
 * A VM without private memory: its file is of one state, shared, or of none that a
 * user may see.  Without TDP the guest's own entries, of a page each, are the limit.
 */
static void check_default_vm(u64 flags)
{
	const u64 nr_huge = kvm_is_tdp_enabled() ? NR_HUGE : 0;
	const struct vm_shape shape = VM_SHAPE_DEFAULT;
	bool shared = flags & GUEST_MEMFD_FLAG_INIT_SHARED;
	u64 val, slot0_2m, users_2m = user_mapped_2m();
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	struct gmem g;

	vm = __vm_create_with_vcpus(shape, 1, 0, gmem_guest_server, &vcpu);
	vcpu_args_set(vcpu, 1, 0);
	virt_map(vm, GMEM_GPA, GMEM_GPA, NR_FILE);
	gmem_guest_do(vcpu, GMEM_GUEST_NOP, 0, 0, 0, 0);
	slot0_2m = mapped_2m(vm);

	gmem_new(&g, vm, NR_FILE, flags);
	gmem_guest_fill(vcpu, &g, 0, NR_FILE, VAL);
	TEST_ASSERT_EQ(mapped_2m(vm) - slot0_2m, nr_huge);
	TEST_ASSERT_EQ(present(vm), NR_FILE);
	if (shared) {
		gmem_host_check(&g, 0, NR_FILE, VAL);
		TEST_ASSERT_EQ(user_mapped_2m() - users_2m, NR_HUGE);
	} else {
		TEST_ASSERT_EQ(gmem_try_read(g.mem, &val), BUS_ADRERR);
	}

	/* A hole costs a piece its size, and nothing else. */
	gmem_punch(&g, MID, 1);
	TEST_ASSERT_EQ(present(vm), NR_FILE - 1);
	gmem_guest_check_zero(vcpu, &g, MID, 1);
	check_all_but(vcpu, &g, MID);
	TEST_ASSERT_EQ(mapped_2m(vm) - slot0_2m, nr_huge ? nr_huge - 1 : 0);

	gmem_destroy(&g);
	kvm_vm_free(vm);
}

/* These VMs are there without TDP, too. */
FIXTURE(default_vm) {
	u64 nr_file;
};

FIXTURE_SETUP(default_vm)
{
	if (!(kvm_check_cap(KVM_CAP_GUEST_MEMFD_FLAGS) & GUEST_MEMFD_FLAG_HUGE))
		SKIP(return, "No large pages in guest_memfd");

	gmem_test_init();
	self->nr_file = gmem_large_pages();
}

FIXTURE_TEARDOWN(default_vm)
{
	assert_allocated(0);
}

TEST_F_TIMEOUT(default_vm, shared, GMEM_TIMEOUT_S)
{
	check_default_vm(SHARED_HUGE);
}

TEST_F_TIMEOUT(default_vm, of_no_user, GMEM_TIMEOUT_S)
{
	check_default_vm(PRIVATE_HUGE);
}

/* "No collapse": the kernel must not copy the guest's pages into others. */
HUGE_TEST(no_collapse)
{
	struct gmem g;

	new_mapped_file(&g, self->vcpus[0], SHARED_HUGE);
	gmem_to_private(&g, MID, 1, 0);
	gmem_to_shared(&g, MID, 1, 0);
	gmem_host_check(&g, 0, NR_FILE, VAL);

	kvm_madvise(g.mem, g.size, MADV_HUGEPAGE);
	TEST_ASSERT_EQ(madvise(g.mem, SZ_2M, MADV_COLLAPSE), -1);
	TEST_ASSERT_EQ(errno, EINVAL);
	assert_allocated(NR_HUGE - 1);
	gmem_host_check(&g, 0, NR_FILE, VAL);
	gmem_destroy(&g);
}

/* ---- Splits ---- */

/* The content of a converted page after @flags; the default keeps it. */
static void check_content(struct kvm_vcpu *vcpu, struct gmem *g, u64 page, u64 flags)
{
	if (flags & (GMEM_ZERO | GMEM_DISCARD))
		gmem_guest_check_zero(vcpu, g, page, 1);
	else
		gmem_guest_check_fill(vcpu, g, page, 1, VAL + page);
}

/* A page changes sides; the rest of its large page, and others, don't notice. */
HUGE_TEST(convert_page)
{
	static const u64 pages[] = { 0, MID, HUGE - 1, HUGE };
	struct kvm_vcpu *vcpu = self->vcpus[0];
	int i, f, to_private;
	struct gmem g;

	for (i = 0; i < ARRAY_SIZE(pages); i++) {
		for (f = 0; f < ARRAY_SIZE(gmem_content_flags); f++) {
			to_private = (i + f) % 2;
			new_mapped_file(&g, vcpu, to_private ? SHARED_HUGE : PRIVATE_HUGE);
			assert_mapped(NR_HUGE);

			gmem_convert_pages(&g, pages[i], 1, to_private ? GMEM_PRIVATE : 0,
					   gmem_content_flags[f]);
			assert_mapped(NR_HUGE - 1);
			assert_allocated(NR_HUGE - 1);
			check_content(vcpu, &g, pages[i], gmem_content_flags[f]);
			check_all_but(vcpu, &g, pages[i]);
			gmem_assert_state(&g, pages[i], 1, to_private);
			gmem_assert_state(&g, 0, pages[i], !to_private);
			gmem_assert_state(&g, pages[i] + 1, NR_FILE - pages[i] - 1, !to_private);
			TEST_ASSERT_EQ(present(self->vm), NR_FILE);
			gmem_destroy(&g);
		}
	}
}

/* What lies wholly inside the range stays whole. */
HUGE_TEST(convert_whole)
{
	struct kvm_vcpu *vcpu = self->vcpus[0];
	struct gmem g;

	new_mapped_file(&g, vcpu, SHARED_HUGE);
	gmem_to_private(&g, 0, NR_FILE, 0);
	assert_allocated(NR_HUGE);
	gmem_guest_check_fill(vcpu, &g, 0, NR_FILE, VAL);
	assert_mapped(NR_HUGE);

	gmem_to_shared(&g, HUGE - 1, HUGE + 1, GMEM_PRESERVE);
	assert_allocated(NR_HUGE - 1);
	gmem_guest_check_fill(vcpu, &g, 0, NR_FILE, VAL);
	assert_mapped(NR_HUGE - 1);
	gmem_host_check(&g, HUGE - 1, HUGE + 1, VAL + HUGE - 1);

	gmem_to_shared(&g, 0, HUGE, GMEM_ZERO);
	gmem_host_check_zero(&g, 0, HUGE);
	gmem_host_check(&g, HUGE, HUGE, VAL + HUGE);
	gmem_destroy(&g);
}

/* "A punch in the middle reads zeros", for the guest and for users. */
HUGE_TEST(punch)
{
	static const struct {
		u64 first, nr, left;
	} holes[] = {
		{ MID, 1, 1 },
		{ 0, 1, 1 },
		{ HUGE - 1, 2, 0 },
		{ 3, HUGE + 7, 0 },
		{ HUGE, HUGE, 1 },
	};
	struct kvm_vcpu *vcpu = self->vcpus[0];
	int i, shared;
	struct gmem g;
	u64 end;

	for (i = 0; i < ARRAY_SIZE(holes) * 2; i++) {
		u64 first = holes[i / 2].first, nr = holes[i / 2].nr;

		shared = i % 2;
		end = first + nr;
		new_mapped_file(&g, vcpu, shared ? SHARED_HUGE : PRIVATE_HUGE);
		gmem_punch(&g, first, nr);
		TEST_ASSERT_EQ(present(self->vm), NR_FILE - nr);
		assert_allocated(holes[i / 2].left);

		gmem_guest_check_zero(vcpu, &g, first, nr);
		gmem_guest_check_fill(vcpu, &g, 0, first, VAL);
		gmem_guest_check_fill(vcpu, &g, end, NR_FILE - end, VAL + end);
		gmem_assert_state(&g, 0, NR_FILE, !shared);
		if (shared)
			gmem_host_check_zero(&g, first, nr);
		gmem_destroy(&g);
	}
}

/* ---- Coming back ---- */

HUGE_TEST(replace)
{
	static const u64 flags[] = { GMEM_ZERO, GMEM_DISCARD };
	struct kvm_vcpu *vcpu = self->vcpus[0];
	struct gmem g;
	int i;

	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		new_mapped_file(&g, vcpu, SHARED_HUGE);
		gmem_to_private(&g, MID, 1, 0);
		gmem_to_shared(&g, MID, 1, 0);

		/* With PRESERVE it stays split. */
		gmem_to_private(&g, 0, HUGE, GMEM_PRESERVE);
		gmem_guest_check_fill(vcpu, &g, 0, NR_FILE, VAL);
		assert_allocated(NR_HUGE - 1);
		assert_mapped(NR_HUGE - 1);

		gmem_to_shared(&g, 0, HUGE, flags[i]);
		gmem_guest_check_zero(vcpu, &g, 0, HUGE);
		assert_allocated(NR_HUGE);
		assert_mapped(NR_HUGE);
		gmem_guest_check_fill(vcpu, &g, HUGE, HUGE, VAL + HUGE);
		gmem_host_check_zero(&g, 0, HUGE);
		gmem_destroy(&g);
	}
}

/* What a user has in his hands is not replaced under him. */
HUGE_TEST(replace_held)
{
	int pipes[2];
	struct gmem g;
	char byte;

	new_mapped_file(&g, self->vcpus[0], SHARED_HUGE);
	gmem_to_private(&g, MID, 1, 0);
	gmem_to_shared(&g, MID, 1, 0);
	hold_by_pipe(pipes, g.mem);
	gmem_to_shared(&g, 0, HUGE, GMEM_ZERO);
	gmem_host_check_zero(&g, 0, HUGE);

	gmem_host_fill(&g, 0, 1, 0x5a5a5a5a5a5a5a5aul);
	TEST_ASSERT_EQ(read(pipes[0], &byte, 1), 1);
	TEST_ASSERT_EQ(byte, 0x5a);
	release_pipe(pipes);
	gmem_destroy(&g);
}

/* ---- Holders ---- */

/* Nobody gets a part of a large page of which some other part is held. */
static void expect_refusals(struct gmem *g, u64 held)
{
	u64 error_offset = 0;
	int r;

	expect_held(g, MID, 1, 0, MID);
	expect_held(g, MID, HUGE, 0, MID);
	expect_held(g, 0, 1, GMEM_DISCARD, 0);
	expect_held(g, 0, NR_FILE, 0, 0);

	r = __gmem_convert(g->fd, MID * PAGE_SIZE, PAGE_SIZE, GMEM_SHARED, GMEM_DISCARD,
			   &error_offset);
	TEST_ASSERT_EQ(r, EAGAIN);
	TEST_ASSERT_EQ(error_offset, MID * PAGE_SIZE);

	/* The same holder, the same answer: his first page in the range, at either edge. */
	r = __gmem_convert(g->fd, 0, MID * PAGE_SIZE, GMEM_PRIVATE, GMEM_DISCARD, &error_offset);
	TEST_ASSERT_EQ(r, EAGAIN);
	TEST_ASSERT_EQ(error_offset, 0);
	r = __gmem_convert(g->fd, PAGE_SIZE, MID * PAGE_SIZE, GMEM_PRIVATE, GMEM_DISCARD,
			   &error_offset);
	TEST_ASSERT_EQ(r, EAGAIN);
	TEST_ASSERT_EQ(error_offset, PAGE_SIZE);

	r = fallocate(g->fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, PAGE_SIZE,
		      (NR_FILE - 1) * PAGE_SIZE);
	TEST_ASSERT(r && errno == EAGAIN, "Punching a part: %d, errno %d", r, errno);

	gmem_assert_shared(g, 0, NR_FILE);
	gmem_host_check(g, 0, NR_FILE, VAL);
}

HUGE_TEST(held)
{
	const u64 held = HUGE - 1;
	int pipes[2], ring, i;
	struct gmem g;

	for (i = 0; i < 2; i++) {
		new_mapped_file(&g, self->vcpus[0], SHARED_HUGE);
		if (i) {
			ring = hold_by_pin(g.mem + held * PAGE_SIZE, PAGE_SIZE);
			if (ring < 0) {
				gmem_destroy(&g);
				SKIP(return, "No io_uring");
			}
		} else {
			hold_by_pipe(pipes, g.mem + held * PAGE_SIZE);
		}

		expect_refusals(&g, held);
		assert_allocated(NR_HUGE);

		/* Another large page is not concerned. */
		gmem_to_private(&g, HUGE + 1, 1, 0);
		gmem_to_shared(&g, HUGE + 1, 1, 0);
		/* Nor is what stays on its side, whatever becomes of its bytes. */
		gmem_to_shared(&g, 0, 1, GMEM_ZERO);
		gmem_host_check_zero(&g, 0, 1);
		gmem_host_check(&g, 1, NR_FILE - 1, VAL + 1);
		assert_allocated(NR_HUGE - 1);

		if (i)
			release_pin(ring);
		else
			release_pipe(pipes);
		gmem_to_private(&g, MID, 1, 0);
		gmem_guest_check_fill(self->vcpus[0], &g, 1, NR_FILE - 1, VAL + 1);
		gmem_destroy(&g);
	}
}

/* ---- A stale mapping ---- */

/* The guest's copies count. */
static u64 stop_neighbour;

/* Touch the pages beside @gva for ever; what was dropped meanwhile is zero. */
static void guest_neighbour(u64 gva)
{
	u64 *below = (u64 *)(gva - PAGE_SIZE), *above = (u64 *)(gva + PAGE_SIZE);
	u64 round, seen;

	for (round = 1; !READ_ONCE(stop_neighbour); round++) {
		seen = READ_ONCE(*below);
		__GUEST_ASSERT(!seen || seen == round - 1, "Below: 0x%lx in round %lu",
			       seen, round);
		WRITE_ONCE(*below, round);
		seen = READ_ONCE(*above);
		__GUEST_ASSERT(!seen || seen == round - 1, "Above: 0x%lx in round %lu",
			       seen, round);
		WRITE_ONCE(*above, round);
	}
	GUEST_DONE();
}

static void *neighbour_thread(void *arg)
{
	struct kvm_vcpu *vcpu = arg;

	vcpu_run(vcpu);
	TEST_ASSERT_EQ(gmem_get_ucall(vcpu), UCALL_DONE);
	return NULL;
}

/*
 * A page amid a large one is replaced and changes sides while a vCPU faults its
 * neighbours in.  If that fault could bring back the large mapping, the other vCPU
 * would go on seeing the old page.  The slot has no address of a user: the MMU
 * notifier would zap the guest in KVM's stead.
 *
 * The window is a few instructions, and an emulator that runs one CPU at a time
 * hardly ever hits it; gmem_large_widened and gmem_large_late_fault of KUnit don't
 * depend on luck.
 */
HUGE_TEST(stale_mapping)
{
	struct kvm_vcpu *vcpu = self->vcpus[0];
	gva_t gva = GMEM_GPA + MID * PAGE_SIZE;
	pthread_t thread;
	struct gmem g;
	u64 i;

	__gmem_new(&g, self->vm, NR_FILE, PRIVATE_HUGE, true);
	vcpu_arch_set_entry_point(self->vcpus[1], guest_neighbour);
	vcpu_args_set(self->vcpus[1], 1, gva);
	kvm_pthread_create(&thread, NULL, neighbour_thread, self->vcpus[1]);

	for (i = 1; i <= STALE_ROUNDS; i++) {
		/* All is private, and large as soon as anyone touches it. */
		gmem_guest_fill(vcpu, &g, MID, 1, i);

		gmem_to_shared(&g, MID, 1, GMEM_DISCARD);
		gmem_host_fill(&g, MID, 1, OTHER + i);
		gmem_guest_check_fill(vcpu, &g, MID, 1, OTHER + i);

		gmem_to_private(&g, MID, 1, i % 2 ? GMEM_DISCARD : GMEM_PRESERVE);
		if (i % 2)
			gmem_guest_check_zero(vcpu, &g, MID, 1);
		else
			gmem_guest_check_fill(vcpu, &g, MID, 1, OTHER + i);

		gmem_punch(&g, MID, 1);
		gmem_guest_check_zero(vcpu, &g, MID, 1);
		gmem_to_private(&g, 0, HUGE, i % 3 ? GMEM_ZERO : GMEM_DISCARD);
	}

	WRITE_ONCE(*gmem_guest_var(self->vm, stop_neighbour), 1);
	kvm_pthread_join(thread, NULL);
	gmem_destroy(&g);
}

/* ---- The control group ---- */

/* The counters of other CPUs are gathered now and then. */
#define assert_charged(pages, large)						\
do {										\
	u64 __pages = (pages), __large = (large);				\
										\
	gmem_wait_until(gmem_cgroup_stat("file") == __pages * PAGE_SIZE);		\
	gmem_wait_until(gmem_cgroup_stat("file_thp") == __large * SZ_2M);		\
} while (0)

HUGE_TEST(memory_cgroup)
{
	struct kvm_vcpu *vcpu = self->vcpus[0];
	struct gmem g;
	u64 other;

	if (!gmem_cgroup_enter())
		SKIP(return, "No memory control group");

	/* What the process has read of files meanwhile is not ours. */
	other = gmem_cgroup_stat("file") / PAGE_SIZE;
	new_mapped_file(&g, vcpu, PRIVATE_HUGE);
	assert_charged(other + NR_FILE, NR_HUGE);
	gmem_to_shared(&g, MID, 1, 0);
	assert_charged(other + NR_FILE, NR_HUGE - 1);
	gmem_punch(&g, MID + 1, HUGE);
	assert_charged(other + NR_FILE - HUGE, 0);
	gmem_destroy(&g);
	assert_charged(other, 0);

	/* Where a large page is too much, small ones do. */
	gmem_new(&g, self->vm, NR_FILE, PRIVATE_HUGE);
	gmem_cgroup_limit(SZ_1M);
	gmem_allocate(&g, 0, 16);
	assert_allocated(0);
	TEST_ASSERT_EQ(present(self->vm), 16);
	gmem_cgroup_limit(0);
	gmem_destroy(&g);
	gmem_cgroup_leave();
}

int main(int argc, char *argv[])
{
	return test_harness_run(argc, argv);
}
