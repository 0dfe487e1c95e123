/*
 * The other hosts: a file of addresses, a connection to the daemon of each, and what they say of themselves.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "io.h"
#include "log.h"
#include "server.h"

enum { RETRY_MS = 5000, SILENT_PERIODS = 3, FAR_JOBS_MAX = 10000 };

/* --- which there are */

struct host *
host_find(const struct server *s, const char *name)
{
	for (size_t i = 0; i < s->nhosts; i++)
		if (strcmp(s->hosts[i].name, name) == 0)
			return &s->hosts[i];
	return NULL;
}

static int
add_host(struct server *s, const char *name, const char *address, const char *key)
{
	struct host *h = ARRAY_ADD(s->hosts, s->nhosts);
	const char *ssh = getenv("PMS_SSH");

	if (h == NULL)
		return fail(ENOMEM, "out of memory");
	*h = (struct host){.fd = -1};
	snprintf(h->name, sizeof(h->name), "%s", name);
	if (address == NULL)
		return 0;
	/* Somebody who is to go there finds all that it takes in one command: a keeper may have been started by another ssh, which gives it another environment. */
	if (address[0] == 't' && asprintf(&h->route, "via:pmsd dial %s %s", address, key) < 0)
		return fail(ENOMEM, "out of memory");
	if (ssh != NULL && address[0] == 's' && asprintf(&h->route, "via:%s %s", ssh, address + 4) < 0)
		return fail(ENOMEM, "out of memory");
	return h->route != NULL || set_text(&h->route, address) == 0 ? set_text(&h->address, address) : -ENOMEM;
}

/* A shell takes it as it is. */
static bool
is_plain(const char *text)
{
	return text[strspn(text, "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ/._-:[]")] == '\0';
}

static int
read_line(struct server *s, const char *file, int number, char *line)
{
	char *save = NULL, *name, *address, given[HOST_MAX + 8];

	line[strcspn(line, "#\n")] = '\0';
	name = strtok_r(line, " \t", &save);
	if (name == NULL)
		return 0;
	address = strtok_r(NULL, "", &save);
	address = address != NULL ? address + strspn(address, " \t") : NULL;
	if (!place_is_name(name))
		return fail(EINVAL, "%s:%d: %s: is no name of a host", file, number, name);
	if (address == NULL || *address == '\0') {
		snprintf(given, sizeof(given), "ssh:%s", name);
		address = given;
	}
	if (strncmp(address, "ssh:", 4) != 0 && strncmp(address, "via:", 4) != 0 && strncmp(address, "tcp:", 4) != 0)
		return fail(EINVAL, "%s:%d: %s: neither ssh:HOST nor tcp:HOST:PORT nor via:COMMAND", file, number, address);
	if (address[0] == 't' && (!is_plain(address) || s->opt.key == NULL || !is_plain(s->opt.key)))
		return fail(EINVAL, "%s:%d: %s: takes a key (--key FILE), and a plain name of that", file, number, address);
	if (address[0] == 's' && !place_is_name(strchr(address, '@') != NULL ? strchr(address, '@') + 1 : address + 4))
		return fail(EINVAL, "%s:%d: %s: is no host", file, number, address);
	if (host_find(s, name) != NULL)
		return strcmp(name, place_host()) == 0 ? 0 : fail(EINVAL, "%s:%d: %s: is there twice", file, number, name);
	return add_host(s, name, address, s->opt.key);
}

int
hosts_read(struct server *s)
{
	char *usual = NULL, *line = NULL;
	const char *file = s->opt.hosts, *state = place_state();
	size_t room = 0;
	int err = add_host(s, place_host(), NULL, NULL), number = 0;
	FILE *f;

	if (file == NULL && asprintf(&usual, "%s/hosts", state) >= 0)
		file = usual;
	f = file != NULL ? fopen(file, "re") : NULL;
	/* The usual file need not be there. */
	if (f == NULL && err == 0 && s->opt.hosts != NULL)
		err = fail_errno("%s", file);
	while (f != NULL && err == 0 && getline(&line, &room, f) > 0)
		err = read_line(s, file, ++number, line);
	if (f != NULL)
		fclose(f);
	free(line);
	free(usual);
	return err;
}

char *
host_command(const char *address, const char *arguments)
{
	const char *ssh = getenv("PMS_SSH");
	char *command = NULL;
	int n;

	if (strncmp(address, "via:", 4) == 0)
		n = asprintf(&command, "%s pmsd %s", address + 4, arguments);
	else
		n = asprintf(&command, "%s %s pmsd %s", ssh != NULL ? ssh : "ssh -o BatchMode=yes", address + 4, arguments);
	return n < 0 ? NULL : command;
}

/* --- connections */

static void
lose(struct host *h, const char *why)
{
	if (h->up)
		note("%s: %s", h->name, why);
	h->up = false;
	close_fd(&h->fd);
	h->in.len = 0;
	h->nnews = 0;
	h->asked_ms = 0;
	if (h->child > 0)
		kill(h->child, SIGKILL);
	h->try_ms = now_ms() + RETRY_MS;
}

static void
go_there(struct host *h)
{
	char *command = host_command(h->route, "peer");
	int fds[2];

	h->try_ms = now_ms() + RETRY_MS;
	if (command == NULL || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0) {
		free(command);
		return;
	}
	h->child = fork();
	if (h->child == 0) {
		child_begin();
		dup2(fds[1], STDIN_FILENO);
		dup2(fds[1], STDOUT_FILENO);
		if (log_level() < LOG_VERBOSE) {
			int null = open("/dev/null", O_WRONLY);

			dup2(null, STDERR_FILENO);
		}
		execl("/bin/sh", "sh", "-c", command, (char *)NULL);
		_exit(127);
	}
	free(command);
	close(fds[1]);
	h->fd = fds[0];
	fcntl(h->fd, F_SETFL, O_NONBLOCK);
	if (h->child < 0)
		close_fd(&h->fd);
}

static void
ask(struct host *h)
{
	static const char question[] = "table\n";

	if (h->asked_ms == 0 && send(h->fd, question, sizeof(question) - 1, MSG_NOSIGNAL) == (ssize_t)sizeof(question) - 1)
		h->asked_ms = now_ms();
}

void
hosts_tick(struct server *s)
{
	int64_t now = now_ms(), period = (int64_t)s->opt.period_s * 1000;

	for (size_t i = 1; i < s->nhosts; i++) {
		struct host *h = &s->hosts[i];

		if (h->fd < 0 && h->child <= 0 && now >= h->try_ms)
			go_there(h);
		else if (h->fd >= 0 && h->asked_ms != 0 && now - h->asked_ms > max_i64(SILENT_PERIODS * period, 10000))
			lose(h, "does not answer");
		else if (h->fd >= 0 && h->asked_ms == 0 && now >= h->load.sampled_ms + (h->up ? period : 0))
			ask(h);
	}
}

/* --- what they say */

static void
take_host(struct host *h, char **w)
{
	h->load.runnable = strtod(w[2], NULL);
	h->load.cpus = (int)strtol(w[3], NULL, 10);
	h->load.memory_kb = strtoll(w[4], NULL, 10);
	h->load.free_kb = strtoll(w[5], NULL, 10);
	snprintf(h->load.arch, sizeof(h->load.arch), "%.15s", w[6]);
	snprintf(h->load.level, sizeof(h->load.level), "%.15s", w[7]);
	h->draining = strcmp(w[8], "draining") == 0;
}

static void
take_job(struct host *h, char **w)
{
	struct far_job *j = h->nnews < FAR_JOBS_MAX && place_is_name(w[1]) ? ARRAY_ADD(h->news, h->nnews) : NULL;

	if (j == NULL)
		return;
	*j = (struct far_job){.busy = strtod(w[4], NULL), .rss_kb = strtoll(w[5], NULL, 10), .age_s = strtoll(w[6], NULL, 10), .here_s = strtoll(w[7], NULL, 10)};
	snprintf(j->id, sizeof(j->id), "%s", w[1]);
	snprintf(j->state, sizeof(j->state), "%.15s", w[3]);
	snprintf(j->name, sizeof(j->name), "%.63s", w[8]);
}

/* All has been said. */
static void
take_news(struct server *s, struct host *h)
{
	bool was = h->up;

	free(h->jobs);
	h->jobs = h->news;
	h->njobs = h->nnews;
	h->news = NULL;
	h->nnews = 0;
	h->up = true;
	h->asked_ms = 0;
	h->load.sampled_ms = now_ms();
	if (!was)
		policy_event(s);
}

static void
take_line(struct server *s, struct host *h, char *line)
{
	char *w[WORDS_MAX];
	int n = words_split(line, w);

	if (n >= 9 && strcmp(w[0], "host") == 0)
		take_host(h, w);
	else if (n >= 9 && strcmp(w[0], "job") == 0)
		take_job(h, w);
	else if (n == 1 && strcmp(w[0], "ok") == 0)
		take_news(s, h);
	else
		lose(h, n > 1 && strcmp(w[0], "error") == 0 ? w[1] : "says what makes no sense");
}

size_t
hosts_poll(const struct server *s, struct pollfd *p)
{
	for (size_t i = 0; i < s->nhosts; i++)
		p[i] = (struct pollfd){s->hosts[i].fd, POLLIN, 0};
	return s->nhosts;
}

void
hosts_polled(struct server *s, const struct pollfd *p)
{
	for (size_t i = 1; i < s->nhosts; i++) {
		struct host *h = &s->hosts[i];
		unsigned char data[4096];
		char *line;
		ssize_t n;

		if (p[i].revents == 0 || p[i].fd != h->fd || h->fd < 0)
			continue;
		n = read(h->fd, data, sizeof(data));
		if (n > 0)
			buf_put(&h->in, data, (size_t)n);
		while (h->fd >= 0 && (line = words_take_line(&h->in)) != NULL) {
			take_line(s, h, line);
			free(line);
		}
		if (h->fd >= 0 && (n == 0 || (n < 0 && errno != EAGAIN) || h->in.len > LINE_MAX_BYTES))
			lose(h, "is out of reach");
	}
}

void
hosts_please(struct server *s, const char *job, const char *to)
{
	for (size_t i = 1; i < s->nhosts; i++)
		for (size_t k = 0; k < s->hosts[i].njobs && s->hosts[i].fd >= 0; k++) {
			struct buf b = {0};

			if (strcmp(s->hosts[i].jobs[k].id, job) != 0 || strcmp(s->hosts[i].name, to) == 0)
				continue;
			words_put(&b, "please", job, to, NULL);
			send(s->hosts[i].fd, b.data, b.len, MSG_NOSIGNAL | MSG_DONTWAIT);
			buf_fini(&b);
		}
}

void
hosts_child(struct server *s, pid_t pid)
{
	for (size_t i = 1; i < s->nhosts; i++)
		if (s->hosts[i].child == pid)
			s->hosts[i].child = 0;
}

void
hosts_close(struct server *s)
{
	for (size_t i = 0; i < s->nhosts; i++) {
		struct host *h = &s->hosts[i];

		close_fd(&h->fd);
		if (h->child > 0) {
			kill(h->child, SIGKILL);
			waitpid(h->child, NULL, 0);
		}
		buf_fini(&h->in);
		free(h->address);
		free(h->route);
		free(h->jobs);
		free(h->news);
	}
	free(s->hosts);
	s->nhosts = 0;
}

/* --- tables */

static void
put_job(struct buf *b, const char *id, const char *host, const char *state, double busy, int64_t rss_kb, int64_t age_s, int64_t here_s, const char *name)
{
	char cpu[24], rss[24], age[24], here[24];

	snprintf(cpu, sizeof(cpu), "%.2f", busy);
	snprintf(rss, sizeof(rss), "%" PRId64, rss_kb);
	snprintf(age, sizeof(age), "%" PRId64, age_s);
	snprintf(here, sizeof(here), "%" PRId64, here_s);
	words_put(b, "job", id, host, state, cpu, rss, age, here, name, NULL);
}

static void
put_host(struct buf *b, const char *name, const struct load *l, const char *state)
{
	char load[24], cpus[24], memory[24], room[24];

	snprintf(load, sizeof(load), "%.2f", l->runnable);
	snprintf(cpus, sizeof(cpus), "%d", l->cpus);
	snprintf(memory, sizeof(memory), "%" PRId64, l->memory_kb);
	snprintf(room, sizeof(room), "%" PRId64, l->free_kb);
	words_put(b, "host", name, load, cpus, memory, room, l->arch[0] ? l->arch : "-", l->level[0] ? l->level : "-", state, NULL);
}

void
hosts_table(const struct server *s, struct buf *b, bool all, int64_t uid)
{
	int64_t now = now_ms();

	put_host(b, place_host(), &s->load, s->draining ? "draining" : "self");
	for (size_t i = 1; i < s->nhosts && all; i++)
		put_host(b, s->hosts[i].name, &s->hosts[i].load, !s->hosts[i].up ? "down" : s->hosts[i].draining ? "draining" : "up");
	for (size_t i = 0; i < s->njobs; i++) {
		const struct job *j = s->jobs[i];

		if (j->keeper != NULL && job_is_here(&j->r) && (uid < 0 || uid == j->r.uid))
			put_job(b, j->r.id, place_host(), j->r.state, j->busy, j->rss_kb, (int64_t)time(NULL) - j->r.started, (now - j->arrived_ms) / 1000, j->r.name);
	}
	for (size_t i = 1; i < s->nhosts && all; i++)
		for (size_t k = 0; k < s->hosts[i].njobs && s->hosts[i].up; k++) {
			const struct far_job *j = &s->hosts[i].jobs[k];

			put_job(b, j->id, s->hosts[i].name, j->state, j->busy, j->rss_kb, j->age_s, j->here_s, j->name);
		}
}
