/*
 * Open files: which fds are one open file description, and what each description is.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "ckpt.h"
#include "io.h"
#include "kfeat.h"
#include "kind.h"
#include "log.h"

/* An ofd that has been seen, with what tells it from most others cheaply. */
struct seen {
	int fd;
	dev_t dev;
	ino_t ino;
	int64_t pos;
	uint64_t flags;
};

static bool
same_ofd(const struct target *t, const struct seen *a, const struct seen *b)
{
	long r;

	if (a->dev != b->dev || a->ino != b->ino || a->pos != b->pos || a->flags != b->flags)
		return false;
	if (!kfeat(KFEAT_kcmp))
		return true;
	r = syscall(SYS_kcmp, t->pid, t->pid, KCMP_FILE, a->fd, b->fd);
	/* Where the kernel does not tell: two that agree in everything are taken as one. */
	return r == 0 || r < 0;
}

static int
add_locks(struct ckpt *c, const struct kind_save *s)
{
	struct task *t = &c->model.task;

	if (s->info.nlocks > PROC_LOCKS_MAX)
		return report_add(&c->report, LOSS, 0, s->object, NULL, "only %d of its %d locks are kept",
		    PROC_LOCKS_MAX, s->info.nlocks);
	for (int i = 0; i < s->info.nlocks; i++) {
		const struct proc_lock *l = &s->info.locks[i];
		struct file_lock *out;
		int64_t kind = strcmp(l->type, "POSIX") == 0 ? LOCK_POSIX
		    : strcmp(l->type, "FLOCK") == 0 ? LOCK_FLOCK
		    : strcmp(l->type, "OFDLCK") == 0 ? LOCK_OFD : -1;

		if (kind < 0) {
			int err = report_add(&c->report, LOSS, 0, s->object, NULL, "a lock of kind %s is lost",
			    l->type);

			if (err < 0)
				return err;
			continue;
		}
		out = ARRAY_ADD(t->locks, t->nlocks);
		if (out == NULL)
			return -ENOMEM;
		*out = (struct file_lock){s->fd, kind, l->write, l->start, l->end};
	}
	return 0;
}

static void
read_owner(const struct kind_save *s, struct ofd *ofd)
{
	int fd;
	struct f_owner_ex owner;

	if (!(s->info.flags & O_ASYNC))
		return;
	fd = kind_get_fd(s);
	if (fd < 0)
		return;
	if (fcntl(fd, F_GETOWN_EX, &owner) == 0) {
		ofd->owner = owner.pid;
		ofd->owner_type = owner.type;
	}
	ofd->sig = fcntl(fd, F_GETSIG);
	close(fd);
}

static int
add_ofd(struct ckpt *c, struct kind_save *s)
{
	struct objects *o = &c->model.objects;
	struct ofd *ofd = ARRAY_ADD(o->ofds, o->nofds);
	size_t index = o->nofds - 1;
	int err;

	if (ofd == NULL)
		return -ENOMEM;
	ofd->ref = -1;
	ofd->kind = kind_of(s);
	ofd->flags = s->info.flags & ~(uint64_t)O_CLOEXEC;
	ofd->pos = s->info.pos;
	err = kinds[ofd->kind]->save(s, ofd);
	if (err < 0)
		return err;
	read_owner(s, &o->ofds[index]);
	return 0;
}

static int
look_at(struct ckpt *c, struct kind_save *s, char **link)
{
	char path[32];
	int err;

	snprintf(path, sizeof(path), "fd/%d", s->fd);
	err = read_link(s->proc, path, link);
	s->link = *link;
	if (err == 0 && fstatat(s->proc, path, &s->st, 0) < 0)
		err = -errno;
	if (err == 0)
		err = proc_read_fdinfo(s->proc, s->fd, &s->info);
	return err < 0 ? fail(-err, "pid %d: fd %d: %s", c->target.pid, s->fd, strerror(-err)) : 0;
}

/* One fd: which of the seen ones is it, or a new one? */
static int
collect_fd(struct ckpt *c, int fd, struct seen **seen, size_t *nseen)
{
	struct task *t = &c->model.task;
	char object[48], *link = NULL;
	struct kind_save s = {.pid = c->target.pid, .proc = c->target.proc,
	    .pidfd = c->target.pidfd, .fd = fd, .object = object,
	    .embed = c->opt.embed == EMBED_ALL, .objects = &c->model.objects, .report = &c->report};
	struct fd_slot *slot = ARRAY_ADD(t->fds, t->nfds);
	struct seen now;
	size_t i = 0;
	int err;

	if (slot == NULL)
		return -ENOMEM;
	snprintf(object, sizeof(object), "pid %d: fd %d", c->target.pid, fd);
	err = look_at(c, &s, &link);
	if (err < 0)
		goto out;
	now = (struct seen){fd, s.st.st_dev, s.st.st_ino, s.info.pos, s.info.flags & ~(uint64_t)O_CLOEXEC};
	while (i < *nseen && !same_ofd(&c->target, &(*seen)[i], &now))
		i++;
	slot->fd = fd;
	slot->ofd = (int64_t)i;
	slot->cloexec = (s.info.flags & O_CLOEXEC) != 0;
	if (i == *nseen) {
		struct seen *p = ARRAY_ADD(*seen, *nseen);

		err = p == NULL ? -ENOMEM : 0;
		if (err == 0) {
			*p = now;
			err = add_ofd(c, &s);
		}
		if (err == 0)
			err = add_locks(c, &s);
	}
out:
	free(link);
	return err;
}

int
collect_fds(struct ckpt *c)
{
	struct seen *seen = NULL;
	size_t nseen = 0, n;
	int *fds, err = proc_list(c->target.proc, "fd", &fds, &n);

	if (err < 0)
		return fail(-err, "pid %d: its open files cannot be listed: %s", c->target.pid,
		    strerror(-err));
	for (size_t i = 0; i < n && err == 0; i++)
		err = collect_fd(c, fds[i], &seen, &nseen);
	free(seen);
	free(fds);
	return err;
}
