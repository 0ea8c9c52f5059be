// SPDX-License-Identifier: GPL-2.0-only
/**
 * DOC: SEV-SNP
 *
 * The RMP says of each page of the host's memory whether it is a guest's
 * ("assigned"), whose, and at which guest address.  One entry covers 4 KiB or an
 * aligned 2 MiB.  A page of a file is assigned at its first private use, not when
 * its state becomes private.  It is taken back when it becomes shared or leaves
 * the file:
 *
 * ===================== =================================================
 * shared                unassigned
 * private, not used yet unassigned
 * private, in use       assigned, at the size of its folio or smaller
 * ===================== =================================================
 *
 * The host dies of a write to an assigned page.  Hence no such page may reach the
 * allocator, come what may: if the platform refuses to take a page back, the
 * page is leaked.
 *
 * The RMP has no lock.  A page's entry is KVM's to change while it is in a file by
 * whoever has the page for itself, see kvm_gmem.h, or, to assign it, by whoever holds
 * the file's invalidate_lock for read and the folio lock; and once the folio has left
 * the file.  The one change that others make is that RMP faults of vCPUs split entries.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/cacheflush.h>
#include <linux/file.h>
#include <linux/highmem.h>
#include <linux/kvm_gmem.h>
#include <linux/kvm_host.h>
#include <linux/pfn.h>
#include <linux/psp-sev.h>

#include <asm/msr.h>
#include <asm/sev.h>

#include "mmu.h"
#include "snp_platform.h"
#include "svm.h"
#include "trace.h"

/*
 * Far more than another CPU's PSMASH or the firmware's look at an entry takes, or a
 * vCPU that has been kicked to leave its VMSA.
 */
#define SNP_INUSE_RETRIES	1000

static bool snp_hw_has_snp(void)
{
	return cc_platform_has(CC_ATTR_HOST_SEV_SNP);
}

static void snp_hw_clflush(u64 pfn, unsigned long nr_pages)
{
	clflush_cache_range(__va(PFN_PHYS(pfn)), nr_pages << PAGE_SHIFT);
}

static bool snp_hw_is_coherent(void)
{
	return boot_cpu_has(X86_FEATURE_SME_COHERENT);
}

/* Takes a virtual address of the host's, and may fault on it. */
static int snp_hw_page_flush(u64 pfn, u32 asid)
{
	return wrmsrq_safe(MSR_AMD64_VM_PAGE_FLUSH,
			   (unsigned long)__va(PFN_PHYS(pfn)) | asid);
}

static u64 snp_hw_fw_address(u64 paddr)
{
	return __sme_set(paddr);
}

static int snp_hw_issue_cmd(int fd, int id, void *data, int *error)
{
	CLASS(fd, f)(fd);

	if (fd_empty(f))
		return -EBADF;

	return sev_issue_cmd_external_user(fd_file(f), id, data, error);
}

#if IS_ENABLED(CONFIG_KVM_GMEM_KUNIT_TEST)
static
#endif
const struct snp_platform_ops snp_hardware = {
	.has_snp		= snp_hw_has_snp,
	.lookup			= snp_lookup_rmp_owner,
	.make_private		= rmp_make_private,
	.make_shared		= rmp_make_shared,
	.psmash			= psmash,
	.split_direct_map	= rmp_split_direct_map,
	.clflush		= snp_hw_clflush,
	.is_coherent		= snp_hw_is_coherent,
	.page_flush		= snp_hw_page_flush,
	.writeback		= sev_guest_memory_reclaimed,
	.fw_address		= snp_hw_fw_address,
	.issue_cmd		= snp_hw_issue_cmd,
	.do_cmd			= sev_do_cmd,
};

#if IS_ENABLED(CONFIG_KVM_GMEM_KUNIT_TEST)
const struct snp_platform_ops *snp_platform = &snp_hardware;
#endif

/*
 * Look up a page that is to be taken back.  That no entry covers it is a clear
 * answer, it was never assigned; any other failure means that no one knows.
 */
static int snp_gmem_lookup(kvm_pfn_t pfn, struct rmp_owner *owner)
{
	int r = snp_platform->lookup(pfn, owner);

	if (r == -EFAULT || r == 1) {
		*owner = (struct rmp_owner) { .level = PG_LEVEL_4K };
		return 0;
	}

	return r ? -EIO : 0;
}

/*
 * RMPUPDATE.  Unlike one that overlaps, an entry in use is not waited for by the
 * platform's functions.
 */
static int snp_gmem_assign(struct kvm *kvm, gfn_t gfn, kvm_pfn_t pfn, int level)
{
	u32 asid = to_kvm_sev_info(kvm)->asid;
	int i, r = 0;

	might_sleep();

	for (i = 0; i < SNP_INUSE_RETRIES; i++) {
		r = snp_platform->make_private(pfn, gfn_to_gpa(gfn), level, asid, false);
		if (r != -EBUSY)
			break;
		cond_resched();
	}

	return r;
}

static int snp_gmem_unassign(kvm_pfn_t pfn, int level)
{
	int i, r = 0;

	might_sleep();

	for (i = 0; i < SNP_INUSE_RETRIES; i++) {
		r = snp_platform->make_shared(pfn, level);
		if (r != -EBUSY)
			break;
		cond_resched();
	}

	return r;
}

/*
 * Split the 2 MiB RMP entry that covers @pfn.  Must not sleep, as the handler of
 * RMP faults holds mmu_lock.
 *
 * Returns 0 if the entries are of 4 KiB now, whoever has split them; -EAGAIN if
 * another CPU or the firmware would not let go of the entry, -EIO if the platform
 * refuses.
 */
int snp_gmem_psmash(kvm_pfn_t pfn)
{
	struct rmp_owner owner;
	int i, r = 0;

	pfn = ALIGN_DOWN(pfn, PTRS_PER_PMD);

	for (i = 0; i < SNP_INUSE_RETRIES; i++) {
		r = snp_platform->psmash(pfn);
		if (r != PSMASH_FAIL_INUSE)
			break;
		cpu_relax();
	}
	if (!r)
		return 0;

	/* If another CPU's PSMASH was faster, there is nothing left to split. */
	if (!snp_platform->lookup(pfn, &owner) && owner.assigned &&
	    owner.level == PG_LEVEL_4K)
		return 0;

	return r == PSMASH_FAIL_INUSE ? -EAGAIN : -EIO;
}

/*
 * Let 4 KiB pages of the 2 MiB around @pfn change sides one by one.  First what
 * may fail for want of memory: entries of 4 KiB below a large direct map would
 * leave that to a conversion that can't fail any more.
 */
static int snp_gmem_split(kvm_pfn_t pfn)
{
	might_sleep();

	if (snp_platform->split_direct_map(pfn))
		return -ENOMEM;

	return snp_gmem_psmash(pfn);
}

/*
 * A page that a guest has used is encrypted with the guest's key, to the host it
 * is noise.  Before the launch is finished no guest runs, and the bytes of a
 * private page are those that the launch will measure.
 */
static void snp_gmem_content(struct kvm *kvm, bool to_private,
			     struct kvm_gmem_content *content)
{
	content->allowed = KVM_SET_MEMORY_ATTRIBUTES2_DISCARD;
	content->dflt = 0;

	if (!to_private) {
		content->allowed |= KVM_SET_MEMORY_ATTRIBUTES2_ZERO;
		content->dflt = KVM_SET_MEMORY_ATTRIBUTES2_ZERO;
	} else if (!kvm->arch.pre_fault_allowed) {
		content->allowed |= KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE;
	}
}

/*
 * Pages around @pfn are about to leave the guest, all of the folio or none.  The
 * entry may be larger than the folio if that was split, by the caller or by memory
 * failure; and an RMP fault may have split an entry, which must not cost the
 * conversion memory.
 */
static int snp_gmem_prepare_convert(kvm_pfn_t pfn, int order)
{
	struct rmp_owner owner;
	int r;

	might_sleep();

	if (!snp_platform->has_snp())
		return 0;

	r = snp_gmem_lookup(pfn, &owner);
	if (r || !owner.assigned)
		return r;

	if (owner.level == PG_LEVEL_2M)
		return order < PMD_ORDER ? snp_gmem_split(pfn) : 0;

	return snp_platform->split_direct_map(pfn) ? -ENOMEM : 0;
}

/*
 * Can all of the 2 MiB around @pfn be assigned by one entry?  Only as a whole,
 * i.e. if none of its pages is, or if one entry of that size covers them.
 */
static bool snp_gmem_can_assign_2m(gfn_t gfn, kvm_pfn_t pfn, int order,
				   const struct rmp_owner *owner)
{
	struct rmp_owner other;
	int i;

	if (order < PMD_ORDER || !IS_ALIGNED(gfn ^ pfn, PTRS_PER_PMD))
		return false;

	if (owner->assigned)
		return owner->level == PG_LEVEL_2M;

	pfn = ALIGN_DOWN(pfn, PTRS_PER_PMD);
	for (i = 0; i < PTRS_PER_PMD; i++) {
		if (snp_platform->lookup(pfn + i, &other) || other.assigned)
			return false;
	}

	return true;
}

/*
 * Assign @pfn, and what is around it as far as possible, at @gfn.  2 MiB at once are
 * but an optimisation: if the platform doesn't want them, give it the one page.
 */
static int snp_gmem_assign_around(struct kvm *kvm, gfn_t gfn, kvm_pfn_t pfn, int order,
				  const struct rmp_owner *owner)
{
	int r;

	if (snp_gmem_can_assign_2m(gfn, pfn, order, owner) &&
	    !snp_gmem_assign(kvm, ALIGN_DOWN(gfn, PTRS_PER_PMD),
			     ALIGN_DOWN(pfn, PTRS_PER_PMD), PG_LEVEL_2M))
		return 0;

	if (owner->assigned && owner->level == PG_LEVEL_2M) {
		r = snp_gmem_split(pfn);
		if (r)
			return r;
	}

	return snp_gmem_assign(kvm, gfn, pfn, PG_LEVEL_4K);
}

/*
 * Assign @pfn to the guest, at @gfn, if it isn't yet.  The naturally aligned range
 * of @order around @pfn is within one folio, all of which the file shows at the
 * gfns around @gfn and all of which is private: so it may be assigned as a whole.
 *
 * A page that is assigned at another gfn was shown there by a memslot that is gone
 * since.  To the guest it is a page that has come anew, and that it has to accept;
 * if it were left as it is, the guest would fault for ever.
 *
 * Returns -EINVAL if the VM isn't initialized, the page is someone else's or the
 * platform refuses, -ENOENT if no RMP entry covers the page.
 */
static int snp_gmem_make_private(struct kvm *kvm, gfn_t gfn, kvm_pfn_t pfn, int order)
{
	struct kvm_sev_info *sev = to_kvm_sev_info(kvm);
	struct rmp_owner owner;
	int r;

	might_sleep();

	/* ASID 0 would make it the firmware's. */
	if (!____sev_snp_guest(kvm) || !sev->asid)
		return -EINVAL;

	r = snp_platform->lookup(pfn, &owner);
	if (r) {
		pr_err_ratelimited("SEV: no RMP entry for GFN 0x%llx PFN 0x%llx, error %d\n",
				   gfn, pfn, r);
		return -ENOENT;
	}

	if (owner.assigned && owner.asid == sev->asid && owner.gpa == gfn_to_gpa(gfn))
		return 0;

	r = owner.assigned && owner.asid != sev->asid ? -EPERM :
	    snp_gmem_assign_around(kvm, gfn, pfn, order, &owner);
	if (r) {
		pr_err_ratelimited("SEV: cannot assign GFN 0x%llx PFN 0x%llx, error %d\n",
				   gfn, pfn, r);
		return -EINVAL;
	}

	return 0;
}

/*
 * Take back the page at @pfn, or all of the 2 MiB entry that starts there and is
 * within [@pfn, @end).  Returns how many pages are the host's then; 0 if the
 * platform refuses.
 */
static unsigned long snp_gmem_take_back(kvm_pfn_t pfn, kvm_pfn_t end)
{
	unsigned long nr_pages = 1;
	struct rmp_owner owner;

	if (snp_gmem_lookup(pfn, &owner))
		return 0;
	if (!owner.assigned)
		return 1;

	if (owner.level == PG_LEVEL_2M) {
		if (IS_ALIGNED(pfn, PTRS_PER_PMD) && end - pfn >= PTRS_PER_PMD)
			nr_pages = PTRS_PER_PMD;
		else if (snp_gmem_split(pfn))
			return 0;
	}

	if (snp_gmem_unassign(pfn, nr_pages > 1 ? PG_LEVEL_2M : PG_LEVEL_4K))
		return 0;

	/*
	 * The guest's lines and the host's, of the same page, are not coherent on
	 * all CPUs.  Before the RMPUPDATE the guest's could still come back.
	 */
	snp_platform->clflush(pfn, nr_pages);
	return nr_pages;
}

/*
 * False if any page is still assigned; which ones is then of no interest, as the
 * caller gives up the folio as a whole.
 */
static bool snp_gmem_make_shared(kvm_pfn_t pfn, int order)
{
	kvm_pfn_t end = pfn + (1UL << order);
	unsigned long nr_pages;

	might_sleep();

	if (!snp_platform->has_snp())
		return true;

	for (; pfn < end; pfn += nr_pages) {
		nr_pages = snp_gmem_take_back(pfn, end);
		if (!nr_pages)
			return false;

		cond_resched();
	}

	return true;
}

/*
 * The folio has left its file, of which neither VM nor mapping may be left.
 *
 * A leaked one isn't put on the host's list of leaked pages, which is threaded
 * through what may be, or become, the folio's LRU linkage.
 */
static void snp_gmem_free_folio(struct folio *folio)
{
	if (!snp_gmem_make_shared(folio_pfn(folio), folio_order(folio)))
		kvm_gmem_leak_folio(folio);
}

static const struct address_space_operations snp_gmem_aops =
	KVM_GMEM_AOPS(snp_gmem_free_folio);

static const struct kvm_gmem_ops snp_gmem_ops = {
	.create_flags	 = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED |
			   KVM_GMEM_HUGE_FLAG,
	.attributes	 = KVM_MEMORY_ATTRIBUTE_PRIVATE,
	.max_order	 = KVM_GMEM_HUGE_ORDER,
	.zap_on_convert	 = true,
	.zap_is_lossless = true,
	.aops		 = &snp_gmem_aops,
	.content	 = snp_gmem_content,
	.prepare_convert = snp_gmem_prepare_convert,
	.make_private	 = snp_gmem_make_private,
	.make_shared	 = snp_gmem_make_shared,
	.invalidate	 = sev_gmem_invalidate_range,
};

const struct kvm_gmem_ops *sev_gmem_ops(struct kvm *kvm)
{
	bool is_snp = kvm ? kvm->arch.vm_type == KVM_X86_SNP_VM :
			    kvm_caps.supported_vm_types & BIT(KVM_X86_SNP_VM);

	if (is_snp)
		return &snp_gmem_ops;

	return kvm ? sev_gmem_host_ops(kvm) : NULL;
}

/*
 * The largest level at which the guest may map @pfn, 0 for no limit.  A nested
 * mapping that is larger than the RMP entry makes the guest fault for ever.  Shared
 * pages are assigned by no RMP entry; for them, KVM itself checks that all pages of a
 * mapping are shared.
 */
int sev_gmem_max_mapping_level(struct kvm *kvm, kvm_pfn_t pfn, bool is_private)
{
	struct rmp_owner owner;

	if (kvm->arch.vm_type != KVM_X86_SNP_VM || !is_private)
		return 0;

	if (snp_platform->lookup(pfn, &owner) || !owner.assigned)
		return PG_LEVEL_4K;

	return owner.level;
}

/* Nothing that KVM can do helps the guest: let user space decide. */
static int snp_rmp_fault_exit(struct kvm_vcpu *vcpu, gpa_t gpa, u64 error_code, int r)
{
	pr_debug_ratelimited("SEV: RMP fault at GPA 0x%llx, error code 0x%llx, error %d\n",
			     gpa, error_code, r);

	return kvm_gmem_prepare_fault_exit(vcpu, gpa_to_gfn(gpa), 0,
					   error_code & PFERR_WRITE_MASK,
					   error_code & PFERR_FETCH_MASK, true, r);
}

/*
 * Does the guest's use of @gpa want 4 KiB RMP entries?  It does if
 *
 *  - RMPADJUST or PVALIDATE is issued with a smaller granularity than that of the
 *    RMP entry, or
 *  - the guest's mapping is smaller than the RMP entry.
 */
static bool snp_rmp_fault_wants_psmash(const struct rmp_owner *owner, int map_level,
				       u64 error_code)
{
	return owner->level > PG_LEVEL_4K &&
	       (error_code & PFERR_GUEST_SIZEM_MASK || map_level == PG_LEVEL_4K);
}

/*
 * @pfn is the guest's, at the right address, so all that can be wrong with its RMP
 * entry is the size.  Fit it to what the guest does, or tell the caller by @zap that
 * the guest's mapping has to be fitted to it.
 *
 * If nothing is to be done then another vCPU has done it, in the middle of the 512
 * faults that so many PVALIDATEs of single pages may cause; or the mapping isn't
 * there yet.  The exception is that the RMP denies the access to the guest's VMPL,
 * which only the guest itself can change.
 */
static int snp_rmp_fault_fix(struct kvm_vcpu *vcpu, gpa_t gpa, kvm_pfn_t pfn,
			     u64 error_code, struct rmp_owner *owner, bool *zap)
{
	int map_level;
	int r;

	lockdep_assert_held_read(&vcpu->kvm->mmu_lock);

	r = snp_platform->lookup(pfn, owner);
	if (r || !owner->assigned)
		return -EFAULT;

	map_level = kvm_mmu_get_mapping_level(vcpu, gpa);

	if (snp_rmp_fault_wants_psmash(owner, map_level, error_code)) {
		r = snp_gmem_psmash(pfn);
		*zap = !r && map_level > PG_LEVEL_4K;

		/* The guest faults again, and gives a busy entry another chance. */
		return r && r != -EAGAIN ? -EFAULT : 0;
	}

	*zap = map_level > owner->level;
	if (!*zap && error_code & PFERR_GUEST_VMPL_MASK)
		return -EFAULT;

	return 0;
}

/*
 * The guest, which has @gpa mapped by now, got an RMP fault there.  Returns 1 if it
 * may try again, or a negative error code with an exit to user space prepared.
 *
 * The guest's mapping and the RMP entry are of different size if the guest
 * validates a single page of 2 MiB, or if a conversion of guest_memfd has split the
 * entry and was refused afterwards.  Zap the mapping only then, and only the aligned
 * 2 MiB: other vCPUs are about to fault on the other 511 pages.
 */
int sev_handle_rmp_fault(struct kvm_vcpu *vcpu, gpa_t gpa, u64 error_code)
{
	gfn_t gfn = gpa_to_gfn(gpa), start = ALIGN_DOWN(gfn, PTRS_PER_PMD);
	struct rmp_owner owner = {};
	struct kvm_memory_slot *slot;
	struct kvm *kvm = vcpu->kvm;
	unsigned long mmu_seq;
	bool zap = false;
	kvm_pfn_t pfn;
	int order, r;

	mmu_seq = kvm->mmu_invalidate_seq;
	/* Pairs with the smp_wmb() in kvm_mmu_invalidate_end(). */
	smp_rmb();

	/*
	 * No shared page is assigned, so the state has just changed, or the slot has
	 * gone: that is for the next fault to find out.
	 */
	slot = gfn_to_memslot(kvm, gfn);
	if (!kvm_slot_has_gmem(slot) || !kvm_mem_is_private(kvm, slot, gfn))
		return 1;

	/* This also corrects an entry that has the page at another address. */
	r = kvm_gmem_get_pfn(kvm, slot, gfn, &pfn, &order);
	if (r)
		return snp_rmp_fault_exit(vcpu, gpa, error_code, r);

	/*
	 * The page may be freed, and become another guest's, as soon as the gfn
	 * is invalidated.  In that case let the guest fault again.
	 */
	scoped_guard(read_lock, &kvm->mmu_lock) {
		if (mmu_invalidate_retry_gfn(kvm, mmu_seq, gfn))
			return 1;

		r = snp_rmp_fault_fix(vcpu, gpa, pfn, error_code, &owner, &zap);
	}

	if (zap)
		kvm_zap_gfn_range(kvm, start, start + PTRS_PER_PMD);

	trace_kvm_rmp_fault(vcpu, gpa, pfn, error_code, owner.level, r);
	return r ? snp_rmp_fault_exit(vcpu, gpa, error_code, r) : 1;
}

/*
 * Get a page back that the firmware didn't take: as long as a launch hasn't made
 * it valid it is immutable, even to the host.  If that fails the page stays in the
 * file, assigned, and is leaked when it leaves it.
 */
static int snp_gmem_reclaim(struct kvm *kvm, kvm_pfn_t pfn)
{
	struct sev_data_snp_page_reclaim data = {
		.paddr = snp_platform->fw_address(pfn_to_hpa(pfn)),
	};
	int fw_error = 0;
	int r;

	r = snp_platform->do_cmd(SEV_CMD_SNP_PAGE_RECLAIM, &data, &fw_error);
	if (!r && !snp_gmem_take_back(pfn, pfn + 1))
		r = -EFAULT;

	if (KVM_BUG(r, kvm, "Failed to reclaim PFN 0x%llx, error %d, firmware error %d",
		    pfn, r, fw_error))
		return -EIO;

	return 0;
}

/*
 * LAUNCH_UPDATE of @pfn has failed with @r.  If the firmware finds fault with the
 * content of a CPUID page, it writes what it would have accepted, unencrypted,
 * for user space to see: in the source page if there is one, else in the page
 * itself, which -EBADMSG tells kvm_gmem_populate() to hand over.
 */
static int snp_gmem_launch_failed(struct kvm *kvm, kvm_pfn_t pfn, struct page *src_page,
				  struct snp_gmem_launch *launch, int r)
{
	if (snp_gmem_reclaim(kvm, pfn))
		return r;

	if (launch->type != KVM_SEV_SNP_PAGE_TYPE_CPUID ||
	    launch->fw_error != SEV_RET_INVALID_PARAM)
		return r;

	if (!src_page) {
		launch->rejected = true;
		return -EBADMSG;
	}

	copy_highpage(src_page, pfn_to_page(pfn));
	set_page_dirty_lock(src_page);
	return r;
}

/*
 * Load one page of the guest's initial image, the bytes of @src_page or, if it is
 * NULL, those that are in the page already.  On failure the page is as private
 * and as unassigned as before, unless even that fails and ends the VM.
 *
 * slots_lock and the file's invalidate_lock are held, the latter for write.
 * Returns -EEXIST if the page is the guest's already, -EINVAL if it can't be.
 */
int snp_gmem_post_populate(struct kvm *kvm, gfn_t gfn, kvm_pfn_t pfn,
			   struct page *src_page, void *opaque)
{
	struct kvm_sev_info *sev = to_kvm_sev_info(kvm);
	struct sev_data_snp_launch_update update = {};
	struct snp_gmem_launch *launch = opaque;
	struct rmp_owner owner;
	int r;

	might_sleep();

	r = snp_platform->lookup(pfn, &owner);
	if (r || owner.assigned) {
		pr_debug("%s: GFN 0x%llx isn't unassigned, error %d\n", __func__, gfn, r);
		return r ? -EINVAL : -EEXIST;
	}

	/* The host's last write. */
	if (src_page)
		copy_highpage(pfn_to_page(pfn), src_page);

	r = snp_platform->make_private(pfn, gfn_to_gpa(gfn), PG_LEVEL_4K, sev->asid, true);
	if (!r) {
		update.gctx_paddr = snp_platform->fw_address(__pa(sev->snp_context));
		update.address = snp_platform->fw_address(pfn_to_hpa(pfn));
		update.page_size = PG_LEVEL_TO_RMP(PG_LEVEL_4K);
		update.page_type = launch->type;

		r = snp_platform->issue_cmd(launch->sev_fd, SEV_CMD_SNP_LAUNCH_UPDATE,
					    &update, &launch->fw_error);
		if (r)
			r = snp_gmem_launch_failed(kvm, pfn, src_page, launch, r);
	}

	if (r)
		pr_debug("%s: GFN 0x%llx, error %d, firmware error %d\n", __func__,
			 gfn, r, launch->fw_error);
	return r;
}
