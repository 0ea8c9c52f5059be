// SPDX-License-Identifier: GPL-2.0-only
/*
 * The memory attributes of a VM, by gfn: KVM_SET_MEMORY_ATTRIBUTES.
 *
 * There is one attribute, "private".  It says which half of a slot with two
 * backings is live: the guest_memfd, or the memory at userspace_addr.  A slot on
 * an in-place file has but one backing; what is private there is the file's
 * business, see guest_memfd_convert.c.
 *
 * The attribute of all gfns is in kvm->mem_attributes, the same kind of map that
 * the files have.  It is written with slots_lock held.  Readers take no lock:
 * faults that read it before a change find that mmu_invalidate_seq has moved on,
 * or that an invalidation is in progress, and retry.
 */
#include <linux/cleanup.h>
#include <linux/kvm_gmem.h>
#include <linux/kvm_gmem_state.h>
#include <linux/kvm_host.h>
#include <trace/events/kvm.h>

#include "guest_memfd.h"
#include "kvm_mm.h"
#include "memory_attributes.h"

void kvm_init_mem_attributes(struct kvm *kvm)
{
	gmem_state_init(&kvm->mem_attributes, false);
}

/* The VM has no users left. */
void kvm_destroy_mem_attributes(struct kvm *kvm)
{
	gmem_state_destroy(&kvm->mem_attributes);
}

/* The attributes that @kvm knows, or any VM if it is NULL. */
u64 kvm_supported_mem_attributes(struct kvm *kvm)
{
	if (!kvm || kvm_arch_has_private_mem(kvm))
		return KVM_MEMORY_ATTRIBUTE_PRIVATE;

	return 0;
}

/*
 * The attributes of @gfn.  Lock-free: stable with slots_lock held only, otherwise
 * see the top of the file.
 */
unsigned long kvm_get_memory_attributes(struct kvm *kvm, gfn_t gfn)
{
	return gmem_state_test(&kvm->mem_attributes, gfn) ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0;
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_get_memory_attributes);

/*
 * Is the memory at [@start, @end), which @slot covers, private as a whole, or
 * shared as a whole?  This is what a huge mapping takes.  Lock-free; faults have
 * taken a snapshot of mmu_invalidate_seq before.
 */
bool kvm_mem_is_uniform(struct kvm *kvm, const struct kvm_memory_slot *slot,
			gfn_t start, gfn_t end)
{
	if (kvm_memslot_is_in_place(slot))
		return kvm_gmem_is_uniform(slot, start, end);

	return gmem_state_is_uniform(&kvm->mem_attributes, start, end);
}

/* Zap what @slot maps of [@start, @end) on the side that it leaves. */
static bool kvm_zap_attributes(struct kvm *kvm, struct kvm_memory_slot *slot,
			       gfn_t start, gfn_t end, unsigned long attributes)
{
	struct kvm_gfn_range range = {
		.slot = slot,
		.start = max(start, slot->base_gfn),
		.end = min(end, slot->base_gfn + slot->npages),
		.arg.attributes = attributes,
		.may_block = true,
	};

	/* Even if nothing is mapped: faults that are under way must retry. */
	kvm_mmu_invalidate_range_add(kvm, range.start, range.end);

	return kvm_arch_pre_set_memory_attributes(kvm, &range);
}

/*
 * Zap [@start, @end) in all slots, and make guest faults on it retry until the
 * matching kvm_mmu_invalidate_end().  Returns false, and there is none to come,
 * if no slot covers any of it.
 */
static bool kvm_start_attributes_change(struct kvm *kvm, gfn_t start, gfn_t end,
					unsigned long attributes)
{
	struct kvm_memslot_iter iter;
	bool found = false;
	bool flush = false;
	int as;

	lockdep_assert_held(&kvm->slots_lock);

	for (as = 0; as < kvm_arch_nr_memslot_as_ids(kvm); as++) {
		kvm_for_each_memslot_in_gfn_range(&iter, __kvm_memslots(kvm, as),
						  start, end) {
			/* The walk may begin with the slot below the range. */
			if (iter.slot->base_gfn + iter.slot->npages <= start)
				continue;

			if (!found) {
				KVM_MMU_LOCK(kvm);
				kvm_mmu_invalidate_start(kvm);
				found = true;
			}

			flush |= kvm_zap_attributes(kvm, iter.slot, start, end,
						    attributes);
		}
	}

	if (flush)
		kvm_flush_remote_tlbs(kvm);
	if (found)
		KVM_MMU_UNLOCK(kvm);

	return found;
}

static void kvm_end_attributes_change(struct kvm *kvm)
{
	KVM_MMU_LOCK(kvm);
	kvm_mmu_invalidate_end(kvm);
	KVM_MMU_UNLOCK(kvm);
}

/* Set the attributes of gfns [@start, @end).  Nothing changes on failure. */
static int kvm_set_mem_attributes(struct kvm *kvm, gfn_t start, gfn_t end,
				  unsigned long attributes)
{
	struct gmem_state_change change;
	bool zapped;
	int r;

	trace_kvm_vm_set_mem_attributes(start, end, attributes);

	guard(mutex)(&kvm->slots_lock);

	/* The attributes of in-place memory are set through its file. */
	if (kvm_gmem_owns_attributes(kvm, start, end))
		return -EINVAL;

	if (gmem_state_range_is(&kvm->mem_attributes, start, end, attributes))
		return 0;

	r = gmem_state_prepare(&kvm->mem_attributes, &change, start, end, attributes);
	if (r)
		return r;

	zapped = kvm_start_attributes_change(kvm, start, end, attributes);
	gmem_state_commit(&kvm->mem_attributes, &change);
	if (zapped)
		kvm_end_attributes_change(kvm);

	return 0;
}

/*
 * KVM_SET_MEMORY_ATTRIBUTES.  Takes slots_lock, may sleep.  Returns 0, or
 *   -EINVAL	malformed, unknown attributes, or an in-place slot in the range
 *   -ENOMEM	nothing has changed
 *   -EINTR	killed, nothing has changed
 */
int kvm_vm_ioctl_set_mem_attributes(struct kvm *kvm,
				    const struct kvm_memory_attributes *attrs)
{
	gfn_t start, end;

	/* The map's index is an unsigned long, and so is the attributes' type. */
	BUILD_BUG_ON(sizeof(attrs->attributes) != sizeof(unsigned long));

	/* No flags are defined yet. */
	if (attrs->flags)
		return -EINVAL;
	if (attrs->attributes & ~kvm_supported_mem_attributes(kvm))
		return -EINVAL;
	if (!attrs->size || attrs->address + attrs->size < attrs->address)
		return -EINVAL;
	if (!PAGE_ALIGNED(attrs->address) || !PAGE_ALIGNED(attrs->size))
		return -EINVAL;

	start = attrs->address >> PAGE_SHIFT;
	end = (attrs->address + attrs->size) >> PAGE_SHIFT;

	return kvm_set_mem_attributes(kvm, start, end, attrs->attributes);
}
