// SPDX-License-Identifier: GPL-2.0-only
/*
 * What guest_memfd and memory attributes cost: whole operations, as a VMM sees
 * them, in ticks of the TSC.  In an emulated machine whose clock counts
 * instructions (QEMU: -icount shift=0,sleep=off -smp 1) a tick is an instruction,
 * and the figures repeat exactly; elsewhere they are what the processor says.
 *
 * The same binary runs on kernels without in-place conversion, and leaves out
 * what they lack.  Sizes are arguments.  An operation that would take too long
 * is measured on less and multiplied; such a row says so.
 *
 * Output, a line each, fields separated by tabs:
 *
 *   info   KEY VALUE
 *   group  TITLE                   of the rows that follow
 *   at     WHAT                    what is measured now
 *   row    ID VALUE UNIT FACTOR MIN MAX SAMPLES ZEROED AGAINST LABEL
 *
 * VALUE is the median.  FACTOR: what it was multiplied by, 1 if measured.
 * ZEROED: pages that the operation had to fill with zeros.  AGAINST: the row
 * of a kernel without in-place conversion that does the same job, or "-".
 */
#include <getopt.h>
#include <sys/utsname.h>

#include "guest_memfd_bench.h"

struct bench_args args = {
	.size = 64ul * SZ_1G,
	.huge = 1024ul * SZ_1G,
	.scattered = 100000,
	.worst = 8ul * SZ_1G,
	.touch = 256ul * SZ_1M,
	.file = 256ul * SZ_1M,
	.large = SZ_4G,
	.repeats = 200,
	.budget = 20000000000ul,
};

bool has_inplace;
bool has_huge;

/* ---- Which groups, how large ---- */

static const struct group {
	const char *name;
	void (*fn)(void);
	const char *title;
} groups[] = {
	{ "attr", attr_group, "KVM_SET_MEMORY_ATTRIBUTES, whole ranges" },
	{ "slot", slot_group, "The same with a bound slot" },
	{ "scatter", scatter_group, "Single pages of a bound slot, after scattered changes" },
	{ "worst", worst_group, "Memory of the map, worst case" },
	{ "file", file_group, "Files" },
	{ "cold", cold_group, "Private memory that the guest touches first" },
	{ "fill", fill_group, "Memory without a private side, filled" },
	{ "hidden", hidden_group, "Conversions, in the direct map and outside" },
	{ "access", access_group, "KVM's own accesses" },
	{ "peak", peak_group, "Peak memory of a guest that shares all of it once" },
	{ "split", split_group, "One page of 2 MiB private memory: to shared, or punched" },
	{ "convert", convert_group, "Change sides: mapped before, touched by the guest after" },
};

static bool is_selected(const char *group)
{
	const char *word = args.only;
	size_t len = strlen(group);

	if (!word)
		return true;

	for (; word; word = strchr(word, ','), word += !!word)
		if (!strncmp(word, group, len) && (!word[len] || word[len] == ','))
			return true;
	return false;
}

static void show_help(const char *program)
{
	int i;

	printf("usage: %s [-s size] [-l size] [-n changes] [-w size] [-m size] [-f size]\n"
	       "          [-g size] [-r repeats] [-b budget] [-o group,...]\n\n"
	       "Sizes are powers of two, as 64G.\n"
	       " -s: guest whose attributes change\n"
	       " -l: a very large one\n"
	       " -n: scattered changes before a single one is measured (1, n/100, n)\n"
	       " -w: memory of which every other page is private\n"
	       " -m: memory that the guest touches and converts\n"
	       " -f: memory that is allocated and punched\n"
	       " -g: memory that is allocated and torn down\n"
	       " -r: repeats of what is short\n"
	       " -b: millions of ticks that a change of a whole range may take; one\n"
	       "     that would take longer is measured on less, and multiplied\n"
	       " -o: only these groups:", program);
	for (i = 0; i < ARRAY_SIZE(groups); i++)
		printf(" %s", groups[i].name);
	printf("\n");
}

static u64 size_arg(const char *text)
{
	u64 size = parse_size(text);

	TEST_ASSERT(size >= SZ_2M && !(size & (size - 1)),
		    "\"%s\" is no power of two, or less than 2M", text);
	return size;
}

static bool set_option(int opt)
{
	switch (opt) {
	case 's':
		args.size = size_arg(optarg);
		return true;
	case 'l':
		args.huge = size_arg(optarg);
		return true;
	case 'n':
		args.scattered = atoi_positive("changes", optarg);
		return true;
	case 'w':
		args.worst = size_arg(optarg);
		return true;
	case 'm':
		args.touch = size_arg(optarg);
		return true;
	case 'f':
		args.file = size_arg(optarg);
		return true;
	case 'g':
		args.large = size_arg(optarg);
		return true;
	case 'r':
		args.repeats = min_t(u64, atoi_positive("repeats", optarg), MAX_SAMPLES);
		return true;
	case 'b':
		args.budget = atoi_positive("budget", optarg) * 1000000ul;
		return true;
	case 'o':
		args.only = optarg;
		return true;
	}
	return false;
}

int main(int argc, char *argv[])
{
	struct utsname uts;
	int opt, i;

	while ((opt = getopt(argc, argv, "hs:l:n:w:m:f:g:r:b:o:")) != -1) {
		if (!set_option(opt)) {
			show_help(argv[0]);
			return opt == 'h' ? 0 : KSFT_FAIL;
		}
	}
	TEST_ASSERT(args.size >= SZ_1G && args.worst <= args.size,
		    "The guest has a GiB at least, and not less than the worst case");
	TEST_ASSERT(args.touch <= args.size / 8, "It does not touch more than an eighth");

	TEST_REQUIRE(kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM));
	has_inplace = kvm_check_cap(KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES) & PRIVATE;
	has_huge = kvm_check_cap(KVM_CAP_GUEST_MEMFD_FLAGS) & GUEST_MEMFD_FLAG_HUGE;

	setvbuf(stdout, NULL, _IOLBF, 0);
	uname(&uts);
	printf("info\tkernel\t%s %s\n", uts.release, uts.version);
	printf("info\tinplace\t%s\n", has_inplace ? "yes" : "no");
	clock_init();
	zero_row();
	enter_cgroup();
	for (i = 0; i < ARRAY_SIZE(groups); i++) {
		if (!is_selected(groups[i].name))
			continue;
		printf("group\t%s\n", groups[i].title);
		groups[i].fn();
	}
	leave_cgroup();
	return 0;
}
