// SPDX-License-Identifier: GPL-2.0-only
/*
 * guest_memfd, requests of the guest: what is done to its memory only if it asks.
 */

/**
 * DOC: Requests of the guest
 *
 * A guest asks for pages to change sides by a hypercall, which ends KVM_RUN and tells user
 * space.  As long as the vCPU waits in that exit a request is open: user space may do to
 * these pages what it may not do otherwise.  In a protected VM of arm64 that is any
 * conversion of a page that the guest has; in a file with GUEST_MEMFD_FLAG_GUEST_CONTENT
 * it is one that keeps the bytes.
 *
 * A request names a direction and a range of gfns.  A vCPU has at most one, and opens it
 * by its own exit.  It is closed when the vCPU runs again, on x86 by any KVM_RUN, also one
 * with immediate_exit; when the vCPU is reset; and when the memslot goes that the pages are
 * in, or its file: what is bound there later is not what the guest has asked for.
 *
 * A conversion that finds a request open relies on it to its end: whoever closes it waits
 * for conversions of the pages that are under way.  So when the guest goes on, what it has
 * asked for has been done, or will not be.
 */
#include <linux/file.h>
#include <linux/kvm_host.h>
#include <linux/spinlock.h>

#include "gmem_internal.h"

/**
 * kvm_gmem_open_request() - the guest asks for pages to change sides
 * @vcpu: the vCPU, of the calling task; it is about to exit to user space
 * @what: the direction
 * @gfn: the first page
 * @nr: how many pages
 *
 * Context: kvm->srcu is held for read.
 * Return: False, and nothing is requested, unless all of them are in one slot on an
 * in-place file.
 */
bool kvm_gmem_open_request(struct kvm_vcpu *vcpu, enum kvm_gmem_request what, gfn_t gfn,
			   u64 nr)
{
	struct kvm_gmem_open_request *request = &vcpu->gmem_request;
	struct kvm_memory_slot *slot = gfn_to_memslot(vcpu->kvm, gfn);

	if (!slot || nr > slot->base_gfn + slot->npages - gfn)
		return false;

	/* Pairs with kvm_gmem_cancel_requests(): what is not in place any more is cancelled. */
	guard(spinlock)(&request->lock);
	if (!kvm_memslot_is_in_place(slot))
		return false;

	request->gfn = gfn;
	request->nr = nr;
	WRITE_ONCE(request->what, what);
	return true;
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gmem_open_request);

/**
 * kvm_gmem_is_requested() - does a vCPU wait for exactly these pages to change sides?
 * @kvm: the VM
 * @what: the direction
 * @gfn: the first page
 * @nr: how many pages
 *
 * Context: Any task context.  For a conversion of the pages "yes" is stable, as it holds
 * change_lock; see kvm_gmem_close_request().
 */
bool kvm_gmem_is_requested(struct kvm *kvm, enum kvm_gmem_request what, gfn_t gfn, u64 nr)
{
	struct kvm_gmem_open_request *request;
	struct kvm_vcpu *vcpu;
	unsigned long i;

	kvm_for_each_vcpu(i, vcpu, kvm) {
		request = &vcpu->gmem_request;

		guard(spinlock)(&request->lock);
		if (request->what == what && request->gfn == gfn && request->nr == nr)
			return true;
	}

	return false;
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gmem_is_requested);

/*
 * Wait until no conversion of @gfn of @slot is under way that may have seen a request
 * which the caller has closed before: such a one has claimed @gfn, or holds
 * invalidate_lock.  kvm->srcu is held for read, or the slot stays for another reason; may
 * sleep.
 */
void kvm_gmem_sync_state(struct kvm_memory_slot *slot, gfn_t gfn)
{
	pgoff_t index = kvm_gmem_index(slot, gfn);
	struct inode *inode;

	/* If the file is closed there is no one to wait for. */
	struct file *file __free(fput) = kvm_gmem_get_file(slot);
	if (!file)
		return;

	inode = file_inode(file);
	kvm_gmem_lock_range(inode, index, index + 1, TASK_UNINTERRUPTIBLE);
	kvm_gmem_unlock_range(inode);
}

/**
 * kvm_gmem_close_request() - the vCPU waits no longer
 * @vcpu: the vCPU, of the calling task
 *
 * When this returns no conversion relies on the request any more.
 *
 * Context: May sleep.  Neither change_lock nor invalidate_lock of a file is held.
 * Return: What was requested; KVM_GMEM_REQUEST_NONE if nothing was.
 */
enum kvm_gmem_request kvm_gmem_close_request(struct kvm_vcpu *vcpu)
{
	struct kvm_gmem_open_request *request = &vcpu->gmem_request;
	struct kvm_memory_slot *slot;
	enum kvm_gmem_request what;

	/* Nobody else opens it. */
	if (READ_ONCE(request->what) == KVM_GMEM_REQUEST_NONE)
		return KVM_GMEM_REQUEST_NONE;

	scoped_guard(spinlock, &request->lock) {
		what = request->what;
		WRITE_ONCE(request->what, KVM_GMEM_REQUEST_NONE);
	}

	guard(srcu)(&vcpu->kvm->srcu);

	/* If the slot went meanwhile, then whoever has deleted it has waited. */
	slot = gfn_to_memslot(vcpu->kvm, request->gfn);
	if (slot && kvm_slot_has_gmem(slot))
		kvm_gmem_sync_state(slot, request->gfn);
	return what;
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gmem_close_request);

/*
 * @slot, or its file, goes, and is not in place any more: close the requests for what it
 * has shown.  No conversion relies on one, as the caller holds the locks of
 * kvm_gmem_lock_bindings().
 */
void kvm_gmem_cancel_requests(struct kvm *kvm, const struct kvm_memory_slot *slot)
{
	struct kvm_gmem_open_request *request;
	struct kvm_vcpu *vcpu;
	unsigned long i;

	lockdep_assert_held(&kvm->slots_lock);
	WARN_ON_ONCE(kvm_memslot_is_in_place(slot));

	kvm_for_each_vcpu(i, vcpu, kvm) {
		request = &vcpu->gmem_request;

		guard(spinlock)(&request->lock);
		if (request->what != KVM_GMEM_REQUEST_NONE &&
		    request->gfn < slot->base_gfn + slot->npages &&
		    slot->base_gfn < request->gfn + request->nr)
			WRITE_ONCE(request->what, KVM_GMEM_REQUEST_NONE);
	}
}
