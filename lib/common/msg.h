/*
 * msg: frames of the wire protocol and the states in which each is permitted. Pure.
 *
 * A frame is type (2 bytes), flags (2), request id (4), body length (8), then the body; all
 * little-endian.
 */
#ifndef PMS_MSG_H
#define PMS_MSG_H

#include "buf.h"

#define MSG_HEADER 16
#define MSG_VERSION 1
#define MSG_MAGIC "pms-wire"

enum msg_type {
#define MSG(n, name, max, sender, state, next) MSG_##name = n,
#include "msg.def"
#undef MSG
};

enum msg_side { SIDE_CKPT, SIDE_RESTART, SIDE_CALLER, SIDE_HOME, SIDE_USER, SIDE_KEEPER, SIDE_BOTH };

enum msg_state {
	STATE_START, STATE_HELLO_SENT, STATE_IMAGE, STATE_BUILDING, STATE_PARKED, STATE_GOING,
	STATE_ASKED, STATE_ADOPTING, STATE_CALLS, STATE_ATTACHING, STATE_PAGES, STATE_ASKING, STATE_DONE, STATE_ANY
};

struct msg_header {
	unsigned type, flags;
	uint32_t id;
	uint64_t length;
};

void msg_put_header(struct buf *b, enum msg_type type, uint32_t id, uint64_t length);

/*
 * Check a header that `from` has sent in *state, and go on to the next state.
 * Returns 0, or -EPROTO with *state unchanged.
 */
int msg_step(enum msg_state *state, enum msg_side from, const struct msg_header *h);
int msg_get_header(struct msg_header *h, const unsigned char bytes[MSG_HEADER]);

/* The one at the other end. */
enum msg_side msg_other(enum msg_side side);

/* Do these first bytes of a stream begin a HELLO? */
bool msg_is_hello(const unsigned char *data, size_t n);

/* Body of HELLO, WELCOME and CALLS, and how FACTS begins: magic, version, features (none yet). */
void msg_put_hello(struct buf *b);
int msg_get_hello(const unsigned char *body, size_t len);

#endif
