/*
 * The daemon of this machine is told of us, as pmsd(1) has it: a line to its socket, and a line from it. It looks for itself who we are.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "internal.h"

enum { ANSWER_S = 2 };

/* What the environment said when we began; the rest depends on the machine that we are on. */
enum { PATH_ROOM = sizeof(((struct sockaddr_un *)0)->sun_path) };
static char given[PATH_ROOM], directory[PATH_ROOM], host_given[64], job_given[80];
static const char of_root[] = "/var/lib/pmsd/socket";

static void
set_path(char path[PATH_ROOM], const char *a, const char *b)
{
	size_t n = strlen(a);

	if (n + strlen(b) >= PATH_ROOM)
		return;
	memcpy(path, a, n);
	strcpy(path + n, b);
}

void
register_find(void)
{
	const char *told = getenv("PMSD_SOCKET"), *state = getenv("PMSD_STATE"), *xdg = getenv("XDG_STATE_HOME"), *home = getenv("HOME"),
	    *host = getenv("PMSD_HOST"), *job = getenv("PMSD_JOB");

	if (told != NULL)
		set_path(given, told, "");
	else if (state != NULL)
		set_path(given, state, "/socket");
	else if (geteuid() != 0 && xdg != NULL)
		set_path(directory, xdg, "/pmsd/");
	else if (geteuid() != 0 && home != NULL)
		set_path(directory, home, "/.local/state/pmsd/");
	snprintf(job_given, sizeof(job_given), "%s", job != NULL && strlen(job) < sizeof(job_given) ? job : "");
	snprintf(host_given, sizeof(host_given), "%.63s", host != NULL ? host : "");
}

/* That of this user, on this machine. */
static void
find_ours(char path[PATH_ROOM])
{
	char rest[PATH_ROOM];
	struct utsname u;

	path[0] = '\0';
	if (directory[0] == '\0' || uname(&u) < 0)
		return;
	u.nodename[strcspn(u.nodename, ".")] = '\0';
	snprintf(rest, sizeof(rest), "%.63s/socket", host_given[0] != '\0' ? host_given : u.nodename);
	set_path(path, directory, rest);
}

/* Returns whether somebody is there. */
static bool
tell(const char *path, const char *job)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	struct timeval limit = {ANSWER_S, 0};
	char line[128], answer[256];
	int fd, n = snprintf(line, sizeof(line), job[0] != '\0' ? "register\t%.79s\n" : "register\n", job);
	bool there;

	if (path[0] == '\0' || strlen(path) >= sizeof(sun.sun_path))
		return false;
	strcpy(sun.sun_path, path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return false;
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	there = connect(fd, (struct sockaddr *)&sun, sizeof(sun)) == 0 && send(fd, line, (size_t)n, MSG_NOSIGNAL) == n;
	/* When it has answered we are one of its jobs, or it has said why not to whoever reads what it says. */
	if (there)
		recv(fd, answer, sizeof(answer), 0);
	close(fd);
	return there;
}

void
register_here(const struct coop_note *note)
{
	/* Where somebody has made us he knows of whom we are; what the environment says was so where we were before. */
	const char *job = note != NULL ? note->job : job_given;
	char ours[PATH_ROOM];

	find_ours(ours);
	if (note != NULL && note->socket[0] != '\0')
		tell(note->socket, job);
	else if (given[0] != '\0')
		tell(given, job);
	else if (!tell(ours, job))
		tell(of_root, job);
}
