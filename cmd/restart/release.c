/*
 * It runs. Until END the original may; from here on only this one does.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/capability.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "attr.h"
#include "fault.h"
#include "file_locks.h"
#include "io.h"
#include "log.h"
#include "restart.h"

/* --- END */

int
await_end(struct restart *r)
{
	int err = fault(FAULT_parked);

	if (err < 0)
		return err;
	if (r->source.is_channel) {
		char more;

		if (channel_read_data(&r->source.channel, &more, 1) != 0)
			return fail(EPROTO, "%s: something follows the image", r->source.name);
		err = channel_send(&r->source.channel, MSG_READY, NULL, 0);
		if (err < 0)
			return err;
		err = channel_expect(&r->source.channel, MSG_GO, NULL, 0, NULL);
		/* Given up over there: the original runs on, and this one must not. */
		return err == -EREMOTEIO ? err : err == 0;
	}
	if (!image_wants_end(r->reader) || r->opt.without_end)
		return 1;
	if (r->opt.hold_ms >= 0)
		r->source.deadline_ms = now_ms() + r->opt.hold_ms;
	err = image_await_end(r->reader);
	if (err == 0 && r->source.total > 0)
		return fail(EPROTO, "%s: was cut off before its END: PID %" PRId64 " on %s may still be "
		    "running; if it is not, restart --without-end %s", r->source.name,
		    r->model.header.host_pid, r->model.header.host, r->source.name);
	return err;
}

/* --- locks */

enum { LOCK_TRIES_MS = 2000 };

/*
 * The original, which held them, may take a moment to be dead. Where somebody else was
 * faster: a moved process goes on without (it cannot go back); a copy does not begin.
 */
static int
take_locks(struct built *b, bool moved)
{
	int64_t deadline = now_ms() + (moved ? LOCK_TRIES_MS : 0);
	bool missing = b->task->nlocks > 0;
	int err = 0;

	while (err == 0 && missing) {
		struct script s = {0};
		sigset_t none;
		struct timespec wait = {0, 1000000};

		for (size_t i = 0; i < b->task->nlocks; i++)
			file_lock_add(&s, &b->task->locks[i], true);
		err = loop_run(&b->loop, &b->threads[0], &s);
		missing = false;
		for (size_t i = 0; err == 0 && i < s.ncalls; i++)
			missing |= s.calls[i].result < 0;
		script_fini(&s);
		if (!missing || now_ms() >= deadline)
			break;
		sigemptyset(&none);
		sigtimedwait(&none, NULL, &wait);
	}
	if (err < 0 || !missing)
		return err;
	if (moved) {
		note("pid %d: a file that it has locked is locked by somebody else now", b->pid);
		return 0;
	}
	return fail(EBUSY, "pid %d: a file that it has locked is locked by somebody else (by the original?)",
	    b->pid);
}

/* --- signals that were on their way */

static void
add_pending(struct script *s, const struct built *b, const struct bytes *pending, int64_t tid)
{
	for (size_t i = 0; i < pending->n / SIGINFO_BYTES; i++) {
		const unsigned char *info = pending->p + i * SIGINFO_BYTES;
		uint64_t at = script_data(s, info, SIGINFO_BYTES);
		int32_t sig;

		memcpy(&sig, info, sizeof(sig));
		if (tid == 0) {
			script_add(s, "pending signal", SYS_rt_sigqueueinfo, (uint64_t)b->pid, (uint64_t)sig, at);
			script_data_arg(s, 2);
		} else {
			script_add(s, "pending signal", SYS_rt_tgsigqueueinfo, (uint64_t)b->pid, (uint64_t)tid,
			    (uint64_t)sig, at);
			script_data_arg(s, 3);
		}
		script_may_fail(s);
	}
}

/* --- timers */

static void
add_timers(struct script *s, const struct task *t)
{
	for (size_t i = 0; i < t->nitimers; i++) {
		const struct itimer *it = &t->itimers[i];
		struct itimerval v = {{it->interval_us / 1000000, it->interval_us % 1000000},
		    {it->value_us / 1000000, it->value_us % 1000000}};

		script_add(s, "interval timer", SYS_setitimer, (uint64_t)it->which,
		    script_data(s, &v, sizeof(v)), 0);
		script_data_arg(s, 1);
	}
	for (size_t i = 0; i < t->ntimers; i++) {
		const struct posix_timer *pt = &t->timers[i];
		struct itimerspec v = {{pt->interval_ns / 1000000000, pt->interval_ns % 1000000000},
		    {pt->value_ns / 1000000000, pt->value_ns % 1000000000}};

		if (pt->value_ns == 0)
			continue;
		script_add(s, "timer", SYS_timer_settime, (uint64_t)pt->id, 0, script_data(s, &v, sizeof(v)), 0);
		script_data_arg(s, 2);
	}
}

/* Open files that run by time: once each, under the first number of the first process that has it. */
static void
arm_files(struct script *s, const struct restart *r, const struct task *t)
{
	const struct objects *o = &r->model.objects;
	bool *done = calloc(o->nofds + 1, sizeof(*done));

	for (size_t i = 0; done != NULL && i < t->nfds; i++) {
		int64_t ofd = t->fds[i].ofd;
		const struct kind *kind = kinds[o->ofds[ofd].kind];

		if (kind->arm == NULL || done[ofd] || first_with(r, ofd) != t)
			continue;
		done[ofd] = true;
		kind->arm(s, &r->model, &o->ofds[ofd], (uint64_t)t->fds[i].fd);
	}
	free(done);
}

/* --- credentials */

static void
add_caps(struct script *s, const struct built *b, uint64_t have_prm, uint64_t have_bnd)
{
	const struct creds *c = &b->task->creds;
	struct __user_cap_header_struct h = {_LINUX_CAPABILITY_VERSION_3, 0};
	uint64_t prm = c->cap_prm & have_prm, eff = c->cap_eff & prm, inh = c->cap_inh & have_prm;
	struct __user_cap_data_struct d[2] = {{(uint32_t)eff, (uint32_t)prm, (uint32_t)inh},
	    {(uint32_t)(eff >> 32), (uint32_t)(prm >> 32), (uint32_t)(inh >> 32)}};

	for (unsigned cap = 0; cap < 64; cap++)
		if (have_bnd >> cap & 1 && !(c->cap_bnd >> cap & 1)) {
			script_add(s, "bounding set", SYS_prctl, PR_CAPBSET_DROP, cap);
			script_may_fail(s);
		}
	script_add(s, "ambient capabilities", SYS_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL);
	script_may_fail(s);
	script_add(s, "capabilities", SYS_capset, script_data(s, &h, sizeof(h)),
	    script_data(s, d, sizeof(d)));
	script_data_arg(s, 0);
	script_data_arg(s, 1);
	for (unsigned cap = 0; cap < 64; cap++)
		if (c->cap_amb >> cap & 1) {
			script_add(s, "ambient capabilities", SYS_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap);
			script_may_fail(s);
		}
}

static int
read_caps(const struct built *b, uint64_t *prm, uint64_t *bnd)
{
	const struct creds *c = &b->task->creds;
	struct proc_status st;
	int proc = proc_open(b->pid);
	int err = proc < 0 ? proc : proc_read_status(proc, &st);

	close_fd(&proc);
	if (err < 0)
		return fail(-err, "pid %d: status: %s", b->pid, strerror(-err));
	*prm = st.cap_prm;
	*bnd = st.cap_bnd;
	proc_status_fini(&st);
	if ((c->cap_prm & ~*prm) != 0)
		note("pid %d: it loses capabilities (%#" PRIx64 "), which restart does not have", b->pid,
		    c->cap_prm & ~*prm);
	return 0;
}

/* --- limits */

static void
set_limits(const struct built *b)
{
	const struct task *t = b->task;

	for (size_t i = 0; i < t->nrlimits && i < RLIM_NLIMITS; i++) {
		struct rlimit64 want = {t->rlimits[i].soft, t->rlimits[i].hard}, have;

		if (prlimit64(b->pid, (int)i, &want, NULL) == 0)
			continue;
		if (prlimit64(b->pid, (int)i, NULL, &have) < 0)
			continue;
		/* As near as may be: no higher than the hard limit that is here. */
		want.rlim_max = min_u64(want.rlim_max, have.rlim_max);
		want.rlim_cur = min_u64(want.rlim_cur, want.rlim_max);
		prlimit64(b->pid, (int)i, &want, NULL);
		note("pid %d: limit %zu is lower than it was: raising it takes CAP_SYS_RESOURCE", b->pid, i);
	}
}

/* --- the last steps */

/* A signal that is pending is taken away. */
static void
add_drain(struct script *s)
{
	static const struct timespec now;
	uint64_t all = ~0ULL, set = script_data(s, &all, sizeof(all)), at = script_data(s, &now, sizeof(now));

	script_add(s, "signals", SYS_rt_sigtimedwait, set, 0, at, 8);
	script_data_arg(s, 0);
	script_data_arg(s, 2);
	script_may_fail(s);
}

static int
last_script(const struct restart *r, const struct built *b, size_t i, uint64_t prm, uint64_t bnd, struct script *s)
{
	const struct task *t = b->task;

	/* What came meanwhile is of what it took to make it: children that were made as ones that have ended. */
	for (int k = 0; k < 8 && r->untraced != NULL; k++)
		add_drain(s);
	if (i == 0) {
		if (attr_set(s, t->prctls, t->nprctls) < 0)
			return fail(EBADMSG, "%s: bad image: an attribute that nothing has", r->source.name);
		add_pending(s, b, &t->pending, 0);
	}
	add_pending(s, b, &t->threads[i].pending, b->threads[i].tid);
	add_caps(s, b, prm, bnd);
	if (t->threads[i].no_new_privs)
		script_add(s, "no_new_privs", SYS_prctl, PR_SET_NO_NEW_PRIVS, 1);
	/* Last of all, so that none fires while anything is still to be done. */
	if (i == 0) {
		add_timers(s, t);
		arm_files(s, r, t);
	}
	return 0;
}

static int
last_scripts(struct restart *r, struct built *b)
{
	size_t n = b->nthreads;
	struct script *s = calloc(n, sizeof(*s));
	uint64_t prm = 0, bnd = 0;
	int err = s == NULL ? -ENOMEM : read_caps(b, &prm, &bnd);

	for (size_t i = 0; i < n && err == 0; i++)
		err = last_script(r, b, i, prm, bnd, &s[i]);
	if (err == 0)
		err = loop_run_all(&b->loop, b->threads, s, n);
	for (size_t i = 0; i < n && s != NULL; i++)
		script_fini(&s[i]);
	free(s);
	return err;
}

static int
set_final(struct built *b)
{
	struct arch_call unmap = {SYS_munmap, {b->loop.at, LOOP_BYTES}};
	struct tracee *leader = &b->threads[0];
	int64_t result;
	int err = tracee_call_at(leader, &leader->regs, b->syscall_ip, &unmap, &result);

	if (err == 0 && result < 0)
		err = fail((int)-result, "pid %d: script loop: %s", b->pid, strerror((int)-result));
	for (size_t i = 0; i < b->nthreads && err == 0; i++) {
		const struct thread *th = &b->task->threads[i];
		struct arch_regs regs = th->regs;

		regs.orig_rax = UINT64_MAX; /* no call is under way: nothing to restart */
		err = tracee_set_regs(b->threads[i].tid, &regs);
		if (err == 0)
			err = tracee_set_sigmask(b->threads[i].tid, th->sigmask);
	}
	return err;
}

/* Stopped by the same signal, if that stops it still. */
static int
stop_signal(const struct task *t)
{
	if (t->threads[0].sigmask >> (t->stop_signal - 1) & 1)
		return SIGSTOP;
	for (size_t i = 0; i < t->nactions; i++)
		if (t->actions[i].sig == t->stop_signal && t->actions[i].handler != 0)
			return SIGSTOP;
	return (int)t->stop_signal;
}

static int
complete(struct restart *r, struct built *b)
{
	int err = take_locks(b, load_is_move(r));

	if (err == 0)
		err = seccomp_install(r, b);
	if (err == 0)
		err = last_scripts(r, b);
	if (err == 0 && is_away(r))
		err = away_filter_install(b);
	return err < 0 ? err : r->untraced != NULL ? coop_set_final(r, b) : set_final(b);
}

int
release_arm(struct restart *r)
{
	size_t n = r->model.header.ntasks;
	int err = files_late(r);

	for (size_t i = 0; i < n && err == 0; i++)
		if (!r->model.tasks[i].zombie)
			err = complete(r, &r->built[i]);
	if (err == 0)
		err = files_go_on(r);
	if (err < 0)
		return err;
	for (size_t i = 0; i < n; i++) {
		const struct task *t = &r->model.tasks[i];

		if (t->zombie)
			continue;
		set_limits(&r->built[i]);
		if (t->stop_signal != 0)
			kill(r->built[i].pid, stop_signal(t));
	}
	return 0;
}

int
release(struct restart *r)
{
	size_t n = r->model.header.ntasks;
	int err = release_arm(r);

	if (err < 0)
		return err;
	lazy_lets_run(r);
	if (r->untraced != NULL) {
		untraced_go(r->untraced);
		fault(FAULT_released); /* nothing can fail any more */
		return 0;
	}
	/* From here on the end of restart is not the end of the program. */
	for (size_t i = 0; i < n; i++)
		for (size_t k = 0; k < r->built[i].nthreads; k++)
			ptrace(PTRACE_SETOPTIONS, r->built[i].threads[k].tid, NULL, 0L);
	fault(FAULT_released);
	for (size_t i = 0; i < n; i++)
		for (size_t k = 0; k < r->built[i].nthreads; k++)
			ptrace(PTRACE_DETACH, r->built[i].threads[k].tid, NULL, NULL);
	return 0;
}
