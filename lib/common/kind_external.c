/*
 * Pipes, FIFOs and sockets whose other end is outside of what is moved. As stdin, stdout or stderr
 * restart's own take their place; for any other, restart must be told.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "io.h"
#include "kind.h"
#include "log.h"

/* A socket with a peer that is another process. */
static bool
has_outside_peer(const struct kind_save *s)
{
	int fd = kind_get_fd(s);
	bool outside;

	if (fd < 0)
		return false;
	outside = sock_option(fd, SOL_SOCKET, SO_DOMAIN) == AF_UNIX ? kind_unix_outside(s, fd)
								    : kind_inet_outside(s, fd) && !kind_tcp_takes(s, fd);
	close(fd);
	return outside;
}

/* Is the other end of this pipe held by one of them, or by nobody at all any more? */
bool
pipe_is_inside(const struct kind_save *s)
{
	struct pollfd p = {.events = 0};
	int mode = (int)(s->info.flags & O_ACCMODE), n;

	if (mode == O_RDWR)
		return true;
	for (size_t i = 0; i < s->nheld; i++)
		if (s->held[i].st.st_ino == s->st.st_ino && s->held[i].st.st_dev == s->st.st_dev &&
		    (int)(s->held[i].info.flags & O_ACCMODE) != mode)
			return true;
	p.fd = kind_get_fd(s);
	n = p.fd < 0 ? 0 : poll(&p, 1, 0);
	close_fd(&p.fd);
	return n > 0 && (p.revents & (mode == O_RDONLY ? POLLHUP : POLLERR)) != 0;
}

static bool
match(const struct kind_save *s)
{
	if (S_ISFIFO(s->st.st_mode))
		return !pipe_is_inside(s);
	return S_ISSOCK(s->st.st_mode) && has_outside_peer(s);
}

/* --- who is at the other end */

/* "pid 12 (bash)" of somebody else who has this inode open, as far as we may look; or NULL. */
static char *
other_holder(const struct kind_save *s)
{
	char *found = NULL;
	int *pids;
	size_t n;

	if (proc_list(AT_FDCWD, "/proc", &pids, &n) < 0)
		return NULL;
	for (size_t i = 0; i < n && found == NULL; i++) {
		int proc = pids[i] > 0 && pids[i] != getpid() && pids[i] != s->pid ? proc_open(pids[i]) : -1, *fds;
		size_t nfds = 0;

		if (proc < 0 || proc_list(proc, "fd", &fds, &nfds) < 0) {
			close_fd(&proc);
			continue;
		}
		for (size_t k = 0; k < nfds && found == NULL; k++) {
			char path[32], *comm = NULL;
			struct stat st;

			snprintf(path, sizeof(path), "fd/%d", fds[k]);
			if (fstatat(proc, path, &st, 0) < 0 || st.st_ino != s->st.st_ino || st.st_dev != s->st.st_dev)
				continue;
			if (read_file(proc, "comm", &comm) > 0 &&
			    asprintf(&found, "pid %d (%.*s)", pids[i], (int)strcspn(comm, "\n"), comm) < 0)
				found = NULL;
			free(comm);
		}
		free(fds);
		close(proc);
	}
	free(pids);
	return found;
}

static char *
socket_peer(const struct kind_save *s)
{
	struct ucred cred = {0};
	struct bytes remote = {0};
	socklen_t n = sizeof(cred);
	char text[64], *found = NULL;
	int fd = kind_get_fd(s);

	if (fd < 0)
		return NULL;
	if (sock_option(fd, SOL_SOCKET, SO_DOMAIN) != AF_UNIX) {
		if (sock_name(fd, true, &remote) == 0 && remote.n > 0)
			found = strdup(kind_inet_text(&remote, text));
	} else if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &n) == 0 && cred.pid > 0 &&
	    asprintf(&found, "pid %d", cred.pid) < 0) {
		found = NULL;
	}
	free(remote.p);
	close(fd);
	return found;
}

/* What to do with it, as ckpt was told: by its number, or for all. */
static int
policy_for(const struct kind_save *s)
{
	int policy = EXTERNAL_INHERIT;

	for (size_t i = 0; i < s->nrules; i++)
		if (s->rules[i].ino == 0 || (s->rules[i].ino == s->st.st_ino && s->rules[i].socket == S_ISSOCK(s->st.st_mode)))
			policy = s->rules[i].policy;
	return policy;
}

/* What is needed to connect again. */
static int
save_address(struct kind_save *s, struct ofd *ofd)
{
	struct socket_ref *k = ARRAY_ADD(s->objects->sockets, s->objects->nsockets);
	int fd = kind_get_fd(s), err = k == NULL ? -ENOMEM : fd < 0 ? fd : 0;

	if (err == 0) {
		ofd->ref = (int64_t)s->objects->nsockets - 1;
		err = sock_describe(fd, s->st.st_ino, k);
		k->state = SOCKET_CONNECTED;
	}
	if (err == 0)
		err = sock_name(fd, true, &k->remote);
	close_fd(&fd);
	if (err == 0 && k->remote.n == 0)
		return report_add(s->report, OBSTACLE, 69, s->object, "--external with drop, or restart --inherit",
		    "%s has no address to be connected to again", s->link);
	return err;
}

static int
save(struct kind_save *s, struct ofd *ofd)
{
	char *peer = NULL;
	int err = 0;

	ofd->path = strdup(s->link);
	ofd->flags &= O_ACCMODE | O_NONBLOCK | O_APPEND;
	ofd->policy = policy_for(s);
	if (ofd->policy == EXTERNAL_REOPEN && s->link[0] != '/' && !S_ISSOCK(s->st.st_mode))
		err = report_add(s->report, OBSTACLE, 69, s->object, "--external with drop, or restart --inherit",
		    "%s has no name by which it could be opened again", s->link);
	else if (ofd->policy == EXTERNAL_REOPEN && S_ISSOCK(s->st.st_mode))
		err = save_address(s, ofd);
	if (err == 0 && ofd->policy == EXTERNAL_INHERIT && s->fd > 2) {
		peer = S_ISSOCK(s->st.st_mode) ? socket_peer(s) : other_holder(s);
		err = report_add(s->report, LOSS, 0, s->object, "restart --inherit gives it one, ckpt --external=drop does "
		    "without", "%s: its other end is outside%s%s", s->link, peer != NULL ? ": " : "", peer != NULL ? peer : "");
	}
	free(peer);
	return err < 0 ? err : ofd->path == NULL ? -ENOMEM : 0;
}

/* --- restart */

/* As if the one at the other end had closed it. */
static int
load_dropped(const struct ofd *ofd)
{
	int ends[2], err;
	bool writes = (ofd->flags & O_ACCMODE) == O_WRONLY;

	if (strncmp(ofd->path, "socket:", 7) == 0) {
		err = socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends);
		writes = false;
	} else {
		err = pipe2(ends, O_CLOEXEC);
	}
	if (err < 0)
		return fail_errno("%s", ofd->path);
	close(ends[!writes]);
	return ends[writes];
}

/* Held for both while it is opened as it was, which then does not wait for anybody. */
static int
open_fifo_again(const struct kind_load *l, const struct ofd *ofd)
{
	char *path = path_mapped(l->maps, l->nmaps, ofd->path), own[32];
	int held = path == NULL ? -ENOMEM : kind_open_fifo(path), fd = -1;

	snprintf(own, sizeof(own), "/proc/self/fd/%d", held);
	if (held >= 0)
		fd = open(own, (int)(ofd->flags & (O_ACCMODE | O_NONBLOCK | O_APPEND)) | O_CLOEXEC);
	else
		errno = -held;
	fd = fd < 0 ? fail_errno("fd %d: %s (--map OLD=NEW tells where it is here)", l->lowest, ofd->path) : fd;
	close_fd(&held);
	free(path);
	return fd;
}

static int
load_again(const struct kind_load *l, const struct ofd *ofd)
{
	const struct socket_ref *k = &l->objects->sockets[ofd->ref];
	int fd = socket((int)k->family, (int)k->type | SOCK_CLOEXEC, (int)k->protocol);
	char object[32];
	int err;

	if (fd < 0)
		return fail_errno("fd %d: %s", l->lowest, ofd->path);
	snprintf(object, sizeof(object), "fd %d", l->lowest);
	sock_set_options(fd, k, object);
	err = sock_connect(fd, &k->remote);
	if (err < 0) {
		fail(-err, "fd %d: %s: connect: %s", l->lowest, ofd->path, strerror(-err));

		close(fd);
		return err;
	}
	if (ofd->flags & O_NONBLOCK)
		fcntl(fd, F_SETFL, O_NONBLOCK);
	return fd;
}

int
kind_external_stdio(const struct kind_load *l, const struct ofd *ofd)
{
	int fd;

	if (l->lowest > 2)
		return fail(ENOENT, "fd %d: %s: its other end is not here (--inherit %d=FD gives it one)",
		    l->lowest, ofd->path, l->lowest);
	if (l->stdio[l->lowest] < 0 || fcntl(l->stdio[l->lowest], F_GETFD) < 0)
		fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	else
		fd = fcntl(l->stdio[l->lowest], F_DUPFD_CLOEXEC, 3);
	return fd < 0 ? fail_errno("fd %d", l->lowest) : fd;
}

static int
load(const struct kind_load *l, const struct ofd *ofd)
{
	int fd = inherited(l, l->lowest);

	if (fd < 0 && ofd->policy == EXTERNAL_DROP)
		return load_dropped(ofd);
	if (fd < 0 && ofd->policy == EXTERNAL_REOPEN && l->check)
		return fcntl(l->null, F_DUPFD_CLOEXEC, 3);
	if (fd < 0 && ofd->policy == EXTERNAL_REOPEN)
		return ofd->path[0] == '/' ? open_fifo_again(l, ofd) : load_again(l, ofd);
	if (fd < 0)
		return kind_external_stdio(l, ofd);
	fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	return fd < 0 ? fail_errno("--inherit %d", l->lowest) : fd;
}

const struct kind kind_external = {.name = "external", .match = match, .save = save, .load = load};
