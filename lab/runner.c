// SPDX-License-Identifier: GPL-2.0
/*
 * The lab's runner: builds and boots platforms, runs the tests of lab/tests on
 * them, and judges.
 *
 *   runner [-a ARCH] [-t TESTS] [-f FACTOR] [-l]
 *   runner -a PLATFORM -s WORDS [-i INITRD] [-c CONSOLE] [-g]
 *
 *     -a  families or platforms, by comma (x86, arm64, host, x86-debug, ...)
 *     -t  test names, by comma; shell patterns
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
 * at the same time, one child process each.  A child drives its QEMU through
 * the verdict port (see lab/init.c).  When the machine dies, the test that ran
 * is charged and the rest goes on in a fresh one.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_TESTS	256
#define BOOT_SECONDS	120
#define STATUS_TIMEOUT	512
#define VERDICT_FD	9

struct platform {
	const char *name;	/* as printed and selected */
	const char *family;
	const char *kernel;	/* make image-KERNEL; build/KERNEL; NULL: host */
	const char *qemu;
	const char *image;	/* below build/KERNEL */
	const char *console;
	const char *cmdline;
	const char *says;	/* what the kernel log must have at boot */
	double slow;		/* time-out factor of its own */
};

#define QEMU_X86							\
	"qemu-system-x86_64 -M q35 -accel tcg,thread=single "		\
	"-cpu max,phys-bits=48 -smp 2 -m 4G"
#define QEMU_ARM64							\
	"qemu-system-aarch64 -M virt,virtualization=on,gic-version=3 "	\
	"-accel tcg,thread=single -cpu max -smp 2 -m 4G"
#define CMDLINE								\
	"panic=-1 printk.devkmsg=on kunit.autorun=0 log_buf_len=4M no_hash_pointers "

static const struct platform platforms[] = {
	{ "x86", "x86", "x86", QEMU_X86, "arch/x86/boot/bzImage",
	  "ttyS", CMDLINE "numa=fake=2", "kvm_amd", 1 },
	{ "x86-debug", "x86", "x86-debug", QEMU_X86, "arch/x86/boot/bzImage",
	  "ttyS", CMDLINE "numa=fake=2", "kvm_amd", 5 },
	{ "arm64", "arm64", "arm64", QEMU_ARM64, "arch/arm64/boot/Image",
	  "ttyAMA", CMDLINE "kvm-arm.mode=nvhe", "Hyp nVHE mode initialized",
	  1 },
	{ "arm64-protected", "arm64", "arm64", QEMU_ARM64,
	  "arch/arm64/boot/Image",
	  "ttyAMA", CMDLINE "kvm-arm.mode=protected",
	  "mode initialized successfully", 1 },
	{ "host", "host", NULL, NULL, NULL, NULL, NULL, NULL, 1 },
};

#define NR_PLATFORMS	(sizeof(platforms) / sizeof(platforms[0]))

/* A line of lab/tests */
struct test {
	char	name[64];
	char	platforms[128];
	int	seconds;
	char	args[256];
};

/* A "skip" line of lab/tests */
struct skip {
	char	platforms[128];
	char	name[64];
	char	reason[160];
};

struct totals {
	int	passed, failed, skipped;
};

/* What is known of the test that runs. */
struct outcome {
	int		plan;		/* 1..N, -1: none seen */
	int		ok, not_ok, skip;
	int		status;		/* see lab/init.c; -1: no verdict */
	long long	ms;
	char		reason[160];	/* the last SKIP reason */
	char		bad[200];	/* first bad line of the kernel log */
};

/* A booted machine. */
struct machine {
	const struct platform *p;
	pid_t	pid;
	int	port;
	long	console;	/* where this boot begins in console.log */
	size_t	len;
	char	buf[8192];
};

static struct test tests[MAX_TESTS];
static struct skip skips[MAX_TESTS];
static int nr_tests, nr_skips;
static double factor = 1;
static const char *only_arch = "", *only_test = "";
static struct totals *totals;	/* [NR_PLATFORMS], shared with the children */

static long long now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

static void die(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	fputs("lab: ", stderr);
	vfprintf(stderr, fmt, ap);
	fputc('\n', stderr);
	va_end(ap);
	exit(2);
}

/* One write(), so that lines of platforms that run together stay whole. */
static void put_line(const char *fmt, ...)
{
	char buf[4096];
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(buf, sizeof(buf) - 1, fmt, ap);
	va_end(ap);
	if (n > (int)sizeof(buf) - 2)
		n = sizeof(buf) - 2;
	buf[n++] = '\n';
	if (write(1, buf, n) != n)
		exit(2);
}

/* Is @word matched by a pattern of @list (by comma or blank)? */
static bool in_list(const char *list, const char *word)
{
	char copy[1024], *w, *save;

	snprintf(copy, sizeof(copy), "%s", list);
	for (w = strtok_r(copy, ", ", &save); w; w = strtok_r(NULL, ", ", &save))
		if (!fnmatch(w, word, 0))
			return true;
	return false;
}

/* Lines of lab/tests: "NAME PLATFORMS SECONDS [ARGS]", "skip PLATFORMS NAME REASON" */
static void read_table(const char *path)
{
	FILE *f = fopen(path, "r");
	char line[1024];
	int n = 0;

	if (!f)
		die("%s: %s", path, strerror(errno));
	while (fgets(line, sizeof(line), f)) {
		struct test *t = &tests[nr_tests];
		struct skip *s = &skips[nr_skips];

		n++;
		line[strcspn(line, "#\n")] = '\0';
		if (line[strspn(line, " \t")] == '\0')
			continue;
		if (nr_tests == MAX_TESTS || nr_skips == MAX_TESTS)
			die("%s: too many lines", path);
		if (sscanf(line, "skip %127s %63s %159[^\n]", s->platforms,
			   s->name, s->reason) == 3)
			nr_skips++;
		else if (sscanf(line, "%63s %127s %d %255[^\n]", t->name,
				t->platforms, &t->seconds, t->args) >= 3)
			nr_tests++;
		else
			die("%s:%d: not understood: %s", path, n, line);
	}
	fclose(f);
}

static bool selected(const struct platform *p, const struct test *t)
{
	if (*only_arch && !in_list(only_arch, p->name) &&
	    !in_list(only_arch, p->family))
		return false;
	if (*only_test && !in_list(only_test, t->name))
		return false;
	return in_list(t->platforms, p->name) || in_list(t->platforms, p->family);
}

static int select_tests(const struct platform *p, struct test **list)
{
	int i, n = 0;

	for (i = 0; i < nr_tests; i++)
		if (selected(p, &tests[i]))
			list[n++] = &tests[i];
	return n;
}

static const char *expected_skip(const struct platform *p, const char *name)
{
	int i;

	for (i = 0; i < nr_skips; i++)
		if (in_list(skips[i].name, name) &&
		    (in_list(skips[i].platforms, p->name) ||
		     in_list(skips[i].platforms, p->family)))
			return skips[i].reason;
	return NULL;
}

/* ---- verdicts ---- */

static void log_path(char *buf, size_t size, const struct platform *p,
		     const char *name)
{
	snprintf(buf, size, "build/logs/%s/%s.log", p->name, name);
	for (buf += strlen("build/logs/") + strlen(p->name) + 1; *buf; buf++)
		if (*buf == '/' || *buf == ':')
			*buf = '-';
}

static void count_ktap(struct outcome *o, const char *text)
{
	const char *skip = strstr(text, "# SKIP");

	if (!strncmp(text, "1..", 3))
		o->plan = atoi(text + 3);
	if (!strncmp(text, "not ok ", 7))
		o->not_ok++;
	else if (!strncmp(text, "ok ", 3) && skip)
		o->skip++;
	else if (!strncmp(text, "ok ", 3))
		o->ok++;
	if (skip)
		snprintf(o->reason, sizeof(o->reason), "%s",
			 skip + 6 + strspn(skip + 6, " "));
	else if (!strncmp(text, "1..0 # SKIP", 11))
		snprintf(o->reason, sizeof(o->reason), "%s", text + 11);
}

/* Why @o is a failure, in @buf; false when it is none. */
static bool find_fault(const struct outcome *o, char *buf, size_t size)
{
	int seen = o->ok + o->not_ok + o->skip;

	if (o->status == STATUS_TIMEOUT)
		snprintf(buf, size, "timeout %llds", (o->ms + 500) / 1000);
	else if (o->bad[0])
		snprintf(buf, size, "kernel: %s", o->bad);
	else if (o->status < 0)
		snprintf(buf, size, "%s", o->reason);
	else if (o->not_ok)
		snprintf(buf, size, "%d of %d tests", o->not_ok, seen);
	else if (o->status >= 256)
		snprintf(buf, size, "signal %d", o->status - 256);
	else if (o->status != 0 && o->status != 4)
		snprintf(buf, size, "exit %d", o->status);
	else if (o->status == 0 && o->plan > 0 && o->plan != seen)
		snprintf(buf, size, "%d of %d planned tests ran", seen, o->plan);
	else
		return false;
	return true;
}

static bool judge(const struct platform *p, const char *name, struct outcome *o)
{
	struct totals *sum = &totals[p - platforms];
	const char *why = expected_skip(p, name);
	char fault[256], log[256], counts[64] = "";
	bool skipped = o->status == 4 || (!o->ok && o->skip);

	log_path(log, sizeof(log), p, name);
	if (find_fault(o, fault, sizeof(fault))) {
		sum->failed++;
		put_line("FAIL %s %s (%s, log %s)", p->name, name, fault, log);
		return false;
	}
	if (skipped && !why) {
		sum->failed++;
		put_line("FAIL %s %s (skipped, lab/tests does not expect it: %s; log %s)",
			 p->name, name, o->reason, log);
		return false;
	}
	if (skipped) {
		sum->skipped++;
		put_line("SKIP %s %s (%s)", p->name, name, why);
		return true;
	}
	sum->passed++;
	if (o->ok)
		snprintf(counts, sizeof(counts), "%d tests, ", o->ok);
	if (o->skip)
		snprintf(counts, sizeof(counts), "%d tests, %d skipped, ", o->ok,
			 o->skip);
	put_line("PASS %s %s (%s%.1fs)", p->name, name, counts, o->ms / 1000.0);
	return true;
}

static void reset_outcome(struct outcome *o)
{
	memset(o, 0, sizeof(*o));
	o->plan = -1;
	o->status = -1;
}

/* ---- machines ---- */

/*
 * The QEMU command.  Without @words: for the runner, with the verdict port and
 * the console in a file.  With @words (for the kernel command line): on this
 * terminal; with @console the kernel's messages go to that file, and the
 * terminal is the second serial port.
 */
static void qemu_command(const struct platform *p, const char *words,
			 const char *initrd, const char *console, char *buf,
			 size_t size)
{
	char serial[512], image[256];

	if (!words)
		snprintf(serial, sizeof(serial),
			 "-chardev file,id=console,path=build/logs/%s/console.log,"
			 "append=on -serial chardev:console "
			 "-device virtio-serial-pci "
			 "-chardev socket,id=verdict,fd=%d "
			 "-device virtserialport,chardev=verdict,name=lab.verdict",
			 p->name, VERDICT_FD);
	else if (console)
		snprintf(serial, sizeof(serial), "-serial file:%s -serial stdio",
			 console);
	else
		snprintf(serial, sizeof(serial), "-serial mon:stdio");
	snprintf(image, sizeof(image), "build/%s/initramfs.cpio", p->kernel);
	snprintf(buf, size,
		 "%s -nodefaults -no-user-config -display none -no-reboot %s "
		 "-kernel build/%s/%s -initrd %s -append 'console=%s0 %s %s'",
		 p->qemu, serial, p->kernel, p->image, initrd ? initrd : image,
		 p->console, p->cmdline, words ? words : "");
}

static int boot_machine(struct machine *m, const struct platform *p)
{
	char cmd[3000], shell[3100];
	struct stat st;
	int sv[2];

	qemu_command(p, NULL, NULL, NULL, cmd, sizeof(cmd));
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv))
		return -errno;
	memset(m, 0, sizeof(*m));
	m->p = p;
	snprintf(shell, sizeof(shell), "build/logs/%s/console.log", p->name);
	m->console = stat(shell, &st) ? 0 : st.st_size;
	snprintf(shell, sizeof(shell), "exec %s >>build/logs/%s/qemu.log 2>&1",
		 cmd, p->name);
	m->pid = fork();
	if (!m->pid) {
		setpgid(0, 0);
		dup2(sv[1], VERDICT_FD);
		execl("/bin/sh", "sh", "-c", shell, NULL);
		_exit(127);
	}
	close(sv[1]);
	m->port = sv[0];
	return 0;
}

/* End the machine: nicely if it answers within ten seconds. */
static void end_machine(struct machine *m, bool nicely)
{
	int i;

	if (nicely && write(m->port, "off\n", 4) == 4)
		for (i = 0; i < 100; i++) {
			if (waitpid(m->pid, NULL, WNOHANG) == m->pid)
				goto out;
			usleep(100000);
		}
	kill(m->pid, SIGKILL);
	waitpid(m->pid, NULL, 0);
out:
	close(m->port);
}

/*
 * The next line from the machine, without its newline.  NULL: end of file or
 * @deadline (ms); *died tells which.
 */
static char *get_line(struct machine *m, char *line, size_t size,
		      long long deadline, bool *died)
{
	struct pollfd fd = { m->port, POLLIN, 0 };
	ssize_t n;
	char *nl;

	*died = false;
	while (!(nl = memchr(m->buf, '\n', m->len))) {
		long long left = deadline - now_ms();

		if (left <= 0)
			return NULL;
		if (m->len == sizeof(m->buf))
			m->len = 0;
		if (poll(&fd, 1, left) <= 0)
			continue;
		n = read(m->port, m->buf + m->len, sizeof(m->buf) - m->len);
		if (n <= 0) {
			*died = true;
			return NULL;
		}
		m->len += n;
	}
	*nl++ = '\0';
	snprintf(line, size, "%s", m->buf);
	m->len -= nl - m->buf;
	memmove(m->buf, nl, m->len);
	return line;
}

/* What the console says about a death: the first line that has a known word. */
static void find_death(const struct machine *m, char *buf, size_t size)
{
	static const char * const words[] = {
		"Kernel panic", "BUG:", "Oops", "hyp panic", "kernel BUG",
	};
	char path[128], line[1024];
	size_t i;
	FILE *f;

	snprintf(buf, size, "the machine died");
	snprintf(path, sizeof(path), "build/logs/%s/qemu.log", m->p->name);
	f = fopen(path, "r");
	if (f && fgets(line, sizeof(line), f))
		snprintf(buf, size, "%.150s", line);
	buf[strcspn(buf, "\n")] = '\0';
	if (f)
		fclose(f);
	snprintf(path, sizeof(path), "build/logs/%s/console.log", m->p->name);
	f = fopen(path, "r");
	if (f)
		fseek(f, m->console, SEEK_SET);
	while (f && fgets(line, sizeof(line), f)) {
		line[strcspn(line, "\r\n")] = '\0';
		for (i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
			if (!strstr(line, words[i]))
				continue;
			snprintf(buf, size, "the machine died: %.120s",
				 strstr(line, words[i]));
			fclose(f);
			return;
		}
	}
	if (f)
		fclose(f);
}

/* Copy the console's end to the log of a test during which the machine died. */
static void append_console(const struct platform *p, FILE *log)
{
	char path[128], buf[4096];
	size_t n;
	FILE *f;

	snprintf(path, sizeof(path), "build/logs/%s/console.log", p->name);
	f = fopen(path, "r");
	if (!f)
		return;
	fputs("---- console ----\n", log);
	fseek(f, -16384, SEEK_END);
	while ((n = fread(buf, 1, sizeof(buf), f)))
		fwrite(buf, 1, n, log);
	fclose(f);
}

/*
 * Read the machine's lines into @log and @o until "ready" (boot) or "end".
 * Returns true when it came; else @o says why not.
 */
static bool follow(struct machine *m, FILE *log, struct outcome *o,
		   const char *until, long long deadline, bool *said)
{
	char line[2048];
	bool died;

	while (get_line(m, line, sizeof(line), deadline, &died)) {
		bool kernel = !strncmp(line, "kmsg ", 5) || !strncmp(line, "bad ", 4);

		if (kernel && m->p->says && strstr(line, m->p->says))
			*said = true;
		if (!strncmp(line, "bad ", 4) && !o->bad[0])
			snprintf(o->bad, sizeof(o->bad), "%.150s", line + 4);
		if (!strncmp(line, "out ", 4)) {
			fprintf(log, "%s\n", line + 4);
			count_ktap(o, line + 4);
		} else if (kernel) {
			fprintf(log, "[kernel] %s\n", strchr(line, ' ') + 1);
		}
		if (!strncmp(line, until, strlen(until))) {
			o->status = 0;
			sscanf(line, "end %d %lld", &o->status, &o->ms);
			return true;
		}
	}
	o->status = -1;
	if (died) {
		usleep(300000);
		find_death(m, o->reason, sizeof(o->reason));
	} else {
		snprintf(o->reason, sizeof(o->reason), "no answer from the machine");
	}
	append_console(m->p, log);
	return false;
}

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

/* Boot, and judge the boot as a test: an oops there must not go unseen. */
static bool boot(struct machine *m, const struct platform *p, bool quiet)
{
	long long start = now_ms();
	bool said = false, up = false;
	struct outcome o;
	FILE *log = open_log(p, "boot");

	reset_outcome(&o);
	if (boot_machine(m, p))
		snprintf(o.reason, sizeof(o.reason), "cannot start QEMU");
	else
		up = follow(m, log, &o, "ready",
			    start + BOOT_SECONDS * 1000LL * factor * p->slow, &said);
	o.ms = now_ms() - start;
	if (up && !said) {
		o.status = -1;
		snprintf(o.reason, sizeof(o.reason), "the kernel does not say \"%s\"",
			 p->says);
	}
	fclose(log);
	if (!quiet || o.status || o.bad[0])
		judge(p, "boot", &o);
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
	bool alive, said;
	int n;

	reset_outcome(&o);
	n = snprintf(cmd, sizeof(cmd), "run %s %d %s %s\n", t->name,
		     (int)(t->seconds * scale), t->name, t->args);
	if (write(m->port, cmd, n) != n)
		fprintf(log, "cannot write to the verdict port\n");
	alive = follow(m, log, &o, "end ",
		       start + (t->seconds * scale + 30) * 1000, &said);
	if (!o.ms)
		o.ms = now_ms() - start;
	fclose(log);
	*passed = judge(p, t->name, &o);
	/* After a splat lockdep is off, and state may be broken: boot afresh. */
	return alive && !o.bad[0] && o.status != STATUS_TIMEOUT;
}

static void print_again(const struct platform *p, const char *test)
{
	char cmd[3000], words[200];

	snprintf(words, sizeof(words), "lab.run=%s", test);
	qemu_command(p, words, NULL, NULL, cmd, sizeof(cmd));
	put_line("  again: make check ARCH=%s T=%s\n  or:    %s", p->name, test, cmd);
}

static void run_platform(const struct platform *p, struct test **list, int n)
{
	bool up = false, nicely = true, first = true, passed;
	struct outcome o;
	struct machine m;
	int i, boots = 0;

	for (i = 0; i < n; i++) {
		if (!up) {
			up = boot(&m, p, !first || *only_test);
			first = false;
			if (!up && boots++ >= 1)
				break;
			if (!up) {
				end_machine(&m, false);
				i--;
				continue;
			}
		}
		up = run_test(&m, list[i], &passed);
		if (!passed)
			print_again(p, list[i]->name);
		if (!up)
			end_machine(&m, true);
	}
	for (; i < n; i++) {
		reset_outcome(&o);
		snprintf(o.reason, sizeof(o.reason), "boot");
		judge(p, list[i]->name, &o);
	}
	if (up)
		end_machine(&m, nicely);
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
		execl("/bin/sh", "sh", "-c", cmd, NULL);
		_exit(127);
	}
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

		reset_outcome(&o);
		log_path(path, sizeof(path), p, list[i]->name);
		o.status = host_command(list[i], path, list[i]->seconds * factor);
		o.ms = now_ms() - start;
		f = fopen(path, "r");
		while (f && fgets(line, sizeof(line), f))
			count_ktap(&o, line);
		if (f)
			fclose(f);
		if (!judge(p, list[i]->name, &o))
			put_line("  again: make lab-%s", list[i]->name);
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
	int i, n = select_tests(p, list);
	struct outcome o;

	if (!n)
		return 0;
	fresh_logs(p);
	if (build(p))
		return n;
	for (i = 0; i < n; i++) {
		reset_outcome(&o);
		snprintf(o.reason, sizeof(o.reason), "build");
		judge(p, list[i]->name, &o);
	}
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
	signal(SIGPIPE, SIG_IGN);
	if (p->kernel)
		run_platform(p, list, n);
	else
		run_host(p, list, n);
	exit(0);
}

/*
 * Build all platforms of a family, then let them run together.  The build of
 * the next family waits: a build beside a running test would make the test's
 * time-outs depend on it.
 */
static void run_family(const char *family)
{
	bool ready[NR_PLATFORMS] = { false };
	pid_t pid[NR_PLATFORMS];
	int status;
	size_t i;

	for (i = 0; i < NR_PLATFORMS; i++)
		if (!strcmp(platforms[i].family, family))
			ready[i] = prepare(&platforms[i]) > 0;
	for (i = 0; i < NR_PLATFORMS; i++)
		if (ready[i])
			pid[i] = start_platform(&platforms[i]);
	for (i = 0; i < NR_PLATFORMS; i++) {
		if (!ready[i] || (waitpid(pid[i], &status, 0) == pid[i] && !status))
			continue;
		totals[i].failed++;
		put_line("FAIL %s runner (wait status %d)", platforms[i].name, status);
	}
}

/* Boot the selected platform on this terminal, instead of tests. */
static int interactive(const char *words, const char *initrd,
		       const char *console, bool gdb)
{
	const struct platform *p;
	char cmd[3000];
	size_t i;

	for (i = 0; i < NR_PLATFORMS; i++)
		if (platforms[i].kernel && !strcmp(platforms[i].name, only_arch))
			break;
	if (i == NR_PLATFORMS)
		die("no such platform: %s (x86, x86-debug, arm64, arm64-protected)",
		    only_arch);
	p = &platforms[i];
	qemu_command(p, words, initrd, console, cmd, sizeof(cmd) - 8);
	if (gdb) {
		strcat(cmd, " -s -S");
		put_line("halted; in another terminal: gdb build/%s/vmlinux -ex 'target remote :1234'",
			 p->kernel);
	}
	if (!console)
		put_line("%s\n(to leave: exit, or Ctrl-A X)", cmd);
	execl("/bin/sh", "sh", "-c", cmd, NULL);
	die("cannot execute /bin/sh");
	return 2;
}

static int list_tests(void)
{
	struct test *list[MAX_TESTS];
	int i, j, n, all = 0;

	for (i = 0; i < (int)NR_PLATFORMS; i++) {
		n = select_tests(&platforms[i], list);
		for (j = 0; j < n; j++)
			printf("%-16s %-36s %4ds %s\n", platforms[i].name,
			       list[j]->name, list[j]->seconds, list[j]->args);
		all += n;
	}
	return all;
}

static int run_all(void)
{
	struct totals sum = { 0, 0, 0 };
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
	put_line("%d passed, %d failed, %d skipped", sum.passed, sum.failed,
		 sum.skipped);
	return sum.failed ? 1 : 0;
}

int main(int argc, char **argv)
{
	const char *words = NULL, *initrd = NULL, *console = NULL;
	bool listing = false, gdb = false;
	struct test *list[MAX_TESTS];
	int c, found = 0;
	size_t i;

	while ((c = getopt(argc, argv, "a:t:f:ls:i:c:g")) != -1) {
		switch (c) {
		case 'a':
			only_arch = optarg;
			break;
		case 't':
			only_test = optarg;
			break;
		case 'f':
			factor = atof(optarg);
			break;
		case 'l':
			listing = true;
			break;
		case 's':
			words = optarg;
			break;
		case 'i':
			initrd = optarg;
			break;
		case 'c':
			console = optarg;
			break;
		case 'g':
			gdb = true;
			break;
		default:
			return 2;
		}
	}
	if (factor <= 0)
		die("the time-out factor must be above 0");
	if (words)
		return interactive(words, initrd, console, gdb);
	read_table("lab/tests");
	for (i = 0; i < NR_PLATFORMS; i++)
		found += select_tests(&platforms[i], list);
	if (!found)
		die("no test of lab/tests has ARCH=%s T=%s (make list)", only_arch,
		    only_test);
	if (listing)
		return list_tests() ? 0 : 1;
	return run_all();
}
