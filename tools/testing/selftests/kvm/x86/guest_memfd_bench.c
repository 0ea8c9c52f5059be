// SPDX-License-Identifier: GPL-2.0-only
/*
 * What guest_memfd and memory attributes cost: whole operations, as a VMM sees
 * them, in ticks of the TSC.  In an emulated machine whose clock counts
 * instructions (QEMU: -icount shift=0,sleep=off -smp 1) a tick is an instruction,
 * and the figures repeat exactly; elsewhere they are what the processor says.
 *
 * The same binary runs on kernels without in-place conversion, and leaves out
 * what they lack.  Sizes are arguments.  An operation that would take too long
 * is measured on less and multiplied; such a row says so.
 *
 * Output, a line each, fields separated by tabs:
 *
 *   info   KEY VALUE
 *   group  TITLE                   of the rows that follow
 *   at     WHAT                    what is measured now
 *   row    ID VALUE UNIT FACTOR MIN MAX SAMPLES ZEROED AGAINST LABEL
 *
 * VALUE is the median.  FACTOR: what it was multiplied by, 1 if measured.
 * ZEROED: pages that the operation had to fill with zeros.  AGAINST: the row
 * of a kernel without in-place conversion that does the same job, or "-".
 */
#include <linux/falloc.h>
#include <linux/sizes.h>

#include "kvm_util.h"
#include "processor.h"

#include <fcntl.h>
#include <getopt.h>
#include <glob.h>
#include <sys/stat.h>
#include <sys/utsname.h>

/* ---- The ABI, for headers that do not have it ---- */

#ifndef KVM_SET_MEMORY_ATTRIBUTES2
struct kvm_memory_attributes2 {
	__u64 offset;
	__u64 size;
	__u64 attributes;
	__u64 flags;
	__u64 error_offset;
	__u64 reserved[11];
};

#define KVM_SET_MEMORY_ATTRIBUTES2		\
	_IOWR(KVMIO, 0xd2, struct kvm_memory_attributes2)
#define KVM_SET_MEMORY_ATTRIBUTES2_ZERO		BIT(0)
#define KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE	BIT(1)
#define KVM_SET_MEMORY_ATTRIBUTES2_DISCARD	BIT(16)
#endif

#ifndef KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES
#define KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES	0x676d00
#endif

#define PRIVATE		KVM_MEMORY_ATTRIBUTE_PRIVATE
#define SHARED		0ul

/* Where the measured slot lies; the guest maps its first part one to one. */
#define GPA		((gpa_t)SZ_4G)
#define SLOT		10

/* Pages that the guest touches in one run, to learn what one fault costs. */
#define WINDOW		SZ_2M
#define FAULT_ROUNDS	16

/* Scattered changes keep clear of this much at the slot's start. */
#define RESERVED	(2ul * WINDOW)

#define MAX_SAMPLES	512

static struct {
	u64 size;		/* of the guest whose attributes change */
	u64 huge;		/* of a very large one */
	u64 scattered;		/* changes before a change is measured */
	u64 worst;		/* of which every other page is private */
	u64 touch;		/* what the guest touches, and converts */
	u64 file;		/* what is allocated and punched */
	u64 repeats;
	u64 budget;		/* ticks an operation may take */
	const char *only;	/* groups to run, by comma */
} args = {
	.size = 64ul * SZ_1G,
	.huge = 1024ul * SZ_1G,
	.scattered = 100000,
	.worst = 8ul * SZ_1G,
	.touch = 64ul * SZ_1M,
	.file = 256ul * SZ_1M,
	.repeats = 200,
	.budget = 20000000000ul,
};

static bool has_inplace;
static bool has_huge;

/* ---- The clock ---- */

/* Two instructions a turn. */
#define CLOCK_LOOPS	1000000ul

/* What reading it twice shows. */
static u64 clock_cost;
static bool clock_counts_instructions;
static const char *unit;

#define TICKS(action)							\
({									\
	u64 __start = rdtsc();						\
									\
	action;								\
	rdtsc() - __start - clock_cost;					\
})

static u64 clock_loop(void)
{
	u64 n = CLOCK_LOOPS;

	return TICKS(asm volatile("1: dec %0; jnz 1b" : "+r"(n) : : "cc"));
}

/* An interrupt can only make a loop longer: the shortest is the true one. */
static void clock_init(void)
{
	u64 shortest = -1ul, empty = -1ul;
	int i;

	for (i = 0; i < 20; i++)
		empty = min(empty, TICKS(asm volatile("" : : : "memory")));
	clock_cost = empty;

	for (i = 0; i < 20; i++)
		shortest = min(shortest, clock_loop());

	clock_counts_instructions = shortest >= 2 * CLOCK_LOOPS &&
				    shortest <= 2 * CLOCK_LOOPS + 10;
	unit = clock_counts_instructions ? "insn" : "ticks";
	printf("info\tunit\t%s\n", unit);
	printf("info\tclock\t%lu ticks for %lu instructions, %lu to read\n",
	       shortest, 2 * CLOCK_LOOPS, clock_cost);
}

/* ---- Results ---- */

/* Small: the guest gets a copy of all static data. */
struct samples {
	u64 ticks[MAX_SAMPLES];
	u32 nr;
};

struct cost {
	u64 value;
	u64 min;
	u64 max;
	u32 nr;
	u64 factor;
	u64 zeroed;
};

static void sample(struct samples *s, u64 ticks)
{
	if (s->nr < MAX_SAMPLES)
		s->ticks[s->nr++] = ticks;
}

static int compare_ticks(const void *a, const void *b)
{
	u64 x = *(const u64 *)a, y = *(const u64 *)b;

	return x < y ? -1 : x > y;
}

/* Empties @s as well. */
static struct cost median(struct samples *s)
{
	struct cost c = { .factor = 1 };

	TEST_ASSERT(s->nr, "Nothing was measured");
	qsort(s->ticks, s->nr, sizeof(s->ticks[0]), compare_ticks);
	c.value = s->ticks[(s->nr - 1) / 2];
	c.min = s->ticks[0];
	c.max = s->ticks[s->nr - 1];
	c.nr = s->nr;
	s->nr = 0;
	return c;
}

static struct cost single(u64 value)
{
	return (struct cost) {
		.value = value, .min = value, .max = value, .nr = 1, .factor = 1,
	};
}

static struct cost scaled(struct cost c, u64 factor)
{
	c.value *= factor;
	c.min *= factor;
	c.max *= factor;
	c.factor *= factor;
	return c;
}

static struct cost zeroing(struct cost c, u64 size)
{
	c.zeroed = size / PAGE_SIZE;
	return c;
}

#define NR_BUFS		8

/* A few buffers in turn, as a line has several. */
static const char *size_name(u64 size)
{
	static const char * const units[] = { "", "KiB", "MiB", "GiB", "TiB" };
	static char bufs[NR_BUFS][32];
	static int turn;
	char *buf = bufs[turn++ % ARRAY_SIZE(bufs)];
	int i = 0;

	while (i + 1 < ARRAY_SIZE(units) && size && !(size % 1024)) {
		size /= 1024;
		i++;
	}
	snprintf(buf, sizeof(bufs[0]), "%lu %s", size, units[i]);
	return buf;
}

/* The same without blanks: the name of a row. */
static __printf(1, 2) const char *name(const char *fmt, ...)
{
	static char bufs[NR_BUFS][64];
	static int turn;
	char *buf = bufs[turn++ % ARRAY_SIZE(bufs)], *from, *to;
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(buf, sizeof(bufs[0]), fmt, ap);
	va_end(ap);

	for (from = to = buf; *from; from++)
		if (*from != ' ')
			*to++ = *from;
	*to = '\0';
	return buf;
}

static __printf(5, 6) void row(struct cost c, const char *in, const char *id,
			       const char *against, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	printf("row\t%s\t%lu\t%s\t%lu\t%lu\t%lu\t%u\t%lu\t%s\t", id, c.value, in,
	       c.factor, c.min, c.max, c.nr, c.zeroed, against ?: "-");
	vprintf(fmt, ap);
	printf("\n");
	va_end(ap);
}

static __printf(1, 2) void at(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	printf("at\t");
	vprintf(fmt, ap);
	printf("\n");
	va_end(ap);
}

/* What the kernel does for each page that it hands out. */
static void zero_row(void)
{
	static struct samples s;
	u8 *page = kvm_mmap(PAGE_SIZE, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1);
	int i;

	for (i = 0; i < 20; i++) {
		void *to = page;
		u64 n = PAGE_SIZE;

		sample(&s, TICKS(asm volatile("rep stosb" : "+D"(to), "+c"(n)
					      : "a"(0) : "memory")));
	}
	row(median(&s), unit, "zero-page", NULL, "zero a page (rep stosb)");
	kvm_munmap(page, PAGE_SIZE);
}

/* ---- VMs ---- */

static struct kvm_vm *new_vm(void)
{
	return vm_create_barebones_type(KVM_X86_SW_PROTECTED_VM);
}

/* A VM with one slot, at GPA. */
struct bench {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	struct guest_job *job;

	/* Is the file's own state which half is live? */
	bool inplace;

	u64 size;
	void *mem;
	int fd;
};

static void bind_slot(struct bench *b)
{
	u32 flags = b->fd >= 0 ? KVM_MEM_GUEST_MEMFD : 0;

	vm_set_user_memory_region2(b->vm, SLOT, flags, GPA, b->size, b->mem,
				   max(b->fd, 0), 0);
}

static void delete_slot(struct bench *b)
{
	u32 flags = b->fd >= 0 ? KVM_MEM_GUEST_MEMFD : 0;

	vm_set_user_memory_region2(b->vm, SLOT, flags, GPA, 0, b->mem,
				   max(b->fd, 0), 0);
}

/* Sparse: nothing is allocated but what somebody touches. */
static void *map_sparse(u64 size)
{
	return kvm_mmap(size, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
}

/* Two backings: a file for the private half, @mem for the shared one. */
static void open_two_backings(struct bench *b, u64 size)
{
	b->size = size;
	b->mem = map_sparse(size);
	b->fd = vm_create_guest_memfd(b->vm, size, 0);
}

/* One backing.  Nobody maps it, as the guest alone is measured. */
static void open_inplace(struct bench *b, u64 size, u64 flags)
{
	b->size = size;
	b->inplace = true;
	b->fd = vm_create_guest_memfd(b->vm, size, flags);
}

static void close_bench(struct bench *b)
{
	if (b->vm)
		kvm_vm_free(b->vm);
	if (b->mem)
		kvm_munmap(b->mem, b->size);
	if (b->fd >= 0)
		kvm_close(b->fd);
}

#define ALLOCATE	FALLOC_FL_KEEP_SIZE
#define PUNCH		(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE)

/* EAGAIN may be spurious, and has changed nothing. */
static void convert(struct bench *b, u64 offset, u64 size, u64 attrs, u64 flags)
{
	struct kvm_memory_attributes2 attr = {
		.offset = offset,
		.size = size,
		.attributes = attrs,
		.flags = flags,
	};
	int r;

	do {
		r = ioctl(b->fd, KVM_SET_MEMORY_ATTRIBUTES2, &attr);
	} while (r && errno == EAGAIN);
	TEST_ASSERT(!r, "Conversion failed: %s", strerror(errno));
}

static void set_attrs(struct bench *b, u64 offset, u64 size, u64 attrs)
{
	vm_set_memory_attributes(b->vm, GPA + offset, size, attrs);
}

/* ---- The guest: touch pages, one word each, and say so ---- */

/* The guest's copy counts. */
static struct guest_job {
	u64 gva;
	u64 nr;
} guest_job;

static void guest_code(void)
{
	u64 i;

	for (;;) {
		for (i = 0; i < READ_ONCE(guest_job.nr); i++)
			WRITE_ONCE(*(u64 *)(guest_job.gva + i * PAGE_SIZE), i);
		/* The cheapest exit to user space. */
		asm volatile("outb %%al, $0x80" : : "a"(0) : "memory");
	}
}

static void run_guest(struct bench *b)
{
	vcpu_run(b->vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(b->vcpu, KVM_EXIT_IO);
}

static void touch(struct bench *b, u64 offset, u64 size)
{
	b->job->gva = GPA + offset;
	b->job->nr = size / PAGE_SIZE;
	run_guest(b);
}

/* The guest maps @mapped bytes of the slot.  Its own start is not measured. */
static void new_guest(struct bench *b, u32 type, u64 mapped)
{
	const struct vm_shape shape = { .mode = VM_MODE_DEFAULT, .type = type };

	*b = (struct bench) { .fd = -1 };
	b->vm = __vm_create_with_vcpus(shape, 1, 0, guest_code, &b->vcpu);
	b->job = addr_gva2hva(b->vm, (gva_t)&guest_job);
	virt_map_level(b->vm, GPA, GPA, mapped, PG_LEVEL_2M);
	touch(b, 0, 0);
}

/* ---- Memory that the kernel uses for itself ---- */

/* The value of "KEY:   N kB" or "key N" in @path, in bytes. */
static u64 read_key(const char *path, const char *key)
{
	size_t len = strlen(key);
	char line[256], kb[8];
	u64 value = 0;
	FILE *f;

	f = fopen(path, "r");
	while (f && fgets(line, sizeof(line), f)) {
		if (strncmp(line, key, len) || !strchr(": ", line[len]))
			continue;
		if (sscanf(line + len + 1, "%lu %7s", &value, kb) == 2)
			value *= SZ_1K;
		break;
	}
	if (f)
		fclose(f);
	return value;
}

#define CGROUP	"/sys/fs/cgroup"

static void write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);

	/* Best effort: what is lacking is not in the table. */
	if (fd < 0)
		return;
	if (write(fd, text, strlen(text)) < 0)
		pr_debug("%s: %s\n", path, strerror(errno));
	close(fd);
}

/* Into a group of our own, as memory charged to the root group is not counted. */
static void enter_cgroup(void)
{
	write_text(CGROUP "/cgroup.subtree_control", "+memory");
	mkdir(CGROUP "/guest_memfd_bench", 0755);
	write_text(CGROUP "/guest_memfd_bench/cgroup.procs", "0");
}

static void leave_cgroup(void)
{
	write_text(CGROUP "/cgroup.procs", "0");
	rmdir(CGROUP "/guest_memfd_bench");
}

struct kernel_memory {
	u64 used;
	u64 charged;
};

/* Empty slabs are no use that the map makes of memory. */
static void shrink_slabs(void)
{
	glob_t g;
	size_t i;

	if (glob("/sys/kernel/slab/*/shrink", 0, NULL, &g))
		return;
	for (i = 0; i < g.gl_pathc; i++)
		write_text(g.gl_pathv[i], "1");
	globfree(&g);
}

/*
 * RCU frees late, and counters of a CPU are added up now and then: wait, which
 * costs nothing where the machine skips idle time.
 */
static struct kernel_memory kernel_memory(void)
{
	char buf[4096];
	int fd;

	usleep(clock_counts_instructions ? 5000000 : 100000);
	shrink_slabs();
	fd = open("/proc/sys/vm/stat_refresh", O_RDONLY);
	if (fd >= 0) {
		if (read(fd, buf, sizeof(buf)) < 0)
			pr_debug("stat_refresh: %s\n", strerror(errno));
		close(fd);
	}
	return (struct kernel_memory) {
		.used = read_key("/proc/meminfo", "Slab") +
			read_key("/proc/meminfo", "VmallocUsed") +
			read_key("/proc/meminfo", "Percpu"),
		.charged = read_key(CGROUP "/guest_memfd_bench/memory.stat", "kernel"),
	};
}

static void memory_rows(struct kernel_memory a, struct kernel_memory b, u64 factor,
			const char *id, const char *label)
{
	const char *size = size_name(args.size);
	struct cost used = single(b.used - min(a.used, b.used));
	struct cost charged = single(b.charged - min(a.charged, b.charged));

	row(scaled(used, factor), "bytes", name("memory-%s-%s", id, size), NULL,
	    "memory of the map, %s, %s", size, label);
	row(scaled(charged, factor), "bytes", name("memcg-%s-%s", id, size), NULL,
	    "... charged to the memory cgroup");
}

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

/* ---- Single pages, after scattered changes ---- */

struct scatter {
	struct bench b;

	/* A VM whose type has no private memory: it looks nothing up. */
	struct bench bare;

	struct kvm_random_state random;
	unsigned long *taken;
	u64 nr;

	/* "after N changes" */
	char after[48];
};

/* A page that is shared still. */
static u64 random_free_page(struct scatter *s)
{
	u64 first = RESERVED / PAGE_SIZE, page;

	do {
		page = first + kvm_random_u64(&s->random) %
			       (args.size / PAGE_SIZE - first);
	} while (s->taken[page / 64] & BIT(page % 64));

	return page;
}

static void scatter_to(struct scatter *s, u64 nr)
{
	u64 page;

	at("%lu scattered changes", nr);
	for (; s->nr < nr; s->nr++) {
		page = random_free_page(s);
		s->taken[page / 64] |= BIT(page % 64);
		set_attrs(&s->b, page * PAGE_SIZE, PAGE_SIZE, PRIVATE);
	}
	snprintf(s->after, sizeof(s->after), "after %lu change%s", nr, nr == 1 ? "" : "s");
}

static void change_rows(struct scatter *s)
{
	static struct samples private, again, shared;
	u64 i, offset;

	at("a change of 4 KiB %s", s->after);
	for (i = 0; i < args.repeats; i++) {
		offset = random_free_page(s) * PAGE_SIZE;
		sample(&private, TICKS(set_attrs(&s->b, offset, PAGE_SIZE, PRIVATE)));
		sample(&again, TICKS(set_attrs(&s->b, offset, PAGE_SIZE, PRIVATE)));
		sample(&shared, TICKS(set_attrs(&s->b, offset, PAGE_SIZE, SHARED)));
	}
	row(median(&private), unit, name("change-private-%lu", s->nr), NULL,
	    "4 KiB to private, %s", s->after);
	row(median(&shared), unit, name("change-shared-%lu", s->nr), NULL,
	    "4 KiB to shared, %s", s->after);
	row(median(&again), unit, name("change-none-%lu", s->nr), NULL,
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
	row(private, unit, name("fault-private-%lu", s->nr), NULL,
	    "one guest fault, private page, %s", s->after);
	row(shared, unit, name("fault-shared-%lu", s->nr), NULL,
	    "one guest fault, shared page, %s", s->after);
	row(bare, unit, name("fault-bare-%lu", s->nr), NULL,
	    "... of a VM without private memory");
	row(single(shared.value - min(shared.value, bare.value)), unit,
	    name("look-up-%lu", s->nr), NULL, "... difference: the look-ups");
}

static void slot_rows(struct scatter *s)
{
	struct cost create, delete;

	at("a slot %s", s->after);
	delete = single(TICKS(delete_slot(&s->b)));
	create = single(TICKS(bind_slot(&s->b)));
	row(create, unit, name("create-mixed-%lu", s->nr), NULL,
	    "create a slot of %s, %s", size_name(args.size), s->after);
	row(delete, unit, name("delete-mixed-%lu", s->nr), NULL, "delete it");
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
	*s = (struct scatter) { .random = new_kvm_random_state(1) };
	s->taken = calloc(args.size / PAGE_SIZE / 64, sizeof(*s->taken));
	TEST_ASSERT(s->taken, "No memory");

	new_guest(&s->bare, VM_TYPE_DEFAULT, RESERVED);
	s->bare.size = args.size;
	s->bare.mem = map_sparse(args.size);
	bind_slot(&s->bare);

	new_guest(&s->b, KVM_X86_SW_PROTECTED_VM, RESERVED);
	open_two_backings(&s->b, args.size);
	bind_slot(&s->b);
}

static void scatter_group(void)
{
	const u64 levels[] = { 1, args.scattered / 100, args.scattered };
	struct scatter s;
	int i;

	ioctl_row();
	fresh_row();
	open_scatter(&s);
	for (i = 0; i < ARRAY_SIZE(levels); i++) {
		if (levels[i] <= s.nr)
			continue;
		scatter_to(&s, levels[i]);
		change_rows(&s);
		fault_rows(&s);
	}
	slot_rows(&s);
	close_bench(&s.b);
	close_bench(&s.bare);
	free(s.taken);
}

/* ---- The most memory that the map can need ---- */

static void worst_group(void)
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

/* ---- Files ---- */

struct kind {
	const char *id;
	const char *label;
	bool inplace;
	u64 flags;
};

static const struct kind kinds[] = {
	{ "two", "two backings", false, 0 },
	{ "inplace", "in place", true, GUEST_MEMFD_FLAG_MMAP },
	{ "huge", "in place, huge", true, GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_HUGE },
};

static bool has_kind(const struct kind *k)
{
	if (k->flags & GUEST_MEMFD_FLAG_HUGE)
		return has_huge;
	return !k->inplace || has_inplace;
}

/* The row of the kind that every kernel has, which does the same job. */
static const char *against(const struct kind *k, const char *what)
{
	return k->inplace ? name("two-%s", what) : NULL;
}

static void open_kind(struct bench *b, const struct kind *k, u64 size)
{
	if (k->inplace)
		open_inplace(b, size, k->flags);
	else
		open_two_backings(b, size);
	bind_slot(b);
}

/* What one round of the life of a file, or of a cold guest, took. */
#define FILE_ROUNDS	3

struct life {
	struct samples create;
	struct samples fill;
	struct samples hole;
	struct samples end;
};

static void live(const struct kind *k, struct life *l)
{
	struct bench b = { .vm = new_vm(), .fd = -1 };
	int fd;

	sample(&l->create,
	       TICKS(fd = vm_create_guest_memfd(b.vm, args.file, k->flags)));
	kvm_close(fd);

	open_kind(&b, k, args.file);
	sample(&l->fill, TICKS(kvm_fallocate(b.fd, ALLOCATE, 0, args.file)));
	sample(&l->hole, TICKS(kvm_fallocate(b.fd, PUNCH, 0, args.file)));
	kvm_fallocate(b.fd, ALLOCATE, 0, args.file);
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
	for (i = 0; i < FILE_ROUNDS; i++)
		live(k, &l);

	row(median(&l.create), unit, name("%s-create", k->id), against(k, "create"),
	    "create a file, %s", k->label);
	row(median(&l.fill), unit, name("%s-fallocate", k->id), against(k, "fallocate"),
	    "fallocate %s, %s", size, k->label);
	row(median(&l.hole), unit, name("%s-punch", k->id), against(k, "punch"),
	    "punch %s, %s", size, k->label);
	row(median(&l.end), unit, name("%s-teardown", k->id), against(k, "teardown"),
	    "tear a VM with %s down, %s", size, k->label);
}

/* A guest all of whose memory is private, and absent. */
static void new_private_guest(struct bench *b, const struct kind *k)
{
	new_guest(b, KVM_X86_SW_PROTECTED_VM, args.touch);
	open_kind(b, k, args.touch);
	if (!k->inplace)
		set_attrs(b, 0, args.touch, PRIVATE);
}

static void pre_fault(struct bench *b)
{
	struct kvm_pre_fault_memory range = { .gpa = GPA, .size = args.touch };
	int r;

	do {
		r = __vcpu_ioctl(b->vcpu, KVM_PRE_FAULT_MEMORY, &range);
		TEST_ASSERT(!r || errno == EINTR, "Pre-fault: %s", strerror(errno));
	} while (range.size);
}

static void cold_rows(const struct kind *k)
{
	static struct samples cold, exits, pre;
	const char *size = size_name(args.touch);
	struct bench b;
	u64 before;
	int i;

	at("private memory, cold, %s", k->label);
	for (i = 0; i < FILE_ROUNDS; i++) {
		new_private_guest(&b, k);
		before = vcpu_get_stat(b.vcpu, exits);
		sample(&cold, TICKS(touch(&b, 0, args.touch)));
		sample(&exits, vcpu_get_stat(b.vcpu, exits) - before);
		close_bench(&b);

		new_private_guest(&b, k);
		sample(&pre, TICKS(pre_fault(&b)));
		close_bench(&b);
	}
	row(zeroing(median(&cold), args.touch), unit, name("%s-cold", k->id),
	    against(k, "cold"), "guest touches %s, %s", size, k->label);
	row(median(&exits), "exits", name("%s-exits", k->id), against(k, "exits"),
	    "... exits");
	row(zeroing(median(&pre), args.touch), unit, name("%s-pre-fault", k->id),
	    against(k, "pre-fault"), "KVM_PRE_FAULT_MEMORY of %s, %s", size, k->label);
}

static void file_group(void)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(kinds); i++) {
		if (!has_kind(&kinds[i]))
			continue;
		life_rows(&kinds[i]);
		cold_rows(&kinds[i]);
	}
}

/* ---- Conversion of memory that is present and mapped in the guest ---- */

/* Neighbours of the other state, as a running guest has them. */
#define CONVERT_AT	WINDOW

static const struct content {
	const char *id;
	u64 flags;
	bool zeroes;
} contents[] = {
	{ "preserve", KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE, false },
	{ "zero", KVM_SET_MEMORY_ATTRIBUTES2_ZERO, true },
	{ "discard", KVM_SET_MEMORY_ATTRIBUTES2_DISCARD, true },
};

/* The memory is the guest's again when it has touched all of it. */
static void change_inplace(struct bench *b, u64 size, u64 attrs, u64 flags)
{
	convert(b, CONVERT_AT, size, attrs, flags);
	touch(b, CONVERT_AT, size);
}

/* The other half goes, or the memory would be paid for twice. */
static void change_two_backings(struct bench *b, u64 size, u64 attrs)
{
	set_attrs(b, CONVERT_AT, size, attrs);
	if (attrs & PRIVATE)
		kvm_madvise(b->mem + CONVERT_AT, size, MADV_DONTNEED);
	else
		kvm_fallocate(b->fd, PUNCH, CONVERT_AT, size);
	touch(b, CONVERT_AT, size);
}

static void change(struct bench *b, u64 size, u64 attrs, u64 flags)
{
	if (b->inplace)
		change_inplace(b, size, attrs, flags);
	else
		change_two_backings(b, size, attrs);
}

static void convert_rows(struct bench *b, u64 size, const struct kind *k,
			 const struct content *c)
{
	u64 rounds = min(max(args.touch / size / 4, 2ul), 64ul), i;
	static struct samples private, shared;
	const char *bytes = size_name(size);
	const char *id = c ? name("%s-%s", k->id, c->id) : k->id;
	u64 flags = c ? c->flags : 0;
	u64 zeroed = !c || c->zeroes ? size : 0;
	char how[64];

	snprintf(how, sizeof(how), "%s%s%s", k->label, c ? ", " : "", c ? c->id : "");
	at("convert %s, %s", bytes, how);
	for (i = 0; i <= rounds; i++) {
		u64 to_private = TICKS(change(b, size, PRIVATE, flags));
		u64 to_shared = TICKS(change(b, size, SHARED, flags));

		/* The first finds memory that was never used. */
		if (!i)
			continue;
		sample(&private, to_private);
		sample(&shared, to_shared);
	}
	row(zeroing(median(&private), zeroed), unit, name("%s-private-%s", id, bytes),
	    c ? name("two-private-%s", bytes) : NULL,
	    "%s to private, %s", bytes, how);
	row(zeroing(median(&shared), zeroed), unit, name("%s-shared-%s", id, bytes),
	    c ? name("two-shared-%s", bytes) : NULL,
	    "%s to shared, %s", bytes, how);
}

/*
 * Each size has a file of its own: what the conversion of a page leaves of large
 * folios must not be what the conversion of more begins with.
 */
static void convert_size(const struct kind *k, const struct content *c, u64 size)
{
	struct bench b;

	new_guest(&b, KVM_X86_SW_PROTECTED_VM, CONVERT_AT + args.touch);
	if (k->inplace)
		open_inplace(&b, CONVERT_AT + args.touch,
			     k->flags | GUEST_MEMFD_FLAG_INIT_SHARED);
	else
		open_two_backings(&b, CONVERT_AT + args.touch);
	bind_slot(&b);

	if (k->inplace)
		convert(&b, 0, PAGE_SIZE, PRIVATE, 0);
	else
		set_attrs(&b, 0, PAGE_SIZE, PRIVATE);
	convert_rows(&b, size, k, c);
	close_bench(&b);
}

static void convert_sizes(const struct kind *k, const struct content *c)
{
	const u64 sizes[] = { PAGE_SIZE, SZ_2M, args.touch };
	int i;

	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		if (i && sizes[i] <= sizes[i - 1])
			continue;
		convert_size(k, c, sizes[i]);
	}
}

static void convert_group(void)
{
	int i, j;

	for (i = 0; i < ARRAY_SIZE(kinds); i++) {
		if (!has_kind(&kinds[i]))
			continue;
		if (!kinds[i].inplace)
			convert_sizes(&kinds[i], NULL);
		for (j = 0; kinds[i].inplace && j < ARRAY_SIZE(contents); j++)
			convert_sizes(&kinds[i], &contents[j]);
	}
}

/* ---- Which groups, how large ---- */

static void attr_group(void)
{
	range_group(false);
}

static void slot_group(void)
{
	range_group(true);
}

static const struct group {
	const char *name;
	void (*fn)(void);
	const char *title;
} groups[] = {
	{ "attr", attr_group, "KVM_SET_MEMORY_ATTRIBUTES, whole ranges; memory of the map" },
	{ "slot", slot_group, "The same with a bound slot" },
	{ "scatter", scatter_group, "Single pages of a bound slot, after scattered changes" },
	{ "worst", worst_group, "Memory of the map, worst case" },
	{ "file", file_group, "Files; private memory that the guest touches first" },
	{ "convert", convert_group, "Change sides: mapped before, and touched by the guest after" },
};

static bool is_selected(const char *group)
{
	const char *word = args.only;
	size_t len = strlen(group);

	if (!word)
		return true;

	for (; word; word = strchr(word, ','), word += !!word)
		if (!strncmp(word, group, len) && (!word[len] || word[len] == ','))
			return true;
	return false;
}

static void show_help(const char *program)
{
	int i;

	printf("usage: %s [-s size] [-l size] [-n changes] [-w size] [-m size] [-f size]\n"
	       "          [-r repeats] [-b budget] [-o group,...]\n\n"
	       "Sizes are powers of two, as 64G.\n"
	       " -s: guest whose attributes change\n"
	       " -l: a very large one\n"
	       " -n: scattered changes before a single one is measured (1, n/100, n)\n"
	       " -w: memory of which every other page is private\n"
	       " -m: memory that the guest touches and converts\n"
	       " -f: memory that is allocated and punched\n"
	       " -r: repeats of what is short\n"
	       " -b: millions of ticks that a change of a whole range may take; one\n"
	       "     that would take longer is measured on less, and multiplied\n"
	       " -o: only these groups:", program);
	for (i = 0; i < ARRAY_SIZE(groups); i++)
		printf(" %s", groups[i].name);
	printf("\n");
}

static u64 size_arg(const char *text)
{
	u64 size = parse_size(text);

	TEST_ASSERT(size >= SZ_2M && !(size & (size - 1)),
		    "\"%s\" is no power of two, or less than 2M", text);
	return size;
}

static bool set_option(int opt)
{
	switch (opt) {
	case 's':
		args.size = size_arg(optarg);
		return true;
	case 'l':
		args.huge = size_arg(optarg);
		return true;
	case 'n':
		args.scattered = atoi_positive("changes", optarg);
		return true;
	case 'w':
		args.worst = size_arg(optarg);
		return true;
	case 'm':
		args.touch = size_arg(optarg);
		return true;
	case 'f':
		args.file = size_arg(optarg);
		return true;
	case 'r':
		args.repeats = min_t(u64, atoi_positive("repeats", optarg), MAX_SAMPLES);
		return true;
	case 'b':
		args.budget = atoi_positive("budget", optarg) * 1000000ul;
		return true;
	case 'o':
		args.only = optarg;
		return true;
	}
	return false;
}

int main(int argc, char *argv[])
{
	struct utsname uts;
	int opt, i;

	while ((opt = getopt(argc, argv, "hs:l:n:w:m:f:r:b:o:")) != -1) {
		if (!set_option(opt)) {
			show_help(argv[0]);
			return opt == 'h' ? 0 : KSFT_FAIL;
		}
	}
	TEST_ASSERT(args.size >= SZ_1G && args.worst <= args.size,
		    "The guest has a GiB at least, and not less than the worst case");

	TEST_REQUIRE(kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM));
	has_inplace = kvm_check_cap(KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES) & PRIVATE;
	has_huge = kvm_check_cap(KVM_CAP_GUEST_MEMFD_FLAGS) & GUEST_MEMFD_FLAG_HUGE;

	setvbuf(stdout, NULL, _IOLBF, 0);
	uname(&uts);
	printf("info\tkernel\t%s %s\n", uts.release, uts.version);
	printf("info\tinplace\t%s\n", has_inplace ? "yes" : "no");
	clock_init();
	zero_row();
	enter_cgroup();
	for (i = 0; i < ARRAY_SIZE(groups); i++) {
		if (!is_selected(groups[i].name))
			continue;
		printf("group\t%s\n", groups[i].title);
		groups[i].fn();
	}
	leave_cgroup();
	return 0;
}
