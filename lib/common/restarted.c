/*
 * A wait with a timeout that has been interrupted before, by another ckpt or a stopped terminal, goes on as
 * restart_syscall(2): its own number is no longer in the registers, its arguments are. A copy has to begin
 * the call itself again, so the number must be found.
 */
#include <linux/futex.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>

#include "target.h"

/* The calls that continue in this way: those that set a restart block. */
static bool
is_candidate(long nr)
{
	return nr == SYS_nanosleep || nr == SYS_clock_nanosleep || nr == SYS_poll || nr == SYS_futex;
}

bool
replaces_restarted(const struct arch_call *call)
{
	return is_candidate(call->nr) && (call->nr != SYS_poll || (int)call->arg[2] != 0);
}

static bool
is_timespec(const struct tracee *th, taddr at)
{
	struct timespec ts;

	return at != 0 && mem_read(th->mem, at, &ts, sizeof(ts)) == 0 && ts.tv_sec >= 0 &&
	    ts.tv_nsec >= 0 && ts.tv_nsec < 1000000000;
}

static bool
is_futex_wait(uint64_t op)
{
	op &= ~(uint64_t)(FUTEX_PRIVATE_FLAG | FUTEX_CLOCK_REALTIME);
	return op == FUTEX_WAIT || op == FUTEX_WAIT_BITSET;
}

/* By what the arguments can mean, where the number is not an immediate (syscall(3)). */
static long
by_arguments(const struct tracee *th, const struct arch_call *c)
{
	enum { CLOCKS = 16, FDS = 1 << 20 };

	if (is_futex_wait(c->arg[1]) && c->arg[0] % 4 == 0 && c->arg[0] >= PAGE_BYTES &&
	    is_timespec(th, c->arg[3]))
		return SYS_futex;
	if (c->arg[0] < CLOCKS && c->arg[1] <= TIMER_ABSTIME && is_timespec(th, c->arg[2]))
		return SYS_clock_nanosleep;
	if (is_timespec(th, c->arg[0]) && c->arg[1] >= PAGE_BYTES)
		return SYS_nanosleep;
	if (c->arg[1] < FDS && (c->arg[1] == 0 || c->arg[0] >= PAGE_BYTES) && (int32_t)c->arg[2] > 0)
		return SYS_poll;
	return is_timespec(th, c->arg[0]) ? SYS_nanosleep : -1;
}

long
restarted_call(const struct tracee *th)
{
	unsigned char code[ARCH_CODE_BEFORE];
	struct arch_call call;
	long nr;

	if (!arch_in_restart_syscall(&th->regs, &call))
		return 0;
	if (mem_read(th->mem, th->regs.rip - sizeof(code), code, sizeof(code)) == 0) {
		nr = arch_number_before(code);
		if (is_candidate(nr))
			return nr;
	}
	return by_arguments(th, &call);
}
