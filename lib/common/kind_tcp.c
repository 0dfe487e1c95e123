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
#include "tcp_repair.h"

#define TCP_ULP_ 31
enum { HELD_MS = 10000 };

bool
kind_tcp_takes(const struct kind_save *s, int fd)
{
	if (!kind_inet_outside(s, fd))
		return false;
	for (size_t i = 0; i < s->nrules; i++)
		if (s->rules[i].ino == 0 || (s->rules[i].socket && s->rules[i].ino == s->st.st_ino))
			return false;
	/* As stdin and the like it has restart's in its place. */
	return s->fd > 2 || tcp_can_repair(AF_INET);
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
	if (!tcp_can_repair((int)k->family))
		return report_add(s->report, OBSTACLE, 77, s->object,
		    "run ckpt as root (CAP_NET_ADMIN); or --tcp=close to have it reset; or --external=inherit, drop or reopen",
		    "connected by TCP to %s, which is outside", text);
	if (state == SYN_SENT || state == SYN_RECV)
		return report_add(s->report, OBSTACLE, 75, s->object, "try again in a moment", "it is being connected to %s", text);
	if (kind_held_outside(s))
		return report_add(s->report, OBSTACLE, 69, s->object,
		    "--tcp=close to have it reset here and left to them, or move them together",
		    "connected to %s by a socket that a process outside has as well", text);
	if (k->protocol != 0 && k->protocol != IPPROTO_TCP)
		return report_add(s->report, OBSTACLE, 69, s->object, "--tcp=close to have it reset",
		    "connected to %s by MPTCP", text);
	if (getsockopt(fd, IPPROTO_TCP, TCP_ULP_, ulp, &n) == 0 && n > 0 && ulp[0] != '\0')
		return report_add(s->report, OBSTACLE, 69, s->object, "--tcp=close to have it reset",
		    "connected to %s through the kernel's %s", text, ulp);
	return 0;
}

/* One that only a message on its way has was not among those that are held. */
static int
hold_in_flight(struct kind_save *s, int fd, const struct socket_ref *k)
{
	int err;

	for (size_t i = 0; i < s->nheld; i++)
		if (s->held[i].st.st_ino == s->st.st_ino && s->held[i].st.st_dev == s->st.st_dev)
			return 0;
	err = netlock_hold(s->shared->netlock, &k->local, &k->remote);
	if (err == 0)
		err = netlock_guard(s->shared->netlock, fd);
	return err < 0 ? err : netlock_commit(s->shared->netlock);
}

static int
repair_and_read(struct kind_save *s, int fd, struct tcp_ref *t, struct socket_ref *k)
{
	int err = hold_all(s), off, reuse = sock_option(fd, SOL_SOCKET, SO_REUSEADDR);

	if (err == 0)
		err = hold_in_flight(s, fd, k);
	if (err == 0)
		err = tcp_set_repair(fd, REPAIR_ON);
	if (err < 0)
		return err;
	err = tcp_read(fd, tcp_state(fd), t, k);
	off = tcp_set_repair(fd, REPAIR_OFF_QUIETLY);
	/* Which repair mode clears. */
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &reuse, sizeof(reuse));
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
		tcp_set_repair(fd, REPAIR_ON);
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

/* Before anything of it is held back: has somebody here this connection already? Tried, and closed in silence. */
static int
check_free(const struct tcp_ref *t, const struct socket_ref *k, const char *object)
{
	int fd = socket((int)k->family, SOCK_STREAM | SOCK_CLOEXEC, 0), err;
	char text[64];

	if (fd < 0)
		return fail_errno("%s: socket", object);
	err = tcp_connect_repaired(fd, t, k, true); /* the original may just be ending */
	close(fd);
	return err == -EADDRNOTAVAIL ? fail(EBUSY, "%s: its connection to %s is somebody's here already (was the image "
	    "restarted before?)", object, kind_inet_text(&k->remote, text)) : 0;
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
	} else if (!tcp_can_repair((int)k->family)) {
		return fail(EPERM, "%s: its connection to %s can be taken up by root (CAP_NET_ADMIN); or --tcp=close to have it "
		    "reset, or --inherit %d=FD", object, kind_inet_text(&k->remote, text), l->lowest);
	} else {
		err = l->moved ? 0 : check_free(t, k, object);
		if (err == 0)
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

static bool
is_carried(const struct tcp_ref *t, int fd)
{
	int on = 0;
	socklen_t n = sizeof(on);

	/* Neither reset, nor inherited. */
	return !t->closed && getsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &on, &n) == 0 && on == REPAIR_ON;
}

/* Without taking it away, which SO_ERROR does. */
static bool
has_error(int fd)
{
	struct pollfd p = {fd, 0, 0};

	return poll(&p, 1, 0) > 0 && (p.revents & POLLERR) != 0;
}

static int
late(const struct objects *o, const struct ofd *ofd, int fd, const int *fds, bool moved)
{
	const struct tcp_ref *t = &o->tcps[ofd->ref];
	const struct socket_ref *k = &o->sockets[t->socket];
	char here[64], there[64];
	int err;

	(void)fds;
	if (t->closed || tcp_state(fd) != CLOSED || has_error(fd))
		return 0; /* reset, or inherited */
	err = tcp_connect_repaired(fd, t, k, moved);
	if (err == 0)
		err = tcp_write(fd, t, k);
	return err < 0 ? fail(-err, "the connection from %s to %s cannot be taken up: %s", kind_inet_text(&k->local, here),
	    kind_inet_text(&k->remote, there), strerror(-err)) : 0;
}

/* Both directions, as far as they had been closed. A FIN that had been sent is sent once more, with the same number. */
static int
go_on(const struct objects *o, const struct ofd *ofd, int fd)
{
	const struct tcp_ref *t = &o->tcps[ofd->ref];
	const struct socket_ref *k = &o->sockets[t->socket];
	int err;

	if (!is_carried(t, fd))
		return 0;
	err = tcp_set_repair(fd, REPAIR_OFF);
	sock_set_options(fd, k, "socket");
	if (err == 0)
		err = tcp_write_unsent(fd, t);
	if (err == 0 && t->got_fin)
		shutdown(fd, SHUT_RD);
	if (err == 0 && t->sent_fin)
		shutdown(fd, SHUT_WR);
	return err < 0 ? fail(-err, "%s: %s", ofd->path, strerror(-err)) : 0;
}

const struct kind kind_tcp = {.name = "TCP connection to others", .match = match, .save = save, .leave = leave,
    .depends = depends, .load = load, .late = late, .go_on = go_on};
