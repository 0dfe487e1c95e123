/*
 * Everything else is refused by its name.
 */
#include <errno.h>
#include <string.h>

#include "kind.h"
#include "log.h"

static bool
match(const struct kind_save *s)
{
	(void)s;
	return true;
}

static const char *
type_name(const struct kind_save *s)
{
	if (strncmp(s->link, "/memfd:", 7) == 0)
		return "a memfd";
	switch (s->st.st_mode & S_IFMT) {
	case S_IFIFO:
		return "a named pipe with both ends in the process";
	case S_IFSOCK:
		return "a socket that is not connected to another process";
	case S_IFCHR:
		return "a device";
	case S_IFBLK:
		return "a block device";
	case S_IFLNK:
		return "a symbolic link";
	default:
		return "a kind of object that cannot be moved";
	}
}

static int
save(struct kind_save *s, struct ofd *ofd)
{
	(void)ofd;
	return report_add(s->report, OBSTACLE, 69, s->object, "have the program close it",
	    "%s is %s", s->link, type_name(s));
}

static int
load(const struct kind_load *l, const struct ofd *ofd)
{
	(void)ofd;
	return fail(EBADMSG, "fd %d: a kind of object that no image has", l->lowest);
}

const struct kind kind_unknown = {.name = "unknown", .match = match, .save = save, .load = load};
