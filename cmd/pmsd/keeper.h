/*
 * keeper: the process that looks after one job: its parent, who keeps its output and its exit status, moves it, and survives the daemon. keeper.c has its loop,
 * adopt.c keepers of what others have started, spawn.c starts what it looks after, move.c sends it away, arrive.c is the other end of that.
 */
#ifndef KEEPER_H
#define KEEPER_H

#include "pmsd.h"

enum { SAID_MAX = 512 };

struct keeper;

/* A program that works for the keeper, one at a time. */
struct task {
	pid_t pid;          /* 0: none */
	int err;            /* what it says; -1 */
	char said[SAID_MAX + 1];
	size_t nsaid;
	void (*then)(struct keeper *k, int status); /* status: as a shell tells it */
};

struct keeper {
	struct job_record r;
	int lock;             /* held as long as we are */
	int output, log;      /* what the job says: a pipe, -1 when it has ended; the file */
	pid_t child;          /* the job, or the restart whose job it is; 0: has ended */
	int child_status;     /* as a shell tells it */
	int status_in;        /* where restart says that it runs; -1 */
	int report;           /* where somebody waits to hear that it runs, and that the daemon knows it; -1 */
	int64_t runs_ms;      /* since when it runs here; 0: not yet */
	bool known;
	struct task task;
	/* The move that is under way. */
	char tag[24], host[HOST_MAX];
	char *address;
	off_t sent;           /* of the output */
	bool was_paused, moved, unsure; /* before; it runs there; it may run there */
	bool foreign;         /* its first keeper was killed, or it has come by itself: it is nobody's child that we could wait for */
	int pidfd;            /* of one that has come by itself, or -1 */
	bool arrives;         /* it has come from elsewhere, and has not run here yet */
	char *image;          /* what it is restarted from, or NULL */
	char resume_tag[24];
	int64_t ask_ms;       /* when to ask there again */
	/* The daemon. */
	int daemon, signals;
	struct buf in, out;
	int64_t try_ms;
	uint64_t told, noted; /* states that it has been told, and has written down */
};

/* --- keeper.c */

/* Until it is over. */
int keeper_loop(struct keeper *k);
/* --- adopt.c */

/* After another keeper, who was killed while it moved to host, or when it was saved. Returns the exit status. */
int keeper_again(const char *id, const char *host, const char *address);
/* Of a process that has registered by itself (libpms). Returns the exit status. */
int keeper_adopt(const char *id, pid_t pid);
/* How such a process has ended, that is somebody else's child: as a shell tells it; 255 where the kernel does not say (before Linux 6.15, when its parent has asked). */
int keeper_stranger_status(const struct keeper *k);

/* --- keeper.c */
/* Another state: on the disk, and told to the daemon. */
void keeper_state(struct keeper *k, const char *state, const char *place);
/* The answer to what was ordered with this tag; why: NULL where it is done. */
void keeper_answer(struct keeper *k, const char *tag, const char *why);
/* Run `sh -c COMMAND` beside all else; its standard input is in (taken; -1: none). Returns 0, or a negative errno, logged. */
int keeper_task(struct keeper *k, const char *command, int in, void (*then)(struct keeper *k, int status));
/* Read what the job has said, and is in the pipe. */
void keeper_drain(struct keeper *k);
int status_of(int wait_status);
/* A file with the state of a job, beside its output: read back. Returns 0, or a negative errno. Silent. */
int state_read(const char *dir, struct job_record *r);
int state_write(const struct job_record *r);

/* --- spawn.c */

/* The directory of the job, locked, its files. Returns 0, or a negative errno, logged. */
int spawn_prepare(struct keeper *k);
/* argv as a job. Returns 0, or a negative errno, logged. */
int spawn_job(struct keeper *k, char **argv);
/* restart with this argument, and a channel as its standard input and output (-1: none). */
int spawn_restart(struct keeper *k, const char *image, int in, int out);
/* What restart says of it. */
void spawn_status(struct keeper *k);
/* Leave the caller, whoever that is. */
void spawn_detach(struct keeper *k);

/* --- move.c */

void move_begin(struct keeper *k, const char *tag, const char *host, const char *address);
/* The original has ended, or time has passed. */
void move_go_on(struct keeper *k);
void move_resume_saved(struct keeper *k, const char *tag);
/* Is the job there, and not only what is left of it? */
bool job_lives(const struct keeper *k);

#endif
