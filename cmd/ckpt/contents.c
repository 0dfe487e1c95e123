/*
 * Which pages of the stopped process matter, and reading them.
 *
 * A page matters if its content is neither in a file that the other end has nor zero. The
 * kernel knows most of it (PAGEMAP_SCAN, or pagemap); the rest shows when the page is read.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/types.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "ckpt.h"
#include "io.h"
#include "kfeat.h"
#include "log.h"

/* --- what the kernel knows */

/* ioctl PAGEMAP_SCAN of linux/fs.h (6.7), which older headers lack. */
struct scan_region {
	uint64_t start, end, categories;
};
struct scan_arg {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
	uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define PAGEMAP_SCAN_ _IOWR('f', 16, struct scan_arg)
enum {
	PAGE_FILE = 1 << 2, PAGE_PRESENT = 1 << 3, PAGE_SWAPPED = 1 << 4, PAGE_PFNZERO = 1 << 5,
	PAGE_GUARD = 1 << 8 /* 6.15 */
};

/* Pages of [start, end) that are the process's own. -ENOTTY where the kernel cannot say so. */
static int
scan_range(int pagemap, taddr start, taddr end, struct page_runs *runs)
{
	struct scan_region vec[512];
	struct scan_arg arg = {.size = sizeof(arg), .start = start, .end = end,
	    .vec = (uintptr_t)vec, .vec_len = ARRAY_LEN(vec),
	    .category_inverted = PAGE_FILE | PAGE_PFNZERO,
	    .category_mask = PAGE_FILE | PAGE_PFNZERO,
	    .category_anyof_mask = PAGE_PRESENT | PAGE_SWAPPED, .return_mask = PAGE_PRESENT};

	while (arg.start < end) {
		int n = ioctl(pagemap, PAGEMAP_SCAN_, &arg);

		if (n < 0)
			return -errno;
		for (int i = 0; i < n; i++)
			if (page_runs_add(runs, vec[i].start, (vec[i].end - vec[i].start) / PAGE_BYTES) < 0)
				return -ENOMEM;
		if (arg.walk_end <= arg.start)
			break;
		arg.start = arg.walk_end;
	}
	return 0;
}

/* Documentation/admin-guide/mm/pagemap.rst */
#define PM_PRESENT (1ULL << 63)
#define PM_SWAP (1ULL << 62)
#define PM_FILE (1ULL << 61)
#define PM_GUARD (1ULL << 58)

static bool
is_own(uint64_t entry)
{
	return (entry & (PM_PRESENT | PM_SWAP)) != 0 && !(entry & PM_FILE) && !(entry & PM_GUARD);
}

static bool
is_guard(uint64_t entry)
{
	return (entry & PM_GUARD) != 0;
}

/* The same from the table itself: pages for which want() holds. */
static int
read_range(int pagemap, taddr start, taddr end, bool (*want)(uint64_t), struct page_runs *runs)
{
	uint64_t entries[4096];

	while (start < end) {
		size_t n = min_u64(ARRAY_LEN(entries), (end - start) / PAGE_BYTES);
		ssize_t got = pread(pagemap, entries, n * 8, (off_t)(start / PAGE_BYTES * 8));

		if (got <= 0)
			return got < 0 ? -errno : -EIO;
		for (size_t i = 0; i < (size_t)got / 8; i++)
			if (want(entries[i]) && page_runs_add(runs, start + i * PAGE_BYTES, 1) < 0)
				return -ENOMEM;
		start += (uint64_t)got / 8 * PAGE_BYTES;
	}
	return 0;
}

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
	int err = read_range(pagemap, v->start, v->end, is_guard, &runs);

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
add_shm(struct ckpt *c, const struct vma *v)
{
	for (const struct vma *w = c->model.task.vmas; w < v; w++)
		if (w->kind == VMA_SHM && w->ref == v->ref && w->offset <= v->offset &&
		    w->offset + (w->end - w->start) >= v->offset + (v->end - v->start))
			return 0; /* seen through another mapping */
	return page_runs_add(&c->runs, v->start, (v->end - v->start) / PAGE_BYTES);
}

int
collect_contents(struct ckpt *c)
{
	struct task *t = &c->model.task;
	int pagemap = openat(c->target.proc, "pagemap", O_RDONLY | O_CLOEXEC);
	bool scan = kfeat(KFEAT_pagemap_scan);
	int err = 0;

	if (pagemap < 0)
		return fail_errno("pid %d: pagemap", c->target.pid);
	for (size_t i = 0; i < t->nvmas && err == 0; i++) {
		struct vma *v = &t->vmas[i];
		bool guarded = vma_has(v, "gu");

		if (v->kind == VMA_SHM) {
			err = add_shm(c, v);
			continue;
		}
		/* MAP_DROPPABLE may lose its content at any time: it does so now. */
		if (v->shared || vma_has(v, "dp"))
			continue;
		if (guarded)
			err = add_guards(t, pagemap, v);
		if (err == 0 && scan && !guarded) {
			err = scan_range(pagemap, v->start, v->end, &c->runs);
			if (err != -ENOTTY && err != -EINVAL)
				continue;
			scan = false;
			err = 0;
		}
		if (err == 0)
			err = read_range(pagemap, v->start, v->end, is_own, &c->runs);
	}
	close(pagemap);
	return err < 0 ? fail(-err, "pid %d: pagemap: %s", c->target.pid, strerror(-err)) : 0;
}

/* --- reading pages */

struct live_pages {
	struct page_source source; /* first */
	struct ckpt *c;
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

static int
read_live(struct page_source *s, const struct page_run *runs, size_t nruns, unsigned char *out)
{
	const struct target *t = &((struct live_pages *)s)->c->target;
	struct iovec remote[FRAME_RAW_MAX / PAGE_BYTES], local = {out, 0};

	for (size_t i = 0; i < nruns; i++) {
		remote[i].iov_base = (void *)(uintptr_t)runs[i].addr;
		remote[i].iov_len = runs[i].npages * PAGE_BYTES;
		local.iov_len += remote[i].iov_len;
	}
	if (kfeat(KFEAT_process_vm) &&
	    process_vm_readv(t->pid, &local, 1, remote, nruns, 0) == (ssize_t)local.iov_len)
		return 0;
	return read_slowly(t->mem, runs, nruns, out);
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
	const struct vma *v = vma_at(&c->model.task, addr);
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
live_pages_new(struct ckpt *c)
{
	struct live_pages *lp = calloc(1, sizeof(*lp));

	if (lp != NULL) {
		lp->source.read = read_live;
		lp->source.keep = keep_live;
		lp->c = c;
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
