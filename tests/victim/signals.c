/* Handlers, masks, pending signals, alternate stacks, timers, clocks. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "victim.h"

/* --- handlers */

static void
handler(int sig, siginfo_t *si, void *ctx)
{
	(void)sig, (void)si, (void)ctx;
}

static void
handlers_make(void)
{
	struct sigaction sa = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_RESTART | SA_NODEFER};

	sigaddset(&sa.sa_mask, SIGHUP);
	sigaddset(&sa.sa_mask, SIGRTMAX);
	sigaction(SIGALRM, &sa, NULL);
	sa.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESETHAND;
	sigaction(SIGRTMIN + 5, &sa, NULL);
	signal(SIGTTOU, SIG_IGN);
	sa = (struct sigaction){.sa_handler = SIG_DFL, .sa_flags = SA_NOCLDWAIT | SA_NOCLDSTOP};
	sigaction(SIGCHLD, &sa, NULL);
}

static void
handlers_check(void)
{
	struct sigaction sa;

	sigaction(SIGALRM, NULL, &sa);
	SAME(sa.sa_sigaction == handler, true);
	SAME(sa.sa_flags & ~0x04000000, SA_SIGINFO | SA_RESTART | SA_NODEFER);
	SAME(sigismember(&sa.sa_mask, SIGHUP) && sigismember(&sa.sa_mask, SIGRTMAX), true);
	sigaction(SIGRTMIN + 5, NULL, &sa);
	SAME(sa.sa_flags & ~0x04000000, (int)(SA_SIGINFO | SA_ONSTACK | SA_RESETHAND));
	sigaction(SIGTTOU, NULL, &sa);
	SAME(sa.sa_handler == SIG_IGN, true);
	sigaction(SIGCHLD, NULL, &sa);
	SAME(sa.sa_flags & (SA_NOCLDWAIT | SA_NOCLDSTOP), SA_NOCLDWAIT | SA_NOCLDSTOP);
}

/* --- pending: for the process and for the thread, real-time ones with their values and order */

static void
pending_make(void)
{
	sigset_t set;
	union sigval v;

	sigemptyset(&set);
	for (int i = 8; i <= 10; i++)
		sigaddset(&set, SIGRTMIN + i);
	sigaddset(&set, SIGWINCH);
	sigprocmask(SIG_BLOCK, &set, NULL);
	for (int i = 0; i < 3; i++) {
		v.sival_int = 1000 + i;
		sigqueue(getpid(), SIGRTMIN + 8, v);
	}
	raise(SIGRTMIN + 9);
	raise(SIGWINCH);
	v.sival_int = 55;
	sigqueue(getpid(), SIGRTMIN + 10, v);
}

static void
pending_check(void)
{
	sigset_t set, pend;
	siginfo_t si[3];
	struct timespec now = {0, 0};

	sigpending(&pend);
	SAME(sigismember(&pend, SIGWINCH) && sigismember(&pend, SIGRTMIN + 9), true);
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + 8);
	for (int i = 0; i < 3; i++) {
		SAME(sigtimedwait(&set, &si[i], &now), SIGRTMIN + 8);
		SAME(si[i].si_value.sival_int, 1000 + i);
		SAME(si[i].si_code, SI_QUEUE);
		SAME(si[i].si_pid, getpid());
	}
	SAME(sigtimedwait(&set, NULL, &now), -1);
	for (int i = 0; i < 3; i++)
		sigqueue(getpid(), SIGRTMIN + 8, si[i].si_value);
}

/* --- altstack: registered, and a handler running on it at the time */

static char altstack[65536];

static void
altstack_make(void)
{
	stack_t ss = {.ss_sp = altstack, .ss_size = sizeof(altstack)};

	if (sigaltstack(&ss, NULL) < 0)
		die("sigaltstack");
}

static volatile uintptr_t on_altstack;

static void
note_stack(int sig)
{
	char here;

	(void)sig;
	on_altstack = (uintptr_t)&here;
}

static void
altstack_check(void)
{
	struct sigaction sa = {.sa_handler = note_stack, .sa_flags = SA_ONSTACK};
	stack_t ss;

	sigaltstack(NULL, &ss);
	SAME(ss.ss_sp == altstack, true);
	SAME(ss.ss_size, sizeof(altstack));
	sigaction(SIGPWR, &sa, NULL);
	raise(SIGPWR);
	SAME(on_altstack - (uintptr_t)altstack < sizeof(altstack), true);
}

/* --- timers that must not fire: far away; and their remaining time */

static timer_t timers[3];
static struct timespec made;

static double
since(clockid_t clock, const struct timespec *then)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return (double)(now.tv_sec - then->tv_sec) + (double)(now.tv_nsec - then->tv_nsec) / 1e9;
}

static int
kernel_id(timer_t t)
{
	return (int)(intptr_t)t;
}

static void
timers_make(void)
{
	struct sigevent ev = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 3};
	struct itimerspec v = {{500, 0}, {1000, 0}};
	struct itimerval iv = {{0, 0}, {2000, 0}};
	timer_t gone[4];

	clock_gettime(CLOCK_MONOTONIC, &made);
	for (int i = 0; i < 3; i++) {
		/* Numbers with holes between them. */
		timer_create(CLOCK_REALTIME, &ev, &gone[i]);
		ev.sigev_value.sival_int = 70 + i;
		if (i == 2)
			ev.sigev_notify = SIGEV_NONE;
		if (timer_create(i == 1 ? CLOCK_MONOTONIC : CLOCK_REALTIME, &ev, &timers[i]) < 0)
			die("timer_create");
		timer_settime(timers[i], 0, &v, NULL);
		timer_delete(gone[i]);
	}
	setitimer(ITIMER_REAL, &iv, NULL);
}

static void
timers_check(void)
{
	struct itimerspec v;
	struct itimerval iv;

	for (int i = 0; i < 3; i++) {
		if (timer_gettime(timers[i], &v) < 0) {
			differs("timers: number %d is gone", kernel_id(timers[i]));
			continue;
		}
		SAME(v.it_interval.tv_sec, 500);
		/* Neither begun again nor run while the process did not. */
		if (v.it_value.tv_sec > 999 || v.it_value.tv_sec < 500)
			differs("timers: %ld s remain", (long)v.it_value.tv_sec);
	}
	getitimer(ITIMER_REAL, &iv);
	if (iv.it_value.tv_sec > 1999 || iv.it_value.tv_sec < 1500)
		differs("itimer: %ld s remain", (long)iv.it_value.tv_sec);
}

/* --- fires: a timer that fires once, after its time and not before */

static volatile int fired;
static struct timespec set_at;

static void
on_fire(int sig)
{
	(void)sig;
	fired++;
}

static void
fires_make(void)
{
	struct sigaction sa = {.sa_handler = on_fire};
	struct itimerval iv = {{0, 0}, {1, 500000}};

	sigaction(SIGALRM, &sa, NULL);
	clock_gettime(CLOCK_MONOTONIC, &set_at);
	setitimer(ITIMER_REAL, &iv, NULL);
}

static void
fires_check(void)
{
	while (fired == 0 && since(CLOCK_MONOTONIC, &set_at) < 20)
		pause();
	SAME(fired, 1);
	if (since(CLOCK_MONOTONIC, &set_at) < 1.5)
		differs("fires: after %.3f s", since(CLOCK_MONOTONIC, &set_at));
}

/* --- clock: monotonic time goes on and never back, by vDSO and by system call */

static struct timespec last;

static void
clock_make(void)
{
	clock_gettime(CLOCK_MONOTONIC, &last);
}

static void
clock_check(void)
{
	struct timespec raw, real;
	struct timeval tv;

	SAME(since(CLOCK_MONOTONIC, &last) >= 0, true);
	if (since(CLOCK_MONOTONIC, &last) > 600)
		differs("clock: leapt by %.0f s", since(CLOCK_MONOTONIC, &last));
	clock_gettime(CLOCK_MONOTONIC, &last);
	syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &raw);
	SAME(raw.tv_sec - last.tv_sec <= 1 && raw.tv_sec >= last.tv_sec, true);
	clock_gettime(CLOCK_REALTIME, &real);
	gettimeofday(&tv, NULL);
	SAME(tv.tv_sec - real.tv_sec <= 1 && tv.tv_sec >= real.tv_sec, true);
	SAME(time(NULL) - real.tv_sec <= 1, true);
}

const struct maker signal_makers[] = {
    {"handlers", handlers_make, handlers_check}, {"pending", pending_make, pending_check},
    {"altstack", altstack_make, altstack_check}, {"timers", timers_make, timers_check},
    {"fires", fires_make, fires_check}, {"clock", clock_make, clock_check}, {NULL, NULL, NULL},
};
