#include "target.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <unistd.h>

#include "coop.h"
#include "fault.h"
#include "io.h"
#include "log.h"
#include "vdso.h"

/* For tracing one that has been asked in vain. */
enum { AGAIN_MS = 2000 };

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

static int
leader_ended(pid_t pid)
{
	return fail(ENOTSUP, "pid %d: its first thread has ended, the others run on; such a process cannot "
	    "be moved", pid);
}

int
target_open(struct target *t, pid_t pid)
{
	char *exe;
	int err;

	*t = (struct target){.pid = pid, .pidfd = -1, .proc = -1, .mem = -1};
	t->proc = proc_open(pid);
	err = t->proc < 0 ? t->proc : proc_read_status(t->proc, &t->status);
	if (err < 0)
		return fail(ESRCH, "pid %d: no such process", pid);
	if (t->status.tgid != pid)
		return fail(ESRCH, "pid %d: a thread of process %d, which is what can be moved", pid,
		    t->status.tgid);
	/* What the directory still speaks of afterwards is what the pidfd holds. */
	t->pidfd = pidfd_open_(pid);
	err = t->pidfd < 0 ? t->pidfd : proc_read_stat(t->proc, &t->stat);
	if (err < 0)
		return fail(ESRCH, "pid %d: no such process", pid);
	if (t->status.state == 'Z' && t->status.threads > 1)
		return leader_ended(pid);
	if (t->status.state == 'Z' || t->status.state == 'X')
		return fail(ESRCH, "pid %d: has ended already, its parent has not asked for its status",
		    pid);
	if (t->status.tracer != 0)
		return fail(EBUSY, "pid %d: is being traced by process %d (a debugger or another ckpt)",
		    pid, t->status.tracer);
	/* To be known before it is stopped: is it ours to end? */
	if (pidfd_kill(t->pidfd, 0) == -EPERM)
		return not_permitted(t);
	err = read_link(t->proc, "exe", &exe);
	if (err == -ENOENT)
		return fail(EPERM, "pid %d: a kernel thread", pid);
	if (err == 0)
		free(exe);
	return 0;
}

static struct tracee *
find_thread(const struct target *t, int tid)
{
	for (size_t i = 0; i < t->nthreads; i++)
		if (t->threads[i].tid == tid)
			return &t->threads[i];
	return NULL;
}

static char
thread_state(const struct target *t, int tid)
{
	char path[64], *text;
	struct proc_stat st = {.state = 'X'};

	snprintf(path, sizeof(path), "task/%d/stat", tid);
	if (read_file(t->proc, path, &text) > 0) {
		proc_stat_parse(&st, text);
		free(text);
	}
	return st.state;
}

static bool
thread_is_ending(const struct target *t, int tid)
{
	char state = thread_state(t, tid);

	return state == 'X' || state == 'Z' || state == 'x';
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
			++*fresh;
			fault(FAULT_seized);
			continue;
		}
		t->nthreads--;
		/* It has ended since; for one that is just ending the kernel says EPERM. */
		if (err == -ESRCH || (err == -EPERM && thread_is_ending(t, tids[i])))
			err = 0;
		else if (err == -EPERM)
			err = not_permitted(t);
	}
	free(tids);
	return err;
}

static int
cannot_stop(const struct target *t, const struct tracee *th)
{
	char path[64], *where = NULL;
	char state = thread_state(t, th->tid);
	bool vfork;

	snprintf(path, sizeof(path), "task/%d/wchan", th->tid);
	if (read_file(t->proc, path, &where) < 0)
		where = NULL;
	/* It sleeps there until its child has executed a program or ended, and nothing wakes it before. */
	vfork = where != NULL && (strstr(where, "kernel_clone") != NULL || strstr(where, "vfork") != NULL);
	fail(ETIMEDOUT, "pid %d: thread %d cannot be stopped: %s%c%s%s (wait for it, or give "
	    "--stop-timeout more)", t->pid, th->tid, vfork ? "its child of vfork(2) has not executed a program yet; state " :
	    "state ", state, where != NULL ? " in " : "", where != NULL ? where : "");
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

bool
target_in_vdso(const struct target *t, const struct proc_maps *maps, taddr ip)
{
	const struct proc_map *m = proc_maps_find(maps, ip);
	unsigned char head[VDSO_MARK_END];

	if (m == NULL || strcmp(m->path, "[vdso]") == 0)
		return m != NULL;
	/* Or in the page of jumps that stands for another kernel's. */
	return m->path[0] == '\0' && m->prot & PROT_EXEC && mem_read(t->mem, m->start, head, sizeof(head)) == 0 && vdso_is_proxy(head);
}

/* A thread inside the vDSO is in code that belongs to this kernel: let it come out. */
static int
leave_vdso(struct target *t, struct tracee *th, int64_t deadline)
{
	for (int tries = 0; tries < 100 && now_ms() < deadline; tries++) {
		int err;

		if (!target_in_vdso(t, &t->maps, th->regs.rip))
			return 0;
		err = tracee_run_a_little(th, deadline);
		if (err < 0)
			return err;
	}
	return 0;
}

/* EINTR for our stop alone: the call begins again, unless a handler is due when it goes on. */
static int
undo_eintr(struct tracee *th)
{
	if (arch_restart_kind(&th->regs, syscall_eintr_restarts) != RESTART_EINTR)
		return 0;
	arch_set_restartable(&th->regs);
	return tracee_set_regs(th->tid, &th->regs);
}

static int
open_memory(struct target *t)
{
	t->mem = openat(t->proc, "mem", O_RDWR | O_CLOEXEC);
	if (t->mem < 0)
		return errno == EACCES || errno == EPERM ? not_permitted(t)
							 : fail_errno("pid %d: memory", t->pid);
	for (size_t i = 0; i < t->nthreads; i++)
		t->threads[i].mem = t->mem;
	return 0;
}

/* The numbers that the program itself knows its threads by. */
static int
read_inner_tids(struct target *t)
{
	for (size_t i = 0; i < t->nthreads; i++) {
		struct proc_status st;
		int err;

		if (t->status.levels == 1) {
			t->threads[i].inner_tid = t->threads[i].tid;
			continue;
		}
		err = proc_read_thread_status(t->proc, t->threads[i].tid, &st);

		if (err < 0)
			return fail(-err, "pid %d: thread %d: %s", t->pid, t->threads[i].tid, strerror(-err));
		t->threads[i].inner_tid = st.nspid[st.levels - 1];
		proc_status_fini(&st);
	}
	return 0;
}

static int
leader_first(const void *a, const void *b)
{
	const struct tracee *x = a, *y = b;

	if ((x->tid == x->pid) != (y->tid == y->pid))
		return x->tid == x->pid ? -1 : 1;
	return x->inner_tid < y->inner_tid ? -1 : x->inner_tid > y->inner_tid;
}

void
target_look_ahead(struct target *t, bool flags)
{
	struct proc_maps maps = {0};
	int mem = openat(t->proc, "mem", O_RDONLY | O_CLOEXEC);

	if (mem >= 0 && proc_read_maps(t->proc, false, &maps) == 0)
		tracee_find_gadgets(mem, &maps, &t->gadget, &t->restorer);
	proc_maps_fini(&maps);
	close_fd(&mem);
	proc_maps_fini(&t->ahead);
	if (flags)
		proc_read_maps(t->proc, true, &t->ahead);
}

static bool
is_at(const struct target *t, taddr at, const unsigned char *bytes, size_t n)
{
	const struct proc_map *m = at == 0 ? NULL : proc_maps_find(&t->maps, at);
	unsigned char there[16];

	return m != NULL && (m->prot & (PROT_READ | PROT_EXEC)) == (PROT_READ | PROT_EXEC) && at + n <= m->end &&
	    mem_read(t->mem, at, there, n) == 0 && memcmp(there, bytes, n) == 0;
}

/* With their flags. Which of them are locked a copy cannot tell. */
static int
read_maps(struct target *t)
{
	struct proc_status st = {0};
	int err = t->ahead.n > 0 ? proc_read_status(t->proc, &st) : -ENOENT;

	if (err == 0)
		err = st.locked_kb > 0 ? -ENOENT : proc_read_maps(t->proc, false, &t->maps);
	if (err == 0)
		err = proc_maps_assume(&t->maps, &t->ahead);
	t->assumed = err == 0;
	proc_status_fini(&st);
	if (err == 0)
		return 0;
	proc_maps_fini(&t->maps);
	return proc_read_maps(t->proc, true, &t->maps);
}

/* When they are stopped: where they stand, and what calls in them need. */
static int
prepare(struct target *t, int64_t deadline, bool eintr)
{
	int err = read_maps(t);

	if (err < 0)
		return fail(-err, "pid %d: its mappings cannot be read: %s", t->pid, strerror(-err));
	for (size_t i = 0; i < t->nthreads && err == 0 && t->coop == NULL; i++) {
		err = leave_vdso(t, &t->threads[i], deadline);
		t->threads[i].restarted = restarted_call(&t->threads[i]);
		if (err == 0 && !eintr)
			err = undo_eintr(&t->threads[i]);
	}
	/* A thread may have been born, or signals have come, while others were stopped. */
	if (err == 0) {
		proc_status_fini(&t->status);
		err = proc_read_status(t->proc, &t->status);
	}
	if (err == 0)
		err = proc_read_stat(t->proc, &t->stat);
	if (!is_at(t, t->gadget, arch_syscall_ret, ARCH_SYSCALL_RET_BYTES) || !is_at(t, t->restorer, arch_restorer, ARCH_RESTORER_BYTES))
		tracee_find_gadgets(t->mem, &t->maps, &t->gadget, &t->restorer);
	/* Go runs on small stacks amid its heap: nothing may be left below them, not even dead. */
	if (proc_maps_find(&t->maps, 0xc000000000) != NULL)
		t->restorer = 0;
	return err == 0 ? fault(FAULT_frozen) : err;
}

/* --- one that is asked */

/* It has not done what it was asked for. Returns 0, or a negative errno, logged. */
static int
stop_unwilling(struct target *t, int64_t deadline, int err)
{
	char *why = strdup(log_last_hushed());
	int64_t patience = now_ms() + AGAIN_MS;
	int traced;

	/* It may be just about to see that we have gone; or it is another who asks. */
	log_hush(1);
	while ((traced = target_mark(t)) < 0 && now_ms() < patience)
		poll(NULL, 0, 5);
	log_hush(-1);
	if (traced < 0) {
		free(why);
		return fail(-traced, "%s", log_last_hushed());
	}
	log_hush(1);
	traced = stop_all(t, max_i64(deadline, now_ms() + AGAIN_MS));
	log_hush(-1);
	if (traced == -EPERM)
		fail(-err, "%s, and it may not be traced", why != NULL ? why : "");
	else if (traced < 0)
		fail(-traced, "%s", log_last_hushed());
	free(why);
	return traced == -EPERM ? err : traced;
}

int
target_freeze(struct target *t, int64_t deadline, bool eintr)
{
	bool traceable = false;
	int ask = target_can_be_asked(t);
	int err = ask > 0 ? target_ask(t, deadline, &traceable) : ask < 0 ? ask : stop_all(t, deadline);

	if (traceable)
		err = stop_unwilling(t, deadline, err);

	/* Not before: it may have executed another program meanwhile. */
	if (err == 0 && t->coop == NULL)
		err = open_memory(t);
	if (err == 0 && t->coop == NULL)
		err = read_inner_tids(t);
	if (err < 0)
		return err;
	qsort(t->threads, t->nthreads, sizeof(t->threads[0]), leader_first);
	if (t->threads[0].tid != t->pid)
		return leader_ended(t->pid);
	return prepare(t, deadline, eintr);
}

int
target_freeze_one(struct target *t, pid_t tid, int64_t deadline)
{
	struct tracee *th = ARRAY_ADD(t->threads, t->nthreads);
	char path[32];
	int err;

	snprintf(path, sizeof(path), "task/%d", tid);
	err = th == NULL ? -ENOMEM : faccessat(t->proc, path, F_OK, 0) < 0 ? -ESRCH
	    : tracee_seize(th, t->pid, tid, PTRACE_O_TRACESYSGOOD);
	if (err < 0 && th != NULL)
		t->nthreads--;
	if (err == -ESRCH)
		return fail(ESRCH, "pid %d: has no thread %d", t->pid, tid);
	if (err < 0)
		return err == -EPERM ? not_permitted(t) : err;
	err = tracee_wait_interrupt(th, deadline);
	if (err == -ETIMEDOUT)
		return cannot_stop(t, th);
	if (err == 0)
		err = open_memory(t);
	if (err == 0)
		err = read_inner_tids(t);
	return err < 0 ? err : prepare(t, deadline, false);
}

int
target_borrow(const struct target *t, struct tracee *th)
{
	const struct proc_map *stack = proc_maps_find(&t->maps, th->regs.rsp - ARCH_RED_ZONE - 1);

	if (t->coop != NULL)
		return 0;
	return tracee_borrow(th, t->gadget, t->restorer,
	    stack != NULL && (stack->prot & PROT_WRITE) ? stack->start : 0);
}

void
target_give_back(struct target *t)
{
	for (size_t i = 0; i < t->nthreads; i++)
		tracee_give_back(&t->threads[i]);
}

void
target_detach(struct target *t)
{
	for (size_t i = 0; i < t->nthreads; i++)
		tracee_detach(&t->threads[i]);
	coop_go_on(t->coop);
	t->coop = NULL;
	free(t->threads);
	t->threads = NULL;
	t->nthreads = 0;
}

#ifndef PTRACE_O_SUSPEND_SECCOMP
#define PTRACE_O_SUSPEND_SECCOMP (1 << 21)
#endif

int
target_suspend_seccomp(struct target *t)
{
	if (t->coop != NULL)
		return -EPERM;
	for (size_t i = 0; i < t->nthreads; i++)
		if (ptrace(PTRACE_SETOPTIONS, t->threads[i].tid, NULL,
			PTRACE_O_TRACESYSGOOD | PTRACE_O_SUSPEND_SECCOMP) < 0)
			return -errno;
	t->suspended = true;
	return 0;
}

int
target_set_exitkill(struct target *t, bool on)
{
	unsigned long options = PTRACE_O_TRACESYSGOOD | (on ? PTRACE_O_EXITKILL : 0) |
	    (t->suspended ? PTRACE_O_SUSPEND_SECCOMP : 0);

	if (t->coop != NULL)
		return coop_decide(t->coop, on);
	for (size_t i = 0; i < t->nthreads; i++)
		if (ptrace(PTRACE_SETOPTIONS, t->threads[i].tid, NULL, options) < 0)
			return fail_errno("pid %d: ptrace", t->threads[i].tid);
	return 0;
}

int
target_kill(struct target *t)
{
	int err = pidfd_kill(t->pidfd, SIGKILL);

	if (err == -ESRCH)
		err = 0;
	return err < 0 ? fail(-err, "pid %d: cannot be ended: %s", t->pid, strerror(-err)) : 0;
}

void
target_reap(struct target *t)
{
	struct pollfd p = {t->pidfd, POLLIN, 0};

	if (t->coop == NULL)
		tracee_reap(t->threads, t->nthreads);
	while (poll(&p, 1, -1) < 0 && errno == EINTR)
		;
}

void
target_close(struct target *t)
{
	target_detach(t);
	proc_maps_fini(&t->ahead);
	proc_maps_fini(&t->maps);
	proc_status_fini(&t->status);
	close_fd(&t->mem);
	close_fd(&t->proc);
	close_fd(&t->pidfd);
}
