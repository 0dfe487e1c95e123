/*
 * Signals that are pending, of the process and of each thread, with all that was sent with them.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <unistd.h>

#include "ckpt.h"
#include "coop_abi.h"
#include "io.h"
#include "kfeat.h"
#include "log.h"

enum { PEEK_MS = 2000 };

static int
add_siginfos(struct bytes *out, const unsigned char *info, size_t n)
{
	unsigned char *p = realloc(out->p, out->n + n * SIGINFO_BYTES);

	if (p == NULL)
		return -ENOMEM;
	memcpy(p + out->n, info, n * SIGINFO_BYTES);
	out->p = p;
	out->n += n * SIGINFO_BYTES;
	return 0;
}

static bool
is_request(const unsigned char *info)
{
	siginfo_t si;

	memcpy(&si, info, sizeof(si));
	return si.si_signo == COOP_SIGNAL && si.si_code == SI_QUEUE && (uintptr_t)si.si_value.sival_ptr & COOP_ASKING;
}

/*
 * One that is asked takes them from the kernel, until it goes on. What is in the set of a thread comes before what is in that of the process, so it is
 * looked before each which of the thread's there are. Another request like ours is not the program's. seen: those that are in the kernel are known.
 */
static int
take_pending(const struct tracee *th, bool shared, bool seen, struct bytes *out)
{
	unsigned char info[SIGINFO_BYTES];
	int proc = proc_open(th->pid), sig = 1, err = proc < 0 ? proc : 0;
	pid_t whose = 0;

	for (size_t i = 0; err == 0 && (sig = coop_held_signal(th->coop, i, &whose, info)) != 0; i++)
		err = sig < 0 ? sig : whose == (shared ? 0 : th->inner_tid) ? add_siginfos(out, info, 1) : 0;
	sig = !seen;
	while (err == 0 && sig > 0) {
		struct proc_status st;
		uint64_t set;

		err = proc_read_thread_status(proc, th->tid, &st);
		if (err < 0)
			break;
		set = shared ? st.shdpnd & ~st.sigpnd : st.sigpnd;
		proc_status_fini(&st);
		sig = set == 0 ? 0 : coop_take_signal(th->coop, th->coop_index, set, !shared, info);
		if (sig < 0)
			err = sig;
		else if (sig > 0 && !is_request(info))
			err = add_siginfos(out, info, 1);
	}
	close_fd(&proc);
	return err < 0 ? fail(-err, "pid %d: pending signals: %s", th->tid, strerror(-err)) : 0;
}

/* Of a thread that is stopped, as the kernel keeps them. */
static int
peek_pending(const struct tracee *th, bool shared, struct bytes *out)
{
	struct __ptrace_peeksiginfo_args args = {0};
	unsigned char info[32][SIGINFO_BYTES];
	long n;

	args.flags = shared ? PTRACE_PEEKSIGINFO_SHARED : 0;
	args.nr = ARRAY_LEN(info);
	while ((n = ptrace(PTRACE_PEEKSIGINFO, th->tid, &args, info)) > 0) {
		for (long i = 0; i < n; i++)
			if ((th->coop == NULL || !is_request(info[i])) && add_siginfos(out, info[i], 1) < 0)
				return -ENOMEM;
		args.off += (uint64_t)n;
	}
	return n < 0 ? fail_errno("pid %d: pending signals", th->tid) : 0;
}

/* One that stands can be stopped for that where it may be traced: then nothing has to be taken. Returns 1, 0 where it may not, or a negative errno, logged. */
static int
peek_standing(const struct tracee *th, bool shared, struct bytes *out)
{
	struct tracee t = {0};
	int err = kfeat(KFEAT_ptrace) ? tracee_seize(&t, th->pid, th->tid, 0) : -EPERM;

	if (err < 0)
		return err == -EPERM ? 0 : fail(-err, "pid %d: pending signals: %s", th->tid, strerror(-err));
	err = tracee_wait_interrupt(&t, now_ms() + PEEK_MS);
	t.coop = th->coop;
	if (err == 0)
		err = peek_pending(&t, shared, out);
	t.coop = NULL;
	tracee_detach(&t);
	return err < 0 ? err : 1;
}

/* Signals queued for a thread, or (shared) for the process. */
static int
collect_pending(const struct tracee *th, bool shared, struct bytes *out)
{
	struct proc_status st;
	int proc, err;
	bool any;

	if (th->coop == NULL)
		return peek_pending(th, shared, out);
	proc = proc_open(th->pid);
	err = proc < 0 ? proc : proc_read_thread_status(proc, th->tid, &st);
	close_fd(&proc);
	if (err < 0)
		return fail(-err, "pid %d: pending signals: %s", th->tid, strerror(-err));
	any = (shared ? st.shdpnd : st.sigpnd) != 0;
	proc_status_fini(&st);
	err = any ? peek_standing(th, shared, out) : 0;
	return err < 0 ? err : take_pending(th, shared, err > 0, out);
}

/* What nobody can have pending for long: it is a process that is stopped, or about to end, which an image does not tell. */
static void
take_stop(struct task *t, struct bytes *pending)
{
	size_t kept = 0;

	for (size_t i = 0; i < pending->n; i += SIGINFO_BYTES) {
		int32_t sig;

		memcpy(&sig, pending->p + i, sizeof(sig));
		if (sig == SIGSTOP && t->stop_signal == 0)
			t->stop_signal = SIGSTOP;
		if (sig == SIGSTOP || sig == SIGKILL)
			continue;
		memmove(pending->p + kept, pending->p + i, SIGINFO_BYTES);
		kept += SIGINFO_BYTES;
	}
	pending->n = kept;
}

int
collect_signals(struct member *who)
{
	struct task *t = who->task;
	int err = 0;

	for (size_t i = 0; i < who->target.nthreads && err == 0; i++) {
		err = collect_pending(&who->target.threads[i], false, &t->threads[i].pending);
		take_stop(t, &t->threads[i].pending);
	}
	if (err == 0)
		err = collect_pending(&who->target.threads[0], true, &t->pending);
	take_stop(t, &t->pending);
	return err;
}
