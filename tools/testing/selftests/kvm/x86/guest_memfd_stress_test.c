// SPDX-License-Identifier: GPL-2.0-only
/*
 * Random operations on a guest_memfd file with in-place conversion, against a
 * model that knows the state and the bytes of every page at every moment.
 *
 * Page p belongs to thread p % NR_THREADS, which alone operates on it and keeps
 * its model; hence neighbours in the file always belong to others, and race.
 * Guests touch pages on behalf of the threads, through a mailbox for each.
 * Now and then one thread stops the others, and operates on the whole file.  It may
 * switch the slot, too, such that vCPUs exit for pages that are absent.
 */
#include <asm/barrier.h>

#include "gmem_util.h"

#include <getopt.h>

#define NR_PAGES	64ul
#define NR_THREADS	4ul

/* With large pages the file has two of them. */
#define NR_PAGES_HUGE	1024ul
#define NR_VCPUS	2ul
#define DEFAULT_OPS	8000

/* One operation of this many is one on the whole file. */
#define WHOLE_FILE_ONE_IN	64

/*
 * A page is filled with one value; zero after ZERO, DISCARD and a hole.  What is present
 * is known where pages come and go alone.
 */
struct page_model {
	bool private;
	bool present;
	u64 val;
};

struct mailbox {
	u64 request;
	u64 reply;
	u64 gva;
	u64 val;
	bool write;
	u64 bad_val;
};

/* The guest's copies count. */
static struct mailbox mailboxes[NR_THREADS];
static u64 guest_stop;

struct stress_thread {
	struct kvm_random_state random;
	struct mailbox *box;
	pthread_t thread;
	u64 next_val;
	u32 id;
};

static struct stress_thread threads[NR_THREADS];
static struct page_model model[NR_PAGES_HUGE];
static pthread_rwlock_t world;
static struct kvm_vm *vm;
static u64 file_flags = GMEM_SHARED_FILE | GUEST_MEMFD_FLAG_WRITE;
static u64 nr_pages = NR_PAGES;
static u64 ops_per_thread;
static struct gmem g;

/* Is what is absent for the VMM to fill, and for nobody else? */
static bool userfault;
static u64 nr_missing, nr_filled, nr_refused;

/* ---- The guest ---- */

static void guest_serve(struct mailbox *box)
{
	u64 seen = 0;

	if (box->write)
		gmem_fill_words((u64 *)box->gva, box->val);
	else if (gmem_check_words((u64 *)box->gva, box->val, &seen) >= 0)
		box->bad_val = seen;
	else
		box->bad_val = box->val;
}

/* An idle guest lets others have the CPU. */
static void guest_code(u64 vcpu)
{
	struct mailbox *box;
	u64 i, request, idle = 0;

	while (!READ_ONCE(guest_stop)) {
		for (i = vcpu; i < NR_THREADS; i += NR_VCPUS) {
			box = &mailboxes[i];
			/* Pairs with the release in ask_guest(). */
			request = smp_load_acquire(&box->request);
			if (request == box->reply)
				continue;
			guest_serve(box);
			/* Pairs with the acquire in ask_guest(). */
			smp_store_release(&box->reply, request);
			idle = 0;
		}
		if (++idle % 16 == 0)
			GUEST_SYNC(0);
	}
	GUEST_DONE();
}

static bool is_huge(void)
{
	return file_flags & GUEST_MEMFD_FLAG_HUGE;
}

/* An exit for a page that is missing; what it asks for is allocated. */
static void serve_missing(struct kvm_vcpu *vcpu, int error)
{
	struct kvm_run *run = vcpu->run;

	TEST_ASSERT(error == EFAULT && run->exit_reason == KVM_EXIT_MEMORY_FAULT &&
		    run->memory_fault.flags & KVM_MEMORY_EXIT_FLAG_USERFAULT,
		    "KVM_RUN: %s, exit %s", strerror(error), exit_reason_str(run->exit_reason));
	TEST_ASSERT(is_huge() || run->memory_fault.size == PAGE_SIZE, "%llu bytes are missing",
		    run->memory_fault.size);
	kvm_fallocate(g.fd, FALLOC_FL_KEEP_SIZE, run->memory_fault.gpa - g.gpa,
		      run->memory_fault.size);
	__atomic_add_fetch(&nr_missing, 1, __ATOMIC_RELAXED);
}

static void *vcpu_thread(void *arg)
{
	struct kvm_vcpu *vcpu = arg;

	for (;;) {
		while (__vcpu_run(vcpu))
			if (errno != EINTR)
				serve_missing(vcpu, errno);
		if (gmem_get_ucall(vcpu) == UCALL_DONE)
			return NULL;
		sched_yield();
	}
}

static void ask_guest(struct stress_thread *t, u64 page, bool write, u64 val)
{
	struct mailbox *box = t->box;

	box->gva = g.gpa + page * PAGE_SIZE;
	box->write = write;
	box->val = val;
	/* Pairs with the acquire in guest_code(). */
	smp_store_release(&box->request, box->request + 1);
	/* Pairs with the release in guest_code(). */
	gmem_wait_until(smp_load_acquire(&box->reply) == box->request);

	TEST_ASSERT(write || box->bad_val == val,
		    "Guest, page %lu: 0x%lx, want 0x%lx", page, box->bad_val, val);
	model[page].present = true;
}

/* ---- Operations on one page ---- */

/* Does it agree with the model that a user's access is SIGBUS, or not? */
static void check_code(u64 page, int code)
{
	struct page_model *m = &model[page];
	bool missing = userfault && !m->present;

	/* Another thread may have brought the page, as a part of a large one. */
	if (is_huge() && missing && !m->private && !code)
		missing = false;
	TEST_ASSERT(code == (m->private || missing ? BUS_ADRERR : 0),
		    "Page %lu, private %d, present %d, filled on demand %d: si_code %d", page,
		    m->private, m->present, userfault, code);
	if (!code)
		m->present = true;
}

static void check_user_page(u64 page)
{
	struct page_model *m = &model[page];
	u64 *p = (u64 *)(g.mem + page * PAGE_SIZE), seen = 0;
	int w, code;

	code = gmem_try(w = gmem_check_words(p, m->val, &seen));
	check_code(page, code);
	if (code)
		return;
	TEST_ASSERT(w < 0, "User, page %lu word %d: 0x%lx, want 0x%lx",
		    page, w, seen, m->val);
}

static void op_user_read(struct stress_thread *t, u64 page)
{
	check_user_page(page);
}

static void op_user_write(struct stress_thread *t, u64 page)
{
	u64 *p = (u64 *)(g.mem + page * PAGE_SIZE), val = t->next_val++;
	int code = gmem_try(gmem_fill_words(p, val));

	check_code(page, code);
	if (!code)
		model[page].val = val;
}

static void op_guest_read(struct stress_thread *t, u64 page)
{
	ask_guest(t, page, false, model[page].val);
}

static void op_guest_write(struct stress_thread *t, u64 page)
{
	model[page].val = t->next_val++;
	ask_guest(t, page, true, model[page].val);
}

static u64 random_flags(struct stress_thread *t)
{
	u32 i = kvm_random_u32(&t->random) % ARRAY_SIZE(gmem_content_flags);

	return gmem_content_flags[i];
}

/* The default of this file is PRESERVE. */
static void model_convert(u64 first, u64 nr, bool private, u64 flags)
{
	u64 page;

	for (page = first; page < first + nr; page++) {
		model[page].private = private;
		if (flags & (GMEM_ZERO | GMEM_DISCARD))
			model[page].val = 0;
		/* With ZERO a large page may come in the place of single ones. */
		if (flags & GMEM_DISCARD || (flags & GMEM_ZERO && is_huge()))
			model[page].present = false;
	}
}

static void op_convert(struct stress_thread *t, u64 page)
{
	bool private = kvm_random_bool(&t->random);
	u64 flags = random_flags(t);

	gmem_convert_pages(&g, page, 1, private ? GMEM_PRIVATE : GMEM_SHARED, flags);
	model_convert(page, 1, private, flags);
}

/* EAGAIN, as another thread may hold another part of a large page. */
static void punch_pages(u64 first, u64 nr)
{
	int r;

	gmem_wait_until(!(r = fallocate(g.fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
					first * PAGE_SIZE, nr * PAGE_SIZE)) ||
			errno != EAGAIN || !(file_flags & GUEST_MEMFD_FLAG_HUGE));
	TEST_ASSERT(!r, "Punching %lu pages at %lu: errno %d", nr, first, errno);
}

static void op_punch(struct stress_thread *t, u64 page)
{
	punch_pages(page, 1);
	model[page].val = 0;
	model[page].present = false;
}

static void op_allocate(struct stress_thread *t, u64 page)
{
	gmem_allocate(&g, page, 1);
	model[page].present = true;
}

/* write() fills what is absent, on either side, and leaves alone what is not. */
static void op_fill(struct stress_thread *t, u64 page)
{
	struct page_model *m = &model[page];
	u64 words[PAGE_SIZE / sizeof(u64)], val = t->next_val++;
	ssize_t r;

	gmem_fill_words(words, val);
	r = pwrite(g.fd, words, PAGE_SIZE, page * PAGE_SIZE);
	TEST_ASSERT(r == PAGE_SIZE ? !m->present :
		    r == -1 && errno == EEXIST && (m->present || is_huge()),
		    "write() to page %lu, present %d: %ld, %s", page, m->present, r,
		    strerror(errno));
	m->present = true;
	if (r == PAGE_SIZE)
		m->val = val;
	__atomic_add_fetch(r == PAGE_SIZE ? &nr_filled : &nr_refused, 1, __ATOMIC_RELAXED);
}

/* A conversion that must fail, and change nothing. */
static void op_held(struct stress_thread *t, u64 page)
{
	int pipes[2], r;

	if (model[page].private || (userfault && !model[page].present))
		return;

	hold_by_pipe(pipes, g.mem + page * PAGE_SIZE);
	r = __gmem_convert(g.fd, page * PAGE_SIZE, PAGE_SIZE, GMEM_PRIVATE, 0, NULL);
	TEST_ASSERT(r == EAGAIN, "Converting held page %lu: %s", page, strerror(r));
	release_pipe(pipes);
	model[page].present = true;
}

static const struct op {
	void (*fn)(struct stress_thread *t, u64 page);
	u32 weight;
} ops[] = {
	{ op_convert, 6 },
	{ op_user_read, 3 },
	{ op_user_write, 3 },
	{ op_guest_read, 2 },
	{ op_guest_write, 2 },
	{ op_punch, 1 },
	{ op_allocate, 1 },
	{ op_fill, 2 },
	{ op_held, 1 },
};

static void random_op(struct stress_thread *t)
{
	u64 page = kvm_random_u32(&t->random) % (nr_pages / NR_THREADS);
	u32 i, pick, total = 0;

	for (i = 0; i < ARRAY_SIZE(ops); i++)
		total += ops[i].weight;

	pick = kvm_random_u32(&t->random) % total;
	for (i = 0; pick >= ops[i].weight; i++)
		pick -= ops[i].weight;

	ops[i].fn(t, page * NR_THREADS + t->id);
}

/* ---- Operations on the whole file, while all others stand still ---- */

static void whole_convert(struct stress_thread *t)
{
	u64 first = kvm_random_u32(&t->random) % nr_pages;
	u64 nr = 1 + kvm_random_u32(&t->random) % (nr_pages - first);
	bool private = kvm_random_bool(&t->random);
	u64 flags = random_flags(t);

	gmem_convert_pages(&g, first, nr, private ? GMEM_PRIVATE : GMEM_SHARED, flags);
	model_convert(first, nr, private, flags);
}

static void whole_punch(struct stress_thread *t)
{
	u64 page;

	punch_pages(0, nr_pages);
	for (page = 0; page < nr_pages; page++) {
		model[page].val = 0;
		model[page].present = false;
	}
}

/* Only thus do large pages come back that conversions have split. */
static void whole_renew(struct stress_thread *t)
{
	bool private = kvm_random_bool(&t->random);
	u64 flags = kvm_random_bool(&t->random) ? GMEM_ZERO : GMEM_DISCARD;

	gmem_convert_pages(&g, 0, nr_pages, private ? GMEM_PRIVATE : GMEM_SHARED, flags);
	model_convert(0, nr_pages, private, flags);
}

/* vCPUs run on, and find what is present as they had it. */
static void whole_switch(struct stress_thread *t)
{
	struct kvm_userspace_memory_region2 region = {
		.slot = g.slot,
		.flags = KVM_MEM_GUEST_MEMFD | (userfault ? 0 : KVM_MEM_USERFAULT),
		.guest_phys_addr = g.gpa,
		.memory_size = g.size,
		.userspace_addr = g.no_user_addr ? 0 : (u64)g.mem,
		.guest_memfd = g.fd,
	};

	if (!vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_USERFAULT))
		return;

	vm_ioctl(vm, KVM_SET_USER_MEMORY_REGION2, &region);
	userfault = !userfault;
}

static void whole_rebind(struct stress_thread *t)
{
	gmem_unbind(&g);
	userfault = false;
	if (kvm_random_bool(&t->random))
		whole_convert(t);
	gmem_bind(&g, GMEM_SLOT, GMEM_GPA);
}

static void whole_remap(struct stress_thread *t)
{
	gmem_unbind(&g);
	userfault = false;
	g.no_user_addr = kvm_random_bool(&t->random);
	kvm_munmap(g.mem, g.size);
	g.mem = kvm_mmap(g.size, PROT_READ | PROT_WRITE, MAP_SHARED, g.fd);
	gmem_bind(&g, GMEM_SLOT, GMEM_GPA);
}

static void whole_check(struct stress_thread *t)
{
	u64 page;

	for (page = 0; page < nr_pages; page++)
		check_user_page(page);
}

static void (* const whole_ops[])(struct stress_thread *t) = {
	whole_convert,
	whole_convert,
	whole_punch,
	whole_renew,
	whole_switch,
	whole_switch,
	whole_rebind,
	whole_remap,
	whole_check,
};

static void *stress_thread(void *arg)
{
	struct stress_thread *t = arg;
	u64 i;

	for (i = 0; i < ops_per_thread; i++) {
		if (kvm_random_u32(&t->random) % WHOLE_FILE_ONE_IN) {
			pthread_rwlock_rdlock(&world);
			random_op(t);
		} else {
			pthread_rwlock_wrlock(&world);
			whole_ops[kvm_random_u32(&t->random) % ARRAY_SIZE(whole_ops)](t);
		}
		pthread_rwlock_unlock(&world);
	}
	return NULL;
}

/* ---- Set-up ---- */

static void start_threads(u32 seed)
{
	pthread_rwlockattr_t attr;
	u64 i;

	pthread_rwlockattr_init(&attr);
	pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&world, &attr);

	for (i = 0; i < NR_THREADS; i++) {
		threads[i] = (struct stress_thread) {
			.random = new_kvm_random_state(seed + i),
			.next_val = (i + 1) << 56,
			.box = gmem_guest_var(vm, mailboxes[i]),
			.id = i,
		};
		kvm_pthread_create(&threads[i].thread, NULL, stress_thread, &threads[i]);
	}
}

/* The guest looks at every page once more, then the user at all bytes. */
static void final_check(void)
{
	u64 page;

	for (page = 0; page < nr_pages; page++) {
		check_user_page(page);
		op_guest_read(&threads[page % NR_THREADS], page);
	}
	gmem_to_shared(&g, 0, nr_pages, GMEM_PRESERVE);
	for (page = 0; page < nr_pages; page++) {
		model[page].private = false;
		check_user_page(page);
	}
}

static void run_stress(u32 seed)
{
	pthread_t vcpu_threads[NR_VCPUS];
	struct kvm_vcpu *vcpus[NR_VCPUS];
	u64 i, nr_cached = gmem_nr_file_pages();

	vm = gmem_vm_create(NR_VCPUS, guest_code, vcpus);
	virt_map(vm, GMEM_GPA, GMEM_GPA, nr_pages);
	gmem_new(&g, vm, nr_pages, file_flags);

	for (i = 0; i < NR_VCPUS; i++) {
		vcpu_args_set(vcpus[i], 1, i);
		kvm_pthread_create(&vcpu_threads[i], NULL, vcpu_thread, vcpus[i]);
	}

	start_threads(seed);
	for (i = 0; i < NR_THREADS; i++)
		kvm_pthread_join(threads[i].thread, NULL);
	final_check();

	WRITE_ONCE(*gmem_guest_var(vm, guest_stop), 1);
	for (i = 0; i < NR_VCPUS; i++)
		kvm_pthread_join(vcpu_threads[i], NULL);
	TEST_ASSERT_EQ(vm_get_stat(vm, gmem_pages_private), 0);
	gmem_destroy(&g);
	kvm_vm_free(vm);
	TEST_ASSERT_EQ(gmem_nr_file_pages(), nr_cached);
	printf("write(): %lu filled, %lu refused; %lu exits for what was missing\n", nr_filled,
	       nr_refused, nr_missing);
	TEST_ASSERT(nr_filled && nr_refused, "write() has not met both");
}

int main(int argc, char *argv[])
{
	u32 seed = gmem_now_ns() % INT32_MAX;
	u64 nr_ops = GMEM_LOOPS(DEFAULT_OPS);
	int opt;

	while ((opt = getopt(argc, argv, "hDHs:n:")) != -1) {
		switch (opt) {
		case 'D':
			file_flags |= GUEST_MEMFD_FLAG_NO_DIRECT_MAP;
			break;
		case 'H':
			file_flags |= GUEST_MEMFD_FLAG_HUGE;
			nr_pages = NR_PAGES_HUGE;
			break;
		case 's':
			seed = atoi_positive("seed", optarg);
			break;
		case 'n':
			nr_ops = atoi_positive("number of operations", optarg);
			break;
		default:
			printf("usage: %s [-D] [-H] [-s seed] [-n operations]\n", argv[0]);
			return opt == 'h' ? 0 : KSFT_FAIL;
		}
	}

	TEST_REQUIRE(gmem_conversion_supported());
	TEST_REQUIRE(!(file_flags & ~kvm_check_cap(KVM_CAP_GUEST_MEMFD_FLAGS)));

	/* Zero would be the end of all randomness. */
	seed = seed ?: 1;
	ops_per_thread = (nr_ops + NR_THREADS - 1) / NR_THREADS;
	printf("Seed %u, %lu operations: %s%s%s -s %u -n %lu\n", seed,
	       ops_per_thread * NR_THREADS, argv[0], is_huge() ? " -H" : "",
	       file_flags & GUEST_MEMFD_FLAG_NO_DIRECT_MAP ? " -D" : "", seed, nr_ops);

	gmem_test_init();
	run_stress(seed);
	printf("PASS\n");
	return 0;
}
