/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef __KVM_X86_SVM_SNP_PLATFORM_H
#define __KVM_X86_SVM_SNP_PLATFORM_H

#include <linux/kconfig.h>
#include <linux/kvm_types.h>
#include <asm/pgtable_types.h>

struct kvm;
struct page;
struct rmp_owner;

/*
 * What guest_memfd asks of an SEV-SNP platform, the RMP in particular.  All of
 * KVM's code for SNP guests' guest_memfd goes through this table, so that KUnit
 * can put a model of the RMP in the hardware's place.
 *
 * Functions return 0 or a negative error code unless said otherwise.
 */
struct snp_platform_ops {
	/* Does this host have an RMP?  If not, nothing else is called. */
	bool (*has_snp)(void);

	/*
	 * Read the RMP entry of @pfn: is the page assigned, to whom, at which guest
	 * address, and how large is the entry that covers it?  -EFAULT, or 1
	 * (RMPREAD: bad address), if no entry covers the page: such a page can
	 * never be assigned.
	 */
	int (*lookup)(u64 pfn, struct rmp_owner *owner);

	/*
	 * RMPUPDATE, to the guest and back.  The host faults on any write to an
	 * assigned page; the direct map is split as needed.  May sleep.  Must not
	 * be asked for what overlaps an entry of the other size: the hardware's
	 * answer is the same as for a passing conflict, and is retried for ever.
	 * -EBUSY if another CPU is at work on the entry.
	 */
	int (*make_private)(u64 pfn, u64 gpa, enum pg_level level, u32 asid,
			    bool immutable);
	int (*make_shared)(u64 pfn, enum pg_level level);

	/*
	 * Split the 2 MiB entry at @pfn.  Returns a positive code if the hardware
	 * refuses, PSMASH_FAIL_INUSE if another CPU is at work on the entry.
	 */
	int (*psmash)(u64 pfn);

	/*
	 * Split the direct map at @pfn, which is the part of RMPUPDATE that needs
	 * memory.  May sleep.
	 */
	int (*split_direct_map)(u64 pfn);

	/* Write back and drop the cache lines of pages that are the host's. */
	void (*clflush)(u64 pfn, unsigned long nr_pages);

	/*
	 * What guests without an RMP, i.e. SEV and SEV-ES guests, need: are caches
	 * coherent between the guest's accesses to a page and the host's?  If not,
	 * write back what the guest has written to one page, or to any.
	 */
	bool (*is_coherent)(void);
	int (*page_flush)(u64 pfn, u32 asid);
	void (*writeback)(struct kvm *kvm);

	/*
	 * The address of memory as the firmware wants to be told it: with the C-bit if
	 * the host has its own memory encrypted, or the firmware reads ciphertext.
	 */
	u64 (*fw_address)(u64 paddr);

	/* A firmware command, with user space's /dev/sev or with KVM's authority. */
	int (*issue_cmd)(int fd, int id, void *data, int *error);
	int (*do_cmd)(int id, void *data, int *error);
};

/* Constant but for KUnit, which runs only where there is no RMP. */
#if IS_ENABLED(CONFIG_KVM_GMEM_KUNIT_TEST)
extern const struct snp_platform_ops *snp_platform;
#else
extern const struct snp_platform_ops snp_hardware;
#define snp_platform (&snp_hardware)
#endif

/* One KVM_SEV_SNP_LAUNCH_UPDATE; see snp_gmem_post_populate(). */
struct snp_gmem_launch {
	int sev_fd;
	u8 type;

	/* Outputs: the firmware's error code; the page itself was rejected. */
	int fw_error;
	bool rejected;
};

int snp_gmem_psmash(kvm_pfn_t pfn);
int snp_gmem_post_populate(struct kvm *kvm, gfn_t gfn, kvm_pfn_t pfn,
			   struct page *src_page, void *opaque);

#endif /* __KVM_X86_SVM_SNP_PLATFORM_H */
