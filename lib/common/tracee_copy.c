/*
 * A copy of a process by fork(2), made by a thread that is borrowed: nobody but us knows of it.
 *
 * The thread makes one that has its memory, and that one makes the copy and ends, so that the copy is init's. Each of the three does by itself what is
 * left to do if we die: the thread waits for the one in between and goes back, the copy ends.
 */
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "fault.h"
#include "io.h"
#include "log.h"
#include "tracee.h"

enum { COPY_TIMEOUT_MS = 60000, IS_SYSCALL = SIGTRAP | 0x80, IS_EVENT = SIGTRAP | PTRACE_EVENT_CLONE << 8 };
#define OPTIONS (PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE)

static int
next_stop(pid_t tid, int request, int *status)
{
	if (ptrace(request, tid, NULL, NULL) < 0)
		return -errno;
	return tracee_wait(tid, now_ms() + COPY_TIMEOUT_MS, status);
}

/* Its next stop for a system call, or for a clone(2). Other signals are held back: all are blocked but SIGSTOP. */
static int
next_call(struct tracee *t, int *status)
{
	int err;

	do {
		err = next_stop(t->tid, PTRACE_SYSCALL, status);
		if (err == 0 && WIFSTOPPED(*status) && *status >> 16 == 0 && WSTOPSIG(*status) == SIGSTOP)
			t->stop_again = true;
	} while (err == 0 && WIFSTOPPED(*status) && *status >> 8 != IS_SYSCALL && *status >> 8 != IS_EVENT);
	if (err == 0 && !WIFSTOPPED(*status)) {
		t->dead = true;
		t->seized = false;
		err = -ESRCH;
	}
	return err;
}

/* The result of the call that t is at the end of; an error of ours instead. */
static int
next_result(struct tracee *t, int64_t *result)
{
	struct arch_regs regs;
	int status, err = next_call(t, &status);

	if (err == 0)
		err = tracee_get_regs(t->tid, &regs);
	if (err == 0)
		*result = (int64_t)arch_result(&regs);
	return err;
}

/* Just born, and attached by the kernel. */
static int
meet(pid_t parent, pid_t *child)
{
	unsigned long msg = 0;
	int status;

	if (ptrace(PTRACE_GETEVENTMSG, parent, NULL, &msg) < 0)
		return -errno;
	*child = (pid_t)msg;
	return tracee_wait(*child, now_ms() + COPY_TIMEOUT_MS, &status);
}

/* It gives up its files, and stands behind that. */
static int
close_files(pid_t copy)
{
	struct arch_regs regs = {0};
	int status, err;

	if (ptrace(PTRACE_SETOPTIONS, copy, NULL, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL) < 0)
		return -errno;
	fault(FAULT_copied);
	do {
		err = next_stop(copy, PTRACE_SYSCALL, &status);
		if (err == 0 && !WIFSTOPPED(status))
			err = -ESRCH;
		if (err == 0)
			err = tracee_get_regs(copy, &regs);
	} while (err == 0 && regs.orig_rax != ARCH_COPY_LAST);
	/* That was its beginning. */
	if (err == 0)
		err = next_stop(copy, PTRACE_SYSCALL, &status);
	if (err == 0)
		err = !WIFSTOPPED(status) ? -ESRCH : tracee_get_regs(copy, &regs);
	if (err == 0 && arch_result(&regs) != 0)
		err = -ENOTSUP;
	fault(FAULT_copy_closed);
	return err;
}

/* The one in between: it makes the copy and ends, with an error of its own perhaps. */
static pid_t
let_it_copy(pid_t between)
{
	pid_t copy = 0;
	int status, err;

	fault(FAULT_between);
	while ((err = next_stop(between, PTRACE_CONT, &status)) == 0 && WIFSTOPPED(status)) {
		if (status >> 8 != IS_EVENT || copy != 0)
			continue;
		err = meet(between, &copy);
		if (err == 0)
			err = close_files(copy);
		if (err < 0)
			break;
	}
	if (err == 0 && copy == 0)
		err = WIFEXITED(status) && WEXITSTATUS(status) != 0 ? -WEXITSTATUS(status) : -ESRCH;
	if (err == 0)
		return copy;
	if (copy > 0)
		tracee_end_copy(copy);
	/* It makes no second one: a call with a result goes on to the end. */
	while (next_stop(between, PTRACE_CONT, &status) == 0 && WIFSTOPPED(status))
		continue;
	return err;
}

pid_t
tracee_copy(struct tracee *t, taddr code, taddr sp)
{
	struct arch_call call = {SYS_clone, {CLONE_VM}};
	struct arch_regs regs = t->regs;
	pid_t between, copy = 0;
	int64_t result = 0;
	int status, err;

	regs.rsp = sp;
	arch_set_call(&regs, code, &call);
	err = tracee_set_regs(t->tid, &regs);
	if (err == 0 && ptrace(PTRACE_SETOPTIONS, t->tid, NULL, OPTIONS) < 0)
		err = -errno;
	if (err == 0)
		err = next_call(t, &status);
	if (err == 0)
		err = next_call(t, &status);
	if (err == 0 && status >> 8 == IS_EVENT) {
		err = meet(t->tid, &between);
		if (err == 0)
			copy = let_it_copy(between);
		if (err == 0) /* the end of clone(2); beginning and end of wait4(2) */
			err = next_result(t, &result);
		if (err == 0)
			err = next_result(t, &result);
	}
	/* If there is none in between, this is the end of a clone(2) that has failed. */
	if (err == 0)
		err = copy == 0 ? tracee_get_regs(t->tid, &regs) : next_result(t, &result);
	if (err == 0 && copy == 0)
		copy = (pid_t)arch_result(&regs);
	if (!t->dead)
		ptrace(PTRACE_SETOPTIONS, t->tid, NULL, PTRACE_O_TRACESYSGOOD);
	if (err < 0 && copy > 0)
		tracee_end_copy(copy);
	return err < 0 ? err : copy == 0 ? -ENOTSUP : copy;
}

void
tracee_end_copy(pid_t copy)
{
	int status;

	kill(copy, SIGKILL);
	while (tracee_wait(copy, now_ms() + COPY_TIMEOUT_MS, &status) == 0 && WIFSTOPPED(status))
		continue;
}
