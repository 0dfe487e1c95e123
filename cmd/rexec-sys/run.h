/*
 * rexec-sys run: a command runs here, and its files are another machine's. We are the tracer of all its threads, and the supervisor of a
 * seccomp filter that stops the calls which need that machine; everything else runs as if nobody looked. One thread, one loop:
 *
 *   run.c         start, the loop, the end
 *   run_filter.c  which calls are stopped, off syscall.def
 *   run_trace.c   what ptrace tells: threads, processes, signals, exec
 *   run_memory.c  a thread's registers and memory
 *   run_calls.c   what becomes of a call
 *   run_table.c   calls that change the table of files, or that need it changed
 *   run_paths.c   paths of here
 *   run_wait.c    calls that wait for several files
 *   run_exec.c    programs are fetched, and executed as copies
 *   run_copy.c    copies of files, to map and to execute
 *   run_away.c    processes that have left their files at home, instead of a command: what restart has made
 *   run_mirror.c  their forks, groups and sessions, which are at home as well
 *
 * Every file of the other machine has a placeholder of the same number here, and every file of here one there, so that both tables have the
 * same free numbers; the other machine gives them out. What is closed there stays as a placeholder here, until its number is given out again: so
 * two threads cannot get in each other's way.
 */
#ifndef RUN_H
#define RUN_H

#include <linux/seccomp.h>
#include <sys/stat.h>

#include "handover.h"
#include "rexec.h"

struct run_options {
	const char *address, *key;
	bool local_program; /* program and libraries are those of here */
	char **command;
};

/* Returns its exit status (128 + signal), or a negative errno, logged. */
int run(const struct run_options *o);

/* --- what the supervisor knows */

enum where { NOWHERE, HERE, THERE };

struct file {
	enum where where;
	struct epoll *epoll; /* it is one, there; borrowed from run */
};

/* An epoll instance of there: its placeholder is one of here, for files of here. */
struct epoll {
	int fd; /* ours, of the placeholder */
	struct member *local; /* files of here that are in it */
	size_t nlocal;
};

/* Threads that share a table of files. */
struct process {
	pid_t pid;
	size_t nthreads;
	struct file *files; /* by number */
	size_t nfiles;
	char *program; /* its path there, or here */
	bool stopping; /* a thread of it is in a group-stop: so are all, as soon as they can */
	int listener;  /* of its filter, which its children have, too; one of run's */
	int asked_stop; /* away: home decides whether this signal stops it; */
	int let_stop;   /* and it does */
};

/*
 * A thread whose call we have taken waits for our answer, whatever comes but SIGKILL: so nothing that a call has done is lost. That a signal has come
 * we have to find out; then the call is called back, and what it has done by then is its result.
 */
enum phase {
	PHASE_NONE,     /* it runs */
	PHASE_ASKED,    /* its call is there */
	PHASE_RECALLED, /* the same, but it shall come back: a signal is to be delivered, or a file of here is ready */
};

struct thread {
	pid_t tid;
	uint32_t number; /* as the other machine knows it */
	struct process *process;
	bool born;       /* its parent's event has come */
	bool stopped;    /* it waits for that */
	/* Its call. */
	enum phase phase;
	struct arch_call call;
	struct arch_call sent;  /* as the other machine has it: mostly the same */
	struct calldata data;   /* of that */
	uint32_t id;
	int64_t result;
	size_t parted;          /* bytes that it has got already ... */
	bool parts_bad;         /* ... or has no memory for */
	uint64_t notification;  /* what it waits by, or 0 */
	uint64_t asked_tick;    /* when its call was sent */
	int64_t begun_ms;       /* when it was begun, if it has been begun again since */
	struct arch_call again; /* which it was then */
	unsigned char peek[256];/* of its memory, from peek_at: a path is looked at before it is sent */
	size_t peeked;
	taddr peek_at;
	struct wait *wait;      /* it waits for several files; owned */
	/* It has the mask that it asked for while it waits, and gets its own before it goes on. */
	enum { MASK_OWN, MASK_WANTED, MASK_SET, MASK_HANDLER } mask;
	uint64_t mask_wanted, mask_own;
	/* It executes a program; then it gets the program's name. */
	enum { EXEC_NONE, EXEC_BEGUN, EXEC_DONE, EXEC_NAMING, EXEC_NAMED } exec;
	struct arch_regs exec_regs;
	char *exec_program, exec_name[16];
	/* Away: it forks. That happens at home first, which says what number the child has; one after the other, as the next number is everybody's. */
	enum { FORK_NONE, FORK_QUEUED, FORK_ASKED, FORK_GOING } fork;
	uint64_t fork_flags;
	uint32_t fork_number;
	pid_t fork_pid;
	struct process *fork_child; /* NULL: it shares the files of its parent */
};

struct copy {
	uint64_t dev, ino, size, mtime, mtime_nsec;
	int fd;                 /* read-only */
	struct copy *interpreter; /* the one that was set in it; NULL: none */
};

struct run {
	const struct run_options *options;
	struct remote remote;
	int signals;
	int *listeners;         /* of filters */
	size_t nlisteners;
	int placeholder;
	pid_t first;
	pid_t holder;           /* whose fds the copies are, as the command may look at them: ourselves, or one who shares ours */
	int status;             /* of the first; -1: it runs */
	bool ended;             /* the other machine has gone */
	bool away;              /* the other machine is a home: run_away.c */
	struct thread *forking; /* away: whose fork is under way */
	struct forwarded *forwarded; /* signals that came from there */
	size_t nforwarded;
	struct early *early;    /* that are for one who is just being born */
	size_t nearly;
	uint64_t last_forwarded;
	uint32_t last_number;
	uint64_t tick;
	bool just_asked;        /* the answer may come at once */
	struct process **processes;
	size_t nprocesses;
	struct thread **threads;
	size_t nthreads;
	struct copy **copies;
	size_t ncopies;
	struct epoll **epolls;
	size_t nepolls;
	struct result {         /* that came while another was waited for */
		uint32_t id;
		struct buf body;
	} *results;
	size_t nresults;
};

/* run.c */
void run_lost(struct run *r, const char *why);
/* Signals, and what it needs of its own. Returns 0, or a negative errno, logged. */
int run_prepare(struct run *r);
/* Taken. Returns 0, or -ENOMEM, logged. */
int run_add_listener(struct run *r, struct process *p, int listener);
/* Until all of it has ended. */
void run_loop(struct run *r);

/* run_filter.c: in the command's own process, just before its exec. Returns the listener, or -1 with errno. */
int filter_install(void);

/* run_trace.c */
int trace_begin(struct run *r, pid_t first);
/* A process that stands still, traced by us already: its threads, by their numbers at home. Returns NULL where memory ran out. */
struct process *trace_adopt(struct run *r, const struct handover_process *from);
/* A process with the files of another. Returns NULL where memory ran out. */
struct process *process_copy(struct run *r, const struct process *from);
void process_remove(struct run *r, struct process *p);
/* Numbers of its files. */
void process_put_files(struct buf *b, const struct process *p);
/* They run. */
void trace_start(struct run *r);
void trace_events(struct run *r);
/* Calls that have been away for a while: is there a signal for their threads? Counts r->tick. */
void trace_tick(struct run *r);
/* The thread is to stop, and then to begin its call again. */
void trace_again(struct thread *t);
/* Its call has been interrupted there; or not_begun. */
void trace_interrupted(struct thread *t, bool not_begun);
struct thread *thread_find(const struct run *r, pid_t tid);
/* run_memory.c. Silent. Return 0, or a negative errno. */
int thread_get_regs(const struct thread *t, struct arch_regs *regs);
int thread_set_regs(const struct thread *t, const struct arch_regs *regs);
/* The caller releases it where there is one. */
struct proc_status;
int thread_read_status(const struct thread *t, struct proc_status *st);
/* Own memory of the thread. calldata_copy: ctx is the thread. */
int thread_read(void *ctx, taddr at, void *data, size_t len);
int thread_write(void *ctx, taddr at, void *data, size_t len);
/* Text up to a NUL; the caller frees; NULL where it cannot be read or is too long (errno). */
char *thread_string(struct thread *t, taddr at);

/* run_calls.c */
void calls_notified(struct run *r, int listener);
void calls_received(struct run *r);
/* The call returns this. */
void call_respond(struct thread *t, int64_t result);
/* The thread executes it itself. */
void call_continue(struct thread *t);
/* Give the thread the fd `source` of ours at number `at` (close-on-exec or not); answer: that is what its call returns. */
void call_give_fd(struct run *r, struct thread *t, int source, int at, bool cloexec, bool answer);
/* Have it executed there: as it is; as another one with the same pointers; with t->data made, and t->sent. */
void call_forward(struct run *r, struct thread *t);
void call_forward_as(struct run *r, struct thread *t, const struct arch_call *call);
void call_send(struct run *r, struct thread *t);
/* It shall return, with what it has done. */
void call_recall(struct run *r, struct thread *t);
/* The result of t's call is here: let it have it. */
void call_complete(struct run *r, struct thread *t);
/* Have a call executed there for t, and wait for it: one that does not wait itself, with pointers into our own memory. */
int64_t call_now(struct run *r, struct thread *t, long nr, const uint64_t arg[6]);
#define CALL_NOW(r, t, nr, ...) call_now(r, t, nr, (const uint64_t[6]){__VA_ARGS__})
#define CALL_ADDRESS(p) ((uint64_t)(uintptr_t)(p))

/* run_table.c */
enum where file_where(const struct process *p, int64_t fd);
struct file *file_at(struct process *p, int64_t fd);
void file_set(struct run *r, struct process *p, int64_t fd, enum where where);
/* A set of there, known from now on. Returns NULL where that fails. */
struct epoll *epoll_add(struct run *r);
/* Is this one of its calls? Begins it then. And ends it, with what has come of it. */
bool table_call(struct run *r, struct thread *t);
/* Does the message that t->data has, for a socket of there, carry files of here? */
bool table_sends_here(const struct thread *t);
bool table_complete(struct run *r, struct thread *t);
/* A file of the thread as one of ours, or a negative errno. Silent. */
int file_fetch(const struct thread *t, int fd);
/* A file of ours (taken) is to be one of the process's. */
void table_add_here(struct run *r, struct thread *t, int fd, bool cloexec);

/* run_paths.c: is the path one of here? If so, begins the call. */
bool paths_call(struct run *r, struct thread *t);

/* run_wait.c */
bool wait_call(struct run *r, struct thread *t);
bool wait_complete(struct thread *t);
void wait_drop(struct thread *t);
/* Files of here that are waited for, for poll(2): adds to fds[], returns how many there are then; and some are ready. */
struct pollfd;
size_t wait_add_fds(struct run *r, struct pollfd **fds, size_t n);
void wait_ready(struct run *r);
/* A file of here is closed. */
void wait_forget(struct run *r, const struct process *p, int fd);
/* The thread has been stopped for its mask: it gets the one it asked for, or its own; keep: not that yet, a handler is to run first. */
void wait_stopped(struct thread *t, bool keep);
void wait_own_mask(struct thread *t);
/* It has been called back because a file of here is ready. */
bool wait_called_back(const struct thread *t);

/* run_exec.c */
void exec_stop(struct run *r, struct thread *t);
void exec_syscall_stop(struct thread *t);
void exec_done(struct run *r, struct thread *t);

/* run_away.c */
int run_away(int fd);
/* What home sends unasked. */
void away_received(struct run *r, const struct msg_header *h, const unsigned char *body);
/* The thread is known now: what came for it before. */
void away_born(struct run *r, struct thread *t);
/* The thread is about to get a signal: if it is one from home, with what home has said of it. Returns false: it is to be left to home whether that stops it. */
bool away_signal(struct run *r, struct thread *t, int sig, bool handled);
/* Its process has been stopped by a signal (0: goes on); or asks: would this signal stop it? */
void away_stopped(struct run *r, struct thread *t, int sig, bool asks);
void away_tell(struct run *r, enum msg_type type, const uint32_t *words, size_t n);

/* run_mirror.c: calls that are made at home, and here as well. Returns whether it is one. */
bool mirror_call(struct run *r, struct thread *t);
bool mirror_complete(struct thread *t);
/* It stands before a fork; home has said what number; it has failed; or it has happened: the process of the child. */
bool fork_stop(struct run *r, struct thread *t);
void fork_answered(struct run *r, const struct msg_header *h, const unsigned char *body);
bool fork_failed(struct run *r, struct thread *t);
struct process *fork_done(struct run *r, struct thread *t, struct thread *child);
/* It has ended in the middle of one. */
void fork_drop(struct run *r, struct thread *t);

/* run_copy.c: of the file that is open there as fd; NULL: *err says why. */
struct copy *copy_of(struct run *r, struct thread *t, int fd, const struct stat *st, int64_t *err);
struct copy *copy_with_interpreter(struct run *r, struct copy *program, struct copy *interpreter, uint64_t at, uint64_t room);

#endif
