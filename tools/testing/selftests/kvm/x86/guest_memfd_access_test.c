// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM's own accesses to memory that is in a guest_memfd alone: clock, steal time, PV EOI,
 * emulated instructions, page-table walks, a nested guest's structures.  userspace_addr is
 * 0 everywhere, so what works here works through the file.
 */
#include "apic.h"
#include "gmem_util.h"
#include "kvm_test_harness.h"
#include "svm_util.h"

#include <asm/pvclock-abi.h>

#define VAL		0x1122334455667788ul
#define OTHER		0x99aabbccddeeff00ul

/* A second file behind the first one, and an address without memory behind that. */
#define NR		4ul
#define NEXT_SLOT	(GMEM_SLOT + 1)
#define NEXT_GPA	(GMEM_GPA + NR * PAGE_SIZE)
#define MMIO_GPA	(NEXT_GPA + NR * PAGE_SIZE)

#define IPI_VECTOR	0x40

#define FEP_PARAM	"/sys/module/kvm/parameters/force_emulation_prefix"

/* Steal time is in the clock's page, clear of the clock. */
#define STEAL_OFFSET	2048ul

FIXTURE(access) {
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;

	/* All of slot 0: code, stacks, page tables. */
	int fd;
	bool is_private_type;
};

FIXTURE_VARIANT(access) {
	u64 type;
};

FIXTURE_VARIANT_ADD(access, plain) {
	.type = KVM_X86_DEFAULT_VM,
};

FIXTURE_VARIANT_ADD(access, sw_protected) {
	.type = KVM_X86_SW_PROTECTED_VM,
};

/*
 * Put slot 0 into a file, and map the file where its memory was: the host's accesses go
 * there, KVM is told no address.
 */
static int move_to_file(struct kvm_vm *vm)
{
	struct userspace_mem_region *region = memslot2region(vm, 0);
	u64 gpa = region->region.guest_phys_addr;
	u64 size = region->region.memory_size;
	int fd = vm_create_guest_memfd(vm, size, GMEM_SHARED_FILE);
	u8 *mem = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	void *was = region->host_mem;

	memcpy(mem, was, size);
	kvm_munmap(mem, size);
	vm_set_user_memory_region2(vm, 0, 0, gpa, 0, was, 0, 0);

	TEST_ASSERT(mmap(was, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == was,
		    "mmap() over %p failed, errno %d", was, errno);
	vm_set_user_memory_region2(vm, 0, KVM_MEM_GUEST_MEMFD, gpa, size, NULL, fd, 0);
	return fd;
}

static void setup(u64 type, struct kvm_vm **vm, struct kvm_vcpu **vcpu, int *fd)
{
	const struct vm_shape shape = {
		.mode = VM_MODE_DEFAULT,
		.type = type,
	};

	gmem_test_init();
	*vm = __vm_create_with_vcpus(shape, 1, 64, gmem_guest_server, vcpu);
	vcpu_args_set(*vcpu, 1, 0);
	virt_map(*vm, GMEM_GPA, GMEM_GPA, 2 * NR + 1);
	*fd = move_to_file(*vm);
}

FIXTURE_SETUP(access)
{
	self->is_private_type = variant->type == KVM_X86_SW_PROTECTED_VM;
	if (self->is_private_type && !gmem_conversion_supported())
		SKIP(return, "No in-place conversion of guest_memfd");

	setup(variant->type, &self->vm, &self->vcpu, &self->fd);
}

FIXTURE_TEARDOWN(access)
{
	kvm_vm_free(self->vm);
	kvm_free_fd(self->fd);
}

/* What is about private memory. */
FIXTURE(access_private) {
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	int fd;
};

FIXTURE_SETUP(access_private)
{
	if (!gmem_conversion_supported())
		SKIP(return, "No in-place conversion of guest_memfd");

	setup(KVM_X86_SW_PROTECTED_VM, &self->vm, &self->vcpu, &self->fd);
}

FIXTURE_TEARDOWN(access_private)
{
	kvm_vm_free(self->vm);
	kvm_free_fd(self->fd);
}

#define PRIVATE_TEST(name)	TEST_F_TIMEOUT(access_private, name, GMEM_TIMEOUT_S)
#define ACCESS_TEST(name)	TEST_F_TIMEOUT(access, name, GMEM_TIMEOUT_S)

static void enter_at(struct kvm_vcpu *vcpu, void *code, u64 arg)
{
	vcpu_arch_set_entry_point(vcpu, code);
	vcpu_args_set(vcpu, 1, arg);
}

static void new_file(struct gmem *g, struct kvm_vm *vm)
{
	__gmem_new(g, vm, NR, GMEM_SHARED_FILE, true);
}

/* ---- Clock and steal time ---- */

static void guest_write_clock_msrs(gpa_t gpa)
{
	for (;;) {
		wrmsr(MSR_KVM_SYSTEM_TIME_NEW, gpa | KVM_MSR_ENABLED);
		wrmsr(MSR_KVM_STEAL_TIME, (gpa + STEAL_OFFSET) | KVM_MSR_ENABLED);
		GUEST_SYNC(0);
		GUEST_SYNC(1);
		GUEST_SYNC(2);
	}
}

static void set_clock(struct kvm_vm *vm)
{
	struct kvm_clock_data data = {};

	vm_ioctl(vm, KVM_SET_CLOCK, &data);
}

static bool clock_is_good(const void *page)
{
	const struct pvclock_vcpu_time_info *clock = page;
	u32 version = READ_ONCE(clock->version);

	return version && !(version & 1) && READ_ONCE(clock->tsc_to_system_mul);
}

static bool steal_is_good(const void *page)
{
	u32 version = READ_ONCE(((const struct kvm_steal_time *)(page + STEAL_OFFSET))->version);

	return version && !(version & 1);
}

/* Runs the vCPU with the clock, and the steal time, at page 0 of @g. */
static void start_clock(struct kvm_vcpu *vcpu, struct gmem *g)
{
	enter_at(vcpu, guest_write_clock_msrs, g->gpa);
	vcpu_run(vcpu);
	TEST_ASSERT_EQ(gmem_get_ucall(vcpu), UCALL_SYNC);
}

static void run_with_new_clock(struct kvm_vcpu *vcpu)
{
	set_clock(vcpu->vm);
	vcpu_run(vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);
}

ACCESS_TEST(clock_and_steal_time)
{
	struct pvclock_vcpu_time_info *clock;
	struct kvm_steal_time *st;
	u32 version, st_version;
	struct gmem g;

	new_file(&g, self->vm);
	clock = (void *)g.mem;
	st = (void *)(g.mem + STEAL_OFFSET);

	start_clock(self->vcpu, &g);
	run_with_new_clock(self->vcpu);
	TEST_ASSERT(clock_is_good(g.mem), "No clock");
	TEST_ASSERT(steal_is_good(g.mem), "No steal time");

	version = clock->version;
	st_version = st->version;
	run_with_new_clock(self->vcpu);
	TEST_ASSERT(clock->version > version, "The clock stands still");
	TEST_ASSERT(st->version > st_version, "Steal time stands still");
	TEST_ASSERT_EQ(st->preempted, 0);
	gmem_destroy(&g);
}

/* userspace_addr points to something else: it is none of KVM's business. */
ACCESS_TEST(user_address_is_not_used)
{
	u64 *bystander = kvm_mmap(NR * PAGE_SIZE, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS, -1);
	struct gmem g;

	gmem_create(&g, self->vm, NR * PAGE_SIZE, GMEM_SHARED_FILE);
	g.gpa = GMEM_GPA;
	g.slot = GMEM_SLOT;
	vm_set_user_memory_region2(self->vm, g.slot, KVM_MEM_GUEST_MEMFD, g.gpa, g.size,
				   bystander, g.fd, 0);

	start_clock(self->vcpu, &g);
	run_with_new_clock(self->vcpu);
	TEST_ASSERT(clock_is_good(g.mem) && steal_is_good(g.mem), "Nothing in the file");
	TEST_ASSERT_EQ(bystander[0], 0);
	TEST_ASSERT_EQ(bystander[STEAL_OFFSET / sizeof(*bystander)], 0);

	gmem_destroy(&g);
	kvm_munmap(bystander, NR * PAGE_SIZE);
}

static void guest_spin(gpa_t gpa)
{
	wrmsr(MSR_KVM_STEAL_TIME, (gpa + STEAL_OFFSET) | KVM_MSR_ENABLED);
	while (!READ_ONCE(*(u8 *)(gpa + PAGE_SIZE)))
		cpu_relax();
	GUEST_DONE();
}

static void *run_thread(void *arg)
{
	struct kvm_vcpu *vcpu = arg;

	vcpu_run(vcpu);
	return NULL;
}

/* The guest is told when its vCPU is scheduled out, which is when KVM must not sleep. */
ACCESS_TEST(preempted)
{
	struct kvm_steal_time *st;
	pthread_t thread;
	cpu_set_t cpus;
	struct gmem g;

	new_file(&g, self->vm);
	st = (void *)(g.mem + STEAL_OFFSET);
	enter_at(self->vcpu, guest_spin, g.gpa);

	/* Whenever this thread runs, the vCPU does not. */
	CPU_ZERO(&cpus);
	CPU_SET(sched_getcpu(), &cpus);
	TEST_ASSERT(!sched_setaffinity(0, sizeof(cpus), &cpus), "Can't pin to one CPU");

	kvm_pthread_create(&thread, NULL, run_thread, self->vcpu);
	gmem_wait_until(READ_ONCE(st->preempted) & KVM_VCPU_PREEMPTED);
	WRITE_ONCE(g.mem[PAGE_SIZE], 1);
	kvm_pthread_join(thread, NULL);

	TEST_ASSERT(st->steal, "Nothing was stolen");
	gmem_destroy(&g);
}

/* ---- The page goes, and comes back ---- */

ACCESS_TEST(clock_of_punched_page)
{
	struct gmem g;

	new_file(&g, self->vm);
	start_clock(self->vcpu, &g);
	run_with_new_clock(self->vcpu);

	gmem_punch(&g, 0, NR);
	run_with_new_clock(self->vcpu);
	TEST_ASSERT(clock_is_good(g.mem), "The clock has not come back");
	TEST_ASSERT(steal_is_good(g.mem), "Steal time has not come back");
	gmem_destroy(&g);
}

/* The next slot at these addresses gets the clock, the old file doesn't any more. */
ACCESS_TEST(clock_of_deleted_slot)
{
	struct gmem g, next;

	new_file(&g, self->vm);
	start_clock(self->vcpu, &g);
	run_with_new_clock(self->vcpu);

	gmem_unbind(&g);
	gmem_host_fill(&g, 0, NR, VAL);
	run_with_new_clock(self->vcpu);
	gmem_host_check(&g, 0, NR, VAL);

	new_file(&next, self->vm);
	run_with_new_clock(self->vcpu);
	TEST_ASSERT(clock_is_good(next.mem), "No clock in the next slot");
	TEST_ASSERT(steal_is_good(next.mem), "No steal time in the next slot");
	gmem_host_check(&g, 0, NR, VAL);

	gmem_destroy(&next);
	gmem_destroy(&g);
}

/* Nor does the cache keep the file open: its memory goes. */
ACCESS_TEST(clock_of_closed_file)
{
	u64 nr_shared;
	struct gmem g;

	nr_shared = vm_get_stat(self->vm, gmem_pages_shared);
	new_file(&g, self->vm);
	start_clock(self->vcpu, &g);
	run_with_new_clock(self->vcpu);
	TEST_ASSERT(clock_is_good(g.mem), "No clock");

	kvm_munmap(g.mem, g.size);
	g.mem = NULL;
	kvm_free_fd(g.fd);
	TEST_ASSERT(vm_get_stat(self->vm, gmem_pages_shared) <= nr_shared,
		    "The file's pages are still there");

	run_with_new_clock(self->vcpu);
	run_with_new_clock(self->vcpu);
	vm_set_user_memory_region2(self->vm, GMEM_SLOT, 0, GMEM_GPA, 0, NULL, 0, 0);
	run_with_new_clock(self->vcpu);
}

ACCESS_TEST(clock_of_poisoned_page)
{
	struct gmem g;

	if (access(GMEM_HWPOISON_DIR, F_OK))
		SKIP(return, "No memory errors to be had");

	new_file(&g, self->vm);
	start_clock(self->vcpu, &g);
	run_with_new_clock(self->vcpu);

	gmem_poison_mapped(g.mem);
	run_with_new_clock(self->vcpu);
	run_with_new_clock(self->vcpu);

	gmem_punch(&g, 0, 1);
	run_with_new_clock(self->vcpu);
	TEST_ASSERT(clock_is_good(g.mem), "No clock in the fresh page");
	TEST_ASSERT(steal_is_good(g.mem), "No steal time in the fresh page");
	gmem_destroy(&g);
	gmem_give_frames_back();
}

static void guest_write_clock_msrs_until(gpa_t gpa)
{
	u8 *stop = (u8 *)(gpa + (NR - 1) * PAGE_SIZE);

	while (!READ_ONCE(*stop)) {
		wrmsr(MSR_KVM_SYSTEM_TIME_NEW, gpa | KVM_MSR_ENABLED);
		wrmsr(MSR_KVM_STEAL_TIME, (gpa + STEAL_OFFSET) | KVM_MSR_ENABLED);
	}
	GUEST_DONE();
}

/* KVM's caches hold nothing: no conversion, of thousands, finds the page in use. */
PRIVATE_TEST(convert_under_clock)
{
	pthread_t thread;
	struct gmem g;
	u64 i;
	int r;

	new_file(&g, self->vm);
	enter_at(self->vcpu, guest_write_clock_msrs_until, g.gpa);
	kvm_pthread_create(&thread, NULL, run_thread, self->vcpu);

	for (i = 0; i < GMEM_LOOPS(2000); i++) {
		r = __gmem_convert(g.fd, 0, PAGE_SIZE, GMEM_PRIVATE, 0, NULL);
		TEST_ASSERT(!r, "To private, turn %lu: %s", i, strerror(r));
		if (i % 8 == 3)
			gmem_punch(&g, 0, 1);
		r = __gmem_convert(g.fd, 0, PAGE_SIZE, GMEM_SHARED,
				   i % 8 == 5 ? GMEM_DISCARD : 0, NULL);
		TEST_ASSERT(!r, "To shared, turn %lu: %s", i, strerror(r));
		if (i % 8 == 7)
			gmem_punch(&g, 0, 1);
	}

	WRITE_ONCE(g.mem[(NR - 1) * PAGE_SIZE], 1);
	kvm_pthread_join(thread, NULL);

	start_clock(self->vcpu, &g);
	run_with_new_clock(self->vcpu);
	TEST_ASSERT(clock_is_good(g.mem) && steal_is_good(g.mem), "The clock has stopped");
	gmem_destroy(&g);
}

/* Where the host may use private pages KVM keeps the clock there. */
PRIVATE_TEST(clock_in_private_page)
{
	struct gmem g;

	new_file(&g, self->vm);
	gmem_to_private(&g, 0, 1, 0);
	start_clock(self->vcpu, &g);
	run_with_new_clock(self->vcpu);
	gmem_assert_private(&g, 0, 1);

	gmem_to_shared(&g, 0, 1, GMEM_PRESERVE);
	TEST_ASSERT(clock_is_good(g.mem) && steal_is_good(g.mem), "No clock in the private page");
	gmem_destroy(&g);
}

/* ---- Emulation ---- */

/* Give the guest what it reads, and keep what it writes; returns at its ucall. */
static u64 run_with_mmio(struct kvm_vcpu *vcpu, u64 read_val, u64 *written)
{
	struct kvm_run *run = vcpu->run;
	u64 nr = 0;

	for (;;) {
		vcpu_run(vcpu);
		if (run->exit_reason != KVM_EXIT_MMIO)
			break;

		nr++;
		if (run->mmio.is_write)
			memcpy(written, run->mmio.data, run->mmio.len);
		else
			memcpy(run->mmio.data, &read_val, run->mmio.len);
	}
	return nr;
}

static void expect_done(struct kvm_vcpu *vcpu)
{
	struct ucall uc;

	switch (get_ucall(vcpu, &uc)) {
	case UCALL_DONE:
		break;
	case UCALL_ABORT:
		REPORT_GUEST_ASSERT(uc);
		break;
	default:
		TEST_FAIL("Exit reason %u (%s)", vcpu->run->exit_reason,
			  exit_reason_str(vcpu->run->exit_reason));
	}
}

static void guest_mmio(gpa_t buf)
{
	u64 *mmio = (u64 *)MMIO_GPA;
	u64 len = 16, src = MMIO_GPA, dst = buf + PAGE_SIZE - 8;

	WRITE_ONCE(*mmio, VAL);
	GUEST_ASSERT_EQ(READ_ONCE(*mmio), OTHER);

	/* KVM writes what it has read to memory itself, across a page boundary. */
	asm volatile("rep movsb" : "+c"(len), "+S"(src), "+D"(dst) : : "memory");
	GUEST_DONE();
}

ACCESS_TEST(mmio)
{
	u64 written = 0, nr;
	struct gmem g;

	new_file(&g, self->vm);
	enter_at(self->vcpu, guest_mmio, g.gpa);
	nr = run_with_mmio(self->vcpu, OTHER, &written);
	expect_done(self->vcpu);

	TEST_ASSERT(nr >= 2, "No MMIO");
	TEST_ASSERT_EQ(written, VAL);
	TEST_ASSERT_EQ(g.mem[PAGE_SIZE - 8], (u8)OTHER);
	TEST_ASSERT_EQ(g.mem[PAGE_SIZE + 7], g.mem[PAGE_SIZE - 1]);
	TEST_ASSERT_EQ(g.mem[PAGE_SIZE + 8], 0);
	gmem_destroy(&g);
}

static const char *old_fep;

static void restore_fep(void)
{
	gmem_write_file(FEP_PARAM, old_fep);
}

static bool force_emulation(void)
{
	static char val[16];
	FILE *f = fopen(FEP_PARAM, "r");

	if (!f)
		return false;

	if (!fgets(val, sizeof(val), f))
		val[0] = '\0';
	fclose(f);
	if (!old_fep) {
		old_fep = val;
		atexit(restore_fep);
	}
	return !gmem_write_file(FEP_PARAM, "1");
}

static u64 fep_read(u64 gva)
{
	u64 val;

	asm volatile(KVM_FEP "mov (%1), %0" : "=r"(val) : "r"(gva) : "memory");
	return val;
}

static void fep_write(u64 gva, u64 val)
{
	asm volatile(KVM_FEP "mov %0, (%1)" : : "r"(val), "r"(gva) : "memory");
}

/* Returns what was there. */
static u64 fep_cmpxchg(u64 gva, u64 old, u64 new)
{
	asm volatile(KVM_FEP "lock cmpxchg %1, (%2)"
		     : "+a"(old) : "r"(new), "r"(gva) : "memory", "cc");
	return old;
}

static void guest_emulated(gpa_t gpa)
{
	u64 page_seam = gpa + PAGE_SIZE - 4;
	u64 slot_seam = NEXT_GPA - 4;

	fep_write(gpa, VAL);
	GUEST_ASSERT_EQ(*(u64 *)gpa, VAL);
	*(u64 *)gpa = OTHER;
	GUEST_ASSERT_EQ(fep_read(gpa), OTHER);

	GUEST_ASSERT_EQ(fep_cmpxchg(gpa, VAL, 1), OTHER);
	GUEST_ASSERT_EQ(*(u64 *)gpa, OTHER);
	GUEST_ASSERT_EQ(fep_cmpxchg(gpa, OTHER, VAL), OTHER);
	GUEST_ASSERT_EQ(*(u64 *)gpa, VAL);

	/* Unaligned, but in one page. */
	*(u64 *)(gpa + 20) = OTHER;
	GUEST_ASSERT_EQ(fep_read(gpa + 20), OTHER);
	GUEST_ASSERT_EQ(fep_cmpxchg(gpa + 20, OTHER, VAL), OTHER);
	GUEST_ASSERT_EQ(*(u64 *)(gpa + 20), VAL);

	fep_write(page_seam, VAL);
	GUEST_ASSERT_EQ(*(u64 *)page_seam, VAL);
	GUEST_ASSERT_EQ(fep_read(page_seam), VAL);

	fep_write(slot_seam, OTHER);
	GUEST_ASSERT_EQ(*(u64 *)slot_seam, OTHER);
	GUEST_ASSERT_EQ(fep_read(slot_seam), OTHER);

	/* No one has touched this page, and no one else will. */
	GUEST_ASSERT_EQ(fep_read(gpa + 2 * PAGE_SIZE), 0);
	GUEST_DONE();
}

/* Once with all of it shared, and once with all of it private. */
static void check_emulated(struct kvm_vcpu *vcpu, struct gmem *g, struct gmem *next)
{
	u64 written = 0;

	gmem_punch(g, 0, NR);
	gmem_punch(next, 0, NR);
	enter_at(vcpu, guest_emulated, g->gpa);
	TEST_ASSERT_EQ(run_with_mmio(vcpu, 0, &written), 0);
	expect_done(vcpu);
}

ACCESS_TEST(emulated)
{
	struct gmem g, next;

	if (!force_emulation())
		SKIP(return, "No forced emulation");

	new_file(&g, self->vm);
	gmem_create(&next, self->vm, NR * PAGE_SIZE, GMEM_SHARED_FILE);
	next.no_user_addr = true;
	gmem_bind(&next, NEXT_SLOT, NEXT_GPA);

	check_emulated(self->vcpu, &g, &next);
	TEST_ASSERT_EQ(*(u64 *)g.mem, VAL);
	TEST_ASSERT_EQ(*(u32 *)next.mem, OTHER >> 32);
	TEST_ASSERT(gmem_page_is_present(&g, 2), "Emulation allocates no page");

	if (self->is_private_type) {
		gmem_to_private(&g, 0, NR, 0);
		check_emulated(self->vcpu, &g, &next);
		gmem_assert_private(&g, 0, NR);

		/* From private to shared within one access. */
		gmem_to_private(&next, 1, NR - 1, 0);
		check_emulated(self->vcpu, &g, &next);
	}
	gmem_destroy(&g);

	/* All of it private from the start; or, without such a side, for the guest alone. */
	__gmem_new(&g, self->vm, NR, GMEM_PRIVATE_FILE, true);
	check_emulated(self->vcpu, &g, &next);
	gmem_destroy(&next);
	gmem_destroy(&g);
	restore_fep();
}

static void guest_read_emulated(gpa_t gpa)
{
	fep_read(gpa);
	GUEST_DONE();
}

/* Memory that is lost reads as if there were none, and isn't handed out. */
ACCESS_TEST(emulated_poison)
{
	u64 written = 0;
	struct gmem g;

	if (access(GMEM_HWPOISON_DIR, F_OK) || !force_emulation())
		SKIP(return, "No memory errors to be had, or no forced emulation");

	new_file(&g, self->vm);
	gmem_host_fill(&g, 0, NR, VAL);
	gmem_poison_mapped(g.mem);

	enter_at(self->vcpu, guest_read_emulated, g.gpa);
	TEST_ASSERT_EQ(run_with_mmio(self->vcpu, 0, &written), 1);
	expect_done(self->vcpu);

	enter_at(self->vcpu, guest_read_emulated, g.gpa + PAGE_SIZE);
	TEST_ASSERT_EQ(run_with_mmio(self->vcpu, 0, &written), 0);
	expect_done(self->vcpu);
	gmem_destroy(&g);
	gmem_give_frames_back();
	restore_fep();
}

static u8 stub[] = {
	0x48, 0x8b, 0x07,	/* mov (%rdi), %rax */
	0xc3,			/* ret */
};

static void guest_call_stub(gpa_t gpa)
{
	u64 (*fn)(u64) = (void *)gpa;

	GUEST_ASSERT_EQ(fn(MMIO_GPA), VAL);
	GUEST_DONE();
}

/* The code and the page tables on the way of an emulated access may be private. */
PRIVATE_TEST(private_code_and_tables)
{
	u64 written = 0;
	struct gmem g;
	int r;

	new_file(&g, self->vm);
	memcpy(g.mem, stub, sizeof(stub));
	gmem_to_private(&g, 0, 1, GMEM_PRESERVE);

	/* The library doesn't look at the tables any more, slot 0 begins at gpa 0. */
	r = gmem_convert_retry(self->fd, self->vm->mmu.pgd, PAGE_SIZE, GMEM_PRIVATE,
			       GMEM_PRESERVE);
	TEST_ASSERT_EQ(r, 0);

	enter_at(self->vcpu, guest_call_stub, g.gpa);
	TEST_ASSERT_EQ(run_with_mmio(self->vcpu, VAL, &written), 1);
	expect_done(self->vcpu);

	r = gmem_convert_retry(self->fd, self->vm->mmu.pgd, PAGE_SIZE, GMEM_SHARED,
			       GMEM_PRESERVE);
	TEST_ASSERT_EQ(r, 0);
	gmem_destroy(&g);
}

/* ---- PV EOI ---- */

static u64 nr_ipis, nr_pv_eois;

static void ipi_handler(struct ex_regs *regs)
{
	u32 *eoi = (u32 *)GMEM_GPA;
	bool done;

	nr_ipis++;
	/*
	 * One instruction: if the vCPU exits before it, KVM takes the bit away, and waits
	 * for an EOI by way of the APIC.
	 */
	asm volatile("btrl $0, %1" : "=@ccc"(done), "+m"(*eoi));
	if (done)
		nr_pv_eois++;
	else
		x2apic_write_reg(APIC_EOI, 0);
}

static void guest_pv_eoi(gpa_t gpa)
{
	int i;

	x2apic_enable();
	wrmsr(MSR_KVM_PV_EOI_EN, gpa | KVM_MSR_ENABLED);
	sti();

	/* The next one comes only if KVM has seen the end of the last. */
	for (i = 1; i <= 4; i++) {
		x2apic_write_reg(APIC_ICR, APIC_DEST_SELF | APIC_INT_ASSERT | IPI_VECTOR);
		while (READ_ONCE(nr_ipis) < i)
			cpu_relax();
	}
	GUEST_ASSERT(nr_pv_eois);
	GUEST_DONE();
}

ACCESS_TEST(pv_eoi)
{
	struct gmem g;

	new_file(&g, self->vm);
	vm_install_exception_handler(self->vm, IPI_VECTOR, ipi_handler);
	enter_at(self->vcpu, guest_pv_eoi, g.gpa);
	vcpu_run(self->vcpu);
	expect_done(self->vcpu);
	gmem_destroy(&g);
}

/* ---- Async page faults ---- */

static void guest_async_pf(gpa_t gpa)
{
	struct kvm_vcpu_pv_apf_data *data = (void *)gpa;

	x2apic_enable();
	wrmsr(MSR_KVM_ASYNC_PF_INT, IPI_VECTOR);
	wrmsr(MSR_KVM_ASYNC_PF_EN, gpa | KVM_ASYNC_PF_ENABLED |
				   KVM_ASYNC_PF_DELIVERY_AS_INT);

	/* "All are ready" is the first thing that KVM has to say. */
	while (READ_ONCE(data->token) != ~0u)
		cpu_relax();
	GUEST_DONE();
}

ACCESS_TEST(async_pf)
{
	struct gmem g;

	new_file(&g, self->vm);
	enter_at(self->vcpu, guest_async_pf, g.gpa);
	vcpu_run(self->vcpu);
	expect_done(self->vcpu);
	gmem_destroy(&g);
}

/* ---- A nested guest ---- */

static u64 l2_turns;

static void l2_code(void)
{
	for (;;) {
		WRITE_ONCE(l2_turns, l2_turns + 1);
		vmmcall();
	}
}

static void l1_code(struct svm_test_data *svm)
{
	struct vmcb *vmcb = svm->vmcb;
	int i;

	generic_svm_setup(svm, l2_code);
	for (i = 1; i <= 16; i++) {
		run_guest(vmcb, svm->vmcb_gpa);
		GUEST_ASSERT_EQ(vmcb->control.exit_code, SVM_EXIT_VMMCALL);
		GUEST_ASSERT_EQ(READ_ONCE(l2_turns), i);
		vmcb->save.rip += 3;
	}

	/* What KVM refuses it says in the VMCB as well. */
	vmcb->control.asid = 0;
	run_guest(vmcb, svm->vmcb_gpa);
	GUEST_ASSERT_EQ((u32)vmcb->control.exit_code, (u32)SVM_EXIT_ERR);
	GUEST_DONE();
}

ACCESS_TEST(nested)
{
	struct svm_test_data *svm;
	u64 nr_private = 0;
	gva_t svm_gva;

	if (!kvm_cpu_has(X86_FEATURE_SVM))
		SKIP(return, "No nested SVM");

	svm = vcpu_alloc_svm(self->vm, &svm_gva);
	enter_at(self->vcpu, l1_code, svm_gva);

	/* The VMCB, and the host's save area. */
	if (self->is_private_type) {
		TEST_ASSERT_EQ(gmem_convert_retry(self->fd, svm->vmcb_gpa, PAGE_SIZE,
						  GMEM_PRIVATE, 0), 0);
		TEST_ASSERT_EQ(gmem_convert_retry(self->fd, svm->save_area_gpa, PAGE_SIZE,
						  GMEM_PRIVATE, 0), 0);
		nr_private = 2;
	}

	vcpu_run(self->vcpu);
	expect_done(self->vcpu);
	TEST_ASSERT_EQ(vm_get_stat(self->vm, gmem_pages_private), nr_private);
}

int main(int argc, char **argv)
{
	return test_harness_run(argc, argv);
}
