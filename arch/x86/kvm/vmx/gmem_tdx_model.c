// SPDX-License-Identifier: GPL-2.0-only
/*
 * A model of the TDX module, as far as pages move in and out of a TD: the states
 * of the S-EPT entries of one S-EPT page, the owners of the pages behind them (the
 * module's PAMT), TLB tracking, the caches and the erratum of some CPUs, and the
 * end of the TD.
 *
 * It refuses what the module refuses, and fails the test for what the module can't
 * see: host writes to its pages, and calls without the lock that keeps KVM's own
 * calls from finding each other's locks taken in the module.  Calls come with KVM's
 * spinlocks held, hence nothing in here may abort the test.
 */
#include <kunit/test.h>
#include <linux/file.h>
#include <linux/gfp.h>
#include <linux/jhash.h>
#include <linux/kthread.h>
#include <linux/kvm_gmem_kunit.h>
#include <linux/mman.h>
#include <linux/sched/mm.h>
#include <linux/topology.h>

#include "gmem_tdx_model.h"
#include "mmu/spte.h"
#include "tdx_gmem.h"
#include "tdx_platform.h"
#include "x86_ops.h"

#define WORDS		(PAGE_SIZE / sizeof(u64))

/* What a host page has in it when it comes from the allocator. */
#define JUNK		0x6a756e6b6a756e6bULL

#define CIPHER		0xc1f0000000000000ULL

/* Calls that want a lock which the guest holds in a TDCALL. */
#define CALLS_LOCK_ENTRY	(BIT(CALL_PAGE_AUG) | BIT(CALL_RANGE_BLOCK) |	\
				 BIT(CALL_PAGE_REMOVE))
#define CALLS_GUEST_BLOCKS	(CALLS_LOCK_ENTRY | BIT(CALL_TRACK))

/* Some calls come without a TD, and in an IPI; there is one model at a time. */
static struct tdx_model *the_model;

static void fill_page(struct page *page, u64 word)
{
	memset64(page_address(page), word, WORDS);
}

static bool page_contains(struct page *page, u64 word)
{
	u64 *p = page_address(page);
	int i;

	for (i = 0; i < WORDS; i++) {
		if (p[i] != word)
			return false;
	}

	return true;
}

static u32 page_hash(struct page *page)
{
	return jhash2(page_address(page), PAGE_SIZE / sizeof(u32), 0);
}

/*
 * What the model knows of a page.  All pages are the host's until the module takes
 * them, hence a page that it hasn't met yet is not special.
 */
struct model_frame *tdx_model_frame(struct page *page)
{
	static struct model_frame no_memory;
	struct tdx_model *m = the_model;
	struct model_frame *f;

	f = xa_load(&m->frames, page_to_pfn(page));
	if (f)
		return f;

	f = kzalloc_obj(*f, GFP_ATOMIC);
	if (!f || xa_err(xa_store(&m->frames, page_to_pfn(page), f, GFP_ATOMIC))) {
		KUNIT_FAIL(m->test, "no memory for a frame");
		kfree(f);
		return &no_memory;
	}

	INIT_LIST_HEAD(&f->entry);
	f->page = page;
	return f;
}

static void forget_frame(struct tdx_model *m, struct model_frame *f)
{
	xa_erase(&m->frames, page_to_pfn(f->page));
	kfree(f);
}

static struct model_frame *pfn_frame(kvm_pfn_t pfn)
{
	return tdx_model_frame(pfn_to_page(pfn));
}

/* The TD writes to a page of its own: the host sees something else. */
static void encrypt(struct tdx_model *m, struct model_frame *f)
{
	fill_page(f->page, CIPHER | ++m->serial);
	f->hash = page_hash(f->page);
}

/* Why the host must not write to a page, NULL if it may. */
const char *tdx_model_host_may_write(struct model_frame *f)
{
	if (f->pamt != PAMT_NDA)
		return "the module owns the page";
	if (f->needs_wb)
		return "lines of the TD's key will be written over the page";
	if (f->needs_reset)
		return "a partial write poisons the page";

	return NULL;
}

/* TDR, S-EPT tree: calls that exclude each other need mmu_lock in some mode. */
static void expect_mmu_lock(struct tdx_model *m, bool write)
{
	rwlock_t *lock = &model_kvm(m)->mmu_lock;

	if (write_trylock(lock)) {
		write_unlock(lock);
		KUNIT_FAIL(m->test, "SEAMCALL without mmu_lock");
	} else if (write && read_trylock(lock)) {
		read_unlock(lock);
		KUNIT_FAIL(m->test, "SEAMCALL without mmu_lock for write");
	}
}

static bool is_busy(u64 err)
{
	return (err & TDX_SEAMCALL_STATUS_MASK) == TDX_OPERAND_BUSY;
}

static void vcpu_enter(struct tdx_model *m)
{
	if (m->vcpu_runs && !m->vcpu_epoch && !m->kvm_tdx->wait_for_sept_zap)
		m->vcpu_epoch = m->epoch;
}

/* What each call begins with: it may fail for reasons of its own. */
static u64 begin(struct tdx_model *m, enum model_call call)
{
	m->calls[call]++;
	vcpu_enter(m);

	if (m->faults[call].times) {
		if (m->faults[call].times != FOREVER)
			m->faults[call].times--;
		return m->faults[call].err;
	}

	if (m->vcpu_nags && m->vcpu_epoch && (CALLS_GUEST_BLOCKS & BIT(call)))
		return TDX_OPERAND_BUSY | TDX_OPERAND_ID_SEPT;

	return TDX_SUCCESS;
}

/* A call that tells about the S-EPT entry, if there is something to tell. */
static u64 begin_ext(struct tdx_model *m, enum model_call call, u64 gpa,
		     u64 *ext_err1, u64 *ext_err2)
{
	u64 err, i = gpa_to_gfn(gpa) - MODEL_GFN;

	*ext_err1 = 0;
	*ext_err2 = 0;

	err = begin(m, call);
	if (i < MODEL_PAGES && (BIT(call) & CALLS_LOCK_ENTRY))
		m->sept[i].host_priority = is_busy(err);
	if (err)
		return err;

	return m->life == TD_HAS_KEY ? TDX_SUCCESS : TDX_LIFECYCLE_STATE_INCORRECT;
}

/* Find the entry that maps @gpa, which is a multiple of @align. */
static u64 walk(struct tdx_model *m, u64 gpa, u64 align, enum pg_level level,
		struct model_sept_entry **e, u64 *ext_err2)
{
	u64 i = gpa_to_gfn(gpa) - MODEL_GFN;

	if (!IS_ALIGNED(gpa, align) || level != PG_LEVEL_4K || i >= MODEL_PAGES)
		return TDX_OPERAND_INVALID | TDX_OPERAND_ID_RCX;

	if (!m->sept_page)
		return TDX_EPT_WALK_FAILED | TDX_OPERAND_ID_RCX;

	*e = &m->sept[i];
	*ext_err2 = (*e)->state << TDX_SEPT_STATE_SHIFT;
	return TDX_SUCCESS;
}

/* The target of ADD and AUG: a free entry, and a page that no one owns. */
static u64 take_page(struct tdx_model *m, struct model_sept_entry *e, kvm_pfn_t pfn,
		     enum tdx_sept_entry_state state)
{
	struct model_frame *f = pfn_frame(pfn);

	if (e->state != TDX_SEPT_FREE)
		return TDX_EPT_ENTRY_STATE_INCORRECT | TDX_OPERAND_ID_RCX;
	if (f->pamt != PAMT_NDA)
		return TDX_PAGE_METADATA_INCORRECT | TDX_OPERAND_ID_R8;

	KUNIT_EXPECT_NULL(m->test, tdx_model_host_may_write(f));

	f->pamt = PAMT_REG;
	f->hash = page_hash(f->page);
	*e = (struct model_sept_entry) {
		.state = state,
		.pfn = pfn,
	};
	return TDX_SUCCESS;
}

static u64 model_page_add(struct tdx_td *td, u64 gpa, kvm_pfn_t pfn, struct page *source,
			  u64 *ext_err1, u64 *ext_err2)
{
	struct tdx_model *m = the_model;
	struct model_sept_entry *e;
	u64 err, word;

	KUNIT_EXPECT_TRUE(m->test, mutex_is_locked(&model_kvm(m)->slots_lock));
	expect_mmu_lock(m, false);

	err = begin_ext(m, CALL_PAGE_ADD, gpa, ext_err1, ext_err2);
	if (err)
		return err;
	if (m->op_state != TD_STATE_INITIALIZED)
		return TDX_OP_STATE_INCORRECT;

	err = walk(m, gpa, PAGE_SIZE, PG_LEVEL_4K, &e, ext_err2);
	if (err)
		return err;

	word = *(u64 *)page_address(source);
	KUNIT_EXPECT_TRUE(m->test, page_contains(source, word));

	err = take_page(m, e, pfn, TDX_SEPT_PRESENT);
	if (err)
		return err;

	e->word = word;
	encrypt(m, pfn_frame(pfn));
	return TDX_SUCCESS;
}

/* Leaves the page's bytes alone; it is for the guest to accept it. */
static u64 model_page_aug(struct tdx_td *td, u64 gpa, enum pg_level level, kvm_pfn_t pfn,
			  u64 *ext_err1, u64 *ext_err2)
{
	struct tdx_model *m = the_model;
	struct model_sept_entry *e;
	u64 err;

	expect_mmu_lock(m, false);

	err = begin_ext(m, CALL_PAGE_AUG, gpa, ext_err1, ext_err2);
	if (err)
		return err;
	if (m->op_state == TD_STATE_UNINITIALIZED)
		return TDX_OP_STATE_INCORRECT;

	err = walk(m, gpa, PAGE_SIZE, level, &e, ext_err2);
	return err ?: take_page(m, e, pfn, TDX_SEPT_PENDING);
}

static u64 model_sept_add(struct tdx_td *td, u64 gpa, enum pg_level level,
			  struct page *page, u64 *ext_err1, u64 *ext_err2)
{
	struct tdx_model *m = the_model;
	struct model_frame *f = tdx_model_frame(page);
	u64 err;

	expect_mmu_lock(m, false);

	err = begin_ext(m, CALL_SEPT_ADD, gpa, ext_err1, ext_err2);
	if (err)
		return err;
	if (gpa != gfn_to_gpa(MODEL_GFN) || level != PG_LEVEL_2M)
		return TDX_OPERAND_INVALID | TDX_OPERAND_ID_RCX;
	if (m->sept_page)
		return TDX_EPT_ENTRY_STATE_INCORRECT | TDX_OPERAND_ID_RCX;
	if (f->pamt != PAMT_NDA)
		return TDX_PAGE_METADATA_INCORRECT | TDX_OPERAND_ID_R8;

	f->pamt = PAMT_EPT;
	encrypt(m, f);
	m->sept_page = f;
	return TDX_SUCCESS;
}

static u64 model_mr_extend(struct tdx_td *td, u64 gpa, u64 *ext_err1, u64 *ext_err2)
{
	struct tdx_model *m = the_model;
	struct model_sept_entry *e;
	u64 err;

	expect_mmu_lock(m, true);

	err = begin_ext(m, CALL_MR_EXTEND, gpa, ext_err1, ext_err2);
	if (err)
		return err;
	if (m->op_state != TD_STATE_INITIALIZED)
		return TDX_OP_STATE_INCORRECT;

	err = walk(m, gpa, TDX_EXTENDMR_CHUNKSIZE, PG_LEVEL_4K, &e, ext_err2);
	if (err)
		return err;
	if (e->state != TDX_SEPT_PRESENT)
		return TDX_EPT_ENTRY_NOT_PRESENT;

	/* What is measured depends on the order; that of the specification is this. */
	KUNIT_EXPECT_EQ(m->test, offset_in_page(gpa),
			e->nr_extended * TDX_EXTENDMR_CHUNKSIZE);
	e->nr_extended++;
	return TDX_SUCCESS;
}

static u64 model_mr_finalize(struct tdx_td *td)
{
	struct tdx_model *m = the_model;
	u64 err;

	expect_mmu_lock(m, true);

	err = begin(m, CALL_MR_FINALIZE);
	if (err)
		return err;
	if (m->op_state != TD_STATE_INITIALIZED)
		return TDX_OP_STATE_INCORRECT;

	m->op_state = TD_STATE_RUNNABLE;
	return TDX_SUCCESS;
}

static u64 model_range_block(struct tdx_td *td, u64 gpa, enum pg_level level,
			     u64 *ext_err1, u64 *ext_err2)
{
	struct tdx_model *m = the_model;
	struct model_sept_entry *e;
	u64 err;

	expect_mmu_lock(m, true);

	err = begin_ext(m, CALL_RANGE_BLOCK, gpa, ext_err1, ext_err2);
	if (err)
		return err;

	err = walk(m, gpa, PAGE_SIZE, level, &e, ext_err2);
	if (err)
		return err;

	switch (e->state) {
	case TDX_SEPT_PRESENT:
		e->state = TDX_SEPT_BLOCKED;
		break;
	case TDX_SEPT_PENDING:
		e->state = TDX_SEPT_PENDING_BLOCKED;
		break;
	case TDX_SEPT_FREE:
		return TDX_EPT_ENTRY_STATE_INCORRECT | TDX_OPERAND_ID_RCX;
	default:
		return TDX_GPA_RANGE_ALREADY_BLOCKED;
	}

	e->blocked_epoch = m->epoch;
	return TDX_SUCCESS;
}

static u64 model_track(struct tdx_td *td)
{
	struct tdx_model *m = the_model;
	u64 err;

	expect_mmu_lock(m, true);

	err = begin(m, CALL_TRACK);
	if (err)
		return err;
	if (m->vcpu_epoch && m->vcpu_epoch < m->epoch)
		return TDX_PREVIOUS_TLB_EPOCH_BUSY | TDX_OPERAND_ID_TD_EPOCH;

	m->epoch++;
	return TDX_SUCCESS;
}

/* Blocked in an epoch in which no vCPU can be any more? */
static bool is_tracked(struct tdx_model *m, struct model_sept_entry *e)
{
	return e->blocked_epoch < m->epoch &&
	       (!m->vcpu_epoch || m->vcpu_epoch > e->blocked_epoch);
}

static bool is_blocked(struct model_sept_entry *e)
{
	return e->state == TDX_SEPT_BLOCKED || e->state == TDX_SEPT_PENDING_BLOCKED;
}

static u64 model_page_remove(struct tdx_td *td, u64 gpa, enum pg_level level,
			     u64 *ext_err1, u64 *ext_err2)
{
	struct tdx_model *m = the_model;
	struct model_sept_entry *e;
	struct model_frame *f;
	u64 err;

	expect_mmu_lock(m, true);

	err = begin_ext(m, CALL_PAGE_REMOVE, gpa, ext_err1, ext_err2);
	if (err)
		return err;

	err = walk(m, gpa, PAGE_SIZE, level, &e, ext_err2);
	if (err)
		return err;
	if (e->state == TDX_SEPT_FREE)
		return TDX_EPT_ENTRY_STATE_INCORRECT | TDX_OPERAND_ID_RCX;
	if (m->op_state == TD_STATE_RUNNABLE && !is_blocked(e))
		return TDX_GPA_RANGE_NOT_BLOCKED;
	if (m->op_state == TD_STATE_RUNNABLE && !is_tracked(m, e))
		return TDX_TLB_TRACKING_NOT_DONE | TDX_OPERAND_ID_SEPT;

	f = pfn_frame(e->pfn);
	KUNIT_EXPECT_TRUE_MSG(m->test, page_hash(f->page) == f->hash,
			      "the host wrote to a page that the module owns");

	f->pamt = PAMT_NDA;
	f->needs_wb = true;
	f->needs_reset = m->has_erratum;
	e->state = TDX_SEPT_FREE;
	e->nr_extended = 0;
	*ext_err1 = PFN_PHYS(e->pfn);
	return TDX_SUCCESS;
}

static u64 model_page_wbinvd_hkid(u64 hkid, kvm_pfn_t pfn)
{
	struct tdx_model *m = the_model;
	struct model_frame *f = pfn_frame(pfn);
	u64 err;

	err = begin(m, CALL_WBINVD);
	if (err)
		return err;
	if (hkid != MODEL_HKID || m->life == TD_TEARDOWN)
		return TDX_OPERAND_INVALID | TDX_OPERAND_ID_RCX;
	if (f->pamt != PAMT_NDA)
		return TDX_PAGE_METADATA_INCORRECT | TDX_OPERAND_ID_RCX;

	f->needs_wb = false;
	return TDX_SUCCESS;
}

/* Control pages have no place in here. */
static u64 model_page_wbinvd_tdr(struct tdx_td *td)
{
	return TDX_OPERAND_INVALID | TDX_OPERAND_ID_RCX;
}

static u64 model_page_reclaim(struct page *page, u64 *tdx_pt, u64 *tdx_owner, u64 *tdx_size)
{
	struct model_frame *f = tdx_model_frame(page);
	struct tdx_model *m = the_model;
	u64 err;
	int i;

	*tdx_pt = f->pamt;
	*tdx_owner = 0;
	*tdx_size = 0;

	err = begin(m, CALL_RECLAIM);
	if (err)
		return err;
	if (m->life != TD_TEARDOWN)
		return TDX_LIFECYCLE_STATE_INCORRECT;
	if (f->pamt == PAMT_NDA)
		return TDX_PAGE_METADATA_INCORRECT | TDX_OPERAND_ID_RCX;

	KUNIT_EXPECT_TRUE_MSG(m->test, page_hash(f->page) == f->hash,
			      "the host wrote to a page that the module owns");

	f->pamt = PAMT_NDA;
	f->needs_reset = m->has_erratum;
	if (f == m->sept_page)
		m->sept_page = NULL;

	/* The entry is still there, but nothing will walk to it. */
	for (i = 0; i < MODEL_PAGES; i++) {
		if (m->sept[i].pfn == page_to_pfn(page))
			m->sept[i].state = TDX_SEPT_FREE;
	}
	return TDX_SUCCESS;
}

/* Runs on the CPU that the vCPU has last run on. */
static u64 model_vp_flush(struct tdx_vp *vp)
{
	struct tdx_model *m = the_model;
	u64 err;

	err = begin(m, CALL_VP_FLUSH);
	if (err)
		return err;
	if (!m->vcpu_is_associated)
		return TDX_VCPU_NOT_ASSOCIATED;

	m->vcpu_is_associated = false;
	return TDX_SUCCESS;
}

static u64 model_mng_vpflushdone(struct tdx_td *td)
{
	struct tdx_model *m = the_model;
	u64 err;

	expect_mmu_lock(m, true);

	err = begin(m, CALL_VPFLUSHDONE);
	if (err)
		return err;
	if (m->life != TD_HAS_KEY)
		return TDX_LIFECYCLE_STATE_INCORRECT;
	if (m->vcpu_is_associated)
		return TDX_FLUSHVP_NOT_DONE;

	m->life = TD_BLOCKED;
	return TDX_SUCCESS;
}

/* On one CPU of each package, once more if there is an interrupt: there always is. */
static u64 model_phymem_cache_wb(bool resume)
{
	int package = topology_physical_package_id(raw_smp_processor_id());
	struct tdx_model *m = the_model;
	u64 err;

	err = begin(m, CALL_CACHE_WB);
	if (err)
		return err;
	if (m->life != TD_BLOCKED || cpumask_test_cpu(package, &m->written_back))
		return TDX_NO_HKID_READY_TO_WBCACHE;

	if (!cpumask_test_and_set_cpu(package, &m->interrupted))
		return TDX_INTERRUPTED_RESUMABLE;
	if (!resume)
		return TDX_OPERAND_INVALID | TDX_OPERAND_ID_RCX;

	cpumask_set_cpu(package, &m->written_back);
	return TDX_SUCCESS;
}

static u64 model_mng_key_freeid(struct tdx_td *td)
{
	struct tdx_model *m = the_model;
	struct model_frame *f;
	unsigned long pfn;
	u64 err;
	int cpu;

	expect_mmu_lock(m, true);

	err = begin(m, CALL_KEY_FREEID);
	if (err)
		return err;
	if (m->life != TD_BLOCKED)
		return TDX_LIFECYCLE_STATE_INCORRECT;
	for_each_online_cpu(cpu) {
		if (!cpumask_test_cpu(topology_physical_package_id(cpu), &m->written_back))
			return TDX_WBCACHE_NOT_COMPLETE;
	}

	m->life = TD_TEARDOWN;
	xa_for_each(&m->frames, pfn, f)
		f->needs_wb = false;
	return TDX_SUCCESS;
}

/* Another TD may have the KeyID at once. */
static void model_guest_keyid_free(unsigned int keyid)
{
	struct tdx_model *m = the_model;

	m->calls[CALL_KEYID_FREE]++;
	KUNIT_EXPECT_EQ(m->test, keyid, MODEL_HKID);
	KUNIT_EXPECT_EQ(m->test, m->life, TD_TEARDOWN);
}

static void model_quirk_reset_paddr(unsigned long base, unsigned long size)
{
	struct tdx_model *m = the_model;
	struct model_frame *f = pfn_frame(PHYS_PFN(base));

	m->calls[CALL_RESET]++;
	KUNIT_EXPECT_EQ(m->test, size, PAGE_SIZE);
	KUNIT_EXPECT_EQ(m->test, f->pamt, PAMT_NDA);
	KUNIT_EXPECT_FALSE(m->test, f->needs_wb);

	if (!m->has_erratum)
		return;

	fill_page(f->page, 0);
	f->needs_reset = false;
}

static void model_kick_vcpus(struct kvm *kvm)
{
	struct tdx_model *m = the_model;

	m->calls[CALL_KICK]++;
	m->vcpu_epoch = 0;
	vcpu_enter(m);
}

static u64 leaf_spte(kvm_pfn_t pfn)
{
	return PFN_PHYS(pfn) | SPTE_MMU_PRESENT_MASK | VMX_EPT_RWX_MASK;
}

/* What the TDP MMU does for a fault on @i; -EBUSY isn't retried. */
int tdx_model_map(struct tdx_model *m, int i, kvm_pfn_t pfn)
{
	struct kvm *kvm = model_kvm(m);
	int r = -EIO;

	read_lock(&kvm->mmu_lock);
	if (!m->mirror[i])
		r = tdx_sept_set_private_spte(kvm, MODEL_GFN + i, SHADOW_NONPRESENT_VALUE,
					      leaf_spte(pfn), PG_LEVEL_4K);
	if (!r) {
		m->mirror[i] = true;
		m->mirror_pfn[i] = pfn;
	}
	read_unlock(&kvm->mmu_lock);

	return r;
}

/* Zap the guest's mapping; the mirror SPTE is gone whatever the module says. */
static void zap_locked(struct tdx_model *m, int i)
{
	if (!m->mirror[i])
		return;

	m->mirror[i] = false;
	m->zap_result = tdx_sept_set_private_spte(model_kvm(m), MODEL_GFN + i,
						  leaf_spte(m->mirror_pfn[i]),
						  SHADOW_NONPRESENT_VALUE, PG_LEVEL_4K);
}

/* As if the memslot were deleted. */
void tdx_model_zap(struct tdx_model *m, int i)
{
	m->zap_result = 0;

	write_lock(&model_kvm(m)->mmu_lock);
	zap_locked(m, i);
	write_unlock(&model_kvm(m)->mmu_lock);
}

/* guest_memfd is about to have the TDP MMU zap @range. */
static void model_invalidate(struct kvm *kvm, struct kvm_gfn_range *range)
{
	struct tdx_model *m = the_model;
	gfn_t gfn;

	lockdep_assert_held_write(&kvm->mmu_lock);
	KUNIT_EXPECT_GT(m->test, kvm->mmu_invalidate_in_progress, 0);

	m->zap_result = 0;
	if (!(range->attr_filter & KVM_FILTER_PRIVATE))
		return;

	for (gfn = range->start; gfn < range->end; gfn++)
		zap_locked(m, gfn - MODEL_GFN);
}

/*
 * As kvm_tdp_mmu_map_private_pfn(), which tries until it works, the VM is dead or
 * a signal arrives; here one does.
 */
static int model_map_private_pfn(struct kvm_vcpu *vcpu, gfn_t gfn, kvm_pfn_t pfn)
{
	struct tdx_model *m = the_model;
	int i = gfn - MODEL_GFN;
	int r, tries = 5;

	m->calls[CALL_MAP]++;
	KUNIT_EXPECT_EQ(m->test, pfn, folio_pfn(tdx_model_folio(m, i)));

	do {
		r = tdx_model_map(m, i, pfn);
	} while (r == -EBUSY && --tries);

	if (!r && m->poison_after_add)
		tdx_model_zap(m, i);

	return r == -EBUSY ? -EINTR : r;
}

const struct tdx_platform_ops tdx_model_ops = {
	.page_add		= model_page_add,
	.page_aug		= model_page_aug,
	.sept_add		= model_sept_add,
	.mr_extend		= model_mr_extend,
	.mr_finalize		= model_mr_finalize,
	.range_block		= model_range_block,
	.track			= model_track,
	.page_remove		= model_page_remove,
	.page_wbinvd_hkid	= model_page_wbinvd_hkid,
	.page_wbinvd_tdr	= model_page_wbinvd_tdr,
	.page_reclaim		= model_page_reclaim,
	.vp_flush		= model_vp_flush,
	.mng_vpflushdone	= model_mng_vpflushdone,
	.phymem_cache_wb	= model_phymem_cache_wb,
	.mng_key_freeid		= model_mng_key_freeid,
	.guest_keyid_free	= model_guest_keyid_free,
	.quirk_reset_paddr	= model_quirk_reset_paddr,
	.kick_vcpus		= model_kick_vcpus,
	.map_private_pfn	= model_map_private_pfn,
};

/* The guest accepts a page; false if there is nothing to accept, or the host is first. */
bool tdx_model_accept(struct tdx_model *m, int i)
{
	struct model_sept_entry *e = &m->sept[i];

	if (m->life != TD_HAS_KEY || m->op_state != TD_STATE_RUNNABLE ||
	    e->state != TDX_SEPT_PENDING || e->host_priority)
		return false;

	e->state = TDX_SEPT_PRESENT;
	e->word = 0;
	encrypt(m, pfn_frame(e->pfn));
	return true;
}

u64 tdx_model_nonleaf_spte(struct tdx_model *m)
{
	return __pa(m->sp->spt) | SPTE_MMU_PRESENT_MASK | VMX_EPT_RWX_MASK;
}

struct folio *tdx_model_folio(struct tdx_model *m, int i)
{
	return m->file ? xa_load(&m->file->f_mapping->i_pages, i) : NULL;
}

bool tdx_model_is_private(struct tdx_model *m, int i)
{
	return kvm_gmem_is_private(&m->slot, MODEL_GFN + i);
}

/*
 * A page leaves the file.  Unless it is leaked it is the allocator's from here on, and
 * had better be the host's.  Fill it with junk: it is likely to come back soon.
 */
static void model_free_folio(struct folio *folio)
{
	struct model_frame *f = tdx_model_frame(folio_page(folio, 0));
	struct tdx_model *m = the_model;
	const char *why_not;

	tdx_gmem_ops.aops->free_folio(folio);

	if (folio->private == KVM_GMEM_FOLIO_LEAKED) {
		list_add(&f->entry, &m->leaked);
		m->nr_leaked++;
		return;
	}

	why_not = tdx_model_host_may_write(f);
	KUNIT_EXPECT_NULL_MSG(m->test, why_not, "page freed: %s", why_not);
	KUNIT_EXPECT_FALSE(m->test, folio_test_checked(folio));
	fill_page(f->page, JUNK);
	forget_frame(m, f);
	m->nr_freed++;
}

static const struct address_space_operations model_aops =
	KVM_GMEM_AOPS(model_free_folio);

/*
 * The VMM exits: users lose the file, and so does everyone.  It is gone when this
 * returns, and its pages are free or leaked.
 */
void tdx_model_close(struct tdx_model *m)
{
	/* A test that was aborted is cleaned up after by another thread. */
	bool is_test = current->mm == m->mm;
	struct file *file = m->file;

	if (!file)
		return;

	if (!is_test)
		kthread_use_mm(m->mm);
	if (m->umem)
		vm_munmap((unsigned long)m->umem, MODEL_PAGES * PAGE_SIZE);
	if (!is_test)
		kthread_unuse_mm(m->mm);

	m->umem = NULL;
	m->file = NULL;
	__fput_sync(file);
	KUNIT_EXPECT_EQ(m->test, refcount_read(&model_kvm(m)->users_count), 1);
}

/*
 * What is leaked really would be lost: put the reference that ->free_folio() took.  The
 * LRU may have another, as may guest_memfd, for a page that it couldn't convert.
 */
static void model_free_leaked(struct tdx_model *m)
{
	struct model_frame *f, *next;

	list_for_each_entry_safe(f, next, &m->leaked, entry) {
		struct folio *folio = page_folio(f->page);

		folio_clear_checked(folio);
		folio_put(folio);
	}
}

static void model_free_vm(void *data)
{
	struct tdx_model *m = data;
	struct model_frame *f;
	unsigned long pfn;

	tdx_model_close(m);
	model_free_leaked(m);

	xa_for_each(&m->frames, pfn, f)
		kfree(f);
	xa_destroy(&m->frames);
	xa_destroy(&m->kvm_tdx->lost_pages);
	xa_destroy(&model_kvm(m)->vcpu_array);

	if (m->sp->external_spt)
		free_page((unsigned long)m->sp->external_spt);
	if (m->sp->spt) {
		set_page_private(virt_to_page(m->sp->spt), 0);
		free_page((unsigned long)m->sp->spt);
	}
	kvfree(m->kvm_tdx);
	mmput(m->mm);
	the_model = NULL;
}

/* The page table that mirrors the S-EPT page, and a page for the latter. */
static void model_alloc_sp(struct tdx_model *m)
{
	m->sp->role.level = PG_LEVEL_4K;
	m->sp->gfn = MODEL_GFN;
	m->sp->external_spt = (void *)__get_free_page(GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(m->test, m->sp->external_spt);
	m->sp->spt = (u64 *)get_zeroed_page(GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(m->test, m->sp->spt);
	set_page_private(virt_to_page(m->sp->spt), (unsigned long)m->sp);
}

/* As little of a VM as the code under test and guest_memfd look at. */
static void model_init_vm(struct tdx_model *m)
{
	struct kvm *kvm = model_kvm(m);

	mutex_init(&kvm->slots_lock);
	spin_lock_init(&kvm->gpc_lock);
	INIT_LIST_HEAD(&kvm->gpc_list);
	rwlock_init(&kvm->mmu_lock);
	xa_init(&kvm->vcpu_array);
	INIT_LIST_HEAD(&kvm->arch.tdp_mmu_roots);
	refcount_set(&kvm->users_count, 1);
	kvm->mmu_invalidate_range_start = INVALID_GPA;
	kvm->mmu_invalidate_range_end = INVALID_GPA;
	kvm->arch.vm_type = KVM_X86_TDX_VM;
	kvm->arch.has_private_mem = true;
	kvm->mm = m->mm;

	xa_init(&m->kvm_tdx->lost_pages);
	m->kvm_tdx->platform = &tdx_model_ops;
}

/* The file stays, the TD is a new one that hasn't been finalised. */
void tdx_model_new_td(struct tdx_model *m)
{
	m->kvm_tdx->hkid = MODEL_HKID;
	m->kvm_tdx->state = TD_STATE_INITIALIZED;
	model_kvm(m)->arch.pre_fault_allowed = false;

	m->op_state = TD_STATE_INITIALIZED;
	m->life = TD_HAS_KEY;
	m->epoch = 1;
	m->vcpu_epoch = 0;
	m->vcpu_runs = false;
	m->vcpu_nags = false;
}

static void __user *model_mmap(struct tdx_model *m, struct file *file, size_t size)
{
	int flags = file ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS;
	unsigned long addr;

	addr = kunit_vm_mmap(m->test, file, 0, size, PROT_READ | PROT_WRITE, flags, 0);
	KUNIT_ASSERT_NE(m->test, addr, 0);
	KUNIT_ASSERT_FALSE(m->test, IS_ERR_VALUE(addr));
	return (void __user *)addr;
}

/* A file of which all is shared at first, a slot that shows it, a user who maps it. */
static void model_open(struct tdx_model *m)
{
	struct kvm *kvm = model_kvm(m);

	m->ops = tdx_gmem_ops;
	m->ops.aops = &model_aops;
	m->ops.invalidate = model_invalidate;

	m->slot.base_gfn = MODEL_GFN;
	m->slot.npages = MODEL_PAGES;
	m->slot.flags = KVM_MEM_GUEST_MEMFD;
	rb_link_node(&m->slot.gfn_node[0], NULL, &m->slots.gfn_tree.rb_node);
	rb_insert_color(&m->slot.gfn_node[0], &m->slots.gfn_tree);
	rcu_assign_pointer(kvm->memslots[0], &m->slots);

	m->file = kvm_gmem_kunit_open(kvm, &m->ops, &m->slot, MODEL_PAGES * PAGE_SIZE,
				      GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED);
	if (IS_ERR(m->file))
		m->file = NULL;
	KUNIT_ASSERT_NOT_NULL(m->test, m->file);

	m->umem = model_mmap(m, m->file, MODEL_PAGES * PAGE_SIZE);
}

/* Tests of what becomes of vCPUs have one, which is on this CPU. */
void tdx_model_add_vcpu(struct tdx_model *m)
{
	struct kvm *kvm = model_kvm(m);
	struct kvm_vcpu *vcpu;

	m->vcpu = kunit_kzalloc(m->test, sizeof(*m->vcpu), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(m->test, m->vcpu);

	INIT_LIST_HEAD(&m->vcpu->cpu_list);
	m->vcpu->state = VCPU_TD_STATE_INITIALIZED;
	m->vcpu_is_associated = true;

	vcpu = &m->vcpu->vcpu;
	vcpu->kvm = kvm;
	vcpu->cpu = raw_smp_processor_id();
	vcpu->mode = OUTSIDE_GUEST_MODE;
	rcuwait_init(&vcpu->wait);
	spin_lock_init(&vcpu->gmem_request.lock);
	KUNIT_ASSERT_EQ(m->test, xa_insert(&kvm->vcpu_array, 0, vcpu, GFP_KERNEL), 0);
	atomic_set(&kvm->online_vcpus, 1);
}

struct tdx_model *tdx_model_create(struct kunit *test)
{
	struct tdx_model *m = kunit_kzalloc(test, sizeof(*m), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, m);
	m->test = test;
	test->priv = m;
	INIT_LIST_HEAD(&m->leaked);
	xa_init(&m->frames);

	/* What model_free_vm() looks at has to outlive it, hence to be older. */
	m->sp = kunit_kzalloc(test, sizeof(*m->sp), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, m->sp);
	m->buf = kunit_kzalloc(test, PAGE_SIZE, GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, m->buf);

	/* The first mapping gives the test an mm, that of the VM. */
	m->uargs = model_mmap(m, NULL, PAGE_SIZE);
	m->usrc = model_mmap(m, NULL, PAGE_SIZE);

	m->kvm_tdx = kvzalloc_obj(*m->kvm_tdx);
	KUNIT_ASSERT_NOT_NULL(test, m->kvm_tdx);
	the_model = m;
	m->mm = current->mm;
	mmget(m->mm);
	model_init_vm(m);
	KUNIT_ASSERT_EQ(test, kunit_add_action_or_reset(test, model_free_vm, m), 0);

	tdx_model_new_td(m);
	model_alloc_sp(m);
	model_open(m);
	return m;
}
