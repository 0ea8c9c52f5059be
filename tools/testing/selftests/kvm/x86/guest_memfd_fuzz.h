/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A fuzzer for guest_memfd: lists of random operations, and a model that knows
 * what each of them does.
 *
 *   guest_memfd_fuzz_test.c	options, rounds, and who is to blame
 *   guest_memfd_fuzz_list.c	lists: random, printed, parsed, made minimal
 *   guest_memfd_fuzz_model.c	state and bytes of each page; guests, users, holders
 *   guest_memfd_fuzz_ops.c	operations on the model, the table of all
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

/* Every word of a page is the same; zero is what nobody has written yet. */
struct fuzz_page {
	u64 val;
	bool private;
	bool poisoned;
};

struct fuzz_vm {
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;

	/* Where the guest's server starts anew after an exit that it did not ask for. */
	struct kvm_regs regs;

	/* The VMs of this place are numbered; 0: there is none. */
	u32 number;
	bool has_private;
	bool nested;

	struct fuzz_slot {
		struct fuzz_file *file;
		u64 gfn, pgoff, nr;
		bool used;
		bool gmem_only;
		/* The guest uses the file, if what it wants is private. */
		bool two_backings;
	} slots[FUZZ_NR_SLOTS];

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

bool fuzz_file_alive(const struct fuzz_file *f);
bool fuzz_file_is_huge(const struct fuzz_file *f);
void fuzz_file_put(struct fuzz_world *w, struct fuzz_file *f);
void fuzz_file_drop(struct fuzz_world *w, struct fuzz_file *f, u64 first, u64 nr);
struct fuzz_hold *fuzz_find_hold(struct fuzz_world *w, struct fuzz_file *f,
				 u64 first, u64 nr);
struct fuzz_hold *fuzz_hold_near(struct fuzz_world *w, struct fuzz_file *f,
				 u64 first, u64 nr);
bool fuzz_poison_near(struct fuzz_file *f, u64 page);
void fuzz_check_code(struct fuzz_world *w, const struct fuzz_file *f, u64 page, int code,
		     const char *who);
void fuzz_user_read(struct fuzz_world *w, struct fuzz_file *f, u64 page);
void fuzz_user_write(struct fuzz_world *w, struct fuzz_file *f, u64 page);
bool fuzz_user_may(const struct fuzz_file *f, u64 page);

enum fuzz_guest_op {
	FUZZ_GUEST_READ,
	FUZZ_GUEST_WRITE,
	FUZZ_GUEST_EXEC,
};

/* Outcomes of a guest's access beside an error number. */
#define FUZZ_MMIO		-1

int fuzz_guest_outcome(struct fuzz_vm *vm, u64 gfn, u64 **val);
void fuzz_guest_start(struct fuzz_world *w, struct fuzz_vm *vm);
void fuzz_guest_code(u64 svm);
int fuzz_guest_run(struct fuzz_vm *vm, u64 gfn, enum fuzz_guest_op op, u64 val, u64 *seen);
void fuzz_guest_access(struct fuzz_world *w, struct fuzz_vm *vm, u64 gfn,
		       enum fuzz_guest_op op);

bool fuzz_take_hold(struct fuzz_hold *h, u8 *addr, u32 how);
void fuzz_drop_hold(struct fuzz_hold *h);
u64 fuzz_frame(void *addr);

/* Calls of which an allocation may be made to fail. */
void fuzz_call_begin(struct fuzz_world *w);
bool fuzz_call_end(struct fuzz_world *w);

/* Operations that are not in the file of the table. */
void fuzz_vm_create(struct fuzz_world *w, struct fuzz_vm *vm, bool private, bool nested);
void fuzz_op_vm_new(struct fuzz_world *w, const u32 *arg);
void fuzz_op_vm_close(struct fuzz_world *w, const u32 *arg);
void fuzz_op_bind(struct fuzz_world *w, const u32 *arg);
void fuzz_op_bind_plain(struct fuzz_world *w, const u32 *arg);
void fuzz_op_bind_bad(struct fuzz_world *w, const u32 *arg);
void fuzz_op_unbind(struct fuzz_world *w, const u32 *arg);
void fuzz_op_attributes(struct fuzz_world *w, const u32 *arg);
void fuzz_op_attributes_bad(struct fuzz_world *w, const u32 *arg);
void fuzz_op_guest_read(struct fuzz_world *w, const u32 *arg);
void fuzz_op_guest_write(struct fuzz_world *w, const u32 *arg);
void fuzz_op_guest_exec(struct fuzz_world *w, const u32 *arg);
void fuzz_op_pre_fault(struct fuzz_world *w, const u32 *arg);

/* Threads. */
void fuzz_race(struct fuzz_report *report, u32 seed, u32 nr_threads, u32 nr_ops, u32 faults);

#endif /* SELFTEST_KVM_GUEST_MEMFD_FUZZ_H */
