// SPDX-License-Identifier: GPL-2.0-only
/*
 * The VM type of x86 that tests convert memory of in place; see gmem_util.h.
 */
#include "gmem_util.h"
#include "svm_util.h"

bool gmem_conversion_supported(void)
{
	return (kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM)) &&
	       (kvm_check_cap(KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES) & GMEM_PRIVATE);
}

struct kvm_vm *gmem_vm_create(u32 nr_vcpus, void *guest_code, struct kvm_vcpu **vcpus)
{
	const struct vm_shape shape = {
		.mode = VM_MODE_DEFAULT,
		.type = KVM_X86_SW_PROTECTED_VM,
	};

	return __vm_create_with_vcpus(shape, nr_vcpus, 0, guest_code, vcpus);
}

static void gmem_l2_server(void)
{
	gmem_guest_server(0);
}

void gmem_l1_code(struct svm_test_data *svm)
{
	generic_svm_setup(svm, gmem_l2_server);
	run_guest(svm->vmcb, svm->vmcb_gpa);
	GUEST_FAIL("L2 has left, exit code 0x%lx", (u64)svm->vmcb->control.exit_code);
}
