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
	struct proc_status status;
	struct proc_stat stat;
	taddr gadget, restorer;
	bool suspended; /* its seccomp filters, as long as it is traced */
};

/* None yet: target_close() may be called. */
#define TARGET_NONE {.pidfd = -1, .proc = -1, .mem = -1}

/* Returns 0, or a negative errno, logged; ESRCH, EPERM, EBUSY tell which exit status. */
int target_open(struct target *t, pid_t pid);
/* Stop every thread. On failure everything runs again. */
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

/* Number of the call that goes on as restart_syscall(2); 0 if none does, -1 if unknown. */
long restarted_call(const struct tracee *th);
/* May this call take the place of the one that goes on so, if it is interrupted? */
bool replaces_restarted(const struct arch_call *call);

#endif
