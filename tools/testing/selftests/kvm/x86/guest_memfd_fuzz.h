/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A fuzzer for guest_memfd: lists of random operations, and a model that knows
 * what each of them does.
 *
 *   guest_memfd_fuzz_test.c	options, rounds, and who is to blame
 *   guest_memfd_fuzz_list.c	lists: random, printed, parsed, made minimal
 *   guest_memfd_fuzz_model.c	state and bytes of each page; guests, users, holders
 *   guest_memfd_fuzz_ops.c	operations on the model, the table of all
 *   guest_memfd_fuzz_fill.c	operations that fill files: write(), filling on demand
 *   guest_memfd_fuzz_vm.c	operations on VMs, slots and attributes
 *   guest_memfd_fuzz_race.c	threads, without the model
 *
 * A list runs in a process of its own, and so can be cut to pieces and run anew
 * until what is left is no longer than it takes.  For this each operation must
 * make sense whatever came before: its arguments are random numbers, which it
 * takes modulo what there is; if there is nothing it does nothing.
 */
#ifndef SELFTEST_KVM_GUEST_MEMFD_FUZZ_H
#define SELFTEST_KVM_GUEST_MEMFD_FUZZ_H

#include "gmem_util.h"

#include <linux/bitmap.h>

#define FUZZ_NR_VMS		2u
#define FUZZ_NR_FILES		4u
#define FUZZ_NR_SLOTS		6u
/* The last of them are in the second address space, that of SMM. */
#define FUZZ_NR_SMM_SLOTS	2u
#define FUZZ_NR_HOLDS		6u
#define FUZZ_NR_CHILDREN	2u
#define FUZZ_NR_ARGS		5
#define FUZZ_MAX_OPS		100000u

/* Pages of a file, with and without large pages, and of a VM's window at GMEM_GPA. */
#define FUZZ_NR_SMALL		48u
#define FUZZ_NR_LARGE		512u
#define FUZZ_MAX_PAGES		(2 * FUZZ_NR_LARGE)
#define FUZZ_WINDOW		2048u

/* Frames that one list may poison. */
#define FUZZ_MAX_FRAMES		4u

struct fuzz_op {
	u32 kind;
	u32 arg[FUZZ_NR_ARGS];
};

struct fuzz_list {
	struct fuzz_op *ops;
	u32 nr;
};

/* What the process that runs a list tells the one that started it. */
struct fuzz_report {
	u32 op;
	u32 line;
	u32 nr_frames;
	/* The process has come to its end, and kills itself there. */
	bool done;
	char file[32];
	char text[256];
	u64 frames[FUZZ_MAX_FRAMES];
};

enum fuzz_kind {
	FUZZ_TWO_BACKINGS,
	FUZZ_IN_PLACE,
	FUZZ_FIXED,
};

/*
 * What is counted, for who wants to know what a run has come by; the names are in
 * guest_memfd_fuzz_test.c.
 */
enum fuzz_event {
	FUZZ_FILLED,
	FUZZ_FILLED_PRIVATE,
	FUZZ_FILLED_LARGE,
	FUZZ_FILLED_HIDDEN,
	FUZZ_FILLED_FROM_FILE,
	FUZZ_FILL_SHORT,
	FUZZ_FILL_EEXIST,
	FUZZ_FILL_EFAULT,
	FUZZ_FILL_EPERM,
	FUZZ_FILL_EINVAL,
	FUZZ_FILL_ENODEV,
	FUZZ_FILL_ENOMEM,
	FUZZ_HIDDEN_IN_PLACE,
	FUZZ_HIDDEN_FIXED,
	FUZZ_HIDDEN_CONVERTED,
	FUZZ_HIDDEN_REFUSED,
	FUZZ_HIDDEN_POISONED,
	FUZZ_MISSING_ABSENT,
	FUZZ_MISSING_BIT,
	FUZZ_MISSING_BLOCK,
	FUZZ_MISSING_PRIVATE,
	FUZZ_MISSING_NESTED,
	FUZZ_MISSING_PLAIN,
	FUZZ_MISSING_USER,
	FUZZ_MISSING_PRE_FAULT,
	FUZZ_MISSING_KVM,
	FUZZ_WRITTEN_BY_KVM,
	FUZZ_SWITCHED_ON,
	FUZZ_SWITCHED_OFF,
	FUZZ_SWITCHED_BITMAP,
	FUZZ_SWITCHED_NOTHING,
	FUZZ_SWITCH_EINVAL,
	FUZZ_SWITCH_EFAULT,
	FUZZ_SWITCH_EBADF,
	FUZZ_NR_EVENTS,
};

/* Every word of a page is the same; zero is what nobody has written yet. */
struct fuzz_page {
	u64 val;
	bool private;
	bool poisoned;
	/* Is it in the file?  Large pages bring others, and a call that fails some. */
	bool present;
	bool unsure;
	/* Slots that leave it to the VMM to fill the page, if it is absent. */
	u8 nr_waiting;
};

struct fuzz_vm {
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;

	/* Where the guest's server starts anew after an exit that it did not ask for. */
	struct kvm_regs regs;

	/* The VMs of this place are numbered; 0: there is none. */
	u32 number;
	u32 userfault;
	u64 file_flags;
	bool has_private;
	bool nested;

	struct fuzz_slot {
		struct fuzz_file *file;
		u64 gfn, pgoff, nr;
		bool used;
		bool gmem_only;
		/* The guest uses the file, if what it wants is private. */
		bool two_backings;
		bool has_file;
		/* KVM_MEM_USERFAULT, and one of the slot's bitmaps below, or none. */
		bool userfault;
		unsigned long *bitmap;
		u64 addr;
	} slots[FUZZ_NR_SLOTS];

	/* By page of a slot; what the guest had when a bit was set, it still has. */
	unsigned long bitmaps[FUZZ_NR_SLOTS][2][FUZZ_WINDOW / BITS_PER_LONG];
	bool bit_is_late[FUZZ_NR_SLOTS][FUZZ_WINDOW];

	/* By page of the window: the VM's attributes, and memory of no file. */
	bool attr_private[FUZZ_WINDOW];
	u64 plain_val[FUZZ_WINDOW];
	u8 *plain;
};

struct fuzz_file {
	struct fuzz_vm *vm;
	u32 vm_number;
	enum fuzz_kind kind;
	u64 flags;
	u64 nr;
	u8 *map;
	int fd;
	u32 nr_children;
	bool was_bound;
	struct fuzz_page pages[FUZZ_MAX_PAGES];
};

enum fuzz_hold_kind {
	FUZZ_NO_HOLD,
	FUZZ_PIPE,
	FUZZ_URING,
	FUZZ_GUP,
};

struct fuzz_hold {
	enum fuzz_hold_kind kind;
	int fds[2];
	struct fuzz_file *file;
	u64 page;
	/* Of a page that has left its file since. */
	bool orphan;
	bool poisoned;
	u64 val;
};

struct fuzz_child {
	pid_t pid;
	int to_child[2];
	int to_parent[2];
	bool has[FUZZ_NR_FILES];
	bool has_fd[FUZZ_NR_FILES];
	bool has_map[FUZZ_NR_FILES];
};

struct fuzz_world {
	struct fuzz_vm vms[FUZZ_NR_VMS];
	struct fuzz_file files[FUZZ_NR_FILES];
	struct fuzz_hold holds[FUZZ_NR_HOLDS];
	struct fuzz_child children[FUZZ_NR_CHILDREN];
	struct fuzz_report *report;
	u8 *source;
	u32 next_val;
	u32 next_vm;
	u32 faults;
	int nth;
	int nth_fd;
	bool verbose;
};

struct fuzz_op_desc {
	const char *name;
	void (*fn)(struct fuzz_world *w, const u32 *arg);
	u32 weight;
	/* Left out unless the switch of this bit is on. */
	u32 fault;
};

/*
 * Operations that ran into faults of older kernels.  All of them are tried by default;
 * for a kernel that still has such a fault, -k leaves its bit out.
 */
#define FUZZ_FAULT_NESTED_HUGE	BIT(0)	/* tables of 4 KiB on large pages */
#define FUZZ_FAULT_HELD_POISON	BIT(1)	/* error in a large page that is held */
#define FUZZ_FAULT_ALIAS	BIT(2)	/* second gfn of a file of fixed state */
#define FUZZ_FAULT_FIRST_CALL	BIT(3)	/* in place by the first conversion */
#define FUZZ_FAULT_REMOVE	BIT(4)	/* MADV_REMOVE of private pages */
#define FUZZ_FAULT_PRE_FAULT	BIT(5)	/* pre-fault against a slot's deletion */

#define FUZZ_MENDED		(FUZZ_FAULT_PRE_FAULT * 2 - 1)

extern const struct fuzz_op_desc fuzz_ops[];
extern const u32 fuzz_nr_ops;

#define fuzz_fail(w, fmt, ...)	__fuzz_fail(w, __FILE__, __LINE__, fmt, ##__VA_ARGS__)
#define fuzz_check(w, cond, fmt, ...)						\
do {										\
	if (!(cond))								\
		fuzz_fail(w, fmt, ##__VA_ARGS__);				\
} while (0)

void __printf(4, 5) __noreturn __fuzz_fail(struct fuzz_world *w, const char *file,
					   int line, const char *fmt, ...);
void __printf(2, 3) fuzz_note(struct fuzz_world *w, const char *fmt, ...);

/* Lists. */
struct fuzz_list fuzz_list_random(u32 seed, u32 nr, u32 faults);
struct fuzz_list fuzz_list_parse(FILE *f);
void fuzz_list_print(FILE *f, const struct fuzz_list *list);
void fuzz_list_free(struct fuzz_list *list);
void fuzz_list_minimise(struct fuzz_list *list,
			bool (*still_fails)(const struct fuzz_list *list, void *arg),
			void *arg);

/* The model. */
void fuzz_world_init(struct fuzz_world *w, struct fuzz_report *report, u32 faults,
		     bool verbose);
void fuzz_world_check(struct fuzz_world *w);
void fuzz_world_end(struct fuzz_world *w);
u64 fuzz_new_val(struct fuzz_world *w);
bool fuzz_may(struct fuzz_world *w, u32 fault);
void fuzz_count(enum fuzz_event event);

bool fuzz_file_alive(const struct fuzz_file *f);
bool fuzz_file_is_huge(const struct fuzz_file *f);
void fuzz_file_put(struct fuzz_world *w, struct fuzz_file *f);
void fuzz_file_drop(struct fuzz_world *w, struct fuzz_file *f, u64 first, u64 nr);
struct fuzz_hold *fuzz_find_hold(struct fuzz_world *w, struct fuzz_file *f,
				 u64 first, u64 nr);
struct fuzz_hold *fuzz_hold_near(struct fuzz_world *w, struct fuzz_file *f,
				 u64 first, u64 nr);
bool fuzz_poison_near(struct fuzz_file *f, u64 page);
void fuzz_check_code(struct fuzz_world *w, struct fuzz_file *f, u64 page, int code,
		     const char *who);
void fuzz_user_read(struct fuzz_world *w, struct fuzz_file *f, u64 page);
void fuzz_user_write(struct fuzz_world *w, struct fuzz_file *f, u64 page);
bool fuzz_user_may(const struct fuzz_file *f, u64 page);
bool fuzz_user_unsure(const struct fuzz_file *f, u64 page);

/* What is present. */
void fuzz_look(struct fuzz_world *w, struct fuzz_file *f);
void fuzz_make_sure(struct fuzz_world *w, struct fuzz_file *f, u64 page);
void fuzz_touch(struct fuzz_file *f, u64 page);
void fuzz_doubt(struct fuzz_file *f, u64 first, u64 nr);
bool fuzz_file_is_out(const struct fuzz_file *f);

enum fuzz_guest_op {
	FUZZ_GUEST_READ,
	FUZZ_GUEST_WRITE,
	FUZZ_GUEST_EXEC,
	FUZZ_GUEST_FROM_MMIO,
};

/* A page that the guest has mapped, and at which there is nothing, ever. */
#define FUZZ_MMIO_GPA		(GMEM_GPA + FUZZ_WINDOW * PAGE_SIZE)

/* Outcomes of a guest's access beside an error number. */
#define FUZZ_MMIO		-1
#define FUZZ_MISSING		-2

int fuzz_guest_outcome(struct fuzz_vm *vm, u64 gfn, u64 **val, bool *may_miss);
void fuzz_guest_touch(struct fuzz_world *w, struct fuzz_vm *vm, u64 gfn);
void fuzz_guest_doubt(struct fuzz_world *w, struct fuzz_vm *vm, u64 gfn);
void fuzz_guest_start(struct fuzz_world *w, struct fuzz_vm *vm);
void fuzz_guest_code(u64 svm);
int fuzz_guest_run(struct fuzz_vm *vm, u64 gfn, enum fuzz_guest_op op, u64 val, u64 *seen);
void fuzz_guest_access(struct fuzz_world *w, struct fuzz_vm *vm, u64 gfn,
		       enum fuzz_guest_op op);
void fuzz_kvm_write(struct fuzz_world *w, struct fuzz_vm *vm, u64 gfn);

bool fuzz_take_hold(struct fuzz_hold *h, u8 *addr, u32 how);
void fuzz_drop_hold(struct fuzz_hold *h);
u64 fuzz_frame(void *addr);
bool fuzz_frame_is_lost(u64 flags);

/* Calls of which an allocation may be made to fail. */
void fuzz_call_begin(struct fuzz_world *w);
bool fuzz_call_end(struct fuzz_world *w);

/* Operations that are not in the file of the table. */
void fuzz_vm_create(struct fuzz_world *w, struct fuzz_vm *vm, bool private, bool nested);
void fuzz_op_vm_new(struct fuzz_world *w, const u32 *arg);
void fuzz_op_vm_close(struct fuzz_world *w, const u32 *arg);
struct fuzz_file *fuzz_pick_file(struct fuzz_world *w, u32 arg);
struct fuzz_file *fuzz_pick_open_file(struct fuzz_world *w, u32 arg);
struct fuzz_file *fuzz_pick_mapped_file(struct fuzz_world *w, u32 arg);
void fuzz_pick_pages(struct fuzz_file *f, const u32 *arg, u64 *first, u64 *nr);
struct fuzz_vm *fuzz_pick_vm(struct fuzz_world *w, u32 arg);
int fuzz_set_slot(struct fuzz_world *w, struct fuzz_vm *vm, u32 i,
		  const struct fuzz_slot *slot, u32 flags, bool *fired);
void fuzz_slot_changed(struct fuzz_vm *vm, u32 i, const struct fuzz_slot *slot);
bool fuzz_slot_is_smm(u32 i);

void fuzz_op_write(struct fuzz_world *w, const u32 *arg);
void fuzz_op_write_from_file(struct fuzz_world *w, const u32 *arg);
void fuzz_op_write_bad(struct fuzz_world *w, const u32 *arg);
void fuzz_op_userfault(struct fuzz_world *w, const u32 *arg);
void fuzz_op_userfault_bits(struct fuzz_world *w, const u32 *arg);
void fuzz_op_userfault_bad(struct fuzz_world *w, const u32 *arg);
void fuzz_op_bind(struct fuzz_world *w, const u32 *arg);
void fuzz_op_bind_plain(struct fuzz_world *w, const u32 *arg);
void fuzz_op_bind_bad(struct fuzz_world *w, const u32 *arg);
void fuzz_op_unbind(struct fuzz_world *w, const u32 *arg);
void fuzz_op_attributes(struct fuzz_world *w, const u32 *arg);
void fuzz_op_attributes_bad(struct fuzz_world *w, const u32 *arg);
void fuzz_op_guest_read(struct fuzz_world *w, const u32 *arg);
void fuzz_op_guest_write(struct fuzz_world *w, const u32 *arg);
void fuzz_op_guest_exec(struct fuzz_world *w, const u32 *arg);
void fuzz_op_kvm_write(struct fuzz_world *w, const u32 *arg);
void fuzz_op_pre_fault(struct fuzz_world *w, const u32 *arg);

/* Threads. */
void fuzz_race(struct fuzz_report *report, u32 seed, u32 nr_threads, u32 nr_ops, u32 faults);

#endif /* SELFTEST_KVM_GUEST_MEMFD_FUZZ_H */
