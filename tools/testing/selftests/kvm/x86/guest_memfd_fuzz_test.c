// SPDX-License-Identifier: GPL-2.0-only
/*
 * Random operations on guest_memfd files and their VMs, see guest_memfd_fuzz.h.
 *
 * A round is one list of operations, that its seed tells, in one process.  It fails
 * if that process finds what the model does not expect, if the kernel's log has what
 * it must not have, or if memory is missing afterwards.  The list is then made as
 * short as possible, and printed: -r runs it again.
 *
 * With more than one thread there is no model; guest_memfd_fuzz_race.c says what is
 * looked at instead.
 */
#include "guest_memfd_fuzz.h"

#include <dirent.h>
#include <getopt.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#define DEBUGFS			"/sys/kernel/debug/"
#define UNPOISON		DEBUGFS "hwpoison/unpoison-pfn"

#define DEFAULT_OPS		6000
#define DEFAULT_LENGTH		300
#define DEFAULT_SECONDS		3600

/* No list takes nearly as long, and what hangs is a failure. */
#define LIST_SECONDS		300

/* With threads: one round of this many gets less memory than it may want. */
#define STARVED_ONE_IN		8

static struct fuzz_options {
	u32 seed;
	u32 nr_ops;
	u32 length;
	u32 seconds;
	u32 nr_threads;
	u32 faults;
	const char *file;
	bool verbose;
} options;

static struct fuzz_report *report;

/* ---- What was come by ---- */

static const char * const event_names[FUZZ_NR_EVENTS] = {
	[FUZZ_FILLED]		= "write() filled",
	[FUZZ_FILLED_PRIVATE]	= "write() filled private pages",
	[FUZZ_FILLED_LARGE]	= "write() filled a large page",
	[FUZZ_FILLED_HIDDEN]	= "write() filled what is outside the direct map",
	[FUZZ_FILLED_FROM_FILE]	= "write() filled from a file",
	[FUZZ_FILL_SHORT]	= "write() was short",
	[FUZZ_FILL_EEXIST]	= "write(): EEXIST",
	[FUZZ_FILL_EFAULT]	= "write(): EFAULT",
	[FUZZ_FILL_EPERM]	= "write(): EPERM",
	[FUZZ_FILL_EINVAL]	= "write(): EINVAL",
	[FUZZ_FILL_ENODEV]	= "write(): ENODEV",
	[FUZZ_FILL_ENOMEM]	= "write(): ENOMEM",
	[FUZZ_HIDDEN_IN_PLACE]	= "outside the direct map: in-place files",
	[FUZZ_HIDDEN_FIXED]	= "outside the direct map: files of fixed state",
	[FUZZ_HIDDEN_CONVERTED]	= "outside the direct map: converted",
	[FUZZ_HIDDEN_REFUSED]	= "outside the direct map: references refused",
	[FUZZ_HIDDEN_POISONED]	= "outside the direct map: memory errors",
	[FUZZ_MISSING_ABSENT]	= "missing: absent",
	[FUZZ_MISSING_BIT]	= "missing: by a bit",
	[FUZZ_MISSING_BLOCK]	= "missing: a large page",
	[FUZZ_MISSING_PRIVATE]	= "missing: private",
	[FUZZ_MISSING_NESTED]	= "missing: for a nested guest",
	[FUZZ_MISSING_PLAIN]	= "missing: what is not in the file",
	[FUZZ_MISSING_USER]	= "missing: for users",
	[FUZZ_MISSING_PRE_FAULT] = "missing: for a pre-fault",
	[FUZZ_MISSING_KVM]	= "missing: for KVM itself",
	[FUZZ_WRITTEN_BY_KVM]	= "written by KVM itself",
	[FUZZ_SWITCHED_ON]	= "KVM_MEM_USERFAULT on",
	[FUZZ_SWITCHED_OFF]	= "KVM_MEM_USERFAULT off",
	[FUZZ_SWITCHED_BITMAP]	= "KVM_MEM_USERFAULT, another bitmap",
	[FUZZ_SWITCHED_NOTHING]	= "KVM_MEM_USERFAULT, the same again",
	[FUZZ_SWITCH_EINVAL]	= "KVM_MEM_USERFAULT: EINVAL",
	[FUZZ_SWITCH_EFAULT]	= "KVM_MEM_USERFAULT: EFAULT",
	[FUZZ_SWITCH_EBADF]	= "KVM_MEM_USERFAULT: EBADF",
};

/* Shared with the processes that run lists, over all rounds. */
static u64 *events;

void fuzz_count(enum fuzz_event event)
{
	__atomic_add_fetch(&events[event], 1, __ATOMIC_RELAXED);
}

static void print_events(void)
{
	u32 i;

	for (i = 0; i < FUZZ_NR_EVENTS; i++)
		printf("# %8lu %s\n", events[i], event_names[i]);
}

/* ---- The kernel's log ---- */

static const char * const bad_words[] = {
	"WARNING:", "BUG:", "Oops", "Call Trace:", "KASAN:", "possible circular locking",
	"possible recursive locking", "suspicious RCU usage", "blocked for more than",
	"Bad page", "Bad rss-counter", "refcount_t:", "soft lockup", "rcu: INFO:",
};

static int kmsg_open(void)
{
	int fd = open("/dev/kmsg", O_RDWR | O_NONBLOCK | O_CLOEXEC);

	if (fd >= 0)
		lseek(fd, 0, SEEK_END);
	return fd;
}

/* Memory that is made to run out may dump the stack, which is no fault. */
static bool line_is_bad(const char *line)
{
	static bool out_of_memory;
	u32 i;

	if (strstr(line, "vmalloc error:") || strstr(line, "page allocation failure:") ||
	    strstr(line, "invoked oom-killer:"))
		out_of_memory = true;
	if (strstr(line, "</TASK>"))
		out_of_memory = false;
	if (out_of_memory && strstr(line, "Call Trace:"))
		return false;
	/* The rest of the kernel has data races too: who runs KCSAN reads its reports. */
	if (strstr(line, "KCSAN:"))
		return false;

	for (i = 0; i < ARRAY_SIZE(bad_words); i++)
		if (strstr(line, bad_words[i]))
			return true;
	return false;
}

/* Read what is new.  Is there anything that must not be there? */
static bool kmsg_is_bad(int fd, char *line, size_t size)
{
	bool bad = false;
	char buf[8192];
	ssize_t len;

	while (fd >= 0) {
		len = read(fd, buf, sizeof(buf) - 1);
		if (len < 0 && errno == EPIPE)
			continue;
		if (len <= 0)
			break;
		buf[len] = '\0';
		if (!line_is_bad(buf) || bad)
			continue;
		snprintf(line, size, "kernel log: %.200s", strchr(buf, ';') ?: buf);
		bad = true;
	}
	return bad;
}

/* ---- Too little memory ---- */

#define CGROUP			"/sys/fs/cgroup/"

static const char *cgroup_dir;

static const char *cgroup_path(const char *file)
{
	static char path[128];

	snprintf(path, sizeof(path), "%s/%s", cgroup_dir, file);
	return path;
}

/* A group in which VMs just fit, for some of the rounds with threads. */
static void cgroup_setup(void)
{
	if (gmem_write_file(CGROUP "cgroup.subtree_control", "+memory"))
		return;
	if (mkdir(CGROUP "guest_memfd_fuzz", 0755) && errno != EEXIST)
		return;

	cgroup_dir = CGROUP "guest_memfd_fuzz";
	if (gmem_write_file(cgroup_path("memory.max"), "12M"))
		cgroup_dir = NULL;
}

/* ---- One list ---- */

static void give_frames_back(void)
{
	char text[32];
	u32 i;

	for (i = 0; i < report->nr_frames; i++) {
		if (!report->frames[i])
			continue;
		snprintf(text, sizeof(text), "0x%lx", report->frames[i]);
		gmem_write_file(UNPOISON, text);
	}
}

static void __noreturn run_ops(const struct fuzz_list *list, bool verbose)
{
	struct fuzz_world *w = calloc(1, sizeof(*w));

	TEST_ASSERT(w, "No memory for the model");
	if (!verbose && !freopen("/dev/null", "w", stderr))
		_exit(KSFT_FAIL);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	alarm(LIST_SECONDS);
	fuzz_world_init(w, report, options.faults, verbose);
	for (report->op = 0; report->op < list->nr; report->op++) {
		const struct fuzz_op *op = &list->ops[report->op];

		if (verbose)
			printf("# %u %s\n", report->op, fuzz_ops[op->kind].name);
		fuzz_ops[op->kind].fn(w, op->arg);
	}
	fuzz_world_end(w);
	_exit(0);
}

static void __noreturn run_race(u32 seed, bool starved)
{
	if (starved)
		gmem_write_file(cgroup_path("cgroup.procs"), "0");
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	alarm(LIST_SECONDS);
	fuzz_race(report, seed, options.nr_threads, options.length, options.faults);
	_exit(KSFT_FAIL);
}

/*
 * Memory comes back at once, but for what the kernel frees in the background: a ring
 * of io_uring lets its buffers go from a workqueue.
 */
static bool memory_is_back(u64 before)
{
	u64 end = gmem_now_ns() + 10 * NSEC_PER_SEC;

	while (gmem_nr_file_pages() > before) {
		if (gmem_now_ns() > end)
			return false;
		sched_yield();
	}
	return true;
}

/* The threads end by SIGKILL, and if they have too little memory any time. */
static bool status_is_good(int status, bool starved)
{
	return !status || (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL &&
			   (report->done || starved));
}

/* @list in a new process, or the threads if there is none. */
static bool run_round(const struct fuzz_list *list, u32 seed, int kmsg, bool verbose)
{
	bool starved = !list && !(seed % STARVED_ONE_IN) && cgroup_dir;
	u64 before = gmem_nr_file_pages();
	int status;
	pid_t pid;

	memset(report, 0, sizeof(*report));
	fflush(NULL);
	pid = fork();
	TEST_ASSERT(pid >= 0, "fork() failed");
	if (!pid && list)
		run_ops(list, verbose);
	if (!pid)
		run_race(seed, starved);

	TEST_ASSERT_EQ(waitpid(pid, &status, 0), pid);
	/* Its children have been told to follow. */
	while (waitpid(-1, NULL, 0) > 0)
		;
	give_frames_back();

	if (!status_is_good(status, starved) && !report->line) {
		report->line = status;
		snprintf(report->text, sizeof(report->text), "status 0x%x", status);
	}
	if (!report->line && kmsg_is_bad(kmsg, report->text, sizeof(report->text)))
		report->line = -1;
	if (!report->line && !memory_is_back(before)) {
		report->line = -2;
		snprintf(report->text, sizeof(report->text), "%ld pages are missing",
			 gmem_nr_file_pages() - before);
	}
	return !report->line;
}

static bool run_list(const struct fuzz_list *list, int kmsg, bool verbose)
{
	return run_round(list, 0, kmsg, verbose);
}

/* ---- A list that fails ---- */

struct failure {
	u32 line;
	char file[sizeof(report->file)];
	int kmsg;
};

static bool still_fails(const struct fuzz_list *list, void *arg)
{
	const struct failure *f = arg;

	return !run_list(list, f->kmsg, false) && report->line == f->line &&
	       !strcmp(report->file, f->file);
}

/* What comes after the operation that found something is of no interest. */
static void cut_tail(struct fuzz_list *list, struct failure *f)
{
	u32 nr = list->nr;

	list->nr = min(nr, report->op + 1);
	if (!still_fails(list, f))
		list->nr = nr;
}

static void report_failure(struct fuzz_list *list, u32 seed, int kmsg)
{
	struct failure f = { .line = report->line, .kmsg = kmsg };

	memcpy(f.file, report->file, sizeof(f.file));
	printf("not ok: operation %u, %s:%d: %s\n", report->op, report->file,
	       (int)report->line, report->text);
	if (!options.file)
		printf("# Again: -s %u -l %u -n 1 -k 0x%x\n", seed, options.length,
		       options.faults);
	fflush(stdout);

	if (!still_fails(list, &f)) {
		printf("# It does not fail again.  The list, of which %u ran:\n", report->op);
		fuzz_list_print(stdout, list);
		return;
	}

	cut_tail(list, &f);
	fuzz_list_minimise(list, still_fails, &f);
	printf("# Minimal list, for -r:\n");
	fuzz_list_print(stdout, list);
	run_list(list, kmsg, true);
	printf("# %s:%d: %s\n", report->file, (int)report->line, report->text);
}

/* ---- Rounds ---- */

/* Let allocations that may sleep fail, single pages among them, in silence. */
static void injection_setup(void)
{
	DIR *debugfs = opendir(DEBUGFS);
	struct dirent *entry;
	char path[300];

	if (!debugfs)
		return;

	gmem_write_file(DEBUGFS "failslab/ignore-gfp-wait", "N");
	gmem_write_file(DEBUGFS "fail_page_alloc/ignore-gfp-wait", "N");
	gmem_write_file(DEBUGFS "fail_page_alloc/ignore-gfp-highmem", "N");
	gmem_write_file(DEBUGFS "fail_page_alloc/min-order", "0");
	while ((entry = readdir(debugfs))) {
		if (strncmp(entry->d_name, "fail", 4))
			continue;
		snprintf(path, sizeof(path), DEBUGFS "%s/verbose", entry->d_name);
		gmem_write_file(path, "0");
	}
	closedir(debugfs);
}

/* If the machine dies, its console has the seed. */
static void announce(int kmsg, u32 seed)
{
	char text[64];
	int len = snprintf(text, sizeof(text), "guest_memfd_fuzz_test: seed %u\n", seed);

	if (kmsg >= 0 && write(kmsg, text, len) != len)
		printf("# seed %u\n", seed);
}

static bool list_once(u32 seed, int kmsg)
{
	struct fuzz_list list = fuzz_list_random(seed, options.length, options.faults);
	bool good = run_list(&list, kmsg, options.verbose);

	if (!good)
		report_failure(&list, seed, kmsg);
	fuzz_list_free(&list);
	return good;
}

static bool race_once(u32 seed, int kmsg)
{
	bool good = run_round(NULL, seed, kmsg, options.verbose);

	if (!good)
		printf("not ok: threads, %s:%d: %s\n# Again: -T %u -s %u -l %u -n 1 -k 0x%x\n",
		       report->file, (int)report->line, report->text, options.nr_threads, seed,
		       options.length, options.faults);
	return good;
}

static bool run_rounds(int kmsg)
{
	u64 end = gmem_now_ns() + options.seconds * NSEC_PER_SEC;
	u32 done = 0, seed;
	bool good = true;

	for (seed = options.seed; good && done < options.nr_ops; seed++) {
		if (gmem_now_ns() > end)
			break;
		announce(kmsg, seed);
		good = options.nr_threads > 1 ? race_once(seed, kmsg) : list_once(seed, kmsg);
		done += options.length;
	}
	printf("# %u operations, seeds %u to %u\n", done, options.seed, seed - 1);
	return good;
}

static bool replay(int kmsg)
{
	FILE *f = strcmp(options.file, "-") ? fopen(options.file, "r") : stdin;
	struct fuzz_list list;
	bool good;

	TEST_ASSERT(f, "fopen(%s) failed", options.file);
	list = fuzz_list_parse(f);
	if (f != stdin)
		fclose(f);
	good = run_list(&list, kmsg, true);
	if (!good)
		report_failure(&list, 0, kmsg);
	fuzz_list_free(&list);
	return good;
}

static void print_help(const char *name)
{
	printf("usage: %s [-s seed] [-n operations] [-t seconds] [-l operations a list]\n"
	       "\t[-T threads] [-k faults] [-r list] [-v]\n", name);
}

static bool parse_options(int argc, char *argv[])
{
	int opt;

	options = (struct fuzz_options) {
		.seed = gmem_now_ns() % INT32_MAX ?: 1,
		.nr_ops = GMEM_LOOPS(DEFAULT_OPS),
		.length = DEFAULT_LENGTH,
		.seconds = DEFAULT_SECONDS,
		.nr_threads = 1,
		.faults = FUZZ_MENDED,
	};

	while ((opt = getopt(argc, argv, "hs:n:t:l:T:k:r:v")) != -1) {
		switch (opt) {
		case 's':
			options.seed = atoi_positive("seed", optarg);
			break;
		case 'n':
			options.nr_ops = atoi_positive("number of operations", optarg);
			break;
		case 't':
			options.seconds = atoi_positive("seconds", optarg);
			break;
		case 'l':
			options.length = atoi_positive("length of a list", optarg);
			break;
		case 'T':
			options.nr_threads = atoi_positive("number of threads", optarg);
			break;
		case 'k':
			options.faults = atoi_non_negative("faults", optarg);
			break;
		case 'r':
			options.file = optarg;
			break;
		case 'v':
			options.verbose = true;
			break;
		default:
			return false;
		}
	}
	return true;
}

int main(int argc, char *argv[])
{
	bool good;
	int kmsg;

	if (!parse_options(argc, argv)) {
		print_help(argv[0]);
		return KSFT_FAIL;
	}

	TEST_REQUIRE(gmem_conversion_supported());
	gmem_test_init();
	injection_setup();
	cgroup_setup();
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	kmsg = kmsg_open();
	report = kvm_mmap(sizeof(*report), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
			  -1);
	events = kvm_mmap(FUZZ_NR_EVENTS * sizeof(*events), PROT_READ | PROT_WRITE,
			  MAP_SHARED | MAP_ANONYMOUS, -1);
	/* Have the memory now, not amid a round, where it would be missed at the end. */
	memset(events, 0, FUZZ_NR_EVENTS * sizeof(*events));
	memset(report, 0, sizeof(*report));
	printf("# %s -s %u -n %u -l %u -T %u -k 0x%x\n", argv[0], options.seed,
	       options.nr_ops, options.length, options.nr_threads, options.faults);

	if (options.file)
		good = replay(kmsg);
	else
		good = run_rounds(kmsg);
	print_events();
	printf(good ? "PASS\n" : "FAIL\n");
	return good ? 0 : KSFT_FAIL;
}
