// SPDX-License-Identifier: GPL-2.0-only
/**
 * DOC: The state map
 *
 * struct gmem_state maps a page index to one attribute bit; for guest_memfd, 1 means
 * private.  Each inode has a map, by index in the file, and each VM has one, by gfn.
 *
 * The index space is cut into pieces of GMEM_STATE_PIECE_PAGES, i.e. 1 GiB with pages
 * of 4 KiB.  An XArray describes each piece by at most one entry:
 *
 * ============= ============================================
 * nothing       every page of the piece has the map's default
 * a value entry every page has the other value
 * a pointer     a bitmap, one bit for the value of each page
 * ============= ============================================
 *
 * A look-up costs the same however fragmented the map is.  No guest can make the map
 * larger than one bit per page, 2 KiB per mixed piece and the nodes of the XArray.  All
 * of that is charged to the memory cgroup.  A bitmap exists only while its piece is
 * mixed; the commit that makes the piece uniform again drops the bitmap.
 *
 * A value entry stands for a group of pieces: 1, 64, 4096, ..., i.e. for all that lies
 * below its slot of an XArray node, at whatever level that is.  Hence a stretch of one
 * value takes a few nodes, however long it is: at either end at most 63 entries a
 * level, in one node a level.  A group is exactly what a slot stands for, so entries
 * have no siblings.  A change to the default that cuts a group splits the group first,
 * level by level.  A node that is full of value entries becomes one entry of the level
 * above.  Neither changes the value of any page.
 *
 * A bitmap is an array of blocks of words, GMEM_STATE_BLOCK_PAGES pages to a block.  As
 * long as all pages of a block have one value, the block may be one of two constant
 * blocks that all maps share.  So the first change in a piece fills one block or two,
 * not a bit for each page of the piece.  A block of a bitmap's own stays until the
 * bitmap goes.  The first of them is allocated together with the bitmap, as a change
 * that needs a bitmap nearly always needs a block.
 *
 * Writers call gmem_state_prepare(), then gmem_state_commit() or gmem_state_abort()::
 *
 *	err = gmem_state_prepare(s, &change, start, end, value);
 *	if (err)
 *		return err;
 *	... whatever else can fail, then gmem_state_abort(), else ...
 *	gmem_state_commit(s, &change);
 *
 * Prepare allocates the bitmaps of the (at most two) pieces that the range covers in
 * part, splits entries that reach beyond the range and reserves slots of the XArray.
 * Abort undoes that.  Commit allocates nothing and cannot fail.
 *
 * The caller's lock keeps other writers out from the first to the last of these calls.
 * For a file, that lock is the mapping's invalidate_lock, held for write; for a VM, it
 * is slots_lock.  At most one change is pending in a map, hence every reserved slot
 * belongs to it.  All writers run in process context and may sleep.  xa_lock nests
 * inside the caller's lock.  It is held for one entry at a time, and for the nodes that
 * the entry replaces, of which there is at most one a level.
 *
 * Readers, i.e. gmem_state_test(), gmem_state_range_is() and gmem_state_next_change(),
 * take no lock and run in any context.  While a commit is running they see each of its
 * pages old or new, and different pages in any order.  A reader that needs more than
 * that holds a lock that excludes the writer, or detects the writer afterwards
 * (mmu_invalidate_retry_gfn()).  Pages that the change doesn't cover never appear to
 * change: an entry tells the value of all pages of its group at the time when it was in
 * the tree, and a reader that finds itself in a replaced node starts again.
 *
 * The cost of a change, in time and memory, follows the ends of the range and the
 * entries in it, not its size.
 *
 * Entries are published by xa_store(), blocks by smp_store_release(), both with the
 * words filled in beforehand.  Bitmaps, with their blocks, and XArray nodes are freed
 * after a grace period.  The callback that frees a bitmap is in gmem_state.c: a module
 * that contains it must call rcu_barrier() after its last gmem_state_destroy() and
 * before it goes.
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

/* The entry that @xas has found describes a group of 1 << order pieces. */
static unsigned int gmem_state_entry_order(const struct xa_state *xas)
{
	return xas->xa_node ? xas->xa_node->shift : 0;
}

/* And this is the first piece behind the group. */
static unsigned long gmem_state_entry_end(const struct xa_state *xas)
{
	return (xas->xa_index | ((1UL << gmem_state_entry_order(xas)) - 1)) + 1;
}

/*
 * Put @entry, NULL for the default, in place of what describes the piece, and
 * the rest of its group.  Allocates nothing: if the slot was empty, prepare
 * reserved it, and the XArray doesn't free the nodes on the way to a reserved
 * slot.
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

/*
 * Put value entries in place of nodes on the way to @piece, from the bottom up.
 * A node goes if it is full of value entries, which are all equal, for the default
 * has none; or if it lies within [first, end), where the caller has left nothing
 * but value entries and empty slots.  Allocates nothing: what a node needs, its
 * parent has, and the topmost one stays.
 */
static void gmem_state_join(struct gmem_state *s, unsigned long piece,
			    unsigned long first, unsigned long end)
{
	XA_STATE(xas, &s->pieces, piece);
	struct xa_node *node;
	unsigned long base;
	unsigned int order;

	xas_lock(&xas);
	xas_load(&xas);

	while (xas_is_node(&xas) && xa_parent_locked(&s->pieces, xas.xa_node)) {
		node = xas.xa_node;
		order = node->shift + XA_CHUNK_SHIFT;
		base = round_down(piece, 1UL << order);

		if (node->nr_values < XA_CHUNK_SIZE &&
		    (base < first || base + (1UL << order) > end))
			break;

		xas_set_order(&xas, piece, order);
		xas_store(&xas, xa_mk_value(!s->dflt));
	}

	xas_unlock(&xas);
}

static void gmem_state_make_uniform(struct gmem_state *s, unsigned long piece,
				    bool value)
{
	if (value == s->dflt) {
		gmem_state_replace(s, piece, NULL);
		return;
	}

	gmem_state_replace(s, piece, xa_mk_value(value));
	gmem_state_join(s, piece, 0, 0);
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

/* As above, for any entry, and with [index, end) within what it describes. */
static unsigned long gmem_state_scan_entry(struct gmem_state *s, void *entry,
					   unsigned long index,
					   unsigned long end, bool value)
{
	unsigned long base = round_down(index, GMEM_STATE_PIECE_PAGES);

	if (gmem_state_is_bitmap(entry))
		return base + gmem_state_scan_bits(entry, index - base,
						   end - base, value);

	return gmem_state_uniform_value(s, entry) == value ? end : index;
}

/*
 * Find the first entry that describes one of the pieces in [*piece, last].  Tells
 * which is the first of them that it does describe, and which the first that it
 * doesn't.  The caller holds the RCU read lock as long as it looks at the entry.
 */
static void *gmem_state_find_entry(struct gmem_state *s, unsigned long *piece,
				   unsigned long last, unsigned long *next)
{
	XA_STATE(xas, &s->pieces, *piece);
	void *entry;

	do {
		entry = xas_find(&xas, last);
	} while (xas_retry(&xas, entry));

	if (entry) {
		*piece = xas.xa_index;
		*next = gmem_state_entry_end(&xas);
	}

	return entry;
}

/*
 * Returns the first page in [index, end) that doesn't have @value, or @end.
 * Visits only what has an entry.  RCU is dropped from entry to entry, a large
 * and fragmented map must not hold up a grace period.
 */
static unsigned long gmem_state_find_other(struct gmem_state *s,
					   unsigned long index,
					   unsigned long end, bool value)
{
	unsigned long piece, next, base, stop;
	void *entry;

	while (index < end) {
		guard(rcu)();

		piece = index / GMEM_STATE_PIECE_PAGES;
		entry = gmem_state_find_entry(s, &piece,
					      (end - 1) / GMEM_STATE_PIECE_PAGES, &next);

		/* What lies before the entry found has the default value. */
		base = entry ? piece * GMEM_STATE_PIECE_PAGES : end;
		if (base > index) {
			if (value != s->dflt)
				return index;
			index = base;
		}
		if (!entry)
			break;

		stop = min(end, next * GMEM_STATE_PIECE_PAGES);
		index = gmem_state_scan_entry(s, entry, index, stop, value);
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
 * A reservation that runs out of memory halfway leaves the nodes that it did
 * get in the tree: empty ones on the way down, or new levels on top that hold
 * nothing but the old tree.  The XArray cleans up when it erases something, so
 * store to the slot where the descent ended, and erase that.  Readers may see
 * the entry, and take it for an empty slot, which is what it replaces.
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

/* What is in the slot of a group, or in a larger one's; a node if it is mixed. */
static void *gmem_state_load_group(struct gmem_state *s, unsigned long piece,
				   unsigned int order)
{
	XA_STATE_ORDER(xas, &s->pieces, piece, order);

	guard(rcu)();

	return xas_load(&xas);
}

/*
 * See to it that a store to the slot of the group at @piece needs no memory.
 * Readers take a reserved slot for an empty one.
 */
static int gmem_state_reserve(struct gmem_state *s, unsigned long piece,
			      unsigned int order)
{
	XA_STATE_ORDER(xas, &s->pieces, piece, order);

	if (gmem_state_load_group(s, piece, order))
		return 0;

	if (gmem_state_inject_failure(s)) {
		xas_set_err(&xas, -ENOMEM);
	} else {
		do {
			xas_lock(&xas);
			xas_store(&xas, XA_ZERO_ENTRY);
			xas_unlock(&xas);
		} while (xas_nomem(&xas, GFP_KERNEL));
	}

	if (xas_error(&xas))
		gmem_state_prune(s, piece);
	return xas_error(&xas);
}

/*
 * The order of the largest group at @first that is within [first, end).  The
 * XArray can't have a value in place of its topmost node: a group that begins at
 * 0 needs something behind it, which keeps the level above in place.
 */
static unsigned int gmem_state_group_order(unsigned long first, unsigned long end)
{
	unsigned int order = 0;
	unsigned long size;

	for (;;) {
		size = 1UL << (order + XA_CHUNK_SHIFT);
		if (first % size || size > end - first || (!first && size == end))
			return order;
		order += XA_CHUNK_SHIFT;
	}
}

/* Make a node of a value entry that stands for a group of @order. */
static int gmem_state_split_group(struct gmem_state *s, unsigned long piece,
				  void *entry, unsigned int order)
{
	XA_STATE(xas, &s->pieces, 0);

	if (gmem_state_inject_failure(s))
		return -ENOMEM;

	xas_set_order(&xas, piece, order - XA_CHUNK_SHIFT);
	xas_split_alloc(&xas, entry, order, GFP_KERNEL);
	if (xas_error(&xas))
		return xas_error(&xas);

	xas_lock(&xas);
	xas_split(&xas, entry, order);
	xas_unlock(&xas);
	return 0;
}

/*
 * If a value entry describes @piece, make it one that describes nothing outside
 * [first, end).  Whatever becomes of the change, gmem_state_join() undoes that.
 */
static int gmem_state_split(struct gmem_state *s, unsigned long piece,
			    unsigned long first, unsigned long end)
{
	unsigned long base, size;
	unsigned int order;
	void *entry;
	int err;

	for (;;) {
		XA_STATE(xas, &s->pieces, piece);

		scoped_guard(rcu)
			entry = xas_load(&xas);
		if (!xa_is_value(entry))
			return 0;

		order = gmem_state_entry_order(&xas);
		size = 1UL << order;
		base = round_down(piece, size);
		if (base >= first && base + size <= end)
			return 0;

		err = gmem_state_split_group(s, piece, entry, order);
		if (err)
			return err;
	}
}

/*
 * Cut the range into whole pieces, none if first_piece >= end_piece, and at
 * most two edges, both of nr 0 if the range begins and ends at a border.
 */
static void gmem_state_cut(struct gmem_state_change *c)
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

	/* The bitmap will need a slot for this piece alone. */
	return entry ? gmem_state_split(s, e->piece, e->piece, e->piece + 1) :
		       gmem_state_reserve(s, e->piece, 0);
}

/*
 * Pieces that become the default are erased, with no other in the same entries.
 * All others need a slot: one for each group that the range consists of, unless
 * there is a larger entry, of that value, or there are nodes below it.
 */
static int gmem_state_prepare_pieces(struct gmem_state *s,
				     struct gmem_state_change *c)
{
	unsigned long first = c->first_piece, end = c->end_piece;
	unsigned int order;
	int err;

	if (first >= end)
		return 0;

	if (c->value == s->dflt) {
		err = gmem_state_split(s, first, first, end);
		return err ?: gmem_state_split(s, end - 1, first, end);
	}

	for (; c->reserved < end; c->reserved += 1UL << order) {
		if (fatal_signal_pending(current))
			return -EINTR;

		order = gmem_state_group_order(c->reserved, end);
		err = gmem_state_reserve(s, c->reserved, order);
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
	gmem_state_cut(c);
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

/* The range may be far larger than what is in it: visit entries only. */
static void gmem_state_erase_pieces(struct gmem_state *s, unsigned long first,
				    unsigned long end)
{
	unsigned long piece;
	void *entry;

	xa_for_each_range(&s->pieces, piece, entry, first, end - 1) {
		gmem_state_replace(s, piece, NULL);
		cond_resched();
	}
}

/*
 * Put a value entry in place of the first entry or reservation in [*piece, end).
 * Tells where it was, and the first piece behind it.
 */
static bool gmem_state_fill_entry(struct gmem_state *s, unsigned long *piece,
				  unsigned long end, unsigned long *next)
{
	XA_STATE(xas, &s->pieces, *piece);
	void *entry;

	xas_lock(&xas);

	entry = xas_find(&xas, end - 1);
	if (entry) {
		*piece = xas.xa_index;
		*next = gmem_state_entry_end(&xas);
		if (!xa_is_value(entry))
			xas_store(&xas, xa_mk_value(!s->dflt));
	}

	xas_unlock(&xas);

	if (!xa_is_zero(entry))
		gmem_state_retire(s, entry);
	return entry;
}

/*
 * Give the pieces the other value than the default.  Prepare has seen to it that
 * entries, reservations, and nodes that lie within the range leave no gap.
 * Visits entries only; empty slots go with their node, when all that is in it
 * is behind.
 */
static void gmem_state_fill_pieces(struct gmem_state *s, unsigned long first,
				   unsigned long end)
{
	unsigned long piece, done, next = first;
	bool more;

	do {
		done = next;
		piece = next;
		more = gmem_state_fill_entry(s, &piece, end, &next);
		if (done > first)
			gmem_state_join(s, done - 1, first, more ? piece : end);
		cond_resched();
	} while (more);
}

static void gmem_state_commit_pieces(struct gmem_state *s,
				     struct gmem_state_change *c)
{
	if (c->first_piece >= c->end_piece)
		return;

	if (c->value == s->dflt)
		gmem_state_erase_pieces(s, c->first_piece, c->end_piece);
	else
		gmem_state_fill_pieces(s, c->first_piece, c->end_piece);
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

/* xa_release() leaves slots alone that aren't merely reserved. */
static void gmem_state_release_pieces(struct gmem_state *s,
				      struct gmem_state_change *c)
{
	unsigned long piece = c->first_piece;

	for (; piece < c->reserved;
	     piece += 1UL << gmem_state_group_order(piece, c->end_piece)) {
		xa_release(&s->pieces, piece);
		cond_resched();
	}
}

static void gmem_state_abort_pieces(struct gmem_state *s,
				    struct gmem_state_change *c)
{
	if (c->first_piece >= c->end_piece)
		return;

	if (c->value == s->dflt) {
		gmem_state_join(s, c->first_piece, 0, 0);
		gmem_state_join(s, c->end_piece - 1, 0, 0);
	} else {
		gmem_state_release_pieces(s, c);
	}
}

/* No reader has ever seen the bitmap. */
static void gmem_state_abort_edge(struct gmem_state *s, struct gmem_state_edge *e)
{
	gmem_state_free_spares(s, e);
	if (!e->bitmap)
		return;

	xa_release(&s->pieces, e->piece);
	gmem_state_join(s, e->piece, 0, 0);
	gmem_state_uncount(s, e->bitmap);
	gmem_state_free_bitmap(e->bitmap);
}

/*
 * Undo prepare.  May sleep; needs the writers' lock, held since prepare.  A group
 * that was split for both ends of the range is whole again when the last of the
 * nodes that this took is joined.
 */
void gmem_state_abort(struct gmem_state *s, struct gmem_state_change *c)
{
	int i;

	if (WARN_ON_ONCE(s->pending != c))
		return;

	for (i = 0; i < ARRAY_SIZE(c->edges); i++)
		gmem_state_abort_edge(s, &c->edges[i]);
	gmem_state_abort_pieces(s, c);

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

	/* Entry by entry, as xa_destroy() alone would hold up this CPU until the end. */
	xa_for_each(&s->pieces, piece, entry) {
		gmem_state_replace(s, piece, NULL);
		cond_resched();
	}
	xa_destroy(&s->pieces);
}
