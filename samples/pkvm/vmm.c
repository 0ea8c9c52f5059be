// SPDX-License-Identifier: GPL-2.0-only
/*
 * Boots Linux in a VM and tells what happens to its memory.
 *
 * Exit code 0: the guest powered off, and all that is claimed was seen to be
 * true; 1: not so; 2: bad input.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "vmm.h"
#include "../guest_memfd/sha256.h"

#define CMDLINE		"console=ttyAMA0 panic=-1"

static const char * const mode_names[] = { "normal", "pinned", "in-place" };

struct options {
	const char *kernel, *initrd, *disk, *append;
	bool verbose;
};

static char expected[2 * SHA256_SIZE + 1];
static bool guest_up, digest_right, digest_wrong;

double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

/* 1234567 -> "1,234,567"; good for eight numbers in one printf(). */
const char *num(size_t n)
{
	static char buffers[8][32];
	static int next;
	char *p = &buffers[next++ % 8][31];
	int digits = 0;

	do {
		if (digits && digits % 3 == 0)
			*--p = ',';
		*--p = '0' + n % 10;
		digits++;
	} while (n /= 10);
	return p;
}

void say(const struct vm *vm, const char *fmt, ...)
{
	static int step;
	va_list args;

	printf("%3d. %7.3f s  ", ++step, now() - vm->start);
	va_start(args, fmt);
	vprintf(fmt, args);
	va_end(args);
	printf("\n");
	fflush(stdout);
}

/* A line from the guest's console, from outside the kernel's trust or not. */
void guest_says(const struct vm *vm, const char *line)
{
	printf(INDENT "guest | %s\n", line);
	fflush(stdout);
	if (!strncmp(line, "init is up", 10)) {
		guest_up = true;
		say(vm, "VMM: the guest has booted");
	}
	if (strncmp(line, "sha256 ", 7))
		return;
	if (!strcmp(line + 7, expected))
		digest_right = true;
	else
		digest_wrong = true;
}

/* The host's own digest of the file. Returns its length. */
static size_t digest_file(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC), i;
	__u8 digest[SHA256_SIZE];
	struct stat st;
	void *file;

	if (fd < 0 || fstat(fd, &st))
		err(2, "%s", path);
	if (!S_ISREG(st.st_mode))
		errx(2, "%s: not a regular file", path);
	if (!st.st_size)
		errx(2, "%s: the file is empty", path);
	file = mmap(NULL, st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (file == MAP_FAILED)
		err(2, "%s", path);
	sha256(file, st.st_size, digest);
	for (i = 0; i < SHA256_SIZE; i++)
		sprintf(expected + 2 * i, "%02x", digest[i]);
	munmap(file, st.st_size);
	close(fd);
	return st.st_size;
}

/* ---- what is seen when the guest has gone ---- */

static void __noreturn __printf(1, 2) wrong(const char *fmt, ...)
{
	va_list args;

	fflush(stdout);
	va_start(args, fmt);
	verrx(1, fmt, args);
}

/* Before the start: what was made private must be out of reach at once. */
static void check_start(const struct vm *vm)
{
	if (vm->mode != MODE_IN_PLACE)
		return;
	if (!read_refused(vm, vm->layout.kernel) || !syscall_refused(vm, vm->layout.kernel))
		wrong("the guest's kernel could be read from its private page");
	say(vm, "VMM: made %s private; reading the kernel is refused (SIGBUS)\n" STATE,
	    vm->lazy ? "them" : "them, and all other memory,",
	    num(vm->nr_pages[PAGE_PRIVATE]), num(vm->nr_pages[PAGE_SHARED]),
	    num(vm->nr_pages[PAGE_INITIAL]));
}

static void check_reach(const struct vm *vm)
{
	struct pages p = probe_all(vm);

	say(vm, "VMM: tried to read each of %s pages: %s could be read, %s were refused (%s)",
	    num(p.readable + p.refused), num(p.readable), num(p.refused),
	    vm->mode == MODE_IN_PLACE ? "SIGBUS" : "SIGSEGV");
	if (vm->mode == MODE_NORMAL && p.refused)
		wrong("a page of a normal VM cannot be read");
	if (vm->mode != MODE_NORMAL && (!p.refused || !p.readable))
		wrong("a protected guest keeps some pages private, and shares some");
	if (p.unlike)
		wrong("%s of them are not as the file says", num(p.unlike));
	if (vm->mode == MODE_IN_PLACE && !syscall_refused(vm, vm->layout.kernel))
		wrong("a system call could read a private page");
}

/* Returns the number of pages that the guest has in memory. */
static size_t check_memory(const struct vm *vm)
{
	size_t locked = proc_sum("/proc/self/status", "VmLck:");
	size_t pages = vm->mode == MODE_IN_PLACE ? pages_in_file(vm->gmem) :
		       proc_sum("/proc/self/status", "RssAnon:") * KIB / PAGE_SIZE;

	say(vm, "VMM: the guest has %s pages in memory; the VMM: %s KiB resident, %s KiB locked",
	    num(pages), num(proc_sum("/proc/self/status", "VmRSS:")), num(locked));
	if (vm->mode == MODE_IN_PLACE && locked)
		wrong("no memory should be locked");
	return pages;
}

/* Ends the VM, and sees that its memory comes back. */
static void check_return(struct vm *vm, size_t pages)
{
	size_t before = free_pages(), after;
	double start = now();

	destroy_vm(vm);
	after = free_pages();
	after = after > before ? after - before : 0;
	say(vm, "VMM: closed the VM in %.3f s: %s pages are free again", now() - start,
	    num(after));
	/* Others may use some at the same time. */
	if (after < pages - pages / 10)
		wrong("of %s pages", num(pages));
}

static void report(struct vm *vm, double seconds, const struct options *opt)
{
	size_t pages;

	if (vm->failed)
		wrong("%s", vm->failed);
	say(vm, "VMM: the guest has powered off after %.3f s (%s device accesses, %s page faults)",
	    seconds, num(vm->counters.mmio), num(vm->counters.faults));
	if (vm->mode == MODE_IN_PLACE)
		say(vm, "VMM: it shared %s pages and took back %s by hypercall",
		    num(vm->counters.shared), num(vm->counters.unshared));
	check_reach(vm);
	pages = check_memory(vm);
	check_return(vm, pages);
	if (!guest_up)
		wrong("the guest's init was never heard of");
	if (opt->disk && (!digest_right || digest_wrong))
		wrong("the guest's digest of %s is NOT the host's own,\n%s", opt->disk, expected);
	if (opt->disk)
		say(vm, "VMM: the guest's digest of the file equals the host's own");
}

/* ---- the command line ---- */

static const char help[] =
	"usage: vmm --kernel IMAGE --initrd CPIO [options]\n"
	"Boots Linux in a VM, and tells what happens to its memory.\n"
	"  -k, --kernel IMAGE   an arm64 Image\n"
	"  -i, --initrd CPIO    its initramfs\n"
	"  -d, --disk FILE      the guest's disk, read-only (with a random number generator)\n"
	"  -t, --type TYPE      in-place: a protected VM, all memory in one guest_memfd (default)\n"
	"                       pinned:   a protected VM, anonymous memory\n"
	"                       normal:   a normal VM, anonymous memory\n"
	"  -l, --lazy           in place: make a page private when the guest first uses it\n"
	"  -m, --memory MIB     memory of the VM, 32 to 2048 (96)\n"
	"  -c, --cpus N         1 to 8 (1)\n"
	"  -a, --append WORDS   more for the guest's kernel command line\n"
	"  -v, --verbose        the guest's kernel talks, too\n";

static const struct option long_options[] = {
	{ "kernel", required_argument, NULL, 'k' },
	{ "initrd", required_argument, NULL, 'i' },
	{ "disk", required_argument, NULL, 'd' },
	{ "type", required_argument, NULL, 't' },
	{ "lazy", no_argument, NULL, 'l' },
	{ "memory", required_argument, NULL, 'm' },
	{ "cpus", required_argument, NULL, 'c' },
	{ "append", required_argument, NULL, 'a' },
	{ "verbose", no_argument, NULL, 'v' },
	{ "help", no_argument, NULL, 'h' },
	{}
};

static unsigned long number(const char *text, unsigned long min, unsigned long max,
			    const char *what)
{
	char *end;
	unsigned long n = strtoul(text, &end, 10);

	if (!*text || *end || n < min || n > max)
		errx(2, "%s: %lu to %lu is wanted, not '%s'", what, min, max, text);
	return n;
}

static enum mode parse_type(const char *name)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(mode_names); i++)
		if (!strcmp(name, mode_names[i]))
			return i;
	errx(2, "--type: in-place, pinned or normal is wanted, not '%s'", name);
}

static void parse_option(struct vm *vm, struct options *opt, int c)
{
	switch (c) {
	case 'k':
		opt->kernel = optarg;
		break;
	case 'i':
		opt->initrd = optarg;
		break;
	case 'd':
		opt->disk = optarg;
		break;
	case 't':
		vm->mode = parse_type(optarg);
		break;
	case 'l':
		vm->lazy = true;
		break;
	case 'm':
		vm->ram_size = number(optarg, 32, 2048, "--memory") * MIB;
		break;
	case 'c':
		vm->nr_cpus = number(optarg, 1, MAX_CPUS, "--cpus");
		break;
	case 'a':
		opt->append = optarg;
		break;
	case 'v':
		opt->verbose = true;
		break;
	default:
		fputs(help, c == 'h' ? stdout : stderr);
		exit(c == 'h' ? 0 : 2);
	}
}

static void parse_options(struct vm *vm, struct options *opt, int argc, char **argv)
{
	int c;

	while ((c = getopt_long(argc, argv, "k:i:d:t:lm:c:a:vh", long_options, NULL)) != -1)
		parse_option(vm, opt, c);
	if (optind != argc || !opt->kernel || !opt->initrd)
		errx(2, "--kernel and --initrd are wanted (see --help)");
	if (vm->lazy && vm->mode != MODE_IN_PLACE)
		errx(2, "--lazy goes with --type in-place only");
}

/* A word that the kernel does not know goes to the environment of its init. */
static const char *make_cmdline(const struct options *opt, size_t length)
{
	char disk[64] = "", *line;

	if (opt->disk)
		snprintf(disk, sizeof(disk), " DISK_LENGTH=%zu", length);
	if (asprintf(&line, "%s%s%s %s", CMDLINE,
		     opt->verbose ? " earlycon=pl011,mmio32,0x9000000" : " quiet", disk,
		     opt->append ?: "") < 0)
		err(1, "command line");
	return line;
}

int main(int argc, char **argv)
{
	struct vm vm = {
		.mode = MODE_IN_PLACE, .nr_cpus = 1, .ram_size = 96 * MIB,
		.lock = PTHREAD_MUTEX_INITIALIZER,
	};
	struct options opt = {};
	size_t length = 0;
	double start;

	parse_options(&vm, &opt, argc, argv);
	if (sysconf(_SC_PAGESIZE) != PAGE_SIZE)
		errx(1, "this VMM knows pages of 4 KiB only");
	if (opt.disk) {
		length = digest_file(opt.disk);
		add_disk(&vm, opt.disk);
		add_rng(&vm);
	}
	vm.cmdline = make_cmdline(&opt, length);
	plan_guest(&vm, opt.kernel, opt.initrd);
	vm.kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (vm.kvm < 0)
		err(1, "/dev/kvm");
	probe_init();

	vm.start = now();
	create_vm(&vm);
	say(&vm, "VMM: a %s VM of %s MiB (%s pages) on %s",
	    vm.mode == MODE_NORMAL ? "normal" : "protected", num(vm.ram_size / MIB),
	    num(PAGES(vm.ram_size)),
	    vm.mode == MODE_IN_PLACE ? "one guest_memfd, shared as yet" : "anonymous memory");
	load_guest(&vm);
	check_start(&vm);
	create_cpus(&vm);
	say(&vm, "VMM: the guest starts");
	start = now();
	run_vm(&vm);
	report(&vm, now() - start, &opt);
	return 0;
}
