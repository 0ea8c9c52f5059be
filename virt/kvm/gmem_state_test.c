// SPDX-License-Identifier: GPL-2.0-only
/*
 * KUnit tests for the guest_memfd state map.
 *
 * Linked into the same object as the map (kvm.ko or vmlinux).  Failures are
 * injected into the test's own maps only, those of running VMs aren't affected.
 */
#include <kunit/test.h>
#include <linux/atomic.h>
#include <linux/bitmap.h>
#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/kthread.h>
#include <linux/kvm_gmem_state.h>
#include <linux/log2.h>
#include <linux/moduleparam.h>
#include <linux/prandom.h>
#include <linux/sched/signal.h>
#include <linux/vmalloc.h>

#define PIECE		((unsigned long)GMEM_STATE_PIECE_PAGES)
#define BLOCK		GMEM_STATE_BLOCK_PAGES

/* Where the byte offset of a file ends, and with it any range. */
#define MAX_PAGES	(ULONG_MAX >> PAGE_SHIFT)

/* The tree with all pieces: its levels, and what all but the last take in the top. */
#define MAX_PIECES_BITS	(BITS_PER_LONG - PAGE_SHIFT - ilog2(GMEM_STATE_PIECE_PAGES))
#define MAX_LEVELS	DIV_ROUND_UP(MAX_PIECES_BITS, XA_CHUNK_SHIFT)
#define MAX_TOP		((1 << (MAX_PIECES_BITS - (MAX_LEVELS - 1) * XA_CHUNK_SHIFT)) - 1)

#define RACE_ROUNDS	100
/* KASAN and lockdep look at each operation; that many of them take minutes. */
#define RANDOM_OPS	(IS_ENABLED(CONFIG_KASAN) ? 20000 : 200000)
#define RANDOM_PAGES	(3 * PIECE + 12345)
#define RANDOM_LARGE_OPS	(RANDOM_OPS / 200)

static unsigned long gmem_state_kunit_seed = 0x67656d21;
module_param(gmem_state_kunit_seed, ulong, 0444);
MODULE_PARM_DESC(gmem_state_kunit_seed, "Seed of the gmem_state KUnit tests");

static struct gmem_state *new_map(struct kunit *test, bool dflt)
{
	struct gmem_state *s = kunit_kzalloc(test, sizeof(*s), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, s);
	gmem_state_init(s, dflt);
	return s;
}

static void set_range(struct kunit *test, struct gmem_state *s,
		      unsigned long start, unsigned long end, bool value)
{
	struct gmem_state_change c;

	KUNIT_ASSERT_EQ(test, gmem_state_prepare(s, &c, start, end, value), 0);
	gmem_state_commit(s, &c);
}

/* Slots that are reserved; none may survive a commit or an abort. */
static unsigned int nr_reserved(struct gmem_state *s)
{
	XA_STATE(xas, &s->pieces, 0);
	unsigned int nr = 0;
	void *entry;

	rcu_read_lock();
	xas_for_each(&xas, entry, ULONG_MAX)
		nr += xa_is_zero(entry);
	rcu_read_unlock();

	return nr;
}

static unsigned int nr_entries(struct gmem_state *s)
{
	unsigned int nr = 0;
	unsigned long piece;
	void *entry;

	xa_for_each(&s->pieces, piece, entry)
		nr++;

	return nr;
}

static unsigned int nr_bitmaps(struct gmem_state *s)
{
	unsigned int nr = 0;
	unsigned long piece;
	void *entry;

	xa_for_each(&s->pieces, piece, entry)
		nr += !xa_is_value(entry);

	return nr;
}

/* Recurses once per level of the tree, of which there are at most six here. */
static unsigned int nr_nodes_below(struct xarray *xa, void *entry)
{
	unsigned int i, nr = 1;

	if (!xa_is_node(entry))
		return 0;

	for (i = 0; i < XA_CHUNK_SIZE; i++)
		nr += nr_nodes_below(xa, xa_entry_locked(xa, xa_to_node(entry), i));

	return nr;
}

static unsigned int nr_nodes(struct gmem_state *s)
{
	unsigned int nr;

	xa_lock(&s->pieces);
	nr = nr_nodes_below(&s->pieces, xa_head_locked(&s->pieces));
	xa_unlock(&s->pieces);

	return nr;
}

/* The counter and the tree agree, and nothing is left over. */
static void check_tidy(struct kunit *test, struct gmem_state *s)
{
	KUNIT_ASSERT_EQ(test, nr_reserved(s), 0);
	KUNIT_ASSERT_EQ(test, nr_bitmaps(s), s->kunit.nr_bitmaps);
	KUNIT_ASSERT_LE(test, s->kunit.nr_blocks, s->kunit.nr_bitmaps * PIECE / BLOCK);
	KUNIT_ASSERT_EQ(test, xa_empty(&s->pieces), !nr_entries(s));
	KUNIT_ASSERT_NULL(test, s->pending);
}

/* [start, end) has @value, and the pages on both sides have the other one. */
static void check_island(struct kunit *test, struct gmem_state *s,
			 unsigned long start, unsigned long end, bool value)
{
	KUNIT_EXPECT_EQ(test, gmem_state_test(s, start), value);
	KUNIT_EXPECT_EQ(test, gmem_state_test(s, end - 1), value);
	KUNIT_EXPECT_EQ(test, gmem_state_test(s, end), !value);

	KUNIT_EXPECT_TRUE(test, gmem_state_range_is(s, start, end, value));
	KUNIT_EXPECT_FALSE(test, gmem_state_range_is(s, start, end, !value));
	KUNIT_EXPECT_FALSE(test, gmem_state_range_is(s, start, end + 1, value));
	KUNIT_EXPECT_TRUE(test, gmem_state_range_is(s, end, MAX_PAGES, !value));

	KUNIT_EXPECT_EQ(test, gmem_state_next_change(s, start, MAX_PAGES), end);
	KUNIT_EXPECT_EQ(test, gmem_state_next_change(s, start, end), end);
	KUNIT_EXPECT_EQ(test, gmem_state_next_change(s, end, MAX_PAGES), MAX_PAGES);

	if (start) {
		KUNIT_EXPECT_EQ(test, gmem_state_test(s, start - 1), !value);
		KUNIT_EXPECT_EQ(test, gmem_state_next_change(s, 0, MAX_PAGES), start);
		KUNIT_EXPECT_FALSE(test, gmem_state_range_is(s, start - 1, end, value));
		KUNIT_EXPECT_TRUE(test, gmem_state_range_is(s, 0, start, !value));
	}
}

/* A new map, either default: one value all over, nothing allocated. */
static void gmem_state_new_map(struct kunit *test)
{
	bool dflt = *(const bool *)test->param_value;
	struct gmem_state *s = new_map(test, dflt);

	KUNIT_EXPECT_EQ(test, gmem_state_test(s, 0), dflt);
	KUNIT_EXPECT_EQ(test, gmem_state_test(s, MAX_PAGES - 1), dflt);
	KUNIT_EXPECT_TRUE(test, gmem_state_range_is(s, 0, MAX_PAGES, dflt));
	KUNIT_EXPECT_FALSE(test, gmem_state_range_is(s, 0, MAX_PAGES, !dflt));
	KUNIT_EXPECT_TRUE(test, gmem_state_range_is(s, 7, 7, !dflt));
	KUNIT_EXPECT_EQ(test, gmem_state_next_change(s, 0, MAX_PAGES), MAX_PAGES);
	KUNIT_EXPECT_EQ(test, gmem_state_next_change(s, 7, 8), 8);
	KUNIT_EXPECT_EQ(test, s->kunit.nr_allocs, 0);
	gmem_state_destroy(s);
}

/* Set one range in a new map and take it back, at every kind of border. */
static void gmem_state_borders(struct kunit *test)
{
	static const struct {
		unsigned long start, end;
		unsigned int bitmaps, entries;
	} cases[] = {
		{ 0, 1, 1, 1 },
		{ 63, 65, 1, 1 },
		{ 64, 128, 1, 1 },
		{ 1000, 5000, 1, 1 },
		{ PIECE - 1, PIECE, 1, 1 },
		{ PIECE, PIECE + 1, 1, 1 },
		{ PIECE - 1, PIECE + 1, 2, 2 },
		{ 0, PIECE, 0, 1 },
		{ 0, PIECE + 1, 1, 2 },
		{ PIECE - 1, 2 * PIECE, 1, 2 },
		{ PIECE, 2 * PIECE, 0, 1 },
		{ PIECE + 1, 2 * PIECE - 1, 1, 1 },
		{ PIECE - 1, 3 * PIECE + 1, 2, 4 },
		{ 5 * PIECE, 1029 * PIECE, 0, 59 + 15 + 5 },
		{ 5 * PIECE - 1, 1029 * PIECE + 1, 2, 59 + 15 + 5 + 2 },
		{ MAX_PAGES - PIECE, MAX_PAGES - 1, 2, 2 },
		/* No value takes the place of the topmost node. */
		{ 0, 64 * PIECE, 0, 64 },
		{ 0, 64 * PIECE + 1, 1, 2 },
		{ 0, 65 * PIECE, 0, 2 },
		{ 64 * PIECE, 128 * PIECE, 0, 1 },
		{ 64 * PIECE, 129 * PIECE, 0, 2 },
		{ 63 * PIECE, 129 * PIECE, 0, 3 },
		{ 4096 * PIECE, 8192 * PIECE, 0, 1 },
		{ 4095 * PIECE, 8193 * PIECE, 0, 3 },
		{ 0, MAX_PAGES - 1, 1, MAX_TOP + 63 * (MAX_LEVELS - 1) + 1 },
		{ 1, MAX_PAGES - 1, 2, MAX_TOP - 1 + 2 * 63 * (MAX_LEVELS - 1) + 2 },
	};
	bool dflt = *(const bool *)test->param_value;
	struct gmem_state *s = new_map(test, dflt);
	int i;

	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		unsigned long start = cases[i].start, end = cases[i].end;

		set_range(test, s, start, end, !dflt);
		check_island(test, s, start, end, !dflt);
		check_tidy(test, s);
		KUNIT_EXPECT_EQ_MSG(test, nr_bitmaps(s), cases[i].bitmaps, "case %d", i);
		KUNIT_EXPECT_EQ_MSG(test, nr_entries(s), cases[i].entries, "case %d", i);

		set_range(test, s, start, end, dflt);
		KUNIT_EXPECT_TRUE(test, gmem_state_range_is(s, 0, MAX_PAGES, dflt));
		check_tidy(test, s);
		KUNIT_EXPECT_TRUE_MSG(test, xa_empty(&s->pieces), "case %d", i);
	}

	gmem_state_destroy(s);
}

/* A hole in a range of uniform pieces that don't have the default value. */
static void gmem_state_hole(struct kunit *test)
{
	bool dflt = *(const bool *)test->param_value;
	struct gmem_state *s = new_map(test, dflt);

	set_range(test, s, 0, 8 * PIECE, !dflt);

	/* Crosses a border; the island ends at the hole and begins after it. */
	set_range(test, s, 3 * PIECE - 2, 3 * PIECE + 2, dflt);
	KUNIT_EXPECT_EQ(test, nr_bitmaps(s), 2);
	KUNIT_EXPECT_EQ(test, gmem_state_next_change(s, 0, MAX_PAGES), 3 * PIECE - 2);
	KUNIT_EXPECT_EQ(test, gmem_state_next_change(s, 3 * PIECE - 2, MAX_PAGES),
			3 * PIECE + 2);
	KUNIT_EXPECT_EQ(test, gmem_state_next_change(s, 3 * PIECE + 2, MAX_PAGES),
			8 * PIECE);
	KUNIT_EXPECT_FALSE(test, gmem_state_range_is(s, 0, 8 * PIECE, !dflt));

	/* A whole piece, that of one of the bitmaps. */
	set_range(test, s, 3 * PIECE, 4 * PIECE, dflt);
	KUNIT_EXPECT_EQ(test, nr_bitmaps(s), 1);
	KUNIT_EXPECT_EQ(test, nr_entries(s), 7);
	check_tidy(test, s);

	/* Everything. */
	set_range(test, s, 0, MAX_PAGES, dflt);
	KUNIT_EXPECT_TRUE(test, xa_empty(&s->pieces));
	check_tidy(test, s);
	gmem_state_destroy(s);
}

/* A bitmap lives as long as its piece is mixed, whichever way that ends. */
static void gmem_state_bitmap_life(struct kunit *test)
{
	bool dflt = *(const bool *)test->param_value;
	struct gmem_state *s = new_map(test, dflt);
	unsigned long i;

	/* One page at a time to the other value: a value entry at the end. */
	for (i = 0; i < PIECE; i++) {
		set_range(test, s, PIECE + i, PIECE + i + 1, !dflt);
		KUNIT_ASSERT_EQ(test, s->kunit.nr_bitmaps, i + 1 < PIECE);
		cond_resched();
	}
	KUNIT_EXPECT_TRUE(test, xa_is_value(xa_load(&s->pieces, 1)));

	/* And back in odd steps, backwards: nothing at the end. */
	for (i = PIECE; i; i -= min(i, 1001)) {
		set_range(test, s, PIECE + i - min(i, 1001), PIECE + i, dflt);
		KUNIT_ASSERT_EQ(test, s->kunit.nr_bitmaps, i > 1001);
	}
	KUNIT_EXPECT_TRUE(test, xa_empty(&s->pieces));

	/* Replaced by a change that covers the whole piece. */
	set_range(test, s, PIECE + 5, PIECE + 6, !dflt);
	set_range(test, s, PIECE, 2 * PIECE, !dflt);
	KUNIT_EXPECT_EQ(test, s->kunit.nr_bitmaps, 0);
	check_tidy(test, s);

	/* Three bitmaps with a block each, all other blocks twice, twice an empty slot. */
	KUNIT_EXPECT_EQ(test, s->kunit.nr_allocs, 3 + 2 * (PIECE / BLOCK - 1) + 2);
	gmem_state_destroy(s);
}

/* A change to what is already there allocates nothing. */
static void gmem_state_no_op(struct kunit *test)
{
	bool dflt = *(const bool *)test->param_value;
	struct gmem_state *s = new_map(test, dflt);
	unsigned int nr;

	set_range(test, s, 5, 3 * PIECE + 5, dflt);
	set_range(test, s, 5, 5, !dflt);
	set_range(test, s, PIECE, PIECE, !dflt);
	KUNIT_EXPECT_EQ(test, s->kunit.nr_allocs, 0);
	KUNIT_EXPECT_TRUE(test, xa_empty(&s->pieces));

	/* Bitmaps at both ends, two value entries between them. */
	set_range(test, s, 5, 3 * PIECE + 5, !dflt);
	nr = s->kunit.nr_allocs;
	KUNIT_EXPECT_EQ(test, nr, 6);
	set_range(test, s, 5, 3 * PIECE + 5, !dflt);
	set_range(test, s, PIECE + 1, PIECE + 2, !dflt);
	set_range(test, s, 0, 5, dflt);

	/* Nor does one to pages of a bitmap's own block, or back to the default. */
	set_range(test, s, 7, 9, dflt);
	set_range(test, s, 7, 9, !dflt);
	set_range(test, s, PIECE, 2 * PIECE, dflt);
	KUNIT_EXPECT_EQ(test, s->kunit.nr_allocs, nr);
	check_tidy(test, s);
	gmem_state_destroy(s);
}

/* Set a range of a map with one mixed piece; returns what that allocated. */
static unsigned int set_and_count(struct kunit *test, struct gmem_state *s,
				  unsigned long start, unsigned long end, bool value)
{
	s->kunit.nr_allocs = 0;
	set_range(test, s, start, end, value);
	KUNIT_EXPECT_TRUE(test, gmem_state_range_is(s, start, end, value));
	check_tidy(test, s);
	return s->kunit.nr_allocs;
}

/* A block has memory of its own as soon as it has pages of both values. */
static void gmem_state_block_life(struct kunit *test)
{
	bool dflt = *(const bool *)test->param_value;
	struct gmem_state *s = new_map(test, dflt);
	struct gmem_state_change c;

	/* A bitmap, which has room for a block, and a slot. */
	KUNIT_EXPECT_EQ(test, set_and_count(test, s, 5, 6, !dflt), 2);

	/* Whole blocks, and back: no more. */
	KUNIT_EXPECT_EQ(test, set_and_count(test, s, 4 * BLOCK, 6 * BLOCK, !dflt), 0);
	KUNIT_EXPECT_EQ(test, set_and_count(test, s, 5 * BLOCK, 6 * BLOCK, dflt), 0);
	KUNIT_EXPECT_EQ(test, s->kunit.nr_blocks, 0);

	/* Parts of blocks, at either end; what they have already costs nothing. */
	KUNIT_EXPECT_EQ(test, set_and_count(test, s, 2 * BLOCK, 3 * BLOCK + 1, !dflt), 1);
	KUNIT_EXPECT_EQ(test, set_and_count(test, s, 7 * BLOCK - 1, 9 * BLOCK, !dflt), 1);
	KUNIT_EXPECT_EQ(test, set_and_count(test, s, 10 * BLOCK - 1, 12 * BLOCK + 1, !dflt), 2);
	KUNIT_EXPECT_EQ(test, set_and_count(test, s, 4 * BLOCK + 1, 5 * BLOCK - 1, !dflt), 0);
	KUNIT_EXPECT_EQ(test, set_and_count(test, s, 4 * BLOCK + 1, 4 * BLOCK + 2, dflt), 1);
	KUNIT_EXPECT_EQ(test, s->kunit.nr_blocks, 5);

	/* Not even a block that is all of one value again goes before the bitmap. */
	KUNIT_EXPECT_EQ(test, set_and_count(test, s, 0, BLOCK, !dflt), 0);
	KUNIT_EXPECT_EQ(test, set_and_count(test, s, 7, 8, dflt), 0);
	KUNIT_EXPECT_EQ(test, s->kunit.nr_blocks, 5);

	/* An abort gives back what the change would have taken. */
	KUNIT_ASSERT_EQ(test, 0, gmem_state_prepare(s, &c, 20 * BLOCK + 1, 21 * BLOCK + 1, !dflt));
	KUNIT_EXPECT_EQ(test, s->kunit.nr_blocks, 7);
	gmem_state_abort(s, &c);
	KUNIT_EXPECT_EQ(test, s->kunit.nr_blocks, 5);

	/* The same if it would have made a bitmap, with a block at either end. */
	KUNIT_ASSERT_EQ(test, 0, gmem_state_prepare(s, &c, PIECE + 1, PIECE + BLOCK + 1, !dflt));
	KUNIT_EXPECT_EQ(test, s->kunit.nr_blocks, 6);
	gmem_state_abort(s, &c);
	KUNIT_EXPECT_EQ(test, s->kunit.nr_blocks, 5);

	set_range(test, s, 0, PIECE, dflt);
	KUNIT_EXPECT_EQ(test, s->kunit.nr_blocks, 0);
	gmem_state_destroy(s);
}

static u64 mix(u64 hash, u64 val)
{
	return (hash ^ val) * 0x100000001b3ULL;
}

/* A number that stands for all values, as readers see them. */
static u64 digest(struct gmem_state *s)
{
	u64 hash = mix(nr_bitmaps(s), s->dflt);
	unsigned long index = 0;

	while (index < MAX_PAGES) {
		hash = mix(hash, gmem_state_test(s, index));
		index = gmem_state_next_change(s, index, MAX_PAGES);
		hash = mix(hash, index);
	}

	return hash;
}

struct change_case {
	unsigned long start, end;
	bool value;
};

/*
 * Memory and values.  What a pending change holds is memory only, and a large
 * entry may be several while it is pending.
 */
static u64 digest_all(struct gmem_state *s)
{
	u64 hash = mix(digest(s), nr_entries(s));

	return mix(mix(mix(hash, nr_nodes(s)), s->kunit.nr_bitmaps),
		   s->kunit.nr_blocks);
}

/* On fill_map()'s map; between them they take every way through prepare. */
static const struct change_case change_cases[] = {
	{ 10, 20, true },
	{ 10, 20, false },
	{ 0, 8 * PIECE, true },
	{ 0, 8 * PIECE, false },
	{ PIECE - 1, PIECE + 1, true },
	{ PIECE - 1, PIECE + 1, false },
	{ 2 * PIECE + 1, 6 * PIECE + 1, true },
	{ 2 * PIECE + 1, 6 * PIECE + 1, false },
	{ PIECE + BLOCK - 1, PIECE + 3 * BLOCK + 1, true },
	{ PIECE + BLOCK - 1, PIECE + 3 * BLOCK + 1, false },
	{ 2 * PIECE - 5, 4 * PIECE - BLOCK - 5, true },
	{ 2 * PIECE - 5, 4 * PIECE - BLOCK - 5, false },
	{ 4 * PIECE, 5 * PIECE, true },
	{ 4 * PIECE + 3, 4 * PIECE + 4, true },
	{ 4 * PIECE + 3, 70 * PIECE + 4, true },
	{ 4 * PIECE + 3, 70 * PIECE + 4, false },
	{ 4000 * PIECE + 3, 4200 * PIECE + 4, true },
	{ 4000 * PIECE + 3, 4200 * PIECE + 4, false },
	{ MAX_PAGES - 2, MAX_PAGES, true },
	{ MAX_PAGES - 2, MAX_PAGES, false },
	{ 9000 * PIECE + 5, 9000 * PIECE + 6, true },
	{ 9000 * PIECE + 5, 9000 * PIECE + 6, false },
	{ 9000 * PIECE, 9001 * PIECE, true },
	{ 9000 * PIECE, 9001 * PIECE, false },
	{ 9000 * PIECE - 1, 9000 * PIECE + 1, true },
	{ 9000 * PIECE - 1, 9000 * PIECE + 1, false },
	{ 8192 * PIECE, 12288 * PIECE, true },
	{ 8192 * PIECE, 12288 * PIECE, false },
	{ 8190 * PIECE + 7, 12300 * PIECE + 8, true },
	{ 8190 * PIECE + 7, 12300 * PIECE + 8, false },
	{ 12280 * PIECE, 12290 * PIECE, true },
	{ 12280 * PIECE, 12290 * PIECE, false },
	/* Few groups, but of all sizes, in nodes that have yet to be made. */
	{ ((1UL << 24) - 2) * PIECE + 7, ((3UL << 24) + (2 << 18) + 4096 + 5) * PIECE + 8, true },
	{ ((1UL << 24) - 2) * PIECE + 7, ((3UL << 24) + (2 << 18) + 4096 + 5) * PIECE + 8, false },
	{ 0, MAX_PAGES, true },
	{ 0, MAX_PAGES, false },
};

/*
 * Pieces: default, mixed, other value, mixed over a border, default; then other
 * value in groups of 4096, 4096 and 64 pieces and six of one, and default.
 */
static void fill_map(struct kunit *test, struct gmem_state *s)
{
	set_range(test, s, PIECE + 7, PIECE + 900, !s->dflt);
	set_range(test, s, 2 * PIECE, 3 * PIECE, !s->dflt);
	set_range(test, s, 4 * PIECE - 9, 4 * PIECE + 9, !s->dflt);
	set_range(test, s, 8192 * PIECE, (4 * 4096 + 64 + 6) * PIECE, !s->dflt);
}

/* Nobody sees what is prepared, and nothing is left of it after the abort. */
static void prepare_abort_all(struct kunit *test, struct gmem_state *s)
{
	u64 was = digest(s), was_all = digest_all(s);
	int i;

	for (i = 0; i < ARRAY_SIZE(change_cases); i++) {
		const struct change_case *cc = &change_cases[i];
		struct gmem_state_change c;

		KUNIT_ASSERT_EQ(test, 0, gmem_state_prepare(s, &c, cc->start,
							    cc->end, cc->value));
		KUNIT_EXPECT_EQ_MSG(test, digest(s), was, "case %d", i);
		gmem_state_abort(s, &c);
		KUNIT_EXPECT_EQ_MSG(test, digest_all(s), was_all, "case %d", i);
		check_tidy(test, s);
	}
}

/* Prepare and abort, on an empty and a full map: nothing changes or leaks. */
static void gmem_state_prepare_abort(struct kunit *test)
{
	bool dflt = *(const bool *)test->param_value;
	struct gmem_state *s = new_map(test, dflt);

	prepare_abort_all(test, s);
	KUNIT_EXPECT_TRUE(test, xa_empty(&s->pieces));
	fill_map(test, s);
	prepare_abort_all(test, s);
	gmem_state_destroy(s);
}

/* Fail allocation 1, 2, ... of a change until it succeeds. */
static unsigned int fail_each(struct kunit *test, struct gmem_state *s,
			      const struct change_case *cc)
{
	struct gmem_state_change c;
	unsigned int nr;
	u64 was;
	int err;

	was = digest_all(s);
	for (nr = 1;; nr++) {
		s->kunit.nr_allocs = 0;
		s->kunit.fail_at = nr;
		err = gmem_state_prepare(s, &c, cc->start, cc->end, cc->value);
		s->kunit.fail_at = 0;
		if (!err)
			break;

		KUNIT_ASSERT_EQ(test, err, -ENOMEM);
		KUNIT_ASSERT_EQ(test, digest_all(s), was);
		check_tidy(test, s);
	}
	KUNIT_EXPECT_EQ(test, s->kunit.nr_allocs, nr - 1);

	gmem_state_commit(s, &c);
	KUNIT_EXPECT_TRUE(test, gmem_state_range_is(s, cc->start, cc->end, cc->value));
	check_tidy(test, s);
	return nr - 1;
}

/* Every allocation fails in turn: the map is as it was, a second try works. */
static void gmem_state_fail_each_alloc(struct kunit *test)
{
	bool dflt = *(const bool *)test->param_value;
	unsigned int nr = 0;
	int i;

	for (i = 0; i < ARRAY_SIZE(change_cases); i++) {
		struct gmem_state *s = new_map(test, dflt);

		nr += fail_each(test, s, &change_cases[i]);
		gmem_state_destroy(s);

		s = new_map(test, dflt);
		fill_map(test, s);
		nr += fail_each(test, s, &change_cases[i]);
		gmem_state_destroy(s);
	}

	kunit_info(test, "%u allocations failed", nr);
	KUNIT_EXPECT_GT(test, nr, 100);
}

/*
 * Leave in the tree what a reservation of the slot of the group at @piece leaves
 * when it runs out of memory below that slot.
 */
static void leave_nodes(struct kunit *test, struct gmem_state *s,
			unsigned long piece, unsigned int order)
{
	XA_STATE_ORDER(xas, &s->pieces, piece, order);

	do {
		xas_lock(&xas);
		xas_store(&xas, XA_ZERO_ENTRY);
		if (!xas_error(&xas)) {
			RCU_INIT_POINTER(xas.xa_node->slots[xas.xa_offset], NULL);
			xas.xa_node->count--;
		}
		xas_unlock(&xas);
	} while (xas_nomem(&xas, GFP_KERNEL));

	KUNIT_ASSERT_EQ(test, xas_error(&xas), 0);
}

/* Fail a change to groups from @piece on, with nodes left over on the way. */
static void fail_halfway(struct kunit *test, struct gmem_state *s,
			 unsigned long piece, unsigned long nr,
			 unsigned long left, unsigned int order)
{
	u64 was = digest_all(s);
	struct gmem_state_change c;

	leave_nodes(test, s, left, order);
	s->kunit.nr_allocs = 0;
	s->kunit.fail_at = 1;
	KUNIT_ASSERT_EQ(test, -ENOMEM,
			gmem_state_prepare(s, &c, piece * PIECE,
					   (piece + nr) * PIECE, !s->dflt));
	s->kunit.fail_at = 0;
	KUNIT_EXPECT_EQ_MSG(test, digest_all(s), was, "piece %#lx order %u", piece, order);
	check_tidy(test, s);
}

/* A reservation that gets some of its nodes, but not all, leaves none of them. */
static void gmem_state_fail_halfway(struct kunit *test)
{
	bool dflt = *(const bool *)test->param_value;
	struct gmem_state *s = new_map(test, dflt);
	unsigned int order;

	/* On the way down, in an empty map and in one that is not. */
	for (order = XA_CHUNK_SHIFT; order < 30; order += XA_CHUNK_SHIFT) {
		fail_halfway(test, s, 1UL << 32, 1, 1UL << 32, order);
		fail_halfway(test, s, 5UL << 24, 1, 5UL << 24, order);
	}
	fail_halfway(test, s, 1UL << 24, 1UL << 12, 1UL << 24, 18);
	KUNIT_EXPECT_TRUE(test, xa_empty(&s->pieces));

	set_range(test, s, 3 * PIECE, 4 * PIECE, !dflt);
	for (order = XA_CHUNK_SHIFT; order < 30; order += XA_CHUNK_SHIFT)
		fail_halfway(test, s, 1UL << 32, 1, 1UL << 32, order);

	/* New levels on top: as many as it takes to reach what is left. */
	for (order = XA_CHUNK_SHIFT; order < 30; order += XA_CHUNK_SHIFT) {
		fail_halfway(test, s, 1UL << 33, 1, 1UL << order, order);
		fail_halfway(test, s, 1UL << 30, 1UL << 24, 1UL << order, order);
	}

	gmem_state_destroy(s);
}

/* Set a range; returns the number of nodes that the map has then. */
static unsigned int set_and_count_nodes(struct kunit *test, struct gmem_state *s,
					unsigned long start, unsigned long end,
					bool value)
{
	set_range(test, s, start, end, value);
	KUNIT_EXPECT_TRUE(test, gmem_state_range_is(s, start, end, value));
	check_tidy(test, s);
	return nr_nodes(s);
}

/* The size of a stretch doesn't matter, only its ends. */
static void gmem_state_large(struct kunit *test)
{
	bool dflt = *(const bool *)test->param_value;
	unsigned long mid = (MAX_PAGES / 3) & ~(PIECE - 1);
	struct gmem_state *s = new_map(test, dflt);
	unsigned int nr;

	/* One node a level at the end, which is odd; the start is at a border. */
	nr = set_and_count_nodes(test, s, 0, MAX_PAGES, !dflt);
	KUNIT_EXPECT_EQ(test, nr, MAX_LEVELS);
	KUNIT_EXPECT_LT(test, s->kunit.nr_allocs, MAX_LEVELS * XA_CHUNK_SIZE);

	/* A page, two pieces at a border, a lot: at most a path for either end. */
	KUNIT_EXPECT_EQ(test, set_and_count_nodes(test, s, mid + 5, mid + 6, dflt),
			nr + MAX_LEVELS - 1);
	KUNIT_EXPECT_EQ(test, set_and_count_nodes(test, s, mid + 5, mid + 6, !dflt), nr);
	KUNIT_EXPECT_LE(test, set_and_count_nodes(test, s, mid - PIECE, mid + PIECE, dflt),
			nr + 2 * (MAX_LEVELS - 1));
	KUNIT_EXPECT_EQ(test, set_and_count_nodes(test, s, mid - PIECE, mid + PIECE, !dflt),
			nr);
	KUNIT_EXPECT_LE(test, set_and_count_nodes(test, s, PIECE + 7, mid, dflt),
			nr + 2 * (MAX_LEVELS - 1));

	/* Piece by piece, with a page left out that follows later. */
	set_range(test, s, 0, MAX_PAGES, !dflt);
	set_range(test, s, mid, mid + 130 * PIECE, dflt);
	for (nr = 0; nr < 130; nr++)
		set_range(test, s, mid + nr * PIECE, mid + (nr + 1) * PIECE - (nr == 70), !dflt);
	set_range(test, s, mid + 71 * PIECE - 1, mid + 71 * PIECE, !dflt);
	KUNIT_EXPECT_EQ(test, nr_nodes(s), MAX_LEVELS);

	/* What is mixed all over leaves nothing behind, either way. */
	for (nr = 0; nr < 300; nr++)
		set_range(test, s, mid + nr * 37 * PIECE + nr, mid + nr * 38 * PIECE + 1, dflt);
	KUNIT_EXPECT_EQ(test, set_and_count_nodes(test, s, 0, MAX_PAGES, !dflt), MAX_LEVELS);
	KUNIT_EXPECT_EQ(test, set_and_count_nodes(test, s, 0, MAX_PAGES, dflt), 0);
	KUNIT_EXPECT_TRUE(test, xa_empty(&s->pieces));
	gmem_state_destroy(s);
}

/* A task that is being killed doesn't reserve the rest of its groups. */
static void gmem_state_killed(struct kunit *test)
{
	bool dflt = *(const bool *)test->param_value;
	struct gmem_state *s = new_map(test, dflt);
	struct gmem_state_change c;
	u64 was;

	fill_map(test, s);
	was = digest_all(s);

	/* Pending, but no more than that: this is a kernel thread. */
	allow_signal(SIGKILL);
	send_sig(SIGKILL, current, 1);
	KUNIT_EXPECT_EQ(test, gmem_state_prepare(s, &c, 0, MAX_PAGES, !dflt), -EINTR);
	flush_signals(current);
	disallow_signal(SIGKILL);

	KUNIT_EXPECT_EQ(test, digest_all(s), was);
	check_tidy(test, s);
	gmem_state_destroy(s);
}

/* The model: one bit a page in one flat bitmap, from page @base of the map on. */
struct model {
	struct gmem_state *s;
	struct rnd_state rnd;
	unsigned long *bits;
	unsigned long base;
};

static u32 random_below(struct model *m, u32 limit)
{
	return prandom_u32_state(&m->rnd) % limit;
}

/* Lengths of all scales alike; now and then whole pieces, or everything. */
static void random_range(struct model *m, unsigned long *start, unsigned long *end)
{
	u32 shape = random_below(m, 64);

	if (!shape) {
		*start = 0;
		*end = RANDOM_PAGES;
		return;
	}

	*start = random_below(m, RANDOM_PAGES);
	*end = *start + 1 + random_below(m, 1U << random_below(m, 20));
	if (shape < 12)
		*start = rounddown(*start, PIECE);
	if (shape < 8)
		*end = roundup(*end, PIECE);
	*end = min(*end, RANDOM_PAGES);
}

static unsigned long model_next_change(struct model *m, unsigned long start,
				       unsigned long end)
{
	return test_bit(start, m->bits) ? find_next_zero_bit(m->bits, end, start) :
					  find_next_bit(m->bits, end, start);
}

/* Set, abort, or fail. */
static void random_write(struct kunit *test, struct model *m)
{
	bool value = random_below(m, 2);
	u32 way = random_below(m, 16);
	struct gmem_state_change c;
	unsigned long start, end;
	int err;

	random_range(m, &start, &end);
	m->s->kunit.nr_allocs = 0;
	m->s->kunit.fail_at = way == 1 ? 1 + random_below(m, 4) : 0;
	err = gmem_state_prepare(m->s, &c, m->base + start, m->base + end, value);
	if (err) {
		KUNIT_ASSERT_EQ(test, err, -ENOMEM);
		KUNIT_ASSERT_EQ(test, way, 1);
		return;
	}

	if (!way) {
		gmem_state_abort(m->s, &c);
		return;
	}

	gmem_state_commit(m->s, &c);
	if (value)
		bitmap_set(m->bits, start, end - start);
	else
		bitmap_clear(m->bits, start, end - start);
}

static void random_read(struct kunit *test, struct model *m)
{
	unsigned long start, end, next, base = m->base;
	bool value;

	random_range(m, &start, &end);
	value = test_bit(start, m->bits);
	next = model_next_change(m, start, end);

	KUNIT_ASSERT_EQ(test, gmem_state_test(m->s, base + start), value);
	KUNIT_ASSERT_EQ(test, next + base,
			gmem_state_next_change(m->s, base + start, base + end));
	KUNIT_ASSERT_TRUE(test, gmem_state_range_is(m->s, base + start,
						    base + next, value));
	KUNIT_ASSERT_FALSE(test, gmem_state_range_is(m->s, base + start,
						     base + end, !value));
	KUNIT_ASSERT_EQ(test, next == end,
			gmem_state_range_is(m->s, base + start, base + end, value));
	KUNIT_ASSERT_EQ(test, next == end,
			gmem_state_is_uniform(m->s, base + start, base + end));
}

/* All runs; a bitmap exactly where a piece is mixed; nothing outside. */
static void compare_all(struct kunit *test, struct model *m)
{
	unsigned long index, next, base = m->base;
	unsigned int mixed = 0;

	for (index = 0; index < RANDOM_PAGES; index = next) {
		next = model_next_change(m, index, RANDOM_PAGES);
		KUNIT_ASSERT_EQ(test, base + next,
				gmem_state_next_change(m->s, base + index,
						       base + RANDOM_PAGES));
		KUNIT_ASSERT_EQ(test, gmem_state_test(m->s, base + index),
				test_bit(index, m->bits));
	}

	/* The tail of the last piece is never written, hence the default. */
	for (index = 0; index < RANDOM_PAGES; index += PIECE) {
		next = min(index + PIECE, RANDOM_PAGES);
		mixed += model_next_change(m, index, next) != next ||
			 (next % PIECE && test_bit(index, m->bits) != m->s->dflt);
	}
	KUNIT_ASSERT_EQ(test, nr_bitmaps(m->s), mixed);

	KUNIT_ASSERT_TRUE(test, gmem_state_range_is(m->s, 0, base, m->s->dflt));
	KUNIT_ASSERT_TRUE(test, gmem_state_range_is(m->s, base + RANDOM_PAGES,
						    MAX_PAGES, m->s->dflt));
	check_tidy(test, m->s);
}

static void free_bits(void *bits)
{
	vfree(bits);
}

/* Random writes and reads against the model, with aborts and failures. */
static void gmem_state_random(struct kunit *test)
{
	bool dflt = *(const bool *)test->param_value;
	struct model m = {
		.s = new_map(test, dflt),
		.base = dflt ? 4094 * PIECE : 0,
	};
	unsigned long i;

	kunit_info(test, "gmem_state_kunit_seed=%#lx", gmem_state_kunit_seed);
	prandom_seed_state(&m.rnd, gmem_state_kunit_seed + dflt);

	m.bits = vzalloc(BITS_TO_LONGS(RANDOM_PAGES) * sizeof(long));
	KUNIT_ASSERT_NOT_NULL(test, m.bits);
	KUNIT_ASSERT_EQ(test, 0, kunit_add_action_or_reset(test, free_bits, m.bits));
	if (dflt)
		bitmap_fill(m.bits, RANDOM_PAGES);

	for (i = 1; i <= RANDOM_OPS; i++) {
		if (random_below(&m, 2))
			random_write(test, &m);
		else
			random_read(test, &m);
		if (!(i % 2000))
			compare_all(test, &m);
		cond_resched();
	}

	/* Once page by page. */
	for (i = 0; i < RANDOM_PAGES; i++)
		KUNIT_ASSERT_EQ(test, gmem_state_test(m.s, m.base + i),
				test_bit(i, m.bits));

	gmem_state_destroy(m.s);
}

/* The model for all of the index space: where each run of one value ends. */
#define MAX_RUNS	60

struct run {
	unsigned long end;
	bool value;
};

struct runs {
	struct gmem_state *s;
	struct rnd_state rnd;
	unsigned int nr;
	struct run run[MAX_RUNS + 3];
	struct run old[MAX_RUNS + 3];
};

static u64 runs_random(struct runs *m)
{
	return (u64)prandom_u32_state(&m->rnd) << 32 | prandom_u32_state(&m->rnd);
}

static unsigned long runs_below(struct runs *m, unsigned long limit)
{
	return runs_random(m) % limit;
}

static void runs_add(struct runs *m, unsigned long end, bool value)
{
	if (m->nr && m->run[m->nr - 1].value == value)
		m->run[m->nr - 1].end = end;
	else
		m->run[m->nr++] = (struct run) { end, value };
}

static void runs_set(struct runs *m, unsigned long start, unsigned long end, bool value)
{
	unsigned int i, nr = m->nr;
	unsigned long first = 0;
	bool done = start == end;

	memcpy(m->old, m->run, sizeof(m->run));
	m->nr = 0;

	for (i = 0; i < nr; first = m->old[i++].end) {
		struct run *run = &m->old[i];

		if (first < start)
			runs_add(m, min(run->end, start), run->value);
		if (!done && run->end >= end) {
			runs_add(m, end, value);
			done = true;
		}
		if (run->end > max(start, end))
			runs_add(m, run->end, run->value);
	}
}

/* Where runs end and begin, at borders of groups of all sizes, or anywhere. */
static unsigned long runs_index(struct runs *m)
{
	unsigned long near = m->run[runs_below(m, m->nr)].end, index;
	unsigned long group = PIECE << (XA_CHUNK_SHIFT * runs_below(m, MAX_LEVELS));

	switch (runs_below(m, 4)) {
	case 0:
		index = near;
		break;
	case 1:
		index = (near / PIECE + runs_below(m, 130)) * PIECE;
		break;
	case 2:
		index = (runs_random(m) >> PAGE_SHIFT) >> runs_below(m, 50);
		break;
	default:
		index = (runs_random(m) >> PAGE_SHIFT) >> runs_below(m, 34);
		index = rounddown(index, group);
		break;
	}
	if (!runs_below(m, 4))
		index += runs_below(m, 9);

	return min(index, MAX_PAGES);
}

static void runs_compare(struct kunit *test, struct runs *m)
{
	unsigned long index = 0;
	unsigned int i;

	for (i = 0; i < m->nr; index = m->run[i++].end) {
		struct run *run = &m->run[i];

		KUNIT_ASSERT_EQ(test, gmem_state_test(m->s, index), run->value);
		KUNIT_ASSERT_EQ(test, gmem_state_test(m->s, run->end - 1), run->value);
		KUNIT_ASSERT_EQ(test, gmem_state_next_change(m->s, index, MAX_PAGES), run->end);
		KUNIT_ASSERT_TRUE(test, gmem_state_range_is(m->s, index, run->end, run->value));
		KUNIT_ASSERT_TRUE(test, gmem_state_is_uniform(m->s, index, run->end));
	}
}

/* Set, abort, or fail; a node more than a path for each border is one too many. */
static void runs_write(struct kunit *test, struct runs *m)
{
	unsigned long start = runs_index(m), end = runs_index(m);
	unsigned int nodes = nr_nodes(m->s), way = runs_below(m, 8);
	bool value = runs_below(m, 2);
	struct gmem_state_change c;
	int err;

	/* Now and then one page, or everything. */
	if (!runs_below(m, 8))
		end = min(start + 1, MAX_PAGES);
	if (m->nr > MAX_RUNS || !runs_below(m, 64)) {
		start = 0;
		end = MAX_PAGES;
	}
	if (start > end)
		swap(start, end);

	m->s->kunit.nr_allocs = 0;
	m->s->kunit.fail_at = way == 1 ? 1 + runs_below(m, 12) : 0;
	err = gmem_state_prepare(m->s, &c, start, end, value);
	m->s->kunit.fail_at = 0;

	if (err) {
		KUNIT_ASSERT_EQ(test, err, -ENOMEM);
		KUNIT_ASSERT_EQ(test, way, 1);
	} else if (!way) {
		runs_compare(test, m);
		gmem_state_abort(m->s, &c);
	} else {
		gmem_state_commit(m->s, &c);
		runs_set(m, start, end, value);
		nodes = m->nr * MAX_LEVELS;
	}

	KUNIT_ASSERT_LE(test, nr_nodes(m->s), nodes);
	check_tidy(test, m->s);
}

/* As above, for ranges of all sizes up to the largest. */
static void gmem_state_random_large(struct kunit *test)
{
	bool dflt = *(const bool *)test->param_value;
	struct runs *m = kunit_kzalloc(test, sizeof(*m), GFP_KERNEL);
	unsigned long i;

	KUNIT_ASSERT_NOT_NULL(test, m);
	m->s = new_map(test, dflt);
	m->run[m->nr++] = (struct run) { MAX_PAGES, dflt };

	kunit_info(test, "gmem_state_kunit_seed=%#lx", gmem_state_kunit_seed);
	prandom_seed_state(&m->rnd, gmem_state_kunit_seed + dflt);

	for (i = 0; i < RANDOM_LARGE_OPS; i++) {
		runs_write(test, m);
		if (!(i % 16))
			runs_compare(test, m);
		cond_resched();
	}

	runs_compare(test, m);
	gmem_state_destroy(m->s);
	KUNIT_EXPECT_EQ(test, m->s->kunit.nr_bitmaps, 0);
	KUNIT_EXPECT_TRUE(test, xa_empty(&m->s->pieces));
}

/*
 * Reader against writer.  Page @stable of each of two pieces never changes; in
 * the first it has the default value, in the second the other one.
 */
struct race {
	struct gmem_state *s;
	unsigned long pieces[2];
	unsigned long stable;
	atomic_long_t wrong;
	atomic_long_t reads;
	struct completion started;
};

static void race_read(struct race *r, int which)
{
	unsigned long index = r->pieces[which] * PIECE + r->stable, next;
	bool value = which ? !r->s->dflt : r->s->dflt;
	int i;

	for (i = 0; i < 64; i++) {
		if (gmem_state_test(r->s, index) != value)
			atomic_long_inc(&r->wrong);
	}

	if (!gmem_state_range_is(r->s, index, index + 1, value) ||
	    gmem_state_range_is(r->s, index - 1, index + 2, !value))
		atomic_long_inc(&r->wrong);

	next = gmem_state_next_change(r->s, index - 1, index + 2);
	if (next < index || next > index + 2)
		atomic_long_inc(&r->wrong);

	/* A search through nodes that come and go doesn't miss it either. */
	if (gmem_state_range_is(r->s, 0, MAX_PAGES, !value))
		atomic_long_inc(&r->wrong);
}

static int race_reader(void *arg)
{
	struct race *r = arg;

	complete(&r->started);
	while (!kthread_should_stop()) {
		race_read(r, 0);
		race_read(r, 1);
		atomic_long_inc(&r->reads);
		cond_resched();
	}

	return 0;
}

/* All but the stable page of both pieces, in two changes a piece. */
static void race_write(struct kunit *test, struct race *r, bool value)
{
	unsigned long base;

	for (base = 0; base < 2 * PIECE; base += PIECE) {
		set_range(test, r->s, base + r->stable + 1, base + PIECE, value);
		set_range(test, r->s, base, base + r->stable, value);
	}
}

/* In the word of the stable page, over and over, while both are bitmaps. */
static void race_poke(struct kunit *test, struct race *r)
{
	unsigned long index = r->stable;
	int i;

	for (i = 0; i < 100; i++) {
		set_range(test, r->s, index - 3, index, i & 1);
		set_range(test, r->s, index + 1, index + 9, i & 1);
		set_range(test, r->s, PIECE + index - 9, PIECE + index, i & 1);
		set_range(test, r->s, PIECE + index + 1, PIECE + index + 3, i & 1);
	}
}

static void stop_reader(void *task)
{
	kthread_stop(task);
}

/* Stopped at the end of the test, also if the test ends early. */
static struct task_struct *start_reader(struct kunit *test, struct race *r)
{
	struct task_struct *task;

	init_completion(&r->started);
	task = kthread_run(race_reader, r, "gmem_state_reader");
	KUNIT_ASSERT_FALSE(test, IS_ERR(task));
	KUNIT_ASSERT_EQ(test, 0, kunit_add_action_or_reset(test, stop_reader, task));
	wait_for_completion(&r->started);
	return task;
}

/* Neighbours change, pieces become uniform and mixed; readers never notice. */
static void gmem_state_readers(struct kunit *test)
{
	bool dflt = *(const bool *)test->param_value;
	struct gmem_state *s = new_map(test, dflt);
	struct task_struct *task;
	struct race *r;
	int i;

	r = kunit_kzalloc(test, sizeof(*r), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, r);
	r->s = s;
	r->pieces[1] = 1;
	r->stable = 4 * BITS_PER_LONG + 13;

	set_range(test, s, PIECE + r->stable, PIECE + r->stable + 1, !dflt);
	task = start_reader(test, r);

	for (i = 0; i < RACE_ROUNDS; i++) {
		race_poke(test, r);

		/* Piece 1 becomes uniform, then piece 0 does. */
		race_write(test, r, !dflt);
		KUNIT_EXPECT_EQ(test, s->kunit.nr_bitmaps, 1);
		race_write(test, r, dflt);
		KUNIT_EXPECT_EQ(test, s->kunit.nr_bitmaps, 1);

		/* Let the reader in where there is one CPU only. */
		if (!(i % 16))
			usleep_range(50, 100);
	}

	kunit_release_action(test, stop_reader, task);
	kunit_info(test, "%ld rounds of reading", atomic_long_read(&r->reads));
	KUNIT_EXPECT_GT(test, atomic_long_read(&r->reads), 0);
	KUNIT_EXPECT_EQ(test, atomic_long_read(&r->wrong), 0);
	gmem_state_destroy(s);
}

/* All of the map, the stable page of @r->pieces[which] excepted. */
static void race_write_large(struct kunit *test, struct race *r, int which,
			     unsigned long start, unsigned long end, bool value)
{
	unsigned long stable = r->pieces[which] * PIECE + r->stable;

	set_range(test, r->s, stable + 1, end, value);
	set_range(test, r->s, start, stable, value);
}

/* Cut and mend the large entry around the stable page of a piece. */
static void race_cut(struct kunit *test, struct race *r, int which)
{
	bool value = which ? !r->s->dflt : r->s->dflt;
	unsigned long base = r->pieces[which] * PIECE, nr;

	for (nr = 1; nr < 1UL << 24; nr <<= 7) {
		set_range(test, r->s, base + PIECE, base + (1 + nr) * PIECE, !value);
		set_range(test, r->s, base - nr * PIECE, base + 7, !value);
		set_range(test, r->s, base - nr * PIECE, base + 7, value);
		set_range(test, r->s, base + PIECE, base + (1 + nr) * PIECE, value);
	}
}

/* Large entries are split, joined, made and erased around the stable pages. */
static void gmem_state_readers_large(struct kunit *test)
{
	bool dflt = *(const bool *)test->param_value;
	struct gmem_state *s = new_map(test, dflt);
	unsigned long mid = (MAX_PAGES / 2) & ~(PIECE - 1);
	struct task_struct *task;
	struct race *r;
	int i;

	r = kunit_kzalloc(test, sizeof(*r), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, r);
	r->s = s;
	r->pieces[0] = (5UL << 24) + (7 << 12) + 9;
	r->pieces[1] = mid / PIECE + (5UL << 24) + (3 << 18) + (11 << 6);
	r->stable = 4 * BITS_PER_LONG + 13;

	set_range(test, s, mid, MAX_PAGES, !dflt);
	task = start_reader(test, r);

	for (i = 0; i < RACE_ROUNDS / 4; i++) {
		race_cut(test, r, 0);
		race_cut(test, r, 1);
		race_write_large(test, r, 0, 0, mid, !dflt);
		race_write_large(test, r, 1, mid, MAX_PAGES, dflt);
		KUNIT_EXPECT_EQ(test, s->kunit.nr_bitmaps, 2);
		race_write_large(test, r, 0, 0, mid, dflt);
		race_write_large(test, r, 1, mid, MAX_PAGES, !dflt);

		usleep_range(50, 100);
	}

	kunit_release_action(test, stop_reader, task);
	kunit_info(test, "%ld rounds of reading", atomic_long_read(&r->reads));
	KUNIT_EXPECT_GT(test, atomic_long_read(&r->reads), 0);
	KUNIT_EXPECT_EQ(test, atomic_long_read(&r->wrong), 0);
	KUNIT_EXPECT_LE(test, nr_nodes(s), 2 * MAX_LEVELS);
	gmem_state_destroy(s);
}

static const bool gmem_state_defaults[] = { false, true };

static void gmem_state_default_desc(const bool *dflt, char *desc)
{
	snprintf(desc, KUNIT_PARAM_DESC_SIZE, "default %d", *dflt);
}

KUNIT_ARRAY_PARAM(gmem_state_default, gmem_state_defaults, gmem_state_default_desc);

#define GMEM_STATE_CASE(fn)	KUNIT_CASE_PARAM(fn, gmem_state_default_gen_params)

static struct kunit_case gmem_state_test_cases[] = {
	GMEM_STATE_CASE(gmem_state_new_map),
	GMEM_STATE_CASE(gmem_state_borders),
	GMEM_STATE_CASE(gmem_state_hole),
	GMEM_STATE_CASE(gmem_state_bitmap_life),
	GMEM_STATE_CASE(gmem_state_block_life),
	GMEM_STATE_CASE(gmem_state_no_op),
	GMEM_STATE_CASE(gmem_state_prepare_abort),
	KUNIT_CASE_PARAM_ATTR(gmem_state_fail_each_alloc, gmem_state_default_gen_params,
			      { .speed = KUNIT_SPEED_SLOW }),
	GMEM_STATE_CASE(gmem_state_fail_halfway),
	GMEM_STATE_CASE(gmem_state_killed),
	GMEM_STATE_CASE(gmem_state_large),
	KUNIT_CASE_PARAM_ATTR(gmem_state_random, gmem_state_default_gen_params,
			      { .speed = KUNIT_SPEED_SLOW }),
	KUNIT_CASE_PARAM_ATTR(gmem_state_random_large, gmem_state_default_gen_params,
			      { .speed = KUNIT_SPEED_SLOW }),
	GMEM_STATE_CASE(gmem_state_readers),
	GMEM_STATE_CASE(gmem_state_readers_large),
	{}
};

static struct kunit_suite gmem_state_test_suite = {
	.name = "gmem_state",
	.test_cases = gmem_state_test_cases,
};

kunit_test_suite(gmem_state_test_suite);
