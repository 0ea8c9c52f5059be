// SPDX-License-Identifier: GPL-2.0-only
/*
 * KUnit tests of SEV-SNP's guest_memfd with everything real but the hardware: a VM
 * with a vCPU and its nested page tables, memslots, a file that is converted and
 * punched by the system calls, and SNP's hooks, on top of a model of the RMP.
 *
 * The VM is created as a software-protected one, which needs no SEV hardware, and
 * turned into an SNP guest behind KVM's back.  It never runs: what a vCPU would do
 * is a call of what its exit would call.  What its TLB has is kept in mind from one such
 * call to the next, and forgotten when KVM wants that.
 */
#include <kunit/test.h>
#include <linux/falloc.h>
#include <linux/fdtable.h>
#include <linux/file.h>
#include <linux/jhash.h>
#include <linux/kvm_gmem.h>
#include <linux/kvm_gmem_kunit.h>
#include <linux/kvm_host.h>
#include <linux/mman.h>
#include <linux/moduleparam.h>
#include <linux/pagemap.h>
#include <linux/prandom.h>
#include <linux/psp-sev.h>
#include <linux/uaccess.h>

#include <asm/sev.h>
#include <asm/svm.h>

#include "gmem_snp_model.h"
#include "mmu.h"
#include "snp_platform.h"
#include "svm.h"
#include "x86.h"

/* Two blocks of 2 MiB, and what is too short for one. */
#define BLOCK		RMP_REGION
#define NR_BLOCKS	2
#define NR_PAGES	(NR_BLOCKS * BLOCK + 40)
#define NR_REGIONS	128

#define CONTENT_ZERO		KVM_SET_MEMORY_ATTRIBUTES2_ZERO
#define CONTENT_PRESERVE	KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE
#define CONTENT_DISCARD		KVM_SET_MEMORY_ATTRIBUTES2_DISCARD

/* Where the slot may be: two places with large pages, one without. */
#define NR_PLACES	3
static const gfn_t places[NR_PLACES] = { 0x100000, 0x200000, 0x300001 };

/* Every so many operations all is looked at, not only what they were about. */
#define CHECK_ALL	16

static unsigned long gmem_snp_vm_kunit_seed = 0x736e7022;
module_param(gmem_snp_vm_kunit_seed, ulong, 0644);
MODULE_PARM_DESC(gmem_snp_vm_kunit_seed, "Seed of the gmem_snp_vm KUnit tests");

static unsigned long gmem_snp_vm_kunit_ops = IS_ENABLED(CONFIG_KASAN) ? 400 : 4000;
module_param(gmem_snp_vm_kunit_ops, ulong, 0644);
MODULE_PARM_DESC(gmem_snp_vm_kunit_ops, "Random operations of the gmem_snp_vm KUnit tests");

/* Pages at a time that memory failure has hit, and whose frames are lost to the file. */
#define NR_BAD		4

static struct snp_vm {
	struct kunit *test;
	struct rmp_model *m;

	int vm_fd;
	int vcpu_fd;
	int fd;
	struct kvm *kvm;
	struct kvm_vcpu *vcpu;
	struct file *file;
	void __user *umem;
	unsigned long map;

	/*
	 * Let KVM not know where the file is mapped: if it does, an MMU notifier may zap
	 * what guest_memfd forgets to.
	 */
	bool unmapped;

	bool private[NR_PAGES];

	/* What the host has to find in a page, all over, if it is shared. */
	u8 bytes[NR_PAGES];

	/* What the vCPU's TLB has; it forgets all of that when it is told to flush. */
	struct page *tlb[NR_PAGES];

	/* What memory failure has hit. */
	struct page *bad[NR_BAD];
	pgoff_t bad_index[NR_BAD];

	/* The pages that a SEV guest had when last looked at. */
	struct page *was[NR_PAGES];

	/* What the operation at hand is about. */
	pgoff_t start;
	pgoff_t end;

	/* An RMPUPDATE may give up; a page may have been leaked since the last check(). */
	bool may_fail;
	bool may_leak;

	struct rnd_state rnd;
	unsigned long nr_held;
	unsigned long nr_bad;
	unsigned long nr_teardowns;
	unsigned long nr_large;
	unsigned long nr_refused;
	unsigned long nr_leaked;
	unsigned long nr_moved;
} *vm;

static long vm_ioctl(int fd, unsigned int cmd, const void *arg, size_t size)
{
	struct file *file __free(fput) = fget(fd);

	if (size)
		KUNIT_ASSERT_EQ(vm->test, copy_to_user(vm->umem, arg, size), 0);

	return file->f_op->unlocked_ioctl(file, cmd, size ? (unsigned long)vm->umem : 0);
}

static int set_slot(gfn_t gfn, u64 npages)
{
	struct kvm_userspace_memory_region2 region = {
		.flags = KVM_MEM_GUEST_MEMFD,
		.guest_phys_addr = gfn << PAGE_SHIFT,
		.memory_size = npages << PAGE_SHIFT,
		.userspace_addr = vm->unmapped ? 0 : vm->map,
		.guest_memfd = vm->fd,
	};

	vm->m->base_gfn = gfn;
	return vm_ioctl(vm->vm_fd, KVM_SET_USER_MEMORY_REGION2, &region, sizeof(region));
}

static void move_slot(gfn_t gfn)
{
	KUNIT_ASSERT_EQ(vm->test, set_slot(vm->m->base_gfn, 0), 0);
	KUNIT_ASSERT_EQ(vm->test, set_slot(gfn, NR_PAGES), 0);
	vm->nr_moved++;
}

static int convert(pgoff_t start, pgoff_t end, bool to_private, u64 flags)
{
	struct kvm_memory_attributes2 attrs = {
		.offset = start << PAGE_SHIFT,
		.size = (end - start) << PAGE_SHIFT,
		.attributes = to_private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0,
		.flags = flags,
	};
	pgoff_t index;
	int r;

	r = vm_ioctl(vm->fd, KVM_SET_MEMORY_ATTRIBUTES2, &attrs, sizeof(attrs));
	if (r)
		return r;

	for (index = start; index < end && flags != CONTENT_PRESERVE; index++) {
		if (vm->private[index] != to_private || flags)
			vm->bytes[index] = 0;
	}
	memset(&vm->private[start], to_private, end - start);
	return 0;
}

/* The page at @index, NULL if it is absent. */
static struct page *page_at(pgoff_t index)
{
	struct folio *folio = filemap_get_folio(vm->file->f_mapping, index);
	struct page *page;

	if (IS_ERR(folio))
		return NULL;

	page = folio_file_page(folio, index);
	folio_put(folio);
	return page;
}

static int punch(pgoff_t start, pgoff_t end)
{
	pgoff_t index;
	int r;

	r = vm->file->f_op->fallocate(vm->file, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
				      start << PAGE_SHIFT, (end - start) << PAGE_SHIFT);

	/* It may fail halfway. */
	for (index = start; index < end; index++) {
		if (!r || !page_at(index))
			vm->bytes[index] = 0;
	}
	return r;
}

static gpa_t gpa_of(pgoff_t index)
{
	return gfn_to_gpa(vm->m->base_gfn + index);
}

static int map_level(pgoff_t index)
{
	return kvm_mmu_get_mapping_level(vm->vcpu, gpa_of(index));
}

/* The next time that the vCPU enters the guest, it does so with an empty TLB. */
static bool tlb_is_stale(void)
{
	return kvm_test_request(KVM_REQ_TLB_FLUSH, vm->vcpu) ||
	       kvm_test_request(KVM_REQ_MMU_FREE_OBSOLETE_ROOTS, vm->vcpu);
}

static void sync_tlb(void)
{
	if (!vm->vcpu || !tlb_is_stale())
		return;

	/* The other request is for the next fault. */
	kvm_check_request(KVM_REQ_TLB_FLUSH, vm->vcpu);
	memset(vm->tlb, 0, sizeof(vm->tlb));
}

static void fill_tlb(pgoff_t index)
{
	pgoff_t start = index, end = index + 1;

	/* Without a page it is a hole of the host's making. */
	if (map_level(index) == PG_LEVEL_2M) {
		start = ALIGN_DOWN(index, BLOCK);
		end = min(start + BLOCK, NR_PAGES);
	}

	for (; start < end; start++)
		vm->tlb[start] = page_at(start);
}

/* A fault of the guest's, as far as KVM goes: afterwards the page is mapped. */
static int map_page(pgoff_t index)
{
	struct kvm_pre_fault_memory range = { .gpa = gpa_of(index), .size = PAGE_SIZE };
	int r;

	sync_tlb();
	r = vm_ioctl(vm->vcpu_fd, KVM_PRE_FAULT_MEMORY, &range, sizeof(range));
	sync_tlb();
	if (!r)
		fill_tlb(index);
	return r;
}

/* To look at the ends of the page tables has to do. */
static bool guest_has(u64 gpa, unsigned long nr_pages)
{
	pgoff_t index = gpa_to_gfn(gpa) - vm->m->base_gfn, end = index + nr_pages, i;

	if (!vm->vcpu || index >= NR_PAGES)
		return false;

	end = min(end, NR_PAGES);
	for (i = index; !tlb_is_stale() && i < end; i++) {
		if (vm->tlb[i])
			return true;
	}

	return map_level(index) || map_level(end - 1);
}

static int rmp_fault(pgoff_t index, u64 error_code)
{
	guard(srcu)(&vm->kvm->srcu);

	return sev_handle_rmp_fault(vm->vcpu, gpa_of(index),
				    PFERR_GUEST_RMP_MASK | PFERR_GUEST_ENC_MASK | error_code);
}

static struct rmp_owner owner_of(struct page *page)
{
	struct rmp_owner owner = {};
	bool quiet = vm->m->quiet;

	vm->m->quiet = true;
	KUNIT_ASSERT_EQ(vm->test, snp_platform->lookup(page_to_pfn(page), &owner), 0);
	vm->m->quiet = quiet;
	return owner;
}

static struct rmp_owner owner_at(pgoff_t index)
{
	struct page *page = page_at(index);

	KUNIT_ASSERT_NOT_NULL(vm->test, page);
	return owner_of(page);
}

/*
 * The guest uses the private page at @index, in the way that it makes KVM handle
 * whatever is in the way.
 */
static int guest_use(pgoff_t index)
{
	struct page *page;
	int i, tries, r;

	for (tries = 0; tries < 4; tries++) {
		r = map_page(index);
		if (r)
			return r;

		page = page_at(index);
		KUNIT_ASSERT_NOT_NULL(vm->test, page);
		i = rmp_index(vm->m, page_to_pfn(page));
		KUNIT_ASSERT_GE(vm->test, i, 0);
		if (rmp_guest_access(vm->m, i, vm->m->base_gfn + index, map_level(index)))
			return 0;

		r = rmp_fault(index, 0);
		if (r < 0)
			return r;
	}

	/* An entry that is in use for ever has no better end. */
	KUNIT_ASSERT_TRUE_MSG(vm->test, vm->m->fired, "page %lu: RMP faults without end", index);
	return -EBUSY;
}

/* PVALIDATE of a single page. */
static int guest_validate(pgoff_t index)
{
	int r = guest_use(index);

	if (r || owner_at(index).level == PG_LEVEL_4K)
		return r;

	r = rmp_fault(index, PFERR_GUEST_SIZEM_MASK);
	return r < 0 ? r : guest_use(index);
}

static void check_owner(pgoff_t index, struct page *page, int level)
{
	struct rmp_owner owner = owner_of(page);
	int i = rmp_index(vm->m, page_to_pfn(page));

	if (!vm->private[index]) {
		KUNIT_ASSERT_FALSE_MSG(vm->test, owner.assigned, "page %lu", index);
	} else if (owner.assigned) {
		KUNIT_ASSERT_EQ(vm->test, owner.asid, RMP_ASID);
		rmp_check_sum(vm->m, i);
		vm->m->seen[i] = true;
	}

	if (level && vm->private[index]) {
		KUNIT_ASSERT_TRUE_MSG(vm->test, owner.assigned, "page %lu", index);
		KUNIT_ASSERT_EQ_MSG(vm->test, owner.gpa, gpa_of(index), "page %lu", index);
		vm->nr_large += level > PG_LEVEL_4K;
	}
}

/* What is not up to date is zeroed before anyone sees it. */
static void check_bytes(pgoff_t index, struct page *page)
{
	u8 *p = page_address(page);
	int i;

	if (vm->private[index] || PageHWPoison(page) || !folio_test_uptodate(page_folio(page)))
		return;

	i = rmp_index(vm->m, page_to_pfn(page));
	if (i >= 0)
		rmp_host_read(vm->m, i);
	KUNIT_ASSERT_NULL_MSG(vm->test, memchr_inv(p, vm->bytes[index], 64),
			      "page %lu has %#x, not %#x", index, *p, vm->bytes[index]);
}

static void check_page(pgoff_t index, struct page *page, int level)
{
	KUNIT_ASSERT_TRUE_MSG(vm->test, page || !level, "hole %lu is mapped", index);
	if (vm->tlb[index]) {
		KUNIT_ASSERT_PTR_EQ_MSG(vm->test, vm->tlb[index], page,
					"page %lu has gone, but not from the TLB", index);
		KUNIT_ASSERT_NE_MSG(vm->test, level, 0, "page %lu", index);
	}
	if (!page)
		return;

	check_owner(index, page, level);
	check_bytes(index, page);
}

/* Large mappings, and large folios, are looked up once. */
static void check_pages(pgoff_t start, pgoff_t end)
{
	struct folio *folio;
	pgoff_t index, next;
	int level = 0;

	sync_tlb();
	for (index = start; index < end; index = next) {
		folio = filemap_get_folio(vm->file->f_mapping, index);
		next = IS_ERR(folio) ? index + 1 : min(folio_next_index(folio), end);

		for (; index < next; index++) {
			if (level != PG_LEVEL_2M || IS_ALIGNED(index, BLOCK))
				level = vm->vcpu ? map_level(index) : 0;
			check_page(index, IS_ERR(folio) ? NULL : folio_file_page(folio, index),
				   level);
		}
		if (!IS_ERR(folio))
			folio_put(folio);
	}
}

/* Memory failure keeps the frame that it has hit, if it leaves the file or not. */
static void release_bad(int k)
{
	struct page *page = vm->bad[k];

	ClearPageHWPoison(page);
	put_page(page);
	vm->bad[k] = NULL;
}

static void check_bad(void)
{
	int k;

	for (k = 0; k < NR_BAD; k++) {
		if (vm->bad[k] && (!vm->file || page_at(vm->bad_index[k]) != vm->bad[k]))
			release_bad(k);
	}
}

/*
 * A page that isn't in the file any more but that the guest has was refused by the
 * platform.  It must be kept from the allocator, by one reference.  Let it go.
 */
static void release_leaked(struct folio *folio)
{
	int i = rmp_index(vm->m, folio_pfn(folio));
	int k, nr = folio_nr_pages(folio);

	KUNIT_ASSERT_TRUE_MSG(vm->test, vm->may_leak, "leaked without cause");
	KUNIT_ASSERT_EQ_MSG(vm->test, folio_ref_count(folio), 1,
			    "pfn 0x%lx is free or leaked twice", folio_pfn(folio));
	KUNIT_ASSERT_NULL(vm->test, folio->mapping);

	for (k = i; i >= 0 && k < i + nr; k++) {
		vm->m->entry[k] = (struct rmp_entry) {};
		vm->m->stale[k] = false;
		vm->m->cipher[k] = false;
	}
	folio->private = NULL;
	folio_put(folio);
	vm->nr_leaked += nr;
}

/* Nor is it given away if no one could tell whose it is. */
static void release_unknown(void)
{
	struct folio *folio;

	while (vm->m->nr_unknown) {
		folio = pfn_folio(vm->m->unknown[--vm->m->nr_unknown]);
		if (folio_ref_count(folio) && !folio->mapping &&
		    folio->private == KVM_GMEM_FOLIO_LEAKED)
			release_leaked(folio);
	}
}

static void check_region(int r)
{
	int i;

	for (i = r * RMP_REGION; i < (r + 1) * RMP_REGION; i++) {
		if (vm->m->entry[i].assigned && !vm->m->seen[i])
			release_leaked(pfn_folio(rmp_pfn(vm->m, i)));
		else
			KUNIT_ASSERT_FALSE_MSG(vm->test, vm->m->stale[i],
					       "page %d: lines of the guest are left", i);
	}
}

/* What an operation was about, and what is beside it. */
static void check_near(void)
{
	pgoff_t start = vm->start ? vm->start - 1 : 0;

	check_bad();
	release_unknown();
	check_pages(start, min(vm->end + 1, NR_PAGES));
	KUNIT_ASSERT_EQ(vm->test, vm->m->violations, 0);
}

/* The world as it has to be between any two operations. */
static void check(void)
{
	int r;

	check_bad();
	release_unknown();
	for (r = 0; r < vm->m->nr_regions; r++) {
		if (vm->m->pages[r])
			memset(&vm->m->seen[r * RMP_REGION], 0,
			       RMP_REGION * sizeof(*vm->m->seen));
	}

	if (vm->file)
		check_pages(0, NR_PAGES);

	for (r = 0; r < vm->m->nr_regions; r++) {
		if (vm->m->pages[r])
			check_region(r);
	}
	KUNIT_ASSERT_EQ(vm->test, vm->m->violations, 0);
}

/* Set-up */

static int open_vm(struct kunit *test)
{
	struct file *dev __free(fput) = NULL;
	struct file *file;

	file = kvm_gmem_kunit_open_kvm();
	if (IS_ERR(file))
		kunit_skip(test, "no /dev/kvm: %ld", PTR_ERR(file));
	dev = file;

	vm->vm_fd = dev->f_op->unlocked_ioctl(dev, KVM_CREATE_VM, KVM_X86_SW_PROTECTED_VM);
	if (vm->vm_fd < 0)
		kunit_skip(test, "no software-protected VMs: %d", vm->vm_fd);

	file = fget(vm->vm_fd);
	vm->kvm = file->private_data;
	fput(file);

	KUNIT_ASSERT_EQ(test, vm_ioctl(vm->vm_fd, KVM_CREATE_IRQCHIP, NULL, 0), 0);
	vm->vcpu_fd = vm_ioctl(vm->vm_fd, KVM_CREATE_VCPU, NULL, 0);
	if (vm->vcpu_fd < 0)
		return vm->vcpu_fd;

	file = fget(vm->vcpu_fd);
	vm->vcpu = file->private_data;
	fput(file);
	return 0;
}

/* To and fro: KVM itself must not see what it didn't create. */
static void become(unsigned long type)
{
	struct kvm_sev_info *sev = to_kvm_sev_info(vm->kvm);
	bool is_snp = type == KVM_X86_SNP_VM;

	vm->kvm->arch.vm_type = type;
	vm->kvm->arch.has_private_mem = is_snp || type == KVM_X86_SW_PROTECTED_VM;
	sev->active = type != KVM_X86_SW_PROTECTED_VM;
	sev->es_active = is_snp;
	sev->vmsa_features = is_snp ? SVM_SEV_FEAT_SNP_ACTIVE : 0;
	sev->asid = sev->active ? RMP_ASID : 0;
	sev->ghcb_version = 2;
}

static int open_file(u64 flags)
{
	struct kvm_create_guest_memfd args = {
		.size = NR_PAGES << PAGE_SHIFT,
		.flags = GUEST_MEMFD_FLAG_MMAP | flags,
	};

	vm->fd = vm_ioctl(vm->vm_fd, KVM_CREATE_GUEST_MEMFD, &args, sizeof(args));
	if (vm->fd < 0)
		return vm->fd;

	vm->file = fget(vm->fd);
	fput(vm->file);
	memset(vm->private, !(flags & GUEST_MEMFD_FLAG_INIT_SHARED), sizeof(vm->private));
	memset(vm->bytes, 0, sizeof(vm->bytes));

	vm->map = kunit_vm_mmap(vm->test, vm->file, 0, args.size, PROT_READ | PROT_WRITE,
				MAP_SHARED, 0);
	return vm->map && !IS_ERR_VALUE(vm->map) ? 0 : -ENOMEM;
}

static const struct snp_platform_ops *real_platform;

static int gmem_snp_vm_init(struct kunit *test)
{
	unsigned long addr;
	int r;

	vm = NULL;
	real_platform = snp_platform;
	if (snp_platform->has_snp())
		kunit_skip(test, "the host has an RMP of its own");
	if (!boot_cpu_has(X86_FEATURE_SVM) || !npt_enabled)
		kunit_skip(test, "no SVM, or no nested paging");

	vm = kunit_kzalloc(test, sizeof(*vm), GFP_KERNEL);
	if (!vm)
		return -ENOMEM;

	vm->test = test;
	vm->may_leak = true;
	vm->vm_fd = -1;
	vm->vcpu_fd = -1;
	vm->fd = -1;
	vm->m = rmp_model_new(test, NR_REGIONS, true);
	vm->m->guest_has = guest_has;
	prandom_seed_state(&vm->rnd, gmem_snp_vm_kunit_seed);

	/* The caller's mm is to be that of the VM. */
	addr = kunit_vm_mmap(test, NULL, 0, PAGE_SIZE, PROT_READ | PROT_WRITE,
			     MAP_ANONYMOUS | MAP_PRIVATE, 0);
	if (!addr || IS_ERR_VALUE(addr))
		return -ENOMEM;
	vm->umem = (void __user *)addr;

	r = open_vm(test);
	if (r)
		return r;

	rmp_model = vm->m;
	snp_platform = &rmp_model_platform;
	become(KVM_X86_SNP_VM);
	r = open_file(KVM_GMEM_HUGE_FLAG);
	return r ?: set_slot(places[0], NR_PAGES);
}

static void release_all_bad(void)
{
	int k;

	for (k = 0; k < NR_BAD; k++) {
		if (vm->bad[k])
			release_bad(k);
	}
}

static void close_file(void)
{
	/* The test's mm is gone when the suite's exit is called. */
	if (vm->map && current->mm)
		vm_munmap(vm->map, NR_PAGES << PAGE_SHIFT);
	vm->map = 0;
	if (vm->fd >= 0)
		close_fd(vm->fd);
	vm->fd = -1;
	vm->file = NULL;
	flush_delayed_fput();
}

static void close_vm(void)
{
	vm->vcpu = NULL;
	memset(vm->tlb, 0, sizeof(vm->tlb));
	if (vm->kvm)
		become(KVM_X86_SW_PROTECTED_VM);
	if (vm->vcpu_fd >= 0)
		close_fd(vm->vcpu_fd);
	if (vm->vm_fd >= 0)
		close_fd(vm->vm_fd);
	vm->vcpu_fd = -1;
	vm->vm_fd = -1;
	vm->kvm = NULL;
	flush_delayed_fput();
}

static void gmem_snp_vm_exit(struct kunit *test)
{
	if (vm) {
		/* No vCPU enters a guest whose mm is gone, whatever is in its TLB. */
		vm->vcpu = NULL;
		vm->m->may_split = true;
		close_file();
		close_vm();
		release_all_bad();
	}
	snp_platform = real_platform;
	rmp_model = NULL;
	vm = NULL;
}

/* The tests. */

static void gmem_snp_vm_use(struct kunit *test)
{
	/* Large where folio, state and slot allow it. */
	KUNIT_EXPECT_EQ(test, guest_use(5), 0);
	KUNIT_EXPECT_EQ(test, owner_at(0).level, PG_LEVEL_2M);
	KUNIT_EXPECT_EQ(test, map_level(511), PG_LEVEL_2M);
	KUNIT_EXPECT_EQ(test, guest_use(2 * BLOCK + 1), 0);
	KUNIT_EXPECT_EQ(test, map_level(2 * BLOCK + 1), PG_LEVEL_4K);
	check();

	KUNIT_EXPECT_EQ(test, convert(7, 8, false, 0), 0);
	check();
	KUNIT_EXPECT_FALSE(test, owner_at(7).assigned);
	KUNIT_EXPECT_EQ(test, owner_at(8).level, PG_LEVEL_4K);
	KUNIT_EXPECT_EQ(test, map_page(7), 0);
	check();
	KUNIT_EXPECT_EQ(test, guest_use(8), 0);
	KUNIT_EXPECT_EQ(test, punch(0, 2 * BLOCK), 0);
	check();
	KUNIT_EXPECT_EQ(test, vm->nr_leaked, 0);
}

/* Whatever a page becomes, no use of it goes on, not even if no MMU notifier helps. */
static void gmem_snp_vm_zap(struct kunit *test)
{
	vm->unmapped = true;
	move_slot(places[1]);

	KUNIT_EXPECT_EQ(test, guest_use(5), 0);
	KUNIT_EXPECT_EQ(test, guest_use(BLOCK + 5), 0);
	KUNIT_EXPECT_EQ(test, convert(7, 8, false, 0), 0);
	KUNIT_EXPECT_EQ(test, convert(BLOCK, 2 * BLOCK, false, 0), 0);
	check();

	KUNIT_EXPECT_EQ(test, map_page(7), 0);
	KUNIT_EXPECT_EQ(test, map_page(BLOCK + 7), 0);
	KUNIT_EXPECT_EQ(test, convert(7, 8, true, 0), 0);
	KUNIT_EXPECT_EQ(test, map_level(7), 0);
	KUNIT_EXPECT_EQ(test, punch(BLOCK + 7, BLOCK + 8), 0);
	check();

	KUNIT_EXPECT_EQ(test, guest_use(8), 0);
	KUNIT_EXPECT_EQ(test, punch(8, 9), 0);
	check();
	KUNIT_EXPECT_EQ(test, vm->nr_leaked, 0);
}

/* If the platform doesn't want 2 MiB, it gets one page. */
static void gmem_snp_vm_no_2m(struct kunit *test)
{
	vm->m->no_2m = true;
	KUNIT_EXPECT_EQ(test, guest_use(5), 0);
	KUNIT_EXPECT_EQ(test, owner_at(5).level, PG_LEVEL_4K);
	KUNIT_EXPECT_FALSE(test, owner_at(4).assigned);
	check();

	vm->m->no_2m = false;
	KUNIT_EXPECT_EQ(test, guest_use(BLOCK), 0);
	vm->m->no_2m = true;
	move_slot(places[1]);
	KUNIT_EXPECT_EQ(test, guest_use(BLOCK + 9), 0);
	KUNIT_EXPECT_EQ(test, owner_at(BLOCK).level, PG_LEVEL_4K);
	check();
}

/* The slot goes, and its memory comes again elsewhere, or where it was. */
static void gmem_snp_vm_move(struct kunit *test)
{
	struct rmp_entry *first;

	KUNIT_ASSERT_EQ(test, guest_use(5), 0);
	KUNIT_ASSERT_EQ(test, guest_validate(BLOCK + 5), 0);
	KUNIT_ASSERT_EQ(test, owner_at(BLOCK).level, PG_LEVEL_4K);
	first = rmp_first(vm->m, rmp_index(vm->m, page_to_pfn(page_at(5))));

	move_slot(places[0]);
	KUNIT_EXPECT_EQ(test, map_page(5), 0);
	KUNIT_EXPECT_TRUE(test, first->validated);
	check();

	move_slot(places[1]);
	KUNIT_EXPECT_EQ(test, map_page(6), 0);
	KUNIT_EXPECT_FALSE(test, first->validated);
	KUNIT_EXPECT_TRUE(test, first->huge);
	KUNIT_EXPECT_EQ(test, guest_use(5), 0);
	KUNIT_EXPECT_EQ(test, guest_use(BLOCK + 5), 0);
	KUNIT_EXPECT_EQ(test, owner_at(BLOCK + 5).gpa, gpa_of(BLOCK + 5));
	check();

	/* There a 2 MiB entry has no place, and is split for one page. */
	move_slot(places[2]);
	KUNIT_EXPECT_EQ(test, guest_use(5), 0);
	KUNIT_EXPECT_FALSE(test, first->huge);
	check();

	/* Somebody else's page is never taken. */
	first[5].asid++;
	move_slot(places[0]);
	KUNIT_EXPECT_NE(test, map_page(5), 0);
	KUNIT_EXPECT_EQ(test, map_level(5), 0);
	first[5].asid--;
	check();
}

static unsigned long zaps(void)
{
	return vm->kvm->mmu_invalidate_seq;
}

/* PVALIDATE of single pages in a large entry, by several vCPUs. */
static void gmem_snp_vm_fault_size(struct kunit *test)
{
	unsigned long seq;

	KUNIT_ASSERT_EQ(test, guest_use(100), 0);
	KUNIT_ASSERT_EQ(test, guest_use(BLOCK + 100), 0);
	KUNIT_ASSERT_EQ(test, map_level(BLOCK), PG_LEVEL_2M);

	/* One zap, of the aligned block. */
	KUNIT_EXPECT_EQ(test, rmp_fault(100, PFERR_GUEST_SIZEM_MASK), 1);
	KUNIT_EXPECT_EQ(test, owner_at(100).level, PG_LEVEL_4K);
	KUNIT_EXPECT_EQ(test, map_level(0), 0);
	KUNIT_EXPECT_EQ(test, map_level(511), 0);
	KUNIT_EXPECT_EQ(test, map_level(BLOCK), PG_LEVEL_2M);
	check();

	/* The others come too late. */
	seq = zaps();
	KUNIT_EXPECT_EQ(test, rmp_fault(101, PFERR_GUEST_SIZEM_MASK), 1);
	KUNIT_EXPECT_EQ(test, guest_use(102), 0);
	KUNIT_EXPECT_EQ(test, rmp_fault(102, PFERR_GUEST_SIZEM_MASK), 1);
	KUNIT_EXPECT_EQ(test, map_level(102), PG_LEVEL_4K);
	KUNIT_EXPECT_EQ(test, zaps(), seq);
	KUNIT_EXPECT_EQ(test, vm->m->calls[RMP_PSMASH], 1);
	KUNIT_EXPECT_EQ(test, vm->m->calls[RMP_SPLIT_MAP], 0);

	/* A conversion has split the entry, and left a large mapping. */
	KUNIT_EXPECT_EQ(test, snp_gmem_psmash(page_to_pfn(page_at(BLOCK))), 0);
	KUNIT_EXPECT_EQ(test, rmp_fault(BLOCK + 1, 0), 1);
	KUNIT_EXPECT_EQ(test, map_level(BLOCK), 0);
	KUNIT_EXPECT_EQ(test, guest_use(BLOCK + 1), 0);
	check();
}

/* What the platform refuses, and what only the guest can mend. */
static void gmem_snp_vm_fault_refused(struct kunit *test)
{
	struct kvm_run *run = vm->vcpu->run;
	unsigned long seq;

	KUNIT_ASSERT_EQ(test, guest_use(100), 0);
	seq = zaps();

	/* Busy: the guest will be back. */
	rmp_arm_call(vm->m, RMP_PSMASH, PSMASH_FAIL_INUSE);
	KUNIT_EXPECT_EQ(test, rmp_fault(100, PFERR_GUEST_SIZEM_MASK), 1);

	rmp_arm_call(vm->m, RMP_PSMASH, RMP_NO_PERM);
	KUNIT_EXPECT_EQ(test, rmp_fault(100, PFERR_GUEST_SIZEM_MASK), -EFAULT);
	KUNIT_EXPECT_EQ(test, run->exit_reason, KVM_EXIT_MEMORY_FAULT);
	rmp_disarm(vm->m);

	run->exit_reason = KVM_EXIT_UNKNOWN;
	KUNIT_EXPECT_EQ(test, rmp_fault(100, 0), 1);
	KUNIT_EXPECT_EQ(test, run->exit_reason, KVM_EXIT_UNKNOWN);

	KUNIT_EXPECT_EQ(test, rmp_fault(100, PFERR_GUEST_VMPL_MASK | PFERR_WRITE_MASK),
			-EFAULT);
	KUNIT_EXPECT_EQ(test, run->exit_reason, KVM_EXIT_MEMORY_FAULT);
	KUNIT_EXPECT_EQ(test, run->memory_fault.gpa, gpa_of(100));
	KUNIT_EXPECT_EQ(test, run->memory_fault.size, PAGE_SIZE);
	KUNIT_EXPECT_EQ(test, run->memory_fault.flags, KVM_MEMORY_EXIT_FLAG_PRIVATE);

	/* No page to be had. */
	run->exit_reason = KVM_EXIT_UNKNOWN;
	rmp_arm_call(vm->m, RMP_LOOKUP, -EIO);
	KUNIT_EXPECT_EQ(test, rmp_fault(100, 0), -ENOENT);
	KUNIT_EXPECT_EQ(test, run->exit_reason, KVM_EXIT_MEMORY_FAULT);
	rmp_disarm(vm->m);
	KUNIT_EXPECT_EQ(test, zaps(), seq);
	KUNIT_EXPECT_EQ(test, map_level(100), PG_LEVEL_2M);

	/* The page has become shared, or the slot has gone, in the meantime. */
	KUNIT_EXPECT_EQ(test, convert(100, 101, false, 0), 0);
	KUNIT_EXPECT_EQ(test, rmp_fault(100, 0), 1);
	KUNIT_EXPECT_EQ(test, rmp_fault(NR_PAGES, 0), 1);
	check();
}

/* Entries in use: for a moment, and for ever. */
static void gmem_snp_vm_in_use(struct kunit *test)
{
	vm->m->busy = 3;
	KUNIT_EXPECT_EQ(test, guest_use(5), 0);
	KUNIT_EXPECT_EQ(test, vm->m->busy, 0);
	KUNIT_EXPECT_EQ(test, owner_at(5).level, PG_LEVEL_2M);

	vm->m->busy = 3;
	KUNIT_EXPECT_EQ(test, convert(5, 6, false, 0), 0);
	KUNIT_EXPECT_NOT_NULL(test, page_at(5));
	vm->m->busy = 3;
	KUNIT_EXPECT_EQ(test, punch(6, 7), 0);
	check();
	KUNIT_EXPECT_EQ(test, vm->nr_leaked, 0);

	/* Lost, but once. */
	vm->m->busy = UINT_MAX;
	KUNIT_EXPECT_EQ(test, convert(7, 8, false, 0), 0);
	KUNIT_EXPECT_NULL(test, page_at(7));
	KUNIT_EXPECT_EQ(test, punch(8, 9), 0);
	vm->m->busy = 0;
	check();
	KUNIT_EXPECT_EQ(test, vm->nr_leaked, 2);
	KUNIT_EXPECT_GE(test, atomic64_read(&vm->kvm->stat.generic.gmem_pages_leaked), 1);
}

/* Large, split by the guest, split by a conversion, small, and shared pages. */
static void fill_all_sorts(struct kunit *test)
{
	KUNIT_ASSERT_EQ(test, guest_use(5), 0);
	KUNIT_ASSERT_EQ(test, guest_validate(BLOCK + 5), 0);
	KUNIT_ASSERT_EQ(test, guest_use(2 * BLOCK + 5), 0);
	KUNIT_ASSERT_EQ(test, convert(2 * BLOCK + 6, 2 * BLOCK + 7, false, 0), 0);
	KUNIT_ASSERT_EQ(test, map_page(2 * BLOCK + 6), 0);
	check();

	/* Nothing has been converted in the second block, so its map is whole. */
	vm->m->may_split = true;
}

static void gmem_snp_vm_file_first(struct kunit *test)
{
	fill_all_sorts(test);
	close_file();
	check();
	KUNIT_EXPECT_EQ(test, vm->nr_leaked, 0);
	close_vm();
	check();
}

static void gmem_snp_vm_vm_first(struct kunit *test)
{
	fill_all_sorts(test);
	close_vm();
	close_file();
	check();
	KUNIT_EXPECT_EQ(test, vm->nr_leaked, 0);
}

static void gmem_snp_vm_mapping_last(struct kunit *test)
{
	fill_all_sorts(test);
	close_vm();
	close_fd(vm->fd);
	vm->fd = -1;
	flush_delayed_fput();
	KUNIT_EXPECT_TRUE(test, owner_at(5).assigned);
	close_file();
	check();
	KUNIT_EXPECT_EQ(test, vm->nr_leaked, 0);
}

/* A direct map that can't be split at the end of the file costs the folio. */
static void gmem_snp_vm_no_memory(struct kunit *test)
{
	fill_all_sorts(test);
	rmp_arm_call(vm->m, RMP_SPLIT_MAP, -ENOMEM);
	close_file();
	rmp_disarm(vm->m);
	check();
	KUNIT_EXPECT_EQ(test, vm->nr_leaked, BLOCK);
}

/* The GHCB */

#define GHCB_INDEX	(2 * BLOCK + 3)

static struct ghcb *ghcb(void)
{
	return page_address(page_at(GHCB_INDEX));
}

/* As KVM_RUN does, around what a vCPU's exit calls. */
static void vcpu_enter(void)
{
	vcpu_load(vm->vcpu);
	kvm_vcpu_srcu_read_lock(vm->vcpu);
}

static void vcpu_leave(void)
{
	kvm_vcpu_srcu_read_unlock(vm->vcpu);
	vcpu_put(vm->vcpu);
}

static void deliver_sipi(void)
{
	vcpu_enter();
	sev_vcpu_deliver_sipi_vector(vm->vcpu, 0);
	vcpu_leave();
}

/* A VMGEXIT that uses the GHCB. */
static int vmgexit(u64 exit_code, u64 scratch)
{
	struct vcpu_svm *svm = to_svm(vm->vcpu);
	int r;

	svm->vmcb->control.ghcb_gpa = gpa_of(GHCB_INDEX);
	svm->sev_es.ghcb_registered_gpa = gpa_of(GHCB_INDEX);
	ghcb_set_sw_exit_code(ghcb(), exit_code);
	ghcb_set_sw_exit_info_1(ghcb(), 0);
	ghcb_set_sw_exit_info_2(ghcb(), 0xbad);
	if (scratch)
		ghcb_set_sw_scratch(ghcb(), scratch);

	vcpu_enter();
	r = sev_handle_vmgexit(vm->vcpu);
	vcpu_leave();
	return r;
}

static void ghcb_init(struct kunit *test)
{
	struct vcpu_svm *svm = to_svm(vm->vcpu);

	svm->sev_es.ghcb = kunit_kzalloc(test, sizeof(struct ghcb), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, svm->sev_es.ghcb);
	KUNIT_ASSERT_EQ(test, convert(GHCB_INDEX, GHCB_INDEX + 1, false, 0), 0);
	KUNIT_ASSERT_EQ(test, map_page(GHCB_INDEX), 0);
	memset(ghcb(), 0, PAGE_SIZE);
}

static void ghcb_exit(void)
{
	to_svm(vm->vcpu)->sev_es.ghcb = NULL;
}

/* A CPU goes offline; what is left of it must not stand in the way of kexec. */
static void gmem_snp_vm_ghcb_parked(struct kunit *test)
{
	ghcb_init(test);
	KUNIT_EXPECT_EQ(test, vmgexit(SVM_VMGEXIT_AP_HLT_LOOP, 0), 1);
	KUNIT_EXPECT_EQ(test, vm->vcpu->arch.mp_state, KVM_MP_STATE_AP_RESET_HOLD);
	KUNIT_EXPECT_EQ(test, ghcb()->save.sw_exit_info_2, 0);
	KUNIT_EXPECT_FALSE(test, folio_maybe_dma_pinned(page_folio(page_at(GHCB_INDEX))));
	KUNIT_EXPECT_EQ(test, convert(GHCB_INDEX, GHCB_INDEX + 1, true, 0), 0);
	check();

	/* Without a GHCB SIPI gets lost, with one it arrives. */
	to_svm(vm->vcpu)->sev_es.received_first_sipi = true;
	deliver_sipi();
	KUNIT_EXPECT_EQ(test, convert(GHCB_INDEX, GHCB_INDEX + 1, false, 0), 0);
	KUNIT_EXPECT_EQ(test, map_page(GHCB_INDEX), 0);
	deliver_sipi();
	KUNIT_EXPECT_EQ(test, ghcb()->save.sw_exit_info_2, 1);
	check();
	ghcb_exit();
}

/* While user space is busy with a request, too; what it answers gets through. */
static void gmem_snp_vm_ghcb_psc(struct kunit *test)
{
	struct kvm_vcpu *vcpu = vm->vcpu;
	struct psc_entry *entry;
	struct psc_hdr *hdr;
	int (*complete)(struct kvm_vcpu *vcpu);

	ghcb_init(test);
	vm->kvm->arch.hypercall_exit_enabled = BIT(KVM_HC_MAP_GPA_RANGE);
	hdr = (void *)ghcb()->shared_buffer;
	entry = (void *)(hdr + 1);
	entry->gfn = places[0] + 1;
	entry->operation = VMGEXIT_PSC_OP_PRIVATE;

	KUNIT_EXPECT_EQ(test, vmgexit(SVM_VMGEXIT_PSC, gpa_of(GHCB_INDEX) +
				      offsetof(struct ghcb, shared_buffer)), 0);
	KUNIT_EXPECT_EQ(test, vcpu->run->exit_reason, KVM_EXIT_HYPERCALL);
	KUNIT_EXPECT_EQ(test, vcpu->run->hypercall.args[0], gfn_to_gpa(places[0] + 1));
	KUNIT_EXPECT_FALSE(test, folio_maybe_dma_pinned(page_folio(page_at(GHCB_INDEX))));
	KUNIT_EXPECT_TRUE(test, entry->cur_page == 0);

	complete = vcpu->arch.complete_userspace_io;
	vcpu->arch.complete_userspace_io = NULL;
	KUNIT_ASSERT_NOT_NULL(test, complete);
	vcpu_enter();
	KUNIT_EXPECT_EQ(test, complete(vcpu), 1);
	sev_es_complete_vmgexit(vcpu);
	vcpu_leave();

	KUNIT_EXPECT_TRUE(test, entry->cur_page == 1);
	KUNIT_EXPECT_EQ(test, hdr->cur_entry, 1);
	KUNIT_EXPECT_EQ(test, ghcb()->save.sw_exit_info_2, 0);
	KUNIT_EXPECT_EQ(test, convert(GHCB_INDEX, GHCB_INDEX + 1, true, 0), 0);
	check();
	ghcb_exit();
}

/* Random operations */

static u32 below(u32 n)
{
	return prandom_u32_state(&vm->rnd) % n;
}

/* Of pages, or of a page, and the operation at hand is about them. */
static void random_range(void)
{
	switch (below(8)) {
	case 0:
		vm->start = 0;
		vm->end = NR_PAGES;
		break;
	case 1 ... 3:
		vm->start = below(NR_BLOCKS) * BLOCK;
		vm->end = vm->start + BLOCK;
		break;
	default:
		vm->start = below(NR_PAGES);
		vm->end = min(vm->start + 1 + below(8), NR_PAGES);
	}
}

static pgoff_t random_index(void)
{
	vm->start = below(NR_PAGES);
	vm->end = vm->start + 1;
	return vm->start;
}

/* Now and then something fails, in any call, or takes its time, or too long. */
static void random_arm(void)
{
	rmp_disarm(vm->m);
	vm->m->busy = below(8) ? 0 : below(5);
	vm->may_fail = !below(256);
	if (vm->may_fail)
		vm->m->busy = 1000 + below(1000);
	vm->m->no_2m = !below(32);
	if (below(16))
		return;

	if (below(4))
		vm->m->code[RMP_PSMASH] = PSMASH_FAIL_INUSE;
	rmp_arm(vm->m, 1 + below(below(4) ? 4 : 600), below(4) == 0);
}

static void random_disarm(void)
{
	vm->may_fail |= vm->m->fired;
	vm->may_leak |= vm->may_fail;
	rmp_disarm(vm->m);
	vm->m->busy = 0;
	vm->m->no_2m = false;
}

static bool is_bad(pgoff_t index)
{
	struct page *page = page_at(index);

	return page && PageHWPoison(page);
}

static void random_touch(void)
{
	pgoff_t index = random_index();
	int r;

	if (is_bad(index)) {
		KUNIT_ASSERT_EQ(vm->test, map_page(index), -EHWPOISON);
		return;
	}

	if (!vm->private[index])
		r = map_page(index);
	else
		r = below(4) ? guest_use(index) : guest_validate(index);

	/* Without cause nothing fails, and a second attempt may succeed. */
	random_disarm();
	KUNIT_ASSERT_TRUE(vm->test, !r || (vm->may_fail && vm->private[index]));
	if (r)
		KUNIT_ASSERT_EQ(vm->test, guest_use(index), 0);
}

/*
 * KVM uses a shared page.  What is drawn doesn't depend on where in memory pages are, so
 * that a seed says it all.
 */
static void random_write(void)
{
	pgoff_t index = random_index();
	struct page *page = page_at(index);
	u8 value = below(256);
	int i;

	if (!page || vm->private[index] || PageHWPoison(page) ||
	    !folio_test_uptodate(page_folio(page)))
		return;

	i = rmp_index(vm->m, page_to_pfn(page));
	if (i < 0)
		return;

	vm->bytes[index] = value;
	rmp_host_read(vm->m, i);
	rmp_host_write(vm->m, i, value);
}

static void __user *user_page(pgoff_t index)
{
	return (void __user *)(vm->map + index * PAGE_SIZE);
}

/* User space uses a page; it may if that is shared. */
static void random_user(void)
{
	pgoff_t index = random_index();
	bool may = !vm->private[index] && !is_bad(index);
	u8 buf[64];

	random_disarm();
	KUNIT_ASSERT_EQ(vm->test, copy_from_user(buf, user_page(index), sizeof(buf)),
			may ? 0 : sizeof(buf));
	if (may) {
		KUNIT_ASSERT_NULL(vm->test, memchr_inv(buf, vm->bytes[index], sizeof(buf)));
		vm->bytes[index] = below(256);
	}

	memset(buf, vm->bytes[index], sizeof(buf));
	KUNIT_ASSERT_EQ(vm->test, copy_to_user(user_page(index), buf, sizeof(buf)),
			may ? 0 : sizeof(buf));
}

/* Somebody holds a page that is to go private. */
static struct page *random_hold(void)
{
	pgoff_t index = vm->start + below(vm->end - vm->start);
	struct page *page = page_at(index);

	if (below(4) || !page || vm->private[index] || PageHWPoison(page))
		return NULL;

	get_page(page);
	return page;
}

/* Nothing has happened, and the VMM is told where to look. */
static void expect_held(struct page *page, int r)
{
	struct kvm_memory_attributes2 attrs;
	struct folio *folio = page_folio(page);

	KUNIT_ASSERT_EQ(vm->test, r, -EAGAIN);
	KUNIT_ASSERT_EQ(vm->test, copy_from_user(&attrs, vm->umem, sizeof(attrs)), 0);
	KUNIT_ASSERT_EQ(vm->test, attrs.error_offset >> PAGE_SHIFT,
			max(folio->index, vm->start));
	put_page(page);
	vm->nr_held++;
}

static void random_convert(void)
{
	bool to_private = below(5) < 3;
	struct page *held = NULL;
	u64 flags = 0;
	int r;

	random_range();
	if (!below(4))
		flags = CONTENT_DISCARD;
	else if (!to_private && !below(2))
		flags = CONTENT_ZERO;

	if (to_private && !flags)
		held = random_hold();
	r = convert(vm->start, vm->end, to_private, flags);
	if (held)
		expect_held(held, r);
	else
		KUNIT_ASSERT_TRUE(vm->test, !r || vm->m->fired);
	vm->nr_refused += !!r;
}

/* What the VM type doesn't offer. */
static void random_refused(void)
{
	bool to_private = below(2);

	random_range();
	KUNIT_ASSERT_EQ(vm->test, convert(vm->start, vm->end, to_private,
					  to_private && below(2) ? CONTENT_ZERO :
					  CONTENT_PRESERVE), -EOPNOTSUPP);
}

static void random_punch(void)
{
	int r;

	random_range();
	r = punch(vm->start, vm->end);
	KUNIT_ASSERT_TRUE(vm->test, !r || vm->m->fired);
	vm->nr_refused += !!r;
}

/* Memory failure, without what mm does of it: to split the folio, and to take notes. */
static void poison(int k, pgoff_t index, struct page *page)
{
	struct address_space *mapping = vm->file->f_mapping;

	get_page(page);
	SetPageHWPoison(page);
	folio_lock(page_folio(page));
	mapping->a_ops->error_remove_folio(mapping, page_folio(page));
	folio_unlock(page_folio(page));

	vm->bad[k] = page;
	vm->bad_index[k] = index;
	vm->nr_bad++;
}

static void random_poison(void)
{
	pgoff_t index = random_index();
	int k = below(NR_BAD);
	struct page *page;

	random_disarm();

	/* At the end of the file no folio is large. */
	if (below(2)) {
		index = NR_PAGES - 1 - below(NR_PAGES % BLOCK);
		if (!is_bad(index))
			KUNIT_ASSERT_EQ(vm->test, map_page(index), 0);
	}
	vm->start = index;
	vm->end = index + 1;
	page = page_at(index);

	if (vm->bad[k]) {
		vm->start = vm->bad_index[k];
		vm->end = vm->start + 1;
		KUNIT_ASSERT_EQ(vm->test, punch(vm->start, vm->end), 0);
	} else if (IS_ENABLED(CONFIG_MEMORY_FAILURE) && page && !PageHWPoison(page) &&
		   !folio_test_large(page_folio(page))) {
		poison(k, index, page);
	}
}

/* File, mapping and VM end, in any order. */
static void teardown(int order)
{
	vm->m->may_split = true;
	if (order)
		close_vm();
	if (order == 2) {
		close_fd(vm->fd);
		vm->fd = -1;
		flush_delayed_fput();
	}
	close_file();
	if (!order)
		close_vm();
	random_disarm();
	check();
	vm->m->may_split = false;
	vm->nr_teardowns++;
}

static void random_slot(void)
{
	vm->unmapped = below(2);
	KUNIT_ASSERT_EQ(vm->test, set_slot(places[below(NR_PLACES)], NR_PAGES), 0);
	random_range();
}

static void random_teardown(void)
{
	u64 flags = below(2) ? GUEST_MEMFD_FLAG_INIT_SHARED : 0;

	teardown(below(3));

	KUNIT_ASSERT_EQ(vm->test, open_vm(vm->test), 0);
	become(KVM_X86_SNP_VM);
	KUNIT_ASSERT_EQ(vm->test, open_file(KVM_GMEM_HUGE_FLAG | flags), 0);
	random_slot();
}

static void random_move(void)
{
	KUNIT_ASSERT_EQ(vm->test, set_slot(vm->m->base_gfn, 0), 0);
	random_slot();
	vm->nr_moved++;
}

static void random_op(void)
{
	random_arm();
	switch (below(64)) {
	case 0:
		random_move();
		break;
	case 1 ... 3:
		random_punch();
		break;
	case 4:
		random_poison();
		break;
	case 5:
		random_refused();
		break;
	case 6 ... 20:
		random_convert();
		break;
	case 21 ... 25:
		random_write();
		break;
	case 26 ... 32:
		random_user();
		break;
	case 33:
		if (!below(8))
			random_teardown();
		break;
	default:
		random_touch();
	}
	random_disarm();
}

static void gmem_snp_vm_random(struct kunit *test)
{
	unsigned long n;

	vm->may_leak = false;
	for (n = 0; n < gmem_snp_vm_kunit_ops; n++) {
		random_op();
		check_near();
		if (n % CHECK_ALL == 0) {
			check();
			vm->may_leak = false;
		}
		cond_resched();
	}

	kunit_info(test, "%lu operations, %lu refused, %lu of these held, %lu moves, %lu teardowns",
		   n, vm->nr_refused, vm->nr_held, vm->nr_moved, vm->nr_teardowns);
	kunit_info(test, "%lu pages leaked, %lu bad, %lu large, %lu RMPUPDATEs refused of %lu",
		   vm->nr_leaked, vm->nr_bad, vm->nr_large, vm->m->refused,
		   vm->m->transitions);
	KUNIT_EXPECT_GT(test, vm->nr_large, 0);
	KUNIT_EXPECT_GT(test, vm->nr_moved, 0);
	KUNIT_EXPECT_GT(test, vm->nr_held, 0);

	vm->may_leak = true;
	teardown(0);
}

/* Launch */

/* As KVM_SEV_SNP_LAUNCH_UPDATE, which would first ask whether there is SEV. */
static long launch(pgoff_t index, long nr, struct snp_gmem_launch *launch)
{
	guard(mutex)(&vm->kvm->slots_lock);

	return kvm_gmem_populate(vm->kvm, vm->m->base_gfn + index, NULL, nr, false,
				 snp_gmem_post_populate, launch);
}

static void user_fill(pgoff_t index, u8 value)
{
	u8 buf[64];

	memset(buf, value, sizeof(buf));
	KUNIT_ASSERT_EQ(vm->test, copy_to_user(user_page(index), buf, sizeof(buf)), 0);
	vm->bytes[index] = value;
}

static void launch_init(struct kunit *test)
{
	struct kvm_sev_info *sev = to_kvm_sev_info(vm->kvm);

	KUNIT_ASSERT_EQ(test, set_slot(places[0], 0), 0);
	close_file();
	KUNIT_ASSERT_EQ(test, open_file(KVM_GMEM_HUGE_FLAG | GUEST_MEMFD_FLAG_INIT_SHARED), 0);
	KUNIT_ASSERT_EQ(test, set_slot(places[0], NR_PAGES), 0);
	vm->kvm->arch.pre_fault_allowed = false;
	sev->snp_context = kunit_kzalloc(test, 64, GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, sev->snp_context);
	vm->m->gctx = __pa(sev->snp_context) | RMP_C_BIT;
}

static void launch_exit(void)
{
	to_kvm_sev_info(vm->kvm)->snp_context = NULL;
}

/* An image that user space writes to the pages themselves is measured, byte by byte. */
static void gmem_snp_vm_launch(struct kunit *test)
{
	struct snp_gmem_launch args = { .type = KVM_SEV_SNP_PAGE_TYPE_NORMAL, .sev_fd = 7 };
	struct rmp_model *m = vm->m;
	u32 sum;

	launch_init(test);
	user_fill(3, 0x33);
	user_fill(4, 0x44);
	sum = jhash(page_address(page_at(4)), 64, 0);
	KUNIT_EXPECT_EQ(test, launch(3, 1, &args), -EINVAL);
	KUNIT_EXPECT_EQ(test, convert(3, 5, true, CONTENT_PRESERVE), 0);
	KUNIT_EXPECT_EQ(test, launch(3, 2, &args), 2);
	KUNIT_EXPECT_EQ(test, m->measured, sum);
	KUNIT_EXPECT_EQ(test, m->fd, 7);
	KUNIT_EXPECT_EQ(test, launch(4, 1, &args), -EEXIST);
	check();

	/* The guest finds what was loaded, as valid memory. */
	vm->kvm->arch.pre_fault_allowed = true;
	KUNIT_EXPECT_EQ(test, map_page(4), 0);
	KUNIT_EXPECT_TRUE(test, rmp_first(m, rmp_index(m, page_to_pfn(page_at(4))))
				[page_to_pfn(page_at(4)) % BLOCK].validated);
	KUNIT_EXPECT_EQ(test, guest_use(4), 0);
	KUNIT_EXPECT_EQ(test, convert(8, 9, true, CONTENT_PRESERVE), -EOPNOTSUPP);

	/* And the host, where nothing was loaded, what it wrote. */
	KUNIT_EXPECT_EQ(test, convert(3, 4, false, 0), 0);
	user_fill(2, 0x22);
	check();
	launch_exit();
}

/* A CPUID page that the firmware finds fault with comes back, legible. */
static void gmem_snp_vm_launch_rejected(struct kunit *test)
{
	struct snp_gmem_launch args = { .type = KVM_SEV_SNP_PAGE_TYPE_CPUID };
	u8 byte;

	launch_init(test);
	user_fill(6, CPUID_BAD);
	KUNIT_EXPECT_EQ(test, convert(6, 7, true, CONTENT_PRESERVE), 0);
	KUNIT_EXPECT_EQ(test, launch(6, 1, &args), -EBADMSG);
	KUNIT_EXPECT_TRUE(test, args.rejected);

	vm->private[6] = false;
	KUNIT_ASSERT_EQ(test, get_user(byte, (u8 __user *)user_page(6)), 0);
	KUNIT_EXPECT_EQ(test, byte, CPUID_GOOD);
	user_fill(6, 0x66);
	check();
	KUNIT_EXPECT_EQ(test, convert(6, 7, true, CONTENT_PRESERVE), 0);
	KUNIT_EXPECT_EQ(test, launch(6, 1, &args), 1);
	check();
	launch_exit();
}

/* SEV and SEV-ES guests, whose memory is the host's but for the caches */

static void free_cpus(void *cpus)
{
	free_cpumask_var(cpus);
}

static int become_sev(unsigned long type)
{
	struct kvm_sev_info *sev = to_kvm_sev_info(vm->kvm);

	KUNIT_ASSERT_EQ(vm->test, set_slot(vm->m->base_gfn, 0), 0);
	close_file();
	vm->m->sev = true;

	INIT_LIST_HEAD(&sev->regions_list);
	KUNIT_ASSERT_TRUE(vm->test, zalloc_cpumask_var(&sev->have_run_cpus, GFP_KERNEL));
	KUNIT_ASSERT_EQ(vm->test,
			kunit_add_action_or_reset(vm->test, free_cpus, sev->have_run_cpus), 0);
	become(type);
	return open_file(GUEST_MEMFD_FLAG_INIT_SHARED);
}

/* What KVM has zeroed is out of the caches before the guest gets it. */
static void gmem_snp_vm_sev_fresh(struct kunit *test)
{
	struct rmp_model *m = vm->m;

	KUNIT_ASSERT_EQ(test, become_sev(KVM_X86_SEV_VM), 0);
	KUNIT_ASSERT_EQ(test, set_slot(places[0], NR_PAGES), 0);

	KUNIT_EXPECT_EQ(test, map_page(0), 0);
	KUNIT_EXPECT_EQ(test, m->nr_flushed, 0);

	m->incoherent = true;
	KUNIT_EXPECT_EQ(test, map_page(1), 0);
	KUNIT_EXPECT_EQ(test, m->nr_flushed, 1);
	KUNIT_EXPECT_EQ(test, map_page(1), 0);
	KUNIT_EXPECT_EQ(test, m->nr_flushed, 1);

	/* A new page in the place of an old one. */
	KUNIT_EXPECT_EQ(test, punch(1, 2), 0);
	KUNIT_EXPECT_EQ(test, map_page(1), 0);
	KUNIT_EXPECT_EQ(test, m->nr_flushed, 2);
}

/* What the guest wrote is out of them before anyone else gets the page. */
static void gmem_snp_vm_sev_release(struct kunit *test)
{
	struct rmp_model *m = vm->m;
	int i;

	KUNIT_ASSERT_EQ(test, become_sev(KVM_X86_SEV_ES_VM), 0);
	KUNIT_ASSERT_EQ(test, set_slot(places[0], NR_PAGES), 0);
	for (i = 0; i < 8; i++)
		KUNIT_ASSERT_EQ(test, map_page(i), 0);

	/* Page by page, of what is there. */
	KUNIT_EXPECT_EQ(test, punch(6, 200), 0);
	KUNIT_EXPECT_EQ(test, m->nr_flushed, 2);
	KUNIT_EXPECT_EQ(test, m->nr_page_flushed, 0);

	m->incoherent = true;
	KUNIT_EXPECT_EQ(test, punch(4, 100), 0);
	KUNIT_EXPECT_EQ(test, m->nr_flushed, 2);
	KUNIT_EXPECT_EQ(test, m->nr_page_flushed, 2);
	KUNIT_EXPECT_EQ(test, m->nr_writebacks, 0);

	/* All at once where that is better, or if there is no other way. */
	rmp_arm_call(m, RMP_PAGE_FLUSH, -EIO);
	KUNIT_EXPECT_EQ(test, punch(2, 4), 0);
	KUNIT_EXPECT_EQ(test, m->nr_writebacks, 1);
	rmp_disarm(m);
	KUNIT_ASSERT_EQ(test, set_slot(places[0], 0), 0);
	KUNIT_EXPECT_EQ(test, m->nr_writebacks, 2);
	KUNIT_EXPECT_EQ(test, m->nr_page_flushed, 2);
}

static int register_region(unsigned long addr, unsigned long size)
{
	struct kvm_enc_region range = { .addr = addr, .size = size };

	return sev_mem_enc_register_region(vm->kvm, &range);
}

/* User space announces memory before it has made a slot of it. */
static void gmem_snp_vm_sev_register(struct kunit *test)
{
	struct rmp_model *m = vm->m;
	struct kvm_enc_region range;
	struct kvm_sev_info *sev;
	unsigned long anon;

	KUNIT_ASSERT_EQ(test, become_sev(KVM_X86_SEV_VM), 0);
	sev = to_kvm_sev_info(vm->kvm);
	KUNIT_ASSERT_EQ(test, register_region(vm->map, NR_PAGES * PAGE_SIZE), 0);
	KUNIT_EXPECT_EQ(test, sev->pages_locked, 0);
	range = (struct kvm_enc_region) { vm->map, NR_PAGES * PAGE_SIZE };
	KUNIT_EXPECT_EQ(test, sev_mem_enc_unregister_region(vm->kvm, &range), 0);

	/* What user space has written is flushed, if need be. */
	m->incoherent = true;
	KUNIT_ASSERT_EQ(test, put_user(1, (int __user *)(vm->map + 3 * PAGE_SIZE)), 0);
	m->nr_flushed = 0;
	KUNIT_ASSERT_EQ(test, register_region(vm->map + PAGE_SIZE, 4 * PAGE_SIZE), 0);
	KUNIT_EXPECT_EQ(test, sev->pages_locked, 0);
	KUNIT_EXPECT_EQ(test, m->nr_flushed, 1);
	range = (struct kvm_enc_region) { vm->map + PAGE_SIZE, 4 * PAGE_SIZE };
	KUNIT_EXPECT_EQ(test, sev_mem_enc_unregister_region(vm->kvm, &range), 0);

	/* Other memory is pinned, or the whole if only a part is the file's. */
	anon = kunit_vm_mmap(test, NULL, vm->map + NR_PAGES * PAGE_SIZE, PAGE_SIZE,
			     PROT_READ | PROT_WRITE,
			     MAP_ANONYMOUS | MAP_PRIVATE | MAP_FIXED, 0);
	KUNIT_ASSERT_EQ(test, anon, vm->map + NR_PAGES * PAGE_SIZE);
	KUNIT_ASSERT_EQ(test, register_region(anon - PAGE_SIZE, 2 * PAGE_SIZE), 0);
	KUNIT_EXPECT_EQ(test, sev->pages_locked, 2);
	range = (struct kvm_enc_region) { anon - PAGE_SIZE, 2 * PAGE_SIZE };
	KUNIT_EXPECT_EQ(test, sev_mem_enc_unregister_region(vm->kvm, &range), 0);
	KUNIT_EXPECT_EQ(test, sev->pages_locked, 0);

	/* No one flushes the pages of a VM that need not be a SEV guest. */
	become(KVM_X86_DEFAULT_VM);
	KUNIT_ASSERT_EQ(test, register_region(vm->map, PAGE_SIZE), 0);
	KUNIT_EXPECT_EQ(test, sev->pages_locked, 1);
	range = (struct kvm_enc_region) { vm->map, PAGE_SIZE };
	KUNIT_EXPECT_EQ(test, sev_mem_enc_unregister_region(vm->kvm, &range), 0);
}

/* Which pages have left the file, and which ones must not have lines of the guest's. */
static void sev_check(bool has_slot)
{
	struct page *page;
	pgoff_t index;

	for (index = 0; index < NR_PAGES; index++) {
		page = vm->file ? page_at(index) : NULL;
		if (vm->was[index] && vm->was[index] != page)
			sev_host_free(vm->m, page_to_pfn(vm->was[index]));
		if (page && !has_slot)
			KUNIT_ASSERT_FALSE_MSG(vm->test,
					       sev_guest_is_dirty(vm->m, page_to_pfn(page)),
					       "page %lu", index);
		vm->was[index] = page;
	}
	KUNIT_ASSERT_EQ(vm->test, vm->m->violations, 0);
}

static void sev_touch(pgoff_t index)
{
	KUNIT_ASSERT_EQ(vm->test, map_page(index), 0);
	sev_guest_write(vm->m, page_to_pfn(page_at(index)));
}

/* User space loads a page of the image, and announces it. */
static void sev_load(void)
{
	pgoff_t index = random_index();
	unsigned long addr = vm->map + index * PAGE_SIZE;
	struct kvm_enc_region range = { addr, PAGE_SIZE };
	struct page *page = page_at(index);

	if (page && sev_guest_is_dirty(vm->m, page_to_pfn(page)))
		return;

	user_fill(index, below(256));
	KUNIT_ASSERT_EQ(vm->test, register_region(addr, PAGE_SIZE), 0);
	KUNIT_ASSERT_EQ(vm->test, sev_mem_enc_unregister_region(vm->kvm, &range), 0);
	if (below(2))
		sev_touch(index);
}

static void sev_punch(void)
{
	rmp_disarm(vm->m);
	if (!below(8))
		rmp_arm_call(vm->m, RMP_PAGE_FLUSH, -EIO);
	random_range();
	KUNIT_ASSERT_EQ(vm->test, punch(vm->start, vm->end), 0);
	rmp_disarm(vm->m);
}

static void sev_move(void)
{
	KUNIT_ASSERT_EQ(vm->test, set_slot(vm->m->base_gfn, 0), 0);
	sev_check(false);
	KUNIT_ASSERT_EQ(vm->test, set_slot(places[below(NR_PLACES)], NR_PAGES), 0);
}

static void sev_close(void)
{
	close_file();
	sev_check(false);
	KUNIT_ASSERT_EQ(vm->test, set_slot(vm->m->base_gfn, 0), 0);
}

static void sev_open(void)
{
	KUNIT_ASSERT_EQ(vm->test, open_file(GUEST_MEMFD_FLAG_INIT_SHARED | KVM_GMEM_HUGE_FLAG),
			0);
	KUNIT_ASSERT_EQ(vm->test, set_slot(places[0], NR_PAGES), 0);
}

static void sev_op(void)
{
	switch (below(32)) {
	case 0:
		sev_move();
		break;
	case 1:
		if (!below(4)) {
			sev_close();
			sev_open();
		}
		break;
	case 2 ... 4:
		sev_punch();
		break;
	case 5 ... 8:
		sev_load();
		break;
	default:
		sev_touch(random_index());
	}
}

/*
 * Whose lines are dirty, on CPUs that do and that don't keep those of guest and host
 * coherent.
 */
static void gmem_snp_vm_sev_random(struct kunit *test)
{
	unsigned long n;
	int i;

	KUNIT_ASSERT_EQ(test, become_sev(KVM_X86_SEV_VM), 0);
	close_file();

	for (i = 0; i < 2; i++) {
		vm->m->incoherent = i;
		sev_open();
		for (n = 0; n < gmem_snp_vm_kunit_ops / 4; n++) {
			sev_op();
			sev_check(true);
			cond_resched();
		}
		sev_close();
	}

	kunit_info(test, "%lu pages flushed for the host, %lu for the guest, %lu write-backs",
		   vm->m->nr_flushed, vm->m->nr_page_flushed, vm->m->nr_writebacks);
	KUNIT_EXPECT_GT(test, vm->m->nr_page_flushed, 0);
}

static struct kunit_case gmem_snp_vm_cases[] = {
	KUNIT_CASE(gmem_snp_vm_use),
	KUNIT_CASE(gmem_snp_vm_zap),
	KUNIT_CASE(gmem_snp_vm_no_2m),
	KUNIT_CASE(gmem_snp_vm_move),
	KUNIT_CASE(gmem_snp_vm_fault_size),
	KUNIT_CASE(gmem_snp_vm_fault_refused),
	KUNIT_CASE(gmem_snp_vm_in_use),
	KUNIT_CASE(gmem_snp_vm_file_first),
	KUNIT_CASE(gmem_snp_vm_vm_first),
	KUNIT_CASE(gmem_snp_vm_mapping_last),
	KUNIT_CASE(gmem_snp_vm_no_memory),
	KUNIT_CASE(gmem_snp_vm_ghcb_parked),
	KUNIT_CASE(gmem_snp_vm_ghcb_psc),
	KUNIT_CASE(gmem_snp_vm_launch),
	KUNIT_CASE(gmem_snp_vm_launch_rejected),
	KUNIT_CASE_SLOW(gmem_snp_vm_random),
	KUNIT_CASE(gmem_snp_vm_sev_fresh),
	KUNIT_CASE(gmem_snp_vm_sev_release),
	KUNIT_CASE(gmem_snp_vm_sev_register),
	KUNIT_CASE_SLOW(gmem_snp_vm_sev_random),
	{}
};

static struct kunit_suite gmem_snp_vm_suite = {
	.name = "gmem_snp_vm",
	.init = gmem_snp_vm_init,
	.exit = gmem_snp_vm_exit,
	.test_cases = gmem_snp_vm_cases,
};

kunit_test_suite(gmem_snp_vm_suite);
