/*
 * From an address to a link.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "addr.h"
#include "io.h"
#include "log.h"

/* --- ssh */

/* By sh, with both ends of a socket pair as stdio; what it says goes to our stderr. */
static int
start_ssh(const struct addr *a, const char *program, struct link *l)
{
	const char *ssh = getenv("PMS_SSH") != NULL && getenv("PMS_SSH")[0] != '\0' ? getenv("PMS_SSH") : "ssh -T -o ServerAliveInterval=5 -o ServerAliveCountMax=3";
	char *command = NULL;
	int fds[2];
	pid_t pid;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0)
		return fail_errno("socketpair");
	pid = fork();
	if (pid == 0) {
		sigset_t none;

		sigemptyset(&none);
		sigprocmask(SIG_SETMASK, &none, NULL);
		setsid(); /* what the terminal sends is for the program that runs */
		dup2(fds[1], STDIN_FILENO);
		dup2(fds[1], STDOUT_FILENO);
		/* The shell takes the command apart, and gets the other words as they are. */
		if (asprintf(&command, "exec %s \"$@\"", ssh) > 0)
			execl("/bin/sh", "sh", "-c", command, "ssh", a->host, program, (char *)NULL);
		_exit(127);
	}
	close(fds[1]);
	if (pid < 0) {
		close(fds[0]);
		return fail_errno("fork");
	}
	link_init(l, fds[0], fds[0], a->text);
	l->helper = pid;
	return 0;
}

int
addr_connect(const struct addr *a, const char *key, const char *program, struct link *l)
{
	int fd = addr_check_key(a, key);

	if (fd < 0)
		return fd;
	if (a->kind == ADDR_SSH)
		return start_ssh(a, program, l);
	if (a->kind == ADDR_STDIO)
		return fail(EINVAL, "-: input and output are the command's; a connection can be had as fd:N");
	if (a->kind == ADDR_FD)
		return addr_take(a, l);
	fd = addr_socket(a, false);
	if (fd < 0)
		return fd;
	link_init(l, fd, fd, a->text);
	return a->kind == ADDR_TCP ? link_secure(l, key, false) : 0;
}

int
addr_take(const struct addr *a, struct link *l)
{
	int in = fd_move_up(dup(a->kind == ADDR_FD ? a->fd : STDIN_FILENO), 10);
	int out = a->kind == ADDR_FD ? in : fd_move_up(dup(STDOUT_FILENO), 10);

	if (in < 0 || out < 0)
		return fail(EBADF, "%s: not open", a->text);
	link_init(l, in, out, a->kind == ADDR_FD ? a->text : "the other end");
	if (a->kind == ADDR_FD)
		close(a->fd);
	return 0;
}

int
addr_welcome(const struct addr *a, const char *key, int fd, struct link *l)
{
	struct ucred peer;
	struct sockaddr_storage sa;
	socklen_t n = sizeof(peer);
	char name[64] = "caller";

	addr_set_up(fd, false);
	if (a->kind == ADDR_UNIX) {
		if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &n) < 0 || (peer.uid != geteuid() && peer.uid != 0)) {
			close(fd);
			return fail(EPERM, "%s: a caller of another user (uid %d) is not permitted", a->text, (int)peer.uid);
		}
		snprintf(name, sizeof(name), "caller pid %d", (int)peer.pid);
	}
	n = sizeof(sa);
	if (a->kind == ADDR_CLEAR && (getpeername(fd, (void *)&sa, &n) < 0 || !addr_is_loopback((void *)&sa))) {
		close(fd);
		return fail(EPERM, "%s: a caller who is not on this host", a->text);
	}
	link_init(l, fd, fd, name);
	return a->kind == ADDR_TCP ? link_secure(l, key, true) : 0;
}
