// SPDX-License-Identifier: GPL-2.0
/*
 * PID 1 of the machine of lab/qemu.sh: boot Linux in VMs of a VMM that knows nothing of
 * this project's files, Debian's QEMU, with the RAM of each in one guest_memfd, see
 * preload.c.  Arguments: a time-out, in seconds, and the cases to run.  Each has a line on
 * the second serial port, "ok CASE ..." or "not ok CASE: REASON ..."; all else that goes
 * there begins with "#".
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "../modules.h"
#include "report.h"

#define DIR		"/qemu/"
#define RAM_MIB		128
/* Pages that only the guest has touched, at least. */
#define GUEST_PAGES	2048

#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))
#define SHARED		(GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED)

static const struct vmm_case {
	const char *name;
	const char *machine;
	unsigned long flags;
	bool in_place;
} cases[] = {
	{ "pc-smm", "pc,smm=on", SHARED, false },
	{ "q35-smm", "q35,smm=on", SHARED, false },
	{ "huge-q35-smm", "q35,smm=on", SHARED | GUEST_MEMFD_FLAG_HUGE, false },
	{ "in-place-pc", "pc,smm=off", SHARED, true },
	{ "in-place-huge-pc", "pc,smm=off", SHARED | GUEST_MEMFD_FLAG_HUGE, true },
};

struct outcome {
	int status;
	bool up;
	bool reported;
	long wrong;
	unsigned int requests;
	struct report report;
	char failure[200];
};

static pid_t qemu;

static long long now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

static void set(const char *name, unsigned long value)
{
	char text[32];

	snprintf(text, sizeof(text), "%lu", value);
	setenv(name, text, 1);
}

static void exec_qemu(const struct vmm_case *c, int out)
{
	char ram[16], append[128];

	dup2(open("/dev/null", O_RDONLY), 0);
	dup2(out, 1);
	dup2(out, 2);
	set("GMEM_RAM", RAM_MIB << 20);
	set("GMEM_FLAGS", c->flags);
	if (c->in_place)
		set("GMEM_VM_TYPE", KVM_X86_SW_PROTECTED_VM);
	setenv("LD_LIBRARY_PATH", DIR, 1);
	setenv("LD_PRELOAD", DIR "preload.so", 1);
	snprintf(ram, sizeof(ram), "%dM", RAM_MIB);
	snprintf(append, sizeof(append),
		 "console=ttyS0 quiet kunit.autorun=0 panic=-1 hugepages=4 -- %s",
		 c->in_place ? "convert" : "");
	execl(DIR "qemu-system-x86_64", "qemu-system-x86_64", "-L", DIR, "-accel", "kvm",
	      "-M", c->machine, "-cpu", "qemu64", "-m", ram, "-nodefaults", "-no-user-config",
	      "-display", "none", "-serial", "stdio", "-no-reboot", "-kernel", DIR "bzImage",
	      "-initrd", DIR "guest.cpio", "-append", append, (char *)NULL);
	printf("cannot run QEMU: %s\n", strerror(errno));
	fflush(stdout);
	_exit(127);
}

/* Print a line of QEMU's, and note what it says. */
static void take_line(char *line, struct outcome *o)
{
	struct report *r = &o->report;
	const char *ours;
	char *cr;

	line[strcspn(line, "\n")] = '\0';
	while ((cr = strchr(line, '\r')))
		*cr = ' ';
	printf("# %s\n", line);
	if (sscanf(line, "guest: Linux %*s %ld bytes are wrong, %u requests", &o->wrong,
		   &o->requests) == 2)
		o->up = true;
	/* The guest may not have ended its line. */
	ours = strstr(line, "preload: ");
	if (!ours)
		return;
	if (sscanf(ours, REPORT_FORMAT, &r->bound, &r->bound_smm, &r->bound_twice, &r->smis,
		   &r->requests, &r->in_file, &r->mapped, &r->large) == 8)
		o->reported = true;
	if (!strncmp(ours, FAILED, strlen(FAILED)) && !o->failure[0])
		snprintf(o->failure, sizeof(o->failure), "%.150s", ours + strlen(FAILED));
}

/* Why @o is not what @c should come to; NULL: it is. */
static const char *find_fault(const struct vmm_case *c, const struct outcome *o)
{
	const struct report *r = &o->report;
	bool smm = !!strstr(c->machine, "smm=on");

	if (WIFSIGNALED(o->status) && WTERMSIG(o->status) == SIGKILL)
		return "QEMU had to be killed, the time was over";
	if (o->failure[0])
		return o->failure;
	if (!o->up)
		return "the guest does not come up";
	if (o->wrong)
		return "the guest finds wrong bytes";
	if (o->status)
		return "QEMU fails";
	if (!o->reported)
		return "RAM is no guest_memfd";
	if (!r->bound || r->in_file < r->mapped + GUEST_PAGES)
		return "the guest's pages do not come from a bound file";
	if (smm != (r->bound_smm && r->smis))
		return smm ? "no SMM" : "SMM without being asked for";
	if (smm && !strncmp(c->machine, "q35", 3) && !r->bound_twice)
		return "no range of the file has a second gpa";
	if (!!r->large != !!(c->flags & GUEST_MEMFD_FLAG_HUGE))
		return r->large ? "large pages from a file of small ones" : "no large pages";
	if (r->requests != o->requests || !r->requests == c->in_place)
		return "not all of the guest's requests were fulfilled";
	return NULL;
}

/* QEMU itself keeps SIGALRM from ending it. */
static void expire(int sig)
{
	(void)sig;
	kill(qemu, SIGKILL);
}

static void run_case(const struct vmm_case *c, int seconds)
{
	struct outcome o = { .status = -1 };
	long long start = now_ms();
	char line[1024];
	const char *why;
	FILE *out;
	int p[2];

	if (pipe2(p, O_CLOEXEC))
		return;
	fflush(stdout);
	qemu = fork();
	if (!qemu)
		exec_qemu(c, p[1]);
	close(p[1]);
	if (qemu < 0)
		return;

	alarm(seconds);
	out = fdopen(p[0], "r");
	while (out && fgets(line, sizeof(line), out))
		take_line(line, &o);
	waitpid(qemu, &o.status, 0);
	alarm(0);
	fclose(out);

	why = find_fault(c, &o);
	printf("# QEMU ended with wait status 0x%x\n", o.status);
	printf("%sok %s%s%s (%lld ms)\n", why ? "not " : "", c->name, why ? ": " : "", why ?: "",
	       now_ms() - start);
}

static void mount_one(const char *type, const char *dir)
{
	mkdir(dir, 0755);
	if (mount(type, dir, type, 0, NULL) && errno != EBUSY)
		fprintf(stderr, "mount %s: %s\n", dir, strerror(errno));
}

int main(int argc, char **argv)
{
	const char *module;
	size_t i;
	int arg;

	mount_one("devtmpfs", "/dev");
	mount_one("proc", "/proc");
	mount_one("sysfs", "/sys");
	mount_one("debugfs", "/sys/kernel/debug");
	mount_one("tmpfs", "/tmp");
	if (!freopen("/dev/ttyS1", "w", stdout))
		perror("/dev/ttyS1");
	if (have_modules() && load_modules(&module))
		printf("# loading %s failed\n", module);
	signal(SIGALRM, expire);
	for (arg = 2; arg < argc; arg++)
		for (i = 0; i < ARRAY_SIZE(cases); i++)
			if (!strcmp(cases[i].name, argv[arg]))
				run_case(&cases[i], atoi(argv[1]));
	fflush(stdout);
	tcdrain(1);
	reboot(RB_POWER_OFF);
	return 1;
}
