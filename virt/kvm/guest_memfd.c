// SPDX-License-Identifier: GPL-2.0-only
/*
 * guest_memfd: guest memory as a file that belongs to the guest.
 *
 * This file is the front: creation, life of file and inode, binding to memslots,
 * fallocate, user and guest faults.  gmem_internal.h has the data model and the
 * locking rules, guest_memfd_convert.c moves pages between private and shared,
 * guest_memfd_folio.c allocates and frees, gmem_state.c remembers states.
 */
#include <linux/anon_inodes.h>
#include <linux/backing-dev.h>
#include <linux/falloc.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/kvm_host.h>
#include <linux/mempolicy.h>
#include <linux/pagemap.h>
#include <linux/pseudo_fs.h>

#include "gmem_internal.h"
#include "guest_memfd.h"
#include "kvm_mm.h"

#define CREATE_TRACE_POINTS
#include "gmem_trace.h"

static struct vfsmount *kvm_gmem_mnt;
static struct kmem_cache *kvm_gmem_inode_cachep;
static struct file_operations kvm_gmem_fops;

static void kvm_gmem_assert_bindings_stable(struct inode *inode)
{
	lockdep_assert(lockdep_is_held_type(&inode->i_mapping->invalidate_lock, 0) ||
		       lockdep_is_held(&GMEM_I(inode)->bindings_lock));
}

/* Bindings and zapping. */

/*
 * Return the first slot that is bound to something in [*@index, @end), and
 * advance *@index to the end of its binding.  NULL if there is none.
 */
struct kvm_memory_slot *kvm_gmem_next_binding(struct xarray *bindings,
					      pgoff_t *index, pgoff_t end)
{
	struct kvm_memory_slot *slot;
	unsigned long i = *index;

	if (i >= end)
		return NULL;

	slot = xa_find(bindings, &i, end - 1, XA_PRESENT);
	if (slot)
		*index = slot->gmem.pgoff + slot->npages;

	return slot;
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

static bool kvm_gmem_is_bound(struct gmem_file *f, pgoff_t start, pgoff_t end)
{
	unsigned long index;
	int as;

	for (as = 0; as < KVM_MAX_NR_ADDRESS_SPACES; as++) {
		index = start;
		if (xa_find(&f->bindings[as], &index, end - 1, XA_PRESENT))
			return true;
	}

	return false;
}

/*
 * Zap @slot's view of [@start, @end), and keep faults from installing anything
 * there until the invalidation ends.  Faults of neighbours are kept out too, as
 * far as a mapping of the largest folio at the edges could reach: it would cover
 * pages of the range, with the old state.
 */
static bool kvm_gmem_zap_slot(struct gmem_file *f, struct kvm_memory_slot *slot,
			      pgoff_t start, pgoff_t end,
			      enum kvm_gfn_range_filter filter)
{
	const struct kvm_gmem_ops *ops = GMEM_I(f->inode)->ops;
	pgoff_t align = 1UL << ops->max_order;
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

static void kvm_gmem_invalidate_file_start(struct gmem_file *f, pgoff_t start,
					   pgoff_t end,
					   enum kvm_gfn_range_filter filter)
{
	struct kvm *kvm = f->kvm;
	struct kvm_memory_slot *slot;
	bool flush = false;
	pgoff_t index;
	int as;

	if (!kvm_gmem_is_bound(f, start, end))
		return;

	KVM_MMU_LOCK(kvm);
	kvm_mmu_invalidate_start(kvm);

	for (as = 0; as < KVM_MAX_NR_ADDRESS_SPACES; as++) {
		index = start;
		kvm_gmem_for_each_binding(f, as, slot, index, end)
			flush |= kvm_gmem_zap_slot(f, slot, start, end, filter);
	}

	if (flush)
		kvm_flush_remote_tlbs(kvm);
	KVM_MMU_UNLOCK(kvm);
}

static void kvm_gmem_invalidate_file_end(struct gmem_file *f, pgoff_t start,
					 pgoff_t end)
{
	if (!kvm_gmem_is_bound(f, start, end))
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

/* The sides on which the guest may have pages of @inode mapped. */
static enum kvm_gfn_range_filter kvm_gmem_filter(struct inode *inode)
{
	struct gmem_inode *gi = GMEM_I(inode);

	if (gi->in_place)
		return KVM_FILTER_PRIVATE | KVM_FILTER_SHARED;

	if (gi->flags & GUEST_MEMFD_FLAG_INIT_SHARED)
		return KVM_FILTER_SHARED;

	return KVM_FILTER_PRIVATE;
}

/*
 * A binding is in the way of @slot if it overlaps in @slot's address space, or
 * if it shows a page at another gfn in another one: a page has one state, hence
 * one gfn.  The same gfns in each address space are one piece of RAM, e.g. that
 * of a VM with SMM.
 */
static bool kvm_gmem_binding_conflicts(struct gmem_file *f, struct kvm_memory_slot *slot)
{
	pgoff_t end = slot->gmem.pgoff + slot->npages;
	struct kvm_memory_slot *other;
	pgoff_t index;
	int as;

	for (as = 0; as < KVM_MAX_NR_ADDRESS_SPACES; as++) {
		index = slot->gmem.pgoff;
		kvm_gmem_for_each_binding(f, as, other, index, end) {
			if (as == slot->as_id ||
			    other->base_gfn - other->gmem.pgoff !=
			    slot->base_gfn - slot->gmem.pgoff)
				return true;
		}
	}

	return false;
}

static int kvm_gmem_bind(struct gmem_file *f, struct kvm_memory_slot *slot)
{
	struct xarray *bindings = &f->bindings[slot->as_id];
	pgoff_t first = slot->gmem.pgoff;
	pgoff_t last = first + slot->npages - 1;
	int r;

	lockdep_assert_held(&f->kvm->slots_lock);
	lockdep_assert_held_write(&f->inode->i_mapping->invalidate_lock);
	lockdep_assert_held_write(&GMEM_I(f->inode)->bindings_lock);

	if (kvm_gmem_binding_conflicts(f, slot))
		return -EEXIST;

	r = xa_err(xa_store_range(bindings, first, last, slot, GFP_KERNEL_ACCOUNT));
	if (r)
		xa_store_range(bindings, first, last, NULL, GFP_KERNEL_ACCOUNT);

	return r;
}

static void kvm_gmem_lock_bindings(struct inode *inode)
{
	filemap_invalidate_lock(inode->i_mapping);
	down_write(&GMEM_I(inode)->bindings_lock);
}

static void kvm_gmem_unlock_bindings(struct inode *inode)
{
	up_write(&GMEM_I(inode)->bindings_lock);
	filemap_invalidate_unlock(inode->i_mapping);
}

/*
 * Let the new @slot refer to the memory at @offset (bytes) of the guest_memfd
 * @fd.  On success slot->gmem.file holds a reference that the caller drops once
 * the slot is installed or given up: the file keeps the VM, not vice versa.
 *
 * slots_lock is held, @slot isn't visible to anyone yet.  Returns 0, -EBADF if
 * there is no such fd, -EINVAL if it isn't a guest_memfd of this VM or too small.
 */
int kvm_gmem_prepare_memory_region(struct kvm *kvm, struct kvm_memory_slot *slot,
				   unsigned int fd, uoff_t offset)
{
	uoff_t size = slot->npages << PAGE_SHIFT;
	struct gmem_inode *gi;
	struct gmem_file *f;
	struct file *file;

	BUILD_BUG_ON(sizeof(gpa_t) != sizeof(offset));
	BUILD_BUG_ON(sizeof(gfn_t) != sizeof(slot->gmem.pgoff));

	if (WARN_ON_ONCE(slot->flags & KVM_MEMSLOT_GMEM_ONLY))
		return -EINVAL;

	file = fget(fd);
	if (!file)
		return -EBADF;

	f = file->private_data;
	if (file->f_op != &kvm_gmem_fops || f->kvm != kvm ||
	    !PAGE_ALIGNED(offset) || offset + size < offset ||
	    offset + size > i_size_read(f->inode)) {
		fput(file);
		return -EINVAL;
	}

	gi = GMEM_I(f->inode);
	slot->gmem.pgoff = offset >> PAGE_SHIFT;
	WRITE_ONCE(slot->gmem.file, file);
	if (gi->in_place)
		rcu_assign_pointer(slot->gmem.state, &gi->state);
	if (gi->in_place || gi->flags & GUEST_MEMFD_FLAG_MMAP)
		slot->flags |= KVM_MEMSLOT_GMEM_ONLY;

	return 0;
}

/*
 * Bind @slot, which is about to become visible, to its file: from here on the
 * file knows whom to zap.  slots_lock is held.  Returns 0, -EEXIST if the range
 * is bound elsewhere, -ENOMEM.
 */
int kvm_gmem_commit_memory_region(struct kvm *kvm, struct kvm_memory_slot *slot)
{
	struct file *file = slot->gmem.file;
	struct gmem_file *f;
	int r;

	lockdep_assert_held(&kvm->slots_lock);

	if (WARN_ON_ONCE(!file || file->f_op != &kvm_gmem_fops))
		return -EIO;

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
	pgoff_t first = slot->gmem.pgoff;
	struct gmem_file *f;

	if (!slot->gmem.file)
		return;

	f = slot->gmem.file->private_data;
	lockdep_assert_held(&f->kvm->slots_lock);

	trace_kvm_gmem_bind(f->inode->i_ino, slot, false, 0);

	kvm_gmem_lock_bindings(f->inode);
	xa_store_range(&f->bindings[slot->as_id], first, first + slot->npages - 1,
		       NULL, GFP_KERNEL_ACCOUNT);
	rcu_assign_pointer(slot->gmem.state, NULL);
	WRITE_ONCE(slot->gmem.file, NULL);
	kvm_gmem_unlock_bindings(f->inode);
}

/*
 * Does an in-place file rule over the state of a gfn in [@start, @end)?  Then the
 * VM's own attributes must not pretend to.  slots_lock is held.
 */
bool kvm_gmem_owns_attributes(struct kvm *kvm, gfn_t start, gfn_t end)
{
	struct kvm_memslot_iter iter;
	int as;

	lockdep_assert_held(&kvm->slots_lock);

	for (as = 0; as < kvm_arch_nr_memslot_as_ids(kvm); as++) {
		kvm_for_each_memslot_in_gfn_range(&iter, __kvm_memslots(kvm, as),
						  start, end) {
			if (kvm_memslot_is_in_place(iter.slot))
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

/* fallocate() */

static void kvm_gmem_punch_batch(struct gmem_file *f, pgoff_t start, pgoff_t end)
{
	lockdep_assert_held_write(&f->inode->i_mapping->invalidate_lock);

	kvm_gmem_invalidate_start(f->inode, start, end, kvm_gmem_filter(f->inode));

	kvm_gmem_unmap_users(f->inode, start, end);
	kvm_gmem_drop_folios(f, start, end);

	kvm_gmem_invalidate_end(f->inode, start, end);
}

/*
 * Free what is present in [@start, @end); states stay.  Holes cost nothing, and
 * faults get their turn after each batch.
 */
static void kvm_gmem_punch_hole(struct gmem_file *f, pgoff_t start, pgoff_t end)
{
	struct address_space *mapping = f->inode->i_mapping;
	pgoff_t next;

	trace_kvm_gmem_punch(f->inode->i_ino, start, end);

	while (start < end) {
		filemap_invalidate_lock(mapping);

		start = kvm_gmem_next_present(f->inode, start, end);
		next = min(end, start + GMEM_BATCH_PAGES);
		if (start < next)
			kvm_gmem_punch_batch(f, start, next);

		filemap_invalidate_unlock(mapping);

		start = next;
		cond_resched();
	}
}

static int kvm_gmem_allocate_batch(struct gmem_file *f, pgoff_t *start, pgoff_t end)
{
	struct folio *folio;

	while (*start < end) {
		if (signal_pending(current))
			return -EINTR;

		folio = kvm_gmem_get_folio(f, *start);
		if (IS_ERR(folio))
			return PTR_ERR(folio);

		*start = folio_next_index(folio);
		folio_unlock(folio);
		folio_put(folio);
		cond_resched();
	}

	return 0;
}

/* What is allocated stays if the rest fails, as fallocate(2) has it. */
static int kvm_gmem_allocate(struct gmem_file *f, pgoff_t start, pgoff_t end)
{
	struct address_space *mapping = f->inode->i_mapping;
	int r = 0;

	while (!r && start < end) {
		filemap_invalidate_lock_shared(mapping);
		r = kvm_gmem_allocate_batch(f, &start, min(end, start + GMEM_BATCH_PAGES));
		filemap_invalidate_unlock_shared(mapping);
	}

	return r;
}

static long kvm_gmem_fallocate(struct file *file, int mode, loff_t offset, loff_t len)
{
	struct gmem_file *f = file->private_data;
	pgoff_t start = offset >> PAGE_SHIFT;
	pgoff_t end = (offset + len) >> PAGE_SHIFT;
	int r = 0;

	/* The size of guest memory is fixed. */
	if (!(mode & FALLOC_FL_KEEP_SIZE) ||
	    mode & ~(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE))
		return -EOPNOTSUPP;

	if (!PAGE_ALIGNED(offset) || !PAGE_ALIGNED(len))
		return -EINVAL;

	if (mode & FALLOC_FL_PUNCH_HOLE)
		kvm_gmem_punch_hole(f, start, end);
	else if (offset + len > i_size_read(f->inode))
		r = -EINVAL;
	else
		r = kvm_gmem_allocate(f, start, end);

	if (!r)
		file_modified(file);
	return r;
}

/* User mappings. */

static vm_fault_t kvm_gmem_fault_locked(struct gmem_file *f, struct vm_fault *vmf)
{
	struct folio *folio;

	lockdep_assert_held(&f->inode->i_mapping->invalidate_lock);

	if (vmf->pgoff >= i_size_read(f->inode) >> PAGE_SHIFT)
		return VM_FAULT_SIGBUS;

	if (kvm_gmem_index_is_private(f->inode, vmf->pgoff))
		return VM_FAULT_SIGBUS;

	folio = kvm_gmem_get_folio(f, vmf->pgoff);
	if (IS_ERR(folio))
		return vmf_error(PTR_ERR(folio));

	if (folio_test_hwpoison(folio)) {
		folio_unlock(folio);
		folio_put(folio);
		return VM_FAULT_HWPOISON;
	}

	kvm_gmem_make_uptodate(folio);
	vmf->page = folio_file_page(folio, vmf->pgoff);
	return VM_FAULT_LOCKED;
}

/*
 * Only shared pages can be faulted in.  The page is mapped after invalidate_lock
 * is dropped, but with the folio locked and referenced: a conversion to private
 * that gets in between waits for the lock, and unmaps the page again or finds it
 * in use; punch and DISCARD wait for the lock to drop the folio.
 */
static vm_fault_t kvm_gmem_fault(struct vm_fault *vmf)
{
	struct gmem_file *f = vmf->vma->vm_file->private_data;
	struct address_space *mapping = f->inode->i_mapping;
	vm_fault_t ret;

	filemap_invalidate_lock_shared(mapping);
	ret = kvm_gmem_fault_locked(f, vmf);
	filemap_invalidate_unlock_shared(mapping);

	trace_kvm_gmem_user_fault(f->inode->i_ino, vmf->pgoff, ret);
	return ret;
}

#ifdef CONFIG_NUMA
static int kvm_gmem_set_policy(struct vm_area_struct *vma, struct mempolicy *mpol)
{
	struct inode *inode = file_inode(vma->vm_file);

	return mpol_set_shared_policy(&GMEM_I(inode)->policy, vma, mpol);
}

/*
 * NULL if mbind() has set none: it tells get_mempolicy() to report the default
 * policy, not that of the calling task.
 */
static struct mempolicy *kvm_gmem_get_policy(struct vm_area_struct *vma,
					     unsigned long addr, pgoff_t *ilx)
{
	struct inode *inode = file_inode(vma->vm_file);

	*ilx = inode->i_ino;
	return mpol_shared_policy_lookup(&GMEM_I(inode)->policy,
					 linear_page_index(vma, addr));
}
#endif /* CONFIG_NUMA */

static const struct vm_operations_struct kvm_gmem_vm_ops = {
	.fault		= kvm_gmem_fault,
#ifdef CONFIG_NUMA
	.get_policy	= kvm_gmem_get_policy,
	.set_policy	= kvm_gmem_set_policy,
#endif
};

static int kvm_gmem_mmap(struct file *file, struct vm_area_struct *vma)
{
	if (!(GMEM_I(file_inode(file))->flags & GUEST_MEMFD_FLAG_MMAP))
		return -ENODEV;

	/* A private copy of guest memory makes no sense. */
	if ((vma->vm_flags & (VM_SHARED | VM_MAYSHARE)) != (VM_SHARED | VM_MAYSHARE))
		return -EINVAL;

	vma->vm_ops = &kvm_gmem_vm_ops;
	return 0;
}

/* Guest faults. */

/*
 * Take a reference to the file of @slot, NULL if it is closed.  There may be time
 * between the last fput() and kvm_gmem_release() clearing the pointer.
 */
static struct file *kvm_gmem_get_file(struct kvm_memory_slot *slot)
{
	return get_file_active(&slot->gmem.file);
}

/*
 * Return the folio that backs @gfn, locked and with a reference; it may not be
 * up to date.  invalidate_lock is held.
 */
static struct folio *kvm_gmem_get_slot_folio(struct gmem_file *f,
					     struct kvm_memory_slot *slot, gfn_t gfn)
{
	pgoff_t index = kvm_gmem_index(slot, gfn);
	struct folio *folio;

	lockdep_assert_held(&f->inode->i_mapping->invalidate_lock);

	/* Unbind waits for SRCU, release for file references: can't be. */
	if (WARN_ON_ONCE(xa_load(&f->bindings[slot->as_id], index) != slot))
		return ERR_PTR(-EIO);

	folio = kvm_gmem_get_folio(f, index);
	if (IS_ERR(folio) || !folio_test_hwpoison(folio))
		return folio;

	folio_unlock(folio);
	folio_put(folio);
	return ERR_PTR(-EHWPOISON);
}

static int kvm_gmem_get_pfn_locked(struct gmem_file *f, struct kvm_memory_slot *slot,
				   gfn_t gfn, kvm_pfn_t *pfn, int *order)
{
	const struct kvm_gmem_ops *ops = GMEM_I(f->inode)->ops;
	pgoff_t index = kvm_gmem_index(slot, gfn);
	struct folio *folio;
	bool is_private;
	int r = 0;

	lockdep_assert_held(&f->inode->i_mapping->invalidate_lock);

	is_private = kvm_gmem_index_is_private(f->inode, index);
	folio = kvm_gmem_get_slot_folio(f, slot, gfn);
	if (IS_ERR(folio)) {
		r = PTR_ERR(folio);
		goto out;
	}

	kvm_gmem_make_uptodate(folio);
	*pfn = kvm_gmem_folio_pfn(folio, index);
	*order = min(folio_order(folio), ops->max_order);

	if (is_private && ops->make_private)
		r = ops->make_private(f->kvm, gfn, *pfn, *order);

	folio_unlock(folio);
	folio_put(folio);
out:
	trace_kvm_gmem_guest_fault(f->inode->i_ino, index, gfn, is_private, r);
	return r;
}

/*
 * Look up, or allocate, the page that backs @gfn of @slot for mapping it into
 * the guest on the side that its state says.
 *
 * The page is returned without a reference.  What keeps it from being freed or
 * converted under the caller is that either zaps the guest: the caller has taken
 * a snapshot of mmu_invalidate_seq before, and uses @pfn only with mmu_lock held
 * and after mmu_invalidate_retry_gfn().
 *
 * @max_order, if not NULL, is set to the order (in pages) of the naturally
 * aligned range of one folio around @pfn that may be mapped at once.
 *
 * kvm->srcu is held for read, may sleep.  Returns 0, -EFAULT if the file is
 * closed, -EHWPOISON if the page is lost to a memory error, -ENOMEM, or what
 * the VM type's ->make_private() returns.
 */
int kvm_gmem_get_pfn(struct kvm *kvm, struct kvm_memory_slot *slot, gfn_t gfn,
		     kvm_pfn_t *pfn, int *max_order)
{
	struct address_space *mapping;
	struct gmem_file *f;
	int order, r;

	struct file *file __free(fput) = kvm_gmem_get_file(slot);
	if (!file)
		return -EFAULT;

	f = file->private_data;
	mapping = f->inode->i_mapping;

	filemap_invalidate_lock_shared(mapping);
	r = kvm_gmem_get_pfn_locked(f, slot, gfn, pfn, max_order ?: &order);
	filemap_invalidate_unlock_shared(mapping);

	return r;
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gmem_get_pfn);

#ifdef CONFIG_HAVE_KVM_ARCH_GMEM_POPULATE
static int kvm_gmem_populate_page(struct gmem_file *f, struct kvm_memory_slot *slot,
				  gfn_t gfn, struct page *src,
				  kvm_gmem_populate_cb post_populate, void *opaque)
{
	struct address_space *mapping = f->inode->i_mapping;
	struct folio *folio;
	int r = -EINVAL;

	filemap_invalidate_lock(mapping);

	folio = kvm_gmem_get_slot_folio(f, slot, gfn);
	if (IS_ERR(folio)) {
		r = PTR_ERR(folio);
		goto out;
	}

	/* The callback takes locks that nest outside the folio lock. */
	folio_unlock(folio);

	if (kvm_mem_is_private(f->kvm, slot, gfn))
		r = post_populate(f->kvm, gfn,
				  kvm_gmem_folio_pfn(folio, kvm_gmem_index(slot, gfn)),
				  src, opaque);
	if (!r)
		folio_mark_uptodate(folio);

	folio_put(folio);
out:
	filemap_invalidate_unlock(mapping);
	return r;
}

/*
 * Load the source page at @uaddr, if there is one, and populate @gfn.  User
 * memory is touched before invalidate_lock is taken, since it may well be a
 * mapping of the same file.
 */
static int kvm_gmem_populate_gfn(struct gmem_file *f, struct kvm_memory_slot *slot,
				 gfn_t gfn, unsigned long uaddr, bool may_writeback,
				 kvm_gmem_populate_cb post_populate, void *opaque)
{
	struct page *src = NULL;
	int r;

	if (uaddr) {
		r = get_user_pages_fast(uaddr, 1, may_writeback ? FOLL_WRITE : 0, &src);
		if (r != 1)
			return r < 0 ? r : -ENOMEM;
	}

	r = kvm_gmem_populate_page(f, slot, gfn, src, post_populate, opaque);

	if (src)
		put_page(src);
	return r;
}

/* See kvm_host.h. */
long kvm_gmem_populate(struct kvm *kvm, gfn_t start_gfn, void __user *src,
		       long npages, bool may_writeback_src,
		       kvm_gmem_populate_cb post_populate, void *opaque)
{
	struct kvm_memory_slot *slot;
	unsigned long uaddr;
	int r = 0;
	long i;

	lockdep_assert_held(&kvm->slots_lock);

	if (WARN_ON_ONCE(npages <= 0 || !PAGE_ALIGNED(src)))
		return -EINVAL;

	slot = gfn_to_memslot(kvm, start_gfn);
	if (!kvm_slot_has_gmem(slot))
		return -EINVAL;

	struct file *file __free(fput) = kvm_gmem_get_file(slot);
	if (!file)
		return -EFAULT;

	npages = min_t(ulong, slot->npages - (start_gfn - slot->base_gfn), npages);
	for (i = 0; i < npages; i++) {
		if (signal_pending(current)) {
			r = -EINTR;
			break;
		}

		uaddr = src ? (unsigned long)src + i * PAGE_SIZE : 0;
		r = kvm_gmem_populate_gfn(file->private_data, slot, start_gfn + i,
					  uaddr, may_writeback_src, post_populate, opaque);
		if (r)
			break;
	}

	return r && !i ? r : i;
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gmem_populate);
#endif /* CONFIG_HAVE_KVM_ARCH_GMEM_POPULATE */

/* Address space operations; see KVM_GMEM_AOPS(). */

/* Folios are unmovable, no one should ask. */
int kvm_gmem_migrate_folio(struct address_space *mapping, struct folio *dst,
			   struct folio *src, enum migrate_mode mode)
{
	WARN_ON_ONCE(1);
	return -EINVAL;
}

/*
 * Memory failure has poisoned @folio, which it holds locked: take it away from
 * the guest.  The folio stays in the file, so that the guest's next access finds
 * it and gets -EHWPOISON; what to do about that is up to user space.
 *
 * A guest fault that has looked at the folio before it was poisoned is made to
 * retry by the change of mmu_invalidate_seq.
 */
int kvm_gmem_error_folio(struct address_space *mapping, struct folio *folio)
{
	struct inode *inode = mapping->host;
	pgoff_t start = folio->index;
	pgoff_t end = folio_next_index(folio);

	VM_WARN_ON_ONCE_FOLIO(!folio_test_locked(folio), folio);

	guard(rwsem_read)(&GMEM_I(inode)->bindings_lock);

	kvm_gmem_invalidate_start(inode, start, end, kvm_gmem_filter(inode));
	kvm_gmem_invalidate_end(inode, start, end);

	return MF_DELAYED;
}

const struct address_space_operations kvm_gmem_default_aops = KVM_GMEM_AOPS(NULL);

const struct kvm_gmem_ops kvm_gmem_default_ops = {
	.create_flags	= GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED,
	.zap_on_convert	= true,
	.aops		= &kvm_gmem_default_aops,
};

const struct kvm_gmem_ops * __weak kvm_arch_gmem_ops(struct kvm *kvm)
{
	return &kvm_gmem_default_ops;
}

/* Life of files and inodes. */

static long kvm_gmem_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	if (cmd != KVM_SET_MEMORY_ATTRIBUTES2)
		return -ENOTTY;

	return kvm_gmem_set_attributes(file->private_data, (void __user *)arg);
}

/*
 * The last reference to the file is gone, and with it all faults, as those of
 * users hold it through the VMA and those of guests get_file_active().  Slots may
 * still point here; kvm_gmem_unbind() of such a slot is excluded by slots_lock.
 * Memory is not freed, that is the inode's business.
 */
static int kvm_gmem_release(struct inode *inode, struct file *file)
{
	struct gmem_file *f = file->private_data;
	struct kvm_memory_slot *slot;
	struct kvm *kvm = f->kvm;
	long nr_private;
	pgoff_t index;
	int as;

	mutex_lock(&kvm->slots_lock);
	kvm_gmem_lock_bindings(inode);

	for (as = 0; as < KVM_MAX_NR_ADDRESS_SPACES; as++) {
		index = 0;
		kvm_gmem_for_each_binding(f, as, slot, index, ULONG_MAX) {
			trace_kvm_gmem_bind(inode->i_ino, slot, false, 0);
			rcu_assign_pointer(slot->gmem.state, NULL);
			WRITE_ONCE(slot->gmem.file, NULL);
		}
	}

	kvm_gmem_invalidate_file_start(f, 0, ULONG_MAX, kvm_gmem_filter(inode));
	kvm_gmem_invalidate_file_end(f, 0, ULONG_MAX);

	nr_private = atomic_long_read(&GMEM_I(inode)->nr_private);
	kvm_gmem_account(f, -nr_private, nr_private - (long)inode->i_mapping->nrpages);
	list_del(&f->entry);

	kvm_gmem_unlock_bindings(inode);
	mutex_unlock(&kvm->slots_lock);

	for (as = 0; as < KVM_MAX_NR_ADDRESS_SPACES; as++)
		xa_destroy(&f->bindings[as]);
	kfree(f);
	kvm_put_kvm(kvm);

	return 0;
}

static struct file_operations kvm_gmem_fops = {
	.mmap		= kvm_gmem_mmap,
	.open		= generic_file_open,
	.release	= kvm_gmem_release,
	.fallocate	= kvm_gmem_fallocate,
	.unlocked_ioctl	= kvm_gmem_ioctl,
	.compat_ioctl	= compat_ptr_ioctl,
};

static int kvm_gmem_setattr(struct mnt_idmap *idmap, struct dentry *dentry,
			    struct iattr *attr)
{
	return -EINVAL;
}

static const struct inode_operations kvm_gmem_iops = {
	.setattr	= kvm_gmem_setattr,
};

static const char kvm_gmem_name[] = "[kvm-gmem]";

static struct inode *kvm_gmem_create_inode(struct kvm *kvm, loff_t size, u64 flags)
{
	struct gmem_inode *gi;
	struct inode *inode;

	inode = anon_inode_make_secure_inode(kvm_gmem_mnt->mnt_sb, kvm_gmem_name, NULL);
	if (IS_ERR(inode))
		return inode;

	gi = GMEM_I(inode);
	gi->ops = kvm_arch_gmem_ops(kvm);
	gi->flags = flags;
	gi->in_place = kvm_gmem_in_place(flags, gi->ops);
	gmem_state_init(&gi->state, !(flags & GUEST_MEMFD_FLAG_INIT_SHARED));

	inode->i_op = &kvm_gmem_iops;
	inode->i_mapping->a_ops = gi->ops->aops;
	inode->i_mode |= S_IFREG;
	inode->i_size = size;
	mapping_set_gfp_mask(inode->i_mapping, GFP_HIGHUSER);
	mapping_set_inaccessible(inode->i_mapping);
	/* Unmovable mappings are supposed to be marked unevictable as well. */
	WARN_ON_ONCE(!mapping_unevictable(inode->i_mapping));

	return inode;
}

static struct gmem_file *kvm_gmem_alloc_file(struct kvm *kvm, struct inode *inode)
{
	struct gmem_file *f;
	int as;

	f = kzalloc_obj(*f, GFP_KERNEL_ACCOUNT);
	if (!f)
		return NULL;

	f->kvm = kvm;
	f->inode = inode;
	for (as = 0; as < KVM_MAX_NR_ADDRESS_SPACES; as++)
		xa_init_flags(&f->bindings[as], XA_FLAGS_ACCOUNT);

	return f;
}

/* Return an open file for a new inode; it isn't published yet. */
static struct file *kvm_gmem_create_file(struct kvm *kvm, loff_t size, u64 flags)
{
	struct gmem_file *f;
	struct inode *inode;
	struct file *file;

	/* fput() drops the reference to the module. */
	if (!fops_get(&kvm_gmem_fops))
		return ERR_PTR(-ENOENT);

	inode = kvm_gmem_create_inode(kvm, size, flags);
	if (IS_ERR(inode)) {
		file = ERR_CAST(inode);
		goto err_fops;
	}

	f = kvm_gmem_alloc_file(kvm, inode);
	if (!f) {
		file = ERR_PTR(-ENOMEM);
		goto err_inode;
	}

	file = alloc_file_pseudo(inode, kvm_gmem_mnt, kvm_gmem_name, O_RDWR, &kvm_gmem_fops);
	if (IS_ERR(file))
		goto err_file;

	kvm_get_kvm(kvm);
	file->f_flags |= O_LARGEFILE;
	file->private_data = f;
	list_add(&f->entry, &GMEM_I(inode)->files);
	return file;

err_file:
	kfree(f);
err_inode:
	iput(inode);
err_fops:
	fops_put(&kvm_gmem_fops);
	return file;
}

/*
 * KVM_CREATE_GUEST_MEMFD: create a file of args->size bytes and return an fd for
 * it.  Returns -EINVAL for a size that is 0, negative or not page-aligned, and
 * for flags that the VM type doesn't support.
 */
int kvm_gmem_create(struct kvm *kvm, struct kvm_create_guest_memfd *args)
{
	loff_t size = args->size;
	struct file *file;
	int fd;

	if (args->flags & ~kvm_arch_gmem_ops(kvm)->create_flags)
		return -EINVAL;

	if (size <= 0 || !PAGE_ALIGNED(size))
		return -EINVAL;

	fd = get_unused_fd_flags(0);
	if (fd < 0)
		return fd;

	file = kvm_gmem_create_file(kvm, size, args->flags);
	if (IS_ERR(file)) {
		put_unused_fd(fd);
		return PTR_ERR(file);
	}

	trace_kvm_gmem_create(file_inode(file)->i_ino, size, args->flags,
			      GMEM_I(file_inode(file))->in_place);
	fd_install(fd, file);
	return fd;
}

static int kvm_gmem_allowed_content(struct kvm *kvm, bool to_private)
{
	const struct kvm_gmem_ops *ops = kvm_arch_gmem_ops(kvm);
	struct kvm_gmem_content content;

	/* The answer depends on the VM and its phase. */
	if (!kvm || !ops->attributes)
		return 0;

	ops->content(kvm, to_private, &content);
	return content.allowed;
}

/*
 * KVM_CHECK_EXTENSION for the capabilities of guest_memfd; @kvm is NULL if the
 * system is asked.
 */
int kvm_gmem_check_extension(struct kvm *kvm, long cap)
{
	const struct kvm_gmem_ops *ops = kvm_arch_gmem_ops(kvm);

	switch (cap) {
	case KVM_CAP_GUEST_MEMFD:
		return 1;
	case KVM_CAP_GUEST_MEMFD_FLAGS:
		return ops->create_flags;
	case KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES:
		return ops->attributes;
	case KVM_CAP_GUEST_MEMFD_FLAGS_TO_PRIVATE:
		return kvm_gmem_allowed_content(kvm, true);
	case KVM_CAP_GUEST_MEMFD_FLAGS_TO_SHARED:
		return kvm_gmem_allowed_content(kvm, false);
	default:
		return 0;
	}
}

/* Runs once an object of the slab cache, not once an inode. */
static void kvm_gmem_init_inode_once(void *__gi)
{
	struct gmem_inode *gi = __gi;

	inode_init_once(&gi->vfs_inode);
}

static struct inode *kvm_gmem_alloc_inode(struct super_block *sb)
{
	struct gmem_inode *gi;

	gi = alloc_inode_sb(sb, kvm_gmem_inode_cachep, GFP_KERNEL);
	if (!gi)
		return NULL;

	mpol_shared_policy_init(&gi->policy, NULL);
	init_rwsem(&gi->bindings_lock);
	INIT_LIST_HEAD(&gi->files);
	gmem_state_init(&gi->state, false);
	atomic_long_set(&gi->nr_private, 0);
	gi->ops = NULL;
	gi->flags = 0;
	gi->in_place = false;

	return &gi->vfs_inode;
}

/* RCU readers may still be in the map, which copes, and in the inode: see below. */
static void kvm_gmem_destroy_inode(struct inode *inode)
{
	mpol_free_shared_policy(&GMEM_I(inode)->policy);
	gmem_state_destroy(&GMEM_I(inode)->state);
}

/* After an RCU grace period. */
static void kvm_gmem_free_inode(struct inode *inode)
{
	kmem_cache_free(kvm_gmem_inode_cachep, GMEM_I(inode));
}

static const struct super_operations kvm_gmem_super_operations = {
	.statfs		= simple_statfs,
	.alloc_inode	= kvm_gmem_alloc_inode,
	.destroy_inode	= kvm_gmem_destroy_inode,
	.free_inode	= kvm_gmem_free_inode,
};

static int kvm_gmem_init_fs_context(struct fs_context *fc)
{
	struct pseudo_fs_context *ctx;

	ctx = init_pseudo(fc, GUEST_MEMFD_MAGIC);
	if (!ctx)
		return -ENOMEM;

	ctx->ops = &kvm_gmem_super_operations;
	return 0;
}

static struct file_system_type kvm_gmem_fs = {
	.name		 = "guest_memfd",
	.init_fs_context = kvm_gmem_init_fs_context,
	.kill_sb	 = kill_anon_super,
};

/* @module is that of the vendor, which every open file keeps loaded. */
int kvm_gmem_init(struct module *module)
{
	struct kmem_cache_args args = {
		.ctor = kvm_gmem_init_inode_once,
	};

	kvm_gmem_fops.owner = module;
	kvm_gmem_inode_cachep = kmem_cache_create("kvm_gmem_inode_cache",
						  sizeof(struct gmem_inode),
						  &args, SLAB_ACCOUNT);
	if (!kvm_gmem_inode_cachep)
		return -ENOMEM;

	kvm_gmem_mnt = kern_mount(&kvm_gmem_fs);
	if (IS_ERR(kvm_gmem_mnt)) {
		kmem_cache_destroy(kvm_gmem_inode_cachep);
		return PTR_ERR(kvm_gmem_mnt);
	}

	kvm_gmem_mnt->mnt_flags |= MNT_NOEXEC;
	return 0;
}

void kvm_gmem_exit(void)
{
	kern_unmount(kvm_gmem_mnt);
	kvm_gmem_mnt = NULL;
	/* Inodes are freed by RCU. */
	rcu_barrier();
	kmem_cache_destroy(kvm_gmem_inode_cachep);
}
