/*
 * Calls and results as bytes.
 */
#include <errno.h>
#include <string.h>
#include <sys/syscall.h>

#include "calldata.h"

/* --- on the wire: number, then for each argument 0 and its value, 1 and its data, 2 and the length of the room, or 3 and that of one that may be filled in parts */

enum { VALUE, DATA, ROOM, PARTS };
enum { TAIL_MIN = 16 << 10, SLACK = 4096 };

void
calldata_put_call(struct buf *out, const struct calldata *c)
{
	buf_put_u32(out, (uint32_t)c->nr);
	for (unsigned i = 0; i < c->nargs; i++) {
		const struct calldata_arg *a = &c->arg[i];
		bool takes = calldata_takes(a) || calldata_is(a, "msgr");

		buf_put_u8(out, !a->is_data ? VALUE : takes ? DATA : c->parts && a->type[0] == 'r' ? PARTS : ROOM);
		buf_put_u64(out, a->is_data ? a->len : a->value);
		if (calldata_is(a, "msgr") && a->is_data)
			buf_put(out, c->data.data + a->value, CALLDATA_MSG);
		else if (a->is_data && takes)
			buf_put(out, c->data.data + a->value, a->len);
	}
}

/* Does the data that came for argument i hold all that the kernel will touch? */
static int
check_data(const struct calldata *c, unsigned i)
{
	const struct calldata_arg *a = &c->arg[i];
	const unsigned char *data;
	struct calldata_parts p;
	uint64_t len;

	if (!a->is_data)
		return 0;
	data = c->data.data + a->value;
	if (calldata_is(a, "s"))
		return a->len > 0 && a->len <= CALLDATA_PATH_MAX && memchr(data, '\0', a->len) == data + a->len - 1 ? 0 : -EPROTO;
	if (calldata_is_iov(a))
		return 0;
	if (calldata_is_msg(a)) {
		if (a->len < CALLDATA_MSG)
			return -EPROTO;
		p = calldata_parts(data);
		return p.name <= CALLDATA_ADDRESS_MAX && p.control <= CALLDATA_CONTROL_MAX && p.all == a->len ? 0 : -EPROTO;
	}
	return calldata_wanted(c, i, &len) == 0 && len <= a->len && a->len - len <= SLACK ? 0 : -EPROTO;
}

int
calldata_check(const struct calldata *c)
{
	int err = 0;

	for (unsigned i = 0; i < c->nargs && err == 0; i++)
		err = check_data(c, i);
	return err;
}

/* Argument i as it came. What is not a pointer is a value; what is one has data or is NULL. */
static int
get_arg(struct calldata *c, unsigned i, struct rbuf *r)
{
	struct calldata_arg *a = &c->arg[i];
	uint8_t form = rbuf_get_u8(r);
	uint64_t value = rbuf_get_u64(r);
	bool msgr = calldata_is(a, "msgr"), takes = calldata_takes(a) || msgr;
	const void *data;
	int err;

	if (form == PARTS && a->type[0] == 'r' && (c->nr == SYS_read || c->nr == SYS_pread64)) {
		c->parts = true;
		form = ROOM;
	}
	if (r->failed || form != (form == VALUE ? VALUE : takes ? DATA : ROOM))
		return -EPROTO;
	if (form == VALUE) {
		a->value = value;
		return calldata_pointer(a) && value != 0 ? -EPROTO : 0;
	}
	if (!calldata_pointer(a) || value > CALLDATA_MAX + CALLDATA_CONTROL_MAX + 4096)
		return -EPROTO;
	if (form == ROOM)
		return calldata_put(c, i, NULL, value);
	data = rbuf_get(r, msgr ? CALLDATA_MSG : value);
	if (data == NULL || (msgr && value < CALLDATA_MSG))
		return -EPROTO;
	err = calldata_put(c, i, msgr ? NULL : data, value);
	if (err == 0 && msgr)
		memcpy(c->data.data + a->value, data, CALLDATA_MSG);
	return err;
}

int
calldata_get_call(struct calldata *c, const unsigned char *body, size_t len)
{
	struct rbuf r = {body, len, 0, false};
	uint32_t nr = rbuf_get_u32(&r);
	int err;

	*c = (struct calldata){0};
	if (r.failed)
		return -EPROTO;
	err = calldata_init(c, (long)min_u64(nr, INT32_MAX));
	for (unsigned i = 0; i < c->nargs && err == 0; i++) {
		err = c->arg[i].type[0] == '@' ? calldata_resolve(c) : 0;
		if (err == 0)
			err = get_arg(c, i, &r);
	}
	if (err == 0)
		err = calldata_check(c);
	return err < 0 || (!r.failed && rbuf_left(&r) == 0) ? err : -EPROTO;
}

void
calldata_put_result(struct buf *out, const struct calldata *c, int64_t result, const void **tail, size_t *tail_len)
{
	unsigned last = 0;

	*tail = NULL;
	*tail_len = 0;
	for (unsigned i = 0; i < c->nargs; i++)
		if (c->arg[i].is_data && calldata_gives(&c->arg[i]))
			last = i;
	buf_put_u64(out, (uint64_t)result);
	for (unsigned i = 0; i < c->nargs; i++) {
		size_t n = calldata_given(c, i, result);

		if (!c->arg[i].is_data || !calldata_gives(&c->arg[i]))
			continue;
		buf_put_u64(out, n);
		if (i == last && n >= TAIL_MIN) {
			*tail = c->data.data + c->arg[i].value;
			*tail_len = n;
		} else {
			buf_put(out, c->data.data + c->arg[i].value, n);
		}
	}
}

/* Nobody is told that he has got more than he has room for, by a call that says how much it has given. */
static bool
believable(const struct calldata *c, int64_t result)
{
	size_t room = 0;
	bool counts = false;

	for (unsigned i = 0; i < c->nargs; i++)
		if (c->arg[i].is_data && c->arg[i].len > 0 && (c->arg[i].type[0] == 'r' || strncmp(c->arg[i].type, "iovr", 4) == 0)) {
			counts = true;
			room = c->arg[i].len;
		}
	/* MSG_TRUNC asks for the true length. */
	return !counts || c->nr == SYS_recvfrom || result < 0 || (uint64_t)result <= room;
}

int
calldata_get_result(struct calldata *c, const unsigned char *body, size_t len, int64_t *result)
{
	struct rbuf r = {body, len, 0, false};
	uint64_t came[6] = {0};

	*result = (int64_t)rbuf_get_u64(&r);
	if (!r.failed && rbuf_left(&r) == 0 && *result < 0 && *result >= -4095)
		return 0; /* nothing was given, whatever there was room for */
	for (unsigned i = 0; i < c->nargs; i++) {
		const struct calldata_arg *a = &c->arg[i];
		const void *data;
		uint64_t n;

		if (!a->is_data || !calldata_gives(a))
			continue;
		n = rbuf_get_u64(&r);
		if (n > a->len || (data = rbuf_get(&r, n)) == NULL)
			return -EPROTO;
		if (n > 0)
			memcpy(c->data.data + a->value, data, n);
		came[i] = n;
	}
	/* What it says to have given must have come. */
	for (unsigned i = 0; i < c->nargs; i++)
		if (came[i] < calldata_given(c, i, *result) && !calldata_is_msg(&c->arg[i]))
			return -EPROTO;
	if (!believable(c, *result))
		return -EPROTO;
	return r.failed || rbuf_left(&r) > 0 ? -EPROTO : 0;
}
