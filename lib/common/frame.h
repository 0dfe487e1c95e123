/*
 * frame: zstd frames of at most FRAME_RAW_MAX bytes of content each, every one with its
 * content size and its checksum, so that each can be packed, checked and unpacked by
 * itself and in parallel; and the skippable frames in which a stream talks about itself.
 * Pure: from buffer to buffer.
 *
 * Source: RFC 8878; zstd_seekable_compression_format.md of the zstd distribution.
 */
#ifndef PMS_FRAME_H
#define PMS_FRAME_H

#include "base.h"
#include "buf.h"

#define FRAME_RAW_MAX (64u << 10)  /* at most 128 KiB, what a single raw block can hold; a page that is needed waits for a whole frame */
#define FRAME_HEAD 16              /* room in front of the content for the header of a stored frame */
#define FRAME_PACKED_MAX (FRAME_RAW_MAX + 1024)

/*
 * One frame. The content is at raw(); packed points to the whole frame, in one of the two
 * buffers. Allocated by the user.
 */
struct frame {
	size_t raw_len;
	const unsigned char *packed;
	size_t packed_len;
	int err;
	_Alignas(16) unsigned char store[FRAME_HEAD + FRAME_RAW_MAX + 16];
	unsigned char other[FRAME_PACKED_MAX];
};

static inline unsigned char *
frame_raw(struct frame *f)
{
	return f->store + FRAME_HEAD;
}

/*
 * Pack the content (raw_len bytes at frame_raw(), at least one). level 0 stores it: a frame
 * of one raw block, without a copy. Returns 0, or -EIO.
 */
int frame_pack(struct frame *f, int level);

/*
 * What begins at data? Returns the length of the whole frame, 0 where more bytes are needed to
 * say, or -EBADMSG. A skippable frame sets *skippable to its magic number and may
 * be told before its content is there; its length is then what its header claims.
 */
int64_t frame_length(const unsigned char *data, size_t n, uint32_t *skippable);

/*
 * Unpack one whole frame, checking it. *content is inside packed (a stored frame) or at out
 * (FRAME_RAW_MAX bytes). Returns the content's length, or -EBADMSG.
 */
int64_t frame_unpack(const unsigned char *packed, size_t n, unsigned char *out,
    const unsigned char **content);

/* Is this frame, which frame_length() has measured, a stored one, cheap to unpack? */
bool frame_is_stored(const unsigned char *packed, size_t n);

/* Length of the content of a frame that frame_unpack() has accepted. */
size_t frame_content_length(const unsigned char *packed, size_t n);

/* The last four bytes of a packed frame: what its content sums up to. */
uint32_t frame_checksum(const unsigned char *packed, size_t n);

/* The seek table: one entry a frame, skippable frames counted with no content. */
#define SEEK_TABLE_MAGIC 0x184D2A5EU
void seek_table_add(struct buf *table, uint32_t packed_len, uint32_t raw_len);
/* Wrap the entries into the frame that stands at the end of an image. */
void seek_table_finish(struct buf *out, const struct buf *table);
enum { SEEK_ENTRY = 8, SEEK_FOOTER = 9 };
/* The last SEEK_FOOTER bytes of an image: number of entries, or -EBADMSG. */
int64_t seek_table_count(const unsigned char footer[SEEK_FOOTER]);

/* Control frames of pms, skipped by every other reader of zstd. */
#define CONTROL_MAGIC 0x184D2A5CU
enum control {
	CONTROL_ACK = 1, /* in front of an image: tail and END follow, wait for END */
	CONTROL_TAIL,    /* behind an image: padding */
	CONTROL_END,     /* the original has ended: run */
};
#define CONTROL_HEADER 16 /* skippable header (8), "pms" + version, type */
/* Append the first CONTROL_HEADER bytes of a control frame with `padding` bytes to follow. */
void control_put(struct buf *out, enum control type, uint32_t padding);
/* Type of a control frame from its first CONTROL_HEADER bytes, or -EBADMSG. */
int control_get(const unsigned char *data, size_t n);

#endif
