// SPDX-License-Identifier: GPL-2.0-only
/*
 * guest_memfd_bench: KVM's own accesses to guest memory, where that is anonymous memory,
 * pages of a file, or pages of a file that is outside the direct map.
 */
#include <linux/kvm_para.h>
#include <sys/eventfd.h>

#include "guest_memfd_bench.h"

#define SHARED_FILE	(GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED)

/* Of the slot: the code that KVM emulates, and the clock.  Behind it: a device. */
#define CODE		GPA
#define CLOCK		(GPA + PAGE_SIZE)
#define SIZE		((u64)SZ_2M)
#define DEVICE		(GPA + SIZE)

/* Of each kind in a row. */
#define NR_ACCESSES	1000

static const struct access_kind {
	const char *id;
	const char *label;
	bool file;
	u64 flags;
} access_kinds[] = {
	{ "anonymous", "anonymous memory", false, 0 },
	{ "file", "a file", true, 0 },
	{ "hidden", "a file, no direct map", true, GUEST_MEMFD_FLAG_NO_DIRECT_MAP },
};

/* The guest's copy counts. */
static u64 guest_nr_writes;

static void guest_access(void)
{
	/* mov %al, (%rdi); dec %rcx; jnz -7; ret */
	static const u8 code[] = { 0x88, 0x07, 0x48, 0xff, 0xc9, 0x75, 0xf9, 0xc3 };
	u64 nr;

	memcpy((void *)CODE, code, sizeof(code));
	wrmsr(MSR_KVM_SYSTEM_TIME_NEW, CLOCK | KVM_MSR_ENABLED);

	for (;;) {
		asm volatile("outb %%al, $0x80" : : "a"(0) : "memory");
		nr = READ_ONCE(guest_nr_writes);
		if (nr)
			asm volatile("call *%[code]" : "+c"(nr)
				     : [code] "r"(CODE), "D"(DEVICE), "a"(0) : "memory");
	}
}

/* Writes to the device end in the kernel, so that user space costs nothing. */
static void add_device(struct bench *b)
{
	struct kvm_ioeventfd device = {
		.addr = DEVICE,
		.len = 1,
		.fd = eventfd(0, EFD_NONBLOCK),
	};

	TEST_ASSERT(device.fd >= 0, "eventfd: %s", strerror(errno));
	vm_ioctl(b->vm, KVM_IOEVENTFD, &device);
	close(device.fd);
}

static void new_access_guest(struct bench *b, const struct access_kind *k)
{
	*b = (struct bench) { .fd = -1, .size = SIZE };
	b->vm = vm_create_with_one_vcpu(&b->vcpus[0], guest_access);
	virt_map_level(b->vm, GPA, GPA, 2 * SIZE, PG_LEVEL_2M);

	if (k->file) {
		b->fd = vm_create_guest_memfd(b->vm, SIZE, SHARED_FILE | k->flags);
		b->mem = kvm_mmap(SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, b->fd);
	} else {
		b->mem = map_sparse(SIZE);
	}
	bind_slot(b);
	add_device(b);
	run_vcpu(b, 0);
}

static void run_writes(struct bench *b, u64 *nr_writes, u64 nr)
{
	*nr_writes = nr;
	run_vcpu(b, 0);
	*nr_writes = 0;
}

/* The clock's page is written before each entry that follows the ioctl. */
static void run_clocks(struct bench *b)
{
	int i;

	for (i = 0; i < NR_ACCESSES; i++) {
		__vcpu_ioctl(b->vcpus[0], KVM_KVMCLOCK_CTRL, NULL);
		run_vcpu(b, 0);
	}
}

static void run_entries(struct bench *b)
{
	int i;

	for (i = 0; i < NR_ACCESSES; i++)
		run_vcpu(b, 0);
}

static void access_rows(const struct access_kind *k)
{
	const char *against = k->file ? "access-mmio-anonymous" : NULL;
	static struct samples s;
	u64 *nr_writes;
	struct bench b;
	int i;

	at("KVM uses %s", k->label);
	new_access_guest(&b, k);
	nr_writes = addr_gva2hva(b.vm, (gva_t)&guest_nr_writes);

	/* The first is for what is looked up once. */
	run_writes(&b, nr_writes, NR_ACCESSES);
	for (i = 0; i < 3; i++)
		sample(&s, TICKS(run_writes(&b, nr_writes, NR_ACCESSES)));
	row(median(&s), unit, name("access-mmio-%s", k->id), against,
	    "%d emulated MMIO writes, code in %s", NR_ACCESSES, k->label);

	run_clocks(&b);
	for (i = 0; i < 3; i++)
		sample(&s, TICKS(run_clocks(&b)));
	row(median(&s), unit, name("access-clock-%s", k->id),
	    k->file ? "access-clock-anonymous" : NULL,
	    "%d updates of kvmclock in %s, and entries", NR_ACCESSES, k->label);

	for (i = 0; i < 3; i++)
		sample(&s, TICKS(run_entries(&b)));
	row(median(&s), unit, name("access-entry-%s", k->id), NULL,
	    "%d entries, memory is %s", NR_ACCESSES, k->label);
	close_bench(&b);
}

void access_group(void)
{
	const u64 offered = kvm_check_cap(KVM_CAP_GUEST_MEMFD_FLAGS);
	int i;

	for (i = 0; i < ARRAY_SIZE(access_kinds); i++) {
		if (!access_kinds[i].file ||
		    !((SHARED_FILE | access_kinds[i].flags) & ~offered))
			access_rows(&access_kinds[i]);
	}
}
