/*
 * page_wire: bodies of the messages by which pages are asked for, given and taken back; pms-wire(7). Pure. The *_get functions return 0, or -EPROTO at
 * what makes no sense; then nothing of it may be used.
 */
#ifndef PMS_PAGE_WIRE_H
#define PMS_PAGE_WIRE_H

#include "buf.h"
#include "frame.h"
#include "pages.h"

#define PAGE_SESSION 16 /* bytes of a session's identity */
#define IMAGE_ID 32     /* hex digits */
enum { PIECE_PAGES = FRAME_RAW_MAX / PAGE_BYTES };

/* A user has a page in one of these states. */
enum page_state { PAGE_NONE, PAGE_READ, PAGE_WRITE };

/* ATTACH, and what is answered: ATTACHED. */
enum attach_flag {
	ATTACH_SHARED = 1, /* one memory for all who attach so; else it is his alone */
	ATTACH_KNOWN = 2,  /* answered: this session goes on */
	ATTACH_LIVE = 4,   /* answered: pages of a process, which ends when all have been taken */
	ATTACH_RUNS = 8,   /* comes again: what was made of it runs already */
};
struct attach {
	char id[IMAGE_ID + 1]; /* of the image; all zeroes: whatever there is */
	unsigned char session[PAGE_SESSION]; /* zeroes: a new one */
	uint32_t flags;
};
void attach_put(struct buf *b, const struct attach *a);
int attach_get(struct attach *a, const unsigned char *body, size_t len);

/* GET: pages [addr, addr + npages) of a task, as want; the first is waited for. */
struct page_get {
	int64_t task;
	taddr addr;
	uint32_t npages; /* 1 to PIECE_PAGES */
	uint32_t want;   /* PAGE_READ, PAGE_WRITE */
};
void page_get_put(struct buf *b, const struct page_get *g);
int page_get_get(struct page_get *g, const unsigned char *body, size_t len);

/* STREAM: as many more pieces, from there on. */
struct page_stream {
	int64_t task; /* 0: from the beginning, or where it stood */
	taddr addr;
	uint32_t credit;
};
void page_stream_put(struct buf *b, const struct page_stream *s);
int page_stream_get(struct page_stream *s, const unsigned char *body, size_t len);

/*
 * PAGES: everything in [from, to) of a task: the pages of runs as they stand in a frame (frame.h), one behind the other; what is in no run is zero. Without
 * a frame (KEPT) the one who asked has them already.
 */
enum piece_flag {
	PIECE_LAST = 1,   /* STREAM: there is nothing more; of this, nothing is said */
	PIECE_BAD = 2,    /* they are damaged where they are kept, and cannot be had */
	PIECE_KEPT = 4,
	PIECE_AHEAD = 8,  /* nobody has asked for them yet */
	PIECE_STREAM = 16,
};
struct page_pieces {
	int64_t task;
	taddr from, to;
	uint32_t granted, flags; /* enum page_state */
	struct page_run runs[PIECE_PAGES];
	size_t nruns;
	uint64_t npages;
	const unsigned char *frame; /* borrowed */
	size_t frame_len;
};
/* Everything but the frame, which is to follow. */
void page_pieces_put(struct buf *b, const struct page_pieces *p);
int page_pieces_get(struct page_pieces *p, const unsigned char *body, size_t len);

/* INVALIDATE: from now on this user has the page no longer, or only to read; INVALIDATED: with its content in a frame if he could write it. */
struct page_call {
	int64_t task;
	taddr addr;
	uint32_t state;
};
void page_call_put(struct buf *b, const struct page_call *c);
int page_call_get(struct page_call *c, const unsigned char *body, size_t len, const unsigned char **frame, size_t *frame_len);

/* REPORT: what a user counts. */
enum { LATENCY_BUCKETS = 40 };
struct page_counts {
#define COUNT(name, text) uint64_t name;
#include "page_count.def"
#undef COUNT
	uint64_t latency[LATENCY_BUCKETS]; /* faults by the time until the page was there: [2^(k/2), 2^((k+1)/2)) us */
};
void page_counts_put(struct buf *b, const struct page_counts *c);
int page_counts_get(struct page_counts *c, const unsigned char *body, size_t len);
void page_counts_latency(struct page_counts *c, uint64_t ns);
/* Upper bound of the time below which this share (per mille) of the faults was, in microseconds; 0 without any. */
double page_counts_percentile(const struct page_counts *c, unsigned per_mille);

#endif
