/*
 * frame_input: the frames of a stream in order, fetched and unpacked ahead by several
 * threads, and what the stream says about itself between and behind them.
 */
#ifndef PMS_FRAME_INPUT_H
#define PMS_FRAME_INPUT_H

#include <sys/types.h>

#include "base.h"
#include "frame.h"

struct unpacked {
	const unsigned char *content; /* valid until the next frame_input_next() */
	size_t content_len;
	const unsigned char *packed;
	size_t packed_len;
};

struct frame_input;

/* See image_reader_new(). */
struct frame_input *frame_input_new(ssize_t (*source)(void *, void *, size_t), void *ctx,
    const char *name);
void frame_input_free(struct frame_input *in);
int frame_input_threads(struct frame_input *in);

/* Returns 1 and the next frame, 0 at the end of the image (or of the stream), or a negative errno. */
int frame_input_next(struct frame_input *in, const struct unpacked **frame);

/* The negative errno that frame_input_next() returned, or 0. */
int frame_input_error(const struct frame_input *in);
/* Did the stream end without a seek table? */
bool frame_input_at_end(const struct frame_input *in);
bool frame_input_wants_end(const struct frame_input *in);

/* Behind the last frame: the seek table must stand here. Returns 0, or a negative errno, logged. */
int frame_input_finish(struct frame_input *in);

/* See image_await_end(). */
int frame_input_await_end(struct frame_input *in);

#endif
