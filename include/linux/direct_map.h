/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef _LINUX_DIRECT_MAP_H
#define _LINUX_DIRECT_MAP_H

#include <linux/highmem.h>
#include <linux/jump_label.h>
#include <linux/pagemap.h>

/* Holes in the kernel's direct map; see mm/direct_map.c for the contracts. */

/* Addresses of what was taken out and is still in TLBs; zeros if there is none. */
struct direct_map_flush {
	unsigned long start;
	unsigned long end;
};

#ifdef CONFIG_DIRECT_MAP_HOLES

DECLARE_STATIC_KEY_FALSE(direct_map_holes);

bool direct_map_can_have_holes(void);
void direct_map_holes_get(void);
void direct_map_holes_put(void);

int direct_map_take_out(struct page *page, unsigned long nr, struct direct_map_flush *flush);
void direct_map_flush(const struct direct_map_flush *flush);
int direct_map_put_back(struct page *page, unsigned long nr);
int direct_map_split(struct page *page);
bool direct_map_has(struct page *page);

void *direct_map_kmap_local(struct page *page);
void direct_map_kunmap_local(void *vaddr);
void direct_map_clear_alias(void *va, struct direct_map_flush *flush);

/* May there be pages that are out of the direct map? */
static inline bool direct_map_has_holes(void)
{
	return static_branch_unlikely(&direct_map_holes);
}

/* Are @mapping's pages, all of them and always, out of the direct map? */
static inline bool mapping_no_direct_map(const struct address_space *mapping)
{
	return test_bit(AS_NO_DIRECT_MAP, &mapping->flags);
}

/* Before there is a folio in @mapping; for its life. */
static inline void mapping_set_no_direct_map(struct address_space *mapping)
{
	set_bit(AS_NO_DIRECT_MAP, &mapping->flags);
}

#else

static inline bool direct_map_can_have_holes(void)
{
	return false;
}

static inline void direct_map_holes_get(void) {}
static inline void direct_map_holes_put(void) {}

static inline int direct_map_take_out(struct page *page, unsigned long nr,
				      struct direct_map_flush *flush)
{
	return -EOPNOTSUPP;
}

static inline void direct_map_flush(const struct direct_map_flush *flush) {}

static inline int direct_map_put_back(struct page *page, unsigned long nr)
{
	return 0;
}

static inline int direct_map_split(struct page *page)
{
	return 0;
}

static inline bool direct_map_has(struct page *page)
{
	return true;
}

static inline void *direct_map_kmap_local(struct page *page)
{
	return kmap_local_page(page);
}

static inline void direct_map_kunmap_local(void *vaddr)
{
	kunmap_local(vaddr);
}

static inline void direct_map_clear_alias(void *va, struct direct_map_flush *flush) {}

static inline bool direct_map_has_holes(void)
{
	return false;
}

static inline bool mapping_no_direct_map(const struct address_space *mapping)
{
	return false;
}

static inline void mapping_set_no_direct_map(struct address_space *mapping) {}

#endif /* CONFIG_DIRECT_MAP_HOLES */

#endif /* _LINUX_DIRECT_MAP_H */
