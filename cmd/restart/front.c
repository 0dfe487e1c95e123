#include "front.h"

#include <asm/termbits.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sysexits.h>
#include <unistd.h>

#include "io.h"
#include "log.h"
#include "outside.h"

/* Signals that are meant for the program. */
static const int passed_on[] = {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGALRM,
    SIGCONT, SIGTSTP, SIGWINCH};

/* --- the terminal */

static struct {
	int fd; /* -1: none is ours */
	struct termios2 termios;
	bool changed, lent;
	pid_t group;
} terminal = {.fd = -1};

/* As the program had set it up. */
void
front_terminal(struct restart *r)
{
	const struct objects *o = &r->model.objects;

	for (size_t i = 0; i < o->nofds && terminal.fd < 0; i++) {
		if (o->ofds[i].kind != KIND_tty || r->open.ofds[i] < 0 || !isatty(r->open.ofds[i]))
			continue;
		terminal.fd = dup(r->open.ofds[i]);
		if (ioctl(terminal.fd, TCGETS2, &terminal.termios) < 0 ||
		    o->ofds[i].termios.n != sizeof(struct termios2))
			continue;
		terminal.changed = ioctl(terminal.fd, TCSETS2, o->ofds[i].termios.p) == 0;
	}
}

/* The foreground is the program's, if it was ours. group: its process group as we see it. */
static void
lend_terminal(pid_t group)
{
	int fd = terminal.fd >= 0 ? terminal.fd : STDIN_FILENO;

	if (!isatty(fd) || tcgetpgrp(fd) != getpgrp() || group == getpgrp())
		return;
	terminal.group = group;
	terminal.lent = tcsetpgrp(fd, group) == 0;
}

static void
take_terminal(void)
{
	int fd = terminal.fd >= 0 ? terminal.fd : STDIN_FILENO;

	if (terminal.lent)
		tcsetpgrp(fd, getpgrp());
	terminal.lent = false;
	if (terminal.changed)
		ioctl(terminal.fd, TCSETS2, &terminal.termios);
	terminal.changed = false;
}

/* The program has been stopped from the terminal: so are we, and go on with it. */
static void
stop_together(int pidfd)
{
	struct termios2 theirs;
	pid_t group = terminal.group;
	bool was_lent = terminal.lent, was_changed = terminal.changed;

	if (!was_lent)
		return;
	if (was_changed)
		ioctl(terminal.fd, TCGETS2, &theirs);
	take_terminal();
	raise(SIGSTOP);
	if (was_changed)
		terminal.changed = ioctl(terminal.fd, TCSETS2, &theirs) == 0;
	lend_terminal(group);
	pidfd_kill(pidfd, SIGCONT);
}

/* --- waiting */

static int
signal_fd(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	for (size_t i = 0; i < ARRAY_LEN(passed_on); i++)
		sigaddset(&set, passed_on[i]);
	sigaddset(&set, SIGTTOU);
	sigprocmask(SIG_BLOCK, &set, NULL);
	sigdelset(&set, SIGTTOU);
	return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

/* What the terminal sends goes to the program by itself if it is in our process group. */
static bool
is_for_program(const struct signalfd_siginfo *si)
{
	if (si->ssi_signo == SIGCHLD)
		return false;
	return si->ssi_code != SI_KERNEL || si->ssi_signo == SIGWINCH || si->ssi_signo == SIGHUP;
}

static void
pass_signals(int sigfd, int pidfd)
{
	struct signalfd_siginfo si;

	while (read(sigfd, &si, sizeof(si)) == sizeof(si))
		if (is_for_program(&si))
			pidfd_kill(pidfd, (int)si.ssi_signo);
}

static int
status_of(int status)
{
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

/*
 * Reap until pid has ended. stopped() is called when it stops. Returns its wait status.
 */
static int
reap(pid_t pid, int pidfd, int sigfd, void (*stopped)(int pidfd, int arg), int arg)
{
	for (;;) {
		struct pollfd p = {sigfd, POLLIN, 0};
		int status;
		pid_t got;

		while ((got = waitpid(-1, &status, WNOHANG | WUNTRACED | __WALL)) > 0) {
			if (got != pid)
				continue;
			if (!WIFSTOPPED(status))
				return status;
			stopped(pidfd, arg);
		}
		if (got < 0 && errno == ECHILD)
			return EX_OSERR << 8;
		poll(&p, 1, -1);
		pass_signals(sigfd, pidfd);
	}
}

static void
stop_self(int pidfd, int arg)
{
	(void)arg;
	stop_together(pidfd);
}

void
front_leave_channel(const struct restart *r)
{
	if (r->source.is_channel)
		io_leave_stdio(false);
}

int
front_wait(pid_t pid)
{
	int pidfd = pidfd_open_(pid), sigfd = signal_fd(), status;

	lend_terminal(getpgid(pid));
	if (terminal.fd >= 0)
		pidfd_kill(pidfd, SIGWINCH);
	status = reap(pid, pidfd, sigfd, stop_self, 0);
	take_terminal();
	return status_of(status);
}

/*
 * --- in new namespaces: two processes, one message 'R' with a pidfd, then 'S' at each stop, and 'E' with the exit
 * status where others that it has started run on
 */

/*
 * Which process it will be, before it runs: its number as the one outside sees it can be had from the kernel
 * also when it has ended again, but only so (a pidfd then tells none).
 */
int
front_announce(const struct restart *r, pid_t pid)
{
	char control[CMSG_SPACE(sizeof(struct ucred))] = {0};
	unsigned char text[2] = {'P', 0};
	struct iovec iov = {text, sizeof(text)};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
	struct ucred cred = {pid, geteuid(), getegid()};
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);

	if (r->report_fd < 0)
		return 0;
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_CREDENTIALS;
	c->cmsg_len = CMSG_LEN(sizeof(cred));
	memcpy(CMSG_DATA(c), &cred, sizeof(cred));
	return sendmsg(r->report_fd, &m, MSG_NOSIGNAL) == sizeof(text) ? 0 : fail_errno("report");
}

/* 1 and what, then the status (and *pidfd, *pid), 0 at the end. */
static int
get_report(int report, unsigned char what[2], int *pidfd, pid_t *pid)
{
	char control[CMSG_SPACE(sizeof(int)) + CMSG_SPACE(sizeof(struct ucred))] = {0};
	struct iovec iov = {what, 2};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control,
	    .msg_controllen = sizeof(control)};
	struct cmsghdr *c;
	ssize_t n = recvmsg(report, &m, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);

	if (n < 2)
		return n < 0 && errno == EAGAIN ? -EAGAIN : 0;
	for (c = CMSG_FIRSTHDR(&m); c != NULL; c = CMSG_NXTHDR(&m, c)) {
		struct ucred cred;

		if (c->cmsg_type == SCM_RIGHTS)
			memcpy(pidfd, CMSG_DATA(c), sizeof(int));
		if (c->cmsg_type != SCM_CREDENTIALS || what[0] != 'P')
			continue;
		memcpy(&cred, CMSG_DATA(c), sizeof(cred));
		*pid = cred.pid;
	}
	return 1;
}

static void
report_stop(int pidfd, int report)
{
	(void)pidfd;
	outside_tell(report, 'S', 0, -1);
}

/* Every open file but these two. */
static void
leave_files(int *a, int *b)
{
	int fd = open("/dev/null", O_RDWR | O_CLOEXEC);

	for (int i = 0; fd >= 0 && i < 3; i++)
		dup2(fd, i);
	*a = fcntl(*a, F_DUPFD_CLOEXEC, 200);
	*b = fcntl(*b, F_DUPFD_CLOEXEC, *a + 1);
	syscall(SYS_close_range, 3, (unsigned)*a - 1, 0);
	syscall(SYS_close_range, (unsigned)*a + 1, (unsigned)*b - 1, 0);
	syscall(SYS_close_range, (unsigned)*b + 1, ~0U, 0);
}

int
front_init(struct restart *r, pid_t pid)
{
	int pidfd = pidfd_open_(pid), sigfd = signal_fd(), status;
	pid_t other;

	prctl(PR_SET_PDEATHSIG, 0);
	outside_tell(r->report_fd, 'R', 0, pidfd);
	/* Whoever reads what we were given must not wait for us. */
	if (r->opt.detach) {
		r->report_fd = -1;
		leave_files(&sigfd, &pidfd);
	}
	status = status_of(reap(pid, pidfd, sigfd, report_stop, r->report_fd));
	/* With PID 1 all end: so it stays as long as there is somebody that the program has left running. */
	do
		other = waitpid(-1, NULL, WNOHANG | __WALL);
	while (other > 0);
	if (other < 0)
		return status;
	outside_tell(r->report_fd, 'E', status, -1);
	leave_files(&sigfd, &pidfd);
	while (waitpid(-1, NULL, __WALL) > 0 || errno == EINTR)
		;
	return status;
}

/* The program runs, as which PID is known only now. */
static void
has_begun(struct restart *r, int pidfd, pid_t pid)
{
	restart_status(r, "running %d", pid);
	if (r->opt.detach) {
		if (!r->source.is_channel)
			printf("%d\n", pid);
		fflush(stdout);
		lazy_linger(r);
		_exit(0);
	}
	front_leave_channel(r);
	lend_terminal(getpgid(pid));
	if (terminal.fd >= 0)
		pidfd_kill(pidfd, SIGWINCH);
}

int
front_outside(struct restart *r, pid_t init, int report)
{
	int sigfd = signal_fd(), pidfd = -1, status, got = -EAGAIN, on = 1;
	pid_t pid = -1;

	setsockopt(report, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on));
	do {
		struct pollfd p[2] = {{sigfd, POLLIN, 0}, {report, POLLIN, 0}};
		unsigned char what[2];

		poll(p, 2, -1);
		if (pidfd >= 0) {
			pass_signals(sigfd, pidfd);
		} else if (p[0].revents != 0) {
			struct signalfd_siginfo si;

			/* Nothing runs yet: to end is to end the building. */
			while (read(sigfd, &si, sizeof(si)) == sizeof(si))
				if (si.ssi_signo == SIGINT || si.ssi_signo == SIGTERM || si.ssi_signo == SIGHUP)
					kill(init, SIGKILL);
		}
		got = get_report(report, what, &pidfd, &pid);
		if (got > 0 && what[0] == 'R')
			has_begun(r, pidfd, pid);
		else if (got > 0 && what[0] == 'S')
			stop_together(pidfd);
		else if (got > 0 && what[0] == 'E') {
			take_terminal();
			return what[1];
		}
	} while (got != 0);
	while (waitpid(init, &status, 0) < 0 && errno == EINTR)
		;
	take_terminal();
	return status_of(status);
}
