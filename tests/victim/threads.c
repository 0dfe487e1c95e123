/* Threads: many, in blocking calls, with registers that must not change. */
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/rseq.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "victim.h"

static void
start(void *(*run)(void *), void *arg)
{
	pthread_t t;
	pthread_attr_t attr;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 256 << 10);
	if (pthread_create(&t, &attr, run, arg) != 0)
		die("pthread_create");
	pthread_attr_destroy(&attr);
}

/* --- hundred: mutexes and condition variables, in turn; nothing is lost, nobody stands still */

enum { MANY = 100 };
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static unsigned long passes, seen_passes, each[MANY];
static unsigned turn;
static pid_t tids[MANY];

static void *
take_turns(void *arg)
{
	unsigned me = (unsigned)(uintptr_t)arg;

	tids[me] = (pid_t)syscall(SYS_gettid);
	for (;;) {
		pthread_mutex_lock(&lock);
		while (turn != me)
			pthread_cond_wait(&cond, &lock);
		each[me]++;
		passes++;
		turn = (turn + 1) % MANY;
		pthread_cond_broadcast(&cond);
		pthread_mutex_unlock(&lock);
	}
	return NULL;
}

static void
hundred_make(void)
{
	for (uintptr_t i = 0; i < MANY; i++)
		start(take_turns, (void *)i);
	for (unsigned i = 0; i < MANY; i++)
		while (__atomic_load_n(&each[i], __ATOMIC_RELAXED) == 0)
			sched_yield();
}

static void
hundred_check(void)
{
	unsigned long sum = 0, target;
	struct timespec now;
	time_t end;

	pthread_mutex_lock(&lock);
	for (unsigned i = 0; i < MANY; i++)
		sum += each[i];
	SAME(sum, passes);
	target = passes + MANY;
	/* They go on: until one more round is done, within a bounded time. */
	clock_gettime(CLOCK_MONOTONIC, &now);
	end = now.tv_sec + 20;
	while (passes < target && now.tv_sec < end) {
		pthread_cond_wait(&cond, &lock);
		clock_gettime(CLOCK_MONOTONIC, &now);
	}
	SAME(passes >= target, true);
	SAME(passes > seen_passes, true);
	seen_passes = passes;
	pthread_mutex_unlock(&lock);
	for (unsigned i = 0; i < MANY; i++)
		SAME(syscall(SYS_tgkill, getpid(), tids[i], 0), 0);
}

/* --- blocked: a thread in each kind of waiting call; none may see EINTR, none return early */

static int eintrs;
static const char *volatile first_eintr;

static void
saw(const char *what, long result)
{
	if (result < 0 && errno == EINTR) {
		__atomic_add_fetch(&eintrs, 1, __ATOMIC_RELAXED);
		if (first_eintr == NULL)
			first_eintr = what;
	}
}

static void *
in_nanosleep(void *arg)
{
	struct timespec t = {1000, 0};

	for (;;)
		saw(arg, nanosleep(&t, NULL));
	return NULL;
}

static void *
in_clock_nanosleep(void *arg)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	t.tv_sec += 1000;
	for (;;)
		saw(arg, clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR
		    ? (errno = EINTR, -1) : 0);
	return NULL;
}

static void *
in_poll(void *arg)
{
	for (;;)
		saw(arg, poll(NULL, 0, 1000000));
	return NULL;
}

static void *
in_select(void *arg)
{
	for (;;) {
		struct timeval t = {1000, 0};

		saw(arg, select(0, NULL, NULL, NULL, &t));
	}
	return NULL;
}

static void *
in_futex(void *arg)
{
	static int word;
	struct timespec t = {1000, 0};

	for (;;)
		saw(arg, syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &t, NULL, 0));
	return NULL;
}

static void *
in_pause(void *arg)
{
	for (;;)
		saw(arg, pause());
	return NULL;
}

static void *
in_sigtimedwait(void *arg)
{
	sigset_t set;
	struct timespec t = {1000, 0};

	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + 15);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	for (;;)
		saw(arg, sigtimedwait(&set, NULL, &t));
	return NULL;
}

static const struct {
	const char *name;
	void *(*run)(void *);
} waits[] = {
    {"nanosleep", in_nanosleep}, {"clock_nanosleep", in_clock_nanosleep}, {"poll", in_poll},
    {"select", in_select}, {"futex", in_futex}, {"pause", in_pause},
};

/* SIGUSR2 and SIGTERM are the main thread's. */
static void
start_blocked(void *(*run)(void *), const char *name)
{
	sigset_t all, old;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	start(run, (void *)(uintptr_t)name);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
}

static void
blocked_make(void)
{
	for (size_t i = 0; i < sizeof(waits) / sizeof(waits[0]); i++)
		start_blocked(waits[i].run, waits[i].name);
}

/* --- sigwait, epoll: calls that return EINTR for a mere stop, unless ckpt sees to it */

static void
sigwait_make(void)
{
	start_blocked(in_sigtimedwait, "sigtimedwait");
}

static void
blocked_check(void)
{
	if (__atomic_load_n(&eintrs, __ATOMIC_RELAXED) != 0)
		differs("blocked: %d spurious EINTR, the first from %s", eintrs, first_eintr);
}

static void *
in_epoll(void *arg)
{
	struct epoll_event ev;
	int fd = epoll_create1(0);

	for (;;)
		saw(arg, epoll_wait(fd, &ev, 1, 1000000));
	return NULL;
}

static void
epoll_make(void)
{
	start_blocked(in_epoll, "epoll_wait");
}

/* --- vectors: every vector register holds its value through it all */

static volatile bool vectors_stop;
static volatile unsigned long vectors_rounds;
static volatile bool vectors_wrong;

/* One pass: load a pattern, spin a while, compare. Only the loop itself uses these registers. */
static bool
vectors_pass(uint64_t seed)
{
	uint64_t in[2] = {seed, ~seed}, out[2] = {0, 0};

	__asm__ volatile(
	    "movdqu (%0), %%xmm3\n\tmovdqu (%0), %%xmm11\n\tmovdqu (%0), %%xmm15\n\t"
	    "mov $200000, %%ecx\n1:\tpause\n\tdec %%ecx\n\tjnz 1b\n\t"
	    "pxor %%xmm3, %%xmm11\n\tpxor %%xmm11, %%xmm15\n\tmovdqu %%xmm15, (%1)"
	    :
	    : "r"(in), "r"(out)
	    : "rcx", "xmm3", "xmm11", "xmm15", "memory");
	return out[0] == in[0] && out[1] == in[1];
}

static void *
spin_vectors(void *arg)
{
	(void)arg;
	for (uint64_t seed = 0x9e3779b97f4a7c15; !vectors_stop; seed = seed * 6364136223846793005 + 1) {
		if (!vectors_pass(seed))
			vectors_wrong = true;
		vectors_rounds++;
	}
	return NULL;
}

static void
vectors_make(void)
{
	start(spin_vectors, NULL);
}

static void
vectors_check(void)
{
	unsigned long before = vectors_rounds;

	SAME(vectors_wrong, false);
	while (vectors_rounds == before)
		sched_yield();
}

/* --- names and per-thread attributes */

static pthread_barrier_t named;
static volatile bool names_ask;
static char thread_name[16];
static int thread_slack;

static void *
be_named(void *arg)
{
	cpu_set_t one;

	(void)arg;
	prctl(PR_SET_NAME, "worker seven");
	prctl(PR_SET_TIMERSLACK, 123456);
	CPU_ZERO(&one);
	CPU_SET(0, &one);
	sched_setaffinity(0, sizeof(one), &one);
	pthread_barrier_wait(&named);
	for (;;) {
		pthread_barrier_wait(&named);
		prctl(PR_GET_NAME, thread_name);
		thread_slack = prctl(PR_GET_TIMERSLACK);
		sched_getaffinity(0, sizeof(one), &one);
		if (CPU_COUNT(&one) != 1 || !CPU_ISSET(0, &one))
			thread_slack = -1;
		pthread_barrier_wait(&named);
	}
	return NULL;
}

static void
names_make(void)
{
	pthread_barrier_init(&named, NULL, 2);
	start(be_named, NULL);
	pthread_barrier_wait(&named);
	prctl(PR_SET_NAME, "the %leader");
}

static void
names_check(void)
{
	char name[16];

	pthread_barrier_wait(&named);
	pthread_barrier_wait(&named);
	SAME(strcmp(thread_name, "worker seven"), 0);
	SAME(thread_slack, 123456);
	prctl(PR_GET_NAME, name);
	SAME(strcmp(name, "the %leader"), 0);
}

/* --- join: a thread that ends afterwards is joined; the kernel still knows its tid address */

static pthread_t joined;
static pthread_barrier_t go;

static void *
wait_go(void *arg)
{
	pthread_barrier_wait(&go);
	return arg;
}

static void
join_make(void)
{
	pthread_barrier_init(&go, NULL, 2);
	if (pthread_create(&joined, NULL, wait_go, &go) != 0)
		die("pthread_create");
}

static void
join_check(void)
{
	void *result = NULL;

	pthread_barrier_wait(&go);
	SAME(pthread_join(joined, &result), 0);
	SAME(result == &go, true);
	join_make();
}

/* --- robust: a robust mutex whose owner ends is reported so; rseq tells the right CPU */

static pthread_mutex_t robust;
static pthread_t owner;

static void *
own(void *arg)
{
	(void)arg;
	pthread_mutex_lock(&robust);
	pthread_barrier_wait(&go);
	pthread_barrier_wait(&go);
	return NULL;
}

static void
robust_make(void)
{
	pthread_mutexattr_t attr;

	pthread_mutexattr_init(&attr);
	pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
	pthread_mutex_init(&robust, &attr);
	pthread_barrier_init(&go, NULL, 2);
	pthread_create(&owner, NULL, own, NULL);
	pthread_barrier_wait(&go);
}

static void
robust_check(void)
{
	unsigned cpu;
	struct rseq *rs = (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);

	pthread_barrier_wait(&go);
	pthread_join(owner, NULL);
	SAME(pthread_mutex_lock(&robust), EOWNERDEAD);
	pthread_mutex_consistent(&robust);
	pthread_mutex_unlock(&robust);
	robust_make();
	if (__rseq_size == 0)
		return;
	for (int i = 0; i < 1000; i++) {
		syscall(SYS_getcpu, &cpu, NULL, NULL);
		if (cpu == *(volatile unsigned *)&rs->cpu_id)
			return;
	}
	differs("rseq: cpu_id %u, on CPU %u", rs->cpu_id, cpu);
}

const struct maker thread_makers[] = {
    {"hundred", hundred_make, hundred_check}, {"blocked", blocked_make, blocked_check},
    {"sigwait", sigwait_make, blocked_check}, {"epoll", epoll_make, blocked_check}, {"vectors", vectors_make, vectors_check},
    {"names", names_make, names_check}, {"join", join_make, join_check},
    {"robust", robust_make, robust_check}, {NULL, NULL, NULL},
};
