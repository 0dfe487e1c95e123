/*
 * What the copy's supervisor says: calls, and what its threads and processes do.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "away_filter.h"
#include "home.h"
#include "io.h"
#include "log.h"
#include "proc.h"
#include "session.h"

/* --- calls */

static void
refuse(struct home *h, uint32_t id, int64_t result)
{
	struct buf out = {0};

	buf_put_u64(&out, (uint64_t)result);
	link_send(&h->link, MSG_RESULT, id, out.data, out.len); /* that it has gone shows in what comes */
	buf_fini(&out);
}

/* What changes its memory, threads or handlers is the copy's, and would be the end of the executor. */
static bool
may_execute(long nr)
{
	enum syscall_class class = syscall_class(nr);

	if (away_filter_mirrors(nr))
		return true;
	return !syscall_never_lent(nr) && nr != SYS_mmap && class != SYSCALL_NONE && class != SYSCALL_HERE;
}

static int
call(struct home *h, const struct msg_header *m, struct rbuf *r)
{
	struct home_thread *t = home_find(h, rbuf_get_u32(r));
	struct calldata c = {0};
	int err;

	if (r->failed)
		return -EPROTO;
	err = calldata_get_call(&c, r->data + r->pos, rbuf_left(r));
	if (err == -EPROTO)
		return fail(EPROTO, "%s: a call that makes no sense", h->link.peer);
	if (err == 0 && (t == NULL || t->process->ending_ms != 0))
		err = -ESRCH; /* it has been killed here, and this is known there soon */
	if (err == 0 && !may_execute(c.nr))
		err = -ENOSYS;
	if (err == 0 && (t->waiting || t->state == HOME_BUSY)) {
		calldata_fini(&c);
		return fail(EPROTO, "%s: a thread that waits already calls again", h->link.peer);
	}
	if (err < 0) {
		calldata_fini(&c);
		refuse(h, m->id, err == -ENOTSUP ? -ENOSYS : err);
		return 0;
	}
	t->call = c;
	t->id = m->id;
	home_begin(h, t);
	return 0;
}

static void
cancel(struct home *h, uint32_t id)
{
	for (size_t i = 0; i < h->nthreads; i++)
		if (h->threads[i]->id == id)
			home_cancel(h->threads[i]);
}

/* --- threads and processes */

/* It has made this one, which stands at its beginning, or will. */
static struct home_thread *
born(struct home *h, struct home_thread *by, struct home_process *p, uint32_t number)
{
	struct home_thread *t = p != NULL ? home_add_thread(h, p, by->born, number) : NULL;
	int status = SIGTRAP << 8 | 0x7f;

	if (t == NULL || (h->unborn != t->tid && waitpid(t->tid, &status, __WALL) != t->tid))
		return NULL;
	if (!WIFSTOPPED(status)) {
		home_event(h, t, status); /* killed already */
		return NULL;
	}
	t->regs = by->regs;
	return home_take_thread(t) == 0 ? t : NULL;
}

/* Files that its copy does not have were made by another thread meanwhile. */
static void
keep_files(struct home *h, struct home_thread *t, struct rbuf *keep)
{
	size_t start = keep->pos, n;
	int *fds;

	if (proc_list(t->process->proc, "fd", &fds, &n) < 0)
		return;
	for (size_t i = 0; i < n; i++) {
		bool kept = false;

		for (keep->pos = start; rbuf_left(keep) >= 4 && !kept;)
			kept = rbuf_get_u32(keep) == (uint32_t)fds[i];
		if (!kept)
			HOME_OWN_CALL(h, t, SYS_close, (uint64_t)fds[i]);
	}
	free(fds);
}

static void
tell_born(struct home *h, uint32_t number, int64_t pid)
{
	struct buf b = {0};

	buf_put_u32(&b, number);
	buf_put_u64(&b, (uint64_t)pid);
	if (!b.failed)
		link_send(&h->link, MSG_BORN, 0, b.data, b.len);
	buf_fini(&b);
}

static int
fork_here(struct home *h, struct rbuf *r)
{
	const uint64_t share = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
	uint32_t number = rbuf_get_u32(r);
	struct home_thread *by = home_find(h, rbuf_get_u32(r)), *t;
	uint64_t flags = rbuf_get_u64(r);
	bool thread = (flags & CLONE_THREAD) != 0;
	struct home_process *p;
	int64_t pid;

	if (r->failed || rbuf_left(r) % 4 != 0 || home_find(h, number) != NULL || (flags & ~(uint64_t)(CLONE_THREAD | CLONE_FILES | CLONE_FS)) != 0)
		return fail(EPROTO, "%s: a fork that makes no sense", h->link.peer);
	if (by != NULL && (by->waiting || by->state == HOME_BUSY))
		return fail(EPROTO, "%s: a thread that waits forks", h->link.peer);
	h->unborn = 0;
	/* Killed here: its copy is, too, soon. */
	pid = by == NULL || by->process->ending_ms != 0 || !home_force(h, by) ? -ESRCH : HOME_OWN_CALL(h, by, SYS_clone, thread ? share : flags | SIGCHLD);
	if (pid < 0) {
		if (h->unborn != 0)
			kill(h->unborn, SIGKILL); /* whoever was to make it has been killed in the middle */
		tell_born(h, number, pid == -ESRCH ? -EAGAIN : pid);
		return 0;
	}
	p = by->process;
	if (!thread && (p = home_add_process(h, by->born)) != NULL)
		p->code = by->process->code;
	t = born(h, by, p, number);
	if (t == NULL) {
		tell_born(h, number, -EAGAIN);
		return 0;
	}
	t->room = thread ? 0 : by->room;
	if (!thread && (flags & CLONE_FILES) == 0)
		keep_files(h, t, r);
	/* As its own processes count. */
	tell_born(h, number, pid);
	return 0;
}

/* Another program runs in the copy: the files that do not go on are closed. */
static void
executed(struct home *h, struct home_thread *t)
{
	struct proc_fdinfo info;
	int *fds;
	size_t n;

	if (proc_list(t->process->proc, "fd", &fds, &n) < 0)
		return;
	for (size_t i = 0; i < n; i++)
		if (!t->dead && proc_read_fdinfo(t->process->proc, fds[i], &info) == 0 && (info.flags & O_CLOEXEC) != 0)
			HOME_OWN_CALL(h, t, SYS_close, (uint64_t)fds[i]);
	free(fds);
}

/* --- how it ends, and that it is stopped */

/* All of its threads are where signals reach them. */
static void
let_signals_in(struct home *h, const struct home_process *p)
{
	for (size_t i = 0; i < h->nthreads; i++)
		if (h->threads[i]->process == p && h->threads[i]->state == HOME_READY && !h->threads[i]->dead)
			home_rest(h->threads[i]);
}

static void
ended(struct home *h, struct home_process *p, int status)
{
	const struct rlimit none = {0, 0};

	p->ending_ms = now_ms();
	if (WIFEXITED(status)) {
		p->exit_status = WEXITSTATUS(status);
		if (p->stopped)
			home_continue(h, p);
		/* By whichever thread can; else by the first whose call has come back. */
		for (size_t i = 0; i < h->nthreads; i++)
			if (h->threads[i]->process == p && home_bring(h, h->threads[i])) {
				home_exit(h->threads[i], p->exit_status);
				return;
			}
		for (size_t i = 0; i < h->nthreads; i++)
			if (h->threads[i]->process == p)
				home_cancel(h->threads[i]);
		return;
	}
	prlimit(p->pid, RLIMIT_CORE, &none, NULL); /* what there is left of it is nobody's to look at */
	p->bring = WIFSIGNALED(status) && WTERMSIG(status) <= 64 ? WTERMSIG(status) : SIGKILL;
	let_signals_in(h, p);
	kill(p->pid, p->bring);
	if (p->stopped)
		home_continue(h, p);
}

static void
stopped(struct home *h, struct home_process *p, int sig, bool asks)
{
	if (sig == 0)
		home_continue(h, p);
	if (sig == 0 || p->stopped)
		return;
	p->stop = sig;
	p->tell_stop = asks;
	let_signals_in(h, p);
	home_stop(p);
}

int
home_received(struct home *h, const struct msg_header *m, const unsigned char *body)
{
	struct rbuf r = {body, m->length, 0, false}, again = r;
	struct home_thread *t;
	uint32_t word;

	switch (m->type) {
	case MSG_CALL:
		return call(h, m, &r);
	case MSG_CANCEL:
		cancel(h, m->id);
		return 0;
	case MSG_FORK:
		return fork_here(h, &r);
	}
	t = home_find(h, rbuf_get_u32(&again));
	word = m->length >= 8 ? rbuf_get_u32(&again) : 0;
	if (again.failed)
		return fail(EPROTO, "%s: a message that makes no sense", h->link.peer);
	if (t == NULL || t->process->ending_ms != 0)
		return 0;
	switch (m->type) {
	case MSG_GONE:
		home_leave(h, t);
		return 0;
	case MSG_EXECUTED:
		executed(h, t);
		return 0;
	case MSG_ENDED:
		ended(h, t->process, (int)word);
		return 0;
	case MSG_STOPPED:
		if (word > 64)
			return fail(EPROTO, "%s: no such signal", h->link.peer);
		stopped(h, t->process, (int)word, m->length >= 12 && rbuf_get_u32(&again) != 0);
		return 0;
	case MSG_BLOCKED:
		t->process->blocked |= word == SIGTTIN || word == SIGTTOU ? 1ULL << (word - 1) : 0;
		return 0;
	default:
		return -EPROTO;
	}
}
