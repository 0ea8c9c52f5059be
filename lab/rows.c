// SPDX-License-Identifier: GPL-2.0
/* The benchmark: what was measured, and how base and ours compare. */
#include <stdio.h>
#include <string.h>

#include "bench.h"

struct kernel kernels[NR_KERNELS] = {
	{ .name = "base", .dir = "base/", .wanted = true },
	{ .name = "ours", .dir = "", .wanted = true },
};

struct row rows[MAX_ROWS];
int nr_rows;

/* Instructions that zero a page, as the program found. */
unsigned long long zero_page;

struct row *find_row(const char *id)
{
	int i;

	for (i = 0; i < nr_rows; i++)
		if (!strcmp(rows[i].id, id))
			return &rows[i];
	return NULL;
}

/* The base's figure for @r: its own, or that of the row which does the same job. */
const struct figure *base_figure(const struct row *r)
{
	const struct row *other = find_row(r->against);

	if (r->fig[BASE].there || !other)
		return &r->fig[BASE];
	return &other->fig[BASE];
}

/* 1234567 as "1,234,567" */
const char *grouped(char *buf, size_t size, unsigned long long v)
{
	char digits[32];
	int i, n = snprintf(digits, sizeof(digits), "%llu", v);
	size_t at = 0;

	for (i = 0; i < n && at + 2 < size; i++) {
		buf[at++] = digits[i];
		if ((n - i - 1) % 3 == 0 && i + 1 < n)
			buf[at++] = ',';
	}
	buf[at] = '\0';
	return buf;
}

/* Base to ours; @zeroing: with the instructions that zero pages.  0: there is none. */
double ratio(const struct row *r, bool zeroing)
{
	const struct figure *b = base_figure(r), *o = &r->fig[OURS];
	double base = b->value, ours = o->value;

	if (!b->there || !o->there)
		return 0;
	if (!zeroing) {
		base -= (double)b->zeroed * b->factor * zero_page;
		ours -= (double)o->zeroed * o->factor * zero_page;
	}
	return ours > 0 && base > 0 ? base / ours : 0;
}

const char *ratio_text(char *buf, size_t size, double r)
{
	if (r >= 1000)
		return grouped(buf, size, (unsigned long long)(r + 0.5));

	snprintf(buf, size, !r ? "-" : r >= 100 ? "%.0f" : r >= 10 ? "%.1f" : "%.2f", r);
	return buf;
}
