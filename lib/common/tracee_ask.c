/*
 * Many threads asked at once: each executes its script by itself, in a page of ours, and stops by a signal that nobody but a tracer notices.
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

#include "fault.h"
#include "io.h"
#include "log.h"
#include "tracee.h"

enum { ANSWER_TIMEOUT_MS = 10000 };

/* The calls, and behind them their data, lie in the scratch memory. */
static size_t
data_at(const struct script *s)
{
	return round_up(s->ncalls * sizeof(struct arch_call), 16);
}

int
tracee_ask(struct tracee *t, const struct script *s)
{
	unsigned char bytes[TRACEE_SCRATCH] = {0};
	struct arch_regs regs = t->regs;
	int err;

	if (s->failed || data_at(s) + s->data.len > sizeof(bytes))
		return fail(ENOMEM, "pid %d: a script is too long", t->tid);
	for (size_t i = 0; i < s->ncalls; i++) {
		struct arch_call call = s->calls[i].call;

		for (unsigned a = 0; a < 6; a++)
			if (s->calls[i].data_args & 1u << a)
				call.arg[a] += t->scratch + data_at(s);
		memcpy(bytes + i * sizeof(call), &call, sizeof(call));
	}
	memcpy(bytes + data_at(s), s->data.data, s->data.len);
	err = mem_write(t->mem, t->scratch, bytes, data_at(s) + s->data.len);
	if (err < 0)
		return fail(-err, "pid %d: write below its stack: %s", t->tid, strerror(-err));
	regs.rsp = t->frame_at;
	arch_set_ask(&regs, t->page, t->scratch, t->scratch + s->ncalls * sizeof(struct arch_call), t->sig, t->gadget);
	err = tracee_set_regs(t->tid, &regs);
	if (err == 0)
		err = tracee_set_sigmask(t->tid, ALL_SIGNALS & ~(1ULL << (t->sig - 1)));
	if (err == 0 && ptrace(PTRACE_CONT, t->tid, NULL, NULL) < 0)
		err = fail_errno("pid %d: ptrace", t->tid);
	if (err < 0)
		return err;
	fault(FAULT_asked);
	return 0;
}

static int
next_stop(struct tracee *t, int *status)
{
	int err = tracee_wait(t->tid, now_ms() + ANSWER_TIMEOUT_MS, status);

	if (err < 0)
		return fail(-err, "pid %d: what it is asked it does not answer: %s", t->tid, strerror(-err));
	if (!WIFSTOPPED(*status)) {
		t->dead = true;
		t->seized = false;
		return fail(ESRCH, "pid %d: ended while it was being looked at", t->tid);
	}
	return 0;
}

/* From a signal's stop to an interrupt-stop: without the signal, which was its own, or with that of somebody else, and any more of those. */
static int
leave_signal(struct tracee *t, bool own)
{
	int status = 0, err = 0;

	if (ptrace(PTRACE_INTERRUPT, t->tid, NULL, NULL) < 0)
		return fail_errno("pid %d: ptrace", t->tid);
	do {
		/* Delivered while it is blocked, the kernel keeps it for later as it came. */
		if (!own)
			err = tracee_set_sigmask(t->tid, ALL_SIGNALS);
		if (err == 0 && ptrace(PTRACE_CONT, t->tid, NULL, own ? 0L : (long)t->sig) < 0)
			err = fail_errno("pid %d: ptrace", t->tid);
		if (err == 0)
			err = next_stop(t, &status);
		own = !(err == 0 && status >> 16 == 0 && WSTOPSIG(status) == t->sig);
		if (err == 0 && status >> 16 == 0 && WSTOPSIG(status) == SIGSTOP)
			t->stop_again = true;
	} while (err == 0 && status >> 16 != PTRACE_EVENT_STOP);
	return err;
}

/* At its stop for t->sig. It is a signal of somebody else if the thread has not got that far. */
static int
take_signal(struct tracee *t, bool *answered)
{
	struct arch_regs regs;
	int err = tracee_get_regs(t->tid, &regs), rested;

	*answered = err == 0 && arch_asked(&regs, t->page);
	if (err == 0 && !*answered)
		err = leave_signal(t, false);
	rested = tracee_rest(t);
	err = err < 0 ? err : rested;
	/* Where it has the signal blocked it must not find it pending if we die. */
	if (err == 0 && *answered && t->sigmask >> (t->sig - 1) & 1)
		err = leave_signal(t, true);
	/* For other calls in it, during which nobody expects any signal. */
	if (err == 0)
		err = tracee_set_sigmask(t->tid, ALL_SIGNALS);
	t->looks = err == 0;
	return err;
}

static int
read_answers(const struct tracee *t, struct script *s)
{
	unsigned char bytes[TRACEE_SCRATCH];
	int err = mem_read(t->mem, t->scratch, bytes, data_at(s) + s->data.len);

	if (err < 0)
		return fail(-err, "pid %d: read below its stack: %s", t->tid, strerror(-err));
	for (size_t i = 0; i < s->ncalls; i++)
		memcpy(&s->calls[i].result, bytes + i * sizeof(struct arch_call), sizeof(s->calls[i].result));
	memcpy(s->data.data, bytes + data_at(s), s->data.len);
	return 0;
}

int
tracee_answer(struct tracee *t, struct script *s, bool *answered)
{
	int status, err;

	*answered = false;
	for (;;) {
		err = next_stop(t, &status);
		if (err < 0)
			return err;
		if (status >> 16 == 0 && WSTOPSIG(status) == t->sig)
			break;
		if (status >> 16 == 0 && tracee_is_fault(WSTOPSIG(status))) {
			tracee_rest(t);
			return fail(EFAULT, "pid %d: signal %d while it was being asked", t->tid, WSTOPSIG(status));
		}
		/* All other signals are blocked but SIGSTOP; that one is given back at the end. */
		if (status >> 16 == 0 && WSTOPSIG(status) == SIGSTOP)
			t->stop_again = true;
		if (ptrace(PTRACE_CONT, t->tid, NULL, NULL) < 0)
			return fail_errno("pid %d: ptrace", t->tid);
	}
	err = take_signal(t, answered);
	return err == 0 && *answered ? read_answers(t, s) : err;
}
