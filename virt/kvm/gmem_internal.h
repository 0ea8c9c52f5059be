/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef __KVM_GMEM_INTERNAL_H__
#define __KVM_GMEM_INTERNAL_H__

#include <linux/direct_map.h>
#include <linux/interval_tree.h>
#include <linux/kvm_host.h>
#include <linux/kvm_gmem.h>
#include <linux/kvm_gmem_state.h>
#include <linux/mempolicy.h>
#include <linux/mutex.h>
#include <linux/pagemap.h>
#include <linux/rwsem.h>
#include <linux/sizes.h>
#include <linux/wait.h>

/**
 * DOC: Data model
 *
 * inode (struct gmem_inode)
 *	The memory: folios in the page cache, and the state of each page, "private" or
 *	"shared".  The VM type (ops) and the flags are constant.  An inode either tracks
 *	the state page by page (in_place), or all its pages have the state that they were
 *	created with.  in_place is constant as soon as backing_fixed is set: at
 *	creation, or by the first memslot or conversion.
 *
 * file (struct gmem_file)
 *	One VM's view of the memory.  It has a reference to the VM, and an interval tree
 *	of its bindings, by pages, for all address spaces.
 *
 * binding
 *	Pages [gmem.pgoff, gmem.pgoff + npages) of the file back a memslot.  Where the VM
 *	type has private memory, a page has one gfn.  Elsewhere it may have any
 *	number of them, and bindings may overlap.  A memslot has no reference to the
 *	file: kvm_gmem_release() clears slot->gmem.file and slot->gmem.state.
 *
 * The folios go with the file, in kvm_gmem_release(), piece by piece.  As long as the
 * file holds the VM, the vendor's module with its ->free_folio() is sure to be there,
 * and what the platform keeps can be counted.  All the same ->free_folio() can use
 * neither file nor VM: it is told the folio alone.
 */

/**
 * DOC: Locking
 *
 * Outermost first:
 *
 * ============================= =====================================================
 * kvm->slots_lock               bind, unbind, release, populate, changes of a slot's
 *                               flags, KVM_SET_MEMORY_ATTRIBUTES
 * kvm->slots_arch_lock          bind, changes of a slot's flags
 * gpc->refresh_lock             looking up the page of a gfn-to-pfn cache
 * mmap_lock                     user faults, userfaultfd
 * change_lock                   conversion, punch, bind, unbind, release, populate,
 *                               changes of a slot's flags
 * mapping->invalidate_lock      write: the same, but see below; read: user and guest
 *                               faults, allocation, userfaultfd, lseek(), walks of what
 *                               is present
 * folio lock                    giving a page to the guest, zeroing at first use,
 *                               splits, memory failure, dropping folios
 * blocks_lock                   blocks of pages that leave the direct map together; and
 *                               in it a lock of the list of files that have some
 * kvm->arch.pkvm.stage2_lock    arm64: taking pages back from a protected VM, and the
 *                               end of its stage-2.  A mutex inside change_lock and
 *                               outside mmu_lock
 * i_mmap_rwsem, page tables     unmapping users
 * bindings_lock                 write: bind, unbind, release, changes of a slot's flags;
 *                               read: memory failure
 * kvm->gpc_lock, gpc->lock      invalidating gfn-to-pfn caches, and using them; leaves
 * kvm->mmu_lock                 zapping
 * ============================= =====================================================
 *
 * Bindings, and the list of files, change only with all of change_lock, invalidate_lock
 * and bindings_lock held, for write.  Holding one of them, in any mode, keeps them
 * stable.  Memory failure needs them stable with a folio locked, which is too late to
 * take the other two; hence the third lock.
 *
 * State changes only with invalidate_lock held for write.  Holding the lock in either
 * mode, or a claim, makes state stable.  Guest faults first look at the state under RCU
 * only, with kvm_gmem_is_private(); they have taken a snapshot of mmu_invalidate_seq
 * before, and find out under mmu_lock if the answer is outdated.
 *
 * Whoever changes the file holds change_lock and, for write, invalidate_lock: no fault
 * sees the change half done.  Long work in batches drops both after each of them, at
 * least every 2 MiB (or every large folio, if that is more); populating drops them at
 * every page.
 *
 * A conversion is all or nothing, and holds change_lock from start to end.  Unless it is
 * short it claims its range, and drops invalidate_lock while it works.  Faults elsewhere
 * go on; those in the range wait for the end of the claim.  Readers keep off a claimed
 * range altogether, as a reference to a folio would be in the way of the conversion:
 * they take invalidate_lock by kvm_gmem_lock_range().  invalidate_lock is held for write
 * at either end of a claim, and to drop folios.
 *
 * KVM never holds a reference to a folio beyond invalidate_lock, except for what
 * kvm_vcpu_map_hw() maps.  If it did, its own guest faults would make conversions fail.
 * kvm_gmem_get_pfn() returns a pfn without a reference: the pfn may be used only under
 * mmu_lock and after mmu_invalidate_retry_gfn().
 *
 * Guest faults, and KVM's own accesses, take invalidate_lock inside an SRCU read-side
 * critical section of kvm->srcu.  So with change_lock or invalidate_lock held, do not
 * wait for SRCU, for a vCPU or for a change of memslots, and do not access guest memory
 * by kvm_read_guest() and the like.  Do not access user memory either, it may be a
 * mapping of the same file.
 *
 * A conversion doesn't take slots_lock.
 */
struct gmem_inode {
	struct inode vfs_inode;
	struct shared_policy policy;

	/* Set at creation, constant since. */
	const struct kvm_gmem_ops *ops;
	u64 flags;

	/*
	 * Does the file track the state of each page?  Whoever creates the file says so,
	 * or else whoever uses it first; fixed from then on.  Written with
	 * invalidate_lock held for write.
	 */
	bool in_place;
	bool backing_fixed;

	/* The VM type's if GUEST_MEMFD_FLAG_HUGE, else 0. */
	unsigned int max_order;

	/*
	 * Pages [claim_start, claim_end) are claimed by the conversion that holds
	 * change_lock; none are if both are 0.  Written with invalidate_lock held for
	 * write, too.
	 */
	struct mutex change_lock;
	pgoff_t claim_start;
	pgoff_t claim_end;
	wait_queue_head_t claim_wait;

	struct rw_semaphore bindings_lock;
	struct list_head files;

	struct gmem_state state;

	/* Present pages that are private; the rest of nrpages is shared. */
	atomic_long_t nr_private;

	/*
	 * Blocks with fresh pages, and those with parked ones; how many pages to allocate
	 * before trying for another block.  The file is in a list of those with fresh
	 * pages, whom the shrinker asks.  See "Blocks".
	 */
	struct mutex blocks_lock;
	struct list_head blocks_entry;
	struct list_head fresh_blocks;
	struct list_head parked_blocks;
	unsigned int no_blocks;
};

struct gmem_file {
	struct kvm *kvm;
	struct inode *inode;
	struct list_head entry;

	/* Memslots of all the VM's address spaces, as intervals of page indices. */
	struct rb_root_cached bindings;
};

/* Long work gives faults a chance to run after at most so many pages. */
#define GMEM_BATCH_PAGES	(SZ_2M >> PAGE_SHIFT)

/*
 * A conversion of more pages, unless they are one large folio's, claims its range.  For
 * so few the claim would cost more than it spares others.
 */
#define GMEM_SHORT_PAGES	8

static __always_inline struct gmem_inode *GMEM_I(struct inode *inode)
{
	return container_of(inode, struct gmem_inode, vfs_inode);
}

static inline bool kvm_gmem_in_place(u64 flags, const struct kvm_gmem_ops *ops)
{
	return ops->attributes &&
	       (flags & (GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED |
			 GUEST_MEMFD_FLAG_GUEST_CONTENT));
}

/*
 * May the caller decide what becomes of private pages?  It is the process that runs the
 * VM, unless whoever holds the file may as well.
 */
static inline bool kvm_gmem_may_control(const struct gmem_file *f)
{
	return f->kvm->mm == current->mm ||
	       GMEM_I(f->inode)->flags & GUEST_MEMFD_FLAG_SHARED_CONTROL;
}

/* Are pages of [@start, @end) claimed?  Stable only if invalidate_lock is held. */
static inline bool kvm_gmem_is_claimed(struct inode *inode, pgoff_t start, pgoff_t end)
{
	struct gmem_inode *gi = GMEM_I(inode);

	return start < READ_ONCE(gi->claim_end) && READ_ONCE(gi->claim_start) < end;
}

/* Is [@start, @end) claimed as a whole?  For whoever holds change_lock: by itself? */
static inline bool kvm_gmem_has_claim(struct inode *inode, pgoff_t start, pgoff_t end)
{
	return start >= GMEM_I(inode)->claim_start && end <= GMEM_I(inode)->claim_end;
}

/* Do folios, state and bindings of [@start, @end) change by the caller's hand alone? */
static inline void kvm_gmem_assert_exclusive(struct inode *inode, pgoff_t start,
					     pgoff_t end)
{
	lockdep_assert_held(&GMEM_I(inode)->change_lock);
	lockdep_assert(lockdep_is_held_type(&inode->i_mapping->invalidate_lock, 0) ||
		       kvm_gmem_has_claim(inode, start, end));
}

/* Or is it at least for the caller to use? */
static inline void kvm_gmem_assert_usable(struct inode *inode, pgoff_t start, pgoff_t end)
{
	lockdep_assert(lockdep_is_held(&inode->i_mapping->invalidate_lock) ||
		       (lockdep_is_held(&GMEM_I(inode)->change_lock) &&
			kvm_gmem_has_claim(inode, start, end)));
}

/* Stable only if invalidate_lock is held, or the page is claimed by the caller. */
static inline bool kvm_gmem_index_is_private(struct inode *inode, pgoff_t index)
{
	struct gmem_inode *gi = GMEM_I(inode);

	if (gi->in_place)
		return gmem_state_test(&gi->state, index);

	return !(gi->flags & GUEST_MEMFD_FLAG_INIT_SHARED);
}

/*
 * Is the page at @index, if it is present, out of the direct map?  There is no bit that
 * says so; see "Memory outside the direct map".  Stable as the state is.
 */
static inline bool kvm_gmem_is_out(struct inode *inode, pgoff_t index)
{
	return GMEM_I(inode)->flags & GUEST_MEMFD_FLAG_NO_DIRECT_MAP &&
	       (!GMEM_I(inode)->in_place || kvm_gmem_index_is_private(inode, index));
}

static inline pgoff_t kvm_gmem_index(const struct kvm_memory_slot *slot, gfn_t gfn)
{
	return gfn - slot->base_gfn + slot->gmem.pgoff;
}

/* The pfn of the page at @index, which @folio covers. */
static inline kvm_pfn_t kvm_gmem_folio_pfn(struct folio *folio, pgoff_t index)
{
	return folio_pfn(folio) + (index & (folio_nr_pages(folio) - 1));
}

/* Has memory failure struck the page at @index, which @folio covers? */
static inline bool kvm_gmem_is_poisoned(struct folio *folio, pgoff_t index)
{
	return PageHWPoison(folio_file_page(folio, index));
}

/* Has it struck any page of @folio? */
static inline bool kvm_gmem_folio_is_poisoned(struct folio *folio)
{
	return folio_contain_hwpoisoned_page(folio);
}

/* guest_memfd.c */
struct file *kvm_gmem_create_file(struct kvm *kvm, const struct kvm_gmem_ops *ops,
				  loff_t size, u64 flags);

/* guest_memfd_bind.c */
void kvm_gmem_slot_range(struct kvm_memory_slot *slot, pgoff_t start, pgoff_t end,
			 struct kvm_gfn_range *range);
struct kvm_memory_slot *kvm_gmem_first_binding(struct gmem_file *f, pgoff_t start,
					       pgoff_t end);
struct kvm_memory_slot *kvm_gmem_next_binding(struct kvm_memory_slot *slot,
					      pgoff_t start, pgoff_t end);
void kvm_gmem_invalidate_start(struct inode *inode, pgoff_t start, pgoff_t end,
			       enum kvm_gfn_range_filter filter);
void kvm_gmem_invalidate_end(struct inode *inode, pgoff_t start, pgoff_t end);
void kvm_gmem_invalidate_caches(struct inode *inode, pgoff_t start, pgoff_t end);
void kvm_gmem_invalidate_file_start(struct gmem_file *f, pgoff_t start, pgoff_t end,
				    enum kvm_gfn_range_filter filter);
void kvm_gmem_invalidate_file_end(struct gmem_file *f, pgoff_t start, pgoff_t end);
enum kvm_gfn_range_filter kvm_gmem_filter(struct inode *inode);
void kvm_gmem_unbind_all(struct gmem_file *f);
void kvm_gmem_zap_binding(struct kvm_memory_slot *slot);
void kvm_gmem_set_slot(struct kvm_memory_slot *slot, struct file *file, pgoff_t pgoff);
void kvm_gmem_walk_file(struct gmem_file *f, pgoff_t index, pgoff_t end,
			kvm_gmem_walk_fn fn, void *arg);
void kvm_gmem_lock_bindings(struct inode *inode);
void kvm_gmem_unlock_bindings(struct inode *inode);

typedef int (*kvm_gmem_range_fn)(struct gmem_file *f, struct kvm_gfn_range *range,
				 void *arg);

int kvm_gmem_for_each_range(struct gmem_file *f, pgoff_t start, pgoff_t end,
			    kvm_gmem_range_fn fn, void *arg);
int kvm_gmem_reclaim_range(struct gmem_file *f, pgoff_t start, pgoff_t end);
int kvm_gmem_reclaim_inode_range(struct inode *inode, pgoff_t start, pgoff_t end);
void kvm_gmem_release_range(struct gmem_file *f, pgoff_t start, pgoff_t end);
void kvm_gmem_release_inode_range(struct inode *inode, pgoff_t start, pgoff_t end);

/*
 * Walk the bindings of @f, in all address spaces, that overlap [@start, @end), each
 * once, in the order of their first page.  They must be stable.
 */
#define kvm_gmem_for_each_binding(f, slot, start, end)				\
	for ((slot) = kvm_gmem_first_binding((f), (start), (end)); (slot);	\
	     (slot) = kvm_gmem_next_binding((slot), (start), (end)))

/* guest_memfd_block.c */
int kvm_gmem_init_blocks(void);
void kvm_gmem_exit_blocks(void);
struct folio *kvm_gmem_alloc_from_block(struct inode *inode, struct mempolicy *policy);
void kvm_gmem_untake_folio(struct folio *folio);
void kvm_gmem_park_folio(struct folio *folio);
int kvm_gmem_split_block(struct folio *folio);
void kvm_gmem_leave_block(struct folio *folio);
void kvm_gmem_trim_blocks(struct inode *inode);
void kvm_gmem_free_blocks(struct inode *inode);
unsigned long kvm_gmem_shrink_blocks(unsigned long nr);

/* Is @folio a page of a block?  Stable for whoever adds it to the file, or takes it away. */
static inline bool kvm_gmem_is_of_block(struct folio *folio)
{
	return folio->private && folio->private != KVM_GMEM_FOLIO_LEAKED;
}

/* guest_memfd_fault.c */
vm_fault_t kvm_gmem_fault(struct vm_fault *vmf);
struct file *kvm_gmem_get_file(struct kvm_memory_slot *slot);

/* guest_memfd_folio.c */
extern const struct address_space_operations kvm_gmem_no_direct_map_aops;

gfp_t kvm_gmem_gfp(struct address_space *mapping, unsigned int order);
struct folio *kvm_gmem_alloc_folio(struct inode *inode, pgoff_t index, unsigned int order,
				   bool may_be_out);
void kvm_gmem_put_new_folio(struct folio *folio);
int kvm_gmem_insert_folio(struct gmem_file *f, struct folio *folio, pgoff_t index);
bool kvm_gmem_may_be_large(struct inode *inode, pgoff_t start, pgoff_t end);
struct folio *kvm_gmem_get_folio(struct gmem_file *f, pgoff_t index);
void kvm_gmem_make_uptodate(struct folio *folio);
void kvm_gmem_zero_pages(struct folio *folio, pgoff_t start, pgoff_t end);
bool kvm_gmem_folio_is_held(struct folio *folio);
int kvm_gmem_take_out(struct folio *folio, struct direct_map_flush *flush);
bool kvm_gmem_put_back(struct folio *folio);
int kvm_gmem_cut(struct inode *inode, pgoff_t index);
int kvm_gmem_cut_edges(struct inode *inode, pgoff_t start, pgoff_t end);
pgoff_t kvm_gmem_batch_end(struct inode *inode, pgoff_t start, pgoff_t end);
int kvm_gmem_prepare_range(struct inode *inode, pgoff_t start, pgoff_t end);
void kvm_gmem_unmap_users(struct inode *inode, pgoff_t start, pgoff_t end);
void kvm_gmem_drop_folios(struct gmem_file *f, pgoff_t start, pgoff_t end);
pgoff_t kvm_gmem_next_present(struct inode *inode, pgoff_t start, pgoff_t end);
pgoff_t kvm_gmem_next_absent(struct inode *inode, pgoff_t start, pgoff_t end);
void kvm_gmem_account(struct gmem_file *f, long nr_private, long nr_shared);

static inline bool kvm_gmem_is_present(struct inode *inode, pgoff_t index)
{
	return kvm_gmem_next_present(inode, index, index + 1) == index;
}

/* guest_memfd_convert.c */
long kvm_gmem_set_attributes(struct gmem_file *f,
			     struct kvm_memory_attributes2 __user *uattrs);
int kvm_gmem_share_rejected(struct gmem_file *f, pgoff_t index);

/* guest_memfd_userfault.c */
int kvm_gmem_userfault_features(const struct kvm_gmem_ops *ops);
bool kvm_gmem_is_missing(struct gmem_file *f, const struct kvm_memory_slot *slot,
			 gfn_t gfn);
bool kvm_gmem_is_awaited(struct gmem_file *f, pgoff_t index);

#ifdef CONFIG_USERFAULTFD
extern const struct vm_uffd_ops kvm_gmem_uffd_ops;
#endif

/* guest_memfd_lock.c */
void kvm_gmem_begin_change(struct inode *inode);
void kvm_gmem_end_change(struct inode *inode);
bool kvm_gmem_trylock_range(struct inode *inode, pgoff_t start, pgoff_t end);
bool kvm_gmem_trylock_range_nowait(struct inode *inode, pgoff_t start, pgoff_t end);
int kvm_gmem_lock_range(struct inode *inode, pgoff_t start, pgoff_t end,
			unsigned int state);
void kvm_gmem_unlock_range(struct inode *inode);

/* guest_memfd_request.c */
void kvm_gmem_sync_state(struct kvm_memory_slot *slot, gfn_t gfn);
void kvm_gmem_cancel_requests(struct kvm *kvm, const struct kvm_memory_slot *slot);

/* guest_memfd_write.c */
ssize_t kvm_gmem_write_iter(struct kiocb *iocb, struct iov_iter *from);

#endif /* __KVM_GMEM_INTERNAL_H__ */
