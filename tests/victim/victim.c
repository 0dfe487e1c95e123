#include "victim.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct maker *const tables[] = {memory_makers, signal_makers, file_makers,
    thread_makers, process_makers, tree_makers, object_makers, socket_makers, sysv_makers, uring_makers, pty_makers};
static bool different;

void
differs(const char *fmt, ...)
{
	va_list ap;

	different = true;
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	putchar('\n');
}

void
die(const char *what)
{
	fprintf(stderr, "victim: %s: %s\n", what, strerror(errno));
	exit(3);
}

int
must(int r, const char *what)
{
	if (r < 0)
		die(what);
	return r;
}

static const struct maker *
find(const char *name)
{
	for (size_t t = 0; t < sizeof(tables) / sizeof(tables[0]); t++)
		for (const struct maker *m = tables[t]; m->name != NULL; m++)
			if (strcmp(m->name, name) == 0)
				return m;
	return NULL;
}

static void
list(void)
{
	for (size_t t = 0; t < sizeof(tables) / sizeof(tables[0]); t++)
		for (const struct maker *m = tables[t]; m->name != NULL; m++)
			puts(m->name);
}

int
main(int argc, char **argv)
{
	sigset_t set;
	int sig;

	if (argc < 2) {
		list();
		return 0;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, NULL);
	for (int i = 1; i < argc; i++) {
		const struct maker *m = find(argv[i]);

		if (m == NULL) {
			fprintf(stderr, "victim: no maker %s\n", argv[i]);
			return 2;
		}
		m->make();
	}
	puts("ready");
	for (unsigned round = 1;; round++) {
		if (sigwait(&set, &sig) != 0) /* restarts by itself, but is EINTR to the kernel */
			die("sigwait");
		if (sig == SIGTERM)
			return 7;
		different = false;
		for (int i = 1; i < argc; i++)
			find(argv[i])->check();
		printf("%s %u\n", different ? "differs" : "ok", round);
	}
}
