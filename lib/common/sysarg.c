#include "sysarg.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>

#include "io.h"
#include "sysnames.h"

/* --- from text */

struct parsing {
	struct calldata *c;
	char *const *args;
	size_t nargs;
	const int64_t *results;
	size_t nresults;
	char *why;
};

static int
bad(const struct parsing *p, unsigned i, const char *what)
{
	snprintf(p->why, 200, "%s: argument %u: %.80s: %s", syscall_name(p->c->nr), i + 1, p->args[i], what);
	return -EINVAL;
}

/* The set of f:SET and e:SET. */
static void
set_of(const struct calldata_arg *a, char set[16])
{
	snprintf(set, 16, "%.*s", (int)(a->type_len - 2), a->type + 2);
}

static int
parse_value(const struct parsing *p, unsigned i, uint64_t *value)
{
	const struct calldata_arg *a = &p->c->arg[i];
	const char *text = p->args[i];
	char set[16];
	bool good;

	if (text[0] == '$') {
		uint64_t n;

		if (!number_parse(text + 1, &n) || n < 1 || n > p->nresults)
			return bad(p, i, "no result of that number yet");
		*value = (uint64_t)p->results[n - 1];
		return 0;
	}
	if (a->type_len > 2 && a->type[1] == ':')
		set_of(a, set), good = flags_parse(set, text, value) && (strcmp(set, "prctl") != 0 || flags_know(set, *value));
	else if (calldata_is(a, "sig"))
		good = signal_parse(text, value);
	else if (calldata_is(a, "dfd") && strcmp(text, "AT_FDCWD") == 0)
		*value = (uint64_t)AT_FDCWD, good = true;
	else if (calldata_is(a, "p") && strcmp(text, "NULL") == 0)
		*value = 0, good = true;
	else
		good = number_parse(text, value);
	return good ? 0 : bad(p, i, "not a value that this argument can have");
}

/* Quoted, @FILE, or (words) as it is. */
static int
read_bytes(const struct parsing *p, unsigned i, bool words, struct buf *out)
{
	const char *text = p->args[i], *end;

	if (text[0] == '"') {
		end = string_parse(out, text);
		return end != NULL && *end == '\0' ? 0 : bad(p, i, "a string that does not end");
	}
	if (text[0] == '@') {
		char *content = NULL;
		ssize_t n = read_file(AT_FDCWD, text + 1, &content);

		if (n < 0)
			return bad(p, i, strerror((int)-n));
		buf_put(out, content, (size_t)n);
		free(content);
		return 0;
	}
	if (!words)
		return bad(p, i, "\"bytes\", @FILE, _ or NULL belong here");
	buf_put(out, text, strlen(text));
	return 0;
}

static int
parse_string(const struct parsing *p, unsigned i)
{
	struct buf b = {0};
	int err = read_bytes(p, i, true, &b);

	buf_put(&b, "", 1);
	if (err == 0)
		err = calldata_put(p->c, i, b.data, b.len);
	buf_fini(&b);
	return err;
}

/* The number that argument k is, which stands before or behind; also where it is room for a number. */
static bool
number_of(const struct parsing *p, unsigned k, uint64_t *value)
{
	*value = 0;
	return k < p->nargs && (p->args[k][0] == '$' ? parse_value(p, k, value) == 0 : number_parse(p->args[k], value));
}

/* wK: what is given; K may be left out, and is its length then. rK, BK: room for K. */
static int
parse_bytes(const struct parsing *p, unsigned i)
{
	struct calldata_arg *a = &p->c->arg[i];
	struct buf b = {0};
	uint64_t want;
	bool known = number_of(p, calldata_other(a), &want);
	int err;

	/* What the call is told must be there. */
	if ((!known && (calldata_other(a) < p->nargs || strcmp(p->args[i], "_") == 0)) || want > CALLDATA_MAX)
		return bad(p, i, "how many bytes is not said, or more than 16 MiB");
	if (strcmp(p->args[i], "_") == 0)
		return calldata_put(p->c, i, NULL, want);
	err = read_bytes(p, i, false, &b);
	if (err == 0 && known && want > b.len) {
		err = calldata_put(p->c, i, NULL, want);
		if (err == 0 && b.len > 0)
			memcpy(p->c->data.data + a->value, b.data, b.len);
	} else if (err == 0) {
		err = calldata_put(p->c, i, b.data, b.len);
	}
	buf_fini(&b);
	return err;
}

static int
parse_address(const struct parsing *p, unsigned i)
{
	const char *text = p->args[i], *port = strrchr(text, ':');
	struct sockaddr_un un = {.sun_family = AF_UNIX};
	struct sockaddr_in in = {.sin_family = AF_INET};
	struct sockaddr_in6 in6 = {.sin6_family = AF_INET6};
	char host[INET6_ADDRSTRLEN + 2];
	uint64_t number;
	size_t n;

	if (strncmp(text, "unix:", 5) == 0) {
		n = strlen(text + 5);
		if (n >= sizeof(un.sun_path))
			return bad(p, i, "too long for the address of a Unix socket");
		memcpy(un.sun_path, text + 5, n);
		if (text[5] == '@')
			un.sun_path[0] = '\0';
		return calldata_put(p->c, i, &un, offsetof(struct sockaddr_un, sun_path) + n + (text[5] != '@'));
	}
	if (strncmp(text, "inet:", 5) != 0 || port == text + 4 || !number_parse(port + 1, &number) || number > UINT16_MAX)
		return bad(p, i, "an address is inet:HOST:PORT or unix:PATH");
	snprintf(host, sizeof(host), "%.*s", (int)(port - text - 5), text + 5);
	in.sin_port = in6.sin6_port = htons((uint16_t)number);
	if (inet_pton(AF_INET, host, &in.sin_addr) == 1)
		return calldata_put(p->c, i, &in, sizeof(in));
	n = strlen(host);
	if (n > 2 && host[0] == '[' && host[n - 1] == ']')
		host[n - 1] = '\0', memmove(host, host + 1, n - 1);
	if (inet_pton(AF_INET6, host, &in6.sin6_addr) == 1)
		return calldata_put(p->c, i, &in6, sizeof(in6));
	return bad(p, i, "HOST is a numeric address");
}

/* Name of the struct in <NAME, >NAME*K, ~NAME; returns its length. */
static size_t
struct_name(const struct calldata_arg *a, const char **name)
{
	const char *star = memchr(a->type, '*', a->type_len);

	*name = a->type + 1;
	return (size_t)((star != NULL ? star : a->type + a->type_len) - a->type) - 1;
}

static bool
is_address(const struct calldata_arg *a)
{
	return strncmp(a->type + 1, "sockaddr", 8) == 0;
}

static size_t
count_given(const char *text)
{
	size_t n = 1;
	int depth = 0;

	for (const char *s = text; text[0] == '[' && *s != '\0'; s++) {
		depth += (*s == '[' || *s == '{') - (*s == ']' || *s == '}');
		n += *s == ',' && depth == 1;
	}
	return strcmp(text, "[]") == 0 ? 0 : n;
}

/* [{..}, {..}] or one. */
static int
parse_structs(const struct parsing *p, unsigned i, const char *name, size_t n, size_t size, size_t given)
{
	struct calldata_arg *a = &p->c->arg[i];
	const char *s = p->args[i] + (p->args[i][0] == '[');
	char one[1024];

	for (size_t k = 0; k < given; k++) {
		size_t len = *s == '{' ? strcspn(s, "}") + 1 : strcspn(s, ",]");

		if (len >= sizeof(one))
			return bad(p, i, "too long");
		memcpy(one, s, len);
		one[len] = '\0';
		if (one[0] == '\0' || !struct_parse(name, n, one, p->c->data.data + a->value + k * size))
			return bad(p, i, "a struct is {1, 2} or {name=1}, with the names that are printed");
		s += len;
		s += k + 1 < given ? strspn(s, ", ") : 0;
	}
	if (p->args[i][0] == '[' && *s++ != ']')
		return bad(p, i, "a list that does not end");
	return *s == '\0' ? 0 : bad(p, i, "something stands behind it");
}

static int
parse_struct(const struct parsing *p, unsigned i)
{
	struct calldata_arg *a = &p->c->arg[i];
	const char *name, *text = p->args[i];
	size_t n = struct_name(a, &name), size, count = 1, given = count_given(text);
	uint64_t want;
	int err;

	if (is_address(a) && strcmp(text, "_") != 0)
		return parse_address(p, i);
	if (is_address(a))
		return calldata_put(p->c, i, NULL, 128); /* sockaddr_storage */
	size = struct_size(name, n);
	if (name[n] == '*') {
		if (!number_of(p, calldata_other(a), &want) || want > CALLDATA_MAX / size)
			return bad(p, i, "how many is not said");
		count = want;
	}
	if (strcmp(text, "_") != 0 && given > count)
		return bad(p, i, "more than the call is told");
	if (text[0] == '@' || text[0] == '"') {
		struct buf b = {0};

		err = read_bytes(p, i, false, &b);
		if (err == 0 && b.len != size * count)
			err = bad(p, i, "not as long as the struct");
		if (err == 0)
			err = calldata_put(p->c, i, b.data, b.len);
		buf_fini(&b);
		return err;
	}
	err = calldata_put(p->c, i, NULL, size * count);
	return err < 0 || strcmp(text, "_") == 0 ? err : parse_structs(p, i, name, n, size, given);
}

/* struct iovec and struct msghdr: the data alone, or how many bytes there is room for. */
static bool
is_pieces(const struct calldata_arg *a)
{
	return strncmp(a->type, "iov", 3) == 0 || strncmp(a->type, "msg", 3) == 0;
}

static int
parse_pieces(const struct parsing *p, unsigned i)
{
	struct calldata_arg *a = &p->c->arg[i];
	bool message = a->type[0] == 'm', takes = calldata_takes(a);
	uint32_t head[4] = {takes ? 0 : CALLDATA_ADDRESS_MAX, takes ? 0 : 4096, 0, 0};
	size_t before = CALLDATA_MSG + head[0] + head[1];
	struct buf b = {0};
	uint64_t room = 0;
	int err = 0;

	if (takes)
		err = read_bytes(p, i, false, &b);
	else if (!number_parse(p->args[i], &room) || room > CALLDATA_MAX - before)
		err = bad(p, i, "how many bytes there is to be room for belongs here");
	head[2] = (uint32_t)(takes ? b.len : room);
	if (err == 0)
		err = message ? calldata_put(p->c, i, NULL, before + head[2]) : calldata_put(p->c, i, NULL, head[2]);
	if (err == 0 && message)
		memcpy(p->c->data.data + a->value, head, sizeof(head));
	if (err == 0 && b.len > 0)
		memcpy(p->c->data.data + a->value + (message ? before : 0), b.data, b.len);
	buf_fini(&b);
	return err;
}

static int
parse_arg(const struct parsing *p, unsigned i)
{
	struct calldata_arg *a = &p->c->arg[i];
	bool pointer = calldata_pointer(a);

	if (pointer && strcmp(p->args[i], "NULL") == 0)
		return 0;
	if (calldata_is(a, "s"))
		return parse_string(p, i);
	if (is_pieces(a))
		return parse_pieces(p, i);
	if (pointer && strchr("wrRB", a->type[0]) != NULL)
		return parse_bytes(p, i);
	if (pointer)
		return parse_struct(p, i);
	return parse_value(p, i, &a->value);
}

/* What stands for the last argument of ioctl(2) and fcntl(2) follows from the one before. */
static int
resolve(const struct parsing *p, unsigned i)
{
	struct calldata_arg *a = &p->c->arg[i];
	const char *type;

	if (a->type[0] != '@')
		return 0;
	type = calldata_is(a, "@ioctl") ? ioctl_argument(p->c->arg[1].value) : fcntl_argument(p->c->arg[1].value);
	if (type == NULL) {
		snprintf(p->why, 200, "%s: %s: not a request that is known here", syscall_name(p->c->nr), p->args[1]);
		return -ENOTSUP;
	}
	a->type = type;
	a->type_len = strlen(type);
	return 0;
}

/* How long the data is, where that was left out: behind wK and an address. */
static void
fill_lengths(struct calldata *c, size_t given)
{
	for (unsigned i = 0; i < c->nargs; i++) {
		const struct calldata_arg *a = &c->arg[i];
		unsigned k = a->is_data && (a->type[0] == 'w' || strncmp(a->type, "iov", 3) == 0 || (a->type[0] == '<' && is_address(a))) ? calldata_other(a) : 6;

		if (k < c->nargs && k >= given) {
			c->arg[k].value = a->type[0] == 'i' ? 1 : a->len;
			c->shown = k + 1;
		}
	}
}

int
syscall_text_parse(struct calldata *c, const char *name, char *const *args, size_t nargs, const int64_t *results,
    size_t nresults, char why[200])
{
	struct parsing p = {c, args, nargs, results, nresults, why};
	const char *spec;
	int err = 0;

	*c = (struct calldata){.nr = syscall_number(name)};
	snprintf(why, 200, "%.80s: out of memory, or more than 16 MiB", name);
	spec = syscall_arguments(c->nr);
	if (spec == NULL || strcmp(spec, "?") == 0 || syscall_never_lent(c->nr)) {
		snprintf(why, 200, spec == NULL ? "%.80s: no such system call" : syscall_never_lent(c->nr)
		    ? "%.80s: would end, double or damage the process" : "%.80s: its arguments cannot be given as text", name);
		return spec == NULL ? -EINVAL : -ENOTSUP;
	}
	calldata_init(c, c->nr);
	if (nargs > c->nargs) {
		snprintf(why, 200, "%s: takes %u arguments, not %zu", name, c->nargs, nargs);
		return -EINVAL;
	}
	for (unsigned i = 0; i < nargs && err == 0; i++) {
		err = resolve(&p, i);
		if (err == 0)
			err = parse_arg(&p, i);
	}
	for (size_t i = nargs; i < c->nargs && err == 0; i++) {
		bool follows = c->arg[i].type[0] == '@'; /* from an argument that was given */

		err = nargs >= 2 || !follows ? resolve(&p, (unsigned)i) : -EINVAL;
		if (err == 0 && (calldata_is(&c->arg[i], "s") || strchr("wrRB", c->arg[i].type[0]) != NULL || is_pieces(&c->arg[i]) ||
				    (follows && strchr("<>~", c->arg[i].type[0]) != NULL))) {
			snprintf(why, 200, "%s: takes %u arguments, not %zu", name, c->nargs, nargs);
			err = -EINVAL;
		}
	}
	c->shown = (unsigned)nargs;
	fill_lengths(c, nargs);
	return err;
}

/* --- to text */

/* As it is where that is plain text, and else with quotes. */
static void
put_unix(struct buf *out, const struct sockaddr_un *un, size_t len)
{
	bool abstract = un->sun_path[0] == '\0', plain = true;
	const char *name = un->sun_path + abstract;
	size_t n = min_u64(len, sizeof(un->sun_path)) - abstract;

	n = abstract ? n : strnlen(name, n);
	for (size_t i = 0; i < n; i++)
		plain &= name[i] > ' ' && name[i] < 127 && name[i] != '"';
	text_put(out, "unix:%s", abstract ? "@" : "");
	if (plain)
		buf_put(out, name, n);
	else
		string_put(out, (const unsigned char *)name, n);
}

static void
put_address(struct buf *out, const unsigned char *data, size_t len)
{
	const struct sockaddr_un *un = (const void *)data;
	const struct sockaddr_in *in = (const void *)data;
	const struct sockaddr_in6 *in6 = (const void *)data;
	char host[INET6_ADDRSTRLEN];
	sa_family_t family = AF_UNSPEC;

	if (len >= sizeof(family))
		memcpy(&family, data, sizeof(family));
	if (family == AF_INET && len >= sizeof(*in))
		text_put(out, "inet:%s:%d", inet_ntop(AF_INET, &in->sin_addr, host, sizeof(host)), ntohs(in->sin_port));
	else if (family == AF_INET6 && len >= sizeof(*in6))
		text_put(out, "inet:[%s]:%d", inet_ntop(AF_INET6, &in6->sin6_addr, host, sizeof(host)), ntohs(in6->sin6_port));
	else if (family == AF_UNIX && len > 2)
		put_unix(out, un, len - 2);
	else
		string_put(out, data, len);
}

/* An int that the call has been told, and may have changed. */
static size_t
int_behind(const struct calldata *c, unsigned k, size_t most)
{
	const struct calldata_arg *a = k < c->nargs ? &c->arg[k] : NULL;
	int32_t value = 0;

	if (a == NULL)
		return most;
	if (a->is_data && a->len >= sizeof(value))
		memcpy(&value, c->data.data + a->value, sizeof(value));
	else
		value = (int32_t)a->value;
	return value < 0 ? 0 : (size_t)min_u64((uint64_t)value, most);
}

static void
put_structs(struct buf *out, const struct calldata *c, const struct calldata_arg *a, int64_t result)
{
	const char *name;
	size_t n = struct_name(a, &name), size = struct_size(name, n), count = a->len / size;

	/* Of what the call gives, as many as it says; what is looked at in both directions all. */
	if (a->type[0] == '>' && name[n] == '*')
		count = (size_t)min_u64(count, (uint64_t)result);
	if (name[n] == '*')
		text_put(out, "[");
	for (size_t i = 0; i < count; i++) {
		text_put(out, "%s", i > 0 ? ", " : "");
		struct_put(out, name, n, c->data.data + a->value + i * size);
	}
	if (name[n] == '*')
		text_put(out, "]");
}

/* Of a struct iovec or struct msghdr what was there or came. */
static void
put_pieces(struct buf *out, const struct calldata *c, unsigned i, int64_t result)
{
	const struct calldata_arg *a = &c->arg[i];
	const unsigned char *data = c->data.data + a->value;
	size_t n = calldata_takes(a) ? a->len : min_u64(a->len, (uint64_t)max_i64(result, 0));
	uint32_t head[4] = {0};

	if (a->type[0] == 'm') {
		memcpy(head, data, sizeof(head));
		head[2] = (uint32_t)min_u64(head[2], a->len - CALLDATA_MSG);
		n = calldata_takes(a) ? head[2] : min_u64(head[2], (uint64_t)max_i64(result, 0));
		data += a->len - head[2]; /* it is last */
	}
	text_put(out, a->type[0] == 'm' ? "{msg_namelen=%u, msg_iov=" : "", head[0]);
	text_put(out, "[{iov_base=");
	string_put(out, data, n);
	text_put(out, ", iov_len=%zu}]", n);
	if (a->type[0] == 'm')
		text_put(out, ", msg_controllen=%u, msg_flags=%#x}", head[1], head[3]);
}

static void
put_pointed(struct buf *out, const struct calldata *c, unsigned i, int64_t result)
{
	const struct calldata_arg *a = &c->arg[i];
	const unsigned char *data = c->data.data + a->value;

	if (calldata_gives(a) && a->type[0] != '~' && result < 0)
		text_put(out, "_");
	else if (is_pieces(a))
		put_pieces(out, c, i, result);
	else if (a->type[0] == 's')
		string_put(out, data, a->len - 1);
	else if (a->type[0] == 'r')
		string_put(out, data, (size_t)min_u64(a->len, (uint64_t)result - (c->nr == SYS_getcwd && result > 0)));
	else if (a->type[0] == 'w' || a->type[0] == 'R')
		string_put(out, data, a->len);
	else if (a->type[0] == 'B')
		string_put(out, data, int_behind(c, calldata_other(a), a->len));
	else if (is_address(a))
		put_address(out, data, a->type[0] == '<' ? a->len : int_behind(c, calldata_other(a), a->len));
	else
		put_structs(out, c, a, result);
}

void
syscall_text_put_arg(struct buf *out, const struct calldata *c, unsigned i, int64_t result)
{
	const struct calldata_arg *a = &c->arg[i];
	char set[16];

	if (a->is_data) {
		put_pointed(out, c, i, result);
	} else if (a->type_len > 2 && a->type[1] == ':') {
		set_of(a, set);
		flags_put(out, set, a->type[0] == 'e' || a->value >> 32 == UINT32_MAX ? a->value : a->value & UINT32_MAX,
		    a->type[0] == 'e');
	} else if (calldata_is(a, "sig")) {
		signal_put(out, a->value);
	} else if (calldata_is(a, "dfd") && (int)a->value == AT_FDCWD) {
		text_put(out, "AT_FDCWD");
	} else if (a->value == 0 && (calldata_is(a, "p") || calldata_pointer(a))) {
		text_put(out, "NULL");
	} else if (calldata_is(a, "o")) {
		text_put(out, "%#llo", (unsigned long long)a->value);
	} else if (calldata_is(a, "x") || calldata_is(a, "p")) {
		text_put(out, "%#llx", (unsigned long long)a->value);
	} else if (calldata_is(a, "u")) {
		text_put(out, "%llu", (unsigned long long)a->value);
	} else if (calldata_is(a, "l")) {
		text_put(out, "%lld", (long long)a->value);
	} else {
		text_put(out, "%d", (int)a->value);
	}
}

void
syscall_text_put_result(struct buf *out, const struct calldata *c, int64_t result)
{
	bool address = c->nr == SYS_mmap || c->nr == SYS_mremap || c->nr == SYS_brk || c->nr == SYS_shmat;

	if (result < 0 && result >= -4095)
		text_put(out, "-1 %s (%s)", strerrorname_np((int)-result) != NULL ? strerrorname_np((int)-result) : "ERROR",
		    strerror((int)-result));
	else if (address)
		text_put(out, "%#llx", (unsigned long long)result);
	else
		text_put(out, "%lld", (long long)result);
}

void
syscall_text_put(struct buf *out, const struct calldata *c, int64_t result)
{
	text_put(out, "%s(", syscall_name(c->nr));
	for (unsigned i = 0; i < c->shown; i++) {
		text_put(out, "%s", i > 0 ? ", " : "");
		syscall_text_put_arg(out, c, i, result);
	}
	text_put(out, ") = ");
	syscall_text_put_result(out, c, result);
}
