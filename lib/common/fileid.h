/*
 * fileid: is a file here the one that the image speaks of? By build-id, else by content.
 */
#ifndef PMS_FILEID_H
#define PMS_FILEID_H

#include "model.h"

/* Files up to this size without a build-id are embedded when they are mapped. */
#define EMBED_MAX (16ULL << 20)

/* What to find out; each costs reading. */
enum { FILEID_BUILD_ID = 1, FILEID_HASH = 2, FILEID_SAMPLE = 4 };

/*
 * Size, mode and mtime of fd, and what `what` asks for; FILEID_HASH is left out where there
 * is a build-id. Fills strings that the caller frees with the ref. Returns 0 or a negative errno. Silent.
 */
int fileid_get(struct file_ref *ref, int fd, int what);

/* FILEID_BUILD_ID and FILEID_HASH of this file are found out now, and need not be when they are asked for, if it is still the same then. Silent. */
void fileid_look_ahead(int fd);
void fileid_forget(void);

enum fileid_match { FILE_SAME, FILE_DIFFERENT };

/* Compare fd with a mapped or executed file of an image. Returns one of them, or a negative errno. */
int fileid_compare_mapped(const struct file_ref *ref, int fd);

/* XXH3-128 of the whole of fd. */
int fileid_hash(int fd, char hex[33]);

#endif
