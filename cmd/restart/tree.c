/*
 * Whose child, which session, which process group. A session is inherited at birth, so who is born when,
 * and by whom, follows from the sessions; see ARCHITECTURE.md, "A restart".
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "io.h"
#include "log.h"
#include "restart.h"
#include "sessions.h"

static struct built *
find_built(const struct restart *r, int64_t pid)
{
	for (size_t i = 0; i < r->model.header.ntasks; i++)
		if (r->model.tasks[i].pid == pid)
			return &r->built[i];
	return NULL;
}

int
tree_find_births(struct restart *r)
{
	size_t n = r->model.header.ntasks;
	int64_t *birth = calloc(n, sizeof(*birth));

	if (birth == NULL)
		return fail(ENOMEM, "out of memory");
	sessions_of_birth(&r->model, birth);
	for (size_t i = 0; i < n; i++)
		r->built[i].birth = birth[i];
	free(birth);
	return 0;
}

/*
 * Calls with the terminal of a session at fd 0, which is free while nothing but the stock is open. Returns the
 * ofd of its master, or -1 where it has none.
 */
static int64_t
add_terminal(struct script *s, const struct restart *r, const struct task *t)
{
	const struct objects *o = &r->model.objects;
	size_t i = 0;

	while (t->tty >= 0 && i < o->nofds && (o->ofds[i].kind != KIND_ptm || o->ofds[i].ref != t->tty))
		i++;
	if (t->tty < 0 || i == o->nofds)
		return -1;
	script_add(s, "terminal", SYS_close_range, 0, stock_fd(r, STOCK_FILES, 0) - 1, 0);
	script_add(s, "terminal", SYS_ioctl, stock_fd(r, STOCK_OFDS, (int64_t)i), TIOCGPTPEER, O_RDWR | O_NOCTTY);
	return (int64_t)i;
}

/* Before children are born, who have the terminal from it. */
static int
begin_session(struct restart *r, struct built *b)
{
	struct script s = {0};

	if (b->session == b->task->sid || !b->task->session_leader)
		return 0;
	b->session = b->task->pid;
	script_add(&s, "session", SYS_setsid);
	if (add_terminal(&s, r, b->task) >= 0) {
		script_add(&s, "controlling terminal", SYS_ioctl, 0, TIOCSCTTY, 0);
		script_add(&s, "terminal", SYS_close, 0);
	}
	return built_run(b, &s);
}

/* When its process groups are there: which of them is in the foreground. */
static int
set_foreground(struct restart *r, struct built *b)
{
	/* Without a tracer nothing may come at all. */
	uint64_t ttou = r->untraced != NULL ? ~0ULL : 1ULL << (SIGTTOU - 1), none = r->untraced != NULL ? ~0ULL : 0;
	int32_t group = (int32_t)b->task->foreground;
	struct script s = {0};

	if (!b->task->session_leader || group == 0 || add_terminal(&s, r, b->task) < 0)
		return 0;
	script_add(&s, "terminal", SYS_rt_sigprocmask, SIG_SETMASK, script_data(&s, &ttou, 8), 0, 8);
	script_data_arg(&s, 1);
	script_add(&s, "foreground process group", SYS_ioctl, 0, TIOCSPGRP, script_data(&s, &group, sizeof(group)));
	script_data_arg(&s, 2);
	script_may_fail(&s);
	script_add(&s, "terminal", SYS_rt_sigprocmask, SIG_SETMASK, script_data(&s, &none, 8), 0, 8);
	script_data_arg(&s, 1);
	script_add(&s, "terminal", SYS_close, 0);
	return built_run(b, &s);
}

/*
 * One that executes its own program needs no copy of its parent's memory. A leader begins its session at
 * once, while brothers that belong to it can still be born with what is their parent's, unless children of
 * its own are of an older one.
 */
static int
bear(struct restart *r, struct built *creator, struct built *b, bool as_sibling)
{
	const struct task *t = b->task;
	uint64_t flags = (t->forked || t->zombie || r->untraced != NULL ? 0 : CLONE_VM) | (as_sibling ? CLONE_PARENT : 0) |
	    (t->shares_files ? CLONE_FILES : 0) | (t->shares_fs ? CLONE_FS : 0);
	int err = as_sibling && (t->shares_files || t->shares_fs) ? fail(ENOTSUP, "pid %" PRId64 ": it shares with a "
	    "parent of another session what only a child of the same can share", t->pid) : 0;

	if (err == 0)
		err = build_clone(creator, b, t->pid, flags, as_sibling ? 0 : (int)t->exit_signal);

	if (err == 0 && b->birth == ANY_SESSION)
		err = begin_session(r, b);
	return err;
}

static struct built *
new_helper(struct restart *r)
{
	struct built **place = ARRAY_ADD(r->helpers, r->nhelpers);

	if (place == NULL)
		return NULL;
	*place = calloc(1, sizeof(**place));
	if (*place == NULL)
		r->nhelpers--;
	else
		(*place)->mem = -1;
	return *place;
}

/* A process that no image has, with the number of a leader that is dead. */
static struct built *
make_helper(struct restart *r, struct built *creator, int64_t pid, long call)
{
	struct built *h = new_helper(r);
	struct script s = {0};

	if (h == NULL)
		return NULL;
	if (build_clone(creator, h, pid, CLONE_VM, SIGCHLD) < 0) {
		free(h->threads);
		free(h);
		r->nhelpers--;
		return NULL;
	}
	h->parent = creator;
	if (call == SYS_setsid)
		h->session = pid;
	script_add(&s, "helper", call, 0, 0);
	return built_run(h, &s) < 0 ? NULL : h;
}

/* Somebody whose children are born in this session as children of parent, and with its exit signal: CLONE_PARENT. */
static struct built *
find_creator(struct restart *r, const struct built *parent, int64_t session, int64_t exit_signal)
{
	for (size_t i = 0; i < r->model.header.ntasks; i++)
		if (r->built[i].parent == parent && r->built[i].pid > 0 && r->built[i].session == session &&
		    r->built[i].task->exit_signal == exit_signal)
			return &r->built[i];
	for (size_t i = 0; i < r->nhelpers; i++)
		if (r->helpers[i]->parent == parent && r->helpers[i]->session == session)
			return r->helpers[i];
	return NULL;
}

/* A child of another session than its parent's. */
static int
bear_elsewhere(struct restart *r, struct built *parent, struct built *b)
{
	int64_t session = b->birth;
	struct built *creator = find_creator(r, parent, session, b->task->exit_signal);

	if (creator == NULL && find_built(r, session) != NULL)
		return fail(ENOTSUP, "pid %" PRId64 ": its session %" PRId64 " cannot be made again: the leader is "
		    "neither its ancestor nor a child of its parent", b->task->pid, session);
	if (creator == NULL)
		creator = make_helper(r, parent, session, SYS_setsid);
	return creator == NULL ? -EIO : bear(r, creator, b, true);
}

enum birth { BIRTH_EARLY, BIRTH_LATE, BIRTH_ELSEWHERE };

static enum birth
birth_of(const struct built *parent, int64_t born)
{
	if (born == parent->session)
		return BIRTH_EARLY;
	if (born == ANY_SESSION || born == parent->task->sid)
		return BIRTH_LATE;
	return BIRTH_ELSEWHERE;
}

static int
bear_children(struct restart *r, struct built *b, enum birth when)
{
	int err = 0;

	for (size_t i = 0; i < r->model.header.ntasks && err == 0; i++) {
		struct built *child = &r->built[i];

		if (child->parent != b || child->pid != 0 || birth_of(b, child->birth) > when)
			continue;
		err = when == BIRTH_ELSEWHERE ? bear_elsewhere(r, b, child) : bear(r, b, child, false);
	}
	return err;
}

int
tree_children(struct restart *r, struct built *b)
{
	int err = bear_children(r, b, BIRTH_EARLY);

	if (err == 0)
		err = begin_session(r, b);
	if (err == 0)
		err = bear_children(r, b, BIRTH_LATE);
	return err < 0 ? err : bear_children(r, b, BIRTH_ELSEWHERE);
}

/* --- process groups */

static int
set_group(struct built *b, int64_t group)
{
	struct script s = {0};

	script_add(&s, "process group", SYS_setpgid, 0, (uint64_t)group);
	return built_run(b, &s);
}

/* A group whose leader is dead: made by somebody with its number, or left where that is taken. */
static int
join_dead_group(struct restart *r, struct built *b)
{
	const struct task *t = b->task;

	for (size_t i = 0; i < r->nhelpers; i++)
		if (r->helpers[i]->threads[0].tid == t->pgid)
			return set_group(b, t->pgid);
	log_hush(1);
	if (make_helper(r, b, t->pgid, SYS_setpgid) == NULL) {
		log_hush(-1);
		note("pid %" PRId64 ": its process group %" PRId64 " cannot be had here: it stays in that of its "
		     "parent", t->pid, t->pgid);
		return 0;
	}
	log_hush(-1);
	return set_group(b, t->pgid);
}

static int
make_groups(struct restart *r)
{
	size_t n = r->model.header.ntasks;
	const struct task *first = &r->model.tasks[0];
	int err = 0;

	for (size_t i = 0; i < n && err == 0; i++)
		if (r->model.tasks[i].group_leader && !r->model.tasks[i].session_leader)
			err = set_group(&r->built[i], 0);
	for (size_t i = 0; i < n && err == 0; i++) {
		const struct task *t = &r->model.tasks[i];

		if (t->group_leader)
			continue;
		if (find_built(r, t->pgid) != NULL)
			err = set_group(&r->built[i], t->pgid);
		else if (t->pgid != 0 && (t->pgid != first->pgid || first->group_leader))
			err = join_dead_group(r, &r->built[i]);
	}
	return err;
}

/* --- those that have ended */

/* Until it is dead; a signal that it sends itself is let through. */
static int
watch_end(struct built *b, int sig)
{
	struct tracee *t = &b->threads[0];
	int64_t deadline = now_ms() + 60000;

	for (;;) {
		int status, err;

		if (ptrace(PTRACE_CONT, t->tid, NULL, (long)sig) < 0)
			return fail_errno("pid %d: ptrace", t->tid);
		err = tracee_wait(t->tid, deadline, &status);
		if (err < 0)
			return fail(-err, "pid %d: does not end: %s", t->tid, strerror(-err));
		if (!WIFSTOPPED(status))
			break;
		sig = status >> 16 == 0 && WSTOPSIG(status) != (SIGTRAP | 0x80) ? WSTOPSIG(status) : 0;
	}
	t->dead = true;
	t->seized = false;
	b->ended = true;
	close_fd(&b->mem);
	return 0;
}

/* By a script whose end nobody is told. */
static int
end_untraced(struct built *b, int sig, int status)
{
	struct script s = {0};
	uint64_t none = 0;
	int err;

	if (sig != 0) {
		script_add(&s, "signals", SYS_rt_sigprocmask, SIG_SETMASK, script_data(&s, &none, sizeof(none)), 0, 8);
		script_data_arg(&s, 1);
		script_add(&s, "its end", SYS_tgkill, (uint64_t)b->pid, (uint64_t)b->pid, (uint64_t)sig);
	}
	script_add(&s, "its end", SYS_exit_group, (uint64_t)status);
	log_hush(1);
	err = built_run(b, &s);
	log_hush(-1);
	if (err != -ESRCH)
		return fail(EIO, "pid %d: does not end", b->pid);
	b->ended = true;
	close_fd(&b->mem);
	return 0;
}

/* As waitpid(2) is to tell it: by exit or by signal, and without a core file. */
static int
end_as(struct built *b)
{
	const struct task *t = b->task;
	struct tracee *th = &b->threads[0];
	int sig = (int)(t->status & 0x7f), err;
	struct arch_call call = {SYS_exit_group, {(uint64_t)(t->status >> 8 & 0xff)}};
	struct arch_regs regs = th->regs;
	struct script s = {0};

	script_add(&s, "name", SYS_prctl, PR_SET_NAME, script_data(&s, t->comm, strlen(t->comm) + 1));
	script_data_arg(&s, 1);
	script_add(&s, "no core file", SYS_prctl, PR_SET_DUMPABLE, 0);
	err = built_run(b, &s);
	if (err < 0)
		return err;
	if (b->loop.untraced != NULL)
		return end_untraced(b, sig, (int)call.arg[0]);
	if (sig != 0)
		call = (struct arch_call){SYS_tgkill, {(uint64_t)b->pid, (uint64_t)b->pid, (uint64_t)sig}};
	arch_set_call(&regs, b->syscall_ip, &call);
	err = tracee_set_regs(th->tid, &regs);
	if (err == 0)
		err = watch_end(b, 0);
	/* Its parent has been told, and must not be twice: any script takes the signal away. */
	script_add(&s, "nothing", SYS_getppid);
	return err < 0 ? err : built_run(b->parent, &s);
}

static int
end_helper(struct built *h)
{
	struct script s = {0};
	int err;

	kill(h->pid, SIGKILL);
	if (h->loop.untraced == NULL)
		tracee_reap(h->threads, h->nthreads);
	h->ended = true;
	close_fd(&h->mem);
	script_add(&s, "helper", SYS_wait4, (uint64_t)h->pid, 0, __WALL, 0);
	err = built_run(h->parent, &s);
	return err;
}

int
tree_finish(struct restart *r)
{
	int err = make_groups(r);

	for (size_t i = 0; i < r->model.header.ntasks && err == 0; i++)
		if (!r->model.tasks[i].zombie)
			err = set_foreground(r, &r->built[i]);
	for (size_t i = r->nhelpers; i-- > 0 && err == 0;)
		err = end_helper(r->helpers[i]);
	for (size_t i = 0; i < r->model.header.ntasks && err == 0; i++)
		if (r->model.tasks[i].zombie)
			err = end_as(&r->built[i]);
	return err;
}
