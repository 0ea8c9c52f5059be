// SPDX-License-Identifier: GPL-2.0-only
/*
 * The fuzzer's operations on VMs: slots, attributes, and what guests do.
 */
#include "guest_memfd_fuzz.h"

#include "svm_util.h"

struct fuzz_vm *fuzz_pick_vm(struct fuzz_world *w, u32 arg)
{
	struct fuzz_vm *vm = &w->vms[arg % FUZZ_NR_VMS];

	return vm->number ? vm : NULL;
}

/* ---- Life of VMs ---- */

static void nested_setup(struct kvm_vm *vm, struct kvm_vcpu *vcpu)
{
	gva_t svm;

	vm_enable_npt(vm);
	vcpu_alloc_svm(vm, &svm);
	vcpu_args_set(vcpu, 1, svm);
	tdp_identity_map_default_memslots(vm);
	tdp_map(vm, GMEM_GPA, GMEM_GPA, (FUZZ_WINDOW + 1) * PAGE_SIZE);
}

/* A VM with one vCPU, whose guest does what it is told. */
void fuzz_vm_create(struct fuzz_world *w, struct fuzz_vm *vm, bool private, bool nested)
{
	struct vm_shape shape = {
		.mode = VM_MODE_DEFAULT,
		.type = private ? KVM_X86_SW_PROTECTED_VM : KVM_X86_DEFAULT_VM,
	};

	vm->number = ++w->next_vm;
	vm->has_private = private;
	vm->nested = nested && kvm_cpu_has(X86_FEATURE_SVM) && kvm_cpu_has_npt();
	fuzz_note(w, "VM %ld, private memory %d, nested guest %d", vm - w->vms, private,
		  vm->nested);

	vm->vm = __vm_create_with_vcpus(shape, 1, FUZZ_WINDOW / 128, fuzz_guest_code,
					&vm->vcpu);
	vm->file_flags = vm_check_cap(vm->vm, KVM_CAP_GUEST_MEMFD_FLAGS);
	vm->userfault = vm_check_cap(vm->vm, KVM_CAP_GUEST_MEMFD_USERFAULT);
	vcpu_args_set(vm->vcpu, 1, 0);
	virt_map(vm->vm, GMEM_GPA, GMEM_GPA, FUZZ_WINDOW + 1);
	if (vm->nested)
		nested_setup(vm->vm, vm->vcpu);
	fuzz_guest_start(w, vm);
}

void fuzz_op_vm_new(struct fuzz_world *w, const u32 *arg)
{
	struct fuzz_vm *vm = &w->vms[arg[0] % FUZZ_NR_VMS];

	if (!vm->number)
		fuzz_vm_create(w, vm, arg[1] % 3, !(arg[2] % 4));
}

/* Its files stay, and can still be converted. */
void fuzz_op_vm_close(struct fuzz_world *w, const u32 *arg)
{
	struct fuzz_vm *vm = fuzz_pick_vm(w, arg[0]);
	u8 *plain;

	if (!vm || arg[1] % 4)
		return;

	fuzz_note(w, "VM %ld closed", vm - w->vms);
	kvm_vm_free(vm->vm);
	plain = vm->plain;
	memset(plain, 0, FUZZ_WINDOW * PAGE_SIZE);
	*vm = (struct fuzz_vm) { .plain = plain };
}

/* ---- Slots ---- */

bool fuzz_slot_is_smm(u32 i)
{
	return i >= FUZZ_NR_SLOTS - FUZZ_NR_SMM_SLOTS;
}

int fuzz_set_slot(struct fuzz_world *w, struct fuzz_vm *vm, u32 i,
		  const struct fuzz_slot *slot, u32 flags, bool *fired)
{
	struct kvm_userspace_memory_region2 region = {
		.slot = GMEM_SLOT + i,
		.flags = flags | (slot->userfault ? KVM_MEM_USERFAULT : 0),
		.guest_phys_addr = GMEM_GPA + slot->gfn * PAGE_SIZE,
		.memory_size = slot->nr * PAGE_SIZE,
		.userspace_addr = slot->addr,
		.guest_memfd_offset = slot->pgoff * PAGE_SIZE,
		.guest_memfd = slot->file ? slot->file->fd : 0,
		.userfault_bitmap = (u64)slot->bitmap,
	};
	int r;

	if (fuzz_slot_is_smm(i))
		region.slot |= 1 << 16;

	fuzz_call_begin(w);
	r = __vm_ioctl(vm->vm, KVM_SET_USER_MEMORY_REGION2, &region) ? errno : 0;
	*fired = fuzz_call_end(w);
	return r;
}

static void count_waiting(const struct fuzz_slot *slot, int nr)
{
	u64 i;

	if (!slot->file || !slot->userfault || slot->bitmap)
		return;

	for (i = 0; i < slot->nr; i++)
		slot->file->pages[slot->pgoff + i].nr_waiting += nr;
}

/* Slot @i is what @slot says; if that is none, or if it has a bitmap, nothing is mapped. */
void fuzz_slot_changed(struct fuzz_vm *vm, u32 i, const struct fuzz_slot *slot)
{
	count_waiting(&vm->slots[i], -1);
	vm->slots[i] = *slot;
	count_waiting(slot, 1);
	memset(vm->bit_is_late[i], 0, sizeof(vm->bit_is_late[i]));
}

static bool overlaps(u64 a, u64 nr_a, u64 b, u64 nr_b)
{
	return a < b + nr_b && b < a + nr_a;
}

static bool gfns_taken(struct fuzz_vm *vm, u32 i, const struct fuzz_slot *slot)
{
	const struct fuzz_slot *s;
	u32 j;

	for (j = 0; j < FUZZ_NR_SLOTS; j++) {
		s = &vm->slots[j];
		if (s->used && fuzz_slot_is_smm(i) == fuzz_slot_is_smm(j) &&
		    overlaps(s->gfn, s->nr, slot->gfn, slot->nr))
			return true;
	}
	return false;
}

/* Is the range of the file shown by another slot, which is in the way? */
static bool pages_taken(struct fuzz_vm *vm, u32 i, const struct fuzz_slot *slot)
{
	const struct fuzz_slot *s;
	u32 j;

	for (j = 0; j < FUZZ_NR_SLOTS; j++) {
		s = &vm->slots[j];
		if (!s->used || s->file != slot->file ||
		    !overlaps(s->pgoff, s->nr, slot->pgoff, slot->nr))
			continue;
		if (fuzz_slot_is_smm(i) == fuzz_slot_is_smm(j) ||
		    s->gfn - s->pgoff != slot->gfn - slot->pgoff)
			return true;
	}
	return false;
}

/* Only what concerns missing pages can change, and nothing need. */
static int rebind_outcome(const struct fuzz_slot *old, const struct fuzz_slot *slot)
{
	int want = old->file == slot->file ? 0 : EINVAL;

	if (old->gfn != slot->gfn || old->nr != slot->nr || old->addr != slot->addr ||
	    old->pgoff != slot->pgoff || !old->has_file ||
	    !(old->userfault || slot->userfault))
		want = EINVAL;
	else if (old->userfault == slot->userfault && old->bitmap == slot->bitmap)
		want = 0;
	return want;
}

static int bind_outcome(struct fuzz_vm *vm, u32 i, const struct fuzz_slot *slot)
{
	const struct fuzz_file *f = slot->file;
	int want = 0;

	if (vm->slots[i].used && !(fuzz_slot_is_smm(i) && vm->has_private))
		want = rebind_outcome(&vm->slots[i], slot);
	else if (fuzz_slot_is_smm(i) && vm->has_private)
		want = EINVAL;
	else if (gfns_taken(vm, i, slot))
		want = EEXIST;
	else if (f->vm != vm || f->vm_number != vm->number || slot->pgoff + slot->nr > f->nr)
		want = EINVAL;
	/* In a file of fixed state a page may be shown at any number of gfns. */
	else if (pages_taken(vm, i, slot) && f->kind != FUZZ_FIXED)
		want = EEXIST;
	return want;
}

/* Large pages are mapped whole only if gfn and offset are aligned alike. */
static void pick_range(struct fuzz_slot *slot, const u32 *arg)
{
	u64 align = fuzz_file_is_huge(slot->file) && arg[0] % 4 ? FUZZ_NR_LARGE : 1;

	slot->pgoff = arg[1] % slot->file->nr / align * align;
	slot->nr = arg[2] % 4 ? slot->file->nr - slot->pgoff :
				1 + arg[2] / 4 % (slot->file->nr - slot->pgoff);
	slot->gfn = arg[0] / 4 % (FUZZ_WINDOW - slot->nr) / align * align;

	/* The same gfns again are of use in the second address space. */
	if (!(arg[1] % 3) && slot->pgoff + slot->nr <= FUZZ_WINDOW)
		slot->gfn = slot->pgoff;
}

/* A fourth of the slots is filled on demand; the bitmap is whatever it was. */
static void pick_userfault(struct fuzz_vm *vm, u32 i, struct fuzz_slot *slot, u32 arg)
{
	slot->userfault = vm->userfault && arg % 8 < 2;
	if (slot->userfault && arg % 8)
		slot->bitmap = vm->bitmaps[i][0];
}

static bool is_same_slot(const struct fuzz_slot *a, const struct fuzz_slot *b)
{
	return a->used && a->userfault == b->userfault && a->bitmap == b->bitmap;
}

static bool alias_is_left_out(struct fuzz_world *w, struct fuzz_vm *vm, u32 i,
			      const struct fuzz_slot *slot)
{
	return slot->file->kind == FUZZ_FIXED && pages_taken(vm, i, slot) &&
	       !fuzz_may(w, FUZZ_FAULT_ALIAS);
}

void fuzz_op_bind(struct fuzz_world *w, const u32 *arg)
{
	struct fuzz_file *f = &w->files[arg[0] % FUZZ_NR_FILES];
	struct fuzz_slot slot = { .file = f, .used = true, .has_file = true };
	u32 i = arg[1] % FUZZ_NR_SLOTS;
	struct fuzz_vm *vm = f->vm;
	int want, r;
	bool fired;

	/* Another VM's file is refused. */
	if (!(arg[1] / FUZZ_NR_SLOTS % 16))
		vm = fuzz_pick_vm(w, arg[1]);
	if (f->fd < 0 || !vm || !vm->number)
		return;

	pick_range(&slot, arg + 2);
	slot.two_backings = f->kind == FUZZ_TWO_BACKINGS;
	slot.gmem_only = f->kind == FUZZ_IN_PLACE || f->flags & GUEST_MEMFD_FLAG_MMAP;
	if (alias_is_left_out(w, vm, i, &slot) ||
	    (vm->nested && fuzz_file_is_huge(f) && !fuzz_may(w, FUZZ_FAULT_NESTED_HUGE)))
		return;

	slot.addr = (u64)vm->plain + slot.gfn * PAGE_SIZE;
	if (slot.gmem_only)
		slot.addr = f->map && arg[0] & BIT(20) ? (u64)f->map + slot.pgoff * PAGE_SIZE : 0;
	pick_userfault(vm, i, &slot, arg[0] >> 21);

	want = bind_outcome(vm, i, &slot);
	r = fuzz_set_slot(w, vm, i, &slot, KVM_MEM_GUEST_MEMFD, &fired);
	fuzz_note(w, "bind file %ld pages %lu+%lu to slot %u of VM %ld at page %lu%s%s: %s",
		  f - w->files, slot.pgoff, slot.nr, i, vm - w->vms, slot.gfn,
		  slot.userfault ? ", to be filled" : "", slot.bitmap ? " by bits" : "",
		  strerror(r));
	fuzz_check(w, r == want || (fired && r == ENOMEM),
		   "Binding file %ld: %s, want %s", f - w->files, strerror(r), strerror(want));
	if (!r && !is_same_slot(&vm->slots[i], &slot)) {
		fuzz_slot_changed(vm, i, &slot);
		f->was_bound = true;
	}
}

void fuzz_op_bind_plain(struct fuzz_world *w, const u32 *arg)
{
	struct fuzz_vm *vm = fuzz_pick_vm(w, arg[0]);
	struct fuzz_slot slot = {
		.gfn = arg[2] % (FUZZ_WINDOW - 64),
		.nr = 1 + arg[3] % 64,
		.used = true,
	};
	u32 i = arg[1] % FUZZ_NR_SLOTS;
	bool fired;
	int r, want;

	if (!vm || vm->slots[i].used)
		return;

	want = fuzz_slot_is_smm(i) && vm->has_private ? EINVAL :
	       gfns_taken(vm, i, &slot) ? EEXIST : 0;
	slot.addr = (u64)vm->plain + slot.gfn * PAGE_SIZE;
	r = fuzz_set_slot(w, vm, i, &slot, 0, &fired);
	fuzz_note(w, "plain slot %u of VM %ld, pages %lu+%lu: %s", i, vm - w->vms, slot.gfn,
		  slot.nr, strerror(r));
	fuzz_check(w, r == want || (fired && r == ENOMEM),
		   "Plain slot: %s, want %s", strerror(r), strerror(want));
	if (!r)
		fuzz_slot_changed(vm, i, &slot);
}

/* What no VM accepts. */
void fuzz_op_bind_bad(struct fuzz_world *w, const u32 *arg)
{
	struct fuzz_file *f = &w->files[arg[0] % FUZZ_NR_FILES];
	struct fuzz_vm *vm = fuzz_pick_vm(w, arg[1]);
	struct kvm_userspace_memory_region2 region = {
		.slot = GMEM_SLOT + FUZZ_NR_SLOTS,
		.flags = KVM_MEM_GUEST_MEMFD,
		.guest_phys_addr = GMEM_GPA + FUZZ_WINDOW * PAGE_SIZE,
		.memory_size = PAGE_SIZE,
		.guest_memfd = f->fd,
	};
	int r;

	if (!vm || f->fd < 0)
		return;

	switch (arg[2] % 7) {
	case 0:
		region.flags |= KVM_MEM_READONLY;
		break;
	case 1:
		region.flags |= KVM_MEM_LOG_DIRTY_PAGES;
		break;
	case 2:
		region.guest_memfd_offset = 1 + arg[3] % (PAGE_SIZE - 1);
		break;
	case 3:
		region.guest_memfd_offset = f->nr * PAGE_SIZE;
		break;
	case 4:
		region.guest_memfd_offset = -PAGE_SIZE;
		region.memory_size = 2 * PAGE_SIZE;
		break;
	case 5:
		region.guest_memfd = vm->vm->fd;
		break;
	case 6:
		region.memory_size = (f->nr + 1) * PAGE_SIZE;
		break;
	}
	r = __vm_ioctl(vm->vm, KVM_SET_USER_MEMORY_REGION2, &region) ? errno : 0;
	fuzz_check(w, r == EINVAL, "Bad slot, case %u: %s", arg[2] % 7, strerror(r));
}

void fuzz_op_unbind(struct fuzz_world *w, const u32 *arg)
{
	struct fuzz_vm *vm = fuzz_pick_vm(w, arg[0]);
	u32 i = arg[1] % FUZZ_NR_SLOTS;
	struct fuzz_slot none = {};
	bool fired, was_used;
	int r;

	if (!vm || (fuzz_slot_is_smm(i) && vm->has_private))
		return;

	was_used = vm->slots[i].used;
	r = fuzz_set_slot(w, vm, i, &none, 0, &fired);
	fuzz_note(w, "slot %u of VM %ld deleted: %s", i, vm - w->vms, strerror(r));
	fuzz_check(w, r == (was_used ? 0 : EINVAL) || (fired && r == ENOMEM),
		   "Deleting slot %u: %s", i, strerror(r));
	if (!r)
		fuzz_slot_changed(vm, i, &none);
}

/* ---- Attributes ---- */

static bool range_has_gmem_only(struct fuzz_vm *vm, u64 gfn, u64 nr)
{
	const struct fuzz_slot *s;

	for (s = vm->slots; s < vm->slots + FUZZ_NR_SLOTS; s++)
		if (s->used && s->gmem_only && overlaps(s->gfn, s->nr, gfn, nr))
			return true;
	return false;
}

static int set_attributes(struct fuzz_vm *vm, u64 gpa, u64 size, u64 attributes, u64 flags)
{
	struct kvm_memory_attributes attrs = {
		.address = gpa,
		.size = size,
		.attributes = attributes,
		.flags = flags,
	};

	return __vm_ioctl(vm->vm, KVM_SET_MEMORY_ATTRIBUTES, &attrs) ? errno : 0;
}

void fuzz_op_attributes(struct fuzz_world *w, const u32 *arg)
{
	struct fuzz_vm *vm = fuzz_pick_vm(w, arg[0]);
	u64 gfn = arg[1] % FUZZ_WINDOW, nr = 1 + arg[2] % 64;
	bool private = arg[3] & 1, fired;
	int r, want = 0;
	u64 i;

	if (!vm || !vm->has_private)
		return;

	if (!(arg[2] / 64 % 4))
		nr = FUZZ_WINDOW;
	nr = min(nr, FUZZ_WINDOW - gfn);
	if (range_has_gmem_only(vm, gfn, nr))
		want = EINVAL;

	fuzz_call_begin(w);
	r = set_attributes(vm, GMEM_GPA + gfn * PAGE_SIZE, nr * PAGE_SIZE,
			   private ? GMEM_PRIVATE : 0, 0);
	fired = fuzz_call_end(w);
	fuzz_note(w, "VM %ld, pages %lu+%lu to %s: %s", vm - w->vms, gfn, nr,
		  private ? "private" : "shared", strerror(r));
	fuzz_check(w, r == want || (fired && r == ENOMEM), "Attributes of %lu+%lu: %s, want %s",
		   gfn, nr, strerror(r), strerror(want));
	for (i = gfn; !r && i < gfn + nr; i++)
		vm->attr_private[i] = private;
}

void fuzz_op_attributes_bad(struct fuzz_world *w, const u32 *arg)
{
	struct fuzz_vm *vm = fuzz_pick_vm(w, arg[0]);
	u64 gpa = GMEM_GPA, size = PAGE_SIZE, attributes = GMEM_PRIVATE, flags = 0;
	int r;

	if (!vm)
		return;

	switch (arg[1] % 5) {
	case 0:
		gpa += 1 + arg[2] % (PAGE_SIZE - 1);
		break;
	case 1:
		size -= 1 + arg[2] % (PAGE_SIZE - 1);
		break;
	case 2:
		size = -PAGE_SIZE;
		break;
	case 3:
		attributes |= BIT(arg[2] % 3);
		break;
	case 4:
		flags = 1 + arg[2];
		break;
	}
	r = set_attributes(vm, gpa, size, attributes, flags);
	fuzz_check(w, r == EINVAL, "Bad attributes, case %u: %s", arg[1] % 5, strerror(r));
}

/* ---- What guests do ---- */

/* Most of the time where something is. */
static u64 pick_gfn(struct fuzz_vm *vm, const u32 *arg)
{
	const struct fuzz_slot *s = &vm->slots[arg[1] % FUZZ_NR_SLOTS];
	u32 i;

	for (i = 0; i < FUZZ_NR_SLOTS && !s->used; i++)
		s = &vm->slots[(arg[1] + i) % FUZZ_NR_SLOTS];
	if (!s->used || !(arg[2] % 16))
		return arg[3] % FUZZ_WINDOW;
	return s->gfn + arg[3] % s->nr;
}

static void guest_op(struct fuzz_world *w, const u32 *arg, enum fuzz_guest_op op)
{
	struct fuzz_vm *vm = fuzz_pick_vm(w, arg[0]);
	u64 gfn, end;

	if (!vm)
		return;

	gfn = pick_gfn(vm, arg);
	end = min((u64)FUZZ_WINDOW, gfn + 1 + arg[4] % 3);
	for (; gfn < end; gfn++) {
		fuzz_note(w, "guest of VM %ld, page %lu", vm - w->vms, gfn);
		fuzz_guest_access(w, vm, gfn, op);
	}
}

void fuzz_op_guest_read(struct fuzz_world *w, const u32 *arg)
{
	guest_op(w, arg, FUZZ_GUEST_READ);
}

void fuzz_op_guest_write(struct fuzz_world *w, const u32 *arg)
{
	guest_op(w, arg, FUZZ_GUEST_WRITE);
}

void fuzz_op_guest_exec(struct fuzz_world *w, const u32 *arg)
{
	guest_op(w, arg, FUZZ_GUEST_EXEC);
}

void fuzz_op_kvm_write(struct fuzz_world *w, const u32 *arg)
{
	struct fuzz_vm *vm = fuzz_pick_vm(w, arg[0]);

	if (vm)
		fuzz_kvm_write(w, vm, pick_gfn(vm, arg));
}

/* EFAULT instead of ENOENT where the attribute of a gfn without a slot is private. */
static bool is_no_memory(int r)
{
	return r == ENOENT || r == EFAULT;
}

/* Up to the first page that it fails at; *@unsure: it need not. */
static int pre_fault_outcome(struct fuzz_vm *vm, u64 gfn, u64 nr, bool *unsure)
{
	u64 end = gfn + nr, *val;
	bool may_miss;
	int r = 0;

	*unsure = false;
	for (; gfn < end && !r; gfn++) {
		r = fuzz_guest_outcome(vm, gfn, &val, &may_miss);
		*unsure |= may_miss;
	}
	if (r == FUZZ_MISSING)
		fuzz_count(FUZZ_MISSING_PRE_FAULT);
	return r == FUZZ_MMIO ? ENOENT : r == FUZZ_MISSING ? EFAULT : r;
}

/* What has been had, up to the first page that couldn't, if it did not go to the end. */
static void pre_fault_touch(struct fuzz_world *w, struct fuzz_vm *vm, u64 gfn, u64 nr, int r)
{
	bool may_miss, unsure = false;
	u64 end = gfn + nr, *val;

	for (; gfn < end; gfn++) {
		if (r && fuzz_guest_outcome(vm, gfn, &val, &may_miss))
			return;
		unsure |= r && may_miss;
		if (!unsure)
			fuzz_guest_touch(w, vm, gfn);
		else
			fuzz_guest_doubt(w, vm, gfn);
	}
}

void fuzz_op_pre_fault(struct fuzz_world *w, const u32 *arg)
{
	struct fuzz_vm *vm = fuzz_pick_vm(w, arg[0]);
	u64 gfn, nr, i;
	int r, want;
	bool unsure;

	/* A vCPU in a nested guest has no use for it. */
	if (!vm || vm->nested)
		return;

	gfn = pick_gfn(vm, arg);
	nr = min((u64)FUZZ_WINDOW - gfn, 1 + (u64)arg[4] % 16);
	for (i = 0; i < FUZZ_NR_SLOTS; i++)
		if (vm->slots[i].file)
			fuzz_look(w, vm->slots[i].file);
	want = pre_fault_outcome(vm, gfn, nr, &unsure);
	r = gmem_pre_fault(vm->vcpu, GMEM_GPA + gfn * PAGE_SIZE, nr);
	fuzz_note(w, "pre-fault VM %ld, pages %lu+%lu: %s", vm - w->vms, gfn, nr, strerror(r));
	fuzz_check(w, r == want || (want == ENOENT && is_no_memory(r)) ||
		   (unsure && r == EFAULT),
		   "Pre-fault of %lu+%lu: %s, want %s", gfn, nr, strerror(r), strerror(want));
	pre_fault_touch(w, vm, gfn, nr, r);
}
