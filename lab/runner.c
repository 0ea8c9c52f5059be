// SPDX-License-Identifier: GPL-2.0
/*
 * The lab's runner: builds and boots platforms, runs the tests of lab/tests on
 * them, and judges.
 *
 *   runner [-a ARCH] [-t TESTS] [-L LEVEL] [-f FACTOR] [-l]
 *   runner -a PLATFORM -s WORDS [-i INITRD] [-c CONSOLE] [-g]
 *
 *     -a  platforms, by comma (x86, x86-debug, arm64, host, ...); shell patterns
 *     -t  test names, by comma; shell patterns
 *     -L  quick, full (unless said otherwise) or soak
 *     -f  time-out factor, 1.0: as in lab/tests
 *     -l  list the selected tests, run nothing
 *     -s  boot one platform on this terminal, WORDS on its command line
 *     -i  with another initramfs
 *     -c  the kernel's console goes to this file, the terminal is for PID 1
 *     -g  halted, with a gdb port at :1234
 *
 * It is started at the top of the project, by make.  Each test on each platform
 * gives one line and counts once; the last line is "N passed, N failed, N
 * skipped"; exit status 0 only if nothing failed.
 *
 * The platforms of a family are built first (make image-KERNEL), then they run
 * at the same time, one child process each.  When the first of them is through,
 * the processor that it used builds for the families to come.  A child drives
 * its QEMU through the verdict port (machine.c).  When the machine dies, the
 * test that ran is charged and the rest goes on in a fresh one.  What is a pass:
 * tests.c.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "runner.h"

#define BOOT_SECONDS	120

/* What the command line asks for. */
struct options {
	const char *words, *initrd, *console;
	bool listing, gdb;
};

static double factor = 1;

/* ---- tests on a machine ---- */

static FILE *open_log(const struct platform *p, const char *name)
{
	char path[256];
	FILE *log;

	log_path(path, sizeof(path), p, name);
	log = fopen(path, "w");
	if (!log)
		die("%s: %s", path, strerror(errno));
	return log;
}

/* Take one line of the machine's into @log and @o. */
static void take_line(struct machine *m, const char *line, FILE *log,
		      struct outcome *o)
{
	bool bad = !strncmp(line, "bad ", 4);

	if (!strncmp(line, "out ", 4)) {
		fprintf(log, "%s\n", line + 4);
		count_ktap(o, line + 4);
	}
	if (!bad && strncmp(line, "kmsg ", 5))
		return;
	fprintf(log, "[kernel] %s\n", strchr(line, ' ') + 1);
	if (m->p->says && strstr(line, m->p->says))
		m->said = true;
	if (bad && !o->bad[0])
		snprintf(o->bad, sizeof(o->bad), "%.150s", line + 4);
}

/*
 * Read the machine's lines into @log and @o until "ready" (boot) or "end".
 * Returns true when it came; else @o says why not.
 */
static bool follow(struct machine *m, FILE *log, struct outcome *o, const char *until,
		   long long deadline)
{
	char line[2048], why[160];

	while (machine_line(m, log, line, sizeof(line), deadline, why, sizeof(why))) {
		take_line(m, line, log, o);
		if (!strncmp(line, until, strlen(until))) {
			o->status = 0;
			sscanf(line, "end %d %lld", &o->status, &o->ms);
			return true;
		}
	}
	fail_outcome(o, "%s", why);
	return false;
}

/* Boot, and judge the boot as a test: an oops there must not go unseen. */
static bool boot(struct machine *m, const struct platform *p, bool quiet)
{
	long long start = now_ms();
	bool up = false;
	struct outcome o;
	FILE *log = open_log(p, "boot");

	start_outcome(&o, p, "boot");
	if (!boot_machine(m, p, NULL, NULL))
		fail_outcome(&o, "cannot start QEMU");
	else
		up = follow(m, log, &o, "ready",
			    start + BOOT_SECONDS * 1000LL * factor * p->slow);
	o.ms = now_ms() - start;
	if (up && !m->said)
		fail_outcome(&o, "the kernel does not say \"%s\"", p->says);
	fclose(log);
	if (!quiet || o.status || o.bad[0])
		judge(&o);
	return up;
}

/* Run @t on @m; returns false when the machine should not be used again. */
static bool run_test(struct machine *m, const struct test *t, bool *passed)
{
	const struct platform *p = m->p;
	double scale = factor * p->slow;
	long long start = now_ms();
	FILE *log = open_log(p, t->name);
	struct outcome o;
	char cmd[512];
	bool alive;
	int n;

	start_outcome(&o, p, t->name);
	n = snprintf(cmd, sizeof(cmd), "run %s %d %s %s\n", t->name,
		     (int)(t->seconds * scale), t->name, t->args);
	if (write(m->port, cmd, n) != n)
		fprintf(log, "cannot write to the verdict port\n");
	alive = follow(m, log, &o, "end ",
		       start + (t->seconds * scale + 30) * 1000);
	if (!o.ms)
		o.ms = now_ms() - start;
	fclose(log);
	*passed = judge(&o);
	/* After a splat lockdep is off, and state may be broken: boot afresh. */
	return alive && !o.bad[0] && o.status != STATUS_TIMEOUT;
}

/* " BASE=..." if it isn't the default, to be put into a command. */
static const char *base_option(void)
{
	return getenv("LAB_OTHER_BASE") ?: "";
}

static void print_again(const struct platform *p, const char *test)
{
	char cmd[3000], words[200];

	snprintf(words, sizeof(words), "lab.run=%s", test);
	qemu_command(p, words, NULL, NULL, NULL, cmd, sizeof(cmd));
	put_line("  again: make check ARCH=%s T='%s'%s\n  or:    %s", p->name, test,
		 base_option(), cmd);
}

/* None of the @n tests of @list can run. */
static void fail_all(const struct platform *p, struct test **list, int n,
		     const char *why)
{
	struct outcome o;
	int i;

	for (i = 0; i < n; i++) {
		start_outcome(&o, p, list[i]->name);
		fail_outcome(&o, "%s", why);
		judge(&o);
	}
}

static void run_platform(const struct platform *p, struct test **list, int n)
{
	bool up = false, passed;
	struct machine m;
	int i = 0, boots = 0, lost = 0;

	while (i < n && lost < 2) {
		if (!up) {
			up = boot(&m, p, boots++ || *only_test);
			if (!up) {
				end_machine(&m);
				lost++;
				continue;
			}
		}
		up = run_test(&m, list[i], &passed);
		if (!passed)
			print_again(p, list[i]->name);
		if (!up)
			end_machine(&m);
		i++;
	}
	if (up)
		end_machine(&m);
	fail_all(p, list + i, n - i, "boot");
}

/* ---- the host: tests that need no machine (make lab-NAME) ---- */

static int host_command(const struct test *t, const char *log, int seconds)
{
	long long deadline = now_ms() + seconds * 1000LL;
	char cmd[512];
	int status;
	pid_t pid;

	snprintf(cmd, sizeof(cmd),
		 "exec make --no-print-directory -s lab-%s >%s 2>&1 </dev/null",
		 t->name, log);
	pid = fork();
	if (!pid) {
		setpgid(0, 0);
		prctl(PR_SET_PDEATHSIG, SIGTERM);
		execl("/bin/sh", "sh", "-c", cmd, NULL);
		_exit(127);
	}
	if (pid < 0)
		return 127;
	while (waitpid(pid, &status, WNOHANG) != pid) {
		if (now_ms() > deadline) {
			kill(-pid, SIGKILL);
			waitpid(pid, NULL, 0);
			return STATUS_TIMEOUT;
		}
		usleep(100000);
	}
	return WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status);
}

static void run_host(const struct platform *p, struct test **list, int n)
{
	char path[256], line[1024];
	struct outcome o;
	int i;
	FILE *f;

	for (i = 0; i < n; i++) {
		long long start = now_ms();

		start_outcome(&o, p, list[i]->name);
		log_path(path, sizeof(path), p, list[i]->name);
		o.status = host_command(list[i], path, list[i]->seconds * factor);
		o.ms = now_ms() - start;
		f = fopen(path, "r");
		while (f && fgets(line, sizeof(line), f))
			count_ktap(&o, line);
		if (f)
			fclose(f);
		if (!judge(&o))
			put_line("  again: make lab-%s%s", list[i]->name, base_option());
	}
}

/* ---- stages ---- */

static void fresh_logs(const struct platform *p)
{
	char cmd[512];

	snprintf(cmd, sizeof(cmd),
		 "mkdir -p build/logs build/logs.old && rm -rf build/logs.old/%s && "
		 "{ [ ! -d build/logs/%s ] || mv build/logs/%s build/logs.old/%s; } && "
		 "mkdir -p build/logs/%s", p->name, p->name, p->name, p->name, p->name);
	if (system(cmd))
		die("cannot make build/logs/%s", p->name);
}

static bool build(const struct platform *p)
{
	char cmd[256];

	if (!p->kernel)
		return true;
	snprintf(cmd, sizeof(cmd), "make --no-print-directory -s image-%s",
		 p->kernel);
	return system(cmd) == 0;
}

/* Build what @p boots; when that fails, its tests fail.  Returns their number. */
static int prepare(const struct platform *p)
{
	struct test *list[MAX_TESTS];
	int n = select_tests(p, list);
	long long start = now_ms();
	bool good;

	if (!n)
		return 0;
	fresh_logs(p);
	good = build(p);
	totals[p - platforms].build_ms = now_ms() - start;
	if (good)
		return n;
	fail_all(p, list, n, "build");
	return 0;
}

static pid_t start_platform(const struct platform *p)
{
	struct test *list[MAX_TESTS];
	int n = select_tests(p, list);
	pid_t pid;

	fflush(NULL);
	pid = fork();
	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	signal(SIGPIPE, SIG_IGN);
	if (p->kernel)
		run_platform(p, list, n);
	else
		run_host(p, list, n);
	exit(0);
}

/*
 * In a child process, one job at the lowest priority: make the images that the
 * platforms from @first on will ask for.  What fails here is made again, and
 * told of, in its turn.
 */
static pid_t build_ahead(size_t first)
{
	struct test *list[MAX_TESTS];
	char cmd[256];
	pid_t pid;
	size_t i;

	fflush(NULL);
	pid = fork();
	if (pid)
		return pid;
	setpgid(0, 0);
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	for (i = first; i < NR_PLATFORMS; i++) {
		if (!platforms[i].kernel || !select_tests(&platforms[i], list))
			continue;
		snprintf(cmd, sizeof(cmd), "nice -n 19 make -s JOBS=1 image-%s",
			 platforms[i].kernel);
		if (system(cmd))
			break;
	}
	_exit(0);
}

/* What it has made stays; make removes what is half done. */
static void end_build_ahead(pid_t pid)
{
	if (pid <= 0)
		return;
	kill(-pid, SIGTERM);
	waitpid(pid, NULL, 0);
}

/*
 * Build all platforms of a family, then let them run together.  A build with
 * all jobs beside a running test would make the test's time-outs depend on it;
 * one job on the processor of a machine that is gone doesn't.
 */
static void run_family(const char *family)
{
	bool ready[NR_PLATFORMS] = { false };
	pid_t pid[NR_PLATFORMS], ahead = 0;
	size_t i, end = 0;

	for (i = 0; i < NR_PLATFORMS; i++) {
		if (strcmp(platforms[i].family, family))
			continue;
		ready[i] = prepare(&platforms[i]) > 0;
		end = i + 1;
	}
	for (i = 0; i < NR_PLATFORMS; i++)
		if (ready[i])
			pid[i] = start_platform(&platforms[i]);
	for (i = 0; i < NR_PLATFORMS; i++) {
		int status = -1;

		if (!ready[i])
			continue;
		if (waitpid(pid[i], &status, 0) != pid[i] || status) {
			totals[i].failed++;
			put_line("FAIL %s runner (wait status %d)", platforms[i].name,
				 status);
		}
		if (!ahead && i + 1 < end)
			ahead = build_ahead(end);
	}
	end_build_ahead(ahead);
}

/* Boot the selected platform on this terminal, instead of tests. */
static int interactive(const struct options *opt)
{
	const struct platform *p;
	char cmd[3000];
	size_t i;

	for (i = 0; i < NR_PLATFORMS; i++)
		if (platforms[i].kernel && !strcmp(platforms[i].name, only_arch))
			break;
	if (i == NR_PLATFORMS)
		die("no such platform: %s (x86, x86-debug, x86-shadow, x86-kcsan, arm64, arm64-protected, arm64-debug)",
		    only_arch);
	p = &platforms[i];
	qemu_command(p, opt->words, NULL, opt->initrd, opt->console, cmd, sizeof(cmd) - 8);
	if (opt->gdb) {
		strcat(cmd, " -s -S");
		put_line("halted; in another terminal: gdb build/%s/vmlinux -ex 'target remote :1234'",
			 p->kernel);
	}
	if (!opt->console)
		put_line("%s\n(to leave: exit, or Ctrl-A X)", cmd);
	execl("/bin/sh", "sh", "-c", cmd, NULL);
	die("cannot execute /bin/sh");
}

static int list_tests(void)
{
	struct test *list[MAX_TESTS];
	int i, j, n;

	for (i = 0; i < NR_PLATFORMS; i++) {
		n = select_tests(&platforms[i], list);
		for (j = 0; j < n; j++)
			printf("%-16s %-36s %4ds %s\n", platforms[i].name,
			       list[j]->name, list[j]->seconds, list[j]->args);
	}
	return 0;
}

/* Where the time went.  Platforms run beside each other: it is no sum. */
static void put_times(long long ms)
{
	size_t i;

	for (i = 0; i < NR_PLATFORMS; i++) {
		struct totals *t = &totals[i];

		if (t->passed + t->failed + t->skipped)
			put_line("time: %-15s build %4lld s, boot %3lld s, tests %4lld s",
				 platforms[i].name, t->build_ms / 1000, t->boot_ms / 1000,
				 t->test_ms / 1000);
	}
	put_line("time: %lld min %02lld s in all, LEVEL=%s", ms / 60000, ms / 1000 % 60,
		 level_names[only_level]);
}

static int run_all(void)
{
	struct totals sum = { 0 };
	long long start = now_ms();
	size_t i;

	totals = mmap(NULL, sizeof(*totals) * NR_PLATFORMS, PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (totals == MAP_FAILED)
		die("mmap: %s", strerror(errno));
	run_family("x86");
	run_family("arm64");
	run_family("host");
	for (i = 0; i < NR_PLATFORMS; i++) {
		sum.passed += totals[i].passed;
		sum.failed += totals[i].failed;
		sum.skipped += totals[i].skipped;
	}
	put_times(now_ms() - start);
	put_line("%d passed, %d failed, %d skipped", sum.passed, sum.failed,
		 sum.skipped);
	return sum.failed ? 1 : 0;
}

static void parse_options(int argc, char **argv, struct options *opt)
{
	int c, level = LEVEL_FULL;

	while ((c = getopt(argc, argv, "a:t:L:f:ls:i:c:g")) != -1) {
		if (c == 'a')
			only_arch = optarg;
		else if (c == 't')
			only_test = optarg;
		else if (c == 'L')
			level = find_level(optarg);
		else if (c == 'f')
			factor = atof(optarg);
		else if (c == 'l')
			opt->listing = true;
		else if (c == 's')
			opt->words = optarg;
		else if (c == 'i')
			opt->initrd = optarg;
		else if (c == 'c')
			opt->console = optarg;
		else if (c == 'g')
			opt->gdb = true;
		else
			exit(2);
	}
	if (factor <= 0)
		die("the time-out factor must be above 0");
	if (level < 0)
		die("LEVEL= is quick, full or soak");
	only_level = level;
}

int main(int argc, char **argv)
{
	struct test *list[MAX_TESTS];
	struct options opt = { 0 };
	int found = 0;
	size_t i;

	parse_options(argc, argv, &opt);
	if (opt.words)
		return interactive(&opt);
	read_table("lab/tests");
	for (i = 0; i < NR_PLATFORMS; i++)
		found += select_tests(&platforms[i], list);
	if (!found)
		die("no test of lab/tests has ARCH=%s T=%s (make list)", only_arch,
		    only_test);
	return opt.listing ? list_tests() : run_all();
}
