// SPDX-License-Identifier: GPL-2.0-only
/*
 * The fuzzer with threads: everything at once, on two VMs with one file each.
 *
 * There is no telling what a single call finds.  What holds all the same:
 *
 *  - What a guest has written to a private page is a secret; no host ever sees one.
 *    For this pages leave the private side with ZERO or DISCARD only, and a guest
 *    writes secrets while nobody can convert the page.
 *  - Every word that anyone reads is zero, or was written to this VM by someone.
 *  - Calls fail with the errors that they may fail with.
 *  - At the end the VM works, and knows the state of each page.
 *
 * That memory comes back, and that the kernel has nothing to say, is seen to by who
 * started the process.
 */
#include "guest_memfd_fuzz.h"

#include <sys/mman.h>

#define RACE_MAX_THREADS	16u

/* Pages at the start of each file that most operations are about. */
#define NR_HOT			12u

/* The top of each word tells who has written it, the rest on which VM. */
#define TAG_SHIFT		48
#define TAG_SECRET		0x5ec7ull
#define TAG_PUBLIC		0x9b1cull
#define TAG_VM_SHIFT		32

struct race_vm {
	struct fuzz_vm *vm;
	u64 flags;
	u64 nr;
	u8 *map;
	int fd;
	/* What write() fills with. */
	u8 *source;
	/* One slot, which goes and comes, and changes, with the lock held. */
	pthread_mutex_t slot_lock;
	bool userfault;
	unsigned long bitmap[FUZZ_MAX_PAGES / BITS_PER_LONG];
	/* Its state may change only with the lock held for write. */
	struct race_page {
		pthread_rwlock_t lock;
		bool private;
	} pages[FUZZ_MAX_PAGES];
};

struct race_thread {
	struct kvm_random_state random;
	struct race_vm *rv;
	struct fuzz_hold hold;
	pthread_t thread;
	u8 *map;
	u32 nr_ops;
};

static struct race_thread race_threads[RACE_MAX_THREADS];
static struct race_vm race_vms[FUZZ_NR_VMS];
static struct fuzz_world *race_world;
static pthread_mutex_t poison_lock = PTHREAD_MUTEX_INITIALIZER;

/* vCPUs that still have something to do; so long the others go on. */
static u32 nr_vcpus_busy;

static u64 make_word(struct race_vm *rv, u64 tag, u32 val)
{
	return tag << TAG_SHIFT | (u64)(rv - race_vms) << TAG_VM_SHIFT | val;
}

/* Is @word what someone may see who does, or doesn't, see secrets? */
static void check_word(struct race_vm *rv, u64 word, bool secrets, const char *who, u64 page)
{
	u64 tag = word >> TAG_SHIFT;
	bool known = tag == TAG_PUBLIC || (secrets && tag == TAG_SECRET);

	fuzz_check(race_world, !word ||
		   (known && (word >> TAG_VM_SHIFT & 0xffff) == rv - race_vms),
		   "%s, VM %ld page %lu: 0x%lx", who, rv - race_vms, page, word);
}

static u32 random_below(struct race_thread *t, u32 n)
{
	return kvm_random_u32(&t->random) % n;
}

/* Mostly one of a few, where others are as well; their neighbours are in large pages. */
static u64 random_page(struct race_thread *t)
{
	if (random_below(t, 8))
		return random_below(t, NR_HOT);
	return random_below(t, t->rv->nr);
}

/* ---- Filling ---- */

static void clear_bits(struct race_vm *rv, u64 first, u64 nr)
{
	u64 bit;

	for (bit = first; bit < first + nr; bit++)
		__atomic_and_fetch(&rv->bitmap[BIT_WORD(bit)], ~BIT_MASK(bit), __ATOMIC_RELEASE);
}

static void fill_pages(struct race_vm *rv, u64 first, u64 nr)
{
	ssize_t r;

	if (!(rv->flags & GUEST_MEMFD_FLAG_WRITE))
		return;

	r = pwrite(rv->fd, rv->source, nr * PAGE_SIZE, first * PAGE_SIZE);
	fuzz_check(race_world, (r > 0 && !(r % PAGE_SIZE) && r <= nr * PAGE_SIZE) ||
		   (r == -1 && (errno == EEXIST || errno == EINTR || errno == ENOMEM)),
		   "write() of %lu+%lu: %ld, %s", first, nr, r, strerror(errno));
	fuzz_count(r > 0 ? FUZZ_FILLED : errno == EEXIST ? FUZZ_FILL_EEXIST : FUZZ_FILL_ENOMEM);
}

/* The guest needs what is missing.  As a VMM would, mostly. */
static void serve_missing(struct race_vm *rv, u32 how)
{
	struct kvm_run *run = rv->vm->vcpu->run;
	u64 first = (run->memory_fault.gpa - GMEM_GPA) / PAGE_SIZE;
	u64 nr = run->memory_fault.size / PAGE_SIZE;

	fuzz_count(FUZZ_MISSING_ABSENT);
	if (nr > 1)
		fuzz_count(FUZZ_MISSING_BLOCK);
	if (!(how % 4))
		return;
	if (how % 4 < 3)
		fill_pages(rv, first, nr);
	else
		fallocate(rv->fd, FALLOC_FL_KEEP_SIZE, first * PAGE_SIZE, nr * PAGE_SIZE);
	clear_bits(rv, first, nr);
}

static bool is_missing_exit(struct race_vm *rv, int r)
{
	struct kvm_run *run = rv->vm->vcpu->run;

	return r == EFAULT && run->exit_reason == KVM_EXIT_MEMORY_FAULT &&
	       run->memory_fault.flags & KVM_MEMORY_EXIT_FLAG_USERFAULT;
}

/* ---- vCPUs ---- */

/* The lock keeps the state of the page, but for that nothing is kept from anyone. */
static void vcpu_touch(struct race_vm *rv, u64 page, u32 what)
{
	struct race_page *p = &rv->pages[page];
	bool secret, write = what & 1;
	u64 val, seen;
	int r;

	pthread_rwlock_rdlock(&p->lock);
	secret = p->private && rv->vm->has_private;
	val = write ? make_word(rv, secret ? TAG_SECRET : TAG_PUBLIC, what) : 0;
	r = fuzz_guest_run(rv->vm, page, write ? FUZZ_GUEST_WRITE : FUZZ_GUEST_READ, val, &seen);
	fuzz_check(race_world, r == 0 || r == FUZZ_MMIO || r == EHWPOISON || r == ENOMEM ||
		   is_missing_exit(rv, r),
		   "Guest, VM %ld page %lu: %s", rv - race_vms, page, strerror(r));
	if (is_missing_exit(rv, r))
		serve_missing(rv, what / 2);
	if (!r && !write)
		check_word(rv, seen, secret, "Guest", page);
	pthread_rwlock_unlock(&p->lock);
}

static void *vcpu_thread(void *arg)
{
	struct race_thread *t = arg;
	struct race_vm *rv = t->rv;
	u32 what, i;

	for (i = 0; i < t->nr_ops; i++) {
		what = kvm_random_u32(&t->random);
		if (!(what % 16) && !rv->vm->nested && fuzz_may(race_world, FUZZ_FAULT_PRE_FAULT))
			gmem_pre_fault(rv->vm->vcpu, GMEM_GPA + what / 16 % rv->nr * PAGE_SIZE,
				       1 + what / 64 % 8);
		vcpu_touch(rv, random_page(t), what);
	}
	__atomic_sub_fetch(&nr_vcpus_busy, 1, __ATOMIC_RELEASE);
	return NULL;
}

/* ---- Conversions ---- */

static void lock_pages(struct race_vm *rv, u64 first, u64 nr)
{
	u64 page;

	for (page = first; page < first + nr; page++)
		pthread_rwlock_wrlock(&rv->pages[page].lock);
}

static void unlock_pages(struct race_vm *rv, u64 first, u64 nr, int r, bool private)
{
	u64 page;

	for (page = first; page < first + nr; page++) {
		if (!r)
			rv->pages[page].private = private;
		pthread_rwlock_unlock(&rv->pages[page].lock);
	}
}

static void random_pages(struct race_thread *t, u64 *first, u64 *nr)
{
	u64 align = t->rv->flags & GUEST_MEMFD_FLAG_HUGE ? FUZZ_NR_LARGE : 16;

	*first = random_page(t);
	*nr = 1 + random_below(t, 6);
	switch (random_below(t, 8)) {
	case 0:
	case 1:
		*first = *first / align * align;
		*nr = align;
		break;
	case 2:
		/* A large folio and more, or nearly all, from and to amid others. */
		*nr = align + 1 + random_below(t, align);
		*first = random_below(t, align / 2);
		break;
	}
	*nr = min(*nr, t->rv->nr - *first);
}

static void convert_pages(struct race_thread *t, u64 first, u64 nr, bool private)
{
	struct race_vm *rv = t->rv;
	u64 flags;
	int r;

	if (!rv->vm->has_private)
		return;

	flags = gmem_content_flags[random_below(t, 4)];
	if (!private)
		flags = kvm_random_bool(&t->random) ? GMEM_ZERO : GMEM_DISCARD;

	lock_pages(rv, first, nr);
	r = __gmem_convert(rv->fd, first * PAGE_SIZE, nr * PAGE_SIZE,
			   private ? GMEM_PRIVATE : GMEM_SHARED, flags, NULL);
	fuzz_check(race_world, !r || r == EAGAIN, "Conversion of %lu+%lu, flags 0x%lx: %s",
		   first, nr, flags, strerror(r));
	unlock_pages(rv, first, nr, r, private);
}

static void race_convert(struct race_thread *t)
{
	u64 first, nr;

	random_pages(t, &first, &nr);
	convert_pages(t, first, nr, kvm_random_bool(&t->random));
}

static void race_punch(struct race_thread *t)
{
	bool punch = random_below(t, 3);
	u64 first, nr;
	int r;

	random_pages(t, &first, &nr);
	r = fallocate(t->rv->fd, FALLOC_FL_KEEP_SIZE | (punch ? FALLOC_FL_PUNCH_HOLE : 0),
		      first * PAGE_SIZE, nr * PAGE_SIZE) ? errno : 0;
	fuzz_check(race_world, !r || (punch && r == EAGAIN) || (!punch && r == EINTR),
		   "fallocate() of %lu+%lu, hole %d: %s", first, nr, punch, strerror(r));
}

static void race_fill(struct race_thread *t)
{
	u64 first, nr;

	random_pages(t, &first, &nr);
	fill_pages(t->rv, first, nr);
}

/* ---- Users ---- */

static void race_user_read(struct race_thread *t)
{
	u64 page = random_page(t), word = 0;
	u8 *p = t->map + page * PAGE_SIZE + random_below(t, 512) * sizeof(u64);

	if (!gmem_try_read(p, &word))
		check_word(t->rv, word, false, "User", page);
}

static void race_user_write(struct race_thread *t)
{
	u64 page = random_page(t);
	u8 *p = t->map + page * PAGE_SIZE + random_below(t, 512) * sizeof(u64);

	gmem_try_write(p, make_word(t->rv, TAG_PUBLIC, page));
}

static void race_user_copy(struct race_thread *t)
{
	u64 words[64] = {}, page = random_page(t);
	struct iovec local = { words, sizeof(words) };
	struct iovec remote = { t->map + page * PAGE_SIZE, sizeof(words) };
	ssize_t len;
	u32 i;

	len = process_vm_readv(getpid(), &local, 1, &remote, 1, 0);
	fuzz_check(race_world, len == sizeof(words) || (len == -1 && errno == EFAULT),
		   "process_vm_readv(): %ld, %s", len, strerror(errno));
	for (i = 0; i < ARRAY_SIZE(words); i++)
		check_word(t->rv, words[i], false, "process_vm_readv()", page);
}

static void race_advise(struct race_thread *t)
{
	static const int advices[] = {
		MADV_DONTNEED, MADV_COLD, MADV_PAGEOUT, MADV_COLLAPSE, MADV_HUGEPAGE,
		MADV_POPULATE_READ, MADV_POPULATE_WRITE, MADV_WILLNEED,
	};
	u64 first, nr;

	random_pages(t, &first, &nr);
	madvise(t->map + first * PAGE_SIZE, nr * PAGE_SIZE,
		advices[random_below(t, ARRAY_SIZE(advices))]);
	if (random_below(t, 4))
		return;

	mlock(t->map + first * PAGE_SIZE, nr * PAGE_SIZE);
	munlock(t->map, t->rv->nr * PAGE_SIZE);
}

/* The mapping that KVM has been told of stays, this one is the thread's own. */
static void race_remap(struct race_thread *t)
{
	size_t size = t->rv->nr * PAGE_SIZE;

	kvm_munmap(t->map, size);
	t->map = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_SHARED, t->rv->fd);
}

/*
 * Can it be that the kernel has failed to read a page because it is outside the direct map?
 * Only a bad one goes private, and out, while somebody holds it.
 */
static bool is_bad_and_out(struct race_thread *t)
{
	return errno == EFAULT && t->rv->flags & GUEST_MEMFD_FLAG_NO_DIRECT_MAP &&
	       race_world->report->nr_frames;
}

/* What is held is shared as long as it is, or has left the file before it was not. */
static void race_hold(struct race_thread *t)
{
	u64 words[8] = {}, page = random_page(t);
	struct fuzz_hold *h = &t->hold;
	ssize_t r;
	u32 i;

	if (!h->kind) {
		h->page = page;
		/* Not by gup_test, which knows of one holder only. */
		if (fuzz_take_hold(h, t->map + page * PAGE_SIZE, random_below(t, 4) ? 2 : 0))
			convert_pages(t, page, 1, true);
		return;
	}

	if (h->kind == FUZZ_PIPE) {
		r = read(h->fds[0], words, sizeof(words));
		fuzz_check(race_world, r == sizeof(words) || (r < 0 && is_bad_and_out(t)),
			   "Reading what is held: %ld, %s", r, strerror(errno));
		for (i = 0; i < ARRAY_SIZE(words); i++)
			check_word(t->rv, words[i], false, "Holder", h->page);
	}
	fuzz_drop_hold(h);
}

static void race_poison(struct race_thread *t)
{
	struct fuzz_report *report = race_world->report;
	u8 *p = t->map + random_page(t) * PAGE_SIZE;
	u64 frame;

	if (t->rv->flags & GUEST_MEMFD_FLAG_HUGE && !fuzz_may(race_world, FUZZ_FAULT_HELD_POISON))
		return;

	pthread_mutex_lock(&poison_lock);
	if (report->nr_frames < FUZZ_MAX_FRAMES && !madvise(p, PAGE_SIZE, MADV_POPULATE_READ)) {
		frame = fuzz_frame(p);
		if (frame)
			report->frames[report->nr_frames++] =
				fuzz_frame_is_lost(t->rv->flags) ? 0 : frame;
		gmem_try(madvise(p, PAGE_SIZE, MADV_HWPOISON));
	}
	pthread_mutex_unlock(&poison_lock);
}

/* ---- Slots, processes, the machine ---- */

static int set_slot(struct race_vm *rv, bool bind, u32 flags, void *bitmap)
{
	struct kvm_userspace_memory_region2 region = {
		.slot = GMEM_SLOT,
		.flags = KVM_MEM_GUEST_MEMFD | flags,
		.guest_phys_addr = GMEM_GPA,
		.memory_size = bind ? rv->nr * PAGE_SIZE : 0,
		.userspace_addr = (u64)rv->map,
		.guest_memfd = rv->fd,
		.userfault_bitmap = (u64)bitmap,
	};

	return __vm_ioctl(rv->vm->vm, KVM_SET_USER_MEMORY_REGION2, &region) ? errno : 0;
}

static int race_bind(struct race_vm *rv, bool bind)
{
	rv->userfault = false;
	return set_slot(rv, bind, 0, NULL);
}

/* With the flag what is absent is missing, or what bits say, or neither. */
static void switch_userfault(struct race_vm *rv, u32 how)
{
	bool on = how % 3;
	int r, want = on || rv->userfault ? 0 : EINVAL;

	r = set_slot(rv, true, on ? KVM_MEM_USERFAULT : 0, how % 3 == 2 ? rv->bitmap : NULL);
	fuzz_check(race_world, r == want, "Switching VM %ld from %d to %u: %s", rv - race_vms,
		   rv->userfault, how % 3, strerror(r));
	if (!r)
		rv->userfault = on;
	fuzz_count(r ? FUZZ_SWITCH_EINVAL : on ? FUZZ_SWITCHED_ON : FUZZ_SWITCHED_OFF);
}

static void race_userfault(struct race_thread *t)
{
	struct race_vm *rv = t->rv;
	u64 bit, first, nr;

	if (!rv->vm->userfault)
		return;

	random_pages(t, &first, &nr);
	for (bit = first; bit < first + nr; bit++)
		__atomic_or_fetch(&rv->bitmap[BIT_WORD(bit)], BIT_MASK(bit), __ATOMIC_RELAXED);

	pthread_mutex_lock(&rv->slot_lock);
	switch_userfault(rv, random_below(t, 3));
	pthread_mutex_unlock(&rv->slot_lock);
}

static void race_slot(struct race_thread *t)
{
	struct race_vm *rv = t->rv;
	int r;

	pthread_mutex_lock(&rv->slot_lock);
	r = race_bind(rv, false);
	fuzz_check(race_world, !r, "Deleting the slot of VM %ld: %s", rv - race_vms, strerror(r));
	if (random_below(t, 2))
		race_punch(t);
	r = race_bind(rv, true);
	fuzz_check(race_world, !r, "Binding VM %ld: %s", rv - race_vms, strerror(r));
	pthread_mutex_unlock(&rv->slot_lock);
}

/* A page that can change sides is shown once. */
static void race_slot_twice(struct race_thread *t)
{
	struct kvm_userspace_memory_region2 region = {
		.slot = GMEM_SLOT + 1,
		.flags = KVM_MEM_GUEST_MEMFD,
		.guest_phys_addr = GMEM_GPA + FUZZ_WINDOW / 2 * PAGE_SIZE,
		.memory_size = t->rv->nr * PAGE_SIZE,
		.guest_memfd = t->rv->fd,
	};
	int r;

	if (!fuzz_may(race_world, FUZZ_FAULT_ALIAS) && !t->rv->vm->has_private)
		return;

	pthread_mutex_lock(&t->rv->slot_lock);
	r = __vm_ioctl(t->rv->vm->vm, KVM_SET_USER_MEMORY_REGION2, &region) ? errno : 0;
	fuzz_check(race_world, r == (t->rv->vm->has_private ? EEXIST : 0), "Second slot: %s",
		   strerror(r));
	region.memory_size = 0;
	if (!r)
		vm_ioctl(t->rv->vm->vm, KVM_SET_USER_MEMORY_REGION2, &region);
	pthread_mutex_unlock(&t->rv->slot_lock);
}

static void __noreturn race_child(struct race_thread *t)
{
	u64 page, word;
	int r;

	for (page = 0; page < t->rv->nr; page++)
		if (!gmem_try_read(t->map + page * PAGE_SIZE, &word))
			check_word(t->rv, word, false, "Child", page);
	r = __gmem_convert(t->rv->fd, 0, PAGE_SIZE, GMEM_PRIVATE, 0, NULL);
	fuzz_check(race_world, r == EIO, "Conversion by a child: %s", strerror(r));
	_exit(0);
}

static void race_fork(struct race_thread *t)
{
	bool kill_it = kvm_random_bool(&t->random);
	int status;
	pid_t pid;

	fflush(NULL);
	pid = fork();
	TEST_ASSERT(pid >= 0, "fork() failed");
	if (!pid)
		race_child(t);

	if (kill_it)
		kill(pid, SIGKILL);
	while (waitpid(pid, &status, 0) < 0)
		TEST_ASSERT_EQ(errno, EINTR);
	if (WIFEXITED(status) && WEXITSTATUS(status))
		_exit(KSFT_FAIL);
}

/* A signal to a thread that may be in any of the calls above, and memory on the move. */
static void race_disturb(struct race_thread *t)
{
	u32 i = random_below(t, RACE_MAX_THREADS);

	if (race_threads[i].thread)
		pthread_kill(race_threads[i].thread, SIGUSR1);
	if (!random_below(t, 32))
		gmem_write_file("/proc/sys/vm/compact_memory", "1");
	if (!random_below(t, 32))
		gmem_write_file("/proc/sys/vm/drop_caches", "3");
}

static const struct race_op {
	void (*fn)(struct race_thread *t);
	u32 weight;
} race_ops[] = {
	{ race_convert, 24 },
	{ race_punch, 6 },
	{ race_fill, 8 },
	{ race_userfault, 3 },
	{ race_user_read, 20 },
	{ race_user_write, 10 },
	{ race_user_copy, 8 },
	{ race_advise, 4 },
	{ race_remap, 2 },
	{ race_hold, 8 },
	{ race_poison, 1 },
	{ race_slot, 1 },
	{ race_slot_twice, 1 },
	{ race_fork, 1 },
	{ race_disturb, 6 },
};

static void *race_thread(void *arg)
{
	struct race_thread *t = arg;
	u32 i, j, pick, total = 0;

	for (j = 0; j < ARRAY_SIZE(race_ops); j++)
		total += race_ops[j].weight;

	for (i = 0; i < t->nr_ops || READ_ONCE(nr_vcpus_busy); i++) {
		pick = random_below(t, total);
		for (j = 0; pick >= race_ops[j].weight; j++)
			pick -= race_ops[j].weight;
		race_ops[j].fn(t);
		sched_yield();
	}
	if (t->hold.kind)
		fuzz_drop_hold(&t->hold);
	return NULL;
}

/* ---- The whole of it ---- */

static void race_signal(int sig)
{
}

static void setup_vm(struct race_vm *rv, struct kvm_random_state *random, bool private)
{
	u64 page;

	rv->vm = &race_world->vms[rv - race_vms];
	rv->flags = GMEM_SHARED_FILE;
	rv->nr = FUZZ_NR_SMALL;
	if (!(kvm_random_u32(random) % 3)) {
		rv->flags |= GUEST_MEMFD_FLAG_HUGE;
		rv->nr = 2 * FUZZ_NR_LARGE;
	}

	rv->flags |= GUEST_MEMFD_FLAG_WRITE;
	if (!(kvm_random_u32(random) % 3))
		rv->flags |= GUEST_MEMFD_FLAG_NO_DIRECT_MAP;

	fuzz_vm_create(race_world, rv->vm, private, !(kvm_random_u32(random) % 4) &&
		       (rv->nr == FUZZ_NR_SMALL || fuzz_may(race_world, FUZZ_FAULT_NESTED_HUGE)));
	rv->flags &= rv->vm->file_flags;
	if (rv->flags & GUEST_MEMFD_FLAG_NO_DIRECT_MAP)
		fuzz_count(private ? FUZZ_HIDDEN_IN_PLACE : FUZZ_HIDDEN_FIXED);
	rv->fd = vm_create_guest_memfd(rv->vm->vm, rv->nr * PAGE_SIZE, rv->flags);
	rv->map = kvm_mmap(rv->nr * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, rv->fd);
	rv->source = kvm_mmap(rv->nr * PAGE_SIZE, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS, -1);
	for (page = 0; page < rv->nr; page++)
		gmem_fill_words((u64 *)(rv->source + page * PAGE_SIZE),
				make_word(rv, TAG_PUBLIC, page));
	pthread_mutex_init(&rv->slot_lock, NULL);
	for (page = 0; page < rv->nr; page++)
		pthread_rwlock_init(&rv->pages[page].lock, NULL);
	TEST_ASSERT_EQ(race_bind(rv, true), 0);
}

static void start_thread(struct race_thread *t, u32 seed, struct race_vm *rv, u32 nr_ops,
			 void *(*fn)(void *arg))
{
	*t = (struct race_thread) {
		.random = new_kvm_random_state(seed),
		.nr_ops = nr_ops,
		.rv = rv,
	};
	t->map = kvm_mmap(rv->nr * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, rv->fd);
	kvm_pthread_create(&t->thread, NULL, fn, t);
}

/* The state of each page is what the locks say, poison apart. */
static void check_states(struct race_vm *rv)
{
	u64 page, word;
	int code;

	for (page = 0; page < rv->nr; page++) {
		code = gmem_try_read(rv->map + page * PAGE_SIZE, &word);
		fuzz_check(race_world, code == BUS_MCEERR_AR ||
			   code == (rv->pages[page].private ? BUS_ADRERR : 0),
			   "VM %ld page %lu, private %d: si_code %d", rv - race_vms, page,
			   rv->pages[page].private, code);
	}
}

/* Nobody holds anything any more: the guest gets new pages, and what it writes stays. */
static void check_usable(struct race_vm *rv)
{
	u64 attributes = rv->vm->has_private ? GMEM_PRIVATE : GMEM_SHARED;
	u64 page, word, seen;
	int r;

	if (rv->vm->has_private)
		r = gmem_convert_retry(rv->fd, 0, rv->nr * PAGE_SIZE, attributes, GMEM_DISCARD);
	else
		r = fallocate(rv->fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, 0,
			      rv->nr * PAGE_SIZE);
	fuzz_check(race_world, !r, "VM %ld, new pages: %s", rv - race_vms, strerror(r));

	for (page = 0; page < rv->nr; page += rv->nr / FUZZ_NR_SMALL) {
		word = make_word(rv, TAG_PUBLIC, page);
		r = fuzz_guest_run(rv->vm, page, FUZZ_GUEST_READ, 0, &seen);
		fuzz_check(race_world, !r && !seen, "New page %lu: %d, 0x%lx", page, r, seen);
		r = fuzz_guest_run(rv->vm, page, FUZZ_GUEST_WRITE, word, &seen);
		fuzz_check(race_world, !r, "Writing new page %lu: %d", page, r);
		r = fuzz_guest_run(rv->vm, page, FUZZ_GUEST_READ, word, &seen);
		fuzz_check(race_world, !r && seen == word, "Page %lu: %d, 0x%lx", page, r, seen);
	}
}

/* In any order, or all at once. */
static void tear_down(struct kvm_random_state *random)
{
	struct race_vm *rv;
	u32 order, i;

	for (rv = race_vms; rv < race_vms + FUZZ_NR_VMS; rv++) {
		order = kvm_random_u32(random);
		if (!(order % 4))
			continue;
		for (i = 0; i < 3; i++) {
			switch ((order + i) % 3) {
			case 0:
				kvm_munmap(rv->map, rv->nr * PAGE_SIZE);
				break;
			case 1:
				close(rv->fd);
				break;
			case 2:
				kvm_vm_free(rv->vm->vm);
				break;
			}
		}
	}
	race_world->report->done = true;
	raise(SIGKILL);
}

static void run_threads(u32 seed, u32 nr_threads, u32 nr_ops)
{
	struct race_thread *vcpus = race_threads + nr_threads;
	u32 i;

	nr_vcpus_busy = FUZZ_NR_VMS;
	for (i = 0; i < nr_threads; i++)
		start_thread(&race_threads[i], seed + i, &race_vms[i % FUZZ_NR_VMS],
			     nr_ops / nr_threads, race_thread);
	for (i = 0; i < FUZZ_NR_VMS; i++)
		start_thread(&vcpus[i], seed + nr_threads + i, &race_vms[i],
			     nr_ops, vcpu_thread);

	for (i = 0; i < nr_threads; i++)
		kvm_pthread_join(race_threads[i].thread, NULL);
	for (i = 0; i < FUZZ_NR_VMS; i++)
		kvm_pthread_join(vcpus[i].thread, NULL);
}

void fuzz_race(struct fuzz_report *report, u32 seed, u32 nr_threads, u32 nr_ops, u32 faults)
{
	struct kvm_random_state random = new_kvm_random_state(seed);
	u32 i;

	race_world = calloc(1, sizeof(*race_world));
	TEST_ASSERT(race_world, "No memory for the VMs");
	fuzz_world_init(race_world, report, faults, false);
	signal(SIGUSR1, race_signal);
	for (i = 0; i < FUZZ_NR_VMS; i++)
		setup_vm(&race_vms[i], &random, !i || kvm_random_bool(&random));

	nr_threads = min(nr_threads, RACE_MAX_THREADS - FUZZ_NR_VMS);
	run_threads(seed, nr_threads, nr_ops);
	for (i = 0; i < FUZZ_NR_VMS; i++) {
		if (race_vms[i].userfault)
			switch_userfault(&race_vms[i], 0);
		check_states(&race_vms[i]);
		check_usable(&race_vms[i]);
	}
	tear_down(&random);
}
