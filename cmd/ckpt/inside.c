/*
 * What only the process itself can tell: a few borrowed system calls in each thread.
 */
#include <errno.h>
#include <linux/membarrier.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>

#include "attr.h"
#include "ckpt.h"
#include "fault.h"
#include "io.h"
#include "kernel_abi.h"
#include "kfeat.h"
#include "log.h"

static int
check(const struct tracee *th, const struct script *s)
{
	const struct script_call *bad = script_first_error(s);

	if (bad != NULL)
		return fail(EIO, "pid %d: %s in it: %s", th->tid, syscall_name(bad->call.nr),
		    strerror((int)-bad->result));
	return 0;
}

/* In its page, if it has one. */
static int
run(struct tracee *th, struct script *s)
{
	bool answered = false;
	int err = th->page != 0 ? tracee_ask(th, s) : 0;

	if (err == 0 && th->page != 0)
		err = tracee_answer(th, s, &answered);
	if (err == 0 && !answered)
		err = tracee_run_script(th, s);
	return err < 0 ? err : check(th, s);
}

/* --- each thread: alternate stack, tid address */

struct thread_questions {
	struct script script;
	uint64_t altstack, address; /* where in its data */
	size_t attrs;               /* the first call for them */
};

static void
ask_of_thread(struct thread_questions *q)
{
	struct script *s = &q->script;

	*q = (struct thread_questions){0};
	q->altstack = script_data(s, NULL, sizeof(stack_t));
	q->address = script_data(s, NULL, 8);
	script_add(s, "alternate stack", SYS_sigaltstack, 0, q->altstack);
	script_data_arg(s, 1);
	script_add(s, "tid address", SYS_prctl, PR_GET_TID_ADDRESS, q->address);
	script_data_arg(s, 1);
	script_may_fail(s); /* a kernel without CONFIG_CHECKPOINT_RESTORE */
	q->attrs = s->ncalls;
	attr_ask(s, ATTR_THREAD);
}

static int
thread_answers(const struct thread_questions *q, struct thread *out)
{
	const struct script *s = &q->script;
	stack_t ss;

	memcpy(&ss, s->data.data + q->altstack, sizeof(ss));
	out->altstack_sp = (taddr)(uintptr_t)ss.ss_sp;
	/* SS_ONSTACK follows from the stack pointer and cannot be set. */
	out->altstack_flags = (uint32_t)ss.ss_flags & ~(uint32_t)SS_ONSTACK;
	out->altstack_size = ss.ss_size;
	memcpy(&out->tid_address, s->data.data + q->address, 8);
	return attr_answers(s, q->attrs, ATTR_THREAD, &out->prctls, &out->nprctls);
}

static int
ask_thread(struct tracee *th, struct thread *out)
{
	struct thread_questions q;
	int err;

	ask_of_thread(&q);
	err = run(th, &q.script);
	if (err == 0)
		err = thread_answers(&q, out);
	script_fini(&q.script);
	return err;
}

/* --- signal handlers */

enum { SIGNALS = 64, AT_ONCE = 10 };

static int
add_action(struct task *t, int sig, const struct kernel_sigaction *ka)
{
	struct sig_action *a;

	if (ka->handler == 0 && ka->flags == 0 && ka->mask == 0)
		return 0;
	a = ARRAY_ADD(t->actions, t->nactions);
	if (a == NULL)
		return -ENOMEM;
	*a = (struct sig_action){sig, ka->handler, ka->restorer, ka->flags, ka->mask};
	return 0;
}

static int
ask_some_actions(struct tracee *th, struct task *t, const int *sigs, size_t n)
{
	struct script s = {0};
	int err;

	for (size_t i = 0; i < n; i++) {
		script_add(&s, "signal handlers", SYS_rt_sigaction, (uint64_t)sigs[i], 0,
		    script_data(&s, NULL, sizeof(struct kernel_sigaction)), 8);
		script_data_arg(&s, 2);
	}
	err = run(th, &s);
	for (size_t i = 0; err == 0 && i < n; i++) {
		struct kernel_sigaction ka;

		memcpy(&ka, s.data.data + s.calls[i].call.arg[2], sizeof(ka));
		err = add_action(t, sigs[i], &ka);
	}
	script_fini(&s);
	return err;
}

/* /proc says which signals are caught or ignored; SIGCHLD may have flags without either. */
static int
ask_actions(struct tracee *th, const struct proc_status *st, struct task *t)
{
	uint64_t interesting = st->sigign | st->sigcgt | 1ULL << (SIGCHLD - 1);
	int sigs[AT_ONCE], err = 0;
	size_t n = 0;

	for (int sig = 1; sig <= SIGNALS && err == 0; sig++) {
		if (interesting >> (sig - 1) & 1 && sig != SIGKILL && sig != SIGSTOP)
			sigs[n++] = sig;
		if (n == AT_ONCE || (sig == SIGNALS && n > 0)) {
			err = ask_some_actions(th, t, sigs, n);
			n = 0;
		}
	}
	return err;
}

/* --- timers */

static int
ask_itimers(struct tracee *th, struct task *t, int64_t elapsed_ns)
{
	struct script s = {0};
	uint64_t at[3];
	int err;

	for (int which = ITIMER_REAL; which <= ITIMER_PROF; which++) {
		at[which] = script_data(&s, NULL, sizeof(struct itimerval));
		script_add(&s, "interval timers", SYS_getitimer, (uint64_t)which, at[which]);
		script_data_arg(&s, 1);
	}
	err = run(th, &s);
	for (int which = ITIMER_REAL; err == 0 && which <= ITIMER_PROF; which++) {
		struct itimerval v;
		struct itimer *it;
		int64_t rest;

		memcpy(&v, s.data.data + at[which], sizeof(v));
		if (!timerisset(&v.it_value))
			continue;
		rest = v.it_value.tv_sec * 1000000LL + v.it_value.tv_usec + (which == ITIMER_REAL ? elapsed_ns / 1000 : 0);
		it = ARRAY_ADD(t->itimers, t->nitimers);
		if (it == NULL)
			err = -ENOMEM;
		else
			*it = (struct itimer){which, rest,
			    v.it_interval.tv_sec * 1000000LL + v.it_interval.tv_usec};
	}
	script_fini(&s);
	return err;
}

static int64_t
inner_tid(const struct member *who, int64_t tid)
{
	for (size_t i = 0; i < who->target.nthreads; i++)
		if (who->target.threads[i].tid == tid)
			return who->task->threads[i].tid;
	return tid;
}

static int
ask_posix_timer(struct member *who, struct tracee *th, const struct proc_timer *pt, int64_t elapsed_ns)
{
	struct task *t = who->task;
	struct script s = {0};
	uint64_t at = script_data(&s, NULL, sizeof(struct itimerspec));
	struct posix_timer *out;
	struct itimerspec v;
	int64_t rest;
	int err;

	script_add(&s, "timer", SYS_timer_gettime, (uint64_t)pt->id, at);
	script_data_arg(&s, 1);
	script_add(&s, "timer overrun", SYS_timer_getoverrun, (uint64_t)pt->id);
	err = run(th, &s);
	if (err == 0) {
		memcpy(&v, s.data.data + at, sizeof(v));
		rest = v.it_value.tv_sec * 1000000000LL + v.it_value.tv_nsec;
		/* Those of CPU time have stood still. */
		if (rest > 0 && pt->clock >= 0 && pt->clock != CLOCK_PROCESS_CPUTIME_ID &&
		    pt->clock != CLOCK_THREAD_CPUTIME_ID)
			rest += elapsed_ns;
		out = ARRAY_ADD(t->timers, t->ntimers);
		if (out == NULL)
			err = -ENOMEM;
		else
			*out = (struct posix_timer){pt->id, pt->clock, pt->notify, pt->sig,
			    inner_tid(who, pt->tid), pt->sigval,
			    rest,
			    v.it_interval.tv_sec * 1000000000LL + v.it_interval.tv_nsec,
			    s.calls[1].result};
	}
	script_fini(&s);
	return err;
}

static int
by_id(const void *a, const void *b)
{
	const struct proc_timer *x = a, *y = b;

	return x->id < y->id ? -1 : x->id > y->id;
}

static int
ask_posix_timers(struct member *who, struct tracee *th, int64_t elapsed_ns)
{
	struct proc_timer *timers = NULL;
	size_t n = 0;
	char *text;
	int err = (int)read_file(who->target.proc, "timers", &text);

	if (err < 0)
		return err == -ENOENT ? 0 : fail(-err, "pid %d: timers: %s", th->tid, strerror(-err));
	err = proc_timers_parse(&timers, &n, text);
	free(text);
	if (err < 0)
		err = fail(-err, "pid %d: /proc/%d/timers is not understood", th->tid, th->pid);
	if (n > 0)
		qsort(timers, n, sizeof(*timers), by_id);
	for (size_t i = 0; err == 0 && i < n; i++)
		err = ask_posix_timer(who, th, &timers[i], elapsed_ns);
	free(timers);
	return err;
}

/* --- the process: brk, attributes, membarrier */

/* From 6.3 the kernel says what is registered; before, a command fails that is not. */
static uint64_t
membarrier_answer(const struct script *s, size_t first)
{
	static const struct {
		int command, registers;
	} probes[] = {
	    {MEMBARRIER_CMD_PRIVATE_EXPEDITED, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED},
	    {MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE,
		MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE},
	    {MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_RSEQ},
	};
	uint64_t mask = 0;

	if (s->calls[first].result >= 0 && kfeat(KFEAT_membarrier_get))
		return (uint64_t)s->calls[first].result;
	for (size_t i = 0; i < ARRAY_LEN(probes); i++)
		if (s->calls[first + 1 + i].result == 0)
			mask |= (uint64_t)probes[i].registers;
	return mask;
}

#define MEMBARRIER_CMD_GET_REGISTRATIONS_ (1 << 9)

static int
ask_process(struct tracee *th, struct task *t)
{
	struct script s = {0};
	size_t brk, membarrier, attrs;
	int err;

	brk = script_add(&s, "brk", SYS_brk, 0);
	membarrier = script_add(&s, "membarrier", SYS_membarrier, MEMBARRIER_CMD_GET_REGISTRATIONS_);
	script_may_fail(&s);
	script_add(&s, "membarrier", SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED);
	script_may_fail(&s);
	script_add(&s, "membarrier", SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE);
	script_may_fail(&s);
	script_add(&s, "membarrier", SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ);
	script_may_fail(&s);
	attrs = s.ncalls;
	attr_ask(&s, ATTR_PROCESS);
	err = run(th, &s);
	if (err == 0) {
		t->mm.brk = (taddr)s.calls[brk].result;
		t->membarrier = membarrier_answer(&s, membarrier);
		err = attr_answers(&s, attrs, ATTR_PROCESS, &t->prctls, &t->nprctls);
	}
	script_fini(&s);
	return err;
}

/* --- children that have ended */

/* As waitpid(2) puts it. */
static int64_t
wait_status(const siginfo_t *si)
{
	if (si->si_code == CLD_EXITED)
		return (int64_t)(si->si_status & 0xff) << 8;
	return si->si_status | (si->si_code == CLD_DUMPED ? 0x80 : 0);
}

/* Its parent may ask without taking it away; /proc tells only some. */
static int
ask_zombie(struct tracee *th, struct task *child, pid_t pid)
{
	struct script s = {0};
	siginfo_t si;
	uint64_t at = script_data(&s, NULL, sizeof(si));
	int err;

	script_add(&s, "how a child ended", SYS_waitid, P_PID, (uint64_t)child->pid, at,
	    WEXITED | WNOWAIT | WNOHANG | __WALL, 0);
	script_data_arg(&s, 2);
	err = run(th, &s);
	memcpy(&si, s.data.data + at, sizeof(si));
	if (err == 0 && si.si_pid != child->pid)
		err = fail(ECHILD, "pid %d: its parent does not know how it ended", pid);
	if (err == 0)
		child->status = wait_status(&si) & ~0x80LL; /* a core file will not be dumped again */
	script_fini(&s);
	return err;
}

static int
ask_zombies(const struct ckpt *c, const struct member *who, struct tracee *th)
{
	int err = 0;

	for (size_t i = 0; i < c->nmembers && err == 0; i++)
		if (c->members[i]->zombie && c->members[i]->parent == who)
			err = ask_zombie(th, c->members[i]->task, c->members[i]->target.pid);
	return err;
}

/* --- segments of System V, in the IPC namespace that it is in */

static int
ask_segment(struct tracee *th, struct shm_ref *shm)
{
	struct script s = {0};
	struct shmid_ds ds;
	uint64_t at = script_data(&s, NULL, sizeof(ds));
	int err;

	script_add(&s, "System V segment", SYS_shmctl, (uint64_t)shm->id, IPC_STAT, at);
	script_data_arg(&s, 2);
	err = run(th, &s);
	memcpy(&ds, s.data.data + at, sizeof(ds));
	script_fini(&s);
	if (err < 0)
		return err;
	if (round_up(ds.shm_segsz, shm->huge != 0 ? shm->huge : PAGE_BYTES) != shm->size)
		return fail(ENOTSUP, "pid %d: it has a part of System V segment %" PRId64 " attached", th->pid, shm->id);
	shm->size = ds.shm_segsz;
	shm->key = ds.shm_perm.__key;
	shm->mode = ds.shm_perm.mode & 0777;
	shm->uid = ds.shm_perm.uid;
	shm->gid = ds.shm_perm.gid;
	shm->removed = (ds.shm_perm.mode & SHM_DEST) != 0;
	return 0;
}

static int
ask_segments(struct ckpt *c, const struct member *who, struct tracee *th)
{
	int err = 0;

	for (size_t i = 0; i < who->task->nvmas && err == 0; i++) {
		const struct vma *v = &who->task->vmas[i];
		struct shm_ref *shm = v->kind == VMA_SHM ? &c->model.objects.shms[v->ref] : NULL;

		if (shm != NULL && shm->sysv && shm->mode < 0)
			err = ask_segment(th, shm);
	}
	return err;
}

/* --- the other threads, at once where that can be */

enum { AT_ONCE_MAX = 256 };

/* One that the program has not asked for, and that is ignored then: 0 if there is none. */
static int
unnoticed_signal(const struct proc_status *st)
{
	static const int ignored[] = {SIGURG, SIGWINCH, SIGCHLD};

	for (size_t i = 0; i < ARRAY_LEN(ignored); i++)
		if (!((st->sigcgt | st->sigign) >> (ignored[i] - 1) & 1))
			return ignored[i];
	return 0;
}

/* Their pages are there, and the first thread has done its part: whatever happens, each takes its own back. */
static int
ask_in_pages(struct member *who, size_t first, size_t n, bool *answered)
{
	struct tracee *th = &who->target.threads[first];
	struct thread_questions q;
	size_t asked = 0;
	int err = tracee_rest(&who->target.threads[0]);

	ask_of_thread(&q);
	while (asked < n && err == 0) {
		err = tracee_ask(&th[asked], &q.script);
		asked += err == 0;
	}
	for (size_t i = 0; i < asked; i++) {
		int e = tracee_answer(&th[i], &q.script, &answered[i]);

		if (e == 0 && err == 0 && answered[i])
			e = check(&th[i], &q.script);
		if (e == 0 && err == 0 && answered[i])
			e = thread_answers(&q, &who->task->threads[first + i]);
		err = err < 0 ? err : e;
	}
	script_fini(&q.script);
	return err == 0 ? fault(FAULT_answered) : err;
}

/* Where there is no room for pages it goes without. */
static bool
lend(struct member *who, size_t n)
{
	int err;

	log_hush(1);
	err = lend_pages(who, n, arch_ask, (size_t)(arch_ask_end - arch_ask));
	log_hush(-1);
	return err == 0;
}

static int
ask_together(struct member *who, size_t first, size_t n, int sig, bool *answered)
{
	struct tracee *th = &who->target.threads[first];
	taddr at = free_pages(who, n);
	bool framed = who->target.threads[0].frame_at != 0;
	int err = 0;

	for (size_t i = 0; i < n && err == 0; i++) {
		th[i].page = at + i * PAGE_BYTES;
		th[i].sig = sig;
		err = target_borrow(&who->target, &th[i]);
		framed &= th[i].frame_at != 0;
	}
	if (err == 0 && framed && lend(who, n)) {
		err = ask_in_pages(who, first, n, answered);
		take_page_back(who);
	}
	for (size_t i = 0; i < n; i++)
		th[i].page = 0;
	return err;
}

/* The rest of some, and back. */
static int
ask_some(struct member *who, size_t first, size_t n, int sig)
{
	bool answered[AT_ONCE_MAX] = {false};
	int err = sig != 0 && n > 1 ? ask_together(who, first, n, sig, answered) : 0;

	for (size_t i = 0; i < n && err == 0; i++) {
		struct tracee *th = &who->target.threads[first + i];

		if (!th->borrowed)
			err = target_borrow(&who->target, th);
		if (err == 0 && !answered[i])
			err = ask_thread(th, &who->task->threads[first + i]);
		if (err == 0)
			err = tracee_give_back(th);
	}
	return err;
}

static int
ask_others(struct member *who, int sig)
{
	const struct target *t = &who->target;
	int err = 0;

	for (size_t i = 1; i < t->nthreads && err == 0; i += AT_ONCE_MAX)
		err = ask_some(who, i, min_u64(AT_ONCE_MAX, t->nthreads - i), sig);
	return err;
}

static int
ask_first(struct ckpt *c, struct member *who, struct tracee *th)
{
	struct task *t = who->task;
	int err = ask_thread(th, &t->threads[0]);

	if (err == 0)
		err = ask_actions(th, &who->target.status, t);
	if (err == 0)
		err = ask_itimers(th, t, collect_elapsed_ns(c));
	if (err == 0)
		err = ask_posix_timers(who, th, collect_elapsed_ns(c));
	if (err == 0)
		err = ask_process(th, t);
	if (err == 0)
		err = ask_zombies(c, who, th);
	if (err == 0)
		err = ask_segments(c, who, th);
	return err;
}

/* In a page of its own, where there is a signal to stop by. */
static int
ask_first_in_page(struct ckpt *c, struct member *who, int sig)
{
	struct tracee *first = &who->target.threads[0];
	bool lent = sig != 0 && first->frame_at != 0 && lend(who, 1);
	int err = 0;

	if (lent) {
		first->page = who->page.at;
		first->sig = sig;
		err = tracee_rest(first);
	}
	if (err == 0)
		err = ask_first(c, who, first);
	if (lent)
		take_page_back(who);
	first->page = 0;
	return err;
}

int
collect_inside(struct ckpt *c, struct member *who)
{
	const struct target *t = &who->target;
	/* A call that a filter does not let through would not stop the thread. */
	int sig = t->coop != NULL || t->restorer == 0 || who->filtered ? 0 : unnoticed_signal(&t->status);
	int err = target_borrow(t, &who->target.threads[0]);

	if (err == 0)
		err = ask_first_in_page(c, who, sig);
	if (err == 0)
		err = ask_others(who, sig);
	/* At once: the less is borrowed, the less there is to lose. */
	return err < 0 ? err : tracee_give_back(&who->target.threads[0]);
}
