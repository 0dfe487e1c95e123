/*
 * victim: a process with known state, for tests. `victim NAME...` makes each named piece
 * of state, prints "ready", and on every SIGUSR2 checks all of it again and prints "ok" or one
 * line for each thing that differs. SIGTERM ends it with status 7.
 */
#ifndef VICTIM_H
#define VICTIM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct maker {
	const char *name;
	void (*make)(void);
	void (*check)(void);
};

/* Tell what differs; the check goes on. */
void differs(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* End with a message: the state could not be made. */
void die(const char *what);
/* r, or the end where it is negative. */
int must(int r, const char *what);

#define SAME(got, want)                                                                        \
	do {                                                                                   \
		long long got_ = (long long)(got), want_ = (long long)(want);                  \
		if (got_ != want_)                                                             \
			differs("%s:%d: %s is %lld, not %lld", __FILE__, __LINE__, #got, got_, \
			    want_);                                                            \
	} while (0)

extern const struct maker memory_makers[], signal_makers[], file_makers[], thread_makers[],
    process_makers[], tree_makers[], object_makers[], socket_makers[], sysv_makers[], uring_makers[], pty_makers[];

#endif
