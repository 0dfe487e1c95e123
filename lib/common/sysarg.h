/*
 * sysarg: one system call from text and back, as syscall.def describes its arguments. Pure, but for @FILE.
 *
 *   number        also 0x.., 0.., -1, and by name where the argument has names: O_RDWR|O_CREAT, SIGTERM, AT_FDCWD
 *   $N            the result of the N-th call before, from 1
 *   "text\n"      bytes, as C has them; where text is expected also without quotes
 *   @FILE         the bytes of a file
 *   {1, b=2}      a struct; [{..}, {..}] several
 *   4096, "bytes"  for an array of struct iovec or a struct msghdr: room for so much, or the data
 *   inet:HOST:PORT, unix:PATH, unix:@NAME    an address
 *   _             room for what the call gives; NULL none
 */
#ifndef PMS_SYSARG_H
#define PMS_SYSARG_H

#include "calldata.h"

/*
 * results: of the calls before, for $N. Returns 0, or -EINVAL, and why[] says what is wrong with which argument;
 * -ENOTSUP: a call that nobody can have executed for him.
 */
int syscall_text_parse(struct calldata *c, const char *name, char *const *args, size_t nargs, const int64_t *results,
    size_t nresults, char why[200]);

/* "name(arg, ...) = result", data as it is after the call; no newline. */
void syscall_text_put(struct buf *out, const struct calldata *c, int64_t result);
/* One argument of it. */
void syscall_text_put_arg(struct buf *out, const struct calldata *c, unsigned i, int64_t result);
/* "3", "0x7f..", "-1 ENOENT (No such file or directory)" */
void syscall_text_put_result(struct buf *out, const struct calldata *c, int64_t result);

#endif
