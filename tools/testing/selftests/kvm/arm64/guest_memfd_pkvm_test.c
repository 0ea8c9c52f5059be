// SPDX-License-Identifier: GPL-2.0-only
/*
 * Protected VMs of arm64 whose memory is in-place files: what the guest gets,
 * what it shares and takes back, what the host cannot reach, and what remains of
 * that if VMM or guest are malicious or clumsy.
 */
#include <linux/futex.h>
#include <linux/psci.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include <asm/cputype.h>

#include "pkvm_util.h"
#include "kvm_test_harness.h"

GMEM_DEFINE_SIGBUS();

/* Pages in most files, and files that a VM may have at a time. */
#define NR			8ul
#define MAX_FILES		8ul

/* Pages of the guest's 1:1 mapping at GMEM_GPA: the files, and what has no slot. */
#define NR_MAPPED		((MAX_FILES + 1) * NR)
#define NO_SLOT_GPA		(GMEM_GPA + MAX_FILES * NR * PAGE_SIZE)

/* Anonymous memory, as protected VMs had it before. */
#define ANON_SLOT		5
#define ANON_GPA		(GMEM_GPA + SZ_1G)
#define ANON_NR			8ul

#define VAL			0x1122334455660000ul
#define OTHER			0x99aabbccddee0000ul

#define ALL_EXITS		(PVM_EXITS | KVM_ARM_EXIT_HYPERCALL_MEM_RELINQUISH)

static bool supported(void)
{
	return pvm_supported() && (pvm_exit_hypercalls() & PVM_EXITS) == PVM_EXITS;
}

static void start_vm(struct pvm *p, u32 nr_vcpus)
{
	gmem_test_init();
	pvm_create(p, nr_vcpus, pvm_exit_hypercalls());
	virt_map(p->vm, GMEM_GPA, GMEM_GPA, NR_MAPPED);
	virt_map(p->vm, ANON_GPA, ANON_GPA, ANON_NR);
	pvm_load_gmem(p);
}

/* ---- VMs with one vCPU and with four; calls are made by the last ---- */

FIXTURE(pvm) {
	struct pvm p;
	u32 id;
	struct kvm_vcpu *vcpu;
};

FIXTURE_VARIANT(pvm) {
	u32 nr_vcpus;
};

FIXTURE_VARIANT_ADD(pvm, one_vcpu) {
	.nr_vcpus = 1,
};

FIXTURE_VARIANT_ADD(pvm, four_vcpus) {
	.nr_vcpus = 4,
};

FIXTURE_SETUP(pvm)
{
	if (!supported())
		SKIP(return, "No protected VMs on guest_memfd");

	start_vm(&self->p, variant->nr_vcpus);
	self->id = variant->nr_vcpus - 1;
	self->vcpu = self->p.vcpus[self->id];
}

FIXTURE_TEARDOWN(pvm)
{
	pvm_free(&self->p);
}

#define PVM_TEST(name)		TEST_F_TIMEOUT(pvm, name, GMEM_TIMEOUT_S)

/* ---- The same with variants for what takes several vCPUs, or none ---- */

FIXTURE(smp) {
	struct pvm p;
	struct gmem g;
};

FIXTURE_VARIANT(smp) {
	u32 nr_vcpus;
};

FIXTURE_VARIANT_ADD(smp, two_vcpus) {
	.nr_vcpus = 2,
};

FIXTURE_VARIANT_ADD(smp, three_vcpus) {
	.nr_vcpus = 3,
};

FIXTURE_VARIANT_ADD(smp, four_vcpus) {
	.nr_vcpus = 4,
};

FIXTURE(setup) {
};

FIXTURE_SETUP(setup)
{
	if (!supported())
		SKIP(return, "No protected VMs on guest_memfd");
	gmem_test_init();
	gmem_page_size = getpagesize();
}

FIXTURE_TEARDOWN(setup)
{
}

/* Needs nothing but protected VMs. */
FIXTURE(anonymous) {
};

FIXTURE_SETUP(anonymous)
{
	if (!pvm_supported())
		SKIP(return, "No protected VMs");
	gmem_test_init();
	gmem_page_size = getpagesize();
}

FIXTURE_TEARDOWN(anonymous)
{
}

#define SMP_TEST(name)		TEST_F_TIMEOUT(smp, name, GMEM_TIMEOUT_S)
#define SETUP_TEST(name)	TEST_F_TIMEOUT(setup, name, GMEM_TIMEOUT_S)

/* ---- Files ---- */

/* File @i of the VM: in slot GMEM_SLOT + i, NR pages at its place in GMEM_GPA. */
static void new_file(struct pvm *p, struct gmem *g, u32 i, u64 flags)
{
	gmem_create(g, p->vm, NR * PAGE_SIZE, flags);
	gmem_bind(g, GMEM_SLOT + i, GMEM_GPA + i * NR * PAGE_SIZE);
	pvm_add_file(p, g);
}

/* Page i holds VAL + i, and is private. */
static void new_filled_file(struct pvm *p, struct gmem *g, u32 i)
{
	new_file(p, g, i, GMEM_SHARED_FILE);
	gmem_host_fill(g, 0, NR, VAL);
	gmem_to_private(g, 0, NR, 0);
}

static gpa_t gpa_of(struct gmem *g, u64 page)
{
	return g->gpa + page * PAGE_SIZE;
}

static u8 *mem_of(struct gmem *g, u64 page)
{
	return g->mem + page * PAGE_SIZE;
}

#define expect_convert(g, page, nr, attrs, flags, error)			\
	TEST_ASSERT_EQ(gmem_convert_retry((g)->fd, (page) * PAGE_SIZE,		\
					  (nr) * PAGE_SIZE, attrs, flags), error)

#define expect_slot(vm, slot, flags, gpa, size, hva, fd, error)			\
do {										\
	int __want = (error);							\
	int __r = __vm_set_user_memory_region2(vm, slot, flags, gpa, size, hva,	\
					       fd, 0);				\
										\
	__r = __r ? errno : 0;							\
	TEST_ASSERT(__r == __want, "Slot: %s, want %s", strerror(__r),		\
		    strerror(__want));						\
} while (0)

/* ---- Guests ---- */

static void guest_fill(struct pvm *p, u32 id, struct gmem *g, u64 first, u64 nr, u64 val)
{
	pvm_call(p, id, pvm_guest_fill, gpa_of(g, first), nr, val, 1ul);
}

#define __guest_check(p, id, gpa, nr, val, step)				\
do {										\
	u64 __nr = (nr), __val = (val);						\
	struct pvm_cmd *__cmd = pvm_call(p, id, pvm_guest_check, gpa, __nr,	\
					 __val, step);				\
										\
	TEST_ASSERT(__cmd->ret[0] == __nr, "Guest, page %lu of %lu: 0x%lx, from 0x%lx", \
		    __cmd->ret[0], __nr, __cmd->ret[1], __val);			\
} while (0)

#define guest_check(p, id, g, first, nr, val)	\
	__guest_check(p, id, gpa_of(g, first), nr, val, 1ul)
#define guest_check_zero(p, id, g, first, nr)	\
	__guest_check(p, id, gpa_of(g, first), nr, 0ul, 0ul)

/* Run until the hypercall that was prepared exits. */
#define expect_hypercall(vcpu, function, gpa)					\
do {										\
	struct kvm_vcpu *__vcpu = (vcpu);					\
										\
	vcpu_run(__vcpu);							\
	TEST_ASSERT_KVM_EXIT_REASON(__vcpu, KVM_EXIT_HYPERCALL);		\
	TEST_ASSERT_EQ(__vcpu->run->hypercall.nr, function);			\
	TEST_ASSERT_EQ(__vcpu->run->hypercall.args[0], gpa);			\
	TEST_ASSERT_EQ(__vcpu->run->hypercall.args[1], PAGE_SIZE);		\
	TEST_ASSERT_EQ(__vcpu->run->hypercall.ret, 0);				\
} while (0)

/* The guest asks for a page, and the VMM has not answered yet. */
#define ask(p, id, function, g, page)						\
do {										\
	struct pvm *__p = (p);							\
	u32 __id = (id), __fn = (function);					\
	gpa_t __gpa = gpa_of(g, page);						\
										\
	pvm_prepare(__p, __id, pvm_guest_hvc, __fn, __gpa);			\
	expect_hypercall(__p->vcpus[__id], __fn, __gpa);			\
} while (0)

/* What the guest is told if the vCPU goes on now, without another exit. */
static u64 answer(struct pvm *p, u32 id)
{
	vcpu_run(p->vcpus[id]);
	TEST_ASSERT_EQ(gmem_get_ucall(p->vcpus[id]), UCALL_SYNC);
	return p->cmds[id].ret[0];
}

/* A hypercall that a good VMM serves, if there is something to serve. */
static u64 hvc(struct pvm *p, u32 id, u32 function, gpa_t gpa)
{
	return pvm_call(p, id, pvm_guest_hvc, function, gpa)->ret[0];
}

#define share(p, id, g, page)							\
	TEST_ASSERT_EQ(hvc(p, id, PVM_HVC_SHARE, gpa_of(g, page)), PVM_SUCCESS)
#define unshare(p, id, g, page)							\
	TEST_ASSERT_EQ(hvc(p, id, PVM_HVC_UNSHARE, gpa_of(g, page)), PVM_SUCCESS)

/* The run that must fail. */
#define expect_run_error(vcpu, error)						\
do {										\
	struct kvm_vcpu *__vcpu = (vcpu);					\
	int __r = _vcpu_run(__vcpu), __errno = errno, __want = (error);		\
										\
	TEST_ASSERT(__r == -1 && __errno == __want,				\
		    "KVM_RUN: %d, %s (exit %s), want %s", __r, strerror(__errno), \
		    exit_reason_str(__vcpu->run->exit_reason), strerror(__want)); \
} while (0)

/* Touch a page that is lost: fails, and fails again, and the vCPU lives on. */
static void expect_lost(struct pvm *p, u32 id, struct gmem *g, u64 page)
{
	pvm_prepare(p, id, pvm_guest_read, gpa_of(g, page));
	expect_run_error(p->vcpus[id], EHWPOISON);
	expect_run_error(p->vcpus[id], EHWPOISON);
	pvm_vcpu_reset(p->vcpus[id]);
	pvm_finish(p, id);
}

/* Touch a page whose file state is shared though the guest did not share it. */
static void expect_memory_fault(struct pvm *p, u32 id, struct gmem *g, u64 page)
{
	struct kvm_run *run = p->vcpus[id]->run;

	expect_run_error(p->vcpus[id], EFAULT);
	TEST_ASSERT_EQ(run->exit_reason, KVM_EXIT_MEMORY_FAULT);
	TEST_ASSERT_EQ(run->memory_fault.flags, KVM_MEMORY_EXIT_FLAG_PRIVATE);
	TEST_ASSERT_EQ(run->memory_fault.gpa, gpa_of(g, page));
	TEST_ASSERT_EQ(run->memory_fault.size, PAGE_SIZE);
}

/* ---- What the host can reach ---- */

static int error_of(ssize_t r)
{
	return r < 0 ? errno : 0;
}

/* System calls see what user space sees. */
static void check_syscalls(u8 *mem, int error)
{
	struct iovec iov = { .iov_base = mem, .iov_len = 64 }, local;
	int pipes[2], zero = open("/dev/zero", O_RDONLY);
	u8 buf[64] = {};

	TEST_ASSERT(zero >= 0 && !pipe(pipes), "/dev/zero, pipe(): errno %d", errno);
	local = (struct iovec) { .iov_base = buf, .iov_len = sizeof(buf) };

	TEST_ASSERT_EQ(error_of(write(pipes[1], mem, 64)), error);
	TEST_ASSERT_EQ(error_of(vmsplice(pipes[1], &iov, 1, 0)), error);
	TEST_ASSERT_EQ(error_of(process_vm_readv(getpid(), &local, 1, &iov, 1, 0)), error);
	if (error) {
		TEST_ASSERT_EQ(error_of(read(zero, mem, 64)), error);
		TEST_ASSERT_EQ(error_of(process_vm_writev(getpid(), &local, 1, &iov, 1, 0)),
			       error);
	}
	close(zero);
	close(pipes[0]);
	close(pipes[1]);
}

/*
 * Ways into a page that don't begin with a copy: by its struct page, as a futex, DMA
 * or populating a mapping, and by way of the address space of the task.
 */
static void check_other_ways(u8 *mem, bool private)
{
	int fd, mem_fd = open("/proc/self/mem", O_RDWR), error = private ? EFAULT : 0;
	u8 buf[64];

	TEST_ASSERT(mem_fd >= 0, "/proc/self/mem: errno %d", errno);
	TEST_ASSERT_EQ(error_of(syscall(__NR_futex, mem, FUTEX_WAKE, 1, NULL)), error);
	TEST_ASSERT_EQ(error_of(madvise(mem, PAGE_SIZE, MADV_POPULATE_READ)), error);
	TEST_ASSERT_EQ(error_of(madvise(mem, PAGE_SIZE, MADV_POPULATE_WRITE)), error);
	TEST_ASSERT_EQ(error_of(pread(mem_fd, buf, sizeof(buf), (off_t)mem)),
		       private ? EIO : 0);
	if (private) {
		TEST_ASSERT_EQ(error_of(syscall(__NR_futex, mem, FUTEX_WAIT, 0, NULL)), EFAULT);
		TEST_ASSERT_EQ(error_of(pwrite(mem_fd, buf, sizeof(buf), (off_t)mem)), EIO);
	}
	close(mem_fd);

	fd = hold_by_pin(mem, PAGE_SIZE);
	TEST_ASSERT(fd < 0 || !private, "A private page is pinned");
	if (fd >= 0)
		release_pin(fd);
}

static void assert_unreachable(struct gmem *g, u64 first, u64 nr)
{
	u64 i;

	gmem_assert_private(g, first, nr);
	for (i = first; i < first + nr; i++)
		check_syscalls(mem_of(g, i), EFAULT);
}

static void assert_reachable(struct gmem *g, u64 first, u64 nr)
{
	u64 i;

	gmem_assert_shared(g, first, nr);
	for (i = first; i < first + nr; i++)
		check_syscalls(mem_of(g, i), 0);
}

/* ---- Frames ---- */

/* The number of the frame that is mapped at @addr, or 0 if user space isn't told. */
static u64 frame_at(void *addr)
{
	int fd = open("/proc/self/pagemap", O_RDONLY);
	u64 entry = 0;

	if (fd >= 0) {
		TEST_ASSERT_EQ(pread(fd, &entry, 8, (u64)addr / PAGE_SIZE * 8), 8);
		close(fd);
	}
	return entry & GENMASK_ULL(54, 0);
}

/* ---- Set-up: opting in, slots, capabilities ---- */

static int enable_exits(struct kvm_vm *vm, u64 mask)
{
	return __vm_enable_cap(vm, KVM_CAP_EXIT_HYPERCALL, mask) ? errno : 0;
}

/* The slot of an in-place file is refused unless both calls exit. */
SETUP_TEST(opt_in)
{
	static const struct {
		u64 exits;
		int error;
	} cases[] = {
		{ 0, EPERM },
		{ KVM_ARM_EXIT_HYPERCALL_MEM_SHARE, EPERM },
		{ KVM_ARM_EXIT_HYPERCALL_MEM_UNSHARE, EPERM },
		{ KVM_ARM_EXIT_HYPERCALL_MEM_RELINQUISH, EPERM },
		{ PVM_EXITS, 0 },
	};
	struct kvm_vm *vm;
	struct gmem g;
	int i;

	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		vm = vm_create_barebones_type(KVM_VM_TYPE_ARM_PROTECTED);
		if (cases[i].exits)
			TEST_ASSERT_EQ(enable_exits(vm, cases[i].exits), 0);

		gmem_create(&g, vm, NR * PAGE_SIZE, GMEM_SHARED_FILE);
		expect_slot(vm, GMEM_SLOT, KVM_MEM_GUEST_MEMFD, GMEM_GPA, g.size,
			    g.mem, g.fd, cases[i].error);
		if (cases[i].error)
			expect_slot(vm, GMEM_SLOT, KVM_MEM_GUEST_MEMFD, GMEM_GPA,
				    g.size, NULL, g.fd, cases[i].error);
		gmem_destroy(&g);
		kvm_vm_free(vm);
	}
}

SETUP_TEST(opt_in_errors)
{
	struct kvm_enable_cap cap = {
		.cap = KVM_CAP_EXIT_HYPERCALL,
		.args = { PVM_EXITS, 1 },
	};
	u64 known = pvm_exit_hypercalls();
	struct kvm_vm *vm;
	int bit;

	vm = vm_create_barebones_type(KVM_VM_TYPE_ARM_PROTECTED);
	for (bit = 0; bit < 64; bit++)
		if (!(known & BIT(bit)))
			TEST_ASSERT_EQ(enable_exits(vm, PVM_EXITS | BIT(bit)), EINVAL);
	TEST_ASSERT(__vm_ioctl(vm, KVM_ENABLE_CAP, &cap) && errno == EINVAL,
		    "An unknown argument is accepted");
	TEST_ASSERT_EQ(enable_exits(vm, known), 0);

	/* Too late once there is a vCPU. */
	TEST_ASSERT(__vm_ioctl(vm, KVM_CREATE_VCPU, (void *)0ul) >= 0, "KVM_CREATE_VCPU failed");
	TEST_ASSERT_EQ(enable_exits(vm, known), EBUSY);
	kvm_vm_free(vm);
}

/* What a slot relies on can't be taken back while there is one. */
SETUP_TEST(opt_in_is_final)
{
	static const u64 others[] = {
		0,
		KVM_ARM_EXIT_HYPERCALL_MEM_SHARE,
		KVM_ARM_EXIT_HYPERCALL_MEM_UNSHARE,
		ALL_EXITS,
	};
	struct kvm_vm *vm;
	struct gmem g;
	int i;

	vm = vm_create_barebones_type(KVM_VM_TYPE_ARM_PROTECTED);
	TEST_ASSERT_EQ(enable_exits(vm, PVM_EXITS), 0);
	gmem_create(&g, vm, NR * PAGE_SIZE, GMEM_SHARED_FILE);
	gmem_bind(&g, GMEM_SLOT, GMEM_GPA);
	for (i = 0; i < ARRAY_SIZE(others); i++)
		TEST_ASSERT_EQ(enable_exits(vm, others[i]), EINVAL);
	TEST_ASSERT_EQ(enable_exits(vm, PVM_EXITS), 0);

	gmem_unbind(&g);
	TEST_ASSERT_EQ(enable_exits(vm, KVM_ARM_EXIT_HYPERCALL_MEM_SHARE), 0);
	expect_slot(vm, GMEM_SLOT, KVM_MEM_GUEST_MEMFD, GMEM_GPA, g.size, g.mem, g.fd, EPERM);
	TEST_ASSERT_EQ(enable_exits(vm, ALL_EXITS), 0);
	gmem_bind(&g, GMEM_SLOT, GMEM_GPA);
	TEST_ASSERT_EQ(enable_exits(vm, PVM_EXITS), EINVAL);
	gmem_destroy(&g);
	kvm_vm_free(vm);
}

/* The VMM that takes its opt-in back while another thread binds the file. */
static void opt_out(void *arg, u64 turn)
{
	struct gmem *g = arg;
	int error;

	error = enable_exits(g->vm, turn & 1 ? PVM_EXITS : KVM_ARM_EXIT_HYPERCALL_MEM_SHARE);
	TEST_ASSERT(!error || error == EINVAL, "Opt-out: %s", strerror(error));
}

SETUP_TEST(opt_in_races)
{
	struct gmem_worker thread;
	u64 turns = 0, i, bound = 0;
	bool stop = false;
	struct gmem g;
	int r;

	g.vm = vm_create_barebones_type(KVM_VM_TYPE_ARM_PROTECTED);
	gmem_create(&g, g.vm, NR * PAGE_SIZE, GMEM_SHARED_FILE);
	gmem_worker_start(&thread, opt_out, &g, &stop, &turns);
	for (i = 0; i < GMEM_LOOPS(500); i++) {
		r = __vm_set_user_memory_region2(g.vm, GMEM_SLOT, KVM_MEM_GUEST_MEMFD, GMEM_GPA,
						 g.size, g.mem, g.fd, 0);
		TEST_ASSERT(!r || errno == EPERM, "Bind: %s", strerror(errno));
		if (r)
			continue;
		/* Bound: the opt-in is what it has to be, and stays so. */
		TEST_ASSERT_EQ(enable_exits(g.vm, PVM_EXITS), 0);
		TEST_ASSERT_EQ(enable_exits(g.vm, KVM_ARM_EXIT_HYPERCALL_MEM_SHARE), EINVAL);
		expect_slot(g.vm, GMEM_SLOT, KVM_MEM_GUEST_MEMFD, GMEM_GPA, 0, g.mem, g.fd, 0);
		bound++;
	}
	WRITE_ONCE(stop, true);
	gmem_worker_join(&thread);
	TEST_ASSERT(bound, "The file was never bound");
	gmem_destroy(&g);
	kvm_vm_free(g.vm);
}

/*
 * What KVM says, as a row of the table in Documentation/virt/kvm/guest_memfd.rst.  The
 * default can't be asked for; that it is PRESERVE, other cases rely on.
 */
static void check_content_row(struct kvm_vm *vm, bool to_private, const char *want)
{
	u64 flags = vm_check_cap(vm, to_private ? KVM_CAP_GUEST_MEMFD_FLAGS_TO_PRIVATE :
						  KVM_CAP_GUEST_MEMFD_FLAGS_TO_SHARED);
	char row[128];

	snprintf(row, sizeof(row), "%-25s %-8s %-15s%s%s%s", "arm64 protected VM",
		 to_private ? "private" : "shared", "PRESERVE",
		 flags & GMEM_ZERO ? " ZERO," : "",
		 flags & GMEM_PRESERVE ? " PRESERVE," : "",
		 flags & GMEM_DISCARD ? " DISCARD" : "");
	TEST_ASSERT(!(flags & ~GMEM_ALL_CONTENT), "Unknown flags 0x%lx", flags);
	TEST_ASSERT(!strcmp(row, want), "\"%s\", want \"%s\"", row, want);
}

SETUP_TEST(capabilities)
{
	struct kvm_vm *vm = vm_create_barebones_type(KVM_VM_TYPE_ARM_PROTECTED);
	struct kvm_vm *other = vm_create_barebones();

	TEST_ASSERT(vm_check_cap(vm, KVM_CAP_GUEST_MEMFD), "No guest_memfd");
	TEST_ASSERT_EQ(vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_FLAGS) & GMEM_SHARED_FILE,
		       GMEM_SHARED_FILE);
	TEST_ASSERT_EQ(vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES),
		       GMEM_PRIVATE);
	check_content_row(vm, true,
			  "arm64 protected VM        private  PRESERVE        PRESERVE, DISCARD");
	check_content_row(vm, false,
			  "arm64 protected VM        shared   PRESERVE        ZERO, PRESERVE, DISCARD");
	TEST_ASSERT_EQ(vm_check_cap(vm, KVM_CAP_EXIT_HYPERCALL) & PVM_EXITS, PVM_EXITS);
	TEST_ASSERT_EQ(vm_check_cap(vm, KVM_CAP_MEMORY_FAULT_INFO), 1);

	/* What is not protected has no part in it. */
	TEST_ASSERT_EQ(vm_check_cap(other, KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES), 0);
	TEST_ASSERT_EQ(vm_check_cap(other, KVM_CAP_EXIT_HYPERCALL), 0);
	TEST_ASSERT_EQ(vm_check_cap(other, KVM_CAP_MEMORY_FAULT_INFO), 0);
	TEST_ASSERT_EQ(kvm_check_cap(KVM_CAP_EXIT_HYPERCALL), 0);
	TEST_ASSERT(enable_exits(other, PVM_EXITS) == EINVAL, "Enabled for any VM");

	kvm_vm_free(vm);
	kvm_vm_free(other);
}

/* Arguments and content flags, as for every VM type with in-place conversion. */
SETUP_TEST(conversion_errors)
{
	struct gmem g;

	g.vm = vm_create_barebones_type(KVM_VM_TYPE_ARM_PROTECTED);
	gmem_create(&g, g.vm, NR * PAGE_SIZE, GMEM_SHARED_FILE);
	gmem_host_fill(&g, 0, NR, VAL);

	TEST_ASSERT_EQ(__gmem_convert(g.fd, 1, PAGE_SIZE, 0, 0, NULL), EINVAL);
	TEST_ASSERT_EQ(__gmem_convert(g.fd, 0, g.size + PAGE_SIZE, 0, 0, NULL), EINVAL);
	TEST_ASSERT_EQ(__gmem_convert(g.fd, 0, PAGE_SIZE, 1, 0, NULL), EINVAL);
	expect_convert(&g, 0, NR, GMEM_PRIVATE, GMEM_ZERO, EOPNOTSUPP);
	gmem_host_check(&g, 0, NR, VAL);

	/* No vCPU has seen it: both ways, and all that may be asked. */
	gmem_to_private(&g, 0, NR, GMEM_PRESERVE);
	assert_unreachable(&g, 0, NR);
	gmem_to_shared(&g, 0, NR, 0);
	gmem_host_check(&g, 0, NR, VAL);
	gmem_to_private(&g, 0, 1, GMEM_DISCARD);
	gmem_to_shared(&g, 0, 1, 0);
	gmem_host_check_zero(&g, 0, 1);
	gmem_to_shared(&g, 1, 1, GMEM_ZERO);
	gmem_host_check_zero(&g, 1, 1);
	gmem_to_shared(&g, 2, 1, GMEM_DISCARD);
	gmem_host_check_zero(&g, 2, 1);
	gmem_host_check(&g, 3, NR - 3, VAL + 3);
	gmem_destroy(&g);
	kvm_vm_free(g.vm);
}

/* ---- Content ---- */

/* What the host loaded is what the guest sees, and the host sees no more. */
PVM_TEST(image)
{
	struct gmem g;

	new_filled_file(&self->p, &g, 0);
	assert_unreachable(&g, 0, NR);
	guest_check(&self->p, self->id, &g, 0, NR, VAL);
	guest_fill(&self->p, self->id, &g, 0, NR, OTHER);
	guest_check(&self->p, 0, &g, 0, NR, OTHER);
	assert_unreachable(&g, 0, NR);
}

/* Absent pages and allocated ones read zero, whatever was in memory before. */
PVM_TEST(fresh_pages)
{
	struct gmem g;

	new_file(&self->p, &g, 0, GMEM_PRIVATE_FILE);
	gmem_allocate(&g, NR / 2, NR / 2);
	guest_check_zero(&self->p, self->id, &g, 0, NR);
	assert_unreachable(&g, 0, NR);

	/* A file that nobody can map, and a slot without an address. */
	gmem_create(&g, self->p.vm, NR * PAGE_SIZE, GUEST_MEMFD_FLAG_INIT_SHARED);
	gmem_bind(&g, GMEM_SLOT + 1, GMEM_GPA + NR * PAGE_SIZE);
	gmem_to_private(&g, 0, NR, 0);
	guest_check_zero(&self->p, self->id, &g, 0, NR);
}

/* Waits for its tracer.  What it had mapped the tracer finds through it. */
static void child_is_traced(struct child *c, struct gmem *g)
{
	TEST_ASSERT(!ptrace(PTRACE_TRACEME, 0, NULL, NULL), "PTRACE_TRACEME failed");
	raise(SIGSTOP);
}

static void check_trace(pid_t pid, struct gmem *g)
{
	int status;

	TEST_ASSERT_EQ(waitpid(pid, &status, 0), pid);
	TEST_ASSERT(WIFSTOPPED(status), "Status 0x%x", status);

	errno = 0;
	TEST_ASSERT_EQ(ptrace(PTRACE_PEEKDATA, pid, mem_of(g, 1), NULL), VAL + 1);
	TEST_ASSERT_EQ(errno, 0);
	TEST_ASSERT_EQ(error_of(ptrace(PTRACE_PEEKDATA, pid, mem_of(g, 2), NULL)), EIO);
	TEST_ASSERT_EQ(error_of(ptrace(PTRACE_POKEDATA, pid, mem_of(g, 2), OTHER)), EIO);
	TEST_ASSERT(!ptrace(PTRACE_CONT, pid, NULL, NULL), "PTRACE_CONT failed");
}

/* Whichever way the host tries: an error for it, and nothing for the guest. */
PVM_TEST(host_access)
{
	struct pvm *p = &self->p;
	struct gmem g, fresh;
	struct child c;

	new_filled_file(p, &g, 0);
	guest_check(p, self->id, &g, 0, NR, VAL);
	share(p, self->id, &g, 1);

	check_other_ways(mem_of(&g, 1), false);
	check_other_ways(mem_of(&g, 2), true);
	child_start(&c, child_is_traced, &g);
	check_trace(c.pid, &g);
	child_join(&c);

	/* Nor a page that no guest has had yet. */
	new_file(p, &fresh, 1, GMEM_PRIVATE_FILE);
	check_other_ways(mem_of(&fresh, 0), true);
	guest_check_zero(p, self->id, &fresh, 0, NR);
	check_other_ways(mem_of(&fresh, 0), true);
	guest_check(p, self->id, &g, 0, NR, VAL);
}

PVM_TEST(share_preserves)
{
	struct gmem g;
	u64 i;

	new_file(&self->p, &g, 0, GMEM_PRIVATE_FILE);
	guest_fill(&self->p, self->id, &g, 0, NR, VAL);

	for (i = 1; i < 4; i++)
		share(&self->p, self->id, &g, i);
	assert_unreachable(&g, 0, 1);
	assert_reachable(&g, 1, 3);
	assert_unreachable(&g, 4, NR - 4);

	gmem_host_check(&g, 1, 3, VAL + 1);
	gmem_host_fill(&g, 1, 3, OTHER + 1);
	guest_check(&self->p, 0, &g, 1, 3, OTHER + 1);
	guest_fill(&self->p, self->id, &g, 2, 1, VAL + 2);
	gmem_host_check(&g, 2, 1, VAL + 2);

	for (i = 1; i < 4; i++)
		unshare(&self->p, self->id, &g, i);
	assert_unreachable(&g, 0, NR);
	guest_check(&self->p, 0, &g, 0, 1, VAL);
	guest_check(&self->p, 0, &g, 1, 1, OTHER + 1);
	guest_check(&self->p, 0, &g, 2, 1, VAL + 2);
	guest_check(&self->p, 0, &g, 3, 1, OTHER + 3);
	guest_check(&self->p, 0, &g, 4, NR - 4, VAL + 4);

	/* And again. */
	share(&self->p, self->id, &g, 1);
	gmem_host_check(&g, 1, 1, OTHER + 1);
}

/* A page that is not there yet: given to the guest and shared, in one call. */
PVM_TEST(share_absent)
{
	struct gmem g;

	new_file(&self->p, &g, 0, GMEM_PRIVATE_FILE);
	share(&self->p, self->id, &g, 0);
	gmem_host_check_zero(&g, 0, 1);
	gmem_host_fill(&g, 0, 1, VAL);
	guest_check(&self->p, 0, &g, 0, 1, VAL);
	unshare(&self->p, self->id, &g, 0);
	guest_check(&self->p, 0, &g, 0, 1, VAL);
	guest_check_zero(&self->p, 0, &g, 1, 1);

	/* Present, but not the guest's yet. */
	gmem_allocate(&g, 2, 1);
	share(&self->p, self->id, &g, 2);
	gmem_host_check_zero(&g, 2, 1);
}

/* The host's state says shared, the guest has said nothing: no mapping. */
PVM_TEST(touch_of_shared_page)
{
	struct gmem g;

	new_file(&self->p, &g, 0, GMEM_SHARED_FILE);
	gmem_host_fill(&g, 0, NR, VAL);

	pvm_prepare(&self->p, self->id, pvm_guest_write, gpa_of(&g, 1), OTHER);
	expect_memory_fault(&self->p, self->id, &g, 1);
	gmem_host_check(&g, 0, NR, VAL);

	/* A VMM that does nothing gets nowhere. */
	expect_memory_fault(&self->p, self->id, &g, 1);
	gmem_host_check(&g, 0, NR, VAL);

	gmem_to_private(&g, 1, 1, 0);
	pvm_finish(&self->p, self->id);
	TEST_ASSERT_EQ(pvm_call(&self->p, 0, pvm_guest_read, gpa_of(&g, 1))->ret[0], OTHER);
	TEST_ASSERT_EQ(pvm_call(&self->p, 0, pvm_guest_read, gpa_of(&g, 1) + 8)->ret[0],
		       VAL + 1);
	assert_unreachable(&g, 1, 1);
	assert_reachable(&g, 2, NR - 2);

	/* Sharing what the host has shared already is the guest's own decision. */
	share(&self->p, self->id, &g, 2);
	guest_check(&self->p, self->id, &g, 2, 1, VAL + 2);
}

/* ---- Conversions that nobody has asked for ---- */

static void expect_veto(struct gmem *g, u64 first, u64 nr, u64 attrs)
{
	expect_convert(g, first, nr, attrs, 0, EPERM);
	expect_convert(g, first, nr, attrs, GMEM_PRESERVE, EPERM);
	if (!attrs)
		expect_convert(g, first, nr, attrs, GMEM_ZERO, EPERM);
}

PVM_TEST(veto)
{
	struct gmem g;

	new_filled_file(&self->p, &g, 0);
	guest_check(&self->p, self->id, &g, 2, 2, VAL + 2);
	share(&self->p, self->id, &g, 3);

	/* Page 2 is the guest's, 3 shared by it, the others never were its own. */
	expect_veto(&g, 2, 1, 0);
	expect_veto(&g, 3, 1, GMEM_PRIVATE);

	/* All or nothing, wherever in the range it is. */
	expect_veto(&g, 0, 3, 0);
	expect_veto(&g, 2, NR - 2, 0);
	expect_veto(&g, 0, NR, 0);
	expect_veto(&g, 0, NR, GMEM_PRIVATE);
	gmem_assert_private(&g, 0, 3);
	gmem_assert_shared(&g, 3, 1);
	gmem_assert_private(&g, 4, NR - 4);

	/* To the state that it has anyway. */
	gmem_to_private(&g, 2, 1, 0);
	gmem_to_shared(&g, 3, 1, 0);

	gmem_to_shared(&g, 0, 2, 0);
	gmem_to_shared(&g, 4, NR - 4, 0);
	gmem_host_check(&g, 0, 2, VAL);
	gmem_host_check(&g, 3, NR - 3, VAL + 3);
	guest_check(&self->p, self->id, &g, 2, 2, VAL + 2);
}

/* What one page is asked for is not granted for another, nor the other way. */
PVM_TEST(veto_while_asked)
{
	struct pvm *p = &self->p;
	u32 id = self->id;
	struct gmem g;

	new_filled_file(p, &g, 0);
	guest_check(p, id, &g, 0, NR, VAL);
	share(p, id, &g, 0);

	ask(p, id, PVM_HVC_SHARE, &g, 2);
	expect_veto(&g, 1, 1, 0);
	expect_veto(&g, 1, 2, 0);
	expect_veto(&g, 2, 2, 0);
	expect_veto(&g, 0, 1, GMEM_PRIVATE);
	assert_unreachable(&g, 1, NR - 1);
	gmem_to_shared(&g, 2, 1, 0);
	/* It has been asked for one change, not for back and forth. */
	expect_veto(&g, 2, 1, GMEM_PRIVATE);
	TEST_ASSERT_EQ(answer(p, id), PVM_SUCCESS);
	gmem_host_check(&g, 2, 1, VAL + 2);

	ask(p, id, PVM_HVC_UNSHARE, &g, 2);
	expect_veto(&g, 0, 1, GMEM_PRIVATE);
	expect_veto(&g, 0, NR, GMEM_PRIVATE);
	expect_veto(&g, 1, 1, 0);
	gmem_to_private(&g, 2, 1, 0);
	expect_veto(&g, 2, 1, 0);
	TEST_ASSERT_EQ(answer(p, id), PVM_SUCCESS);
	expect_veto(&g, 2, 1, 0);
	guest_check(p, id, &g, 0, NR, VAL);
}

/* ---- VMMs that answer something else ---- */

PVM_TEST(answer_without_conversion)
{
	struct pvm *p = &self->p;
	u32 id = self->id;
	struct gmem g;

	new_filled_file(p, &g, 0);
	guest_check(p, id, &g, 0, NR, VAL);

	ask(p, id, PVM_HVC_SHARE, &g, 1);
	self->vcpu->run->hypercall.ret = SMCCC_RET_SUCCESS;
	TEST_ASSERT_EQ(answer(p, id), PVM_INVALID);

	/* The question is no longer open. */
	expect_veto(&g, 1, 1, 0);
	assert_unreachable(&g, 1, 1);
	guest_check(p, id, &g, 0, NR, VAL);

	share(p, id, &g, 1);
	ask(p, id, PVM_HVC_UNSHARE, &g, 1);
	self->vcpu->run->hypercall.ret = SMCCC_RET_SUCCESS;
	TEST_ASSERT_EQ(answer(p, id), PVM_INVALID);
	expect_veto(&g, 1, 1, GMEM_PRIVATE);
	gmem_host_check(&g, 1, 1, VAL + 1);
	unshare(p, id, &g, 1);
	guest_check(p, id, &g, 0, NR, VAL);
}

PVM_TEST(answer_cannot_lie)
{
	struct pvm *p = &self->p;
	u32 id = self->id;
	struct gmem g;

	new_filled_file(p, &g, 0);
	guest_check(p, id, &g, 0, NR, VAL);

	ask(p, id, PVM_HVC_SHARE, &g, 1);
	gmem_to_shared(&g, 1, 1, 0);
	self->vcpu->run->hypercall.ret = SMCCC_RET_INVALID_PARAMETER;
	self->vcpu->run->exit_reason = KVM_EXIT_UNKNOWN;
	TEST_ASSERT_EQ(answer(p, id), PVM_SUCCESS);

	ask(p, id, PVM_HVC_UNSHARE, &g, 1);
	gmem_to_private(&g, 1, 1, 0);
	memset(&self->vcpu->run->hypercall, 0xff, sizeof(self->vcpu->run->hypercall));
	TEST_ASSERT_EQ(answer(p, id), PVM_SUCCESS);

	/* Nor about the page in question. */
	ask(p, id, PVM_HVC_SHARE, &g, 2);
	self->vcpu->run->hypercall.args[0] = gpa_of(&g, 3);
	self->vcpu->run->hypercall.nr = PVM_HVC_UNSHARE;
	expect_veto(&g, 3, 1, 0);
	gmem_to_shared(&g, 2, 1, 0);
	TEST_ASSERT_EQ(answer(p, id), PVM_SUCCESS);
	gmem_host_check(&g, 2, 1, VAL + 2);
}

/* Signals and immediate exits leave the question open. */
PVM_TEST(immediate_exit_while_asked)
{
	struct pvm *p = &self->p;
	struct gmem g;

	new_filled_file(p, &g, 0);
	ask(p, self->id, PVM_HVC_SHARE, &g, 0);
	gmem_to_shared(&g, 0, 1, 0);
	self->vcpu->run->immediate_exit = 1;
	TEST_ASSERT(__vcpu_run(self->vcpu) == -1 && errno == EINTR, "No immediate exit");
	self->vcpu->run->immediate_exit = 0;
	TEST_ASSERT_EQ(answer(p, self->id), PVM_SUCCESS);
	gmem_host_check(&g, 0, 1, VAL);
}

/* ---- Requests that die before they are answered ---- */

static void set_mp_state(struct kvm_vcpu *vcpu, u32 state)
{
	struct kvm_mp_state mp_state = { .mp_state = state };

	vcpu_mp_state_set(vcpu, &mp_state);
}

PVM_TEST(request_dies_with_mp_state)
{
	struct pvm *p = &self->p;
	struct gmem g;

	new_filled_file(p, &g, 0);
	guest_check(p, self->id, &g, 0, NR, VAL);
	ask(p, self->id, PVM_HVC_SHARE, &g, 1);
	set_mp_state(self->vcpu, KVM_MP_STATE_STOPPED);
	expect_veto(&g, 1, 1, 0);
	set_mp_state(self->vcpu, KVM_MP_STATE_RUNNABLE);
	expect_veto(&g, 1, 1, 0);
	TEST_ASSERT_EQ(answer(p, self->id), PVM_INVALID);
	guest_check(p, self->id, &g, 0, NR, VAL);

	/* Nor can the VMM answer in EL2's place. */
	ask(p, self->id, PVM_HVC_SHARE, &g, 1);
	set_mp_state(self->vcpu, KVM_MP_STATE_RUNNABLE);
	vcpu_set_reg(self->vcpu, ARM64_CORE_REG(regs.regs[0]), PVM_SUCCESS);
	TEST_ASSERT_EQ(answer(p, self->id), PVM_INVALID);
	assert_unreachable(&g, 1, 1);
	guest_check(p, self->id, &g, 0, NR, VAL);
}

/* Where a VMM puts a vCPU that it resets by hand: reports what is in x0. */
static void guest_report(u64 x0)
{
	for (;;)
		GUEST_SYNC(x0);
}

static void put_elsewhere(struct kvm_vcpu *vcpu, u64 x0)
{
	struct ucall uc;

	vcpu_set_reg(vcpu, ARM64_CORE_REG(regs.pc), (u64)guest_report);
	vcpu_set_reg(vcpu, ARM64_CORE_REG(regs.regs[0]), x0);
	vcpu_run(vcpu);
	TEST_ASSERT_EQ(get_ucall(vcpu, &uc), UCALL_SYNC);
	TEST_ASSERT_EQ(uc.args[1], x0);
}

/* A signal ends the run after the request's end was noted, before the guest is entered. */
static void interrupt_run(struct kvm_vcpu *vcpu)
{
	/* struct kvm_signal_mask: the size of a set, and an empty set. */
	u32 none[3] = { 8 };
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	TEST_ASSERT(!pthread_sigmask(SIG_BLOCK, &set, NULL), "pthread_sigmask() failed");
	TEST_ASSERT(!pthread_kill(pthread_self(), SIGUSR1), "pthread_kill() failed");
	TEST_ASSERT(!ioctl(vcpu->fd, KVM_SET_SIGNAL_MASK, none), "KVM_SET_SIGNAL_MASK failed");
	TEST_ASSERT(__vcpu_run(vcpu) == -1 && errno == EINTR, "The run isn't interrupted");
	TEST_ASSERT(!ioctl(vcpu->fd, KVM_SET_SIGNAL_MASK, NULL), "KVM_SET_SIGNAL_MASK failed");
	TEST_ASSERT(sigwaitinfo(&set, NULL) == SIGUSR1, "The signal is gone");
}

/* Withdrawn is withdrawn, at EL2 too, whatever was going on before. */
PVM_TEST(withdrawn_request)
{
	struct pvm *p = &self->p;
	struct gmem g;

	new_filled_file(p, &g, 0);
	guest_check(p, self->id, &g, 0, NR, VAL);

	ask(p, self->id, PVM_HVC_SHARE, &g, 1);
	set_mp_state(self->vcpu, KVM_MP_STATE_RUNNABLE);
	put_elsewhere(self->vcpu, OTHER);
	pvm_vcpu_reset(self->vcpu);
	pvm_finish(p, self->id);

	ask(p, self->id, PVM_HVC_SHARE, &g, 1);
	interrupt_run(self->vcpu);
	expect_veto(&g, 1, 1, 0);
	set_mp_state(self->vcpu, KVM_MP_STATE_RUNNABLE);
	put_elsewhere(self->vcpu, OTHER);
	pvm_vcpu_reset(self->vcpu);
	pvm_finish(p, self->id);
	guest_check(p, self->id, &g, 0, NR, VAL);
}

PVM_TEST(request_dies_with_reset)
{
	struct pvm *p = &self->p;
	struct gmem g;

	new_filled_file(p, &g, 0);
	guest_check(p, self->id, &g, 0, NR, VAL);
	ask(p, self->id, PVM_HVC_SHARE, &g, 1);
	pvm_vcpu_reset(self->vcpu);
	expect_veto(&g, 1, 1, 0);
	pvm_finish(p, self->id);
	assert_unreachable(&g, 1, 1);
	guest_check(p, self->id, &g, 0, NR, VAL);

	/* Done before the reset stays done, and the new life starts clean. */
	ask(p, self->id, PVM_HVC_SHARE, &g, 2);
	gmem_to_shared(&g, 2, 1, 0);
	pvm_vcpu_reset(self->vcpu);
	pvm_finish(p, self->id);
	gmem_host_check(&g, 2, 1, VAL + 2);
	unshare(p, self->id, &g, 2);

	ask(p, self->id, PVM_HVC_SHARE, &g, 3);
	pvm_vcpu_reset(self->vcpu);
	pvm_finish(p, self->id);
	share(p, self->id, &g, 4);
	expect_veto(&g, 3, 1, 0);
}

/* ---- Holders of shared pages ---- */

PVM_TEST(unshare_held_by_pipe)
{
	struct pvm *p = &self->p;
	u32 id = self->id;
	struct gmem g;
	int pipes[2];

	new_filled_file(p, &g, 0);
	share(p, id, &g, 1);
	hold_by_pipe(pipes, mem_of(&g, 1));

	ask(p, id, PVM_HVC_UNSHARE, &g, 1);
	expect_held(&g, 1, 1, 0, 1);
	TEST_ASSERT_EQ(answer(p, id), PVM_INVALID);

	/* Nothing has changed, for anybody. */
	gmem_host_check(&g, 1, 1, VAL + 1);
	guest_check(p, id, &g, 1, 1, VAL + 1);
	gmem_host_fill(&g, 1, 1, OTHER);
	guest_check(p, id, &g, 1, 1, OTHER);

	ask(p, id, PVM_HVC_UNSHARE, &g, 1);
	expect_held(&g, 1, 1, 0, 1);
	release_pipe(pipes);
	gmem_to_private(&g, 1, 1, 0);
	TEST_ASSERT_EQ(answer(p, id), PVM_SUCCESS);
	assert_unreachable(&g, 1, 1);
	guest_check(p, id, &g, 1, 1, OTHER);
}

PVM_TEST(unshare_held_by_pin)
{
	struct pvm *p = &self->p;
	u32 id = self->id;
	struct gmem g;
	int fd;

	new_filled_file(p, &g, 0);
	share(p, id, &g, 1);
	fd = hold_by_pin(mem_of(&g, 1), PAGE_SIZE);
	if (fd < 0)
		SKIP(return, "Cannot pin by io_uring");

	ask(p, id, PVM_HVC_UNSHARE, &g, 1);
	expect_held(&g, 1, 1, 0, 1);
	TEST_ASSERT_EQ(answer(p, id), PVM_INVALID);
	gmem_host_check(&g, 1, 1, VAL + 1);
	release_pin(fd);
	unshare(p, id, &g, 1);
	guest_check(p, id, &g, 1, 1, VAL + 1);
}

/* ---- Guests that ask for nonsense ---- */

PVM_TEST(guest_asks_twice)
{
	struct pvm *p = &self->p;
	u32 id = self->id;
	struct gmem g;

	new_filled_file(p, &g, 0);
	TEST_ASSERT_EQ(hvc(p, id, PVM_HVC_UNSHARE, gpa_of(&g, 0)), PVM_INVALID);
	guest_check(p, id, &g, 0, 1, VAL);
	TEST_ASSERT_EQ(hvc(p, id, PVM_HVC_UNSHARE, gpa_of(&g, 0)), PVM_INVALID);
	assert_unreachable(&g, 0, 1);

	share(p, id, &g, 0);
	TEST_ASSERT_EQ(hvc(p, id, PVM_HVC_SHARE, gpa_of(&g, 0)), PVM_INVALID);
	gmem_host_check(&g, 0, 1, VAL);
	unshare(p, id, &g, 0);
	TEST_ASSERT_EQ(hvc(p, id, PVM_HVC_UNSHARE, gpa_of(&g, 0)), PVM_INVALID);
	assert_unreachable(&g, 0, 1);
	guest_check(p, id, &g, 0, NR, VAL);
}

/* No exit, no change, and the guest is told. */
PVM_TEST(guest_asks_nonsense)
{
	u32 calls[] = { PVM_HVC_SHARE, PVM_HVC_UNSHARE, PVM_HVC_RELINQUISH };
	struct pvm *p = &self->p;
	u32 id = self->id;
	struct gmem g;
	int i, j;

	new_filled_file(p, &g, 0);
	guest_check(p, id, &g, 0, NR, VAL);

	for (i = 0; i < ARRAY_SIZE(calls); i++) {
		u64 args[][3] = {
			{ gpa_of(&g, 0) + 1 },
			{ gpa_of(&g, 1) - 8 },
			{ gpa_of(&g, 0), 1 },
			{ gpa_of(&g, 0), 0, 1 },
			/* Giving up what one never had is no nonsense. */
			{ NO_SLOT_GPA },
			{ BIT(60) },
			{ -PAGE_SIZE },
		};

		for (j = 0; j < ARRAY_SIZE(args); j++) {
			if (calls[i] == PVM_HVC_RELINQUISH && j >= 4)
				break;
			pvm_prepare(p, id, pvm_guest_hvc, calls[i], args[j][0],
				    args[j][1], args[j][2]);
			TEST_ASSERT(answer(p, id) == PVM_INVALID,
				    "Call 0x%x, case %d: 0x%lx", calls[i], j,
				    p->cmds[id].ret[0]);
		}
	}
	assert_unreachable(&g, 0, NR);
	guest_check(p, id, &g, 0, NR, VAL);
}

/* ---- Taking pages back ---- */

PVM_TEST(punch_owned)
{
	struct pvm *p = &self->p;
	u32 id = self->id;
	struct gmem g;

	new_filled_file(p, &g, 0);
	guest_check(p, id, &g, 1, 3, VAL + 1);

	/* 0 was never the guest's: it gets a fresh page.  1 and 2 were. */
	gmem_punch(&g, 0, 3);
	gmem_assert_private(&g, 0, NR);
	TEST_ASSERT(!gmem_page_is_present(&g, 1), "Punched page is present");
	guest_check_zero(p, id, &g, 0, 1);
	expect_lost(p, id, &g, 1);
	expect_lost(p, id, &g, 2);
	guest_check(p, id, &g, 3, NR - 3, VAL + 3);

	/* Whatever the host does: not the guest's old memory, nor new one. */
	gmem_allocate(&g, 1, 1);
	expect_lost(p, id, &g, 1);
	gmem_punch(&g, 1, 1);
	expect_lost(p, id, &g, 1);
	TEST_ASSERT_EQ(hvc(p, id, PVM_HVC_SHARE, gpa_of(&g, 1)), PVM_INVALID);
	TEST_ASSERT_EQ(hvc(p, id, PVM_HVC_UNSHARE, gpa_of(&g, 1)), PVM_INVALID);
	expect_lost(p, 0, &g, 1);

	/* It is the host's memory now, and tells nothing. */
	gmem_to_shared(&g, 1, 2, 0);
	gmem_host_check_zero(&g, 1, 2);
	gmem_host_fill(&g, 1, 2, VAL + 1);
	gmem_to_private(&g, 1, 1, 0);
	expect_lost(p, id, &g, 1);
	expect_lost(p, id, &g, 2);
}

PVM_TEST(punch_shared)
{
	struct pvm *p = &self->p;
	u32 id = self->id;
	struct gmem g;

	new_filled_file(p, &g, 0);
	share(p, id, &g, 1);
	gmem_host_check(&g, 1, 1, VAL + 1);

	gmem_punch(&g, 1, 1);
	gmem_assert_shared(&g, 1, 1);
	gmem_host_check_zero(&g, 1, 1);
	expect_lost(p, id, &g, 1);
	gmem_host_fill(&g, 1, 1, OTHER);
	expect_lost(p, id, &g, 1);
	TEST_ASSERT_EQ(hvc(p, id, PVM_HVC_UNSHARE, gpa_of(&g, 1)), PVM_INVALID);

	/* A page in the file that is no longer the guest's: only the host uses it. */
	gmem_host_check(&g, 1, 1, OTHER);
	guest_check(p, id, &g, 2, 1, VAL + 2);
}

/* ---- Memory errors ---- */

#define CORRUPT_PFN	"/sys/kernel/debug/hwpoison/corrupt-pfn"

static bool have_error(u64 frame)
{
	char text[24];

	snprintf(text, sizeof(text), "%lu", frame);
	return frame && !access(CORRUPT_PFN, W_OK) && !gmem_write_file(CORRUPT_PFN, text);
}

/* As expect_lost(), and the VMM hears where. */
static void expect_broken(struct pvm *p, u32 id, struct gmem *g, u64 page)
{
	struct kvm_run *run = p->vcpus[id]->run;

	pvm_prepare(p, id, pvm_guest_read, gpa_of(g, page));
	expect_run_error(p->vcpus[id], EHWPOISON);
	TEST_ASSERT_EQ(run->exit_reason, KVM_EXIT_MEMORY_FAULT);
	TEST_ASSERT_EQ(run->memory_fault.gpa, gpa_of(g, page));
	pvm_vcpu_reset(p->vcpus[id]);
	pvm_finish(p, id);
}

#define expect_user_error(g, page)						\
do {										\
	u64 __val;								\
										\
	TEST_ASSERT_EQ(gmem_try_read(mem_of(g, page), &__val), BUS_MCEERR_AR);	\
} while (0)

/*
 * An error in a page that the guest has: whoever touches it is told, nobody reads it,
 * not even to clear it, and nobody gets the frame again.
 */
PVM_TEST(memory_error)
{
	struct pvm *p = &self->p;
	u32 id = self->id;
	u64 frames[NR];
	struct gmem g;
	u64 i;

	new_file(p, &g, 0, GMEM_SHARED_FILE);
	gmem_host_fill(&g, 0, NR, VAL);
	for (i = 0; i < NR; i++)
		frames[i] = frame_at(mem_of(&g, i));
	gmem_to_private(&g, 0, NR, 0);
	guest_check(p, id, &g, 0, NR, VAL);
	share(p, id, &g, 2);

	if (!have_error(frames[1]))
		SKIP(return, "No " CORRUPT_PFN);
	expect_broken(p, id, &g, 1);
	expect_broken(p, 0, &g, 1);
	gmem_assert_private(&g, 0, 2);
	TEST_ASSERT_EQ(hvc(p, id, PVM_HVC_SHARE, gpa_of(&g, 1)), PVM_INVALID);

	/* Shared, and while the guest waits for a page to be shared or taken. */
	TEST_ASSERT(have_error(frames[2]), "Shared page");
	expect_broken(p, id, &g, 2);
	expect_user_error(&g, 2);
	ask(p, id, PVM_HVC_SHARE, &g, 3);
	TEST_ASSERT(have_error(frames[3]), "Page that is to be shared");
	gmem_to_shared(&g, 3, 1, 0);
	TEST_ASSERT_EQ(answer(p, id), PVM_INVALID);
	expect_user_error(&g, 3);
	expect_broken(p, id, &g, 3);
	ask(p, id, PVM_HVC_RELINQUISH, &g, 4);
	TEST_ASSERT(have_error(frames[4]), "Page that is given up");
	TEST_ASSERT_EQ(answer(p, id), PVM_SUCCESS);
	expect_broken(p, id, &g, 4);

	/* A hole removes it; the guest has lost its page all the same. */
	gmem_punch(&g, 1, 1);
	expect_broken(p, id, &g, 1);
	gmem_to_shared(&g, 1, 1, 0);
	gmem_host_check_zero(&g, 1, 1);
	guest_check(p, id, &g, 5, NR - 5, VAL + 5);
}

/* The VMM answers a request by taking the page away. */
PVM_TEST(punch_while_asked)
{
	struct pvm *p = &self->p;
	u32 id = self->id;
	struct gmem g;

	new_filled_file(p, &g, 0);
	guest_check(p, id, &g, 0, NR, VAL);
	ask(p, id, PVM_HVC_SHARE, &g, 1);
	gmem_punch(&g, 1, 1);
	TEST_ASSERT_EQ(answer(p, id), PVM_INVALID);
	expect_lost(p, id, &g, 1);

	share(p, id, &g, 2);
	ask(p, id, PVM_HVC_UNSHARE, &g, 2);
	gmem_punch(&g, 2, 1);
	TEST_ASSERT_EQ(answer(p, id), PVM_INVALID);
	expect_lost(p, id, &g, 2);

	/* Converted as asked, and then taken. */
	ask(p, id, PVM_HVC_SHARE, &g, 3);
	gmem_to_shared(&g, 3, 1, 0);
	gmem_punch(&g, 3, 1);
	TEST_ASSERT_EQ(answer(p, id), PVM_INVALID);
	expect_lost(p, id, &g, 3);
	guest_check(p, id, &g, 4, NR - 4, VAL + 4);
}

/*
 * DISCARD is a hole and a change of state: nobody has to ask, and the guest loses
 * what it had, whichever side that was on.
 */
PVM_TEST(discard)
{
	struct pvm *p = &self->p;
	u32 id = self->id;
	struct gmem g;

	new_filled_file(p, &g, 0);
	guest_check(p, id, &g, 0, 5, VAL);
	share(p, id, &g, 2);
	share(p, id, &g, 4);

	gmem_to_private(&g, 1, 1, GMEM_DISCARD);
	assert_unreachable(&g, 1, 1);
	gmem_to_shared(&g, 2, 2, GMEM_DISCARD);
	gmem_host_check_zero(&g, 2, 2);
	gmem_to_private(&g, 4, 1, GMEM_DISCARD);
	assert_unreachable(&g, 4, 1);
	expect_lost(p, id, &g, 1);
	expect_lost(p, id, &g, 2);
	expect_lost(p, id, &g, 3);
	expect_lost(p, id, &g, 4);

	/* Never the guest's: nothing to lose. */
	gmem_to_shared(&g, 5, 1, GMEM_DISCARD);
	gmem_host_check_zero(&g, 5, 1);
	gmem_to_private(&g, 5, 1, 0);
	guest_check_zero(p, id, &g, 5, 1);
	guest_check(p, id, &g, 0, 1, VAL);
	guest_check(p, id, &g, 6, NR - 6, VAL + 6);
}

/* The VMM that drops what it was asked to share or take back. */
PVM_TEST(discard_while_asked)
{
	struct pvm *p = &self->p;
	u32 id = self->id;
	struct gmem g;

	new_filled_file(p, &g, 0);
	guest_check(p, id, &g, 0, NR, VAL);
	share(p, id, &g, 2);

	ask(p, id, PVM_HVC_SHARE, &g, 1);
	gmem_to_shared(&g, 1, 1, GMEM_DISCARD);
	gmem_host_check_zero(&g, 1, 1);
	TEST_ASSERT_EQ(answer(p, id), PVM_INVALID);
	expect_lost(p, id, &g, 1);

	ask(p, id, PVM_HVC_UNSHARE, &g, 2);
	gmem_to_private(&g, 2, 1, GMEM_DISCARD);
	assert_unreachable(&g, 2, 1);
	TEST_ASSERT_EQ(answer(p, id), PVM_INVALID);
	expect_lost(p, id, &g, 2);
	guest_check(p, id, &g, 3, NR - 3, VAL + 3);
}

/* A guest that shares with ZERO asked gets what it gave back as zeros. */
PVM_TEST(share_zeroed)
{
	struct pvm *p = &self->p;
	struct gmem g;

	new_filled_file(p, &g, 0);
	guest_check(p, self->id, &g, 0, NR, VAL);
	ask(p, self->id, PVM_HVC_SHARE, &g, 1);
	gmem_to_shared(&g, 1, 1, GMEM_ZERO);
	TEST_ASSERT_EQ(answer(p, self->id), PVM_SUCCESS);
	gmem_host_check_zero(&g, 1, 1);
	guest_check_zero(p, self->id, &g, 1, 1);
	guest_check(p, self->id, &g, 2, NR - 2, VAL + 2);
}

PVM_TEST(relinquish)
{
	struct pvm *p = &self->p;
	u32 id = self->id;
	struct gmem g;

	if (!(pvm_exit_hypercalls() & KVM_ARM_EXIT_HYPERCALL_MEM_RELINQUISH))
		SKIP(return, "No MEM_RELINQUISH");

	new_filled_file(p, &g, 0);
	guest_check(p, id, &g, 0, 4, VAL);
	share(p, id, &g, 2);

	/* The VMM takes the page, and the guest gets another when it wants one. */
	TEST_ASSERT_EQ(hvc(p, id, PVM_HVC_RELINQUISH, gpa_of(&g, 1)), PVM_SUCCESS);
	TEST_ASSERT(!gmem_page_is_present(&g, 1), "Relinquished page is present");
	guest_check_zero(p, id, &g, 1, 1);
	guest_fill(p, id, &g, 1, 1, OTHER);
	guest_check(p, 0, &g, 1, 1, OTHER);
	assert_unreachable(&g, 1, 1);

	/* It may give up the new page, too. */
	TEST_ASSERT_EQ(hvc(p, id, PVM_HVC_RELINQUISH, gpa_of(&g, 1)), PVM_SUCCESS);
	guest_check_zero(p, id, &g, 1, 1);

	/* The VMM does not: the page is in the file, and no longer the guest's. */
	ask(p, id, PVM_HVC_RELINQUISH, &g, 3);
	TEST_ASSERT_EQ(answer(p, id), PVM_SUCCESS);
	TEST_ASSERT(gmem_page_is_present(&g, 3), "Relinquished page is absent");
	gmem_to_shared(&g, 3, 1, 0);
	gmem_host_check_zero(&g, 3, 1);
	gmem_to_private(&g, 3, 1, 0);
	guest_check_zero(p, id, &g, 3, 1);
	gmem_punch(&g, 3, 1);
	expect_lost(p, id, &g, 3);

	/* What is lost or was never there can be given up, without an exit. */
	pvm_prepare(p, id, pvm_guest_hvc, PVM_HVC_RELINQUISH, gpa_of(&g, 3));
	TEST_ASSERT_EQ(answer(p, id), PVM_SUCCESS);
	expect_lost(p, id, &g, 3);
	pvm_prepare(p, id, pvm_guest_hvc, PVM_HVC_RELINQUISH, gpa_of(&g, 5));
	TEST_ASSERT_EQ(answer(p, id), PVM_SUCCESS);
	guest_check(p, id, &g, 5, 1, VAL + 5);
	pvm_prepare(p, id, pvm_guest_hvc, PVM_HVC_RELINQUISH, NO_SLOT_GPA);
	TEST_ASSERT_EQ(answer(p, id), PVM_SUCCESS);

	/* Nor is it a licence to share. */
	guest_check(p, id, &g, 4, 1, VAL + 4);
	ask(p, id, PVM_HVC_RELINQUISH, &g, 4);
	expect_veto(&g, 4, 1, 0);
	gmem_punch(&g, 4, 1);
	TEST_ASSERT_EQ(answer(p, id), PVM_SUCCESS);
	guest_check_zero(p, id, &g, 4, 1);
}

/* A page that is shared is given up as well, with what is in it. */
PVM_TEST(relinquish_shared)
{
	struct pvm *p = &self->p;
	u32 id = self->id;
	struct gmem g;

	new_filled_file(p, &g, 0);
	guest_check(p, id, &g, 0, 4, VAL);
	share(p, id, &g, 1);
	ask(p, id, PVM_HVC_RELINQUISH, &g, 1);
	TEST_ASSERT_EQ(answer(p, id), PVM_SUCCESS);
	gmem_host_check(&g, 1, 1, VAL + 1);
	pvm_prepare(p, id, pvm_guest_read, gpa_of(&g, 1));
	expect_memory_fault(p, id, &g, 1);
	gmem_to_private(&g, 1, 1, 0);
	pvm_finish(p, id);
	guest_check(p, id, &g, 0, NR, VAL);

	/* The VMM that has other plans doesn't decline either. */
	ask(p, id, PVM_HVC_RELINQUISH, &g, 2);
	set_mp_state(self->vcpu, KVM_MP_STATE_STOPPED);
	set_mp_state(self->vcpu, KVM_MP_STATE_RUNNABLE);
	TEST_ASSERT_EQ(answer(p, id), PVM_SUCCESS);
	guest_check_zero(p, id, &g, 2, 1);
}

/* ---- Slots, mappings, descriptors ---- */

#define SLOT_FLAGS	KVM_MEM_GUEST_MEMFD

#define expect_delete(g, error)							\
do {										\
	struct gmem *__g = (g);							\
										\
	expect_slot(__g->vm, __g->slot, SLOT_FLAGS, __g->gpa, 0, __g->mem,	\
		    __g->fd, error);						\
} while (0)

#define expect_move(g, to, error)						\
do {										\
	struct gmem *__g = (g);							\
										\
	expect_slot(__g->vm, __g->slot, SLOT_FLAGS, to, __g->size, __g->mem,	\
		    __g->fd, error);						\
} while (0)

PVM_TEST(slots)
{
	struct pvm *p = &self->p;
	struct gmem g, h;
	u32 id = self->id;

	/* Memory may come at any time, and stays, be it touched or not. */
	new_filled_file(p, &g, 0);
	expect_move(&g, NO_SLOT_GPA, EINVAL);
	expect_delete(&g, EPERM);

	/* Owned by the guest, then shared by it. */
	guest_check(p, id, &g, 1, 1, VAL + 1);
	expect_delete(&g, EPERM);
	share(p, id, &g, 1);
	expect_delete(&g, EPERM);
	expect_move(&g, NO_SLOT_GPA, EINVAL);
	ask(p, id, PVM_HVC_UNSHARE, &g, 1);
	expect_delete(&g, EPERM);
	gmem_to_private(&g, 1, 1, 0);
	TEST_ASSERT_EQ(answer(p, id), PVM_SUCCESS);
	guest_check(p, id, &g, 1, 1, VAL + 1);

	/* The VMM may take all of it away, but not have it read as a device's. */
	gmem_punch(&g, 0, NR);
	expect_delete(&g, EPERM);
	expect_lost(p, id, &g, 1);
	guest_check_zero(p, id, &g, 2, 1);

	/* Nor that of a file that nobody has touched. */
	new_file(p, &h, 1, GMEM_PRIVATE_FILE);
	expect_delete(&h, EPERM);
	pvm_prepare(p, id, pvm_guest_write, gpa_of(&h, 1), VAL);
	pvm_finish(p, id);
	TEST_ASSERT_EQ(pvm_call(p, 0, pvm_guest_read, gpa_of(&h, 1))->ret[0], VAL);
}

/* Before the VM has run slots come and go as for any VM. */
SETUP_TEST(slots_before_run)
{
	struct kvm_vm *vm = vm_create_barebones_type(KVM_VM_TYPE_ARM_PROTECTED);
	struct gmem g;
	int i;

	TEST_ASSERT_EQ(enable_exits(vm, PVM_EXITS), 0);
	gmem_create(&g, vm, NR * PAGE_SIZE, GMEM_SHARED_FILE);
	TEST_ASSERT(__vm_ioctl(vm, KVM_CREATE_VCPU, (void *)0ul) >= 0, "KVM_CREATE_VCPU failed");
	for (i = 0; i < 3; i++) {
		gmem_bind(&g, GMEM_SLOT + i, GMEM_GPA + i * NR * PAGE_SIZE);
		gmem_host_fill(&g, 0, NR, VAL + i);
		gmem_unbind(&g);
		gmem_host_check(&g, 0, NR, VAL + i);
	}
	gmem_destroy(&g);
	kvm_vm_free(vm);
}

/* The guest needs neither mapping of the VMM nor its descriptor. */
PVM_TEST(unmapped_by_vmm)
{
	struct pvm *p = &self->p;
	u32 id = self->id;
	struct gmem g;

	new_filled_file(p, &g, 0);
	guest_check(p, id, &g, 0, 4, VAL);
	share(p, id, &g, 1);
	TEST_ASSERT(!madvise(g.mem, g.size, MADV_DONTNEED), "madvise() failed");
	gmem_host_check(&g, 1, 1, VAL + 1);
	TEST_ASSERT(!mprotect(g.mem, g.size, PROT_NONE), "mprotect() failed");
	guest_check(p, id, &g, 0, NR, VAL);
	kvm_munmap(g.mem, g.size);
	guest_check(p, id, &g, 0, NR, VAL);
	unshare(p, id, &g, 1);
	share(p, id, &g, 2);

	g.mem = kvm_mmap(g.size, PROT_READ | PROT_WRITE, MAP_SHARED, g.fd);
	gmem_host_check(&g, 2, 1, VAL + 2);
	assert_unreachable(&g, 0, 2);
	assert_unreachable(&g, 3, NR - 3);

	/* Something else at the slot's address is not the guest's memory. */
	kvm_munmap(g.mem, g.size);
	TEST_ASSERT(mmap(g.mem, g.size, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == g.mem,
		    "mmap() failed");
	guest_check(p, id, &g, 0, NR, VAL);
}

PVM_TEST(file_closed)
{
	struct pvm *p = &self->p;
	u32 id = self->id;
	struct gmem g;

	new_filled_file(p, &g, 0);
	guest_check(p, id, &g, 0, 4, VAL);
	share(p, id, &g, 1);

	/* The mapping holds the file. */
	kvm_close(g.fd);
	guest_check(p, id, &g, 0, NR, VAL);
	gmem_host_check(&g, 1, 1, VAL + 1);
	kvm_munmap(g.mem, g.size);

	/* Its pages are gone, with the VM alive. */
	pvm_prepare(p, id, pvm_guest_read, gpa_of(&g, 0));
	TEST_ASSERT(_vcpu_run(self->vcpu) == -1, "The guest reads a file that is gone");
	pvm_vcpu_reset(self->vcpu);
	pvm_finish(p, id);
	pvm_prepare(p, id, pvm_guest_hvc, PVM_HVC_SHARE, gpa_of(&g, 5));
	TEST_ASSERT_EQ(answer(p, id), PVM_INVALID);
}

/* ---- Other processes ---- */

static void child_meddles(struct child *c, struct gmem *g)
{
	gmem_test_init();
	TEST_ASSERT_EQ(__gmem_convert(g->fd, 0, g->size, 0, 0, NULL), EIO);
	TEST_ASSERT_EQ(__gmem_convert(g->fd, PAGE_SIZE, PAGE_SIZE, 0, 0, NULL), EIO);
	TEST_ASSERT_EQ(__gmem_convert(g->fd, PAGE_SIZE, PAGE_SIZE, GMEM_PRIVATE,
				      GMEM_DISCARD, NULL), EIO);

	/* Through the mapping that it has inherited, and through one of its own. */
	assert_unreachable(g, 0, 2);
	gmem_host_check(g, 2, 1, VAL + 2);
	g->mem = kvm_mmap(g->size, PROT_READ | PROT_WRITE, MAP_SHARED, g->fd);
	assert_unreachable(g, 0, 2);
	gmem_host_fill(g, 2, 1, OTHER);

	/* What the guest has to itself isn't theirs to drop. */
	TEST_ASSERT(fallocate(g->fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
			      3 * PAGE_SIZE, PAGE_SIZE) == -1 && errno == EPERM,
		    "Hole in a private page: errno %d", errno);
	TEST_ASSERT(madvise(mem_of(g, 3), PAGE_SIZE, MADV_REMOVE) == -1 && errno == EPERM,
		    "MADV_REMOVE of a private page: errno %d", errno);
}

PVM_TEST(foreign)
{
	struct pvm *p = &self->p;
	u32 id = self->id;
	struct child c;
	struct gmem g;

	new_filled_file(p, &g, 0);
	guest_check(p, id, &g, 0, 4, VAL);
	share(p, id, &g, 2);
	ask(p, id, PVM_HVC_SHARE, &g, 1);

	child_start(&c, child_meddles, &g);
	child_join(&c);

	gmem_to_shared(&g, 1, 1, 0);
	TEST_ASSERT_EQ(answer(p, id), PVM_SUCCESS);
	gmem_host_check(&g, 1, 1, VAL + 1);
	guest_check(p, id, &g, 2, 1, OTHER);
	guest_check(p, id, &g, 3, 1, VAL + 3);
}

/* ---- Memory that is not in a file ---- */

static void add_anonymous_slot(struct pvm *p, struct gmem *anon)
{
	*anon = (struct gmem) {
		.vm = p->vm,
		.size = ANON_NR * PAGE_SIZE,
		.gpa = ANON_GPA,
	};
	anon->mem = kvm_mmap(anon->size, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1);
	gmem_host_fill(anon, 0, ANON_NR, VAL);
	vm_set_user_memory_region(p->vm, ANON_SLOT, 0, ANON_GPA, anon->size, anon->mem);
}

/* The calls do it all; the VMM is not asked. */
static void test_anonymous_slot(struct pvm *p, u32 id, struct gmem *anon)
{
	guest_fill(p, id, anon, 1, 1, OTHER);

	pvm_prepare(p, id, pvm_guest_hvc, PVM_HVC_SHARE, gpa_of(anon, 1));
	TEST_ASSERT_EQ(answer(p, id), PVM_SUCCESS);
	gmem_host_check(anon, 1, 1, OTHER);
	gmem_host_fill(anon, 1, 1, VAL + 1);
	guest_check(p, 0, anon, 1, 1, VAL + 1);
	pvm_prepare(p, id, pvm_guest_hvc, PVM_HVC_UNSHARE, gpa_of(anon, 1));
	TEST_ASSERT_EQ(answer(p, id), PVM_SUCCESS);
	guest_check(p, id, anon, 0, ANON_NR - 1, VAL);

	/* Absent: given and shared. */
	pvm_prepare(p, id, pvm_guest_hvc, PVM_HVC_SHARE, gpa_of(anon, ANON_NR - 1));
	TEST_ASSERT_EQ(answer(p, id), PVM_SUCCESS);
	gmem_host_check(anon, ANON_NR - 1, 1, VAL + ANON_NR - 1);
	TEST_ASSERT_EQ(hvc(p, id, PVM_HVC_SHARE, gpa_of(anon, ANON_NR - 1)), PVM_INVALID);

	/* Pinned for life, and charged. */
	TEST_ASSERT(gmem_status_kib("VmLck"), "Nothing is locked");
	expect_slot(p->vm, ANON_SLOT, 0, ANON_GPA, 0, anon->mem, -1, EPERM);
}

/* In the same VM as files, and as it always was. */
PVM_TEST(anonymous_slot)
{
	struct pvm *p = &self->p;
	struct gmem g, anon;

	new_filled_file(p, &g, 0);
	add_anonymous_slot(p, &anon);
	guest_check(p, self->id, &anon, 0, 4, VAL);
	guest_check(p, self->id, &g, 0, 4, VAL);
	test_anonymous_slot(p, self->id, &anon);
	guest_check(p, self->id, &g, 0, NR, VAL);
}

/* A guest that gives up what it has need not know where the VMM got it from. */
PVM_TEST(anonymous_relinquish)
{
	struct pvm *p = &self->p;
	u64 locked, want = 4 * PAGE_SIZE / SZ_1K;
	u32 id = self->id;
	struct gmem anon;
	u64 i;

	add_anonymous_slot(p, &anon);
	locked = gmem_status_kib("VmLck");
	guest_check(p, id, &anon, 0, 4, VAL);
	TEST_ASSERT_EQ(gmem_status_kib("VmLck") - locked, want);
	pvm_prepare(p, id, pvm_guest_hvc, PVM_HVC_SHARE, gpa_of(&anon, 1));
	TEST_ASSERT_EQ(answer(p, id), PVM_SUCCESS);

	for (i = 0; i < 4; i++) {
		pvm_prepare(p, id, pvm_guest_hvc, PVM_HVC_RELINQUISH, gpa_of(&anon, i));
		TEST_ASSERT_EQ(answer(p, id), PVM_SUCCESS);
	}
	TEST_ASSERT_EQ(gmem_status_kib("VmLck"), locked);
	gmem_host_check_zero(&anon, 0, 1);
	gmem_host_check(&anon, 1, 1, VAL + 1);
	gmem_host_check_zero(&anon, 2, 2);

	/* And gets it again when it wants to. */
	guest_check_zero(p, id, &anon, 0, 1);
	guest_check(p, id, &anon, 1, 1, VAL + 1);
	guest_check(p, id, &anon, 4, ANON_NR - 4, VAL + 4);
}

/* All of it anonymous, and no call exits: protected VMs as they were. */
TEST_F_TIMEOUT(anonymous, vm, GMEM_TIMEOUT_S)
{
	struct gmem anon;
	struct pvm p;

	pvm_create(&p, 2, 0);
	virt_map(p.vm, ANON_GPA, ANON_GPA, ANON_NR);
	add_anonymous_slot(&p, &anon);
	pvm_load_anonymous(&p);

	guest_check(&p, 1, &anon, 0, 4, VAL);
	test_anonymous_slot(&p, 1, &anon);
	pvm_free(&p);
}

/* <linux/capability.h> needs no library for this. */
static void drop_ipc_lock(void)
{
	struct { u32 version; int pid; } header = { 0x20080522, 0 };
	struct { u32 effective, permitted, inheritable; } data[2];

	TEST_ASSERT(!syscall(__NR_capget, &header, data), "capget() failed");
	data[0].effective &= ~BIT(14);
	TEST_ASSERT(!syscall(__NR_capset, &header, data), "capset() failed");
}

/* A VMM that may lock nothing runs a guest in a file, and not in anonymous memory. */
SETUP_TEST(no_locked_memory)
{
	struct rlimit none = {};
	struct gmem g;
	struct pvm p;
	void *mem;

	drop_ipc_lock();
	TEST_ASSERT(!setrlimit(RLIMIT_MEMLOCK, &none), "setrlimit() failed");

	start_vm(&p, 2);
	new_filled_file(&p, &g, 0);
	guest_check(&p, 0, &g, 0, NR, VAL);
	share(&p, 1, &g, 1);
	guest_check(&p, 1, &g, 0, NR, VAL);
	TEST_ASSERT_EQ(gmem_status_kib("VmLck"), 0);
	TEST_ASSERT_EQ(gmem_status_kib("VmPin"), 0);

	mem = kvm_mmap(PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	vm_set_user_memory_region(p.vm, ANON_SLOT, 0, ANON_GPA, PAGE_SIZE, mem);
	pvm_prepare(&p, 0, pvm_guest_read, ANON_GPA);
	expect_run_error(p.vcpus[0], ENOMEM);
	TEST_ASSERT_EQ(gmem_status_kib("VmLck"), 0);
	unshare(&p, 1, &g, 1);
	pvm_free(&p);
	TEST_ASSERT_EQ(gmem_status_kib("VmLck"), 0);
}

/* ---- Life and death ---- */

enum end { END_VM, END_FD, END_MAPPING };

static void end_one(struct pvm *p, struct gmem *g, enum end what)
{
	u64 seen = 0;

	if (what == END_VM) {
		kvm_vm_release(p->vm);
		kvm_munmap(p->image.mem, p->image.size);
		kvm_close(p->image.fd);
	} else if (what == END_FD) {
		kvm_close(g->fd);
	} else {
		kvm_munmap(g->mem, g->size);
		g->mem = NULL;
	}

	if (!g->mem)
		return;
	gmem_assert_private(g, 0, 2);
	gmem_assert_private(g, 4, NR - 4);
	TEST_ASSERT(gmem_try_read(mem_of(g, 2), &seen) || seen == VAL + 2 || !seen,
		    "Shared page: 0x%lx", seen);
}

/*
 * Frames that were freed last are given out first: have the kernel clear them.  One
 * that a guest still owns at EL2 would be the end of the machine.
 */
static void use_free_memory(void)
{
	size_t size = SZ_16M;
	void *mem = kvm_mmap(size, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1);

	kvm_munmap(mem, size);
}

static void test_teardown(const enum end *order, bool pending)
{
	struct gmem g;
	struct pvm p;
	int i;

	start_vm(&p, 2);
	new_filled_file(&p, &g, 0);
	guest_check(&p, 0, &g, 0, 4, VAL);
	share(&p, 0, &g, 2);
	if (pending) {
		ask(&p, 0, PVM_HVC_SHARE, &g, 1);
		ask(&p, 1, PVM_HVC_UNSHARE, &g, 2);
	}
	for (i = 0; i < 3; i++)
		end_one(&p, &g, order[i]);
	use_free_memory();
}

/* In any order, every page comes back; whatever the guest waits for. */
SETUP_TEST(teardown_orders)
{
	static const enum end orders[][3] = {
		{ END_VM, END_FD, END_MAPPING },
		{ END_VM, END_MAPPING, END_FD },
		{ END_FD, END_VM, END_MAPPING },
		{ END_FD, END_MAPPING, END_VM },
		{ END_MAPPING, END_VM, END_FD },
		{ END_MAPPING, END_FD, END_VM },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(orders); i++)
		test_teardown(orders[i], i & 1);
}

/* What guests gave back is ordinary memory again. */
#define BIG_NR		512ul

static void run_big_guest(struct pvm *p, struct gmem *g)
{
	gmem_test_init();
	pvm_create(p, 2, pvm_exit_hypercalls());
	virt_map(p->vm, GMEM_GPA, GMEM_GPA, BIG_NR);
	pvm_load_gmem(p);
	gmem_create(g, p->vm, BIG_NR * PAGE_SIZE, GMEM_PRIVATE_FILE);
	gmem_bind(g, GMEM_SLOT, GMEM_GPA);
	pvm_add_file(p, g);
	guest_fill(p, 1, g, 0, BIG_NR, VAL);
}

/* Files of the machine.  Free memory would be hard to tell: CPUs keep some back. */
static u64 cached_kib(void)
{
	return gmem_meminfo_kib("Cached");
}

/* Half of what the guest has had; the rest of the machine moves less. */
#define MUCH_KIB	(BIG_NR * PAGE_SIZE / SZ_1K / 2)

SETUP_TEST(memory_comes_back)
{
	struct gmem g;
	struct pvm p;
	u64 before;

	run_big_guest(&p, &g);
	before = cached_kib();
	gmem_punch(&g, 0, BIG_NR);
	gmem_wait_until(cached_kib() + MUCH_KIB < before);
	use_free_memory();

	/* The guest is well, but for that memory. */
	TEST_ASSERT_EQ(hvc(&p, 0, PVM_HVC_MEMINFO, 0), PAGE_SIZE);
	pvm_prepare(&p, 0, pvm_guest_read, g.gpa);
	expect_run_error(p.vcpus[0], EHWPOISON);
	kvm_munmap(g.mem, g.size);
	kvm_close(g.fd);
	pvm_free(&p);
	use_free_memory();
}

/* A VMM that tries to delete the slot all the time, and gets nowhere. */
static void try_to_delete(void *arg, u64 turn)
{
	expect_delete((struct gmem *)arg, EPERM);
}

static void *convert_all_thread(void *arg)
{
	struct gmem *g = arg;

	return (void *)(long)__gmem_convert(g->fd, 0, g->size, GMEM_PRIVATE, 0, NULL);
}

/*
 * The vCPU goes on while a conversion is under way that has begun as the guest waited for
 * it: what the guest is told is what the conversion says.
 */
SETUP_TEST(answer_while_converting)
{
	struct gmem_worker deleter;
	pthread_t converter;
	bool stop = false;
	u64 turns = 0, i;
	struct gmem g;
	struct pvm p;
	void *error;

	run_big_guest(&p, &g);
	gmem_punch(&g, 2, BIG_NR - 2);
	gmem_worker_start(&deleter, try_to_delete, &g, &stop, &turns);
	for (i = 0; i < GMEM_LOOPS(30); i++) {
		/* So that it takes a while. */
		gmem_to_shared(&g, 2, BIG_NR - 2, 0);
		gmem_host_fill(&g, 2, BIG_NR - 2, VAL);
		share(&p, 0, &g, 1);
		ask(&p, 0, PVM_HVC_UNSHARE, &g, 1);
		kvm_pthread_create(&converter, NULL, convert_all_thread, &g);
		usleep(i * 20);
		answer(&p, 0);
		kvm_pthread_join(converter, &error);
		TEST_ASSERT((p.cmds[0].ret[0] == PVM_SUCCESS) == !error,
			    "The guest is told 0x%lx, the conversion says %s",
			    p.cmds[0].ret[0], strerror((long)error));
		if (error)
			unshare(&p, 0, &g, 1);
		guest_check(&p, 1, &g, 0, 2, VAL);
	}
	WRITE_ONCE(stop, true);
	gmem_worker_join(&deleter);
	pvm_free(&p);
}

/* Runs until it is killed; its vCPUs share, touch and unshare. */
static void guest_churn(struct pvm_cmd *cmd)
{
	gpa_t gpa = cmd->args[0];
	u64 i;

	for (i = 0;; i = (i + 1) % NR) {
		pvm_hvc(PVM_HVC_SHARE, gpa + i * PAGE_SIZE);
		WRITE_ONCE(*(u64 *)(gpa + i * PAGE_SIZE), i);
		pvm_hvc(PVM_HVC_UNSHARE, gpa + i * PAGE_SIZE);
		WRITE_ONCE(cmd->ret[0], cmd->ret[0] + 1);
	}
}

struct victim {
	struct pvm *p;
	u32 id;
	u64 *turns;
};

static void *victim_thread(void *arg)
{
	struct victim *v = arg;
	struct kvm_vcpu *vcpu = v->p->vcpus[v->id];

	for (;;) {
		vcpu_run(vcpu);
		TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_HYPERCALL);
		pvm_serve(v->p, vcpu);
		WRITE_ONCE(*v->turns, *v->turns + 1);
	}
	return NULL;
}

static void run_victim(u64 *turns)
{
	struct gmem g, files[PVM_MAX_VCPUS];
	struct victim v[PVM_MAX_VCPUS];
	pthread_t thread;
	struct pvm p;
	u32 i;

	start_vm(&p, PVM_MAX_VCPUS);
	for (i = 0; i < PVM_MAX_VCPUS; i++) {
		v[i] = (struct victim) { .p = &p, .id = i, .turns = &turns[i] };
		new_file(&p, &files[i], i, GMEM_PRIVATE_FILE);
		pvm_prepare(&p, i, guest_churn, files[i].gpa);
	}
	new_filled_file(&p, &g, PVM_MAX_VCPUS);
	for (i = 0; i < PVM_MAX_VCPUS; i++)
		kvm_pthread_create(&thread, NULL, victim_thread, &v[i]);
	for (;;)
		pause();
}

/* SIGKILL, at a moment that nobody chose. */
SETUP_TEST(killed)
{
	u64 *turns = kvm_mmap(PAGE_SIZE, PROT_READ | PROT_WRITE,
			      MAP_SHARED | MAP_ANONYMOUS, -1);
	int round, status;
	pid_t pid;
	u32 i;

	for (round = 0; round < GMEM_LOOPS(3); round++) {
		memset(turns, 0, PAGE_SIZE);
		pid = fork();
		TEST_ASSERT(pid >= 0, "fork() failed");
		if (!pid) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			run_victim(turns);
		}
		for (i = 0; i < PVM_MAX_VCPUS; i++)
			gmem_wait_until(READ_ONCE(turns[i]) > 10 + round ||
					waitpid(pid, &status, WNOHANG));
		TEST_ASSERT(!kill(pid, SIGKILL), "The VMM has died of itself");
		TEST_ASSERT_EQ(waitpid(pid, &status, 0), pid);
		TEST_ASSERT(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL,
			    "Status 0x%x", status);
		use_free_memory();
	}
}

/* ---- Several vCPUs ---- */

FIXTURE_SETUP(smp)
{
	if (!supported())
		SKIP(return, "No protected VMs on guest_memfd");

	start_vm(&self->p, variant->nr_vcpus);
	new_filled_file(&self->p, &self->g, 0);
}

FIXTURE_TEARDOWN(smp)
{
	pvm_free(&self->p);
}

/* One vCPU shares what another is unsharing, in every order of the VMM's answers. */
SMP_TEST(share_what_another_unshares)
{
	struct gmem *g = &self->g;
	struct pvm *p = &self->p;

	/* It is shared still: the guest is told so, without an exit. */
	share(p, 0, g, 1);
	ask(p, 0, PVM_HVC_UNSHARE, g, 1);
	pvm_prepare(p, 1, pvm_guest_hvc, PVM_HVC_SHARE, gpa_of(g, 1));
	TEST_ASSERT_EQ(answer(p, 1), PVM_INVALID);
	gmem_to_private(g, 1, 1, 0);

	/* It is private now, though vCPU 0 has not heard. */
	ask(p, 1, PVM_HVC_SHARE, g, 1);
	gmem_to_shared(g, 1, 1, 0);
	TEST_ASSERT_EQ(answer(p, 0), PVM_INVALID);
	TEST_ASSERT_EQ(answer(p, 1), PVM_SUCCESS);
	gmem_host_check(g, 1, 1, VAL + 1);

	/* Both want the same: both get it. */
	ask(p, 0, PVM_HVC_UNSHARE, g, 1);
	ask(p, 1, PVM_HVC_UNSHARE, g, 1);
	gmem_to_private(g, 1, 1, 0);
	TEST_ASSERT_EQ(answer(p, 1), PVM_SUCCESS);
	TEST_ASSERT_EQ(answer(p, 0), PVM_SUCCESS);
	assert_unreachable(g, 1, 1);

	/* The request of one outlives that of the other. */
	ask(p, 0, PVM_HVC_SHARE, g, 1);
	ask(p, 1, PVM_HVC_SHARE, g, 1);
	TEST_ASSERT_EQ(answer(p, 0), PVM_INVALID);
	gmem_to_shared(g, 1, 1, 0);
	TEST_ASSERT_EQ(answer(p, 1), PVM_SUCCESS);
	guest_check(p, 0, g, 0, NR, VAL);
}

/*
 * A vCPU that waits for an answer cannot switch itself off.  But another may switch the
 * machine off, and when the VMM lets that one go on all the same, switch this one on.
 * That is a reset, which KVM does when the vCPU runs or is looked at.
 */
static void power_cycle(struct pvm *p, u32 id)
{
	struct kvm_vcpu *vcpu = p->vcpus[0];
	u64 mpidr;

	mpidr = vcpu_get_reg(p->vcpus[id], KVM_ARM64_SYS_REG(SYS_MPIDR_EL1));
	pvm_prepare(p, 0, pvm_guest_hvc, PSCI_0_2_FN_SYSTEM_OFF);
	vcpu_run(vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_SYSTEM_EVENT);
	set_mp_state(vcpu, KVM_MP_STATE_RUNNABLE);
	pvm_finish(p, 0);
	pvm_call(p, 0, pvm_guest_hvc, PSCI_0_2_FN64_CPU_ON, mpidr & MPIDR_HWID_BITMASK,
		 OTHER, VAL);
	TEST_ASSERT_EQ(p->cmds[0].ret[0], PSCI_RET_SUCCESS);
}

SMP_TEST(request_dies_with_psci_reset)
{
	struct gmem *g = &self->g;
	struct pvm *p = &self->p;

	guest_check(p, 1, g, 0, NR, VAL);
	ask(p, 1, PVM_HVC_SHARE, g, 1);
	power_cycle(p, 1);
	TEST_ASSERT_EQ(vcpu_get_reg(p->vcpus[1], ARM64_CORE_REG(regs.pc)), OTHER);
	TEST_ASSERT_EQ(vcpu_get_reg(p->vcpus[1], ARM64_CORE_REG(regs.regs[0])), VAL);
	expect_veto(g, 1, 1, 0);
	pvm_vcpu_reset(p->vcpus[1]);
	pvm_finish(p, 1);

	/* Done before stays done. */
	ask(p, 1, PVM_HVC_SHARE, g, 2);
	gmem_to_shared(g, 2, 1, 0);
	power_cycle(p, 1);
	TEST_ASSERT_EQ(vcpu_get_reg(p->vcpus[1], ARM64_CORE_REG(regs.regs[0])), VAL);
	expect_veto(g, 2, 1, GMEM_PRIVATE);
	pvm_vcpu_reset(p->vcpus[1]);
	pvm_finish(p, 1);
	gmem_host_check(g, 2, 1, VAL + 2);
	assert_unreachable(g, 1, 1);
	guest_check(p, 1, g, 0, NR, VAL);
}

/*
 * A page is given up once.  What another vCPU gets in its place before the answer is its
 * memory like any other: kept, and poisoned if the host takes it as well.
 */
SMP_TEST(relinquish_once)
{
	struct gmem *g = &self->g;
	struct pvm *p = &self->p;

	guest_check(p, 0, g, 0, NR, VAL);
	ask(p, 0, PVM_HVC_RELINQUISH, g, 1);
	gmem_punch(g, 1, 1);
	guest_check_zero(p, 1, g, 1, 1);
	guest_fill(p, 1, g, 1, 1, OTHER);
	TEST_ASSERT_EQ(answer(p, 0), PVM_SUCCESS);
	guest_check(p, 0, g, 1, 1, OTHER);

	ask(p, 0, PVM_HVC_RELINQUISH, g, 1);
	gmem_punch(g, 1, 1);
	guest_fill(p, 1, g, 1, 1, OTHER);
	gmem_punch(g, 1, 1);
	TEST_ASSERT_EQ(answer(p, 0), PVM_SUCCESS);
	expect_lost(p, 1, g, 1);

	/* Both give it up, and it goes once. */
	ask(p, 0, PVM_HVC_RELINQUISH, g, 2);
	ask(p, 1, PVM_HVC_RELINQUISH, g, 2);
	TEST_ASSERT_EQ(answer(p, 1), PVM_SUCCESS);
	guest_fill(p, 1, g, 2, 1, OTHER);
	TEST_ASSERT_EQ(answer(p, 0), PVM_SUCCESS);
	guest_check(p, 0, g, 2, 1, OTHER);
	guest_check(p, 0, g, 3, NR - 3, VAL + 3);
}

/* Others go on while one waits, and use the page until the answer. */
SMP_TEST(others_go_on)
{
	struct gmem *g = &self->g;
	struct pvm *p = &self->p;

	ask(p, 0, PVM_HVC_SHARE, g, 1);
	guest_fill(p, 1, g, 1, 1, OTHER);
	share(p, 1, g, 2);
	assert_unreachable(g, 1, 1);
	gmem_to_shared(g, 1, 1, 0);
	gmem_host_check(g, 1, 1, OTHER);
	guest_fill(p, 1, g, 1, 1, VAL + 1);
	gmem_host_check(g, 1, 1, VAL + 1);
	TEST_ASSERT_EQ(answer(p, 0), PVM_SUCCESS);
	unshare(p, 1, g, 1);
	guest_check(p, 0, g, 0, NR, VAL);
}

/* All vCPUs fault the same fresh pages at the same time. */
static void guest_touch_all(struct pvm_cmd *cmd)
{
	u64 i, id = cmd->args[2];

	for (i = 0; i < cmd->args[1]; i++) {
		u64 *p = (u64 *)(cmd->args[0] + i * PAGE_SIZE);

		GUEST_ASSERT_EQ(READ_ONCE(p[id]), 0ul);
		WRITE_ONCE(p[id], VAL + i);
	}
}

struct runner {
	struct pvm *p;
	u32 id;
	void (*serve)(struct pvm *p, struct kvm_vcpu *vcpu);
	pthread_t thread;
};

static void *runner_thread(void *arg)
{
	struct runner *r = arg;
	struct kvm_vcpu *vcpu = r->p->vcpus[r->id];

	vcpu_run(vcpu);
	while (vcpu->run->exit_reason == KVM_EXIT_HYPERCALL) {
		r->serve(r->p, vcpu);
		vcpu_run(vcpu);
	}
	TEST_ASSERT_EQ(gmem_get_ucall(vcpu), UCALL_SYNC);
	return NULL;
}

static void run_all(struct pvm *p, void (*serve)(struct pvm *p, struct kvm_vcpu *vcpu))
{
	struct runner runners[PVM_MAX_VCPUS];
	u32 i;

	for (i = 0; i < p->nr_vcpus; i++) {
		runners[i] = (struct runner) { .p = p, .id = i, .serve = serve };
		kvm_pthread_create(&runners[i].thread, NULL, runner_thread, &runners[i]);
	}
	for (i = 0; i < p->nr_vcpus; i++)
		kvm_pthread_join(runners[i].thread, NULL);
}

SMP_TEST(faults_race)
{
	struct pvm *p = &self->p;
	struct gmem files[4];
	u32 i, j, page;

	for (i = 0; i < ARRAY_SIZE(files); i++)
		new_file(p, &files[i], 1 + i, GMEM_PRIVATE_FILE);
	for (i = 0; i < p->nr_vcpus; i++)
		pvm_prepare(p, i, guest_touch_all, files[0].gpa,
			    ARRAY_SIZE(files) * NR, (u64)i);
	run_all(p, pvm_serve);

	for (i = 0; i < p->nr_vcpus; i++)
		for (j = 0; j < ARRAY_SIZE(files); j++)
			for (page = 0; page < NR; page++)
				TEST_ASSERT_EQ(pvm_call(p, 0, pvm_guest_read,
							gpa_of(&files[j], page) + i * 8)->ret[0],
					       VAL + j * NR + page);
}

/*
 * vCPUs that share and unshare the same pages as they like.  Each has a word of
 * its own in every page, which nobody but itself may change.
 */
#define CHURN_PAGES	4ul
#define CHURN_WORD	16

static void guest_race(struct pvm_cmd *cmd)
{
	u64 gpa = cmd->args[0], rounds = cmd->args[1], id = cmd->args[2];
	u64 seed = id + 1, last[CHURN_PAGES] = {}, round, page, *word, r;

	for (round = 1; round <= rounds; round++) {
		seed = seed * 6364136223846793005ul + 1442695040888963407ul;
		page = (seed >> 33) % CHURN_PAGES;
		r = pvm_hvc((seed >> 40) & 1 ? PVM_HVC_SHARE : PVM_HVC_UNSHARE,
			    gpa + page * PAGE_SIZE);
		__GUEST_ASSERT(r == PVM_SUCCESS || r == PVM_INVALID, "Answer 0x%lx", r);
		cmd->ret[r == PVM_SUCCESS ? 2 : 3]++;

		word = (u64 *)(gpa + page * PAGE_SIZE) + CHURN_WORD + id;
		__GUEST_ASSERT(READ_ONCE(*word) == last[page],
			       "vCPU %lu, page %lu: 0x%lx, want 0x%lx", id, page,
			       READ_ONCE(*word), last[page]);
		last[page] = round;
		WRITE_ONCE(*word, round);
	}
}

/* What is asked for; others may have asked for the opposite, or done it before. */
static void serve_loosely(struct pvm *p, struct kvm_vcpu *vcpu)
{
	bool private = vcpu->run->hypercall.nr == PVM_HVC_UNSHARE;
	u64 page = 0;
	struct gmem *g = pvm_file_of(p, vcpu->run->hypercall.args[0], &page);
	int r;

	r = gmem_convert_retry(g->fd, page * PAGE_SIZE, PAGE_SIZE,
			       private ? GMEM_PRIVATE : 0, 0);
	TEST_ASSERT(!r || r == EPERM, "Conversion: %s", strerror(r));
}

struct meddler {
	struct gmem *g;
	struct gmem_worker thread;
	u64 turns;
	u64 done;
};

/* A thread of the VMM that converts and looks without being asked. */
static void meddle(void *arg, u64 turn)
{
	struct meddler *m = arg;
	u64 page = turn % CHURN_PAGES, seen;
	int r;

	r = __gmem_convert(m->g->fd, page * PAGE_SIZE, PAGE_SIZE,
			   turn & 16 ? GMEM_PRIVATE : 0, 0, NULL);
	TEST_ASSERT(!r || r == EPERM || r == EAGAIN, "Conversion: %s", strerror(r));
	m->done += !r;
	gmem_try_read(mem_of(m->g, page), &seen);
	gmem_try_write(mem_of(m->g, page), turn);
}

static void test_race(struct pvm *p, struct gmem *g, bool meddling)
{
	struct meddler m = { .g = g };
	u64 i, done = 0;
	bool stop = false;

	gmem_to_shared(g, 0, NR, GMEM_ZERO);
	gmem_to_private(g, 0, NR, 0);
	/* What the guest has not touched yet a meddler can take from it. */
	guest_check_zero(p, 0, g, 0, NR);
	for (i = 0; i < p->nr_vcpus; i++) {
		pvm_prepare(p, i, guest_race, g->gpa, GMEM_LOOPS(100), i);
		p->cmds[i].ret[2] = 0;
		p->cmds[i].ret[3] = 0;
	}
	if (meddling)
		gmem_worker_start(&m.thread, meddle, &m, &stop, &m.turns);
	run_all(p, serve_loosely);
	WRITE_ONCE(stop, true);
	if (meddling)
		gmem_worker_join(&m.thread);

	for (i = 0; i < p->nr_vcpus; i++)
		done += p->cmds[i].ret[2];
	TEST_ASSERT(done, "No call has succeeded");

	for (i = 0; i < CHURN_PAGES; i++) {
		hvc(p, 0, PVM_HVC_UNSHARE, gpa_of(g, i));
		assert_unreachable(g, i, 1);
		share(p, 0, g, i);
		unshare(p, 1, g, i);
	}
}

SMP_TEST(conversions_race)
{
	test_race(&self->p, &self->g, false);
}

SMP_TEST(conversions_race_with_vmm)
{
	test_race(&self->p, &self->g, true);
}

/* ---- Holes under running vCPUs ---- */

static void guest_hammer(struct pvm_cmd *cmd)
{
	u64 i;

	for (i = 0;; i++) {
		WRITE_ONCE(*(u64 *)(cmd->args[0] + i % cmd->args[1] * PAGE_SIZE), i);
		WRITE_ONCE(cmd->ret[0], i + 1);
	}
}

static void *doomed_thread(void *arg)
{
	struct runner *r = arg;

	expect_run_error(r->p->vcpus[r->id], EHWPOISON);
	return NULL;
}

SMP_TEST(punch_under_running_vcpus)
{
	struct runner runners[PVM_MAX_VCPUS];
	struct gmem *g = &self->g;
	struct pvm *p = &self->p;
	u32 i;

	for (i = 1; i < p->nr_vcpus; i++) {
		runners[i] = (struct runner) { .p = p, .id = i };
		pvm_prepare(p, i, guest_hammer, gpa_of(g, 0), 4);
		p->cmds[i].ret[0] = 0;
		kvm_pthread_create(&runners[i].thread, NULL, doomed_thread, &runners[i]);
	}
	for (i = 1; i < p->nr_vcpus; i++)
		gmem_wait_until(READ_ONCE(p->cmds[i].ret[0]) > 100);

	gmem_punch(g, 2, 1);
	for (i = 1; i < p->nr_vcpus; i++)
		kvm_pthread_join(runners[i].thread, NULL);

	for (i = 1; i < p->nr_vcpus; i++) {
		pvm_vcpu_reset(p->vcpus[i]);
		pvm_finish(p, i);
	}
	expect_lost(p, 0, g, 2);
	guest_check(p, 1, g, 4, NR - 4, VAL + 4);
}

int main(int argc, char **argv)
{
	setbuf(stdout, NULL);
	return test_harness_run(argc, argv);
}
