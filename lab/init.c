// SPDX-License-Identifier: GPL-2.0
/*
 * PID 1 of a lab boot: a static program that runs tests on request.
 *
 * It has three ways of life, told by the kernel command line:
 *
 *   (nothing)         obey the runner on the verdict port (see below)
 *   lab.run=A,B       run these programs, output on the console, power off
 *   lab.demo[=secret] run the demo on /data, on a terminal of its own, power off
 *   lab.shell         a small command loop on the console
 *
 * The verdict port is a virtio-serial port named "lab.verdict", so neither the
 * kernel log nor a test's output can corrupt it.  Lines from the runner:
 *
 *   run NAME SECONDS ARGV...   run /tests/NAME (or kunit:SUITE, modules)
 *   off                        power off
 *
 * Lines to the runner:
 *
 *   ready                      once, when the machine is up
 *   out TEXT                   a line of the test's output
 *   kmsg TEXT                  a line of the kernel log
 *   bad TEXT                   a line of the kernel log that must not be there
 *   end STATUS MS              STATUS: exit code, 256 + signal, or 512 for a
 *                              time-out; MS: wall time
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "modules.h"

#define MAX_ARGS	32
#define STATUS_TIMEOUT	512
#define KUNIT_DIR	"/sys/kernel/debug/kunit"

/* Collects bytes until a line is whole. */
struct line {
	size_t	len;
	char	buf[1024];
};

static int port = -1;
static int kmsg = -1;

/*
 * What a healthy kernel never says, but for the stack it dumps when memory runs
 * out, which fault injection and control groups make it do.
 */
static const char * const bad_words[] = {
	"WARNING:", "BUG:", "Oops", "kernel BUG", "Call Trace:", "Call trace:",
	"RIP:", "KASAN:", "UBSAN:", "possible circular locking",
	"possible recursive locking", "inconsistent lock state",
	"possible irq lock inversion", "suspicious RCU usage",
	"sleeping function called", "unreferenced object", "rcu: INFO:",
	"detected stalls", "soft lockup", "hard LOCKUP", "blocked for more than",
	"Bad page", "list_add corruption", "list_del corruption",
	"Kernel panic", "hyp panic", "hyp BUG", "refcount_t:", "bad pmd",
	"Bad rss-counter", "held lock freed", "lock held when returning",
	"turning off the locking correctness validator",
};

static void say(const char *fmt, ...)
{
	char buf[1400];
	va_list ap;
	int n, done = 0;

	va_start(ap, fmt);
	n = vsnprintf(buf, sizeof(buf) - 1, fmt, ap);
	va_end(ap);
	if (n > (int)sizeof(buf) - 2)
		n = sizeof(buf) - 2;
	buf[n++] = '\n';

	while (done < n) {
		ssize_t r = write(port < 0 ? 1 : port, buf + done, n - done);

		if (r < 0 && errno != EINTR && errno != EAGAIN)
			return;
		if (r > 0)
			done += r;
	}
}

static long long now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

static int write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CREAT, 0644);
	ssize_t r;

	if (fd < 0)
		return -errno;
	r = write(fd, text, strlen(text));
	r = r < 0 ? -errno : 0;
	close(fd);
	return r;
}

static void mount_one(const char *type, const char *dir)
{
	mkdir(dir, 0755);
	if (mount(type, dir, type, 0, NULL) && errno != EBUSY)
		fprintf(stderr, "lab: mount %s: %s\n", dir, strerror(errno));
}

static void mount_all(void)
{
	mount_one("devtmpfs", "/dev");
	mount_one("proc", "/proc");
	mount_one("sysfs", "/sys");
	mount_one("debugfs", "/sys/kernel/debug");
	mount_one("tracefs", "/sys/kernel/tracing");
	mount_one("cgroup2", "/sys/fs/cgroup");
	mount_one("tmpfs", "/tmp");
	mount_one("tmpfs", "/dev/shm");
	mount_one("devpts", "/dev/pts");
	symlink("/proc/self/fd", "/dev/fd");
}

static void power_off(void)
{
	sync();
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}

/* Pass whole lines of @data on; keep the rest for the next call. */
static void take_output(struct line *l, const char *data, size_t n)
{
	size_t i;

	for (i = 0; i < n; i++) {
		if (data[i] != '\n' && l->len < sizeof(l->buf) - 1) {
			l->buf[l->len++] = data[i] == '\r' ? ' ' : data[i];
			continue;
		}
		l->buf[l->len] = '\0';
		say("out %s", l->buf);
		l->len = 0;
	}
}

/*
 * Is @text in the report of a data race?  @ours: does it name a function of guest_memfd
 * that is the innermost one of either stack, or its caller?  The rest of the kernel has
 * races of its own, and guest_memfd calls much of it.  One is by design: x86's faults peek
 * at the range that is being invalidated, and look again with mmu_lock held.
 */
static bool in_race(const char *text, bool *ours)
{
	static bool race, by_design;
	static int depth;

	if (strstr(text, "BUG: KCSAN:")) {
		race = true;
		by_design = strstr(text, "kvm_mmu_invalidate_") &&
			    strstr(text, "kvm_mmu_faultin_pfn");
	} else if (!strncmp(text, "=====", 5)) {
		race = false;
	}
	depth = strstr(text, " bytes by ") ? 0 : depth + 1;
	*ours = !by_design && (depth == 1 || depth == 2) &&
		(strstr(text, "gmem_") || strstr(text, "mem_attributes"));
	return race;
}

static bool is_bad(const char *text)
{
	static bool out_of_memory;
	bool ours;
	size_t i;

	if (in_race(text, &ours))
		return ours;
	if (strstr(text, "vmalloc error:") || strstr(text, "page allocation failure:") ||
	    strstr(text, "invoked oom-killer:"))
		out_of_memory = true;
	if (strstr(text, "</TASK>"))
		out_of_memory = false;
	if (out_of_memory && (strstr(text, "Call Trace:") || strstr(text, "RIP:")))
		return false;

	for (i = 0; i < sizeof(bad_words) / sizeof(bad_words[0]); i++)
		if (strstr(text, bad_words[i]))
			return true;
	return false;
}

/* Pass the kernel log's new records on: "prio,seq,time,flags;text\n..." */
static void drain_kmsg(void)
{
	char buf[8192], *text, *end;
	ssize_t n;

	for (;;) {
		n = read(kmsg, buf, sizeof(buf) - 1);
		if (n < 0 && errno == EPIPE) {
			say("kmsg (records were overwritten before they were read)");
			continue;
		}
		if (n <= 0)
			return;
		buf[n] = '\0';
		text = strchr(buf, ';');
		text = text ? text + 1 : buf;
		end = strchr(text, '\n');
		if (end)
			*end = '\0';
		say("%s %s", is_bad(text) ? "bad" : "kmsg", text);
	}
}

static void exec_test(char **argv)
{
	char path[256];
	struct rlimit core = { 0, 0 };

	setpgid(0, 0);
	setrlimit(RLIMIT_CORE, &core);
	/* NAME.VARIANT is NAME with the arguments of lab/tests. */
	snprintf(path, sizeof(path), "/tests/%.*s", (int)strcspn(argv[0], "."), argv[0]);
	if (argv[0][0] == '/' || access(path, X_OK))
		snprintf(path, sizeof(path), "%s", argv[0]);
	/* Tests open their own program by argv[0]. */
	chdir("/tests");
	argv[0] = path;
	execv(path, argv);
	printf("cannot execute %s: %s\n", path, strerror(errno));
	fflush(stdout);
	_exit(127);
}

static pid_t start_test(char **argv, int *out)
{
	int p[2];
	pid_t pid;

	if (pipe2(p, O_CLOEXEC))
		return -1;
	fflush(NULL);
	pid = fork();
	if (!pid) {
		dup2(open("/dev/null", O_RDONLY), 0);
		dup2(p[1], 1);
		dup2(p[1], 2);
		exec_test(argv);
	}
	close(p[1]);
	*out = p[0];
	return pid;
}

/*
 * Wait for @pid, passing on output and kernel log, until @deadline (ms).
 * Returns the wait status, or -1 when the time is over.
 */
static int watch_test(pid_t pid, int out, long long deadline)
{
	struct pollfd fds[2] = { { out, POLLIN, 0 }, { kmsg, POLLIN, 0 } };
	struct line l = { 0 };
	bool exited = false;
	int status = -1;
	char buf[4096];
	ssize_t n;

	while (now_ms() < deadline) {
		poll(fds, 2, exited ? 0 : 50);
		drain_kmsg();
		n = fds[0].revents ? read(out, buf, sizeof(buf)) : 0;
		if (n > 0) {
			take_output(&l, buf, n);
			continue;
		}
		if (fds[0].revents)
			fds[0].fd = -1;
		if (exited)
			break;
		exited = waitpid(pid, &status, WNOHANG) == pid;
	}
	if (l.len)
		take_output(&l, "\n", 1);
	return exited ? status : -1;
}

static int run_program(char **argv, long long deadline)
{
	int out, status;
	pid_t pid = start_test(argv, &out);

	if (pid < 0)
		return 127;
	status = watch_test(pid, out, deadline);
	/* As PID 1: everybody else, also those that left the group. */
	kill(-1, SIGKILL);
	while (waitpid(-1, NULL, 0) > 0)
		;
	close(out);
	if (status < 0)
		return STATUS_TIMEOUT;
	return WIFSIGNALED(status) ? 256 + WTERMSIG(status) : WEXITSTATUS(status);
}

/*
 * Set a module's parameter, given as MODULE.NAME=VALUE, or one of the kernel, given as
 * sysctl.NAME=VALUE, and tell in @old what it was.
 */
static int set_parameter(const char *arg, char *old, size_t size)
{
	char module[64], name[64], value[64], path[256];
	FILE *f;

	if (sscanf(arg, "%63[^.].%63[^=]=%63s", module, name, value) != 3)
		return -EINVAL;

	if (!strcmp(module, "sysctl"))
		snprintf(path, sizeof(path), "/proc/sys/kernel/%s", name);
	else
		snprintf(path, sizeof(path), "/sys/module/%s/parameters/%s", module, name);
	f = fopen(path, "r");
	if (!f)
		return -errno;
	snprintf(old, size, "%s.%s=", module, name);
	if (!fgets(old + strlen(old), size - strlen(old), f))
		old[0] = '\0';
	fclose(f);
	return write_file(path, value);
}

/*
 * Run a KUnit suite and pass its results on.  Its cases are indented by four
 * (its own line, which sums them up, is not): undo that, so that they count.
 */
static int run_suite(const char *suite)
{
	char path[256], buf[1024];
	int cases = 0;
	FILE *f;

	snprintf(path, sizeof(path), KUNIT_DIR "/%s/run", suite);
	if (write_file(path, "1")) {
		say("out no such KUnit suite in this kernel: %s", suite);
		return 1;
	}
	snprintf(path, sizeof(path), KUNIT_DIR "/%s/results", suite);
	f = fopen(path, "r");
	if (!f)
		return 1;
	while (fgets(buf, sizeof(buf), f)) {
		buf[strcspn(buf, "\n")] = '\0';
		if (!strncmp(buf, "    ", 4))
			say("out %s", buf + 4);
		else
			say("out # %s", buf);
		cases += !strncmp(buf, "    ok ", 7) || !strncmp(buf, "    not ok ", 11);
	}
	fclose(f);
	if (!cases)
		say("out no case of this suite ran");
	return cases ? 0 : 1;
}

/*
 * "kunit:SUITE", or "kunit:SUITE.VARIANT" for the same suite again.  Arguments are
 * parameters, see set_parameter(), which have these values while it runs.
 */
static int run_kunit(char **argv)
{
	char suite[64], old[MAX_ARGS][256], last[256];
	int n, status = 1;

	snprintf(suite, sizeof(suite), "%s", argv[0] + 6);
	suite[strcspn(suite, ".")] = '\0';

	for (n = 0; argv[n + 1]; n++) {
		if (set_parameter(argv[n + 1], old[n], sizeof(old[n])))
			break;
	}
	if (argv[n + 1])
		say("out no such parameter in this kernel: %s", argv[n + 1]);
	else
		status = run_suite(suite);

	while (n--)
		set_parameter(old[n], last, sizeof(last));
	return status;
}

/*
 * Unload KVM, which fails if a test has left a reference behind, and load it anew:
 * by then its caches, its mount and its files in debugfs must be gone.
 */
static int run_modules(void)
{
	const char *name = "", *what = "unloading";
	int err;

	if (!have_modules()) {
		say("out ok 1 # SKIP KVM is built in");
		return 4;
	}
	err = unload_modules(&name);
	if (!err && !access("/dev/kvm", F_OK)) {
		say("out not ok 1 /dev/kvm is there without KVM");
		return 1;
	}
	if (!err) {
		what = "loading";
		err = load_modules(&name);
	}
	if (err)
		say("out not ok 1 %s %s: %s", what, name, strerror(-err));
	else
		say("out ok 1 KVM can be unloaded and loaded");
	return !!err;
}

/*
 * A mark in the kernel log, for who reads the console.  It also completes a
 * record that somebody left without its newline: only then can it be read.
 */
static void mark(const char *what, const char *name)
{
	char text[128];

	snprintf(text, sizeof(text), "lab: %s %s\n", what, name);
	if (write_file("/dev/kmsg", text))
		perror("/dev/kmsg");
}

static void run_test(char **argv, int seconds)
{
	long long start = now_ms();
	int status;

	drain_kmsg();
	mark("run", argv[0]);
	if (!strncmp(argv[0], "kunit:", 6))
		status = run_kunit(argv);
	else if (!strcmp(argv[0], "modules"))
		status = run_modules();
	else
		status = run_program(argv, start + seconds * 1000LL);
	mark("end", argv[0]);
	drain_kmsg();
	say("end %d %lld", status, now_ms() - start);
}

static int split(char *text, char **argv)
{
	int n = 0;

	for (text = strtok(text, " \t\n"); text && n < MAX_ARGS - 1;
	     text = strtok(NULL, " \t\n"))
		argv[n++] = text;
	argv[n] = NULL;
	return n;
}

/* The verdict port appears as /dev/vportNpM, its name in sysfs. */
static int open_port(void)
{
	char path[512], name[64];
	struct dirent *d;
	DIR *dir = opendir("/sys/class/virtio-ports");
	int fd = -1;
	FILE *f;

	while (dir && fd < 0 && (d = readdir(dir))) {
		snprintf(path, sizeof(path), "/sys/class/virtio-ports/%s/name",
			 d->d_name);
		f = d->d_name[0] == '.' ? NULL : fopen(path, "r");
		if (!f)
			continue;
		if (fgets(name, sizeof(name), f) &&
		    !strncmp(name, "lab.verdict", 11)) {
			snprintf(path, sizeof(path), "/dev/%s", d->d_name);
			fd = open(path, O_RDWR | O_CLOEXEC);
		}
		fclose(f);
	}
	if (dir)
		closedir(dir);
	return fd;
}

static void obey(void)
{
	char buf[1024], *argv[MAX_ARGS];
	FILE *in = fdopen(dup(port), "r");

	drain_kmsg();
	say("ready");
	while (in && fgets(buf, sizeof(buf), in)) {
		int argc = split(buf, argv);

		if (argc >= 4 && !strcmp(argv[0], "run"))
			run_test(argv + 3, atoi(argv[2]));
		else if (argc && !strcmp(argv[0], "off"))
			break;
	}
}

static void do_ls(const char *path)
{
	struct dirent *d;
	DIR *dir = opendir(path);

	while (dir && (d = readdir(dir)))
		printf("%s%s\n", d->d_name, d->d_type == DT_DIR ? "/" : "");
	if (dir)
		closedir(dir);
	else
		perror(path);
}

static void do_cat(const char *path)
{
	char buf[4096];
	int fd = open(path, O_RDONLY | O_NONBLOCK);
	ssize_t n;

	while (fd >= 0 && (n = read(fd, buf, sizeof(buf))) > 0)
		fwrite(buf, 1, n, stdout);
	if (fd < 0)
		perror(path);
	else
		close(fd);
}

/* echo WORDS... > FILE: how one sets a knob in sysfs, debugfs, tracefs. */
static void do_echo(int argc, char **argv)
{
	char text[1024] = "";
	int i, err;

	for (i = 1; i < argc && strcmp(argv[i], ">"); i++) {
		strncat(text, argv[i], sizeof(text) - strlen(text) - 2);
		strcat(text, i + 1 < argc && strcmp(argv[i + 1], ">") ? " " : "\n");
	}
	if (i + 1 >= argc) {
		fputs(text, stdout);
		return;
	}
	err = write_file(argv[i + 1], text);
	if (err)
		printf("%s: %s\n", argv[i + 1], strerror(-err));
}

static void run_on_console(char **argv)
{
	pid_t pid;
	int status;

	fflush(NULL);
	pid = fork();
	if (!pid)
		exec_test(argv);
	waitpid(pid, &status, 0);
	if (!WIFEXITED(status) || WEXITSTATUS(status))
		printf("[%s %d]\n", WIFEXITED(status) ? "exit" : "signal",
		       WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
}

static void shell(void)
{
	char buf[1024], *argv[MAX_ARGS];
	int argc;

	printf("\nls, cat, echo ... > FILE, dmesg, exit, or a program of /tests:\n");
	do_ls("/tests");
	for (;;) {
		printf("lab# ");
		fflush(stdout);
		if (!fgets(buf, sizeof(buf), stdin))
			return;
		argc = split(buf, argv);
		if (!argc)
			continue;
		if (!strcmp(argv[0], "exit"))
			return;
		if (!strcmp(argv[0], "ls"))
			do_ls(argc > 1 ? argv[1] : "/");
		else if (!strcmp(argv[0], "cat") && argc > 1)
			do_cat(argv[1]);
		else if (!strcmp(argv[0], "dmesg"))
			drain_kmsg();
		else if (!strcmp(argv[0], "echo"))
			do_echo(argc, argv);
		else
			run_on_console(argv);
	}
}

/* Arguments of test @name in lab/tests, of the first line for it: into @line. */
static void table_args(const char *name, char *line, size_t size, char **argv, int max)
{
	FILE *f = fopen("/tests/table", "r");
	char *word, *save;
	int n = 0;

	argv[0] = (char *)name;
	argv[1] = NULL;
	while (f && fgets(line, size, f)) {
		word = strtok_r(line, " \t\n", &save);
		if (!word || strcmp(word, name))
			continue;
		/* Name, platforms and seconds, then the arguments. */
		for (; word && n < max + 2; word = strtok_r(NULL, " \t\n", &save))
			if (n++ > 2)
				argv[n - 3] = word;
		argv[n > 3 ? n - 2 : 1] = NULL;
		break;
	}
	if (f)
		fclose(f);
}

/* The tests of lab.run=A,B, as lab/tests has them: for the line that the runner prints. */
static void run_list(char *list)
{
	char line[1024], *argv[20], *save;

	for (list = strtok_r(list, ",\n ", &save); list; list = strtok_r(NULL, ",\n ", &save)) {
		table_args(list, line, sizeof(line), argv, 18);
		run_test(argv, 3600);
	}
}

/* @secret: the one of memory that the host cannot read. */
static void demo(bool secret)
{
	char *gmem[] = { secret ? "/secret_demo" : "/gmem_demo", "/data", NULL };
	static char *pkvm[] = {
		"/pkvm/vmm", "--kernel", "/pkvm/Image", "--initrd", "/pkvm/guest.cpio",
		"--disk", "/data", "--append", "kunit.autorun=0", NULL,
	};
	char **argv = access(pkvm[0], X_OK) ? gmem : pkvm;
	char text[32];
	int status;
	pid_t pid;

	/* The kernel has the first serial port for itself. */
	close(0);
	if (open("/dev/ttyS1", O_RDWR))
		open("/dev/hvc0", O_RDWR);
	dup2(0, 1);
	dup2(0, 2);
	pid = fork();
	if (!pid)
		exec_test(argv);
	waitpid(pid, &status, 0);
	tcdrain(1);
	snprintf(text, sizeof(text), "status %d", status);
	mark("demo", text);
}

int main(void)
{
	static char cmdline[4096];
	const char *module;
	char *list;
	int fd, err;

	mount_all();
	fd = open("/proc/cmdline", O_RDONLY);
	if (fd < 0 || read(fd, cmdline, sizeof(cmdline) - 1) < 0)
		printf("lab: no /proc/cmdline\n");
	close(fd);
	kmsg = open("/dev/kmsg", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	setenv("PATH", "/tests", 1);
	setenv("HOME", "/tmp", 1);
	err = have_modules() ? load_modules(&module) : 0;
	if (err)
		printf("lab: loading %s: %s\n", module, strerror(-err));

	list = strstr(cmdline, "lab.run=");
	if (list)
		run_list(strtok(list + 8, " \n"));
	else if (strstr(cmdline, "lab.demo"))
		demo(strstr(cmdline, "lab.demo=secret"));
	else if (strstr(cmdline, "lab.shell"))
		shell();
	else if ((port = open_port()) >= 0)
		obey();
	else
		printf("lab: no verdict port\n");
	power_off();
	return 0;
}
