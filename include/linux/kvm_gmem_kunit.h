/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef __LINUX_KVM_GMEM_KUNIT_H
#define __LINUX_KVM_GMEM_KUNIT_H

#include <kunit/test.h>
#include <linux/fs.h>
#include <linux/fs_struct.h>
#include <linux/kvm_gmem.h>
#include <linux/kvm_host.h>
#include <linux/pid_namespace.h>
#include <linux/sched/task.h>

struct file *kvm_gmem_kunit_open(struct kvm *kvm, const struct kvm_gmem_ops *ops,
				 struct kvm_memory_slot *slot, loff_t size, u64 flags);

/*
 * A row of the table of content flags in Documentation/virt/kvm/guest_memfd.rst,
 * made of what a VM type's table says, to be compared with the row there.  The
 * document has the same rows; lab/content-table.sh sees to that.
 */
static inline void kvm_gmem_kunit_content_row(struct kunit *test, struct kvm *kvm,
					      const struct kvm_gmem_ops *ops,
					      const char *type, bool to_private,
					      const char *want)
{
	static const char * const names[] = { "ZERO", "PRESERVE", "DISCARD" };
	static const u64 flags[] = {
		KVM_SET_MEMORY_ATTRIBUTES2_ZERO,
		KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE,
		KVM_SET_MEMORY_ATTRIBUTES2_DISCARD,
	};
	const char *dflt = "undefined", *separator = " ";
	struct kvm_gmem_content c;
	char row[96];
	int i, len;

	ops->content(kvm, to_private, &c);
	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		if (c.dflt == flags[i])
			dflt = names[i];
	}

	len = scnprintf(row, sizeof(row), "%-25s %-8s %-15s", type,
			to_private ? "private" : "shared", dflt);
	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		if (!(c.allowed & flags[i]))
			continue;
		len += scnprintf(row + len, sizeof(row) - len, "%s%s", separator, names[i]);
		separator = ", ";
	}

	KUNIT_EXPECT_STREQ(test, row, want);
}

/* A kernel thread sees no file system; init does. */
static inline struct file *kvm_gmem_kunit_open_kvm(void)
{
	struct task_struct *init;
	struct file *file;
	struct path root;

	scoped_guard(rcu) {
		init = pid_task(find_pid_ns(1, &init_pid_ns), PIDTYPE_PID);
		get_task_struct(init);
	}

	task_lock(init);
	get_fs_root(init->fs, &root);
	task_unlock(init);
	put_task_struct(init);

	file = file_open_root(&root, "dev/kvm", O_RDWR, 0);
	path_put(&root);
	return file;
}

#endif /* __LINUX_KVM_GMEM_KUNIT_H */
