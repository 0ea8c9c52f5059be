// SPDX-License-Identifier: GPL-2.0-only
/*
 * guest_memfd, write(): fill holes of the file with content.
 */

/**
 * DOC: write()
 *
 * A file with GUEST_MEMFD_FLAG_WRITE can be filled with write() and what builds on it.
 * Position and length are multiples of the page size.  Only holes are filled: a page
 * that is present is the guest's, or will be, and is never overwritten.  Each page comes
 * into the file with its content, and is not zeroed before; who else fills the same hole
 * at the same time wins or loses it as a whole.
 *
 * The source is read before invalidate_lock is taken, as it may be a mapping of the same
 * file.  Presence and state are looked at when the folio is added.
 *
 * Where a block of the largest order is to be had and the caller has all of its bytes,
 * they go into one folio.  If anything fails about it the block is tried again page by
 * page, which tells what is in the way, and where: so a large folio never comes into the
 * file with a part of its content.
 */
#include <linux/fs.h>
#include <linux/kvm_host.h>
#include <linux/pagemap.h>
#include <linux/uio.h>

#include "gmem_internal.h"
#include "gmem_trace.h"

/*
 * Is the content of private pages the caller's to choose?  It is if the bytes of a shared
 * page are still there after it was converted to private, since then that comes to the
 * same; where the VM type has no private memory there is no one to ask.
 */
static bool kvm_gmem_may_fill_private(struct gmem_file *f)
{
	const struct kvm_gmem_ops *ops = GMEM_I(f->inode)->ops;
	struct kvm_gmem_content content;

	if (!ops->attributes)
		return true;

	if (!kvm_gmem_may_control(f))
		return false;

	ops->content(f->kvm, true, &content);
	return content.allowed & KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE;
}

/*
 * Add @folio, which nobody knows yet, at @index.  For a large folio the block has to be
 * as if it were allocated for a fault.
 */
static int kvm_gmem_write_add(struct gmem_file *f, pgoff_t index, struct folio *folio,
			      bool may_private)
{
	int r;

	lockdep_assert_held(&f->inode->i_mapping->invalidate_lock);

	if (!may_private && kvm_gmem_index_is_private(f->inode, index))
		return -EPERM;

	if (folio_test_large(folio) &&
	    !kvm_gmem_may_be_large(f->inode, index, index + folio_nr_pages(folio)))
		return -EEXIST;

	r = kvm_gmem_insert_folio(f, folio, index);
	if (!r)
		folio_unlock(folio);
	return r;
}

/*
 * Fill @page, which is out of the direct map.  It has an address only as long as the copy
 * lasts, which must not fault then: what can be faulted in is, before.
 *
 * Go on where the last copy stopped, so that a byte that cannot be read is the first that
 * is looked at, and give up when there is no progress twice: memory that has gone bad
 * under the copy must not be read again and again.
 */
static size_t kvm_gmem_write_copy_out(struct page *page, struct iov_iter *from)
{
	size_t copied, done = 0;
	int nr_stuck = 0;
	void *vaddr;

	while (done < PAGE_SIZE && nr_stuck < 2 && !signal_pending(current) &&
	       !fault_in_iov_iter_readable(from, PAGE_SIZE - done)) {
		vaddr = direct_map_kmap_local(page);
		pagefault_disable();
		copied = copy_from_iter(vaddr + done, PAGE_SIZE - done, from);
		pagefault_enable();
		direct_map_kunmap_local(vaddr);

		done += copied;
		nr_stuck = copied ? 0 : nr_stuck + 1;
		cond_resched();
	}

	return done;
}

/* Fill @folio, which nobody knows yet, with the bytes that come next in @from. */
static int kvm_gmem_write_copy(struct folio *folio, struct iov_iter *from)
{
	size_t size = folio_size(folio);
	size_t copied;

	if (kvm_gmem_is_of_block(folio))
		copied = kvm_gmem_write_copy_out(&folio->page, from);
	else
		copied = copy_folio_from_iter(folio, 0, size, from);
	if (copied != size) {
		iov_iter_revert(from, copied);
		return signal_pending(current) ? -ERESTARTSYS : -EFAULT;
	}

	flush_dcache_folio(folio);
	folio_mark_uptodate(folio);
	return 0;
}

/*
 * Fill the pages of one folio of @order at @index, which is aligned, from @from.
 * On failure neither the file nor @from has changed.
 */
static int kvm_gmem_write_folio(struct gmem_file *f, pgoff_t index, unsigned int order,
				struct iov_iter *from)
{
	bool may_private = kvm_gmem_may_fill_private(f);
	pgoff_t end = index + (1UL << order);
	struct folio *folio;
	int r;

	folio = kvm_gmem_alloc_folio(f->inode, index, order, true);
	if (!folio)
		return -ENOMEM;

	r = kvm_gmem_write_copy(folio, from);
	if (r)
		goto err;

	r = -ERESTARTSYS;
	if (!kvm_gmem_lock_range(f->inode, index, end, TASK_INTERRUPTIBLE)) {
		r = kvm_gmem_write_add(f, index, folio, may_private);
		kvm_gmem_unlock_range(f->inode);
	}
	if (r) {
		iov_iter_revert(from, folio_size(folio));
		goto err;
	}

	folio_put(folio);
	return 0;

err:
	kvm_gmem_put_new_folio(folio);
	return r;
}

/*
 * The order of the folio to try at @index: large if @count, in bytes, is enough for the
 * block that begins here and, as far as can be said without a look at the source,
 * nothing is against it.
 */
static unsigned int kvm_gmem_write_order(struct gmem_file *f, pgoff_t index, size_t count)
{
	unsigned int order = GMEM_I(f->inode)->max_order;
	pgoff_t end = index + (1UL << order);
	bool large;

	if (!order || !IS_ALIGNED(index, 1UL << order) || count < PAGE_SIZE << order)
		return 0;

	if (kvm_gmem_lock_range(f->inode, index, end, TASK_INTERRUPTIBLE))
		return 0;

	large = kvm_gmem_may_be_large(f->inode, index, end);
	kvm_gmem_unlock_range(f->inode);

	return large ? order : 0;
}

/* Fill at least one page at @index; returns the number of pages or an error. */
static long kvm_gmem_write_piece(struct gmem_file *f, pgoff_t index, struct iov_iter *from)
{
	unsigned int order;
	int r;

	order = kvm_gmem_write_order(f, index, iov_iter_count(from));
	if (order && !kvm_gmem_write_folio(f, index, order, from))
		return 1L << order;

	r = kvm_gmem_write_folio(f, index, 0, from);
	return r ?: 1;
}

static ssize_t kvm_gmem_write_pages(struct gmem_file *f, pgoff_t start, struct iov_iter *from)
{
	pgoff_t index = start;
	long r = 0;

	while (iov_iter_count(from)) {
		/* Nothing is lost: what is in the file is what the count says. */
		if (signal_pending(current)) {
			r = -ERESTARTSYS;
			break;
		}

		r = kvm_gmem_write_piece(f, index, from);
		if (r < 0)
			break;

		index += r;
		cond_resched();
	}

	trace_kvm_gmem_write(f->inode->i_ino, start, index, min(r, 0L));
	return index > start ? (ssize_t)(index - start) << PAGE_SHIFT : r;
}

/*
 * ->write_iter().  Returns the number of bytes that have come into the file, or, if there
 * are none: -ENODEV without GUEST_MEMFD_FLAG_WRITE; -EINVAL if position and length are
 * not page-aligned or not within the file; -EEXIST if the first page is present; -EPERM
 * if it is private and the caller may not choose its content; -EFAULT if the source is
 * bad; -ENOMEM; -ERESTARTSYS for a signal.
 */
ssize_t kvm_gmem_write_iter(struct kiocb *iocb, struct iov_iter *from)
{
	struct file *file = iocb->ki_filp;
	struct gmem_file *f = file->private_data;
	loff_t size = i_size_read(f->inode);
	ssize_t r;

	if (!(GMEM_I(f->inode)->flags & GUEST_MEMFD_FLAG_WRITE))
		return -ENODEV;

	/* With O_APPEND the position is the end, where nothing can be written. */
	r = generic_write_checks(iocb, from);
	if (r <= 0)
		return r;

	if (!PAGE_ALIGNED(iocb->ki_pos) || !PAGE_ALIGNED(r) || iocb->ki_pos > size - r)
		return -EINVAL;

	r = kvm_gmem_write_pages(f, iocb->ki_pos >> PAGE_SHIFT, from);
	if (r > 0) {
		iocb->ki_pos += r;
		file_modified(file);
	}
	return r;
}
