// SPDX-License-Identifier: GPL-2.0-only
/*
 * guest_memfd, bindings: which memslot shows which pages of a file, and what
 * follows from it: zapping the guest's mappings, telling the VM type.
 */
#include <linux/file.h>
#include <linux/folio_batch.h>
#include <linux/kvm_host.h>
#include <linux/pagemap.h>

#include "gmem_internal.h"
#include "gmem_trace.h"
#include "guest_memfd.h"
#include "kvm_mm.h"

static void kvm_gmem_assert_bindings_stable(struct inode *inode)
{
	lockdep_assert(lockdep_is_held(&GMEM_I(inode)->change_lock) ||
		       lockdep_is_held(&inode->i_mapping->invalidate_lock) ||
		       lockdep_is_held(&GMEM_I(inode)->bindings_lock));
}

static struct kvm_memory_slot *kvm_gmem_binding_slot(struct interval_tree_node *node)
{
	return node ? container_of(node, struct kvm_memory_slot, gmem.binding) : NULL;
}

/* Return the first slot of @f that shows a page in [@start, @end), or NULL. */
struct kvm_memory_slot *kvm_gmem_first_binding(struct gmem_file *f, pgoff_t start,
					       pgoff_t end)
{
	kvm_gmem_assert_bindings_stable(f->inode);

	if (start >= end)
		return NULL;

	return kvm_gmem_binding_slot(interval_tree_iter_first(&f->bindings, start, end - 1));
}

/* Return the next slot after @slot that shows a page in [@start, @end), or NULL. */
struct kvm_memory_slot *kvm_gmem_next_binding(struct kvm_memory_slot *slot,
					      pgoff_t start, pgoff_t end)
{
	return kvm_gmem_binding_slot(interval_tree_iter_next(&slot->gmem.binding,
							     start, end - 1));
}

/* Describe the gfns at which @slot shows the pages [@start, @end) of its file. */
void kvm_gmem_slot_range(struct kvm_memory_slot *slot, pgoff_t start, pgoff_t end,
			 struct kvm_gfn_range *range)
{
	pgoff_t pgoff = slot->gmem.pgoff;

	*range = (struct kvm_gfn_range) {
		.slot = slot,
		.start = slot->base_gfn + max(pgoff, start) - pgoff,
		.end = slot->base_gfn + min(pgoff + slot->npages, end) - pgoff,
		.may_block = true,
	};
}

/*
 * Zap @slot's view of [@start, @end), and keep faults from installing anything
 * there until the invalidation ends.  Faults of neighbours are kept out too, as
 * far as a mapping of the largest folio at the edges could reach: it would cover
 * pages of the range, with the old state.  The folio may be split already, by the
 * caller or by memory failure, but not the one that a fault has looked up before.
 */
static bool kvm_gmem_zap_slot(struct gmem_file *f, struct kvm_memory_slot *slot,
			      pgoff_t start, pgoff_t end,
			      enum kvm_gfn_range_filter filter)
{
	const struct kvm_gmem_ops *ops = GMEM_I(f->inode)->ops;
	pgoff_t align = 1UL << GMEM_I(f->inode)->max_order;
	struct kvm_gfn_range range;

	kvm_gmem_slot_range(slot, ALIGN_DOWN(start, align),
			    end > ULONG_MAX - align ? end : ALIGN(end, align), &range);
	kvm_mmu_invalidate_range_add(f->kvm, range.start, range.end);

	kvm_gmem_slot_range(slot, start, end, &range);
	range.attr_filter = filter;

	if (ops->invalidate)
		ops->invalidate(f->kvm, &range);

	return filter && kvm_unmap_gfn_range(f->kvm, &range);
}

void kvm_gmem_invalidate_file_start(struct gmem_file *f, pgoff_t start,
				    pgoff_t end,
				    enum kvm_gfn_range_filter filter)
{
	struct kvm *kvm = f->kvm;
	struct kvm_memory_slot *slot;
	bool found = false;
	bool flush = false;

	/* KVM's caches go by the file: no matter which slot they were made of. */
	gfn_to_pfn_cache_invalidate_gmem(kvm, f->inode, start, end);

	kvm_gmem_for_each_binding(f, slot, start, end) {
		if (!found) {
			KVM_MMU_LOCK(kvm);
			kvm_mmu_invalidate_start(kvm);
			found = true;
		}

		flush |= kvm_gmem_zap_slot(f, slot, start, end, filter);
	}

	if (flush)
		kvm_flush_remote_tlbs(kvm);
	if (found)
		KVM_MMU_UNLOCK(kvm);
}

/*
 * Have KVM's caches of pages [@start, @end) forget them.  invalidate_lock or a claim keeps
 * new ones away.
 */
void kvm_gmem_invalidate_caches(struct inode *inode, pgoff_t start, pgoff_t end)
{
	struct gmem_file *f;

	kvm_gmem_assert_exclusive(inode, start, end);

	list_for_each_entry(f, &GMEM_I(inode)->files, entry)
		gfn_to_pfn_cache_invalidate_gmem(f->kvm, inode, start, end);
}

void kvm_gmem_invalidate_file_end(struct gmem_file *f, pgoff_t start,
				  pgoff_t end)
{
	if (!kvm_gmem_first_binding(f, start, end))
		return;

	KVM_MMU_LOCK(f->kvm);
	kvm_mmu_invalidate_end(f->kvm);
	KVM_MMU_UNLOCK(f->kvm);
}

/*
 * Zap the guest mappings of pages [@start, @end) on the sides that @filter names
 * (none if 0), and make guest faults on them retry until the matching
 * kvm_gmem_invalidate_end().  Bindings must be stable from start to end, or the
 * count of invalidations in progress would go out of balance.
 */
void kvm_gmem_invalidate_start(struct inode *inode, pgoff_t start, pgoff_t end,
			       enum kvm_gfn_range_filter filter)
{
	struct gmem_file *f;

	kvm_gmem_assert_bindings_stable(inode);

	list_for_each_entry(f, &GMEM_I(inode)->files, entry)
		kvm_gmem_invalidate_file_start(f, start, end, filter);
}

void kvm_gmem_invalidate_end(struct inode *inode, pgoff_t start, pgoff_t end)
{
	struct gmem_file *f;

	kvm_gmem_assert_bindings_stable(inode);

	list_for_each_entry(f, &GMEM_I(inode)->files, entry)
		kvm_gmem_invalidate_file_end(f, start, end);
}

/*
 * Call @fn for the part of pages [@start, @end) in each slot of @f, until it returns
 * an error, and return that.
 */
int kvm_gmem_for_each_range(struct gmem_file *f, pgoff_t start, pgoff_t end,
			    kvm_gmem_range_fn fn, void *arg)
{
	struct kvm_memory_slot *slot;
	struct kvm_gfn_range range;
	int r;

	kvm_gmem_assert_exclusive(f->inode, start, end);

	kvm_gmem_for_each_binding(f, slot, start, end) {
		kvm_gmem_slot_range(slot, start, end, &range);
		r = fn(f, &range, arg);
		if (r)
			return r;
	}

	return 0;
}

static int kvm_gmem_reclaim_slot_range(struct gmem_file *f, struct kvm_gfn_range *range,
				       void *arg)
{
	return GMEM_I(f->inode)->ops->reclaim_range(f->kvm, range->slot, range);
}

/*
 * Have the VM type take pages [@start, @end) away from the guest, if it cannot leave
 * that to the zap which follows.
 */
int kvm_gmem_reclaim_range(struct gmem_file *f, pgoff_t start, pgoff_t end)
{
	if (!GMEM_I(f->inode)->ops->reclaim_range)
		return 0;

	return kvm_gmem_for_each_range(f, start, end, kvm_gmem_reclaim_slot_range, NULL);
}

int kvm_gmem_reclaim_inode_range(struct inode *inode, pgoff_t start, pgoff_t end)
{
	struct gmem_file *f;
	int r;

	kvm_gmem_assert_exclusive(inode, start, end);

	list_for_each_entry(f, &GMEM_I(inode)->files, entry) {
		r = kvm_gmem_reclaim_range(f, start, end);
		if (r)
			return r;
	}

	return 0;
}

static void kvm_gmem_release_slot(struct gmem_file *f, struct kvm_memory_slot *slot,
				  pgoff_t start, pgoff_t end)
{
	const struct kvm_gmem_ops *ops = GMEM_I(f->inode)->ops;
	struct kvm_gfn_range range;

	if (!ops->release_range)
		return;

	kvm_gmem_slot_range(slot, start, end, &range);
	ops->release_range(f->kvm, slot, &range);
}

/*
 * The guest has lost its mappings of pages [@start, @end), and is to lose the
 * pages: let the VM type do what needs @f's VM.
 */
void kvm_gmem_release_range(struct gmem_file *f, pgoff_t start, pgoff_t end)
{
	struct kvm_memory_slot *slot;

	kvm_gmem_assert_exclusive(f->inode, start, end);

	if (!GMEM_I(f->inode)->ops->release_range)
		return;

	kvm_gmem_for_each_binding(f, slot, start, end)
		kvm_gmem_release_slot(f, slot, start, end);
}

void kvm_gmem_release_inode_range(struct inode *inode, pgoff_t start, pgoff_t end)
{
	struct gmem_file *f;

	kvm_gmem_assert_exclusive(inode, start, end);

	list_for_each_entry(f, &GMEM_I(inode)->files, entry)
		kvm_gmem_release_range(f, start, end);
}

/*
 * The memslot of @range is being deleted.  The caller zaps the guest's mappings of it,
 * and holds slots_lock and mmu_lock.
 */
void kvm_gmem_invalidate_slot_range(struct kvm *kvm, struct kvm_gfn_range *range)
{
	const struct kvm_gmem_ops *ops = GMEM_I(file_inode(range->slot->gmem.file))->ops;

	lockdep_assert_held(&kvm->slots_lock);
	lockdep_assert_held_write(&kvm->mmu_lock);

	if (ops->invalidate)
		ops->invalidate(kvm, range);
}

/* The sides on which the guest may have pages of @inode mapped. */
enum kvm_gfn_range_filter kvm_gmem_filter(struct inode *inode)
{
	struct gmem_inode *gi = GMEM_I(inode);

	if (gi->in_place)
		return KVM_FILTER_PRIVATE | KVM_FILTER_SHARED;

	if (gi->flags & GUEST_MEMFD_FLAG_INIT_SHARED)
		return KVM_FILTER_SHARED;

	return KVM_FILTER_PRIVATE;
}

/*
 * Where a VM has private memory, a binding is in the way of @slot if it overlaps in
 * @slot's address space, or if it shows a page at another gfn in another one: a page
 * has one state, and one owner in the platform's tables, hence one gfn.  The same gfns
 * in each address space are one piece of RAM, e.g. that of a VM with SMM.
 *
 * Where all pages are alike for life, any gfn may show any of them, as with any other
 * memory of the VMM's; q35's high SMRAM is a second view of low RAM.
 */
static bool kvm_gmem_binding_conflicts(struct gmem_file *f, struct kvm_memory_slot *slot)
{
	pgoff_t start = slot->gmem.pgoff, end = start + slot->npages;
	struct kvm_memory_slot *other;

	if (!GMEM_I(f->inode)->ops->attributes)
		return false;

	kvm_gmem_for_each_binding(f, other, start, end) {
		if (other->as_id == slot->as_id ||
		    other->base_gfn - other->gmem.pgoff !=
		    slot->base_gfn - slot->gmem.pgoff)
			return true;
	}

	return false;
}

static void kvm_gmem_add_binding(struct gmem_file *f, struct kvm_memory_slot *slot)
{
	struct interval_tree_node *node = &slot->gmem.binding;

	lockdep_assert_held(&f->kvm->slots_lock);
	kvm_gmem_assert_exclusive(f->inode, 0, ULONG_MAX);
	lockdep_assert_held_write(&GMEM_I(f->inode)->bindings_lock);

	node->start = slot->gmem.pgoff;
	node->last = slot->gmem.pgoff + slot->npages - 1;
	interval_tree_insert(node, &f->bindings);
}

static int kvm_gmem_bind(struct gmem_file *f, struct kvm_memory_slot *slot)
{
	kvm_gmem_assert_exclusive(f->inode, 0, ULONG_MAX);

	if (kvm_gmem_binding_conflicts(f, slot))
		return -EEXIST;

	kvm_gmem_add_binding(f, slot);
	return 0;
}

static void kvm_gmem_clear_binding(struct gmem_file *f, struct kvm_memory_slot *slot)
{
	lockdep_assert_held(&f->kvm->slots_lock);
	kvm_gmem_assert_exclusive(f->inode, 0, ULONG_MAX);
	lockdep_assert_held_write(&GMEM_I(f->inode)->bindings_lock);

	trace_kvm_gmem_bind(f->inode->i_ino, slot, false, 0);

	interval_tree_remove(&slot->gmem.binding, &f->bindings);
	rcu_assign_pointer(slot->gmem.state, NULL);
	WRITE_ONCE(slot->gmem.file, NULL);
	kvm_gmem_cancel_requests(f->kvm, slot);
}

/*
 * The file is about to go, and the guest has lost what it had of it: slots, which may
 * live on, show nothing from now on.
 */
void kvm_gmem_unbind_all(struct gmem_file *f)
{
	struct kvm_memory_slot *slot;

	while ((slot = kvm_gmem_first_binding(f, 0, ULONG_MAX)))
		kvm_gmem_clear_binding(f, slot);
}

void kvm_gmem_lock_bindings(struct inode *inode)
{
	kvm_gmem_begin_change(inode);
	down_write(&GMEM_I(inode)->bindings_lock);
}

void kvm_gmem_unlock_bindings(struct inode *inode)
{
	up_write(&GMEM_I(inode)->bindings_lock);
	kvm_gmem_end_change(inode);
}

/*
 * What a file without MMAP and INIT_SHARED is, one of two backings or an in-place file,
 * is decided by what is done to it first, a slot or a conversion.  This is a slot.
 */
static void kvm_gmem_fix_backing(struct inode *inode)
{
	struct gmem_inode *gi = GMEM_I(inode);

	lockdep_assert_not_held(&gi->change_lock);

	/*
	 * Once set it stays; if it isn't, a conversion may be about to.  Pairs with
	 * kvm_gmem_track_state(): in_place is as fixed as this says.
	 */
	if (smp_load_acquire(&gi->backing_fixed))
		return;

	kvm_gmem_begin_change(inode);
	WRITE_ONCE(gi->backing_fixed, true);
	kvm_gmem_end_change(inode);
}

/*
 * Let the new @slot, which isn't visible to anyone yet, refer to the memory at @pgoff of
 * the guest_memfd @file, whose reference it takes over.
 */
void kvm_gmem_set_slot(struct kvm_memory_slot *slot, struct file *file, pgoff_t pgoff)
{
	struct gmem_inode *gi = GMEM_I(file_inode(file));

	kvm_gmem_fix_backing(file_inode(file));
	slot->gmem.pgoff = pgoff;
	WRITE_ONCE(slot->gmem.file, file);
	if (gi->in_place)
		rcu_assign_pointer(slot->gmem.state, &gi->state);
	if (gi->in_place || gi->flags & GUEST_MEMFD_FLAG_MMAP)
		slot->flags |= KVM_MEMSLOT_GMEM_ONLY;
}

/*
 * Bind @slot, which is about to become visible, to its file: from here on the
 * file knows whom to zap.  slots_lock is held.  Returns 0, or -EEXIST if the range
 * is bound elsewhere and must not be twice.
 */
int kvm_gmem_commit_memory_region(struct kvm *kvm, struct kvm_memory_slot *slot)
{
	struct file *file = slot->gmem.file;
	struct gmem_file *f;
	int r;

	lockdep_assert_held(&kvm->slots_lock);

	if (WARN_ON_ONCE(!file))
		return -EIO;

	if (kvm_memslot_is_gmem_only(slot))
		kvm->had_gmem_only_slot = true;

	f = file->private_data;
	kvm_gmem_lock_bindings(f->inode);
	r = kvm_gmem_bind(f, slot);
	kvm_gmem_unlock_bindings(f->inode);

	trace_kvm_gmem_bind(f->inode->i_ino, slot, true, r);
	return r;
}

/*
 * Undo the binding of @slot, which no vCPU can see any more: its mappings are
 * zapped and SRCU readers are gone.  slots_lock is held, unless the VM is being
 * destroyed, by when all its files are gone.
 *
 * The file may be on its way out, with kvm_gmem_release() waiting for slots_lock.
 * It cannot free the gmem_file before it got the lock, and then it wants the
 * binding of a slot that is about to be freed to be gone.
 */
void kvm_gmem_unbind(struct kvm_memory_slot *slot)
{
	struct gmem_file *f;

	if (!slot->gmem.file)
		return;

	f = slot->gmem.file->private_data;
	lockdep_assert_held(&f->kvm->slots_lock);

	kvm_gmem_lock_bindings(f->inode);
	kvm_gmem_release_slot(f, slot, 0, ULONG_MAX);
	kvm_gmem_clear_binding(f, slot);
	kvm_gmem_unlock_bindings(f->inode);
}

/*
 * @new is @old with other flags, and about to become visible in its place: the file
 * zaps @new from here on.  vCPUs may still see @old for a while; what they map is found
 * all the same, as both slots share their arch data.
 *
 * slots_lock is held, and slots_arch_lock: only what is visible gets new arch data.  The
 * caller has a reference to the file, thus kvm_gmem_release() is not about to clear
 * either slot.
 */
void kvm_gmem_rebind(struct kvm_memory_slot *old, struct kvm_memory_slot *new)
{
	struct gmem_file *f = new->gmem.file->private_data;

	lockdep_assert_held(&f->kvm->slots_lock);
	lockdep_assert_held(&f->kvm->slots_arch_lock);

	kvm_gmem_lock_bindings(f->inode);
	interval_tree_remove(&old->gmem.binding, &f->bindings);
	kvm_gmem_add_binding(f, new);
	kvm_gmem_unlock_bindings(f->inode);
}

/*
 * Zap all that the guest has mapped of @slot, on both sides, where that costs the guest
 * but another fault.  slots_lock keeps @slot bound.
 */
void kvm_gmem_zap_binding(struct kvm_memory_slot *slot)
{
	struct gmem_file *f = slot->gmem.file->private_data;
	pgoff_t start = slot->gmem.pgoff;
	struct kvm *kvm = f->kvm;

	lockdep_assert_held(&kvm->slots_lock);

	KVM_MMU_LOCK(kvm);
	kvm_mmu_invalidate_start(kvm);
	if (kvm_gmem_zap_slot(f, slot, start, start + slot->npages,
			      KVM_FILTER_PRIVATE | KVM_FILTER_SHARED))
		kvm_flush_remote_tlbs(kvm);
	kvm_mmu_invalidate_end(kvm);
	KVM_MMU_UNLOCK(kvm);
}

static void kvm_gmem_walk_folio(struct folio *folio, pgoff_t start, pgoff_t end,
				kvm_gmem_walk_fn fn, void *arg)
{
	pgoff_t index;

	if (!kvm_gmem_folio_is_poisoned(folio)) {
		fn(arg, kvm_gmem_folio_pfn(folio, start), end - start);
		return;
	}

	for (index = start; index < end; index++) {
		if (!kvm_gmem_is_poisoned(folio, index))
			fn(arg, kvm_gmem_folio_pfn(folio, index), 1);
	}
}

static void kvm_gmem_walk_batch(struct address_space *mapping, pgoff_t start, pgoff_t end,
				kvm_gmem_walk_fn fn, void *arg)
{
	struct folio_batch fbatch;
	pgoff_t index = start;
	int i;

	kvm_gmem_assert_usable(mapping->host, start, end);

	folio_batch_init(&fbatch);
	while (index < end && filemap_get_folios(mapping, &index, end - 1, &fbatch)) {
		for (i = 0; i < folio_batch_count(&fbatch); i++) {
			struct folio *folio = fbatch.folios[i];

			kvm_gmem_walk_folio(folio, max(folio->index, start),
					    min(folio_next_index(folio), end), fn, arg);
		}
		folio_batch_release(&fbatch);
		cond_resched();
	}
}

void kvm_gmem_walk_file(struct gmem_file *f, pgoff_t index, pgoff_t end,
			kvm_gmem_walk_fn fn, void *arg)
{
	pgoff_t next;

	for (; index < end; index = next) {
		next = min(end, index + GMEM_BATCH_PAGES);
		kvm_gmem_lock_range(f->inode, index, next, TASK_UNINTERRUPTIBLE);

		index = kvm_gmem_next_present(f->inode, index, end);
		if (index < next)
			kvm_gmem_walk_batch(f->inode->i_mapping, index, next, fn, arg);
		else
			next = index;

		kvm_gmem_unlock_range(f->inode);
	}
}

/*
 * Call @fn for the pages present that @slot, which has guest_memfd, shows at gfns
 * [@start, @end), in runs of contiguous pages.  Poisoned ones are left out.
 *
 * slots_lock is held, which also keeps kvm_gmem_release() from freeing the file.
 * invalidate_lock is held for read when @fn is called: @fn may sleep, and must not
 * keep the pages.
 */
void kvm_gmem_walk_present(struct kvm_memory_slot *slot, gfn_t start, gfn_t end,
			   kvm_gmem_walk_fn fn, void *arg)
{
	struct gmem_file *f;

	if (!slot->gmem.file)
		return;

	f = slot->gmem.file->private_data;
	lockdep_assert_held(&f->kvm->slots_lock);

	kvm_gmem_walk_file(f, kvm_gmem_index(slot, start), kvm_gmem_index(slot, end), fn, arg);
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gmem_walk_present);

/*
 * The same for @range, from a hook of the VM type's that has the range for itself.
 */
void kvm_gmem_walk_range(struct kvm_gfn_range *range, kvm_gmem_walk_fn fn, void *arg)
{
	struct kvm_memory_slot *slot = range->slot;
	struct gmem_file *f = slot->gmem.file->private_data;

	kvm_gmem_walk_batch(f->inode->i_mapping, kvm_gmem_index(slot, range->start),
			    kvm_gmem_index(slot, range->end), fn, arg);
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gmem_walk_range);

/*
 * Does an in-place file rule over the state of a gfn in [@start, @end)?  Then the
 * VM's own attributes must not pretend to.  In a VM with private memory, which
 * alone has attributes, no other file makes a slot gmem-only; it remains so when
 * the file is closed.  slots_lock is held.
 */
bool kvm_gmem_owns_attributes(struct kvm *kvm, gfn_t start, gfn_t end)
{
	struct kvm_memslot_iter iter;
	int as;

	lockdep_assert_held(&kvm->slots_lock);

	/* Most VMMs have two backings everywhere: spare them the search. */
	if (!kvm->had_gmem_only_slot)
		return false;

	for (as = 0; as < kvm_arch_nr_memslot_as_ids(kvm); as++) {
		kvm_for_each_memslot_in_gfn_range(&iter, __kvm_memslots(kvm, as),
						  start, end) {
			if (kvm_memslot_is_gmem_only(iter.slot))
				return true;
		}
	}

	return false;
}

/*
 * State of @gfn, which lies in the in-place @slot.  A peek without locks: the
 * caller has taken a snapshot of mmu_invalidate_seq before, or takes the answer
 * for a hint.  False if the file is gone.
 */
bool kvm_gmem_is_private(const struct kvm_memory_slot *slot, gfn_t gfn)
{
	struct gmem_state *state;

	/* kvm_gmem_release() clears the pointer, the inode goes after RCU. */
	guard(rcu)();

	state = rcu_dereference(slot->gmem.state);
	return state && gmem_state_test(state, kvm_gmem_index(slot, gfn));
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gmem_is_private);

/*
 * May memory of @slot's file be out of the direct map?  For hooks that are called
 * exclusively, as these keep the file open.
 */
bool kvm_gmem_slot_is_out(const struct kvm_memory_slot *slot)
{
	return GMEM_I(file_inode(slot->gmem.file))->flags & GUEST_MEMFD_FLAG_NO_DIRECT_MAP;
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gmem_slot_is_out);

/*
 * Have the gfns in [@start, @end), which lie in the in-place @slot, one state?  A
 * peek as above.  True if the file is gone.
 */
bool kvm_gmem_is_uniform(const struct kvm_memory_slot *slot, gfn_t start, gfn_t end)
{
	struct gmem_state *state;

	guard(rcu)();

	state = rcu_dereference(slot->gmem.state);
	return !state || gmem_state_is_uniform(state, kvm_gmem_index(slot, start),
					       kvm_gmem_index(slot, end));
}
