// SPDX-License-Identifier: GPL-2.0-only
/*
 * guest_memfd, the folios of a file: allocate, zero, account, drop.
 *
 * Nothing here knows of VM types or of the guest's mappings.  Callers hold the
 * mapping's invalidate_lock and have removed all mappings of what they drop.
 */
#include <linux/folio_batch.h>
#include <linux/highmem.h>
#include <linux/kvm_host.h>
#include <linux/pagemap.h>

#include "gmem_internal.h"

static void kvm_gmem_assert_locked(struct address_space *mapping)
{
	lockdep_assert_held(&mapping->invalidate_lock);
}

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

/*
 * Allocate a folio for @index and add it to the page cache.  Returns it locked,
 * with a reference; -EEXIST if another task was faster.
 */
static struct folio *kvm_gmem_add_folio(struct gmem_file *f, pgoff_t index)
{
	struct address_space *mapping = f->inode->i_mapping;
	gfp_t gfp = mapping_gfp_mask(mapping);
	struct mempolicy *policy;
	struct folio *folio;
	bool is_private;
	long nr_pages;
	int r;

	policy = mpol_shared_policy_lookup(&GMEM_I(f->inode)->policy, index);
	folio = filemap_alloc_folio(gfp, 0, policy);
	mpol_cond_put(policy);
	if (!folio)
		return ERR_PTR(-ENOMEM);

	r = filemap_add_folio(mapping, folio, index, gfp);
	if (r) {
		folio_put(folio);
		return ERR_PTR(r);
	}

	/*
	 * Nothing backs the page.  Clean folios are fair game for
	 * mapping_evict_folio(), e.g. when memory is taken offline because of
	 * corrected errors, and that knows nothing of guest mappings.
	 */
	folio_mark_dirty(folio);

	nr_pages = folio_nr_pages(folio);
	is_private = kvm_gmem_index_is_private(f->inode, index);
	kvm_gmem_account(f, is_private ? nr_pages : 0, is_private ? 0 : nr_pages);
	return folio;
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

	kvm_gmem_assert_locked(mapping);

	do {
		folio = filemap_lock_folio(mapping, index);
		if (!IS_ERR(folio))
			return folio;

		folio = kvm_gmem_add_folio(f, index);
	} while (folio == ERR_PTR(-EEXIST));

	return folio;
}

/*
 * Zero all of @folio.  The caller makes sure that no one relies on the bytes;
 * stores of whoever has the folio mapped may land before or after.
 */
void kvm_gmem_zero_folio(struct folio *folio)
{
	long i;

	for (i = 0; i < folio_nr_pages(folio); i++) {
		clear_highpage(folio_page(folio, i));
		cond_resched();
	}
	flush_dcache_folio(folio);
}

/*
 * Make @folio, which is locked, fit to be seen by a guest or a user: what the
 * page held in its former life must not leak.
 */
void kvm_gmem_make_uptodate(struct folio *folio)
{
	VM_WARN_ON_ONCE_FOLIO(!folio_test_locked(folio), folio);

	if (folio_test_uptodate(folio))
		return;

	kvm_gmem_zero_folio(folio);
	folio_mark_uptodate(folio);
}

/* Return the first index in [@start, @end) that has a folio, @end if none has. */
pgoff_t kvm_gmem_next_present(struct inode *inode, pgoff_t start, pgoff_t end)
{
	unsigned long index = start;

	kvm_gmem_assert_locked(inode->i_mapping);

	if (start >= end || !xa_find(&inode->i_mapping->i_pages, &index, end - 1, XA_PRESENT))
		return end;

	return index;
}

/*
 * The platform doesn't give @folio back: keep it from the allocator for good, by a
 * reference that no one puts.  Its next user would corrupt a guest's memory, or die
 * of touching it.  Called while the caller holds another reference.
 */
void kvm_gmem_leak_folio(struct folio *folio)
{
	folio_get(folio);
	pr_err_ratelimited("kvm: guest_memfd: %ld pages at pfn 0x%lx are leaked, the platform doesn't give them back\n",
			   folio_nr_pages(folio), folio_pfn(folio));
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gmem_leak_folio);

static int kvm_gmem_prepare_edge(struct inode *inode, pgoff_t index)
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
 * Make the VM type fit to treat pages [@start, @end) apart from their neighbours.
 * invalidate_lock is held for write.
 */
int kvm_gmem_prepare_edges(struct inode *inode, pgoff_t start, pgoff_t end)
{
	int r;

	lockdep_assert_held_write(&inode->i_mapping->invalidate_lock);

	if (!GMEM_I(inode)->ops->prepare_convert)
		return 0;

	r = kvm_gmem_prepare_edge(inode, start);
	return r ?: kvm_gmem_prepare_edge(inode, end - 1);
}

/*
 * Remove pages [@start, @end) from all user page tables.  As invalidate_lock is
 * held for write, no fault can bring them back.
 *
 * "Even COWs": there are none, but only so are the markers removed that memory
 * failure leaves in page tables.  With them user space would go on getting SIGBUS
 * when the poisoned page is long gone.
 */
void kvm_gmem_unmap_users(struct inode *inode, pgoff_t start, pgoff_t end)
{
	struct address_space *mapping = inode->i_mapping;

	lockdep_assert_held_write(&mapping->invalidate_lock);

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
 * Take the folios in [@start, @end) out of the file.  They go back to the
 * allocator with their last reference, after the VM type's ->free_folio(); a
 * user who holds one keeps an orphan.  State is not touched.
 *
 * invalidate_lock is held for write, the guest's mappings are gone.
 */
void kvm_gmem_drop_folios(struct gmem_file *f, pgoff_t start, pgoff_t end)
{
	struct address_space *mapping = f->inode->i_mapping;
	struct gmem_inode *gi = GMEM_I(f->inode);
	bool mixed, first_private;
	long nr_private = 0;
	long nr;

	lockdep_assert_held_write(&mapping->invalidate_lock);

	first_private = kvm_gmem_index_is_private(f->inode, start);
	mixed = gi->in_place &&
		!gmem_state_range_is(&gi->state, start, end, first_private);
	if (mixed)
		nr_private = kvm_gmem_count_private(f->inode, start, end);

	nr = mapping->nrpages;
	truncate_inode_pages_range(mapping, (loff_t)start << PAGE_SHIFT,
				   ((loff_t)end << PAGE_SHIFT) - 1);
	nr -= mapping->nrpages;

	if (!mixed && first_private)
		nr_private = nr;

	kvm_gmem_account(f, -nr_private, nr_private - nr);
}
