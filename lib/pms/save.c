/*
 * pms_checkpoint(): ckpt is started as a process that is none of ours, and asks us as it asks anybody.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

enum { LOOK_MS = 5 };

/* What the process that becomes ckpt says of itself before. In the image it is memory like any other. */
struct said {
	_Atomic int32_t pid, failed; /* an errno */
};

/* fork(2) by which a parent is told nothing: it has no SIGCHLD, and no child to wait for but by __WALL. */
static pid_t
fork_unseen(void)
{
	return (pid_t)raw(SYS_clone, 0, 0, 0, 0);
}

/* Until it is no descendant of ours any more. */
static void
become_ckpt(struct said *said, int status, pid_t us, const char *path)
{
	char pid[16], fd[16];
	sigset_t none;
	pid_t child = fork_unseen();

	if (child < 0)
		said->failed = (int32_t)-child;
	if (child != 0)
		_exit(0);
	said->pid = (int32_t)raw(SYS_getpid, 0, 0, 0, 0);
	snprintf(pid, sizeof(pid), "%d", (int)us);
	snprintf(fd, sizeof(fd), "%d", status);
	setsid();
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	fcntl(status, F_SETFD, 0);
	execlp("ckpt", "ckpt", "-q", "-c", "-p", pid, "-o", path, "--status-fd", fd, (char *)NULL);
	said->failed = errno;
	_exit(127);
}

/* The last line on its --status-fd says "done". */
static bool
has_done(int status)
{
	char text[256] = "";
	off_t end = lseek(status, 0, SEEK_END);
	ssize_t n = pread(status, text, sizeof(text) - 1, end > 200 ? end - 200 : 0);

	return n > 0 && strstr(text, "done\n") != NULL;
}

/* Not asked meanwhile: what is open here for a moment is not to be in the image. */
static ssize_t
read_unasked(const char *path, char *text, size_t size)
{
	sigset_t all, before;
	ssize_t n = -1;
	int fd;

	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &before);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0) {
		n = read(fd, text, size);
		close(fd);
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return n;
}

/* Gone, or nobody asks what has become of it. */
static bool
has_ended(pid_t pid)
{
	char path[32], text[512], *state;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	n = read_unasked(path, text, sizeof(text) - 1);
	if (n <= 0)
		return true;
	text[n] = '\0';
	state = strrchr(text, ')');
	return state == NULL || state[1] == '\0' || state[2] == 'Z' || state[2] == 'X';
}

static int
save(const char *path, int status, struct said *said)
{
	uint32_t before = answer_generation();
	struct timespec pause = {0, LOOK_MS * 1000000L};
	pid_t us = getpid(), child = fork_unseen();

	if (child == 0)
		become_ckpt(said, status, us, path);
	if (child < 0)
		return child;
	while (waitpid(child, NULL, __WALL) < 0 && errno == EINTR)
		;
	/* It may not have said who it is yet. */
	while (answer_generation() == before && said->failed == 0 && (said->pid == 0 || !has_ended(said->pid)))
		nanosleep(&pause, NULL);
	if (answer_generation() != before)
		return 1;
	return said->failed != 0 ? -said->failed : has_done(status) ? 0 : -EIO;
}

PUBLIC int
pms_checkpoint(const char *path)
{
	struct said *said;
	int status, result;

	if (pms_init() < 0)
		return -1;
	if (answer_disabled()) {
		errno = EBUSY;
		return -1;
	}
	said = mmap(NULL, sizeof(*said), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (said == MAP_FAILED)
		return -1;
	status = memfd_create("pms-status", MFD_CLOEXEC);
	result = status < 0 ? -errno : save(path, status, said);
	if (status >= 0)
		close(status);
	munmap(said, sizeof(*said));
	if (result < 0)
		errno = -result;
	return result < 0 ? -1 : result;
}
