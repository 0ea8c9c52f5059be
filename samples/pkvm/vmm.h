/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A small VMM that boots Linux on arm64, as a normal or as a protected VM.
 *
 *   vmm.c       options, and the story that is told while the guest runs
 *   vm.c        the VM, its memory, conversions, its vCPUs and their exits
 *   image.c     what is in memory at start: Image, initramfs, device tree
 *   devtree.c   the device tree
 *   bus.c       memory-mapped devices and their interrupts; the console
 *   virtio.c    virtio-mmio and its rings, device-independent
 *   devices.c   virtio-blk and virtio-rng
 *   probe.c     what the host can see: pages, counters
 *   guest.c     the guest's /init
 *
 * The parts to copy from are create_memory(), convert(), on_hypercall() and
 * on_memory_fault() in vm.c, and shared_memory() with its users.
 */
#ifndef VMM_H
#define VMM_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <linux/kvm.h>

#define PAGE_SIZE	4096ul		/* checked: of the host, hence of pKVM */
#define KIB		1024ul
#define MIB		(1024 * KIB)
#define PAGES(bytes)	(((bytes) + PAGE_SIZE - 1) / PAGE_SIZE)
#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))
#define BIT(n)		(1u << (n))
#define BIT_ULL(n)	(1ull << (n))
#define __noreturn	__attribute__((noreturn))
#define __printf(a, b)	__attribute__((format(printf, a, b)))

/* Guest physical addresses; everything but RAM is emulated here or in KVM. */
#define GICD_BASE	0x08000000ul
#define GICR_BASE	0x080a0000ul
#define UART_BASE	0x09000000ul
#define VIRTIO_BASE	0x0a000000ul	/* a page each */
#define RAM_BASE	0x40000000ul

/* Interrupt numbers as in the device tree: shared ones, from 0. */
#define UART_SPI	0
#define VIRTIO_SPI	1		/* and up */
#define NR_IRQS		64

#define GICD_SIZE	0x10000ul
#define GICR_SIZE	0x20000ul	/* a vCPU */
#define MMIO_SIZE	0x1000ul

#define MAX_CPUS	8
#define MAX_DEVICES	2

#define INDENT		"                "
/* Numbers of pages, by enum page. */
#define STATE		INDENT "[private %s | shared by the guest %s | shared as yet %s]"

/* Where the guest's memory comes from, and who may see it. */
enum mode {
	MODE_NORMAL,	/* a normal VM, anonymous memory */
	MODE_PINNED,	/* a protected VM, anonymous memory: pinned, locked */
	MODE_IN_PLACE,	/* a protected VM, all memory in one guest_memfd */
};

/* In place: what the file says of a page.  Else all stay as they are at first. */
enum page {
	PAGE_PRIVATE,
	PAGE_INITIAL,	/* shared since the file was created */
	PAGE_SHARED,	/* by the guest */
	NR_PAGE_STATES,
};

struct vm;

struct vcpu {
	struct vm *vm;
	struct kvm_run *run;
	pthread_t thread;
	int fd;
};

/* Requests of the guest for neighbouring pages, told as one. */
struct batch {
	__u64 start, end;
	bool private;
};

struct counters {
	unsigned long mmio;	/* exits for a device */
	unsigned long shared;	/* pages that the guest shared by hypercall */
	unsigned long unshared;	/* ... and took back */
	unsigned long faults;	/* exits for a page in the wrong state */
};

/* Places in guest memory. */
struct layout {
	__u64 kernel, kernel_end, fdt, initrd, initrd_end, pool, pool_size;
};

struct virtio;

struct vm {
	enum mode mode;
	bool lazy;		/* in place: private one page at a time */
	int kvm, fd, gmem, gic;
	__u8 *ram;		/* the guest's memory as the VMM sees it */
	size_t ram_size;
	__u8 *pages;		/* an enum page each */
	size_t nr_pages[NR_PAGE_STATES];
	struct batch batch;
	unsigned int nr_cpus;
	struct vcpu cpus[MAX_CPUS];
	struct layout layout;
	const char *cmdline;
	struct virtio *devices[MAX_DEVICES];
	unsigned int nr_devices;
	/* Everything that happens outside of KVM_RUN is done under this lock. */
	pthread_mutex_t lock;
	struct counters counters;
	bool done, kicked;	/* the guest has powered off; all vCPUs know */
	const char *failed;	/* ... or why it cannot go on */
	double start;
};

/* vmm.c: bad input is one line and exit code 2; everything else err() */
void __printf(2, 3) say(const struct vm *vm, const char *fmt, ...);
void guest_says(const struct vm *vm, const char *line);
const char *num(size_t n);
double now(void);

/* vm.c */
void create_vm(struct vm *vm);
void create_cpus(struct vm *vm);
void run_vm(struct vm *vm);
void destroy_vm(struct vm *vm);
int convert(struct vm *vm, __u64 gpa, __u64 size, bool private);
void *shared_memory(struct vm *vm, __u64 gpa, __u64 size);
int xioctl(int fd, unsigned long request, unsigned long arg, const char *what);
#define IOCTL(fd, request, arg) xioctl(fd, request, (unsigned long)(arg), #request)

/* image.c, devtree.c */
void plan_guest(struct vm *vm, const char *kernel, const char *initrd);
void load_guest(struct vm *vm);
void build_devtree(const struct vm *vm, void *to, size_t room);

/* bus.c */
void set_irq(struct vm *vm, unsigned int spi, bool level);
void do_mmio(struct vm *vm, __u64 addr, __u32 size, void *data, bool write);

/* virtio.c */
__u32 virtio_access(struct vm *vm, struct virtio *dev, unsigned int offset, __u32 value,
		    unsigned int size, bool write);

/* devices.c */
void add_disk(struct vm *vm, const char *path);
void add_rng(struct vm *vm);

/* probe.c */
struct pages {
	size_t readable, refused;
	size_t unlike;		/* in place: not as the file says */
};

void probe_init(void);
struct pages probe_all(const struct vm *vm);
bool read_refused(const struct vm *vm, __u64 gpa);
bool syscall_refused(const struct vm *vm, __u64 gpa);
size_t pages_in_file(int fd);
size_t proc_sum(const char *file, const char *name);
size_t free_pages(void);

#endif
