/*
 * Who comes, and when it is over.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fault.h"
#include "handover.h"
#include "io.h"
#include "log.h"
#include "pagesrv.h"
#include "record.h"

enum { USERS_MAX = 256, REMEMBERED = 64 };

/* --- sessions */

static struct session *
new_session(struct server *server, const struct attach *a)
{
	static const unsigned char none[PAGE_SESSION];
	struct session *s = calloc(1, sizeof(*s)), **slot = NULL;
	bool shared = (a->flags & ATTACH_SHARED) != 0;
	int err;

	if (s == NULL)
		return NULL;
	s->server = server;
	s->since_ms = now_ms();
	s->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	pthread_mutex_init(&s->outbox_lock, NULL);
	memcpy(s->identity, a->session, PAGE_SESSION);
	if (memcmp(a->session, none, PAGE_SESSION) == 0 && getrandom(s->identity, PAGE_SESSION, 0) != PAGE_SESSION)
		fail_errno("random numbers");
	s->reader = source_reader_new(server->source, server->opt->level);
	if (shared && server->shared == NULL)
		server->shared = space_new();
	s->shared = shared;
	s->space = shared ? server->shared : space_new();
	if (s->reader != NULL && s->space != NULL && s->wake >= 0)
		slot = ARRAY_ADD(server->sessions, server->nsessions);
	if (slot == NULL) {
		fail(ENOMEM, "out of memory or open files");
		session_free(s);
		return NULL;
	}
	*slot = s;
	space_lock(s->space);
	err = space_enter(s->space, s);
	space_unlock(s->space);
	if (err == 0)
		return s;
	server->nsessions--;
	session_free(s);
	return NULL;
}

/* How long is a session kept for somebody who has gone without a word? */
static int64_t
patience_ms(const struct server *server)
{
	return server->opt->retry_s * 1000LL;
}

/* Those that do not come again are only remembered, and not for ever. */
static void
forget(struct server *server)
{
	size_t kept = 0;

	for (size_t i = server->nsessions; i-- > 0;) {
		struct session *s = server->sessions[i];

		if (s->serving)
			continue;
		if (!s->over && !s->complete && server->owner == NULL && now_ms() - s->since_ms > patience_ms(server)) {
			s->over = true;
			session_end(s);
		}
		if ((s->over || s->complete) && ++kept > REMEMBERED) {
			session_free(s);
			memmove(&server->sessions[i], &server->sessions[i + 1], (--server->nsessions - i) * sizeof(struct session *));
		}
	}
}

struct session *
server_session(struct server *server, const struct attach *a, bool *known)
{
	struct session *s = NULL;

	pthread_mutex_lock(&server->lock);
	*known = false;
	for (size_t i = 0; i < server->nsessions && s == NULL; i++)
		if (memcmp(server->sessions[i]->identity, a->session, PAGE_SESSION) == 0 && !server->sessions[i]->shared)
			s = server->sessions[i];
	if (s != NULL && (s->complete || s->over)) {
		fail(EBUSY, "that session is over");
		s = NULL;
	} else if (s != NULL && s->serving) {
		/* He has lost a connection of which we do not know it yet; he tries again. */
		if (s->link.in >= 0)
			shutdown(s->link.in, SHUT_RDWR);
		fail(EBUSY, "that session has another connection");
		s = NULL;
	} else if (s != NULL) {
		*known = true;
		/* He says again what he wants. */
		s->nranges = s->at_range = 0;
		s->credit = 0;
	} else {
		forget(server);
		s = new_session(server, a);
	}
	if (s != NULL)
		s->serving = true;
	pthread_mutex_unlock(&server->lock);
	return s;
}

void
server_end(struct server *server)
{
	uint64_t one = 1;

	server->over = true;
	if (write(server->wake, &one, sizeof(one)) < 0)
		fail_errno("eventfd");
}

void
server_left(struct server *server, struct session *s)
{
	pthread_mutex_lock(&server->lock);
	if (s->link.peer != NULL)
		link_close(&s->link);
	s->link.in = -1;
	s->serving = false;
	s->since_ms = now_ms();
	/* What several use does not wait for one. */
	if (s->shared) {
		space_lock(s->space);
		space_leave(s->space, s);
		space_unlock(s->space);
		s->over = true;
	}
	/* The one who had taken it says that it has not come to run; or nobody else can come for it. */
	if (server->owner != NULL && !s->runs && (s->took ? s->over : server->single)) {
		owner_failed(server->owner);
		s->over = true;
		server_end(server);
	} else if (s->complete && (server->opt->once || server->owner != NULL)) {
		server_end(server);
	} else if (server->owner != NULL && !s->took) {
		s->over = true; /* somebody else may come */
	} else if (!s->complete && !s->over && !server->over) {
		note("%s: a user has gone before he had all; it may come again", server->name);
	}
	if (s->over || s->complete)
		session_end(s);
	pthread_cond_broadcast(&server->changed);
	pthread_mutex_unlock(&server->lock);
}

/* The one for whom we are has gone, and has not come again in time. */
static bool
is_forsaken(struct server *server)
{
	bool forsaken;

	if (!server->opt->once && !server->single)
		return false;
	pthread_mutex_lock(&server->lock);
	forsaken = server->nsessions > 0;
	for (size_t i = 0; i < server->nsessions; i++) {
		const struct session *s = server->sessions[i];

		forsaken &= !s->serving && (s->complete || s->over || server->single || now_ms() - s->since_ms > patience_ms(server));
	}
	/* A connection that was there already, and is no more: nobody has come. */
	forsaken |= server->single && server->threads == 0;
	pthread_mutex_unlock(&server->lock);
	return forsaken;
}

/* --- threads */

struct arrival {
	struct server *server;
	const struct addr *addr; /* NULL: link is there already */
	int fd;
	struct link link;
};

static void
server_thread_ends(struct server *server)
{
	pthread_mutex_lock(&server->lock);
	server->threads--;
	pthread_cond_broadcast(&server->changed);
	pthread_mutex_unlock(&server->lock);
}

static void *
run(void *arg)
{
	struct arrival *a = arg;
	struct server *server = a->server;

	if (a->addr == NULL || addr_welcome(a->addr, server->opt->key, a->fd, &a->link) == 0)
		session_run(server, &a->link);
	else if (a->link.peer != NULL)
		link_close(&a->link);
	free(a);
	server_thread_ends(server);
	return NULL;
}

static int
begin(struct server *server, const struct addr *addr, int fd, const struct link *link)
{
	struct arrival *a = calloc(1, sizeof(*a));
	pthread_t thread;
	bool room;

	pthread_mutex_lock(&server->lock);
	room = server->threads < USERS_MAX;
	server->threads += room;
	pthread_mutex_unlock(&server->lock);
	if (a == NULL || !room) {
		close_fd(&fd);
		free(a);
		debug(LOG_VERBOSE, "%s: no more than %d at once", server->name, USERS_MAX);
		if (room)
			server_thread_ends(server);
		return -EBUSY;
	}
	*a = (struct arrival){.server = server, .addr = addr, .fd = fd, .link = {.in = -1, .out = -1}};
	if (link != NULL)
		a->link = *link;
	if (pthread_create(&thread, NULL, run, a) != 0) {
		close_fd(&fd);
		free(a);
		server_thread_ends(server);
		return fail(EAGAIN, "out of threads");
	}
	pthread_detach(thread);
	return 0;
}

/* --- until it is over */

static int
wait_for_users(struct server *server, const struct addr *a, int listener, int signals)
{
	struct pollfd p[4] = {{listener, POLLIN, 0}, {signals, POLLIN, 0}, {server->wake, POLLIN, 0}, {-1, POLLIN, 0}};
	int err = 0;

	while (err == 0 && !server->over) {
		p[3].fd = server->owner != NULL ? owner_control(server->owner) : -1;
		if (poll(p, 4, server->opt->once || server->single ? 200 : -1) < 0 && errno != EINTR)
			err = fail_errno("poll");
		if (p[1].revents != 0)
			err = -EINTR;
		if (err == 0 && p[0].revents != 0) {
			int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

			if (fd >= 0)
				begin(server, a, fd, NULL);
			else
				poll(NULL, 0, 100); /* out of open files, for now */
		}
		if (err == 0 && p[3].fd >= 0 && p[3].revents != 0 && owner_left(server->owner))
			err = -ECONNRESET;
		if (err == 0 && is_forsaken(server))
			break;
	}
	if (err < 0)
		server_end(server);
	return err;
}

/* Everybody has been told that it is over, or has been given the time. */
static void
wait_for_threads(struct server *server)
{
	struct timespec end;

	clock_gettime(CLOCK_REALTIME, &end);
	end.tv_sec += 2;
	pthread_mutex_lock(&server->lock);
	while (server->threads > 0 && pthread_cond_timedwait(&server->changed, &server->lock, &end) == 0)
		;
	pthread_mutex_unlock(&server->lock);
}

static int
signal_fd(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM), sigaddset(&set, SIGINT), sigaddset(&set, SIGHUP);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

/* listener: -1 where the other side is there already, as link. */
static int
run_server(struct server *server, const struct addr *a, int listener, const struct link *link)
{
	int signals = signal_fd(), err;

	pthread_mutex_init(&server->lock, NULL);
	pthread_cond_init(&server->changed, NULL);
	server->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (server->wake < 0 || signals < 0)
		return fail_errno("eventfd");
	server->single = link != NULL;
	err = link != NULL ? begin(server, NULL, -1, link) : 0;
	if (err == 0)
		err = wait_for_users(server, a, listener, signals);
	wait_for_threads(server);
	close_fd(&signals);
	return err;
}

static void
print_address(const struct addr *a, int listener)
{
	char *text = addr_listening(a, listener);

	if (text != NULL && printf("%s\n", text) > 0)
		fflush(stdout);
	free(text);
}

static int
serve_at(struct server *server)
{
	const struct serve_options *opt = server->opt;
	struct link link;
	static struct addr a; /* threads that have not ended in time still use it */
	int listener = -1, err = addr_parse(&a, opt->address);

	if (err == 0 && (a.kind == ADDR_STDIO || a.kind == ADDR_FD)) {
		err = addr_take(&a, &link);
		if (err == 0)
			err = run_server(server, &a, -1, &link);
	} else if (err == 0) {
		listener = addr_listen(&a, opt->key);
		err = listener < 0 ? listener : 0;
		if (err == 0) {
			print_address(&a, listener);
			err = run_server(server, &a, listener, NULL);
		}
		addr_unlisten(&a, &listener);
	}
	return err;
}

static int
open_image(struct server *server, const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	server->name = path;
	return fd < 0 ? fail_errno("%s", path) : source_open_image(&server->source, fd, path);
}

int
serve(const struct serve_options *opt)
{
	static struct server server = {.wake = -1};
	struct page_plan plan = {.listen = -1, .in = -1, .out = -1, .control = -1};
	static char name[32];
	int err;

	server.opt = opt;
	if (opt->image != NULL) {
		err = open_image(&server, opt->image);
	} else {
		snprintf(name, sizeof(name), "pid %d", opt->pid);
		server.name = name;
		err = owner_find(&server.owner, &plan, opt->pid);
		if (err == 0)
			err = source_open_live(&server.source, &plan);
		free(plan.tasks);
	}
	if (err == 0)
		err = serve_at(&server);
	/* Threads that have not ended in time still use it: it goes with the process. */
	return err == -EINTR ? 0 : err;
}

int
serve_local(const char *image, const struct addr *a, int listener, int retry_s)
{
	static struct serve_options opt = {.once = true};
	static struct server server = {.opt = &opt, .wake = -1};
	int err = open_image(&server, image);

	opt.retry_s = retry_s;
	if (err < 0)
		return err;
	/* What goes wrong from now on, the one for whom we are tells. */
	log_to(open("/dev/null", O_WRONLY | O_CLOEXEC));
	return run_server(&server, a, listener, NULL);
}

int
serve_plan(int fd)
{
	static struct page_plan plan;
	static struct serve_options opt = {.level = 1, .retry_s = 60};
	static struct server server = {.opt = &opt, .wake = -1};
	static struct addr a = {.fd = -1};
	struct link link;
	static char name[32] = "pages";
	int err = handover_read_as(&record_page_plan, &plan, fd);

	opt.address = plan.address;
	opt.key = plan.key;
	server.name = name;
	if (err == 0)
		err = addr_parse(&a, plan.address);
	if (err == 0 && plan.image != NULL)
		err = open_image(&server, plan.image);
	else if (err == 0)
		err = source_open_live(&server.source, &plan);
	if (err == 0 && a.kind == ADDR_UNIX)
		opt.level = 0;
	if (err == 0 && plan.control >= 0)
		err = owner_from_plan(&server.owner, &plan);
	if (err == 0 && owner_pid(server.owner) > 0)
		snprintf(name, sizeof(name), "pid %d", owner_pid(server.owner));
	if (err == 0 && plan.listen >= 0) {
		err = run_server(&server, &a, (int)plan.listen, NULL);
		addr_unlisten(&a, (int[]){(int)plan.listen});
	} else if (err == 0) {
		link_init(&link, (int)plan.in, (int)plan.out, "the other end");
		err = run_server(&server, &a, -1, &link);
	}
	return err == -EINTR ? 0 : err;
}
