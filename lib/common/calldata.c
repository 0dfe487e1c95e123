#include "calldata.h"

#include <errno.h>
#include <string.h>

#include "sysnames.h"

/* As the kernel has them on 64-bit machines. */
enum { IOVEC = 16, MSGHDR = 56, IOV_MAX_ = 1024, FDSET_FILES = 1024 };

void
calldata_fini(struct calldata *c)
{
	buf_fini(&c->data);
	*c = (struct calldata){0};
}

int
calldata_init(struct calldata *c, long nr)
{
	const char *spec = syscall_arguments(nr);

	*c = (struct calldata){.nr = nr};
	if (spec == NULL || strcmp(spec, "?") == 0)
		return spec == NULL ? -ENOSYS : -ENOTSUP;
	for (; *spec != '\0' && c->nargs < 6; spec += strspn(spec, " ")) {
		struct calldata_arg *a = &c->arg[c->nargs++];

		a->type = spec;
		a->type_len = strcspn(spec, " ");
		spec += a->type_len;
	}
	return 0;
}

int
calldata_resolve(struct calldata *c)
{
	for (unsigned i = 1; i < c->nargs; i++) {
		struct calldata_arg *a = &c->arg[i];

		if (a->type[0] != '@')
			continue;
		a->type = calldata_is(a, "@ioctl") ? ioctl_argument(c->arg[i - 1].value) : fcntl_argument(c->arg[i - 1].value);
		if (a->type == NULL) {
			a->type = "x";
			a->type_len = 1;
			return -ENOTSUP;
		}
		a->type_len = strlen(a->type);
	}
	return 0;
}

bool
calldata_is(const struct calldata_arg *a, const char *type)
{
	return strlen(type) == a->type_len && strncmp(a->type, type, a->type_len) == 0;
}

unsigned
calldata_other(const struct calldata_arg *a)
{
	return (unsigned)(a->type[a->type_len - 1] - '0');
}

static bool
begins(const struct calldata_arg *a, const char *with)
{
	return strncmp(a->type, with, strlen(with)) == 0;
}

bool
calldata_is_msg(const struct calldata_arg *a)
{
	return calldata_is(a, "msgw") || calldata_is(a, "msgr");
}

bool
calldata_is_iov(const struct calldata_arg *a)
{
	return begins(a, "iov");
}

bool
calldata_pointer(const struct calldata_arg *a)
{
	return (strchr("<>~wrRBs", a->type[0]) != NULL && !calldata_is(a, "sig")) || calldata_is_iov(a) || calldata_is_msg(a);
}

bool
calldata_gives(const struct calldata_arg *a)
{
	return strchr(">~rRB", a->type[0]) != NULL || begins(a, "iovr") || calldata_is(a, "msgr");
}

bool
calldata_takes(const struct calldata_arg *a)
{
	return calldata_pointer(a) && (!calldata_gives(a) || a->type[0] == '~');
}

int
calldata_put(struct calldata *c, unsigned i, const void *data, size_t len)
{
	static const char zeroes[16];

	if (len > CALLDATA_MAX)
		return -ENOMEM;
	buf_put(&c->data, zeroes, (16 - c->data.len % 16) % 16);
	c->arg[i].is_data = true;
	c->arg[i].value = c->data.len;
	c->arg[i].len = len;
	buf_put_room(&c->data, len);
	/* Of what only as much is looked at as the kernel says that it has written, nothing need be there before. */
	if (c->data.failed || len == 0)
		;
	else if (data != NULL)
		memcpy(c->data.data + c->arg[i].value, data, len);
	else if (c->arg[i].type[0] != 'r' && strncmp(c->arg[i].type, "iovr", 4) != 0)
		memset(c->data.data + c->arg[i].value, 0, len);
	return c->data.failed || c->data.len > 2 * (size_t)CALLDATA_MAX ? -ENOMEM : 0;
}

/* --- how much there is */

static uint64_t
number(const struct calldata *c, unsigned k)
{
	int32_t value = 0;

	if (k >= c->nargs)
		return 0;
	if (!calldata_pointer(&c->arg[k]))
		return c->arg[k].value;
	if (c->arg[k].is_data && c->arg[k].len >= sizeof(value))
		memcpy(&value, c->data.data + c->arg[k].value, sizeof(value));
	return value < 0 ? 0 : (uint64_t)value;
}

/* Is argument i only known when argument k, behind it, is? */
static bool
by_pointer(const struct calldata *c, const struct calldata_arg *a)
{
	bool counted = a->type[0] == 'B' || begins(a, ">sockaddr");

	return counted && calldata_other(a) < c->nargs && calldata_pointer(&c->arg[calldata_other(a)]);
}

int
calldata_wanted(const struct calldata *c, unsigned i, uint64_t *len)
{
	const struct calldata_arg *a = &c->arg[i];
	const char *star = memchr(a->type, '*', a->type_len);
	uint64_t count = 1;
	size_t size;

	if (strchr("wrRB", a->type[0]) != NULL || begins(a, "<sockaddr") || begins(a, ">sockaddr")) {
		*len = number(c, calldata_other(a));
		if (begins(a, ">sockaddr")) /* it never writes more, whatever it is told */
			*len = min_u64(*len, CALLDATA_ADDRESS_MAX);
		return 0;
	}
	/* Of fd_set the kernel touches as much as the number of files says. */
	if (begins(a, "~fdset") && (int32_t)number(c, 0) > FDSET_FILES)
		return -EINVAL;
	size = struct_size(a->type + 1, (size_t)((star != NULL ? star : a->type + a->type_len) - a->type) - 1);
	if (star != NULL)
		count = (uint64_t)max_i64(0, (int32_t)number(c, calldata_other(a)));
	if (size == 0 || count > CALLDATA_MAX / size)
		return -EINVAL;
	*len = size * count;
	return 0;
}

/* --- from the memory of the one that calls */

static int
take_string(struct calldata *c, unsigned i, taddr at, calldata_copy *read, void *ctx)
{
	char text[CALLDATA_PATH_MAX];
	size_t len = 0;

	while (len < sizeof(text)) {
		size_t n = min_u64(sizeof(text) - len, page_up(at + len + 1) - (at + len)), step = min_u64(n, len == 0 ? 256 : n);
		const char *end;

		if (read(ctx, at + len, text + len, step) < 0)
			return -EFAULT;
		end = memchr(text + len, '\0', step);
		len += step;
		if (end != NULL)
			return calldata_put(c, i, text, (size_t)(end - text) + 1);
	}
	return -ENAMETOOLONG;
}

struct pieces {
	uint64_t at[2 * IOV_MAX_];
	size_t n, total;
};

static int
get_pieces(struct pieces *p, taddr at, uint64_t n, calldata_copy *read, void *ctx)
{
	if (n > IOV_MAX_)
		return -EINVAL;
	if (n > 0 && read(ctx, at, p->at, n * IOVEC) < 0)
		return -EFAULT;
	p->n = n;
	p->total = 0;
	for (size_t k = 0; k < n; k++) {
		if (p->at[2 * k + 1] > INT64_MAX)
			return -EINVAL;
		p->at[2 * k + 1] = min_u64(p->at[2 * k + 1], CALLDATA_MAX - p->total);
		p->total += p->at[2 * k + 1];
	}
	return 0;
}

/* Data to or from the pieces, one after the other. */
static int
copy_pieces(const struct pieces *p, unsigned char *data, size_t len, calldata_copy *copy, void *ctx)
{
	for (size_t k = 0; k < p->n && len > 0; k++) {
		size_t n = min_u64(len, p->at[2 * k + 1]);

		if (n > 0 && copy(ctx, p->at[2 * k], data, n) < 0)
			return -EFAULT;
		data += n;
		len -= n;
	}
	return 0;
}

static int
take_pieces(struct calldata *c, unsigned i, const struct arch_call *call, calldata_copy *read, void *ctx)
{
	struct pieces p;
	int err = get_pieces(&p, call->arg[i], (uint32_t)call->arg[calldata_other(&c->arg[i])], read, ctx);

	if (err == 0)
		err = calldata_put(c, i, NULL, p.total);
	if (err == 0 && begins(&c->arg[i], "iovw"))
		err = copy_pieces(&p, c->data.data + c->arg[i].value, p.total, read, ctx);
	return err;
}

/* struct msghdr: name, its length, pieces, how many, control data, its length, flags; eight bytes each. */
struct message {
	uint64_t name, name_len, iov, iov_len, control, control_len, flags;
};

static size_t
padded(uint64_t n)
{
	return (size_t)round_up(n, 16);
}

struct calldata_parts
calldata_parts(const unsigned char *head)
{
	struct calldata_parts p;

	memcpy(&p.name, head, 4);
	memcpy(&p.control, head + 4, 4);
	memcpy(&p.data, head + 8, 4);
	memcpy(&p.flags, head + 12, 4);
	p.control_at = CALLDATA_MSG + padded(p.name);
	p.data_at = p.control_at + padded(p.control);
	p.all = p.data_at + p.data;
	return p;
}

static int
take_message(struct calldata *c, unsigned i, taddr at, calldata_copy *read, void *ctx)
{
	struct message m;
	struct pieces p;
	struct calldata_parts parts;
	uint32_t head[4];
	unsigned char *data;
	int err = read(ctx, at, &m, sizeof(m)) < 0 ? -EFAULT : get_pieces(&p, m.iov, m.iov_len, read, ctx);

	if (err < 0)
		return err;
	m.name_len = m.name == 0 ? 0 : min_u64((uint32_t)m.name_len, CALLDATA_ADDRESS_MAX);
	m.control_len = m.control == 0 ? 0 : min_u64(m.control_len, CALLDATA_CONTROL_MAX);
	head[0] = (uint32_t)m.name_len;
	head[1] = (uint32_t)m.control_len;
	head[2] = (uint32_t)p.total;
	head[3] = (uint32_t)m.flags;
	parts = calldata_parts((const unsigned char *)head);
	err = calldata_put(c, i, NULL, parts.all);
	if (err < 0)
		return err;
	data = c->data.data + c->arg[i].value;
	memcpy(data, head, sizeof(head));
	memcpy(c->rooms, head, sizeof(c->rooms));
	if (calldata_is(&c->arg[i], "msgr"))
		return 0;
	if ((parts.name > 0 && read(ctx, m.name, data + CALLDATA_MSG, parts.name) < 0) ||
	    (parts.control > 0 && read(ctx, m.control, data + parts.control_at, parts.control) < 0))
		return -EFAULT;
	return copy_pieces(&p, data + parts.data_at, parts.data, read, ctx);
}

static int
take(struct calldata *c, unsigned i, const struct arch_call *call, calldata_copy *read, void *ctx)
{
	struct calldata_arg *a = &c->arg[i];
	taddr at = call->arg[i];
	uint64_t len;
	int err;

	if (at == 0)
		return 0;
	if (calldata_is(a, "s"))
		return take_string(c, i, at, read, ctx);
	if (calldata_is_iov(a))
		return take_pieces(c, i, call, read, ctx);
	if (calldata_is_msg(a))
		return take_message(c, i, at, read, ctx);
	err = calldata_wanted(c, i, &len);
	if (err < 0)
		return err;
	if (len > CALLDATA_MAX && strchr("wr", a->type[0]) != NULL)
		len = c->arg[calldata_other(a)].value = CALLDATA_MAX;
	if (len > CALLDATA_CONTROL_MAX && (begins(a, "<sockaddr") || a->type[0] == 'B'))
		return -EINVAL;
	err = calldata_put(c, i, NULL, len);
	if (err == 0 && calldata_takes(a) && len > 0 && read(ctx, at, c->data.data + a->value, len) < 0)
		err = -EFAULT;
	return err;
}

int
calldata_from_memory(struct calldata *c, const struct arch_call *call, calldata_copy *read, void *ctx)
{
	int err = calldata_init(c, call->nr);

	for (unsigned i = 0; i < c->nargs; i++)
		c->arg[i].value = call->arg[i];
	if (err == 0)
		err = calldata_resolve(c);
	for (unsigned i = 0; i < c->nargs; i++)
		if (calldata_pointer(&c->arg[i]))
			c->arg[i].value = 0;
	/* Lengths behind pointers first. */
	for (unsigned pass = 0; pass < 2 && err == 0; pass++)
		for (unsigned i = 0; i < c->nargs && err == 0; i++)
			if (calldata_pointer(&c->arg[i]) && by_pointer(c, &c->arg[i]) == (pass == 1))
				err = take(c, i, call, read, ctx);
	return err;
}

size_t
calldata_given(const struct calldata *c, unsigned i, int64_t result)
{
	const struct calldata_arg *a = &c->arg[i];
	const char *star = memchr(a->type, '*', a->type_len);
	uint64_t n;

	if (!a->is_data || !calldata_gives(a) || (result < 0 && result >= -4095))
		return 0;
	if (a->type[0] == 'r' || begins(a, "iovr"))
		return min_u64(a->len, (uint64_t)result);
	if (calldata_is(a, "msgr")) {
		struct calldata_parts p = calldata_parts(c->data.data + a->value); /* the data is last, and its room not changed */

		return a->len - p.data + min_u64(p.data, (uint64_t)result);
	}
	if (star != NULL && a->type[0] == '>')
		return calldata_wanted(c, i, &n) == 0 && number(c, calldata_other(a)) > 0
		    ? min_u64(a->len, (uint64_t)result * (n / number(c, calldata_other(a)))) : 0;
	if (by_pointer(c, a))
		return min_u64(a->len, number(c, calldata_other(a)));
	return a->len;
}

static int
give_message(const struct calldata *c, unsigned i, const struct arch_call *call, int64_t result, calldata_copy *read, calldata_copy *write,
    void *ctx)
{
	const unsigned char *data = c->data.data + c->arg[i].value;
	struct calldata_parts parts = calldata_parts(data);
	struct message m;
	struct pieces p;
	uint32_t name_len;
	int err = read(ctx, call->arg[i], &m, sizeof(m)) < 0 ? -EFAULT : get_pieces(&p, m.iov, m.iov_len, read, ctx);

	if (err < 0)
		return err;
	/* It is laid out by the rooms, and the lengths are what came. */
	name_len = parts.name;
	m.control_len = parts.control;
	m.flags = parts.flags;
	parts.control_at = CALLDATA_MSG + padded(c->rooms[0]);
	parts.data_at = parts.control_at + padded(c->rooms[1]);
	if (parts.data_at + min_u64((uint64_t)result, p.total) > c->arg[i].len)
		return -EFAULT; /* it has changed them meanwhile */
	if ((min_u64(c->rooms[0], name_len) > 0 && write(ctx, m.name, (void *)(data + CALLDATA_MSG), min_u64(c->rooms[0], name_len)) < 0) ||
	    (min_u64(c->rooms[1], parts.control) > 0 &&
		write(ctx, m.control, (void *)(data + parts.control_at), min_u64(c->rooms[1], parts.control)) < 0))
		return -EFAULT;
	m.name_len = m.name == 0 ? m.name_len : name_len;
	err = copy_pieces(&p, (unsigned char *)data + parts.data_at, min_u64((uint64_t)result, p.total), write, ctx);
	return err < 0 || write(ctx, call->arg[i], &m, sizeof(m)) < 0 ? -EFAULT : 0;
}

int
calldata_to_memory(const struct calldata *c, const struct arch_call *call, int64_t result, calldata_copy *read, calldata_copy *write, void *ctx)
{
	for (unsigned i = 0; i < c->nargs; i++) {
		const struct calldata_arg *a = &c->arg[i];
		size_t n = calldata_given(c, i, result);
		struct pieces p;
		int err = 0;

		if (n == 0)
			continue;
		if (calldata_is_msg(a))
			err = give_message(c, i, call, result, read, write, ctx);
		else if (calldata_is_iov(a) && (err = get_pieces(&p, call->arg[i], (uint32_t)call->arg[calldata_other(a)], read, ctx)) == 0)
			err = copy_pieces(&p, c->data.data + a->value, n, write, ctx);
		else if (!calldata_is_iov(a) && write(ctx, call->arg[i], c->data.data + a->value, n) < 0)
			err = -EFAULT;
		if (err < 0)
			return err;
	}
	return 0;
}

/* --- for the one that executes it */

int
calldata_native_room(struct calldata *c)
{
	static const char zeroes[MSGHDR + IOVEC];

	for (unsigned i = 0; i < c->nargs; i++) {
		struct calldata_arg *a = &c->arg[i];

		if (!a->is_data || (!calldata_is_iov(a) && !calldata_is_msg(a)))
			continue;
		buf_put(&c->data, zeroes, (16 - c->data.len % 16) % 16);
		a->native = c->data.len;
		buf_put(&c->data, zeroes, sizeof(zeroes));
	}
	return c->data.failed ? -ENOMEM : 0;
}

struct arch_call
calldata_native(struct calldata *c, taddr base)
{
	struct arch_call call = {.nr = c->nr};

	for (unsigned i = 0; i < c->nargs; i++) {
		struct calldata_arg *a = &c->arg[i];
		uint64_t iov[2] = {base + a->value, a->len};

		call.arg[i] += a->value + (a->is_data ? base : 0);
		if (!a->is_data || a->native == 0)
			continue;
		call.arg[i] = base + a->native;
		if (calldata_is_msg(a)) {
			struct calldata_parts p = calldata_parts(c->data.data + a->value);
			struct message m = {base + a->value + CALLDATA_MSG, p.name, base + a->native + MSGHDR, 1,
			    base + a->value + p.control_at, p.control, p.flags};

			m.name = p.name > 0 ? m.name : 0;
			m.control = p.control > 0 ? m.control : 0;
			memcpy(c->data.data + a->native, &m, sizeof(m));
			iov[0] = base + a->value + p.data_at;
			iov[1] = p.data;
			memcpy(c->data.data + a->native + MSGHDR, iov, sizeof(iov));
		} else {
			memcpy(c->data.data + a->native, iov, sizeof(iov));
			c->arg[calldata_other(a)].value = 1;
		}
	}
	return call;
}

void
calldata_native_done(struct calldata *c)
{
	for (unsigned i = 0; i < c->nargs; i++) {
		struct calldata_arg *a = &c->arg[i];
		struct message m;
		uint32_t head[4];

		if (!a->is_data || a->native == 0 || !calldata_is(a, "msgr"))
			continue;
		memcpy(&m, c->data.data + a->native, sizeof(m));
		memcpy(head, c->data.data + a->value, sizeof(head));
		head[0] = (uint32_t)m.name_len;
		head[1] = (uint32_t)min_u64(m.control_len, head[1]);
		head[3] = (uint32_t)m.flags;
		memcpy(c->data.data + a->value, head, sizeof(head));
	}
}
