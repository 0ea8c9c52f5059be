// SPDX-License-Identifier: GPL-2.0-only
/*
 * Combinations of what other tests have alone, amid a conversion in place.
 *
 * A long conversion claims its range and lets go of the file's lock.  Each case stops
 * one there, does the worst that it can think of, and lets the conversion end.  To stop
 * it, it has a CPU of its own, on which a thread of higher priority looks now and then,
 * and stays if it finds the claim; see brake_thread().  A hold may be lost, as the kernel
 * gives a starved thread its turn after a second: what has to happen within a claim
 * counts only if the claim is still there afterwards.
 *
 * If nobody ever waits for a claim, e.g. because faults don't look at it, no
 * conversion is ever found to be amid one, and every case with a stage fails.
 */
#include <asm/barrier.h>
#include <sys/stat.h>
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

/* Tries to catch one conversion, or to keep it until all is done. */
#define MAX_TRIES	200
#define MAX_LOST	10

/* No hold is longer, for the system's own threads of that CPU. */
#define HOLD_NS		(4 * NSEC_PER_SEC)

/* Holds that each case must have. */
#define HITS		3

/* ---- Threads ---- */

/* Where everything runs, and where conversions alone do. */
static int work_cpu, stage_cpu;

static int set_fifo(int prio)
{
	struct sched_param param = { .sched_priority = prio };

	return sched_setscheduler(0, prio ? SCHED_FIFO : SCHED_OTHER, &param);
}

static bool pick_cpus(void)
{
	cpu_set_t set;
	int cpu, nr = 0;

	kvm_sched_getaffinity(0, sizeof(set), &set);
	for (cpu = 0; cpu < CPU_SETSIZE && nr < 2; cpu++) {
		if (CPU_ISSET(cpu, &set))
			*(nr++ ? &stage_cpu : &work_cpu) = cpu;
	}
	if (nr < 2 || set_fifo(1))
		return false;

	set_fifo(0);
	pin_task_to_cpu(pthread_self(), work_cpu);
	return true;
}

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

/* Until it is done, or gets no further. */
static void task_settle(struct task *t)
{
	gmem_wait_until(READ_ONCE(t->done) ||
			(READ_ONCE(t->tid) && gmem_task_waits(t->tid)));
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

/* Fault a page in and out, over and over; the turn tells whether it gets on. */
struct probe {
	struct stage *s;
	u64 page;
	pid_t tid;
	u64 turn;
	pthread_t thread;
};

/* In memory shared with children. */
struct stage {
	struct gmem g;
	struct kvm_vcpu *vcpu;

	/* What to convert, and how; in another process, or by a real-time thread. */
	u64 first;
	u64 nr;
	u64 attributes;
	u64 flags;
	bool by_child;
	int prio;

	/* Pages that are looked at amid the claim and outside. */
	struct probe in;
	struct probe out;
	bool stop;

	pthread_t converter;
	pthread_t brake;
	pid_t child;
	long slice_ns;
	u64 held_turn;
	bool go, ready, held, release, done, starve;
	int result;
	u64 error_offset;
};

static void *probe_thread(void *arg)
{
	struct probe *p = arg;
	u8 *addr = p->s->g.mem + p->page * PAGE_SIZE;

	WRITE_ONCE(p->tid, kvm_gettid());
	while (!READ_ONCE(p->s->stop)) {
		/* Refused while the page is private, and once it is unmapped. */
		if (!madvise(addr, PAGE_SIZE, MADV_POPULATE_READ))
			madvise(addr, PAGE_SIZE, MADV_DONTNEED);
		WRITE_ONCE(p->turn, p->turn + 1);
		sched_yield();
	}
	return NULL;
}

static void probe_start(struct probe *p, struct stage *s, u64 page)
{
	*p = (struct probe) { .s = s, .page = page };
	kvm_pthread_create(&p->thread, NULL, probe_thread, p);
	gmem_wait_until(READ_ONCE(p->turn));
}

/*
 * Is there a claim?  The converter doesn't run meanwhile: the page amid the range is
 * waited for, and the other one is not, as it is if the file's lock is held.
 */
static bool claim_is_seen(struct stage *s)
{
	u64 in = READ_ONCE(s->in.turn), out;

	while (!gmem_task_waits(s->in.tid)) {
		if (READ_ONCE(s->in.turn) > in + 1)
			return false;
		cpu_relax();
	}

	in = READ_ONCE(s->in.turn);
	out = READ_ONCE(s->out.turn);
	while (READ_ONCE(s->out.turn) < out + 2) {
		if (READ_ONCE(s->in.turn) != in || gmem_task_waits(s->out.tid))
			return false;
		cpu_relax();
	}

	s->held_turn = in;
	return READ_ONCE(s->in.turn) == in && gmem_task_waits(s->in.tid);
}

static bool stage_is_held(struct stage *s)
{
	return READ_ONCE(s->in.turn) == s->held_turn && gmem_task_waits(s->in.tid);
}

/* Does @cond come true while the conversion is stopped? */
#define true_while_held(s, cond)						\
({										\
	struct stage *__s = (s);						\
	bool __is;								\
										\
	while (!(__is = (cond)) && stage_is_held(__s))				\
		sched_yield();							\
	__is && stage_is_held(__s);						\
})

/*
 * Let the converter have the CPU for a moment, again and again, until that ends in a
 * claim; then keep it.  This is no way to wait for anything: how long the moments are
 * tells only where in the claim the conversion is stopped.
 */
static void *brake_thread(void *arg)
{
	struct stage *s = arg;
	struct timespec slice = { .tv_nsec = s->slice_ns };
	u64 end;

	pin_task_to_cpu(pthread_self(), stage_cpu);
	TEST_ASSERT(!set_fifo(s->prio + 2), "No real-time priority");

	WRITE_ONCE(s->ready, true);
	while (!READ_ONCE(s->go))
		cpu_relax();

	while (!READ_ONCE(s->done) && !READ_ONCE(s->release)) {
		nanosleep(&slice, NULL);
		if (!READ_ONCE(s->done) && claim_is_seen(s))
			break;
	}
	if (READ_ONCE(s->done))
		return NULL;

	end = gmem_now_ns() + HOLD_NS;
	WRITE_ONCE(s->held, true);
	while (!READ_ONCE(s->release) && gmem_now_ns() < end)
		cpu_relax();
	return NULL;
}

static void *convert_thread(void *arg)
{
	struct stage *s = arg;

	pin_task_to_cpu(pthread_self(), stage_cpu);
	if (s->prio)
		set_fifo(s->prio);
	while (!READ_ONCE(s->ready))
		sched_yield();

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
	s->stop = false;
	probe_start(&s->in, s, page);
	probe_start(&s->out, s, OUTSIDE);
}

static void stage_close(struct stage *s)
{
	WRITE_ONCE(s->stop, true);
	kvm_pthread_join(s->in.thread, NULL);
	kvm_pthread_join(s->out.thread, NULL);
}

static void convert_start(struct stage *s)
{
	pid_t pid;

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
	return s->result;
}

/* @reset, if not NULL, undoes a conversion that wasn't caught. */
static void stage_hold(struct stage *s, void (*reset)(struct stage *s))
{
	int try;

	s->go = true;
	for (try = 0; try < MAX_TRIES; try++) {
		if (reset)
			reset(s);
		s->slice_ns = 20000 + try % 16 * 15000;
		convert_start(s);
		gmem_wait_until(READ_ONCE(s->held) || READ_ONCE(s->done));
		if (READ_ONCE(s->held))
			return;
		stage_release(s);
	}
	TEST_FAIL("No conversion of %d was ever found to wait for", try);
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
	if (!pick_cpus())
		return "Not two CPUs with real-time priorities";

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
	return !madvise(NULL, 0, MADV_HWPOISON) &&
	       !access(GMEM_HWPOISON_DIR "corrupt-pfn", W_OK);
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
	/* Small pages, to have the check of holders take its time. */
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

static void delete_below_guest(struct stage *s, struct kvm_vcpu **vcpus)
{
	struct task unbind;
	struct guest v;
	bool held;

	stage_hold(s, NULL);
	guest_start(&v, vcpus[0], GMEM_GUEST_CHECK, s->g.gpa, 16, VAL);
	task_settle(&v.task);
	task_start(&unbind, unbind_task, &s->g);
	gmem_wait_until(slot_is_away(vcpus[1], s->g.gpa + OUTSIDE * PAGE_SIZE));
	held = stage_is_held(s);
	check_refusal(s, stage_release(s));
	task_join(&unbind);
	guest_join(&v);
	ksft_print_msg("The claim was%s there when the slot was away\n", held ? "" : " not");

	gmem_bind(&s->g, GMEM_SLOT, GMEM_GPA);
	gmem_guest_check_fill(vcpus[0], &s->g, 0, 16, VAL);
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
	int bad_pipe[2], held_pipe[2], i;

	stage_init(s, w->vcpus[0], SHARED_HUGE, GMEM_SLOT, GMEM_GPA);
	s->attributes = GMEM_PRIVATE;
	add_holders(&s->g, bad_pipe, held_pipe);
	stage_open(s, 1);
	for (i = 0; i < HITS; i++)
		delete_below_guest(s, w->vcpus);
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

static void strike_at_seam(struct world *w, struct stage *s, u64 flags, u64 bad)
{
	u64 left = bad - (bad == SEAM_FIRST || bad == SEAM_END), other, val;
	struct strike strike;
	int r;

	stage_init(s, w->vcpus[0], flags, GMEM_SLOT, GMEM_GPA);
	s->first = SEAM_FIRST;
	s->nr = SEAM_NR;
	s->attributes = bad & 1 ? GMEM_PRIVATE : GMEM_SHARED;
	s->flags = s->attributes ? GMEM_PRESERVE : GMEM_ZERO;
	gmem_host_fill(&s->g, 0, NR_FILE, VAL);
	strike.frame = gmem_known_frame(s->g.mem + bad * PAGE_SIZE);
	stage_open(s, SEAM_FIRST + HUGE);

	stage_hold(s, stage_reset);
	task_start(&strike.task, strike_task, &strike);
	task_settle(&strike.task);
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
	static const u64 pages[] = { SEAM_FIRST - 1, SEAM_FIRST, SEAM_END - 1, SEAM_END };
	int i;

	for (i = 0; i < ARRAY_SIZE(pages); i++) {
		strike_at_seam(w, s, SHARED_HUGE, pages[i]);
		strike_at_seam(w, s, GMEM_SHARED_FILE, pages[i]);
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

static bool kill_waiter(struct stage *s)
{
	struct child c;
	bool gone;

	child_start(&c, child_touches, &s->g);
	parent_waits(&c);
	stage_hold(s, stage_reset);
	parent_tells(&c);
	gone = true_while_held(s, gmem_task_waits(c.pid));
	kill(c.pid, SIGKILL);
	if (gone)
		gone = true_while_held(s, child_is_gone(&c));
	TEST_ASSERT_EQ(stage_release(s), 0);
	if (!gone)
		waitpid(c.pid, NULL, 0);
	close(c.to_parent[0]);
	close(c.to_child[1]);
	return gone;
}

/*
 * A task that waits for a claim dies of SIGKILL at once, and not when the conversion is
 * good enough to end.  Red if the wait is uninterruptible.
 */
COMBINE_TEST(waiter_killed)
{
	int i, hits = 0;

	stage_init(s, w->vcpus[0], GMEM_SHARED_FILE, GMEM_SLOT, GMEM_GPA);
	s->flags = GMEM_ZERO;
	stage_open(s, HUGE);
	for (i = 0; i < MAX_LOST && hits < HITS; i++)
		hits += kill_waiter(s);
	TEST_ASSERT(hits >= HITS, "%d of %d tasks died amid the claim", hits, i);
	stage_close(s);
	gmem_host_check_zero(&s->g, 0, s->nr);
	gmem_destroy(&s->g);
}

static void kill_converter(struct world *w, struct stage *s, u64 attributes, u64 flags)
{
	bool private, zero;
	u64 turn;

	s->attributes = attributes;
	s->flags = flags;
	stage_hold(s, stage_reset);
	kill(s->child, SIGKILL);
	turn = READ_ONCE(s->in.turn);
	stage_release(s);

	/* Whoever waited for it goes on. */
	gmem_wait_until(READ_ONCE(s->in.turn) > turn + 2);
	private = gmem_page_is_private(&s->g, 0);
	assert_whole(&s->g, 0, s->nr, private, NR_FILE);
	zero = flags != GMEM_PRESERVE && private == !!attributes;
	if (zero)
		gmem_guest_check_zero(w->vcpus[0], &s->g, s->nr - 16, 16);
	else
		gmem_guest_check_fill(w->vcpus[0], &s->g, s->nr - 16, 16, VAL + s->nr - 16);
	ksft_print_msg("The conversion was %s\n",
		       private == !!attributes ? "complete" : "given up");
}

/*
 * A conversion that another process makes is killed in the middle: it is complete, or
 * nothing of it is there, and the next one finds no claim.
 */
COMBINE_TEST(converter_killed)
{
	int i;

	stage_init(s, w->vcpus[0], GMEM_SHARED_FILE | GUEST_MEMFD_FLAG_SHARED_CONTROL, GMEM_SLOT,
		   GMEM_GPA);
	s->by_child = true;
	stage_open(s, HUGE);
	for (i = 0; i < 2; i++) {
		kill_converter(w, s, GMEM_PRIVATE, GMEM_PRESERVE);
		kill_converter(w, s, GMEM_PRIVATE, GMEM_ZERO);
		kill_converter(w, s, GMEM_SHARED, GMEM_ZERO);
		kill_converter(w, s, GMEM_SHARED, GMEM_DISCARD);
	}
	stage_close(s);
	stage_reset(s);
	gmem_destroy(&s->g);
}

static void wait_amid_claim(void *arg)
{
	struct stage *s = arg;

	madvise(s->g.mem + (HUGE + 5) * PAGE_SIZE, PAGE_SIZE, MADV_POPULATE_READ);
}

/* Everyone waits for the claim, or for those who do, and then nobody is there any more. */
static void __noreturn doomed_child(struct stage *s, int tell)
{
	struct task user, unbind;
	struct kvm_vcpu *vcpus[2];
	struct guest v;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	new_vm(vcpus, false);
	stage_init(s, vcpus[0], SHARED_HUGE, GMEM_SLOT, GMEM_GPA);
	s->flags = GMEM_ZERO;
	stage_open(s, HUGE);
	stage_hold(s, stage_reset);
	guest_start(&v, vcpus[0], GMEM_GUEST_CHECK, s->g.gpa, 16, VAL);
	task_start(&user, wait_amid_claim, s);
	task_settle(&v.task);
	task_settle(&user);
	task_start(&unbind, unbind_task, &s->g);
	task_settle(&unbind);
	signal_fd(tell);
	for (;;)
		pause();
}

/*
 * The whole process is killed, amid the claim or soon after: a vCPU, a user and a
 * deletion of the slot wait.  Invariant 8, every page comes back; red if any of them
 * cannot be killed while the converter, which can't before it ends, is stopped for good.
 */
COMBINE_TEST(process_killed)
{
	u64 before = gmem_meminfo_kib("Unevictable");
	int pipes[2], status, i;
	pid_t pid;

	TEST_ASSERT(!pipe(pipes), "pipe() failed");
	for (i = 0; i < HITS; i++) {
		pid = fork();
		TEST_ASSERT(pid >= 0, "fork() failed");
		if (!pid)
			doomed_child(s, pipes[1]);
		wait_fd(pipes[0]);
		kill(pid, SIGKILL);
		TEST_ASSERT_EQ(waitpid(pid, &status, 0), pid);
		TEST_ASSERT(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL,
			    "Child: status 0x%x", status);
	}
	release_pipe(pipes);
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

static bool close_amid_claim(struct world *w, struct stage *s)
{
	struct task user, closer;
	struct guest v;
	bool closed;

	stage_init(s, w->vcpus[0], SHARED_HUGE, GMEM_SLOT, GMEM_GPA);
	s->flags = GMEM_ZERO;
	stage_open(s, HUGE);
	stage_hold(s, stage_reset);
	guest_start(&v, w->vcpus[0], GMEM_GUEST_CHECK, s->g.gpa, 4, 0);
	task_start(&user, wait_amid_claim, s);
	task_settle(&v.task);
	task_settle(&user);

	task_start(&closer, close_file, &s->g);
	closed = true_while_held(s, READ_ONCE(closer.done));
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
	return closed;
}

/*
 * The mapping and the last descriptor go while a user and a vCPU wait for a claim.  Red
 * if a waiter holds mmap_lock, which munmap() wants; a waiter without a reference of its
 * own would wake up in an inode that has been freed, which is for KASAN to see.
 */
COMBINE_TEST(unmapped_and_closed)
{
	int i, hits = 0;

	for (i = 0; i < MAX_LOST && hits < HITS; i++)
		hits += close_amid_claim(w, s);
	TEST_ASSERT(hits >= HITS, "munmap() went on amid %d of %d claims", hits, i);
}

/* ---- Two claims, and what lies between ---- */

/* Hold a second conversion, of another file, while @a is held. */
static bool hold_both(struct stage *a, struct stage *b, int try)
{
	b->go = false;
	b->prio = 1;
	b->slice_ns = 20000 + try % 16 * 15000;
	stage_reset(b);
	stage_hold(a, stage_reset);

	/* The one brake is there before the other goes. */
	convert_start(b);
	gmem_wait_until(READ_ONCE(b->ready));
	WRITE_ONCE(a->release, true);
	WRITE_ONCE(b->go, true);
	gmem_wait_until(READ_ONCE(b->held) || READ_ONCE(b->done));
	return READ_ONCE(b->held) && stage_is_held(a) && stage_is_held(b);
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
	int i, hits = 0, lost = 0;

	stage_init(a, w->vcpus[0], GMEM_SHARED_FILE, GMEM_SLOT, WINDOW(0));
	stage_init(b, w->vcpus[0], GMEM_SHARED_FILE, GMEM_SLOT + 2, WINDOW(2));
	gmem_create(&m.g, w->vm, 4 * PAGE_SIZE, GMEM_SHARED_FILE);
	gmem_bind(&m.g, GMEM_SLOT + 1, WINDOW(1));
	a->flags = GMEM_ZERO;
	b->flags = GMEM_ZERO;
	stage_open(a, HUGE);
	stage_open(b, HUGE);
	for (i = 0; i < MAX_TRIES && hits < HITS && lost < MAX_LOST; i++) {
		if (!hold_both(a, b, i)) {
			stage_release(b);
			stage_release(a);
			continue;
		}

		task_start(&m.task, use_between, &m);
		if (true_while_held(b, READ_ONCE(m.task.done)) && stage_is_held(a))
			hits++;
		else
			lost++;
		stage_release(b);
		stage_release(a);
		task_join(&m.task);
	}
	TEST_ASSERT(hits >= HITS, "The guest went on between two claims in %d of %d tries",
		    hits, i);
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

static bool read_while_both_wait(struct world *w, struct stage *s)
{
	struct reader r = { .g = &s->g };
	struct task second;
	bool held;

	stage_hold(s, stage_reset);
	task_start(&second, convert_second, s);
	task_settle(&second);
	task_start(&r.task, read_tail, &r);
	held = true_while_held(s, READ_ONCE(r.task.done));
	TEST_ASSERT(!held || !r.nr_refused, "%lu pages of a conversion that has to wait",
		    r.nr_refused);
	if (stage_release(s))
		held = false;
	task_join(&second);
	task_join(&r.task);

	assert_whole(&s->g, SECOND, SECOND_NR, true, NR_FILE);
	assert_whole(&s->g, TAIL + TAIL_NR, NR_FILE - TAIL - TAIL_NR, false, NR_FILE);
	gmem_guest_check_fill(w->vcpus[0], &s->g, TAIL - 8, 16, VAL + TAIL - 8);
	return held;
}

/*
 * The tail of what the second converter waits to have is not claimed by the first: users
 * read it, with its bytes, until its turn comes.  Red if a claim reaches beyond its
 * range, or if the waiting converter keeps readers out.
 */
COMBINE_TEST(tail_of_waiting_conversion)
{
	int i, hits = 0;

	stage_init(s, w->vcpus[0], GMEM_SHARED_FILE, GMEM_SLOT, GMEM_GPA);
	s->attributes = GMEM_PRIVATE;
	s->flags = GMEM_PRESERVE;
	s->nr = 2 * HUGE;
	stage_open(s, 5);
	for (i = 0; i < MAX_LOST && hits < HITS; i++)
		hits += read_while_both_wait(w, s);
	TEST_ASSERT(hits >= HITS, "The tail was read in %d of %d claims", hits, i);
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
	u64 nr_seen;
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

static void second_step(void *arg, u64 turn)
{
	struct crew *c = arg;

	WRITE_ONCE(c->seq, c->seq + 1);
	/* Readers that see what is new have seen the number. */
	smp_mb();
	gmem_convert_pages(&c->g, SECOND, SECOND_NR, c->seq & 1 ? GMEM_PRIVATE : GMEM_SHARED, 0);
}

/* Once a page is seen in the new state, no other is in the old one. */
static void tail_step(void *arg, u64 turn)
{
	struct crew *c = arg;
	u64 seq = READ_ONCE(c->seq), val = 0, page, i;
	bool is_new, seen = false;

	for (i = 0; i < TAIL_NR; i += 7) {
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
		if (is_new && !seen)
			WRITE_ONCE(c->nr_seen, c->nr_seen + 1);
		seen = is_new;
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
	crew_end(&c);
	ksft_print_msg("Looked at %lu conversions\n", c.nr_seen);

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
	stage_hold(s, reset_secret);
	task_start(&h.task, hold_amid_claim, &h);
	task_start(&punch, punch_amid_claim, s);
	task_settle(&h.task);
	task_settle(&punch);
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
	stage_hold(s, stage_reset);
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

#define CGROUP		"/sys/fs/cgroup"
#define OUR_CGROUP	CGROUP "/gmem_combination"

/* Both ends are amid large pages, and the map has no bitmap yet. */
#define STARVED_FIRST	3ul
#define STARVED_NR	(2 * HUGE + 250)
#define STARVED_END	(STARVED_FIRST + STARVED_NR)

/* A CPU keeps what is left of a page that it has charged; timers are small. */
static void eat_what_is_left(void)
{
	struct sigevent event = { .sigev_notify = SIGEV_NONE };
	int i, id;

	for (i = 0; i < 1000 && !syscall(SYS_timer_create, CLOCK_MONOTONIC, &event, &id); i++)
		;
}

/* A process for the group; it must not need any memory but for the conversion. */
static void __noreturn starving_child(struct stage *s)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	/* The kernel kills no one, there is no one to kill. */
	TEST_ASSERT_EQ(gmem_write_file("/proc/self/oom_score_adj", "-1000"), 0);
	for (;;) {
		while (!READ_ONCE(s->go))
			sched_yield();
		s->go = false;
		if (s->starve)
			eat_what_is_left();
		s->result = __gmem_convert(s->g.fd, s->first * PAGE_SIZE,
					   s->nr * PAGE_SIZE, s->attributes, s->flags,
					   &s->error_offset);
		WRITE_ONCE(s->done, true);
	}
}

static int starved_convert(struct stage *s, u64 attributes)
{
	s->attributes = attributes;
	s->done = false;
	WRITE_ONCE(s->go, true);
	gmem_wait_until(READ_ONCE(s->done));
	return s->result;
}

static bool cgroup_setup(void)
{
	gmem_write_file(CGROUP "/cgroup.subtree_control", "+memory");
	return (!mkdir(OUR_CGROUP, 0755) || errno == EEXIST) &&
	       !access(OUR_CGROUP "/memory.max", W_OK);
}

static void check_starved(struct stage *s, u64 nr_large)
{
	TEST_ASSERT(s->result == ENOMEM && s->error_offset == STARVED_FIRST * PAGE_SIZE,
		    "Without memory: %s, error_offset 0x%lx", strerror(s->result),
		    s->error_offset);
	TEST_ASSERT_EQ(gmem_large_pages(), nr_large);
	assert_whole(&s->g, 0, NR_FILE, false, NR_FILE);
	gmem_host_check(&s->g, 0, NR_FILE, VAL);
}

static void starve(struct world *w, struct stage *s)
{
	u64 nr_large = gmem_large_pages(), before, after;
	char text[32];

	snprintf(text, sizeof(text), "%d", s->child);
	TEST_ASSERT_EQ(gmem_write_file(OUR_CGROUP "/cgroup.procs", text), 0);
	/* It has what it needs when it has done it all once. */
	TEST_ASSERT_EQ(starved_convert(s, GMEM_SHARED), 0);

	before = vm_get_stat(w->vm, gmem_pages_shared);
	gmem_write_file(OUR_CGROUP "/memory.max", "0");
	s->starve = true;
	starved_convert(s, GMEM_PRIVATE);
	s->starve = false;
	gmem_write_file(OUR_CGROUP "/memory.max", "max");
	after = vm_get_stat(w->vm, gmem_pages_shared);
	check_starved(s, nr_large);
	TEST_ASSERT_EQ(after, before);

	TEST_ASSERT_EQ(starved_convert(s, GMEM_PRIVATE), 0);
	assert_whole(&s->g, STARVED_FIRST, STARVED_NR, true, NR_FILE);
	assert_whole(&s->g, STARVED_END, NR_FILE - STARVED_END, false, NR_FILE);
	gmem_guest_check_fill(w->vcpus[0], &s->g, STARVED_END - 8, 16, VAL + STARVED_END - 8);
}

/*
 * The process that converts is in a control group without any memory left.  ENOMEM,
 * nothing has changed, the VM's other threads, who are in another group, notice
 * nothing, and with memory it works.  Red if the failure is overlooked, if large
 * pages are split in vain, or if a claim stays: the checks would wait for ever.
 */
COMBINE_TEST_IF(no_memory, cgroup_setup(), "No memory control group")
{
	pid_t pid;

	stage_init(s, w->vcpus[0], SHARED_HUGE | GUEST_MEMFD_FLAG_SHARED_CONTROL, GMEM_SLOT,
		   GMEM_GPA);
	s->first = STARVED_FIRST;
	s->nr = STARVED_NR;
	s->flags = GMEM_PRESERVE;
	gmem_host_fill(&s->g, 0, NR_FILE, VAL);

	s->go = false;
	pid = fork();
	TEST_ASSERT(pid >= 0, "fork() failed");
	if (!pid)
		starving_child(s);
	s->child = pid;
	starve(w, s);
	kill(s->child, SIGKILL);
	TEST_ASSERT_EQ(waitpid(s->child, NULL, 0), s->child);
	rmdir(OUR_CGROUP);
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

static bool move_amid_claim(struct world *w, struct stage *s)
{
	struct pre_fault p = { .s = s, .vcpu = w->vcpus[1] };
	struct task move;
	bool held;

	stage_hold(s, stage_reset);
	task_start(&p.task, pre_fault_task, &p);
	held = true_while_held(s, READ_ONCE(p.task.tid) && gmem_task_waits(p.task.tid));
	task_start(&move, move_task, s);
	task_settle(&move);
	TEST_ASSERT_EQ(stage_release(s), 0);
	task_join(&p.task);
	task_join(&move);
	TEST_ASSERT(!p.error || p.error == EAGAIN || p.error == ENOENT,
		    "KVM_PRE_FAULT_MEMORY: %s", strerror(p.error));

	gmem_guest_check_zero(w->vcpus[0], &s->g, HUGE, 8);
	gmem_guest_fill(w->vcpus[0], &s->g, HUGE, 8, VAL);
	gmem_host_check(&s->g, HUGE, 8, VAL);
	return held;
}

/*
 * A pre-fault waits for the claim with SRCU held, the slot is deleted and comes back
 * elsewhere, the pages are replaced.  Red (by hanging) if the conversion waits for
 * either, and if the pre-fault leaves a mapping of an old page behind.
 */
COMBINE_TEST_IF(pre_fault_of_moving_slot, kvm_check_cap(KVM_CAP_PRE_FAULT_MEMORY),
		"No KVM_PRE_FAULT_MEMORY")
{
	int i, hits = 0;

	stage_init(s, w->vcpus[0], SHARED_HUGE, GMEM_SLOT, GMEM_GPA);
	stage_open(s, 3);
	for (i = 0; i < MAX_LOST && hits < HITS; i++) {
		s->flags = i & 1 ? GMEM_DISCARD : GMEM_ZERO;
		hits += move_amid_claim(w, s);
	}
	TEST_ASSERT(hits >= HITS, "%d of %d pre-faults waited for the claim", hits, i);
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
	gmem_wait_until(READ_ONCE(*gmem_guest_var(w->vm, guest_rounds)) > MIN_TURNS);
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
	return test_harness_run(argc, argv);
}
