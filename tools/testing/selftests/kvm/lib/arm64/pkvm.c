// SPDX-License-Identifier: GPL-2.0-only
/*
 * Protected VMs of arm64 (pKVM); see pkvm_util.h.
 */
#include "pkvm_util.h"
#include "sparsebit.h"

/* struct ucall of four vCPUs, and the page of commands. */
#define MAX_COMM_PAGES		16

/* The guest's copies count. */
static gpa_t comm_gpas[MAX_COMM_PAGES];
static u64 nr_comm_pages;
static struct pvm_cmd *guest_cmds;

/* ---- What the machine can do ---- */

static int create_vm_fd(void)
{
	int kvm_fd = open_kvm_dev_path_or_exit();
	int fd;

	fd = __kvm_ioctl(kvm_fd, KVM_CREATE_VM, (void *)KVM_VM_TYPE_ARM_PROTECTED);
	kvm_close(kvm_fd);
	return fd;
}

bool pvm_supported(void)
{
	int fd = create_vm_fd();

	if (fd < 0)
		return false;
	kvm_close(fd);
	return true;
}

u64 pvm_exit_hypercalls(void)
{
	int fd = create_vm_fd();
	int mask;

	TEST_ASSERT(fd >= 0, KVM_IOCTL_ERROR(KVM_CREATE_VM, fd));
	mask = ioctl(fd, KVM_CHECK_EXTENSION, KVM_CAP_EXIT_HYPERCALL);
	TEST_ASSERT(mask >= 0, KVM_IOCTL_ERROR(KVM_CHECK_EXTENSION, mask));
	kvm_close(fd);
	return mask;
}

/* ---- The guest ---- */

void pvm_guest_hvc(struct pvm_cmd *cmd)
{
	struct arm_smccc_res res;

	smccc_hvc(cmd->args[0], cmd->args[1], cmd->args[2], cmd->args[3],
		  0, 0, 0, 0, &res);
	cmd->ret[0] = res.a0;
	cmd->ret[1] = res.a1;
	cmd->ret[2] = res.a2;
	cmd->ret[3] = res.a3;
}

void pvm_guest_fill(struct pvm_cmd *cmd)
{
	u64 i;

	for (i = 0; i < cmd->args[1]; i++)
		gmem_fill_words((u64 *)(cmd->args[0] + i * PAGE_SIZE),
				cmd->args[2] + i * cmd->args[3]);
}

void pvm_guest_check(struct pvm_cmd *cmd)
{
	u64 seen = 0;

	cmd->ret[0] = gmem_find_bad_page((u8 *)cmd->args[0], cmd->args[1],
					 cmd->args[2], cmd->args[3], &seen);
	cmd->ret[1] = seen;
}

void pvm_guest_read(struct pvm_cmd *cmd)
{
	cmd->ret[0] = READ_ONCE(*(u64 *)cmd->args[0]);
}

void pvm_guest_write(struct pvm_cmd *cmd)
{
	WRITE_ONCE(*(u64 *)cmd->args[0], cmd->args[1]);
}

/*
 * Where every vCPU begins, also after a reset.  Nothing may be reported before
 * the pages of communication are shared: a failure there is one unanswered exit.
 */
static void guest_main(u64 id, u64 first)
{
	struct pvm_cmd *cmd = &guest_cmds[id];
	u64 i;

	if (first)
		for (i = 0; i < nr_comm_pages; i++)
			if (pvm_hvc(PVM_HVC_SHARE, comm_gpas[i]))
				for (;;)
					WRITE_ONCE(*ucall_exit_mmio_addr, -1);

	for (;;) {
		GUEST_SYNC(id);
		cmd->fn(cmd);
	}
}

/* ---- Creation ---- */

static void init_vcpu(struct kvm_vcpu *vcpu, u64 first)
{
	vcpu_init_descriptor_tables(vcpu);
	vcpu_args_set(vcpu, 2, (u64)vcpu->id, first);
}

static void add_vcpus(struct pvm *p)
{
	struct kvm_vcpu_init init;
	u32 i;

	kvm_get_default_vcpu_target(p->vm, &init);
	init.features[0] |= BIT(KVM_ARM_VCPU_PSCI_0_2);

	for (i = 0; i < p->nr_vcpus; i++) {
		p->vcpus[i] = aarch64_vcpu_add(p->vm, i, &init, guest_main);
		init_vcpu(p->vcpus[i], !i);
	}
}

static bool is_unprotected(struct userspace_mem_region *slot0, u64 pg)
{
	return !sparsebit_is_set(slot0->unused_phy_pages, pg) &&
	       !sparsebit_is_set(slot0->protected_phy_pages, pg);
}

/*
 * The pool of ucalls is the only memory so far that is not protected.  It has
 * room for as many vCPUs as KVM may ever have, but these take the lowest entry
 * that is free: only the first few pages are ever used.
 */
static void find_ucall_pages(struct pvm *p)
{
	struct userspace_mem_region *slot0 = memslot2region(p->vm, 0);
	u64 first = slot0->region.guest_phys_addr >> p->vm->page_shift;
	u64 pg, i;

	nr_comm_pages = align_up(p->nr_vcpus * sizeof(struct ucall) + KVM_MAX_VCPUS / 8,
				 PAGE_SIZE) / PAGE_SIZE;
	TEST_ASSERT(nr_comm_pages < MAX_COMM_PAGES, "%lu pages of ucalls", nr_comm_pages);

	for (pg = first; !is_unprotected(slot0, pg); pg++)
		TEST_ASSERT(pg - first < slot0->region.memory_size / PAGE_SIZE,
			    "Slot 0 has no pool of ucalls");

	for (i = 0; i < nr_comm_pages; i++)
		comm_gpas[i] = (pg + i) * PAGE_SIZE;
}

static void init_comm_pages(struct pvm *p)
{
	gva_t cmds;

	find_ucall_pages(p);
	cmds = vm_alloc_shared(p->vm, PAGE_SIZE, KVM_UTIL_MIN_VADDR, MEM_REGION_DATA);
	comm_gpas[nr_comm_pages++] = addr_gva2gpa(p->vm, cmds);
	p->cmds = addr_gva2hva(p->vm, cmds);

	write_guest_global(p->vm, guest_cmds, (struct pvm_cmd *)cmds);
	sync_global_to_guest(p->vm, comm_gpas);
	sync_global_to_guest(p->vm, nr_comm_pages);
}

void pvm_create(struct pvm *p, u32 nr_vcpus, u64 exits)
{
	const struct vm_shape shape = {
		.mode = VM_MODE_DEFAULT,
		.type = KVM_VM_TYPE_ARM_PROTECTED,
	};

	gmem_page_size = getpagesize();
	*p = (struct pvm) { .nr_vcpus = nr_vcpus, .image.fd = -1 };

	test_disable_default_vgic();
	p->vm = __vm_create(shape, nr_vcpus, 0);
	TEST_REQUIRE(p->vm->page_size == PAGE_SIZE);
	sync_global_to_guest(p->vm, gmem_page_size);
	if (exits)
		vm_enable_cap(p->vm, KVM_CAP_EXIT_HYPERCALL, exits);

	vm_init_descriptor_tables(p->vm);
	init_comm_pages(p);
	add_vcpus(p);
}

/* Returns with all vCPUs in their loops, waiting for a command. */
static void start_vcpus(struct pvm *p)
{
	u32 i;

	for (i = 0; i < p->nr_vcpus; i++)
		pvm_finish(p, i);
}

void pvm_load_anonymous(struct pvm *p)
{
	start_vcpus(p);
}

/* Copies what the guest has; pages that it has not stay absent. */
static void copy_image(struct pvm *p, struct userspace_mem_region *slot0)
{
	u64 first = slot0->region.guest_phys_addr >> p->vm->page_shift;
	u64 i, nr = slot0->region.memory_size / PAGE_SIZE;

	for (i = 0; i < nr; i++)
		if (!sparsebit_is_set(slot0->unused_phy_pages, first + i))
			memcpy(p->image.mem + i * PAGE_SIZE,
			       slot0->host_mem + i * PAGE_SIZE, PAGE_SIZE);
}

/*
 * Slot 0 was loaded while it was anonymous.  Put a file with the same content in
 * its place, at the same host addresses, and make that private.  From here on
 * the VM of the library owns mapping and descriptor.
 */
void pvm_load_gmem(struct pvm *p)
{
	struct userspace_mem_region *slot0 = memslot2region(p->vm, 0);
	struct gmem *g = &p->image;
	u64 nr = slot0->region.memory_size / PAGE_SIZE;

	TEST_ASSERT(slot0->mmap_start == slot0->host_mem &&
		    slot0->mmap_size == slot0->region.memory_size,
		    "The mapping of slot 0 is not exact");

	gmem_create(g, p->vm, slot0->region.memory_size, GMEM_SHARED_FILE);
	copy_image(p, slot0);

	vm_set_user_memory_region(p->vm, 0, 0, slot0->region.guest_phys_addr, 0,
				  slot0->host_mem);
	kvm_munmap(g->mem, g->size);
	g->mem = mmap(slot0->host_mem, g->size, PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_FIXED, g->fd, 0);
	TEST_ASSERT(g->mem == slot0->host_mem, "mmap() failed, errno %d", errno);

	slot0->region.flags |= KVM_MEM_GUEST_MEMFD;
	slot0->region.guest_memfd = g->fd;
	gmem_bind(g, 0, slot0->region.guest_phys_addr);
	gmem_to_private(g, 0, nr, 0);
	pvm_add_file(p, g);
	start_vcpus(p);
}

void pvm_free(struct pvm *p)
{
	kvm_vm_free(p->vm);
	p->vm = NULL;
}

void pvm_vcpu_reset(struct kvm_vcpu *vcpu)
{
	struct kvm_vcpu_init init = vcpu->init;
	u64 sp;

	/* The library sets up everything else again, and knows no stack. */
	sp = vcpu_get_reg(vcpu, ctxt_reg_alias(vcpu, SYS_SP_EL1));
	aarch64_vcpu_setup(vcpu, &init);
	vcpu_set_reg(vcpu, ctxt_reg_alias(vcpu, SYS_SP_EL1), sp);
	vcpu_arch_set_entry_point(vcpu, guest_main);
	init_vcpu(vcpu, 0);
}

/* ---- A VMM that does what it is asked ---- */

void pvm_add_file(struct pvm *p, struct gmem *g)
{
	TEST_ASSERT(p->nr_files < PVM_MAX_FILES, "Too many files");
	p->files[p->nr_files++] = g;
}

void pvm_del_file(struct pvm *p, struct gmem *g)
{
	u32 i;

	for (i = 0; i < p->nr_files; i++)
		if (p->files[i] == g)
			break;
	TEST_ASSERT(i < p->nr_files, "No such file");
	p->files[i] = p->files[--p->nr_files];
}

struct gmem *pvm_file_of(struct pvm *p, gpa_t gpa, u64 *page)
{
	struct gmem *g;
	u32 i;

	for (i = 0; i < p->nr_files; i++) {
		g = p->files[i];
		if (gpa >= g->gpa && gpa - g->gpa < g->size) {
			*page = (gpa - g->gpa) / PAGE_SIZE;
			return g;
		}
	}
	return NULL;
}

/* Pages that are in no file are nothing that the VMM can do something about. */
void pvm_serve(struct pvm *p, struct kvm_vcpu *vcpu)
{
	u64 page = 0, nr = vcpu->run->hypercall.nr;
	struct gmem *g = pvm_file_of(p, vcpu->run->hypercall.args[0], &page);

	TEST_ASSERT_EQ(vcpu->run->hypercall.args[1], PAGE_SIZE);
	if (!g)
		return;

	if (nr == PVM_HVC_SHARE)
		gmem_to_shared(g, page, 1, 0);
	else if (nr == PVM_HVC_UNSHARE)
		gmem_to_private(g, page, 1, 0);
	else if (nr == PVM_HVC_RELINQUISH)
		gmem_punch(g, page, 1);
	else
		TEST_FAIL("Unexpected hypercall 0x%lx", nr);
}

/* ---- What the host can reach ---- */

void pvm_check_syscalls(u8 *mem, int error)
{
	struct iovec iov = { .iov_base = mem, .iov_len = 64 }, local;
	int pipes[2], zero = open("/dev/zero", O_RDONLY);
	u8 buf[64] = {};

	TEST_ASSERT(zero >= 0 && !pipe(pipes), "/dev/zero, pipe(): errno %d", errno);
	local = (struct iovec) { .iov_base = buf, .iov_len = sizeof(buf) };

	TEST_ASSERT_EQ(pvm_error(write(pipes[1], mem, 64)), error);
	TEST_ASSERT_EQ(pvm_error(vmsplice(pipes[1], &iov, 1, 0)), error);
	TEST_ASSERT_EQ(pvm_error(process_vm_readv(getpid(), &local, 1, &iov, 1, 0)), error);
	if (error) {
		TEST_ASSERT_EQ(pvm_error(read(zero, mem, 64)), error);
		TEST_ASSERT_EQ(pvm_error(process_vm_writev(getpid(), &local, 1, &iov, 1, 0)),
			       error);
	}
	close(zero);
	close(pipes[0]);
	close(pipes[1]);
}

/* ---- Calls of the guest ---- */

struct pvm_cmd *__pvm_prepare(struct pvm *p, u32 id, void (*fn)(struct pvm_cmd *cmd),
			      u64 arg0, u64 arg1, u64 arg2, u64 arg3)
{
	struct pvm_cmd *cmd = &p->cmds[id];

	*cmd = (struct pvm_cmd) {
		.fn = fn,
		.args = { arg0, arg1, arg2, arg3 },
		.ret = { -1ul, -1ul, -1ul, -1ul },
	};
	return cmd;
}

struct pvm_cmd *pvm_finish(struct pvm *p, u32 id)
{
	struct kvm_vcpu *vcpu = p->vcpus[id];

	vcpu_run(vcpu);
	while (vcpu->run->exit_reason == KVM_EXIT_HYPERCALL) {
		pvm_serve(p, vcpu);
		vcpu_run(vcpu);
	}
	TEST_ASSERT_EQ(gmem_get_ucall(vcpu), UCALL_SYNC);
	return &p->cmds[id];
}
