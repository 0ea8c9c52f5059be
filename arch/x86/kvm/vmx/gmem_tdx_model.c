// SPDX-License-Identifier: GPL-2.0-only
/*
 * A model of the TDX module, as far as pages move in and out of a TD: the states
 * of the S-EPT entries of one S-EPT page, the owners of the pages behind them (the
 * module's PAMT), TLB tracking, the caches and the erratum of some CPUs.
 *
 * It refuses what the module refuses, and fails the test for what the module can't
 * see: host writes to its pages, and calls without the lock that keeps KVM's own
 * calls from finding each other's locks taken in the module.  Calls come with KVM's
 * spinlocks held, hence nothing in here may abort the test.
 */
#include <kunit/test.h>
#include <kunit/test-bug.h>
#include <linux/gfp.h>

#include "gmem_tdx_model.h"
#include "mmu/spte.h"
#include "tdx_gmem.h"
#include "tdx_platform.h"

#define WORDS		(PAGE_SIZE / sizeof(u64))

/* What a host page has in it when it comes from the allocator. */
#define JUNK		0x6a756e6b6a756e6bULL

#define CIPHER		0xc1f0000000000000ULL

/* Calls that want a lock which the guest holds in a TDCALL. */
#define CALLS_GUEST_BLOCKS	(BIT(CALL_PAGE_AUG) | BIT(CALL_RANGE_BLOCK) |	\
				 BIT(CALL_TRACK) | BIT(CALL_PAGE_REMOVE))

static struct tdx_model *current_model(void)
{
	return kunit_get_current_test()->priv;
}

static struct model_frame *pfn_frame(kvm_pfn_t pfn)
{
	return model_frame(pfn_folio(pfn));
}

void tdx_model_fill(struct folio *folio, u64 word)
{
	memset64(folio_address(folio), word, WORDS);
}

bool tdx_model_contains(struct folio *folio, u64 word)
{
	u64 *p = folio_address(folio);
	int i;

	for (i = 0; i < WORDS; i++) {
		if (p[i] != word)
			return false;
	}

	return true;
}

/* The TD writes to a page of its own: the host sees something else. */
static void encrypt(struct tdx_model *m, struct model_frame *f)
{
	f->word = CIPHER | ++m->serial;
	tdx_model_fill(f->folio, f->word);
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
static u64 begin_ext(struct tdx_model *m, enum model_call call, u64 *ext_err1, u64 *ext_err2)
{
	*ext_err1 = 0;
	*ext_err2 = 0;
	return begin(m, call);
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
	f->word = *(u64 *)folio_address(f->folio);
	*e = (struct model_sept_entry) {
		.state = state,
		.pfn = pfn,
	};
	return TDX_SUCCESS;
}

static u64 model_page_add(struct tdx_td *td, u64 gpa, kvm_pfn_t pfn, struct page *source,
			  u64 *ext_err1, u64 *ext_err2)
{
	struct tdx_model *m = current_model();
	struct model_sept_entry *e;
	u64 err, word;

	KUNIT_EXPECT_TRUE(m->test, mutex_is_locked(&model_kvm(m)->slots_lock));
	expect_mmu_lock(m, false);

	err = begin_ext(m, CALL_PAGE_ADD, ext_err1, ext_err2);
	if (err)
		return err;
	if (m->op_state != TD_STATE_INITIALIZED)
		return TDX_OP_STATE_INCORRECT;

	err = walk(m, gpa, PAGE_SIZE, PG_LEVEL_4K, &e, ext_err2);
	if (err)
		return err;

	word = *(u64 *)page_address(source);
	KUNIT_EXPECT_TRUE(m->test, tdx_model_contains(page_folio(source), word));

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
	struct tdx_model *m = current_model();
	struct model_sept_entry *e;
	u64 err;

	expect_mmu_lock(m, false);

	err = begin_ext(m, CALL_PAGE_AUG, ext_err1, ext_err2);
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
	struct tdx_model *m = current_model();
	struct model_frame *f = model_frame(page_folio(page));
	u64 err;

	expect_mmu_lock(m, false);

	err = begin_ext(m, CALL_SEPT_ADD, ext_err1, ext_err2);
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
	struct tdx_model *m = current_model();
	struct model_sept_entry *e;
	u64 err;

	expect_mmu_lock(m, true);

	err = begin_ext(m, CALL_MR_EXTEND, ext_err1, ext_err2);
	if (err)
		return err;
	if (m->op_state != TD_STATE_INITIALIZED)
		return TDX_OP_STATE_INCORRECT;

	err = walk(m, gpa, TDX_EXTENDMR_CHUNKSIZE, PG_LEVEL_4K, &e, ext_err2);
	if (err)
		return err;
	if (e->state != TDX_SEPT_PRESENT)
		return TDX_EPT_ENTRY_NOT_PRESENT;

	e->nr_extended++;
	return TDX_SUCCESS;
}

static u64 model_mr_finalize(struct tdx_td *td)
{
	struct tdx_model *m = current_model();
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
	struct tdx_model *m = current_model();
	struct model_sept_entry *e;
	u64 err;

	expect_mmu_lock(m, true);

	err = begin_ext(m, CALL_RANGE_BLOCK, ext_err1, ext_err2);
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
	struct tdx_model *m = current_model();
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
	struct tdx_model *m = current_model();
	struct model_sept_entry *e;
	struct model_frame *f;
	u64 err;

	expect_mmu_lock(m, true);

	err = begin_ext(m, CALL_PAGE_REMOVE, ext_err1, ext_err2);
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
	KUNIT_EXPECT_TRUE_MSG(m->test, tdx_model_contains(f->folio, f->word),
			      "the host wrote to a page that the module owns");

	f->pamt = PAMT_NDA;
	f->needs_wb = true;
	f->needs_reset = m->has_erratum;
	e->state = TDX_SEPT_FREE;
	*ext_err1 = PFN_PHYS(e->pfn);
	return TDX_SUCCESS;
}

static u64 model_page_wbinvd_hkid(u64 hkid, kvm_pfn_t pfn)
{
	struct tdx_model *m = current_model();
	struct model_frame *f = pfn_frame(pfn);
	u64 err;

	err = begin(m, CALL_WBINVD);
	if (err)
		return err;
	if (hkid != MODEL_HKID)
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
	struct tdx_model *m = current_model();
	struct model_frame *f = model_frame(page_folio(page));
	u64 err;

	*tdx_pt = f->pamt;
	*tdx_owner = 0;
	*tdx_size = 0;

	err = begin(m, CALL_RECLAIM);
	if (err)
		return err;
	if (m->kvm_tdx->hkid > 0)
		return TDX_TD_ASSOCIATED_LIFECYCLE_INCORRECT;
	if (f->pamt == PAMT_NDA)
		return TDX_PAGE_METADATA_INCORRECT | TDX_OPERAND_ID_RCX;

	f->pamt = PAMT_NDA;
	f->needs_reset = m->has_erratum;
	if (f == m->sept_page)
		m->sept_page = NULL;
	return TDX_SUCCESS;
}

static void model_quirk_reset_paddr(unsigned long base, unsigned long size)
{
	struct tdx_model *m = current_model();
	struct model_frame *f = pfn_frame(PHYS_PFN(base));

	m->calls[CALL_RESET]++;
	KUNIT_EXPECT_EQ(m->test, size, PAGE_SIZE);
	KUNIT_EXPECT_EQ(m->test, f->pamt, PAMT_NDA);
	KUNIT_EXPECT_FALSE(m->test, f->needs_wb);

	if (!m->has_erratum)
		return;

	tdx_model_fill(f->folio, 0);
	f->needs_reset = false;
}

static void model_kick_vcpus(struct kvm *kvm)
{
	struct tdx_model *m = current_model();

	m->calls[CALL_KICK]++;
	m->vcpu_epoch = 0;
	vcpu_enter(m);
}

/* What the TDP MMU does for a fault on @i; -EBUSY isn't retried. */
int tdx_model_map(struct tdx_model *m, int i)
{
	struct kvm *kvm = model_kvm(m);
	int r = -EIO;

	read_lock(&kvm->mmu_lock);
	if (!m->mirror[i])
		r = tdx_sept_set_private_spte(kvm, MODEL_GFN + i, SHADOW_NONPRESENT_VALUE,
					      tdx_model_leaf_spte(m->folio[i]),
					      PG_LEVEL_4K);
	m->mirror[i] |= !r;
	read_unlock(&kvm->mmu_lock);

	return r;
}

/* Zap the guest's mapping; the mirror SPTE is gone whatever the module says. */
void tdx_model_zap(struct tdx_model *m, int i)
{
	struct kvm *kvm = model_kvm(m);

	m->zap_result = 0;
	if (!m->mirror[i])
		return;

	write_lock(&kvm->mmu_lock);
	m->mirror[i] = false;
	m->zap_result = tdx_sept_set_private_spte(kvm, MODEL_GFN + i,
						  tdx_model_leaf_spte(m->folio[i]),
						  SHADOW_NONPRESENT_VALUE, PG_LEVEL_4K);
	write_unlock(&kvm->mmu_lock);
}

/*
 * As kvm_tdp_mmu_map_private_pfn(), which tries until it works, the VM is dead or
 * a signal arrives; here one does.
 */
static int model_map_private_pfn(struct kvm_vcpu *vcpu, gfn_t gfn, kvm_pfn_t pfn)
{
	struct tdx_model *m = current_model();
	int i = gfn - MODEL_GFN;
	int r, tries = 5;

	KUNIT_EXPECT_EQ(m->test, pfn, folio_pfn(m->folio[i]));

	do {
		r = tdx_model_map(m, i);
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
	.quirk_reset_paddr	= model_quirk_reset_paddr,
	.kick_vcpus		= model_kick_vcpus,
	.map_private_pfn	= model_map_private_pfn,
};

/* The guest accepts a page; false if there is nothing to accept. */
bool tdx_model_accept(struct tdx_model *m, int i)
{
	struct model_sept_entry *e = &m->sept[i];

	if (m->op_state != TD_STATE_RUNNABLE || e->state != TDX_SEPT_PENDING)
		return false;

	e->state = TDX_SEPT_PRESENT;
	e->word = 0;
	encrypt(m, pfn_frame(e->pfn));
	return true;
}

u64 tdx_model_leaf_spte(struct folio *folio)
{
	return PFN_PHYS(folio_pfn(folio)) | SPTE_MMU_PRESENT_MASK | VMX_EPT_RWX_MASK;
}

u64 tdx_model_nonleaf_spte(struct tdx_model *m)
{
	return __pa(m->sp->spt) | SPTE_MMU_PRESENT_MASK | VMX_EPT_RWX_MASK;
}

/* Allocate a page; the caller owns a reference, and the file takes another one. */
struct model_frame *tdx_model_alloc_frame(struct tdx_model *m)
{
	struct model_frame *f = kzalloc_obj(*f);

	KUNIT_ASSERT_NOT_NULL(m->test, f);
	f->folio = folio_alloc(GFP_KERNEL, 0);
	if (!f->folio)
		kfree(f);
	KUNIT_ASSERT_NOT_NULL(m->test, f->folio);

	INIT_LIST_HEAD(&f->entry);
	set_page_private(folio_page(f->folio, 0), (unsigned long)f);
	tdx_model_fill(f->folio, JUNK);
	return f;
}

void tdx_model_free_frame(struct model_frame *f)
{
	set_page_private(folio_page(f->folio, 0), 0);
	folio_put(f->folio);
	kfree(f);
}

static void model_free_vm(void *data)
{
	struct tdx_model *m = data;
	int i;

	for (i = 0; i < MODEL_PAGES; i++) {
		if (m->folio[i]) {
			folio_put(m->folio[i]);
			tdx_model_free_frame(model_frame(m->folio[i]));
		}
	}

	if (m->sp->external_spt)
		tdx_model_free_frame(model_frame(virt_to_folio(m->sp->external_spt)));
	if (m->sp->spt) {
		set_page_private(virt_to_page(m->sp->spt), 0);
		free_page((unsigned long)m->sp->spt);
	}
	kvfree(m->kvm_tdx);
}

/* The page table that mirrors the S-EPT page, and a page for the latter. */
static void model_alloc_sp(struct tdx_model *m)
{
	m->sp->role.level = PG_LEVEL_4K;
	m->sp->gfn = MODEL_GFN;
	m->sp->external_spt = folio_address(tdx_model_alloc_frame(m)->folio);
	m->sp->spt = (u64 *)get_zeroed_page(GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(m->test, m->sp->spt);
	set_page_private(virt_to_page(m->sp->spt), (unsigned long)m->sp);
}

/* As little of a VM as the code under test looks at. */
static void model_init_vm(struct tdx_model *m)
{
	struct kvm *kvm = model_kvm(m);

	memset(m->kvm_tdx, 0, sizeof(*m->kvm_tdx));
	mutex_init(&kvm->slots_lock);
	rwlock_init(&kvm->mmu_lock);
	xa_init(&kvm->vcpu_array);
	kvm->arch.vm_type = KVM_X86_TDX_VM;
	kvm->arch.has_private_mem = true;

	m->kvm_tdx->platform = &tdx_model_ops;
	m->kvm_tdx->hkid = MODEL_HKID;
	m->kvm_tdx->state = TD_STATE_INITIALIZED;
}

/* The file stays, the TD is a new one that hasn't been finalised. */
void tdx_model_new_td(struct tdx_model *m)
{
	model_init_vm(m);
	m->op_state = TD_STATE_INITIALIZED;
	m->epoch = 1;
	m->vcpu_epoch = 0;
	m->vcpu_runs = false;
	m->vcpu_nags = false;
}

struct tdx_model *tdx_model_create(struct kunit *test)
{
	struct tdx_model *m = kunit_kzalloc(test, sizeof(*m), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, m);
	m->test = test;
	test->priv = m;
	INIT_LIST_HEAD(&m->leaked);

	/* What model_free_vm() looks at has to outlive it, hence to be older. */
	m->sp = kunit_kzalloc(test, sizeof(*m->sp), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, m->sp);

	m->kvm_tdx = kvzalloc_obj(*m->kvm_tdx);
	KUNIT_ASSERT_NOT_NULL(test, m->kvm_tdx);
	KUNIT_ASSERT_EQ(test, kunit_add_action_or_reset(test, model_free_vm, m), 0);

	tdx_model_new_td(m);
	model_alloc_sp(m);
	return m;
}
