// SPDX-License-Identifier: GPL-2.0-only
/*
 * KUnit tests for what guest_memfd does for TDX guests.
 *
 * Drives the S-EPT code of tdx.c and the operations of gmem.c against a model of
 * the TDX module, in VMs of the test's own.  The file between them is a real one:
 * conversions, holes, faults of guests and users and the launch go the ways that they
 * go in a VM.  Only the TDP MMU is played by the model, which is told by guest_memfd
 * when to zap.  Needs neither TDX nor an Intel CPU.
 */
#include <kunit/test.h>
#include <linux/falloc.h>
#include <linux/file.h>
#include <linux/kvm_gmem.h>
#include <linux/kvm_gmem_kunit.h>
#include <linux/moduleparam.h>
#include <linux/prandom.h>
#include <linux/uaccess.h>

#include "gmem_tdx_model.h"
#include "mmu/spte.h"
#include "tdx_gmem.h"
#include "tdx_platform.h"
#include "x86_ops.h"

#define CONTENT_ZERO		KVM_SET_MEMORY_ATTRIBUTES2_ZERO
#define CONTENT_PRESERVE	KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE
#define CONTENT_DISCARD		KVM_SET_MEMORY_ATTRIBUTES2_DISCARD

/* With KASAN and lockdep that many take minutes under emulation. */
#define RANDOM_CONVERSIONS	(IS_ENABLED(CONFIG_KASAN) ? 5000 : 100000)
#define RANDOM_OPS_PER_PHASE	1500

/* Something to find again. */
#define HELLO			0x68656c6c6f686f6cULL

/* An error that no call recovers from. */
#define BAD			0xc000060400000000ULL
#define BUSY			(TDX_OPERAND_BUSY | TDX_OPERAND_ID_TDR)

static unsigned long gmem_tdx_kunit_seed = 0x74647821;
module_param(gmem_tdx_kunit_seed, ulong, 0444);
MODULE_PARM_DESC(gmem_tdx_kunit_seed, "Seed of the gmem_tdx KUnit tests");

static unsigned long total_calls[NR_CALLS];

static const char * const call_names[NR_CALLS] = {
	[CALL_PAGE_ADD]		= "PAGE.ADD",
	[CALL_PAGE_AUG]		= "PAGE.AUG",
	[CALL_SEPT_ADD]		= "SEPT.ADD",
	[CALL_MR_EXTEND]	= "MR.EXTEND",
	[CALL_MR_FINALIZE]	= "MR.FINALIZE",
	[CALL_RANGE_BLOCK]	= "RANGE.BLOCK",
	[CALL_TRACK]		= "TRACK",
	[CALL_PAGE_REMOVE]	= "PAGE.REMOVE",
	[CALL_WBINVD]		= "WBINVD",
	[CALL_RECLAIM]		= "RECLAIM",
	[CALL_VP_FLUSH]		= "VP.FLUSH",
	[CALL_VPFLUSHDONE]	= "VPFLUSHDONE",
	[CALL_CACHE_WB]		= "CACHE.WB",
	[CALL_KEY_FREEID]	= "KEY.FREEID",
	[CALL_KEYID_FREE]	= "KeyID free",
	[CALL_RESET]		= "reset",
	[CALL_KICK]		= "kick",
	[CALL_MAP]		= "map",
};

/* What the VMM does with the file. */

static int file_punch(struct tdx_model *m, int i)
{
	return m->file->f_op->fallocate(m->file,
					FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
					i * PAGE_SIZE, PAGE_SIZE);
}

static int file_convert(struct tdx_model *m, int i, bool to_private, u64 flags)
{
	struct kvm_memory_attributes2 attrs = {
		.offset = i * PAGE_SIZE,
		.size = PAGE_SIZE,
		.attributes = to_private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0,
		.flags = flags,
	};

	KUNIT_ASSERT_EQ(m->test, copy_to_user(m->uargs, &attrs, sizeof(attrs)), 0);
	return m->file->f_op->unlocked_ioctl(m->file, KVM_SET_MEMORY_ATTRIBUTES2,
					     (unsigned long)m->uargs);
}

static void make_private(struct tdx_model *m, int i)
{
	KUNIT_ASSERT_EQ(m->test, file_convert(m, i, true, 0), 0);
}

/* A private guest fault. */
static int file_fault(struct tdx_model *m, int i)
{
	kvm_pfn_t pfn;
	int r;

	r = kvm_gmem_get_pfn(model_kvm(m), &m->slot, MODEL_GFN + i, &pfn, NULL);
	if (r || m->mirror[i])
		return r;

	return tdx_model_map(m, i, pfn);
}

/* A user looks at, or writes to, a shared page, all words of which are the same. */
static u64 user_read(struct tdx_model *m, int i)
{
	KUNIT_ASSERT_EQ(m->test, copy_from_user(m->buf, m->umem + i * PAGE_SIZE,
						PAGE_SIZE), 0);
	KUNIT_EXPECT_EQ(m->test, memcmp(m->buf, m->buf + 1, PAGE_SIZE - sizeof(u64)), 0);
	return *m->buf;
}

static void user_fill(struct tdx_model *m, void __user *to, u64 word)
{
	memset64(m->buf, word, PAGE_SIZE / sizeof(word));
	KUNIT_ASSERT_EQ(m->test, copy_to_user(to, m->buf, PAGE_SIZE), 0);
}

static void user_write(struct tdx_model *m, int i, u64 word)
{
	user_fill(m, m->umem + i * PAGE_SIZE, word);
}

/* A private page is out of a user's reach. */
static void user_is_refused(struct tdx_model *m, int i)
{
	KUNIT_EXPECT_NE(m->test, copy_from_user(m->buf, m->umem + i * PAGE_SIZE, 1), 0);
}

/* KVM_TDX_INIT_MEM_REGION of one page, without a source if @src is NULL. */
static int file_populate(struct tdx_model *m, int i, void __user *src, u32 flags)
{
	struct tdx_gmem_post_populate_arg arg = { .flags = flags };
	struct kvm *kvm = model_kvm(m);
	int r;

	mutex_lock(&kvm->slots_lock);
	r = kvm_gmem_populate(kvm, MODEL_GFN + i, src, 1, false,
			      tdx_gmem_post_populate, &arg);
	mutex_unlock(&kvm->slots_lock);

	return r < 0 ? r : 0;
}

static int finalize(struct tdx_model *m)
{
	struct kvm_tdx_cmd cmd = {};
	int r;

	mutex_lock(&model_kvm(m)->slots_lock);
	r = tdx_td_finalize(model_kvm(m), &cmd);
	mutex_unlock(&model_kvm(m)->slots_lock);
	return r;
}

static int add_sept_page(struct tdx_model *m)
{
	struct kvm *kvm = model_kvm(m);
	int r;

	read_lock(&kvm->mmu_lock);
	r = tdx_sept_set_private_spte(kvm, MODEL_GFN, SHADOW_NONPRESENT_VALUE,
				      tdx_model_nonleaf_spte(m), PG_LEVEL_2M);
	read_unlock(&kvm->mmu_lock);
	return r;
}

static struct model_frame *frame_of(struct folio *folio)
{
	return tdx_model_frame(folio_page(folio, 0));
}

/* Why module, mirror, state and flags of a page don't agree, NULL if they do. */
static const char *disagreement(struct tdx_model *m, int i)
{
	struct model_sept_entry *e = &m->sept[i];
	bool in_sept = e->state != TDX_SEPT_FREE;
	struct folio *folio = tdx_model_folio(m, i);

	if (m->mirror[i] != in_sept)
		return "mirror and S-EPT";

	if (m->mirror[i]) {
		if (!tdx_model_is_private(m, i))
			return "a shared page is in the S-EPT";
		if (!folio || e->pfn != folio_pfn(folio))
			return "file and S-EPT";
		if (frame_of(folio)->pamt != PAMT_REG)
			return "S-EPT and PAMT";
		if (!folio_test_checked(folio))
			return "a page in the S-EPT isn't marked";
		if (!folio_test_uptodate(folio))
			return "a page in the S-EPT is about to be zeroed";
		return NULL;
	}

	if (folio && folio_test_checked(folio))
		return "a page that isn't in the S-EPT is marked";

	return folio ? tdx_model_host_may_write(frame_of(folio)) : NULL;
}

static void check_all(struct kunit *test, struct tdx_model *m)
{
	const char *what;
	int i;

	for (i = 0; i < MODEL_PAGES; i++) {
		what = disagreement(m, i);
		KUNIT_ASSERT_NULL_MSG(test, what, "page %d: %s", i, what);
		KUNIT_ASSERT_FALSE(test, m->sept[i].host_priority);
	}

	KUNIT_ASSERT_FALSE(test, model_kvm(m)->vm_bugged);
	KUNIT_ASSERT_EQ(test, m->nr_leaked, 0);
}

/* Close the file.  Each page that ever was leaves once, this way or the other. */
static void file_release(struct kunit *test, struct tdx_model *m, unsigned int nr_leaked)
{
	struct model_frame *f;
	unsigned int nr = 0;
	unsigned long pfn;

	tdx_model_close(m);
	KUNIT_EXPECT_EQ(test, m->nr_leaked, nr_leaked);

	list_for_each_entry(f, &m->leaked, entry)
		nr++;
	KUNIT_EXPECT_EQ(test, nr, nr_leaked);

	/* What isn't leaked is free; what is left is known for another reason. */
	xa_for_each(&m->frames, pfn, f)
		KUNIT_EXPECT_TRUE(test, !list_empty(&f->entry) || f->pamt != PAMT_REG);
}

static unsigned int nr_present(struct tdx_model *m)
{
	return m->file ? m->file->f_mapping->nrpages : 0;
}

/* Each case runs in a TD that hasn't been, and in one that has been finalised. */
struct phase {
	const char *name;
	bool finalized;
	bool has_erratum;
};

static const struct phase phases[] = {
	{ "before finalise", false, false },
	{ "after finalise", true, false },
	{ "before finalise, erratum", false, true },
	{ "after finalise, erratum", true, true },
};

KUNIT_ARRAY_PARAM_DESC(phase, phases, name);

/* Before there is a vendor's module there are no files. */
static int gmem_tdx_init(struct kunit *test)
{
	if (!kvm_caps.supported_vm_types)
		kunit_skip(test, "KVM isn't initialised");

	return 0;
}

static struct tdx_model *new_td(struct kunit *test)
{
	const struct phase *phase = test->param_value;
	struct tdx_model *m = tdx_model_create(test);

	KUNIT_ASSERT_EQ(test, add_sept_page(m), 0);
	if (phase) {
		m->has_erratum = phase->has_erratum;
		if (phase->finalized)
			KUNIT_ASSERT_EQ(test, finalize(m), 0);
	}
	return m;
}

static struct tdx_model *new_td_for(struct kunit *test, bool finalized)
{
	struct tdx_model *m;

	m = tdx_model_create(test);
	KUNIT_ASSERT_EQ(test, add_sept_page(m), 0);
	if (finalized)
		KUNIT_ASSERT_EQ(test, finalize(m), 0);
	return m;
}

/* The guest gets @i by the means of the phase. */
static int give_page(struct tdx_model *m, int i)
{
	make_private(m, i);
	user_is_refused(m, i);
	if (m->op_state == TD_STATE_RUNNABLE)
		return file_fault(m, i);

	return file_populate(m, i, NULL, 0);
}

static void end_td(struct kunit *test, struct tdx_model *m)
{
	unsigned int nr_freed = m->nr_freed + nr_present(m);

	check_all(test, m);
	file_release(test, m, 0);
	check_all(test, m);
	KUNIT_EXPECT_EQ(test, m->nr_freed, nr_freed);
}

static void table(struct kunit *test)
{
	KUNIT_EXPECT_EQ(test, tdx_gmem_ops.create_flags,
			GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED);
	KUNIT_EXPECT_EQ(test, tdx_gmem_ops.attributes, KVM_MEMORY_ATTRIBUTE_PRIVATE);
	KUNIT_EXPECT_EQ(test, tdx_gmem_ops.max_order, 0);
	KUNIT_EXPECT_TRUE(test, tdx_gmem_ops.zap_on_convert);
	KUNIT_EXPECT_TRUE(test, tdx_gmem_ops.zeroes_private);
}

static void expect_content(struct kunit *test, struct kvm *kvm, const char *type,
			   bool to_private, const char *row)
{
	kvm_gmem_kunit_content_row(test, kvm, &tdx_gmem_ops, type, to_private, row);
}

/* What the table in the document says of content, by phase. */
static void content_policy(struct kunit *test)
{
	struct tdx_model *m = tdx_model_create(test);
	struct kvm *kvm = model_kvm(m);

	expect_content(test, kvm, "TDX, before launch", true,
		       "TDX, before launch        private  undefined       PRESERVE, DISCARD");
	expect_content(test, kvm, "TDX, before launch", false,
		       "TDX, before launch        shared   ZERO            ZERO, DISCARD");

	KUNIT_ASSERT_EQ(test, finalize(m), 0);
	KUNIT_EXPECT_TRUE(test, kvm->arch.pre_fault_allowed);

	expect_content(test, kvm, "TDX, after launch", true,
		       "TDX, after launch         private  undefined       DISCARD");
	expect_content(test, kvm, "TDX, after launch", false,
		       "TDX, after launch         shared   ZERO            ZERO, DISCARD");
}

/* What isn't allowed is refused, and nothing has happened. */
static void content_refused(struct kunit *test)
{
	struct tdx_model *m = new_td(test);
	bool finalized = m->op_state == TD_STATE_RUNNABLE;

	user_write(m, 0, HELLO);
	KUNIT_EXPECT_EQ(test, file_convert(m, 0, true, CONTENT_ZERO), -EOPNOTSUPP);
	if (finalized)
		KUNIT_EXPECT_EQ(test, file_convert(m, 0, true, CONTENT_PRESERVE),
				-EOPNOTSUPP);
	KUNIT_EXPECT_EQ(test, user_read(m, 0), HELLO);

	KUNIT_ASSERT_EQ(test, give_page(m, 1), 0);
	KUNIT_EXPECT_EQ(test, file_convert(m, 1, false, CONTENT_PRESERVE), -EOPNOTSUPP);
	KUNIT_EXPECT_TRUE(test, m->mirror[1]);
	end_td(test, m);
}

/* The launch with a source: its bytes, measured or not. */
static void add_source(struct kunit *test)
{
	struct tdx_model *m = new_td(test);
	void __user *src = m->usrc;

	user_fill(m, src, HELLO);
	make_private(m, 0);
	make_private(m, 1);

	KUNIT_EXPECT_EQ(test, file_populate(m, 0, src, 0), 0);
	KUNIT_EXPECT_EQ(test, m->sept[0].word, HELLO);
	KUNIT_EXPECT_EQ(test, m->sept[0].nr_extended, 0);

	KUNIT_EXPECT_EQ(test, file_populate(m, 1, src, KVM_TDX_MEASURE_MEMORY_REGION), 0);
	KUNIT_EXPECT_EQ(test, m->sept[1].word, HELLO);
	KUNIT_EXPECT_EQ(test, m->sept[1].nr_extended, PAGE_SIZE / TDX_EXTENDMR_CHUNKSIZE);

	end_td(test, m);
}

/* The launch in place: the user's bytes if preserved, zeros if there are none. */
static void add_in_place(struct kunit *test)
{
	struct tdx_model *m = new_td(test);

	user_write(m, 0, HELLO);
	KUNIT_EXPECT_EQ(test, file_populate(m, 0, NULL, 0), -EINVAL);
	KUNIT_EXPECT_EQ(test, file_convert(m, 0, true, CONTENT_PRESERVE), 0);
	KUNIT_EXPECT_EQ(test, file_populate(m, 0, NULL, KVM_TDX_MEASURE_MEMORY_REGION), 0);
	KUNIT_EXPECT_EQ(test, m->sept[0].word, HELLO);
	KUNIT_EXPECT_EQ(test, m->sept[0].nr_extended, PAGE_SIZE / TDX_EXTENDMR_CHUNKSIZE);
	KUNIT_EXPECT_NULL(test, m->kvm_tdx->page_add_src);

	/* Absent: fresh from the allocator, with someone else's bytes. */
	make_private(m, 1);
	KUNIT_EXPECT_EQ(test, file_populate(m, 1, NULL, 0), 0);
	KUNIT_EXPECT_EQ(test, m->sept[1].word, 0);

	/* PRESERVE leaves alone what is the guest's already. */
	KUNIT_EXPECT_EQ(test, file_convert(m, 0, true, CONTENT_PRESERVE), 0);
	KUNIT_EXPECT_EQ(test, m->sept[0].word, HELLO);
	KUNIT_EXPECT_TRUE(test, m->mirror[0]);

	/* The slot goes and comes again: no ciphertext is added. */
	tdx_model_zap(m, 0);
	KUNIT_EXPECT_EQ(test, file_populate(m, 0, NULL, 0), 0);
	KUNIT_EXPECT_EQ(test, m->sept[0].word, 0);
	end_td(test, m);
}

/* The same page twice: an error, the first one stands, and the VM lives. */
static void add_twice(struct kunit *test)
{
	struct tdx_model *m = new_td(test);

	user_write(m, 0, HELLO);
	KUNIT_ASSERT_EQ(test, file_convert(m, 0, true, CONTENT_PRESERVE), 0);
	KUNIT_ASSERT_EQ(test, file_populate(m, 0, NULL, 0), 0);

	/* It doesn't take the TDP MMU to find out. */
	KUNIT_EXPECT_EQ(test, file_populate(m, 0, NULL, KVM_TDX_MEASURE_MEMORY_REGION), -EIO);
	KUNIT_EXPECT_EQ(test, m->calls[CALL_MAP], 1);
	KUNIT_EXPECT_EQ(test, m->calls[CALL_PAGE_ADD], 1);
	KUNIT_EXPECT_EQ(test, m->calls[CALL_MR_EXTEND], 0);
	KUNIT_EXPECT_EQ(test, m->sept[0].word, HELLO);
	end_td(test, m);
}

/* Memory failure takes the page away between ADD and EXTEND. */
static void add_poisoned(struct kunit *test)
{
	struct tdx_model *m = new_td(test);

	make_private(m, 0);
	m->poison_after_add = true;
	KUNIT_EXPECT_EQ(test, file_populate(m, 0, NULL, KVM_TDX_MEASURE_MEMORY_REGION),
			-EHWPOISON);
	KUNIT_EXPECT_EQ(test, m->calls[CALL_MR_EXTEND], 0);
	end_td(test, m);
}

/* Who may do without a source. */
static void add_in_place_slot(struct kunit *test)
{
	struct tdx_model *m = tdx_model_create(test);
	struct kvm_memory_slot *slot = &m->slot;
	gpa_t gpa = gfn_to_gpa(MODEL_GFN);
	struct kvm *kvm = model_kvm(m);

	mutex_lock(&kvm->slots_lock);
	KUNIT_EXPECT_TRUE(test, tdx_can_add_in_place(kvm, gpa));
	KUNIT_EXPECT_FALSE(test, tdx_can_add_in_place(kvm, gpa - PAGE_SIZE));
	KUNIT_EXPECT_FALSE(test, tdx_can_add_in_place(kvm, gpa + MODEL_PAGES * PAGE_SIZE));
	slot->flags = KVM_MEM_GUEST_MEMFD;
	KUNIT_EXPECT_FALSE(test, tdx_can_add_in_place(kvm, gpa));
	slot->flags = 0;
	KUNIT_EXPECT_FALSE(test, tdx_can_add_in_place(kvm, gpa));
	slot->flags = KVM_MEM_GUEST_MEMFD | KVM_MEMSLOT_GMEM_ONLY;
	mutex_unlock(&kvm->slots_lock);
	end_td(test, m);
}

/* Run time: a fault gives the page, and the guest must accept it. */
static void aug_accept(struct kunit *test)
{
	struct tdx_model *m = new_td(test);

	user_write(m, 0, HELLO);
	KUNIT_ASSERT_EQ(test, finalize(m), 0);
	KUNIT_EXPECT_EQ(test, file_convert(m, 0, true, 0), 0);
	KUNIT_EXPECT_EQ(test, file_fault(m, 0), 0);
	KUNIT_EXPECT_EQ(test, m->sept[0].state, TDX_SEPT_PENDING);
	KUNIT_EXPECT_TRUE(test, tdx_model_accept(m, 0));
	KUNIT_EXPECT_FALSE(test, tdx_model_accept(m, 0));
	KUNIT_EXPECT_EQ(test, m->sept[0].word, 0);

	/* A hole: a pending page again, another one. */
	KUNIT_EXPECT_EQ(test, file_punch(m, 0), 0);
	KUNIT_EXPECT_TRUE(test, tdx_model_is_private(m, 0));
	KUNIT_EXPECT_EQ(test, m->nr_freed, 1);
	KUNIT_EXPECT_EQ(test, file_fault(m, 0), 0);
	KUNIT_EXPECT_EQ(test, m->sept[0].state, TDX_SEPT_PENDING);
	end_td(test, m);
}

/* The module zeroes what the guest gets: KVM doesn't do it, too. */
static void aug_dirty(struct kunit *test)
{
	struct tdx_model *m = new_td_for(test, true);
	u64 *page;
	u64 cipher;

	KUNIT_ASSERT_EQ(test, give_page(m, 0), 0);
	KUNIT_ASSERT_TRUE(test, tdx_model_accept(m, 0));
	page = folio_address(tdx_model_folio(m, 0));
	cipher = *page;
	KUNIT_EXPECT_NE(test, cipher, 0);

	/* The slot goes and comes again. */
	tdx_model_zap(m, 0);
	KUNIT_EXPECT_EQ(test, file_fault(m, 0), 0);
	KUNIT_EXPECT_EQ(test, *page, cipher);
	KUNIT_EXPECT_TRUE(test, tdx_model_accept(m, 0));
	KUNIT_EXPECT_EQ(test, m->sept[0].word, 0);

	/* A fault that comes to nothing leaves the page as it was: not to be seen. */
	tdx_model_zap(m, 0);
	m->faults[CALL_PAGE_AUG].err = BUSY;
	m->faults[CALL_PAGE_AUG].times = 1;
	KUNIT_EXPECT_EQ(test, file_fault(m, 0), -EBUSY);
	m->sept[0].host_priority = false;
	KUNIT_EXPECT_EQ(test, file_convert(m, 0, false, 0), 0);
	KUNIT_EXPECT_EQ(test, user_read(m, 0), 0);
	end_td(test, m);
}

/* To shared: zeros, whatever the history of the page. */
static void to_shared(struct kunit *test)
{
	struct tdx_model *m = new_td(test);
	int i;

	/* The module never had it, nor had anyone. */
	user_write(m, 0, HELLO);
	KUNIT_EXPECT_EQ(test, file_convert(m, 0, true, 0), 0);
	make_private(m, 1);

	/* It had it; the guest accepted it or didn't, and it came back before. */
	for (i = 2; i < 5; i++)
		KUNIT_EXPECT_EQ(test, give_page(m, i), 0);
	tdx_model_accept(m, 3);
	tdx_model_zap(m, 4);

	for (i = 0; i < 5; i++) {
		KUNIT_EXPECT_EQ(test, file_convert(m, i, false, 0), 0);
		KUNIT_EXPECT_EQ(test, user_read(m, i), 0);
		user_write(m, i, HELLO);
	}

	/* Asked again it zeroes what is shared, if told so only. */
	KUNIT_EXPECT_EQ(test, file_convert(m, 0, false, 0), 0);
	KUNIT_EXPECT_EQ(test, user_read(m, 0), HELLO);
	KUNIT_EXPECT_EQ(test, file_convert(m, 0, false, CONTENT_ZERO), 0);
	KUNIT_EXPECT_EQ(test, user_read(m, 0), 0);
	end_td(test, m);
}

/* There and back again; the module is asked for TRACK only when it wants it. */
static void round_trip(struct kunit *test)
{
	struct tdx_model *m = new_td(test);
	bool finalized = m->op_state == TD_STATE_RUNNABLE;
	int i;

	m->vcpu_runs = finalized;
	for (i = 0; i < 100; i++) {
		user_write(m, 0, HELLO);
		KUNIT_EXPECT_EQ(test, file_convert(m, 0, true, 0), 0);
		KUNIT_EXPECT_EQ(test, give_page(m, 0), 0);
		KUNIT_EXPECT_EQ(test, m->sept[0].state,
				finalized ? TDX_SEPT_PENDING : TDX_SEPT_PRESENT);
		tdx_model_accept(m, 0);
		KUNIT_EXPECT_EQ(test, file_convert(m, 0, false, 0), 0);
		KUNIT_EXPECT_EQ(test, user_read(m, 0), 0);
		check_all(test, m);
	}

	KUNIT_EXPECT_EQ(test, m->calls[CALL_TRACK], finalized ? 100 : 0);
	KUNIT_EXPECT_EQ(test, m->calls[CALL_RESET], 100);
	KUNIT_EXPECT_EQ(test, m->calls[CALL_WBINVD], 100);
	end_td(test, m);
}

/* DISCARD, both ways, and of what is in the asked state. */
static void discard(struct kunit *test)
{
	struct tdx_model *m = new_td(test);

	user_write(m, 0, HELLO);
	KUNIT_EXPECT_EQ(test, file_convert(m, 0, true, CONTENT_DISCARD), 0);
	KUNIT_EXPECT_NULL(test, tdx_model_folio(m, 0));
	KUNIT_EXPECT_EQ(test, give_page(m, 0), 0);

	KUNIT_EXPECT_EQ(test, file_convert(m, 0, true, CONTENT_DISCARD), 0);
	KUNIT_EXPECT_NULL(test, tdx_model_folio(m, 0));
	KUNIT_EXPECT_FALSE(test, m->mirror[0]);
	KUNIT_EXPECT_EQ(test, give_page(m, 0), 0);

	KUNIT_EXPECT_EQ(test, file_convert(m, 0, false, CONTENT_DISCARD), 0);
	KUNIT_EXPECT_EQ(test, user_read(m, 0), 0);
	KUNIT_EXPECT_EQ(test, m->nr_freed, 3);
	end_td(test, m);
}

/* Finalising once is enough; conversions go on. */
static void finalize_twice(struct kunit *test)
{
	struct tdx_model *m = new_td(test);

	KUNIT_ASSERT_EQ(test, give_page(m, 0), 0);
	KUNIT_EXPECT_EQ(test, finalize(m), 0);
	KUNIT_EXPECT_EQ(test, finalize(m), -EINVAL);
	KUNIT_EXPECT_EQ(test, m->calls[CALL_MR_FINALIZE], 1);

	KUNIT_EXPECT_EQ(test, file_convert(m, 0, false, 0), 0);
	KUNIT_EXPECT_EQ(test, m->calls[CALL_TRACK], 1);
	end_td(test, m);
}

/* A hostile vCPU is always back, and in the way. */
static void nagging_guest(struct kunit *test)
{
	struct tdx_model *m = new_td(test);
	int i;

	KUNIT_ASSERT_EQ(test, finalize(m), 0);
	for (i = 0; i < 100; i++) {
		m->vcpu_runs = true;
		m->vcpu_nags = false;
		KUNIT_EXPECT_EQ(test, give_page(m, 0), 0);
		m->vcpu_nags = true;
		KUNIT_EXPECT_EQ(test, file_convert(m, 0, false, 0), 0);
		KUNIT_EXPECT_EQ(test, m->zap_result, 0);
		KUNIT_EXPECT_EQ(test, user_read(m, 0), 0);
		check_all(test, m);
	}

	/* Installing a page isn't worth a kick: the fault is retried. */
	make_private(m, 1);
	KUNIT_EXPECT_EQ(test, file_fault(m, 1), -EBUSY);
	m->vcpu_nags = false;

	/* Until then the guest, too, has to wait for this very entry. */
	KUNIT_EXPECT_TRUE(test, m->sept[1].host_priority);
	KUNIT_EXPECT_EQ(test, file_fault(m, 1), 0);
	KUNIT_EXPECT_TRUE(test, tdx_model_accept(m, 1));
	end_td(test, m);
}

/* Busy once: removal kicks vCPUs and repeats, installing and measuring repeat. */
static void busy_once(struct kunit *test)
{
	struct tdx_model *m = new_td(test);
	enum model_call call;
	unsigned long kicks;

	for (call = CALL_RANGE_BLOCK; call <= CALL_PAGE_REMOVE; call++) {
		if (call == CALL_TRACK && m->op_state != TD_STATE_RUNNABLE)
			continue;

		KUNIT_ASSERT_EQ(test, give_page(m, 0), 0);
		kicks = m->calls[CALL_KICK];
		m->faults[call].err = BUSY;
		m->faults[call].times = 1;
		tdx_model_zap(m, 0);

		KUNIT_EXPECT_EQ(test, m->zap_result, 0);
		KUNIT_EXPECT_EQ(test, m->faults[call].times, 0);
		KUNIT_EXPECT_GT(test, m->calls[CALL_KICK], kicks);
		KUNIT_EXPECT_FALSE(test, m->kvm_tdx->wait_for_sept_zap);
		check_all(test, m);
	}

	call = m->op_state == TD_STATE_RUNNABLE ? CALL_PAGE_AUG : CALL_PAGE_ADD;
	m->faults[call].err = BUSY;
	m->faults[call].times = 1;
	make_private(m, 1);
	if (call == CALL_PAGE_AUG)
		KUNIT_EXPECT_EQ(test, file_fault(m, 1), -EBUSY);
	KUNIT_EXPECT_EQ(test, give_page(m, 1), 0);
	end_td(test, m);
}

static void busy_launch(struct kunit *test)
{
	struct tdx_model *m = tdx_model_create(test);

	m->faults[CALL_SEPT_ADD].err = BUSY;
	m->faults[CALL_SEPT_ADD].times = 1;
	KUNIT_EXPECT_EQ(test, add_sept_page(m), -EBUSY);
	KUNIT_ASSERT_EQ(test, add_sept_page(m), 0);

	make_private(m, 0);
	m->faults[CALL_MR_EXTEND].err = BUSY;
	m->faults[CALL_MR_EXTEND].times = 100;
	KUNIT_EXPECT_EQ(test, file_populate(m, 0, NULL, KVM_TDX_MEASURE_MEMORY_REGION), 0);
	KUNIT_EXPECT_EQ(test, m->sept[0].nr_extended, PAGE_SIZE / TDX_EXTENDMR_CHUNKSIZE);

	/* A signal ends the wait, and leaves no trace. */
	make_private(m, 1);
	m->faults[CALL_PAGE_ADD].err = BUSY;
	m->faults[CALL_PAGE_ADD].times = FOREVER;
	KUNIT_EXPECT_EQ(test, file_populate(m, 1, NULL, 0), -EINTR);
	KUNIT_EXPECT_FALSE(test, folio_test_checked(tdx_model_folio(m, 1)));
	KUNIT_EXPECT_NULL(test, m->kvm_tdx->page_add_src);
	m->faults[CALL_PAGE_ADD].times = 0;

	m->faults[CALL_MR_FINALIZE].err = BUSY;
	m->faults[CALL_MR_FINALIZE].times = 1;
	KUNIT_EXPECT_EQ(test, finalize(m), -EBUSY);
	KUNIT_EXPECT_EQ(test, m->kvm_tdx->state, TD_STATE_INITIALIZED);
	KUNIT_EXPECT_FALSE(test, model_kvm(m)->arch.pre_fault_allowed);
	KUNIT_EXPECT_EQ(test, finalize(m), 0);
	end_td(test, m);
}

/* The call that fails, for good or because it is busy for ever. */
struct failure {
	const char *name;
	enum model_call call;
	bool finalized;
};

static const struct failure removal_failures[] = {
	{ "BLOCK, before finalise", CALL_RANGE_BLOCK, false },
	{ "BLOCK, after finalise", CALL_RANGE_BLOCK, true },
	{ "TRACK, after finalise", CALL_TRACK, true },
	{ "REMOVE, before finalise", CALL_PAGE_REMOVE, false },
	{ "REMOVE, after finalise", CALL_PAGE_REMOVE, true },
	{ "WBINVD, before finalise", CALL_WBINVD, false },
	{ "WBINVD, after finalise", CALL_WBINVD, true },
};

KUNIT_ARRAY_PARAM_DESC(removal_failure, removal_failures, name);

static u64 pages_leaked(struct tdx_model *m)
{
	return atomic64_read(&model_kvm(m)->stat.generic.gmem_pages_leaked);
}

/* The module has no page of guest_memfd any more: it will give up the TD itself. */
static void expect_tdr_reclaimable(struct kunit *test, struct tdx_model *m)
{
	struct model_frame *f;
	unsigned long pfn;

	xa_for_each(&m->frames, pfn, f)
		KUNIT_EXPECT_NE(test, f->pamt, PAMT_REG);
}

static void start_failing(struct tdx_model *m, const struct failure *failure, u64 err)
{
	m->faults[failure->call].err = err;
	m->faults[failure->call].times = FOREVER;
}

/*
 * What the module doesn't give back is lost, by whichever way it leaves the file.  What
 * is still in the file when the TD is torn down isn't.
 */
static void fail_removal(struct kunit *test, u64 err)
{
	const struct failure *failure = test->param_value;
	struct tdx_model *m = new_td_for(test, failure->finalized);
	struct folio *folio;
	int i;

	for (i = 0; i < 4; i++)
		KUNIT_ASSERT_EQ(test, give_page(m, i), 0);

	kunit_warning_suppress(test) {
		/* The first one by conversion, and that is the end of the VM. */
		start_failing(m, failure, err);
		KUNIT_EXPECT_EQ(test, file_convert(m, 0, false, 0), 0);
		KUNIT_EXPECT_EQ(test, m->zap_result, -EIO);
		KUNIT_EXPECT_SUPPRESSED_WARNING_COUNT(test, 1);
		KUNIT_EXPECT_TRUE(test, model_kvm(m)->vm_bugged);
		KUNIT_EXPECT_TRUE(test, model_kvm(m)->vm_dead);
		KUNIT_EXPECT_EQ(test, m->nr_leaked, 1);
		KUNIT_EXPECT_NULL(test, tdx_model_folio(m, 0));
		KUNIT_EXPECT_EQ(test, pages_leaked(m), 1);

		/* One by punching a hole, one when the slot goes, with the file last. */
		KUNIT_EXPECT_EQ(test, file_punch(m, 1), 0);
		KUNIT_EXPECT_EQ(test, m->nr_leaked, 2);
		tdx_model_zap(m, 2);
		folio = tdx_model_folio(m, 2);
		KUNIT_EXPECT_TRUE(test, folio_test_checked(folio));
		KUNIT_EXPECT_FALSE(test, tdx_gmem_ops.make_shared(folio_pfn(folio), 0));

		/* The module is itself again: what is left comes back. */
		m->faults[failure->call].times = 0;
		KUNIT_EXPECT_EQ(test, file_punch(m, 3), 0);
		KUNIT_EXPECT_EQ(test, m->zap_result, 0);
		KUNIT_EXPECT_EQ(test, m->nr_freed, 1);

		/* And so does what has been lost, except to those who gave it up. */
		tdx_vm_unreachable(model_kvm(m));
		KUNIT_EXPECT_FALSE(test, folio_test_checked(folio));
		KUNIT_EXPECT_NULL(test, disagreement(m, 2));
		KUNIT_EXPECT_SUPPRESSED_WARNING_COUNT(test, 1);
	}

	file_release(test, m, 2);
	KUNIT_EXPECT_EQ(test, m->nr_freed, 2);
	expect_tdr_reclaimable(test, m);
}

static void removal_fails(struct kunit *test)
{
	fail_removal(test, BAD);
}

static void removal_stays_busy(struct kunit *test)
{
	fail_removal(test, BUSY);
}

static const struct failure launch_failures[] = {
	{ "SEPT.ADD", CALL_SEPT_ADD, false },
	{ "PAGE.ADD", CALL_PAGE_ADD, false },
	{ "PAGE.AUG", CALL_PAGE_AUG, true },
	{ "MR.EXTEND", CALL_MR_EXTEND, false },
	{ "MR.FINALIZE", CALL_MR_FINALIZE, false },
};

KUNIT_ARRAY_PARAM_DESC(launch_failure, launch_failures, name);

/* With a source, so that only success makes the page up to date. */
static int fail_to_populate(struct tdx_model *m)
{
	return file_populate(m, 0, m->usrc, KVM_TDX_MEASURE_MEMORY_REGION);
}

static int fail_to_launch(struct tdx_model *m, enum model_call call)
{
	switch (call) {
	case CALL_SEPT_ADD:
		/* As if for another part of the guest's memory. */
		return add_sept_page(m);
	case CALL_MR_FINALIZE:
		return finalize(m);
	case CALL_PAGE_AUG:
		return file_fault(m, 0);
	default:
		return fail_to_populate(m);
	}
}

/* Only measuring isn't to be repeated by user space, and mustn't be busy for ever. */
static int launch_error(enum model_call call, u64 err)
{
	if (err == BAD || call == CALL_MR_EXTEND)
		return -EIO;

	return call == CALL_PAGE_ADD ? -EINTR : -EBUSY;
}

/* The module doesn't take the page, or take it further: nothing is lost. */
static void fail_launch(struct kunit *test, u64 err)
{
	const struct failure *failure = test->param_value;
	struct tdx_model *m = new_td_for(test, failure->finalized);
	int r = launch_error(failure->call, err);
	bool has_page;

	make_private(m, 0);
	user_fill(m, m->usrc, HELLO);
	kunit_warning_suppress(test) {
		start_failing(m, failure, err);
		KUNIT_EXPECT_EQ(test, fail_to_launch(m, failure->call), r);
		KUNIT_EXPECT_EQ(test, model_kvm(m)->vm_bugged, r == -EIO);
		KUNIT_EXPECT_SUPPRESSED_WARNING_COUNT(test, r == -EIO);
	}

	has_page = failure->call == CALL_MR_EXTEND;
	KUNIT_EXPECT_EQ(test, m->mirror[0], has_page);
	KUNIT_EXPECT_NULL(test, disagreement(m, 0));
	KUNIT_EXPECT_NULL(test, m->kvm_tdx->page_add_src);
	KUNIT_EXPECT_EQ(test, m->kvm_tdx->state,
			failure->finalized ? TD_STATE_RUNNABLE : TD_STATE_INITIALIZED);
	file_release(test, m, 0);
}

static void launch_fails(struct kunit *test)
{
	fail_launch(test, BAD);
}

static void launch_stays_busy(struct kunit *test)
{
	fail_launch(test, BUSY);
}

/* A VM that is dead isn't converted; its pages come back all the same. */
static void dead_vm(struct kunit *test)
{
	struct tdx_model *m = new_td(test);

	KUNIT_ASSERT_EQ(test, give_page(m, 0), 0);
	model_kvm(m)->vm_dead = true;
	KUNIT_EXPECT_EQ(test, file_convert(m, 0, false, 0), -EIO);
	KUNIT_EXPECT_TRUE(test, m->mirror[0]);
	user_is_refused(m, 0);
	end_td(test, m);
	KUNIT_EXPECT_EQ(test, m->nr_freed, 1);
}

/* The TD's key is taken away, as it is when no one can run the VM any more. */
static void stop_td(struct kunit *test, struct tdx_model *m)
{
	tdx_vm_unreachable(model_kvm(m));

	KUNIT_EXPECT_EQ(test, m->life, TD_TEARDOWN);
	KUNIT_EXPECT_EQ(test, m->kvm_tdx->hkid, -1);
	KUNIT_EXPECT_TRUE(test, model_kvm(m)->vm_dead);
}

/* The S-EPT page itself, which the TD has until its key is gone. */
static void sept_page(struct kunit *test)
{
	struct tdx_model *m = new_td(test);
	struct folio *folio = virt_to_folio(m->sp->external_spt);
	struct model_frame *f = tdx_model_frame(folio_page(folio, 0));

	KUNIT_EXPECT_EQ(test, f->pamt, PAMT_EPT);
	folio_get(folio);

	stop_td(test, m);
	tdx_sept_free_private_spt(model_kvm(m), m->sp);
	KUNIT_EXPECT_NULL(test, m->sp->external_spt);
	KUNIT_EXPECT_EQ(test, m->calls[CALL_RESET], 1);
	KUNIT_EXPECT_EQ(test, folio_ref_count(folio), 1);
	KUNIT_EXPECT_NULL(test, tdx_model_host_may_write(f));
	folio_put(folio);
}

/* Lost if the module doesn't give it back, or if the TD still lives. */
static void sept_page_fails(struct kunit *test)
{
	struct tdx_model *m = new_td_for(test, false);
	struct folio *folio = virt_to_folio(m->sp->external_spt);
	struct model_frame *f = tdx_model_frame(folio_page(folio, 0));

	folio_get(folio);
	kunit_warning_suppress(test) {
		/* The module isn't even asked. */
		tdx_sept_free_private_spt(model_kvm(m), m->sp);
		KUNIT_EXPECT_SUPPRESSED_WARNING_COUNT(test, 1);
		KUNIT_EXPECT_EQ(test, m->calls[CALL_RECLAIM], 0);
		KUNIT_EXPECT_EQ(test, folio_ref_count(folio), 2);
		KUNIT_EXPECT_NULL(test, m->sp->external_spt);

		stop_td(test, m);
		m->faults[CALL_RECLAIM].err = BAD;
		m->faults[CALL_RECLAIM].times = 1;
		m->sp->external_spt = folio_address(folio);
		tdx_sept_free_private_spt(model_kvm(m), m->sp);
		KUNIT_EXPECT_SUPPRESSED_WARNING_COUNT(test, 2);
		KUNIT_EXPECT_EQ(test, folio_ref_count(folio), 2);
		KUNIT_EXPECT_NULL(test, m->sp->external_spt);
	}

	KUNIT_EXPECT_NOT_NULL(test, tdx_model_host_may_write(f));
	folio_put(folio);
	folio_put(folio);
}

/* So many pages, some accepted by the guest, and from now on a clean slate. */
#define NR_TEARDOWN	16

static struct tdx_model *new_td_with_pages(struct kunit *test)
{
	struct tdx_model *m = new_td(test);
	int i;

	for (i = 0; i < NR_TEARDOWN; i++) {
		KUNIT_ASSERT_EQ(test, give_page(m, i), 0);
		if (i & 1)
			tdx_model_accept(m, i);
	}

	tdx_model_add_vcpu(m);
	memset(m->calls, 0, sizeof(m->calls));
	return m;
}

/* The calls of @m so far: what is done once a page, and what once an invalidation. */
static void expect_removal(struct kunit *test, struct tdx_model *m, unsigned int nr,
			   unsigned int nr_tracks)
{
	KUNIT_EXPECT_EQ(test, m->calls[CALL_RANGE_BLOCK], nr);
	KUNIT_EXPECT_EQ(test, m->calls[CALL_TRACK], nr_tracks);
	KUNIT_EXPECT_EQ(test, m->calls[CALL_KICK], nr_tracks);
	KUNIT_EXPECT_EQ(test, m->calls[CALL_PAGE_REMOVE], nr);
	KUNIT_EXPECT_EQ(test, m->calls[CALL_WBINVD], nr);
}

/* The file goes while the VM may still run: four calls a page, and an IPI to all. */
static void teardown_file_first(struct kunit *test)
{
	struct tdx_model *m = new_td_with_pages(test);
	bool finalized = m->op_state == TD_STATE_RUNNABLE;

	end_td(test, m);
	expect_removal(test, m, NR_TEARDOWN, finalized ? NR_TEARDOWN : 0);
	KUNIT_EXPECT_EQ(test, m->calls[CALL_RECLAIM], 0);
	KUNIT_EXPECT_EQ(test, m->nr_freed, NR_TEARDOWN);

	stop_td(test, m);
	expect_tdr_reclaimable(test, m);
}

/* The file goes when the VM can't run any more: one call a page. */
static void teardown_key_first(struct kunit *test)
{
	struct tdx_model *m = new_td_with_pages(test);

	stop_td(test, m);
	KUNIT_EXPECT_EQ(test, m->calls[CALL_VP_FLUSH], 1);
	KUNIT_EXPECT_EQ(test, m->calls[CALL_VPFLUSHDONE], 1);
	KUNIT_EXPECT_EQ(test, m->calls[CALL_KEY_FREEID], 1);
	KUNIT_EXPECT_EQ(test, m->calls[CALL_KEYID_FREE], 1);

	/* Other processes may have the file, and users of it may be in a hurry. */
	KUNIT_EXPECT_EQ(test, file_convert(m, 0, false, 0), -EIO);
	KUNIT_EXPECT_EQ(test, file_punch(m, 0), 0);
	KUNIT_EXPECT_EQ(test, m->nr_freed, 1);
	KUNIT_EXPECT_EQ(test, m->calls[CALL_RECLAIM], 1);
	user_is_refused(m, 1);

	end_td(test, m);
	expect_removal(test, m, 0, 0);
	KUNIT_EXPECT_EQ(test, m->calls[CALL_RECLAIM], NR_TEARDOWN);
	KUNIT_EXPECT_EQ(test, m->calls[CALL_RESET], NR_TEARDOWN);
	KUNIT_EXPECT_EQ(test, m->nr_freed, NR_TEARDOWN);
	expect_tdr_reclaimable(test, m);
}

/* The VMM's mm goes, then its vCPUs are closed, then the VM is destroyed. */
static void teardown_twice(struct kunit *test)
{
	struct tdx_model *m = new_td_with_pages(test);

	stop_td(test, m);
	stop_td(test, m);
	tdx_mmu_release_hkid(model_kvm(m));
	KUNIT_EXPECT_EQ(test, m->calls[CALL_VP_FLUSH], 1);
	KUNIT_EXPECT_EQ(test, m->calls[CALL_KEYID_FREE], 1);
	end_td(test, m);

	/* There is no TD yet: nothing to do, nothing dies. */
	model_kvm(m)->vm_dead = false;
	m->kvm_tdx->hkid = 0;
	tdx_vm_unreachable(model_kvm(m));
	KUNIT_EXPECT_FALSE(test, model_kvm(m)->vm_dead);
	KUNIT_EXPECT_EQ(test, m->calls[CALL_VPFLUSHDONE], 1);
}

/* A vCPU is where it can't be flushed: pages go the long way, the key later. */
static void teardown_not_flushed(struct kunit *test)
{
	struct tdx_model *m = new_td_with_pages(test);
	int cpu = m->vcpu->vcpu.cpu;

	m->vcpu->vcpu.cpu = -1;
	tdx_vm_unreachable(model_kvm(m));
	KUNIT_EXPECT_EQ(test, m->life, TD_HAS_KEY);
	KUNIT_EXPECT_EQ(test, m->kvm_tdx->hkid, MODEL_HKID);
	KUNIT_EXPECT_EQ(test, file_punch(m, 0), 0);
	KUNIT_EXPECT_EQ(test, m->calls[CALL_WBINVD], 1);

	m->vcpu->vcpu.cpu = cpu;
	stop_td(test, m);
	end_td(test, m);
	KUNIT_EXPECT_EQ(test, m->calls[CALL_RECLAIM], NR_TEARDOWN - 1);
}

static const struct failure teardown_failures[] = {
	{ "VPFLUSHDONE, before finalise", CALL_VPFLUSHDONE, false },
	{ "VPFLUSHDONE, after finalise", CALL_VPFLUSHDONE, true },
	{ "CACHE.WB", CALL_CACHE_WB, true },
	{ "KEY.FREEID", CALL_KEY_FREEID, true },
	{ "RECLAIM", CALL_RECLAIM, true },
};

KUNIT_ARRAY_PARAM_DESC(teardown_failure, teardown_failures, name);

/*
 * If the key stays assigned after all caches have been asked for, then the module does
 * nothing more for the TD, and its pages are lost.  If it stays as it was, they aren't.
 */
static void teardown_fails(struct kunit *test)
{
	const struct failure *failure = test->param_value;
	struct tdx_model *m = new_td_for(test, failure->finalized);
	bool keeps_key = failure->call != CALL_RECLAIM;
	bool keeps_pages = failure->call != CALL_VPFLUSHDONE;
	int i;

	for (i = 0; i < 4; i++)
		KUNIT_ASSERT_EQ(test, give_page(m, i), 0);

	/* The CPU that CACHE.WB is called on: only the test's own warnings are expected. */
	set_cpus_allowed_ptr(current, cpumask_of(cpumask_first(cpu_online_mask)));

	kunit_warning_suppress(test) {
		start_failing(m, failure, BAD);
		tdx_vm_unreachable(model_kvm(m));
		KUNIT_EXPECT_EQ(test, m->kvm_tdx->hkid, keeps_key ? MODEL_HKID : -1);
		KUNIT_EXPECT_EQ(test, m->calls[CALL_KEYID_FREE], !keeps_key);
		file_release(test, m, keeps_pages ? 4 : 0);
	}

	KUNIT_EXPECT_EQ(test, m->nr_freed, keeps_pages ? 0 : 4);
}

/* The code under test slips: KVM bugs the VM, and no SEAMCALL is made. */
static void host_slips(struct kunit *test)
{
	struct tdx_model *m = new_td_for(test, false);
	struct kvm *kvm = model_kvm(m);
	kvm_pfn_t pfn;

	make_private(m, 0);
	KUNIT_ASSERT_EQ(test, kvm_gmem_get_pfn(kvm, &m->slot, MODEL_GFN, &pfn, NULL), 0);

	/* A private fault before the TD runs, outside of populating. */
	kunit_warning_suppress(test) {
		mutex_lock(&kvm->slots_lock);
		KUNIT_EXPECT_EQ(test, tdx_model_map(m, 0, pfn), -EIO);
		mutex_unlock(&kvm->slots_lock);
		KUNIT_EXPECT_SUPPRESSED_WARNING_COUNT(test, 1);
	}

	KUNIT_EXPECT_TRUE(test, kvm->vm_bugged);
	KUNIT_EXPECT_EQ(test, m->calls[CALL_PAGE_ADD], 0);
	file_release(test, m, 0);
}

/* The model has teeth: what the module refuses, it refuses. */
static void model_refuses_install(struct kunit *test)
{
	struct tdx_model *m = new_td(test);
	const struct tdx_platform_ops *ops = m->kvm_tdx->platform;
	u64 gpa = gfn_to_gpa(MODEL_GFN), e1, e2;
	struct tdx_td *td = &m->kvm_tdx->td;
	kvm_pfn_t pfn;

	KUNIT_ASSERT_EQ(test, give_page(m, 0), 0);
	pfn = m->mirror_pfn[0];

	write_lock(&model_kvm(m)->mmu_lock);
	KUNIT_EXPECT_EQ(test, ops->page_aug(td, gpa, PG_LEVEL_4K, pfn, &e1, &e2),
			TDX_EPT_ENTRY_STATE_INCORRECT | TDX_OPERAND_ID_RCX);
	KUNIT_EXPECT_EQ(test, ops->page_aug(td, gpa + PAGE_SIZE, PG_LEVEL_4K, pfn, &e1, &e2),
			TDX_PAGE_METADATA_INCORRECT | TDX_OPERAND_ID_R8);
	KUNIT_EXPECT_EQ(test, ops->page_aug(td, gpa, PG_LEVEL_2M, pfn, &e1, &e2),
			TDX_OPERAND_INVALID | TDX_OPERAND_ID_RCX);
	if (m->op_state == TD_STATE_RUNNABLE) {
		KUNIT_EXPECT_EQ(test, ops->mr_finalize(td), TDX_OP_STATE_INCORRECT);
		KUNIT_EXPECT_EQ(test, ops->mr_extend(td, gpa, &e1, &e2),
				TDX_OP_STATE_INCORRECT);
	} else {
		KUNIT_EXPECT_EQ(test, ops->mr_extend(td, gpa + PAGE_SIZE, &e1, &e2),
				TDX_EPT_ENTRY_NOT_PRESENT);
	}
	KUNIT_EXPECT_EQ(test, ops->page_wbinvd_hkid(MODEL_HKID, pfn),
			TDX_PAGE_METADATA_INCORRECT | TDX_OPERAND_ID_RCX);
	KUNIT_EXPECT_EQ(test, ops->range_block(td, gpa + PAGE_SIZE, PG_LEVEL_4K, &e1, &e2),
			TDX_EPT_ENTRY_STATE_INCORRECT | TDX_OPERAND_ID_RCX);
	write_unlock(&model_kvm(m)->mmu_lock);
	end_td(test, m);
}

/* A running TD's page goes in three steps, and not while an old vCPU is around. */
static void model_refuses_removal(struct kunit *test)
{
	struct tdx_model *m = new_td_for(test, true);
	const struct tdx_platform_ops *ops = m->kvm_tdx->platform;
	u64 gpa = gfn_to_gpa(MODEL_GFN), e1, e2;
	struct tdx_td *td = &m->kvm_tdx->td;

	KUNIT_ASSERT_EQ(test, give_page(m, 0), 0);
	m->vcpu_runs = true;

	write_lock(&model_kvm(m)->mmu_lock);
	KUNIT_EXPECT_EQ(test, ops->page_remove(td, gpa, PG_LEVEL_4K, &e1, &e2),
			TDX_GPA_RANGE_NOT_BLOCKED);
	KUNIT_EXPECT_EQ(test, ops->range_block(td, gpa, PG_LEVEL_4K, &e1, &e2), 0);
	KUNIT_EXPECT_EQ(test, ops->range_block(td, gpa, PG_LEVEL_4K, &e1, &e2),
			TDX_GPA_RANGE_ALREADY_BLOCKED);
	KUNIT_EXPECT_EQ(test, ops->page_remove(td, gpa, PG_LEVEL_4K, &e1, &e2),
			TDX_TLB_TRACKING_NOT_DONE | TDX_OPERAND_ID_SEPT);
	KUNIT_EXPECT_EQ(test, ops->track(td), 0);
	KUNIT_EXPECT_EQ(test, ops->track(td),
			TDX_PREVIOUS_TLB_EPOCH_BUSY | TDX_OPERAND_ID_TD_EPOCH);
	KUNIT_EXPECT_EQ(test, ops->page_remove(td, gpa, PG_LEVEL_4K, &e1, &e2),
			TDX_TLB_TRACKING_NOT_DONE | TDX_OPERAND_ID_SEPT);
	ops->kick_vcpus(model_kvm(m));
	KUNIT_EXPECT_EQ(test, ops->page_remove(td, gpa, PG_LEVEL_4K, &e1, &e2), 0);
	KUNIT_EXPECT_EQ(test, ops->page_wbinvd_hkid(MODEL_HKID & 0xff, m->mirror_pfn[0]),
			TDX_OPERAND_INVALID | TDX_OPERAND_ID_RCX);
	KUNIT_EXPECT_EQ(test, ops->page_wbinvd_hkid(MODEL_HKID, m->mirror_pfn[0]), 0);
	write_unlock(&model_kvm(m)->mmu_lock);

	m->mirror[0] = false;
	folio_clear_checked(tdx_model_folio(m, 0));
	end_td(test, m);
}

/* A TD ends in this order only, and in between nothing else is done for it. */
static void model_refuses_teardown(struct kunit *test)
{
	struct tdx_model *m = new_td_with_pages(test);
	const struct tdx_platform_ops *ops = m->kvm_tdx->platform;
	struct page *page = pfn_to_page(m->mirror_pfn[0]);
	u64 gpa = gfn_to_gpa(MODEL_GFN), e1, e2, e3;
	struct tdx_td *td = &m->kvm_tdx->td;

	write_lock(&model_kvm(m)->mmu_lock);
	KUNIT_EXPECT_EQ(test, ops->mng_key_freeid(td), TDX_LIFECYCLE_STATE_INCORRECT);
	KUNIT_EXPECT_EQ(test, ops->phymem_cache_wb(false), TDX_NO_HKID_READY_TO_WBCACHE);
	KUNIT_EXPECT_EQ(test, ops->mng_vpflushdone(td), TDX_FLUSHVP_NOT_DONE);
	KUNIT_EXPECT_EQ(test, ops->vp_flush(&m->vcpu->vp), 0);
	KUNIT_EXPECT_EQ(test, ops->vp_flush(&m->vcpu->vp), TDX_VCPU_NOT_ASSOCIATED);
	KUNIT_EXPECT_EQ(test, ops->page_reclaim(page, &e1, &e2, &e3),
			TDX_LIFECYCLE_STATE_INCORRECT);

	KUNIT_EXPECT_EQ(test, ops->mng_vpflushdone(td), 0);
	KUNIT_EXPECT_EQ(test, ops->mng_vpflushdone(td), TDX_LIFECYCLE_STATE_INCORRECT);
	KUNIT_EXPECT_EQ(test, ops->range_block(td, gpa, PG_LEVEL_4K, &e1, &e2),
			TDX_LIFECYCLE_STATE_INCORRECT);
	KUNIT_EXPECT_EQ(test, ops->mng_key_freeid(td), TDX_WBCACHE_NOT_COMPLETE);
	KUNIT_EXPECT_EQ(test, ops->phymem_cache_wb(false), TDX_INTERRUPTED_RESUMABLE);
	KUNIT_EXPECT_EQ(test, ops->mng_key_freeid(td), TDX_WBCACHE_NOT_COMPLETE);
	KUNIT_EXPECT_EQ(test, ops->phymem_cache_wb(false),
			TDX_OPERAND_INVALID | TDX_OPERAND_ID_RCX);
	KUNIT_EXPECT_EQ(test, ops->page_reclaim(page, &e1, &e2, &e3),
			TDX_LIFECYCLE_STATE_INCORRECT);
	cpumask_copy(&m->written_back, cpu_possible_mask);
	KUNIT_EXPECT_EQ(test, ops->mng_key_freeid(td), 0);

	KUNIT_EXPECT_EQ(test, ops->page_remove(td, gpa, PG_LEVEL_4K, &e1, &e2),
			TDX_LIFECYCLE_STATE_INCORRECT);
	KUNIT_EXPECT_EQ(test, ops->page_reclaim(page, &e1, &e2, &e3), 0);
	KUNIT_EXPECT_EQ(test, ops->page_reclaim(page, &e1, &e2, &e3),
			TDX_PAGE_METADATA_INCORRECT | TDX_OPERAND_ID_RCX);
	write_unlock(&model_kvm(m)->mmu_lock);

	ops->quirk_reset_paddr(page_to_phys(page), PAGE_SIZE);
	m->mirror[0] = false;
	folio_clear_checked(page_folio(page));
	m->kvm_tdx->hkid = -1;
	file_release(test, m, 0);
}

/* So has the harness: what it is to notice, it notices. */
static void harness_notices(struct kunit *test)
{
	struct tdx_model *m = new_td(test);
	struct folio *folio;
	struct model_frame *f;

	KUNIT_ASSERT_EQ(test, give_page(m, 0), 0);
	folio = tdx_model_folio(m, 0);
	f = frame_of(folio);

	KUNIT_EXPECT_NULL(test, disagreement(m, 0));
	KUNIT_EXPECT_STREQ(test, tdx_model_host_may_write(f), "the module owns the page");
	m->mirror[0] = false;
	KUNIT_EXPECT_STREQ(test, disagreement(m, 0), "mirror and S-EPT");
	m->mirror[0] = true;
	m->mirror[1] = true;
	m->sept[1].state = TDX_SEPT_PENDING;
	KUNIT_EXPECT_STREQ(test, disagreement(m, 1), "a shared page is in the S-EPT");
	m->sept[1].state = TDX_SEPT_FREE;
	m->mirror[1] = false;
	folio_clear_checked(folio);
	KUNIT_EXPECT_STREQ(test, disagreement(m, 0), "a page in the S-EPT isn't marked");
	folio_set_checked(folio);
	folio_clear_uptodate(folio);
	KUNIT_EXPECT_STREQ(test, disagreement(m, 0),
			   "a page in the S-EPT is about to be zeroed");
	folio_mark_uptodate(folio);

	tdx_model_zap(m, 0);
	KUNIT_EXPECT_NULL(test, disagreement(m, 0));
	folio_set_checked(folio);
	KUNIT_EXPECT_STREQ(test, disagreement(m, 0),
			   "a page that isn't in the S-EPT is marked");
	folio_clear_checked(folio);
	f->needs_reset = true;
	KUNIT_EXPECT_STREQ(test, disagreement(m, 0), "a partial write poisons the page");
	f->needs_wb = true;
	KUNIT_EXPECT_STREQ(test, disagreement(m, 0),
			   "lines of the TD's key will be written over the page");
	f->needs_reset = false;
	f->needs_wb = false;
	end_td(test, m);
}

/* What the random test expects, kept apart from all that it tests. */
struct shadow {
	bool is_private;
	bool has_guest_page;

	/* Of a shared page; of a private one that the module hasn't seen yet. */
	u64 word;
	u64 guest_word;
};

struct random_test {
	struct kunit *test;
	struct tdx_model *m;
	struct rnd_state rnd;
	struct shadow shadow[MODEL_PAGES];
	unsigned long nr_conversions;
	u64 serial;
};

static unsigned int rnd(struct random_test *r, unsigned int below)
{
	return prandom_u32_state(&r->rnd) % below;
}

static void random_convert(struct random_test *r, int i)
{
	static const u64 flags[] = { 0, 0, CONTENT_ZERO, CONTENT_PRESERVE, CONTENT_DISCARD };
	bool finalized = r->m->op_state == TD_STATE_RUNNABLE;
	bool to_private = rnd(r, 4) ? !r->shadow[i].is_private : rnd(r, 2);
	u64 flag = flags[rnd(r, ARRAY_SIZE(flags))];
	struct shadow *s = &r->shadow[i];
	bool moves, allowed = true;

	moves = s->is_private != to_private;
	if (flag == CONTENT_ZERO)
		allowed = !to_private;
	else if (flag == CONTENT_PRESERVE)
		allowed = to_private && !finalized;

	KUNIT_ASSERT_EQ(r->test, file_convert(r->m, i, to_private, flag),
			allowed ? 0 : -EOPNOTSUPP);
	if (!allowed)
		return;

	r->nr_conversions++;
	if (flag == CONTENT_DISCARD || flag == CONTENT_ZERO || (moves && !to_private)) {
		s->word = 0;
		s->has_guest_page = false;
	}
	s->is_private = to_private;
}

static void random_populate(struct random_test *r, int i)
{
	u32 flags = rnd(r, 2) ? KVM_TDX_MEASURE_MEMORY_REGION : 0;
	void __user *src = rnd(r, 2) ? r->m->usrc : NULL;
	struct shadow *s = &r->shadow[i];
	u64 word = src ? ++r->serial : s->word;
	int expected = 0;

	if (src)
		user_fill(r->m, src, word);

	if (!s->is_private)
		expected = -EINVAL;
	else if (s->has_guest_page)
		expected = -EIO;

	KUNIT_ASSERT_EQ(r->test, file_populate(r->m, i, src, flags), expected);
	if (expected)
		return;

	s->has_guest_page = true;
	s->guest_word = word;
	/* When the page comes back, its bytes are gone. */
	s->word = 0;
}

static void random_fault(struct random_test *r, int i)
{
	struct shadow *s = &r->shadow[i];
	int err;

	if (!s->is_private) {
		KUNIT_ASSERT_EQ(r->test, user_read(r->m, i), s->word);
		s->word = ++r->serial;
		user_write(r->m, i, s->word);
		return;
	}

	if (r->m->op_state != TD_STATE_RUNNABLE) {
		random_populate(r, i);
		return;
	}

	err = file_fault(r->m, i);
	if (err == -EBUSY) {
		/* The vCPU returns from its TDCALL. */
		r->m->vcpu_nags = false;
		err = file_fault(r->m, i);
	}
	KUNIT_ASSERT_EQ(r->test, err, 0);

	if (!s->has_guest_page)
		s->guest_word = 0;
	s->has_guest_page = true;
	s->word = 0;
	if (rnd(r, 2))
		tdx_model_accept(r->m, i);
}

static void random_op(struct random_test *r)
{
	int i = rnd(r, MODEL_PAGES);
	struct shadow *s = &r->shadow[i];
	enum model_call call;

	r->m->vcpu_nags = !rnd(r, 4);
	call = CALL_RANGE_BLOCK + rnd(r, 3);
	r->m->faults[call].err = BUSY;
	r->m->faults[call].times = !r->m->vcpu_nags && !rnd(r, 8);

	switch (rnd(r, 8)) {
	case 0 ... 4:
		random_convert(r, i);
		break;
	case 5 ... 6:
		random_fault(r, i);
		break;
	default:
		if (rnd(r, 2))
			KUNIT_ASSERT_EQ(r->test, file_punch(r->m, i), 0);
		else
			tdx_model_zap(r->m, i);

		/* A hole is zeros; a page that wasn't the guest's survives the zap. */
		if (s->has_guest_page || !tdx_model_folio(r->m, i))
			s->word = 0;
		s->has_guest_page = false;
	}
	r->m->faults[call].times = 0;
}

/* The model, the shadow, the file and the folios' flags agree. */
static void random_check(struct random_test *r)
{
	struct tdx_model *m = r->m;
	int i;

	check_all(r->test, m);

	for (i = 0; i < MODEL_PAGES; i++) {
		struct folio *folio = tdx_model_folio(m, i);
		struct shadow *s = &r->shadow[i];

		KUNIT_ASSERT_EQ(r->test, tdx_model_is_private(m, i), s->is_private);
		KUNIT_ASSERT_EQ(r->test, m->mirror[i], s->has_guest_page);

		if (s->has_guest_page && m->sept[i].state == TDX_SEPT_PRESENT)
			KUNIT_ASSERT_EQ(r->test, m->sept[i].word, s->guest_word);
		if (!s->has_guest_page && folio && folio_test_uptodate(folio))
			KUNIT_ASSERT_EQ(r->test, *(u64 *)folio_address(folio), s->word);
	}
}

/* One TD from start to end, with the file of the former one. */
static void random_td(struct random_test *r)
{
	int i;

	tdx_model_new_td(r->m);
	r->m->has_erratum = rnd(r, 2);

	for (i = 0; i < 2 * RANDOM_OPS_PER_PHASE; i++) {
		if (i == RANDOM_OPS_PER_PHASE) {
			KUNIT_ASSERT_EQ(r->test, finalize(r->m), 0);
			r->m->vcpu_runs = true;
		}
		random_op(r);
		random_check(r);
		cond_resched();
	}

	for (i = 0; i < MODEL_PAGES; i++) {
		tdx_model_zap(r->m, i);
		if (r->shadow[i].has_guest_page)
			r->shadow[i].word = 0;
		r->shadow[i].has_guest_page = false;
	}
	random_check(r);
}

static void random_conversions(struct kunit *test)
{
	struct random_test *r = kunit_kzalloc(test, sizeof(*r), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, r);
	r->test = test;
	r->m = new_td(test);
	prandom_seed_state(&r->rnd, gmem_tdx_kunit_seed);

	while (r->nr_conversions < RANDOM_CONVERSIONS)
		random_td(r);

	kunit_info(test, "seed %#lx: %lu conversions, %u pages freed",
		   gmem_tdx_kunit_seed, r->nr_conversions, r->m->nr_freed);
	end_td(test, r->m);
}

static void gmem_tdx_exit(struct kunit *test)
{
	struct tdx_model *m = test->priv;
	int i;

	for (i = 0; m && i < NR_CALLS; i++)
		total_calls[i] += m->calls[i];
}

static int gmem_tdx_suite_init(struct kunit_suite *suite)
{
	memset(total_calls, 0, sizeof(total_calls));
	return 0;
}

static void gmem_tdx_suite_exit(struct kunit_suite *suite)
{
	unsigned long total = 0;
	int i;

	for (i = 0; i < NR_CALLS; i++) {
		kunit_info(suite, "%lu %s", total_calls[i], call_names[i]);
		if (i < CALL_KEYID_FREE)
			total += total_calls[i];
	}
	kunit_info(suite, "%lu transitions of the model tried", total);
}

#define PHASE_CASE(fn)	KUNIT_CASE_PARAM(fn, phase_gen_params)

static struct kunit_case gmem_tdx_test_cases[] = {
	KUNIT_CASE(table),
	KUNIT_CASE(content_policy),
	PHASE_CASE(content_refused),
	KUNIT_CASE(add_source),
	KUNIT_CASE(add_in_place),
	KUNIT_CASE(add_twice),
	KUNIT_CASE(add_poisoned),
	KUNIT_CASE(add_in_place_slot),
	KUNIT_CASE(aug_accept),
	KUNIT_CASE(aug_dirty),
	PHASE_CASE(to_shared),
	PHASE_CASE(round_trip),
	PHASE_CASE(discard),
	KUNIT_CASE(finalize_twice),
	KUNIT_CASE(nagging_guest),
	PHASE_CASE(busy_once),
	KUNIT_CASE(busy_launch),
	KUNIT_CASE_PARAM(removal_fails, removal_failure_gen_params),
	KUNIT_CASE_PARAM(removal_stays_busy, removal_failure_gen_params),
	KUNIT_CASE_PARAM(launch_fails, launch_failure_gen_params),
	KUNIT_CASE_PARAM(launch_stays_busy, launch_failure_gen_params),
	PHASE_CASE(dead_vm),
	KUNIT_CASE(sept_page),
	KUNIT_CASE(sept_page_fails),
	PHASE_CASE(teardown_file_first),
	PHASE_CASE(teardown_key_first),
	PHASE_CASE(teardown_twice),
	PHASE_CASE(teardown_not_flushed),
	KUNIT_CASE_PARAM(teardown_fails, teardown_failure_gen_params),
	KUNIT_CASE(host_slips),
	PHASE_CASE(model_refuses_install),
	KUNIT_CASE(model_refuses_removal),
	PHASE_CASE(model_refuses_teardown),
	PHASE_CASE(harness_notices),
	KUNIT_CASE_SLOW(random_conversions),
	{}
};

static struct kunit_suite gmem_tdx_test_suite = {
	.name = "gmem_tdx",
	.suite_init = gmem_tdx_suite_init,
	.suite_exit = gmem_tdx_suite_exit,
	.init = gmem_tdx_init,
	.exit = gmem_tdx_exit,
	.test_cases = gmem_tdx_test_cases,
};

kunit_test_suite(gmem_tdx_test_suite);
