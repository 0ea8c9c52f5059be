// SPDX-License-Identifier: GPL-2.0
/* The benchmark: what we want to be, and by the rows of this run are. */
#include <fnmatch.h>
#include <string.h>

#include "bench.h"

const struct target targets[] = {
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

const int nr_targets = sizeof(targets) / sizeof(*targets);

static bool matches(const struct target *t, const struct row *r)
{
	int i;

	for (i = 0; i < 3 && t->patterns[i]; i++)
		if (!fnmatch(t->patterns[i], r->id, 0))
			return true;
	return false;
}

struct verdict judge_target(const struct target *t)
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

/* Is @r one of those for which a target is missed? */
bool misses_target(const struct row *r)
{
	double all;
	int i;

	for (i = 0; i < nr_targets; i++) {
		all = matches(&targets[i], r) ? ratio(r, targets[i].zeroing) : 0;
		if (all && all < targets[i].wanted)
			return true;
	}
	return false;
}
