/*
 * pagemap: which pages a process has, as the kernel tells it: ioctl PAGEMAP_SCAN (6.7), or the entries of /proc/PID/pagemap.
 *
 * Source: Documentation/admin-guide/mm/pagemap.rst
 */
#ifndef PMS_PAGEMAP_H
#define PMS_PAGEMAP_H

#include "pages.h"

/* Pages of [start, end) that are the process's own. Silent: 0, -ENOTTY where the kernel cannot say so, or another negative errno. */
int pagemap_scan(int pagemap, taddr start, taddr end, struct page_runs *runs);
/*
 * Where writes are tracked by userfaultfd (write-protection, asynchronous; 6.7): pages that have been written since the last time, which with rearm begins
 * now. -EPERM where the range is not tracked as a whole.
 */
int pagemap_written(int pagemap, taddr start, taddr end, bool rearm, struct page_runs *runs);
/* All pages, and those of them that have not been written. */
int pagemap_tracked(int pagemap, taddr start, taddr end, struct page_runs *runs, struct page_runs *unwritten);
/* The same from the entries: pages for which want() holds. */
int pagemap_read(int pagemap, taddr start, taddr end, bool (*want)(uint64_t), struct page_runs *runs);

/* Of an entry: its own page; one that others have, too, perhaps; guard page (6.15). */
bool pagemap_is_own(uint64_t entry);
bool pagemap_is_shared(uint64_t entry);
bool pagemap_is_guard(uint64_t entry);

/*
 * Own pages of [addr, limit), at most max; *end: before it there is nothing else. Silent. Returns 0, or a negative errno.
 */
int pagemap_next(int pagemap, taddr addr, taddr limit, uint64_t max, struct page_runs *runs, taddr *end);

#endif
