/*
 * Pseudoterminals whose master is inside: the pair with its settings and what is in its queues. (A terminal
 * whose master is outside is kind_tty's.)
 */
#include <asm/termbits.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "io.h"
#include "kind.h"
#include "log.h"

#ifndef TIOCGPTPEER
#define TIOCGPTPEER _IO('T', 0x41)
#endif
enum { QUEUE_MAX = 64 << 10 };

/* O_LARGEFILE, as the kernel shows it; that of C is 0 here. */
enum { LARGE = 0100000 };

static bool
is_master(const struct kind_save *s)
{
	return S_ISCHR(s->st.st_mode) && kind_is_ptmx(s->st.st_rdev);
}

/* A copy of the other end of a master. An fd, or a negative errno. */
static int
open_peer(int master, int flags)
{
	int fd = ioctl(master, TIOCGPTPEER, flags | O_NOCTTY);

	/* As a flag here it would stay with the open file, in what /proc shows of it. */
	if (fd >= 0)
		fcntl(fd, F_SETFD, FD_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/* All that can be read from fd now. */
static int
take(int fd, struct bytes *out)
{
	int n = 0;
	ssize_t got;

	if (ioctl(fd, FIONREAD, &n) < 0 || n <= 0)
		return 0;
	out->p = malloc((size_t)min_u64((uint64_t)n, QUEUE_MAX));
	if (out->p == NULL)
		return -ENOMEM;
	got = read(fd, out->p, (size_t)min_u64((uint64_t)n, QUEUE_MAX));
	out->n = got > 0 ? (size_t)got : 0;
	return 0;
}

static int
set_termios(int fd, const struct termios2 *t)
{
	return ioctl(fd, TCSETS2, t) < 0 ? -errno : 0;
}

/* Settings under which bytes pass from the master to the slave as they are. */
static bool
is_raw(const struct termios2 *t)
{
	return !(t->c_lflag & (ICANON | ECHO | ECHONL | ISIG)) &&
	    !(t->c_iflag & (ISTRIP | INLCR | IGNCR | ICRNL | IUCLC | IXON | PARMRK));
}

/* What was written and not yet read at the other end. Input only where it passes as it is. */
static int
put(int master, int slave, const struct termios2 *as, const struct bytes *output, const struct bytes *input)
{
	struct termios2 plain = *as;
	int err = 0;

	plain.c_oflag &= ~(tcflag_t)OPOST;
	if (output->n > 0) {
		err = set_termios(slave, &plain);
		if (err == 0)
			err = write_full(slave, output->p, output->n);
		if (err == 0)
			err = set_termios(slave, as);
	}
	if (err == 0 && input->n > 0)
		err = write_full(master, input->p, input->n);
	return err;
}

/*
 * There is no way to look at the queues of a terminal without emptying them: they are read and put back at once,
 * while nobody runs who could read or write them. Lines that the terminal edits are left alone: they could
 * not be put back as they were.
 */
static int
save_queues(struct kind_save *s, int master, int slave, struct pty_ref *p)
{
	const struct termios2 *t = (const struct termios2 *)p->termios.p;
	int in = 0, out = 0, err = 0;

	ioctl(master, FIONREAD, &out);
	ioctl(slave, FIONREAD, &in);
	if (in > 0 && !is_raw(t))
		err = report_add(s->report, LOSS, 0, s->object, NULL, "/dev/pts/%d: %d bytes of input that has not been read",
		    (int)p->number, in);
	if (out > 0 && p->packet)
		err = report_add(s->report, LOSS, 0, s->object, NULL, "/dev/pts/%d: output that has not been read",
		    (int)p->number);
	if (err == 0 && out > 0 && !p->packet)
		err = take(master, &p->output);
	if (err == 0 && in > 0 && is_raw(t))
		err = take(slave, &p->input);
	if (p->output.n > 0 || p->input.n > 0) {
		int back = put(master, slave, t, &p->output, &p->input);

		err = err < 0 ? err : back;
	}
	return err;
}

static int
save_pair(struct kind_save *s, int master, struct pty_ref *p)
{
	struct winsize size = {0};
	int slave, locked = 0, packet = 0, exclusive = 0, err, number = -1, zero = 0;

	if (ioctl(master, TIOCGPTN, &number) < 0)
		return -errno;
	p->number = number;
	ioctl(master, TIOCGPTLCK, &locked);
	ioctl(master, TIOCGPKT, &packet);
	ioctl(master, TIOCGEXCL, &exclusive);
	p->locked = locked != 0;
	p->packet = packet != 0;
	p->exclusive = exclusive != 0;
	if (locked)
		ioctl(master, TIOCSPTLCK, &zero);
	slave = open_peer(master, O_RDWR | O_NONBLOCK);
	if (locked)
		ioctl(master, TIOCSPTLCK, &locked);
	if (slave < 0)
		return slave;
	p->termios.p = calloc(1, sizeof(struct termios2));
	err = p->termios.p == NULL ? -ENOMEM : ioctl(slave, TCGETS2, p->termios.p) < 0 ? -errno : 0;
	p->termios.n = err == 0 ? sizeof(struct termios2) : 0;
	ioctl(slave, TIOCGWINSZ, &size);
	p->rows = size.ws_row;
	p->cols = size.ws_col;
	if (err == 0)
		err = save_queues(s, master, slave, p);
	close(slave);
	return err;
}

static int
save_master(struct kind_save *s, struct ofd *ofd)
{
	struct pty_ref p = {0}, *out;
	int fd = kind_get_fd(s), err, number = -1;

	ofd->flags &= O_ACCMODE | O_NONBLOCK | O_ASYNC;
	err = fd < 0 ? fd : ioctl(fd, TIOCGPTN, &number) < 0 ? -errno : 0;
	for (size_t i = 0; err == 0 && i < s->objects->nptys; i++)
		if (s->objects->ptys[i].number == number) {
			ofd->ref = (int64_t)i;
			close(fd);
			return 0;
		}
	if (err == 0)
		err = save_pair(s, fd, &p);
	close_fd(&fd);
	out = ARRAY_ADD(s->objects->ptys, s->objects->nptys);
	if (out == NULL)
		return -ENOMEM;
	*out = p;
	ofd->ref = (int64_t)s->objects->nptys - 1;
	return err < 0 ? fail(-err, "%s: pseudoterminal: %s", s->object, strerror(-err)) : 0;
}

/* The pair is known by its master, which may come later. */
static int
save_slave(struct kind_save *s, struct ofd *ofd)
{
	const struct held *h = kind_held_pty(s, true, kind_pty_number(s->st.st_rdev));
	struct kind_save master = *s;
	struct ofd ignored = {.ref = -1};
	int err;

	master.fd = h->fd;
	master.pidfd = h->pidfd;
	err = save_master(&master, &ignored);
	ofd->ref = ignored.ref;
	ofd->flags &= O_ACCMODE | O_NONBLOCK | O_ASYNC | LARGE;
	return err;
}

/* --- restart */

static int
fail_pty(const struct kind_load *l, const struct pty_ref *p)
{
	return fail_errno("fd %d: pseudoterminal %" PRId64, l->lowest, p->number);
}

/* The same number, if it is free: those that are not wanted are held until it comes up. */
static int
open_number(int64_t number)
{
	enum { TRIES = 256 };
	int held[TRIES], n = 0, fd = -1, first = -1, got;

	while (n < TRIES) {
		fd = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
		if (fd < 0 || ioctl(fd, TIOCGPTN, &got) < 0 || got == number)
			break;
		held[n++] = fd;
		/* Numbers are given from the lowest free one up: it is taken. */
		if (got > number)
			break;
		fd = -1;
	}
	if (n > 0 && (fd < 0 || fd == held[n - 1])) {
		first = held[0];
		fd = first;
	}
	for (int i = 0; i < n; i++)
		if (held[i] != fd)
			close(held[i]);
	return fd;
}

static int
load_master(const struct kind_load *l, const struct ofd *ofd)
{
	const struct pty_ref *p = &l->objects->ptys[ofd->ref];
	struct winsize size = {.ws_row = (unsigned short)p->rows, .ws_col = (unsigned short)p->cols};
	int fd = open_number(p->number), slave, zero = 0, one = 1, number = -1;

	if (fd < 0)
		return fail_pty(l, p);
	ioctl(fd, TIOCGPTN, &number);
	if (number != p->number)
		note("fd %d: pseudoterminal /dev/pts/%" PRId64 " is /dev/pts/%d here", l->lowest, p->number, number);
	ioctl(fd, TIOCSPTLCK, &zero);
	slave = open_peer(fd, O_RDWR | O_NONBLOCK);
	if (slave < 0 || set_termios(slave, (const struct termios2 *)p->termios.p) < 0 ||
	    ioctl(slave, TIOCSWINSZ, &size) < 0) {
		fail_pty(l, p);
		close(fd);
		close_fd(&slave);
		return -EIO;
	}
	/* As long as it has never been opened at the other end, or not again, it does not hang up. */
	l->ptys[ofd->ref] = slave;
	if (p->packet)
		ioctl(fd, TIOCPKT, &one);
	if (p->exclusive)
		ioctl(fd, TIOCEXCL);
	return fd;
}

static int64_t
master_of(const struct objects *o, const struct ofd *ofd, size_t n)
{
	if (n > 0)
		return -1;
	for (size_t i = 0; i < o->nofds; i++)
		if (o->ofds[i].kind == KIND_ptm && o->ofds[i].ref == ofd->ref)
			return (int64_t)i;
	return -1;
}

static int
load_slave(const struct kind_load *l, const struct ofd *ofd)
{
	const struct pty_ref *p = &l->objects->ptys[ofd->ref];
	int64_t master = master_of(l->objects, ofd, 0);
	int fd;

	if (master < 0 || l->fds[master] < 0)
		return fail(EBADMSG, "fd %d: a terminal whose other end no process has", l->lowest);
	fd = open_peer(l->fds[master], (int)(ofd->flags & (O_ACCMODE | O_NONBLOCK | LARGE)));
	if (fd < 0) {
		errno = -fd;
		return fail_pty(l, p);
	}
	return fd;
}

/* Once a pair: by the first of its masters. */
static int
fill_master(const struct kind_load *l, const struct ofd *ofd, int fd)
{
	const struct pty_ref *p = &l->objects->ptys[ofd->ref];
	int slave = l->ptys[ofd->ref], err, one = 1;

	if (slave < 0)
		return 0;
	fcntl(fd, F_SETFL, O_NONBLOCK);
	err = put(fd, slave, (const struct termios2 *)p->termios.p, &p->output, &p->input);
	fcntl(fd, F_SETFL, (int)(ofd->flags & O_NONBLOCK));
	if (p->locked)
		ioctl(fd, TIOCSPTLCK, &one);
	close_fd(&l->ptys[ofd->ref]);
	return err < 0 ? fail(-err, "fd %d: pseudoterminal: %s", l->lowest, strerror(-err)) : 0;
}

const struct kind kind_ptm = {.name = "pseudoterminal master", .match = is_master, .save = save_master,
    .load = load_master, .fill = fill_master};
const struct kind kind_pts = {.name = "pseudoterminal slave", .match = kind_pty_inside, .save = save_slave,
    .load = load_slave, .depends = master_of};
