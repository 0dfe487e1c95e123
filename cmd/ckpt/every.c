/*
 * ckpt --every: a snapshot again and again, each of which has only what the one before has not; what falls out of the chain is merged into the next.
 */
#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ckpt.h"
#include "io.h"
#include "log.h"

/* Without --keep: then one is whole again. */
enum { LONGEST = 100 };

struct series {
	char **names; /* those of the chain, the whole one first; owned */
	size_t n;
	unsigned number; /* of the last */
};

/* The name with a number in the place of %n. The caller frees. */
static char *
name_of(const char *pattern, unsigned number)
{
	const char *at = strstr(pattern, "%n");
	char *name;

	return asprintf(&name, "%.*s%u%s", (int)(at - pattern), pattern, number, at + 2) < 0 ? NULL : name;
}

/* The highest number of a file that is there. */
static unsigned
last_number(const char *pattern)
{
	const char *slash = strrchr(pattern, '/'), *base = slash == NULL ? pattern : slash + 1, *at = strstr(base, "%n");
	char *dir = slash == NULL ? strdup(".") : strndup(pattern, (size_t)(slash - pattern) + 1);
	DIR *d = dir == NULL ? NULL : opendir(dir);
	unsigned last = 0, number;
	struct dirent *e;

	while (d != NULL && (e = readdir(d)) != NULL) {
		int used = 0;

		if (strncmp(e->d_name, base, (size_t)(at - base)) == 0 && sscanf(e->d_name + (at - base), "%9u%n", &number, &used) == 1 &&
		    strcmp(e->d_name + (at - base) + used, at + 2) == 0 && number > last)
			last = number;
	}
	if (d != NULL)
		closedir(d);
	free(dir);
	return last;
}

static void
forget_first(struct series *s)
{
	free(s->names[0]);
	memmove(s->names, s->names + 1, --s->n * sizeof(*s->names));
}

/* No more than --keep: the second gets what it has from the first, and that one goes. */
static int
shorten(const struct ckpt_options *opt, struct series *s)
{
	int err = 0;

	while (opt->keep > 0 && s->n > (size_t)opt->keep && err == 0) {
		struct ckpt_options whole = *opt;

		whole.output = s->names[1];
		err = merge(&whole);
		if (err == 0 && unlink(s->names[0]) < 0 && errno != ENOENT)
			err = fail_errno("%s", s->names[0]);
		if (err == 0)
			forget_first(s);
	}
	return err;
}

/* One more. */
static int
take_one(const struct ckpt *c, struct series *s)
{
	struct ckpt one = {.opt = c->opt, .home_listener = -1, .home_report = -1};
	char **name = ARRAY_ADD(s->names, s->n);
	int err = name == NULL || (*name = name_of(c->opt.output, s->number + 1)) == NULL ? fail(ENOMEM, "out of memory") : tree_open(&one, c->opt.pid);

	if (err == 0) {
		one.opt.output = *name;
		one.opt.parent = s->n > 1 ? s->names[s->n - 2] : NULL;
		err = run_ckpt(&one);
	}
	one.opt.rules = NULL; /* they are c's */
	ckpt_fini(&one);
	if (err == 0) {
		s->number++;
		return 0;
	}
	if (name != NULL)
		free(s->names[--s->n]);
	return err;
}

/* Until it is time, it ends, or we are to. Returns whether to go on. */
static bool
wait_for(const struct ckpt *c, int64_t until_ms)
{
	struct pollfd p = {c->members[0]->target.pidfd, POLLIN, 0};

	while (!interrupted()) {
		int64_t left = until_ms - now_ms();

		if (left <= 0)
			return true;
		if (poll(&p, 1, (int)min_u64((uint64_t)left, 1000)) > 0)
			return false;
	}
	return false;
}

int
every(struct ckpt *c)
{
	struct series s = {.number = last_number(c->opt.output)};
	int64_t next = now_ms();
	int err = 0;

	do {
		next = max_i64(next + c->opt.every_ms, now_ms());
		err = take_one(c, &s);
		if (err == 0)
			err = shorten(&c->opt, &s);
		if (c->opt.keep == 0 && s.n >= LONGEST)
			while (s.n > 0)
				forget_first(&s);
		/* What fails once need not fail the next time; but one must have been made. */
	} while (s.n > 0 && wait_for(c, next));
	/* It has ended, or we are told to: the last image is there. */
	if (s.n > 0 && err == -ESRCH)
		err = 0;
	while (s.n > 0)
		forget_first(&s);
	free(s.names);
	return err;
}
