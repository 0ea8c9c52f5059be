// SPDX-License-Identifier: GPL-2.0-only
/*
 * What memory of a protected VM costs: in a guest_memfd, and in anonymous memory
 * that is pinned for life, as the host sees it.  In an emulated machine whose
 * clock counts instructions (QEMU: -icount shift=0,sleep=off -smp 1) a nanosecond
 * is an instruction, but the clock shows no less than 16 of them.
 *
 * The same binary runs on kernels without guest_memfd for protected VMs, and
 * leaves out what they lack.  Sizes are arguments.
 *
 * Output, a line each, fields separated by tabs; see guest_memfd_bench.c of x86:
 *
 *   info   KEY VALUE
 *   group  TITLE
 *   row    ID VALUE UNIT FACTOR MIN MAX SAMPLES ZEROED AGAINST LABEL
 */
#include <getopt.h>
#include <sys/utsname.h>

#include "pkvm_util.h"

GMEM_DEFINE_SIGBUS();

#define MAX_SAMPLES	64

static struct {
	u64 size;	/* of the memory that the guest touches */
	u64 calls;	/* round trips in one sample */
	u64 repeats;	/* VMs */
} args = {
	.size = SZ_4M,
	.calls = 64,
	.repeats = 3,
};

enum kind { ANON, GMEM, NR_KINDS };

static const char * const kinds[NR_KINDS] = { "anon", "gmem" };

/* What one VM shows. */
enum figure { FAULT, ROUND_TRIP, PUNCH, TEARDOWN, LOCKED, RESIDENT, NR_FIGURES };

static const struct {
	const char *id;
	const char *unit;	/* or what the clock counts */
	const char *label;
	bool gmem_only;
} figures[NR_FIGURES] = {
	[FAULT]		= { "fault", NULL, "guest fault on a fresh private page" },
	[ROUND_TRIP]	= { "roundtrip", NULL, "share and unshare of a page" },
	[PUNCH]		= { "punch", NULL, "punch of a page of the live guest", true },
	[TEARDOWN]	= { "teardown", NULL, "teardown, per page of the guest" },
	[LOCKED]	= { "locked", "bytes", "memory locked or pinned by the VMM" },
	[RESIDENT]	= { "resident", "bytes", "resident memory of the VMM" },
};

static u64 samples[NR_KINDS][NR_FIGURES][MAX_SAMPLES];

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

static u64 locked_kib(void)
{
	return gmem_status_kib("VmLck") + gmem_status_kib("VmPin");
}

static u64 per(u64 ns, u64 n)
{
	return (ns + n / 2) / n;
}

static void measure(enum kind kind, u64 sample)
{
	u64 start, empty, nr = nr_pages(), locked = locked_kib();
	u64 resident = gmem_status_kib("VmRSS");
	u64 got[NR_FIGURES] = {};
	struct gmem g;
	struct pvm p;
	int i;

	create(&p, &g, kind);
	empty = destroy(&p, &g);

	create(&p, &g, kind);
	start = gmem_now_ns();
	pvm_call(&p, 0, guest_touch, g.gpa, nr);
	got[FAULT] = per(gmem_now_ns() - start, nr);
	got[LOCKED] = (locked_kib() - locked) * SZ_1K;
	got[RESIDENT] = (gmem_status_kib("VmRSS") - resident) * SZ_1K;

	start = gmem_now_ns();
	TEST_ASSERT_EQ(pvm_call(&p, 0, guest_round_trips, g.gpa, args.calls)->ret[0],
		       PVM_SUCCESS);
	got[ROUND_TRIP] = per(gmem_now_ns() - start, args.calls);

	if (kind == GMEM) {
		start = gmem_now_ns();
		gmem_punch(&g, 0, nr / 2);
		got[PUNCH] = per(gmem_now_ns() - start, nr / 2);
		nr -= nr / 2;
	}
	start = destroy(&p, &g);
	got[TEARDOWN] = start > empty ? per(start - empty, nr) : 0;

	for (i = 0; i < NR_FIGURES; i++)
		samples[kind][i][sample] = got[i];
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
		if (figures[i].gmem_only && kind != GMEM)
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
	printf("usage: %s [-h] [-m MIB] [-c CALLS] [-r VMS]\n"
	       " -m  memory that the guest touches (%lu MiB)\n"
	       " -c  round trips of share and unshare (%lu)\n"
	       " -r  VMs of each kind (%lu)\n",
	       name, args.size / SZ_1M, args.calls, args.repeats);
}

int main(int argc, char *argv[])
{
	struct utsname uts;
	const char *unit;
	bool has_gmem;
	int opt;

	while ((opt = getopt(argc, argv, "hm:c:r:")) != -1) {
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
		default:
			show_help(argv[0]);
			return opt == 'h' ? 0 : KSFT_FAIL;
		}
	}

	TEST_REQUIRE(pvm_supported());
	gmem_test_init();
	gmem_page_size = getpagesize();
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
