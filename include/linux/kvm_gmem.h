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
 * What becomes of the bytes of the pages that a conversion moves to the other
 * side, in terms of KVM_SET_MEMORY_ATTRIBUTES2_*.
 *
 * @allowed:	flags that user space may ask for now
 * @dflt:	the flag that 0 stands for; 0 if the content is undefined, i.e. if
 *		the platform scrambles it and KVM has nothing to add
 */
struct kvm_gmem_content {
	u64 allowed;
	u64 dflt;
};

/*
 * All that guest_memfd wants to know about a type of VM.  There is one constant
 * table per VM type; an inode keeps the pointer for life, as a file never
 * changes its VM type and outlives its VM.
 *
 * Hooks may be NULL, and may sleep unless said otherwise.  pfns and orders are in base
 * pages, and no range handed to a hook cuts a folio.
 *
 * A hook that is said to be called exclusively has its pages for itself: no fault, no
 * other change of the file and no other hook comes near them, but for ->invalidate() by
 * memory failure.  Whether the mapping's invalidate_lock is held is not for it to know.
 */
struct kvm_gmem_ops {
	/* Flags of KVM_CREATE_GUEST_MEMFD that files of this VM type accept. */
	u64 create_flags;

	/*
	 * Attributes that user space may change page by page through the file,
	 * KVM_MEMORY_ATTRIBUTE_PRIVATE or 0.  If 0, a file's pages are of one
	 * state for life.
	 */
	u64 attributes;

	/*
	 * The order of the large folios of files with GUEST_MEMFD_FLAG_HUGE, and of
	 * the guest's large mappings: KVM_GMEM_HUGE_ORDER, with KVM_GMEM_HUGE_FLAG in
	 * create_flags, or 0 if the VM type has none.
	 * Not to be had together with ->reclaim_range(), which may fail where a
	 * conversion that drops small folios no longer can.
	 */
	unsigned int max_order;

	/*
	 * KVM must unmap the guest when a page changes sides.  False only if the
	 * platform itself moves the page and keeps the guest's mapping valid.
	 */
	bool zap_on_convert;

	/*
	 * The platform itself keeps the guest from reading what a private page held
	 * in its former life, so KVM need not zero the page for the guest.  Whoever
	 * gives such a page to the guest marks it up to date: the platform owns it
	 * from then on.  A page that isn't is zeroed before any other use.
	 */
	bool zeroes_private;

	/*
	 * The address space operations of the VM type's files, made by
	 * KVM_GMEM_AOPS().  They are per VM type so that ->free_folio() can give
	 * a page back to the host when neither VM nor mapping exist any more.
	 */
	const struct address_space_operations *aops;

	/* Describe the content policy of a conversion; no lock needed. */
	void (*content)(struct kvm *kvm, bool to_private,
			struct kvm_gmem_content *content);

	/*
	 * Veto a conversion of @range, which lies within one slot, before
	 * anything has changed.  Not asked about DISCARD, which takes the pages
	 * away as a hole does.  Called exclusively, for all of the file.
	 */
	int (*may_convert)(struct kvm *kvm, struct kvm_memory_slot *slot,
			   struct kvm_gfn_range *range, bool to_private);

	/*
	 * Do what may fail cleanly and isn't state: split an entry of the
	 * platform's tables that is larger than the folio at @pfn, which may be
	 * what was just split off a large one.  Called for files with large folios
	 * before private memory is converted, punched or discarded, for the first
	 * folio that is present in each aligned block of @max_order: an entry never
	 * was larger than that, and goes whole or is split, hence one folio tells of
	 * its whole block.  Called exclusively; memory failure may still split a
	 * folio afterwards.
	 */
	int (*prepare_convert)(kvm_pfn_t pfn, int order);

	/*
	 * Give the page at @pfn to the guest, at @gfn, before its first private
	 * mapping.  The naturally aligned range of @order around it is in one private
	 * folio and may be given along with it, as far as it isn't the guest's yet.
	 * Must be idempotent.  invalidate_lock is held for read, the folio is locked.
	 */
	int (*make_private)(struct kvm *kvm, gfn_t gfn, kvm_pfn_t pfn, int order);

	/*
	 * Take a page back because it becomes shared, after the last mapping
	 * and translation are gone.  False if the platform refuses; the page is
	 * then lost to the host.  Called exclusively.
	 */
	bool (*make_shared)(kvm_pfn_t pfn, int order);

	/*
	 * Move what the guest has of @range, which lies within @slot, to the
	 * other side, where the platform does that itself and page by page; before
	 * ->make_shared().  Cannot fail: what could is for ->may_convert().  Called
	 * exclusively.
	 */
	void (*move_range)(struct kvm *kvm, struct kvm_memory_slot *slot,
			   struct kvm_gfn_range *range, bool to_private);

	/*
	 * Take away from the guest what it has of @range, which lies within @slot,
	 * where KVM's zap cannot do that.  Called before the zap, on the same
	 * occasions as ->release_range().  Pages that the platform doesn't give
	 * back stay in the file if the operation can fail; at the end of the file
	 * it is for ->free_folio() to leak them.  Called exclusively.  Returns 0, or
	 * an error if a page is still the guest's.
	 */
	int (*reclaim_range)(struct kvm *kvm, struct kvm_memory_slot *slot,
			     struct kvm_gfn_range *range);

	/*
	 * The guest loses the pages of @range, which lies within @slot: by punch,
	 * DISCARD, unbinding or the end of the file.  The guest's mappings are
	 * gone, the folios are not free yet.  This is where to do what needs the
	 * VM; when a folio is freed the VM may be gone.  Called exclusively.
	 */
	void (*release_range)(struct kvm *kvm, struct kvm_memory_slot *slot,
			      struct kvm_gfn_range *range);

	/*
	 * KVM has written zeros to a page that no one has seen yet.  This is where
	 * to do what the guest's first access, to the same memory but not the same
	 * way, wants done before.  The folio is locked, invalidate_lock is held.
	 */
	void (*fresh)(kvm_pfn_t pfn, int order);

	/*
	 * Forget what KVM keeps about @range apart from mappings.  mmu_lock is
	 * held for write, invalidate_lock may not be; must not sleep.
	 */
	void (*invalidate)(struct kvm *kvm, struct kvm_gfn_range *range);
};

int kvm_gmem_migrate_folio(struct address_space *mapping, struct folio *dst,
			   struct folio *src, enum migrate_mode mode);
int kvm_gmem_error_folio(struct address_space *mapping, struct folio *folio);
void kvm_gmem_leak_folio(struct folio *folio);

/*
 * In folio->private of a folio that kvm_gmem_leak_folio() keeps.  A VM type may have
 * something else there, until it gives the folio up or leaks it.
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
void kvm_gmem_sync_state(struct kvm_memory_slot *slot, gfn_t gfn);

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

#endif /* __LINUX_KVM_GMEM_H */
