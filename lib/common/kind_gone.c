/*
 * Files without a name: deleted or replaced while open, made with O_TMPFILE, or memfds. Their content is in the
 * image, once for all who have them open or mapped.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include "io.h"
#include "kind.h"
#include "log.h"

#define KEPT_FLAGS (O_ACCMODE | O_APPEND | O_NONBLOCK | O_DSYNC | O_SYNC | O_LARGEFILE | O_ASYNC | O_PATH)
#define DELETED " (deleted)"

static bool
match(const struct kind_save *s)
{
	return S_ISREG(s->st.st_mode) && s->link[0] == '/';
}

static bool
is_hugetlb(int fd)
{
	enum { HUGETLBFS = 0x958458f6 };
	struct statfs fs;

	return fstatfs(fd, &fs) == 0 && fs.f_type == HUGETLBFS;
}

/* A row in objects.files for it; fd: of ours, to read it by. */
static int64_t
add_file(struct kind_save *s, int fd)
{
	struct objects *o = s->objects;
	struct file_ref *ref = ARRAY_ADD(o->files, o->nfiles);
	struct known_file *known = ARRAY_ADD(s->shared->files, s->shared->nfiles);
	size_t len;

	if (ref == NULL || known == NULL || (ref->path = strdup(s->link)) == NULL ||
	    asprintf(&ref->member, "file/%zu", o->nfiles - 1) < 0)
		return -ENOMEM;
	*known = (struct known_file){s->st.st_dev, s->st.st_ino, (int64_t)o->nfiles - 1, fcntl(fd, F_DUPFD_CLOEXEC, 3)};
	len = strlen(ref->path);
	if (len > strlen(DELETED) && strcmp(ref->path + len - strlen(DELETED), DELETED) == 0)
		ref->path[len - strlen(DELETED)] = '\0';
	ref->size = (uint64_t)s->st.st_size;
	ref->mode = s->st.st_mode;
	ref->mtime_ns = (int64_t)s->st.st_mtim.tv_sec * 1000000000 + s->st.st_mtim.tv_nsec;
	ref->gone = true;
	return (int64_t)o->nfiles - 1;
}

static int
save(struct kind_save *s, struct ofd *ofd)
{
	char path[32];
	int fd, seals;

	snprintf(path, sizeof(path), "fd/%d", s->fd);
	fd = openat(s->proc, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return report_add(s->report, OBSTACLE, 69, s->object, "give the file its name back, or run ckpt as root",
		    "%s has been removed and cannot be read: %s", s->link, strerror(errno));
	if (is_hugetlb(fd)) {
		close(fd);
		return report_add(s->report, OBSTACLE, 69, s->object,
		    "have the program map it as anonymous memory (MAP_HUGETLB)", "%s: a file of hugetlbfs", s->link);
	}
	for (size_t i = 0; i < s->shared->nfiles; i++)
		if (s->shared->files[i].dev == s->st.st_dev && s->shared->files[i].ino == s->st.st_ino)
			ofd->ref = s->shared->files[i].ref;
	if (ofd->ref < 0)
		ofd->ref = add_file(s, fd);
	if (ofd->ref >= 0 && (seals = fcntl(fd, F_GET_SEALS)) >= 0)
		s->objects->files[ofd->ref].seals = (uint64_t)seals |
		    (strncmp(s->link, "/memfd:", 7) == 0 && !(seals & F_SEAL_SEAL) ? SEALABLE : 0);
	close(fd);
	ofd->flags &= KEPT_FLAGS;
	return ofd->ref < 0 ? (int)ofd->ref : 0;
}

static int
load(const struct kind_load *l, const struct ofd *ofd)
{
	const struct file_ref *ref = &l->objects->files[ofd->ref];
	int content = l->contents[ofd->ref], fd;
	char path[32];

	if (content < 0)
		return fail(EBADMSG, "fd %d: %s: is not in the image", l->lowest, ref->path);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", content);
	fd = open(path, (int)(ofd->flags & KEPT_FLAGS) | O_CLOEXEC | O_NOCTTY);
	if (fd < 0 || (!(ofd->flags & O_PATH) && lseek(fd, ofd->pos, SEEK_SET) < 0)) {
		int err = fail_errno("fd %d: %s", l->lowest, ref->path);

		close_fd(&fd);
		return err;
	}
	return fd;
}

const struct kind kind_gone = {.name = "file without a name", .match = match, .save = save, .load = load};
