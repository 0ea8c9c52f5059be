/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef __KVM_X86_VMX_TDX_PLATFORM_H
#define __KVM_X86_VMX_TDX_PLATFORM_H

#include <linux/kvm_types.h>

#include <asm/tdx.h>

struct kvm;
struct kvm_vcpu;

/*
 * What the code that moves pages in and out of a TD stands on: the SEAMCALLs of
 * the secure EPT, of the pages behind it and of the TD's end, and two services of
 * KVM without which the former make no sense.  There is one table per VM, so that a test can
 * put a model of the TDX module beneath a VM of its own, and no other VM of the
 * host ever notices.
 *
 * The SEAMCALLs have the arguments and the status of the tdh_*() of the same
 * name, see <asm/tdx.h>.
 */
struct tdx_platform_ops {
	u64 (*page_add)(struct tdx_td *td, u64 gpa, kvm_pfn_t pfn,
			struct page *source, u64 *ext_err1, u64 *ext_err2);
	u64 (*page_aug)(struct tdx_td *td, u64 gpa, enum pg_level level,
			kvm_pfn_t pfn, u64 *ext_err1, u64 *ext_err2);
	u64 (*sept_add)(struct tdx_td *td, u64 gpa, enum pg_level level,
			struct page *page, u64 *ext_err1, u64 *ext_err2);

	u64 (*mr_extend)(struct tdx_td *td, u64 gpa, u64 *ext_err1, u64 *ext_err2);
	u64 (*mr_finalize)(struct tdx_td *td);

	u64 (*range_block)(struct tdx_td *td, u64 gpa, enum pg_level level,
			   u64 *ext_err1, u64 *ext_err2);
	u64 (*track)(struct tdx_td *td);
	u64 (*page_remove)(struct tdx_td *td, u64 gpa, enum pg_level level,
			   u64 *ext_err1, u64 *ext_err2);

	u64 (*page_wbinvd_hkid)(u64 hkid, kvm_pfn_t pfn);
	u64 (*page_wbinvd_tdr)(struct tdx_td *td);
	u64 (*page_reclaim)(struct page *page, u64 *tdx_pt, u64 *tdx_owner, u64 *tdx_size);

	/* What ends a TD, in this order; the first runs with interrupts disabled. */
	u64 (*vp_flush)(struct tdx_vp *vp);
	u64 (*mng_vpflushdone)(struct tdx_td *td);
	u64 (*phymem_cache_wb)(bool resume);
	u64 (*mng_key_freeid)(struct tdx_td *td);
	void (*guest_keyid_free)(unsigned int keyid);

	/* Does nothing unless the CPU has the partial-write erratum. */
	void (*quirk_reset_paddr)(unsigned long base, unsigned long size);

	/* Force all vCPUs out of the guest, and wait until they are. */
	void (*kick_vcpus)(struct kvm *kvm);

	/* Map a page that is being populated; ends in tdx_sept_map_leaf_spte(). */
	int (*map_private_pfn)(struct kvm_vcpu *vcpu, gfn_t gfn, kvm_pfn_t pfn);
};

/* The TDX module and KVM themselves. */
extern const struct tdx_platform_ops tdx_platform_ops;

#endif /* __KVM_X86_VMX_TDX_PLATFORM_H */
