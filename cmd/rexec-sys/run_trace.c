/*
 * What ptrace tells: threads come and go, signals, exec.
 */
#include <errno.h>
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
#include "run.h"

enum { OPTIONS = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACEEXEC |
		 PTRACE_O_TRACESECCOMP | PTRACE_O_EXITKILL };

/* What a call returns inside the kernel when it shall begin again: after any signal, or as the handler has it. */
enum { RESTART_AS_HANDLER_SAYS = -512, RESTART_ALWAYS = -513 };

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

/* --- memory */

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
	return copy_memory(((struct thread *)ctx)->tid, at, data, len, false);
}

int
thread_write(void *ctx, taddr at, void *data, size_t len)
{
	return copy_memory(((struct thread *)ctx)->tid, at, data, len, true);
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
		return;
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

static bool
has_handler(pid_t tid, int sig)
{
	char path[64], *text = NULL, *p;
	unsigned long long caught = 0;

	snprintf(path, sizeof(path), "/proc/%d/status", tid);
	if (read_file(-1, path, &text) > 0 && (p = strstr(text, "\nSigCgt:")) != NULL)
		caught = strtoull(p + 8, NULL, 16);
	free(text);
	return (caught >> (sig - 1) & 1) != 0;
}

static void
set_result(struct thread *t, int64_t result)
{
	struct arch_regs regs;

	if (tracee_get_regs(t->tid, &regs) == 0) {
		regs.rax = (uint64_t)result;
		tracee_set_regs(t->tid, &regs);
	}
}

/*
 * A call that never waits for others has not begun when a signal comes first, and does not return EINTR: it begins again. One that the thread
 * executes itself is the kernel's to judge.
 */
static void
begin_again(struct thread *t)
{
	struct arch_regs regs;
	bool prompt;

	if (tracee_get_regs(t->tid, &regs) < 0 || (int64_t)regs.rax != RESTART_AS_HANDLER_SAYS)
		return;
	prompt = syscall_class((long)regs.orig_rax) != SYSCALL_HERE &&
	    (!syscall_blocks((long)regs.orig_rax) || regs.orig_rax == SYS_close || regs.orig_rax == SYS_open || regs.orig_rax == SYS_openat);
	if (prompt && !(t->native && (uint64_t)t->call.nr == regs.orig_rax && t->call.arg[0] == regs.rdi && t->call.arg[1] == regs.rsi))
		set_result(t, RESTART_ALWAYS);
}

/*
 * A signal is to be delivered to a thread whose call is there, or has been answered too late. What the call has done must not be lost: it is
 * called back, and the thread stands still until it is clear what became of it.
 */
static void
signal_stop(struct run *r, struct thread *t, int sig)
{
	t->notification = 0;
	if (t->phase == PHASE_NONE)
		begin_again(t);
	if (t->phase == PHASE_NONE || !has_handler(t->tid, sig)) {
		/* It begins the call again, and finds it there; or it ends. */
		go_on(t, PTRACE_CONT, sig);
		return;
	}
	t->signal = sig;
	t->stopped = true;
	if (t->phase == PHASE_ANSWERED) {
		trace_returned(r, t);
	} else if (t->phase == PHASE_ASKED) {
		t->phase = PHASE_CANCELLED;
		if (t->call.nr != SYS_close && t->call.nr != SYS_close_range) /* these are done when they have been sent */
			link_send(&r->remote.link, MSG_CANCEL, t->id, NULL, 0);
	}
}

void
trace_returned(struct run *r, struct thread *t)
{
	bool interrupted = t->result == -EINTR || t->result <= RESTART_AS_HANDLER_SAYS;

	if (interrupted) {
		/* As the kernel has it: EINTR, or once more, when the handler has run. */
		t->phase = PHASE_NONE;
	} else if (syscall_class(t->call.nr) == SYSCALL_BOTH || syscall_new_fd(t->call.nr) || t->wait != NULL) {
		/* It is complete only when the thread asks again, which it does in any case. */
		t->phase = PHASE_ANSWERED;
		set_result(t, RESTART_ALWAYS);
	} else {
		int err = calldata_to_memory(&t->data, &t->sent, t->result, thread_read, thread_write, t);

		t->phase = PHASE_NONE;
		set_result(t, err < 0 ? err : t->result);
	}
	if (t->phase == PHASE_NONE)
		wait_drop(t);
	wait_own_mask(t);
	t->stopped = false;
	go_on(t, PTRACE_CONT, t->signal);
	(void)r;
}

/* --- events */

static void
over(struct run *r, struct thread *t, int status)
{
	bool first = t->tid == r->first;

	thread_remove(r, t);
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
		if (sig == SIGTRAP)
			wait_stopped(t);
		go_on(t, sig == SIGTRAP ? PTRACE_CONT : PTRACE_LISTEN, 0);
		/* The whole job is stopped: our shell has to see it. */
		if (sig != SIGTRAP && t->tid == r->first)
			kill(getpid(), SIGSTOP);
		return;
	default:
		if (sig == (SIGTRAP | 0x80))
			exec_syscall_stop(r, t);
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
			thread_remove(r, old);
		if (t != NULL) {
			t->tid = tid;
			t->process->pid = tid;
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
		return fail_errno("ptrace");
	t->process = p;
	t->born = true;
	p->nthreads = 1;
	r->first = first;
	return 0;
}
