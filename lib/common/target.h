/*
 * target: one process that is not ours, from the outside: finding it, stopping its threads, letting them go again, ending it.
 */
#ifndef PMS_TARGET_H
#define PMS_TARGET_H

#include "proc.h"
#include "tracee.h"

/* The process, from the outside. */
struct target {
	pid_t pid; /* as we see it */
	int pidfd, proc, mem;
	struct tracee *threads; /* the leader first */
	size_t nthreads;
	struct proc_maps maps;
	struct proc_maps ahead; /* a moment before it was stopped, with their flags */
	bool assumed;           /* the flags in maps are from there: proc_maps_prove() */
	struct proc_status status;
	struct proc_stat stat;
	taddr gadget, restorer;
	bool may_ask;   /* one that can be asked (coop.h) is asked: set by the caller, after target_open() */
	struct coop *coop; /* it has been; or NULL: its threads are under ptrace */
	bool suspended; /* its seccomp filters, as long as it is traced */
};

/* None yet: target_close() may be called. */
#define TARGET_NONE {.pidfd = -1, .proc = -1, .mem = -1}

/* Returns 0, or a negative errno, logged; ESRCH, EPERM, EBUSY tell which exit status. */
int target_open(struct target *t, pid_t pid);
/*
 * What calls in it will need is looked for while it still runs, as there is a lot to look through. flags: those of its mappings, too, for a caller who is
 * going to prove them.
 */
void target_look_ahead(struct target *t, bool flags);
/*
 * Stop every thread. On failure everything runs again. Where it is asked, its threads stand in a handler, and what is done to others by ptrace(2) is
 * done by what they execute: target_borrow() and so on do nothing, scripts run as ever.
 */
int target_freeze(struct target *t, int64_t deadline_ms, bool eintr);
/* Stop this thread alone, which becomes the only one that is known. */
int target_freeze_one(struct target *t, pid_t tid, int64_t deadline_ms);
/* tracee_borrow() with what is known of the process. */
int target_borrow(const struct target *t, struct tracee *th);
/* Every thread gets back what is its own; then it may be let go. */
void target_give_back(struct target *t);
void target_detach(struct target *t);
void target_close(struct target *t);
/* Its seccomp filters have no effect until it is let go. Silent: -EPERM without CAP_SYS_ADMIN. */
int target_suspend_seccomp(struct target *t);
/* PTRACE_O_EXITKILL on every thread, or off again. */
int target_set_exitkill(struct target *t, bool on);
/* SIGKILL; then wait until it is dead. */
int target_kill(struct target *t);
void target_reap(struct target *t);

/* Seccomp filters that are on us: those of a whole container are, and are not a program's own. */
unsigned target_own_filters(void);
/*
 * target_asked.c, for target_freeze(). Can it be asked? 1; 0; or -EBUSY, logged: it answers somebody else. target_mark() looks only whether it is one of these. Then it
 * is: returns 0, and it stands, or a negative errno, logged; with *traceable it may be stopped otherwise, and then why is in log_last_hushed().
 */
int target_can_be_asked(const struct target *t);
int target_mark(const struct target *t);
int target_ask(struct target *t, int64_t deadline_ms, bool *traceable);

/* Is this address in what is the kernel's, or stands for it? Its memory must be open. */
bool target_in_vdso(const struct target *t, const struct proc_maps *maps, taddr ip);

/* Number of the call that goes on as restart_syscall(2); 0 if none does, -1 if unknown. */
long restarted_call(const struct tracee *th);
/* May this call take the place of the one that goes on so, if it is interrupted? */
bool replaces_restarted(const struct arch_call *call);

#endif
