/*
 * Paths of here: the program's own entries in /proc, its terminal, and what tells of this machine's processors.
 */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "io.h"
#include "log.h"
#include "run.h"

enum kind {
	PATH_THERE,
	PATH_HERE,    /* as it is, or with the names of the one who asks */
	PATH_OTHER,   /* of there, by another name */
	PATH_PROGRAM, /* the link to its program */
};

/* Is text this, or something below it? Returns what follows, or NULL. */
static const char *
below(const char *text, const char *this)
{
	size_t n = strlen(this);

	return strncmp(text, this, n) == 0 && (text[n] == '\0' || text[n] == '/') ? text + n : NULL;
}

static bool
is_own(const struct run *r, pid_t pid)
{
	for (size_t i = 0; i < r->nprocesses; i++)
		if (r->processes[i]->pid == pid)
			return true;
	return false;
}

/* In /proc/PID: what tells of files is of there. */
static enum kind
in_proc(const struct thread *t, const char *rest, char other[PATH_MAX])
{
	static const char *const there[] = {"/cwd", "/root", "/mounts", "/mountinfo", "/mountstats", "/net"};
	const char *fd;

	if (below(rest, "/exe") != NULL)
		return PATH_PROGRAM;
	if ((fd = below(rest, "/fd")) != NULL || (fd = below(rest, "/fdinfo")) != NULL) {
		if (fd[0] == '\0' || !isdigit((unsigned char)fd[1]) || file_where(t->process, atoi(fd + 1)) != THERE)
			return PATH_HERE;
		snprintf(other, PATH_MAX, "/proc/thread-self%s", rest);
		return PATH_OTHER;
	}
	for (size_t i = 0; i < ARRAY_LEN(there); i++)
		if (below(rest, there[i]) != NULL) {
			snprintf(other, PATH_MAX, "/proc/thread-self%s", rest);
			return PATH_OTHER;
		}
	return PATH_HERE;
}

/* here: the path as we would have to say it. */
static enum kind
classify(const struct run *r, const struct thread *t, const char *path, char here[PATH_MAX], char other[PATH_MAX])
{
	static const char *const stdio[] = {"/dev/stdin", "/dev/stdout", "/dev/stderr"};
	const char *rest;
	char *end;
	long pid;

	snprintf(here, PATH_MAX, "%s", path);
	for (int fd = 0; fd < 3; fd++)
		if (strcmp(path, stdio[fd]) == 0) {
			snprintf(here, PATH_MAX, "/proc/%d/fd/%d", t->tid, fd);
			snprintf(other, PATH_MAX, "/proc/thread-self/fd/%d", fd);
			return file_where(t->process, fd) == THERE ? PATH_OTHER : PATH_HERE;
		}
	if ((rest = below(path, "/dev/fd")) != NULL) {
		snprintf(here, PATH_MAX, "/proc/%d/fd%s", t->tid, rest);
		snprintf(other, PATH_MAX, "/proc/thread-self/fd%s", rest);
		return rest[0] != '\0' && file_where(t->process, atoi(rest + 1)) == THERE ? PATH_OTHER : PATH_HERE;
	}
	/* What is in /dev/shm is memory, and is mapped to be shared. */
	if ((rest = below(path, "/dev/shm")) != NULL && rest[0] != '\0')
		return PATH_HERE;
	if (strcmp(path, "/dev/tty") == 0 || strcmp(path, "/proc/cpuinfo") == 0 || below(path, "/sys/devices/system/cpu") != NULL)
		return PATH_HERE;
	if ((rest = below(path, "/proc/self")) != NULL) {
		snprintf(here, PATH_MAX, "/proc/%d%s", t->process->pid, rest);
		return in_proc(t, rest, other);
	}
	if ((rest = below(path, "/proc/thread-self")) != NULL) {
		snprintf(here, PATH_MAX, "/proc/%d/task/%d%s", t->process->pid, t->tid, rest);
		return in_proc(t, rest, other);
	}
	if (strncmp(path, "/proc/", 6) == 0 && isdigit((unsigned char)path[6])) {
		pid = strtol(path + 6, &end, 10);
		if (is_own(r, (pid_t)pid))
			return pid == t->process->pid ? in_proc(t, end, other) : PATH_HERE;
	}
	return PATH_THERE;
}

/* With --local-program what the dynamic linker opens is of here, too. */
static bool
is_library(const struct run *r, const char *path)
{
	const char *name = strrchr(path, '/'), *so = name != NULL ? strstr(name, ".so") : NULL;

	return r->options->local_program && (strcmp(path, "/etc/ld.so.cache") == 0 || strcmp(path, "/etc/ld.so.preload") == 0 ||
	    (so != NULL && (so[3] == '\0' || so[3] == '.')));
}

static void
open_here(struct run *r, struct thread *t, const char *path, int dfd)
{
	bool at = t->call.nr == SYS_openat;
	uint64_t flags = t->call.nr == SYS_creat ? O_CREAT | O_WRONLY | O_TRUNC : t->call.arg[at ? 2 : 1];
	int fd;

	if (t->call.nr == SYS_openat2) {
		call_respond(t, -ENOSYS);
		return;
	}
	/* FIFOs of here, and terminals, must not keep us from the others. */
	fd = openat(dfd, path, (int)(flags | O_CLOEXEC | O_NONBLOCK | O_NOCTTY), (mode_t)t->call.arg[at ? 3 : 2]);
	if (fd >= 0 && (flags & O_NONBLOCK) == 0 && (flags & O_PATH) == 0)
		fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
	table_add_here(r, t, fd >= 0 ? fd : -errno, (flags & O_CLOEXEC) != 0);
}

static bool
is_open(long nr)
{
	return nr == SYS_open || nr == SYS_openat || nr == SYS_openat2 || nr == SYS_creat;
}

/* The same call with another path. */
static void
forward_with(struct run *r, struct thread *t, unsigned arg, const char *path)
{
	struct calldata *c = &t->data;
	int err;

	calldata_fini(c);
	t->sent = t->call;
	err = calldata_from_memory(c, &t->sent, thread_read, t);
	if (err == 0) {
		/* The old one stays where it is in the data, and is not sent. */
		err = calldata_put(c, arg, path, strlen(path) + 1);
	}
	if (err < 0)
		call_respond(t, err);
	else
		call_send(r, t);
}

static void
read_program_link(struct thread *t, unsigned arg)
{
	size_t n = min_u64(strlen(t->process->program), t->call.arg[arg + 2]);

	if (t->call.arg[arg + 2] == 0 || (int64_t)t->call.arg[arg + 2] < 0)
		call_respond(t, -EINVAL);
	else
		call_respond(t, thread_write(t, t->call.arg[arg + 1], t->process->program, n) < 0 ? -EFAULT : (int64_t)n);
}

/* Which argument is the path, and which the directory that it is relative to? */
static bool
find_path(const struct thread *t, unsigned *arg, int *dfd)
{
	struct calldata types;

	if (calldata_init(&types, t->call.nr) < 0)
		return false;
	*dfd = AT_FDCWD;
	for (unsigned i = 0; i < types.nargs; i++) {
		bool content = (t->call.nr == SYS_symlink || t->call.nr == SYS_symlinkat) && i == 0;

		if (!calldata_is(&types.arg[i], "s") || content)
			continue;
		if (i > 0 && calldata_is(&types.arg[i - 1], "dfd"))
			*dfd = (int)t->call.arg[i - 1];
		*arg = i;
		return t->call.nr != SYS_mq_open && t->call.nr != SYS_mq_unlink;
	}
	return false;
}

bool
paths_call(struct run *r, struct thread *t)
{
	char here[PATH_MAX], other[PATH_MAX], *path;
	bool is_link = t->call.nr == SYS_readlink || t->call.nr == SYS_readlinkat, done = true;
	unsigned arg;
	int dfd, fd;

	if (!find_path(t, &arg, &dfd) || t->call.arg[arg] == 0)
		return false;
	path = thread_string(t, t->call.arg[arg]);
	if (path == NULL) {
		call_respond(t, -errno);
		return true;
	}
	if (path[0] != '/' && file_where(t->process, dfd) == HERE) {
		fd = is_open(t->call.nr) ? file_fetch(t, dfd) : -1;
		if (is_open(t->call.nr))
			open_here(r, t, path, fd);
		else
			call_continue(t);
		close_fd(&fd);
		free(path);
		return true;
	}
	switch (classify(r, t, path, here, other)) {
	case PATH_PROGRAM:
		if (t->process->program == NULL)
			done = false;
		else if (is_link)
			read_program_link(t, arg);
		else
			forward_with(r, t, arg, t->process->program);
		break;
	case PATH_OTHER:
		forward_with(r, t, arg, other);
		break;
	case PATH_HERE:
		if (is_open(t->call.nr))
			open_here(r, t, here, AT_FDCWD);
		else
			call_continue(t);
		break;
	case PATH_THERE:
		done = is_library(r, path);
		if (done && is_open(t->call.nr))
			open_here(r, t, path, AT_FDCWD);
		else if (done)
			call_continue(t);
	}
	free(path);
	return done;
}
