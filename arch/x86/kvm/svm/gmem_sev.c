// SPDX-License-Identifier: GPL-2.0-only
/*
 * SEV and SEV-ES guests whose RAM is in guest_memfd.
 *
 * The encryption of a page depends on where in the host's memory it is, so the
 * pages of an encrypted guest must not move.  Those that user space supplies have
 * to be pinned for that, see KVM_MEMORY_ENCRYPT_REG_REGION.  Those of a guest_memfd
 * stay where they are; pins would buy nothing, be charged to the user as locked
 * memory, and stand in the way of conversions in place of SNP guests.
 */
#include <linux/interval_tree.h>
#include <linux/kvm_gmem.h>
#include <linux/kvm_host.h>
#include <linux/pfn.h>

#include <asm/cacheflush.h>

#include "svm.h"

static struct kvm_memory_slot *sev_gmem_node_slot(struct kvm_memslots *slots,
						  struct interval_tree_node *node)
{
	return container_of(node, struct kvm_memory_slot, hva_node[slots->node_idx]);
}

/*
 * Sweep over the slots that show something of [@first, @last], which come in the
 * order of their addresses.  Returns false if one of them isn't gmem-only.
 * @covered is set if there is no gap between those that are.
 */
static bool sev_gmem_sweep(struct kvm_memslots *slots, unsigned long first,
			   unsigned long last, bool *covered)
{
	struct interval_tree_node *node;
	struct kvm_memory_slot *slot;
	unsigned long next = first;
	bool gap = false;

	*covered = false;

	for (node = interval_tree_iter_first(&slots->hva_tree, first, last); node;
	     node = interval_tree_iter_next(node, first, last)) {
		slot = sev_gmem_node_slot(slots, node);
		if (!kvm_memslot_is_gmem_only(slot))
			return false;

		/* Address 0 says that the memory isn't mapped. */
		if (!kvm_memslot_has_hva(slot))
			continue;

		gap |= node->start > next;
		if (node->last >= last)
			*covered = !gap;

		next = max(next, node->last + 1);
	}

	return true;
}

/*
 * Is every page of the user addresses [@first, @last] in guest_memfd?  It is up to
 * the memslots, as they say what the guest gets to see: a gmem-only slot takes
 * nothing from where its userspace_addr points to.  A page that another slot shows
 * as well doesn't count, that slot takes whatever is mapped.
 */
bool sev_gmem_covers(struct kvm *kvm, unsigned long first, unsigned long last)
{
	bool covered, any = false;
	int as;

	lockdep_assert_held(&kvm->slots_lock);

	for (as = 0; as < kvm_arch_nr_memslot_as_ids(kvm); as++) {
		if (!sev_gmem_sweep(__kvm_memslots(kvm, as), first, last, &covered))
			return false;
		any |= covered;
	}

	return any;
}

static void sev_gmem_flush_pages(kvm_pfn_t pfn, unsigned long nr_pages)
{
	clflush_cache_range(__va(PFN_PHYS(pfn)), nr_pages << PAGE_SHIFT);
}

/* Flush what is present at the user addresses [@first, @last]. */
static void sev_gmem_flush(struct kvm_memslots *slots, unsigned long first,
			   unsigned long last)
{
	struct interval_tree_node *node;
	struct kvm_memory_slot *slot;
	gfn_t start, end;

	for (node = interval_tree_iter_first(&slots->hva_tree, first, last); node;
	     node = interval_tree_iter_next(node, first, last)) {
		slot = sev_gmem_node_slot(slots, node);
		if (!kvm_memslot_has_hva(slot))
			continue;

		start = slot->base_gfn + PFN_DOWN(max(first, node->start) - node->start);
		end = slot->base_gfn + PFN_DOWN(min(last, node->last) - node->start) + 1;
		kvm_gmem_walk_present(slot, start, end, sev_gmem_flush_pages);
	}
}

/*
 * User space announces memory of an encrypted guest at @uaddr.  If all of it is in
 * guest_memfd, make sure that the caches hold nothing that was written without the
 * guest's key, and return true: there is nothing to pin.  Else return false.
 *
 * If slots come or go later, the answer stands: like a mapping that replaces pinned
 * memory, it is at the guest's expense only.  kvm->lock is held, may sleep.
 */
bool sev_gmem_register_region(struct kvm *kvm, unsigned long uaddr, unsigned long size)
{
	unsigned long first = uaddr & PAGE_MASK;
	unsigned long last = (uaddr + size - 1) | ~PAGE_MASK;
	int as;

	lockdep_assert_held(&kvm->lock);

	/* Leave it to the caller to refuse what makes no sense. */
	if (!size || uaddr + size < uaddr)
		return false;

	guard(mutex)(&kvm->slots_lock);

	if (!sev_gmem_covers(kvm, first, last))
		return false;

	/* Then caches are coherent between encrypted and plain. */
	if (boot_cpu_has(X86_FEATURE_SME_COHERENT))
		return true;

	for (as = 0; as < kvm_arch_nr_memslot_as_ids(kvm); as++)
		sev_gmem_flush(__kvm_memslots(kvm, as), first, last);

	return true;
}
