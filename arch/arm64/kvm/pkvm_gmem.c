// SPDX-License-Identifier: GPL-2.0-only
/**
 * DOC: Protected VMs of arm64
 *
 * The host's side is in pkvm_gmem.c, that of EL2 in hyp/nvhe/gmem.c.
 *
 * Three must agree on what a page of an in-place file is: the file's state, the host's
 * record of the stage-2 (struct pkvm_mapping), and EL2:
 *
 * ======= ======= =============================== ================================
 * file    mapping EL2: guest's entry / host       reached by
 * ======= ======= =============================== ================================
 * private none    NOPAGE, POISON / OWNED          creation, conversion, teardown
 * private owned   OWNED / NOPAGE                  the guest's fault
 * shared  shared  SHARED_OWNED / BORROWED         the guest's MEM_SHARE
 * shared  none    NOPAGE, POISON / OWNED          creation, conversion, teardown
 * ======= ======= =============================== ================================
 *
 * No other combination is ever to be seen with invalidate_lock held, but by whoever has
 * the page for itself, see struct kvm_gmem_ops.  The guest maps private pages only: what
 * is shared in the file but not by the guest would be read by the host behind the guest's
 * back.  So the guest's fault on such a page is left to user space, to convert the page
 * or not.
 *
 * A mapping is ownership.  It doesn't follow the zaps of the MMU, but is installed and
 * removed by hand:
 *
 * ======= ===========================================================================
 * install guest fault, MEM_SHARE of an absent page; invalidate_lock is held for read,
 *         the folio locked
 * move    conversion, while the guest has a request open for it; exclusively
 * remove  punch, DISCARD, the end of the file; exclusively
 * remove  MEM_RELINQUISH, when the vCPU goes on; with mmu_lock alone
 * remove  the end of the VM; without invalidate_lock, as no one runs any more, but with
 *         stage2_lock held, which reclaim_range takes too
 * ======= ===========================================================================
 *
 * While a folio is donated or shared it carries its mapping in folio->private, so that
 * it cannot be freed by mistake.  The tree of mappings is guarded by mmu_lock.
 *
 * A vCPU that exits for MEM_SHARE, MEM_UNSHARE or MEM_RELINQUISH has a request open at
 * EL2, which allows for the change.  The host mirrors it as a request of its own, see
 * "Requests of the guest", to know before the point of no return whether EL2 will agree.
 * The vCPU's thread opens the mirror after EL2's request and closes it before.
 */
#include <linux/arm-smccc.h>
#include <linux/kvm_gmem.h>
#include <linux/kvm_host.h>

#include <asm/kvm_emulate.h>
#include <asm/kvm_mmu.h>
#include <asm/kvm_pkvm.h>

#include <kvm/arm_hypercalls.h>

/* Pages that the guest shares are in a tree of their own, so that either side is found. */
static struct rb_root_cached *pkvm_mappings_of(struct kvm *kvm, bool shared)
{
	return shared ? &kvm->arch.pkvm.shared_mappings : &kvm->arch.mmu.pgt->pkvm_mappings;
}

static struct pkvm_mapping *pkvm_first_on_side(struct kvm *kvm, gfn_t start, gfn_t end,
					       bool shared)
{
	lockdep_assert_held(&kvm->mmu_lock);

	if (!kvm->arch.mmu.pgt || start >= end)
		return NULL;

	return pkvm_mapping_iter_first(pkvm_mappings_of(kvm, shared), gfn_to_gpa(start),
				       gfn_to_gpa(end) - 1);
}

static struct pkvm_mapping *pkvm_first_mapping(struct kvm *kvm, gfn_t start, gfn_t end)
{
	struct pkvm_mapping *owned = pkvm_first_on_side(kvm, start, end, false);
	struct pkvm_mapping *shared = pkvm_first_on_side(kvm, start, end, true);

	if (!owned || !shared)
		return owned ?: shared;

	return owned->gfn < shared->gfn ? owned : shared;
}

/* On the same side as @m. */
static struct pkvm_mapping *pkvm_next_mapping(struct pkvm_mapping *m, gfn_t end)
{
	return pkvm_mapping_iter_next(m, gfn_to_gpa(m->gfn), gfn_to_gpa(end) - 1);
}

static void pkvm_remove_mapping(struct kvm *kvm, struct pkvm_mapping *m)
{
	lockdep_assert_held_write(&kvm->mmu_lock);

	pkvm_mapping_remove(m, pkvm_mappings_of(kvm, m->shared));
}

/* In folio->private of a page that EL2 keeps from everybody. */
#define PKVM_FOLIO_LOST		((void *)2ul)

/* Does the host know of an error in the page? */
bool pkvm_mapping_is_broken(struct pkvm_mapping *mapping)
{
	return PageHWPoison(pfn_to_page(mapping->pfn));
}

/*
 * The page is broken.  The guest loses it, and EL2 doesn't look at it: an error while EL2
 * clears it would be the end of the machine.  Nobody else can run into it either,
 * unless it is the host's already, as the guest shared it or the kernel has crushed
 * it.  What remains to be done is to forget @mapping.
 */
void pkvm_lose_page(struct kvm *kvm, struct pkvm_mapping *mapping)
{
	int ret;

	/* Before a vCPU can run into it. */
	WRITE_ONCE(kvm->arch.pkvm.has_poison, true);

	ret = kvm_call_hyp_nvhe(__pkvm_host_lose_page, kvm->arch.pkvm.handle, mapping->gfn);
	WARN_ON_ONCE(ret && ret != -EHWPOISON);

	if (!mapping->gmem)
		return;

	if (ret || mapping->shared)
		pkvm_gmem_page_is_back(mapping);
	else
		folio_change_private(pfn_folio(mapping->pfn), PKVM_FOLIO_LOST);
}

/* Opt-in of user space. */

static bool pkvm_has_gmem_slot(struct kvm *kvm)
{
	struct kvm_memory_slot *slot;
	int bkt;

	lockdep_assert_held(&kvm->slots_lock);

	kvm_for_each_memslot(slot, bkt, kvm_memslots(kvm)) {
		if (kvm_slot_has_gmem(slot))
			return true;
	}

	return false;
}

int pkvm_enable_exit_hypercalls(struct kvm *kvm, struct kvm_enable_cap *cap)
{
	if (!kvm_vm_is_protected(kvm))
		return -EINVAL;

	if (cap->args[0] & ~(u64)PKVM_EXIT_HYPERCALL_MASK || cap->args[1] ||
	    cap->args[2] || cap->args[3])
		return -EINVAL;

	guard(mutex)(&kvm->lock);

	/* EL2 has a copy from the first run on. */
	if (kvm->created_vcpus)
		return -EBUSY;

	guard(mutex)(&kvm->slots_lock);

	/*
	 * Were UNSHARE taken back behind the back of a slot that was bound with it, nobody
	 * would look for users of a page before the guest gets it for itself.
	 */
	if (cap->args[0] != kvm->arch.pkvm.exit_hypercalls && pkvm_has_gmem_slot(kvm))
		return -EINVAL;

	kvm->arch.pkvm.exit_hypercalls = cap->args[0];
	return 0;
}

/* May memory of @kvm be in a guest_memfd?  It remains so while there is a slot. */
bool pkvm_gmem_is_allowed(struct kvm *kvm)
{
	lockdep_assert_held(&kvm->slots_lock);

	return (kvm->arch.pkvm.exit_hypercalls & PKVM_EXIT_HYPERCALL_GMEM) ==
	       PKVM_EXIT_HYPERCALL_GMEM;
}

/* Requests of the guest. */

static enum kvm_gmem_request pkvm_parse_request(struct kvm_vcpu *vcpu)
{
	u32 exits = vcpu->kvm->arch.pkvm.exit_hypercalls;

	switch (smccc_get_function(vcpu)) {
	case ARM_SMCCC_VENDOR_HYP_KVM_MEM_SHARE_FUNC_ID:
		if (exits & KVM_ARM_EXIT_HYPERCALL_MEM_SHARE)
			return KVM_GMEM_REQUEST_SHARE;
		break;
	case ARM_SMCCC_VENDOR_HYP_KVM_MEM_UNSHARE_FUNC_ID:
		if (exits & KVM_ARM_EXIT_HYPERCALL_MEM_UNSHARE)
			return KVM_GMEM_REQUEST_UNSHARE;
		break;
	case ARM_SMCCC_VENDOR_HYP_KVM_MEM_RELINQUISH_FUNC_ID:
		if (exits & KVM_ARM_EXIT_HYPERCALL_MEM_RELINQUISH)
			return KVM_GMEM_REQUEST_RELINQUISH;
		break;
	}

	return KVM_GMEM_REQUEST_NONE;
}

/*
 * Another vCPU may be faster to donate the page, or to share it: then EL2 says so when
 * the vCPU is entered, and the failure to donate it once more doesn't matter.
 */
static int pkvm_share_anon(struct kvm_vcpu *vcpu, struct kvm_memory_slot *slot, gfn_t gfn)
{
	pkvm_handle_t handle = vcpu->kvm->arch.pkvm.handle;
	int ret, err;

	ret = kvm_call_hyp_nvhe(__pkvm_host_share_requested, handle, gfn);
	if (ret != -ENOENT)
		return 0;

	err = pkvm_donate_anon(vcpu, slot, gfn);
	ret = kvm_call_hyp_nvhe(__pkvm_host_share_requested, handle, gfn);

	return ret == -ENOENT ? err : 0;
}

/*
 * Take the page at @gfn if the guest wants to be rid of it, and whoever has punched a
 * hole has not taken it by now.  A page of a file stays there, as one that the guest
 * has never had; what userspace has mapped it has again.
 */
static void pkvm_relinquish(struct kvm *kvm, gfn_t gfn)
{
	struct pkvm_mapping *m;

	scoped_guard(write_lock, &kvm->mmu_lock) {
		m = pkvm_first_mapping(kvm, gfn, gfn + 1);
		if (!m)
			return;

		if (pkvm_mapping_is_broken(m))
			pkvm_lose_page(kvm, m);
		else if (kvm_call_hyp_nvhe(__pkvm_host_relinquish_requested,
					   kvm->arch.pkvm.handle, gfn))
			return;
		else if (m->gmem)
			pkvm_gmem_page_is_back(m);

		pkvm_remove_mapping(kvm, m);
	}

	if (!m->gmem)
		pkvm_anon_page_is_back(kvm, m);
	kfree(m);
}

/*
 * The memory isn't a guest_memfd's: pages are shared, unshared and relinquished as if
 * user space had not asked for exits.  Returns 1 to enter the guest, which gets its
 * answer by EL2, or an error for user space.
 */
static int pkvm_handle_anon_request(struct kvm_vcpu *vcpu, struct kvm_memory_slot *slot,
				    enum kvm_gmem_request request, gfn_t gfn)
{
	pkvm_handle_t handle = vcpu->kvm->arch.pkvm.handle;
	int ret = 0;

	if (!slot)
		return 1;

	if (request == KVM_GMEM_REQUEST_SHARE)
		ret = pkvm_share_anon(vcpu, slot, gfn);
	else if (request == KVM_GMEM_REQUEST_UNSHARE)
		kvm_call_hyp_nvhe(__pkvm_host_unshare_requested, handle, gfn);
	else
		pkvm_relinquish(vcpu->kvm, gfn);

	return ret ?: 1;
}

static void pkvm_prepare_request_exit(struct kvm_vcpu *vcpu, u32 func_id, gfn_t gfn)
{
	struct kvm_run *run = vcpu->run;

	run->exit_reason = KVM_EXIT_HYPERCALL;
	run->hypercall = (typeof(run->hypercall)) {
		.nr	 = func_id,
		.args[0] = gfn_to_gpa(gfn),
		.args[1] = PAGE_SIZE,
	};
}

/*
 * Does the vCPU exit because of a request that it has opened at EL2?  Then *@ret tells
 * what to do: enter the guest if positive, exit to user space if not.
 *
 * The guest has failed unless EL2 tells it otherwise: it won't if the request is
 * withdrawn.
 */
bool pkvm_handle_request(struct kvm_vcpu *vcpu, int *ret)
{
	u32 func_id = smccc_get_function(vcpu);
	struct kvm_memory_slot *slot;
	enum kvm_gmem_request request;
	gfn_t gfn;

	if (!vcpu_is_protected(vcpu))
		return false;

	request = pkvm_parse_request(vcpu);
	if (request == KVM_GMEM_REQUEST_NONE)
		return false;

	gfn = gpa_to_gfn(smccc_get_arg1(vcpu));
	smccc_set_retval(vcpu, SMCCC_RET_INVALID_PARAMETER, 0, 0, 0);

	guard(srcu)(&vcpu->kvm->srcu);

	slot = gfn_to_memslot(vcpu->kvm, gfn);
	if (!slot || !kvm_memslot_is_gmem_only(slot)) {
		*ret = pkvm_handle_anon_request(vcpu, slot, request, gfn);
		return true;
	}

	/* There is nothing to convert when the file is closed. */
	if (!kvm_gmem_open_request(vcpu, request, gfn, 1)) {
		*ret = 1;
		return true;
	}

	pkvm_prepare_request_exit(vcpu, func_id, gfn);
	*ret = 0;
	return true;
}

/*
 * Close the mirror of the request, before EL2's request is closed that conversions rely on
 * which have seen the mirror open.  Then do what cannot be declined.  Called by whoever
 * owns the vCPU.
 *
 * The gfn still shows the file that the request was opened for: slots of a VM that runs
 * don't go, see kvm_arch_memslots_are_fixed(), and a slot that changes its flags keeps its
 * file.
 */
static enum kvm_gmem_request pkvm_close_mirror(struct kvm_vcpu *vcpu)
{
	enum kvm_gmem_request request = kvm_gmem_close_request(vcpu);

	if (request == KVM_GMEM_REQUEST_RELINQUISH)
		pkvm_relinquish(vcpu->kvm, vcpu->gmem_request.gfn);

	return request;
}

/*
 * Nothing more is to be done at the vCPU's request: it is reset, or will be.  EL2 can't
 * be convinced of it behind the back of a CPU that has the vCPU loaded: the caller
 * owns it.
 */
void pkvm_cancel_request(struct kvm_vcpu *vcpu)
{
	if (!vcpu_is_protected(vcpu) || !vcpu_get_flag(vcpu, VCPU_PKVM_FINALIZED))
		return;

	WARN_ON_ONCE(kvm_call_hyp_nvhe(__pkvm_vcpu_cancel_request,
				       vcpu->kvm->arch.pkvm.handle, vcpu->vcpu_idx));
}

/*
 * User space has other plans for the vCPU than to let it go on.  EL2 may have a request
 * open without the mirror: of a KVM_RUN that a signal has ended before the guest was
 * entered, or for memory that isn't a guest_memfd's.
 */
void pkvm_withdraw_request(struct kvm_vcpu *vcpu)
{
	pkvm_close_mirror(vcpu);
	pkvm_cancel_request(vcpu);
}

/* Mappings. */

struct pkvm_gmem_page {
	struct kvm_vcpu *vcpu;
	gfn_t gfn;
	bool shared;
};

static int pkvm_gmem_topup(struct kvm_vcpu *vcpu)
{
	return topup_hyp_memcache(&vcpu->arch.pkvm_memcache,
				  kvm_mmu_cache_min_pages(vcpu->arch.hw_mmu));
}

/* Give the page to the guest.  -EEXIST if it has one there. */
static int pkvm_gmem_install(void *arg, kvm_pfn_t pfn)
{
	struct pkvm_gmem_page *page = arg;
	struct kvm_vcpu *vcpu = page->vcpu;
	struct kvm *kvm = vcpu->kvm;
	struct pkvm_mapping *m;
	int ret;

	guard(write_lock)(&kvm->mmu_lock);

	if (pkvm_first_mapping(kvm, page->gfn, page->gfn + 1))
		return -EEXIST;

	ret = kvm_call_hyp_nvhe(__pkvm_host_donate_gmem, pfn, page->gfn, page->shared);
	if (ret)
		return ret;

	m = vcpu->arch.pkvm_memcache.mapping;
	vcpu->arch.pkvm_memcache.mapping = NULL;

	*m = (struct pkvm_mapping) {
		.gfn = page->gfn,
		.pfn = pfn,
		.nr_pages = 1,
		.gmem = true,
		.shared = page->shared,
	};
	pkvm_mapping_insert(m, pkvm_mappings_of(kvm, page->shared));
	folio_change_private(pfn_folio(pfn), m);
	return 0;
}

/* The host has its page back, and nothing keeps it from leaving the file. */
void pkvm_gmem_page_is_back(struct pkvm_mapping *mapping)
{
	folio_change_private(pfn_folio(mapping->pfn), NULL);
}

/*
 * The page is shared in the file.  If the guest has asked for that, and the vCPU which
 * has done so isn't back yet, this one does what is left to be done.
 */
static int pkvm_gmem_share_early(struct pkvm_gmem_page *page, struct kvm_memory_slot *slot)
{
	struct kvm *kvm = page->vcpu->kvm;
	int ret;

	if (!kvm_gmem_is_requested(kvm, KVM_GMEM_REQUEST_SHARE, page->gfn, 1))
		return -EFAULT;

	page->shared = true;
	ret = kvm_gmem_map_page(kvm, slot, page->gfn, false, pkvm_gmem_install, page);

	/* The request is closed by now, or done by another vCPU, or the page private. */
	return ret == -EPERM || ret == -EEXIST || ret == -EACCES ? 0 : ret;
}

/* Was the page taken away for good that the vCPU has run into?  Negative if unclear. */
static int pkvm_gmem_in_poison_fault(void)
{
	return kvm_call_hyp_nvhe(__pkvm_vcpu_in_poison_fault);
}

static int pkvm_gmem_fault(struct kvm_vcpu *vcpu, struct kvm_memory_slot *slot, gfn_t gfn)
{
	struct pkvm_gmem_page page = {
		.vcpu = vcpu,
		.gfn = gfn,
	};
	int ret, poisoned;

	/* Don't allocate a page that the guest won't get. */
	if (READ_ONCE(vcpu->kvm->arch.pkvm.has_poison) && pkvm_gmem_in_poison_fault() > 0)
		return -EHWPOISON;

	ret = kvm_gmem_map_page(vcpu->kvm, slot, gfn, true, pkvm_gmem_install, &page);
	if (ret == -EACCES)
		return pkvm_gmem_share_early(&page, slot);
	if (ret != -EEXIST && ret != -EPERM)
		return ret;

	/* The page is there or was taken, a moment ago; or the kernel has crushed it. */
	poisoned = pkvm_gmem_in_poison_fault();
	if (poisoned > 0)
		return -EHWPOISON;
	if (ret == -EPERM)
		return ret;

	return poisoned ? -EFAULT : 0;
}

/*
 * Fault of the guest, at an address where it has no page.  Returns 0 if it has one now,
 * or was about to get one by another vCPU, otherwise an error for user space, which
 * is told about in kvm_run:
 *
 *   -EFAULT	 the page is shared in the file, but not by the guest; or it is missing;
 *		 or the file is closed
 *   -EHWPOISON	 the page was taken away from the guest, or is lost to a memory error
 *   -ENOMEM
 *   -EPERM	 EL2 won't have the page, whatever user space converts: it isn't memory
 *		 that EL2 knows of, or is shared with firmware
 */
int pkvm_gmem_abort(struct kvm_vcpu *vcpu, struct kvm_memory_slot *slot)
{
	gfn_t gfn = gpa_to_gfn(kvm_vcpu_get_fault_ipa(vcpu));
	int ret;

	ret = pkvm_gmem_topup(vcpu);
	if (!ret)
		ret = pkvm_gmem_fault(vcpu, slot, gfn);
	if (!ret || ret == -EPERM)
		return ret;

	return kvm_gmem_prepare_fault_exit(vcpu, gfn, 0, kvm_is_write_fault(vcpu),
					   kvm_vcpu_trap_is_exec_fault(vcpu), true, ret);
}

static bool pkvm_gmem_is_mapped(struct kvm *kvm, gfn_t gfn)
{
	guard(read_lock)(&kvm->mmu_lock);
	return pkvm_first_mapping(kvm, gfn, gfn + 1);
}

/*
 * The vCPU runs again: what it has asked for has been done, or won't be.  What is left
 * to do if it wants to share a page that it hasn't touched yet is to give it that
 * page, if the file has it as shared by now.  If that fails EL2 tells the guest.
 *
 * The vCPU is loaded.
 */
void pkvm_close_request(struct kvm_vcpu *vcpu)
{
	struct pkvm_gmem_page page = {
		.vcpu = vcpu,
		.gfn = vcpu->gmem_request.gfn,
		.shared = true,
	};

	if (pkvm_close_mirror(vcpu) != KVM_GMEM_REQUEST_SHARE)
		return;

	guard(srcu)(&vcpu->kvm->srcu);

	if (pkvm_gmem_is_mapped(vcpu->kvm, page.gfn))
		return;

	if (!pkvm_gmem_topup(vcpu))
		kvm_gmem_map_page(vcpu->kvm, gfn_to_memslot(vcpu->kvm, page.gfn), page.gfn,
				  false, pkvm_gmem_install, &page);
}

/* The VM type's operations. */

static void pkvm_gmem_content(struct kvm *kvm, bool to_private,
			      struct kvm_gmem_content *content)
{
	content->allowed = KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE |
			   KVM_SET_MEMORY_ATTRIBUTES2_DISCARD;
	if (!to_private)
		content->allowed |= KVM_SET_MEMORY_ATTRIBUTES2_ZERO;
	content->dflt = KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE;
}

/* A page that the guest has changes sides at its request only. */
static int pkvm_gmem_may_convert(struct kvm *kvm, struct kvm_memory_slot *slot,
				 struct kvm_gfn_range *range, bool to_private)
{
	enum kvm_gmem_request request;
	struct pkvm_mapping *m;

	request = to_private ? KVM_GMEM_REQUEST_UNSHARE : KVM_GMEM_REQUEST_SHARE;

	guard(read_lock)(&kvm->mmu_lock);

	/* No more than there are requests, or it ends at one that there isn't. */
	for (m = pkvm_first_on_side(kvm, range->start, range->end, to_private); m;
	     m = pkvm_next_mapping(m, range->end)) {
		if (!kvm_gmem_is_requested(kvm, request, m->gfn, 1))
			return -EPERM;
	}

	return 0;
}

/* The kernel itself has touched the page since, and made EL2 take it from the guest. */
static void pkvm_gmem_forget_crushed(struct kvm *kvm, struct pkvm_mapping *m)
{
	lockdep_assert_held_write(&kvm->mmu_lock);

	WRITE_ONCE(kvm->arch.pkvm.has_poison, true);
	pkvm_remove_mapping(kvm, m);
	pkvm_gmem_page_is_back(m);
	kfree(m);
}

/*
 * Of what pkvm_gmem_may_convert() has let pass, EL2 refuses only what the guest has lost
 * in the meantime: then there is nothing to move.
 */
static int pkvm_gmem_move_page(struct kvm *kvm, struct pkvm_mapping *m)
{
	pkvm_handle_t handle = kvm->arch.pkvm.handle;
	int ret;

	if (m->shared)
		ret = kvm_call_hyp_nvhe(__pkvm_host_unshare_requested, handle, m->gfn);
	else
		ret = kvm_call_hyp_nvhe(__pkvm_host_share_requested, handle, m->gfn);

	if (ret == -EHWPOISON) {
		pkvm_gmem_forget_crushed(kvm, m);
		return 0;
	}

	if (KVM_BUG_ON(ret, kvm))
		return ret;

	pkvm_remove_mapping(kvm, m);
	m->shared = !m->shared;
	pkvm_mapping_insert(m, pkvm_mappings_of(kvm, m->shared));
	return 0;
}

static void pkvm_gmem_move_range(struct kvm *kvm, struct kvm_memory_slot *slot,
				 struct kvm_gfn_range *range, bool to_private)
{
	struct pkvm_mapping *m;

	guard(write_lock)(&kvm->mmu_lock);

	do {
		m = pkvm_first_on_side(kvm, range->start, range->end, to_private);
	} while (m && !pkvm_gmem_move_page(kvm, m));
}

static void pkvm_gmem_lose_page(struct kvm *kvm, struct pkvm_mapping *m)
{
	lockdep_assert_held_write(&kvm->mmu_lock);

	pkvm_lose_page(kvm, m);
	pkvm_remove_mapping(kvm, m);
	kfree(m);
}

/* How many pages with neighbouring addresses has the guest from @m on? */
static int pkvm_gmem_count_run(struct pkvm_mapping *m, gfn_t end)
{
	gfn_t gfn = m->gfn;
	int nr = 1;

	while (nr < PKVM_TAKE_PAGES) {
		m = pkvm_next_mapping(m, end);
		if (!m || m->gfn != gfn + nr || pkvm_mapping_is_broken(m))
			break;
		nr++;
	}

	return nr;
}

/* The first @nr mappings from @m on, pages that the host has back. */
static void pkvm_gmem_forget_run(struct kvm *kvm, struct pkvm_mapping *m, gfn_t end, int nr)
{
	struct pkvm_mapping *next;

	lockdep_assert_held_write(&kvm->mmu_lock);

	for (; nr--; m = next) {
		next = nr ? pkvm_next_mapping(m, end) : NULL;
		pkvm_remove_mapping(kvm, m);
		pkvm_gmem_page_is_back(m);
		kfree(m);
	}
}

/* Take back the first pages that the guest has from *@gfn on, and advance that. */
static int pkvm_gmem_reclaim_next(struct kvm *kvm, gfn_t *gfn, gfn_t end)
{
	struct pkvm_mapping *m;
	int nr;

	lockdep_assert_held(&kvm->arch.pkvm.stage2_lock);

	guard(write_lock)(&kvm->mmu_lock);

	m = pkvm_first_mapping(kvm, *gfn, end);
	if (!m) {
		*gfn = end;
		return 0;
	}

	/* Before a vCPU can run into it. */
	WRITE_ONCE(kvm->arch.pkvm.has_poison, true);

	*gfn = m->gfn + 1;
	if (pkvm_mapping_is_broken(m)) {
		pkvm_gmem_lose_page(kvm, m);
		return 0;
	}

	nr = kvm_call_hyp_nvhe(__pkvm_host_take_pages, kvm->arch.pkvm.handle, m->gfn,
			       pkvm_gmem_count_run(m, end));
	if (nr < 0)
		return nr;

	*gfn = m->gfn + nr;
	pkvm_gmem_forget_run(kvm, m, end, nr);
	return 0;
}

static int pkvm_gmem_reclaim_range(struct kvm *kvm, struct kvm_memory_slot *slot,
				   struct kvm_gfn_range *range)
{
	gfn_t gfn = range->start;
	int r, ret = 0;

	/*
	 * The file may be closed or punched by another process while this one, which
	 * owned the VM, exits: its pages are either still here, or all back.
	 */
	guard(mutex)(&kvm->arch.pkvm.stage2_lock);

	while (gfn < range->end) {
		r = pkvm_gmem_reclaim_next(kvm, &gfn, range->end);
		if (r)
			ret = r;
		cond_resched();
	}

	return ret;
}

/*
 * KVM zaps @range.  It can't, in a protected VM: whoever wants the pages of a file has to
 * take them back first.  Memory failure doesn't, and wants the guest to lose what is
 * broken; nor does the MMU notifier, when user space loses its mapping.
 */
void pkvm_gmem_zap(struct kvm *kvm, struct kvm_gfn_range *range)
{
	gfn_t gfn = range->start;
	struct pkvm_mapping *m;

	lockdep_assert_held_write(&kvm->mmu_lock);

	if (!(range->attr_filter & KVM_FILTER_PRIVATE))
		return;

	while ((m = pkvm_first_mapping(kvm, gfn, range->end))) {
		gfn = m->gfn + 1;
		if (pkvm_mapping_is_broken(m))
			pkvm_gmem_lose_page(kvm, m);
		else
			WARN_ON_ONCE(m->gmem);
	}
}

/* Only pages that EL2 has returned are freed, be the VM alive or not. */
static void pkvm_gmem_free_folio(struct folio *folio)
{
	void *private = folio_get_private(folio);

	WARN_ON_ONCE(private && private != PKVM_FOLIO_LOST);
	if (private)
		kvm_gmem_leak_folio(folio);
}

static const struct address_space_operations pkvm_gmem_aops = KVM_GMEM_AOPS(pkvm_gmem_free_folio);

static const struct kvm_gmem_ops pkvm_gmem_ops = {
	.create_flags	= GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED,
	.attributes	= KVM_MEMORY_ATTRIBUTE_PRIVATE,
	.aops		= &pkvm_gmem_aops,
	.content	= pkvm_gmem_content,
	.may_convert	= pkvm_gmem_may_convert,
	.move_range	= pkvm_gmem_move_range,
	.reclaim_range	= pkvm_gmem_reclaim_range,
};

/* Without it KVM cleans data caches by addresses of the direct map. */
bool kvm_arch_gmem_can_be_out(void)
{
	return cpus_have_final_cap(ARM64_HAS_STAGE2_FWB);
}

const struct kvm_gmem_ops *kvm_arch_gmem_ops(struct kvm *kvm)
{
	bool is_protected = kvm ? kvm_vm_is_protected(kvm) : is_protected_kvm_enabled();

	return is_protected ? &pkvm_gmem_ops : &kvm_gmem_default_ops;
}
