/*
 * tracee: one thread under ptrace(2). Stops, registers, memory, and calls in it.
 *
 * Two kinds of owner. ckpt borrows: tracee_seize() without EXITKILL, tracee_borrow(), calls,
 * tracee_give_back(), tracee_detach(); whenever ckpt dies in between, the thread finishes
 * the call at hand, returns through a signal frame below its stack, and goes on where it
 * was. restart builds: PTRACE_O_EXITKILL, and the calls need no frame.
 *
 * All functions are for the thread that seized.
 */
#ifndef PMS_TRACEE_H
#define PMS_TRACEE_H

#include <sys/types.h>

#include "arch.h"
#include "base.h"
#include "call.h"
#include "coop.h"
#include "io.h"

struct tracee {
	pid_t pid, tid; /* as this process sees them */
	pid_t inner_tid; /* as the program does; set by whoever wants it */
	int mem;        /* fd of /proc/PID/mem; borrowed */
	struct coop *coop;   /* it is asked, and not under ptrace; borrowed */
	size_t coop_index;   /* its place there */
	size_t slot;         /* that of one which is built without ptrace(2) (untraced.h) */
	taddr inside;        /* where it returns to from the handler in which it is asked */
	uint64_t rseq, rseq_size, rseq_sig; /* as it says itself, where it is asked */
	bool seized, borrowed, dead;
	bool stop_again;      /* a SIGSTOP was swallowed while borrowed */
	bool looks;           /* on its way out of this stop the kernel looks at signals and restarts */
	int stop_signal;      /* the group-stop it was in when it was seized, or 0 */
	struct arch_regs regs; /* at the stop, as the thread is to go on */
	int64_t call_ms; /* a call that takes longer is interrupted: EINTR; 0: none may take long, it fails */
	bool (*cancelled)(void); /* asked meanwhile, where call_ms is set: interrupt it now? Or NULL */
	long restarted; /* the call that restart_syscall(2) goes on with, 0, or -1 if unknown */
	uint64_t sigmask;
	unsigned char *xstate; /* owned */
	size_t xstate_len;
	taddr gadget;        /* a `syscall; ret` (or only `syscall`) of its own */
	taddr frame_at;      /* the signal frame, 0 without one */
	taddr scratch;       /* memory below it that calls may use ... */
	unsigned char *saved; /* ... and what was there, from scratch up; owned */
	size_t saved_len;
	taddr page;           /* of its own for tracee_ask(), taken back on its way if we die; 0: none */
	int sig;              /* by which it stops then: one that the process ignores without having asked for it (SIG_DFL) */
};

#define TRACEE_SCRATCH 1024
#define ALL_SIGNALS (~0ULL) /* as a mask */

/* Wait for events of tracees with a deadline: SIGCHLD must be blocked. */

/*
 * PTRACE_SEIZE with options, then interrupt; does not wait. ESRCH where it is gone or a
 * zombie. Returns 0, or a negative errno. Silent but for what is not EPERM or ESRCH.
 */
int tracee_seize(struct tracee *t, pid_t pid, pid_t tid, unsigned long options);

/*
 * Wait until it is in its interrupt-stop, passing on signals that are delivered meanwhile, and read
 * registers, mask and extended state. Returns 0, -ETIMEDOUT at the deadline (now_ms()),
 * -ESRCH where it died, or a negative errno, logged.
 */
int tracee_wait_interrupt(struct tracee *t, int64_t deadline_ms);

/* Let it run for some 50 us and stop it again: it moves out of a place where it stays shortly. */
int tracee_run_a_little(struct tracee *t, int64_t deadline_ms);

/* From any stop to an interrupt-stop without running: the kernel looks at signals and restarts. */
int tracee_nudge(struct tracee *t, int64_t deadline_ms);

/*
 * Prepare for calls: gadget as found by tracee_find_gadgets(), restorer 0 for a thread that
 * shall have no frame, floor where the memory that its stack pointer points into begins (a
 * stack without room for the frame has none). Returns 0, -ENOTSUP without room at all, or a negative errno, logged; the thread is then as it was.
 */
int tracee_borrow(struct tracee *t, taddr gadget, taddr restorer, taddr floor);

/* Execute one call. *result as the kernel gives it. Returns 0, or a negative errno, logged. */
int tracee_call(struct tracee *t, const struct arch_call *call, int64_t *result);

/*
 * Execute a script: its data goes to the scratch memory (at most TRACEE_SCRATCH bytes) and
 * back. Stops at the first error that is not allowed. Returns 0, or a negative errno (then
 * logged; a call's own error is the script's to tell).
 */
int tracee_run_script(struct tracee *t, struct script *s);

/* Back to where it waits for calls, whatever way was prepared for the last one. Returns 0, or a negative errno, logged. */
int tracee_rest(struct tracee *t);

/*
 * The same in many threads at once: have t begin, and let it answer. The code is arch_ask, at the beginning of t->page, which was set when t
 * was borrowed or before tracee_rest(), and it has a frame. All calls are executed, whatever they return.
 *
 * tracee_answer() leaves t as tracee_rest() does, and its page alone, whatever it returns. *answered is false, and the script as it was, where t was sent that signal by
 * somebody else: nothing is lost, and t can be asked alone. Both return 0, or a negative errno, logged.
 */
int tracee_ask(struct tracee *t, const struct script *s);
int tracee_answer(struct tracee *t, struct script *s, bool *answered);

/* Registers, mask and memory as they were, in an interrupt-stop. Returns 0, or a negative errno. */
int tracee_give_back(struct tracee *t);

/* Give back, detach, and free what t owns. Silent where the thread is gone. */
void tracee_detach(struct tracee *t);

/*
 * After a SIGKILL to the process: take the end of each thread, the leader's last; its parent is
 * told only then. Waits for ever, but nothing can keep a killed thread.
 */
void tracee_reap(struct tracee *threads, size_t n);

/*
 * A copy of its process as fork(2) makes it, which is init's child, has no open file, and is stopped under ptrace(2) with EXITKILL: it never runs the
 * program. code: where arch_copy is in the process; sp: where its `ret` leads to. It is borrowed. Silent: returns the PID of the copy, or
 * a negative errno; -ENOTSUP where the kernel lacks close_range(2); -ESRCH where the thread has ended.
 */
pid_t tracee_copy(struct tracee *t, taddr code, taddr sp);
/* The end of such a copy: SIGKILL, and its end is waited for. */
void tracee_end_copy(pid_t copy);

/* Where the thread's own code has what a call needs; 0 where it has none. */
void tracee_find_gadgets(int mem, const void *maps, taddr *gadget, taddr *restorer);

/* Register sets. Return 0, or a negative errno, logged. */
int tracee_get_regs(pid_t tid, struct arch_regs *regs);
int tracee_set_regs(pid_t tid, const struct arch_regs *regs);
int tracee_get_xstate(pid_t tid, unsigned char **xstate, size_t *len);
int tracee_set_xstate(pid_t tid, const unsigned char *xstate, size_t len);
int tracee_get_sigmask(pid_t tid, uint64_t *mask);
int tracee_set_sigmask(pid_t tid, uint64_t mask);

/* Does what a thread executes raise this signal itself when it goes wrong? */
bool tracee_is_fault(int sig);

/* Next event of tid, or -ETIMEDOUT. Returns 0 and the status of waitpid(2). */
int tracee_wait(pid_t tid, int64_t deadline_ms, int *status);

/* Run call at ip with regs as the rest of the registers, between two syscall-stops. */
int tracee_call_at(struct tracee *t, const struct arch_regs *regs, taddr ip,
    const struct arch_call *call, int64_t *result);

#endif
