/*
 * Where things are: a directory for each user and host, so that a home directory that hosts share serves them all.
 */
#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "log.h"
#include "pmsd.h"

static const char root_state[] = "/var/lib/pmsd";

const char *
place_host(void)
{
	static char name[HOST_MAX];
	const char *given = getenv("PMSD_HOST");
	struct utsname u;

	if (name[0] != '\0')
		return name;
	if (uname(&u) < 0)
		strcpy(u.nodename, "localhost");
	snprintf(name, sizeof(name), "%.63s", given != NULL ? given : u.nodename);
	if (given == NULL)
		name[strcspn(name, ".")] = '\0';
	if (!place_is_name(name))
		strcpy(name, "localhost");
	return name;
}

bool
place_is_name(const char *text)
{
	size_t n = strlen(text);

	if (n == 0 || n >= HOST_MAX || !isalnum((unsigned char)text[0]))
		return false;
	for (size_t i = 0; i < n; i++)
		if (!isalnum((unsigned char)text[i]) && strchr("-_.", text[i]) == NULL)
			return false;
	return true;
}

bool
place_is_job(const char *text)
{
	const char *dot = strrchr(text, '.');

	return place_is_name(text) && dot != NULL && dot[1] != '\0' && strspn(dot + 1, "0123456789") == strlen(dot + 1);
}

/* With all directories above it; for us alone. */
static int
make_directory(const char *path)
{
	char *copy = strdup(path);

	if (copy == NULL)
		return fail(ENOMEM, "out of memory");
	for (char *p = copy + 1; (p = strchr(p, '/')) != NULL; p++) {
		*p = '\0';
		mkdir(copy, 0700);
		*p = '/';
	}
	free(copy);
	return mkdir(path, 0700) < 0 && errno != EEXIST ? fail_errno("%s", path) : 0;
}

const char *
place_state(void)
{
	static char path[PATH_MAX];
	const char *given = getenv("PMSD_STATE"), *xdg = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
	int n;

	if (path[0] != '\0')
		return path;
	if (given != NULL)
		n = snprintf(path, sizeof(path), "%s", given);
	else if (geteuid() == 0)
		n = snprintf(path, sizeof(path), "%s", root_state);
	else if (xdg != NULL)
		n = snprintf(path, sizeof(path), "%s/pmsd/%s", xdg, place_host());
	else if (home != NULL)
		n = snprintf(path, sizeof(path), "%s/.local/state/pmsd/%s", home, place_host());
	else
		n = -1;
	if (n < 0 || (size_t)n >= sizeof(path) || make_directory(path) < 0) {
		path[0] = '\0';
		fail(ENOENT, "no directory for what is to be kept: set PMSD_STATE");
		return NULL;
	}
	/* All may go through to the socket of root's. */
	if (geteuid() == 0 && chmod(path, 0711) < 0)
		note("%s: %s", path, strerror(errno));
	return path;
}

char *
place_socket(void)
{
	const char *given = getenv("PMSD_SOCKET"), *state = given == NULL ? place_state() : "";
	char *path = NULL;
	struct stat st;

	if (given != NULL)
		return strdup(given);
	if (state == NULL || asprintf(&path, "%s/socket", state) < 0)
		return NULL;
	/* One of one's own comes before that of root. */
	if (stat(path, &st) == 0 || geteuid() == 0 || getenv("PMSD_STATE") != NULL)
		return path;
	free(path);
	return asprintf(&path, "%s/socket", root_state) < 0 ? NULL : path;
}

char *
place_job(const char *id, bool make)
{
	const char *state = place_state();
	char *path;

	if (state == NULL || asprintf(&path, "%s/jobs/%s", state, id) < 0)
		return NULL;
	if (make && make_directory(path) < 0) {
		free(path);
		return NULL;
	}
	return path;
}
