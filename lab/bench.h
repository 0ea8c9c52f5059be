/* SPDX-License-Identifier: GPL-2.0 */
/* The benchmark: what was measured, and what is made of it; each part uses those above it. */
#ifndef LAB_BENCH_H
#define LAB_BENCH_H

#include <stdbool.h>
#include <stdio.h>

#define MAX_ROWS	512

/* Slower by more than this is worth a mark. */
#define TOLERANCE	1.03

enum { BASE, OURS, NR_KERNELS };

struct kernel {
	const char *name;
	const char *dir;	/* of its builds, below build/ */
	const char *image;	/* asked for */
	bool	wanted;
	bool	failed;
	char	why[256];	/* it failed */
	char	release[128];
	char	clock[128];
	char	unit[16];
	char	group[96];
	int	nr_rows;
	long	seconds;
};

struct figure {
	bool	there;
	unsigned long long value, min, max, factor, samples, zeroed;
};

struct row {
	char	id[64];
	char	unit[16];
	char	against[64];	/* the base's row that does the same job, or "-" */
	char	label[128];
	char	group[96];	/* its title */
	struct figure fig[NR_KERNELS];
};

/* rows.c */
extern struct kernel kernels[NR_KERNELS];
extern struct row rows[MAX_ROWS];
extern int nr_rows;
extern unsigned long long zero_page;

struct row *find_row(const char *id);
const struct figure *base_figure(const struct row *r);
double ratio(const struct row *r, bool zeroing);
const char *grouped(char *buf, size_t size, unsigned long long v);
const char *ratio_text(char *buf, size_t size, double r);

/* targets.c */
/* All rows whose name matches have to be this many times better than the base. */
struct target {
	const char *name;
	const char *patterns[3];
	bool	zeroing;	/* counts */
	double	wanted;
};

struct verdict {
	const struct row *worst;	/* NULL: nothing was compared */
	double	measured;		/* its ratio */
	int	nr_rows, nr_short;
};

extern const struct target targets[];
extern const int nr_targets;
struct verdict judge_target(const struct target *t);
bool misses_target(const struct row *r);

/* report.c */
void print_table(FILE *f);
void print_targets(FILE *f);
void write_json(const char *path, const char *machine, const char *arguments);
void draw_chart(const char *path);
void write_page(const char *path, const char *title, const char *make, const char *machine,
		const char *chart);

#endif
