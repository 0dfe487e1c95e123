#include "sysnames.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const struct {
	const char *set, *name;
	uint64_t value;
} flags[] = {
#define FLAG(set, name) {#set, #name, (uint64_t)(name)},
#define IOCTL(name, argument) {"ioctl", #name, (uint64_t)(name)},
#define FCNTL(name, argument) {"fcntl", #name, (uint64_t)(name)},
#include "sysflag.def"
#undef FLAG
#undef IOCTL
#undef FCNTL
};

static const struct {
	const char *set;
	uint64_t value;
	const char *argument;
} arguments[] = {
#define FLAG(set, name)
#define IOCTL(name, argument) {"ioctl", (uint64_t)(name), argument},
#define FCNTL(name, argument) {"fcntl", (uint64_t)(name), argument},
#include "sysflag.def"
#undef FLAG
#undef IOCTL
#undef FCNTL
};

static const struct {
	const char *name, *fields;
} structs[] = {
#define STRUCT(name, fields) {#name, fields},
#include "sysstruct.def"
#undef STRUCT
};

void
text_put(struct buf *out, const char *format, ...)
{
	char text[512];
	va_list ap;
	int n;

	va_start(ap, format);
	n = vsnprintf(text, sizeof(text), format, ap);
	va_end(ap);
	buf_put(out, text, min_u64((uint64_t)n, sizeof(text) - 1));
}

bool
number_parse(const char *text, uint64_t *value)
{
	char *end;

	errno = 0;
	*value = text[0] == '-' ? (uint64_t)strtoll(text, &end, 0) : strtoull(text, &end, 0);
	return errno == 0 && end != text && *end == '\0' && (isdigit((unsigned char)text[0]) || text[0] == '-');
}

/* --- flags */

static bool
word_parse(const char *set, const char *word, uint64_t *value)
{
	for (size_t i = 0; i < ARRAY_LEN(flags); i++)
		if (strcmp(flags[i].set, set) == 0 && strcmp(flags[i].name, word) == 0) {
			*value = flags[i].value;
			return true;
		}
	return number_parse(word, value);
}

bool
flags_parse(const char *set, const char *text, uint64_t *value)
{
	char *copy = strdup(text), *save = NULL;
	bool good = copy != NULL;

	*value = 0;
	for (char *word = good ? strtok_r(copy, "|", &save) : NULL; word != NULL && good; word = strtok_r(NULL, "|", &save)) {
		uint64_t one;

		good = word_parse(set, word, &one);
		*value |= one;
	}
	free(copy);
	return good && text[0] != '\0';
}

bool
flags_know(const char *set, uint64_t value)
{
	for (size_t i = 0; i < ARRAY_LEN(flags); i++)
		if (strcmp(flags[i].set, set) == 0 && flags[i].value == value)
			return true;
	return false;
}

void
flags_put(struct buf *out, const char *set, uint64_t value, bool one)
{
	const char *between = "", *nothing = NULL;
	uint64_t left = value;

	for (size_t i = 0; i < ARRAY_LEN(flags); i++) {
		uint64_t v = flags[i].value;

		if (strcmp(flags[i].set, set) != 0)
			continue;
		if (v == 0)
			nothing = flags[i].name;
		if (one ? v != value || between[0] != '\0' : v == 0 || (left & v) != v)
			continue;
		text_put(out, "%s%s", between, flags[i].name);
		between = "|";
		left = one ? 0 : left & ~v;
	}
	/* Not a bit, but what is there without the others. */
	if (strcmp(set, "open") == 0 && (value & O_ACCMODE) == O_RDONLY) {
		text_put(out, "%sO_RDONLY", between);
		between = "|";
	}
	if (between[0] == '\0' && left == 0 && nothing != NULL)
		text_put(out, "%s", nothing);
	else if (left != 0 || between[0] == '\0')
		text_put(out, left < 10 || one ? "%s%lld" : "%s%#llx", between, (unsigned long long)left);
}

bool
signal_parse(const char *text, uint64_t *value)
{
	const char *name = strncmp(text, "SIG", 3) == 0 ? text + 3 : text;

	for (int sig = 1; sig < 32; sig++)
		if (sigabbrev_np(sig) != NULL && strcmp(sigabbrev_np(sig), name) == 0) {
			*value = (uint64_t)sig;
			return true;
		}
	return number_parse(text, value);
}

void
signal_put(struct buf *out, uint64_t value)
{
	const char *name = value > 0 && value < 32 ? sigabbrev_np((int)value) : NULL;

	if (name != NULL)
		text_put(out, "SIG%s", name);
	else
		text_put(out, "%d", (int)value);
}

static const char *
argument_of(const char *set, uint64_t value)
{
	for (size_t i = 0; i < ARRAY_LEN(arguments); i++)
		if (strcmp(arguments[i].set, set) == 0 && arguments[i].value == value)
			return arguments[i].argument;
	return NULL;
}

const char *
ioctl_argument(uint64_t request)
{
	return argument_of("ioctl", request);
}

const char *
fcntl_argument(uint64_t command)
{
	return argument_of("fcntl", command);
}

/* --- strings */

void
string_put(struct buf *out, const unsigned char *data, size_t len)
{
	static const char specials[] = "\n\t\r\\\"", letters[] = "ntr\\\"";

	buf_put(out, "\"", 1);
	for (size_t i = 0; i < len; i++) {
		const char *p = data[i] != 0 ? strchr(specials, data[i]) : NULL;
		bool digit = i + 1 < len && isdigit(data[i + 1]);

		if (p != NULL)
			text_put(out, "\\%c", letters[p - specials]);
		else if (data[i] >= 32 && data[i] < 127)
			buf_put(out, data + i, 1);
		else
			text_put(out, digit ? "\\%03o" : "\\%o", data[i]);
	}
	buf_put(out, "\"", 1);
}

/* Behind a backslash. */
static const char *
escape_parse(struct buf *out, const char *p)
{
	static const char letters[] = "ntrabfve", values[] = "\n\t\r\a\b\f\v\033";
	const char *found = *p != '\0' ? strchr(letters, *p) : NULL;
	unsigned char c = (unsigned char)*p;
	unsigned value = 0;
	int n = 0;

	if (found != NULL) {
		buf_put(out, values + (found - letters), 1);
		return p + 1;
	}
	if (*p == 'x') {
		while (n < 2 && isxdigit((unsigned char)p[1 + n]))
			n++;
		if (n == 0)
			return NULL;
		sscanf(p + 1, "%2x", &value);
		c = (unsigned char)value;
		buf_put(out, &c, 1);
		return p + 1 + n;
	}
	for (; n < 3 && p[n] >= '0' && p[n] <= '7'; n++)
		value = value * 8 + (unsigned)(p[n] - '0');
	c = n > 0 ? (unsigned char)value : c;
	if (*p != '\0')
		buf_put(out, &c, 1);
	return *p == '\0' ? NULL : p + (n > 0 ? n : 1);
}

const char *
string_parse(struct buf *out, const char *text)
{
	const char *p = text + 1;

	while (p != NULL && *p != '"' && *p != '\0') {
		if (*p == '\\') {
			p = escape_parse(out, p + 1);
			continue;
		}
		buf_put(out, p++, 1);
	}
	return p != NULL && *p == '"' ? p + 1 : NULL;
}

/* --- structs */

struct member {
	char type;
	size_t offset, size;
	char name[32];
};

static const char *
fields_of(const char *name, size_t n)
{
	for (size_t i = 0; i < ARRAY_LEN(structs); i++)
		if (strlen(structs[i].name) == n && strncmp(structs[i].name, name, n) == 0)
			return structs[i].fields;
	return NULL;
}

/* The field at p, which begins at or behind offset. Returns what follows, NULL at the end. */
static const char *
next_member(const char *p, size_t offset, struct member *m)
{
	static const char types[] = "bBhHiIoxlLX";
	static const unsigned char sizes[] = {1, 1, 2, 2, 4, 4, 4, 4, 8, 8, 8};
	unsigned long count;
	char *end;

	p += strspn(p, " ");
	if (*p == '\0')
		return NULL;
	m->type = *p++;
	count = strtoul(p, &end, 10);
	m->size = m->type == 'c' || m->type == 'r' ? count : sizes[strchr(types, m->type) - types];
	m->offset = m->type == 'c' || m->type == 'r' ? offset : (offset + m->size - 1) & ~(m->size - 1);
	p = end + strspn(end, " ");
	snprintf(m->name, sizeof(m->name), "%.*s", (int)strcspn(p, " "), p);
	return p + strcspn(p, " ");
}

size_t
struct_size(const char *name, size_t n)
{
	const char *p = fields_of(name, n);
	struct member m = {0};

	while (p != NULL && (p = next_member(p, m.offset + m.size, &m)) != NULL)
		;
	return m.offset + m.size;
}

static bool
is_text(const struct member *m)
{
	return m->type == 'c' || m->type == 'r';
}

/* As a number without a sign, or as a negative one. */
static bool
fits(uint64_t value, size_t size)
{
	unsigned bits = 8 * (unsigned)size;

	return size == 8 || value >> bits == 0 || (int64_t)value >> (bits - 1) == -1;
}

/* text: up to a comma or the closing brace. */
static const char *
member_parse(const struct member *m, const char *text, unsigned char *data)
{
	char word[64];
	size_t n = strcspn(text, ",}");
	uint64_t value;

	if (is_text(m)) {
		struct buf b = {0};
		const char *end = *text == '"' ? string_parse(&b, text) : NULL;

		if (end != NULL && b.len <= m->size)
			memcpy(data + m->offset, b.data, b.len);
		else
			end = NULL;
		buf_fini(&b);
		return end;
	}
	while (n > 0 && text[n - 1] == ' ')
		n--;
	snprintf(word, sizeof(word), "%.*s", (int)min_u64(n, sizeof(word) - 1), text);
	if (!number_parse(word, &value) || !fits(value, m->size))
		return NULL;
	memcpy(data + m->offset, &value, m->size); /* little-endian */
	return text + n;
}

static bool
find_member(const char *fields, const char *name, size_t n, size_t index, struct member *m)
{
	const char *p = fields;
	size_t at = 0;

	*m = (struct member){0};
	while ((p = next_member(p, m->offset + m->size, m)) != NULL) {
		if (m->name[0] == '_')
			continue;
		if (name != NULL ? strlen(m->name) == n && strncmp(m->name, name, n) == 0 : at == index)
			return true;
		at++;
	}
	return false;
}

bool
struct_parse(const char *name, size_t n, const char *text, unsigned char *data)
{
	const char *fields = fields_of(name, n), *p = text + 1;
	struct member m;

	if (text[0] != '{')
		return find_member(fields, NULL, 0, 0, &m) && (p = member_parse(&m, text, data)) != NULL && *p == '\0';
	for (size_t i = 0; p != NULL; i++) {
		size_t key;

		p += strspn(p, " ");
		if (*p == '}')
			return p[1] == '\0';
		key = strspn(p, "abcdefghijklmnopqrstuvwxyz_0123456789");
		if (p[key] == '=' && find_member(fields, p, key, 0, &m))
			p = member_parse(&m, p + key + 1, data);
		else
			p = p[key] != '=' && find_member(fields, NULL, 0, i, &m) ? member_parse(&m, p, data) : NULL;
		if (p != NULL)
			p += strspn(p, " ");
		if (p != NULL && *p != '}' && *p++ != ',')
			return false;
	}
	return false;
}

static void
member_put(struct buf *out, const struct member *m, const unsigned char *data)
{
	uint64_t u = 0;
	int64_t value;

	if (m->type == 'c') {
		string_put(out, data + m->offset, strnlen((const char *)data + m->offset, m->size));
		return;
	}
	if (m->type == 'r') {
		string_put(out, data + m->offset, m->size);
		return;
	}
	memcpy(&u, data + m->offset, m->size);
	value = (int64_t)(u << (64 - 8 * m->size)) >> (64 - 8 * m->size);
	if (m->type == 'o')
		text_put(out, "%#llo", (unsigned long long)u);
	else if (m->type == 'x' || m->type == 'X')
		text_put(out, "%#llx", (unsigned long long)u);
	else if (islower((unsigned char)m->type))
		text_put(out, "%lld", (long long)value);
	else
		text_put(out, "%llu", (unsigned long long)u);
}

void
struct_put(struct buf *out, const char *name, size_t n, const unsigned char *data)
{
	const char *p = fields_of(name, n), *between = "";
	struct member m = {0};
	bool plain = false;

	/* One value alone is that value, in brackets as what is behind a pointer. */
	if (find_member(p, NULL, 0, 0, &m) && strcmp(m.name, "value") == 0)
		plain = true;
	m = (struct member){0};
	text_put(out, plain ? "[" : "{");
	while ((p = next_member(p, m.offset + m.size, &m)) != NULL) {
		if (m.name[0] == '_')
			continue;
		if (plain)
			text_put(out, "%s", between);
		else
			text_put(out, "%s%s=", between, m.name);
		member_put(out, &m, data);
		between = ", ";
	}
	text_put(out, plain ? "]" : "}");
}
