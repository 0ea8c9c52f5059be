// SPDX-License-Identifier: GPL-2.0-only
/*
 * In-place conversion of guest_memfd memory: slots, arguments, errors,
 * capabilities, the VM's own attributes, KVM's own accesses and SMM.
 */
#include <asm/kvm_para.h>

#include "apic.h"
#include "gmem_fixture.h"
#include "smm.h"

/* ---- Slots and files ---- */

/* Two files that are neighbours in the guest: only one is meant. */
GMEM_TEST(neighbouring_files)
{
	struct gmem a, b;

	gmem_new(&a, self->vm, NR, GMEM_SHARED_FILE);
	gmem_create(&b, self->vm, NR * PAGE_SIZE, GMEM_SHARED_FILE);
	gmem_bind(&b, GMEM_SLOT + 1, GMEM_GPA + NR * PAGE_SIZE);
	gmem_host_fill(&a, 0, NR, VAL);
	gmem_host_fill(&b, 0, NR, OTHER);

	gmem_to_private(&a, NR - 1, 1, GMEM_ZERO);
	gmem_assert_shared(&b, 0, NR);
	gmem_to_private(&b, 0, 1, GMEM_ZERO);
	gmem_assert_shared(&a, 0, NR - 1);
	gmem_assert_shared(&b, 1, NR - 1);

	gmem_guest_check_fill(self->vcpu, &a, 0, NR - 1, VAL);
	gmem_guest_check_zero(self->vcpu, &a, NR - 1, 1);
	gmem_guest_check_zero(self->vcpu, &b, 0, 1);
	gmem_guest_check_fill(self->vcpu, &b, 1, NR - 1, OTHER + 1);
	gmem_destroy(&b);
	gmem_destroy(&a);
}

/* One file in two slots, the halves exchanged, with a hole in between. */
GMEM_TEST(one_file_two_slots)
{
	const size_t half = NR / 2 * PAGE_SIZE;
	const gpa_t low = GMEM_GPA, high = GMEM_GPA + NR * PAGE_SIZE;
	struct gmem g, upper, lower;

	gmem_create(&g, self->vm, NR * PAGE_SIZE, GMEM_SHARED_FILE);
	vm_set_user_memory_region2(self->vm, GMEM_SLOT, KVM_MEM_GUEST_MEMFD, high,
				   half, g.mem, g.fd, 0);
	vm_set_user_memory_region2(self->vm, GMEM_SLOT + 1, KVM_MEM_GUEST_MEMFD,
				   low, half, g.mem + half, g.fd, half);
	lower = (struct gmem) { .gpa = high };
	upper = (struct gmem) { .gpa = low };

	gmem_host_fill(&g, 0, NR, VAL);
	gmem_guest_check_fill(self->vcpu, &lower, 0, NR / 2, VAL);
	gmem_guest_check_fill(self->vcpu, &upper, 0, NR / 2, VAL + NR / 2);

	gmem_to_private(&g, FIRST, COUNT, 0);
	gmem_guest_check_fill(self->vcpu, &lower, 0, NR / 2, VAL);
	gmem_guest_check_fill(self->vcpu, &upper, 0, NR / 2, VAL + NR / 2);
	gmem_guest_fill(self->vcpu, &upper, 0, NR / 2, OTHER);
	gmem_assert_private(&g, FIRST, COUNT);

	gmem_to_shared(&g, 0, NR, 0);
	gmem_host_check(&g, 0, NR / 2, VAL);
	gmem_host_check(&g, NR / 2, NR / 2, OTHER);

	vm_set_user_memory_region2(self->vm, GMEM_SLOT, 0, high, 0, NULL, -1, 0);
	vm_set_user_memory_region2(self->vm, GMEM_SLOT + 1, 0, low, 0, NULL, -1, 0);
	gmem_destroy(&g);
}

static int try_bind(struct kvm_vm *vm, u32 slot, gpa_t gpa, u64 nr, struct gmem *g,
		    u64 first)
{
	return __vm_set_user_memory_region2(vm, slot, KVM_MEM_GUEST_MEMFD, gpa,
					    nr * PAGE_SIZE, g->mem + first * PAGE_SIZE,
					    g->fd, first * PAGE_SIZE) ? errno : 0;
}

/* A page of the file has one gfn: "a binding is refused if it overlaps". */
GMEM_TEST(bind_overlap)
{
	const gpa_t other = GMEM_GPA + SZ_1G;
	struct gmem g;

	gmem_create(&g, self->vm, NR * PAGE_SIZE, GMEM_SHARED_FILE);
	TEST_ASSERT_EQ(try_bind(self->vm, 10, GMEM_GPA, NR / 2, &g, 0), 0);
	TEST_ASSERT_EQ(try_bind(self->vm, 11, other, NR / 2, &g, 0), EEXIST);
	TEST_ASSERT_EQ(try_bind(self->vm, 11, other, 1, &g, NR / 2 - 1), EEXIST);
	TEST_ASSERT_EQ(try_bind(self->vm, 11, other, NR, &g, 0), EEXIST);
	TEST_ASSERT_EQ(try_bind(self->vm, 11, other, NR, &g, 1), EINVAL);
	TEST_ASSERT_EQ(try_bind(self->vm, 11, other, NR / 2, &g, NR / 2), 0);

	/* The failures left nothing behind. */
	gmem_host_fill(&g, 0, NR, VAL);
	gmem_to_private(&g, 0, NR, 0);
	g.gpa = GMEM_GPA;
	gmem_guest_check_fill(self->vcpu, &g, 0, NR / 2, VAL);

	vm_set_user_memory_region2(self->vm, 10, 0, GMEM_GPA, 0, NULL, -1, 0);
	TEST_ASSERT_EQ(try_bind(self->vm, 10, GMEM_GPA, NR / 2, &g, 0), 0);
	gmem_guest_check_fill(self->vcpu, &g, 0, NR / 2, VAL);
	vm_set_user_memory_region2(self->vm, 10, 0, GMEM_GPA, 0, NULL, -1, 0);
	vm_set_user_memory_region2(self->vm, 11, 0, other, 0, NULL, -1, 0);
	gmem_destroy(&g);
}

/* A file belongs to the VM that made it. */
GMEM_TEST(two_vms)
{
	struct kvm_vm *other = vm_create_barebones_type(KVM_X86_SW_PROTECTED_VM);
	struct gmem g, foreign;

	gmem_new(&g, self->vm, NR, GMEM_SHARED_FILE);
	gmem_create(&foreign, other, NR * PAGE_SIZE, GMEM_SHARED_FILE);
	TEST_ASSERT_EQ(try_bind(other, GMEM_SLOT, GMEM_GPA, NR, &g, 0), EINVAL);
	TEST_ASSERT_EQ(try_bind(self->vm, GMEM_SLOT + 1, GMEM_GPA + SZ_1G, NR,
				&foreign, 0), EINVAL);

	/* Same gfns in either VM, nothing in common. */
	gmem_bind(&foreign, GMEM_SLOT, GMEM_GPA);
	gmem_host_fill(&g, 0, NR, VAL);
	gmem_host_fill(&foreign, 0, NR, OTHER);
	gmem_to_private(&foreign, 0, NR, GMEM_DISCARD);
	gmem_assert_shared(&g, 0, NR);
	gmem_host_check(&g, 0, NR, VAL);
	gmem_guest_check_fill(self->vcpu, &g, 0, NR, VAL);

	gmem_destroy(&foreign);
	kvm_vm_free(other);
	gmem_destroy(&g);
}

/* INIT_SHARED alone: state is tracked, there is just nothing to map. */
GMEM_TEST(init_shared_alone)
{
	struct gmem g;
	int i;

	gmem_new(&g, self->vm, NR, GUEST_MEMFD_FLAG_INIT_SHARED);
	TEST_ASSERT(mmap(NULL, g.size, PROT_READ, MAP_SHARED, g.fd, 0) == MAP_FAILED &&
		    errno == ENODEV, "mmap(): errno %d", errno);

	gmem_guest_fill(self->vcpu, &g, 0, NR, VAL);
	for (i = 0; i < 2; i++) {
		gmem_to_private(&g, FIRST, COUNT, 0);
		gmem_guest_check_fill(self->vcpu, &g, 0, NR, VAL);
		gmem_to_shared(&g, FIRST, COUNT, 0);
		gmem_guest_check_fill(self->vcpu, &g, 0, NR, VAL);
	}
	gmem_to_private(&g, FIRST, COUNT, GMEM_ZERO);
	gmem_guest_check_fill(self->vcpu, &g, 0, FIRST, VAL);
	gmem_guest_check_zero(self->vcpu, &g, FIRST, COUNT);

	gmem_guest_fill(self->vcpu, &g, 0, NR, OTHER);
	gmem_to_shared(&g, FIRST, COUNT, GMEM_DISCARD);
	gmem_guest_check_fill(self->vcpu, &g, 0, FIRST, OTHER);
	gmem_guest_check_zero(self->vcpu, &g, FIRST, COUNT);
	gmem_punch(&g, 0, 1);
	gmem_guest_check_zero(self->vcpu, &g, 0, 1);
	gmem_destroy(&g);
}

/* A slot without userspace_addr: the guest does not need it. */
GMEM_TEST(slot_without_user_address)
{
	struct gmem g;

	gmem_create(&g, self->vm, NR * PAGE_SIZE, GMEM_SHARED_FILE);
	g.gpa = GMEM_GPA;
	vm_set_user_memory_region2(self->vm, GMEM_SLOT, KVM_MEM_GUEST_MEMFD,
				   g.gpa, g.size, NULL, g.fd, 0);
	g.slot = GMEM_SLOT;

	gmem_host_fill(&g, 0, NR, VAL);
	gmem_guest_check_fill(self->vcpu, &g, 0, NR, VAL);
	gmem_to_private(&g, FIRST, COUNT, 0);
	gmem_guest_check_fill(self->vcpu, &g, 0, NR, VAL);
	gmem_guest_fill(self->vcpu, &g, 0, NR, OTHER);
	gmem_to_shared(&g, FIRST, COUNT, 0);
	gmem_host_check(&g, 0, NR, OTHER);
	gmem_destroy(&g);
}

/* ---- The ioctl: arguments and errors ---- */

struct bad_call {
	const char *what;
	struct kvm_memory_attributes2 attr;
};

#define BAD_SIZE	(NR * PAGE_SIZE)

static const struct bad_call bad_calls[] = {
	{ "size 0", { .offset = 0, .size = 0 } },
	{ "size 0 at the end", { .offset = BAD_SIZE, .size = 0 } },
	{ "size of a byte", { .size = 1 } },
	{ "size unaligned", { .size = PAGE_SIZE + 1 } },
	{ "size one too small", { .size = PAGE_SIZE - 1 } },
	{ "offset unaligned", { .offset = 1, .size = PAGE_SIZE } },
	{ "offset one too small", { .offset = PAGE_SIZE - 1, .size = PAGE_SIZE } },
	{ "half a page later", { .offset = PAGE_SIZE / 2, .size = PAGE_SIZE } },
	{ "offset at the end", { .offset = BAD_SIZE, .size = PAGE_SIZE } },
	{ "offset past the end", { .offset = 2 * BAD_SIZE, .size = PAGE_SIZE } },
	{ "end past the end", { .offset = BAD_SIZE - PAGE_SIZE, .size = 2 * PAGE_SIZE } },
	{ "size past the end", { .size = BAD_SIZE + PAGE_SIZE } },
	{ "overflow to 0", { .offset = PAGE_SIZE, .size = -(u64)PAGE_SIZE } },
	{ "overflow into the file", { .offset = 4 * PAGE_SIZE, .size = -(u64)PAGE_SIZE } },
	{ "offset -1 page", { .offset = -(u64)PAGE_SIZE, .size = PAGE_SIZE } },
	{ "offset -1 page, 2 pages", { .offset = -(u64)PAGE_SIZE, .size = 2 * PAGE_SIZE } },
	{ "offset INT64_MAX", { .offset = 1ull << 63, .size = PAGE_SIZE } },
	{ "size INT64_MAX", { .size = 1ull << 63 } },
	{ "attribute 0", { .size = PAGE_SIZE, .attributes = BIT(0) } },
	{ "attribute 2 with PRIVATE", { .size = PAGE_SIZE, .attributes = BIT(2) | BIT(3) } },
	{ "attribute 4", { .size = PAGE_SIZE, .attributes = BIT(4) } },
	{ "attribute 63", { .size = PAGE_SIZE, .attributes = 1ull << 63 } },
	{ "attributes ~0", { .size = PAGE_SIZE, .attributes = ~0ull } },
	{ "flag 2", { .size = PAGE_SIZE, .flags = BIT(2) } },
	{ "flag 15", { .size = PAGE_SIZE, .flags = BIT(15) } },
	{ "flag 17", { .size = PAGE_SIZE, .flags = BIT(17) } },
	{ "flag 32", { .size = PAGE_SIZE, .flags = 1ull << 32 } },
	{ "flag 63 with ZERO", { .size = PAGE_SIZE, .flags = (1ull << 63) | GMEM_ZERO } },
	{ "flags ~0", { .size = PAGE_SIZE, .flags = ~0ull } },
	{ "ZERO and PRESERVE", { .size = PAGE_SIZE, .flags = GMEM_ZERO | GMEM_PRESERVE } },
	{ "ZERO and DISCARD", { .size = PAGE_SIZE, .flags = GMEM_ZERO | GMEM_DISCARD } },
	{ "PRESERVE and DISCARD", { .size = PAGE_SIZE,
				    .flags = GMEM_PRESERVE | GMEM_DISCARD } },
	{ "all content flags", { .size = PAGE_SIZE, .flags = GMEM_ALL_CONTENT } },
	{ "reserved[0]", { .size = PAGE_SIZE, .reserved[0] = 1 } },
	{ "reserved[5]", { .size = PAGE_SIZE, .reserved[5] = 1ull << 63 } },
	{ "reserved[10]", { .size = PAGE_SIZE, .reserved[10] = 1 } },
};

static int raw_convert(int fd, struct kvm_memory_attributes2 attr)
{
	return ioctl(fd, KVM_SET_MEMORY_ATTRIBUTES2, &attr) ? errno : 0;
}

/* EINVAL for every malformed argument, either way, and nothing changes. */
GMEM_TEST(malformed)
{
	struct kvm_memory_attributes2 attr;
	struct gmem g;
	int i;

	new_mixed_file(&g, self->vm);

	for (i = 0; i < ARRAY_SIZE(bad_calls); i++) {
		attr = bad_calls[i].attr;
		TEST_ASSERT(raw_convert(g.fd, attr) == EINVAL, "To shared, %s: %s",
			    bad_calls[i].what, strerror(raw_convert(g.fd, attr)));
		attr.attributes |= GMEM_PRIVATE;
		TEST_ASSERT(raw_convert(g.fd, attr) == EINVAL, "To private, %s: %s",
			    bad_calls[i].what, strerror(raw_convert(g.fd, attr)));
	}

	assert_part(&g, true);
	gmem_guest_check_fill(self->vcpu, &g, 0, NR, VAL);
	gmem_destroy(&g);
}

/* The base checks these for the create ioctl; the new flags are part of it. */
GMEM_TEST(creation_flags)
{
	u64 want = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED |
		   GUEST_MEMFD_FLAG_ZERO;
	u64 have = vm_check_cap(self->vm, KVM_CAP_GUEST_MEMFD_FLAGS);
	struct gmem g;
	u64 flags;
	int bit;

	TEST_ASSERT((have & want) == want, "Flags of the VM type: 0x%lx", have);
	for (flags = 0; flags < 8; flags++) {
		u64 f = (flags & 3) | (flags & 4 ? GUEST_MEMFD_FLAG_ZERO : 0);

		gmem_create(&g, self->vm, PAGE_SIZE, f);
		TEST_ASSERT_EQ(__gmem_convert(g.fd, 0, PAGE_SIZE, GMEM_PRIVATE, 0, NULL), 0);
		gmem_destroy(&g);
	}

	for (bit = 0; bit < 64; bit++) {
		if (bit < 31 && (have & BIT(bit)))
			continue;
		TEST_ASSERT(__vm_create_guest_memfd(self->vm, PAGE_SIZE, 1ull << bit) == -1 &&
			    errno == EINVAL, "Creation flag %d: errno %d", bit, errno);
	}
}

/* "error_offset is not checked on input" and written "only on error". */
GMEM_TEST(structure_copied_back)
{
	struct kvm_memory_attributes2 attr, want;
	struct gmem g;
	int pipes[2];
	void *page;

	new_filled_file(&g, self->vm);
	hold_by_pipe(pipes, g.mem + 6 * PAGE_SIZE);

	attr = (struct kvm_memory_attributes2) {
		.offset = FIRST * PAGE_SIZE,
		.size = COUNT * PAGE_SIZE,
		.attributes = GMEM_PRIVATE,
		.flags = GMEM_PRESERVE,
		.error_offset = ~0ull,
	};
	want = attr;
	want.error_offset = 6 * PAGE_SIZE;
	TEST_ASSERT(ioctl(g.fd, KVM_SET_MEMORY_ATTRIBUTES2, &attr) == -1 &&
		    errno == EAGAIN, "Page 6 is held");
	TEST_ASSERT(!memcmp(&attr, &want, sizeof(attr)),
		    "Other fields changed, or error_offset is 0x%llx", attr.error_offset);
	release_pipe(pipes);

	/* Success does not write at all, not even the same bytes. */
	page = kvm_mmap(PAGE_SIZE, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS, -1);
	memcpy(page, &want, sizeof(want));
	TEST_ASSERT(!mprotect(page, PAGE_SIZE, PROT_READ), "mprotect() failed");
	gmem_to_private(&g, FIRST, COUNT, 0);
	TEST_ASSERT(!ioctl(g.fd, KVM_SET_MEMORY_ATTRIBUTES2, page),
		    "Structure in read-only memory: errno %d", errno);
	gmem_assert_private(&g, FIRST, COUNT);
	gmem_destroy(&g);
}

/* EFAULT, and the structure in the very memory that is converted. */
GMEM_TEST(structure_bad_pointer)
{
	struct kvm_memory_attributes2 *attr;
	struct gmem g;
	u8 *mem;

	gmem_new(&g, self->vm, NR, GMEM_SHARED_FILE);
	mem = kvm_mmap(2 * PAGE_SIZE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1);
	kvm_munmap(mem + PAGE_SIZE, PAGE_SIZE);

	attr = NULL;
	TEST_ASSERT(ioctl(g.fd, KVM_SET_MEMORY_ATTRIBUTES2, attr) == -1 &&
		    errno == EFAULT, "NULL: errno %d", errno);
	attr = (void *)(mem + PAGE_SIZE);
	TEST_ASSERT(ioctl(g.fd, KVM_SET_MEMORY_ATTRIBUTES2, attr) == -1 &&
		    errno == EFAULT, "Unmapped: errno %d", errno);
	attr = (void *)(mem + PAGE_SIZE - sizeof(*attr) + 8);
	TEST_ASSERT(ioctl(g.fd, KVM_SET_MEMORY_ATTRIBUTES2, attr) == -1 &&
		    errno == EFAULT, "Half unmapped: errno %d", errno);

	/* Read from a shared page that is private when the call returns. */
	attr = (void *)g.mem;
	*attr = (struct kvm_memory_attributes2) {
		.size = g.size,
		.attributes = GMEM_PRIVATE,
	};
	gmem_wait_until(!ioctl(g.fd, KVM_SET_MEMORY_ATTRIBUTES2, attr) ||
			errno != EAGAIN);
	gmem_assert_private(&g, 0, NR);
	TEST_ASSERT(ioctl(g.fd, KVM_SET_MEMORY_ATTRIBUTES2, attr) == -1 &&
		    errno == EFAULT, "In a private page: errno %d", errno);
	gmem_destroy(&g);
}

/* An error is told in a page of the range: no lock is held while copying. */
GMEM_TEST(structure_in_range)
{
	struct kvm_memory_attributes2 *attr;
	struct gmem g;
	int pipes[2];

	gmem_new(&g, self->vm, NR, GMEM_SHARED_FILE);
	hold_by_pipe(pipes, g.mem + 6 * PAGE_SIZE);
	attr = (void *)(g.mem + 5 * PAGE_SIZE);
	*attr = (struct kvm_memory_attributes2) {
		.size = g.size,
		.attributes = GMEM_PRIVATE,
		.error_offset = GMEM_SENTINEL,
	};
	TEST_ASSERT(ioctl(g.fd, KVM_SET_MEMORY_ATTRIBUTES2, attr) == -1 &&
		    errno == EAGAIN, "errno %d", errno);
	TEST_ASSERT(attr->error_offset < g.size, "error_offset 0x%llx",
		    attr->error_offset);
	gmem_assert_shared(&g, 0, NR);
	release_pipe(pipes);
	gmem_destroy(&g);
}

/* Numbers that are not the ioctl's, on this file and on others. */
GMEM_TEST(unknown_ioctls)
{
	struct kvm_memory_attributes2 attr = { .size = PAGE_SIZE };
	const unsigned long unknown[] = {
		_IO(KVMIO, 0xd2),
		_IOW(KVMIO, 0xd2, struct kvm_memory_attributes),
		_IOWR(KVMIO, 0xd2, struct kvm_memory_attributes),
		_IOWR(KVMIO, 0xd3, struct kvm_memory_attributes2),
		_IOW(KVMIO, 0xd2, struct kvm_memory_attributes2),
		KVM_SET_MEMORY_ATTRIBUTES,
		KVM_GET_API_VERSION,
		KVM_CREATE_VM,
		KVM_CHECK_EXTENSION,
	};
	struct gmem g;
	int i;

	TEST_ASSERT_EQ(KVM_SET_MEMORY_ATTRIBUTES2, 0xc080aed2ul);
	TEST_ASSERT_EQ(sizeof(attr), 128);

	gmem_new(&g, self->vm, NR, GMEM_PRIVATE_FILE);
	for (i = 0; i < ARRAY_SIZE(unknown); i++)
		TEST_ASSERT(ioctl(g.fd, unknown[i], &attr) == -1 && errno == ENOTTY,
			    "ioctl 0x%lx: errno %d", unknown[i], errno);
	gmem_assert_private(&g, 0, NR);

	TEST_ASSERT(ioctl(self->vm->fd, KVM_SET_MEMORY_ATTRIBUTES2, &attr) == -1,
		    "The VM takes the file's ioctl");
	TEST_ASSERT(ioctl(self->vcpu->fd, KVM_SET_MEMORY_ATTRIBUTES2, &attr) == -1,
		    "The vCPU takes the file's ioctl");
	gmem_destroy(&g);
}

static void child_error_order(struct child *c, struct gmem *g)
{
	TEST_ASSERT(ioctl(g->fd, KVM_SET_MEMORY_ATTRIBUTES2, NULL) == -1 &&
		    errno == EIO, "Foreign, bad pointer: errno %d", errno);
	TEST_ASSERT_EQ(__gmem_convert(g->fd, 1, 0, ~0ull, ~0ull, NULL), EIO);
}

/* EIO before ENOTTY before EFAULT before EINVAL before EAGAIN. */
GMEM_TEST(error_order)
{
	struct gmem two_backing, g;
	int pipes[2];
	struct child c;

	gmem_new(&two_backing, self->vm, NR, 0);
	TEST_ASSERT_EQ(__gmem_convert(two_backing.fd, 0, PAGE_SIZE, 0, 0, NULL), ENOTTY);
	TEST_ASSERT_EQ(__gmem_convert(two_backing.fd, 1, 0, ~0ull, ~0ull, NULL), ENOTTY);
	TEST_ASSERT(ioctl(two_backing.fd, KVM_SET_MEMORY_ATTRIBUTES2, NULL) == -1 &&
		    errno == ENOTTY, "Two backings, bad pointer: errno %d", errno);
	child_start(&c, child_error_order, &two_backing);
	child_join(&c);

	gmem_create(&g, self->vm, NR * PAGE_SIZE, GMEM_SHARED_FILE);
	gmem_bind(&g, GMEM_SLOT + 1, GMEM_GPA + SZ_1G);
	child_start(&c, child_error_order, &g);
	child_join(&c);

	hold_by_pipe(pipes, g.mem);
	TEST_ASSERT_EQ(__gmem_convert(g.fd, 0, PAGE_SIZE, GMEM_PRIVATE, BIT(5), NULL), EINVAL);
	TEST_ASSERT_EQ(__gmem_convert(g.fd, 0, g.size + PAGE_SIZE, GMEM_PRIVATE, 0, NULL),
		       EINVAL);
	expect_held(&g, 0, NR, 0, 0);
	release_pipe(pipes);
	gmem_destroy(&g);
	gmem_destroy(&two_backing);
}

/* A VM type without private memory has no state to change: EINVAL. */
GMEM_TEST(default_vm_type)
{
	struct kvm_vm *vm = vm_create_barebones();
	struct gmem g;
	int i;

	for (i = 0; i < ARRAY_SIZE(gmem_content_flags); i++) {
		gmem_create(&g, vm, NR * PAGE_SIZE, GMEM_SHARED_FILE);
		gmem_host_fill(&g, 0, NR, VAL);
		TEST_ASSERT_EQ(__gmem_convert(g.fd, 0, g.size, GMEM_PRIVATE,
					      gmem_content_flags[i], NULL), EINVAL);
		TEST_ASSERT_EQ(__gmem_convert(g.fd, 0, g.size, 0,
					      gmem_content_flags[i], NULL), EINVAL);
		gmem_host_check(&g, 0, NR, VAL);
		gmem_destroy(&g);
	}

	TEST_ASSERT_EQ(vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES), 0);
	TEST_ASSERT_EQ(vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_FLAGS_TO_PRIVATE), 0);
	TEST_ASSERT_EQ(vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_FLAGS_TO_SHARED), 0);
	kvm_vm_free(vm);
}

/* What a VMM asks before it uses any of this. */
GMEM_TEST(capabilities)
{
	struct kvm_vm *vm = self->vm;

	TEST_ASSERT_EQ(kvm_check_cap(KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES), GMEM_PRIVATE);
	TEST_ASSERT_EQ(vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES), GMEM_PRIVATE);
	TEST_ASSERT_EQ(vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_FLAGS_TO_PRIVATE),
		       GMEM_ALL_CONTENT);
	TEST_ASSERT_EQ(vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_FLAGS_TO_SHARED),
		       GMEM_ALL_CONTENT);

	/* The VM's own attributes, for files of the other kind, stay. */
	TEST_ASSERT_EQ(vm_check_cap(vm, KVM_CAP_MEMORY_ATTRIBUTES), GMEM_PRIVATE);
}

/* ---- The VM's attributes beside the file's state ---- */

static int try_vm_attributes(struct kvm_vm *vm, gpa_t gpa, u64 nr, u64 attributes)
{
	struct kvm_memory_attributes attr = {
		.address = gpa,
		.size = nr * PAGE_SIZE,
		.attributes = attributes,
	};

	return __vm_ioctl(vm, KVM_SET_MEMORY_ATTRIBUTES, &attr) ? errno : 0;
}

/* "KVM_SET_MEMORY_ATTRIBUTES over gfns of an in-place slot is EINVAL." */
GMEM_TEST(vm_attributes_refused)
{
	const gpa_t gpa = GMEM_GPA + NR * PAGE_SIZE, end = gpa + NR * PAGE_SIZE;
	struct gmem g;
	u64 attrs;

	gmem_create(&g, self->vm, NR * PAGE_SIZE, GMEM_SHARED_FILE);
	gmem_bind(&g, GMEM_SLOT, gpa);
	gmem_host_fill(&g, 0, NR, VAL);

	for (attrs = 0; attrs <= GMEM_PRIVATE; attrs += GMEM_PRIVATE) {
		TEST_ASSERT_EQ(try_vm_attributes(self->vm, gpa, NR, attrs), EINVAL);
		TEST_ASSERT_EQ(try_vm_attributes(self->vm, gpa, 1, attrs), EINVAL);
		TEST_ASSERT_EQ(try_vm_attributes(self->vm, end - PAGE_SIZE, 1, attrs), EINVAL);
		TEST_ASSERT_EQ(try_vm_attributes(self->vm, gpa - PAGE_SIZE, 2, attrs), EINVAL);
		TEST_ASSERT_EQ(try_vm_attributes(self->vm, end - PAGE_SIZE, 2, attrs), EINVAL);
		TEST_ASSERT_EQ(try_vm_attributes(self->vm, gpa - PAGE_SIZE, NR + 2, attrs),
			       EINVAL);
		TEST_ASSERT_EQ(try_vm_attributes(self->vm, gpa - PAGE_SIZE, 1, attrs), 0);
		TEST_ASSERT_EQ(try_vm_attributes(self->vm, end, 1, attrs), 0);
	}
	gmem_assert_shared(&g, 0, NR);
	gmem_guest_check_fill(self->vcpu, &g, 0, NR, VAL);

	gmem_unbind(&g);
	TEST_ASSERT_EQ(try_vm_attributes(self->vm, gpa, NR, GMEM_PRIVATE), 0);
	TEST_ASSERT_EQ(try_vm_attributes(self->vm, gpa, NR, 0), 0);
	gmem_destroy(&g);
}

/* "Attributes set before such a slot exists are ignored for it." */
GMEM_TEST(vm_attributes_ignored)
{
	struct gmem g;

	vm_mem_set_private(self->vm, GMEM_GPA, NR * PAGE_SIZE);
	new_filled_file(&g, self->vm);
	gmem_assert_shared(&g, 0, NR);
	gmem_guest_check_fill(self->vcpu, &g, 0, NR, VAL);

	gmem_to_private(&g, 0, NR, 0);
	gmem_guest_fill(self->vcpu, &g, 0, NR, OTHER);
	gmem_to_shared(&g, 0, NR, 0);
	gmem_host_check(&g, 0, NR, OTHER);
	gmem_guest_check_fill(self->vcpu, &g, 0, NR, OTHER);
	gmem_destroy(&g);
}

/* Both kinds of file in one VM, each with its own ABI. */
GMEM_TEST(two_backing_neighbour)
{
	const gpa_t gpa = GMEM_GPA + NR * PAGE_SIZE;
	struct gmem g, two = { .gpa = gpa, .size = NR * PAGE_SIZE };

	gmem_new(&g, self->vm, NR, GMEM_SHARED_FILE);
	two.fd = vm_create_guest_memfd(self->vm, two.size, 0);
	vm_mem_add(self->vm, VM_MEM_SRC_ANONYMOUS, gpa, GMEM_SLOT + 1, NR,
		   KVM_MEM_GUEST_MEMFD, two.fd, 0);
	two.mem = addr_gpa2hva(self->vm, gpa);

	gmem_host_fill(&g, 0, NR, VAL);
	gmem_host_fill(&two, 0, NR, OTHER);
	gmem_guest_check_fill(self->vcpu, &two, 0, NR, OTHER);

	/* Two backings: the private half has bytes of its own. */
	vm_mem_set_private(self->vm, gpa, two.size);
	gmem_to_private(&g, 0, NR, 0);
	gmem_guest_check_fill(self->vcpu, &g, 0, NR, VAL);
	gmem_guest_check_zero(self->vcpu, &two, 0, NR);
	gmem_guest_fill(self->vcpu, &two, 0, NR, VAL + 0x100);
	gmem_host_check(&two, 0, NR, OTHER);

	vm_mem_set_shared(self->vm, gpa, two.size);
	gmem_guest_check_fill(self->vcpu, &two, 0, NR, OTHER);
	gmem_assert_private(&g, 0, NR);
	gmem_guest_check_fill(self->vcpu, &g, 0, NR, VAL);

	TEST_ASSERT_EQ(try_vm_attributes(self->vm, GMEM_GPA, 2 * NR, 0), EINVAL);
	TEST_ASSERT_EQ(__gmem_convert(two.fd, 0, two.size, GMEM_PRIVATE, 0, NULL), ENOTTY);
	close(two.fd);
	gmem_destroy(&g);
}

/* ---- KVM's own accesses ---- */

static void run_with_new_clock(struct kvm_vcpu *vcpu)
{
	struct kvm_clock_data data = {};

	vm_ioctl(vcpu->vm, KVM_SET_CLOCK, &data);
	gmem_guest_do(vcpu, GMEM_GUEST_NOP, 0, 0, 0, 0);
}

/*
 * "KVM's own accesses go through the file ... private pages where the VM type's table says
 * that the host kernel may read them."
 */
GMEM_TEST(kvmclock_page)
{
	struct gmem g;
	u64 msr_val;
	u32 version;

	gmem_new(&g, self->vm, NR, GMEM_SHARED_FILE);
	msr_val = g.gpa | KVM_MSR_ENABLED;

	gmem_guest_do(self->vcpu, GMEM_GUEST_WRMSR, MSR_KVM_SYSTEM_TIME_NEW, 0, msr_val, 0);
	run_with_new_clock(self->vcpu);
	version = READ_ONCE(*(u32 *)g.mem);
	TEST_ASSERT(version, "No clock in the shared page");

	/* Private: user space doesn't see it, but the guest has its clock. */
	gmem_to_private(&g, 0, 1, 0);
	run_with_new_clock(self->vcpu);
	run_with_new_clock(self->vcpu);
	gmem_assert_private(&g, 0, 1);

	gmem_to_shared(&g, 0, 1, GMEM_PRESERVE);
	TEST_ASSERT(READ_ONCE(*(u32 *)g.mem) > version, "The clock stood still");

	gmem_guest_do(self->vcpu, GMEM_GUEST_WRMSR, MSR_KVM_SYSTEM_TIME_NEW, 0, 0, 0);
	gmem_destroy(&g);
}

/*
 * "userspace_addr of an in-place slot is 0 ...; KVM ... never through userspace_addr."  A
 * bystander at the low address that a sum of 0 and the page's offset would hit must not
 * see the clock, which is in the file.
 */
GMEM_TEST(kvmclock_without_user_address)
{
	const u64 low = SZ_1M;
	struct gmem g;
	u64 *bystander;

	bystander = mmap((void *)low, PAGE_SIZE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	if (bystander != (void *)low)
		SKIP(return, "No memory at address 1 MiB");
	*bystander = VAL;

	__gmem_new(&g, self->vm, 2 * low / PAGE_SIZE, GMEM_SHARED_FILE, true);
	gmem_guest_do(self->vcpu, GMEM_GUEST_WRMSR, MSR_KVM_SYSTEM_TIME_NEW, 0,
		      (g.gpa + low) | KVM_MSR_ENABLED, 0);
	run_with_new_clock(self->vcpu);

	TEST_ASSERT_EQ(*bystander, VAL);
	TEST_ASSERT(READ_ONCE(*(u32 *)(g.mem + low)), "No clock in the file");

	gmem_guest_do(self->vcpu, GMEM_GUEST_WRMSR, MSR_KVM_SYSTEM_TIME_NEW, 0, 0, 0);
	gmem_destroy(&g);
	kvm_munmap(bystander, PAGE_SIZE);
}

/* KVM's cached access must not keep a page from going private. */
GMEM_TEST(kvmclock_does_not_hold)
{
	struct gmem g;
	int i;

	gmem_new(&g, self->vm, NR, GMEM_SHARED_FILE);
	gmem_guest_do(self->vcpu, GMEM_GUEST_WRMSR, MSR_KVM_SYSTEM_TIME_NEW, 0,
		      g.gpa | KVM_MSR_ENABLED, 0);

	for (i = 0; i < GMEM_LOOPS(8); i++) {
		run_with_new_clock(self->vcpu);
		gmem_to_private(&g, 0, NR, 0);
		run_with_new_clock(self->vcpu);
		gmem_to_shared(&g, 0, NR, GMEM_ZERO);
		run_with_new_clock(self->vcpu);
		TEST_ASSERT(READ_ONCE(*(u32 *)g.mem),
			    "The clock has not come back to the shared page");
	}
	gmem_guest_do(self->vcpu, GMEM_GUEST_WRMSR, MSR_KVM_SYSTEM_TIME_NEW, 0, 0, 0);
	gmem_destroy(&g);
}

/* Pre-faulting follows the state, and brings zeroed pages. */
GMEM_TEST_IF(pre_fault, kvm_check_cap(KVM_CAP_PRE_FAULT_MEMORY), "No KVM_PRE_FAULT_MEMORY")
{
	struct gmem g;
	u64 i;

	gmem_new(&g, vcpu->vm, NR, GMEM_SHARED_FILE);
	gmem_host_fill(&g, 0, FIRST, VAL);
	gmem_to_private(&g, FIRST, COUNT, 0);
	TEST_ASSERT_EQ(gmem_pre_fault(vcpu, GMEM_GPA, NR), 0);
	for (i = 0; i < NR; i++)
		TEST_ASSERT(gmem_page_is_present(&g, i), "Page %lu not pre-faulted", i);
	assert_part(&g, true);

	gmem_guest_check_fill(vcpu, &g, 0, FIRST, VAL);
	gmem_guest_check_zero(vcpu, &g, FIRST, NR - FIRST);

	/* Pre-faulted pages convert as any other; the pages come back. */
	gmem_guest_fill(vcpu, &g, 0, NR, OTHER);
	gmem_to_shared(&g, 0, NR, 0);
	TEST_ASSERT_EQ(gmem_pre_fault(vcpu, GMEM_GPA, NR), 0);
	gmem_host_check(&g, 0, NR, OTHER);
	gmem_to_private(&g, 0, NR, GMEM_DISCARD);
	TEST_ASSERT_EQ(gmem_pre_fault(vcpu, GMEM_GPA, NR), 0);
	gmem_guest_check_zero(vcpu, &g, 0, NR);

	TEST_ASSERT_EQ(gmem_pre_fault(vcpu, GMEM_GPA + NR * PAGE_SIZE, 1), ENOENT);
	gmem_destroy(&g);
}

/* ---- Address spaces (SMM) ---- */

#define AS1		BIT(16)

/*
 * "In a file of fixed state any second gfn is allowed, in any address space", and any
 * third; each goes by itself.
 */
GMEM_TEST(smm_bindings)
{
	const gpa_t other = GMEM_GPA + SZ_1G;
	struct kvm_vm *vm = vm_create_barebones();
	struct gmem g;

	if (vm_check_cap(vm, KVM_CAP_MULTI_ADDRESS_SPACE) < 2)
		SKIP(return, "One address space only");

	gmem_create(&g, vm, NR * PAGE_SIZE, GMEM_SHARED_FILE);
	TEST_ASSERT_EQ(try_bind(vm, 1, GMEM_GPA, NR, &g, 0), 0);
	TEST_ASSERT_EQ(try_bind(vm, AS1 | 1, GMEM_GPA, NR, &g, 0), 0);
	TEST_ASSERT_EQ(try_bind(vm, 2, other, NR / 2, &g, 1), 0);
	TEST_ASSERT_EQ(try_bind(vm, AS1 | 2, other, 1, &g, NR - 1), 0);
	TEST_ASSERT_EQ(try_bind(vm, 3, 2 * other, NR, &g, 0), 0);

	/* A gfn is one slot's all the same, and the file's size is the limit. */
	TEST_ASSERT_EQ(try_bind(vm, 4, other, 1, &g, 0), EEXIST);
	TEST_ASSERT_EQ(try_bind(vm, 4, 3 * other, NR, &g, 1), EINVAL);

	vm_set_user_memory_region2(vm, 1, 0, GMEM_GPA, 0, NULL, -1, 0);
	gmem_punch(&g, 0, NR);
	vm_set_user_memory_region2(vm, AS1 | 1, 0, GMEM_GPA, 0, NULL, -1, 0);
	vm_set_user_memory_region2(vm, 3, 0, 2 * other, 0, NULL, -1, 0);
	vm_set_user_memory_region2(vm, 2, 0, other, 0, NULL, -1, 0);
	vm_set_user_memory_region2(vm, AS1 | 2, 0, other, 0, NULL, -1, 0);
	gmem_punch(&g, 0, NR);
	TEST_ASSERT_EQ(try_bind(vm, AS1 | 1, other, NR, &g, 0), 0);

	/* The file goes first, with a slot in either address space. */
	TEST_ASSERT_EQ(try_bind(vm, 1, other, NR, &g, 0), 0);
	gmem_host_fill(&g, 0, NR, VAL);
	kvm_munmap(g.mem, g.size);
	close(g.fd);
	kvm_vm_free(vm);
}

/*
 * q35 shows 128 KiB of low RAM a second time, high up, as SMRAM.  The guest finds one
 * memory at both gfns; a hole reaches it at both.
 */
GMEM_TEST(second_gfn)
{
	const u64 first = 4, nr = 8;
	const gpa_t high = GMEM_GPA + SZ_16M;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	struct gmem g, alias;

	vm = vm_create_with_one_vcpu(&vcpu, gmem_guest_server);
	vcpu_args_set(vcpu, 1, 0);
	virt_map(vm, GMEM_GPA, GMEM_GPA, NR);
	virt_map(vm, high, high, nr);

	/* No user address: the MMU notifier would zap both in the file's stead. */
	__gmem_new(&g, vm, NR, GMEM_SHARED_FILE, true);
	alias = (struct gmem) { .vm = vm, .gpa = high };
	vm_set_user_memory_region2(vm, GMEM_SLOT + 1, KVM_MEM_GUEST_MEMFD, high,
				   nr * PAGE_SIZE, NULL, g.fd, first * PAGE_SIZE);

	gmem_host_fill(&g, 0, NR, VAL);
	gmem_guest_check_fill(vcpu, &g, 0, NR, VAL);
	gmem_guest_check_fill(vcpu, &alias, 0, nr, VAL + first);
	gmem_guest_fill(vcpu, &alias, 0, nr, OTHER);
	gmem_guest_check_fill(vcpu, &g, first, nr, OTHER);

	gmem_punch(&g, first, nr);
	gmem_guest_check_zero(vcpu, &g, first, nr);
	gmem_guest_check_zero(vcpu, &alias, 0, nr);
	gmem_guest_fill(vcpu, &g, first, nr, VAL);
	gmem_guest_check_fill(vcpu, &alias, 0, nr, VAL);

	/* The one goes, the other stays. */
	vm_set_user_memory_region2(vm, GMEM_SLOT, 0, GMEM_GPA, 0, NULL, -1, 0);
	gmem_punch(&g, first, 1);
	gmem_guest_check_zero(vcpu, &alias, 0, 1);
	gmem_guest_check_fill(vcpu, &alias, 1, nr - 1, VAL + 1);

	kvm_munmap(g.mem, g.size);
	close(g.fd);
	kvm_vm_free(vm);
}

#define SMRAM_GPA	0x1000000ul
#define SMM_PORT	0xe
#define SMM_BYTE	0x5a
#define SMM_OFFSET	0x9000

/* Real-address mode: a byte into SMRAM, the same to the host, and back. */
static const u8 smi_handler[] = {
	0x2e, 0xc6, 0x06, SMM_OFFSET & 0xff, SMM_OFFSET >> 8, SMM_BYTE,
	0xb0, SMM_BYTE,		/* mov $SMM_BYTE, %al */
	0xe4, SMM_PORT,		/* in $SMM_PORT, %al */
	0x0f, 0xaa,		/* rsm */
};

static void smm_guest(void)
{
	wrmsr(MSR_IA32_APICBASE, rdmsr(MSR_IA32_APICBASE) | X2APIC_ENABLE);
	x2apic_write_reg(APIC_ICR, APIC_DEST_SELF | APIC_INT_ASSERT | APIC_DM_SMI);

	GUEST_SYNC(READ_ONCE(*(u8 *)(SMRAM_GPA + SMM_OFFSET)));
	GUEST_DONE();
}

/* The guest uses one file in both address spaces, and sees one memory. */
GMEM_TEST(smm_guest)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	struct ucall uc;
	struct gmem g;

	if (!kvm_has_cap(KVM_CAP_X86_SMM))
		SKIP(return, "No SMM");

	vm = vm_create_with_one_vcpu(&vcpu, smm_guest);
	gmem_create(&g, vm, SMRAM_SIZE, GMEM_SHARED_FILE);
	TEST_ASSERT_EQ(try_bind(vm, GMEM_SLOT, SMRAM_GPA, SMRAM_PAGES, &g, 0), 0);
	TEST_ASSERT_EQ(try_bind(vm, SMRAM_MEMSLOT, SMRAM_GPA, SMRAM_PAGES, &g, 0), 0);
	virt_map(vm, SMRAM_GPA, SMRAM_GPA, SMRAM_PAGES);
	memcpy(g.mem + 0x8000, smi_handler, sizeof(smi_handler));
	vcpu_set_msr(vcpu, MSR_IA32_SMBASE, SMRAM_GPA);

	vcpu_run(vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);
	TEST_ASSERT_EQ(vcpu->run->io.port, SMM_PORT);
	TEST_ASSERT_EQ(READ_ONCE(g.mem[SMM_OFFSET]), SMM_BYTE);

	vcpu_run(vcpu);
	TEST_ASSERT_EQ(get_ucall(vcpu, &uc), UCALL_SYNC);
	TEST_ASSERT_EQ(uc.args[1], SMM_BYTE);
	vcpu_run(vcpu);
	TEST_ASSERT_EQ(get_ucall(vcpu, &uc), UCALL_DONE);

	close(g.fd);
	kvm_munmap(g.mem, g.size);
	kvm_vm_free(vm);
}

TEST_HARNESS_MAIN
