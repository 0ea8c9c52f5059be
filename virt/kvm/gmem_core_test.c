// SPDX-License-Identifier: GPL-2.0-only
/*
 * KUnit tests for the core of guest_memfd: what it asks of a VM type, in which
 * order, and what it does when the answer is no.
 *
 * The VM type is a double.  It does nothing to any memory, but writes down which
 * hook was called for what, checks that the world is as the contract promises at
 * that moment, and fails where it is told to.  It is also the shortest complete
 * example of what a new VM type has to supply.  VM, memslot and file are real; the
 * VM never runs.
 */
#include <kunit/test.h>
#include <linux/falloc.h>
#include <linux/fdtable.h>
#include <linux/file.h>
#include <linux/highmem.h>
#include <linux/kthread.h>
#include <linux/kvm_gmem.h>
#include <linux/kvm_gmem_kunit.h>
#include <linux/kvm_host.h>
#include <linux/memory_hotplug.h>
#include <linux/mman.h>
#include <linux/pagemap.h>
#include <linux/sizes.h>
#include <linux/uaccess.h>

#include "gmem_internal.h"
#include "kvm_mm.h"

#define ZERO		KVM_SET_MEMORY_ATTRIBUTES2_ZERO
#define PRESERVE	KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE
#define DISCARD		KVM_SET_MEMORY_ATTRIBUTES2_DISCARD

#define NR_PAGES	16
#define BASE_GFN	0x1000
#define MAX_EVENTS	64

/* Of the large folios in the suite that has them, a quarter of the file. */
#define LARGE_ORDER	2
#define LARGE		BIT(LARGE_ORDER)

enum double_hook {
	HOOK_NONE,
	MAY_CONVERT,
	PREPARE,
	MAKE_PRIVATE,
	MOVE,
	MAKE_SHARED,
	RECLAIM,
	INVALIDATE,
	RELEASE,
	FREE_FOLIO,
};

/* A call of a hook for pages [start, end) of the file. */
struct double_event {
	enum double_hook hook;
	pgoff_t start;
	pgoff_t end;
};

static struct gmem_double {
	struct kunit *test;

	int vm_fd;
	int fd;
	struct kvm *kvm;
	struct file *file;
	struct gmem_file *f;
	void __user *umem;
	bool is_bound;

	/* How a user faults. */
	enum fault_flag fault_flags;

	struct kvm_gmem_content content[2];

	/* Fail call number @fail_at (from 1) of @fail_hook with @fail_error. */
	enum double_hook fail_hook;
	int fail_at;
	int fail_error;

	struct double_event events[MAX_EVENTS];
	int nr_events;

	/* Pages of the machine outside the direct map, when the test begins. */
	unsigned long nr_out;

	/* The indices that faults were last kept from, and the sides that were zapped. */
	pgoff_t kept_start;
	pgoff_t kept_end;
	enum kvm_gfn_range_filter zapped;

	/* Called in hooks that have pages for themselves, after the pages are back. */
	void (*in_hook)(void);
	int nr_in_hook;
	struct task_struct *converter;
	struct task_struct *waiter;
	struct completion waiter_done;
	int waiter_r;

	/* It has a request, and never runs; the VM does not know it. */
	struct kvm_vcpu *asker;

	/* A guest fault that has its pfn, but mmu_lock not yet; 0 if there is none. */
	gfn_t fault_gfn;
	unsigned long fault_seq;
	int nr_refused;
} *dbl;

static int double_record(enum double_hook hook, pgoff_t start, pgoff_t end)
{
	struct double_event *e = &dbl->events[dbl->nr_events];

	KUNIT_ASSERT_LT(dbl->test, dbl->nr_events, MAX_EVENTS);
	*e = (struct double_event){ hook, start, end };
	dbl->nr_events++;

	if (hook == dbl->fail_hook && !--dbl->fail_at)
		return dbl->fail_error;

	return 0;
}

static bool double_is_private(pgoff_t index)
{
	return gmem_state_test(&GMEM_I(dbl->f->inode)->state, index);
}

/* Would the fault now install its mapping?  It must not before all is over. */
static void double_go_on_with_fault(struct kvm *kvm)
{
	if (!dbl->fault_gfn)
		return;

	KVM_MMU_LOCK(kvm);
	if (mmu_invalidate_retry_gfn(kvm, dbl->fault_seq, dbl->fault_gfn))
		dbl->nr_refused++;
	KVM_MMU_UNLOCK(kvm);
}

/* What kvm_gmem.h promises to hooks that are called exclusively. */
static void double_assert_exclusive(pgoff_t start, pgoff_t end)
{
	kvm_gmem_assert_exclusive(dbl->f->inode, start, end);
	if (rwsem_is_locked(&dbl->f->inode->i_mapping->invalidate_lock))
		return;

	KUNIT_EXPECT_LE(dbl->test, GMEM_I(dbl->f->inode)->claim_start, start);
	KUNIT_EXPECT_GE(dbl->test, GMEM_I(dbl->f->inode)->claim_end, end);
}

/* Is invalidate_lock held, perhaps by this thread?  It would wait for itself. */
static bool double_is_locked(void)
{
	if (!filemap_invalidate_trylock_shared(dbl->f->inode->i_mapping))
		return true;

	filemap_invalidate_unlock_shared(dbl->f->inode->i_mapping);
	return false;
}

static void double_call_in_hook(void)
{
	if (!dbl->in_hook)
		return;

	dbl->nr_in_hook++;
	dbl->in_hook();
}

/* Are faults kept out by an invalidation that is under way, rather than by a claim? */
static bool double_is_invalidating(void)
{
	return dbl->is_bound && !GMEM_I(dbl->f->inode)->claim_end;
}

static void double_content(struct kvm *kvm, bool to_private,
			   struct kvm_gmem_content *content)
{
	*content = dbl->content[to_private];
}

static int double_may_convert(struct kvm *kvm, struct kvm_memory_slot *slot,
			      struct kvm_gfn_range *range, bool to_private)
{
	lockdep_assert_held_write(&dbl->f->inode->i_mapping->invalidate_lock);
	KUNIT_EXPECT_PTR_EQ(dbl->test, kvm, dbl->kvm);

	return double_record(MAY_CONVERT, kvm_gmem_index(slot, range->start),
			     kvm_gmem_index(slot, range->end));
}

static int double_prepare_convert(kvm_pfn_t pfn, int order)
{
	struct folio *folio = pfn_folio(pfn);

	double_assert_exclusive(folio->index, folio_next_index(folio));
	KUNIT_EXPECT_EQ(dbl->test, dbl->kvm->mmu_invalidate_in_progress, 0);

	return double_record(PREPARE, folio->index, folio->index + (1 << order));
}

static int double_make_private(struct kvm *kvm, gfn_t gfn, kvm_pfn_t pfn, int order)
{
	struct folio *folio = pfn_folio(pfn);
	pgoff_t index = folio->index + folio_page_idx(folio, pfn_to_page(pfn));
	pgoff_t nr = 1 << order;

	lockdep_assert_held_read(&dbl->f->inode->i_mapping->invalidate_lock);
	KUNIT_EXPECT_TRUE(dbl->test, folio_test_locked(folio));
	KUNIT_EXPECT_TRUE(dbl->test, folio_test_uptodate(folio));
	KUNIT_EXPECT_TRUE(dbl->test, double_is_private(folio->index));
	KUNIT_EXPECT_LE(dbl->test, order, folio_order(folio));
	KUNIT_EXPECT_EQ(dbl->test, gfn, BASE_GFN + index);

	/* From the page itself to the end of what may be given along with it. */
	return double_record(MAKE_PRIVATE, index, ALIGN_DOWN(index, nr) + nr);
}

static void double_move_range(struct kvm *kvm, struct kvm_memory_slot *slot,
			      struct kvm_gfn_range *range, bool to_private)
{
	double_assert_exclusive(kvm_gmem_index(slot, range->start),
				kvm_gmem_index(slot, range->end));
	KUNIT_EXPECT_EQ(dbl->test, kvm->mmu_invalidate_in_progress, double_is_invalidating());

	double_record(MOVE, kvm_gmem_index(slot, range->start),
		      kvm_gmem_index(slot, range->end));
}

static bool double_make_shared(kvm_pfn_t pfn, int order)
{
	struct folio *folio = pfn_folio(pfn);

	double_assert_exclusive(folio->index, folio_next_index(folio));
	/* Faults are kept out, if there can be any, and the state is the old one. */
	KUNIT_EXPECT_EQ(dbl->test, dbl->kvm->mmu_invalidate_in_progress,
			double_is_invalidating());
	KUNIT_EXPECT_TRUE(dbl->test, double_is_private(folio->index));
	double_go_on_with_fault(dbl->kvm);
	double_call_in_hook();

	return !double_record(MAKE_SHARED, folio->index, folio->index + (1 << order));
}

static int double_reclaim_range(struct kvm *kvm, struct kvm_memory_slot *slot,
				struct kvm_gfn_range *range)
{
	double_assert_exclusive(kvm_gmem_index(slot, range->start),
				kvm_gmem_index(slot, range->end));
	double_call_in_hook();

	return double_record(RECLAIM, kvm_gmem_index(slot, range->start),
			     kvm_gmem_index(slot, range->end));
}

static void double_release_range(struct kvm *kvm, struct kvm_memory_slot *slot,
				 struct kvm_gfn_range *range)
{
	double_assert_exclusive(kvm_gmem_index(slot, range->start),
				kvm_gmem_index(slot, range->end));
	double_go_on_with_fault(kvm);
	double_call_in_hook();

	double_record(RELEASE, kvm_gmem_index(slot, range->start),
		      kvm_gmem_index(slot, range->end));
}

static void double_invalidate(struct kvm *kvm, struct kvm_gfn_range *range)
{
	lockdep_assert_held_write(&kvm->mmu_lock);

	dbl->kept_start = kvm_gmem_index(range->slot, kvm->mmu_invalidate_range_start);
	dbl->kept_end = kvm_gmem_index(range->slot, kvm->mmu_invalidate_range_end);
	dbl->zapped = range->attr_filter;
	double_record(INVALIDATE, kvm_gmem_index(range->slot, range->start),
		      kvm_gmem_index(range->slot, range->end));
}

static void double_free_folio(struct folio *folio)
{
	/* A claim won't do: what leaves is counted, and nothing else may come meanwhile. */
	if (dbl && dbl->in_hook)
		KUNIT_EXPECT_TRUE(dbl->test, double_is_locked());

	/* Pages that outlive the test's own life are none of its business. */
	if (dbl && double_record(FREE_FOLIO, folio->index, folio_next_index(folio)))
		kvm_gmem_leak_folio(folio);
}

static const struct address_space_operations double_aops =
	KVM_GMEM_AOPS(double_free_folio);

static const struct kvm_gmem_ops double_ops = {
	.create_flags	 = GUEST_MEMFD_FLAG_INIT_SHARED,
	.attributes	 = KVM_MEMORY_ATTRIBUTE_PRIVATE,
	.zap_on_convert	 = true,
	.aops		 = &double_aops,
	.content	 = double_content,
	.may_convert	 = double_may_convert,
	.make_private	 = double_make_private,
	.move_range	 = double_move_range,
	.make_shared	 = double_make_shared,
	.reclaim_range	 = double_reclaim_range,
	.release_range	 = double_release_range,
	.invalidate	 = double_invalidate,
};

static const struct kvm_gmem_ops double_large_ops = {
	.create_flags	 = GUEST_MEMFD_FLAG_INIT_SHARED | GUEST_MEMFD_FLAG_HUGE,
	.attributes	 = KVM_MEMORY_ATTRIBUTE_PRIVATE,
	.max_order	 = LARGE_ORDER,
	.zap_on_convert	 = true,
	.aops		 = &double_aops,
	.content	 = double_content,
	.may_convert	 = double_may_convert,
	.prepare_convert = double_prepare_convert,
	.make_private	 = double_make_private,
	.make_shared	 = double_make_shared,
	.release_range	 = double_release_range,
	.invalidate	 = double_invalidate,
};

/* What the tests do. */

static void fail_hook(enum double_hook hook, int nth, int error)
{
	dbl->fail_hook = hook;
	dbl->fail_at = nth;
	dbl->fail_error = error;
}

static void expect_events(struct kunit *test, const struct double_event *want, int nr)
{
	int i;

	KUNIT_EXPECT_EQ(test, dbl->nr_events, nr);
	for (i = 0; i < min(nr, dbl->nr_events); i++) {
		KUNIT_EXPECT_EQ_MSG(test, dbl->events[i].hook, want[i].hook, "event %d", i);
		KUNIT_EXPECT_EQ_MSG(test, dbl->events[i].start, want[i].start, "event %d", i);
		KUNIT_EXPECT_EQ_MSG(test, dbl->events[i].end, want[i].end, "event %d", i);
	}
	dbl->nr_events = 0;
}

#define EXPECT_EVENTS(test, ...)						\
	expect_events(test, (struct double_event[]){ __VA_ARGS__ },		\
		      ARRAY_SIZE(((struct double_event[]){ __VA_ARGS__ })))

#define EXPECT_NO_EVENT(test)	expect_events(test, NULL, 0)

/* On failure @error is the first page in the way. */
static int try_convert(pgoff_t start, pgoff_t end, bool to_private, u64 flags,
		       pgoff_t *error)
{
	struct kvm_memory_attributes2 attrs = {
		.offset = start << PAGE_SHIFT,
		.size = (end - start) << PAGE_SHIFT,
		.attributes = to_private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0,
		.flags = flags,
	};
	int r;

	KUNIT_ASSERT_EQ(dbl->test, copy_to_user(dbl->umem, &attrs, sizeof(attrs)), 0);
	r = kvm_gmem_set_attributes(dbl->f, dbl->umem);

	KUNIT_ASSERT_EQ(dbl->test, copy_from_user(&attrs, dbl->umem, sizeof(attrs)), 0);
	*error = attrs.error_offset >> PAGE_SHIFT;
	return r;
}

static int convert(pgoff_t start, pgoff_t end, bool to_private, u64 flags)
{
	pgoff_t error;
	int r;

	r = try_convert(start, end, to_private, flags, &error);
	KUNIT_EXPECT_EQ(dbl->test, error, r ? start : 0);
	return r;
}

/* Make page @index present, with @byte in every place. */
static void fill(pgoff_t index, u8 byte)
{
	struct address_space *mapping = dbl->f->inode->i_mapping;
	struct folio *folio;
	u8 *mem;

	filemap_invalidate_lock_shared(mapping);
	folio = kvm_gmem_get_folio(dbl->f, index);
	KUNIT_ASSERT_FALSE(dbl->test, IS_ERR(folio));
	kvm_gmem_make_uptodate(folio);
	mem = direct_map_kmap_local(folio_file_page(folio, index));
	memset(mem, byte, PAGE_SIZE);
	direct_map_kunmap_local(mem);
	folio_unlock(folio);
	folio_put(folio);
	filemap_invalidate_unlock_shared(mapping);
}

/* What is in page @index; -1 if it is absent. */
static int byte_at(pgoff_t index)
{
	struct folio *folio = filemap_get_folio(dbl->f->inode->i_mapping, index);
	bool uniform;
	u8 *mem;
	int byte;

	if (IS_ERR(folio))
		return -1;

	mem = direct_map_kmap_local(folio_file_page(folio, index));
	byte = *mem;
	uniform = !memchr_inv(mem, byte, PAGE_SIZE);
	direct_map_kunmap_local(mem);
	KUNIT_EXPECT_TRUE(dbl->test, uniform);
	folio_put(folio);
	return byte;
}

static void expect_state(struct kunit *test, pgoff_t start, pgoff_t end, bool is_private)
{
	KUNIT_EXPECT_TRUE(test, gmem_state_range_is(&GMEM_I(dbl->f->inode)->state,
						    start, end, is_private));
}

static int set_region(u32 slot, gfn_t gfn, pgoff_t pgoff, u64 npages)
{
	struct kvm_userspace_memory_region2 region = {
		.slot = slot,
		.flags = KVM_MEM_GUEST_MEMFD,
		.guest_phys_addr = gfn << PAGE_SHIFT,
		.memory_size = npages << PAGE_SHIFT,
		.guest_memfd = dbl->fd,
		.guest_memfd_offset = pgoff << PAGE_SHIFT,
	};
	struct file *file __free(fput) = fget(dbl->vm_fd);

	KUNIT_ASSERT_EQ(dbl->test, copy_to_user(dbl->umem, &region, sizeof(region)), 0);
	return file->f_op->unlocked_ioctl(file, KVM_SET_USER_MEMORY_REGION2,
					  (unsigned long)dbl->umem);
}

static int set_slot_at(gfn_t gfn, u64 npages)
{
	dbl->is_bound = npages;
	return set_region(0, gfn, 0, npages);
}

static int set_slot(u64 npages)
{
	return set_slot_at(BASE_GFN, npages);
}

static struct kvm_memory_slot *get_slot(void)
{
	struct kvm_memory_slot *slot;

	scoped_guard(srcu, &dbl->kvm->srcu)
		slot = gfn_to_memslot(dbl->kvm, BASE_GFN);

	KUNIT_ASSERT_NOT_NULL(dbl->test, slot);
	return slot;
}

static int get_pfn(pgoff_t index, kvm_pfn_t *pfn)
{
	guard(srcu)(&dbl->kvm->srcu);

	return kvm_gmem_get_pfn(dbl->kvm, get_slot(), BASE_GFN + index, pfn, NULL);
}

static int do_fallocate(int mode, pgoff_t start, pgoff_t end)
{
	return dbl->file->f_op->fallocate(dbl->file, FALLOC_FL_KEEP_SIZE | mode,
					  start << PAGE_SHIFT, (end - start) << PAGE_SHIFT);
}

static int allocate(pgoff_t start, pgoff_t end)
{
	return do_fallocate(0, start, end);
}

static int punch(pgoff_t start, pgoff_t end)
{
	return do_fallocate(FALLOC_FL_PUNCH_HOLE, start, end);
}

/* Forget what has happened so far. */
static void start_here(void)
{
	dbl->nr_events = 0;
}

static u64 pages_leaked(void)
{
	return atomic64_read(&dbl->kvm->stat.generic.gmem_pages_leaked);
}

/* The tests. */

static void gmem_core_to_private(struct kunit *test)
{
	fill(2, 0x22);
	fill(5, 0x55);
	start_here();

	/* Pages are assigned at their first private use, not at conversion. */
	KUNIT_EXPECT_EQ(test, convert(2, 6, true, 0), 0);
	EXPECT_EVENTS(test, { MAY_CONVERT, 2, 6 }, { INVALIDATE, 2, 6 }, { MOVE, 2, 6 });
	expect_state(test, 2, 6, true);
	expect_state(test, 0, 2, false);
	expect_state(test, 6, NR_PAGES, false);
	KUNIT_EXPECT_EQ(test, byte_at(2), 0x22);
	KUNIT_EXPECT_EQ(test, byte_at(3), -1);
}

static void gmem_core_to_shared(struct kunit *test)
{
	KUNIT_ASSERT_EQ(test, convert(0, NR_PAGES, true, 0), 0);
	fill(4, 0x44);
	fill(6, 0x66);
	start_here();

	KUNIT_EXPECT_EQ(test, convert(3, 8, false, 0), 0);
	EXPECT_EVENTS(test, { MAY_CONVERT, 3, 8 }, { INVALIDATE, 3, 8 }, { MOVE, 3, 8 },
		      { MAKE_SHARED, 4, 5 }, { MAKE_SHARED, 6, 7 });
	expect_state(test, 3, 8, false);

	/* Once more: there is nothing to do, and nothing to ask. */
	KUNIT_EXPECT_EQ(test, convert(3, 8, false, 0), 0);
	EXPECT_NO_EVENT(test);
}

/* With an explicit flag the whole range obeys, but only pages that move are moved. */
static void gmem_core_mixed_range(struct kunit *test)
{
	fill(1, 0x11);
	fill(2, 0x22);
	KUNIT_ASSERT_EQ(test, convert(2, 3, true, 0), 0);
	start_here();

	KUNIT_EXPECT_EQ(test, convert(1, 3, false, ZERO), 0);
	EXPECT_EVENTS(test, { MAY_CONVERT, 1, 3 }, { INVALIDATE, 1, 3 }, { MOVE, 1, 3 },
		      { MAKE_SHARED, 2, 3 });
	KUNIT_EXPECT_EQ(test, byte_at(1), 0);
	KUNIT_EXPECT_EQ(test, byte_at(2), 0);
}

/* PRESERVE leaves alone what is there already: a zap may cost a VM type the bytes. */
static void gmem_core_preserve(struct kunit *test)
{
	fill(1, 0x11);
	KUNIT_ASSERT_EQ(test, convert(0, 4, true, 0), 0);
	start_here();

	KUNIT_EXPECT_EQ(test, convert(0, 4, true, PRESERVE), 0);
	EXPECT_NO_EVENT(test);

	/* Whereas the other flags ask for something. */
	KUNIT_EXPECT_EQ(test, convert(0, 4, true, ZERO), 0);
	EXPECT_EVENTS(test, { MAY_CONVERT, 0, 4 }, { INVALIDATE, 0, 4 },
		      { MOVE, 0, 4 });
	KUNIT_EXPECT_EQ(test, byte_at(1), 0);
}

static void gmem_core_content(struct kunit *test)
{
	fill(0, 0x10);

	/* What the VM type doesn't offer is refused before it is asked anything. */
	dbl->content[true] = (struct kvm_gmem_content){ .allowed = DISCARD };
	start_here();
	KUNIT_EXPECT_EQ(test, convert(0, 1, true, PRESERVE), -EOPNOTSUPP);
	KUNIT_EXPECT_EQ(test, convert(0, 1, true, ZERO), -EOPNOTSUPP);
	EXPECT_NO_EVENT(test);
	expect_state(test, 0, 1, false);

	/* Undefined: the platform does what it does, KVM adds nothing. */
	KUNIT_EXPECT_EQ(test, convert(0, 1, true, 0), 0);
	KUNIT_EXPECT_EQ(test, byte_at(0), 0x10);

	/* The default is the VM type's; and the phase may change what is offered. */
	dbl->content[false] = (struct kvm_gmem_content){ .allowed = ZERO, .dflt = ZERO };
	KUNIT_EXPECT_EQ(test, convert(0, 1, false, 0), 0);
	KUNIT_EXPECT_EQ(test, byte_at(0), 0);
	dbl->content[true].allowed = PRESERVE;
	fill(0, 0x20);
	KUNIT_EXPECT_EQ(test, convert(0, 1, true, PRESERVE), 0);
	KUNIT_EXPECT_EQ(test, byte_at(0), 0x20);
}

/* ZERO writes to no page that memory failure has struck; its state changes all the same. */
static void gmem_core_zero_poisoned(struct kunit *test)
{
	struct folio *folio;

	if (!IS_ENABLED(CONFIG_MEMORY_FAILURE))
		kunit_skip(test, "No memory failure");

	fill(1, 0x11);
	fill(2, 0x22);
	folio = filemap_get_folio(dbl->f->inode->i_mapping, 1);
	KUNIT_ASSERT_FALSE(test, IS_ERR(folio));
	folio_put(folio);

	SetPageHWPoison(&folio->page);
	KUNIT_EXPECT_EQ(test, convert(0, 4, true, ZERO), 0);
	expect_state(test, 0, 4, true);
	KUNIT_EXPECT_EQ(test, byte_at(1), 0x11);
	KUNIT_EXPECT_EQ(test, byte_at(2), 0);
	ClearPageHWPoison(&folio->page);
}

/* The guest loses the side that pages leave, and both if all of the range obeys. */
static void gmem_core_zap(struct kunit *test)
{
	const enum kvm_gfn_range_filter both = KVM_FILTER_PRIVATE | KVM_FILTER_SHARED;
	bool to_private;
	int i;

	for (i = 0; i < 2; i++) {
		to_private = !i;
		KUNIT_EXPECT_EQ(test, convert(2, 6, to_private, 0), 0);
		KUNIT_EXPECT_EQ(test, dbl->zapped,
				to_private ? KVM_FILTER_SHARED : KVM_FILTER_PRIVATE);
		KUNIT_EXPECT_EQ(test, convert(1, 6, to_private, PRESERVE), 0);
		KUNIT_EXPECT_EQ(test, dbl->zapped,
				to_private ? KVM_FILTER_SHARED : KVM_FILTER_PRIVATE);

		dbl->zapped = 0;
		KUNIT_EXPECT_EQ(test, convert(2, 6, to_private, ZERO), 0);
		KUNIT_EXPECT_EQ(test, dbl->zapped, both);
		dbl->zapped = 0;
		KUNIT_EXPECT_EQ(test, convert(2, 6, to_private, DISCARD), 0);
		KUNIT_EXPECT_EQ(test, dbl->zapped, both);
	}
}

static void gmem_core_veto(struct kunit *test)
{
	bool to_private;
	int i;

	for (i = 0; i < 2; i++) {
		to_private = !i;
		fill(7, 0x77);
		start_here();

		fail_hook(MAY_CONVERT, 1, -EPERM);
		KUNIT_EXPECT_EQ(test, convert(7, 9, to_private, 0), -EPERM);
		EXPECT_EVENTS(test, { MAY_CONVERT, 7, 9 });
		expect_state(test, 7, 9, !to_private);
		KUNIT_EXPECT_EQ(test, byte_at(7), 0x77);

		fail_hook(HOOK_NONE, 0, 0);
		KUNIT_EXPECT_EQ(test, convert(7, 9, to_private, 0), 0);
	}
}

/* A page that the platform keeps leaves the file, and is nobody's from then on. */
static void gmem_core_make_shared_fails(struct kunit *test)
{
	struct folio *folio;

	KUNIT_ASSERT_EQ(test, convert(0, 4, true, 0), 0);
	fill(1, 0x11);
	fill(2, 0x22);
	fill(3, 0x33);
	folio = filemap_get_folio(dbl->f->inode->i_mapping, 2);
	KUNIT_ASSERT_FALSE(test, IS_ERR(folio));
	start_here();

	fail_hook(MAKE_SHARED, 2, -EIO);
	KUNIT_EXPECT_EQ(test, convert(0, 4, false, 0), 0);
	KUNIT_EXPECT_EQ(test, pages_leaked(), 1);
	expect_state(test, 0, 4, false);
	KUNIT_EXPECT_EQ(test, byte_at(1), 0x11);
	KUNIT_EXPECT_EQ(test, byte_at(2), -1);
	KUNIT_EXPECT_EQ(test, byte_at(3), 0x33);

	/* One reference is ours, the other keeps the page from the allocator. */
	KUNIT_EXPECT_EQ(test, folio_ref_count(folio), 2);
	folio_put_refs(folio, 2);
}

static void gmem_core_make_private(struct kunit *test)
{
	kvm_pfn_t pfn, again;

	KUNIT_ASSERT_EQ(test, convert(0, 8, true, 0), 0);
	start_here();

	/* A failure is that of a fault; the next one tries again. */
	fail_hook(MAKE_PRIVATE, 1, -EINVAL);
	KUNIT_EXPECT_EQ(test, get_pfn(1, &pfn), -EINVAL);
	KUNIT_EXPECT_EQ(test, get_pfn(1, &pfn), 0);
	KUNIT_EXPECT_EQ(test, get_pfn(1, &again), 0);
	KUNIT_EXPECT_EQ(test, pfn, again);
	EXPECT_EVENTS(test, { MAKE_PRIVATE, 1, 2 }, { MAKE_PRIVATE, 1, 2 },
		      { MAKE_PRIVATE, 1, 2 });

	/* What is shared isn't given to the guest alone. */
	KUNIT_EXPECT_EQ(test, get_pfn(9, &pfn), 0);
	EXPECT_NO_EVENT(test);
}

static void gmem_core_discard(struct kunit *test)
{
	fill(4, 0x44);
	fill(5, 0x55);
	start_here();

	KUNIT_EXPECT_EQ(test, convert(4, 6, true, DISCARD), 0);
	EXPECT_EVENTS(test, { RECLAIM, 4, 6 }, { INVALIDATE, 4, 6 }, { RELEASE, 4, 6 },
		      { FREE_FOLIO, 4, 5 }, { FREE_FOLIO, 5, 6 });
	KUNIT_EXPECT_EQ(test, byte_at(4), -1);
	expect_state(test, 4, 6, true);
}

static void gmem_core_punch(struct kunit *test)
{
	fill(8, 0x88);
	start_here();

	/* The hole begins with what is there; its end is the caller's. */
	KUNIT_EXPECT_EQ(test, punch(6, 10), 0);
	EXPECT_EVENTS(test, { RECLAIM, 8, 10 }, { INVALIDATE, 8, 10 },
		      { RELEASE, 8, 10 }, { FREE_FOLIO, 8, 9 });
	KUNIT_EXPECT_EQ(test, byte_at(8), -1);
	expect_state(test, 8, 9, false);

	KUNIT_EXPECT_EQ(test, punch(6, 10), 0);
	EXPECT_NO_EVENT(test);
}

/* Punch a hole as someone does who isn't the VM's process. */
static int punch_as_other(pgoff_t start, pgoff_t end)
{
	struct mm_struct *mm = current->mm;
	int r;

	kthread_unuse_mm(mm);
	r = punch(start, end);
	kthread_use_mm(mm);
	return r;
}

/* One private page, in whatever batch, keeps others from a hole as a whole. */
static void gmem_core_punch_as_other(struct kunit *test)
{
	const pgoff_t nr = 3 * GMEM_BATCH_PAGES;
	struct file *large, *file = dbl->file;

	large = kvm_gmem_create_file(dbl->kvm, &double_ops, nr << PAGE_SHIFT, 0);
	KUNIT_ASSERT_FALSE(test, IS_ERR(large));
	dbl->file = large;
	dbl->f = large->private_data;

	KUNIT_EXPECT_EQ(test, convert(0, nr - 1, false, 0), 0);
	fill(1, 0x11);
	fill(nr - 2, 0x22);
	KUNIT_EXPECT_EQ(test, punch_as_other(0, nr), -EPERM);
	KUNIT_EXPECT_EQ(test, byte_at(1), 0x11);

	KUNIT_EXPECT_EQ(test, punch_as_other(0, nr - 1), 0);
	KUNIT_EXPECT_EQ(test, byte_at(1), -1);
	KUNIT_EXPECT_EQ(test, byte_at(nr - 2), -1);

	/* What is beyond the end is of no state. */
	KUNIT_EXPECT_EQ(test, convert(nr - 1, nr, false, 0), 0);
	KUNIT_EXPECT_EQ(test, punch_as_other(0, nr + 1), 0);

	dbl->file = file;
	dbl->f = file->private_data;
	__fput_sync(large);
}

/* What the platform doesn't return stays in the file. */
static void gmem_core_reclaim_fails(struct kunit *test)
{
	fill(3, 0x33);
	start_here();

	fail_hook(RECLAIM, 1, -EIO);
	KUNIT_EXPECT_EQ(test, punch(2, 6), -EIO);
	EXPECT_EVENTS(test, { RECLAIM, 3, 6 });
	KUNIT_EXPECT_EQ(test, byte_at(3), 0x33);

	start_here();
	fail_hook(RECLAIM, 1, -EIO);
	KUNIT_EXPECT_EQ(test, convert(2, 6, true, DISCARD), -EIO);
	EXPECT_EVENTS(test, { RECLAIM, 2, 6 });
	expect_state(test, 2, 6, false);
	KUNIT_EXPECT_EQ(test, byte_at(3), 0x33);

	fail_hook(HOOK_NONE, 0, 0);
	KUNIT_EXPECT_EQ(test, punch(2, 6), 0);
	KUNIT_EXPECT_EQ(test, byte_at(3), -1);
}

static int map_page(void *arg, kvm_pfn_t pfn)
{
	struct folio *folio = pfn_folio(pfn);

	lockdep_assert_held_read(&dbl->f->inode->i_mapping->invalidate_lock);
	KUNIT_EXPECT_TRUE(dbl->test, folio_test_locked(folio));
	KUNIT_EXPECT_TRUE(dbl->test, folio_test_uptodate(folio));
	KUNIT_EXPECT_EQ(dbl->test, folio->index, *(pgoff_t *)arg);
	return -EXDEV;
}

static int try_map_page(pgoff_t index, bool is_private)
{
	guard(srcu)(&dbl->kvm->srcu);

	return kvm_gmem_map_page(dbl->kvm, get_slot(), BASE_GFN + index, is_private,
				 map_page, &index);
}

/* The VM type maps by itself, and only what is on the side that it wants. */
static void gmem_core_map_page(struct kunit *test)
{
	KUNIT_ASSERT_EQ(test, convert(0, 4, true, 0), 0);
	start_here();

	KUNIT_EXPECT_EQ(test, try_map_page(1, false), -EACCES);
	KUNIT_EXPECT_EQ(test, try_map_page(5, true), -EACCES);
	KUNIT_EXPECT_EQ(test, byte_at(1), -1);
	KUNIT_EXPECT_EQ(test, byte_at(5), -1);

	KUNIT_EXPECT_EQ(test, try_map_page(1, true), -EXDEV);
	KUNIT_EXPECT_EQ(test, try_map_page(5, false), -EXDEV);
	KUNIT_EXPECT_EQ(test, byte_at(1), 0);
	KUNIT_EXPECT_EQ(test, byte_at(5), 0);
	EXPECT_NO_EVENT(test);
}

/* KVM's own accesses. */

/* Read page @index; -1 on failure, -2 if not all of it is of one byte. */
static int access_byte(pgoff_t index, bool atomic)
{
	u8 *page __free(kfree) = kmalloc(PAGE_SIZE, GFP_KERNEL);
	int r;

	KUNIT_ASSERT_NOT_NULL(dbl->test, page);
	guard(srcu)(&dbl->kvm->srcu);

	if (atomic)
		r = kvm_gmem_read_atomic(get_slot(), BASE_GFN + index, page, 0, PAGE_SIZE);
	else
		r = kvm_gmem_read(get_slot(), BASE_GFN + index, page, 0, PAGE_SIZE);
	if (r) {
		KUNIT_EXPECT_EQ(dbl->test, r, -EFAULT);
		return -1;
	}

	return memchr_inv(page, *page, PAGE_SIZE) ? -2 : *page;
}

static void gmem_core_access(struct kunit *test)
{
	struct folio *folio;

	fill(1, 0x11);
	fill(3, 0x33);
	KUNIT_ASSERT_EQ(test, convert(3, 5, true, 0), 0);
	start_here();

	/* Absent pages come into being, but not for those who must not wait. */
	KUNIT_EXPECT_EQ(test, access_byte(1, false), 0x11);
	KUNIT_EXPECT_EQ(test, access_byte(1, true), 0x11);
	KUNIT_EXPECT_EQ(test, access_byte(2, true), -1);
	pagefault_disable();
	KUNIT_EXPECT_EQ(test, access_byte(1, false), 0x11);
	KUNIT_EXPECT_EQ(test, access_byte(2, false), -1);
	pagefault_enable();
	KUNIT_EXPECT_EQ(test, byte_at(2), -1);
	KUNIT_EXPECT_EQ(test, access_byte(2, false), 0);
	KUNIT_EXPECT_EQ(test, byte_at(2), 0);

	/* Private pages are none of KVM's business, present or not. */
	KUNIT_EXPECT_EQ(test, access_byte(3, false), -1);
	KUNIT_EXPECT_EQ(test, access_byte(3, true), -1);
	KUNIT_EXPECT_EQ(test, access_byte(4, false), -1);
	KUNIT_EXPECT_EQ(test, byte_at(4), -1);
	EXPECT_NO_EVENT(test);

	/* Nor does anyone get what memory failure has struck. */
	if (!IS_ENABLED(CONFIG_MEMORY_FAILURE))
		return;

	folio = filemap_get_folio(dbl->f->inode->i_mapping, 1);
	KUNIT_ASSERT_FALSE(test, IS_ERR(folio));
	SetPageHWPoison(&folio->page);
	KUNIT_EXPECT_EQ(test, access_byte(1, false), -1);
	KUNIT_EXPECT_EQ(test, access_byte(1, true), -1);
	ClearPageHWPoison(&folio->page);
	folio_put(folio);
}

static int access_cmpxchg(pgoff_t index, u64 *old, u64 new, int len)
{
	guard(srcu)(&dbl->kvm->srcu);

	return kvm_gmem_cmpxchg(get_slot(), BASE_GFN + index, 8, old, &new, len);
}

static void gmem_core_access_cmpxchg(struct kunit *test)
{
	const u64 val = 0x1111111111111111;
	int len;
	u64 old;

	for (len = 1; len <= 8; len *= 2) {
		fill(1, 0x11);
		old = 0;
		KUNIT_EXPECT_EQ(test, access_cmpxchg(1, &old, val, len), 1);
		KUNIT_EXPECT_EQ(test, old, val >> (64 - 8 * len));
		KUNIT_EXPECT_EQ(test, byte_at(1), 0x11);

		old = val;
		KUNIT_EXPECT_EQ(test, access_cmpxchg(1, &old, 0, len), 0);
		KUNIT_EXPECT_EQ(test, access_byte(1, false), -2);
		old = 0;
		KUNIT_EXPECT_EQ(test, access_cmpxchg(1, &old, val, len), 0);
		KUNIT_EXPECT_EQ(test, access_byte(1, false), 0x11);
	}

	KUNIT_ASSERT_EQ(test, convert(1, 2, true, 0), 0);
	KUNIT_EXPECT_EQ(test, access_cmpxchg(1, &old, val, 8), -EFAULT);
}

#ifdef CONFIG_HAVE_KVM_PFNCACHE
static bool cache_is_valid(struct gfn_to_pfn_cache *gpc)
{
	guard(srcu)(&dbl->kvm->srcu);
	guard(read_lock_irq)(&gpc->lock);

	return kvm_gpc_check(gpc, 8);
}

static int cache_refresh(struct gfn_to_pfn_cache *gpc)
{
	guard(srcu)(&dbl->kvm->srcu);

	return kvm_gpc_activate(gpc, gfn_to_gpa(BASE_GFN + 1) + 64, 8);
}

/* What the valid cache shows. */
static void expect_cached(struct gfn_to_pfn_cache *gpc, u64 val)
{
	KUNIT_ASSERT_EQ(dbl->test, cache_refresh(gpc), 0);
	KUNIT_ASSERT_TRUE(dbl->test, cache_is_valid(gpc));
	KUNIT_EXPECT_EQ(dbl->test, *(u64 *)gpc->khva, val);
	KUNIT_EXPECT_EQ(dbl->test, atomic_long_read(&dbl->kvm->nr_gmem_maps), 1);
}

/* Whatever takes the page away takes the cache, which holds nothing, along. */
static void gmem_core_access_cache(struct kunit *test)
{
	struct gfn_to_pfn_cache gpc = {};
	struct folio *folio;

	kvm_gpc_init(&gpc, dbl->kvm);
	fill(1, 0x11);
	expect_cached(&gpc, 0x1111111111111111);

	/* Neighbours don't matter. */
	KUNIT_EXPECT_EQ(test, convert(0, 1, true, 0), 0);
	KUNIT_EXPECT_EQ(test, convert(2, 4, true, 0), 0);
	KUNIT_EXPECT_EQ(test, punch(2, 4), 0);
	KUNIT_EXPECT_TRUE(test, cache_is_valid(&gpc));

	KUNIT_EXPECT_EQ(test, convert(0, 2, true, 0), 0);
	KUNIT_EXPECT_FALSE(test, cache_is_valid(&gpc));
	KUNIT_EXPECT_EQ(test, cache_refresh(&gpc), -EFAULT);
	KUNIT_EXPECT_EQ(test, atomic_long_read(&dbl->kvm->nr_gmem_maps), 0);
	KUNIT_EXPECT_EQ(test, convert(0, 2, false, 0), 0);
	KUNIT_EXPECT_FALSE(test, cache_is_valid(&gpc));
	expect_cached(&gpc, 0x1111111111111111);

	KUNIT_EXPECT_EQ(test, punch(1, 2), 0);
	KUNIT_EXPECT_FALSE(test, cache_is_valid(&gpc));
	expect_cached(&gpc, 0);

	fill(1, 0x22);
	KUNIT_EXPECT_EQ(test, convert(0, NR_PAGES, false, DISCARD), 0);
	KUNIT_EXPECT_FALSE(test, cache_is_valid(&gpc));
	expect_cached(&gpc, 0);

	folio = filemap_lock_folio(dbl->f->inode->i_mapping, 1);
	KUNIT_ASSERT_FALSE(test, IS_ERR(folio));
	kvm_gmem_error_folio(dbl->f->inode->i_mapping, folio);
	folio_unlock(folio);
	folio_put(folio);
	KUNIT_EXPECT_FALSE(test, cache_is_valid(&gpc));
	expect_cached(&gpc, 0);

	/* A slot that is gone, while the file lives on, and one that shows other pages. */
	KUNIT_ASSERT_EQ(test, set_slot(0), 0);
	KUNIT_EXPECT_FALSE(test, cache_is_valid(&gpc));
	KUNIT_EXPECT_EQ(test, cache_refresh(&gpc), -EFAULT);
	fill(3, 0x33);
	KUNIT_ASSERT_EQ(test, set_region(0, BASE_GFN, 2, 4), 0);
	dbl->is_bound = true;
	expect_cached(&gpc, 0x3333333333333333);
	KUNIT_EXPECT_EQ(test, punch(1, 2), 0);
	KUNIT_EXPECT_TRUE(test, cache_is_valid(&gpc));
	KUNIT_EXPECT_EQ(test, punch(3, 4), 0);
	KUNIT_EXPECT_FALSE(test, cache_is_valid(&gpc));

	kvm_gpc_deactivate(&gpc);
	KUNIT_EXPECT_EQ(test, atomic_long_read(&dbl->kvm->nr_gmem_maps), 0);
}
#endif /* CONFIG_HAVE_KVM_PFNCACHE */

static void gmem_core_unbind(struct kunit *test)
{
	kvm_pfn_t pfn;

	fill(1, 0x11);
	start_here();

	/* Whether there is anything to invalidate is up to the architecture. */
	KUNIT_EXPECT_EQ(test, set_slot(0), 0);
	if (dbl->events[0].hook == INVALIDATE)
		EXPECT_EVENTS(test, { INVALIDATE, 0, NR_PAGES }, { RELEASE, 0, NR_PAGES });
	else
		EXPECT_EVENTS(test, { RELEASE, 0, NR_PAGES });
	KUNIT_EXPECT_EQ(test, byte_at(1), 0x11);

	/* An unbound file converts like any other; there is no one to ask. */
	KUNIT_EXPECT_EQ(test, convert(0, 4, true, 0), 0);
	KUNIT_EXPECT_EQ(test, convert(0, 4, false, 0), 0);
	EXPECT_EVENTS(test, { MAKE_SHARED, 1, 2 });

	KUNIT_EXPECT_EQ(test, set_slot(NR_PAGES), 0);
	KUNIT_EXPECT_EQ(test, get_pfn(1, &pfn), 0);
	KUNIT_EXPECT_EQ(test, byte_at(1), 0x11);
}

/* Where there is private memory a page has one gfn, if in several address spaces. */
static void gmem_core_bind_twice(struct kunit *test)
{
	const u32 other_as = BIT(16);

	KUNIT_EXPECT_EQ(test, set_region(1, BASE_GFN + NR_PAGES, 3, 1), -EEXIST);

	if (kvm_arch_nr_memslot_as_ids(dbl->kvm) < 2)
		return;

	KUNIT_EXPECT_EQ(test, set_region(other_as, BASE_GFN + 2, 3, 1), -EEXIST);
	KUNIT_EXPECT_EQ(test, set_region(other_as, BASE_GFN + 3, 3, 1), 0);
	start_here();

	/* Either is told. */
	KUNIT_EXPECT_EQ(test, convert(2, 5, true, 0), 0);
	EXPECT_EVENTS(test, { MAY_CONVERT, 2, 5 }, { MAY_CONVERT, 3, 4 },
		      { INVALIDATE, 2, 5 }, { INVALIDATE, 3, 4 }, { MOVE, 2, 5 },
		      { MOVE, 3, 4 });
}

static void gmem_core_release(struct kunit *test)
{
	fill(1, 0x11);
	fill(9, 0x99);
	start_here();

	close_fd(dbl->fd);
	dbl->fd = -1;
	flush_delayed_fput();
	EXPECT_EVENTS(test, { RECLAIM, 1, NR_PAGES }, { INVALIDATE, 0, NR_PAGES },
		      { RELEASE, 0, NR_PAGES }, { FREE_FOLIO, 1, 2 },
		      { FREE_FOLIO, 9, 10 });
	KUNIT_EXPECT_EQ(test, pages_leaked(), 0);
}

/* What the platform keeps when the file ends is counted, while there is a VM to count. */
static void gmem_core_release_leaks(struct kunit *test)
{
	fill(1, 0x11);
	fill(9, 0x99);
	start_here();

	fail_hook(FREE_FOLIO, 2, -EIO);
	close_fd(dbl->fd);
	dbl->fd = -1;
	flush_delayed_fput();
	KUNIT_EXPECT_EQ(test, pages_leaked(), 1);
}

/* By a hole as well, and by DISCARD, each page once. */
static void gmem_core_drop_leaks(struct kunit *test)
{
	fill(1, 0x11);
	fill(2, 0x22);
	fill(9, 0x99);
	dbl->content[true].allowed = KVM_SET_MEMORY_ATTRIBUTES2_DISCARD;
	start_here();

	fail_hook(FREE_FOLIO, 1, -EIO);
	KUNIT_EXPECT_EQ(test, punch(1, 3), 0);
	KUNIT_EXPECT_EQ(test, pages_leaked(), 1);

	fail_hook(FREE_FOLIO, 1, -EIO);
	KUNIT_EXPECT_EQ(test, convert(8, 10, true, KVM_SET_MEMORY_ATTRIBUTES2_DISCARD), 0);
	KUNIT_EXPECT_EQ(test, pages_leaked(), 2);
	KUNIT_EXPECT_EQ(test, byte_at(1), -1);
	KUNIT_EXPECT_EQ(test, byte_at(9), -1);
}

static unsigned long walked_pages, walked_pfns;

static void count_walked(void *arg, kvm_pfn_t pfn, unsigned long nr_pages)
{
	walked_pages += nr_pages;
	walked_pfns += pfn;
}

/* What is present and within the gfns, and nothing else. */
static void gmem_core_walk(struct kunit *test)
{
	struct kvm_memory_slot *slot = get_slot();
	kvm_pfn_t pfn[2];

	fill(1, 0x11);
	fill(4, 0x44);
	fill(7, 0x77);
	KUNIT_ASSERT_EQ(test, get_pfn(4, &pfn[0]), 0);
	KUNIT_ASSERT_EQ(test, get_pfn(7, &pfn[1]), 0);
	walked_pages = 0;
	walked_pfns = 0;

	scoped_guard(mutex, &dbl->kvm->slots_lock) {
		kvm_gmem_walk_present(slot, BASE_GFN + 2, BASE_GFN + 8, count_walked, NULL);
		KUNIT_EXPECT_EQ(test, walked_pages, 2);
		KUNIT_EXPECT_EQ(test, walked_pfns, pfn[0] + pfn[1]);

		kvm_gmem_walk_present(slot, BASE_GFN + 5, BASE_GFN + 7, count_walked, NULL);
		KUNIT_EXPECT_EQ(test, walked_pages, 2);
	}
}

/* Work goes in batches that end where a large folio may, whatever they begin with. */
static void gmem_core_batches(struct kunit *test)
{
	struct inode *inode = dbl->f->inode;
	const pgoff_t nr = GMEM_BATCH_PAGES;

	KUNIT_EXPECT_EQ(test, kvm_gmem_batch_end(inode, 0, 4 * nr), nr);
	KUNIT_EXPECT_EQ(test, kvm_gmem_batch_end(inode, 3, 4 * nr), nr);
	KUNIT_EXPECT_EQ(test, kvm_gmem_batch_end(inode, nr, 4 * nr), 2 * nr);
	KUNIT_EXPECT_EQ(test, kvm_gmem_batch_end(inode, nr + 1, nr + 7), nr + 7);

	GMEM_I(inode)->max_order = ilog2(2 * nr);
	KUNIT_EXPECT_EQ(test, kvm_gmem_batch_end(inode, nr + 1, 4 * nr), 2 * nr);
}

#ifdef CONFIG_HAVE_KVM_ARCH_GMEM_POPULATE
static int populate_reject(struct kvm *kvm, gfn_t gfn, kvm_pfn_t pfn,
			   struct page *src, void *opaque)
{
	u8 *byte = pfn_to_kaddr(pfn);

	KUNIT_EXPECT_NULL(dbl->test, src);
	*(u8 *)opaque = *byte;
	memset(byte, 0xcc, PAGE_SIZE);
	return gfn == BASE_GFN + 2 ? -EBADMSG : -EIO;
}

static void gmem_core_populate(struct kunit *test)
{
	u8 seen = 0xff;

	KUNIT_ASSERT_EQ(test, convert(1, 4, true, 0), 0);
	fill(1, 0x11);

	scoped_guard(mutex, &dbl->kvm->slots_lock) {
		/* Loads what is in the page, zeros if it is absent. */
		KUNIT_EXPECT_EQ(test, kvm_gmem_populate(dbl->kvm, BASE_GFN + 1, NULL, 1, false,
							populate_reject, &seen), -EIO);
		KUNIT_EXPECT_EQ(test, seen, 0x11);
		KUNIT_EXPECT_EQ(test, kvm_gmem_populate(dbl->kvm, BASE_GFN + 2, NULL, 1, false,
							populate_reject, &seen), -EBADMSG);
		KUNIT_EXPECT_EQ(test, seen, 0);

		/* Shared memory isn't launched. */
		KUNIT_EXPECT_EQ(test, kvm_gmem_populate(dbl->kvm, BASE_GFN + 5, NULL, 1, false,
							populate_reject, &seen), -EINVAL);
	}

	/* What the platform corrected is for user space to read. */
	expect_state(test, 1, 2, true);
	expect_state(test, 2, 3, false);
	expect_state(test, 3, 4, true);
	KUNIT_EXPECT_EQ(test, byte_at(2), 0xcc);
}
#endif

/* The tests of large folios, whose order is LARGE_ORDER. */

/* The order of the folio that has page @index; -1 if it is absent. */
static int order_at(pgoff_t index)
{
	struct folio *folio = filemap_get_folio(dbl->f->inode->i_mapping, index);
	int order;

	if (IS_ERR(folio))
		return -1;

	order = folio_order(folio);
	folio_put(folio);
	return order;
}

static void fill_block(pgoff_t start, u8 byte)
{
	int i;

	for (i = 0; i < LARGE; i++)
		fill(start + i, byte + i);
}

static void expect_block(struct kunit *test, pgoff_t start, u8 byte)
{
	int i;

	for (i = 0; i < LARGE; i++)
		KUNIT_EXPECT_EQ(test, byte_at(start + i), byte + i);
}

/* Pages of the block become folios of their own, of one state in the end. */
static void split_block(struct kunit *test, pgoff_t start)
{
	KUNIT_ASSERT_EQ(test, convert(start + 1, start + 2, true, PRESERVE), 0);
	KUNIT_ASSERT_EQ(test, convert(start + 1, start + 2, false, PRESERVE), 0);
	KUNIT_ASSERT_EQ(test, order_at(start), 0);
	KUNIT_ASSERT_EQ(test, order_at(start + 1), 0);
	KUNIT_ASSERT_EQ(test, order_at(start + 2), 1);
}

/* What is counted is what is there. */
static void expect_accounts(struct kunit *test)
{
	struct kvm_vm_stat_generic *stat = &dbl->kvm->stat.generic;
	long nr[2] = {};
	pgoff_t i;

	for (i = 0; i < NR_PAGES; i++) {
		if (order_at(i) >= 0)
			nr[double_is_private(i)]++;
	}

	KUNIT_EXPECT_EQ(test, dbl->f->inode->i_mapping->nrpages, nr[0] + nr[1]);
	KUNIT_EXPECT_EQ(test, atomic_long_read(&GMEM_I(dbl->f->inode)->nr_private), nr[1]);
	KUNIT_EXPECT_EQ(test, atomic64_read(&stat->gmem_pages_private), nr[1]);
	KUNIT_EXPECT_EQ(test, atomic64_read(&stat->gmem_pages_shared), nr[0]);
}

static void gmem_large_allocate(struct kunit *test)
{
	fill(5, 0x55);
	KUNIT_EXPECT_EQ(test, order_at(4), LARGE_ORDER);
	KUNIT_EXPECT_EQ(test, order_at(7), LARGE_ORDER);
	KUNIT_EXPECT_EQ(test, order_at(3), -1);
	KUNIT_EXPECT_EQ(test, order_at(8), -1);

	/* A block of two states gets pages. */
	KUNIT_ASSERT_EQ(test, convert(9, 10, true, 0), 0);
	fill(8, 0x88);
	fill(9, 0x99);
	KUNIT_EXPECT_EQ(test, order_at(8), 0);
	KUNIT_EXPECT_EQ(test, order_at(9), 0);
	KUNIT_EXPECT_EQ(test, order_at(10), -1);

	/* So does one that isn't empty, also when it is of one state again. */
	KUNIT_ASSERT_EQ(test, convert(9, 10, false, 0), 0);
	fill(10, 0xaa);
	KUNIT_EXPECT_EQ(test, order_at(10), 0);
	KUNIT_ASSERT_EQ(test, punch(8, 12), 0);
	fill(10, 0xaa);
	KUNIT_EXPECT_EQ(test, order_at(8), LARGE_ORDER);
	expect_accounts(test);
}

/* Make page @index present as the allocator gave it, full of what others left. */
static void fill_stale(pgoff_t index)
{
	struct address_space *mapping = dbl->f->inode->i_mapping;
	struct folio *folio;
	long i;

	filemap_invalidate_lock_shared(mapping);
	folio = kvm_gmem_get_folio(dbl->f, index);
	KUNIT_ASSERT_FALSE(dbl->test, IS_ERR(folio));
	KUNIT_ASSERT_FALSE(dbl->test, folio_test_uptodate(folio));
	for (i = 0; i < folio_nr_pages(folio); i++)
		memset(page_address(folio_page(folio, i)), 0xee, PAGE_SIZE);
	folio_unlock(folio);
	folio_put(folio);
	filemap_invalidate_unlock_shared(mapping);
}

/* "Nothing of the host's earlier data ever reaches a guest or a user mapping." */
static void gmem_large_zero(struct kunit *test)
{
	kvm_pfn_t pfn;
	int i;

	fill_stale(5);
	KUNIT_ASSERT_EQ(test, get_pfn(6, &pfn), 0);
	for (i = 4; i < 8; i++)
		KUNIT_EXPECT_EQ(test, byte_at(i), 0);

	/* Pieces of what was never used are zeroed before their own first use. */
	fill_stale(8);
	KUNIT_ASSERT_EQ(test, punch(9, 10), 0);
	KUNIT_EXPECT_EQ(test, byte_at(8), 0xee);
	KUNIT_EXPECT_EQ(test, byte_at(11), 0xee);
	KUNIT_ASSERT_EQ(test, get_pfn(8, &pfn), 0);
	KUNIT_ASSERT_EQ(test, get_pfn(10, &pfn), 0);
	for (i = 8; i < 12; i++)
		KUNIT_EXPECT_EQ(test, byte_at(i), i == 9 ? -1 : 0);

	/* ZERO of a part does not make the rest fit to be seen. */
	fill_stale(12);
	KUNIT_ASSERT_EQ(test, convert(13, 14, false, ZERO), 0);
	KUNIT_ASSERT_EQ(test, get_pfn(12, &pfn), 0);
	for (i = 12; i < 16; i++)
		KUNIT_EXPECT_EQ(test, byte_at(i), 0);
}

/* Where the platform zeroes what becomes private, KVM zeroes what is shared only. */
static void gmem_large_zeroes_private(struct kunit *test)
{
	struct gmem_inode *gi = GMEM_I(dbl->f->inode);
	struct kvm_gmem_ops ops = *gi->ops;
	kvm_pfn_t pfn;
	int i;

	KUNIT_ASSERT_EQ(test, convert(0, 8, true, 0), 0);
	fill_stale(4);
	ops.zeroes_private = true;
	ops.make_private = NULL;
	gi->ops = &ops;

	KUNIT_EXPECT_EQ(test, get_pfn(5, &pfn), 0);
	for (i = 4; i < 8; i++)
		KUNIT_EXPECT_EQ(test, byte_at(i), 0xee);

	KUNIT_EXPECT_EQ(test, convert(4, 8, false, 0), 0);
	KUNIT_EXPECT_EQ(test, get_pfn(5, &pfn), 0);
	for (i = 4; i < 8; i++)
		KUNIT_EXPECT_EQ(test, byte_at(i), 0);

	gi->ops = &double_large_ops;
}

/* A hole in memory of both states takes each page off the account that it is on. */
static void gmem_large_punch_mixed(struct kunit *test)
{
	fill_block(0, 0x10);
	fill_block(4, 0x44);
	fill_block(8, 0x88);
	KUNIT_ASSERT_EQ(test, convert(4, 9, true, 0), 0);

	KUNIT_EXPECT_EQ(test, punch(2, 10), 0);
	expect_accounts(test);
	KUNIT_EXPECT_EQ(test, punch(0, NR_PAGES), 0);
	expect_accounts(test);
}

static unsigned long walk_gfns(pgoff_t start, pgoff_t end)
{
	walked_pages = 0;
	scoped_guard(mutex, &dbl->kvm->slots_lock)
		kvm_gmem_walk_present(get_slot(), BASE_GFN + start, BASE_GFN + end,
				      count_walked, NULL);
	return walked_pages;
}

/* A walk stays within the gfns, and leaves out what memory failure has struck. */
static void gmem_large_walk(struct kunit *test)
{
	struct folio *folio;

	fill_block(4, 0x44);
	fill_block(8, 0x88);
	KUNIT_EXPECT_EQ(test, walk_gfns(0, NR_PAGES), 2 * LARGE);
	KUNIT_EXPECT_EQ(test, walk_gfns(5, 6), 1);
	KUNIT_EXPECT_EQ(test, walk_gfns(6, 11), 5);

	if (!IS_ENABLED(CONFIG_MEMORY_FAILURE))
		return;

	/* No one handles this error, which would split the folio. */
	folio = filemap_get_folio(dbl->f->inode->i_mapping, 6);
	KUNIT_ASSERT_FALSE(test, IS_ERR(folio));
	SetPageHWPoison(folio_file_page(folio, 6));
	folio_set_has_hwpoisoned(folio);
	KUNIT_EXPECT_EQ(test, walk_gfns(0, NR_PAGES), 2 * LARGE - 1);
	KUNIT_EXPECT_EQ(test, walk_gfns(6, 7), 0);
	KUNIT_EXPECT_EQ(test, walk_gfns(7, 8), 1);
	folio_clear_has_hwpoisoned(folio);
	ClearPageHWPoison(folio_file_page(folio, 6));
	folio_put(folio);
}

static void gmem_large_convert(struct kunit *test)
{
	fill_block(4, 0x44);
	fill_block(8, 0x88);
	start_here();

	/* What lies inside stays whole, with one call for all of it. */
	KUNIT_EXPECT_EQ(test, convert(5, 12, true, 0), 0);
	EXPECT_EVENTS(test, { MAY_CONVERT, 5, 12 }, { INVALIDATE, 5, 12 });
	KUNIT_EXPECT_EQ(test, order_at(4), 0);
	KUNIT_EXPECT_EQ(test, order_at(6), 1);
	KUNIT_EXPECT_EQ(test, order_at(8), LARGE_ORDER);
	expect_state(test, 4, 5, false);
	expect_state(test, 5, 12, true);
	expect_accounts(test);

	KUNIT_EXPECT_EQ(test, convert(5, 12, false, 0), 0);
	EXPECT_EVENTS(test, { MAY_CONVERT, 5, 12 }, { PREPARE, 5, 6 }, { PREPARE, 8, 12 },
		      { INVALIDATE, 5, 12 }, { MAKE_SHARED, 5, 6 }, { MAKE_SHARED, 6, 8 },
		      { MAKE_SHARED, 8, 12 });
	expect_block(test, 4, 0x44);
	expect_block(test, 8, 0x88);
	expect_accounts(test);
}

/* One folio of each block is prepared, whether whole or not, the rest untouched. */
static void gmem_large_prepare(struct kunit *test)
{
	fill_block(0, 0x10);
	fill_block(4, 0x44);
	fill_block(8, 0x88);
	fill_block(12, 0xc0);
	split_block(test, 8);
	KUNIT_ASSERT_EQ(test, punch(4, 6), 0);
	KUNIT_ASSERT_EQ(test, convert(0, 16, true, PRESERVE), 0);
	start_here();

	/* Any of them may refuse, and nothing has changed then. */
	fail_hook(PREPARE, 3, -ENOMEM);
	KUNIT_EXPECT_EQ(test, convert(0, 16, false, PRESERVE), -ENOMEM);
	EXPECT_EVENTS(test, { MAY_CONVERT, 0, 16 }, { PREPARE, 0, 4 }, { PREPARE, 6, 8 },
		      { PREPARE, 8, 9 });
	expect_state(test, 0, 16, true);

	fail_hook(PREPARE, 4, -EAGAIN);
	KUNIT_EXPECT_EQ(test, punch(0, 16), -EAGAIN);
	EXPECT_EVENTS(test, { PREPARE, 0, 4 }, { PREPARE, 6, 8 }, { PREPARE, 8, 9 },
		      { PREPARE, 12, 16 });
	KUNIT_EXPECT_EQ(test, byte_at(0), 0x10);

	/* To private only if what is private already is to go, too. */
	fail_hook(PREPARE, 2, -EIO);
	KUNIT_EXPECT_EQ(test, convert(0, 8, true, DISCARD), -EIO);
	EXPECT_EVENTS(test, { PREPARE, 0, 4 }, { PREPARE, 6, 8 });
	KUNIT_EXPECT_EQ(test, byte_at(6), 0x46);
	expect_accounts(test);

	/* No trace is left of the change that wasn't made. */
	fail_hook(HOOK_NONE, 0, 0);
	KUNIT_EXPECT_EQ(test, convert(0, 16, false, PRESERVE), 0);
	expect_state(test, 0, 16, false);
	expect_accounts(test);
}

/* What the platform keeps of a block that is dropped is lost, and counted. */
static void gmem_large_replace_refused(struct kunit *test)
{
	struct folio *folio;

	fill_block(4, 0x44);
	split_block(test, 4);
	KUNIT_ASSERT_EQ(test, convert(4, 8, true, PRESERVE), 0);
	folio = filemap_get_folio(dbl->f->inode->i_mapping, 5);
	KUNIT_ASSERT_FALSE(test, IS_ERR(folio));
	folio_put(folio);
	start_here();

	fail_hook(MAKE_SHARED, 2, -EIO);
	KUNIT_EXPECT_EQ(test, convert(4, 8, false, ZERO), 0);
	KUNIT_EXPECT_EQ(test, pages_leaked(), 1);
	KUNIT_EXPECT_EQ(test, order_at(4), -1);
	KUNIT_EXPECT_EQ(test, order_at(5), -1);
	expect_accounts(test);

	/* The reference that keeps the page from the allocator. */
	KUNIT_EXPECT_EQ(test, folio_ref_count(folio), 1);
	folio_put(folio);
}

/* Someone holds a part of a folio, by page 6; no other part can go its way. */
static void gmem_large_held(struct kunit *test)
{
	struct folio *folio;
	pgoff_t error;

	fill_block(4, 0x44);
	folio = filemap_get_folio(dbl->f->inode->i_mapping, 6);
	start_here();

	KUNIT_EXPECT_EQ(test, try_convert(2, 5, true, 0, &error), -EAGAIN);
	KUNIT_EXPECT_EQ(test, error, 4);
	KUNIT_EXPECT_EQ(test, try_convert(5, 10, true, 0, &error), -EAGAIN);
	KUNIT_EXPECT_EQ(test, error, 5);
	KUNIT_EXPECT_EQ(test, try_convert(7, 8, true, DISCARD, &error), -EAGAIN);
	KUNIT_EXPECT_EQ(test, error, 7);
	KUNIT_EXPECT_EQ(test, try_convert(2, 5, false, DISCARD, &error), -EAGAIN);
	KUNIT_EXPECT_EQ(test, error, 4);
	KUNIT_EXPECT_EQ(test, punch(0, 5), -EAGAIN);
	KUNIT_EXPECT_EQ(test, punch(7, NR_PAGES), -EAGAIN);
	EXPECT_EVENTS(test, { MAY_CONVERT, 2, 5 }, { MAY_CONVERT, 5, 10 });
	expect_state(test, 0, NR_PAGES, false);
	expect_block(test, 4, 0x44);
	KUNIT_EXPECT_EQ(test, order_at(4), LARGE_ORDER);

	/* Nothing is cut for what stays on its side. */
	KUNIT_EXPECT_EQ(test, convert(5, 6, false, ZERO), 0);
	KUNIT_EXPECT_EQ(test, byte_at(4), 0x44);
	KUNIT_EXPECT_EQ(test, byte_at(5), 0);
	KUNIT_EXPECT_EQ(test, byte_at(6), 0x46);
	KUNIT_EXPECT_EQ(test, order_at(4), LARGE_ORDER);

	/* A whole folio leaves, and its holder has an orphan. */
	KUNIT_EXPECT_EQ(test, punch(4, 8), 0);
	KUNIT_EXPECT_EQ(test, order_at(4), -1);
	folio_put(folio);
	expect_accounts(test);
}

/* Faults are kept out as far as a large mapping reaches, split or not. */
static void gmem_large_widened(struct kunit *test)
{
	struct address_space *mapping = dbl->f->inode->i_mapping;
	struct folio *folio;
	int i;

	fill_block(4, 0x44);
	for (i = 0; i < 2; i++) {
		KUNIT_ASSERT_EQ(test, convert(5, 6, !i, 0), 0);
		KUNIT_EXPECT_EQ(test, dbl->kept_start, 4);
		KUNIT_EXPECT_EQ(test, dbl->kept_end, 8);
	}

	KUNIT_ASSERT_EQ(test, convert(7, 9, true, DISCARD), 0);
	KUNIT_EXPECT_EQ(test, dbl->kept_start, 4);
	KUNIT_EXPECT_EQ(test, dbl->kept_end, 12);

	fill_block(12, 0xc0);
	KUNIT_ASSERT_EQ(test, punch(14, 15), 0);
	KUNIT_EXPECT_EQ(test, dbl->kept_start, 12);
	KUNIT_EXPECT_EQ(test, dbl->kept_end, 16);

	/* Memory failure has split the folio by the time it tells. */
	dbl->kept_end = 0;
	folio = filemap_lock_folio(mapping, 15);
	KUNIT_ASSERT_FALSE(test, IS_ERR(folio));
	KUNIT_EXPECT_EQ(test, folio_order(folio), 0);
	kvm_gmem_error_folio(mapping, folio);
	folio_unlock(folio);
	folio_put(folio);
	KUNIT_EXPECT_EQ(test, dbl->kept_start, 12);
	KUNIT_EXPECT_EQ(test, dbl->kept_end, 16);
}

static int mapping_order(gfn_t gfn)
{
	kvm_pfn_t pfn;
	int order, r;

	guard(srcu)(&dbl->kvm->srcu);

	r = kvm_gmem_get_pfn(dbl->kvm, gfn_to_memslot(dbl->kvm, gfn), gfn, &pfn, &order);
	KUNIT_EXPECT_EQ(dbl->test, r, 0);
	return order;
}

/* A fault on @gfn as far as it gets before it needs mmu_lock. */
static void begin_fault(struct kunit *test, gfn_t gfn)
{
	dbl->fault_seq = dbl->kvm->mmu_invalidate_seq;
	/* Pairs with the smp_wmb() in kvm_mmu_invalidate_end(). */
	smp_rmb();
	KUNIT_EXPECT_EQ(test, mapping_order(gfn), LARGE_ORDER);
	dbl->fault_gfn = gfn;
	dbl->nr_refused = 0;
}

/*
 * The fault of a neighbour has found a large folio; while it waits for mmu_lock a
 * page of the folio changes sides, or leaves.  A large mapping of the neighbour
 * would show it as it was.
 */
static void gmem_large_late_fault(struct kunit *test)
{
	const gfn_t gfns[] = { BASE_GFN + 4, BASE_GFN + 6, BASE_GFN + 7 };
	int i;

	for (i = 0; i < ARRAY_SIZE(gfns); i++) {
		KUNIT_ASSERT_EQ(test, convert(4, 8, true, DISCARD), 0);
		begin_fault(test, gfns[i]);
		KUNIT_ASSERT_EQ(test, convert(5, 6, false, PRESERVE), 0);
		KUNIT_EXPECT_EQ(test, dbl->nr_refused, 1);
		dbl->fault_gfn = 0;

		KUNIT_ASSERT_EQ(test, convert(4, 8, true, DISCARD), 0);
		begin_fault(test, gfns[i]);
		KUNIT_ASSERT_EQ(test, punch(5, 6), 0);
		KUNIT_EXPECT_EQ(test, dbl->nr_refused, 1);
		dbl->fault_gfn = 0;
		start_here();
	}

	/* A fault beyond the reach of any mapping goes on. */
	KUNIT_ASSERT_EQ(test, convert(4, 8, true, DISCARD), 0);
	fill(4, 0x44);
	begin_fault(test, BASE_GFN + 8);
	KUNIT_ASSERT_EQ(test, punch(5, 6), 0);
	KUNIT_EXPECT_EQ(test, dbl->nr_refused, 0);
	dbl->fault_gfn = 0;
}

/* The order follows folio, slot and alignment. */
static void gmem_large_mapping(struct kunit *test)
{
	kvm_pfn_t pfn[2];

	KUNIT_ASSERT_EQ(test, convert(4, 8, true, 0), 0);
	start_here();
	KUNIT_EXPECT_EQ(test, mapping_order(BASE_GFN + 1), LARGE_ORDER);
	KUNIT_EXPECT_EQ(test, mapping_order(BASE_GFN + 7), LARGE_ORDER);
	EXPECT_EVENTS(test, { MAKE_PRIVATE, 7, 8 });
	KUNIT_EXPECT_EQ(test, mapping_order(BASE_GFN + 5), LARGE_ORDER);
	EXPECT_EVENTS(test, { MAKE_PRIVATE, 5, 8 });

	/* Who doesn't ask for more than a page gets a page. */
	KUNIT_EXPECT_EQ(test, get_pfn(4, &pfn[0]), 0);
	KUNIT_EXPECT_EQ(test, get_pfn(7, &pfn[1]), 0);
	KUNIT_EXPECT_EQ(test, pfn[1] - pfn[0], 3);
	EXPECT_EVENTS(test, { MAKE_PRIVATE, 4, 5 }, { MAKE_PRIVATE, 7, 8 });

	fill_block(8, 0x88);
	split_block(test, 8);
	KUNIT_EXPECT_EQ(test, mapping_order(BASE_GFN + 8), 0);
	KUNIT_EXPECT_EQ(test, mapping_order(BASE_GFN + 10), 0);

	/* The end of the slot cuts through [4, 8). */
	KUNIT_ASSERT_EQ(test, set_slot(0), 0);
	KUNIT_ASSERT_EQ(test, set_slot(6), 0);
	KUNIT_EXPECT_EQ(test, mapping_order(BASE_GFN), LARGE_ORDER);
	start_here();
	KUNIT_EXPECT_EQ(test, mapping_order(BASE_GFN + 4), 0);

	/* And so does its start. */
	KUNIT_ASSERT_EQ(test, set_slot(0), 0);
	KUNIT_ASSERT_EQ(test, set_region(0, BASE_GFN + 6, 6, NR_PAGES - 6), 0);
	KUNIT_EXPECT_EQ(test, mapping_order(BASE_GFN + 6), 0);
	KUNIT_EXPECT_EQ(test, mapping_order(BASE_GFN + 12), LARGE_ORDER);

	/* What is aligned in the file isn't for the guest. */
	KUNIT_ASSERT_EQ(test, set_slot(0), 0);
	KUNIT_ASSERT_EQ(test, set_slot_at(BASE_GFN + 2, NR_PAGES), 0);
	KUNIT_EXPECT_EQ(test, mapping_order(BASE_GFN + 2), 0);
	KUNIT_EXPECT_EQ(test, mapping_order(BASE_GFN + 4), 0);
}

/* Small folios give way where their bytes need not survive, and only there. */
static void gmem_large_replace(struct kunit *test)
{
	fill_block(4, 0x44);
	split_block(test, 4);
	KUNIT_EXPECT_EQ(test, convert(4, 8, true, PRESERVE), 0);
	expect_block(test, 4, 0x44);
	KUNIT_EXPECT_EQ(test, order_at(6), 1);
	start_here();

	KUNIT_EXPECT_EQ(test, convert(3, 9, false, ZERO), 0);
	EXPECT_EVENTS(test, { MAY_CONVERT, 3, 9 }, { PREPARE, 4, 5 }, { INVALIDATE, 3, 9 },
		      { MAKE_SHARED, 4, 5 }, { MAKE_SHARED, 5, 6 }, { MAKE_SHARED, 6, 8 },
		      { RELEASE, 4, 8 }, { FREE_FOLIO, 4, 5 }, { FREE_FOLIO, 5, 6 },
		      { FREE_FOLIO, 6, 8 });
	KUNIT_EXPECT_EQ(test, order_at(4), -1);
	expect_accounts(test);
	fill_block(4, 0x44);
	KUNIT_EXPECT_EQ(test, order_at(4), LARGE_ORDER);

	/* A whole folio is zeroed; users may hold what was shared before. */
	KUNIT_EXPECT_EQ(test, convert(4, 8, true, ZERO), 0);
	KUNIT_EXPECT_EQ(test, order_at(4), LARGE_ORDER);
	KUNIT_EXPECT_EQ(test, byte_at(7), 0);
	fill_block(8, 0x88);
	split_block(test, 8);
	KUNIT_EXPECT_EQ(test, convert(8, 12, false, ZERO), 0);
	KUNIT_EXPECT_EQ(test, order_at(10), 1);
	KUNIT_EXPECT_EQ(test, byte_at(10), 0);

	/* A part of a block is no reason. */
	fill_block(8, 0x88);
	KUNIT_EXPECT_EQ(test, convert(9, 12, true, ZERO), 0);
	KUNIT_EXPECT_EQ(test, order_at(10), 1);
	KUNIT_EXPECT_EQ(test, byte_at(8), 0x88);
	KUNIT_EXPECT_EQ(test, byte_at(9), 0);
	expect_accounts(test);
}

/* What is on the asked side already keeps its bytes if no flag asks for more. */
static void gmem_large_replace_default(struct kunit *test)
{
	dbl->content[true].dflt = ZERO;
	fill_block(4, 0x44);
	KUNIT_ASSERT_EQ(test, convert(5, 6, true, PRESERVE), 0);

	KUNIT_EXPECT_EQ(test, convert(4, 8, true, 0), 0);
	KUNIT_EXPECT_EQ(test, byte_at(4), 0);
	KUNIT_EXPECT_EQ(test, byte_at(5), 0x45);
	KUNIT_EXPECT_EQ(test, byte_at(7), 0);
	expect_accounts(test);
}

static void gmem_large_discard(struct kunit *test)
{
	fill_block(4, 0x44);
	start_here();

	KUNIT_EXPECT_EQ(test, convert(5, 7, true, DISCARD), 0);
	EXPECT_EVENTS(test, { PREPARE, 5, 6 }, { INVALIDATE, 5, 7 }, { RELEASE, 5, 7 },
		      { FREE_FOLIO, 5, 6 }, { FREE_FOLIO, 6, 7 });
	KUNIT_EXPECT_EQ(test, byte_at(4), 0x44);
	KUNIT_EXPECT_EQ(test, byte_at(5), -1);
	KUNIT_EXPECT_EQ(test, byte_at(7), 0x47);
	expect_accounts(test);
}

static void gmem_large_punch(struct kunit *test)
{
	fill_block(0, 0x10);
	fill_block(4, 0x44);
	fill_block(8, 0x88);
	start_here();

	KUNIT_EXPECT_EQ(test, punch(2, 9), 0);
	EXPECT_EVENTS(test, { PREPARE, 2, 4 }, { PREPARE, 4, 8 }, { PREPARE, 8, 9 },
		      { INVALIDATE, 2, 9 }, { RELEASE, 2, 9 }, { FREE_FOLIO, 2, 4 },
		      { FREE_FOLIO, 4, 8 }, { FREE_FOLIO, 8, 9 });
	KUNIT_EXPECT_EQ(test, byte_at(1), 0x11);
	KUNIT_EXPECT_EQ(test, byte_at(2), -1);
	KUNIT_EXPECT_EQ(test, byte_at(8), -1);
	KUNIT_EXPECT_EQ(test, byte_at(9), 0x89);
	KUNIT_EXPECT_EQ(test, order_at(10), 1);
	expect_accounts(test);
}

/* The platform keeps all of a folio: all of it is lost, and nothing else. */
static void gmem_large_make_shared_fails(struct kunit *test)
{
	fill_block(4, 0x44);
	fill_block(8, 0x88);
	KUNIT_ASSERT_EQ(test, convert(4, 12, true, 0), 0);

	fail_hook(MAKE_SHARED, 1, -EIO);
	KUNIT_EXPECT_EQ(test, convert(4, 12, false, 0), 0);
	KUNIT_EXPECT_EQ(test, pages_leaked(), LARGE);
	KUNIT_EXPECT_EQ(test, order_at(4), -1);
	expect_block(test, 8, 0x88);
	expect_state(test, 0, NR_PAGES, false);
	expect_accounts(test);
}

static int open_vm(struct kunit *test)
{
	struct file *dev __free(fput) = NULL;
	struct file *file;

	file = kvm_gmem_kunit_open_kvm();
	if (IS_ERR(file))
		kunit_skip(test, "no /dev/kvm: %ld", PTR_ERR(file));
	dev = file;

	dbl->vm_fd = dev->f_op->unlocked_ioctl(dev, KVM_CREATE_VM, 0);
	if (dbl->vm_fd < 0)
		return dbl->vm_fd;

	file = fget(dbl->vm_fd);
	dbl->kvm = file->private_data;
	fput(file);
	return 0;
}

static int open_file(const struct kvm_gmem_ops *ops, u64 flags, pgoff_t nr)
{
	struct file *file;

	dbl->fd = get_unused_fd_flags(0);
	if (dbl->fd < 0)
		return dbl->fd;

	file = kvm_gmem_create_file(dbl->kvm, ops, nr << PAGE_SHIFT,
				    GUEST_MEMFD_FLAG_INIT_SHARED | flags);
	if (IS_ERR(file)) {
		put_unused_fd(dbl->fd);
		dbl->fd = -1;
		return PTR_ERR(file);
	}

	fd_install(dbl->fd, file);
	dbl->file = file;
	dbl->f = file->private_data;
	return 0;
}

/* A VM with a file of @nr pages, the first NR_PAGES of them in a slot. */
static int gmem_test_init_sized(struct kunit *test, const struct kvm_gmem_ops *ops,
				u64 flags, pgoff_t nr)
{
	unsigned long addr;
	int r;

	dbl = kunit_kzalloc(test, sizeof(*dbl), GFP_KERNEL);
	if (!dbl)
		return -ENOMEM;

	dbl->test = test;
	dbl->vm_fd = -1;
	dbl->fd = -1;
	dbl->content[true] = (struct kvm_gmem_content){ ZERO | PRESERVE | DISCARD, PRESERVE };
	dbl->content[false] = dbl->content[true];

	/* The caller's mm is to be that of the VM. */
	addr = kunit_vm_mmap(test, NULL, 0, PAGE_SIZE, PROT_READ | PROT_WRITE,
			     MAP_ANONYMOUS | MAP_PRIVATE, 0);
	if (!addr || IS_ERR_VALUE(addr))
		return -ENOMEM;
	dbl->umem = (void __user *)addr;

	r = open_vm(test);
	if (!r)
		r = open_file(ops, flags, nr);
	if (!r)
		r = set_slot(NR_PAGES);
	start_here();
	return r;
}

static int gmem_test_init(struct kunit *test, const struct kvm_gmem_ops *ops, u64 flags)
{
	return gmem_test_init_sized(test, ops, flags, NR_PAGES);
}

static int gmem_core_init(struct kunit *test)
{
	return gmem_test_init(test, &double_ops, 0);
}

static int gmem_large_init(struct kunit *test)
{
	if (!IS_ENABLED(CONFIG_TRANSPARENT_HUGEPAGE))
		kunit_skip(test, "Folios can't be split without THP");

	return gmem_test_init(test, &double_large_ops, GUEST_MEMFD_FLAG_HUGE);
}

static void gmem_core_exit(struct kunit *test)
{
	if (dbl && dbl->fd >= 0)
		close_fd(dbl->fd);
	if (dbl && dbl->vm_fd >= 0)
		close_fd(dbl->vm_fd);
	flush_delayed_fput();
	dbl = NULL;
}

#ifdef CONFIG_KVM_SW_PROTECTED_VM
/* What the table in the document says of content. */
static void gmem_core_sw_protected(struct kunit *test)
{
	static const char * const rows[] = {
		"KVM_X86_SW_PROTECTED_VM   shared   PRESERVE        ZERO, PRESERVE, DISCARD",
		"KVM_X86_SW_PROTECTED_VM   private  PRESERVE        ZERO, PRESERVE, DISCARD",
	};
	struct kvm *kvm = kunit_kzalloc(test, sizeof(*kvm), GFP_KERNEL);
	int i;

	KUNIT_ASSERT_NOT_NULL(test, kvm);
	kvm->arch.vm_type = KVM_X86_SW_PROTECTED_VM;
	for (i = 0; i < ARRAY_SIZE(rows); i++)
		kvm_gmem_kunit_content_row(test, kvm, kvm_arch_gmem_ops(kvm),
					   "KVM_X86_SW_PROTECTED_VM", i, rows[i]);
}
#endif

#include "gmem_claim_test.c"
#include "gmem_direct_map_test.c"

static struct kunit_case gmem_core_cases[] = {
#ifdef CONFIG_KVM_SW_PROTECTED_VM
	KUNIT_CASE(gmem_core_sw_protected),
#endif
	KUNIT_CASE(gmem_core_to_private),
	KUNIT_CASE(gmem_core_to_shared),
	KUNIT_CASE(gmem_core_mixed_range),
	KUNIT_CASE(gmem_core_preserve),
	KUNIT_CASE(gmem_core_content),
	KUNIT_CASE(gmem_core_zero_poisoned),
	KUNIT_CASE(gmem_core_zap),
	KUNIT_CASE(gmem_core_veto),
	KUNIT_CASE(gmem_core_make_shared_fails),
	KUNIT_CASE(gmem_core_make_private),
	KUNIT_CASE(gmem_core_discard),
	KUNIT_CASE(gmem_core_punch),
	KUNIT_CASE(gmem_core_punch_as_other),
	KUNIT_CASE(gmem_core_reclaim_fails),
	KUNIT_CASE(gmem_core_map_page),
	KUNIT_CASE(gmem_core_access),
	KUNIT_CASE(gmem_core_access_cmpxchg),
#ifdef CONFIG_HAVE_KVM_PFNCACHE
	KUNIT_CASE(gmem_core_access_cache),
#endif
	KUNIT_CASE(gmem_core_unbind),
	KUNIT_CASE(gmem_core_bind_twice),
	KUNIT_CASE(gmem_core_release),
	KUNIT_CASE(gmem_core_release_leaks),
	KUNIT_CASE(gmem_core_drop_leaks),
	KUNIT_CASE(gmem_core_walk),
	KUNIT_CASE(gmem_core_batches),
#ifdef CONFIG_HAVE_KVM_ARCH_GMEM_POPULATE
	KUNIT_CASE(gmem_core_populate),
#endif
	{}
};

static struct kunit_suite gmem_core_suite = {
	.name = "gmem_core",
	.init = gmem_core_init,
	.exit = gmem_core_exit,
	.test_cases = gmem_core_cases,
};

static struct kunit_case gmem_large_cases[] = {
	KUNIT_CASE(gmem_large_allocate),
	KUNIT_CASE(gmem_large_zero),
	KUNIT_CASE(gmem_large_zeroes_private),
	KUNIT_CASE(gmem_large_punch_mixed),
	KUNIT_CASE(gmem_large_walk),
	KUNIT_CASE(gmem_large_convert),
	KUNIT_CASE(gmem_large_prepare),
	KUNIT_CASE(gmem_large_replace_refused),
	KUNIT_CASE(gmem_large_held),
	KUNIT_CASE(gmem_large_widened),
	KUNIT_CASE(gmem_large_late_fault),
	KUNIT_CASE(gmem_large_mapping),
	KUNIT_CASE(gmem_large_replace),
	KUNIT_CASE(gmem_large_replace_default),
	KUNIT_CASE(gmem_large_discard),
	KUNIT_CASE(gmem_large_punch),
	KUNIT_CASE(gmem_large_make_shared_fails),
	KUNIT_CASE(gmem_large_claim),
	{}
};

static struct kunit_suite gmem_large_suite = {
	.name = "gmem_large",
	.init = gmem_large_init,
	.exit = gmem_core_exit,
	.test_cases = gmem_large_cases,
};

kunit_test_suites(&gmem_core_suite, &gmem_claim_suite, &gmem_large_suite, &hidden_suite,
		  &hidden_fixed_suite, &blocks_suite);
