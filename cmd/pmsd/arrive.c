/*
 * The other end of a move: what a keeper elsewhere has executed here, as the user who sent the job.
 *
 *   pmsd offer ID HOP STARTED NAME COMMAND    may it come? its output so far is standard input; name and command are in hexadecimal
 *   pmsd receive ID HOP                       a keeper, and restart, which speaks with ckpt over standard input and output
 *   pmsd tail ID HOP                          the rest of its output
 *   pmsd has ID HOP                           did it come? the exit status says it: arrive.h
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sysexits.h>
#include <unistd.h>

#include "arrive.h"
#include "io.h"
#include "client.h"
#include "keeper.h"
#include "log.h"

static bool
is_state(const struct job_record *r, const char *state)
{
	return strcmp(r->state, state) == 0;
}

static char *
from_hex(const char *hex)
{
	size_t n = strlen(hex) / 2;
	char *text = calloc(n + 1, 1);

	if (text != NULL && strcmp(hex, "-") != 0 && !hex_decode(text, n, hex)) {
		free(text);
		return NULL;
	}
	return text;
}

/* Its keeper lives as long as the lock is held. An fd with the lock, -EWOULDBLOCK, or another negative errno, logged. */
static int
lock(const char *dir)
{
	char *path = NULL;
	int fd = asprintf(&path, "%s/lock", dir) < 0 ? -1 : open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	if (fd < 0)
		fd = fail_errno("%s", dir);
	free(path);
	if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) < 0) {
		close(fd);
		return -EWOULDBLOCK;
	}
	return fd;
}

/* Standard input to the end, into a file of the job. */
static int
take_output(const char *dir, const char *name, int flags)
{
	char *path = NULL, data[65536];
	int fd = asprintf(&path, "%s/%s", dir, name) < 0 ? -1 : open(path, O_WRONLY | O_CREAT | O_CLOEXEC | flags, 0600);
	ssize_t n = 0;
	int err = fd < 0 ? fail_errno("%s", dir) : 0;

	while (err == 0 && (n = read(STDIN_FILENO, data, sizeof(data))) > 0)
		if (write_full(fd, data, (size_t)n) < 0)
			err = fail_errno("%s", path);
	if (err == 0 && n < 0)
		err = fail_errno("standard input");
	close_fd(&fd);
	free(path);
	return err;
}

static void
remove_in(const char *dir, const char *name)
{
	char *path = NULL;

	if (asprintf(&path, "%s/%s", dir, name) >= 0)
		unlink(path);
	free(path);
}

/* Says the daemon yes? */
static int
may_come(const char *id)
{
	char *answer = NULL;
	int err = client_ask(&answer, "may", id);

	if (err < 0)
		return err;
	err = strcmp(answer, "ok") == 0 ? 0 : fail(EAGAIN, "%s", strncmp(answer, "error\t", 6) == 0 ? answer + 6 : answer);
	free(answer);
	return err;
}

int
arrive_offer(const char *id, int64_t hop, const char *started, const char *name, const char *command)
{
	struct job_record r = {.hop = hop, .started = strtoll(started, NULL, 10)}, old = {0};
	int held = -1, err = may_come(id);

	if (err < 0)
		return EX_TEMPFAIL;
	snprintf(r.id, sizeof(r.id), "%s", id);
	strcpy(r.state, "offered");
	r.name = from_hex(name);
	r.command = from_hex(command);
	r.dir = place_job(id, true);
	if (r.name == NULL || r.command == NULL || r.dir == NULL || set_text(&r.place, "") < 0)
		err = fail(EINVAL, "%s: is no job", id);
	if (err == 0)
		held = lock(r.dir);
	if (err == 0 && held < 0)
		err = fail(EBUSY, "%s: is at %s already", id, place_host());
	if (err == 0 && state_read(r.dir, &old) == 0 && (old.hop > hop || (old.hop == hop && !is_state(&old, "offered") && !is_state(&old, "refused"))))
		err = fail(EEXIST, "%s: has been at %s after that", id, place_host());
	if (err == 0)
		err = take_output(r.dir, "before", O_TRUNC);
	if (err == 0) {
		remove_in(r.dir, "output");
		err = state_write(&r);
	}
	close_fd(&held);
	job_record_fini(&old);
	job_record_fini(&r);
	return err < 0 ? EX_CANTCREAT : 0;
}

int
arrive_tail(const char *id, int64_t hop)
{
	struct job_record r = {0};
	char *dir = place_job(id, false);
	int err = dir == NULL || state_read(dir, &r) < 0 || r.hop != hop ? fail(ENOENT, "no job %s came here", id) : 0;

	if (err == 0)
		err = take_output(dir, "before", O_APPEND);
	job_record_fini(&r);
	free(dir);
	return err < 0 ? EX_NOINPUT : 0;
}

int
arrive_has(const char *id, int64_t hop)
{
	struct job_record r = {0};
	char *dir = place_job(id, false);
	int held, answer = HAS_UNKNOWN;

	if (dir == NULL || state_read(dir, &r) < 0 || r.hop < hop) {
		free(dir);
		return HAS_NOT; /* and what has not been offered is not received */
	}
	held = lock(dir);
	if (r.hop > hop || is_state(&r, "running") || is_state(&r, "paused") || is_state(&r, "moving") || is_state(&r, "ended") || is_state(&r, "moved"))
		answer = HAS_COME; /* what became of it afterwards is this host's */
	else if (is_state(&r, "refused"))
		answer = HAS_NOT;
	else if (is_state(&r, "saved"))
		answer = HAS_IMAGE;
	else if (held >= 0 && (r.pid <= 0 || kill((pid_t)r.pid, 0) < 0)) {
		/* Whoever received it has gone, and restart with him: it must not come any more. */
		strcpy(r.state, "refused");
		answer = state_write(&r) < 0 ? HAS_UNKNOWN : HAS_NOT;
	}
	close_fd(&held);
	job_record_fini(&r);
	free(dir);
	return answer;
}

/* In the keeper: stdin and stdout are the channel. */
static int
receive(struct keeper *k, int report)
{
	int in = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 10), out = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 10), err;

	spawn_detach(k);
	k->report = report;
	k->arrives = true;
	strcpy(k->r.state, "arriving");
	err = in < 0 || out < 0 ? fail_errno("dup") : state_write(&k->r);
	if (err == 0)
		err = spawn_restart(k, "-", in, out);
	close_fd(&in);
	close_fd(&out);
	if (err < 0)
		return EX_OSERR;
	/* As long as that lives, it may come. */
	k->r.pid = k->child;
	state_write(&k->r);
	return keeper_loop(k) < 0 ? EX_OSERR : 0;
}

/* The last line of what was said there. */
static void
say_why(const char *dir)
{
	char *path = NULL, *text = NULL, *line;

	if (asprintf(&path, "%s/keeper.log", dir) >= 0 && read_file(AT_FDCWD, path, &text) > 0) {
		text[strlen(text) - 1] = '\0';
		line = strrchr(text, '\n');
		fprintf(stderr, "%s\n", line != NULL ? line + 1 : text);
	}
	free(text);
	free(path);
}

int
arrive_receive(const char *id, int64_t hop)
{
	struct keeper k = {0};
	struct job_record r = {0};
	char *dir = place_job(id, false), byte;
	int report[2], err = dir == NULL || state_read(dir, &r) < 0 || r.hop != hop || !is_state(&r, "offered") ? fail(ENOENT, "no job %s was offered", id) : 0;
	pid_t pid;

	free(dir);
	if (err == 0) {
		snprintf(k.r.id, sizeof(k.r.id), "%s", id);
		err = spawn_prepare(&k);
		job_record_fini(&r);
		/* Once more, now that nobody else can change it. */
		if (err == 0 && (state_read(k.r.dir, &r) < 0 || r.hop != hop || !is_state(&r, "offered")))
			err = fail(ENOENT, "no job %s was offered", id);
		k.r.name = r.name, k.r.command = r.command, k.r.started = r.started, k.r.hop = hop;
		set_text(&k.r.place, "");
	}
	if (err == 0 && pipe2(report, O_CLOEXEC) < 0)
		err = fail_errno("pipe");
	if (err < 0)
		return EX_UNAVAILABLE;
	remove_in(k.r.dir, "keeper.log");
	pid = fork();
	if (pid == 0) {
		close(report[0]);
		_exit(receive(&k, report[1]));
	}
	close(report[1]);
	if (pid > 0 && read_full(report[0], &byte, 1) == 1)
		return 0;
	say_why(k.r.dir);
	return EX_PROTOCOL;
}
