// SPDX-License-Identifier: GPL-2.0-only
/*
 * Protected VMs of arm64 whose memory is in-place files: what the guest gets, what it
 * shares and takes back, and what host and other processes cannot reach.
 */
#include <linux/futex.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>

#include "pkvm_fixture.h"

/* ---- What the host can reach ---- */

static void assert_reachable(struct gmem *g, u64 first, u64 nr)
{
	u64 i;

	gmem_assert_shared(g, first, nr);
	for (i = first; i < first + nr; i++)
		pvm_check_syscalls(mem_of(g, i), 0);
}

/*
 * Ways into a page that don't begin with a copy: by its struct page, as a futex, DMA
 * or populating a mapping, and by way of the address space of the task.
 */
static void check_other_ways(u8 *mem, bool private)
{
	int fd, mem_fd = open("/proc/self/mem", O_RDWR), error = private ? EFAULT : 0;
	u8 buf[64];

	TEST_ASSERT(mem_fd >= 0, "/proc/self/mem: errno %d", errno);
	TEST_ASSERT_EQ(pvm_error(syscall(__NR_futex, mem, FUTEX_WAKE, 1, NULL)), error);
	TEST_ASSERT_EQ(pvm_error(madvise(mem, PAGE_SIZE, MADV_POPULATE_READ)), error);
	TEST_ASSERT_EQ(pvm_error(madvise(mem, PAGE_SIZE, MADV_POPULATE_WRITE)), error);
	TEST_ASSERT_EQ(pvm_error(pread(mem_fd, buf, sizeof(buf), (off_t)mem)),
		       private ? EIO : 0);
	if (private) {
		TEST_ASSERT_EQ(pvm_error(syscall(__NR_futex, mem, FUTEX_WAIT, 0, NULL)), EFAULT);
		TEST_ASSERT_EQ(pvm_error(pwrite(mem_fd, buf, sizeof(buf), (off_t)mem)), EIO);
	}
	close(mem_fd);

	fd = hold_by_pin(mem, PAGE_SIZE);
	TEST_ASSERT(fd < 0 || !private, "A private page is pinned");
	if (fd >= 0)
		release_pin(fd);
}

/* ---- Content ---- */

/* What the host loaded is what the guest sees, and the host sees no more. */
PVM_TEST(image)
{
	struct gmem g;

	new_filled_file(&self->p, &g, 0);
	assert_unreachable(&g, 0, NR);
	guest_check(&self->p, self->id, &g, 0, NR, VAL);
	guest_fill(&self->p, self->id, &g, 0, NR, OTHER);
	guest_check(&self->p, 0, &g, 0, NR, OTHER);
	assert_unreachable(&g, 0, NR);
}

/* Absent pages and allocated ones read zero, whatever was in memory before. */
PVM_TEST(fresh_pages)
{
	struct gmem g;

	new_file(&self->p, &g, 0, GMEM_PRIVATE_FILE);
	gmem_allocate(&g, NR / 2, NR / 2);
	guest_check_zero(&self->p, self->id, &g, 0, NR);
	assert_unreachable(&g, 0, NR);

	/* A file that nobody can map, and a slot without an address. */
	gmem_create(&g, self->p.vm, NR * PAGE_SIZE, GUEST_MEMFD_FLAG_INIT_SHARED);
	gmem_bind(&g, GMEM_SLOT + 1, GMEM_GPA + NR * PAGE_SIZE);
	gmem_to_private(&g, 0, NR, 0);
	guest_check_zero(&self->p, self->id, &g, 0, NR);
}

/* Waits for its tracer.  What it had mapped the tracer finds through it. */
static void child_is_traced(struct child *c, struct gmem *g)
{
	TEST_ASSERT(!ptrace(PTRACE_TRACEME, 0, NULL, NULL), "PTRACE_TRACEME failed");
	raise(SIGSTOP);
}

static void check_trace(pid_t pid, struct gmem *g)
{
	int status;

	TEST_ASSERT_EQ(waitpid(pid, &status, 0), pid);
	TEST_ASSERT(WIFSTOPPED(status), "Status 0x%x", status);

	errno = 0;
	TEST_ASSERT_EQ(ptrace(PTRACE_PEEKDATA, pid, mem_of(g, 1), NULL), VAL + 1);
	TEST_ASSERT_EQ(errno, 0);
	TEST_ASSERT_EQ(pvm_error(ptrace(PTRACE_PEEKDATA, pid, mem_of(g, 2), NULL)), EIO);
	TEST_ASSERT_EQ(pvm_error(ptrace(PTRACE_POKEDATA, pid, mem_of(g, 2), OTHER)), EIO);
	TEST_ASSERT(!ptrace(PTRACE_CONT, pid, NULL, NULL), "PTRACE_CONT failed");
}

/* Whichever way the host tries: an error for it, and nothing for the guest. */
PVM_TEST(host_access)
{
	struct pvm *p = &self->p;
	struct gmem g, fresh;
	struct child c;

	new_used_file(p, self->id, &g, NR);
	share(p, self->id, &g, 1);

	check_other_ways(mem_of(&g, 1), false);
	check_other_ways(mem_of(&g, 2), true);
	child_start(&c, child_is_traced, &g);
	check_trace(c.pid, &g);
	child_join(&c);

	/* Nor a page that no guest has had yet. */
	new_file(p, &fresh, 1, GMEM_PRIVATE_FILE);
	check_other_ways(mem_of(&fresh, 0), true);
	guest_check_zero(p, self->id, &fresh, 0, NR);
	check_other_ways(mem_of(&fresh, 0), true);
	guest_check(p, self->id, &g, 0, NR, VAL);
}

PVM_TEST(share_preserves)
{
	struct gmem g;
	u64 i;

	new_file(&self->p, &g, 0, GMEM_PRIVATE_FILE);
	guest_fill(&self->p, self->id, &g, 0, NR, VAL);

	for (i = 1; i < 4; i++)
		share(&self->p, self->id, &g, i);
	assert_unreachable(&g, 0, 1);
	assert_reachable(&g, 1, 3);
	assert_unreachable(&g, 4, NR - 4);

	gmem_host_check(&g, 1, 3, VAL + 1);
	gmem_host_fill(&g, 1, 3, OTHER + 1);
	guest_check(&self->p, 0, &g, 1, 3, OTHER + 1);
	guest_fill(&self->p, self->id, &g, 2, 1, VAL + 2);
	gmem_host_check(&g, 2, 1, VAL + 2);

	for (i = 1; i < 4; i++)
		unshare(&self->p, self->id, &g, i);
	assert_unreachable(&g, 0, NR);
	guest_check(&self->p, 0, &g, 0, 1, VAL);
	guest_check(&self->p, 0, &g, 1, 1, OTHER + 1);
	guest_check(&self->p, 0, &g, 2, 1, VAL + 2);
	guest_check(&self->p, 0, &g, 3, 1, OTHER + 3);
	guest_check(&self->p, 0, &g, 4, NR - 4, VAL + 4);

	/* And again. */
	share(&self->p, self->id, &g, 1);
	gmem_host_check(&g, 1, 1, OTHER + 1);
}

/* A page that is not there yet: given to the guest and shared, in one call. */
PVM_TEST(share_absent)
{
	struct gmem g;

	new_file(&self->p, &g, 0, GMEM_PRIVATE_FILE);
	share(&self->p, self->id, &g, 0);
	gmem_host_check_zero(&g, 0, 1);
	gmem_host_fill(&g, 0, 1, VAL);
	guest_check(&self->p, 0, &g, 0, 1, VAL);
	unshare(&self->p, self->id, &g, 0);
	guest_check(&self->p, 0, &g, 0, 1, VAL);
	guest_check_zero(&self->p, 0, &g, 1, 1);

	/* Present, but not the guest's yet. */
	gmem_allocate(&g, 2, 1);
	share(&self->p, self->id, &g, 2);
	gmem_host_check_zero(&g, 2, 1);
}

/* The host's state says shared, the guest has said nothing: no mapping. */
PVM_TEST(touch_of_shared_page)
{
	struct gmem g;

	new_file(&self->p, &g, 0, GMEM_SHARED_FILE);
	gmem_host_fill(&g, 0, NR, VAL);

	pvm_prepare(&self->p, self->id, pvm_guest_write, gpa_of(&g, 1), OTHER);
	expect_memory_fault(&self->p, self->id, &g, 1);
	gmem_host_check(&g, 0, NR, VAL);

	/* A VMM that does nothing gets nowhere. */
	expect_memory_fault(&self->p, self->id, &g, 1);
	gmem_host_check(&g, 0, NR, VAL);

	gmem_to_private(&g, 1, 1, 0);
	pvm_finish(&self->p, self->id);
	TEST_ASSERT_EQ(pvm_call(&self->p, 0, pvm_guest_read, gpa_of(&g, 1))->ret[0], OTHER);
	TEST_ASSERT_EQ(pvm_call(&self->p, 0, pvm_guest_read, gpa_of(&g, 1) + 8)->ret[0],
		       VAL + 1);
	assert_unreachable(&g, 1, 1);
	assert_reachable(&g, 2, NR - 2);

	/* Sharing what the host has shared already is the guest's own decision. */
	share(&self->p, self->id, &g, 2);
	guest_check(&self->p, self->id, &g, 2, 1, VAL + 2);
}

/* ---- Mappings ---- */

/* The guest needs neither mapping of the VMM nor its descriptor. */
PVM_TEST(unmapped_by_vmm)
{
	struct pvm *p = &self->p;
	u32 id = self->id;
	struct gmem g;

	new_used_file(p, id, &g, 4);
	share(p, id, &g, 1);
	TEST_ASSERT(!madvise(g.mem, g.size, MADV_DONTNEED), "madvise() failed");
	gmem_host_check(&g, 1, 1, VAL + 1);
	TEST_ASSERT(!mprotect(g.mem, g.size, PROT_NONE), "mprotect() failed");
	guest_check(p, id, &g, 0, NR, VAL);
	kvm_munmap(g.mem, g.size);
	guest_check(p, id, &g, 0, NR, VAL);
	unshare(p, id, &g, 1);
	share(p, id, &g, 2);

	g.mem = kvm_mmap(g.size, PROT_READ | PROT_WRITE, MAP_SHARED, g.fd);
	gmem_host_check(&g, 2, 1, VAL + 2);
	assert_unreachable(&g, 0, 2);
	assert_unreachable(&g, 3, NR - 3);

	/* Something else at the slot's address is not the guest's memory. */
	kvm_munmap(g.mem, g.size);
	TEST_ASSERT(mmap(g.mem, g.size, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == g.mem,
		    "mmap() failed");
	guest_check(p, id, &g, 0, NR, VAL);
}

/* ---- Other processes ---- */

static void child_meddles(struct child *c, struct gmem *g)
{
	gmem_test_init();
	TEST_ASSERT_EQ(__gmem_convert(g->fd, 0, g->size, 0, 0, NULL), EIO);
	TEST_ASSERT_EQ(__gmem_convert(g->fd, PAGE_SIZE, PAGE_SIZE, 0, 0, NULL), EIO);
	TEST_ASSERT_EQ(__gmem_convert(g->fd, PAGE_SIZE, PAGE_SIZE, GMEM_PRIVATE,
				      GMEM_DISCARD, NULL), EIO);

	/* Through the mapping that it has inherited, and through one of its own. */
	assert_unreachable(g, 0, 2);
	gmem_host_check(g, 2, 1, VAL + 2);
	g->mem = kvm_mmap(g->size, PROT_READ | PROT_WRITE, MAP_SHARED, g->fd);
	assert_unreachable(g, 0, 2);
	gmem_host_fill(g, 2, 1, OTHER);

	/* What the guest has to itself isn't theirs to drop. */
	TEST_ASSERT(fallocate(g->fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
			      3 * PAGE_SIZE, PAGE_SIZE) == -1 && errno == EPERM,
		    "Hole in a private page: errno %d", errno);
	TEST_ASSERT(madvise(mem_of(g, 3), PAGE_SIZE, MADV_REMOVE) == -1 && errno == EPERM,
		    "MADV_REMOVE of a private page: errno %d", errno);
}

PVM_TEST(foreign)
{
	struct pvm *p = &self->p;
	u32 id = self->id;
	struct child c;
	struct gmem g;

	new_used_file(p, id, &g, 4);
	share(p, id, &g, 2);
	ask(p, id, PVM_HVC_SHARE, &g, 1);

	child_start(&c, child_meddles, &g);
	child_join(&c);

	gmem_to_shared(&g, 1, 1, 0);
	TEST_ASSERT_EQ(answer(p, id), PVM_SUCCESS);
	gmem_host_check(&g, 1, 1, VAL + 1);
	guest_check(p, id, &g, 2, 1, OTHER);
	guest_check(p, id, &g, 3, 1, VAL + 3);
}

/* ---- Holders of shared pages ---- */

PVM_TEST(unshare_held_by_pipe)
{
	struct pvm *p = &self->p;
	u32 id = self->id;
	struct gmem g;
	int pipes[2];

	new_filled_file(p, &g, 0);
	share(p, id, &g, 1);
	hold_by_pipe(pipes, mem_of(&g, 1));

	ask(p, id, PVM_HVC_UNSHARE, &g, 1);
	expect_held(&g, 1, 1, 0, 1);
	TEST_ASSERT_EQ(answer(p, id), PVM_INVALID);

	/* Nothing has changed, for anybody. */
	gmem_host_check(&g, 1, 1, VAL + 1);
	guest_check(p, id, &g, 1, 1, VAL + 1);
	gmem_host_fill(&g, 1, 1, OTHER);
	guest_check(p, id, &g, 1, 1, OTHER);

	ask(p, id, PVM_HVC_UNSHARE, &g, 1);
	expect_held(&g, 1, 1, 0, 1);
	release_pipe(pipes);
	gmem_to_private(&g, 1, 1, 0);
	TEST_ASSERT_EQ(answer(p, id), PVM_SUCCESS);
	assert_unreachable(&g, 1, 1);
	guest_check(p, id, &g, 1, 1, OTHER);
}

PVM_TEST(unshare_held_by_pin)
{
	struct pvm *p = &self->p;
	u32 id = self->id;
	struct gmem g;
	int fd;

	new_filled_file(p, &g, 0);
	share(p, id, &g, 1);
	fd = hold_by_pin(mem_of(&g, 1), PAGE_SIZE);
	if (fd < 0)
		SKIP(return, "Cannot pin by io_uring");

	ask(p, id, PVM_HVC_UNSHARE, &g, 1);
	expect_held(&g, 1, 1, 0, 1);
	TEST_ASSERT_EQ(answer(p, id), PVM_INVALID);
	gmem_host_check(&g, 1, 1, VAL + 1);
	release_pin(fd);
	unshare(p, id, &g, 1);
	guest_check(p, id, &g, 1, 1, VAL + 1);
}

int main(int argc, char **argv)
{
	setbuf(stdout, NULL);
	return test_harness_run(argc, argv);
}
