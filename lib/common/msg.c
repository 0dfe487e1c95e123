#include "msg.h"

#include <errno.h>
#include <string.h>

static const struct {
	const char *name;
	uint64_t max;
	enum msg_side sender;
	enum msg_state state, next;
} messages[] = {
#define MSG(n, name, max, sender, state, next)                                                 \
	[n] = {#name, max, SIDE_##sender, STATE_##state, STATE_##next},
#include "msg.def"
#undef MSG
};

void
msg_put_header(struct buf *b, enum msg_type type, uint32_t id, uint64_t length)
{
	buf_put_u8(b, (uint8_t)type);
	buf_put_u8(b, (uint8_t)((unsigned)type >> 8));
	buf_put_u8(b, 0);
	buf_put_u8(b, 0);
	buf_put_u32(b, id);
	buf_put_u64(b, length);
}

int
msg_get_header(struct msg_header *h, const unsigned char bytes[MSG_HEADER])
{
	struct rbuf r = {bytes, MSG_HEADER, 0, false};
	uint32_t word = rbuf_get_u32(&r);

	h->type = word & 0xffff;
	h->flags = word >> 16;
	h->id = rbuf_get_u32(&r);
	h->length = rbuf_get_u64(&r);
	return r.failed || h->flags != 0 ? -EPROTO : 0;
}

int
msg_step(enum msg_state *state, enum msg_side from, const struct msg_header *h)
{
	if (h->type >= ARRAY_LEN(messages) || messages[h->type].name == NULL ||
	    h->length > messages[h->type].max || *state == STATE_DONE)
		return -EPROTO;
	if (messages[h->type].sender != from && messages[h->type].sender != SIDE_BOTH)
		return -EPROTO;
	if (messages[h->type].state != *state && messages[h->type].state != STATE_ANY)
		return -EPROTO;
	*state = messages[h->type].next;
	return 0;
}

enum msg_side
msg_other(enum msg_side side)
{
	static const enum msg_side other[] = {[SIDE_CKPT] = SIDE_RESTART, [SIDE_RESTART] = SIDE_CKPT, [SIDE_CALLER] = SIDE_HOME,
	    [SIDE_HOME] = SIDE_CALLER, [SIDE_USER] = SIDE_KEEPER, [SIDE_KEEPER] = SIDE_USER};

	return other[side];
}

bool
msg_is_hello(const unsigned char *data, size_t n)
{
	static const unsigned char hello[4] = {MSG_HELLO, 0, 0, 0};

	return n >= 4 && memcmp(data, hello, 4) == 0;
}

void
msg_put_hello(struct buf *b)
{
	buf_put(b, MSG_MAGIC, 8);
	buf_put_u32(b, MSG_VERSION);
	buf_put_u32(b, 0);
}

int
msg_get_hello(const unsigned char *body, size_t len)
{
	struct rbuf r = {body, len, 0, false};
	const void *magic = rbuf_get(&r, 8);
	uint32_t version = rbuf_get_u32(&r);

	if (r.failed || memcmp(magic, MSG_MAGIC, 8) != 0 || version != MSG_VERSION)
		return -EPROTO;
	return 0;
}
