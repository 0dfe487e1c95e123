/*
 * Whatever stays at home: here there is only something that keeps its number. Taken for all files, or for none (ckpt -s).
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "kind.h"
#include "log.h"

static bool
match(const struct kind_save *s)
{
	return s->home;
}

/* What it means depends on the process itself, or on memory that leaves. */
static const struct {
	const char *link, *what, *advice;
} stay_behind[] = {
    {"anon_inode:[signalfd]", "signals are taken where the process runs, and this would read those of home", "have the program close it"},
    {"anon_inode:[io_uring]", "an io_uring is memory that is shared with the kernel", "have the program close it"},
    {"anon_inode:[userfaultfd]", "a userfaultfd is about memory that leaves", "have the program close it"},
    {"anon_inode:[pidfd]", "a pidfd is of a process of this host", "have the program close it"},
};

static int
save(struct kind_save *s, struct ofd *ofd)
{
	for (size_t i = 0; i < ARRAY_LEN(stay_behind); i++)
		if (strcmp(s->link, stay_behind[i].link) == 0)
			return report_add(s->report, OBSTACLE, 69, s->object, stay_behind[i].advice, "it cannot stay at home: %s",
			    stay_behind[i].what);
	ofd->path = strdup(s->link);
	return ofd->path == NULL ? -ENOMEM : 0;
}

static int
load(const struct kind_load *l, const struct ofd *ofd)
{
	int fd = fcntl(l->null, F_DUPFD_CLOEXEC, 3);

	(void)ofd;
	return fd < 0 ? fail_errno("/dev/null") : fd;
}

const struct kind kind_home = {.name = "home", .match = match, .save = save, .load = load};
