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
#include <unistd.h>

#include "bench.h"
#include "machine.h"

#define LOGS		"build/logs/bench"
#define OUT		"build/bench"

/* The longest call of the base is over in two minutes on a slow host. */
#define SILENCE_MS	(30 * 60 * 1000LL)

/* In the machine's time, hence in instructions: never reached. */
#define PROGRAM_SECONDS	1000000

#define CMDLINE								\
	"panic=-1 printk.devkmsg=on kunit.autorun=0 no_hash_pointers"

/* What is the same for both kernels, and the page of figures. */
static const struct setting {
	const char *program;
	struct platform p;
	const char *page, *title, *make, *chart;
} settings[] = {
	{ "guest_memfd_bench",
	  { .kernel = "x86", .image = "arch/x86/boot/bzImage", .console = "ttyS",
	    .qemu = "qemu-system-x86_64 -M q35 -accel tcg -icount shift=0,sleep=off "
		    "-cpu max,phys-bits=48 -smp 1 -m 6G",
	    .cmdline = CMDLINE },
	  "BENCH.md", "What guest_memfd costs, on x86", "make bench", "lab/bench.svg" },
	{ "guest_memfd_pkvm_bench",
	  { .kernel = "arm64", .image = "arch/arm64/boot/Image", .console = "ttyAMA",
	    .qemu = "qemu-system-aarch64 -M virt,virtualization=on,gic-version=3 -accel tcg "
		    "-icount shift=0,sleep=off -cpu max -smp 1 -m 4G",
	    .cmdline = CMDLINE " kvm-arm.mode=protected" },
	  "BENCH-arm64.md", "What guest_memfd costs, in protected VMs of arm64",
	  "make bench ARCH=arm64", NULL },
};
static const struct setting *setting = &settings[0];

static const char *initrd;
static char arguments[256];
static bool is_partial;		/* or of other images */

struct run {
	struct kernel *k;
	struct machine m;
	FILE	*log;
	long long start;
};

static void fail(struct run *r, const char *fmt, ...)
{
	va_list ap;

	/* The first reason is the one that explains. */
	if (r->k->failed)
		return;
	r->k->failed = true;
	va_start(ap, fmt);
	vsnprintf(r->k->why, sizeof(r->k->why), fmt, ap);
	va_end(ap);
}

/* ---- What the program says ---- */

static void take_row(struct run *run, const char *text)
{
	struct row r = { .id = "" }, *old;
	struct figure f = { .there = true };

	if (sscanf(text, "row\t%63[^\t]\t%llu\t%15[^\t]\t%llu\t%llu\t%llu\t%llu\t%llu\t%63[^\t]\t%127[^\n]",
		   r.id, &f.value, r.unit, &f.factor, &f.min, &f.max, &f.samples,
		   &f.zeroed, r.against, r.label) != 10) {
		fail(run, "not understood: %.100s", text);
		return;
	}
	old = find_row(r.id);
	if (!old) {
		if (nr_rows == MAX_ROWS)
			die("more than %d rows", MAX_ROWS);
		old = &rows[nr_rows++];
		*old = r;
		snprintf(old->group, sizeof(old->group), "%s", run->k->group);
	}
	old->fig[run->k - kernels] = f;
	run->k->nr_rows++;
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
static void show(const struct run *r, const char *what)
{
	printf(isatty(1) ? "\r\033[K%s: %lld s, %d rows: %s" : "%s: %lld s, %d rows: %s\n",
	       r->k->name, (now_ms() - r->start) / 1000, r->k->nr_rows, what);
	fflush(stdout);
}

/* Until @until.  Everything goes to the log. */
static bool follow(struct run *r, const char *until)
{
	char line[2048], why[200];

	while (machine_line(&r->m, r->log, line, sizeof(line), now_ms() + SILENCE_MS,
			    why, sizeof(why))) {
		const char *text = !strncmp(line, "out ", 4) ? line + 4 : "";

		fprintf(r->log, "%s\n", *text ? text : line);
		fflush(r->log);
		if (!strncmp(line, "bad ", 4))
			fail(r, "kernel: %.150s", line + 4);
		if (!strncmp(text, "at\t", 3))
			show(r, text + 3);
		if (!strncmp(text, "row\t", 4))
			take_row(r, text);
		if (!strncmp(text, "info\t", 5) || !strncmp(text, "group\t", 6))
			take_info(r->k, text);
		if (strncmp(line, until, strlen(until)))
			continue;
		if (!strncmp(line, "end ", 4) && atoi(line + 4))
			fail(r, "the program failed (status %d)", atoi(line + 4));
		return true;
	}
	fail(r, "%s", why);
	return false;
}

/* ---- The machine ---- */

static void boot(struct run *r, const struct platform *p)
{
	char path[256], image[256], initramfs[256];

	snprintf(image, sizeof(image), "build/%s/%s", p->kernel, p->image);
	snprintf(initramfs, sizeof(initramfs), "build/%s/initramfs.cpio", p->kernel);
	if (r->k->image)
		snprintf(image, sizeof(image), "%s", r->k->image);
	if (initrd)
		snprintf(initramfs, sizeof(initramfs), "%s", initrd);
	if (access(image, R_OK) || access(initramfs, R_OK))
		die("%s or %s: %s", image, initramfs, strerror(errno));
	snprintf(path, sizeof(path), "rm -rf " LOGS "/%s && mkdir -p " LOGS "/%s", r->k->name,
		 r->k->name);
	if (system(path))
		die("cannot make " LOGS "/%s", r->k->name);
	snprintf(path, sizeof(path), LOGS "/%s.log", r->k->name);
	r->log = fopen(path, "w");
	if (!r->log)
		die("%s: %s", path, strerror(errno));
	if (!boot_machine(&r->m, p, image, initramfs))
		die("cannot start QEMU");
}

static void run(struct kernel *k)
{
	struct run r = { .k = k, .start = now_ms() };
	struct platform p = setting->p;
	char name[32], kernel[32], cmd[512];
	int n;

	snprintf(name, sizeof(name), "bench/%s", k->name);
	snprintf(kernel, sizeof(kernel), "%s%s", k->dir, p.kernel);
	p.name = name;
	p.kernel = kernel;
	boot(&r, &p);
	show(&r, "booting");
	n = snprintf(cmd, sizeof(cmd), "run %s %d %s %s\n", setting->program,
		     PROGRAM_SECONDS, setting->program, arguments);
	if (follow(&r, "ready") && write(r.m.port, cmd, n) == n)
		follow(&r, "end ");
	end_machine(&r.m);
	fclose(r.log);
	k->seconds = (now_ms() - r.start) / 1000;
	if (!k->failed && strcmp(k->unit, "insn"))
		fail(&r, "the machine's clock does not count instructions: %s", k->clock);
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
		if (strcmp(settings[i].p.kernel, name))
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
	snprintf(json, sizeof(json), OUT "/%s.json", setting->p.kernel);
	write_json(json, setting->p.qemu, arguments);
	snprintf(svg, sizeof(svg), OUT "/%s.svg", setting->p.kernel);
	draw_chart(svg);
	printf("%s has all figures, %s the ratios\n", json, svg);
	if (bad || is_partial)
		return bad;
	if (setting->chart)
		draw_chart(setting->chart);
	write_page(setting->page, setting->title, setting->make, setting->p.qemu, setting->chart);
	printf("%s is of this run\n", setting->page);
	return 0;
}
