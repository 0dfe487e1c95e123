/*
 * rexec-sys: system calls executed in another process. One file a part:
 *
 *   main.c    arguments, the exit status
 *   script.c  calls as lines of text
 *   lend.c    a thread of a running process executes them
 */
#ifndef REXEC_H
#define REXEC_H

#include "sysarg.h"
#include "target.h"

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
int lend_call(struct lender *l, struct syscall_text *c, int64_t *result);
/* It goes on as if nothing had been. Returns 0, or a negative errno, logged. */
int lend_end(struct lender *l);

#endif
