// SPDX-License-Identifier: GPL-2.0-only
/*
 * The platform of real TDs; see tdx_platform.h.
 */
#include <linux/kvm_host.h>

#include "mmu.h"
#include "tdx_platform.h"

static void tdx_kick_vcpus(struct kvm *kvm)
{
	kvm_make_all_cpus_request(kvm, KVM_REQ_OUTSIDE_GUEST_MODE);
}

const struct tdx_platform_ops tdx_platform_ops = {
	.page_add		= tdh_mem_page_add,
	.page_aug		= tdh_mem_page_aug,
	.sept_add		= tdh_mem_sept_add,
	.mr_extend		= tdh_mr_extend,
	.mr_finalize		= tdh_mr_finalize,
	.range_block		= tdh_mem_range_block,
	.track			= tdh_mem_track,
	.page_remove		= tdh_mem_page_remove,
	.page_wbinvd_hkid	= tdh_phymem_page_wbinvd_hkid,
	.page_wbinvd_tdr	= tdh_phymem_page_wbinvd_tdr,
	.page_reclaim		= tdh_phymem_page_reclaim,
	.vp_flush		= tdh_vp_flush,
	.mng_vpflushdone	= tdh_mng_vpflushdone,
	.phymem_cache_wb	= tdh_phymem_cache_wb,
	.mng_key_freeid		= tdh_mng_key_freeid,
	.guest_keyid_free	= tdx_guest_keyid_free,
	.quirk_reset_paddr	= tdx_quirk_reset_paddr,
	.kick_vcpus		= tdx_kick_vcpus,
	.map_private_pfn	= kvm_tdp_mmu_map_private_pfn,
};
