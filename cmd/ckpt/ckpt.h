/*
 * ckpt: a running process becomes an image. One file a phase:
 *
 *   target.c   find it, stop all of its threads, let them go again
 *   restarted.c  which call an interrupted wait was
 *   outside.c  what /proc and the kernel tell without its help
 *   inside.c   what only it can tell: borrowed calls
 *   space.c    its mappings and the files behind them
 *   fds.c      its open files
 *   contents.c which of its pages matter, and reading them
 *   write.c    the members of the image in order
 *   output.c   where the image goes: file, pipe, --to
 *   ending.c   who ends the original, and when
 *   park.c     originals left behind by -S
 */
#ifndef CKPT_H
#define CKPT_H

#include "channel.h"
#include "image.h"
#include "model.h"
#include "proc.h"
#include "report.h"
#include "tracee.h"

enum embed { EMBED_NEEDED, EMBED_MAPPED, EMBED_ALL };
enum after { AFTER_MOVE, AFTER_COPY, AFTER_KILL, AFTER_PARK };

struct ckpt_options {
	int pid;
	const char *output; /* -o, or NULL: stdout */
	const char *to;     /* --to COMMAND */
	enum after after;
	bool executable; /* -x */
	enum embed embed;
	int level;
	uint64_t tail;
	bool eintr; /* --timed-syscalls=eintr */
	bool check, json;
	int status_fd;
	int64_t stop_timeout_ms;
};

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
	bool frozen;
	bool decided; /* never to be let go again: it ends with us */
	int64_t frozen_ms;
};

/* A file that is mapped or executed, while it is open here. */
struct mapped_file {
	unsigned major, minor;
	uint64_t ino;
	int fd; /* -1: only through the process's memory */
};

struct ckpt {
	struct ckpt_options opt;
	struct target target;
	struct model model;
	struct report report;
	struct mapped_file *mapped; /* parallel to the first of model.objects.files */
	size_t nmapped;
	struct page_runs runs;
	bool no_output; /* the output could not be opened */
	unsigned char *vdso; /* code pages, as they are in the process */
};

/* --- target.c */
/* Returns 0, or a negative errno, logged; ESRCH, EPERM, EBUSY tell main which exit status. */
int target_open(struct target *t, pid_t pid);
/* Stop every thread. On failure everything runs again. */
int target_freeze(struct target *t, int64_t timeout_ms, bool eintr);
/* tracee_borrow() with what is known of the process. */
int target_borrow(const struct target *t, struct tracee *th);
/* Give everything back; the process runs on. */
void target_thaw(struct target *t);
void target_close(struct target *t);
/* SIGKILL, and wait until it is dead. */
int target_end(struct target *t);

/* restarted.c: number of the call that goes on as restart_syscall(2); 0 if none does, -1 if unknown. */
long restarted_call(const struct tracee *th);

/* --- collecting: each returns 0 or a negative errno, logged */
int collect_outside(struct ckpt *c);
int collect_inside(struct ckpt *c);
/* Pending signals: after the timers, or one that fires in between would be in neither. */
int collect_signals(struct ckpt *c);
int collect_space(struct ckpt *c);
int collect_fds(struct ckpt *c);
int collect_contents(struct ckpt *c);
/* Index of the file behind a mapping, which is added where it is new; or a negative errno. */
int64_t space_file(struct ckpt *c, const struct proc_map *m);
void ckpt_fini(struct ckpt *c);

/* --- contents.c: the pages of the stopped process */
struct live_pages;
struct live_pages *live_pages_new(struct ckpt *c);
void live_pages_free(struct live_pages *lp);
struct page_source *live_pages_source(struct live_pages *lp);

/* --- output.c */
enum output_kind { OUTPUT_FILE, OUTPUT_PIPE, OUTPUT_CHANNEL };
struct output {
	enum output_kind kind;
	int fd;
	char *name;   /* for messages; the file's path */
	char *dir, *temporary;
	int mode;
	int child;    /* of --to */
	struct channel channel;
	uint64_t bytes;
	int status_fd;
};
int output_open(struct output *o, const struct ckpt_options *opt);
/* Refuse where the disk is too small for what will come. */
int output_check_room(struct output *o, const struct ckpt *c);
image_sink output_write;
/* Give a file its name, durably. */
int output_commit(struct output *o);
void output_close(struct output *o);
/* A line on --status-fd, if there is one. */
void output_status(const struct output *o, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* --- write.c */
int write_image(struct ckpt *c, struct output *o);

/* --- ending.c */
/* In front of the image in a pipe: a tail and END will follow. */
int put_ack(struct output *o);
int ending(struct ckpt *c, struct output *o);

/* --- park.c */
int park(struct ckpt *c);
int park_resume(pid_t pid);
int park_end(pid_t pid);
int park_list(void);

/* --- main.c: SIGINT or SIGTERM came */
bool interrupted(void);
/* From now on they are too late. */
void interrupts_end(void);

#endif
