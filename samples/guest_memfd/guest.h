/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the VMM and the guest of the guest_memfd sample agree on: where things
 * are in guest memory, and how the two talk.
 */
#ifndef GUEST_H
#define GUEST_H

#include <linux/types.h>

#define GUEST_STUB	0x1000	/* shared: the hypercall instruction */
#define GUEST_MAILBOX	0x2000	/* shared: struct guest_mailbox */
#define GUEST_RESULT	0x3000	/* private until the guest shares it */
#define GUEST_CODE	0x4000	/* private: the guest's code and data */
#define GUEST_STACK	0x10000	/* private: grows down from here */
#define GUEST_WINDOW	0x100000 /* the user's file, from here on */

#define PORT_DONE	0xf4	/* the exit code of the guest */
#define PORT_DIGEST	0xf5	/* the digest, byte by byte, if nothing is shared */

/* Written by the VMM before the guest starts. */
struct guest_mailbox {
	__u32 vmmcall;	/* this processor says vmmcall, not vmcall */
	__u32 length;	/* bytes in the window */
	__u32 copy_to;	/* two backings: private memory for a copy */
	__u32 plain;	/* there is no private memory, and nothing to convert */
};

/* The flat image of the guest, within the VMM. */
extern const __u8 guest_image[], guest_image_end[];

#endif
