// SPDX-License-Identifier: GPL-2.0-only
/*
 * guest_memfd_bench: the clock, what is printed, the VMs that are measured, and the
 * memory that the kernel uses for itself.
 */
#include <fcntl.h>
#include <glob.h>
#include <sys/stat.h>

#include "guest_memfd_bench.h"

/* ---- The clock ---- */

/* Two instructions a turn. */
#define CLOCK_LOOPS	1000000ul

/* What reading it twice shows. */
u64 clock_cost;
bool clock_counts_instructions;
const char *unit;

static u64 clock_loop(void)
{
	u64 n = CLOCK_LOOPS;

	return TICKS(asm volatile("1: dec %0; jnz 1b" : "+r"(n) : : "cc"));
}

/* An interrupt can only make a loop longer: the shortest is the true one. */
void clock_init(void)
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

void sample(struct samples *s, u64 ticks)
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
struct cost median(struct samples *s)
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

struct cost single(u64 value)
{
	return (struct cost) {
		.value = value, .min = value, .max = value, .nr = 1, .factor = 1,
	};
}

struct cost scaled(struct cost c, u64 factor)
{
	c.value *= factor;
	c.min *= factor;
	c.max *= factor;
	c.factor *= factor;
	return c;
}

struct cost zeroing(struct cost c, u64 size)
{
	c.zeroed = size / PAGE_SIZE;
	return c;
}

#define NR_BUFS		8

/* A few buffers in turn, as a line has several. */
const char *size_name(u64 size)
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
const char *name(const char *fmt, ...)
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

void row(struct cost c, const char *in, const char *id, const char *against,
	 const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	printf("row\t%s\t%lu\t%s\t%lu\t%lu\t%lu\t%u\t%lu\t%s\t", id, c.value, in,
	       c.factor, c.min, c.max, c.nr, c.zeroed, against ?: "-");
	vprintf(fmt, ap);
	printf("\n");
	va_end(ap);
}

void at(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	printf("at\t");
	vprintf(fmt, ap);
	printf("\n");
	va_end(ap);
}

/* What the kernel does for each page that it hands out. */
void zero_row(void)
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

struct kvm_vm *new_vm(void)
{
	return vm_create_barebones_type(KVM_X86_SW_PROTECTED_VM);
}

void bind_slot(struct bench *b)
{
	u32 flags = b->fd >= 0 ? KVM_MEM_GUEST_MEMFD : 0;

	vm_set_user_memory_region2(b->vm, SLOT, flags, GPA, b->size, b->mem,
				   max(b->fd, 0), 0);
}

void delete_slot(struct bench *b)
{
	u32 flags = b->fd >= 0 ? KVM_MEM_GUEST_MEMFD : 0;

	vm_set_user_memory_region2(b->vm, SLOT, flags, GPA, 0, b->mem,
				   max(b->fd, 0), 0);
}

/* Sparse: nothing is allocated but what somebody touches. */
void *map_sparse(u64 size)
{
	return kvm_mmap(size, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
}

/* Two backings: a file for the private half, @mem for the shared one. */
void open_two_backings(struct bench *b, u64 size)
{
	b->size = size;
	b->mem = map_sparse(size);
	b->fd = vm_create_guest_memfd(b->vm, size, 0);
}

/* One backing.  Nobody maps it, as the guest alone is measured. */
void open_inplace(struct bench *b, u64 size, u64 flags)
{
	b->size = size;
	b->inplace = true;
	b->fd = vm_create_guest_memfd(b->vm, size, flags);
}

void close_bench(struct bench *b)
{
	if (b->vm)
		kvm_vm_free(b->vm);
	if (b->mem)
		kvm_munmap(b->mem, b->size);
	if (b->fd >= 0)
		kvm_close(b->fd);
}

/* EAGAIN may be spurious, and has changed nothing. */
void convert(struct bench *b, u64 offset, u64 size, u64 attrs, u64 flags)
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

void set_attrs(struct bench *b, u64 offset, u64 size, u64 attrs)
{
	vm_set_memory_attributes(b->vm, GPA + offset, size, attrs);
}

/* Which half is live, without a word on what becomes of the other. */
void set_state(struct bench *b, u64 offset, u64 size, u64 attrs, u64 flags)
{
	if (b->inplace)
		convert(b, offset, size, attrs, flags);
	else
		set_attrs(b, offset, size, attrs);
}

/* ---- Kinds of memory ---- */

const struct kind kinds[NR_KINDS] = {
	{ "two", "two backings", false, 0 },
	{ "inplace", "in place", true, GUEST_MEMFD_FLAG_MMAP },
	{ "huge", "in place, huge", true, GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_HUGE },
};

bool has_kind(const struct kind *k)
{
	if (k->flags & GUEST_MEMFD_FLAG_HUGE)
		return has_huge;
	return !k->inplace || has_inplace;
}

/* The row of the kind that every kernel has, which does the same job. */
const char *against(const struct kind *k, const char *what)
{
	return k->inplace ? name("two-%s", what) : NULL;
}

/* @flags: more of a file that converts in place. */
void open_kind(struct bench *b, const struct kind *k, u64 size, u64 flags)
{
	if (k->inplace)
		open_inplace(b, size, k->flags | flags);
	else
		open_two_backings(b, size);
	bind_slot(b);
}

/* ---- The guest: touch pages, one word each, and say so ---- */

/* The guest's copy counts. */
static struct guest_job {
	u64 gva;
	u64 nr;
} guest_jobs[MAX_VCPUS];

static void guest_code(u64 cpu)
{
	struct guest_job *job = &guest_jobs[cpu];
	u64 i;

	for (;;) {
		for (i = 0; i < READ_ONCE(job->nr); i++)
			WRITE_ONCE(*(u64 *)(job->gva + i * PAGE_SIZE), i);
		/* The cheapest exit to user space. */
		asm volatile("outb %%al, $0x80" : : "a"(0) : "memory");
	}
}

/* What a vCPU does when it runs next. */
void give_job(struct bench *b, int cpu, u64 offset, u64 size)
{
	b->jobs[cpu].gva = GPA + offset;
	b->jobs[cpu].nr = size / PAGE_SIZE;
}

void run_vcpu(struct bench *b, int cpu)
{
	vcpu_run(b->vcpus[cpu]);
	TEST_ASSERT_KVM_EXIT_REASON(b->vcpus[cpu], KVM_EXIT_IO);
}

void touch(struct bench *b, u64 offset, u64 size)
{
	give_job(b, 0, offset, size);
	run_vcpu(b, 0);
}

/* The guest maps @mapped bytes of the slot.  Its own start is not measured. */
void new_guest_vcpus(struct bench *b, u32 type, u64 mapped, int nr_vcpus)
{
	const struct vm_shape shape = { .mode = VM_MODE_DEFAULT, .type = type };
	int i;

	*b = (struct bench) { .fd = -1 };
	b->vm = __vm_create_with_vcpus(shape, nr_vcpus, 0, guest_code, b->vcpus);
	b->jobs = addr_gva2hva(b->vm, (gva_t)guest_jobs);
	virt_map_level(b->vm, GPA, GPA, mapped, PG_LEVEL_2M);
	for (i = 0; i < nr_vcpus; i++) {
		vcpu_args_set(b->vcpus[i], 1, (u64)i);
		give_job(b, i, 0, 0);
		run_vcpu(b, i);
	}
}

void new_guest(struct bench *b, u32 type, u64 mapped)
{
	new_guest_vcpus(b, type, mapped, 1);
}

/* A guest all of whose memory, of which there is none yet, is private. */
void new_private_guest(struct bench *b, const struct kind *k, u64 size, int nr_vcpus)
{
	new_guest_vcpus(b, KVM_X86_SW_PROTECTED_VM, size, nr_vcpus);
	open_kind(b, k, size, 0);
	if (!k->inplace)
		set_attrs(b, 0, size, PRIVATE);
}

/* ---- Scattered changes ---- */

/* Of the pages from @reserved on: those before are for who measures. */
void open_scattered(struct scattered *s, u64 reserved)
{
	*s = (struct scattered) {
		.random = new_kvm_random_state(1),
		.first = reserved / PAGE_SIZE,
	};
	s->taken = calloc(args.size / PAGE_SIZE / 64, sizeof(*s->taken));
	TEST_ASSERT(s->taken, "No memory");
}

/* A page that has not changed yet. */
u64 random_free_page(struct scattered *s)
{
	u64 page;

	do {
		page = s->first + kvm_random_u64(&s->random) %
				  (args.size / PAGE_SIZE - s->first);
	} while (s->taken[page / 64] & BIT(page % 64));

	return page;
}

void scatter_to(struct scattered *s, struct bench *b, u64 nr)
{
	u64 page;

	at("%lu scattered changes", nr);
	for (; s->nr < nr; s->nr++) {
		page = random_free_page(s);
		s->taken[page / 64] |= BIT(page % 64);
		set_state(b, page * PAGE_SIZE, PAGE_SIZE, PRIVATE, 0);
	}
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
void enter_cgroup(void)
{
	write_text(CGROUP "/cgroup.subtree_control", "+memory");
	mkdir(CGROUP "/guest_memfd_bench", 0755);
	write_text(CGROUP "/guest_memfd_bench/cgroup.procs", "0");
}

void leave_cgroup(void)
{
	write_text(CGROUP "/cgroup.procs", "0");
	rmdir(CGROUP "/guest_memfd_bench");
}

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
struct kernel_memory kernel_memory(void)
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

void memory_rows(struct kernel_memory a, struct kernel_memory b, u64 factor,
		 const char *id, const char *label)
{
	const char *size = size_name(args.size);
	struct cost used = single(b.used - min(a.used, b.used));
	struct cost charged = single(b.charged - min(a.charged, b.charged));

	row(scaled(used, factor), "bytes", name("memory-%s-%s", id, size), NULL,
	    "memory of the map, %s, %s", size, label);
	row(scaled(charged, factor), "bytes", name("memcg-%s-%s", id, size), NULL,
	    "... in the memory cgroup, %s, %s", size, label);
}

/* From now on the group's peak counts anew.  Returns whom to ask, -1 if there is none. */
int reset_peak(void)
{
	int fd = open(CGROUP "/guest_memfd_bench/memory.peak", O_RDWR);

	if (fd >= 0 && write(fd, "1", 1) == 1)
		return fd;
	if (fd >= 0)
		close(fd);
	return -1;
}

u64 read_peak(int fd)
{
	char text[32] = "";

	TEST_ASSERT(pread(fd, text, sizeof(text) - 1, 0) > 0, "memory.peak: %s",
		    strerror(errno));
	return strtoull(text, NULL, 10);
}
