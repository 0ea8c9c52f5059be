/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef __ARM64_KVM_NVHE_GMEM_H__
#define __ARM64_KVM_NVHE_GMEM_H__

#include <nvhe/pkvm.h>

int pkvm_start_request(struct pkvm_hyp_vcpu *hyp_vcpu, u64 gfn, enum kvm_gmem_request request);
void pkvm_finish_request(struct pkvm_hyp_vcpu *hyp_vcpu);
void pkvm_retract_request(struct pkvm_hyp_vcpu *hyp_vcpu);

int pkvm_call_live_pvm(pkvm_handle_t handle, u64 gfn,
		       int (*fn)(u64 gfn, struct pkvm_hyp_vm *vm));
int __pkvm_host_share_requested(u64 gfn, struct pkvm_hyp_vm *vm);
int __pkvm_host_unshare_requested(u64 gfn, struct pkvm_hyp_vm *vm);
int __pkvm_host_relinquish_requested(u64 gfn, struct pkvm_hyp_vm *vm);
int __pkvm_host_lose_page(u64 gfn, struct pkvm_hyp_vm *vm);
int __pkvm_host_take_page(u64 gfn, struct pkvm_hyp_vm *vm);
int __pkvm_host_take_pages(pkvm_handle_t handle, u64 gfn, u64 nr);
int __pkvm_host_donate_gmem(u64 pfn, u64 gfn, bool share, struct pkvm_hyp_vcpu *hyp_vcpu);

#endif /* __ARM64_KVM_NVHE_GMEM_H__ */
