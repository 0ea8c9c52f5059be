// SPDX-License-Identifier: GPL-2.0
/* The benchmark: what we want to be, and by the rows of this run are. */
#include <fnmatch.h>
#include <stdio.h>
#include <string.h>

#include "bench.h"

/* All rows whose name matches have to be this many times better than the base. */
static const struct target {
	const char *name;
	const char *patterns[3];
	bool	zeroing;	/* counts */
	double	wanted;
} targets[] = {
	{ "fallocate, huge", { "huge-fallocate*" }, true, 50 },
	{ "cold touch, huge, outside zeroing",
	  { "huge-cold", "huge-pre-fault", "huge-page-*" }, false, 50 },
	{ "exits of a cold touch, huge", { "huge-exits" }, true, 400 },
	{ "2 MiB with PRESERVE, huge", { "huge-preserve-*-2MiB*" }, true, 20 },
	{ "2 MiB with DISCARD, huge, outside zeroing", { "huge-discard-*-2MiB*" }, false, 20 },
	{ "4 KiB with PRESERVE or ZERO, the aim",
	  { "*-preserve-*-4KiB*", "*-zero-*-4KiB*" }, true, 1.4 },
	{ "4 KiB, any content, not slower", { "inplace-*-4KiB*", "huge-*-4KiB*" }, true, 1 },
	{ "peak memory: half of a base that never discards (to 3 %)",
	  { "peak-inplace", "peak-huge" }, true, 2 / TOLERANCE },
	{ "any row (not slower by more than 3 %)", { "*" }, true, 1 / TOLERANCE },
};

#define NR_TARGETS	((int)(sizeof(targets) / sizeof(*targets)))

struct verdict {
	const struct row *worst;	/* NULL: nothing was compared */
	double	measured;		/* its ratio */
	int	nr_rows, nr_short;
};

static bool matches(const struct target *t, const struct row *r)
{
	int i;

	for (i = 0; i < 3 && t->patterns[i]; i++)
		if (!fnmatch(t->patterns[i], r->id, 0))
			return true;
	return false;
}

static struct verdict judge(const struct target *t)
{
	struct verdict v = { .worst = NULL };
	double all;
	int i;

	for (i = 0; i < nr_rows; i++) {
		all = matches(t, &rows[i]) ? ratio(&rows[i], t->zeroing) : 0;
		if (!all)
			continue;
		v.nr_rows++;
		v.nr_short += all < t->wanted;
		if (v.worst && all >= v.measured)
			continue;
		v.worst = &rows[i];
		v.measured = all;
	}
	return v;
}

static void print_target(FILE *f, const struct target *t)
{
	struct verdict v = judge(t);
	char wanted[32], measured[32];

	if (!v.worst)
		return;
	fprintf(f, "  %-60s %15s %15s %10s", t->name,
		ratio_text(wanted, sizeof(wanted), t->wanted),
		ratio_text(measured, sizeof(measured), v.measured),
		v.nr_short ? "SHORT" : "MET");
	if (v.nr_short)
		fprintf(f, "   %d of %d rows, worst: %s", v.nr_short, v.nr_rows, v.worst->label);
	fprintf(f, "\n");
}

void print_targets(FILE *f)
{
	int i;

	fprintf(f, "%-62s %15s %15s\n", "target: times better than the base, in the worst row",
		"wanted", "measured");
	for (i = 0; i < NR_TARGETS; i++)
		print_target(f, &targets[i]);
}

/* Is @r one of those for which a target is missed? */
bool misses_target(const struct row *r)
{
	double all;
	int i;

	for (i = 0; i < NR_TARGETS; i++) {
		all = matches(&targets[i], r) ? ratio(r, targets[i].zeroing) : 0;
		if (all && all < targets[i].wanted)
			return true;
	}
	return false;
}

/* The elements of a JSON array. */
void put_targets(FILE *f)
{
	int i;

	for (i = 0; i < NR_TARGETS; i++) {
		struct verdict v = judge(&targets[i]);

		fprintf(f, "    {");
		put_string(f, "name", targets[i].name);
		fprintf(f, ", \"wanted\": %.4f, \"measured\": %.4f, \"rows\": %d, "
			"\"short\": %d, ", targets[i].wanted, v.measured, v.nr_rows, v.nr_short);
		put_string(f, "worst", v.worst ? v.worst->id : "");
		fprintf(f, "}%s\n", i + 1 < NR_TARGETS ? "," : "");
	}
}
