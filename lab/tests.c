// SPDX-License-Identifier: GPL-2.0
/*
 * lab/tests as read, and the judging: what is to run, what may be skipped, what
 * a test's output and end make of it.
 *
 * A test is skipped when it says so as a whole (exit status 4, "1..0") or when
 * all its cases are.  Either way, and also when only some cases are, lab/tests
 * must expect it:
 *
 *   skip  PLATFORMS  TEST       REASON	the test as a whole
 *   skip  PLATFORMS  TEST/CASE  REASON	this case of it; CASE is its KTAP name, or
 *					the reason when it has none
 *
 * Both may be shell patterns.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fnmatch.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runner.h"

#define STATUS_SKIP	4

/* A "skip" line of lab/tests */
struct skip {
	char	platforms[128];
	char	name[256];
	char	reason[160];
};

static struct test tests[MAX_TESTS];
static struct skip skips[MAX_TESTS];
static int nr_tests, nr_skips;

const char *only_arch = "", *only_test = "";
struct totals *totals;
enum level only_level = LEVEL_FULL;
const char * const level_names[NR_LEVELS] = { "quick", "full", "soak" };

/* One write(), so that lines of platforms that run together stay whole. */
void put_line(const char *fmt, ...)
{
	char buf[4096];
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(buf, sizeof(buf) - 1, fmt, ap);
	va_end(ap);
	if (n > (int)sizeof(buf) - 2)
		n = sizeof(buf) - 2;
	buf[n++] = '\n';
	if (write(1, buf, n) != n)
		exit(2);
}

/* ---- the table ---- */

/* Is @word matched by a pattern of @list (by comma or blank)? */
static bool in_list(const char *list, const char *word)
{
	char copy[1024], *w, *save;

	snprintf(copy, sizeof(copy), "%s", list);
	for (w = strtok_r(copy, ", ", &save); w; w = strtok_r(NULL, ", ", &save))
		if (!fnmatch(w, word, 0))
			return true;
	return false;
}

/* Is @word in @list, letter by letter? */
static bool is_named(const char *list, const char *word)
{
	char copy[1024], *w, *save;

	snprintf(copy, sizeof(copy), "%s", list);
	for (w = strtok_r(copy, ", ", &save); w; w = strtok_r(NULL, ", ", &save))
		if (!strcmp(w, word))
			return true;
	return false;
}

/* The level of that name, -1 if there is none. */
int find_level(const char *name)
{
	int i;

	for (i = 0; i < NR_LEVELS; i++)
		if (!strcmp(level_names[i], name))
			return i;
	return -1;
}

/* The base that is tested has no test of that @name. */
static void drop_test(const char *name)
{
	int i, n = 0;

	for (i = 0; i < nr_tests; i++)
		if (!in_list(name, tests[i].name))
			tests[n++] = tests[i];
	nr_tests = n;
}

/*
 * Lines of lab/tests: "level LEVEL", "NAME PLATFORMS SECONDS [ARGS]",
 * "skip PLATFORMS NAME REASON", "without BASE NAME REASON"
 */
void read_table(const char *path)
{
	FILE *f = fopen(path, "r");
	const char *tested = getenv("LAB_BASE") ?: "";
	int n = 0, level = LEVEL_QUICK;
	char line[1024], name[64], base[64];

	if (!f)
		die("%s: %s", path, strerror(errno));
	while (fgets(line, sizeof(line), f)) {
		struct test *t = &tests[nr_tests];
		struct skip *s = &skips[nr_skips];

		n++;
		line[strcspn(line, "#\n")] = '\0';
		if (line[strspn(line, " \t")] == '\0')
			continue;
		if (nr_tests == MAX_TESTS || nr_skips == MAX_TESTS)
			die("%s: too many lines", path);
		if (sscanf(line, "level %63s", name) == 1) {
			level = find_level(name);
			if (level < 0)
				die("%s:%d: no such level: %s", path, n, name);
			continue;
		}
		if (sscanf(line, "without %63s %63s", base, name) == 2) {
			if (!strcmp(base, tested))
				drop_test(name);
			continue;
		}
		t->level = level;
		if (sscanf(line, "skip %127s %255s %159[^\n]", s->platforms,
			   s->name, s->reason) == 3)
			nr_skips++;
		else if (sscanf(line, "%63s %127s %d %255[^\n]", t->name,
				t->platforms, &t->seconds, t->args) >= 3)
			nr_tests++;
		else
			die("%s:%d: not understood: %s", path, n, line);
	}
	fclose(f);
}

/* What has a name of its own runs at any level; a pattern picks from those of the level. */
static bool is_selected(const char *only, const char *name, enum level level)
{
	if (is_named(only, name))
		return true;
	return level <= only_level && (!*only || in_list(only, name));
}

/* The tests that run on @p, in @list (of MAX_TESTS).  Returns their number. */
int select_tests(const struct platform *p, struct test **list)
{
	int i, n = 0;

	if (!is_selected(only_arch, p->name, p->level))
		return 0;
	for (i = 0; i < nr_tests; i++) {
		if (!is_selected(only_test, tests[i].name, tests[i].level))
			continue;
		if (in_list(tests[i].platforms, p->name))
			list[n++] = &tests[i];
	}
	return n;
}

static const char *expected_skip(const struct platform *p, const char *name)
{
	int i;

	for (i = 0; i < nr_skips; i++)
		if (in_list(skips[i].name, name) &&
		    in_list(skips[i].platforms, p->name))
			return skips[i].reason;
	return NULL;
}

/* ---- verdicts ---- */

void log_path(char *buf, size_t size, const struct platform *p, const char *name)
{
	snprintf(buf, size, "build/logs/%s/%s.log", p->name, name);
	for (buf += strlen("build/logs/") + strlen(p->name) + 1; *buf; buf++)
		if (*buf == '/' || *buf == ':')
			*buf = '-';
}

void start_outcome(struct outcome *o, const struct platform *p, const char *name)
{
	memset(o, 0, sizeof(*o));
	o->p = p;
	o->name = name;
	o->plan = -1;
	o->status = -1;
}

/* There is no verdict; the text says why. */
void fail_outcome(struct outcome *o, const char *fmt, ...)
{
	va_list ap;

	o->status = -1;
	va_start(ap, fmt);
	vsnprintf(o->reason, sizeof(o->reason), fmt, ap);
	va_end(ap);
}

/* "ok 3 CASE # SKIP REASON" is @text, its "#" at @skip; @o has the reason. */
static void count_skip(struct outcome *o, const char *text, const char *skip)
{
	char name[256];
	int len;

	o->skip++;
	text += strlen("ok ");
	text += strspn(text, "0123456789");
	text += strspn(text, " -");
	for (len = skip - text; len > 0 && text[len - 1] == ' '; len--)
		;
	if (len <= 0) {
		text = o->reason;
		len = strlen(text);
	}
	snprintf(name, sizeof(name), "%s/%.*s", o->name, len, text);
	if (!o->unexpected[0] && !expected_skip(o->p, name))
		snprintf(o->unexpected, sizeof(o->unexpected), "%.*s%s%s", len, text,
			 text == o->reason ? "" : ": ",
			 text == o->reason ? "" : o->reason);
}

/* Take a line of the output of a test into account. */
void count_ktap(struct outcome *o, const char *text)
{
	const char *skip = strstr(text, "# SKIP"), *why;

	if (skip) {
		why = skip + strlen("# SKIP");
		why += strspn(why, " ");
		snprintf(o->reason, sizeof(o->reason), "%.*s",
			 (int)strcspn(why, "\r\n"), why);
	}
	if (!strncmp(text, "1..", 3))
		o->plan = atoi(text + 3);
	else if (!strncmp(text, "not ok ", 7))
		o->not_ok++;
	else if (!strncmp(text, "ok ", 3) && skip)
		count_skip(o, text, skip);
	else if (!strncmp(text, "ok ", 3))
		o->ok++;
}

/* Why @o is a failure, in @buf; false when it is none. */
static bool find_fault(const struct outcome *o, char *buf, size_t size)
{
	int seen = o->ok + o->not_ok + o->skip;

	if (o->status == STATUS_TIMEOUT)
		snprintf(buf, size, "timeout %llds", (o->ms + 500) / 1000);
	else if (o->bad[0])
		snprintf(buf, size, "kernel: %s", o->bad);
	else if (o->status < 0)
		snprintf(buf, size, "%s", o->reason);
	else if (o->not_ok)
		snprintf(buf, size, "%d of %d tests", o->not_ok, seen);
	else if (o->status >= 256)
		snprintf(buf, size, "signal %d", o->status - 256);
	else if (o->status != 0 && o->status != STATUS_SKIP)
		snprintf(buf, size, "exit %d", o->status);
	else if (o->status == 0 && o->plan > 0 && o->plan != seen)
		snprintf(buf, size, "%d of %d planned tests ran", seen, o->plan);
	else
		return false;
	return true;
}

/* Why all that @o skipped is expected; NULL: something is not. */
static const char *why_skipped(const struct outcome *o, bool whole)
{
	const char *why = whole ? expected_skip(o->p, o->name) : NULL;

	if (!why && o->status == 0 && o->skip && !o->unexpected[0])
		why = o->reason;
	return why;
}

/* Print the verdict and count it.  Returns false when the test failed. */
bool judge(const struct outcome *o)
{
	struct totals *sum = &totals[o->p - platforms];
	bool whole = o->status == STATUS_SKIP || !o->plan || (!o->ok && o->skip);
	const char *why = why_skipped(o, whole);
	const char *skip = o->unexpected[0] ? o->unexpected : o->reason;
	char fault[512], log[256], counts[64] = "";
	bool failed = find_fault(o, fault, sizeof(fault));

	*(strcmp(o->name, "boot") ? &sum->test_ms : &sum->boot_ms) += o->ms;
	log_path(log, sizeof(log), o->p, o->name);
	if (!failed && (whole || o->skip) && !why) {
		failed = true;
		snprintf(fault, sizeof(fault), "skipped, lab/tests does not expect it: %s",
			 *skip ? skip : "no test ran");
	}
	if (failed) {
		sum->failed++;
		put_line("FAIL %s %s (%s, log %s)", o->p->name, o->name, fault, log);
		return false;
	}
	if (whole) {
		sum->skipped++;
		put_line("SKIP %s %s (%s)", o->p->name, o->name, why);
		return true;
	}
	sum->passed++;
	if (o->skip)
		snprintf(counts, sizeof(counts), "%d tests, %d skipped, ", o->ok, o->skip);
	else if (o->ok)
		snprintf(counts, sizeof(counts), "%d tests, ", o->ok);
	put_line("PASS %s %s (%s%.1fs)", o->p->name, o->name, counts, o->ms / 1000.0);
	return true;
}
