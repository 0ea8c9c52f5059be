/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Helpers for tests of guest_memfd that is filled on demand: by KVM_MEM_USERFAULT, and by
 * userfaultfd on mappings of the file.
 */
#ifndef SELFTEST_KVM_GMEM_USERFAULT_H
#define SELFTEST_KVM_GMEM_USERFAULT_H

#include "gmem_util.h"

#include <linux/userfaultfd.h>
#include <sys/syscall.h>

/* ---- Slots ---- */

static inline struct kvm_userspace_memory_region2 region_of(struct gmem *g, u32 flags,
							    void *bitmap)
{
	return (struct kvm_userspace_memory_region2) {
		.slot = GMEM_SLOT,
		.flags = KVM_MEM_GUEST_MEMFD | flags,
		.guest_phys_addr = GMEM_GPA,
		.memory_size = g->size,
		.userspace_addr = (uintptr_t)g->mem,
		.guest_memfd = g->fd,
		.userfault_bitmap = (uintptr_t)bitmap,
	};
}

static inline int set_region(struct kvm_vm *vm, struct kvm_userspace_memory_region2 region)
{
	return ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION2, &region) ? errno : 0;
}

static inline void set_userfault(struct gmem *g, u32 flags, void *bitmap)
{
	TEST_ASSERT_EQ(set_region(g->vm, region_of(g, flags, bitmap)), 0);
}

/* ---- Bits of a bitmap ---- */

#define BITS		(8 * sizeof(long))

static inline void set_bit_of(unsigned long *map, u64 bit)
{
	__atomic_or_fetch(&map[bit / BITS], 1ul << (bit % BITS), __ATOMIC_SEQ_CST);
}

static inline void clear_bit_of(unsigned long *map, u64 bit)
{
	__atomic_and_fetch(&map[bit / BITS], ~(1ul << (bit % BITS)), __ATOMIC_SEQ_CST);
}

/* ---- What is present, and what the guest gets ---- */

static inline u64 nr_present(struct kvm_vm *vm)
{
	return vm_get_stat(vm, gmem_pages_shared) + vm_get_stat(vm, gmem_pages_private);
}

/*
 * Run a prepared command that needs what is missing: @want_size bytes at @want_gpa, on the
 * side that @want_private says.
 */
#define gmem_expect_missing(vcpu, want_gpa, want_size, want_private)		\
do {										\
	u64 __flags = KVM_MEMORY_EXIT_FLAG_USERFAULT;				\
	u64 __gpa = (want_gpa), __size = (want_size);				\
	struct kvm_vcpu *__v = (vcpu);						\
										\
	if (want_private)							\
		__flags |= KVM_MEMORY_EXIT_FLAG_PRIVATE;			\
	gmem_guest_expect_fault(__v, EFAULT, __gpa);				\
	TEST_ASSERT_EQ(__v->run->memory_fault.flags, __flags);			\
	TEST_ASSERT_EQ(__v->run->memory_fault.size, __size);			\
} while (0)

/* The guest forgets what it was about to do, and waits for its next command. */
static inline void start_anew(struct kvm_vcpu *vcpu)
{
#ifdef __x86_64__
	struct kvm_regs regs;

	/* As if it had been called. */
	vcpu_regs_get(vcpu, &regs);
	regs.rsp = (regs.rsp & ~15ull) - 8;
	vcpu_regs_set(vcpu, &regs);
#endif
	vcpu_arch_set_entry_point(vcpu, gmem_guest_server);
	vcpu_args_set(vcpu, 1, vcpu->id);
}

/* ---- userfaultfd ---- */

static inline int open_uffd(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	int fd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	/* An ordinary user may not have one that stops the kernel. */
	__TEST_REQUIRE(fd >= 0 || errno != EPERM, "No userfaultfd that stops the kernel");
	TEST_ASSERT(fd >= 0, "userfaultfd() failed, errno %d", errno);
	TEST_ASSERT(!ioctl(fd, UFFDIO_API, &api), "UFFDIO_API failed, errno %d", errno);
	return fd;
}

static inline int uffd_register(int fd, struct gmem *g, u64 mode, u64 *ioctls)
{
	struct uffdio_register reg = {
		.range = { .start = (uintptr_t)g->mem, .len = g->size },
		.mode = mode,
	};
	int r = ioctl(fd, UFFDIO_REGISTER, &reg) ? errno : 0;

	if (ioctls)
		*ioctls = reg.ioctls;
	return r;
}

static inline int open_registered(struct gmem *g, u64 mode)
{
	int fd = open_uffd();

	TEST_ASSERT_EQ(uffd_register(fd, g, mode, NULL), 0);
	return fd;
}

static inline int uffd_copy(int fd, struct gmem *g, u64 page, void *src)
{
	struct uffdio_copy copy = {
		.dst = (uintptr_t)g->mem + page * PAGE_SIZE,
		.src = (uintptr_t)src,
		.len = PAGE_SIZE,
	};

	return ioctl(fd, UFFDIO_COPY, &copy) ? errno : 0;
}

static inline int uffd_zero(int fd, struct gmem *g, u64 page)
{
	struct uffdio_zeropage zero = {
		.range = { .start = (uintptr_t)g->mem + page * PAGE_SIZE, .len = PAGE_SIZE },
	};

	return ioctl(fd, UFFDIO_ZEROPAGE, &zero) ? errno : 0;
}

static inline int uffd_continue(int fd, struct gmem *g, u64 page)
{
	struct uffdio_continue cont = {
		.range = { .start = (uintptr_t)g->mem + page * PAGE_SIZE, .len = PAGE_SIZE },
	};

	return ioctl(fd, UFFDIO_CONTINUE, &cont) ? errno : 0;
}

static inline void *new_source(u64 val)
{
	u64 *src = kvm_mmap(PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);

	gmem_fill_words(src, val);
	return src;
}

#endif /* SELFTEST_KVM_GMEM_USERFAULT_H */
