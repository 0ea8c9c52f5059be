/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * guest_memfd_bench: what its topics share.  guest_memfd_bench.c tells what it is
 * all about; guest_memfd_bench_measure.c has what is declared here.
 */
#ifndef SELFTEST_KVM_GUEST_MEMFD_BENCH_H
#define SELFTEST_KVM_GUEST_MEMFD_BENCH_H

#include <linux/falloc.h>
#include <linux/sizes.h>

#include "kvm_util.h"
#include "processor.h"

/* ---- The ABI, for headers that do not have it ---- */

#ifndef KVM_SET_MEMORY_ATTRIBUTES2
struct kvm_memory_attributes2 {
	__u64 offset;
	__u64 size;
	__u64 attributes;
	__u64 flags;
	__u64 error_offset;
	__u64 reserved[11];
};

#define KVM_SET_MEMORY_ATTRIBUTES2		\
	_IOWR(KVMIO, 0xd2, struct kvm_memory_attributes2)
#define KVM_SET_MEMORY_ATTRIBUTES2_ZERO		BIT(0)
#define KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE	BIT(1)
#define KVM_SET_MEMORY_ATTRIBUTES2_DISCARD	BIT(16)
#endif

#ifndef GUEST_MEMFD_FLAG_NO_DIRECT_MAP
#define GUEST_MEMFD_FLAG_NO_DIRECT_MAP		BIT(2)
#define GUEST_MEMFD_FLAG_WRITE			BIT(3)
#endif

#ifndef KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES
#define KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES	0x676d00
#endif

#define PRIVATE		KVM_MEMORY_ATTRIBUTE_PRIVATE
#define SHARED		0ul

/* Where the measured slot lies; the guest maps its first part one to one. */
#define GPA		((gpa_t)SZ_4G)
#define SLOT		10

/* What the guest touches in one run, to learn what one fault costs. */
#define WINDOW		SZ_2M

#define MAX_SAMPLES	512
#define MAX_VCPUS	4

struct bench_args {
	u64 size;		/* of the guest whose attributes change */
	u64 huge;		/* of a very large one */
	u64 scattered;		/* changes before a change is measured */
	u64 worst;		/* of which every other page is private */
	u64 touch;		/* what the guest touches, and converts */
	u64 file;		/* what is allocated and punched */
	u64 large;		/* what is allocated only */
	u64 repeats;
	u64 budget;		/* ticks an operation may take */
	const char *only;	/* groups to run, by comma */
};

extern struct bench_args args;
extern bool has_inplace;
extern bool has_huge;

/* ---- The clock ---- */

extern u64 clock_cost;
extern bool clock_counts_instructions;
extern const char *unit;

#define TICKS(action)							\
({									\
	u64 __start = rdtsc();						\
									\
	action;								\
	rdtsc() - __start - clock_cost;					\
})

void clock_init(void);

/* ---- Results ---- */

/* Small: the guest gets a copy of all static data. */
struct samples {
	u64 ticks[MAX_SAMPLES];
	u32 nr;
};

struct cost {
	u64 value;
	u64 min;
	u64 max;
	u32 nr;
	u64 factor;
	u64 zeroed;
};

void sample(struct samples *s, u64 ticks);
struct cost median(struct samples *s);
struct cost single(u64 value);
struct cost scaled(struct cost c, u64 factor);
struct cost zeroing(struct cost c, u64 size);

const char *size_name(u64 size);
__printf(1, 2) const char *name(const char *fmt, ...);
__printf(5, 6) void row(struct cost c, const char *in, const char *id,
			const char *against, const char *fmt, ...);
__printf(1, 2) void at(const char *fmt, ...);
void zero_row(void);

/* ---- VMs ---- */

/* A VM with one slot, at GPA. */
struct bench {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpus[MAX_VCPUS];
	struct guest_job *jobs;

	/* Is the file's own state which half is live? */
	bool inplace;

	u64 size;
	void *mem;
	int fd;
};

#define ALLOCATE	FALLOC_FL_KEEP_SIZE
#define PUNCH		(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE)

struct kvm_vm *new_vm(void);
void bind_slot(struct bench *b);
void delete_slot(struct bench *b);
void *map_sparse(u64 size);
void open_two_backings(struct bench *b, u64 size);
void open_inplace(struct bench *b, u64 size, u64 flags);
void close_bench(struct bench *b);
void convert(struct bench *b, u64 offset, u64 size, u64 attrs, u64 flags);
void set_attrs(struct bench *b, u64 offset, u64 size, u64 attrs);
void set_state(struct bench *b, u64 offset, u64 size, u64 attrs, u64 flags);

/* ---- Kinds of memory ---- */

struct kind {
	const char *id;
	const char *label;
	bool inplace;
	u64 flags;
};

#define NR_KINDS	3

extern const struct kind kinds[NR_KINDS];

bool has_kind(const struct kind *k);
const char *against(const struct kind *k, const char *what);
void open_kind(struct bench *b, const struct kind *k, u64 size, u64 flags);

/* ---- The guest: its vCPUs touch pages, one word each, and say so ---- */

void new_guest(struct bench *b, u32 type, u64 mapped);
void new_guest_vcpus(struct bench *b, u32 type, u64 mapped, int nr_vcpus);
void new_private_guest(struct bench *b, const struct kind *k, u64 size, int nr_vcpus);
void give_job(struct bench *b, int cpu, u64 offset, u64 size);
void run_vcpu(struct bench *b, int cpu);
void touch(struct bench *b, u64 offset, u64 size);

/* ---- Scattered changes to private, each of one page ---- */

struct scattered {
	struct kvm_random_state random;
	unsigned long *taken;
	u64 first;
	u64 nr;
};

void open_scattered(struct scattered *s, u64 reserved);
u64 random_free_page(struct scattered *s);
void scatter_to(struct scattered *s, struct bench *b, u64 nr);

/* ---- Memory that the kernel uses ---- */

struct kernel_memory {
	u64 used;
	u64 charged;
};

void enter_cgroup(void);
void leave_cgroup(void);
struct kernel_memory kernel_memory(void);
void memory_rows(struct kernel_memory a, struct kernel_memory b, u64 factor,
		 const char *id, const char *label);
int reset_peak(void);
u64 read_peak(int fd);

/* ---- The groups of rows ---- */

void attr_group(void);
void slot_group(void);
void scatter_group(void);
void worst_group(void);
void file_group(void);
void cold_group(void);
void peak_group(void);
void fill_group(void);
void hidden_group(void);
void access_group(void);
void convert_group(void);
void split_group(void);

#endif /* SELFTEST_KVM_GUEST_MEMFD_BENCH_H */
