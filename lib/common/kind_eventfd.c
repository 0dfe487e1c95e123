/*
 * Event counters: eventfd(2).
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "kind.h"
#include "log.h"

static bool
match(const struct kind_save *s)
{
	return strcmp(s->link, "anon_inode:[eventfd]") == 0;
}

/* fdinfo: `eventfd-count:               2a`, and from 5.2 on `eventfd-semaphore: 1`. */
static int
save(struct kind_save *s, struct ofd *ofd)
{
	struct eventfd_ref *e = ARRAY_ADD(s->objects->eventfds, s->objects->neventfds);
	uint64_t semaphore;
	char *text;
	int err = e == NULL ? -ENOMEM : kind_fdinfo(s, &text);

	if (err < 0)
		return fail(-err, "%s: eventfd: %s", s->object, strerror(-err));
	kind_fdinfo_number(text, "eventfd-count:", 16, &e->count);
	kind_fdinfo_number(text, "eventfd-semaphore:", 10, &semaphore);
	free(text);
	e->semaphore = semaphore != 0;
	ofd->ref = (int64_t)s->objects->neventfds - 1;
	ofd->flags &= O_ACCMODE | O_NONBLOCK | O_ASYNC;
	return 0;
}

static int
load(const struct kind_load *l, const struct ofd *ofd)
{
	const struct eventfd_ref *e = &l->objects->eventfds[ofd->ref];
	int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK | (e->semaphore ? EFD_SEMAPHORE : 0));

	if (fd < 0)
		return fail_errno("fd %d: eventfd", l->lowest);
	if (e->count > 0 && write(fd, &e->count, sizeof(e->count)) != sizeof(e->count)) {
		close(fd);
		return fail(EBADMSG, "fd %d: eventfd: a count that none can have", l->lowest);
	}
	fcntl(fd, F_SETFL, (int)(ofd->flags & O_NONBLOCK));
	return fd;
}

const struct kind kind_eventfd = {.name = "eventfd", .match = match, .save = save, .load = load};
