/*
 * base: the types and the arithmetic that everything else stands on.
 * Knows no system calls.
 */
#ifndef PMS_BASE_H
#define PMS_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PMS_VERSION "0.1"

/* An address in a tracee. Never dereferenced, hence no pointer. */
typedef uint64_t taddr;

#define PAGE_BYTES 4096ULL
#define PAGE_MASK (~(PAGE_BYTES - 1))
#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))

static inline uint64_t
page_down(uint64_t n)
{
	return n & PAGE_MASK;
}

static inline uint64_t
page_up(uint64_t n)
{
	return (n + PAGE_BYTES - 1) & PAGE_MASK;
}

/* to: a power of two */
static inline uint64_t
round_up(uint64_t n, uint64_t to)
{
	return (n + to - 1) & ~(to - 1);
}

static inline uint64_t
min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static inline uint64_t
max_u64(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

static inline int64_t
min_i64(int64_t a, int64_t b)
{
	return a < b ? a : b;
}

static inline int64_t
max_i64(int64_t a, int64_t b)
{
	return a > b ? a : b;
}

/*
 * Make room for one more element in *arrayp, which holds n elements of size bytes and
 * is grown by doubling. The new element is zeroed.
 * Returns the new element, or NULL where memory ran out (*arrayp stays valid).
 */
void *array_grow(void **arrayp, size_t n, size_t size);

/* array_grow() for an array `a` with its count `n`; counts the element. */
#define ARRAY_ADD(a, n) array_add_counted((void **)&(a), &(n), sizeof(*(a)))
void *array_add_counted(void **arrayp, size_t *n, size_t size);

/* Writes len bytes as 2 * len lower-case hex digits and a NUL. */
void hex_encode(char *text, const void *data, size_t len);

/* Reads exactly 2 * len hex digits. Returns false at anything else. */
bool hex_decode(void *data, size_t len, const char *text);
/* The same of a longer text, its beginning. */
bool hex_decode_some(void *data, size_t len, const char *text);

/*
 * Names of files are bytes, strings in an image are UTF-8: '%', control characters and what
 * is not UTF-8 (all_high: every byte above 0x7f) become %XX. The caller frees; NULL where
 * memory ran out. percent_decode() works in place and returns false at a malformed or NUL escape.
 */
char *percent_encode(const char *s, bool all_high);
bool percent_decode(char *s);

#endif
