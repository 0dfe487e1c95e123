/*
 * Seizing, stopping, register sets and memory. Borrowing a thread is tracee_borrow.c.
 */
#include "tracee.h"

#include <elf.h>
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "io.h"
#include "log.h"

int
tracee_wait(pid_t tid, int64_t deadline_ms, int *status)
{
	sigset_t chld;

	sigemptyset(&chld);
	sigaddset(&chld, SIGCHLD);
	for (;;) {
		pid_t got = waitpid(tid, status, __WALL | WNOHANG);
		int64_t left;
		struct timespec ts;

		if (got == tid)
			return 0;
		if (got < 0 && errno != EINTR)
			return -errno;
		left = deadline_ms - now_ms();
		if (left <= 0)
			return -ETIMEDOUT;
		ts.tv_sec = left / 1000;
		ts.tv_nsec = left % 1000 * 1000000;
		/* The event may belong to another thread and have been counted already: ask again. */
		if (left > 100)
			ts = (struct timespec){0, 100000000};
		sigtimedwait(&chld, NULL, &ts);
	}
}

bool
tracee_is_fault(int sig)
{
	return sig == SIGSEGV || sig == SIGBUS || sig == SIGILL || sig == SIGFPE || sig == SIGSYS || sig == SIGTRAP;
}

int
tracee_seize(struct tracee *t, pid_t pid, pid_t tid, unsigned long options)
{
	memset(t, 0, sizeof(*t));
	t->pid = pid;
	t->tid = tid;
	t->mem = -1;
	if (ptrace(PTRACE_SEIZE, tid, NULL, options) < 0)
		return errno == EPERM || errno == ESRCH ? -errno
							: fail_errno("pid %d: ptrace", tid);
	t->seized = true;
	if (ptrace(PTRACE_INTERRUPT, tid, NULL, NULL) < 0)
		return fail_errno("pid %d: ptrace", tid);
	return 0;
}

static int
read_state(struct tracee *t)
{
	int err = tracee_get_regs(t->tid, &t->regs);

	if (err == 0)
		err = tracee_get_sigmask(t->tid, &t->sigmask);
	free(t->xstate);
	t->xstate = NULL;
	if (err == 0)
		err = tracee_get_xstate(t->tid, &t->xstate, &t->xstate_len);
	return err;
}

int
tracee_wait_interrupt(struct tracee *t, int64_t deadline_ms)
{
	for (;;) {
		int status, err = tracee_wait(t->tid, deadline_ms, &status);

		if (err == -ECHILD || (err == 0 && (WIFEXITED(status) || WIFSIGNALED(status)))) {
			t->dead = true;
			t->seized = false;
			return -ESRCH;
		}
		if (err < 0)
			return err;
		if (status >> 16 == PTRACE_EVENT_STOP) {
			/* SIGTRAP: the interrupt; a stop signal: it is in a group-stop. */
			t->stop_signal = WSTOPSIG(status) == SIGTRAP ? 0 : WSTOPSIG(status);
			return read_state(t);
		}
		/* A signal came first: it is delivered as if nobody looked, and the interrupt comes. */
		if (ptrace(PTRACE_CONT, t->tid, NULL, (long)(status >> 16 ? 0 : WSTOPSIG(status))) < 0 &&
		    errno != ESRCH)
			return fail_errno("pid %d: ptrace", t->tid);
	}
}

int
tracee_run_a_little(struct tracee *t, int64_t deadline_ms)
{
	struct timespec little = {0, 50000};

	if (ptrace(PTRACE_CONT, t->tid, NULL, NULL) < 0)
		return fail_errno("pid %d: ptrace", t->tid);
	nanosleep(&little, NULL);
	if (ptrace(PTRACE_INTERRUPT, t->tid, NULL, NULL) < 0)
		return fail_errno("pid %d: ptrace", t->tid);
	return tracee_wait_interrupt(t, deadline_ms);
}

int
tracee_nudge(struct tracee *t, int64_t deadline_ms)
{
	if (ptrace(PTRACE_INTERRUPT, t->tid, NULL, NULL) < 0 ||
	    ptrace(PTRACE_CONT, t->tid, NULL, NULL) < 0)
		return fail_errno("pid %d: ptrace", t->tid);
	return tracee_wait_interrupt(t, deadline_ms);
}

void
tracee_reap(struct tracee *threads, size_t n)
{
	for (size_t i = n; i-- > 0;) {
		int status;
		pid_t got;

		do
			got = threads[i].seized ? waitpid(threads[i].tid, &status, __WALL) : 0;
		while ((got == threads[i].tid && WIFSTOPPED(status)) || (got < 0 && errno == EINTR));
		threads[i].dead = true;
		threads[i].seized = false;
	}
}

/* struct arch_regs has the fields of struct user_regs_struct in its order. */
int
tracee_get_regs(pid_t tid, struct arch_regs *regs)
{
	struct user_regs_struct u;
	struct iovec iov = {&u, sizeof(u)};

	if (ptrace(PTRACE_GETREGSET, tid, (void *)NT_PRSTATUS, &iov) < 0)
		return fail_errno("pid %d: registers", tid);
	if (iov.iov_len != sizeof(u))
		return fail(ENOTSUP, "pid %d: a 32-bit program cannot be moved", tid);
#define R(name) regs->name = u.name;
	ARCH_REGS(R)
#undef R
	return 0;
}

int
tracee_set_regs(pid_t tid, const struct arch_regs *regs)
{
	struct user_regs_struct u;
	struct iovec iov = {&u, sizeof(u)};

#define R(name) u.name = regs->name;
	ARCH_REGS(R)
#undef R
	if (ptrace(PTRACE_SETREGSET, tid, (void *)NT_PRSTATUS, &iov) < 0)
		return fail_errno("pid %d: set registers", tid);
	return 0;
}

int
tracee_get_xstate(pid_t tid, unsigned char **xstate, size_t *len)
{
	size_t cap = 64 << 10; /* AMX alone needs 8 KiB; ask for plenty */
	unsigned char *p = malloc(cap);
	struct iovec iov = {p, cap};

	if (p == NULL)
		return -ENOMEM;
	if (ptrace(PTRACE_GETREGSET, tid, (void *)NT_X86_XSTATE, &iov) < 0) {
		free(p);
		return fail_errno("pid %d: extended registers", tid);
	}
	*xstate = p;
	*len = iov.iov_len;
	return 0;
}

int
tracee_set_xstate(pid_t tid, const unsigned char *xstate, size_t len)
{
	struct iovec iov = {(void *)(uintptr_t)xstate, len};

	if (ptrace(PTRACE_SETREGSET, tid, (void *)NT_X86_XSTATE, &iov) < 0)
		return fail_errno("pid %d: set extended registers", tid);
	return 0;
}

int
tracee_get_sigmask(pid_t tid, uint64_t *mask)
{
	if (ptrace(PTRACE_GETSIGMASK, tid, (void *)sizeof(*mask), mask) < 0)
		return fail_errno("pid %d: signal mask", tid);
	return 0;
}

int
tracee_set_sigmask(pid_t tid, uint64_t mask)
{
	if (ptrace(PTRACE_SETSIGMASK, tid, (void *)sizeof(mask), &mask) < 0)
		return fail_errno("pid %d: set signal mask", tid);
	return 0;
}
