/*
 * The process and its descendants: found from the top, each stopped before its children are looked for,
 * so that nobody is born unseen; let go or ended together.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ckpt.h"
#include "fault.h"
#include "io.h"
#include "log.h"
#include "netlock.h"

struct member *
tree_find(const struct ckpt *c, pid_t pid)
{
	for (size_t i = 0; i < c->nmembers; i++)
		if (c->members[i]->target.pid == pid)
			return c->members[i];
	return NULL;
}

char *
member_name(const struct member *who, char name[64])
{
	snprintf(name, 64, "pid %d", who->target.pid);
	return name;
}

char *
mapping_name(const struct member *who, taddr start, taddr end, char name[96])
{
	snprintf(name, 96, "pid %d: mapping %llx-%llx", who->target.pid, (unsigned long long)start, (unsigned long long)end);
	return name;
}

static struct member *
add_member(struct ckpt *c, struct member *parent)
{
	struct member **place = ARRAY_ADD(c->members, c->nmembers);

	if (place == NULL)
		return NULL;
	*place = calloc(1, sizeof(**place));
	if (*place == NULL) {
		c->nmembers--;
		return NULL;
	}
	(*place)->parent = parent;
	(*place)->target = (struct target)TARGET_NONE;
	return *place;
}

/* One that is home, or has its memory fetched, is under ptrace(2) all the time. */
static int
open_target(const struct ckpt *c, struct member *who, pid_t pid)
{
	int err = target_open(&who->target, pid);
	enum after after = c->opt.after;

	who->target.may_ask = after == AFTER_MOVE || after == AFTER_COPY || after == AFTER_KILL || after == AFTER_PARK;
	return err;
}

static void
drop_last(struct ckpt *c)
{
	struct member *who = c->members[--c->nmembers];

	target_close(&who->target);
	free(who);
}

int
tree_open(struct ckpt *c, pid_t pid)
{
	struct member *who = add_member(c, NULL);
	int err = who == NULL ? -ENOMEM : open_target(c, who, pid);

	if (err == 0) {
		target_look_ahead(&who->target, false);
		space_look_ahead(&who->target);
	}
	return err;
}

/* It has ended, and waits for its parent: there is nothing to stop. */
static int
add_zombie(struct ckpt *c, struct member *parent, pid_t pid, int proc, const struct proc_status *st)
{
	struct member *who = add_member(c, parent);
	int err = who == NULL ? -ENOMEM : proc_read_stat(proc, &who->target.stat);

	if (err < 0)
		return fail(-err, "pid %d: %s", pid, strerror(-err));
	who->zombie = true;
	who->target.pid = pid;
	who->target.proc = proc;
	who->target.status = *st;
	return 0;
}

/* Gone, a zombie, or on the way there: one that is ending has no memory and no program any more. */
static bool
is_ending(pid_t pid)
{
	int proc = proc_open(pid);
	struct proc_stat st = {.state = 'X'};
	char *exe = NULL;
	bool ending;

	if (proc < 0)
		return true;
	ending = proc_read_stat(proc, &st) < 0 || st.state == 'Z' || st.state == 'X' ||
	    read_link(proc, "exe", &exe) == -ENOENT;
	free(exe);
	close(proc);
	return ending;
}

/* Stopped, or -ESRCH where it ends meanwhile. */
static int
add_running(struct ckpt *c, struct member *parent, pid_t pid, int64_t deadline)
{
	struct member *who = add_member(c, parent);
	int err;

	if (who == NULL)
		return -ENOMEM;
	log_hush(1);
	err = open_target(c, who, pid);
	log_hush(-1);
	if (err < 0 && is_ending(pid)) {
		drop_last(c);
		return -ESRCH;
	}
	if (err < 0) {
		drop_last(c);
		return fail(-err, "%s", log_last_hushed());
	}
	if (pid == getpid()) {
		drop_last(c);
		return fail(ENOTSUP, "pid %d: ckpt itself is among its descendants (start ckpt from another "
		    "shell)", c->members[0]->target.pid);
	}
	log_hush(1);
	err = target_freeze(&who->target, deadline, c->opt.eintr);
	log_hush(-1);
	if (err < 0 && err != -ESRCH && !is_ending(pid))
		return fail(-err, "%s", log_last_hushed());
	if (err < 0)
		drop_last(c);
	return err < 0 ? -ESRCH : 0;
}

/* A child that is not known yet. One that ends meanwhile is a zombie when it is looked at again. */
static int
add_child(struct ckpt *c, struct member *parent, pid_t pid, int64_t deadline)
{
	for (int tries = 0; tries < 1000; tries++) {
		struct proc_status st;
		int proc = proc_open(pid), err;

		if (proc < 0)
			return 0;
		if (proc_read_status(proc, &st) < 0 || st.ppid != parent->target.pid) {
			close(proc);
			return 0;
		}
		if (st.state == 'Z' && st.threads <= 1)
			return add_zombie(c, parent, pid, proc, &st);
		proc_status_fini(&st);
		close(proc);
		err = add_running(c, parent, pid, deadline);
		if (err != -ESRCH)
			return err;
		poll(NULL, 0, 1);
	}
	return fail(EBUSY, "pid %d: ends, and does not end", pid);
}

/* The children of one that stands still. *fresh: whether there were new ones. */
static int
add_children(struct ckpt *c, struct member *parent, int64_t deadline, bool *fresh)
{
	int *pids, err;
	size_t n;

	err = proc_children(parent->target.proc, parent->target.pid, &pids, &n);
	if (err < 0)
		return fail(-err, "pid %d: its children cannot be listed: %s", parent->target.pid, strerror(-err));
	for (size_t i = 0; i < n && err == 0; i++) {
		if (tree_find(c, pids[i]) != NULL)
			continue;
		*fresh = true;
		err = add_child(c, parent, pids[i], deadline);
	}
	free(pids);
	return err;
}

static int
freeze_all(struct ckpt *c)
{
	int64_t deadline = now_ms() + c->opt.stop_timeout_ms;
	int err = target_freeze(&c->members[0]->target, deadline, c->opt.eintr);
	bool fresh = !c->opt.single;

	/* Once more after all: orphans move up to a process that had been looked at before. */
	while (err == 0 && fresh) {
		fresh = false;
		for (size_t i = 0; i < c->nmembers && err == 0; i++)
			if (!c->members[i]->zombie)
				err = add_children(c, c->members[i], deadline, &fresh);
	}
	return err;
}

int
tree_freeze(struct ckpt *c)
{
	int err = collect_host(c);

	if (err < 0)
		return err;
	c->frozen = true;
	c->frozen_ns = now_ns();
	err = freeze_all(c);
	if (err < 0)
		tree_thaw(c);
	return err;
}

void
tree_stopped(struct ckpt *c)
{
	int64_t ns = now_ns() - c->frozen_ns;

	if (!c->frozen)
		return;
	c->frozen = false;
	stats_add(STAT_stopped, ns);
	debug(LOG_VERBOSE, "pid %d: stood still for %.2f ms", c->members[0]->target.pid, (double)ns / 1e6);
}

void
tree_thaw(struct ckpt *c)
{
	/* Decided, and not yet dead: PTRACE_O_EXITKILL is what is left to end them. */
	if (c->decided) {
		c->frozen = false;
		return;
	}
	/* Every thread gets back what is its own before the first one runs. */
	for (size_t i = 0; i < c->nmembers; i++)
		target_give_back(&c->members[i]->target);
	for (size_t i = 0; i < c->nmembers; i++)
		target_detach(&c->members[i]->target);
	tree_stopped(c);
}

int
tree_set_exitkill(struct ckpt *c, bool on)
{
	int err = 0;

	for (size_t i = 0; i < c->nmembers && (err == 0 || !on); i++)
		err = target_set_exitkill(&c->members[i]->target, on);
	if (err == 0 || !on)
		err = netlock_decide(c->shared.netlock, on);
	return err == 0 && on ? fault(FAULT_before_end) : err;
}

int
tree_end(struct ckpt *c)
{
	int err = 0;

	/* All before any is waited for: nobody is to see another one end. */
	for (size_t i = 0; i < c->nmembers && err == 0; i++)
		if (!c->members[i]->zombie)
			err = target_kill(&c->members[i]->target);
	for (size_t i = c->nmembers; i-- > 0 && err == 0;)
		if (!c->members[i]->zombie)
			target_reap(&c->members[i]->target);
	if (err == 0)
		tree_stopped(c);
	return err;
}

void
tree_close(struct ckpt *c)
{
	if (c->nmembers > 0)
		tree_thaw(c);
	for (size_t i = 0; i < c->nmembers; i++) {
		struct member *who = c->members[i];

		target_close(&who->target);
		page_runs_fini(&who->runs);
		page_runs_fini(&who->unwritten);
		free(who->vdso);
		free(who);
	}
	free(c->members);
	c->members = NULL;
	c->nmembers = 0;
}

static uint64_t
memory_below(int proc, pid_t pid, unsigned depth)
{
	struct proc_status st;
	uint64_t sum = 0;
	int *pids;
	size_t n;

	if (proc_read_status(proc, &st) < 0)
		return 0;
	sum = (st.rss_anon_kb + st.rss_shmem_kb + st.swap_kb) << 10;
	proc_status_fini(&st);
	if (depth == 0 || proc_children(proc, pid, &pids, &n) < 0)
		return sum;
	for (size_t i = 0; i < n; i++) {
		int child = proc_open(pids[i]);

		if (child >= 0)
			sum += memory_below(child, pids[i], depth - 1);
		close_fd(&child);
	}
	free(pids);
	return sum;
}

uint64_t
tree_memory(const struct ckpt *c)
{
	const struct target *t = &c->members[0]->target;

	return memory_below(t->proc, t->pid, c->opt.single ? 0 : 64);
}
