/*
 * rexec-sys serve: listens, and makes a process for each caller.
 */
#include <errno.h>
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

enum { SESSIONS_MAX = 128 };

/* In the child. */
static _Noreturn void
serve_one(const struct serve_options *o, const struct addr *a, int fd)
{
	struct link l;
	sigset_t none;
	int err;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	err = addr_welcome(a, o->key, fd, &l);
	if (err == 0)
		err = session_run(&l, o->pid);
	fflush(NULL);
	_exit(err < 0);
}

static int
accept_one(const struct serve_options *o, const struct addr *a, int listening, unsigned *sessions)
{
	int fd = accept4(listening, NULL, NULL, SOCK_CLOEXEC);
	pid_t child;

	if (fd < 0)
		return errno == EAGAIN || errno == ECONNABORTED || errno == EINTR ? 0 : fail_errno("%s", a->text);
	child = *sessions < SESSIONS_MAX ? fork() : -1;
	if (child == 0)
		serve_one(o, a, fd);
	close(fd);
	if (child < 0)
		note("%s: a caller was sent away: %s", a->text, *sessions < SESSIONS_MAX ? strerror(errno) : "as many as can be are served");
	*sessions += child > 0;
	return 0;
}

static int
listen_for_ever(const struct serve_options *o, const struct addr *a)
{
	struct pollfd p[2] = {{-1, POLLIN, 0}, {-1, POLLIN, 0}};
	unsigned sessions = 0;
	char *name;
	sigset_t set;
	int ending = 0, err;

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD), sigaddset(&set, SIGTERM), sigaddset(&set, SIGINT), sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	p[0].fd = signalfd(-1, &set, SFD_CLOEXEC);
	p[1].fd = addr_listen(a, o->key);
	err = p[0].fd < 0 ? fail_errno("signalfd") : p[1].fd < 0 ? p[1].fd : 0;
	if (err == 0 && (name = addr_listening(a, p[1].fd)) != NULL) {
		/* For scripts: it can be talked to now, there. */
		printf("%s\n", name);
		fflush(stdout);
		free(name);
	}
	while (err == 0 && ending == 0) {
		struct signalfd_siginfo info;

		if (poll(p, 2, -1) < 0)
			continue;
		if (p[0].revents != 0 && read(p[0].fd, &info, sizeof(info)) == sizeof(info) && info.ssi_signo != SIGCHLD)
			ending = (int)info.ssi_signo;
		while (waitpid(-1, NULL, WNOHANG) > 0)
			sessions--;
		if (ending == 0 && p[1].revents != 0)
			err = accept_one(o, a, p[1].fd, &sessions);
	}
	addr_unlisten(a, &p[1].fd);
	close_fd(&p[0].fd);
	return err; /* who is served goes on */
}

int
serve(const struct serve_options *o)
{
	struct addr a;
	struct link l;
	int err = addr_parse(&a, o->address);

	if (err < 0)
		return err;
	if (a.kind == ADDR_SSH) {
		err = fail(EINVAL, "%s: cannot be listened at", a.text);
	} else if (a.kind == ADDR_STDIO || a.kind == ADDR_FD) {
		err = addr_take(&a, &l);
		if (err == 0)
			err = session_run(&l, o->pid);
	} else {
		err = listen_for_ever(o, &a);
	}
	addr_fini(&a);
	return err;
}
