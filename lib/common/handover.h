/*
 * handover: what ckpt and restart leave to the rexec-sys that each executes in its own place, with the processes that it traces: a tracer stays one
 * across execve(2). As a record in a memory file.
 */
#ifndef PMS_HANDOVER_H
#define PMS_HANDOVER_H

#include "base.h"

struct handover_thread {
	int64_t tid;      /* as we see it */
	int64_t number;   /* on the wire: as the program sees it */
};

struct handover_fd {
	int64_t fd;
	bool epoll;
};

struct handover_process {
	int64_t pid;             /* as we see it */
	char *program;           /* its path; away */
	struct handover_thread *threads; /* the leader first */
	size_t nthreads;
	struct handover_fd *fds; /* away: what it has open at home */
	size_t nfds;
	int64_t listener;        /* away: of its filter, a number of ours; -1: none */
	int64_t *pending;        /* home: signals that the image has, each as often as it is pending */
	size_t npending;
};

struct handover {
	char *id;          /* of the image */
	char *address;
	char *key;         /* of tcp: a file, or NULL */
	int64_t listen;    /* home: a socket of ours that listens there; -1: none */
	int64_t in, out;   /* a connection to the other side that is there already; -1: none */
	int64_t image;     /* home: where the image went; away: where it came from, kept open until the copy has begun; -1: nowhere */
	int64_t report;    /* where somebody waits to be told that it has begun; -1: nobody does */
	bool detached;     /* away: nobody waits for it */
	struct handover_process *processes; /* parents before their children */
	size_t nprocesses;
};

extern const struct record record_handover;

/*
 * Execute `rexec-sys COMMAND` with it; the fds that it names stay open, others than stdio do not. Returns only where that fails: a negative errno, logged.
 */
int handover_exec(const struct handover *h, const char *command);
/* The same of any program and record; these n fds (-1: none) stay open. */
struct record;
int handover_become(const char *program, const char *command, const struct record *rec, const void *st, const int64_t *fds, size_t n);
/* Release the lists alone: their strings are borrowed. */
void handover_drop(struct handover *h);
/* Read it from fd, which is closed; record_free() releases it. Returns 0, or a negative errno, logged. */
int handover_read(struct handover *h, int fd);
int handover_read_as(const struct record *rec, void *st, int fd);

#endif
