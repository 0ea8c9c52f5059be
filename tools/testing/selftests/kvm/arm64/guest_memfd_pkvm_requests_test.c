// SPDX-License-Identifier: GPL-2.0-only
/*
 * Guests of protected VMs of arm64 that ask for pages to be shared or made private, and
 * VMMs that answer something else, or convert what nobody has asked for.
 */
#include "pkvm_fixture.h"

/* ---- Conversions that nobody has asked for ---- */

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

	new_used_file(p, id, &g, NR);
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

	new_used_file(p, id, &g, NR);

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

	new_used_file(p, id, &g, NR);

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

PVM_TEST(request_dies_with_mp_state)
{
	struct pvm *p = &self->p;
	struct gmem g;

	new_used_file(p, self->id, &g, NR);
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

	new_used_file(p, self->id, &g, NR);

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

	new_used_file(p, self->id, &g, NR);
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

	new_used_file(p, id, &g, NR);

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

int main(int argc, char **argv)
{
	setbuf(stdout, NULL);
	return test_harness_run(argc, argv);
}
