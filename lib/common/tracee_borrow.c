/*
 * Calls in a thread that is not ours, such that it survives us at any instant: the call's
 * `ret` leads into a signal frame with everything as it was.
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fault.h"
#include "io.h"
#include "log.h"
#include "proc.h"
#include "tracee.h"

enum { CALL_TIMEOUT_MS = 10000 };

static taddr
find_bytes(const unsigned char *text, size_t len, taddr base, const unsigned char *bytes, size_t n)
{
	const unsigned char *p = memmem(text, len, bytes, n);

	return p == NULL ? 0 : base + (taddr)(p - text);
}

/* The vDSO and libc are where to find them; the program itself if it is static. */
void
tracee_find_gadgets(int mem, const void *maps_, taddr *gadget, taddr *restorer)
{
	const struct proc_maps *maps = maps_;
	enum { PIECE = 1 << 20, OVERLAP = 16 };
	unsigned char *text = malloc(PIECE);

	*gadget = *restorer = 0;
	for (size_t i = maps->n; text != NULL && i-- > 0 && (*gadget == 0 || *restorer == 0);) {
		const struct proc_map *m = &maps->map[i];

		if ((m->prot & (PROT_READ | PROT_EXEC)) != (PROT_READ | PROT_EXEC) ||
		    m->start >= ARCH_USER_END)
			continue;
		for (taddr at = m->start; at < m->end && (*gadget == 0 || *restorer == 0);
		     at += PIECE - OVERLAP) {
			size_t n = min_u64(PIECE, m->end - at);

			if (mem_read(mem, at, text, n) < 0)
				break;
			if (*gadget == 0)
				*gadget = find_bytes(text, n, at, arch_syscall_ret,
				    ARCH_SYSCALL_RET_BYTES);
			if (*restorer == 0)
				*restorer = find_bytes(text, n, at, arch_restorer, ARCH_RESTORER_BYTES);
		}
	}
	free(text);
}

/* As long as the call may block, and nobody has enough of it. */
static int
wait_patiently(const struct tracee *t, int *status)
{
	int64_t end = now_ms() + t->call_ms, now;
	int err = -ETIMEDOUT;

	while (err == -ETIMEDOUT && (now = now_ms()) < end && (t->cancelled == NULL || !t->cancelled()))
		err = tracee_wait(t->tid, now + 50 < end ? now + 50 : end, status);
	return err;
}

/* Continue from one stop to the next syscall-stop, holding back what else may come. */
static int
to_syscall_stop(struct tracee *t)
{
	for (;;) {
		int status, err;

		if (ptrace(PTRACE_SYSCALL, t->tid, NULL, NULL) < 0)
			return fail_errno("pid %d: ptrace", t->tid);
		err = t->call_ms > 0 ? wait_patiently(t, &status) : tracee_wait(t->tid, now_ms() + CALL_TIMEOUT_MS, &status);
		/* It ends as for a signal: that it was stopped is told afterwards. */
		if (err == -ETIMEDOUT && t->call_ms > 0 && ptrace(PTRACE_INTERRUPT, t->tid, NULL, NULL) == 0)
			err = tracee_wait(t->tid, now_ms() + CALL_TIMEOUT_MS, &status);
		if (err < 0)
			return fail(-err, "pid %d: a call in it does not return: %s", t->tid,
			    strerror(-err));
		if (!WIFSTOPPED(status)) {
			t->dead = true;
			t->seized = false;
			return fail(ESRCH, "pid %d: ended while it was being looked at", t->tid);
		}
		if (WSTOPSIG(status) == (SIGTRAP | 0x80))
			return 0;
		/* All signals but SIGSTOP are blocked; that one is given back at the end. */
		if (status >> 16 == 0 && WSTOPSIG(status) == SIGSTOP)
			t->stop_again = true;
	}
}

static bool
never(long nr)
{
	(void)nr;
	return false;
}

int
tracee_call_at(struct tracee *t, const struct arch_regs *regs, taddr ip,
    const struct arch_call *call, int64_t *result)
{
	struct arch_regs r = *regs;
	int err;

	t->looks = false;
	arch_set_call(&r, ip, call);
	err = tracee_set_regs(t->tid, &r);
	if (err == 0)
		err = to_syscall_stop(t);
	fault(FAULT_call_entered);
	if (err == 0)
		err = to_syscall_stop(t);
	if (err == 0)
		err = tracee_get_regs(t->tid, &r);
	if (err == 0)
		*result = arch_restart_kind(&r, never) != RESTART_NONE ? -EINTR : (int64_t)arch_result(&r);
	return err;
}

/* Frame and scratch memory below the stack; what was there is kept. */
static int
put_frame(struct tracee *t, taddr restorer, taddr floor)
{
	taddr below = t->regs.rsp - ARCH_RED_ZONE;
	struct arch_regs back = t->regs;
	unsigned char *frame = NULL;
	size_t n = 0;
	int err;

	t->frame_at = 0;
	if (t->restarted > 0)
		back.orig_rax = (uint64_t)t->restarted;
	if (restorer != 0) {
		n = arch_sigframe(&back, t->sigmask, t->xstate, t->xstate_len, restorer, below,
		    &frame, &t->frame_at);
		if (n == 0)
			return -ENOMEM;
		if (t->frame_at >= floor + TRACEE_SCRATCH + 64) {
			below = t->frame_at;
		} else { /* a stack that small: do without, and the window stays open */
			free(frame);
			frame = NULL;
			n = 0;
			t->frame_at = 0;
		}
	}
	if (floor == 0 || below < floor + TRACEE_SCRATCH + 64)
		return -ENOTSUP;
	t->scratch = (below - TRACEE_SCRATCH) & ~63ULL;
	t->saved_len = (size_t)(t->regs.rsp - ARCH_RED_ZONE - t->scratch);
	t->saved = malloc(t->saved_len);
	err = t->saved == NULL ? -ENOMEM : mem_read(t->mem, t->scratch, t->saved, t->saved_len);
	if (err == 0 && n > 0)
		err = mem_write(t->mem, t->frame_at, frame, n);
	free(frame);
	return err;
}

/* Should we die, it does what is left to do for us, and takes the frame. */
int
tracee_rest(struct tracee *t)
{
	const struct arch_call nothing = {.nr = -1}, unmap = {SYS_munmap, {t->page, PAGE_BYTES}};
	struct arch_regs regs = t->regs;

	regs.rsp = t->frame_at != 0 ? t->frame_at : t->regs.rsp;
	arch_set_call(&regs, t->gadget, t->page != 0 && t->frame_at != 0 ? &unmap : &nothing);
	return tracee_set_regs(t->tid, &regs);
}

int
tracee_borrow(struct tracee *t, taddr gadget, taddr restorer, taddr floor)
{
	int err;

	if (gadget == 0)
		return fail(ENOTSUP, "pid %d: its program has no system call instruction to borrow",
		    t->tid);
	t->gadget = gadget;
	err = put_frame(t, restorer, floor);
	if (err < 0) {
		err = fail(-err, "pid %d: no room below its stack: %s", t->tid, strerror(-err));
		goto fail;
	}
	fault(FAULT_framed);
	/* From here on the frame is the way back: registers first, the mask is in it. */
	t->borrowed = true;
	t->looks = false;
	err = tracee_rest(t);
	fault(FAULT_borrowed);
	if (err == 0)
		err = tracee_set_sigmask(t->tid, ALL_SIGNALS);
	if (err < 0)
		tracee_give_back(t);
	return err;
fail:
	free(t->saved);
	t->saved = NULL;
	return err;
}

int
tracee_call(struct tracee *t, const struct arch_call *call, int64_t *result)
{
	struct arch_regs regs = t->regs;

	if (t->frame_at != 0)
		regs.rsp = t->frame_at;
	return tracee_call_at(t, &regs, t->gadget, call, result);
}

int
tracee_run_script(struct tracee *t, struct script *s)
{
	int err;

	if (t->coop != NULL)
		return coop_run_script(t->coop, t->coop_index, s);
	if (s->failed || s->data.len > TRACEE_SCRATCH)
		return fail(ENOMEM, "pid %d: a script is too long", t->tid);
	err = mem_write(t->mem, t->scratch, s->data.data, s->data.len);
	if (err < 0)
		return fail(-err, "pid %d: write below its stack: %s", t->tid, strerror(-err));
	for (size_t i = 0; i < s->ncalls; i++) {
		struct script_call *c = &s->calls[i];
		struct arch_call call = c->call;

		for (unsigned a = 0; a < 6; a++)
			if (c->data_args & 1u << a)
				call.arg[a] += t->scratch;
		err = tracee_call(t, &call, &c->result);
		if (err < 0)
			return err;
		if (c->result < 0 && c->result >= -4095 && !c->may_fail)
			break;
	}
	err = mem_read(t->mem, t->scratch, s->data.data, s->data.len);
	if (err < 0)
		return fail(-err, "pid %d: read below its stack: %s", t->tid, strerror(-err));
	return 0;
}

/*
 * The mask first, while the frame still is the way back, then the registers. Then through an
 * interrupt-stop, so that the kernel looks again at how the original call was interrupted,
 * unless it does so on the way out of the stop where the thread is.
 */
int
tracee_give_back(struct tracee *t)
{
	int stop_signal = t->stop_signal, err, ignored;

	if (!t->borrowed || t->dead)
		return 0;
	err = tracee_set_sigmask(t->tid, t->sigmask);
	fault(FAULT_mask_back);
	ignored = tracee_set_regs(t->tid, &t->regs);
	err = err < 0 ? err : ignored;
	t->borrowed = false;
	if (err == 0 && !t->looks)
		err = tracee_nudge(t, now_ms() + CALL_TIMEOUT_MS);
	t->stop_signal = stop_signal;
	if (t->stop_again)
		syscall(SYS_tgkill, t->pid, t->tid, SIGSTOP);
	t->stop_again = false;
	if (t->saved != NULL && err == 0)
		err = mem_write(t->mem, t->scratch, t->saved, t->saved_len);
	free(t->saved);
	t->saved = NULL;
	return err;
}

void
tracee_detach(struct tracee *t)
{
	if (t->seized && !t->dead) {
		int status, sig = 0;

		tracee_give_back(t);
		/* Never waited for: it may be about to take a signal, which it shall. */
		if (t->xstate == NULL && waitpid(t->tid, &status, __WALL | WNOHANG) == t->tid &&
		    WIFSTOPPED(status) && status >> 16 == 0)
			sig = WSTOPSIG(status);
		ptrace(PTRACE_DETACH, t->tid, NULL, (long)sig);
	}
	t->seized = false;
	free(t->xstate);
	free(t->saved);
	t->xstate = t->saved = NULL;
}
