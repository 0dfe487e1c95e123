/*
 * Threads that stand in the handler: each in a place of its own in the area, where it executes what the one that answers puts there.
 * All of it is executed in signal handlers.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

enum { STOP_MS = 1000, AGAIN_MS = 20 };

struct area *area;
_Atomic uint32_t stopping, standing, returned;
_Atomic int32_t answering, own_files[2];
uint32_t nthreads, nheld;
int64_t first_tid;

/* --- waiting */

void
futex_wait(const void *word, uint32_t value, long ms)
{
	struct timespec ts = {ms / 1000, ms % 1000 * 1000000};

	raw(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, ms < 0 ? NULL : &ts);
}

void
futex_wake(const void *word)
{
	raw(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT32_MAX, 0);
}

static int64_t
clock_ms(void)
{
	struct timespec ts;

	raw(SYS_clock_gettime, CLOCK_MONOTONIC, &ts, 0, 0);
	return ts.tv_sec * 1000LL + ts.tv_nsec / 1000000;
}

/* --- a thread that stands */

#if __GLIBC_PREREQ(2, 35)
#include <sys/rseq.h>
#define HAVE_RSEQ 1
#pragma weak __rseq_size
#pragma weak __rseq_offset
#endif

/* What libc has registered for this thread. */
static void
find_rseq(struct coop_thread *t)
{
	t->rseq = 0;
#ifdef HAVE_RSEQ
	if (&__rseq_size != NULL && &__rseq_offset != NULL && __rseq_size > 0) {
		const struct rseq *rs = (const void *)((const char *)__builtin_thread_pointer() + __rseq_offset);

		if ((int32_t)rs->cpu_id < 0)
			return;
		t->rseq = (uintptr_t)rs;
		t->rseq_size = 32;
		t->rseq_sig = RSEQ_SIG;
	}
#endif
}

static void
execute(const struct coop_thread *t)
{
	struct arch_script_entry *e = (void *)(uintptr_t)t->entries;

	for (uint64_t i = 0; i < t->nentries; i++) {
		e[i].result = arch_raw_call((long)e[i].nr, e[i].arg[0], e[i].arg[1], e[i].arg[2], e[i].arg[3], e[i].arg[4], e[i].arg[5]);
		if (e[i].result < 0 && e[i].result >= -4095 && !e[i].may_fail)
			return;
	}
}

/* Signals that were taken from this thread, and by the first one those of the process, which nobody else may queue with all that they say. */
void
stand_queue_again(int32_t tid)
{
	struct rlimit limit = {0, 0}, most;

	/* Somebody may have filled the room that they had. */
	if (nheld > 0 && raw(SYS_prlimit64, 0, RLIMIT_SIGPENDING, NULL, &limit) == 0) {
		most = (struct rlimit){limit.rlim_max, limit.rlim_max};
		raw(SYS_prlimit64, 0, RLIMIT_SIGPENDING, &most, NULL);
	}
	for (uint32_t i = 0; i < nheld; i++) {
		struct coop_held *h = &area->held[i];

		if (h->sig != 0 && h->tid == tid)
			raw(SYS_rt_tgsigqueueinfo, first_tid, tid, h->sig, h->info);
		else if (h->sig != 0 && h->tid == 0 && tid == first_tid)
			raw(SYS_rt_sigqueueinfo, first_tid, h->sig, h->info, 0);
	}
	if (limit.rlim_max != 0)
		raw(SYS_prlimit64, 0, RLIMIT_SIGPENDING, &limit, NULL);
}

void
stand_describe(struct coop_thread *t, const void *context)
{
	t->frame = ARCH_FRAME_OF(context);
	t->tid = (int32_t)raw(SYS_gettid, 0, 0, 0, 0);
	find_rseq(t);
}

static void
leave(void)
{
	atomic_fetch_sub(&standing, 1);
	futex_wake(&standing);
}

static void
stand(struct coop_thread *t, const void *context)
{
	uint32_t what;

	stand_describe(t, context);
	if (arch_capture(&t->captured) == 0) {
		uint32_t none = 0;

		atomic_fetch_add(&standing, 1);
		if (!__atomic_compare_exchange_n(&t->stands, &none, 1, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
			leave(); /* too late: it was given up */
			return;
		}
		futex_wake(&t->stands);
	} else {
		/* Made of the image, perhaps with another number. */
		t->tid = (int32_t)raw(SYS_gettid, 0, 0, 0, 0);
		atomic_fetch_add(&returned, 1);
		futex_wake(&returned);
	}
	while ((what = __atomic_load_n(&t->wanted, __ATOMIC_SEQ_CST)) != 2) {
		if (what == 0) {
			futex_wait(&t->wanted, 0, -1);
			continue;
		}
		execute(t);
		__atomic_store_n(&t->wanted, 0, __ATOMIC_SEQ_CST);
		futex_wake(&t->wanted);
	}
	stand_queue_again(t->tid);
	leave();
}

void
stand_run(struct coop_thread *t)
{
	if (t == area->threads) {
		execute(t);
		return;
	}
	__atomic_store_n(&t->wanted, 1, __ATOMIC_SEQ_CST);
	futex_wake(&t->wanted);
	while (__atomic_load_n(&t->wanted, __ATOMIC_SEQ_CST) == 1)
		futex_wait(&t->wanted, 1, -1);
}

/* --- stopping the others */

void
stand_begin(void)
{
	nthreads = 1;
	nheld = 0;
	area->threads[0].tid = (int32_t)raw(SYS_gettid, 0, 0, 0, 0);
}

/* What the signal carries: whom it is for, and in which stop. */
static uint64_t
stop_value(uint32_t i)
{
	return (uint64_t)(uintptr_t)area + i;
}

bool
stand_is_ours(uint64_t value)
{
	return value > (uintptr_t)area && value < (uintptr_t)area + COOP_THREADS_MAX;
}

void
stand_if_stopped(uint64_t value, const void *context)
{
	uint64_t i = value - (uintptr_t)area;

	/* One that comes too late is of no stop, or of another one. */
	if (stopping && i < nthreads && area->threads[i].tid == (int32_t)raw(SYS_gettid, 0, 0, 0, 0))
		stand(&area->threads[i], context);
}

int
stand_send(int32_t tid, uint64_t value)
{
	siginfo_t si;

	memset(&si, 0, sizeof(si));
	si.si_signo = PMS_SIGNAL;
	si.si_code = SI_QUEUE;
	si.si_pid = (pid_t)first_tid;
	si.si_uid = (uid_t)raw(SYS_getuid, 0, 0, 0, 0);
	si.si_value.sival_ptr = (void *)(uintptr_t)value;
	return (int)raw(SYS_rt_tgsigqueueinfo, first_tid, tid, PMS_SIGNAL, &si);
}

static bool
is_known(int32_t tid)
{
	for (uint32_t i = 0; i < nthreads; i++)
		if (area->threads[i].tid == tid)
			return true;
	return false;
}

/* The signal to one that has not been sent it. Returns 1 if it was sent now, 0 where it need not be, or a negative errno. */
static int
stop_one(int32_t tid)
{
	struct coop_thread *t = &area->threads[nthreads];
	int err;

	if (is_known(tid))
		return 0;
	if (nthreads == COOP_THREADS_MAX)
		return -EAGAIN;
	t->tid = tid;
	t->wanted = t->stands = 0;
	nthreads++;
	err = stand_send(tid, stop_value(nthreads - 1));
	if (err == 0)
		return 1;
	/* It has ended; its number may come again. */
	t->tid = 0;
	return err == -ESRCH ? 0 : err;
}

static int32_t
parse_tid(const char *text)
{
	int32_t tid = 0;

	for (; *text >= '0' && *text <= '9'; text++)
		tid = tid * 10 + (*text - '0');
	return tid;
}

/* struct linux_dirent64 of getdents64(2) */
struct entry {
	uint64_t ino;
	int64_t off;
	uint16_t length;
	uint8_t type;
	char name[];
};

/* Returns how many have been sent the signal now, or a negative errno. */
static int
stop_new(void)
{
	char *buf = area->names;
	int64_t fd = raw(SYS_openat, AT_FDCWD, "/proc/self/task", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0), n;
	int sent = 0, one = 0;

	if (fd < 0)
		return (int)fd;
	own_files[0] = (int32_t)fd + 1;
	while (one >= 0 && (n = raw(SYS_getdents64, fd, buf, sizeof(area->names), 0)) > 0)
		for (int64_t at = 0; at < n && one >= 0; at += ((const struct entry *)(const void *)(buf + at))->length) {
			int32_t tid = parse_tid(((const struct entry *)(const void *)(buf + at))->name);

			one = tid > 0 ? stop_one(tid) : 0;
			sent += one > 0;
		}
	own_files[0] = 0;
	raw(SYS_close, fd, 0, 0, 0);
	return one < 0 ? one : n < 0 ? (int)n : sent;
}

/* Returns 0 when this one stands or has ended, else -ETIMEDOUT. */
static int
await_one(struct coop_thread *t, int64_t deadline)
{
	while (__atomic_load_n(&t->stands, __ATOMIC_SEQ_CST) == 0) {
		futex_wait(&t->stands, 0, AGAIN_MS);
		if (__atomic_load_n(&t->stands, __ATOMIC_SEQ_CST) == 0 && raw(SYS_tgkill, first_tid, t->tid, 0, 0) == -ESRCH) {
			t->tid = 0;
			return 0;
		}
		if (clock_ms() >= deadline)
			return -ETIMEDOUT;
	}
	return 0;
}

/* Until nobody is new. Returns 0, or the number of one that does not stop, or a negative errno. */
int
stand_others(void)
{
	int64_t deadline = clock_ms() + STOP_MS;
	uint32_t waited = 1;
	int sent;

	while ((sent = stop_new()) > 0)
		for (; waited < nthreads; waited++)
			if (area->threads[waited].tid != 0 && await_one(&area->threads[waited], deadline) < 0)
				return area->threads[waited].tid;
	return sent;
}

void
stand_let_go(void)
{
	/* One whose signal is still to come finds that it is too late. */
	for (uint32_t i = 1; i < nthreads; i++) {
		uint32_t none = 0;

		if (__atomic_compare_exchange_n(&area->threads[i].stands, &none, 2, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
			continue;
		__atomic_store_n(&area->threads[i].wanted, 2, __ATOMIC_SEQ_CST);
		futex_wake(&area->threads[i].wanted);
	}
	for (uint32_t n; (n = standing) > 0;)
		futex_wait(&standing, n, -1);
}
