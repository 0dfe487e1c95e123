/*
 * pages: runs of pages, where their contents come from, and their form in an image. Pure but for
 * what a page_source does.
 */
#ifndef PMS_PAGES_H
#define PMS_PAGES_H

#include "base.h"
#include "buf.h"
#include "frame.h"
#include "pipeline.h"

struct page_run {
	taddr addr;
	uint64_t npages;
};

struct page_runs {
	struct page_run *run; /* owned */
	size_t n;
	uint64_t npages;
};

/* Append pages, joined to the last run where they continue it. Returns 0, or -ENOMEM. */
int page_runs_add(struct page_runs *runs, taddr addr, uint64_t npages);
/* The same for all of `more`, which begin where the runs end or behind it. */
int page_runs_join(struct page_runs *runs, const struct page_runs *more);
void page_runs_fini(struct page_runs *runs);

/* Where one is in runs. */
struct page_cursor {
	size_t next;   /* run */
	uint64_t used; /* pages of it */
};
/* The next pages of n runs, *got of them, at most want: to out, which has room for as many runs. Returns how many that are. */
size_t page_cursor_take(struct page_cursor *at, const struct page_run *runs, size_t n, uint64_t want, struct page_run *out, uint64_t *got);

/* The same of a page, to an array that has room. */
static inline void
page_run_put(struct page_run *runs, size_t *n, taddr addr)
{
	if (*n > 0 && runs[*n - 1].addr + runs[*n - 1].npages * PAGE_BYTES == addr)
		runs[*n - 1].npages++;
	else
		runs[(*n)++] = (struct page_run){addr, 1};
}

/* Where pages come from. Both functions are called from several threads at once. */
struct page_source {
	/* Read n pages in all, those of nruns runs in order. Returns 0, or a negative errno. */
	int (*read)(struct page_source *s, const struct page_run *runs, size_t nruns,
	    unsigned char *out);
	/* Must this page be in the image? Not if a reader would find the same content anyway. */
	bool (*keep)(struct page_source *s, taddr addr, const unsigned char *page);
	int64_t pid; /* whose pages; set by image_rewrite() alone */
};

bool page_is_zero(const unsigned char *page);

/*
 * A chunk is what one member `pages/PID/N` holds: a header with runs, then their pages in
 * order, in frames of their own.
 */
#define CHUNK_PAGES 256
#define CHUNK_FRAMES (CHUNK_PAGES * PAGE_BYTES / FRAME_RAW_MAX)
#define CHUNK_HEADER_MAX (8 + 16 * CHUNK_PAGES)

/* One chunk on its way into an image: a job that reads, filters and packs. */
struct chunk_job {
	struct job job; /* first */
	struct page_source *source;
	int level;
	struct page_run in[CHUNK_PAGES]; /* at most CHUNK_PAGES pages */
	size_t nin;
	struct page_run out[CHUNK_PAGES]; /* what was kept */
	size_t nout;
	uint64_t npages;
	int err;
	size_t nframes;
	struct frame frames[CHUNK_FRAMES];
};

void chunk_job_run(struct job *job);

/* Header of a chunk, at most CHUNK_HEADER_MAX bytes. */
void chunk_header_put(struct buf *b, const struct page_run *runs, size_t nruns);

/*
 * Read a header and check it: ascending runs inside user space, at least one page, at most
 * CHUNK_PAGES. runs has room for CHUNK_PAGES. Returns 0, or -EBADMSG.
 */
int chunk_header_get(struct rbuf *r, struct page_run *runs, size_t *nruns, uint64_t *npages);
/* Bytes of the header of nruns runs. */
#define CHUNK_HEADER_BYTES(nruns) (8 + 16 * (uint64_t)(nruns))

/* The member pages.index: where each chunk is. Its pages are in the frames that follow. */
#define INDEX_NAME "pages.index"
#define TAR_HEADER 512
struct chunk_place {
	int64_t task;      /* its PID in the image */
	taddr start, end;  /* of its first and behind its last page */
	uint32_t frame;    /* number of the frame that its header is in */
	uint32_t at;       /* where there: its tar header is in front */
};
enum { CHUNK_PLACE = 32 };
void chunk_place_put(struct buf *b, const struct chunk_place *c);
void chunk_place_get(struct rbuf *r, struct chunk_place *c);

#endif
