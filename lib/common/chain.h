/*
 * chain: an image that was made with a parent, and its parents: the pages of a task as they were when the first of them was made. An image has its own pages, and
 * says in task.earlier which of its parent's are still so.
 */
#ifndef PMS_CHAIN_H
#define PMS_CHAIN_H

#include "model.h"
#include "page_file.h"

#define CHAIN_MAX 1024

struct chain;

/*
 * Opens the image at path and all of its parents, each of which is looked for by its identity beside the one that names it. path is copied. Returns 0, or a negative
 * errno, logged: -ENOENT where one is not there, which is named.
 */
int chain_open(struct chain **c, const char *path);
/* The same for the parents of an image with this header, which is at path, NULL: stdin; hint: the first of them, or NULL. */
int chain_open_parents(struct chain **c, const struct image_header *header, const char *path, const char *hint);
/* Accepts NULL. */
void chain_close(struct chain *c);

/* 32 hex digits of the first image; does it have pages of this task? Borrowed. */
const char *chain_id(const struct chain *c);
bool chain_has_task(const struct chain *c, int64_t task);
/* How many images there are. */
size_t chain_length(const struct chain *c);

/* What a thread reads it with. NULL where memory ran out. */
struct chain_reader;
struct chain_reader *chain_reader_new(const struct chain *c);
void chain_reader_free(struct chain_reader *r);

/*
 * The page at addr, and as many behind it as are at hand, up to limit: *npages of them, at *content, which is valid until the next of these. Returns 1, 0 where the chain has none there, or a
 * negative errno, logged.
 */
int chain_find(struct chain_reader *r, int64_t task, taddr addr, taddr limit, const unsigned char **content, uint64_t *npages);

#endif
