/*
 * rexec-sys: system calls executed elsewhere. One file a part:
 *
 *   main.c      arguments, the exit status
 *   by_hand.c   calls as text, one after the other, and what comes of them
 *   script.c    calls as lines of text
 *   lend.c      a thread of a running process executes them
 *   remote.c    another machine executes them
 *   serve.c     we execute them for others; session.h has the rest of this side
 *   run.c       a command runs here, and its calls are executed there; run.h
 */
#ifndef REXEC_H
#define REXEC_H

#include "link.h"
#include "sysarg.h"
#include "target.h"

/* Who ends us has sent a signal: nothing new is begun. */
bool cancelled(void);

struct call_options {
	int pid, tid; /* pid 0: at address */
	const char *address, *key;
	int64_t block_ms;
	bool json;
};

/* Have it all executed, and print what comes of it. Returns 0, 1 where a call failed that may not, or a negative errno, logged. */
struct script_text;
int call_by_hand(const struct call_options *o, const struct script_text *s);

struct serve_options {
	const char *address, *key;
	int pid; /* the calls are executed in this process; 0: in one of their own */
};
int serve(const struct serve_options *o);

/* --- another machine */

enum { REMOTE_GROUPS_MAX = 1024 };

/* What it has told of itself. */
struct facts {
	uint32_t uid[3], gid[3]; /* real, effective, saved */
	uint32_t ngroups, groups[REMOTE_GROUPS_MAX];
	unsigned char utsname[390];
	int64_t ahead_ns; /* its clock beside ours, give or take the round trip */
};

struct remote {
	struct link link;
	struct facts facts;
	uint32_t last_id;
};

/* Our first thread there has the number 1. Returns 0, or a negative errno, logged. */
int remote_open(struct remote *r, const char *address, const char *key);
/* The home of a process that is ours now, with this image; in and out: a connection that is there already (taken), or -1. */
int remote_adopt(struct remote *r, const char *address, const char *key, int in, int out, const char *image);
void remote_close(struct remote *r);
/* Send a call of a thread; *id is that of its result. */
int remote_send(struct remote *r, uint32_t thread, const struct calldata *c, uint32_t *id);
/* The same, and wait for what comes of it, where nothing else is under way. */
int remote_call(struct remote *r, uint32_t thread, struct calldata *c, int64_t *result);

struct line {
	char **words; /* owned, with what they point to */
	size_t nwords;
	bool may_fail; /* it began with '-' */
	unsigned number; /* of the line, from 1; 0: from the command line */
};

struct script_text {
	struct line *lines;
	size_t nlines;
};

/* Split what is read from fd, one call a line, or take one from the command line. Returns 0, or a negative errno, logged. */
int script_read(struct script_text *s, int fd);
int script_take(struct script_text *s, char *const *words, size_t n);
void script_free(struct script_text *s);
/* Is it what syscall.def knows? Results are not there yet, so $N is taken for 0. Returns 0, or a negative errno, logged. */
int script_check(const struct script_text *s);

struct lender {
	struct target target;
	struct tracee *thread;
	int64_t block_ms; /* how long a call may block */
	bool (*cancelled)(void);
};

/* Stop the thread and prepare it for calls. Returns 0, or a negative errno, logged. */
int lend_begin(struct lender *l, pid_t pid, pid_t tid);
/* Execute it there; the data of c is what the process has afterwards. *result as the kernel gives it. */
int lend_call(struct lender *l, struct calldata *c, int64_t *result);
/* It goes on as if nothing had been. Returns 0, or a negative errno, logged. */
int lend_end(struct lender *l);

#endif
