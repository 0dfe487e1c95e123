#include "sock.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <linux/sockios.h>
#include <unistd.h>

#include "io.h"
#include "log.h"

/* --- sock_diag(7) */

static int
ask_for_all(int fd)
{
	struct {
		struct nlmsghdr head;
		struct unix_diag_req req;
	} msg = {.head = {sizeof(msg), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 0, 0},
	    .req = {.sdiag_family = AF_UNIX, .udiag_states = UINT32_MAX,
		.udiag_show = UDIAG_SHOW_PEER | UDIAG_SHOW_ICONS | UDIAG_SHOW_RQLEN}};

	return send(fd, &msg, sizeof(msg), 0) == sizeof(msg) ? 0 : -errno;
}

static int
add_pending(struct unix_socket *u, const uint32_t *inos, size_t n)
{
	u->pending = calloc(n + 1, sizeof(*u->pending));
	if (u->pending == NULL)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++)
		u->pending[i] = inos[i];
	u->npending = n;
	return 0;
}

static int
take_one(const struct nlmsghdr *h, struct unix_socket **list, size_t *n)
{
	const struct unix_diag_msg *m = NLMSG_DATA(h);
	struct unix_socket *u = ARRAY_ADD(*list, *n);
	const struct rtattr *a = (const struct rtattr *)(m + 1);
	int left = (int)(h->nlmsg_len - NLMSG_LENGTH(sizeof(*m))), err = 0;

	if (u == NULL)
		return -ENOMEM;
	u->ino = m->udiag_ino;
	u->state = m->udiag_state;
	for (; RTA_OK(a, left) && err == 0; a = RTA_NEXT(a, left)) {
		const uint32_t *v = RTA_DATA(a);

		if (a->rta_type == UNIX_DIAG_PEER)
			u->peer = *v;
		else if (a->rta_type == UNIX_DIAG_SHUTDOWN)
			u->shutdown = *(const uint8_t *)v;
		else if (a->rta_type == UNIX_DIAG_ICONS)
			err = add_pending(u, v, RTA_PAYLOAD(a) / sizeof(*v));
		else if (a->rta_type == UNIX_DIAG_RQLEN && m->udiag_state == TCP_LISTEN)
			u->waiting = v[0], u->backlog = v[1];
	}
	return err;
}

int
sock_list_unix(struct unix_socket **list, size_t *n)
{
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
	int err = fd < 0 ? -errno : ask_for_all(fd);
	char *buf = malloc(64 << 10);
	bool done = buf == NULL;

	*list = NULL;
	*n = 0;
	if (buf == NULL)
		err = -ENOMEM;
	while (err == 0 && !done) {
		ssize_t got = recv(fd, buf, 64 << 10, 0);
		const struct nlmsghdr *h = (const struct nlmsghdr *)buf;

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			err = got < 0 ? -errno : -EIO;
		for (; err == 0 && NLMSG_OK(h, got) && !done; h = NLMSG_NEXT(h, got)) {
			done = h->nlmsg_type == NLMSG_DONE;
			if (h->nlmsg_type == NLMSG_ERROR)
				err = -ENOTSUP;
			else if (!done)
				err = take_one(h, list, n);
		}
	}
	close_fd(&fd);
	free(buf);
	if (err < 0)
		sock_free_unix(*list, *n);
	return err;
}

void
sock_free_unix(struct unix_socket *list, size_t n)
{
	for (size_t i = 0; i < n; i++)
		free(list[i].pending);
	free(list);
}

/* --- addresses and options */

enum { WAIT_MS = 3000 };

int
sock_connect(int fd, const struct bytes *to)
{
	int flags = fcntl(fd, F_GETFL), err = 0;
	struct pollfd p = {fd, POLLOUT, 0};

	fcntl(fd, F_SETFL, flags | O_NONBLOCK);
	if (connect(fd, (const struct sockaddr *)to->p, (socklen_t)to->n) < 0)
		err = -errno;
	if (err == -EINPROGRESS)
		err = poll(&p, 1, WAIT_MS) == 1 ? -sock_option(fd, SOL_SOCKET, SO_ERROR) : -ETIMEDOUT;
	fcntl(fd, F_SETFL, flags);
	return err;
}

int
sock_accept(int listening)
{
	struct pollfd p = {listening, POLLIN, 0};
	int fd = poll(&p, 1, WAIT_MS) == 1 ? accept4(listening, NULL, NULL, SOCK_CLOEXEC) : -1;

	return fd >= 0 ? fd : p.revents == 0 ? -ETIMEDOUT : -errno;
}

int
sock_option(int fd, int level, int name)
{
	int value = -1;
	socklen_t n = sizeof(value);

	return getsockopt(fd, level, name, &value, &n) < 0 ? -1 : value;
}

int
sock_name(int fd, bool remote, struct bytes *out)
{
	struct sockaddr_storage addr;
	socklen_t n = sizeof(addr);

	if ((remote ? getpeername : getsockname)(fd, (struct sockaddr *)&addr, &n) < 0)
		return 0;
	n = n > sizeof(addr) ? (socklen_t)sizeof(addr) : n;
	/* One without a name has a family all the same. */
	if (n <= sizeof(sa_family_t))
		return 0;
	out->p = malloc(n);
	if (out->p == NULL)
		return -ENOMEM;
	memcpy(out->p, &addr, n);
	out->n = n;
	return 0;
}

void
sock_plain(const struct bytes *in, struct sockaddr_storage *out)
{
	const struct sockaddr_in6 *six = (const struct sockaddr_in6 *)in->p;
	struct sockaddr_in *four = (struct sockaddr_in *)out;

	memset(out, 0, sizeof(*out));
	if (in->n > 0)
		memcpy(out, in->p, min_u64(in->n, sizeof(*out)));
	if (in->n < sizeof(*six) || six->sin6_family != AF_INET6 || !IN6_IS_ADDR_V4MAPPED(&six->sin6_addr))
		return;
	memset(out, 0, sizeof(*out));
	four->sin_family = AF_INET;
	four->sin_port = six->sin6_port;
	memcpy(&four->sin_addr, &six->sin6_addr.s6_addr[12], 4);
}

bool
sock_same_address(const struct bytes *a, const struct bytes *b)
{
	struct sockaddr_storage x, y;

	sock_plain(a, &x);
	sock_plain(b, &y);
	return a->n > 0 && b->n > 0 && memcmp(&x, &y, sizeof(x)) == 0;
}

int
sock_port(const struct bytes *a)
{
	return a->n >= sizeof(struct sockaddr_in) ? ntohs(((const struct sockaddr_in *)a->p)->sin_port) : 0;
}

enum families { FOR_0 = 1, FOR_UNIX = 2, FOR_INET = 4, FOR_TCP = 8, FOR_UDP = 16 };

static const struct option_row {
	int families, level, name;
	socklen_t bytes;
	const char *text;
} rows[] = {
#define SOCK_OPTION(family, level, name, bytes) {FOR_##family, level, name, bytes, #name},
#include "sock.def"
#undef SOCK_OPTION
};

static int
families_of(const struct socket_ref *s)
{
	int f = FOR_0 | (s->family == AF_UNIX ? FOR_UNIX : FOR_INET);

	if (s->family == AF_UNIX)
		return f;
	return f | (s->type == SOCK_STREAM ? FOR_TCP : FOR_UDP);
}

bool
sock_option_known(const struct socket_ref *s, const struct socket_option *o)
{
	if (o->level == SOL_SOCKET && (o->name == SO_SNDBUF || o->name == SO_RCVBUF))
		return o->value.n == 4;
	for (size_t i = 0; i < ARRAY_LEN(rows); i++)
		if ((rows[i].families & families_of(s)) && rows[i].level == o->level && rows[i].name == o->name)
			return o->value.n > 0 && o->value.n <= rows[i].bytes;
	return false;
}

static int
add_option(struct socket_ref *s, const struct option_row *row, const unsigned char *value, socklen_t n)
{
	struct socket_option *o = ARRAY_ADD(s->options, s->noptions);

	if (o == NULL)
		return -ENOMEM;
	*o = (struct socket_option){row->level, row->name, {malloc(n), n}};
	if (o->value.p == NULL)
		return -ENOMEM;
	memcpy(o->value.p, value, n);
	return 0;
}

/* Buffers count only where the program has set them: SOCK_SNDBUF_LOCK and SOCK_RCVBUF_LOCK (5.15). */
#ifndef SO_BUF_LOCK
#define SO_BUF_LOCK 72
#endif
static int
add_buffers(int fd, struct socket_ref *s)
{
	static const struct option_row buffers[] = {{0, SOL_SOCKET, SO_SNDBUF, 4, ""}, {0, SOL_SOCKET, SO_RCVBUF, 4, ""}};
	int locked = sock_option(fd, SOL_SOCKET, SO_BUF_LOCK), err = 0;

	for (int i = 0; i < 2 && err == 0 && locked > 0; i++) {
		int value = sock_option(fd, SOL_SOCKET, buffers[i].name) / 2; /* the kernel doubles what it is given */

		if (locked >> i & 1)
			err = add_option(s, &buffers[i], (unsigned char *)&value, sizeof(value));
	}
	return err;
}

static int
get_options(int fd, struct socket_ref *s)
{
	int fresh = socket((int)s->family, (int)s->type | SOCK_CLOEXEC, (int)s->protocol);
	int err = 0, families = families_of(s);

	for (size_t i = 0; i < ARRAY_LEN(rows) && err == 0; i++) {
		unsigned char value[16] = {0}, usual[16] = {0};
		socklen_t n = rows[i].bytes, m = rows[i].bytes;

		if (!(rows[i].families & families) || getsockopt(fd, rows[i].level, rows[i].name, value, &n) < 0)
			continue;
		if (fresh >= 0 && getsockopt(fresh, rows[i].level, rows[i].name, usual, &m) == 0 &&
		    memcmp(value, usual, sizeof(value)) == 0)
			continue;
		err = add_option(s, &rows[i], value, n);
	}
	close_fd(&fresh);
	return err < 0 ? err : add_buffers(fd, s);
}

int
sock_describe(int fd, ino_t ino, struct socket_ref *s)
{
	s->id = ino;
	s->family = sock_option(fd, SOL_SOCKET, SO_DOMAIN);
	s->type = sock_option(fd, SOL_SOCKET, SO_TYPE);
	s->protocol = sock_option(fd, SOL_SOCKET, SO_PROTOCOL);
	s->peer = -1;
	return get_options(fd, s);
}

void
sock_set_options(int fd, const struct socket_ref *s, const char *object)
{
	for (size_t i = 0; i < s->noptions; i++) {
		const struct socket_option *o = &s->options[i];

		if (setsockopt(fd, (int)o->level, (int)o->name, o->value.p, (socklen_t)o->value.n) < 0)
			note("%s: socket option %d of level %d cannot be set: %s", object, (int)o->name, (int)o->level,
			    strerror(errno));
	}
}

/* --- queues */

enum { PEEK_MAX = 1 << 20, FDS_MAX = 253 /* SCM_MAX_FD */, PACKETS_MAX = 65536 };

/* Which fds are on their way with it. */
static int
take_fds(struct msghdr *m, struct packet *p, int64_t (*ofd_of)(void *ctx, int fd), void *ctx)
{
	int err = 0;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c != NULL; c = CMSG_NXTHDR(m, c)) {
		size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t i = 0; i < n; i++) {
			int64_t ofd, *out = ARRAY_ADD(p->ofds, p->nofds);
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
			ofd = out == NULL ? -ENOMEM : err < 0 ? err : ofd_of(ctx, fd);
			if (out != NULL)
				*out = ofd;
			err = ofd < 0 ? (int)ofd : err;
			close(fd);
		}
	}
	return err;
}

/* Room for one message, and what may come with it. */
struct message {
	union {
		char space[CMSG_SPACE(FDS_MAX * sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec iov;
	struct msghdr head;
};

/* Look at up to len bytes from offset on, which datagrams and TCP do without. */
static ssize_t
peek_at(int fd, bool offsets, int offset, char *buf, size_t len, struct message *m)
{
	ssize_t n;

	if (offsets && setsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &offset, sizeof(offset)) < 0)
		return -errno;
	m->iov = (struct iovec){buf, len};
	m->head = (struct msghdr){.msg_iov = &m->iov, .msg_iovlen = 1, .msg_control = m->control.space,
	    .msg_controllen = sizeof(m->control.space)};
	do
		n = recvmsg(fd, &m->head, MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : n;
}

static void
drop_fds(struct msghdr *m)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c != NULL; c = CMSG_NXTHDR(m, c))
		for (size_t i = 0; c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS &&
		     i < (c->cmsg_len - CMSG_LEN(0)) / sizeof(int); i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
			close(fd);
		}
}

static int
add_packet(struct socket_ref *s, const char *buf, size_t n, struct msghdr *m,
    int64_t (*ofd_of)(void *ctx, int fd), void *ctx)
{
	struct packet *p = ARRAY_ADD(s->queue, s->nqueue);

	if (p == NULL || (p->data.p = malloc(n)) == NULL)
		return -ENOMEM;
	memcpy(p->data.p, buf, n);
	p->data.n = n;
	return take_fds(m, p, ofd_of, ctx);
}

/*
 * A stream is seen across messages up to and with the first that brings fds, as one large read would get it; where
 * in it that message begins the kernel does not show.
 */
static int
peek_all(int fd, char *buf, struct socket_ref *s, int64_t (*ofd_of)(void *ctx, int fd), void *ctx)
{
	bool offsets = s->family == AF_UNIX;
	int offset = 0, err = 0;

	while (err == 0 && s->nqueue < PACKETS_MAX) {
		struct message m;
		ssize_t n = peek_at(fd, offsets, offset, buf, PEEK_MAX, &m);

		/* Of no length: an offset does not lead past it. */
		if (n == 0 && s->type != SOCK_STREAM && !(s->shutdown & 1))
			return -EMSGSIZE;
		if (n <= 0)
			return n == 0 || n == -EAGAIN || n == -ENOTCONN ? 0 : (int)n;
		err = add_packet(s, buf, (size_t)n, &m.head, ofd_of, ctx);
		offset += (int)n;
		/* Without an offset the same would be seen again. */
		if (!offsets)
			break;
	}
	return err;
}

int
sock_peek(int fd, struct socket_ref *s, int64_t (*ofd_of)(void *ctx, int fd), void *ctx)
{
	char *buf = malloc(PEEK_MAX);
	int before = sock_option(fd, SOL_SOCKET, SO_PEEK_OFF), err;
	struct message m = {.head = {.msg_controllen = 0}};

	if (buf == NULL)
		return -ENOMEM;
	/* Mostly there is nothing, and then the socket is left as it is. */
	if (peek_at(fd, false, 0, buf, 1, &m) == -EAGAIN) {
		free(buf);
		return 0;
	}
	drop_fds(&m.head);
	err = peek_all(fd, buf, s, ofd_of, ctx);
	if (s->family == AF_UNIX)
		setsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &before, sizeof(before));
	free(buf);
	return err;
}

static int
send_one(int far, const struct packet *p, const int *fds)
{
	union {
		char space[CMSG_SPACE(FDS_MAX * sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec iov = {p->data.p, p->data.n};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
	struct cmsghdr *c;
	ssize_t n;

	if (p->nofds > 0) {
		memset(&control, 0, sizeof(control));
		m.msg_control = control.space;
		m.msg_controllen = CMSG_SPACE(p->nofds * sizeof(int));
		c = CMSG_FIRSTHDR(&m);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(p->nofds * sizeof(int));
		for (size_t i = 0; i < p->nofds; i++)
			memcpy(CMSG_DATA(c) + i * sizeof(int), &fds[p->ofds[i]], sizeof(int));
	}
	do
		n = sendmsg(far, &m, MSG_DONTWAIT | MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : (size_t)n < p->data.n ? -EMSGSIZE : 0;
}

int
sock_send(int far, const struct socket_ref *s, const int *fds)
{
	int before = sock_option(far, SOL_SOCKET, SO_SNDBUF), room = 64 << 20, err = 0;

	if (s->nqueue == 0)
		return 0;
	/* Small messages take more room than they are long. Force takes CAP_NET_ADMIN. */
	if (setsockopt(far, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof(room)) < 0)
		setsockopt(far, SOL_SOCKET, SO_SNDBUF, &room, sizeof(room));
	for (size_t i = 0; i < s->nqueue && err == 0; i++)
		err = send_one(far, &s->queue[i], fds);
	before /= 2;
	if (setsockopt(far, SOL_SOCKET, SO_SNDBUFFORCE, &before, sizeof(before)) < 0)
		setsockopt(far, SOL_SOCKET, SO_SNDBUF, &before, sizeof(before));
	return err;
}
