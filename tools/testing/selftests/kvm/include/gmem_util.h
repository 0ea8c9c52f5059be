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

#include <linux/falloc.h>
#include <linux/sizes.h>

#include "kvm_util.h"
#include "processor.h"
#include "ucall_common.h"

#include <ctype.h>
#include <fcntl.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>

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
static const u64 gmem_content_flags[] __maybe_unused = {
	0, GMEM_ZERO, GMEM_PRESERVE, GMEM_DISCARD
};

#define GMEM_SHARED_FILE	(GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED)
#define GMEM_PRIVATE_FILE	GUEST_MEMFD_FLAG_MMAP

/* What the out field holds before a call, to see whether KVM wrote it. */
#define GMEM_SENTINEL		0x5e475e475e475e47ull

/* x86 has one page size; elsewhere it is the host's, and the guest's copy counts. */
#ifndef PAGE_SIZE
extern u64 gmem_page_size;
#define PAGE_SIZE		gmem_page_size
#endif

/* ---- How long the tests race ---- */

/*
 * Percent, from the environment: less for a kernel whose checks make it slow,
 * more for a search.  A value that is none fails the test; taken as 100, or as
 * 0, it would let the test pass for something that nobody asked for.
 */
static inline u64 gmem_scale(void)
{
	const char *text = getenv("GMEM_SCALE");
	char *end;
	u64 scale;

	if (!text)
		return 100;

	scale = strtoul(text, &end, 10);
	TEST_ASSERT(isdigit(*text) && !*end && scale && scale <= GMEM_MAX_SCALE,
		    "GMEM_SCALE is \"%s\", want a percentage from 1 to %lu",
		    text, GMEM_MAX_SCALE);
	return scale;
}

/* Every loop of the tests that race turns GMEM_LOOPS() times. */
#define GMEM_LOOPS(n)		max(1ul, (n) * gmem_scale() / 100)

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
static inline bool gmem_conversion_supported(void)
{
	return (kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM)) &&
	       (kvm_check_cap(KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES) & GMEM_PRIVATE);
}

static inline struct kvm_vm *gmem_vm_create(u32 nr_vcpus, void *guest_code,
					    struct kvm_vcpu **vcpus)
{
	const struct vm_shape shape = {
		.mode = VM_MODE_DEFAULT,
		.type = KVM_X86_SW_PROTECTED_VM,
	};

	return __vm_create_with_vcpus(shape, nr_vcpus, 0, guest_code, vcpus);
}
#endif /* __x86_64__ */

static inline void gmem_create(struct gmem *g, struct kvm_vm *vm, size_t size,
			       u64 flags)
{
	*g = (struct gmem) {
		.vm = vm,
		.flags = flags,
		.size = size,
		.fd = vm_create_guest_memfd(vm, size, flags),
	};

	if (flags & GUEST_MEMFD_FLAG_MMAP)
		g->mem = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_SHARED, g->fd);
}

/* Bind the whole file. */
static inline void gmem_bind(struct gmem *g, u32 slot, gpa_t gpa)
{
	g->slot = slot;
	g->gpa = gpa;
	vm_set_user_memory_region2(g->vm, slot, KVM_MEM_GUEST_MEMFD, gpa, g->size,
				   g->no_user_addr ? NULL : g->mem, g->fd, 0);
}

static inline void gmem_unbind(struct gmem *g)
{
	vm_set_user_memory_region2(g->vm, g->slot, KVM_MEM_GUEST_MEMFD, g->gpa,
				   0, g->mem, g->fd, 0);
	g->slot = 0;
}

static inline void gmem_destroy(struct gmem *g)
{
	if (g->slot)
		gmem_unbind(g);
	if (g->mem)
		kvm_munmap(g->mem, g->size);
	kvm_free_fd(g->fd);
}

/* A file of @nr pages, bound at GMEM_GPA. */
static inline void __gmem_new(struct gmem *g, struct kvm_vm *vm, u64 nr, u64 flags,
			      bool no_user_addr)
{
	gmem_create(g, vm, nr * PAGE_SIZE, flags);
	g->no_user_addr = no_user_addr;
	gmem_bind(g, GMEM_SLOT, GMEM_GPA);
}

static inline void gmem_new(struct gmem *g, struct kvm_vm *vm, u64 nr, u64 flags)
{
	__gmem_new(g, vm, nr, flags, false);
}

/* ---- Conversion ---- */

/* Returns 0 or the error number, and what the out field then holds. */
static inline int __gmem_convert(int fd, u64 offset, u64 size, u64 attributes,
				 u64 flags, u64 *error_offset)
{
	struct kvm_memory_attributes2 attr = {
		.offset = offset,
		.size = size,
		.attributes = attributes,
		.flags = flags,
		.error_offset = GMEM_SENTINEL,
	};
	int r;

	r = ioctl(fd, KVM_SET_MEMORY_ATTRIBUTES2, &attr) ? errno : 0;

	/* The structure is copied back only on error. */
	TEST_ASSERT(r || attr.error_offset == GMEM_SENTINEL,
		    "error_offset written on success: 0x%llx", attr.error_offset);

	if (error_offset)
		*error_offset = attr.error_offset;
	return r;
}

/*
 * EAGAIN may be spurious: a fault of another thread, GUP-fast, compaction or
 * the LRU's batches hold a page for a moment.  VMMs retry, and so does every
 * case that expects success.  Cases that expect EAGAIN use __gmem_convert().
 */
#define GMEM_MAX_RETRIES	100000

static inline int gmem_convert_retry(int fd, u64 offset, u64 size,
				     u64 attributes, u64 flags)
{
	u64 error_offset;
	int i, r;

	for (i = 0; i < GMEM_MAX_RETRIES; i++) {
		r = __gmem_convert(fd, offset, size, attributes, flags, &error_offset);
		if (r != EAGAIN)
			return r;

		TEST_ASSERT(error_offset >= offset && error_offset - offset < size &&
			    !(error_offset % PAGE_SIZE),
			    "error_offset 0x%lx is no page of [0x%lx, +0x%lx)",
			    error_offset, offset, size);
		sched_yield();
	}
	return r;
}

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

static inline void gmem_punch(struct gmem *g, u64 first, u64 nr)
{
	kvm_fallocate(g->fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
		      first * PAGE_SIZE, nr * PAGE_SIZE);
}

static inline void gmem_allocate(struct gmem *g, u64 first, u64 nr)
{
	kvm_fallocate(g->fd, FALLOC_FL_KEEP_SIZE, first * PAGE_SIZE, nr * PAGE_SIZE);
}

/* ---- User accesses that may be SIGBUS, from any thread ---- */

struct gmem_sigbus {
	sigjmp_buf env;
	bool armed;
	void *addr;
	int code;
};

extern __thread struct gmem_sigbus gmem_sigbus;

/* Each test has exactly one of these, at file scope. */
#define GMEM_DEFINE_SIGBUS()	__thread struct gmem_sigbus gmem_sigbus

static inline void gmem_sigbus_handler(int sig, siginfo_t *info, void *ctx)
{
	if (!READ_ONCE(gmem_sigbus.armed)) {
		/* Not expected: die of it on return. */
		signal(SIGBUS, SIG_DFL);
		return;
	}
	gmem_sigbus.code = info->si_code;
	gmem_sigbus.addr = info->si_addr;
	siglongjmp(gmem_sigbus.env, 1);
}

/* The start of every test; a bad scale is found even by one that has no loops. */
static inline void gmem_test_init(void)
{
	struct sigaction sa = {
		.sa_sigaction = gmem_sigbus_handler,
		.sa_flags = SA_SIGINFO | SA_NODEFER,
	};

	gmem_scale();
	TEST_ASSERT(!sigaction(SIGBUS, &sa, NULL), "sigaction() failed");
}

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

static inline int gmem_try_read(const void *p, u64 *val)
{
	return gmem_try(*val = READ_ONCE(*(const u64 *)p));
}

static inline int gmem_try_write(void *p, u64 val)
{
	return gmem_try(WRITE_ONCE(*(u64 *)p, val));
}

/* Reading and writing must agree; writing back what was read changes nothing. */
static inline bool gmem_addr_is_private(void *p)
{
	u64 val = 0;
	int code = gmem_try_read(p, &val);

	TEST_ASSERT(!code || code == BUS_ADRERR,
		    "Unexpected si_code %d at %p", code, p);
	TEST_ASSERT(!code || gmem_try_write(p, 0),
		    "%p cannot be read but written", p);
	return code;
}

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
static inline bool gmem_page_is_present(struct gmem *g, u64 page)
{
	unsigned char vec = 0;

	TEST_ASSERT(!mincore(g->mem + page * PAGE_SIZE, PAGE_SIZE, &vec),
		    "mincore() failed, errno %d", errno);
	return vec & 1;
}

/* ---- Content: every word of page i of a range is val + i * step ---- */

static inline void gmem_fill_words(u64 *p, u64 val)
{
	int i;

	for (i = 0; i < PAGE_SIZE / sizeof(*p); i++)
		WRITE_ONCE(p[i], val);
}

/* The index of the first word that differs, or -1. */
static inline int gmem_check_words(const u64 *p, u64 val, u64 *seen)
{
	int i;

	for (i = 0; i < PAGE_SIZE / sizeof(*p); i++) {
		*seen = READ_ONCE(p[i]);
		if (*seen != val)
			return i;
	}
	return -1;
}

static inline void gmem_host_fill(struct gmem *g, u64 first, u64 nr, u64 val)
{
	u64 i;

	for (i = 0; i < nr; i++)
		gmem_fill_words((u64 *)(g->mem + (first + i) * PAGE_SIZE), val + i);
}

/* The first page that is not as expected, or @nr. */
static inline u64 gmem_find_bad_page(u8 *mem, u64 nr, u64 val, u64 step, u64 *seen)
{
	u64 i;

	for (i = 0; i < nr; i++)
		if (gmem_check_words((u64 *)(mem + i * PAGE_SIZE), val + i * step, seen) >= 0)
			break;
	return i;
}

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
static inline u64 gmem_get_ucall(struct kvm_vcpu *vcpu)
{
	struct ucall uc;
	u64 cmd = get_ucall(vcpu, &uc);

	if (cmd == UCALL_ABORT)
		REPORT_GUEST_ASSERT(uc);
	TEST_ASSERT(cmd == UCALL_SYNC || cmd == UCALL_DONE,
		    "Unexpected exit, reason %u (%s)", vcpu->run->exit_reason,
		    exit_reason_str(vcpu->run->exit_reason));
	return cmd;
}

/*
 * Pre-fault pages.  Returns 0 or the error number.  The ioctl tells of a failure
 * only if it could do nothing at all, hence is called until nothing is left.
 */
static inline int gmem_pre_fault(struct kvm_vcpu *vcpu, gpa_t gpa, u64 nr)
{
	struct kvm_pre_fault_memory range = { .gpa = gpa, .size = nr * PAGE_SIZE };
	int r;

	do {
		r = __vcpu_ioctl(vcpu, KVM_PRE_FAULT_MEMORY, &range);
	} while ((r && errno == EINTR) || (!r && range.size));

	return r ? errno : 0;
}

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

/* The guest's copies count. */
static struct gmem_guest_cmd gmem_guest_cmds[GMEM_MAX_VCPUS] __maybe_unused;

static inline void gmem_guest_check(struct gmem_guest_cmd *cmd)
{
	cmd->bad_page = gmem_find_bad_page((u8 *)cmd->gva, cmd->nr, cmd->val,
					   cmd->step, &cmd->bad_val);
}

static inline void gmem_guest_server(u64 id)
{
	struct gmem_guest_cmd *cmd = &gmem_guest_cmds[id];
	u64 i;

	for (;;) {
		switch (READ_ONCE(cmd->op)) {
		case GMEM_GUEST_FILL:
			for (i = 0; i < cmd->nr; i++)
				gmem_fill_words((u64 *)(cmd->gva + i * PAGE_SIZE),
						cmd->val + i * cmd->step);
			break;
		case GMEM_GUEST_CHECK:
			gmem_guest_check(cmd);
			break;
#ifdef __x86_64__
		case GMEM_GUEST_WRMSR:
			wrmsr(cmd->gva, cmd->val);
			break;
#endif
		}
		GUEST_SYNC(cmd->op);
	}
}

/* Set a command up; the next run of @vcpu carries it out. */
static inline struct gmem_guest_cmd *gmem_guest_prepare(struct kvm_vcpu *vcpu,
							u64 op, u64 gva, u64 nr,
							u64 val, u64 step)
{
	struct gmem_guest_cmd *cmd = gmem_guest_var(vcpu->vm, gmem_guest_cmds[vcpu->id]);

	*cmd = (struct gmem_guest_cmd) {
		.op = op,
		.gva = gva,
		.nr = nr,
		.val = val,
		.step = step,
	};
	return cmd;
}

/* Every exit but that of the command itself is an error. */
static inline void gmem_guest_finish(struct kvm_vcpu *vcpu)
{
	vcpu_run(vcpu);
	TEST_ASSERT_EQ(gmem_get_ucall(vcpu), UCALL_SYNC);
}

static inline struct gmem_guest_cmd *gmem_guest_do(struct kvm_vcpu *vcpu, u64 op,
						   u64 gva, u64 nr, u64 val, u64 step)
{
	struct gmem_guest_cmd *cmd = gmem_guest_prepare(vcpu, op, gva, nr, val, step);

	gmem_guest_finish(vcpu);
	return cmd;
}

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
static inline void hold_by_pipe(int pipes[2], void *addr)
{
	struct iovec iov = { .iov_base = addr, .iov_len = 64 };

	TEST_ASSERT(!pipe(pipes), "pipe() failed");
	TEST_ASSERT_EQ(vmsplice(pipes[1], &iov, 1, 0), 64);
}

static inline void release_pipe(int pipes[2])
{
	close(pipes[0]);
	close(pipes[1]);
}

/*
 * <linux/io_uring.h> and the headers of the tools do not go together.
 * IORING_REGISTER_BUFFERS and its opposite; struct io_uring_params is 120 bytes.
 */
#define GMEM_REGISTER_BUFFERS	0
#define GMEM_UNREGISTER_BUFFERS	1

/* A long-term pin, as DMA has one.  Returns the ring or -1. */
static inline int hold_by_pin(void *addr, size_t size)
{
	struct iovec iov = { .iov_base = addr, .iov_len = size };
	u32 params[30] = {};
	int fd;

	fd = syscall(__NR_io_uring_setup, 1, params);
	if (fd < 0)
		return -1;

	if (syscall(__NR_io_uring_register, fd, GMEM_REGISTER_BUFFERS, &iov, 1)) {
		close(fd);
		return -1;
	}
	return fd;
}

static inline void release_pin(int fd)
{
	TEST_ASSERT(!syscall(__NR_io_uring_register, fd, GMEM_UNREGISTER_BUFFERS,
			     NULL, 0), "Unregistering buffers failed");
	close(fd);
}

/*
 * EAGAIN with the offset of page @held.  A spurious holder of an earlier page
 * would come first, for a moment.
 */
static inline void expect_held(struct gmem *g, u64 first, u64 nr, u64 flags, u64 held)
{
	u64 error_offset = 0;
	int i, r;

	for (i = 0; i < 1000; i++) {
		r = __gmem_convert(g->fd, first * PAGE_SIZE, nr * PAGE_SIZE,
				   GMEM_PRIVATE, flags, &error_offset);
		TEST_ASSERT(r == EAGAIN, "Page %lu is held, conversion: %s",
			    held, strerror(r));
		if (error_offset == held * PAGE_SIZE)
			return;
		sched_yield();
	}
	TEST_FAIL("error_offset 0x%lx, want page %lu", error_offset, held);
}

/* ---- Other processes ---- */

struct child {
	int to_child[2];
	int to_parent[2];
	pid_t pid;
};

static inline void signal_fd(int fd)
{
	TEST_ASSERT_EQ(write(fd, "x", 1), 1);
}

static inline void wait_fd(int fd)
{
	char c;

	TEST_ASSERT_EQ(read(fd, &c, 1), 1);
}

#define child_tells(c)		signal_fd((c)->to_parent[1])
#define child_waits(c)		wait_fd((c)->to_child[0])
#define parent_tells(c)		signal_fd((c)->to_child[1])
#define parent_waits(c)		wait_fd((c)->to_parent[0])

typedef void (*child_fn)(struct child *c, struct gmem *g);

static inline void child_start(struct child *c, child_fn fn, struct gmem *g)
{
	TEST_ASSERT(!pipe(c->to_child) && !pipe(c->to_parent), "pipe() failed");

	c->pid = fork();
	TEST_ASSERT(c->pid >= 0, "fork() failed");
	if (!c->pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(c->to_parent[0]);
		close(c->to_child[1]);
		fn(c, g);
		_exit(0);
	}
	close(c->to_parent[1]);
	close(c->to_child[0]);
}

static inline void child_join(struct child *c)
{
	int status;

	TEST_ASSERT_EQ(waitpid(c->pid, &status, 0), c->pid);
	TEST_ASSERT(WIFEXITED(status) && !WEXITSTATUS(status),
		    "Child failed, status 0x%x", status);
	close(c->to_parent[0]);
	close(c->to_child[1]);
}

/* ---- Waiting, without sleeping and not for ever ---- */

static inline u64 gmem_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return timespec_to_ns(ts);
}

#define gmem_wait_until(cond)							\
do {										\
	u64 __end = gmem_now_ns() + GMEM_WAIT_S * NSEC_PER_SEC;			\
										\
	while (!(cond)) {							\
		TEST_ASSERT(gmem_now_ns() < __end, "Waited too long for " #cond);	\
		sched_yield();							\
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

static inline void *gmem_worker_thread(void *arg)
{
	struct gmem_worker *w = arg;
	u64 turn;

	for (turn = 0; !READ_ONCE(*w->stop); turn++) {
		w->step(w->arg, turn);
		WRITE_ONCE(*w->turns, turn + 1);
	}
	return NULL;
}

static inline void gmem_worker_start(struct gmem_worker *w,
				     void (*step)(void *arg, u64 turn), void *arg,
				     const bool *stop, u64 *turns)
{
	*w = (struct gmem_worker) {
		.step = step,
		.arg = arg,
		.stop = stop,
		.turns = turns,
	};
	kvm_pthread_create(&w->thread, NULL, gmem_worker_thread, w);
}

static inline void gmem_worker_join(struct gmem_worker *w)
{
	kvm_pthread_join(w->thread, NULL);
}

/* ---- procfs, sysfs and debugfs ---- */

/* The value of a line "WHAT: VALUE kB", or "WHAT VALUE", or 0. */
static inline u64 __gmem_proc_value(const char *path, const char *what)
{
	char line[128], format[64];
	FILE *f = fopen(path, "r");
	u64 val = 0;

	TEST_ASSERT(f, "fopen(%s) failed", path);
	snprintf(format, sizeof(format), "%s%%*[: ]%%lu", what);
	while (fgets(line, sizeof(line), f) && sscanf(line, format, &val) != 1)
		;
	fclose(f);
	return val;
}

#define gmem_meminfo_kib(what)	__gmem_proc_value("/proc/meminfo", what)
#define gmem_status_kib(what)	__gmem_proc_value("/proc/self/status", what)

/* Returns 0 or the error number. */
static inline int gmem_write_file(const char *path, const char *text)
{
	size_t len = strlen(text);
	int fd, r;

	fd = open(path, O_WRONLY);
	if (fd < 0)
		return errno;

	r = write(fd, text, len) == len ? 0 : errno;
	close(fd);
	return r;
}

/*
 * Pages in page caches: exact, once the CPUs have told what they have counted.  Of
 * use, hence not 0, only if nothing else runs, as GMEM_ALONE in the environment says.
 */
static inline u64 gmem_nr_file_pages(void)
{
	if (!getenv("GMEM_ALONE"))
		return 0;

	TEST_ASSERT_EQ(gmem_write_file("/proc/sys/vm/stat_refresh", "1"), 0);
	return __gmem_proc_value("/proc/vmstat", "nr_file_pages");
}

#endif /* SELFTEST_KVM_GMEM_UTIL_H */
