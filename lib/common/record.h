/*
 * record: structs <-> JSON, off one table a struct, so that what is written and what is
 * read cannot differ. Also releases what a struct owns. No system calls.
 *
 * Every value that is read is checked against the type and the width of its field and
 * against its table's limits; what the fields mean is model_check()'s business.
 */
#ifndef PMS_RECORD_H
#define PMS_RECORD_H

#include <jansson.h>

#include "base.h"

enum field_type {
	FIELD_INT,     /* int64_t */
	FIELD_UINT,    /* uint64_t below 2^63 */
	FIELD_HEX,     /* uint64_t, written "0x..": addresses, masks */
	FIELD_BOOL,    /* bool, absent when false */
	FIELD_STR,     /* char *, absent when NULL */
	FIELD_BYTES,   /* struct bytes, in hex, without trailing zeroes; "n" stands before it */
	FIELD_REC,     /* a struct */
	FIELD_LIST,    /* pointer and count of structs */
	FIELD_STRS,    /* pointer and count of strings */
	FIELD_INTS,    /* pointer and count of int64_t */
	FIELD_INT4,    /* int64_t[4] */
};

struct record;

struct field {
	const char *name;
	enum field_type type;
	size_t offset, count_offset;
	const struct record *rec; /* of FIELD_REC and FIELD_LIST */
	bool optional;
};

struct record {
	const char *name;
	size_t size;
	const struct field *fields;
	size_t nfields;
};

/* Longest list, and largest FIELD_BYTES, that a reader accepts. */
#define RECORD_LIST_MAX 1000000
#define RECORD_BYTES_MAX (4 << 20)
/* Most values that a text may hold. */
#define RECORD_VALUES_MAX (16 << 20)

/* Returns a new JSON object, or NULL where memory ran out. */
json_t *record_put(const struct record *rec, const void *st);

/*
 * Fill *st, which is zeroed first, from json. On failure *st holds nothing, and why[]
 * says in words which member was wrong. Returns 0, or -EBADMSG or -ENOMEM.
 */
int record_get(const struct record *rec, void *st, const json_t *json, char why[128]);

/* Release what *st owns, and zero it. */
void record_free(const struct record *rec, void *st);

/* As text; the caller frees. NULL where memory ran out. */
char *record_to_text(const struct record *rec, const void *st, size_t *len);
int record_from_text(const struct record *rec, void *st, const char *text, size_t len,
    char why[128]);

/* The tables: tables.c. */
extern const struct record record_header, record_task, record_objects, record_end;

#endif
