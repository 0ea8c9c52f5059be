// SPDX-License-Identifier: GPL-2.0-only
/**
 * DOC: Filling on demand
 *
 * A slot with KVM_MEM_USERFAULT has pages that are *missing*: the VMM has yet to fill
 * them.  With a bitmap they are the pages whose bits are set, otherwise those that are
 * absent in the file.  A guest's access to a missing page exits, and nothing that KVM
 * does on its own allocates the page.  Whoever looks a page up for the guest, or for KVM
 * itself, asks two questions before it may allocate:
 *
 * kvm_gmem_check_bitmap()
 *	What does the bitmap say?  It is in user memory, maybe in a mapping of the very
 *	file, so this comes before invalidate_lock is taken.
 *
 * kvm_gmem_is_missing()
 *	If there is no bitmap, is the page absent?  With invalidate_lock held, so that
 *	whoever fills the page doesn't get in between.
 *
 * The flag and the bitmap belong to the slot.  To change them on a live slot KVM makes a
 * copy of the slot, and puts it in the old one's place:
 *
 * 1. kvm_gmem_rebind() lets the file's invalidations go to the copy.  This is done with
 *    slots_arch_lock held, i.e. before the copy's arch data can become more than those
 *    of the old slot, e.g. by reverse mappings that are allocated late.
 * 2. The copy becomes visible, and KVM waits for SRCU: all vCPUs that have found the old
 *    slot have installed what they were about to, or given up.
 * 3. kvm_gmem_zap_slot_bitmap() zaps the guest, if there is a (new) bitmap.
 *
 * So a fault that has seen the old flag or the old bitmap installs nothing after step
 * 3.  It needs no retry for that: the fault holds kvm->srcu from before it looks up the
 * slot until its mapping is there, thus step 2 waits for it.  Without a bitmap there is
 * nothing to zap: what the guest has mapped is present, hence not missing; and the look-up
 * that allocates a page with invalidate_lock held is the filling of it, if it saw the
 * slot before the flag was set.
 *
 * The file is kept open from the check of the descriptor to the end of it all, and
 * slots_lock is held.  So kvm_gmem_release() finds either slot bound, never both.
 *
 * Where zap_is_lossless isn't set there can be no bitmap: to make a page missing that the
 * guest has mapped would cost the guest the page.
 *
 * userfaultfd serves the user's mappings of the file, which show shared pages only.
 * UFFDIO_COPY and UFFDIO_ZEROPAGE add single pages to the file, as a fault would do; what
 * they add is up to date from the start.  UFFDIO_CONTINUE maps what is present.
 */
#include <linux/bitmap.h>
#include <linux/file.h>
#include <linux/kvm_host.h>
#include <linux/pagemap.h>
#include <linux/uaccess.h>
#include <linux/userfaultfd_k.h>

#include "gmem_internal.h"
#include "guest_memfd.h"

/* The slot. */

/* KVM_CAP_GUEST_MEMFD_USERFAULT: what there is for VMs of @ops. */
int kvm_gmem_userfault_features(const struct kvm_gmem_ops *ops)
{
	int features = KVM_GUEST_MEMFD_USERFAULT_ABSENT;

	if (ops->zap_is_lossless)
		features |= KVM_GUEST_MEMFD_USERFAULT_BITMAP;
	if (IS_ENABLED(CONFIG_USERFAULTFD))
		features |= KVM_GUEST_MEMFD_USERFAULTFD;
	return features;
}

/*
 * Let the new @slot, which has KVM_MEM_USERFAULT and isn't visible to anyone yet, have
 * the bitmap at user address @addr, none if that is 0.  Returns 0, -EINVAL if @addr isn't
 * aligned, or if the VM type has no bitmaps, -EFAULT if it is no user address.
 */
int kvm_gmem_set_bitmap(struct kvm *kvm, struct kvm_memory_slot *slot, u64 addr)
{
	size_t size = BITS_TO_LONGS(slot->npages) * sizeof(long);

	if (!addr)
		return 0;

	if (!kvm_arch_gmem_ops(kvm)->zap_is_lossless || addr != (unsigned long)addr ||
	    !IS_ALIGNED(addr, sizeof(long)) || addr != untagged_addr((unsigned long)addr))
		return -EINVAL;

	if (!access_ok(u64_to_user_ptr(addr), size))
		return -EFAULT;

	slot->gmem.userfault_bitmap = u64_to_user_ptr(addr);
	return 0;
}

/*
 * May @old, a slot of guest_memfd, become what @mem says?  Only KVM_MEM_USERFAULT and the
 * bitmap can change.  Returns 1 if there is something to change, 0 if not, or -EINVAL.
 */
int kvm_gmem_check_update(const struct kvm_memory_slot *old,
			  const struct kvm_userspace_memory_region2 *mem)
{
	/* The upper half of the flags is KVM's own. */
	u32 changed = mem->flags ^ (u16)old->flags;

	if (mem->guest_phys_addr >> PAGE_SHIFT != old->base_gfn ||
	    mem->memory_size >> PAGE_SHIFT != old->npages ||
	    mem->userspace_addr != old->userspace_addr)
		return -EINVAL;

	if (!((mem->flags | old->flags) & KVM_MEM_USERFAULT) || changed & ~KVM_MEM_USERFAULT ||
	    mem->guest_memfd_offset >> PAGE_SHIFT != old->gmem.pgoff)
		return -EINVAL;

	return changed ||
	       u64_to_user_ptr(mem->userfault_bitmap) != old->gmem.userfault_bitmap;
}

/*
 * Let @new, which is to take the place of @old, show the same memory.  @fd must be that
 * of @old's file.  On success new->gmem.file holds a reference that the caller drops.
 * Returns 0, -EBADF or -EINVAL.
 */
int kvm_gmem_prepare_update(struct kvm_memory_slot *old, struct kvm_memory_slot *new,
			    unsigned int fd)
{
	struct file *file = fget(fd);

	if (!file)
		return -EBADF;

	/* The file that the slot was made of may be closed, and another have its place. */
	if (file != old->gmem.file) {
		fput(file);
		return -EINVAL;
	}

	kvm_gmem_set_slot(new, file, old->gmem.pgoff);
	return 0;
}

/*
 * @new has taken the place of @old, vCPUs that have seen @old are done with it.  Take from
 * the guest what it has mapped and must not have according to the bitmap.
 */
void kvm_gmem_commit_update(struct kvm_memory_slot *new)
{
	if (new->flags & KVM_MEM_USERFAULT && new->gmem.userfault_bitmap)
		kvm_gmem_zap_binding(new);
}

/* Is a page missing? */

/*
 * Are bits [@start, @end) of the bitmap of @slot all set, or all clear, as @set says?
 * Returns 1, 0, or -EFAULT if the bitmap can't be read.
 */
static int kvm_gmem_bits_are(const struct kvm_memory_slot *slot, unsigned long start,
			     unsigned long end, bool set)
{
	unsigned long __user *map = slot->gmem.userfault_bitmap;
	unsigned long last = (end - 1) / BITS_PER_LONG;
	unsigned long i, word, mask;

	for (i = start / BITS_PER_LONG; i <= last; i++) {
		if (get_user(word, map + i))
			return -EFAULT;

		mask = ~0UL;
		if (i == start / BITS_PER_LONG)
			mask &= BITMAP_FIRST_WORD_MASK(start);
		if (i == last)
			mask &= BITMAP_LAST_WORD_MASK(end);

		if ((set ? ~word : word) & mask)
			return 0;
	}

	return 1;
}

/*
 * What does the bitmap of @slot say of the page at @gfn?  @order becomes 0 unless it says
 * the same of all pages of the aligned block of that order, and the slot has them all.
 *
 * The bitmap is in user memory, reading it may sleep and take mmap_lock and what nests
 * inside it.  kvm->srcu is held for read.  Returns 0 if the page may be used, as far as
 * the bitmap is concerned or because there is none; -ENODATA if it is missing; -EFAULT
 * if the bitmap can't be read.
 */
int kvm_gmem_check_bitmap(struct kvm *kvm, const struct kvm_memory_slot *slot, gfn_t gfn,
			  unsigned int *order)
{
	gfn_t index = gfn - slot->base_gfn;
	gfn_t nr = 1UL << *order;
	gfn_t start = ALIGN_DOWN(gfn, nr);
	int clear, uniform = 0;

	if (!(slot->flags & KVM_MEM_USERFAULT) || !slot->gmem.userfault_bitmap)
		return 0;

	/* It is an address of the VMM's. */
	if (current->mm != kvm->mm)
		return -EFAULT;

	clear = kvm_gmem_bits_are(slot, index, index + 1, false);
	if (clear < 0)
		return clear;

	if (start >= slot->base_gfn && start + nr <= slot->base_gfn + slot->npages)
		uniform = kvm_gmem_bits_are(slot, start - slot->base_gfn,
					    start - slot->base_gfn + nr, !clear);
	if (uniform < 0)
		return uniform;
	if (!uniform)
		*order = 0;

	/*
	 * The VMM writes the page, then clears the bit.  Pairs with that: the guest must
	 * not see what the page held before.
	 */
	smp_rmb();
	return clear ? 0 : -ENODATA;
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gmem_check_bitmap);

/*
 * Is the page at @gfn of @slot missing because it is absent, i.e. is it not the caller's
 * to allocate?  invalidate_lock is held, the page is not claimed by others.
 */
bool kvm_gmem_is_missing(struct gmem_file *f, const struct kvm_memory_slot *slot, gfn_t gfn)
{
	lockdep_assert_held(&f->inode->i_mapping->invalidate_lock);

	return slot->flags & KVM_MEM_USERFAULT && !slot->gmem.userfault_bitmap &&
	       !kvm_gmem_is_present(f->inode, kvm_gmem_index(slot, gfn));
}

/*
 * The same for users, who have no slot: if the page at @index is absent, is it missing in
 * any slot?  What a bitmap says is missing users may touch, the VMM may fill it so.
 */
bool kvm_gmem_is_awaited(struct gmem_file *f, pgoff_t index)
{
	struct kvm_memory_slot *slot;

	lockdep_assert_held(&f->inode->i_mapping->invalidate_lock);

	kvm_gmem_for_each_binding(f, slot, index, index + 1) {
		if (slot->flags & KVM_MEM_USERFAULT && !slot->gmem.userfault_bitmap)
			return true;
	}

	return false;
}

#ifdef CONFIG_USERFAULTFD
/* userfaultfd.  VMAs map the file shared, and the VMA's lock is held. */

/* Write protection is by page table entry, the guest has entries of its own. */
static bool kvm_gmem_can_userfault(struct vm_area_struct *vma, vm_flags_t vm_flags)
{
	return !(vm_flags & ~(VM_UFFD_MISSING | VM_UFFD_MINOR));
}

/* May a user have the page at @index?  Stable with invalidate_lock held. */
static bool kvm_gmem_is_for_users(struct inode *inode, pgoff_t index)
{
	return index < i_size_read(inode) >> PAGE_SHIFT &&
	       !kvm_gmem_index_is_private(inode, index);
}

/*
 * UFFDIO_CONTINUE: what is at @index, locked and with a reference.  It is mapped after
 * invalidate_lock is dropped, under the folio lock, see kvm_gmem_fault().
 */
static struct folio *kvm_gmem_uffd_get(struct inode *inode, pgoff_t index)
{
	struct folio *folio = ERR_PTR(-EFAULT);

	if (kvm_gmem_lock_range(inode, index, index + 1, TASK_KILLABLE))
		return ERR_PTR(-EINTR);

	if (kvm_gmem_is_for_users(inode, index))
		folio = filemap_lock_folio(inode->i_mapping, index);
	/* fallocate() leaves it to the first use to zero the page. */
	if (!IS_ERR(folio))
		kvm_gmem_make_uptodate(folio);

	kvm_gmem_unlock_range(inode);
	return folio;
}

/* UFFDIO_COPY, UFFDIO_ZEROPAGE: a page that mm fills before it is added. */
static struct folio *kvm_gmem_uffd_alloc(struct vm_area_struct *vma, unsigned long addr)
{
	/* mm fills it by the direct map, and knows how to free what is there. */
	return kvm_gmem_alloc_folio(file_inode(vma->vm_file), linear_page_index(vma, addr),
				    0, false);
}

/*
 * Add @folio, which is full and up to date.  It stays locked until it is mapped, or is
 * removed again.  Returns -EFAULT if the page is private (by now) or beyond the end,
 * -EEXIST if it is present, -ENOMEM, -EINTR if the task is being killed.
 */
static int kvm_gmem_uffd_add(struct folio *folio, struct vm_area_struct *vma,
			     unsigned long addr)
{
	struct gmem_file *f = vma->vm_file->private_data;
	pgoff_t index = linear_page_index(vma, addr);
	int r = -EFAULT;

	if (kvm_gmem_lock_range(f->inode, index, index + 1, TASK_KILLABLE))
		return -EINTR;

	if (kvm_gmem_is_for_users(f->inode, index))
		r = kvm_gmem_insert_folio(f, folio, index);

	kvm_gmem_unlock_range(f->inode);
	return r;
}

/*
 * @folio can't be mapped after all, e.g. because the page table has a guard there, see
 * MADV_GUARD_INSTALL.  It is locked since kvm_gmem_uffd_add(), so neither guest nor user
 * has it mapped; whoever has found it without taking the lock, as it is up to date, is
 * told like one who has.
 *
 * If the file is being changed the page stays, with the bytes that the caller of the
 * ioctl has sent, which fails.  The next try finds the page, or not if it was
 * punched.
 */
static void kvm_gmem_uffd_remove(struct folio *folio, struct vm_area_struct *vma)
{
	struct gmem_file *f = vma->vm_file->private_data;
	pgoff_t index = folio->index;

	/*
	 * For read, so that pages come and go while no one counts them, and the page stays
	 * shared.  The folio is locked, which is too late to wait: whoever holds the lock for
	 * write, or claims the page, may be waiting for the folio.
	 */
	if (kvm_gmem_trylock_range_nowait(f->inode, index, index + 1)) {
		kvm_gmem_invalidate_start(f->inode, index, index + 1,
					  kvm_gmem_filter(f->inode));
		generic_error_remove_folio(f->inode->i_mapping, folio);
		kvm_gmem_account(f, 0, -1);
		kvm_gmem_invalidate_end(f->inode, index, index + 1);
		filemap_invalidate_unlock_shared(f->inode->i_mapping);
	}
	folio_unlock(folio);
}

const struct vm_uffd_ops kvm_gmem_uffd_ops = {
	.can_userfault		= kvm_gmem_can_userfault,
	.get_folio_noalloc	= kvm_gmem_uffd_get,
	.alloc_folio		= kvm_gmem_uffd_alloc,
	.filemap_add		= kvm_gmem_uffd_add,
	.filemap_remove		= kvm_gmem_uffd_remove,
};
#endif /* CONFIG_USERFAULTFD */
