// SPDX-License-Identifier: GPL-2.0-only
/*
 * Combinations of what other tests have alone, amid a conversion in place.
 *
 * A long conversion claims its range and lets go of the file's lock.  Each case stops
 * one there, does the worst that it can think of, and lets the conversion end.
 *
 * Where it stops is no matter of luck: a kprobe in a function that the conversion calls
 * wakes up a thread of real-time priority on the same CPU, and as long as that thread
 * spins the conversion doesn't run, see brake_thread().  Then faults in the range are seen
 * to wait, and those outside to go on, before a case begins.
 */
#include <asm/barrier.h>
#include <linux/perf_event.h>
#include <poll.h>
#include <sys/syscall.h>

#include "gmem_util.h"
#include "kvm_test_harness.h"
#include "svm_util.h"

/* Page i holds VAL + i; SECRET is what the guest writes to private memory. */
#define VAL		0x1122334455660000ul
#define SECRET		0x5ec2e75ec2e70000ul

/* A file has four blocks of a large page's size; the last is never in a claim. */
#define HUGE		512ul
#define NR_FILE		(4 * HUGE)
#define OUTSIDE		(NR_FILE - 1)

#define SHARED_HUGE	(GMEM_SHARED_FILE | GUEST_MEMFD_FLAG_HUGE)

/* The guest sees this much at its own address, and may have three files there. */
#define NR_WINDOW	(12 * HUGE)
#define WINDOW(i)	(GMEM_GPA + (i) * NR_FILE * PAGE_SIZE)

/* ---- Threads ---- */

/*
 * Where everything runs, and where conversions alone do.  Conversions are of normal
 * priority, unless they have to get past a thread that stops others.
 */
static int work_cpu, stage_cpu = -1;

#define BRAKE_PRIO	2
#define PAST_BRAKE_PRIO	(BRAKE_PRIO + 1)

static int set_fifo(int prio)
{
	struct sched_param param = { .sched_priority = prio };

	return sched_setscheduler(0, prio ? SCHED_FIFO : SCHED_OTHER, &param);
}

/* On that CPU alone.  At once, whoever runs there, if the priority is higher. */
static void enter_stage(int prio)
{
	TEST_ASSERT(!set_fifo(prio), "No real-time priority");
	pin_task_to_cpu(pthread_self(), stage_cpu);
}

/* Back to where there is time for everyone: first there, as there is none here. */
static void leave_stage(void)
{
	pin_task_to_cpu(pthread_self(), work_cpu);
	set_fifo(0);
}

/* A number in sysfs, procfs or debugfs, -1 if there is none. */
static long read_number(const char *path)
{
	long val = -1;
	FILE *f;

	f = fopen(path, "r");
	if (!f)
		return -1;
	if (fscanf(f, "%ld", &val) != 1)
		val = -1;
	fclose(f);
	return val;
}

/* What has to be otherwise while the tests run, and what it was before, if not -1. */
static struct setting {
	char path[64];
	const char *want;
	bool must;
	long old;
} settings[] = {
	/* A real-time thread may spin for as long as it wants, others get no share. */
	{ "", "0", true, -1 },
	{ "/proc/sys/kernel/sched_rt_runtime_us", "-1", false, -1 },
	/* The optimiser waits for whoever was preempted, with the lock of all kprobes. */
	{ "/proc/sys/debug/kprobes-optimization", "0", false, -1 },
};

static bool change_settings(void)
{
	struct setting *set;
	int i;

	snprintf(settings[0].path, sizeof(settings[0].path),
		 "/sys/kernel/debug/sched/fair_server/cpu%d/runtime", stage_cpu);
	for (i = 0; i < ARRAY_SIZE(settings); i++) {
		set = &settings[i];
		set->old = read_number(set->path);
		if (gmem_write_file(set->path, set->want) && set->must)
			return false;
	}
	return true;
}

static void restore_settings(void)
{
	struct setting *set;
	char text[32];
	int i;

	for (i = 0; i < ARRAY_SIZE(settings); i++) {
		set = &settings[i];
		snprintf(text, sizeof(text), "%ld", set->old);
		if (set->old >= 0)
			gmem_write_file(set->path, text);
	}
}

/* The type of events that are calls of a kernel function. */
static long kprobe_type;

/* Returns why no conversion can be stopped, or NULL. */
static const char *stage_cpu_init(void)
{
	cpu_set_t set;
	int cpu, nr = 0;

	kvm_sched_getaffinity(0, sizeof(set), &set);
	for (cpu = 0; cpu < CPU_SETSIZE && nr < 2; cpu++) {
		if (CPU_ISSET(cpu, &set))
			*(nr++ ? &stage_cpu : &work_cpu) = cpu;
	}
	if (nr < 2 || set_fifo(1))
		return "Not two CPUs with real-time priorities";

	set_fifo(0);
	kprobe_type = read_number("/sys/bus/event_source/devices/kprobe/type");
	if (kprobe_type < 0)
		return "No kprobes";
	if (!change_settings())
		return "No CPU for one thread alone";

	pin_task_to_cpu(pthread_self(), work_cpu);
	return NULL;
}

/* Of main(), for all cases. */
static const char *no_stage;

/* Something that another thread does once, and may have to wait for. */
struct task {
	void (*fn)(void *arg);
	void *arg;
	pid_t tid;
	bool done;
	pthread_t thread;
};

static void *task_thread(void *arg)
{
	struct task *t = arg;

	WRITE_ONCE(t->tid, kvm_gettid());
	t->fn(t->arg);
	WRITE_ONCE(t->done, true);
	return NULL;
}

static void task_start(struct task *t, void (*fn)(void *arg), void *arg)
{
	*t = (struct task) { .fn = fn, .arg = arg };
	kvm_pthread_create(&t->thread, NULL, task_thread, t);
}

static void task_join(struct task *t)
{
	kvm_pthread_join(t->thread, NULL);
}

/* Until it waits for a conversion, or for whoever does. */
static void task_wait_for_wait(struct task *t)
{
	gmem_wait_until(READ_ONCE(t->tid) && gmem_task_waits(t->tid));
}

/* A vCPU with a command, whose slot may go. */
struct guest {
	struct kvm_vcpu *vcpu;
	struct gmem_guest_cmd *cmd;
	struct task task;
	int error;
};

static void guest_run(void *arg)
{
	struct guest *v = arg;

	do {
		v->error = _vcpu_run(v->vcpu) ? errno : 0;
	} while (!v->error && gmem_tolerate_mmio(v->vcpu));
}

static void guest_start(struct guest *v, struct kvm_vcpu *vcpu, u64 op, u64 gva, u64 nr,
			u64 val)
{
	*v = (struct guest) {
		.vcpu = vcpu,
		.cmd = gmem_guest_prepare(vcpu, op, gva, nr, val, 1),
	};
	task_start(&v->task, guest_run, v);
}

static void guest_join(struct guest *v)
{
	task_join(&v->task);
	if (!v->error)
		TEST_ASSERT_EQ(gmem_get_ucall(v->vcpu), UCALL_SYNC);
}

/* ---- A conversion that is stopped amid its claim ---- */

/*
 * Fault a page in and out, over and over, while a conversion is stopped; the turn tells
 * whether it gets on.  Not at other times: a fault that has to wait for a second claim
 * holds mmap_lock meanwhile.
 */
struct probe {
	struct stage *s;
	u64 page;
	pid_t tid;
	bool busy;
	u64 turn;
	pthread_t thread;
};

/*
 * Where a conversion is stopped: at the nth call of a function of KVM's, or return from it.
 * Before anything is done (to private, or with DISCARD); amid the check of holders (to
 * private, without DISCARD); when all is zapped, and the bytes are next; amid zeroing; amid
 * dropping.
 */
struct stop {
	const char *fn;
	u64 nr;
	bool at_return;
};

#define AT_START		((struct stop) { "kvm_gmem_unmap_users", 1 })
#define AMID_CHECK(nr)		((struct stop) { "kvm_gmem_folio_is_held", nr })
#define WHEN_ZAPPED		((struct stop) { "kvm_gmem_invalidate_end", 1, true })
#define AMID_ZERO(nr)		((struct stop) { "kvm_gmem_zero_pages", nr })
#define AMID_DISCARD(nr)	((struct stop) { "kvm_gmem_batch_end", nr })

/* In memory shared with children. */
struct stage {
	struct gmem g;
	struct kvm_vcpu *vcpu;

	/* What to convert, and how; by whom, and where it is stopped. */
	u64 first;
	u64 nr;
	u64 attributes;
	u64 flags;
	struct stop stop;
	bool by_child;
	int prio;

	/* Pages that are looked at amid the claim and outside. */
	struct probe in;
	struct probe out;
	bool no_more_probes;

	pthread_t converter;
	pthread_t brake;
	pid_t child;
	pid_t tid;
	u64 held_turn;
	bool ready, held, release, done;
	int result;
	u64 error_offset;
};

static void *probe_thread(void *arg)
{
	struct probe *p = arg;
	u8 *addr = p->s->g.mem + p->page * PAGE_SIZE;

	WRITE_ONCE(p->tid, kvm_gettid());
	while (!READ_ONCE(p->s->no_more_probes)) {
		WRITE_ONCE(p->busy, true);
		/* Either this sees that it is over, or stage_release() that this is busy. */
		smp_mb();
		if (READ_ONCE(p->s->held)) {
			/* Refused while the page is private, and once it is unmapped. */
			if (!madvise(addr, PAGE_SIZE, MADV_POPULATE_READ))
				madvise(addr, PAGE_SIZE, MADV_DONTNEED);
			WRITE_ONCE(p->turn, p->turn + 1);
		}
		WRITE_ONCE(p->busy, false);
		sched_yield();
	}
	return NULL;
}

static void probe_start(struct probe *p, struct stage *s, u64 page)
{
	*p = (struct probe) { .s = s, .page = page };
	kvm_pthread_create(&p->thread, NULL, probe_thread, p);
	gmem_wait_until(READ_ONCE(p->tid));
}

static bool stage_is_held(struct stage *s)
{
	return READ_ONCE(s->in.turn) == s->held_turn && gmem_task_waits(s->in.tid);
}

/*
 * Is there a claim?  The converter doesn't run meanwhile: the page amid the range is
 * waited for, and the other one is not, as it is if the file's lock is held.
 */
static bool claim_is_seen(struct stage *s)
{
	u64 first = READ_ONCE(s->in.turn), out, end;

	/* The turn that has begun already may end, the next one doesn't. */
	do {
		gmem_wait_until(gmem_task_waits(s->in.tid) ||
				READ_ONCE(s->in.turn) > first + 1);
		s->held_turn = READ_ONCE(s->in.turn);
		out = READ_ONCE(s->out.turn);
		end = gmem_now_ns() + GMEM_WAIT_S / 5 * NSEC_PER_SEC;
		while (READ_ONCE(s->out.turn) <= out + 1) {
			if (gmem_now_ns() > end)
				return false;
			sched_yield();
			cpu_relax();
		}
		if (stage_is_held(s))
			return true;
	} while (READ_ONCE(s->in.turn) <= first + 1);
	return false;
}

/* What must come true while the conversion is stopped. */
#define wait_amid_claim(s, cond)						\
do {										\
	gmem_wait_until(cond);							\
	TEST_ASSERT(stage_is_held(s), "The claim has gone before " #cond);	\
} while (0)

#define task_waits_amid_claim(s, t)						\
do {										\
	task_wait_for_wait(t);							\
	TEST_ASSERT(stage_is_held(s), "The claim has gone before a task waits");	\
} while (0)

/* Have the converter's calls of the function counted, and who polls woken by the nth. */
static int stop_open(struct stage *s, void **ring)
{
	struct perf_event_attr attr = {
		.type = kprobe_type,
		.size = sizeof(attr),
		.config = s->stop.at_return,
		.kprobe_func = (u64)s->stop.fn,
		.sample_period = s->stop.nr,
		.wakeup_events = 1,
	};
	int fd;

	fd = syscall(__NR_perf_event_open, &attr, s->tid, -1, -1, 0);
	TEST_ASSERT(fd >= 0, "No kprobe in %s(): %s", s->stop.fn, strerror(errno));
	*ring = kvm_mmap(2 * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	return fd;
}

static void stop_close(int fd, void *ring)
{
	kvm_munmap(ring, 2 * PAGE_SIZE);
	close(fd);
}

/*
 * Drain the LRU batches of this CPU, by advice on a page that isn't there.  Else whoever
 * wants all of them drained, e.g. memory failure, waits until the CPU has time for it.
 */
static void drain_lru_batches(void)
{
	static u8 nothing[SZ_4K] __aligned(SZ_4K);

	kvm_madvise(nothing, sizeof(nothing), MADV_COLD);
}

/*
 * Sleep until the converter gets where it is to be stopped.  The wakeup comes from the
 * kprobe, on the same CPU, and preempts the converter before it goes on.  Then keep the
 * CPU.
 */
static void *brake_thread(void *arg)
{
	struct pollfd hit = { .events = POLLIN };
	struct stage *s = arg;
	void *ring;

	gmem_wait_until(READ_ONCE(s->tid));
	hit.fd = stop_open(s, &ring);
	enter_stage(s->prio + BRAKE_PRIO);
	WRITE_ONCE(s->ready, true);

	/* The time-out is for a converter that never gets there. */
	while (!READ_ONCE(s->done) && poll(&hit, 1, 20) <= 0)
		;
	drain_lru_batches();
	WRITE_ONCE(s->held, !READ_ONCE(s->done));
	while (READ_ONCE(s->held) && !READ_ONCE(s->release))
		cpu_relax();
	/* What follows waits for grace periods, and has a CPU's worker wait for them. */
	leave_stage();
	stop_close(hit.fd, ring);
	return NULL;
}

static void *convert_thread(void *arg)
{
	struct stage *s = arg;

	WRITE_ONCE(s->tid, kvm_gettid());
	gmem_wait_until(READ_ONCE(s->ready));
	enter_stage(s->prio);
	s->result = __gmem_convert(s->g.fd, s->first * PAGE_SIZE, s->nr * PAGE_SIZE,
				   s->attributes, s->flags, &s->error_offset);
	WRITE_ONCE(s->done, true);
	return NULL;
}

static void stage_init(struct stage *s, struct kvm_vcpu *vcpu, u64 flags, u32 slot, gpa_t gpa)
{
	memset(s, 0, sizeof(*s));
	s->vcpu = vcpu;
	gmem_create(&s->g, vcpu->vm, NR_FILE * PAGE_SIZE, flags);
	s->g.no_user_addr = true;
	gmem_bind(&s->g, slot, gpa);
	s->nr = 3 * HUGE;
	s->flags = GMEM_ZERO;
	s->stop = AMID_ZERO(1);
}

/* The file is as it was, for the conversion to be made once more. */
static void stage_reset(struct stage *s)
{
	gmem_to_shared(&s->g, 0, NR_FILE, 0);
	gmem_host_fill(&s->g, 0, NR_FILE, VAL);
	if (!s->attributes)
		gmem_to_private(&s->g, s->first, s->nr, 0);
}

/* @page is one of the range that no one else does anything to. */
static void stage_open(struct stage *s, u64 page)
{
	s->no_more_probes = false;
	probe_start(&s->in, s, page);
	probe_start(&s->out, s, OUTSIDE);
}

static void stage_close(struct stage *s)
{
	WRITE_ONCE(s->no_more_probes, true);
	kvm_pthread_join(s->in.thread, NULL);
	kvm_pthread_join(s->out.thread, NULL);
}

static void convert_start(struct stage *s)
{
	pid_t pid;

	s->tid = 0;
	s->ready = false;
	s->held = false;
	s->release = false;
	s->done = false;
	kvm_pthread_create(&s->brake, NULL, brake_thread, s);
	if (!s->by_child) {
		kvm_pthread_create(&s->converter, NULL, convert_thread, s);
		return;
	}

	/* The stage is the child's, too. */
	pid = fork();
	TEST_ASSERT(pid >= 0, "fork() failed");
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		convert_thread(s);
		_exit(0);
	}
	s->child = pid;
}

/* Let the conversion end, and return its result. */
static int stage_release(struct stage *s)
{
	WRITE_ONCE(s->release, true);
	kvm_pthread_join(s->brake, NULL);
	if (s->by_child)
		TEST_ASSERT_EQ(waitpid(s->child, NULL, 0), s->child);
	else
		kvm_pthread_join(s->converter, NULL);

	/* Whoever waited for it goes on. */
	WRITE_ONCE(s->held, false);
	/* See probe_thread(). */
	smp_mb();
	gmem_wait_until(!READ_ONCE(s->in.busy) && !READ_ONCE(s->out.busy));
	return s->result;
}

/* The conversion is amid its claim, and stays there. */
static void stage_wait_for_hold(struct stage *s)
{
	bool seen;

	gmem_wait_until(READ_ONCE(s->held) || READ_ONCE(s->done));
	TEST_ASSERT(READ_ONCE(s->held), "A conversion without call %lu of %s(): %s",
		    s->stop.nr, s->stop.fn, strerror(s->result));
	seen = claim_is_seen(s);
	/* If faults hold mmap_lock, what tells of the failure must not wait for it. */
	if (!seen)
		WRITE_ONCE(s->release, true);
	TEST_ASSERT(seen, "Faults in the range don't wait at %s(), or others do", s->stop.fn);
}

static void stage_hold(struct stage *s)
{
	convert_start(s);
	stage_wait_for_hold(s);
}

/* Edges, neighbours and a sample of the rest; all of it would take too long. */
static void assert_whole(struct gmem *g, u64 first, u64 nr, bool private, u64 bad)
{
	u64 page;

	for (page = first; page < first + nr; page++) {
		if (page == bad || (page - first > 3 && first + nr - page > 4 && page % 61))
			continue;
		TEST_ASSERT(gmem_page_is_private(g, page) == private,
			    "Page %lu of [%lu, +%lu) should be %s", page, first, nr,
			    private ? "private" : "shared");
	}
}

/* ---- The VM ---- */

struct world {
	struct kvm_vcpu *vcpus[2];
	struct kvm_vm *vm;
	struct stage *s;
	u64 nr_large;
};

static void map_window(struct kvm_vm *vm, struct kvm_mmu *mmu)
{
	gpa_t gpa;

	for (gpa = GMEM_GPA; gpa < GMEM_GPA + NR_WINDOW * PAGE_SIZE; gpa += SZ_2M)
		__virt_pg_map(vm, mmu, gpa, gpa, PG_LEVEL_2M);
}

/* L1's tables are complete: what they take is mapped for L2, and no more. */
static void setup_nested(struct kvm_vm *vm, struct kvm_vcpu **vcpus)
{
	gva_t svm;

	if (kvm_cpu_has_npt())
		vm_enable_npt(vm);
	vcpu_alloc_svm(vm, &svm);
	vcpu_args_set(vcpus[0], 1, svm);
	if (!kvm_cpu_has_npt())
		return;

	map_window(vm, &vm->stage2_mmu);
	tdp_identity_map_default_memslots(vm);
}

static struct kvm_vm *new_vm(struct kvm_vcpu **vcpus, bool nested)
{
	const struct vm_shape shape = {
		.mode = VM_MODE_DEFAULT,
		.type = KVM_X86_SW_PROTECTED_VM,
	};
	void *code = nested ? (void *)gmem_l1_code : (void *)gmem_guest_server;
	struct kvm_vm *vm;

	vm = __vm_create_with_vcpus(shape, 2, 512, code, vcpus);
	map_window(vm, &vm->mmu);
	vcpu_args_set(vcpus[0], 1, 0);
	if (nested)
		setup_nested(vm, vcpus);
	vcpu_arch_set_entry_point(vcpus[1], gmem_guest_server);
	vcpu_args_set(vcpus[1], 1, 1);
	return vm;
}

/* Returns why it cannot be, or NULL. */
static const char *world_init(struct world *w, bool nested)
{
	if (!gmem_conversion_supported() ||
	    !(kvm_check_cap(KVM_CAP_GUEST_MEMFD_FLAGS) & GUEST_MEMFD_FLAG_HUGE))
		return "No in-place conversion of large pages";
	if (nested && !kvm_cpu_has(X86_FEATURE_SVM))
		return "No nested SVM";
	if (no_stage)
		return no_stage;

	gmem_test_init();
	w->vm = new_vm(w->vcpus, nested);
	w->s = kvm_mmap(2 * sizeof(*w->s), PROT_READ | PROT_WRITE,
			MAP_SHARED | MAP_ANONYMOUS, -1);
	w->nr_large = gmem_large_pages();
	return NULL;
}

/* Whatever the combination, all memory is back. */
static void world_exit(struct world *w)
{
	gmem_wait_until(!vm_get_stat(w->vm, gmem_pages_private) &&
			!vm_get_stat(w->vm, gmem_pages_shared));
	gmem_wait_until(gmem_large_pages() <= w->nr_large);
	kvm_vm_free(w->vm);
}

FIXTURE(combine) {
	struct world w;
};

FIXTURE_SETUP(combine)
{
	const char *reason = world_init(&self->w, false);

	if (reason)
		SKIP(return, "%s", reason);
}

FIXTURE_TEARDOWN(combine)
{
	world_exit(&self->w);
}

/* vCPU 0 is in L2. */
FIXTURE(nested) {
	struct world w;
};

FIXTURE_SETUP(nested)
{
	const char *reason = world_init(&self->w, true);

	if (reason)
		SKIP(return, "%s", reason);
}

FIXTURE_TEARDOWN(nested)
{
	world_exit(&self->w);
}

/* A case that needs @cond of the machine. */
#define COMBINE_TEST_IF(name, cond, reason)					\
static void name##_case(struct world *w, struct stage *s);			\
										\
TEST_F_TIMEOUT(combine, name, GMEM_TIMEOUT_S)					\
{										\
	if (!(cond))								\
		SKIP(return, reason);						\
										\
	name##_case(&self->w, self->w.s);					\
}										\
										\
static void name##_case(struct world *w, struct stage *s)

#define COMBINE_TEST(name)	COMBINE_TEST_IF(name, true, "Always there")

static bool can_poison(void)
{
	return gmem_may_poison() && !access(GMEM_HWPOISON_DIR "corrupt-pfn", W_OK);
}

#define NO_POISON	"No simulation of memory errors"

static void unbind_task(void *g)
{
	gmem_unbind(g);
}

/* ---- Poison, a holder, a slot that goes, a guest that runs ---- */

/* The pages of which one is bad and one is held, and that which is only held. */
#define BAD		(HUGE + 5)
#define BAD_HELD	(HUGE + 7)
#define HELD		(2 * HUGE + 9)

static void add_holders(struct gmem *g, int bad_pipe[2], int held_pipe[2])
{
	/* Small pages, for the check of holders to have some behind it. */
	gmem_to_private(g, 0, 1, 0);
	gmem_host_fill(g, 1, NR_FILE - 1, VAL + 1);
	gmem_to_shared(g, 0, 1, 0);
	gmem_host_fill(g, 0, 1, VAL);

	hold_by_pipe(bad_pipe, g->mem + BAD_HELD * PAGE_SIZE);
	hold_by_pipe(held_pipe, g->mem + HELD * PAGE_SIZE);
	gmem_poison_mapped(g->mem + BAD * PAGE_SIZE);
}

/* The deletion is on its way as soon as others find the slot INVALID, or gone. */
static bool slot_is_away(struct kvm_vcpu *vcpu, gpa_t gpa)
{
	int r = gmem_pre_fault(vcpu, gpa, 1);

	return r == EAGAIN || r == ENOENT;
}

static void check_refusal(struct stage *s, int r)
{
	TEST_ASSERT(r == EAGAIN && s->error_offset == HUGE * PAGE_SIZE,
		    "A folio with a bad and a held page: %s, error_offset 0x%lx", strerror(r),
		    s->error_offset);
	assert_whole(&s->g, 0, NR_FILE, false, BAD);
	gmem_host_check(&s->g, 0, BAD, VAL);
	gmem_host_check(&s->g, BAD + 1, NR_FILE - BAD - 1, VAL + BAD + 1);
}

/* @page is the first of some of a claim that the guest hasn't mapped yet. */
static void delete_below_guest(struct stage *s, struct kvm_vcpu **vcpus, u64 page)
{
	struct task unbind;
	struct guest v;

	stage_hold(s);
	guest_start(&v, vcpus[0], GMEM_GUEST_CHECK, s->g.gpa + page * PAGE_SIZE, 16, VAL + page);
	task_waits_amid_claim(s, &v.task);
	task_start(&unbind, unbind_task, &s->g);
	wait_amid_claim(s, slot_is_away(vcpus[1], s->g.gpa + OUTSIDE * PAGE_SIZE));
	check_refusal(s, stage_release(s));
	task_join(&unbind);
	guest_join(&v);

	gmem_bind(&s->g, GMEM_SLOT, GMEM_GPA);
	gmem_guest_check_fill(vcpus[0], &s->g, page, 16, VAL + page);
}

static void expect_old_bytes(int pipes[2], u64 val)
{
	u64 buf[8];

	TEST_ASSERT_EQ(read(pipes[0], buf, sizeof(buf)), sizeof(buf));
	TEST_ASSERT(buf[0] == val, "The holder reads 0x%lx, want 0x%lx", buf[0], val);
	release_pipe(pipes);
}

/*
 * Three large pages: of the first the guest, in L2 or not, touches pages amid the claim
 * while the slot is being deleted; one page of the second is bad and another is held;
 * of the third one is held.  A vCPU that waits for the claim holds SRCU, the deletion
 * waits for that with slots_lock held, and the conversion must wait for neither: else
 * this hangs.  If the bad page excused the held one beside it, the offset would be
 * that of the third; if DISCARD gave what is held to the guest, its holder would
 * read the secret.
 */
COMBINE_TEST_IF(holders_poison_and_deletion, can_poison(), NO_POISON)
{
	struct kvm_vcpu *vcpu = w->vcpus[0];
	int bad_pipe[2], held_pipe[2];

	stage_init(s, w->vcpus[0], SHARED_HUGE, GMEM_SLOT, GMEM_GPA);
	s->attributes = GMEM_PRIVATE;
	s->flags = 0;
	add_holders(&s->g, bad_pipe, held_pipe);
	stage_open(s, 1);
	s->stop = AT_START;
	delete_below_guest(s, w->vcpus, 0);
	s->stop = AMID_CHECK(3);
	delete_below_guest(s, w->vcpus, HUGE / 2);
	stage_close(s);

	gmem_guest_prepare(vcpu, GMEM_GUEST_CHECK, s->g.gpa + BAD * PAGE_SIZE, 1, VAL + BAD, 1);
	gmem_guest_expect_fault(vcpu, EHWPOISON, s->g.gpa + BAD * PAGE_SIZE);

	gmem_to_private(&s->g, 0, 3 * HUGE, GMEM_DISCARD);
	gmem_guest_finish(vcpu);
	gmem_guest_fill(vcpu, &s->g, BAD_HELD, 1, SECRET);
	gmem_guest_fill(vcpu, &s->g, HELD, 1, SECRET);
	expect_old_bytes(bad_pipe, VAL + BAD_HELD);
	expect_old_bytes(held_pipe, VAL + HELD);
	gmem_destroy(&s->g);
	gmem_give_frames_back();
}

TEST_F_TIMEOUT(nested, holders_poison_and_deletion, GMEM_TIMEOUT_S)
{
	if (!can_poison())
		SKIP(return, NO_POISON);

	holders_poison_and_deletion_case(&self->w, self->w.s);
}

/* ---- Poison at the seams of a claim ---- */

/* Amid blocks at either end, for the large pages there to be split. */
#define SEAM_FIRST	8ul
#define SEAM_NR		(2 * HUGE)
#define SEAM_END	(SEAM_FIRST + SEAM_NR)

struct strike {
	u64 frame;
	struct task task;
};

static void strike_task(void *arg)
{
	struct strike *strike = arg;

	gmem_write_number(GMEM_HWPOISON_DIR "corrupt-pfn", strike->frame);
}

/* All of the range is of one state, whether or not the conversion has been refused. */
static void check_struck(struct world *w, struct stage *s, u64 bad, int r)
{
	struct kvm_vcpu *vcpu = w->vcpus[0];
	bool private = s->attributes ? !r : r, inside = bad >= SEAM_FIRST && bad < SEAM_END;
	gpa_t gpa = s->g.gpa + bad * PAGE_SIZE;
	u64 val;
	int code;

	TEST_ASSERT(!r || r == EAGAIN, "Poison at a seam: %s", strerror(r));
	assert_whole(&s->g, SEAM_FIRST, SEAM_NR, private, bad);
	assert_whole(&s->g, 0, SEAM_FIRST, false, bad);
	assert_whole(&s->g, SEAM_END, NR_FILE - SEAM_END, false, bad);

	code = gmem_try_read(s->g.mem + bad * PAGE_SIZE, &val);
	TEST_ASSERT(code == BUS_MCEERR_AR || (inside && private && code == BUS_ADRERR),
		    "Page %lu is bad, si_code %d", bad, code);
	gmem_guest_prepare(vcpu, GMEM_GUEST_CHECK, gpa, 1, 0, 0);
	gmem_guest_expect_fault(vcpu, EHWPOISON, gpa);

	/* Removed, it is as good as new. */
	gmem_punch(&s->g, bad, 1);
	gmem_guest_finish(vcpu);
	gmem_guest_check_zero(vcpu, &s->g, bad, 1);
}

static void strike_at_seam(struct world *w, struct stage *s, u64 flags, u64 bad,
			   struct stop stop)
{
	u64 left = bad - (bad == SEAM_FIRST || bad == SEAM_END), other, val;
	struct strike strike;
	int r;

	stage_init(s, w->vcpus[0], flags, GMEM_SLOT, GMEM_GPA);
	s->first = SEAM_FIRST;
	s->nr = SEAM_NR;
	s->attributes = bad & 1 ? GMEM_PRIVATE : GMEM_SHARED;
	s->flags = s->attributes ? GMEM_PRESERVE : GMEM_ZERO;
	s->stop = stop;
	gmem_host_fill(&s->g, 0, NR_FILE, VAL);
	strike.frame = gmem_known_frame(s->g.mem + bad * PAGE_SIZE);
	stage_open(s, SEAM_FIRST + HUGE);

	stage_reset(s);
	stage_hold(s);
	task_start(&strike.task, strike_task, &strike);
	wait_amid_claim(s, READ_ONCE(strike.task.done));
	r = stage_release(s);
	task_join(&strike.task);
	stage_close(s);
	check_struck(w, s, bad, r);

	/* What is on the other side of the seam has its bytes, unless zeroed. */
	other = bad == left ? left + 1 : left;
	val = !r && !s->attributes && other >= SEAM_FIRST && other < SEAM_END ? 0 : VAL + other;
	gmem_guest_check_fill(w->vcpus[0], &s->g, other, 1, val);
	gmem_destroy(&s->g);
}

/*
 * Memory failure strikes the first or the last page of a claim, or that beside it, while
 * the claim is there: it takes no lock that the conversion holds, and finds the page on
 * either side of a split.  Red if the range comes out mixed, if a neighbour is lost with
 * the bad page, or if the guest can still use it.
 */
COMBINE_TEST_IF(poison_at_seams, can_poison(), NO_POISON)
{
	static const u64 flags[] = { SHARED_HUGE, GMEM_SHARED_FILE };
	int i;

	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		/* To private, with the edges not split yet, and split. */
		strike_at_seam(w, s, flags[i], SEAM_FIRST - 1, AT_START);
		strike_at_seam(w, s, flags[i], SEAM_FIRST - 1, WHEN_ZAPPED);
		strike_at_seam(w, s, flags[i], SEAM_END - 1, AT_START);
		strike_at_seam(w, s, flags[i], SEAM_END - 1, WHEN_ZAPPED);
		/* To shared. */
		strike_at_seam(w, s, flags[i], SEAM_FIRST, WHEN_ZAPPED);
		strike_at_seam(w, s, flags[i], SEAM_END, AMID_ZERO(1));
	}
	gmem_give_frames_back();
}

/* ---- SIGKILL ---- */

/* Wait in a fault for a page of the claim. */
static void child_touches(struct child *c, struct gmem *g)
{
	u64 val;

	child_tells(c);
	child_waits(c);
	gmem_try_read(g->mem + (HUGE + 3) * PAGE_SIZE, &val);
}

static bool child_is_gone(struct child *c)
{
	int status;

	if (waitpid(c->pid, &status, WNOHANG) != c->pid)
		return false;

	TEST_ASSERT(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL,
		    "Child: status 0x%x", status);
	return true;
}

static void kill_waiter(struct stage *s)
{
	struct child c;

	child_start(&c, child_touches, &s->g);
	parent_waits(&c);
	stage_reset(s);
	stage_hold(s);
	parent_tells(&c);
	wait_amid_claim(s, gmem_task_waits(c.pid));
	kill(c.pid, SIGKILL);
	wait_amid_claim(s, child_is_gone(&c));
	TEST_ASSERT_EQ(stage_release(s), 0);
	close(c.to_parent[0]);
	close(c.to_child[1]);
}

/*
 * A task that waits for a claim dies of SIGKILL at once, and not when the conversion is
 * good enough to end.  Red if the wait is uninterruptible.
 */
COMBINE_TEST(waiter_killed)
{
	stage_init(s, w->vcpus[0], GMEM_SHARED_FILE, GMEM_SLOT, GMEM_GPA);
	stage_open(s, HUGE);
	kill_waiter(s);
	s->stop = AMID_ZERO(2 * HUGE);
	kill_waiter(s);
	stage_close(s);
	gmem_host_check_zero(&s->g, 0, s->nr);
	gmem_destroy(&s->g);
}

/* What is killed, where, and whether it is beyond the point of no return there. */
static const struct killed {
	u64 attributes;
	u64 flags;
	struct stop stop;
	bool complete;
} killed[] = {
	{ GMEM_PRIVATE, GMEM_PRESERVE, AT_START, false },
	{ GMEM_PRIVATE, GMEM_PRESERVE, AMID_CHECK(HUGE + 7), false },
	{ GMEM_PRIVATE, GMEM_PRESERVE, WHEN_ZAPPED, true },
	{ GMEM_PRIVATE, GMEM_ZERO, AMID_ZERO(HUGE + 7), true },
	{ GMEM_SHARED, GMEM_ZERO, AMID_ZERO(HUGE + 7), true },
	{ GMEM_SHARED, GMEM_DISCARD, AMID_DISCARD(2), true },
};

static void kill_converter(struct world *w, struct stage *s, const struct killed *k)
{
	bool private = k->complete == !!k->attributes;

	s->attributes = k->attributes;
	s->flags = k->flags;
	s->stop = k->stop;
	stage_reset(s);
	stage_hold(s);
	kill(s->child, SIGKILL);
	stage_release(s);
	assert_whole(&s->g, 0, s->nr, private, NR_FILE);
	if (k->complete && k->flags != GMEM_PRESERVE)
		gmem_guest_check_zero(w->vcpus[0], &s->g, s->nr - 16, 16);
	else
		gmem_guest_check_fill(w->vcpus[0], &s->g, s->nr - 16, 16, VAL + s->nr - 16);
}

/*
 * A conversion that another process makes is killed in the middle: it is complete, or
 * nothing of it is there, and the next one finds no claim.  Red if a conversion that may
 * still fail goes on, or if one gives up that may not.
 */
COMBINE_TEST(converter_killed)
{
	int i;

	stage_init(s, w->vcpus[0], GMEM_SHARED_FILE | GUEST_MEMFD_FLAG_SHARED_CONTROL, GMEM_SLOT,
		   GMEM_GPA);
	s->by_child = true;
	stage_open(s, HUGE);
	for (i = 0; i < ARRAY_SIZE(killed); i++)
		kill_converter(w, s, &killed[i]);
	stage_close(s);
	s->attributes = GMEM_SHARED;
	stage_reset(s);
	gmem_destroy(&s->g);
}

static void touch_amid_claim(void *arg)
{
	struct stage *s = arg;

	madvise(s->g.mem + (HUGE + 5) * PAGE_SIZE, PAGE_SIZE, MADV_POPULATE_READ);
}

/* Everyone waits for the claim, or for those who do, and then nobody is there any more. */
struct doomed {
	struct task user;
	struct task unbind;
	struct guest v;
};

/* Convert, and have the claim waited for when the parent says so. */
static void __noreturn doomed_child(struct stage *s, struct doomed *d, int tell, int told)
{
	struct kvm_vcpu *vcpus[2];

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	new_vm(vcpus, false);
	stage_init(s, vcpus[0], SHARED_HUGE, GMEM_SLOT, GMEM_GPA);
	stage_reset(s);
	stage_open(s, HUGE);
	s->tid = 0;
	kvm_pthread_create(&s->converter, NULL, convert_thread, s);
	signal_fd(tell);

	wait_fd(told);
	guest_start(&d->v, vcpus[0], GMEM_GUEST_CHECK, s->g.gpa, 16, VAL);
	task_start(&d->user, touch_amid_claim, s);
	task_wait_for_wait(&d->v.task);
	task_start(&d->unbind, unbind_task, &s->g);
	for (;;)
		pause();
}

static bool task_is_gone(struct task *t)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d", t->tid);
	return access(path, F_OK);
}

/* The brake is the parent's, hence it holds when the child is killed. */
static void kill_process(struct stage *s, struct doomed *d, int tell[2], int told[2])
{
	int status;
	pid_t pid;

	memset(s, 0, sizeof(*s));
	memset(d, 0, sizeof(*d));
	pid = fork();
	TEST_ASSERT(pid >= 0, "fork() failed");
	if (!pid)
		doomed_child(s, d, tell[1], told[0]);
	wait_fd(tell[0]);
	kvm_pthread_create(&s->brake, NULL, brake_thread, s);
	stage_wait_for_hold(s);

	signal_fd(told[1]);
	task_waits_amid_claim(s, &d->v.task);
	task_waits_amid_claim(s, &d->user);
	task_waits_amid_claim(s, &d->unbind);
	kill(pid, SIGKILL);
	gmem_wait_until(task_is_gone(&d->v.task) && task_is_gone(&d->user));
	TEST_ASSERT(!waitpid(pid, &status, WNOHANG), "The converter has gone, too");

	WRITE_ONCE(s->release, true);
	kvm_pthread_join(s->brake, NULL);
	TEST_ASSERT_EQ(waitpid(pid, &status, 0), pid);
	TEST_ASSERT(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL,
		    "Child: status 0x%x", status);
}

/*
 * The whole process is killed amid the claim: a vCPU, a user and a deletion of the slot
 * wait.  Invariant 8, every page comes back; red if the user or the vCPU cannot be
 * killed while the converter is stopped.
 */
COMBINE_TEST(process_killed)
{
	u64 before = gmem_meminfo_kib("Unevictable");
	int tell[2], told[2], i;
	struct doomed *d;

	d = kvm_mmap(sizeof(*d), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
	TEST_ASSERT(!pipe(tell) && !pipe(told), "pipe() failed");
	for (i = 0; i < 2; i++)
		kill_process(s, d, tell, told);
	release_pipe(tell);
	release_pipe(told);
	kvm_munmap(d, sizeof(*d));
	gmem_wait_until(gmem_meminfo_kib("Unevictable") <= before);
}

/* ---- The file goes ---- */

/* The addresses stay taken, for the probes not to meet anything that is new there. */
static void close_file(void *arg)
{
	struct gmem *g = arg;
	void *mem;

	mem = mmap(g->mem, g->size, PROT_NONE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	TEST_ASSERT(mem == g->mem, "mmap() failed");
	close(g->fd);
}

static void close_amid_claim(struct world *w, struct stage *s, struct stop stop)
{
	struct task user, closer;
	struct guest v;

	stage_init(s, w->vcpus[0], SHARED_HUGE, GMEM_SLOT, GMEM_GPA);
	s->stop = stop;
	stage_reset(s);
	stage_open(s, HUGE);
	stage_hold(s);
	guest_start(&v, w->vcpus[0], GMEM_GUEST_CHECK, s->g.gpa, 4, 0);
	task_start(&user, touch_amid_claim, s);
	task_waits_amid_claim(s, &v.task);
	task_waits_amid_claim(s, &user);

	task_start(&closer, close_file, &s->g);
	wait_amid_claim(s, READ_ONCE(closer.done));
	TEST_ASSERT_EQ(stage_release(s), 0);
	stage_close(s);
	task_join(&closer);
	task_join(&user);
	guest_join(&v);
	TEST_ASSERT(!v.error || v.error == EFAULT, "KVM_RUN: %s", strerror(v.error));

	/* The slot is there, its memory is not. */
	gmem_wait_until(!vm_get_stat(w->vm, gmem_pages_shared));
	gmem_guest_prepare(w->vcpus[1], GMEM_GUEST_CHECK, s->g.gpa, 1, 0, 0);
	gmem_guest_expect_fault(w->vcpus[1], EFAULT, s->g.gpa);
	gmem_unbind(&s->g);
	kvm_munmap(s->g.mem, s->g.size);
	guest_run(&(struct guest) { .vcpu = w->vcpus[1] });
	if (v.error)
		guest_run(&v);
}

/*
 * The mapping and the last descriptor go while a user and a vCPU wait for a claim.  Red
 * if a waiter holds mmap_lock, which munmap() wants; a waiter without a reference of its
 * own would wake up in an inode that has been freed, which is for KASAN to see.
 */
COMBINE_TEST(unmapped_and_closed)
{
	close_amid_claim(w, s, WHEN_ZAPPED);
	close_amid_claim(w, s, AMID_ZERO(2));
}

/* ---- Two claims, and what lies between ---- */

/* Hold a second conversion, of another file, while @a is held: it gets past @a's brake. */
static void hold_both(struct stage *a, struct stage *b)
{
	stage_reset(a);
	stage_reset(b);
	stage_hold(a);
	b->prio = PAST_BRAKE_PRIO;
	stage_hold(b);
	TEST_ASSERT(stage_is_held(a), "The first claim has gone");
}

struct between {
	struct kvm_vcpu *vcpu;
	struct gmem g;
	struct task task;
};

/* Faults of the guest, each after a change of what it had mapped. */
static void use_between(void *arg)
{
	struct between *m = arg;

	gmem_guest_fill(m->vcpu, &m->g, 0, 4, VAL);
	gmem_host_check(&m->g, 0, 4, VAL);
	gmem_to_private(&m->g, 0, 4, 0);
	gmem_guest_fill(m->vcpu, &m->g, 0, 4, SECRET);
	gmem_to_shared(&m->g, 0, 4, GMEM_DISCARD);
	gmem_host_fill(&m->g, 0, 4, VAL + 7);
	gmem_guest_check_fill(m->vcpu, &m->g, 0, 4, VAL + 7);
	gmem_punch(&m->g, 0, 4);
}

/*
 * Two files are being converted, and KVM keeps one range of all invalidations that
 * overlap in time: the hull.  The guest faults on a third file, which lies between.  Red if
 * an invalidation stays open as long as the claim: the faults would be tried again and
 * again until the claims are gone.
 */
COMBINE_TEST(hull_of_two_claims)
{
	struct between m = { .vcpu = w->vcpus[0] };
	struct stage *a = s, *b = s + 1;
	int i;

	stage_init(a, w->vcpus[0], GMEM_SHARED_FILE, GMEM_SLOT, WINDOW(0));
	stage_init(b, w->vcpus[0], GMEM_SHARED_FILE, GMEM_SLOT + 2, WINDOW(2));
	gmem_create(&m.g, w->vm, 4 * PAGE_SIZE, GMEM_SHARED_FILE);
	gmem_bind(&m.g, GMEM_SLOT + 1, WINDOW(1));
	stage_open(a, HUGE);
	stage_open(b, HUGE);
	for (i = 0; i < 2; i++) {
		hold_both(a, b);
		task_start(&m.task, use_between, &m);
		wait_amid_claim(b, READ_ONCE(m.task.done));
		TEST_ASSERT(stage_is_held(a), "The first claim has gone");
		TEST_ASSERT_EQ(stage_release(b), 0);
		TEST_ASSERT_EQ(stage_release(a), 0);
		task_join(&m.task);
	}
	stage_close(a);
	stage_close(b);
	gmem_destroy(&a->g);
	gmem_destroy(&b->g);
	gmem_destroy(&m.g);
}

/* ---- Two converters, and a reader of the tail ---- */

/* The second converter's range, which overlaps the first's, and what it has alone. */
#define SECOND		HUGE
#define SECOND_NR	(2 * HUGE)
#define TAIL		(2 * HUGE)
#define TAIL_NR		HUGE

/* What a reader looks at of it. */
#define TAIL_STEP	7
#define TAIL_LOOKS	DIV_ROUND_UP(TAIL_NR, TAIL_STEP)

static void convert_second(void *arg)
{
	struct stage *s = arg;

	gmem_to_private(&s->g, SECOND, SECOND_NR, GMEM_PRESERVE);
}

struct reader {
	struct gmem *g;
	struct task task;
	u64 nr_refused;
};

static void read_tail(void *arg)
{
	struct reader *r = arg;
	u64 page, val;

	/* Each read is a fault. */
	kvm_madvise(r->g->mem + TAIL * PAGE_SIZE, TAIL_NR * PAGE_SIZE, MADV_DONTNEED);
	for (page = TAIL; page < TAIL + TAIL_NR; page++) {
		if (gmem_try_read(r->g->mem + page * PAGE_SIZE, &val))
			r->nr_refused++;
		else
			TEST_ASSERT(val == VAL + page, "Page %lu: 0x%lx", page, val);
	}
}

static void read_while_both_wait(struct world *w, struct stage *s, struct stop stop)
{
	struct reader r = { .g = &s->g };
	struct task second;

	s->stop = stop;
	stage_reset(s);
	stage_hold(s);
	task_start(&second, convert_second, s);
	task_waits_amid_claim(s, &second);
	task_start(&r.task, read_tail, &r);
	wait_amid_claim(s, READ_ONCE(r.task.done));
	TEST_ASSERT(!r.nr_refused, "%lu pages of a conversion that has to wait", r.nr_refused);
	TEST_ASSERT_EQ(stage_release(s), 0);
	task_join(&second);
	task_join(&r.task);

	assert_whole(&s->g, SECOND, SECOND_NR, true, NR_FILE);
	assert_whole(&s->g, TAIL + TAIL_NR, NR_FILE - TAIL - TAIL_NR, false, NR_FILE);
	gmem_guest_check_fill(w->vcpus[0], &s->g, TAIL - 8, 16, VAL + TAIL - 8);
}

/*
 * The tail of what the second converter waits to have is not claimed by the first: users
 * read it, with its bytes, until its turn comes.  Red if a claim reaches beyond its
 * range, or if the waiting converter keeps readers out.
 */
COMBINE_TEST(tail_of_waiting_conversion)
{
	stage_init(s, w->vcpus[0], GMEM_SHARED_FILE, GMEM_SLOT, GMEM_GPA);
	s->attributes = GMEM_PRIVATE;
	s->flags = GMEM_PRESERVE;
	s->nr = 2 * HUGE;
	stage_open(s, 5);
	read_while_both_wait(w, s, AT_START);
	read_while_both_wait(w, s, AMID_CHECK(HUGE));
	read_while_both_wait(w, s, WHEN_ZAPPED);
	stage_close(s);
	gmem_destroy(&s->g);
}

/* Threads that go on until each has had its turns. */
#define MAX_CREW	5
#define MIN_TURNS	GMEM_LOOPS(12)

struct crew {
	struct gmem_worker workers[MAX_CREW];
	u64 turns[MAX_CREW];
	u32 nr;
	bool stop;

	struct gmem g;
	struct kvm_vcpu *vcpu;

	/* Of the second converter; it makes the tail private while this is odd. */
	u64 seq;

	/* Of the reader: how far it is with that number, and what it has seen change. */
	u64 seen_seq;
	u64 nr_looks;
	u64 nr_changes;
};

static void crew_add(struct crew *c, void (*step)(void *arg, u64 turn))
{
	gmem_worker_start(&c->workers[c->nr], step, c, &c->stop, &c->turns[c->nr]);
	c->nr++;
}

static void crew_end(struct crew *c)
{
	u32 i;

	for (i = 0; i < c->nr; i++)
		gmem_wait_until(READ_ONCE(c->turns[i]) >= MIN_TURNS);
	WRITE_ONCE(c->stop, true);
	for (i = 0; i < c->nr; i++)
		gmem_worker_join(&c->workers[i]);
}

static void first_step(void *arg, u64 turn)
{
	struct crew *c = arg;

	gmem_convert_pages(&c->g, 0, 2 * HUGE, turn & 1 ? GMEM_SHARED : GMEM_PRIVATE, 0);
}

/* Has the reader looked at @nr pages since the second converter said what it will do? */
static bool has_looked(struct crew *c, u64 nr)
{
	return READ_ONCE(c->stop) ||
	       (READ_ONCE(c->seen_seq) == c->seq && READ_ONCE(c->nr_looks) >= nr);
}

static void second_step(void *arg, u64 turn)
{
	struct crew *c = arg;

	WRITE_ONCE(c->seq, c->seq + 1);
	/* Readers that see what is new have seen the number. */
	smp_mb();
	/* It begins when some pages have been looked at, and the others are next. */
	gmem_wait_until(has_looked(c, 1 + turn % TAIL_LOOKS));
	gmem_convert_pages(&c->g, SECOND, SECOND_NR, c->seq & 1 ? GMEM_PRIVATE : GMEM_SHARED, 0);
	gmem_wait_until(has_looked(c, TAIL_LOOKS));
}

/* Once a page is seen in the new state, no other is in the old one. */
static void tail_step(void *arg, u64 turn)
{
	struct crew *c = arg;
	u64 seq = READ_ONCE(c->seq), val = 0, page, i;
	bool is_new, was_old = false, seen = false;

	WRITE_ONCE(c->nr_looks, 0);
	WRITE_ONCE(c->seen_seq, seq);
	for (i = 0; i < TAIL_NR; i += TAIL_STEP) {
		/* Forwards and backwards in turn. */
		page = TAIL + (turn & 1 ? i : TAIL_NR - 1 - i);
		/* The access comes after the first look at seq, see second_step(). */
		smp_mb();
		is_new = !gmem_try_read(c->g.mem + page * PAGE_SIZE, &val) == !(seq & 1);
		/* And before the second. */
		smp_mb();
		if (READ_ONCE(c->seq) != seq)
			return;
		TEST_ASSERT(is_new || !seen, "Page %lu is in the old state, others aren't", page);
		TEST_ASSERT(val == VAL + page || is_new == (seq & 1), "Page %lu: 0x%lx", page, val);
		if (is_new && !seen && was_old)
			WRITE_ONCE(c->nr_changes, c->nr_changes + 1);
		was_old |= !is_new;
		seen = is_new;
		WRITE_ONCE(c->nr_looks, c->nr_looks + 1);
		sched_yield();
	}
}

/*
 * Two converters of ranges that overlap, each to either side.  Red if the tail is
 * seen half converted, or with a byte that nobody wrote.
 */
COMBINE_TEST(tail_is_never_torn)
{
	struct crew c = {};

	gmem_new(&c.g, w->vm, NR_FILE, GMEM_SHARED_FILE);
	gmem_host_fill(&c.g, 0, NR_FILE, VAL);
	crew_add(&c, first_step);
	crew_add(&c, second_step);
	crew_add(&c, tail_step);
	/* It has looked at pages before, and at others after, without a gap. */
	gmem_wait_until(READ_ONCE(c.nr_changes) >= MIN_TURNS);
	crew_end(&c);

	gmem_guest_check_fill(w->vcpus[0], &c.g, TAIL - 8, 16, VAL + TAIL - 8);
	gmem_destroy(&c.g);
}

/* ---- Orphans ---- */

static void orphan_by_punch(struct gmem *g)
{
	gmem_punch(g, 0, 3 * HUGE);
}

static void orphan_by_remove(struct gmem *g)
{
	TEST_ASSERT(!madvise(g->mem, 3 * HUGE * PAGE_SIZE, MADV_REMOVE), "MADV_REMOVE: %s",
		    strerror(errno));
}

static void orphan_by_discard(struct gmem *g)
{
	gmem_to_private(g, 0, 3 * HUGE, GMEM_DISCARD);
	gmem_to_shared(g, 0, 3 * HUGE, GMEM_DISCARD);
}

static void (*const make_orphan[])(struct gmem *g) = {
	orphan_by_punch, orphan_by_remove, orphan_by_discard,
};

/* The page is private, with what no one but the guest may see. */
static void reset_secret(struct stage *s)
{
	gmem_to_private(&s->g, 0, s->nr, GMEM_ZERO);
	gmem_guest_fill(s->vcpu, &s->g, HELD - 4, 8, SECRET);
}

struct hold {
	struct stage *s;
	struct task task;
	int pipes[2];
};

static void hold_amid_claim(void *arg)
{
	struct hold *h = arg;

	hold_by_pipe(h->pipes, h->s->g.mem + HELD * PAGE_SIZE);
}

/* The holder may come first, and a large page in his hands is not split. */
static void punch_amid_claim(void *arg)
{
	struct stage *s = arg;

	TEST_ASSERT(!fallocate(s->g.fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
			       (HELD + 1) * PAGE_SIZE, PAGE_SIZE) || errno == EAGAIN,
		    "A hole beside a held page: %s", strerror(errno));
}

/* Someone takes hold of the page amid the claim in which it becomes shared. */
static void share_secret(struct stage *s, u64 flags)
{
	struct hold h = { .s = s };
	struct task punch;

	s->attributes = GMEM_SHARED;
	s->flags = flags;
	s->stop = flags == GMEM_DISCARD ? AMID_DISCARD(1) : AMID_ZERO(1);
	reset_secret(s);
	stage_hold(s);
	task_start(&h.task, hold_amid_claim, &h);
	task_start(&punch, punch_amid_claim, s);
	task_waits_amid_claim(s, &h.task);
	task_waits_amid_claim(s, &punch);
	TEST_ASSERT_EQ(stage_release(s), 0);
	task_join(&h.task);
	task_join(&punch);
	gmem_host_check_zero(&s->g, 0, s->nr);
	expect_old_bytes(h.pipes, 0);
}

static void use_after_orphan(struct world *w, struct stage *s, u64 file_flags, int how)
{
	int pipes[2];

	stage_init(s, w->vcpus[0], file_flags, GMEM_SLOT, GMEM_GPA);
	gmem_host_fill(&s->g, 0, NR_FILE, VAL);
	hold_by_pipe(pipes, s->g.mem + HELD * PAGE_SIZE);
	make_orphan[how](&s->g);
	gmem_host_check_zero(&s->g, HELD - 4, 8);
	stage_open(s, 2);

	/* The orphan is in nobody's way, and what is there instead is new. */
	s->attributes = GMEM_PRIVATE;
	s->flags = how & 1 ? GMEM_PRESERVE : GMEM_ZERO;
	s->stop = WHEN_ZAPPED;
	stage_reset(s);
	stage_hold(s);
	TEST_ASSERT_EQ(stage_release(s), 0);

	share_secret(s, how & 1 ? GMEM_DISCARD : GMEM_ZERO);
	stage_close(s);
	expect_old_bytes(pipes, VAL + HELD);
	gmem_host_check_zero(&s->g, 0, s->nr);
	gmem_destroy(&s->g);
}

/*
 * A page is held and leaves the file, the file goes on: conversions to both sides, with
 * another holder and a hole amid the claim.  Red if the orphan is still asked for, if
 * its frame is in the file, or if a holder of the new page reads the secret.
 */
COMBINE_TEST(orphans)
{
	int how;

	for (how = 0; how < ARRAY_SIZE(make_orphan); how++) {
		use_after_orphan(w, s, SHARED_HUGE, how);
		use_after_orphan(w, s, GMEM_SHARED_FILE, how);
	}
}

/* ---- Too little memory ---- */

#define FAILSLAB	"/sys/kernel/debug/failslab/"

/* Both ends are amid large pages. */
#define STARVED_FIRST	3ul
#define STARVED_NR	(2 * HUGE + 250)
#define STARVED_END	(STARVED_FIRST + STARVED_NR)

/* From now on every allocation fails of tasks that are to fail; none is yet. */
static bool failslab_setup(void)
{
	return !gmem_write_file(FAILSLAB "task-filter", "Y") &&
	       !gmem_write_file(FAILSLAB "ignore-gfp-wait", "N") &&
	       !gmem_write_file(FAILSLAB "verbose", "0") &&
	       !gmem_write_file(FAILSLAB "times", "-1") &&
	       !gmem_write_file(FAILSLAB "probability", "100");
}

static void check_starved(struct stage *s, u64 nr_large)
{
	TEST_ASSERT(s->result == ENOMEM && s->error_offset == STARVED_FIRST * PAGE_SIZE,
		    "Without memory: %s, error_offset 0x%lx", strerror(s->result),
		    s->error_offset);
	/* A split goes as far as it can; only the first edge has been tried. */
	TEST_ASSERT(gmem_large_pages() + 1 >= nr_large, "%lu large pages of %lu are left",
		    gmem_large_pages(), nr_large);
	assert_whole(&s->g, 0, NR_FILE, false, NR_FILE);
	gmem_host_check(&s->g, 0, NR_FILE, VAL);
}

/* A child of each own converts, so that the second one has memory. */
static void starve(struct world *w, struct stage *s)
{
	u64 nr_large = gmem_large_pages(), before = vm_get_stat(w->vm, gmem_pages_shared);
	char path[64];

	TEST_ASSERT(nr_large > 0, "No large page to split");
	stage_hold(s);
	snprintf(path, sizeof(path), "/proc/%d/make-it-fail", s->child);
	TEST_ASSERT_EQ(gmem_write_file(path, "1"), 0);
	TEST_ASSERT(stage_is_held(s), "The claim has gone");
	stage_release(s);
	check_starved(s, nr_large);
	TEST_ASSERT_EQ(vm_get_stat(w->vm, gmem_pages_shared), before);

	stage_hold(s);
	TEST_ASSERT_EQ(stage_release(s), 0);
	assert_whole(&s->g, STARVED_FIRST, STARVED_NR, true, NR_FILE);
	assert_whole(&s->g, STARVED_END, NR_FILE - STARVED_END, false, NR_FILE);
	gmem_guest_check_fill(w->vcpus[0], &s->g, STARVED_END - 8, 16, VAL + STARVED_END - 8);
}

/*
 * The process that converts has no memory any more as soon as it has its claim: large
 * pages cannot be split, in neither of the two ways.  ENOMEM, nothing has changed, the
 * VM's other threads notice nothing, and with memory it works.  Red if the failure is
 * overlooked, or if a claim stays: the checks would wait for ever.
 */
COMBINE_TEST_IF(no_memory, failslab_setup(), "No injection of faults")
{
	stage_init(s, w->vcpus[0], SHARED_HUGE | GUEST_MEMFD_FLAG_SHARED_CONTROL, GMEM_SLOT,
		   GMEM_GPA);
	s->first = STARVED_FIRST;
	s->nr = STARVED_NR;
	s->attributes = GMEM_PRIVATE;
	s->flags = GMEM_PRESERVE;
	s->stop = AT_START;
	s->by_child = true;
	gmem_host_fill(&s->g, 0, NR_FILE, VAL);
	stage_open(s, HUGE);
	starve(w, s);
	stage_close(s);
	gmem_write_file(FAILSLAB "probability", "0");
	gmem_write_file(FAILSLAB "task-filter", "N");
	gmem_destroy(&s->g);
}

/* ---- Pre-faults, a slot that moves, and a conversion ---- */

struct pre_fault {
	struct stage *s;
	struct kvm_vcpu *vcpu;
	struct task task;
	int error;
};

static void pre_fault_task(void *arg)
{
	struct pre_fault *p = arg;

	p->error = gmem_pre_fault(p->vcpu, p->s->g.gpa, p->s->nr);
}

/* A slot with guest_memfd cannot be moved; it goes, and comes elsewhere. */
static void move_slot(struct gmem *g)
{
	gpa_t gpa = g->gpa == WINDOW(0) ? WINDOW(1) : WINDOW(0);

	gmem_unbind(g);
	gmem_bind(g, GMEM_SLOT, gpa);
}

static void move_task(void *arg)
{
	struct stage *s = arg;

	move_slot(&s->g);
}

static void move_amid_claim(struct world *w, struct stage *s)
{
	struct pre_fault p = { .s = s, .vcpu = w->vcpus[1] };
	struct task move;

	stage_reset(s);
	stage_hold(s);
	task_start(&p.task, pre_fault_task, &p);
	task_waits_amid_claim(s, &p.task);
	task_start(&move, move_task, s);
	task_waits_amid_claim(s, &move);
	TEST_ASSERT_EQ(stage_release(s), 0);
	task_join(&p.task);
	task_join(&move);
	TEST_ASSERT(!p.error || p.error == EAGAIN || p.error == ENOENT,
		    "KVM_PRE_FAULT_MEMORY: %s", strerror(p.error));

	gmem_guest_check_zero(w->vcpus[0], &s->g, HUGE, 8);
	gmem_guest_fill(w->vcpus[0], &s->g, HUGE, 8, VAL);
	gmem_host_check(&s->g, HUGE, 8, VAL);
}

/*
 * A pre-fault waits for the claim with SRCU held, the slot is deleted and comes back
 * elsewhere, the pages are replaced.  Red (by hanging) if the conversion waits for
 * either, and if the pre-fault leaves a mapping of an old page behind.
 */
COMBINE_TEST_IF(pre_fault_of_moving_slot, kvm_check_cap(KVM_CAP_PRE_FAULT_MEMORY),
		"No KVM_PRE_FAULT_MEMORY")
{
	stage_init(s, w->vcpus[0], SHARED_HUGE, GMEM_SLOT, GMEM_GPA);
	stage_open(s, 3);
	s->stop = AMID_ZERO(2);
	move_amid_claim(w, s);
	s->flags = GMEM_DISCARD;
	s->stop = AT_START;
	move_amid_claim(w, s);
	s->stop = AMID_DISCARD(2);
	move_amid_claim(w, s);
	stage_close(s);
	gmem_destroy(&s->g);
}

static void pre_fault_step(void *arg, u64 turn)
{
	struct crew *c = arg;
	int r = gmem_pre_fault(c->vcpu, WINDOW(turn & 1), 3 * HUGE);

	TEST_ASSERT(!r || r == EAGAIN || r == ENOENT, "KVM_PRE_FAULT_MEMORY: %s", strerror(r));
}

static void move_step(void *arg, u64 turn)
{
	struct crew *c = arg;

	move_slot(&c->g);
}

static void discard_step(void *arg, u64 turn)
{
	struct crew *c = arg;

	gmem_convert_pages(&c->g, turn % 3, 2 * HUGE, turn & 1 ? GMEM_SHARED : GMEM_PRIVATE,
			   turn & 2 ? GMEM_DISCARD : GMEM_ZERO);
}

/* The same, at any time.  Red if what the guest has mapped in the end is not the file. */
COMBINE_TEST_IF(pre_fault_races, kvm_check_cap(KVM_CAP_PRE_FAULT_MEMORY),
		"No KVM_PRE_FAULT_MEMORY")
{
	struct crew c = { .vcpu = w->vcpus[1] };

	gmem_new(&c.g, w->vm, NR_FILE, SHARED_HUGE);
	crew_add(&c, pre_fault_step);
	crew_add(&c, move_step);
	crew_add(&c, discard_step);
	crew_end(&c);

	gmem_to_shared(&c.g, 0, NR_FILE, 0);
	gmem_host_fill(&c.g, 0, NR_FILE, VAL);
	gmem_guest_check_fill(w->vcpus[0], &c.g, 0, NR_FILE, VAL);
	gmem_destroy(&c.g);
}

/* ---- Everything at once ---- */

/* Anonymous memory whose log is switched on and off. */
#define LOG_SLOT	(GMEM_SLOT + 1)
#define LOG_NR		HUGE

/* The guest's copies count. */
static u64 guest_stop;
static u64 guest_rounds;

/* What was dropped or zeroed meanwhile is zero, everything else is as it was. */
static void guest_hammer(u64 gpa, u64 log_gpa)
{
	u64 round, i, seen, *word;

	for (round = 1; !READ_ONCE(guest_stop); round++) {
		for (i = 0; i < NR_FILE; i += 61) {
			word = (u64 *)(gpa + i * PAGE_SIZE) + 1;
			seen = READ_ONCE(*word);
			__GUEST_ASSERT(!seen || seen == round - 1,
				       "Page %lu: 0x%lx in round %lu", i, seen, round);
			WRITE_ONCE(*word, round);

			word = (u64 *)(log_gpa + i % LOG_NR * PAGE_SIZE) + i / LOG_NR;
			seen = READ_ONCE(*word);
			__GUEST_ASSERT(seen == round - 1, "Logged page %lu: 0x%lx in round %lu",
				       i % LOG_NR, seen, round);
			WRITE_ONCE(*word, round);
		}
		WRITE_ONCE(guest_rounds, round);
	}
	GUEST_DONE();
}

static void hammer_task(void *vcpu)
{
	vcpu_run(vcpu);
	TEST_ASSERT_EQ(gmem_get_ucall(vcpu), UCALL_DONE);
}

/* Any range that has a claim, with edges amid large pages and not. */
static void claim_step(void *arg, u64 turn)
{
	struct crew *c = arg;
	u64 first = turn % 5 * (HUGE / 2 - 1);

	gmem_convert_pages(&c->g, first, HUGE + 1 + turn % 7 * 16,
			   turn & 1 ? GMEM_PRIVATE : GMEM_SHARED, gmem_content_flags[turn / 2 % 4]);
}

/* A part of a large page that someone holds for a moment may stay. */
static void remove_step(void *arg, u64 turn)
{
	struct crew *c = arg;
	u64 first = turn * 311 % NR_FILE, nr = 1 + turn * 97 % (NR_FILE - first);
	u8 *addr = c->g.mem + first * PAGE_SIZE;

	TEST_ASSERT(!madvise(addr, nr * PAGE_SIZE, MADV_REMOVE) || errno == EAGAIN,
		    "MADV_REMOVE: %s", strerror(errno));
	gmem_try_write(addr, VAL);
}

/* A child has the mapping, but no say in what becomes of private pages. */
static void fork_step(void *arg, u64 turn)
{
	u64 page = turn * 173 % NR_FILE, val;
	struct crew *c = arg;
	int status = 0;
	pid_t pid;

	pid = fork();
	if (!pid) {
		gmem_try_read(c->g.mem + page * PAGE_SIZE, &val);
		gmem_try_write(c->g.mem + page * PAGE_SIZE, VAL);
		if (madvise(c->g.mem + page * PAGE_SIZE, PAGE_SIZE, MADV_REMOVE) &&
		    errno != EPERM && errno != EAGAIN)
			_exit(1);
		_exit(0);
	}
	TEST_ASSERT(pid > 0 && waitpid(pid, &status, 0) == pid && !status,
		    "Child: status 0x%x", status);
}

static u8 *log_mem;

/* Guest memory in files has no dirty log, whatever goes on. */
static void log_step(void *arg, u64 turn)
{
	struct crew *c = arg;
	int r;

	vm_set_user_memory_region(c->g.vm, LOG_SLOT, turn & 1 ? 0 : KVM_MEM_LOG_DIRTY_PAGES,
				  WINDOW(1), LOG_NR * PAGE_SIZE, log_mem);
	r = __vm_set_user_memory_region2(c->g.vm, GMEM_SLOT,
					 KVM_MEM_GUEST_MEMFD | KVM_MEM_LOG_DIRTY_PAGES, c->g.gpa,
					 c->g.size, c->g.mem, c->g.fd, 0);
	TEST_ASSERT(r && errno == EINVAL, "A dirty log of guest_memfd: %d, errno %d", r, errno);
}

/*
 * Holes by MADV_REMOVE, children that have the mapping and punch too, long conversions
 * with any content, a dirty log that comes and goes beside it, and a guest that must not
 * notice more than zeros.  Red if a store of the guest's is lost, which means a stale
 * mapping, if a child can punch what it must not, or if large pages are missing
 * afterwards.
 */
COMBINE_TEST(everything_at_once)
{
	struct kvm_vcpu *vcpu = w->vcpus[1];
	struct crew c = {};
	struct task hammer;

	log_mem = kvm_mmap(LOG_NR * PAGE_SIZE, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1);
	vm_set_user_memory_region(w->vm, LOG_SLOT, 0, WINDOW(1), LOG_NR * PAGE_SIZE, log_mem);
	gmem_create(&c.g, w->vm, NR_FILE * PAGE_SIZE, SHARED_HUGE);
	c.g.no_user_addr = true;
	gmem_bind(&c.g, GMEM_SLOT, WINDOW(0));
	vcpu_arch_set_entry_point(vcpu, guest_hammer);
	vcpu_args_set(vcpu, 2, WINDOW(0), WINDOW(1));

	task_start(&hammer, hammer_task, vcpu);
	crew_add(&c, claim_step);
	crew_add(&c, remove_step);
	crew_add(&c, fork_step);
	crew_add(&c, log_step);
	gmem_wait_until(READ_ONCE(*gmem_guest_var(w->vm, guest_rounds)) >= GMEM_LOOPS(4));
	crew_end(&c);
	WRITE_ONCE(*gmem_guest_var(w->vm, guest_stop), 1);
	task_join(&hammer);

	gmem_to_shared(&c.g, 0, NR_FILE, GMEM_DISCARD);
	gmem_host_check_zero(&c.g, 0, NR_FILE);
	gmem_guest_check_zero(w->vcpus[0], &c.g, 0, NR_FILE);
	gmem_destroy(&c.g);
	vm_set_user_memory_region(w->vm, LOG_SLOT, 0, WINDOW(1), 0, NULL);
	kvm_munmap(log_mem, LOG_NR * PAGE_SIZE);
}

int main(int argc, char *argv[])
{
	int r;

	no_stage = stage_cpu_init();
	r = test_harness_run(argc, argv);
	restore_settings();
	return r;
}
