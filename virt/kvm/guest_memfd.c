// SPDX-License-Identifier: GPL-2.0-only
/*
 * guest_memfd: guest memory as a file that belongs to the guest.
 *
 * This file is the front: creation, life of file and inode, fallocate, lseek, mmap.
 * gmem_internal.h has the data model and the locking rules, guest_memfd_bind.c
 * ties files to memslots and zaps, guest_memfd_fault.c serves user and guest
 * faults, guest_memfd_access.c KVM's own accesses, guest_memfd_convert.c moves pages
 * between private and shared, guest_memfd_folio.c allocates and frees,
 * guest_memfd_write.c fills, guest_memfd_lock.c locks, gmem_state.c remembers states.
 */
#include <linux/anon_inodes.h>
#include <linux/backing-dev.h>
#include <linux/falloc.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/huge_mm.h>
#include <linux/kvm_host.h>
#include <linux/mempolicy.h>
#include <linux/moduleparam.h>
#include <linux/pagemap.h>
#include <linux/pseudo_fs.h>

#include "gmem_internal.h"
#include "guest_memfd.h"
#include "kvm_mm.h"

#define CREATE_TRACE_POINTS
#include "gmem_trace.h"

static struct vfsmount *kvm_gmem_mnt;
static struct kmem_cache *kvm_gmem_inode_cachep;
static struct file_operations kvm_gmem_fops;

/*
 * The name under which another implementation lets the administrator choose whether
 * guest_memfd converts in place.  Here it always does, and VMMs that look before they
 * leap find so.
 */
static int kvm_gmem_set_in_place(const char *val, const struct kernel_param *kp)
{
	bool on;
	int r;

	r = kstrtobool(val, &on);
	if (!r && !on)
		pr_warn("kvm: guest_memfd always converts in place, gmem_in_place_conversion=%s is ignored\n",
			val);
	return r;
}

static const struct kernel_param_ops kvm_gmem_in_place_param_ops = {
	.set = kvm_gmem_set_in_place,
	.get = param_get_bool,
};

static bool gmem_in_place_conversion = true;
module_param_cb(gmem_in_place_conversion, &kvm_gmem_in_place_param_ops,
		&gmem_in_place_conversion, 0444);

/* fallocate() */

/*
 * A hole takes private pages away from a running guest for good.  That is for the VM's
 * process to decide, not for whoever has got hold of a descriptor or of a mapping, even
 * a read-only one, which is all that MADV_REMOVE takes.
 */
static int kvm_gmem_may_punch(struct gmem_file *f, pgoff_t start, pgoff_t end)
{
	struct gmem_inode *gi = GMEM_I(f->inode);
	bool has_private;

	kvm_gmem_assert_exclusive(f->inode, start, end);

	/* Without private memory there is no one to protect it from, as in the base. */
	if (!gi->ops->attributes || kvm_gmem_may_control(f))
		return 0;

	/* There is nothing beyond the end, and that is nobody's. */
	end = min_t(pgoff_t, end, i_size_read(f->inode) >> PAGE_SHIFT);
	if (start >= end)
		return 0;

	if (gi->in_place)
		has_private = !gmem_state_range_is(&gi->state, start, end, false);
	else
		has_private = kvm_gmem_index_is_private(f->inode, start);

	return has_private ? -EPERM : 0;
}

static int kvm_gmem_punch_batch(struct gmem_file *f, pgoff_t start, pgoff_t end)
{
	int r;

	kvm_gmem_assert_exclusive(f->inode, start, end);

	/* The lock was dropped since the first look, and memory may have come or moved. */
	r = kvm_gmem_may_punch(f, start, end);
	if (!r)
		r = kvm_gmem_cut_edges(f->inode, start, end);
	if (!r)
		r = kvm_gmem_prepare_range(f->inode, start, end);
	if (!r)
		r = kvm_gmem_reclaim_inode_range(f->inode, start, end);
	if (r)
		return r;

	kvm_gmem_invalidate_start(f->inode, start, end, kvm_gmem_filter(f->inode));

	kvm_gmem_unmap_users(f->inode, start, end);
	kvm_gmem_release_inode_range(f->inode, start, end);
	kvm_gmem_drop_folios(f, start, end);

	kvm_gmem_invalidate_end(f->inode, start, end);
	return 0;
}

/* What fails for the hole as a whole had better fail before anything is freed. */
static int kvm_gmem_prepare_hole(struct gmem_file *f, pgoff_t start, pgoff_t end)
{
	int r;

	if (!GMEM_I(f->inode)->max_order &&
	    (!GMEM_I(f->inode)->ops->attributes || kvm_gmem_may_control(f)))
		return 0;

	kvm_gmem_begin_change(f->inode);
	r = kvm_gmem_may_punch(f, start, end) ?:
	    kvm_gmem_cut_edges(f->inode, start, end);
	kvm_gmem_end_change(f->inode);

	return r;
}

/*
 * Free what is present in [@start, @end); states stay.  Holes cost nothing, and
 * faults get their turn after each batch.  A private page that isn't the caller's to
 * punch, or a large folio that straddles an edge and is held, fails the call before
 * anything is freed; if the VM type cannot let go of a batch, or a page becomes private
 * meanwhile, what came before it is free.
 */
static int kvm_gmem_punch_hole(struct gmem_file *f, pgoff_t start, pgoff_t end)
{
	pgoff_t next;
	int r;

	trace_kvm_gmem_punch(f->inode->i_ino, start, end);

	r = kvm_gmem_prepare_hole(f, start, end);
	while (!r && start < end) {
		kvm_gmem_begin_change(f->inode);

		start = kvm_gmem_next_present(f->inode, start, end);
		next = kvm_gmem_batch_end(f->inode, start, end);
		if (start < next)
			r = kvm_gmem_punch_batch(f, start, next);

		kvm_gmem_end_change(f->inode);

		start = next;
		cond_resched();
	}
	kvm_gmem_trim_blocks(f->inode);

	return r;
}

static int kvm_gmem_allocate_batch(struct gmem_file *f, pgoff_t *start, pgoff_t end)
{
	struct folio *folio;

	while (*start < end) {
		if (signal_pending(current))
			return -EINTR;

		folio = kvm_gmem_get_folio(f, *start);
		if (IS_ERR(folio))
			return PTR_ERR(folio);

		*start = folio_next_index(folio);
		folio_unlock(folio);
		folio_put(folio);
		cond_resched();
	}

	return 0;
}

/* What is allocated stays if the rest fails, as fallocate(2) has it. */
static int kvm_gmem_allocate(struct gmem_file *f, pgoff_t start, pgoff_t end)
{
	pgoff_t next;
	int r = 0;

	while (!r && start < end) {
		next = min(end, start + GMEM_BATCH_PAGES);
		r = kvm_gmem_lock_range(f->inode, start, next, TASK_INTERRUPTIBLE);
		if (r)
			return r;

		r = kvm_gmem_allocate_batch(f, &start, next);
		kvm_gmem_unlock_range(f->inode);
	}

	return r;
}

static long kvm_gmem_fallocate(struct file *file, int mode, loff_t offset, loff_t len)
{
	struct gmem_file *f = file->private_data;
	pgoff_t start = offset >> PAGE_SHIFT;
	pgoff_t end = (offset + len) >> PAGE_SHIFT;
	int r = 0;

	/* The size of guest memory is fixed. */
	if (!(mode & FALLOC_FL_KEEP_SIZE) ||
	    mode & ~(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE))
		return -EOPNOTSUPP;

	if (!PAGE_ALIGNED(offset) || !PAGE_ALIGNED(len))
		return -EINVAL;

	if (mode & FALLOC_FL_PUNCH_HOLE)
		r = kvm_gmem_punch_hole(f, start, end);
	else if (offset + len > i_size_read(f->inode))
		r = -EINVAL;
	else
		r = kvm_gmem_allocate(f, start, end);

	if (!r)
		file_modified(file);
	return r;
}

/* SEEK_DATA and SEEK_HOLE: what is present, on either side, is data. */
static loff_t kvm_gmem_seek(struct file *file, loff_t offset, bool data)
{
	struct gmem_file *f = file->private_data;
	loff_t size = i_size_read(f->inode);
	pgoff_t index = offset >> PAGE_SHIFT;
	pgoff_t end = size >> PAGE_SHIFT;
	int r;

	if (offset < 0 || offset >= size)
		return -ENXIO;

	r = kvm_gmem_lock_range(f->inode, index, end, TASK_KILLABLE);
	if (r)
		return r;

	index = data ? kvm_gmem_next_present(f->inode, index, end) :
		       kvm_gmem_next_absent(f->inode, index, end);
	kvm_gmem_unlock_range(f->inode);

	/* The end is a hole, but no data. */
	if (data && index == end)
		return -ENXIO;

	return vfs_setpos(file, max(offset, (loff_t)index << PAGE_SHIFT), size);
}

static loff_t kvm_gmem_llseek(struct file *file, loff_t offset, int whence)
{
	switch (whence) {
	case SEEK_DATA:
		return kvm_gmem_seek(file, offset, true);
	case SEEK_HOLE:
		return kvm_gmem_seek(file, offset, false);
	default:
		return generic_file_llseek(file, offset, whence);
	}
}

/* User mappings. */

#ifdef CONFIG_NUMA
static int kvm_gmem_set_policy(struct vm_area_struct *vma, struct mempolicy *mpol)
{
	struct inode *inode = file_inode(vma->vm_file);

	return mpol_set_shared_policy(&GMEM_I(inode)->policy, vma, mpol);
}

/*
 * NULL if mbind() has set none: it tells get_mempolicy() to report the default
 * policy, not that of the calling task.
 */
static struct mempolicy *kvm_gmem_get_policy(struct vm_area_struct *vma,
					     unsigned long addr, pgoff_t *ilx)
{
	struct inode *inode = file_inode(vma->vm_file);

	*ilx = inode->i_ino;
	return mpol_shared_policy_lookup(&GMEM_I(inode)->policy,
					 linear_page_index(vma, addr));
}
#endif /* CONFIG_NUMA */

static const struct vm_operations_struct kvm_gmem_vm_ops = {
	.fault		= kvm_gmem_fault,
#ifdef CONFIG_USERFAULTFD
	.uffd_ops	= &kvm_gmem_uffd_ops,
#endif
#ifdef CONFIG_NUMA
	.get_policy	= kvm_gmem_get_policy,
	.set_policy	= kvm_gmem_set_policy,
#endif
};

static int kvm_gmem_mmap(struct file *file, struct vm_area_struct *vma)
{
	if (!(GMEM_I(file_inode(file))->flags & GUEST_MEMFD_FLAG_MMAP))
		return -ENODEV;

	/* A private copy of guest memory makes no sense. */
	if ((vma->vm_flags & (VM_SHARED | VM_MAYSHARE)) != (VM_SHARED | VM_MAYSHARE))
		return -EINVAL;

	vma->vm_ops = &kvm_gmem_vm_ops;
	return 0;
}

/* Address space operations; see KVM_GMEM_AOPS(). */

/* Folios are unmovable, no one should ask. */
int kvm_gmem_migrate_folio(struct address_space *mapping, struct folio *dst,
			   struct folio *src, enum migrate_mode mode)
{
	WARN_ON_ONCE(1);
	return -EINVAL;
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gmem_migrate_folio);

/*
 * Memory failure has poisoned @folio, which it holds locked: take it away from
 * the guest.  The folio stays in the file, so that the guest's next access finds
 * it and gets -EHWPOISON; what to do about that is up to user space.
 *
 * A guest fault that has looked at the folio before it was poisoned is made to
 * retry by the change of mmu_invalidate_seq.
 */
int kvm_gmem_error_folio(struct address_space *mapping, struct folio *folio)
{
	struct inode *inode = mapping->host;
	pgoff_t start = folio->index;
	pgoff_t end = folio_next_index(folio);

	VM_WARN_ON_ONCE_FOLIO(!folio_test_locked(folio), folio);

	guard(rwsem_read)(&GMEM_I(inode)->bindings_lock);

	kvm_gmem_invalidate_start(inode, start, end, kvm_gmem_filter(inode));
	kvm_gmem_invalidate_end(inode, start, end);

	return MF_DELAYED;
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gmem_error_folio);

const struct address_space_operations kvm_gmem_default_aops = KVM_GMEM_AOPS(NULL);
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gmem_default_aops);

const struct kvm_gmem_ops kvm_gmem_default_ops = {
	.create_flags	= GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED |
			  KVM_GMEM_HUGE_FLAG | KVM_GMEM_NO_DIRECT_MAP_FLAG,
	.max_order	= KVM_GMEM_HUGE_ORDER,
	.zap_on_convert	= true,
	.host_private	= true,
	.zap_is_lossless = true,
	.aops		= &kvm_gmem_default_aops,
};

bool __weak kvm_arch_gmem_can_be_out(void)
{
	return true;
}

const struct kvm_gmem_ops * __weak kvm_arch_gmem_ops(struct kvm *kvm)
{
	return &kvm_gmem_default_ops;
}

/* Life of files and inodes. */

static long kvm_gmem_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	if (cmd != KVM_SET_MEMORY_ATTRIBUTES2)
		return -ENOTTY;

	return kvm_gmem_set_attributes(file->private_data, (void __user *)arg);
}

typedef void (*kvm_gmem_piece_fn)(struct gmem_file *f, pgoff_t start, pgoff_t end);

/*
 * Call @fn for all that is present in @f's file, in pieces, and with no lock held
 * between them: the file may be huge, and slots_lock and bindings_lock, which others of
 * the VM want, aren't needed.
 */
static void kvm_gmem_for_each_piece(struct gmem_file *f, kvm_gmem_piece_fn fn)
{
	pgoff_t end = i_size_read(f->inode) >> PAGE_SHIFT;
	pgoff_t start = 0, next;

	while (start < end) {
		kvm_gmem_begin_change(f->inode);

		start = kvm_gmem_next_present(f->inode, start, end);
		next = kvm_gmem_batch_end(f->inode, start, end);
		if (start < next)
			fn(f, start, next);

		kvm_gmem_end_change(f->inode);

		start = next;
		cond_resched();
	}
}

/* What the platform doesn't give back is leaked when it is freed. */
static void kvm_gmem_reclaim_piece(struct gmem_file *f, pgoff_t start, pgoff_t end)
{
	kvm_gmem_reclaim_range(f, start, end);
}

/*
 * The last reference to the file is gone, and with it all faults, as those of
 * users hold it through the VMA and those of guests get_file_active().  Slots may
 * still point here; kvm_gmem_unbind() of such a slot is excluded by slots_lock.
 *
 * The memory goes here and not when the inode is evicted: there is one file to an inode,
 * and only as long as it holds the VM is the VM type's ->free_folio(), which may be in
 * the vendor's module, sure to be there.
 */
static int kvm_gmem_release(struct inode *inode, struct file *file)
{
	struct gmem_file *f = file->private_data;
	struct kvm *kvm = f->kvm;

	if (GMEM_I(inode)->ops->reclaim_range)
		kvm_gmem_for_each_piece(f, kvm_gmem_reclaim_piece);

	mutex_lock(&kvm->slots_lock);
	kvm_gmem_lock_bindings(inode);

	kvm_gmem_invalidate_file_start(f, 0, ULONG_MAX, kvm_gmem_filter(inode));
	kvm_gmem_invalidate_file_end(f, 0, ULONG_MAX);
	kvm_gmem_release_range(f, 0, ULONG_MAX);
	kvm_gmem_unbind_all(f);
	list_del(&f->entry);

	kvm_gmem_unlock_bindings(inode);
	mutex_unlock(&kvm->slots_lock);

	kvm_gmem_for_each_piece(f, kvm_gmem_drop_folios);
	kvm_gmem_free_blocks(inode);

	kfree(f);
	kvm_put_kvm(kvm);

	return 0;
}

static struct file_operations kvm_gmem_fops = {
	.llseek		= kvm_gmem_llseek,
	.mmap		= kvm_gmem_mmap,
	/* So that users can have large folios mapped whole. */
	.get_unmapped_area = thp_get_unmapped_area,
	.open		= generic_file_open,
	.release	= kvm_gmem_release,
	.fallocate	= kvm_gmem_fallocate,
	.write_iter	= kvm_gmem_write_iter,
	.splice_write	= iter_file_splice_write,
	.unlocked_ioctl	= kvm_gmem_ioctl,
	.compat_ioctl	= compat_ptr_ioctl,
};

static int kvm_gmem_setattr(struct mnt_idmap *idmap, struct dentry *dentry,
			    struct iattr *attr)
{
	return -EINVAL;
}

static int kvm_gmem_getattr(struct mnt_idmap *idmap, const struct path *path,
			    struct kstat *stat, u32 request_mask, unsigned int flags)
{
	struct inode *inode = d_inode(path->dentry);

	generic_fillattr(idmap, request_mask, inode, stat);
	stat->blocks = (u64)READ_ONCE(inode->i_mapping->nrpages) << (PAGE_SHIFT - SECTOR_SHIFT);
	return 0;
}

static const struct inode_operations kvm_gmem_iops = {
	.getattr	= kvm_gmem_getattr,
	.setattr	= kvm_gmem_setattr,
};

static const char kvm_gmem_name[] = "[kvm-gmem]";

/*
 * The memory of the new @inode will be out of the direct map.  GUP refuses pages of files
 * that are out for good; where it depends on the state, what is out is private and in no
 * user's page table.  kvm_gmem_destroy_inode() undoes it.
 */
static void kvm_gmem_leave_direct_map(struct inode *inode)
{
	WARN_ON_ONCE(inode->i_mapping->a_ops->free_folio || GMEM_I(inode)->ops->make_shared);
	inode->i_mapping->a_ops = &kvm_gmem_no_direct_map_aops;

	direct_map_holes_get();
	if (!GMEM_I(inode)->in_place)
		mapping_set_no_direct_map(inode->i_mapping);
}

static struct inode *kvm_gmem_create_inode(const struct kvm_gmem_ops *ops,
					   loff_t size, u64 flags)
{
	struct gmem_inode *gi;
	struct inode *inode;

	inode = anon_inode_make_secure_inode(kvm_gmem_mnt->mnt_sb, kvm_gmem_name, NULL);
	if (IS_ERR(inode))
		return inode;

	gi = GMEM_I(inode);
	gi->ops = ops;
	gi->flags = flags;
	gi->in_place = kvm_gmem_in_place(flags, gi->ops);
	/* A file of no other kind can still become either. */
	gi->backing_fixed = gi->in_place || !ops->attributes;
	gi->max_order = flags & GUEST_MEMFD_FLAG_HUGE ? ops->max_order : 0;
	gmem_state_set_default(&gi->state, !(flags & GUEST_MEMFD_FLAG_INIT_SHARED));

	inode->i_op = &kvm_gmem_iops;
	inode->i_mapping->a_ops = gi->ops->aops;
	if (flags & GUEST_MEMFD_FLAG_NO_DIRECT_MAP)
		kvm_gmem_leave_direct_map(inode);
	inode->i_mode |= S_IFREG;
	inode->i_size = size;
	mapping_set_gfp_mask(inode->i_mapping, GFP_HIGHUSER);
	mapping_set_folio_order_range(inode->i_mapping, 0, gi->max_order);
	mapping_set_inaccessible(inode->i_mapping);
	/* Unmovable mappings are supposed to be marked unevictable as well. */
	WARN_ON_ONCE(!mapping_unevictable(inode->i_mapping));

	return inode;
}

static struct gmem_file *kvm_gmem_alloc_file(struct kvm *kvm, struct inode *inode)
{
	struct gmem_file *f;

	/* Small, and one a file: inode and struct file are what is accounted. */
	f = kzalloc_obj(*f);
	if (!f)
		return NULL;

	f->kvm = kvm;
	f->inode = inode;
	f->bindings = RB_ROOT_CACHED;
	return f;
}

/*
 * Return an open file of @size bytes for a new inode that is served by @ops; it
 * isn't published yet.  Takes a reference to @kvm.
 */
struct file *kvm_gmem_create_file(struct kvm *kvm, const struct kvm_gmem_ops *ops,
				  loff_t size, u64 flags)
{
	struct gmem_file *f;
	struct inode *inode;
	struct file *file;

	/* fput() drops the reference to the module. */
	if (!fops_get(&kvm_gmem_fops))
		return ERR_PTR(-ENOENT);

	inode = kvm_gmem_create_inode(ops, size, flags);
	if (IS_ERR(inode)) {
		file = ERR_CAST(inode);
		goto err_fops;
	}

	f = kvm_gmem_alloc_file(kvm, inode);
	if (!f) {
		file = ERR_PTR(-ENOMEM);
		goto err_inode;
	}

	file = alloc_file_pseudo(inode, kvm_gmem_mnt, kvm_gmem_name, O_RDWR, &kvm_gmem_fops);
	if (IS_ERR(file))
		goto err_file;

	kvm_get_kvm(kvm);
	file->f_flags |= O_LARGEFILE;
	file->f_mode |= FMODE_PWRITE;
	file->private_data = f;
	list_add(&f->entry, &GMEM_I(inode)->files);
	return file;

err_file:
	kfree(f);
err_inode:
	iput(inode);
err_fops:
	fops_put(&kvm_gmem_fops);
	return file;
}

/*
 * What the base never looked at can be looked at only if a new flag says so, as old
 * VMMs may leave garbage there.
 */
static bool kvm_gmem_reserved_is_good(const struct kvm_gmem_ops *ops,
				      const struct kvm_create_guest_memfd *args)
{
	if (!(args->flags & GUEST_MEMFD_FLAG_HUGE))
		return true;

	/* There is one large size; it may be named. */
	if (args->page_shift && args->page_shift != PAGE_SHIFT + ops->max_order)
		return false;

	return !memchr_inv(&args->reserved[1], 0,
			   sizeof(args->reserved) - sizeof(args->reserved[0]));
}

/* Flags that files of this VM type accept. */
static u64 kvm_gmem_create_flags(const struct kvm_gmem_ops *ops)
{
	u64 flags = ops->create_flags | GUEST_MEMFD_FLAG_WRITE;

	if (ops->attributes)
		flags |= GUEST_MEMFD_FLAG_SHARED_CONTROL;
	if (!direct_map_can_have_holes() || !kvm_arch_gmem_can_be_out())
		flags &= ~GUEST_MEMFD_FLAG_NO_DIRECT_MAP;
	return flags;
}

/*
 * KVM_CREATE_GUEST_MEMFD: create a file of args->size bytes and return an fd for
 * it.  Returns -EINVAL for a size that is 0, negative or not page-aligned, for
 * flags that the VM type doesn't support, and for what is unknown beside a flag
 * that gives a meaning to reserved fields.
 */
int kvm_gmem_create(struct kvm *kvm, struct kvm_create_guest_memfd *args)
{
	const struct kvm_gmem_ops *ops = kvm_arch_gmem_ops(kvm);
	loff_t size = args->size;
	struct file *file;
	int fd;

	if (args->flags & ~kvm_gmem_create_flags(ops))
		return -EINVAL;

	if (size <= 0 || !PAGE_ALIGNED(size) || !kvm_gmem_reserved_is_good(ops, args))
		return -EINVAL;

	fd = get_unused_fd_flags(0);
	if (fd < 0)
		return fd;

	file = kvm_gmem_create_file(kvm, ops, size, args->flags);
	if (IS_ERR(file)) {
		put_unused_fd(fd);
		return PTR_ERR(file);
	}

	trace_kvm_gmem_create(file_inode(file)->i_ino, size, args->flags,
			      GMEM_I(file_inode(file))->in_place);
	fd_install(fd, file);
	return fd;
}

/* @file as one of guest_memfd, or NULL if it is none, or none of @kvm. */
static struct gmem_file *kvm_gmem_file(struct file *file, struct kvm *kvm)
{
	struct gmem_file *f = file->private_data;

	return file->f_op == &kvm_gmem_fops && f->kvm == kvm ? f : NULL;
}

/*
 * Let the new @slot refer to the memory at @offset (bytes) of the guest_memfd
 * @fd.  On success slot->gmem.file holds a reference that the caller drops once
 * the slot is installed or given up: the file keeps the VM, not vice versa.
 *
 * slots_lock is held, @slot isn't visible to anyone yet.  Returns 0, -EBADF if
 * there is no such fd, -EINVAL if it isn't a guest_memfd of this VM or too small.
 */
int kvm_gmem_prepare_memory_region(struct kvm *kvm, struct kvm_memory_slot *slot,
				   unsigned int fd, uoff_t offset)
{
	uoff_t size = slot->npages << PAGE_SHIFT;
	struct gmem_file *f;
	struct file *file;

	BUILD_BUG_ON(sizeof(gpa_t) != sizeof(offset));
	BUILD_BUG_ON(sizeof(gfn_t) != sizeof(slot->gmem.pgoff));

	if (WARN_ON_ONCE(slot->flags & KVM_MEMSLOT_GMEM_ONLY))
		return -EINVAL;

	file = fget(fd);
	if (!file)
		return -EBADF;

	f = kvm_gmem_file(file, kvm);
	if (!f || !PAGE_ALIGNED(offset) || offset + size < offset ||
	    offset + size > i_size_read(f->inode)) {
		fput(file);
		return -EINVAL;
	}

	kvm_gmem_set_slot(slot, file, offset >> PAGE_SHIFT);
	return 0;
}

/*
 * Call @fn for the pages present at user addresses [@start, @end), which lie in @vma, as
 * kvm_gmem_walk_present() does.  Returns false, without having called @fn, if @vma doesn't
 * map a guest_memfd of @kvm.  If that is all there is to know @fn may be NULL.  mmap_lock
 * is held, which keeps the file open.
 */
bool kvm_gmem_walk_vma(struct kvm *kvm, struct vm_area_struct *vma, unsigned long start,
		       unsigned long end, kvm_gmem_walk_fn fn, void *arg)
{
	struct gmem_file *f;
	pgoff_t index;

	mmap_assert_locked(vma->vm_mm);

	f = vma->vm_file ? kvm_gmem_file(vma->vm_file, kvm) : NULL;
	if (!f)
		return false;

	index = linear_page_index(vma, start);
	if (fn)
		kvm_gmem_walk_file(f, index, index + PFN_DOWN(end - start), fn, arg);
	return true;
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gmem_walk_vma);

static int kvm_gmem_allowed_content(struct kvm *kvm, bool to_private)
{
	const struct kvm_gmem_ops *ops = kvm_arch_gmem_ops(kvm);
	struct kvm_gmem_content content;

	/* The answer depends on the VM and its phase. */
	if (!kvm || !ops->attributes)
		return 0;

	ops->content(kvm, to_private, &content);
	return content.allowed;
}

/*
 * KVM_CHECK_EXTENSION; @kvm is NULL if the system is asked.  Returns -ENOENT if @cap is
 * not about guest_memfd.
 */
int kvm_gmem_check_extension(struct kvm *kvm, long cap)
{
	const struct kvm_gmem_ops *ops = kvm_arch_gmem_ops(kvm);

	switch (cap) {
	case KVM_CAP_GUEST_MEMFD:
		return 1;
	case KVM_CAP_GUEST_MEMFD_FLAGS:
		return kvm_gmem_create_flags(ops);
	case KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES:
		return ops->attributes;
	case KVM_CAP_GUEST_MEMFD_FLAGS_TO_PRIVATE:
		return kvm_gmem_allowed_content(kvm, true);
	case KVM_CAP_GUEST_MEMFD_FLAGS_TO_SHARED:
		return kvm_gmem_allowed_content(kvm, false);
	case KVM_CAP_GUEST_MEMFD_USERFAULT:
		return kvm_gmem_userfault_features(ops);
	default:
		return -ENOENT;
	}
}

/*
 * Runs once an object of the slab cache, not once an inode: what an inode leaves as it
 * has found it, and what kvm_gmem_destroy_inode() needs in one that was never used.
 */
static void kvm_gmem_init_inode_once(void *__gi)
{
	struct gmem_inode *gi = __gi;

	inode_init_once(&gi->vfs_inode);
	mutex_init(&gi->change_lock);
	gi->claim_start = 0;
	gi->claim_end = 0;
	init_waitqueue_head(&gi->claim_wait);
	init_rwsem(&gi->bindings_lock);
	INIT_LIST_HEAD(&gi->files);
	gmem_state_init(&gi->state, false);
	mutex_init(&gi->blocks_lock);
	INIT_LIST_HEAD(&gi->blocks_entry);
	INIT_LIST_HEAD(&gi->fresh_blocks);
	INIT_LIST_HEAD(&gi->parked_blocks);
}

static struct inode *kvm_gmem_alloc_inode(struct super_block *sb)
{
	struct gmem_inode *gi;

	gi = alloc_inode_sb(sb, kvm_gmem_inode_cachep, GFP_KERNEL);
	if (!gi)
		return NULL;

	mpol_shared_policy_init(&gi->policy, NULL);
	atomic_long_set(&gi->nr_private, 0);
	gi->flags = 0;
	gi->no_blocks = 0;

	return &gi->vfs_inode;
}

/* RCU readers may still be in the map, which copes, and in the inode: see below. */
static void kvm_gmem_destroy_inode(struct inode *inode)
{
	if (GMEM_I(inode)->flags & GUEST_MEMFD_FLAG_NO_DIRECT_MAP)
		direct_map_holes_put();
	mpol_free_shared_policy(&GMEM_I(inode)->policy);
	gmem_state_destroy(&GMEM_I(inode)->state);
}

/* After an RCU grace period. */
static void kvm_gmem_free_inode(struct inode *inode)
{
	kmem_cache_free(kvm_gmem_inode_cachep, GMEM_I(inode));
}

static const struct super_operations kvm_gmem_super_operations = {
	.statfs		= simple_statfs,
	.alloc_inode	= kvm_gmem_alloc_inode,
	.destroy_inode	= kvm_gmem_destroy_inode,
	.free_inode	= kvm_gmem_free_inode,
};

static int kvm_gmem_init_fs_context(struct fs_context *fc)
{
	struct pseudo_fs_context *ctx;

	ctx = init_pseudo(fc, GUEST_MEMFD_MAGIC);
	if (!ctx)
		return -ENOMEM;

	ctx->ops = &kvm_gmem_super_operations;
	return 0;
}

static struct file_system_type kvm_gmem_fs = {
	.name		 = "guest_memfd",
	.init_fs_context = kvm_gmem_init_fs_context,
	.kill_sb	 = kill_anon_super,
};

/* @module is that of the vendor, which every open file keeps loaded. */
int kvm_gmem_init(struct module *module)
{
	struct kmem_cache_args args = {
		.ctor = kvm_gmem_init_inode_once,
	};
	int r;

	kvm_gmem_fops.owner = module;
	kvm_gmem_inode_cachep = kmem_cache_create("kvm_gmem_inode_cache",
						  sizeof(struct gmem_inode),
						  &args, SLAB_ACCOUNT);
	if (!kvm_gmem_inode_cachep)
		return -ENOMEM;

	r = kvm_gmem_init_blocks();
	if (r)
		goto err_cache;

	kvm_gmem_mnt = kern_mount(&kvm_gmem_fs);
	if (IS_ERR(kvm_gmem_mnt)) {
		r = PTR_ERR(kvm_gmem_mnt);
		goto err_blocks;
	}

	kvm_gmem_mnt->mnt_flags |= MNT_NOEXEC;
	return 0;

err_blocks:
	kvm_gmem_exit_blocks();
err_cache:
	kmem_cache_destroy(kvm_gmem_inode_cachep);
	return r;
}

void kvm_gmem_exit(void)
{
	kern_unmount(kvm_gmem_mnt);
	kvm_gmem_mnt = NULL;
	/* Inodes are freed by RCU. */
	rcu_barrier();
	kvm_gmem_exit_blocks();
	kmem_cache_destroy(kvm_gmem_inode_cachep);
}
