/*
 * Originals that -S leaves behind: every thread in a loop of its own that stops the process
 * again whenever something continues it. Where it was before is in a signal frame below its stack.
 */
#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "ckpt.h"
#include "coop_abi.h"
#include "fault.h"
#include "io.h"
#include "log.h"
#include "parked.h"

/* Everything that can fail, so that it fails before anybody is parked. */
static int
prepare(struct member *who)
{
	struct target *t = &who->target;
	int err = 0;

	if (t->coop != NULL)
		return 0;
	if (t->restorer == 0)
		return fail(ENOTSUP, "pid %d: cannot be parked: its program has no way back from a "
		    "signal that could be borrowed", t->pid);
	for (size_t i = 0; i < t->nthreads && err == 0; i++)
		err = target_borrow(t, &t->threads[i]);
	for (size_t i = 0; i < t->nthreads && err == 0; i++)
		if (t->threads[i].frame_at == 0)
			err = fail(ENOTSUP, "pid %d: thread %d cannot be parked: its stack has no room", t->pid,
			    t->threads[i].tid);
	return err < 0 ? err : lend_pages(who, 1, arch_park, (size_t)(arch_park_end - arch_park));
}

/* From here on it stops by itself as soon as one of its threads runs. */
static int
turn_aside(struct member *who)
{
	struct target *t = &who->target;
	int err = t->coop != NULL ? coop_park(t->coop, true) : 0;

	for (size_t i = 0; i < t->nthreads && err == 0 && t->coop == NULL; i++) {
		struct tracee *th = &t->threads[i];
		struct arch_regs regs = th->regs;

		arch_set_park(&regs, who->page.at, t->status.nspid[t->status.levels - 1],
		    who->task->threads[i].tid, th->frame_at);
		err = tracee_set_regs(th->tid, &regs);
		fault(FAULT_parking);
	}
	return err;
}

static void
leave_parked(struct target *t)
{
	for (size_t i = 0; i < t->nthreads; i++) {
		t->threads[i].borrowed = false; /* it keeps what was borrowed */
		tracee_detach(&t->threads[i]);
	}
	t->nthreads = 0;
	coop_go_on(t->coop); /* it does not */
	t->coop = NULL;
}

int
park(struct ckpt *c, bool saved)
{
	int err = 0;

	for (size_t i = 0; i < c->nmembers && err == 0; i++)
		if (!c->members[i]->zombie)
			err = prepare(c->members[i]);
	for (size_t i = 0; i < c->nmembers && err < 0; i++)
		take_page_back(c->members[i]);
	/* All or none: should ckpt die while it turns them aside, they end, and the image is there. */
	if (err == 0 && saved)
		err = tree_set_exitkill(c, true);
	for (size_t i = 0; i < c->nmembers && err == 0; i++)
		err = turn_aside(c->members[i]);
	if (saved)
		tree_set_exitkill(c, false);
	for (size_t i = c->nmembers; i-- > 0 && err == 0;)
		leave_parked(&c->members[i]->target);
	return err;
}

/* --- afterwards */

/* It can be asked, and stands in its handler. */
static bool
is_standing(int proc)
{
	struct proc_maps maps;
	bool yes = false;

	if (proc_read_maps(proc, false, &maps) < 0)
		return false;
	for (size_t i = 0; i < maps.n && !yes; i++)
		yes = coop_is_parked_mark(maps.map[i].path);
	proc_maps_fini(&maps);
	return yes;
}

static int
not_parked(pid_t pid)
{
	return fail(ENOENT, "pid %d: is not parked (ckpt --list shows those that are)", pid);
}

static int
leave_park(struct tracee *th, taddr *page)
{
	unsigned char frame[1024];
	taddr xstate_at, at = park_page(th->mem, th->regs.rip);
	struct arch_regs regs = th->regs;
	uint64_t mask;
	int err;

	if (at == 0)
		return 0;
	err = mem_read(th->mem, arch_park_frame(&th->regs), frame, sizeof(frame));
	if (err < 0 || !arch_sigframe_read(frame, sizeof(frame), &regs, &mask, &xstate_at))
		return fail(EIO, "pid %d: its frame cannot be read", th->tid);
	*page = at;
	th->regs = regs;
	th->sigmask = mask;
	err = tracee_set_regs(th->tid, &regs);
	return err < 0 ? err : tracee_set_sigmask(th->tid, mask);
}

/* Is one of these stopped processes in its parking loop? */
static bool
any_parked(const struct ckpt *c)
{
	for (size_t i = 0; i < c->nmembers; i++) {
		const struct target *t = &c->members[i]->target;

		if (t->coop != NULL && coop_was_parked(t->coop))
			return true;
		for (size_t k = 0; k < t->nthreads; k++)
			if (park_page(t->mem, t->threads[k].regs.rip) != 0)
				return true;
	}
	return false;
}

/* Everything that is parked in this one goes back to where it was. */
static int
unpark(struct target *t, bool *stopped)
{
	taddr page = 0;
	int err = 0;

	*stopped = t->coop == NULL;
	if (t->coop != NULL)
		return coop_park(t->coop, false);
	for (size_t i = 0; err == 0 && i < t->nthreads; i++) {
		err = leave_park(&t->threads[i], &page);
		*stopped &= t->threads[i].stop_signal != 0;
	}
	if (err == 0 && page != 0) {
		err = target_borrow(t, &t->threads[0]);
		if (err == 0)
			err = unmap_pages(&t->threads[0], page, 1);
	}
	return err;
}

/* The tree of this process, stopped, if any of it is parked. */
static int
open_parked(struct ckpt *c, pid_t pid)
{
	int err = tree_open(c, pid);

	/* In its handler nothing of the program runs, and stopped it cannot be asked. */
	if (err == 0 && c->members[0]->target.status.state == 'T' && is_standing(c->members[0]->target.proc) && kill(pid, SIGCONT) == 0) {
		proc_status_fini(&c->members[0]->target.status);
		err = proc_read_status(c->members[0]->target.proc, &c->members[0]->target.status);
	}
	c->opt.eintr = true;
	if (err == 0)
		err = tree_freeze(c);
	return err == 0 && !any_parked(c) ? not_parked(pid) : err;
}

int
park_resume(struct ckpt *c, pid_t pid)
{
	bool *stopped = NULL;
	pid_t *pids = NULL;
	size_t n = 0;
	int err = open_parked(c, pid);

	if (err == 0) {
		n = c->nmembers;
		stopped = calloc(n, sizeof(*stopped));
		pids = calloc(n, sizeof(*pids));
		err = stopped == NULL || pids == NULL ? -ENOMEM : 0;
	}
	for (size_t i = 0; err == 0 && i < n; i++) {
		pids[i] = c->members[i]->target.pid;
		if (!c->members[i]->zombie)
			err = unpark(&c->members[i]->target, &stopped[i]);
	}
	tree_thaw(c);
	for (size_t i = n; err == 0 && i-- > 0;)
		if (stopped[i] && kill(pids[i], SIGCONT) < 0)
			err = fail_errno("pid %d: continue", pids[i]);
	free(stopped);
	free(pids);
	return err;
}

int
park_end(struct ckpt *c, pid_t pid)
{
	int err = open_parked(c, pid);

	return err < 0 ? err : tree_end(c);
}

/* Its state, or 0; printed if it is parked. */
static char
list_one(pid_t pid)
{
	int proc = proc_open(pid);
	struct proc_status st;
	char state = '\0';

	if (proc >= 0 && proc_read_status(proc, &st) == 0) {
		state = st.state;
		if (((state == 'T' || state == 't') && is_parked(pid)) || ((st.sigcgt >> (COOP_SIGNAL - 1) & 1) && is_standing(proc)))
			printf("%d\t%s\n", pid, st.name);
		proc_status_fini(&st);
	}
	close_fd(&proc);
	return state;
}

int
park_list(void)
{
	DIR *dir = opendir("/proc");
	struct dirent *e;

	if (dir == NULL)
		return fail_errno("/proc");
	while ((e = readdir(dir)) != NULL) {
		pid_t pid = (pid_t)atoi(e->d_name);

		/* Something may have continued it, and it is about to stop again. */
		for (int tries = 0; pid > 0 && list_one(pid) == 'R' && tries < 20; tries++)
			poll(NULL, 0, 1);
	}
	closedir(dir);
	return 0;
}
