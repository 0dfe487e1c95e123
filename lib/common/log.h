/*
 * log: messages for people, on stderr, each one line: `prog: what: reason`.
 *
 * The function that met a failure logs it once with fail() or fail_errno() and returns
 * what they return; its callers only clean up and pass the value on.
 */
#ifndef PMS_LOG_H
#define PMS_LOG_H

#include <stdbool.h>

enum { LOG_QUIET = -1, LOG_NORMAL = 0, LOG_VERBOSE = 1, LOG_DEBUG = 2 };

/* prog is borrowed for the life of the program. */
void log_init(const char *prog, int level);

/* As log_init() was told. */
int log_level(void);

/* Messages go to this fd (borrowed) from now on. */
void log_to(int fd);

/* Silence fail() while a failure is expected and handled. Nests. */
void log_hush(int by);

/*
 * Log an error, one line. Returns -err.
 * err is the errno the caller of the function is to see.
 */
int fail(int err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Log an error with the text of errno behind it. Returns -errno. */
int fail_errno(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* The last line that fail() or fail_errno() logged, without the program's name. */
const char *log_last(void);
/* The last one that was hushed. */
const char *log_last_hushed(void);

/* Something that the user has to know although the work goes on: a loss, a fallback. */
void note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Shown with -v (level 1) or -vv (level 2). */
void debug(int level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/*
 * Progress: one line, rewritten in place, on a terminal only and only when the work has
 * gone on for over a second. total may be 0 where it is not known. done == total != 0
 * ends the line.
 */
void log_progress(const char *what, unsigned long long done, unsigned long long total);
void log_progress_end(void);

#endif
