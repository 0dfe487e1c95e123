/*
 * Which pages a process that stands still has.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "log.h"
#include "pagemap.h"
#include "pagesrv.h"

int
live_find(int pagemap, taddr addr, taddr limit, struct page_run *runs, size_t *nruns, taddr *end)
{
	struct page_runs found = {0};
	int err = pagemap_next(pagemap, addr, limit, PIECE_PAGES, &found, end);
	uint64_t entry;

	/* Of a process that has ended some kernels say that it has nothing, and only this way that it is no more. */
	if (err == 0 && pread(pagemap, &entry, sizeof(entry), (off_t)(addr / PAGE_BYTES * sizeof(entry))) != sizeof(entry))
		err = -ESRCH;
	if (err < 0)
		fail(-err, "%s", err == -ESRCH ? "the process whose memory is served has ended" : strerror(-err));
	*nruns = found.n;
	for (size_t i = 0; i < found.n && err == 0; i++)
		runs[i] = found.run[i];
	page_runs_fini(&found);
	return err;
}
