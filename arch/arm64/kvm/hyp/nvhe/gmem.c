// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory of protected VMs that the host keeps in a guest_memfd: the host converts
 * it at the guest's request, and may take it back while the guest is alive.
 *
 * For a page of the guest the states are those of mem_protect.c.  What leads from
 * one to the other here, with what is in the guest's entry:
 *
 *		      donate (guest fault)
 *	NOPAGE -------------------------------> OWNED
 *	  |  ^				  |  ^	  |
 *	  |  |	  take, RELINQUISH	  |  |	  | take: scrub
 *	  |  +----------------------------+  |	  +-------> POISON
 *	  |  |		    SHARE: share  |  | UNSHARE:     for good
 *	  |  | take, RELINQUISH		  v  | unshare		^
 *	  |  +---------------------- SHARED_OWNED --------------+
 *	  +------------------------------->		   take
 *	    SHARE: donate and share
 *
 * A name in capitals in front of a transition is a request of the guest that must
 * be open for it.  A request is what a vCPU asks for in a hypercall, as
 * {request, gfn} in the hyp vCPU.  It is opened by the hypercall, which exits to
 * the host instead of returning to the guest, and closed when the vCPU is entered
 * next; in between the host may do what is asked, or not.  The guest is told by the
 * state in which the page is by then, not by what the host claims.  Host-initiated
 * sharing with a protected VM does not exist.
 *
 * RELINQUISH is the exception.  The host must do it before it enters the vCPU, and can do
 * it once: the page that the guest gave up is gone, whatever is in its place by
 * the time the guest hears of it.  To take that the host has to be asked anew.
 *
 * The host may withdraw a request, and has to if it resets the vCPU: nothing is done
 * at the request any more, and the guest hears that it has failed, unless the vCPU
 * doesn't go on where it has asked, so that the register for the answer has
 * another meaning by now.
 *
 * Locking: vm_table_lock, the host's lock, the guest's lock.  Requests are guarded
 * by the guest's lock.  The calls of the host name the VM by its handle: they need
 * no loaded vCPU and allocate nothing in the guest's page table, except for
 * donations.
 */
#include <kvm/arm_hypercalls.h>

#include <linux/list.h>

#include <nvhe/gmem.h>
#include <nvhe/mem_protect.h>

static bool has_request(struct pkvm_hyp_vm *vm, u64 gfn, enum kvm_gmem_request request)
{
	struct pkvm_hyp_vcpu *hyp_vcpu;

	hyp_assert_lock_held(&vm->lock);

	list_for_each_entry(hyp_vcpu, &vm->requests, request_node) {
		if (hyp_vcpu->request == request && hyp_vcpu->request_gfn == gfn)
			return true;
	}

	return false;
}

/* An open request is on the list, from where the host's calls find it. */
static void set_request_state(struct pkvm_hyp_vm *vm, struct pkvm_hyp_vcpu *hyp_vcpu,
			      enum pkvm_request_state state)
{
	hyp_assert_lock_held(&vm->lock);

	if (hyp_vcpu->request_state == PKVM_REQUEST_OPEN)
		list_del(&hyp_vcpu->request_node);
	if (state == PKVM_REQUEST_OPEN)
		list_add_tail(&hyp_vcpu->request_node, &vm->requests);
	hyp_vcpu->request_state = state;
}

/* Whoever has given up the page at @gfn is rid of it: the next one is another. */
static void meet_relinquish(struct pkvm_hyp_vm *vm, u64 gfn)
{
	struct pkvm_hyp_vcpu *hyp_vcpu, *next;

	list_for_each_entry_safe(hyp_vcpu, next, &vm->requests, request_node) {
		if (hyp_vcpu->request == KVM_GMEM_REQUEST_RELINQUISH &&
		    hyp_vcpu->request_gfn == gfn)
			set_request_state(vm, hyp_vcpu, PKVM_REQUEST_MET);
	}
}

static int get_state(struct pkvm_hyp_vm *vm, u64 gfn, enum pkvm_page_state *state)
{
	u64 ipa = hyp_pfn_to_phys(gfn);
	kvm_pte_t pte;
	int ret;

	hyp_assert_lock_held(&vm->lock);

	ret = kvm_pgtable_get_leaf(&vm->pgt, ipa, &pte, NULL);
	if (!ret)
		*state = guest_get_page_state(pte, ipa);

	return ret;
}

/* Can what the guest asks for lead anywhere?  -EALREADY if it is so without the host. */
static int check_request(struct pkvm_hyp_vm *vm, u64 gfn, enum kvm_gmem_request request)
{
	enum pkvm_page_state state;
	int ret;

	ret = get_state(vm, gfn, &state);
	if (ret)
		return ret;

	switch (request) {
	case KVM_GMEM_REQUEST_SHARE:
		return state == PKVM_PAGE_OWNED || state == PKVM_NOPAGE ? 0 : -EPERM;
	case KVM_GMEM_REQUEST_UNSHARE:
		return state == PKVM_PAGE_SHARED_OWNED ? 0 : -EPERM;
	case KVM_GMEM_REQUEST_RELINQUISH:
		return state == PKVM_PAGE_OWNED || state == PKVM_PAGE_SHARED_OWNED ? 0 : -EALREADY;
	default:
		return -EINVAL;
	}
}

/*
 * The guest asks for @request.  Returns 0 if it is open now, and the host to be told,
 * -EALREADY if there is nothing to be done.
 */
int pkvm_start_request(struct pkvm_hyp_vcpu *hyp_vcpu, u64 gfn, enum kvm_gmem_request request)
{
	struct pkvm_hyp_vm *vm = pkvm_hyp_vcpu_to_hyp_vm(hyp_vcpu);
	int ret;

	guest_lock_component(vm);

	/* The last one was closed when the vCPU was entered. */
	WARN_ON(hyp_vcpu->request_state != PKVM_REQUEST_CLOSED);

	ret = check_request(vm, gfn, request);
	if (!ret) {
		hyp_vcpu->request = request;
		hyp_vcpu->request_gfn = gfn;
		hyp_vcpu->request_pc = read_sysreg_el2(SYS_ELR);
		hyp_vcpu->request_is_withdrawn = false;
		set_request_state(vm, hyp_vcpu, PKVM_REQUEST_OPEN);
	}

	guest_unlock_component(vm);
	return ret;
}

static bool request_is_met(struct pkvm_hyp_vm *vm, struct pkvm_hyp_vcpu *hyp_vcpu)
{
	enum pkvm_page_state state;

	if (hyp_vcpu->request_state != PKVM_REQUEST_OPEN)
		return hyp_vcpu->request_state == PKVM_REQUEST_MET;

	if (get_state(vm, hyp_vcpu->request_gfn, &state))
		return false;

	switch (hyp_vcpu->request) {
	case KVM_GMEM_REQUEST_SHARE:
		return state == PKVM_PAGE_SHARED_OWNED;
	case KVM_GMEM_REQUEST_UNSHARE:
		return state == PKVM_PAGE_OWNED;
	case KVM_GMEM_REQUEST_RELINQUISH:
		/* Lost by other means. */
		return state == PKVM_POISON;
	default:
		return false;
	}
}

/*
 * The vCPU, which is loaded, is about to be entered: close its request, if there is
 * one, and let the guest know how it went.
 */
void pkvm_finish_request(struct pkvm_hyp_vcpu *hyp_vcpu)
{
	struct pkvm_hyp_vm *vm = pkvm_hyp_vcpu_to_hyp_vm(hyp_vcpu);
	bool is_met;

	/* Only this CPU opens or closes a request of this vCPU now. */
	if (hyp_vcpu->request_state == PKVM_REQUEST_CLOSED)
		return;

	guest_lock_component(vm);
	is_met = request_is_met(vm, hyp_vcpu);
	set_request_state(vm, hyp_vcpu, PKVM_REQUEST_CLOSED);
	guest_unlock_component(vm);

	if (hyp_vcpu->request_is_withdrawn &&
	    *vcpu_pc(&hyp_vcpu->vcpu) != hyp_vcpu->request_pc)
		return;

	smccc_set_retval(&hyp_vcpu->vcpu,
			 is_met ? SMCCC_RET_SUCCESS : SMCCC_RET_INVALID_PARAMETER, 0, 0, 0);
}

/* Withdraw the request, if there is one, of a vCPU that no other CPU has loaded. */
void pkvm_retract_request(struct pkvm_hyp_vcpu *hyp_vcpu)
{
	struct pkvm_hyp_vm *vm = pkvm_hyp_vcpu_to_hyp_vm(hyp_vcpu);

	guest_lock_component(vm);
	if (hyp_vcpu->request_state == PKVM_REQUEST_OPEN)
		set_request_state(vm, hyp_vcpu, PKVM_REQUEST_FAILED);
	hyp_vcpu->request_is_withdrawn = true;
	guest_unlock_component(vm);
}

/*
 * A protected VM that isn't being torn down, or NULL.  It cannot begin to be while
 * there is a reference to it.
 */
static struct pkvm_hyp_vm *get_live_pvm(pkvm_handle_t handle)
{
	struct pkvm_hyp_vm *vm = get_pkvm_hyp_vm(handle);

	if (!vm)
		return NULL;

	if (pkvm_hyp_vm_is_protected(vm) && !vm->kvm.arch.pkvm.is_dying)
		return vm;

	put_pkvm_hyp_vm(vm);
	return NULL;
}

int pkvm_call_live_pvm(pkvm_handle_t handle, u64 gfn,
		       int (*fn)(u64 gfn, struct pkvm_hyp_vm *vm))
{
	struct pkvm_hyp_vm *vm = get_live_pvm(handle);
	int ret;

	if (!vm)
		return -EINVAL;

	ret = fn(gfn, vm);
	put_pkvm_hyp_vm(vm);
	return ret;
}

/*
 * Share a page that the guest owns and has asked to share.  -ENOENT if it has no
 * page, -EPERM if it hasn't asked.
 */
int __pkvm_host_share_requested(u64 gfn, struct pkvm_hyp_vm *vm)
{
	int ret = -EPERM;

	host_lock_component();
	guest_lock_component(vm);

	if (has_request(vm, gfn, KVM_GMEM_REQUEST_SHARE))
		ret = guest_share_host_locked(vm, gfn);

	guest_unlock_component(vm);
	host_unlock_component();
	return ret;
}

/* Make a page exclusively the guest's again that it has asked to unshare. */
int __pkvm_host_unshare_requested(u64 gfn, struct pkvm_hyp_vm *vm)
{
	int ret = -EPERM;

	host_lock_component();
	guest_lock_component(vm);

	if (has_request(vm, gfn, KVM_GMEM_REQUEST_UNSHARE))
		ret = guest_unshare_host_locked(vm, gfn);

	guest_unlock_component(vm);
	host_unlock_component();
	return ret;
}

/*
 * Give the guest a page of a file.  If it doesn't have the page yet but has asked to
 * share it, donate and share it at once.
 *
 * Not if the guest can share and unshare without the host being told, whose users of
 * the page would go on using it.
 */
int __pkvm_host_donate_gmem(u64 pfn, u64 gfn, bool share, struct pkvm_hyp_vcpu *hyp_vcpu)
{
	struct pkvm_hyp_vm *vm = pkvm_hyp_vcpu_to_hyp_vm(hyp_vcpu);
	u32 exits = vm->kvm.arch.pkvm.exit_hypercalls;
	int ret = -EPERM;

	if ((exits & PKVM_EXIT_HYPERCALL_GMEM) != PKVM_EXIT_HYPERCALL_GMEM)
		return -EPERM;

	host_lock_component();
	guest_lock_component(vm);

	if (share && !has_request(vm, gfn, KVM_GMEM_REQUEST_SHARE))
		goto unlock;

	ret = host_donate_guest_locked(pfn, gfn, hyp_vcpu);
	if (ret || !share)
		goto unlock;

	/* The guest has just got the page, hence can share it. */
	WARN_ON(guest_share_host_locked(vm, gfn));
unlock:
	guest_unlock_component(vm);
	host_unlock_component();
	return ret;
}

/* The page that the guest owns or shares at @gfn. */
static int find_page(struct pkvm_hyp_vm *vm, u64 gfn, u64 *phys, enum pkvm_page_state *state)
{
	enum pkvm_page_state host_state;
	u64 ipa = hyp_pfn_to_phys(gfn);
	kvm_pte_t pte;
	int ret;

	hyp_assert_lock_held(&host_mmu.lock);
	hyp_assert_lock_held(&vm->lock);

	ret = get_valid_guest_pte(vm, ipa, &pte, phys);
	if (ret)
		return ret;

	*state = guest_get_page_state(pte, ipa);
	if (*state != PKVM_PAGE_OWNED && *state != PKVM_PAGE_SHARED_OWNED)
		return -EPERM;

	host_state = *state == PKVM_PAGE_OWNED ? PKVM_NOPAGE : PKVM_PAGE_SHARED_BORROWED;
	return __host_check_page_state_range(*phys, PAGE_SIZE, host_state);
}

/*
 * Take a page back from a live guest, and see to it that the guest doesn't mistake
 * another page for it: the entry is poisoned for good, unless the guest has asked to
 * be rid of the page.
 *
 * No vCPU can access the page any more when it is scrubbed, and the host can't
 * access it before.  A page that is poisoned is the host's already.
 */
static int take_page_locked(u64 gfn, struct pkvm_hyp_vm *vm)
{
	u64 phys, ipa = hyp_pfn_to_phys(gfn);
	enum pkvm_page_state state;
	int ret;

	ret = find_page(vm, gfn, &phys, &state);
	if (ret)
		return ret == -EHWPOISON ? 0 : ret;

	/* Either replaces a leaf, and needs no page table. */
	if (has_request(vm, gfn, KVM_GMEM_REQUEST_RELINQUISH))
		ret = kvm_pgtable_stage2_unmap(&vm->pgt, ipa, PAGE_SIZE);
	else
		ret = kvm_pgtable_stage2_annotate(&vm->pgt, ipa, PAGE_SIZE, NULL,
						  KVM_GUEST_INVALID_PTE_TYPE_POISONED, 0);
	if (ret)
		return ret;

	meet_relinquish(vm, gfn);

	if (state == PKVM_PAGE_OWNED)
		hyp_poison_page(phys);
	WARN_ON(host_stage2_set_owner_locked(phys, PAGE_SIZE, PKVM_ID_HOST));
	return 0;
}

int __pkvm_host_take_page(u64 gfn, struct pkvm_hyp_vm *vm)
{
	int ret;

	host_lock_component();
	guest_lock_component(vm);
	ret = take_page_locked(gfn, vm);
	guest_unlock_component(vm);
	host_unlock_component();

	return ret;
}

/* Take the page that the guest wants to be rid of.  -EPERM if it doesn't, or is. */
int __pkvm_host_relinquish_requested(u64 gfn, struct pkvm_hyp_vm *vm)
{
	int ret = -EPERM;

	host_lock_component();
	guest_lock_component(vm);

	if (has_request(vm, gfn, KVM_GMEM_REQUEST_RELINQUISH))
		ret = take_page_locked(gfn, vm);

	guest_unlock_component(vm);
	host_unlock_component();
	return ret;
}

/*
 * The frame of the page is broken, the host says: the guest loses the page, and is told
 * when it touches it.  To clear it would be to touch it, so that the host can't have
 * what the guest owned: the frame is nobody's from now on.  -EHWPOISON if the guest has
 * lost the page before.
 */
int __pkvm_host_lose_page(u64 gfn, struct pkvm_hyp_vm *vm)
{
	u64 phys, ipa = hyp_pfn_to_phys(gfn);
	enum pkvm_page_state state;
	u8 owner;
	int ret;

	host_lock_component();
	guest_lock_component(vm);

	ret = find_page(vm, gfn, &phys, &state);
	if (ret)
		goto unlock;

	ret = kvm_pgtable_stage2_annotate(&vm->pgt, ipa, PAGE_SIZE, NULL,
					  KVM_GUEST_INVALID_PTE_TYPE_POISONED, 0);
	if (ret)
		goto unlock;

	owner = state == PKVM_PAGE_OWNED ? PKVM_ID_NOBODY : PKVM_ID_HOST;
	WARN_ON(host_stage2_set_owner_locked(phys, PAGE_SIZE, owner));
unlock:
	guest_unlock_component(vm);
	host_unlock_component();

	return ret;
}

/*
 * Take up to @nr pages that follow each other.  Returns how many: fewer if there is
 * one that can't be taken, or why if that is the first.
 */
int __pkvm_host_take_pages(pkvm_handle_t handle, u64 gfn, u64 nr)
{
	struct pkvm_hyp_vm *vm;
	int ret = 0;
	u64 i;

	/* Nothing can interrupt this. */
	if (!nr || nr > PKVM_TAKE_PAGES)
		return -EINVAL;

	vm = get_live_pvm(handle);
	if (!vm)
		return -EINVAL;

	for (i = 0; i < nr; i++) {
		ret = __pkvm_host_take_page(gfn + i, vm);
		if (ret)
			break;
	}

	put_pkvm_hyp_vm(vm);
	return i ?: ret;
}
