/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Protected VMs of arm64 (pKVM).
 *
 * The host cannot look into such a guest nor write to it once it runs: program,
 * stacks and page tables are loaded before.  What the two have to say to each
 * other goes through a few pages that vCPU 0 shares by hypercall before it does
 * anything else: the pool of ucall structures, hence GUEST_SYNC(), GUEST_ASSERT()
 * and the rest work as everywhere, and a page of commands, hence the host can
 * have any vCPU call any function of the test, see pvm_call().
 *
 * Slot 0, and with it all of this, is anonymous memory or an in-place file.
 */
#ifndef SELFTEST_KVM_PKVM_UTIL_H
#define SELFTEST_KVM_PKVM_UTIL_H

#include "gmem_util.h"

#include <linux/arm-smccc.h>

#define PVM_MAX_VCPUS		4
#define PVM_MAX_FILES		16

/* The tools' copy of <linux/arm-smccc.h> lacks these. */
#define PVM_HVC(nr)							\
	ARM_SMCCC_CALL_VAL(ARM_SMCCC_FAST_CALL, ARM_SMCCC_SMC_64,	\
			   ARM_SMCCC_OWNER_VENDOR_HYP, nr)
#define PVM_HVC_MEMINFO		PVM_HVC(2)
#define PVM_HVC_SHARE		PVM_HVC(3)
#define PVM_HVC_UNSHARE		PVM_HVC(4)
#define PVM_HVC_RELINQUISH	PVM_HVC(9)

/*
 * What the guest is told, as it sees it: functions are of the 64-bit calling
 * convention.
 */
#define PVM_SUCCESS		((u64)SMCCC_RET_SUCCESS)
#define PVM_INVALID		((u64)(s64)SMCCC_RET_INVALID_PARAMETER)

/* All that the hypercall exits need to carry memory of in-place files. */
#define PVM_EXITS							\
	(KVM_ARM_EXIT_HYPERCALL_MEM_SHARE | KVM_ARM_EXIT_HYPERCALL_MEM_UNSHARE)

/*
 * A call that a vCPU has to make.  Lies in a page that guest and host share:
 * nothing here is secret, and either side believes the other.
 */
struct pvm_cmd {
	void (*fn)(struct pvm_cmd *cmd);
	u64 args[4];
	u64 ret[4];
};

struct pvm {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpus[PVM_MAX_VCPUS];
	u32 nr_vcpus;

	/* Slot 0, if it is an in-place file.  Otherwise .fd is -1. */
	struct gmem image;

	/* What pvm_serve() may have to convert. */
	struct gmem *files[PVM_MAX_FILES];
	u32 nr_files;

	/* The host's view of the guest's array. */
	struct pvm_cmd *cmds;
};

/* ---- What the machine can do ---- */

bool pvm_supported(void);

/* The hypercalls that may exit, or 0. */
u64 pvm_exit_hypercalls(void);

/* ---- Life of a VM ---- */

/*
 * A VM with vCPUs; @exits are the hypercalls to enable.  The caller may map and
 * write guest memory until pvm_load_anonymous() or pvm_load_gmem() has the guest
 * start and share its pages of communication.
 */
void pvm_create(struct pvm *p, u32 nr_vcpus, u64 exits);
void pvm_load_anonymous(struct pvm *p);
void pvm_load_gmem(struct pvm *p);
void pvm_free(struct pvm *p);

/* Put the vCPU back to its start: the next run begins its loop of commands. */
void pvm_vcpu_reset(struct kvm_vcpu *vcpu);

/* Tell pvm_serve() of a file, which must not move. */
void pvm_add_file(struct pvm *p, struct gmem *g);
void pvm_del_file(struct pvm *p, struct gmem *g);
struct gmem *pvm_file_of(struct pvm *p, gpa_t gpa, u64 *page);

/* ---- A VMM that does what it is asked ---- */

void pvm_serve(struct pvm *p, struct kvm_vcpu *vcpu);

/* ---- What the host can reach ---- */

/* The error number of a system call that has returned @r. */
static inline int pvm_error(ssize_t r)
{
	return r < 0 ? errno : 0;
}

/* System calls see what user space sees: all fail with @error at @mem, or none. */
void pvm_check_syscalls(u8 *mem, int error);

/* ---- Calls of the guest ---- */

/* Write the call down; the next run of @vcpu makes it. */
struct pvm_cmd *__pvm_prepare(struct pvm *p, u32 id, void (*fn)(struct pvm_cmd *cmd),
			      u64 arg0, u64 arg1, u64 arg2, u64 arg3);

/* Run to the end of the call; every hypercall on the way is served. */
struct pvm_cmd *pvm_finish(struct pvm *p, u32 id);

/* Missing arguments are 0. */
#define pvm_prepare(p, id, fn, ...)						\
	pvm_prepare_(p, id, fn, ##__VA_ARGS__, 0ul, 0ul, 0ul, 0ul)
#define pvm_prepare_(p, id, fn, a, b, c, d, ...)				\
	__pvm_prepare(p, id, fn, a, b, c, d)

#define pvm_call(p, id, fn, ...)						\
({										\
	struct pvm *__pvm = (p);						\
	u32 __pvm_id = (id);							\
										\
	pvm_prepare(__pvm, __pvm_id, fn, ##__VA_ARGS__);			\
	pvm_finish(__pvm, __pvm_id);						\
})

/* ---- Functions of the guest ---- */

/* Hypercall args[0] with args[1..3]: ret[] is what it returned. */
void pvm_guest_hvc(struct pvm_cmd *cmd);

/* Pages from address args[0] on, args[1] of them, with args[2] + i * args[3]. */
void pvm_guest_fill(struct pvm_cmd *cmd);

/* The same; ret[0] is the first page that differs, or args[1], ret[1] its word. */
void pvm_guest_check(struct pvm_cmd *cmd);

/* ret[0] is the word at args[0]. */
void pvm_guest_read(struct pvm_cmd *cmd);
void pvm_guest_write(struct pvm_cmd *cmd);

static inline u64 pvm_hvc(u32 function, gpa_t gpa)
{
	struct arm_smccc_res res;

	smccc_hvc(function, gpa, 0, 0, 0, 0, 0, 0, &res);
	return res.a0;
}

#endif /* SELFTEST_KVM_PKVM_UTIL_H */
