#include "record.h"

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"

static size_t
count_of(const struct field *f, const void *st)
{
	return *(const size_t *)((const char *)st + f->count_offset);
}

static json_t *
put_hex(uint64_t v)
{
	char text[24];

	snprintf(text, sizeof(text), "0x%llx", (unsigned long long)v);
	return json_string(text);
}

enum { ZEROES_MIN = 8 }; /* fewer are as short in digits */

static size_t
zeroes_at(const struct bytes *b, size_t at)
{
	size_t n = 0;

	while (at + n < b->n && b->p[at + n] == 0)
		n++;
	return n;
}

/* {"n": LENGTH, "hex": "12ef*400*7f"}: register areas are long runs of zeroes, and end in one. */
static json_t *
put_bytes(const struct bytes *b)
{
	char *text = malloc(2 * b->n + 1), *end = text;
	size_t zeroes;
	json_t *v;

	if (text == NULL)
		return NULL;
	*end = '\0';
	for (size_t at = 0; at < b->n; at += zeroes) {
		zeroes = zeroes_at(b, at);
		if (at + zeroes == b->n)
			break;
		if (zeroes >= ZEROES_MIN) {
			end += sprintf(end, "*%zu*", zeroes);
			continue;
		}
		zeroes += zeroes == 0;
		hex_encode(end, b->p + at, zeroes);
		end += 2 * zeroes;
	}
	v = json_pack("{s:I, s:s}", "n", (json_int_t)b->n, "hex", text);
	free(text);
	return v;
}

static json_t *
put_str(const char *s)
{
	char *text = percent_encode(s, false);
	json_t *v = text != NULL ? json_string(text) : NULL;

	free(text);
	if (v == NULL) { /* not UTF-8 */
		text = percent_encode(s, true);
		v = text != NULL ? json_string(text) : NULL;
		free(text);
	}
	return v;
}

static json_t *
put_list(const struct field *f, const void *st, const void *at)
{
	json_t *list = json_array();
	size_t n = f->type == FIELD_INT4 ? 4 : count_of(f, st);

	for (size_t i = 0; list != NULL && i < n; i++) {
		json_t *v;

		switch (f->type) {
		case FIELD_STRS:
			v = put_str((*(char *const *const *)at)[i]);
			break;
		case FIELD_INTS:
			v = json_integer((*(const int64_t *const *)at)[i]);
			break;
		case FIELD_INT4:
			v = json_integer(((const int64_t *)at)[i]);
			break;
		default:
			v = record_put(f->rec, *(const char *const *)at + i * f->rec->size);
		}
		if (v == NULL || json_array_append_new(list, v) != 0) {
			json_decref(list);
			return NULL;
		}
	}
	return list;
}

/* Sets *skip for a field that is absent when it has its default. */
static json_t *
put_field(const struct field *f, const void *st, bool *skip)
{
	const void *at = (const char *)st + f->offset;

	*skip = false;
	switch (f->type) {
	case FIELD_INT:
		return json_integer(*(const int64_t *)at);
	case FIELD_UINT:
		*skip = f->optional && *(const uint64_t *)at == 0;
		return *skip ? NULL : json_integer((json_int_t)(*(const uint64_t *)at & INT64_MAX));
	case FIELD_HEX:
		return put_hex(*(const uint64_t *)at);
	case FIELD_BOOL:
		*skip = !*(const bool *)at;
		return *skip ? NULL : json_true();
	case FIELD_STR:
		*skip = *(char *const *)at == NULL;
		return *skip ? NULL : put_str(*(char *const *)at);
	case FIELD_BYTES:
		*skip = ((const struct bytes *)at)->n == 0;
		return *skip ? NULL : put_bytes(at);
	case FIELD_REC:
		return record_put(f->rec, at);
	default:
		*skip = f->optional && f->type != FIELD_INT4 && count_of(f, st) == 0;
		return *skip ? NULL : put_list(f, st, at);
	}
}

json_t *
record_put(const struct record *rec, const void *st)
{
	json_t *obj = json_object();

	for (size_t i = 0; obj != NULL && i < rec->nfields; i++) {
		const struct field *f = &rec->fields[i];
		bool skip;
		json_t *v = put_field(f, st, &skip);

		if (!skip && (v == NULL || json_object_set_new(obj, f->name, v) != 0)) {
			json_decref(obj);
			return NULL;
		}
	}
	return obj;
}

static int
wrong(char why[128], const struct record *rec, const char *field, const char *what)
{
	snprintf(why, 128, "%s.%s: %s", rec->name, field, what);
	return -EBADMSG;
}

static bool
get_hex(uint64_t *v, const json_t *json)
{
	const char *s = json_string_value(json);
	char *end;

	if (s == NULL || s[0] != '0' || s[1] != 'x' || s[2] == '\0' || strlen(s) > 18 ||
	    strspn(s + 2, "0123456789abcdef") != strlen(s + 2))
		return false;
	*v = strtoull(s + 2, &end, 16);
	return *end == '\0';
}

/* Into as many zeroes as there are to be bytes. */
static bool
fill_bytes(struct bytes *b, const char *hex)
{
	for (size_t at = 0, n; *hex != '\0'; at += n) {
		char *end;

		if (hex[0] == '*' && isdigit((unsigned char)hex[1])) {
			n = strtoul(hex + 1, &end, 10);
			if (*end++ != '*' || n > b->n - at)
				return false;
			hex = end;
			continue;
		}
		n = strspn(hex, "0123456789abcdef") / 2;
		if (n == 0 || n > b->n - at || !hex_decode_some(b->p + at, n, hex))
			return false;
		hex += 2 * n;
	}
	return true;
}

static int
get_bytes(struct bytes *b, const json_t *json)
{
	const json_t *n = json_object_get(json, "n");
	const char *hex = json_string_value(json_object_get(json, "hex"));

	if (!json_is_integer(n) || hex == NULL || json_integer_value(n) < 1 || json_integer_value(n) > RECORD_BYTES_MAX)
		return -EBADMSG;
	b->p = calloc(1, (size_t)json_integer_value(n));
	if (b->p == NULL)
		return -ENOMEM;
	b->n = (size_t)json_integer_value(n);
	return fill_bytes(b, hex) ? 0 : -EBADMSG;
}

/* A string in an image is a C string: jansson lets no NUL through (JSON_ALLOW_NUL is off). */
static int
get_str(char **s, const json_t *json)
{
	if (!json_is_string(json))
		return -EBADMSG;
	*s = strdup(json_string_value(json));
	if (*s == NULL)
		return -ENOMEM;
	return percent_decode(*s) ? 0 : -EBADMSG;
}

static int
get_element(const struct field *f, char *el, const json_t *json, char why[128])
{
	switch (f->type) {
	case FIELD_STRS:
		return get_str((char **)el, json);
	case FIELD_INTS:
	case FIELD_INT4:
		if (!json_is_integer(json))
			return -EBADMSG;
		*(int64_t *)el = json_integer_value(json);
		return 0;
	default:
		return record_get(f->rec, el, json, why);
	}
}

static int
get_list(const struct field *f, void *st, void *at, const json_t *json, char why[128])
{
	size_t n = json_array_size(json);
	size_t size = f->type == FIELD_LIST ? f->rec->size : sizeof(int64_t);
	char *els = at;

	if (!json_is_array(json) || n > RECORD_LIST_MAX || (f->type == FIELD_INT4 && n != 4))
		return -EBADMSG;
	if (f->type != FIELD_INT4) {
		els = calloc(n + 1, size);
		if (els == NULL)
			return -ENOMEM;
		*(char **)at = els;
	}
	for (size_t i = 0; i < n; i++) {
		int err = get_element(f, els + i * size, json_array_get(json, i), why);

		if (err < 0 && f->type == FIELD_STRS)
			free(((char **)els)[i]);
		if (err < 0)
			return err;
		if (f->type != FIELD_INT4)
			*(size_t *)((char *)st + f->count_offset) = i + 1;
	}
	return 0;
}

static int
get_field(const struct field *f, void *st, const json_t *json, char why[128])
{
	void *at = (char *)st + f->offset;

	switch (f->type) {
	case FIELD_INT:
	case FIELD_UINT:
		if (!json_is_integer(json) ||
		    (f->type == FIELD_UINT && json_integer_value(json) < 0))
			return -EBADMSG;
		*(int64_t *)at = json_integer_value(json);
		return 0;
	case FIELD_HEX:
		return get_hex(at, json) ? 0 : -EBADMSG;
	case FIELD_BOOL:
		*(bool *)at = json_is_true(json);
		return json_is_boolean(json) ? 0 : -EBADMSG;
	case FIELD_STR:
		return get_str(at, json);
	case FIELD_BYTES:
		return get_bytes(at, json);
	case FIELD_REC:
		return record_get(f->rec, at, json, why);
	default:
		return get_list(f, st, at, json, why);
	}
}

static bool
may_be_absent(const struct field *f)
{
	return f->optional || f->type == FIELD_BOOL || f->type == FIELD_STR ||
	    f->type == FIELD_BYTES;
}

int
record_get(const struct record *rec, void *st, const json_t *json, char why[128])
{
	int err = 0;

	memset(st, 0, rec->size);
	if (!json_is_object(json))
		return wrong(why, rec, "", "not an object");
	for (size_t i = 0; err == 0 && i < rec->nfields; i++) {
		const struct field *f = &rec->fields[i];
		const json_t *v = json_object_get(json, f->name);

		if (v == NULL && may_be_absent(f))
			continue;
		if (v == NULL) {
			err = wrong(why, rec, f->name, "missing");
			break;
		}
		why[0] = '\0';
		err = get_field(f, st, v, why);
		if (err == -EBADMSG && why[0] == '\0')
			wrong(why, rec, f->name, "malformed");
	}
	if (err < 0)
		record_free(rec, st);
	return err;
}

static void
free_list(const struct field *f, void *st, void *at)
{
	size_t n = count_of(f, st);
	char *els = *(char **)at;

	for (size_t i = 0; i < n && f->type != FIELD_INTS; i++) {
		if (f->type == FIELD_STRS)
			free(((char **)els)[i]);
		else
			record_free(f->rec, els + i * f->rec->size);
	}
	free(els);
}

void
record_free(const struct record *rec, void *st)
{
	for (size_t i = 0; i < rec->nfields; i++) {
		const struct field *f = &rec->fields[i];
		void *at = (char *)st + f->offset;

		switch (f->type) {
		case FIELD_STR:
			free(*(char **)at);
			break;
		case FIELD_BYTES:
			free(((struct bytes *)at)->p);
			break;
		case FIELD_REC:
			record_free(f->rec, at);
			break;
		case FIELD_LIST:
		case FIELD_STRS:
		case FIELD_INTS:
			free_list(f, st, at);
			break;
		default:
			break;
		}
	}
	memset(st, 0, rec->size);
}

char *
record_to_text(const struct record *rec, const void *st, size_t *len)
{
	json_t *json = record_put(rec, st);
	char *text;

	if (json == NULL)
		return NULL;
	text = json_dumps(json, JSON_COMPACT);
	json_decref(json);
	if (text != NULL)
		*len = strlen(text);
	return text;
}

static size_t
count_values(const char *text, size_t len)
{
	size_t n = 0;

	for (size_t i = 0; i < len; i++)
		n += text[i] == ',' || text[i] == '[' || text[i] == '{';
	return n;
}

int
record_from_text(const struct record *rec, void *st, const char *text, size_t len, char why[128])
{
	json_error_t error;
	json_t *json = NULL;
	int err;

	/* A value takes many times the room in memory that it takes in the text. */
	error.line = 0;
	if (count_values(text, len) <= RECORD_VALUES_MAX)
		json = json_loadb(text, len, JSON_REJECT_DUPLICATES, &error);
	if (json == NULL) {
		memset(st, 0, rec->size);
		snprintf(why, 128, "%s: line %d: not JSON, or too much of it", rec->name, error.line);
		return -EBADMSG;
	}
	err = record_get(rec, st, json, why);
	json_decref(json);
	return err;
}
