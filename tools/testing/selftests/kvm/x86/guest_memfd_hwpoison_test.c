// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory errors in guest_memfd files with in-place conversion, in shared and in
 * private pages, alone and against holes, conversions and faults.
 *
 * Errors are simulated: MADV_HWPOISON on a shared page, and by frame number for
 * a private one, which is learnt while the page is shared.  The frames are given
 * back to the system at the end, if the kernel lets them go.
 *
 * GMEM_SCALE does not count here: the frames are a thousand, on any kernel.
 */
#include <linux/kernel-page-flags.h>

#include "gmem_fixture.h"

#define SOFT_OFFLINE		"/sys/devices/system/memory/soft_offline_page"

/* Frames to poison in each of the two races. */
#define RACE_FRAMES		500

/* The user leaves a bad page alone for so many rounds; each visit is logged. */
#define USER_PAUSE		64

#define MAPPED_TEST(name)							\
	GMEM_TEST_IF(name, gmem_may_poison(), "No MADV_HWPOISON")

#define FRAME_TEST(name)							\
	GMEM_TEST_IF(name, !access(GMEM_HWPOISON_DIR "corrupt-pfn", W_OK),		\
		     "No " GMEM_HWPOISON_DIR "corrupt-pfn")

#define OFFLINE_TEST(name)							\
	GMEM_TEST_IF(name, !access(SOFT_OFFLINE, W_OK), "No " SOFT_OFFLINE)

/* ---- One page, nothing else going on ---- */

static int user_code(struct gmem *g, u64 page)
{
	u64 val;

	return gmem_try_read(g->mem + page * PAGE_SIZE, &val);
}

/* No user reaches a private page; on the poisoned one either code is right. */
static void expect_private(struct gmem *g, u64 page)
{
	int code = user_code(g, page);

	TEST_ASSERT(code == BUS_ADRERR || code == BUS_MCEERR_AR, "si_code %d", code);
	gmem_assert_private(g, 0, page);
	gmem_assert_private(g, page + 1, NR - page - 1);
}

/* The guest meets the error on exactly this page. */
static void expect_guest_poison(struct kvm_vcpu *vcpu, struct gmem *g, u64 page)
{
	gmem_guest_check_fill(vcpu, g, 0, page, VAL);
	gmem_guest_check_fill(vcpu, g, page + 1, NR - page - 1, VAL + page + 1);

	gmem_guest_prepare(vcpu, GMEM_GUEST_CHECK, g->gpa, NR, VAL, 1);
	gmem_guest_expect_fault(vcpu, EHWPOISON, g->gpa + page * PAGE_SIZE);

	/* It stays, however often the guest tries. */
	gmem_guest_expect_fault(vcpu, EHWPOISON, g->gpa + page * PAGE_SIZE);
}

/* The page is fresh, the interrupted check of the guest goes on and finds that. */
static void expect_fresh(struct kvm_vcpu *vcpu, struct gmem *g, u64 page)
{
	gmem_guest_finish(vcpu);
	gmem_guest_check_zero(vcpu, g, page, 1);
	gmem_guest_fill(vcpu, g, page, 1, VAL + page);
	gmem_to_shared(g, 0, NR, 0);
	gmem_host_check(g, 0, NR, VAL);
}

/* "Guest access is -EHWPOISON, user access SIGBUS (BUS_MCEERR_AR)." */
MAPPED_TEST(shared_page_punched)
{
	const u64 page = 5;
	struct gmem g;

	new_filled_file(&g, vcpu->vm);
	gmem_guest_check_fill(vcpu, &g, 0, NR, VAL);

	gmem_poison_mapped(g.mem + page * PAGE_SIZE);
	TEST_ASSERT_EQ(user_code(&g, page), BUS_MCEERR_AR);
	TEST_ASSERT_EQ(user_code(&g, page), BUS_MCEERR_AR);
	gmem_host_check(&g, 0, page, VAL);
	gmem_host_check(&g, page + 1, NR - page - 1, VAL + page + 1);
	expect_guest_poison(vcpu, &g, page);

	/* "DISCARD and punch remove it." */
	gmem_punch(&g, page, 1);
	gmem_host_check_zero(&g, page, 1);
	expect_fresh(vcpu, &g, page);
	gmem_destroy(&g);
	gmem_give_frames_back();
}

/*
 * "A poisoned page is skipped by reference check and content; its state
 * changes with the range."
 */
MAPPED_TEST(shared_page_converted)
{
	const u64 flags[] = { 0, GMEM_PRESERVE };
	const u64 page = 5;
	struct gmem g;
	int i;

	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		new_filled_file(&g, vcpu->vm);
		gmem_poison_mapped(g.mem + page * PAGE_SIZE);

		gmem_to_private(&g, 0, NR, flags[i]);
		expect_private(&g, page);
		expect_guest_poison(vcpu, &g, page);

		gmem_to_shared(&g, 0, NR, flags[i]);
		TEST_ASSERT_EQ(user_code(&g, page), BUS_MCEERR_AR);
		gmem_host_check(&g, 0, page, VAL);

		gmem_to_private(&g, page, 1, GMEM_DISCARD);
		expect_fresh(vcpu, &g, page);
		gmem_destroy(&g);
	}
	gmem_give_frames_back();
}

/* ZERO does not touch the frame, and does not heal the page. */
MAPPED_TEST(shared_page_zeroed)
{
	const u64 page = 5;
	struct gmem g;

	new_filled_file(&g, vcpu->vm);
	gmem_poison_mapped(g.mem + page * PAGE_SIZE);

	gmem_to_private(&g, 0, NR, GMEM_ZERO);
	gmem_guest_fill(vcpu, &g, 0, page, VAL);
	gmem_guest_fill(vcpu, &g, page + 1, NR - page - 1, VAL + page + 1);
	expect_guest_poison(vcpu, &g, page);
	gmem_to_shared(&g, 0, NR, 0);
	TEST_ASSERT_EQ(user_code(&g, page), BUS_MCEERR_AR);

	gmem_to_shared(&g, page, 1, GMEM_DISCARD);
	gmem_host_check_zero(&g, page, 1);
	expect_fresh(vcpu, &g, page);
	gmem_destroy(&g);
	gmem_give_frames_back();
}

/* The file has @nr pages, in the end NR of which are looked at. */
static void test_private_page(struct kvm_vcpu *vcpu, u64 remove_flags, u64 nr, u64 flags)
{
	const u64 page = 9;
	struct gmem g;
	u64 frame;

	gmem_new(&g, vcpu->vm, nr, GMEM_SHARED_FILE | flags);
	gmem_host_fill(&g, 0, nr, VAL);
	frame = gmem_known_frame(g.mem + page * PAGE_SIZE);

	gmem_to_private(&g, 0, nr, 0);
	gmem_guest_check_fill(vcpu, &g, 0, NR, VAL);
	gmem_write_number(GMEM_HWPOISON_DIR "corrupt-pfn", frame);
	expect_private(&g, page);
	expect_guest_poison(vcpu, &g, page);

	if (remove_flags) {
		gmem_to_shared(&g, 0, NR, 0);
		TEST_ASSERT_EQ(user_code(&g, page), BUS_MCEERR_AR);
		gmem_to_shared(&g, page, 1, remove_flags);
	} else {
		gmem_punch(&g, page, 1);
		gmem_assert_private(&g, 0, NR);
	}
	expect_fresh(vcpu, &g, page);
	if (nr > NR) {
		gmem_to_shared(&g, NR, nr - NR, 0);
		gmem_host_check(&g, NR, nr - NR, VAL + NR);
	}
	gmem_destroy(&g);
}

/* The same for an error in a private page, removed in both ways. */
FRAME_TEST(private_page)
{
	test_private_page(vcpu, 0, NR, 0);
	test_private_page(vcpu, GMEM_DISCARD, NR, 0);
	gmem_give_frames_back();
}

/* ---- One page of a large one ---- */

#define NR_LARGE	(SZ_2M / PAGE_SIZE)

/* "One poisoned 4 KiB page costs the guest that page; the rest lives on." */
FRAME_TEST(large_private_page)
{
	test_private_page(vcpu, 0, NR_LARGE, GUEST_MEMFD_FLAG_HUGE);
	test_private_page(vcpu, GMEM_DISCARD, NR_LARGE, GUEST_MEMFD_FLAG_HUGE);
	gmem_give_frames_back();
}

MAPPED_TEST(large_shared_page)
{
	const u64 page = 5, before = gmem_large_pages();
	struct gmem g;

	gmem_new(&g, vcpu->vm, NR_LARGE, GMEM_SHARED_FILE | GUEST_MEMFD_FLAG_HUGE);
	gmem_host_fill(&g, 0, NR_LARGE, VAL);
	gmem_guest_check_fill(vcpu, &g, 0, NR, VAL);
	TEST_ASSERT_EQ(gmem_large_pages(), before + 1);

	/* "Kept, and out of reach" is no failure. */
	TEST_ASSERT(!madvise(g.mem + page * PAGE_SIZE, PAGE_SIZE, MADV_HWPOISON),
		    "MADV_HWPOISON: %s", strerror(errno));
	TEST_ASSERT_EQ(gmem_large_pages(), before);
	TEST_ASSERT_EQ(user_code(&g, page), BUS_MCEERR_AR);
	gmem_host_check(&g, 0, page, VAL);
	gmem_host_check(&g, page + 1, NR_LARGE - page - 1, VAL + page + 1);
	expect_guest_poison(vcpu, &g, page);

	/* The page is gone for good, but not for the file. */
	gmem_punch(&g, 0, NR_LARGE);
	gmem_host_check_zero(&g, 0, NR_LARGE);
	TEST_ASSERT_EQ(gmem_large_pages(), before + 1);
	gmem_guest_finish(vcpu);
	gmem_guest_check_zero(vcpu, &g, 0, NR);
	gmem_destroy(&g);
	gmem_give_frames_back();
}

/* The error cannot be split off, as the page is held; no one gets to it anew. */
MAPPED_TEST(large_held_page)
{
	const u64 page = 5;
	int pipes[2];
	struct gmem g;

	__gmem_new(&g, vcpu->vm, NR_LARGE, GMEM_SHARED_FILE | GUEST_MEMFD_FLAG_HUGE, true);
	gmem_host_fill(&g, 0, NR_LARGE, VAL);
	hold_by_pipe(pipes, g.mem);
	gmem_poison_mapped(g.mem + page * PAGE_SIZE);
	gmem_guest_check_fill(vcpu, &g, 0, page, VAL);
	gmem_guest_check_fill(vcpu, &g, page + 1, NR - page - 1, VAL + page + 1);
	TEST_ASSERT_EQ(gmem_pre_fault(vcpu, g.gpa + page * PAGE_SIZE, 1), EHWPOISON);

	/* "Skipped by content", and then split off after all. */
	gmem_to_shared(&g, 0, NR_LARGE, GMEM_ZERO);
	release_pipe(pipes);
	gmem_to_private(&g, 0, NR, 0);
	gmem_guest_fill(vcpu, &g, 0, page, VAL);
	gmem_guest_fill(vcpu, &g, page + 1, NR - page - 1, VAL + page + 1);
	expect_guest_poison(vcpu, &g, page);
	gmem_punch(&g, page, 1);
	expect_fresh(vcpu, &g, page);
	gmem_destroy(&g);
	gmem_give_frames_back();
}

/*
 * A bad page excuses nothing for the pages beside it, not even if it is the first: the
 * holder of one of them would read what the guest writes there.
 */
static void test_held_beside(struct kvm_vcpu *vcpu, u64 bad, u64 held)
{
	struct gmem g;
	int pipes[2];
	u64 buf[8];

	gmem_new(&g, vcpu->vm, NR_LARGE, GMEM_SHARED_FILE | GUEST_MEMFD_FLAG_HUGE);
	gmem_host_fill(&g, 0, NR_LARGE, VAL);
	hold_by_pipe(pipes, g.mem + held * PAGE_SIZE);
	gmem_poison_mapped(g.mem + bad * PAGE_SIZE);
	TEST_ASSERT_EQ(user_code(&g, bad), BUS_MCEERR_AR);

	expect_held(&g, 0, NR_LARGE, 0, 0);
	expect_held(&g, 0, NR_LARGE, GMEM_PRESERVE, 0);
	expect_held(&g, held, 1, 0, held);
	TEST_ASSERT(!user_code(&g, held), "A refused conversion has changed page %lu", held);

	/* DISCARD asks for no holder, who keeps an orphan: the old bytes, no new ones. */
	gmem_to_private(&g, 0, NR_LARGE, GMEM_DISCARD);
	gmem_guest_fill(vcpu, &g, held, 1, OTHER);
	TEST_ASSERT_EQ(read(pipes[0], buf, sizeof(buf)), sizeof(buf));
	TEST_ASSERT_EQ(buf[0], VAL + held);

	release_pipe(pipes);
	gmem_destroy(&g);
}

MAPPED_TEST(held_beside_bad_page)
{
	test_held_beside(vcpu, 5, 7);
	test_held_beside(vcpu, 0, 7);
	test_held_beside(vcpu, 0, 1);
	test_held_beside(vcpu, NR_LARGE - 1, 0);
	gmem_give_frames_back();
}

/* A mapping of a large folio with a bad page is of single pages: the bad one is not. */
MAPPED_TEST(large_held_mapping)
{
	const u64 bad = 5;
	struct gmem g;
	int pipes[2];

	gmem_new(&g, vcpu->vm, NR_LARGE, GMEM_SHARED_FILE | GUEST_MEMFD_FLAG_HUGE);
	gmem_host_fill(&g, 0, NR_LARGE, VAL);
	gmem_guest_check_fill(vcpu, &g, 0, NR, VAL);
	hold_by_pipe(pipes, g.mem + 7 * PAGE_SIZE);
	gmem_poison_mapped(g.mem + bad * PAGE_SIZE);

	/* Whoever had the page mapped has lost it, and a neighbour doesn't bring it back. */
	TEST_ASSERT_EQ(user_code(&g, bad), BUS_MCEERR_AR);
	TEST_ASSERT(!madvise(g.mem, NR_LARGE * PAGE_SIZE, MADV_DONTNEED), "madvise()");
	TEST_ASSERT(!user_code(&g, bad - 1) && !user_code(&g, bad + 1), "Neighbours are lost");
	TEST_ASSERT_EQ(user_code(&g, bad), BUS_MCEERR_AR);
	TEST_ASSERT_EQ(user_code(&g, bad), BUS_MCEERR_AR);
	gmem_guest_check_fill(vcpu, &g, 0, bad, VAL);
	gmem_guest_check_fill(vcpu, &g, bad + 1, NR - bad - 1, VAL + bad + 1);
	expect_guest_poison(vcpu, &g, bad);

	release_pipe(pipes);
	gmem_destroy(&g);
	gmem_give_frames_back();
}

static u64 frame_flags(u64 frame)
{
	u64 flags = 0;
	int fd;

	fd = open("/proc/kpageflags", O_RDONLY);
	TEST_ASSERT_EQ(pread(fd, &flags, sizeof(flags), frame * sizeof(flags)), sizeof(flags));
	close(fd);
	return flags;
}

enum leave { LEAVE_PUNCH, LEAVE_DISCARD, LEAVE_CLOSE, LEAVE_ORPHAN, NR_LEAVE };

/*
 * A large folio that was held when memory failed leaves its file: its bad frame is
 * nobody's from then on, while its good ones are given out again.
 */
static void test_large_leaves(struct kvm_vm *vm, enum leave how)
{
	const u64 bad = 9, held = 7;
	u64 bad_frame, good_frame, flags;
	int pipes[2];
	struct gmem g;

	gmem_new(&g, vm, NR_LARGE, GMEM_SHARED_FILE | GUEST_MEMFD_FLAG_HUGE);
	gmem_host_fill(&g, 0, NR_LARGE, VAL);
	bad_frame = gmem_known_frame(g.mem + bad * PAGE_SIZE);
	good_frame = gmem_known_frame(g.mem + (bad + 1) * PAGE_SIZE);
	hold_by_pipe(pipes, g.mem + held * PAGE_SIZE);
	gmem_poison_mapped(g.mem + bad * PAGE_SIZE);

	/* The orphan goes to the allocator with the holder's reference, by his hand. */
	if (how != LEAVE_ORPHAN)
		release_pipe(pipes);
	if (how == LEAVE_PUNCH || how == LEAVE_ORPHAN)
		gmem_punch(&g, 0, NR_LARGE);
	else if (how == LEAVE_DISCARD)
		gmem_to_private(&g, 0, NR_LARGE, GMEM_DISCARD);
	if (how == LEAVE_ORPHAN)
		release_pipe(pipes);
	gmem_destroy(&g);

	/* Memory that is cached for this CPU comes to light. */
	gmem_write_file("/proc/sys/vm/drop_caches", "1");
	gmem_write_file("/proc/sys/vm/compact_memory", "1");

	flags = frame_flags(bad_frame);
	TEST_ASSERT(flags & BIT(KPF_HWPOISON), "%d: flags of the bad frame: 0x%lx", how, flags);
	TEST_ASSERT(!(flags & (BIT(KPF_BUDDY) | BIT(KPF_MMAP) | BIT(KPF_LRU) |
			       BIT(KPF_COMPOUND_HEAD) | BIT(KPF_COMPOUND_TAIL))),
		    "%d: the bad frame is in use or free to be used, flags 0x%lx", how, flags);
	flags = frame_flags(good_frame);
	TEST_ASSERT(!(flags & BIT(KPF_HWPOISON)), "%d: flags of the next frame: 0x%lx",
		    how, flags);
}

MAPPED_TEST(large_leaves_after_failure)
{
	u64 before = gmem_meminfo_kib("MemFree");
	enum leave how;
	int i;

	for (i = 0; i < 8; i++)
		for (how = 0; how < NR_LEAVE; how++)
			test_large_leaves(vcpu->vm, how);

	/* 32 folios of 2 MiB; only their bad frames are gone. */
	gmem_wait_until(gmem_meminfo_kib("MemFree") + SZ_32M / SZ_1K > before);
	gmem_give_frames_back();
}

/* A slot, or a whole VM, goes away with a poisoned page in it. */
MAPPED_TEST(teardown_with_poison)
{
	struct gmem g;

	new_filled_file(&g, vcpu->vm);
	gmem_poison_mapped(g.mem + 3 * PAGE_SIZE);
	gmem_to_private(&g, 0, NR / 2, 0);
	gmem_unbind(&g);
	gmem_bind(&g, GMEM_SLOT, GMEM_GPA);
	expect_guest_poison(vcpu, &g, 3);
	gmem_poison_mapped(g.mem + (NR - 1) * PAGE_SIZE);
	gmem_destroy(&g);
	gmem_give_frames_back();
}

/* ---- A frame of which the system wants to be rid ---- */

/*
 * The user gets to know the frame and goes.  It has only read: a user's store
 * would make the page dirty, and soft offline drops clean pages only, which it
 * does without a look at the mappings of the guest.
 */
static u64 new_guest_only_file(struct gmem *g, struct kvm_vcpu *vcpu, u64 page,
			       bool private, bool no_user_addr)
{
	u64 frame;

	__gmem_new(g, vcpu->vm, NR, GMEM_SHARED_FILE, no_user_addr);
	gmem_host_check_zero(g, 0, NR);
	frame = gmem_known_frame(g->mem + page * PAGE_SIZE);
	if (private)
		gmem_to_private(g, 0, NR, GMEM_PRESERVE);
	kvm_munmap(g->mem, g->size);

	/* Without the user, for its going may have zapped what the guest had. */
	gmem_guest_fill(vcpu, g, 0, NR, VAL);
	return frame;
}

/*
 * The kernel may refuse, or may know how to move the page.  The guest's bytes
 * stay, for the mapping that the guest has and for the next one.
 */
static void test_soft_offline(struct kvm_vcpu *vcpu, bool private, bool no_user_addr)
{
	const u64 page = 6;
	u64 frame, frame_after;
	struct gmem g;
	int r;

	frame = new_guest_only_file(&g, vcpu, page, private, no_user_addr);
	r = gmem_write_number(SOFT_OFFLINE, frame * PAGE_SIZE);
	TEST_ASSERT(!r || r == EBUSY, "Soft offline: %s", strerror(r));
	gmem_guest_check_fill(vcpu, &g, 0, NR, VAL);

	g.mem = kvm_mmap(g.size, PROT_READ | PROT_WRITE, MAP_SHARED, g.fd);
	gmem_unbind(&g);
	gmem_bind(&g, GMEM_SLOT, GMEM_GPA);
	gmem_assert_state(&g, 0, NR, private);
	gmem_guest_check_fill(vcpu, &g, 0, NR, VAL);

	gmem_to_shared(&g, 0, NR, GMEM_PRESERVE);
	gmem_host_check(&g, 0, NR, VAL);
	frame_after = gmem_known_frame(g.mem + page * PAGE_SIZE);
	TEST_ASSERT((frame_after == frame) == !!r,
		    "Frame 0x%lx, now 0x%lx; soft offline: %s", frame, frame_after,
		    strerror(r));
	gmem_destroy(&g);
	gmem_give_frames_back();
}

OFFLINE_TEST(soft_offline_private)
{
	test_soft_offline(vcpu, true, false);
	test_soft_offline(vcpu, true, true);
}

/* Shared, but with no user who would have it mapped at this time. */
OFFLINE_TEST(soft_offline_shared)
{
	test_soft_offline(vcpu, false, false);
	test_soft_offline(vcpu, false, true);
}

/* ---- A thousand pages, while everything else goes on ---- */

static u64 guest_stop;
static u64 guest_rounds;

static void guest_toucher(u64 gpa, u64 nr)
{
	u64 i, *p;

	while (!READ_ONCE(guest_stop)) {
		for (i = 0; i < nr; i++) {
			p = (u64 *)(gpa + i * PAGE_SIZE);
			WRITE_ONCE(*p, READ_ONCE(*p) + 1);
		}
		WRITE_ONCE(guest_rounds, guest_rounds + 1);
	}
	GUEST_DONE();
}

/* Users, converter, and the puncher of the race that has one. */
#define MAX_WORKERS	3

struct race {
	struct gmem_worker workers[MAX_WORKERS];
	u64 turns[MAX_WORKERS];
	struct kvm_vcpu *vcpu;
	struct gmem g;
	u64 convert_flags[4];
	u64 guest_errors;
	u64 user_errors;
	u32 user_pause[NR];
	bool punching;
	bool stop;
};

/* A page that the guest cannot use is replaced, as a VMM would. */
static void *race_vcpu(void *arg)
{
	struct race *r = arg;
	struct kvm_run *run = r->vcpu->run;
	u64 page;
	int ret;

	for (;;) {
		ret = _vcpu_run(r->vcpu);
		if (!ret)
			break;

		TEST_ASSERT(errno == EHWPOISON && run->exit_reason == KVM_EXIT_MEMORY_FAULT,
			    "KVM_RUN: errno %d", errno);
		page = (run->memory_fault.gpa - r->g.gpa) / PAGE_SIZE;
		TEST_ASSERT(page < NR, "Fault at gpa 0x%llx", run->memory_fault.gpa);
		gmem_punch(&r->g, page, 1);
		WRITE_ONCE(r->guest_errors, r->guest_errors + 1);
	}
	TEST_ASSERT_EQ(get_ucall(r->vcpu, NULL), UCALL_DONE);
	return NULL;
}

/*
 * A second remover, unless frames are poisoned by number: it may come too late,
 * and free a good page that has replaced the poisoned one already.
 */
static void user_step(void *arg, u64 turn)
{
	struct race *r = arg;
	u64 page = turn % NR;

	if (r->user_pause[page] && r->user_pause[page]--)
		return;
	if (gmem_try_write(r->g.mem + page * PAGE_SIZE + 8, page) != BUS_MCEERR_AR)
		return;

	r->user_pause[page] = USER_PAUSE;
	if (r->punching)
		gmem_punch(&r->g, page, 1);
	WRITE_ONCE(r->user_errors, r->user_errors + 1);
}

static void convert_step(void *arg, u64 turn)
{
	struct race *r = arg;
	int ret = __gmem_convert(r->g.fd, 0, r->g.size, turn & 1 ? GMEM_PRIVATE : 0,
				 r->convert_flags[turn & 3], NULL);

	TEST_ASSERT(!ret || ret == EAGAIN, "Conversion: %s", strerror(ret));
}

static void punch_step(void *arg, u64 turn)
{
	struct race *r = arg;

	gmem_punch(&r->g, turn % NR, 1 + turn % 2 % (NR - turn % NR));
	gmem_allocate(&r->g, turn % NR, 1);
}

static void race_finish(struct race *r)
{
	u64 *word = gmem_guest_var(r->vcpu->vm, guest_rounds), rounds;

	/* All pages are made good; the guest gets around again, and once more. */
	gmem_to_shared(&r->g, 0, NR, GMEM_DISCARD);
	rounds = READ_ONCE(*word);
	gmem_wait_until(READ_ONCE(*word) > rounds + 2);
	WRITE_ONCE(*gmem_guest_var(r->vcpu->vm, guest_stop), 1);
}

/* The count may be a few more; on a slow kernel it costs more than the errors. */
static void inject(struct gmem *g, void (*poison)(void *addr))
{
	u64 page, end = gmem_nr_poisoned() + RACE_FRAMES;

	while (gmem_nr_poisoned() < end) {
		for (page = 0; page < NR; page++) {
			poison(g->mem + page * PAGE_SIZE);
			sched_yield();
		}
	}
}

static void run_race(struct race *r, void (*poison)(void *addr))
{
	void (*const steps[])(void *arg, u64 turn) = { user_step, convert_step, punch_step };
	int i, nr_workers = r->punching ? MAX_WORKERS : MAX_WORKERS - 1;
	pthread_t vcpu_thread;

	vcpu_arch_set_entry_point(r->vcpu, guest_toucher);
	vcpu_args_set(r->vcpu, 2, r->g.gpa, NR);
	kvm_pthread_create(&vcpu_thread, NULL, race_vcpu, r);
	for (i = 0; i < nr_workers; i++)
		gmem_worker_start(&r->workers[i], steps[i], r, &r->stop, &r->turns[i]);

	inject(&r->g, poison);
	for (i = 0; i < nr_workers; i++)
		gmem_wait_until(READ_ONCE(r->turns[i]) > NR);

	WRITE_ONCE(r->stop, true);
	for (i = 0; i < nr_workers; i++)
		gmem_worker_join(&r->workers[i]);
	race_finish(r);
	kvm_pthread_join(vcpu_thread, NULL);
	TEST_ASSERT(r->guest_errors && r->user_errors,
		    "Met %lu times by the guest, %lu by the user",
		    r->guest_errors, r->user_errors);
	ksft_print_msg("Met %lu times by the guest, %lu by the user\n",
		       r->guest_errors, r->user_errors);

	gmem_to_shared(&r->g, 0, NR, GMEM_DISCARD);
	gmem_host_check_zero(&r->g, 0, NR);
	gmem_destroy(&r->g);
	gmem_give_frames_back();
}

/*
 * "error_remove_folio is called with the folio locked and takes no
 * invalidate_lock": no deadlock with a punch, which takes them in turn.
 */
MAPPED_TEST(race_shared)
{
	struct race r = {
		.vcpu = vcpu,
		.convert_flags = { 0, GMEM_DISCARD, GMEM_ZERO, GMEM_PRESERVE },
		.punching = true,
	};

	gmem_new(&r.g, vcpu->vm, NR, GMEM_SHARED_FILE);
	run_race(&r, gmem_poison_mapped);
}

/*
 * A frame may be poisoned by number as long as it is sure to be this file's or
 * poisoned already: only the vCPU's thread removes pages, and only bad ones.
 */
static void poison_frame(void *addr)
{
	u64 frame;

	/* Fails for a page that is private or poisoned; a load would log each of the latter. */
	if (madvise(addr, PAGE_SIZE, MADV_POPULATE_READ))
		return;

	frame = gmem_page_frame(addr);
	if (frame)
		gmem_write_number(GMEM_HWPOISON_DIR "corrupt-pfn", frame);
}

/* The same for pages that are private by the time the error comes, or not. */
FRAME_TEST(race_private)
{
	struct race r = {
		.vcpu = vcpu,
		.convert_flags = { 0, GMEM_ZERO, GMEM_PRESERVE, 0 },
	};

	gmem_new(&r.g, vcpu->vm, NR, GMEM_SHARED_FILE);
	run_race(&r, poison_frame);
}

TEST_HARNESS_MAIN
