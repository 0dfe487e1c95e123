/*
 * What the files of libpms have in common:
 *
 *   main.c      pms_init(), and files
 *   start.c     main()
 *   answer.c    the handler: calls are executed for whoever asks
 *   stand.c     threads that stand meanwhile
 *   register.c  the daemon is told
 *   save.c      pms_checkpoint()
 */
#ifndef PMS_INTERNAL_H
#define PMS_INTERNAL_H

#include <stdatomic.h>
#include <stdbool.h>

#include "coop_abi.h"
#include "pms.h"

#define HIDDEN __attribute__((visibility("hidden")))
#define PUBLIC __attribute__((visibility("default")))

/* A system call, all arguments as they are. */
#define raw(nr, a, b, c, d) arch_raw_call(nr, (uint64_t)(a), (uint64_t)(b), (uint64_t)(c), (uint64_t)(d), 0, 0)

/* --- stand.c */
struct area {
	struct coop_note note;
	unsigned char scratch[COOP_SCRATCH];
	struct coop_held held[COOP_HELD_MAX];
	char names[4096];    /* what is read of a directory; a handler's stack may be small */
	struct coop_thread threads[COOP_THREADS_MAX]; /* the first is the one that answers */
};
HIDDEN extern struct area *area;
HIDDEN extern _Atomic uint32_t stopping; /* futex: a thread answers, or is about to */
HIDDEN extern _Atomic int32_t own_files[2]; /* that are open while others run, who may fork: number + 1, or 0 */
HIDDEN extern _Atomic int32_t answering; /* which thread that is, or 0 */
HIDDEN extern _Atomic uint32_t standing; /* futex: others that stand */
HIDDEN extern _Atomic uint32_t returned; /* futex: how many of these have come back after they were made of an image */
HIDDEN extern uint32_t nthreads, nheld;
HIDDEN extern int64_t first_tid;         /* the process: its number as it sees it */

HIDDEN void futex_wait(const void *word, uint32_t value, long ms);
HIDDEN void futex_wake(const void *word);

/* This thread is the first; nobody else stands. */
HIDDEN void stand_begin(void);
/* All others, until nobody is new. Returns 0, the number of a thread that does not stop, or a negative errno. */
HIDDEN int stand_others(void);
/* It executes the entries that are put down for it. */
HIDDEN void stand_run(struct coop_thread *t);
/* What a thread has to tell of itself, from where it returns out of a handler with this context. */
HIDDEN void stand_describe(struct coop_thread *t, const void *context);
/* Signals that were taken from this thread, and by the process's first one those of the process. */
HIDDEN void stand_queue_again(int32_t tid);
/* They go on; returns when all have left. */
HIDDEN void stand_let_go(void);
/* PMS_SIGNAL with this value to a thread. Returns 0, or a negative errno. Is a value one by which they are stopped? Then they stand. */
HIDDEN int stand_send(int32_t tid, uint64_t value);
HIDDEN bool stand_is_ours(uint64_t value);
HIDDEN void stand_if_stopped(uint64_t value, const void *context);

/* --- answer.c */
/* From now on the process can be asked. Returns 0, or a negative errno. */
HIDDEN int answer_begin(void);
/* How often this process has been made of an image. */
HIDDEN uint32_t answer_generation(void);
/* Is it between pms_disable() and pms_enable()? */
HIDDEN bool answer_disabled(void);
/* --- register.c: safe in a signal handler but for register_find(), which is called first */
HIDDEN void register_find(void);
/* note: of whoever has made us of an image, or NULL. */
HIDDEN void register_here(const struct coop_note *note);

#endif
