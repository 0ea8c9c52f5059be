// SPDX-License-Identifier: GPL-2.0-only
/*
 * guest_memfd in VMs whose guest page tables KVM shadows: those of a nested guest,
 * and all if KVM runs without TDP (kvm_amd.npt=0).  What the guest's own entry spans
 * is the most that KVM may map, however large the pages of the file are.
 */
#include "gmem_util.h"
#include "kvm_test_harness.h"
#include "svm_util.h"

#include <linux/userfaultfd.h>
#include <sys/syscall.h>

/* Page i of the guest's view holds VAL + i. */
#define VAL		0x1122334455660000ul

/* Pages of a large page, and of the file. */
#define HUGE		512ul
#define NR_HUGE		2ul
#define NR_FILE		(NR_HUGE * HUGE)

/* A page amid the first large page. */
#define MID		(HUGE / 2 - 3)

#define SHARED_HUGE	(GMEM_SHARED_FILE | GUEST_MEMFD_FLAG_HUGE)
#define PRIVATE_HUGE	(GMEM_PRIVATE_FILE | GUEST_MEMFD_FLAG_HUGE)

/* A page of anonymous memory that a vCPU waits for. */
#define HOLD_GPA	(GMEM_GPA + SZ_64M)
#define HOLD_SLOT	(GMEM_SLOT + 1)

#define NX_HUGE_PAGES	"/sys/module/kvm/parameters/nx_huge_pages"

FIXTURE(shadow) {
	struct kvm_vcpu *vcpus[2];
	struct kvm_vm *vm;
	gva_t svm;
	u64 nr_2m;
	bool has_npt;
};

FIXTURE_VARIANT(shadow) {
	u64 type;
	bool nested;
};

/* The tables of the guest itself: shadowed if there is no TDP. */
FIXTURE_VARIANT_ADD(shadow, guest) {
	.type = KVM_X86_DEFAULT_VM,
};

FIXTURE_VARIANT_ADD(shadow, nested) {
	.type = KVM_X86_DEFAULT_VM,
	.nested = true,
};

FIXTURE_VARIANT_ADD(shadow, nested_private) {
	.type = KVM_X86_SW_PROTECTED_VM,
	.nested = true,
};

FIXTURE_SETUP(shadow)
{
	const struct vm_shape shape = {
		.mode = VM_MODE_DEFAULT,
		.type = variant->type,
	};
	void *code = variant->nested ? (void *)gmem_l1_code : (void *)gmem_guest_server;

	if (!(kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(variant->type)))
		SKIP(return, "No VM type with private memory");
	if (variant->nested && !kvm_cpu_has(X86_FEATURE_SVM))
		SKIP(return, "No nested SVM");

	gmem_test_init();
	self->vm = __vm_create_with_vcpus(shape, 2, 2 * NR_FILE, code, self->vcpus);
	TEST_ASSERT(vm_check_cap(self->vm, KVM_CAP_GUEST_MEMFD_FLAGS) &
		    GUEST_MEMFD_FLAG_HUGE, "No large pages in guest_memfd");

	self->has_npt = variant->nested && kvm_cpu_has_npt();
	if (self->has_npt)
		vm_enable_npt(self->vm);
	if (variant->nested)
		vcpu_alloc_svm(self->vm, &self->svm);
	vcpu_args_set(self->vcpus[0], 1, self->svm);

	/* The other one is a guest of the plain sort. */
	vcpu_arch_set_entry_point(self->vcpus[1], gmem_guest_server);
	vcpu_args_set(self->vcpus[1], 1, 1);
}

FIXTURE_TEARDOWN(shadow)
{
	TEST_ASSERT_EQ(vm_get_stat(self->vm, gmem_pages_private), 0);
	TEST_ASSERT_EQ(vm_get_stat(self->vm, gmem_pages_shared), 0);
	kvm_vm_free(self->vm);
}

#define SHADOW_TEST(name)	TEST_F_TIMEOUT(shadow, name, GMEM_TIMEOUT_S)

/* ---- Guest page tables ---- */

/* Where in the file page @page of vCPU 0's view is, with entries of @entry pages. */
static u64 file_page(u64 page, u64 entry)
{
	return NR_FILE - entry - page / entry * entry + page % entry;
}

/*
 * Have the innermost tables show vCPU 0 the file by entries of @entry pages, the last
 * of the file first: no two neighbours are neighbours in memory.
 */
static void map_file(struct kvm_vm *vm, bool has_npt, u64 entry)
{
	struct kvm_mmu *mmu = has_npt ? &vm->stage2_mmu : &vm->mmu;
	int level = entry == HUGE ? PG_LEVEL_2M : PG_LEVEL_4K;
	u64 i;

	for (i = 0; i < NR_FILE; i += entry)
		__virt_pg_map(vm, mmu, GMEM_GPA + i * PAGE_SIZE,
			      GMEM_GPA + file_page(i, entry) * PAGE_SIZE, level);
	if (!has_npt)
		return;

	virt_map(vm, GMEM_GPA, GMEM_GPA, NR_FILE);
	tdp_identity_map_default_memslots(vm);
}

/* Does KVM shadow the tables that map_file() has made? */
static bool is_shadowed(bool nested)
{
	return nested || !kvm_is_tdp_enabled();
}

static void check_host(struct gmem *g, u64 entry)
{
	u64 i;

	for (i = 0; i < NR_FILE; i += entry)
		gmem_host_check(g, file_page(i, entry), entry, VAL + i);
}

static void check_all_but(struct kvm_vcpu *vcpu, struct gmem *g, u64 page)
{
	gmem_guest_check_fill(vcpu, g, 0, page, VAL);
	gmem_guest_check_fill(vcpu, g, page + 1, NR_FILE - page - 1, VAL + page + 1);
}

#define assert_mapped_2m(want)							\
do {										\
	u64 __nr = vm_get_stat(self->vm, pages_2m) - self->nr_2m;		\
	u64 __want = (want);							\
										\
	TEST_ASSERT(__nr == __want, "%ld large pages mapped, want %lu",		\
		    __nr, __want);						\
} while (0)

/*
 * What the guest stores is in the file, at the right place, and nowhere else; it goes
 * when the page goes, and its mappings when the slot does.
 */
static void check_file(struct kvm_vcpu *vcpu, struct gmem *g, u64 entry)
{
	bool is_private = !(g->flags & GUEST_MEMFD_FLAG_INIT_SHARED);
	u64 mid = file_page(MID, entry);

	if (is_private)
		gmem_to_shared(g, 0, NR_FILE, GMEM_PRESERVE);
	check_host(g, entry);
	gmem_guest_check_fill(vcpu, g, 0, NR_FILE, VAL);

	gmem_punch(g, mid, 1);
	gmem_guest_check_zero(vcpu, g, MID, 1);
	gmem_host_check_zero(g, mid, 1);
	check_all_but(vcpu, g, MID);

	if (is_private)
		gmem_to_private(g, mid, 1, 0);
	gmem_guest_fill(vcpu, g, MID, 1, VAL + MID);

	gmem_unbind(g);
	gmem_bind(g, GMEM_SLOT, GMEM_GPA);
	gmem_guest_check_fill(vcpu, g, 0, NR_FILE, VAL);
}

static void new_huge_file(struct gmem *g, struct kvm_vm *vm, u64 type)
{
	gmem_new(g, vm, NR_FILE, type == KVM_X86_DEFAULT_VM ? SHARED_HUGE : PRIVATE_HUGE);
	gmem_allocate(g, 0, NR_FILE);
}

SHADOW_TEST(small_entries)
{
	struct kvm_vcpu *vcpu = self->vcpus[0];
	struct gmem g;

	map_file(self->vm, self->has_npt, 1);
	gmem_guest_do(vcpu, GMEM_GUEST_NOP, 0, 0, 0, 0);
	self->nr_2m = vm_get_stat(self->vm, pages_2m);

	new_huge_file(&g, self->vm, variant->type);
	gmem_guest_fill(vcpu, &g, 0, NR_FILE, VAL);
	assert_mapped_2m(is_shadowed(variant->nested) ? 0 : NR_HUGE);
	check_file(vcpu, &g, 1);
	gmem_destroy(&g);
}

SHADOW_TEST(large_entries)
{
	struct kvm_vcpu *vcpu = self->vcpus[0];
	struct gmem g;

	map_file(self->vm, self->has_npt, HUGE);
	gmem_guest_do(vcpu, GMEM_GUEST_NOP, 0, 0, 0, 0);
	self->nr_2m = vm_get_stat(self->vm, pages_2m);

	new_huge_file(&g, self->vm, variant->type);
	gmem_guest_fill(vcpu, &g, 0, NR_FILE, VAL);
	assert_mapped_2m(NR_HUGE);
	check_file(vcpu, &g, HUGE);
	gmem_destroy(&g);
}

/* ---- NX huge pages ---- */

static const char *old_nx_huge_pages;

static void restore_nx_huge_pages(void)
{
	gmem_write_file(NX_HUGE_PAGES, old_nx_huge_pages);
}

/* The old value comes back however the test ends. */
static bool force_nx_huge_pages(void)
{
	FILE *f = fopen(NX_HUGE_PAGES, "r");
	char val[16] = "";

	if (!f)
		return false;

	if (!fgets(val, sizeof(val), f))
		val[0] = '\0';
	fclose(f);

	/* "never" can't be left. */
	old_nx_huge_pages = *val == 'Y' ? "force" : "off";
	atexit(restore_nx_huge_pages);
	return !gmem_write_file(NX_HUGE_PAGES, "force");
}

/*
 * KVM sets NX in large entries on its own account, whatever the guest's EFER says of
 * its tables.  If it took its own bit for a reserved one, the kernel's log would say so.
 */
SHADOW_TEST(nx_huge_pages)
{
	struct kvm_vcpu *vcpu = self->vcpus[0];
	struct kvm_sregs sregs;
	struct gmem g;

	if (!force_nx_huge_pages())
		SKIP(return, "No control of nx_huge_pages");

	vcpu_sregs_get(vcpu, &sregs);
	sregs.efer &= ~EFER_NX;
	vcpu_sregs_set(vcpu, &sregs);

	map_file(self->vm, self->has_npt, HUGE);
	gmem_guest_do(vcpu, GMEM_GUEST_NOP, 0, 0, 0, 0);
	self->nr_2m = vm_get_stat(self->vm, pages_2m);

	new_huge_file(&g, self->vm, variant->type);
	gmem_guest_fill(vcpu, &g, 0, NR_FILE, VAL);
	assert_mapped_2m(NR_HUGE);
	check_file(vcpu, &g, HUGE);
	gmem_destroy(&g);
	restore_nx_huge_pages();
}

/* ---- A slot on its way out ---- */

/* Register the page at @mem: whoever touches it waits. */
static int hold_page(u8 *mem)
{
	struct uffdio_register reg = {
		.range = { .start = (u64)mem, .len = PAGE_SIZE },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	struct uffdio_api api = { .api = UFFD_API };
	int fd;

	fd = syscall(__NR_userfaultfd, O_CLOEXEC);
	if (fd < 0)
		return -1;

	TEST_ASSERT(!ioctl(fd, UFFDIO_API, &api), "UFFDIO_API failed, errno %d", errno);
	TEST_ASSERT(!ioctl(fd, UFFDIO_REGISTER, &reg), "UFFDIO_REGISTER failed, errno %d",
		    errno);
	return fd;
}

/* A page of its own, not the zero page: it can be written to without another fault. */
static void release_page(int fd, u8 *mem)
{
	static u8 zeros[PAGE_SIZE];
	struct uffdio_copy copy = {
		.dst = (u64)mem,
		.src = (u64)zeros,
		.len = PAGE_SIZE,
	};

	TEST_ASSERT(!ioctl(fd, UFFDIO_COPY, &copy), "UFFDIO_COPY failed, errno %d", errno);
	close(fd);
}

static void *held_thread(void *vcpu)
{
	gmem_guest_do(vcpu, GMEM_GUEST_CHECK, HOLD_GPA, 1, 0, 0);
	return NULL;
}

/* The slot goes while the guest writes, it may find that there is none. */
static void *held_write_thread(void *vcpu)
{
	vcpu_run(vcpu);
	return NULL;
}

static void *unbind_thread(void *g)
{
	gmem_unbind(g);
	return NULL;
}

/*
 * A vCPU that waits for a page amid a fault holds up the deletion of another slot,
 * which goes on being bound to its file.  The nested guest that starts then is the
 * first reason to have rmaps, and that slot gets none.
 */
SHADOW_TEST(slot_deletion)
{
	struct kvm_vcpu *plain = self->vcpus[1];
	pthread_t held, unbind;
	struct uffd_msg msg;
	struct gmem g;
	u64 first;
	int uffd;
	u8 *mem;

	if (!kvm_is_tdp_enabled())
		SKIP(return, "No pre-fault without TDP, and rmaps from the start");

	mem = kvm_mmap(PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	uffd = hold_page(mem);
	if (uffd < 0)
		SKIP(return, "No userfaultfd");

	virt_map(self->vm, HOLD_GPA, HOLD_GPA, 1);
	map_file(self->vm, self->has_npt, 1);
	vm_set_user_memory_region(self->vm, HOLD_SLOT, 0, HOLD_GPA, PAGE_SIZE, mem);
	new_huge_file(&g, self->vm, variant->type);
	gmem_guest_fill(plain, &g, 0, NR_FILE, VAL);

	kvm_pthread_create(&held, NULL, held_thread, plain);
	TEST_ASSERT_EQ(read(uffd, &msg, sizeof(msg)), sizeof(msg));

	/* EAGAIN tells that the slot is INVALID. */
	kvm_pthread_create(&unbind, NULL, unbind_thread, &g);
	gmem_wait_until(gmem_pre_fault(self->vcpus[0], GMEM_GPA, 1) == EAGAIN);
	gmem_guest_do(self->vcpus[0], GMEM_GUEST_NOP, 0, 0, 0, 0);

	gmem_punch(&g, self->has_npt ? MID : file_page(MID, 1), 1);
	if (variant->type != KVM_X86_DEFAULT_VM) {
		gmem_to_shared(&g, 0, HUGE, GMEM_PRESERVE);
		gmem_to_private(&g, 0, HUGE, GMEM_PRESERVE);
	}
	release_page(uffd, mem);
	kvm_pthread_join(held, NULL);
	kvm_pthread_join(unbind, NULL);

	/* All that has changed is the hole. */
	gmem_bind(&g, GMEM_SLOT, GMEM_GPA);
	gmem_guest_check_zero(plain, &g, MID, 1);
	check_all_but(plain, &g, MID);
	first = self->has_npt ? file_page(0, 1) : 0;
	gmem_guest_check_fill(self->vcpus[0], &g, 0, 1, VAL + first);
	gmem_destroy(&g);
	kvm_munmap(mem, PAGE_SIZE);
}

static void *unset_thread(void *vm)
{
	vm_set_user_memory_region(vm, HOLD_SLOT, 0, HOLD_GPA, 0, NULL);
	return NULL;
}

/*
 * The slot is that of the fault itself, which goes on with it when the page is there,
 * and asks whether a nested guest's tables are in it.  It doesn't have to be the slot
 * of a guest_memfd.
 */
SHADOW_TEST(slot_of_fault)
{
	struct kvm_vcpu *plain = self->vcpus[1];
	pthread_t held, unset;
	struct uffd_msg msg;
	int uffd;
	u8 *mem;

	if (!kvm_is_tdp_enabled())
		SKIP(return, "No pre-fault without TDP, and rmaps from the start");

	mem = kvm_mmap(2 * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	uffd = hold_page(mem);
	if (uffd < 0)
		SKIP(return, "No userfaultfd");

	virt_map(self->vm, HOLD_GPA, HOLD_GPA, 1);
	map_file(self->vm, self->has_npt, 1);
	vm_set_user_memory_region(self->vm, HOLD_SLOT, 0, HOLD_GPA, 2 * PAGE_SIZE, mem);

	gmem_guest_prepare(plain, GMEM_GUEST_FILL, HOLD_GPA, 1, VAL, 1);
	kvm_pthread_create(&held, NULL, held_write_thread, plain);
	TEST_ASSERT_EQ(read(uffd, &msg, sizeof(msg)), sizeof(msg));

	kvm_pthread_create(&unset, NULL, unset_thread, self->vm);
	gmem_wait_until(gmem_pre_fault(self->vcpus[0], HOLD_GPA + PAGE_SIZE, 1) == EAGAIN);
	gmem_guest_do(self->vcpus[0], GMEM_GUEST_NOP, 0, 0, 0, 0);

	release_page(uffd, mem);
	kvm_pthread_join(held, NULL);
	kvm_pthread_join(unset, NULL);

	/* All but the word that was written to nowhere. */
	vm_set_user_memory_region(self->vm, HOLD_SLOT, 0, HOLD_GPA, 2 * PAGE_SIZE, mem);
	if (plain->run->exit_reason == KVM_EXIT_MMIO)
		vcpu_run(plain);
	TEST_ASSERT_EQ(gmem_get_ucall(plain), UCALL_SYNC);
	TEST_ASSERT_EQ(((u64 *)mem)[PAGE_SIZE / sizeof(u64) - 1], VAL);
	vm_set_user_memory_region(self->vm, HOLD_SLOT, 0, HOLD_GPA, 0, NULL);
	kvm_munmap(mem, 2 * PAGE_SIZE);
}

int main(int argc, char *argv[])
{
	return test_harness_run(argc, argv);
}
