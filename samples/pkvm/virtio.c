// SPDX-License-Identifier: GPL-2.0-only
/*
 * The virtio-mmio transport (version 2, one queue a device) and its rings.
 *
 * Nothing that the guest says is trusted: each address is looked up when it is
 * used, for a page can become private at any time in between; a descriptor is
 * copied before it is checked.  Rings and buffers of a protected guest are on
 * pages that it has shared, because VIRTIO_F_ACCESS_PLATFORM makes its driver
 * use the DMA functions, and these the pool in the device tree.
 */
#include <string.h>
#include <linux/virtio_config.h>
#include <linux/virtio_mmio.h>
#include <linux/virtio_ring.h>

#include "virtio.h"

#define MAGIC		0x74726976	/* "virt" */
#define VENDOR		0x6b767067

struct rings {
	struct vring_desc *desc;
	struct vring_avail *avail;
	struct vring_used *used;
};

static void update_irq(struct vm *vm, struct virtio *dev)
{
	set_irq(vm, dev->spi, dev->interrupt);
}

static void reset(struct vm *vm, struct virtio *dev)
{
	dev->status = 0;
	dev->interrupt = 0;
	dev->driver_features = 0;
	memset(&dev->queue, 0, sizeof(dev->queue));
	update_irq(vm, dev);
}

/* ---- rings ---- */

static bool find_rings(struct vm *vm, const struct virtio *dev, struct rings *r)
{
	__u32 n = dev->queue.size;

	if (!dev->queue.ready || !n || n > QUEUE_SIZE || n & (n - 1) ||
	    dev->queue.desc % 16 || dev->queue.avail % 2 || dev->queue.used % 4)
		return false;
	r->desc = shared_memory(vm, dev->queue.desc, n * sizeof(*r->desc));
	r->avail = shared_memory(vm, dev->queue.avail, sizeof(*r->avail) + n * sizeof(__u16));
	r->used = shared_memory(vm, dev->queue.used,
				sizeof(*r->used) + n * sizeof(struct vring_used_elem));
	return r->desc && r->avail && r->used;
}

/* Collects a chain of descriptors. Returns the number of pieces, 0: it is bad. */
static unsigned int collect(struct vm *vm, const struct virtio *dev, const struct rings *r,
			    __u16 head, struct piece *pieces)
{
	unsigned int n = 0, i = head;
	struct vring_desc d;

	do {
		/* More pieces than descriptors: the chain is a ring. */
		if (i >= dev->queue.size || n == dev->queue.size)
			return 0;
		memcpy(&d, &r->desc[i], sizeof(d));
		pieces[n].at = shared_memory(vm, d.addr, d.len);
		pieces[n].size = d.len;
		pieces[n].writable = d.flags & VRING_DESC_F_WRITE;
		if (!pieces[n++].at || d.flags & VRING_DESC_F_INDIRECT)
			return 0;
		i = d.next;
	} while (d.flags & VRING_DESC_F_NEXT);
	return n;
}

static void finish(const struct virtio *dev, const struct rings *r, __u16 head, __u32 written)
{
	__u16 at = r->used->idx;
	struct vring_used_elem *e = &r->used->ring[at % dev->queue.size];

	e->id = head;
	e->len = written;
	/* The driver may look once the index says so. */
	__atomic_store_n(&r->used->idx, at + 1, __ATOMIC_RELEASE);
}

/* Serves all that is in the queue; what is bad stops the device, as it may. */
static void serve_queue(struct vm *vm, struct virtio *dev)
{
	struct piece pieces[QUEUE_SIZE];
	unsigned int n, budget;
	struct rings r;
	__u16 head;

	if (!(dev->status & VIRTIO_CONFIG_S_DRIVER_OK))
		return;
	if (!find_rings(vm, dev, &r))
		goto broken;
	/* A driver that adds while this runs notifies again. */
	for (budget = dev->queue.size; budget; budget--) {
		if (__atomic_load_n(&r.avail->idx, __ATOMIC_ACQUIRE) == dev->queue.next)
			break;
		head = r.avail->ring[dev->queue.next++ % dev->queue.size];
		n = collect(vm, dev, &r, head, pieces);
		if (!n)
			goto broken;
		finish(dev, &r, head, dev->serve(dev, pieces, n));
		dev->interrupt |= VIRTIO_MMIO_INT_VRING;
	}
	update_irq(vm, dev);
	return;
broken:
	dev->status |= VIRTIO_CONFIG_S_NEEDS_RESET;
	dev->interrupt |= VIRTIO_MMIO_INT_CONFIG;
	update_irq(vm, dev);
}

/* ---- registers ---- */

static __u32 half(__u64 value, __u32 sel)
{
	return sel > 1 ? 0 : value >> (32 * sel);
}

static void set_half(__u64 *value, unsigned int sel, __u32 half)
{
	if (sel == 0)
		*value = (*value & ~0xffffffffull) | half;
	else if (sel == 1)
		*value = (*value & 0xffffffffull) | (__u64)half << 32;
}

static __u32 read_reg(const struct virtio *dev, unsigned int offset)
{
	switch (offset) {
	case VIRTIO_MMIO_MAGIC_VALUE:
		return MAGIC;
	case VIRTIO_MMIO_VERSION:
		return 2;
	case VIRTIO_MMIO_DEVICE_ID:
		return dev->id;
	case VIRTIO_MMIO_VENDOR_ID:
		return VENDOR;
	case VIRTIO_MMIO_DEVICE_FEATURES:
		return half(dev->features, dev->features_sel);
	case VIRTIO_MMIO_QUEUE_NUM_MAX:
		return QUEUE_SIZE;
	case VIRTIO_MMIO_QUEUE_READY:
		return dev->queue.ready;
	case VIRTIO_MMIO_INTERRUPT_STATUS:
		return dev->interrupt;
	case VIRTIO_MMIO_STATUS:
		return dev->status;
	default:
		return 0;
	}
}

/* The driver must want what the device cannot do without. */
static void set_status(struct vm *vm, struct virtio *dev, __u32 value)
{
	__u64 must = BIT_ULL(VIRTIO_F_VERSION_1) | BIT_ULL(VIRTIO_F_ACCESS_PLATFORM);

	if (!value) {
		reset(vm, dev);
		return;
	}
	if ((dev->driver_features & must) != must || dev->driver_features & ~dev->features)
		value &= ~VIRTIO_CONFIG_S_FEATURES_OK;
	dev->status = value;
}

static void write_queue_reg(struct virtio *dev, unsigned int offset, __u32 value)
{
	unsigned int high = offset & 4 ? 1 : 0;

	switch (offset) {
	case VIRTIO_MMIO_QUEUE_NUM:
		dev->queue.size = value;
		break;
	case VIRTIO_MMIO_QUEUE_READY:
		dev->queue.ready = value;
		dev->queue.next = 0;
		break;
	case VIRTIO_MMIO_QUEUE_DESC_LOW:
	case VIRTIO_MMIO_QUEUE_DESC_HIGH:
		set_half(&dev->queue.desc, high, value);
		break;
	case VIRTIO_MMIO_QUEUE_AVAIL_LOW:
	case VIRTIO_MMIO_QUEUE_AVAIL_HIGH:
		set_half(&dev->queue.avail, high, value);
		break;
	case VIRTIO_MMIO_QUEUE_USED_LOW:
	case VIRTIO_MMIO_QUEUE_USED_HIGH:
		set_half(&dev->queue.used, high, value);
		break;
	}
}

static void write_reg(struct vm *vm, struct virtio *dev, unsigned int offset, __u32 value)
{
	switch (offset) {
	case VIRTIO_MMIO_DEVICE_FEATURES_SEL:
		dev->features_sel = value;
		break;
	case VIRTIO_MMIO_DRIVER_FEATURES_SEL:
		dev->driver_sel = value;
		break;
	case VIRTIO_MMIO_DRIVER_FEATURES:
		set_half(&dev->driver_features, dev->driver_sel, value);
		break;
	case VIRTIO_MMIO_QUEUE_NOTIFY:
		serve_queue(vm, dev);
		break;
	case VIRTIO_MMIO_INTERRUPT_ACK:
		dev->interrupt &= ~value;
		update_irq(vm, dev);
		break;
	case VIRTIO_MMIO_STATUS:
		set_status(vm, dev, value);
		break;
	default:
		write_queue_reg(dev, offset, value);
	}
}

/* The configuration is read in pieces of any size, and never written. */
__u32 virtio_access(struct vm *vm, struct virtio *dev, unsigned int offset, __u32 value,
		    unsigned int size, bool write)
{
	if (write) {
		if (offset < VIRTIO_MMIO_CONFIG)
			write_reg(vm, dev, offset, value);
		return 0;
	}
	if (offset < VIRTIO_MMIO_CONFIG)
		return read_reg(dev, offset);
	value = 0;
	offset -= VIRTIO_MMIO_CONFIG;
	if (offset < dev->config_size && size <= dev->config_size - offset)
		memcpy(&value, (const __u8 *)dev->config + offset, size);
	return value;
}
