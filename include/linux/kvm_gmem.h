/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef __LINUX_KVM_GMEM_H
#define __LINUX_KVM_GMEM_H

#include <linux/fs.h>
#include <linux/kvm_types.h>
#include <linux/pagemap.h>
#include <linux/pgtable.h>

struct kvm;
struct kvm_gfn_range;
struct kvm_memory_slot;

/*
 * Large folios can't be split without THP, and are of no use unless they can.  Where
 * base pages are of 64 KiB, the folio of a PMD is too large for a page cache.
 */
#define KVM_GMEM_HAS_HUGE	(IS_ENABLED(CONFIG_TRANSPARENT_HUGEPAGE) && \
				 PMD_ORDER <= MAX_XAS_ORDER)

/* For create_flags and max_order of VM types that have large folios if possible. */
#define KVM_GMEM_HUGE_FLAG	(KVM_GMEM_HAS_HUGE ? GUEST_MEMFD_FLAG_HUGE : 0)
#define KVM_GMEM_HUGE_ORDER	(KVM_GMEM_HAS_HUGE ? PMD_ORDER : 0)

/*
 * For create_flags of VM types whose memory may be out of the direct map.  They have no
 * ->free_folio() of their own, and no hook of theirs touches a private page by its
 * address in the direct map.
 */
#define KVM_GMEM_NO_DIRECT_MAP_FLAG	(IS_ENABLED(CONFIG_DIRECT_MAP_HOLES) ? \
					 GUEST_MEMFD_FLAG_NO_DIRECT_MAP : 0)

/**
 * DOC: Hooks by event
 *
 * What guest_memfd calls of a VM type's table, in order.  Hooks may be NULL.
 *
 * ============== ====================================================================
 * event          calls
 * ============== ====================================================================
 * write(), uffd  fresh
 * private fault  fresh if the page was zeroed for it; then make_private, or the
 *                callback of kvm_gmem_map_page()
 * user fault     fresh if the page was zeroed for it
 * to private     may_convert; prepare_convert if ZERO; invalidate and zap; [release_range
 *                and free_folio for each block of fragments]; move_range; commit
 * to shared      may_convert; prepare_convert; invalidate and zap; [make_shared,
 *                release_range and free_folio for each block of fragments]; move_range;
 *                make_shared for each other folio; commit
 * DISCARD        prepare_convert; reclaim_range; invalidate and zap; release_range;
 *                free_folio; commit
 * punch          prepare_convert; reclaim_range; invalidate and zap; release_range;
 *                free_folio
 * slot deleted   invalidate (on x86); release_range
 * file closed    reclaim_range; invalidate and zap; release_range; free_folio
 * memory failure invalidate and zap
 * ============== ====================================================================
 *
 * "Commit" is the change of state.  "Zap" stands for kvm_unmap_gfn_range() and one flush;
 * a conversion leaves it out unless zap_on_convert is set.  A conversion that has claimed
 * its range calls invalidate a second time, at the commit.  Brackets: for files with
 * large folios, and unless the content is PRESERVE, see kvm_gmem_drop_fragments().
 *
 * If make_shared fails, the folio leaves the file, hence free_folio follows.
 *
 * Loading the initial image, kvm_gmem_populate(), calls fresh if the page was zeroed for
 * it, and the callback of its caller.  It does not call make_private.
 */

/**
 * DOC: Ways to give a page
 *
 * That a page becomes private gives nothing to the platform: the page is only eligible.
 * A VM type gives it to the platform at the guest's first use, in one of three ways.
 * They differ in what makes a page the guest's, and in who takes it back.
 *
 * make_private
 *	For a platform that keeps a table of owners besides the guest's page tables, e.g.
 *	the RMP of SEV-SNP.  kvm_gmem_get_pfn() calls the hook for each look-up of a
 *	private page.  A fault that loses a race installs no mapping, and leaves a page
 *	that is given but not mapped.  make_shared and free_folio look at the table.
 *
 * A mark under mmu_lock
 *	For a platform where the entry in the guest's page tables gives the page and KVM's
 *	zap takes it back, e.g. the S-EPT of TDX.  There is no make_private.  Who installs
 *	the entry marks the folio, who removes it clears the mark, both with mmu_lock
 *	held.  make_shared and free_folio come after the zap: a folio that is still marked
 *	is one that the platform didn't give back.
 *
 * kvm_gmem_map_page()
 *	For a platform where the mapping is ownership, and neither follows zaps nor can be
 *	retried, e.g. protected VMs of arm64.  A callback installs the mapping while
 *	invalidate_lock keeps out conversions and punches, and the folio lock memory
 *	failure.  reclaim_range takes pages back, move_range moves them to the other side;
 *	zap_on_convert is false.  If may_convert looks at something that the VM type
 *	changes on its own, e.g. the guest's requests, kvm_gmem_close_request()
 *	waits for conversions that may have seen it as it was.
 */

/**
 * struct kvm_gmem_content - what may become of the bytes when pages change sides
 * @allowed:	flags, KVM_SET_MEMORY_ATTRIBUTES2_*, that user space may ask for now
 * @dflt:	the flag that 0 stands for; 0 if the content is undefined, i.e. if the
 *		platform scrambles it and KVM has nothing to add
 */
struct kvm_gmem_content {
	u64 allowed;
	u64 dflt;
};

/**
 * struct kvm_gmem_ops - all that guest_memfd wants to know about a type of VM
 *
 * There is one constant table per VM type.  An inode keeps the pointer for life, as a
 * file never changes its VM type and outlives its VM.
 *
 * Hooks may be NULL, and may sleep unless said otherwise.  pfns and orders are in base
 * pages, and no range that a hook gets cuts a folio.
 *
 * A hook that is called exclusively has its pages for itself: no fault, no other change
 * of the file and no other hook comes near them, but for invalidate() by memory failure.
 * It cannot rely on invalidate_lock being held, nor on its not being held.
 */
struct kvm_gmem_ops {
	/**
	 * @create_flags: Flags of KVM_CREATE_GUEST_MEMFD that files of this VM type
	 * accept.  Two need not be here: all VM types accept GUEST_MEMFD_FLAG_WRITE, those
	 * with attributes GUEST_MEMFD_FLAG_SHARED_CONTROL.
	 * GUEST_MEMFD_FLAG_NO_DIRECT_MAP is void where the machine can't do it.
	 */
	u64 create_flags;

	/**
	 * @attributes: Attributes that user space may change page by page through the
	 * file: KVM_MEMORY_ATTRIBUTE_PRIVATE, or 0.  If 0, all pages of a file have one
	 * state for life.
	 */
	u64 attributes;

	/**
	 * @max_order: The order of the large folios of files with GUEST_MEMFD_FLAG_HUGE,
	 * and of the guest's large mappings: KVM_GMEM_HUGE_ORDER, with KVM_GMEM_HUGE_FLAG
	 * in create_flags, or 0 if the VM type has none.  It can't be combined with
	 * reclaim_range, which may fail where a conversion that drops small folios no
	 * longer can.
	 */
	unsigned int max_order;

	/**
	 * @zap_on_convert: KVM must unmap the guest when a page changes sides.  False
	 * only if the platform itself moves the page and keeps the guest's mapping valid.
	 */
	bool zap_on_convert;

	/**
	 * @zap_is_lossless: If KVM unmaps a page that stays the guest's, all that the
	 * guest loses is the time of the fault that maps it again.  False if the
	 * platform takes the page, or its bytes, along with the mapping, or keeps the
	 * mapping.
	 */
	bool zap_is_lossless;

	/**
	 * @zeroes_private: The platform itself keeps the guest from reading what a private
	 * page held in its former life, so KVM need not zero the page for the guest.
	 * Whoever gives such a page to the guest marks it up to date: the platform owns it
	 * from then on.  A page that isn't up to date is zeroed before any other use.
	 */
	bool zeroes_private;

	/**
	 * @host_private: The host kernel may read and write private pages, and what it
	 * sees and writes is what the guest does: "private" is what KVM makes of it, or
	 * the VM type knows no other side.  KVM's own accesses to guest memory then reach
	 * private pages as well; else they fail there, as on unmapped memory.
	 */
	bool host_private;

	/**
	 * @aops: The address space operations of the VM type's files, made by
	 * KVM_GMEM_AOPS().  They are per VM type so that ->free_folio() can give a page
	 * back to the host when neither VM nor mapping exist any more.
	 */
	const struct address_space_operations *aops;

	/**
	 * @content: Describe the content policy of a conversion.  No lock is held.  Must
	 * not be NULL if attributes isn't 0.
	 */
	void (*content)(struct kvm *kvm, bool to_private,
			struct kvm_gmem_content *content);

	/**
	 * @may_convert: Veto a conversion of @range, which lies within @slot, before
	 * anything has changed.  Called for each binding that overlaps the range of the
	 * conversion, with its part of it.  Not called for DISCARD, which takes the pages
	 * away as a hole does.  Called exclusively, for all of the file.
	 */
	int (*may_convert)(struct kvm *kvm, struct kvm_memory_slot *slot,
			   struct kvm_gfn_range *range, bool to_private);

	/**
	 * @prepare_convert: Do what may fail cleanly and isn't state: split an entry of
	 * the platform's tables that is larger than the folio at @pfn, which may be what
	 * was just split off a large one.  Called for files with large folios before
	 * private memory is converted, punched or discarded, for the first folio that is
	 * present in each aligned block of max_order.  One folio tells of its whole block,
	 * as an entry never was larger than the block, and goes whole or is split.
	 * Called exclusively; memory failure may still split a folio afterwards.  A
	 * failure is that of the call.
	 */
	int (*prepare_convert)(kvm_pfn_t pfn, int order);

	/**
	 * @make_private: Give the page at @pfn to the guest, at @gfn, before its first
	 * private mapping.  The naturally aligned range of @order around it is in one
	 * private folio and may be given along with it, as far as it isn't the guest's
	 * yet.  Must be idempotent: each kvm_gmem_get_pfn() of a private page calls it.
	 * invalidate_lock is held for read, the folio is locked.  A failure is that of
	 * the fault.
	 */
	int (*make_private)(struct kvm *kvm, gfn_t gfn, kvm_pfn_t pfn, int order);

	/**
	 * @make_shared: Take a page back because it becomes shared, after the last
	 * mapping and translation are gone.  False if the platform refuses; the page is
	 * then lost to the host.  Called exclusively.
	 */
	bool (*make_shared)(kvm_pfn_t pfn, int order);

	/**
	 * @move_range: Move what the guest has of @range, which lies within @slot, to the
	 * other side, where the platform does that itself and page by page; before
	 * make_shared.  Cannot fail: what could is for may_convert.  Called exclusively.
	 */
	void (*move_range)(struct kvm *kvm, struct kvm_memory_slot *slot,
			   struct kvm_gfn_range *range, bool to_private);

	/**
	 * @reclaim_range: Take away from the guest what it has of @range, which lies
	 * within @slot, where KVM's zap cannot do that.  Called before the zap, for punch,
	 * DISCARD and the end of the file.  Pages that the platform doesn't give back stay
	 * in the file if the operation can fail; at the end of the file ->free_folio()
	 * leaks them.  Called exclusively.  Returns 0, or an error if a page is still the
	 * guest's.
	 */
	int (*reclaim_range)(struct kvm *kvm, struct kvm_memory_slot *slot,
			     struct kvm_gfn_range *range);

	/**
	 * @release_range: The guest loses the pages of @range, which lies within @slot: by
	 * punch, DISCARD, unbinding or the end of the file, or because a conversion drops
	 * small folios for a large one.  The guest's mappings are gone, the folios are not
	 * free yet.  This is where to do what needs the VM; when a folio is freed the VM
	 * may be gone.  Called exclusively.
	 */
	void (*release_range)(struct kvm *kvm, struct kvm_memory_slot *slot,
			      struct kvm_gfn_range *range);

	/**
	 * @fresh: KVM has written zeros, or what user space has passed to write() or
	 * userfaultfd, to a page that no one has seen yet.  This is where to do what the
	 * guest's first access wants done before it, if that access is to the same memory
	 * but not in the same way.  The folio is locked, or not in the file yet.  It may be
	 * out of the direct map; VM types whose answer needs an address there don't have
	 * GUEST_MEMFD_FLAG_NO_DIRECT_MAP.
	 */
	void (*fresh)(kvm_pfn_t pfn, int order);

	/**
	 * @invalidate: Forget what KVM keeps about @range apart from mappings.  mmu_lock
	 * is held for write, invalidate_lock may not be; must not sleep.
	 */
	void (*invalidate)(struct kvm *kvm, struct kvm_gfn_range *range);
};

int kvm_gmem_migrate_folio(struct address_space *mapping, struct folio *dst,
			   struct folio *src, enum migrate_mode mode);
int kvm_gmem_error_folio(struct address_space *mapping, struct folio *folio);
void kvm_gmem_leak_folio(struct folio *folio);

/*
 * In folio->private of a folio that kvm_gmem_leak_folio() keeps.  A VM type may have
 * something else there, until it gives the folio up or leaks it, but not in files with
 * GUEST_MEMFD_FLAG_NO_DIRECT_MAP.
 */
#define KVM_GMEM_FOLIO_LEAKED	((void *)1UL)

/*
 * @free: the ->free_folio() of the VM type, which makes the platform give up a
 *	  folio that has left its file; NULL if the platform never owns any.  It
 *	  is called before the file's references are dropped: if the platform refuses,
 *	  kvm_gmem_leak_folio() keeps the folio from the allocator.
 */
#define KVM_GMEM_AOPS(free)					\
	{							\
		.dirty_folio = noop_dirty_folio,		\
		.migrate_folio = kvm_gmem_migrate_folio,	\
		.error_remove_folio = kvm_gmem_error_folio,	\
		.free_folio = (free),				\
	}

/* For VM types whose platform never owns a folio. */
extern const struct address_space_operations kvm_gmem_default_aops;

/* For VM types without private memory, whose files are of one state for life. */
extern const struct kvm_gmem_ops kvm_gmem_default_ops;

int kvm_gmem_map_page(struct kvm *kvm, struct kvm_memory_slot *slot, gfn_t gfn,
		      bool is_private, int (*map)(void *arg, kvm_pfn_t pfn), void *arg);

bool kvm_gmem_slot_is_out(const struct kvm_memory_slot *slot);
bool kvm_gmem_is_uniform(const struct kvm_memory_slot *slot, gfn_t start, gfn_t end);

typedef void (*kvm_gmem_walk_fn)(void *arg, kvm_pfn_t pfn, unsigned long nr_pages);

void kvm_gmem_walk_present(struct kvm_memory_slot *slot, gfn_t start, gfn_t end,
			   kvm_gmem_walk_fn fn, void *arg);
void kvm_gmem_walk_range(struct kvm_gfn_range *range, kvm_gmem_walk_fn fn, void *arg);
bool kvm_gmem_walk_vma(struct kvm *kvm, struct vm_area_struct *vma, unsigned long start,
		       unsigned long end, kvm_gmem_walk_fn fn, void *arg);

/*
 * Return the table of @kvm's type; for a NULL @kvm the table of the most capable
 * type that this host supports.
 */
const struct kvm_gmem_ops *kvm_arch_gmem_ops(struct kvm *kvm);

/*
 * Can this host map memory into a guest, and unmap it, without an address for it in the
 * direct map, e.g. to maintain caches?  Constant once the host has booted.
 */
bool kvm_arch_gmem_can_be_out(void);

#endif /* __LINUX_KVM_GMEM_H */
