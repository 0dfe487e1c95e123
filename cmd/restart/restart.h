/*
 * restart: an image becomes a running process. One file a phase:
 *
 *   load.c     where the image comes from; its first members, checked
 *   files.c    the program, mapped files and open files, found and checked
 *   ipc.c      objects of System V
 *   place.c    which PIDs: these, those of new namespaces, or new ones
 *   first.c    the first process: by fork; early, where its memory comes first
 *   build.c    the others, by their parents; each executes its program
 *   coop.c     without ptrace(2), and what those are told that were asked for themselves
 *   tree.c     whose child, which session, which process group; those that have ended
 *   clear.c    what exec(2) made goes, but for the vDSO
 *   space.c    an address space becomes that of the image
 *   earlier.c  memory that came before the rest: from parents, in rounds
 *   early.c    that of rounds in the first process, where it stays
 *   uring.c    memory of io_uring
 *   fill.c     the pages
 *   lazy.c     pages that come when they are touched
 *   aio.c      rings of asynchronous I/O
 *   settle.c   threads, handlers, timers, credentials
 *   seccomp.c  sandboxes
 *   release.c  it runs
 *   away.c     its files are at home: what becomes of it then
 *   save.c     where END did not come: the parked process becomes an image again
 *   front.c    afterwards: signals, terminal, exit status
 */
#ifndef RESTART_H
#define RESTART_H

#include <sys/stat.h>

#include "channel.h"
#include "image.h"
#include "kind.h"
#include "loop_driver.h"
#include "model.h"
#include "stats.h"
#include "tracee.h"

enum pid_mode { PID_AUTO, PID_SAME, PID_NS, PID_NEW };

struct restart_options {
	const char *image; /* NULL: stdin */
	bool self;         /* the image is behind this program */
	bool detach, check;
	enum pid_mode pid_mode;
	struct inherit *inherits;
	size_t ninherits;
	int stdio[3]; /* what the program gets for ours */
	struct path_map *maps;
	size_t nmaps;
	const char *chdir;
	const char *home, *key; /* where home is, if not where the image says; --key */
	bool lazy, demand_only; /* --lazy, --demand-only */
	const char *pages; /* where the pages are, if not where the image says */
	int retry_s;
	int64_t hold_ms; /* how long to wait for END, -1: for ever */
	int status_fd;
	const char *parent; /* --parent: where the image's is */
	bool cpu_force, without_end, tcp_reset;
	enum stats_form stats;
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
	int *programs; /* of each file that is executed, else -1 */
};

/* A process that is being built. */
struct built {
	const struct task *task; /* NULL: a helper that no image has */
	int listener;    /* of the filter that hands its calls to home; -1: none */
	struct built *parent;
	pid_t pid;       /* as we see it; 0 until it exists */
	struct tracee *threads;
	size_t nthreads;
	size_t born;     /* untraced: the slot of the one that it has made last */
	int mem;
	struct loop loop;
	taddr syscall_ip; /* a `syscall` instruction that stays */
	taddr vdso_at;    /* this kernel's vDSO in it */
	uint64_t vdso_len;
	struct page_range areas[8]; /* of the kernel, it among them; ascending */
	size_t nareas;
	int64_t session;  /* in the numbers of the image */
	int64_t birth;    /* that which it must be born in; 0: any */
	int uffd;         /* of memory that comes later, or -1 */
	bool ended;
};

/* The first process, before the rest of the image is known. */
struct early {
	struct built built;
	int64_t pid;         /* in the image */
	struct stat program; /* which it has executed */
	int hand;            /* the socket by which its files come */
	uint64_t number;     /* of its other end, in the process */
};

struct restart {
	struct restart_options opt;
	struct source source;
	struct image_reader *reader;
	struct model model;
	unsigned char **vdsos; /* code of a vDSO, of each task whose member it is */
	struct opened open;
	char member[IMAGE_NAME_MAX]; /* the first that load() did not take */
	uint64_t member_size;
	char **created; /* files that were made here, to be removed on failure */
	size_t ncreated;
	struct aside {
		char *now, *before;
	} *aside; /* files that had to make way: back on failure, removed when it runs */
	size_t naside;
	enum pid_mode mode;
	bool own_userns, privileged;
	int64_t clock_ns[2], our_clock_ns[2]; /* monotonic, boottime: what the program's, and ours in the beginning, are ahead of this kernel's */
	bool ended; /* END or GO came */
	int report_fd; /* in namespaces: to the process outside, or -1 */
	uint64_t stock_base; /* the first number of the stock; 0: not yet known */
	struct chain *parents; /* of an increment, or NULL */
	struct earlier *earlier; /* memory that came in rounds, or NULL */
	struct early *early;     /* the first process, as long as its files are not known, or NULL */
	struct lazy_restart *lazy; /* of memory that comes later, or NULL */
	struct untraced *untraced; /* they are built without ptrace(2), or NULL */
	struct netlock *netlock; /* of connections to others, or NULL */
	uint64_t no_huge;    /* sizes of huge pages that are not to be had here, or'ed */
	uint64_t text_bytes; /* of all JSON so far */
	struct built *built; /* parallel to the tasks of the image */
	struct built **helpers;
	size_t nhelpers;
};

/* Each returns 0, or a negative errno, logged. */
int load_open(struct restart *r);
int load_metadata(struct restart *r);
int load_host_check(struct restart *r);
/* The header of the image that is to be built is at hand, behind rounds: it and all up to the first pages, in place of what was known. */
int load_again(struct restart *r);

/* --- earlier.c */
/* The parents of an increment are found before anything is made. */
int earlier_open(struct restart *r);
/* Where memory comes in rounds: takes it, and then what load_again() takes. */
int earlier_receive(struct restart *r);
/* The first process is what it will be but for its memory: what came there stays, or, unless it has the program of the image (same), is put in once more. */
int earlier_settle(struct restart *r, struct built *b, bool same);
/* Pages of the task that came earlier, into b, or NULL: only look whether they have come. */
int earlier_fill(const struct restart *r, struct built *b, const struct task *t);
/* Pages that came with the rest are in their places; then, all of b's are. */
void earlier_filled(const struct restart *r, const struct built *b, const struct page_run *runs, size_t n);
int earlier_finish(const struct restart *r, struct built *b);
/* Memory that came there before is part of this mapping of b's: [*start, *end), with these rights. */
bool earlier_in_place(const struct restart *r, const struct built *b, const struct vma *v, taddr *start, taddr *end, int *prot);
/* Does b have any? Then what goes of it, in front of what is mapped. */
bool earlier_is_there(const struct restart *r, const struct built *b);
void earlier_trim(const struct restart *r, const struct built *b, struct script *s);
/* It is in its place, or not needed any more. */
void earlier_drop(struct restart *r);

/* --- fill.c */
/* Whole pages of content to addr. */
int fill_memory(struct built *b, taddr addr, const unsigned char *content, uint64_t len);

/* Is there an original that ends when this one begins? */
bool load_is_move(const struct restart *r);
/* Code of the vDSO that a task of the image had. */
const unsigned char *load_vdso(const struct restart *r, const struct mm_layout *mm);

int files_open(struct restart *r);
void files_close(struct restart *r);
/* What task t executes, before anything else of the image is known. */
int files_open_program(struct restart *r, const struct task *t);
/* n fds that are none yet; the caller frees. NULL where memory ran out. */
int *files_none(size_t n);
/* Where a task is to be; the caller frees. NULL where memory ran out. */
char *files_directory(const struct restart *r, const struct task *t);
/* Remove what was created here, and put back what had to make way. */
void files_undo(struct restart *r);
/* After END: what could not be had before. Returns 0, or a negative errno, logged. */
int files_late(struct restart *r);
/* When nothing can fail any more: connections to others go on. Returns 0, or a negative errno, logged. */
int files_go_on(struct restart *r);
/* It runs: what is kept for undoing is no longer needed. */
void files_keep(struct restart *r);

/* Is there anything of System V? */
bool ipc_wanted(const struct restart *r);
int ipc_make(struct restart *r);
/* Values of semaphores, by this process. */
int ipc_fill(struct restart *r, struct built *b);
/* After END: segments that had been removed, but were still attached. */
void ipc_late(const struct restart *r);

/* Enter namespaces where that is needed. In the child that is to build, returns 0. */
int place(struct restart *r);
/* After rounds: is that still right? Its clocks are not behind what the program has seen. Returns 0, or a negative errno, logged. */
int place_again(struct restart *r, bool had_ipc);
/* Our own threads from here on (or not any more) take numbers which the program will not come to during the rounds. */
void place_aside(const struct restart *r, bool on);
/* Does a number of the image exist here? */
bool place_taken(const struct restart *r);

#define BUILD_TRACE_OPTIONS                                                                    \
	(PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL | PTRACE_O_TRACEEXEC | PTRACE_O_TRACECLONE |    \
	    PTRACE_O_TRACEFORK)

/* May we trace what we build? Where not: can it be done otherwise? Returns 0, or a negative errno, logged. */
int coop_choose(struct restart *r);
/* The first process, in the child: it becomes one that executes scripts, having sent its memory to `to`. Does not return. */
void coop_first_child(struct restart *r, size_t slot, int to) __attribute__((noreturn));
/* The same from outside: it is there, and b has its memory. */
int coop_first(struct restart *r, struct built *b, size_t slot, int from);
/* Processes that were asked for themselves are told what they need to know of us. */
int coop_note_down(const struct restart *r, const struct built *b);
/* As which the threads of b go on; then, all of them do. */
int coop_set_final(struct restart *r, struct built *b);

/* --- first.c */
/* Stopped, executing its program, with all that is inherited. */
int first_build(struct restart *r, struct built *b);
/* The same before that is known: into r->early. Then: it is not wanted any more. */
int first_early(struct restart *r);
void first_drop_early(struct restart *r);

/* The process of a task: stopped, executing its program, or a copy of its parent. */
int build(struct restart *r, struct built *b);
/* Capabilities of ours that stay across exec without being root: to choose PIDs, to give up the others at the end, and (tracer) to look at what we trace. */
void build_keep_capabilities(bool tracer);
/* Nothing of them has run: end them all. */
void build_undo(struct restart *r);
/*
 * clone3(2) by the first thread of creator, in the script loop, with this number. *result as the kernel gives it.
 * Returns 0, or a negative errno, logged.
 */
struct clone_args;
int build_clone3(struct built *creator, struct clone_args *args, int64_t tid, int64_t *result);
/* A thread that it has made is stopped at its beginning, as its parent is traced: it becomes one of b. */
int build_wait_born(struct built *b, pid_t tid);
/* fork(2) by creator, with more flags of clone(2). */
int build_clone(struct built *creator, struct built *b, int64_t pid, uint64_t flags, int exit_signal);
/* It has executed what it is to; what it says where it cannot comes from errors, or -1. */
int build_wait_exec(struct tracee *t, int errors);
/* Another program takes its place. */
int build_execute(struct restart *r, struct built *b);
int build_seize(struct built *b);
/* Its memory and what the kernel has put there. */
int build_look_at_stub(struct built *b);
bool build_is_kernels(const struct proc_map *m);
/* The kernel leaves room below the stack by this limit when it executes. */
void build_limit_stack(pid_t pid, const struct task *t);
int build_cannot_fork(int err, int64_t pid);
void build_end_one(struct built *b);
/* A script in its first thread. */
int built_run(struct built *b, struct script *s);

/*
 * All that is inherited is at a number that depends on nothing, above every fd of the image.
 */
enum stock { STOCK_FILES, STOCK_SHMS, STOCK_OFDS, STOCK_PROGRAMS, STOCK_END };
uint64_t stock_fd(const struct restart *r, enum stock what, int64_t index);

/* Which sessions the processes must be born in. */
int tree_find_births(struct restart *r);
/* The children of b, which must be complete but for them. */
int tree_children(struct restart *r, struct built *b);
/* Process groups; those that have ended; helpers are gone. */
int tree_finish(struct restart *r);

/* Are there enough huge pages? Where not, small ones are used, and that is said. */
void space_choose_pages(struct restart *r);
/*
 * flag (MAP_HUGETLB, MFD_HUGETLB, SHM_HUGETLB) and the size, which all have at the same bits, for pages of this many bytes; 0
 * where they are small.
 */
uint64_t space_huge_flags(const struct restart *r, uint64_t huge, uint64_t flag);
/* Memory of rings, when all other mappings are there. */
int uring_map(struct restart *r, struct built *b);
/* A free place of this many bytes in all address spaces, and in that of process pid as it is. Returns 0, or a negative errno, logged. */
int space_gap(const struct restart *r, pid_t pid, uint64_t size, taddr *at);
/* Is the script loop of b out of the way of all that the image has now? */
bool space_is_apart(const struct restart *r, const struct built *b);
int space_make(struct restart *r, struct built *b);
/* A mapping, with the rights that it has until its content is there. */
void space_add_mapping(const struct restart *r, struct script *s, const struct vma *v);
int space_first_prot(const struct vma *v);
/* Flags of vmflag.def that it has of those which are decided when it is mapped (pages: those that can be given later), as bits. */
unsigned space_traits(const struct vma *v, bool pages);
bool space_is_accounted(const struct vma *v);

/* --- clear.c */
/* The script loop comes, in a free place, and all but it and the vDSO beside it goes. */
int clear_space(struct restart *r, struct built *b);
/* The vDSO comes to where the program expects it. */
int clear_put_vdso(struct restart *r, struct built *b);
int space_finish(struct restart *r, struct built *b);

/* The pages of this process; with NULL (restart --check) all pages, which are only checked. */
int fill(struct restart *r, struct built *b);

/* Pages of runs whose content is one behind the other: those in [start, end) go to their places. */
int fill_piece(const struct restart *r, struct built *b, const struct page_run *runs, size_t n, const unsigned char *content, taddr start, taddr end);

/* Is there memory that comes later? Then whoever fetches it is started, before anything is built. */
int lazy_begin(struct restart *r);
/* Its pages are not in the image; they are, and what is needed at once is read from here and there. */
bool lazy_is_elsewhere(const struct restart *r);
bool lazy_from_file(const struct restart *r);
/* A process has its mappings, and all rights of ours; it needs some pages at once. */
int lazy_prepare(struct restart *r, struct built *b);
int lazy_fill(struct restart *r, struct built *b);
/* All are built: may they run? Returns 1, or a negative errno, logged. Then: they are let go from here on, and the end of restart is not theirs; they run. */
int lazy_take(struct restart *r);
void lazy_lets_run(const struct restart *r);
void lazy_runs(struct restart *r);
/* It has failed. Returns true where the other side hears of it by the one who fetches. */
bool lazy_failed(const struct restart *r);
/* In a process that does not build. */
void lazy_leave(struct restart *r);
/* Before we end while it runs: a remote shell would take the connection away that its pages come by. */
void lazy_linger(const struct restart *r);

/* The first task that has an ofd, or NULL. */
const struct task *first_with(const struct restart *r, int64_t ofd);
/* Open files of one process. */
int place_fds(struct restart *r, struct built *b);
int settle(struct restart *r, struct built *b);
/* Rings of asynchronous I/O, before it has any of its files. */
int aio_make(struct restart *r, struct built *b);
/* When all threads are there: can they have their sandboxes? Then, while they have the right to: they get them. */
int seccomp_prepare(struct built *b);
int seccomp_install(struct restart *r, struct built *b);
int release(struct restart *r);
/* All of it up to the moment when they are let go. */
int release_arm(struct restart *r);

/* Its files are at home. */
bool is_away(const struct restart *r);
/* In a process that is complete: its calls go there from now on. Returns 0, or a negative errno, logged. */
int away_filter_install(struct built *b);
/* We become the one who looks after them. Returns only where that fails: a negative errno, logged. */
int away_go(struct restart *r);

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
