/*
 * Finding the process, stopping all of its threads, letting them go again, ending it.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <unistd.h>

#include "ckpt.h"
#include "fault.h"
#include "io.h"
#include "log.h"

int
target_open(struct target *t, pid_t pid)
{
	char *exe;
	int err;

	*t = (struct target){.pid = pid, .pidfd = -1, .proc = -1, .mem = -1};
	t->pidfd = pidfd_open_(pid);
	if (t->pidfd < 0)
		return fail(ESRCH, "pid %d: no such process", pid);
	t->proc = proc_open(pid);
	err = t->proc < 0 ? t->proc : proc_read_status(t->proc, &t->status);
	if (err == 0)
		err = proc_read_stat(t->proc, &t->stat);
	if (err < 0)
		return fail(ESRCH, "pid %d: no such process", pid);
	if (t->status.tgid != pid)
		return fail(ESRCH, "pid %d: a thread of process %d, which is what can be moved", pid,
		    t->status.tgid);
	if (t->status.state == 'Z' || t->status.state == 'X')
		return fail(ESRCH, "pid %d: has ended already, its parent has not asked for its status",
		    pid);
	if (t->status.tracer != 0)
		return fail(EBUSY, "pid %d: is being traced by process %d (a debugger or another ckpt)",
		    pid, t->status.tracer);
	err = read_link(t->proc, "exe", &exe);
	if (err == -ENOENT)
		return fail(EPERM, "pid %d: a kernel thread", pid);
	if (err == 0)
		free(exe);
	return 0;
}

static int
not_permitted(const struct target *t)
{
	char *text;
	bool yama = read_file(AT_FDCWD, "/proc/sys/kernel/yama/ptrace_scope", &text) > 0;
	char scope = '0';

	if (yama) {
		scope = text[0];
		free(text);
	}
	if (scope != '0')
		return fail(EPERM, "pid %d: not permitted: kernel.yama.ptrace_scope is %c (as root: "
		    "sysctl kernel.yama.ptrace_scope=0)", t->pid, scope);
	if (t->status.uid[0] != (int64_t)getuid())
		return fail(EPERM, "pid %d: not permitted: it belongs to user %d (be that user, or have "
		    "CAP_SYS_PTRACE)", t->pid, (int)t->status.uid[0]);
	return fail(EPERM, "pid %d: not permitted: it protects itself (PR_SET_DUMPABLE) or has more "
	    "capabilities (have CAP_SYS_PTRACE)", t->pid);
}

static struct tracee *
find_thread(const struct target *t, int tid)
{
	for (size_t i = 0; i < t->nthreads; i++)
		if (t->threads[i].tid == tid)
			return &t->threads[i];
	return NULL;
}

/* Seize the threads that are not yet. *fresh: how many were. */
static int
seize_new(struct target *t, size_t *fresh)
{
	int *tids, err;
	size_t n;

	*fresh = 0;
	err = proc_list(t->proc, "task", &tids, &n);
	if (err < 0)
		return fail(ESRCH, "pid %d: ended while it was being stopped", t->pid);
	for (size_t i = 0; i < n && err == 0; i++) {
		struct tracee *th;

		if (find_thread(t, tids[i]) != NULL)
			continue;
		th = ARRAY_ADD(t->threads, t->nthreads);
		err = th == NULL ? -ENOMEM
				 : tracee_seize(th, t->pid, tids[i], PTRACE_O_TRACESYSGOOD);
		if (err == 0) {
			th->mem = t->mem;
			++*fresh;
			fault(FAULT_seized);
			continue;
		}
		t->nthreads--;
		if (err == -EPERM)
			err = not_permitted(t);
		else if (err == -ESRCH)
			err = 0; /* it has ended since */
	}
	free(tids);
	return err;
}

static int
cannot_stop(const struct target *t, const struct tracee *th)
{
	char path[64], *where = NULL;
	struct proc_stat st;
	char *text;
	char state = '?';

	snprintf(path, sizeof(path), "task/%d/stat", th->tid);
	if (read_file(t->proc, path, &text) > 0) {
		if (proc_stat_parse(&st, text) == 0)
			state = st.state;
		free(text);
	}
	snprintf(path, sizeof(path), "task/%d/wchan", th->tid);
	if (read_file(t->proc, path, &where) < 0)
		where = NULL;
	fail(ETIMEDOUT, "pid %d: thread %d cannot be stopped: state %c%s%s (wait for it, or give "
	    "--stop-timeout more)", t->pid, th->tid, state, where != NULL ? " in " : "",
	    where != NULL ? where : "");
	free(where);
	return -ETIMEDOUT;
}

static void
drop_thread(struct target *t, size_t i)
{
	free(t->threads[i].xstate);
	memmove(&t->threads[i], &t->threads[i + 1], (t->nthreads - i - 1) * sizeof(t->threads[0]));
	t->nthreads--;
}

/* Until every thread that exists is in an interrupt-stop. */
static int
stop_all(struct target *t, int64_t deadline)
{
	size_t fresh, waited = 0;
	int err;

	for (;;) {
		err = seize_new(t, &fresh);
		if (err < 0)
			return err;
		if (fresh == 0 && waited == t->nthreads)
			return t->nthreads > 0 ? 0 : fail(ESRCH, "pid %d: ended", t->pid);
		while (waited < t->nthreads) {
			err = tracee_wait_interrupt(&t->threads[waited], deadline);
			if (err == 0)
				waited++;
			else if (err == -ESRCH)
				drop_thread(t, waited);
			else if (err == -ETIMEDOUT)
				return cannot_stop(t, &t->threads[waited]);
			else
				return err;
		}
	}
}

/* A thread inside the vDSO is in code that belongs to this kernel: let it come out. */
static int
leave_vdso(struct target *t, struct tracee *th, int64_t deadline)
{
	for (int tries = 0; tries < 1000; tries++) {
		const struct proc_map *m = proc_maps_find(&t->maps, th->regs.rip);
		int err;

		if (m == NULL || strcmp(m->path, "[vdso]") != 0)
			return 0;
		err = tracee_nudge(th, deadline);
		if (err < 0)
			return err;
	}
	return 0;
}

static int
read_signals(const struct target *t, const struct tracee *th, uint64_t *caught)
{
	struct proc_status st;
	char path[64];
	char *text;
	int err;

	snprintf(path, sizeof(path), "task/%d/status", th->tid);
	err = (int)read_file(t->proc, path, &text);
	if (err < 0)
		return err;
	err = proc_status_parse(&st, text);
	free(text);
	*caught = err == 0 ? (st.sigpnd | st.shdpnd) & ~th->sigmask & st.sigcgt : 0;
	proc_status_fini(&st);
	return err;
}

/* A call that only our stop has interrupted begins again, unless a handler is due. */
static int
undo_eintr(const struct target *t, struct tracee *th)
{
	uint64_t due;
	int err = 0;

	if (arch_restart_kind(&th->regs, syscall_eintr_restarts) != RESTART_EINTR)
		return 0;
	err = read_signals(t, th, &due);
	if (err == 0 && due == 0) {
		arch_rewind(&th->regs);
		err = tracee_set_regs(th->tid, &th->regs);
	}
	return err;
}

static int
leader_first(const void *a, const void *b)
{
	const struct tracee *x = a, *y = b;

	if ((x->tid == x->pid) != (y->tid == y->pid))
		return x->tid == x->pid ? -1 : 1;
	return x->tid < y->tid ? -1 : x->tid > y->tid;
}

int
target_freeze(struct target *t, int64_t timeout_ms, bool eintr)
{
	char path[32];
	int64_t deadline = now_ms() + timeout_ms;
	int err;

	snprintf(path, sizeof(path), "/proc/%d/mem", t->pid);
	t->mem = open(path, O_RDWR | O_CLOEXEC);
	if (t->mem < 0)
		return errno == EACCES || errno == EPERM ? not_permitted(t) : fail_errno("%s", path);
	t->frozen = true;
	t->frozen_ms = now_ms();
	err = stop_all(t, deadline);
	if (err < 0)
		goto out;
	qsort(t->threads, t->nthreads, sizeof(t->threads[0]), leader_first);
	if (t->threads[0].tid != t->pid) {
		err = fail(ENOTSUP, "pid %d: its first thread has ended, the others run on; such a "
		    "process cannot be moved", t->pid);
		goto out;
	}
	err = proc_read_maps(t->proc, true, &t->maps);
	if (err < 0) {
		fail(-err, "pid %d: its mappings cannot be read: %s", t->pid, strerror(-err));
		goto out;
	}
	for (size_t i = 0; i < t->nthreads && err == 0; i++) {
		err = leave_vdso(t, &t->threads[i], deadline);
		if (err == 0 && !eintr)
			err = undo_eintr(t, &t->threads[i]);
	}
	/* A thread may have been born, or signals have come, while others were stopped. */
	if (err == 0) {
		proc_status_fini(&t->status);
		err = proc_read_status(t->proc, &t->status);
	}
	if (err == 0)
		err = proc_read_stat(t->proc, &t->stat);
	tracee_find_gadgets(t->mem, &t->maps, &t->gadget, &t->restorer);
	/* Go runs on small stacks amid its heap: nothing may be left below them, not even dead. */
	if (proc_maps_find(&t->maps, 0xc000000000) != NULL)
		t->restorer = 0;
	if (err == 0)
		err = fault(FAULT_frozen);
out:
	if (err < 0)
		target_thaw(t);
	return err;
}

void
target_thaw(struct target *t)
{
	/* Every thread gets back what is its own before the first one runs. */
	for (size_t i = 0; i < t->nthreads; i++)
		tracee_give_back(&t->threads[i]);
	for (size_t i = 0; i < t->nthreads; i++)
		tracee_detach(&t->threads[i]);
	free(t->threads);
	t->threads = NULL;
	t->nthreads = 0;
	if (t->frozen)
		debug(LOG_VERBOSE, "pid %d: stood still for %lld ms", t->pid,
		    (long long)(now_ms() - t->frozen_ms));
	t->frozen = false;
}

int
target_end(struct target *t)
{
	struct pollfd p = {t->pidfd, POLLIN, 0};
	int err = pidfd_kill(t->pidfd, SIGKILL);

	if (err == -ESRCH)
		err = 0;
	if (err < 0)
		return fail(-err, "pid %d: cannot be ended: %s", t->pid, strerror(-err));
	tracee_reap(t->threads, t->nthreads);
	while (poll(&p, 1, -1) < 0 && errno == EINTR)
		;
	t->frozen = false;
	return 0;
}

void
target_close(struct target *t)
{
	target_thaw(t);
	proc_maps_fini(&t->maps);
	proc_status_fini(&t->status);
	close_fd(&t->mem);
	close_fd(&t->proc);
	close_fd(&t->pidfd);
}
