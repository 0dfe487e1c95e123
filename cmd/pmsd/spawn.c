/*
 * What a keeper looks after: a command, or restart with what comes from elsewhere.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "io.h"
#include "keeper.h"
#include "log.h"
#include "program.h"

static int
open_in(const struct keeper *k, const char *name, int flags)
{
	char *path = NULL;
	int fd;

	if (asprintf(&path, "%s/%s", k->r.dir, name) < 0)
		return fail(ENOMEM, "out of memory");
	fd = open(path, flags | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0)
		fd = fail_errno("%s", path);
	free(path);
	return fd;
}

int
spawn_prepare(struct keeper *k)
{
	k->output = k->log = k->lock = k->status_in = k->report = k->daemon = k->signals = k->task.err = k->pidfd = -1;
	k->r.dir = place_job(k->r.id, true);
	if (k->r.dir == NULL)
		return -ENOENT;
	k->lock = open_in(k, "lock", O_RDWR);
	if (k->lock < 0)
		return k->lock;
	if (flock(k->lock, LOCK_EX | LOCK_NB) < 0)
		return fail_errno("%s: has a keeper", k->r.id);
	k->log = open_in(k, "output", O_WRONLY | O_APPEND);
	return k->log < 0 ? k->log : 0;
}

void
spawn_detach(struct keeper *k)
{
	char *path = NULL;
	int log;

	setsid();
	io_leave_stdio(false);
	log = asprintf(&path, "%s/keeper.log", k->r.dir) < 0 ? -1 : open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (log >= 0)
		dup2(log, STDERR_FILENO);
	close_fd(&log);
	free(path);
}

/* A pipe for what the job says; our end is not to hold us up. */
static int
output_pipe(struct keeper *k, int *theirs)
{
	int fds[2];

	if (pipe2(fds, O_CLOEXEC) < 0)
		return fail_errno("pipe");
	close_fd(&k->output);
	k->output = fds[0];
	fcntl(k->output, F_SETFL, O_NONBLOCK);
	*theirs = fds[1];
	return 0;
}

int
spawn_job(struct keeper *k, char **argv)
{
	int out = -1, failed[2], error = 0, err = output_pipe(k, &out);
	pid_t keeper = getpid();
	ssize_t n;

	if (err == 0 && pipe2(failed, O_CLOEXEC) < 0)
		err = fail_errno("pipe");
	if (err < 0) {
		close_fd(&out);
		return err;
	}
	k->child = fork();
	if (k->child == 0) {
		int null = open("/dev/null", O_RDONLY);

		setsid();
		child_begin();
		/* Where only ancestors may trace (Yama): our children may, which ckpt is. */
		prctl(PR_SET_PTRACER, (unsigned long)keeper, 0L, 0L, 0L);
		setenv("PMSD_JOB", k->r.id, 1);
		dup2(null, STDIN_FILENO);
		dup2(out, STDOUT_FILENO);
		dup2(out, STDERR_FILENO);
		execvp(argv[0], argv);
		error = errno;
		if (write(failed[1], &error, sizeof(error)) < 0)
			_exit(126);
		_exit(127);
	}
	close(out);
	close(failed[1]);
	n = k->child > 0 ? read_full(failed[0], &error, sizeof(error)) : -errno;
	close(failed[0]);
	if (n != 0)
		return n < 0 ? fail((int)-n, "fork: %s", strerror((int)-n)) : fail(error, "%s: %s", argv[0], strerror(error));
	k->r.pid = k->child;
	k->runs_ms = now_ms();
	keeper_state(k, "running", "");
	return 0;
}

int
spawn_restart(struct keeper *k, const char *image, int in, int to)
{
	int out = -1, status[2] = {-1, -1}, err = output_pipe(k, &out);
	char *program = NULL;

	if (err == 0)
		err = program_find("restart", &program);
	if (err == 0 && pipe2(status, O_CLOEXEC) < 0)
		err = fail_errno("pipe");
	if (err < 0) {
		close_fd(&out);
		free(program);
		return err == -ENOENT ? fail(ENOENT, "restart is not installed") : err;
	}
	close_fd(&k->pidfd); /* it will be our child */
	k->child = fork();
	if (k->child == 0) {
		char status_fd[24], stdio[48];
		int null = open("/dev/null", O_RDONLY), say = dup(STDERR_FILENO), theirs = fcntl(out, F_DUPFD, 10), zero = fcntl(null, F_DUPFD, 10), tell = fcntl(status[1], F_DUPFD, 10);

		/* What it has to save is saved here. */
		if (chdir(k->r.dir) < 0)
			_exit(126);
		child_begin();
		snprintf(status_fd, sizeof(status_fd), "%d", tell);
		setenv("PMSD_JOB", k->r.id, 1);
		/* For what leads outside; where it writes to a file it goes on doing so. */
		snprintf(stdio, sizeof(stdio), "%d,%d,%d", zero, theirs, theirs);
		dup2(in >= 0 ? in : null, STDIN_FILENO);
		dup2(to >= 0 ? to : out, STDOUT_FILENO);
		dup2(say, STDERR_FILENO);
		execl(program, "restart", "-q", "--status-fd", status_fd, "--stdio", stdio, image, (char *)NULL);
		_exit(127);
	}
	free(program);
	close(out);
	close(status[1]);
	close_fd(&k->status_in);
	k->status_in = status[0];
	fcntl(k->status_in, F_SETFL, O_NONBLOCK);
	return k->child < 0 ? fail_errno("fork") : 0;
}

/* "running PID", or "saved FILE". */
void
spawn_status(struct keeper *k)
{
	char text[PATH_MAX + 64], *line, *path = NULL;
	ssize_t n = k->status_in >= 0 ? read(k->status_in, text, sizeof(text) - 1) : -1;

	if (n == 0)
		close_fd(&k->status_in);
	if (n <= 0)
		return;
	text[n] = '\0';
	if ((line = strstr(text, "running ")) != NULL && strtol(line + 8, NULL, 10) > 0) {
		k->r.pid = strtol(line + 8, NULL, 10);
		k->runs_ms = now_ms();
		k->arrives = false;
		keeper_state(k, "running", "");
		keeper_answer(k, k->resume_tag, NULL);
		k->resume_tag[0] = '\0';
		if (k->image != NULL)
			unlink(k->image);
		free(k->image);
		k->image = NULL;
	} else if (k->arrives && (line = strstr(text, "saved ")) != NULL) {
		line += 6;
		line[strcspn(line, "\n")] = '\0';
		if (asprintf(&path, "%s%s%s", line[0] == '/' ? "" : k->r.dir, line[0] == '/' ? "" : "/", line) >= 0)
			keeper_state(k, "saved", path);
		free(path);
	}
}
