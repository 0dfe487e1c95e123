/*
 * Which pages of the stopped process matter, and reading them.
 *
 * A page matters if its content is neither in a file that the other end has nor zero. The
 * kernel knows most of it (PAGEMAP_SCAN, or pagemap); the rest shows when the page is read.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "ckpt.h"
#include "io.h"
#include "kfeat.h"
#include "lazy_ranges.h"
#include "log.h"
#include "pagemap.h"

/* --- what the kernel knows */

static bool
vma_has(const struct vma *v, const char *two)
{
	return v->flags != NULL && strstr(v->flags, two) != NULL;
}

/* Guard pages of a mapping (MADV_GUARD_INSTALL) have no content, but must be there again. */
static int
add_guards(struct task *t, int pagemap, const struct vma *v)
{
	struct page_runs runs = {0};
	int err = pagemap_read(pagemap, v->start, v->end, pagemap_is_guard, &runs);

	for (size_t i = 0; err == 0 && i < runs.n; i++) {
		struct page_range *g = ARRAY_ADD(t->guards, t->nguards);

		if (g == NULL)
			err = -ENOMEM;
		else
			*g = (struct page_range){runs.run[i].addr,
			    runs.run[i].addr + runs.run[i].npages * PAGE_BYTES};
	}
	page_runs_fini(&runs);
	return err;
}

/* Shared memory has its pages in the object, mapped here or not: all are read, zeroes dropped. */
static int
add_shm(struct ckpt *c, const struct vma *v, struct page_runs *runs)
{
	uint64_t len = v->end - v->start;
	struct shm_part *part;

	for (size_t i = 0; i < c->nshm_parts; i++)
		if (c->shm_parts[i].ref == v->ref && c->shm_parts[i].start <= v->offset &&
		    c->shm_parts[i].end >= v->offset + len)
			return 0; /* seen through another mapping */
	part = ARRAY_ADD(c->shm_parts, c->nshm_parts);
	if (part == NULL)
		return -ENOMEM;
	*part = (struct shm_part){v->ref, v->offset, v->offset + len};
	return page_runs_add(runs, v->start, len / PAGE_BYTES);
}

/* Own pages of [start, end). scan: the kernel can say so itself; false from then on where it cannot. */
static int
add_own(int pagemap, taddr start, taddr end, bool *scan, struct page_runs *runs)
{
	int err = *scan ? pagemap_scan(pagemap, start, end, runs) : -ENOTTY;

	if (err != -ENOTTY && err != -EINVAL)
		return err;
	*scan = false;
	return pagemap_read(pagemap, start, end, pagemap_is_own, runs);
}

/*
 * The same where it is known of some ranges what has been written since the last round: the kernel is asked once for both. What it cannot tell of one, as
 * other mappings are there by now, counts as written.
 */
static int
add_tracked(const struct ckpt *c, struct member *who, int pagemap, taddr start, taddr end, bool *scan)
{
	int err = 0;

	for (taddr to; start < end && err == 0; start = to) {
		struct page_runs own = {0}, clean = {0};

		to = end;
		err = *scan && rounds_knows(c, who, start, &to) ? pagemap_tracked(pagemap, start, to, &own, &clean) : -EPERM;
		if (err == 0)
			err = page_runs_join(&who->runs, &own);
		if (err == 0)
			err = page_runs_join(&who->unwritten, &clean);
		if (err == -EPERM)
			err = add_own(pagemap, start, to, scan, &who->runs);
		page_runs_fini(&own);
		page_runs_fini(&clean);
	}
	return err;
}

/* The same but for what is fetched later. */
static int
add_needed(const struct ckpt *c, struct member *who, int pagemap, const struct vma *v, bool *scan)
{
	const struct task *t = who->task;
	taddr at = v->start;
	int err = 0;

	for (size_t i = 0; i <= t->nlazy && at < v->end && err == 0; i++) {
		taddr end = i < t->nlazy ? min_u64(t->lazy[i].start, v->end) : v->end;

		if (i < t->nlazy && t->lazy[i].end <= at)
			continue;
		if (end > at)
			err = add_tracked(c, who, pagemap, at, end, scan);
		at = i < t->nlazy ? max_u64(at, t->lazy[i].end) : v->end;
	}
	return err;
}

static int
find_lazy(struct member *who)
{
	struct task *t = who->task;
	int err = lazy_ranges(t, &t->lazy, &t->nlazy);

	return err < 0 ? fail(-err, "out of memory") : 0;
}

/* Pages that fork(2) gives to nobody, or not as they are at that instant. */
static bool
is_still(const struct vma *v)
{
	return v->kind == VMA_SHM || (!v->shared && (v->huge != 0 || vma_has(v, "dc") || vma_has(v, "wf")));
}

int
contents_still(struct ckpt *c, const struct member *who, struct page_runs *runs)
{
	int pagemap = openat(who->target.proc, "pagemap", O_RDONLY | O_CLOEXEC), err = pagemap < 0 ? -errno : 0;
	bool scan = false; /* it leaves out guard pages in each case */

	for (size_t i = 0; i < who->task->nvmas && err == 0; i++) {
		const struct vma *v = &who->task->vmas[i];

		if (is_still(v))
			err = v->kind == VMA_SHM ? add_shm(c, v, runs) : vma_has(v, "dp") ? 0 : add_own(pagemap, v->start, v->end, &scan, runs);
	}
	close_fd(&pagemap);
	return err;
}

/* Those of them that are in this mapping. */
static int
add_still(struct member *who, const struct vma *v)
{
	uint64_t n;
	int err = 0;

	for (taddr at = v->start; at < v->end && err == 0 && snapshot_still(who) != NULL; at += n * PAGE_BYTES) {
		n = (v->end - at) / PAGE_BYTES;
		if (snapshot_page(who, at, &n) != NULL)
			err = page_runs_add(&who->runs, at, n);
	}
	return err;
}

int
contents_split(struct member *who)
{
	const struct task *t = who->task;
	struct page_runs lazy = {0};
	int err = find_lazy(who);

	for (size_t i = 0; i < t->nlazy && err == 0; i++)
		err = page_runs_add(&lazy, t->lazy[i].start, (t->lazy[i].end - t->lazy[i].start) / PAGE_BYTES);
	if (err == 0)
		err = runs_subtract(&who->runs, &lazy);
	page_runs_fini(&lazy);
	return err;
}

int
collect_contents(struct ckpt *c, struct member *who)
{
	struct task *t = who->task;
	int pagemap = openat(member_memory(who).proc, "pagemap", O_RDONLY | O_CLOEXEC);
	bool scan = kfeat(KFEAT_pagemap_scan), by_entries;
	int err = c->opt.pages != NULL && c->opt.spool == NULL ? find_lazy(who) : 0;

	if (pagemap < 0)
		return fail_errno("pid %d: pagemap", who->target.pid);
	for (size_t i = 0; i < t->nvmas && err == 0; i++) {
		struct vma *v = &t->vmas[i];
		bool guarded = vma_has(v, "gu");

		if (who->copy != NULL && is_still(v)) {
			err = add_still(who, v);
			continue;
		}
		if (v->kind == VMA_SHM) {
			err = add_shm(c, v, &who->runs);
			continue;
		}
		/* MAP_DROPPABLE may lose its content at any time: it does so now. */
		if (v->shared || vma_has(v, "dp"))
			continue;
		if (guarded)
			err = add_guards(t, pagemap, v);
		by_entries = false;
		if (err == 0)
			err = add_needed(c, who, pagemap, v, guarded ? &by_entries : &scan);
	}
	close(pagemap);
	return err < 0 ? fail(-err, "pid %d: pagemap: %s", who->target.pid, strerror(-err)) : 0;
}

/* --- pages that a forked process has in common with its parent */

/*
 * A page can only be shared by fork(2) if both have the same kind of memory at the same place; restart keeps
 * a mapping of the child that begins in one of the parent's.
 */
static bool
same_backing(const struct vma *child, const struct vma *parent)
{
	return parent != NULL && parent->huge == 0 && child->huge == 0 && !parent->shared && !child->shared && parent->kind == child->kind &&
	    parent->ref == child->ref && (child->kind != VMA_FILE ||
		parent->offset + (child->start - parent->start) == child->offset) &&
	    vma_has(parent, "gd") == vma_has(child, "gd") && vma_has(parent, "nr") == vma_has(child, "nr") &&
	    !vma_has(parent, "dc") && !vma_has(parent, "wf") && !vma_has(parent, "dp");
}

static const struct vma *vma_at(const struct task *t, taddr addr);

/* Pages of these runs that are the parent's, byte for byte. */
static int
compare_runs(const struct member *who, const struct page_runs *shared, taddr limit, struct page_runs *same)
{
	enum { PIECE = 64 };
	unsigned char *a = malloc(2 * PIECE * PAGE_BYTES), *b = a + PIECE * PAGE_BYTES;
	int err = a == NULL ? -ENOMEM : 0;

	for (size_t i = 0; i < shared->n && err == 0; i++) {
		taddr at = shared->run[i].addr, end = min_u64(limit, at + shared->run[i].npages * PAGE_BYTES);

		for (; at < end && err == 0; at += PIECE * PAGE_BYTES) {
			uint64_t len = min_u64(end - at, PIECE * PAGE_BYTES);

			err = mem_read(member_memory(who).mem, at, a, len);
			if (err == 0)
				err = mem_read(member_memory(who->parent).mem, at, b, len);
			for (uint64_t off = 0; off < len && err == 0; off += PAGE_BYTES)
				if (memcmp(a + off, b + off, PAGE_BYTES) == 0)
					err = page_runs_add(same, at + off, 1);
		}
	}
	free(a);
	return err;
}

int
runs_subtract(struct page_runs *runs, const struct page_runs *less)
{
	struct page_runs out = {0};
	int err = 0;

	for (size_t i = 0, k = 0; i < runs->n && err == 0; i++) {
		taddr at = runs->run[i].addr, end = at + runs->run[i].npages * PAGE_BYTES;

		while (at < end && err == 0) {
			taddr from, to;

			while (k < less->n && less->run[k].addr + less->run[k].npages * PAGE_BYTES <= at)
				k++;
			from = k < less->n ? less->run[k].addr : end;
			to = k < less->n ? from + less->run[k].npages * PAGE_BYTES : end;
			if (from > at)
				err = page_runs_add(&out, at, (min_u64(from, end) - at) / PAGE_BYTES);
			at = from < end ? to : end;
		}
	}
	page_runs_fini(runs);
	*runs = out;
	return err;
}

/* Was it made by fork(2) alone? Then the programs and what exec(2) laid out are the same. */
static bool
is_fork_of_parent(const struct member *who)
{
	const struct task *t = who->task, *p = who->parent != NULL ? who->parent->task : NULL;

	return p != NULL && p->exe == t->exe && p->mm.vdso == t->mm.vdso && p->mm.vvar == t->mm.vvar &&
	    p->mm.start_stack == t->mm.start_stack && p->mm.start_code == t->mm.start_code &&
	    p->mm.vdso_hash != NULL && strcmp(p->mm.vdso_hash, t->mm.vdso_hash) == 0;
}

/* Pages of one mapping that are the parent's. */
static int
inherit_vma(const struct member *who, int pagemap, const struct vma *v)
{
	const struct vma *p = vma_at(who->parent->task, v->start);
	struct page_runs shared = {0}, same = {0};
	struct task *t = who->task;
	int err = 0;

	if (!same_backing(v, p) || vma_has(v, "gu"))
		return 0;
	err = pagemap_read(pagemap, v->start, v->end, pagemap_is_shared, &shared);
	if (err == 0)
		err = compare_runs(who, &shared, min_u64(v->end, p->end), &same);
	for (size_t i = 0; i < same.n && err == 0; i++) {
		struct page_range *r = ARRAY_ADD(t->inherits, t->ninherits);

		err = r == NULL ? -ENOMEM : 0;
		if (err == 0)
			*r = (struct page_range){same.run[i].addr, same.run[i].addr + same.run[i].npages * PAGE_BYTES};
	}
	page_runs_fini(&shared);
	page_runs_fini(&same);
	return err;
}

int
collect_inherited(const struct ckpt *c, struct member *who)
{
	struct task *t = who->task;
	int pagemap, err = 0;

	if (!is_fork_of_parent(who))
		return t->shares_files ? fail(ENOTSUP, "pid %d: it shares its open files with its parent, which has "
		    "become another program", who->target.pid) : 0;
	pagemap = openat(member_memory(who).proc, "pagemap", O_RDONLY | O_CLOEXEC);
	if (pagemap < 0)
		return fail_errno("pid %d: pagemap", who->target.pid);
	/* What is fetched is fetched by each for itself. */
	for (size_t i = 0; i < t->nvmas && err == 0 && c->opt.pages == NULL; i++)
		err = inherit_vma(who, pagemap, &t->vmas[i]);
	close(pagemap);
	thin_ranges(t->inherits, &t->ninherits);
	t->forked = t->ninherits > 0 || t->shares_files;
	if (err == 0)
		err = subtract_ranges(&who->runs, t->inherits, t->ninherits);
	return err < 0 ? fail(-err, "pid %d: pages shared with its parent: %s", who->target.pid, strerror(-err)) : 0;
}

/* --- reading pages */

struct live_pages {
	struct page_source source; /* first */
	struct ckpt *c;
	struct member *who;
};

/* Through /proc/PID/mem also what the process itself may not read. */
static int
read_slowly(int mem, const struct page_run *runs, size_t nruns, unsigned char *out)
{
	for (size_t i = 0; i < nruns; i++) {
		int err = mem_read(mem, runs[i].addr, out, runs[i].npages * PAGE_BYTES);

		if (err < 0)
			return err;
		out += runs[i].npages * PAGE_BYTES;
	}
	return 0;
}

/* Some of them were read before. */
static int
read_in_pieces(const struct member *who, const struct page_run *runs, size_t nruns, unsigned char *out)
{
	int err = 0;

	for (size_t i = 0; i < nruns && err == 0; i++)
		for (uint64_t k = 0, n; k < runs[i].npages && err == 0; k += n, out += n * PAGE_BYTES) {
			taddr addr = runs[i].addr + k * PAGE_BYTES;
			const unsigned char *still;

			n = runs[i].npages - k;
			still = snapshot_page(who, addr, &n);
			if (still != NULL)
				memcpy(out, still, n * PAGE_BYTES);
			else
				err = mem_read(member_memory(who).mem, addr, out, n * PAGE_BYTES);
		}
	return err;
}

static int
read_live(struct page_source *s, const struct page_run *runs, size_t nruns, unsigned char *out)
{
	const struct member *who = ((struct live_pages *)s)->who;
	struct iovec remote[FRAME_RAW_MAX / PAGE_BYTES], local = {out, 0};
	const struct ckpt *c = ((struct live_pages *)s)->c;
	struct memory m = member_memory(who);

	if (snapshot_still(who) != NULL)
		return read_in_pieces(who, runs, nruns, out);
	/*
	 * process_vm_readv(2) is quicker, but pins pages (FOLL_PIN), and what is pinned is first made the process's own (Linux 5.19): each page that two have in common
	 * would be there twice.
	 */
	if (who->copy != NULL || c->nmembers > 1)
		return read_slowly(m.mem, runs, nruns, out);
	for (size_t i = 0; i < nruns; i++) {
		remote[i].iov_base = (void *)(uintptr_t)runs[i].addr;
		remote[i].iov_len = runs[i].npages * PAGE_BYTES;
		local.iov_len += remote[i].iov_len;
	}
	if (kfeat(KFEAT_process_vm) &&
	    process_vm_readv(m.pid, &local, 1, remote, nruns, 0) == (ssize_t)local.iov_len)
		return 0;
	return read_slowly(m.mem, runs, nruns, out);
}

static const struct vma *
vma_at(const struct task *t, taddr addr)
{
	size_t lo = 0, hi = t->nvmas;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (t->vmas[mid].end <= addr)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo < t->nvmas && t->vmas[lo].start <= addr ? &t->vmas[lo] : NULL;
}

/* Would a restart find this page as it is without the image? */
static bool
keep_live(struct page_source *s, taddr addr, const unsigned char *page)
{
	const struct ckpt *c = ((struct live_pages *)s)->c;
	const struct vma *v = vma_at(((struct live_pages *)s)->who->task, addr);
	unsigned char original[PAGE_BYTES];

	if (v == NULL || v->kind != VMA_FILE)
		return !page_is_zero(page);
	if (c->mapped[v->ref].fd < 0 ||
	    pread(c->mapped[v->ref].fd, original, PAGE_BYTES,
		(off_t)(v->offset + (addr - v->start))) != (ssize_t)PAGE_BYTES)
		return true;
	return memcmp(page, original, PAGE_BYTES) != 0;
}

struct live_pages *
live_pages_new(struct ckpt *c, struct member *who)
{
	struct live_pages *lp = calloc(1, sizeof(*lp));

	if (lp != NULL) {
		lp->source.read = read_live;
		lp->source.keep = keep_live;
		lp->c = c;
		lp->who = who;
	}
	return lp;
}

void
live_pages_free(struct live_pages *lp)
{
	free(lp);
}

struct page_source *
live_pages_source(struct live_pages *lp)
{
	return &lp->source;
}
