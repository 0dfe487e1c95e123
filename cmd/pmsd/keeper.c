/*
 * The keeper's loop: what the job says, its end, the programs that work for us, and the daemon, which may come and go.
 */
#include "keeper.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client.h"
#include "io.h"
#include "log.h"
#include "proc.h"

enum { RETRY_MS = 500, TURN_MS = 500, DAEMON_MS = 5000 };

int
status_of(int wait_status)
{
	return WIFSIGNALED(wait_status) ? 128 + WTERMSIG(wait_status) : WEXITSTATUS(wait_status);
}

/* --- the state, on the disk and at the daemon */

static void
put_numbers(const struct job_record *r, char pid[24], char status[24], char hop[24])
{
	snprintf(pid, 24, "%" PRId64, r->pid);
	snprintf(status, 24, "%" PRId64, r->status);
	snprintf(hop, 24, "%" PRId64, r->hop);
}

int
state_write(const struct job_record *r)
{
	char pid[24], status[24], hop[24], started[24], *name = NULL, *path = NULL;
	struct buf b = {0};
	int fd = -1, err = 0;

	put_numbers(r, pid, status, hop);
	snprintf(started, sizeof(started), "%" PRId64, r->started);
	words_put(&b, r->id, r->state, pid, status, hop, r->place, r->name, r->command, started, NULL);
	if (asprintf(&name, "%s/state.new", r->dir) < 0 || asprintf(&path, "%s/state", r->dir) < 0 || b.failed)
		err = -ENOMEM;
	if (err == 0)
		fd = open(name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (err == 0 && (fd < 0 || write_full(fd, b.data, b.len) < 0 || fsync(fd) < 0 || rename(name, path) < 0))
		err = fail_errno("%s", path);
	close_fd(&fd);
	buf_fini(&b);
	free(name);
	free(path);
	return err;
}

int
state_read(const char *dir, struct job_record *r)
{
	char *path = NULL, *text = NULL, *w[WORDS_MAX];
	int err = asprintf(&path, "%s/state", dir) < 0 ? -ENOMEM : 0;

	if (err == 0)
		err = (int)read_file(AT_FDCWD, path, &text);
	free(path);
	if (err < 0)
		return err;
	text[strcspn(text, "\n")] = '\0';
	err = words_split(text, w) == 9 && place_is_name(w[0]) ? 0 : -EBADMSG;
	if (err == 0) {
		*r = (struct job_record){.pid = strtoll(w[2], NULL, 10), .status = strtoll(w[3], NULL, 10), .hop = strtoll(w[4], NULL, 10), .started = strtoll(w[8], NULL, 10)};
		snprintf(r->id, sizeof(r->id), "%s", w[0]);
		snprintf(r->state, sizeof(r->state), "%s", w[1]);
		if (set_text(&r->place, w[5]) < 0 || set_text(&r->name, w[6]) < 0 || set_text(&r->command, w[7]) < 0 || set_text(&r->dir, dir) < 0)
			err = -ENOMEM;
	}
	free(text);
	return err;
}

static void
tell_state(struct keeper *k)
{
	char pid[24], status[24], hop[24];

	put_numbers(&k->r, pid, status, hop);
	words_put(&k->out, "state", k->r.state, pid, status, hop, k->r.place, NULL);
	k->told++;
}

void
keeper_state(struct keeper *k, const char *state, const char *place)
{
	snprintf(k->r.state, sizeof(k->r.state), "%s", state);
	set_text(&k->r.place, place);
	state_write(&k->r);
	if (k->daemon >= 0)
		tell_state(k);
}

void
keeper_answer(struct keeper *k, const char *tag, const char *why)
{
	if (tag[0] != '\0' && k->daemon >= 0)
		words_put(&k->out, "answer", tag, why == NULL ? "ok" : "error", why == NULL ? "" : why, NULL);
}

/* --- what the job says */

void
keeper_drain(struct keeper *k)
{
	char data[65536];
	ssize_t n = 0;

	while (k->output >= 0 && ((n = read(k->output, data, sizeof(data))) > 0 || (n < 0 && errno == EINTR)))
		if (n > 0 && write_full(k->log, data, (size_t)n) < 0)
			fail_errno("%s: its output", k->r.id);
	if (n == 0)
		close_fd(&k->output);
}

/* --- programs that work for us */

int
keeper_task(struct keeper *k, const char *command, int in, void (*then)(struct keeper *k, int status))
{
	int fds[2];

	if (pipe2(fds, O_CLOEXEC) < 0) {
		close_fd(&in);
		return fail_errno("pipe");
	}
	k->task = (struct task){.pid = fork(), .err = fds[0], .then = then};
	if (k->task.pid == 0) {
		child_begin();
		if (in >= 0)
			dup2(in, STDIN_FILENO);
		dup2(fds[1], STDERR_FILENO);
		if (chdir(k->r.dir) < 0)
			_exit(126);
		execl("/bin/sh", "sh", "-c", command, (char *)NULL);
		_exit(127);
	}
	close_fd(&in);
	close(fds[1]);
	fcntl(fds[0], F_SETFL, O_NONBLOCK);
	if (k->task.pid < 0) {
		close_fd(&k->task.err);
		k->task.pid = 0;
		return fail_errno("fork");
	}
	return 0;
}

/* The last of what it says counts. */
static void
hear_task(struct keeper *k)
{
	struct task *t = &k->task;
	char data[SAID_MAX];
	ssize_t n;

	while ((n = read(t->err, data, sizeof(data))) > 0) {
		size_t some = (size_t)n;

		if (log_level() >= LOG_VERBOSE)
			write_full(STDERR_FILENO, data, some);
		if (t->nsaid + some > SAID_MAX) {
			size_t drop = t->nsaid + some - SAID_MAX;

			drop = drop > t->nsaid ? t->nsaid : drop;
			memmove(t->said, t->said + drop, t->nsaid - drop);
			t->nsaid -= drop;
		}
		memcpy(t->said + t->nsaid, data, some);
		t->nsaid += some;
	}
	if (n == 0)
		close_fd(&t->err);
	t->said[t->nsaid] = '\0';
}

/* One line of all that was said: the reason that ckpt gives, or else the last. */
static void
choose_line(struct task *t)
{
	char *line = strstr(t->said, "ckpt: "), *end;

	while (t->nsaid > 0 && t->said[t->nsaid - 1] == '\n')
		t->said[--t->nsaid] = '\0';
	if (line != NULL && line != t->said && line[-1] != '\n')
		line = NULL;
	if (line == NULL)
		line = strrchr(t->said, '\n') != NULL ? strrchr(t->said, '\n') + 1 : t->said;
	end = strchr(line, '\n');
	if (end != NULL)
		*end = '\0';
	memmove(t->said, line, strlen(line) + 1);
}

static void
task_ended(struct keeper *k, int status)
{
	struct task *t = &k->task;

	if (t->err >= 0)
		hear_task(k);
	close_fd(&t->err);
	choose_line(t);
	t->pid = 0;
	t->then(k, status);
}

bool
job_lives(const struct keeper *k)
{
	int proc = k->r.pid > 0 ? proc_open((pid_t)k->r.pid) : -1;
	struct proc_stat st = {.state = 'X'};
	bool lives = proc >= 0 && proc_read_stat(proc, &st) == 0 && st.state != 'Z' && st.state != 'X';

	close_fd(&proc);
	return lives;
}

/* restart was its parent and has gone: the job, or the first process of its namespace, is ours now. */
static pid_t
adopted(const struct keeper *k)
{
	pid_t pid = job_lives(k) ? (pid_t)k->r.pid : 0;

	while (pid > 1) {
		pid_t parent = proc_parent(pid);

		if (parent == getpid())
			return pid;
		pid = parent;
	}
	return 0;
}

static void
reap(struct keeper *k)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		if (pid == k->child) {
			k->child_status = status_of(status);
			spawn_status(k);
			k->child = adopted(k);
		} else if (pid == k->task.pid) {
			task_ended(k, status_of(status));
		}
	}
}

/* --- what is ordered */

static int
signal_job(const struct keeper *k, int sig)
{
	pid_t group = k->r.pid > 0 ? getpgid((pid_t)k->r.pid) : -1;

	/* What it has in its group; ours is another. */
	if (group > 1 && group != getpgrp() && kill(-group, sig) == 0)
		return 0;
	return k->r.pid > 0 && kill((pid_t)k->r.pid, sig) == 0 ? 0 : -ESRCH;
}

static void
copied(struct keeper *k, int status)
{
	keeper_answer(k, k->tag, status == 0 ? NULL : k->task.said);
}

static void
copy(struct keeper *k, const char *tag, const char *file, bool executable)
{
	char *command = NULL;

	snprintf(k->tag, sizeof(k->tag), "%s", tag);
	setenv("PMSD_FILE", file, 1);
	if (asprintf(&command, "exec ckpt -q -c%s -p %" PRId64 " -o \"$PMSD_FILE\"", executable ? " -x" : "", k->r.pid) < 0 || keeper_task(k, command, -1, copied) < 0)
		keeper_answer(k, tag, "out of memory");
	free(command);
}

static void
order(struct keeper *k, char **w, int n)
{
	const char *tag = w[1], *verb = w[2], *a = n > 3 ? w[3] : "", *b = n > 4 ? w[4] : "";
	bool saved = strcmp(k->r.state, "saved") == 0;
	int err = 0;

	if (saved && strcmp(verb, "resume") == 0 && (!k->unsure || strcmp(a, "force") == 0) && k->child == 0) {
		k->unsure = false;
		move_resume_saved(k, tag);
	} else if (saved && strcmp(verb, "drop") == 0 && k->arrives && k->child == 0) {
		unlink(k->r.place);
		keeper_state(k, "refused", "");
		keeper_answer(k, tag, NULL);
	} else if (k->unsure) {
		keeper_answer(k, tag, "may run elsewhere, which is being asked (pmsd resume --force, if it is known not to)");
	} else if (k->task.pid > 0) {
		keeper_answer(k, tag, "is busy with something else");
	} else if (k->child == 0 && !(k->foreign && job_lives(k))) {
		keeper_answer(k, tag, "does not run");
	} else if (strcmp(verb, "migrate") == 0) {
		move_begin(k, tag, a, b);
	} else if (strcmp(verb, "ckpt") == 0) {
		copy(k, tag, a, strcmp(b, "executable") == 0);
	} else if (strcmp(verb, "kill") == 0) {
		int sig = a[0] != '\0' ? (int)strtol(a, NULL, 10) : SIGTERM;

		err = signal_job(k, sig);
		if (err == 0 && strcmp(k->r.state, "paused") == 0 && sig != SIGKILL)
			signal_job(k, SIGCONT);
		keeper_answer(k, tag, err < 0 ? "is not there" : NULL);
	} else if (strcmp(verb, "pause") == 0 || strcmp(verb, "resume") == 0) {
		err = signal_job(k, verb[0] == 'p' ? SIGSTOP : SIGCONT);
		if (err == 0)
			keeper_state(k, verb[0] == 'p' ? "paused" : "running", "");
		keeper_answer(k, tag, err < 0 ? "is not there" : NULL);
	} else {
		keeper_answer(k, tag, "is nothing that a keeper does");
	}
}

/* --- the daemon */

static void
lose_daemon(struct keeper *k)
{
	close_fd(&k->daemon);
	k->in.len = k->out.len = 0;
	k->try_ms = now_ms() + RETRY_MS;
	k->told = k->noted = 0;
}

static void
find_daemon(struct keeper *k)
{
	char started[24], pid[24], status[24], hop[24];

	k->try_ms = now_ms() + RETRY_MS;
	log_hush(1);
	k->daemon = client_connect();
	log_hush(-1);
	if (k->daemon < 0)
		return;
	fcntl(k->daemon, F_SETFL, O_NONBLOCK);
	snprintf(started, sizeof(started), "%" PRId64, k->r.started);
	put_numbers(&k->r, pid, status, hop);
	words_put(&k->out, "keep", k->r.id, k->r.name, k->r.command, k->r.dir, started, k->r.state, pid, status, hop, k->r.place, NULL);
}

static void
hear_daemon(struct keeper *k)
{
	unsigned char data[4096];
	char *line, *w[WORDS_MAX];
	ssize_t n = read(k->daemon, data, sizeof(data));

	if (n > 0)
		buf_put(&k->in, data, (size_t)n);
	else if (n == 0 || (errno != EAGAIN && errno != EINTR))
		lose_daemon(k);
	while (k->daemon >= 0 && (line = words_take_line(&k->in)) != NULL) {
		int words = words_split(line, w);

		if (words >= 3 && strcmp(w[0], "do") == 0)
			order(k, w, words);
		else if (words == 1 && strcmp(w[0], "ok") == 0)
			k->known = true;
		else if (words >= 1 && strcmp(w[0], "noted") == 0)
			k->noted++;
		else if (words >= 1 && strcmp(w[0], "error") == 0)
			lose_daemon(k); /* it has another keeper, or cannot write it down */
		free(line);
	}
}

static void
tell_daemon(struct keeper *k)
{
	ssize_t n = k->out.len > 0 ? send(k->daemon, k->out.data, k->out.len, MSG_NOSIGNAL | MSG_DONTWAIT) : 0;

	if (n > 0) {
		k->out.len -= (size_t)n;
		memmove(k->out.data, k->out.data + n, k->out.len);
	} else if (n < 0 && errno != EAGAIN && errno != EINTR) {
		lose_daemon(k);
	}
}

/* --- until it is over */

static void
report(struct keeper *k)
{
	if (k->report < 0 || k->runs_ms == 0 || (!k->known && now_ms() - k->runs_ms < DAEMON_MS))
		return;
	write_full(k->report, "+", 1);
	close_fd(&k->report);
}

static bool
is_over(const struct keeper *k)
{
	return strcmp(k->r.state, "ended") == 0 || strcmp(k->r.state, "moved") == 0 || strcmp(k->r.state, "refused") == 0 || strcmp(k->r.state, "lost") == 0;
}

/* What came from elsewhere, or from an image, has not come to run: it never will, or restart has left it as an image. */
static void
has_not_begun(struct keeper *k)
{
	if (strcmp(k->r.state, "saved") != 0)
		keeper_state(k, "refused", "");
	keeper_answer(k, k->resume_tag, "does not come to run; its keeper.log says why");
	k->resume_tag[0] = '\0';
	free(k->image);
	k->image = NULL;
}

/* The job has ended by itself, and not because it has moved. */
static void
see_to_end(struct keeper *k)
{
	bool moving = strcmp(k->r.state, "moving") == 0;

	if (moving || k->unsure) {
		move_go_on(k);
		return;
	}
	if (k->child > 0 || is_over(k) || k->task.pid > 0 || (k->foreign && job_lives(k)))
		return;
	if (k->image != NULL || strcmp(k->r.state, "arriving") == 0) {
		has_not_begun(k);
	} else if (strcmp(k->r.state, "saved") != 0) {
		keeper_drain(k);
		k->r.status = k->pidfd >= 0 ? keeper_stranger_status(k) : k->child_status;
		k->r.pid = 0;
		keeper_state(k, "ended", "");
	}
}

static void
turn(struct keeper *k)
{
	struct signalfd_siginfo si;
	struct pollfd p[] = {{k->signals, POLLIN, 0}, {k->output, POLLIN, 0}, {k->task.err, POLLIN, 0}, {k->daemon, (short)(POLLIN | (k->out.len > 0 ? POLLOUT : 0)), 0},
	    {k->status_in, POLLIN, 0}};

	poll(p, ARRAY_LEN(p), TURN_MS);
	if (p[1].revents != 0)
		keeper_drain(k);
	if (p[2].revents != 0 && k->task.err >= 0)
		hear_task(k);
	if (p[4].revents != 0)
		spawn_status(k);
	while (read(k->signals, &si, sizeof(si)) == sizeof(si))
		;
	reap(k);
	see_to_end(k);
	if (k->daemon >= 0 && p[3].revents & (POLLIN | POLLHUP | POLLERR))
		hear_daemon(k);
	if (k->daemon < 0 && now_ms() >= k->try_ms)
		find_daemon(k);
	if (k->daemon >= 0 && is_over(k) && k->told == 0)
		tell_state(k);
	if (k->daemon >= 0)
		tell_daemon(k);
	report(k);
}

int
keeper_loop(struct keeper *k)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_BLOCK, &set, NULL);
	/* Who wants to end the job ends the job. */
	signal(SIGINT, SIG_IGN), signal(SIGTERM, SIG_IGN), signal(SIGHUP, SIG_IGN), signal(SIGPIPE, SIG_IGN);
	k->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (chdir("/") < 0)
		note("/: %s", strerror(errno));
	if (k->signals < 0)
		return fail_errno("signalfd");
	/* What becomes an orphan when restart is killed comes to us. */
	prctl(PR_SET_CHILD_SUBREAPER, 1L, 0L, 0L, 0L);
	while (!is_over(k) || k->told == 0 || k->noted < k->told || k->out.len > 0 || k->task.pid > 0)
		turn(k);
	return 0;
}
