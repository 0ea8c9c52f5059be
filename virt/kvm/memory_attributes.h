/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef __KVM_MEMORY_ATTRIBUTES_H__
#define __KVM_MEMORY_ATTRIBUTES_H__

#include <linux/kvm_host.h>

/* What kvm_main.c needs of memory_attributes.c; see there for the contracts. */
#ifdef CONFIG_KVM_GENERIC_MEMORY_ATTRIBUTES
void kvm_init_mem_attributes(struct kvm *kvm);
void kvm_destroy_mem_attributes(struct kvm *kvm);
u64 kvm_supported_mem_attributes(struct kvm *kvm);
int kvm_vm_ioctl_set_mem_attributes(struct kvm *kvm,
				    const struct kvm_memory_attributes *attrs);
#else
static inline void kvm_init_mem_attributes(struct kvm *kvm) {}
static inline void kvm_destroy_mem_attributes(struct kvm *kvm) {}
#endif

#endif /* __KVM_MEMORY_ATTRIBUTES_H__ */
