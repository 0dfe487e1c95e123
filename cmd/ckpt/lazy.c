/*
 * The image leaves without the memory, which is served by a pagesrv that we start, and is fetched when it is touched (-m). Until somebody who has built the
 * process asks for it we hold the original, which runs on if we die; then it is parked, so that it never runs again by itself, whoever dies; and
 * pagesrv ends it when its last page has been taken over. With --spool there is a whole image in a file before, and the original is ended.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ckpt.h"
#include "fault.h"
#include "file_locks.h"
#include "handover.h"
#include "io.h"
#include "log.h"
#include "netlock.h"
#include "options.h"
#include "outside.h"
#include "page_plan.h"
#include "record.h"

int
lazy_open(struct ckpt *c, const struct output *o)
{
	char *reached = NULL;
	int err = home_listen(c, o, 'm', "pages are", c->opt.pages, &reached);

	/* It is told when everything else is: a spool has none. */
	if (err == 0)
		c->opt.pages = reached;
	return err;
}

int
lazy_announce(struct ckpt *c)
{
	struct image_header *h = &c->model.header;
	int err = add_feature(c, "pages");

	if (err < 0 || (h->pages = strdup(c->opt.pages)) == NULL)
		return fail(ENOMEM, "out of memory");
	return 0;
}

int
lazy_spool(struct ckpt *c, const struct output *o)
{
	int err = save_as(c, c->opt.spool);

	if (err == 0)
		output_status(o, "complete %s", c->opt.spool);

	for (size_t i = 0; i < c->nmembers && err == 0; i++)
		if (!c->members[i]->zombie)
			err = contents_split(c->members[i]);
	return err;
}

/* --- the one who serves it */

static int
open_pagemap(const struct member *who)
{
	int fd = openat(who->target.proc, "pagemap", O_RDONLY | O_CLOEXEC);

	return fd < 0 ? fail_errno("pid %d: pagemap", who->target.pid) : fd;
}

/* In the child: what pagesrv needs, and then it. */
static int
become_pagesrv(struct ckpt *c, const struct output *o, int control)
{
	struct page_plan plan = {.id = c->model.header.id, .address = (char *)c->opt.pages, .key = (char *)c->opt.key, .image = (char *)c->opt.spool,
	    .listen = c->home_listener, .in = -1, .out = -1, .control = control};
	size_t n = 4;
	int64_t *fds = calloc(n + 2 * c->nmembers, sizeof(*fds));

	if (fds == NULL)
		return fail(ENOMEM, "out of memory");
	if (c->home_listener < 0)
		plan.in = plan.out = o->fd;
	fds[0] = plan.listen, fds[1] = plan.in, fds[2] = plan.out, fds[3] = control;
	for (size_t i = 0; i < c->nmembers && c->opt.spool == NULL; i++) {
		const struct member *who = c->members[i];
		struct page_task *t = who->zombie ? NULL : ARRAY_ADD(plan.tasks, plan.ntasks);

		if (who->zombie)
			continue;
		if (t == NULL)
			return fail(ENOMEM, "out of memory");
		*t = (struct page_task){.pid = who->target.pid, .number = who->task->pid, .memory = who->target.mem, .pagemap = open_pagemap(who)};
		fds[n++] = t->memory;
		fds[n++] = t->pagemap;
	}
	setsid();
	return handover_become("pagesrv", "source", &record_page_plan, &plan, fds, n);
}

static pid_t
start_pagesrv(struct ckpt *c, const struct output *o, int *control)
{
	int sv[2];
	pid_t pid;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv) < 0)
		return fail_errno("socketpair");
	pid = fork();
	if (pid == 0) {
		options_give_back();
		become_pagesrv(c, o, sv[1]);
		_exit(1);
	}
	close(sv[1]);
	if (pid < 0) {
		close(sv[0]);
		return fail_errno("fork");
	}
	*control = sv[0];
	return pid;
}

/* --- what becomes of the original */

/* Others can have its locks: it cannot run again. on: it has them again. */
static void
set_locks(struct ckpt *c, bool on)
{
	for (size_t i = 0; i < c->nmembers; i++) {
		struct member *who = c->members[i];

		if (who->zombie || who->task->nlocks == 0 || target_borrow(&who->target, &who->target.threads[0]) < 0)
			continue;
		for (size_t k = 0; k < who->task->nlocks; k++) {
			struct script s = {0};

			file_lock_add(&s, &who->task->locks[k], on);
			tracee_run_script(&who->target.threads[0], &s);
			script_fini(&s);
		}
		target_give_back(&who->target);
	}
}

/* It has not come to run elsewhere after all, and that is known. */
static int
take_back(struct ckpt *c)
{
	struct ckpt again = {.opt = {.stop_timeout_ms = c->opt.stop_timeout_ms}, .home_listener = -1, .home_report = -1};
	int err;

	if (c->opt.spool != NULL)
		return fail(ECONNRESET, "pid %d: is not taken over; it is saved as %s", c->members[0]->target.pid, c->opt.spool);
	err = park_resume(&again, c->members[0]->target.pid);
	ckpt_fini(&again);
	for (size_t i = 0; i < c->nmembers; i++)
		if (!c->members[i]->zombie && c->members[i]->task->nlocks > 0)
			note("pid %d: has lost its locks on files", c->members[i]->target.pid);
	return err < 0 ? err : fail(ECONNRESET, "pid %d: is not taken over, and runs on", c->members[0]->target.pid);
}

static int
give_up_original(struct ckpt *c)
{
	int err;

	if (c->opt.spool == NULL) {
		set_locks(c, false);
		err = park(c, false);
		if (err < 0) {
			set_locks(c, true);
			return err;
		}
		if (c->shared.netlock != NULL)
			err = netlock_decide(c->shared.netlock, true);
		if (err < 0)
			take_back(c);
		return err;
	}
	err = tree_set_exitkill(c, true);
	c->decided = err == 0;
	return err < 0 ? err : end_original(c, NULL);
}

static int
unknown(const struct ckpt *c)
{
	if (c->opt.spool != NULL)
		return fail(ECONNRESET, "pid %d: may run elsewhere, and is saved as %s; restart that only if it does not", c->members[0]->target.pid, c->opt.spool);
	return fail(ECONNRESET, "pid %d: may run elsewhere, and is parked here; ckpt --resume %d only if it does not (pagesrv serve -p %d serves its memory again)",
	    c->members[0]->target.pid, c->members[0]->target.pid, c->members[0]->target.pid);
}

/* Its memory has a new owner, and it is one of nobody's any more. */
static void
leave_rest(struct ckpt *c)
{
	if (c->opt.spool != NULL)
		return; /* it has been ended, as whole */
	leave_fds(c);
	if (proc_same_ns(c->members[0]->target.proc, "ipc"))
		leave_ipc(c);
	netlock_end(c->shared.netlock, NETLOCK_KEEP);
	c->shared.netlock = NULL;
}

/* What pagesrv says: 'T', 'R', 'U', 'X', or 0 where it has gone. Until it is taken, others may say that it is over: -errno, logged. */
static int
hear(const struct ckpt *c, const struct output *o, int control, bool taken)
{
	struct pollfd p[2] = {{control, POLLIN, 0}, {!taken && o->kind == OUTPUT_PIPE ? o->fd : -1, 0, 0}};
	char what = 0;

	for (;;) {
		int n = poll(p, 2, 200);

		if (!taken && interrupted())
			return fail(EINTR, "interrupted; pid %d runs on", c->members[0]->target.pid);
		if (n > 0 && p[0].revents != 0)
			return recv(control, &what, 1, 0) == 1 ? what : 0;
		if (n > 0 && p[1].revents != 0)
			return fail(ECONNRESET, "%s: the reader of the image has gone; pid %d runs on", o->name, c->members[0]->target.pid);
	}
}

static int
follow(struct ckpt *c, struct output *o, int control)
{
	bool taken = false;

	for (;;) {
		int what = hear(c, o, control, taken), err;

		switch (what) {
		case 'T':
			err = give_up_original(c);
			taken = err == 0;
			if (taken)
				interrupts_end();
			send(control, taken ? "P" : "F", 1, MSG_NOSIGNAL);
			fault(FAULT_end_out);
			continue;
		case 'R':
			leave_rest(c);
			return 0;
		case 'X':
			return taken ? take_back(c) : fail(ECONNRESET, "pid %d: is not taken over, and runs on", c->members[0]->target.pid);
		case 'U':
		case 0:
			return taken ? unknown(c) : fail(ECONNRESET, "pagesrv has gone; pid %d runs on", c->members[0]->target.pid);
		default:
			return what < 0 ? what : -EPROTO;
		}
	}
}

int
lazy_stay(struct ckpt *c, struct output *o)
{
	int control = -1, err;
	pid_t pid;

	for (size_t i = 0; i < c->nmembers; i++)
		if (!c->members[i]->zombie)
			target_give_back(&c->members[i]->target);
	pid = start_pagesrv(c, o, &control);
	if (pid < 0)
		return (int)pid;
	if (c->home_listener >= 0) {
		close_fd(&c->home_listener); /* pagesrv's now, and its to remove */
		if (o->kind == OUTPUT_FILE)
			note("pid %d stands still until its copy comes to %s", c->members[0]->target.pid, c->opt.pages);
	}
	/* The channel is pagesrv's, too; and restart may go on as long as the program does. */
	if (o->kind == OUTPUT_CHANNEL) {
		close_fd(&o->fd);
		o->child = 0;
	}
	err = follow(c, o, control);
	close_fd(&control);
	if (err == 0 && c->home_report >= 0) {
		output_status(o, "left %d", c->members[0]->target.pid);
		outside_tell(c->home_report, 'R', 0, -1);
	}
	/* It ends when we have gone, if it was not taken. */
	return err;
}
