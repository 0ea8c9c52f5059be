// SPDX-License-Identifier: GPL-2.0-only
/*
 * The VM: its memory and the conversions of it, its vCPUs and their exits.
 *
 * Who decides about a page.  In a protected VM the guest alone does: it asks
 * the hypervisor to share a page (MEM_SHARE) or to take it back (MEM_UNSHARE).
 * With KVM_CAP_EXIT_HYPERCALL the question comes here, and the VMM converts the
 * page in the file, or does not.  The hypervisor tells the guest what became of
 * it; nothing that the VMM writes into the exit can change that answer.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/mman.h>

#include "vmm.h"

#define MAX_TRIES	100
/* Function numbers of the vendor-specific hypervisor service, SMC64. */
#define KVM_MEM_SHARE	0xc6000003ul
#define KVM_MEM_UNSHARE	0xc6000004ul

#define SPI_LINE(spi)	((KVM_ARM_IRQ_TYPE_SPI << KVM_ARM_IRQ_TYPE_SHIFT) | ((spi) + 32))

int xioctl(int fd, unsigned long request, unsigned long arg, const char *what)
{
	int ret = ioctl(fd, request, arg);

	if (ret < 0)
		err(1, "%s", what);
	return ret;
}

/* Ask the VM, not /dev/kvm: the answers depend on the type of the VM. */
static void require(struct vm *vm, unsigned long cap, int bits, const char *what)
{
	int ret = ioctl(vm->fd, KVM_CHECK_EXTENSION, cap);

	if (ret < 0 || (ret & bits) != bits)
		errx(1, "this kernel has no %s for protected VMs", what);
}

/* ---- memory ---- */

/*
 * One file for all memory.  It starts shared, so that the initial image can be
 * written through the mapping; making it private keeps the bytes.  The guest
 * may only be given pages of such a file if the VMM sees its requests.
 */
static void create_file(struct vm *vm)
{
	struct kvm_enable_cap exits = {
		.cap = KVM_CAP_EXIT_HYPERCALL,
		.args[0] = KVM_ARM_EXIT_HYPERCALL_MEM_SHARE | KVM_ARM_EXIT_HYPERCALL_MEM_UNSHARE,
	};
	struct kvm_create_guest_memfd gmem = {
		.size = vm->ram_size,
		.flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED,
	};

	require(vm, KVM_CAP_EXIT_HYPERCALL, exits.args[0], "exits for MEM_SHARE and MEM_UNSHARE");
	require(vm, KVM_CAP_GUEST_MEMFD_FLAGS, gmem.flags, "shared guest_memfd");
	require(vm, KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES, KVM_MEMORY_ATTRIBUTE_PRIVATE,
		"conversion in place");
	require(vm, KVM_CAP_GUEST_MEMFD_FLAGS_TO_PRIVATE, KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE,
		"conversion that keeps content");
	IOCTL(vm->fd, KVM_ENABLE_CAP, &exits);
	vm->gmem = IOCTL(vm->fd, KVM_CREATE_GUEST_MEMFD, &gmem);
}

static void create_memory(struct vm *vm)
{
	struct kvm_userspace_memory_region2 slot = {
		.guest_phys_addr = RAM_BASE,
		.memory_size = vm->ram_size,
	};
	int prot = PROT_READ | PROT_WRITE;

	if (vm->mode == MODE_IN_PLACE) {
		create_file(vm);
		vm->ram = mmap(NULL, vm->ram_size, prot, MAP_SHARED, vm->gmem, 0);
		slot.flags = KVM_MEM_GUEST_MEMFD;
		slot.guest_memfd = vm->gmem;
	} else {
		vm->ram = mmap(NULL, vm->ram_size, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		madvise(vm->ram, vm->ram_size, MADV_NOHUGEPAGE);	/* count exactly */
	}
	vm->pages = malloc(PAGES(vm->ram_size));
	if (vm->ram == MAP_FAILED || !vm->pages)
		err(1, "guest memory");
	memset(vm->pages, PAGE_INITIAL, PAGES(vm->ram_size));
	vm->nr_pages[PAGE_INITIAL] = PAGES(vm->ram_size);

	/* Without a file it is the memory, else it is for KVM's error reports. */
	slot.userspace_addr = (unsigned long)vm->ram;
	IOCTL(vm->fd, KVM_SET_USER_MEMORY_REGION2, &slot);
}

static void set_pages(struct vm *vm, size_t first, size_t nr, enum page state)
{
	size_t i;

	for (i = first; i < first + nr; i++) {
		vm->nr_pages[vm->pages[i]]--;
		vm->pages[i] = state;
	}
	vm->nr_pages[state] += nr;
}

/* Makes guest memory private or shared, content kept. Returns 0 or -errno. */
int convert(struct vm *vm, __u64 gpa, __u64 size, bool private)
{
	/* One slot, one file: the offset is the address from the RAM's start. */
	struct kvm_memory_attributes2 a = {
		.offset = gpa - RAM_BASE,
		.size = size,
		.attributes = private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0,
		.flags = KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE,
	};
	int tries = 0, ret;

	/*
	 * EAGAIN: somebody holds a page, and nothing has changed.  It may be a
	 * passing reference of the kernel's own (compaction, say), so try again
	 * a few times; a VMM with DMA to the range must unmap that first.
	 */
	do {
		ret = ioctl(vm->gmem, KVM_SET_MEMORY_ATTRIBUTES2, &a);
	} while (ret && errno == EAGAIN && ++tries < MAX_TRIES && !usleep(1000));
	if (ret)
		return -errno;
	set_pages(vm, a.offset / PAGE_SIZE, size / PAGE_SIZE,
		  private ? PAGE_PRIVATE : PAGE_SHARED);
	return 0;
}

/*
 * Where the VMM finds a piece of guest memory that a device was told to use, or
 * NULL.  The guest may name any address: a private page would be SIGBUS.  The
 * answer is good while vm->lock is held, as conversions are done under it too.
 *
 * Of pinned memory only the hypervisor knows what is shared; there a guest that
 * names a private page ends its VMM (probe.c says so).
 */
void *shared_memory(struct vm *vm, __u64 gpa, __u64 size)
{
	__u64 offset = gpa - RAM_BASE, i;

	if (gpa < RAM_BASE || offset > vm->ram_size || size > vm->ram_size - offset)
		return NULL;
	for (i = offset / PAGE_SIZE; i < PAGES(offset + size); i++)
		if (vm->pages[i] == PAGE_PRIVATE)
			return NULL;
	return vm->ram + offset;
}

/* ---- vCPUs ---- */

static void gic_attr(struct vm *vm, __u32 group, __u64 attr, __u64 *value)
{
	struct kvm_device_attr a = {
		.group = group, .attr = attr, .addr = (unsigned long)value,
	};

	IOCTL(vm->gic, KVM_SET_DEVICE_ATTR, &a);
}

/* In two steps: created before, initialised after the vCPUs. */
static void create_gic(struct vm *vm)
{
	struct kvm_create_device dev = { .type = KVM_DEV_TYPE_ARM_VGIC_V3 };
	__u64 dist = GICD_BASE, redist = GICR_BASE;

	IOCTL(vm->fd, KVM_CREATE_DEVICE, &dev);
	vm->gic = dev.fd;
	gic_attr(vm, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_DIST, &dist);
	gic_attr(vm, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_REDIST, &redist);
}

static void init_gic(struct vm *vm)
{
	__u32 irqs = NR_IRQS;

	gic_attr(vm, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, (void *)&irqs);
	gic_attr(vm, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, NULL);
}

void set_irq(struct vm *vm, unsigned int spi, bool level)
{
	struct kvm_irq_level line = { .irq = SPI_LINE(spi), .level = level };

	IOCTL(vm->fd, KVM_IRQ_LINE, &line);
}

static void set_reg(struct vcpu *cpu, __u64 offset, __u64 value)
{
	struct kvm_one_reg reg = {
		.id = KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE | offset / sizeof(__u32),
		.addr = (unsigned long)&value,
	};

	IOCTL(cpu->fd, KVM_SET_ONE_REG, &reg);
}

/*
 * Pointer authentication: both halves or none.  A protected VM must have it where
 * the processor has it: its ID registers show the generic half in any case.
 */
static __u32 ptrauth(struct vm *vm)
{
	if (ioctl(vm->fd, KVM_CHECK_EXTENSION, KVM_CAP_ARM_PTRAUTH_ADDRESS) <= 0 ||
	    ioctl(vm->fd, KVM_CHECK_EXTENSION, KVM_CAP_ARM_PTRAUTH_GENERIC) <= 0)
		return 0;
	return BIT(KVM_ARM_VCPU_PTRAUTH_ADDRESS) | BIT(KVM_ARM_VCPU_PTRAUTH_GENERIC);
}

/* The others wait for the first one's PSCI CPU_ON, which KVM handles. */
static void create_cpu(struct vm *vm, unsigned int i)
{
	int size = IOCTL(vm->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	struct vcpu *cpu = &vm->cpus[i];
	struct kvm_vcpu_init init;

	cpu->vm = vm;
	cpu->fd = IOCTL(vm->fd, KVM_CREATE_VCPU, i);
	cpu->run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, cpu->fd, 0);
	if (cpu->run == MAP_FAILED)
		err(1, "mmap of a vCPU");
	IOCTL(vm->fd, KVM_ARM_PREFERRED_TARGET, &init);
	init.features[0] |= BIT(KVM_ARM_VCPU_PSCI_0_2) | ptrauth(vm);
	if (i)
		init.features[0] |= BIT(KVM_ARM_VCPU_POWER_OFF);
	IOCTL(cpu->fd, KVM_ARM_VCPU_INIT, &init);
}

void create_cpus(struct vm *vm)
{
	unsigned int i;

	create_gic(vm);
	for (i = 0; i < vm->nr_cpus; i++)
		create_cpu(vm, i);
	init_gic(vm);
	/* The arm64 boot protocol: at the Image's start, x0 has the device tree. */
	set_reg(&vm->cpus[0], offsetof(struct kvm_regs, regs.pc), vm->layout.kernel);
	set_reg(&vm->cpus[0], offsetof(struct kvm_regs, regs.regs[0]), vm->layout.fdt);
}

void create_vm(struct vm *vm)
{
	unsigned long type = vm->mode == MODE_NORMAL ? 0 : KVM_VM_TYPE_ARM_PROTECTED;

	vm->fd = ioctl(vm->kvm, KVM_CREATE_VM, type);
	if (vm->fd < 0 && type && errno == EINVAL)
		errx(1, "no protected VMs here: is the kernel booted with kvm-arm.mode=protected?");
	if (vm->fd < 0)
		err(1, "KVM_CREATE_VM");
	create_memory(vm);
}

/* ---- exits ---- */

/* The guest cannot go on. The first reason counts. */
static void fail(struct vm *vm, const char *why)
{
	if (!vm->failed)
		vm->failed = why;
	vm->done = true;
}

static void tell_batch(struct vm *vm)
{
	struct batch *b = &vm->batch;

	if (b->end)
		say(vm, "guest: had me make %s pages at 0x%llx %s\n" STATE,
		    num((b->end - b->start) / PAGE_SIZE), b->start,
		    b->private ? "private again" : "shared", num(vm->nr_pages[PAGE_PRIVATE]),
		    num(vm->nr_pages[PAGE_SHARED]), num(vm->nr_pages[PAGE_INITIAL]));
	memset(b, 0, sizeof(*b));
}

/* The guest asks for a page to be shared or private: check it like any input. */
static void on_hypercall(struct vm *vm, struct kvm_run *run)
{
	__u64 gpa = run->hypercall.args[0], size = run->hypercall.args[1];
	bool private = run->hypercall.nr == KVM_MEM_UNSHARE;

	if (run->hypercall.nr != KVM_MEM_SHARE && !private)
		return;		/* the guest is told that it failed */
	if (gpa < RAM_BASE || gpa - RAM_BASE >= vm->ram_size ||
	    size > vm->ram_size - (gpa - RAM_BASE) || gpa % PAGE_SIZE || size % PAGE_SIZE)
		return;
	if (vm->batch.end != gpa || vm->batch.private != private)
		tell_batch(vm);
	if (convert(vm, gpa, size, private))
		return;
	if (private)
		vm->counters.unshared += size / PAGE_SIZE;
	else
		vm->counters.shared += size / PAGE_SIZE;
	if (!vm->batch.end)
		vm->batch.start = gpa;
	vm->batch.end = gpa + size;
	vm->batch.private = private;
}

/*
 * The guest uses a page as private that the file has as shared: it was never
 * made private.  The other way round cannot be: pages of a protected VM become
 * shared by hypercall alone.
 */
static void on_memory_fault(struct vm *vm, struct kvm_run *run)
{
	__u64 gpa = run->memory_fault.gpa & ~(PAGE_SIZE - 1);
	bool private = run->memory_fault.flags & KVM_MEMORY_EXIT_FLAG_PRIVATE;

	vm->counters.faults++;
	if (vm->mode != MODE_IN_PLACE || !private || gpa < RAM_BASE ||
	    gpa - RAM_BASE >= vm->ram_size)
		fail(vm, "a memory fault that nothing can be done about");
	else if (convert(vm, gpa, PAGE_SIZE, true))
		fail(vm, "a page that the guest wants cannot be made private");
}

static void handle_exit(struct vcpu *cpu)
{
	struct kvm_run *run = cpu->run;
	struct vm *vm = cpu->vm;

	if (run->exit_reason != KVM_EXIT_HYPERCALL)
		tell_batch(vm);
	switch (run->exit_reason) {
	case KVM_EXIT_MMIO:
		vm->counters.mmio++;
		do_mmio(vm, run->mmio.phys_addr, run->mmio.len, run->mmio.data,
			run->mmio.is_write);
		break;
	case KVM_EXIT_HYPERCALL:
		on_hypercall(vm, run);
		break;
	case KVM_EXIT_SYSTEM_EVENT:
		vm->done = true;
		if (run->system_event.type != KVM_SYSTEM_EVENT_SHUTDOWN)
			fail(vm, run->system_event.type == KVM_SYSTEM_EVENT_RESET ?
			     "the guest wants a reset: it has panicked" : "the guest crashed");
		break;
	default:
		warnx("unexpected exit reason %u", run->exit_reason);
		fail(vm, "an exit that this VMM does not know");
	}
}

/*
 * Makes KVM_RUN return, also where it has not begun yet.  Once and under the
 * lock: no thread can find the end, go away and be joined before its signal.
 */
static void kick_all(struct vm *vm)
{
	unsigned int i;

	vm->kicked = true;
	for (i = 0; i < vm->nr_cpus; i++) {
		vm->cpus[i].run->immediate_exit = 1;
		pthread_kill(vm->cpus[i].thread, SIGUSR1);
	}
}

static void *run_cpu(void *arg)
{
	struct vcpu *cpu = arg;
	struct vm *vm = cpu->vm;
	bool done = false;
	int ret, error;

	while (!done) {
		ret = ioctl(cpu->fd, KVM_RUN, 0);
		error = errno;
		pthread_mutex_lock(&vm->lock);
		if (vm->done || (ret && (error == EINTR || error == EAGAIN))) {
			;	/* kicked, or nothing happened */
		} else if (ret && error == EFAULT &&
			   cpu->run->exit_reason == KVM_EXIT_MEMORY_FAULT) {
			on_memory_fault(vm, cpu->run);
		} else if (ret) {
			warnx("KVM_RUN: %s (exit reason %u)", strerror(error),
			      cpu->run->exit_reason);
			fail(vm, "KVM cannot run the guest any further");
		} else {
			handle_exit(cpu);
		}
		if (vm->done && !vm->kicked)
			kick_all(vm);
		done = vm->done;
		pthread_mutex_unlock(&vm->lock);
	}
	return NULL;
}

static void on_kick(int sig)
{
	(void)sig;
}

/* Runs the guest to its end; vm->failed says if that was a bad one. */
void run_vm(struct vm *vm)
{
	struct sigaction sa = { .sa_handler = on_kick };
	unsigned int i;

	sigaction(SIGUSR1, &sa, NULL);
	/* Nobody can be kicked before all are there. */
	pthread_mutex_lock(&vm->lock);
	for (i = 0; i < vm->nr_cpus; i++) {
		errno = pthread_create(&vm->cpus[i].thread, NULL, run_cpu, &vm->cpus[i]);
		if (errno)
			err(1, "pthread_create");
	}
	pthread_mutex_unlock(&vm->lock);
	for (i = 0; i < vm->nr_cpus; i++)
		pthread_join(vm->cpus[i].thread, NULL);
}

/* The guest goes; its memory stays readable to nobody but the allocator. */
void destroy_vm(struct vm *vm)
{
	int size = IOCTL(vm->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	unsigned int i;

	for (i = 0; i < vm->nr_cpus; i++) {
		munmap(vm->cpus[i].run, size);
		close(vm->cpus[i].fd);
	}
	close(vm->gic);
	close(vm->fd);
	munmap(vm->ram, vm->ram_size);
	if (vm->mode == MODE_IN_PLACE)
		close(vm->gmem);
	free(vm->pages);
}
