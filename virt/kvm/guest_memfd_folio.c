// SPDX-License-Identifier: GPL-2.0-only
/*
 * guest_memfd, the folios of a file: allocate, zero, account, split, drop.
 *
 * Nothing here knows one VM type from another; where the VM type has a say, its table is
 * asked (fresh, prepare_convert, ->free_folio()).  Nor does anything here know of the
 * guest's mappings.  Callers hold the mapping's invalidate_lock, or have claimed what they
 * work on, and have removed all mappings of what they drop.
 */

/**
 * DOC: Large folios
 *
 * A file with GUEST_MEMFD_FLAG_HUGE has folios of the VM type's largest order where it
 * can, single pages where it cannot, and what a split has left of a large folio.
 *
 * - A large folio is allocated for a naturally aligned block of the file that is empty,
 *   of one state and of one NUMA policy, and that the file covers.  If there is no such
 *   folio to be had, a page is allocated instead, and no error is reported.
 * - A folio is never mixed: all of it is private, or all of it is shared.  It is split,
 *   by kvm_gmem_cut(), before a part of it changes sides or leaves the file, as long as
 *   that may fail.  A file without the flag never has anything to cut.
 * - Small folios are never put together.  A block whose pages are all gone, or whose
 *   bytes need not survive a conversion, is allocated anew.
 * - A folio is zeroed whole by its first use, and is up to date then; the pieces of a
 *   split are what the whole was.
 *
 * Zeroing is eager because the first fault then maps all of the folio.  To zero by the
 * page would mean to keep a bitmap for each folio, and 512 faults to map what one could.
 * What is allocated and never touched is never zeroed.  Two users pay for it: a slot that
 * cannot map large pages for want of alignment, and populate, which overwrites what was
 * just zeroed.
 *
 * A split is like that of a buddy allocator, and cuts no finer than the edge demands.  It
 * takes memory with GFP_NOWAIT.  Where that fails, the even split, which can wait, is
 * tried.
 *
 * A split does not zap guest mappings, nor does a conversion that fails after it, and
 * memory failure splits without asking.  So a guest mapping may be larger than the folio
 * below it.  It shows the right pages, and whatever happens to one of them zaps the
 * mapping.  For the same reason an invalidation is widened to max_order of the file, and
 * not to the order of the folio at the edge: a fault may have looked at the folio when
 * it was large.
 *
 * The reference that a walk has to a folio keeps memory failure from splitting the folio
 * under the walk.  The price is that a split that meets such a reference fails, as it
 * would for any holder.
 */

/**
 * DOC: Memory outside the direct map
 *
 * With GUEST_MEMFD_FLAG_NO_DIRECT_MAP the kernel has no standing mapping of the file's
 * pages; of an in-place file's, of those that are private.  No bit of a folio says so:
 * what is in the file, and private if the file is in place, is out.  Therefore:
 *
 * - A new folio has its content, zeros or what was written, and is taken out and flushed
 *   before it enters the page cache.  If it cannot enter after all it is put back.
 * - A single page is out before it is given its content, and stays out until others can
 *   go back with it, if it is of a block; see "Blocks".
 * - Any other folio that has left the page cache is cleared and put back, in
 *   ->free_folio(), before its last reference can free it.  A user who holds an orphan of
 *   a shared page has one that was in, and that is left alone.
 * - A conversion to private takes folios out when everything else that may fail is done,
 *   but for bad pages, which someone may hold; flushes once, and puts them back if it
 *   fails.  A conversion to shared puts them back before it commits.  Between that and the
 *   commit nobody can reach the page: users wait, the guest is unmapped.
 * - An entry of the direct map is never larger than the folio in it that is out: before a
 *   folio is split, the entry is, while that may fail.  So putting back changes whole
 *   entries, takes no memory, and cannot fail.  Memory failure alone splits a folio without
 *   asking, and a page that it has struck stays out for good, and in nobody's hands; if
 *   there is no memory when the others are put back, they are leaked.
 * - Who has to touch a page that is out uses direct_map_kmap_local(), page by page.
 *
 * GUP refuses all pages of files of fixed state, by a flag of the mapping.
 */
#include <linux/folio_batch.h>
#include <linux/highmem.h>
#include <linux/huge_mm.h>
#include <linux/kvm_host.h>
#include <linux/pagemap.h>
#include <linux/swap.h>

#include "gmem_internal.h"

/*
 * Account @nr_private and @nr_shared pages that came (or went, if negative), in
 * the inode and in the statistics of the VM whose file it is.
 */
void kvm_gmem_account(struct gmem_file *f, long nr_private, long nr_shared)
{
	struct kvm_vm_stat_generic *stat = &f->kvm->stat.generic;

	if (nr_private) {
		atomic_long_add(nr_private, &GMEM_I(f->inode)->nr_private);
		atomic64_add(nr_private, &stat->gmem_pages_private);
	}
	if (nr_shared)
		atomic64_add(nr_shared, &stat->gmem_pages_shared);
}

/* A large folio is welcome, but no reason to reclaim for long, or to complain. */
gfp_t kvm_gmem_gfp(struct address_space *mapping, unsigned int order)
{
	gfp_t gfp = mapping_gfp_mask(mapping);

	return order ? gfp | __GFP_NORETRY | __GFP_NOWARN : gfp;
}

/*
 * Allocate a folio of @order for @index, which is aligned, where mbind() wants it.  NULL
 * if there is none.  A single page that will be out may be out already, if the caller
 * @may_be_out: whoever doesn't add it to the file, or fails to, has to
 * kvm_gmem_put_new_folio().
 */
struct folio *kvm_gmem_alloc_folio(struct inode *inode, pgoff_t index, unsigned int order,
				   bool may_be_out)
{
	struct folio *folio = NULL;
	struct mempolicy *policy;

	policy = mpol_shared_policy_lookup(&GMEM_I(inode)->policy, index);
	/* Who holds no lock may get either kind, see kvm_gmem_insert_folio(). */
	if (may_be_out && !order && kvm_gmem_is_out(inode, index))
		folio = kvm_gmem_alloc_from_block(inode, policy);
	if (!folio)
		folio = filemap_alloc_folio(kvm_gmem_gfp(inode->i_mapping, order), order,
					    policy);
	mpol_cond_put(policy);

	return folio;
}

/* Free @folio, which is in no file, and never was. */
void kvm_gmem_put_new_folio(struct folio *folio)
{
	if (kvm_gmem_is_of_block(folio))
		kvm_gmem_untake_folio(folio);
	else
		folio_put(folio);
}

static void kvm_gmem_zero_page(struct page *page)
{
	void *vaddr;

	if (PageHWPoison(page))
		return;

	vaddr = direct_map_kmap_local(page);
	clear_page(vaddr);
	direct_map_kunmap_local(vaddr);
}

/*
 * Zero the pages [@start, @end) of the file as far as @folio has them, but for
 * poisoned ones.  The caller makes sure that no one relies on the bytes; stores of
 * whoever has the folio mapped may land before or after.
 */
void kvm_gmem_zero_pages(struct folio *folio, pgoff_t start, pgoff_t end)
{
	pgoff_t index;

	/* Memory failure may split a folio, but not one that is referenced. */
	start = max(start, folio->index);
	end = min(end, folio_next_index(folio));

	for (index = start; index < end; index++) {
		kvm_gmem_zero_page(folio_file_page(folio, index));
		cond_resched();
	}
	flush_dcache_folio(folio);
}

/* Write zeros to all of @folio, which may be in no file. */
static void kvm_gmem_clear_pages(struct folio *folio)
{
	long i;

	for (i = 0; i < folio_nr_pages(folio); i++) {
		kvm_gmem_zero_page(folio_page(folio, i));
		cond_resched();
	}
	flush_dcache_folio(folio);
}

/* The same, as what the guest or a user sees first of @folio. */
static void kvm_gmem_clear_folio(const struct kvm_gmem_ops *ops, struct folio *folio)
{
	kvm_gmem_clear_pages(folio);
	if (ops->fresh)
		ops->fresh(folio_pfn(folio), folio_order(folio));
	folio_mark_uptodate(folio);
}

/*
 * Make @folio, which is locked, fit to be seen by a guest or a user: what the
 * page held in its former life must not leak.
 */
void kvm_gmem_make_uptodate(struct folio *folio)
{
	VM_WARN_ON_ONCE_FOLIO(!folio_test_locked(folio), folio);

	if (!folio_test_uptodate(folio))
		kvm_gmem_clear_folio(GMEM_I(folio->mapping->host)->ops, folio);
}

/* Take @folio out of the direct map; see direct_map_take_out(). */
int kvm_gmem_take_out(struct folio *folio, struct direct_map_flush *flush)
{
	return direct_map_take_out(&folio->page, folio_nr_pages(folio), flush);
}

/*
 * Put @folio back, if it is out.  If it is of a block, kvm_gmem_split_block() was called.
 * False if that isn't possible, and @folio is lost: memory failure has struck it, and
 * there is no memory to treat its pages apart in the direct map.
 */
bool kvm_gmem_put_back(struct folio *folio)
{
	if (kvm_gmem_is_of_block(folio)) {
		kvm_gmem_leave_block(folio);
		return true;
	}

	return !direct_map_put_back(&folio->page, folio_nr_pages(folio));
}

/* Is @folio, which is in no file, out?  A bad page may be for that reason alone. */
static bool kvm_gmem_folio_is_out(struct folio *folio)
{
	long i, nr = folio_nr_pages(folio);

	for (i = 0; i < nr - 1 && PageHWPoison(folio_page(folio, i)); i++)
		;

	return !direct_map_has(folio_page(folio, i));
}

/* @folio cannot be put back.  There is a hole in the direct map for good. */
static void kvm_gmem_lose_folio(struct folio *folio)
{
	direct_map_holes_get();
	kvm_gmem_leak_folio(folio);
}

/*
 * ->free_folio(): @folio has left its file, the caller has a reference.  What was out is
 * nobody's now, and not for the kernel to read: clear it.  What was in may be an orphan in
 * a user's hands.
 */
static void kvm_gmem_free_out_folio(struct folio *folio)
{
	/* Before it is back, so that there is never anything to read. */
	if (kvm_gmem_folio_is_out(folio))
		kvm_gmem_clear_pages(folio);

	if (kvm_gmem_is_of_block(folio)) {
		kvm_gmem_park_folio(folio);
	} else if (!kvm_gmem_put_back(folio)) {
		kvm_gmem_lose_folio(folio);
	} else if (!folio_test_large(folio) && !direct_map_has(&folio->page)) {
		/*
		 * A bad page, out for good.  "Unpoison" would give it to the allocator if it
		 * had one reference: that is memory failure's, if it has one.
		 */
		folio_ref_add(folio, 2);
	}
}

const struct address_space_operations kvm_gmem_no_direct_map_aops =
	KVM_GMEM_AOPS(kvm_gmem_free_out_folio);

/* Give the new @folio its content, if it has none yet, and take it out, if it is in. */
static int kvm_gmem_hide_new_folio(const struct kvm_gmem_ops *ops, struct folio *folio)
{
	struct direct_map_flush flush = {};
	int r;

	if (!folio_test_uptodate(folio))
		kvm_gmem_clear_folio(ops, folio);

	if (kvm_gmem_is_of_block(folio))
		return 0;

	r = kvm_gmem_take_out(folio, &flush);
	direct_map_flush(&flush);
	return r;
}

/* @folio is of a block, but will be shared: the page was private when it was allocated. */
static int kvm_gmem_show_new_folio(struct folio *folio)
{
	int r = kvm_gmem_split_block(folio);

	if (r)
		return r;

	/* Nobody's former bytes. */
	if (!folio_test_uptodate(folio))
		kvm_gmem_clear_pages(folio);
	kvm_gmem_leave_block(folio);
	return 0;
}

/*
 * Add @folio, which nobody knows yet, to the file at @index.  It is up to date if it has
 * content from user space.  Returns 0, with the folio locked, -EEXIST if another task was
 * faster, or -ENOMEM; kvm_gmem_put_new_folio() is what is left to do then.
 */
int kvm_gmem_insert_folio(struct gmem_file *f, struct folio *folio, pgoff_t index)
{
	const struct kvm_gmem_ops *ops = GMEM_I(f->inode)->ops;
	struct address_space *mapping = f->inode->i_mapping;
	bool is_out = kvm_gmem_is_out(f->inode, index);
	long nr_pages = folio_nr_pages(folio);
	bool is_private;
	int r = 0;

	lockdep_assert_held(&mapping->invalidate_lock);

	if (!is_out && kvm_gmem_is_of_block(folio))
		r = kvm_gmem_show_new_folio(folio);
	if (!r && folio_test_uptodate(folio) && ops->fresh)
		ops->fresh(folio_pfn(folio), folio_order(folio));
	if (!r && is_out)
		r = kvm_gmem_hide_new_folio(ops, folio);
	if (r)
		return r;

	r = filemap_add_folio(mapping, folio, index,
			      kvm_gmem_gfp(mapping, folio_order(folio)));
	if (r) {
		/* Nobody has split the folio, so memory failure alone makes this fail. */
		if (is_out && !kvm_gmem_is_of_block(folio) && !kvm_gmem_put_back(folio))
			kvm_gmem_lose_folio(folio);
		return r;
	}

	/*
	 * Nothing backs the page.  Clean folios are fair game for
	 * mapping_evict_folio(), e.g. when memory is taken offline because of
	 * corrected errors, and that knows nothing of guest mappings.
	 */
	folio_mark_dirty(folio);

	is_private = kvm_gmem_index_is_private(f->inode, index);
	kvm_gmem_account(f, is_private ? nr_pages : 0, is_private ? 0 : nr_pages);
	return 0;
}

/* Both at once.  Returns the folio locked and with a reference. */
static struct folio *kvm_gmem_add_folio(struct gmem_file *f, pgoff_t index,
					unsigned int order)
{
	struct folio *folio;
	int r;

	folio = kvm_gmem_alloc_folio(f->inode, index, order, true);
	if (!folio)
		return ERR_PTR(-ENOMEM);

	r = kvm_gmem_insert_folio(f, folio, index);
	if (r) {
		kvm_gmem_put_new_folio(folio);
		return ERR_PTR(r);
	}

	return folio;
}

#ifdef CONFIG_NUMA
/*
 * Has mbind() one wish, or none, for all of [@start, @end)?  A policy that changes
 * meanwhile is honoured by the next allocation.
 */
static bool kvm_gmem_policy_is_uniform(struct inode *inode, pgoff_t start, pgoff_t end)
{
	struct shared_policy *sp = &GMEM_I(inode)->policy;
	struct mempolicy *first, *other;
	pgoff_t index;

	/* mbind() was never called, the usual case. */
	if (!READ_ONCE(sp->root.rb_node))
		return true;

	first = mpol_shared_policy_lookup(sp, start);
	for (index = start + 1; index < end; index++) {
		other = mpol_shared_policy_lookup(sp, index);
		mpol_cond_put(other);
		if (other != first)
			break;
	}
	mpol_cond_put(first);

	return index == end;
}
#else
static bool kvm_gmem_policy_is_uniform(struct inode *inode, pgoff_t start, pgoff_t end)
{
	return true;
}
#endif

/* May one folio be allocated for the aligned block [@start, @end) of the file? */
bool kvm_gmem_may_be_large(struct inode *inode, pgoff_t start, pgoff_t end)
{
	struct gmem_inode *gi = GMEM_I(inode);

	lockdep_assert_held(&inode->i_mapping->invalidate_lock);

	if (end > i_size_read(inode) >> PAGE_SHIFT)
		return false;

	if (gi->in_place && !gmem_state_is_uniform(&gi->state, start, end))
		return false;

	return kvm_gmem_next_present(inode, start, end) == end &&
	       kvm_gmem_policy_is_uniform(inode, start, end);
}

/* Allocate and add one for @index, large if possible; see kvm_gmem_add_folio(). */
static struct folio *kvm_gmem_new_folio(struct gmem_file *f, pgoff_t index)
{
	unsigned int order = GMEM_I(f->inode)->max_order;
	pgoff_t start = ALIGN_DOWN(index, 1UL << order);
	struct folio *folio;

	if (order && kvm_gmem_may_be_large(f->inode, start, start + (1UL << order))) {
		folio = kvm_gmem_add_folio(f, start, order);
		if (!IS_ERR(folio) || folio == ERR_PTR(-EEXIST))
			return folio;
	}

	return kvm_gmem_add_folio(f, index, 0);
}

/*
 * Return the folio at @index, locked and with a reference, allocating it if
 * there is none.  A new folio is not up to date: its content is undefined, and
 * it must not be mapped before kvm_gmem_make_uptodate().
 *
 * The folio cannot leave the file while the caller holds invalidate_lock, in
 * either mode.
 */
struct folio *kvm_gmem_get_folio(struct gmem_file *f, pgoff_t index)
{
	struct address_space *mapping = f->inode->i_mapping;
	struct folio *folio;

	lockdep_assert_held(&mapping->invalidate_lock);

	do {
		folio = filemap_lock_folio(mapping, index);
		if (!IS_ERR(folio))
			return folio;

		folio = kvm_gmem_new_folio(f, index);
	} while (folio == ERR_PTR(-EEXIST));

	return folio;
}

/* Return the first index in [@start, @end) that has a folio, @end if none has. */
pgoff_t kvm_gmem_next_present(struct inode *inode, pgoff_t start, pgoff_t end)
{
	unsigned long index = start;

	if (start >= end)
		return end;

	kvm_gmem_assert_usable(inode, start, end);

	if (!xa_find(&inode->i_mapping->i_pages, &index, end - 1, XA_PRESENT))
		return end;

	return max(index, start);
}

/* Return the first index in [@start, @end) that has no folio, @end if all have. */
pgoff_t kvm_gmem_next_absent(struct inode *inode, pgoff_t start, pgoff_t end)
{
	struct folio *folio;

	kvm_gmem_assert_usable(inode, start, end);

	/* Folio by folio: page_cache_next_miss() understands neither 0 nor large folios. */
	while (start < end) {
		folio = filemap_get_folio(inode->i_mapping, start);
		if (IS_ERR(folio))
			return start;

		start = folio_next_index(folio);
		folio_put(folio);
		cond_resched();
	}

	return end;
}

/*
 * Is @folio used by anyone but the file and the caller, each of whom has a
 * reference (the file one a page)?  GUP-fast may still take a reference after
 * the check, but drops it unused, as it finds the page table entry gone.
 */
bool kvm_gmem_folio_is_held(struct folio *folio)
{
	return folio_mapped(folio) || folio_maybe_dma_pinned(folio) ||
	       folio_ref_count(folio) != folio_nr_pages(folio) + 1;
}

/*
 * Split @folio, which the caller has a reference to, so that a folio begins at
 * @index.  Buddies away from @index stay as large as they can; @evenly does
 * without, all pieces are of one size, and in turn may wait for the memory that it
 * needs.  Removes all user mappings of @folio.
 */
static int kvm_gmem_split_folio(struct folio *folio, pgoff_t index, bool evenly)
{
	unsigned int order = min_t(unsigned long, __ffs(index), folio_order(folio) - 1);
	int r;

	folio_lock(folio);
	if (evenly)
		r = split_folio_to_order(folio, order);
	else
		r = folio_split(folio, order, folio_file_page(folio, index), NULL);
	folio_unlock(folio);

	return r == -ENOMEM ? r : (r ? -EAGAIN : 0);
}

static int kvm_gmem_try_cut(struct inode *inode, pgoff_t index, bool evenly)
{
	struct folio *folio;
	int r = 0;

	folio = filemap_get_folio(inode->i_mapping, index);
	if (IS_ERR(folio))
		return 0;

	if (folio->index < index) {
		/* The LRU's batches may hold what was split before. */
		lru_cache_drain_for_folio(folio, 1, NULL);
		/* What is split in vain stays split, and does no harm. */
		if (kvm_gmem_is_out(inode, folio->index))
			r = direct_map_split(&folio->page);
		if (!r)
			r = kvm_gmem_split_folio(folio, index, evenly);
	}

	folio_put(folio);
	return r;
}

/*
 * Make a folio begin at @index, if there is a folio at all: what comes before may
 * then be treated apart from what comes after.  No state and no content changes, and
 * the guest's mappings stay.
 *
 * The caller has the blocks on both sides of @index for itself.  Returns 0, -EAGAIN if
 * someone holds the folio that is in the way, -ENOMEM.
 */
int kvm_gmem_cut(struct inode *inode, pgoff_t index)
{
	pgoff_t nr = 1UL << GMEM_I(inode)->max_order;
	int r;

	/* No folio goes on where the block does not. */
	if (IS_ALIGNED(index, nr))
		return 0;

	kvm_gmem_assert_exclusive(inode, ALIGN_DOWN(index, nr), ALIGN(index, nr));

	r = kvm_gmem_try_cut(inode, index, false);
	return r == -ENOMEM ? kvm_gmem_try_cut(inode, index, true) : r;
}

/* Batches end where no folio can go on; a cut there would be for nothing. */
pgoff_t kvm_gmem_batch_end(struct inode *inode, pgoff_t start, pgoff_t end)
{
	pgoff_t batch = max_t(pgoff_t, GMEM_BATCH_PAGES, 1UL << GMEM_I(inode)->max_order);

	return min(end, ALIGN_DOWN(start, batch) + batch);
}

/* Make no folio straddle an edge of [@start, @end), see kvm_gmem_cut(). */
int kvm_gmem_cut_edges(struct inode *inode, pgoff_t start, pgoff_t end)
{
	return kvm_gmem_cut(inode, start) ?: kvm_gmem_cut(inode, end);
}

/* truncate_inode_pages_range() keeps a folio of which it cannot split a part off. */
static void kvm_gmem_assert_cut(struct inode *inode, pgoff_t index)
{
	struct folio *folio;

	if (!IS_ENABLED(CONFIG_DEBUG_VM))
		return;

	folio = filemap_get_folio(inode->i_mapping, index);
	if (IS_ERR(folio))
		return;

	VM_WARN_ON_ONCE_FOLIO(folio->index < index, folio);
	folio_put(folio);
}

static bool kvm_gmem_is_leaked(struct folio *folio)
{
	return folio->private == KVM_GMEM_FOLIO_LEAKED;
}

/*
 * The platform doesn't give @folio back: keep it from the allocator for good, by a
 * reference that no one puts.  Its next user would corrupt a guest's memory, or die
 * of touching it.  Called while the caller holds another reference; once is enough.
 */
void kvm_gmem_leak_folio(struct folio *folio)
{
	if (kvm_gmem_is_leaked(folio))
		return;

	folio_get(folio);
	folio->private = KVM_GMEM_FOLIO_LEAKED;
	pr_err_ratelimited("kvm: guest_memfd: %ld pages at pfn 0x%lx are leaked, the platform doesn't give them back\n",
			   folio_nr_pages(folio), folio_pfn(folio));
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gmem_leak_folio);

static int kvm_gmem_prepare_folio(struct inode *inode, pgoff_t index)
{
	const struct kvm_gmem_ops *ops = GMEM_I(inode)->ops;
	struct folio *folio;
	int r;

	folio = filemap_get_folio(inode->i_mapping, index);
	if (IS_ERR(folio))
		return 0;

	r = ops->prepare_convert(folio_pfn(folio), folio_order(folio));
	folio_put(folio);
	return r;
}

/*
 * Make the VM type fit to treat pages [@start, @end) apart from their neighbours, and
 * each folio of theirs apart from the others, see ->prepare_convert().
 * The caller has them for itself.  Returns -EINTR if the task is being killed.
 */
int kvm_gmem_prepare_range(struct inode *inode, pgoff_t start, pgoff_t end)
{
	struct gmem_inode *gi = GMEM_I(inode);
	pgoff_t nr = 1UL << gi->max_order;
	int r = 0;

	kvm_gmem_assert_exclusive(inode, start, end);

	/* Where all folios are pages, no entry is larger than a folio. */
	if (!gi->ops->prepare_convert || !gi->max_order)
		return 0;

	while (!r && (start = kvm_gmem_next_present(inode, start, end)) < end) {
		r = kvm_gmem_prepare_folio(inode, start);
		start = ALIGN_DOWN(start, nr) + nr;
		cond_resched();

		if (!r && fatal_signal_pending(current))
			r = -EINTR;
	}

	return r;
}

/*
 * Remove pages [@start, @end) from all user page tables.  As the caller has them for
 * itself, no fault can bring them back.
 *
 * "Even COWs": there are none, but only so are the markers removed that memory
 * failure leaves in page tables.  With them user space would go on getting SIGBUS
 * when the poisoned page is long gone.
 */
void kvm_gmem_unmap_users(struct inode *inode, pgoff_t start, pgoff_t end)
{
	struct address_space *mapping = inode->i_mapping;

	kvm_gmem_assert_exclusive(inode, start, end);

	if (mapping_mapped(mapping))
		unmap_mapping_pages(mapping, start, end - start, true);
}

/* Count the pages present in [@start, @end) that are private. */
static long kvm_gmem_count_private(struct inode *inode, pgoff_t start, pgoff_t end)
{
	struct gmem_state *state = &GMEM_I(inode)->state;
	struct folio_batch fbatch;
	long nr = 0;
	int i;

	folio_batch_init(&fbatch);
	while (filemap_get_folios(inode->i_mapping, &start, end - 1, &fbatch)) {
		for (i = 0; i < folio_batch_count(&fbatch); i++) {
			struct folio *folio = fbatch.folios[i];

			if (gmem_state_test(state, folio->index))
				nr += folio_nr_pages(folio);
		}
		folio_batch_release(&fbatch);
		cond_resched();
	}

	return nr;
}

/*
 * Remove the folios in [@start, @end) from the page cache.  Where the platform may have
 * to give them up, look at each of them afterwards: what it keeps is counted.
 */
static void kvm_gmem_truncate(struct gmem_file *f, pgoff_t start, pgoff_t end)
{
	struct address_space *mapping = f->inode->i_mapping;
	struct folio_batch fbatch;
	struct folio *folio;
	long nr_leaked = 0;
	int i;

	if (!mapping->a_ops->free_folio) {
		truncate_inode_pages_range(mapping, (loff_t)start << PAGE_SHIFT,
					   ((loff_t)end << PAGE_SHIFT) - 1);
		return;
	}

	folio_batch_init(&fbatch);
	while (filemap_get_folios(mapping, &start, end - 1, &fbatch)) {
		folio = fbatch.folios[0];
		truncate_inode_pages_range(mapping, folio_pos(folio),
					   ((loff_t)min(start, end) << PAGE_SHIFT) - 1);

		for (i = 0; i < folio_batch_count(&fbatch); i++) {
			folio = fbatch.folios[i];
			if (kvm_gmem_is_leaked(folio))
				nr_leaked += folio_nr_pages(folio);
		}
		folio_batch_release(&fbatch);
		cond_resched();
	}

	if (nr_leaked)
		atomic64_add(nr_leaked, &f->kvm->stat.generic.gmem_pages_leaked);
}

/*
 * Take the folios in [@start, @end) out of the file.  They go back to the
 * allocator with their last reference, after the VM type's ->free_folio(); a
 * user who holds one keeps an orphan.  State is not touched.
 *
 * invalidate_lock is held for write, the guest's mappings are gone, no folio
 * straddles an edge.
 */
void kvm_gmem_drop_folios(struct gmem_file *f, pgoff_t start, pgoff_t end)
{
	struct address_space *mapping = f->inode->i_mapping;
	struct gmem_inode *gi = GMEM_I(f->inode);
	bool mixed, first_private;
	long nr_private = 0;
	long nr;

	/* A claim won't do: others must not come while pages are counted. */
	lockdep_assert_held_write(&mapping->invalidate_lock);
	kvm_gmem_assert_cut(f->inode, start);
	kvm_gmem_assert_cut(f->inode, end);

	/* One page, the usual case, needs no second look at its state. */
	first_private = kvm_gmem_index_is_private(f->inode, start);
	mixed = gi->in_place && end - start > 1 &&
		!gmem_state_range_is(&gi->state, start + 1, end, first_private);
	if (mixed)
		nr_private = kvm_gmem_count_private(f->inode, start, end);

	nr = mapping->nrpages;
	kvm_gmem_truncate(f, start, end);
	nr -= mapping->nrpages;

	if (!mixed && first_private)
		nr_private = nr;

	kvm_gmem_account(f, -nr_private, nr_private - nr);
}
