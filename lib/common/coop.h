/*
 * coop: a process that is linked with libpms, asked for itself. Its threads stand in a signal handler and execute calls for us, as those of others do
 * under ptrace(2); nobody's permission is needed but that to send it a signal. The other side is lib/pms; what is said is in coop_abi.h.
 */
#ifndef PMS_COOP_H
#define PMS_COOP_H

#include <sys/types.h>

#include "arch.h"
#include "base.h"
#include "call.h"

struct coop;

/* Is this the name of a mapping (/proc/PID/maps) that only such a process has? Only one that answers somebody? */
bool coop_is_mark(const char *mapping);
bool coop_is_asked_mark(const char *mapping);

/*
 * Ask process pid, and wait until all of its threads stand. Times are those of now_ms(). Returns 0; -ETIMEDOUT where it has not answered at soon_ms, or one of its
 * threads cannot be stopped; -EBUSY where it has said that it must not be interrupted, and not come again by the deadline; -ESRCH where it has ended; or
 * another negative errno; all logged.
 */
int coop_ask(struct coop **coop, pid_t pid, int64_t soon_ms, int64_t deadline);

/* It goes on; with NULL nothing. coop is freed. */
void coop_go_on(struct coop *coop);

/* What there is of it: its memory (an fd that coop keeps, or -1: nobody but root should trust it), threads, the number of an open file that is only our connection, the note of struct coop_note. */
int coop_memory(const struct coop *coop);
/* This is its memory (borrowed). */
void coop_set_memory(struct coop *coop, int mem);
size_t coop_threads(const struct coop *coop);
int coop_own_fd(const struct coop *coop);
taddr coop_note(const struct coop *coop);

/* A thread as it will go on where it is made of an image. xstate: the caller frees. Returns 0, -ESRCH where there is none with this index, or a negative errno, logged. */
struct coop_standing {
	pid_t tid; /* as the program sees it */
	struct arch_regs regs;
	taddr inside; /* where it returns to from the handler */
	uint64_t sigmask, rseq, rseq_size, rseq_sig;
	unsigned char *xstate;
	size_t xstate_len;
};
int coop_standing(struct coop *coop, size_t thread, struct coop_standing *s);

/* Execute a script in a thread, as tracee_run_script(). Returns 0, or a negative errno, logged. */
int coop_run_script(struct coop *coop, size_t thread, struct script *s);

/* A pending signal of the set, of the thread or (of_thread false) of the process: kept there until it goes on. Returns its number and its siginfo; 0 where none is pending; or a negative errno, logged. */
int coop_take_signal(struct coop *coop, size_t thread, uint64_t set, bool of_thread, unsigned char info[128]);

/* The i-th of those that it held already when it was asked; *tid: whose, 0: the process's. Returns its number, 0 where there is none, or a negative errno, logged. */
int coop_held_signal(struct coop *coop, size_t i, pid_t *tid, unsigned char info[128]);

/* One of its open files as ours. Returns an fd, or a negative errno. Silent. */
int coop_get_fd(struct coop *coop, int fd);

/* It stands on when we are gone (true), until coop_ask() and this with false. Did it stand so when it was asked? Returns 0, or a negative errno, logged. */
int coop_park(struct coop *coop, bool parked);
bool coop_was_parked(const struct coop *coop);
/* Is this the name of a mapping that is there as long as it is parked? */
bool coop_is_parked_mark(const char *mapping);

/* When we are gone: it ends (true), or goes on. Returns 0, or a negative errno, logged. */
int coop_decide(struct coop *coop, bool ends);

#endif
