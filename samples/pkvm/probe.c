// SPDX-License-Identifier: GPL-2.0-only
/* What the host can see: tries to read the guest's pages, and counts them. */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "vmm.h"

static sigjmp_buf refused;
static int probing;

/*
 * SIGBUS: a private page of a guest_memfd.  SIGSEGV: a pinned page that belongs
 * to a protected guest.  Outside of a probe it is a device that was told to use
 * such a page, or a bug.
 */
static void on_refused(int sig)
{
	static const char text[] =
		"vmm: the guest made a device use memory that it has not shared\n";

	if (__atomic_load_n(&probing, __ATOMIC_SEQ_CST))
		siglongjmp(refused, sig);
	if (write(2, text, sizeof(text) - 1) < 0)
		_exit(2);
	_exit(1);
}

void probe_init(void)
{
	struct sigaction sa = { .sa_handler = on_refused };

	sigaction(SIGBUS, &sa, NULL);
	sigaction(SIGSEGV, &sa, NULL);
}

/* Really tries to read. */
bool read_refused(const struct vm *vm, __u64 gpa)
{
	const __u8 *at = vm->ram + (gpa - RAM_BASE);
	bool ret = true;

	__atomic_store_n(&probing, 1, __ATOMIC_SEQ_CST);
	if (!sigsetjmp(refused, 1)) {
		__atomic_load_n(at, __ATOMIC_SEQ_CST);
		ret = false;
	}
	__atomic_store_n(&probing, 0, __ATOMIC_SEQ_CST);
	return ret;
}

/* The same by way of a system call, which must fail cleanly. */
bool syscall_refused(const struct vm *vm, __u64 gpa)
{
	int fd[2], error;
	ssize_t n;

	if (pipe(fd))
		err(1, "pipe");
	n = write(fd[1], vm->ram + (gpa - RAM_BASE), 1);
	error = errno;
	close(fd[0]);
	close(fd[1]);
	return n < 0 && error == EFAULT;
}

/*
 * All pages that the guest has had a chance to use.  In place that is what was
 * private once; of anonymous memory, what is there.
 */
struct pages probe_all(const struct vm *vm)
{
	size_t i, nr = PAGES(vm->ram_size);
	unsigned char *there = malloc(nr);
	struct pages ret = {};
	bool no;

	if (!there)
		err(1, "probe");
	memset(there, 1, nr);
	if (vm->mode != MODE_IN_PLACE && mincore(vm->ram, vm->ram_size, there))
		err(1, "mincore");
	for (i = 0; i < nr; i++) {
		if (!(there[i] & 1) ||
		    (vm->mode == MODE_IN_PLACE && vm->pages[i] == PAGE_INITIAL))
			continue;
		no = read_refused(vm, RAM_BASE + i * PAGE_SIZE);
		ret.refused += no;
		ret.readable += !no;
		ret.unlike += vm->mode == MODE_IN_PLACE && no != (vm->pages[i] == PAGE_PRIVATE);
	}
	free(there);
	return ret;
}

/* How many pages of a file are in memory. */
size_t pages_in_file(int fd)
{
	struct { __u64 off, len; } all = { 0, 0 };	/* to the end */
	struct { __u64 present, rest[4]; } cs;

	if (syscall(__NR_cachestat, fd, &all, &cs, 0))
		err(1, "cachestat");
	return cs.present;
}

/* The sum of the numbers that follow @name in /proc/FILE. */
size_t proc_sum(const char *file, const char *name)
{
	size_t length = strlen(name), sum = 0;
	FILE *f = fopen(file, "r");
	char line[256], *at;

	if (!f)
		err(1, "%s", file);
	while (fgets(line, sizeof(line), f)) {
		at = line + strspn(line, " ");
		if (!strncmp(at, name, length))
			sum += strtoul(at + length, NULL, 10);
	}
	fclose(f);
	return sum;
}

/* The pages that the system has free, those in its per-CPU lists as well. */
size_t free_pages(void)
{
	return proc_sum("/proc/zoneinfo", "nr_free_pages ") +
	       proc_sum("/proc/zoneinfo", "count: ");
}
