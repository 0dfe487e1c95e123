/*
 * loop_driver: a driver for scripts in a process that is being built: the script loop of the CPU is
 * mapped into it, and a whole script costs one resume and one stop.
 */
#ifndef PMS_LOOP_DRIVER_H
#define PMS_LOOP_DRIVER_H

#include "call.h"
#include "tracee.h"
#include "untraced.h"

#define LOOP_BYTES (64 * PAGE_BYTES) /* code, stack, entries, data */
#define LOOP_DATA_MAX (24 * PAGE_BYTES)

struct loop {
	taddr at;
	int mem;
	struct untraced *untraced; /* scripts go by that, and not by ptrace(2); borrowed; or NULL */
};

/* What an untraced process shares with us of it. */
#define LOOP_SHARED_BYTES (LOOP_BYTES - PAGE_BYTES)

/*
 * Map the loop at `at`, which must be free, by calls at ip (a `syscall` instruction of its
 * own). Leaves t in a stop. Returns 0, or a negative errno, logged.
 */
int loop_map(struct loop *loop, struct tracee *t, taddr ip, taddr at);

/*
 * Run a script in thread t. Results and data are read back. Ends at the first error that the
 * script does not allow, which is logged. Returns 0, or a negative errno.
 */
int loop_run(struct loop *loop, struct tracee *t, struct script *s);

/* The same of n threads of one process, each its own script, at once where they are traced. */
int loop_run_all(struct loop *loop, struct tracee *threads, struct script *scripts, size_t n);

/* Data area for calls that are made one by one. */
taddr loop_data(const struct loop *loop);

#endif
