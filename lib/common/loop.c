#include "loop.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "io.h"
#include "log.h"

/* Page 0: code. Page 1: stack. Then entries, then data. */
#define ENTRIES_AT (2 * PAGE_BYTES)
#define DATA_AT (LOOP_BYTES - LOOP_DATA_MAX)
#define ENTRIES_MAX ((DATA_AT - ENTRIES_AT) / sizeof(struct arch_script_entry) - 1)
enum { TIMEOUT_MS = 60000 };

static int
map_part(struct tracee *t, taddr ip, taddr at, uint64_t len, int prot)
{
	struct arch_call map = {SYS_mmap, {at, len, (uint64_t)prot,
	    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, (uint64_t)-1, 0}};
	int64_t result;
	int err = tracee_call_at(t, &t->regs, ip, &map, &result);

	if (err == 0 && result != (int64_t)at)
		err = fail(ENOMEM, "pid %d: no room for the script loop: %s", t->tid,
		    result < 0 ? strerror((int)-result) : "mapped elsewhere");
	return err;
}

int
loop_map(struct loop *loop, struct tracee *t, taddr ip, taddr at)
{
	int err = map_part(t, ip, at, PAGE_BYTES, PROT_READ | PROT_EXEC);

	if (err == 0)
		err = map_part(t, ip, at + PAGE_BYTES, LOOP_BYTES - PAGE_BYTES, PROT_READ | PROT_WRITE);
	if (err < 0)
		return err;
	loop->at = at;
	loop->mem = t->mem;
	err = mem_write(t->mem, at, arch_loop, (size_t)(arch_loop_end - arch_loop));
	return err < 0 ? fail(-err, "pid %d: script loop: %s", t->tid, strerror(-err)) : 0;
}

taddr
loop_data(const struct loop *loop)
{
	return loop->at + DATA_AT;
}

/* Wait for the stop that ends a script. Other signals stay blocked in what we build. */
static int
wait_done(struct tracee *t)
{
	for (;;) {
		int status, err = tracee_wait(t->tid, now_ms() + TIMEOUT_MS, &status);

		if (err < 0)
			return fail(-err, "pid %d: a script does not end: %s", t->tid, strerror(-err));
		if (!WIFSTOPPED(status)) {
			t->dead = true;
			return fail(ESRCH, "pid %d: ended while it was being built (status %#x)", t->tid,
			    status);
		}
		if (status >> 16 == 0 && WSTOPSIG(status) == SIGSTOP)
			return 0;
		if (status >> 16 == 0 && WSTOPSIG(status) != (SIGTRAP | 0x80))
			return fail(EFAULT, "pid %d: signal %d while it was being built", t->tid,
			    WSTOPSIG(status));
		if (ptrace(PTRACE_CONT, t->tid, NULL, NULL) < 0)
			return fail_errno("pid %d: ptrace", t->tid);
	}
}

static void
fill_entries(const struct loop *loop, const struct tracee *t, const struct script *s, size_t first,
    size_t n, struct arch_script_entry *e)
{
	for (size_t i = 0; i < n; i++) {
		const struct script_call *c = &s->calls[first + i];

		e[i] = (struct arch_script_entry){.nr = (uint64_t)c->call.nr,
		    .result = SCRIPT_NOT_RUN, .may_fail = c->may_fail};
		for (unsigned a = 0; a < 6; a++)
			e[i].arg[a] = c->call.arg[a] +
			    (c->data_args & 1u << a ? loop->at + DATA_AT : 0);
	}
	e[n] = (struct arch_script_entry){.nr = SYS_tgkill,
	    .arg = {(uint64_t)t->pid, (uint64_t)t->tid, SIGSTOP}};
}

static int
run_some(struct loop *loop, struct tracee *t, struct script *s, size_t first, size_t n)
{
	struct arch_script_entry *e = calloc(n + 1, sizeof(*e));
	taddr entries = loop->at + ENTRIES_AT;
	struct arch_regs regs = t->regs;
	int err;

	if (e == NULL)
		return -ENOMEM;
	fill_entries(loop, t, s, first, n, e);
	err = mem_write(loop->mem, entries, e, (n + 1) * sizeof(*e));
	if (err < 0)
		fail(-err, "pid %d: script: %s", t->tid, strerror(-err));
	arch_set_loop(&regs, loop->at, entries, entries + n * sizeof(*e), loop->at + 2 * PAGE_BYTES);
	if (err == 0)
		err = tracee_set_regs(t->tid, &regs);
	if (err == 0 && ptrace(PTRACE_CONT, t->tid, NULL, NULL) < 0)
		err = fail_errno("pid %d: ptrace", t->tid);
	if (err == 0)
		err = wait_done(t);
	if (err == 0)
		err = mem_read(loop->mem, entries, e, n * sizeof(*e));
	for (size_t i = 0; err == 0 && i < n; i++)
		s->calls[first + i].result = e[i].result;
	free(e);
	return err;
}

int
loop_run(struct loop *loop, struct tracee *t, struct script *s)
{
	const struct script_call *bad;
	int err = 0;

	if (s->failed || s->data.len > LOOP_DATA_MAX)
		return fail(ENOMEM, "pid %d: a script is too long", t->tid);
	if (s->data.len > 0)
		err = mem_write(loop->mem, loop->at + DATA_AT, s->data.data, s->data.len);
	for (size_t i = 0, n; err == 0 && i < s->ncalls; i += n) {
		n = min_u64(ENTRIES_MAX, s->ncalls - i);
		err = run_some(loop, t, s, i, n);
		if (err == 0 && s->calls[i + n - 1].result == SCRIPT_NOT_RUN)
			break;
	}
	if (err == 0 && s->data.len > 0)
		err = mem_read(loop->mem, loop->at + DATA_AT, s->data.data, s->data.len);
	if (err < 0)
		return err;
	for (size_t i = 0; i < s->ncalls; i++) {
		bad = &s->calls[i];
		if (bad->result == SCRIPT_NOT_RUN ||
		    (bad->result < 0 && bad->result >= -4095 && !bad->may_fail))
			return fail(bad->result == SCRIPT_NOT_RUN ? EIO : (int)-bad->result,
			    "pid %d: %s: %s(%#" PRIx64 ", %#" PRIx64 ", %#" PRIx64 "): %s", t->tid,
			    bad->what, syscall_name(bad->call.nr), bad->call.arg[0], bad->call.arg[1],
			    bad->call.arg[2],
			    bad->result == SCRIPT_NOT_RUN ? "not run" : strerror((int)-bad->result));
	}
	return 0;
}
