// SPDX-License-Identifier: GPL-2.0-only
/*
 * A map from page index to one attribute bit, for guest_memfd (1 = private).
 *
 * The index space is cut into pieces of GMEM_STATE_PIECE_PAGES, and an XArray
 * holds at most one entry per piece:
 *
 *	nothing		every page of the piece has the map's default value
 *	a value entry	every page has the value in that entry
 *	a pointer	a bitmap, one bit for the value of each page
 *
 * A look-up costs the same however fragmented the map is, and no guest can make
 * the map larger than one bit per page.  A bitmap exists only while its piece
 * is mixed; the commit that makes the piece uniform again drops the bitmap.
 *
 * A bitmap is an array of blocks of words.  As long as all pages of a block have
 * one value, it may be one of two constant blocks that all maps share; so the
 * first change in a piece fills one block or two, not a bit for each of the piece's
 * pages.  A block of a bitmap's own stays until the bitmap goes.  The first of them
 * comes with the bitmap, as a change that needs a bitmap nearly always needs one.
 *
 * Writers: gmem_state_prepare(), then gmem_state_commit() or _abort().  The
 * caller's lock keeps other writers out from the first to the last of the two
 * calls (guest_memfd holds the file mapping's invalidate_lock for write).  At
 * most one change is pending in a map, hence every reserved slot is its own.
 * All writers run in process context and may sleep; xa_lock nests inside the
 * caller's lock and is held for one store at a time.
 *
 * Readers: gmem_state_test(), _range_is() and _next_change() take no lock and
 * run in any context.  While a commit is running they see each of its pages
 * old or new, and different pages in any order; who needs more than that holds
 * a lock that excludes the writer, or detects it (mmu_invalidate_retry()).
 * Pages that the change doesn't cover never appear to change.
 *
 * Entries are published by xa_store(), blocks by smp_store_release(), both with
 * the words filled in beforehand.  Bitmaps, with their blocks, and XArray nodes
 * are freed after a grace period.  The callback that frees a bitmap is in this
 * file: a module that contains it must call rcu_barrier() after its last
 * gmem_state_destroy() and before it goes.
 */
#include <linux/bitmap.h>
#include <linux/bitops.h>
#include <linux/cleanup.h>
#include <linux/kvm_gmem_state.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>

#define GMEM_STATE_BLOCK_LONGS	BITS_TO_LONGS(GMEM_STATE_BLOCK_PAGES)
#define GMEM_STATE_NR_BLOCKS	(GMEM_STATE_PIECE_PAGES / GMEM_STATE_BLOCK_PAGES)

struct gmem_state_bitmap {
	/* A block of its own, or gmem_state_uniform_blocks[value]. */
	unsigned long *blocks[GMEM_STATE_NR_BLOCKS];

	/* Set bits; for the writer only, it runs behind the words. */
	unsigned int nr_set;

	struct rcu_head rcu;

	/* One of the blocks, if the change that made the bitmap needed one. */
	unsigned long first_block[GMEM_STATE_BLOCK_LONGS];
};

/* All pages have the value that is the index. */
static unsigned long gmem_state_uniform_blocks[2][GMEM_STATE_BLOCK_LONGS] __ro_after_init = {
	[true] = { [0 ... GMEM_STATE_BLOCK_LONGS - 1] = ~0UL },
};

static bool gmem_state_inject_failure(struct gmem_state *s)
{
#ifdef CONFIG_KVM_GMEM_KUNIT_TEST
	return ++s->kunit.nr_allocs == s->kunit.fail_at;
#else
	return false;
#endif
}

static void gmem_state_count_bitmap(struct gmem_state *s, int nr)
{
#ifdef CONFIG_KVM_GMEM_KUNIT_TEST
	s->kunit.nr_bitmaps += nr;
#endif
}

static void gmem_state_count_block(struct gmem_state *s, int nr)
{
#ifdef CONFIG_KVM_GMEM_KUNIT_TEST
	s->kunit.nr_blocks += nr;
#endif
}

/* All memory of the map, XArray nodes apart, comes from here. */
static void *gmem_state_alloc(struct gmem_state *s, size_t size)
{
	if (gmem_state_inject_failure(s))
		return NULL;

	return kmalloc(size, GFP_KERNEL_ACCOUNT);
}

/* Returns a block for gmem_state_change_block() to fill, or NULL. */
static unsigned long *gmem_state_alloc_block(struct gmem_state *s)
{
	unsigned long *words;

	words = gmem_state_alloc(s, GMEM_STATE_BLOCK_LONGS * sizeof(long));
	if (words)
		gmem_state_count_block(s, 1);
	return words;
}

/* Returns a bitmap in which every page has @value, or NULL. */
static struct gmem_state_bitmap *gmem_state_alloc_bitmap(struct gmem_state *s,
							 bool value)
{
	struct gmem_state_bitmap *b;

	b = gmem_state_alloc(s, sizeof(*b));
	if (!b)
		return NULL;

	memset_p((void **)b->blocks, gmem_state_uniform_blocks[value],
		 GMEM_STATE_NR_BLOCKS);
	b->nr_set = value ? GMEM_STATE_PIECE_PAGES : 0;
	gmem_state_count_bitmap(s, 1);
	return b;
}

static bool gmem_state_block_is_own(const unsigned long *words)
{
	return words != gmem_state_uniform_blocks[false] &&
	       words != gmem_state_uniform_blocks[true];
}

/* Was the block allocated apart from its bitmap? */
static bool gmem_state_block_is_apart(const struct gmem_state_bitmap *b,
				      const unsigned long *words)
{
	return gmem_state_block_is_own(words) && words != b->first_block;
}

static void gmem_state_free_bitmap(struct gmem_state_bitmap *b)
{
	int i;

	for (i = 0; i < GMEM_STATE_NR_BLOCKS; i++) {
		if (gmem_state_block_is_apart(b, b->blocks[i]))
			kfree(b->blocks[i]);
	}
	kfree(b);
}

static void gmem_state_free_bitmap_rcu(struct rcu_head *rcu)
{
	gmem_state_free_bitmap(container_of(rcu, struct gmem_state_bitmap, rcu));
}

/* The map is about to lose this bitmap. */
static void gmem_state_uncount(struct gmem_state *s, struct gmem_state_bitmap *b)
{
	int i;

	if (!IS_ENABLED(CONFIG_KVM_GMEM_KUNIT_TEST))
		return;

	for (i = 0; i < GMEM_STATE_NR_BLOCKS; i++)
		gmem_state_count_block(s, -gmem_state_block_is_apart(b, b->blocks[i]));
	gmem_state_count_bitmap(s, -1);
}

static bool gmem_state_is_bitmap(const void *entry)
{
	return entry && !xa_is_value(entry);
}

/* The value of the pages of a uniform piece. */
static bool gmem_state_uniform_value(struct gmem_state *s, const void *entry)
{
	return entry ? xa_to_value(entry) : s->dflt;
}

/*
 * Drop an entry that no new reader can find.  Readers that have loaded it
 * already may be looking at the bitmap until the end of a grace period.
 */
static void gmem_state_retire(struct gmem_state *s, void *entry)
{
	struct gmem_state_bitmap *b = entry;

	if (!gmem_state_is_bitmap(entry))
		return;

	gmem_state_uncount(s, b);
	call_rcu(&b->rcu, gmem_state_free_bitmap_rcu);
}

/*
 * Put @entry, NULL for the default, in place of what describes the piece.
 * Allocates nothing: if the slot was empty, prepare reserved it, and the XArray
 * doesn't free the nodes on the way to a reserved slot.
 */
static void gmem_state_replace(struct gmem_state *s, unsigned long piece,
			       void *entry)
{
	void *old;

	old = entry ? xa_store(&s->pieces, piece, entry, 0) :
		      xa_erase(&s->pieces, piece);
	if (WARN_ON_ONCE(xa_is_err(old)))
		return;

	gmem_state_retire(s, old);
}

static void gmem_state_make_uniform(struct gmem_state *s, unsigned long piece,
				    bool value)
{
	gmem_state_replace(s, piece, value == s->dflt ? NULL : xa_mk_value(value));
}

/*
 * Set pages [first, end) of a block to @value.  Readers may be looking,
 * gmem_state_test() at a neighbouring bit of the same word for one: write each
 * word once and whole, so that no intermediate value can be seen.  The caller's
 * lock makes this the only writer, hence no atomic read-modify-write.  Returns
 * how many pages have changed.
 */
static unsigned int gmem_state_change_words(unsigned long *words,
					    unsigned int first,
					    unsigned int end, bool value)
{
	unsigned long mask = BITMAP_FIRST_WORD_MASK(first);
	unsigned int i, changed = 0;
	unsigned long old, new;

	for (i = BIT_WORD(first); i < BITS_TO_LONGS(end); i++) {
		if (i == BIT_WORD(end))
			mask &= BITMAP_LAST_WORD_MASK(end);

		old = words[i];
		new = value ? old | mask : old & ~mask;
		if (new != old) {
			WRITE_ONCE(words[i], new);
			changed += hweight_long(new ^ old);
		}
		mask = ~0UL;
	}

	return changed;
}

/*
 * Set pages [first, end) of block @i of a bitmap to @value.  Takes a block from
 * @spare if one of the bitmap's own is needed, see gmem_state_needs_block().
 */
static void gmem_state_change_block(struct gmem_state_bitmap *b, unsigned int i,
				    unsigned int first, unsigned int end,
				    bool value, unsigned long **spare)
{
	unsigned int changed = end - first;
	unsigned long *words = b->blocks[i];

	if (words == gmem_state_uniform_blocks[value])
		return;

	if (gmem_state_block_is_own(words)) {
		changed = gmem_state_change_words(words, first, end, value);
	} else if (changed == GMEM_STATE_BLOCK_PAGES) {
		WRITE_ONCE(b->blocks[i], gmem_state_uniform_blocks[value]);
	} else {
		words = *spare;
		*spare = NULL;
		memset_l(words, value ? 0 : ~0UL, GMEM_STATE_BLOCK_LONGS);
		gmem_state_change_words(words, first, end, value);
		/* Readers who find the block find its words, by dependency. */
		smp_store_release(&b->blocks[i], words);
	}

	b->nr_set += value ? changed : -changed;
}

/* Set the pages of an edge to @value in the bitmap of its piece. */
static void gmem_state_change_bits(struct gmem_state_bitmap *b,
				   struct gmem_state_edge *e, bool value)
{
	unsigned int first = e->first, end = e->first + e->nr, i, base, stop;

	for (; first < end; first = stop) {
		i = first / GMEM_STATE_BLOCK_PAGES;
		base = i * GMEM_STATE_BLOCK_PAGES;
		stop = min(end, base + GMEM_STATE_BLOCK_PAGES);

		/* Partly covered is what the edge begins in, or what it ends in. */
		gmem_state_change_block(b, i, first - base, stop - base, value,
					&e->spare[first != e->first]);
	}
}

/* Lock-free, see the top of the file. */
bool gmem_state_test(struct gmem_state *s, unsigned long index)
{
	unsigned int bit = index % GMEM_STATE_BLOCK_PAGES;
	struct gmem_state_bitmap *b;
	unsigned long *words;
	void *entry;

	guard(rcu)();

	entry = xa_load(&s->pieces, index / GMEM_STATE_PIECE_PAGES);
	if (!gmem_state_is_bitmap(entry))
		return gmem_state_uniform_value(s, entry);

	b = entry;
	words = READ_ONCE(b->blocks[index % GMEM_STATE_PIECE_PAGES / GMEM_STATE_BLOCK_PAGES]);
	return READ_ONCE(words[BIT_WORD(bit)]) & BIT_MASK(bit);
}

/*
 * Returns the first page in [first, end) of a block that doesn't have @value,
 * or @end.  find_next_bit() would not do, it may load a word twice, and a
 * writer may have changed the word in between.
 */
static unsigned int gmem_state_scan_words(const unsigned long *words,
					  unsigned int first, unsigned int end,
					  bool value)
{
	unsigned long word, flip = value ? ~0UL : 0;
	unsigned int i = BIT_WORD(first);

	if (words == gmem_state_uniform_blocks[value])
		return end;

	word = (READ_ONCE(words[i]) ^ flip) & BITMAP_FIRST_WORD_MASK(first);
	while (!word) {
		if (++i >= BITS_TO_LONGS(end))
			return end;
		word = READ_ONCE(words[i]) ^ flip;
	}

	return min_t(unsigned int, i * BITS_PER_LONG + __ffs(word), end);
}

/* As above, for the blocks of a piece. */
static unsigned int gmem_state_scan_bits(struct gmem_state_bitmap *b,
					 unsigned int first, unsigned int end,
					 bool value)
{
	unsigned int i, base, stop;

	while (first < end) {
		i = first / GMEM_STATE_BLOCK_PAGES;
		base = i * GMEM_STATE_BLOCK_PAGES;
		stop = min(end, base + GMEM_STATE_BLOCK_PAGES);

		first = base + gmem_state_scan_words(READ_ONCE(b->blocks[i]),
						     first - base, stop - base, value);
		if (first < stop)
			break;
	}

	return first;
}

/* As above, for any entry, and with [index, end) within @piece. */
static unsigned long gmem_state_scan_entry(struct gmem_state *s, void *entry,
					   unsigned long piece,
					   unsigned long index,
					   unsigned long end, bool value)
{
	unsigned long base = piece * GMEM_STATE_PIECE_PAGES;

	if (gmem_state_is_bitmap(entry))
		return base + gmem_state_scan_bits(entry, index - base,
						   end - base, value);

	return gmem_state_uniform_value(s, entry) == value ? end : index;
}

/*
 * Returns the first page in [index, end) that doesn't have @value, or @end.
 * Visits only pieces that have an entry.  RCU is dropped from piece to piece,
 * a large and fragmented map must not hold up a grace period.
 */
static unsigned long gmem_state_find_other(struct gmem_state *s,
					   unsigned long index,
					   unsigned long end, bool value)
{
	unsigned long piece, base, stop;
	void *entry;

	while (index < end) {
		guard(rcu)();

		piece = index / GMEM_STATE_PIECE_PAGES;
		entry = xa_find(&s->pieces, &piece,
				(end - 1) / GMEM_STATE_PIECE_PAGES, XA_PRESENT);

		/* What lies before the entry found has the default value. */
		base = entry ? piece * GMEM_STATE_PIECE_PAGES : end;
		if (base > index) {
			if (value != s->dflt)
				return index;
			index = base;
		}
		if (!entry)
			break;

		stop = min(end, (piece + 1) * GMEM_STATE_PIECE_PAGES);
		index = gmem_state_scan_entry(s, entry, piece, index, stop, value);
		if (index < stop)
			return index;
	}

	return end;
}

/*
 * Whether every page in [start, end) has @value; true if there is none.
 * Lock-free, see the top of the file.
 */
bool gmem_state_range_is(struct gmem_state *s, unsigned long start,
			 unsigned long end, bool value)
{
	/* What most callers ask about, and nothing to search through. */
	if (end - start == 1)
		return gmem_state_test(s, start) == value;

	return gmem_state_find_other(s, start, end, value) >= end;
}

/*
 * Whether all pages in [start, end), at least one, have the same value.  Cheap
 * for a whole piece: were it uniform, it would have no bitmap.  Lock-free, see
 * the top of the file.
 */
bool gmem_state_is_uniform(struct gmem_state *s, unsigned long start,
			   unsigned long end)
{
	if (!(start % GMEM_STATE_PIECE_PAGES) &&
	    end - start == GMEM_STATE_PIECE_PAGES)
		return !gmem_state_is_bitmap(xa_load(&s->pieces,
						     start / GMEM_STATE_PIECE_PAGES));

	return gmem_state_next_change(s, start, end) >= end;
}

/*
 * Returns the smallest index in (start, end] so that all pages in
 * [start, index) have the same value; @end if there is no change.  Lock-free,
 * see the top of the file.  Progress is guaranteed even if a writer changes
 * @start between the two look-ups: one page alone is always uniform.
 */
unsigned long gmem_state_next_change(struct gmem_state *s, unsigned long start,
				     unsigned long end)
{
	bool value = gmem_state_test(s, start);

	return gmem_state_find_other(s, start + 1, end, value);
}

/*
 * An xa_reserve() that runs out of memory halfway leaves the nodes that it did
 * get in the tree: empty ones on the way down, or new levels on top that hold
 * nothing but the old tree.  The XArray cleans up when it erases something, so
 * store to the slot where the descent ended, and erase that.  Readers may see
 * the entry, and take it for an empty slot, which is what it replaces.  Needs
 * XARRAY_MULTI, for an entry that isn't in a leaf.
 */
static void gmem_state_prune(struct gmem_state *s, unsigned long piece)
{
	XA_STATE(xas, &s->pieces, piece);

	xas_lock(&xas);

	/* The slot may lie beyond the levels that exist; find the last that is. */
	while (!xas_load(&xas) && xas_invalid(&xas))
		xas_set(&xas, xas.xa_index / 2);

	if (xas.xa_node && !xas_reload(&xas)) {
		xas_set_order(&xas, xas.xa_index, xas.xa_node->shift);
		xas_store(&xas, XA_ZERO_ENTRY);
		xas_store(&xas, NULL);
	}

	xas_unlock(&xas);
}

/*
 * See to it that a store to the slot of @piece needs no memory.  Readers take a
 * reserved slot for an empty one.
 */
static int gmem_state_reserve(struct gmem_state *s, unsigned long piece)
{
	int err;

	if (xa_load(&s->pieces, piece))
		return 0;

	if (gmem_state_inject_failure(s))
		return -ENOMEM;

	err = xa_reserve(&s->pieces, piece, GFP_KERNEL);
	if (err)
		gmem_state_prune(s, piece);
	return err;
}

/*
 * Cut the range into whole pieces, none if first_piece >= end_piece, and at
 * most two edges, both of nr 0 if the range begins and ends at a border.
 */
static void gmem_state_split(struct gmem_state_change *c)
{
	unsigned long head = c->start / GMEM_STATE_PIECE_PAGES;
	unsigned long tail = c->end / GMEM_STATE_PIECE_PAGES;
	unsigned int first = c->start % GMEM_STATE_PIECE_PAGES;
	unsigned int end = c->end % GMEM_STATE_PIECE_PAGES;

	c->first_piece = head;
	c->end_piece = tail;

	/* Begins inside a piece, and may end in the same one. */
	if (first) {
		c->edges[0].piece = head;
		c->edges[0].first = first;
		c->edges[0].nr = (head == tail ? end : GMEM_STATE_PIECE_PAGES) - first;
		c->first_piece++;
	}

	/* Ends inside a piece that the first edge doesn't describe. */
	if (end && (tail != head || !first)) {
		c->edges[1].piece = tail;
		c->edges[1].nr = end;
	}
}

/*
 * Does block @i need words of its own, for pages [first, end) of the piece to
 * become @value?  Only if some of its pages change, some don't, and it has none.
 */
static bool gmem_state_needs_block(struct gmem_state_bitmap *b, unsigned int i,
				   unsigned int first, unsigned int end, bool value)
{
	unsigned int base = i * GMEM_STATE_BLOCK_PAGES;

	return b->blocks[i] == gmem_state_uniform_blocks[!value] &&
	       (first > base || end < base + GMEM_STATE_BLOCK_PAGES);
}

/*
 * Get the blocks that gmem_state_change_bits() will take.  @words, if not NULL, is
 * one that need not be allocated.
 */
static int gmem_state_prepare_blocks(struct gmem_state *s,
				     struct gmem_state_bitmap *b,
				     struct gmem_state_edge *e, bool value,
				     unsigned long *words)
{
	unsigned int first = e->first, end = e->first + e->nr, i;
	unsigned int head = first / GMEM_STATE_BLOCK_PAGES;
	unsigned int tail = (end - 1) / GMEM_STATE_BLOCK_PAGES;

	for (i = 0; i < (head == tail ? 1 : 2); i++) {
		if (!gmem_state_needs_block(b, i ? tail : head, first, end, value))
			continue;

		e->spare[i] = words ?: gmem_state_alloc_block(s);
		if (!e->spare[i])
			return -ENOMEM;
		words = NULL;
	}

	return 0;
}

/* Only a uniform piece that is about to become mixed needs a bitmap. */
static int gmem_state_prepare_edge(struct gmem_state *s,
				   struct gmem_state_edge *e, bool value)
{
	void *entry;
	int err;

	if (!e->nr)
		return 0;

	entry = xa_load(&s->pieces, e->piece);
	if (gmem_state_is_bitmap(entry))
		return gmem_state_prepare_blocks(s, entry, e, value, NULL);

	if (gmem_state_uniform_value(s, entry) == value)
		return 0;

	e->bitmap = gmem_state_alloc_bitmap(s, !value);
	if (!e->bitmap)
		return -ENOMEM;

	err = gmem_state_prepare_blocks(s, e->bitmap, e, value, e->bitmap->first_block);
	if (err)
		return err;

	gmem_state_change_bits(e->bitmap, e, value);
	return gmem_state_reserve(s, e->piece);
}

/* Pieces that become the default are erased, all others need their slot. */
static int gmem_state_prepare_pieces(struct gmem_state *s,
				     struct gmem_state_change *c)
{
	int err;

	if (c->value == s->dflt)
		return 0;

	for (; c->reserved < c->end_piece; c->reserved++) {
		/* An OOM kill must not wait for the rest of a huge range. */
		if (fatal_signal_pending(current))
			return -EINTR;

		err = gmem_state_reserve(s, c->reserved);
		if (err)
			return err;
		cond_resched();
	}

	return 0;
}

/*
 * Allocate all that it takes to set [start, end) to @value.  May sleep; needs
 * the writers' lock, and needs it held until commit or abort.
 *
 * Returns 0, and commit or abort must follow.  Otherwise there is nothing to
 * undo, the map's values and its memory are what they were: -ENOMEM, or -EINTR
 * if the task is being killed.
 */
int gmem_state_prepare(struct gmem_state *s, struct gmem_state_change *c,
		       unsigned long start, unsigned long end, bool value)
{
	int i, err = 0;

	/* A second writer: the caller's lock doesn't do what it should. */
	if (WARN_ON_ONCE(s->pending))
		return -EBUSY;
	if (WARN_ON_ONCE(start > end))
		return -EINVAL;

	*c = (struct gmem_state_change) {
		.start = start,
		.end = end,
		.value = value,
	};
	gmem_state_split(c);
	c->reserved = c->first_piece;
	s->pending = c;

	for (i = 0; i < ARRAY_SIZE(c->edges) && !err; i++)
		err = gmem_state_prepare_edge(s, &c->edges[i], value);
	if (!err)
		err = gmem_state_prepare_pieces(s, c);
	if (err)
		gmem_state_abort(s, c);

	return err;
}

static void gmem_state_commit_edge(struct gmem_state *s,
				   struct gmem_state_edge *e, bool value)
{
	struct gmem_state_bitmap *b;
	void *entry;

	if (!e->nr)
		return;

	if (e->bitmap) {
		gmem_state_replace(s, e->piece, e->bitmap);
		return;
	}

	/* Uniform, and of this value already. */
	entry = xa_load(&s->pieces, e->piece);
	if (!gmem_state_is_bitmap(entry))
		return;

	b = entry;
	gmem_state_change_bits(b, e, value);
	if (b->nr_set == (value ? GMEM_STATE_PIECE_PAGES : 0))
		gmem_state_make_uniform(s, e->piece, value);
}

/* A default range may be far larger than what is in it: visit entries only. */
static void gmem_state_commit_pieces(struct gmem_state *s,
				     struct gmem_state_change *c)
{
	unsigned long piece;
	void *entry;

	if (c->first_piece >= c->end_piece)
		return;

	if (c->value == s->dflt) {
		xa_for_each_range(&s->pieces, piece, entry, c->first_piece,
				  c->end_piece - 1) {
			gmem_state_make_uniform(s, piece, c->value);
			cond_resched();
		}
		return;
	}

	for (piece = c->first_piece; piece < c->end_piece; piece++) {
		gmem_state_make_uniform(s, piece, c->value);
		cond_resched();
	}
}

/*
 * Make a prepared change.  Can't fail and allocates nothing.  May sleep; needs
 * the writers' lock, held since prepare.
 */
void gmem_state_commit(struct gmem_state *s, struct gmem_state_change *c)
{
	int i;

	if (WARN_ON_ONCE(s->pending != c))
		return;

	for (i = 0; i < ARRAY_SIZE(c->edges); i++)
		gmem_state_commit_edge(s, &c->edges[i], c->value);
	gmem_state_commit_pieces(s, c);

	/*
	 * Readers who see what the caller does next, e.g. a sequence count going
	 * up, and have an smp_rmb() after that, must see the new values.
	 */
	smp_wmb();

	s->pending = NULL;
}

/* Free what an edge has been given and has not used. */
static void gmem_state_free_spares(struct gmem_state *s, struct gmem_state_edge *e)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(e->spare); i++) {
		if (!e->spare[i] || (e->bitmap && e->spare[i] == e->bitmap->first_block))
			continue;

		gmem_state_count_block(s, -1);
		kfree(e->spare[i]);
	}
}

/*
 * Undo prepare.  xa_release() leaves slots alone that aren't merely reserved,
 * and no reader has ever seen the bitmaps.  May sleep; needs the writers' lock,
 * held since prepare.
 */
void gmem_state_abort(struct gmem_state *s, struct gmem_state_change *c)
{
	struct gmem_state_edge *e;
	unsigned long piece;
	int i;

	if (WARN_ON_ONCE(s->pending != c))
		return;

	for (i = 0; i < ARRAY_SIZE(c->edges); i++) {
		e = &c->edges[i];
		gmem_state_free_spares(s, e);
		if (!e->bitmap)
			continue;

		xa_release(&s->pieces, e->piece);
		gmem_state_uncount(s, e->bitmap);
		gmem_state_free_bitmap(e->bitmap);
	}

	for (piece = c->first_piece; piece < c->reserved; piece++) {
		xa_release(&s->pieces, piece);
		cond_resched();
	}

	s->pending = NULL;
}

void gmem_state_init(struct gmem_state *s, bool dflt)
{
	*s = (struct gmem_state) {
		.dflt = dflt,
	};
	xa_init_flags(&s->pieces, XA_FLAGS_ACCOUNT);
}

/*
 * Free all memory of the map.  The caller sees to it that there is no writer
 * and that no reader starts from now on.  Readers that started earlier, under
 * RCU, may still be running, and read old values or the default; therefore the
 * caller frees *s after a grace period.  May sleep.
 */
void gmem_state_destroy(struct gmem_state *s)
{
	unsigned long piece;
	void *entry;

	WARN_ON_ONCE(s->pending);

	xa_for_each(&s->pieces, piece, entry) {
		gmem_state_retire(s, entry);
		cond_resched();
	}
	xa_destroy(&s->pieces);
}
