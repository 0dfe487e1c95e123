/*
 * TCP connections to others (CAP_NET_ADMIN): TCP_REPAIR tells where they stand and sets it in a new socket, while a
 * netlock holds back what would be answered in between. See ARCHITECTURE.md, "Connections to others".
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "io.h"
#include "kind.h"
#include "log.h"
#include "netlock.h"

/* tcpi_state; include/net/tcp_states.h */
enum { ESTABLISHED = 1, SYN_SENT, SYN_RECV, FIN_WAIT1, FIN_WAIT2, TIME_WAIT, CLOSED, CLOSE_WAIT, LAST_ACK, LISTENING,
	CLOSING };
enum { REPAIR_ON = 1, REPAIR_OFF = 0, REPAIR_OFF_QUIETLY = -1 };
enum { NO_QUEUE, RECV_QUEUE, SEND_QUEUE };
/* Codes of struct tcp_repair_opt: those of the options in a packet. */
enum { OPT_MSS = 2, OPT_WINDOW = 3, OPT_SACK_PERMITTED = 4, OPT_TIMESTAMP = 8 };
#define TCP_ULP_ 31

enum { HELD_MS = 10000, ADDRESS_TRIES_MS = 3000, PIECE = 1 << 20, PUSHED = 32 << 10, MAXSEG_MOST = 32767 };

static int
set_repair(int fd, int how)
{
	return setsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &how, sizeof(how)) < 0 ? -errno : 0;
}

/* Tried on a socket that is nobody's. */
static bool
can_repair(int family)
{
	int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	bool can = fd >= 0 && set_repair(fd, REPAIR_ON) == 0;

	close_fd(&fd);
	return can;
}

bool
kind_tcp_takes(const struct kind_save *s, int fd)
{
	if (!kind_inet_outside(s, fd))
		return false;
	for (size_t i = 0; i < s->nrules; i++)
		if (s->rules[i].ino == 0 || (s->rules[i].socket && s->rules[i].ino == s->st.st_ino))
			return false;
	/* As stdin and the like it has restart's in its place. */
	return s->fd > 2 || can_repair(AF_INET);
}

static bool
match(const struct kind_save *s)
{
	int fd = S_ISSOCK(s->st.st_mode) ? kind_get_fd(s) : -1;
	bool mine = fd >= 0 && kind_tcp_takes(s, fd);

	close_fd(&fd);
	return mine;
}

/* --- ckpt */

/* All of them at once, before the first is looked at: from here on nothing more comes. */
static int
hold_one(struct kind_save *s, const struct held *h)
{
	struct kind_save other = *s;
	struct bytes local = {0}, remote = {0};
	int fd = S_ISSOCK(h->st.st_mode) ? kind_held_fd(h) : -1, err = 0;

	other.pid = h->pid, other.fd = h->fd, other.pidfd = h->pidfd, other.st = h->st;
	if (fd >= 0 && kind_tcp_takes(&other, fd)) {
		err = sock_name(fd, false, &local);
		if (err == 0)
			err = sock_name(fd, true, &remote);
		if (err == 0 && remote.n > 0)
			err = netlock_hold(s->shared->netlock, &local, &remote);
		if (err == 0 && remote.n > 0)
			err = netlock_guard(s->shared->netlock, fd);
	}
	free(local.p);
	free(remote.p);
	close_fd(&fd);
	return err;
}

static int
hold_all(struct kind_save *s)
{
	int err;

	if (s->shared->netlock != NULL)
		return 0;
	err = netlock_begin(&s->shared->netlock, s->image_id, HELD_MS, true);
	for (size_t i = 0; i < s->nheld && err == 0; i++)
		err = hold_one(s, &s->held[i]);
	return err < 0 ? err : netlock_commit(s->shared->netlock);
}

static int
add_pieces(struct packet **list, size_t *n, const unsigned char *data, size_t len)
{
	for (size_t at = 0; at < len; at += PIECE) {
		size_t piece = min_u64(PIECE, len - at);
		struct packet *p = ARRAY_ADD(*list, *n);

		if (p == NULL || (p->data.p = malloc(piece)) == NULL)
			return -ENOMEM;
		memcpy(p->data.p, data + at, piece);
		p->data.n = piece;
	}
	return 0;
}

/* What is in one of the queues, and the number behind its end. */
static int
read_queue(int fd, int which, size_t len, struct packet **list, size_t *n, uint64_t *end)
{
	unsigned char *data = malloc(len + 1);
	uint32_t seq;
	socklen_t size = sizeof(seq);
	ssize_t got = 0;
	int err = data == NULL ? -ENOMEM : 0;

	if (err == 0 && (setsockopt(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, &which, sizeof(which)) < 0 ||
			    getsockopt(fd, IPPROTO_TCP, TCP_QUEUE_SEQ, &seq, &size) < 0))
		err = -errno;
	/* More room than there should be: what does not agree shows. */
	if (err == 0 && len > 0 && (got = recv(fd, data, len + 1, MSG_PEEK | MSG_DONTWAIT)) != (ssize_t)len)
		err = got < 0 ? -errno : -EAGAIN;
	if (err == 0)
		err = add_pieces(list, n, data, len);
	*end = seq;
	free(data);
	return err;
}

static int
read_options(int fd, struct tcp_ref *t)
{
	struct tcp_info info;
	struct tcp_repair_window w;
	uint32_t mss, stamp = 0;
	socklen_t n = sizeof(info), m = sizeof(w), k = sizeof(mss), l = sizeof(stamp);

	if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &n) < 0 ||
	    getsockopt(fd, IPPROTO_TCP, TCP_REPAIR_WINDOW, &w, &m) < 0 ||
	    getsockopt(fd, IPPROTO_TCP, TCP_MAXSEG, &mss, &k) < 0)
		return -errno;
	t->timestamps = (info.tcpi_options & TCPI_OPT_TIMESTAMPS) != 0;
	t->sack = (info.tcpi_options & TCPI_OPT_SACK) != 0;
	t->snd_wscale = info.tcpi_options & TCPI_OPT_WSCALE ? info.tcpi_snd_wscale : -1;
	t->rcv_wscale = info.tcpi_options & TCPI_OPT_WSCALE ? info.tcpi_rcv_wscale : -1;
	if (t->timestamps && getsockopt(fd, IPPROTO_TCP, TCP_TIMESTAMP, &stamp, &l) < 0)
		return -errno;
	t->timestamp = stamp;
	t->mss = mss;
	t->snd_wl1 = w.snd_wl1, t->snd_wnd = w.snd_wnd, t->max_window = w.max_window;
	t->rcv_wnd = w.rcv_wnd, t->rcv_wup = w.rcv_wup;
	return 0;
}

/* In repair mode. Numbers count the end of a direction (FIN) as a byte, and the length of what is unacknowledged too. */
static int
read_state(int fd, int state, struct tcp_ref *t, struct socket_ref *k)
{
	struct pollfd p = {fd, POLLRDHUP, 0};
	int in = 0, out = 0, unsent = 0, err;
	uint64_t received, written;

	t->sent_fin = state == FIN_WAIT1 || state == FIN_WAIT2 || state == CLOSING || state == LAST_ACK;
	t->got_fin = poll(&p, 1, 0) > 0 && (p.revents & POLLRDHUP) != 0; /* also where that was told by shutdown(2) alone */
	if (ioctl(fd, SIOCINQ, &in) < 0 || ioctl(fd, SIOCOUTQ, &out) < 0 || ioctl(fd, SIOCOUTQNSD, &unsent) < 0)
		return -errno;
	out -= t->sent_fin && out > 0;
	unsent -= t->sent_fin && unsent > 0;
	err = read_queue(fd, RECV_QUEUE, (size_t)in, &k->queue, &k->nqueue, &received);
	if (err == 0)
		err = read_queue(fd, SEND_QUEUE, (size_t)out, &t->out, &t->nout, &written);
	if (err < 0)
		return err;
	t->recv_seq = (uint32_t)(received - (uint64_t)in);
	t->send_seq = (uint32_t)(written - t->sent_fin - (uint64_t)out);
	t->unsent = (uint64_t)unsent;
	return read_options(fd, t);
}

static int
tcp_state(int fd)
{
	struct tcp_info info;
	socklen_t n = sizeof(info);

	return getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &n) < 0 ? CLOSED : info.tcpi_state;
}

/* What cannot be, or is not to be, repaired. */
static int
check(struct kind_save *s, int fd, struct tcp_ref *t, const struct socket_ref *k)
{
	char text[64], ulp[16] = "";
	socklen_t n = sizeof(ulp);
	int state = tcp_state(fd);

	kind_inet_text(&k->remote, text);
	t->closed = s->tcp_reset || s->stays;
	if (t->closed)
		return report_add(s->report, LOSS, 0, s->object, NULL, "its connection to %s %s: it will find it reset", text,
		    s->stays ? "stays with the original" : "is closed");
	if (!can_repair((int)k->family))
		return report_add(s->report, OBSTACLE, 77, s->object,
		    "run ckpt as root (CAP_NET_ADMIN); or --tcp=close to have it reset; or --external=inherit, drop or reopen",
		    "connected by TCP to %s, which is outside", text);
	if (state == SYN_SENT || state == SYN_RECV)
		return report_add(s->report, OBSTACLE, 75, s->object, "try again in a moment", "it is being connected to %s", text);
	if (k->protocol != 0 && k->protocol != IPPROTO_TCP)
		return report_add(s->report, OBSTACLE, 69, s->object, "--tcp=close to have it reset",
		    "connected to %s by MPTCP", text);
	if (getsockopt(fd, IPPROTO_TCP, TCP_ULP_, ulp, &n) == 0 && n > 0 && ulp[0] != '\0')
		return report_add(s->report, OBSTACLE, 69, s->object, "--tcp=close to have it reset",
		    "connected to %s through the kernel's %s", text, ulp);
	return 0;
}

static int
repair_and_read(struct kind_save *s, int fd, struct tcp_ref *t, struct socket_ref *k)
{
	int err = hold_all(s), off;

	if (err == 0)
		err = set_repair(fd, REPAIR_ON);
	if (err < 0)
		return err;
	err = read_state(fd, tcp_state(fd), t, k);
	off = set_repair(fd, REPAIR_OFF_QUIETLY);
	return err < 0 ? err : off;
}

static int
save(struct kind_save *s, struct ofd *ofd)
{
	struct objects *o = s->objects;
	struct socket_ref k = {0}, *sock = ARRAY_ADD(o->sockets, o->nsockets);
	struct tcp_ref t = {.socket = (int64_t)o->nsockets - 1}, *tcp = ARRAY_ADD(o->tcps, o->ntcps);
	size_t index = o->ntcps - 1;
	int fd = kind_get_fd(s), err = sock == NULL || tcp == NULL ? -ENOMEM : fd < 0 ? fd : 0;

	ofd->ref = (int64_t)index;
	ofd->path = strdup(s->link);
	ofd->flags &= O_ACCMODE | O_NONBLOCK | O_ASYNC;
	if (err == 0)
		err = sock_describe(fd, s->st.st_ino, &k);
	if (err == 0)
		err = sock_name(fd, false, &k.local);
	if (err == 0)
		err = sock_name(fd, true, &k.remote);
	k.state = SOCKET_CONNECTED;
	if (err == 0)
		err = check(s, fd, &t, &k);
	if (err == 0 && !t.closed && !s->look_only)
		err = repair_and_read(s, fd, &t, &k);
	if (sock != NULL)
		o->sockets[t.socket] = k;
	if (tcp != NULL)
		o->tcps[index] = t;
	close_fd(&fd);
	return err < 0 && err != -ENOTSUP ? fail(-err, "%s: %s: %s", s->object, s->link, strerror(-err)) : err;
}

/* The original is about to end, and its connection is to go on: nobody is told. */
static void
leave(const struct objects *o, const struct ofd *ofd, int fd)
{
	if (!o->tcps[ofd->ref].closed)
		set_repair(fd, REPAIR_ON);
}

/* --- restart */

static int64_t
depends(const struct objects *o, const struct ofd *ofd, size_t n)
{
	return n > 0 ? -1 : kind_inet_listener(o, &o->sockets[o->tcps[ofd->ref].socket].local);
}

/* One end of a connection whose other end has reset it. */
static int
reset_socket(void)
{
	struct sockaddr_in any = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	struct linger reset = {1, 0};
	socklen_t n = sizeof(any);
	int listening = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int far = -1, err = 0;

	if (listening < 0 || fd < 0 || bind(listening, (struct sockaddr *)&any, sizeof(any)) < 0 || listen(listening, 1) < 0 ||
	    getsockname(listening, (struct sockaddr *)&any, &n) < 0 || connect(fd, (struct sockaddr *)&any, n) < 0)
		err = -errno;
	far = err == 0 ? sock_accept(listening) : -1;
	if (far >= 0)
		setsockopt(far, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
	else if (err == 0)
		err = far;
	close_fd(&far);
	close_fd(&listening);
	if (err < 0)
		close_fd(&fd);
	return err < 0 ? err : fd;
}

static int
hold_here(const struct kind_load *l, const struct socket_ref *k)
{
	int err = *l->netlock != NULL ? 0 : netlock_begin(l->netlock, l->image_id, l->moved ? HELD_MS : NETLOCK_KEPT_MS, false);

	return err < 0 ? err : netlock_hold(*l->netlock, &k->local, &k->remote);
}

/* A socket that late() connects: its addresses are the original's until that has ended. */
static int
load(const struct kind_load *l, const struct ofd *ofd)
{
	const struct tcp_ref *t = &l->objects->tcps[ofd->ref];
	const struct socket_ref *k = &l->objects->sockets[t->socket];
	char text[64], object[32];
	int fd, err = 0;

	if (l->check)
		return fcntl(l->null, F_DUPFD_CLOEXEC, 3);
	fd = inherited(l, l->lowest);
	if (fd >= 0)
		return fcntl(fd, F_DUPFD_CLOEXEC, 3);
	snprintf(object, sizeof(object), "fd %d", l->lowest);
	if (t->closed || l->tcp_reset) {
		fd = reset_socket();
	} else if (!can_repair((int)k->family)) {
		return fail(EPERM, "%s: its connection to %s can be taken up by root (CAP_NET_ADMIN); or --tcp=close to have it "
		    "reset, or --inherit %d=FD", object, kind_inet_text(&k->remote, text), l->lowest);
	} else {
		err = hold_here(l, k);
		fd = err < 0 ? err : socket((int)k->family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	}
	if (fd < 0)
		return err < 0 ? err : fail_errno("%s: socket", object);
	sock_set_options(fd, k, object);
	if (ofd->flags & O_NONBLOCK)
		fcntl(fd, F_SETFL, O_NONBLOCK);
	return fd;
}

static int
set_seq(int fd, int queue, uint64_t seq)
{
	uint32_t value = (uint32_t)seq;

	if (setsockopt(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, &queue, sizeof(queue)) < 0 ||
	    setsockopt(fd, IPPROTO_TCP, TCP_QUEUE_SEQ, &value, sizeof(value)) < 0)
		return -errno;
	return 0;
}

/* With an address that is not here yet, if need be: it goes on when that comes. */
static int
bind_repaired(int fd, const struct socket_ref *k)
{
	int on = 1;

	if (bind(fd, (const struct sockaddr *)k->local.p, (socklen_t)k->local.n) == 0)
		return 0;
	if (errno != EADDRNOTAVAIL)
		return -errno;
	if (setsockopt(fd, k->family == AF_INET6 ? IPPROTO_IPV6 : IPPROTO_IP, k->family == AF_INET6 ? IPV6_TRANSPARENT
	    : IP_TRANSPARENT, &on, sizeof(on)) < 0)
		return -EADDRNOTAVAIL;
	return bind(fd, (const struct sockaddr *)k->local.p, (socklen_t)k->local.n) < 0 ? -errno : 0;
}

static int
set_options(int fd, const struct tcp_ref *t)
{
	struct tcp_repair_opt opts[4];
	uint32_t stamp = (uint32_t)t->timestamp;
	unsigned n = 0;

	opts[n++] = (struct tcp_repair_opt){OPT_MSS, (uint32_t)t->mss};
	if (t->snd_wscale >= 0)
		opts[n++] = (struct tcp_repair_opt){OPT_WINDOW, (uint32_t)(t->snd_wscale | t->rcv_wscale << 16)};
	if (t->sack)
		opts[n++] = (struct tcp_repair_opt){OPT_SACK_PERMITTED, 0};
	if (t->timestamps)
		opts[n++] = (struct tcp_repair_opt){OPT_TIMESTAMP, 0};
	if (setsockopt(fd, IPPROTO_TCP, TCP_REPAIR_OPTIONS, opts, (socklen_t)(n * sizeof(*opts))) < 0)
		return -errno;
	if (t->timestamps && setsockopt(fd, IPPROTO_TCP, TCP_TIMESTAMP, &stamp, sizeof(stamp)) < 0)
		return -errno;
	return 0;
}

/* Bytes [from, to) of all packets; small pieces, as each becomes one buffer of the kernel. */
static int
push(int fd, const struct packet *list, size_t n, uint64_t from, uint64_t to)
{
	uint64_t at = 0;

	for (size_t i = 0; i < n; at += list[i].data.n, i++)
		while (from >= at && from < at + list[i].data.n && from < to) {
			size_t len = min_u64(PUSHED, min_u64(to, at + list[i].data.n) - from);
			ssize_t put = send(fd, list[i].data.p + (from - at), len, MSG_DONTWAIT | MSG_NOSIGNAL);

			if (put <= 0)
				return put < 0 ? -errno : -EIO;
			from += (uint64_t)put;
		}
	return from < to ? -EBADMSG : 0;
}

static uint64_t
total(const struct packet *list, size_t n)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < n; i++)
		sum += list[i].data.n;
	return sum;
}

/* Room for what is pushed; sock_set_options() says afterwards what the program wants. */
static void
make_room(int fd, uint64_t in, uint64_t out)
{
	int rcv = (int)(2 * in + (256 << 10)), snd = (int)(2 * out + (256 << 10)), none = 0;

	if (in > PUSHED)
		setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &rcv, sizeof(rcv));
	if (out > PUSHED)
		setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &snd, sizeof(snd));
	setsockopt(fd, SOL_SOCKET, 72 /* SO_BUF_LOCK: let the kernel choose again */, &none, sizeof(none));
}

static int
fill_queues(int fd, const struct tcp_ref *t, const struct socket_ref *k)
{
	struct tcp_repair_window w = {(uint32_t)t->snd_wl1, (uint32_t)t->snd_wnd, (uint32_t)t->max_window,
	    (uint32_t)t->rcv_wnd, (uint32_t)t->rcv_wup};
	uint64_t in = total(k->queue, k->nqueue), out = total(t->out, t->nout);
	int recv_queue = RECV_QUEUE, send_queue = SEND_QUEUE, none = NO_QUEUE, err = 0;

	make_room(fd, in, out);
	if (setsockopt(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, &recv_queue, sizeof(int)) < 0)
		return -errno;
	err = push(fd, k->queue, k->nqueue, 0, in);
	if (err == 0 && setsockopt(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, &send_queue, sizeof(int)) < 0)
		err = -errno;
	if (err == 0)
		err = push(fd, t->out, t->nout, 0, out - t->unsent);
	if (err == 0 && (setsockopt(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, &none, sizeof(int)) < 0 ||
			    setsockopt(fd, IPPROTO_TCP, TCP_REPAIR_WINDOW, &w, sizeof(w)) < 0))
		err = -errno;
	return err;
}

/* The original may take a moment to be dead. */
static int
connect_repaired(int fd, const struct tcp_ref *t, const struct socket_ref *k, bool moved)
{
	int64_t deadline = now_ms() + (moved ? ADDRESS_TRIES_MS : 0);
	int mss = (int)min_u64(t->mss, MAXSEG_MOST), none = 0, err = set_repair(fd, REPAIR_ON);

	if (err == 0)
		err = set_seq(fd, SEND_QUEUE, t->send_seq);
	if (err == 0)
		err = set_seq(fd, RECV_QUEUE, t->recv_seq);
	if (err == 0)
		err = bind_repaired(fd, k);
	/* The size of segments follows from it at once, and from the option only later. */
	if (err == 0)
		setsockopt(fd, IPPROTO_TCP, TCP_MAXSEG, &mss, sizeof(mss));
	while (err == 0 && connect(fd, (const struct sockaddr *)k->remote.p, (socklen_t)k->remote.n) < 0) {
		err = -errno;
		if (err != -EADDRNOTAVAIL || now_ms() >= deadline)
			break;
		poll(NULL, 0, 5);
		err = 0;
	}
	if (err == 0)
		setsockopt(fd, IPPROTO_TCP, TCP_MAXSEG, &none, sizeof(none));
	return err;
}

static bool
is_carried(const struct tcp_ref *t, int fd)
{
	int on = 0;
	socklen_t n = sizeof(on);

	/* Neither reset, nor inherited. */
	return !t->closed && getsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &on, &n) == 0 && on == REPAIR_ON;
}

static int
late(const struct objects *o, const struct ofd *ofd, int fd, const int *fds, bool moved)
{
	const struct tcp_ref *t = &o->tcps[ofd->ref];
	const struct socket_ref *k = &o->sockets[t->socket];
	char here[64], there[64];
	int err;

	(void)fds;
	if (t->closed || tcp_state(fd) != CLOSED || sock_option(fd, SOL_SOCKET, SO_ERROR) != 0)
		return 0; /* reset, or inherited */
	err = connect_repaired(fd, t, k, moved);
	if (err == 0)
		err = set_options(fd, t);
	if (err == 0)
		err = fill_queues(fd, t, k);
	return err < 0 ? fail(-err, "the connection from %s to %s cannot be taken up: %s", kind_inet_text(&k->local, here),
	    kind_inet_text(&k->remote, there), strerror(-err)) : 0;
}

/* Both directions, as far as they had been closed. A FIN that had been sent is sent once more, with the same number. */
static int
go_on(const struct objects *o, const struct ofd *ofd, int fd)
{
	const struct tcp_ref *t = &o->tcps[ofd->ref];
	const struct socket_ref *k = &o->sockets[t->socket];
	uint64_t out = total(t->out, t->nout);
	int err;

	if (!is_carried(t, fd))
		return 0;
	err = set_repair(fd, REPAIR_OFF);
	sock_set_options(fd, k, "socket");
	if (err == 0)
		err = push(fd, t->out, t->nout, out - t->unsent, out);
	if (err == 0 && t->got_fin)
		shutdown(fd, SHUT_RD);
	if (err == 0 && t->sent_fin)
		shutdown(fd, SHUT_WR);
	return err < 0 ? fail(-err, "%s: %s", ofd->path, strerror(-err)) : 0;
}

const struct kind kind_tcp = {.name = "TCP connection to others", .match = match, .save = save, .leave = leave,
    .depends = depends, .load = load, .late = late, .go_on = go_on};
