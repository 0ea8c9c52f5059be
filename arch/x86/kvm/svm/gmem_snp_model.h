/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef __KVM_X86_SVM_GMEM_SNP_MODEL_H
#define __KVM_X86_SVM_GMEM_SNP_MODEL_H

#include <linux/kvm_types.h>
#include <linux/pgtable.h>

#include "snp_platform.h"

struct kunit;

#define RMP_REGION	PTRS_PER_PMD

/* Of the one guest that there is. */
#define RMP_ASID	5

/* A CPUID page that starts so is rejected, and corrected. */
#define CPUID_BAD	0xbd
#define CPUID_GOOD	0xc0

/*
 * Where the C-bit is.  The host's own memory counts as encrypted, so what is told to the
 * firmware without it are addresses of ciphertext.
 */
#define RMP_C_BIT	BIT_ULL(51)

#define RMP_NR_UNKNOWN	2048

/* What the hardware answers, beyond what the kernel has names for. */
#define RMP_BAD_INPUT	1
#define RMP_NO_PERM	2
#define PSMASH_NOT_2M	7

struct rmp_entry {
	u64 gpa;
	u32 asid;
	bool assigned;
	bool huge;
	bool immutable;
	bool validated;
};

/*
 * Dirty cache lines of a page of a guest without an RMP.  The host's and the guest's are
 * different lines of the same memory: whichever is written back last, wins.
 */
struct sev_lines {
	/* The host's were written back when the bytes had this sum. */
	bool clean;
	u32 sum;

	/* The guest has some. */
	bool guest;
};

enum rmp_call {
	RMP_LOOKUP,
	RMP_PRIVATE,
	RMP_SHARED,
	RMP_PSMASH,
	RMP_SPLIT_MAP,
	RMP_PAGE_FLUSH,
	RMP_ISSUE_CMD,
	RMP_DO_CMD,
	RMP_NR_CALLS,
};

struct rmp_model {
	struct kunit *test;
	int nr_regions;
	/* Regions come and go; without an entry a page is unassigned. */
	bool dynamic;
	struct page **pages;
	struct rmp_entry *entry;

	/* The direct map of the region has 4 KiB mappings. */
	bool *map_split;

	/* Of the bytes of an assigned page, which only the guest may change. */
	u32 *sum;

	/* The guest's cache lines have not been flushed since it lost the page. */
	bool *stale;

	/* The bytes are, or were when the guest lost the page, encrypted with its key. */
	bool *cipher;

	/* Of a SEV or SEV-ES guest, which has no RMP; unused otherwise. */
	bool sev;
	struct sev_lines *lines;

	/*
	 * Can the guest get at the page at @gpa, by its page tables or by what it has in
	 * the TLB?  NULL if there is no guest.
	 */
	bool (*guest_has)(u64 gpa, unsigned long nr_pages);
	gfn_t base_gfn;

	/* The region of the last look-up, which is likely to be that of the next. */
	int last;

	/* For the test's own use. */
	bool *seen;

	/* So many RMPUPDATEs to come find the entry in use; 2 MiB are refused. */
	unsigned int busy;
	bool no_2m;

	/* An RMPUPDATE may need memory, as the caller can cope with that. */
	bool may_split;

	bool no_snp;
	bool incoherent;
	u32 measured;
	u64 gctx;
	u8 page_type;
	int fd;

	/* Let the @nth call from now fail, if @sticky all further ones of its kind. */
	unsigned int nth;
	bool sticky;
	bool fired;
	enum rmp_call fired_call;

	/* Pages of which a look-up failed, and that may be leaked though they are free. */
	u64 unknown[RMP_NR_UNKNOWN];
	int nr_unknown;
	int code[RMP_NR_CALLS];

	/* The test itself is calling, nothing fails nor counts. */
	bool quiet;

	unsigned long calls[RMP_NR_CALLS];
	unsigned long nr_flushed;
	unsigned long nr_page_flushed;
	unsigned long nr_writebacks;
	unsigned long transitions;
	unsigned long refused;
	unsigned long violations;
};

extern struct rmp_model *rmp_model;
extern const struct snp_platform_ops rmp_model_platform;

struct rmp_model *rmp_model_new(struct kunit *test, int nr_regions, bool dynamic);
void rmp_violation(struct rmp_model *m, int i, const char *what);
int rmp_index(struct rmp_model *m, u64 pfn);
u64 rmp_pfn(struct rmp_model *m, int i);
struct rmp_entry *rmp_first(struct rmp_model *m, int i);
u8 *rmp_bytes(struct rmp_model *m, int i);
u32 rmp_sum(struct rmp_model *m, int i);
void rmp_check_sum(struct rmp_model *m, int i);
void rmp_scramble(struct rmp_model *m, int i);
void rmp_arm(struct rmp_model *m, unsigned int nth, bool sticky);
void rmp_arm_call(struct rmp_model *m, enum rmp_call call, int code);
void rmp_disarm(struct rmp_model *m);
int rmp_update(struct rmp_model *m, u64 pfn, const struct rmp_entry *new);
int rmp_psmash(struct rmp_model *m, u64 pfn);
int rmp_model_make_shared(u64 pfn, enum pg_level level);
void rmp_model_clflush(u64 pfn, unsigned long nr_pages);
void rmp_host_write(struct rmp_model *m, int i, u8 value);
void rmp_host_read(struct rmp_model *m, int i);
void rmp_host_free(struct rmp_model *m, int i, int nr);
bool rmp_guest_access(struct rmp_model *m, int i, gfn_t gfn, int level);
void sev_guest_write(struct rmp_model *m, u64 pfn);
bool sev_guest_is_dirty(struct rmp_model *m, u64 pfn);
void sev_host_free(struct rmp_model *m, u64 pfn);

#endif /* __KVM_X86_SVM_GMEM_SNP_MODEL_H */
