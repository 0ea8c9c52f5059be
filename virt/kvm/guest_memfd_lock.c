// SPDX-License-Identifier: GPL-2.0-only
/*
 * guest_memfd: the locks of a file, see gmem_internal.h.
 */
#include <linux/fs.h>
#include <linux/kvm_host.h>
#include <linux/pagemap.h>
#include <linux/wait.h>

#include "gmem_internal.h"

/* Keep other changes of the file out, and faults.  May sleep for long. */
void kvm_gmem_begin_change(struct inode *inode)
{
	mutex_lock(&GMEM_I(inode)->change_lock);
	filemap_invalidate_lock(inode->i_mapping);
}

void kvm_gmem_end_change(struct inode *inode)
{
	filemap_invalidate_unlock(inode->i_mapping);
	mutex_unlock(&GMEM_I(inode)->change_lock);
}

/*
 * Take invalidate_lock for read, to use the folios and the state of [@start, @end).
 * False, without the lock, if a conversion has claimed any of it.  May sleep.
 */
bool kvm_gmem_trylock_range(struct inode *inode, pgoff_t start, pgoff_t end)
{
	filemap_invalidate_lock_shared(inode->i_mapping);
	if (!kvm_gmem_is_claimed(inode, start, end))
		return true;

	filemap_invalidate_unlock_shared(inode->i_mapping);
	return false;
}

/* The same, for those who must not sleep: false also if the lock isn't to be had. */
bool kvm_gmem_trylock_range_nowait(struct inode *inode, pgoff_t start, pgoff_t end)
{
	if (!filemap_invalidate_trylock_shared(inode->i_mapping))
		return false;
	if (!kvm_gmem_is_claimed(inode, start, end))
		return true;

	filemap_invalidate_unlock_shared(inode->i_mapping);
	return false;
}

static int kvm_gmem_lock_change(struct gmem_inode *gi, unsigned int state)
{
	if (state == TASK_INTERRUPTIBLE)
		return mutex_lock_interruptible(&gi->change_lock);
	if (state == TASK_KILLABLE)
		return mutex_lock_killable(&gi->change_lock);

	mutex_lock(&gi->change_lock);
	return 0;
}

/*
 * The same, but wait, in task state @state, until no conversion claims any of it.
 * Returns 0, or -EINTR, without the lock, if a signal ends the wait.
 */
int kvm_gmem_lock_range(struct inode *inode, pgoff_t start, pgoff_t end,
			unsigned int state)
{
	struct gmem_inode *gi = GMEM_I(inode);

	/* Whoever claims pages holds it, and must not want what the caller holds. */
	might_lock(&gi->change_lock);

	if (kvm_gmem_trylock_range(inode, start, end))
		return 0;

	if (wait_event_state(gi->claim_wait, !kvm_gmem_is_claimed(inode, start, end), state))
		return -EINTR;

	/*
	 * The next conversion may have claimed the pages by now, and the one after it
	 * before this task looks again.  Whoever holds the mutex keeps them off, and gets
	 * it in turn.
	 */
	if (kvm_gmem_lock_change(gi, state))
		return -EINTR;

	filemap_invalidate_lock_shared(inode->i_mapping);
	mutex_unlock(&gi->change_lock);
	return 0;
}

void kvm_gmem_unlock_range(struct inode *inode)
{
	filemap_invalidate_unlock_shared(inode->i_mapping);
}
