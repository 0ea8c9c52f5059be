/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef SHA256_H
#define SHA256_H

#include <stddef.h>
#include <linux/types.h>

#define SHA256_SIZE	32
#define SHA256_BLOCK	64

void sha256(const void *data, size_t length, __u8 digest[SHA256_SIZE]);

#endif
