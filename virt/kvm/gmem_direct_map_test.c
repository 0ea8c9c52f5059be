// SPDX-License-Identifier: GPL-2.0-only
/*
 * KUnit tests of memory outside the direct map.  Included by gmem_core_test.c, whose VM,
 * file and helpers they use.
 *
 * The direct map itself is looked at, page by page: what is in the file, and private if
 * the file is in place, is out, and nothing else is.
 */

#include <linux/uaccess.h>

#define HIDDEN		GUEST_MEMFD_FLAG_NO_DIRECT_MAP

/* A VM type that has in-place files, and no say in anything. */
static const struct kvm_gmem_ops hidden_ops = {
	.create_flags	 = GUEST_MEMFD_FLAG_INIT_SHARED | GUEST_MEMFD_FLAG_HUGE | HIDDEN,
	.attributes	 = KVM_MEMORY_ATTRIBUTE_PRIVATE,
	.max_order	 = LARGE_ORDER,
	.zap_on_convert	 = true,
	.aops		 = &kvm_gmem_default_aops,
	.content	 = double_content,
	.may_convert	 = double_may_convert,
	.prepare_convert = double_prepare_convert,
};

/* One without private memory. */
static const struct kvm_gmem_ops hidden_fixed_ops = {
	.create_flags	 = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED |
			   GUEST_MEMFD_FLAG_HUGE | HIDDEN,
	.max_order	 = LARGE_ORDER,
	.zap_on_convert	 = true,
	.aops		 = &kvm_gmem_default_aops,
};

static struct page *page_at(pgoff_t index)
{
	struct folio *folio = filemap_get_folio(dbl->f->inode->i_mapping, index);

	if (IS_ERR(folio))
		return NULL;

	folio_put(folio);
	return folio_file_page(folio, index);
}

static void expect_present(struct kunit *test, pgoff_t start, pgoff_t end)
{
	for (; start < end; start++)
		KUNIT_EXPECT_NOT_NULL_MSG(test, page_at(start), "page %lu", start);
}

/* Can this CPU read @page?  If it could before, its TLB must not know of that any more. */
static bool is_readable(struct page *page)
{
	u8 byte;

	return !copy_from_kernel_nofault(&byte, page_address(page), sizeof(byte));
}

/* All that is present in the file is where it should be. */
static void expect_hidden(struct kunit *test)
{
	struct inode *inode = dbl->f->inode;
	struct page *page;
	pgoff_t index;
	bool out;

	for (index = 0; index < NR_PAGES; index++) {
		page = page_at(index);
		if (!page)
			continue;

		out = !GMEM_I(inode)->in_place || kvm_gmem_index_is_private(inode, index);
		KUNIT_EXPECT_EQ_MSG(test, direct_map_has(page), !out, "page %lu", index);
		KUNIT_EXPECT_EQ_MSG(test, is_readable(page), !out, "page %lu", index);
	}
}

static void hidden_allocate(struct kunit *test)
{
	KUNIT_ASSERT_EQ(test, convert(0, 8, true, 0), 0);
	KUNIT_ASSERT_EQ(test, allocate(2, 13), 0);
	expect_present(test, 2, 13);
	expect_hidden(test);

	/* What was allocated after it became private is as good as zeroed at a touch. */
	KUNIT_EXPECT_EQ(test, byte_at(2), 0);
	KUNIT_EXPECT_EQ(test, order_at(4), LARGE_ORDER);
	expect_accounts(test);
}

static void hidden_convert(struct kunit *test)
{
	fill_block(0, 0x10);
	fill_block(4, 0x44);
	fill(9, 0x99);
	expect_hidden(test);

	/* Whole folios, a part of one, and a page; and holes. */
	KUNIT_EXPECT_EQ(test, convert(2, 12, true, PRESERVE), 0);
	expect_state(test, 2, 12, true);
	expect_hidden(test);
	expect_block(test, 0, 0x10);
	expect_block(test, 4, 0x44);
	KUNIT_EXPECT_EQ(test, byte_at(9), 0x99);

	/* Back, in parts that cut a folio which is out. */
	KUNIT_EXPECT_EQ(test, convert(5, 6, false, PRESERVE), 0);
	expect_hidden(test);
	KUNIT_EXPECT_EQ(test, convert(3, 10, false, PRESERVE), 0);
	expect_hidden(test);
	expect_block(test, 4, 0x44);
	expect_accounts(test);
}

/* A bad page may be held, and isn't taken away from under its holder; nor is it put back. */
static void hidden_convert_bad(struct kunit *test)
{
	struct page *page;

	/* A single page, as its block is of two states. */
	KUNIT_ASSERT_EQ(test, convert(10, 11, true, 0), 0);
	fill(9, 0x99);
	KUNIT_ASSERT_EQ(test, order_at(9), 0);
	page = page_at(9);
	KUNIT_ASSERT_NOT_NULL(test, page);
	get_page(page);
	SetPageHWPoison(page);
	KUNIT_EXPECT_EQ(test, convert(8, 10, true, PRESERVE), 0);
	KUNIT_EXPECT_TRUE(test, direct_map_has(page));
	KUNIT_EXPECT_TRUE(test, is_readable(page));
	KUNIT_EXPECT_EQ(test, convert(8, 10, false, PRESERVE), 0);
	KUNIT_EXPECT_EQ(test, convert(8, 10, true, ZERO), 0);
	KUNIT_EXPECT_TRUE(test, direct_map_has(page));
	KUNIT_EXPECT_EQ(test, punch(8, 12), 0);
	KUNIT_EXPECT_TRUE(test, direct_map_has(page));
	ClearPageHWPoison(page);
	expect_hidden(test);
	put_page(page);
}

static void hidden_zero(struct kunit *test)
{
	fill_block(0, 0x10);
	fill_block(4, 0x44);
	KUNIT_EXPECT_EQ(test, convert(0, 6, true, ZERO), 0);
	expect_hidden(test);
	KUNIT_EXPECT_EQ(test, byte_at(5), 0);
	KUNIT_EXPECT_EQ(test, byte_at(6), 0x46);

	/* Private already, hence out already, and zeroed where it is. */
	fill(1, 0x11);
	KUNIT_EXPECT_EQ(test, byte_at(1), 0x11);
	KUNIT_EXPECT_EQ(test, convert(0, 3, true, ZERO), 0);
	KUNIT_EXPECT_LE(test, byte_at(1), 0);
	expect_hidden(test);

	fill(1, 0x11);
	KUNIT_EXPECT_EQ(test, convert(0, 3, false, ZERO), 0);
	KUNIT_EXPECT_LE(test, byte_at(1), 0);
	expect_hidden(test);
}

/* What fails leaves everything where it was. */
static void hidden_fails(struct kunit *test)
{
	struct folio *folio;
	pgoff_t error;

	fill_block(0, 0x10);
	fill_block(4, 0x44);
	fail_hook(MAY_CONVERT, 1, -EPERM);
	KUNIT_EXPECT_EQ(test, convert(0, 8, true, 0), -EPERM);
	expect_hidden(test);

	folio = filemap_get_folio(dbl->f->inode->i_mapping, 4);
	KUNIT_ASSERT_FALSE(test, IS_ERR(folio));
	KUNIT_EXPECT_EQ(test, try_convert(0, 8, true, 0, &error), -EAGAIN);
	KUNIT_EXPECT_EQ(test, error, 4);
	expect_state(test, 0, 8, false);
	expect_hidden(test);
	folio_put(folio);

	KUNIT_EXPECT_EQ(test, convert(0, 8, true, 0), 0);
	expect_hidden(test);
	expect_block(test, 4, 0x44);
}

static void expect_zeroed(struct kunit *test, struct page *page, pgoff_t index)
{
	/* Don't touch what isn't there. */
	KUNIT_ASSERT_TRUE_MSG(test, direct_map_has(page), "page %lu", index);
	KUNIT_EXPECT_NULL_MSG(test, memchr_inv(page_address(page), 0, PAGE_SIZE),
			      "page %lu", index);
}

/* What leaves the file is back, and has no secrets, however it leaves. */
static void hidden_leave(struct kunit *test)
{
	struct page *pages[NR_PAGES];
	pgoff_t index;

	KUNIT_ASSERT_EQ(test, convert(0, NR_PAGES, true, 0), 0);
	KUNIT_ASSERT_EQ(test, allocate(0, NR_PAGES), 0);
	for (index = 0; index < NR_PAGES; index++) {
		fill(index, 0x50 + index);
		pages[index] = page_at(index);
		KUNIT_ASSERT_NOT_NULL(test, pages[index]);
		get_page(pages[index]);
	}

	/* The reference is in the way of a split: whole folios. */
	KUNIT_EXPECT_EQ(test, punch(0, 4), 0);
	KUNIT_EXPECT_EQ(test, convert(4, 8, true, DISCARD), 0);
	KUNIT_EXPECT_EQ(test, convert(8, 12, false, DISCARD), 0);
	for (index = 0; index < NR_PAGES; index++)
		KUNIT_EXPECT_EQ_MSG(test, direct_map_has(pages[index]), index < 12,
				    "page %lu", index);
	for (index = 0; index < 12; index++)
		expect_zeroed(test, pages[index], index);

	close_fd(dbl->fd);
	dbl->fd = -1;
	flush_delayed_fput();
	for (index = 0; index < NR_PAGES; index++) {
		expect_zeroed(test, pages[index], index);
		put_page(pages[index]);
	}
}

/* Who holds an orphan that was shared goes on to have its bytes. */
static void hidden_leave_shared(struct kunit *test)
{
	struct page *page;

	fill(9, 0x99);
	page = page_at(9);
	KUNIT_ASSERT_NOT_NULL(test, page);
	get_page(page);
	KUNIT_EXPECT_EQ(test, punch(8, 12), 0);
	KUNIT_EXPECT_TRUE(test, direct_map_has(page));
	KUNIT_EXPECT_NULL(test, memchr_inv(page_address(page), 0x99, PAGE_SIZE));
	put_page(page);
}

/*
 * One page of a large folio is bad, and the machine check's handler has taken it out: that
 * says nothing of the others.
 */
static void hidden_leave_bad(struct kunit *test)
{
	struct direct_map_flush flush = {};
	struct page *pages[2][LARGE];
	struct folio *folio;
	int i, j;

	KUNIT_ASSERT_EQ(test, convert(4, 8, true, 0), 0);
	for (i = 0; i < 2; i++) {
		fill_block(LARGE * i, 0x10);
		folio = page_folio(page_at(LARGE * i));
		for (j = 0; j < LARGE; j++)
			pages[i][j] = folio_page(folio, j);
		folio_get(folio);
		SetPageHWPoison(pages[i][0]);
		folio_set_has_hwpoisoned(folio);
	}
	KUNIT_ASSERT_EQ(test, direct_map_take_out(pages[0][0], 1, &flush), 0);
	direct_map_flush(&flush);

	KUNIT_EXPECT_EQ(test, punch(0, 2 * LARGE), 0);
	for (i = 0; i < 2; i++) {
		KUNIT_EXPECT_FALSE(test, direct_map_has(pages[i][0]));
		for (j = 1; j < LARGE; j++) {
			KUNIT_ASSERT_TRUE(test, direct_map_has(pages[i][j]));
			/* What was shared may be an orphan in someone's hands. */
			KUNIT_EXPECT_NULL(test, memchr_inv(page_address(pages[i][j]),
							   i ? 0 : 0x10 + j, PAGE_SIZE));
		}
		ClearPageHWPoison(pages[i][0]);
		KUNIT_EXPECT_EQ(test, direct_map_put_back(pages[i][0], 1), 0);
		folio_clear_has_hwpoisoned(page_folio(pages[i][0]));
		folio_put(page_folio(pages[i][0]));
	}
}

/* A piece of a folio that is out leaves, the rest stays out. */
static void hidden_leave_piece(struct kunit *test)
{
	KUNIT_ASSERT_EQ(test, convert(0, NR_PAGES, true, 0), 0);
	fill_block(0, 0x10);
	fill_block(4, 0x44);
	KUNIT_EXPECT_EQ(test, punch(1, 2), 0);
	KUNIT_EXPECT_EQ(test, convert(6, 7, true, DISCARD), 0);
	KUNIT_EXPECT_EQ(test, byte_at(0), 0x10);
	KUNIT_EXPECT_EQ(test, byte_at(2), 0x12);
	KUNIT_EXPECT_EQ(test, byte_at(5), 0x45);
	KUNIT_EXPECT_EQ(test, byte_at(7), 0x47);
	expect_hidden(test);
}

/* A folio that loses the race for its index was out, and must not be freed so. */
static void hidden_loses_race(struct kunit *test)
{
	struct address_space *mapping = dbl->f->inode->i_mapping;
	struct folio *folio;
	struct page *page;

	KUNIT_ASSERT_EQ(test, convert(0, 4, true, 0), 0);
	KUNIT_ASSERT_EQ(test, allocate(0, 4), 0);

	folio = kvm_gmem_alloc_folio(dbl->f->inode, 0, 0, true);
	KUNIT_ASSERT_NOT_NULL(test, folio);
	page = &folio->page;

	filemap_invalidate_lock_shared(mapping);
	KUNIT_EXPECT_EQ(test, kvm_gmem_insert_folio(dbl->f, folio, 0), -EEXIST);
	filemap_invalidate_unlock_shared(mapping);
	KUNIT_EXPECT_TRUE(test, direct_map_has(page));
	kvm_gmem_put_new_folio(folio);
	expect_hidden(test);
}

/* In a file of fixed state all is out, from the first moment on. */
static void hidden_fixed(struct kunit *test)
{
	KUNIT_ASSERT_EQ(test, allocate(0, 6), 0);
	fill(9, 0x99);
	expect_present(test, 0, 6);
	expect_hidden(test);
	KUNIT_EXPECT_TRUE(test, mapping_no_direct_map(dbl->f->inode->i_mapping));
	KUNIT_EXPECT_EQ(test, punch(2, 3), 0);
	KUNIT_EXPECT_EQ(test, byte_at(9), 0x99);
	KUNIT_EXPECT_EQ(test, byte_at(3), 0);
	expect_hidden(test);
}

/*
 * Pages of the machine that the kernel can't reach, but for those that are reserved, and
 * with @good those that memory failure has struck.
 */
static unsigned long __nr_out(bool good)
{
	unsigned long pfn, nr = 0;
	struct page *page;
	int nid;

	for_each_online_node(nid) {
		for (pfn = node_start_pfn(nid); pfn < node_end_pfn(nid); pfn++) {
			page = pfn_to_online_page(pfn);
			if (page && !PageReserved(page) && !direct_map_has(page) &&
			    !(good && PageHWPoison(page)))
				nr++;
			if (!(pfn % SZ_64K))
				cond_resched();
		}
	}
	return nr;
}

static unsigned long nr_out(void)
{
	return __nr_out(false);
}

/*
 * Whoever had memory outside the direct map before, be it another test, has left nothing
 * behind: no page that is good is out, as long as the file has none.  (What "unpoison" has
 * declared good is still out: of tests that do that to files with the flag, run it first.)
 */
static void hidden_leftovers(struct kunit *test)
{
	KUNIT_EXPECT_EQ(test, __nr_out(true), 0);
}

/*
 * Walk the direct map of the whole machine: out is what is in the file, and when that is
 * closed everything is as before.
 */
static void hidden_machine(struct kunit *test)
{
	unsigned long before = nr_out();

	KUNIT_ASSERT_EQ(test, convert(0, 10, true, 0), 0);
	KUNIT_ASSERT_EQ(test, allocate(0, NR_PAGES), 0);
	KUNIT_EXPECT_EQ(test, nr_out(), before + 10);
	KUNIT_ASSERT_EQ(test, convert(1, 3, false, 0), 0);
	KUNIT_EXPECT_EQ(test, nr_out(), before + 8);

	close_fd(dbl->fd);
	dbl->fd = -1;
	flush_delayed_fput();
	KUNIT_EXPECT_EQ(test, nr_out(), before);
}

/* ---- Blocks ---- */

#define BLOCK_PAGES	(SZ_2M >> PAGE_SHIFT)
#define NR_BLOCKS	3

/* How many pages are out that were not when the test began. */
static long nr_blocks_out(void)
{
	return nr_out() - dbl->nr_out;
}

static void close_file(void)
{
	close_fd(dbl->fd);
	dbl->fd = -1;
	flush_delayed_fput();
}

/* What is asked for first takes 2 MiB out at once, what comes then finds it there. */
static void blocks_allocate(struct kunit *test)
{
	struct page *first;
	pgoff_t i;

	KUNIT_ASSERT_EQ(test, allocate(9, 10), 0);
	KUNIT_EXPECT_EQ(test, nr_blocks_out(), BLOCK_PAGES);
	first = page_at(9);
	KUNIT_ASSERT_NOT_NULL(test, first);

	KUNIT_ASSERT_EQ(test, allocate(0, BLOCK_PAGES), 0);
	KUNIT_EXPECT_EQ(test, nr_blocks_out(), BLOCK_PAGES);
	for (i = 0; i < BLOCK_PAGES; i++) {
		KUNIT_EXPECT_EQ(test, byte_at(i), 0);
		KUNIT_EXPECT_LT(test, page_to_pfn(page_at(i)) - page_to_pfn(first), BLOCK_PAGES);
	}

	KUNIT_ASSERT_EQ(test, allocate(BLOCK_PAGES, BLOCK_PAGES + 1), 0);
	KUNIT_EXPECT_EQ(test, nr_blocks_out(), 2 * BLOCK_PAGES);
	close_file();
	KUNIT_EXPECT_EQ(test, nr_blocks_out(), 0);
}

/* All of a block leaves: it is back, and has nobody's bytes. */
static void blocks_punch_all(struct kunit *test)
{
	struct page *page;

	KUNIT_ASSERT_EQ(test, allocate(0, BLOCK_PAGES), 0);
	fill(7, 0x77);
	page = page_at(7);
	KUNIT_ASSERT_NOT_NULL(test, page);
	get_page(page);
	KUNIT_EXPECT_EQ(test, punch(0, BLOCK_PAGES), 0);
	KUNIT_EXPECT_EQ(test, nr_blocks_out(), 0);
	expect_zeroed(test, page, 7);
	KUNIT_EXPECT_EQ(test, page_count(page), 1);
	put_page(page);
}

/* A part of it leaves: that is back alone, and what stays is as it was. */
static void blocks_punch_part(struct kunit *test)
{
	struct page *page;
	pgoff_t i;

	for (i = 0; i < BLOCK_PAGES; i++)
		fill(i, i);
	page = page_at(7);
	KUNIT_ASSERT_NOT_NULL(test, page);
	get_page(page);
	KUNIT_EXPECT_EQ(test, punch(5, 9), 0);
	KUNIT_EXPECT_EQ(test, nr_blocks_out(), BLOCK_PAGES - 4);
	expect_zeroed(test, page, 7);
	KUNIT_EXPECT_EQ(test, page_count(page), 1);
	put_page(page);

	/* From now on one by one. */
	KUNIT_EXPECT_EQ(test, punch(11, 12), 0);
	KUNIT_EXPECT_EQ(test, nr_blocks_out(), BLOCK_PAGES - 5);
	for (i = 0; i < BLOCK_PAGES; i++)
		KUNIT_EXPECT_EQ(test, byte_at(i), i == 11 || (i >= 5 && i < 9) ? -1 : (u8)i);

	/* The last one: the same block, or what is left of it, is in the list no more. */
	KUNIT_EXPECT_EQ(test, punch(0, BLOCK_PAGES), 0);
	KUNIT_EXPECT_EQ(test, nr_blocks_out(), 0);
}

/* A hole while there are fresh pages: they serve on. */
static void blocks_punch_early(struct kunit *test)
{
	KUNIT_ASSERT_EQ(test, allocate(0, 4), 0);
	KUNIT_EXPECT_EQ(test, punch(1, 2), 0);
	KUNIT_EXPECT_EQ(test, nr_blocks_out(), BLOCK_PAGES - 1);
	KUNIT_ASSERT_EQ(test, allocate(1, 2), 0);
	KUNIT_EXPECT_EQ(test, nr_blocks_out(), BLOCK_PAGES - 1);
	KUNIT_EXPECT_EQ(test, byte_at(1), 0);
	KUNIT_ASSERT_EQ(test, allocate(0, BLOCK_PAGES - 1), 0);
	KUNIT_EXPECT_EQ(test, nr_blocks_out(), BLOCK_PAGES - 1);
	close_file();
	KUNIT_EXPECT_EQ(test, nr_blocks_out(), 0);
}

/* What becomes shared is in, and an ordinary page from then on. */
static void blocks_convert(struct kunit *test)
{
	pgoff_t i;

	KUNIT_ASSERT_EQ(test, convert(0, NR_BLOCKS * BLOCK_PAGES, true, 0), 0);
	for (i = 0; i < BLOCK_PAGES + 2; i++)
		fill(i, i);
	KUNIT_EXPECT_EQ(test, nr_blocks_out(), 2 * BLOCK_PAGES);

	KUNIT_EXPECT_EQ(test, convert(3, 5, false, PRESERVE), 0);
	KUNIT_EXPECT_TRUE(test, direct_map_has(page_at(3)));
	KUNIT_EXPECT_FALSE(test, kvm_gmem_is_of_block(page_folio(page_at(4))));
	KUNIT_EXPECT_EQ(test, nr_blocks_out(), 2 * BLOCK_PAGES - 2);
	KUNIT_EXPECT_EQ(test, convert(3, 4, true, PRESERVE), 0);
	KUNIT_EXPECT_EQ(test, nr_blocks_out(), 2 * BLOCK_PAGES - 1);
	for (i = 0; i < BLOCK_PAGES + 2; i++)
		KUNIT_EXPECT_EQ(test, byte_at(i), (u8)i);

	KUNIT_EXPECT_EQ(test, convert(0, BLOCK_PAGES, false, DISCARD), 0);
	KUNIT_EXPECT_EQ(test, nr_blocks_out(), BLOCK_PAGES);
	KUNIT_EXPECT_EQ(test, convert(0, NR_BLOCKS * BLOCK_PAGES, false, PRESERVE), 0);
	KUNIT_EXPECT_EQ(test, byte_at(BLOCK_PAGES + 1), (BLOCK_PAGES + 1) & 0xff);
	/* Nothing of the file is out, but what is fresh. */
	KUNIT_EXPECT_EQ(test, nr_blocks_out(), BLOCK_PAGES - 2);
	close_file();
	KUNIT_EXPECT_EQ(test, nr_blocks_out(), 0);
}

/* A page of a block that comes too late, or for an index that is shared by now. */
static void blocks_lose_race(struct kunit *test)
{
	struct address_space *mapping = dbl->f->inode->i_mapping;
	struct folio *late, *shown;
	struct page *page;
	int i;

	KUNIT_ASSERT_EQ(test, convert(0, 8, true, 0), 0);
	KUNIT_ASSERT_EQ(test, allocate(0, 4), 0);
	late = kvm_gmem_alloc_folio(dbl->f->inode, 0, 0, true);
	shown = kvm_gmem_alloc_folio(dbl->f->inode, 4, 0, true);
	KUNIT_ASSERT_NOT_NULL(test, late);
	KUNIT_ASSERT_NOT_NULL(test, shown);
	page = &shown->page;
	KUNIT_EXPECT_TRUE(test, kvm_gmem_is_of_block(shown));
	KUNIT_ASSERT_EQ(test, convert(4, 5, false, 0), 0);

	filemap_invalidate_lock_shared(mapping);
	KUNIT_EXPECT_EQ(test, kvm_gmem_insert_folio(dbl->f, late, 0), -EEXIST);
	folio_mark_uptodate(late);
	kvm_gmem_put_new_folio(late);
	/* However often that is, it uses nothing up, and leaves no content behind. */
	for (i = 0; i < 2 * BLOCK_PAGES; i++) {
		KUNIT_EXPECT_PTR_EQ(test, kvm_gmem_alloc_folio(dbl->f->inode, 0, 0, true), late);
		KUNIT_EXPECT_FALSE(test, folio_test_uptodate(late));
		kvm_gmem_put_new_folio(late);
	}
	KUNIT_EXPECT_EQ(test, nr_blocks_out(), BLOCK_PAGES);
	KUNIT_EXPECT_EQ(test, kvm_gmem_insert_folio(dbl->f, shown, 4), 0);
	filemap_invalidate_unlock_shared(mapping);
	folio_unlock(shown);
	folio_put(shown);

	expect_zeroed(test, page, 4);
	expect_hidden(test);
	close_file();
	KUNIT_EXPECT_EQ(test, nr_blocks_out(), 0);
}

/* @page was bad, for a test, and is in nobody's hands but the caller's. */
static void heal(struct kunit *test, struct page *page)
{
	ClearPageHWPoison(page);
	KUNIT_EXPECT_EQ(test, direct_map_put_back(page, 1), 0);
	KUNIT_EXPECT_TRUE(test, direct_map_has(page));
	/* While it was out, "unpoison" must not have found it unused. */
	KUNIT_EXPECT_GT(test, page_count(page), 1);
	while (page_count(page) > 1)
		put_page(page);
	put_page(page);
}

/* A page that memory failure has struck stays out for good, the others don't. */
static void blocks_bad_page(struct kunit *test)
{
	struct page *bad, *fresh;

	KUNIT_ASSERT_EQ(test, allocate(0, 8), 0);
	bad = page_at(3);
	KUNIT_ASSERT_NOT_NULL(test, bad);
	fresh = page_at(7) + 1;
	/* As memory failure does, which leaves what is in no file as it is. */
	get_page(bad);
	SetPageHWPoison(bad);
	SetPageHWPoison(fresh);

	/* The next page is not the bad one. */
	KUNIT_ASSERT_EQ(test, allocate(8, 9), 0);
	KUNIT_EXPECT_PTR_EQ(test, page_at(8), fresh + 1);

	KUNIT_EXPECT_EQ(test, punch(0, BLOCK_PAGES), 0);
	KUNIT_EXPECT_EQ(test, nr_blocks_out(), 2);
	KUNIT_EXPECT_FALSE(test, direct_map_has(bad));
	KUNIT_EXPECT_FALSE(test, direct_map_has(fresh));
	heal(test, bad);
	heal(test, fresh);
}

/* No place in a block is too far out to be looked at. */
static void blocks_bad_edges(struct kunit *test)
{
	static const pgoff_t edges[] = { 0, BLOCK_PAGES - 1 };
	struct page *bad;
	int i;

	for (i = 0; i < ARRAY_SIZE(edges); i++) {
		KUNIT_ASSERT_EQ(test, allocate(0, BLOCK_PAGES), 0);
		bad = page_at(edges[i]);
		KUNIT_ASSERT_NOT_NULL(test, bad);
		KUNIT_ASSERT_EQ(test, page_to_pfn(bad) % BLOCK_PAGES, edges[i]);
		get_page(bad);
		SetPageHWPoison(bad);

		KUNIT_EXPECT_EQ(test, punch(0, BLOCK_PAGES), 0);
		KUNIT_EXPECT_EQ(test, nr_blocks_out(), 1);
		KUNIT_EXPECT_FALSE(test, direct_map_has(bad));
		heal(test, bad);
	}
}

/* The same where each page of the block goes back alone. */
static void blocks_bad_split(struct kunit *test)
{
	struct page *bad;

	KUNIT_ASSERT_EQ(test, allocate(0, 8), 0);
	KUNIT_EXPECT_EQ(test, punch(5, 6), 0);
	bad = page_at(3);
	KUNIT_ASSERT_NOT_NULL(test, bad);
	get_page(bad);
	SetPageHWPoison(bad);
	KUNIT_EXPECT_EQ(test, punch(3, 4), 0);
	KUNIT_EXPECT_EQ(test, nr_blocks_out(), BLOCK_PAGES - 1);
	KUNIT_EXPECT_FALSE(test, direct_map_has(bad));
	/* This one's, and two. */
	KUNIT_EXPECT_EQ(test, page_count(bad), 3);
	heal(test, bad);
	close_file();
	KUNIT_EXPECT_EQ(test, nr_blocks_out(), 0);
}

/* What nobody needs at the moment goes back when memory is short, and no new block comes. */
static void blocks_shrink(struct kunit *test)
{
	struct mutex *lock = &GMEM_I(dbl->f->inode)->blocks_lock;
	struct folio *folio;

	KUNIT_ASSERT_EQ(test, allocate(0, 4), 0);
	fill(3, 0x33);
	mutex_lock(lock);
	KUNIT_EXPECT_EQ(test, kvm_gmem_shrink_blocks(BLOCK_PAGES), 0);
	mutex_unlock(lock);
	KUNIT_EXPECT_EQ(test, nr_blocks_out(), BLOCK_PAGES);

	KUNIT_EXPECT_EQ(test, kvm_gmem_shrink_blocks(1), BLOCK_PAGES - 4);
	KUNIT_EXPECT_EQ(test, nr_blocks_out(), 4);
	KUNIT_EXPECT_EQ(test, kvm_gmem_shrink_blocks(1), 0);
	KUNIT_ASSERT_EQ(test, allocate(4, 5), 0);
	KUNIT_EXPECT_EQ(test, nr_blocks_out(), 5);
	KUNIT_EXPECT_EQ(test, byte_at(3), 0x33);
	expect_hidden(test);
	KUNIT_EXPECT_EQ(test, punch(0, 5), 0);
	KUNIT_EXPECT_EQ(test, nr_blocks_out(), 0);

	/* A block of which no page is in the file. */
	GMEM_I(dbl->f->inode)->no_blocks = 0;
	folio = kvm_gmem_alloc_folio(dbl->f->inode, 0, 0, true);
	KUNIT_ASSERT_NOT_NULL(test, folio);
	kvm_gmem_put_new_folio(folio);
	KUNIT_EXPECT_EQ(test, nr_blocks_out(), BLOCK_PAGES);
	KUNIT_EXPECT_EQ(test, kvm_gmem_shrink_blocks(1), BLOCK_PAGES);
	KUNIT_EXPECT_EQ(test, nr_blocks_out(), 0);

	KUNIT_ASSERT_EQ(test, allocate(0, 4), 0);
	close_file();
	KUNIT_EXPECT_EQ(test, nr_blocks_out(), 0);
}

/* A few pages are not worth a page table. */
static void blocks_shrink_few(struct kunit *test)
{
	KUNIT_ASSERT_EQ(test, allocate(0, BLOCK_PAGES - BLOCK_PAGES / 16 + 1), 0);
	KUNIT_EXPECT_EQ(test, kvm_gmem_shrink_blocks(BLOCK_PAGES), 0);
	KUNIT_EXPECT_EQ(test, nr_blocks_out(), BLOCK_PAGES);
	close_file();
	KUNIT_EXPECT_EQ(test, nr_blocks_out(), 0);
}

static int blocks_init(struct kunit *test)
{
	int r;

	if (!direct_map_can_have_holes())
		kunit_skip(test, "The direct map can't be changed");

	r = gmem_test_init_sized(test, &hidden_ops, HIDDEN, NR_BLOCKS * BLOCK_PAGES);
	if (!r)
		r = convert(0, NR_BLOCKS * BLOCK_PAGES, true, 0);
	dbl->nr_out = nr_out();
	return r;
}

static int hidden_init_ops(struct kunit *test, const struct kvm_gmem_ops *ops, u64 flags)
{
	if (!direct_map_can_have_holes())
		kunit_skip(test, "The direct map can't be changed");
	if (!IS_ENABLED(CONFIG_TRANSPARENT_HUGEPAGE))
		kunit_skip(test, "Folios can't be split without THP");

	return gmem_test_init(test, ops, flags | GUEST_MEMFD_FLAG_HUGE | HIDDEN);
}

static int hidden_init(struct kunit *test)
{
	return hidden_init_ops(test, &hidden_ops, 0);
}

static int hidden_fixed_init(struct kunit *test)
{
	/* Some architectures have no other slots for VMs without private memory. */
	return hidden_init_ops(test, &hidden_fixed_ops, GUEST_MEMFD_FLAG_MMAP);
}

static struct kunit_case hidden_cases[] = {
	KUNIT_CASE(hidden_allocate),
	KUNIT_CASE(hidden_convert),
	KUNIT_CASE(hidden_convert_bad),
	KUNIT_CASE(hidden_zero),
	KUNIT_CASE(hidden_fails),
	KUNIT_CASE(hidden_leave),
	KUNIT_CASE(hidden_leave_shared),
	KUNIT_CASE(hidden_leave_bad),
	KUNIT_CASE(hidden_leave_piece),
	KUNIT_CASE(hidden_loses_race),
	KUNIT_CASE_SLOW(hidden_leftovers),
	KUNIT_CASE_SLOW(hidden_machine),
	{}
};

static struct kunit_suite hidden_suite = {
	.name = "gmem_direct_map",
	.init = hidden_init,
	.exit = gmem_core_exit,
	.test_cases = hidden_cases,
};

static struct kunit_case hidden_fixed_cases[] = {
	KUNIT_CASE(hidden_fixed),
	{}
};

static struct kunit_suite hidden_fixed_suite = {
	.name = "gmem_hidden_fixed",
	.init = hidden_fixed_init,
	.exit = gmem_core_exit,
	.test_cases = hidden_fixed_cases,
};

static struct kunit_case blocks_cases[] = {
	KUNIT_CASE(blocks_allocate),
	KUNIT_CASE(blocks_punch_all),
	KUNIT_CASE(blocks_punch_part),
	KUNIT_CASE(blocks_punch_early),
	KUNIT_CASE(blocks_convert),
	KUNIT_CASE(blocks_lose_race),
	KUNIT_CASE(blocks_bad_page),
	KUNIT_CASE(blocks_bad_split),
	KUNIT_CASE(blocks_bad_edges),
	KUNIT_CASE(blocks_shrink),
	KUNIT_CASE(blocks_shrink_few),
	{}
};

static struct kunit_suite blocks_suite = {
	.name = "gmem_blocks",
	.init = blocks_init,
	.exit = gmem_core_exit,
	.test_cases = blocks_cases,
};
