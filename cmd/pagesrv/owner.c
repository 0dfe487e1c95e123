/*
 * The process whose memory is served. Until somebody takes it, ckpt holds it, and it runs on if ckpt or we die; then ckpt parks it, so that it can never run by
 * itself again, whoever dies; and when all of its memory has been taken over it is ended, here.
 *
 * Between us and ckpt, one byte a message: 'T' park it, 'R' it runs elsewhere, 'U' it may have run there, 'X' nobody comes; from ckpt: 'P' it is parked, 'F' it could not be.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fault.h"
#include "io.h"
#include "log.h"
#include "pagesrv.h"
#include "parked.h"
#include "proc.h"

enum { DEATH_MS = 10000 };

struct owner {
	pid_t pid;
	int *pidfds;
	size_t n;
	int control; /* to ckpt, or -1 */
	bool taken, runs, released, by_hand, recovered; /* by_hand: we were started so; recovered: parked before, and nobody has come for it yet */
	pthread_mutex_t lock;
};

static int
add_process(struct owner *o, pid_t pid)
{
	int *slot = ARRAY_ADD(o->pidfds, o->n);

	if (slot == NULL)
		return fail(ENOMEM, "out of memory");
	*slot = pidfd_open_(pid);
	return *slot < 0 ? fail(-*slot, "pid %d: %s", pid, strerror(-*slot)) : 0;
}

static struct owner *
new_owner(pid_t pid, int control)
{
	struct owner *o = calloc(1, sizeof(*o));

	if (o == NULL) {
		fail(ENOMEM, "out of memory");
		return NULL;
	}
	o->pid = pid;
	o->control = control;
	pthread_mutex_init(&o->lock, NULL);
	return o;
}

/* --- by hand */

static int
open_below(pid_t pid, const char *name, int flags)
{
	char path[48];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
	fd = open(path, flags | O_CLOEXEC);
	return fd < 0 ? fail_errno("%s", path) : fd;
}

/* It and, behind it, its descendants. */
static int
add_tree(struct owner *o, struct page_plan *plan, pid_t pid)
{
	struct page_task *t;
	struct proc_status st;
	int proc = proc_open(pid), *children = NULL, err;
	size_t n = 0;

	err = proc < 0 ? fail(-proc, "pid %d: %s", pid, strerror(-proc)) : proc_read_status(proc, &st);
	if (err == 0 && st.state != 'Z') {
		t = ARRAY_ADD(plan->tasks, plan->ntasks);
		err = t == NULL ? fail(ENOMEM, "out of memory") : add_process(o, pid);
		if (err == 0)
			*t = (struct page_task){.pid = pid, .number = st.nspid[st.levels - 1], .memory = open_below(pid, "mem", O_RDONLY),
			    .pagemap = open_below(pid, "pagemap", O_RDONLY)};
		if (err == 0 && (t->memory < 0 || t->pagemap < 0))
			err = -EACCES;
		if (err == 0 && proc_children(proc, pid, &children, &n) < 0)
			n = 0;
		for (size_t i = 0; i < n && err == 0; i++)
			err = add_tree(o, plan, children[i]);
		free(children);
	}
	if (proc >= 0 && err == 0)
		proc_status_fini(&st);
	close_fd(&proc);
	return err;
}

int
owner_find(struct owner **out, struct page_plan *plan, pid_t pid)
{
	struct owner *o = new_owner(pid, -1);
	int err;

	*out = o;
	if (o == NULL)
		return -ENOMEM;
	if (kill(pid, 0) < 0)
		return fail_errno("pid %d", pid);
	if (!is_parked(pid))
		return fail(EBUSY, "pid %d: is not parked, and could run on while its pages are served (ckpt -m parks it when it is taken over, ckpt -S by hand)", pid);
	err = add_tree(o, plan, pid);
	o->taken = o->by_hand = o->recovered = true;
	return err;
}

/* --- left to us by ckpt */

int
owner_from_plan(struct owner **out, const struct page_plan *plan)
{
	struct owner *o = new_owner(plan->ntasks > 0 ? (pid_t)plan->tasks[0].pid : 0, (int)plan->control);
	int err = 0;

	*out = o;
	if (o == NULL)
		return -ENOMEM;
	for (size_t i = 0; i < plan->ntasks && err == 0; i++)
		err = add_process(o, (pid_t)plan->tasks[i].pid);
	return err;
}

static int
tell(const struct owner *o, char what)
{
	return o->control >= 0 && send(o->control, &what, 1, MSG_NOSIGNAL) == 1 ? 0 : -EPIPE;
}

int
owner_take(struct owner *o)
{
	char answer = 0;
	int err = 0;

	pthread_mutex_lock(&o->lock);
	if (o->taken)
		err = fail(EBUSY, o->by_hand ? "pid %d: was parked before, and somebody may have taken it already: ckpt --resume or --end decides" : "pid %d: has been taken already",
		    o->pid);
	else if (tell(o, 'T') < 0 || recv(o->control, &answer, 1, 0) != 1)
		err = fail(ECONNRESET, "pid %d: ckpt has gone, and it runs on", o->pid);
	else if (answer != 'P')
		err = fail(EBUSY, "pid %d: could not be parked, and runs on", o->pid);
	o->taken |= err == 0;
	pthread_mutex_unlock(&o->lock);
	return err < 0 ? err : fault(FAULT_taken);
}

bool
owner_retake(struct owner *o)
{
	bool can;

	pthread_mutex_lock(&o->lock);
	can = o->recovered;
	o->recovered = false;
	pthread_mutex_unlock(&o->lock);
	return can;
}

void
owner_runs(struct owner *o)
{
	pthread_mutex_lock(&o->lock);
	if (!o->runs)
		tell(o, 'R');
	o->runs = o->taken = true;
	pthread_mutex_unlock(&o->lock);
}

void
owner_unknown(struct owner *o)
{
	tell(o, 'U');
}

void
owner_failed(struct owner *o)
{
	tell(o, 'X'); /* who has it says what becomes of it */
}

int
owner_release(struct owner *o)
{
	int64_t deadline = now_ms() + DEATH_MS;
	int err = 0;

	pthread_mutex_lock(&o->lock);
	if (!o->taken)
		err = fail(EPROTO, "pid %d: has not been taken, and runs on", o->pid);
	if (err == 0)
		err = fault(FAULT_before_end);
	/* Children first: nobody is to see them without a parent. */
	for (size_t i = o->n; i-- > 0 && err == 0 && !o->released;)
		if (pidfd_kill(o->pidfds[i], SIGKILL) < 0 && errno != ESRCH)
			err = fail_errno("pid %d: kill", o->pid);
	for (size_t i = 0; i < o->n && err == 0; i++) {
		struct pollfd p = {o->pidfds[i], POLLIN, 0};

		if (poll(&p, 1, (int)max_i64(0, deadline - now_ms())) == 0)
			err = fail(ETIMEDOUT, "pid %d: does not end", o->pid);
	}
	o->released |= err == 0;
	pthread_mutex_unlock(&o->lock);
	if (err == 0 && o->n > 0)
		debug(LOG_VERBOSE, "pid %d: ended, as all of its memory has been taken over", o->pid);
	return err;
}

bool
owner_taken(const struct owner *o)
{
	return o->taken;
}

int
owner_control(const struct owner *o)
{
	return o->control;
}

bool
owner_left(struct owner *o)
{
	char byte;
	bool left;

	if (recv(o->control, &byte, 1, MSG_PEEK | MSG_DONTWAIT) != 0)
		return false; /* something for owner_take() */
	pthread_mutex_lock(&o->lock);
	left = !o->taken;
	if (!left)
		close_fd(&o->control); /* it has done what it had to do */
	pthread_mutex_unlock(&o->lock);
	if (left)
		fail(ECONNRESET, "ckpt has gone before anybody came");
	return left;
}

pid_t
owner_pid(const struct owner *o)
{
	return o != NULL ? o->pid : 0;
}
