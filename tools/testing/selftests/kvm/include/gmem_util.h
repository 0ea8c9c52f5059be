/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Helpers for tests of guest_memfd files with in-place conversion.
 *
 * There is no way to ask for the state of a page, on purpose: the tests learn
 * it from behaviour.  A user access to a private page is SIGBUS, to a shared
 * one it works; see gmem_page_is_private().
 */
#ifndef SELFTEST_KVM_GMEM_UTIL_H
#define SELFTEST_KVM_GMEM_UTIL_H

#include <asm/barrier.h>
#include <linux/falloc.h>
#include <linux/sizes.h>

#include "kvm_util.h"
#include "processor.h"
#include "ucall_common.h"

#include <fcntl.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/wait.h>

/* A hundred times what the tests do unasked is a night's work. */
#define GMEM_MAX_SCALE		10000ul

/*
 * No case takes nearly as long, and no wait for another thread, not even with
 * KASAN under emulation on a machine that has other things to do.
 */
#define GMEM_TIMEOUT_S		900
#define GMEM_WAIT_S		150

/* Above slot 0, the PCI hole and the local APIC. */
#define GMEM_GPA		((gpa_t)SZ_4G)
#define GMEM_SLOT		10

#define GMEM_PRIVATE		KVM_MEMORY_ATTRIBUTE_PRIVATE
#define GMEM_SHARED		0

#define GMEM_ZERO		KVM_SET_MEMORY_ATTRIBUTES2_ZERO
#define GMEM_PRESERVE		KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE
#define GMEM_DISCARD		KVM_SET_MEMORY_ATTRIBUTES2_DISCARD
#define GMEM_ALL_CONTENT	(GMEM_ZERO | GMEM_PRESERVE | GMEM_DISCARD)

/* What a conversion may be asked to do with content. */
extern const u64 gmem_content_flags[4];

#define GMEM_SHARED_FILE	(GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED)
#define GMEM_PRIVATE_FILE	GUEST_MEMFD_FLAG_MMAP

/* What the out field holds before a call, to see whether KVM wrote it. */
#define GMEM_SENTINEL		0x5e475e475e475e47ull

/*
 * x86 has one page size; elsewhere it is the host's, and the guest's copy counts.  The
 * test sets it, and has it copied to the guest, before all else.
 */
extern u64 gmem_page_size;

#ifndef PAGE_SIZE
#define PAGE_SIZE		gmem_page_size
#endif

/* ---- How long the tests race ---- */

/*
 * Percent, from the environment: less for a kernel whose checks make it slow,
 * more for a search.  A value that is none fails the test; taken as 100, or as
 * 0, it would let the test pass for something that nobody asked for.
 */
u64 gmem_scale(void);

/* Every loop of the tests that race turns GMEM_LOOPS() times. */
#define GMEM_LOOPS(n)		max(1ul, (n) * gmem_scale() / 100)

/* A system call must fail with @error. */
#define gmem_expect_error(expr, error)						\
do {										\
	long __r = (expr);							\
	int __errno = errno, __want = (error);					\
										\
	TEST_ASSERT(__r == -1 && __errno == __want, #expr ": %ld, %s, want %s", \
		    __r, strerror(__errno), strerror(__want));			\
} while (0)

/* ---- Files and slots ---- */

/* An in-place file, its mapping in this process and its slot. */
struct gmem {
	struct kvm_vm *vm;
	u64 flags;
	size_t size;
	gpa_t gpa;
	u32 slot;
	u8 *mem;
	int fd;

	/*
	 * Bind with userspace_addr = 0.  Else the MMU notifier zaps the guest as
	 * soon as users are unmapped, and hides that KVM has not.
	 */
	bool no_user_addr;
};

#ifdef __x86_64__
/* Can software-protected VMs convert memory in place? */
bool gmem_conversion_supported(void);

/* One of these, with vCPUs that begin with @guest_code. */
struct kvm_vm *gmem_vm_create(u32 nr_vcpus, void *guest_code, struct kvm_vcpu **vcpus);
#endif /* __x86_64__ */

/* A file of @size bytes, mapped if @flags allow it, in no slot yet. */
void gmem_create(struct gmem *g, struct kvm_vm *vm, size_t size, u64 flags);

/* Bind the whole file, and take it out of its slot again. */
void gmem_bind(struct gmem *g, u32 slot, gpa_t gpa);
void gmem_unbind(struct gmem *g);

/* Give up slot, mapping and descriptor. */
void gmem_destroy(struct gmem *g);

/* A file of @nr pages, bound at GMEM_GPA. */
void __gmem_new(struct gmem *g, struct kvm_vm *vm, u64 nr, u64 flags, bool no_user_addr);

static inline void gmem_new(struct gmem *g, struct kvm_vm *vm, u64 nr, u64 flags)
{
	__gmem_new(g, vm, nr, flags, false);
}

/* ---- Conversion ---- */

/*
 * KVM_SET_MEMORY_ATTRIBUTES2, once.  Returns 0 or the error number, and in *@error_offset,
 * unless it is NULL, what the out field then holds.
 */
int __gmem_convert(int fd, u64 offset, u64 size, u64 attributes, u64 flags,
		   u64 *error_offset);

#define GMEM_MAX_RETRIES	100000

/*
 * The same until it is no EAGAIN, which may be spurious: a fault of another thread,
 * GUP-fast, compaction or the LRU's batches hold a page for a moment.  VMMs retry, and
 * so does every case that expects success.  Cases that expect EAGAIN use
 * __gmem_convert().
 */
int gmem_convert_retry(int fd, u64 offset, u64 size, u64 attributes, u64 flags);

/* Must succeed. */
#define gmem_convert_pages(g, first, nr, attributes, flags)			\
do {										\
	u64 __first = (first), __nr = (nr);					\
	u64 __attrs = (attributes), __flags = (flags);				\
	int __r = gmem_convert_retry((g)->fd, __first * PAGE_SIZE,		\
				     __nr * PAGE_SIZE, __attrs, __flags);	\
										\
	TEST_ASSERT(!__r, "Conversion of %lu pages from %lu to %s, flags 0x%lx: %s", \
		    __nr, __first, __attrs ? "private" : "shared", __flags,	\
		    strerror(__r));						\
} while (0)

#define gmem_to_private(g, first, nr, flags)					\
	gmem_convert_pages(g, first, nr, GMEM_PRIVATE, flags)
#define gmem_to_shared(g, first, nr, flags)					\
	gmem_convert_pages(g, first, nr, GMEM_SHARED, flags)

/* Remove pages, or have them allocated. */
void gmem_punch(struct gmem *g, u64 first, u64 nr);
void gmem_allocate(struct gmem *g, u64 first, u64 nr);

/* ---- User accesses that may be SIGBUS, from any thread ---- */

/* Of each thread; for gmem_try() and the handler of the signal. */
struct gmem_sigbus {
	sigjmp_buf env;
	bool armed;
	void *addr;
	int code;
};

extern __thread struct gmem_sigbus gmem_sigbus;

/* The start of every test; a bad scale is found even by one that has no loops. */
void gmem_test_init(void);

/* Evaluates to 0 if @action ran to its end, else to the si_code of SIGBUS. */
#define gmem_try(action)					\
({								\
	int __code = 0;						\
								\
	WRITE_ONCE(gmem_sigbus.armed, true);			\
	if (!sigsetjmp(gmem_sigbus.env, 0)) {			\
		action;						\
	} else {						\
		__code = gmem_sigbus.code;			\
	}							\
	WRITE_ONCE(gmem_sigbus.armed, false);			\
	__code;							\
})

/* One word; returns 0 or the si_code. */
int gmem_try_read(const void *p, u64 *val);
int gmem_try_write(void *p, u64 val);

/* Is access refused?  Reading and writing must agree. */
bool gmem_addr_is_private(void *p);

static inline bool gmem_page_is_private(struct gmem *g, u64 page)
{
	return gmem_addr_is_private(g->mem + page * PAGE_SIZE);
}

#define gmem_assert_state(g, first, nr, want_private)				\
do {										\
	u64 __first = (first), __end = __first + (nr), __p;			\
	bool __want = (want_private);						\
										\
	for (__p = __first; __p < __end; __p++)					\
		TEST_ASSERT(gmem_page_is_private(g, __p) == __want,		\
			    "Page %lu should be %s", __p,			\
			    __want ? "private" : "shared");			\
} while (0)

#define gmem_assert_private(g, first, nr)	gmem_assert_state(g, first, nr, true)
#define gmem_assert_shared(g, first, nr)	gmem_assert_state(g, first, nr, false)

/* Present and initialised.  Pages only allocated do not count. */
bool gmem_page_is_present(struct gmem *g, u64 page);

/* ---- Content: every word of page i of a range is val + i * step ---- */

/* A page of words, by host or guest. */
void gmem_fill_words(u64 *p, u64 val);

/* The index of the first word that differs, or -1. */
int gmem_check_words(const u64 *p, u64 val, u64 *seen);

/* Pages of the file at @path, e.g. a core dump, that are full of @val. */
u64 gmem_count_pages(const char *path, u64 val);

/* @nr pages of the file, from page @first on. */
void gmem_host_fill(struct gmem *g, u64 first, u64 nr, u64 val);

/* The first page that is not as expected, or @nr. */
u64 gmem_find_bad_page(u8 *mem, u64 nr, u64 val, u64 step, u64 *seen);

#define __gmem_host_check(g, first, nr, val, step)				\
do {										\
	u64 __first = (first), __nr = (nr), __val = (val), __step = (step);	\
	u64 __bad, __seen = 0;							\
										\
	__bad = gmem_find_bad_page((g)->mem + __first * PAGE_SIZE, __nr,	\
				   __val, __step, &__seen);			\
	TEST_ASSERT(__bad == __nr, "Host, page %lu: 0x%lx, want 0x%lx",		\
		    __first + __bad, __seen, __val + __bad * __step);		\
} while (0)

#define gmem_host_check(g, first, nr, val)	__gmem_host_check(g, first, nr, val, 1ul)
#define gmem_host_check_zero(g, first, nr)	__gmem_host_check(g, first, nr, 0ul, 0ul)

/* ---- Guests ---- */

/* Guest and host each have a copy of a variable; this is where the guest's is. */
#define gmem_guest_var(vm, var)	((typeof(var) *)addr_gva2hva(vm, (gva_t)&(var)))

/* UCALL_SYNC or UCALL_DONE: every other reason for an exit is an error. */
u64 gmem_get_ucall(struct kvm_vcpu *vcpu);

/*
 * Pre-fault pages.  Returns 0 or the error number.  The ioctl tells of a failure
 * only if it could do nothing at all, hence is called until nothing is left.
 */
int gmem_pre_fault(struct kvm_vcpu *vcpu, gpa_t gpa, u64 nr);

/* ---- A guest that does what it is told ---- */

#define GMEM_MAX_VCPUS		4

enum gmem_guest_op {
	GMEM_GUEST_NOP,
	GMEM_GUEST_FILL,
	GMEM_GUEST_CHECK,
	GMEM_GUEST_WRMSR,
};

struct gmem_guest_cmd {
	u64 op;
	u64 gva;
	u64 nr;
	u64 val;
	u64 step;

	/* Out: the first page that differs, or nr, and what it holds. */
	u64 bad_page;
	u64 bad_val;
};

/* What a vCPU runs; @id is its number. */
void gmem_guest_server(u64 id);

/* An MMIO access of a guest whose slot is away; reads are zero. */
bool gmem_tolerate_mmio(struct kvm_vcpu *vcpu);

#ifdef __x86_64__
struct svm_test_data;

/* What L1 runs: its L2 does what it is told, as vCPU 0, and never returns. */
void gmem_l1_code(struct svm_test_data *svm);
#endif

/* Set a command up; the next run of @vcpu carries it out. */
struct gmem_guest_cmd *gmem_guest_prepare(struct kvm_vcpu *vcpu, u64 op, u64 gva, u64 nr,
					  u64 val, u64 step);

/* Carry it out.  Every exit but that of the command itself is an error. */
void gmem_guest_finish(struct kvm_vcpu *vcpu);

/* Both. */
struct gmem_guest_cmd *gmem_guest_do(struct kvm_vcpu *vcpu, u64 op, u64 gva, u64 nr,
				     u64 val, u64 step);

static inline void gmem_guest_fill(struct kvm_vcpu *vcpu, struct gmem *g,
				   u64 first, u64 nr, u64 val)
{
	gmem_guest_do(vcpu, GMEM_GUEST_FILL, g->gpa + first * PAGE_SIZE, nr, val, 1);
}

#define __gmem_guest_check(vcpu, g, first, nr, val, step)			\
do {										\
	u64 __first = (first), __nr = (nr), __val = (val), __step = (step);	\
	struct gmem_guest_cmd *__cmd;						\
										\
	__cmd = gmem_guest_do(vcpu, GMEM_GUEST_CHECK,				\
			      (g)->gpa + __first * PAGE_SIZE, __nr, __val, __step); \
	TEST_ASSERT(__cmd->bad_page == __nr, "Guest, page %lu: 0x%lx, want 0x%lx", \
		    __first + __cmd->bad_page, __cmd->bad_val,			\
		    __val + __cmd->bad_page * __step);				\
} while (0)

#define gmem_guest_check_fill(vcpu, g, first, nr, val)	\
	__gmem_guest_check(vcpu, g, first, nr, val, 1ul)
#define gmem_guest_check_zero(vcpu, g, first, nr)	\
	__gmem_guest_check(vcpu, g, first, nr, 0ul, 0ul)

/* Run a prepared command that must fail with @error at page @gpa. */
#define gmem_guest_expect_fault(vcpu, error, fault_gpa)				\
do {										\
	struct kvm_vcpu *__vcpu = (vcpu);					\
	int __r = __vcpu_run(__vcpu), __errno = errno, __want = (error);	\
										\
	TEST_ASSERT(__r == -1 && __errno == __want,				\
		    "KVM_RUN: %d, errno %d (%s), want %s", __r, __errno,	\
		    strerror(__errno), strerror(__want));			\
	TEST_ASSERT_KVM_EXIT_REASON(__vcpu, KVM_EXIT_MEMORY_FAULT);		\
	TEST_ASSERT_EQ(__vcpu->run->memory_fault.gpa, fault_gpa);		\
} while (0)

/* ---- Holding pages ---- */

/* A reference, as any driver or kernel thread may have one. */
void hold_by_pipe(int pipes[2], void *addr);
void release_pipe(int pipes[2]);

/* A long-term pin, as DMA has one.  Returns the ring or -1. */
int hold_by_pin(void *addr, size_t size);
void release_pin(int fd);

/*
 * Conversion to private fails by EAGAIN with the offset of page @held.  A spurious
 * holder of an earlier page would come first, for a moment.
 */
void expect_held(struct gmem *g, u64 first, u64 nr, u64 flags, u64 held);

/* ---- Other processes ---- */

/* A child of the test, which shares its files but not its memory. */
struct child {
	int to_child[2];
	int to_parent[2];
	pid_t pid;
};

void signal_fd(int fd);
void wait_fd(int fd);

#define child_tells(c)		signal_fd((c)->to_parent[1])
#define child_waits(c)		wait_fd((c)->to_child[0])
#define parent_tells(c)		signal_fd((c)->to_child[1])
#define parent_waits(c)		wait_fd((c)->to_parent[0])

typedef void (*child_fn)(struct child *c, struct gmem *g);

/* Have a child run @fn; it must end well. */
void child_start(struct child *c, child_fn fn, struct gmem *g);
void child_join(struct child *c);

/* ---- Waiting, without sleeping and not for ever ---- */

u64 gmem_now_ns(void);

#define gmem_wait_until(cond)							\
do {										\
	u64 __end = gmem_now_ns() + GMEM_WAIT_S * NSEC_PER_SEC;			\
										\
	while (!(cond)) {							\
		TEST_ASSERT(gmem_now_ns() < __end, "Waited too long for " #cond);	\
		sched_yield();							\
		/* An emulator may let another CPU run. */			\
		cpu_relax();							\
	}									\
} while (0)

/* ---- Threads that repeat a step until they are stopped ---- */

struct gmem_worker {
	void (*step)(void *arg, u64 turn);
	void *arg;

	/* In memory that processes share, if the test has more than one. */
	const bool *stop;
	u64 *turns;

	pthread_t thread;
};

/* Runs @step again and again until *@stop; *@turns is how often it has. */
void gmem_worker_start(struct gmem_worker *w, void (*step)(void *arg, u64 turn), void *arg,
		       const bool *stop, u64 *turns);

static inline void gmem_worker_join(struct gmem_worker *w)
{
	kvm_pthread_join(w->thread, NULL);
}

/* ---- procfs, sysfs and debugfs ---- */

/* The value of a line "WHAT: VALUE kB", or "WHAT VALUE", or 0. */
u64 __gmem_proc_value(const char *path, const char *what);

#define gmem_meminfo_kib(what)	__gmem_proc_value("/proc/meminfo", what)
#define gmem_status_kib(what)	__gmem_proc_value("/proc/self/status", what)

/* Write @text.  Returns 0 or the error number. */
int gmem_write_file(const char *path, const char *text);

/*
 * Enter a memory control group that this program alone is in; false if there is no such
 * thing.  Until gmem_cgroup_leave(), gmem_cgroup_stat() is the value of @what in the
 * group's memory.stat, in bytes: it lags behind a bit, so wait for it.
 */
bool gmem_cgroup_enter(void);
void gmem_cgroup_leave(void);
u64 gmem_cgroup_stat(const char *what);

/* Let the group have @extra bytes more than it has now, or as many as it likes if 0. */
void gmem_cgroup_limit(u64 extra);

/*
 * Pages in page caches: exact, once the CPUs have told what they have counted.  Of
 * use, hence not 0, only if nothing else runs, as GMEM_ALONE in the environment says.
 */
u64 gmem_nr_file_pages(void);

/* Large pages of files, anywhere on the machine; nothing but guest_memfd has any. */
u64 gmem_large_pages(void);

/*
 * Does the thread, of any process, sleep such that no signal but SIGKILL wakes it?  Those
 * who wait for a conversion do.
 */
bool gmem_task_waits(pid_t tid);

/* ---- Memory errors ---- */

#define GMEM_HWPOISON_DIR	"/sys/kernel/debug/hwpoison/"

/* The frame mapped at @addr, zero if there is none. */
u64 gmem_page_frame(void *addr);

u64 gmem_known_frame(void *addr);

int gmem_write_number(const char *path, u64 number);

/* Frames of the whole system. */
u64 gmem_nr_poisoned(void);

/*
 * Whichever they are: an error that comes when another thread has just replaced
 * the page hits a frame that the test has never heard of.
 */
void gmem_give_frames_back(void);

/*
 * The result does not tell: a page that stays in its file counts as failed
 * recovery.  SIGBUS may come at once, if the page was poisoned before.
 */
void gmem_poison_mapped(void *addr);

/* The kernel has MADV_HWPOISON, and this user may use it. */
bool gmem_may_poison(void);

#endif /* SELFTEST_KVM_GMEM_UTIL_H */
