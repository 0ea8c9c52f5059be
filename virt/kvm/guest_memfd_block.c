// SPDX-License-Identifier: GPL-2.0-only
/*
 * guest_memfd, blocks: single pages that leave the direct map 2 MiB at a time.
 */

/**
 * DOC: Blocks
 *
 * Memory leaves the direct map at the price of a flush of every CPU's TLB, however much
 * of it there is.  A single page that is out from the start therefore comes from a block:
 * 2 MiB that were allocated together, and left the direct map as one entry and with one
 * flush.  If there is no block to be had, pages are allocated and flushed one by one, for
 * as many pages as a block has, and no error is reported.
 *
 * A page of a block is
 *
 * - fresh: it is in no file, and was in none.  What it held in its former life is still
 *   there, out of reach; it is overwritten before the page enters the file.  A page that
 *   was taken and could not enter is fresh again;
 * - in the file, or about to be;
 * - parked: it has left the file and was cleared, and cannot be in the direct map while
 *   others of its block are not.  It is charged to whom it was charged in the file;
 * - gone: back in the direct map, and a page like any other.
 *
 * The block has two references to pages that are fresh or parked: the last one of somebody
 * else doesn't free them, and "unpoison", which takes a page that is bad and has one
 * reference for one of memory failure's, finds them in use.  Bad pages have two for good.
 *
 * A block goes back whole, as one entry, when none of its pages is in the file.  If a page
 * has to go back earlier, as it becomes shared, or has left the file by a hole that is to
 * free memory, the entry is split.  From then on pages go back one by one.  So does a
 * block with a page that memory failure has struck: that page stays out for good, as
 * nobody may touch it even by speculation.
 *
 * Where the entry cannot be split for want of memory, a conversion fails before anything
 * has happened, and what a hole has freed stays parked until the next hole or the end of
 * the file.
 *
 * Blocks are of the node that the policy of the file or of the task wants, and are not
 * used for policies that spread pages over nodes.  A file has about 2 MiB a node at most
 * that are fresh.  They are charged to the memory cgroup of whoever had the block
 * allocated, as kernel memory.  A shrinker has them back when the host's memory is short,
 * not when the cgroup's is.
 */
#include <linux/bitmap.h>
#include <linux/cpuset.h>
#include <linux/kvm_host.h>
#include <linux/memcontrol.h>
#include <linux/mempolicy.h>
#include <linux/pagemap.h>
#include <linux/sched/mm.h>
#include <linux/shrinker.h>
#include <linux/workqueue.h>

#include "gmem_internal.h"

#define GMEM_BLOCK_ORDER	get_order(SZ_2M)
#define GMEM_BLOCK_PAGES	(SZ_2M >> PAGE_SHIFT)

/* A block isn't split, for want of memory, for fewer fresh pages. */
#define GMEM_BLOCK_MIN_SHRINK	(GMEM_BLOCK_PAGES / 16)

struct gmem_block {
	struct gmem_inode *gi;
	struct page *page;
	unsigned int nr_fresh;
	unsigned int nr_used;		/* in the file, or about to be */
	bool is_split;			/* so is its entry of the direct map */

	/* In gi->fresh_blocks if there are fresh ones, in gi->parked_blocks if parked. */
	struct list_head fresh;
	struct list_head parked;

	/* Pages that the block has references to: fresh, parked, or bad. */
	DECLARE_BITMAP(kept, GMEM_BLOCK_PAGES);
	DECLARE_BITMAP(is_fresh, GMEM_BLOCK_PAGES);
};

/*
 * Files that may have fresh pages, and how many of these there are in all.  The lock
 * nests in blocks_lock.
 */
static LIST_HEAD(gmem_blocks_files);
static DEFINE_MUTEX(gmem_blocks_files_lock);
static atomic_long_t gmem_nr_fresh;

static struct shrinker *gmem_blocks_shrinker;
static atomic_long_t gmem_nr_to_shrink;

static struct gmem_block *kvm_gmem_block(struct folio *folio)
{
	return folio->private;
}

/* Where do blocks for @policy, or else the task's, come from?  NUMA_NO_NODE: from nowhere. */
static int kvm_gmem_block_node(struct mempolicy *policy)
{
#ifdef CONFIG_NUMA
	if (!policy && cpuset_do_page_mem_spread())
		return NUMA_NO_NODE;

	policy = policy ?: current->mempolicy;
	if (policy && policy->mode == MPOL_PREFERRED)
		return first_node(policy->nodes);
	if (policy && policy->mode == MPOL_BIND && policy->home_node != NUMA_NO_NODE)
		return policy->home_node;
	if (policy && policy->mode == MPOL_BIND && !node_isset(numa_mem_id(), policy->nodes))
		return NUMA_NO_NODE;
	if (policy && policy->mode != MPOL_BIND && policy->mode != MPOL_LOCAL)
		return NUMA_NO_NODE;
#endif
	return numa_mem_id();
}

/* There are @nr more fresh pages in @block, or fewer if negative. */
static void kvm_gmem_block_add_fresh(struct gmem_block *block, int nr)
{
	lockdep_assert_held(&block->gi->blocks_lock);

	block->nr_fresh += nr;
	atomic_long_add(nr, &gmem_nr_fresh);
	if (!block->nr_fresh)
		list_del_init(&block->fresh);
	else if (list_empty(&block->fresh))
		list_add(&block->fresh, &block->gi->fresh_blocks);
}

/* Have the two references to page @i. */
static void kvm_gmem_block_keep(struct gmem_block *block, unsigned int i, int nr_more)
{
	lockdep_assert_held(&block->gi->blocks_lock);

	page_ref_add(block->page + i, nr_more);
	__set_bit(i, block->kept);
}

/*
 * @page, of a block that is split, goes back, or stays out for good.  The caller has a
 * reference.
 */
static void kvm_gmem_block_put_back(struct page *page)
{
	set_page_private(page, 0);
	/* The entry is the page's own, so this takes no memory. */
	WARN_ON_ONCE(direct_map_put_back(page, 1));
	if (!direct_map_has(page))
		page_ref_add(page, 2);
}

/* Drop the references of @block, which is split or back as a whole, to all but fresh pages. */
static void kvm_gmem_block_drop(struct gmem_block *block)
{
	unsigned int i;

	lockdep_assert_held(&block->gi->blocks_lock);

	for_each_set_bit(i, block->kept, GMEM_BLOCK_PAGES) {
		if (test_bit(i, block->is_fresh))
			continue;

		__clear_bit(i, block->kept);
		if (block->is_split)
			kvm_gmem_block_put_back(block->page + i);
		set_page_private(block->page + i, 0);
		/* What is out for good keeps two. */
		if (block->is_split || direct_map_has(block->page + i)) {
			put_page(block->page + i);
			put_page(block->page + i);
		}
	}
}

/*
 * Let pages of @block go back one by one, and do so with those that are parked.  Returns
 * 0, or -ENOMEM, and nothing has changed.
 */
static int kvm_gmem_block_split(struct gmem_block *block)
{
	int r;

	lockdep_assert_held(&block->gi->blocks_lock);

	if (block->is_split)
		return 0;

	r = direct_map_split(block->page);
	if (r)
		return r;

	block->is_split = true;
	kvm_gmem_block_drop(block);
	list_del_init(&block->parked);
	return 0;
}

/*
 * None of @block's pages is in the file: free them.  False if there is no memory for what
 * that takes if one of them is bad; whoever trims blocks tries again.
 */
static bool kvm_gmem_block_free(struct gmem_block *block)
{
	lockdep_assert_held(&block->gi->blocks_lock);

	kvm_gmem_block_add_fresh(block, -block->nr_fresh);
	bitmap_zero(block->is_fresh, GMEM_BLOCK_PAGES);

	if (!block->is_split && direct_map_put_back(block->page, GMEM_BLOCK_PAGES)) {
		if (list_empty(&block->parked))
			list_add(&block->parked, &block->gi->parked_blocks);
		return false;
	}

	list_del(&block->parked);
	kvm_gmem_block_drop(block);
	kfree(block);
	return true;
}

/* A page of @block is no longer used. */
static void kvm_gmem_block_unuse(struct gmem_block *block)
{
	lockdep_assert_held(&block->gi->blocks_lock);

	if (!--block->nr_used && !block->nr_fresh)
		kvm_gmem_block_free(block);
}

static struct gmem_block *kvm_gmem_block_new(struct inode *inode, int nid)
{
	struct gmem_inode *gi = GMEM_I(inode);
	struct direct_map_flush flush = {};
	struct gmem_block *block;
	unsigned int i;

	lockdep_assert_held(&gi->blocks_lock);

	/* When memory is in pieces, don't look for whole ones at every page. */
	if (gi->no_blocks) {
		gi->no_blocks--;
		return NULL;
	}
	gi->no_blocks = GMEM_BLOCK_PAGES;

	block = kzalloc_obj(*block, GFP_KERNEL_ACCOUNT);
	if (!block)
		return NULL;

	block->page = alloc_pages_node(nid, kvm_gmem_gfp(inode->i_mapping, GMEM_BLOCK_ORDER) |
					    __GFP_THISNODE | __GFP_ACCOUNT, GMEM_BLOCK_ORDER);
	if (!block->page)
		goto err_block;

	if (direct_map_take_out(block->page, GMEM_BLOCK_PAGES, &flush))
		goto err_pages;
	direct_map_flush(&flush);

	split_page(block->page, GMEM_BLOCK_ORDER);
	for (i = 0; i < GMEM_BLOCK_PAGES; i++)
		set_page_private(block->page + i, (unsigned long)block);

	block->gi = gi;
	for (i = 0; i < GMEM_BLOCK_PAGES; i++)
		kvm_gmem_block_keep(block, i, 1);
	bitmap_fill(block->is_fresh, GMEM_BLOCK_PAGES);
	INIT_LIST_HEAD(&block->fresh);
	INIT_LIST_HEAD(&block->parked);
	kvm_gmem_block_add_fresh(block, GMEM_BLOCK_PAGES);
	gi->no_blocks = 0;

	mutex_lock(&gmem_blocks_files_lock);
	if (list_empty(&gi->blocks_entry))
		list_add_tail(&gi->blocks_entry, &gmem_blocks_files);
	mutex_unlock(&gmem_blocks_files_lock);
	return block;

err_pages:
	__free_pages(block->page, GMEM_BLOCK_ORDER);
err_block:
	kfree(block);
	return NULL;
}

/* Take a fresh page from @block.  NULL if memory failure has struck all there were. */
static struct page *kvm_gmem_block_take(struct gmem_block *block)
{
	struct page *page = NULL;
	unsigned int i;

	lockdep_assert_held(&block->gi->blocks_lock);

	while (!page && block->nr_fresh) {
		i = find_first_bit(block->is_fresh, GMEM_BLOCK_PAGES);
		__clear_bit(i, block->is_fresh);
		kvm_gmem_block_add_fresh(block, -1);
		if (PageHWPoison(block->page + i))
			continue;

		__clear_bit(i, block->kept);
		block->nr_used++;
		page = block->page + i;
		put_page(page);
		/* The file charges it as what it is there. */
		memcg_kmem_uncharge_page(page, 0);
	}

	if (!page && !block->nr_used)
		kvm_gmem_block_free(block);
	return page;
}

/**
 * kvm_gmem_alloc_from_block() - allocate a page that is out of the direct map already
 * @inode: of the file that it is for
 * @policy: the file's NUMA policy for the page, or NULL
 *
 * The page has no content; its bytes are those of its former life.  Give it to the file,
 * or kvm_gmem_untake_folio().
 *
 * Context: May sleep.
 * Return: The page, with a reference; NULL if the caller has to do without.
 */
struct folio *kvm_gmem_alloc_from_block(struct inode *inode, struct mempolicy *policy)
{
	struct gmem_inode *gi = GMEM_I(inode);
	int nid = kvm_gmem_block_node(policy);
	struct gmem_block *block;
	struct page *page = NULL;

	/* A block would be larger than the file. */
	if (nid == NUMA_NO_NODE || i_size_read(inode) < SZ_2M)
		return NULL;

	mutex_lock(&gi->blocks_lock);
	list_for_each_entry(block, &gi->fresh_blocks, fresh) {
		if (page_to_nid(block->page) == nid)
			break;
	}
	if (list_entry_is_head(block, &gi->fresh_blocks, fresh))
		block = kvm_gmem_block_new(inode, nid);
	if (block)
		page = kvm_gmem_block_take(block);
	mutex_unlock(&gi->blocks_lock);

	return page ? page_folio(page) : NULL;
}

/**
 * kvm_gmem_untake_folio() - @folio of a block has not come into the file
 * @folio: the folio; nobody knows it but the caller
 *
 * It is the next to be taken.  If the cgroup is full it is charged to nobody until then;
 * there are never more of these than tasks that have failed at the same time.
 *
 * Context: May sleep.  The caller's reference is one of the block's afterwards.
 */
void kvm_gmem_untake_folio(struct folio *folio)
{
	struct gmem_block *block = kvm_gmem_block(folio);
	struct gmem_inode *gi = block->gi;
	unsigned int i = &folio->page - block->page;

	/* Its bytes are no content for the next index. */
	folio_clear_uptodate(folio);
	/* Whether it succeeds or not. */
	memcg_kmem_charge_page(&folio->page, GFP_KERNEL_ACCOUNT | __GFP_NORETRY, 0);

	mutex_lock(&gi->blocks_lock);
	kvm_gmem_block_keep(block, i, 1);
	__set_bit(i, block->is_fresh);
	block->nr_used--;
	kvm_gmem_block_add_fresh(block, 1);
	mutex_unlock(&gi->blocks_lock);
}

/**
 * kvm_gmem_park_folio() - @folio of a block, which is out, leaves the file
 * @folio: the folio, cleared
 *
 * Context: May sleep.  The caller has a reference.
 */
void kvm_gmem_park_folio(struct folio *folio)
{
	struct gmem_block *block = kvm_gmem_block(folio);
	struct gmem_inode *gi = block->gi;

	mutex_lock(&gi->blocks_lock);
	if (block->is_split) {
		kvm_gmem_block_put_back(&folio->page);
	} else {
		kvm_gmem_block_keep(block, &folio->page - block->page, 2);
		if (list_empty(&block->parked))
			list_add(&block->parked, &gi->parked_blocks);
	}
	kvm_gmem_block_unuse(block);
	mutex_unlock(&gi->blocks_lock);
}

/**
 * kvm_gmem_split_block() - let @folio, which may be of a block, go back alone
 * @folio: the folio
 *
 * Context: May sleep.
 * Return: 0, or -ENOMEM.
 */
int kvm_gmem_split_block(struct folio *folio)
{
	struct gmem_inode *gi;
	int r;

	if (!kvm_gmem_is_of_block(folio))
		return 0;

	gi = kvm_gmem_block(folio)->gi;
	mutex_lock(&gi->blocks_lock);
	r = kvm_gmem_block_split(kvm_gmem_block(folio));
	mutex_unlock(&gi->blocks_lock);

	return r;
}

/**
 * kvm_gmem_leave_block() - put @folio of a block back into the direct map
 * @folio: the folio, after kvm_gmem_split_block(); an ordinary one from now on
 *
 * Context: May sleep.
 */
void kvm_gmem_leave_block(struct folio *folio)
{
	struct gmem_block *block = kvm_gmem_block(folio);
	struct gmem_inode *gi = block->gi;

	mutex_lock(&gi->blocks_lock);
	WARN_ON_ONCE(!block->is_split);
	kvm_gmem_block_put_back(&folio->page);
	kvm_gmem_block_unuse(block);
	mutex_unlock(&gi->blocks_lock);
}

/**
 * kvm_gmem_trim_blocks() - free what is parked
 * @inode: of the file
 *
 * To be called when as much as will has left the file: blocks that are whole then go back
 * whole.  There may be no memory to split the others, whose pages stay parked.
 *
 * Context: May sleep.
 */
void kvm_gmem_trim_blocks(struct inode *inode)
{
	struct gmem_inode *gi = GMEM_I(inode);
	struct gmem_block *block, *next;
	LIST_HEAD(blocks);

	/* The usual case is that there are none.  Whoever parks a page trims afterwards. */
	if (list_empty_careful(&gi->parked_blocks))
		return;

	mutex_lock(&gi->blocks_lock);
	list_splice_init(&gi->parked_blocks, &blocks);
	/* What succeeds leaves the list; what can be freed needs no memory, as a rule. */
	list_for_each_entry_safe(block, next, &blocks, parked) {
		if (!block->nr_used)
			kvm_gmem_block_free(block);
		else
			kvm_gmem_block_split(block);
		cond_resched();
	}
	list_splice(&blocks, &gi->parked_blocks);
	mutex_unlock(&gi->blocks_lock);
}

/**
 * kvm_gmem_free_blocks() - free all blocks of a file that has no folios any more
 * @inode: of the file
 *
 * Context: May sleep.
 */
void kvm_gmem_free_blocks(struct inode *inode)
{
	struct gmem_inode *gi = GMEM_I(inode);
	struct gmem_block *block, *next;

	/* From now on the shrinker doesn't know the file. */
	mutex_lock(&gmem_blocks_files_lock);
	list_del_init(&gi->blocks_entry);
	mutex_unlock(&gmem_blocks_files_lock);

	mutex_lock(&gi->blocks_lock);
	list_for_each_entry_safe(block, next, &gi->fresh_blocks, fresh) {
		WARN_ON_ONCE(block->nr_used);
		kvm_gmem_block_free(block);
	}

	list_for_each_entry_safe(block, next, &gi->parked_blocks, parked) {
		WARN_ON_ONCE(block->nr_used);
		if (kvm_gmem_block_free(block))
			continue;

		/* Out and never freed, so that nobody comes upon it, nor hibernates. */
		direct_map_holes_get();
		pr_err_ratelimited("kvm: guest_memfd: no memory to give pages at pfn 0x%lx back, they are lost\n",
				   page_to_pfn(block->page));
		list_del(&block->parked);
	}
	mutex_unlock(&gi->blocks_lock);
}

/*
 * Give the fresh pages of a file back, and have no new ones soon: memory is short.  Few
 * are not worth a page table.  Returns how many they were.
 */
static unsigned long kvm_gmem_shrink_file(struct gmem_inode *gi)
{
	struct gmem_block *block, *next;
	unsigned long nr = 0;

	lockdep_assert_held(&gi->blocks_lock);

	list_for_each_entry_safe(block, next, &gi->fresh_blocks, fresh) {
		unsigned int nr_fresh = block->nr_fresh;

		if (!block->nr_used) {
			if (kvm_gmem_block_free(block))
				nr += nr_fresh;
			continue;
		}

		if (nr_fresh < GMEM_BLOCK_MIN_SHRINK || kvm_gmem_block_split(block))
			continue;

		kvm_gmem_block_add_fresh(block, -nr_fresh);
		bitmap_zero(block->is_fresh, GMEM_BLOCK_PAGES);
		kvm_gmem_block_drop(block);
		nr += nr_fresh;
	}

	if (nr)
		gi->no_blocks = GMEM_BLOCK_PAGES;
	return nr;
}

/**
 * kvm_gmem_shrink_blocks() - give fresh pages back
 * @nr: how many there should be; whole files' are given, so it may be more
 *
 * A file that is busy with its blocks is passed over.
 *
 * Context: May sleep.
 * Return: How many there were.
 */
unsigned long kvm_gmem_shrink_blocks(unsigned long nr)
{
	struct gmem_inode *gi, *next;
	unsigned long freed = 0;
	LIST_HEAD(done);

	mutex_lock(&gmem_blocks_files_lock);
	list_for_each_entry_safe(gi, next, &gmem_blocks_files, blocks_entry) {
		if (freed >= nr)
			break;

		/* Others first the next time. */
		list_move_tail(&gi->blocks_entry, &done);
		/* The other way round than whoever enters a file in the list. */
		if (!mutex_trylock(&gi->blocks_lock))
			continue;

		freed += kvm_gmem_shrink_file(gi);
		mutex_unlock(&gi->blocks_lock);
	}
	list_splice_tail(&done, &gmem_blocks_files);
	mutex_unlock(&gmem_blocks_files_lock);

	return freed;
}

static unsigned long kvm_gmem_count_objects(struct shrinker *shrinker,
					    struct shrink_control *sc)
{
	return atomic_long_read(&gmem_nr_fresh) ?: SHRINK_EMPTY;
}

static void kvm_gmem_shrink_work(struct work_struct *work)
{
	unsigned int flags;

	/* It takes a page table to free a part of a block. */
	flags = memalloc_noreclaim_save();
	kvm_gmem_shrink_blocks(atomic_long_xchg(&gmem_nr_to_shrink, 0));
	memalloc_noreclaim_restore(flags);
}

static DECLARE_WORK(gmem_shrink_work, kvm_gmem_shrink_work);

/*
 * Whoever is short of memory may be about to split the direct map, with its lock held.  So
 * another task does it, some time later.
 */
static unsigned long kvm_gmem_scan_objects(struct shrinker *shrinker,
					   struct shrink_control *sc)
{
	atomic_long_add(sc->nr_to_scan, &gmem_nr_to_shrink);
	schedule_work(&gmem_shrink_work);
	return sc->nr_to_scan;
}

/* Before the first file is created. */
int kvm_gmem_init_blocks(void)
{
	gmem_blocks_shrinker = shrinker_alloc(0, "kvm-gmem-blocks");
	if (!gmem_blocks_shrinker)
		return -ENOMEM;

	gmem_blocks_shrinker->count_objects = kvm_gmem_count_objects;
	gmem_blocks_shrinker->scan_objects = kvm_gmem_scan_objects;
	shrinker_register(gmem_blocks_shrinker);
	return 0;
}

/* After the last one is gone. */
void kvm_gmem_exit_blocks(void)
{
	shrinker_free(gmem_blocks_shrinker);
	flush_work(&gmem_shrink_work);
	WARN_ON_ONCE(!list_empty(&gmem_blocks_files));
}
