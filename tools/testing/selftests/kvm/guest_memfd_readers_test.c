// SPDX-License-Identifier: GPL-2.0-only
/*
 * Private pages of guest_memfd are in a page cache: what else than user page tables
 * the kernel has to read files and memory with must not read them, for nobody.
 *
 * The file looks like an ELF file with a build ID.  What refuses it is shown to accept
 * the same bytes in a memfd, where it knows that kind of file at all.
 */
#include "gmem_util.h"
#include "kvm_test_harness.h"
#ifdef __aarch64__
#include "pkvm_util.h"
#endif

#include <linux/elf.h>
#include <linux/perf_event.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>

/* Pages of the file: the ELF header, its note, and others that hold VAL + i. */
#define NOTE		1ul
#define PLAIN		2ul
#define NR		8ul

/* This one is shared. */
#define SHARED		(NR - 1)

#define VAL		0x1122334455660000ul

#define BUILD_ID	"of the guest alone"

/* Pages of the ring of perf's records, besides the first. */
#define NR_RING		8ul

#define CORE_PATTERN	"/proc/sys/kernel/core_pattern"
#define CORE		"/tmp/gmem_core"

/* A guest, of a VM type with private memory, and its file. */
struct target {
#ifdef __aarch64__
	struct pvm p;
#else
	struct kvm_vcpu *vcpu;
#endif
	struct kvm_vm *vm;
	struct gmem g;
	int memfd;
};

FIXTURE(readers) {
	struct target t;
};

static void write_elf(u8 *mem)
{
	const struct {
		struct elf64_note head;
		char name[4];
		char desc[sizeof(BUILD_ID)];
	} note = {
		.head = { .n_namesz = 4, .n_descsz = sizeof(BUILD_ID), .n_type = 3 },
		.name = "GNU",
		.desc = BUILD_ID,
	};
	struct elf64_phdr *phdr = (void *)(mem + sizeof(struct elf64_hdr));
	struct elf64_hdr *ehdr = (void *)mem;

	*ehdr = (struct elf64_hdr) {
		.e_ident = { ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS64,
			     ELFDATA2LSB, EV_CURRENT },
		.e_type = ET_DYN,
		.e_phoff = sizeof(*ehdr),
		.e_phnum = 1,
		.e_phentsize = sizeof(*phdr),
	};
	*phdr = (struct elf64_phdr) {
		.p_type = PT_NOTE,
		.p_offset = NOTE * PAGE_SIZE,
		.p_filesz = sizeof(note),
		.p_align = 4,
	};
	memcpy(mem + NOTE * PAGE_SIZE, &note, sizeof(note));
}

/* ---- What differs between architectures ---- */

#ifdef __aarch64__
static bool supported(void)
{
	return pvm_supported() && (pvm_exit_hypercalls() & PVM_EXITS) == PVM_EXITS;
}

static void start_vm(struct target *t)
{
	pvm_create(&t->p, 1, pvm_exit_hypercalls());
	t->vm = t->p.vm;
	virt_map(t->vm, GMEM_GPA, GMEM_GPA, NR);
	pvm_load_gmem(&t->p);
}

static void bind_file(struct target *t)
{
	gmem_new(&t->g, t->vm, NR, GMEM_SHARED_FILE);
	pvm_add_file(&t->p, &t->g);
}

static void free_vm(struct target *t)
{
	pvm_del_file(&t->p, &t->g);
	pvm_free(&t->p);
	t->g.slot = 0;
	gmem_destroy(&t->g);
}

/* A page becomes the guest's when it touches it, and is lost if anybody else does. */
static u64 guest_read(struct target *t, u64 page)
{
	return pvm_call(&t->p, 0, pvm_guest_read, GMEM_GPA + page * PAGE_SIZE)->ret[0];
}
#else
static bool supported(void)
{
	return gmem_conversion_supported();
}

static void start_vm(struct target *t)
{
	t->vm = gmem_vm_create(1, gmem_guest_server, &t->vcpu);
	vcpu_args_set(t->vcpu, 1, 0);
	virt_map(t->vm, GMEM_GPA, GMEM_GPA, NR);
}

static void bind_file(struct target *t)
{
	gmem_new(&t->g, t->vm, NR, GMEM_SHARED_FILE);
}

static void free_vm(struct target *t)
{
	gmem_destroy(&t->g);
	kvm_vm_free(t->vm);
}

/* No page begins with 0, a check for that tells what it begins with. */
static u64 guest_read(struct target *t, u64 page)
{
	return gmem_guest_do(t->vcpu, GMEM_GUEST_CHECK, GMEM_GPA + page * PAGE_SIZE,
			     1, 0, 0)->bad_val;
}
#endif

/* Of its private pages the guest has what the memfd has. */
static void check_guest(struct target *t)
{
	u8 *mem = kvm_mmap(NR * PAGE_SIZE, PROT_READ, MAP_SHARED, t->memfd);
	u64 i;

	for (i = 0; i < SHARED; i++)
		TEST_ASSERT_EQ(guest_read(t, i), *(u64 *)(mem + i * PAGE_SIZE));
	kvm_munmap(mem, NR * PAGE_SIZE);
}

FIXTURE_SETUP(readers)
{
	u8 *mem;

	if (!supported())
		SKIP(return, "No VM type with private memory in place");

	gmem_test_init();
	start_vm(&self->t);
	bind_file(&self->t);
	write_elf(self->t.g.mem);
	gmem_host_fill(&self->t.g, PLAIN, NR - PLAIN, VAL);

	self->t.memfd = memfd_create("same", 0);
	TEST_ASSERT(self->t.memfd >= 0 && !ftruncate(self->t.memfd, NR * PAGE_SIZE),
		    "memfd_create() failed, errno %d", errno);
	mem = kvm_mmap(NR * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, self->t.memfd);
	memcpy(mem, self->t.g.mem, NR * PAGE_SIZE);
	kvm_munmap(mem, NR * PAGE_SIZE);

	gmem_to_private(&self->t.g, 0, SHARED, 0);
	check_guest(&self->t);
}

FIXTURE_TEARDOWN(readers)
{
	check_guest(&self->t);
	free_vm(&self->t);
	close(self->t.memfd);
}

#define READERS_TEST(name)	TEST_F_TIMEOUT(readers, name, GMEM_TIMEOUT_S)

/* ---- perf ---- */

struct mmap2_record {
	struct perf_event_header header;
	u32 pid, tid;
	u64 addr, len, pgoff;
	u8 build_id_size;
	u8 reserved1;
	u16 reserved2;
	u8 build_id[20];
};

/* The event is about nothing; mappings are told with their build IDs. */
static int open_build_id_event(void)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_SOFTWARE,
		.size = sizeof(attr),
		.config = PERF_COUNT_SW_DUMMY,
		.exclude_kernel = 1,
		.exclude_hv = 1,
		.mmap = 1,
		.mmap2 = 1,
		.mmap_data = 1,
		.build_id = 1,
	};

	return syscall(__NR_perf_event_open, &attr, 0, -1, -1, 0);
}

/* Map @fd: does perf tell its build ID? */
static bool perf_reads_build_id(int event, int fd)
{
	struct perf_event_mmap_page *page;
	struct mmap2_record *r;
	bool found = false, seen = false;
	u8 *mem, *ring;
	u64 at;

	ring = kvm_mmap((1 + NR_RING) * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, event);
	page = (void *)ring;
	mem = kvm_mmap(NR * PAGE_SIZE, PROT_READ, MAP_SHARED, fd);

	for (at = page->data_tail; at < READ_ONCE(page->data_head); at += r->header.size) {
		r = (void *)(ring + PAGE_SIZE + at);
		if (r->header.type != PERF_RECORD_MMAP2 || r->addr != (u64)mem)
			continue;
		seen = true;
		found |= r->header.misc & PERF_RECORD_MISC_MMAP_BUILD_ID &&
			 !memcmp(r->build_id, BUILD_ID, sizeof(BUILD_ID));
	}
	TEST_ASSERT(seen, "perf hasn't seen the mapping");

	kvm_munmap(mem, NR * PAGE_SIZE);
	kvm_munmap(ring, (1 + NR_RING) * PAGE_SIZE);
	return found;
}

READERS_TEST(perf_build_id)
{
	int event = open_build_id_event();

	if (event < 0)
		SKIP(return, "No perf events");

	TEST_ASSERT(perf_reads_build_id(event, self->t.memfd), "No build ID of a memfd");
	close(event);

	event = open_build_id_event();
	TEST_ASSERT(!perf_reads_build_id(event, self->t.g.fd), "perf has read private pages");
	close(event);
}

/* Returns 0 or the error number. */
static int open_uprobe(int type, int fd)
{
	struct perf_event_attr attr = {
		.type = type,
		.size = sizeof(attr),
		.config2 = PLAIN * PAGE_SIZE,
	};
	char path[32];
	int event;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	attr.config1 = (u64)path;
	event = syscall(__NR_perf_event_open, &attr, 0, -1, -1, 0);
	if (event < 0)
		return errno;

	close(event);
	return 0;
}

/* A breakpoint in a file saves the instruction, and writes over it. */
READERS_TEST(uprobe)
{
	FILE *f = fopen("/sys/bus/event_source/devices/uprobe/type", "r");
	int type, r;

	if (!f)
		SKIP(return, "No uprobes");

	TEST_ASSERT_EQ(fscanf(f, "%d", &type), 1);
	fclose(f);

	TEST_ASSERT_EQ(open_uprobe(type, self->t.memfd), 0);
	r = open_uprobe(type, self->t.g.fd);
	TEST_ASSERT(r == EIO || r == EINVAL, "A uprobe in guest_memfd: %s", strerror(r));
}

/* ---- The file and its mapping ---- */

/* Answers of system calls that read the file itself. */
READERS_TEST(file)
{
	char buf[64];
	int pipes[2];
	loff_t off = 0;

	TEST_ASSERT(!pipe(pipes), "pipe() failed");
	TEST_ASSERT_EQ(pread(self->t.g.fd, buf, sizeof(buf), 0), -1);
	TEST_ASSERT_EQ(splice(self->t.g.fd, &off, pipes[1], NULL, PAGE_SIZE, 0), -1);
	TEST_ASSERT_EQ(sendfile(pipes[1], self->t.g.fd, &off, PAGE_SIZE), -1);
	TEST_ASSERT_EQ(copy_file_range(self->t.g.fd, &off, self->t.memfd, NULL, PAGE_SIZE, 0), -1);
	TEST_ASSERT_EQ(syscall(__NR_finit_module, self->t.g.fd, "", 0), -1);
	TEST_ASSERT_EQ(off, 0);
	close(pipes[0]);
	close(pipes[1]);
}

/* Answers of those that read memory, without the reader's own page tables or with them. */
READERS_TEST(memory)
{
	u8 *mem = self->t.g.mem + PLAIN * PAGE_SIZE;
	struct iovec theirs = { mem, sizeof(u64) }, ours;
	u64 val;
	int fd;

	ours = (struct iovec) { &val, sizeof(val) };
	TEST_ASSERT_EQ(process_vm_readv(getpid(), &ours, 1, &theirs, 1, 0), -1);
	TEST_ASSERT_EQ(errno, EFAULT);

	fd = open("/proc/self/mem", O_RDONLY);
	TEST_ASSERT(fd >= 0, "open(/proc/self/mem) failed, errno %d", errno);
	TEST_ASSERT_EQ(pread(fd, &val, sizeof(val), (off_t)mem), -1);
	TEST_ASSERT_EQ(errno, EIO);
	mem = self->t.g.mem + SHARED * PAGE_SIZE;
	TEST_ASSERT_EQ(pread(fd, &val, sizeof(val), (off_t)mem), sizeof(val));
	TEST_ASSERT_EQ(val, VAL + SHARED - PLAIN);
	close(fd);

	TEST_ASSERT_EQ(pwrite(self->t.memfd, self->t.g.mem, sizeof(val), 0), -1);
	TEST_ASSERT_EQ(errno, EFAULT);
}

static void dump_core(struct child *c, struct gmem *g)
{
	const struct rlimit unlimited = { RLIM_INFINITY, RLIM_INFINITY };

	prctl(PR_SET_DUMPABLE, 1);
	setrlimit(RLIMIT_CORE, &unlimited);
	TEST_ASSERT_EQ(gmem_write_file("/proc/self/coredump_filter", "0xff"), 0);
	signal(SIGABRT, SIG_DFL);
	abort();
}

/* A core file has the shared pages, and holes for the others. */
READERS_TEST(core_dump)
{
	struct child c;
	int status;
	u64 i;

	if (gmem_write_file(CORE_PATTERN, CORE))
		SKIP(return, "Where core files go cannot be set");

	gmem_write_file("/proc/sys/kernel/core_uses_pid", "0");
	unlink(CORE);
	child_start(&c, dump_core, &self->t.g);
	TEST_ASSERT_EQ(waitpid(c.pid, &status, 0), c.pid);
	TEST_ASSERT(WIFSIGNALED(status) && WCOREDUMP(status), "No core, status 0x%x", status);

	TEST_ASSERT(gmem_count_pages(CORE, VAL + SHARED - PLAIN), "No shared page in the core");
	for (i = 0; i < SHARED - PLAIN; i++)
		TEST_ASSERT_EQ(gmem_count_pages(CORE, VAL + i), 0);
	unlink(CORE);
}

int main(int argc, char *argv[])
{
	return test_harness_run(argc, argv);
}
