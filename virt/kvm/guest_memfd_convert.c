// SPDX-License-Identifier: GPL-2.0-only
/**
 * DOC: Conversion
 *
 * A conversion moves a range of an in-place file between private and shared, all or
 * nothing.  kvm_gmem_convert() runs with change_lock held, hence there is no punch and no
 * other conversion of the file.  The range is claimed, or invalidate_lock is held for
 * write: either way there are no user faults in the range, and no guest faults past their
 * first look at the state.
 *
 * Everything that can fail comes first.  What it leaves behind, e.g. removed user
 * mappings, is invisible but for a refault.
 *
 * 1. In a file with GUEST_MEMFD_FLAG_GUEST_CONTENT, PRESERVE wants a request of the guest.
 *    Return if there is nothing to do: all pages are on the asked side, and the call has
 *    neither ZERO nor DISCARD.
 * 2. may_convert, the VM type's veto (not for DISCARD).
 * 3. gmem_state_prepare() allocates all that the state map will need.  Unless it is
 *    short, the conversion then claims its range, and drops invalidate_lock until step
 *    12.
 * 4. Unmap the range from user space (towards private, and for DISCARD).
 * 5. Look for holders of folios that become private (not for DISCARD).  A folio in use
 *    gets one drain of the LRU batches, and its lock is taken once: a user fault that
 *    has left invalidate_lock maps the page under the folio lock.  A poisoned page is
 *    exempt, but not a large folio that has one.
 * 6. Split the folios that straddle an edge of the range, if their pages change sides or
 *    are discarded.  folio_split() checks references once more.
 * 7. prepare_convert, if folios may be large and there may be private memory to treat:
 *    memory failure may have split a folio, and left the platform's entry whole.
 * 8. reclaim_range (for DISCARD).
 * 9. Take folios that become private out of the direct map, if the file was created so
 *    (not for DISCARD).
 *
 * If any of these fails after step 3, gmem_state_abort() gives back what was allocated.
 * From here on nothing can fail.
 *
 * 10. kvm_gmem_invalidate_start(): in each VM, make faults retry, invalidate, zap if
 *     zap_on_convert is set, and flush once.  No vCPU can use the old translation any
 *     more, and none can install a new one.  What is zapped is the side that pages
 *     leave; with ZERO and DISCARD it is both.  If the range is claimed faults wait for
 *     the claim, and kvm_gmem_invalidate_end() follows at once.
 * 11. For DISCARD: release_range for the range in each slot, and drop the folios.
 *     Otherwise:
 *
 *     a. Unless the content is PRESERVE, drop the folios of aligned blocks that have
 *        small ones only, for a large one to take their place, see
 *        kvm_gmem_drop_fragments().
 *     b. move_range for the range in each slot.
 *     c. For each folio that is present, make_shared and return to the direct map if it
 *        becomes shared, and zeroing for ZERO.  If make_shared refuses, the folio leaves
 *        the file and is leaked, so that it cannot reach the allocator.
 * 12. gmem_state_commit(): readers of the map see the new state.  Then the statistics.
 * 13. kvm_gmem_invalidate_end(): faults that saw the old state retry.  If the range was
 *     claimed a start, of nothing, precedes the commit.
 *
 * Nothing is given to the platform when a page becomes private, see "Ways to give a
 * page".
 *
 * The range that is invalidated is widened to max_order at both ends, as far as the
 * binding reaches.  That keeps the fault of a neighbour from installing a large mapping
 * over pages that are being converted.  Only what was asked is zapped.
 */
#include <linux/folio_batch.h>
#include <linux/kvm_host.h>
#include <linux/pagemap.h>
#include <linux/swap.h>

#include "gmem_internal.h"
#include "gmem_trace.h"

#define GMEM_CONTENT_FLAGS	(KVM_SET_MEMORY_ATTRIBUTES2_ZERO |	\
				 KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE |	\
				 KVM_SET_MEMORY_ATTRIBUTES2_DISCARD)

struct gmem_conversion {
	struct gmem_file *f;
	pgoff_t start;
	pgoff_t end;
	bool to_private;

	/*
	 * One of GMEM_CONTENT_FLAGS, or 0 for undefined.  If user space asked for
	 * it explicitly, pages that are in the asked state already obey too.  They
	 * obey PRESERVE by being left alone: zapping may cost the bytes, as that of
	 * a page that has been added to a TD.
	 */
	u64 content;
	bool is_explicit;

	/* Has the guest asked for it?  Set by kvm_gmem_may_keep_content(). */
	bool is_requested;

	/*
	 * The range is claimed, and invalidate_lock isn't held, from kvm_gmem_claim() to
	 * kvm_gmem_unclaim().
	 */
	bool claimed;

	/* Outputs: the first page in the way, pages that changed sides. */
	pgoff_t error_index;
	long nr_moved;
};

static bool kvm_gmem_folio_moves(struct gmem_conversion *c, struct folio *folio)
{
	return kvm_gmem_index_is_private(c->f->inode, folio->index) != c->to_private;
}

/*
 * The slow half of the check: rule out holders that go away by themselves.  The
 * per-CPU LRU batches hold new folios.  A user fault that had left
 * invalidate_lock before the conversion took it holds the folio lock until the
 * page is mapped; wait for that and unmap the page once more.  That also unmaps
 * what a large folio has beyond the edges of the range.
 */
static bool kvm_gmem_folio_stays_held(struct inode *inode, struct folio *folio,
				      enum lru_cache_drained *drained)
{
	lru_cache_drain_for_folio(folio, 1, drained);
	if (!kvm_gmem_folio_is_held(folio))
		return false;

	folio_lock(folio);
	if (folio_mapped(folio))
		kvm_gmem_unmap_users(inode, folio->index, folio_next_index(folio));
	folio_unlock(folio);

	return kvm_gmem_folio_is_held(folio);
}

/*
 * Is @folio in the way of going private?  A page that memory failure has struck isn't,
 * although memory failure holds a reference for good; but a user fault that found it
 * healthy must not map it from now on.  A bad page excuses nothing for the pages beside
 * it, though: memory failure leaves a folio large only if someone else holds it.
 */
static bool kvm_gmem_folio_in_way(struct gmem_conversion *c, struct folio *folio,
				  enum lru_cache_drained *drained)
{
	if (!kvm_gmem_folio_moves(c, folio) || !kvm_gmem_folio_is_held(folio))
		return false;

	return kvm_gmem_folio_stays_held(c->f->inode, folio, drained) &&
	       (folio_test_large(folio) || !folio_test_hwpoison(folio));
}

/* Check that no one holds a folio that is about to go private. */
static int kvm_gmem_check_holders(struct gmem_conversion *c)
{
	enum lru_cache_drained drained = LRU_CACHE_NOT_DRAINED;
	struct inode *inode = c->f->inode;
	pgoff_t index = c->start;
	struct folio_batch fbatch;
	int i, r = 0;

	kvm_gmem_assert_exclusive(inode, c->start, c->end);

	folio_batch_init(&fbatch);
	while (!r && filemap_get_folios(inode->i_mapping, &index, c->end - 1, &fbatch)) {
		for (i = 0; !r && i < folio_batch_count(&fbatch); i++) {
			if (!kvm_gmem_folio_in_way(c, fbatch.folios[i], &drained))
				continue;

			c->error_index = max(fbatch.folios[i]->index, c->start);
			r = -EAGAIN;
		}
		folio_batch_release(&fbatch);
		cond_resched();

		if (!r && fatal_signal_pending(current))
			r = -EINTR;
	}

	return r;
}

static int kvm_gmem_may_convert_range(struct gmem_file *f, struct kvm_gfn_range *range,
				      void *arg)
{
	struct gmem_conversion *c = arg;

	return GMEM_I(f->inode)->ops->may_convert(f->kvm, range->slot, range,
						  c->to_private);
}

/* Ask the VM type, if it has a say, for the part of the range in each slot. */
static int kvm_gmem_may_convert(struct gmem_conversion *c)
{
	struct gmem_inode *gi = GMEM_I(c->f->inode);
	struct gmem_file *f;
	int r;

	lockdep_assert_held_write(&c->f->inode->i_mapping->invalidate_lock);

	if (!gi->ops->may_convert)
		return 0;

	list_for_each_entry(f, &gi->files, entry) {
		r = kvm_gmem_for_each_range(f, c->start, c->end,
					    kvm_gmem_may_convert_range, c);
		if (r)
			return r;
	}

	return 0;
}

/* Are these all the pages of the conversion, and has the guest asked for them? */
static int kvm_gmem_check_request(struct gmem_file *f, struct kvm_gfn_range *range, void *arg)
{
	struct gmem_conversion *c = arg;
	enum kvm_gmem_request what;

	what = c->to_private ? KVM_GMEM_REQUEST_UNSHARE : KVM_GMEM_REQUEST_SHARE;
	if (range->end - range->start == c->end - c->start &&
	    kvm_gmem_is_requested(f->kvm, what, range->start, c->end - c->start))
		c->is_requested = true;
	return 0;
}

/* Where the guest has a say in it, the bytes are kept only if it asks for that. */
static int kvm_gmem_may_keep_content(struct gmem_conversion *c)
{
	struct gmem_inode *gi = GMEM_I(c->f->inode);
	struct gmem_file *f;

	lockdep_assert_held_write(&c->f->inode->i_mapping->invalidate_lock);

	if (c->content != KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE ||
	    !(gi->flags & GUEST_MEMFD_FLAG_GUEST_CONTENT))
		return 0;

	list_for_each_entry(f, &gi->files, entry)
		kvm_gmem_for_each_range(f, c->start, c->end, kvm_gmem_check_request, c);

	return c->is_requested ? 0 : -EPERM;
}

static int kvm_gmem_move_slot_range(struct gmem_file *f, struct kvm_gfn_range *range,
				    void *arg)
{
	struct gmem_conversion *c = arg;

	GMEM_I(f->inode)->ops->move_range(f->kvm, range->slot, range, c->to_private);
	return 0;
}

/* Let the VM type move what the guest keeps mapped. */
static void kvm_gmem_move_range(struct gmem_conversion *c)
{
	struct gmem_inode *gi = GMEM_I(c->f->inode);
	struct gmem_file *f;

	if (!gi->ops->move_range)
		return;

	list_for_each_entry(f, &gi->files, entry)
		kvm_gmem_for_each_range(f, c->start, c->end, kvm_gmem_move_slot_range, c);
}

/*
 * Let faults elsewhere go on, and those in the range wait.  They wait as far as a large
 * folio may go on beyond an edge: it is split there.
 */
static void kvm_gmem_claim(struct gmem_conversion *c)
{
	struct inode *inode = c->f->inode;
	struct gmem_inode *gi = GMEM_I(inode);
	pgoff_t nr = 1UL << gi->max_order;

	lockdep_assert_held(&gi->change_lock);
	lockdep_assert_held_write(&inode->i_mapping->invalidate_lock);

	if (c->end - c->start <= max(GMEM_SHORT_PAGES, nr))
		return;

	WRITE_ONCE(gi->claim_start, ALIGN_DOWN(c->start, nr));
	WRITE_ONCE(gi->claim_end, ALIGN(c->end, nr));
	c->claimed = true;
	filemap_invalidate_unlock(inode->i_mapping);
}

/* Faults find what there is now as soon as the caller drops invalidate_lock. */
static void kvm_gmem_unclaim(struct gmem_conversion *c)
{
	struct inode *inode = c->f->inode;
	struct gmem_inode *gi = GMEM_I(inode);

	if (!c->claimed)
		return;

	filemap_invalidate_lock(inode->i_mapping);
	WRITE_ONCE(gi->claim_start, 0);
	WRITE_ONCE(gi->claim_end, 0);
	wake_up_all(&gi->claim_wait);
}

/* kvm_gmem_drop_folios() wants the lock, and faults elsewhere their turn. */
static void kvm_gmem_drop_converted(struct gmem_conversion *c, pgoff_t start, pgoff_t end)
{
	struct address_space *mapping = c->f->inode->i_mapping;
	pgoff_t next;

	if (!c->claimed) {
		kvm_gmem_drop_folios(c->f, start, end);
		return;
	}

	while ((start = kvm_gmem_next_present(c->f->inode, start, end)) < end) {
		next = kvm_gmem_batch_end(c->f->inode, start, end);

		filemap_invalidate_lock(mapping);
		kvm_gmem_drop_folios(c->f, start, next);
		filemap_invalidate_unlock(mapping);

		start = next;
		cond_resched();
	}
}

/*
 * The platform refuses to make @folio shared.  There is no way back: it leaves the
 * file, and the index reads as a hole from now on.
 */
static void kvm_gmem_leak_unshared(struct gmem_conversion *c, struct folio *folio)
{
	kvm_gmem_leak_folio(folio);
	kvm_gmem_drop_converted(c, folio->index, folio_next_index(folio));
}

/* Have the platform give @folio up.  False if it refuses, and the folio is lost. */
static bool kvm_gmem_make_shared(struct gmem_conversion *c, struct folio *folio)
{
	const struct kvm_gmem_ops *ops = GMEM_I(c->f->inode)->ops;

	if (!ops->make_shared || ops->make_shared(folio_pfn(folio), folio_order(folio)))
		return true;

	kvm_gmem_leak_unshared(c, folio);
	return false;
}

/* Put @folio back into the direct map.  False if that can't be, and the folio is lost. */
static bool kvm_gmem_return_folio(struct gmem_conversion *c, struct folio *folio)
{
	if (!kvm_gmem_is_out(c->f->inode, folio->index) || kvm_gmem_put_back(folio))
		return true;

	kvm_gmem_leak_unshared(c, folio);
	return false;
}

static void kvm_gmem_convert_folio(struct gmem_conversion *c, struct folio *folio)
{
	bool moves = kvm_gmem_folio_moves(c, folio);

	if (!moves && !c->is_explicit)
		return;

	/* A folio never becomes mixed, kvm_gmem_cut_conversion() saw to that. */
	VM_WARN_ON_ONCE_FOLIO(moves && (folio->index < c->start ||
					folio_next_index(folio) > c->end), folio);

	if (moves && !c->to_private && !kvm_gmem_make_shared(c, folio))
		return;

	if (moves && !c->to_private && !kvm_gmem_return_folio(c, folio))
		return;

	if (moves)
		c->nr_moved += folio_nr_pages(folio);

	/* A folio that isn't up to date is zeroed before its first use anyway. */
	if (c->content == KVM_SET_MEMORY_ATTRIBUTES2_ZERO && folio_test_uptodate(folio))
		kvm_gmem_zero_pages(folio, c->start, c->end);
}

/*
 * May @folio leave the file, as one small folio of many, because its bytes need not
 * survive?  No one must hold it, nor may its bytes be kept for being on the asked
 * side already; poison stays where it is.
 */
static bool kvm_gmem_is_fragment(struct gmem_conversion *c, struct folio *folio)
{
	if (folio_order(folio) >= GMEM_I(c->f->inode)->max_order ||
	    kvm_gmem_folio_is_poisoned(folio))
		return false;

	return kvm_gmem_folio_moves(c, folio) || (c->to_private && c->is_explicit);
}

static bool kvm_gmem_is_fragmented(struct gmem_conversion *c, pgoff_t start, pgoff_t end)
{
	struct address_space *mapping = c->f->inode->i_mapping;
	bool fragmented = false, all = true;
	struct folio_batch fbatch;
	int i;

	folio_batch_init(&fbatch);
	while (all && filemap_get_folios(mapping, &start, end - 1, &fbatch)) {
		for (i = 0; all && i < folio_batch_count(&fbatch); i++)
			all = kvm_gmem_is_fragment(c, fbatch.folios[i]);
		fragmented = true;
		folio_batch_release(&fbatch);
		cond_resched();
	}

	return fragmented && all;
}

/*
 * Drop the folios in [@start, @end), none of which is held.  The platform gives each of
 * them up while the hook for that may still look at its neighbours.
 */
static void kvm_gmem_drop_block(struct gmem_conversion *c, pgoff_t start, pgoff_t end)
{
	struct inode *inode = c->f->inode;
	struct folio_batch fbatch;
	pgoff_t index = start;
	int i;

	folio_batch_init(&fbatch);
	while (!c->to_private && GMEM_I(inode)->ops->make_shared &&
	       filemap_get_folios(inode->i_mapping, &index, end - 1, &fbatch)) {
		for (i = 0; i < folio_batch_count(&fbatch); i++)
			kvm_gmem_make_shared(c, fbatch.folios[i]);
		folio_batch_release(&fbatch);
		cond_resched();
	}

	kvm_gmem_release_inode_range(inode, start, end);
	kvm_gmem_drop_converted(c, start, end);
}

/*
 * Small folios don't grow together again.  Where the bytes of an aligned block need
 * not survive, rather than zero its small folios drop them: the next touch
 * gets a large folio, with zeros.
 */
static void kvm_gmem_drop_fragments(struct gmem_conversion *c)
{
	struct inode *inode = c->f->inode;
	pgoff_t nr = 1UL << GMEM_I(inode)->max_order;
	pgoff_t start = ALIGN(c->start, nr);

	kvm_gmem_assert_exclusive(inode, c->start, c->end);

	if (nr == 1 || c->content == KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE)
		return;

	while ((start = kvm_gmem_next_present(inode, start, c->end)) < c->end) {
		/* The first present page may be amid a block. */
		start = ALIGN_DOWN(start, nr);
		if (start < c->start || start + nr > c->end) {
			start += nr;
			continue;
		}

		if (kvm_gmem_is_fragmented(c, start, start + nr))
			kvm_gmem_drop_block(c, start, start + nr);
		start += nr;
	}
}

static void kvm_gmem_convert_folios(struct gmem_conversion *c)
{
	struct address_space *mapping = c->f->inode->i_mapping;
	pgoff_t index = c->start;
	struct folio_batch fbatch;
	int i;

	kvm_gmem_assert_exclusive(c->f->inode, c->start, c->end);

	folio_batch_init(&fbatch);
	while (filemap_get_folios(mapping, &index, c->end - 1, &fbatch)) {
		for (i = 0; i < folio_batch_count(&fbatch); i++)
			kvm_gmem_convert_folio(c, fbatch.folios[i]);
		folio_batch_release(&fbatch);
		cond_resched();
	}
}

/*
 * Must what is at @index be cut off its folio at an edge of the range?  Not if it
 * stays in the file and on its side; a shared folio stays whole until a part of it
 * goes private, even if it is held.
 */
static bool kvm_gmem_wants_cut(struct gmem_conversion *c, pgoff_t index)
{
	return c->content == KVM_SET_MEMORY_ATTRIBUTES2_DISCARD ||
	       kvm_gmem_index_is_private(c->f->inode, index) != c->to_private;
}

/*
 * Make a folio begin at @edge, so that @index, which is in the range and beside the
 * edge, can be treated apart.  Whoever is in the way is reported like a holder: by the
 * first page in the range of the folio that is held.
 */
static int kvm_gmem_cut_edge(struct gmem_conversion *c, pgoff_t edge, pgoff_t index)
{
	struct inode *inode = c->f->inode;
	struct folio *folio;
	int r;

	if (!kvm_gmem_wants_cut(c, index))
		return 0;

	r = kvm_gmem_cut(inode, edge);
	if (r != -EAGAIN)
		return r;

	c->error_index = index;
	folio = filemap_get_folio(inode->i_mapping, index);
	if (!IS_ERR(folio)) {
		c->error_index = max(folio->index, c->start);
		folio_put(folio);
	}
	return r;
}

/* Split the folios at the edges of the range, where it matters. */
static int kvm_gmem_cut_conversion(struct gmem_conversion *c)
{
	kvm_gmem_assert_exclusive(c->f->inode, c->start, c->end);

	return kvm_gmem_cut_edge(c, c->start, c->start) ?:
	       kvm_gmem_cut_edge(c, c->end, c->end - 1);
}

typedef int (*kvm_gmem_folio_fn)(struct folio *folio, void *arg);

/* Call @fn for the folios of the range that change sides, until one fails. */
static int kvm_gmem_for_each_moving(struct gmem_conversion *c, pgoff_t end,
				    kvm_gmem_folio_fn fn, void *arg)
{
	struct address_space *mapping = c->f->inode->i_mapping;
	pgoff_t index = c->start;
	struct folio_batch fbatch;
	int i, r = 0;

	folio_batch_init(&fbatch);
	while (!r && index < end && filemap_get_folios(mapping, &index, end - 1, &fbatch)) {
		for (i = 0; !r && i < folio_batch_count(&fbatch); i++) {
			if (kvm_gmem_folio_moves(c, fbatch.folios[i]))
				r = fn(fbatch.folios[i], arg);
		}
		folio_batch_release(&fbatch);
		cond_resched();
	}

	return r;
}

struct gmem_take_out {
	struct direct_map_flush flush;
	pgoff_t end;
};

static int kvm_gmem_take_out_moving(struct folio *folio, void *arg)
{
	struct gmem_take_out *t = arg;

	t->end = folio->index;
	/*
	 * A bad page may be held, see kvm_gmem_folio_in_way(), and the holder's accesses
	 * must not fault.  The guest doesn't get it, hence it has no secrets.
	 */
	if (folio_test_hwpoison(folio) && !folio_test_large(folio))
		return 0;

	return kvm_gmem_take_out(folio, &t->flush);
}

/*
 * That takes no memory, unless memory failure has just split the folio: then it takes a
 * page table.  There is no way on without, as the folio is shared and may be pinned.
 */
static int kvm_gmem_put_back_moving(struct folio *folio, void *arg)
{
	while (!kvm_gmem_put_back(folio))
		schedule_timeout_uninterruptible(1);
	return 0;
}

/* Pages of blocks could not go back alone. */
static int kvm_gmem_split_block_moving(struct folio *folio, void *arg)
{
	return kvm_gmem_split_block(folio);
}

/* See to it that what becomes shared can be put back into the direct map. */
static int kvm_gmem_split_blocks_range(struct gmem_conversion *c)
{
	if (!(GMEM_I(c->f->inode)->flags & GUEST_MEMFD_FLAG_NO_DIRECT_MAP))
		return 0;

	return kvm_gmem_for_each_moving(c, c->end, kvm_gmem_split_block_moving, NULL);
}

/*
 * Take what becomes private out of the direct map, if the file wants that, as the last
 * thing that may fail.  No one has a translation when this returns 0, everything is back
 * when it fails.  The pages are nobody's at the moment: users wait, the guest has no page
 * that it could not have had before.
 */
static int kvm_gmem_take_out_range(struct gmem_conversion *c)
{
	struct gmem_take_out t = {};
	int r;

	kvm_gmem_assert_exclusive(c->f->inode, c->start, c->end);

	if (!(GMEM_I(c->f->inode)->flags & GUEST_MEMFD_FLAG_NO_DIRECT_MAP))
		return 0;

	/* KVM's own caches have addresses of the direct map.  Refreshing one waits. */
	kvm_gmem_invalidate_caches(c->f->inode, c->start, c->end);

	r = kvm_gmem_for_each_moving(c, c->end, kvm_gmem_take_out_moving, &t);
	if (r)
		kvm_gmem_for_each_moving(c, t.end, kvm_gmem_put_back_moving, NULL);
	direct_map_flush(&t.flush);
	return r;
}

/*
 * What may fail and does not need all of the file.  On failure nothing has happened but
 * that users have to fault pages in again.
 */
static int kvm_gmem_prepare_folios(struct gmem_conversion *c)
{
	bool discard = c->content == KVM_SET_MEMORY_ATTRIBUTES2_DISCARD;
	struct inode *inode = c->f->inode;
	int r = 0;

	/*
	 * DISCARD doesn't ask for holders, they keep an orphan.  A page that goes
	 * to shared was private, and no one can hold or map a private page.
	 */
	if (c->to_private || discard)
		kvm_gmem_unmap_users(inode, c->start, c->end);
	if (c->to_private && !discard)
		r = kvm_gmem_check_holders(c);
	if (!r)
		r = kvm_gmem_cut_conversion(c);
	/* To private, what is private already is left alone unless asked for. */
	if (!r && (!c->to_private || c->is_explicit))
		r = kvm_gmem_prepare_range(inode, c->start, c->end);
	if (!r && discard)
		r = kvm_gmem_reclaim_inode_range(inode, c->start, c->end);
	if (!r && !c->to_private && !discard)
		r = kvm_gmem_split_blocks_range(c);
	if (!r && c->to_private && !discard)
		r = kvm_gmem_take_out_range(c);

	return r;
}

/* Beyond the point of no return: take the pages from the guest, see to their bytes. */
static void kvm_gmem_convert_content(struct gmem_conversion *c)
{
	struct inode *inode = c->f->inode;
	enum kvm_gfn_range_filter filter = 0;

	if (GMEM_I(inode)->ops->zap_on_convert) {
		if (!c->to_private || c->is_explicit)
			filter |= KVM_FILTER_PRIVATE;
		if (c->to_private || c->is_explicit)
			filter |= KVM_FILTER_SHARED;
	}

	/*
	 * Faults of claimed pages wait for the claim, asleep.  An invalidation in progress
	 * would have them try again and again, and faults elsewhere, too, when others
	 * that overlap in time stretch the range which KVM keeps of all of them.
	 */
	kvm_gmem_invalidate_start(inode, c->start, c->end, filter);
	if (c->claimed)
		kvm_gmem_invalidate_end(inode, c->start, c->end);

	if (c->content == KVM_SET_MEMORY_ATTRIBUTES2_DISCARD) {
		kvm_gmem_release_inode_range(inode, c->start, c->end);
		kvm_gmem_drop_converted(c, c->start, c->end);
	} else {
		kvm_gmem_drop_fragments(c);
		kvm_gmem_move_range(c);
		kvm_gmem_convert_folios(c);
	}
}

/*
 * Tell readers of the map, then let faults in again.  Those that have looked at the map
 * without a lock, and then waited for the claim, are told by a second invalidation, of
 * nothing, that what they saw is outdated.
 */
static void kvm_gmem_commit(struct gmem_conversion *c, struct gmem_state_change *change)
{
	lockdep_assert_held_write(&c->f->inode->i_mapping->invalidate_lock);

	if (c->claimed)
		kvm_gmem_invalidate_start(c->f->inode, c->start, c->end, 0);

	gmem_state_commit(&GMEM_I(c->f->inode)->state, change);
	if (c->to_private)
		kvm_gmem_account(c->f, c->nr_moved, -c->nr_moved);
	else
		kvm_gmem_account(c->f, -c->nr_moved, c->nr_moved);

	kvm_gmem_invalidate_end(c->f->inode, c->start, c->end);
}

static int kvm_gmem_convert(struct gmem_conversion *c)
{
	struct gmem_state *state = &GMEM_I(c->f->inode)->state;
	struct gmem_state_change change;
	int r;

	lockdep_assert_held_write(&c->f->inode->i_mapping->invalidate_lock);

	r = kvm_gmem_may_keep_content(c);
	if (r)
		return r;

	if (!c->is_explicit && gmem_state_range_is(state, c->start, c->end, c->to_private))
		return 0;

	/* The VM type may keep a page where it is, but not from leaving the file. */
	if (c->content != KVM_SET_MEMORY_ATTRIBUTES2_DISCARD)
		r = kvm_gmem_may_convert(c);
	if (!r)
		r = gmem_state_prepare(state, &change, c->start, c->end, c->to_private);
	if (r)
		return r;

	kvm_gmem_claim(c);
	r = kvm_gmem_prepare_folios(c);
	if (!r)
		kvm_gmem_convert_content(c);
	kvm_gmem_unclaim(c);

	if (r)
		gmem_state_abort(state, &change);
	else
		kvm_gmem_commit(c, &change);
	return r;
}

/*
 * The platform has rejected the private page at @index for what is in it, and has
 * left in it what ought to be: give it to user space with its bytes.
 * change_lock is held, and invalidate_lock for write.
 */
int kvm_gmem_share_rejected(struct gmem_file *f, pgoff_t index)
{
	struct gmem_conversion c = {
		.f = f,
		.start = index,
		.end = index + 1,
		.content = KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE,
	};

	return kvm_gmem_convert(&c);
}

static int kvm_gmem_parse_attributes(struct gmem_file *f,
				     const struct kvm_memory_attributes2 *attrs,
				     struct gmem_conversion *c)
{
	struct gmem_inode *gi = GMEM_I(f->inode);
	struct kvm_gmem_content content;

	if (!attrs->size || attrs->offset + attrs->size < attrs->offset ||
	    attrs->offset + attrs->size > i_size_read(f->inode) ||
	    !PAGE_ALIGNED(attrs->offset) || !PAGE_ALIGNED(attrs->size))
		return -EINVAL;

	if (attrs->attributes & ~gi->ops->attributes)
		return -EINVAL;

	/* Two answers to what becomes of the bytes are none. */
	if (attrs->flags & ~GMEM_CONTENT_FLAGS || hweight64(attrs->flags) > 1)
		return -EINVAL;

	if (memchr_inv(attrs->reserved, 0, sizeof(attrs->reserved)))
		return -EINVAL;

	*c = (struct gmem_conversion) {
		.f = f,
		.start = attrs->offset >> PAGE_SHIFT,
		.end = (attrs->offset + attrs->size) >> PAGE_SHIFT,
		.to_private = attrs->attributes & KVM_MEMORY_ATTRIBUTE_PRIVATE,
		.is_explicit = attrs->flags & ~KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE,
		.error_index = attrs->offset >> PAGE_SHIFT,
	};

	gi->ops->content(f->kvm, c->to_private, &content);
	if (attrs->flags & ~content.allowed)
		return -EOPNOTSUPP;

	if (gi->flags & (GUEST_MEMFD_FLAG_ZERO | GUEST_MEMFD_FLAG_GUEST_CONTENT))
		content.dflt = KVM_SET_MEMORY_ATTRIBUTES2_ZERO;
	c->content = attrs->flags ?: content.dflt;
	return 0;
}

static void kvm_gmem_count_conversion(struct gmem_conversion *c, int r)
{
	struct kvm_vm_stat_generic *stat = &c->f->kvm->stat.generic;

	if (r) {
		atomic64_inc(&stat->gmem_conversions_refused);
		return;
	}

	atomic64_inc(&stat->gmem_conversions);
	atomic64_add(c->nr_moved, &stat->gmem_pages_converted);
}

/*
 * The first conversion of a file that no slot was made of yet: it tracks state from
 * now on.  All its pages are private, as the map has it without an entry.
 */
static int kvm_gmem_track_state(struct inode *inode)
{
	struct gmem_inode *gi = GMEM_I(inode);

	lockdep_assert_held_write(&inode->i_mapping->invalidate_lock);

	if (gi->in_place)
		return 0;

	if (gi->backing_fixed)
		return -ENOTTY;

	WRITE_ONCE(gi->in_place, true);
	/* Whoever sees this without the lock sees that. */
	smp_store_release(&gi->backing_fixed, true);
	return 0;
}

static int kvm_gmem_run_conversion(struct gmem_file *f,
				   struct kvm_memory_attributes2 *attrs,
				   struct kvm_memory_attributes2 __user *uattrs)
{
	struct gmem_conversion c;
	int r;

	/* No error_offset before there is a range that it could be in. */
	r = kvm_gmem_parse_attributes(f, attrs, &c);
	if (r == -EINVAL)
		return r;

	if (!r) {
		kvm_gmem_begin_change(f->inode);
		r = kvm_gmem_track_state(f->inode) ?: kvm_gmem_convert(&c);
		kvm_gmem_end_change(f->inode);
		kvm_gmem_trim_blocks(f->inode);

		trace_kvm_gmem_convert(f->inode->i_ino, c.start, c.end, c.to_private,
				       c.content, r);
		kvm_gmem_count_conversion(&c, r);
	}

	attrs->error_offset = (u64)c.error_index << PAGE_SHIFT;
	if (r && copy_to_user(uattrs, attrs, sizeof(*attrs)))
		return -EFAULT;

	return r;
}

/*
 * KVM_SET_MEMORY_ATTRIBUTES2: set the attributes of a range of @f's file.
 *
 * Only the process that owns the VM may convert, unless the file was created with
 * GUEST_MEMFD_FLAG_SHARED_CONTROL; whoever else holds the file descriptor may at most
 * map and punch what is shared.  @uattrs is written back on error only, once the range
 * is known to be good, with the offset of the first page in the way.  Takes
 * change_lock and, for write, invalidate_lock; may sleep.  Faults outside the range
 * go on meanwhile.
 *
 * Returns 0, or
 *   -EIO	the caller's mm isn't the VM's, or the VM is dead
 *   -ENOTTY	the file is one of two backings of its memory, it has no state;
 *		a file that is neither yet becomes an in-place file
 *   -EFAULT	@uattrs cannot be read, or not written on error
 *   -EINVAL	malformed request, or the VM type has no private memory
 *   -EOPNOTSUPP the VM type cannot do that to the content (now)
 *   -EPERM	the VM type vetoes; or the bytes were to be kept, and the guest has not
 *		asked for that where it has to
 *   -ENOMEM	nothing has changed
 *   -EAGAIN	a page is in use, nothing has changed
 *   -EINTR	killed, nothing has changed
 */
long kvm_gmem_set_attributes(struct gmem_file *f,
			     struct kvm_memory_attributes2 __user *uattrs)
{
	struct gmem_inode *gi = GMEM_I(f->inode);
	struct kvm_memory_attributes2 attrs;

	if (!kvm_gmem_may_control(f) || f->kvm->vm_dead)
		return -EIO;

	if (!gi->ops->attributes)
		return -EINVAL;

	/* A peek, to tell before all else; kvm_gmem_track_state() decides. */
	if (smp_load_acquire(&gi->backing_fixed) && !READ_ONCE(gi->in_place))
		return -ENOTTY;

	if (copy_from_user(&attrs, uattrs, sizeof(attrs)))
		return -EFAULT;

	return kvm_gmem_run_conversion(f, &attrs, uattrs);
}
