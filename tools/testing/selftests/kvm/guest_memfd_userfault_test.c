// SPDX-License-Identifier: GPL-2.0-only
/*
 * guest_memfd that is filled on demand: KVM_MEM_USERFAULT for the guest, userfaultfd for
 * the user's mappings.  VMs without private memory; the x86 test beside this one has the
 * others.
 */
#include "gmem_userfault.h"
#include "kvm_test_harness.h"

#include <poll.h>

/* The C library may be older than that. */
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL	102
#define MADV_GUARD_REMOVE	103
#endif

/* Page i holds VAL + i; OTHER is what the next writer leaves there. */
#define VAL		0x1122334455660000ul
#define OTHER		0x99aabbccddee0000ul

#define NR		16ul

/* The page that most cases look at, and how many are beside it. */
#define PAGE		5ul

/* Pages of a block, i.e. entries of a table of 8 bytes each; two are mapped. */
#define BLOCK		(PAGE_SIZE / 8)

#define SHARED_HUGE	(GMEM_SHARED_FILE | GUEST_MEMFD_FLAG_HUGE)

#define NR_VCPUS	2u

#define OTHER_SLOT	(GMEM_SLOT + 1)
#define OTHER_GPA	(GMEM_GPA + BLOCK * PAGE_SIZE)

FIXTURE(userfault) {
	struct kvm_vcpu *vcpus[NR_VCPUS];
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
};

FIXTURE_SETUP(userfault)
{
	int i;

	gmem_page_size = getpagesize();
	gmem_test_init();
	self->vm = vm_create_with_vcpus(NR_VCPUS, gmem_guest_server, self->vcpus);
	self->vcpu = self->vcpus[0];
	if (!vm_check_cap(self->vm, KVM_CAP_GUEST_MEMFD_USERFAULT))
		SKIP(return, "No KVM_MEM_USERFAULT");

	sync_global_to_guest(self->vm, gmem_page_size);
	for (i = 0; i < NR_VCPUS; i++)
		vcpu_args_set(self->vcpus[i], 1, i);
	virt_map(self->vm, GMEM_GPA, GMEM_GPA, 2 * BLOCK);
	for (i = 0; i < NR_VCPUS; i++)
		gmem_guest_do(self->vcpus[i], GMEM_GUEST_NOP, 0, 0, 0, 0);
}

/* "Accounted as others." */
FIXTURE_TEARDOWN(userfault)
{
	TEST_ASSERT_EQ(vm_get_stat(self->vm, gmem_pages_shared), 0);
	TEST_ASSERT_EQ(vm_get_stat(self->vm, gmem_pages_private), 0);
	kvm_vm_free(self->vm);
}

#define USERFAULT_TEST(name)	TEST_F_TIMEOUT(userfault, name, GMEM_TIMEOUT_S)

/* ---- Files ---- */

static void __new_file(struct gmem *g, struct kvm_vm *vm, u64 nr, u64 flags, void *bitmap)
{
	gmem_create(g, vm, nr * PAGE_SIZE, flags);
	g->slot = GMEM_SLOT;
	g->gpa = GMEM_GPA;
	set_userfault(g, KVM_MEM_USERFAULT, bitmap);
}

static void new_file(struct gmem *g, struct kvm_vm *vm, void *bitmap)
{
	__new_file(g, vm, NR, GMEM_SHARED_FILE, bitmap);
}

/* ---- What the guest gets ---- */

static bool is_missing_exit(struct kvm_vcpu *vcpu, int r)
{
	return r == -1 && errno == EFAULT &&
	       vcpu->run->exit_reason == KVM_EXIT_MEMORY_FAULT &&
	       vcpu->run->memory_fault.flags == KVM_MEMORY_EXIT_FLAG_USERFAULT;
}

/* The guest needs the page to go on, see gmem_guest_finish(): it writes OTHER. */
static void expect_wait(struct kvm_vcpu *vcpu, struct gmem *g, u64 page)
{
	gmem_guest_prepare(vcpu, GMEM_GUEST_FILL, g->gpa + page * PAGE_SIZE, 1, OTHER, 0);
	gmem_expect_missing(vcpu, g->gpa + page * PAGE_SIZE, PAGE_SIZE, false);
}

/* An access that the guest makes only once. */
static void expect_missing(struct kvm_vcpu *vcpu, struct gmem *g, u64 page)
{
	expect_wait(vcpu, g, page);
	start_anew(vcpu);
}

static void check_page(struct kvm_vcpu *vcpu, struct gmem *g, u64 page, u64 val)
{
	gmem_guest_check_fill(vcpu, g, page, 1, val);
}

/* ---- The capability ---- */

USERFAULT_TEST(capability)
{
	int features = vm_check_cap(self->vm, KVM_CAP_GUEST_MEMFD_USERFAULT);

	TEST_ASSERT_EQ(features, KVM_GUEST_MEMFD_USERFAULT_ABSENT |
				 KVM_GUEST_MEMFD_USERFAULT_BITMAP |
				 KVM_GUEST_MEMFD_USERFAULTFD);
	TEST_ASSERT(kvm_check_cap(KVM_CAP_GUEST_MEMFD_USERFAULT) &
		    KVM_GUEST_MEMFD_USERFAULT_ABSENT, "The system knows nothing of it");
	TEST_ASSERT_EQ(offsetof(struct kvm_userspace_memory_region2, userfault_bitmap), 48);
	TEST_ASSERT_EQ(sizeof(struct kvm_userspace_memory_region2), 160);
}

/* ---- Arguments ---- */

/* @region differs from a good one by one field, hence is refused with @error. */
#define expect_refused(vm, region, error)					\
do {										\
	int __r = set_region((vm), (region)), __want = (error);			\
										\
	TEST_ASSERT(__r == __want, "%s, want %s", strerror(__r), strerror(__want)); \
} while (0)

USERFAULT_TEST(arguments_new_slot)
{
	struct kvm_userspace_memory_region2 r;
	struct gmem g;

	gmem_create(&g, self->vm, NR * PAGE_SIZE, GMEM_SHARED_FILE);

	r = region_of(&g, KVM_MEM_USERFAULT, NULL);
	r.flags &= ~KVM_MEM_GUEST_MEMFD;
	expect_refused(self->vm, r, EINVAL);
	TEST_ASSERT(ioctl(self->vm->fd, KVM_SET_USER_MEMORY_REGION, &r) && errno == EINVAL,
		    "KVM_SET_USER_MEMORY_REGION has no bitmap");
	r.flags |= KVM_MEM_GUEST_MEMFD;
	TEST_ASSERT(ioctl(self->vm->fd, KVM_SET_USER_MEMORY_REGION, &r) && errno == EINVAL,
		    "KVM_SET_USER_MEMORY_REGION has no guest_memfd");

	expect_refused(self->vm, region_of(&g, KVM_MEM_USERFAULT | KVM_MEM_READONLY, NULL),
		       EINVAL);
	expect_refused(self->vm,
		       region_of(&g, KVM_MEM_USERFAULT | KVM_MEM_LOG_DIRTY_PAGES, NULL), EINVAL);
	expect_refused(self->vm, region_of(&g, KVM_MEM_USERFAULT, (void *)4ul), EINVAL);
	expect_refused(self->vm, region_of(&g, KVM_MEM_USERFAULT, (void *)-4096l), EFAULT);

	/* What isn't asked for isn't read. */
	g.slot = GMEM_SLOT;
	g.gpa = GMEM_GPA;
	set_userfault(&g, 0, (void *)7ul);
	gmem_guest_check_zero(self->vcpu, &g, 0, NR);
	gmem_destroy(&g);
}

USERFAULT_TEST(arguments_live_slot)
{
	const u32 on = KVM_MEM_USERFAULT;
	struct kvm_userspace_memory_region2 r;
	unsigned long bitmap = 0;
	struct gmem g, h;

	gmem_new(&g, self->vm, NR, GMEM_SHARED_FILE);
	gmem_create(&h, self->vm, NR * PAGE_SIZE, GMEM_SHARED_FILE);

	/* Without the flag before or after a slot can't be changed, as ever. */
	expect_refused(self->vm, region_of(&g, 0, NULL), EINVAL);

	r = region_of(&g, on, NULL);
	r.guest_phys_addr += PAGE_SIZE;
	expect_refused(self->vm, r, EINVAL);

	r = region_of(&g, on, NULL);
	r.memory_size -= PAGE_SIZE;
	expect_refused(self->vm, r, EINVAL);

	r = region_of(&g, on, NULL);
	r.userspace_addr = 0;
	expect_refused(self->vm, r, EINVAL);

	r = region_of(&g, on, NULL);
	r.guest_memfd_offset = PAGE_SIZE;
	expect_refused(self->vm, r, EINVAL);

	r = region_of(&g, on, NULL);
	r.guest_memfd = h.fd;
	expect_refused(self->vm, r, EINVAL);
	r.guest_memfd = self->vm->fd;
	expect_refused(self->vm, r, EINVAL);
	r.guest_memfd = -1;
	expect_refused(self->vm, r, EBADF);

	r = region_of(&g, on, NULL);
	r.flags &= ~KVM_MEM_GUEST_MEMFD;
	expect_refused(self->vm, r, EINVAL);
	r.flags &= ~on;
	expect_refused(self->vm, r, EINVAL);

	expect_refused(self->vm, region_of(&g, on | KVM_MEM_LOG_DIRTY_PAGES, NULL), EINVAL);
	expect_refused(self->vm, region_of(&g, on, (void *)&bitmap + 1), EINVAL);
	expect_refused(self->vm, region_of(&g, on, (void *)-4096l), EFAULT);

	/* Nothing of this has switched it on. */
	gmem_guest_check_zero(self->vcpu, &g, 0, NR);

	set_userfault(&g, on, NULL);
	set_userfault(&g, on, NULL);
	set_userfault(&g, on, &bitmap);
	set_userfault(&g, 0, NULL);
	expect_refused(self->vm, region_of(&g, 0, NULL), EINVAL);

	gmem_destroy(&h);
	gmem_destroy(&g);
}

/* The slot of a closed file has nothing to be filled. */
USERFAULT_TEST(closed_file)
{
	struct kvm_userspace_memory_region2 r;
	struct gmem g, h;

	new_file(&g, self->vm, NULL);
	expect_wait(self->vcpu, &g, PAGE);
	kvm_munmap(g.mem, g.size);
	close(g.fd);

	gmem_guest_expect_fault(self->vcpu, EFAULT, g.gpa + PAGE * PAGE_SIZE);
	TEST_ASSERT_EQ(self->vcpu->run->memory_fault.flags, 0);

	r = region_of(&g, 0, NULL);
	expect_refused(self->vm, r, EBADF);
	gmem_create(&h, self->vm, NR * PAGE_SIZE, GMEM_SHARED_FILE);
	r.guest_memfd = h.fd;
	expect_refused(self->vm, r, EINVAL);

	gmem_destroy(&h);
	gmem_unbind(&g);
}

/* ---- Absent is missing ---- */

USERFAULT_TEST(absent)
{
	struct gmem g;
	u64 val;
	int i;

	new_file(&g, self->vm, NULL);

	/* Again and again, by any vCPU, and nothing is allocated. */
	for (i = 0; i < 3; i++)
		expect_wait(self->vcpu, &g, PAGE);
	expect_wait(self->vcpus[1], &g, PAGE);
	TEST_ASSERT_EQ(nr_present(self->vm), 0);
	TEST_ASSERT(lseek(g.fd, 0, SEEK_DATA) == -1 && errno == ENXIO, "There is data");

	/* A user without userfaultfd doesn't fill it either. */
	TEST_ASSERT_EQ(gmem_try_read(g.mem + PAGE * PAGE_SIZE, &val), BUS_ADRERR);
	TEST_ASSERT_EQ(gmem_try_write(g.mem + PAGE * PAGE_SIZE, 1), BUS_ADRERR);
	TEST_ASSERT_EQ(nr_present(self->vm), 0);

	/* fallocate() fills with zeros.  The access of the guest goes on where it was. */
	gmem_allocate(&g, PAGE, 1);
	gmem_guest_finish(self->vcpu);
	check_page(self->vcpu, &g, PAGE, OTHER);
	gmem_guest_finish(self->vcpus[1]);
	TEST_ASSERT_EQ(nr_present(self->vm), 1);
	expect_missing(self->vcpu, &g, PAGE + 1);

	/* What is present is for users, too. */
	gmem_host_check(&g, PAGE, 1, OTHER);

	/* A hole is missing again. */
	gmem_punch(&g, PAGE, 1);
	expect_wait(self->vcpu, &g, PAGE);
	TEST_ASSERT_EQ(nr_present(self->vm), 0);

	/* Without the flag the guest allocates, and users do. */
	set_userfault(&g, 0, NULL);
	gmem_guest_finish(self->vcpu);
	gmem_host_fill(&g, 0, NR, VAL);
	gmem_guest_check_fill(self->vcpu, &g, 0, NR, VAL);

	/* Back on, it changes nothing for what is present. */
	set_userfault(&g, KVM_MEM_USERFAULT, NULL);
	gmem_guest_check_fill(self->vcpu, &g, 0, NR, VAL);
	gmem_punch(&g, 0, NR);
	expect_missing(self->vcpu, &g, 0);

	gmem_destroy(&g);
}

/* The flag belongs to the slot: the page is missing where it is set, and for users. */
USERFAULT_TEST(two_slots)
{
	struct gmem g;

	new_file(&g, self->vm, NULL);
	vm_set_user_memory_region2(self->vm, OTHER_SLOT, KVM_MEM_GUEST_MEMFD, OTHER_GPA,
				   g.size, g.mem, g.fd, 0);
	expect_wait(self->vcpu, &g, PAGE);
	TEST_ASSERT_EQ(gmem_try_write(g.mem + PAGE * PAGE_SIZE, 1), BUS_ADRERR);

	g.gpa = OTHER_GPA;
	check_page(self->vcpus[1], &g, PAGE, 0);
	g.gpa = GMEM_GPA;
	gmem_guest_finish(self->vcpu);
	gmem_host_check(&g, PAGE, 1, OTHER);

	vm_set_user_memory_region2(self->vm, OTHER_SLOT, KVM_MEM_GUEST_MEMFD, OTHER_GPA,
				   0, g.mem, g.fd, 0);
	expect_missing(self->vcpu, &g, PAGE + 1);
	gmem_destroy(&g);
}

/* A slot need not begin where the file does. */
USERFAULT_TEST(offset)
{
	struct kvm_userspace_memory_region2 r;
	struct gmem g;

	gmem_create(&g, self->vm, NR * PAGE_SIZE, GMEM_SHARED_FILE);
	r = region_of(&g, KVM_MEM_USERFAULT, NULL);
	r.guest_memfd_offset = PAGE * PAGE_SIZE;
	r.memory_size -= r.guest_memfd_offset;
	r.userspace_addr += r.guest_memfd_offset;
	TEST_ASSERT_EQ(set_region(self->vm, r), 0);
	g.gpa = GMEM_GPA - PAGE * PAGE_SIZE;

	/* What the slot doesn't show is not missing. */
	gmem_host_fill(&g, 0, PAGE, VAL);
	expect_missing(self->vcpu, &g, PAGE);
	expect_wait(self->vcpu, &g, NR - 1);
	TEST_ASSERT_EQ(gmem_try_write(g.mem + PAGE * PAGE_SIZE, 1), BUS_ADRERR);
	gmem_allocate(&g, NR - 1, 1);
	gmem_guest_finish(self->vcpu);
	gmem_host_check(&g, NR - 1, 1, OTHER);

	r.flags = KVM_MEM_GUEST_MEMFD;
	TEST_ASSERT_EQ(set_region(self->vm, r), 0);
	check_page(self->vcpu, &g, PAGE, 0);
	g.slot = GMEM_SLOT;
	gmem_destroy(&g);
}

/* The slot goes while a vCPU is at its exit, and comes back. */
USERFAULT_TEST(slot_deleted)
{
	struct gmem g;

	new_file(&g, self->vm, NULL);
	expect_wait(self->vcpu, &g, PAGE);
	gmem_unbind(&g);
	gmem_allocate(&g, PAGE, 1);
	gmem_bind(&g, GMEM_SLOT, GMEM_GPA);
	gmem_guest_finish(self->vcpu);
	check_page(self->vcpu, &g, PAGE, OTHER);
	/* The new slot has no flag. */
	check_page(self->vcpu, &g, PAGE + 1, 0);
	gmem_destroy(&g);
}

/* A signal is for the next KVM_RUN; it neither loses the exit nor fills the page. */
USERFAULT_TEST(immediate_exit)
{
	struct gmem g;

	new_file(&g, self->vm, NULL);
	expect_wait(self->vcpu, &g, PAGE);
	self->vcpu->run->immediate_exit = 1;
	TEST_ASSERT(__vcpu_run(self->vcpu) == -1 && errno == EINTR, "Want EINTR");
	self->vcpu->run->immediate_exit = 0;
	gmem_expect_missing(self->vcpu, g.gpa + PAGE * PAGE_SIZE, PAGE_SIZE, false);
	TEST_ASSERT_EQ(nr_present(self->vm), 0);
	gmem_destroy(&g);
}

/* A page that was filled, and struck, is lost like any other. */
USERFAULT_TEST(memory_failure)
{
	struct gmem g;

	if (access(GMEM_HWPOISON_DIR, F_OK))
		SKIP(return, "No hwpoison injection");

	new_file(&g, self->vm, NULL);
	gmem_allocate(&g, PAGE, 1);
	gmem_host_fill(&g, PAGE, 1, VAL);
	gmem_poison_mapped(g.mem + PAGE * PAGE_SIZE);

	gmem_guest_prepare(self->vcpu, GMEM_GUEST_FILL, g.gpa + PAGE * PAGE_SIZE, 1, OTHER, 0);
	gmem_guest_expect_fault(self->vcpu, EHWPOISON, g.gpa + PAGE * PAGE_SIZE);
	TEST_ASSERT_EQ(self->vcpu->run->memory_fault.flags, 0);

	gmem_punch(&g, PAGE, 1);
	expect_missing(self->vcpu, &g, PAGE);
	gmem_destroy(&g);
	gmem_give_frames_back();
}

/* ---- The bitmap ---- */

USERFAULT_TEST(bitmap)
{
	unsigned long map = BIT(PAGE), other = BIT(PAGE + 1);
	struct gmem g;

	new_file(&g, self->vm, &map);

	/* The bit rules, not what is present: here it is clear, and there it is set. */
	gmem_guest_check_zero(self->vcpu, &g, 0, PAGE);
	TEST_ASSERT_EQ(nr_present(self->vm), PAGE);
	expect_missing(self->vcpu, &g, PAGE);
	gmem_allocate(&g, PAGE, 1);
	expect_missing(self->vcpu, &g, PAGE);

	/* Users fill through their mapping. */
	gmem_host_fill(&g, PAGE, 1, VAL);
	expect_missing(self->vcpu, &g, PAGE);
	clear_bit_of(&map, PAGE);
	check_page(self->vcpu, &g, PAGE, VAL);

	/* What the guest has mapped it keeps when the bit is set later. */
	set_bit_of(&map, PAGE);
	check_page(self->vcpu, &g, PAGE, VAL);

	/* But not when the flag is switched on. */
	set_userfault(&g, 0, NULL);
	check_page(self->vcpu, &g, PAGE, VAL);
	set_userfault(&g, KVM_MEM_USERFAULT, &map);
	expect_missing(self->vcpu, &g, PAGE);

	/* Nor if there is another bitmap. */
	check_page(self->vcpus[1], &g, PAGE + 1, 0);
	set_userfault(&g, KVM_MEM_USERFAULT, &other);
	check_page(self->vcpus[1], &g, PAGE, VAL);
	expect_wait(self->vcpus[1], &g, PAGE + 1);

	/* From bits to presence, and back. */
	set_userfault(&g, KVM_MEM_USERFAULT, NULL);
	gmem_guest_finish(self->vcpus[1]);
	expect_wait(self->vcpu, &g, NR - 1);
	set_userfault(&g, KVM_MEM_USERFAULT, &other);
	gmem_guest_finish(self->vcpu);
	gmem_destroy(&g);
}

/* One bit a page, from that of the slot's first page on, in longs. */
USERFAULT_TEST(bitmap_layout)
{
	const u64 nr = 3 * BITS + 5;
	unsigned long map[4];
	struct gmem g;
	u64 i;

	memset(map, 0xff, sizeof(map));
	__new_file(&g, self->vm, nr, GMEM_SHARED_FILE, map);
	for (i = 0; i < nr; i += BITS / 2 - 1) {
		clear_bit_of(map, i);
		check_page(self->vcpu, &g, i, 0);
		if (i)
			expect_missing(self->vcpu, &g, i - 1);
	}
	expect_missing(self->vcpu, &g, nr - 1);
	gmem_destroy(&g);
}

/* What the VMM has mapped is no reason to give it to the guest along with the next page. */
USERFAULT_TEST(bitmap_neighbours)
{
	unsigned long map = BIT(PAGE);
	struct gmem g;

	/* The guest's own page tables say that it has used them all. */
	gmem_new(&g, self->vm, NR, GMEM_SHARED_FILE);
	gmem_guest_fill(self->vcpu, &g, 0, NR, OTHER);
	gmem_host_fill(&g, 0, NR, VAL);
	set_userfault(&g, KVM_MEM_USERFAULT, &map);
	gmem_guest_check_fill(self->vcpu, &g, PAGE - 1, 1, VAL + PAGE - 1);
	expect_missing(self->vcpu, &g, PAGE);
	gmem_destroy(&g);
}

/* A bitmap that can't be read tells nothing of any page, and isn't fatal. */
USERFAULT_TEST(bitmap_unreadable)
{
	unsigned long *map = kvm_mmap(PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	struct gmem g;

	new_file(&g, self->vm, map);
	gmem_guest_prepare(self->vcpu, GMEM_GUEST_FILL, g.gpa + PAGE * PAGE_SIZE, 1, OTHER, 0);
	gmem_guest_expect_fault(self->vcpu, EFAULT, g.gpa + PAGE * PAGE_SIZE);
	TEST_ASSERT_EQ(self->vcpu->run->memory_fault.flags, 0);
	TEST_ASSERT_EQ(nr_present(self->vm), 0);

	TEST_ASSERT(!mprotect(map, PAGE_SIZE, PROT_READ | PROT_WRITE), "mprotect() failed");
	set_bit_of(map, PAGE);
	expect_wait(self->vcpu, &g, PAGE);

	kvm_munmap(map, PAGE_SIZE);
	gmem_guest_expect_fault(self->vcpu, EFAULT, g.gpa + PAGE * PAGE_SIZE);
	TEST_ASSERT_EQ(self->vcpu->run->memory_fault.flags, 0);
	set_userfault(&g, 0, NULL);
	gmem_guest_finish(self->vcpu);
	gmem_destroy(&g);
}

/* The bitmap is in the memory that it tells of: its page is read like any user's. */
USERFAULT_TEST(bitmap_in_file)
{
	unsigned long *map;
	struct gmem g;

	gmem_create(&g, self->vm, NR * PAGE_SIZE, GMEM_SHARED_FILE);
	map = (unsigned long *)(g.mem + (NR - 1) * PAGE_SIZE);
	g.slot = GMEM_SLOT;
	g.gpa = GMEM_GPA;
	set_userfault(&g, KVM_MEM_USERFAULT, map);

	check_page(self->vcpu, &g, PAGE, 0);
	set_bit_of(map, PAGE + 1);
	expect_wait(self->vcpu, &g, PAGE + 1);
	gmem_punch(&g, NR - 1, 1);
	gmem_guest_finish(self->vcpu);
	gmem_destroy(&g);
}

/* ---- Large folios ---- */

static bool has_huge(struct kvm_vm *vm)
{
	return vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_FLAGS) & GUEST_MEMFD_FLAG_HUGE;
}

/* One exit for a block of which nothing is there, and one a page elsewhere. */
USERFAULT_TEST(huge_absent)
{
	const u64 block = BLOCK * PAGE_SIZE;
	struct gmem g;

	if (!has_huge(self->vm))
		SKIP(return, "No large folios in guest_memfd");

	__new_file(&g, self->vm, 2 * BLOCK - 1, SHARED_HUGE, NULL);
	gmem_guest_prepare(self->vcpu, GMEM_GUEST_FILL, g.gpa + PAGE * PAGE_SIZE, BLOCK - PAGE,
			   VAL, 1);
	gmem_expect_missing(self->vcpu, g.gpa, block, false);
	TEST_ASSERT_EQ(nr_present(self->vm), 0);
	kvm_fallocate(g.fd, FALLOC_FL_KEEP_SIZE, 0, block);
	gmem_guest_finish(self->vcpu);
	gmem_host_check(&g, PAGE, BLOCK - PAGE, VAL);

	/* The file doesn't have all of the second block. */
	expect_missing(self->vcpu, &g, BLOCK + PAGE);

	/* And of the first a page is present. */
	gmem_punch(&g, PAGE, BLOCK - PAGE);
	expect_missing(self->vcpu, &g, PAGE);
	gmem_punch(&g, 0, PAGE);
	gmem_guest_prepare(self->vcpu, GMEM_GUEST_FILL, g.gpa, 1, VAL, 1);
	gmem_expect_missing(self->vcpu, g.gpa, block, false);
	gmem_destroy(&g);
}

/* The slot shows the block, but not aligned. */
USERFAULT_TEST(huge_misaligned)
{
	struct kvm_userspace_memory_region2 r;
	struct gmem g;

	if (!has_huge(self->vm))
		SKIP(return, "No large folios in guest_memfd");

	gmem_create(&g, self->vm, BLOCK * PAGE_SIZE, SHARED_HUGE);
	r = region_of(&g, KVM_MEM_USERFAULT, NULL);
	r.guest_phys_addr += PAGE_SIZE;
	TEST_ASSERT_EQ(set_region(self->vm, r), 0);
	g.slot = GMEM_SLOT;
	g.gpa = r.guest_phys_addr;
	expect_missing(self->vcpu, &g, PAGE);
	gmem_destroy(&g);
}

/* A large mapping needs all its bits clear. */
USERFAULT_TEST(huge_bitmap)
{
	const u64 block = BLOCK * PAGE_SIZE;
	unsigned long map[2 * BLOCK / BITS];
	struct gmem g;

	if (!has_huge(self->vm))
		SKIP(return, "No large folios in guest_memfd");

	memset(map, 0xff, sizeof(map));
	__new_file(&g, self->vm, 2 * BLOCK, SHARED_HUGE, map);
	gmem_guest_prepare(self->vcpu, GMEM_GUEST_FILL, g.gpa, BLOCK - 1, VAL, 1);
	gmem_expect_missing(self->vcpu, g.gpa, block, false);

	/* All but the last page; a single bit makes the exit one for a page, too. */
	memset(map, 0, block / PAGE_SIZE / 8);
	set_bit_of(map, BLOCK - 1);
	gmem_guest_finish(self->vcpu);
	expect_wait(self->vcpu, &g, BLOCK - 1);
	clear_bit_of(map, BLOCK - 1);
	gmem_guest_finish(self->vcpu);
	gmem_guest_check_fill(self->vcpu, &g, 0, BLOCK - 1, VAL);

	/* All the bits of a block, but something is there. */
	gmem_allocate(&g, BLOCK, 1);
	expect_missing(self->vcpu, &g, BLOCK + PAGE);

	/* All are clear: the block is mapped whole; the new bitmap takes it back. */
	memset(map, 0, sizeof(map));
	gmem_guest_fill(self->vcpu, &g, 0, BLOCK, VAL);
	set_userfault(&g, 0, NULL);
	set_bit_of(map, PAGE);
	set_userfault(&g, KVM_MEM_USERFAULT, map);
	expect_missing(self->vcpu, &g, PAGE);
	check_page(self->vcpus[1], &g, PAGE + 1, VAL + PAGE + 1);
	expect_missing(self->vcpu, &g, PAGE);
	gmem_destroy(&g);
}

/* ---- vCPUs that run while others fill, punch and switch ---- */

struct race {
	struct gmem *g;
	struct kvm_vcpu *vcpu;
	unsigned long *map;
	u64 nr_exits;
	int uffd;
};

static bool race_stop;
static u64 race_turns[4];

/* Fill what the exit asks for; in whatever way, it may have come by now. */
static void serve_exit(struct race *race)
{
	u64 gpa = race->vcpu->run->memory_fault.gpa;
	u64 offset = gpa - race->g->gpa;
	int r;

	/* A signal may come here, too. */
	do {
		r = fallocate(race->g->fd, FALLOC_FL_KEEP_SIZE, offset,
			      race->vcpu->run->memory_fault.size);
	} while (r && errno == EINTR);
	TEST_ASSERT(!r, "fallocate() failed, errno %d", errno);

	if (race->map)
		clear_bit_of(race->map, offset / PAGE_SIZE);
	race->nr_exits++;
}

/* Run the command that is set up until it is done, and serve its exits. */
static void run_served(struct race *race)
{
	int r;

	while ((r = __vcpu_run(race->vcpu))) {
		if (errno == EINTR)
			continue;

		TEST_ASSERT(is_missing_exit(race->vcpu, r),
			    "errno %d, exit %u, flags 0x%llx", errno,
			    race->vcpu->run->exit_reason, race->vcpu->run->memory_fault.flags);
		serve_exit(race);
	}
	TEST_ASSERT_EQ(gmem_get_ucall(race->vcpu), UCALL_SYNC);
}

/* The guest writes all pages, and must find what it wrote. */
static void guest_step(void *arg, u64 turn)
{
	struct race *race = arg;
	struct gmem_guest_cmd *cmd;
	u64 gva = race->g->gpa;

	gmem_guest_prepare(race->vcpu, GMEM_GUEST_FILL, gva, NR, VAL + turn, 1);
	run_served(race);
	cmd = gmem_guest_prepare(race->vcpu, GMEM_GUEST_CHECK, gva, NR, VAL + turn, 1);
	run_served(race);
	TEST_ASSERT(cmd->bad_page == NR, "Turn %lu, page %lu: 0x%lx", turn, cmd->bad_page,
		    cmd->bad_val);
}

static void race_start(struct gmem_worker *w, int i, void (*step)(void *arg, u64 turn),
		       struct race *race)
{
	race_turns[i] = 0;
	gmem_worker_start(w, step, race, &race_stop, &race_turns[i]);
}

/* Memory that is present is never lost, whatever becomes of flag and bitmap. */
static void race_toggles(struct gmem *g, struct kvm_vcpu *vcpu, unsigned long *maps[2])
{
	struct race race = { .g = g, .vcpu = vcpu };
	struct gmem_worker w;
	u64 i;

	WRITE_ONCE(race_stop, false);
	race_start(&w, 0, guest_step, &race);
	for (i = 0; i < GMEM_LOOPS(200); i++) {
		set_userfault(g, KVM_MEM_USERFAULT, maps[0]);
		set_userfault(g, KVM_MEM_USERFAULT, maps[1]);
		set_userfault(g, 0, NULL);
	}
	gmem_wait_until(READ_ONCE(race_turns[0]) > 1);
	WRITE_ONCE(race_stop, true);
	gmem_worker_join(&w);
	gmem_host_check(g, 0, NR, VAL + race_turns[0] - 1);
}

USERFAULT_TEST(race_toggle)
{
	unsigned long a = 0, b = 0;
	unsigned long *maps[] = { &a, &b }, *none[] = { NULL, NULL };
	struct gmem g;

	gmem_new(&g, self->vm, NR, GMEM_SHARED_FILE);
	race_toggles(&g, self->vcpu, none);
	race_toggles(&g, self->vcpu, maps);
	gmem_destroy(&g);
}

/* Signals come when they like: no exit is lost, and no page is filled twice. */
static void ignore_signal(int sig)
{
}

static void punched_step(void *arg, u64 turn)
{
	struct race *race = arg;

	gmem_punch(race->g, 0, NR);
	guest_step(arg, turn);
}

USERFAULT_TEST(race_signals)
{
	struct sigaction sa = { .sa_handler = ignore_signal };
	struct race race = { .vcpu = self->vcpu };
	struct gmem_worker w;
	struct gmem g;

	TEST_ASSERT(!sigaction(SIGUSR1, &sa, NULL), "sigaction() failed");
	new_file(&g, self->vm, NULL);
	race.g = &g;
	WRITE_ONCE(race_stop, false);
	race_start(&w, 0, punched_step, &race);
	while (READ_ONCE(race_turns[0]) < GMEM_LOOPS(20)) {
		pthread_kill(w.thread, SIGUSR1);
		sched_yield();
	}
	WRITE_ONCE(race_stop, true);
	gmem_worker_join(&w);
	TEST_ASSERT(race.nr_exits >= race_turns[0] * NR, "%lu exits for %lu turns",
		    race.nr_exits, race_turns[0]);
	gmem_destroy(&g);
}

/*
 * As soon as the flag is on, no vCPU has what it must not have, not even by a fault that
 * was under way: after the call returns the page doesn't change any more.
 */
static void touch_step(void *arg, u64 turn)
{
	struct race *race = arg;
	int r;

	gmem_guest_prepare(race->vcpu, GMEM_GUEST_FILL, race->g->gpa, 1, turn, 1);
	r = __vcpu_run(race->vcpu);
	if (!r)
		TEST_ASSERT_EQ(gmem_get_ucall(race->vcpu), UCALL_SYNC);
	else
		TEST_ASSERT(is_missing_exit(race->vcpu, r), "errno %d", errno);
}

USERFAULT_TEST(race_stale)
{
	struct race races[NR_VCPUS];
	struct gmem_worker w[NR_VCPUS];
	unsigned long map = 1;
	u64 i, seen, again;
	struct gmem g;

	gmem_new(&g, self->vm, NR, GMEM_SHARED_FILE);
	WRITE_ONCE(race_stop, false);
	for (i = 0; i < NR_VCPUS; i++) {
		races[i] = (struct race) { .g = &g, .vcpu = self->vcpus[i] };
		race_start(&w[i], i, touch_step, &races[i]);
	}

	for (i = 0; i < GMEM_LOOPS(200); i++) {
		set_userfault(&g, KVM_MEM_USERFAULT, &map);
		seen = READ_ONCE(*(u64 *)g.mem);
		sched_yield();
		again = READ_ONCE(*(u64 *)g.mem);
		TEST_ASSERT(seen == again, "Turn %lu: 0x%lx became 0x%lx", i, seen, again);
		set_userfault(&g, 0, NULL);
		sched_yield();
	}

	WRITE_ONCE(race_stop, true);
	for (i = 0; i < NR_VCPUS; i++)
		gmem_worker_join(&w[i]);
	gmem_destroy(&g);
}

/* Holes while the guest runs: it exits for each page that it has lost. */
USERFAULT_TEST(race_punch)
{
	struct race races[NR_VCPUS];
	struct gmem_worker w[NR_VCPUS];
	struct gmem g;
	u64 i;

	new_file(&g, self->vm, NULL);
	WRITE_ONCE(race_stop, false);
	for (i = 0; i < NR_VCPUS; i++) {
		races[i] = (struct race) { .g = &g, .vcpu = self->vcpus[i] };
		race_start(&w[i], i, touch_step, &races[i]);
	}
	for (i = 0; i < GMEM_LOOPS(200); i++) {
		gmem_allocate(&g, 0, NR);
		sched_yield();
		gmem_punch(&g, 0, NR);
		/* No one but this thread brings anything. */
		TEST_ASSERT_EQ(nr_present(self->vm), 0);
	}
	WRITE_ONCE(race_stop, true);
	for (i = 0; i < NR_VCPUS; i++)
		gmem_worker_join(&w[i]);
	TEST_ASSERT_EQ(nr_present(self->vm), 0);
	gmem_destroy(&g);
}

/* ---- userfaultfd ---- */

static int uffd_poison(int fd, struct gmem *g, u64 page)
{
	struct uffdio_poison poison = {
		.range = { .start = (uintptr_t)g->mem + page * PAGE_SIZE, .len = PAGE_SIZE },
	};

	return ioctl(fd, UFFDIO_POISON, &poison) ? errno : 0;
}

USERFAULT_TEST(uffd_modes)
{
	const u64 missing = BIT(_UFFDIO_COPY) | BIT(_UFFDIO_ZEROPAGE) | BIT(_UFFDIO_POISON);
	int fd = open_uffd();
	struct gmem g;
	u64 ioctls;

	gmem_new(&g, self->vm, NR, GMEM_SHARED_FILE);
	TEST_ASSERT_EQ(uffd_register(fd, &g, UFFDIO_REGISTER_MODE_WP, NULL), EINVAL);
	TEST_ASSERT_EQ(uffd_register(fd, &g, UFFDIO_REGISTER_MODE_MISSING |
				     UFFDIO_REGISTER_MODE_WP, NULL), EINVAL);
	TEST_ASSERT_EQ(uffd_register(fd, &g, UFFDIO_REGISTER_MODE_MISSING, &ioctls), 0);
	TEST_ASSERT((ioctls & missing) == missing, "ioctls 0x%lx", ioctls);
	TEST_ASSERT_EQ(uffd_register(fd, &g, UFFDIO_REGISTER_MODE_MISSING |
				     UFFDIO_REGISTER_MODE_MINOR, &ioctls), 0);
	TEST_ASSERT(ioctls & BIT(_UFFDIO_CONTINUE), "ioctls 0x%lx", ioctls);
	close(fd);
	gmem_destroy(&g);
}

/* What UFFDIO_COPY brings is there for users and guest, and is never overwritten. */
USERFAULT_TEST(uffd_copy)
{
	void *src = new_source(VAL);
	struct gmem g;
	int fd;

	new_file(&g, self->vm, NULL);
	fd = open_registered(&g, UFFDIO_REGISTER_MODE_MISSING);
	expect_wait(self->vcpu, &g, PAGE);
	TEST_ASSERT_EQ(uffd_copy(fd, &g, PAGE, src), 0);
	TEST_ASSERT_EQ(nr_present(self->vm), 1);
	gmem_host_check(&g, PAGE, 1, VAL);
	check_page(self->vcpus[1], &g, PAGE, VAL);
	gmem_guest_finish(self->vcpu);
	gmem_host_check(&g, PAGE, 1, OTHER);
	TEST_ASSERT_EQ(uffd_copy(fd, &g, PAGE, src), EEXIST);
	TEST_ASSERT_EQ(uffd_zero(fd, &g, PAGE), EEXIST);

	/* Present, but not mapped: the page cache refuses it. */
	TEST_ASSERT(!madvise(g.mem, g.size, MADV_DONTNEED), "madvise() failed");
	TEST_ASSERT_EQ(uffd_copy(fd, &g, PAGE, src), EEXIST);
	gmem_allocate(&g, PAGE + 1, 1);
	TEST_ASSERT_EQ(uffd_copy(fd, &g, PAGE + 1, src), EEXIST);
	check_page(self->vcpu, &g, PAGE, OTHER);
	check_page(self->vcpu, &g, PAGE + 1, 0);

	TEST_ASSERT_EQ(uffd_zero(fd, &g, PAGE + 2), 0);
	check_page(self->vcpu, &g, PAGE + 2, 0);
	TEST_ASSERT_EQ(nr_present(self->vm), 3);

	/* A hole may be filled again. */
	gmem_punch(&g, PAGE, 1);
	expect_wait(self->vcpu, &g, PAGE);
	TEST_ASSERT_EQ(uffd_copy(fd, &g, PAGE, src), 0);
	gmem_guest_finish(self->vcpu);
	gmem_destroy(&g);
	close(fd);
	kvm_munmap(src, PAGE_SIZE);
}

/* A source that isn't there fills nothing; one that must be read in does. */
USERFAULT_TEST(uffd_copy_source)
{
	void *src = new_source(VAL);
	struct gmem g, from;
	int fd;

	new_file(&g, self->vm, NULL);
	fd = open_registered(&g, UFFDIO_REGISTER_MODE_MISSING);
	TEST_ASSERT(!mprotect(src, PAGE_SIZE, PROT_NONE), "mprotect() failed");
	TEST_ASSERT_EQ(uffd_copy(fd, &g, PAGE, src), EFAULT);
	TEST_ASSERT_EQ(nr_present(self->vm), 0);
	expect_wait(self->vcpu, &g, PAGE);

	gmem_create(&from, self->vm, PAGE_SIZE, GMEM_SHARED_FILE);
	TEST_ASSERT_EQ(uffd_copy(fd, &g, PAGE, from.mem), 0);
	gmem_guest_finish(self->vcpu);
	TEST_ASSERT_EQ(nr_present(self->vm), 2);
	gmem_destroy(&from);
	gmem_destroy(&g);
	close(fd);
	kvm_munmap(src, PAGE_SIZE);
}

/* Poison is of the mapping: the page is neither there nor lost to the guest. */
USERFAULT_TEST(uffd_poison)
{
	void *src = new_source(VAL);
	struct gmem g;
	u64 val;
	int fd;

	new_file(&g, self->vm, NULL);
	fd = open_registered(&g, UFFDIO_REGISTER_MODE_MISSING);
	TEST_ASSERT_EQ(uffd_poison(fd, &g, PAGE), 0);
	TEST_ASSERT_EQ(gmem_try_read(g.mem + PAGE * PAGE_SIZE, &val), BUS_MCEERR_AR);
	TEST_ASSERT_EQ(nr_present(self->vm), 0);

	expect_wait(self->vcpu, &g, PAGE);
	gmem_allocate(&g, PAGE, 1);
	gmem_guest_finish(self->vcpu);
	TEST_ASSERT_EQ(gmem_try_read(g.mem + PAGE * PAGE_SIZE, &val), BUS_MCEERR_AR);
	TEST_ASSERT_EQ(uffd_poison(fd, &g, PAGE), EEXIST);

	/* A hole takes the marker along. */
	gmem_punch(&g, PAGE, 1);
	TEST_ASSERT_EQ(uffd_copy(fd, &g, PAGE, src), 0);
	gmem_host_check(&g, PAGE, 1, VAL);

	/* As in any other file, a copy takes the place of the marker. */
	TEST_ASSERT_EQ(uffd_poison(fd, &g, PAGE + 1), 0);
	TEST_ASSERT_EQ(uffd_copy(fd, &g, PAGE + 1, src), 0);
	gmem_host_check(&g, PAGE + 1, 1, VAL);
	check_page(self->vcpu, &g, PAGE + 1, VAL);
	gmem_destroy(&g);
	close(fd);
	kvm_munmap(src, PAGE_SIZE);
}

/* A page that can be added but not mapped is removed again. */
USERFAULT_TEST(uffd_remove)
{
	void *src = new_source(VAL);
	struct gmem g;
	int fd;

	new_file(&g, self->vm, NULL);
	fd = open_registered(&g, UFFDIO_REGISTER_MODE_MISSING);
	TEST_ASSERT(!madvise(g.mem + PAGE * PAGE_SIZE, PAGE_SIZE, MADV_GUARD_INSTALL),
		    "No guard pages, errno %d", errno);

	TEST_ASSERT_EQ(uffd_copy(fd, &g, PAGE, src), EEXIST);
	TEST_ASSERT_EQ(uffd_zero(fd, &g, PAGE), EEXIST);
	TEST_ASSERT_EQ(nr_present(self->vm), 0);
	TEST_ASSERT(lseek(g.fd, 0, SEEK_DATA) == -1 && errno == ENXIO, "There is data");
	expect_wait(self->vcpu, &g, PAGE);

	TEST_ASSERT(!madvise(g.mem + PAGE * PAGE_SIZE, PAGE_SIZE, MADV_GUARD_REMOVE),
		    "Guard pages stay, errno %d", errno);
	TEST_ASSERT_EQ(uffd_copy(fd, &g, PAGE, src), 0);
	gmem_guest_finish(self->vcpu);
	gmem_destroy(&g);
	close(fd);
	kvm_munmap(src, PAGE_SIZE);
}

USERFAULT_TEST(uffd_continue)
{
	struct gmem g;
	u64 val;
	int fd;

	new_file(&g, self->vm, NULL);
	fd = open_registered(&g, UFFDIO_REGISTER_MODE_MINOR);
	TEST_ASSERT_EQ(uffd_continue(fd, &g, PAGE), EFAULT);
	TEST_ASSERT_EQ(nr_present(self->vm), 0);
	TEST_ASSERT_EQ(gmem_try_read(g.mem + PAGE * PAGE_SIZE, &val), BUS_ADRERR);

	/* Never used, hence not zeroed yet: the frames still have what they had. */
	set_userfault(&g, 0, NULL);
	gmem_guest_fill(self->vcpu, &g, 0, NR, OTHER);
	gmem_punch(&g, 0, NR);
	set_userfault(&g, KVM_MEM_USERFAULT, NULL);
	gmem_allocate(&g, PAGE, 2);
	TEST_ASSERT_EQ(uffd_continue(fd, &g, PAGE), 0);
	gmem_host_check_zero(&g, PAGE, 1);
	TEST_ASSERT_EQ(uffd_continue(fd, &g, PAGE), EEXIST);

	gmem_guest_fill(self->vcpu, &g, PAGE + 1, 1, VAL);
	TEST_ASSERT_EQ(uffd_continue(fd, &g, PAGE + 1), 0);
	gmem_host_check(&g, PAGE + 1, 1, VAL);
	gmem_destroy(&g);
	close(fd);
}

/* Single pages by COPY, and into large folios by CONTINUE. */
USERFAULT_TEST(uffd_huge)
{
	void *src = new_source(VAL);
	struct gmem g;
	int fd;

	if (!has_huge(self->vm))
		SKIP(return, "No large folios in guest_memfd");

	__new_file(&g, self->vm, 2 * BLOCK, SHARED_HUGE, NULL);
	fd = open_registered(&g, UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR);
	TEST_ASSERT_EQ(uffd_copy(fd, &g, PAGE, src), 0);
	TEST_ASSERT_EQ(nr_present(self->vm), 1);
	check_page(self->vcpu, &g, PAGE, VAL);
	expect_missing(self->vcpu, &g, PAGE + 1);

	kvm_fallocate(g.fd, FALLOC_FL_KEEP_SIZE, BLOCK * PAGE_SIZE, PAGE_SIZE);
	TEST_ASSERT_EQ(nr_present(self->vm), 1 + BLOCK);
	TEST_ASSERT_EQ(uffd_copy(fd, &g, BLOCK + PAGE, src), EEXIST);
	TEST_ASSERT_EQ(uffd_continue(fd, &g, BLOCK + PAGE), 0);
	gmem_host_check_zero(&g, BLOCK + PAGE, 1);
	gmem_host_fill(&g, BLOCK + PAGE, 1, VAL);
	check_page(self->vcpu, &g, BLOCK + PAGE, VAL);
	gmem_destroy(&g);
	close(fd);
	kvm_munmap(src, PAGE_SIZE);
}

/* A user who touches what is missing waits for the fill. */
static void *user_reads(void *arg)
{
	u64 *val = calloc(1, sizeof(*val));

	*val = READ_ONCE(*(u64 *)arg);
	return val;
}

static void wait_msg(int fd, struct gmem *g, u64 page, u64 flags)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	struct uffd_msg msg;

	TEST_ASSERT_EQ(poll(&p, 1, GMEM_WAIT_S * 1000), 1);
	TEST_ASSERT_EQ(read(fd, &msg, sizeof(msg)), sizeof(msg));
	TEST_ASSERT_EQ(msg.event, UFFD_EVENT_PAGEFAULT);
	TEST_ASSERT_EQ(msg.arg.pagefault.flags, flags);
	TEST_ASSERT_EQ(msg.arg.pagefault.address, (uintptr_t)g->mem + page * PAGE_SIZE);
}

static void join_reader(pthread_t thread, u64 want)
{
	u64 *val;

	kvm_pthread_join(thread, (void **)&val);
	TEST_ASSERT_EQ(*val, want);
	free(val);
}

USERFAULT_TEST(uffd_events)
{
	void *src = new_source(VAL);
	pthread_t thread;
	struct gmem g;
	int fd;

	new_file(&g, self->vm, NULL);
	fd = open_registered(&g, UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR);

	kvm_pthread_create(&thread, NULL, user_reads, g.mem + PAGE * PAGE_SIZE);
	wait_msg(fd, &g, PAGE, 0);
	TEST_ASSERT_EQ(nr_present(self->vm), 0);
	TEST_ASSERT_EQ(uffd_copy(fd, &g, PAGE, src), 0);
	join_reader(thread, VAL);

	/* What the guest, or fallocate(), has brought is a minor fault. */
	gmem_allocate(&g, PAGE + 1, 1);
	gmem_guest_fill(self->vcpu, &g, PAGE + 1, 1, OTHER);
	kvm_pthread_create(&thread, NULL, user_reads, g.mem + (PAGE + 1) * PAGE_SIZE);
	wait_msg(fd, &g, PAGE + 1, UFFD_PAGEFAULT_FLAG_MINOR);
	TEST_ASSERT_EQ(uffd_continue(fd, &g, PAGE + 1), 0);
	join_reader(thread, OTHER);

	/* The fill of a waiting page may be a fallocate(), and the map another's. */
	kvm_pthread_create(&thread, NULL, user_reads, g.mem + (PAGE + 2) * PAGE_SIZE);
	wait_msg(fd, &g, PAGE + 2, 0);
	gmem_allocate(&g, PAGE + 2, 1);
	TEST_ASSERT_EQ(uffd_copy(fd, &g, PAGE + 2, src), EEXIST);
	TEST_ASSERT_EQ(uffd_continue(fd, &g, PAGE + 2), 0);
	join_reader(thread, 0);

	gmem_destroy(&g);
	close(fd);
	kvm_munmap(src, PAGE_SIZE);
}

/* The descriptor goes while a user waits: the rule for all others applies. */
USERFAULT_TEST(uffd_closed)
{
	struct gmem g;
	pthread_t thread;
	int fd;

	gmem_new(&g, self->vm, NR, GMEM_SHARED_FILE);
	fd = open_registered(&g, UFFDIO_REGISTER_MODE_MISSING);
	kvm_pthread_create(&thread, NULL, user_reads, g.mem + PAGE * PAGE_SIZE);
	wait_msg(fd, &g, PAGE, 0);
	close(fd);
	join_reader(thread, 0);
	gmem_destroy(&g);
}

/* ---- All ways to fill, and to take away, at once ---- */

static void copy_step(void *arg, u64 turn)
{
	struct race *race = arg;
	u64 *src = (u64 *)race->map;
	u64 page;
	int r;

	r = uffd_copy(race->uffd, race->g, turn % NR, src);
	TEST_ASSERT(!r || r == EEXIST || r == EAGAIN, "UFFDIO_COPY: %s", strerror(r));
	r = uffd_continue(race->uffd, race->g, (turn + NR / 2) % NR);
	TEST_ASSERT(!r || r == EEXIST || r == EFAULT || r == EAGAIN, "UFFDIO_CONTINUE: %s",
		    strerror(r));
	if (!(turn % 8)) {
		/* A copy that fails: the page comes, and goes. */
		page = turn / 8 % NR;
		madvise(race->g->mem + page * PAGE_SIZE, PAGE_SIZE, MADV_GUARD_INSTALL);
		r = uffd_copy(race->uffd, race->g, page, src);
		TEST_ASSERT(r == EEXIST || r == EAGAIN, "UFFDIO_COPY: %s", strerror(r));
		madvise(race->g->mem + page * PAGE_SIZE, PAGE_SIZE, MADV_GUARD_REMOVE);
	}
}

static void punch_step(void *arg, u64 turn)
{
	struct race *race = arg;

	gmem_punch(race->g, turn * 7 % NR, 1);
}

/* The guest reads: a page is whole, of whoever has filled it. */
static void check_step(void *arg, u64 turn)
{
	struct race *race = arg;
	struct gmem_guest_cmd *cmd;

	cmd = gmem_guest_prepare(race->vcpu, GMEM_GUEST_CHECK,
				 race->g->gpa + turn % NR * PAGE_SIZE, 1, VAL, 0);
	run_served(race);
	TEST_ASSERT(cmd->bad_page == 1 || !cmd->bad_val, "0x%lx in a page", cmd->bad_val);
}

USERFAULT_TEST(race_uffd)
{
	struct race races[NR_VCPUS + 1];
	struct gmem_worker w[NR_VCPUS + 2];
	void *src = new_source(VAL);
	struct gmem g;
	int i;

	new_file(&g, self->vm, NULL);
	races[0] = (struct race) {
		.g = &g,
		.map = src,
		.uffd = open_registered(&g, UFFDIO_REGISTER_MODE_MISSING |
					    UFFDIO_REGISTER_MODE_MINOR),
	};
	WRITE_ONCE(race_stop, false);
	race_start(&w[0], 0, copy_step, &races[0]);
	race_start(&w[1], 1, punch_step, &races[0]);
	for (i = 0; i < NR_VCPUS; i++) {
		races[i + 1] = (struct race) { .g = &g, .vcpu = self->vcpus[i] };
		race_start(&w[i + 2], i + 2, check_step, &races[i + 1]);
	}
	for (i = 0; i < ARRAY_SIZE(w); i++)
		gmem_wait_until(READ_ONCE(race_turns[i]) > GMEM_LOOPS(500));
	WRITE_ONCE(race_stop, true);
	for (i = 0; i < ARRAY_SIZE(w); i++)
		gmem_worker_join(&w[i]);

	/* The statistics have not lost count: see also the end of the fixture. */
	gmem_punch(&g, 0, NR);
	TEST_ASSERT_EQ(nr_present(self->vm), 0);
	gmem_destroy(&g);
	close(races[0].uffd);
	kvm_munmap(src, PAGE_SIZE);
}

TEST_HARNESS_MAIN
