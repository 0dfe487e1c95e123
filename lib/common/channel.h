/*
 * channel: frames over a pair of fds, with the protocol's state kept on both sides.
 */
#ifndef PMS_CHANNEL_H
#define PMS_CHANNEL_H

#include <sys/types.h>

#include "msg.h"

struct channel {
	int in, out; /* borrowed */
	enum msg_side side; /* ours */
	enum msg_state state;
	const char *peer;   /* borrowed, for messages */
	uint64_t data_left; /* of the DATA frame that is being read */
};

void channel_init(struct channel *ch, enum msg_side side, int in, int out, const char *peer);

/* Send a frame. Returns 0, or a negative errno, logged. */
int channel_send(struct channel *ch, enum msg_type type, const void *body, size_t len);

/*
 * Wait for `type`; its body goes to body (len bytes or fewer, *got). FAILED from the other side is
 * logged with its text and -EREMOTEIO. Returns 0, or a negative errno, logged.
 */
int channel_expect(struct channel *ch, enum msg_type type, void *body, size_t len, size_t *got);

/* Tell the other side that it is over. Silent. */
void channel_fail(struct channel *ch, const char *why);

/* Content of DATA frames as one stream: a count, 0 at DATA_END, or a negative errno, logged. */
ssize_t channel_read_data(struct channel *ch, void *data, size_t len);

/* Has the other side said something, or hung up? Does not wait. */
bool channel_pending(const struct channel *ch);

#endif
