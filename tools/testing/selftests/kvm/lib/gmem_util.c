// SPDX-License-Identifier: GPL-2.0-only
/*
 * Helpers for tests of guest_memfd files with in-place conversion; see gmem_util.h.
 */
#include <linux/kernel-page-flags.h>

#include "gmem_util.h"

#include <ctype.h>
#include <sys/stat.h>
#include <time.h>

u64 gmem_page_size;

const u64 gmem_content_flags[4] = { 0, GMEM_ZERO, GMEM_PRESERVE, GMEM_DISCARD };

/* ---- How long the tests race ---- */

u64 gmem_scale(void)
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

/* ---- Files and slots ---- */

void gmem_create(struct gmem *g, struct kvm_vm *vm, size_t size, u64 flags)
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

void gmem_bind(struct gmem *g, u32 slot, gpa_t gpa)
{
	g->slot = slot;
	g->gpa = gpa;
	vm_set_user_memory_region2(g->vm, slot, KVM_MEM_GUEST_MEMFD, gpa, g->size,
				   g->no_user_addr ? NULL : g->mem, g->fd, 0);
}

void gmem_unbind(struct gmem *g)
{
	vm_set_user_memory_region2(g->vm, g->slot, KVM_MEM_GUEST_MEMFD, g->gpa,
				   0, g->mem, g->fd, 0);
	g->slot = 0;
}

void gmem_destroy(struct gmem *g)
{
	if (g->slot)
		gmem_unbind(g);
	if (g->mem)
		kvm_munmap(g->mem, g->size);
	kvm_free_fd(g->fd);
}

void __gmem_new(struct gmem *g, struct kvm_vm *vm, u64 nr, u64 flags, bool no_user_addr)
{
	gmem_create(g, vm, nr * PAGE_SIZE, flags);
	g->no_user_addr = no_user_addr;
	gmem_bind(g, GMEM_SLOT, GMEM_GPA);
}

/* ---- Conversion ---- */

int __gmem_convert(int fd, u64 offset, u64 size, u64 attributes, u64 flags,
		   u64 *error_offset)
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

int gmem_convert_retry(int fd, u64 offset, u64 size, u64 attributes, u64 flags)
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

void gmem_punch(struct gmem *g, u64 first, u64 nr)
{
	kvm_fallocate(g->fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
		      first * PAGE_SIZE, nr * PAGE_SIZE);
}

void gmem_allocate(struct gmem *g, u64 first, u64 nr)
{
	kvm_fallocate(g->fd, FALLOC_FL_KEEP_SIZE, first * PAGE_SIZE, nr * PAGE_SIZE);
}

/* ---- User accesses that may be SIGBUS, from any thread ---- */

__thread struct gmem_sigbus gmem_sigbus;

static void gmem_sigbus_handler(int sig, siginfo_t *info, void *ctx)
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

void gmem_test_init(void)
{
	struct sigaction sa = {
		.sa_sigaction = gmem_sigbus_handler,
		.sa_flags = SA_SIGINFO | SA_NODEFER,
	};

	gmem_scale();
	TEST_ASSERT(!sigaction(SIGBUS, &sa, NULL), "sigaction() failed");
}

int gmem_try_read(const void *p, u64 *val)
{
	return gmem_try(*val = READ_ONCE(*(const u64 *)p));
}

int gmem_try_write(void *p, u64 val)
{
	return gmem_try(WRITE_ONCE(*(u64 *)p, val));
}

bool gmem_addr_is_private(void *p)
{
	u64 val = 0;
	int code = gmem_try_read(p, &val);

	TEST_ASSERT(!code || code == BUS_ADRERR,
		    "Unexpected si_code %d at %p", code, p);
	TEST_ASSERT(!code || gmem_try_write(p, 0),
		    "%p cannot be read but written", p);
	return code;
}

bool gmem_page_is_present(struct gmem *g, u64 page)
{
	unsigned char vec = 0;

	TEST_ASSERT(!mincore(g->mem + page * PAGE_SIZE, PAGE_SIZE, &vec),
		    "mincore() failed, errno %d", errno);
	return vec & 1;
}

/* ---- Content: every word of page i of a range is val + i * step ---- */

void gmem_fill_words(u64 *p, u64 val)
{
	int i;

	for (i = 0; i < PAGE_SIZE / sizeof(*p); i++)
		WRITE_ONCE(p[i], val);
}

int gmem_check_words(const u64 *p, u64 val, u64 *seen)
{
	int i;

	for (i = 0; i < PAGE_SIZE / sizeof(*p); i++) {
		*seen = READ_ONCE(p[i]);
		if (*seen != val)
			return i;
	}
	return -1;
}

u64 gmem_count_pages(const char *path, u64 val)
{
	u64 *buf = malloc(PAGE_SIZE), seen, nr = 0;
	FILE *f = fopen(path, "r");

	TEST_ASSERT(f && buf, "No %s, errno %d", path, errno);
	while (fread(buf, PAGE_SIZE, 1, f) == 1)
		nr += gmem_check_words(buf, val, &seen) < 0;
	fclose(f);
	free(buf);
	return nr;
}

void gmem_host_fill(struct gmem *g, u64 first, u64 nr, u64 val)
{
	u64 i;

	for (i = 0; i < nr; i++)
		gmem_fill_words((u64 *)(g->mem + (first + i) * PAGE_SIZE), val + i);
}

u64 gmem_find_bad_page(u8 *mem, u64 nr, u64 val, u64 step, u64 *seen)
{
	u64 i;

	for (i = 0; i < nr; i++)
		if (gmem_check_words((u64 *)(mem + i * PAGE_SIZE), val + i * step, seen) >= 0)
			break;
	return i;
}

/* ---- Guests ---- */

u64 gmem_get_ucall(struct kvm_vcpu *vcpu)
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

int gmem_pre_fault(struct kvm_vcpu *vcpu, gpa_t gpa, u64 nr)
{
	struct kvm_pre_fault_memory range = { .gpa = gpa, .size = nr * PAGE_SIZE };
	int r;

	do {
		r = __vcpu_ioctl(vcpu, KVM_PRE_FAULT_MEMORY, &range);
	} while ((r && errno == EINTR) || (!r && range.size));

	return r ? errno : 0;
}

/* ---- A guest that does what it is told ---- */

/* The guest's copies count. */
static struct gmem_guest_cmd gmem_guest_cmds[GMEM_MAX_VCPUS];

static void gmem_guest_check(struct gmem_guest_cmd *cmd)
{
	cmd->bad_page = gmem_find_bad_page((u8 *)cmd->gva, cmd->nr, cmd->val,
					   cmd->step, &cmd->bad_val);
}

void gmem_guest_server(u64 id)
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

bool gmem_tolerate_mmio(struct kvm_vcpu *vcpu)
{
	if (vcpu->run->exit_reason != KVM_EXIT_MMIO)
		return false;
	memset(vcpu->run->mmio.data, 0, sizeof(vcpu->run->mmio.data));
	return true;
}

struct gmem_guest_cmd *gmem_guest_prepare(struct kvm_vcpu *vcpu, u64 op, u64 gva, u64 nr,
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

void gmem_guest_finish(struct kvm_vcpu *vcpu)
{
	vcpu_run(vcpu);
	TEST_ASSERT_EQ(gmem_get_ucall(vcpu), UCALL_SYNC);
}

struct gmem_guest_cmd *gmem_guest_do(struct kvm_vcpu *vcpu, u64 op, u64 gva, u64 nr,
				     u64 val, u64 step)
{
	struct gmem_guest_cmd *cmd = gmem_guest_prepare(vcpu, op, gva, nr, val, step);

	gmem_guest_finish(vcpu);
	return cmd;
}

/* ---- Holding pages ---- */

void hold_by_pipe(int pipes[2], void *addr)
{
	struct iovec iov = { .iov_base = addr, .iov_len = 64 };

	TEST_ASSERT(!pipe(pipes), "pipe() failed");
	TEST_ASSERT_EQ(vmsplice(pipes[1], &iov, 1, 0), 64);
}

void release_pipe(int pipes[2])
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

int hold_by_pin(void *addr, size_t size)
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

void release_pin(int fd)
{
	TEST_ASSERT(!syscall(__NR_io_uring_register, fd, GMEM_UNREGISTER_BUFFERS,
			     NULL, 0), "Unregistering buffers failed");
	close(fd);
}

void expect_held(struct gmem *g, u64 first, u64 nr, u64 flags, u64 held)
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

void signal_fd(int fd)
{
	TEST_ASSERT_EQ(write(fd, "x", 1), 1);
}

void wait_fd(int fd)
{
	char c;

	TEST_ASSERT_EQ(read(fd, &c, 1), 1);
}

void child_start(struct child *c, child_fn fn, struct gmem *g)
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

void child_join(struct child *c)
{
	int status;

	TEST_ASSERT_EQ(waitpid(c->pid, &status, 0), c->pid);
	TEST_ASSERT(WIFEXITED(status) && !WEXITSTATUS(status),
		    "Child failed, status 0x%x", status);
	close(c->to_parent[0]);
	close(c->to_child[1]);
}

/* ---- Waiting, without sleeping and not for ever ---- */

u64 gmem_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return timespec_to_ns(ts);
}

/* ---- Threads that repeat a step until they are stopped ---- */

static void *gmem_worker_thread(void *arg)
{
	struct gmem_worker *w = arg;
	u64 turn;

	for (turn = 0; !READ_ONCE(*w->stop); turn++) {
		w->step(w->arg, turn);
		WRITE_ONCE(*w->turns, turn + 1);
	}
	return NULL;
}

void gmem_worker_start(struct gmem_worker *w, void (*step)(void *arg, u64 turn), void *arg,
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

/* ---- procfs, sysfs and debugfs ---- */

u64 __gmem_proc_value(const char *path, const char *what)
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

int gmem_write_file(const char *path, const char *text)
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

#define CGROUP		"/sys/fs/cgroup"
#define OUR_CGROUP	CGROUP "/gmem_test"

bool gmem_cgroup_enter(void)
{
	gmem_write_file(CGROUP "/cgroup.subtree_control", "+memory");

	return (!mkdir(OUR_CGROUP, 0755) || errno == EEXIST) &&
	       !access(OUR_CGROUP "/memory.stat", R_OK) &&
	       !gmem_write_file(OUR_CGROUP "/cgroup.procs", "0");
}

void gmem_cgroup_leave(void)
{
	TEST_ASSERT_EQ(gmem_write_file(CGROUP "/cgroup.procs", "0"), 0);
}

u64 gmem_cgroup_stat(const char *what)
{
	char line[128], format[64];
	u64 val = -1ull;
	FILE *f;

	f = fopen(OUR_CGROUP "/memory.stat", "r");
	TEST_ASSERT(f, "fopen(" OUR_CGROUP "/memory.stat) failed");
	snprintf(format, sizeof(format), "%s %%lu\n", what);
	while (fgets(line, sizeof(line), f) && sscanf(line, format, &val) != 1)
		;
	fclose(f);
	return val;
}

void gmem_cgroup_limit(u64 extra)
{
	char text[32] = "max";
	FILE *f;
	u64 val;

	if (extra) {
		f = fopen(OUR_CGROUP "/memory.current", "r");
		TEST_ASSERT(f && fscanf(f, "%lu", &val) == 1, "No memory.current");
		fclose(f);
		snprintf(text, sizeof(text), "%lu", val + extra);
	}
	TEST_ASSERT_EQ(gmem_write_file(OUR_CGROUP "/memory.max", text), 0);
}

u64 gmem_nr_file_pages(void)
{
	if (!getenv("GMEM_ALONE"))
		return 0;

	TEST_ASSERT_EQ(gmem_write_file("/proc/sys/vm/stat_refresh", "1"), 0);
	return __gmem_proc_value("/proc/vmstat", "nr_file_pages");
}

u64 gmem_large_pages(void)
{
	return gmem_meminfo_kib("FileHugePages") * SZ_1K / SZ_2M;
}

bool gmem_task_waits(pid_t tid)
{
	char path[64], stat[256] = "", *state;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/stat", tid);
	fd = open(path, O_RDONLY);
	if (fd < 0)
		return false;
	if (read(fd, stat, sizeof(stat) - 1) <= 0)
		stat[0] = '\0';
	close(fd);

	state = strrchr(stat, ')');
	return state && !strncmp(state, ") D", 3);
}

/* ---- Memory errors ---- */

u64 gmem_page_frame(void *addr)
{
	static int fd = -1;
	u64 entry = 0;

	if (fd < 0)
		fd = open("/proc/self/pagemap", O_RDONLY);
	if (pread(fd, &entry, 8, (u64)addr / PAGE_SIZE * 8) != 8 || !(entry >> 63))
		return 0;
	return entry & ((1ull << 55) - 1);
}

u64 gmem_known_frame(void *addr)
{
	u64 frame = gmem_page_frame(addr);

	TEST_ASSERT(frame, "No frame in /proc/self/pagemap");
	return frame;
}

int gmem_write_number(const char *path, u64 number)
{
	char text[32];

	snprintf(text, sizeof(text), "0x%lx", number);
	return gmem_write_file(path, text);
}

u64 gmem_nr_poisoned(void)
{
	return gmem_meminfo_kib("HardwareCorrupted") * 1024 / PAGE_SIZE;
}

void gmem_give_frames_back(void)
{
	u64 flags[512], frame = 0, i, all = gmem_nr_poisoned();
	u32 back = 0, failed = 0;
	ssize_t len;
	int fd;

	fd = open("/proc/kpageflags", O_RDONLY);
	while (back < all && (len = read(fd, flags, sizeof(flags))) > 0) {
		for (i = 0; i < len / sizeof(u64); i++, frame++) {
			if (!(flags[i] & BIT(KPF_HWPOISON)))
				continue;
			if (gmem_write_number(GMEM_HWPOISON_DIR "unpoison-pfn", frame))
				failed++;
			else
				back++;
		}
	}
	close(fd);
	ksft_print_msg("%u frames given back, %u not\n", back, failed);
}

void gmem_poison_mapped(void *addr)
{
	gmem_try(madvise(addr, PAGE_SIZE, MADV_HWPOISON));
}

/* Not by an empty range: nobody checks privilege there.  Nothing is at NULL. */
bool gmem_may_poison(void)
{
	return madvise(NULL, PAGE_SIZE, MADV_HWPOISON) && errno == EFAULT;
}
