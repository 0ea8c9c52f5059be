// SPDX-License-Identifier: GPL-2.0-only
/*
 * write() to guest_memfd: holes are filled, with all of a page or nothing, and what is
 * present is never overwritten.
 */
#include "gmem_util.h"
#include "kvm_test_harness.h"

#include <linux/limits.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>

/* Page i holds VAL + i; OTHER is what another writer brings. */
#define VAL		0x1122334455660000ul
#define OTHER		0x99aabbccddee0000ul

#define WRITE		GUEST_MEMFD_FLAG_WRITE
#define SHARED		(GMEM_SHARED_FILE | WRITE)
#define HUGE		(SHARED | GUEST_MEMFD_FLAG_HUGE)

#define NR		16ul

/* Pages of a block, i.e. entries of a table of 8 bytes each. */
#define BLOCK		(PAGE_SIZE / 8)

/* Pages of the guest's 1:1 mapping at GMEM_GPA. */
#define NR_MAPPED	(2 * BLOCK)

FIXTURE(write) {
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	u8 *src;
};

FIXTURE_VARIANT(write) {
	bool protected;
};

/* A VM type without private memory. */
FIXTURE_VARIANT_ADD(write, plain) {};

#ifdef __x86_64__
FIXTURE_VARIANT_ADD(write, protected) {
	.protected = true,
};
#endif

static void setup(struct kvm_vm **vm, struct kvm_vcpu **vcpu, u8 **src, bool protected)
{
	u64 i;

	gmem_page_size = getpagesize();
	gmem_test_init();

#ifdef __x86_64__
	if (protected)
		*vm = gmem_vm_create(1, gmem_guest_server, vcpu);
	else
#endif
		*vm = vm_create_with_one_vcpu(vcpu, gmem_guest_server);

	TEST_ASSERT(vm_check_cap(*vm, KVM_CAP_GUEST_MEMFD_FLAGS) & WRITE,
		    "GUEST_MEMFD_FLAG_WRITE is not offered");

	sync_global_to_guest(*vm, gmem_page_size);
	vcpu_args_set(*vcpu, 1, 0);
	virt_map(*vm, GMEM_GPA, GMEM_GPA, NR_MAPPED);

	*src = kvm_mmap(NR_MAPPED * PAGE_SIZE, PROT_READ | PROT_WRITE,
			MAP_ANONYMOUS | MAP_PRIVATE, -1);
	for (i = 0; i < NR_MAPPED; i++)
		gmem_fill_words((u64 *)(*src + i * PAGE_SIZE), VAL + i);
}

static void teardown(struct kvm_vm *vm, u8 *src)
{
	TEST_ASSERT_EQ(vm_get_stat(vm, gmem_pages_shared), 0);
	TEST_ASSERT_EQ(vm_get_stat(vm, gmem_pages_private), 0);
	kvm_munmap(src, NR_MAPPED * PAGE_SIZE);
	kvm_vm_free(vm);
}

FIXTURE_SETUP(write)
{
	setup(&self->vm, &self->vcpu, &self->src, variant->protected);
}

FIXTURE_TEARDOWN(write)
{
	teardown(self->vm, self->src);
}

#define WRITE_TEST(name)	TEST_F_TIMEOUT(write, name, GMEM_TIMEOUT_S)

/* Pages [@first, @first + @nr) of the file, from the same pages of @src, at once. */
static ssize_t put(struct gmem *g, const u8 *src, u64 first, u64 nr)
{
	return pwrite(g->fd, src + first * PAGE_SIZE, nr * PAGE_SIZE, first * PAGE_SIZE);
}

#define expect_pages(expr, nr)							\
do {										\
	ssize_t __want = (nr) * PAGE_SIZE, __r = (expr);			\
										\
	TEST_ASSERT(__r == __want, #expr ": %ld, want %ld (%s)", __r, __want,	\
		    __r < 0 ? strerror(errno) : "short");			\
} while (0)

static u64 nr_present(struct gmem *g)
{
	struct stat st;

	TEST_ASSERT(!fstat(g->fd, &st), "fstat: %s", strerror(errno));
	return st.st_blocks * 512 / PAGE_SIZE;
}

/* Holes are filled, host and guest see it, and the rest is still holes. */
WRITE_TEST(fills_holes)
{
	struct gmem g;

	gmem_new(&g, self->vm, NR, SHARED);
	expect_pages(put(&g, self->src, 2, 3), 3);
	TEST_ASSERT_EQ(nr_present(&g), 3);
	TEST_ASSERT_EQ(vm_get_stat(self->vm, gmem_pages_shared), 3);

	gmem_host_check(&g, 2, 3, VAL + 2);
	gmem_guest_check_fill(self->vcpu, &g, 2, 3, VAL + 2);
	gmem_guest_check_zero(self->vcpu, &g, 0, 2);
	gmem_guest_check_zero(self->vcpu, &g, 5, NR - 5);
	gmem_destroy(&g);
}

/* write() and writev() go on where they were, and stay within the file. */
WRITE_TEST(position)
{
	struct gmem g;
	struct iovec iov[] = {
		/* Pieces that are no pages add up to two of them. */
		{ self->src + 2 * PAGE_SIZE, 100 },
		{ self->src + 2 * PAGE_SIZE + 100, PAGE_SIZE - 200 },
		{ self->src + 3 * PAGE_SIZE - 100, 100 + PAGE_SIZE },
	};

	gmem_new(&g, self->vm, NR, SHARED);
	TEST_ASSERT_EQ(write(g.fd, self->src, 0), 0);
	expect_pages(write(g.fd, self->src, 2 * PAGE_SIZE), 2);
	expect_pages(writev(g.fd, iov, ARRAY_SIZE(iov)), 2);
	TEST_ASSERT_EQ(lseek(g.fd, 0, SEEK_CUR), 4 * PAGE_SIZE);
	gmem_host_check(&g, 0, 4, VAL);

	TEST_ASSERT_EQ(lseek(g.fd, 0, SEEK_END), NR * PAGE_SIZE);
	gmem_expect_error(write(g.fd, self->src, PAGE_SIZE), EINVAL);
	TEST_ASSERT_EQ(lseek(g.fd, -PAGE_SIZE, SEEK_END), (NR - 1) * PAGE_SIZE);
	expect_pages(write(g.fd, self->src, PAGE_SIZE), 1);
	TEST_ASSERT_EQ(nr_present(&g), 5);
	gmem_destroy(&g);
}

WRITE_TEST(bad_arguments)
{
	struct iovec odd = { self->src, PAGE_SIZE - 1 };
	struct rlimit old, limit;
	int flags, fd;
	struct gmem g;

	gmem_new(&g, self->vm, NR, SHARED);
	gmem_expect_error(pwrite(g.fd, self->src, PAGE_SIZE, 1), EINVAL);
	gmem_expect_error(pwrite(g.fd, self->src, PAGE_SIZE, 512), EINVAL);
	gmem_expect_error(pwrite(g.fd, self->src, PAGE_SIZE - 1, 0), EINVAL);
	gmem_expect_error(pwrite(g.fd, self->src, 1, 0), EINVAL);
	gmem_expect_error(pwritev(g.fd, &odd, 1, 0), EINVAL);
	gmem_expect_error(pwrite(g.fd, self->src, PAGE_SIZE, -PAGE_SIZE), EINVAL);

	/* Beyond the end, and across it: nothing of it is written. */
	gmem_expect_error(pwrite(g.fd, self->src, PAGE_SIZE, NR * PAGE_SIZE), EINVAL);
	gmem_expect_error(pwrite(g.fd, self->src, PAGE_SIZE, (NR + 1) * PAGE_SIZE), EINVAL);
	gmem_expect_error(put(&g, self->src, NR - 1, 2), EINVAL);
	gmem_expect_error(pwrite(g.fd, self->src, PAGE_SIZE, LLONG_MAX & -PAGE_SIZE), EINVAL);

	/* To append is to write at the end. */
	flags = fcntl(g.fd, F_GETFL);
	TEST_ASSERT(!fcntl(g.fd, F_SETFL, flags | O_APPEND), "O_APPEND");
	gmem_expect_error(put(&g, self->src, 0, 1), EINVAL);
	TEST_ASSERT(!fcntl(g.fd, F_SETFL, flags), "F_SETFL");

	/* No waiting was asked for, which cannot be promised. */
	odd.iov_len = PAGE_SIZE;
	gmem_expect_error(pwritev2(g.fd, &odd, 1, 0, RWF_NOWAIT), EOPNOTSUPP);

	/* What a limit leaves of a page is no page. */
	TEST_ASSERT(!getrlimit(RLIMIT_FSIZE, &old), "RLIMIT_FSIZE");
	limit = old;
	limit.rlim_cur = PAGE_SIZE + 1;
	TEST_ASSERT(!setrlimit(RLIMIT_FSIZE, &limit), "RLIMIT_FSIZE");
	gmem_expect_error(put(&g, self->src, 0, 2), EINVAL);
	TEST_ASSERT(!setrlimit(RLIMIT_FSIZE, &old), "RLIMIT_FSIZE");
	TEST_ASSERT_EQ(nr_present(&g), 0);

	/* Nothing is read, and pages do not go from one file to the other. */
	gmem_expect_error(read(g.fd, self->src, PAGE_SIZE), EINVAL);
	TEST_ASSERT(pread(g.fd, self->src, PAGE_SIZE, 0) == -1, "pread()");
	fd = vm_create_guest_memfd(self->vm, NR * PAGE_SIZE, SHARED);
	TEST_ASSERT(syscall(SYS_copy_file_range, g.fd, NULL, fd, NULL, PAGE_SIZE, 0) == -1,
		    "copy_file_range()");
	TEST_ASSERT(sendfile(fd, g.fd, NULL, PAGE_SIZE) == -1, "sendfile()");
	kvm_close(fd);
	gmem_destroy(&g);
}

WRITE_TEST(not_without_flag)
{
	struct iovec iov = { self->src, PAGE_SIZE };
	struct gmem g;
	int pipes[2];

	gmem_new(&g, self->vm, NR, GMEM_SHARED_FILE);
	gmem_expect_error(put(&g, self->src, 0, 1), ENODEV);
	gmem_expect_error(write(g.fd, self->src, PAGE_SIZE), ENODEV);
	gmem_expect_error(writev(g.fd, &iov, 1), ENODEV);
	/* Whatever else is wrong. */
	gmem_expect_error(pwrite(g.fd, self->src, 1, 1), ENODEV);

	hold_by_pipe(pipes, self->src);
	gmem_expect_error(splice(pipes[0], NULL, g.fd, NULL, PAGE_SIZE, 0), ENODEV);
	release_pipe(pipes);
	TEST_ASSERT_EQ(nr_present(&g), 0);
	gmem_destroy(&g);
}

/* What is present stays as it is: EEXIST if it is the first page, else a short count. */
WRITE_TEST(never_overwrites)
{
	struct gmem g;
	u64 i;

	gmem_new(&g, self->vm, NR, SHARED);
	gmem_host_fill(&g, 4, 1, OTHER);
	gmem_guest_fill(self->vcpu, &g, 8, 1, OTHER);
	gmem_allocate(&g, 12, 1);

	for (i = 4; i <= 12; i += 4)
		gmem_expect_error(put(&g, self->src, i, 1), EEXIST);
	gmem_expect_error(put(&g, self->src, 4, NR - 4), EEXIST);
	expect_pages(put(&g, self->src, 0, NR), 4);
	expect_pages(put(&g, self->src, 5, NR - 5), 3);
	expect_pages(put(&g, self->src, 9, NR - 9), 3);
	expect_pages(put(&g, self->src, 13, 3), 3);
	/* Twice the same is a mistake, too. */
	gmem_expect_error(put(&g, self->src, 0, NR), EEXIST);

	gmem_host_check(&g, 0, 4, VAL);
	gmem_host_check(&g, 4, 1, OTHER);
	gmem_host_check(&g, 5, 3, VAL + 5);
	gmem_host_check(&g, 8, 1, OTHER);
	gmem_host_check(&g, 9, 3, VAL + 9);
	gmem_host_check_zero(&g, 12, 1);

	/* A hole is a hole again. */
	gmem_punch(&g, 4, 1);
	expect_pages(put(&g, self->src, 4, 1), 1);
	gmem_host_check(&g, 4, 1, VAL + 4);
	TEST_ASSERT_EQ(nr_present(&g), NR);
	gmem_destroy(&g);
}

/* A source that ends early fills the pages that it has all bytes of. */
WRITE_TEST(bad_source)
{
	void *nothing = NULL;
	struct gmem g;
	u8 *src;

	/* The C library declares that pwrite() takes no NULL. */
	OPTIMIZER_HIDE_VAR(nothing);
	src = kvm_mmap(4 * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_PRIVATE, -1);
	memcpy(src, self->src, 4 * PAGE_SIZE);
	TEST_ASSERT(!mprotect(src + 2 * PAGE_SIZE, PAGE_SIZE, PROT_NONE), "mprotect");

	gmem_new(&g, self->vm, NR, SHARED);
	gmem_expect_error(pwrite(g.fd, src + 2 * PAGE_SIZE, PAGE_SIZE, 0), EFAULT);
	gmem_expect_error(pwrite(g.fd, src + 2 * PAGE_SIZE - 8, PAGE_SIZE, 0), EFAULT);
	gmem_expect_error(pwrite(g.fd, nothing, PAGE_SIZE, 0), EFAULT);
	TEST_ASSERT_EQ(nr_present(&g), 0);

	expect_pages(pwrite(g.fd, src, 4 * PAGE_SIZE, 0), 2);
	gmem_host_check(&g, 0, 2, VAL);
	TEST_ASSERT_EQ(nr_present(&g), 2);
	gmem_destroy(&g);
	kvm_munmap(src, 4 * PAGE_SIZE);
}

/* The source may be the file itself, even pages that come into being for it. */
WRITE_TEST(source_is_the_file)
{
	struct gmem g;

	gmem_new(&g, self->vm, NR, SHARED);
	gmem_host_fill(&g, 0, 4, VAL);
	expect_pages(pwrite(g.fd, g.mem, 4 * PAGE_SIZE, 4 * PAGE_SIZE), 4);
	gmem_host_check(&g, 4, 4, VAL);

	/* The source page is faulted in, as zeros, and is the target. */
	gmem_expect_error(pwrite(g.fd, g.mem + 8 * PAGE_SIZE, PAGE_SIZE, 8 * PAGE_SIZE), EEXIST);
	gmem_host_check_zero(&g, 8, 1);
	gmem_destroy(&g);
}

/* 2 MiB that come at once go into one folio; what is in the way is told exactly. */
WRITE_TEST(large)
{
	struct gmem g;

	if (!(vm_check_cap(self->vm, KVM_CAP_GUEST_MEMFD_FLAGS) & GUEST_MEMFD_FLAG_HUGE))
		SKIP(return, "No large folios in guest_memfd");

	gmem_new(&g, self->vm, 2 * BLOCK, HUGE);
	expect_pages(put(&g, self->src, 0, 2 * BLOCK), 2 * BLOCK);
	gmem_host_check(&g, 0, 2 * BLOCK, VAL);
	gmem_guest_check_fill(self->vcpu, &g, 0, 2 * BLOCK, VAL);
	gmem_punch(&g, 0, 2 * BLOCK);

	/* A page amid the block. */
	gmem_host_fill(&g, 100, 1, OTHER);
	gmem_punch(&g, 0, 100);
	gmem_punch(&g, 101, BLOCK - 101);
	expect_pages(put(&g, self->src, 0, 2 * BLOCK), 100);
	expect_pages(put(&g, self->src, 101, 2 * BLOCK - 101), 2 * BLOCK - 101);
	gmem_host_check(&g, 0, 100, VAL);
	gmem_host_check(&g, 100, 1, OTHER);
	gmem_host_check(&g, 101, 2 * BLOCK - 101, VAL + 101);
	gmem_punch(&g, 0, 2 * BLOCK);

	/* A source that ends amid it. */
	TEST_ASSERT(!mprotect(self->src + (BLOCK + 7) * PAGE_SIZE, PAGE_SIZE, PROT_NONE),
		    "mprotect");
	expect_pages(put(&g, self->src, 0, 2 * BLOCK), BLOCK + 7);
	gmem_host_check(&g, 0, BLOCK + 7, VAL);
	TEST_ASSERT_EQ(nr_present(&g), BLOCK + 7);
	TEST_ASSERT(!mprotect(self->src + (BLOCK + 7) * PAGE_SIZE, PAGE_SIZE,
			      PROT_READ | PROT_WRITE), "mprotect");
	expect_pages(put(&g, self->src, BLOCK + 7, BLOCK - 7), BLOCK - 7);
	gmem_host_check(&g, 0, 2 * BLOCK, VAL);
	gmem_destroy(&g);
}

/* splice() and sendfile() are writes, if what they have is pages. */
WRITE_TEST(pipes_and_files)
{
	struct gmem g;
	int pipes[2];
	loff_t off;
	int fd;

	fd = memfd_create("source", 0);
	TEST_ASSERT(fd >= 0, "memfd_create: %s", strerror(errno));
	TEST_ASSERT_EQ(write(fd, self->src, NR * PAGE_SIZE), NR * PAGE_SIZE);
	TEST_ASSERT_EQ(lseek(fd, 0, SEEK_SET), 0);

	gmem_new(&g, self->vm, NR, SHARED);
	expect_pages(sendfile(g.fd, fd, NULL, 8 * PAGE_SIZE), 8);
	gmem_host_check(&g, 0, 8, VAL);

	TEST_ASSERT(!pipe(pipes), "pipe");
	off = 8 * PAGE_SIZE;
	expect_pages(splice(fd, &off, pipes[1], NULL, PAGE_SIZE, 0), 1);
	off = 8 * PAGE_SIZE;
	expect_pages(splice(pipes[0], NULL, g.fd, &off, PAGE_SIZE, 0), 1);
	gmem_host_check(&g, 8, 1, VAL + 8);

	/* Half a page is none, and isn't lost. */
	TEST_ASSERT_EQ(write(pipes[1], self->src + 9 * PAGE_SIZE, PAGE_SIZE / 2), PAGE_SIZE / 2);
	off = 9 * PAGE_SIZE;
	gmem_expect_error(splice(pipes[0], NULL, g.fd, &off, PAGE_SIZE, 0), EINVAL);
	TEST_ASSERT_EQ(write(pipes[1], self->src + 9 * PAGE_SIZE + PAGE_SIZE / 2, PAGE_SIZE / 2),
		       PAGE_SIZE / 2);
	expect_pages(splice(pipes[0], NULL, g.fd, &off, PAGE_SIZE, 0), 1);
	gmem_host_check(&g, 9, 1, VAL + 9);
	TEST_ASSERT_EQ(nr_present(&g), 10);

	close(pipes[0]);
	close(pipes[1]);
	close(fd);
	gmem_destroy(&g);
}

/*
 * <linux/io_uring.h> and the headers of the tools do not go together: what io_uring(7) says
 * of the ABI, as far as one request at a time needs it.
 */
#define RING_SQES		0x10000000
#define RING_OP_WRITE		23
#define RING_ENTER_GETEVENTS	1

struct ring_params {
	u32 sq_entries, cq_entries, unused[8];
	u32 sq_head, sq_tail, sq_mask, sq_rest[7];
	u32 cq_head, cq_tail, cq_mask, cq_nr, cq_overflow, cqes, cq_rest[4];
};

struct ring_sqe {
	u8 opcode, flags;
	u16 ioprio;
	s32 fd;
	u64 off, addr;
	u32 len, rest[9];
};

struct ring_cqe {
	u64 user_data;
	s32 res;
	u32 flags;
};

struct ring {
	struct ring_params params;
	struct ring_sqe *sqes;
	u8 *mem;
	int fd;
};

static bool ring_open(struct ring *r)
{
	BUILD_BUG_ON(sizeof(r->params) != 120 || sizeof(*r->sqes) != 64);

	memset(&r->params, 0, sizeof(r->params));
	r->fd = syscall(SYS_io_uring_setup, 1, &r->params);
	if (r->fd < 0)
		return false;

	r->mem = kvm_mmap(PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd);
	r->sqes = __kvm_mmap(PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, RING_SQES);
	return true;
}

static void ring_close(struct ring *r)
{
	kvm_munmap(r->sqes, PAGE_SIZE);
	kvm_munmap(r->mem, PAGE_SIZE);
	close(r->fd);
}

/* The number of bytes, or an error as the kernel returns it. */
static int ring_write(struct ring *r, int fd, void *src, u32 size, u64 off)
{
	u32 *sq_tail = (void *)r->mem + r->params.sq_tail;
	u32 *cq_head = (void *)r->mem + r->params.cq_head;
	struct ring_cqe *cqe;

	*r->sqes = (struct ring_sqe) {
		.opcode = RING_OP_WRITE,
		.fd = fd,
		.off = off,
		.addr = (u64)src,
		.len = size,
	};
	/* The kernel's array of indices has zeros, and there is one entry. */
	__atomic_store_n(sq_tail, *sq_tail + 1, __ATOMIC_RELEASE);
	TEST_ASSERT_EQ(syscall(SYS_io_uring_enter, r->fd, 1, 1, RING_ENTER_GETEVENTS, NULL, 0),
		       1);

	cqe = (void *)r->mem + r->params.cqes;
	cqe += *cq_head & (r->params.cq_entries - 1);
	__atomic_store_n(cq_head, *cq_head + 1, __ATOMIC_RELEASE);
	return cqe->res;
}

/* io_uring's writes come from a thread of its own, as write_iter() can't promise not to wait. */
WRITE_TEST(io_uring)
{
	struct ring ring;
	struct gmem g, old;

	if (!ring_open(&ring))
		SKIP(return, "No io_uring");

	gmem_new(&g, self->vm, NR, SHARED);
	expect_pages(ring_write(&ring, g.fd, self->src, 3 * PAGE_SIZE, 0), 3);
	TEST_ASSERT_EQ(ring_write(&ring, g.fd, self->src, PAGE_SIZE, 0), -EEXIST);
	TEST_ASSERT_EQ(ring_write(&ring, g.fd, self->src, PAGE_SIZE - 1, 4 * PAGE_SIZE), -EINVAL);
	TEST_ASSERT_EQ(ring_write(&ring, g.fd, NULL, PAGE_SIZE, 4 * PAGE_SIZE), -EFAULT);
	TEST_ASSERT_EQ(nr_present(&g), 3);
	gmem_host_fill(&g, 8, 1, OTHER);
	expect_pages(ring_write(&ring, g.fd, self->src + 4 * PAGE_SIZE, 8 * PAGE_SIZE,
				4 * PAGE_SIZE), 4);
	gmem_host_check(&g, 0, 3, VAL);
	gmem_guest_check_fill(self->vcpu, &g, 4, 4, VAL + 4);
	gmem_host_check(&g, 8, 1, OTHER);
	gmem_destroy(&g);

	gmem_create(&old, self->vm, NR * PAGE_SIZE, GMEM_SHARED_FILE);
	TEST_ASSERT_EQ(ring_write(&ring, old.fd, self->src, PAGE_SIZE, 0), -ENODEV);
	gmem_destroy(&old);
	ring_close(&ring);
}

static void ignore_signal(int sig)
{
}

/* One thread's signal, pending while it writes: the count says what is there. */
WRITE_TEST(signal_ends_it)
{
	struct sigaction sa = { .sa_handler = ignore_signal };
	u64 nr = NR_MAPPED, done = 0, turns = 0;
	struct itimerval timer = {
		.it_value.tv_usec = 1000,
		.it_interval.tv_usec = 1000,
	};
	struct itimerval off = {};
	struct gmem g;

	gmem_new(&g, self->vm, nr, SHARED);
	sigaction(SIGALRM, &sa, NULL);
	setitimer(ITIMER_REAL, &timer, NULL);
	while (done < nr) {
		ssize_t r = put(&g, self->src, done, nr - done);

		turns++;
		if (r < 0) {
			TEST_ASSERT(errno == EINTR, "write: %s", strerror(errno));
			continue;
		}
		TEST_ASSERT(r && !(r % PAGE_SIZE), "%ld bytes", r);
		done += r / PAGE_SIZE;
		TEST_ASSERT_EQ(nr_present(&g), done);
	}
	setitimer(ITIMER_REAL, &off, NULL);

	TEST_ASSERT(turns > 1, "No signal came amid a write");
	gmem_host_check(&g, 0, nr, VAL);
	gmem_destroy(&g);
}

/* Memory that is not there, or not the caller's to fill, is not filled. */
WRITE_TEST(private_pages)
{
	struct gmem g;

	gmem_create(&g, self->vm, NR * PAGE_SIZE, GMEM_PRIVATE_FILE | WRITE);
	gmem_bind(&g, GMEM_SLOT, GMEM_GPA);
	expect_pages(put(&g, self->src, 0, 4), 4);
	TEST_ASSERT_EQ(vm_get_stat(self->vm, gmem_pages_private), 4);
	TEST_ASSERT(gmem_page_is_private(&g, 0), "A mapping shows a private page");
	gmem_guest_check_fill(self->vcpu, &g, 0, 4, VAL);
	gmem_expect_error(put(&g, self->src, 3, 2), EEXIST);
	gmem_destroy(&g);
}

struct race {
	struct gmem *g;
	const u8 *src;
	u64 filled;
};

/* All of the page is one writer's, or it was a hole. */
static void check_one_writer(struct gmem *g, u64 page)
{
	u64 word, *p = (u64 *)(g->mem + page * PAGE_SIZE);

	TEST_ASSERT(!p[0] || p[0] == VAL + page || p[0] == OTHER + page,
		    "Page %lu: 0x%lx", page, p[0]);
	TEST_ASSERT(gmem_check_words(p, p[0], &word) == -1,
		    "Page %lu begins with 0x%lx, and has 0x%lx", page, p[0], word);
}

/* Nobody else punches, so that what is there stays while it is looked at. */
static void race_punch(void *arg, u64 turn)
{
	struct race *race = arg;

	check_one_writer(race->g, turn * 7 % NR);
	gmem_punch(race->g, turn % NR, 1);
}

static void race_write(void *arg, u64 turn)
{
	struct race *race = arg;
	u64 first = turn % NR;
	ssize_t r = put(race->g, race->src, first, NR - first);

	TEST_ASSERT(r > 0 || errno == EEXIST, "write: %s", strerror(errno));
	if (r > 0)
		WRITE_ONCE(race->filled, race->filled + r / PAGE_SIZE);
}

/* Two writers of different bytes and a punch: each page is of one writer, or a hole. */
WRITE_TEST(races)
{
	struct gmem_worker workers[3];
	u64 turns[3] = {}, i;
	struct race a, b;
	bool stop = false;
	struct gmem g;
	u8 *other;

	other = kvm_mmap(NR * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_PRIVATE, -1);
	for (i = 0; i < NR; i++)
		gmem_fill_words((u64 *)(other + i * PAGE_SIZE), OTHER + i);

	gmem_new(&g, self->vm, NR, SHARED);
	a = (struct race) { &g, self->src };
	b = (struct race) { &g, other };
	gmem_worker_start(&workers[0], race_write, &a, &stop, &turns[0]);
	gmem_worker_start(&workers[1], race_write, &b, &stop, &turns[1]);
	gmem_worker_start(&workers[2], race_punch, &a, &stop, &turns[2]);

	gmem_wait_until(READ_ONCE(a.filled) > GMEM_LOOPS(50) &&
			READ_ONCE(b.filled) > GMEM_LOOPS(50));
	WRITE_ONCE(stop, true);
	for (i = 0; i < ARRAY_SIZE(workers); i++)
		pthread_join(workers[i].thread, NULL);

	for (i = 0; i < NR; i++)
		check_one_writer(&g, i);
	gmem_destroy(&g);
	kvm_munmap(other, NR * PAGE_SIZE);
}

#ifdef __x86_64__
/* For the cases that need both sides. */
FIXTURE(in_place) {
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	u8 *src;
};

FIXTURE_SETUP(in_place)
{
	setup(&self->vm, &self->vcpu, &self->src, true);
}

FIXTURE_TEARDOWN(in_place)
{
	teardown(self->vm, self->src);
}

#define IN_PLACE_TEST(name)	TEST_F_TIMEOUT(in_place, name, GMEM_TIMEOUT_S)

static const struct gmem *foreign;

static void write_foreign(struct child *c, struct gmem *g)
{
	u8 *src = kvm_mmap(PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_PRIVATE, -1);
	bool allowed = foreign->flags & GUEST_MEMFD_FLAG_SHARED_CONTROL;

	gmem_fill_words((u64 *)src, OTHER);
	if (allowed)
		expect_pages(pwrite(g->fd, src, PAGE_SIZE, 2 * PAGE_SIZE), 1);
	else
		gmem_expect_error(pwrite(g->fd, src, PAGE_SIZE, 2 * PAGE_SIZE), EPERM);
	expect_pages(pwrite(g->fd, src, PAGE_SIZE, 0), 1);
}

/* Page 0 is shared, the others are private: whoever has the file may fill page 0. */
IN_PLACE_TEST(private_pages_of_others)
{
	const u64 flags[] = { 0, GUEST_MEMFD_FLAG_SHARED_CONTROL };
	struct child child;
	struct gmem g;
	int i;

	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		gmem_new(&g, self->vm, NR, GMEM_PRIVATE_FILE | WRITE | flags[i]);
		gmem_to_shared(&g, 0, 1, 0);
		foreign = &g;
		child_start(&child, write_foreign, &g);
		child_join(&child);
		TEST_ASSERT_EQ(nr_present(&g), 1 + i);
		gmem_destroy(&g);
	}
}

/* A write goes across states, and what it brought converts as any other page. */
IN_PLACE_TEST(mixed_states)
{
	struct gmem g;

	gmem_new(&g, self->vm, NR, SHARED);
	gmem_to_private(&g, 4, 8, 0);
	expect_pages(put(&g, self->src, 0, NR), NR);
	gmem_assert_private(&g, 4, 8);
	TEST_ASSERT_EQ(vm_get_stat(self->vm, gmem_pages_private), 8);
	gmem_host_check(&g, 0, 4, VAL);
	gmem_guest_check_fill(self->vcpu, &g, 0, NR, VAL);

	gmem_to_shared(&g, 4, 8, GMEM_PRESERVE);
	gmem_host_check(&g, 0, NR, VAL);
	gmem_to_private(&g, 0, NR, GMEM_PRESERVE);
	gmem_guest_check_fill(self->vcpu, &g, 0, NR, VAL);
	gmem_destroy(&g);
}

/* A block of two states is written as pages, each to its own side. */
IN_PLACE_TEST(mixed_block)
{
	struct gmem g;

	gmem_new(&g, self->vm, 2 * BLOCK, HUGE);
	gmem_to_private(&g, 7, 1, 0);
	expect_pages(put(&g, self->src, 0, 2 * BLOCK), 2 * BLOCK);
	TEST_ASSERT_EQ(vm_get_stat(self->vm, gmem_pages_private), 1);
	gmem_guest_check_fill(self->vcpu, &g, 0, 2 * BLOCK, VAL);
	gmem_assert_private(&g, 7, 1);
	gmem_destroy(&g);
}
#endif /* __x86_64__ */

TEST_HARNESS_MAIN
