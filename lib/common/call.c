#include "call.h"

#include <stdlib.h>
#include <string.h>

enum { EINTR_RESTARTS = 1, NEVER_LENT = 2, BLOCKS = 4, NEW_FD = 8 };

static const struct {
	const char *name;
	enum syscall_class class;
	int flags;
	const char *arguments;
} syscalls[] = {
#define SYSCALL(nr, name, class, flags, arguments) [nr] = {#name, SYSCALL_##class, flags, arguments},
#include "syscall.def"
#undef SYSCALL
};

const char *
syscall_name(long nr)
{
	return nr >= 0 && (size_t)nr < ARRAY_LEN(syscalls) ? syscalls[nr].name : NULL;
}

long
syscall_number(const char *name)
{
	for (size_t i = 0; i < ARRAY_LEN(syscalls); i++)
		if (syscalls[i].name != NULL && strcmp(syscalls[i].name, name) == 0)
			return (long)i;
	return -1;
}

const char *
syscall_arguments(long nr)
{
	return syscall_name(nr) != NULL ? syscalls[nr].arguments : NULL;
}

bool
syscall_never_lent(long nr)
{
	return syscall_name(nr) != NULL && (syscalls[nr].flags & NEVER_LENT) != 0;
}

enum syscall_class
syscall_class(long nr)
{
	return syscall_name(nr) != NULL ? syscalls[nr].class : SYSCALL_NONE;
}

bool
syscall_blocks(long nr)
{
	return syscall_name(nr) != NULL && (syscalls[nr].flags & BLOCKS) != 0;
}

bool
syscall_new_fd(long nr)
{
	return syscall_name(nr) != NULL && (syscalls[nr].flags & NEW_FD) != 0;
}

bool
syscall_eintr_restarts(long nr)
{
	return nr >= 0 && (size_t)nr < ARRAY_LEN(syscalls) &&
	    (syscalls[nr].flags & EINTR_RESTARTS) != 0;
}

void
script_fini(struct script *s)
{
	free(s->calls);
	buf_fini(&s->data);
	*s = (struct script){0};
}

size_t
script_add_call(struct script *s, const char *what, long nr, const uint64_t arg[6])
{
	struct script_call *c = ARRAY_ADD(s->calls, s->ncalls);

	if (c == NULL) {
		s->failed = true;
		return 0;
	}
	c->call.nr = nr;
	memcpy(c->call.arg, arg, sizeof(c->call.arg));
	c->what = what;
	c->result = SCRIPT_NOT_RUN;
	return s->ncalls - 1;
}

void
script_data_arg(struct script *s, unsigned i)
{
	if (s->ncalls > 0)
		s->calls[s->ncalls - 1].data_args |= (uint8_t)(1u << i);
}

void
script_may_fail(struct script *s)
{
	if (s->ncalls > 0)
		s->calls[s->ncalls - 1].may_fail = true;
}

uint64_t
script_data(struct script *s, const void *data, size_t len)
{
	static const char zeroes[16];
	uint64_t at;

	buf_put(&s->data, zeroes, (16 - s->data.len % 16) % 16);
	at = s->data.len;
	if (data != NULL)
		buf_put(&s->data, data, len);
	else
		for (size_t n; len > 0; len -= n) {
			n = min_u64(len, sizeof(zeroes));
			buf_put(&s->data, zeroes, n);
		}
	s->failed |= s->data.failed;
	return at;
}

const struct script_call *
script_first_error(const struct script *s)
{
	for (size_t i = 0; i < s->ncalls; i++) {
		const struct script_call *c = &s->calls[i];

		if (c->result == SCRIPT_NOT_RUN ||
		    (c->result < 0 && c->result >= -4095 && !c->may_fail))
			return c;
	}
	return NULL;
}
