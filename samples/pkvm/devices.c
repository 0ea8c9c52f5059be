// SPDX-License-Identifier: GPL-2.0-only
/* virtio-blk, read-only, fed from a file; virtio-rng, fed from getrandom(). */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>

#include "virtio.h"

#define SECTOR		512ul
/*
 * The disk is padded to whole pages of any guest: Linux without buffer heads cannot
 * read a page that is not on the disk to its end.
 */
#define DISK_ALIGN	(64 * KIB)

#define FEATURES	(BIT_ULL(VIRTIO_F_VERSION_1) | BIT_ULL(VIRTIO_F_ACCESS_PLATFORM))

struct disk {
	struct virtio dev;
	struct virtio_blk_config config;
	int fd;
};

static void add(struct vm *vm, struct virtio *dev)
{
	if (vm->nr_devices == MAX_DEVICES)
		errx(2, "too many devices");
	dev->spi = VIRTIO_SPI + vm->nr_devices;
	vm->devices[vm->nr_devices++] = dev;
}

/* Past the end of the file there are zeros. */
static bool read_disk(const struct disk *disk, void *to, size_t size, off_t offset)
{
	ssize_t n;

	while (size) {
		n = pread(disk->fd, to, size, offset);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return false;
		if (!n) {
			memset(to, 0, size);
			return true;
		}
		to = (char *)to + n;
		offset += n;
		size -= n;
	}
	return true;
}

/* A request: a header, data, one byte for the verdict. */
static __u32 serve_disk(struct virtio *dev, const struct piece *pieces, unsigned int n)
{
	const struct disk *disk = (const struct disk *)dev;
	const struct piece *last = &pieces[n - 1];
	__u8 verdict = VIRTIO_BLK_S_IOERR;
	struct virtio_blk_outhdr header;
	__u64 sectors;
	__u32 done = 0;
	unsigned int i;

	if (n < 2 || pieces[0].size < sizeof(header) || !last->size || !last->writable)
		return 0;
	memcpy(&header, pieces[0].at, sizeof(header));
	if (header.type != VIRTIO_BLK_T_IN) {
		verdict = VIRTIO_BLK_S_UNSUPP;
		goto out;
	}
	for (i = 1; i < n - 1; i++) {
		sectors = pieces[i].size / SECTOR;
		if (!pieces[i].writable || pieces[i].size % SECTOR ||
		    header.sector > disk->config.capacity ||
		    sectors > disk->config.capacity - header.sector ||
		    !read_disk(disk, pieces[i].at, pieces[i].size, header.sector * SECTOR))
			goto out;
		header.sector += sectors;
		done += pieces[i].size;
	}
	verdict = VIRTIO_BLK_S_OK;
out:
	*(__u8 *)last->at = verdict;
	return done + 1;
}

void add_disk(struct vm *vm, const char *path)
{
	struct disk *disk = calloc(1, sizeof(*disk));
	struct stat st;

	if (!disk)
		err(1, "a disk");
	disk->fd = open(path, O_RDONLY | O_CLOEXEC);
	if (disk->fd < 0 || fstat(disk->fd, &st))
		err(2, "%s", path);
	disk->config.capacity = (st.st_size + DISK_ALIGN - 1) / DISK_ALIGN *
				(DISK_ALIGN / SECTOR);
	disk->dev.id = VIRTIO_ID_BLOCK;
	disk->dev.features = FEATURES | BIT_ULL(VIRTIO_BLK_F_RO);
	disk->dev.config = &disk->config;
	disk->dev.config_size = sizeof(disk->config);
	disk->dev.serve = serve_disk;
	add(vm, &disk->dev);
}

static __u32 serve_rng(struct virtio *dev, const struct piece *pieces, unsigned int n)
{
	__u32 done = 0;
	ssize_t got;

	(void)dev;
	for (; n-- && pieces->writable; pieces++) {
		got = getrandom(pieces->at, pieces->size, 0);
		if (got > 0)
			done += got;
		if (got != (ssize_t)pieces->size)
			break;
	}
	return done;
}

void add_rng(struct vm *vm)
{
	struct virtio *dev = calloc(1, sizeof(*dev));

	if (!dev)
		err(1, "an rng");
	dev->id = VIRTIO_ID_RNG;
	dev->features = FEATURES;
	dev->serve = serve_rng;
	add(vm, dev);
}
