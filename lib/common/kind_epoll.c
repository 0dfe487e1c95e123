/*
 * Sets of fds that are waited for: epoll(7). The kernel knows an item by its fd number and its open file
 * description, so items are added in a process that has the set, under the number they had.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/kcmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kfeat.h"
#include "kind.h"
#include "log.h"

static bool
match(const struct kind_save *s)
{
	return strcmp(s->link, "anon_inode:[eventpoll]") == 0;
}

static int
save(struct kind_save *s, struct ofd *ofd)
{
	if (ARRAY_ADD(s->objects->epolls, s->objects->nepolls) == NULL)
		return -ENOMEM;
	ofd->ref = (int64_t)s->objects->nepolls - 1;
	ofd->flags &= O_ACCMODE | O_NONBLOCK;
	return 0;
}

/* kcmp(2) with KCMP_EPOLL_TFD; toff: the n-th item of this number. */
struct epoll_slot {
	uint32_t efd, tfd, toff;
};

static bool
is_item(const struct kind_save *s, const struct held *h, const struct epoll_slot *slot)
{
	return syscall(SYS_kcmp, h->pid, s->pid, KCMP_EPOLL_TFD, h->fd, slot) == 0;
}

/* The ofd of an item: mostly still at its number in the same process, else somewhere else. */
static int64_t
item_ofd(const struct kind_save *s, int64_t tfd, uint32_t toff)
{
	struct epoll_slot slot = {(uint32_t)s->fd, (uint32_t)tfd, toff};
	bool tell = kfeat(KFEAT_kcmp);

	for (size_t i = 0; i < s->nheld; i++)
		if (s->held[i].pid == s->pid && s->held[i].fd == tfd && (!tell || is_item(s, &s->held[i], &slot)))
			return s->held[i].ofd;
	for (size_t i = 0; tell && i < s->nheld; i++)
		if (is_item(s, &s->held[i], &slot))
			return s->held[i].ofd;
	return -1;
}

static uint32_t
same_number(const struct epoll_ref *e, int64_t tfd)
{
	uint32_t n = 0;

	for (size_t i = 0; i < e->nitems; i++)
		n += e->items[i].fd == tfd;
	return n;
}

/* `tfd:        5 events:       19 data:                5  pos:0 ino:4d2 sdev:8` */
static int
refer(struct kind_save *s, struct ofd *ofd)
{
	struct epoll_ref *e = &s->objects->epolls[ofd->ref];
	char *text, *p;
	int err = kind_fdinfo(s, &text);

	if (err < 0)
		return fail(-err, "%s: epoll: %s", s->object, strerror(-err));
	for (p = text; err == 0 && (p = strstr(p, "tfd:")) != NULL; p += 4) {
		struct epoll_item item, *out;

		if (sscanf(p, "tfd: %" SCNd64 " events: %" SCNx64 " data: %" SCNx64, &item.fd, &item.events,
			&item.data) != 3)
			err = fail(EBADMSG, "%s: epoll: fdinfo is not understood", s->object);
		item.ofd = err < 0 ? -1 : item_ofd(s, item.fd, same_number(e, item.fd));
		if (err == 0 && item.ofd < 0) {
			err = report_add(s->report, OBSTACLE, 69, s->object, "have the program remove it",
			    "an epoll set waits for fd %" PRId64 ", which none of the processes has open", item.fd);
			continue;
		}
		out = err < 0 ? NULL : ARRAY_ADD(e->items, e->nitems);
		if (out == NULL)
			err = err < 0 ? err : -ENOMEM;
		else
			*out = item;
	}
	free(text);
	return err;
}

static int
load(const struct kind_load *l, const struct ofd *ofd)
{
	int fd = epoll_create1(EPOLL_CLOEXEC);

	(void)ofd;
	return fd < 0 ? fail_errno("fd %d: epoll", l->lowest) : fd;
}

/* A set may be in another set, which must not be filled before it. */
static int64_t
depends(const struct objects *o, const struct ofd *ofd, size_t n)
{
	const struct epoll_ref *e = &o->epolls[ofd->ref];

	return n < e->nitems ? e->items[n].ofd : -1;
}

static void
attach(struct script *s, const struct objects *o, const struct ofd *ofd, uint64_t self,
    uint64_t (*stock)(const void *ctx, int64_t ofd), const void *ctx)
{
	const struct epoll_ref *e = &o->epolls[ofd->ref];

	for (size_t i = 0; i < e->nitems; i++) {
		const struct epoll_item *item = &e->items[i];
		struct epoll_event ev = {.events = (uint32_t)item->events, .data.u64 = item->data};

		script_add(s, "epoll", SYS_dup2, stock(ctx, item->ofd), (uint64_t)item->fd);
		script_add(s, "epoll", SYS_epoll_ctl, self, EPOLL_CTL_ADD, (uint64_t)item->fd,
		    script_data(s, &ev, sizeof(ev)));
		script_data_arg(s, 3);
	}
}

const struct kind kind_epoll = {.name = "epoll", .match = match, .save = save, .load = load, .refer = refer,
    .depends = depends, .attach = attach};
