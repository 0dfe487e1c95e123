/*
 * A thread of a running process executes calls for us: only that thread is stopped, and its own call goes on afterwards.
 */
#include <errno.h>
#include <linux/seccomp.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>

#include "io.h"
#include "log.h"
#include "rexec.h"

enum { STOP_MS = 5000 };

static int
check_seccomp(struct lender *l)
{
	const struct proc_status *st = &l->target.status;

	/* They might end it for a call that is not its own. */
	if (st->seccomp == SECCOMP_MODE_DISABLED || target_suspend_seccomp(&l->target) == 0)
		return 0;
	return fail(EPERM, "pid %d: its seccomp filters might end it for a call that is not its own (be root: CAP_SYS_ADMIN)",
	    l->target.pid);
}

int
lend_begin(struct lender *l, pid_t pid, pid_t tid)
{
	int err = target_open(&l->target, pid);

	if (err == 0)
		err = target_freeze_one(&l->target, tid, now_ms() + STOP_MS);
	if (err == 0)
		err = check_seccomp(l);
	if (err == 0) {
		l->thread = &l->target.threads[0];
		l->thread->call_ms = l->block_ms;
		l->thread->cancelled = l->cancelled;
		err = target_borrow(&l->target, l->thread);
	}
	return err;
}

static int
call_by_number(struct lender *l, int64_t *result, long nr, uint64_t a, uint64_t b, uint64_t c, uint64_t d)
{
	struct arch_call call = {nr, {a, b, c, d, (uint64_t)-1, 0}};

	return tracee_call(l->thread, &call, result);
}

/* Room for data below its stack, or a mapping for as long as the call takes. */
static int
get_room(struct lender *l, size_t len, taddr *at)
{
	int64_t result;
	int err;

	*at = l->thread->scratch;
	if (len <= TRACEE_SCRATCH)
		return 0;
	err = call_by_number(l, &result, SYS_mmap, 0, page_up(len), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
	if (err == 0 && result < 0 && result >= -4095)
		err = fail((int)-result, "pid %d: no memory for %zu bytes in it: %s", l->target.pid, len, strerror((int)-result));
	*at = (taddr)result;
	return err;
}

/* The kernel remembers one wait that goes on, and another that is interrupted would take its place. */
static int
check_wait(const struct lender *l, const struct arch_call *call)
{
	if (!replaces_restarted(call) || (l->thread->restarted == 0 && !arch_in_timed_wait(&l->thread->regs)))
		return 0;
	return fail(ENOTSUP, "thread %d: is in a timed wait itself, which %s would take the place of (-t names another thread)",
	    l->thread->tid, syscall_name(call->nr));
}

int
lend_call(struct lender *l, struct calldata *c, int64_t *result)
{
	struct arch_call call;
	int64_t unmapped;
	taddr at = 0;
	int err = calldata_native_room(c) < 0 ? fail(ENOMEM, "out of memory") : get_room(l, c->data.len, &at), ignored;

	if (err < 0)
		return err;
	call = calldata_native(c, at);
	err = mem_write(l->thread->mem, at, c->data.data, c->data.len);
	if (err == 0)
		err = check_wait(l, &call);
	if (err == 0)
		err = tracee_call(l->thread, &call, result);
	if (err == 0)
		err = mem_read(l->thread->mem, at, c->data.data, c->data.len);
	if (err == 0)
		calldata_native_done(c);
	if (at != l->thread->scratch && !l->thread->dead) {
		ignored = call_by_number(l, &unmapped, SYS_munmap, at, page_up(c->data.len), 0, 0);
		err = err < 0 ? err : ignored;
	}
	return err;
}

int
lend_end(struct lender *l)
{
	int err = l->thread != NULL ? tracee_give_back(l->thread) : 0;

	target_detach(&l->target);
	target_close(&l->target);
	l->thread = NULL;
	return err;
}
