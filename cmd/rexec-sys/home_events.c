/*
 * Stops and signals of threads that execute calls.
 */
#include <signal.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "home.h"
#include "io.h"
#include "log.h"
#include "proc.h"

/* --- signals */

static bool
is_continued(const struct home_process *p)
{
	struct proc_status st = {0};
	bool pending = proc_read_status(p->proc, &st) == 0 && ((st.sigpnd | st.shdpnd) >> (SIGCONT - 1) & 1) != 0;

	proc_status_fini(&st);
	return pending;
}

void
home_put_signal(struct home *h, uint32_t number, uint32_t how, const siginfo_t *info)
{
	struct buf b = {0};

	buf_put_u32(&b, number);
	buf_put_u32(&b, how);
	buf_put(&b, info, sizeof(siginfo_t));
	if (!b.failed)
		link_send(&h->link, MSG_SIGNAL, 0, b.data, b.len); /* that it has gone shows in what comes */
	buf_fini(&b);
}

/* By us, or at the end of a group-stop: it stands in its call, or before it, or behind. */
static void
interrupted(struct home *h, struct home_thread *t)
{
	struct arch_regs regs;
	enum arch_restart kind;
	bool known;

	log_hush(1);
	known = tracee_get_regs(t->tid, &regs) == 0;
	log_hush(-1);
	/* Its call is done, and the trap that says so is still to come: it must not come in another. */
	if (known && regs.rip == t->process->code + ARCH_EXECUTOR_DONE) {
		home_go(t, PTRACE_CONT, 0);
		return;
	}
	if (t->state == HOME_RESTING && (t->wanted || t->waiting || t->gone || t->process->exit_status >= 0)) {
		t->state = HOME_READY;
		t->ready_ms = now_ms();
		if (!t->wanted)
			home_next(h, t);
		return;
	}
	if (t->state == HOME_BUSY && known) {
		bool cancel = t->cancel;

		t->cancel = false;
		if (cancel && regs.rip == t->process->code) {
			home_call_done(h, t, ARCH_NOT_BEGUN);
			return;
		}
		kind = arch_restart_kind(&regs, syscall_eintr_restarts);
		log_hush(1);
		if (cancel && kind != RESTART_NONE)
			arch_set_eintr(&regs), tracee_set_regs(t->tid, &regs);
		else if (kind == RESTART_EINTR)
			arch_rewind(&regs), tracee_set_regs(t->tid, &regs);
		log_hush(-1);
	}
	home_go(t, PTRACE_CONT, 0);
}

/* What means nothing to the copy: what its image has; timers, which have gone with it; that a pipe has no reader, which it sees by its call; our own. */
static bool
is_ours(struct home_process *p, const siginfo_t *info)
{
	int sig = info->si_signo;

	if (p->known[sig] > 0) {
		p->known[sig]--;
		return true;
	}
	if (info->si_code == SI_TIMER || ((sig == SIGALRM || sig == SIGVTALRM || sig == SIGPROF) && info->si_code == SI_KERNEL))
		return true;
	if (sig == SIGPIPE && info->si_code <= 0 && (info->si_pid == p->pid || info->si_pid == p->inner))
		return true;
	return info->si_code == SI_USER && info->si_pid == getpid();
}

static void
signal_stop(struct home *h, struct home_thread *t, int sig)
{
	siginfo_t info = {0};
	struct home_process *p = t->process;
	struct arch_regs regs;

	if (ptrace(PTRACE_GETSIGINFO, t->tid, NULL, &info) < 0)
		return;
	if (sig == SIGCONT)
		p->stopped = false;
	if (sig == HOME_VEHICLE && info.si_code == SI_QUEUE && info.si_value.sival_ptr == p) {
		int stop = p->stop;

		p->stop = 0;
		if (stop != 0 && !is_continued(p)) {
			p->resume = false;
			home_go(t, PTRACE_CONT, stop);
		} else {
			interrupted(h, t);
		}
		return;
	}
	if (p->bring == sig && info.si_code == SI_USER && (info.si_pid == getpid() || info.si_pid == 0)) {
		p->bring = 0;
		home_go(t, PTRACE_CONT, sig);
		return;
	}
	/* By what it executes itself: that is ours, and of no use any more. */
	if ((sig == SIGSEGV || sig == SIGBUS || sig == SIGILL || sig == SIGFPE) && info.si_code > 0) {
		kill(p->pid, SIGKILL);
		return;
	}
	if (is_ours(p, &info) || (sig == SIGTRAP && info.si_code > 0)) {
		interrupted(h, t); /* as if it had not come */
		return;
	}
	home_put_signal(h, t->number, info.si_code == SI_TKILL, &info);
	/* Whether its call begins again, or has been interrupted, the copy's kernel decides: it knows the handler. */
	log_hush(1);
	if ((t->state == HOME_BUSY || t->state == HOME_RESTING) && tracee_get_regs(t->tid, &regs) == 0 &&
	    arch_restart_kind(&regs, syscall_eintr_restarts) != RESTART_NONE) {
		arch_set_eintr(&regs);
		tracee_set_regs(t->tid, &regs);
	}
	log_hush(-1);
	home_go(t, PTRACE_CONT, 0);
}

/* --- stops */

static void
group_stopped(struct home *h, struct home_thread *t)
{
	if (t->process->tell_stop)
		home_put_signal(h, t->number, 2, &(siginfo_t){.si_signo = SIGSTOP});
	t->process->tell_stop = false;
	if (t->process->resume) {
		interrupted(h, t);
		return;
	}
	t->process->stopped = true;
	/* A call of ours ends first; and a copy that forks is not stopped yet. */
	if (t->state == HOME_OWN) {
		home_go(t, PTRACE_CONT, 0);
		return;
	}
	if (t->forced) {
		t->state = HOME_READY;
		return;
	}
	t->grouped = true;
	if (t->state == HOME_READY)
		t->state = HOME_RESTING; /* it was on its way there */
	home_go(t, PTRACE_LISTEN, 0);
}

static bool
is_done(struct home_thread *t, struct arch_regs *regs)
{
	siginfo_t info;

	return t->taken && tracee_get_regs(t->tid, regs) == 0 && regs->rip == t->process->code + ARCH_EXECUTOR_DONE &&
	    ptrace(PTRACE_GETSIGINFO, t->tid, NULL, &info) == 0 && info.si_code > 0;
}

void
home_event(struct home *h, struct home_thread *t, int status)
{
	int sig = WSTOPSIG(status);
	struct arch_regs regs;
	unsigned long born = 0;
	bool done;

	if (!WIFSTOPPED(status)) {
		home_thread_over(h, t, status);
		return;
	}
	switch (status >> 16) {
	case PTRACE_EVENT_FORK:
	case PTRACE_EVENT_CLONE:
		ptrace(PTRACE_GETEVENTMSG, t->tid, NULL, &born);
		t->born = (pid_t)born;
		home_go(t, PTRACE_CONT, 0);
		return;
	case PTRACE_EVENT_STOP:
		if (sig != SIGTRAP) {
			group_stopped(h, t);
			return;
		}
		if (t->grouped)
			t->grouped = t->process->stopped = false;
		if (t->forced && t->state == HOME_RESTING)
			t->state = HOME_READY;
		else
			interrupted(h, t);
		return;
	case 0:
		log_hush(1);
		done = sig == SIGTRAP && is_done(t, &regs);
		log_hush(-1);
		if (done)
			home_call_done(h, t, (int64_t)arch_result(&regs));
		else
			signal_stop(h, t, sig);
		return;
	default:
		home_go(t, PTRACE_CONT, 0);
	}
}

void
home_events(struct home *h)
{
	int status;
	pid_t tid;

	h->missed = false;
	while ((tid = waitpid(-1, &status, __WALL | WNOHANG)) > 0) {
		struct home_thread *t = home_find_tid(h, tid);

		if (t != NULL)
			home_event(h, t, status);
		else if (WIFSTOPPED(status))
			kill(tid, SIGKILL); /* whoever was to make it has been killed in the middle */
	}
}
