// SPDX-License-Identifier: GPL-2.0-only
/*
 * guest_memfd_bench: what it costs to be outside the direct map.  Memory of a VM without
 * private memory is filled: by the guest, by fallocate(), through a mapping, and by write();
 * memory of a VM with private memory is converted.
 */
#include "guest_memfd_bench.h"

#define SHARED_FILE	(GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED)

static const struct fill_kind {
	const char *id;
	const char *label;
	u64 flags;
} fill_kinds[] = {
	{ "pages", "pages", 0 },
	{ "pages-hidden", "pages, no direct map", GUEST_MEMFD_FLAG_NO_DIRECT_MAP },
	{ "large", "huge", GUEST_MEMFD_FLAG_HUGE },
	{ "large-hidden", "huge, no direct map",
	  GUEST_MEMFD_FLAG_HUGE | GUEST_MEMFD_FLAG_NO_DIRECT_MAP },
};

struct fill {
	struct samples touch;
	struct samples allocate;
	struct samples copy;
	struct samples write;
	struct samples punch;
	struct samples end;
};

/* Memory with content, to be copied. */
static void *new_source(u64 size)
{
	void *src = map_sparse(size);

	memset(src, 0x5a, size);
	return src;
}

static void open_file(struct bench *b, const struct fill_kind *k, bool guest)
{
	if (guest)
		new_guest(b, KVM_X86_DEFAULT_VM, args.touch);
	else
		*b = (struct bench) { .vm = vm_create_barebones(), .fd = -1 };
	open_inplace(b, args.touch, SHARED_FILE | GUEST_MEMFD_FLAG_WRITE | k->flags);
	bind_slot(b);
}

/* As the kernel copies: the selftests' own memcpy() is a loop of single bytes. */
static void copy(void *to, const void *from, size_t size)
{
	asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size) : : "memory");
}

static void fill_by_copy(struct bench *b, void *src)
{
	void *mem = kvm_mmap(args.touch, PROT_READ | PROT_WRITE, MAP_SHARED, b->fd);

	copy(mem, src, args.touch);
	kvm_munmap(mem, args.touch);
}

static void fill_by_write(struct bench *b, void *src)
{
	ssize_t r = pwrite(b->fd, src, args.touch, 0);

	TEST_ASSERT(r == args.touch, "pwrite: %ld (%s)", r, strerror(errno));
}

static void run_fill(const struct fill_kind *k, void *src, struct fill *f)
{
	struct bench b;

	open_file(&b, k, true);
	sample(&f->touch, TICKS(touch(&b, 0, args.touch)));
	close_bench(&b);

	open_file(&b, k, false);
	sample(&f->allocate, TICKS(kvm_fallocate(b.fd, ALLOCATE, 0, args.touch)));
	sample(&f->punch, TICKS(kvm_fallocate(b.fd, PUNCH, 0, args.touch)));
	sample(&f->copy, TICKS(fill_by_copy(&b, src)));
	kvm_fallocate(b.fd, PUNCH, 0, args.touch);
	sample(&f->write, TICKS(fill_by_write(&b, src)));
	sample(&f->end, TICKS(close_bench(&b)));
}

static void fill_row(struct samples *s, const struct fill_kind *k, const char *what,
		     const char *label)
{
	row(median(s), unit, name("%s-%s", k->id, what), NULL, "%s %s, %s", label,
	    size_name(args.touch), k->label);
}

static void fill_rows(const struct fill_kind *k, void *src)
{
	static struct fill f;

	at("memory is filled, %s", k->label);
	f = (struct fill) {};
	run_fill(k, src, &f);
	fill_row(&f.touch, k, "touch", "guest touches");
	fill_row(&f.allocate, k, "allocate", "fallocate");
	fill_row(&f.copy, k, "copy", "copy through a mapping");
	fill_row(&f.write, k, "write", "write");
	fill_row(&f.punch, k, "hole", "punch");
	fill_row(&f.end, k, "end", "tear down a VM with");
}

void fill_group(void)
{
	const u64 offered = kvm_check_cap(KVM_CAP_GUEST_MEMFD_FLAGS);
	void *src;
	int i;

	if (!(offered & GUEST_MEMFD_FLAG_WRITE))
		return;

	src = new_source(args.touch);
	for (i = 0; i < ARRAY_SIZE(fill_kinds); i++) {
		if (!(fill_kinds[i].flags & ~offered))
			fill_rows(&fill_kinds[i], src);
	}
	kvm_munmap(src, args.touch);
}

/* ---- Conversions ---- */

/* There and back, the file is filled.  What is split, and what is mapped anew, stays so. */
static void hidden_rows(const struct fill_kind *k)
{
	static struct samples to_private, to_shared;
	static const u64 sizes[] = { SZ_2M, SZ_4K };
	struct bench b = { .vm = new_vm(), .fd = -1 };
	int i, j;

	at("conversions, %s", k->label);
	open_inplace(&b, SZ_4M, SHARED_FILE | k->flags);
	bind_slot(&b);
	kvm_fallocate(b.fd, ALLOCATE, 0, SZ_4M);
	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		for (j = 0; j < 16; j++) {
			sample(&to_private, TICKS(convert(&b, SZ_2M, sizes[i], PRIVATE,
							  KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE)));
			sample(&to_shared, TICKS(convert(&b, SZ_2M, sizes[i], SHARED,
							 KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE)));
		}
		row(median(&to_private), unit,
		    name("hidden-%s-private-%s", k->id, size_name(sizes[i])), NULL,
		    "%s to private, %s", size_name(sizes[i]), k->label);
		row(median(&to_shared), unit,
		    name("hidden-%s-shared-%s", k->id, size_name(sizes[i])), NULL,
		    "... and to shared, %s", k->label);
	}
	close_bench(&b);
}

void hidden_group(void)
{
	struct kvm_vm *vm;
	u64 offered;
	int i;

	if (!has_inplace)
		return;

	vm = new_vm();
	offered = vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_FLAGS);
	kvm_vm_free(vm);
	for (i = 0; i < ARRAY_SIZE(fill_kinds); i++) {
		if (!(fill_kinds[i].flags & ~offered))
			hidden_rows(&fill_kinds[i]);
	}
}
