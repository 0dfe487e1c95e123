/*
 * rexec-sys home: processes that have left their files here. ckpt -s has stopped them and has become us; their copies run elsewhere. Each of their
 * threads executes the calls of its copy: we are their tracer, and give each a call at a time. Signals that reach them are sent after the copies, and how
 * a copy ends or is stopped is done to its original, so that whoever waits for that one learns it.
 *
 *   home.c          waits for the copy, takes over, the end
 *   home_caller.c   what the copy's supervisor says
 *   home_threads.c  threads that execute calls
 *   home_events.c   their stops and signals
 *
 * Up to BEGUN nothing of the originals is changed: if anything fails, or we die, they go on. From then on they end with us.
 */
#ifndef HOME_H
#define HOME_H

#include <signal.h>
#include <sys/ptrace.h>

#include "calldata.h"
#include "handover.h"
#include "link.h"
#include "tracee.h"

struct home_process {
	pid_t pid, inner;      /* as we and as it itself know it */
	bool dead;             /* freed by home_sweep() */
	int mem, proc;         /* its memory, and its /proc/PID */
	taddr code;            /* arch_executor */
	size_t nthreads;
	bool first;            /* how it ends is our own end */
	bool stopped;          /* it is in a group-stop */
	int64_t ending_ms;     /* since when it is to end, or 0 */
	int exit_status;       /* with this; -1: otherwise, or not */
	bool resume;           /* its copy runs: no stop that is under way is to last */
	uint32_t number;       /* of a thread that its copy may still have */
	int bring;             /* a signal of ours, that is to do what it does: 0: none */
	int stop;              /* the same, that is to stop it */
	bool tell_stop;        /* the copy has asked whether stop stops it */
	uint64_t blocked;      /* signals that must not keep its next call from being made */
	unsigned known[65];    /* signals that the image has, too, and that are pending here: how often */
};

enum home_state {
	HOME_READY,   /* it stands, and may be given a call */
	HOME_RESTING, /* in pause(2), where signals reach it */
	HOME_BUSY,    /* with a call of its copy */
	HOME_OWN,     /* with one of ours */
	HOME_LEAVING, /* it ends */
};

struct home_thread {
	pid_t tid;
	uint32_t number;       /* as the copy is known */
	struct home_process *process;
	enum home_state state;
	struct arch_regs regs; /* those of its program, until it is taken over; then what any call begins with */
	uint64_t mask;
	bool masked;           /* for this call */
	bool taken;            /* it is an executor: its registers are ours */
	bool dead;             /* freed by home_sweep() */
	bool grouped;          /* it stands in a group-stop */
	bool forced;           /* ... but is to execute a call all the same */
	bool wanted;           /* it is to come out of pause(2) */
	bool cancel;           /* its call is to return */
	bool gone;             /* its copy is */
	bool waiting;          /* it has a call that has not begun, as it is stopped */
	int64_t result;        /* of the last call */
	int64_t ready_ms;      /* since when it is HOME_READY */
	pid_t born;            /* whom its last call has made */
	struct calldata call;
	uint32_t id;
	taddr room, data;      /* its own, and where the data of this call is */
	size_t data_len;
};

struct home {
	const struct handover *handover;
	struct link link;
	int signals;
	struct home_process **processes;
	size_t nprocesses;
	struct home_thread **threads;
	size_t nthreads;
	bool begun;    /* the originals are ours */
	bool over;     /* the first has ended */
	bool just_called;
	bool missed;   /* there may be events that no signal tells of any more */
	pid_t unborn;  /* whose first stop has been told of before its birth was, or 0 */
};

/* fd: struct handover. Returns 0, or a negative errno, logged. */
int home(int fd);

/* home_threads.c */
struct home_process *home_add_process(struct home *h, pid_t pid);
struct home_thread *home_add_thread(struct home *h, struct home_process *p, pid_t tid, uint32_t number);
struct home_thread *home_find(const struct home *h, uint32_t number);
/* From its program's registers to those of an executor; the memory of its process has the code. */
int home_take_thread(struct home_thread *t);
/* What has ended is freed: none of it may be in use. */
void home_sweep(struct home *h);
/* What has become of it, as waitpid(2) says. */
void home_event(struct home *h, struct home_thread *t, int status);
void home_events(struct home *h);
/* Out of pause(2), if it is there. Returns whether it stands ready. */
bool home_bring(struct home *h, struct home_thread *t);
/* The same also out of a group-stop. */
bool home_force(struct home *h, struct home_thread *t);
void home_continue(const struct home *h, struct home_process *p);
/* The signal p->stop stops it, unless it is to go on by then. */
void home_stop(struct home_process *p);
/* Signals are to reach it. */
void home_rest(struct home_thread *t);
/* One of ours, which does not wait for others. As the kernel returns it; -ESRCH where it is gone. */
int64_t home_own(struct home *h, struct home_thread *t, long nr, const uint64_t arg[6]);
#define HOME_OWN_CALL(h, t, nr, ...) home_own(h, t, nr, (const uint64_t[6]){__VA_ARGS__})
/* t->call, of the copy: begin it, or when it can. */
void home_begin(struct home *h, struct home_thread *t);
void home_cancel(struct home_thread *t);
/* It ends, as its copy has; its whole process does. */
void home_leave(struct home *h, struct home_thread *t);
void home_exit(struct home_thread *t, int status);

/* It has ended, in this way. */
void home_thread_over(struct home *h, struct home_thread *t, int status);
struct home_thread *home_find_tid(const struct home *h, pid_t tid);
/* ptrace(2), for one that may have been killed: then its end comes. */
void home_go(struct home_thread *t, enum __ptrace_request how, int sig);
/* Its call has returned this; what it is to do next, where it stands ready. */
void home_call_done(struct home *h, struct home_thread *t, int64_t result);
void home_next(struct home *h, struct home_thread *t);

/* home_events.c. how: to its process (0), to it (1), or that it stops its process, as was asked (2) */
void home_put_signal(struct home *h, uint32_t number, uint32_t how, const siginfo_t *info);
/* What is sent where a stop is to be made of it. */
enum { HOME_VEHICLE = 64 };

/* home_caller.c */
int home_received(struct home *h, const struct msg_header *m, const unsigned char *body);

#endif
