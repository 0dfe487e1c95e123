#include "kind.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "io.h"

#define KIND(name) extern const struct kind kind_##name;
#include "kind.def"
#undef KIND

const struct kind *const kinds[KIND_COUNT] = {
#define KIND(name) &kind_##name,
#include "kind.def"
#undef KIND
};

int
kind_of(const struct kind_save *s)
{
	int i = s->home ? KIND_home : 0;

	while (i < KIND_unknown && !kinds[i]->match(s))
		i++;
	return i;
}

char *
path_mapped(const struct path_map *maps, size_t n, const char *path)
{
	char *to;

	for (size_t i = 0; i < n; i++) {
		size_t len = strlen(maps[i].from);

		if (strncmp(path, maps[i].from, len) != 0 || (path[len] != '/' && path[len] != '\0'))
			continue;
		if (asprintf(&to, "%s%s", maps[i].to, path + len) < 0)
			return NULL;
		return to;
	}
	return strdup(path);
}

int
inherited(const struct kind_load *l, int image_fd)
{
	for (size_t i = 0; i < l->ninherits; i++)
		if (l->inherits[i].image_fd == image_fd)
			return l->inherits[i].fd;
	return -1;
}

int
kind_get_fd(const struct kind_save *s)
{
	long fd = syscall(SYS_pidfd_getfd, s->pidfd, s->fd, 0);

	if (fd >= 0)
		return (int)fd;
	/* That takes what ptrace(2) takes. */
	return s->coop != NULL && (errno == EPERM || errno == ENOSYS) ? coop_get_fd(s->coop, s->fd) : -errno;
}

void
kind_shared_fini(struct kind_shared *shared)
{
	sock_free_unix(shared->sockets, shared->nsockets);
	for (size_t i = 0; i < shared->nfiles; i++)
		close_fd(&shared->files[i].fd);
	free(shared->files);
	free(shared->outside);
	*shared = (struct kind_shared){0};
}

static bool
is_inside(const struct kind_save *s, pid_t pid)
{
	for (size_t i = 0; i < s->ntasks; i++)
		if (s->tasks[i].pid == pid)
			return true;
	return pid <= 0 || pid == getpid();
}

static int
list_sockets(struct kind_shared *shared, pid_t pid)
{
	int proc = proc_open(pid), *fds, err = 0;
	size_t n = 0;

	if (proc < 0 || proc_list(proc, "fd", &fds, &n) < 0) {
		close_fd(&proc);
		return 0; /* it has ended, or may not be looked at */
	}
	for (size_t i = 0; i < n && err == 0; i++) {
		char path[32], *link = NULL;
		unsigned long long ino;
		ino_t *place;

		snprintf(path, sizeof(path), "fd/%d", fds[i]);
		if (read_link(proc, path, &link) == 0 && sscanf(link, "socket:[%llu]", &ino) == 1) {
			place = ARRAY_ADD(shared->outside, shared->noutside);
			err = place == NULL ? -ENOMEM : 0;
			if (place != NULL)
				*place = (ino_t)ino;
		}
		free(link);
	}
	free(fds);
	close(proc);
	return err;
}

static int
by_ino(const void *a, const void *b)
{
	ino_t x = *(const ino_t *)a, y = *(const ino_t *)b;

	return x < y ? -1 : x > y;
}

bool
kind_held_outside(const struct kind_save *s)
{
	struct kind_shared *shared = s->shared;
	int *pids;
	size_t n;

	if (!shared->outside_known && proc_list(AT_FDCWD, "/proc", &pids, &n) == 0) {
		for (size_t i = 0; i < n; i++)
			if (!is_inside(s, pids[i]) && list_sockets(shared, pids[i]) < 0)
				break;
		free(pids);
		qsort(shared->outside, shared->noutside, sizeof(*shared->outside), by_ino);
		shared->outside_known = true;
	}
	return shared->noutside > 0 &&
	    bsearch(&s->st.st_ino, shared->outside, shared->noutside, sizeof(*shared->outside), by_ino) != NULL;
}

int
kind_fdinfo(const struct kind_save *s, char **text)
{
	char path[32];
	ssize_t n;

	snprintf(path, sizeof(path), "fdinfo/%d", s->fd);
	n = read_file(s->proc, path, text);
	return n < 0 ? (int)n : 0;
}

bool
kind_fdinfo_number(const char *text, const char *key, int base, uint64_t *value)
{
	const char *p = strstr(text, key);

	*value = p == NULL ? 0 : strtoull(p + strlen(key), NULL, base);
	return p != NULL;
}

int
kind_held_fd(const struct held *h)
{
	struct kind_save s = {.pidfd = h->pidfd, .fd = h->fd, .coop = h->coop};

	return kind_get_fd(&s);
}

struct walk {
	const struct objects *o;
	int (*visit)(void *ctx, size_t ofd);
	void *ctx;
	bool *begun;
};
enum { ORDER_DEPTH = 64 };

static int
walk_from(struct walk *w, size_t i, unsigned depth)
{
	const struct kind *kind = kinds[w->o->ofds[i].kind];
	int64_t on;
	int err = 0;

	if (w->begun[i] || depth == 0)
		return 0;
	w->begun[i] = true;
	for (size_t n = 0; kind->depends != NULL && (on = kind->depends(w->o, &w->o->ofds[i], n)) >= 0 && err == 0; n++)
		err = walk_from(w, (size_t)on, depth - 1);
	return err < 0 ? err : w->visit(w->ctx, i);
}

int
kind_in_order(const struct objects *o, int (*visit)(void *ctx, size_t ofd), void *ctx)
{
	struct walk w = {o, visit, ctx, calloc(o->nofds + 1, sizeof(bool))};
	int err = w.begun == NULL ? -ENOMEM : 0;

	for (size_t i = 0; i < o->nofds && err == 0; i++)
		err = walk_from(&w, i, ORDER_DEPTH);
	free(w.begun);
	return err;
}

/* Through the process's own root and mount namespace. */
bool
kind_still_there(const struct kind_save *s)
{
	char *path;
	struct stat st;
	bool there;

	if (asprintf(&path, "root%s", s->link) < 0)
		return false;
	there = fstatat(s->proc, path, &st, AT_SYMLINK_NOFOLLOW) == 0 && st.st_dev == s->st.st_dev &&
	    st.st_ino == s->st.st_ino;
	free(path);
	return there;
}

/* Documentation/admin-guide/devices.txt: 136 to 143 are slaves, 5:2 is /dev/ptmx. */
int
kind_pty_number(dev_t rdev)
{
	return major(rdev) >= 136 && major(rdev) <= 143 ? (int)((major(rdev) - 136) * 256 + minor(rdev)) : -1;
}

bool
kind_is_ptmx(dev_t rdev)
{
	return rdev == makedev(5, 2);
}

const struct held *
kind_held_pty(const struct kind_save *s, bool master, int number)
{
	for (size_t i = 0; number >= 0 && i < s->nheld; i++)
		if (s->held[i].pty == number && kind_is_ptmx(s->held[i].st.st_rdev) == master)
			return &s->held[i];
	return NULL;
}

bool
kind_pty_inside(const struct kind_save *s)
{
	return S_ISCHR(s->st.st_mode) && kind_held_pty(s, true, kind_pty_number(s->st.st_rdev)) != NULL;
}

int
kind_open_fifo(const char *path)
{
	int at = open(path, O_PATH | O_CLOEXEC), fd;
	struct stat st;
	char own[32];

	if (at < 0 || fstat(at, &st) < 0)
		fd = -errno;
	else if (!S_ISFIFO(st.st_mode))
		fd = -ESTALE;
	else {
		snprintf(own, sizeof(own), "/proc/self/fd/%d", at);
		fd = open(own, O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
		fd = fd < 0 ? -errno : fd;
	}
	close_fd(&at);
	return fd;
}
