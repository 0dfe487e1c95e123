#include "frame.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include <zstd.h>

#define ZSTD_MAGIC 0xFD2FB528U
#define SKIPPABLE_MAGIC 0x184D2A50U
#define SEEK_FOOTER_MAGIC 0x8F92EAB1U

/* Frame header: single segment, 4-byte content size, content checksum. */
enum { STORED_DESCRIPTOR = 0x80 | 0x20 | 0x04, STORED_HEADER = 12, CHECKSUM = 4, FAST_HASH_LOG = 12 };

/* Each thread has a compressor and a decompressor, made when first used and freed with it. */
struct contexts {
	ZSTD_CCtx *cctx;
	ZSTD_DCtx *dctx;
};

static pthread_key_t contexts_key;
static pthread_once_t contexts_once = PTHREAD_ONCE_INIT;

static void
free_contexts(void *p)
{
	struct contexts *c = p;

	ZSTD_freeCCtx(c->cctx);
	ZSTD_freeDCtx(c->dctx);
	free(c);
}

static void
make_key(void)
{
	pthread_key_create(&contexts_key, free_contexts);
}

static struct contexts *
contexts(void)
{
	struct contexts *c;

	pthread_once(&contexts_once, make_key);
	c = pthread_getspecific(contexts_key);
	if (c == NULL && (c = calloc(1, sizeof(*c))) != NULL)
		pthread_setspecific(contexts_key, c);
	return c;
}

static ZSTD_CCtx *
compressor(void)
{
	struct contexts *c = contexts();

	if (c != NULL && c->cctx == NULL)
		c->cctx = ZSTD_createCCtx();
	return c != NULL ? c->cctx : NULL;
}

static ZSTD_DCtx *
decompressor(void)
{
	struct contexts *c = contexts();

	if (c != NULL && c->dctx == NULL)
		c->dctx = ZSTD_createDCtx();
	return c != NULL ? c->dctx : NULL;
}

static void
put_le32(unsigned char *p, uint32_t v)
{
	for (int i = 0; i < 4; i++)
		p[i] = (unsigned char)(v >> (8 * i));
}

static uint32_t
get_le32(const unsigned char *p)
{
	return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static void
frame_store(struct frame *f)
{
	unsigned char *p = f->store + FRAME_HEAD - STORED_HEADER;
	uint32_t n = (uint32_t)f->raw_len;
	uint32_t block = n << 3 | 1; /* raw block, the last */

	put_le32(p, ZSTD_MAGIC);
	p[4] = STORED_DESCRIPTOR;
	put_le32(p + 5, n);
	p[9] = (unsigned char)block;
	p[10] = (unsigned char)(block >> 8);
	p[11] = (unsigned char)(block >> 16);
	put_le32(p + STORED_HEADER + n, (uint32_t)XXH64(p + STORED_HEADER, n, 0));
	f->packed = p;
	f->packed_len = STORED_HEADER + n + CHECKSUM;
}

int
frame_pack(struct frame *f, int level)
{
	ZSTD_CCtx *cctx;
	size_t n;

	f->err = 0;
	if (level == 0) {
		frame_store(f);
		return 0;
	}
	cctx = compressor();
	if (cctx == NULL)
		return f->err = -ENOMEM;
	ZSTD_CCtx_setParameter(cctx, ZSTD_c_compressionLevel, level);
	/* For frames of this size the usual table of level 1 takes a tenth more time than one that is a quarter as large, and packs memory no better. */
	ZSTD_CCtx_setParameter(cctx, ZSTD_c_hashLog, level == 1 ? FAST_HASH_LOG : 0);
	ZSTD_CCtx_setParameter(cctx, ZSTD_c_checksumFlag, 1);
	ZSTD_CCtx_setParameter(cctx, ZSTD_c_contentSizeFlag, 1);
	n = ZSTD_compress2(cctx, f->other, sizeof(f->other), frame_raw(f), f->raw_len);
	if (ZSTD_isError(n))
		return f->err = -EIO;
	if (n >= f->raw_len + STORED_HEADER + CHECKSUM) {
		frame_store(f);
		return 0;
	}
	f->packed = f->other;
	f->packed_len = n;
	return 0;
}

int64_t
frame_length(const unsigned char *data, size_t n, uint32_t *skippable)
{
	uint32_t magic;
	size_t len;

	*skippable = 0;
	if (n < 8)
		return 0;
	magic = get_le32(data);
	if ((magic & ~15U) == SKIPPABLE_MAGIC) {
		*skippable = magic;
		return (int64_t)get_le32(data + 4) + 8;
	}
	if (magic != ZSTD_MAGIC)
		return -EBADMSG;
	len = ZSTD_findFrameCompressedSize(data, n);
	if (!ZSTD_isError(len))
		return len <= FRAME_PACKED_MAX ? (int64_t)len : -EBADMSG;
	/* Too short and malformed are one error here; no frame of ours is longer than this. */
	return n < FRAME_PACKED_MAX ? 0 : -EBADMSG;
}

/* Content of a frame as frame_store() makes them, or NULL for any other. */
static const unsigned char *
stored_content(const unsigned char *p, size_t n, size_t *len)
{
	uint32_t block;

	if (n < STORED_HEADER + CHECKSUM || p[4] != STORED_DESCRIPTOR)
		return NULL;
	block = p[9] | (uint32_t)p[10] << 8 | (uint32_t)p[11] << 16;
	*len = get_le32(p + 5);
	if (*len > FRAME_RAW_MAX || block != (uint32_t)(*len << 3 | 1) ||
	    n != STORED_HEADER + *len + CHECKSUM)
		return NULL;
	return p + STORED_HEADER;
}

bool
frame_is_stored(const unsigned char *packed, size_t n)
{
	size_t len;

	return stored_content(packed, n, &len) != NULL;
}

int64_t
frame_unpack(const unsigned char *packed, size_t n, unsigned char *out,
    const unsigned char **content)
{
	ZSTD_DCtx *dctx;
	unsigned long long size;
	size_t len;

	*content = stored_content(packed, n, &len);
	if (*content != NULL) {
		if ((uint32_t)XXH64(*content, len, 0) != frame_checksum(packed, n))
			return -EBADMSG;
		return (int64_t)len;
	}
	size = ZSTD_getFrameContentSize(packed, n);
	/* No checksum, no size, or a dictionary: not a frame of an image. */
	if (n < 9 || size > FRAME_RAW_MAX || size == 0 || (packed[4] & 0x07) != 0x04)
		return -EBADMSG;
	dctx = decompressor();
	if (dctx == NULL)
		return -ENOMEM;
	len = ZSTD_decompressDCtx(dctx, out, FRAME_RAW_MAX, packed, n);
	if (ZSTD_isError(len) || len != size)
		return -EBADMSG;
	*content = out;
	return (int64_t)len;
}

size_t
frame_content_length(const unsigned char *packed, size_t n)
{
	unsigned long long size = ZSTD_getFrameContentSize(packed, n);

	return size <= FRAME_RAW_MAX ? (size_t)size : 0;
}

uint32_t
frame_checksum(const unsigned char *packed, size_t n)
{
	return n < CHECKSUM ? 0 : get_le32(packed + n - CHECKSUM);
}

void
seek_table_add(struct buf *table, uint32_t packed_len, uint32_t raw_len)
{
	buf_put_u32(table, packed_len);
	buf_put_u32(table, raw_len);
}

void
seek_table_finish(struct buf *out, const struct buf *table)
{
	buf_put_u32(out, SEEK_TABLE_MAGIC);
	buf_put_u32(out, (uint32_t)table->len + SEEK_FOOTER);
	buf_put(out, table->data, table->len);
	buf_put_u32(out, (uint32_t)(table->len / SEEK_ENTRY));
	buf_put_u8(out, 0); /* entries without checksums: the frames have theirs */
	buf_put_u32(out, SEEK_FOOTER_MAGIC);
	out->failed |= table->failed;
}

int64_t
seek_table_count(const unsigned char footer[SEEK_FOOTER])
{
	return footer[4] == 0 && get_le32(footer + 5) == SEEK_FOOTER_MAGIC ? (int64_t)get_le32(footer) : -EBADMSG;
}

void
control_put(struct buf *out, enum control type, uint32_t padding)
{
	buf_put_u32(out, CONTROL_MAGIC);
	buf_put_u32(out, CONTROL_HEADER - 8 + padding);
	buf_put(out, "pms\1", 4);
	buf_put_u32(out, type);
}

int
control_get(const unsigned char *data, size_t n)
{
	uint32_t type;

	if (n < CONTROL_HEADER || get_le32(data) != CONTROL_MAGIC ||
	    memcmp(data + 8, "pms\1", 4) != 0)
		return -EBADMSG;
	type = get_le32(data + 12);
	if (type < CONTROL_ACK || type > CONTROL_END)
		return -EBADMSG;
	return (int)type;
}
