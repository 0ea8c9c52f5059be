/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef __KVM_X86_VMX_GMEM_TDX_MODEL_H
#define __KVM_X86_VMX_GMEM_TDX_MODEL_H

#include <linux/cpumask.h>
#include <linux/kvm_gmem.h>
#include <linux/kvm_host.h>
#include <linux/list.h>
#include <linux/xarray.h>

#include <asm/vmx.h>

#include "tdx.h"

/* What base headers don't name. */
#define TDX_LIFECYCLE_STATE_INCORRECT		0xC000060700000000ULL
#define TDX_WBCACHE_NOT_COMPLETE		0x8000081700000000ULL
#define TDX_OP_STATE_INCORRECT			0xC000060800000000ULL
#define TDX_EPT_ENTRY_NOT_PRESENT		0xC0000B0300000000ULL
#define TDX_GPA_RANGE_NOT_BLOCKED		0xC0000B0600000000ULL
#define TDX_GPA_RANGE_ALREADY_BLOCKED		0x00000B0700000000ULL
#define TDX_TLB_TRACKING_NOT_DONE		0xC0000B0800000000ULL
#define TDX_OPERAND_ID_R8			0x08

/* The guest's memory: one S-EPT page, of which so many entries are used. */
#define MODEL_PAGES		64
#define MODEL_GFN		0x1000

/* Wider than a byte, as the KeyIDs of large machines are. */
#define MODEL_HKID		0x107

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
	CALL_VP_FLUSH,
	CALL_VPFLUSHDONE,
	CALL_CACHE_WB,
	CALL_KEY_FREEID,
	CALL_KEYID_FREE,
	CALL_RESET,
	CALL_KICK,
	CALL_MAP,
	NR_CALLS,
};

enum model_pamt { PAMT_NDA, PAMT_REG, PAMT_EPT };

/* What the TD's key is good for: everything, nothing, giving back pages. */
enum model_life { TD_HAS_KEY, TD_BLOCKED, TD_TEARDOWN };

/*
 * A page of the host's memory that the module or the file has had.  @hash is that of
 * what ought to be there while the module owns the page; if it isn't, the host has
 * written to it.
 */
struct model_frame {
	struct list_head entry;
	struct page *page;
	enum model_pamt pamt;
	u32 hash;

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

	/*
	 * A host call has found the entry locked by the guest, whose TDCALLs are
	 * refused from then on until a host call gets through.
	 */
	bool host_priority;

	/* What the guest reads. */
	u64 word;
};

#define FOREVER			UINT_MAX

struct tdx_model {
	struct kunit *test;
	struct kvm_tdx *kvm_tdx;

	/* The TDX module. */
	enum kvm_tdx_state op_state;
	enum model_life life;
	u64 epoch;
	bool has_erratum;
	struct model_frame *sept_page;
	struct model_sept_entry sept[MODEL_PAGES];

	/* Packages whose caches are written back, and those that need a second call. */
	cpumask_t written_back;
	cpumask_t interrupted;

	/* The next so many calls fail, without having done anything. */
	struct {
		u64 err;
		unsigned int times;
	} faults[NR_CALLS];

	/* A vCPU that has run on a CPU, whose VMCS cache may still have it. */
	struct vcpu_tdx *vcpu;
	bool vcpu_is_associated;

	/*
	 * A hostile guest with one vCPU.  It enters whenever it is let, with the
	 * epoch of then, and if it nags holds the locks that host calls want.
	 */
	bool vcpu_runs;
	bool vcpu_nags;
	u64 vcpu_epoch;

	/* KVM's mirror of the S-EPT. */
	bool mirror[MODEL_PAGES];
	kvm_pfn_t mirror_pfn[MODEL_PAGES];
	struct kvm_mmu_page *sp;
	int zap_result;

	/* Memory failure hits the page that is being added. */
	bool poison_after_add;

	/*
	 * The file, a real one, and the slot that shows it.  @ops is the table of TDX
	 * VMs, but that the zap, which real VMs leave to the TDP MMU, is the model's,
	 * and that the model looks at what is freed.
	 */
	struct kvm_gmem_ops ops;
	struct file *file;
	struct kvm_memory_slot slot;
	struct kvm_memslots slots;
	struct xarray frames;
	struct list_head leaked;
	unsigned int nr_leaked;
	unsigned int nr_freed;

	/* User memory: the file, arguments of ioctls, sources of ADD. */
	struct mm_struct *mm;
	void __user *umem;
	void __user *uargs;
	void __user *usrc;
	u64 *buf;

	unsigned long calls[NR_CALLS];
	u64 serial;
};

static inline struct kvm *model_kvm(struct tdx_model *m)
{
	return &m->kvm_tdx->kvm;
}

extern const struct tdx_platform_ops tdx_model_ops;

struct tdx_model *tdx_model_create(struct kunit *test);
void tdx_model_new_td(struct tdx_model *m);
struct model_frame *tdx_model_frame(struct page *page);
void tdx_model_add_vcpu(struct tdx_model *m);
void tdx_model_close(struct tdx_model *m);

const char *tdx_model_host_may_write(struct model_frame *f);
struct folio *tdx_model_folio(struct tdx_model *m, int i);
bool tdx_model_is_private(struct tdx_model *m, int i);
u64 tdx_model_nonleaf_spte(struct tdx_model *m);
int tdx_model_map(struct tdx_model *m, int i, kvm_pfn_t pfn);
void tdx_model_zap(struct tdx_model *m, int i);
bool tdx_model_accept(struct tdx_model *m, int i);

#endif /* __KVM_X86_VMX_GMEM_TDX_MODEL_H */
