// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the fuzzer knows: the state and the bytes of every page, who holds it, and
 * what a guest or a user must find there.
 */
#include "guest_memfd_fuzz.h"

#include "svm_util.h"

#include <stdarg.h>
#include <sys/mman.h>

void __fuzz_fail(struct fuzz_world *w, const char *file, int line, const char *fmt, ...)
{
	const char *name = strrchr(file, '/');
	va_list ap;

	w->report->line = line;
	snprintf(w->report->file, sizeof(w->report->file), "%s", name ? name + 1 : file);
	va_start(ap, fmt);
	vsnprintf(w->report->text, sizeof(w->report->text), fmt, ap);
	va_end(ap);
	_exit(KSFT_FAIL);
}

/* What an operation has come to, for who replays a list. */
void fuzz_note(struct fuzz_world *w, const char *fmt, ...)
{
	va_list ap;

	if (!w->verbose)
		return;

	va_start(ap, fmt);
	printf("#   ");
	vprintf(fmt, ap);
	printf("\n");
	fflush(stdout);
	va_end(ap);
}

bool fuzz_may(struct fuzz_world *w, u32 fault)
{
	return !(fault & ~w->faults);
}

/* Never zero, and code that returns its own number: mov $n, %eax; ret; nop; nop. */
u64 fuzz_new_val(struct fuzz_world *w)
{
	u64 n = ++w->next_val;

	return 0xb8ull | n << 8 | 0xc3ull << 40 | 0x9090ull << 48;
}

/* ---- Files ---- */

/* Whoever has the file descriptor or a mapping keeps a file's memory. */
bool fuzz_file_alive(const struct fuzz_file *f)
{
	return f->fd >= 0 || f->map || f->nr_children;
}

bool fuzz_file_is_huge(const struct fuzz_file *f)
{
	return f->flags & GUEST_MEMFD_FLAG_HUGE;
}

/* Outside the direct map for good: nobody gets a reference to a page. */
bool fuzz_file_is_out(const struct fuzz_file *f)
{
	return f->flags & GUEST_MEMFD_FLAG_NO_DIRECT_MAP && f->kind != FUZZ_IN_PLACE;
}

struct fuzz_hold *fuzz_find_hold(struct fuzz_world *w, struct fuzz_file *f,
				 u64 first, u64 nr)
{
	struct fuzz_hold *h, *found = NULL;

	for (h = w->holds; h < w->holds + FUZZ_NR_HOLDS; h++) {
		if (!h->kind || h->orphan || h->file != f || h->page < first ||
		    h->page >= first + nr)
			continue;
		if (!found || h->page < found->page)
			found = h;
	}
	return found;
}

/* The same for whatever may be part of one large page with the range. */
struct fuzz_hold *fuzz_hold_near(struct fuzz_world *w, struct fuzz_file *f,
				 u64 first, u64 nr)
{
	u64 end = first + nr;

	if (fuzz_file_is_huge(f)) {
		first = first / FUZZ_NR_LARGE * FUZZ_NR_LARGE;
		end = (end + FUZZ_NR_LARGE - 1) / FUZZ_NR_LARGE * FUZZ_NR_LARGE;
	}
	return fuzz_find_hold(w, f, first, end - first);
}

bool fuzz_poison_near(struct fuzz_file *f, u64 page)
{
	u64 first = page, nr = 1, i;

	if (fuzz_file_is_huge(f)) {
		first = page / FUZZ_NR_LARGE * FUZZ_NR_LARGE;
		nr = FUZZ_NR_LARGE;
	}
	for (i = first; i < first + nr && i < f->nr; i++)
		if (f->pages[i].poisoned)
			return true;
	return false;
}

/* Pages leave their file: the next touch finds zeros, holders keep what they have. */
void fuzz_file_drop(struct fuzz_world *w, struct fuzz_file *f, u64 first, u64 nr)
{
	struct fuzz_hold *h;
	u64 page;

	while ((h = fuzz_find_hold(w, f, first, nr))) {
		h->orphan = true;
		h->val = f->pages[h->page].val;
		h->poisoned |= f->pages[h->page].poisoned;
	}
	for (page = first; page < first + nr; page++) {
		f->pages[page].val = 0;
		f->pages[page].poisoned = false;
		f->pages[page].present = false;
		f->pages[page].unsure = false;
	}
}

/* One way to get at @f is gone; after the last its slots show nothing. */
void fuzz_file_put(struct fuzz_world *w, struct fuzz_file *f)
{
	u32 i, j;

	if (fuzz_file_alive(f))
		return;

	fuzz_file_drop(w, f, 0, f->nr);
	for (i = 0; i < FUZZ_NR_VMS; i++)
		for (j = 0; j < FUZZ_NR_SLOTS; j++)
			if (w->vms[i].slots[j].file == f)
				w->vms[i].slots[j].file = NULL;
}

/* ---- What is present ---- */

static void page_is(struct fuzz_world *w, struct fuzz_file *f, u64 page, bool present)
{
	struct fuzz_page *p = &f->pages[page];

	fuzz_check(w, p->unsure || p->present == present, "File %ld page %lu: present %d, want %d",
		   f - w->files, page, present, p->present);
	p->present = present;
	p->unsure = false;
}

/* By the file descriptor, as long as there is one: is present what should be? */
void fuzz_look(struct fuzz_world *w, struct fuzz_file *f)
{
	u64 end = f->nr * PAGE_SIZE, page = 0;
	off_t data, hole = 0;

	while (f->fd >= 0 && page < f->nr) {
		data = lseek(f->fd, hole, SEEK_DATA);
		fuzz_check(w, data >= 0 || errno == ENXIO, "SEEK_DATA: %s", strerror(errno));
		data = data < 0 ? end : data;
		hole = data == end ? end : lseek(f->fd, data, SEEK_HOLE);
		fuzz_check(w, hole > data || data == end, "SEEK_HOLE: %ld after %ld", hole, data);
		while (page < data / PAGE_SIZE)
			page_is(w, f, page++, false);
		while (page < hole / PAGE_SIZE)
			page_is(w, f, page++, true);
	}
}

void fuzz_make_sure(struct fuzz_world *w, struct fuzz_file *f, u64 page)
{
	if (f->pages[page].unsure)
		fuzz_look(w, f);
}

/* Whether these have come or gone is not known; what is bad stays. */
void fuzz_doubt(struct fuzz_file *f, u64 first, u64 nr)
{
	u64 end = first + nr;

	if (fuzz_file_is_huge(f)) {
		first = first / FUZZ_NR_LARGE * FUZZ_NR_LARGE;
		end = min(f->nr, (end + FUZZ_NR_LARGE - 1) / FUZZ_NR_LARGE * FUZZ_NR_LARGE);
	}
	for (; first < end; first++)
		f->pages[first].unsure = !f->pages[first].poisoned;
}

/* Somebody has had the page, which may have brought a large one. */
void fuzz_touch(struct fuzz_file *f, u64 page)
{
	if (f->pages[page].present && !f->pages[page].unsure)
		return;

	if (fuzz_file_is_huge(f))
		fuzz_doubt(f, page, 1);
	f->pages[page].present = true;
	f->pages[page].unsure = false;
}

/* ---- Users ---- */

/* Is the page for the VMM to fill, and for nobody else? */
static bool is_missing_for_users(const struct fuzz_page *p)
{
	return p->nr_waiting && !p->present;
}

bool fuzz_user_may(const struct fuzz_file *f, u64 page)
{
	const struct fuzz_page *p = &f->pages[page];

	return !p->private && !p->poisoned && !is_missing_for_users(p);
}

/* Nobody has the file descriptor to look. */
bool fuzz_user_unsure(const struct fuzz_file *f, u64 page)
{
	const struct fuzz_page *p = &f->pages[page];

	return !p->private && p->nr_waiting && p->unsure;
}

/* A private page that is poisoned too is refused for either reason. */
void fuzz_check_code(struct fuzz_world *w, struct fuzz_file *f, u64 page, int code,
		     const char *who)
{
	const struct fuzz_page *p = &f->pages[page];
	bool good;

	if (p->private)
		good = code == BUS_ADRERR || (p->poisoned && code == BUS_MCEERR_AR);
	else if (fuzz_user_unsure(f, page))
		good = !code || code == BUS_ADRERR;
	else if (is_missing_for_users(p))
		good = code == BUS_ADRERR;
	else
		good = code == (p->poisoned ? BUS_MCEERR_AR : 0);

	fuzz_check(w, good, "%s, file %ld page %lu, %s%s%s: si_code %d", who,
		   f - w->files, page, p->private ? "private" : "shared",
		   p->poisoned ? " and poisoned" : "", p->present ? "" : " and absent", code);
	if (!code)
		fuzz_touch(f, page);
	else if (!p->private && !p->poisoned)
		fuzz_count(FUZZ_MISSING_USER);
}

void fuzz_user_read(struct fuzz_world *w, struct fuzz_file *f, u64 page)
{
	u64 *p = (u64 *)(f->map + page * PAGE_SIZE), want = f->pages[page].val, seen = 0;
	int code, word = -1;

	fuzz_make_sure(w, f, page);
	code = gmem_try(word = gmem_check_words(p, want, &seen));
	fuzz_check_code(w, f, page, code, "User reads");
	fuzz_check(w, code || word < 0,
		   "User reads, file %ld page %lu word %d: 0x%lx, want 0x%lx",
		   f - w->files, page, word, seen, want);
}

void fuzz_user_write(struct fuzz_world *w, struct fuzz_file *f, u64 page)
{
	u64 *p = (u64 *)(f->map + page * PAGE_SIZE), val = fuzz_new_val(w);
	int code;

	fuzz_make_sure(w, f, page);
	code = gmem_try(gmem_fill_words(p, val));
	fuzz_check_code(w, f, page, code, "User writes");
	if (!code)
		f->pages[page].val = val;
}

/* ---- Guests ---- */

static struct fuzz_cmd {
	u64 op;
	u64 gva;
	u64 val;
	/* Out: a word that was found, or what the code returned. */
	u64 seen;
} fuzz_cmd;

/* KVM emulates each of the copies as a whole: it is KVM that writes the page. */
static void copy_from_mmio(u64 to)
{
	u64 end = to + PAGE_SIZE, from;

	while (to < end) {
		from = FUZZ_MMIO_GPA;
		asm volatile("movsq" : "+S"(from), "+D"(to) : : "memory");
	}
}

static void guest_serve(struct fuzz_cmd *cmd)
{
	u64 (*code)(void) = (void *)cmd->gva;
	u64 seen;

	switch (cmd->op) {
	case FUZZ_GUEST_READ:
		seen = cmd->val;
		gmem_check_words((u64 *)cmd->gva, cmd->val, &seen);
		cmd->seen = seen;
		break;
	case FUZZ_GUEST_WRITE:
		gmem_fill_words((u64 *)cmd->gva, cmd->val);
		break;
	case FUZZ_GUEST_EXEC:
		cmd->seen = code();
		break;
	case FUZZ_GUEST_FROM_MMIO:
		copy_from_mmio(cmd->gva);
		break;
	}
}

static void guest_loop(void)
{
	for (;;) {
		guest_serve(&fuzz_cmd);
		GUEST_SYNC(1);
	}
}

static void guest_server(void)
{
	GUEST_SYNC(0);
	guest_loop();
}

/* With @svm the server is a guest of this guest; its exits pass this one by. */
void fuzz_guest_code(u64 svm)
{
	struct svm_test_data *data = (void *)svm;

	if (!data)
		guest_server();

	generic_svm_setup(data, guest_server);
	run_guest(data->vmcb, data->vmcb_gpa);
	GUEST_FAIL("Nested guest, exit 0x%lx", data->vmcb->control.exit_code);
}

static int run_vcpu(struct kvm_vcpu *vcpu)
{
	int r;

	do {
		r = __vcpu_run(vcpu);
	} while (r && errno == EINTR);

	return r ? errno : 0;
}

void fuzz_guest_start(struct fuzz_world *w, struct fuzz_vm *vm)
{
	int r = run_vcpu(vm->vcpu);

	fuzz_check(w, !r && get_ucall(vm->vcpu, NULL) == UCALL_SYNC,
		   "The guest does not start: %s, exit %s", strerror(r),
		   exit_reason_str(vm->vcpu->run->exit_reason));
	vcpu_run_complete_io(vm->vcpu);
	vcpu_regs_get(vm->vcpu, &vm->regs);
	vm->regs.rip = (u64)guest_loop;
	/* As if it had been called, below what is in use. */
	vm->regs.rsp = vm->regs.rsp / 256 * 256 - sizeof(u64);
}

static struct fuzz_slot *find_slot(struct fuzz_vm *vm, u64 gfn)
{
	struct fuzz_slot *s;

	for (s = vm->slots; s < vm->slots + FUZZ_NR_SLOTS - FUZZ_NR_SMM_SLOTS; s++)
		if (s->used && gfn >= s->gfn && gfn < s->gfn + s->nr)
			return s;
	return NULL;
}

/* Is the page of @slot missing, by its bit or, in @f, by being absent? */
static bool is_missing(struct fuzz_vm *vm, struct fuzz_slot *slot, u64 gfn,
		       struct fuzz_file *f, bool *may_miss)
{
	u64 i = gfn - slot->gfn;
	struct fuzz_page *p;

	if (!slot->userfault)
		return false;

	if (slot->bitmap) {
		*may_miss = test_bit(i, slot->bitmap) && vm->bit_is_late[slot - vm->slots][i];
		return test_bit(i, slot->bitmap) && !*may_miss;
	}
	if (!f)
		return false;

	p = &f->pages[slot->pgoff + i];
	*may_miss = p->unsure;
	return !p->present && !p->unsure;
}

static int file_outcome(struct fuzz_vm *vm, struct fuzz_slot *slot, u64 gfn, u64 **val,
			bool *may_miss)
{
	struct fuzz_page *p;
	int r = EFAULT;

	if (slot->file) {
		p = &slot->file->pages[slot->pgoff + gfn - slot->gfn];
		*val = &p->val;
		r = p->poisoned ? EHWPOISON : 0;
		if (is_missing(vm, slot, gfn, slot->file, may_miss))
			r = FUZZ_MISSING;
	}
	return r;
}

/* Has the guest the page of the file, not what is at the slot's user address? */
static bool guest_has_file(struct fuzz_vm *vm, struct fuzz_slot *slot, u64 gfn)
{
	return slot->gmem_only ||
	       (slot->two_backings && vm->has_private && vm->attr_private[gfn]);
}

/*
 * What a guest's access to page @gfn of the window comes to, and where its bytes are.
 * With *@may_miss it may as well find the page missing.
 */
int fuzz_guest_outcome(struct fuzz_vm *vm, u64 gfn, u64 **val, bool *may_miss)
{
	struct fuzz_slot *slot = find_slot(vm, gfn);
	int r = 0;

	*val = &vm->plain_val[gfn];
	*may_miss = false;
	if (!slot)
		return FUZZ_MMIO;
	if (guest_has_file(vm, slot, gfn))
		return file_outcome(vm, slot, gfn, val, may_miss);
	if (vm->has_private && vm->attr_private[gfn])
		r = EFAULT;
	else if (is_missing(vm, slot, gfn, NULL, may_miss))
		r = FUZZ_MISSING;
	return r;
}

/* The guest, or KVM, has had the page. */
void fuzz_guest_touch(struct fuzz_world *w, struct fuzz_vm *vm, u64 gfn)
{
	struct fuzz_slot *slot = find_slot(vm, gfn);

	if (slot && slot->file && guest_has_file(vm, slot, gfn))
		fuzz_touch(slot->file, slot->pgoff + gfn - slot->gfn);
}

/* The same, if it isn't known. */
void fuzz_guest_doubt(struct fuzz_world *w, struct fuzz_vm *vm, u64 gfn)
{
	struct fuzz_slot *slot = find_slot(vm, gfn);

	if (slot && slot->file && guest_has_file(vm, slot, gfn))
		fuzz_doubt(slot->file, slot->pgoff + gfn - slot->gfn, 1);
}

static void guest_look(struct fuzz_world *w, struct fuzz_vm *vm, u64 gfn)
{
	struct fuzz_slot *slot = find_slot(vm, gfn);

	if (slot && slot->file && slot->userfault)
		fuzz_look(w, slot->file);
}

/* Leave what the guest cannot finish, and have it serve again. */
static void restart_server(struct fuzz_vm *vm)
{
	if (vm->vcpu->run->exit_reason == KVM_EXIT_MMIO)
		vcpu_run_complete_io(vm->vcpu);
	vcpu_regs_set(vm->vcpu, &vm->regs);
}

/*
 * Have the guest of @vm do @op at page @gfn of the window.  Returns 0 and what it has
 * seen, FUZZ_MMIO, or the error number with which it did not.
 */
int fuzz_guest_run(struct fuzz_vm *vm, u64 gfn, enum fuzz_guest_op op, u64 val, u64 *seen)
{
	struct fuzz_cmd *cmd = gmem_guest_var(vm->vm, fuzz_cmd);
	int r;

	*cmd = (struct fuzz_cmd) {
		.op = op,
		.gva = GMEM_GPA + gfn * PAGE_SIZE,
		.val = val,
	};
	r = run_vcpu(vm->vcpu);
	if (!r && vm->vcpu->run->exit_reason == KVM_EXIT_MMIO)
		r = FUZZ_MMIO;
	/* Nobody can say why, but where the guest was tells something. */
	if (!r && vm->vcpu->run->exit_reason == KVM_EXIT_SHUTDOWN)
		vcpu_dump(stderr, vm->vcpu, 2);
	if (r)
		restart_server(vm);
	else
		TEST_ASSERT(get_ucall(vm->vcpu, NULL) == UCALL_SYNC, "Guest, page %lu: %s", gfn,
			    exit_reason_str(vm->vcpu->run->exit_reason));
	*seen = cmd->seen;
	return r;
}

static bool is_missing_exit(struct fuzz_vm *vm)
{
	struct kvm_run *run = vm->vcpu->run;

	return run->exit_reason == KVM_EXIT_MEMORY_FAULT &&
	       run->memory_fault.flags & KVM_MEMORY_EXIT_FLAG_USERFAULT;
}

static bool guest_sees_private(struct fuzz_vm *vm, struct fuzz_slot *slot, u64 gfn)
{
	if (!vm->has_private)
		return false;
	if (slot->gmem_only)
		return slot->file->pages[slot->pgoff + gfn - slot->gfn].private;
	return vm->attr_private[gfn];
}

/*
 * The pages that the VMM had best fill at once as @gfn is missing: the large page around
 * it, if the slot shows it whole, none of it is there, and all is on one side.
 */
static u64 missing_pages(struct fuzz_vm *vm, struct fuzz_slot *slot, u64 gfn, bool *unsure)
{
	u64 first = gfn / FUZZ_NR_LARGE * FUZZ_NR_LARGE, i;
	u64 index = slot->pgoff + gfn - slot->gfn;
	struct fuzz_page *p;

	*unsure = false;
	if (!guest_has_file(vm, slot, gfn) || !fuzz_file_is_huge(slot->file) ||
	    (gfn ^ index) % FUZZ_NR_LARGE || first < slot->gfn ||
	    first + FUZZ_NR_LARGE > slot->gfn + slot->nr)
		return 1;

	for (i = first; i < first + FUZZ_NR_LARGE; i++) {
		p = &slot->file->pages[slot->pgoff + i - slot->gfn];
		*unsure |= p->unsure;
		if ((p->present && !p->unsure) ||
		    guest_sees_private(vm, slot, i) != guest_sees_private(vm, slot, gfn) ||
		    (slot->bitmap && !test_bit(i - slot->gfn, slot->bitmap))) {
			*unsure = false;
			return 1;
		}
	}
	return FUZZ_NR_LARGE;
}

static void count_missing(struct fuzz_vm *vm, struct fuzz_slot *slot, u64 gfn, u64 nr)
{
	fuzz_count(slot->bitmap ? FUZZ_MISSING_BIT : FUZZ_MISSING_ABSENT);
	if (nr > 1)
		fuzz_count(FUZZ_MISSING_BLOCK);
	if (guest_sees_private(vm, slot, gfn))
		fuzz_count(FUZZ_MISSING_PRIVATE);
	if (vm->nested)
		fuzz_count(FUZZ_MISSING_NESTED);
	if (!guest_has_file(vm, slot, gfn))
		fuzz_count(FUZZ_MISSING_PLAIN);
}

static void check_missing(struct fuzz_world *w, struct fuzz_vm *vm, u64 gfn,
			  enum fuzz_guest_op op)
{
	struct fuzz_slot *slot = find_slot(vm, gfn);
	struct kvm_run *run = vm->vcpu->run;
	bool private, unsure;
	u64 nr, want;

	private = guest_sees_private(vm, slot, gfn);
	nr = missing_pages(vm, slot, gfn, &unsure);
	if (unsure && run->memory_fault.size == PAGE_SIZE)
		nr = 1;
	want = GMEM_GPA + gfn / nr * nr * PAGE_SIZE;
	fuzz_check(w, run->memory_fault.gpa == want && run->memory_fault.size == nr * PAGE_SIZE &&
		   run->memory_fault.flags == (KVM_MEMORY_EXIT_FLAG_USERFAULT |
					       (private ? KVM_MEMORY_EXIT_FLAG_PRIVATE : 0)),
		   "Missing, VM %ld page %lu, private %d: 0x%llx+0x%llx, flags 0x%llx, want %lu",
		   vm - w->vms, gfn, private, run->memory_fault.gpa, run->memory_fault.size,
		   run->memory_fault.flags, nr);
	count_missing(vm, slot, gfn, nr);

	/* What is missing isn't mapped; what a nested guest has read may be, for reads. */
	if (op != FUZZ_GUEST_WRITE)
		vm->bit_is_late[slot - vm->slots][gfn - slot->gfn] = false;
}

static void check_fault(struct fuzz_world *w, struct fuzz_vm *vm, u64 gfn)
{
	struct kvm_run *run = vm->vcpu->run;

	fuzz_check(w, run->exit_reason == KVM_EXIT_MEMORY_FAULT &&
		   run->memory_fault.gpa == GMEM_GPA + gfn * PAGE_SIZE &&
		   run->memory_fault.size == PAGE_SIZE,
		   "Guest, VM %ld page %lu: exit %s at 0x%llx, size 0x%llx", vm - w->vms, gfn,
		   exit_reason_str(run->exit_reason), run->memory_fault.gpa,
		   run->memory_fault.size);
}

void fuzz_guest_access(struct fuzz_world *w, struct fuzz_vm *vm, u64 gfn,
		       enum fuzz_guest_op op)
{
	u64 *val, new, seen;
	bool may_miss;
	int want, r;

	guest_look(w, vm, gfn);
	want = fuzz_guest_outcome(vm, gfn, &val, &may_miss);
	/* Zeros are no code, and nobody fetches from a device. */
	if (op == FUZZ_GUEST_EXEC && (want == FUZZ_MMIO || !*val))
		op = FUZZ_GUEST_READ;

	new = op == FUZZ_GUEST_WRITE ? fuzz_new_val(w) : *val;
	r = fuzz_guest_run(vm, gfn, op, new, &seen);
	/*
	 * Where no slot is, KVM looks at the attribute only if it has not found out
	 * before, with another one, that there is no memory.
	 */
	if (want == FUZZ_MMIO && vm->has_private && vm->attr_private[gfn] && r == EFAULT)
		want = EFAULT;
	if (r == EFAULT && is_missing_exit(vm)) {
		r = FUZZ_MISSING;
		want = may_miss ? r : want;
	}
	fuzz_check(w, r == want, "Guest, VM %ld page %lu, operation %d: outcome %d, want %d",
		   vm - w->vms, gfn, op, r, want);
	if (r > 0)
		check_fault(w, vm, gfn);
	if (r == FUZZ_MISSING)
		check_missing(w, vm, gfn, op);
	if (r)
		return;

	fuzz_guest_touch(w, vm, gfn);
	if (op == FUZZ_GUEST_WRITE)
		*val = new;
	if (op == FUZZ_GUEST_EXEC)
		new = new >> 8 & GENMASK_ULL(31, 0);
	fuzz_check(w, op == FUZZ_GUEST_WRITE || seen == new,
		   "Guest, VM %ld page %lu, operation %d: 0x%lx, want 0x%lx", vm - w->vms, gfn,
		   op, seen, new);
}

/* ---- What KVM does for a guest ---- */

/*
 * What KVM's own write comes to: it takes what is in a file, of either state, and what
 * the VMM has at the slot's user address.  What is mapped in the guest is of no use.
 */
static int kvm_outcome(struct fuzz_vm *vm, u64 gfn, u64 **val, bool *may_miss)
{
	struct fuzz_slot *slot = find_slot(vm, gfn);
	int r = fuzz_guest_outcome(vm, gfn, val, may_miss);

	if (!slot || !slot->gmem_only) {
		*may_miss = false;
		return slot ? 0 : FUZZ_MMIO;
	}
	if (slot->file && slot->userfault && slot->bitmap) {
		*may_miss = false;
		if (test_bit(gfn - slot->gfn, slot->bitmap))
			r = FUZZ_MISSING;
	}
	return r;
}

/* Returns 0, FUZZ_MMIO if KVM has found no memory at @gfn, or an error number. */
static int run_from_mmio(struct fuzz_vm *vm, u64 gfn, u64 val)
{
	struct kvm_run *run = vm->vcpu->run;
	int r;

	*gmem_guest_var(vm->vm, fuzz_cmd) = (struct fuzz_cmd) {
		.op = FUZZ_GUEST_FROM_MMIO,
		.gva = GMEM_GPA + gfn * PAGE_SIZE,
	};
	while (!(r = run_vcpu(vm->vcpu)) && run->exit_reason == KVM_EXIT_MMIO) {
		if (run->mmio.is_write || run->mmio.phys_addr != FUZZ_MMIO_GPA) {
			r = FUZZ_MMIO;
			break;
		}
		memcpy(run->mmio.data, &val, sizeof(val));
	}
	if (r)
		restart_server(vm);
	return r;
}

/* KVM writes the page on behalf of the guest, which has read it from a device. */
void fuzz_kvm_write(struct fuzz_world *w, struct fuzz_vm *vm, u64 gfn)
{
	struct fuzz_slot *slot = find_slot(vm, gfn);
	u64 *val, new = fuzz_new_val(w);
	bool may_miss;
	int want, r;

	/* Private there, and not in a file: what KVM reaches isn't the guest's. */
	if (slot && !slot->gmem_only && vm->has_private && vm->attr_private[gfn])
		return;

	guest_look(w, vm, gfn);
	want = kvm_outcome(vm, gfn, &val, &may_miss);
	r = run_from_mmio(vm, gfn, new);
	fuzz_note(w, "KVM writes page %lu of VM %ld: %d", gfn, vm - w->vms, r);
	fuzz_check(w, r == (want ? FUZZ_MMIO : 0) || may_miss,
		   "KVM writes, VM %ld page %lu: outcome %d, want %d", vm - w->vms, gfn, r, want);
	if (want == FUZZ_MISSING && r)
		fuzz_count(FUZZ_MISSING_KVM);
	if (r)
		return;

	fuzz_count(FUZZ_WRITTEN_BY_KVM);
	fuzz_guest_touch(w, vm, gfn);
	*val = new;
}

/* ---- All of it ---- */

void fuzz_world_init(struct fuzz_world *w, struct fuzz_report *report, u32 faults,
		     bool verbose)
{
	struct fuzz_file *f;
	char path[64];
	u32 i;

	w->report = report;
	w->faults = faults;
	w->verbose = verbose;
	for (f = w->files; f < w->files + FUZZ_NR_FILES; f++)
		f->fd = -1;
	for (i = 0; i < FUZZ_NR_VMS; i++)
		w->vms[i].plain = kvm_mmap(FUZZ_WINDOW * PAGE_SIZE, PROT_READ | PROT_WRITE,
					   MAP_SHARED | MAP_ANONYMOUS, -1);

	w->source = kvm_mmap(FUZZ_MAX_PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1);

	snprintf(path, sizeof(path), "/proc/self/task/%u/fail-nth", kvm_gettid());
	w->nth_fd = open(path, O_RDWR);
}

static void check_users(struct fuzz_world *w, struct fuzz_file *f)
{
	u64 page;

	for (page = 0; f->map && page < f->nr; page++)
		fuzz_user_read(w, f, page);
}

/* Each page costs an exit; of a large page some will do. */
static bool is_sample(struct fuzz_vm *vm, u64 gfn)
{
	struct fuzz_slot *slot = find_slot(vm, gfn);

	return !fuzz_file_is_huge(slot->file) || !(gfn % 31) ||
	       (gfn + 2) % FUZZ_NR_LARGE < 4;
}

/* Not what no file is behind, which is most of the window. */
static void check_guest(struct fuzz_world *w, struct fuzz_vm *vm)
{
	u64 gfn, *val;
	bool may_miss;
	int outcome;

	for (gfn = 0; vm->number && gfn < FUZZ_WINDOW; gfn++) {
		outcome = fuzz_guest_outcome(vm, gfn, &val, &may_miss);
		if ((!outcome || outcome == FUZZ_MISSING) &&
		    val != &vm->plain_val[gfn] && is_sample(vm, gfn))
			fuzz_guest_access(w, vm, gfn, FUZZ_GUEST_READ);
	}
}

void fuzz_world_check(struct fuzz_world *w)
{
	u32 i;

	for (i = 0; i < FUZZ_NR_FILES; i++) {
		if (!fuzz_file_alive(&w->files[i]))
			continue;
		fuzz_look(w, &w->files[i]);
		check_users(w, &w->files[i]);
	}
	for (i = 0; i < FUZZ_NR_VMS; i++)
		check_guest(w, &w->vms[i]);
}

/* Let go of all that is in the way, and look at what was private. */
void fuzz_world_end(struct fuzz_world *w)
{
	struct fuzz_file *f;
	u64 page;

	fuzz_world_check(w);
	for (f = w->files; f < w->files + FUZZ_NR_FILES; f++) {
		if (f->fd < 0 || f->kind != FUZZ_IN_PLACE || !f->map)
			continue;
		fuzz_check(w, !gmem_convert_retry(f->fd, 0, f->nr * PAGE_SIZE, GMEM_SHARED,
						  GMEM_PRESERVE),
			   "At the end, file %ld: %s", f - w->files, strerror(errno));
		for (page = 0; page < f->nr; page++)
			f->pages[page].private = false;
		check_users(w, f);
	}
}

/* ---- Allocations that fail ---- */

void fuzz_call_begin(struct fuzz_world *w)
{
	char text[16];

	if (!w->nth || w->nth_fd < 0)
		return;

	snprintf(text, sizeof(text), "%d", w->nth);
	if (pwrite(w->nth_fd, text, strlen(text), 0) < 0)
		w->nth = 0;
}

/* Has one failed? */
bool fuzz_call_end(struct fuzz_world *w)
{
	char text[16] = {};
	bool fired;

	if (!w->nth || w->nth_fd < 0)
		return false;

	w->nth = 0;
	fired = pread(w->nth_fd, text, sizeof(text) - 1, 0) > 0 && !atoi(text);
	if (pwrite(w->nth_fd, "0", 1, 0) != 1)
		TEST_ASSERT_EQ(pwrite(w->nth_fd, "0", 1, 0), 1);
	return fired;
}
