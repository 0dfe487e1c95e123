/*
 * Who decides what moves: an executable that reads the tables of hosts and jobs on its standard input and prints `migrate JOB HOST` lines.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "io.h"
#include "log.h"
#include "program.h"
#include "server.h"

enum { PATIENCE_MS = 10000, SAID_MAX = 1 << 20, AT_ONCE_MS = 200 };

int
policy_find(const char *name, char **path)
{
	static const char *const places[] = {"../share/pms/policies", "../share/policies"};
	char *self = NULL, *slash;

	*path = NULL;
	if (strchr(name, '/') != NULL) {
		*path = realpath(name, NULL);
		return *path != NULL && access(*path, X_OK) == 0 ? 0 : fail_errno("policy %s", name);
	}
	if (read_link(AT_FDCWD, "/proc/self/exe", &self) < 0 || (slash = strrchr(self, '/')) == NULL) {
		free(self);
		return fail(ENOENT, "policy %s: not found", name);
	}
	*slash = '\0';
	for (size_t i = 0; i < ARRAY_LEN(places); i++) {
		if (asprintf(path, "%s/%s/%s", self, places[i], name) < 0)
			*path = NULL;
		if (*path != NULL && access(*path, X_OK) == 0)
			break;
		free(*path);
		*path = NULL;
	}
	free(self);
	return *path != NULL ? 0 : fail(ENOENT, "policy %s: is none of those that come with pms, and not a path", name);
}

int
policy_set(struct server *s, const char *name)
{
	char *path = NULL;
	int err = name != NULL && strcmp(name, "none") != 0 ? policy_find(name, &path) : 0;

	if (err < 0) {
		free(path);
		return err;
	}
	free(s->policy.path);
	s->policy.path = path;
	s->policy.next_ms = now_ms();
	return 0;
}

void
policy_event(struct server *s)
{
	int64_t soon = now_ms() + AT_ONCE_MS;

	if (s->policy.next_ms > soon)
		s->policy.next_ms = soon;
}

static void
start(struct server *s, const char *path)
{
	struct policy *p = &s->policy;
	struct buf table = {0};
	int in[2] = {-1, -1}, out[2] = {-1, -1};

	hosts_table(s, &table, true, -1);
	if (table.failed || pipe2(in, O_CLOEXEC) < 0 || pipe2(out, O_CLOEXEC) < 0) {
		fail_errno("policy %s", path);
		close_fd(&in[0]), close_fd(&in[1]);
		buf_fini(&table);
		return;
	}
	p->child = fork();
	if (p->child == 0) {
		child_begin();
		setpgid(0, 0);
		dup2(in[0], STDIN_FILENO);
		dup2(out[1], STDOUT_FILENO);
		execl(path, path, (char *)NULL);
		fail_errno("policy %s", path);
		_exit(127);
	}
	close(in[0]);
	close(out[1]);
	if (p->child < 0) {
		fail_errno("policy %s", path);
		close(in[1]);
		close(out[0]);
		buf_fini(&table);
		return;
	}
	p->out = in[1];
	p->in = out[0];
	fcntl(p->out, F_SETFL, O_NONBLOCK);
	fcntl(p->in, F_SETFL, O_NONBLOCK);
	p->table = (char *)table.data;
	p->table_len = table.len;
	p->table_done = 0;
	p->said.len = 0;
	p->since_ms = now_ms();
}

/* What it has printed is done where it makes sense. Of jobs elsewhere their own hosts decide. */
static void
do_line(struct server *s, char *line)
{
	char *w[WORDS_MAX], why[160];
	int n = words_split(line, w);
	struct job *j;

	if (n == 0)
		return;
	if (n != 3 || strcmp(w[0], "migrate") != 0) {
		note("the policy prints what makes no sense: %.60s", n > 0 ? w[0] : "?");
		return;
	}
	j = job_find(s, w[1]);
	if (j != NULL && job_is_here(&j->r) && strcmp(w[2], place_host()) != 0 && j->moving_tag == 0 && job_migrate(s, j, w[2], why) < 0)
		note("the policy: %s", why);
	/* Whoever is to give a job away is asked by who wants it. */
	if (j == NULL || !job_is_here(&j->r))
		hosts_please(s, w[1], w[2]);
}

static void
finish(struct server *s, bool good)
{
	struct policy *p = &s->policy;
	char *line;

	close_fd(&p->in);
	close_fd(&p->out);
	free(p->table);
	p->table = NULL;
	while (good && (line = words_take_line(&p->said)) != NULL) {
		do_line(s, line);
		free(line);
	}
	p->said.len = 0;
}

void
policy_tick(struct server *s)
{
	struct policy *p = &s->policy;
	int64_t now = now_ms();

	if (p->child > 0 && p->since_ms != 0 && now - p->since_ms > PATIENCE_MS) {
		note("the policy does not come to an end, and is ended");
		kill(-p->child, SIGKILL);
		kill(p->child, SIGKILL);
		p->since_ms = 0;
		finish(s, false);
	}
	if (p->child > 0 || now < p->next_ms)
		return;
	p->next_ms = now + (int64_t)s->opt.period_s * 1000;
	if (s->draining) {
		char *path = NULL;

		if (policy_find("drain", &path) == 0)
			start(s, path);
		free(path);
	} else if (p->path != NULL) {
		start(s, p->path);
	}
}

size_t
policy_poll(const struct server *s, struct pollfd *p)
{
	p[0] = (struct pollfd){s->policy.in, POLLIN, 0};
	p[1] = (struct pollfd){s->policy.out, POLLOUT, 0};
	return 2;
}

void
policy_polled(struct server *s, const struct pollfd *polled, size_t n)
{
	struct policy *p = &s->policy;
	unsigned char data[4096];
	ssize_t got;

	if (n == 2 && polled[1].revents != 0 && p->out >= 0 && polled[1].fd == p->out) {
		got = write(p->out, p->table + p->table_done, p->table_len - p->table_done);
		p->table_done += got > 0 ? (size_t)got : 0;
		if ((got < 0 && errno != EAGAIN) || p->table_done == p->table_len)
			close_fd(&p->out);
	}
	if (n < 1 || polled[0].revents == 0 || p->in < 0 || polled[0].fd != p->in)
		return;
	while ((got = read(p->in, data, sizeof(data))) > 0 && p->said.len < SAID_MAX)
		buf_put(&p->said, data, (size_t)got);
	if (got == 0 || p->said.len >= SAID_MAX)
		close_fd(&p->in);
}

void
policy_child(struct server *s, pid_t pid, int status)
{
	struct policy *p = &s->policy;
	bool good = WIFEXITED(status) && WEXITSTATUS(status) == 0;

	if (pid != p->child)
		return;
	p->child = 0;
	if (p->in >= 0) {
		struct pollfd last = {p->in, POLLIN, POLLIN};

		policy_polled(s, &last, 1);
	}
	if (!good && p->since_ms != 0)
		note(WIFSIGNALED(status) ? "the policy was ended by signal %d" : "the policy has failed with status %d", WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
	finish(s, good);
}

void
policy_close(struct server *s)
{
	struct policy *p = &s->policy;

	if (p->child > 0) {
		kill(-p->child, SIGKILL);
		waitpid(p->child, NULL, 0);
	}
	finish(s, false);
	buf_fini(&p->said);
	free(p->path);
}
