/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef __KVM_GUEST_MEMFD_H__
#define __KVM_GUEST_MEMFD_H__

#include <linux/kvm_types.h>

/* What kvm_main.c needs of guest_memfd; see guest_memfd.c for the contracts. */
#ifdef CONFIG_KVM_GUEST_MEMFD
int kvm_gmem_init(struct module *module);
void kvm_gmem_exit(void);
int kvm_gmem_create(struct kvm *kvm, struct kvm_create_guest_memfd *args);
int kvm_gmem_check_extension(struct kvm *kvm, long cap);
bool kvm_gmem_owns_attributes(struct kvm *kvm, gfn_t start, gfn_t end);
int kvm_gmem_prepare_memory_region(struct kvm *kvm, struct kvm_memory_slot *slot,
				   unsigned int fd, uoff_t offset);
int kvm_gmem_commit_memory_region(struct kvm *kvm, struct kvm_memory_slot *slot);
void kvm_gmem_unbind(struct kvm_memory_slot *slot);
void kvm_gmem_rebind(struct kvm_memory_slot *old, struct kvm_memory_slot *new);
int kvm_gmem_set_bitmap(struct kvm *kvm, struct kvm_memory_slot *slot, u64 addr);
int kvm_gmem_check_update(const struct kvm_memory_slot *old,
			  const struct kvm_userspace_memory_region2 *mem);
int kvm_gmem_prepare_update(struct kvm_memory_slot *old, struct kvm_memory_slot *new,
			    unsigned int fd);
void kvm_gmem_commit_update(struct kvm_memory_slot *new);
#else
static inline int kvm_gmem_init(struct module *module)
{
	return 0;
}

static inline void kvm_gmem_exit(void) {}

static inline int kvm_gmem_check_extension(struct kvm *kvm, long cap)
{
	return -ENOENT;
}

static inline bool kvm_gmem_owns_attributes(struct kvm *kvm, gfn_t start, gfn_t end)
{
	return false;
}

static inline int kvm_gmem_prepare_memory_region(struct kvm *kvm,
						 struct kvm_memory_slot *slot,
						 unsigned int fd, uoff_t offset)
{
	WARN_ON_ONCE(1);
	return -EIO;
}

static inline int kvm_gmem_commit_memory_region(struct kvm *kvm,
						struct kvm_memory_slot *slot)
{
	WARN_ON_ONCE(1);
	return -EIO;
}

static inline void kvm_gmem_unbind(struct kvm_memory_slot *slot)
{
	WARN_ON_ONCE(1);
}

static inline void kvm_gmem_rebind(struct kvm_memory_slot *old,
				   struct kvm_memory_slot *new)
{
	WARN_ON_ONCE(1);
}

static inline int kvm_gmem_set_bitmap(struct kvm *kvm, struct kvm_memory_slot *slot,
				      u64 addr)
{
	WARN_ON_ONCE(1);
	return -EIO;
}

static inline int kvm_gmem_check_update(const struct kvm_memory_slot *old,
					const struct kvm_userspace_memory_region2 *mem)
{
	WARN_ON_ONCE(1);
	return -EIO;
}

static inline int kvm_gmem_prepare_update(struct kvm_memory_slot *old,
					  struct kvm_memory_slot *new, unsigned int fd)
{
	WARN_ON_ONCE(1);
	return -EIO;
}

static inline void kvm_gmem_commit_update(struct kvm_memory_slot *new)
{
	WARN_ON_ONCE(1);
}
#endif /* CONFIG_KVM_GUEST_MEMFD */

#endif /* __KVM_GUEST_MEMFD_H__ */
