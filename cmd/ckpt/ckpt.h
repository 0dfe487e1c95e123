/*
 * ckpt: a running process becomes an image. One file a phase:
 *
 *   arguments.c  the command line
 *   tree.c     the process and its descendants: find them, stop them, let them go, end them
 *   obstacles.c  what keeps it from being moved as a whole
 *   aio.c      rings of asynchronous I/O
 *   seccomp.c  its sandbox
 *   outside.c  what /proc and the kernel tell without its help
 *   pending.c  its pending signals
 *   inside.c   what only it can tell: borrowed calls
 *   space.c    its mappings and the files behind them
 *   fds.c      its open files
 *   ipc.c      semaphores and message queues of System V
 *   contents.c which of its pages matter, and reading them
 *   write.c    the members of the image in order
 *   sync.c     files that others see
 *   output.c   where the image goes: file, pipe, --to
 *   ending.c   who ends the original, and when
 *   page.c     code of ours in a process
 *   park.c     originals left behind by -S
 *   merge.c    an increment becomes whole
 *   every.c    a chain of increments
 *   increment.c  what the parent of -i has is not in the image
 *   rounds.c   memory that is sent while it is in use: --rounds
 *   snapshot.c copies of all at one instant, by fork: -c
 *   home.c     the original stays as the home of its files: -s
 *   lazy.c     its memory stays, and is fetched from there: -m
 */
#ifndef CKPT_H
#define CKPT_H

#include "channel.h"
#include "image.h"
#include "kind.h"
#include "model.h"
#include "proc.h"
#include "report.h"
#include "stats.h"
#include "target.h"
#include "tracee.h"

enum embed { EMBED_NEEDED, EMBED_MAPPED, EMBED_ALL };
enum after { AFTER_MOVE, AFTER_COPY, AFTER_KILL, AFTER_PARK, AFTER_HOME, AFTER_LAZY };

struct ckpt_options {
	int pid;
	const char *output; /* -o, or NULL: stdout */
	const char *to;     /* --to COMMAND */
	enum after after;
	const char *home, *key; /* -s: its address; --key */
	const char *pages, *spool; /* -m: where its memory is to be had; --spool: the file that it is to be had from */
	bool executable; /* -x */
	enum embed embed;
	int level;
	uint64_t tail;
	bool eintr; /* --timed-syscalls=eintr */
	bool check, json, single;
	enum stats_form stats;
	bool lose_seccomp, lose_namespaces; /* --allow-loss */
	bool tcp_reset; /* --tcp=close */
	int status_fd;
	const char *parent; /* -i */
	int64_t every_ms; /* --every; 0: once */
	int keep;         /* --keep; 0: all */
	int rounds; /* --rounds: how many at most; 0: none */
	int64_t max_stop_ms;
	struct external_rule *rules;
	size_t nrules;
	bool assume; /* what smaps says is asked before the stop, and proven after it */
	int64_t stop_timeout_ms;
};

/* A file that is mapped or executed, while it is open here. */
struct mapped_file {
	unsigned major, minor;
	uint64_t ino;
	int fd; /* -1: only through the process's memory */
};

/* A piece of shared memory that one mapping shows. */
struct shm_part {
	int64_t ref;
	uint64_t start, end;
};

/* Code of ours in a process: where it is, in how many pages, and the stack pointer with which its `ret` goes back by way of munmap(2). */
struct lent_page {
	taddr at;
	size_t n;
	taddr sp;
};

/* Where the memory of a process is read. */
struct memory {
	pid_t pid;
	int mem, proc; /* /proc/PID/mem, /proc/PID */
};

/* A process of the tree. */
struct member {
	struct target target;
	struct member *parent; /* NULL: the first */
	struct task *task;     /* in the model; NULL until all are stopped */
	struct page_runs runs;
	struct page_runs unwritten; /* of these, since the last round */
	unsigned char *vdso; /* code pages, as they are in the process, where no other has the same */
	struct lent_page page; /* of ours in it, if at is not 0 */
	struct copy *copy;   /* its memory as it was is to be read there, while it runs on; NULL: in itself */
	bool zombie;         /* has ended, and its parent has not waited for it */
	bool filtered;       /* one of its threads is under seccomp, perhaps for a whole container */
};

struct ckpt {
	struct ckpt_options opt;
	struct member **members; /* parents before their children */
	size_t nmembers;
	struct model model;
	struct report report;
	struct mapped_file *mapped; /* parallel to the first of model.objects.files */
	size_t nmapped;
	uint64_t *shm_inos; /* parallel to model.objects.shms */
	size_t nshm_inos;
	struct shm_part *shm_parts; /* of shared memory: what has been listed as pages of some task */
	size_t nshm_parts;
	struct held *held; /* every fd of every member */
	size_t nheld;
	struct held *in_flight; /* open files that only messages have: our own fds */
	size_t nin_flight;
	struct held_task *tasks; /* parallel to members */
	struct kind_shared shared;
	int home_listener; /* -s, -m: where the copy will come, or -1 */
	const char *home_address; /* what that was asked for as */
	int home_report; /* where to tell that it has begun */
	int *kept; /* parallel to model.objects.files: copies of those that are in the image, or -1; NULL without a snapshot */
	struct chain *parent;  /* -i, or NULL */
	struct rounds *rounds; /* memory has been sent before; NULL: all is to be sent */
	bool snapshot; /* they run on, and their copies are read */
	bool no_output; /* the output could not be opened */
	bool frozen;
	bool decided; /* never to be let go again: they end with us */
	int64_t frozen_ns;
	int64_t stamped_ns; /* our CLOCK_MONOTONIC at the times in the header */
};

/* --- arguments.c */
enum action { DO_CKPT, DO_RESUME, DO_END, DO_LIST, DO_MERGE };
enum action arguments(int argc, char **argv, struct ckpt_options *o);

/* --- tree.c */
/* The first process. */
int tree_open(struct ckpt *c, pid_t pid);
/* Stop it and all of its descendants, until nobody new appears. On failure all run again. */
int tree_freeze(struct ckpt *c);
/* They stand still no longer, here: told, if it was not before. */
void tree_stopped(struct ckpt *c);
/* Give everything back; they run on. */
void tree_thaw(struct ckpt *c);
void tree_close(struct ckpt *c);
int tree_set_exitkill(struct ckpt *c, bool on);
/* SIGKILL to all, and wait until they are dead. */
int tree_end(struct ckpt *c);
/* Memory of the tree as it is now, in bytes; nothing is stopped. */
uint64_t tree_memory(const struct ckpt *c);
/* The member with this PID (as we see it), or NULL. */
struct member *tree_find(const struct ckpt *c, pid_t pid);
/* "pid 12", "pid 12: mapping 7f00-7f01": as reports call it. */
char *member_name(const struct member *who, char name[64]);
char *mapping_name(const struct member *who, taddr start, taddr end, char name[96]);

/* --- collecting: each returns 0 or a negative errno, logged */
int collect_host(struct ckpt *c); /* what it has of the machine: before the stop, once */
int collect_header(struct ckpt *c);
/* Since the times in the header, as which everything that runs by time is to be told. */
int64_t collect_elapsed_ns(const struct ckpt *c);
int collect_outside(struct ckpt *c, struct member *who);
/* Does it share its table of files, its directory with its parent? */
void collect_shares(struct member *who);
int collect_obstacles(struct ckpt *c, struct member *who);
/* When who is who is known of all: sessions that cannot be made again. */
int collect_sessions(struct ckpt *c);
/* Filters of its threads, which must be known; they are suspended until it is let go. */
int collect_seccomp(struct ckpt *c, struct member *who);
int collect_inside(struct ckpt *c, struct member *who);
/* Pending signals: after the timers, or one that fires in between would be in neither. */
int collect_signals(struct member *who);
int collect_space(struct ckpt *c, struct member *who);
/* When all mappings are known: what is in the rings of asynchronous I/O. */
int collect_aio(struct ckpt *c);
/* Which fds there are; then what they are. */
int collect_held(struct ckpt *c);
int collect_fds(struct ckpt *c);
/* The originals are about to end: what they have is let go so that others can have it. */
void leave_fds(struct ckpt *c);
/* Semaphores and message queues of System V; removing what the originals leave of all of System V. */
int collect_ipc(struct ckpt *c);
void leave_ipc(const struct ckpt *c);
int collect_contents(struct ckpt *c, struct member *who);
/* Of its pages those that fork(2) does not copy. */
int contents_still(struct ckpt *c, const struct member *who, struct page_runs *runs);
/* What is left of runs without those of `less`; both ascend. Returns 0, or -ENOMEM. */
int runs_subtract(struct page_runs *runs, const struct page_runs *less);
/* What is to be fetched later is not in the image: it is left out of what has been found. */
int contents_split(struct member *who);
/* Which pages of a forked process are those of its parent. */
int collect_inherited(const struct ckpt *c, struct member *who);
/* When all files are known: mappings that belong to one. */
void space_refer(struct ckpt *c);
/* It still runs: the files behind its mappings are looked at, as that takes time. */
void space_look_ahead(const struct target *t);
/* Index of the file behind a mapping, which is added where it is new; or a negative errno. */
int64_t space_file(struct ckpt *c, struct member *who, const struct proc_map *m);
void ckpt_fini(struct ckpt *c);

/* --- contents.c: the pages of the stopped process */
struct live_pages;
struct live_pages *live_pages_new(struct ckpt *c, struct member *who);
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
/* All that is known of them, but no content. */
int write_records(struct ckpt *c, struct image_writer *w);
/* One of header.features. */
int add_feature(struct ckpt *c, const char *name);
/* The content of a file that is to be in the image goes to fd. Sizes of files that only mappings show. */
int copy_file(struct ckpt *c, size_t index, int fd);
void set_partial_sizes(struct ckpt *c);

/* --- sync.c */
/* What they have written to files is written back. */
void sync_files(const struct ckpt *c);

/* --- ending.c */
/* In front of the image in a pipe: a tail and END will follow. */
int put_ack(struct output *o);
int ending(struct ckpt *c, struct output *o);
/* A whole image in a file of this name. The end of all of them. Return 0, or a negative errno, logged. */
int save_as(struct ckpt *c, const char *name);
int end_original(struct ckpt *c, struct output *o);

/* --- page.c: its first thread is borrowed, and has a frame */
/* A call by it, which `undo` undoes: by that its way back leads should ckpt die, until tracee_rest(); *sp is the stack pointer to that. */
int call_undone(struct member *who, const struct arch_call *call, const struct arch_call *undo, int64_t *result, taddr *sp);
/* Where lend_pages() will put them. */
taddr free_pages(const struct member *who, size_t npages);
/* With the code at the beginning of each. Returns 0, or a negative errno, logged. */
int lend_pages(struct member *who, size_t npages, const unsigned char *code, size_t len);
void take_page_back(struct member *who);
int unmap_pages(struct tracee *th, taddr at, size_t npages);

/* --- increment.c */
/* Before anything is stopped: the parent of -i. */
int increment_open(struct ckpt *c);
void increment_close(struct ckpt *c);
/* The image says who its parent is, which must have one of these processes. */
int increment_announce(struct ckpt *c);
/* Of its pages, those that the parent has as they are go to its task.earlier. Returns 0, or a negative errno, logged. */
int increment_split(struct ckpt *c, struct member *who);
/* No more ranges than an image may have: the shortest go, whose pages are written. What is left, out of runs; returns 0, or -ENOMEM. */
void thin_ranges(struct page_range *ranges, size_t *n);
int subtract_ranges(struct page_runs *from, const struct page_range *ranges, size_t n);
/* These of its runs came earlier, but for the shortest if there are too many. Returns 0, or -ENOMEM. */
int add_earlier(struct member *who, const struct page_runs *runs);

/* --- merge.c */
/* The image opt->output, in place. Returns 0, or a negative errno, logged; it is then as it was. */
int merge(const struct ckpt_options *opt);

/* --- every.c: c->opt.output has %n; returns when the process has ended */
int every(struct ckpt *c);

/* --- assume.c */
/* Before the stop: with opt.assume, flags of mappings. */
void assume_ahead(struct ckpt *c);
/* What was assumed is so in the copies. */
bool assume_right(const struct ckpt *c);
/* Nothing of this image has been written: all of it once more, from before the stop. */
int start_over(struct ckpt *c);

/* --- rounds.c */
/* The tree runs: what is known of it, and its memory in rounds, as long as that helps. Then c->rounds is set, if anything could be sent so. Returns 0, or a negative errno, logged. */
int rounds_send(struct ckpt *c, struct output *o);
/* Is it known of what is at `at` and behind it? *end, the end of what is asked, becomes that of the part for which the answer holds. */
bool rounds_knows(const struct ckpt *c, const struct member *who, taddr at, taddr *end);
/* Of runs, pages of this one, those that have been sent as they are go to its task.earlier. Returns 0, or a negative errno. */
int rounds_split(struct ckpt *c, struct member *who);
/* Is what this one writes known? */
bool rounds_track(const struct ckpt *c, const struct member *who);
/* What the image goes on in. */
struct image_writer *rounds_writer(struct ckpt *c);
void rounds_end(struct ckpt *c);

/* --- snapshot.c */
/*
 * Everything but pages is known, and all stand still: copies of their memory, so that they need not. Where that cannot be, they have none, and why is said. Returns 0, or
 * a negative errno, logged.
 */
int snapshot_take(struct ckpt *c);
void snapshot_drop(struct ckpt *c);
/* Where its memory is to be read: in itself, or in its copy. */
struct memory member_memory(const struct member *who);
/* Of its pages those that are shared, or that fork(2) does not copy: they were read while it stood still. NULL: none. */
const struct page_runs *snapshot_still(const struct member *who);
/* Such pages, from addr on, as many as there are in one piece up to *npages, which becomes their number; NULL where the page at addr is none: *npages is then how many are none. */
const unsigned char *snapshot_page(const struct member *who, taddr addr, uint64_t *npages);
/* What is kept of the file with this index, a descriptor that stays ours; or -1. */
int snapshot_file(const struct ckpt *c, size_t index);

/* --- park.c */
/* saved: the image is complete and has its name. */
int park(struct ckpt *c, bool saved);
int park_resume(struct ckpt *c, pid_t pid);
int park_end(struct ckpt *c, pid_t pid);
int park_list(void);

/* --- home.c */
/* Before anything is stopped: can home be where -s says? */
int home_open(struct ckpt *c, const struct output *o);
/* Of -s and -m: listen there. *reached: how it is reached then; the caller frees. what: "home is", for messages. Returns 0, or a negative errno, logged. */
int home_listen(struct ckpt *c, const struct output *o, char option, const char *what, const char *address, char **reached);
void home_close(struct ckpt *c);
/* Go on in a process of its own, before anything is stopped. Returns there: 0, or a negative errno, logged. */
int home_fork(struct ckpt *c);
/* What keeps its files from staying behind. */
int collect_home(struct ckpt *c);
/* The image is out: wait for the copy, and be its home. Returns only where that fails: the original goes on. */
int home_stay(struct ckpt *c, struct output *o);

/* --- lazy.c */
/* Before anything is stopped: can its pages be where -m says? */
int lazy_open(struct ckpt *c, const struct output *o);
/* The image says where they are; with --spool they are put there first. */
int lazy_announce(struct ckpt *c);
int lazy_spool(struct ckpt *c, const struct output *o);
/* The image is out: its memory is served, until somebody has taken it over. Returns 0 when it runs elsewhere; else the original goes on, or what has become of it is said. */
int lazy_stay(struct ckpt *c, struct output *o);

/* Everything but the pages, with the processes stopped. */
int collect(struct ckpt *c);
/* One checkpoint, whose first process is open. */
int run_ckpt(struct ckpt *c);

/* --- main.c: SIGINT or SIGTERM came */
bool interrupted(void);
/* From now on they are too late. */
void interrupts_end(void);

#endif
