/*
 * Open files: which fds, of all processes, are one open file description, and what each description is.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "ckpt.h"
#include "io.h"
#include "kfeat.h"
#include "kind.h"
#include "log.h"

/* Close-on-exec belongs to the fd, all else to the open file description. */
static uint64_t
without_cloexec(const struct held *h)
{
	return h->info.flags & ~(uint64_t)O_CLOEXEC;
}

static bool
same_ofd(const struct held *a, const struct held *b)
{
	long r;

	/* Position and flags may be changed by somebody outside while they are read. */
	bool equal = a->info.pos == b->info.pos && without_cloexec(a) == without_cloexec(b) &&
	    strncmp(a->link, "anon_inode:", 11) != 0; /* an inode that all such objects share */

	if (a->st.st_dev != b->st.st_dev || a->st.st_ino != b->st.st_ino)
		return false;
	if (!kfeat(KFEAT_kcmp))
		return equal;
	r = syscall(SYS_kcmp, a->pid, b->pid, KCMP_FILE, a->fd, b->fd);
	/* Where the kernel does not tell: two that agree in everything are taken as one. */
	return r == 0 || (r < 0 && equal);
}

static int
lock_kind(const struct proc_lock *l)
{
	static const char *const names[] = {[LOCK_POSIX] = "POSIX", [LOCK_FLOCK] = "FLOCK",
	    [LOCK_OFD] = "OFDLCK", [LOCK_LEASE] = "LEASE"};

	for (int i = 0; i < (int)ARRAY_LEN(names); i++)
		if (strcmp(l->type, names[i]) == 0)
			return i;
	return -1;
}

/*
 * Those of POSIX belong to the process, the others to the open file description: they are shown for each
 * process that has it, and taken from the first.
 */
static int
add_locks(struct ckpt *c, struct task *t, const struct kind_save *s, bool first)
{
	int err = 0;

	if (s->home) /* they are held there */
		return 0;
	if (s->info.nlocks > PROC_LOCKS_MAX)
		return report_add(&c->report, LOSS, 0, s->object, NULL, "only %d of its %d locks are kept",
		    PROC_LOCKS_MAX, s->info.nlocks);
	for (int i = 0; i < s->info.nlocks && err == 0; i++) {
		const struct proc_lock *l = &s->info.locks[i];
		int kind = lock_kind(l);
		struct file_lock *out;

		if (kind < 0) {
			err = report_add(&c->report, LOSS, 0, s->object, NULL, "a lock of kind %s is lost", l->type);
			continue;
		}
		if (kind != LOCK_POSIX && !first)
			continue;
		out = ARRAY_ADD(t->locks, t->nlocks);
		if (out == NULL)
			return -ENOMEM;
		*out = (struct file_lock){s->fd, kind, l->write, l->start, l->end};
	}
	return err;
}

/* Whom signals go to, as the program knows them. */
static void
read_owner(const struct ckpt *c, const struct kind_save *s, struct ofd *ofd)
{
	struct f_owner_ex owner = {0};
	int fd = s->home || s->info.flags & O_PATH ? -1 : kind_get_fd(s);

	if (fd < 0)
		return;
	if (fcntl(fd, F_GETOWN_EX, &owner) == 0 && owner.pid > 0) {
		const struct member *who = tree_find(c, owner.pid);

		ofd->owner = who != NULL ? who->task->pid : owner.pid;
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
	struct ofd out = {.ref = -1, .kind = kind_of(s), .flags = s->info.flags & ~(uint64_t)O_CLOEXEC,
	    .pos = s->info.pos};
	int err;

	if (ofd == NULL)
		return -ENOMEM;
	err = kinds[out.kind]->save(s, &out);
	if (err == 0)
		read_owner(c, s, &out);
	o->ofds[index] = out;
	return err;
}

static struct kind_save
save_of(struct ckpt *c, const struct held *h, const char *object)
{
	return (struct kind_save){.pid = h->pid, .proc = h->proc, .pidfd = h->pidfd, .coop = h->coop, .fd = h->fd, .link = h->link,
	    .st = h->st, .info = h->info, .object = object, .embed = c->opt.embed == EMBED_ALL, .held = c->held,
	    .nheld = c->nheld, .tasks = c->tasks, .ntasks = c->nmembers, .objects = &c->model.objects,
	    .report = &c->report, .look_only = c->opt.check, .tcp_reset = c->opt.tcp_reset, .home = c->opt.home != NULL,
	    .stays = c->opt.after == AFTER_COPY || c->opt.after == AFTER_PARK, .image_id = c->model.header.id,
	    .elapsed_ns = collect_elapsed_ns(c), .shared = &c->shared, .rules = c->opt.rules, .nrules = c->opt.nrules};
}

/* One fd: which of those before it is the same, or what is it? */
static int
collect_fd(struct ckpt *c, struct member *who, struct held *h)
{
	struct task *t = who->task;
	char object[48] = "";
	struct kind_save s = save_of(c, h, object);
	const struct held *same = c->held;
	struct fd_slot *slot;
	bool first, first_here = true;
	int err = 0;

	while (same != h && !same_ofd(same, h))
		same++;
	first = same == h;
	for (size_t i = 0; i < t->nfds; i++)
		first_here &= first || t->fds[i].ofd != same->ofd;
	h->ofd = first ? (int64_t)c->model.objects.nofds : same->ofd;
	slot = ARRAY_ADD(t->fds, t->nfds);
	if (slot == NULL)
		return -ENOMEM;
	*slot = (struct fd_slot){h->fd, h->ofd, (h->info.flags & O_CLOEXEC) != 0};
	if (!first_here)
		return 0;
	snprintf(object, sizeof(object), "pid %d: fd %d", h->pid, h->fd);
	if (first)
		err = add_ofd(c, &s);
	return err < 0 ? err : add_locks(c, t, &s, first);
}

static int
master_number(const struct held *h)
{
	int fd = kind_held_fd(h), number = -1;

	if (fd >= 0 && ioctl(fd, TIOCGPTN, &number) < 0)
		number = -1;
	close_fd(&fd);
	return number;
}

/* What there is to know of it from outside; pid, pidfd, proc and fd are set. */
static int
look_at(struct held *h)
{
	char path[32];
	int err;

	snprintf(path, sizeof(path), "fd/%d", h->fd);
	h->ofd = h->pty = -1;
	err = read_link(h->proc, path, &h->link);
	if (err == 0 && fstatat(h->proc, path, &h->st, 0) < 0)
		err = -errno;
	if (err == 0)
		err = proc_read_fdinfo(h->proc, h->fd, &h->info);
	if (err < 0)
		return fail(-err, "pid %d: fd %d: %s", h->pid, h->fd, strerror(-err));
	if (S_ISCHR(h->st.st_mode))
		h->pty = kind_is_ptmx(h->st.st_rdev) ? master_number(h) : kind_pty_number(h->st.st_rdev);
	return 0;
}

static int
hold(struct ckpt *c, const struct member *who, int fd)
{
	struct held *h = ARRAY_ADD(c->held, c->nheld);

	if (h == NULL)
		return -ENOMEM;
	*h = (struct held){.pid = who->target.pid, .pidfd = who->target.pidfd, .proc = who->target.proc, .coop = who->target.coop, .fd = fd};
	return look_at(h);
}

static int
hold_all(struct ckpt *c, const struct member *who)
{
	size_t n;
	int *fds, err = proc_list(who->target.proc, "fd", &fds, &n);

	if (err < 0)
		return fail(-err, "pid %d: its open files cannot be listed: %s", who->target.pid,
		    strerror(-err));
	for (size_t i = 0; i < n && err == 0; i++)
		if (who->target.coop == NULL || fds[i] != coop_own_fd(who->target.coop))
			err = hold(c, who, fds[i]);
	free(fds);
	return err;
}

static const struct held *
holder(const struct ckpt *c, int64_t ofd)
{
	for (size_t i = 0; i < c->nheld; i++)
		if (c->held[i].ofd == ofd)
			return &c->held[i];
	for (size_t i = 0; i < c->nin_flight; i++)
		if (c->in_flight[i].ofd == ofd)
			return &c->in_flight[i];
	return NULL;
}

/* An open file that only a message has: held by our copy of it until the end. */
static int64_t
add_in_flight(struct ckpt *c, int fd)
{
	static const char object[] = "an open file on its way through a socket";
	struct held *h = ARRAY_ADD(c->in_flight, c->nin_flight);
	struct kind_save s;
	int err;

	if (h == NULL)
		return -ENOMEM;
	*h = (struct held){.pid = getpid(), .fd = fcntl(fd, F_DUPFD_CLOEXEC, 3), .pidfd = pidfd_open_(getpid()),
	    .proc = proc_open(getpid())};
	err = look_at(h);
	h->ofd = (int64_t)c->model.objects.nofds;
	s = save_of(c, h, object);
	if (err == 0)
		err = add_ofd(c, &s);
	return err < 0 ? err : (int64_t)c->model.objects.nofds - 1;
}

/* One of our own fds, which a socket has given us from its queue. */
static int64_t
ofd_of(void *ctx, int fd)
{
	struct ckpt *c = ctx;

	for (size_t i = 0; i < c->nheld; i++)
		if (syscall(SYS_kcmp, getpid(), c->held[i].pid, KCMP_FILE, fd, c->held[i].fd) == 0)
			return c->held[i].ofd;
	for (size_t i = 0; i < c->nin_flight; i++)
		if (syscall(SYS_kcmp, getpid(), getpid(), KCMP_FILE, fd, c->in_flight[i].fd) == 0)
			return c->in_flight[i].ofd;
	return add_in_flight(c, fd);
}

/* When all are known: what refers to others. Those that are found on the way are looked at, too. */
static int
finish_ofds(struct ckpt *c)
{
	struct objects *o = &c->model.objects;
	int err = 0;

	c->shared.ofd_of = ofd_of;
	c->shared.ctx = c;
	for (size_t i = 0; i < o->nofds && err == 0; i++) {
		const struct held *h = holder(c, (int64_t)i);
		char object[48];
		struct kind_save s;
		struct ofd ofd = o->ofds[i];

		if (kinds[ofd.kind]->refer == NULL || h == NULL)
			continue;
		snprintf(object, sizeof(object), "pid %d: fd %d", h->pid, h->fd);
		s = save_of(c, h, object);
		err = kinds[ofd.kind]->refer(&s, &ofd);
	}
	return err;
}

void
leave_fds(struct ckpt *c)
{
	const struct objects *o = &c->model.objects;

	for (size_t i = 0; i < o->nofds; i++) {
		const struct held *h = kinds[o->ofds[i].kind]->leave != NULL ? holder(c, (int64_t)i) : NULL;
		int fd;

		if (h == NULL)
			continue;
		fd = kind_held_fd(h);
		if (fd >= 0)
			kinds[o->ofds[i].kind]->leave(o, &o->ofds[i], fd);
		close_fd(&fd);
	}
}

/* Every fd of every process, before anything is looked at: much depends on who else has a thing. */
int
collect_held(struct ckpt *c)
{
	int err = 0;

	c->tasks = calloc(c->nmembers, sizeof(*c->tasks));
	if (c->tasks == NULL)
		return -ENOMEM;
	for (size_t i = 0; i < c->nmembers && err == 0; i++) {
		c->tasks[i] = (struct held_task){c->members[i]->target.pid, c->model.header.tasks[i]};
		collect_shares(c->members[i]);
		if (!c->members[i]->zombie && !c->members[i]->task->shares_files)
			err = hold_all(c, c->members[i]);
	}
	return err;
}

/* stat(5) has the kernel's old encoding: minor in bits 0 to 7 and 20 to 31. */
static int
tty_number(int tty)
{
	unsigned t = (unsigned)tty;

	return kind_pty_number(makedev(t >> 8 & 0xfff, (t & 0xff) | (t >> 12 & 0xfff00)));
}

/* The controlling terminal of a session, where it is inside. */
static void
collect_tty(struct ckpt *c, const struct member *who)
{
	const struct proc_stat *st = &who->target.stat;
	int number = tty_number(st->tty);

	who->task->tty = -1;
	for (size_t i = 0; i < c->model.objects.nptys && who->task->session_leader && number >= 0; i++)
		if (c->model.objects.ptys[i].number == number)
			who->task->tty = (int64_t)i;
	for (size_t i = 0; who->task->tty >= 0 && i < c->nmembers; i++)
		if (c->members[i]->target.stat.pgrp == st->foreground)
			who->task->foreground = c->members[i]->task->pgid;
}

int
collect_fds(struct ckpt *c)
{
	int err = 0;

	for (size_t i = 0; i < c->nheld && err == 0; i++)
		err = collect_fd(c, tree_find(c, c->held[i].pid), &c->held[i]);
	for (size_t i = 0; i < c->nmembers; i++)
		collect_tty(c, c->members[i]);
	if (err == 0)
		space_refer(c);
	return err < 0 ? err : finish_ofds(c);
}
