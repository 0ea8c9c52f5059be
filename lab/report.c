// SPDX-License-Identifier: GPL-2.0
/* The benchmark: table, JSON, chart and page of the rows. */
#include <errno.h>
#include <fnmatch.h>
#include <stdio.h>
#include <string.h>

#include "bench.h"
#include "chart.h"
#include "machine.h"

/* ---- The table ---- */

/* What the table has of a figure: in brackets if of another row, "*" if multiplied. */
static void cell(char *buf, size_t size, const struct row *r, const struct figure *f,
		 bool other)
{
	bool bytes = !strcmp(r->unit, "bytes");
	unsigned long long v = f->value;
	const char *unit = "";
	char number[48];

	if (!f->there) {
		snprintf(buf, size, "n/a");
		return;
	}
	if (bytes && v >= 1024) {
		v = (v + 512) / 1024;
		unit = " KiB";
	} else if (!bytes && v >= 1000000000) {
		v = (v + 500000) / 1000000;
		unit = " M";
	}
	if (!bytes && !*unit && v >= 10000000)
		snprintf(number, sizeof(number), "%.1f M", v / 1e6);
	else
		grouped(number, sizeof(number), v);
	snprintf(buf, size, "%s%s%s%s%s", other ? "(" : "", number, unit,
		 other ? ")" : "", f->factor > 1 ? "*" : "");
}

static bool is_slower(const struct row *r)
{
	double all = ratio(r, true);

	return all && all * TOLERANCE < 1;
}

static void print_row(FILE *f, const struct row *r)
{
	const struct figure *b = base_figure(r);
	char base[64], ours[64], all[32], rest[32] = "";

	cell(base, sizeof(base), r, b, b != &r->fig[BASE]);
	cell(ours, sizeof(ours), r, &r->fig[OURS], false);
	ratio_text(all, sizeof(all), ratio(r, true));
	if (b->zeroed || r->fig[OURS].zeroed)
		ratio_text(rest, sizeof(rest), ratio(r, false));
	fprintf(f, "  %-60s %15s %15s %10s%s %10s\n", r->label, base, ours, all,
		is_slower(r) ? "!" : " ", rest);
}

void print_table(FILE *f)
{
	int i, slower = 0;

	fprintf(f, "%-62s %15s %15s %10s  %10s\n", "operation", "base", "ours", "ratio",
		"no zeroing");
	for (i = 0; i < nr_rows; i++) {
		if (i && strcmp(rows[i].group, rows[i - 1].group))
			fprintf(f, "\n%s\n", rows[i].group);
		print_row(f, &rows[i]);
		slower += is_slower(&rows[i]);
	}
	fprintf(f, "\nInstructions, unless a unit is given; whole calls as user space sees them.\n"
		"ratio: base / ours.  * measured on less, and multiplied.  ( ) the base's way of\n"
		"doing what the row does.  n/a: this kernel has no such thing.\n");
	if (zero_page)
		fprintf(f, "no zeroing: without the %llu instructions that zero a page.\n",
			zero_page);
	if (slower)
		fprintf(f, "! %d slower than the base by more than 3 %%\n", slower);
}

/* ---- Targets ---- */

static void print_target(FILE *f, const struct target *t)
{
	struct verdict v = judge_target(t);
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
	for (i = 0; i < nr_targets; i++)
		print_target(f, &targets[i]);
}

/* ---- JSON ---- */

static void put_string(FILE *f, const char *key, const char *text)
{
	fprintf(f, "\"%s\": \"", key);
	for (; *text; text++) {
		if (*text == '"' || *text == '\\')
			fputc('\\', f);
		fputc((unsigned char)*text < ' ' ? ' ' : *text, f);
	}
	fputc('"', f);
}

static void put_figure(FILE *f, const char *key, const struct figure *fig)
{
	if (!fig->there) {
		fprintf(f, "\"%s\": null", key);
		return;
	}
	fprintf(f, "\"%s\": {\"value\": %llu, \"min\": %llu, \"max\": %llu, "
		"\"samples\": %llu, \"factor\": %llu, \"zeroed\": %llu}",
		key, fig->value, fig->min, fig->max, fig->samples, fig->factor,
		fig->zeroed);
}

static void put_row(FILE *f, const struct row *r)
{
	fprintf(f, "    {");
	put_string(f, "id", r->id);
	fprintf(f, ", ");
	put_string(f, "label", r->label);
	fprintf(f, ", ");
	put_string(f, "group", r->group);
	fprintf(f, ",\n     ");
	put_string(f, "unit", r->unit);
	fprintf(f, ", ");
	put_string(f, "against", strcmp(r->against, "-") ? r->against : r->id);
	fprintf(f, ",\n     ");
	put_figure(f, "base", &r->fig[BASE]);
	fprintf(f, ",\n     ");
	put_figure(f, "ours", &r->fig[OURS]);
	fprintf(f, ",\n     \"ratio\": %.4f, \"ratio_without_zeroing\": %.4f}",
		ratio(r, true), ratio(r, false));
}

/* The elements of a JSON array. */
static void put_targets(FILE *f)
{
	int i;

	for (i = 0; i < nr_targets; i++) {
		const struct target *t = &targets[i];
		struct verdict v = judge_target(t);

		fprintf(f, "    {");
		put_string(f, "name", t->name);
		fprintf(f, ", \"wanted\": %.4f, \"measured\": %.4f, \"rows\": %d, "
			"\"short\": %d, ", t->wanted, v.measured, v.nr_rows, v.nr_short);
		put_string(f, "worst", v.worst ? v.worst->id : "");
		fprintf(f, "}%s\n", i + 1 < nr_targets ? "," : "");
	}
}

void write_json(const char *path, const char *machine, const char *arguments)
{
	FILE *f = fopen(path, "w");
	int i;

	if (!f)
		die("%s: %s", path, strerror(errno));
	fprintf(f, "{\n  \"format\": 1,\n  ");
	put_string(f, "machine", machine);
	fprintf(f, ",\n  ");
	put_string(f, "arguments", arguments);
	fprintf(f, ",\n  \"zero_page\": %llu,\n", zero_page);
	for (i = 0; i < NR_KERNELS; i++) {
		fprintf(f, "  \"%s\": {", kernels[i].name);
		put_string(f, "kernel", kernels[i].release);
		fprintf(f, ", ");
		put_string(f, "clock", kernels[i].clock);
		fprintf(f, ", \"complete\": %s, \"seconds\": %ld},\n",
			kernels[i].wanted && !kernels[i].failed ? "true" : "false",
			kernels[i].seconds);
	}
	fprintf(f, "  \"rows\": [\n");
	for (i = 0; i < nr_rows; i++) {
		put_row(f, &rows[i]);
		fprintf(f, "%s\n", i + 1 < nr_rows ? "," : "");
	}
	fprintf(f, "  ],\n  \"targets\": [\n");
	put_targets(f);
	fprintf(f, "  ]\n}\n");
	if (fclose(f))
		die("%s: %s", path, strerror(errno));
}

/* ---- The chart ---- */

/* What tells most; the rest is in the table. */
static const char * const charted[] = {
	"attr-*-64GiB", "memcg-alternate-*", "create-private-*", "change-private-fresh",
	"change-*-100000", "fault-private-100000", "*-create", "inplace-fallocate-large",
	"huge-*-large", "*-cold", "huge-exits", "*-page-4-vcpus", "peak-inplace",
	"peak-huge", "huge-*split", "two-*-4KiB", "inplace-*-4KiB", "huge-preserve-*-4KiB",
	"huge-preserve-*-4KiB-100000", "inplace-preserve-*-2MiB", "huge-*-2MiB",
};

/* The slow ones always. */
static bool is_charted(const struct row *r)
{
	size_t i;

	for (i = 0; i < sizeof(charted) / sizeof(*charted); i++)
		if (!fnmatch(charted[i], r->id, 0))
			return true;
	return is_slower(r);
}

/* Outside of zeroing, where ours zeroes too. */
void draw_chart(const char *path)
{
	static struct bar bars[MAX_ROWS];
	int i, n = 0;
	double r;

	for (i = 0; i < nr_rows; i++) {
		r = ratio(&rows[i], rows[i].fig[OURS].zeroed == 0);
		if (r && is_charted(&rows[i]))
			bars[n++] = (struct bar) { rows[i].group, rows[i].label, r };
	}
	if (n && write_chart(path, bars, n))
		die("%s: %s", path, strerror(errno));
}

/* ---- The page ---- */

/* Why rows may miss a target, by their names; the last one is for all others. */
static const struct {
	const char *pattern;
	const char *why;
} reasons[] = {
	{ "change-private-fresh",
	  "The first change in a piece of 1 GiB allocates a bitmap.  The base allocates an\n"
	  "entry for each page that changes." },
	{ "*-hole*",
	  "A hole of 4 KiB looks for what is there, and for the slots that show it, more often\n"
	  "than the base does.  In a large page it splits the page first.  The guest has saved\n"
	  "many times more when it touched the 2 MiB." },
	{ "*-zero-*-4KiB*",
	  "The guest's exit and fault and the zeroing are three quarters of the cost.  They are\n"
	  "the same in both kernels." },
	{ "pvm_gmem_roundtrip",
	  "A call to share a page goes to the VMM instead of ending in the hypervisor.  A round\n"
	  "trip takes two exits." },
	{ "pvm_gmem_boot",
	  "Linux makes hundreds of calls to share a page when it boots." },
	{ "*", "No reason is known." },
};

#define NR_REASONS	((int)(sizeof(reasons) / sizeof(*reasons)))

static int reason(const struct row *r)
{
	int i = 0;

	while (fnmatch(reasons[i].pattern, r->id, 0))
		i++;
	return i;
}

static void put_misses(FILE *f)
{
	int i, why, n = 0;

	for (i = 0; i < nr_rows; i++)
		n += misses_target(&rows[i]);
	if (!n)
		return;

	fprintf(f, "\n## What misses a target, and why\n\n%d of %d rows miss a target.\n", n, nr_rows);
	for (why = 0; why < NR_REASONS; why++) {
		for (i = n = 0; i < nr_rows; i++) {
			if (!misses_target(&rows[i]) || reason(&rows[i]) != why)
				continue;
			if (!n++)
				fprintf(f, "\n%s\n\n", reasons[why].why);
			fprintf(f, "* %s\n", rows[i].label);
		}
	}
}

/* The project's page of figures, whole; @chart may be NULL. */
void write_page(const char *path, const char *title, const char *make, const char *machine,
		const char *chart)
{
	FILE *f = fopen(path, "w");
	int i;

	if (!f)
		die("%s: %s", path, strerror(errno));
	fprintf(f, "# %s\n\n<!-- Written by %s; edits are lost. -->\n\n", title, make);
	fprintf(f, "`%s` boots the unpatched kernel (base) and this one (ours) in the same emulated\n"
		"machine, and runs one program on both.  The clock of the machine counts instructions,\n"
		"so the figures are the same at every run.  The threads of several vCPUs share one\n"
		"processor here: the figures show what the threads do twice, but not how they wait for\n"
		"each other.\n\n", make);
	for (i = 0; i < NR_KERNELS; i++)
		fprintf(f, "* %s: Linux %s\n", kernels[i].name, kernels[i].release);
	fprintf(f, "* machine: `%s`\n", machine);
	if (chart)
		fprintf(f, "\n![How many times fewer instructions than the base, row by row](%s)\n",
			chart);
	fprintf(f, "\n## Targets\n\n```\n");
	print_targets(f);
	fprintf(f, "```\n");
	put_misses(f);
	fprintf(f, "\n## Rows\n\n```\n");
	print_table(f);
	fprintf(f, "```\n");
	if (fclose(f))
		die("%s: %s", path, strerror(errno));
}
