// SPDX-License-Identifier: GPL-2.0-only
/*
 * What KUnit tests of VM types need of guest_memfd to drive the real files instead of
 * a copy of what those do.  The VM may be one of the test's own that has never been
 * through KVM_CREATE_VM: a table of operations, a memslot, and the locks that
 * guest_memfd takes are enough.
 */
#include <linux/fdtable.h>
#include <linux/file.h>
#include <linux/kvm_gmem_kunit.h>
#include <linux/kvm_host.h>

#include "gmem_internal.h"
#include "guest_memfd.h"

/*
 * Create a file of @size bytes that is served by @ops, and let the new @slot, of
 * which flags, base_gfn and npages are set, show it from the start.  Returns the file
 * with one reference, which is the last one: the test puts it by __fput_sync(), as
 * the file is to be gone when the test goes on.
 */
struct file *kvm_gmem_kunit_open(struct kvm *kvm, const struct kvm_gmem_ops *ops,
				 struct kvm_memory_slot *slot, loff_t size, u64 flags)
{
	struct file *file;
	int fd, r;

	fd = get_unused_fd_flags(0);
	if (fd < 0)
		return ERR_PTR(fd);

	file = kvm_gmem_create_file(kvm, ops, size, flags);
	if (IS_ERR(file)) {
		put_unused_fd(fd);
		return file;
	}

	get_file(file);
	fd_install(fd, file);

	mutex_lock(&kvm->slots_lock);
	r = kvm_gmem_prepare_memory_region(kvm, slot, fd, 0);
	if (!r) {
		r = kvm_gmem_commit_memory_region(kvm, slot);
		fput(slot->gmem.file);
	}
	mutex_unlock(&kvm->slots_lock);

	close_fd(fd);
	if (r) {
		__fput_sync(file);
		return ERR_PTR(r);
	}
	return file;
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gmem_kunit_open);
