// SPDX-License-Identifier: GPL-2.0-only
/*
 * What guest_memfd has to know about the types of x86 VMs; see kvm_gmem.h.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/kvm_gmem.h>
#include <linux/kvm_host.h>

#include "mmu.h"
#include "x86.h"

#define GMEM_CONTENT_ALL	(KVM_SET_MEMORY_ATTRIBUTES2_ZERO |	\
				 KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE |	\
				 KVM_SET_MEMORY_ATTRIBUTES2_DISCARD)

/*
 * Software-protected VMs: "private" is what KVM makes of it, and the memory is
 * the host's in either state.
 */
static void sw_protected_gmem_content(struct kvm *kvm, bool to_private,
				      struct kvm_gmem_content *content)
{
	content->allowed = GMEM_CONTENT_ALL;
	content->dflt = KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE;
}

static const struct kvm_gmem_ops sw_protected_gmem_ops = {
	.create_flags	= GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED |
			  GUEST_MEMFD_FLAG_ZERO,
	.attributes	= KVM_MEMORY_ATTRIBUTE_PRIVATE,
	.zap_on_convert	= true,
	.aops		= &kvm_gmem_default_aops,
	.content	= sw_protected_gmem_content,
};

/*
 * Hardware-protected VMs, SEV-SNP and TDX: a file holds private pages only, be it
 * mmap-able or not, and the VM's attributes tell which half of a slot is live.
 */
#ifdef CONFIG_HAVE_KVM_ARCH_GMEM_CONVERT
static int vendor_gmem_make_private(struct kvm *kvm, gfn_t gfn, kvm_pfn_t pfn, int order)
{
	return kvm_x86_call(gmem_make_private)(kvm, gfn, pfn, (kvm_pfn_t)1 << order);
}
#else
#define vendor_gmem_make_private	NULL
#endif

#ifdef CONFIG_HAVE_KVM_ARCH_GMEM_RECLAIM
static void vendor_gmem_free_folio(struct folio *folio)
{
	kvm_x86_call(gmem_make_shared)(folio_pfn(folio), folio_nr_pages(folio));
}
#else
#define vendor_gmem_free_folio		NULL
#endif

#ifdef CONFIG_HAVE_KVM_ARCH_GMEM_INVALIDATE
void kvm_arch_gmem_invalidate_range(struct kvm *kvm, struct kvm_gfn_range *range)
{
	kvm_x86_call(gmem_invalidate_range)(kvm, range);
}
#define vendor_gmem_invalidate		kvm_arch_gmem_invalidate_range
#else
#define vendor_gmem_invalidate		NULL
#endif

static const struct address_space_operations vendor_gmem_aops =
	KVM_GMEM_AOPS(vendor_gmem_free_folio);

static const struct kvm_gmem_ops vendor_gmem_ops = {
	.create_flags	= GUEST_MEMFD_FLAG_MMAP,
	.zap_on_convert	= true,
	.aops		= &vendor_gmem_aops,
	.make_private	= vendor_gmem_make_private,
	.invalidate	= vendor_gmem_invalidate,
};

const struct kvm_gmem_ops *kvm_arch_gmem_ops(struct kvm *kvm)
{
	unsigned long type = KVM_X86_SW_PROTECTED_VM;

	if (kvm)
		type = kvm->arch.vm_type;
	else if (!(kvm_caps.supported_vm_types & BIT(type)))
		return &kvm_gmem_default_ops;

	if (type == KVM_X86_SW_PROTECTED_VM)
		return &sw_protected_gmem_ops;

	return kvm_arch_has_private_mem(kvm) ? &vendor_gmem_ops : &kvm_gmem_default_ops;
}
