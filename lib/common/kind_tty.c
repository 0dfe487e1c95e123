/*
 * Terminals. The far end of a user's terminal is never inside: restart gives the program its own,
 * set up as the old one was.
 */
#include <asm/termbits.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "io.h"
#include "kind.h"
#include "log.h"

static bool
match(const struct kind_save *s)
{
	struct termios2 t;
	bool tty;
	int fd;

	if (!S_ISCHR(s->st.st_mode) || kind_is_ptmx(s->st.st_rdev) || kind_pty_inside(s))
		return false;
	fd = kind_get_fd(s);
	tty = fd >= 0 && ioctl(fd, TCGETS2, &t) == 0;
	close_fd(&fd);
	return tty;
}

static int
save(struct kind_save *s, struct ofd *ofd)
{
	struct winsize size = {0};
	int fd = kind_get_fd(s);

	if (fd < 0)
		return fail_errno("%s: %s", s->object, s->link);
	ofd->path = strdup(s->link);
	ofd->flags &= O_ACCMODE | O_NONBLOCK | O_APPEND;
	ofd->termios.p = malloc(sizeof(struct termios2));
	if (ofd->path == NULL || ofd->termios.p == NULL) {
		close(fd);
		return -ENOMEM;
	}
	ofd->termios.n = sizeof(struct termios2);
	if (ioctl(fd, TCGETS2, ofd->termios.p) < 0)
		ofd->termios.n = 0;
	ioctl(fd, TIOCGWINSZ, &size);
	ofd->rows = size.ws_row;
	ofd->cols = size.ws_col;
	close(fd);
	return 0;
}

/* One of our own: stdio if that is a terminal, else the controlling one. */
static int
own_terminal(const struct kind_load *l)
{
	int first = l->lowest <= 2 ? l->lowest : 0;

	for (int i = 0; i < 3; i++) {
		int fd = (first + i) % 3;

		if (isatty(fd))
			return fcntl(fd, F_DUPFD_CLOEXEC, 3);
	}
	return open("/dev/tty", O_RDWR | O_CLOEXEC);
}

static int
load(const struct kind_load *l, const struct ofd *ofd)
{
	int fd = inherited(l, l->lowest);

	if (fd >= 0) {
		fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
		return fd < 0 ? fail_errno("--inherit %d", l->lowest) : fd;
	}
	fd = own_terminal(l);
	if (fd >= 0)
		return fd;
	/* There is none here: then stdio has to do. */
	return kind_external_stdio(l, ofd);
}

const struct kind kind_tty = {.name = "terminal", .match = match, .save = save, .load = load};
