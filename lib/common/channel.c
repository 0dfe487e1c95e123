#include "channel.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "io.h"
#include "log.h"

void
channel_init(struct channel *ch, enum msg_side side, int in, int out, const char *peer)
{
	*ch = (struct channel){in, out, side, STATE_START, peer, 0};
}

static int
broken(const struct channel *ch, int err, const char *what)
{
	return fail(err, "%s: %s", ch->peer, what);
}

int
channel_send(struct channel *ch, enum msg_type type, const void *body, size_t len)
{
	struct msg_header h = {type, 0, 0, len};
	struct buf b = {0};
	int err;

	if (msg_step(&ch->state, ch->side, &h) < 0)
		return broken(ch, EPROTO, "a message out of order"); /* our own mistake */
	msg_put_header(&b, type, 0, len);
	err = b.failed ? -ENOMEM : write_full(ch->out, b.data, b.len);
	if (err == 0 && len > 0)
		err = write_full(ch->out, body, len);
	buf_fini(&b);
	if (err == -EINTR)
		return broken(ch, EINTR, "interrupted");
	return err < 0 ? fail(ECONNRESET, "%s: the connection is lost: %s", ch->peer, strerror(-err)) : 0;
}

/* The next header, checked. */
static int
get_header(struct channel *ch, struct msg_header *h)
{
	unsigned char bytes[MSG_HEADER];
	ssize_t n = read_full(ch->in, bytes, sizeof(bytes));
	enum msg_side other = msg_other(ch->side);

	if (n < 0)
		return fail((int)-n, "%s: %s", ch->peer, strerror((int)-n));
	if (n < MSG_HEADER)
		return broken(ch, ECONNRESET, n == 0 ? "ended without an answer" : "ended in mid-message");
	if (msg_get_header(h, bytes) < 0 || msg_step(&ch->state, other, h) < 0)
		return broken(ch, EPROTO, "does not speak the protocol, or not in order");
	return 0;
}

/* The other side's last words. */
static int
told_failed(struct channel *ch, const struct msg_header *h)
{
	char text[1025];
	ssize_t n = read_full(ch->in, text, h->length);

	text[n > 0 ? n : 0] = '\0';
	return fail(EREMOTEIO, "%s: failed there: %s", ch->peer, text);
}

int
channel_expect(struct channel *ch, enum msg_type type, void *body, size_t len, size_t *got)
{
	struct msg_header h;
	int err = get_header(ch, &h);

	if (err < 0)
		return err;
	if (h.type == MSG_FAILED)
		return told_failed(ch, &h);
	if (h.type != type || h.length > len)
		return broken(ch, EPROTO, "an answer to something else");
	if (read_full(ch->in, body, h.length) != (ssize_t)h.length)
		return broken(ch, ECONNRESET, "ended in mid-message");
	if (got != NULL)
		*got = h.length;
	return 0;
}

void
channel_fail(struct channel *ch, const char *why)
{
	if (ch->state == STATE_DONE)
		return;
	log_hush(1);
	channel_send(ch, MSG_FAILED, why, min_u64(strlen(why), 1024));
	log_hush(-1);
}

ssize_t
channel_read_data(struct channel *ch, void *data, size_t len)
{
	ssize_t n;

	while (ch->data_left == 0) {
		struct msg_header h;
		int err;

		if (ch->state != STATE_IMAGE)
			return 0;
		err = get_header(ch, &h);
		if (err < 0)
			return err;
		if (h.type == MSG_FAILED)
			return told_failed(ch, &h);
		if (h.type == MSG_DATA)
			ch->data_left = h.length;
	}
	do
		n = read(ch->in, data, min_u64(len, ch->data_left));
	while (n < 0 && errno == EINTR);
	if (n <= 0)
		return broken(ch, n < 0 ? errno : ECONNRESET, "the image breaks off");
	ch->data_left -= (uint64_t)n;
	return n;
}

bool
channel_pending(const struct channel *ch)
{
	struct pollfd p = {ch->in, POLLIN, 0};

	return poll(&p, 1, 0) > 0;
}
