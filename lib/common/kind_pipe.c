/*
 * Pipes with both ends inside, and FIFOs: made or opened again with what is in them.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
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
	return S_ISFIFO(s->st.st_mode) && strncmp(s->link, "pipe:[", 6) == 0 && pipe_is_inside(s);
}

/* A copy of the content: tee(2) takes nothing out. fd: any end, of ours. */
static int
copy_content(int fd, struct pipe_ref *p)
{
	int copy[2], reader, left = 0, err = 0;
	char path[32];
	ssize_t n;

	p->size = (uint64_t)fcntl(fd, F_GETPIPE_SZ);
	if (ioctl(fd, FIONREAD, &left) < 0 || left == 0)
		return 0;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	reader = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (reader < 0 || pipe2(copy, O_CLOEXEC) < 0) {
		err = -errno;
		close_fd(&reader);
		return err;
	}
	p->data.p = malloc((size_t)left);
	if (p->data.p == NULL || fcntl(copy[1], F_SETPIPE_SZ, (int)p->size) < 0)
		err = -errno;
	n = err == 0 ? tee(reader, copy[1], (size_t)left, SPLICE_F_NONBLOCK) : 0;
	if (err == 0 && n == left && read_full(copy[0], p->data.p, (size_t)left) == left)
		p->data.n = (size_t)left;
	else if (err == 0)
		err = -EIO;
	close(reader);
	close(copy[0]);
	close(copy[1]);
	return err;
}

static bool
is_fifo(const struct kind_save *s)
{
	return S_ISFIFO(s->st.st_mode) && s->link[0] == '/' && pipe_is_inside(s);
}

static int
save(struct kind_save *s, struct ofd *ofd)
{
	struct objects *o = s->objects;
	struct pipe_ref *p = NULL;
	int fd, err;

	ofd->flags &= O_ACCMODE | O_NONBLOCK | O_DIRECT | O_ASYNC;
	ofd->path = strdup(s->link);
	if (ofd->path == NULL)
		return -ENOMEM;
	for (size_t i = 0; i < o->npipes; i++)
		if (o->pipes[i].id == s->st.st_ino) {
			ofd->ref = (int64_t)i;
			return 0;
		}
	p = ARRAY_ADD(o->pipes, o->npipes);
	if (p == NULL)
		return -ENOMEM;
	ofd->ref = (int64_t)o->npipes - 1;
	p->id = s->st.st_ino;
	/* One that has been removed is a pipe like others. */
	if (is_fifo(s) && kind_still_there(s) && (p->path = strdup(s->link)) == NULL)
		return -ENOMEM;
	fd = kind_get_fd(s);
	err = fd < 0 ? fd : copy_content(fd, p);
	close_fd(&fd);
	if (err == 0 && (ofd->flags & O_DIRECT) && p->data.n > 0)
		err = report_add(s->report, LOSS, 0, s->object, NULL, "%s: where its packets end", s->link);
	return err < 0 ? fail(-err, "%s: %s: its content cannot be copied: %s", s->object, s->link,
	    strerror(-err)) : 0;
}

/* Held open for both while it is filled, so that nothing gets lost. */
static int
open_fifo(const struct kind_load *l, const struct pipe_ref *p, int ends[2])
{
	char *path = path_mapped(l->maps, l->nmaps, p->path);
	int err = 0;

	if (path == NULL)
		return -ENOMEM;
	ends[0] = kind_open_fifo(path);
	if (ends[0] < 0)
		err = fail(-ends[0], "fd %d: %s: %s (--map OLD=NEW tells where it is here)", l->lowest, path,
		    ends[0] == -ESTALE ? "not a FIFO" : strerror(-ends[0]));
	else if ((ends[1] = fcntl(ends[0], F_DUPFD_CLOEXEC, 3)) < 0)
		err = fail_errno("fd %d: %s", l->lowest, path);
	free(path);
	return err;
}

static int
make(const struct kind_load *l, const struct pipe_ref *p, int ends[2])
{
	int there = 0, err = p->path != NULL ? open_fifo(l, p, ends) : pipe2(ends, O_CLOEXEC) < 0
	    ? fail_errno("pipe") : 0;

	if (err < 0)
		return err;
	/* On the same host a FIFO that somebody else has open still has its content. */
	if (p->path != NULL && ioctl(ends[0], FIONREAD, &there) == 0 && there > 0)
		return 0;
	/* The kernel gives less where a user has many. */
	if (p->size > 0)
		fcntl(ends[1], F_SETPIPE_SZ, (int)p->size);
	if (p->data.n > 0 && fcntl(ends[1], F_GETPIPE_SZ) < (int)p->data.n)
		return fail(ENOSPC, "a pipe of %llu bytes cannot be had (sysctl fs.pipe-user-pages-soft)",
		    (unsigned long long)p->size);
	if (p->data.n > 0 && write(ends[1], p->data.p, p->data.n) != (ssize_t)p->data.n)
		return fail_errno("pipe");
	return 0;
}

static int
load(const struct kind_load *l, const struct ofd *ofd)
{
	int *ends = l->pipes[ofd->ref], fd, err, side = (ofd->flags & O_ACCMODE) != O_RDONLY;
	char path[32];

	if (ends[0] < 0 && (err = make(l, &l->objects->pipes[ofd->ref], ends)) < 0)
		return err;
	/* The first of each end is the pipe's own; another one is opened anew, to have flags of its own. */
	if (l->objects->pipes[ofd->ref].path == NULL && !(l->pipes_given[ofd->ref] & 1u << side) &&
	    (ofd->flags & O_ACCMODE) != O_RDWR) {
		l->pipes_given[ofd->ref] |= (unsigned char)(1u << side);
		fd = fcntl(ends[side], F_DUPFD_CLOEXEC, 3);
		if (fd >= 0)
			fcntl(fd, F_SETFL, (int)(ofd->flags & (O_NONBLOCK | O_DIRECT)));
		return fd < 0 ? fail_errno("fd %d: %s", l->lowest, ofd->path) : fd;
	}
	snprintf(path, sizeof(path), "/proc/self/fd/%d", ends[side]);
	fd = open(path, (int)(ofd->flags & (O_ACCMODE | O_NONBLOCK)) | O_CLOEXEC);
	if (fd >= 0 && (ofd->flags & O_DIRECT))
		fcntl(fd, F_SETFL, (int)(ofd->flags & (O_NONBLOCK | O_DIRECT)));
	return fd < 0 ? fail_errno("fd %d: %s", l->lowest, ofd->path) : fd;
}

const struct kind kind_pipe = {.name = "pipe", .match = match, .save = save, .load = load};
const struct kind kind_fifo = {.name = "FIFO", .match = is_fifo, .save = save, .load = load};
