/*
 * page_file: single pages out of an image file, by its seek table and its index. What is read is checked when it is used: the file may be anything.
 * Several threads may use one, each with a cache of its own.
 */
#ifndef PMS_PAGE_FILE_H
#define PMS_PAGE_FILE_H

#include "frame.h"
#include "pages.h"

struct page_file;

/*
 * Takes fd, which must be a regular file; an image behind a program (ckpt -x) is found. name is borrowed, for messages. Returns 0, or a negative errno,
 * logged: -EBADMSG what is no whole image, -ENOTSUP an image of an older version, without index.
 */
int page_file_open(struct page_file **pf, int fd, const char *name);
/* Accepts NULL. */
void page_file_close(struct page_file *pf);

/* Are some of its pages in a parent? */
bool page_file_has_parent(const struct page_file *pf);
/* 32 hex digits, borrowed. */
const char *page_file_id(const struct page_file *pf);
/* Pages that it has, and bytes that these take in it. */
void page_file_size(const struct page_file *pf, uint64_t *pages, uint64_t *bytes);
/* The PIDs of its tasks that have pages, in the order in which they have them; borrowed. */
const int64_t *page_file_tasks(const struct page_file *pf, size_t *n);

/* Pages that are packed together: those of one frame. */
struct page_piece {
	struct page_run runs[FRAME_RAW_MAX / PAGE_BYTES];
	size_t nruns;
	uint64_t npages;
	uint32_t frame;
};

/* What a thread has unpacked. */
struct page_cache;
struct page_cache *page_cache_new(struct page_file *pf, size_t nframes);
void page_cache_free(struct page_cache *c);

/*
 * The first piece of a task with a page at or behind addr, and below limit. The piece may begin before addr. Returns 1, 0 where there is
 * none, or a negative errno, logged; piece->runs[0] is then what cannot be told of.
 */
int page_cache_find(struct page_cache *c, int64_t task, taddr addr, taddr limit, struct page_piece *piece);
/* Its frame as it is in the file; valid until the next of these. Returns 0, or a negative errno, logged. */
int page_cache_packed(struct page_cache *c, const struct page_piece *piece, const unsigned char **packed, size_t *len);
/* Its pages, one behind the other; valid until the next of these. Returns 0, or -EBADMSG or another negative errno, logged. */
int page_cache_content(struct page_cache *c, const struct page_piece *piece, const unsigned char **content);
/* Where in its content this page is, or NULL. */
const unsigned char *page_piece_at(const struct page_piece *piece, const unsigned char *content, taddr addr);

#endif
