#include "buf.h"

#include <stdlib.h>
#include <string.h>

void
buf_fini(struct buf *b)
{
	free(b->data);
	*b = (struct buf){0};
}

void
buf_put_room(struct buf *b, size_t len)
{
	if (b->failed)
		return;
	if (b->cap - b->len < len) {
		size_t cap = max_u64(b->cap * 2, b->len + len + 256);
		unsigned char *p = realloc(b->data, cap);

		if (p == NULL) {
			b->failed = true;
			return;
		}
		b->data = p;
		b->cap = cap;
	}
	b->len += len;
}

void
buf_put(struct buf *b, const void *data, size_t len)
{
	size_t at = b->len;

	buf_put_room(b, len);
	if (len > 0 && !b->failed)
		memcpy(b->data + at, data, len);
}

static void
put_le(struct buf *b, uint64_t v, size_t n)
{
	unsigned char bytes[8];

	for (size_t i = 0; i < n; i++)
		bytes[i] = (unsigned char)(v >> (8 * i));
	buf_put(b, bytes, n);
}

void
buf_put_u8(struct buf *b, uint8_t v)
{
	put_le(b, v, 1);
}

void
buf_put_u32(struct buf *b, uint32_t v)
{
	put_le(b, v, 4);
}

void
buf_put_u64(struct buf *b, uint64_t v)
{
	put_le(b, v, 8);
}

const void *
rbuf_get(struct rbuf *r, size_t len)
{
	const unsigned char *p = r->data + r->pos;

	if (r->failed || rbuf_left(r) < len) {
		r->failed = true;
		return NULL;
	}
	r->pos += len;
	return p;
}

static uint64_t
get_le(struct rbuf *r, size_t n)
{
	const unsigned char *p = rbuf_get(r, n);
	uint64_t v = 0;

	for (size_t i = 0; p != NULL && i < n; i++)
		v |= (uint64_t)p[i] << (8 * i);
	return v;
}

uint8_t
rbuf_get_u8(struct rbuf *r)
{
	return (uint8_t)get_le(r, 1);
}

uint32_t
rbuf_get_u32(struct rbuf *r)
{
	return (uint32_t)get_le(r, 4);
}

uint64_t
rbuf_get_u64(struct rbuf *r)
{
	return get_le(r, 8);
}
