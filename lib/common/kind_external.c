/*
 * Pipes and sockets whose other end is outside of what is moved. As stdin, stdout or stderr
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
								    : kind_inet_outside(s, fd);
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
		if (s->held[i].ino == s->st.st_ino && s->held[i].dev == s->st.st_dev &&
		    (int)(s->held[i].flags & O_ACCMODE) != mode)
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
		return s->link[0] != '/' && !pipe_is_inside(s);
	return S_ISSOCK(s->st.st_mode) && has_outside_peer(s);
}

static int
save(struct kind_save *s, struct ofd *ofd)
{
	ofd->path = strdup(s->link);
	ofd->flags &= O_ACCMODE | O_NONBLOCK | O_APPEND;
	return ofd->path == NULL ? -ENOMEM : 0;
}

int
kind_external_stdio(const struct kind_load *l, const struct ofd *ofd)
{
	int fd;

	if (l->lowest > 2)
		return fail(ENOENT, "fd %d: %s: its other end is not here (--inherit %d=FD gives it one)",
		    l->lowest, ofd->path, l->lowest);
	if ((l->lowest == 0 && l->stdin_taken) || (l->lowest == 1 && l->stdout_taken) ||
	    fcntl(l->lowest, F_GETFD) < 0)
		fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	else
		fd = fcntl(l->lowest, F_DUPFD_CLOEXEC, 3);
	return fd < 0 ? fail_errno("fd %d", l->lowest) : fd;
}

static int
load(const struct kind_load *l, const struct ofd *ofd)
{
	int fd = inherited(l, l->lowest);

	if (fd < 0)
		return kind_external_stdio(l, ofd);
	fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	return fd < 0 ? fail_errno("--inherit %d", l->lowest) : fd;
}

const struct kind kind_external = {.name = "external", .match = match, .save = save, .load = load};
