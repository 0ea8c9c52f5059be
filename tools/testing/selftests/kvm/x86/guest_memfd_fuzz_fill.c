// SPDX-License-Identifier: GPL-2.0-only
/*
 * The fuzzer's operations that fill files: write(), from memory of the VMM's own and from
 * files; and slots whose pages are missing until the VMM has filled them.
 */
#include "guest_memfd_fuzz.h"

#include <sys/mman.h>

/* ---- write() ---- */

/* Short counts that nothing explains but a signal, e.g. for work of a ring that is gone. */
#define MAX_SIGNALS		3

enum fill_way {
	FILL_PWRITE,
	FILL_WRITE,
	FILL_PWRITEV,
	FILL_SPLICE,
	FILL_NR_WAYS,
};

struct fill {
	struct fuzz_file *f;
	u64 first, nr;
	/* What to fill with: a mapped file, or the source, of which one page can't be read. */
	struct fuzz_file *from;
	u64 from_first;
	u64 bad;
	const u8 *source;
	u64 *vals;
	enum fill_way way;
	int pipes[2];
};

/* Pieces that are no pages. */
static ssize_t write_pieces(int fd, const u8 *source, size_t len, off_t offset)
{
	struct iovec iov[] = {
		{ (void *)source, 100 },
		{ (void *)source + 100, PAGE_SIZE - 200 },
		{ (void *)source + PAGE_SIZE - 100, len - (PAGE_SIZE - 100) },
	};

	return pwritev(fd, iov, ARRAY_SIZE(iov), offset);
}

/* One page in a pipe, ready for splice(). */
static void fill_pipe(struct fill *fill, u64 done)
{
	const u8 *source = fill->source + done * PAGE_SIZE;

	if (fill->way != FILL_SPLICE)
		return;

	TEST_ASSERT(!pipe2(fill->pipes, O_CLOEXEC), "pipe2() failed");
	TEST_ASSERT_EQ(write(fill->pipes[1], source, PAGE_SIZE), PAGE_SIZE);
}

static void close_pipe(struct fill *fill)
{
	if (fill->way != FILL_SPLICE)
		return;

	close(fill->pipes[0]);
	close(fill->pipes[1]);
}

static ssize_t write_rest(struct fill *fill, u64 done)
{
	const u8 *source = fill->source + done * PAGE_SIZE;
	loff_t offset = (fill->first + done) * PAGE_SIZE;
	size_t len = (fill->nr - done) * PAGE_SIZE;
	ssize_t r;

	switch (fill->way) {
	case FILL_WRITE:
		TEST_ASSERT_EQ(lseek(fill->f->fd, offset, SEEK_SET), offset);
		r = write(fill->f->fd, source, len);
		TEST_ASSERT_EQ(lseek(fill->f->fd, 0, SEEK_CUR), offset + max(r, 0l));
		return r;
	case FILL_PWRITEV:
		return write_pieces(fill->f->fd, source, len, offset);
	case FILL_SPLICE:
		return splice(fill->pipes[0], NULL, fill->f->fd, &offset, PAGE_SIZE, 0);
	default:
		return pwrite(fill->f->fd, source, len, offset);
	}
}

static bool is_unreadable(struct fill *fill, u64 i)
{
	return fill->from ? !fuzz_user_may(fill->from, fill->from_first + i) : i == fill->bad;
}

/* To read the page that is to be filled makes it present. */
static bool is_full(struct fill *fill, u64 i)
{
	return fill->f->pages[fill->first + i].present ||
	       (fill->f == fill->from && fill->first == fill->from_first);
}

/* To read another page may do the same, by a large one. */
static bool is_unsure(struct fill *fill, u64 i)
{
	return (fill->f == fill->from && fuzz_file_is_huge(fill->f)) ||
	       fill->f->pages[fill->first + i].unsure ||
	       (fill->from && fuzz_user_unsure(fill->from, fill->from_first + i));
}

/* Can page @i not be filled, for a reason that the list of operations tells? */
static bool has_reason(struct fill *fill, u64 i)
{
	return is_unreadable(fill, i) || is_full(fill, i);
}

static bool is_reason(struct fill *fill, u64 i, int error)
{
	return (error == EFAULT && is_unreadable(fill, i)) ||
	       (error == EEXIST && is_full(fill, i)) ||
	       ((error == EFAULT || error == EEXIST) && is_unsure(fill, i));
}

static void count_filled(struct fill *fill, u64 done, u64 nr)
{
	struct fuzz_file *f = fill->f;
	u64 i;

	fuzz_count(FUZZ_FILLED);
	if (fill->from)
		fuzz_count(FUZZ_FILLED_FROM_FILE);
	if (f->flags & GUEST_MEMFD_FLAG_NO_DIRECT_MAP)
		fuzz_count(FUZZ_FILLED_HIDDEN);
	if (fuzz_file_is_huge(f) && nr >= FUZZ_NR_LARGE)
		fuzz_count(FUZZ_FILLED_LARGE);
	for (i = done; i < done + nr && !f->pages[fill->first + i].private; i++)
		;
	if (i < done + nr && f->kind != FUZZ_FIXED)
		fuzz_count(FUZZ_FILLED_PRIVATE);
}

/* @nr more are in the file, each of which was a hole, and could be filled. */
static void model_filled(struct fuzz_world *w, struct fill *fill, u64 done, u64 nr)
{
	struct fuzz_page *p;
	u64 i;

	count_filled(fill, done, nr);
	for (i = done; i < done + nr; i++) {
		p = &fill->f->pages[fill->first + i];
		fuzz_check(w, is_unsure(fill, i) || !has_reason(fill, i),
			   "Filled file %ld page %lu, present %d, source unreadable %d",
			   fill->f - w->files, fill->first + i, p->present,
			   is_unreadable(fill, i));
		if (fill->from)
			fuzz_touch(fill->from, fill->from_first + i);
		p->val = fill->from ? fill->from->pages[fill->from_first + i].val : fill->vals[i];
		p->present = true;
		p->unsure = false;
	}
}

/* The page at which it ended may have been read. */
static void model_ended(struct fuzz_world *w, struct fill *fill, u64 done, int error,
			bool fired)
{
	fuzz_check(w, is_reason(fill, done, error) ||
		   (fired && (error == ENOMEM || error == EFAULT)),
		   "Filling file %ld page %lu, present %d, source unreadable %d: %s",
		   fill->f - w->files, fill->first + done, is_full(fill, done),
		   is_unreadable(fill, done), strerror(error));
	if (fill->from)
		fuzz_doubt(fill->from, fill->from_first + done, 1);
	fuzz_count(error == EEXIST ? FUZZ_FILL_EEXIST :
		   error == EFAULT ? FUZZ_FILL_EFAULT : FUZZ_FILL_ENOMEM);
}

static void do_fill(struct fuzz_world *w, struct fill *fill)
{
	u64 done = 0, nr_signals = 0;
	bool fired;
	ssize_t r;
	int error;

	while (done < fill->nr) {
		fill_pipe(fill, done);
		fuzz_call_begin(w);
		r = write_rest(fill, done);
		error = r < 0 ? errno : 0;
		fired = fuzz_call_end(w);
		close_pipe(fill);
		fuzz_note(w, "file %ld, %s, pages %lu+%lu, way %u: %ld, %s", fill->f - w->files,
			  fill->from ? "filled from a file" : "filled", fill->first + done,
			  fill->nr - done, fill->way, r, strerror(error));
		if (error == EINTR && nr_signals++ < MAX_SIGNALS)
			continue;
		if (error) {
			model_ended(w, fill, done, error, fired);
			return;
		}

		fuzz_check(w, r > 0 && !(r % PAGE_SIZE) && done + r / PAGE_SIZE <= fill->nr,
			   "Filling %lu+%lu: %ld bytes", fill->first + done, fill->nr - done, r);
		model_filled(w, fill, done, r / PAGE_SIZE);
		done += r / PAGE_SIZE;
		/* What ends it is told by the next call. */
		if (done == fill->nr || fill->way == FILL_SPLICE)
			continue;
		fuzz_count(FUZZ_FILL_SHORT);
		fuzz_check(w, has_reason(fill, done) || is_unsure(fill, done) || fired ||
			   nr_signals++ < MAX_SIGNALS, "Filling %lu+%lu: %lu pages only",
			   fill->first, fill->nr, done);
	}
}

/* Does the file refuse it altogether? */
static bool is_refused(struct fuzz_world *w, struct fuzz_file *f)
{
	ssize_t r;

	if (f->flags & GUEST_MEMFD_FLAG_WRITE)
		return false;

	r = pwrite(f->fd, w->source, PAGE_SIZE, 0);
	fuzz_check(w, r == -1 && errno == ENODEV, "write() to file %ld: %ld, %s", f - w->files,
		   r, strerror(errno));
	fuzz_count(FUZZ_FILL_ENODEV);
	return true;
}

void fuzz_op_write(struct fuzz_world *w, const u32 *arg)
{
	static u64 vals[FUZZ_MAX_PAGES];
	struct fill fill = {
		.f = fuzz_pick_open_file(w, arg[0]),
		.way = arg[3] % FILL_NR_WAYS,
		.source = w->source,
		.vals = vals,
	};
	u64 i;

	if (!fill.f || is_refused(w, fill.f))
		return;

	fuzz_pick_pages(fill.f, arg + 1, &fill.first, &fill.nr);
	for (i = 0; i < fill.nr; i++) {
		vals[i] = fuzz_new_val(w);
		gmem_fill_words((u64 *)(w->source + i * PAGE_SIZE), vals[i]);
	}

	/* A pipe holds what could be read. */
	fill.bad = fill.nr;
	if (fill.way != FILL_SPLICE && !(arg[3] / FILL_NR_WAYS % 4))
		fill.bad = arg[4] % fill.nr;
	if (fill.bad < fill.nr)
		mprotect(w->source + fill.bad * PAGE_SIZE, PAGE_SIZE, PROT_NONE);
	do_fill(w, &fill);
	mprotect(w->source, FUZZ_MAX_PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE);
}

/* The source may be the file itself, or one that the direct map doesn't have. */
void fuzz_op_write_from_file(struct fuzz_world *w, const u32 *arg)
{
	struct fill fill = {
		.f = fuzz_pick_open_file(w, arg[0]),
		.from = fuzz_pick_mapped_file(w, arg[1]),
		.way = FILL_PWRITE,
	};

	if (!fill.f || !fill.from || is_refused(w, fill.f))
		return;

	/* Too few for a large page: the rest of it would be read in advance. */
	fill.first = arg[2] % fill.f->nr;
	fill.from_first = arg[3] % fill.from->nr;
	fill.nr = min(fill.f->nr - fill.first, fill.from->nr - fill.from_first);
	fill.nr = min(fill.nr, 1 + arg[4] % 16ul);
	fill.source = fill.from->map + fill.from_first * PAGE_SIZE;
	do_fill(w, &fill);
}

static ssize_t append(int fd, const void *source)
{
	int flags = fcntl(fd, F_GETFL), error;
	ssize_t r;

	TEST_ASSERT(!fcntl(fd, F_SETFL, flags | O_APPEND), "F_SETFL failed");
	r = pwrite(fd, source, PAGE_SIZE, 0);
	error = errno;
	TEST_ASSERT(!fcntl(fd, F_SETFL, flags), "F_SETFL failed");
	errno = error;
	return r;
}

/* Nothing is written; that nothing is there is seen by the next look at the file. */
void fuzz_op_write_bad(struct fuzz_world *w, const u32 *arg)
{
	struct fuzz_file *f = fuzz_pick_open_file(w, arg[0]);
	u64 end, odd = 1 + arg[2] % (PAGE_SIZE - 1);
	ssize_t r;

	if (!f || is_refused(w, f))
		return;

	end = f->nr * PAGE_SIZE;
	switch (arg[1] % 7) {
	case 0:
		r = pwrite(f->fd, w->source, PAGE_SIZE, odd);
		break;
	case 1:
		r = pwrite(f->fd, w->source, odd, 0);
		break;
	case 2:
		r = pwrite(f->fd, w->source, PAGE_SIZE, end + arg[2] % 8 * PAGE_SIZE);
		break;
	case 3:
		r = pwrite(f->fd, w->source, 2 * PAGE_SIZE, end - PAGE_SIZE);
		break;
	case 4:
		r = pwrite(f->fd, w->source, PAGE_SIZE, -PAGE_SIZE);
		break;
	case 5:
		r = append(f->fd, w->source);
		break;
	case 6:
		r = read(f->fd, w->source, PAGE_SIZE);
		break;
	}
	fuzz_check(w, r == -1 && errno == EINVAL, "Bad write(), case %u: %ld, %s", arg[1] % 7, r,
		   strerror(errno));
	fuzz_count(FUZZ_FILL_EINVAL);
}

/* ---- Slots with missing pages ---- */

static struct fuzz_slot *pick_slot(struct fuzz_world *w, const u32 *arg, struct fuzz_vm **vm)
{
	struct fuzz_slot *slot;
	u32 i;

	*vm = fuzz_pick_vm(w, arg[0]);
	for (i = 0; *vm && (*vm)->userfault && i < FUZZ_NR_SLOTS; i++) {
		slot = &(*vm)->slots[(arg[1] + i) % FUZZ_NR_SLOTS];
		if (slot->used && slot->has_file)
			return slot;
	}
	return NULL;
}

/* A bitmap that no slot uses: all bits, none, one run, or some of them. */
static void new_bits(unsigned long *bitmap, u64 nr, u32 how, u32 random)
{
	u64 i, first = random % nr, end = first + 1 + random / 1024 % 64;

	for (i = 0; i < FUZZ_WINDOW; i++) {
		random = random * 1664525 + 1013904223;
		if (how % 4 == 0 || (how % 4 == 1 && i >= first && i < end) ||
		    (how % 4 == 2 && !(random >> 24 & 3)))
			__set_bit(i, bitmap);
		else
			__clear_bit(i, bitmap);
	}
}

static int switch_outcome(const struct fuzz_slot *old, const struct fuzz_slot *new)
{
	int want = old->file && old->file->fd >= 0 ? 0 : EBADF;

	if (!old->userfault && !new->userfault)
		want = EINVAL;
	else if (old->userfault == new->userfault && old->bitmap == new->bitmap)
		want = 0;
	return want;
}

static void count_switched(const struct fuzz_slot *old, const struct fuzz_slot *new, int r)
{
	if (r)
		fuzz_count(r == EINVAL ? FUZZ_SWITCH_EINVAL : FUZZ_SWITCH_EBADF);
	else if (old->userfault == new->userfault)
		fuzz_count(old->bitmap == new->bitmap ? FUZZ_SWITCHED_NOTHING :
							FUZZ_SWITCHED_BITMAP);
	else
		fuzz_count(new->userfault ? FUZZ_SWITCHED_ON : FUZZ_SWITCHED_OFF);
}

/* The flag on and off, and bitmaps, on a live slot. */
void fuzz_op_userfault(struct fuzz_world *w, const u32 *arg)
{
	struct fuzz_slot *slot, new;
	struct fuzz_vm *vm;
	int r, want;
	bool fired;
	u32 i;

	slot = pick_slot(w, arg, &vm);
	if (!slot)
		return;

	i = slot - vm->slots;
	new = *slot;
	new.userfault = arg[2] % 8 != 0;
	if (arg[2] % 8 < 3)
		new.bitmap = NULL;
	else if (arg[2] % 8 < 7)
		new.bitmap = vm->bitmaps[i][slot->bitmap == vm->bitmaps[i][0]];
	else
		new.userfault = slot->userfault;
	if (new.bitmap && new.bitmap != slot->bitmap)
		new_bits(new.bitmap, new.nr, arg[3], arg[4]);

	want = switch_outcome(slot, &new);
	r = fuzz_set_slot(w, vm, i, &new, KVM_MEM_GUEST_MEMFD, &fired);
	fuzz_note(w, "slot %u of VM %ld, filled on demand %d, by bits %d: %s", i, vm - w->vms,
		  new.userfault, !!new.bitmap, strerror(r));
	/* The descriptor of a closed file is none, or somebody else's. */
	fuzz_check(w, r == want || (fired && r == ENOMEM) || (want == EBADF && r == EINVAL),
		   "Switching slot %u of VM %ld: %s, want %s", i, vm - w->vms, strerror(r),
		   strerror(want));
	if (fired && r == ENOMEM)
		return;
	count_switched(slot, &new, r);
	if (!r && (slot->userfault != new.userfault || slot->bitmap != new.bitmap))
		fuzz_slot_changed(vm, i, &new);
}

/* Bits of a bitmap that is in use: what is cleared the guest may have at once. */
void fuzz_op_userfault_bits(struct fuzz_world *w, const u32 *arg)
{
	struct fuzz_slot *slot;
	u64 first, end, bit;
	struct fuzz_vm *vm;
	bool set;
	u32 i;

	slot = pick_slot(w, arg, &vm);
	if (!slot || !slot->bitmap)
		return;

	i = slot - vm->slots;
	set = !(arg[3] % 3);
	first = arg[2] % slot->nr;
	end = min(slot->nr, first + (arg[4] % 4 ? 1 + arg[4] / 4 % 8 : FUZZ_NR_LARGE));
	for (bit = first; bit < end; bit++) {
		if (!set) {
			__clear_bit(bit, slot->bitmap);
		} else if (!test_bit(bit, slot->bitmap)) {
			__set_bit(bit, slot->bitmap);
			vm->bit_is_late[i][bit] = true;
		}
	}
	fuzz_note(w, "slot %u of VM %ld, bits %lu+%lu: %d", i, vm - w->vms, first, end - first,
		  set);
}

/* A bitmap that can't be read tells nothing of any page. */
static void try_unreadable(struct fuzz_world *w, struct fuzz_vm *vm, struct fuzz_slot *slot,
			   u64 gfn)
{
	u32 i = slot - vm->slots;
	struct fuzz_slot bad = *slot;
	bool fired;
	u64 seen;
	int r;

	if (fuzz_slot_is_smm(i) || !slot->file || slot->file->fd < 0 || w->nth)
		return;

	bad.userfault = true;
	bad.bitmap = (unsigned long *)8;
	r = fuzz_set_slot(w, vm, i, &bad, KVM_MEM_GUEST_MEMFD, &fired);
	fuzz_check(w, !r, "A bitmap that can't be read: %s", strerror(r));

	r = fuzz_guest_run(vm, gfn, FUZZ_GUEST_READ, 0, &seen);
	fuzz_check(w, r == EFAULT && vm->vcpu->run->exit_reason == KVM_EXIT_MEMORY_FAULT &&
		   !(vm->vcpu->run->memory_fault.flags & KVM_MEMORY_EXIT_FLAG_USERFAULT),
		   "No bitmap, VM %ld page %lu: %s, flags 0x%llx", vm - w->vms, gfn, strerror(r),
		   vm->vcpu->run->memory_fault.flags);
	fuzz_count(FUZZ_SWITCH_EFAULT);

	/* Back to a slot that has lost all mappings. */
	r = fuzz_set_slot(w, vm, i, slot, KVM_MEM_GUEST_MEMFD, &fired);
	fuzz_check(w, !r, "The old bitmap: %s", strerror(r));
	memset(vm->bit_is_late[i], 0, sizeof(vm->bit_is_late[i]));
}

/* What a live slot cannot become. */
void fuzz_op_userfault_bad(struct fuzz_world *w, const u32 *arg)
{
	struct fuzz_slot *slot, bad;
	struct fuzz_vm *vm;
	u32 flags = KVM_MEM_GUEST_MEMFD;
	int r, want = EINVAL;
	bool fired;

	slot = pick_slot(w, arg, &vm);
	if (!slot)
		return;

	bad = *slot;
	bad.userfault = true;
	switch (arg[2] % 8) {
	case 0:
		bad.bitmap = (void *)vm->bitmaps[0][0] + 1 + arg[3] % 7;
		break;
	case 1:
		bad.bitmap = (unsigned long *)-PAGE_SIZE;
		want = EFAULT;
		break;
	case 2:
		flags = 0;
		break;
	case 3:
		bad.gfn++;
		break;
	case 4:
		bad.pgoff++;
		break;
	case 5:
		bad.nr++;
		break;
	case 6:
		flags |= arg[3] & 1 ? KVM_MEM_READONLY : KVM_MEM_LOG_DIRTY_PAGES;
		break;
	case 7:
		try_unreadable(w, vm, slot, slot->gfn + arg[3] % slot->nr);
		return;
	}
	r = fuzz_set_slot(w, vm, slot - vm->slots, &bad, flags, &fired);
	fuzz_check(w, r == want || (fired && r == ENOMEM), "Bad slot to fill, case %u: %s",
		   arg[2] % 8, strerror(r));
	fuzz_count(want == EINVAL ? FUZZ_SWITCH_EINVAL : FUZZ_SWITCH_EFAULT);
}
