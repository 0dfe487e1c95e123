/*
 * Watches of files and directories: inotify(7). The kernel tells the watched inodes, not their paths: with the
 * right they are opened by handle, else looked for where the processes are and have files open.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io.h"
#include "kind.h"
#include "log.h"

#ifndef INOTIFY_IOC_SETNEXTWD
#define INOTIFY_IOC_SETNEXTWD _IOW('I', 0, int32_t)
#endif

static bool
match(const struct kind_save *s)
{
	return strcmp(s->link, "anon_inode:inotify") == 0;
}

/* A watched inode, as fdinfo has it: `inotify wd:1 ino:4d2 sdev:800001 mask:100 ...` */
struct watched {
	int64_t wd;
	uint64_t ino, sdev, mask;
	const char *handle; /* `fhandle-bytes:8 fhandle-type:1 f_handle:d204...` or NULL */
};

/* sdev has the kernel's own dev_t: minor in the low 20 bits. */
static bool
is_watched(const struct watched *w, const struct stat *st)
{
	return st->st_ino == w->ino && st->st_dev == (((w->sdev >> 20 & 0xfff) << 8) | (w->sdev & 0xff) |
	    (w->sdev & 0xfff00) << 12);
}

static char *
by_handle(const struct watched *w)
{
	union {
		struct file_handle h;
		unsigned char space[sizeof(struct file_handle) + MAX_HANDLE_SZ];
	} u = {.h.handle_bytes = 0};
	unsigned bytes, type;
	int skip, mount, fd;
	char path[32], *link = NULL;

	if (w->handle == NULL ||
	    sscanf(w->handle, "fhandle-bytes:%x fhandle-type:%x f_handle:%n", &bytes, &type, &skip) != 2 ||
	    bytes > MAX_HANDLE_SZ)
		return NULL;
	u.h.handle_bytes = bytes;
	u.h.handle_type = (int)type;
	for (unsigned i = 0; i < bytes; i++)
		sscanf(w->handle + skip + 2 * i, "%2hhx", &u.h.f_handle[i]);
	mount = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	fd = mount < 0 ? -1 : open_by_handle_at(mount, &u.h, O_PATH | O_CLOEXEC);
	if (fd >= 0) {
		struct stat st;

		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		if (fstat(fd, &st) < 0 || !is_watched(w, &st) || read_link(AT_FDCWD, path, &link) < 0)
			link = NULL;
	}
	close_fd(&fd);
	close_fd(&mount);
	return link;
}

enum { SEARCH_DEPTH = 3, SEARCH_MAX = 20000 };

/* The path itself, or what is in it, so many levels down. *budget: how many files may still be looked at. */
static char *
below(const struct watched *w, const char *path, unsigned depth, int *budget)
{
	struct stat st;
	struct dirent *e;
	char *found = NULL, *inner;
	DIR *dir;

	if (--*budget < 0 || lstat(path, &st) < 0)
		return NULL;
	if (is_watched(w, &st))
		return strdup(path);
	dir = depth > 0 && S_ISDIR(st.st_mode) ? opendir(path) : NULL;
	while (dir != NULL && found == NULL && *budget > 0 && (e = readdir(dir)) != NULL) {
		if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
			continue;
		if (asprintf(&inner, "%s%s%s", path, strcmp(path, "/") == 0 ? "" : "/", e->d_name) < 0)
			break;
		found = below(w, inner, e->d_type == DT_DIR || e->d_type == DT_UNKNOWN ? depth - 1 : 0, budget);
		free(inner);
	}
	if (dir != NULL)
		closedir(dir);
	return found;
}

static char *
in_directory(const struct watched *w, const char *path)
{
	int budget = SEARCH_MAX;

	return below(w, path, 1, &budget);
}

/* A path and every directory above it. */
static char *
upwards(const struct watched *w, const char *path)
{
	char *here = strdup(path), *found = NULL;

	while (here != NULL && here[0] == '/' && found == NULL) {
		char *slash = strrchr(here, '/');

		found = in_directory(w, here);
		if (here[1] == '\0')
			break;
		slash[slash == here ? 1 : 0] = '\0';
	}
	free(here);
	return found;
}

static char *
find_path(const struct kind_save *s, const struct watched *w)
{
	static const char *const usual[] = {"/tmp", "/var/tmp", "/etc", "/run", "/dev", "/var/log", "/usr/share"};
	char *found = by_handle(w), *cwd = NULL;
	int budget = SEARCH_MAX;

	for (size_t i = 0; i < s->ntasks && found == NULL; i++) {
		char path[32];

		snprintf(path, sizeof(path), "/proc/%d/cwd", s->tasks[i].pid);
		if (read_link(AT_FDCWD, path, &cwd) == 0) {
			found = below(w, cwd, SEARCH_DEPTH, &budget);
			found = found != NULL ? found : upwards(w, cwd);
		}
		free(cwd);
		cwd = NULL;
	}
	for (size_t i = 0; i < s->objects->nfiles && found == NULL; i++)
		found = upwards(w, s->objects->files[i].path);
	for (size_t i = 0; i < ARRAY_LEN(usual) && found == NULL; i++)
		found = in_directory(w, usual[i]);
	return found;
}

static int
add_watch(struct kind_save *s, struct inotify_ref *in, const struct watched *w)
{
	char *path = find_path(s, w);
	struct inotify_watch *out;

	if (path == NULL)
		return report_add(s->report, OBSTACLE, 69, s->object,
		    "run ckpt as root (CAP_DAC_READ_SEARCH), or have the program watch it by another way",
		    "an inotify watch of inode %" PRIu64 ", whose path is not known", w->ino);
	out = ARRAY_ADD(in->watches, in->nwatches);
	if (out == NULL) {
		free(path);
		return -ENOMEM;
	}
	*out = (struct inotify_watch){w->wd, w->mask & 0xffffffff, path};
	return 0;
}

static int
save(struct kind_save *s, struct ofd *ofd)
{
	struct inotify_ref *in = ARRAY_ADD(s->objects->inotifies, s->objects->ninotifies);
	int unread = 0, fd = kind_get_fd(s), err;
	char *text, *p;

	err = in == NULL ? -ENOMEM : kind_fdinfo(s, &text);
	if (err == 0 && fd >= 0 && ioctl(fd, FIONREAD, &unread) == 0 && unread > 0)
		err = report_add(s->report, LOSS, 0, s->object, NULL, "%d bytes of inotify events that have not been "
		    "read are lost", unread);
	close_fd(&fd);
	if (err < 0)
		return fail(-err, "%s: inotify: %s", s->object, strerror(-err));
	for (p = text; err == 0 && (p = strstr(p, "inotify wd:")) != NULL; p++) {
		struct watched w;

		if (sscanf(p, "inotify wd:%" SCNx64 " ino:%" SCNx64 " sdev:%" SCNx64 " mask:%" SCNx64, (uint64_t *)&w.wd,
			&w.ino, &w.sdev, &w.mask) != 4)
			err = fail(EBADMSG, "%s: inotify: fdinfo is not understood", s->object);
		w.handle = strstr(p, "fhandle-bytes:");
		if (w.handle != NULL && memchr(p, '\n', (size_t)(w.handle - p)) != NULL)
			w.handle = NULL;
		if (err == 0)
			err = add_watch(s, in, &w);
	}
	free(text);
	ofd->ref = (int64_t)s->objects->ninotifies - 1;
	ofd->flags &= O_ACCMODE | O_NONBLOCK | O_ASYNC;
	return err;
}

static int
watch_again(const struct kind_load *l, int fd, const struct inotify_watch *w)
{
	char *path = path_mapped(l->maps, l->nmaps, w->path);
	int32_t wd = (int32_t)w->wd;
	int got, err = 0;

	if (path == NULL)
		return -ENOMEM;
	ioctl(fd, INOTIFY_IOC_SETNEXTWD, wd); /* CONFIG_CHECKPOINT_RESTORE; what it gives shows below */
	got = inotify_add_watch(fd, path, (uint32_t)w->mask);
	if (got < 0)
		err = fail_errno("fd %d: watch of %s", l->lowest, path);
	else if (got != wd)
		err = fail(ENOTSUP, "fd %d: watch of %s: its number %d cannot be had on this kernel", l->lowest,
		    path, (int)wd);
	free(path);
	return err;
}

static int
load(const struct kind_load *l, const struct ofd *ofd)
{
	const struct inotify_ref *in = &l->objects->inotifies[ofd->ref];
	int fd = inotify_init1(IN_CLOEXEC | (ofd->flags & O_NONBLOCK ? IN_NONBLOCK : 0)), err = 0;

	if (fd < 0)
		return fail_errno("fd %d: inotify", l->lowest);
	for (size_t i = 0; i < in->nwatches && err == 0; i++)
		err = watch_again(l, fd, &in->watches[i]);
	if (err < 0)
		close(fd);
	return err < 0 ? err : fd;
}

const struct kind kind_inotify = {.name = "inotify", .match = match, .save = save, .load = load};
