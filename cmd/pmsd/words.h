/*
 * words: what pmsd, its keepers, its peers and shells say to each other: lines of words. Between words there are tabs, or spaces in a line without a tab; within a
 * word \t, \n and \\ stand for themselves. No system calls.
 *
 *     migrate hostA.17 hostB
 */
#ifndef WORDS_H
#define WORDS_H

#include "buf.h"

enum { WORDS_MAX = 16, LINE_MAX_BYTES = 65536 };

/* Splits line, which is changed, at what is between the words. Returns their number, or -E2BIG or -EINVAL (a backslash before something else). */
int words_split(char *line, char *words[WORDS_MAX]);

/* Append a line of these words, the last of which is NULL. */
void words_put(struct buf *b, const char *first, ...) __attribute__((sentinel));
/* The parts of one: a word (the first of its line or not), and the end of the line. */
void words_put_word(struct buf *b, const char *word, bool first);
void words_put_end(struct buf *b);

/* A whole line at the beginning of what was read, without its end, which is taken out of b; the caller frees. NULL where none is there yet. */
char *words_take_line(struct buf *b);

#endif
