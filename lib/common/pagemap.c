#include "pagemap.h"

#include <errno.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "kfeat.h"

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
	PAGE_WRITTEN = 1 << 1, PAGE_FILE = 1 << 2, PAGE_PRESENT = 1 << 3, PAGE_SWAPPED = 1 << 4, PAGE_PFNZERO = 1 << 5,
	PAGE_GUARD = 1 << 8 /* 6.15 */
};

enum { SCAN_WP_MATCHING = 1 << 0, SCAN_CHECK_WPASYNC = 1 << 1 };

/* Which pages of a process's own. */
struct wanted {
	uint64_t flags;   /* SCAN_* */
	uint64_t written; /* PAGE_WRITTEN: only those; or 0 */
	struct page_runs *unwritten; /* those that are not go there, too; or NULL */
};

static int
add_region(const struct scan_region *r, const struct wanted *w, struct page_runs *runs)
{
	uint64_t n = (r->end - r->start) / PAGE_BYTES;
	int err = page_runs_add(runs, r->start, n);

	if (err == 0 && w->unwritten != NULL && !(r->categories & PAGE_WRITTEN))
		err = page_runs_add(w->unwritten, r->start, n);
	return err;
}

/* One call from arg->start on, up to max pages (0: any number). */
static int
scan_some(int pagemap, struct scan_arg *arg, taddr end, uint64_t max, const struct wanted *w, struct page_runs *runs)
{
	struct scan_region vec[512];
	int n;

	*arg = (struct scan_arg){.size = sizeof(*arg), .flags = w->flags, .start = arg->start, .end = end, .vec = (uintptr_t)vec, .vec_len = ARRAY_LEN(vec), .max_pages = max,
	    .category_inverted = PAGE_FILE | PAGE_PFNZERO, .category_mask = PAGE_FILE | PAGE_PFNZERO | w->written,
	    .category_anyof_mask = PAGE_PRESENT | PAGE_SWAPPED, .return_mask = w->unwritten != NULL ? PAGE_WRITTEN : PAGE_PRESENT};
	n = ioctl(pagemap, PAGEMAP_SCAN_, arg);
	if (n < 0)
		return -errno;
	for (int i = 0; i < n; i++)
		if (add_region(&vec[i], w, runs) < 0)
			return -ENOMEM;
	return 0;
}

static int
scan_all(int pagemap, taddr start, taddr end, const struct wanted *w, struct page_runs *runs)
{
	struct scan_arg arg = {.start = start};

	while (arg.start < end) {
		int err = scan_some(pagemap, &arg, end, 0, w, runs);

		if (err < 0)
			return err;
		if (arg.walk_end <= arg.start)
			break;
		arg.start = arg.walk_end;
	}
	return 0;
}

int
pagemap_scan(int pagemap, taddr start, taddr end, struct page_runs *runs)
{
	return scan_all(pagemap, start, end, &(struct wanted){0}, runs);
}

int
pagemap_written(int pagemap, taddr start, taddr end, bool rearm, struct page_runs *runs)
{
	return scan_all(pagemap, start, end, &(struct wanted){SCAN_CHECK_WPASYNC | (rearm ? SCAN_WP_MATCHING : 0), PAGE_WRITTEN, NULL}, runs);
}

int
pagemap_tracked(int pagemap, taddr start, taddr end, struct page_runs *runs, struct page_runs *unwritten)
{
	return scan_all(pagemap, start, end, &(struct wanted){SCAN_CHECK_WPASYNC, 0, unwritten}, runs);
}

#define PM_PRESENT (1ULL << 63)
#define PM_SWAP (1ULL << 62)
#define PM_FILE (1ULL << 61)
#define PM_GUARD (1ULL << 58)
#define PM_EXCLUSIVE (1ULL << 56) /* 4.2: nobody else has this page mapped */

bool
pagemap_is_own(uint64_t entry)
{
	return (entry & (PM_PRESENT | PM_SWAP)) != 0 && !(entry & PM_FILE) && !(entry & PM_GUARD);
}

bool
pagemap_is_shared(uint64_t entry)
{
	return pagemap_is_own(entry) && !(entry & PM_EXCLUSIVE);
}

bool
pagemap_is_guard(uint64_t entry)
{
	return (entry & PM_GUARD) != 0;
}

/* Up to max pages. Returns where it has come to, or a negative errno. */
static int64_t
read_some(int pagemap, taddr start, taddr end, bool (*want)(uint64_t), uint64_t max, struct page_runs *runs)
{
	uint64_t entries[4096], before = runs->npages;
	size_t n = min_u64(ARRAY_LEN(entries), (end - start) / PAGE_BYTES), i;
	ssize_t got = pread(pagemap, entries, n * 8, (off_t)(start / PAGE_BYTES * 8));

	if (got <= 0)
		return got < 0 ? -errno : -EIO;
	for (i = 0; i < (size_t)got / 8 && runs->npages - before < max; i++)
		if (want(entries[i]) && page_runs_add(runs, start + i * PAGE_BYTES, 1) < 0)
			return -ENOMEM;
	return (int64_t)(start + i * PAGE_BYTES);
}

int
pagemap_read(int pagemap, taddr start, taddr end, bool (*want)(uint64_t), struct page_runs *runs)
{
	while (start < end) {
		int64_t at = read_some(pagemap, start, end, want, UINT64_MAX, runs);

		if (at < 0)
			return (int)at;
		start = (taddr)at;
	}
	return 0;
}

int
pagemap_next(int pagemap, taddr addr, taddr limit, uint64_t max, struct page_runs *runs, taddr *end)
{
	struct scan_arg arg = {.start = addr};
	int64_t at;
	int err = kfeat(KFEAT_pagemap_scan) ? scan_some(pagemap, &arg, limit, max, &(struct wanted){0}, runs) : -ENOTTY;

	*end = arg.walk_end;
	if (err != -ENOTTY && err != -EINVAL)
		return err;
	do
		at = read_some(pagemap, addr, limit, pagemap_is_own, max, runs);
	while (at > 0 && runs->npages == 0 && (addr = (taddr)at) < limit);
	*end = at < 0 ? addr : (taddr)at;
	return at < 0 ? (int)at : 0;
}
