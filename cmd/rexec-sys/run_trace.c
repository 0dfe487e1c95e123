/*
 * What ptrace tells: threads come and go, signals, exec.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "io.h"
#include "log.h"
#include "proc.h"
#include "run.h"

enum { OPTIONS = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACEEXEC |
		 PTRACE_O_TRACESECCOMP | PTRACE_O_EXITKILL };

/*
 * ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND: what a call returns inside the kernel that shall begin again, if no handler runs that does not want it
 * to; in any case; if no handler runs.
 */
enum { RESTART_AS_HANDLER_SAYS = -512, RESTART_ALWAYS = -513, RESTART_WITHOUT_HANDLER = -514 };

/* --- threads and processes */

struct thread *
thread_find(const struct run *r, pid_t tid)
{
	for (size_t i = 0; i < r->nthreads; i++)
		if (r->threads[i]->tid == tid)
			return r->threads[i];
	return NULL;
}

static struct thread *
thread_add(struct run *r, pid_t tid)
{
	struct thread *t = calloc(1, sizeof(*t)), **slot = t != NULL ? ARRAY_ADD(r->threads, r->nthreads) : NULL;

	if (slot == NULL) {
		free(t);
		return NULL;
	}
	*slot = t;
	t->tid = tid;
	t->number = ++r->last_number;
	return t;
}

static struct process *
process_add(struct run *r, pid_t pid)
{
	struct process *p = calloc(1, sizeof(*p)), **slot = p != NULL ? ARRAY_ADD(r->processes, r->nprocesses) : NULL;

	if (slot == NULL) {
		free(p);
		return NULL;
	}
	*slot = p;
	p->pid = pid;
	return p;
}

void
process_remove(struct run *r, struct process *p)
{
	for (size_t i = 0; i < r->nprocesses; i++)
		if (r->processes[i] == p)
			r->processes[i--] = r->processes[--r->nprocesses];
	for (size_t i = 0; i < p->nfiles; i++)
		file_set(r, p, (int64_t)i, NOWHERE);
	free(p->files);
	free(p->program);
	free(p);
}

/* The last one of a process whose original is at home says how it ended: status is waitpid(2)'s. */
static void
thread_remove(struct run *r, struct thread *t, int status)
{
	struct process *p = t->process;
	const uint32_t words[2] = {t->number, (uint32_t)status};

	if (r->away && p != NULL && p->nthreads == 1)
		away_tell(r, MSG_ENDED, words, 2);
	else
		away_tell(r, MSG_GONE, words, 1);
	for (size_t i = 0; i < r->nthreads; i++)
		if (r->threads[i] == t)
			r->threads[i--] = r->threads[--r->nthreads];
	fork_drop(r, t);
	wait_drop(t);
	calldata_fini(&t->data);
	free(t->exec_program);
	free(t);
	if (p != NULL && --p->nthreads == 0)
		process_remove(r, p);
}

/* --- going on */

static void
go_on(struct thread *t, enum __ptrace_request how, int sig)
{
	ptrace(how, t->tid, NULL, (long)sig); /* ESRCH: it has been killed, and its end comes */
}

/* Its parent's event has come, and it itself. */
static void
start(struct thread *t)
{
	if (t->born && t->stopped) {
		t->stopped = false;
		go_on(t, PTRACE_CONT, 0);
	}
}

struct process *
process_copy(struct run *r, const struct process *from)
{
	struct process *p = process_add(r, 0);

	if (p == NULL)
		return NULL;
	p->listener = from->listener;
	p->program = from->program != NULL ? strdup(from->program) : NULL;
	for (size_t fd = 0; fd < from->nfiles; fd++)
		if (from->files[fd].where != NOWHERE) {
			file_set(r, p, (int64_t)fd, from->files[fd].where);
			file_at(p, (int64_t)fd)->epoll = from->files[fd].epoll;
		}
	return p;
}

void
process_put_files(struct buf *b, const struct process *p)
{
	for (size_t fd = 0; fd < p->nfiles; fd++)
		if (p->files[fd].where != NOWHERE)
			buf_put_u32(b, (uint32_t)fd);
}

/* The other machine has it, too; its number for the new thread, that of its parent, and the files that it begins with. */
static void
tell_birth(struct run *r, const struct thread *t, const struct thread *parent, bool shared)
{
	struct buf b = {0};

	buf_put_u32(&b, t->number);
	buf_put_u32(&b, parent->number);
	if (!shared)
		process_put_files(&b, t->process);
	if (b.failed || link_send(&r->remote.link, shared ? MSG_THREAD : MSG_PROCESS, 0, b.data, b.len) < 0)
		run_lost(r, NULL);
	buf_fini(&b);
}

static void
birth(struct run *r, struct thread *parent)
{
	unsigned long tid = 0;
	struct thread *t;
	bool shared;

	if (ptrace(PTRACE_GETEVENTMSG, parent->tid, NULL, &tid) < 0)
		return; /* it is killed: settle_unborn() */
	if (r->ended) {
		kill((pid_t)tid, SIGKILL);
		return;
	}
	t = thread_find(r, (pid_t)tid);
	if (t == NULL)
		t = thread_add(r, (pid_t)tid);
	shared = syscall(SYS_kcmp, parent->tid, (pid_t)tid, KCMP_FILES, 0, 0) == 0;
	if (t != NULL)
		t->process = r->away ? fork_done(r, parent, t) : shared ? parent->process : process_copy(r, parent->process);
	if (t == NULL || t->process == NULL) {
		run_lost(r, "out of memory");
		return;
	}
	if (t->process->nthreads++ == 0)
		t->process->pid = (pid_t)tid;
	if (r->away)
		away_born(r, t);
	else
		tell_birth(r, t, parent, shared);
	t->born = true;
	start(t);
}

/* --- signals */

static uint64_t
bit(int sig)
{
	return 1ULL << (sig - 1);
}

static bool
has_handler(const struct thread *t, int sig)
{
	struct proc_status st = {0};
	bool has = thread_read_status(t, &st) == 0 && (st.sigcgt & bit(sig)) != 0;

	proc_status_fini(&st);
	return has;
}

/* Is there a signal that would do something to the thread if it did not wait for us? */
static bool
has_signal(const struct thread *t)
{
	const uint64_t by_default = bit(SIGCHLD) | bit(SIGURG) | bit(SIGWINCH) | bit(SIGCONT);
	struct proc_status st = {0};
	bool has = thread_read_status(t, &st) == 0 && ((st.sigpnd | st.shdpnd) & ~st.sigblk & ~st.sigign & ~(by_default & ~st.sigcgt)) != 0;

	proc_status_fini(&st);
	return has;
}

/* A call that does not wait for others, and so never returns EINTR. */
static bool
is_prompt(const struct arch_call *c)
{
	if (syscall_class(c->nr) == SYSCALL_HERE)
		return false;
	if (c->nr == SYS_fcntl)
		return c->arg[1] != F_SETLKW && c->arg[1] != F_OFD_SETLKW;
	return !syscall_blocks(c->nr) || c->nr == SYS_close || c->nr == SYS_open || c->nr == SYS_openat;
}

void
trace_tick(struct run *r)
{
	r->tick++;
	for (size_t i = 0; i < r->nthreads; i++) {
		struct thread *t = r->threads[i];

		if (t->phase == PHASE_ASKED && r->tick - t->asked_tick > 1 && has_signal(t))
			call_recall(r, t);
	}
}

/* With a stop the kernel looks at a result before the thread is back in its program, and makes of it what it makes of its own. */
static void
return_and_stop(struct thread *t, int64_t result)
{
	ptrace(PTRACE_INTERRUPT, t->tid, NULL, NULL);
	call_respond(t, result);
}

void
trace_again(struct thread *t)
{
	return_and_stop(t, RESTART_AS_HANDLER_SAYS);
}

void
trace_interrupted(struct thread *t, bool not_begun)
{
	t->again = t->call;
	if (syscall_class(t->call.nr) == SYSCALL_WAIT)
		return_and_stop(t, RESTART_WITHOUT_HANDLER); /* whatever the handler says: signal(7) */
	else
		return_and_stop(t, not_begun && (t->call.nr == SYS_connect || is_prompt(&t->call)) ? RESTART_ALWAYS : RESTART_AS_HANDLER_SAYS);
}

/*
 * A signal came before we had the call. One that never waits for others does not return EINTR for that, here as little as elsewhere: it begins again.
 */
static void
begin_again(struct thread *t)
{
	struct arch_regs regs;

	if (thread_get_regs(t, &regs) < 0 || (int64_t)regs.orig_rax < 0 || (int64_t)regs.rax != RESTART_AS_HANDLER_SAYS)
		return;
	if (syscall_class((long)regs.orig_rax) == SYSCALL_WAIT)
		regs.rax = (uint64_t)RESTART_WITHOUT_HANDLER;
	else if (is_prompt(&(struct arch_call){(long)regs.orig_rax, {regs.rdi, regs.rsi}}))
		regs.rax = (uint64_t)RESTART_ALWAYS;
	else
		return;
	thread_set_regs(t, &regs);
}

/*
 * The mask that it asked for is set while it waits; behind the handler its own is to be set again. So the handler's frame is made with the mask
 * that lets the signal through, and gets the thread's own then.
 */
static void
signal_stop(struct run *r, struct thread *t, int sig)
{
	struct arch_regs regs;
	bool handled;

	if (t->mask == MASK_HANDLER && sig == SIGTRAP && thread_get_regs(t, &regs) == 0) {
		thread_write(t, regs.rsp + ARCH_HANDLER_MASK, &t->mask_own, sizeof(t->mask_own));
		t->mask = MASK_OWN;
		go_on(t, PTRACE_CONT, 0);
		return;
	}
	begin_again(t);
	handled = has_handler(t, sig);
	if (handled)
		t->again.nr = -1; /* it hears of it; what it calls then is another wait */
	if (r->away && !away_signal(r, t, sig, handled))
		sig = 0;
	if (sig != 0 && t->mask == MASK_SET && handled) {
		t->mask = MASK_HANDLER;
		go_on(t, PTRACE_SINGLESTEP, sig);
		return;
	}
	wait_own_mask(t);
	go_on(t, PTRACE_CONT, sig);
}

/* A process stops as a whole: also its threads whose calls are there. */
static void
stop_others(struct run *r, const struct thread *stopped)
{
	for (size_t i = 0; i < r->nthreads; i++)
		if (r->threads[i]->process == stopped->process && r->threads[i]->phase == PHASE_ASKED)
			call_recall(r, r->threads[i]);
}

/* Has the call that it stands in been interrupted, so that a handler is to run now? */
static bool
is_interrupted(const struct thread *t)
{
	struct arch_regs regs;

	return thread_get_regs(t, &regs) == 0 && ((int64_t)regs.rax == RESTART_WITHOUT_HANDLER || (int64_t)regs.rax == RESTART_AS_HANDLER_SAYS);
}

/* --- events */

/*
 * Whoever was killed in the middle of a fork cannot tell of the child any more, which then belongs to nobody that we know: it has not run
 * yet, and goes with its parent. gone: all threads but one of this process have ended, too.
 */
static void
settle_unborn(struct run *r, const struct process *gone)
{
	for (size_t i = 0; i < r->nthreads; i++) {
		struct thread *t = r->threads[i];
		struct proc_status st = {0};
		bool known = false;

		if (t->process == NULL && thread_read_status(t, &st) == 0) {
			for (size_t k = 0; k < r->nprocesses; k++)
				known |= r->processes[k] != gone && (r->processes[k]->pid == st.ppid || r->processes[k]->pid == st.tgid);
			if (!known)
				kill(t->tid, SIGKILL);
		}
		proc_status_fini(&st);
	}
}

static void
over(struct run *r, struct thread *t, int status)
{
	bool first = t->tid == r->first;

	thread_remove(r, t, status);
	settle_unborn(r, NULL);
	if (first)
		r->first = 0;
	if (first && !r->ended)
		r->status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void
stopped(struct run *r, struct thread *t, int status)
{
	int sig = WSTOPSIG(status);

	switch (status >> 16) {
	case PTRACE_EVENT_CLONE:
	case PTRACE_EVENT_FORK:
	case PTRACE_EVENT_VFORK:
		birth(r, t);
		go_on(t, PTRACE_CONT, 0);
		return;
	case PTRACE_EVENT_EXEC:
		return; /* taken care of before */
	case PTRACE_EVENT_SECCOMP:
		if (!fork_stop(r, t))
			exec_stop(r, t);
		return;
	case PTRACE_EVENT_STOP:
		if (!t->born) {
			t->stopped = true;
			return;
		}
		if (r->away && t->process->stopping != (sig != SIGTRAP))
			away_stopped(r, t, sig != SIGTRAP ? sig : 0, false);
		t->process->stopping = sig != SIGTRAP;
		if (sig == SIGTRAP)
			wait_stopped(t, t->mask == MASK_SET && is_interrupted(t) && has_signal(t));
		else
			stop_others(r, t);
		go_on(t, sig == SIGTRAP ? PTRACE_CONT : PTRACE_LISTEN, 0);
		/* The whole job is stopped, by its terminal or because there is no more of it: our shell has to see it. */
		if (sig != SIGTRAP && t->tid == r->first && !r->away && (sig != SIGSTOP || r->nprocesses == 1))
			kill(getpid(), SIGSTOP);
		return;
	default:
		if (sig == (SIGTRAP | 0x80) && !fork_failed(r, t))
			exec_syscall_stop(t);
		else if (sig == (SIGTRAP | 0x80))
			go_on(t, PTRACE_CONT, 0);
		else
			signal_stop(r, t, sig);
	}
}

static void
event(struct run *r, pid_t tid, int status)
{
	struct thread *t = thread_find(r, tid);
	unsigned long was = 0;

	if (tid == r->remote.link.helper) {
		r->remote.link.helper = 0;
		return;
	}
	if (WIFSTOPPED(status) && status >> 16 == PTRACE_EVENT_EXEC && ptrace(PTRACE_GETEVENTMSG, tid, NULL, &was) == 0) {
		struct thread *old = (pid_t)was != tid ? t : NULL;

		/* Another thread than the first has done it, and has the number of the first now; the others are gone. */
		t = thread_find(r, (pid_t)was);
		if (old != NULL)
			thread_remove(r, old, 0);
		if (t != NULL) {
			t->tid = tid;
			t->process->pid = tid;
			settle_unborn(r, t->process);
			exec_done(r, t);
		}
		return;
	}
	if (t == NULL && WIFSTOPPED(status)) {
		t = thread_add(r, tid);
		if (t == NULL)
			run_lost(r, "out of memory");
	}
	if (t == NULL)
		return;
	if (WIFSTOPPED(status))
		stopped(r, t, status);
	else
		over(r, t, status);
}

void
trace_events(struct run *r)
{
	int status;
	pid_t tid;

	while ((tid = waitpid(-1, &status, __WALL | WNOHANG)) > 0)
		event(r, tid, status);
}

struct process *
trace_adopt(struct run *r, const struct handover_process *from)
{
	struct process *p = process_add(r, (pid_t)from->pid);

	if (p == NULL)
		return NULL;
	for (size_t i = 0; i < from->nthreads; i++) {
		struct thread *t = thread_add(r, (pid_t)from->threads[i].tid);

		if (t == NULL)
			return NULL;
		t->number = (uint32_t)from->threads[i].number;
		t->process = p;
		t->born = t->stopped = true;
		p->nthreads++;
	}
	p->program = from->program != NULL ? strdup(from->program) : NULL;
	if (r->first == 0)
		r->first = p->pid;
	return p;
}

void
trace_start(struct run *r)
{
	for (size_t i = 0; i < r->nthreads; i++) {
		ptrace(PTRACE_SETOPTIONS, r->threads[i]->tid, NULL, (long)OPTIONS);
		start(r->threads[i]);
	}
}

int
trace_begin(struct run *r, pid_t first)
{
	struct thread *t = thread_add(r, first);
	struct process *p = process_add(r, first);

	if (t == NULL || p == NULL)
		return fail(ENOMEM, "out of memory");
	if (ptrace(PTRACE_SEIZE, first, NULL, (long)OPTIONS) < 0)
		return errno == EPERM ? fail(ENOTSUP, "run: a command of ours cannot be traced: we are run under another run, or may not trace (Yama)")
		    : fail_errno("ptrace");
	t->process = p;
	t->born = true;
	p->nthreads = 1;
	r->first = first;
	return 0;
}
