#include "vdso.h"

#include <errno.h>
#include <string.h>
#include <sys/syscall.h>

#include "arch.h"
#include "elf_file.h"

static const char mark[] = "pmsvdso"; /* 7 bytes: e_ident[9..15] */
enum { MARK_AT = 9 };

bool
vdso_is_proxy(const unsigned char head[VDSO_MARK_END])
{
	return memcmp(head, "\177ELF", 4) == 0 && memcmp(head + MARK_AT, mark, 7) == 0;
}

/* System calls that do the same, with the same arguments. */
static long
plain_call(const char *name)
{
	static const struct {
		const char *name;
		long nr;
	} calls[] = {
	    {"clock_gettime", SYS_clock_gettime}, {"gettimeofday", SYS_gettimeofday},
	    {"time", SYS_time}, {"getcpu", SYS_getcpu}, {"clock_getres", SYS_clock_getres},
	};

	if (strncmp(name, "__vdso_", 7) == 0)
		name += 7;
	for (size_t i = 0; i < ARRAY_LEN(calls); i++)
		if (strcmp(name, calls[i].name) == 0)
			return calls[i].nr;
	return -1;
}

struct proxy {
	unsigned char *code;
	size_t size;
	const unsigned char *ours;
	size_t ours_size;
	taddr ours_at;
	/* While looking for one function in ours. */
	const char *wanted;
	uint64_t found;
};

static void
look(void *ctx, const char *name, uint64_t offset, uint64_t size)
{
	struct proxy *p = ctx;

	(void)size;
	if (strcmp(name, p->wanted) == 0)
		p->found = offset;
}

static void
patch(void *ctx, const char *name, uint64_t offset, uint64_t size)
{
	struct proxy *p = ctx;

	(void)size;
	if (offset > p->size || p->size - offset < ARCH_JUMP_BYTES)
		return;
	p->wanted = name;
	p->found = 0;
	elf_functions(p->ours, p->ours_size, look, p);
	if (p->found != 0)
		arch_put_jump(p->code + offset, p->ours_at + p->found);
	else
		arch_put_stub(p->code + offset, plain_call(name));
}

int
vdso_make_proxy(unsigned char *code, size_t size, const unsigned char *ours, size_t ours_size,
    taddr ours_at)
{
	struct proxy p = {code, size, ours, ours_size, ours_at, NULL, 0};

	if (size < VDSO_MARK_END || elf_functions(code, size, patch, &p) <= 0)
		return -EBADMSG;
	memcpy(code + MARK_AT, mark, 7);
	return 0;
}
