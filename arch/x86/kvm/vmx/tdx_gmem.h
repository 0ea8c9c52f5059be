/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef __KVM_X86_VMX_TDX_GMEM_H
#define __KVM_X86_VMX_TDX_GMEM_H

#include <linux/kvm_types.h>
#include <linux/types.h>

#include <asm/pgtable_types.h>

struct kvm;
struct kvm_mmu_page;
struct kvm_tdx_cmd;
struct kvm_vcpu;
struct page;

/*
 * Which pages of guest_memfd the TDX module owns; gmem.c has the rules.  A page
 * changes hands with its S-EPT entry, i.e. with mmu_lock held.
 */
void tdx_gmem_page_given(struct kvm *kvm, kvm_pfn_t pfn);
void tdx_gmem_page_returned(struct kvm *kvm, kvm_pfn_t pfn);
bool tdx_gmem_page_is_given(kvm_pfn_t pfn);

/* The argument of tdx_gmem_post_populate(). */
struct tdx_gmem_post_populate_arg {
	struct kvm_vcpu *vcpu;
	__u32 flags;
};

#if IS_ENABLED(CONFIG_KUNIT)
int tdx_sept_set_private_spte(struct kvm *kvm, gfn_t gfn, u64 old_spte,
			      u64 new_spte, enum pg_level level);
void tdx_sept_free_private_spt(struct kvm *kvm, struct kvm_mmu_page *sp);
int tdx_gmem_post_populate(struct kvm *kvm, gfn_t gfn, kvm_pfn_t pfn,
			   struct page *src_page, void *_arg);
int tdx_td_finalize(struct kvm *kvm, struct kvm_tdx_cmd *cmd);
bool tdx_can_add_in_place(struct kvm *kvm, gpa_t gpa);
#endif

#endif /* __KVM_X86_VMX_TDX_GMEM_H */
