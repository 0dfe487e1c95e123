/*
 * The daemon: its socket, its connections, its clock.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "io.h"
#include "log.h"
#include "remote.h"
#include "server.h"

enum { CLIENTS_MAX = 1024, CLIENTS_OF_ONE = 256, LINES_AT_ONCE = 64, LOST_MS = 10000, AGAIN_MS = 3000, OUT_MAX = 16 << 20, TICK_MS = 500, STORE_MS = 10000 };

/* --- what clients are told */

void
client_say(struct client *c, const char *first, ...)
{
	const char *word = first;
	va_list ap;

	va_start(ap, first);
	for (bool begin = true; word != NULL; begin = false, word = va_arg(ap, const char *))
		words_put_word(&c->out, word, begin);
	va_end(ap);
	words_put_end(&c->out);
}

void
client_ok(struct client *c)
{
	client_say(c, "ok", NULL);
}

void
client_error(struct client *c, const char *fmt, ...)
{
	char text[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	client_say(c, "error", text, NULL);
}

/* --- connections */

static int
listen_at(struct server *s)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	int err;

	if (strlen(s->socket) >= sizeof(sun.sun_path))
		return fail(ENAMETOOLONG, "%s: too long for a socket", s->socket);
	strcpy(sun.sun_path, s->socket);
	s->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (s->listener < 0)
		return fail_errno("socket");
	if (connect(s->listener, (struct sockaddr *)&sun, sizeof(sun)) == 0) {
		close_fd(&s->listener);
		return fail(EADDRINUSE, "%s: a daemon is there already", s->socket);
	}
	close_fd(&s->listener);
	unlink(s->socket);
	s->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	err = s->listener < 0 || bind(s->listener, (struct sockaddr *)&sun, sizeof(sun)) < 0 ? fail_errno("%s", s->socket) : 0;
	/* Everybody may talk to that of root, and does so in his own name. */
	if (err == 0 && (chmod(s->socket, geteuid() == 0 ? 0666 : 0600) < 0 || listen(s->listener, 64) < 0))
		err = fail_errno("%s", s->socket);
	return err;
}

static size_t
clients_of(const struct server *s, int64_t uid)
{
	size_t n = 0;

	for (size_t i = 0; i < s->nclients; i++)
		n += s->clients[i]->uid == uid;
	return n;
}

static void
welcome(struct server *s)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);
	int fd = accept4(s->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	struct client *c, **slot;

	if (fd < 0)
		return;
	if (s->nclients >= CLIENTS_MAX + CLIENTS_OF_ONE || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0 ||
	    (cred.uid != geteuid() && cred.uid != 0 && (geteuid() != 0 || s->nclients >= CLIENTS_MAX || clients_of(s, cred.uid) >= CLIENTS_OF_ONE))) {
		close(fd);
		return;
	}
	c = calloc(1, sizeof(*c));
	slot = c != NULL ? ARRAY_ADD(s->clients, s->nclients) : NULL;
	if (slot == NULL) {
		free(c);
		close(fd);
		return;
	}
	*slot = c;
	c->fd = fd;
	c->uid = cred.uid;
	c->pid = cred.pid;
}

/* A place for one more who comes by TLS, or NULL: then he waits. */
static pid_t *
free_remote(struct server *s)
{
	for (size_t i = 0; i < REMOTES_MAX; i++)
		if (s->remotes[i] == 0)
			return &s->remotes[i];
	return NULL;
}

static void
client_free(struct server *s, struct client *c)
{
	for (size_t i = 0; i < s->njobs; i++)
		if (s->jobs[i]->keeper == c) {
			s->jobs[i]->keeper = NULL;
			s->jobs[i]->forsaken_ms = now_ms();
			job_forsaken(s, s->jobs[i]);
		}
	close_fd(&c->fd);
	buf_fini(&c->in);
	buf_fini(&c->out);
	free(c);
}

static void
hear(struct client *c)
{
	unsigned char data[16384];
	ssize_t n = c->in.len > LINE_MAX_BYTES ? -1 : read(c->fd, data, sizeof(data));

	/* No more than that at once: others wait, too. */
	errno = c->in.len > LINE_MAX_BYTES ? EAGAIN : errno;
	if (n > 0)
		buf_put(&c->in, data, (size_t)n);
	c->eof |= n == 0;
	c->dead |= (n < 0 && errno != EAGAIN && errno != EINTR) || c->in.failed;
}

/* One request after the other: the next waits for the answer of the last. */
static void
obey(struct server *s, struct client *c)
{
	char *line;

	for (int turns = LINES_AT_ONCE; turns > 0 && c->tag == 0 && c->waits[0] == '\0' && !c->waits_for_empty && !c->dead && (line = words_take_line(&c->in)) != NULL; turns--) {
		request(s, c, line);
		free(line);
	}
	if (c->in.len > LINE_MAX_BYTES && memchr(c->in.data, '\n', c->in.len) == NULL)
		c->dead = true;
}

static void
speak(struct client *c)
{
	ssize_t n = c->out.len > 0 ? send(c->fd, c->out.data, c->out.len, MSG_NOSIGNAL | MSG_DONTWAIT) : 0;

	if (n < 0 && errno != EAGAIN && errno != EINTR)
		c->dead = true;
	if (n > 0) {
		c->out.len -= (size_t)n;
		memmove(c->out.data, c->out.data + n, c->out.len);
	}
	c->dead |= c->out.len > OUT_MAX || c->out.failed;
	/* Who has said all, and has been told all, has gone. */
	c->dead |= c->eof && c->out.len == 0 && c->tag == 0 && c->waits[0] == '\0' && !c->waits_for_empty;
}

static void
bury(struct server *s)
{
	for (size_t i = 0; i < s->nclients;) {
		struct client *c = s->clients[i];

		if (!c->dead) {
			i++;
			continue;
		}
		s->clients[i] = s->clients[--s->nclients];
		client_free(s, c);
	}
}

/* --- signals and time */

static void
reap(struct server *s)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		policy_child(s, pid, status);
		hosts_child(s, pid);
		for (size_t i = 0; i < REMOTES_MAX; i++)
			s->remotes[i] = s->remotes[i] == pid ? 0 : s->remotes[i];
	}
}

static void
on_signal(struct server *s)
{
	struct signalfd_siginfo si;

	while (read(s->signals, &si, sizeof(si)) == sizeof(si)) {
		if (si.ssi_signo == SIGCHLD)
			continue;
		if (si.ssi_signo == SIGTERM && s->opt.drain_on_term && !s->draining) {
			note("everything leaves this host");
			s->draining = true;
			s->term_ms = now_ms();
			policy_event(s);
		} else {
			s->over = true;
		}
	}
	reap(s);
}

static size_t
jobs_here(const struct server *s)
{
	size_t n = 0;

	for (size_t i = 0; i < s->njobs; i++)
		n += job_is_here(&s->jobs[i]->r) || strcmp(s->jobs[i]->r.state, "saved") == 0;
	return n;
}

/* Nobody finishes what was begun: somebody has to. Of others' jobs their own daemon would. */
static void
keep_again(const struct server *s, const struct job *j)
{
	const struct host *h = host_find(s, j->r.place);
	char *self = NULL;

	if (j->r.uid != (int64_t)geteuid() || read_link(AT_FDCWD, "/proc/self/exe", &self) < 0)
		return;
	if (fork() == 0) {
		child_begin();
		execl(self, "pmsd", "keep", j->r.id, h != NULL ? h->name : "-", h != NULL && h->route != NULL ? h->route : "-", (char *)NULL);
		_exit(127);
	}
	free(self);
}

/* Its keeper does not come any more, and it is not there either. */
static void
bury_jobs(struct server *s, int64_t now)
{
	for (size_t i = 0; i < s->njobs; i++) {
		struct job *j = s->jobs[i];
		char name[40];

		if (j->keeper == NULL && now - j->forsaken_ms > AGAIN_MS && (strcmp(j->r.state, "moving") == 0 || strcmp(j->r.state, "saved") == 0)) {
			j->forsaken_ms = now;
			keep_again(s, j);
		}
		if (j->keeper != NULL || !job_is_here(&j->r) || strcmp(j->r.state, "moving") == 0 || now - j->forsaken_ms < LOST_MS)
			continue;
		snprintf(name, sizeof(name), "/proc/%d", (int)j->r.pid);
		if (j->r.pid > 0 && access(name, F_OK) == 0)
			continue;
		strcpy(j->r.state, "lost");
		job_changed(s, j, "lost");
	}
}

static void
measure_jobs(struct server *s, int64_t now)
{
	for (size_t i = 0; i < s->njobs; i++) {
		struct job *j = s->jobs[i];
		int64_t before = j->cpu_ms;

		if (!job_is_here(&j->r))
			continue;
		load_of_tree((pid_t)j->r.pid, &j->cpu_ms, &j->rss_kb);
		if (j->sampled_ms != 0 && now > j->sampled_ms && j->cpu_ms >= before)
			j->busy = (double)(j->cpu_ms - before) / (double)(now - j->sampled_ms);
		j->sampled_ms = now;
	}
}

static void
tick(struct server *s)
{
	int64_t now = now_ms();
	size_t here = jobs_here(s);

	load_sample(&s->load);
	if (now - s->sampled_ms >= 2000) {
		s->sampled_ms = now;
		measure_jobs(s, now);
		bury_jobs(s, now);
	}
	if (now - s->stored_ms >= STORE_MS) {
		s->stored_ms = now;
		for (size_t i = 0; i < s->nhosts; i++) {
			const struct host *h = &s->hosts[i];
			const struct load *l = h->address == NULL ? &s->load : &h->load;

			if (h->address == NULL || h->up)
				store_load(s->store, h->name, l->runnable, l->cpus, (int)(h->address == NULL ? here : h->njobs));
		}
	}
	hosts_tick(s);
	policy_tick(s);
	for (size_t i = 0; i < s->nclients && here == 0; i++)
		if (s->clients[i]->waits_for_empty) {
			s->clients[i]->waits_for_empty = false;
			client_ok(s->clients[i]);
		}
	if (s->term_ms != 0 && (here == 0 || now - s->term_ms > (int64_t)s->opt.grace_s * 1000))
		s->over = true;
}

/* --- from beginning to end */

enum { FIRST_CLIENT = 3 };

static void
turn(struct server *s)
{
	size_t nclients = s->nclients, n = FIRST_CLIENT, at_hosts, at_policy;
	struct pollfd *p = calloc(FIRST_CLIENT + nclients + s->nhosts + 2, sizeof(*p));
	pid_t *remote = free_remote(s);

	if (p == NULL) {
		poll(NULL, 0, TICK_MS);
		return;
	}
	p[0] = (struct pollfd){s->listener, POLLIN, 0};
	p[1] = (struct pollfd){s->signals, POLLIN, 0};
	p[2] = (struct pollfd){remote != NULL ? s->remote : -1, POLLIN, 0};
	for (size_t i = 0; i < nclients; i++) {
		struct client *c = s->clients[i];

		p[n++] = (struct pollfd){c->fd, (short)((c->eof ? 0 : POLLIN) | (c->out.len > 0 ? POLLOUT : 0)), 0};
	}
	at_hosts = n;
	n += hosts_poll(s, p + n);
	at_policy = n;
	n += policy_poll(s, p + n);
	poll(p, n, TICK_MS);
	if (p[1].revents != 0)
		on_signal(s);
	for (size_t i = 0; i < nclients; i++) {
		struct client *c = s->clients[i];

		if (p[FIRST_CLIENT + i].revents & (POLLIN | POLLHUP | POLLERR))
			hear(c);
		obey(s, c);
		/* What it has said before it went counts. */
		if (p[FIRST_CLIENT + i].revents & POLLHUP && c->eof)
			c->dead = true;
	}
	hosts_polled(s, p + at_hosts);
	policy_polled(s, p + at_policy, n - at_policy);
	if (p[0].revents != 0)
		welcome(s);
	if (p[2].revents != 0)
		*remote = (pid_t)max_i64(0, remote_welcome(s->remote, s->opt.key));
	free(p);
	tick(s);
	for (size_t i = 0; i < s->nclients; i++)
		obey(s, s->clients[i]);
	for (size_t i = 0; i < s->nclients; i++)
		speak(s->clients[i]);
	bury(s);
}

static void
remember(void *arg, const struct job_record *r)
{
	struct server *s = arg;
	struct job *j = calloc(1, sizeof(*j)), **slot = j != NULL ? ARRAY_ADD(s->jobs, s->njobs) : NULL;

	if (slot == NULL) {
		free(j);
		return;
	}
	*slot = j;
	j->forsaken_ms = now_ms();
	j->r = *r;
	j->r.name = j->r.command = j->r.dir = j->r.place = NULL;
	set_text(&j->r.name, r->name);
	set_text(&j->r.command, r->command);
	set_text(&j->r.dir, r->dir);
	set_text(&j->r.place, r->place);
}

static int
begin(struct server *s)
{
	const char *state = place_state();
	char *path = NULL;
	sigset_t set;
	int err = state == NULL ? -ENOENT : 0;

	umask(077);
	if (err == 0 && s->opt.key != NULL && (s->opt.key = realpath(s->opt.key, NULL)) == NULL)
		err = fail_errno("--key");
	if (err == 0 && asprintf(&path, "%s/history.db", state) < 0)
		return fail(ENOMEM, "out of memory");
	s->socket = s->opt.socket != NULL ? strdup(s->opt.socket) : NULL;
	if (err == 0 && s->socket == NULL && asprintf(&s->socket, "%s/socket", state) < 0)
		err = -ENOMEM;
	if (err == 0)
		err = hosts_read(s);
	if (err == 0)
		err = policy_set(s, s->opt.policy);
	if (err == 0)
		err = listen_at(s);
	if (err == 0 && s->opt.listen != NULL) {
		s->remote = remote_listen(s->opt.listen, s->opt.key, &s->remote_name);
		err = s->remote < 0 ? s->remote : 0;
	}
	if (err == 0)
		err = store_open(&s->store, path);
	if (err == 0)
		err = store_jobs(s->store, remember, s);
	free(path);
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD), sigaddset(&set, SIGTERM), sigaddset(&set, SIGINT), sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	s->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return err < 0 ? err : s->signals < 0 ? fail_errno("signalfd") : 0;
}

int
serve(const struct serve_options *opt)
{
	struct server s = {.opt = *opt, .listener = -1, .remote = -1, .signals = -1, .policy = {.in = -1, .out = -1}};
	int err = begin(&s);

	s.last_tag = (int64_t)time(NULL) << 20; /* no tag of an earlier daemon */

	if (err == 0) {
		printf("%s\n", s.socket);
		if (s.remote_name != NULL)
			printf("%s\n", s.remote_name);
		fflush(stdout);
	}
	while (err == 0 && !s.over)
		turn(&s);
	policy_close(&s);
	hosts_close(&s);
	if (s.listener >= 0)
		unlink(s.socket);
	close_fd(&s.listener);
	close_fd(&s.remote);
	free(s.remote_name);
	close_fd(&s.signals);
	/* The keepers go on by themselves, and come to the next daemon. */
	for (size_t i = 0; i < s.nclients; i++) {
		if (s.clients[i]->keeps != NULL)
			s.clients[i]->keeps->keeper = NULL;
		s.clients[i]->keeps = NULL;
		client_free(&s, s.clients[i]);
	}
	for (size_t i = 0; i < s.njobs; i++) {
		job_record_fini(&s.jobs[i]->r);
		free(s.jobs[i]);
	}
	free(s.clients);
	free(s.jobs);
	store_close(s.store);
	free(s.socket);
	return err;
}
