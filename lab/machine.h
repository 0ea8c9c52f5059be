/* SPDX-License-Identifier: GPL-2.0 */
/* Emulated machines, for the runner and the benchmark. */
#ifndef LAB_MACHINE_H
#define LAB_MACHINE_H

#include <stdbool.h>
#include <stdio.h>
#include <sys/types.h>

#define NR_PLATFORMS	8

/* How much is run. */
enum level {
	LEVEL_QUICK,	/* minutes: what one runs after an edit */
	LEVEL_FULL,	/* what CI runs */
	LEVEL_SOAK,	/* hours: random seeds, kernels that look for rare things */
	NR_LEVELS
};

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
	enum level level;	/* from which on it is run, unless it is named */
};

/* A booted machine, and its verdict port, see lab/init.c. */
struct machine {
	const struct platform *p;
	pid_t	pid;
	long	console;	/* where this boot begins in console.log */
	bool	said;		/* the kernel said p->says */
	int	port;
	size_t	len;		/* of what has come from the port, and is in no line yet */
	char	buf[8192];
};

extern const struct platform platforms[NR_PLATFORMS];

void die(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));
long long now_ms(void);
void qemu_command(const struct platform *p, const char *words, const char *image,
		  const char *initrd, const char *console, char *buf, size_t size);
bool boot_machine(struct machine *m, const struct platform *p, const char *image,
		  const char *initrd);
void end_machine(struct machine *m);
bool machine_line(struct machine *m, FILE *log, char *line, size_t size,
		  long long deadline, char *why, size_t why_size);

#endif
