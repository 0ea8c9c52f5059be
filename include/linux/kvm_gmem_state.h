/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef __LINUX_KVM_GMEM_STATE_H
#define __LINUX_KVM_GMEM_STATE_H

#include <linux/compiler_attributes.h>
#include <linux/sizes.h>
#include <linux/types.h>
#include <linux/xarray.h>

/*
 * A map from page index to one attribute bit.  gmem_state.c tells about the data
 * structure, and how to use it.
 *
 * The caller serialises prepare, commit and abort, and keeps other writers out
 * from prepare to commit or abort.  Readers need no lock.  A range is
 * [start, end), in pages, and no larger than ULONG_MAX >> PAGE_SHIFT.
 */

/* Pages to a piece, the least that an entry describes; 1 GiB with pages of 4 KiB. */
#define GMEM_STATE_PIECE_PAGES	SZ_256K

/* Pages to a block, the part of a mixed piece that may need memory of its own. */
#define GMEM_STATE_BLOCK_PAGES	SZ_4K

struct gmem_state_bitmap;
struct gmem_state_change;

struct gmem_state {
	/* Piece number to value entry, of any order, or bitmap; absent means @dflt. */
	struct xarray pieces;

	/* The value of a page that no entry describes; const once there are readers. */
	bool dflt;

	/* The change between prepare and commit; protected as writers are. */
	struct gmem_state_change *pending;

#ifdef CONFIG_KVM_GMEM_KUNIT_TEST
	/* Protected as writers are.  Fail allocation number fail_at, from 1. */
	struct {
		unsigned int fail_at;
		unsigned int nr_allocs;
		unsigned int nr_bitmaps;
		unsigned int nr_blocks;
	} kunit;
#endif
};

/* The part of a change that covers a piece only in part. */
struct gmem_state_edge {
	unsigned long piece;
	unsigned int first;
	unsigned int nr;

	/* Replaces a uniform piece at commit; NULL if none is needed. */
	struct gmem_state_bitmap *bitmap;

	/* For the blocks of a bitmap that the edge begins and ends in. */
	unsigned long *spare[2];
};

/* On the caller's stack; only gmem_state_*() look inside. */
struct gmem_state_change {
	unsigned long start;
	unsigned long end;
	bool value;

	/* The pieces that are covered whole: [first_piece, end_piece). */
	unsigned long first_piece;
	unsigned long end_piece;

	/* Slots are reserved in [first_piece, reserved), one a group. */
	unsigned long reserved;

	struct gmem_state_edge edges[2];
};

void gmem_state_init(struct gmem_state *s, bool dflt);
void gmem_state_destroy(struct gmem_state *s);

/* What a map without entries, new or destroyed, has for all pages; no readers yet. */
static inline void gmem_state_set_default(struct gmem_state *s, bool dflt)
{
	s->dflt = dflt;
}

bool gmem_state_test(struct gmem_state *s, unsigned long index);
bool gmem_state_range_is(struct gmem_state *s, unsigned long start,
			 unsigned long end, bool value);
bool gmem_state_is_uniform(struct gmem_state *s, unsigned long start,
			   unsigned long end);
unsigned long gmem_state_next_change(struct gmem_state *s, unsigned long start,
				     unsigned long end);

int __must_check gmem_state_prepare(struct gmem_state *s,
				    struct gmem_state_change *c,
				    unsigned long start, unsigned long end,
				    bool value);
void gmem_state_commit(struct gmem_state *s, struct gmem_state_change *c);
void gmem_state_abort(struct gmem_state *s, struct gmem_state_change *c);

#endif /* __LINUX_KVM_GMEM_STATE_H */
