/*
 * call: system calls on behalf of others. A struct script is calls in order with the data
 * that their pointer arguments need; a driver executes it elsewhere (tracee.h, loop.h).
 * Pure: building a script and knowing the names.
 */
#ifndef PMS_CALL_H
#define PMS_CALL_H

#include "arch.h"
#include "base.h"
#include "buf.h"

/* Name of a call, or NULL. */
const char *syscall_name(long nr);
/* Number of a name, or -1. */
long syscall_number(const char *name);
/* What its arguments are, as syscall.def has it, or NULL. */
const char *syscall_arguments(long nr);
/* Must no process have it executed by others? */
bool syscall_never_lent(long nr);

/* Where it is executed for a thread whose files are on another machine: syscall.def. What does not exist: NONE. */
enum syscall_class { SYSCALL_NONE, SYSCALL_HERE, SYSCALL_HOME, SYSCALL_KNOWN, SYSCALL_WAIT, SYSCALL_BOTH };
enum syscall_class syscall_class(long nr);
/* May it wait for others, unless its file is a regular one or a directory? Is what it returns a new fd? */
bool syscall_blocks(long nr);
bool syscall_new_fd(long nr);
#define SYSCALL_LAST 511 /* no number is higher */

/* Does this call return EINTR for a mere stop, and can it be begun again? */
bool syscall_eintr_restarts(long nr);

/* One call in a script. */
struct script_call {
	struct arch_call call;
	uint8_t data_args; /* bit i: argument i is an offset into the script's data */
	bool may_fail;
	int64_t result;    /* after execution: as the kernel returned it, or SCRIPT_NOT_RUN */
	const char *what;  /* borrowed: what this call is for, in messages */
};

#define SCRIPT_NOT_RUN INT64_MIN

struct script {
	struct script_call *calls; /* owned */
	size_t ncalls;
	struct buf data; /* results are read back into it */
	bool failed;     /* memory ran out */
};

void script_fini(struct script *s);

/*
 * Append a call; returns its index. Up to six arguments, missing ones are 0.
 *     script_add(&s, "heap", SYS_mmap, addr, len, ...)
 */
#define SCRIPT_ARGS(...) ((const uint64_t[6]){__VA_ARGS__})
#define script_add(s, what, nr, ...) script_add_call(s, what, nr, SCRIPT_ARGS(__VA_ARGS__))
size_t script_add_call(struct script *s, const char *what, long nr, const uint64_t arg[6]);

/* The call that was added last: argument i is data (an offset that script_data() returned). */
void script_data_arg(struct script *s, unsigned i);
void script_may_fail(struct script *s);

/* Put bytes (NULL: zeroes) into the data, 16-aligned. Returns their offset. */
uint64_t script_data(struct script *s, const void *data, size_t len);

/* The first call whose result is an error that it may not have, or NULL. */
const struct script_call *script_first_error(const struct script *s);

#endif
