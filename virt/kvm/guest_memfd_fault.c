// SPDX-License-Identifier: GPL-2.0-only
/*
 * guest_memfd, faults: of users, who get shared pages only; of guests; and the loading
 * of the initial image, which looks up private pages as guest faults do.
 */
#include <linux/file.h>
#include <linux/kvm_host.h>
#include <linux/pagemap.h>
#include <linux/userfaultfd_k.h>

#include "gmem_internal.h"
#include "gmem_trace.h"

/*
 * @reason: VM_UFFD_MISSING or VM_UFFD_MINOR if the fault is one for userfaultfd.
 */
static vm_fault_t kvm_gmem_fault_locked(struct gmem_file *f, struct vm_fault *vmf,
					unsigned long *reason)
{
	bool is_present = kvm_gmem_is_present(f->inode, vmf->pgoff);
	vm_fault_t ret = VM_FAULT_RETRY;
	struct folio *folio;

	lockdep_assert_held(&f->inode->i_mapping->invalidate_lock);

	if (vmf->pgoff >= i_size_read(f->inode) >> PAGE_SHIFT)
		return VM_FAULT_SIGBUS;

	if (kvm_gmem_index_is_private(f->inode, vmf->pgoff))
		return VM_FAULT_SIGBUS;

	if (!is_present && userfaultfd_missing(vmf->vma)) {
		*reason = VM_UFFD_MISSING;
		return ret;
	}

	if (!is_present && kvm_gmem_is_awaited(f, vmf->pgoff))
		return VM_FAULT_SIGBUS;

	folio = kvm_gmem_get_folio(f, vmf->pgoff);
	if (IS_ERR(folio))
		return vmf_error(PTR_ERR(folio));

	if (kvm_gmem_is_poisoned(folio, vmf->pgoff)) {
		ret = VM_FAULT_HWPOISON;
		goto out_put;
	}

	if (is_present && userfaultfd_minor(vmf->vma)) {
		*reason = VM_UFFD_MINOR;
		goto out_put;
	}

	kvm_gmem_make_uptodate(folio);
	vmf->page = folio_file_page(folio, vmf->pgoff);
	return VM_FAULT_LOCKED;

out_put:
	folio_unlock(folio);
	folio_put(folio);
	return ret;
}

/*
 * A conversion has claimed the page of @vmf.  Wait for it to end, if possible
 * without mmap_lock: mmap() and munmap() of the whole process would wait along.
 */
static vm_fault_t kvm_gmem_wait_and_retry(struct vm_fault *vmf)
{
	struct file *file = vmf->vma->vm_file;
	pgoff_t index = vmf->pgoff;
	struct inode *inode = file_inode(file);

	if (vmf->flags & FAULT_FLAG_RETRY_NOWAIT)
		return VM_FAULT_RETRY;

	/* Without the lock the VMA may go, and with it the last reference. */
	get_file(file);
	release_fault_lock(vmf);

	/* It makes no difference whether the page is free or a signal came. */
	if (!kvm_gmem_lock_range(inode, index, index + 1, TASK_KILLABLE))
		kvm_gmem_unlock_range(inode);

	fput(file);
	return VM_FAULT_RETRY;
}

/*
 * Only shared pages can be faulted in.  The page is mapped after invalidate_lock
 * is dropped, but with the folio locked and referenced: a conversion to private
 * that gets in between waits for the lock, and unmaps the page again or finds it
 * in use; punch and DISCARD wait for the lock to drop the folio.
 */
vm_fault_t kvm_gmem_fault(struct vm_fault *vmf)
{
	struct gmem_file *f = vmf->vma->vm_file->private_data;
	pgoff_t index = vmf->pgoff;
	struct inode *inode = f->inode;
	unsigned long reason = 0;
	vm_fault_t ret;

	if (fault_flag_allow_retry_first(vmf->flags)) {
		if (!kvm_gmem_trylock_range(inode, index, index + 1))
			return kvm_gmem_wait_and_retry(vmf);
	} else if (kvm_gmem_lock_range(inode, index, index + 1, TASK_KILLABLE)) {
		/* The task is being killed, and sees no other signal. */
		return VM_FAULT_SIGBUS;
	}

	ret = kvm_gmem_fault_locked(f, vmf, &reason);
	kvm_gmem_unlock_range(inode);

	trace_kvm_gmem_user_fault(inode->i_ino, index, ret);

	/* It waits without mmap_lock: the VMA may go, and with it the file. */
	return reason ? handle_userfault(vmf, reason) : ret;
}

/*
 * Take a reference to the file of @slot, NULL if it is closed.  There may be time
 * between the last fput() and kvm_gmem_release() clearing the pointer.
 */
struct file *kvm_gmem_get_file(struct kvm_memory_slot *slot)
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
	if (WARN_ON_ONCE(!slot->gmem.file || slot->gmem.file->private_data != f))
		return ERR_PTR(-EIO);

	folio = kvm_gmem_get_folio(f, index);
	if (IS_ERR(folio) || !kvm_gmem_is_poisoned(folio, index))
		return folio;

	folio_unlock(folio);
	folio_put(folio);
	return ERR_PTR(-EHWPOISON);
}

/*
 * The order of the aligned block around @gfn, which is @index in the file, if large
 * folios and large mappings are of that order, and the slot shows all of the block, and
 * shows it aligned; else 0.
 */
static int kvm_gmem_block_order(struct gmem_file *f, struct kvm_memory_slot *slot,
				gfn_t gfn, pgoff_t index)
{
	struct gmem_inode *gi = GMEM_I(f->inode);
	pgoff_t nr = 1UL << gi->max_order;
	pgoff_t start = ALIGN_DOWN(index, nr);

	if ((gfn ^ index) & (nr - 1) || start < slot->gmem.pgoff ||
	    start + nr > slot->gmem.pgoff + slot->npages)
		return 0;

	return gi->max_order;
}

/*
 * The order of what a guest may have mapped at once around @gfn, which is @index in
 * the file: that of @folio if the VM type maps nothing smaller but single pages, and the
 * slot has the block; else 0.  A large folio with a poisoned page is one that memory
 * failure could not split.
 *
 * What of a file with two backings is private is told by the VM's attributes.  They may
 * change any time: it isn't wrong to give the guest more than it uses, but slow.
 */
static int kvm_gmem_mapping_order(struct gmem_file *f, struct kvm_memory_slot *slot,
				  gfn_t gfn, pgoff_t index, struct folio *folio)
{
	int order = kvm_gmem_block_order(f, slot, gfn, index);
	pgoff_t nr = 1UL << order;

	if (!order || folio_order(folio) < order || kvm_gmem_folio_is_poisoned(folio))
		return 0;

	gfn = ALIGN_DOWN(gfn, nr);
	if (!kvm_memslot_is_gmem_only(slot) &&
	    !kvm_mem_is_uniform(f->kvm, slot, gfn, gfn + nr))
		return 0;

	return order;
}

/*
 * The order of what the VMM had best fill at once, as the page at @gfn is missing: of a
 * block of which nothing is present, and which is all on one side; else 0.
 */
static int kvm_gmem_missing_order(struct gmem_file *f, struct kvm_memory_slot *slot,
				  gfn_t gfn)
{
	pgoff_t index = kvm_gmem_index(slot, gfn);
	int order = kvm_gmem_block_order(f, slot, gfn, index);
	pgoff_t nr = 1UL << order;

	lockdep_assert_held(&f->inode->i_mapping->invalidate_lock);

	gfn = ALIGN_DOWN(gfn, nr);
	index = ALIGN_DOWN(index, nr);
	if (!kvm_mem_is_uniform(f->kvm, slot, gfn, gfn + nr) ||
	    kvm_gmem_next_present(f->inode, index, index + nr) < index + nr)
		return 0;

	return order;
}

/* @max_order: in, what the slot's bitmap allows; out, see kvm_gmem_get_pfn(). */
static int kvm_gmem_get_pfn_locked(struct gmem_file *f, struct kvm_memory_slot *slot,
				   gfn_t gfn, kvm_pfn_t *pfn, unsigned int *max_order)
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

	if (!is_private || !ops->zeroes_private)
		kvm_gmem_make_uptodate(folio);
	*pfn = kvm_gmem_folio_pfn(folio, index);
	if (*max_order)
		*max_order = kvm_gmem_mapping_order(f, slot, gfn, index, folio);

	if (is_private && ops->make_private)
		r = ops->make_private(f->kvm, gfn, *pfn, *max_order);

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
 * aligned range of one folio around @pfn that may be mapped at once.  If it is NULL
 * the VM type isn't told to give the guest more than the one page either.
 *
 * kvm->srcu is held for read, may sleep.  Returns 0, -EFAULT if the file is
 * closed or the slot's bitmap can't be read, -ENODATA if the page is missing, in which
 * case @max_order is the order of the block to fill, -EHWPOISON if the page is lost to a
 * memory error, -ENOMEM, -EINTR if the task is killed while it waits for a conversion, or
 * what the VM type's ->make_private() returns.
 */
int kvm_gmem_get_pfn(struct kvm *kvm, struct kvm_memory_slot *slot, gfn_t gfn,
		     kvm_pfn_t *pfn, int *max_order)
{
	pgoff_t index = kvm_gmem_index(slot, gfn);
	unsigned int order = 0;
	struct gmem_file *f;
	bool is_missing;
	int r;

	struct file *file __free(fput) = kvm_gmem_get_file(slot);
	if (!file)
		return -EFAULT;

	f = file->private_data;
	if (max_order)
		order = GMEM_I(f->inode)->max_order;

	/* Reads user memory, hence before the lock. */
	r = kvm_gmem_check_bitmap(kvm, slot, gfn, &order);
	if (r && r != -ENODATA)
		return r;

	is_missing = r == -ENODATA;
	r = kvm_gmem_lock_range(f->inode, index, index + 1, TASK_KILLABLE);
	if (r)
		return r;

	if (is_missing || kvm_gmem_is_missing(f, slot, gfn)) {
		if (order)
			order = kvm_gmem_missing_order(f, slot, gfn);
		r = -ENODATA;
		trace_kvm_gmem_guest_fault(f->inode->i_ino, index, gfn,
					   kvm_gmem_index_is_private(f->inode, index), r);
	} else {
		r = kvm_gmem_get_pfn_locked(f, slot, gfn, pfn, &order);
	}
	kvm_gmem_unlock_range(f->inode);

	if (max_order)
		*max_order = order;
	return r;
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gmem_get_pfn);

static int kvm_gmem_map_page_locked(struct gmem_file *f, struct kvm_memory_slot *slot,
				    gfn_t gfn, bool is_private,
				    int (*map)(void *arg, kvm_pfn_t pfn), void *arg)
{
	pgoff_t index = kvm_gmem_index(slot, gfn);
	struct folio *folio;
	int r;

	lockdep_assert_held(&f->inode->i_mapping->invalidate_lock);

	if (kvm_gmem_index_is_private(f->inode, index) != is_private)
		return -EACCES;

	if (kvm_gmem_is_missing(f, slot, gfn))
		return -ENODATA;

	folio = kvm_gmem_get_slot_folio(f, slot, gfn);
	if (IS_ERR(folio))
		return PTR_ERR(folio);

	kvm_gmem_make_uptodate(folio);
	r = map(arg, kvm_gmem_folio_pfn(folio, index));

	folio_unlock(folio);
	folio_put(folio);
	return r;
}

/*
 * Look up, or allocate, the page that backs @gfn of @slot and call @map with it, if
 * its state is what @is_private says.
 *
 * This is for platforms on which the guest's mapping is ownership, and cannot be
 * dropped by a zap if a conversion gets in between: while @map installs the page,
 * invalidate_lock keeps conversions and punches out, and the folio lock memory
 * failure.  @map may sleep.
 *
 * kvm->srcu is held for read, may sleep.  Returns what @map does, -EACCES without
 * having allocated anything if the state is the other one, -ENODATA if the page is
 * missing, -EFAULT if the file is closed or the slot's bitmap can't be read, -EHWPOISON
 * if the page is lost to a memory error, -ENOMEM, -EINTR if the task is killed while it
 * waits for a conversion.
 */
int kvm_gmem_map_page(struct kvm *kvm, struct kvm_memory_slot *slot, gfn_t gfn,
		      bool is_private, int (*map)(void *arg, kvm_pfn_t pfn), void *arg)
{
	pgoff_t index = kvm_gmem_index(slot, gfn);
	unsigned int order = 0;
	struct gmem_file *f;
	int r;

	struct file *file __free(fput) = kvm_gmem_get_file(slot);
	if (!file)
		return -EFAULT;

	f = file->private_data;
	r = kvm_gmem_check_bitmap(kvm, slot, gfn, &order) ?:
	    kvm_gmem_lock_range(f->inode, index, index + 1, TASK_KILLABLE);
	if (r)
		return r;

	r = kvm_gmem_map_page_locked(f, slot, gfn, is_private, map, arg);
	kvm_gmem_unlock_range(f->inode);

	trace_kvm_gmem_guest_fault(f->inode->i_ino, index, gfn, is_private, r);
	return r;
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gmem_map_page);

#ifdef CONFIG_HAVE_KVM_ARCH_GMEM_POPULATE
static int kvm_gmem_populate_page(struct gmem_file *f, struct kvm_memory_slot *slot,
				  gfn_t gfn, struct page *src,
				  kvm_gmem_populate_cb post_populate, void *opaque)
{
	pgoff_t index = kvm_gmem_index(slot, gfn);
	struct folio *folio;
	int r = -EINVAL;
	bool in_place;

	kvm_gmem_begin_change(f->inode);

	folio = kvm_gmem_get_slot_folio(f, slot, gfn);
	if (IS_ERR(folio)) {
		r = PTR_ERR(folio);
		goto out;
	}

	/*
	 * Without a source the page's own bytes are loaded, zeros if it is new.  The
	 * source has nothing for the other pages of a large folio: zero those here.
	 */
	in_place = !src && GMEM_I(f->inode)->in_place;
	if (in_place || folio_test_large(folio))
		kvm_gmem_make_uptodate(folio);

	/* The callback takes locks that nest outside the folio lock. */
	folio_unlock(folio);

	if (kvm_mem_is_private(f->kvm, slot, gfn))
		r = post_populate(f->kvm, gfn, kvm_gmem_folio_pfn(folio, index),
				  src, opaque);
	if (!r)
		folio_mark_uptodate(folio);
	folio_put(folio);

	if (r == -EBADMSG && in_place)
		r = kvm_gmem_share_rejected(f, index) ?: r;
out:
	kvm_gmem_end_change(f->inode);
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
