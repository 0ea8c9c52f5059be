// SPDX-License-Identifier: GPL-2.0-only
/*
 * guest_memfd_bench: memory that is present and mapped in the guest changes sides.
 *
 * A conversion is over when the guest has touched all of it again.  Without
 * conversion in place the job is: set the attribute, drop the other half, as the
 * memory would be paid for twice, and let the guest fault it in anew.
 */
#include <sys/mman.h>

#include "guest_memfd_bench.h"

static const struct content {
	const char *id;
	u64 flags;
	bool zeroes;
} contents[] = {
	{ "preserve", KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE, false },
	{ "zero", KVM_SET_MEMORY_ATTRIBUTES2_ZERO, true },
	{ "discard", KVM_SET_MEMORY_ATTRIBUTES2_DISCARD, true },
};

/* The shared half is made of huge pages, which the VMM asks for. */
static const struct kind thp = { "thp", "two backings, THP", false, 0 };

static void change(struct bench *b, u64 offset, u64 size, u64 attrs, u64 flags)
{
	set_state(b, offset, size, attrs, flags);
	if (!b->inplace && attrs & PRIVATE)
		kvm_madvise(b->mem + offset, size, MADV_DONTNEED);
	else if (!b->inplace)
		kvm_fallocate(b->fd, PUNCH, offset, size);
	touch(b, offset, size);
}

/*
 * Each size has a place of its own: what the conversion of a page leaves of large
 * folios must not be what the conversion of more begins with.
 */
static u64 place_of(u64 size)
{
	return max_t(u64, 2 * size, WINDOW);
}

/* The first place is that of the neighbours; the largest size has the last. */
static u64 end_of_places(void)
{
	return place_of(args.touch) + args.touch;
}

/* @nr: scattered changes before. */
static void convert_rows(struct bench *b, u64 size, const struct kind *k,
			 const struct content *c, u64 nr)
{
	u64 rounds = clamp(args.touch / size / 16, 1ul, 64ul), i;
	static struct samples private, shared;
	const char *bytes = size_name(size);
	const char *id = c ? name("%s-%s", k->id, c->id) : k->id;
	const char *after = nr ? name("-%lu", nr) : "";
	u64 zeroed = !c || c->zeroes ? size : 0;
	u64 flags = c ? c->flags : 0;
	u64 offset = place_of(size);
	char how[80];

	snprintf(how, sizeof(how), "%s%s%s", k->label, c ? ", " : "", c ? c->id : "");
	if (nr)
		snprintf(how + strlen(how), sizeof(how) - strlen(how), ", after %lu", nr);
	at("convert %s, %s", bytes, how);

	/* Not of memory that was never used; of much memory the first time is like others. */
	if (!nr)
		touch(b, offset, size);
	if (!nr && rounds > 1) {
		change(b, offset, size, PRIVATE, flags);
		change(b, offset, size, SHARED, flags);
	}
	for (i = 0; i < rounds; i++) {
		sample(&private, TICKS(change(b, offset, size, PRIVATE, flags)));
		sample(&shared, TICKS(change(b, offset, size, SHARED, flags)));
	}
	row(zeroing(median(&private), zeroed), unit,
	    name("%s-private-%s%s", id, bytes, after),
	    c ? name("two-private-%s%s", bytes, after) : NULL,
	    "%s to private, %s", bytes, how);
	row(zeroing(median(&shared), zeroed), unit,
	    name("%s-shared-%s%s", id, bytes, after),
	    c ? name("two-shared-%s%s", bytes, after) : NULL,
	    "%s to shared, %s", bytes, how);
}

static void convert_sizes(struct bench *b, const struct kind *k,
			  const struct content *c, u64 nr, bool all)
{
	convert_rows(b, PAGE_SIZE, k, c, nr);
	convert_rows(b, SZ_2M, k, c, nr);
	if (all && args.touch > SZ_2M)
		convert_rows(b, args.touch, k, c, nr);
}

/*
 * The scattered changes are those of a guest's other memory, which need not be
 * present: only the map, or the attributes, tell of them.
 */
static void convert_kind(const struct kind *k, const struct content *c)
{
	const u64 levels[] = { args.scattered / 100, args.scattered };
	const int last = ARRAY_SIZE(levels) - 1;
	struct scattered pages;
	struct bench b;
	int i;

	new_guest(&b, KVM_X86_SW_PROTECTED_VM, end_of_places());
	open_kind(&b, k, args.size, GUEST_MEMFD_FLAG_INIT_SHARED);
	if (k == &thp)
		kvm_madvise(b.mem, b.size, MADV_HUGEPAGE);

	/* Neighbours of the other state, as a running guest has them. */
	set_state(&b, 0, PAGE_SIZE, PRIVATE, 0);
	convert_sizes(&b, k, c, 0, true);

	open_scattered(&pages, end_of_places());
	for (i = 0; i <= last; i++) {
		if (levels[i] <= pages.nr)
			continue;
		scatter_to(&pages, &b, levels[i]);
		/* What is large takes long, and has nothing to say of a few. */
		convert_sizes(&b, k, c, pages.nr, i == last);
	}
	free(pages.taken);
	close_bench(&b);
}

void convert_group(void)
{
	int i, j;

	convert_kind(&kinds[0], NULL);
	convert_kind(&thp, NULL);
	for (i = 1; i < ARRAY_SIZE(kinds); i++) {
		for (j = 0; has_kind(&kinds[i]) && j < ARRAY_SIZE(contents); j++)
			convert_kind(&kinds[i], &contents[j]);
	}
}

/* ---- What breaks a large folio ---- */

#define SPLIT_SIZE	SZ_64M

/* Each 2 MiB: touched first, which may make a large folio, then a page is taken out. */
static void split_rows(const struct kind *k)
{
	u64 size = min_t(u64, args.touch, SPLIT_SIZE), zeroed = k->inplace ? 0 : PAGE_SIZE;
	static struct samples page, all;
	struct bench b;
	u64 offset;

	at("the first 4 KiB of 2 MiB, %s", k->label);
	new_private_guest(&b, k, size, 1);
	for (offset = 0; offset < size; offset += SZ_2M) {
		u64 first = TICKS(touch(&b, offset, SZ_2M));
		u64 part = TICKS(change(&b, offset + SZ_1M, PAGE_SIZE, SHARED, 0));

		sample(&page, part);
		sample(&all, first + part + TICKS(touch(&b, offset, SZ_2M)));
	}
	row(zeroing(median(&page), zeroed), unit, name("%s-split", k->id),
	    against(k, "split"), "the first 4 KiB to shared, %s", k->label);
	row(zeroing(median(&all), SZ_2M + zeroed), unit, name("%s-touch-split", k->id),
	    against(k, "touch-split"), "2 MiB touched, that, touched again, %s", k->label);
	close_bench(&b);
}

/* The same with a hole, and a second one beside it. */
static void hole_rows(const struct kind *k)
{
	u64 size = min_t(u64, args.touch, SPLIT_SIZE), offset;
	static struct samples first, second;
	struct bench b;

	at("holes of 4 KiB, %s", k->label);
	new_private_guest(&b, k, size, 1);
	touch(&b, 0, size);
	for (offset = SZ_1M; offset < size; offset += SZ_2M) {
		sample(&first, TICKS(kvm_fallocate(b.fd, PUNCH, offset, PAGE_SIZE)));
		touch(&b, offset, SZ_64K);
		sample(&second, TICKS(kvm_fallocate(b.fd, PUNCH, offset + SZ_32K, PAGE_SIZE)));
	}
	row(median(&first), unit, name("%s-hole-split", k->id), against(k, "hole-split"),
	    "punch the first 4 KiB, mapped, %s", k->label);
	row(median(&second), unit, name("%s-hole", k->id), against(k, "hole"),
	    "punch another 4 KiB, mapped, %s", k->label);
	close_bench(&b);
}

void split_group(void)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(kinds); i++) {
		if (!has_kind(&kinds[i]))
			continue;
		split_rows(&kinds[i]);
		hole_rows(&kinds[i]);
	}
}
