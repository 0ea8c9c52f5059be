// SPDX-License-Identifier: GPL-2.0-only
/**
 * DOC: TDX
 *
 * A private page isn't the TDX module's as such.  It becomes so when it enters
 * the secure EPT, by PAGE.ADD before the TD is finalised and by PAGE.AUG after,
 * and comes back when the entry is removed and the caches of the TD's key are
 * written back.  As zapping the guest precedes each conversion and each punch,
 * the module has given back a page by the time that the hooks below see it,
 * unless it has refused to.
 *
 * PG_checked, which page caches may use as they like, tells a page that the
 * module has.  It is set and cleared with mmu_lock held, together with the S-EPT
 * entry.  guest_memfd looks at it after the zap: it has the page for itself, no fault
 * maps the page anew.
 * A page that is still marked then is one for which BLOCK, REMOVE or WBINVD has
 * failed.  Its VM is bugged, and the page must not meet the allocator, not even
 * when the VM is gone: the page's next user would corrupt the TD's memory, get a
 * machine check, or both.  Only when the TD is torn down while the page is still in
 * the file, as at the end of a VMM, does the module get another chance.
 */
#include <linux/kvm_gmem.h>
#include <linux/kvm_host.h>

#include "tdx_gmem.h"
#include "x86_ops.h"

/*
 * The module has taken the page.  Mark it up to date, or KVM would zero it under
 * the TD at the next use, as an AUGmented page isn't zeroed before: the guest cannot
 * access it until it accepts it, and that is when the module zeroes it.
 */
void tdx_gmem_page_given(struct kvm *kvm, kvm_pfn_t pfn)
{
	struct folio *folio = pfn_folio(pfn);

	lockdep_assert_held(&kvm->mmu_lock);

	folio_set_checked(folio);
	folio_mark_uptodate(folio);
}

/*
 * The module has given the page back, full of ciphertext.  If the page stays in
 * the file, it is zeroed before its next use, be it by a user or by an ADD that takes
 * the bytes of the page itself; AUG doesn't look at them.
 */
void tdx_gmem_page_returned(struct kvm *kvm, kvm_pfn_t pfn)
{
	struct folio *folio = pfn_folio(pfn);

	lockdep_assert_held_write(&kvm->mmu_lock);

	folio_clear_uptodate(folio);
	folio_clear_checked(folio);
}

bool tdx_gmem_page_is_given(kvm_pfn_t pfn)
{
	return folio_test_checked(pfn_folio(pfn));
}

/*
 * To private the bytes are undefined, as the guest gets zeros when it accepts the
 * page.  The exception is the initial image: until the TD is finalised, a page may
 * be ADDed with the bytes that are in it.
 *
 * To shared the bytes need to be zeros only if the module never had the page, and
 * are undefined otherwise.  Zeros are as good as any undefined bytes, so don't ask
 * for the page's history; what the module has had isn't up to date and is zeroed
 * when it is touched, if ever.
 */
static void tdx_gmem_content(struct kvm *kvm, bool to_private,
			     struct kvm_gmem_content *content)
{
	content->allowed = KVM_SET_MEMORY_ATTRIBUTES2_DISCARD;
	content->dflt = 0;

	if (!to_private) {
		content->allowed |= KVM_SET_MEMORY_ATTRIBUTES2_ZERO;
		content->dflt = KVM_SET_MEMORY_ATTRIBUTES2_ZERO;
	} else if (!READ_ONCE(kvm->arch.pre_fault_allowed)) {
		content->allowed |= KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE;
	}
}

static bool tdx_gmem_make_shared(kvm_pfn_t pfn, int order)
{
	return !tdx_gmem_page_is_given(pfn);
}

static void tdx_gmem_free_folio(struct folio *folio)
{
	if (folio_test_checked(folio))
		kvm_gmem_leak_folio(folio);
}

static const struct address_space_operations tdx_gmem_aops =
	KVM_GMEM_AOPS(tdx_gmem_free_folio);

/* Pages are ADDed, AUGmented and removed one by one, hence folios of order 0. */
const struct kvm_gmem_ops tdx_gmem_ops = {
	.create_flags	= GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED,
	.attributes	= KVM_MEMORY_ATTRIBUTE_PRIVATE,
	.max_order	= 0,
	.zap_on_convert	= true,
	.zeroes_private	= true,
	.aops		= &tdx_gmem_aops,
	.content	= tdx_gmem_content,
	.make_shared	= tdx_gmem_make_shared,
};
