// SPDX-License-Identifier: GPL-2.0-only
/*
 * Private memory of guest_memfd that is filled on demand, in place and with two backings;
 * pages that turn private while userfaultfd copies; and what else x86 has: pre-fault and
 * nested guests.
 */
#include "gmem_userfault.h"
#include "kvm_test_harness.h"
#include "svm_util.h"

#include <asm/pvclock-abi.h>

/* Page i holds VAL + i; OTHER is what the next writer leaves there. */
#define VAL		0x1122334455660000ul
#define OTHER		0x99aabbccddee0000ul

#define NR		16ul

/* The page that most cases look at, and one of another state. */
#define PAGE		5ul
#define BESIDE		9ul

/* Pages of a large page. */
#define HUGE		512ul

#define PRIVATE_HUGE	(GMEM_PRIVATE_FILE | GUEST_MEMFD_FLAG_HUGE)

FIXTURE(private) {
	struct kvm_vcpu *vcpus[2];
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
};

FIXTURE_SETUP(private)
{
	int i;

	if (!gmem_conversion_supported())
		SKIP(return, "No in-place conversion of guest_memfd");

	gmem_test_init();
	self->vm = gmem_vm_create(2, gmem_guest_server, self->vcpus);
	self->vcpu = self->vcpus[0];
	if (!vm_check_cap(self->vm, KVM_CAP_GUEST_MEMFD_USERFAULT))
		SKIP(return, "No KVM_MEM_USERFAULT");

	virt_map(self->vm, GMEM_GPA, GMEM_GPA, 2 * HUGE);
	for (i = 0; i < 2; i++) {
		vcpu_args_set(self->vcpus[i], 1, i);
		gmem_guest_do(self->vcpus[i], GMEM_GUEST_NOP, 0, 0, 0, 0);
	}
}

FIXTURE_TEARDOWN(private)
{
	TEST_ASSERT_EQ(nr_present(self->vm), 0);
	TEST_ASSERT_EQ(vm_get_stat(self->vm, gmem_pages_private), 0);
	kvm_vm_free(self->vm);
}

#define PRIVATE_TEST(name)	TEST_F_TIMEOUT(private, name, GMEM_TIMEOUT_S)

static void __new_file(struct gmem *g, struct kvm_vm *vm, u64 nr, u64 flags, void *bitmap)
{
	gmem_create(g, vm, nr * PAGE_SIZE, flags);
	g->slot = GMEM_SLOT;
	g->gpa = GMEM_GPA;
	set_userfault(g, KVM_MEM_USERFAULT, bitmap);
}

static void new_file(struct gmem *g, struct kvm_vm *vm, u64 flags)
{
	__new_file(g, vm, NR, flags, NULL);
}

/* The guest needs the page to go on, see gmem_guest_finish(): it writes OTHER. */
static void expect_wait(struct kvm_vcpu *vcpu, struct gmem *g, u64 page, bool is_private)
{
	gmem_guest_prepare(vcpu, GMEM_GUEST_FILL, g->gpa + page * PAGE_SIZE, 1, OTHER, 0);
	gmem_expect_missing(vcpu, g->gpa + page * PAGE_SIZE, PAGE_SIZE, is_private);
}

static void expect_missing(struct kvm_vcpu *vcpu, struct gmem *g, u64 page, bool is_private)
{
	expect_wait(vcpu, g, page, is_private);
	start_anew(vcpu);
}

/* ---- In place ---- */

PRIVATE_TEST(in_place)
{
	struct gmem g;

	new_file(&g, self->vm, GMEM_PRIVATE_FILE);
	expect_wait(self->vcpu, &g, PAGE, true);
	TEST_ASSERT_EQ(nr_present(self->vm), 0);

	/* A conversion brings nothing, whatever is to become of the bytes. */
	gmem_to_shared(&g, PAGE, 1, 0);
	gmem_to_private(&g, PAGE, 1, GMEM_ZERO);
	gmem_to_shared(&g, PAGE, 1, GMEM_DISCARD);
	TEST_ASSERT_EQ(nr_present(self->vm), 0);
	expect_missing(self->vcpu, &g, PAGE, false);
	expect_wait(self->vcpu, &g, PAGE + 1, true);

	/* fallocate() fills either side. */
	gmem_allocate(&g, PAGE, 2);
	gmem_guest_finish(self->vcpu);
	gmem_guest_check_zero(self->vcpu, &g, PAGE, 1);
	TEST_ASSERT_EQ(vm_get_stat(self->vm, gmem_pages_private), 1);
	TEST_ASSERT_EQ(vm_get_stat(self->vm, gmem_pages_shared), 1);

	/* DISCARD makes a page missing, any other conversion leaves it there. */
	gmem_to_private(&g, PAGE, 1, GMEM_PRESERVE);
	gmem_guest_check_zero(self->vcpu, &g, PAGE, 1);
	gmem_to_shared(&g, PAGE, 1, GMEM_DISCARD);
	expect_missing(self->vcpu, &g, PAGE, false);
	gmem_destroy(&g);
}

/* Filled while shared, used while private. */
PRIVATE_TEST(fill_and_convert)
{
	void *src = new_source(VAL);
	struct gmem g;
	int fd;

	new_file(&g, self->vm, GMEM_PRIVATE_FILE);
	fd = open_registered(&g, UFFDIO_REGISTER_MODE_MISSING);
	expect_missing(self->vcpu, &g, PAGE, true);

	/* A private page is not for users to fill. */
	TEST_ASSERT_EQ(uffd_copy(fd, &g, PAGE, src), EFAULT);
	TEST_ASSERT_EQ(uffd_zero(fd, &g, PAGE), EFAULT);
	TEST_ASSERT_EQ(nr_present(self->vm), 0);

	gmem_to_shared(&g, PAGE, 1, 0);
	TEST_ASSERT_EQ(uffd_copy(fd, &g, PAGE, src), 0);
	gmem_to_private(&g, PAGE, 1, GMEM_PRESERVE);
	gmem_guest_check_fill(self->vcpu, &g, PAGE, 1, VAL);

	/* Nor to overwrite. */
	TEST_ASSERT_EQ(uffd_copy(fd, &g, PAGE, src), EFAULT);
	TEST_ASSERT_EQ(uffd_zero(fd, &g, PAGE), EFAULT);
	gmem_guest_check_fill(self->vcpu, &g, PAGE, 1, VAL);
	gmem_destroy(&g);
	close(fd);
	kvm_munmap(src, PAGE_SIZE);
}

/* A user's fault on a private page is no event, and UFFDIO_CONTINUE doesn't map one. */
PRIVATE_TEST(uffd_private)
{
	struct gmem g;
	u64 val;
	int fd;

	new_file(&g, self->vm, GMEM_PRIVATE_FILE);
	fd = open_registered(&g, UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR);
	TEST_ASSERT_EQ(gmem_try_read(g.mem + PAGE * PAGE_SIZE, &val), BUS_ADRERR);
	gmem_allocate(&g, PAGE, 1);
	gmem_guest_fill(self->vcpu, &g, PAGE, 1, VAL);
	TEST_ASSERT_EQ(gmem_try_read(g.mem + PAGE * PAGE_SIZE, &val), BUS_ADRERR);
	TEST_ASSERT_EQ(uffd_continue(fd, &g, PAGE), EFAULT);
	TEST_ASSERT_EQ(gmem_try_read(g.mem + PAGE * PAGE_SIZE, &val), BUS_ADRERR);

	gmem_to_shared(&g, PAGE, 1, GMEM_PRESERVE);
	TEST_ASSERT_EQ(uffd_continue(fd, &g, PAGE), 0);
	gmem_host_check(&g, PAGE, 1, VAL);
	gmem_destroy(&g);
	close(fd);
}

/* ---- A page that turns private while a copy is under way ---- */

struct copy {
	struct gmem *g;
	void *src;
	int fd;
	int r;
};

static void *copies(void *arg)
{
	struct copy *c = arg;

	c->r = uffd_copy(c->fd, c->g, PAGE, c->src);
	return NULL;
}

/* The copy waits for its source, which is itself to be filled; @change comes first. */
static int copy_meanwhile(struct gmem *g, int fd, void (*change)(struct gmem *g))
{
	struct gmem from = {
		.size = PAGE_SIZE,
		.mem = kvm_mmap(PAGE_SIZE, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS, -1),
	};
	struct copy c = { .g = g, .src = from.mem, .fd = fd, .r = -1 };
	int source = open_registered(&from, UFFDIO_REGISTER_MODE_MISSING);
	void *bytes = new_source(VAL);
	struct uffd_msg msg;
	pthread_t thread;

	kvm_pthread_create(&thread, NULL, copies, &c);
	gmem_wait_until(read(source, &msg, sizeof(msg)) == sizeof(msg));
	change(g);
	TEST_ASSERT_EQ(uffd_copy(source, &from, 0, bytes), 0);
	kvm_pthread_join(thread, NULL);

	close(source);
	kvm_munmap(from.mem, PAGE_SIZE);
	kvm_munmap(bytes, PAGE_SIZE);
	return c.r;
}

static void change_nothing(struct gmem *g)
{
}

static void change_to_private(struct gmem *g)
{
	gmem_to_private(g, PAGE, 1, 0);
}

static void change_to_present(struct gmem *g)
{
	gmem_allocate(g, PAGE, 1);
}

PRIVATE_TEST(copy_in_flight)
{
	struct gmem g;
	int fd;

	new_file(&g, self->vm, GMEM_SHARED_FILE);
	fd = open_registered(&g, UFFDIO_REGISTER_MODE_MISSING);

	TEST_ASSERT_EQ(copy_meanwhile(&g, fd, change_to_private), EFAULT);
	TEST_ASSERT_EQ(nr_present(self->vm), 0);
	expect_missing(self->vcpu, &g, PAGE, true);

	gmem_to_shared(&g, PAGE, 1, 0);
	TEST_ASSERT_EQ(copy_meanwhile(&g, fd, change_to_present), EEXIST);
	gmem_guest_check_zero(self->vcpu, &g, PAGE, 1);

	gmem_punch(&g, PAGE, 1);
	TEST_ASSERT_EQ(copy_meanwhile(&g, fd, change_nothing), 0);
	gmem_guest_check_fill(self->vcpu, &g, PAGE, 1, VAL);
	gmem_destroy(&g);
	close(fd);
}

/* ---- A block that gets a second state while write() reads its source ---- */

static void *writes(void *arg)
{
	struct copy *c = arg;

	c->r = pwrite(c->g->fd, c->src, SZ_2M, 0);
	return NULL;
}

/* No folio is of two states: it is looked at again when the bytes are there. */
PRIVATE_TEST(write_in_flight)
{
	struct gmem g, from = {
		.size = SZ_2M,
		.mem = kvm_mmap(SZ_2M, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1),
	};
	struct copy c = { .g = &g, .src = from.mem, .r = -1 };
	void *bytes = new_source(VAL + HUGE - 1);
	struct uffd_msg msg;
	pthread_t thread;
	int source;
	u64 i;

	if (!(vm_check_cap(self->vm, KVM_CAP_GUEST_MEMFD_FLAGS) & GUEST_MEMFD_FLAG_HUGE))
		SKIP(return, "No large folios in guest_memfd");

	/* The last page of the source is to be filled. */
	TEST_ASSERT(!madvise(from.mem, SZ_2M, MADV_NOHUGEPAGE), "MADV_NOHUGEPAGE failed");
	for (i = 0; i < HUGE - 1; i++)
		gmem_fill_words((u64 *)(from.mem + i * PAGE_SIZE), VAL + i);
	source = open_registered(&from, UFFDIO_REGISTER_MODE_MISSING);

	gmem_new(&g, self->vm, HUGE,
		 GMEM_SHARED_FILE | GUEST_MEMFD_FLAG_HUGE | GUEST_MEMFD_FLAG_WRITE);
	kvm_pthread_create(&thread, NULL, writes, &c);
	gmem_wait_until(read(source, &msg, sizeof(msg)) == sizeof(msg));
	gmem_to_private(&g, PAGE, 1, 0);
	TEST_ASSERT_EQ(uffd_copy(source, &from, HUGE - 1, bytes), 0);
	kvm_pthread_join(thread, NULL);

	TEST_ASSERT_EQ(c.r, (int)SZ_2M);
	TEST_ASSERT_EQ(vm_get_stat(self->vm, gmem_pages_private), 1);
	TEST_ASSERT_EQ(vm_get_stat(self->vm, gmem_pages_shared), HUGE - 1);
	gmem_assert_private(&g, PAGE, 1);
	gmem_guest_check_fill(self->vcpu, &g, 0, HUGE, VAL);
	gmem_destroy(&g);
	close(source);
	kvm_munmap(from.mem, SZ_2M);
	kvm_munmap(bytes, PAGE_SIZE);
}

/* ---- Two backings ---- */

struct two {
	struct gmem g;
	u8 *shared;
};

static void two_new(struct two *t, struct kvm_vm *vm, void *bitmap)
{
	gmem_create(&t->g, vm, NR * PAGE_SIZE, 0);
	t->shared = kvm_mmap(NR * PAGE_SIZE, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1);
	/* The address of the other half, not of a mapping of the file. */
	t->g.mem = t->shared;
	t->g.slot = GMEM_SLOT;
	t->g.gpa = GMEM_GPA;
	set_userfault(&t->g, KVM_MEM_USERFAULT, bitmap);
	vm_set_memory_attributes(vm, GMEM_GPA + PAGE * PAGE_SIZE, PAGE_SIZE, GMEM_PRIVATE);
}

static void two_destroy(struct two *t)
{
	vm_set_memory_attributes(t->g.vm, GMEM_GPA, t->g.size, 0);
	gmem_destroy(&t->g);
}

/* Absent is missing in the file; the other half is userfaultfd's business. */
PRIVATE_TEST(two_backings_absent)
{
	struct two t;

	two_new(&t, self->vm, NULL);
	expect_wait(self->vcpu, &t.g, PAGE, true);
	gmem_guest_fill(self->vcpus[1], &t.g, BESIDE, 1, VAL);
	gmem_host_check(&t.g, BESIDE, 1, VAL);
	TEST_ASSERT_EQ(nr_present(self->vm), 0);

	gmem_allocate(&t.g, PAGE, 1);
	gmem_guest_finish(self->vcpu);
	TEST_ASSERT_EQ(vm_get_stat(self->vm, gmem_pages_private), 1);
	gmem_host_check_zero(&t.g, PAGE, 1);
	two_destroy(&t);
}

/* The bitmap goes for both halves, and is obeyed by what either has mapped. */
PRIVATE_TEST(two_backings_bitmap)
{
	unsigned long map = BIT(PAGE) | BIT(BESIDE);
	struct two t;

	two_new(&t, self->vm, &map);
	expect_wait(self->vcpu, &t.g, PAGE, true);
	expect_wait(self->vcpus[1], &t.g, BESIDE, false);
	TEST_ASSERT_EQ(nr_present(self->vm), 0);

	map = 0;
	gmem_guest_finish(self->vcpu);
	gmem_guest_finish(self->vcpus[1]);
	gmem_host_check(&t.g, BESIDE, 1, OTHER);

	set_userfault(&t.g, 0, NULL);
	map = BIT(PAGE) | BIT(BESIDE);
	gmem_guest_fill(self->vcpu, &t.g, PAGE, 1, VAL);
	gmem_guest_fill(self->vcpu, &t.g, BESIDE, 1, VAL);
	set_userfault(&t.g, KVM_MEM_USERFAULT, &map);
	expect_missing(self->vcpu, &t.g, PAGE, true);
	expect_missing(self->vcpu, &t.g, BESIDE, false);

	/* A bitmap that can't be read tells nothing of the other half either. */
	set_userfault(&t.g, KVM_MEM_USERFAULT, (void *)8ul);
	gmem_guest_prepare(self->vcpu, GMEM_GUEST_FILL, GMEM_GPA + BESIDE * PAGE_SIZE, 1,
			   OTHER, 0);
	gmem_guest_expect_fault(self->vcpu, EFAULT, GMEM_GPA + BESIDE * PAGE_SIZE);
	TEST_ASSERT_EQ(self->vcpu->run->memory_fault.flags, 0);
	two_destroy(&t);
}

/* Large pages of the other half: all bits of a mapping are clear, or it is of pages. */
PRIVATE_TEST(two_backings_huge)
{
	unsigned long map[HUGE / BITS] = {};
	struct gmem g;
	u64 nr_2m;

	if (access("/sys/kernel/mm/transparent_hugepage", F_OK))
		SKIP(return, "No transparent huge pages");

	gmem_create(&g, self->vm, SZ_2M, 0);
	g.mem = kvm_mmap(2 * SZ_2M, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	g.mem = (u8 *)align_ptr_up(g.mem, SZ_2M);
	TEST_ASSERT(!madvise(g.mem, SZ_2M, MADV_HUGEPAGE), "MADV_HUGEPAGE failed");
	gmem_host_fill(&g, 0, 1, VAL);
	g.slot = GMEM_SLOT;
	g.gpa = GMEM_GPA;
	nr_2m = vm_get_stat(self->vm, pages_2m);

	set_bit_of(map, PAGE);
	set_userfault(&g, KVM_MEM_USERFAULT, map);
	gmem_guest_check_fill(self->vcpu, &g, 0, 1, VAL);
	TEST_ASSERT_EQ(vm_get_stat(self->vm, pages_2m), nr_2m);
	expect_missing(self->vcpu, &g, PAGE, false);
	gmem_unbind(&g);

	clear_bit_of(map, PAGE);
	g.slot = GMEM_SLOT;
	set_userfault(&g, KVM_MEM_USERFAULT, map);
	gmem_guest_check_fill(self->vcpu, &g, 0, 1, VAL);
	TEST_ASSERT_EQ(vm_get_stat(self->vm, pages_2m), nr_2m + 1);

	/* The new bitmap takes the large mapping. */
	set_userfault(&g, 0, NULL);
	set_bit_of(map, PAGE);
	set_userfault(&g, KVM_MEM_USERFAULT, map);
	TEST_ASSERT_EQ(vm_get_stat(self->vm, pages_2m), nr_2m);
	expect_missing(self->vcpu, &g, PAGE, false);
	gmem_unbind(&g);
	kvm_free_fd(g.fd);
}

/* ---- Large folios ---- */

/* A block is filled at once if it is of one state. */
PRIVATE_TEST(huge)
{
	struct gmem g;

	if (!(vm_check_cap(self->vm, KVM_CAP_GUEST_MEMFD_FLAGS) & GUEST_MEMFD_FLAG_HUGE))
		SKIP(return, "No large folios in guest_memfd");

	__new_file(&g, self->vm, 2 * HUGE, PRIVATE_HUGE, NULL);
	gmem_guest_prepare(self->vcpu, GMEM_GUEST_FILL, g.gpa + PAGE * PAGE_SIZE, 1, VAL, 1);
	gmem_expect_missing(self->vcpu, g.gpa, HUGE * PAGE_SIZE, true);
	gmem_to_shared(&g, BESIDE, 1, 0);
	gmem_expect_missing(self->vcpu, g.gpa + PAGE * PAGE_SIZE, PAGE_SIZE, true);
	gmem_to_private(&g, BESIDE, 1, 0);
	gmem_expect_missing(self->vcpu, g.gpa, HUGE * PAGE_SIZE, true);

	kvm_fallocate(g.fd, FALLOC_FL_KEEP_SIZE, 0, HUGE * PAGE_SIZE);
	gmem_guest_finish(self->vcpu);
	TEST_ASSERT_EQ(vm_get_stat(self->vm, gmem_pages_private), HUGE);
	gmem_guest_prepare(self->vcpu, GMEM_GUEST_FILL, g.gpa + (HUGE + PAGE) * PAGE_SIZE, 1,
			   VAL, 1);
	gmem_expect_missing(self->vcpu, g.gpa + HUGE * PAGE_SIZE, HUGE * PAGE_SIZE, true);
	gmem_destroy(&g);
}

/* ---- Pre-fault ---- */

PRIVATE_TEST(pre_fault)
{
	unsigned long map = BIT(PAGE);
	gpa_t gpa = GMEM_GPA + PAGE * PAGE_SIZE;
	struct gmem g;

	new_file(&g, self->vm, GMEM_PRIVATE_FILE);
	TEST_ASSERT_EQ(gmem_pre_fault(self->vcpu, gpa, 1), EFAULT);
	gmem_to_shared(&g, PAGE, 1, 0);
	TEST_ASSERT_EQ(gmem_pre_fault(self->vcpu, gpa, 1), EFAULT);
	TEST_ASSERT_EQ(nr_present(self->vm), 0);

	gmem_allocate(&g, PAGE, 1);
	TEST_ASSERT_EQ(gmem_pre_fault(self->vcpu, gpa, 1), 0);
	TEST_ASSERT_EQ(gmem_pre_fault(self->vcpu, gpa, 2), EFAULT);
	TEST_ASSERT_EQ(nr_present(self->vm), 1);

	set_userfault(&g, KVM_MEM_USERFAULT, &map);
	TEST_ASSERT_EQ(gmem_pre_fault(self->vcpu, gpa, 1), EFAULT);
	TEST_ASSERT_EQ(gmem_pre_fault(self->vcpu, gpa + PAGE_SIZE, 1), 0);
	set_userfault(&g, 0, NULL);
	TEST_ASSERT_EQ(gmem_pre_fault(self->vcpu, GMEM_GPA, NR), 0);
	gmem_destroy(&g);
}

/* ---- KVM's own accesses ---- */

static void guest_set_clock(gpa_t gpa)
{
	for (;;) {
		wrmsr(MSR_KVM_SYSTEM_TIME_NEW, gpa | KVM_MSR_ENABLED);
		GUEST_SYNC(0);
	}
}

/* The clock is written on the way into the guest: is it there, and nothing else? */
static void expect_clock(struct kvm_vcpu *vcpu, struct gmem *g, bool there)
{
	struct pvclock_vcpu_time_info *clock = (void *)(g->mem + PAGE * PAGE_SIZE);

	vcpu_run(vcpu);
	TEST_ASSERT_EQ(gmem_get_ucall(vcpu), UCALL_SYNC);
	TEST_ASSERT_EQ(nr_present(vcpu->vm), there);
	if (there)
		TEST_ASSERT(clock->version, "No clock");
}

/* KVM doesn't fill a page in the VMM's stead, and uses it as soon as it is filled. */
PRIVATE_TEST(kvm_itself)
{
	unsigned long map = BIT(PAGE);
	struct gmem g;

	new_file(&g, self->vm, GMEM_SHARED_FILE);
	vcpu_arch_set_entry_point(self->vcpu, guest_set_clock);
	vcpu_args_set(self->vcpu, 1, g.gpa + PAGE * PAGE_SIZE);
	expect_clock(self->vcpu, &g, false);
	expect_clock(self->vcpu, &g, false);
	gmem_allocate(&g, PAGE, 1);
	expect_clock(self->vcpu, &g, true);
	gmem_punch(&g, PAGE, 1);
	expect_clock(self->vcpu, &g, false);

	/* With a bitmap KVM allocates what the VMM has released. */
	set_userfault(&g, KVM_MEM_USERFAULT, &map);
	expect_clock(self->vcpu, &g, false);
	expect_clock(self->vcpu, &g, false);
	map = 0;
	expect_clock(self->vcpu, &g, true);
	gmem_destroy(&g);
}

/* ---- Conversions, holes, copies and the guest, all at once ---- */

static bool race_stop;
static u64 race_turns[5];

struct race {
	struct gmem *g;
	struct kvm_vcpu *vcpu;
	void *src;
	int fd;
};

static void copy_step(void *arg, u64 turn)
{
	struct race *race = arg;
	int r;

	r = uffd_copy(race->fd, race->g, turn % NR, race->src);
	TEST_ASSERT(!r || r == EEXIST || r == EFAULT || r == EAGAIN, "UFFDIO_COPY: %s",
		    strerror(r));
	r = uffd_continue(race->fd, race->g, (turn + NR / 2) % NR);
	TEST_ASSERT(!r || r == EEXIST || r == EFAULT || r == EAGAIN, "UFFDIO_CONTINUE: %s",
		    strerror(r));
}

/* Long enough for a claim, too. */
static void convert_step(void *arg, u64 turn)
{
	static const u64 flags[] = { GMEM_PRESERVE, GMEM_ZERO, GMEM_DISCARD };
	struct race *race = arg;
	u64 first = turn % 3 ? turn % NR : 0;
	u64 nr = turn % 3 ? 1 : NR;
	int r;

	r = __gmem_convert(race->g->fd, first * PAGE_SIZE, nr * PAGE_SIZE,
			   turn % 2 ? GMEM_PRIVATE : GMEM_SHARED, flags[turn / 2 % 3], NULL);
	TEST_ASSERT(!r || r == EAGAIN, "Conversion: %s", strerror(r));
}

static void punch_step(void *arg, u64 turn)
{
	struct race *race = arg;

	gmem_punch(race->g, turn * 7 % NR, 1);
}

static void toggle_step(void *arg, u64 turn)
{
	static unsigned long map;
	struct race *race = arg;

	set_userfault(race->g, turn % 2 ? KVM_MEM_USERFAULT : 0, turn % 4 == 1 ? &map : NULL);
}

/* Every page that the guest finds was copied or zeroed. */
static void check_step(void *arg, u64 turn)
{
	struct race *race = arg;
	struct kvm_run *run = race->vcpu->run;
	struct gmem_guest_cmd *cmd;

	cmd = gmem_guest_prepare(race->vcpu, GMEM_GUEST_CHECK,
				 race->g->gpa + turn % NR * PAGE_SIZE, 1, VAL, 0);
	while (__vcpu_run(race->vcpu)) {
		TEST_ASSERT(errno == EFAULT && run->exit_reason == KVM_EXIT_MEMORY_FAULT &&
			    run->memory_fault.flags & KVM_MEMORY_EXIT_FLAG_USERFAULT,
			    "errno %d, exit %u", errno, run->exit_reason);
		kvm_fallocate(race->g->fd, FALLOC_FL_KEEP_SIZE,
			      run->memory_fault.gpa - race->g->gpa, run->memory_fault.size);
	}
	TEST_ASSERT_EQ(gmem_get_ucall(race->vcpu), UCALL_SYNC);
	TEST_ASSERT(cmd->bad_page == 1 || !cmd->bad_val, "0x%lx in a page", cmd->bad_val);
}

PRIVATE_TEST(race)
{
	void (*steps[])(void *arg, u64 turn) = {
		copy_step, convert_step, punch_step, toggle_step, check_step,
	};
	struct gmem_worker w[ARRAY_SIZE(steps)];
	struct race race;
	struct gmem g;
	int i;

	new_file(&g, self->vm, GMEM_SHARED_FILE);
	race = (struct race) {
		.g = &g,
		.vcpu = self->vcpu,
		.src = new_source(VAL),
		.fd = open_registered(&g, UFFDIO_REGISTER_MODE_MISSING |
					  UFFDIO_REGISTER_MODE_MINOR),
	};

	WRITE_ONCE(race_stop, false);
	for (i = 0; i < ARRAY_SIZE(steps); i++) {
		race_turns[i] = 0;
		gmem_worker_start(&w[i], steps[i], &race, &race_stop, &race_turns[i]);
	}
	for (i = 0; i < ARRAY_SIZE(steps); i++)
		gmem_wait_until(READ_ONCE(race_turns[i]) > GMEM_LOOPS(50));
	WRITE_ONCE(race_stop, true);
	for (i = 0; i < ARRAY_SIZE(steps); i++)
		gmem_worker_join(&w[i]);

	/* The statistics have not lost count, on either side. */
	gmem_punch(&g, 0, NR);
	TEST_ASSERT_EQ(vm_get_stat(self->vm, gmem_pages_private), 0);
	TEST_ASSERT_EQ(vm_get_stat(self->vm, gmem_pages_shared), 0);
	gmem_destroy(&g);
	close(race.fd);
	kvm_munmap(race.src, PAGE_SIZE);
}

/* ---- Nested guests ---- */

/* What a nested guest misses is told by the address that the VMM knows. */
TEST_F_TIMEOUT(private, nested, GMEM_TIMEOUT_S)
{
	unsigned long map = BIT(BESIDE);
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	struct gmem g;
	gva_t svm;

	if (!kvm_cpu_has(X86_FEATURE_SVM))
		SKIP(return, "No nested SVM");

	vm = gmem_vm_create(1, gmem_l1_code, &vcpu);
	vcpu_alloc_svm(vm, &svm);
	vcpu_args_set(vcpu, 1, svm);
	virt_map(vm, GMEM_GPA, GMEM_GPA, NR);
	gmem_guest_do(vcpu, GMEM_GUEST_NOP, 0, 0, 0, 0);

	__new_file(&g, vm, NR, GMEM_PRIVATE_FILE, NULL);
	expect_wait(vcpu, &g, PAGE, true);
	TEST_ASSERT_EQ(nr_present(vm), 0);
	gmem_allocate(&g, PAGE, 1);
	gmem_guest_finish(vcpu);
	gmem_guest_check_fill(vcpu, &g, PAGE, 1, OTHER);

	set_userfault(&g, KVM_MEM_USERFAULT, &map);
	gmem_guest_check_zero(vcpu, &g, BESIDE - 1, 1);
	expect_wait(vcpu, &g, BESIDE, true);
	map = BIT(PAGE);
	gmem_guest_finish(vcpu);

	/* What the nested guest has mapped goes along. */
	set_userfault(&g, 0, NULL);
	gmem_guest_check_fill(vcpu, &g, PAGE, 1, OTHER);
	set_userfault(&g, KVM_MEM_USERFAULT, &map);
	expect_wait(vcpu, &g, PAGE, true);

	gmem_destroy(&g);
	kvm_vm_free(vm);
}

TEST_HARNESS_MAIN
