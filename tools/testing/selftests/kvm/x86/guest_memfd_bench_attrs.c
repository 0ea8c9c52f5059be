// SPDX-License-Identifier: GPL-2.0-only
/*
 * guest_memfd_bench: attributes of whole ranges and of single pages, what the
 * guest's faults cost that look them up, and the memory that they need.
 */
#include <sys/mman.h>

#include "guest_memfd_bench.h"

/* ---- Whole ranges ---- */

struct range_cost {
	u64 size;
	struct cost private;
	struct cost shared;
	struct cost create;
	struct cost create_private;
	struct cost delete;
	struct kernel_memory before;
	struct kernel_memory after;
};

/* What is done again to see whether it is always the same. */
#define RANGE_REPEATS	5
#define RANGE_CHEAP	50000000ul

static void repeat_range(struct bench *b, u64 size, struct range_cost *c)
{
	static struct samples private, shared;
	int i;

	for (i = 0; i < RANGE_REPEATS; i++) {
		sample(&private, TICKS(set_attrs(b, 0, size, PRIVATE)));
		sample(&shared, TICKS(set_attrs(b, 0, size, SHARED)));
	}
	c->private = median(&private);
	c->shared = median(&shared);
}

static void run_range(u64 size, bool slot, struct range_cost *c)
{
	struct bench b = { .vm = new_vm(), .fd = -1 };

	*c = (struct range_cost) { .size = size };
	if (slot) {
		open_two_backings(&b, size);
		c->create = single(TICKS(bind_slot(&b)));
	}
	if (!slot)
		c->before = kernel_memory();
	c->private = single(TICKS(set_attrs(&b, 0, size, PRIVATE)));
	if (!slot)
		c->after = kernel_memory();
	if (slot) {
		c->delete = single(TICKS(delete_slot(&b)));
		c->create_private = single(TICKS(bind_slot(&b)));
	}
	c->shared = single(TICKS(set_attrs(&b, 0, size, SHARED)));
	if (c->private.value < RANGE_CHEAP)
		repeat_range(&b, size, c);
	close_bench(&b);
}

static void range_rows(u64 size, bool slot, const struct range_cost *c)
{
	const char *how = slot ? "bound slot" : "no slot";
	const char *group = slot ? "slot" : "attr", *gib = size_name(size);
	u64 factor = size / c->size;

	row(scaled(c->private, factor), unit, name("%s-private-%s", group, gib),
	    NULL, "%s to private, %s", gib, how);
	row(scaled(c->shared, factor), unit, name("%s-shared-%s", group, gib),
	    NULL, "%s to shared, %s", gib, how);
	if (!slot || size != args.size)
		return;

	row(scaled(c->create, factor), unit, name("create-shared-%s", gib), NULL,
	    "create a slot of %s, all shared", gib);
	row(scaled(c->create_private, factor), unit, name("create-private-%s", gib),
	    NULL, "create a slot of %s, all private", gib);
	row(scaled(c->delete, factor), unit, name("delete-%s", gib), NULL,
	    "delete a slot of %s, all private", gib);
}

static u64 predict(const struct range_cost *c, u64 size)
{
	return c->private.value * (size / c->size);
}

/* One that would take too long gets the figures of the last, multiplied. */
static void range_step(u64 size, bool slot, struct range_cost *last)
{
	at("attributes: %s, %s", size_name(size), slot ? "slot" : "no slot");
	if (!last->size || predict(last, size) <= args.budget)
		run_range(size, slot, last);
	range_rows(size, slot, last);
}

static void range_group(bool slot)
{
	struct range_cost cost = {};
	u64 size;

	for (size = SZ_1G; size < args.size; size *= 8)
		range_step(size, slot, &cost);
	range_step(args.size, slot, &cost);
	if (!slot)
		memory_rows(cost.before, cost.after, args.size / cost.size,
			    "private", "all private");
	if (args.huge > args.size)
		range_step(args.huge, slot, &cost);
}

void attr_group(void)
{
	range_group(false);
}

void slot_group(void)
{
	range_group(true);
}

/* ---- Single pages, after scattered changes ---- */

/* Rounds of faults on one window. */
#define FAULT_ROUNDS	16

/* Scattered changes keep clear of this much at the slot's start. */
#define RESERVED	(2ul * WINDOW)

struct scatter {
	struct bench b;

	/* A VM whose type has no private memory: it looks nothing up. */
	struct bench bare;

	struct scattered pages;

	/* "after N changes" */
	char after[48];
};

static void scatter_more(struct scatter *s, u64 nr)
{
	scatter_to(&s->pages, &s->b, nr);
	snprintf(s->after, sizeof(s->after), "after %lu change%s", nr, nr == 1 ? "" : "s");
}

static void change_rows(struct scatter *s)
{
	static struct samples private, again, shared;
	u64 i, offset;

	at("a change of 4 KiB %s", s->after);
	for (i = 0; i < args.repeats; i++) {
		offset = random_free_page(&s->pages) * PAGE_SIZE;
		sample(&private, TICKS(set_attrs(&s->b, offset, PAGE_SIZE, PRIVATE)));
		sample(&again, TICKS(set_attrs(&s->b, offset, PAGE_SIZE, PRIVATE)));
		sample(&shared, TICKS(set_attrs(&s->b, offset, PAGE_SIZE, SHARED)));
	}
	row(median(&private), unit, name("change-private-%lu", s->pages.nr), NULL,
	    "4 KiB to private, %s", s->after);
	row(median(&shared), unit, name("change-shared-%lu", s->pages.nr), NULL,
	    "4 KiB to shared, %s", s->after);
	row(median(&again), unit, name("change-none-%lu", s->pages.nr), NULL,
	    "4 KiB that changes nothing, %s", s->after);
}

/*
 * What one guest fault on a page that is there already costs, from its exit to
 * the next instruction: a run that faults on each page less one that does not.
 */
static u64 one_fault(struct bench *b, u64 offset)
{
	u64 faults, none;

	faults = TICKS(touch(b, offset, WINDOW));
	none = TICKS(touch(b, offset, WINDOW));
	return (faults - min(faults, none)) / (WINDOW / PAGE_SIZE);
}

/* The first window is private; both changes zap it. */
static struct cost private_fault(struct bench *b)
{
	static struct samples s;
	int i;

	for (i = 0; i <= FAULT_ROUNDS; i++) {
		set_attrs(b, 0, WINDOW, SHARED);
		set_attrs(b, 0, WINDOW, PRIVATE);
		if (!i)
			touch(b, 0, WINDOW);
		else
			sample(&s, one_fault(b, 0));
	}
	return median(&s);
}

/* The second is shared, and zapped by the MMU notifier. */
static struct cost shared_fault(struct bench *b)
{
	static struct samples s;
	u8 *mem = b->mem;
	int i;

	memset(mem + WINDOW, 1, WINDOW);
	for (i = 0; i < FAULT_ROUNDS; i++) {
		TEST_ASSERT(!mprotect(mem + WINDOW, WINDOW, PROT_READ) &&
			    !mprotect(mem + WINDOW, WINDOW, PROT_READ | PROT_WRITE),
			    "mprotect: %s", strerror(errno));
		sample(&s, one_fault(b, WINDOW));
	}
	return median(&s);
}

static void fault_rows(struct scatter *s)
{
	struct cost private, shared, bare;

	at("guest faults %s", s->after);
	private = private_fault(&s->b);
	shared = shared_fault(&s->b);
	bare = shared_fault(&s->bare);
	row(private, unit, name("fault-private-%lu", s->pages.nr), NULL,
	    "one guest fault, private page, %s", s->after);
	row(shared, unit, name("fault-shared-%lu", s->pages.nr), NULL,
	    "one guest fault, shared page, %s", s->after);
	row(bare, unit, name("fault-bare-%lu", s->pages.nr), NULL,
	    "... of a VM without private memory");
	row(single(shared.value - min(shared.value, bare.value)), unit,
	    name("look-up-%lu", s->pages.nr), NULL, "... difference: the look-ups");
}

static void slot_rows(struct scatter *s)
{
	struct cost create, delete;

	at("a slot %s", s->after);
	delete = single(TICKS(delete_slot(&s->b)));
	create = single(TICKS(bind_slot(&s->b)));
	row(create, unit, name("create-mixed-%lu", s->pages.nr), NULL,
	    "create a slot of %s, %s", size_name(args.size), s->after);
	row(delete, unit, name("delete-mixed-%lu", s->pages.nr), NULL,
	    "delete a slot of %s, %s", size_name(args.size), s->after);
}

/* The first change in each GiB of a slot that knew none. */
static void fresh_row(void)
{
	struct bench b = { .vm = new_vm(), .fd = -1 };
	static struct samples private;
	u64 offset;

	at("the first change of a GiB");
	open_two_backings(&b, args.size);
	bind_slot(&b);
	for (offset = SZ_512M; offset < args.size; offset += SZ_1G)
		sample(&private, TICKS(set_attrs(&b, offset, PAGE_SIZE, PRIVATE)));
	row(median(&private), unit, "change-private-fresh", NULL,
	    "4 KiB to private, the first of its GiB");
	close_bench(&b);
}

static void ioctl_row(void)
{
	struct bench b = { .vm = new_vm(), .fd = -1 };
	static struct samples s;
	u64 i;

	for (i = 0; i < args.repeats; i++)
		sample(&s, TICKS(vm_check_cap(b.vm, KVM_CAP_USER_MEMORY)));
	row(median(&s), unit, "ioctl", NULL, "a VM ioctl that does nothing");
	close_bench(&b);
}

static void open_scatter(struct scatter *s)
{
	open_scattered(&s->pages, RESERVED);

	new_guest(&s->bare, VM_TYPE_DEFAULT, RESERVED);
	s->bare.size = args.size;
	s->bare.mem = map_sparse(args.size);
	bind_slot(&s->bare);

	new_guest(&s->b, KVM_X86_SW_PROTECTED_VM, RESERVED);
	open_two_backings(&s->b, args.size);
	bind_slot(&s->b);
}

void scatter_group(void)
{
	const u64 levels[] = { 1, args.scattered / 100, args.scattered };
	struct scatter s;
	int i;

	ioctl_row();
	fresh_row();
	open_scatter(&s);
	for (i = 0; i < ARRAY_SIZE(levels); i++) {
		if (levels[i] <= s.pages.nr)
			continue;
		scatter_more(&s, levels[i]);
		change_rows(&s);
		fault_rows(&s);
	}
	slot_rows(&s);
	close_bench(&s.b);
	close_bench(&s.bare);
	free(s.pages.taken);
}

/* ---- The most memory that the map can need ---- */

void worst_group(void)
{
	struct bench b = { .vm = new_vm(), .fd = -1 };
	struct kernel_memory before;
	u64 offset;

	at("memory of the map, %s of alternate pages", size_name(args.worst));
	before = kernel_memory();
	for (offset = 0; offset < args.worst; offset += 2 * PAGE_SIZE)
		set_attrs(&b, offset, PAGE_SIZE, PRIVATE);
	memory_rows(before, kernel_memory(), args.size / args.worst, "alternate",
		    "every other page private");
	close_bench(&b);
}
