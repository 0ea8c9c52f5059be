// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a VMM that was written for another tree's guest_memfd with in-place conversion
 * does and looks at, beyond what the other tests cover anyway: files that are neither
 * mmap-able nor shared, helpers that convert, the structure and when it is written,
 * names of page sizes, the module's parameter.
 */
#include <sys/stat.h>

#include "gmem_fixture.h"

#define SHARED_CONTROL	GUEST_MEMFD_FLAG_SHARED_CONTROL

/* ---- A file with flags 0: its first use says what it is ---- */

static int vm_attributes(struct kvm_vm *vm, gpa_t gpa, u64 nr, u64 attributes)
{
	struct kvm_memory_attributes attr = {
		.address = gpa,
		.size = nr * PAGE_SIZE,
		.attributes = attributes,
	};

	return __vm_ioctl(vm, KVM_SET_MEMORY_ATTRIBUTES, &attr) ? errno : 0;
}

GMEM_TEST(converted_first)
{
	struct gmem g;

	gmem_create(&g, self->vm, NR * PAGE_SIZE, 0);
	gmem_allocate(&g, 0, NR / 2);
	gmem_to_shared(&g, FIRST, COUNT, 0);
	gmem_to_private(&g, FIRST, 1, 0);

	/* An in-place file for life: one backing, whose state is its own. */
	gmem_bind(&g, GMEM_SLOT, GMEM_GPA);
	TEST_ASSERT_EQ(vm_attributes(self->vm, GMEM_GPA, NR, GMEM_PRIVATE), EINVAL);
	TEST_ASSERT_EQ(vm_attributes(self->vm, GMEM_GPA, NR, 0), EINVAL);
	gmem_guest_fill(self->vcpu, &g, 0, NR, VAL);
	gmem_to_private(&g, 0, NR, 0);
	gmem_guest_check_fill(self->vcpu, &g, 0, NR, VAL);
	gmem_unbind(&g);
	gmem_to_shared(&g, 0, NR, 0);
	gmem_bind(&g, GMEM_SLOT, GMEM_GPA);
	gmem_guest_check_fill(self->vcpu, &g, 0, NR, VAL);

	TEST_ASSERT(mmap(NULL, g.size, PROT_READ, MAP_SHARED, g.fd, 0) == MAP_FAILED,
		    "It can be mapped");
	gmem_destroy(&g);
}

GMEM_TEST(bound_first)
{
	struct gmem g;
	u8 *mem;

	mem = kvm_mmap(NR * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
	gmem_create(&g, self->vm, NR * PAGE_SIZE, 0);
	vm_set_user_memory_region2(self->vm, GMEM_SLOT, KVM_MEM_GUEST_MEMFD, GMEM_GPA,
				   g.size, mem, g.fd, 0);
	g.gpa = GMEM_GPA;

	/* One of two backings for life, also when the slot is gone. */
	TEST_ASSERT_EQ(__gmem_convert(g.fd, 0, g.size, 0, 0, NULL), ENOTTY);
	gmem_guest_fill(self->vcpu, &g, 0, NR, VAL);
	TEST_ASSERT_EQ(*(u64 *)mem, VAL);
	TEST_ASSERT_EQ(vm_attributes(self->vm, GMEM_GPA, NR, GMEM_PRIVATE), 0);
	gmem_guest_check_zero(self->vcpu, &g, 0, NR);
	TEST_ASSERT_EQ(vm_attributes(self->vm, GMEM_GPA, NR, 0), 0);

	vm_set_user_memory_region2(self->vm, GMEM_SLOT, 0, GMEM_GPA, 0, NULL, -1, 0);
	TEST_ASSERT_EQ(__gmem_convert(g.fd, 0, g.size, 0, 0, NULL), ENOTTY);
	TEST_ASSERT_EQ(__gmem_convert(g.fd, 0, g.size, GMEM_PRIVATE, 0, NULL), ENOTTY);
	gmem_destroy(&g);
	kvm_munmap(mem, NR * PAGE_SIZE);
}

/* What fails before it has a range decides nothing. */
GMEM_TEST(malformed_first)
{
	struct gmem g;

	gmem_create(&g, self->vm, NR * PAGE_SIZE, 0);
	TEST_ASSERT_EQ(__gmem_convert(g.fd, 1, PAGE_SIZE, 0, 0, NULL), EINVAL);
	TEST_ASSERT_EQ(__gmem_convert(g.fd, 0, g.size + PAGE_SIZE, 0, 0, NULL), EINVAL);
	TEST_ASSERT_EQ(__gmem_convert(g.fd, 0, PAGE_SIZE, ~0ull, 0, NULL), EINVAL);
	TEST_ASSERT(ioctl(g.fd, KVM_SET_MEMORY_ATTRIBUTES2, NULL) == -1 && errno == EFAULT,
		    "errno %d", errno);
	gmem_bind(&g, GMEM_SLOT, GMEM_GPA);
	TEST_ASSERT_EQ(__gmem_convert(g.fd, 0, PAGE_SIZE, 0, 0, NULL), ENOTTY);
	gmem_destroy(&g);
}

/* ---- Who may convert ---- */

static void child_converts(struct child *c, struct gmem *g)
{
	gmem_to_shared(g, FIRST, COUNT, GMEM_PRESERVE);
	gmem_host_check(g, 0, NR, VAL);
	gmem_host_fill(g, FIRST, COUNT, OTHER);
	gmem_to_private(g, 0, NR, GMEM_PRESERVE);
	gmem_punch(g, NR - 1, 1);
}

GMEM_TEST(helper_converts)
{
	struct child c;
	struct gmem g;

	gmem_new(&g, self->vm, NR, GMEM_SHARED_FILE | SHARED_CONTROL);
	gmem_host_fill(&g, 0, NR, VAL);
	gmem_to_private(&g, FIRST, COUNT, 0);
	child_start(&c, child_converts, &g);
	child_join(&c);

	gmem_assert_private(&g, 0, NR);
	gmem_guest_check_fill(self->vcpu, &g, 0, FIRST, VAL);
	gmem_guest_check_fill(self->vcpu, &g, FIRST, COUNT, OTHER);
	gmem_guest_check_zero(self->vcpu, &g, NR - 1, 1);
	gmem_destroy(&g);
}

static void child_is_refused(struct child *c, struct gmem *g)
{
	TEST_ASSERT_EQ(__gmem_convert(g->fd, 0, g->size, 0, 0, NULL), EIO);
	TEST_ASSERT_EQ(__gmem_convert(g->fd, 0, g->size, GMEM_PRIVATE, 0, NULL), EIO);
}

GMEM_TEST(helper_refused)
{
	struct child c;
	struct gmem g;

	new_mixed_file(&g, self->vm);
	child_start(&c, child_is_refused, &g);
	child_join(&c);
	assert_part(&g, true);
	gmem_destroy(&g);
}

/* ---- The structure ---- */

/* "No write-back before the range is known to be good." */
GMEM_TEST(malformed_in_read_only_memory)
{
	struct kvm_memory_attributes2 *attr;
	struct gmem g;
	int pipes[2];

	new_filled_file(&g, self->vm);
	attr = kvm_mmap(PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	*attr = (struct kvm_memory_attributes2) {
		.size = PAGE_SIZE + 1,
		.attributes = GMEM_PRIVATE,
		.error_offset = GMEM_SENTINEL,
	};
	TEST_ASSERT(ioctl(g.fd, KVM_SET_MEMORY_ATTRIBUTES2, attr) == -1 && errno == EINVAL,
		    "Writable: errno %d", errno);
	TEST_ASSERT_EQ(attr->error_offset, GMEM_SENTINEL);
	TEST_ASSERT(!mprotect(attr, PAGE_SIZE, PROT_READ), "mprotect() failed");
	TEST_ASSERT(ioctl(g.fd, KVM_SET_MEMORY_ATTRIBUTES2, attr) == -1 && errno == EINVAL,
		    "Read-only: errno %d", errno);

	/* With a good range there is something to tell, and nowhere to. */
	TEST_ASSERT(!mprotect(attr, PAGE_SIZE, PROT_READ | PROT_WRITE), "mprotect() failed");
	attr->size = PAGE_SIZE;
	hold_by_pipe(pipes, g.mem);
	TEST_ASSERT(!mprotect(attr, PAGE_SIZE, PROT_READ), "mprotect() failed");
	TEST_ASSERT(ioctl(g.fd, KVM_SET_MEMORY_ATTRIBUTES2, attr) == -1 && errno == EFAULT,
		    "Read-only, held: errno %d", errno);
	gmem_assert_shared(&g, 0, NR);
	release_pipe(pipes);
	gmem_destroy(&g);
}

/* "A diagnostic, not a place to go on from": nothing before it has changed. */
GMEM_TEST(nothing_changed_before_error_offset)
{
	struct gmem g;
	int pipes[2];

	new_filled_file(&g, self->vm);
	hold_by_pipe(pipes, g.mem + 6 * PAGE_SIZE);
	expect_held(&g, 0, NR, 0, 6);
	gmem_assert_shared(&g, 0, NR);
	release_pipe(pipes);
	gmem_to_private(&g, 0, NR, 0);
	gmem_guest_check_fill(self->vcpu, &g, 0, NR, VAL);
	gmem_destroy(&g);
}

/* ---- Names of things ---- */

static int create(struct kvm_vm *vm, u64 flags, u64 page_shift, u64 reserved)
{
	struct kvm_create_guest_memfd args = {
		.size = SZ_4M,
		.flags = flags,
	};
	int fd;

	args.reserved[5] = reserved;
	args.page_shift = page_shift;
	fd = __vm_ioctl(vm, KVM_CREATE_GUEST_MEMFD, &args);
	if (fd >= 0)
		close(fd);
	return fd < 0 ? errno : 0;
}

GMEM_TEST(page_shift)
{
	const u64 huge = GMEM_SHARED_FILE | GUEST_MEMFD_FLAG_HUGE;

	if (!(vm_check_cap(self->vm, KVM_CAP_GUEST_MEMFD_FLAGS) & GUEST_MEMFD_FLAG_HUGE))
		SKIP(return, "No large folios");

	TEST_ASSERT_EQ(create(self->vm, huge, 0, 0), 0);
	TEST_ASSERT_EQ(create(self->vm, huge, 21, 0), 0);
	TEST_ASSERT_EQ(create(self->vm, huge, 12, 0), EINVAL);
	TEST_ASSERT_EQ(create(self->vm, huge, 30, 0), EINVAL);
	TEST_ASSERT_EQ(create(self->vm, huge, 21 | 1ull << 32, 0), EINVAL);
	TEST_ASSERT_EQ(create(self->vm, huge, 21, 1), EINVAL);

	/* "Garbage is accepted" where no flag gives it a meaning. */
	TEST_ASSERT_EQ(create(self->vm, GMEM_SHARED_FILE, 99, ~0ull), 0);
}

GMEM_TEST(module_parameter)
{
	const char *path = "/sys/module/kvm/parameters/gmem_in_place_conversion";
	char text[4] = {};
	int fd;

	fd = open(path, O_RDONLY);
	TEST_ASSERT(fd >= 0, "%s: errno %d", path, errno);
	TEST_ASSERT_EQ(read(fd, text, sizeof(text) - 1), 2);
	TEST_ASSERT(!strcmp(text, "Y\n"), "The parameter is \"%s\"", text);
	close(fd);
	TEST_ASSERT(gmem_write_file(path, "N"), "The parameter can be changed");
}

/* ---- What is present ---- */

static void expect_seek(int fd, int whence, off_t from, off_t want)
{
	off_t r = lseek(fd, from, whence);

	TEST_ASSERT(r == want, "lseek(0x%lx, %s): 0x%lx, want 0x%lx", (long)from,
		    whence == SEEK_DATA ? "SEEK_DATA" : "SEEK_HOLE", (long)r, (long)want);
	TEST_ASSERT(r >= 0 || errno == ENXIO, "errno %d", errno);
}

static u64 nr_present(int fd)
{
	struct stat st;

	TEST_ASSERT(!fstat(fd, &st), "fstat() failed");
	return st.st_blocks * 512 / PAGE_SIZE;
}

GMEM_TEST(seek_and_blocks)
{
	struct gmem g;

	gmem_new(&g, self->vm, NR, GMEM_SHARED_FILE);
	TEST_ASSERT_EQ(nr_present(g.fd), 0);
	expect_seek(g.fd, SEEK_DATA, 0, -1);
	expect_seek(g.fd, SEEK_HOLE, 0, 0);
	TEST_ASSERT_EQ(lseek(g.fd, 0, SEEK_END), g.size);

	/* Present is present, on either side, and touched or not. */
	gmem_host_fill(&g, FIRST, COUNT, VAL);
	gmem_to_private(&g, FIRST + 1, 2, 0);
	gmem_allocate(&g, NR - 1, 1);
	TEST_ASSERT_EQ(nr_present(g.fd), COUNT + 1);
	expect_seek(g.fd, SEEK_DATA, 0, FIRST * PAGE_SIZE);
	expect_seek(g.fd, SEEK_DATA, FIRST * PAGE_SIZE + 7, FIRST * PAGE_SIZE + 7);
	expect_seek(g.fd, SEEK_HOLE, FIRST * PAGE_SIZE + 7, END * PAGE_SIZE);
	expect_seek(g.fd, SEEK_HOLE, 3, 3);
	expect_seek(g.fd, SEEK_DATA, END * PAGE_SIZE, (NR - 1) * PAGE_SIZE);
	expect_seek(g.fd, SEEK_HOLE, (NR - 1) * PAGE_SIZE, g.size);
	expect_seek(g.fd, SEEK_DATA, g.size, -1);
	expect_seek(g.fd, SEEK_HOLE, g.size, -1);

	gmem_allocate(&g, 0, NR);
	expect_seek(g.fd, SEEK_HOLE, 0, g.size);
	expect_seek(g.fd, SEEK_DATA, 0, 0);
	gmem_punch(&g, 0, FIRST);
	gmem_punch(&g, END, NR - END - 1);

	gmem_punch(&g, FIRST + 1, 1);
	TEST_ASSERT_EQ(nr_present(g.fd), COUNT);
	expect_seek(g.fd, SEEK_HOLE, FIRST * PAGE_SIZE, (FIRST + 1) * PAGE_SIZE);
	gmem_to_shared(&g, 0, NR, GMEM_DISCARD);
	TEST_ASSERT_EQ(nr_present(g.fd), 0);
	gmem_destroy(&g);
}

GMEM_TEST(seek_huge)
{
	const u64 nr_huge = SZ_2M / PAGE_SIZE, hole = 40;
	struct gmem g;
	u64 i;

	gmem_create(&g, self->vm, SZ_8M, GMEM_SHARED_FILE | GUEST_MEMFD_FLAG_HUGE);
	gmem_allocate(&g, 0, nr_huge);
	gmem_allocate(&g, 2 * nr_huge, nr_huge);
	TEST_ASSERT_EQ(nr_present(g.fd), 2 * nr_huge);
	expect_seek(g.fd, SEEK_DATA, SZ_2M - 1, SZ_2M - 1);
	expect_seek(g.fd, SEEK_DATA, SZ_2M, SZ_4M);
	for (i = 0; i < nr_huge; i++)
		expect_seek(g.fd, SEEK_HOLE, i * PAGE_SIZE, SZ_2M);

	/* What a split leaves is of all sizes. */
	gmem_punch(&g, hole, 1);
	for (i = 0; i < nr_huge; i++) {
		expect_seek(g.fd, SEEK_HOLE, i * PAGE_SIZE,
			    i <= hole ? hole * PAGE_SIZE : SZ_2M);
		expect_seek(g.fd, SEEK_DATA, i * PAGE_SIZE,
			    (i == hole ? i + 1 : i) * PAGE_SIZE);
	}
	gmem_destroy(&g);
}

TEST_HARNESS_MAIN
