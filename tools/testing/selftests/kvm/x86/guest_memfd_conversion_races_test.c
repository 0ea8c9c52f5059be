// SPDX-License-Identifier: GPL-2.0-only
/*
 * In-place conversion of guest_memfd memory against everything else that may
 * happen to a file: faults of the guest and of users, holes, allocation, other
 * conversions, slots that come and go, holders, fork, exit and SIGKILL.
 *
 * Each vCPU and each user thread owns one word in every page.  It knows what it
 * wrote there last, and must read that back: always as long as nothing but
 * PRESERVE is asked, or else that or zero if pages may be zeroed or replaced.
 * A store through a stale translation is lost, and found out by the next read.
 */
#include <asm/barrier.h>
#include <asm/kvm_para.h>

#include "gmem_util.h"
#include "kvm_test_harness.h"

#define NR		16ul
#define MAX_USERS	2
#define USER_WORD	64

/* Operations that each thread does at least before a case ends. */
#define MIN_OPS		GMEM_LOOPS(20)
#define ROUNDS		GMEM_LOOPS(60)

/* These take longer. */
#define RIVAL_ROUNDS	GMEM_LOOPS(30)
#define SLOT_ROUNDS	GMEM_LOOPS(15)

enum check {
	CHECK_EXACT,	/* The word is what was written last. */
	CHECK_LOOSE,	/* Or the page was dropped or zeroed meanwhile. */
	CHECK_NONE,	/* Or stores went to emulated MMIO. */
};

/* The guest's copies count. */
static u64 guest_stop;
static u64 guest_rounds[GMEM_MAX_VCPUS];

static bool word_is_good(enum check check, u64 seen, u64 last)
{
	return check == CHECK_NONE || seen == last || (check == CHECK_LOOSE && !seen);
}

static void guest_hammer(u64 id, u64 gpa, u64 nr, u64 check)
{
	u64 round, i, *word, seen;

	for (round = 1; !READ_ONCE(guest_stop); round++) {
		for (i = 0; i < nr; i++) {
			word = (u64 *)(gpa + i * PAGE_SIZE) + id;
			seen = READ_ONCE(*word);
			__GUEST_ASSERT(word_is_good(check, seen, round - 1),
				       "vCPU %lu, page %lu: 0x%lx in round %lu",
				       id, i, seen, round);
			WRITE_ONCE(*word, round);
		}
		WRITE_ONCE(guest_rounds[id], round);
	}
	GUEST_DONE();
}

struct race;

/* A user thread, or one of the others that are there to disturb. */
struct worker {
	struct gmem_worker thread;
	struct race *race;
	int id;

	/* What it wrote last, page by page. */
	u64 last[NR];
};

struct race {
	struct kvm_vcpu *vcpus[GMEM_MAX_VCPUS];
	pthread_t vcpu_threads[GMEM_MAX_VCPUS];
	struct worker users[MAX_USERS];
	struct worker others[MAX_USERS];
	struct kvm_vm *vm;
	struct gmem g;
	enum check check;
	u32 nr_vcpus;
	u32 nr_users;
	u32 nr_others;
	u32 seed;

	/* In memory shared with children. */
	struct shared {
		u64 ops[2 * MAX_USERS];
		/* Odd: all pages are private, from now until it changes. */
		u64 seq;
		bool stop;
	} *shared;
};

FIXTURE(race) {
	struct race r;
};

FIXTURE_VARIANT(race) {
	u32 nr_vcpus;
	bool no_user_addr;
};

FIXTURE_VARIANT_ADD(race, one_vcpu) {
	.nr_vcpus = 1,
};

FIXTURE_VARIANT_ADD(race, many_vcpus) {
	.nr_vcpus = GMEM_MAX_VCPUS,
};

FIXTURE_VARIANT_ADD(race, no_user_address) {
	.nr_vcpus = 2,
	.no_user_addr = true,
};

static void race_init(struct race *r, u32 nr_vcpus, bool no_user_addr)
{
	gmem_test_init();
	r->shared = kvm_mmap(PAGE_SIZE, PROT_READ | PROT_WRITE,
			     MAP_SHARED | MAP_ANONYMOUS, -1);
	r->nr_vcpus = nr_vcpus;
	r->seed = 1;
	r->vm = gmem_vm_create(nr_vcpus, guest_hammer, r->vcpus);
	virt_map(r->vm, GMEM_GPA, GMEM_GPA, NR);
	__gmem_new(&r->g, r->vm, NR, GMEM_SHARED_FILE, no_user_addr);
}

FIXTURE_SETUP(race)
{
	if (!gmem_conversion_supported())
		SKIP(return, "No in-place conversion of guest_memfd");

	race_init(&self->r, variant->nr_vcpus, variant->no_user_addr);
}

FIXTURE_TEARDOWN(race)
{
}

#define RACE_TEST(name)		TEST_F_TIMEOUT(race, name, GMEM_TIMEOUT_S)

/* ---- Threads ---- */

static void *vcpu_thread(void *arg)
{
	struct kvm_vcpu *vcpu = arg;

	vcpu_run(vcpu);
	TEST_ASSERT_EQ(gmem_get_ucall(vcpu), UCALL_DONE);
	return NULL;
}

static void *slotless_vcpu_thread(void *arg)
{
	struct kvm_vcpu *vcpu = arg;

	do {
		vcpu_run(vcpu);
	} while (gmem_tolerate_mmio(vcpu));
	TEST_ASSERT_EQ(gmem_get_ucall(vcpu), UCALL_DONE);
	return NULL;
}

/* One visit of a user to a page; no access works while the page is private. */
static void user_visit(struct race *r, u8 *mem, u64 page, int word, u64 *last)
{
	u64 *p = (u64 *)(mem + page * PAGE_SIZE) + word;
	u64 seq = READ_ONCE(r->shared->seq), seen = 0;
	bool read_ok, write_ok;

	/* The accesses come after the first look at seq; see convert_whole(). */
	smp_mb();
	read_ok = !gmem_try_read(p, &seen);
	if (read_ok)
		TEST_ASSERT(word_is_good(r->check, seen, *last),
			    "User word %d, page %lu: 0x%lx, want 0x%lx",
			    word, page, seen, *last);

	write_ok = !gmem_try_write(p, *last + 1);
	if (write_ok)
		(*last)++;

	/* And before the second. */
	smp_mb();
	TEST_ASSERT((!read_ok && !write_ok) || !(seq & 1) ||
		    READ_ONCE(r->shared->seq) != seq,
		    "User reached page %lu while it was private", page);
}

static void user_step(void *arg, u64 turn)
{
	struct worker *w = arg;
	u64 i;

	for (i = 0; i < NR; i++)
		user_visit(w->race, w->race->g.mem, i, USER_WORD + w->id, &w->last[i]);
}

static void start_guests(struct race *r)
{
	bool slotless = r->check == CHECK_NONE;
	u32 i;

	for (i = 0; i < r->nr_vcpus; i++) {
		vcpu_args_set(r->vcpus[i], 4, (u64)i, r->g.gpa, NR, (u64)r->check);
		kvm_pthread_create(&r->vcpu_threads[i], NULL,
				   slotless ? slotless_vcpu_thread : vcpu_thread,
				   r->vcpus[i]);
	}
}

static void start_worker(struct race *r, struct worker *w, int id,
			 void (*step)(void *arg, u64 turn))
{
	*w = (struct worker) { .race = r, .id = id };
	gmem_worker_start(&w->thread, step, w, &r->shared->stop, &r->shared->ops[id]);
}

static void start_users(struct race *r)
{
	for (r->nr_users = 0; r->nr_users < MAX_USERS; r->nr_users++)
		start_worker(r, &r->users[r->nr_users], r->nr_users, user_step);
}

/* A thread that does something else, over and over. */
static void start_other(struct race *r, void (*step)(void *arg, u64 turn))
{
	start_worker(r, &r->others[r->nr_others], MAX_USERS + r->nr_others, step);
	r->nr_others++;
}

static void race_start(struct race *r, enum check check)
{
	r->check = check;
	start_guests(r);
	start_users(r);
}

/* Each thread must have had its turns. */
static void race_stop(struct race *r)
{
	struct shared *s = r->shared;
	u32 i;

	for (i = 0; i < r->nr_vcpus; i++)
		gmem_wait_until(READ_ONCE(*gmem_guest_var(r->vm, guest_rounds[i])) >= MIN_OPS);
	for (i = 0; i < r->nr_users; i++)
		gmem_wait_until(READ_ONCE(s->ops[i]) >= MIN_OPS);
	for (i = 0; i < r->nr_others; i++)
		gmem_wait_until(READ_ONCE(s->ops[MAX_USERS + i]) >= MIN_OPS);

	WRITE_ONCE(*gmem_guest_var(r->vm, guest_stop), 1);
	WRITE_ONCE(s->stop, true);
	for (i = 0; i < r->nr_vcpus; i++)
		kvm_pthread_join(r->vcpu_threads[i], NULL);
	for (i = 0; i < r->nr_users; i++)
		gmem_worker_join(&r->users[i].thread);
	for (i = 0; i < r->nr_others; i++)
		gmem_worker_join(&r->others[i].thread);
}

static u64 race_random(struct race *r, u64 below)
{
	struct kvm_random_state state = { .seed = r->seed };
	u64 val = kvm_random_u32(&state) % below;

	r->seed = state.seed;
	return val;
}

/*
 * All pages private for a while, as user_visit() must find them, and back.  The
 * conversions order seq against everything else, as any system call that takes
 * a lock and flushes TLBs.
 */
static void convert_whole(struct race *r, u64 flags)
{
	gmem_to_private(&r->g, 0, NR, flags);
	WRITE_ONCE(r->shared->seq, r->shared->seq + 1);
	gmem_assert_private(&r->g, 0, NR);
	sched_yield();
	WRITE_ONCE(r->shared->seq, r->shared->seq + 1);
	gmem_to_shared(&r->g, 0, NR, flags);
	gmem_assert_shared(&r->g, 0, NR);
}

static void convert_part(struct race *r, u64 flags)
{
	u64 first = race_random(r, NR);
	u64 nr = 1 + race_random(r, NR - first);
	bool private = race_random(r, 2);

	gmem_convert_pages(&r->g, first, nr, private ? GMEM_PRIVATE : GMEM_SHARED, flags);
	gmem_assert_state(&r->g, first, nr, private);
}

static void race_convert(struct race *r, u64 flags)
{
	int i;

	for (i = 0; i < ROUNDS; i++) {
		if (i & 1)
			convert_part(r, flags);
		else
			convert_whole(r, flags);
	}
	gmem_to_shared(&r->g, 0, NR, flags);
}

/* ---- Cases ---- */

/* Invariant 6, and no byte is lost: faults of one to four vCPUs. */
RACE_TEST(guest_faults)
{
	struct race *r = &self->r;

	r->check = CHECK_EXACT;
	start_guests(r);
	race_convert(r, GMEM_PRESERVE);
	race_stop(r);
}

/* The same with users that fault on all pages, all the time. */
RACE_TEST(user_faults)
{
	struct race *r = &self->r;

	race_start(r, CHECK_EXACT);
	race_convert(r, 0);
	race_stop(r);
}

/* "ZERO: between zap and commit": the word is the last one or zero. */
RACE_TEST(zero)
{
	struct race *r = &self->r;

	race_start(r, CHECK_LOOSE);
	race_convert(r, GMEM_ZERO);
	race_stop(r);
}

/* "DISCARD: atomically with the change of state"; no stale translation. */
RACE_TEST(discard)
{
	struct race *r = &self->r;

	race_start(r, CHECK_LOOSE);
	race_convert(r, GMEM_DISCARD);
	race_stop(r);
}

static void punch_step(void *arg, u64 turn)
{
	struct worker *w = arg;

	gmem_punch(&w->race->g, turn % NR, 1 + turn % (NR - turn % NR));
}

static void allocate_step(void *arg, u64 turn)
{
	struct worker *w = arg;

	gmem_allocate(&w->race->g, turn % NR, 1 + turn % (NR - turn % NR));
}

/* Invariant 7: holes come and go below a conversion; state stays. */
RACE_TEST(punch)
{
	struct race *r = &self->r;

	race_start(r, CHECK_LOOSE);
	start_other(r, punch_step);
	race_convert(r, GMEM_PRESERVE);
	race_stop(r);
}

/* fallocate() takes pages that are there as they are. */
RACE_TEST(allocate)
{
	struct race *r = &self->r;

	race_start(r, CHECK_EXACT);
	start_other(r, allocate_step);
	race_convert(r, 0);
	race_stop(r);
}

RACE_TEST(punch_and_allocate)
{
	struct race *r = &self->r;

	race_start(r, CHECK_LOOSE);
	start_other(r, punch_step);
	start_other(r, allocate_step);
	race_convert(r, GMEM_DISCARD);
	race_stop(r);
}

static void hold_step(void *arg, u64 turn)
{
	struct worker *w = arg;
	struct iovec iov = {
		.iov_base = w->race->g.mem + turn % NR * PAGE_SIZE,
		.iov_len = 8,
	};
	int pipes[2];

	TEST_ASSERT(!pipe(pipes), "pipe() failed");
	if (vmsplice(pipes[1], &iov, 1, 0) == -1)
		TEST_ASSERT_EQ(errno, EFAULT);
	sched_yield();
	release_pipe(pipes);
}

/* Holders come and go: success or EAGAIN, and never half of a range. */
RACE_TEST(holders)
{
	struct race *r = &self->r;
	int i, ret, eagain = 0;
	u64 page;

	race_start(r, CHECK_EXACT);
	start_other(r, hold_step);
	for (i = 0; i < ROUNDS; i++) {
		ret = __gmem_convert(r->g.fd, 0, r->g.size, GMEM_PRIVATE, 0, NULL);
		TEST_ASSERT(!ret || ret == EAGAIN, "%s", strerror(ret));
		for (page = 0; page < NR; page++)
			gmem_assert_state(&r->g, page, 1, !ret);
		eagain += !!ret;
		gmem_to_shared(&r->g, 0, NR, 0);
	}
	race_stop(r);
	ksft_print_msg("%d of %d conversions met a holder\n", eagain, i);
}

/* Holders do not matter to DISCARD. */
RACE_TEST(holders_discard)
{
	struct race *r = &self->r;
	int i;

	race_start(r, CHECK_LOOSE);
	start_other(r, hold_step);
	for (i = 0; i < ROUNDS; i++) {
		TEST_ASSERT_EQ(__gmem_convert(r->g.fd, 0, r->g.size, GMEM_PRIVATE,
					      GMEM_DISCARD, NULL), 0);
		gmem_assert_private(&r->g, 0, NR);
		TEST_ASSERT_EQ(__gmem_convert(r->g.fd, 0, r->g.size, GMEM_SHARED,
					      GMEM_DISCARD, NULL), 0);
	}
	race_stop(r);
}

static void map_step(void *arg, u64 turn)
{
	struct worker *w = arg;
	struct gmem *g = &w->race->g;
	u64 page = turn % NR;
	u8 *mem;

	mem = kvm_mmap(g->size, PROT_READ | PROT_WRITE, MAP_SHARED, g->fd);
	user_visit(w->race, mem, page, USER_WORD + w->id, &w->last[page]);
	user_visit(w->race, mem, page, USER_WORD + w->id, &w->last[page]);
	if (turn & 1)
		madvise(mem, g->size, MADV_POPULATE_WRITE);
	kvm_munmap(mem, g->size);
}

/* Mappings that appear and vanish are unmapped like old ones. */
RACE_TEST(mmap)
{
	struct race *r = &self->r;

	race_start(r, CHECK_EXACT);
	start_other(r, map_step);
	start_other(r, map_step);
	race_convert(r, 0);
	race_stop(r);
}

static void fork_step(void *arg, u64 turn)
{
	int status = 0;
	pid_t pid;

	pid = fork();
	if (!pid) {
		user_step(arg, 0);
		_exit(0);
	}
	TEST_ASSERT(waitpid(pid, &status, 0) == pid && !status,
		    "Child: status 0x%x", status);
}

/* Children inherit the mapping in the middle of it all. */
RACE_TEST(fork)
{
	struct race *r = &self->r;

	/* What a child wrote, its parent does not know. */
	race_start(r, CHECK_NONE);
	start_other(r, fork_step);
	race_convert(r, 0);
	race_stop(r);
}

static void pre_fault_step(void *arg, u64 turn)
{
	struct race *r = ((struct worker *)arg)->race;
	struct kvm_pre_fault_memory range = { .gpa = r->g.gpa, .size = r->g.size };
	int ret = __vcpu_ioctl(r->vcpus[0], KVM_PRE_FAULT_MEMORY, &range);

	TEST_ASSERT(!ret || errno == EAGAIN || errno == EINTR,
		    "KVM_PRE_FAULT_MEMORY: errno %d", errno);
}

/* Pre-faults read the state under the same rules as faults. */
RACE_TEST(pre_fault)
{
	struct kvm_vcpu *first = self->r.vcpus[0];
	struct race *r = &self->r;

	if (!kvm_check_cap(KVM_CAP_PRE_FAULT_MEMORY))
		SKIP(return, "No KVM_PRE_FAULT_MEMORY");

	/* The first vCPU pre-faults; the others run. */
	r->check = CHECK_LOOSE;
	r->nr_vcpus--;
	memmove(r->vcpus, r->vcpus + 1, r->nr_vcpus * sizeof(*r->vcpus));
	start_guests(r);
	start_users(r);
	r->vcpus[0] = first;
	start_other(r, pre_fault_step);
	race_convert(r, GMEM_DISCARD);
	race_stop(r);
}

static void clock_step(void *arg, u64 turn)
{
	struct worker *w = arg;
	struct kvm_clock_data data = {};

	vm_ioctl(w->race->vm, KVM_SET_CLOCK, &data);
}

/* KVM writes its clocks to the last page, when it can, or to none. */
RACE_TEST(kvmclock)
{
	struct race *r = &self->r;
	gpa_t end = r->g.gpa + r->g.size;
	u32 i;

	for (i = 0; i < r->nr_vcpus; i++)
		vcpu_set_msr(self->r.vcpus[i], MSR_KVM_SYSTEM_TIME_NEW,
			     (end - (i + 1) * 256) | KVM_MSR_ENABLED);

	race_start(r, CHECK_EXACT);
	start_other(r, clock_step);
	race_convert(r, 0);
	race_stop(r);
}

/* ---- Conversions against each other ---- */

#define OVERLAP_FIRST	4ul
#define OVERLAP_NR	8ul

static void overlap_step(void *arg, u64 turn)
{
	struct worker *w = arg;

	gmem_convert_pages(&w->race->g, OVERLAP_FIRST, OVERLAP_NR,
			   turn & 1 ? GMEM_PRIVATE : GMEM_SHARED, 0);
}

/* Conversions of one file in turn: pages no one else converts are exact. */
RACE_TEST(overlapping_conversions)
{
	struct race *r = &self->r;
	int i, private;

	r->check = CHECK_EXACT;
	start_guests(r);
	start_other(r, overlap_step);
	start_other(r, overlap_step);
	for (i = 0; i < ROUNDS; i++) {
		private = i & 1;
		gmem_convert_pages(&r->g, 0, NR, private ? GMEM_PRIVATE : 0, 0);
		gmem_assert_state(&r->g, 0, OVERLAP_FIRST, private);
		gmem_assert_state(&r->g, OVERLAP_FIRST + OVERLAP_NR,
				  NR - OVERLAP_FIRST - OVERLAP_NR, private);
	}
	race_stop(r);

	/* Whoever was last, the common part is of one state. */
	gmem_assert_state(&r->g, OVERLAP_FIRST, OVERLAP_NR,
			  gmem_page_is_private(&r->g, OVERLAP_FIRST));
}

struct rival {
	pthread_barrier_t *barrier;
	struct gmem *g;
	u64 first;
	bool private;
};

static void *rival_thread(void *arg)
{
	struct rival *rival = arg;

	pthread_barrier_wait(rival->barrier);
	gmem_convert_pages(rival->g, rival->first, NR - 4,
			   rival->private ? GMEM_PRIVATE : 0, 0);
	return NULL;
}

/* Two at once, to opposite states: the overlap is all of one of them. */
RACE_TEST(rival_conversions)
{
	struct race *r = &self->r;
	pthread_barrier_t barrier;
	struct rival rivals[2];
	pthread_t threads[2];
	int i, j;

	pthread_barrier_init(&barrier, NULL, 2);
	for (i = 0; i < RIVAL_ROUNDS; i++) {
		for (j = 0; j < 2; j++) {
			rivals[j] = (struct rival) {
				&barrier, &r->g, j * 4, (i ^ j) & 1
			};
			kvm_pthread_create(&threads[j], NULL, rival_thread, &rivals[j]);
		}
		for (j = 0; j < 2; j++)
			kvm_pthread_join(threads[j], NULL);

		gmem_assert_state(&r->g, 0, 4, rivals[0].private);
		gmem_assert_state(&r->g, 4, NR - 8, gmem_page_is_private(&r->g, 4));
		gmem_assert_state(&r->g, NR - 4, 4, rivals[1].private);
	}
	pthread_barrier_destroy(&barrier);
}

/* ---- Slots ---- */

static void convert_step(void *arg, u64 turn)
{
	struct worker *w = arg;

	gmem_convert_pages(&w->race->g, turn % NR, 1 + turn % (NR - turn % NR),
			   turn & 1 ? GMEM_PRIVATE : GMEM_SHARED, 0);
}

/* A slot comes and goes below guests that use it, while its file converts. */
RACE_TEST(slot_recreated)
{
	struct race *r = &self->r;
	int i;

	race_start(r, CHECK_NONE);
	start_other(r, convert_step);
	for (i = 0; i < SLOT_ROUNDS; i++) {
		gmem_unbind(&r->g);
		gmem_bind(&r->g, GMEM_SLOT, GMEM_GPA);
	}
	race_stop(r);
}

/*
 * A guest that does not touch the slot meanwhile sees nothing of it: no exit,
 * and afterwards the same state and the same bytes.
 */
RACE_TEST(slot_recreated_below_idle_guest)
{
	struct race *r = &self->r;
	struct gmem spare;
	int i;

	gmem_create(&spare, r->vm, NR * PAGE_SIZE, GMEM_SHARED_FILE);
	gmem_host_fill(&spare, 0, NR, 42);
	gmem_to_private(&spare, 0, NR / 2, 0);
	gmem_bind(&spare, GMEM_SLOT + 1, GMEM_GPA + SZ_2M);

	/* CHECK_EXACT: any exit of the guests is an error. */
	race_start(r, CHECK_EXACT);
	for (i = 0; i < SLOT_ROUNDS; i++) {
		gmem_unbind(&spare);
		gmem_bind(&spare, GMEM_SLOT + 1, GMEM_GPA + SZ_2M);
		gmem_assert_private(&spare, 0, NR / 2);
		gmem_host_check(&spare, NR / 2, NR / 2, 42 + NR / 2);
	}
	race_stop(r);
	gmem_to_shared(&spare, 0, NR, 0);
	gmem_host_check(&spare, 0, NR, 42);
}

/* ---- Who waits for a conversion ---- */

#define LONG_NR		(GMEM_LOOPS(2048) + NR)

/* An emulator may run a whole conversion at one go, but not that often. */
#define LONG_ROUNDS	2000
#define LONG_HITS	5

/* A bystander waits for a page that is being converted, while another thread maps. */
struct wait {
	struct gmem g;
	pid_t bystander;
	/* Odd while a conversion to shared is under way, which is never refused. */
	u64 turn;
	u64 hits;
	bool stop;
};

/* Wait for a page, in a fault, to become shared; over and over. */
static void *wait_for_page(void *arg)
{
	struct wait *w = arg;

	WRITE_ONCE(w->bystander, syscall(SYS_gettid));
	while (!READ_ONCE(w->stop)) {
		if (madvise(w->g.mem, PAGE_SIZE, MADV_POPULATE_READ))
			TEST_ASSERT(errno == EFAULT, "MADV_POPULATE_READ: errno %d", errno);
		else
			madvise(w->g.mem, PAGE_SIZE, MADV_DONTNEED);
	}
	return NULL;
}

/*
 * The turn in which the bystander sleeps in its fault, 0 if it doesn't.  As long as both
 * go on, so does one and the same conversion.
 */
static u64 awaited_turn(struct wait *w)
{
	u64 turn = READ_ONCE(w->turn);

	return turn & 1 && gmem_task_waits(READ_ONCE(w->bystander)) ? turn : 0;
}

/* Take mmap_lock for write, which has to wait for whoever holds it in a fault. */
static void *map_and_unmap(void *arg)
{
	struct wait *w = arg;
	u64 turn;

	while (!READ_ONCE(w->stop)) {
		turn = awaited_turn(w);
		kvm_munmap(kvm_mmap(PAGE_SIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1),
			   PAGE_SIZE);
		if (turn && awaited_turn(w) == turn)
			WRITE_ONCE(w->hits, w->hits + 1);
	}
	return NULL;
}

static void convert_and_map(struct race *r, u64 flags)
{
	struct wait w = {};
	pthread_t threads[2];
	u64 i;

	gmem_create(&w.g, r->vm, LONG_NR * PAGE_SIZE, GMEM_SHARED_FILE);
	kvm_pthread_create(&threads[0], NULL, wait_for_page, &w);
	gmem_wait_until(READ_ONCE(w.bystander));
	kvm_pthread_create(&threads[1], NULL, map_and_unmap, &w);

	for (i = 0; i < LONG_ROUNDS && READ_ONCE(w.hits) < LONG_HITS; i++) {
		gmem_to_private(&w.g, 0, LONG_NR, flags);
		gmem_allocate(&w.g, 0, LONG_NR);
		WRITE_ONCE(w.turn, w.turn + 1);
		gmem_to_shared(&w.g, 0, LONG_NR, flags);
		WRITE_ONCE(w.turn, w.turn + 1);
	}
	TEST_ASSERT(READ_ONCE(w.hits) >= LONG_HITS,
		    "mmap() went on %lu times in %lu conversions of %lu pages",
		    READ_ONCE(w.hits), i, LONG_NR);

	WRITE_ONCE(w.stop, true);
	kvm_pthread_join(threads[0], NULL);
	kvm_pthread_join(threads[1], NULL);
	gmem_destroy(&w.g);
}

/* Whoever waits for a page that is being converted keeps no one from mmap(). */
RACE_TEST(mmap_goes_on)
{
	convert_and_map(&self->r, GMEM_ZERO);
	convert_and_map(&self->r, GMEM_DISCARD);
}

/* ---- The end ---- */

static void convert_all_step(void *arg, u64 turn)
{
	struct worker *w = arg;

	gmem_convert_pages(&w->race->g, 0, NR, turn & 1 ? GMEM_PRIVATE : GMEM_SHARED,
			   turn & 2 ? GMEM_DISCARD : GMEM_PRESERVE);
}

/* Invariant 8: the VM's descriptors are closed while its file converts. */
RACE_TEST(vm_closed)
{
	struct race *r = &self->r;
	u64 ops;

	start_other(r, convert_all_step);
	gmem_wait_until(READ_ONCE(r->shared->ops[MAX_USERS]) > MIN_OPS);
	kvm_vm_release(r->vm);
	ops = READ_ONCE(r->shared->ops[MAX_USERS]);
	gmem_wait_until(READ_ONCE(r->shared->ops[MAX_USERS]) > ops + MIN_OPS);
	WRITE_ONCE(r->shared->stop, true);
	gmem_worker_join(&r->others[0].thread);
}

static void *vcpu_until_fault(void *arg)
{
	int ret = _vcpu_run(arg);

	TEST_ASSERT(ret == -1 && errno == EFAULT, "KVM_RUN: %d, errno %d", ret, errno);
	return NULL;
}

/* The file goes while guests use it: EFAULT for each of them. */
RACE_TEST(file_closed)
{
	struct race *r = &self->r;
	u32 i;

	for (i = 0; i < r->nr_vcpus; i++) {
		vcpu_args_set(r->vcpus[i], 4, (u64)i, r->g.gpa, NR, (u64)CHECK_LOOSE);
		kvm_pthread_create(&r->vcpu_threads[i], NULL, vcpu_until_fault,
				   r->vcpus[i]);
	}
	for (i = 0; i < r->nr_vcpus; i++)
		gmem_wait_until(READ_ONCE(*gmem_guest_var(r->vm, guest_rounds[i])) >= MIN_OPS);

	gmem_to_private(&r->g, 0, NR / 2, 0);
	kvm_munmap(r->g.mem, r->g.size);
	close(r->g.fd);
	for (i = 0; i < r->nr_vcpus; i++)
		kvm_pthread_join(r->vcpu_threads[i], NULL);
}

/* Enough to be seen in /proc/meminfo beside whatever else is going on. */
#define BALLAST		(32ul * SZ_1M)
#define SLACK_KIB	(8ul * 1024)

static void doomed_child(struct race *r, struct shared *shared, u32 nr_vcpus)
{
	struct gmem ballast;

	memset(r, 0, sizeof(*r));
	race_init(r, nr_vcpus, false);
	r->shared = shared;
	gmem_create(&ballast, r->vm, BALLAST, GMEM_SHARED_FILE);
	gmem_allocate(&ballast, 0, BALLAST / PAGE_SIZE);
	gmem_convert_pages(&ballast, 0, BALLAST / PAGE_SIZE / 2, GMEM_PRIVATE, 0);

	race_start(r, CHECK_LOOSE);
	start_other(r, punch_step);
	start_other(r, hold_step);
	for (;;) {
		gmem_convert_pages(&r->g, 0, NR, GMEM_PRIVATE, GMEM_DISCARD);
		gmem_convert_pages(&r->g, 0, NR, GMEM_SHARED, 0);
		convert_part(r, 0);
	}
}

/* Invariant 8: SIGKILL at any instruction returns every page. */
RACE_TEST(sigkill)
{
	u64 before = gmem_meminfo_kib("Unevictable");
	struct shared *shared;
	int i, status;
	pid_t pid;

	for (i = 0; i < GMEM_LOOPS(5); i++) {
		shared = kvm_mmap(PAGE_SIZE, PROT_READ | PROT_WRITE,
				  MAP_SHARED | MAP_ANONYMOUS, -1);
		pid = fork();
		if (!pid) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			doomed_child(&self->r, shared, variant->nr_vcpus);
		}
		gmem_wait_until(READ_ONCE(shared->ops[0]) > i * 7 &&
				READ_ONCE(shared->ops[MAX_USERS]) > i * 5);
		kill(pid, SIGKILL);
		TEST_ASSERT_EQ(waitpid(pid, &status, 0), pid);
		TEST_ASSERT(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL,
			    "Child: status 0x%x", status);
		kvm_munmap(shared, PAGE_SIZE);
	}

	/* Files are closed before the parent learns of it, memory follows. */
	gmem_wait_until(gmem_meminfo_kib("Unevictable") < before + SLACK_KIB);
}

TEST_HARNESS_MAIN
