/*
 * rexec-sys serve: listens, and makes a process for each caller.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "addr.h"
#include "io.h"
#include "log.h"
#include "rexec.h"
#include "session.h"

enum { SESSIONS_MAX = 128, STRANGERS_MAX = 32, REST_MS = 100 };

struct child {
	pid_t pid;
	int stranger; /* a pipe: it says so when it knows who calls; -1: it does */
};

struct listener {
	const struct serve_options *options;
	const struct addr *address;
	int signals, socket;
	struct child *children;
	size_t nchildren;
};

/* In the child. */
static _Noreturn void
serve_one(const struct listener *s, int fd, int known)
{
	struct link l;
	sigset_t chld;
	int err;

	close(s->signals);
	close(s->socket);
	setsid(); /* what one caller does to his process group is nothing to the others */
	sigemptyset(&chld);
	sigaddset(&chld, SIGCHLD); /* is waited for: tracee.c */
	sigprocmask(SIG_SETMASK, &chld, NULL);
	err = addr_welcome(s->address, s->options->key, fd, &l);
	if (err == 0 && write(known, "", 1) == 1 && close(known) == 0)
		err = session_run(&l, s->options->pid);
	fflush(NULL);
	_exit(err < 0);
}

static void
child_remove(struct listener *s, size_t i)
{
	close_fd(&s->children[i].stranger);
	memmove(&s->children[i], &s->children[i + 1], (--s->nchildren - i) * sizeof(*s->children));
}

/* Who has not shown yet that he may talk keeps nobody else away: the first of them goes. */
static void
make_room(struct listener *s)
{
	size_t strangers = 0, first = s->nchildren;

	for (size_t i = s->nchildren; i-- > 0;)
		if (s->children[i].stranger >= 0)
			strangers++, first = i;
	if (strangers > 0 && (strangers >= STRANGERS_MAX || s->nchildren >= SESSIONS_MAX)) {
		kill(s->children[first].pid, SIGKILL);
		waitpid(s->children[first].pid, NULL, 0);
		child_remove(s, first);
	}
}

static void
accept_one(struct listener *s)
{
	int fd = accept4(s->socket, NULL, NULL, SOCK_CLOEXEC), known[2] = {-1, -1};
	struct child *c;
	pid_t pid;

	if (fd < 0) {
		/* Whatever it is, it may pass: no more fds, no memory, a caller who has gone again. */
		if (errno != EAGAIN && errno != ECONNABORTED && errno != EINTR) {
			note("%s: %s", s->address->text, strerror(errno));
			poll(NULL, 0, REST_MS);
		}
		return;
	}
	make_room(s);
	pid = s->nchildren < SESSIONS_MAX && pipe2(known, O_CLOEXEC) == 0 ? fork() : -1;
	if (pid == 0) {
		close(known[0]);
		serve_one(s, fd, known[1]);
	}
	close_fd(&known[1]);
	close(fd);
	c = pid > 0 ? ARRAY_ADD(s->children, s->nchildren) : NULL;
	if (c == NULL) {
		close_fd(&known[0]);
		note("%s: a caller was sent away: %s", s->address->text, s->nchildren >= SESSIONS_MAX ? "as many as can be are served" : strerror(errno));
		return;
	}
	*c = (struct child){pid, known[0]};
}

static void
look_after_children(struct listener *s)
{
	for (size_t i = 0; i < s->nchildren;) {
		struct pollfd p = {s->children[i].stranger, POLLIN, 0};

		if (waitpid(s->children[i].pid, NULL, WNOHANG) != 0) {
			child_remove(s, i);
			continue;
		}
		if (p.fd >= 0 && poll(&p, 1, 0) > 0)
			close_fd(&s->children[i].stranger);
		i++;
	}
}

static int
listen_for_ever(struct listener *s)
{
	struct pollfd p[3] = {{-1, POLLIN, 0}, {-1, POLLIN, 0}, {s->options->pid != 0 ? pidfd_open_(s->options->pid) : -1, POLLIN, 0}};
	char *name;
	sigset_t set;
	int ending = 0, err;

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD), sigaddset(&set, SIGTERM), sigaddset(&set, SIGINT), sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	p[0].fd = s->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	p[1].fd = s->socket = addr_listen(s->address, s->options->key);
	err = p[0].fd < 0 ? fail_errno("signalfd") : p[1].fd < 0 ? p[1].fd : 0;
	if (err == 0 && (name = addr_listening(s->address, s->socket)) != NULL) {
		/* For scripts: it can be talked to now, there. */
		printf("%s\n", name);
		fflush(stdout);
		free(name);
	}
	while (err == 0 && ending == 0) {
		struct signalfd_siginfo info;

		if (poll(p, 3, -1) < 0)
			continue;
		/* There is nothing left to serve. */
		if (p[2].revents != 0) {
			debug(LOG_VERBOSE, "process %d has ended", s->options->pid);
			break;
		}
		while (read(s->signals, &info, sizeof(info)) == sizeof(info))
			ending = info.ssi_signo != SIGCHLD ? (int)info.ssi_signo : ending;
		look_after_children(s);
		if (ending == 0 && p[1].revents != 0)
			accept_one(s);
	}
	addr_unlisten(s->address, &s->socket);
	close_fd(&s->signals);
	close_fd(&p[2].fd);
	while (s->nchildren > 0)
		child_remove(s, 0); /* they serve on */
	free(s->children);
	return err;
}

/* Better here than in each call: is it there, and ours? */
static int
check_target(pid_t pid)
{
	struct target t = TARGET_NONE;
	int err = target_open(&t, pid);

	target_close(&t);
	return err;
}

int
serve(const struct serve_options *o)
{
	struct addr a;
	struct link l;
	int err = o->pid != 0 ? check_target(o->pid) : 0;

	if (err == 0)
		err = addr_parse(&a, o->address);
	if (err < 0)
		return err;
	if (a.kind == ADDR_SSH) {
		err = fail(EINVAL, "%s: cannot be listened at", a.text);
	} else if (a.kind == ADDR_STDIO || a.kind == ADDR_FD) {
		err = addr_take(&a, &l);
		if (err == 0)
			err = session_run(&l, o->pid);
	} else {
		err = listen_for_ever(&(struct listener){.options = o, .address = &a, .signals = -1, .socket = -1});
	}
	addr_fini(&a);
	return err;
}
