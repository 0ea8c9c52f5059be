/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef __KVM_X86_VMX_GMEM_TDX_MODEL_H
#define __KVM_X86_VMX_GMEM_TDX_MODEL_H

#include <linux/kvm_host.h>
#include <linux/list.h>

#include "tdx.h"

/* What base headers don't name. */
#define TDX_TD_ASSOCIATED_LIFECYCLE_INCORRECT	0xC000060700000000ULL
#define TDX_OP_STATE_INCORRECT			0xC000060800000000ULL
#define TDX_EPT_ENTRY_NOT_PRESENT		0xC0000B0300000000ULL
#define TDX_GPA_RANGE_NOT_BLOCKED		0xC0000B0600000000ULL
#define TDX_GPA_RANGE_ALREADY_BLOCKED		0x00000B0700000000ULL
#define TDX_TLB_TRACKING_NOT_DONE		0xC0000B0800000000ULL
#define TDX_OPERAND_ID_R8			0x08

/* The guest's memory: one S-EPT page, of which so many entries are used. */
#define MODEL_PAGES		64
#define MODEL_GFN		0x1000

#define MODEL_HKID		7

enum model_call {
	CALL_PAGE_ADD,
	CALL_PAGE_AUG,
	CALL_SEPT_ADD,
	CALL_MR_EXTEND,
	CALL_MR_FINALIZE,
	CALL_RANGE_BLOCK,
	CALL_TRACK,
	CALL_PAGE_REMOVE,
	CALL_WBINVD,
	CALL_RECLAIM,
	CALL_RESET,
	CALL_KICK,
	NR_CALLS,
};

enum model_pamt { PAMT_NDA, PAMT_REG, PAMT_EPT };

/*
 * A page of the host's memory.  All words of a page are equal at any time, so one
 * tells what is in it.  @word is what ought to be there while the module owns the
 * page; if it isn't, the host has written to it.
 */
struct model_frame {
	struct list_head entry;
	struct folio *folio;
	enum model_pamt pamt;
	u64 word;

	/* The caches hold dirty lines of the TD's key. */
	bool needs_wb;
	/* The CPU has the erratum, and the lines are the module's. */
	bool needs_reset;
};

struct model_sept_entry {
	enum tdx_sept_entry_state state;
	kvm_pfn_t pfn;
	u64 blocked_epoch;
	unsigned int nr_extended;

	/* What the guest reads. */
	u64 word;
};

#define FOREVER			UINT_MAX

struct tdx_model {
	struct kunit *test;
	struct kvm_tdx *kvm_tdx;

	/* The TDX module. */
	enum kvm_tdx_state op_state;
	u64 epoch;
	bool has_erratum;
	struct model_frame *sept_page;
	struct model_sept_entry sept[MODEL_PAGES];

	/* The next so many calls fail, without having done anything. */
	struct {
		u64 err;
		unsigned int times;
	} faults[NR_CALLS];

	/*
	 * A hostile guest with one vCPU.  It enters whenever it is let, with the
	 * epoch of then, and if it nags holds the locks that host calls want.
	 */
	bool vcpu_runs;
	bool vcpu_nags;
	u64 vcpu_epoch;

	/* KVM's mirror of the S-EPT. */
	bool mirror[MODEL_PAGES];
	struct kvm_mmu_page *sp;
	int zap_result;

	/* Memory failure hits the page that is being added. */
	bool poison_after_add;

	/* The file. */
	struct folio *folio[MODEL_PAGES];
	bool is_private[MODEL_PAGES];
	struct list_head leaked;
	unsigned int nr_leaked;
	unsigned int nr_freed;

	unsigned long calls[NR_CALLS];
	u64 serial;
};

static inline struct kvm *model_kvm(struct tdx_model *m)
{
	return &m->kvm_tdx->kvm;
}

static inline struct model_frame *model_frame(struct folio *folio)
{
	return (struct model_frame *)page_private(folio_page(folio, 0));
}

extern const struct tdx_platform_ops tdx_model_ops;

struct tdx_model *tdx_model_create(struct kunit *test);
void tdx_model_new_td(struct tdx_model *m);
struct model_frame *tdx_model_alloc_frame(struct tdx_model *m);
void tdx_model_free_frame(struct model_frame *f);

const char *tdx_model_host_may_write(struct model_frame *f);
void tdx_model_fill(struct folio *folio, u64 word);
bool tdx_model_contains(struct folio *folio, u64 word);
u64 tdx_model_leaf_spte(struct folio *folio);
u64 tdx_model_nonleaf_spte(struct tdx_model *m);
int tdx_model_map(struct tdx_model *m, int i);
void tdx_model_zap(struct tdx_model *m, int i);
bool tdx_model_accept(struct tdx_model *m, int i);

#endif /* __KVM_X86_VMX_GMEM_TDX_MODEL_H */
