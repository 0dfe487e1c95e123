/*
 * await FILE STRING [SECONDS [COUNT]]: wait until FILE is there and has a line that contains
 * STRING (COUNT of them), by inotify(7). Exit status 0, or 1 when the time is over.
 */
#include <libgen.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <time.h>
#include <unistd.h>

static int
count(const char *path, const char *what)
{
	char *line = NULL;
	size_t cap = 0;
	int n = 0;
	FILE *f = fopen(path, "r");

	while (f != NULL && getline(&line, &cap, f) > 0)
		n += strstr(line, what) != NULL && strchr(line, '\n') != NULL;
	if (f != NULL)
		fclose(f);
	free(line);
	return n;
}

int
main(int argc, char **argv)
{
	int fd = inotify_init1(0), want;
	time_t end;
	char events[4096], *dir;

	if (argc < 3)
		return 2;
	end = time(NULL) + (argc > 3 ? atoi(argv[3]) : 30);
	want = argc > 4 ? atoi(argv[4]) : 1;
	if ((dir = strdup(argv[1])) == NULL ||
	    inotify_add_watch(fd, dirname(dir), IN_CREATE | IN_MOVED_TO) < 0)
		return 2;
	free(dir);
	while (inotify_add_watch(fd, argv[1], IN_MODIFY) < 0 || count(argv[1], argv[2]) < want) {
		struct pollfd p = {fd, POLLIN, 0};
		time_t left = end - time(NULL);

		if (left <= 0)
			return 1;
		if (poll(&p, 1, (int)left * 1000) > 0 && read(fd, events, sizeof(events)) < 0)
			return 2;
	}
	return 0;
}
