// SPDX-License-Identifier: GPL-2.0
/*
 * The benchmark: boots our kernel and the base in the same emulated machine, one
 * after the other, runs the same program on both, and compares.
 *
 *   bench [-m MACHINE] [-q] [-o GROUPS] [-k KERNELS] [-a ARGUMENTS] [-b IMAGE]
 *         [-n IMAGE] [-i INITRD]
 *
 *     -m  x86 (the default), or arm64: protected VMs, there is no -q or -o for it
 *     -q  quick: what takes long on the base is measured on less, and multiplied
 *     -o  only these groups of operations, by comma (see the program's -h)
 *     -k  only these kernels, by comma: base, ours
 *     -a  more arguments for the program
 *     -b  another kernel image for the base
 *     -n  another one for ours
 *     -i  another initramfs
 *
 * The machine's clock counts instructions (-icount), so the figures are the
 * same at every run, whatever else the host does.  It is started at the top of
 * the project, by make; PID 1 and its protocol are the lab's (lab/init.c), the
 * lines of the program are told in guest_memfd_bench.c of the selftests.
 *
 * Prints a table, and what has become of the targets; the same and more goes to
 * build/bench/MACHINE.json, and a chart of ratios to build/bench/MACHINE.svg.  A
 * complete run without options but -m also writes the project's page of figures.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"
#include "port.h"

#define LOGS		"build/logs/bench"
#define OUT		"build/bench"

/* The longest call of the base is over in two minutes on a slow host. */
#define SILENCE_MS	(30 * 60 * 1000LL)

/* In the machine's time, hence in instructions: never reached. */
#define PROGRAM_SECONDS	1000000

#define CMDLINE								\
	"panic=-1 printk.devkmsg=on kunit.autorun=0 no_hash_pointers "

/* What is the same for both kernels. */
static const struct setting {
	const char *name;
	const char *program;
	const char *qemu;
	const char *cmdline;
	const char *image;	/* below build/NAME and build/base/NAME */
	const char *page, *title, *make, *chart;	/* the page of figures */
} settings[] = {
	{ "x86", "guest_memfd_bench",
	  "qemu-system-x86_64 -M q35 -accel tcg -icount shift=0,sleep=off "
	  "-cpu max,phys-bits=48 -smp 1 -m 6G",
	  CMDLINE "console=ttyS0", "arch/x86/boot/bzImage",
	  "BENCH.md", "What guest_memfd costs, on x86", "make bench", "lab/bench.svg" },
	{ "arm64", "guest_memfd_pkvm_bench",
	  "qemu-system-aarch64 -M virt,virtualization=on,gic-version=3 -accel tcg "
	  "-icount shift=0,sleep=off -cpu max -smp 1 -m 4G",
	  CMDLINE "console=ttyAMA0 kvm-arm.mode=protected", "arch/arm64/boot/Image",
	  "BENCH-arm64.md", "What guest_memfd costs, in protected VMs of arm64",
	  "make bench ARCH=arm64", NULL },
};
static const struct setting *setting = &settings[0];

struct kernel kernels[NR_KERNELS] = {
	{ .name = "base", .dir = "build/base", .wanted = true },
	{ .name = "ours", .dir = "build", .wanted = true },
};

struct row rows[MAX_ROWS];
int nr_rows;
static const char *initrd;
static char arguments[256];
static bool is_partial;		/* or of other images */

/* Instructions that zero a page, as the program found. */
unsigned long long zero_page;

/* ---- The machine ---- */

struct machine {
	struct kernel *k;
	pid_t	pid;
	struct port port;
	FILE	*log;
	long long start;
};

static void boot(struct machine *m, struct kernel *k, const char *image, const char *initramfs)
{
	char cmd[2048];
	int sv[2];

	*m = (struct machine) { .k = k, .start = now_ms() };
	snprintf(cmd, sizeof(cmd), LOGS "/%s.log", k->name);
	m->log = fopen(cmd, "w");
	if (!m->log || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv))
		die("%s: %s", cmd, strerror(errno));
	snprintf(cmd, sizeof(cmd),
		 "exec %s -nodefaults -no-user-config -display none -no-reboot "
		 "-serial file:" LOGS "/%s-console.log -device virtio-serial-pci "
		 "-chardev socket,id=verdict,fd=%d "
		 "-device virtserialport,chardev=verdict,name=lab.verdict "
		 "-kernel %s -initrd %s -append '%s' >" LOGS "/%s-qemu.log 2>&1",
		 setting->qemu, k->name, VERDICT_FD, image, initramfs, setting->cmdline,
		 k->name);
	fflush(NULL);
	m->pid = fork();
	if (!m->pid) {
		/* Nobody else would end it when the driver is killed. */
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		dup2(sv[1], VERDICT_FD);
		execl("/bin/sh", "sh", "-c", cmd, NULL);
		_exit(127);
	}
	close(sv[1]);
	m->port.fd = sv[0];
}

static void end(struct machine *m)
{
	kill(m->pid, SIGKILL);
	waitpid(m->pid, NULL, 0);
	close(m->port.fd);
	fclose(m->log);
	m->k->seconds = (now_ms() - m->start) / 1000;
}

static void fail(struct machine *m, const char *fmt, ...)
{
	va_list ap;

	/* The first reason is the one that explains. */
	if (m->k->failed)
		return;
	m->k->failed = true;
	va_start(ap, fmt);
	vsnprintf(m->k->why, sizeof(m->k->why), fmt, ap);
	va_end(ap);
}

/* The next line, or NULL when the machine is dead or silent. */
static char *get_line(struct machine *m, char *line, size_t size)
{
	bool died;

	if (port_line(&m->port, line, size, now_ms() + SILENCE_MS, &died))
		return line;
	if (died)
		fail(m, "the machine died");
	else
		fail(m, "silent for %lld minutes", SILENCE_MS / 60000);
	return NULL;
}

/* ---- What the program says ---- */

struct row *find_row(const char *id)
{
	int i;

	for (i = 0; i < nr_rows; i++)
		if (!strcmp(rows[i].id, id))
			return &rows[i];
	return NULL;
}

static void take_row(struct machine *m, const char *text)
{
	struct row r = { .id = "" }, *old;
	struct figure f = { .there = true };

	if (sscanf(text, "row\t%63[^\t]\t%llu\t%15[^\t]\t%llu\t%llu\t%llu\t%llu\t%llu\t%63[^\t]\t%127[^\n]",
		   r.id, &f.value, r.unit, &f.factor, &f.min, &f.max, &f.samples,
		   &f.zeroed, r.against, r.label) != 10) {
		fail(m, "not understood: %.100s", text);
		return;
	}
	old = find_row(r.id);
	if (!old) {
		if (nr_rows == MAX_ROWS)
			die("more than %d rows", MAX_ROWS);
		old = &rows[nr_rows++];
		*old = r;
		snprintf(old->group, sizeof(old->group), "%s", m->k->group);
	}
	old->fig[m->k - kernels] = f;
	m->k->nr_rows++;
	if (!strcmp(r.id, "zero-page"))
		zero_page = f.value;
}

static void take_info(struct kernel *k, const char *text)
{
	sscanf(text, "info\tkernel\t%127[^\n]", k->release);
	sscanf(text, "info\tclock\t%127[^\n]", k->clock);
	sscanf(text, "group\t%95[^\n]", k->group);
	sscanf(text, "info\tunit\t%15[^\n]", k->unit);
}

/* One line that is drawn again; a line each where that cannot be done. */
static void show(const struct machine *m, const char *what)
{
	printf(isatty(1) ? "\r\033[K%s: %lld s, %d rows: %s" : "%s: %lld s, %d rows: %s\n",
	       m->k->name, (now_ms() - m->start) / 1000, m->k->nr_rows, what);
	fflush(stdout);
}

/* Until @until.  Everything goes to the log. */
static bool follow(struct machine *m, const char *until)
{
	char line[2048];

	while (get_line(m, line, sizeof(line))) {
		const char *text = !strncmp(line, "out ", 4) ? line + 4 : "";

		fprintf(m->log, "%s\n", *text ? text : line);
		fflush(m->log);
		if (!strncmp(line, "bad ", 4))
			fail(m, "kernel: %.150s", line + 4);
		if (!strncmp(text, "at\t", 3))
			show(m, text + 3);
		if (!strncmp(text, "row\t", 4))
			take_row(m, text);
		if (!strncmp(text, "info\t", 5) || !strncmp(text, "group\t", 6))
			take_info(m->k, text);
		if (strncmp(line, until, strlen(until)))
			continue;
		if (!strncmp(line, "end ", 4) && atoi(line + 4))
			fail(m, "the program failed (status %d)", atoi(line + 4));
		return true;
	}
	return false;
}

static void run(struct kernel *k)
{
	char image[256], initramfs[256], cmd[512];
	struct machine m;
	int n;

	snprintf(image, sizeof(image), "%s/%s/%s", k->dir, setting->name, setting->image);
	snprintf(initramfs, sizeof(initramfs), "%s/%s/initramfs.cpio", k->dir, setting->name);
	if (k->image)
		snprintf(image, sizeof(image), "%s", k->image);
	if (initrd)
		snprintf(initramfs, sizeof(initramfs), "%s", initrd);
	if (access(image, R_OK) || access(initramfs, R_OK))
		die("%s or %s: %s", image, initramfs, strerror(errno));
	boot(&m, k, image, initramfs);
	show(&m, "booting");
	n = snprintf(cmd, sizeof(cmd), "run %s %d %s %s\n", setting->program,
		     PROGRAM_SECONDS, setting->program, arguments);
	if (follow(&m, "ready") && write(m.port.fd, cmd, n) == n)
		follow(&m, "end ");
	end(&m);
	if (!k->failed && strcmp(k->unit, "insn"))
		fail(&m, "the machine's clock does not count instructions: %s", k->clock);
	if (isatty(1))
		printf("\r\033[K");
	if (k->failed)
		printf("%s: FAILED: %s; log %s/%s.log\n", k->name, k->why, LOGS, k->name);
	else
		printf("%s: %d rows in %ld s\n", k->name, k->nr_rows, k->seconds);
}

/* ---- The command line ---- */

static void add_argument(const char *option, const char *value)
{
	size_t len = strlen(arguments);

	snprintf(arguments + len, sizeof(arguments) - len, "%s%s%s%s", len ? " " : "",
		 option, *option ? " " : "", value);
}

static void want_kernels(const char *list)
{
	int i;

	for (i = 0; i < NR_KERNELS; i++)
		kernels[i].wanted = strstr(list, kernels[i].name);
}

static bool set_machine(const char *name)
{
	size_t i;

	for (i = 0; i < sizeof(settings) / sizeof(*settings); i++) {
		if (strcmp(settings[i].name, name))
			continue;
		setting = &settings[i];
		return true;
	}
	fprintf(stderr, "bench: no such machine: %s (x86, arm64)\n", name);
	return false;
}

static bool set_option(int c)
{
	is_partial |= c != 'm';
	switch (c) {
	case 'm':
		return set_machine(optarg);
	case 'q':
		add_argument("-b", "3000");
		add_argument("-m", "64M");
		add_argument("-g", "1G");
		return true;
	case 'o':
		add_argument("-o", optarg);
		return true;
	case 'a':
		add_argument("", optarg);
		return true;
	case 'k':
		want_kernels(optarg);
		return true;
	case 'b':
		kernels[BASE].image = optarg;
		return true;
	case 'n':
		kernels[OURS].image = optarg;
		return true;
	case 'i':
		initrd = optarg;
		return true;
	}
	return false;
}

int main(int argc, char **argv)
{
	int c, i, bad = 0;
	char json[64], svg[64];

	while ((c = getopt(argc, argv, "m:qo:a:k:b:n:i:")) != -1)
		if (!set_option(c))
			return 2;
	if (system("mkdir -p " LOGS " " OUT))
		die("cannot make " LOGS " and " OUT);
	signal(SIGPIPE, SIG_IGN);
	/* Ours first: it has all rows, and gives their order. */
	for (i = NR_KERNELS - 1; i >= 0; i--) {
		if (!kernels[i].wanted)
			continue;
		run(&kernels[i]);
		bad |= kernels[i].failed;
	}
	printf("\n");
	print_table(stdout);
	printf("\n");
	print_targets(stdout);
	printf("\n");
	snprintf(json, sizeof(json), OUT "/%s.json", setting->name);
	write_json(json, setting->qemu, arguments);
	snprintf(svg, sizeof(svg), OUT "/%s.svg", setting->name);
	draw_chart(svg);
	printf("%s has all figures, %s the ratios\n", json, svg);
	if (bad || is_partial)
		return bad;
	if (setting->chart)
		draw_chart(setting->chart);
	write_page(setting->page, setting->title, setting->make, setting->qemu, setting->chart);
	printf("%s is of this run\n", setting->page);
	return 0;
}
