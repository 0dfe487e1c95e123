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
#include <sys/uio.h>
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

static void
tell(struct run *r, enum msg_type type, const uint32_t *words, size_t n)
{
	struct buf b = {0};

	for (size_t i = 0; i < n; i++)
		buf_put_u32(&b, words[i]);
	if (!r->ended && (b.failed || link_send(&r->remote.link, type, 0, b.data, b.len) < 0))
		run_lost(r, NULL);
	buf_fini(&b);
}

static void
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

static void
thread_remove(struct run *r, struct thread *t)
{
	struct process *p = t->process;

	tell(r, MSG_GONE, &t->number, 1);
	for (size_t i = 0; i < r->nthreads; i++)
		if (r->threads[i] == t)
			r->threads[i--] = r->threads[--r->nthreads];
	wait_drop(t);
	calldata_fini(&t->data);
	free(t->exec_program);
	free(t);
	if (p != NULL && --p->nthreads == 0)
		process_remove(r, p);
}

/* --- registers and memory; that it has been killed shows in its end, and is nothing to tell */

int
thread_get_regs(const struct thread *t, struct arch_regs *regs)
{
	int err;

	log_hush(1);
	err = tracee_get_regs(t->tid, regs);
	log_hush(-1);
	return err;
}

int
thread_set_regs(const struct thread *t, const struct arch_regs *regs)
{
	int err;

	log_hush(1);
	err = tracee_set_regs(t->tid, regs);
	log_hush(-1);
	return err;
}

static int
copy_memory(pid_t tid, taddr at, void *data, size_t len, bool writing)
{
	struct iovec ours = {data, len}, theirs = {(void *)(uintptr_t)at, len};
	ssize_t n = writing ? process_vm_writev(tid, &ours, 1, &theirs, 1, 0) : process_vm_readv(tid, &ours, 1, &theirs, 1, 0);

	return n == (ssize_t)len ? 0 : -EFAULT;
}

int
thread_read(void *ctx, taddr at, void *data, size_t len)
{
	struct thread *t = ctx;

	if (at >= t->peek_at && at - t->peek_at <= t->peeked && len <= t->peeked - (at - t->peek_at)) {
		memcpy(data, t->peek + (at - t->peek_at), len);
		return 0;
	}
	return copy_memory(t->tid, at, data, len, false);
}

int
thread_write(void *ctx, taddr at, void *data, size_t len)
{
	struct thread *t = ctx;

	t->peeked = 0;
	return copy_memory(t->tid, at, data, len, true);
}

char *
thread_string(struct thread *t, taddr at)
{
	size_t len = 0, room = 0;
	char *text = NULL;

	/* Up to the next page, or as much as an argument may have. */
	while (len <= 128 << 10) {
		size_t step = min_u64(page_up(at + len + 1) - (at + len), 1024);
		char *more = realloc(text, room + step), *end;

		if (more == NULL || thread_read(t, at + len, more + len, step) < 0) {
			free(more != NULL ? more : text);
			errno = more != NULL ? EFAULT : ENOMEM;
			return NULL;
		}
		text = more;
		room += step;
		if (len == 0) {
			t->peek_at = at;
			t->peeked = min_u64(step, sizeof(t->peek));
			memcpy(t->peek, text, t->peeked);
		}
		end = memchr(text + len, '\0', step);
		if (end != NULL)
			return text;
		len += step;
	}
	free(text);
	errno = ENAMETOOLONG;
	return NULL;
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

static void
birth(struct run *r, struct thread *parent)
{
	struct process *from = parent->process, *p;
	unsigned long tid = 0;
	struct thread *t;
	struct buf b = {0};
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
	p = shared ? from : process_add(r, (pid_t)tid);
	if (t == NULL || p == NULL) {
		run_lost(r, "out of memory");
		return;
	}
	t->process = p;
	p->nthreads++;
	buf_put_u32(&b, t->number);
	buf_put_u32(&b, parent->number);
	if (!shared) {
		p->program = from->program != NULL ? strdup(from->program) : NULL;
		for (size_t fd = 0; fd < from->nfiles; fd++) {
			if (from->files[fd].where == NOWHERE)
				continue;
			file_set(r, p, (int64_t)fd, from->files[fd].where);
			file_at(p, (int64_t)fd)->epoll = from->files[fd].epoll;
			buf_put_u32(&b, (uint32_t)fd);
		}
	}
	if (b.failed || link_send(&r->remote.link, shared ? MSG_THREAD : MSG_PROCESS, 0, b.data, b.len) < 0)
		run_lost(r, NULL);
	buf_fini(&b);
	t->born = true;
	start(t);
}

/* --- signals */

static uint64_t
bit(int sig)
{
	return 1ULL << (sig - 1);
}

/* Silent. */
static int
read_status(const struct thread *t, struct proc_status *st)
{
	int proc = proc_open(t->tid), err = proc < 0 ? proc : proc_read_status(proc, st);

	close_fd(&proc);
	return err;
}

static bool
has_handler(const struct thread *t, int sig)
{
	struct proc_status st = {0};
	bool has = read_status(t, &st) == 0 && (st.sigcgt & bit(sig)) != 0;

	proc_status_fini(&st);
	return has;
}

/* Is there a signal that would do something to the thread if it did not wait for us? */
static bool
has_signal(const struct thread *t)
{
	const uint64_t by_default = bit(SIGCHLD) | bit(SIGURG) | bit(SIGWINCH) | bit(SIGCONT);
	struct proc_status st = {0};
	bool has = read_status(t, &st) == 0 && ((st.sigpnd | st.shdpnd) & ~st.sigblk & ~st.sigign & ~(by_default & ~st.sigcgt)) != 0;

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
return_and_stop(struct run *r, struct thread *t, int64_t result)
{
	ptrace(PTRACE_INTERRUPT, t->tid, NULL, NULL);
	call_respond(r, t, result);
}

void
trace_again(struct run *r, struct thread *t)
{
	return_and_stop(r, t, RESTART_AS_HANDLER_SAYS);
}

void
trace_interrupted(struct run *r, struct thread *t, bool not_begun)
{
	if (syscall_class(t->call.nr) == SYSCALL_WAIT)
		return_and_stop(r, t, RESTART_WITHOUT_HANDLER); /* whatever the handler says: signal(7) */
	else
		return_and_stop(r, t, not_begun && (t->call.nr == SYS_connect || is_prompt(&t->call)) ? RESTART_ALWAYS : RESTART_AS_HANDLER_SAYS);
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
signal_stop(struct thread *t, int sig)
{
	struct arch_regs regs;

	if (t->mask == MASK_HANDLER && sig == SIGTRAP && thread_get_regs(t, &regs) == 0) {
		thread_write(t, regs.rsp + ARCH_HANDLER_MASK, &t->mask_own, sizeof(t->mask_own));
		t->mask = MASK_OWN;
		go_on(t, PTRACE_CONT, 0);
		return;
	}
	begin_again(t);
	if (t->mask == MASK_SET && has_handler(t, sig)) {
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

		if (t->process == NULL && read_status(t, &st) == 0) {
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

	thread_remove(r, t);
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
		exec_stop(r, t);
		return;
	case PTRACE_EVENT_STOP:
		if (!t->born) {
			t->stopped = true;
			return;
		}
		t->process->stopping = sig != SIGTRAP;
		if (sig == SIGTRAP)
			wait_stopped(t, t->mask == MASK_SET && is_interrupted(t) && has_signal(t));
		else
			stop_others(r, t);
		go_on(t, sig == SIGTRAP ? PTRACE_CONT : PTRACE_LISTEN, 0);
		/* The whole job is stopped, by its terminal or because there is no more of it: our shell has to see it. */
		if (sig != SIGTRAP && t->tid == r->first && (sig != SIGSTOP || r->nprocesses == 1))
			kill(getpid(), SIGSTOP);
		return;
	default:
		if (sig == (SIGTRAP | 0x80))
			exec_syscall_stop(t);
		else
			signal_stop(t, sig);
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
			thread_remove(r, old);
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
