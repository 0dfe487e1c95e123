/*
 * The reading half of proc.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io.h"
#include "kfeat.h"
#include "proc.h"

int
proc_open(pid_t pid)
{
	char path[32];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d", (int)pid);
	fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

int
proc_read_maps(int dirfd, bool with_flags, struct proc_maps *maps)
{
	char *text;
	ssize_t n = read_file(dirfd, with_flags ? "smaps" : "maps", &text);
	int err;

	if (n < 0)
		return (int)n;
	err = proc_maps_parse(maps, text);
	free(text);
	return err;
}

static int
read_status(int dirfd, const char *path, struct proc_status *st)
{
	char *text;
	ssize_t n = read_file(dirfd, path, &text);
	int err;

	if (n < 0)
		return (int)n;
	err = proc_status_parse(st, text);
	free(text);
	return err;
}

int
proc_read_status(int dirfd, struct proc_status *st)
{
	return read_status(dirfd, "status", st);
}

int
proc_read_thread_status(int dirfd, pid_t tid, struct proc_status *st)
{
	char path[64];

	snprintf(path, sizeof(path), "task/%d/status", (int)tid);
	return read_status(dirfd, path, st);
}

int
proc_read_stat(int dirfd, struct proc_stat *st)
{
	char *text;
	ssize_t n = read_file(dirfd, "stat", &text);
	int err;

	if (n < 0)
		return (int)n;
	err = proc_stat_parse(st, text);
	free(text);
	return err;
}

int
proc_read_fdinfo(int dirfd, int fd, struct proc_fdinfo *info)
{
	char path[32], *text;
	ssize_t n;
	int err;

	snprintf(path, sizeof(path), "fdinfo/%d", fd);
	n = read_file(dirfd, path, &text);
	if (n < 0)
		return (int)n;
	err = proc_fdinfo_parse(info, text);
	free(text);
	return err;
}

int
proc_read_number(int dirfd, const char *name, int base, int64_t *value)
{
	char *text, *end;
	ssize_t n = read_file(dirfd, name, &text);

	if (n < 0)
		return (int)n;
	*value = strtoll(text, &end, base);
	n = end == text ? -EBADMSG : 0;
	free(text);
	return (int)n;
}

static int
by_number(const void *a, const void *b)
{
	int x = *(const int *)a, y = *(const int *)b;

	return x < y ? -1 : x > y;
}

int
proc_list(int dirfd, const char *name, int **numbers, size_t *n)
{
	int fd = openat(dirfd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct dirent *e;
	DIR *dir;

	*numbers = NULL;
	*n = 0;
	if (fd < 0)
		return -errno;
	dir = fdopendir(fd);
	if (dir == NULL) {
		close(fd);
		return -ENOMEM;
	}
	while ((e = readdir(dir)) != NULL) {
		int *number;

		if (e->d_name[0] == '.')
			continue;
		number = ARRAY_ADD(*numbers, *n);
		if (number == NULL) {
			closedir(dir);
			free(*numbers);
			return -ENOMEM;
		}
		*number = atoi(e->d_name);
	}
	closedir(dir);
	if (*n > 0)
		qsort(*numbers, *n, sizeof(**numbers), by_number);
	return 0;
}

/* task/TID/children: `123 456 `. Only with CONFIG_PROC_CHILDREN. */
static int
children_of_thread(int dirfd, int tid, int **pids, size_t *n)
{
	char path[64], *text, *p, *end;
	ssize_t len;

	snprintf(path, sizeof(path), "task/%d/children", tid);
	len = read_file(dirfd, path, &text);
	if (len < 0)
		return (int)len;
	for (p = text;; p = end) {
		long pid = strtol(p, &end, 10);
		int *out;

		if (end == p)
			break;
		out = ARRAY_ADD(*pids, *n);
		if (out == NULL) {
			free(text);
			return -ENOMEM;
		}
		*out = (int)pid;
	}
	free(text);
	return 0;
}

/* Every process says who its parent is. */
static int
children_by_search(pid_t pid, int **pids, size_t *n)
{
	int *all, err = proc_list(AT_FDCWD, "/proc", &all, n);
	size_t found = 0;

	if (err < 0)
		return err;
	for (size_t i = 0; i < *n; i++) {
		struct proc_status st;
		int proc = all[i] > 0 ? proc_open(all[i]) : -1;

		if (proc < 0)
			continue;
		if (proc_read_status(proc, &st) == 0) {
			if (st.ppid == pid)
				all[found++] = all[i];
			proc_status_fini(&st);
		}
		close(proc);
	}
	*pids = all;
	*n = found;
	return 0;
}

int
proc_children(int dirfd, pid_t pid, int **pids, size_t *n)
{
	int *tids, err;
	size_t ntids;

	*pids = NULL;
	*n = 0;
	err = proc_list(dirfd, "task", &tids, &ntids);
	if (err < 0)
		return err;
	for (size_t i = 0; i < ntids && err == 0; i++) {
		err = kfeat(KFEAT_proc_children) ? children_of_thread(dirfd, tids[i], pids, n) : -ENOENT;
		if (err == -ENOENT && access("/proc/self/task", F_OK) == 0) {
			free(*pids);
			free(tids);
			return children_by_search(pid, pids, n);
		}
	}
	free(tids);
	if (err < 0)
		free(*pids);
	else if (*n > 0)
		qsort(*pids, *n, sizeof(**pids), by_number);
	return err;
}

/* A kernel without such namespaces has one of it. */
static bool
same_ns(int a, int b, const char *path_a, const char *path_b)
{
	struct stat x, y;

	return fstatat(a, path_a, &x, 0) < 0 || fstatat(b, path_b, &y, 0) < 0 ||
	    (x.st_dev == y.st_dev && x.st_ino == y.st_ino);
}

bool
proc_same_ns(int dirfd, const char *name)
{
	char theirs[32], ours[32];

	snprintf(theirs, sizeof(theirs), "ns/%s", name);
	snprintf(ours, sizeof(ours), "/proc/self/ns/%s", name);
	return same_ns(dirfd, AT_FDCWD, theirs, ours);
}

bool
proc_share_ns(int dirfd, int other, const char *name)
{
	char path[32];

	snprintf(path, sizeof(path), "ns/%s", name);
	return same_ns(dirfd, other, path, path);
}

int64_t
proc_timens_offset(int dirfd, const char *clock)
{
	char *text;
	const char *p;
	long long s = 0, ns = 0;

	if (read_file(dirfd, "timens_offsets", &text) < 0)
		return 0;
	p = strstr(text, clock);
	if (p != NULL)
		sscanf(p + strlen(clock), "%lld %lld", &s, &ns);
	free(text);
	return s * 1000000000 + ns;
}

pid_t
proc_parent(pid_t pid)
{
	int proc = proc_open(pid);
	struct proc_stat st = {.ppid = -1};

	if (proc >= 0 && proc_read_stat(proc, &st) < 0)
		st.ppid = -1;
	close_fd(&proc);
	return st.ppid;
}
