/*
 * TCP and UDP: listening and open sockets, and TCP connections with both ends inside. Those to others are
 * external.
 */
#include <arpa/inet.h>
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
#include "tcp_repair.h"

/* How long an address of the original may take to be free when that is dead. */
enum { ADDRESS_TRIES_MS = 3000 };

/* "127.0.0.1:80", for messages. */
const char *
kind_inet_text(const struct bytes *a, char text[64])
{
	struct sockaddr_storage x;
	char host[INET6_ADDRSTRLEN] = "?";

	sock_plain(a, &x);
	if (x.ss_family == AF_INET)
		inet_ntop(AF_INET, &((struct sockaddr_in *)&x)->sin_addr, host, sizeof(host));
	else
		inet_ntop(AF_INET6, &((struct sockaddr_in6 *)&x)->sin6_addr, host, sizeof(host));
	snprintf(text, 64, x.ss_family == AF_INET ? "%s:%d" : "[%s]:%d", host, sock_port(a));
	return text;
}

static bool
is_inet(int fd)
{
	int domain = sock_option(fd, SOL_SOCKET, SO_DOMAIN), type = sock_option(fd, SOL_SOCKET, SO_TYPE);

	return (domain == AF_INET || domain == AF_INET6) && (type == SOCK_STREAM || type == SOCK_DGRAM);
}

/* Is the other end of this connection one of the held sockets? */
static bool
peer_is_held(const struct kind_save *s, int fd)
{
	struct bytes local = {0}, remote = {0};
	bool found = false;

	sock_name(fd, false, &local);
	sock_name(fd, true, &remote);
	for (size_t i = 0; i < s->nheld && !found && remote.n > 0; i++) {
		struct bytes its_local = {0}, its_remote = {0};
		bool other = S_ISSOCK(s->held[i].st.st_mode) && s->held[i].st.st_ino != s->st.st_ino;
		int peer = other ? kind_held_fd(&s->held[i]) : -1;

		if (peer < 0)
			continue;
		if (is_inet(peer)) {
			sock_name(peer, false, &its_local);
			sock_name(peer, true, &its_remote);
			found = sock_same_address(&local, &its_remote) && sock_same_address(&remote, &its_local);
		}
		free(its_local.p);
		free(its_remote.p);
		close(peer);
	}
	free(local.p);
	free(remote.p);
	return found;
}

bool
kind_inet_outside(const struct kind_save *s, int fd)
{
	int state;

	if (!is_inet(fd))
		return false;
	if (sock_option(fd, SOL_SOCKET, SO_TYPE) == SOCK_DGRAM)
		return false;
	state = tcp_state(fd);
	return state != LISTENING && state != CLOSED && !peer_is_held(s, fd);
}

static bool
match(const struct kind_save *s)
{
	int fd = S_ISSOCK(s->st.st_mode) ? kind_get_fd(s) : -1;
	bool mine = fd >= 0 && is_inet(fd) && !kind_inet_outside(s, fd);

	close_fd(&fd);
	return mine;
}

static int
tell_datagrams(struct kind_save *s, int fd, const struct socket_ref *k)
{
	int in = 0;

	if (k->type != SOCK_DGRAM || ioctl(fd, FIONREAD, &in) < 0 || in == 0)
		return 0;
	return report_add(s->report, LOSS, 0, s->object, NULL, "datagrams that it has not read are lost");
}

static int
describe(struct kind_save *s, int fd, struct socket_ref *k)
{
	int state, err;

	err = sock_describe(fd, s->st.st_ino, k);
	if (err == 0)
		err = sock_name(fd, false, &k->local);
	if (err == 0)
		err = sock_name(fd, true, &k->remote);
	state = k->type == SOCK_STREAM ? tcp_state(fd) : CLOSED;
	k->state = state == LISTENING ? SOCKET_LISTENING : k->remote.n > 0 ? SOCKET_CONNECTED : SOCKET_OPEN;
	if (k->state == SOCKET_LISTENING) {
		struct tcp_info info;
		socklen_t n = sizeof(info);

		/* Of a listening socket tcpi_sacked is the longest queue, tcpi_unacked what waits in it. */
		if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &n) == 0)
			k->backlog = info.tcpi_sacked;
		if (err == 0 && info.tcpi_unacked > 0)
			err = report_add(s->report, LOSS, 0, s->object, NULL,
			    "%u connections that it has not accepted are lost", info.tcpi_unacked);
	}
	if (tcp_has_sent_fin(state))
		k->shutdown = 2;
	return err < 0 ? err : tell_datagrams(s, fd, k);
}

static int
save(struct kind_save *s, struct ofd *ofd)
{
	struct socket_ref k = {0}, *out = ARRAY_ADD(s->objects->sockets, s->objects->nsockets);
	size_t index = s->objects->nsockets - 1;
	int fd = kind_get_fd(s), err = out == NULL ? -ENOMEM : fd < 0 ? fd : describe(s, fd, &k);

	ofd->path = strdup(s->link);
	ofd->ref = (int64_t)index;
	ofd->flags &= O_ACCMODE | O_NONBLOCK | O_ASYNC;
	if (err == 0 && k.state == SOCKET_CONNECTED && k.type == SOCK_STREAM)
		err = sock_peek(fd, &k, NULL, NULL);
	if (out != NULL)
		s->objects->sockets[index] = k;
	close_fd(&fd);
	return err < 0 && err != -ENOTSUP ? fail(-err, "%s: %s: %s", s->object, s->link, strerror(-err)) : err;
}

/* How well a listening socket at this address takes connections to that one; 0: not at all. */
static int
takes(const struct bytes *listening, const struct bytes *to)
{
	struct sockaddr_storage l, t;

	sock_plain(listening, &l);
	sock_plain(to, &t);
	if (sock_port(listening) != sock_port(to))
		return 0;
	if (sock_same_address(listening, to))
		return 3;
	if (l.ss_family == AF_INET)
		return t.ss_family == AF_INET && ((struct sockaddr_in *)&l)->sin_addr.s_addr == htonl(INADDR_ANY) ? 2 : 0;
	return IN6_IS_ADDR_UNSPECIFIED(&((struct sockaddr_in6 *)&l)->sin6_addr) ? 1 : 0;
}

int64_t
kind_inet_listener(const struct objects *o, const struct bytes *local)
{
	int64_t best = -1;
	int how = 0;

	for (size_t i = 0; i < o->nofds; i++) {
		const struct socket_ref *k = o->ofds[i].kind == KIND_inet ? &o->sockets[o->ofds[i].ref] : NULL;

		if (k == NULL || k->state != SOCKET_LISTENING || takes(&k->local, local) <= how)
			continue;
		how = takes(&k->local, local);
		best = (int64_t)i;
	}
	return best;
}

/*
 * What one end has sent is in the queue of the other, unless that is full. (SIOCOUTQ would also count what has
 * arrived and is not yet acknowledged.)
 */
static int
check_arrived(struct kind_save *s, const struct socket_ref *peer)
{
	const struct held *h = s->held;
	struct tcp_info ours = {0}, theirs = {0};
	socklen_t n = sizeof(ours), m = sizeof(theirs);
	uint64_t missing = 0;
	int fd, peer_fd;

	while (!S_ISSOCK(h->st.st_mode) || h->st.st_ino != peer->id)
		h++;
	fd = kind_get_fd(s);
	peer_fd = kind_held_fd(h);
	if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &ours, &n) == 0 &&
	    getsockopt(peer_fd, IPPROTO_TCP, TCP_INFO, &theirs, &m) == 0)
		missing = ours.tcpi_bytes_sent - ours.tcpi_bytes_retrans - theirs.tcpi_bytes_received +
		    ours.tcpi_notsent_bytes;
	close_fd(&fd);
	close_fd(&peer_fd);
	if (missing == 0)
		return 0;
	return report_add(s->report, OBSTACLE, 75, s->object, "try again when the reader has caught up",
	    "%llu bytes that it has sent are still on their way", (unsigned long long)missing);
}

static int
refer(struct kind_save *s, struct ofd *ofd)
{
	struct objects *o = s->objects;
	struct socket_ref *k = &o->sockets[ofd->ref];

	for (size_t i = 0; i < o->nsockets && k->state == SOCKET_CONNECTED && k->type == SOCK_STREAM; i++)
		if ((int64_t)i != ofd->ref && o->sockets[i].family != AF_UNIX &&
		    sock_same_address(&k->local, &o->sockets[i].remote) && sock_same_address(&k->remote, &o->sockets[i].local))
			k->peer = (int64_t)i;
	if (k->peer < 0)
		return 0;
	k->accepted = kind_inet_listener(o, &k->local) >= 0 ||
	    (kind_inet_listener(o, &o->sockets[k->peer].local) < 0 && k->peer > ofd->ref);
	return check_arrived(s, &o->sockets[k->peer]);
}

/*
 * Both ends are about to go. With a reset nothing of the connection stays behind; else the end that is closed first
 * would keep its address for a minute (TIME_WAIT), and the new one could not have it.
 */
static void
leave(const struct objects *o, const struct ofd *ofd, int fd)
{
	const struct socket_ref *k = &o->sockets[ofd->ref];
	struct linger reset = {1, 0};

	if (k->type == SOCK_STREAM && k->peer >= 0)
		setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
}

/* --- restart */

static int64_t
depends(const struct objects *o, const struct ofd *ofd, size_t n)
{
	const struct socket_ref *k = &o->sockets[ofd->ref];

	if (n > 0 || k->state != SOCKET_CONNECTED || k->peer < 0)
		return -1;
	return kind_inet_listener(o, k->accepted ? &k->local : &o->sockets[k->peer].local);
}

static int
bind_to(int fd, const struct bytes *local)
{
	return bind(fd, (const struct sockaddr *)local->p, (socklen_t)local->n) < 0 ? -errno : 0;
}

/* Again and again for a while, as long as the address is taken; an errno that says so. */
static bool
again(int err, int64_t deadline)
{
	if ((err != -EADDRINUSE && err != -EADDRNOTAVAIL) || now_ms() >= deadline)
		return false;
	poll(NULL, 0, 20);
	return true;
}

static int
open_like(const struct socket_ref *k)
{
	int on = 1, fd = socket((int)k->family, (int)k->type | SOCK_CLOEXEC, (int)k->protocol);

	if (fd >= 0 && k->type == SOCK_STREAM)
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	return fd < 0 ? -errno : fd;
}

/* The end that connected, and the one that accepted it, over the loopback as before. */
static int
connect_pair(const struct kind_load *l, const struct socket_ref *from, const struct socket_ref *to, int ends[2])
{
	int64_t at = kind_inet_listener(l->objects, &to->local), deadline = now_ms() + ADDRESS_TRIES_MS;
	int listening = at >= 0 ? fcntl(l->fds[at], F_DUPFD_CLOEXEC, 3) : open_like(to), err = 0;

	if (listening < 0)
		return -EBADF;
	if (at < 0) {
		while (again(err = bind_to(listening, &to->local), deadline))
			;
		if (err == 0 && listen(listening, 1) < 0)
			err = -errno;
	}
	while (err == 0) {
		close_fd(&ends[0]);
		ends[0] = open_like(from);
		err = ends[0] < 0 ? ends[0] : bind_to(ends[0], &from->local);
		if (err == 0)
			err = sock_connect(ends[0], &from->remote);
		if (err == 0 || !again(err, deadline))
			break;
		err = 0;
	}
	if (err == 0) {
		ends[1] = sock_accept(listening);
		err = ends[1] < 0 ? ends[1] : 0;
	}
	close(listening);
	return err;
}

static int
load_connected(const struct kind_load *l, int64_t i)
{
	const struct socket_ref *k = &l->objects->sockets[i], *peer;
	char here[64], there[64];
	int ends[2] = {-1, -1}, fd, err;

	if (l->sockets[i] >= 0) { /* made together with its peer */
		fd = l->sockets[i];
		l->sockets[i] = -1;
		return fd;
	}
	peer = &l->objects->sockets[k->peer];
	err = k->accepted ? connect_pair(l, peer, k, ends) : connect_pair(l, k, peer, ends);
	if (err < 0) {
		close_fd(&ends[0]);
		close_fd(&ends[1]);
		return fail(-err, "fd %d: the connection from %s to %s cannot be made again: %s%s", l->lowest,
		    kind_inet_text(&k->local, here), kind_inet_text(&k->remote, there), strerror(-err),
		    l->moved && err == -EADDRNOTAVAIL ? " (on the same host the original has it until it ends: "
						       "ckpt -o FILE, then restart FILE)" : "");
	}
	fd = ends[k->accepted];
	l->sockets[k->peer] = ends[!k->accepted];
	l->far[i] = fcntl(ends[!k->accepted], F_DUPFD_CLOEXEC, 3);
	l->far[k->peer] = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	return fd;
}

/* Bound, and listening or (datagrams) connected. */
static int
take_place(const struct socket_ref *k, int fd)
{
	int err = k->local.n > 0 && (sock_port(&k->local) != 0 || k->state == SOCKET_LISTENING)
	    ? bind_to(fd, &k->local) : 0;

	if (err == 0 && k->state == SOCKET_LISTENING && listen(fd, (int)k->backlog) < 0)
		err = -errno;
	return err == 0 && k->state == SOCKET_CONNECTED ? sock_connect(fd, &k->remote) : err;
}

static bool
has_place(const struct socket_ref *k, int fd)
{
	struct bytes here = {0};
	bool same;

	if (k->local.n == 0)
		return true;
	same = sock_name(fd, false, &here) == 0 && sock_port(&here) == sock_port(&k->local);
	free(here.p);
	return same;
}

static int
load_single(const struct kind_load *l, const struct socket_ref *k)
{
	int fd = open_like(k), err;
	char text[64], object[32];

	if (fd < 0)
		return fail(-fd, "fd %d: socket: %s", l->lowest, strerror(-fd));
	snprintf(object, sizeof(object), "fd %d", l->lowest);
	sock_set_options(fd, k, object);
	err = take_place(k, fd);
	/* The original has it, and ends before this one begins: late() tries again. */
	if (err == -EADDRINUSE && l->moved)
		err = 0;
	if (err < 0) {
		close(fd);
		return fail(-err, "fd %d: %s: %s%s", l->lowest, kind_inet_text(&k->local, text), strerror(-err),
		    err == -EADDRNOTAVAIL ? " (the address is to be moved here first)" : "");
	}
	return fd;
}

static int
load(const struct kind_load *l, const struct ofd *ofd)
{
	const struct socket_ref *k = &l->objects->sockets[ofd->ref];
	bool pair = k->state == SOCKET_CONNECTED && k->type == SOCK_STREAM;
	char object[32];
	int fd;

	if (l->check)
		return fcntl(l->null, F_DUPFD_CLOEXEC, 3);
	fd = pair ? load_connected(l, ofd->ref) : load_single(l, k);
	if (fd < 0)
		return fd;
	snprintf(object, sizeof(object), "fd %d", l->lowest);
	if (pair)
		sock_set_options(fd, k, object);
	if (ofd->flags & O_NONBLOCK)
		fcntl(fd, F_SETFL, O_NONBLOCK);
	return fd;
}

static int
fill(const struct kind_load *l, const struct ofd *ofd, int fd)
{
	const struct socket_ref *k = &l->objects->sockets[ofd->ref];
	int err = 0;

	(void)fd;
	if (k->nqueue > 0 && l->far[ofd->ref] >= 0)
		err = sock_send(l->far[ofd->ref], k, l->fds);
	return err < 0 ? fail(-err, "fd %d: what was in its queue cannot be put there: %s", l->lowest, strerror(-err))
		       : 0;
}

static int
late(const struct objects *o, const struct ofd *ofd, int fd, const int *fds, bool moved)
{
	const struct socket_ref *k = &o->sockets[ofd->ref];
	int64_t deadline = now_ms() + (moved ? ADDRESS_TRIES_MS : 0);
	char text[64];
	int err;

	(void)fds;
	if (k->peer >= 0) {
		if (k->shutdown != 0)
			shutdown(fd, SHUT_WR);
		return 0;
	}
	if (has_place(k, fd))
		return 0;
	while (again(err = take_place(k, fd), deadline))
		;
	return err < 0 ? fail(EBUSY, "%s: %s", kind_inet_text(&k->local, text), strerror(-err)) : 0;
}

const struct kind kind_inet = {.name = "TCP or UDP socket", .match = match, .save = save, .load = load,
    .refer = refer, .leave = leave, .depends = depends, .fill = fill, .late = late};
