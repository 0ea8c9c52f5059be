// SPDX-License-Identifier: GPL-2.0-only
/*
 * What guest_memfd has to know about the types of x86 VMs; see kvm_gmem.h.
 */
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
			  GUEST_MEMFD_FLAG_ZERO | GUEST_MEMFD_FLAG_GUEST_CONTENT |
			  KVM_GMEM_HUGE_FLAG | KVM_GMEM_NO_DIRECT_MAP_FLAG,
	.attributes	= KVM_MEMORY_ATTRIBUTE_PRIVATE,
	.max_order	= KVM_GMEM_HUGE_ORDER,
	.zap_on_convert	= true,
	.host_private	= true,
	.zap_is_lossless = true,
	.aops		= &kvm_gmem_default_aops,
	.content	= sw_protected_gmem_content,
};

const struct kvm_gmem_ops *kvm_arch_gmem_ops(struct kvm *kvm)
{
	bool is_sw_protected = kvm ? kvm->arch.vm_type == KVM_X86_SW_PROTECTED_VM :
				     kvm_caps.supported_vm_types & BIT(KVM_X86_SW_PROTECTED_VM);

	if (is_sw_protected)
		return &sw_protected_gmem_ops;

	return kvm_x86_call(gmem_ops)(kvm) ?: &kvm_gmem_default_ops;
}
