/*
 * buf: a growable writer and a borrowed reader of little-endian bytes.
 * The reader's error is sticky, so a decoder checks once, at its end. No system calls.
 */
#ifndef PMS_BUF_H
#define PMS_BUF_H

#include "base.h"

struct buf {
	unsigned char *data; /* owned */
	size_t len, cap;
	bool failed; /* memory ran out; what was put since is lost */
};

void buf_fini(struct buf *b);
void buf_put(struct buf *b, const void *data, size_t len);
/* len bytes that say nothing yet. */
void buf_put_room(struct buf *b, size_t len);
void buf_put_u8(struct buf *b, uint8_t v);
void buf_put_u32(struct buf *b, uint32_t v);
void buf_put_u64(struct buf *b, uint64_t v);

/* Reads from memory that the caller keeps. */
struct rbuf {
	const unsigned char *data;
	size_t len, pos;
	bool failed; /* something was asked for that is not there */
};

/* Returns len bytes of the borrowed memory, or NULL (and failed) where fewer are left. */
const void *rbuf_get(struct rbuf *r, size_t len);
uint8_t rbuf_get_u8(struct rbuf *r);
uint32_t rbuf_get_u32(struct rbuf *r);
uint64_t rbuf_get_u64(struct rbuf *r);

static inline size_t
rbuf_left(const struct rbuf *r)
{
	return r->len - r->pos;
}

#endif
