// SPDX-License-Identifier: GPL-2.0-only
/*
 * What memory of a protected VM costs: in a guest_memfd, and in anonymous memory
 * that is pinned for life, as the host sees it.  In an emulated machine whose
 * clock counts instructions (QEMU: -icount shift=0,sleep=off -smp 1) a nanosecond
 * is an instruction, but the clock shows no less than 16 of them.
 *
 * The same binary runs on kernels without guest_memfd for protected VMs, and
 * leaves out what they lack.  Sizes are arguments.  So is the directory of
 * samples/pkvm's VMM, an Image and an initramfs: that has Linux boot as a protected
 * VM.  Without them there are no such rows.
 *
 * Output, a line each, fields separated by tabs; see guest_memfd_bench.c of x86:
 *
 *   info   KEY VALUE
 *   group  TITLE
 *   row    ID VALUE UNIT FACTOR MIN MAX SAMPLES ZEROED AGAINST LABEL
 */
#include <getopt.h>
#include <sys/syscall.h>
#include <sys/utsname.h>

#include "pkvm_util.h"

#define MAX_SAMPLES	64

static struct {
	u64 size;	/* of the memory that the guest touches */
	u64 calls;	/* round trips in one sample */
	u64 repeats;	/* VMs */
	const char *linux_dir;
} args = {
	.size = SZ_4M,
	.calls = 64,
	.repeats = 3,
	.linux_dir = "/pkvm",
};

enum kind { ANON, GMEM, NR_KINDS };

static const char * const kinds[NR_KINDS] = { "anon", "gmem" };

/* What one VM shows. */
enum figure {
	FAULT, ROUND_TRIP, PUNCH, TEARDOWN, TEARDOWN_HOLES, TEARDOWN_EMPTY,
	LOCKED, RESIDENT, RETURNED,
	BOOT, BOOT_LOCKED, BOOT_RESIDENT, NR_FIGURES
};

static const struct {
	const char *id;
	const char *unit;	/* or what the clock counts */
	const char *label;
	bool gmem_only;
} figures[NR_FIGURES] = {
	[FAULT]		 = { "fault", NULL, "guest fault on a fresh private page" },
	[ROUND_TRIP]	 = { "roundtrip", NULL, "share and unshare of a page" },
	[PUNCH]		 = { "punch", NULL, "punch of a page of the live guest", true },
	[TEARDOWN]	 = { "teardown", NULL, "teardown, per page of the guest" },
	[TEARDOWN_HOLES] = { "teardown_holes", NULL, "teardown, per page, half punched", true },
	[TEARDOWN_EMPTY] = { "teardown_empty", NULL, "teardown, almost no page" },
	[LOCKED]	 = { "locked", "bytes", "locked or pinned" },
	[RESIDENT]	 = { "resident", "bytes", "resident memory of the VMM" },
	[RETURNED]	 = { "returned", "bytes", "punched half, back at run time", true },
	[BOOT]		 = { "boot", NULL, "Linux boots to its init" },
	[BOOT_LOCKED]	 = { "boot_locked", "bytes", "locked or pinned then" },
	[BOOT_RESIDENT]	 = { "boot_resident", "bytes", "resident memory of the VMM then" },
};

static u64 samples[NR_KINDS][NR_FIGURES][MAX_SAMPLES];
static bool has_linux;

/* ---- The guest ---- */

static void guest_touch(struct pvm_cmd *cmd)
{
	u64 i;

	for (i = 0; i < cmd->args[1]; i++)
		WRITE_ONCE(*(u64 *)(cmd->args[0] + i * PAGE_SIZE), i);
}

static void guest_round_trips(struct pvm_cmd *cmd)
{
	u64 i;

	cmd->ret[0] = 0;
	for (i = 0; i < cmd->args[1]; i++) {
		cmd->ret[0] |= pvm_hvc(PVM_HVC_SHARE, cmd->args[0]);
		cmd->ret[0] |= pvm_hvc(PVM_HVC_UNSHARE, cmd->args[0]);
	}
}

/* ---- One VM ---- */

static u64 nr_pages(void)
{
	return args.size / PAGE_SIZE;
}

static void create(struct pvm *p, struct gmem *g, enum kind kind)
{
	pvm_create(p, 1, kind == GMEM ? PVM_EXITS : 0);
	virt_map(p->vm, GMEM_GPA, GMEM_GPA, nr_pages());

	if (kind == ANON) {
		*g = (struct gmem) { .vm = p->vm, .size = args.size, .gpa = GMEM_GPA, .fd = -1 };
		g->mem = kvm_mmap(g->size, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS, -1);
		TEST_ASSERT(!madvise(g->mem, g->size, MADV_NOHUGEPAGE), "madvise() failed");
		vm_set_user_memory_region(p->vm, GMEM_SLOT, 0, g->gpa, g->size, g->mem);
		pvm_load_anonymous(p);
		return;
	}
	gmem_create(g, p->vm, args.size, GMEM_PRIVATE_FILE);
	gmem_bind(g, GMEM_SLOT, GMEM_GPA);
	pvm_load_gmem(p);
	pvm_add_file(p, g);
}

/* Everything that holds memory of the guest. */
static u64 destroy(struct pvm *p, struct gmem *g)
{
	u64 start = gmem_now_ns();

	kvm_munmap(g->mem, g->size);
	if (g->fd >= 0)
		kvm_close(g->fd);
	pvm_free(p);
	return gmem_now_ns() - start;
}

static u64 per(u64 ns, u64 n)
{
	return (ns + n / 2) / n;
}

/*
 * What a VMM does for its guest, and no more: the library's helpers check a lot on
 * the way.  Anonymous memory is shared without an exit.
 */
static void serve(struct kvm_vcpu *vcpu, struct gmem *g)
{
	struct kvm_memory_attributes2 attrs = { .size = PAGE_SIZE };
	int r;

	while (!(r = ioctl(vcpu->fd, KVM_RUN, NULL)) &&
	       vcpu->run->exit_reason == KVM_EXIT_HYPERCALL) {
		attrs.offset = vcpu->run->hypercall.args[0] - g->gpa;
		attrs.attributes = vcpu->run->hypercall.nr == PVM_HVC_UNSHARE ?
				   GMEM_PRIVATE : GMEM_SHARED;
		do {
			r = ioctl(g->fd, KVM_SET_MEMORY_ATTRIBUTES2, &attrs);
		} while (r && errno == EAGAIN);
		TEST_ASSERT(!r, KVM_IOCTL_ERROR(KVM_SET_MEMORY_ATTRIBUTES2, r));
	}
	TEST_ASSERT(!r, KVM_IOCTL_ERROR(KVM_RUN, r));
	TEST_ASSERT_EQ(gmem_get_ucall(vcpu), UCALL_SYNC);
}

static u64 time_round_trips(struct pvm *p, struct gmem *g)
{
	struct pvm_cmd *cmd = pvm_prepare(p, 0, guest_round_trips, g->gpa, args.calls);
	u64 start = gmem_now_ns();

	serve(p->vcpus[0], g);
	start = gmem_now_ns() - start;
	TEST_ASSERT_EQ(cmd->ret[0], PVM_SUCCESS);
	return per(start, args.calls);
}

static u64 time_touch(struct pvm *p, struct gmem *g)
{
	u64 start = gmem_now_ns();

	pvm_call(p, 0, guest_touch, g->gpa, nr_pages());
	return per(gmem_now_ns() - start, nr_pages());
}

static u64 locked_kib(const char *status)
{
	return __gmem_proc_value(status, "VmLck") + __gmem_proc_value(status, "VmPin");
}

/* Everything but holes. */
static void measure_vm(enum kind kind, u64 *got)
{
	u64 time, locked = locked_kib("/proc/self/status");
	u64 resident = gmem_status_kib("VmRSS");
	struct gmem g;
	struct pvm p;

	create(&p, &g, kind);
	got[TEARDOWN_EMPTY] = destroy(&p, &g);

	create(&p, &g, kind);
	got[FAULT] = time_touch(&p, &g);
	got[LOCKED] = (locked_kib("/proc/self/status") - locked) * SZ_1K;
	got[RESIDENT] = (gmem_status_kib("VmRSS") - resident) * SZ_1K;
	got[ROUND_TRIP] = time_round_trips(&p, &g);
	time = destroy(&p, &g);
	TEST_ASSERT(time > got[TEARDOWN_EMPTY], "Teardown of pages takes no time");
	got[TEARDOWN] = per(time - got[TEARDOWN_EMPTY], nr_pages());
}

static u64 bytes_in_file(int fd)
{
	struct { u64 off, len; } all = { 0, 0 };	/* to the end */
	struct { u64 present, rest[4]; } cs;

	TEST_ASSERT(!syscall(__NR_cachestat, fd, &all, &cs, 0), "cachestat() failed");
	return cs.present * PAGE_SIZE;
}

/* A guest that loses half of its pages while it lives. */
static void measure_holes(u64 *got)
{
	u64 start, before, nr = nr_pages() / 2;
	struct gmem g;
	struct pvm p;

	create(&p, &g, GMEM);
	time_touch(&p, &g);
	before = bytes_in_file(g.fd);
	start = gmem_now_ns();
	gmem_punch(&g, 0, nr);
	got[PUNCH] = per(gmem_now_ns() - start, nr);
	got[RETURNED] = before - bytes_in_file(g.fd);
	start = destroy(&p, &g);
	got[TEARDOWN_HOLES] = start > got[TEARDOWN_EMPTY] ?
			      per(start - got[TEARDOWN_EMPTY], nr_pages() - nr) : 0;
}

/* ---- Linux ---- */

static void exec_vmm(enum kind kind)
{
	TEST_ASSERT(!chdir(args.linux_dir), "chdir(%s) failed", args.linux_dir);
	execl("./vmm", "vmm", "--kernel", "Image", "--initrd", "guest.cpio",
	      "--append", "kunit.autorun=0", "--type",
	      kind == ANON ? "pinned" : "in-place", NULL);
	_exit(127);
}

/* Its output is a story; init's first line is part of it. */
static void watch_vmm(FILE *f, pid_t pid, u64 start, u64 *got)
{
	char line[1024], status[64];

	snprintf(status, sizeof(status), "/proc/%d/status", pid);
	while (fgets(line, sizeof(line), f)) {
		if (got[BOOT] || !strstr(line, "guest | init is up"))
			continue;
		got[BOOT] = gmem_now_ns() - start;
		got[BOOT_LOCKED] = locked_kib(status) * SZ_1K;
		got[BOOT_RESIDENT] = __gmem_proc_value(status, "VmRSS") * SZ_1K;
	}
}

/* From the start of the VMM to the end of it, which must be a good one. */
static void measure_linux(enum kind kind, u64 *got)
{
	u64 start = gmem_now_ns();
	int fds[2], status;
	pid_t pid;
	FILE *f;

	TEST_ASSERT(!pipe(fds), "pipe() failed");
	pid = fork();
	TEST_ASSERT(pid >= 0, "fork() failed");
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		dup2(fds[1], STDOUT_FILENO);
		close(fds[0]);
		close(fds[1]);
		exec_vmm(kind);
	}
	close(fds[1]);
	f = fdopen(fds[0], "r");
	TEST_ASSERT(f, "fdopen() failed");
	watch_vmm(f, pid, start, got);
	fclose(f);
	TEST_ASSERT_EQ(waitpid(pid, &status, 0), pid);
	TEST_ASSERT(!status && got[BOOT], "The VMM failed, status 0x%x", status);
}

static bool find_linux(void)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/vmm", args.linux_dir);
	return !access(path, X_OK);
}

/* ---- Output ---- */

/* Does the clock count instructions?  A loop of two tells. */
static bool clock_counts_instructions(void)
{
	u64 turns = 1000000, ns, start = gmem_now_ns();

	asm volatile("1: subs %0, %0, #1\n\tb.ne 1b" : "+r" (turns) : : "cc");
	ns = gmem_now_ns() - start;

	return ns > 1980000 && ns < 2020000;
}

static int compare(const void *a, const void *b)
{
	u64 x = *(const u64 *)a, y = *(const u64 *)b;

	return x < y ? -1 : x > y;
}

static void print_rows(enum kind kind, const char *unit)
{
	char against[64];
	u64 *s;
	int i;

	for (i = 0; i < NR_FIGURES; i++) {
		if ((figures[i].gmem_only && kind != GMEM) || (i >= BOOT && !has_linux))
			continue;
		snprintf(against, sizeof(against), "pvm_%s_%s", kinds[ANON], figures[i].id);
		s = samples[kind][i];
		qsort(s, args.repeats, sizeof(*s), compare);
		printf("row\tpvm_%s_%s\t%lu\t%s\t1\t%lu\t%lu\t%lu\t%d\t%s\t%s, %s\n",
		       kinds[kind], figures[i].id, s[args.repeats / 2], figures[i].unit ?: unit,
		       s[0], s[args.repeats - 1], args.repeats, i == FAULT,
		       kind == ANON || figures[i].gmem_only ? "-" : against,
		       figures[i].label, kind == ANON ? "anonymous memory" : "guest_memfd");
	}
}

static void measure(enum kind kind, u64 sample)
{
	u64 got[NR_FIGURES] = {};
	int i;

	measure_vm(kind, got);
	if (kind == GMEM)
		measure_holes(got);
	if (has_linux)
		measure_linux(kind, got);

	for (i = 0; i < NR_FIGURES; i++)
		samples[kind][i][sample] = got[i];
}

static void run(enum kind kind, const char *unit)
{
	u64 i;

	printf("group\tMemory of a protected VM, %s\n",
	       kind == ANON ? "anonymous" : "guest_memfd");
	for (i = 0; i < args.repeats; i++)
		measure(kind, i);
	print_rows(kind, unit);
}

static void show_help(const char *name)
{
	printf("usage: %s [-h] [-m MIB] [-c CALLS] [-r VMS] [-l DIR]\n"
	       " -m  memory that the guest touches (%lu MiB)\n"
	       " -c  round trips of share and unshare (%lu)\n"
	       " -r  VMs of each kind (%lu)\n"
	       " -l  where vmm, Image and guest.cpio of samples/pkvm are (%s)\n",
	       name, args.size / SZ_1M, args.calls, args.repeats, args.linux_dir);
}

static void parse_option(const char *name, int opt)
{
	switch (opt) {
	case 'm':
		args.size = atoi_positive("MiB", optarg) * SZ_1M;
		break;
	case 'c':
		args.calls = atoi_positive("calls", optarg);
		break;
	case 'r':
		args.repeats = min_t(u64, atoi_positive("VMs", optarg), MAX_SAMPLES);
		break;
	case 'l':
		args.linux_dir = optarg;
		break;
	default:
		show_help(name);
		exit(opt == 'h' ? 0 : KSFT_FAIL);
	}
}

int main(int argc, char *argv[])
{
	struct utsname uts;
	const char *unit;
	bool has_gmem;
	int opt;

	while ((opt = getopt(argc, argv, "hm:c:r:l:")) != -1)
		parse_option(argv[0], opt);

	TEST_REQUIRE(pvm_supported());
	gmem_test_init();
	gmem_page_size = getpagesize();
	has_linux = find_linux();
	has_gmem = (pvm_exit_hypercalls() & PVM_EXITS) == PVM_EXITS;

	setvbuf(stdout, NULL, _IOLBF, 0);
	uname(&uts);
	printf("info\tkernel\t%s %s\n", uts.release, uts.version);
	printf("info\tinplace\t%s\n", has_gmem ? "yes" : "no");
	printf("info\tpages\t%lu\n", nr_pages());
	unit = clock_counts_instructions() ? "insn" : "ns";
	printf("info\tunit\t%s\n", unit);
	run(ANON, unit);
	if (has_gmem)
		run(GMEM, unit);
	return 0;
}
