/*
 * Timers that are read: timerfd_create(2). They are armed at the very end, with the time that they had left.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "kind.h"
#include "log.h"

#ifndef TFD_IOC_SET_TICKS
#define TFD_IOC_SET_TICKS _IOW('T', 0, uint64_t)
#endif

static bool
match(const struct kind_save *s)
{
	return strcmp(s->link, "anon_inode:[timerfd]") == 0;
}

/* `it_value: (4, 999887000)` */
static int64_t
get_time(const char *text, const char *key)
{
	const char *p = strstr(text, key);
	int64_t seconds = 0, ns = 0;

	if (p != NULL)
		sscanf(p + strlen(key), " (%" SCNd64 ", %" SCNd64 ")", &seconds, &ns);
	return seconds * 1000000000 + ns;
}

static int
save(struct kind_save *s, struct ofd *ofd)
{
	struct timerfd_ref *t = ARRAY_ADD(s->objects->timerfds, s->objects->ntimerfds);
	uint64_t clock, flags;
	char *text;
	int err = t == NULL ? -ENOMEM : kind_fdinfo(s, &text);

	if (err < 0)
		return fail(-err, "%s: timerfd: %s", s->object, strerror(-err));
	kind_fdinfo_number(text, "clockid:", 10, &clock);
	kind_fdinfo_number(text, "ticks:", 10, &t->ticks);
	kind_fdinfo_number(text, "settime flags:", 8, &flags);
	t->clock = (int64_t)clock;
	t->flags = (int64_t)flags;
	t->value_ns = get_time(text, "it_value:");
	/* As it was when the clocks were looked at, from which they go on. */
	if (t->value_ns > 0)
		t->value_ns += s->elapsed_ns;
	t->interval_ns = get_time(text, "it_interval:");
	free(text);
	ofd->ref = (int64_t)s->objects->ntimerfds - 1;
	ofd->flags &= O_ACCMODE | O_NONBLOCK | O_ASYNC;
	return 0;
}

static int
load(const struct kind_load *l, const struct ofd *ofd)
{
	const struct timerfd_ref *t = &l->objects->timerfds[ofd->ref];
	int fd = timerfd_create((int)t->clock, TFD_CLOEXEC | (ofd->flags & O_NONBLOCK ? TFD_NONBLOCK : 0));

	return fd < 0 ? fail_errno("fd %d: timerfd on clock %" PRId64, l->lowest, t->clock) : fd;
}

/*
 * What was due at a time of day stays due then; everything else has as long to wait as it had. (An absolute
 * time of another clock is the same as its rest: these clocks go on where they stood.)
 */
static void
arm(struct script *s, const struct model *m, const struct ofd *ofd, uint64_t fd)
{
	const struct timerfd_ref *t = &m->objects.timerfds[ofd->ref];
	bool wall = (t->flags & TFD_TIMER_ABSTIME) && (t->clock == CLOCK_REALTIME || t->clock == CLOCK_REALTIME_ALARM);
	int64_t due = t->value_ns + (wall ? (int64_t)m->header.realtime_ns : 0);
	struct itimerspec v = {{t->interval_ns / 1000000000, t->interval_ns % 1000000000},
	    {due / 1000000000, due % 1000000000}};

	if (t->value_ns > 0) {
		script_add(s, "timerfd", SYS_timerfd_settime, fd, wall ? (uint64_t)t->flags : 0,
		    script_data(s, &v, sizeof(v)), 0);
		script_data_arg(s, 2);
	}
	if (t->ticks > 0) {
		script_add(s, "timerfd", SYS_ioctl, fd, TFD_IOC_SET_TICKS, script_data(s, &t->ticks, sizeof(t->ticks)));
		script_data_arg(s, 2);
		script_may_fail(s); /* a kernel without CONFIG_CHECKPOINT_RESTORE */
	}
}

const struct kind kind_timerfd = {.name = "timerfd", .match = match, .save = save, .load = load, .arm = arm};
