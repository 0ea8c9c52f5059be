// SPDX-License-Identifier: GPL-2.0-only
/*
 * In-place conversion of guest_memfd memory: what becomes of the bytes, who can
 * reach them, what is refused and what an error leaves behind.
 *
 * Everything here is one conversion at a time; conversions that race with
 * other users of the file are in guest_memfd_conversion_races_test.c.
 */
#include <linux/futex.h>
#include <linux/userfaultfd.h>

#include "gmem_fixture.h"
#include "numaif.h"

#include <sys/socket.h>

/* What the contract says of @flags, for pages that change their state. */
static u64 effective_flags(struct gmem *g, u64 flags)
{
	if (flags)
		return flags;
	return g->flags & GUEST_MEMFD_FLAG_ZERO ? GMEM_ZERO : GMEM_PRESERVE;
}

static void check_content(struct kvm_vcpu *vcpu, struct gmem *g, u64 first,
			  u64 nr, bool kept)
{
	if (kept)
		gmem_guest_check_fill(vcpu, g, first, nr, VAL + first);
	else
		gmem_guest_check_zero(vcpu, g, first, nr);
}

/* Guest and host read the same bytes; the latter once all are shared. */
static void check_both_views(struct kvm_vcpu *vcpu, struct gmem *g, bool kept)
{
	check_content(vcpu, g, 0, FIRST, true);
	check_content(vcpu, g, FIRST, COUNT, kept);
	check_content(vcpu, g, END, NR - END, true);

	gmem_to_shared(g, 0, NR, GMEM_PRESERVE);
	gmem_host_check(g, 0, FIRST, VAL);
	if (kept)
		gmem_host_check(g, FIRST, COUNT, VAL + FIRST);
	else
		gmem_host_check_zero(g, FIRST, COUNT);
	gmem_host_check(g, END, NR - END, VAL + END);
}

typedef void (*content_fn)(struct kvm_vcpu *vcpu, u64 file_flags, bool private,
			   u64 flags, bool no_user_addr);

/* One call of @fn for all that may matter to the content of a range. */
static void try_all_content(struct kvm_vcpu *vcpu, content_fn fn)
{
	int i, bits;

	for (bits = 0; bits < 8; bits++)
		for (i = 0; i < ARRAY_SIZE(gmem_content_flags); i++)
			fn(vcpu, bits & 1 ? GUEST_MEMFD_FLAG_ZERO : 0, bits & 2,
			   gmem_content_flags[i], bits & 4);
}

/* A file of one state, filled by whoever can reach it. */
static void new_uniform_file(struct gmem *g, struct kvm_vcpu *vcpu, u64 file_flags,
			     bool private, bool no_user_addr)
{
	__gmem_new(g, vcpu->vm, NR, file_flags |
		   (private ? GMEM_PRIVATE_FILE : GMEM_SHARED_FILE), no_user_addr);
	if (private)
		gmem_guest_fill(vcpu, g, 0, NR, VAL);
	else
		gmem_host_fill(g, 0, NR, VAL);
}

static void test_content_present(struct kvm_vcpu *vcpu, u64 file_flags,
				 bool to_private, u64 flags, bool no_user_addr)
{
	struct gmem g;
	u64 effect, i;

	new_uniform_file(&g, vcpu, file_flags, !to_private, no_user_addr);
	effect = effective_flags(&g, flags);
	check_content(vcpu, &g, 0, NR, true);
	gmem_convert_pages(&g, FIRST, COUNT, to_private ? GMEM_PRIVATE : 0, flags);

	for (i = 0; i < NR; i++)
		TEST_ASSERT(gmem_page_is_present(&g, i) ==
			    (i < FIRST || i >= END || effect != GMEM_DISCARD),
			    "Presence of page %lu after flags 0x%lx", i, flags);

	assert_part(&g, to_private);

	check_both_views(vcpu, &g, effect == GMEM_PRESERVE);
	gmem_destroy(&g);
}

/*
 * "Content": each flag and each default, both ways, on pages that are there.
 * Only the range changes, neighbours keep state and bytes.
 */
GMEM_TEST(content_present)
{
	try_all_content(self->vcpu, test_content_present);
}

static void test_content_absent(struct kvm_vcpu *vcpu, u64 file_flags,
				bool to_private, u64 flags, bool no_user_addr)
{
	struct gmem g;
	u64 i;

	/* Dirty the memory that the allocator is likely to hand out next. */
	new_uniform_file(&g, vcpu, file_flags, !to_private, no_user_addr);
	gmem_punch(&g, 0, NR);

	gmem_convert_pages(&g, FIRST, COUNT, to_private ? GMEM_PRIVATE : 0, flags);
	for (i = 0; i < NR; i++)
		TEST_ASSERT(!gmem_page_is_present(&g, i),
			    "Page %lu appeared by conversion", i);

	gmem_guest_check_zero(vcpu, &g, 0, NR);
	gmem_to_shared(&g, 0, NR, GMEM_PRESERVE);
	gmem_host_check_zero(&g, 0, NR);
	gmem_destroy(&g);
}

/* "Content": absent stays absent and reads zeros, invariant 4. */
GMEM_TEST(content_absent)
{
	try_all_content(self->vcpu, test_content_absent);
}

/* Invariant 4 for pages that were allocated, but never touched. */
GMEM_TEST(content_allocated)
{
	struct gmem g;
	int i;

	for (i = 0; i < ARRAY_SIZE(gmem_content_flags); i++) {
		gmem_new(&g, self->vm, NR, GMEM_SHARED_FILE);
		gmem_host_fill(&g, 0, NR, VAL);
		gmem_punch(&g, 0, NR);
		gmem_allocate(&g, 0, NR);

		gmem_to_private(&g, 0, NR, gmem_content_flags[i]);
		gmem_guest_check_zero(self->vcpu, &g, 0, NR / 2);
		gmem_to_shared(&g, 0, NR, gmem_content_flags[i]);
		gmem_host_check_zero(&g, 0, NR);
		gmem_destroy(&g);
	}
}

static void test_already_in_state(struct kvm_vcpu *vcpu, u64 file_flags,
				  bool private, u64 flags, bool no_user_addr)
{
	bool kept = !flags || flags == GMEM_PRESERVE;
	struct gmem g;
	u64 i;

	new_uniform_file(&g, vcpu, file_flags, private, no_user_addr);
	check_content(vcpu, &g, 0, NR, true);

	gmem_convert_pages(&g, FIRST, COUNT, private ? GMEM_PRIVATE : 0, flags);
	for (i = FIRST; i < END; i++)
		TEST_ASSERT_EQ(gmem_page_is_present(&g, i), flags != GMEM_DISCARD);

	gmem_assert_state(&g, 0, NR, private);
	check_both_views(vcpu, &g, kept);
	gmem_destroy(&g);
}

/*
 * "Pages already in the asked state keep their content under flags 0; with an
 * explicit flag the whole range obeys."  Flags 0 keeps it in a ZERO file, too.
 */
GMEM_TEST(content_already_in_state)
{
	try_all_content(self->vcpu, test_already_in_state);
}

/* The same rule where a range holds pages of either state, page by page. */
GMEM_TEST(content_mixed_range)
{
	struct gmem g;
	int to_private;
	u64 i, attrs;

	for (to_private = 0; to_private <= 1; to_private++) {
		attrs = to_private ? GMEM_PRIVATE : 0;
		gmem_new(&g, self->vm, NR, GMEM_SHARED_FILE | GUEST_MEMFD_FLAG_ZERO);
		gmem_host_fill(&g, 0, NR, VAL);
		for (i = 0; i < NR; i += 2)
			gmem_to_private(&g, i, 1, GMEM_PRESERVE);

		gmem_convert_pages(&g, 0, NR, attrs, 0);
		gmem_assert_state(&g, 0, NR, to_private);
		for (i = 0; i < NR; i++)
			check_content(self->vcpu, &g, i, 1, (i & 1) != to_private);

		gmem_convert_pages(&g, 0, NR, attrs, GMEM_ZERO);
		gmem_guest_check_zero(self->vcpu, &g, 0, NR);
		gmem_destroy(&g);
	}
}

/* A file of one page alternating with its neighbour: states never leak. */
GMEM_TEST(every_other_page)
{
	struct gmem g;
	u64 i;

	gmem_new(&g, self->vm, NR, GMEM_PRIVATE_FILE);
	gmem_guest_fill(self->vcpu, &g, 0, NR, VAL);

	for (i = 1; i < NR; i += 2)
		gmem_to_shared(&g, i, 1, 0);
	for (i = 0; i < NR; i++)
		gmem_assert_state(&g, i, 1, !(i & 1));
	for (i = 1; i < NR; i += 2)
		gmem_host_check(&g, i, 1, VAL + i);
	gmem_guest_check_fill(self->vcpu, &g, 0, NR, VAL);

	for (i = 0; i < NR; i++)
		gmem_convert_pages(&g, i, 1, i & 1 ? GMEM_PRIVATE : 0, 0);
	for (i = 0; i < NR; i++)
		gmem_assert_state(&g, i, 1, i & 1);
	gmem_guest_check_fill(self->vcpu, &g, 0, NR, VAL);
	gmem_destroy(&g);
}

/* Both halves are the same pages: what one side wrote, the other reads. */
GMEM_TEST(guest_and_host_views)
{
	struct gmem g;
	u64 i, val;

	gmem_new(&g, self->vm, NR, GMEM_SHARED_FILE);
	gmem_host_check_zero(&g, 0, NR);

	for (i = 0; i < GMEM_LOOPS(8); i++) {
		val = VAL + (i << 32);

		gmem_host_fill(&g, 0, NR, val);
		gmem_guest_check_fill(self->vcpu, &g, 0, NR, val);
		gmem_guest_fill(self->vcpu, &g, 0, NR, val + NR);
		gmem_host_check(&g, 0, NR, val + NR);

		gmem_to_private(&g, 0, NR, 0);
		gmem_assert_private(&g, 0, NR);
		gmem_guest_check_fill(self->vcpu, &g, 0, NR, val + NR);
		gmem_guest_fill(self->vcpu, &g, 0, NR, OTHER + i);
		gmem_assert_private(&g, 0, NR);

		gmem_to_shared(&g, 0, NR, 0);
		gmem_host_check(&g, 0, NR, OTHER + i);
		gmem_guest_check_fill(self->vcpu, &g, 0, NR, OTHER + i);
	}
	gmem_destroy(&g);
}

/* An MMAP file starts private, an INIT_SHARED one shared, in all pages. */
GMEM_TEST(initial_state)
{
	struct gmem g;

	gmem_new(&g, self->vm, NR, GMEM_PRIVATE_FILE);
	gmem_assert_private(&g, 0, NR);
	gmem_guest_check_zero(self->vcpu, &g, 0, NR);
	gmem_assert_private(&g, 0, NR);
	gmem_destroy(&g);

	gmem_new(&g, self->vm, NR, GMEM_SHARED_FILE);
	gmem_assert_shared(&g, 0, NR);
	gmem_guest_check_zero(self->vcpu, &g, 0, NR);
	gmem_assert_shared(&g, 0, NR);
	gmem_destroy(&g);
}

/* ---- Invariant 1: no user reaches a private page ---- */

/* The mapping was made and touched before, in all the ways there are. */
GMEM_TEST(private_unmapped_from_user)
{
	u8 *second, *readonly, *moved;
	struct gmem g;
	u64 val;

	gmem_new(&g, self->vm, NR, GMEM_SHARED_FILE);
	second = kvm_mmap(g.size, PROT_READ | PROT_WRITE, MAP_SHARED, g.fd);
	readonly = kvm_mmap(g.size, PROT_READ, MAP_SHARED, g.fd);
	gmem_host_fill(&g, 0, NR, VAL);
	TEST_ASSERT_EQ(READ_ONCE(*(u64 *)second), VAL);
	TEST_ASSERT_EQ(READ_ONCE(*(u64 *)readonly), VAL);

	gmem_to_private(&g, 0, NR, 0);
	gmem_assert_private(&g, 0, NR);
	TEST_ASSERT(gmem_addr_is_private(second), "Second mapping");
	TEST_ASSERT(gmem_try_read(readonly, &val), "Read-only mapping");

	moved = mremap(second, g.size, g.size, MREMAP_MAYMOVE | MREMAP_FIXED,
		       kvm_mmap(g.size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1));
	TEST_ASSERT(moved != MAP_FAILED, "mremap() failed");
	TEST_ASSERT(gmem_addr_is_private(moved), "Moved mapping");

	kvm_munmap(moved, g.size);
	second = kvm_mmap(g.size, PROT_READ | PROT_WRITE, MAP_SHARED, g.fd);
	TEST_ASSERT(gmem_addr_is_private(second), "New mapping");

	gmem_to_shared(&g, 0, NR, 0);
	TEST_ASSERT_EQ(READ_ONCE(*(u64 *)second), VAL);
	TEST_ASSERT_EQ(READ_ONCE(*(u64 *)readonly), VAL);
	gmem_host_check(&g, 0, NR, VAL);
	kvm_munmap(second, g.size);
	kvm_munmap(readonly, g.size);
	gmem_destroy(&g);
}

/* A mapping moved while its pages were shared and mapped is unmapped, too. */
GMEM_TEST(private_after_mremap)
{
	struct gmem g;
	u8 *moved;

	new_filled_file(&g, self->vm);

	moved = mremap(g.mem, g.size, g.size, MREMAP_MAYMOVE | MREMAP_FIXED,
		       kvm_mmap(g.size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1));
	TEST_ASSERT(moved != MAP_FAILED, "mremap() failed");
	g.mem = moved;
	gmem_host_check(&g, 0, NR, VAL);

	gmem_to_private(&g, FIRST, COUNT, 0);
	assert_part(&g, true);
	gmem_destroy(&g);
}

static void expect_syscall_errors(void *mem, int error, int mem_error)
{
	struct iovec local, remote = { .iov_base = mem, .iov_len = 8 };
	int fd, pipes[2];
	u64 buf = 0;

	TEST_ASSERT(!pipe(pipes), "pipe() failed");
	local = (struct iovec) { .iov_base = &buf, .iov_len = 8 };

	TEST_ASSERT(write(pipes[1], mem, 8) == -1 && errno == error,
		    "write() from a private page: errno %d", errno);
	TEST_ASSERT_EQ(write(pipes[1], &buf, 8), 8);
	TEST_ASSERT(read(pipes[0], mem, 8) == -1 && errno == error,
		    "read() into a private page: errno %d", errno);
	TEST_ASSERT(vmsplice(pipes[1], &remote, 1, 0) == -1 && errno == error,
		    "vmsplice() of a private page: errno %d", errno);
	TEST_ASSERT(process_vm_readv(getpid(), &local, 1, &remote, 1, 0) == -1 &&
		    errno == error, "process_vm_readv(): errno %d", errno);
	TEST_ASSERT(process_vm_writev(getpid(), &local, 1, &remote, 1, 0) == -1 &&
		    errno == error, "process_vm_writev(): errno %d", errno);
	TEST_ASSERT(syscall(SYS_futex, mem, FUTEX_WAIT, 0, NULL, NULL, 0) == -1 &&
		    errno == error, "futex() on a private page: errno %d", errno);

	fd = open("/proc/self/mem", O_RDWR);
	TEST_ASSERT(fd >= 0, "open(/proc/self/mem) failed");
	TEST_ASSERT(pread(fd, &buf, 8, (off_t)mem) == -1 &&
		    (errno == mem_error || errno == error),
		    "/proc/self/mem read: errno %d", errno);
	TEST_ASSERT(pwrite(fd, &buf, 8, (off_t)mem) == -1 &&
		    (errno == mem_error || errno == error),
		    "/proc/self/mem write: errno %d", errno);
	close(fd);
	close(pipes[0]);
	close(pipes[1]);
}

/* The kernel gets no further for a user than the user gets. */
GMEM_TEST(private_syscalls)
{
	struct gmem g;

	gmem_new(&g, self->vm, NR, GMEM_PRIVATE_FILE);
	expect_syscall_errors(g.mem, EFAULT, EIO);

	gmem_guest_fill(self->vcpu, &g, 0, NR, VAL);
	expect_syscall_errors(g.mem, EFAULT, EIO);

	gmem_to_shared(&g, 0, NR, 0);
	gmem_host_check(&g, 0, NR, VAL);
	gmem_to_private(&g, 0, NR, 0);
	expect_syscall_errors(g.mem, EFAULT, EIO);
	gmem_guest_check_fill(self->vcpu, &g, 0, NR, VAL);
	gmem_destroy(&g);
}

/* A copy that runs from a shared page into a private one stops in between. */
GMEM_TEST(private_partial_copy)
{
	struct gmem g;
	int pipes[2];
	ssize_t r;

	new_filled_file(&g, self->vm);
	gmem_to_private(&g, 1, 1, 0);

	TEST_ASSERT(!pipe(pipes), "pipe() failed");
	r = write(pipes[1], g.mem + PAGE_SIZE - 64, 128);
	TEST_ASSERT(r <= 64, "Copied %ld bytes, 64 are shared", r);
	close(pipes[0]);
	close(pipes[1]);
	gmem_destroy(&g);
}

/* read() and write() on the file itself are refused in any state. */
GMEM_TEST(no_read_write_on_file)
{
	struct gmem g;
	char path[64];
	u64 buf = 0;
	int i, fd;

	gmem_new(&g, self->vm, NR, GMEM_SHARED_FILE);
	gmem_to_private(&g, 0, NR / 2, 0);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", g.fd);

	for (i = 0; i < 2; i++) {
		off_t off = i * g.size / 2;

		TEST_ASSERT(pread(g.fd, &buf, 8, off) == -1, "pread() worked");
		TEST_ASSERT(pwrite(g.fd, &buf, 8, off) == -1, "pwrite() worked");
	}
	fd = open(path, O_RDWR);
	TEST_ASSERT(fd == -1, "The file can be opened a second time");
	TEST_ASSERT(ftruncate(g.fd, g.size / 2) == -1, "ftruncate() worked");
	TEST_ASSERT(ftruncate(g.fd, g.size * 2) == -1, "ftruncate() worked");
	gmem_destroy(&g);
}

/* madvise(), mlock() and msync() on a mapping keep bytes and state. */
GMEM_TEST(mapping_advice)
{
	struct gmem g;

	new_filled_file(&g, self->vm);

	kvm_madvise(g.mem, g.size, MADV_DONTNEED);
	gmem_host_check(&g, 0, NR, VAL);
	madvise(g.mem, g.size, MADV_HUGEPAGE);
	madvise(g.mem, g.size, MADV_COLD);
	madvise(g.mem, g.size, MADV_PAGEOUT);
	madvise(g.mem, g.size, MADV_REMOVE);
	gmem_assert_shared(&g, 0, NR);
	gmem_host_fill(&g, 0, NR, VAL);
	TEST_ASSERT(!msync(g.mem, g.size, MS_ASYNC), "msync() failed");
	kvm_madvise(g.mem, g.size, MADV_POPULATE_WRITE);

	gmem_to_private(&g, 0, NR, 0);
	gmem_assert_private(&g, 0, NR);
	kvm_madvise(g.mem, g.size, MADV_DONTNEED);
	TEST_ASSERT(madvise(g.mem, g.size, MADV_POPULATE_READ) == -1,
		    "MADV_POPULATE_READ of private pages worked");
	TEST_ASSERT(madvise(g.mem, g.size, MADV_POPULATE_WRITE) == -1,
		    "MADV_POPULATE_WRITE of private pages worked");
	gmem_guest_check_fill(self->vcpu, &g, 0, NR, VAL);
	gmem_destroy(&g);
}

/* A page locked in memory is nobody's page: it converts like any other. */
GMEM_TEST(mapping_mlocked)
{
	struct gmem g;

	gmem_new(&g, self->vm, NR, GMEM_SHARED_FILE);
	TEST_ASSERT(!mlock(g.mem, g.size), "mlock() failed, errno %d", errno);
	gmem_host_fill(&g, 0, NR, VAL);

	gmem_to_private(&g, FIRST, COUNT, 0);
	gmem_assert_private(&g, FIRST, COUNT);
	gmem_guest_check_fill(self->vcpu, &g, 0, NR, VAL);

	TEST_ASSERT(!munlock(g.mem, g.size), "munlock() failed, errno %d", errno);
	TEST_ASSERT(mlock(g.mem, g.size) == -1, "mlock() of private pages worked");
	munlock(g.mem, g.size);
	gmem_to_shared(&g, 0, NR, 0);
	gmem_host_check(&g, 0, NR, VAL);
	gmem_destroy(&g);
}

/* A memory policy on the mapping outlives conversions. */
GMEM_TEST(mapping_numa_policy)
{
	const unsigned long nodemask_0 = 1;
	struct gmem g;

	if (!is_multi_numa_node_system())
		SKIP(return, "One NUMA node only");

	gmem_new(&g, self->vm, NR, GMEM_SHARED_FILE);
	kvm_mbind(g.mem, g.size, MPOL_BIND, &nodemask_0, 8 * sizeof(nodemask_0), 0);
	gmem_host_fill(&g, 0, NR, VAL);
	gmem_to_private(&g, 0, NR, 0);
	gmem_guest_check_fill(self->vcpu, &g, 0, NR, VAL);
	gmem_to_shared(&g, 0, NR, 0);
	gmem_host_check(&g, 0, NR, VAL);
	gmem_destroy(&g);
}

/* A copy-on-write mapping would be a copy of guest memory: refused. */
GMEM_TEST(no_private_mapping)
{
	struct gmem g;
	void *mem;
	int i;

	for (i = 0; i < 2; i++) {
		gmem_create(&g, self->vm, NR * PAGE_SIZE,
			    i ? GMEM_SHARED_FILE : GMEM_PRIVATE_FILE);
		mem = mmap(NULL, g.size, PROT_READ, MAP_PRIVATE, g.fd, 0);
		TEST_ASSERT(mem == MAP_FAILED && errno == EINVAL,
			    "mmap(MAP_PRIVATE): errno %d", errno);
		gmem_destroy(&g);
	}
}

/* ---- The reference check: pages that someone else holds ---- */

/*
 * "EAGAIN (a page is held) with error_offset = byte offset in the file of the
 * first page in the way"; invariant 3, all or nothing; then it works.
 */
GMEM_TEST(held_in_pipe)
{
	int pipes[2], second[2], i;
	struct gmem g;

	gmem_new(&g, self->vm, NR, GMEM_SHARED_FILE);

	for (i = 0; i < ARRAY_SIZE(gmem_content_flags); i++) {
		if (gmem_content_flags[i] == GMEM_DISCARD)
			continue;

		gmem_host_fill(&g, 0, NR, VAL);
		hold_by_pipe(pipes, g.mem + 6 * PAGE_SIZE);
		hold_by_pipe(second, g.mem + 9 * PAGE_SIZE);
		expect_held(&g, 0, NR, gmem_content_flags[i], 6);
		expect_held(&g, FIRST, COUNT, gmem_content_flags[i], 6);
		expect_held(&g, 6, 1, gmem_content_flags[i], 6);
		expect_held(&g, 7, 3, gmem_content_flags[i], 9);
		gmem_assert_shared(&g, 0, NR);
		gmem_host_check(&g, 0, NR, VAL);
		gmem_guest_check_fill(self->vcpu, &g, 0, NR, VAL);

		release_pipe(pipes);
		release_pipe(second);
		gmem_to_private(&g, 0, NR, gmem_content_flags[i]);
		gmem_assert_private(&g, 0, NR);
		gmem_to_shared(&g, 0, NR, 0);
	}
	gmem_destroy(&g);
}

/* Pages around a held one convert; so does the held one, to shared. */
GMEM_TEST(held_elsewhere)
{
	struct gmem g;
	int pipes[2];

	new_filled_file(&g, self->vm);
	hold_by_pipe(pipes, g.mem + 6 * PAGE_SIZE);

	gmem_to_private(&g, 0, 6, 0);
	gmem_to_private(&g, 7, NR - 7, 0);
	gmem_to_shared(&g, 6, 1, 0);
	gmem_to_shared(&g, 6, 1, GMEM_PRESERVE);
	gmem_assert_private(&g, 0, 6);
	gmem_assert_shared(&g, 6, 1);
	gmem_assert_private(&g, 7, NR - 7);
	gmem_host_check(&g, 6, 1, VAL + 6);

	/* The private pages of a failed range stay what they are, too. */
	expect_held(&g, 0, NR, GMEM_ZERO, 6);
	gmem_assert_private(&g, 0, 6);
	gmem_assert_shared(&g, 6, 1);
	gmem_assert_private(&g, 7, NR - 7);
	gmem_guest_check_fill(self->vcpu, &g, 0, NR, VAL);

	release_pipe(pipes);
	gmem_to_private(&g, 0, NR, 0);
	gmem_guest_check_fill(self->vcpu, &g, 0, NR, VAL);
	gmem_destroy(&g);
}

/* A DMA pin is in the way until it is gone. */
GMEM_TEST(held_by_pin)
{
	struct gmem g;
	int ring;

	new_filled_file(&g, self->vm);

	ring = hold_by_pin(g.mem + 5 * PAGE_SIZE, 2 * PAGE_SIZE);
	if (ring < 0) {
		gmem_destroy(&g);
		SKIP(return, "Cannot pin a page with io_uring, errno %d", errno);
	}

	expect_held(&g, 0, NR, 0, 5);
	expect_held(&g, 6, 4, 0, 6);
	gmem_assert_shared(&g, 0, NR);
	gmem_host_check(&g, 0, NR, VAL);

	release_pin(ring);
	gmem_to_private(&g, 0, NR, 0);
	gmem_guest_check_fill(self->vcpu, &g, 0, NR, VAL);
	gmem_destroy(&g);
}

/*
 * "To private it needs no reference check: a holder of an old page keeps an
 * orphan that is no longer guest memory."
 */
GMEM_TEST(held_discard)
{
	int pipes[2], ring;
	struct gmem g;
	u64 buf[8];
	int i;

	new_filled_file(&g, self->vm);
	hold_by_pipe(pipes, g.mem + 6 * PAGE_SIZE);
	ring = hold_by_pin(g.mem + 7 * PAGE_SIZE, PAGE_SIZE);

	TEST_ASSERT_EQ(__gmem_convert(g.fd, 0, g.size, GMEM_PRIVATE, GMEM_DISCARD,
				      NULL), 0);
	gmem_assert_private(&g, 0, NR);
	gmem_guest_check_zero(self->vcpu, &g, 0, NR);
	gmem_guest_fill(self->vcpu, &g, 0, NR, OTHER);

	/* The holder has the old bytes, not the guest's new ones. */
	TEST_ASSERT_EQ(read(pipes[0], buf, sizeof(buf)), sizeof(buf));
	for (i = 0; i < ARRAY_SIZE(buf); i++)
		TEST_ASSERT_EQ(buf[i], VAL + 6);

	release_pipe(pipes);
	if (ring >= 0)
		release_pin(ring);
	gmem_to_shared(&g, 0, NR, 0);
	gmem_host_check(&g, 0, NR, OTHER);
	gmem_destroy(&g);
}

/* A hole in place of a held page frees the way: the holder keeps an orphan. */
GMEM_TEST(held_punched)
{
	struct gmem g;
	int pipes[2];
	u64 buf[8];

	new_filled_file(&g, self->vm);
	hold_by_pipe(pipes, g.mem + 6 * PAGE_SIZE);
	expect_held(&g, 0, NR, 0, 6);

	gmem_punch(&g, 6, 1);
	gmem_to_private(&g, 0, NR, 0);
	gmem_guest_check_zero(self->vcpu, &g, 6, 1);
	gmem_guest_fill(self->vcpu, &g, 6, 1, OTHER);
	TEST_ASSERT_EQ(read(pipes[0], buf, sizeof(buf)), sizeof(buf));
	TEST_ASSERT_EQ(buf[0], VAL + 6);
	release_pipe(pipes);
	gmem_destroy(&g);
}

/* ---- Other processes ---- */

static void child_touches(struct child *c, struct gmem *g)
{
	gmem_host_check(g, 0, NR, VAL);
	gmem_host_fill(g, 0, NR, OTHER);
	child_tells(c);

	child_waits(c);
	assert_part(g, true);
	child_tells(c);

	child_waits(c);
	gmem_host_check(g, 0, NR, VAL);
}

/* Invariant 6 reaches every process that maps the file. */
GMEM_TEST(fork_shares_mapping)
{
	struct child c;
	struct gmem g;

	new_filled_file(&g, self->vm);
	child_start(&c, child_touches, &g);

	parent_waits(&c);
	gmem_host_check(&g, 0, NR, OTHER);
	gmem_to_private(&g, FIRST, COUNT, 0);
	parent_tells(&c);

	parent_waits(&c);
	gmem_guest_fill(self->vcpu, &g, 0, NR, VAL);
	gmem_to_shared(&g, FIRST, COUNT, 0);
	parent_tells(&c);

	child_join(&c);
	gmem_destroy(&g);
}

static void child_holds(struct child *c, struct gmem *g)
{
	int pipes[2];

	hold_by_pipe(pipes, g->mem + 7 * PAGE_SIZE);
	child_tells(c);
	child_waits(c);
	release_pipe(pipes);
	child_tells(c);
	child_waits(c);
}

/* It does not matter who holds the page. */
GMEM_TEST(held_by_other_process)
{
	struct child c;
	struct gmem g;

	new_filled_file(&g, self->vm);
	child_start(&c, child_holds, &g);

	parent_waits(&c);
	expect_held(&g, FIRST, COUNT, 0, 7);
	gmem_assert_shared(&g, 0, NR);
	gmem_host_check(&g, 0, NR, VAL);
	parent_tells(&c);

	parent_waits(&c);
	gmem_to_private(&g, FIRST, COUNT, 0);
	gmem_assert_private(&g, FIRST, COUNT);
	parent_tells(&c);
	child_join(&c);
	gmem_destroy(&g);
}

#define REMOTE_PAGE	7ul

static bool remote_copy_writes;

/* A page that is not there: who touches it waits, in the kernel as well. */
static int missing_page(void **page)
{
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct uffdio_api api = { .api = UFFD_API };
	int uffd = syscall(__NR_userfaultfd, O_CLOEXEC);

	*page = kvm_mmap(PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	reg.range = (struct uffdio_range) { .start = (u64)*page, .len = PAGE_SIZE };
	TEST_ASSERT(uffd >= 0 && !ioctl(uffd, UFFDIO_API, &api) &&
		    !ioctl(uffd, UFFDIO_REGISTER, &reg), "userfaultfd: errno %d", errno);
	return uffd;
}

static void provide_page(int uffd, void *page, void *content)
{
	struct uffdio_copy copy = {
		.dst = (u64)page,
		.src = (u64)content,
		.len = PAGE_SIZE,
	};

	TEST_ASSERT(!ioctl(uffd, UFFDIO_COPY, &copy), "UFFDIO_COPY: errno %d", errno);
}

/* Of a word: here is this process's, there the file in its parent's mapping. */
struct remote_copy {
	void *here;
	void *there;
};

static ssize_t copy_word(struct remote_copy *copy)
{
	struct iovec local = { .iov_base = copy->here, .iov_len = 8 };
	struct iovec remote = { .iov_base = copy->there, .iov_len = 8 };

	if (remote_copy_writes)
		return process_vm_writev(getppid(), &local, 1, &remote, 1, 0);
	return process_vm_readv(getppid(), &local, 1, &remote, 1, 0);
}

static void *copy_thread(void *arg)
{
	TEST_ASSERT_EQ(copy_word(arg), 8);
	return NULL;
}

/*
 * The kernel has the parent's page before it touches the child's.  The child has
 * no mapping of its own, so that the parent's is what it goes through.
 */
static void child_copies(struct child *c, struct gmem *g)
{
	u64 content[PAGE_SIZE / sizeof(u64)] = { OTHER };
	struct remote_copy copy = { .there = g->mem + REMOTE_PAGE * PAGE_SIZE };
	struct uffd_msg msg;
	pthread_t thread;
	int uffd;

	kvm_munmap(g->mem, g->size);
	uffd = missing_page(&copy.here);
	kvm_pthread_create(&thread, NULL, copy_thread, &copy);
	TEST_ASSERT_EQ(read(uffd, &msg, sizeof(msg)), sizeof(msg));
	child_tells(c);

	child_waits(c);
	provide_page(uffd, copy.here, content);
	kvm_pthread_join(thread, NULL);
	TEST_ASSERT_EQ(READ_ONCE(*(u64 *)copy.here),
		       remote_copy_writes ? OTHER : VAL + REMOTE_PAGE);
	child_tells(c);

	/* By now the page is private. */
	child_waits(c);
	TEST_ASSERT(copy_word(&copy) == -1 && errno == EFAULT,
		    "Copy of a private page: errno %d", errno);
}

static void test_held_by_remote_copy(struct kvm_vcpu *vcpu, bool written)
{
	struct child c;
	struct gmem g;
	u64 *word;

	remote_copy_writes = written;
	new_filled_file(&g, vcpu->vm);
	word = (u64 *)(g.mem + REMOTE_PAGE * PAGE_SIZE);
	child_start(&c, child_copies, &g);

	parent_waits(&c);
	expect_held(&g, 0, NR, 0, REMOTE_PAGE);
	expect_held(&g, FIRST, COUNT, GMEM_ZERO, REMOTE_PAGE);
	gmem_assert_shared(&g, 0, NR);
	gmem_host_check(&g, 0, NR, VAL);
	parent_tells(&c);

	parent_waits(&c);
	TEST_ASSERT_EQ(READ_ONCE(*word), written ? OTHER : VAL + REMOTE_PAGE);
	WRITE_ONCE(*word, VAL + REMOTE_PAGE);
	gmem_to_private(&g, FIRST, COUNT, 0);
	parent_tells(&c);
	child_join(&c);
	gmem_guest_check_fill(vcpu, &g, 0, NR, VAL);
	gmem_destroy(&g);
}

/* Another process's copy, from or to the page, is stopped in the middle. */
GMEM_TEST(held_by_remote_copy)
{
	int uffd = syscall(__NR_userfaultfd, O_CLOEXEC);

	if (uffd < 0)
		SKIP(return, "No userfaultfd that stops the kernel, errno %d", errno);

	close(uffd);
	test_held_by_remote_copy(self->vcpu, false);
	test_held_by_remote_copy(self->vcpu, true);
}

static int try_punch(int fd, u64 first, u64 nr)
{
	return fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
			 first * PAGE_SIZE, nr * PAGE_SIZE) ? errno : 0;
}

/* What a process whose mm is not the VM's may do, and may not. */
static void check_foreign(int fd)
{
	struct gmem g = { .fd = fd, .size = NR * PAGE_SIZE };
	int i;

	for (i = 0; i < ARRAY_SIZE(gmem_content_flags); i++) {
		TEST_ASSERT_EQ(__gmem_convert(fd, 0, g.size, GMEM_PRIVATE,
					      gmem_content_flags[i], NULL), EIO);
		TEST_ASSERT_EQ(__gmem_convert(fd, 0, g.size, 0,
					      gmem_content_flags[i], NULL), EIO);
	}

	g.mem = kvm_mmap(g.size, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	assert_part(&g, true);
	gmem_host_check(&g, 0, FIRST, VAL);
	gmem_host_fill(&g, 0, FIRST, OTHER);

	/* Private pages aren't his to drop, by the file or by a mapping, as part or whole. */
	TEST_ASSERT_EQ(try_punch(fd, FIRST, 1), EPERM);
	TEST_ASSERT_EQ(try_punch(fd, END - 1, 2), EPERM);
	TEST_ASSERT_EQ(try_punch(fd, 0, NR), EPERM);
	TEST_ASSERT_EQ(try_punch(fd, FIRST, 1ul << 40), EPERM);
	TEST_ASSERT_EQ(try_punch(fd, NR, 1), 0);
	TEST_ASSERT(madvise(g.mem + FIRST * PAGE_SIZE, PAGE_SIZE, MADV_REMOVE) == -1 &&
		    errno == EPERM, "MADV_REMOVE of a private page: errno %d", errno);
	gmem_host_check(&g, 0, FIRST, OTHER);

	gmem_punch(&g, END, NR - END);
	gmem_host_check_zero(&g, END, NR - END);
	gmem_allocate(&g, END, NR - END);
	kvm_munmap(g.mem, g.size);
}

static void child_is_foreign(struct child *c, struct gmem *g)
{
	check_foreign(g->fd);
}

static void check_after_foreign(struct kvm_vcpu *vcpu, struct gmem *g)
{
	gmem_guest_check_fill(vcpu, g, 0, FIRST, OTHER);
	gmem_guest_check_fill(vcpu, g, FIRST, COUNT, VAL + FIRST);
	gmem_guest_check_zero(vcpu, g, END, NR - END);
	gmem_to_shared(g, 0, NR, 0);
	gmem_destroy(g);
}

/*
 * "EIO first: the caller's mm is not the VM's; whoever merely holds the fd may
 * mmap, fault and punch shared pages."
 */
GMEM_TEST(foreign_forked)
{
	struct child c;
	struct gmem g;

	new_mixed_file(&g, self->vm);
	child_start(&c, child_is_foreign, &g);
	child_join(&c);
	check_after_foreign(self->vcpu, &g);
}

static void send_fd(int sock, int fd)
{
	char control[CMSG_SPACE(sizeof(fd))] = {}, byte = 0;
	struct iovec iov = { .iov_base = &byte, .iov_len = 1 };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = sizeof(control),
	};
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);

	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(sizeof(fd));
	memcpy(CMSG_DATA(cmsg), &fd, sizeof(fd));
	TEST_ASSERT_EQ(sendmsg(sock, &msg, 0), 1);
}

static int receive_fd(int sock)
{
	char control[CMSG_SPACE(sizeof(int))], byte;
	struct iovec iov = { .iov_base = &byte, .iov_len = 1 };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = sizeof(control),
	};
	struct cmsghdr *cmsg;
	int fd;

	TEST_ASSERT_EQ(recvmsg(sock, &msg, 0), 1);
	cmsg = CMSG_FIRSTHDR(&msg);
	TEST_ASSERT(cmsg && cmsg->cmsg_type == SCM_RIGHTS, "No file received");
	memcpy(&fd, CMSG_DATA(cmsg), sizeof(fd));
	return fd;
}

#define FOREIGN_ARG	"--foreign"

/* The program starts itself again with a socket that brings the file. */
static int foreign_main(const char *arg)
{
	gmem_test_init();
	check_foreign(receive_fd(atoi_paranoid(arg)));
	return 0;
}

/* The same for a program that shares nothing with the VMM but the file. */
GMEM_TEST(foreign_executed)
{
	int socks[2], status;
	struct gmem g;
	char arg[16];
	pid_t pid;

	new_mixed_file(&g, self->vm);
	TEST_ASSERT(!socketpair(AF_UNIX, SOCK_STREAM, 0, socks), "socketpair() failed");
	snprintf(arg, sizeof(arg), "%d", socks[1]);
	fcntl(g.fd, F_SETFD, FD_CLOEXEC);

	pid = fork();
	if (!pid) {
		execl("/proc/self/exe", "foreign", FOREIGN_ARG, arg, NULL);
		_exit(1);
	}
	send_fd(socks[0], g.fd);
	TEST_ASSERT_EQ(waitpid(pid, &status, 0), pid);
	TEST_ASSERT(WIFEXITED(status) && !WEXITSTATUS(status),
		    "Foreign process failed, status 0x%x", status);

	close(socks[0]);
	close(socks[1]);
	check_after_foreign(self->vcpu, &g);
}

static void child_has_mapping(struct child *c, struct gmem *g)
{
	u8 *ro;

	/* Nothing else is left of the file here. */
	ro = kvm_mmap(g->size, PROT_READ, MAP_SHARED, g->fd);
	close(g->fd);
	TEST_ASSERT(madvise(ro + FIRST * PAGE_SIZE, PAGE_SIZE, MADV_REMOVE) == -1 &&
		    errno == EPERM, "Read-only, private: errno %d", errno);
	TEST_ASSERT(madvise(g->mem + FIRST * PAGE_SIZE, PAGE_SIZE, MADV_REMOVE) == -1 &&
		    errno == EPERM, "Inherited, private: errno %d", errno);
	TEST_ASSERT(!madvise(g->mem + END * PAGE_SIZE, PAGE_SIZE, MADV_REMOVE),
		    "Inherited, shared: errno %d", errno);
}

/* A mapping that outlived the conversion takes nothing from a running guest. */
GMEM_TEST(foreign_mapping)
{
	struct child c;
	struct gmem g;

	new_mixed_file(&g, self->vm);
	child_start(&c, child_has_mapping, &g);
	child_join(&c);
	gmem_guest_check_fill(self->vcpu, &g, 0, END, VAL);
	gmem_guest_check_zero(self->vcpu, &g, END, 1);

	/* The VM's own process may, by either way. */
	TEST_ASSERT(!madvise(g.mem + FIRST * PAGE_SIZE, PAGE_SIZE, MADV_REMOVE),
		    "MADV_REMOVE: errno %d", errno);
	gmem_punch(&g, FIRST + 1, 1);
	gmem_guest_check_zero(self->vcpu, &g, FIRST, 2);
	gmem_assert_private(&g, FIRST, COUNT);
	gmem_destroy(&g);
}

static void *convert_in_thread(void *arg)
{
	struct gmem *g = arg;

	gmem_to_private(g, FIRST, COUNT, 0);
	return NULL;
}

/* It is the mm that counts: any thread, and any copy of the descriptor. */
GMEM_TEST(thread_and_dup)
{
	struct gmem g, copy;
	pthread_t thread;

	new_filled_file(&g, self->vm);

	kvm_pthread_create(&thread, NULL, convert_in_thread, &g);
	kvm_pthread_join(thread, NULL);
	gmem_assert_private(&g, FIRST, COUNT);

	copy = g;
	copy.fd = kvm_dup(g.fd);
	gmem_to_shared(&copy, FIRST, COUNT, 0);
	gmem_assert_shared(&g, 0, NR);
	close(copy.fd);
	gmem_to_private(&g, FIRST, COUNT, 0);
	gmem_guest_check_fill(self->vcpu, &g, 0, NR, VAL);
	gmem_destroy(&g);
}

/* ---- Life and death ---- */

/* The file holds the VM, hence converts after the VM's descriptor is gone. */
GMEM_TEST(convert_after_vm_fd_closed)
{
	struct gmem g;

	new_filled_file(&g, self->vm);
	kvm_vm_release(self->vm);
	self->vm = NULL;

	gmem_to_private(&g, 0, NR, 0);
	gmem_assert_private(&g, 0, NR);
	gmem_to_shared(&g, FIRST, COUNT, 0);
	gmem_host_check(&g, FIRST, COUNT, VAL + FIRST);
	gmem_assert_private(&g, 0, FIRST);
	kvm_munmap(g.mem, g.size);
	close(g.fd);
}

/* A slot whose file is gone: KVM_RUN fails with EFAULT, nothing else does. */
GMEM_TEST(guest_touches_closed_file)
{
	u64 states[] = { GMEM_SHARED_FILE, GMEM_PRIVATE_FILE };
	struct gmem g;
	int i;

	for (i = 0; i < ARRAY_SIZE(states); i++) {
		gmem_new(&g, self->vm, NR, states[i]);
		gmem_guest_fill(self->vcpu, &g, 0, NR, VAL);

		/* The mapping holds the file. */
		close(g.fd);
		gmem_guest_check_fill(self->vcpu, &g, 0, NR, VAL);

		kvm_munmap(g.mem, g.size);
		gmem_guest_prepare(self->vcpu, GMEM_GUEST_CHECK, GMEM_GPA, NR, VAL, 1);
		gmem_guest_expect_fault(self->vcpu, EFAULT, GMEM_GPA);

		/* A new file in its place, and the guest goes on. */
		vm_set_user_memory_region2(self->vm, GMEM_SLOT, KVM_MEM_GUEST_MEMFD,
					   GMEM_GPA, 0, NULL, -1, 0);
		gmem_new(&g, self->vm, NR, states[i]);
		gmem_guest_finish(self->vcpu);
		gmem_destroy(&g);
	}
}

static void close_one(int what, struct gmem *g)
{
	switch (what) {
	case 0:
		kvm_close(g->vm->fd);
		break;
	case 1:
		kvm_close(g->fd);
		break;
	case 2:
		kvm_munmap(g->mem, g->size);
		g->mem = NULL;
		break;
	}

	if (!g->mem)
		return;
	gmem_host_check(g, 0, FIRST, VAL);
	gmem_assert_private(g, FIRST, COUNT);
}

/* Invariant 8: teardown in any order; what is left of the three goes on. */
GMEM_TEST(teardown_orders)
{
	static const int orders[][3] = {
		{ 0, 1, 2 }, { 0, 2, 1 }, { 1, 0, 2 },
		{ 1, 2, 0 }, { 2, 0, 1 }, { 2, 1, 0 },
	};
	struct gmem g;
	int i, j;

	for (i = 0; i < ARRAY_SIZE(orders); i++) {
		g.vm = vm_create_barebones_type(KVM_X86_SW_PROTECTED_VM);
		kvm_close(g.vm->stats.fd);
		gmem_new(&g, g.vm, NR, GMEM_SHARED_FILE);
		gmem_host_fill(&g, 0, NR, VAL);
		gmem_to_private(&g, FIRST, COUNT, 0);

		for (j = 0; j < 3; j++)
			close_one(orders[i][j], &g);
	}
}

static void test_punch(struct kvm_vcpu *vcpu, bool no_user_addr)
{
	struct gmem g;

	__gmem_new(&g, vcpu->vm, NR, GMEM_SHARED_FILE, no_user_addr);
	gmem_host_fill(&g, 0, NR, VAL);
	gmem_to_private(&g, FIRST, COUNT, 0);
	gmem_guest_check_fill(vcpu, &g, 0, NR, VAL);

	gmem_punch(&g, FIRST - 1, 2);
	gmem_punch(&g, END - 1, 2);
	assert_part(&g, true);

	gmem_guest_check_zero(vcpu, &g, FIRST - 1, 2);
	gmem_guest_check_zero(vcpu, &g, END - 1, 2);
	gmem_guest_check_fill(vcpu, &g, FIRST + 1, COUNT - 2, VAL + FIRST + 1);

	gmem_punch(&g, 0, NR);
	gmem_assert_private(&g, FIRST, COUNT);
	gmem_allocate(&g, 0, NR);
	gmem_assert_private(&g, FIRST, COUNT);
	gmem_guest_check_zero(vcpu, &g, 0, NR);
	gmem_destroy(&g);
}

/* Invariant 7: a hole keeps the state, whichever it is. */
GMEM_TEST(punch_keeps_state)
{
	test_punch(self->vcpu, false);
	test_punch(self->vcpu, true);
}

/* State belongs to the file, not to the slot: it outlives the slot. */
GMEM_TEST(slot_recreated_keeps_state)
{
	struct gmem g;

	new_mixed_file(&g, self->vm);

	gmem_unbind(&g);
	gmem_assert_private(&g, FIRST, COUNT);

	/* Conversion does not need a slot. */
	gmem_to_shared(&g, FIRST, 1, 0);
	gmem_to_private(&g, 0, 1, 0);

	gmem_bind(&g, GMEM_SLOT, GMEM_GPA);
	gmem_assert_private(&g, 0, 1);
	gmem_assert_shared(&g, 1, FIRST);
	gmem_assert_private(&g, FIRST + 1, COUNT - 1);
	gmem_guest_check_fill(self->vcpu, &g, 0, NR, VAL);
	gmem_destroy(&g);
}

/* ---- Ranges ---- */

/* First, last, all, and both sides of every edge that a map may have. */
GMEM_TEST(range_edges)
{
	static const struct {
		u64 first;
		u64 nr;
	} ranges[] = {
		{ 0, 1 }, { NR - 1, 1 }, { 0, NR }, { 0, NR - 1 }, { 1, NR - 1 },
		{ 1, 1 }, { NR / 2 - 1, 2 },
	};
	struct gmem g;
	u64 end;
	int i;

	new_filled_file(&g, self->vm);

	for (i = 0; i < ARRAY_SIZE(ranges); i++) {
		end = ranges[i].first + ranges[i].nr;
		gmem_to_private(&g, ranges[i].first, ranges[i].nr, 0);
		gmem_assert_shared(&g, 0, ranges[i].first);
		gmem_assert_private(&g, ranges[i].first, ranges[i].nr);
		gmem_assert_shared(&g, end, NR - end);
		gmem_guest_check_fill(self->vcpu, &g, 0, NR, VAL);

		gmem_to_shared(&g, ranges[i].first, ranges[i].nr, 0);
		gmem_assert_shared(&g, 0, NR);
		gmem_host_check(&g, 0, NR, VAL);
	}
	gmem_destroy(&g);
}

#define PAGES_2M	(SZ_2M / PAGE_SIZE)
#define PAGES_1G	(SZ_1G / PAGE_SIZE)

static void check_piece_range(struct gmem *g, u64 first, u64 nr, bool private)
{
	u64 total = g->size / PAGE_SIZE, end = first + nr;

	if (first)
		gmem_assert_state(g, first - 1, 1, !private);
	gmem_assert_state(g, first, 1, private);
	gmem_assert_state(g, first + nr / 2, 1, private);
	gmem_assert_state(g, end - 1, 1, private);
	if (end < total)
		gmem_assert_state(g, end, 1, !private);
}

/* Ranges across 2 MiB and 1 GiB, where a map may change its pieces. */
GMEM_TEST(range_across_pieces)
{
	static const struct {
		u64 first;
		u64 nr;
	} ranges[] = {
		{ PAGES_2M - 1, 2 },
		{ PAGES_2M - 1, PAGES_2M + 2 },
		{ PAGES_2M, PAGES_2M },
		{ 1, PAGES_2M },
		{ PAGES_1G - 1, 2 },
		{ PAGES_1G, 1 },
		{ PAGES_1G, PAGES_1G },
		{ PAGES_1G - 1, PAGES_1G + 2 },
		{ PAGES_1G - PAGES_2M, 2 * PAGES_2M },
		{ 1, 3 * PAGES_1G - 2 },
		{ 3 * PAGES_1G - 1, 1 },
		{ 0, 3 * PAGES_1G },
	};
	struct gmem g;
	int i;

	gmem_new(&g, self->vm, 3 * PAGES_1G, GMEM_SHARED_FILE);
	virt_map(self->vm, GMEM_GPA + SZ_1G - PAGE_SIZE,
		 GMEM_GPA + SZ_1G - PAGE_SIZE, 2);

	for (i = 0; i < ARRAY_SIZE(ranges); i++) {
		gmem_host_fill(&g, PAGES_1G - 1, 2, VAL);
		gmem_to_private(&g, ranges[i].first, ranges[i].nr, 0);
		check_piece_range(&g, ranges[i].first, ranges[i].nr, true);
		gmem_guest_check_fill(self->vcpu, &g, PAGES_1G - 1, 2, VAL);

		gmem_to_private(&g, 0, 3 * PAGES_1G, 0);
		gmem_to_shared(&g, ranges[i].first, ranges[i].nr, 0);
		check_piece_range(&g, ranges[i].first, ranges[i].nr, false);
		gmem_guest_check_fill(self->vcpu, &g, PAGES_1G - 1, 2, VAL);
		gmem_to_shared(&g, 0, 3 * PAGES_1G, 0);
	}
	gmem_destroy(&g);
}

/* error_offset counts from the start of the file, however far away. */
GMEM_TEST(range_held_far_away)
{
	u64 held = 2 * PAGES_1G + 5;
	struct gmem g;
	int pipes[2];

	gmem_new(&g, self->vm, 3 * PAGES_1G, GMEM_SHARED_FILE);
	gmem_host_fill(&g, 3, 1, VAL);
	gmem_host_fill(&g, held, 1, VAL);
	hold_by_pipe(pipes, g.mem + held * PAGE_SIZE);

	expect_held(&g, 0, 3 * PAGES_1G, 0, held);
	expect_held(&g, PAGES_1G + 7, PAGES_1G, 0, held);
	gmem_assert_shared(&g, 3, 1);
	gmem_assert_shared(&g, PAGES_1G + 7, 1);
	gmem_host_check(&g, held, 1, VAL);

	release_pipe(pipes);
	gmem_to_private(&g, 0, 3 * PAGES_1G, 0);
	gmem_assert_private(&g, 3, 1);
	gmem_assert_private(&g, held, 1);
	gmem_destroy(&g);
}

#define PIECES_1T	1024

/* Long enough for any machine, and no time for 268,435,456 pages. */
#define MAX_NS		(10ul * NSEC_PER_SEC)

static void convert_in_time(struct gmem *g, u64 first, u64 nr, u64 attrs, u64 flags)
{
	u64 start = gmem_now_ns(), ns;

	gmem_convert_pages(g, first, nr, attrs, flags);
	ns = gmem_now_ns() - start;
	TEST_ASSERT(ns < MAX_NS, "Converting %lu pages took %lu ns", nr, ns);
}

static void convert_all(struct gmem *g, u64 attrs, u64 flags)
{
	convert_in_time(g, 0, g->size / PAGE_SIZE, attrs, flags);
}

/* Invariant 9: cost follows what is there, not the pages of the range. */
GMEM_TEST(range_one_tib)
{
	struct gmem g;
	u64 i;

	gmem_create(&g, self->vm, PIECES_1T * (u64)SZ_1G, GMEM_SHARED_FILE);
	for (i = 0; i < PIECES_1T; i += 16)
		gmem_host_fill(&g, i * PAGES_1G + i, 1, VAL + i);

	convert_all(&g, GMEM_PRIVATE, 0);
	for (i = 0; i < PIECES_1T; i += 8)
		gmem_assert_private(&g, i * PAGES_1G + i, 1);

	convert_all(&g, 0, 0);
	for (i = 0; i < PIECES_1T; i += 16)
		gmem_host_check(&g, i * PAGES_1G + i, 1, VAL + i);

	/* And from a map of many small pieces. */
	for (i = 0; i < PIECES_1T; i += 16)
		gmem_to_private(&g, i * PAGES_1G + i, 1, 0);
	convert_all(&g, GMEM_PRIVATE, GMEM_DISCARD);
	convert_all(&g, 0, GMEM_ZERO);
	for (i = 0; i < PIECES_1T; i += 16)
		gmem_host_check_zero(&g, i * PAGES_1G + i, 1);
	gmem_destroy(&g);
}

/* The largest file there can be, and four pages of it that can be looked at. */
static void create_largest(struct gmem *g, struct gmem *window, struct kvm_vm *vm,
			   u64 first)
{
	*g = (struct gmem) {
		.vm = vm,
		.flags = GMEM_SHARED_FILE,
		.size = BIT(63) - PAGE_SIZE,
	};
	g->fd = vm_create_guest_memfd(vm, g->size, g->flags);

	*window = *g;
	window->size = 4 * PAGE_SIZE;
	window->mem = __kvm_mmap(window->size, PROT_READ | PROT_WRITE, MAP_SHARED, g->fd,
				 first * PAGE_SIZE);
}

/* Uniform stretches cost next to nothing, however long; what counts is their ends. */
GMEM_TEST(range_largest_file)
{
	u64 nr = (BIT(63) - PAGE_SIZE) / PAGE_SIZE, mid = nr / 3, start;
	struct gmem g, window;

	create_largest(&g, &window, self->vm, mid);
	gmem_host_fill(&window, 1, 1, VAL);
	gmem_host_fill(&window, 3, 1, VAL + 3);

	convert_all(&g, GMEM_PRIVATE, 0);
	gmem_assert_private(&window, 0, 4);

	/* A page in the middle, half the file from there on, and one back. */
	convert_in_time(&g, mid + 1, 1, 0, 0);
	gmem_assert_private(&window, 0, 1);
	gmem_host_check(&window, 1, 1, VAL);
	gmem_assert_private(&window, 2, 2);
	convert_in_time(&g, mid + 1, nr / 2, 0, 0);
	gmem_assert_private(&window, 0, 1);
	gmem_assert_shared(&window, 1, 3);
	convert_in_time(&g, mid + 2, 1, GMEM_PRIVATE, 0);
	gmem_assert_shared(&window, 1, 1);
	gmem_assert_private(&window, 2, 1);
	gmem_host_check(&window, 3, 1, VAL + 3);

	convert_all(&g, 0, 0);
	gmem_host_check(&window, 1, 1, VAL);
	gmem_host_check(&window, 3, 1, VAL + 3);

	/* From a mixed map to private, and so to its end. */
	convert_in_time(&g, mid + 3, nr / 3, GMEM_PRIVATE, 0);
	gmem_assert_shared(&window, 0, 3);
	gmem_assert_private(&window, 3, 1);
	convert_all(&g, GMEM_PRIVATE, GMEM_DISCARD);
	gmem_assert_private(&window, 0, 4);

	start = gmem_now_ns();
	kvm_munmap(window.mem, window.size);
	gmem_destroy(&g);
	TEST_ASSERT(gmem_now_ns() - start < MAX_NS, "The file takes too long to close");
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], FOREIGN_ARG))
		return foreign_main(argv[2]);

	return test_harness_run(argc, argv);
}
