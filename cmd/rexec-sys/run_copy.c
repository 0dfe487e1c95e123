/*
 * Copies of files of the other machine, in memory: to map them, and to execute them. Kept as long as we run, by what a file is and when it was
 * changed.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "io.h"
#include "log.h"
#include "run.h"

enum { CHUNK = 1 << 20 };

/* The same, but nobody can write to it, and so it can be executed. Takes fd. */
static int
reopen_to_read(int fd)
{
	char path[64];
	int again;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	again = open(path, O_RDONLY | O_CLOEXEC);
	if (again < 0)
		again = -errno;
	close(fd);
	return again;
}

static int
fetch(struct run *r, struct thread *t, int there, uint64_t size)
{
	unsigned char *chunk = malloc(CHUNK);
	int fd = memfd_create("copy", MFD_CLOEXEC), err = fd < 0 || chunk == NULL ? -ENOMEM : 0;

	for (uint64_t at = 0; at < size && err == 0;) {
		int64_t n = CALL_NOW(r, t, SYS_pread64, (uint64_t)there, CALL_ADDRESS(chunk), CHUNK, at);

		if (n <= 0) {
			err = n < 0 ? (int)n : 0; /* it has become shorter */
			break;
		}
		err = pwrite(fd, chunk, (size_t)n, (off_t)at) == n ? 0 : -ENOMEM;
		at += (uint64_t)n;
	}
	free(chunk);
	if (err < 0) {
		close_fd(&fd);
		return err;
	}
	return reopen_to_read(fd);
}

static struct copy *
add(struct run *r, const struct copy *made)
{
	struct copy *c = malloc(sizeof(*c)), **slot = c != NULL ? ARRAY_ADD(r->copies, r->ncopies) : NULL;

	if (slot == NULL) {
		free(c);
		close(made->fd);
		return NULL;
	}
	*c = *made;
	*slot = c;
	return c;
}

struct copy *
copy_of(struct run *r, struct thread *t, int fd, const struct stat *st, int64_t *err)
{
	struct copy want = {st->st_dev, st->st_ino, (uint64_t)st->st_size, (uint64_t)st->st_mtim.tv_sec, (uint64_t)st->st_mtim.tv_nsec, -1, NULL};
	struct copy *c;

	for (size_t i = 0; i < r->ncopies; i++) {
		c = r->copies[i];
		if (c->dev == want.dev && c->ino == want.ino && c->size == want.size && c->mtime == want.mtime && c->mtime_nsec == want.mtime_nsec &&
		    c->interpreter == NULL)
			return c;
	}
	want.fd = fetch(r, t, fd, want.size);
	c = want.fd >= 0 ? add(r, &want) : NULL;
	*err = c != NULL ? 0 : want.fd >= 0 ? -ENOMEM : want.fd;
	return c;
}

struct copy *
copy_with_interpreter(struct run *r, struct copy *program, struct copy *interpreter, uint64_t at, uint64_t room)
{
	struct copy made = *program;
	char path[4096] = "";
	int fd;
	off_t done = 0;

	for (size_t i = 0; i < r->ncopies; i++)
		if (r->copies[i]->dev == made.dev && r->copies[i]->ino == made.ino && r->copies[i]->size == made.size &&
		    r->copies[i]->mtime == made.mtime && r->copies[i]->mtime_nsec == made.mtime_nsec && r->copies[i]->interpreter == interpreter)
			return r->copies[i];
	if ((uint64_t)snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)r->holder, interpreter->fd) >= room || room > sizeof(path))
		return NULL;
	fd = memfd_create("program", MFD_CLOEXEC);
	while (fd >= 0 && done < (off_t)made.size && copy_file_range(program->fd, &done, fd, NULL, made.size - (uint64_t)done, 0) > 0)
		;
	/* The rest of the old name is NULs. */
	if (fd < 0 || done < (off_t)made.size || pwrite(fd, path, room, (off_t)at) != (ssize_t)room) {
		close_fd(&fd);
		return NULL;
	}
	made.fd = reopen_to_read(fd);
	made.interpreter = interpreter;
	return made.fd >= 0 ? add(r, &made) : NULL;
}
