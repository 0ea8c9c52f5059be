// SPDX-License-Identifier: GPL-2.0-only
/*
 * KUnit tests for when KVM tells the architecture that a VM can't run any more, in
 * real VMs whose vCPUs never run.
 */
#include <kunit/static_stub.h>
#include <kunit/test.h>
#include <linux/fdtable.h>
#include <linux/file.h>
#include <linux/fs_struct.h>
#include <linux/kvm_host.h>
#include <linux/mman.h>
#include <linux/pid_namespace.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>

#include "kvm_mm.h"

#define NR_VCPUS	2

struct unreachable_test {
	struct kvm *kvm;
	struct file *vm_file;
	struct file *vcpu_files[NR_VCPUS];
	int nr_calls;
};

static void count_call(struct kvm *kvm)
{
	struct unreachable_test *t = kunit_get_current_test()->priv;

	KUNIT_EXPECT_PTR_EQ(kunit_get_current_test(), kvm, t->kvm);
	t->nr_calls++;
}

/* A kernel thread sees no file system; init does. */
static struct file *open_dev_kvm(void)
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

/*
 * An ioctl that returns an fd: trade that for the file.  The test puts the file by
 * __fput_sync(), as what comes of it is to have happened when the test goes on.
 */
static struct file *ioctl_file(struct file *on, unsigned int ioctl, unsigned long arg)
{
	struct file *file;
	int fd;

	fd = on->f_op->unlocked_ioctl(on, ioctl, arg);
	if (fd < 0)
		return NULL;

	file = fget(fd);
	close_fd(fd);
	return file;
}

static int unreachable_init(struct kunit *test)
{
	struct file *dev __free(fput) = NULL;
	struct unreachable_test *t;
	struct file *file;
	int i;

	t = kunit_kzalloc(test, sizeof(*t), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, t);
	test->priv = t;

	file = open_dev_kvm();
	if (IS_ERR(file))
		kunit_skip(test, "no /dev/kvm: %ld", PTR_ERR(file));
	dev = file;

	/* The VM wants an mm, and only its own mm may create vCPUs. */
	KUNIT_ASSERT_NE(test, kunit_vm_mmap(test, NULL, 0, PAGE_SIZE, PROT_READ,
					    MAP_ANONYMOUS | MAP_PRIVATE, 0), 0);

	t->vm_file = ioctl_file(dev, KVM_CREATE_VM, 0);
	KUNIT_ASSERT_NOT_NULL(test, t->vm_file);
	t->kvm = t->vm_file->private_data;
	kvm_get_kvm(t->kvm);

	for (i = 0; i < NR_VCPUS; i++) {
		t->vcpu_files[i] = ioctl_file(t->vm_file, KVM_CREATE_VCPU, i);
		KUNIT_ASSERT_NOT_NULL(test, t->vcpu_files[i]);
	}

	kunit_activate_static_stub(test, kvm_vm_unreachable, count_call);
	return 0;
}

static void close_file(struct file **file)
{
	if (*file)
		__fput_sync(*file);
	*file = NULL;
}

static void unreachable_exit(struct kunit *test)
{
	struct unreachable_test *t = test->priv;
	int i;

	if (!t)
		return;

	for (i = 0; i < NR_VCPUS; i++)
		close_file(&t->vcpu_files[i]);
	close_file(&t->vm_file);
	if (t->kvm)
		kvm_put_kvm(t->kvm);
	t->kvm = NULL;
}

/* The exit of the test's own mm is nothing to count, @t may be gone by then. */
static void finish(struct kunit *test)
{
	kunit_deactivate_static_stub(test, kvm_vm_unreachable);
	unreachable_exit(test);
}

/* As long as a vCPU is open it may run, even if the VM isn't. */
static void vm_closed_first(struct kunit *test)
{
	struct unreachable_test *t = test->priv;

	close_file(&t->vm_file);
	close_file(&t->vcpu_files[1]);
	KUNIT_EXPECT_EQ(test, t->nr_calls, 0);
	close_file(&t->vcpu_files[0]);
	KUNIT_EXPECT_EQ(test, t->nr_calls, 1);
	finish(test);
}

/* As long as the VM is open it may get another vCPU. */
static void vm_closed_last(struct kunit *test)
{
	struct rlimit *nofile = &current->signal->rlim[RLIMIT_NOFILE];
	struct unreachable_test *t = test->priv;
	unsigned long max = nofile->rlim_cur;

	close_file(&t->vcpu_files[0]);
	close_file(&t->vcpu_files[1]);
	KUNIT_EXPECT_EQ(test, t->nr_calls, 0);

	/* One that comes to nothing for want of an fd doesn't count. */
	nofile->rlim_cur = 0;
	KUNIT_EXPECT_NULL(test, ioctl_file(t->vm_file, KVM_CREATE_VCPU, NR_VCPUS));
	nofile->rlim_cur = max;
	KUNIT_EXPECT_EQ(test, t->nr_calls, 0);
	close_file(&t->vm_file);
	KUNIT_EXPECT_EQ(test, t->nr_calls, 1);
	finish(test);
}

/* Files may be open for long after the VMM has exited, in other processes. */
static void mm_first(struct kunit *test)
{
	struct unreachable_test *t = test->priv;
	struct mmu_notifier *mn = &t->kvm->mmu_notifier;

	mn->ops->release(mn, t->kvm->mm);
	KUNIT_EXPECT_EQ(test, t->nr_calls, 1);
	finish(test);
}

static struct kunit_case unreachable_cases[] = {
	KUNIT_CASE(vm_closed_first),
	KUNIT_CASE(vm_closed_last),
	KUNIT_CASE(mm_first),
	{}
};

static struct kunit_suite unreachable_suite = {
	.name = "kvm_vm_unreachable",
	.init = unreachable_init,
	.exit = unreachable_exit,
	.test_cases = unreachable_cases,
};

kunit_test_suites(&unreachable_suite);
