// SPDX-License-Identifier: GPL-2.0-only
/**
 * DOC: KVM's own accesses
 *
 * KVM reads and writes guest memory itself: for kvmclock and steal time, to emulate
 * instructions, to walk the guest's page tables, for the structures of nested
 * virtualization.  If the memory is in a guest_memfd alone, KVM takes it from there.
 * userspace_addr of the memslot isn't looked at.
 *
 * KVM may use shared pages, and private ones if the VM type's table says so, by
 * host_private.  An access to another private page fails as on unmapped memory.  An
 * absent page is allocated, as a guest's fault would.
 *
 * There are four ways, none of which keeps a reference to a page: else KVM itself would
 * make conversions fail.
 *
 * One access
 *	kvm_gmem_read(), kvm_gmem_write() and kvm_gmem_cmpxchg() look the page up, map it,
 *	touch it, and forget it.  invalidate_lock, held for read, keeps the page where and
 *	what it is meanwhile.  Naturally aligned accesses of 1, 2, 4 and 8 bytes are single
 *	accesses to the guest.
 *
 * One access that must not sleep
 *	kvm_gmem_read_atomic(), and the others where page faults are disabled, take what
 *	is present and up to date if they get invalidate_lock without waiting.  They fail
 *	where a user access would fail for want of a mapping.
 *
 * A cache
 *	A gfn-to-pfn cache keeps the page mapped, across exits and for those who cannot
 *	sleep.  It is used only while it is valid, with its lock held, and says which page
 *	of which file it shows.  Conversion, punch, DISCARD, memory failure and the end of
 *	the file invalidate it before they touch the page: kvm_gmem_invalidate_start()
 *	calls gfn_to_pfn_cache_invalidate_gmem().  A refresh that has looked the page up
 *	just before looks again.
 *
 * A copy
 *	kvm_vcpu_map() of such a page gives a copy.  kvm_vcpu_unmap() writes back what has
 *	changed in it, and only that: the guest may have written elsewhere in the page.
 *
 * What hardware holds is the exception, see kvm_vcpu_map_hw().
 *
 * All kernel mappings of pages are made by two pairs of functions: for one access
 * kvm_gmem_map_local() and kvm_gmem_unmap_local(), between which a task must neither sleep
 * nor leave the CPU; and kvm_gmem_map_long() and kvm_gmem_unmap_long().
 */
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/highmem.h>
#include <linux/kvm_gmem.h>
#include <linux/kvm_host.h>
#include <linux/nospec.h>
#include <linux/pagemap.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/unaligned.h>
#include <linux/vmalloc.h>

#include "gmem_internal.h"
#include "kvm_mm.h"

/* A page that KVM uses, from kvm_gmem_begin_access() to kvm_gmem_end_access(). */
struct gmem_access {
	struct file *file;
	struct folio *folio;
	struct page *page;
};

/* Map @page for one access: do not sleep, nor leave the CPU, before it is unmapped. */
static void *kvm_gmem_map_local(struct page *page)
{
	return direct_map_kmap_local(page);
}

static void kvm_gmem_unmap_local(void *va)
{
	direct_map_kunmap_local(va);
}

/*
 * Map @page for as long as the caller likes, or NULL if there is no memory for that.
 * invalidate_lock is held, so that it doesn't leave the direct map meanwhile; whoever
 * takes it out invalidates the caches before.  May sleep.  There is no high memory where
 * there is guest_memfd.
 */
static void *kvm_gmem_map_long(struct kvm *kvm, struct page *page)
{
	void *va = page_address(page);

	might_sleep();

	if (direct_map_has_holes() && !direct_map_has(page))
		va = vmap(&page, 1, VM_MAP, PAGE_KERNEL);
	if (va)
		atomic_long_inc(&kvm->nr_gmem_maps);
	return va;
}

void kvm_gmem_unmap_long(struct kvm *kvm, struct page *page, void *va)
{
	struct direct_map_flush flush = {};

	might_sleep();

	if (va != page_address(page)) {
		/* vunmap() alone flushes some time later, when the page may be another's. */
		direct_map_clear_alias(va, &flush);
		direct_map_flush(&flush);
		vunmap(va);
	}
	atomic_long_dec(&kvm->nr_gmem_maps);
}

/*
 * Return the folio that has the page at @index, with a reference and up to date, for
 * KVM's own use: the only place that decides what KVM may touch.  If there is none it is
 * allocated, or if the caller must not wait, it is an error.
 */
static struct folio *kvm_gmem_access_folio(struct gmem_file *f, pgoff_t index,
					   bool may_wait)
{
	struct folio *folio;

	lockdep_assert_held(&f->inode->i_mapping->invalidate_lock);

	if (kvm_gmem_index_is_private(f->inode, index) &&
	    !GMEM_I(f->inode)->ops->host_private)
		return ERR_PTR(-EFAULT);

	/* The usual case, which doesn't take the folio lock. */
	folio = filemap_get_folio(f->inode->i_mapping, index);
	if (!IS_ERR(folio) && !folio_test_uptodate(folio)) {
		folio_put(folio);
		folio = ERR_PTR(-ENOENT);
	}

	if (IS_ERR(folio)) {
		if (!may_wait)
			return ERR_PTR(-EFAULT);

		folio = kvm_gmem_get_folio(f, index);
		if (IS_ERR(folio))
			return folio;

		if (!kvm_gmem_is_poisoned(folio, index))
			kvm_gmem_make_uptodate(folio);
		folio_unlock(folio);
	}

	if (kvm_gmem_is_poisoned(folio, index)) {
		folio_put(folio);
		return ERR_PTR(-EHWPOISON);
	}

	return folio;
}

/*
 * Lock the page at @gfn of @slot, unless the VMM has yet to fill it: KVM must not do that
 * in its stead.
 */
static int kvm_gmem_lock_access(struct gmem_file *f, struct kvm_memory_slot *slot, gfn_t gfn,
				bool may_wait)
{
	pgoff_t index = kvm_gmem_index(slot, gfn);
	unsigned int order = 0;
	int r = 0;

	if (may_wait)
		r = kvm_gmem_check_bitmap(f->kvm, slot, gfn, &order) ?:
		    kvm_gmem_lock_range(f->inode, index, index + 1, TASK_KILLABLE);
	else if (slot->gmem.userfault_bitmap ||
		 !kvm_gmem_trylock_range_nowait(f->inode, index, index + 1))
		r = -EFAULT;
	if (r)
		return r;

	if (!kvm_gmem_is_missing(f, slot, gfn))
		return 0;

	kvm_gmem_unlock_range(f->inode);
	return -ENODATA;
}

/*
 * Look up the page that backs @gfn, which is in @slot, and keep it from being converted
 * or freed until kvm_gmem_end_access().  kvm->srcu is held for read.
 */
static int kvm_gmem_begin_access(struct kvm_memory_slot *slot, gfn_t gfn, bool may_wait,
				 struct gmem_access *access)
{
	struct gmem_file *f;
	pgoff_t index;
	int r;

	access->file = kvm_gmem_get_file(slot);
	if (!access->file)
		return -EFAULT;

	/* As __gfn_to_hva_memslot() does: the guest may have the CPU speculate past the slot. */
	gfn = slot->base_gfn + array_index_nospec(gfn - slot->base_gfn, slot->npages);
	index = kvm_gmem_index(slot, gfn);
	f = access->file->private_data;

	r = kvm_gmem_lock_access(f, slot, gfn, may_wait);
	if (r)
		goto err_put;

	access->folio = kvm_gmem_access_folio(f, index, may_wait);
	if (IS_ERR(access->folio)) {
		r = PTR_ERR(access->folio);
		goto err_unlock;
	}

	access->page = folio_file_page(access->folio, index);
	return 0;

err_unlock:
	kvm_gmem_unlock_range(f->inode);
err_put:
	fput(access->file);
	return r;
}

static void kvm_gmem_end_access(struct gmem_access *access)
{
	folio_put(access->folio);
	kvm_gmem_unlock_range(file_inode(access->file));
	fput(access->file);
}

/* May the caller sleep, as far as that can be told?  User accesses ask the same. */
static bool kvm_gmem_may_wait(void)
{
	return !faulthandler_disabled() && !irqs_disabled();
}

/*
 * Copy @len bytes at @from, which the guest may write meanwhile, by a single access if
 * they are naturally aligned.  Returns -EFAULT if the memory is found to be bad, if the
 * architecture can survive that; single accesses don't.
 */
static int kvm_gmem_load(void *data, const void *from, int len)
{
	switch (IS_ALIGNED((unsigned long)from, len) ? len : 0) {
	case 1:
		*(u8 *)data = READ_ONCE(*(const u8 *)from);
		break;
	case 2:
		put_unaligned(READ_ONCE(*(const u16 *)from), (u16 *)data);
		break;
	case 4:
		put_unaligned(READ_ONCE(*(const u32 *)from), (u32 *)data);
		break;
	case 8:
		put_unaligned(READ_ONCE(*(const u64 *)from), (u64 *)data);
		break;
	default:
		return copy_mc_to_kernel(data, from, len) ? -EFAULT : 0;
	}

	return 0;
}

/* The same the other way round.  (sparse wants get_unaligned() of what isn't const.) */
static void kvm_gmem_store(void *to, const void *data, int len)
{
	switch (IS_ALIGNED((unsigned long)to, len) ? len : 0) {
	case 1:
		WRITE_ONCE(*(u8 *)to, *(const u8 *)data);
		break;
	case 2:
		WRITE_ONCE(*(u16 *)to, get_unaligned((u16 *)data));
		break;
	case 4:
		WRITE_ONCE(*(u32 *)to, get_unaligned((u32 *)data));
		break;
	case 8:
		WRITE_ONCE(*(u64 *)to, get_unaligned((u64 *)data));
		break;
	default:
		memcpy(to, data, len);
	}
}

static int __kvm_gmem_read(struct kvm_memory_slot *slot, gfn_t gfn, void *data, int offset,
			   int len, bool may_wait)
{
	struct gmem_access access;
	void *va;
	int r;

	if (kvm_gmem_begin_access(slot, gfn, may_wait, &access))
		return -EFAULT;

	va = kvm_gmem_map_local(access.page);
	r = kvm_gmem_load(data, va + offset, len);
	kvm_gmem_unmap_local(va);

	kvm_gmem_end_access(&access);
	return r;
}

/*
 * Read @len bytes at @offset in the page at @gfn, which is in the gmem-only @slot.
 * kvm->srcu is held for read.  Sleeps, unless page faults are disabled.  Returns 0, or
 * -EFAULT if the page isn't KVM's to read, is lost to a memory error, can't be allocated,
 * if the file is closed, or the task is being killed; as a user access would.
 */
int kvm_gmem_read(struct kvm_memory_slot *slot, gfn_t gfn, void *data, int offset, int len)
{
	return __kvm_gmem_read(slot, gfn, data, offset, len, kvm_gmem_may_wait());
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gmem_read);

/* The same, but never sleep: also fail if the page isn't there, or being changed. */
int kvm_gmem_read_atomic(struct kvm_memory_slot *slot, gfn_t gfn, void *data, int offset,
			 int len)
{
	return __kvm_gmem_read(slot, gfn, data, offset, len, false);
}

/* Write, see kvm_gmem_read(). */
int kvm_gmem_write(struct kvm *kvm, struct kvm_memory_slot *slot, gfn_t gfn,
		   const void *data, int offset, int len)
{
	struct gmem_access access;
	void *va;

	if (kvm_gmem_begin_access(slot, gfn, kvm_gmem_may_wait(), &access))
		return -EFAULT;

	va = kvm_gmem_map_local(access.page);
	kvm_gmem_store(va + offset, data, len);
	kvm_gmem_unmap_local(va);

	kvm_gmem_end_access(&access);
	mark_page_dirty_in_slot(kvm, slot, gfn);
	return 0;
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gmem_write);

static bool kvm_gmem_try_cmpxchg(void *va, void *old, const void *new, int len)
{
	switch (len) {
	case 1:
		return try_cmpxchg((u8 *)va, (u8 *)old, *(const u8 *)new);
	case 2:
		return try_cmpxchg((u16 *)va, (u16 *)old, *(const u16 *)new);
	case 4:
		return try_cmpxchg((u32 *)va, (u32 *)old, *(const u32 *)new);
	case 8:
		return try_cmpxchg64((u64 *)va, (u64 *)old, *(const u64 *)new);
	default:
		WARN_ON_ONCE(1);
		return false;
	}
}

/*
 * Replace @len bytes, 1, 2, 4 or 8, at @offset in the page at @gfn by @new if they are
 * @old.  Returns 0; 1, and updates @old, if they are something else; -EFAULT as
 * kvm_gmem_read() does.  Marking the page dirty is up to the caller.
 */
int kvm_gmem_cmpxchg(struct kvm_memory_slot *slot, gfn_t gfn, int offset, void *old,
		     const void *new, int len)
{
	struct gmem_access access;
	bool done;
	void *va;

	if (kvm_gmem_begin_access(slot, gfn, kvm_gmem_may_wait(), &access))
		return -EFAULT;

	va = kvm_gmem_map_local(access.page);
	done = kvm_gmem_try_cmpxchg(va + offset, old, new, len);
	kvm_gmem_unmap_local(va);

	kvm_gmem_end_access(&access);
	return !done;
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gmem_cmpxchg);

#ifdef CONFIG_HAVE_KVM_PFNCACHE
/* Map the page of @gpc, whose lock isn't held.  Without a reference. */
static int kvm_gmem_map_gpc(struct gfn_to_pfn_cache *gpc, struct page **page, void **va)
{
	struct gmem_access access;
	int r;

	r = kvm_gmem_begin_access(gpc->memslot, gpa_to_gfn(gpc->gpa), true, &access);
	if (r)
		return r;

	*page = access.page;
	*va = kvm_gmem_map_long(gpc->kvm, access.page);
	kvm_gmem_end_access(&access);
	return *va ? 0 : -ENOMEM;
}

/*
 * Look up the page of @gpc, whose memslot is gmem-only, map it and make the cache valid.
 * gpc->lock is held for write, and dropped meanwhile; refresh_lock keeps other refreshes
 * out.  Unmapping the old page is up to the caller.  Returns 0 or -EFAULT.
 */
int kvm_gmem_refresh_gpc(struct gfn_to_pfn_cache *gpc)
{
	struct page *page;
	unsigned long seq;
	void *va = NULL;
	int r;

	lockdep_assert_held(&gpc->refresh_lock);
	lockdep_assert_held_write(&gpc->lock);

	gpc->valid = false;

	struct file *file __free(fput) = kvm_gmem_get_file(gpc->memslot);
	if (!file)
		return -EFAULT;

	/* From here on whoever takes the page away raises gmem_seq. */
	gpc->gmem_inode = file_inode(file);
	gpc->gmem_index = kvm_gmem_index(gpc->memslot, gpa_to_gfn(gpc->gpa));

	do {
		seq = gpc->gmem_seq;
		write_unlock_irq(&gpc->lock);

		if (va)
			kvm_gmem_unmap_long(gpc->kvm, page, va);
		va = NULL;
		r = kvm_gmem_map_gpc(gpc, &page, &va);

		write_lock_irq(&gpc->lock);
	} while (!r && seq != gpc->gmem_seq);

	if (r)
		return -EFAULT;

	gpc->valid = true;
	gpc->gmem_mapped = true;
	gpc->pfn = page_to_pfn(page);
	gpc->khva = va + offset_in_page(gpc->gpa);
	return 0;
}
#endif /* CONFIG_HAVE_KVM_PFNCACHE */

/*
 * Give @map a copy of the page at @gfn, which is in the gmem-only @slot.  A second one,
 * behind it, tells later what has changed.  Returns 0, -EINVAL or -ENOMEM.
 */
int kvm_gmem_map_copy(struct kvm_memory_slot *slot, gfn_t gfn, struct kvm_host_map *map)
{
	void *copy;

	copy = kvmalloc(map->writable ? 2 * PAGE_SIZE : PAGE_SIZE, GFP_KERNEL_ACCOUNT);
	if (!copy)
		return -ENOMEM;

	if (kvm_gmem_read(slot, gfn, copy, 0, PAGE_SIZE)) {
		kvfree(copy);
		return -EINVAL;
	}

	if (map->writable)
		memcpy(copy + PAGE_SIZE, copy, PAGE_SIZE);

	map->pfn = KVM_PFN_ERR_FAULT;
	map->gmem_copy = copy;
	map->hva = copy;
	return 0;
}

/*
 * Store what differs between @now and @before, halves of a word apart: the other one may
 * be the guest's.
 */
static void kvm_gmem_store_changes(u64 *to, u64 now, u64 before)
{
	union {
		u64 word;
		u32 half[2];
	} diff = { .word = now ^ before }, new = { .word = now };

	if (diff.half[0] && diff.half[1])
		WRITE_ONCE(*to, now);
	else if (diff.half[0])
		WRITE_ONCE(((u32 *)to)[0], new.half[0]);
	else if (diff.half[1])
		WRITE_ONCE(((u32 *)to)[1], new.half[1]);
}

static void kvm_gmem_write_back(struct kvm_memory_slot *slot, gfn_t gfn, const u64 *copy)
{
	const u64 *before = (void *)copy + PAGE_SIZE;
	struct gmem_access access;
	u64 *va;
	int i;

	/* The page was there, and has been taken away: so are the changes. */
	if (kvm_gmem_begin_access(slot, gfn, true, &access))
		return;

	va = kvm_gmem_map_local(access.page);
	for (i = 0; i < PAGE_SIZE / sizeof(*va); i++)
		kvm_gmem_store_changes(&va[i], copy[i], before[i]);
	kvm_gmem_unmap_local(va);

	kvm_gmem_end_access(&access);
}

/* Write back what @vcpu's copy of a page has and the page has not, and free it. */
void kvm_gmem_unmap_copy(struct kvm_vcpu *vcpu, struct kvm_host_map *map)
{
	struct kvm_memory_slot *slot = kvm_vcpu_gfn_to_memslot(vcpu, map->gfn);

	if (map->writable && kvm_memslot_is_gmem_only(slot)) {
		kvm_gmem_write_back(slot, map->gfn, map->gmem_copy);
		mark_page_dirty_in_slot(vcpu->kvm, slot, map->gfn);
	}

	kvfree(map->gmem_copy);
	map->gmem_copy = NULL;
	map->hva = NULL;
}

/* Map the page itself, with a reference; see kvm_vcpu_map_hw(). */
int kvm_gmem_map_hw(struct kvm *kvm, struct kvm_memory_slot *slot, gfn_t gfn,
		    struct kvm_host_map *map)
{
	struct gmem_access access;

	if (kvm_gmem_begin_access(slot, gfn, true, &access))
		return -EINVAL;

	map->hva = kvm_gmem_map_long(kvm, access.page);
	if (map->hva) {
		get_page(access.page);
		map->gmem_page = access.page;
		map->pfn = page_to_pfn(access.page);
	}

	kvm_gmem_end_access(&access);
	return map->hva ? 0 : -ENOMEM;
}

void kvm_gmem_unmap_hw(struct kvm_vcpu *vcpu, struct kvm_host_map *map)
{
	kvm_gmem_unmap_long(vcpu->kvm, map->gmem_page, map->hva);
	kvm_vcpu_mark_page_dirty(vcpu, map->gfn);
	put_page(map->gmem_page);
	map->gmem_page = NULL;
	map->hva = NULL;
}
