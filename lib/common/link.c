#include "link.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "io.h"
#include "log.h"
#include "tls.h"

enum { READ_AHEAD = 64 << 10, ABSORB_MAX = 64 << 20, ABSORB_ALONE_MAX = 512 << 20, PATIENCE_MS = 2000 };

void
link_init(struct link *l, int in, int out, const char *peer)
{
	*l = (struct link){.in = in, .out = out, .urgent = -1, .peer = strdup(peer), .lock = PTHREAD_MUTEX_INITIALIZER};
	fcntl(in, F_SETFD, FD_CLOEXEC);
	fcntl(out, F_SETFD, FD_CLOEXEC);
	fcntl(in, F_SETFL, fcntl(in, F_GETFL) | O_NONBLOCK);
	fcntl(out, F_SETFL, fcntl(out, F_GETFL) | O_NONBLOCK);
}

void
link_close(struct link *l)
{
	tls_free(l->tls);
	l->tls = NULL;
	if (l->out != l->in)
		close_fd(&l->out);
	close_fd(&l->in);
	l->out = -1;
	if (l->helper > 0)
		waitpid(l->helper, NULL, 0); /* it ends with its stdin */
	l->helper = 0;
	buf_fini(&l->input);
	free(l->peer);
	l->peer = NULL;
}

int
link_move_up(struct link *l, int min)
{
	bool one = l->in == l->out;

	l->in = fd_move_up(l->in, min);
	l->out = one ? l->in : fd_move_up(l->out, min);
	if (l->in < 0 || l->out < 0)
		return -EMFILE;
	return l->tls != NULL ? tls_set_fd(l->tls, l->in) : 0;
}

void
link_start(struct link *l, enum msg_side side)
{
	l->side = side;
	l->state = STATE_START;
}

/* Once; afterwards everybody finds out silently. */
static int
broken(struct link *l, int err, const char *what)
{
	if (!l->broken)
		fail(err, "%s: %s", l->peer != NULL ? l->peer : "peer", what);
	l->broken = true;
	return -err;
}

static void
wait_for(int fd, short events, int timeout_ms)
{
	struct pollfd p = {fd, events, 0};

	poll(&p, 1, timeout_ms);
}

/* For what is to come. If it takes long, l->urgent ends it. Returns 0 or -EINTR. */
static int
wait_to_read(struct link *l, int timeout_ms)
{
	struct pollfd p[2] = {{l->in, POLLIN, 0}, {l->urgent, POLLIN, 0}};

	if (timeout_ms >= 0 || l->urgent < 0 || poll(p, 1, PATIENCE_MS) > 0) {
		if (timeout_ms >= 0 || l->urgent < 0)
			poll(p, 1, timeout_ms);
		return 0;
	}
	poll(p, 2, -1);
	return p[0].revents == 0 && p[1].revents != 0 ? -EINTR : 0;
}

/* Whatever has come, up to READ_AHEAD bytes or what is wanted. Returns the count, 0 at the end, -EAGAIN, or a negative errno. The lock is held. */
static ssize_t
fill(struct link *l, size_t want)
{
	size_t room = max_u64(want, READ_AHEAD), most;
	struct buf *b = &l->input;
	ssize_t n;

	if (l->taken > 0 && l->taken == b->len)
		b->len = l->taken = 0;
	/* As little is moved as can be: what is missing of a frame fits, or there is some room. */
	if (b->cap - b->len < (want > 0 ? want : READ_AHEAD / 4)) {
		size_t left = b->len - l->taken;
		unsigned char *p = malloc(max_u64(2 * left, left + room));

		if (p == NULL)
			return -ENOMEM;
		if (left > 0)
			memcpy(p, b->data + l->taken, left);
		free(b->data);
		b->data = p;
		b->cap = max_u64(2 * left, left + room);
		b->len = left;
		l->taken = 0;
	}
	most = min_u64(room, b->cap - b->len);
	do
		n = l->tls != NULL ? tls_read(l->tls, b->data + b->len, most) : read(l->in, b->data + b->len, most);
	while (n < 0 && l->tls == NULL && errno == EINTR);
	if (n < 0 && l->tls == NULL)
		n = -errno;
	if (n > 0)
		b->len += (size_t)n;
	return n;
}

/* --- sending */

/* Some of the two pieces. */
static ssize_t
send_some(struct link *l, const struct iovec piece[2])
{
	ssize_t n;

	if (l->tls != NULL)
		return tls_write(l->tls, piece[piece[0].iov_len == 0].iov_base, piece[piece[0].iov_len == 0].iov_len);
	n = writev(l->out, piece, 2);
	return n < 0 ? -errno : n;
}

static void
consume(struct iovec piece[2], size_t n)
{
	for (int i = 0; i < 2; i++) {
		size_t done = min_u64(n, piece[i].iov_len);

		piece[i].iov_base = (char *)piece[i].iov_base + done;
		piece[i].iov_len -= done;
		n -= done;
	}
}

static int
send_all(struct link *l, struct iovec piece[2])
{
	while (piece[0].iov_len + piece[1].iov_len > 0) {
		ssize_t n = send_some(l, piece);
		bool absorb = l->alone ? l->input.len - l->taken < ABSORB_ALONE_MAX : l->side == SIDE_CALLER && l->input.len - l->taken < ABSORB_MAX;
		struct pollfd p[3] = {{l->out, POLLOUT, 0}, {absorb ? l->in : -1, POLLIN, 0}, {l->alone ? l->urgent : -1, POLLIN, 0}};

		if (n > 0) {
			consume(piece, (size_t)n);
			continue;
		}
		if (n != -EAGAIN && n != -EINTR)
			return (int)(n == 0 ? -EPIPE : n);
		poll(p, 3, -1);
		if (p[2].revents != 0)
			return -EINTR;
		/* The other side may be stuck the same way, until we take what it sends. */
		if (p[1].revents != 0 && (n = fill(l, 0)) <= 0 && n != -EAGAIN)
			return n == 0 ? -ECONNRESET : (int)n;
	}
	return 0;
}

int
link_send_parts(struct link *l, enum msg_type type, uint32_t id, struct buf *b, const void *tail, size_t tail_len)
{
	struct msg_header h = {type, 0, id, b->len - MSG_HEADER + tail_len};
	struct iovec piece[2] = {{b->data, b->len}, {(void *)tail, tail_len}};
	struct buf head = {0};
	int err;

	if (b->failed)
		return fail(ENOMEM, "out of memory");
	pthread_mutex_lock(&l->lock);
	msg_put_header(&head, type, id, h.length);
	err = head.failed ? -ENOMEM : msg_step(&l->state, l->side, &h);
	if (err == 0)
		memcpy(b->data, head.data, MSG_HEADER);
	buf_fini(&head);
	if (l->broken || l->mute)
		err = -ECONNRESET;
	else if (err < 0)
		err = fail(EPROTO, "%s: a message out of order", l->peer); /* our own mistake */
	/* What the other end has said before it went is still to be read by the one who is alone. */
	if (err == 0 && (err = send_all(l, piece)) < 0) {
		err = l->alone ? -ECONNRESET : broken(l, ECONNRESET, "the connection is lost");
		l->mute = true;
	}
	pthread_mutex_unlock(&l->lock);
	return err;
}

int
link_send_buf(struct link *l, enum msg_type type, uint32_t id, struct buf *b)
{
	return link_send_parts(l, type, id, b, NULL, 0);
}

int
link_send(struct link *l, enum msg_type type, uint32_t id, const void *body, size_t len)
{
	static const unsigned char room[MSG_HEADER];
	struct buf b = {0};
	int err;

	buf_put(&b, room, sizeof(room));
	buf_put(&b, body, len);
	err = link_send_buf(l, type, id, &b);
	buf_fini(&b);
	return err;
}

void
link_fail(struct link *l, const char *why)
{
	log_hush(1);
	if (l->state != STATE_DONE && !l->broken)
		link_send(l, MSG_FAILED, 0, why, min_u64(strlen(why), 1024));
	log_hush(-1);
}

/* --- receiving */

bool
link_waiting(struct link *l)
{
	return l->input.len > l->taken || (l->tls != NULL && tls_pending(l->tls));
}

/* Is the next frame there? Its state is stepped when it is there whole. 1 yes, 0 no (*want: as much more), or -EPROTO. */
static int
complete(struct link *l, struct msg_header *h, size_t *want)
{
	size_t have = l->input.len - l->taken;
	enum msg_state state = l->state;

	*want = 0;
	if (have < MSG_HEADER)
		return 0;
	/* What it says is checked before as much is waited for. */
	if (msg_get_header(h, l->input.data + l->taken) < 0 || msg_step(&state, msg_other(l->side), h) < 0)
		return -EPROTO;
	if (have - MSG_HEADER < h->length) {
		*want = h->length - (have - MSG_HEADER);
		return 0;
	}
	l->state = state;
	return 1;
}

static int
told_failed(struct link *l, const struct msg_header *h, const unsigned char *body)
{
	char text[1025];

	memcpy(text, body, h->length);
	text[h->length] = '\0';
	for (size_t i = 0; i < h->length; i++)
		text[i] = text[i] >= 0 && text[i] < 32 ? ' ' : text[i];
	l->broken = true;
	return fail(EREMOTEIO, "%s: failed there: %s", l->peer, text);
}

/* One look, with the lock held. */
static int
try_receive(struct link *l, struct msg_header *h, const unsigned char **body)
{
	size_t want;
	ssize_t n;
	int err;

	while ((err = complete(l, h, &want)) == 0) {
		n = fill(l, want);
		if (n == -EAGAIN)
			return -EAGAIN;
		if (n == 0 && l->input.len == l->taken) {
			l->broken = true;
			return -ECONNRESET;
		}
		if (n <= 0)
			return broken(l, ECONNRESET, n == 0 ? "the connection ended in mid-message" : "the connection is lost");
	}
	if (err < 0)
		return broken(l, EPROTO, "does not speak the protocol, or not in order");
	*body = l->input.data + l->taken + MSG_HEADER;
	l->taken += MSG_HEADER + h->length;
	return h->type == MSG_FAILED ? told_failed(l, h, *body) : 0;
}

int
link_receive(struct link *l, struct msg_header *h, const unsigned char **body, bool wait, int64_t deadline)
{
	for (;;) {
		int err;
		int64_t left = deadline == 0 ? -1 : max_i64(0, deadline - now_ms());

		pthread_mutex_lock(&l->lock);
		err = l->broken ? -ECONNRESET : try_receive(l, h, body);
		pthread_mutex_unlock(&l->lock);
		if (err != -EAGAIN || !wait)
			return err;
		if (left == 0) {
			l->broken = true;
			return fail(ETIMEDOUT, "%s: does not answer", l->peer);
		}
		if (wait_to_read(l, (int)left) < 0)
			return broken(l, EINTR, "does not answer; interrupted");
	}
}

int
link_begin_long(struct link *l, struct msg_header *h, size_t longer_than)
{
	enum msg_state state = l->state;
	int found = 0;

	pthread_mutex_lock(&l->lock);
	if (!l->broken && l->input.len - l->taken < MSG_HEADER)
		fill(l, 0); /* what is wrong shows when it is taken */
	if (!l->broken && l->input.len - l->taken >= MSG_HEADER && msg_get_header(h, l->input.data + l->taken) == 0 &&
	    msg_step(&state, msg_other(l->side), h) == 0 && h->length > longer_than &&
	    l->input.len - l->taken - MSG_HEADER < h->length) {
		l->state = state;
		l->taken += MSG_HEADER;
		found = 1;
	}
	pthread_mutex_unlock(&l->lock);
	return found;
}

/* Straight from the socket, if there is nothing before it. */
static ssize_t
pull_some(struct link *l, unsigned char *data, size_t len)
{
	size_t have = min_u64(l->input.len - l->taken, len);
	ssize_t n;

	if (have > 0) {
		memcpy(data, l->input.data + l->taken, have);
		l->taken += have;
		return (ssize_t)have;
	}
	n = l->tls != NULL ? tls_read(l->tls, data, len) : read(l->in, data, len);
	return n < 0 && l->tls == NULL ? -errno : n;
}

int
link_pull(struct link *l, void *data, size_t len)
{
	unsigned char *p = data;

	while (len > 0) {
		ssize_t n;

		pthread_mutex_lock(&l->lock);
		n = l->broken ? -ECONNRESET : pull_some(l, p, len);
		pthread_mutex_unlock(&l->lock);
		if (n == -EAGAIN || n == -EINTR) {
			if (wait_to_read(l, -1) < 0)
				return broken(l, EINTR, "does not answer; interrupted");
			continue;
		}
		if (n <= 0)
			return broken(l, ECONNRESET, "the connection ended in mid-message");
		p += n;
		len -= (size_t)n;
	}
	return 0;
}

int
link_handshake(struct link *l)
{
	int64_t deadline = now_ms() + LINK_HANDSHAKE_MS;

	for (;;) {
		int want = tls_handshake(l->tls);

		if (want <= 0)
			return want < 0 ? fail(EPROTO, "%s: no agreement on TLS: another key, or not pms", l->peer) : 0;
		if (now_ms() >= deadline)
			return fail(ETIMEDOUT, "%s: does not answer", l->peer);
		wait_for(l->in, want == TLS_WANTS_WRITE ? POLLOUT : POLLIN, (int)max_i64(0, deadline - now_ms()));
	}
}

int
link_secure(struct link *l, const char *key, bool server)
{
	int err = tls_new(&l->tls, key, l->in, server);

	return err < 0 ? err : link_handshake(l);
}
