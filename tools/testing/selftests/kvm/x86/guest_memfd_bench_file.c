// SPDX-License-Identifier: GPL-2.0-only
/*
 * guest_memfd_bench: the life of a file; private memory that a guest touches first,
 * alone or with several vCPUs at once; and how much memory a guest needs at most.
 */
#include <pthread.h>

#include "guest_memfd_bench.h"

/* Of what is large one round will do, a page is a small part of it. */
#define ROUNDS_SIZE	SZ_128M

static int rounds_of(u64 size)
{
	return size > ROUNDS_SIZE ? 1 : 3;
}

/* ---- The life of a file ---- */

#define CREATE_ROUNDS	64

static void create_row(const struct kind *k)
{
	struct bench b = { .vm = new_vm(), .fd = -1 };
	static struct samples s;
	int i, fd;

	for (i = 0; i < CREATE_ROUNDS; i++) {
		sample(&s, TICKS(fd = vm_create_guest_memfd(b.vm, args.file, k->flags)));
		kvm_close(fd);
	}
	row(median(&s), unit, name("%s-create", k->id), against(k, "create"),
	    "create a file, %s", k->label);
	close_bench(&b);
}

struct life {
	struct samples fill;
	struct samples hole;
	struct samples end;
};

/*
 * @punch: and then allocate it again, as there is an end to be measured.  That end
 * waits for grace periods, which is time, but no instructions: some millions of ticks
 * are theirs, however small the VM.
 */
static void live(const struct kind *k, u64 size, bool punch, struct life *l)
{
	struct bench b = { .vm = new_vm(), .fd = -1 };

	open_kind(&b, k, size, 0);
	sample(&l->fill, TICKS(kvm_fallocate(b.fd, ALLOCATE, 0, size)));
	if (punch) {
		sample(&l->hole, TICKS(kvm_fallocate(b.fd, PUNCH, 0, size)));
		kvm_fallocate(b.fd, ALLOCATE, 0, size);
	}
	sample(&l->end, TICKS(kvm_vm_free(b.vm); kvm_close(b.fd)));
	if (b.mem)
		kvm_munmap(b.mem, b.size);
}

static void life_rows(const struct kind *k)
{
	const char *size = size_name(args.file);
	static struct life l;
	int i;

	at("the life of a file, %s", k->label);
	for (i = 0; i < rounds_of(args.file); i++)
		live(k, args.file, true, &l);
	row(median(&l.fill), unit, name("%s-fallocate", k->id), against(k, "fallocate"),
	    "fallocate %s, %s", size, k->label);
	row(median(&l.hole), unit, name("%s-punch", k->id), against(k, "punch"),
	    "punch %s, %s", size, k->label);
	row(median(&l.end), unit, name("%s-teardown", k->id), against(k, "teardown"),
	    "tear a VM with %s down, %s", size, k->label);
}

static void large_rows(const struct kind *k)
{
	const char *size = size_name(args.large);
	static struct life l;

	at("a file of %s, %s", size, k->label);
	live(k, args.large, false, &l);
	row(median(&l.fill), unit, name("%s-fallocate-large", k->id),
	    against(k, "fallocate-large"), "fallocate %s, %s", size, k->label);
	row(median(&l.end), unit, name("%s-teardown-large", k->id),
	    against(k, "teardown-large"), "tear a VM with %s down, %s", size, k->label);
}

void file_group(void)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(kinds); i++) {
		if (!has_kind(&kinds[i]))
			continue;
		create_row(&kinds[i]);
		life_rows(&kinds[i]);
		large_rows(&kinds[i]);
	}
}

/* ---- Private memory, touched first ---- */

static void pre_fault(struct bench *b)
{
	struct kvm_pre_fault_memory range = { .gpa = GPA, .size = args.touch };
	int r;

	do {
		r = __vcpu_ioctl(b->vcpus[0], KVM_PRE_FAULT_MEMORY, &range);
		TEST_ASSERT(!r || errno == EINTR, "Pre-fault: %s", strerror(errno));
	} while (range.size);
}

struct cold {
	struct samples touch;
	struct samples exits;
	struct samples punch;
	struct samples pre_fault;
	struct samples end;
};

static void run_cold(const struct kind *k, struct cold *c)
{
	struct bench b;
	u64 before;

	new_private_guest(&b, k, args.touch, 1);
	before = vcpu_get_stat(b.vcpus[0], exits);
	sample(&c->touch, TICKS(touch(&b, 0, args.touch)));
	sample(&c->exits, vcpu_get_stat(b.vcpus[0], exits) - before);
	sample(&c->punch, TICKS(kvm_fallocate(b.fd, PUNCH, 0, args.touch)));
	close_bench(&b);

	new_private_guest(&b, k, args.touch, 1);
	sample(&c->pre_fault, TICKS(pre_fault(&b)));
	sample(&c->end, TICKS(close_bench(&b)));
}

static void cold_rows(const struct kind *k)
{
	const char *size = size_name(args.touch);
	static struct cold c;
	int i;

	at("private memory, cold, %s", k->label);
	for (i = 0; i < rounds_of(args.touch); i++)
		run_cold(k, &c);

	row(zeroing(median(&c.touch), args.touch), unit, name("%s-cold", k->id),
	    against(k, "cold"), "guest touches %s, %s", size, k->label);
	row(median(&c.exits), "exits", name("%s-exits", k->id), against(k, "exits"),
	    "exits of that, %s", k->label);
	row(zeroing(median(&c.pre_fault), args.touch), unit, name("%s-pre-fault", k->id),
	    against(k, "pre-fault"), "KVM_PRE_FAULT_MEMORY of %s, %s", size, k->label);
	row(median(&c.punch), unit, name("%s-punch-mapped", k->id),
	    against(k, "punch-mapped"), "punch %s, mapped in the guest, %s", size, k->label);
	row(median(&c.end), unit, name("%s-teardown-mapped", k->id),
	    against(k, "teardown-mapped"), "tear a VM with %s down, mapped, %s", size,
	    k->label);
}

/* ---- The same with several vCPUs, each a thread ---- */

struct runner {
	struct bench *b;
	pthread_t thread;
	pthread_barrier_t *start;
	int cpu;
};

static void *run_thread(void *arg)
{
	struct runner *r = arg;

	pthread_barrier_wait(r->start);
	run_vcpu(r->b, r->cpu);
	return NULL;
}

static void join_all(struct runner *runners, int nr, pthread_barrier_t *start)
{
	int i;

	pthread_barrier_wait(start);
	for (i = 0; i < nr; i++)
		pthread_join(runners[i].thread, NULL);
}

/* The threads have been made, and wait for the caller: from there to the last end. */
static u64 run_vcpus(struct bench *b, int nr)
{
	struct runner runners[MAX_VCPUS];
	pthread_barrier_t start;
	u64 ticks;
	int i;

	pthread_barrier_init(&start, NULL, nr + 1);
	for (i = 0; i < nr; i++) {
		runners[i] = (struct runner) { .b = b, .start = &start, .cpu = i };
		TEST_ASSERT(!pthread_create(&runners[i].thread, NULL, run_thread,
					    &runners[i]), "No thread");
	}
	ticks = TICKS(join_all(runners, nr, &start));
	pthread_barrier_destroy(&start);
	return ticks;
}

/*
 * Each vCPU has a part of its own.  Where they share a processor their instructions
 * add up; a page that takes more of them with more vCPUs is one on which they wait,
 * or try again.
 */
static void vcpu_row(const struct kind *k, int nr)
{
	u64 size = max_t(u64, args.touch / 16, SZ_2M);
	struct bench b;
	u64 ticks;
	int i;

	at("private memory, cold, %d vCPU%s, %s", nr, nr == 1 ? "" : "s", k->label);
	new_private_guest(&b, k, nr * size, nr);
	for (i = 0; i < nr; i++)
		give_job(&b, i, i * size, size);
	ticks = run_vcpus(&b, nr);
	row(zeroing(single(ticks / (nr * size / PAGE_SIZE)), PAGE_SIZE), unit,
	    name("%s-page-%d-vcpus", k->id, nr), against(k, name("page-%d-vcpus", nr)),
	    "a page, touched by %d vCPU%s, %s", nr, nr == 1 ? "" : "s at once",
	    k->label);
	close_bench(&b);
}

void cold_group(void)
{
	int i, nr;

	for (i = 0; i < ARRAY_SIZE(kinds); i++) {
		if (!has_kind(&kinds[i]))
			continue;
		cold_rows(&kinds[i]);
		for (nr = 1; nr <= MAX_VCPUS; nr *= 2)
			vcpu_row(&kinds[i], nr);
	}
}

/* ---- The most memory that a guest needs ---- */

#define PEAK_SIZE	SZ_64M

/* What the other half holds is no use to the guest. */
static void discard_half(struct bench *b, u64 size, u64 attrs)
{
	if (b->inplace)
		return;
	if (attrs & PRIVATE)
		kvm_madvise(b->mem, size, MADV_DONTNEED);
	else
		kvm_fallocate(b->fd, PUNCH, 0, size);
}

/* All of the guest's memory: private, shared, and private again, each time used. */
static void peak_row(const struct kind *k, bool discard, const char *id,
		     const char *against, const char *label)
{
	u64 size = min_t(u64, args.touch, PEAK_SIZE), before, peak, attrs;
	struct bench b;
	int fd, i;

	at("peak memory, %s", label);
	new_private_guest(&b, k, size, 1);
	fd = reset_peak();
	if (fd < 0) {
		close_bench(&b);
		return;
	}
	before = read_peak(fd);
	touch(&b, 0, size);
	for (i = 0; i < 2; i++) {
		attrs = i ? PRIVATE : SHARED;
		set_state(&b, 0, size, attrs, 0);
		if (discard)
			discard_half(&b, size, attrs);
		touch(&b, 0, size);
	}
	peak = read_peak(fd);
	kvm_close(fd);
	row(single(peak - before), "bytes", id, against, "%s of a guest, %s",
	    size_name(size), label);
	close_bench(&b);
}

void peak_group(void)
{
	int i;

	peak_row(&kinds[0], false, "peak-keep", NULL, "two backings, never discarded");
	peak_row(&kinds[0], true, "peak-discard", NULL, "two backings, discarded");
	for (i = 1; i < ARRAY_SIZE(kinds); i++) {
		if (has_kind(&kinds[i]))
			peak_row(&kinds[i], false, name("peak-%s", kinds[i].id),
				 "peak-keep", kinds[i].label);
	}
}
