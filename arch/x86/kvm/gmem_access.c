// SPDX-License-Identifier: GPL-2.0-only
/*
 * x86: steal time in memory that is in a guest_memfd alone; see guest_memfd_access.c.
 */
#include <linux/kvm_host.h>

#include "cpuid.h"
#include "mmu.h"
#include "trace.h"
#include "x86.h"

/*
 * Lock @vcpu's cache of the steal time at @gpa, having refreshed it if need be.  Returns
 * NULL, without the lock, if there is no memory.
 */
static struct kvm_steal_time *kvm_gmem_lock_steal_time(struct kvm_vcpu *vcpu, gpa_t gpa,
						       unsigned long *flags)
{
	struct gfn_to_pfn_cache *gpc = &vcpu->arch.st.gpc;

	read_lock_irqsave(&gpc->lock, *flags);
	while (gpc->gpa != gpa || !kvm_gpc_check(gpc, sizeof(struct kvm_steal_time))) {
		read_unlock_irqrestore(&gpc->lock, *flags);

		if (kvm_gpc_activate(gpc, gpa, sizeof(struct kvm_steal_time)))
			return NULL;

		read_lock_irqsave(&gpc->lock, *flags);
	}

	return gpc->khva;
}

static void kvm_gmem_add_steal_time(struct kvm_vcpu *vcpu, struct kvm_steal_time *st)
{
	u64 run_delay = current->sched_info.run_delay;
	u32 version = READ_ONCE(st->version);

	if (version & 1)
		version += 1;  /* first time write, random junk */

	/* The guest reads version, steal, version: odd or changed tells it to retry. */
	WRITE_ONCE(st->version, version + 1);
	smp_wmb(); /* Odd before there is anything new. */
	WRITE_ONCE(st->steal, READ_ONCE(st->steal) + run_delay - vcpu->arch.st.last_steal);
	vcpu->arch.st.last_steal = run_delay;
	smp_wmb(); /* Even after all is there. */
	WRITE_ONCE(st->version, version + 2);
}

/*
 * What record_steal_time() does, for steal time at @gpa.  The vCPU is about to enter the
 * guest, may sleep.  True if the caller is to flush the guest's TLB.
 */
bool kvm_gmem_record_steal_time(struct kvm_vcpu *vcpu, gpa_t gpa)
{
	struct gfn_to_pfn_cache *gpc = &vcpu->arch.st.gpc;
	struct kvm_steal_time *st;
	unsigned long flags;
	bool flush = false;

	st = kvm_gmem_lock_steal_time(vcpu, gpa, &flags);
	/* The guest may have left a request for a flush in what can't be read. */
	if (!st)
		return vcpu->arch.st.preempted;

	if (guest_pv_has(vcpu, KVM_FEATURE_PV_TLB_FLUSH)) {
		flush = xchg(&st->preempted, 0) & KVM_VCPU_FLUSH_TLB;
		trace_kvm_pv_tlb_flush(vcpu->vcpu_id, flush);
	} else {
		WRITE_ONCE(st->preempted, 0);
	}
	vcpu->arch.st.preempted = 0;

	kvm_gmem_add_steal_time(vcpu, st);
	kvm_gpc_mark_dirty_in_slot(gpc);
	read_unlock_irqrestore(&gpc->lock, flags);

	return flush;
}

/*
 * What kvm_steal_time_set_preempted() does, as the vCPU is being scheduled out: without
 * the page, or the lock, the guest isn't told.
 */
void kvm_gmem_set_preempted(struct kvm_vcpu *vcpu, gpa_t gpa)
{
	struct gfn_to_pfn_cache *gpc = &vcpu->arch.st.gpc;
	struct kvm_steal_time *st;
	unsigned long flags;

	local_irq_save(flags);
	if (!read_trylock(&gpc->lock))
		goto out;

	if (gpc->gpa == gpa && kvm_gpc_check(gpc, sizeof(*st))) {
		st = gpc->khva;
		WRITE_ONCE(st->preempted, KVM_VCPU_PREEMPTED);
		vcpu->arch.st.preempted = KVM_VCPU_PREEMPTED;
		kvm_gpc_mark_dirty_in_slot(gpc);
	}
	read_unlock(&gpc->lock);
out:
	local_irq_restore(flags);
}
