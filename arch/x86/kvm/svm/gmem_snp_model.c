// SPDX-License-Identifier: GPL-2.0-only
/*
 * A model of the RMP, for KUnit tests of guest_memfd for SEV-SNP guests.
 *
 * It does what the architecture says, including what it refuses, and takes note of
 * what real hardware would punish ("violations"):
 *
 *   a host write to an assigned page, or through a direct map that is larger than
 *   an RMP entry nearby; a guest mapping above the size of the RMP entry; a page
 *   freed while assigned, or freed or written by the host before the guest's
 *   cache lines are flushed; a page taken away that the guest can still get at;
 *   bytes encrypted with the guest's key that pass for the host's own; an address
 *   without the C-bit in a firmware command; an RMPUPDATE whose refusal the kernel
 *   would retry for ever, or that needs memory when it must not fail.
 *
 * Of SEV and SEV-ES guests, which have no RMP, it knows what is dirty in the caches:
 *
 *   a guest that gets a page of which the host has dirty lines, if the CPU doesn't keep
 *   the lines of the two coherent; a page that leaves the guest with the guest's dirty
 *   lines, which are flushed too late, or when the guest can still make new ones.
 */
#include <kunit/test.h>
#include <linux/jhash.h>
#include <linux/kvm_host.h>
#include <linux/psp-sev.h>
#include <linux/vmalloc.h>

#include <asm/sev.h>

#include "gmem_snp_model.h"
#include "svm.h"

/* The platform's functions have no room for it; one test at a time. */
struct rmp_model *rmp_model;

void rmp_violation(struct rmp_model *m, int i, const char *what)
{
	if (!m->violations++)
		kunit_info(m->test, "page %d: %s", i, what);
}

static bool rmp_region_has(struct rmp_model *m, int r, u64 pfn)
{
	return m->pages[r] && pfn - page_to_pfn(m->pages[r]) < RMP_REGION;
}

int rmp_index(struct rmp_model *m, u64 pfn)
{
	int r;

	for (r = 0; !rmp_region_has(m, m->last, pfn) && r < m->nr_regions; r++) {
		if (rmp_region_has(m, r, pfn))
			m->last = r;
	}

	if (!rmp_region_has(m, m->last, pfn))
		return -1;
	return m->last * RMP_REGION + pfn - page_to_pfn(m->pages[m->last]);
}

/* Nothing in the region is assigned, or waits for a flush, or has been flushed. */
static bool rmp_region_is_idle(struct rmp_model *m, int r)
{
	int i;

	for (i = r * RMP_REGION; i < (r + 1) * RMP_REGION; i++) {
		if (m->entry[i].assigned || m->stale[i] || m->lines[i].clean ||
		    m->lines[i].guest)
			return false;
	}

	return true;
}

/*
 * The model has room for a few regions only.  If it isn't told which ones, a region
 * gets a place when a page of it is given away, for as long as one is.
 */
static int rmp_index_new(struct rmp_model *m, u64 pfn)
{
	int i = rmp_index(m, pfn);
	int r;

	if (i >= 0 || !m->dynamic)
		return i;

	for (r = 0; r < m->nr_regions; r++) {
		if (m->pages[r] && !rmp_region_is_idle(m, r))
			continue;

		m->pages[r] = pfn_to_page(ALIGN_DOWN(pfn, RMP_REGION));
		m->map_split[r] = false;
		memset(&m->cipher[r * RMP_REGION], 0, RMP_REGION * sizeof(*m->cipher));
		return rmp_index(m, pfn);
	}

	KUNIT_FAIL(m->test, "more regions in use than the model has room for");
	return -1;
}

u64 rmp_pfn(struct rmp_model *m, int i)
{
	return page_to_pfn(m->pages[i / RMP_REGION]) + i % RMP_REGION;
}

struct rmp_entry *rmp_first(struct rmp_model *m, int i)
{
	return &m->entry[ALIGN_DOWN(i, RMP_REGION)];
}

/* The start of a page stands for all of it. */
u8 *rmp_bytes(struct rmp_model *m, int i)
{
	return pfn_to_kaddr(rmp_pfn(m, i));
}

u32 rmp_sum(struct rmp_model *m, int i)
{
	return jhash(rmp_bytes(m, i), 64, 0);
}

void rmp_check_sum(struct rmp_model *m, int i)
{
	if (m->entry[i].assigned && m->sum[i] != rmp_sum(m, i))
		rmp_violation(m, i, "host wrote to an assigned page");
}

/* Someone who may changes the bytes: the guest, or the firmware. */
void rmp_scramble(struct rmp_model *m, int i)
{
	u8 *p = rmp_bytes(m, i);
	int k;

	rmp_check_sum(m, i);
	for (k = 0; k < 64; k++)
		p[k] = p[k] * 5 + 0x5a + k;
	m->sum[i] = rmp_sum(m, i);
	m->cipher[i] = true;
}

void rmp_arm(struct rmp_model *m, unsigned int nth, bool sticky)
{
	m->nth = nth;
	m->sticky = sticky;
	m->fired = false;
}

/* Let all calls of one kind fail, from now on. */
void rmp_arm_call(struct rmp_model *m, enum rmp_call call, int code)
{
	m->code[call] = code;
	m->fired_call = call;
	m->fired = true;
	m->sticky = true;
	m->nth = 0;
}

void rmp_disarm(struct rmp_model *m)
{
	m->code[RMP_LOOKUP] = -EIO;
	m->code[RMP_PRIVATE] = -EFAULT;
	m->code[RMP_SHARED] = -EFAULT;
	m->code[RMP_PSMASH] = RMP_NO_PERM;
	m->code[RMP_SPLIT_MAP] = -ENOMEM;
	m->code[RMP_PAGE_FLUSH] = -EIO;
	m->code[RMP_ISSUE_CMD] = -EIO;
	m->code[RMP_DO_CMD] = -EIO;
	rmp_arm(m, 0, false);
}

static int rmp_inject(struct rmp_model *m, enum rmp_call call)
{
	if (m->quiet)
		return 0;

	m->calls[call]++;

	if (m->fired && m->sticky && m->fired_call == call)
		return m->code[call];

	if (!m->nth || --m->nth)
		return 0;

	m->fired = true;
	m->fired_call = call;
	return m->code[call];
}

/* The checks of RMPUPDATE, in their order. */
static int rmp_update_refused(struct rmp_model *m, u64 pfn, const struct rmp_entry *new)
{
	int i = rmp_index(m, pfn);
	struct rmp_entry *first;
	int k;

	if (i < 0 || (new->huge && !IS_ALIGNED(pfn, RMP_REGION)))
		return RMP_BAD_INPUT;

	if (!new->assigned && (new->immutable || new->asid))
		return RMP_BAD_INPUT;

	first = rmp_first(m, i);
	if (m->entry[i].immutable || (first->huge && first->immutable))
		return RMP_NO_PERM;

	/* On the first page or inside: either has to wait for PSMASH. */
	if (!new->huge && first->huge)
		return RMPUPDATE_FAIL_OVERLAP;

	for (k = 0; new->huge && !first->huge && k < RMP_REGION; k++) {
		if (first[k].assigned)
			return RMPUPDATE_FAIL_OVERLAP;
	}

	return 0;
}

/* An entry loses a page that it has, or the guest the page at that address. */
static void rmp_check_unused(struct rmp_model *m, int i, const struct rmp_entry *new)
{
	struct rmp_entry *old = &m->entry[i];

	if (!old->assigned || !m->guest_has || (new->assigned && new->gpa == old->gpa))
		return;

	if (m->guest_has(old->gpa, old->huge ? RMP_REGION : 1))
		rmp_violation(m, i, "taken away while the guest has it mapped");
}

static void rmp_write_entry(struct rmp_model *m, int i, const struct rmp_entry *new)
{
	bool was_assigned = m->entry[i].assigned;

	rmp_check_sum(m, i);
	m->entry[i] = *new;
	if (!new->assigned) {
		m->entry[i] = (struct rmp_entry) {};
	} else if (!was_assigned) {
		m->sum[i] = rmp_sum(m, i);
		m->cipher[i] = false;
	}

	if (was_assigned && !new->assigned)
		m->stale[i] = true;
}

int rmp_update(struct rmp_model *m, u64 pfn, const struct rmp_entry *new)
{
	struct rmp_entry rest = { .assigned = new->assigned };
	int i = rmp_index(m, pfn);
	int r, k;

	m->transitions++;
	r = rmp_update_refused(m, pfn, new);
	if (r) {
		m->refused++;
		return r;
	}

	rmp_check_unused(m, i, new);
	rmp_write_entry(m, i, new);
	for (k = 1; new->huge && k < RMP_REGION; k++)
		rmp_write_entry(m, i + k, &rest);

	return 0;
}

int rmp_psmash(struct rmp_model *m, u64 pfn)
{
	int i = rmp_index(m, pfn);
	struct rmp_entry old;
	int k;

	m->transitions++;
	if (i < 0 || !IS_ALIGNED(pfn, RMP_REGION)) {
		m->refused++;
		return RMP_BAD_INPUT;
	}

	old = m->entry[i];
	if (!old.assigned || !old.huge) {
		m->refused++;
		return PSMASH_NOT_2M;
	}

	for (k = 0; k < RMP_REGION; k++) {
		m->entry[i + k] = old;
		m->entry[i + k].huge = false;
		m->entry[i + k].gpa = old.gpa + k * PAGE_SIZE;
	}

	return 0;
}

/* The platform as KVM sees it, with the model below. */

static bool model_has_snp(void)
{
	return !rmp_model->no_snp;
}

/* The first entry of 2 MiB speaks for all of them. */
static int model_lookup(u64 pfn, struct rmp_owner *owner)
{
	struct rmp_model *m = rmp_model;
	int i = rmp_index(m, pfn);
	int r = rmp_inject(m, RMP_LOOKUP);
	struct rmp_entry *first;

	if (r) {
		if (m->nr_unknown < RMP_NR_UNKNOWN)
			m->unknown[m->nr_unknown++] = pfn;
		return r;
	}
	if (i < 0) {
		*owner = (struct rmp_owner) { .level = PG_LEVEL_4K };
		return m->dynamic ? 0 : -EFAULT;
	}

	first = rmp_first(m, i);
	*owner = (struct rmp_owner) {
		.assigned = m->entry[i].assigned,
		.level = first->huge ? PG_LEVEL_2M : PG_LEVEL_4K,
		.gpa = first->huge ? first->gpa + i % RMP_REGION * PAGE_SIZE : m->entry[i].gpa,
		.asid = first->huge ? first->asid : m->entry[i].asid,
	};
	return 0;
}

/* As the kernel's rmpupdate(): it has one error code, and no patience at all. */
static int model_update(u64 pfn, const struct rmp_entry *new)
{
	int r;

	if (rmp_model->busy) {
		rmp_model->busy--;
		return -EBUSY;
	}

	r = rmp_update(rmp_model, pfn, new);
	if (r == RMPUPDATE_FAIL_OVERLAP)
		rmp_violation(rmp_model, rmp_index(rmp_model, pfn),
			      "RMPUPDATE would be retried for ever");

	return r ? -EFAULT : 0;
}

static int model_make_private(u64 pfn, u64 gpa, enum pg_level level, u32 asid,
			      bool immutable)
{
	struct rmp_entry new = {
		.assigned = true,
		.huge = level == PG_LEVEL_2M,
		.immutable = immutable,
		.asid = asid,
		.gpa = gpa,
	};
	int i = rmp_index_new(rmp_model, pfn);
	int r = rmp_inject(rmp_model, RMP_PRIVATE);

	if (r)
		return r;

	if (new.huge && rmp_model->no_2m)
		return -EFAULT;

	if (!asid)
		rmp_violation(rmp_model, i, "given to the firmware");
	if (new.huge && !IS_ALIGNED(gpa, PMD_SIZE))
		rmp_violation(rmp_model, i, "2 MiB at an odd guest address");
	if (i >= 0 && !new.huge)
		rmp_model->map_split[i / RMP_REGION] = true;

	return model_update(pfn, &new);
}

int rmp_model_make_shared(u64 pfn, enum pg_level level)
{
	struct rmp_entry new = { .huge = level == PG_LEVEL_2M };
	int i = rmp_index(rmp_model, pfn);
	int r = rmp_inject(rmp_model, RMP_SHARED);

	if (r)
		return r;

	if (i >= 0 && !new.huge && !rmp_model->map_split[i / RMP_REGION]) {
		if (!rmp_model->may_split)
			rmp_violation(rmp_model, i,
				      "RMPUPDATE needs memory beyond the point of no return");
		if (rmp_inject(rmp_model, RMP_SPLIT_MAP))
			return -EFAULT;
		rmp_model->map_split[i / RMP_REGION] = true;
	}

	return model_update(pfn, &new);
}

static int model_psmash(u64 pfn)
{
	return rmp_inject(rmp_model, RMP_PSMASH) ?: rmp_psmash(rmp_model, pfn);
}

static int model_split_direct_map(u64 pfn)
{
	int i = rmp_index(rmp_model, pfn);
	int r = rmp_inject(rmp_model, RMP_SPLIT_MAP);

	if (!r && i >= 0)
		rmp_model->map_split[i / RMP_REGION] = true;
	return r;
}

/* The guest has lost the page, and with these lines the last of what it wrote. */
static void rmp_flush(struct rmp_model *m, int i)
{
	if (m->stale[i] && m->sum[i] != rmp_sum(m, i))
		rmp_violation(m, i, "host write before the guest's lines are flushed");
	m->stale[i] = false;
}

/*
 * The guest's lines of a page are written back.  They only are clean then if the guest
 * can't make new ones, and are of use only if the page is still the file's.
 */
static void sev_flush_guest(struct rmp_model *m, int i)
{
	struct folio *folio;
	gfn_t gfn;

	if (!m->lines[i].guest)
		return;

	folio = pfn_folio(rmp_pfn(m, i));
	if (!folio->mapping)
		rmp_violation(m, i, "freed before the guest's lines are flushed");

	gfn = m->base_gfn + folio->index + rmp_pfn(m, i) - folio_pfn(folio);
	m->lines[i].guest = m->guest_has && m->guest_has(gfn_to_gpa(gfn), 1);
}

static void sev_flush(struct rmp_model *m, u64 pfn)
{
	int i = rmp_index_new(m, pfn);

	if (i < 0)
		return;

	m->lines[i].clean = true;
	m->lines[i].sum = rmp_sum(m, i);
	if (!m->incoherent)
		sev_flush_guest(m, i);
}

void rmp_model_clflush(u64 pfn, unsigned long nr_pages)
{
	for (; nr_pages--; pfn++) {
		int i = rmp_index(rmp_model, pfn);

		if (i < 0 ? !rmp_model->dynamic : rmp_model->entry[i].assigned) {
			rmp_violation(rmp_model, i, "flushed while the guest can still write");
			continue;
		}
		if (rmp_model->sev)
			sev_flush(rmp_model, pfn);
		else if (i >= 0)
			rmp_flush(rmp_model, i);
		rmp_model->nr_flushed++;
	}
}

static bool model_is_coherent(void)
{
	return !rmp_model->incoherent;
}

/* Of the guest's lines, which no clflush of the host's reaches. */
static int model_page_flush(u64 pfn, u32 asid)
{
	int r = rmp_inject(rmp_model, RMP_PAGE_FLUSH);
	int i = rmp_index(rmp_model, pfn);

	if (r)
		return r;

	if (asid != RMP_ASID)
		rmp_violation(rmp_model, i, "another guest's lines flushed");
	else if (i >= 0)
		sev_flush_guest(rmp_model, i);
	rmp_model->nr_page_flushed++;
	return 0;
}

static void model_writeback(struct kvm *kvm)
{
	int i;

	for (i = 0; rmp_model->sev && i < rmp_model->nr_regions * RMP_REGION; i++)
		sev_flush_guest(rmp_model, i);
	rmp_model->nr_writebacks++;
}

static u64 model_fw_address(u64 paddr)
{
	return paddr | RMP_C_BIT;
}

/* What the firmware does with the address of a page that it is told. */
static int rmp_fw_index(struct rmp_model *m, u64 addr)
{
	if (!(addr & RMP_C_BIT))
		rmp_violation(m, -1, "the firmware is to use an address without the C-bit");

	return rmp_index(m, PHYS_PFN(addr & ~RMP_C_BIT));
}

static int rmp_launch_update(struct rmp_model *m, struct sev_data_snp_launch_update *data,
			     int *error)
{
	int i = rmp_fw_index(m, data->address);
	struct rmp_entry *e;

	m->transitions++;
	if (i >= 0) {
		e = &m->entry[i];
		if (e->assigned && e->immutable && !rmp_first(m, i)->huge &&
		    e->asid == RMP_ASID && !data->page_size) {
			rmp_check_sum(m, i);
			if (data->page_type == KVM_SEV_SNP_PAGE_TYPE_CPUID &&
			    rmp_bytes(m, i)[0] == CPUID_BAD) {
				rmp_bytes(m, i)[0] = CPUID_GOOD;
				m->sum[i] = rmp_sum(m, i);
				*error = SEV_RET_INVALID_PARAM;
				return -EIO;
			}
			m->measured = rmp_sum(m, i);
			m->page_type = data->page_type;
			if (data->gctx_paddr != m->gctx)
				rmp_violation(m, i, "another guest's context");
			rmp_scramble(m, i);
			e->immutable = false;
			e->validated = true;
			*error = 0;
			return 0;
		}
	}

	m->refused++;
	*error = SEV_RET_INVALID_PAGE_STATE;
	return -EIO;
}

static int model_issue_cmd(int fd, int id, void *data, int *error)
{
	int r = rmp_inject(rmp_model, RMP_ISSUE_CMD);

	if (r || id != SEV_CMD_SNP_LAUNCH_UPDATE) {
		*error = SEV_RET_INVALID_GUEST;
		return r ?: -EIO;
	}

	rmp_model->fd = fd;
	return rmp_launch_update(rmp_model, data, error);
}

static int model_do_cmd(int id, void *data, int *error)
{
	struct sev_data_snp_page_reclaim *reclaim = data;
	int r = rmp_inject(rmp_model, RMP_DO_CMD);
	int i;

	if (r || id != SEV_CMD_SNP_PAGE_RECLAIM) {
		*error = SEV_RET_INVALID_PAGE_STATE;
		return r ?: -EIO;
	}

	rmp_model->transitions++;
	i = rmp_fw_index(rmp_model, reclaim->paddr);
	if (i < 0 || !rmp_model->entry[i].assigned) {
		rmp_model->refused++;
		*error = SEV_RET_INVALID_PAGE_STATE;
		return -EIO;
	}

	rmp_model->entry[i].immutable = false;
	return 0;
}

const struct snp_platform_ops rmp_model_platform = {
	.has_snp		= model_has_snp,
	.lookup			= model_lookup,
	.make_private		= model_make_private,
	.make_shared		= rmp_model_make_shared,
	.psmash			= model_psmash,
	.split_direct_map	= model_split_direct_map,
	.clflush		= rmp_model_clflush,
	.is_coherent		= model_is_coherent,
	.page_flush		= model_page_flush,
	.writeback		= model_writeback,
	.fw_address		= model_fw_address,
	.issue_cmd		= model_issue_cmd,
	.do_cmd			= model_do_cmd,
};

static void rmp_model_vfree(void *p)
{
	vfree(p);
}

static void *rmp_model_zalloc(struct kunit *test, size_t size)
{
	void *p = vzalloc(size);

	KUNIT_ASSERT_NOT_NULL(test, p);
	KUNIT_ASSERT_EQ(test, kunit_add_action_or_reset(test, rmp_model_vfree, p), 0);
	return p;
}

/* A model of @nr_regions times 2 MiB of memory, none of which is assigned. */
struct rmp_model *rmp_model_new(struct kunit *test, int nr_regions, bool dynamic)
{
	struct rmp_model *m = rmp_model_zalloc(test, sizeof(*m));
	size_t nr_pages = nr_regions * RMP_REGION;

	m->test = test;
	m->nr_regions = nr_regions;
	m->dynamic = dynamic;
	m->pages = rmp_model_zalloc(test, nr_regions * sizeof(*m->pages));
	m->map_split = rmp_model_zalloc(test, nr_regions * sizeof(*m->map_split));
	m->entry = rmp_model_zalloc(test, nr_pages * sizeof(*m->entry));
	m->sum = rmp_model_zalloc(test, nr_pages * sizeof(*m->sum));
	m->seen = rmp_model_zalloc(test, nr_pages * sizeof(*m->seen));
	m->stale = rmp_model_zalloc(test, nr_pages * sizeof(*m->stale));
	m->cipher = rmp_model_zalloc(test, nr_pages * sizeof(*m->cipher));
	m->lines = rmp_model_zalloc(test, nr_pages * sizeof(*m->lines));
	rmp_disarm(m);
	return m;
}

/* Actions of the host and the guest, with the hardware's view of them. */

void rmp_host_write(struct rmp_model *m, int i, u8 value)
{
	struct rmp_entry *first = rmp_first(m, i);
	int k;

	if (m->entry[i].assigned)
		rmp_violation(m, i, "host write to an assigned page");
	for (k = 0; !m->map_split[i / RMP_REGION] && !first->huge && k < RMP_REGION; k++) {
		if (first[k].assigned)
			rmp_violation(m, i, "host write through a direct map that is too large");
	}
	if (m->stale[i])
		rmp_violation(m, i, "host write before the guest's lines are flushed");

	if (!m->entry[i].assigned)
		memset(rmp_bytes(m, i), value, 64);
}

/*
 * The host uses the bytes.  Those that a guest has left behind are noise, which at best
 * tells of the guest; the host's own have been written since.
 */
void rmp_host_read(struct rmp_model *m, int i)
{
	if (m->entry[i].assigned)
		rmp_violation(m, i, "host use of an assigned page");
	else if (m->cipher[i] && m->sum[i] == rmp_sum(m, i))
		rmp_violation(m, i, "host use of what the guest has encrypted");
	else
		m->cipher[i] = false;
}

void rmp_host_free(struct rmp_model *m, int i, int nr)
{
	for (; nr--; i++) {
		if (m->entry[i].assigned)
			rmp_violation(m, i, "freed while assigned");
		if (m->stale[i])
			rmp_violation(m, i, "freed before the guest's lines are flushed");
	}
}

/* True if the guest can use the page at @gfn; a loop of faults if not. */
bool rmp_guest_access(struct rmp_model *m, int i, gfn_t gfn, int level)
{
	struct rmp_entry *first = rmp_first(m, i);
	struct rmp_entry *e = first->huge ? first : &m->entry[i];
	u64 gpa = gfn_to_gpa(gfn);

	if (level > (first->huge ? PG_LEVEL_2M : PG_LEVEL_4K)) {
		rmp_violation(m, i, "guest mapping is larger than the RMP entry");
		return false;
	}

	if (!m->entry[i].assigned || e->asid != RMP_ASID || e->immutable ||
	    e->gpa != (first->huge ? ALIGN_DOWN(gpa, PMD_SIZE) : gpa)) {
		rmp_violation(m, i, "the page isn't the guest's");
		return false;
	}

	/* A smaller mapping: an RMP fault, and PSMASH by its handler. */
	if (first->huge && level == PG_LEVEL_4K)
		return false;

	e->validated = true;
	rmp_scramble(m, i);
	return true;
}

/* A guest without an RMP writes to a page that it has mapped. */
void sev_guest_write(struct rmp_model *m, u64 pfn)
{
	int i = rmp_index_new(m, pfn);
	struct sev_lines *lines;

	if (i < 0)
		return;

	/* Be they zeros or what user space wrote: no one can tell when they are evicted. */
	lines = &m->lines[i];
	if (m->incoherent && (!lines->clean || lines->sum != rmp_sum(m, i)))
		rmp_violation(m, i, "the host's lines will be written over the guest's");

	rmp_scramble(m, i);
	lines->sum = rmp_sum(m, i);
	lines->guest = true;
}

bool sev_guest_is_dirty(struct rmp_model *m, u64 pfn)
{
	int i = rmp_index(m, pfn);

	return i >= 0 && m->lines[i].guest;
}

/* The page has left the file, and gets dirty lines of whoever has it next. */
void sev_host_free(struct rmp_model *m, u64 pfn)
{
	int i = rmp_index(m, pfn);

	if (i < 0)
		return;

	if (m->lines[i].guest)
		rmp_violation(m, i, "freed before the guest's lines are flushed");
	m->lines[i] = (struct sev_lines) {};
}
