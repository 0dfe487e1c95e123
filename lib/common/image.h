/*
 * image: the members of an image in order, as pms-image(5) lays them down. What the members
 * mean is the model's business, where pages come from and go to is pages' and the caller's.
 */
#ifndef PMS_IMAGE_H
#define PMS_IMAGE_H

#include <sys/types.h>

#include "base.h"
#include "frame.h"
#include "model.h"
#include "pages.h"

#define IMAGE_VERSION 1
#define IMAGE_NAME_MAX 64
#define IMAGE_TEXT_MAX (64u << 20) /* longest JSON member that a reader accepts */

/* --- Writing ----------------------------------------------------------------------- */

/* Where the bytes go. Returns 0, or a negative errno, logged. */
typedef int image_sink(void *ctx, const void *data, size_t len);

struct image_writer;

/* level: zstd's, 0 to store, or as much as the sink leaves time for. Returns NULL where memory ran out. */
#define IMAGE_LEVEL_AUTO (-1)
struct image_writer *image_writer_new(image_sink *sink, void *ctx, int level);
void image_writer_free(struct image_writer *w);

/* One member from memory. Returns 0, or a negative errno, logged. */
int image_put(struct image_writer *w, const char *name, const void *data, size_t len);

/*
 * One member of size bytes, which come from read(ctx, offset, data, len).
 * Returns 0, or a negative errno, logged.
 */
typedef int image_content(void *ctx, uint64_t offset, void *data, size_t len);
int image_put_content(struct image_writer *w, const char *name, uint64_t size,
    image_content *read, void *ctx);

/*
 * All pages of runs that source keeps, as members pages/PID/N. progress may be NULL; a
 * negative value that it returns ends the work.
 */
typedef int image_progress(void *ctx, uint64_t pages_done, uint64_t pages_all);
int image_put_pages(struct image_writer *w, int64_t pid, const struct page_runs *runs,
    struct page_source *source, image_progress *progress, void *ctx);

/* The end marker and the seek table; after this the image is complete. */
int image_finish(struct image_writer *w);

/* Bytes given to the sink so far. */
uint64_t image_bytes(const struct image_writer *w);
/* Pages that are in it so far. */
uint64_t image_pages(const struct image_writer *w);

/* --- Reading ----------------------------------------------------------------------- */

struct image_reader;

/*
 * Reads from source(ctx), which returns a count, 0 at the end, or a negative errno, logged.
 * name is borrowed, for messages. Returns NULL where memory ran out.
 */
typedef ssize_t image_source(void *ctx, void *data, size_t len);
struct image_reader *image_reader_new(image_source *source, void *ctx, const char *name);
void image_reader_free(struct image_reader *r);

/* Unpack with several threads from now on; not before the last fork of one that goes on. Once more it does nothing. */
int image_reader_threads(struct image_reader *r);

/* Does the stream announce a tail and an END? Valid after the first image_next(). */
bool image_wants_end(const struct image_reader *r);

/*
 * The next member. name gets at most IMAGE_NAME_MAX bytes, checked to be one of those that
 * an image can have. What is left of the one before is skipped. Returns 1, 0 behind
 * the end marker (which is checked, and must be the last), or a negative errno, logged.
 */
int image_next(struct image_reader *r, char name[IMAGE_NAME_MAX], uint64_t *size);

/* Read the member at hand whole; the caller frees *data, which is NUL-terminated. */
int image_get(struct image_reader *r, char **data, size_t *len);

/* The same as a record of this table, which record_free() releases. Returns 0, or a negative errno, logged. */
struct record;
int image_get_record(struct image_reader *r, const struct record *rec, void *st);

/* Give its content to take() piece by piece. */
typedef int image_take(void *ctx, const void *data, size_t len);
int image_get_content(struct image_reader *r, image_take *take, void *ctx);

/*
 * The member at hand is a chunk of pages: its runs, checked. Then image_chunk_data() gives
 * the pages, in pieces of whole pages that stay valid until the next call; NULL at the end.
 */
int image_get_chunk(struct image_reader *r, struct page_run runs[CHUNK_PAGES], size_t *nruns,
    uint64_t *npages);
int image_chunk_data(struct image_reader *r, const unsigned char **data, size_t *len);

/* Behind the image: read the tail. Returns 1 when END came, 0 when the stream ended, or an errno. */
int image_await_end(struct image_reader *r);

uint64_t image_pages_read(const struct image_reader *r);

/*
 * Write the image that was read, up to its end marker, to sink: the frames as they came, but the pages
 * from source, for they were not kept. The reader must have kept (image_keep(), before the first
 * image_next()).
 */
void image_keep(struct image_reader *r);
int image_rewrite(struct image_reader *r, struct page_source *source, image_sink *sink, void *ctx);

#endif
