/*
 * sysarg: one system call from text and back, as syscall.def describes its arguments. Pure, but for @FILE.
 *
 *   number        also 0x.., 0.., -1, and by name where the argument has names: O_RDWR|O_CREAT, SIGTERM, AT_FDCWD
 *   $N            the result of the N-th call before, from 1
 *   "text\n"      bytes, as C has them; where text is expected also without quotes
 *   @FILE         the bytes of a file
 *   {1, b=2}      a struct; [{..}, {..}] several
 *   inet:HOST:PORT, unix:PATH, unix:@NAME    an address
 *   _             room for what the call gives; NULL none
 */
#ifndef PMS_SYSARG_H
#define PMS_SYSARG_H

#include "buf.h"
#include "call.h"

struct sysarg {
	const char *type; /* of syscall.def; ends at a space */
	size_t type_len;
	bool is_data;     /* value is an offset into data */
	uint64_t value;
	size_t len;       /* of the data */
};

struct syscall_text {
	long nr;
	struct sysarg arg[6];
	unsigned nargs;  /* as the table has it */
	unsigned shown;  /* those that were given, or follow from them */
	struct buf data; /* what the pointers lead to; 16-aligned each */
};

enum { SYSARG_DATA_MAX = 16 << 20 };

/*
 * results: of the calls before, for $N. Returns 0, or -EINVAL, and why[] says what is wrong with which argument;
 * -ENOTSUP: a call that nobody can have executed for him.
 */
int syscall_text_parse(struct syscall_text *c, const char *name, char *const *args, size_t nargs, const int64_t *results,
    size_t nresults, char why[200]);
void syscall_text_fini(struct syscall_text *c);

/* The call as numbers; base: where the data is to be in the one that executes it. */
struct arch_call syscall_text_call(const struct syscall_text *c, taddr base);

/* "name(arg, ...) = result", data as it is after the call; no newline. */
void syscall_text_put(struct buf *out, const struct syscall_text *c, int64_t result);
/* One argument of it. */
void syscall_text_put_arg(struct buf *out, const struct syscall_text *c, unsigned i, int64_t result);
/* "3", "0x7f..", "-1 ENOENT (No such file or directory)" */
void syscall_text_put_result(struct buf *out, const struct syscall_text *c, int64_t result);

#endif
