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
#include <linux/mm.h>
#include <linux/mmap_lock.h>
#include <linux/pfn.h>

#include "snp_platform.h"
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

static void sev_gmem_flush_pages(void *arg, kvm_pfn_t pfn, unsigned long nr_pages)
{
	snp_platform->clflush(pfn, nr_pages);
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
		kvm_gmem_walk_present(slot, start, end, sev_gmem_flush_pages, NULL);
	}
}

static bool sev_gmem_register_slots(struct kvm *kvm, unsigned long first,
				    unsigned long last)
{
	int as;

	lockdep_assert_held(&kvm->slots_lock);

	if (!sev_gmem_covers(kvm, first, last))
		return false;

	/* Then caches are coherent between encrypted and plain. */
	if (snp_platform->is_coherent())
		return true;

	for (as = 0; as < kvm_arch_nr_memslot_as_ids(kvm); as++)
		sev_gmem_flush(__kvm_memslots(kvm, as), first, last);

	return true;
}

/*
 * Many a VMM announces memory before it makes memslots of it.  Then go by what is
 * mapped: if it is guest_memfd all over, no slot that takes it can move it.
 */
static bool sev_gmem_register_vmas(struct kvm *kvm, unsigned long first,
				   unsigned long last)
{
	kvm_gmem_walk_fn flush = snp_platform->is_coherent() ? NULL : sev_gmem_flush_pages;
	unsigned long start = first, end;
	struct vm_area_struct *vma;

	guard(mmap_read_lock)(current->mm);

	do {
		vma = find_vma(current->mm, start);
		if (!vma || vma->vm_start > start)
			return false;

		end = min(vma->vm_end - 1, last) + 1;
		if (!kvm_gmem_walk_vma(kvm, vma, start, end, flush, NULL))
			return false;

		start = end;
	} while (end && end <= last);

	return true;
}

/*
 * If caches aren't coherent, then what KVM has written to a page, zeros, must not be
 * in them any more when the guest writes to it, or it would end up on top of what
 * the guest has written.  Files of SEV VMs see to that.  But a VM that turned into a
 * SEV guest by KVM_SEV_INIT has files that know nothing of it.
 */
static bool sev_gmem_is_flushed(struct kvm *kvm)
{
	return kvm->arch.vm_type != KVM_X86_DEFAULT_VM || snp_platform->is_coherent();
}

/*
 * User space announces memory of an encrypted guest at @uaddr.  If all of it is in
 * guest_memfd, make sure that the caches hold nothing that was written without the
 * guest's key, and return true: there is nothing to pin.  Else return false.
 *
 * If slots or mappings come or go later, the answer stands: like a mapping that
 * replaces pinned memory, it is at the guest's expense only.  kvm->lock is held, may
 * sleep.
 */
bool sev_gmem_register_region(struct kvm *kvm, unsigned long uaddr, unsigned long size)
{
	unsigned long first = uaddr & PAGE_MASK;
	unsigned long last = (uaddr + size - 1) | ~PAGE_MASK;

	lockdep_assert_held(&kvm->lock);

	/* Leave it to the caller to refuse what makes no sense. */
	if (!size || uaddr + size < uaddr)
		return false;

	if (!sev_gmem_is_flushed(kvm))
		return false;

	guard(mutex)(&kvm->slots_lock);

	return sev_gmem_register_slots(kvm, first, last) ||
	       sev_gmem_register_vmas(kvm, first, last);
}

/* Files of SEV and SEV-ES guests: all of a page is the host's, but for the caches. */

static void sev_gmem_fresh(kvm_pfn_t pfn, int order)
{
	if (!snp_platform->is_coherent())
		snp_platform->clflush(pfn, 1UL << order);
}

struct sev_gmem_release {
	struct kvm *kvm;
	bool failed;
};

/*
 * Write back what the guest has written.  A CPU that is coherent wants it all the
 * same, for the sake of devices that aren't.
 */
static void sev_gmem_release_pages(void *arg, kvm_pfn_t pfn, unsigned long nr_pages)
{
	struct sev_gmem_release *release = arg;
	u32 asid = to_kvm_sev_info(release->kvm)->asid;

	if (snp_platform->is_coherent()) {
		snp_platform->clflush(pfn, nr_pages);
		return;
	}

	for (; nr_pages-- && !release->failed; pfn++)
		release->failed = snp_platform->page_flush(pfn, asid);
}

/*
 * The pages of @range leave the guest.  What it wrote may linger in caches, under its
 * key, and would land on the data of the page's next user.
 *
 * To have all CPUs that the guest ran on write back all of their caches is cheaper for
 * a slot or a file, but stalls the host for a balloon that returns single pages.
 */
static void sev_gmem_release_range(struct kvm *kvm, struct kvm_memory_slot *slot,
				   struct kvm_gfn_range *range)
{
	struct sev_gmem_release release = { .kvm = kvm };

	/* No SEV guest (yet), hence none that has run. */
	if (!____sev_guest(kvm))
		return;

	/* Lines can't be flushed by an address that the page doesn't have. */
	if (range->end - range->start > PTRS_PER_PMD || kvm_gmem_slot_is_out(slot))
		release.failed = true;
	else
		kvm_gmem_walk_range(range, sev_gmem_release_pages, &release);

	if (release.failed)
		snp_platform->writeback(kvm);
}

static const struct kvm_gmem_ops sev_gmem_sev_ops = {
	.create_flags	= GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED |
			  KVM_GMEM_HUGE_FLAG,
	.max_order	= KVM_GMEM_HUGE_ORDER,
	.zap_on_convert	= true,
	.host_private	= true,
	.zap_is_lossless = true,
	.aops		= &kvm_gmem_default_aops,
	.release_range	= sev_gmem_release_range,
	.fresh		= sev_gmem_fresh,
};

/* Most of these VMs never are SEV guests: spare them the flushes of fresh pages. */
static const struct kvm_gmem_ops sev_gmem_default_ops = {
	.create_flags	= GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED |
			  KVM_GMEM_HUGE_FLAG | KVM_GMEM_NO_DIRECT_MAP_FLAG,
	.max_order	= KVM_GMEM_HUGE_ORDER,
	.zap_on_convert	= true,
	.host_private	= true,
	.zap_is_lossless = true,
	.aops		= &kvm_gmem_default_aops,
	.release_range	= sev_gmem_release_range,
};

/* The table of VMs whose memory is the host's. */
const struct kvm_gmem_ops *sev_gmem_host_ops(struct kvm *kvm)
{
	switch (kvm->arch.vm_type) {
	case KVM_X86_SEV_VM:
	case KVM_X86_SEV_ES_VM:
		return &sev_gmem_sev_ops;
	default:
		return &sev_gmem_default_ops;
	}
}
