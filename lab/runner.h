/* SPDX-License-Identifier: GPL-2.0 */
/* What the parts of the lab's runner share; runner.c has the overview. */
#ifndef LAB_RUNNER_H
#define LAB_RUNNER_H

#include <stdbool.h>
#include <stdio.h>

#include "machine.h"

#define MAX_TESTS	256
#define STATUS_TIMEOUT	512

/* A line of lab/tests */
struct test {
	enum level level;	/* as of the heading above it */
	char	name[64];
	char	platforms[128];
	int	seconds;
	char	args[256];
};

struct totals {
	int	passed, failed, skipped;
	long long build_ms, boot_ms, test_ms;
};

/* What is known of the test that runs. */
struct outcome {
	const struct platform *p;
	const char	*name;
	int		plan;		/* 1..N, -1: none seen */
	int		ok, not_ok, skip;
	int		status;		/* see lab/init.c; -1: no verdict */
	long long	ms;
	char		reason[160];	/* the last SKIP reason */
	char		unexpected[320]; /* first skipped case that is not expected */
	char		bad[200];	/* first bad line of the kernel log */
};

/* tests.c: what is to run, and what counts as passed */
extern const char *only_arch, *only_test;
extern enum level only_level;
extern const char * const level_names[NR_LEVELS];
extern struct totals *totals;	/* [NR_PLATFORMS], shared with the children */

void put_line(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void read_table(const char *path);
int find_level(const char *name);
int select_tests(const struct platform *p, struct test **list);
void log_path(char *buf, size_t size, const struct platform *p, const char *name);
void start_outcome(struct outcome *o, const struct platform *p, const char *name);
void fail_outcome(struct outcome *o, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));
void count_ktap(struct outcome *o, const char *text);
bool judge(const struct outcome *o);

#endif
