/*
 * Unix sockets whose other end is inside too, is gone, or that have none.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "io.h"
#include "kind.h"
#include "log.h"

static const struct unix_socket *
find(const struct kind_save *s, ino_t ino)
{
	struct kind_shared *k = s->shared;

	if (!k->sockets_known && sock_list_unix(&k->sockets, &k->nsockets) < 0)
		k->nsockets = 0;
	k->sockets_known = true;
	for (size_t i = 0; i < k->nsockets; i++)
		if (k->sockets[i].ino == ino)
			return &k->sockets[i];
	return NULL;
}

static bool
is_held(const struct kind_save *s, ino_t ino)
{
	for (size_t i = 0; i < s->nheld; i++)
		if (S_ISSOCK(s->held[i].st.st_mode) && s->held[i].st.st_ino == ino)
			return true;
	return false;
}

/* The listening socket of ours that has not yet accepted this one, or NULL. */
static const struct unix_socket *
waits_at(const struct kind_save *s, ino_t ino)
{
	const struct kind_shared *k = s->shared;

	for (size_t i = 0; i < k->nsockets; i++)
		for (size_t p = 0; p < k->sockets[i].npending; p++)
			if (k->sockets[i].pending[p] == ino && is_held(s, k->sockets[i].ino))
				return &k->sockets[i];
	return NULL;
}

bool
kind_unix_outside(const struct kind_save *s, int fd)
{
	const struct unix_socket *u = find(s, s->st.st_ino);

	struct bytes name = {0};
	bool named;

	if (u == NULL || u->peer == 0 || is_held(s, u->peer) || waits_at(s, s->st.st_ino) != NULL)
		return u == NULL;
	/* Of a datagram socket that is connected to a name outside, the name is enough. */
	named = sock_option(fd, SOL_SOCKET, SO_TYPE) == SOCK_DGRAM && sock_name(fd, true, &name) == 0 && name.n > 0;
	free(name.p);
	return !named;
}

static bool
match(const struct kind_save *s)
{
	int fd = S_ISSOCK(s->st.st_mode) ? kind_get_fd(s) : -1;
	bool mine = fd >= 0 && sock_option(fd, SOL_SOCKET, SO_DOMAIN) == AF_UNIX && !kind_unix_outside(s, fd);

	close_fd(&fd);
	return mine;
}

/* The path of an address; "" where it has none. Abstract ones begin with "@". */
static const char *
address_path(const struct bytes *name, char path[sizeof(struct sockaddr_un)])
{
	size_t skip = offsetof(struct sockaddr_un, sun_path), n = name->n > skip ? name->n - skip : 0;

	n = min_u64(n, sizeof(((struct sockaddr_un *)NULL)->sun_path));
	if (n > 0)
		memcpy(path, name->p + skip, n);
	path[n] = '\0';
	if (n > 0 && path[0] == '\0')
		path[0] = '@';
	return path;
}

/* Where a path that is not absolute is meant, and the mode of what is there. */
static int
look_at_file(const struct kind_save *s, struct socket_ref *k)
{
	char text[sizeof(struct sockaddr_un)], *path;
	struct stat st;

	address_path(&k->local, text);
	if (text[0] == '\0' || text[0] == '@')
		return 0;
	if (text[0] != '/' && read_link(s->proc, "cwd", &k->dir) < 0)
		return -ENOMEM;
	if (asprintf(&path, "%s/%s", k->dir != NULL ? "cwd" : "root", text) < 0)
		return -ENOMEM;
	k->mode = fstatat(s->proc, path, &st, 0) == 0 && S_ISSOCK(st.st_mode) ? st.st_mode & 07777 : 0;
	free(path);
	return 0;
}

static int
describe(const struct kind_save *s, int fd, struct socket_ref *k)
{
	const struct unix_socket *u = find(s, s->st.st_ino);
	int err = sock_describe(fd, s->st.st_ino, k);

	k->state = sock_option(fd, SOL_SOCKET, SO_ACCEPTCONN) > 0 ? SOCKET_LISTENING
	    : u->peer != 0 || (k->type != SOCK_DGRAM && u->state == TCP_ESTABLISHED) ? SOCKET_CONNECTED : SOCKET_OPEN;
	k->backlog = u->backlog;
	k->shutdown = u->shutdown & 3;
	k->waiting = waits_at(s, s->st.st_ino) != NULL;
	if (err == 0)
		err = sock_name(fd, false, &k->local);
	if (err == 0 && k->state == SOCKET_CONNECTED)
		err = sock_name(fd, true, &k->remote);
	return err < 0 ? err : look_at_file(s, k);
}

static int
save(struct kind_save *s, struct ofd *ofd)
{
	struct socket_ref k = {0}, *out = ARRAY_ADD(s->objects->sockets, s->objects->nsockets);
	size_t index = s->objects->nsockets - 1;
	int fd = kind_get_fd(s), unread = 0, err = out == NULL ? -ENOMEM : fd < 0 ? fd : describe(s, fd, &k);

	ofd->path = strdup(s->link);
	ofd->ref = (int64_t)index;
	ofd->flags &= O_ACCMODE | O_NONBLOCK | O_ASYNC;
	if (err == 0 && k.waiting && ioctl(fd, SIOCOUTQ, &unread) == 0 && unread > 0)
		err = report_add(s->report, LOSS, 0, s->object, NULL,
		    "it has sent something to a socket that nobody has accepted yet, which is lost");
	if (out != NULL)
		s->objects->sockets[index] = k;
	close_fd(&fd);
	return err < 0 && err != -ENOTSUP ? fail(-err, "%s: %s: %s", s->object, s->link, strerror(-err)) : err;
}

/* Who is at the other end, by inode; and what is in the queue, which may bring more open files along. */
static int
refer(struct kind_save *s, struct ofd *ofd)
{
	struct objects *o = s->objects;
	struct socket_ref k = o->sockets[ofd->ref];
	const struct unix_socket *u = find(s, k.id);
	int fd = kind_get_fd(s), err = fd < 0 ? fd : 0;

	for (size_t i = 0; u != NULL && u->peer != 0 && i < o->nsockets; i++)
		if (o->sockets[i].family == AF_UNIX && o->sockets[i].id == u->peer)
			k.peer = (int64_t)i;
	if (err == 0 && k.state != SOCKET_LISTENING)
		err = sock_peek(fd, &k, s->shared->ofd_of, s->shared->ctx);
	close_fd(&fd);
	o->sockets[ofd->ref] = k;
	if (err == -EMSGSIZE)
		return report_add(s->report, LOSS, 0, s->object, NULL, "a message of no length in its queue, and what is "
		    "behind it");
	return err < 0 && err != -ENOTSUP ? fail(-err, "%s: its queue cannot be read: %s", s->object, strerror(-err))
					  : err;
}

/* --- restart */

static bool
same_name(const struct bytes *a, const struct bytes *b)
{
	return a->n > 0 && a->n == b->n && memcmp(a->p, b->p, a->n) == 0;
}

/* The listening socket of this name, or -1: index of its ofd. */
static int64_t
listener(const struct objects *o, const struct bytes *name)
{
	for (size_t i = 0; i < o->nofds; i++)
		if (o->ofds[i].kind == KIND_unix && o->sockets[o->ofds[i].ref].state == SOCKET_LISTENING &&
		    same_name(&o->sockets[o->ofds[i].ref].local, name))
			return (int64_t)i;
	return -1;
}

static bool
is_pair(const struct socket_ref *k)
{
	return k->state == SOCKET_CONNECTED && (k->type != SOCK_DGRAM || k->remote.n == 0);
}

/* The datagram socket of this name, or -1: index of its ofd. */
static int64_t
bound_to(const struct objects *o, const struct bytes *name)
{
	for (size_t i = 0; i < o->nofds; i++)
		if (o->ofds[i].kind == KIND_unix && o->sockets[o->ofds[i].ref].type == SOCK_DGRAM &&
		    same_name(&o->sockets[o->ofds[i].ref].local, name))
			return (int64_t)i;
	return -1;
}

/* A pair that came about by connect(2) and accept(2) has the name of the listening socket: that end accepted. */
static int64_t
depends(const struct objects *o, const struct ofd *ofd, size_t n)
{
	const struct socket_ref *k = &o->sockets[ofd->ref];
	int64_t l;

	if (n > 0 || k->state != SOCKET_CONNECTED)
		return -1;
	if (k->type == SOCK_DGRAM)
		return bound_to(o, &k->remote);
	l = listener(o, &k->remote);
	return l >= 0 ? l : listener(o, &k->local);
}

static int
enter(const struct socket_ref *k)
{
	int before = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);

	if (k->dir != NULL && chdir(k->dir) < 0) {
		close_fd(&before);
		return -errno;
	}
	return before;
}

static void
leave(int *before)
{
	if (*before >= 0 && fchdir(*before) < 0)
		note("the working directory cannot be entered again: %s", strerror(errno));
	close_fd(before);
}

/* Messages for a socket that has a name come from one that has none. */
static int
fill_by_name(const struct socket_ref *k, const int *fds)
{
	int far, err;

	if (k->nqueue == 0 || k->local.n == 0)
		return 0;
	far = socket(AF_UNIX, (int)k->type | SOCK_CLOEXEC, 0);
	err = far < 0 ? -errno : sock_connect(far, &k->local);
	if (err == 0)
		err = sock_send(far, k, fds);
	close_fd(&far);
	return err;
}

/* A file of that name is the original's, or was: it is set aside until END. path: absolute. */
static int
set_aside(const struct kind_load *l, const char *path)
{
	struct stat st;
	char *old;
	int err = 0;

	if (lstat(path, &st) < 0)
		return 0;
	if (!S_ISSOCK(st.st_mode))
		return fail(EEXIST, "fd %d: %s is there already, and is not a socket", l->lowest, path);
	if (asprintf(&old, "%s.%d", path, (int)getpid()) < 0)
		return -ENOMEM;
	if (rename(path, old) < 0)
		err = fail_errno("fd %d: %s", l->lowest, path);
	else if (l->set_aside != NULL)
		l->set_aside(l->ctx, old, path);
	free(old);
	return err;
}

/* At its path, in the directory that it is relative to; full: the same from the root. */
static int
bind_file(const struct kind_load *l, const struct socket_ref *k, int fd, const char *full)
{
	/* One that has been removed since has no file. */
	int err = k->mode != 0 ? set_aside(l, full) : 0;

	if (err < 0)
		return err;
	if (bind(fd, (const struct sockaddr *)k->local.p, (socklen_t)k->local.n) < 0)
		return fail_errno("fd %d: bind to %s", l->lowest, full);
	if (k->mode == 0) {
		err = fill_by_name(k, l->fds);
		unlink(full);
		return err < 0 ? fail(-err, "fd %d: %s: its queue: %s", l->lowest, full, strerror(-err)) : 0;
	}
	chmod(full, (mode_t)k->mode);
	if (l->created != NULL)
		l->created(l->ctx, full);
	return 0;
}

static int
bind_again(const struct kind_load *l, const struct socket_ref *k, int fd)
{
	char path[sizeof(struct sockaddr_un)], *full;
	int err;

	if (address_path(&k->local, path)[0] != '\0' && path[0] != '@') {
		if (asprintf(&full, "%s%s%s", k->dir != NULL ? k->dir : "", k->dir != NULL ? "/" : "", path) < 0)
			return -ENOMEM;
		err = bind_file(l, k, fd, full);
		free(full);
		return err;
	}
	if (bind(fd, (const struct sockaddr *)k->local.p, (socklen_t)k->local.n) == 0)
		return 0;
	/* The original has it, and ends before this one begins: late() tries again. */
	if (errno == EADDRINUSE && l->moved)
		return 0;
	return fail_errno("fd %d: bind to %s", l->lowest, path);
}

static int
put_in_place(const struct kind_load *l, const struct socket_ref *k, int fd)
{
	int before, err;

	/* What was accepted has the name of another, which it got from there. */
	if (k->local.n == 0)
		return 0;
	before = enter(k);
	if (before < 0)
		return fail(-before, "fd %d: %s: %s", l->lowest, k->dir, strerror(-before));
	err = bind_again(l, k, fd);
	leave(&before);
	return err;
}

static bool
has_name(int fd)
{
	struct bytes name = {0};
	bool named = sock_name(fd, false, &name) == 0 && name.n > 0;

	free(name.p);
	return named;
}

/* Its own name, or that of the one of ours that it is connected to, can be had only after END. */
static bool
waits_for_name(const struct objects *o, const struct socket_ref *k, const int *fds, int fd)
{
	int64_t other = k->type == SOCK_DGRAM && k->state == SOCKET_CONNECTED ? bound_to(o, &k->remote) : -1;

	return (k->local.n > 0 && !has_name(fd)) || (other >= 0 && fds[other] >= 0 && !has_name(fds[other]));
}

/* As it came about: one connects to the listening socket at, which accepts it. */
static int
connect_pair(const struct kind_load *l, const struct socket_ref *k, int64_t at, int pair[2])
{
	int before = enter(&l->objects->sockets[l->objects->ofds[at].ref]), err, listening = l->fds[at];

	if (before < 0)
		return fail(-before, "fd %d: directory of a socket: %s", l->lowest, strerror(-before));
	pair[0] = socket(AF_UNIX, (int)k->type | SOCK_CLOEXEC, 0);
	err = pair[0] < 0 ? -errno : sock_connect(pair[0], &k->remote);
	if (err < 0)
		fail(-err, "fd %d: connect: %s", l->lowest, strerror(-err));
	else if ((pair[1] = sock_accept(listening)) < 0)
		err = fail(-pair[1], "fd %d: accept: %s", l->lowest, strerror(-pair[1]));
	leave(&before);
	return err;
}

/* Both ends: of the one with this index, and of its peer (or what stands for it until it is closed). */
static int
make_pair(const struct kind_load *l, int64_t i, int ends[2])
{
	const struct socket_ref *k = &l->objects->sockets[i];
	const struct socket_ref *peer = k->peer >= 0 ? &l->objects->sockets[k->peer] : NULL;
	int64_t at = listener(l->objects, &k->remote), accepted_at = listener(l->objects, &k->local);
	int pair[2] = {-1, -1}, err = 0;

	if (at >= 0 && l->fds[at] >= 0) {
		err = connect_pair(l, k, at, pair);
	} else if (peer != NULL && accepted_at >= 0 && l->fds[accepted_at] >= 0) {
		err = connect_pair(l, peer, accepted_at, pair);
		ends[0] = pair[1], ends[1] = pair[0];
		return err;
	} else if (socketpair(AF_UNIX, (int)k->type | SOCK_CLOEXEC, 0, pair) < 0) {
		err = fail_errno("fd %d: socketpair", l->lowest);
	}
	ends[0] = pair[0], ends[1] = pair[1];
	return err;
}

static int
load_connected(const struct kind_load *l, int64_t i)
{
	const struct socket_ref *k = &l->objects->sockets[i];
	int ends[2] = {-1, -1}, err, fd;

	if (k->peer >= 0 && l->sockets[i] >= 0) { /* made together with its peer */
		fd = l->sockets[i];
		l->sockets[i] = -1;
		return fd;
	}
	/* Not accepted yet, and not to be: it connects when all that are accepted have been. */
	if (k->peer < 0 && k->waiting) {
		fd = socket(AF_UNIX, (int)k->type | SOCK_CLOEXEC, 0);
		return fd < 0 ? fail_errno("fd %d: socket", l->lowest) : fd;
	}
	err = make_pair(l, i, ends);
	if (err < 0)
		return err;
	l->far[i] = fcntl(ends[1], F_DUPFD_CLOEXEC, 3);
	if (k->peer >= 0) {
		l->far[k->peer] = fcntl(ends[0], F_DUPFD_CLOEXEC, 3);
		l->sockets[k->peer] = ends[1];
	} else {
		close_fd(&ends[1]);
	}
	return ends[0];
}

/* Listening, or connected to a name; both once it is bound. */
static int
take_role(const struct socket_ref *k, int fd)
{
	char path[sizeof(struct sockaddr_un)];
	int err;

	if (k->state == SOCKET_LISTENING && listen(fd, (int)k->backlog) < 0)
		return fail_errno("%s: listen", address_path(&k->local, path));
	err = k->state == SOCKET_CONNECTED ? sock_connect(fd, &k->remote) : 0;
	if (err < 0)
		note("%s: cannot be connected here: %s", address_path(&k->remote, path), strerror(-err));
	return 0;
}

static int
load_single(const struct kind_load *l, int64_t i)
{
	const struct socket_ref *k = &l->objects->sockets[i];
	int fd = socket(AF_UNIX, (int)k->type | SOCK_CLOEXEC, 0), err;

	if (fd < 0)
		return fail_errno("fd %d: socket", l->lowest);
	err = put_in_place(l, k, fd);
	if (err == 0 && !waits_for_name(l->objects, k, l->fds, fd))
		err = take_role(k, fd);
	if (err < 0)
		close(fd);
	return err < 0 ? err : fd;
}

static int
load(const struct kind_load *l, const struct ofd *ofd)
{
	const struct socket_ref *k = &l->objects->sockets[ofd->ref];
	bool pair = is_pair(k);
	char object[32];
	int fd;

	if (l->check)
		return fcntl(l->null, F_DUPFD_CLOEXEC, 3);
	fd = pair ? load_connected(l, ofd->ref) : load_single(l, ofd->ref);
	if (fd < 0)
		return fd;
	snprintf(object, sizeof(object), "fd %d", l->lowest);
	sock_set_options(fd, k, object);
	if (ofd->flags & O_NONBLOCK)
		fcntl(fd, F_SETFL, O_NONBLOCK);
	return fd;
}

static int
join_queue(const struct kind_load *l, const struct socket_ref *k, int64_t at, int fd)
{
	int before = enter(&l->objects->sockets[l->objects->ofds[at].ref]), err;

	if (before < 0)
		return fail(-before, "fd %d: directory of a socket: %s", l->lowest, strerror(-before));
	err = sock_connect(fd, &k->remote);
	leave(&before);
	return err < 0 ? fail(-err, "fd %d: connect: %s", l->lowest, strerror(-err)) : 0;
}

static int
fill(const struct kind_load *l, const struct ofd *ofd, int fd)
{
	const struct socket_ref *k = &l->objects->sockets[ofd->ref];
	int64_t at = k->waiting ? listener(l->objects, &k->remote) : -1;
	int err = 0;

	if (at >= 0)
		return join_queue(l, k, at, fd);
	if (k->nqueue > 0 && l->far[ofd->ref] >= 0)
		err = sock_send(l->far[ofd->ref], k, l->fds);
	else if (has_name(fd))
		err = fill_by_name(k, l->fds);
	return err < 0 ? fail(-err, "fd %d: what was in its queue cannot be put there: %s", l->lowest, strerror(-err))
		       : 0;
}

/* How long a name of the original may take to be free when that is dead. */
enum { NAME_TRIES_MS = 3000 };

static int
bind_late(const struct socket_ref *k, int fd, const int *fds, bool moved)
{
	int64_t deadline = now_ms() + (moved ? NAME_TRIES_MS : 0);
	char path[sizeof(struct sockaddr_un)];
	int err = 0;

	while (bind(fd, (const struct sockaddr *)k->local.p, (socklen_t)k->local.n) < 0) {
		if (errno != EADDRINUSE || now_ms() >= deadline)
			return fail(EBUSY, "%s: %s", address_path(&k->local, path), strerror(errno));
		poll(NULL, 0, 20);
	}
	if (k->state == SOCKET_OPEN)
		err = fill_by_name(k, fds);
	return err < 0 ? fail(-err, "%s: what was in its queue: %s", address_path(&k->local, path), strerror(-err)) : 0;
}

/* Ends are shut down when all queues are filled; names that the original had are free now. */
static int
late(const struct objects *o, const struct ofd *ofd, int fd, const int *fds, bool moved)
{
	const struct socket_ref *k = &o->sockets[ofd->ref];
	struct bytes remote = {0};
	int err;

	if (is_pair(k)) {
		if (k->shutdown != 0)
			shutdown(fd, k->shutdown == 3 ? SHUT_RDWR : k->shutdown == 1 ? SHUT_RD : SHUT_WR);
		return 0;
	}
	if (k->local.n > 0 && !has_name(fd)) {
		err = bind_late(k, fd, fds, moved);
		return err < 0 ? err : take_role(k, fd);
	}
	if (k->state == SOCKET_CONNECTED && bound_to(o, &k->remote) >= 0 && sock_name(fd, true, &remote) == 0 &&
	    remote.n == 0)
		take_role(k, fd);
	free(remote.p);
	return 0;
}

const struct kind kind_unix = {.name = "Unix socket", .match = match, .save = save, .load = load, .refer = refer,
    .depends = depends, .fill = fill, .late = late};
