// SPDX-License-Identifier: GPL-2.0-only
/*
 * Several vCPUs of protected VMs of arm64 share, unshare, give up and touch the same
 * pages, in every order of the VMM's answers, against threads of the VMM and against a
 * conversion of the whole file.
 */
#include <linux/psci.h>

#include <asm/cputype.h>

#include "pkvm_fixture.h"

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

#define SMP_TEST(name)		TEST_F_TIMEOUT(smp, name, GMEM_TIMEOUT_S)

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

/* ---- Orders ---- */

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

/* ---- Races ---- */

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

/* ---- Conversion of a large file ---- */

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
