// SPDX-License-Identifier: GPL-2.0-only
/*
 * guest_memfd outside the kernel's direct map: the host kernel cannot read the memory,
 * nor hand it to anyone who would, and users and guests use it as any other.
 *
 * /proc/kcore shows what the kernel can read: zeros where it has no mapping.
 */
#include "gmem_util.h"
#include "kvm_test_harness.h"

#include <linux/elf.h>
#include <linux/perf_event.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#ifdef __x86_64__
#include <asm/pvclock-abi.h>
#endif

/* Page i holds VAL + i; OTHER is what the next writer leaves there. */
#define VAL		0x1122334455660000ul
#define OTHER		0x99aabbccddee0000ul

#define HIDDEN		GUEST_MEMFD_FLAG_NO_DIRECT_MAP
#define WRITE		GUEST_MEMFD_FLAG_WRITE
#define HUGE		GUEST_MEMFD_FLAG_HUGE
#define SHARED		(GMEM_SHARED_FILE | HIDDEN | WRITE)

#define NR		16ul

/* Pages of a block, i.e. entries of a table of 8 bytes each. */
#define BLOCK		(PAGE_SIZE / 8)
#define NR_MAPPED	(2 * BLOCK)

static void setup(struct kvm_vm **vm, struct kvm_vcpu **vcpu, bool protected)
{
	gmem_page_size = getpagesize();
	gmem_test_init();

#ifdef __x86_64__
	if (protected)
		*vm = gmem_vm_create(1, gmem_guest_server, vcpu);
	else
#endif
		*vm = vm_create_with_one_vcpu(vcpu, gmem_guest_server);

	sync_global_to_guest(*vm, gmem_page_size);
	vcpu_args_set(*vcpu, 1, 0);
	virt_map(*vm, GMEM_GPA, GMEM_GPA, NR_MAPPED);
}

static bool offered(struct kvm_vm *vm, u64 flags)
{
	return (vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_FLAGS) & flags) == flags;
}

FIXTURE(direct_map) {
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
};

FIXTURE_SETUP(direct_map)
{
	setup(&self->vm, &self->vcpu, false);
	if (!offered(self->vm, HIDDEN))
		SKIP(return, "The direct map can't be changed");
}

FIXTURE_TEARDOWN(direct_map)
{
	TEST_ASSERT_EQ(vm_get_stat(self->vm, gmem_pages_shared), 0);
	TEST_ASSERT_EQ(vm_get_stat(self->vm, gmem_pages_private), 0);
	kvm_vm_free(self->vm);
}

#define HIDDEN_TEST(name)	TEST_F_TIMEOUT(direct_map, name, GMEM_TIMEOUT_S)

/* ---- What the kernel can read ---- */

/* The physical address of what is mapped, and present, at @p. */
static u64 physical(void *p)
{
	int fd = open("/proc/self/pagemap", O_RDONLY);
	u64 entry;

	TEST_ASSERT(fd >= 0, "pagemap: %s", strerror(errno));
	READ_ONCE(*(u64 *)p);
	TEST_ASSERT(pread(fd, &entry, sizeof(entry), (u64)p / PAGE_SIZE * 8) == sizeof(entry),
		    "pagemap: %s", strerror(errno));
	close(fd);
	TEST_ASSERT(entry >> 63, "Nothing is mapped at %p", p);
	return (entry & ((1ull << 55) - 1)) * PAGE_SIZE;
}

/* The first word at physical address @pa by the direct map; zero if that has none. */
static u64 kernel_reads(u64 pa)
{
	int fd = open("/proc/kcore", O_RDONLY);
	struct elf64_phdr phdr;
	struct elf64_hdr ehdr;
	u64 val;
	int i;

	TEST_ASSERT(fd >= 0, "/proc/kcore: %s", strerror(errno));
	TEST_ASSERT(pread(fd, &ehdr, sizeof(ehdr), 0) == sizeof(ehdr), "ELF header");

	for (i = 0; i < ehdr.e_phnum; i++) {
		TEST_ASSERT(pread(fd, &phdr, sizeof(phdr), ehdr.e_phoff + i * sizeof(phdr)) ==
			    sizeof(phdr), "Program header %d", i);
		if (phdr.p_type != PT_LOAD || pa < phdr.p_paddr ||
		    pa - phdr.p_paddr >= phdr.p_memsz)
			continue;

		TEST_ASSERT(pread(fd, &val, sizeof(val), phdr.p_offset + pa - phdr.p_paddr) ==
			    sizeof(val), "Reading 0x%lx: %s", pa, strerror(errno));
		close(fd);
		return val;
	}

	TEST_FAIL("/proc/kcore doesn't have 0x%lx", pa);
	return 0;
}

#define expect_hidden(pa)							\
do {										\
	u64 __pa = (pa), __got = kernel_reads(__pa);				\
										\
	TEST_ASSERT(!__got, "The kernel reads 0x%lx at 0x%lx", __got, __pa);	\
} while (0)

#define expect_visible(pa, val)							\
do {										\
	u64 __pa = (pa), __want = (val), __got = kernel_reads(__pa);		\
										\
	TEST_ASSERT(__got == __want, "The kernel reads 0x%lx at 0x%lx, want 0x%lx", \
		    __got, __pa, __want);					\
} while (0)

/* Without the flag the same pages are there for all to read, or this proves nothing. */
static void who_reads(struct kvm_vm *vm, struct kvm_vcpu *vcpu, u64 nr, u64 flags)
{
	struct gmem g;
	u64 i;

	gmem_new(&g, vm, nr, flags & ~HIDDEN);
	gmem_host_fill(&g, 0, nr, VAL);
	for (i = 0; i < nr; i += nr / 8)
		expect_visible(physical(g.mem + i * PAGE_SIZE), VAL + i);
	gmem_destroy(&g);

	gmem_new(&g, vm, nr, flags);
	gmem_host_fill(&g, 0, nr / 2, VAL);
	gmem_guest_fill(vcpu, &g, nr / 2, nr / 2, VAL + nr / 2);
	for (i = 0; i < nr; i += nr / 8)
		expect_hidden(physical(g.mem + i * PAGE_SIZE));
	gmem_host_check(&g, 0, nr, VAL);
	gmem_guest_check_fill(vcpu, &g, 0, nr, VAL);
	gmem_destroy(&g);
}

HIDDEN_TEST(pages)
{
	who_reads(self->vm, self->vcpu, NR, SHARED);
}

HIDDEN_TEST(large_pages)
{
	if (!offered(self->vm, HUGE))
		SKIP(return, "No large folios in guest_memfd");

	who_reads(self->vm, self->vcpu, 2 * BLOCK, SHARED | HUGE);
}

/* What comes by write(), fallocate() and pre-faults is as hidden as what is touched. */
HIDDEN_TEST(filled)
{
	u8 *src = kvm_mmap(NR * PAGE_SIZE, PROT_READ | PROT_WRITE,
			   MAP_ANONYMOUS | MAP_PRIVATE, -1);
	struct gmem g;
	u64 i;

	for (i = 0; i < NR; i++)
		gmem_fill_words((u64 *)(src + i * PAGE_SIZE), VAL + i);

	gmem_new(&g, self->vm, NR, SHARED);
	TEST_ASSERT_EQ(pwrite(g.fd, src, 8 * PAGE_SIZE, 0), 8 * PAGE_SIZE);
	gmem_allocate(&g, 8, 8);
	for (i = 0; i < 8; i++)
		expect_hidden(physical(g.mem + i * PAGE_SIZE));
	gmem_host_check(&g, 0, 8, VAL);
	gmem_host_check_zero(&g, 8, 8);
	gmem_host_fill(&g, 8, 8, VAL + 8);
	expect_hidden(physical(g.mem + 9 * PAGE_SIZE));

	/* A page that loses to one that is there stays out of harm's way. */
	TEST_ASSERT(pwrite(g.fd, src, PAGE_SIZE, 0) == -1 && errno == EEXIST, "pwrite()");
	gmem_destroy(&g);
	kvm_munmap(src, NR * PAGE_SIZE);
}

/* Single pages of a block go and come, the rest stays as it is. */
static void pieces(struct kvm_vm *vm, struct kvm_vcpu *vcpu, u64 flags)
{
	u64 pa, page;
	struct gmem g;

	gmem_new(&g, vm, 2 * BLOCK, flags);
	gmem_host_fill(&g, 0, 2 * BLOCK, VAL);
	for (page = 3; page < 2 * BLOCK; page += BLOCK / 4) {
		pa = physical(g.mem + (page + 1) * PAGE_SIZE);
		gmem_punch(&g, page, 1);
		expect_hidden(pa);
		gmem_host_fill(&g, page, 1, OTHER);
		expect_hidden(physical(g.mem + page * PAGE_SIZE));
		gmem_host_check(&g, page - 1, 1, VAL + page - 1);
		gmem_host_check(&g, page + 1, 1, VAL + page + 1);
		gmem_guest_check_fill(vcpu, &g, page + 1, 1, VAL + page + 1);
	}
	gmem_destroy(&g);
}

HIDDEN_TEST(pieces)
{
	pieces(self->vm, self->vcpu, SHARED);
}

HIDDEN_TEST(large_pieces)
{
	if (!offered(self->vm, HUGE))
		SKIP(return, "No large folios in guest_memfd");

	pieces(self->vm, self->vcpu, SHARED | HUGE);
}

/* ---- What it costs ---- */

/* A counter of this task's flushes of the direct map, or -1. */
static int count_flushes(void)
{
	struct perf_event_attr attr = {
		.size = sizeof(attr),
		.kprobe_func = (u64)"arch_flush_direct_map",
	};
	FILE *f = fopen("/sys/bus/event_source/devices/kprobe/type", "r");
	int fd = -1;

	if (f && fscanf(f, "%u", &attr.type) == 1)
		fd = syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0);
	if (f)
		fclose(f);
	return fd;
}

static u64 nr_flushes(int counter)
{
	u64 nr;

	TEST_ASSERT_EQ(read(counter, &nr, sizeof(nr)), sizeof(nr));
	return nr;
}

/*
 * However 4 KiB pages come into the file: each flush is for 2 MiB of them.  What leaves is
 * in no TLB, hence never flushed.
 */
HIDDEN_TEST(flushes)
{
	u8 *src = kvm_mmap(BLOCK * PAGE_SIZE, PROT_READ | PROT_WRITE,
			   MAP_ANONYMOUS | MAP_PRIVATE, -1);
	int counter = count_flushes();
	struct gmem g;

	/* Each NUMA node has blocks of its own. */
	pin_self_to_any_cpu();
	if (counter < 0)
		SKIP(return, "No kprobes");

	gmem_new(&g, self->vm, NR_MAPPED + 2 * BLOCK, SHARED);
	gmem_host_fill(&g, 0, BLOCK, VAL);
	TEST_ASSERT_EQ(nr_flushes(counter), 1);
	gmem_guest_fill(self->vcpu, &g, BLOCK, BLOCK, VAL + BLOCK);
	TEST_ASSERT_EQ(nr_flushes(counter), 2);
	TEST_ASSERT_EQ(pwrite(g.fd, src, BLOCK * PAGE_SIZE, 2 * BLOCK * PAGE_SIZE),
		       BLOCK * PAGE_SIZE);
	TEST_ASSERT_EQ(nr_flushes(counter), 3);
	gmem_allocate(&g, 3 * BLOCK, BLOCK);
	TEST_ASSERT_EQ(nr_flushes(counter), 4);
	gmem_host_check(&g, 0, 2 * BLOCK, VAL);
	gmem_host_check_zero(&g, 2 * BLOCK, 2 * BLOCK);

	gmem_punch(&g, BLOCK / 2, BLOCK);
	gmem_punch(&g, 7, 1);
	gmem_host_check(&g, 3 * BLOCK / 2, BLOCK / 2, VAL + 3 * BLOCK / 2);
	TEST_ASSERT_EQ(nr_flushes(counter), 4);
	gmem_destroy(&g);
	TEST_ASSERT_EQ(nr_flushes(counter), 4);

	if (offered(self->vm, HUGE)) {
		gmem_new(&g, self->vm, 2 * BLOCK, SHARED | HUGE);
		gmem_host_fill(&g, 0, 2 * BLOCK, VAL);
		TEST_ASSERT_EQ(nr_flushes(counter), 6);
		gmem_destroy(&g);
	}
	close(counter);
	kvm_munmap(src, BLOCK * PAGE_SIZE);
}

/*
 * However often write() fails, it uses no memory up, and leaves none of the source's bytes
 * in what comes into the file later.
 */
HIDDEN_TEST(failing_writes)
{
	u8 *src = kvm_mmap(2 * PAGE_SIZE, PROT_READ | PROT_WRITE,
			   MAP_ANONYMOUS | MAP_PRIVATE, -1);
	struct iovec half[] = {
		{ src, PAGE_SIZE / 2 }, { src + PAGE_SIZE, PAGE_SIZE / 2 },
	};
	int counter = count_flushes();
	struct gmem g;
	int i;

	pin_self_to_any_cpu();
	memset(src, 0xcc, PAGE_SIZE);
	TEST_ASSERT(!mprotect(src + PAGE_SIZE, PAGE_SIZE, PROT_NONE), "PROT_NONE");

	gmem_new(&g, self->vm, NR_MAPPED, SHARED);
	gmem_host_fill(&g, 0, 1, VAL);
	for (i = 0; i < 2 * BLOCK; i++) {
		gmem_expect_error(pwrite(g.fd, src, PAGE_SIZE, 0), EEXIST);
		gmem_expect_error(pwritev(g.fd, half, 2, PAGE_SIZE), EFAULT);
	}
	gmem_allocate(&g, 0, BLOCK);
	if (counter >= 0)
		TEST_ASSERT_EQ(nr_flushes(counter), 1);
	gmem_host_check(&g, 0, 1, VAL);
	gmem_host_check_zero(&g, 1, BLOCK - 1);

	/* What can be read of it comes into the file. */
	TEST_ASSERT_EQ(pwrite(g.fd, src, 2 * PAGE_SIZE, BLOCK * PAGE_SIZE), PAGE_SIZE);
	TEST_ASSERT(!memcmp(g.mem + BLOCK * PAGE_SIZE, src, PAGE_SIZE), "What was written");
	gmem_host_check_zero(&g, BLOCK + 1, BLOCK - 1);

	gmem_destroy(&g);
	close(counter);
	kvm_munmap(src, 2 * PAGE_SIZE);
}

/*
 * A page takes 2 MiB out of the direct map.  Those that are not in the file yet are charged
 * as well, and given back when memory is short.
 */
HIDDEN_TEST(charged)
{
	u64 block = BLOCK * PAGE_SIZE, before, most;
	struct gmem g[8];
	int i;

	if (!gmem_cgroup_enter())
		SKIP(return, "No memory control group");

	pin_self_to_any_cpu();
	before = gmem_cgroup_stat("kernel");
	for (i = 0; i < ARRAY_SIZE(g); i++) {
		gmem_create(&g[i], self->vm, 2 * block, SHARED);
		gmem_allocate(&g[i], 0, 1);
	}
	most = before + ARRAY_SIZE(g) * block - block / 2;
	gmem_wait_until(gmem_cgroup_stat("kernel") > most);

	/* What is in the file is charged as that alone. */
	gmem_allocate(&g[0], 0, BLOCK);
	gmem_wait_until(gmem_cgroup_stat("kernel") < most);

	gmem_wait_until(!gmem_write_file("/proc/sys/vm/drop_caches", "2") &&
			gmem_cgroup_stat("kernel") < before + block);
	for (i = 0; i < ARRAY_SIZE(g); i++) {
		gmem_host_check_zero(&g[i], 0, 1);
		gmem_host_fill(&g[i], 0, 2, VAL);
		gmem_host_check(&g[i], 0, 2, VAL);
		gmem_destroy(&g[i]);
	}

	/* Where 2 MiB are too much, single pages do. */
	gmem_create(&g[0], self->vm, 2 * block, SHARED);
	gmem_cgroup_limit(SZ_1M);
	gmem_allocate(&g[0], 0, 16);
	gmem_cgroup_limit(0);
	gmem_host_check_zero(&g[0], 0, 16);
	gmem_destroy(&g[0]);
	gmem_cgroup_leave();
}

/* ---- Who is refused ---- */

/* Nobody gets hold of a page, be it for a read, a write or a DMA. */
static void refused(struct gmem *g)
{
	struct iovec local = { &(u64){ 0 }, 8 }, remote = { g->mem, 8 };
	int fd, pipes[2];

	TEST_ASSERT(hold_by_pin(g->mem, PAGE_SIZE) < 0, "A page could be pinned");
	TEST_ASSERT(hold_by_pin(g->mem, NR * PAGE_SIZE) < 0, "Pages could be pinned");

	TEST_ASSERT(!pipe(pipes), "pipe");
	gmem_expect_error(vmsplice(pipes[1], &(struct iovec){ g->mem, PAGE_SIZE }, 1, 0), EFAULT);
	close(pipes[0]);
	close(pipes[1]);

	gmem_expect_error(process_vm_readv(getpid(), &local, 1, &remote, 1, 0), EFAULT);
	gmem_expect_error(process_vm_writev(getpid(), &local, 1, &remote, 1, 0), EFAULT);

	fd = open("/proc/self/mem", O_RDWR);
	TEST_ASSERT(fd >= 0, "/proc/self/mem");
	gmem_expect_error(pread(fd, local.iov_base, 8, (off_t)(long)g->mem), EIO);
	gmem_expect_error(pwrite(fd, local.iov_base, 8, (off_t)(long)g->mem), EIO);
	close(fd);

	gmem_expect_error(madvise(g->mem, PAGE_SIZE, MADV_POPULATE_READ), EINVAL);
}

HIDDEN_TEST(no_gup)
{
	struct gmem g;
	int fd;

	/* All of it works with the flag off. */
	gmem_new(&g, self->vm, NR, GMEM_SHARED_FILE);
	gmem_host_fill(&g, 0, NR, VAL);
	fd = hold_by_pin(g.mem, PAGE_SIZE);
	TEST_ASSERT(fd >= 0, "No page can be pinned at all");
	release_pin(fd);
	gmem_destroy(&g);

	gmem_new(&g, self->vm, NR, SHARED);
	gmem_host_fill(&g, 0, NR, VAL);
	refused(&g);
	gmem_host_check(&g, 0, NR, VAL);
	gmem_destroy(&g);
}

HIDDEN_TEST(no_gup_large)
{
	struct gmem g;

	if (!offered(self->vm, HUGE))
		SKIP(return, "No large folios in guest_memfd");

	gmem_new(&g, self->vm, BLOCK, SHARED | HUGE);
	gmem_host_fill(&g, 0, BLOCK, VAL);
	refused(&g);
	gmem_host_check(&g, 0, BLOCK, VAL);
	gmem_destroy(&g);
}

/* System calls copy through the user's own mapping, which is as good as ever. */
HIDDEN_TEST(copies)
{
	int fd = memfd_create("copy", 0);
	struct gmem g;

	gmem_new(&g, self->vm, NR, SHARED);
	gmem_host_fill(&g, 0, 4, VAL);
	TEST_ASSERT_EQ(write(fd, g.mem, 4 * PAGE_SIZE), 4 * PAGE_SIZE);
	TEST_ASSERT_EQ(pread(fd, g.mem + 4 * PAGE_SIZE, 4 * PAGE_SIZE, 0), 4 * PAGE_SIZE);
	gmem_host_check(&g, 4, 4, VAL);
	close(fd);
	gmem_destroy(&g);
}

/* The flag is refused where it isn't offered, whatever else is asked. */
HIDDEN_TEST(offers)
{
	u64 flags = vm_check_cap(self->vm, KVM_CAP_GUEST_MEMFD_FLAGS);
	int fd = __vm_create_guest_memfd(self->vm, PAGE_SIZE, HIDDEN);

	TEST_ASSERT((fd >= 0) == !!(flags & HIDDEN), "Created: %d, offered: 0x%lx", fd, flags);
	if (fd >= 0)
		close(fd);
}

#ifdef __x86_64__
/* ---- KVM itself ---- */

/* Behind the file, and in the guest's page tables: no memory. */
#define MMIO_GPA		(GMEM_GPA + NR * PAGE_SIZE)

/* KVM copies from the device to the first page, and from there to the device. */
static void guest_copy_mmio(gpa_t gpa)
{
	u64 len, src, dst;

	len = 8, src = MMIO_GPA, dst = gpa;
	asm volatile("rep movsb" : "+c"(len), "+S"(src), "+D"(dst) : : "memory");
	GUEST_ASSERT_EQ(*(u64 *)gpa, 0x5a5a5a5a5a5a5a5aul);

	*(u64 *)gpa = 0xa5a5a5a5a5a5a5a5ul;
	len = 8, src = gpa, dst = MMIO_GPA;
	asm volatile("rep movsb" : "+c"(len), "+S"(src), "+D"(dst) : : "memory");
	GUEST_DONE();
}

static void enter_at(struct kvm_vcpu *vcpu, void *code, gpa_t gpa)
{
	vcpu_arch_set_entry_point(vcpu, code);
	vcpu_args_set(vcpu, 1, gpa);
}

static void check_copy_mmio(struct kvm_vcpu *vcpu, gpa_t gpa)
{
	struct kvm_run *run = vcpu->run;
	u64 nr_reads = 0, nr_writes = 0;
	struct ucall uc;
	int i;

	enter_at(vcpu, guest_copy_mmio, gpa);
	for (;;) {
		vcpu_run(vcpu);
		if (run->exit_reason != KVM_EXIT_MMIO)
			break;

		if (!run->mmio.is_write) {
			memset(run->mmio.data, 0x5a, run->mmio.len);
			nr_reads += run->mmio.len;
			continue;
		}
		for (i = 0; i < run->mmio.len; i++)
			TEST_ASSERT_EQ(run->mmio.data[i], 0xa5);
		nr_writes += run->mmio.len;
	}

	if (get_ucall(vcpu, &uc) == UCALL_ABORT)
		REPORT_GUEST_ASSERT(uc);
	TEST_ASSERT_EQ(uc.cmd, UCALL_DONE);
	TEST_ASSERT_EQ(nr_reads, 8);
	TEST_ASSERT_EQ(nr_writes, 8);
}

static void guest_set_clock(gpa_t gpa)
{
	for (;;) {
		wrmsr(MSR_KVM_SYSTEM_TIME_NEW, gpa | KVM_MSR_ENABLED);
		GUEST_SYNC(0);
	}
}

static u32 clock_version(void *page)
{
	struct pvclock_vcpu_time_info *clock = page;

	TEST_ASSERT(clock->version && !(clock->version & 1) && clock->tsc_to_system_mul,
		    "No clock: version %u", clock->version);
	return clock->version;
}

static void run_with_new_clock(struct kvm_vcpu *vcpu)
{
	struct kvm_clock_data data = {};

	vm_ioctl(vcpu->vm, KVM_SET_CLOCK, &data);
	vcpu_run(vcpu);
	TEST_ASSERT_EQ(gmem_get_ucall(vcpu), UCALL_SYNC);
}

/* KVM reads and writes what is out, for a moment and for long. */
HIDDEN_TEST(kvm_itself)
{
	struct gmem g;
	u32 version;

	__gmem_new(&g, self->vm, NR, SHARED, true);
	check_copy_mmio(self->vcpu, g.gpa);
	TEST_ASSERT_EQ(*(u64 *)g.mem, 0xa5a5a5a5a5a5a5a5ul);

	enter_at(self->vcpu, guest_set_clock, g.gpa + PAGE_SIZE);
	run_with_new_clock(self->vcpu);
	version = clock_version(g.mem + PAGE_SIZE);
	run_with_new_clock(self->vcpu);
	TEST_ASSERT(clock_version(g.mem + PAGE_SIZE) > version, "The clock stands still");
	expect_hidden(physical(g.mem));
	expect_hidden(physical(g.mem + PAGE_SIZE));
	gmem_destroy(&g);
}

/* ---- Files that convert ---- */

FIXTURE(in_place) {
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
};

FIXTURE_SETUP(in_place)
{
	setup(&self->vm, &self->vcpu, true);
}

FIXTURE_TEARDOWN(in_place)
{
	TEST_ASSERT_EQ(vm_get_stat(self->vm, gmem_pages_shared), 0);
	TEST_ASSERT_EQ(vm_get_stat(self->vm, gmem_pages_private), 0);
	kvm_vm_free(self->vm);
}

#define IN_PLACE_TEST(name)	TEST_F_TIMEOUT(in_place, name, GMEM_TIMEOUT_S)

/* Private is out, shared is in, and the bytes are the same. */
static void convert_all(struct kvm_vm *vm, struct kvm_vcpu *vcpu, u64 nr, u64 flags)
{
	struct gmem g;
	u64 *pa, i;

	pa = calloc(nr, sizeof(*pa));
	gmem_new(&g, vm, nr, flags);
	gmem_host_fill(&g, 0, nr, VAL);
	for (i = 0; i < nr; i++)
		pa[i] = physical(g.mem + i * PAGE_SIZE);

	/* The same pages before and after, so that a CPU may have kept a translation. */
	for (i = 0; i < nr; i += nr / 8)
		expect_visible(pa[i], VAL + i);
	gmem_to_private(&g, 0, nr, GMEM_PRESERVE);
	for (i = 0; i < nr; i += nr / 8)
		expect_hidden(pa[i]);
	gmem_guest_check_fill(vcpu, &g, 0, nr, VAL);

	/* A part of it. */
	gmem_to_shared(&g, nr / 2 + 1, nr / 4, GMEM_PRESERVE);
	for (i = 0; i < nr; i++) {
		if (i < nr / 2 + 1 || i >= nr / 2 + 1 + nr / 4)
			expect_hidden(pa[i]);
		else
			expect_visible(pa[i], VAL + i);
	}
	gmem_host_check(&g, nr / 2 + 1, nr / 4, VAL + nr / 2 + 1);

	gmem_to_shared(&g, 0, nr, GMEM_PRESERVE);
	gmem_host_check(&g, 0, nr, VAL);
	for (i = 0; i < nr; i++)
		expect_visible(pa[i], VAL + i);
	gmem_destroy(&g);
	free(pa);
}

IN_PLACE_TEST(conversions)
{
	convert_all(self->vm, self->vcpu, NR, SHARED);
}

IN_PLACE_TEST(large_conversions)
{
	convert_all(self->vm, self->vcpu, BLOCK, SHARED | HUGE);
}

/* Pages that have come as private ones, from a block, become shared, some or all. */
IN_PLACE_TEST(block_conversions)
{
	u64 pa, page;
	struct gmem g;

	gmem_new(&g, self->vm, 2 * BLOCK, SHARED);
	gmem_to_private(&g, 0, 2 * BLOCK, 0);
	gmem_guest_fill(self->vcpu, &g, 0, 2 * BLOCK, VAL);

	for (page = 3; page < 2 * BLOCK; page += BLOCK / 4) {
		gmem_to_shared(&g, page, 2, GMEM_PRESERVE);
		gmem_host_check(&g, page, 2, VAL + page);
		pa = physical(g.mem + page * PAGE_SIZE);
		expect_visible(pa, VAL + page);
		gmem_to_private(&g, page, 1, GMEM_PRESERVE);
		expect_hidden(pa);
	}
	gmem_guest_check_fill(self->vcpu, &g, 0, 2 * BLOCK, VAL);

	gmem_to_shared(&g, BLOCK, BLOCK, GMEM_DISCARD);
	gmem_host_check_zero(&g, BLOCK, BLOCK);
	gmem_to_shared(&g, 0, BLOCK, GMEM_PRESERVE);
	gmem_host_check(&g, 0, BLOCK, VAL);
	for (page = 0; page < BLOCK; page++)
		expect_visible(physical(g.mem + page * PAGE_SIZE), VAL + page);
	gmem_destroy(&g);
}

/* What is shared may be pinned, and what is pinned does not go private nor out. */
IN_PLACE_TEST(held)
{
	struct gmem g;
	u64 pa;
	int fd;

	gmem_new(&g, self->vm, NR, SHARED);
	gmem_host_fill(&g, 0, NR, VAL);
	pa = physical(g.mem + 3 * PAGE_SIZE);
	fd = hold_by_pin(g.mem + 3 * PAGE_SIZE, PAGE_SIZE);
	TEST_ASSERT(fd >= 0, "A shared page can't be pinned");
	expect_held(&g, 0, NR, GMEM_PRESERVE, 3);
	expect_visible(pa, VAL + 3);
	gmem_host_check(&g, 0, NR, VAL);

	release_pin(fd);
	gmem_to_private(&g, 0, NR, GMEM_PRESERVE);
	expect_hidden(pa);
	gmem_guest_check_fill(self->vcpu, &g, 0, NR, VAL);
	gmem_destroy(&g);
}

/* ZERO and DISCARD, both ways, on what is out and what is in. */
IN_PLACE_TEST(content)
{
	struct gmem g;
	u64 i;

	gmem_new(&g, self->vm, NR, SHARED);
	for (i = 0; i < ARRAY_SIZE(gmem_content_flags); i++) {
		u64 flags = gmem_content_flags[i];

		gmem_host_fill(&g, 0, NR, VAL);
		gmem_to_private(&g, 0, NR, flags);
		if (flags & (GMEM_ZERO | GMEM_DISCARD))
			gmem_guest_check_zero(self->vcpu, &g, 0, NR);
		else
			gmem_guest_check_fill(self->vcpu, &g, 0, NR, VAL);

		/* Again, of pages that are there already. */
		gmem_guest_fill(self->vcpu, &g, 0, NR, OTHER);
		gmem_to_private(&g, 0, NR, flags);
		if (flags & (GMEM_ZERO | GMEM_DISCARD))
			gmem_guest_check_zero(self->vcpu, &g, 0, NR);
		else
			gmem_guest_check_fill(self->vcpu, &g, 0, NR, OTHER);

		gmem_guest_fill(self->vcpu, &g, 0, NR, OTHER);
		gmem_to_shared(&g, 0, NR, flags);
		if (flags & (GMEM_ZERO | GMEM_DISCARD))
			gmem_host_check_zero(&g, 0, NR);
		else
			gmem_host_check(&g, 0, NR, OTHER);
		gmem_punch(&g, 0, NR);
	}
	gmem_destroy(&g);
}

static void guest_set_clock_until(gpa_t gpa)
{
	while (!READ_ONCE(*(u8 *)(gpa + PAGE_SIZE)))
		wrmsr(MSR_KVM_SYSTEM_TIME_NEW, gpa | KVM_MSR_ENABLED);
	GUEST_SYNC(0);
}

static void *run_thread(void *arg)
{
	vcpu_run(arg);
	return NULL;
}

/* KVM's own mapping goes when the page goes out, while KVM uses it, and comes back. */
IN_PLACE_TEST(convert_under_clock)
{
	pthread_t thread;
	struct gmem g;
	u64 i;

	__gmem_new(&g, self->vm, NR, SHARED, true);
	check_copy_mmio(self->vcpu, g.gpa);
	enter_at(self->vcpu, guest_set_clock_until, g.gpa);
	kvm_pthread_create(&thread, NULL, run_thread, self->vcpu);
	for (i = 0; i < GMEM_LOOPS(2000); i++) {
		gmem_to_private(&g, 0, 1, i % 2 ? GMEM_PRESERVE : 0);
		gmem_to_shared(&g, 0, 1, i % 4 < 2 ? GMEM_PRESERVE : 0);
	}
	WRITE_ONCE(g.mem[PAGE_SIZE], 1);
	kvm_pthread_join(thread, NULL);

	/* Mapped while it was in, and used when it is out; and the other way round. */
	enter_at(self->vcpu, guest_set_clock, g.gpa);
	run_with_new_clock(self->vcpu);
	clock_version(g.mem);
	gmem_to_private(&g, 0, 1, GMEM_PRESERVE);
	run_with_new_clock(self->vcpu);
	run_with_new_clock(self->vcpu);
	gmem_to_shared(&g, 0, 1, GMEM_PRESERVE);
	clock_version(g.mem);
	run_with_new_clock(self->vcpu);
	clock_version(g.mem);

	gmem_to_private(&g, 0, 1, GMEM_PRESERVE);
	check_copy_mmio(self->vcpu, g.gpa);
	gmem_destroy(&g);
}

/* A file with two backings has private pages only: all of them are out. */
IN_PLACE_TEST(two_backings)
{
	u64 flags = HIDDEN | WRITE;
	struct gmem g;
	u8 *src = kvm_mmap(PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_PRIVATE, -1);

	gmem_create(&g, self->vm, NR * PAGE_SIZE, flags);
	TEST_ASSERT_EQ(pwrite(g.fd, src, PAGE_SIZE, 0), PAGE_SIZE);
	gmem_allocate(&g, 1, NR - 1);
	gmem_punch(&g, 2, 3);
	kvm_close(g.fd);
	kvm_munmap(src, PAGE_SIZE);
}
#endif /* __x86_64__ */

TEST_HARNESS_MAIN
