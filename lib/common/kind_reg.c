/*
 * Regular files and directories: found again by path, opened as they were, checked to be the same.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fileid.h"
#include "io.h"
#include "kind.h"
#include "log.h"

/* Flags that open(2) is given again; the others are how it was made, not what it is. */
#define KEPT_FLAGS                                                                             \
	(O_ACCMODE | O_APPEND | O_NONBLOCK | O_DIRECT | O_DSYNC | O_SYNC | O_PATH | O_NOFOLLOW | \
	    O_DIRECTORY | O_LARGEFILE | O_ASYNC | O_NOATIME)

static bool
is_reg(const struct kind_save *s)
{
	return S_ISREG(s->st.st_mode) && s->link[0] == '/' && kind_still_there(s);
}

static bool
is_dir(const struct kind_save *s)
{
	return S_ISDIR(s->st.st_mode);
}

static int
save_file(struct kind_save *s, struct ofd *ofd)
{
	struct file_ref *ref;
	char path[32];
	int fd, err;

	if (!kind_still_there(s))
		return report_add(s->report, OBSTACLE, 69, s->object,
		    "have the program close it, or give the file its name back",
		    "%s has been removed or replaced", s->link);
	ref = ARRAY_ADD(s->objects->files, s->objects->nfiles);
	if (ref == NULL || (ref->path = strdup(s->link)) == NULL)
		return -ENOMEM;
	ofd->ref = (int64_t)s->objects->nfiles - 1;
	ofd->flags &= KEPT_FLAGS;
	snprintf(path, sizeof(path), "fd/%d", s->fd);
	/* Opened anew: what the program may only write, we may often read. */
	fd = openat(s->proc, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0) {
		ref->size = (uint64_t)s->st.st_size;
		ref->mode = s->st.st_mode;
		ref->mtime_ns = (int64_t)s->st.st_mtim.tv_sec * 1000000000 + s->st.st_mtim.tv_nsec;
		return 0;
	}
	err = fileid_get(ref, fd,
	    (ofd->flags & O_ACCMODE) == O_RDONLY && !(ofd->flags & O_PATH) ? FILEID_SAMPLE : 0);
	close(fd);
	if (err == 0 && s->embed && S_ISREG(s->st.st_mode) &&
	    asprintf(&ref->member, "file/%zu", s->objects->nfiles - 1) < 0)
		return -ENOMEM;
	return err < 0 ? fail(-err, "%s: %s: %s", s->object, s->link, strerror(-err)) : 0;
}

/* What is different about the file that is here, or NULL. Longer is fine where the program appends. */
static const char *
difference(const struct file_ref *ref, const struct ofd *ofd, int fd)
{
	struct file_ref here = {0};
	bool reads = (ofd->flags & O_ACCMODE) == O_RDONLY && ref->sample != NULL;
	const char *what = NULL;

	if (fileid_get(&here, fd, reads ? FILEID_SAMPLE : 0) < 0)
		what = "cannot be read";
	else if ((here.mode & S_IFMT) != (ref->mode & S_IFMT))
		what = "is of another type";
	else if (reads && here.size != ref->size)
		what = "has another size";
	else if (reads && (here.sample == NULL || strcmp(here.sample, ref->sample) != 0))
		what = "has other contents";
	else if (S_ISREG(ref->mode) && here.size < ref->size)
		what = "is shorter than it was";
	else if (S_ISREG(ref->mode) && here.size > ref->size)
		note("%s: longer than it was: %" PRIu64 " bytes instead of %" PRIu64, ref->path,
		    here.size, ref->size);
	free(here.sample);
	free(here.build_id);
	free(here.hash);
	return what;
}

/* The file was embedded and is not here: put it where the program expects it. */
static int
create_from_image(const struct file_ref *ref, const char *path, int content)
{
	char *data;
	ssize_t n = 0;
	int fd;

	fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, (mode_t)ref->mode & 0777);
	if (fd < 0)
		return fail_errno("create %s", path);
	data = malloc(1 << 20);
	for (off_t at = 0; data != NULL && (n = pread(content, data, 1 << 20, at)) > 0; at += n)
		if (write_full(fd, data, (size_t)n) < 0) {
			n = -1;
			break;
		}
	if (data == NULL || n < 0) {
		n = fail_errno("write %s", path);
		unlink(path);
	}
	free(data);
	close(fd);
	return (int)n;
}

/* Opened as it was; where it is not here, from the image. An fd, or a negative errno, logged. */
static int
open_again(const struct kind_load *l, const struct ofd *ofd, const char *path)
{
	const struct file_ref *ref = &l->objects->files[ofd->ref];
	int flags = (int)(ofd->flags & KEPT_FLAGS) | O_NOCTTY, content = l->contents[ofd->ref];
	int err, fd = open_plain(path, flags);

	if (fd == -EPERM && (flags & O_NOATIME))
		fd = open_plain(path, flags & ~O_NOATIME);
	if (fd == -ENOENT && content >= 0) {
		if (l->check)
			return fcntl(content, F_DUPFD_CLOEXEC, 3);
		err = create_from_image(ref, path, content);
		if (err < 0)
			return err;
		if (l->created != NULL)
			l->created(l->ctx, path);
		fd = open_plain(path, flags);
	}
	return fd < 0 ? fail(-fd, "fd %d: %s: %s (--map OLD=NEW tells where it is here)", l->lowest, path,
	    fd == -EMEDIUMTYPE ? "not a file" : strerror(-fd)) : fd;
}

static int
load_file(const struct kind_load *l, const struct ofd *ofd)
{
	const struct file_ref *ref = &l->objects->files[ofd->ref];
	int fd = inherited(l, l->lowest);
	const char *what;
	char *path;

	if (fd >= 0) {
		fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
		return fd < 0 ? fail_errno("--inherit %d", l->lowest) : fd;
	}
	path = path_mapped(l->maps, l->nmaps, ref->path);
	if (path == NULL)
		return -ENOMEM;
	fd = open_again(l, ofd, path);
	if (fd >= 0 && (what = difference(ref, ofd, fd)) != NULL) {
		close(fd);
		fd = fail(ESTALE, "fd %d: %s: it %s (--map OLD=NEW tells where the right one is)",
		    l->lowest, path, what);
	} else if (fd >= 0 && !(ofd->flags & O_PATH) && ofd->pos > 0 &&
	    lseek(fd, ofd->pos, SEEK_SET) < 0) {
		int err = fail_errno("fd %d: %s: seek", l->lowest, path);

		close(fd);
		fd = err;
	}
	free(path);
	return fd;
}

const struct kind kind_reg = {.name = "regular file", .match = is_reg, .save = save_file, .load = load_file};
const struct kind kind_dir = {.name = "directory", .match = is_dir, .save = save_file, .load = load_file};
