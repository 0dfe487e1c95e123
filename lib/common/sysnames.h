/*
 * sysnames: names of values and layouts of structs in system calls: sysflag.def and sysstruct.def. Pure.
 */
#ifndef PMS_SYSNAMES_H
#define PMS_SYSNAMES_H

#include "base.h"
#include "buf.h"

/* "O_WRONLY|O_CREAT" or a number, of this set ("open"). Returns false where a word is none of it. */
bool flags_parse(const char *set, const char *text, uint64_t *value);
/* Has the set this very value? */
bool flags_know(const char *set, uint64_t value);
/* The same the other way; what has no name as a number. one: a value, not a sum of flags. */
void flags_put(struct buf *out, const char *set, uint64_t value, bool one);

/* "SIGTERM", "TERM" or a number. */
bool signal_parse(const char *text, uint64_t *value);
void signal_put(struct buf *out, uint64_t value);

/* What the last argument of ioctl(2) and fcntl(2) is with this request: a type of syscall.def, or NULL. */
const char *ioctl_argument(uint64_t request);
const char *fcntl_argument(uint64_t command);

/* A decimal, octal (0...) or hexadecimal (0x...) number, with a sign if need be, and nothing behind it. */
bool number_parse(const char *text, uint64_t *value);

/* Bytes of a struct of sysstruct.def, or 0 where there is none of that name (n characters long). */
size_t struct_size(const char *name, size_t n);
/* "{1, 2}", "{tv_sec=1}" or a number for the first field; what is not named is 0. data: struct_size() zeroes. */
bool struct_parse(const char *name, size_t n, const char *text, unsigned char *data);
void struct_put(struct buf *out, const char *name, size_t n, const unsigned char *data);

/* A string in quotes, as C has it; and back: text begins with a quote. Returns where it ended, or NULL. */
void string_put(struct buf *out, const unsigned char *data, size_t len);
const char *string_parse(struct buf *out, const char *text);

void text_put(struct buf *out, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
