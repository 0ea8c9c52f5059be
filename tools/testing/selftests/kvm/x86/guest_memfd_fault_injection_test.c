// SPDX-License-Identifier: GPL-2.0-only
/*
 * Every allocation on every path of guest_memfd fails once.
 *
 * A call is made with the n-th allocation of this thread failing, for n = 1, 2,
 * ... until a call had less than n of them.  Either it works, or it fails with
 * ENOMEM, has changed nothing, and works when it is made again.
 */
#include "gmem_fixture.h"

#include <dirent.h>

/* No path has nearly as many allocations. */
#define MAX_NTH		1000

/* ---- Injection, see iommufd_fail_nth.c ---- */

#define DEBUGFS		"/sys/kernel/debug/"

/* Let allocations that may sleep fail, single pages among them, in silence. */
static bool injection_setup(void)
{
	DIR *debugfs = opendir(DEBUGFS);
	struct dirent *entry;
	char path[300];

	if (!debugfs || gmem_write_file(DEBUGFS "failslab/ignore-gfp-wait", "N"))
		return false;

	gmem_write_file(DEBUGFS "fail_page_alloc/ignore-gfp-wait", "N");
	gmem_write_file(DEBUGFS "fail_page_alloc/ignore-gfp-highmem", "N");
	gmem_write_file(DEBUGFS "fail_page_alloc/min-order", "0");

	while ((entry = readdir(debugfs))) {
		if (strncmp(entry->d_name, "fail", 4))
			continue;
		snprintf(path, sizeof(path), DEBUGFS "%s/verbose", entry->d_name);
		gmem_write_file(path, "0");
	}
	closedir(debugfs);
	return true;
}

static int fail_nth_fd = -1;

static bool fail_nth_open(void)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/task/%u/fail-nth", kvm_gettid());
	fail_nth_fd = open(path, O_RDWR);
	return fail_nth_fd >= 0;
}

static void fail_nth_arm(int nth)
{
	char text[16];
	int len = snprintf(text, sizeof(text), "%d", nth);

	TEST_ASSERT_EQ(pwrite(fail_nth_fd, text, len, 0), len);
}

/* Returns whether the failure has happened; reading may be what fails. */
static bool fail_nth_disarm(void)
{
	char text[16] = {};
	ssize_t len = pread(fail_nth_fd, text, sizeof(text) - 1, 0);
	bool fired = len > 0 && !atoi(text);

	if (pwrite(fail_nth_fd, "0", 1, 0) != 1)
		TEST_ASSERT_EQ(pwrite(fail_nth_fd, "0", 1, 0), 1);
	return fired;
}

/* ---- One path ---- */

struct context {
	struct kvm_vcpu *vcpu;
	struct gmem g;
	u64 attributes;
	u64 flags;
	u64 nr;
	int fd;

	/* A file that is one large page, of which only NR pages are looked at. */
	bool large;
};

/* Pages and creation flags of the file of most paths. */
static u64 file_pages(struct context *c)
{
	return c->large ? SZ_2M / PAGE_SIZE : NR;
}

static u64 large_flag(struct context *c)
{
	return c->large ? GUEST_MEMFD_FLAG_HUGE : 0;
}

struct path {
	const char *name;
	/* Not injected into, before each call. */
	void (*prepare)(struct context *c);
	/* Returns the error number. */
	int (*call)(struct context *c);
	/* After an error, and after success. */
	void (*unchanged)(struct context *c);
	void (*done)(struct context *c);
};

static void sweep(const struct path *path, struct context *c)
{
	int nth, ret, failed = 0;
	bool fired;

	for (nth = 1; nth < MAX_NTH; nth++) {
		path->prepare(c);

		fail_nth_arm(nth);
		ret = path->call(c);
		fired = fail_nth_disarm();

		TEST_ASSERT(!ret || (fired && ret == ENOMEM), "%s, allocation %d %s: %s",
			    path->name, nth, fired ? "failed" : "did not fail",
			    strerror(ret));
		if (ret) {
			failed++;
			path->unchanged(c);
			ret = path->call(c);
			TEST_ASSERT(!ret, "%s, once more after allocation %d: %s",
				    path->name, nth, strerror(ret));
		}
		path->done(c);
		if (!fired)
			break;
	}
	TEST_ASSERT(nth < MAX_NTH, "%s: no end of allocations", path->name);
	ksft_print_msg("%s: %d allocations, %d failures\n", path->name, nth - 1, failed);
}

static bool injection_ready(void)
{
	return injection_setup() && fail_nth_open();
}

#define NO_INJECTION	"No CONFIG_FAULT_INJECTION_DEBUG_FS and CONFIG_FAILSLAB"
#define SWEEP_TEST(name)	GMEM_TEST_IF(name, injection_ready(), NO_INJECTION)

static void nothing(struct context *c)
{
}

/* ---- Creation and slots ---- */

static int create_call(struct context *c)
{
	c->fd = __vm_create_guest_memfd(c->vcpu->vm, NR * PAGE_SIZE, c->flags);
	return c->fd < 0 ? errno : 0;
}

static void create_done(struct context *c)
{
	TEST_ASSERT_EQ(__gmem_convert(c->fd, 0, PAGE_SIZE, GMEM_PRIVATE, 0, NULL), 0);
	close(c->fd);
}

SWEEP_TEST(create)
{
	static const struct path path = {
		"create", nothing, create_call, nothing, create_done,
	};
	struct context c = { .vcpu = vcpu };

	c.flags = GMEM_SHARED_FILE;
	sweep(&path, &c);
	c.flags = GMEM_PRIVATE_FILE | GUEST_MEMFD_FLAG_ZERO;
	sweep(&path, &c);
}

static void new_file(struct context *c)
{
	gmem_create(&c->g, c->vcpu->vm, NR * PAGE_SIZE, GMEM_SHARED_FILE);
	gmem_host_fill(&c->g, 0, NR, VAL);
	gmem_to_private(&c->g, FIRST, COUNT, 0);
	c->g.gpa = GMEM_GPA;
}

/* The library's function asks for a capability first, which may fail as well. */
static int set_region(struct context *c, u64 size)
{
	struct kvm_userspace_memory_region2 region = {
		.slot = GMEM_SLOT,
		.flags = KVM_MEM_GUEST_MEMFD,
		.guest_phys_addr = GMEM_GPA,
		.memory_size = size,
		.userspace_addr = (u64)c->g.mem,
		.guest_memfd = c->g.fd,
	};

	return __vm_ioctl(c->vcpu->vm, KVM_SET_USER_MEMORY_REGION2, &region) ? errno : 0;
}

static int bind_call(struct context *c)
{
	return set_region(c, c->g.size);
}

static void check_file(struct context *c)
{
	assert_part(&c->g, true);
	gmem_host_check(&c->g, 0, FIRST, VAL);
	gmem_host_check(&c->g, END, NR - END, VAL + END);
}

static void bind_done(struct context *c)
{
	c->g.slot = GMEM_SLOT;
	check_file(c);
	gmem_guest_check_fill(c->vcpu, &c->g, 0, NR, VAL);
	gmem_destroy(&c->g);
}

SWEEP_TEST(bind)
{
	static const struct path path = {
		"bind", new_file, bind_call, check_file, bind_done,
	};
	struct context c = { .vcpu = vcpu };

	sweep(&path, &c);
}

static void new_bound_file(struct context *c)
{
	new_file(c);
	gmem_bind(&c->g, GMEM_SLOT, GMEM_GPA);
	gmem_guest_check_fill(c->vcpu, &c->g, 0, NR, VAL);
}

static int unbind_call(struct context *c)
{
	return set_region(c, 0);
}

static void still_bound(struct context *c)
{
	check_file(c);
	gmem_guest_check_fill(c->vcpu, &c->g, 0, NR, VAL);
}

static void unbind_done(struct context *c)
{
	c->g.slot = 0;
	check_file(c);
	gmem_destroy(&c->g);
}

SWEEP_TEST(unbind)
{
	static const struct path path = {
		"unbind", new_bound_file, unbind_call, still_bound, unbind_done,
	};
	struct context c = { .vcpu = vcpu };

	sweep(&path, &c);
}

/* ---- Conversion ---- */

static int convert_call(struct context *c)
{
	u64 error_offset = 0;
	int i, r;

	for (i = 0; i < 1000; i++) {
		r = __gmem_convert(c->g.fd, FIRST * PAGE_SIZE, c->nr * PAGE_SIZE,
				   c->attributes, c->flags, &error_offset);
		if (r != EAGAIN)
			break;
	}

	/* "ENOMEM (error_offset = start of the request)" */
	TEST_ASSERT(r != ENOMEM || error_offset == FIRST * PAGE_SIZE,
		    "error_offset 0x%lx", error_offset);
	return r;
}

static void bound_file_in_one_state(struct context *c)
{
	bool to_private = c->attributes;

	gmem_new(&c->g, c->vcpu->vm, file_pages(c),
		 (to_private ? GMEM_SHARED_FILE : GMEM_PRIVATE_FILE) | large_flag(c));
	gmem_guest_fill(c->vcpu, &c->g, 0, NR, VAL);
}

static void state_unchanged(struct context *c)
{
	gmem_assert_state(&c->g, 0, NR, !c->attributes);
	gmem_guest_check_fill(c->vcpu, &c->g, 0, NR, VAL);
}

static void converted(struct context *c)
{
	assert_part(&c->g, c->attributes);
	gmem_guest_check_fill(c->vcpu, &c->g, 0, FIRST, VAL);
	if (c->flags == GMEM_PRESERVE)
		gmem_guest_check_fill(c->vcpu, &c->g, FIRST, COUNT, VAL + FIRST);
	else
		gmem_guest_check_zero(c->vcpu, &c->g, FIRST, COUNT);
	gmem_guest_check_fill(c->vcpu, &c->g, END, NR - END, VAL + END);
	gmem_destroy(&c->g);
}

/* Every allocation of a conversion of a part, in each direction, for each content. */
static void sweep_contents(struct kvm_vcpu *vcpu, const char *name, bool large)
{
	static const u64 flags[] = { GMEM_PRESERVE, GMEM_ZERO, GMEM_DISCARD };
	const struct path path = {
		name, bound_file_in_one_state, convert_call, state_unchanged, converted,
	};
	struct context c = { .vcpu = vcpu, .nr = COUNT, .large = large };
	int i;

	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		c.flags = flags[i];
		c.attributes = GMEM_PRIVATE;
		sweep(&path, &c);
		c.attributes = GMEM_SHARED;
		sweep(&path, &c);
	}
}

/* Invariant 3 where a map of one state becomes one of two. */
SWEEP_TEST(convert_uniform)
{
	sweep_contents(vcpu, "convert, uniform", false);
}

/* A large page is split, or stays whole. */
SWEEP_TEST(convert_large)
{
	sweep_contents(vcpu, "convert, large", true);
}

static void bound_file_in_stripes(struct context *c)
{
	u64 i;

	bound_file_in_one_state(c);
	for (i = 0; i < NR; i += 2)
		gmem_convert_pages(&c->g, i, 1, c->attributes, GMEM_PRESERVE);
}

static void stripes_unchanged(struct context *c)
{
	u64 i;

	for (i = 0; i < NR; i++)
		gmem_assert_state(&c->g, i, 1, !!c->attributes != (i & 1));
	gmem_guest_check_fill(c->vcpu, &c->g, 0, NR, VAL);
}

static void stripes_converted(struct context *c)
{
	gmem_assert_state(&c->g, FIRST, COUNT, !!c->attributes);
	gmem_assert_state(&c->g, END + 1, 1, !c->attributes);
	gmem_guest_check_fill(c->vcpu, &c->g, 0, NR, VAL);
	gmem_destroy(&c->g);
}

/* And where the pieces are many before, and few after. */
SWEEP_TEST(convert_stripes)
{
	static const struct path path = {
		"convert, stripes", bound_file_in_stripes, convert_call,
		stripes_unchanged, stripes_converted,
	};
	struct context c = {
		.vcpu = vcpu,
		.nr = COUNT,
		.flags = GMEM_PRESERVE,
	};

	c.attributes = GMEM_PRIVATE;
	sweep(&path, &c);
	c.attributes = GMEM_SHARED;
	sweep(&path, &c);
}

#define PAGES_1G	(SZ_1G / PAGE_SIZE)
#define FAR_NR		(2 * PAGES_1G)

/* Three pieces of 1 GiB, of which the range has part, all and part. */
static void big_file(struct context *c)
{
	gmem_create(&c->g, c->vcpu->vm, 3ul * SZ_1G, GMEM_SHARED_FILE);
	gmem_host_fill(&c->g, 0, FIRST + 1, VAL);
	gmem_host_fill(&c->g, FAR_NR, FIRST + 1, VAL);
}

static void big_file_unchanged(struct context *c)
{
	gmem_host_check(&c->g, 0, FIRST + 1, VAL);
	gmem_assert_shared(&c->g, PAGES_1G, 1);
	gmem_host_check(&c->g, FAR_NR, FIRST + 1, VAL);
}

static void big_file_converted(struct context *c)
{
	gmem_host_check(&c->g, 0, FIRST, VAL);
	gmem_assert_private(&c->g, FIRST, 1);
	gmem_assert_private(&c->g, PAGES_1G, 1);
	gmem_assert_private(&c->g, FAR_NR + FIRST - 1, 1);
	gmem_host_check(&c->g, FAR_NR + FIRST, 1, VAL + FIRST);
	gmem_destroy(&c->g);
}

SWEEP_TEST(convert_pieces)
{
	static const struct path path = {
		"convert, pieces", big_file, convert_call,
		big_file_unchanged, big_file_converted,
	};
	struct context c = {
		.vcpu = vcpu,
		.nr = FAR_NR,
		.attributes = GMEM_PRIVATE,
		.flags = GMEM_PRESERVE,
	};

	sweep(&path, &c);
}

/* ---- Faults ---- */

/* Page tables, too, are new each time. */
static void unmapped_file(struct context *c)
{
	gmem_new(&c->g, c->vcpu->vm, file_pages(c), c->flags | large_flag(c));
}

static int user_fault_call(struct context *c)
{
	return gmem_try_write(c->g.mem + FIRST * PAGE_SIZE, VAL) ? ENOMEM : 0;
}

static void user_fault_done(struct context *c)
{
	u64 *p = (u64 *)(c->g.mem + FIRST * PAGE_SIZE);

	TEST_ASSERT_EQ(READ_ONCE(p[0]), VAL);
	TEST_ASSERT_EQ(READ_ONCE(p[1]), 0);
	gmem_assert_shared(&c->g, 0, NR);
	gmem_destroy(&c->g);
}

/* The fault is repeated, or SIGBUS; in the end the page is there. */
SWEEP_TEST(user_fault)
{
	static const struct path path = {
		"user fault", unmapped_file, user_fault_call, nothing, user_fault_done,
	};
	struct context c = { .vcpu = vcpu, .flags = GMEM_SHARED_FILE };

	sweep(&path, &c);
	c.large = true;
	sweep(&path, &c);
}

static void guest_fault_prepare(struct context *c)
{
	unmapped_file(c);
	gmem_guest_prepare(c->vcpu, GMEM_GUEST_FILL, GMEM_GPA, NR, VAL, 1);
}

static int guest_fault_call(struct context *c)
{
	int r;

	/* _vcpu_run() looks at the exit, which may fail as well. */
	do {
		r = __vcpu_run(c->vcpu);
	} while (r && errno == EINTR);

	return r ? errno : 0;
}

static void guest_fault_done(struct context *c)
{
	TEST_ASSERT_EQ(get_ucall(c->vcpu, NULL), UCALL_SYNC);
	gmem_guest_check_fill(c->vcpu, &c->g, 0, NR, VAL);
	gmem_assert_state(&c->g, 0, NR, !(c->flags & GUEST_MEMFD_FLAG_INIT_SHARED));
	gmem_destroy(&c->g);
}

/* KVM_RUN fails, and the guest goes on where it was. */
SWEEP_TEST(guest_fault)
{
	static const struct path path = {
		"guest fault", guest_fault_prepare, guest_fault_call,
		nothing, guest_fault_done,
	};
	struct context c = { .vcpu = vcpu };

	c.flags = GMEM_SHARED_FILE;
	sweep(&path, &c);
	c.flags = GMEM_PRIVATE_FILE;
	sweep(&path, &c);
	c.large = true;
	sweep(&path, &c);
}

static int pre_fault_call(struct context *c)
{
	return gmem_pre_fault(c->vcpu, GMEM_GPA, NR);
}

static void pre_fault_done(struct context *c)
{
	gmem_guest_check_zero(c->vcpu, &c->g, 0, NR);
	gmem_destroy(&c->g);
}

GMEM_TEST_IF(pre_fault, injection_ready() && kvm_check_cap(KVM_CAP_PRE_FAULT_MEMORY),
	     NO_INJECTION ", or no KVM_PRE_FAULT_MEMORY")
{
	static const struct path path = {
		"pre-fault", unmapped_file, pre_fault_call, nothing, pre_fault_done,
	};
	struct context c = { .vcpu = vcpu };

	c.flags = GMEM_SHARED_FILE;
	sweep(&path, &c);
	c.flags = GMEM_PRIVATE_FILE;
	sweep(&path, &c);
}

/* ---- fallocate() ---- */

static int allocate_call(struct context *c)
{
	return fallocate(c->g.fd, FALLOC_FL_KEEP_SIZE, 0, c->g.size) ? errno : 0;
}

static void allocate_done(struct context *c)
{
	gmem_host_check_zero(&c->g, 0, NR);
	gmem_destroy(&c->g);
}

SWEEP_TEST(allocate)
{
	static const struct path path = {
		"allocate", unmapped_file, allocate_call, nothing, allocate_done,
	};
	struct context c = { .vcpu = vcpu, .flags = GMEM_SHARED_FILE };

	sweep(&path, &c);
	c.large = true;
	sweep(&path, &c);
}

static int punch_call(struct context *c)
{
	return fallocate(c->g.fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
			 FIRST * PAGE_SIZE, COUNT * PAGE_SIZE) ? errno : 0;
}

static void punch_done(struct context *c)
{
	check_file(c);
	gmem_guest_check_zero(c->vcpu, &c->g, FIRST, COUNT);
	gmem_destroy(&c->g);
}

SWEEP_TEST(punch)
{
	static const struct path path = {
		"punch", new_bound_file, punch_call, still_bound, punch_done,
	};
	struct context c = { .vcpu = vcpu };

	sweep(&path, &c);
}

static void large_is_whole(struct context *c)
{
	gmem_assert_state(&c->g, 0, NR, !c->attributes);
	gmem_guest_check_fill(c->vcpu, &c->g, 0, NR, VAL);
}

static void large_has_hole(struct context *c)
{
	gmem_assert_state(&c->g, 0, NR, !c->attributes);
	gmem_guest_check_fill(c->vcpu, &c->g, 0, FIRST, VAL);
	gmem_guest_check_zero(c->vcpu, &c->g, FIRST, COUNT);
	gmem_guest_check_fill(c->vcpu, &c->g, END, NR - END, VAL + END);
	gmem_destroy(&c->g);
}

/* The split fails or succeeds before anything is freed. */
SWEEP_TEST(punch_large)
{
	static const struct path path = {
		"punch, large", bound_file_in_one_state, punch_call,
		large_is_whole, large_has_hole,
	};
	struct context c = { .vcpu = vcpu, .large = true };

	sweep(&path, &c);
	c.attributes = GMEM_PRIVATE;
	sweep(&path, &c);
}

/* ---- The direct map ---- */

#define BLOCK		(SZ_2M / PAGE_SIZE)
#define NR_BLOCKS	64ul

#define HIDDEN		(GUEST_MEMFD_FLAG_HUGE | GUEST_MEMFD_FLAG_NO_DIRECT_MAP)

static bool hidden_offered(struct kvm_vm *vm)
{
	return (vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_FLAGS) & HIDDEN) == HIDDEN;
}

#define HIDDEN_TEST(name)							\
	GMEM_TEST_IF(name, injection_ready() && hidden_offered(self->vcpu->vm),	\
		     "No fault injection, or the direct map can't be changed")

static int punch_page(struct gmem *g, u64 page)
{
	int i, r;

	for (i = 0; i < 1000; i++) {
		r = fallocate(g->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			      page * PAGE_SIZE, PAGE_SIZE) ? errno : 0;
		if (r != EAGAIN)
			break;
	}
	return r;
}

/* A page of a block that is out leaves: what putting it back takes is there before. */
HIDDEN_TEST(punch_hidden)
{
	bool fired = true;
	struct gmem g;
	int r, nth;

	gmem_new(&g, vcpu->vm, NR_BLOCKS * BLOCK, GMEM_PRIVATE_FILE | HIDDEN);
	for (nth = 1; nth < NR_BLOCKS && fired; nth++) {
		gmem_allocate(&g, nth * BLOCK, BLOCK);

		fail_nth_arm(nth);
		r = punch_page(&g, nth * BLOCK + COUNT);
		fired = fail_nth_disarm();

		TEST_ASSERT(!r || (fired && r == ENOMEM), "Allocation %d: %s", nth, strerror(r));
		if (r)
			TEST_ASSERT_EQ(punch_page(&g, nth * BLOCK + COUNT), 0);
		TEST_ASSERT_EQ(vm_get_stat(vcpu->vm, gmem_pages_leaked), 0);
		TEST_ASSERT_EQ(vm_get_stat(vcpu->vm, gmem_pages_private), nth * (BLOCK - 1));
	}
	TEST_ASSERT(!fired && nth > 2, "%d allocations", nth - 1);
	gmem_destroy(&g);
}

/* ---- All allocations fail ---- */

/* Those from the slab, of this thread; to open a file would be one of them. */
static void fail_all(bool on)
{
	static int fd = -1;

	if (on) {
		TEST_ASSERT(!gmem_write_file(DEBUGFS "failslab/task-filter", "Y") &&
			    !gmem_write_file(DEBUGFS "failslab/times", "-1") &&
			    !gmem_write_file(DEBUGFS "failslab/probability", "100"),
			    "failslab can't be set up");
		fd = open("/proc/self/make-it-fail", O_WRONLY);
	}

	TEST_ASSERT(pwrite(fd, on ? "1" : "0", 1, 0) == 1, "make-it-fail, errno %d", errno);
	if (!on) {
		gmem_write_file(DEBUGFS "failslab/probability", "0");
		close(fd);
	}
}

/*
 * A single failure doesn't fail a split, which has two ways to do it.  The map has
 * pages of both states before, hence needs no memory of its own.
 */
SWEEP_TEST(split_fails)
{
	const u64 last = SZ_2M / PAGE_SIZE + 1;
	struct context c = {
		.vcpu = vcpu,
		.attributes = GMEM_PRIVATE,
		.nr = COUNT,
	};
	int punch_error, convert_error;

	gmem_new(&c.g, vcpu->vm, last + 1, GMEM_SHARED_FILE | GUEST_MEMFD_FLAG_HUGE);
	gmem_to_private(&c.g, last, 1, 0);
	gmem_guest_fill(vcpu, &c.g, 0, NR, VAL);

	fail_all(true);
	punch_error = punch_call(&c);
	convert_error = convert_call(&c);
	fail_all(false);

	TEST_ASSERT(punch_error == ENOMEM, "Hole: %s", strerror(punch_error));
	TEST_ASSERT(convert_error == ENOMEM, "Conversion: %s", strerror(convert_error));
	state_unchanged(&c);
	TEST_ASSERT_EQ(convert_call(&c), 0);
	assert_part(&c.g, true);
	gmem_guest_check_fill(vcpu, &c.g, 0, NR, VAL);
	gmem_destroy(&c.g);
}

TEST_HARNESS_MAIN
