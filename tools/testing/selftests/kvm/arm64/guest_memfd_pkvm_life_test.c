// SPDX-License-Identifier: GPL-2.0-only
/*
 * Protected VMs of arm64 live beside other memory and die: no memory is locked but that
 * which is in no file, and every page comes back, in whatever order VM, files and
 * mappings go.
 */
#include <sys/resource.h>
#include <sys/syscall.h>

#include "pkvm_fixture.h"

/* ---- Memory that is not in a file ---- */

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
	new_used_file(&p, 0, &g, NR);
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
	new_used_file(&p, 0, &g, 4);
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

PVM_TEST(file_closed)
{
	struct pvm *p = &self->p;
	u32 id = self->id;
	struct gmem g;

	new_used_file(p, id, &g, 4);
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

/* ---- A VMM that is killed ---- */

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

int main(int argc, char **argv)
{
	setbuf(stdout, NULL);
	return test_harness_run(argc, argv);
}
