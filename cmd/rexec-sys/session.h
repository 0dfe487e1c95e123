/*
 * The side where calls are executed, for one caller: a process of its own with his files in it. Its first thread reads what comes, and
 * executes what does not wait itself; an executor thread for each of his threads does the rest. Each of his processes is a table of
 * files and a working directory (unshare(2)), shared by the executors of its threads.
 *
 *   serve.c     listens, and makes a process for each caller
 *   session.c   what comes, and what is done with it
 *   executor.c  the threads
 *   guest.c     a thread in a process that is served
 *   tame.c      what a call must not ask of us
 */
#ifndef SESSION_H
#define SESSION_H

#include <pthread.h>
#include <semaphore.h>

#include "calldata.h"
#include "link.h"

/* The kernel keeps a table as long as the highest fd for each process; ours are the highest. */
enum { SESSION_THREADS_MAX = 4096, SESSION_FILES_MAX = 4096 };

struct session {
	struct link *link; /* borrowed */
	int floor;         /* fds from here on are ours, and not for callers */
	int proc;          /* /proc, whatever becomes of the root */
	pid_t pid;         /* calls are executed in this process; 0: in this one */
	struct executor **executors;
	size_t nexecutors;
};

/* What one thread of the caller has executed here. */
struct executor {
	struct session *session;
	uint32_t thread;         /* as the caller numbers them */
	struct executor *first;  /* of its process */
	bool with_reader;        /* it has the files of the thread that reads */
	bool running;            /* there is a pthread for it */
	bool failed;             /* there cannot be one */
	pthread_t pthread;
	pid_t tid;
	sem_t go, done;
	/* What it is to do; ours until go, its until done or, for a call, until its result is sent. */
	enum { ORDER_CALL, ORDER_CHILD, ORDER_EXECUTED, ORDER_END } order;
	struct calldata call;
	uint32_t id;             /* of the call */
	struct guest *guest;     /* who executes it in another process; owned */
	struct executor *child;  /* whom ORDER_CHILD makes */
	const uint32_t *keep;    /* ORDER_CHILD: fds that it has; borrowed until done */
	size_t nkeep;
	pthread_mutex_t lock;    /* of busy */
	bool busy;               /* with the call `id` */
	volatile int cancelled;
	volatile bool ending;    /* when it has come back from what it does */
};

/* Executes for a caller until he goes. pid: in that process, or 0. Returns 0, or a negative errno, logged. */
int session_run(struct link *link, pid_t pid);

/* What is to be sent: with room for a header, and what is behind it, of the call's data. */
struct answer {
	struct buf head;
	const void *tail;
	size_t tail_len;
};
/* Execute it here and now; send what came of it. */
void session_execute(struct session *s, struct guest **guest, struct calldata *c, const volatile int *cancelled, struct answer *a);
void session_answer(struct session *s, uint32_t id, struct answer *a);

/* tame.c: an option of sockets that does not exist for callers; what else the call must not ask of us is taken out of it. Body of FACTS. */
bool call_is_strange(const struct calldata *c);
void call_tame(struct calldata *c);
void put_facts(struct buf *out, const uint32_t uid[3], const uint32_t gid[3], const uint32_t *groups, size_t ngroups);

int executors_begin(void);
/* What his thread does elsewhere: give it the call (taken); end a call that waits; follow fork, exec, the end of it. */
int executor_call(struct executor *e, struct calldata *c, uint32_t id);
void executor_cancel(struct executor *e, uint32_t id);
int executor_start(struct executor *e, const struct executor *parent, const uint32_t *keep, size_t nkeep);
void executor_executed(struct executor *e);
void executor_end(struct executor *e);
/* Close fds of the calling thread's table: those that exec closes, or those that are not in keep[]. */
void close_on_exec(const struct session *s);
void close_others(const struct session *s, const uint32_t *keep, size_t n);

#endif
