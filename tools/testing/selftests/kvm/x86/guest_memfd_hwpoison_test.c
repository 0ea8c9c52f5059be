// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory errors in guest_memfd files with in-place conversion, in shared and in
 * private pages, alone and against holes, conversions and faults.
 *
 * Errors are simulated: MADV_HWPOISON on a shared page, and by frame number for
 * a private one, which is learnt while the page is shared.  The frames are given
 * back to the system at the end, if the kernel lets them go.
 */
#include "gmem_fixture.h"

#define HWPOISON_DIR		"/sys/kernel/debug/hwpoison/"

/* Frames to poison in each of the two races, and how long that may take. */
#define RACE_FRAMES		GMEM_LOOPS(500)
#define RACE_NS			(30ul * NSEC_PER_SEC)

/* The user leaves a bad page alone for so many rounds; each visit is logged. */
#define USER_PAUSE		64

/* ---- Frames ---- */

static u64 frames[2 * RACE_FRAMES + 64];
static u32 nr_frames;

static u64 page_frame(void *addr)
{
	static int fd = -1;
	u64 entry = 0;

	if (fd < 0)
		fd = open("/proc/self/pagemap", O_RDONLY);
	if (pread(fd, &entry, 8, (u64)addr / PAGE_SIZE * 8) != 8 || !(entry >> 63))
		return 0;
	return entry & ((1ull << 55) - 1);
}

static int write_frame(const char *file, u64 frame)
{
	char path[128], text[32];
	int fd, len, r;

	snprintf(path, sizeof(path), HWPOISON_DIR "%s", file);
	fd = open(path, O_WRONLY);
	if (fd < 0)
		return errno;

	len = snprintf(text, sizeof(text), "0x%lx", frame);
	r = write(fd, text, len) == len ? 0 : errno;
	close(fd);
	return r;
}

static void remember_frame(u64 frame)
{
	if (frame && nr_frames < ARRAY_SIZE(frames))
		frames[nr_frames++] = frame;
}

/* Frames that were not poisoned after all are refused; nothing is lost. */
static void give_frames_back(void)
{
	u32 i, failed = 0;

	for (i = 0; i < nr_frames; i++)
		failed += !!write_frame("unpoison-pfn", frames[i]);
	ksft_print_msg("%u frames given back, %u not\n", nr_frames - failed, failed);
	nr_frames = 0;
}

/*
 * The result does not tell: a page that stays in its file counts as failed
 * recovery.  SIGBUS may come at once, if the page was poisoned before.
 */
static void poison_mapped(void *addr)
{
	remember_frame(page_frame(addr));
	gmem_try(madvise(addr, PAGE_SIZE, MADV_HWPOISON));
}

static bool can_poison_mapped(void)
{
	return !madvise(NULL, 0, MADV_HWPOISON);
}

static bool can_poison_frames(void)
{
	return !access(HWPOISON_DIR "corrupt-pfn", W_OK);
}

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
GMEM_TEST(shared_page_punched)
{
	const u64 page = 5;
	struct gmem g;

	if (!can_poison_mapped())
		SKIP(return, "No MADV_HWPOISON");

	gmem_new(&g, self->vm, NR, GMEM_SHARED_FILE);
	gmem_host_fill(&g, 0, NR, VAL);
	gmem_guest_check_fill(self->vcpu, &g, 0, NR, VAL);

	poison_mapped(g.mem + page * PAGE_SIZE);
	TEST_ASSERT_EQ(user_code(&g, page), BUS_MCEERR_AR);
	TEST_ASSERT_EQ(user_code(&g, page), BUS_MCEERR_AR);
	gmem_host_check(&g, 0, page, VAL);
	gmem_host_check(&g, page + 1, NR - page - 1, VAL + page + 1);
	expect_guest_poison(self->vcpu, &g, page);

	/* "DISCARD and punch remove it." */
	gmem_punch(&g, page, 1);
	gmem_host_check_zero(&g, page, 1);
	expect_fresh(self->vcpu, &g, page);
	gmem_destroy(&g);
	give_frames_back();
}

/*
 * "A poisoned page is skipped by reference check and content; its state
 * changes with the range."
 */
GMEM_TEST(shared_page_converted)
{
	const u64 flags[] = { 0, GMEM_PRESERVE };
	const u64 page = 5;
	struct gmem g;
	int i;

	if (!can_poison_mapped())
		SKIP(return, "No MADV_HWPOISON");

	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		gmem_new(&g, self->vm, NR, GMEM_SHARED_FILE);
		gmem_host_fill(&g, 0, NR, VAL);
		poison_mapped(g.mem + page * PAGE_SIZE);

		gmem_to_private(&g, 0, NR, flags[i]);
		expect_private(&g, page);
		expect_guest_poison(self->vcpu, &g, page);

		gmem_to_shared(&g, 0, NR, flags[i]);
		TEST_ASSERT_EQ(user_code(&g, page), BUS_MCEERR_AR);
		gmem_host_check(&g, 0, page, VAL);

		gmem_to_private(&g, page, 1, GMEM_DISCARD);
		expect_fresh(self->vcpu, &g, page);
		gmem_destroy(&g);
	}
	give_frames_back();
}

/* ZERO does not touch the frame, and does not heal the page. */
GMEM_TEST(shared_page_zeroed)
{
	const u64 page = 5;
	struct gmem g;

	if (!can_poison_mapped())
		SKIP(return, "No MADV_HWPOISON");

	gmem_new(&g, self->vm, NR, GMEM_SHARED_FILE);
	gmem_host_fill(&g, 0, NR, VAL);
	poison_mapped(g.mem + page * PAGE_SIZE);

	gmem_to_private(&g, 0, NR, GMEM_ZERO);
	gmem_guest_fill(self->vcpu, &g, 0, page, VAL);
	gmem_guest_fill(self->vcpu, &g, page + 1, NR - page - 1, VAL + page + 1);
	expect_guest_poison(self->vcpu, &g, page);
	gmem_to_shared(&g, 0, NR, 0);
	TEST_ASSERT_EQ(user_code(&g, page), BUS_MCEERR_AR);

	gmem_to_shared(&g, page, 1, GMEM_DISCARD);
	gmem_host_check_zero(&g, page, 1);
	expect_fresh(self->vcpu, &g, page);
	gmem_destroy(&g);
	give_frames_back();
}

static void test_private_page(struct kvm_vcpu *vcpu, u64 remove_flags)
{
	const u64 page = 9;
	struct gmem g;
	u64 frame;

	gmem_new(&g, vcpu->vm, NR, GMEM_SHARED_FILE);
	gmem_host_fill(&g, 0, NR, VAL);
	frame = page_frame(g.mem + page * PAGE_SIZE);
	TEST_ASSERT(frame, "No frame in /proc/self/pagemap");

	gmem_to_private(&g, 0, NR, 0);
	gmem_guest_check_fill(vcpu, &g, 0, NR, VAL);
	remember_frame(frame);
	write_frame("corrupt-pfn", frame);
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
	gmem_destroy(&g);
}

/* The same for an error in a private page, removed in both ways. */
GMEM_TEST(private_page)
{
	if (!can_poison_frames())
		SKIP(return, "No " HWPOISON_DIR "corrupt-pfn");

	test_private_page(self->vcpu, 0);
	test_private_page(self->vcpu, GMEM_DISCARD);
	give_frames_back();
}

/* A slot, or a whole VM, goes away with a poisoned page in it. */
GMEM_TEST(teardown_with_poison)
{
	struct gmem g;

	if (!can_poison_mapped())
		SKIP(return, "No MADV_HWPOISON");

	gmem_new(&g, self->vm, NR, GMEM_SHARED_FILE);
	gmem_host_fill(&g, 0, NR, VAL);
	poison_mapped(g.mem + 3 * PAGE_SIZE);
	gmem_to_private(&g, 0, NR / 2, 0);
	gmem_unbind(&g);
	gmem_bind(&g, GMEM_SLOT, GMEM_GPA);
	expect_guest_poison(self->vcpu, &g, 3);
	poison_mapped(g.mem + (NR - 1) * PAGE_SIZE);
	gmem_destroy(&g);
	give_frames_back();
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

struct race {
	struct kvm_vcpu *vcpu;
	struct gmem g;
	u64 convert_flags[4];
	u64 guest_errors;
	u64 user_errors;
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
static void *race_user(void *arg)
{
	struct race *r = arg;
	u32 pause[NR] = {};
	u64 page;
	int code;

	while (!READ_ONCE(r->stop)) {
		for (page = 0; page < NR; page++) {
			if (pause[page] && pause[page]--)
				continue;
			code = gmem_try_write(r->g.mem + page * PAGE_SIZE + 8, page);
			if (code != BUS_MCEERR_AR)
				continue;
			pause[page] = USER_PAUSE;
			if (r->punching)
				gmem_punch(&r->g, page, 1);
			WRITE_ONCE(r->user_errors, r->user_errors + 1);
		}
	}
	return NULL;
}

static void *race_converter(void *arg)
{
	struct race *r = arg;
	u64 i;
	int ret;

	for (i = 0; !READ_ONCE(r->stop); i++) {
		ret = __gmem_convert(r->g.fd, 0, r->g.size, i & 1 ? GMEM_PRIVATE : 0,
				     r->convert_flags[i & 3], NULL);
		TEST_ASSERT(!ret || ret == EAGAIN, "Conversion: %s", strerror(ret));
	}
	return NULL;
}

static void *race_puncher(void *arg)
{
	struct race *r = arg;
	u64 i;

	for (i = 0; READ_ONCE(r->punching) && !READ_ONCE(r->stop); i++) {
		gmem_punch(&r->g, i % NR, 1 + i % 2 % (NR - i % NR));
		gmem_allocate(&r->g, i % NR, 1);
	}
	return NULL;
}

static void race_finish(struct race *r)
{
	u64 *word, rounds;

	/* All pages are made good; the guest gets around again, and once more. */
	gmem_to_shared(&r->g, 0, NR, GMEM_DISCARD);
	word = addr_gva2hva(r->vcpu->vm, (gva_t)&guest_rounds);
	rounds = READ_ONCE(*word);
	gmem_wait_until(READ_ONCE(*word) > rounds + 2);

	word = addr_gva2hva(r->vcpu->vm, (gva_t)&guest_stop);
	WRITE_ONCE(*word, 1);
}

static void run_race(struct race *r, void (*inject)(struct race *r))
{
	void *(*const fns[])(void *) = { race_user, race_converter, race_puncher };
	pthread_t vcpu_thread, threads[ARRAY_SIZE(fns)];
	int i;

	vcpu_arch_set_entry_point(r->vcpu, guest_toucher);
	vcpu_args_set(r->vcpu, 2, r->g.gpa, NR);
	kvm_pthread_create(&vcpu_thread, NULL, race_vcpu, r);
	for (i = 0; i < ARRAY_SIZE(fns); i++)
		kvm_pthread_create(&threads[i], NULL, fns[i], r);

	inject(r);

	WRITE_ONCE(r->stop, true);
	for (i = 0; i < ARRAY_SIZE(fns); i++)
		kvm_pthread_join(threads[i], NULL);
	race_finish(r);
	kvm_pthread_join(vcpu_thread, NULL);
	ksft_print_msg("%u frames, met %lu times by the guest, %lu by the user\n",
		       nr_frames, r->guest_errors, r->user_errors);

	gmem_to_shared(&r->g, 0, NR, GMEM_DISCARD);
	gmem_host_check_zero(&r->g, 0, NR);
	gmem_destroy(&r->g);
	give_frames_back();
}

static void inject_mapped(struct race *r)
{
	u64 i, end = gmem_now_ns() + RACE_NS;

	for (i = 0; nr_frames < RACE_FRAMES && gmem_now_ns() < end; i++) {
		poison_mapped(r->g.mem + i % NR * PAGE_SIZE);
		sched_yield();
	}
}

/*
 * "error_remove_folio is called with the folio locked and takes no
 * invalidate_lock": no deadlock with a punch, which takes them in turn.
 */
GMEM_TEST(race_shared)
{
	struct race r = {
		.vcpu = self->vcpu,
		.convert_flags = { 0, GMEM_DISCARD, GMEM_ZERO, GMEM_PRESERVE },
		.punching = true,
	};

	if (!can_poison_mapped())
		SKIP(return, "No MADV_HWPOISON");

	gmem_new(&r.g, self->vm, NR, GMEM_SHARED_FILE);
	run_race(&r, inject_mapped);
}

/*
 * A frame may be poisoned by number as long as it is sure to be this file's or
 * poisoned already: only the vCPU's thread removes pages, and only bad ones.
 */
static void inject_frames(struct race *r)
{
	u64 i, frame, end = gmem_now_ns() + RACE_NS;

	for (i = 0; nr_frames < RACE_FRAMES && gmem_now_ns() < end; i++) {
		frame = page_frame(r->g.mem + i % NR * PAGE_SIZE);
		if (!frame) {
			sched_yield();
			continue;
		}
		remember_frame(frame);
		write_frame("corrupt-pfn", frame);
	}
}

/* The same for pages that are private by the time the error comes, or not. */
GMEM_TEST(race_private)
{
	struct race r = {
		.vcpu = self->vcpu,
		.convert_flags = { 0, GMEM_ZERO, GMEM_PRESERVE, 0 },
	};

	if (!can_poison_frames())
		SKIP(return, "No " HWPOISON_DIR "corrupt-pfn");

	gmem_new(&r.g, self->vm, NR, GMEM_SHARED_FILE);
	run_race(&r, inject_frames);
}

TEST_HARNESS_MAIN
