/*
 * Signals that are read: signalfd(2). It has no state but its mask; what is pending is pending in the reader.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kind.h"
#include "log.h"

static bool
match(const struct kind_save *s)
{
	return strcmp(s->link, "anon_inode:[signalfd]") == 0;
}

/* `sigmask:	0000000000000200` */
static int
save(struct kind_save *s, struct ofd *ofd)
{
	struct signalfd_ref *f = ARRAY_ADD(s->objects->signalfds, s->objects->nsignalfds);
	char *text;
	int err = f == NULL ? -ENOMEM : kind_fdinfo(s, &text);

	if (err < 0)
		return fail(-err, "%s: signalfd: %s", s->object, strerror(-err));
	kind_fdinfo_number(text, "sigmask:", 16, &f->mask);
	free(text);
	ofd->ref = (int64_t)s->objects->nsignalfds - 1;
	ofd->flags &= O_ACCMODE | O_NONBLOCK | O_ASYNC;
	return 0;
}

static int
load(const struct kind_load *l, const struct ofd *ofd)
{
	const struct signalfd_ref *f = &l->objects->signalfds[ofd->ref];
	long fd = syscall(SYS_signalfd4, -1, &f->mask, 8, O_CLOEXEC | (int)(ofd->flags & O_NONBLOCK));

	return fd < 0 ? fail_errno("fd %d: signalfd", l->lowest) : (int)fd;
}

const struct kind kind_signalfd = {.name = "signalfd", .match = match, .save = save, .load = load};
