/* Pseudoterminals: settings, window, what is in both directions; a session with one as its controlling terminal. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <termios.h>
#include <unistd.h>

#include "victim.h"

static int master, slave, shell_master;
static pid_t leader, foreground;

static int
new_master(char name[64])
{
	int fd = must(posix_openpt(O_RDWR | O_NOCTTY), "posix_openpt");

	must(grantpt(fd), "grantpt");
	must(unlockpt(fd), "unlockpt");
	must(ptsname_r(fd, name, 64), "ptsname");
	return fd;
}

/* The leader of a session answers on its terminal, a child of it is in the foreground there. */
static void
session(const char *name)
{
	char c;
	int fd;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	setsid();
	fd = must(open(name, O_RDWR), "terminal");
	foreground = fork();
	if (foreground == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		setpgid(0, 0);
		for (;;)
			pause();
	}
	setpgid(foreground, foreground);
	signal(SIGTTOU, SIG_IGN);
	signal(SIGTTIN, SIG_IGN);
	must(tcsetpgrp(fd, foreground), "tcsetpgrp");
	for (;;) {
		char text[100];
		int n;

		while (read(slave, &c, 1) != 1) /* of the other one: asked through it */
			usleep(1000);
		n = snprintf(text, sizeof(text), "%d %d %d\n", getsid(0) == getpid(), tcgetpgrp(fd) == foreground,
		    tcgetsid(fd) == getpid());
		must((int)write(fd, text, (size_t)n), "write");
	}
}

static void
pty_make(void)
{
	struct winsize size = {31, 97, 0, 0};
	struct termios t;
	char name[64];

	master = new_master(name);
	slave = must(open(name, O_RDWR | O_NOCTTY), "slave");
	tcgetattr(slave, &t);
	cfmakeraw(&t);
	t.c_cc[VINTR] = 7;
	tcsetattr(slave, TCSANOW, &t);
	must(ioctl(master, TIOCSWINSZ, &size), "window");
	shell_master = new_master(name);
	leader = fork();
	if (leader == 0)
		session(name);
	must((int)write(slave, "from the slave", 14), "write");
}

/* What is there within a second. */
static int
get(int fd, char *text, int want)
{
	struct pollfd p = {fd, POLLIN, 0};
	int n = 0, got;

	while (n < want && poll(&p, 1, 10000) > 0 && (got = (int)read(fd, text + n, (size_t)(want - n))) > 0)
		n += got;
	text[n] = '\0';
	return n;
}

static void
pty_check(void)
{
	struct winsize size;
	struct termios t;
	char text[100];

	SAME(ioctl(slave, TIOCGWINSZ, &size), 0);
	SAME(size.ws_row, 31);
	SAME(size.ws_col, 97);
	tcgetattr(slave, &t);
	SAME(t.c_cc[VINTR], 7);
	SAME(t.c_lflag & ICANON, 0);
	SAME(get(master, text, 14), 14);
	SAME(strcmp(text, "from the slave"), 0);
	must((int)write(slave, "from the slave", 14), "write");
	must((int)write(master, "?", 1), "write");
	SAME(get(shell_master, text, 7), 7);
	SAME(strcmp(text, "1 1 1\r\n"), 0);
}

const struct maker pty_makers[] = {{"pty", pty_make, pty_check}, {0}};
