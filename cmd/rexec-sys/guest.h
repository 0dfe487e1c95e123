/*
 * guest: a thread of ours in a running process that executes calls there. guest.c says how.
 */
#ifndef GUEST_H
#define GUEST_H

#include "rexec.h"

struct guest {
	pid_t pid, tid;
	int fd, theirs; /* our end of the way to it, and its */
	int proc, mem;  /* /proc/PID, and its memory as it was then: that of no other program */
	taddr room;     /* its code, its block and its data */
};

/*
 * Make it: the process's first thread is stopped for a moment. For a process without seccomp filters. Returns 0, or a negative errno, logged
 * where it is not the answer of a call.
 */
int guest_begin(struct guest *g, pid_t pid);
/* Execute it there. A set *cancelled and a signal end a wait: EINTR. As the kernel returns it; -ESRCH: the process has ended. */
int64_t guest_call(struct guest *g, struct calldata *c, const volatile int *cancelled);
/* Nothing of it is left. */
void guest_end(struct guest *g);

#endif
