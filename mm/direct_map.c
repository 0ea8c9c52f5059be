// SPDX-License-Identifier: GPL-2.0-only
/*
 * Holes in the kernel's direct map: memory that the kernel has no standing mapping of.
 *
 * Who takes pages out puts them back before they are freed.  While they are out the
 * kernel reaches them by direct_map_kmap_local() alone, through a page table entry of
 * this CPU that lasts as long as one access.  Nobody else's code may come upon such a
 * page: GUP refuses pages of a mapping that is marked by mapping_set_no_direct_map(),
 * and there is no hibernation while there may be holes.
 */
#include <linux/direct_map.h>
#include <linux/highmem.h>
#include <linux/kvm_types.h>
#include <linux/mm.h>
#include <linux/percpu.h>
#include <linux/set_memory.h>
#include <linux/vmalloc.h>

#include <asm/tlbflush.h>

DEFINE_STATIC_KEY_FALSE(direct_map_holes);
EXPORT_SYMBOL_FOR_KVM(direct_map_holes);

/* Where each CPU maps what has no other address. */
struct direct_map_window {
	unsigned long addr;
	pte_t *ptep;
};

static DEFINE_PER_CPU(struct direct_map_window, direct_map_window);
static bool direct_map_has_windows __ro_after_init;

/* Can this machine have holes?  Constant once it has booted. */
bool direct_map_can_have_holes(void)
{
	return direct_map_has_windows && can_set_direct_map();
}
EXPORT_SYMBOL_FOR_KVM(direct_map_can_have_holes);

/*
 * Announce that there will be holes, before the first page is taken out, and that there
 * won't be, after the last one is back.  May sleep.
 */
void direct_map_holes_get(void)
{
	static_branch_inc(&direct_map_holes);
}
EXPORT_SYMBOL_FOR_KVM(direct_map_holes_get);

void direct_map_holes_put(void)
{
	static_branch_dec(&direct_map_holes);
}
EXPORT_SYMBOL_FOR_KVM(direct_map_holes_put);

static void direct_map_add_flush(struct direct_map_flush *flush, unsigned long start,
				 unsigned long end)
{
	flush->start = flush->end ? min(flush->start, start) : start;
	flush->end = max(flush->end, end);
}

/**
 * direct_map_take_out() - take pages out of the direct map
 * @page: the first of them
 * @nr: how many there are; contiguous, nobody else uses them
 * @flush: what direct_map_flush() has to flush before the pages are used for what they
 *	   were taken out for; grows
 *
 * Where [@page, @page + @nr) isn't a whole entry of the direct map, the entry is split,
 * which takes memory.
 *
 * Context: May sleep.
 * Return: 0, or -ENOMEM, and all pages are in the direct map.
 */
int direct_map_take_out(struct page *page, unsigned long nr, struct direct_map_flush *flush)
{
	unsigned long start = (unsigned long)page_address(page);
	unsigned long end = start + nr * PAGE_SIZE;
	int r;

	might_sleep();

	r = set_direct_map_valid_noflush(page, nr, false);
	if (r) {
		/* The part that succeeded: its entries are split, so this needs no memory. */
		WARN_ON_ONCE(set_direct_map_valid_noflush(page, nr, true));
		return r;
	}

	direct_map_add_flush(flush, start, end);
	return 0;
}
EXPORT_SYMBOL_FOR_KVM(direct_map_take_out);

/**
 * direct_map_flush() - no CPU has a translation for pages that are out
 * @flush: what was collected
 *
 * Context: May sleep.
 */
void direct_map_flush(const struct direct_map_flush *flush)
{
	if (flush->end)
		arch_flush_direct_map(flush->start, flush->end);
}
EXPORT_SYMBOL_FOR_KVM(direct_map_flush);

static bool direct_map_has_bad(struct page *page, unsigned long nr)
{
	unsigned long i;

	for (i = 0; i < nr; i++) {
		if (PageHWPoison(page + i))
			return true;
	}

	return false;
}

/* Put those of the pages back that are good; what is bad stays where it is. */
static int direct_map_put_back_good(struct page *page, unsigned long nr)
{
	unsigned long i;
	int r;

	r = nr > 1 ? arch_split_direct_map(page) : 0;
	if (r)
		return r;

	/* No entry goes beyond what is changed at once any more: this takes no memory. */
	for (i = 0; i < nr; i++) {
		if (!PageHWPoison(page + i))
			WARN_ON_ONCE(set_direct_map_valid_noflush(page + i, 1, true));
	}
	return 0;
}

/*
 * Memory failure marks a page, then the machine check's handler takes it out.  What was
 * marked while it was put back may have been out for that reason.  If so its entry is
 * split already, and this can't fail; if not, the handler is yet to come.
 */
static void direct_map_take_out_bad(struct page *page, unsigned long nr)
{
	struct direct_map_flush flush = {};
	unsigned long i;

	for (i = 0; i < nr; i++) {
		if (PageHWPoison(page + i))
			direct_map_take_out(page + i, 1, &flush);
	}
	direct_map_flush(&flush);
}

/**
 * direct_map_put_back() - put pages back into the direct map
 * @page: the first of them
 * @nr: how many there are; contiguous, in one entry
 *
 * Pages that are there already stay.  Pages that memory failure has struck stay out for
 * good, lest a CPU touch them, if only by speculation.  Entries that were not present are
 * in no TLB, so there is nothing to flush.
 *
 * Context: May sleep.
 * Return: 0; -ENOMEM if there is no memory to split the entry that has the range, and
 * nothing has changed.  That can be only if the range isn't all of the entry, or memory
 * failure has struck it, and not after direct_map_split(), nor for a page that was taken
 * out alone.
 */
int direct_map_put_back(struct page *page, unsigned long nr)
{
	int r;

	might_sleep();

	if (direct_map_has_bad(page, nr))
		return direct_map_put_back_good(page, nr);

	r = set_direct_map_valid_noflush(page, nr, true);
	if (!r && direct_map_has_bad(page, nr))
		direct_map_take_out_bad(page, nr);
	return r;
}
EXPORT_SYMBOL_FOR_KVM(direct_map_put_back);

/**
 * direct_map_split() - split the direct map's entry that has a page, so that the page, or
 * any of its neighbours, can be put back alone
 * @page: the page; it may be out of the direct map, and stays what it is
 *
 * Context: May sleep.
 * Return: 0 or -ENOMEM.
 */
int direct_map_split(struct page *page)
{
	might_sleep();

	return arch_split_direct_map(page);
}
EXPORT_SYMBOL_FOR_KVM(direct_map_split);

/* Is @page in the direct map?  Stable as long as the caller keeps others from changing it. */
bool direct_map_has(struct page *page)
{
	return kernel_page_present(page);
}
EXPORT_SYMBOL_FOR_KVM(direct_map_has);

/**
 * direct_map_kmap_local() - map a page for one access, whether it is out or not
 * @page: the page; whether it is out must not change meanwhile
 *
 * The mapping of a page that is out is visible to this CPU alone, and there can be only
 * one at a time.
 *
 * Context: Task context; returns with preemption disabled if the page is out: don't
 * sleep, map or be long before direct_map_kunmap_local().
 * Return: The address.
 */
void *direct_map_kmap_local(struct page *page)
{
	struct direct_map_window *w;

	if (!direct_map_has_holes() || kernel_page_present(page))
		return kmap_local_page(page);

	preempt_disable();
	w = this_cpu_ptr(&direct_map_window);
	WARN_ON_ONCE(in_interrupt() || !pte_none(ptep_get(w->ptep)));
	set_pte_at(&init_mm, w->addr, w->ptep, mk_pte(page, PAGE_KERNEL));
	return (void *)w->addr;
}
EXPORT_SYMBOL_FOR_KVM(direct_map_kmap_local);

/**
 * direct_map_kunmap_local() - end what direct_map_kmap_local() began
 * @vaddr: what it has returned, or an address in the same page
 */
void direct_map_kunmap_local(void *vaddr)
{
	struct direct_map_window *w = raw_cpu_ptr(&direct_map_window);

	/* If it is this CPU's window then the task cannot have moved. */
	if (((unsigned long)vaddr & PAGE_MASK) != w->addr) {
		kunmap_local(vaddr);
		return;
	}

	pte_clear(&init_mm, w->addr, w->ptep);
	arch_flush_direct_map_window(w->addr);
	preempt_enable();
}
EXPORT_SYMBOL_FOR_KVM(direct_map_kunmap_local);

static int direct_map_clear_pte(pte_t *ptep, unsigned long addr, void *data)
{
	pte_clear(&init_mm, addr, ptep);
	return 0;
}

/**
 * direct_map_clear_alias() - take a page away from its address by vmap()
 * @va: an address in a page that vmap() has mapped, and vunmap() will unmap
 * @flush: what direct_map_flush() has to flush before the page is used for something
 *	   else; grows
 *
 * Context: Any, but nobody uses the address any more.
 */
void direct_map_clear_alias(void *va, struct direct_map_flush *flush)
{
	unsigned long addr = (unsigned long)va & PAGE_MASK;

	apply_to_existing_page_range(&init_mm, addr, PAGE_SIZE, direct_map_clear_pte, NULL);
	direct_map_add_flush(flush, addr, addr + PAGE_SIZE);
}
EXPORT_SYMBOL_FOR_KVM(direct_map_clear_alias);

static int __init direct_map_init_window(pte_t *ptep, unsigned long addr, void *data)
{
	struct direct_map_window *w = data;

	w->addr = addr;
	w->ptep = ptep;
	return 0;
}

/* Kernel page tables of the vmalloc area never go, hence the entries can be kept. */
static int __init direct_map_init(void)
{
	struct vm_struct *area;
	int cpu;

	for_each_possible_cpu(cpu) {
		area = get_vm_area(PAGE_SIZE, VM_MAP);
		if (!area)
			return -ENOMEM;

		if (apply_to_page_range(&init_mm, (unsigned long)area->addr, PAGE_SIZE,
					direct_map_init_window,
					per_cpu_ptr(&direct_map_window, cpu)))
			return -ENOMEM;
	}

	direct_map_has_windows = true;
	return 0;
}
core_initcall(direct_map_init);
