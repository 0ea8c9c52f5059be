// SPDX-License-Identifier: GPL-2.0-only
/*
 * KUnit tests of guest_memfd for SEV-SNP guests, on a model of the RMP.
 *
 * The code under test is what runs in production: the hooks that guest_memfd
 * calls, the loading of the initial image, the handling of RMP faults and the
 * registration of encrypted regions.  Only the platform below struct
 * snp_platform_ops is replaced.  Here the hooks are called one by one, as the core of
 * guest_memfd would; gmem_snp_vm_test.c has the core call them.
 */
#include <kunit/test.h>
#include <linux/interval_tree.h>
#include <linux/jhash.h>
#include <linux/kvm_gmem.h>
#include <linux/kvm_gmem_kunit.h>
#include <linux/kvm_host.h>
#include <linux/mman.h>
#include <linux/moduleparam.h>
#include <linux/prandom.h>
#include <linux/psp-sev.h>

#include <asm/sev.h>

#include "gmem_snp_model.h"
#include "snp_platform.h"
#include "svm.h"

#define REGION		RMP_REGION
#define NR_REGIONS	2
#define NR_PAGES	(NR_REGIONS * REGION)

/* Region 0 is one folio of order 9, region 1 is 512 of order 0. */
#define SMALL_PAGES	REGION

#define BASE_GFN	0x100000ULL
#define ASID		RMP_ASID

/*
 * KASAN and lockdep look at each step; under emulation a case would take minutes,
 * and be reported as hung.
 */
#define FAIL_STEP	(IS_ENABLED(CONFIG_KASAN) ? 7 : 1)

static unsigned long gmem_snp_kunit_seed = 0x736e7021;
module_param(gmem_snp_kunit_seed, ulong, 0444);
MODULE_PARM_DESC(gmem_snp_kunit_seed, "Seed of the gmem_snp KUnit tests");

static unsigned long gmem_snp_kunit_ops = 20000;
module_param(gmem_snp_kunit_ops, ulong, 0644);
MODULE_PARM_DESC(gmem_snp_kunit_ops, "Random conversions of the gmem_snp KUnit tests");

enum { NONE, SMALL, HUGE };

/*
 * What ought to be, as plain arrays, kept by rules of its own: state, RMP entry,
 * and whether a region is one folio.
 */
struct snp_test {
	struct kunit *test;
	struct kvm_svm *svm;
	struct kvm *kvm;
	const struct kvm_gmem_ops *ops;
	struct rmp_model *m;

	bool private[NR_PAGES];
	u8 rmp[NR_PAGES];
	bool whole[NR_REGIONS];
	bool valid[NR_PAGES];

	struct rnd_state rnd;
	unsigned long conversions;
	unsigned long refusals;
	unsigned long lost;
};

static unsigned long snp_total_transitions;
static unsigned long snp_total_refused;

static bool guest_access(struct rmp_model *m, int i, int level)
{
	return rmp_guest_access(m, i, BASE_GFN + i, level);
}

/* guest_memfd's part: what the core does around the hooks. */

static struct snp_test *snp_test(struct kunit *test)
{
	return test->priv;
}

static int folio_nr(struct snp_test *t, int i)
{
	return t->whole[i / REGION] ? REGION : 1;
}

static int folio_start(struct snp_test *t, int i)
{
	return ALIGN_DOWN(i, folio_nr(t, i));
}

static int folio_ord(struct snp_test *t, int i)
{
	return ilog2(folio_nr(t, i));
}

static bool region_is(struct snp_test *t, int i, u8 rmp)
{
	int start = ALIGN_DOWN(i, REGION);

	return !memchr_inv(&t->rmp[start], rmp, REGION);
}

static void shadow_smash(struct snp_test *t, int i)
{
	int start = ALIGN_DOWN(i, REGION);
	int k;

	for (k = start; k < start + REGION; k++)
		t->rmp[k] = t->rmp[k] == HUGE ? SMALL : t->rmp[k];
}

static bool page_differs(struct snp_test *t, int i)
{
	struct rmp_entry *e = &t->m->entry[i];
	u8 rmp = t->rmp[i];

	if (rmp == NONE)
		t->valid[i] = false;
	if (t->valid[i] && !(rmp_first(t->m, i)->huge ? rmp_first(t->m, i) : e)->validated)
		return true;

	/* Of a large entry only the first page says more than "assigned". */
	bool large = rmp == HUGE && IS_ALIGNED(i, REGION);

	if (rmp == NONE)
		return e->assigned || e->huge;

	if (!t->private[i] || !e->assigned || e->huge != large)
		return true;

	if (rmp == HUGE && !large)
		return !rmp_first(t->m, i)->huge;

	return e->asid != ASID || e->immutable || e->gpa != (BASE_GFN + i) << PAGE_SHIFT;
}

/* The first page on which model and shadow differ, -1 if they agree. */
static int shadow_differs(struct snp_test *t)
{
	int i;

	for (i = 0; i < NR_PAGES; i++) {
		if (page_differs(t, i))
			return i;
	}

	return -1;
}

static void check(struct snp_test *t)
{
	KUNIT_ASSERT_EQ(t->test, shadow_differs(t), -1);
	KUNIT_ASSERT_EQ(t->test, t->m->violations, 0);
}

static void check_bytes(struct snp_test *t)
{
	int i;

	for (i = 0; i < NR_PAGES; i++)
		rmp_check_sum(t->m, i);
	KUNIT_ASSERT_EQ(t->test, t->m->violations, 0);
}

/* The guest uses the private page at @i, with RMP faults as need be. */
static void core_guest_access(struct snp_test *t, int i)
{
	struct rmp_model *m = t->m;
	int level;

	m->quiet = true;

	level = sev_gmem_max_mapping_level(t->kvm, rmp_pfn(m, i), true);
	KUNIT_ASSERT_EQ(t->test, level, t->rmp[i] == HUGE ? PG_LEVEL_2M : PG_LEVEL_4K);

	level = min(level, t->whole[i / REGION] ? PG_LEVEL_2M : PG_LEVEL_4K);
	if (!guest_access(m, i, level)) {
		KUNIT_ASSERT_EQ(t->test, snp_gmem_psmash(rmp_pfn(m, i)), 0);
		shadow_smash(t, i);
		KUNIT_ASSERT_TRUE(t->test, guest_access(m, i, PG_LEVEL_4K));
	}
	t->valid[i] = true;

	m->quiet = false;
}

/* A fault of the guest on a private page. */
static int core_touch(struct snp_test *t, int i)
{
	struct rmp_model *m = t->m;
	int r;

	r = t->ops->make_private(t->kvm, BASE_GFN + i, rmp_pfn(m, i), folio_ord(t, i));
	if (r) {
		/* Nothing but a failure of the platform may make it fail. */
		KUNIT_ASSERT_TRUE(t->test, m->fired);
		return r;
	}

	if (t->rmp[i] == NONE) {
		if (t->whole[i / REGION] && region_is(t, i, NONE) &&
		    !(m->fired && !rmp_first(m, i)->huge))
			memset(&t->rmp[ALIGN_DOWN(i, REGION)], HUGE, REGION);
		else
			t->rmp[i] = SMALL;
	}

	core_guest_access(t, i);
	return 0;
}

/* The platform has kept the folio at @i: pretend that a new one takes its place. */
static void core_lose(struct snp_test *t, int i, int nr)
{
	struct rmp_model *m = t->m;

	KUNIT_ASSERT_TRUE(t->test, m->fired);
	rmp_disarm(m);

	t->lost += nr;
	memset(&t->rmp[i], NONE, nr);
	memset(&m->entry[i], 0, nr * sizeof(m->entry[0]));
	memset(&m->stale[i], 0, nr * sizeof(m->stale[0]));
}

/* Let the next failure leak it again. */
static void forget_leak(struct folio *folio)
{
	folio->private = NULL;
	folio_put(folio);
}

/* The folio leaves the file; tell it from the extra reference if it was refused. */
static bool core_free_folio(struct snp_test *t, int i)
{
	struct folio *folio = pfn_folio(rmp_pfn(t->m, i));
	int refs = folio_ref_count(folio);

	t->ops->aops->free_folio(folio);
	if (folio_ref_count(folio) == refs)
		return true;

	KUNIT_ASSERT_EQ(t->test, folio_ref_count(folio), refs + 1);
	forget_leak(folio);
	return false;
}

/* Take back the folio at @i, because it is freed or becomes shared. */
static void core_take_back(struct snp_test *t, int i, bool free)
{
	int nr = folio_nr(t, i);
	bool ok;

	/* ->free_folio() wants real folios of the right size. */
	if (free && nr == folio_nr_pages(pfn_folio(rmp_pfn(t->m, i))))
		ok = core_free_folio(t, i);
	else
		ok = t->ops->make_shared(rmp_pfn(t->m, i), folio_ord(t, i));

	if (!ok) {
		core_lose(t, i, nr);
		return;
	}

	memset(&t->rmp[i], NONE, nr);
	rmp_host_free(t->m, i, nr);
}

static void core_split_edge(struct snp_test *t, int i, int start, int end)
{
	if (folio_start(t, i) < start || folio_start(t, i) + folio_nr(t, i) > end)
		t->whole[i / REGION] = false;
}

/* True if the range may be treated apart from its neighbours. */
static bool core_prepare(struct snp_test *t, int start, int end)
{
	int i, k, r;

	core_split_edge(t, start, start, end);
	core_split_edge(t, end - 1, start, end);

	/* One folio of each block. */
	for (k = start; k < end; k = ALIGN_DOWN(k, REGION) + REGION) {
		i = folio_start(t, k);
		r = t->ops->prepare_convert(rmp_pfn(t->m, i), folio_ord(t, i));
		if (r) {
			KUNIT_ASSERT_TRUE(t->test, t->m->fired);
			t->refusals++;
			return false;
		}
		if (!t->whole[i / REGION])
			shadow_smash(t, i);
	}

	return true;
}

/*
 * Of what is absent, or need not survive, large folios may be made.  They may well
 * be elsewhere, where the direct map is large too.
 */
static void core_merge(struct snp_test *t, int start, int end)
{
	int i;

	for (i = ALIGN(start, REGION); i + REGION <= end; i += REGION) {
		if (!region_is(t, i, NONE) ||
		    memchr_inv(&t->private[i], t->private[i], REGION))
			continue;

		t->whole[i / REGION] = prandom_u32_state(&t->rnd) & 1;
		if (t->whole[i / REGION])
			t->m->map_split[i / REGION] = false;
	}
}

static void core_convert(struct snp_test *t, int start, int end, bool to_private)
{
	int i, k, nr;

	t->conversions++;
	if (!core_prepare(t, start, end))
		return;

	for (i = start; i < end; i += nr) {
		nr = folio_nr(t, i);
		if (t->private[i] == to_private)
			continue;

		if (!to_private)
			core_take_back(t, i, false);
		memset(&t->private[i], to_private, nr);

		for (k = i; !to_private && k < i + nr; k++)
			rmp_host_write(t->m, k, 0);
	}

	core_merge(t, start, end);
}

/* State stays. */
static void core_punch(struct snp_test *t, int start, int end)
{
	int i, nr;

	if (!core_prepare(t, start, end))
		return;

	for (i = start; i < end; i += nr) {
		nr = folio_nr(t, i);
		core_take_back(t, i, true);
	}

	core_merge(t, start, end);
}

/* One folio a region, all of it private, nothing assigned. */
static void core_reset(struct snp_test *t)
{
	rmp_disarm(t->m);
	memset(t->m->entry, 0, NR_PAGES * sizeof(*t->m->entry));
	memset(t->m->stale, 0, NR_PAGES * sizeof(*t->m->stale));
	memset(t->m->map_split, 0, NR_REGIONS * sizeof(*t->m->map_split));
	memset(t->rmp, NONE, sizeof(t->rmp));
	memset(t->private, true, sizeof(t->private));
	memset(t->whole, true, sizeof(t->whole));
	memset(t->valid, 0, sizeof(t->valid));
}

/* Set-up */

static struct kvm_svm *new_vm(struct kunit *test, unsigned long type)
{
	struct kvm_svm *svm = kunit_kzalloc(test, sizeof(*svm), GFP_KERNEL);
	struct kvm *kvm;
	int as;

	KUNIT_ASSERT_NOT_NULL(test, svm);
	kvm = &svm->kvm;
	kvm->arch.vm_type = type;
	kvm->arch.has_private_mem = type == KVM_X86_SNP_VM;
	mutex_init(&kvm->lock);
	mutex_init(&kvm->slots_lock);
	spin_lock_init(&kvm->gpc_lock);
	INIT_LIST_HEAD(&kvm->gpc_list);
	for (as = 0; as < KVM_MAX_NR_ADDRESS_SPACES; as++)
		rcu_assign_pointer(kvm->memslots[as], &kvm->__memslots[as][0]);

	svm->sev_info.active = true;
	svm->sev_info.asid = ASID;
	INIT_LIST_HEAD(&svm->sev_info.regions_list);
	if (type == KVM_X86_SNP_VM) {
		svm->sev_info.es_active = true;
		svm->sev_info.vmsa_features = SVM_SEV_FEAT_SNP_ACTIVE;
		svm->sev_info.snp_context = kunit_kzalloc(test, 64, GFP_KERNEL);
		KUNIT_ASSERT_NOT_NULL(test, svm->sev_info.snp_context);
	}

	return svm;
}

static void free_region(void *page)
{
	__free_pages(page, PMD_ORDER);
}

static void free_small_pages(void *page)
{
	int i;

	for (i = 0; i < REGION; i++)
		__free_page((struct page *)page + i);
}

static void new_regions(struct kunit *test, struct rmp_model *m)
{
	m->pages[0] = alloc_pages(GFP_KERNEL | __GFP_COMP, PMD_ORDER);
	KUNIT_ASSERT_NOT_NULL(test, m->pages[0]);
	KUNIT_ASSERT_EQ(test, kunit_add_action_or_reset(test, free_region, m->pages[0]), 0);

	m->pages[1] = alloc_pages(GFP_KERNEL, PMD_ORDER);
	KUNIT_ASSERT_NOT_NULL(test, m->pages[1]);
	split_page(m->pages[1], PMD_ORDER);
	KUNIT_ASSERT_EQ(test, kunit_add_action_or_reset(test, free_small_pages, m->pages[1]),
			0);
}

static int gmem_snp_init(struct kunit *test)
{
	struct snp_test *t;

	/* Don't take the platform away from running VMs. */
	if (snp_platform->has_snp())
		kunit_skip(test, "the host has an RMP of its own");

	t = kunit_kzalloc(test, sizeof(*t), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, t);
	t->m = rmp_model_new(test, NR_REGIONS, false);

	t->test = test;
	new_regions(test, t->m);
	t->svm = new_vm(test, KVM_X86_SNP_VM);
	t->kvm = &t->svm->kvm;
	t->ops = sev_gmem_ops(t->kvm);
	prandom_seed_state(&t->rnd, gmem_snp_kunit_seed);
	core_reset(t);
	t->m->gctx = __pa(t->svm->sev_info.snp_context) | RMP_C_BIT;

	test->priv = t;
	rmp_model = t->m;
	snp_platform = &rmp_model_platform;
	return 0;
}

static const struct snp_platform_ops *snp_real_platform;

static int gmem_snp_suite_init(struct kunit_suite *suite)
{
	snp_real_platform = snp_platform;
	snp_total_transitions = 0;
	snp_total_refused = 0;
	return 0;
}

static void gmem_snp_suite_exit(struct kunit_suite *suite)
{
	pr_info("gmem_snp: %lu transitions of the RMP model, %lu of them refused\n",
		snp_total_transitions, snp_total_refused);
}

static void gmem_snp_exit(struct kunit *test)
{
	snp_platform = snp_real_platform;
	if (!rmp_model)
		return;

	snp_total_transitions += rmp_model->transitions;
	snp_total_refused += rmp_model->refused;
	rmp_model = NULL;
}

static unsigned long nr_updates(struct rmp_model *m)
{
	return m->calls[RMP_PRIVATE] + m->calls[RMP_SHARED];
}

/* The model itself: it refuses what the hardware refuses. */
static void gmem_snp_model(struct kunit *test)
{
	const struct rmp_entry huge = { .assigned = true, .huge = true, .asid = ASID };
	const struct rmp_entry small = { .assigned = true, .asid = ASID };
	const struct rmp_entry fixed = { .assigned = true, .asid = ASID, .immutable = true };
	const struct rmp_entry wrong = { .asid = ASID };
	const struct rmp_entry none = {};
	struct rmp_model *m = rmp_model;
	u64 pfn = rmp_pfn(m, 0);

	KUNIT_EXPECT_EQ(test, rmp_update(m, 0, &small), RMP_BAD_INPUT);
	KUNIT_EXPECT_EQ(test, rmp_update(m, pfn, &wrong), RMP_BAD_INPUT);
	KUNIT_EXPECT_EQ(test, rmp_update(m, pfn + 1, &huge), RMP_BAD_INPUT);
	KUNIT_EXPECT_EQ(test, rmp_psmash(m, pfn), PSMASH_NOT_2M);

	/* 2 MiB over 4 KiB, and 4 KiB anywhere in 2 MiB. */
	KUNIT_EXPECT_EQ(test, rmp_update(m, pfn + 511, &small), 0);
	KUNIT_EXPECT_EQ(test, rmp_update(m, pfn, &huge), RMPUPDATE_FAIL_OVERLAP);
	KUNIT_EXPECT_EQ(test, rmp_psmash(m, pfn), PSMASH_NOT_2M);
	KUNIT_EXPECT_EQ(test, rmp_update(m, pfn + 511, &none), 0);
	KUNIT_EXPECT_EQ(test, rmp_update(m, pfn, &huge), 0);
	KUNIT_EXPECT_TRUE(test, m->entry[1].assigned && m->entry[511].assigned);
	KUNIT_EXPECT_EQ(test, rmp_update(m, pfn, &none), RMPUPDATE_FAIL_OVERLAP);
	KUNIT_EXPECT_EQ(test, rmp_update(m, pfn + 1, &none), RMPUPDATE_FAIL_OVERLAP);
	KUNIT_EXPECT_EQ(test, rmp_update(m, pfn + 7, &small), RMPUPDATE_FAIL_OVERLAP);

	/* The guest keeps what it has validated. */
	m->entry[0].validated = true;
	KUNIT_EXPECT_EQ(test, rmp_psmash(m, pfn + 1), RMP_BAD_INPUT);
	KUNIT_EXPECT_EQ(test, rmp_psmash(m, pfn), 0);
	KUNIT_EXPECT_EQ(test, m->entry[3].gpa, 3 * PAGE_SIZE);
	KUNIT_EXPECT_TRUE(test, m->entry[3].validated);
	KUNIT_EXPECT_EQ(test, rmp_psmash(m, pfn), PSMASH_NOT_2M);
	KUNIT_EXPECT_EQ(test, rmp_update(m, pfn + 1, &none), 0);
	KUNIT_EXPECT_FALSE(test, m->entry[1].assigned);
	KUNIT_EXPECT_TRUE(test, m->entry[0].assigned && m->entry[2].assigned);

	/* What the firmware holds. */
	KUNIT_EXPECT_EQ(test, rmp_update(m, pfn + 1, &fixed), 0);
	KUNIT_EXPECT_EQ(test, rmp_update(m, pfn + 1, &none), RMP_NO_PERM);
	KUNIT_EXPECT_EQ(test, m->violations, 0);
}

/* Each thing that the model is to catch, done on purpose. */
static void gmem_snp_model_catches(struct kunit *test)
{
	struct snp_test *t = snp_test(test);
	struct rmp_model *m = t->m;
	unsigned long n = 0;

	t->whole[0] = false;
	KUNIT_ASSERT_EQ(test, core_touch(t, 0), 0);
	check(t);

	rmp_host_write(m, 0, 0);
	KUNIT_EXPECT_EQ(test, m->violations, ++n);
	m->map_split[0] = false;
	rmp_host_write(m, 1, 0);
	KUNIT_EXPECT_EQ(test, m->violations, ++n);
	KUNIT_EXPECT_EQ(test, rmp_model_make_shared(rmp_pfn(m, 0), PG_LEVEL_4K), 0);
	KUNIT_EXPECT_EQ(test, m->violations, ++n);
	rmp_host_write(m, 0, 0);
	KUNIT_EXPECT_EQ(test, m->violations, ++n);
	rmp_host_free(m, 0, 1);
	KUNIT_EXPECT_EQ(test, m->violations, ++n);

	/* Model and shadow disagree by now. */
	KUNIT_EXPECT_EQ(test, shadow_differs(t), 0);
	core_reset(t);
	KUNIT_EXPECT_EQ(test, shadow_differs(t), -1);

	KUNIT_ASSERT_EQ(test, core_touch(t, 5), 0);
	rmp_host_free(m, 5, 1);
	KUNIT_EXPECT_EQ(test, m->violations, ++n);
	KUNIT_EXPECT_EQ(test, rmp_model_make_shared(rmp_pfn(m, 5), PG_LEVEL_4K), -EFAULT);
	n += 2;
	KUNIT_EXPECT_EQ(test, m->violations, n);
	rmp_model_clflush(rmp_pfn(m, 5), 1);
	KUNIT_EXPECT_EQ(test, m->violations, ++n);
	memset(rmp_bytes(m, 5), 0, 64);
	rmp_check_sum(m, 5);
	KUNIT_EXPECT_EQ(test, m->violations, ++n);

	KUNIT_EXPECT_EQ(test, snp_gmem_psmash(rmp_pfn(m, 5)), 0);
	KUNIT_EXPECT_FALSE(test, guest_access(m, 5, PG_LEVEL_2M));
	KUNIT_EXPECT_EQ(test, m->violations, ++n);
	m->entry[5].gpa += PAGE_SIZE;
	KUNIT_EXPECT_FALSE(test, guest_access(m, 5, PG_LEVEL_4K));
	KUNIT_EXPECT_EQ(test, m->violations, ++n);
	memset(t->rmp, SMALL, REGION);
	KUNIT_EXPECT_EQ(test, shadow_differs(t), 5);
}

static bool guest_has_all(u64 gpa, unsigned long nr_pages)
{
	return true;
}

/* Bytes that are the guest's, at a host that takes them for its own. */
static void gmem_snp_model_catches_bytes(struct kunit *test)
{
	struct sev_data_snp_page_reclaim reclaim = {};
	struct snp_test *t = snp_test(test);
	struct rmp_model *m = t->m;
	unsigned long n = 0;
	int error;

	t->whole[0] = false;
	KUNIT_ASSERT_EQ(test, core_touch(t, 0), 0);
	rmp_host_read(m, 0);
	KUNIT_EXPECT_EQ(test, m->violations, ++n);

	m->guest_has = guest_has_all;
	KUNIT_EXPECT_EQ(test, rmp_model_make_shared(rmp_pfn(m, 0), PG_LEVEL_4K), 0);
	KUNIT_EXPECT_EQ(test, m->violations, ++n);
	m->guest_has = NULL;

	/* Zeros that the guest's lines will be written over. */
	memset(rmp_bytes(m, 0), 0, 64);
	rmp_model_clflush(rmp_pfn(m, 0), 1);
	KUNIT_EXPECT_EQ(test, m->violations, ++n);

	KUNIT_ASSERT_EQ(test, core_touch(t, 1), 0);
	KUNIT_ASSERT_TRUE(test, t->ops->make_shared(rmp_pfn(m, 1), 0));
	rmp_host_read(m, 1);
	KUNIT_EXPECT_EQ(test, m->violations, ++n);
	memset(rmp_bytes(m, 1), 0, 64);
	rmp_host_read(m, 1);
	KUNIT_EXPECT_EQ(test, m->violations, n);

	KUNIT_ASSERT_EQ(test, core_touch(t, 2), 0);
	reclaim.paddr = PFN_PHYS(rmp_pfn(m, 2));
	KUNIT_EXPECT_EQ(test, snp_platform->do_cmd(SEV_CMD_SNP_PAGE_RECLAIM, &reclaim,
						   &error), 0);
	KUNIT_EXPECT_EQ(test, m->violations, ++n);
	reclaim.paddr = snp_platform->fw_address(reclaim.paddr);
	KUNIT_EXPECT_EQ(test, snp_platform->do_cmd(SEV_CMD_SNP_PAGE_RECLAIM, &reclaim,
						   &error), 0);
	KUNIT_EXPECT_EQ(test, m->violations, n);
}

/* Lines that are written back too late, or too early. */
static void gmem_snp_model_catches_lines(struct kunit *test)
{
	struct rmp_model *m = snp_test(test)->m;
	u64 pfn = rmp_pfn(m, REGION + 7);
	unsigned long n = 0;

	m->sev = true;
	sev_guest_write(m, pfn);
	KUNIT_EXPECT_EQ(test, m->violations, 0);
	m->incoherent = true;
	sev_host_free(m, pfn);
	KUNIT_EXPECT_EQ(test, m->violations, ++n);
	sev_guest_write(m, pfn);
	KUNIT_EXPECT_EQ(test, m->violations, ++n);

	/* Flushed, and written to again by the host. */
	rmp_model_clflush(pfn, 1);
	sev_guest_write(m, pfn);
	KUNIT_EXPECT_EQ(test, m->violations, n);
	rmp_bytes(m, REGION + 7)[1] ^= 1;
	sev_guest_write(m, pfn);
	KUNIT_EXPECT_EQ(test, m->violations, ++n);

	/* The guest's are no concern of the host's flush, nor clean while it has the page. */
	rmp_model_clflush(pfn, 1);
	KUNIT_EXPECT_TRUE(test, sev_guest_is_dirty(m, pfn));
	m->guest_has = guest_has_all;
	snp_platform->writeback(NULL);
	KUNIT_EXPECT_TRUE(test, sev_guest_is_dirty(m, pfn));
	m->guest_has = NULL;

	/* The page is in no file. */
	KUNIT_EXPECT_EQ(test, m->violations, ++n);
	KUNIT_EXPECT_EQ(test, snp_platform->page_flush(pfn, ASID), 0);
	KUNIT_EXPECT_EQ(test, m->violations, ++n);
	KUNIT_EXPECT_FALSE(test, sev_guest_is_dirty(m, pfn));
	sev_host_free(m, pfn);
	KUNIT_EXPECT_EQ(test, m->violations, n);
}

static void expect_content(struct snp_test *t, const char *type, bool to_private,
			   const char *row)
{
	kvm_gmem_kunit_content_row(t->test, t->kvm, t->ops, type, to_private, row);
}

/* What the table in the document says of content, by phase. */
static void gmem_snp_policy(struct kunit *test)
{
	struct snp_test *t = snp_test(test);

	KUNIT_EXPECT_EQ(test, t->ops->create_flags & ~GUEST_MEMFD_FLAG_HUGE,
			GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED);
	if (IS_ENABLED(CONFIG_TRANSPARENT_HUGEPAGE)) {
		KUNIT_EXPECT_TRUE(test, t->ops->create_flags & GUEST_MEMFD_FLAG_HUGE);
		KUNIT_EXPECT_EQ(test, t->ops->max_order, PMD_ORDER);
	}
	KUNIT_EXPECT_EQ(test, t->ops->attributes, KVM_MEMORY_ATTRIBUTE_PRIVATE);
	KUNIT_EXPECT_TRUE(test, t->ops->zap_on_convert);
	KUNIT_EXPECT_TRUE(test, !!t->ops->invalidate);

	expect_content(t, "SEV-SNP, before launch", true,
		       "SEV-SNP, before launch    private  undefined       PRESERVE, DISCARD");
	expect_content(t, "SEV-SNP, before launch", false,
		       "SEV-SNP, before launch    shared   ZERO            ZERO, DISCARD");

	t->kvm->arch.pre_fault_allowed = true;
	expect_content(t, "SEV-SNP, after launch", true,
		       "SEV-SNP, after launch     private  undefined       DISCARD");
	expect_content(t, "SEV-SNP, after launch", false,
		       "SEV-SNP, after launch     shared   ZERO            ZERO, DISCARD");

	/* Other types of VM are none of this table's business. */
	KUNIT_EXPECT_EQ(test, sev_gmem_ops(&new_vm(test, KVM_X86_SEV_VM)->kvm)->attributes, 0);
	KUNIT_EXPECT_EQ(test, sev_gmem_ops(&new_vm(test, KVM_X86_DEFAULT_VM)->kvm)->attributes,
			0);
	KUNIT_EXPECT_EQ(test, sev_gmem_max_mapping_level(&new_vm(test, KVM_X86_SEV_VM)->kvm,
							 rmp_pfn(t->m, 0), true), 0);
}

static void gmem_snp_make_private(struct kunit *test)
{
	struct snp_test *t = snp_test(test);
	struct rmp_model *m = t->m;
	u64 pfn = rmp_pfn(m, 7);

	/* Bad input changes nothing. */
	t->svm->sev_info.asid = 0;
	KUNIT_EXPECT_EQ(test, t->ops->make_private(t->kvm, BASE_GFN + 7, pfn, 0), -EINVAL);
	t->svm->sev_info.asid = ASID;
	t->svm->sev_info.vmsa_features = 0;
	KUNIT_EXPECT_EQ(test, t->ops->make_private(t->kvm, BASE_GFN + 7, pfn, 0), -EINVAL);
	t->svm->sev_info.vmsa_features = SVM_SEV_FEAT_SNP_ACTIVE;
	KUNIT_EXPECT_EQ(test, t->ops->make_private(t->kvm, BASE_GFN, 0, 0), -ENOENT);
	rmp_arm_call(m, RMP_PRIVATE, -EFAULT);
	KUNIT_EXPECT_EQ(test, t->ops->make_private(t->kvm, BASE_GFN + 7, pfn, 0), -EINVAL);
	rmp_disarm(m);
	KUNIT_EXPECT_EQ(test, m->transitions, 0);
	check(t);

	t->whole[0] = false;
	KUNIT_EXPECT_EQ(test, sev_gmem_max_mapping_level(t->kvm, pfn, true), PG_LEVEL_4K);
	KUNIT_EXPECT_EQ(test, sev_gmem_max_mapping_level(t->kvm, pfn, false), 0);
	KUNIT_EXPECT_EQ(test, core_touch(t, 7), 0);
	KUNIT_EXPECT_EQ(test, m->transitions, 1);
	check(t);

	/* Idempotent: the guest keeps what it has validated. */
	KUNIT_EXPECT_EQ(test, core_touch(t, 7), 0);
	KUNIT_EXPECT_EQ(test, m->transitions, 1);
	KUNIT_EXPECT_TRUE(test, m->entry[7].validated);

	core_take_back(t, 7, true);
	KUNIT_EXPECT_EQ(test, m->nr_flushed, 1);
	check(t);

	/* The slot went and came again at another gfn: not the old entry. */
	KUNIT_EXPECT_EQ(test, core_touch(t, 7), 0);
	if (!t->ops->make_private(t->kvm, BASE_GFN + 900, pfn, 0))
		KUNIT_EXPECT_EQ(test, m->entry[7].gpa, (BASE_GFN + 900) << PAGE_SHIFT);
}

static void gmem_snp_make_private_2m(struct kunit *test)
{
	struct snp_test *t = snp_test(test);
	struct rmp_model *m = t->m;

	/* From any page of it. */
	KUNIT_EXPECT_EQ(test, core_touch(t, 300), 0);
	KUNIT_EXPECT_TRUE(test, m->entry[0].huge);
	KUNIT_EXPECT_EQ(test, nr_updates(m), 1);
	KUNIT_EXPECT_EQ(test, core_touch(t, 0), 0);
	KUNIT_EXPECT_EQ(test, core_touch(t, 511), 0);
	KUNIT_EXPECT_EQ(test, nr_updates(m), 1);
	check(t);
	core_take_back(t, 0, true);
	KUNIT_EXPECT_EQ(test, nr_updates(m), 2);
	KUNIT_EXPECT_EQ(test, m->nr_flushed, REGION);
	check(t);

	/* Not if the folio is smaller, not if any page is assigned. */
	t->whole[0] = false;
	KUNIT_EXPECT_EQ(test, core_touch(t, 511), 0);
	KUNIT_EXPECT_EQ(test, t->rmp[511], SMALL);
	t->whole[0] = true;
	KUNIT_EXPECT_EQ(test, core_touch(t, 0), 0);
	KUNIT_EXPECT_EQ(test, t->rmp[0], SMALL);
	check(t);

	/* Not if guest and host address differ in the middle. */
	KUNIT_EXPECT_EQ(test, t->ops->make_private(t->kvm, BASE_GFN + 1,
						   rmp_pfn(m, REGION), PMD_ORDER), 0);
	KUNIT_EXPECT_FALSE(test, m->entry[REGION].huge);
	KUNIT_EXPECT_EQ(test, m->entry[REGION].gpa, (BASE_GFN + 1) << PAGE_SHIFT);
	KUNIT_EXPECT_EQ(test, m->violations, 0);
}

/* One page of 2 MiB goes to shared and back, the others don't notice. */
static void gmem_snp_partial(struct kunit *test)
{
	static const int ranges[][2] = {
		{ 0, 1 }, { 511, 512 }, { 100, 101 }, { 0, 256 }, { 17, 400 },
		{ 511, 513 }, { 3, 1021 }, { 0, 513 },
	};
	struct snp_test *t = snp_test(test);
	struct rmp_model *m = t->m;
	int i, k;

	for (k = 0; k < ARRAY_SIZE(ranges); k++) {
		int start = ranges[k][0], end = ranges[k][1];

		core_reset(t);
		KUNIT_EXPECT_EQ(test, core_touch(t, 1), 0);
		KUNIT_EXPECT_EQ(test, core_touch(t, 600), 0);
		m->entry[0].validated = true;
		m->entry[REGION].validated = true;

		core_convert(t, start, end, false);
		check(t);
		for (i = 0; i < NR_PAGES; i++) {
			KUNIT_ASSERT_EQ(test, m->entry[i].assigned, i < start || i >= end);
			if (m->entry[i].assigned && !rmp_first(m, i)->huge)
				KUNIT_ASSERT_TRUE(test, m->entry[i].validated);
		}

		core_convert(t, start, end, true);
		check(t);
		KUNIT_ASSERT_EQ(test, core_touch(t, start), 0);
		check(t);
		check_bytes(t);
	}

	KUNIT_EXPECT_EQ(test, t->refusals, 0);
	KUNIT_EXPECT_EQ(test, t->lost, 0);
}

static void gmem_snp_prepare_fails(struct kunit *test)
{
	struct snp_test *t = snp_test(test);
	struct rmp_model *m = t->m;
	unsigned long n;
	u64 pfn;

	KUNIT_ASSERT_EQ(test, core_touch(t, 0), 0);
	pfn = rmp_pfn(m, 9);

	/* The order says that it need not be split. */
	KUNIT_EXPECT_EQ(test, t->ops->prepare_convert(rmp_pfn(m, 0), PMD_ORDER), 0);
	KUNIT_EXPECT_EQ(test, m->calls[RMP_PSMASH], 0);

	t->whole[0] = false;
	rmp_arm_call(m, RMP_LOOKUP, RMP_NO_PERM);
	KUNIT_EXPECT_EQ(test, t->ops->prepare_convert(pfn, 0), -EIO);
	rmp_arm_call(m, RMP_SPLIT_MAP, -ENOMEM);
	KUNIT_EXPECT_EQ(test, t->ops->prepare_convert(pfn, 0), -ENOMEM);
	KUNIT_EXPECT_EQ(test, m->calls[RMP_PSMASH], 0);
	rmp_arm_call(m, RMP_PSMASH, RMP_NO_PERM);
	KUNIT_EXPECT_EQ(test, t->ops->prepare_convert(pfn, 0), -EIO);
	KUNIT_EXPECT_EQ(test, m->calls[RMP_PSMASH], 1);

	/* Busy for ever: it ends all the same. */
	rmp_arm_call(m, RMP_PSMASH, PSMASH_FAIL_INUSE);
	n = m->calls[RMP_PSMASH];
	KUNIT_EXPECT_EQ(test, t->ops->prepare_convert(pfn, 0), -EAGAIN);
	KUNIT_EXPECT_GT(test, m->calls[RMP_PSMASH], n + 1);
	KUNIT_EXPECT_EQ(test, snp_gmem_psmash(pfn), -EAGAIN);
	check(t);

	/* Busy once. */
	rmp_disarm(m);
	m->code[RMP_PSMASH] = PSMASH_FAIL_INUSE;
	rmp_arm(m, 3, false);
	KUNIT_EXPECT_EQ(test, t->ops->prepare_convert(pfn, 0), 0);
	KUNIT_EXPECT_TRUE(test, m->fired && m->fired_call == RMP_PSMASH);
	shadow_smash(t, 0);
	check(t);
}

/* Another CPU was faster; nothing left to do; nothing to do at all. */
static void gmem_snp_prepare_nothing(struct kunit *test)
{
	struct snp_test *t = snp_test(test);
	struct rmp_model *m = t->m;
	u64 pfn = rmp_pfn(m, 9);
	unsigned long n;

	KUNIT_ASSERT_EQ(test, core_touch(t, 0), 0);
	t->whole[0] = false;
	KUNIT_EXPECT_EQ(test, t->ops->prepare_convert(pfn, 0), 0);
	shadow_smash(t, 0);

	KUNIT_EXPECT_EQ(test, snp_gmem_psmash(pfn), 0);
	n = m->transitions;
	KUNIT_EXPECT_EQ(test, t->ops->prepare_convert(pfn, 0), 0);
	KUNIT_EXPECT_EQ(test, t->ops->prepare_convert(rmp_pfn(m, 800), 0), 0);
	KUNIT_EXPECT_EQ(test, t->ops->prepare_convert(0, 0), 0);
	m->no_snp = true;
	KUNIT_EXPECT_EQ(test, t->ops->prepare_convert(pfn, 0), 0);
	KUNIT_EXPECT_EQ(test, m->transitions, n);
	check(t);
}

static void gmem_snp_make_shared(struct kunit *test)
{
	struct snp_test *t = snp_test(test);
	struct rmp_model *m = t->m;
	u64 pfn = rmp_pfn(m, 0);

	/* Never assigned, or no RMP entry: nothing to do, nothing to flush. */
	KUNIT_EXPECT_TRUE(test, t->ops->make_shared(pfn, PMD_ORDER));
	KUNIT_EXPECT_TRUE(test, t->ops->make_shared(0, 0));
	KUNIT_EXPECT_EQ(test, nr_updates(m), 0);
	KUNIT_EXPECT_EQ(test, m->nr_flushed, 0);

	/* An answer that isn't one. */
	rmp_arm_call(m, RMP_LOOKUP, RMP_NO_PERM);
	KUNIT_EXPECT_FALSE(test, t->ops->make_shared(pfn, 0));
	rmp_disarm(m);

	/* A folio of which single pages are assigned. */
	t->whole[0] = false;
	KUNIT_ASSERT_EQ(test, core_touch(t, 3), 0);
	KUNIT_ASSERT_EQ(test, core_touch(t, 511), 0);
	t->whole[0] = true;
	core_take_back(t, 0, false);
	KUNIT_EXPECT_EQ(test, m->nr_flushed, 2);
	check(t);

	/* One after an RMP fault has split the entry, but not the direct map. */
	m->map_split[0] = false;
	KUNIT_ASSERT_EQ(test, core_touch(t, 3), 0);
	KUNIT_ASSERT_EQ(test, snp_gmem_psmash(pfn + 5), 0);
	shadow_smash(t, 0);
	KUNIT_ASSERT_EQ(test, t->ops->prepare_convert(pfn, PMD_ORDER), 0);
	core_take_back(t, 0, false);
	KUNIT_EXPECT_EQ(test, m->nr_flushed, 2 + REGION);
	check(t);

	/* A small folio below a large entry that no one has prepared. */
	KUNIT_ASSERT_EQ(test, core_touch(t, 3), 0);
	t->whole[0] = false;
	shadow_smash(t, 0);
	core_take_back(t, 511, false);
	check(t);

	/* The same at its first page, where entry and page begin alike. */
	core_reset(t);
	KUNIT_ASSERT_EQ(test, core_touch(t, 3), 0);
	t->whole[0] = false;
	shadow_smash(t, 0);
	core_take_back(t, 0, false);
	check(t);
	KUNIT_EXPECT_EQ(test, t->lost, 0);
}

/* Refused in the middle: the folio as a whole is lost, what is whose stays clear. */
static void gmem_snp_make_shared_refused(struct kunit *test)
{
	struct snp_test *t = snp_test(test);
	struct rmp_model *m = t->m;
	u64 pfn = rmp_pfn(m, 0);
	int i;

	t->whole[0] = false;
	for (i = 0; i < REGION; i++)
		KUNIT_ASSERT_EQ(test, core_touch(t, i), 0);

	/* Lookup and RMPUPDATE of each page; fail that of page 200. */
	rmp_arm(m, 402, false);
	KUNIT_EXPECT_FALSE(test, t->ops->make_shared(pfn, PMD_ORDER));
	KUNIT_EXPECT_EQ(test, m->fired_call, RMP_SHARED);
	for (i = 0; i < REGION; i++)
		KUNIT_ASSERT_EQ(test, m->entry[i].assigned, i >= 200);
	memset(t->rmp, NONE, 200);
	check(t);

	/* A second attempt, as when the lost folio leaves the file. */
	KUNIT_EXPECT_TRUE(test, t->ops->make_shared(pfn, PMD_ORDER));
	rmp_host_free(m, 0, REGION);
	memset(t->rmp, NONE, REGION);
	check(t);
}

/* Refused, the folio is kept from the allocator; then it is let go. */
static void free_folio_refused(struct snp_test *t, int i)
{
	struct rmp_model *m = t->m;
	struct folio *folio = pfn_folio(rmp_pfn(m, i));
	int refs = folio_ref_count(folio);

	rmp_arm_call(m, RMP_SHARED, -EFAULT);
	t->ops->aops->free_folio(folio);
	KUNIT_EXPECT_EQ(t->test, folio_ref_count(folio), refs + 1);
	rmp_arm_call(m, RMP_LOOKUP, -EIO);
	t->ops->aops->free_folio(folio);
	KUNIT_EXPECT_EQ(t->test, folio_ref_count(folio), refs + 1);
	forget_leak(folio);
	check(t);

	rmp_disarm(m);
	t->ops->aops->free_folio(folio);
	KUNIT_EXPECT_EQ(t->test, folio_ref_count(folio), refs);
	rmp_host_free(m, i, folio_nr_pages(folio));
	memset(&t->rmp[i], NONE, folio_nr_pages(folio));
	check(t);
}

/* As the last act of a file: the VM is gone, no one else will look after the page. */
static void gmem_snp_free_folio(struct kunit *test)
{
	struct snp_test *t = snp_test(test);
	struct rmp_model *m = t->m;

	t->whole[1] = false;
	KUNIT_ASSERT_EQ(test, core_touch(t, 0), 0);
	KUNIT_ASSERT_EQ(test, core_touch(t, SMALL_PAGES), 0);
	KUNIT_EXPECT_EQ(test, t->rmp[0], HUGE);
	KUNIT_EXPECT_EQ(test, t->rmp[SMALL_PAGES], SMALL);

	kunit_kfree(test, t->svm);
	t->svm = NULL;
	t->kvm = NULL;

	free_folio_refused(t, 0);
	free_folio_refused(t, SMALL_PAGES);

	/* Shared pages without an RMP entry, or without an RMP, are just freed. */
	rmp_arm_call(m, RMP_LOOKUP, -EFAULT);
	KUNIT_EXPECT_TRUE(test, core_free_folio(t, SMALL_PAGES));
	rmp_arm_call(m, RMP_LOOKUP, RMP_BAD_INPUT);
	KUNIT_EXPECT_TRUE(test, core_free_folio(t, SMALL_PAGES));
	rmp_arm_call(m, RMP_LOOKUP, -ENODEV);
	KUNIT_EXPECT_FALSE(test, core_free_folio(t, SMALL_PAGES));
	m->no_snp = true;
	KUNIT_EXPECT_TRUE(test, core_free_folio(t, SMALL_PAGES));
}

/* A bit of everything; failures are taken as guest_memfd takes them. */
static void run_scenario(struct snp_test *t)
{
	core_touch(t, 8);
	core_touch(t, 700);
	core_convert(t, 500, 520, false);
	core_touch(t, 20);
	core_convert(t, 505, 510, true);
	core_touch(t, 507);
	core_punch(t, 5, 9);
	core_touch(t, 8);
	core_punch(t, 0, NR_PAGES);
	core_convert(t, 0, NR_PAGES, false);
}

/*
 * core_*() know nothing of entries that were split before a failure; take them over
 * where a split is all that has happened.
 */
static void adopt_splits(struct snp_test *t)
{
	int i;

	for (i = 0; i < NR_PAGES; i += REGION) {
		if (t->rmp[i] == HUGE && !t->m->entry[i].huge)
			shadow_smash(t, i);
	}
}

static void gmem_snp_fail_each_call(struct kunit *test)
{
	struct snp_test *t = snp_test(test);
	struct rmp_model *m = t->m;
	unsigned int nth = 0;
	int k;

	for (k = 0; k < 3; k++) {
		for (nth = 1; ; nth += FAIL_STEP) {
			unsigned long lost = t->lost, refusals = t->refusals;

			core_reset(t);
			if (k == 2)
				m->code[RMP_PSMASH] = PSMASH_FAIL_INUSE;
			rmp_arm(m, nth, k > 0);
			run_scenario(t);
			adopt_splits(t);
			check(t);
			check_bytes(t);

			/* Beyond the last call: nothing has failed. */
			if (m->nth) {
				KUNIT_EXPECT_EQ(test, t->lost, lost);
				KUNIT_EXPECT_EQ(test, t->refusals, refusals);
				break;
			}
		}
		kunit_info(test, "%u calls, each %uth has failed", nth - 1, FAIL_STEP);
	}

	kunit_info(test, "%lu pages lost, %lu conversions refused", t->lost, t->refusals);
	KUNIT_EXPECT_GT(test, t->lost, 0);
	KUNIT_EXPECT_GT(test, t->refusals, 0);
}

/* Launch */

static int launch_page(struct snp_test *t, int i, struct page *src,
		       struct snp_gmem_launch *launch)
{
	return snp_gmem_post_populate(t->kvm, BASE_GFN + i, rmp_pfn(t->m, i), src, launch);
}

static void free_source(void *page)
{
	__free_pages(page, 0);
}

static struct page *new_source(struct kunit *test, u8 value)
{
	struct page *page = alloc_page(GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, page);
	KUNIT_ASSERT_EQ(test, kunit_add_action_or_reset(test, free_source, page), 0);
	memset(page_address(page), value, PAGE_SIZE);
	return page;
}

static void gmem_snp_launch(struct kunit *test)
{
	static const u8 types[] = {
		KVM_SEV_SNP_PAGE_TYPE_NORMAL, KVM_SEV_SNP_PAGE_TYPE_ZERO,
		KVM_SEV_SNP_PAGE_TYPE_UNMEASURED, KVM_SEV_SNP_PAGE_TYPE_SECRETS,
		KVM_SEV_SNP_PAGE_TYPE_CPUID,
	};
	struct snp_test *t = snp_test(test);
	struct rmp_model *m = t->m;
	struct page *src = new_source(test, 0x77);
	struct snp_gmem_launch launch = {};
	u32 in_place, copied;
	int k, i;

	t->whole[1] = false;
	for (k = 0; k < ARRAY_SIZE(types); k++) {
		launch.type = types[k];
		launch.sev_fd = 40 + k;
		i = SMALL_PAGES + 2 * k;

		/* In place: the bytes that are there. */
		rmp_host_write(m, i, 0x40 + k);
		in_place = rmp_sum(m, i);
		KUNIT_EXPECT_EQ(test, launch_page(t, i, NULL, &launch), 0);
		KUNIT_EXPECT_EQ(test, m->measured, in_place);
		KUNIT_EXPECT_EQ(test, m->page_type, types[k]);
		KUNIT_EXPECT_EQ(test, m->fd, 40 + k);

		/* From a source page, which is left alone. */
		rmp_host_write(m, i + 1, 0x40 + k);
		copied = jhash(page_address(src), 64, 0);
		KUNIT_EXPECT_EQ(test, launch_page(t, i + 1, src, &launch), 0);
		KUNIT_EXPECT_EQ(test, m->measured, copied);
		KUNIT_EXPECT_EQ(test, jhash(page_address(src), 64, 0), copied);

		/* Not twice. */
		KUNIT_EXPECT_EQ(test, launch_page(t, i, NULL, &launch), -EEXIST);
		KUNIT_EXPECT_EQ(test, launch_page(t, i + 1, src, &launch), -EEXIST);

		t->rmp[i] = SMALL;
		t->rmp[i + 1] = SMALL;
		KUNIT_EXPECT_TRUE(test, m->entry[i].validated);
		check(t);
		check_bytes(t);
	}

	/* A fault later finds it assigned, and what it holds valid. */
	KUNIT_EXPECT_EQ(test, core_touch(t, SMALL_PAGES), 0);
	KUNIT_EXPECT_FALSE(test, launch.rejected);
	KUNIT_EXPECT_EQ(test, snp_gmem_post_populate(t->kvm, BASE_GFN, 0, NULL, &launch),
			-EINVAL);
	KUNIT_EXPECT_EQ(test, m->violations, 0);
}

static void gmem_snp_launch_rejected(struct kunit *test)
{
	struct snp_gmem_launch launch = { .type = KVM_SEV_SNP_PAGE_TYPE_CPUID };
	struct page *src = new_source(test, CPUID_BAD);
	struct snp_test *t = snp_test(test);
	struct rmp_model *m = t->m;
	int i = SMALL_PAGES + 4;

	/* With a source it gets the correction, and the error is the firmware's. */
	KUNIT_EXPECT_EQ(test, launch_page(t, i, src, &launch), -EIO);
	KUNIT_EXPECT_EQ(test, launch.fw_error, SEV_RET_INVALID_PARAM);
	KUNIT_EXPECT_FALSE(test, launch.rejected);
	KUNIT_EXPECT_EQ(test, *(u8 *)page_address(src), CPUID_GOOD);
	check(t);

	/* In place the page itself does, and is handed over by the core. */
	rmp_host_write(m, i, CPUID_BAD);
	launch.fw_error = 0;
	KUNIT_EXPECT_EQ(test, launch_page(t, i, NULL, &launch), -EBADMSG);
	KUNIT_EXPECT_EQ(test, launch.fw_error, SEV_RET_INVALID_PARAM);
	KUNIT_EXPECT_TRUE(test, launch.rejected);
	check(t);
	core_convert(t, i, i + 1, false);
	KUNIT_EXPECT_EQ(test, t->lost, 0);

	/* Any other failure, and any other page: neither. */
	launch.rejected = false;
	rmp_host_write(m, i, CPUID_BAD);
	rmp_arm_call(m, RMP_ISSUE_CMD, -EIO);
	KUNIT_EXPECT_EQ(test, launch_page(t, i, NULL, &launch), -EIO);
	KUNIT_EXPECT_EQ(test, rmp_bytes(m, i)[0], CPUID_BAD);
	rmp_arm_call(m, RMP_PRIVATE, -EFAULT);
	KUNIT_EXPECT_EQ(test, launch_page(t, i, NULL, &launch), -EFAULT);
	rmp_disarm(m);
	check(t);

	launch.type = KVM_SEV_SNP_PAGE_TYPE_NORMAL;
	KUNIT_EXPECT_EQ(test, launch_page(t, i, NULL, &launch), 0);
	KUNIT_EXPECT_FALSE(test, launch.rejected);
}

/* The page that the firmware won't let go of stays in the file, and then is lost. */
static void gmem_snp_launch_no_reclaim(struct kunit *test)
{
	struct snp_gmem_launch launch = { .type = KVM_SEV_SNP_PAGE_TYPE_CPUID };
	struct snp_test *t = snp_test(test);
	struct rmp_model *m = t->m;
	int i = SMALL_PAGES + 4;

	/* Without SVM KVM has no means to bug a VM. */
	if (!boot_cpu_has(X86_FEATURE_SVM))
		kunit_skip(test, "no SVM");

	t->whole[1] = false;
	rmp_host_write(m, i, CPUID_BAD);
	rmp_arm_call(m, RMP_DO_CMD, -EIO);
	kunit_warning_suppress(test)
		KUNIT_EXPECT_EQ(test, launch_page(t, i, NULL, &launch), -EIO);
	KUNIT_EXPECT_TRUE(test, t->kvm->vm_bugged);
	KUNIT_EXPECT_FALSE(test, launch.rejected);
	KUNIT_EXPECT_TRUE(test, m->entry[i].assigned && m->entry[i].immutable);

	rmp_disarm(m);
	KUNIT_EXPECT_EQ(test, launch_page(t, i, NULL, &launch), -EEXIST);
	KUNIT_EXPECT_FALSE(test, t->ops->make_shared(rmp_pfn(m, i), 0));
	KUNIT_EXPECT_FALSE(test, core_free_folio(t, i));
	KUNIT_EXPECT_TRUE(test, m->entry[i].assigned);
	KUNIT_EXPECT_EQ(test, m->violations, 0);
	memset(&m->entry[i], 0, sizeof(m->entry[i]));
}

static void gmem_snp_launch_fail_each_call(struct kunit *test)
{
	struct page *src = new_source(test, CPUID_BAD);
	struct snp_test *t = snp_test(test);
	struct rmp_model *m = t->m;
	int i = SMALL_PAGES + 4;
	int nth, k, r;

	/* Spare us the splat. */
	t->kvm->vm_bugged = true;

	for (k = 0; k < 6; k++) {
		struct snp_gmem_launch launch = {
			.type = k < 2 ? KVM_SEV_SNP_PAGE_TYPE_NORMAL :
					KVM_SEV_SNP_PAGE_TYPE_CPUID,
		};

		for (nth = 1; ; nth++) {
			core_reset(t);
			t->whole[1] = false;
			rmp_host_write(m, i, k < 4 ? CPUID_BAD : 1);
			*(u8 *)page_address(src) = k < 4 ? CPUID_BAD : 1;
			rmp_arm(m, nth, k & 1);
			r = launch_page(t, i, k & 1 ? src : NULL, &launch);

			/* Without cause it neither fails nor keeps the page. */
			KUNIT_EXPECT_TRUE(test, !r || m->fired || k == 2 || k == 3);
			KUNIT_EXPECT_TRUE(test, !r || !m->entry[i].assigned ||
					  (m->fired && m->fired_call != RMP_PRIVATE &&
					   m->fired_call != RMP_ISSUE_CMD));
			if (m->entry[i].assigned)
				KUNIT_EXPECT_FALSE(test, core_free_folio(t, i) &&
						   m->entry[i].assigned);
			else
				check(t);
			KUNIT_ASSERT_EQ(test, m->violations, 0);
			if (m->nth)
				break;
		}
		KUNIT_EXPECT_GT(test, nth, 3);
	}
	core_reset(t);
}

/* Random conversions against the shadow. */

static u32 below(struct snp_test *t, u32 n)
{
	return prandom_u32_state(&t->rnd) % n;
}

/* Now and then something fails, in any call. */
static void random_arm(struct snp_test *t)
{
	rmp_disarm(t->m);
	if (below(t, 16))
		return;

	if (below(t, 4))
		t->m->code[RMP_PSMASH] = PSMASH_FAIL_INUSE;
	rmp_arm(t->m, 1 + below(t, below(t, 4) ? 4 : 600), below(t, 4) == 0);
}

static void random_range(struct snp_test *t, int *start, int *end)
{
	switch (below(t, 16)) {
	case 0:
		*start = 0;
		*end = NR_PAGES;
		break;
	case 1 ... 4:
		*start = below(t, NR_REGIONS) * REGION;
		*end = *start + REGION;
		break;
	case 5:
		*start = below(t, NR_PAGES);
		*end = *start + 1 + below(t, NR_PAGES - *start);
		break;
	default:
		*start = below(t, NR_PAGES);
		*end = min(*start + 1 + below(t, 8), (u32)NR_PAGES);
	}
}

static void random_access(struct snp_test *t)
{
	int i = below(t, NR_PAGES);

	random_arm(t);
	if (!t->private[i]) {
		rmp_disarm(t->m);
		KUNIT_ASSERT_EQ(t->test, sev_gmem_max_mapping_level(t->kvm, rmp_pfn(t->m, i),
								    false), 0);
		rmp_host_write(t->m, i, below(t, 256));
	} else if (t->whole[i / REGION] && !below(t, 16)) {
		/* Memory failure splits the folio, and tells no one. */
		t->whole[i / REGION] = false;
	} else if (t->rmp[i] == HUGE && !below(t, 8)) {
		/* The guest validates a single page. */
		snp_gmem_psmash(rmp_pfn(t->m, i));
	} else {
		core_touch(t, i);
	}
	adopt_splits(t);
}

static void gmem_snp_random(struct kunit *test)
{
	struct snp_test *t = snp_test(test);
	struct rmp_model *m = t->m;
	unsigned long nr_huge = 0;
	int start, end, k;

	while (t->conversions < gmem_snp_kunit_ops) {
		for (k = below(t, 4); k; k--)
			random_access(t);
		nr_huge += m->entry[0].huge + m->entry[REGION].huge;

		random_range(t, &start, &end);
		random_arm(t);
		if (below(t, 8))
			core_convert(t, start, end, below(t, 5) < 3);
		else
			core_punch(t, start, end);
		adopt_splits(t);

		check(t);
		if (!(t->conversions % 64))
			check_bytes(t);
		cond_resched();
	}

	kunit_info(test, "%lu conversions, %lu refused, %lu pages lost, %lu transitions, %lu refused",
		   t->conversions, t->refusals, t->lost, m->transitions, m->refused);
	kunit_info(test, "%lu times a 2 MiB entry, %lu PSMASH", nr_huge, m->calls[RMP_PSMASH]);

	KUNIT_EXPECT_GT(test, nr_huge, 1000);
	KUNIT_EXPECT_GT(test, t->lost, 100);
	KUNIT_EXPECT_GT(test, t->refusals, 10);
}

/* Encrypted regions */

#define UADDR	0x7f0000000000UL

static void add_slot(struct kunit *test, struct kvm *kvm, int as, unsigned long uaddr,
		     unsigned long npages, u32 flags)
{
	struct kvm_memory_slot *slot = kunit_kzalloc(test, sizeof(*slot), GFP_KERNEL);
	struct kvm_memslots *slots = &kvm->__memslots[as][0];
	struct interval_tree_node *node;

	KUNIT_ASSERT_NOT_NULL(test, slot);
	slot->userspace_addr = uaddr;
	slot->npages = npages;
	slot->flags = flags;
	slot->as_id = as;

	node = &slot->hva_node[slots->node_idx];
	node->start = uaddr;
	node->last = uaddr + (npages << PAGE_SHIFT) - 1;
	interval_tree_insert(node, &slots->hva_tree);
}

/* In pages from UADDR. */
static bool covers(struct kvm *kvm, unsigned long start, unsigned long end)
{
	guard(mutex)(&kvm->slots_lock);

	return sev_gmem_covers(kvm, UADDR + start * PAGE_SIZE, UADDR + end * PAGE_SIZE - 1);
}

static void gmem_snp_region_covers(struct kunit *test)
{
	struct kvm *kvm = &new_vm(test, KVM_X86_SEV_VM)->kvm;

	KUNIT_EXPECT_FALSE(test, covers(kvm, 0, 1));

	/* A slot whose memory isn't mapped says nothing about addresses. */
	add_slot(test, kvm, 0, 0, UADDR >> (PAGE_SHIFT - 1), KVM_MEMSLOT_GMEM_ONLY);
	KUNIT_EXPECT_FALSE(test, covers(kvm, 0, 1));

	add_slot(test, kvm, 0, UADDR, 10, KVM_MEMSLOT_GMEM_ONLY);
	add_slot(test, kvm, 0, UADDR + 10 * PAGE_SIZE, 10, KVM_MEMSLOT_GMEM_ONLY);
	add_slot(test, kvm, 0, UADDR + 5 * PAGE_SIZE, 2, KVM_MEMSLOT_GMEM_ONLY);
	add_slot(test, kvm, 0, UADDR + 21 * PAGE_SIZE, 4, KVM_MEMSLOT_GMEM_ONLY);
	KUNIT_EXPECT_TRUE(test, covers(kvm, 0, 1));
	KUNIT_EXPECT_TRUE(test, covers(kvm, 0, 10));
	KUNIT_EXPECT_TRUE(test, covers(kvm, 3, 17));
	KUNIT_EXPECT_TRUE(test, covers(kvm, 0, 20));
	KUNIT_EXPECT_TRUE(test, covers(kvm, 6, 20));

	/* A gap: before, in the middle, after. */
	KUNIT_EXPECT_FALSE(test, covers(kvm, -1, 3));
	KUNIT_EXPECT_FALSE(test, covers(kvm, 0, 21));
	KUNIT_EXPECT_FALSE(test, covers(kvm, 0, 22));
	KUNIT_EXPECT_FALSE(test, covers(kvm, 20, 21));
	KUNIT_EXPECT_FALSE(test, covers(kvm, 24, 26));

	/* Another slot takes what is mapped at page 12. */
	add_slot(test, kvm, 0, UADDR + 12 * PAGE_SIZE, 1, 0);
	KUNIT_EXPECT_TRUE(test, covers(kvm, 0, 12));
	KUNIT_EXPECT_TRUE(test, covers(kvm, 13, 20));
	KUNIT_EXPECT_FALSE(test, covers(kvm, 12, 13));
	KUNIT_EXPECT_FALSE(test, covers(kvm, 0, 20));

	/* So it does in SMM. */
	add_slot(test, kvm, 1, UADDR, 1, 0);
	KUNIT_EXPECT_EQ(test, covers(kvm, 0, 1), kvm_arch_nr_memslot_as_ids(kvm) == 1);
	KUNIT_EXPECT_TRUE(test, covers(kvm, 1, 2));
}

static int enc_region(struct kvm *kvm, unsigned long addr, unsigned long size, bool reg)
{
	struct kvm_enc_region range = { .addr = addr, .size = size };

	return reg ? sev_mem_enc_register_region(kvm, &range) :
		     sev_mem_enc_unregister_region(kvm, &range);
}

/* Regions with and without pins side by side. */
static void gmem_snp_region_pins(struct kunit *test)
{
	struct kvm_svm *svm = new_vm(test, KVM_X86_SEV_VM);
	unsigned long *locked = &svm->sev_info.pages_locked;
	struct kvm *kvm = &svm->kvm;
	unsigned long anon;

	KUNIT_ASSERT_TRUE(test, zalloc_cpumask_var(&svm->sev_info.have_run_cpus, GFP_KERNEL));
	anon = kunit_vm_mmap(test, NULL, 0, 4 * PAGE_SIZE, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, 0);
	KUNIT_ASSERT_NE(test, anon, 0);

	add_slot(test, kvm, 0, UADDR, 10, KVM_MEMSLOT_GMEM_ONLY);
	add_slot(test, kvm, 0, anon, 4, 0);

	/* Nothing is mapped there, which pins would notice. */
	KUNIT_EXPECT_EQ(test, enc_region(kvm, UADDR + 7, 5 * PAGE_SIZE, true), 0);
	KUNIT_EXPECT_EQ(test, *locked, 0);
	KUNIT_EXPECT_EQ(test, enc_region(kvm, anon, 3 * PAGE_SIZE, true), 0);
	KUNIT_EXPECT_EQ(test, *locked, 3);

	/* Partly covered: pinned, or in this case not. */
	KUNIT_EXPECT_EQ(test, enc_region(kvm, UADDR, 11 * PAGE_SIZE, true), -ENOMEM);
	KUNIT_EXPECT_EQ(test, enc_region(kvm, UADDR, 0, true), -EINVAL);
	KUNIT_EXPECT_EQ(test, enc_region(kvm, UADDR, -UADDR, true), -EINVAL);
	KUNIT_EXPECT_EQ(test, *locked, 3);

	KUNIT_EXPECT_EQ(test, enc_region(kvm, UADDR + 7, 4 * PAGE_SIZE, false), -EINVAL);
	KUNIT_EXPECT_EQ(test, enc_region(kvm, UADDR + 7, 5 * PAGE_SIZE, false), 0);
	KUNIT_EXPECT_EQ(test, enc_region(kvm, UADDR + 7, 5 * PAGE_SIZE, false), -EINVAL);
	KUNIT_EXPECT_EQ(test, *locked, 3);
	KUNIT_EXPECT_EQ(test, enc_region(kvm, anon, 3 * PAGE_SIZE, false), 0);
	KUNIT_EXPECT_EQ(test, *locked, 0);
	KUNIT_EXPECT_TRUE(test, list_empty(&svm->sev_info.regions_list));

	free_cpumask_var(svm->sev_info.have_run_cpus);
}

/* An SNP guest's pages would not convert if they were pinned. */
static void gmem_snp_region_snp(struct kunit *test)
{
	struct snp_test *t = snp_test(test);
	struct kvm_sev_info *sev = &t->svm->sev_info;

	KUNIT_ASSERT_TRUE(test, zalloc_cpumask_var(&sev->have_run_cpus, GFP_KERNEL));
	add_slot(test, t->kvm, 0, UADDR, 10, KVM_MEMSLOT_GMEM_ONLY);

	KUNIT_EXPECT_EQ(test, enc_region(t->kvm, UADDR, PAGE_SIZE, true), 0);
	KUNIT_EXPECT_EQ(test, sev->pages_locked, 0);
	KUNIT_EXPECT_EQ(test, enc_region(t->kvm, UADDR, PAGE_SIZE, false), 0);
	KUNIT_EXPECT_TRUE(test, list_empty(&sev->regions_list));

	free_cpumask_var(sev->have_run_cpus);
}

static struct kunit_case gmem_snp_test_cases[] = {
	KUNIT_CASE(gmem_snp_model),
	KUNIT_CASE(gmem_snp_model_catches),
	KUNIT_CASE(gmem_snp_model_catches_bytes),
	KUNIT_CASE(gmem_snp_model_catches_lines),
	KUNIT_CASE(gmem_snp_policy),
	KUNIT_CASE(gmem_snp_make_private),
	KUNIT_CASE(gmem_snp_make_private_2m),
	KUNIT_CASE(gmem_snp_partial),
	KUNIT_CASE(gmem_snp_prepare_fails),
	KUNIT_CASE(gmem_snp_prepare_nothing),
	KUNIT_CASE(gmem_snp_make_shared),
	KUNIT_CASE(gmem_snp_make_shared_refused),
	KUNIT_CASE(gmem_snp_free_folio),
	KUNIT_CASE_SLOW(gmem_snp_fail_each_call),
	KUNIT_CASE(gmem_snp_launch),
	KUNIT_CASE(gmem_snp_launch_rejected),
	KUNIT_CASE(gmem_snp_launch_no_reclaim),
	KUNIT_CASE(gmem_snp_launch_fail_each_call),
	KUNIT_CASE_SLOW(gmem_snp_random),
	KUNIT_CASE(gmem_snp_region_covers),
	KUNIT_CASE(gmem_snp_region_pins),
	KUNIT_CASE(gmem_snp_region_snp),
	{}
};

static struct kunit_suite gmem_snp_test_suite = {
	.name = "gmem_snp",
	.suite_init = gmem_snp_suite_init,
	.suite_exit = gmem_snp_suite_exit,
	.init = gmem_snp_init,
	.exit = gmem_snp_exit,
	.test_cases = gmem_snp_test_cases,
};

kunit_test_suite(gmem_snp_test_suite);
