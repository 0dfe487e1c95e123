/*
 * io: whole reads and writes, small files, pidfds. Restarts what a signal interrupts.
 */
#ifndef PMS_IO_H
#define PMS_IO_H

#include <stdarg.h>
#include <sys/types.h>

#include "base.h"

/*
 * What a signal interrupts goes on, unless this function (NULL for none) says that it shall
 * not: then it is -EINTR. For the whole program.
 */
void io_set_interrupt(bool (*interrupted)(void));

/* Make sure that fds 0, 1 and 2 exist: else the next files that are opened would be stdio. */
void io_keep_stdio(void);
/* Was this one of them that did not exist before? */
bool io_stood_in(int fd);

/* As many open files as may be. */
void io_raise_limit(void);

/*
 * Standard input and output are /dev/null from now on; so are errors with `errors`, but in a file or on a terminal: who reads what we say, such as a remote
 * shell, is not to wait for our end.
 */
void io_leave_stdio(bool errors);

/* Silent. Write all of it. Returns 0, or a negative errno. */
int write_full(int fd, const void *data, size_t len);

/*
 * The same at the offset of a new regular file, where pages of zeroes become holes, which take no room; its size is set by ftruncate(2). Silent. Returns 0, or a
 * negative errno.
 */
int write_sparse(int fd, const void *data, size_t len);

/* Silent. A line for --status-fd; fd -1: nobody asked for it. A line that is too long is left out. */
void write_status(int fd, const char *fmt, va_list ap) __attribute__((format(printf, 2, 0)));

/* Silent. Read until len bytes or the end. Returns the count, or a negative errno. */
ssize_t read_full(int fd, void *data, size_t len);

/*
 * Silent. Read a whole file below dirfd (AT_FDCWD for none), such as one of proc(5);
 * *text is NUL-terminated, and the caller frees it. Returns its length, or a negative errno.
 */
ssize_t read_file(int dirfd, const char *path, char **text);

/* Silent. Write text to an existing file in one write(2). Returns 0, or a negative errno. */
int write_file(int dirfd, const char *path, const char *text);

/* Silent. readlinkat(2) into a string that the caller frees. Returns 0, or a negative errno. */
int read_link(int dirfd, const char *path, char **target);

/*
 * open(2) for a regular file or directory and nothing else: no FIFO blocks, no device is
 * touched, no file of a kernel's own file system is read. Silent. An fd, -EMEDIUMTYPE for what it is not,
 * or a negative errno.
 */
int open_plain(const char *path, int flags);

/* close(2) for an fd variable; leaves -1 in it. */
void close_fd(int *fd);

/*
 * Move fd to a number of at least min, close-on-exec. Takes fd. Silent.
 * Returns the new number, or a negative errno (fd is closed then too).
 */
int fd_move_up(int fd, int min);

/* Silent. pidfd_open(2), pidfd_send_signal(2). Return an fd (or 0), or a negative errno. */
int pidfd_open_(pid_t pid);
int pidfd_kill(int pidfd, int sig);

struct pollfd;
/* poll(2), which first looks for look_ns without going to sleep, and lets others run who want to. 0: poll(2). */
int poll_looking(struct pollfd *fds, size_t n, int timeout_ms, int64_t look_ns);

/* Monotonic clock, in milliseconds; in nanoseconds. */
int64_t now_ms(void);
int64_t now_ns(void);

/*
 * A message on a Unix socket, and with it an open file (-1: none). Returns the bytes of it, or a negative errno. *file is -1 where none came; the
 * caller closes it. Silent.
 */
ssize_t io_send_file(int sock, const void *data, size_t len, int file);
ssize_t io_receive_file(int sock, void *data, size_t len, int *file);

/* Memory through /proc/PID/mem. Return 0, or a negative errno. Silent. */
int mem_read(int mem, taddr addr, void *data, size_t len);
int mem_write(int mem, taddr addr, const void *data, size_t len);

#endif
