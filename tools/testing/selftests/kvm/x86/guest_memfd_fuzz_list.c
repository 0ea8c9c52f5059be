// SPDX-License-Identifier: GPL-2.0-only
/*
 * Lists of operations: by a seed, as text, and as short as they can be.
 *
 * The text has an operation a line, its name and its arguments.  What follows a
 * '#', and a line without a name, is skipped.
 */
#include "guest_memfd_fuzz.h"

void fuzz_list_free(struct fuzz_list *list)
{
	free(list->ops);
	list->ops = NULL;
	list->nr = 0;
}

static u32 pick_kind(struct kvm_random_state *random, u32 faults)
{
	u32 i, pick, total = 0;

	for (i = 0; i < fuzz_nr_ops; i++)
		if (!(fuzz_ops[i].fault & ~faults))
			total += fuzz_ops[i].weight;

	pick = kvm_random_u32(random) % total;
	for (i = 0; ; i++) {
		if (fuzz_ops[i].fault & ~faults)
			continue;
		if (pick < fuzz_ops[i].weight)
			return i;
		pick -= fuzz_ops[i].weight;
	}
}

/* Every list begins so, for most operations want something to operate on. */
static const struct {
	const char *name;
	u32 which;
} first_ops[] = {
	{ "vm-new", 0 }, { "vm-new", 1 },
	{ "file-new", 0 }, { "map", 0 }, { "bind", 0 },
	{ "file-new", 1 }, { "map", 1 }, { "bind", 1 },
	{ "file-new", 2 }, { "map", 2 }, { "bind", 2 },
};

static u32 find_kind(const char *name)
{
	u32 i;

	for (i = 0; i < fuzz_nr_ops && strcmp(name, fuzz_ops[i].name); i++)
		;
	return i;
}

/* The same seed is the same list, on any machine. */
struct fuzz_list fuzz_list_random(u32 seed, u32 nr, u32 faults)
{
	struct kvm_random_state random = new_kvm_random_state(seed);
	struct fuzz_list list = { .nr = nr };
	u32 i, j;

	list.ops = calloc(nr, sizeof(*list.ops));
	TEST_ASSERT(list.ops, "No memory for %u operations", nr);

	for (i = 0; i < nr; i++) {
		list.ops[i].kind = pick_kind(&random, faults);
		for (j = 0; j < FUZZ_NR_ARGS; j++)
			list.ops[i].arg[j] = kvm_random_u32(&random) & 0xffffff;
		if (i >= ARRAY_SIZE(first_ops))
			continue;
		list.ops[i].kind = find_kind(first_ops[i].name);
		list.ops[i].arg[0] = list.ops[i].arg[0] / FUZZ_NR_FILES * FUZZ_NR_FILES +
				     first_ops[i].which;
	}
	return list;
}

void fuzz_list_print(FILE *f, const struct fuzz_list *list)
{
	u32 i, j;

	for (i = 0; i < list->nr; i++) {
		fprintf(f, "%s", fuzz_ops[list->ops[i].kind].name);
		for (j = 0; j < FUZZ_NR_ARGS; j++)
			fprintf(f, " %u", list->ops[i].arg[j]);
		fprintf(f, "\n");
	}
}

static void parse_line(struct fuzz_op *op, char *line, u32 nr)
{
	char *word = strtok(line, " \t\n");
	u32 i;

	op->kind = find_kind(word);
	TEST_ASSERT(op->kind < fuzz_nr_ops, "Line %u: no operation \"%s\"", nr, word);

	for (i = 0; i < FUZZ_NR_ARGS && (word = strtok(NULL, " \t\n")); i++)
		op->arg[i] = atoi_paranoid(word);
	TEST_ASSERT(!strtok(NULL, " \t\n"), "Line %u: too many arguments", nr);
}

struct fuzz_list fuzz_list_parse(FILE *f)
{
	struct fuzz_list list = {};
	char line[256];
	u32 nr;

	list.ops = calloc(FUZZ_MAX_OPS, sizeof(*list.ops));
	TEST_ASSERT(list.ops, "No memory for a list");

	for (nr = 1; fgets(line, sizeof(line), f); nr++) {
		line[strcspn(line, "#")] = '\0';
		if (!line[strspn(line, " \t\n")])
			continue;
		TEST_ASSERT(list.nr < FUZZ_MAX_OPS, "More than %u operations", FUZZ_MAX_OPS);
		parse_line(&list.ops[list.nr++], line, nr);
	}
	return list;
}

/* ---- Minimal lists ---- */

/* @list without the @nr operations from @first on. */
static struct fuzz_list list_without(const struct fuzz_list *list, u32 first, u32 nr)
{
	struct fuzz_list cut = { .nr = list->nr - nr };

	cut.ops = calloc(cut.nr ?: 1, sizeof(*cut.ops));
	TEST_ASSERT(cut.ops, "No memory for a list");
	memcpy(cut.ops, list->ops, first * sizeof(*cut.ops));
	memcpy(cut.ops + first, list->ops + first + nr,
	       (cut.nr - first) * sizeof(*cut.ops));
	return cut;
}

/* Leave out pieces of @size as long as it fails without them.  Was there any? */
static bool leave_out(struct fuzz_list *list, u32 size,
		      bool (*still_fails)(const struct fuzz_list *list, void *arg),
		      void *arg)
{
	struct fuzz_list cut;
	bool shorter = false;
	u32 first = 0, nr;

	/* From the end: what came last needs less of what was before it. */
	while (first < list->nr) {
		nr = min(size, list->nr - first);
		cut = list_without(list, list->nr - first - nr, nr);
		if (!still_fails(&cut, arg)) {
			fuzz_list_free(&cut);
			first += nr;
			continue;
		}
		fuzz_list_free(list);
		*list = cut;
		shorter = true;
	}
	return shorter;
}

/* Small numbers are easier to read, and say what doesn't matter. */
static void make_small(struct fuzz_list *list,
		       bool (*still_fails)(const struct fuzz_list *list, void *arg),
		       void *arg)
{
	u32 i, j, old;

	for (i = 0; i < list->nr; i++) {
		for (j = 0; j < FUZZ_NR_ARGS; j++) {
			old = list->ops[i].arg[j];
			if (!old)
				continue;
			list->ops[i].arg[j] = 0;
			if (!still_fails(list, arg))
				list->ops[i].arg[j] = old;
		}
	}
}

/*
 * Make @list, which fails, as short as it can be by leaving out operations: halves,
 * quarters, and so on to single ones, until none can be left out.
 */
void fuzz_list_minimise(struct fuzz_list *list,
			bool (*still_fails)(const struct fuzz_list *list, void *arg),
			void *arg)
{
	u32 size;

	for (size = (list->nr + 1) / 2; size > 1; size = (size + 1) / 2)
		leave_out(list, size, still_fails, arg);
	while (leave_out(list, 1, still_fails, arg))
		;
	make_small(list, still_fails, arg);
}
