// SPDX-License-Identifier: GPL-2.0-only
/*
 * The fuzzer's operations on files: users, conversions, holes, holders, errors,
 * other processes; and the table of all operations.
 */
#include "guest_memfd_fuzz.h"

#include <sys/mman.h>

#include "../../../../mm/gup_test.h"

#define GUP_TEST_FILE		"/sys/kernel/debug/gup_test"
#define CORRUPT_PFN		GMEM_HWPOISON_DIR "corrupt-pfn"

struct fuzz_file *fuzz_pick_file(struct fuzz_world *w, u32 arg)
{
	struct fuzz_file *f = &w->files[arg % FUZZ_NR_FILES];

	if (!fuzz_file_alive(f))
		return NULL;

	fuzz_look(w, f);
	return f;
}

struct fuzz_file *fuzz_pick_open_file(struct fuzz_world *w, u32 arg)
{
	struct fuzz_file *f = fuzz_pick_file(w, arg);

	return f && f->fd >= 0 ? f : NULL;
}

struct fuzz_file *fuzz_pick_mapped_file(struct fuzz_world *w, u32 arg)
{
	struct fuzz_file *f = fuzz_pick_file(w, arg);

	return f && f->map ? f : NULL;
}

/* Mostly a few pages, now and then whole large pages, or all of them. */
void fuzz_pick_pages(struct fuzz_file *f, const u32 *arg, u64 *first, u64 *nr)
{
	u64 align = fuzz_file_is_huge(f) ? FUZZ_NR_LARGE : 8;

	*first = arg[0] % f->nr;
	switch (arg[1] % 8) {
	case 0:
		*first = 0;
		*nr = f->nr;
		return;
	case 1:
		*first = *first / align * align;
		*nr = align;
		break;
	case 2:
		*nr = f->nr;
		break;
	default:
		*nr = 1 + arg[1] / 8 % 8;
	}
	*nr = min(*nr, f->nr - *first);
}

/* ---- Life of files ---- */

static const u64 file_flags[] = {
	0,
	GUEST_MEMFD_FLAG_MMAP,
	GUEST_MEMFD_FLAG_INIT_SHARED,
	GMEM_SHARED_FILE,
	GMEM_SHARED_FILE,
	GMEM_SHARED_FILE,
	GMEM_SHARED_FILE | GUEST_MEMFD_FLAG_ZERO,
	GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_ZERO,
};

static void init_file(struct fuzz_file *f, struct fuzz_vm *vm, u64 nr, u64 flags, int fd)
{
	u64 page;

	*f = (struct fuzz_file) {
		.vm = vm,
		.vm_number = vm->number,
		.flags = flags,
		.nr = nr,
		.fd = fd,
		.kind = !vm->has_private ? FUZZ_FIXED :
			flags & GMEM_SHARED_FILE ? FUZZ_IN_PLACE : FUZZ_TWO_BACKINGS,
	};
	for (page = 0; page < nr; page++)
		f->pages[page].private = !(flags & GUEST_MEMFD_FLAG_INIT_SHARED);
}

static void op_file_new(struct fuzz_world *w, const u32 *arg)
{
	struct fuzz_file *f = &w->files[arg[0] % FUZZ_NR_FILES];
	struct fuzz_vm *vm = &w->vms[arg[1] % FUZZ_NR_VMS];
	u64 flags = file_flags[arg[2] % ARRAY_SIZE(file_flags)];
	u64 nr = FUZZ_NR_SMALL;
	int fd;

	if (!vm->number || fuzz_file_alive(f))
		return;

	if (!(arg[3] % 3)) {
		flags |= GUEST_MEMFD_FLAG_HUGE;
		nr = FUZZ_NR_LARGE * (1 + arg[3] / 3 % 2);
	}
	if (arg[3] / 6 % 4)
		flags |= GUEST_MEMFD_FLAG_WRITE;
	if (!(arg[3] / 24 % 3))
		flags |= GUEST_MEMFD_FLAG_NO_DIRECT_MAP;
	flags &= vm->file_flags;

	fd = __vm_create_guest_memfd(vm->vm, nr * PAGE_SIZE, flags);
	fuzz_check(w, fd >= 0, "Creating a file, flags 0x%lx: %s", flags, strerror(errno));
	init_file(f, vm, nr, flags, fd);
	if (flags & GUEST_MEMFD_FLAG_NO_DIRECT_MAP)
		fuzz_count(fuzz_file_is_out(f) ? FUZZ_HIDDEN_FIXED : FUZZ_HIDDEN_IN_PLACE);
	fuzz_note(w, "file %ld of VM %ld, flags 0x%lx, %lu pages", f - w->files, vm - w->vms,
		  flags, nr);
}

static void op_file_bad(struct fuzz_world *w, const u32 *arg)
{
	struct fuzz_vm *vm = &w->vms[arg[0] % FUZZ_NR_VMS];
	u64 flags = GMEM_SHARED_FILE, size = PAGE_SIZE;
	int fd;

	if (!vm->number)
		return;

	switch (arg[1] % 4) {
	case 0:
		size = 0;
		break;
	case 1:
		size += 1 + arg[2] % (PAGE_SIZE - 1);
		break;
	case 2:
		size = BIT_ULL(63);
		break;
	case 3:
		/* Bits that nobody plans to use. */
		flags |= BIT_ULL(40 + arg[2] % 20);
		break;
	}
	fd = __vm_create_guest_memfd(vm->vm, size, flags);
	fuzz_check(w, fd < 0 && errno == EINVAL, "Bad file, case %u: %d, %s", arg[1] % 4, fd,
		   strerror(errno));
}

static void op_file_close(struct fuzz_world *w, const u32 *arg)
{
	struct fuzz_file *f = fuzz_pick_open_file(w, arg[0]);

	if (!f || arg[1] % 4)
		return;

	fuzz_note(w, "file %ld closed", f - w->files);
	close(f->fd);
	f->fd = -1;
	fuzz_file_put(w, f);
}

static void op_map(struct fuzz_world *w, const u32 *arg)
{
	struct fuzz_file *f = fuzz_pick_open_file(w, arg[0]);
	bool may;
	u8 *map;

	if (!f || f->map)
		return;

	may = f->flags & GUEST_MEMFD_FLAG_MMAP;
	map = mmap(NULL, f->nr * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, f->fd, 0);
	fuzz_note(w, "file %ld mapped: %d", f - w->files, map != MAP_FAILED);
	fuzz_check(w, may ? map != MAP_FAILED : map == MAP_FAILED && errno == ENODEV,
		   "mmap() of file %ld: %s", f - w->files, strerror(errno));
	if (!may)
		return;

	f->map = map;
	map = mmap(NULL, f->nr * PAGE_SIZE, PROT_READ, MAP_PRIVATE, f->fd, 0);
	fuzz_check(w, map == MAP_FAILED && errno == EINVAL, "Private mapping: %p", map);
}

static void op_unmap(struct fuzz_world *w, const u32 *arg)
{
	struct fuzz_file *f = fuzz_pick_mapped_file(w, arg[0]);

	if (!f || arg[1] % 4)
		return;

	fuzz_note(w, "file %ld unmapped", f - w->files);
	kvm_munmap(f->map, f->nr * PAGE_SIZE);
	f->map = NULL;
	fuzz_file_put(w, f);
}

static void op_remap(struct fuzz_world *w, const u32 *arg)
{
	struct fuzz_file *f = fuzz_pick_mapped_file(w, arg[0]);
	size_t size;
	u8 *to;

	if (!f)
		return;

	size = f->nr * PAGE_SIZE;
	to = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	to = mremap(f->map, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, to);
	fuzz_check(w, to != MAP_FAILED, "mremap() of file %ld: %s", f - w->files,
		   strerror(errno));
	f->map = to;
}

/* A mapping of a part, for as long as it takes to look. */
static void op_map_part(struct fuzz_world *w, const u32 *arg)
{
	struct fuzz_file *f = fuzz_pick_open_file(w, arg[0]);
	u64 first, nr, page, seen;
	int code, word = -1;
	u8 *map;

	if (!f || !(f->flags & GUEST_MEMFD_FLAG_MMAP))
		return;

	fuzz_pick_pages(f, arg + 1, &first, &nr);
	map = mmap(NULL, nr * PAGE_SIZE, PROT_READ,
		   MAP_SHARED | (arg[3] & 1 ? MAP_POPULATE : 0), f->fd, first * PAGE_SIZE);
	fuzz_check(w, map != MAP_FAILED, "mmap() of %lu+%lu: %s", first, nr, strerror(errno));
	for (page = first; page < first + nr; page++) {
		fuzz_make_sure(w, f, page);
		code = gmem_try(word = gmem_check_words((u64 *)(map + (page - first) * PAGE_SIZE),
							f->pages[page].val, &seen));
		fuzz_check_code(w, f, page, code, "Part of a file");
		fuzz_check(w, code || word < 0, "Part of file %ld, page %lu: 0x%lx, want 0x%lx",
			   f - w->files, page, seen, f->pages[page].val);
	}
	kvm_munmap(map, nr * PAGE_SIZE);
}

/* ---- Conversion ---- */

static void model_convert(struct fuzz_world *w, struct fuzz_file *f, u64 first, u64 nr,
			  bool private, u64 flags)
{
	u64 content = flags ?: f->flags & GUEST_MEMFD_FLAG_ZERO ? GMEM_ZERO : GMEM_PRESERVE;
	struct fuzz_page *p;
	u64 page;

	for (page = first; page < first + nr; page++) {
		p = &f->pages[page];
		if (p->private == private && !flags)
			continue;
		p->private = private;
		if (content == GMEM_DISCARD)
			fuzz_file_drop(w, f, page, 1);
		else if (content == GMEM_ZERO)
			p->val = 0;
	}
	/* All of a large page, if it is in pieces, makes way for a whole one. */
	if (content == GMEM_ZERO && fuzz_file_is_huge(f))
		fuzz_doubt(f, first, nr);
}

/* The first page that is to go private, and is somebody's. */
static struct fuzz_hold *hold_in_way(struct fuzz_world *w, struct fuzz_file *f, u64 first,
				     u64 nr)
{
	struct fuzz_hold *h;
	u64 end = first + nr;

	for (; (h = fuzz_find_hold(w, f, first, end - first)); first = h->page + 1)
		if (fuzz_user_may(f, h->page))
			return h;
	return NULL;
}

static void check_held(struct fuzz_world *w, struct fuzz_file *f, u64 first, u64 nr,
		       int r, u64 error_offset)
{
	struct fuzz_hold *h = hold_in_way(w, f, first, nr);

	fuzz_check(w, r == EAGAIN, "Held page %lu of file %ld: conversion of %lu+%lu, %s",
		   h->page, f - w->files, first, nr, strerror(r));
	fuzz_check(w, error_offset >= first * PAGE_SIZE &&
		   error_offset < (first + nr) * PAGE_SIZE && !(error_offset % PAGE_SIZE),
		   "error_offset 0x%lx for %lu+%lu", error_offset, first, nr);
	fuzz_check(w, fuzz_file_is_huge(f) || error_offset == h->page * PAGE_SIZE,
		   "error_offset 0x%lx, page %lu is held", error_offset, h->page);
}

/* What may be refused, for a part of a large page is held, is tried a few times only. */
static int convert(struct fuzz_file *f, u64 first, u64 nr, bool private, u64 flags,
		   bool may_fail, u64 *error_offset)
{
	int i, r = EAGAIN;

	for (i = 0; r == EAGAIN && i < (may_fail ? 3 : GMEM_MAX_RETRIES); i++) {
		r = __gmem_convert(f->fd, first * PAGE_SIZE, nr * PAGE_SIZE,
				   private ? GMEM_PRIVATE : GMEM_SHARED, flags, error_offset);
		if (r == EAGAIN)
			sched_yield();
	}
	return r;
}

static void convert_in_place(struct fuzz_world *w, struct fuzz_file *f, u64 first, u64 nr,
			     bool private, u64 flags)
{
	bool must_fail, may_fail, fired;
	u64 error_offset;
	int r;

	must_fail = private && flags != GMEM_DISCARD && hold_in_way(w, f, first, nr);
	may_fail = must_fail || (fuzz_file_is_huge(f) && fuzz_hold_near(w, f, first, nr));

	fuzz_call_begin(w);
	r = convert(f, first, nr, private, flags, may_fail, &error_offset);
	fired = fuzz_call_end(w);
	fuzz_note(w, "file %ld, pages %lu+%lu to %s, flags 0x%lx: %s", f - w->files, first, nr,
		  private ? "private" : "shared", flags, strerror(r));
	if (fired && r == ENOMEM)
		return;
	if (must_fail)
		check_held(w, f, first, nr, r, error_offset);
	else
		fuzz_check(w, !r || (may_fail && r == EAGAIN),
			   "Conversion of %lu+%lu of file %ld: %s", first, nr, f - w->files,
			   strerror(r));
	if (!r)
		model_convert(w, f, first, nr, private, flags);
	if (!r && f->flags & GUEST_MEMFD_FLAG_NO_DIRECT_MAP)
		fuzz_count(FUZZ_HIDDEN_CONVERTED);
}

static void op_convert(struct fuzz_world *w, const u32 *arg)
{
	u64 flags = gmem_content_flags[arg[4] % ARRAY_SIZE(gmem_content_flags)];
	struct fuzz_file *f = fuzz_pick_open_file(w, arg[0]);
	bool private = arg[3] & 1;
	u64 first, nr;
	int r, want;

	if (!f)
		return;

	fuzz_pick_pages(f, arg + 1, &first, &nr);
	if (f->kind == FUZZ_IN_PLACE) {
		convert_in_place(w, f, first, nr, private, flags);
		return;
	}
	if (f->kind == FUZZ_TWO_BACKINGS && !f->was_bound) {
		/* The first conversion makes it a file in place. */
		if (fuzz_may(w, FUZZ_FAULT_FIRST_CALL)) {
			convert_in_place(w, f, first, nr, private, flags);
			f->kind = FUZZ_IN_PLACE;
		}
		return;
	}

	want = f->kind == FUZZ_TWO_BACKINGS ? ENOTTY : EINVAL;
	r = convert(f, first, nr, private, flags, true, NULL);
	fuzz_check(w, r == want, "Conversion of file %ld: %s, want %s", f - w->files,
		   strerror(r), strerror(want));
}

static void op_convert_bad(struct fuzz_world *w, const u32 *arg)
{
	struct fuzz_file *f = fuzz_pick_open_file(w, arg[0]);
	struct kvm_memory_attributes2 attr = {
		.size = PAGE_SIZE,
		.attributes = arg[3] & 1 ? GMEM_PRIVATE : GMEM_SHARED,
	};
	int r;

	if (!f || f->kind != FUZZ_IN_PLACE)
		return;

	switch (arg[1] % 9) {
	case 0:
		attr.offset = 1 + arg[2] % (PAGE_SIZE - 1);
		break;
	case 1:
		attr.size = 1 + arg[2] % (PAGE_SIZE - 1);
		break;
	case 2:
		attr.size = 0;
		break;
	case 3:
		attr.offset = f->nr * PAGE_SIZE;
		break;
	case 4:
		attr.offset = -PAGE_SIZE;
		attr.size = 2 * PAGE_SIZE;
		break;
	case 5:
		attr.attributes |= BIT(arg[2] % 3);
		break;
	case 6:
		attr.flags = GMEM_ZERO | (arg[2] & 1 ? GMEM_PRESERVE : GMEM_DISCARD);
		break;
	case 7:
		attr.flags = BIT_ULL(40 + arg[2] % 20);
		break;
	case 8:
		attr.reserved[arg[2] % ARRAY_SIZE(attr.reserved)] = 1;
		break;
	}
	r = ioctl(f->fd, KVM_SET_MEMORY_ATTRIBUTES2, &attr) ? errno : 0;
	fuzz_check(w, r == EINVAL, "Bad conversion, case %u: %s", arg[1] % 9, strerror(r));
}

/* ---- Holes and allocation ---- */

static void check_punched(struct fuzz_world *w, struct fuzz_file *f, u64 first, u64 nr,
			  int r, bool fired)
{
	bool may_fail = fuzz_file_is_huge(f) && fuzz_hold_near(w, f, first, nr);

	if (fired && r == ENOMEM)
		return;

	fuzz_check(w, !r || (r == EAGAIN && may_fail), "Hole at %lu+%lu of file %ld: %s",
		   first, nr, f - w->files, strerror(r));
	if (!r)
		fuzz_file_drop(w, f, first, nr);
}

/* As a conversion does, it meets those who hold a page for a moment. */
static int punch(struct fuzz_file *f, u64 first, u64 nr, bool may_fail)
{
	int i, r = EAGAIN;

	for (i = 0; r == EAGAIN && i < (may_fail ? 3 : GMEM_MAX_RETRIES); i++)
		r = fallocate(f->fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
			      first * PAGE_SIZE, nr * PAGE_SIZE) ? errno : 0;
	return r;
}

static void op_punch(struct fuzz_world *w, const u32 *arg)
{
	struct fuzz_file *f = fuzz_pick_open_file(w, arg[0]);
	u64 first, nr;
	bool fired;
	int r;

	if (!f)
		return;

	fuzz_pick_pages(f, arg + 1, &first, &nr);
	fuzz_call_begin(w);
	r = punch(f, first, nr, fuzz_hold_near(w, f, first, nr));
	fired = fuzz_call_end(w);
	fuzz_note(w, "file %ld, hole at %lu+%lu: %s", f - w->files, first, nr, strerror(r));
	check_punched(w, f, first, nr, r, fired);
}

static void op_allocate(struct fuzz_world *w, const u32 *arg)
{
	struct fuzz_file *f = fuzz_pick_open_file(w, arg[0]);
	u64 first, nr, page;
	bool fired;
	int r;

	if (!f)
		return;

	fuzz_pick_pages(f, arg + 1, &first, &nr);
	fuzz_call_begin(w);
	/* Work that io_uring leaves to this task, for a ring that is gone, is a signal, too. */
	do {
		r = fallocate(f->fd, FALLOC_FL_KEEP_SIZE, first * PAGE_SIZE,
			      nr * PAGE_SIZE) ? errno : 0;
	} while (r == EINTR);
	fired = fuzz_call_end(w);
	fuzz_note(w, "file %ld, allocation of %lu+%lu: %s", f - w->files, first, nr, strerror(r));
	fuzz_check(w, !r || (fired && r == ENOMEM), "Allocation of %lu+%lu: %s", first, nr,
		   strerror(r));
	if (r)
		fuzz_doubt(f, first, nr);
	for (page = first; !r && page < first + nr; page++)
		fuzz_touch(f, page);
}

static void op_fallocate_bad(struct fuzz_world *w, const u32 *arg)
{
	struct fuzz_file *f = fuzz_pick_open_file(w, arg[0]);
	int mode = FALLOC_FL_KEEP_SIZE, want = EINVAL, r;
	u64 offset = 0, size = PAGE_SIZE;

	if (!f)
		return;

	switch (arg[1] % 5) {
	case 0:
		mode |= arg[3] & 1 ? FALLOC_FL_PUNCH_HOLE : 0;
		offset = 1 + arg[2] % (PAGE_SIZE - 1);
		break;
	case 1:
		mode |= arg[3] & 1 ? FALLOC_FL_PUNCH_HOLE : 0;
		size = 1 + arg[2] % (PAGE_SIZE - 1);
		break;
	case 2:
		offset = f->nr * PAGE_SIZE;
		break;
	case 3:
		mode |= FALLOC_FL_ZERO_RANGE;
		want = EOPNOTSUPP;
		break;
	case 4:
		r = ftruncate(f->fd, arg[2] % 64 * PAGE_SIZE) ? errno : 0;
		fuzz_check(w, r == EINVAL, "ftruncate(): %s", strerror(r));
		return;
	}
	r = fallocate(f->fd, mode, offset, size) ? errno : 0;
	fuzz_check(w, r == want, "Bad fallocate(), case %u: %s", arg[1] % 5, strerror(r));
}

/* ---- Users ---- */

static void op_user_read(struct fuzz_world *w, const u32 *arg)
{
	struct fuzz_file *f = fuzz_pick_mapped_file(w, arg[0]);

	if (f)
		fuzz_user_read(w, f, arg[1] % f->nr);
}

static void op_user_write(struct fuzz_world *w, const u32 *arg)
{
	struct fuzz_file *f = fuzz_pick_mapped_file(w, arg[0]);

	if (!f)
		return;

	fuzz_note(w, "user writes file %ld page %lu", f - w->files, arg[1] % f->nr);
	fuzz_user_write(w, f, arg[1] % f->nr);
}

/* The kernel's copies on behalf of users: what it can't reach is EFAULT. */
static void op_user_copy(struct fuzz_world *w, const u32 *arg)
{
	struct fuzz_file *f = fuzz_pick_mapped_file(w, arg[0]);
	struct iovec local, remote;
	u64 page, words[8];
	ssize_t len;
	bool may;

	if (!f)
		return;

	page = arg[1] % f->nr;
	may = fuzz_user_may(f, page) && !fuzz_file_is_out(f);
	if (fuzz_user_unsure(f, page))
		return;

	local = (struct iovec) { words, sizeof(words) };
	remote = (struct iovec) { f->map + page * PAGE_SIZE + arg[2] % 63 * 64, sizeof(words) };
	len = process_vm_readv(getpid(), &local, 1, &remote, 1, 0);
	fuzz_check(w, may ? len == 64 : len == -1 && errno == EFAULT,
		   "process_vm_readv(), file %ld page %lu: %ld, %s", f - w->files, page, len,
		   strerror(errno));
	fuzz_check(w, len != 64 || words[7] == f->pages[page].val,
		   "process_vm_readv(), file %ld page %lu: 0x%lx, want 0x%lx", f - w->files,
		   page, words[7], f->pages[page].val);
	if (len != 64)
		return;

	fuzz_touch(f, page);
	fuzz_check(w, process_vm_writev(getpid(), &local, 1, &remote, 1, 0) == 64,
		   "process_vm_writev(), file %ld page %lu: %s", f - w->files, page,
		   strerror(errno));
}

static const int advices[] = {
	MADV_DONTNEED, MADV_WILLNEED, MADV_COLD, MADV_PAGEOUT, MADV_FREE, MADV_RANDOM,
	MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_COLLAPSE, MADV_MERGEABLE, MADV_DONTDUMP,
};

/* Whatever is answered, it changes nothing. */
static void op_advise(struct fuzz_world *w, const u32 *arg)
{
	struct fuzz_file *f = fuzz_pick_mapped_file(w, arg[0]);
	u64 first, nr;
	int r;

	if (!f)
		return;

	fuzz_pick_pages(f, arg + 1, &first, &nr);
	r = madvise(f->map + first * PAGE_SIZE, nr * PAGE_SIZE,
		    advices[arg[3] % ARRAY_SIZE(advices)]) ? errno : 0;
	fuzz_note(w, "file %ld, advice %d for %lu+%lu: %s", f - w->files,
		  advices[arg[3] % ARRAY_SIZE(advices)], first, nr, strerror(r));
}

static void op_populate(struct fuzz_world *w, const u32 *arg)
{
	struct fuzz_file *f = fuzz_pick_mapped_file(w, arg[0]);
	bool all = true, unsure = false, out;
	u64 first, nr, page;
	int r;

	if (!f)
		return;

	fuzz_pick_pages(f, arg + 1, &first, &nr);
	for (page = first; page < first + nr; page++) {
		all = all && fuzz_user_may(f, page);
		/* A large page may bring what is missing next. */
		unsure |= f->pages[page].nr_waiting &&
			  (f->pages[page].unsure || fuzz_file_is_huge(f));
	}
	out = fuzz_file_is_out(f);
	r = madvise(f->map + first * PAGE_SIZE, nr * PAGE_SIZE,
		    arg[3] & 1 ? MADV_POPULATE_READ : MADV_POPULATE_WRITE) ? errno : 0;
	fuzz_check(w, out ? r == EINVAL : (all && !r) || (!all && !r && unsure) ||
		   ((!all || unsure) && (r == EFAULT || r == EHWPOISON)),
		   "Populating %lu+%lu of file %ld: %s", first, nr, f - w->files, strerror(r));
	if (out)
		fuzz_count(FUZZ_HIDDEN_REFUSED);
	else if (r)
		fuzz_doubt(f, first, nr);
	for (page = first; !r && page < first + nr; page++)
		fuzz_touch(f, page);
}

/* A hole by way of the mapping, if it is made at all. */
static void op_remove(struct fuzz_world *w, const u32 *arg)
{
	struct fuzz_file *f = fuzz_pick_mapped_file(w, arg[0]);
	u64 first, nr, page;
	bool shared = true;
	int r;

	if (!f)
		return;

	fuzz_pick_pages(f, arg + 1, &first, &nr);
	for (page = first; page < first + nr; page++)
		shared = shared && !f->pages[page].private;
	if (!shared && !fuzz_may(w, FUZZ_FAULT_REMOVE))
		return;

	/* It goes by VMAs, and the locked one that it refuses may not be the first. */
	munlock(f->map, f->nr * PAGE_SIZE);
	if (fuzz_hold_near(w, f, first, nr))
		return;

	r = madvise(f->map + first * PAGE_SIZE, nr * PAGE_SIZE, MADV_REMOVE) ? errno : 0;
	fuzz_note(w, "file %ld, MADV_REMOVE of %lu+%lu: %s", f - w->files, first, nr,
		  strerror(r));
	if (r != EINVAL && r != EACCES)
		check_punched(w, f, first, nr, r, false);
}

static void op_lock(struct fuzz_world *w, const u32 *arg)
{
	struct fuzz_file *f = fuzz_pick_mapped_file(w, arg[0]);
	u64 first, nr;

	if (!f)
		return;

	fuzz_pick_pages(f, arg + 1, &first, &nr);
	/* Up to the first page that can't be had, of each VMA that it has come to be. */
	if (arg[3] & 1) {
		mlock(f->map + first * PAGE_SIZE, nr * PAGE_SIZE);
		fuzz_doubt(f, first, nr);
	} else {
		munlock(f->map + first * PAGE_SIZE, nr * PAGE_SIZE);
	}
	if (arg[3] & 2) {
		mprotect(f->map + first * PAGE_SIZE, nr * PAGE_SIZE, PROT_READ);
		mprotect(f->map, f->nr * PAGE_SIZE, PROT_READ | PROT_WRITE);
	}
}

/* ---- Holders ---- */

static int hold_by_gup(void *addr)
{
	struct pin_longterm_test pin = {
		.addr = (u64)addr,
		.size = PAGE_SIZE,
		.flags = PIN_LONGTERM_TEST_FLAG_USE_WRITE,
	};
	int fd = open(GUP_TEST_FILE, O_RDWR | O_CLOEXEC);

	if (fd >= 0 && ioctl(fd, PIN_LONGTERM_TEST_START, &pin)) {
		close(fd);
		return -1;
	}
	return fd;
}

static int hold_by_vmsplice(int fds[2], void *addr)
{
	struct iovec iov = { .iov_base = addr, .iov_len = 64 };

	TEST_ASSERT(!pipe2(fds, O_CLOEXEC), "pipe2() failed");
	if (vmsplice(fds[1], &iov, 1, 0) == 64)
		return fds[0];

	close(fds[0]);
	close(fds[1]);
	return -1;
}

/* False if the page cannot be held, or not so. */
bool fuzz_take_hold(struct fuzz_hold *h, u8 *addr, u32 how)
{
	switch (how % 4) {
	case 0:
		h->kind = FUZZ_URING;
		h->fds[0] = hold_by_pin(addr, PAGE_SIZE);
		break;
	case 1:
		h->kind = FUZZ_GUP;
		h->fds[0] = hold_by_gup(addr);
		break;
	default:
		h->kind = FUZZ_PIPE;
		h->fds[0] = hold_by_vmsplice(h->fds, addr);
	}
	if (h->fds[0] < 0)
		h->kind = FUZZ_NO_HOLD;
	return h->kind;
}

void fuzz_drop_hold(struct fuzz_hold *h)
{
	if (h->kind == FUZZ_URING)
		release_pin(h->fds[0]);
	else
		close(h->fds[0]);
	if (h->kind == FUZZ_PIPE)
		close(h->fds[1]);
	h->kind = FUZZ_NO_HOLD;
}

/* gup_test has one set of pins for the whole machine. */
static bool gup_is_free(struct fuzz_world *w)
{
	struct fuzz_hold *h;

	for (h = w->holds; h < w->holds + FUZZ_NR_HOLDS; h++)
		if (h->kind == FUZZ_GUP)
			return false;
	return !access(GUP_TEST_FILE, R_OK);
}

static void op_hold(struct fuzz_world *w, const u32 *arg)
{
	struct fuzz_file *f = fuzz_pick_mapped_file(w, arg[0]);
	struct fuzz_hold *h = &w->holds[arg[1] % FUZZ_NR_HOLDS];
	bool held;
	u64 page;

	if (!f || h->kind)
		return;

	page = arg[2] % f->nr;
	if (!fuzz_user_may(f, page) || fuzz_user_unsure(f, page))
		return;
	if (fuzz_file_is_huge(f) && fuzz_poison_near(f, page) &&
	    !fuzz_may(w, FUZZ_FAULT_HELD_POISON))
		return;

	if (arg[3] % 4 == 1 && !gup_is_free(w))
		return;

	*h = (struct fuzz_hold) { .file = f, .page = page };
	held = fuzz_take_hold(h, f->map + page * PAGE_SIZE, arg[3]);
	fuzz_check(w, held == !fuzz_file_is_out(f), "Hold on file %ld page %lu, way %u: %d",
		   f - w->files, page, arg[3] % 4, held);
	if (!held) {
		fuzz_count(FUZZ_HIDDEN_REFUSED);
		return;
	}
	fuzz_touch(f, page);
	fuzz_note(w, "file %ld page %lu is held, way %u", f - w->files, page, h->kind);
}

static void check_hold(struct fuzz_world *w, struct fuzz_hold *h)
{
	u64 want = h->orphan ? h->val : h->file->pages[h->page].val;
	u64 words[PAGE_SIZE / sizeof(u64)] = {};
	u64 addr = (u64)words;
	int r = 0;

	if (h->kind == FUZZ_PIPE)
		r = read(h->fds[0], words, 64) == 64 ? 0 : errno;
	else if (h->kind == FUZZ_GUP)
		r = ioctl(h->fds[0], PIN_LONGTERM_TEST_READ, &addr) ? errno : 0;

	fuzz_check(w, !r, "Reading what is held: %s", strerror(r));
	fuzz_check(w, h->kind == FUZZ_URING || words[7] == want,
		   "Holder of file %ld page %lu%s: 0x%lx, want 0x%lx", h->file - w->files,
		   h->page, h->orphan ? " (left)" : "", words[7], want);
}

static void op_release(struct fuzz_world *w, const u32 *arg)
{
	struct fuzz_hold *h = &w->holds[arg[0] % FUZZ_NR_HOLDS];

	if (!h->kind)
		return;

	fuzz_note(w, "file %ld page %lu is let go, way %u", h->file - w->files, h->page,
		  h->kind);
	if (!h->poisoned && (h->orphan || !h->file->pages[h->page].poisoned))
		check_hold(w, h);
	fuzz_drop_hold(h);
}

/* ---- Memory errors ---- */

u64 fuzz_frame(void *addr)
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	u64 entry = 0;
	bool good;

	good = pread(fd, &entry, 8, (u64)addr / PAGE_SIZE * 8) == 8 && entry >> 63;
	close(fd);
	return good ? entry & GENMASK_ULL(54, 0) : 0;
}

/*
 * The bad frame stays outside the direct map for good.  A single page is kept, too, but one
 * of a large page that couldn't be split isn't: "unpoison" would give it to the allocator,
 * which writes to it.
 */
bool fuzz_frame_is_lost(u64 flags)
{
	return flags & GUEST_MEMFD_FLAG_NO_DIRECT_MAP && flags & GUEST_MEMFD_FLAG_HUGE;
}

/* The frame is told before it goes bad, so that it can be given back. */
static void op_poison(struct fuzz_world *w, const u32 *arg)
{
	struct fuzz_file *f = fuzz_pick_mapped_file(w, arg[0]);
	struct fuzz_report *report = w->report;
	u64 page, frame;
	u8 *addr;

	if (!f || report->nr_frames == FUZZ_MAX_FRAMES)
		return;

	page = arg[1] % f->nr;
	addr = f->map + page * PAGE_SIZE;
	if (!fuzz_user_may(f, page) || fuzz_user_unsure(f, page))
		return;
	/* An error by its frame: no page of such a file is given to madvise(). */
	if (fuzz_file_is_out(f) && access(CORRUPT_PFN, W_OK))
		return;
	if (fuzz_file_is_huge(f) && fuzz_hold_near(w, f, page, 1) &&
	    !fuzz_may(w, FUZZ_FAULT_HELD_POISON))
		return;

	fuzz_user_read(w, f, page);
	frame = fuzz_frame(addr);
	if (!frame)
		return;

	report->frames[report->nr_frames++] = fuzz_frame_is_lost(f->flags) ? 0 : frame;
	fuzz_note(w, "file %ld page %lu goes bad", f - w->files, page);
	if (fuzz_file_is_out(f))
		gmem_write_number(CORRUPT_PFN, frame);
	else
		gmem_try(madvise(addr, PAGE_SIZE, MADV_HWPOISON));
	if (f->flags & GUEST_MEMFD_FLAG_NO_DIRECT_MAP)
		fuzz_count(FUZZ_HIDDEN_POISONED);
	f->pages[page].poisoned = true;
}

/* ---- Other processes ---- */

enum child_op {
	CHILD_READ,
	CHILD_WRITE,
	CHILD_CONVERT,
	CHILD_PUNCH,
	CHILD_FILL,
};

struct child_cmd {
	u32 op;
	u32 file;
	u64 page;
	u64 val;
};

struct child_reply {
	int code;
	int word;
	u64 seen;
};

static void child_do(struct fuzz_world *w, const struct child_cmd *cmd,
		     struct child_reply *reply)
{
	struct fuzz_file *f = &w->files[cmd->file];
	u64 *p = (u64 *)(f->map + cmd->page * PAGE_SIZE);

	reply->word = -1;
	switch (cmd->op) {
	case CHILD_READ:
		reply->code = gmem_try(reply->word = gmem_check_words(p, cmd->val, &reply->seen));
		break;
	case CHILD_WRITE:
		reply->code = gmem_try(gmem_fill_words(p, cmd->val));
		break;
	case CHILD_CONVERT:
		reply->code = __gmem_convert(f->fd, cmd->page * PAGE_SIZE, PAGE_SIZE,
					     cmd->val, 0, NULL);
		break;
	case CHILD_PUNCH:
		reply->code = punch(f, cmd->page, 1, fuzz_hold_near(w, f, cmd->page, 1));
		break;
	case CHILD_FILL:
		gmem_fill_words((u64 *)w->source, cmd->val);
		reply->code = pwrite(f->fd, w->source, PAGE_SIZE, cmd->page * PAGE_SIZE) ==
			      PAGE_SIZE ? 0 : errno;
		break;
	}
}

/* It has what its parent had, but for what the parent means to let go. */
static void __noreturn child_main(struct fuzz_world *w, struct fuzz_child *c)
{
	struct child_reply reply;
	struct fuzz_child *other;
	struct child_cmd cmd;
	struct fuzz_hold *h;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (other = w->children; other < w->children + FUZZ_NR_CHILDREN; other++) {
		if (other == c || !other->pid)
			continue;
		close(other->to_child[1]);
		close(other->to_parent[0]);
	}
	for (h = w->holds; h < w->holds + FUZZ_NR_HOLDS; h++) {
		if (!h->kind)
			continue;
		close(h->fds[0]);
		if (h->kind == FUZZ_PIPE)
			close(h->fds[1]);
	}
	close(c->to_child[1]);
	while (read(c->to_child[0], &cmd, sizeof(cmd)) == sizeof(cmd)) {
		reply = (struct child_reply) {};
		child_do(w, &cmd, &reply);
		if (write(c->to_parent[1], &reply, sizeof(reply)) != sizeof(reply))
			break;
	}
	_exit(0);
}

static void op_child_new(struct fuzz_world *w, const u32 *arg)
{
	struct fuzz_child *c = &w->children[arg[0] % FUZZ_NR_CHILDREN];
	u32 i;

	if (c->pid)
		return;

	TEST_ASSERT(!pipe2(c->to_child, O_CLOEXEC) && !pipe2(c->to_parent, O_CLOEXEC),
		    "pipe2() failed");
	c->pid = fork();
	TEST_ASSERT(c->pid >= 0, "fork() failed");
	if (!c->pid)
		child_main(w, c);

	close(c->to_child[0]);
	close(c->to_parent[1]);
	for (i = 0; i < FUZZ_NR_FILES; i++) {
		c->has[i] = w->files[i].fd >= 0 || w->files[i].map;
		c->has_fd[i] = w->files[i].fd >= 0;
		c->has_map[i] = w->files[i].map;
		w->files[i].nr_children += c->has[i];
	}
	fuzz_note(w, "child %ld starts", c - w->children);
}

static void child_ask(struct fuzz_world *w, struct fuzz_child *c, const struct child_cmd *cmd,
		      struct child_reply *reply)
{
	fuzz_check(w, write(c->to_child[1], cmd, sizeof(*cmd)) == sizeof(*cmd) &&
		   read(c->to_parent[0], reply, sizeof(*reply)) == sizeof(*reply),
		   "Child %ld does not answer", c - w->children);
}

static void child_access(struct fuzz_world *w, struct fuzz_child *c, struct fuzz_file *f,
			 u64 page, bool write)
{
	struct child_cmd cmd = {
		.op = write ? CHILD_WRITE : CHILD_READ,
		.file = f - w->files,
		.page = page,
		.val = write ? fuzz_new_val(w) : f->pages[page].val,
	};
	struct child_reply reply;

	if (!c->has_map[cmd.file])
		return;

	fuzz_note(w, "child %ld, file %u page %lu, write %d", c - w->children, cmd.file, page,
		  write);
	fuzz_make_sure(w, f, page);
	child_ask(w, c, &cmd, &reply);
	fuzz_check_code(w, f, page, reply.code, "Child");
	fuzz_check(w, reply.code || reply.word < 0, "Child, file %u page %lu: 0x%lx, want 0x%lx",
		   cmd.file, page, reply.seen, cmd.val);
	if (write && !reply.code)
		f->pages[page].val = cmd.val;
}

static void child_call(struct fuzz_world *w, struct fuzz_child *c, struct fuzz_file *f,
		       u64 page, enum child_op op)
{
	struct child_cmd cmd = {
		.op = op,
		.file = f - w->files,
		.page = page,
		.val = GMEM_PRIVATE,
	};
	struct child_reply reply;

	if (!c->has_fd[cmd.file])
		return;

	fuzz_note(w, "child %ld, file %u page %lu, call %d", c - w->children, cmd.file, page, op);
	child_ask(w, c, &cmd, &reply);
	if (op == CHILD_PUNCH && f->kind != FUZZ_FIXED && f->pages[page].private)
		fuzz_check(w, reply.code == EPERM, "Hole in a private page by a child: %s",
			   strerror(reply.code));
	else if (op == CHILD_PUNCH)
		check_punched(w, f, page, 1, reply.code, false);
	else
		fuzz_check(w, reply.code == EIO, "Conversion by a child: %s",
			   strerror(reply.code));
}

/* Whoever has the file may fill what is shared, if anything. */
static void check_child_filled(struct fuzz_world *w, struct fuzz_file *f, u64 page, u64 val,
			       int r)
{
	struct fuzz_page *p = &f->pages[page];
	bool eperm = p->private && f->kind != FUZZ_FIXED;
	bool eexist = p->present || p->unsure;

	if (!(f->flags & GUEST_MEMFD_FLAG_WRITE)) {
		fuzz_check(w, r == ENODEV, "Write by a child: %s", strerror(r));
		return;
	}
	fuzz_check(w, (r == EPERM && eperm) || (r == EEXIST && eexist) ||
		   (!r && !eperm && (!eexist || p->unsure)),
		   "Write by a child, file %ld page %lu: %s", f - w->files, page, strerror(r));
	if (r) {
		fuzz_count(r == EPERM ? FUZZ_FILL_EPERM : FUZZ_FILL_EEXIST);
		return;
	}
	p->present = true;
	p->unsure = false;
	p->val = val;
}

static void child_fill(struct fuzz_world *w, struct fuzz_child *c, struct fuzz_file *f,
		       u64 page)
{
	struct child_cmd cmd = {
		.op = CHILD_FILL,
		.file = f - w->files,
		.page = page,
		.val = fuzz_new_val(w),
	};
	struct child_reply reply;

	if (!c->has_fd[cmd.file])
		return;

	child_ask(w, c, &cmd, &reply);
	fuzz_note(w, "child %ld, file %u page %lu, fill: %s", c - w->children, cmd.file, page,
		  strerror(reply.code));
	check_child_filled(w, f, page, cmd.val, reply.code);
}

static void op_child(struct fuzz_world *w, const u32 *arg)
{
	struct fuzz_child *c = &w->children[arg[0] % FUZZ_NR_CHILDREN];
	struct fuzz_file *f = fuzz_pick_file(w, arg[1]);
	u64 page;

	if (!c->pid || !f || !c->has[f - w->files])
		return;

	page = arg[2] % f->nr;
	if (arg[3] / 4 % 3 == 0)
		child_fill(w, c, f, page);
	else if (arg[3] % 4 < 2)
		child_access(w, c, f, page, arg[3] & 1);
	else
		child_call(w, c, f, page, arg[3] & 1 ? CHILD_PUNCH : CHILD_CONVERT);
}

static void op_child_end(struct fuzz_world *w, const u32 *arg)
{
	struct fuzz_child *c = &w->children[arg[0] % FUZZ_NR_CHILDREN];
	u32 i;

	if (!c->pid || arg[1] % 2)
		return;

	if (arg[2] % 2)
		kill(c->pid, SIGKILL);
	close(c->to_child[1]);
	close(c->to_parent[0]);
	TEST_ASSERT_EQ(waitpid(c->pid, NULL, 0), c->pid);
	fuzz_note(w, "child %ld is gone", c - w->children);
	for (i = 0; i < FUZZ_NR_FILES; i++) {
		if (!c->has[i])
			continue;
		w->files[i].nr_children--;
		fuzz_file_put(w, &w->files[i]);
	}
	*c = (struct fuzz_child) {};
}

/* ---- The rest ---- */

static void op_nth(struct fuzz_world *w, const u32 *arg)
{
	w->nth = 1 + arg[0] % 12;
	fuzz_note(w, "allocation %d of the next call fails", w->nth);
}

static void op_check(struct fuzz_world *w, const u32 *arg)
{
	fuzz_world_check(w);
}

const struct fuzz_op_desc fuzz_ops[] = {
	{ "vm-new",		fuzz_op_vm_new,		4 },
	{ "vm-close",		fuzz_op_vm_close,	1 },
	{ "file-new",		op_file_new,		8 },
	{ "file-bad",		op_file_bad,		1 },
	{ "file-close",		op_file_close,		3 },
	{ "map",		op_map,			8 },
	{ "unmap",		op_unmap,		3 },
	{ "remap",		op_remap,		1 },
	{ "map-part",		op_map_part,		2 },
	{ "bind",		fuzz_op_bind,		10 },
	{ "bind-plain",		fuzz_op_bind_plain,	2 },
	{ "bind-bad",		fuzz_op_bind_bad,	1 },
	{ "unbind",		fuzz_op_unbind,		3 },
	{ "userfault",		fuzz_op_userfault,	6 },
	{ "userfault-bits",	fuzz_op_userfault_bits,	6 },
	{ "userfault-bad",	fuzz_op_userfault_bad,	1 },
	{ "attributes",		fuzz_op_attributes,	4 },
	{ "attributes-bad",	fuzz_op_attributes_bad,	1 },
	{ "convert",		op_convert,		24 },
	{ "convert-bad",	op_convert_bad,		1 },
	{ "punch",		op_punch,		6 },
	{ "allocate",		op_allocate,		4 },
	{ "fallocate-bad",	op_fallocate_bad,	1 },
	{ "write",		fuzz_op_write,		8 },
	{ "write-from-file",	fuzz_op_write_from_file, 4 },
	{ "write-bad",		fuzz_op_write_bad,	1 },
	{ "user-read",		op_user_read,		6 },
	{ "user-write",		op_user_write,		12 },
	{ "user-copy",		op_user_copy,		4 },
	{ "advise",		op_advise,		4 },
	{ "populate",		op_populate,		2 },
	{ "remove",		op_remove,		1 },
	{ "lock",		op_lock,		2 },
	{ "guest-read",		fuzz_op_guest_read,	10 },
	{ "guest-write",	fuzz_op_guest_write,	14 },
	{ "guest-exec",		fuzz_op_guest_exec,	6 },
	{ "kvm-write",		fuzz_op_kvm_write,	4 },
	{ "pre-fault",		fuzz_op_pre_fault,	4 },
	{ "hold",		op_hold,		5 },
	{ "release",		op_release,		5 },
	{ "poison",		op_poison,		1 },
	{ "child-new",		op_child_new,		1 },
	{ "child",		op_child,		6 },
	{ "child-end",		op_child_end,		1 },
	{ "fail-nth",		op_nth,			3 },
	{ "check",		op_check,		1 },
};

const u32 fuzz_nr_ops = ARRAY_SIZE(fuzz_ops);
