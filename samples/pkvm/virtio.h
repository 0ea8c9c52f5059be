/* SPDX-License-Identifier: GPL-2.0-only */
/* Between the transport (virtio.c) and the devices (devices.c): one queue each. */
#ifndef VIRTIO_H
#define VIRTIO_H

#include "vmm.h"

#define QUEUE_SIZE	128		/* at most; a power of two */

/* A piece of a request, in the VMM's memory. */
struct piece {
	void *at;
	__u32 size;
	bool writable;			/* by the device */
};

struct virtio {
	__u32 id;
	__u64 features;
	const void *config;
	size_t config_size;
	/* Does a request of @n pieces; returns how many bytes it has written. */
	__u32 (*serve)(struct virtio *dev, const struct piece *pieces, unsigned int n);

	/* What the driver has set. */
	__u32 status, interrupt, features_sel, driver_sel;
	__u64 driver_features;
	struct {
		__u32 size, ready;
		__u64 desc, avail, used;
		__u16 next;		/* the first entry of avail not yet seen */
	} queue;

	unsigned int spi;
};

#endif
