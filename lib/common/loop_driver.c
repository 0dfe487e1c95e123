#include "loop_driver.h"

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

/*
 * Wait for the stop that ends a script. Other signals are held back: children that are made as ones
 * that have ended announce it, and what is to be pending is queued at the end.
 */
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
		if (status >> 16 == 0 && tracee_is_fault(WSTOPSIG(status)))
			return fail(EFAULT, "pid %d: signal %d while it was being built", t->tid,
			    WSTOPSIG(status));
		if (ptrace(PTRACE_CONT, t->tid, NULL, NULL) < 0)
			return fail_errno("pid %d: ptrace", t->tid);
	}
}

/* Part of a script: calls, and the window of the data that they use. */
struct batch {
	struct tracee *t;
	struct script *s;
	size_t first, n;
	uint64_t data, data_end;
	size_t next;       /* the first call from here on that has data */
	uint64_t next_data; /* where that begins */
	size_t entry;      /* where its entries are among those of all that run at once, */
	uint64_t at;       /* and its data */
};

static uint64_t
data_len(const struct batch *b)
{
	return b->data_end - b->data;
}

/* One more than calls: the stop. */
static void
fill_entries(const struct loop *loop, const struct batch *b, struct arch_script_entry *e)
{
	for (size_t i = 0; i < b->n; i++) {
		const struct script_call *c = &b->s->calls[b->first + i];

		e[i] = (struct arch_script_entry){.nr = (uint64_t)c->call.nr,
		    .result = SCRIPT_NOT_RUN, .may_fail = c->may_fail};
		for (unsigned a = 0; a < 6; a++)
			e[i].arg[a] = c->call.arg[a] +
			    (c->data_args & 1u << a ? loop->at + DATA_AT + b->at - b->data : 0);
	}
	e[b->n] = (struct arch_script_entry){.nr = SYS_tgkill,
	    .arg = {(uint64_t)b->t->pid, (uint64_t)b->t->tid, SIGSTOP}};
}

/* Lowest offset of the data of a call, or `none`. */
static uint64_t
first_data(const struct script_call *c, uint64_t none)
{
	for (unsigned a = 0; a < 6; a++)
		if (c->data_args & 1u << a)
			none = min_u64(none, c->call.arg[a]);
	return none;
}

/*
 * The next calls whose data fits. Data is put in the order of the calls, so what a call uses
 * lies between its own lowest offset and that of the next one that has any.
 */
static bool
next_batch(struct batch *b)
{
	const struct script *s = b->s;
	size_t i = b->first + b->n;

	b->data = b->data_end;
	b->first = i;
	b->n = 0;
	while (i < s->ncalls && b->n < ENTRIES_MAX) {
		uint64_t end;

		if (b->next <= i) {
			b->next_data = s->data.len;
			for (b->next = i + 1; b->next < s->ncalls && b->next_data == s->data.len; b->next++)
				b->next_data = first_data(&s->calls[b->next], s->data.len);
			b->next -= b->next_data != s->data.len;
		}
		end = b->next_data;
		if (end - b->data > LOOP_DATA_MAX)
			break;
		b->data_end = max_u64(end, b->data);
		b->n++;
		i++;
	}
	return b->n > 0;
}

/* The same without a tracer: everything is in memory that both have. */
static int
run_shared(const struct loop *loop, const struct batch *b, struct arch_script_entry *e, unsigned char *data)
{
	unsigned char *shared = untraced_shared(loop->untraced), *entries = shared + ENTRIES_AT - PAGE_BYTES, *there = shared + DATA_AT - PAGE_BYTES;
	taddr first = loop->at + ENTRIES_AT;
	int err;

	memcpy(entries, e, b->n * sizeof(*e));
	memcpy(there, data, data_len(b));
	err = untraced_run(loop->untraced, b->t->slot, b->t->tid, first, first + b->n * sizeof(*e));
	if (err < 0)
		return err;
	memcpy(e, entries, b->n * sizeof(*e));
	memcpy(data, there, data_len(b));
	return 0;
}

static int
start_traced(const struct loop *loop, const struct batch *b)
{
	taddr entries = loop->at + ENTRIES_AT + b->entry * sizeof(struct arch_script_entry);
	struct arch_regs regs = b->t->regs;
	int err;

	arch_set_loop(&regs, loop->at, entries, entries + b->n * sizeof(struct arch_script_entry), loop->at + 2 * PAGE_BYTES);
	err = tracee_set_regs(b->t->tid, &regs);
	if (err == 0 && ptrace(PTRACE_CONT, b->t->tid, NULL, NULL) < 0)
		err = fail_errno("pid %d: ptrace", b->t->tid);
	return err;
}

/* n batches at once: `entries` entries and `bytes` bytes of data are all of theirs. */
static int
run_traced(const struct loop *loop, const struct batch *b, size_t n, struct arch_script_entry *e, size_t entries, unsigned char *data, uint64_t bytes)
{
	int err = mem_write(loop->mem, loop->at + ENTRIES_AT, e, entries * sizeof(*e));

	if (err == 0)
		err = mem_write(loop->mem, loop->at + DATA_AT, data, bytes);
	if (err < 0)
		return fail(-err, "pid %d: script: %s", b->t->tid, strerror(-err));
	for (size_t i = 0; i < n && err == 0; i++)
		err = start_traced(loop, &b[i]);
	for (size_t i = 0; i < n && err == 0; i++)
		err = wait_done(b[i].t);
	if (err == 0)
		err = mem_read(loop->mem, loop->at + ENTRIES_AT, e, entries * sizeof(*e));
	if (err == 0)
		err = mem_read(loop->mem, loop->at + DATA_AT, data, bytes);
	return err;
}

static int
run_batches(struct loop *loop, const struct batch *b, size_t n)
{
	size_t entries = b[n - 1].entry + b[n - 1].n + 1;
	uint64_t bytes = b[n - 1].at + data_len(&b[n - 1]);
	struct arch_script_entry *e = calloc(entries, sizeof(*e));
	unsigned char *data = calloc(1, bytes + 1);
	int err = e == NULL || data == NULL ? -ENOMEM : 0;

	for (size_t i = 0; i < n && err == 0; i++) {
		fill_entries(loop, &b[i], e + b[i].entry);
		memcpy(data + b[i].at, b[i].s->data.data + b[i].data, data_len(&b[i]));
	}
	if (err == 0)
		err = loop->untraced != NULL ? run_shared(loop, b, e, data) : run_traced(loop, b, n, e, entries, data, bytes);
	for (size_t i = 0; i < n && err == 0; i++) {
		for (size_t k = 0; k < b[i].n; k++)
			b[i].s->calls[b[i].first + k].result = e[b[i].entry + k].result;
		memcpy(b[i].s->data.data + b[i].data, data + b[i].at, data_len(&b[i]));
	}
	free(e);
	free(data);
	return err;
}

static int
call_failed(const struct tracee *t, const struct script_call *c)
{
	int err = c->result == SCRIPT_NOT_RUN || c->result == -EINVAL ? EIO : (int)-c->result;

	return fail(err, "pid %d: %s: %s(%#" PRIx64 ", %#" PRIx64 ", %#" PRIx64 "): %s", t->tid, c->what,
	    syscall_name(c->call.nr), c->call.arg[0], c->call.arg[1], c->call.arg[2],
	    c->result == SCRIPT_NOT_RUN ? "not run" : strerror((int)-c->result));
}

static int
all_well(const struct tracee *t, const struct script *s)
{
	const struct script_call *bad = script_first_error(s);

	return bad == NULL ? 0 : call_failed(t, bad);
}

int
loop_run(struct loop *loop, struct tracee *t, struct script *s)
{
	struct batch b = {.t = t, .s = s};

	if (s->failed)
		return fail(ENOMEM, "pid %d: out of memory", t->tid);
	while (next_batch(&b)) {
		int err = run_batches(loop, &b, 1);

		if (err < 0)
			return err;
		if (s->calls[b.first + b.n - 1].result == SCRIPT_NOT_RUN)
			break;
	}
	return all_well(t, s);
}

/* As many as there is room for, from the first on; at least that one. */
static size_t
take_some(struct batch *b, struct tracee *threads, struct script *scripts, size_t n)
{
	size_t entries = 0, i;
	uint64_t at = 0;

	for (i = 0; i < n; i++) {
		const struct script *s = &scripts[i];

		entries += s->ncalls + 1;
		if (s->failed || entries > ENTRIES_MAX || at + s->data.len > LOOP_DATA_MAX)
			break;
		b[i] = (struct batch){.t = &threads[i], .s = &scripts[i], .n = s->ncalls, .data_end = s->data.len, .entry = entries - s->ncalls - 1, .at = at};
		at += round_up(s->data.len, 16);
	}
	return i;
}

int
loop_run_all(struct loop *loop, struct tracee *threads, struct script *scripts, size_t n)
{
	struct batch *b = calloc(n + 1, sizeof(*b));
	size_t done = 0;
	int err = b == NULL ? -ENOMEM : 0;

	while (done < n && err == 0) {
		size_t some = loop->untraced != NULL ? 0 : take_some(b, threads + done, scripts + done, n - done);

		if (some == 0) {
			err = loop_run(loop, &threads[done], &scripts[done]);
			done++;
			continue;
		}
		err = run_batches(loop, b, some);
		for (size_t i = 0; i < some && err == 0; i++)
			err = all_well(&threads[done + i], &scripts[done + i]);
		done += some;
	}
	free(b);
	return err;
}
