/* SPDX-License-Identifier: GPL-2.0-only */
#if !defined(_KVM_GMEM_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define _KVM_GMEM_TRACE_H

#include <linux/mm.h>
#include <linux/tracepoint.h>

#undef TRACE_SYSTEM
#define TRACE_SYSTEM kvm

#define kvm_gmem_show_content(content)					\
	__print_flags(content, "|",					\
		      { KVM_SET_MEMORY_ATTRIBUTES2_ZERO, "zero" },	\
		      { KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE, "preserve" }, \
		      { KVM_SET_MEMORY_ATTRIBUTES2_DISCARD, "discard" })

TRACE_EVENT(kvm_gmem_create,
	TP_PROTO(u64 ino, u64 size, u64 flags, bool in_place),
	TP_ARGS(ino, size, flags, in_place),

	TP_STRUCT__entry(
		__field(u64, ino)
		__field(u64, size)
		__field(u64, flags)
		__field(bool, in_place)
	),

	TP_fast_assign(
		__entry->ino = ino;
		__entry->size = size;
		__entry->flags = flags;
		__entry->in_place = in_place;
	),

	TP_printk("ino %llu size 0x%llx flags 0x%llx %s",
		  __entry->ino, __entry->size, __entry->flags,
		  __entry->in_place ? "in-place" : "fixed")
);

TRACE_EVENT(kvm_gmem_bind,
	TP_PROTO(u64 ino, struct kvm_memory_slot *slot, bool bind, int result),
	TP_ARGS(ino, slot, bind, result),

	TP_STRUCT__entry(
		__field(u64, ino)
		__field(u64, gfn)
		__field(unsigned long, npages)
		__field(unsigned long, pgoff)
		__field(int, as_id)
		__field(int, slot)
		__field(bool, bind)
		__field(int, result)
	),

	TP_fast_assign(
		__entry->ino = ino;
		__entry->gfn = slot->base_gfn;
		__entry->npages = slot->npages;
		__entry->pgoff = slot->gmem.pgoff;
		__entry->as_id = slot->as_id;
		__entry->slot = slot->id;
		__entry->bind = bind;
		__entry->result = result;
	),

	TP_printk("%s ino %llu slot %d:%d gfn 0x%llx npages 0x%lx pgoff 0x%lx result %d",
		  __entry->bind ? "bind" : "unbind", __entry->ino,
		  __entry->as_id, __entry->slot, __entry->gfn,
		  __entry->npages, __entry->pgoff, __entry->result)
);

TRACE_EVENT(kvm_gmem_convert,
	TP_PROTO(u64 ino, pgoff_t start, pgoff_t end, bool to_private,
		 u64 content, long result),
	TP_ARGS(ino, start, end, to_private, content, result),

	TP_STRUCT__entry(
		__field(u64, ino)
		__field(unsigned long, start)
		__field(unsigned long, end)
		__field(bool, to_private)
		__field(u64, content)
		__field(long, result)
	),

	TP_fast_assign(
		__entry->ino = ino;
		__entry->start = start;
		__entry->end = end;
		__entry->to_private = to_private;
		__entry->content = content;
		__entry->result = result;
	),

	TP_printk("ino %llu index [0x%lx, 0x%lx) to %s content %s result %ld",
		  __entry->ino, __entry->start, __entry->end,
		  __entry->to_private ? "private" : "shared",
		  kvm_gmem_show_content(__entry->content), __entry->result)
);

TRACE_EVENT(kvm_gmem_guest_fault,
	TP_PROTO(u64 ino, pgoff_t index, u64 gfn, bool is_private, int result),
	TP_ARGS(ino, index, gfn, is_private, result),

	TP_STRUCT__entry(
		__field(u64, ino)
		__field(unsigned long, index)
		__field(u64, gfn)
		__field(bool, is_private)
		__field(int, result)
	),

	TP_fast_assign(
		__entry->ino = ino;
		__entry->index = index;
		__entry->gfn = gfn;
		__entry->is_private = is_private;
		__entry->result = result;
	),

	TP_printk("ino %llu index 0x%lx gfn 0x%llx %s result %d",
		  __entry->ino, __entry->index, __entry->gfn,
		  __entry->is_private ? "private" : "shared", __entry->result)
);

TRACE_EVENT(kvm_gmem_user_fault,
	TP_PROTO(u64 ino, pgoff_t index, vm_fault_t result),
	TP_ARGS(ino, index, result),

	TP_STRUCT__entry(
		__field(u64, ino)
		__field(unsigned long, index)
		__field(unsigned int, result)
	),

	TP_fast_assign(
		__entry->ino = ino;
		__entry->index = index;
		__entry->result = (__force unsigned int)result;
	),

	TP_printk("ino %llu index 0x%lx result %s", __entry->ino, __entry->index,
		  __print_flags(__entry->result, "|", VM_FAULT_RESULT_TRACE))
);

TRACE_EVENT(kvm_gmem_punch,
	TP_PROTO(u64 ino, pgoff_t start, pgoff_t end),
	TP_ARGS(ino, start, end),

	TP_STRUCT__entry(
		__field(u64, ino)
		__field(unsigned long, start)
		__field(unsigned long, end)
	),

	TP_fast_assign(
		__entry->ino = ino;
		__entry->start = start;
		__entry->end = end;
	),

	TP_printk("ino %llu index [0x%lx, 0x%lx)",
		  __entry->ino, __entry->start, __entry->end)
);

TRACE_EVENT(kvm_gmem_write,
	TP_PROTO(u64 ino, pgoff_t start, pgoff_t end, long result),
	TP_ARGS(ino, start, end, result),

	TP_STRUCT__entry(
		__field(u64, ino)
		__field(unsigned long, start)
		__field(unsigned long, end)
		__field(long, result)
	),

	TP_fast_assign(
		__entry->ino = ino;
		__entry->start = start;
		__entry->end = end;
		__entry->result = result;
	),

	TP_printk("ino %llu index [0x%lx, 0x%lx) result %ld",
		  __entry->ino, __entry->start, __entry->end, __entry->result)
);

#endif /* _KVM_GMEM_TRACE_H */

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH ../../virt/kvm
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE gmem_trace

/* This part must be outside protection */
#include <trace/define_trace.h>
