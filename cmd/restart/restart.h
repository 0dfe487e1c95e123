/*
 * restart: an image becomes a running process. One file a phase:
 *
 *   load.c     where the image comes from; its first members, checked
 *   files.c    the program, mapped files and open files, found and checked
 *   place.c    which PIDs: these, those of new namespaces, or new ones
 *   build.c    a process that has executed the program and is stopped
 *   space.c    its address space becomes that of the image
 *   fill.c     the pages
 *   settle.c   threads, handlers, timers, credentials
 *   release.c  it runs
 *   save.c     where END did not come: the parked process becomes an image again
 *   front.c    afterwards: signals, terminal, exit status
 */
#ifndef RESTART_H
#define RESTART_H

#include "channel.h"
#include "image.h"
#include "kind.h"
#include "loop_driver.h"
#include "model.h"
#include "tracee.h"

enum pid_mode { PID_AUTO, PID_SAME, PID_NS, PID_NEW };

struct restart_options {
	const char *image; /* NULL: stdin */
	bool self;         /* the image is behind this program */
	bool detach, check;
	enum pid_mode pid_mode;
	struct inherit *inherits;
	size_t ninherits;
	struct path_map *maps;
	size_t nmaps;
	const char *chdir;
	int64_t hold_ms; /* how long to wait for END, -1: for ever */
	int status_fd;
	bool cpu_force, without_end;
};

/* The image as a stream of bytes. */
struct source {
	int fd;
	const char *name;
	bool is_stdin, is_channel;
	unsigned char peek[8]; /* what was read to find out what it is */
	size_t npeek;
	uint64_t bytes, total;
	int64_t deadline_ms; /* 0: none */
	struct channel channel;
};

/* What is open here on behalf of the image. */
struct opened {
	int *contents; /* of each file with a member: a memfd, else -1 */
	int *mapped;   /* of each mapped file, else -1 */
	int *shms;     /* of each shm object that needs one, else -1 */
	int *ofds;
	int program;   /* what is executed */
};

struct restart {
	struct restart_options opt;
	struct source source;
	struct image_reader *reader;
	struct model model;
	unsigned char *vdso; /* code of the image's vDSO */
	struct opened open;
	char member[IMAGE_NAME_MAX]; /* the first that load() did not take */
	uint64_t member_size;
	char **created; /* files that were made here, to be removed on failure */
	size_t ncreated;
	enum pid_mode mode;
	bool own_userns, privileged;
	int report_fd; /* in namespaces: to the process outside, or -1 */
	/* what is being built */
	struct tracee *threads;
	size_t nthreads;
	pid_t pid;
	int mem;
	struct loop loop;
	taddr syscall_ip; /* a `syscall` instruction that stays */
	taddr vdso_at;    /* this kernel's vDSO in it */
	uint64_t vdso_len;
};

/* Each returns 0, or a negative errno, logged. */
int load_open(struct restart *r);
int load_metadata(struct restart *r);
int load_host_check(struct restart *r);

int files_open(struct restart *r);
void files_close(struct restart *r);
/* Remove what was created here. */
void files_undo(struct restart *r);

/* Enter namespaces where that is needed. In the child that is to build, returns 0. */
int place(struct restart *r);
/* Does this number of the image exist here? */
bool place_taken(const struct task *t);

int build(struct restart *r);
void build_undo(struct restart *r);
/* In the new process mapped file i is fd base + i, shm object i is base + nfiles + i. */
int build_fd_base(const struct task *t);

int space_make(struct restart *r);
int space_finish(struct restart *r);

int fill(struct restart *r);

int settle(struct restart *r);
int release(struct restart *r);

/* 1 on END or GO, 0 where the stream ended without, or a negative errno. */
int await_end(struct restart *r);
int save(struct restart *r);

/* Terminal settings of the image on ours, until the program has ended. */
void front_terminal(struct restart *r);
/* Wait for pid; returns the exit status to end with. */
int front_wait(pid_t pid);

/* sysexits for an errno. */
int exit_status(int err);
void restart_status(const struct restart *r, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

#endif
