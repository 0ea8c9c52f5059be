// SPDX-License-Identifier: GPL-2.0-only
/*
 * guest_memfd outside the kernel's direct map, and who walks over all memory of the host
 * or of a process: core dumps, hibernation, kexec, migration, memory hot-remove, KFENCE.
 * None of them meets a fault, none of them gets the content, and the guest keeps it.
 *
 * Each case also shows that the one in question is at work: on memory that is in the
 * direct map it does what it is there for.
 */
#include "gmem_util.h"
#include "kvm_test_harness.h"
#include "numaif.h"

#include <linux/kexec.h>
#include <linux/reboot.h>
#include <linux/suspend_ioctls.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>

/* Page i holds VAL + i; OTHER is in memory that is no guest's. */
#define VAL		0x1122334455660000ul
#define OTHER		0x99aabbccddee0000ul

#define HIDDEN		GUEST_MEMFD_FLAG_NO_DIRECT_MAP
#define HUGE		GUEST_MEMFD_FLAG_HUGE
#define SHARED		(GMEM_SHARED_FILE | HIDDEN)

#define NR		16ul

/* Pages of a block, i.e. entries of a table of 8 bytes each. */
#define BLOCK		(PAGE_SIZE / 8)

FIXTURE(direct_map_host) {
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
};

static bool offered(struct kvm_vm *vm, u64 flags)
{
	return (vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_FLAGS) & flags) == flags;
}

FIXTURE_SETUP(direct_map_host)
{
	gmem_page_size = getpagesize();
	gmem_test_init();

	self->vm = vm_create_with_one_vcpu(&self->vcpu, gmem_guest_server);
	sync_global_to_guest(self->vm, gmem_page_size);
	vcpu_args_set(self->vcpu, 1, 0);
	virt_map(self->vm, GMEM_GPA, GMEM_GPA, 2 * BLOCK);
	if (!offered(self->vm, HIDDEN))
		SKIP(return, "The direct map can't be changed");
}

FIXTURE_TEARDOWN(direct_map_host)
{
	kvm_vm_free(self->vm);
}

/*
 * Devices are suspended only if the environment says that the one who waits for the result
 * survives it: QEMU's virtio-serial ports, for one, are dead after that.
 */
static bool may_suspend(void)
{
	return getenv("GMEM_SUSPEND");
}

#define HOST_TEST(name)		TEST_F_TIMEOUT(direct_map_host, name, GMEM_TIMEOUT_S)

static void new_filled(struct gmem *g, struct kvm_vm *vm, u64 nr, u64 flags)
{
	gmem_new(g, vm, nr, flags);
	gmem_host_fill(g, 0, nr, VAL);
}

/* Users and the guest find what was there. */
static void check_destroy(struct kvm_vcpu *vcpu, struct gmem *g)
{
	u64 nr = g->size / PAGE_SIZE;

	gmem_host_check(g, 0, nr, VAL);
	gmem_guest_check_fill(vcpu, g, 0, nr, VAL);
	gmem_destroy(g);
}

static u8 *anonymous(u64 nr)
{
	return kvm_mmap(nr * PAGE_SIZE, PROT_READ | PROT_WRITE,
			MAP_ANONYMOUS | MAP_PRIVATE, -1);
}

/* A file's first line in @text; false: there is no such file. */
static bool read_line(const char *path, char *text, size_t size)
{
	FILE *f = fopen(path, "r");

	if (!f)
		return false;

	TEST_ASSERT(fgets(text, size, f), "Reading %s: %s", path, strerror(errno));
	fclose(f);
	text[strcspn(text, "\n")] = '\0';
	return true;
}

/* ---- Core dumps ---- */

#define CORE_PATTERN	"/proc/sys/kernel/core_pattern"
#define CORE		"/tmp/gmem_core"

static void dump_core(struct child *c, struct gmem *g)
{
	const struct rlimit unlimited = { RLIM_INFINITY, RLIM_INFINITY };

	gmem_fill_words((u64 *)anonymous(1), OTHER);
	prctl(PR_SET_DUMPABLE, 1);
	setrlimit(RLIMIT_CORE, &unlimited);
	TEST_ASSERT_EQ(gmem_write_file("/proc/self/coredump_filter", "0x1ff"), 0);
	signal(SIGABRT, SIG_DFL);
	abort();
}

/* The child has the file's mapping, and the core is all that it has. */
static void expect_dump(struct gmem *g, u64 nr_in_core)
{
	struct child c;
	int status;
	u64 i;

	unlink(CORE);
	child_start(&c, dump_core, g);
	TEST_ASSERT_EQ(waitpid(c.pid, &status, 0), c.pid);
	TEST_ASSERT(WIFSIGNALED(status) && WCOREDUMP(status), "No core, status 0x%x", status);

	TEST_ASSERT(gmem_count_pages(CORE, OTHER), "The core is without the child's own memory");
	for (i = 0; i < g->size / PAGE_SIZE; i += g->size / PAGE_SIZE / 4)
		TEST_ASSERT_EQ(gmem_count_pages(CORE, VAL + i), nr_in_core);
	unlink(CORE);
}

HOST_TEST(core_dump)
{
	char pattern[256];
	struct gmem g;

	if (!read_line(CORE_PATTERN, pattern, sizeof(pattern)) ||
	    gmem_write_file(CORE_PATTERN, CORE))
		SKIP(return, "Where core files go cannot be set");
	gmem_write_file("/proc/sys/kernel/core_uses_pid", "0");

	new_filled(&g, self->vm, NR, SHARED & ~HIDDEN);
	expect_dump(&g, 1);
	gmem_destroy(&g);

	new_filled(&g, self->vm, NR, SHARED);
	expect_dump(&g, 0);
	check_destroy(self->vcpu, &g);

	if (offered(self->vm, HUGE)) {
		new_filled(&g, self->vm, BLOCK, SHARED | HUGE);
		expect_dump(&g, 0);
		check_destroy(self->vcpu, &g);
	}
	TEST_ASSERT_EQ(gmem_write_file(CORE_PATTERN, pattern), 0);
}

/* ---- Hibernation ---- */

#define POWER_DISK	"/sys/power/disk"

static bool hibernation_offered(void)
{
	char modes[128];

	return read_line(POWER_DISK, modes, sizeof(modes)) && strcmp(modes, "[disabled]");
}

/* Neither the kernel makes an image, nor does it make one for a program. */
static void expect_no_hibernation(void)
{
	TEST_ASSERT(!hibernation_offered(), "Hibernation is offered");
	TEST_ASSERT_EQ(gmem_write_file("/sys/power/state", "disk"), EPERM);
	gmem_expect_error(open("/dev/snapshot", O_RDONLY), EPERM);
}

/* From the first file to the last one. */
HOST_TEST(hibernation)
{
	struct gmem g, more;

	if (!hibernation_offered())
		SKIP(return, "No hibernation");

	gmem_create(&more, self->vm, PAGE_SIZE, SHARED & ~HIDDEN);
	TEST_ASSERT(hibernation_offered(), "A file in the direct map keeps from hibernation");
	gmem_destroy(&more);

	new_filled(&g, self->vm, NR, SHARED);
	expect_no_hibernation();
	gmem_create(&more, self->vm, PAGE_SIZE, SHARED);
	expect_no_hibernation();
	gmem_destroy(&more);
	expect_no_hibernation();
	check_destroy(self->vcpu, &g);
	TEST_ASSERT(hibernation_offered(), "No hibernation any more");
}

/* What comes when hibernation has begun already counts as well. */
HOST_TEST(hibernation_begun)
{
	int fd, in_suspend = -1;
	struct gmem g;

	fd = open("/dev/snapshot", O_RDONLY);
	if (fd < 0)
		SKIP(return, "No hibernation by user space");

	new_filled(&g, self->vm, NR, SHARED);
	TEST_ASSERT(!ioctl(fd, SNAPSHOT_FREEZE), "Freezing processes: %s", strerror(errno));
	gmem_expect_error(ioctl(fd, SNAPSHOT_CREATE_IMAGE, &in_suspend), EPERM);
	TEST_ASSERT_EQ(in_suspend, -1);
	TEST_ASSERT(!ioctl(fd, SNAPSHOT_UNFREEZE), "Thawing processes: %s", strerror(errno));
	check_destroy(self->vcpu, &g);
	if (!may_suspend()) {
		close(fd);
		return;
	}

	/* Now it can go on. */
	TEST_ASSERT(!ioctl(fd, SNAPSHOT_FREEZE), "Freezing processes: %s", strerror(errno));
	TEST_ASSERT(!ioctl(fd, SNAPSHOT_CREATE_IMAGE, &in_suspend), "Creating an image: %s",
		    strerror(errno));
	TEST_ASSERT_EQ(in_suspend, 1);
	TEST_ASSERT(!ioctl(fd, SNAPSHOT_FREE), "Freeing the image: %s", strerror(errno));
	TEST_ASSERT(!ioctl(fd, SNAPSHOT_UNFREEZE), "Thawing processes: %s", strerror(errno));
	close(fd);
}

/* ---- kexec ---- */

#define KEXEC_LOADED	"/sys/kernel/kexec_loaded"

static int kexec_load(void *entry, struct kexec_segment *segment, u64 flags)
{
	return syscall(SYS_kexec_load, entry, !!segment, segment, flags);
}

static bool kexec_is_loaded(void)
{
	char text[16];

	TEST_ASSERT(read_line(KEXEC_LOADED, text, sizeof(text)), "No " KEXEC_LOADED);
	return atoi(text);
}

/* The kernel to come is in such a file, and goes to where such a file is. */
HOST_TEST(kexec)
{
	struct kexec_segment segment;
	u8 *hole = anonymous(NR);
	struct gmem g;

	if (access(KEXEC_LOADED, R_OK))
		SKIP(return, "No kexec");

	new_filled(&g, self->vm, NR, SHARED);
	segment = (struct kexec_segment) {
		.buf = hole,
		.bufsz = NR * PAGE_SIZE,
		.mem = (void *)(gmem_known_frame(g.mem) * PAGE_SIZE),
		.memsz = NR * PAGE_SIZE,
	};

	/* It is read, all of it. */
	kvm_munmap(hole + (NR - 1) * PAGE_SIZE, PAGE_SIZE);
	gmem_expect_error(kexec_load(NULL, &segment, 0), EFAULT);
	TEST_ASSERT(!kexec_is_loaded(), "Something is loaded");

	segment.buf = g.mem;
	TEST_ASSERT(!kexec_load((void *)segment.mem, &segment, 0), "kexec_load(): %s",
		    strerror(errno));
	TEST_ASSERT(kexec_is_loaded(), "Nothing is loaded");
	TEST_ASSERT(!kexec_load(NULL, NULL, 0), "Unloading: %s", strerror(errno));
	TEST_ASSERT(!kexec_is_loaded(), "Something is loaded");
	check_destroy(self->vcpu, &g);
	kvm_munmap(hole, (NR - 1) * PAGE_SIZE);
}

#ifdef __x86_64__
/*
 * The kernel to jump to, which jumps back: it leaves its stack pointer at a physical
 * address.  Where it wants to be entered again is above its return address.
 */
static const u8 jump_code[] = {
	0x48, 0x8d, 0x05, 0xf9, 0xff, 0xff, 0xff,	/* lea this instruction, %rax */
	0x48, 0x89, 0x44, 0x24, 0x08,			/* mov %rax, 8(%rsp) */
	0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0,		/* movabs $address, %rax */
	0x48, 0x89, 0x20,				/* mov %rsp, (%rax) */
	0xc3,						/* ret */
};

#define JUMP_CODE_ADDRESS	14

/* kexec swaps the new kernel with the memory that it goes to, which is a file's, and back. */
HOST_TEST(kexec_jump)
{
	u64 *word = (u64 *)anonymous(1), address;
	struct kexec_segment segment;
	struct gmem g;

	if (access(KEXEC_LOADED, R_OK) || !may_suspend())
		SKIP(return, "No kexec, or devices must not be suspended");

	new_filled(&g, self->vm, NR, SHARED);
	TEST_ASSERT(!mlock(word, PAGE_SIZE), "mlock(): %s", strerror(errno));
	WRITE_ONCE(*word, 0);
	address = gmem_known_frame(word) * PAGE_SIZE;
	memcpy(g.mem, jump_code, sizeof(jump_code));
	memcpy(g.mem + JUMP_CODE_ADDRESS, &address, sizeof(address));
	segment = (struct kexec_segment) {
		.buf = g.mem,
		.bufsz = sizeof(jump_code),
		.mem = (void *)(gmem_known_frame(g.mem + PAGE_SIZE) * PAGE_SIZE),
		.memsz = PAGE_SIZE,
	};
	if (kexec_load((void *)segment.mem, &segment, KEXEC_PRESERVE_CONTEXT))
		SKIP(goto out, "No jumps");

	TEST_ASSERT(!syscall(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2,
			     LINUX_REBOOT_CMD_KEXEC, NULL), "Jumping: %s", strerror(errno));
	TEST_ASSERT(READ_ONCE(*word), "The other kernel hasn't run");
	TEST_ASSERT(!kexec_load(NULL, NULL, 0), "Unloading: %s", strerror(errno));
out:
	gmem_host_fill(&g, 0, 1, VAL);
	check_destroy(self->vcpu, &g);
	kvm_munmap(word, PAGE_SIZE);
}
#endif /* __x86_64__ */

/* ---- Migration ---- */

/* How many of @nr pages from @mem on go to @node if they are told to. */
static u64 count_moved(u8 *mem, u64 nr, int node)
{
	int nodes[NR], status[NR];
	void *pages[NR];
	u64 i, moved = 0;

	TEST_ASSERT(nr <= NR, "Too many pages");
	for (i = 0; i < nr; i++) {
		pages[i] = mem + i * PAGE_SIZE;
		nodes[i] = node;
		status[i] = -1;
	}
	TEST_ASSERT(syscall(SYS_move_pages, 0, nr, pages, nodes, status, MPOL_MF_MOVE_ALL) >= 0,
		    "move_pages(): %s", strerror(errno));

	/* Where they are now. */
	TEST_ASSERT(!syscall(SYS_move_pages, 0, nr, pages, NULL, status, 0),
		    "move_pages(): %s", strerror(errno));
	for (i = 0; i < nr; i++)
		moved += status[i] == node;
	return moved;
}

static u64 vm_event(const char *what)
{
	return __gmem_proc_value("/proc/vmstat", what);
}

/* Whoever asks for it, the pages stay where they are. */
static void expect_unmoved(struct gmem *g)
{
	u64 nr = g->size / PAGE_SIZE, scanned = vm_event("compact_migrate_scanned"), i;
	u64 *frames = calloc(nr, sizeof(*frames)), from, to;
	int node;

	for (i = 0; i < nr; i++)
		frames[i] = gmem_known_frame(g->mem + i * PAGE_SIZE);

	for (node = 0; node <= 1; node++) {
		count_moved(g->mem, NR, node);
		from = BIT(!node);
		to = BIT(node);
		TEST_ASSERT(syscall(SYS_migrate_pages, 0, 64, &from, &to) >= 0,
			    "migrate_pages(): %s", strerror(errno));
	}
	TEST_ASSERT_EQ(gmem_write_file("/proc/sys/vm/compact_memory", "1"), 0);
	TEST_ASSERT(vm_event("compact_migrate_scanned") > scanned, "Nothing was compacted");

	for (i = 0; i < nr; i++)
		TEST_ASSERT_EQ(gmem_known_frame(g->mem + i * PAGE_SIZE), frames[i]);
	free(frames);
}

HOST_TEST(migration)
{
	u8 *mem = anonymous(NR);
	struct gmem g;
	u64 i;

	if (!is_multi_numa_node_system())
		SKIP(return, "One node");

	for (i = 0; i < NR; i++)
		gmem_fill_words((u64 *)(mem + i * PAGE_SIZE), OTHER + i);
	TEST_ASSERT_EQ(count_moved(mem, NR, 0), NR);
	TEST_ASSERT_EQ(count_moved(mem, NR, 1), NR);

	new_filled(&g, self->vm, 2 * BLOCK, SHARED);
	expect_unmoved(&g);
	check_destroy(self->vcpu, &g);

	if (offered(self->vm, HUGE)) {
		new_filled(&g, self->vm, 2 * BLOCK, SHARED | HUGE);
		expect_unmoved(&g);
		check_destroy(self->vcpu, &g);
	}
	kvm_munmap(mem, NR * PAGE_SIZE);
}

/* ---- Memory hot-remove ---- */

#define MEMORY		"/sys/devices/system/memory"

/* Blocks of memory that are looked at, and how many with pages of a file are tried. */
#define NR_MEMORY_BLOCKS	64
#define NR_TRIES		4

/* 768 MiB of memory outside the direct map, if pages have 4 KiB. */
#define NR_REMOVE		384ul

/* Bytes of a block of memory, or 0 if the kernel can't take blocks away. */
static u64 memory_block_size(void)
{
	char text[32];

	if (!read_line(MEMORY "/memory0/removable", text, sizeof(text)) || strcmp(text, "1") ||
	    !read_line(MEMORY "/block_size_bytes", text, sizeof(text)))
		return 0;

	return strtoul(text, NULL, 16);
}

static int write_state(u64 block, const char *state)
{
	char path[64];

	snprintf(path, sizeof(path), MEMORY "/memory%lu/state", block);
	return gmem_write_file(path, state);
}

static bool is_online(u64 block)
{
	char path[64], state[32];

	snprintf(path, sizeof(path), MEMORY "/memory%lu/state", block);
	return read_line(path, state, sizeof(state)) && !strcmp(state, "online");
}

static void do_nothing(int sig)
{
}

/* The kernel tries for ever, until a signal comes. */
static int offline(u64 block)
{
	struct sigaction sa = { .sa_handler = do_nothing }, old_sa;
	const struct itimerval never = {}, often = { { .tv_sec = 1 }, { .tv_sec = 1 } };
	int r;

	TEST_ASSERT(!sigaction(SIGALRM, &sa, &old_sa), "sigaction()");
	TEST_ASSERT(!setitimer(ITIMER_REAL, &often, NULL), "setitimer()");
	r = write_state(block, "offline");
	setitimer(ITIMER_REAL, &never, NULL);
	sigaction(SIGALRM, &old_sa, NULL);
	return r;
}

/* Find out which blocks can be taken away, and put them back. */
static u64 try_all(bool *removable)
{
	u64 block, nr = 0;

	for (block = 0; block < NR_MEMORY_BLOCKS; block++) {
		removable[block] = is_online(block) && !offline(block);
		if (!removable[block])
			continue;
		TEST_ASSERT_EQ(write_state(block, "online"), 0);
		nr++;
	}
	return nr;
}

/* Those that can't be taken away as long as @g is there; each holds a page of it at least. */
static u64 try_file(struct gmem *g, u64 block_size, const bool *removable, bool *held)
{
	u64 page, block, nr = 0;
	int r;

	for (page = 0; page < g->size / PAGE_SIZE && nr < NR_TRIES; page += BLOCK) {
		block = gmem_known_frame(g->mem + page * PAGE_SIZE) * PAGE_SIZE / block_size;
		if (block >= NR_MEMORY_BLOCKS || !removable[block] || held[block])
			continue;

		r = offline(block);
		TEST_ASSERT(r == EBUSY || r == EINTR, "Memory block %lu: %s", block, strerror(r));
		TEST_ASSERT(is_online(block), "Memory block %lu is offline", block);
		held[block] = true;
		nr++;
	}
	return nr;
}

static void hot_remove(struct kvm_vm *vm, struct kvm_vcpu *vcpu, u64 block_size, u64 flags)
{
	bool removable[NR_MEMORY_BLOCKS], held[NR_MEMORY_BLOCKS] = {};
	struct gmem g;
	u64 i, nr = 0;

	TEST_ASSERT(try_all(removable), "No memory block can be taken away");

	/* So much of it that there are some of these. */
	gmem_new(&g, vm, NR_REMOVE * BLOCK, flags);
	gmem_allocate(&g, 0, NR_REMOVE * BLOCK);
	for (i = 0; i < NR_REMOVE; i++)
		gmem_host_fill(&g, i * BLOCK, 1, VAL + i * BLOCK);
	TEST_ASSERT(try_file(&g, block_size, removable, held), "The file is elsewhere");
	for (i = 0; i < NR_REMOVE; i++)
		gmem_host_check(&g, i * BLOCK, 1, VAL + i * BLOCK);
	gmem_guest_check_fill(vcpu, &g, 0, 1, VAL);
	gmem_guest_check_zero(vcpu, &g, 1, BLOCK - 1);
	gmem_destroy(&g);

	/* Not all of them, as the kernel may have put something of its own there meanwhile. */
	try_all(removable);
	for (i = 0; i < NR_MEMORY_BLOCKS; i++)
		nr += held[i] && removable[i];
	TEST_ASSERT(nr, "What had the file can't be taken away any more");
}

/* What the kernel takes away it empties by migration, but not of these pages. */
HOST_TEST(hot_remove)
{
	u64 block_size = memory_block_size();

	if (!block_size)
		SKIP(return, "No memory hot-remove");

	hot_remove(self->vm, self->vcpu, block_size, SHARED);
	if (offered(self->vm, HUGE))
		hot_remove(self->vm, self->vcpu, block_size, SHARED | HUGE);
}

/* ---- KFENCE ---- */

#define KFENCE_INTERVAL	"/sys/module/kfence/parameters/sample_interval"
#define KFENCE_STATS	"/sys/kernel/debug/kfence/stats"

/* Objects that shall have come and gone before the test is over. */
#define NR_OBJECTS	200

static u64 kfence_value(const char *what)
{
	return __gmem_proc_value(KFENCE_STATS, what);
}

/* Small objects of several caches. */
static void use_slabs(void)
{
	int fds[32], pipes[2], i;

	TEST_ASSERT(!pipe(pipes), "pipe()");
	for (i = 0; i < ARRAY_SIZE(fds); i++)
		fds[i] = open("/proc/self/maps", O_RDONLY);
	for (i = 0; i < ARRAY_SIZE(fds); i++)
		close(fds[i]);
	close(pipes[0]);
	close(pipes[1]);
}

/* Splits, holes and whole entries of files come and go. */
static void use_direct_map(struct kvm_vm *vm, struct kvm_vcpu *vcpu, u64 turn)
{
	struct gmem g;
	u64 page;

	new_filled(&g, vm, 2 * BLOCK, SHARED);
	for (page = turn % BLOCK; page < 2 * BLOCK; page += BLOCK / 4) {
		gmem_punch(&g, page, 1);
		use_slabs();
		gmem_host_fill(&g, page, 1, VAL + page);
	}
	check_destroy(vcpu, &g);
}

/*
 * KFENCE has pages of 4 KiB of its own in the direct map, of which one goes with each
 * object that is freed, and comes back with the next one that is allocated.
 */
HOST_TEST(kfence)
{
	u64 allocs, frees, bugs, turn = 0;
	char interval[32];

	if (!read_line(KFENCE_INTERVAL, interval, sizeof(interval)))
		SKIP(return, "No KFENCE");

	/* If it has been off so far, it gets its pages, and has statistics, only now. */
	TEST_ASSERT_EQ(gmem_write_file(KFENCE_INTERVAL, "1"), 0);
	allocs = kfence_value("total allocations");
	frees = kfence_value("total frees");
	bugs = kfence_value("total bugs");
	gmem_wait_until((use_direct_map(self->vm, self->vcpu, turn++),
			 kfence_value("total allocations") >= allocs + NR_OBJECTS &&
			 kfence_value("total frees") >= frees + NR_OBJECTS));
	TEST_ASSERT_EQ(gmem_write_file(KFENCE_INTERVAL, interval), 0);
	TEST_ASSERT_EQ(kfence_value("total bugs"), bugs);
}

TEST_HARNESS_MAIN
