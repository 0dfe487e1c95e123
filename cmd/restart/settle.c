/*
 * Threads and everything that belongs to them or to the process but memory and files. When
 * this is done the process is complete and parked; only time and signals are kept from it.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/capability.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "attr.h"
#include "io.h"
#include "kernel_abi.h"
#include "kfeat.h"
#include "log.h"
#include "restart.h"

/* --- threads */

static struct clone_args
thread_args(const struct built *b)
{
	return (struct clone_args){
	    .flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM,
	    .stack = b->loop.at + PAGE_BYTES, .stack_size = PAGE_BYTES};
}

/* It is there: traced, it is stopped at its beginning, and will run nothing but scripts and itself. */
static int
made(struct built *b, const struct thread *th, int64_t result)
{
	if (result == -EEXIST)
		return fail(EBUSY, "thread ID %" PRId64 " is taken here", th->tid);
	if (result < 0)
		return fail((int)-result, "thread %" PRId64 " cannot be made: %s", th->tid, strerror((int)-result));
	return build_wait_born(b, (pid_t)result);
}

enum { MADE_AT_ONCE = 256 };

/* By one script, which does not stop at each: they are traced by what they are made with. */
static int
make_some(struct built *b, const struct thread *threads, size_t n)
{
	struct clone_args args = thread_args(b);
	struct script s = {0};
	int err;

	args.flags |= CLONE_PTRACE;
	args.set_tid_size = 1;
	for (size_t i = 0; i < n; i++) {
		pid_t number = (pid_t)threads[i].tid;

		args.set_tid = loop_data(&b->loop) + script_data(&s, &number, sizeof(number));
		script_add(&s, "thread", SYS_clone3, script_data(&s, &args, sizeof(args)), sizeof(args));
		script_data_arg(&s, 0);
		script_may_fail(&s);
	}
	err = loop_run(&b->loop, &b->threads[0], &s);
	for (size_t i = 0; i < n && err == 0; i++)
		err = made(b, &threads[i], s.calls[i].result);
	script_fini(&s);
	return err;
}

static int
make_threads(struct built *b)
{
	const struct task *t = b->task;
	struct tracee *leader = &b->threads[0];
	int err = 0;

	for (size_t i = 1; i < t->nthreads && err == 0 && b->loop.untraced != NULL; i++) {
		struct clone_args args = thread_args(b);
		int64_t result;

		err = build_clone3(b, &args, t->threads[i].tid, &result);
		if (err == 0)
			err = made(b, &t->threads[i], result);
	}
	if (t->nthreads == 1 || b->loop.untraced != NULL)
		return err;
	if (ptrace(PTRACE_SETOPTIONS, leader->tid, NULL, BUILD_TRACE_OPTIONS & ~PTRACE_O_TRACECLONE) < 0)
		return fail_errno("pid %d: ptrace", leader->tid);
	for (size_t i = 1; i < t->nthreads && err == 0; i += MADE_AT_ONCE)
		err = make_some(b, &t->threads[i], min_u64(MADE_AT_ONCE, t->nthreads - i));
	/* They may have moved with the list of them. */
	if (err == 0 && ptrace(PTRACE_SETOPTIONS, b->threads[0].tid, NULL, BUILD_TRACE_OPTIONS) < 0)
		err = fail_errno("pid %d: ptrace", b->pid);
	return err;
}

/* As this kernel wants it: its own size, what the image has, the rest in its initial state. */
static int
set_xstate(const struct tracee *t, const struct thread *th)
{
	static size_t len; /* the machine's, the same for all */
	unsigned char *p = NULL;
	int err = len == 0 ? tracee_get_xstate(t->tid, &p, &len) : 0;

	free(p);
	if (err < 0)
		return err;
	p = calloc(1, len);
	if (p == NULL)
		return -ENOMEM;
	memcpy(p, th->xstate.p, min_u64(len, th->xstate.n));
	err = tracee_set_xstate(t->tid, p, len);
	free(p);
	return err < 0 ? fail(EBADMSG, "thread %" PRId64 ": its registers are not accepted here", th->tid) : 0;
}

static void
add_thread_calls(struct script *s, const struct thread *th)
{
	stack_t ss = {(void *)(uintptr_t)th->altstack_sp, (int)th->altstack_flags, th->altstack_size};

	script_add(s, "alternate stack", SYS_sigaltstack, script_data(s, &ss, sizeof(ss)));
	script_data_arg(s, 0);
	if (th->robust_head != 0) {
		script_add(s, "robust list", SYS_set_robust_list, th->robust_head, th->robust_len);
		script_may_fail(s);
	}
	script_add(s, "tid address", SYS_set_tid_address, th->tid_address);
	script_add(s, "name", SYS_prctl, PR_SET_NAME, script_data(s, th->comm, strlen(th->comm) + 1));
	script_data_arg(s, 1);
	if (th->rseq != 0)
		script_add(s, "rseq", SYS_rseq, th->rseq, th->rseq_size, 0, th->rseq_sig);
}

/* From outside; what is not permitted is told. */
static void
set_sched(const struct tracee *t, const struct thread *th)
{
	const struct sched *s = &th->sched;
	struct kernel_sched_attr a = {sizeof(a), (uint32_t)s->policy, s->flags, (int32_t)s->nice,
	    (uint32_t)s->priority, s->runtime, s->deadline, s->period};

	if (s->affinity.n > 0 &&
	    syscall(SYS_sched_setaffinity, t->tid, s->affinity.n, s->affinity.p) < 0)
		note("thread %" PRId64 ": cannot be bound to its CPUs: %s", th->tid, strerror(errno));
	if ((s->policy != 0 || s->nice != 0 || s->flags != 0) &&
	    syscall(SYS_sched_setattr, t->tid, &a, 0) < 0)
		note("thread %" PRId64 ": scheduling policy %" PRId64 ", nice %" PRId64 ": %s", th->tid,
		    s->policy, s->nice, strerror(errno));
	if (s->ioprio > 0 && syscall(SYS_ioprio_set, 1, t->tid, s->ioprio) < 0)
		note("thread %" PRId64 ": I/O priority: %s", th->tid, strerror(errno));
}

/* The permitted capabilities of a process, or none. */
static uint64_t
permitted(const struct built *b)
{
	struct proc_status st;
	uint64_t prm = 0;
	int proc = proc_open(b->pid);

	if (proc >= 0 && proc_read_status(proc, &st) == 0) {
		prm = st.cap_prm;
		proc_status_fini(&st);
	}
	close_fd(&proc);
	return prm;
}

/* Root gives it the IDs that it had; its capabilities stay until the last steps, which need some. */
static void
add_ids(struct script *s, const struct creds *c, uint64_t prm)
{
	uint64_t groups = script_data(s, NULL, 0);
	struct __user_cap_header_struct h = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct d[2] = {{(uint32_t)prm, (uint32_t)prm, 0},
	    {(uint32_t)(prm >> 32), (uint32_t)(prm >> 32), 0}};

	for (size_t i = 0; i < c->ngroups; i++) {
		uint32_t gid = (uint32_t)c->groups[i];

		buf_put(&s->data, &gid, sizeof(gid));
	}
	script_add(s, "groups", SYS_setgroups, c->ngroups, groups);
	script_data_arg(s, 1);
	script_add(s, "group IDs", SYS_setresgid, (uint64_t)c->gid[0], (uint64_t)c->gid[1], (uint64_t)c->gid[2]);
	script_add(s, "capabilities", SYS_prctl, PR_SET_KEEPCAPS, 1);
	script_add(s, "user IDs", SYS_setresuid, (uint64_t)c->uid[0], (uint64_t)c->uid[1], (uint64_t)c->uid[2]);
	script_add(s, "capabilities", SYS_capset, script_data(s, &h, sizeof(h)), script_data(s, d, sizeof(d)));
	script_data_arg(s, 0);
	script_data_arg(s, 1);
	script_add(s, "capabilities", SYS_prctl, PR_SET_KEEPCAPS, 0);
	script_may_fail(s);
	script_add(s, "dumpable", SYS_prctl, PR_SET_DUMPABLE, 1);
}

/* One that is untraced has had them blocked from its beginning. */
static int
block_signals(const struct restart *r, const struct tracee *t)
{
	return r->untraced != NULL ? 0 : tracee_set_sigmask(t->tid, ALL_SIGNALS);
}

static int
ask_thread(const struct restart *r, struct built *b, size_t i, bool ids, uint64_t prm, struct script *s)
{
	const struct thread *th = &b->task->threads[i];
	int err = block_signals(r, &b->threads[i]);

	if (ids)
		add_ids(s, &b->task->creds, prm);
	add_thread_calls(s, th);
	if (err == 0 && attr_set(s, th->prctls, th->nprctls) < 0)
		err = fail(EBADMSG, "%s: bad image: an attribute that nothing has", r->source.name);
	return err;
}

static int
set_registers(const struct restart *r, const struct built *b, size_t i)
{
	const struct thread *th = &b->task->threads[i];
	const struct tracee *t = &b->threads[i];
	struct arch_regs final = th->regs;
	int err;

	if (r->untraced != NULL) { /* it takes its registers by itself, with all else from the frame that it returns through */
		set_sched(t, th);
		return 0;
	}
	err = set_xstate(t, th);
	/* Once on trial: what the kernel does not accept must show before it is too late. */
	final.orig_rax = UINT64_MAX;
	if (err == 0)
		err = tracee_set_regs(t->tid, &final);
	if (err == 0)
		set_sched(t, th);
	return err;
}

static int
settle_threads(struct restart *r, struct built *b)
{
	bool ids = !r->own_userns && geteuid() == 0;
	uint64_t prm = ids ? permitted(b) : 0;
	size_t n = b->nthreads;
	struct script *s = calloc(n, sizeof(*s));
	int err = s == NULL ? -ENOMEM : 0;

	for (size_t i = 0; i < n && err == 0; i++)
		err = ask_thread(r, b, i, ids, prm, &s[i]);
	if (err == 0)
		err = loop_run_all(&b->loop, b->threads, s, n);
	for (size_t i = 0; i < n && s != NULL; i++)
		script_fini(&s[i]);
	free(s);
	for (size_t i = 0; i < n && err == 0; i++)
		err = set_registers(r, b, i);
	return err;
}

/* --- the process */

static void
add_actions(struct script *s, const struct task *t)
{
	for (size_t i = 0; i < t->nactions; i++) {
		const struct sig_action *a = &t->actions[i];
		struct kernel_sigaction ka = {a->handler, a->flags, a->restorer, a->mask};

		script_add(s, "signal handler", SYS_rt_sigaction, (uint64_t)a->sig,
		    script_data(s, &ka, sizeof(ka)), 0, 8);
		script_data_arg(s, 1);
	}
}

#ifndef PR_TIMER_CREATE_RESTORE_IDS
#define PR_TIMER_CREATE_RESTORE_IDS 77
#endif

static void
add_timer(struct script *s, const struct posix_timer *pt, int id)
{
	struct kernel_sigevent ev = {.value = pt != NULL ? pt->sigval : 0,
	    .signo = pt != NULL ? (int32_t)pt->sig : 0, .notify = pt != NULL ? (int32_t)pt->notify : 1,
	    .tid = pt != NULL ? (int32_t)pt->tid : 0};
	uint64_t event = script_data(s, &ev, sizeof(ev)), at = script_data(s, &id, sizeof(id));

	script_add(s, "timer", SYS_timer_create, (uint64_t)(pt != NULL ? pt->clock : 0), event, at);
	script_data_arg(s, 1);
	script_data_arg(s, 2);
}

enum { TIMER_IDS_MAX = 1000 };

/*
 * Timers get their numbers back: from 6.15 on request; before, numbers are given in order from 0, so
 * those that are not wanted are made and deleted.
 */
static int
make_timers(struct built *b)
{
	const struct task *t = b->task;
	struct script s = {0};
	int64_t next = 0;
	bool ask = kfeat(KFEAT_timer_restore_ids);
	int err;

	if (t->ntimers == 0)
		return 0;
	if (ask) {
		script_add(&s, "timer numbers", SYS_prctl, PR_TIMER_CREATE_RESTORE_IDS, 1);
		script_may_fail(&s);
		err = loop_run(&b->loop, &b->threads[0], &s);
		ask = err == 0 && s.calls[0].result == 0;
		script_fini(&s);
	}
	for (size_t i = 0; i < t->ntimers; i++) {
		if (!ask && t->timers[i].id > TIMER_IDS_MAX)
			return fail(ENOTSUP, "timer number %" PRId64 " cannot be had on this kernel (6.15 can)",
			    t->timers[i].id);
		for (; !ask && next < t->timers[i].id; next++) {
			add_timer(&s, NULL, (int)next);
			script_add(&s, "timer", SYS_timer_delete, (uint64_t)next);
		}
		add_timer(&s, &t->timers[i], (int)t->timers[i].id);
		next = t->timers[i].id + 1;
	}
	if (ask)
		script_add(&s, "timer numbers", SYS_prctl, PR_TIMER_CREATE_RESTORE_IDS, 0);
	err = loop_run(&b->loop, &b->threads[0], &s);
	script_fini(&s);
	return err;
}

/* In which process is something done that is done once? In the first that has the ofd. */
const struct task *
first_with(const struct restart *r, int64_t ofd)
{
	for (size_t i = 0; i < r->model.header.ntasks; i++)
		for (size_t k = 0; k < r->model.tasks[i].nfds; k++)
			if (r->model.tasks[i].fds[k].ofd == ofd)
				return &r->model.tasks[i];
	return NULL;
}

static uint64_t
stock_of(const void *ctx, int64_t ofd)
{
	return stock_fd(ctx, STOCK_OFDS, ofd);
}

struct attaching {
	struct restart *r;
	const struct task *task;
	struct script *script;
};

static int
attach_one(void *ctx, size_t i)
{
	struct attaching *a = ctx;
	const struct objects *o = &a->r->model.objects;
	const struct kind *kind = kinds[o->ofds[i].kind];
	int64_t ofd = (int64_t)i;

	if (kind->attach != NULL && (kind->attach_everywhere || first_with(a->r, ofd) == a->task))
		kind->attach(a->script, o, &o->ofds[i], stock_fd(a->r, STOCK_OFDS, ofd), stock_of, a->r);
	return 0;
}

/* Numbers, flags and owners of what the first process has brought. */
int
place_fds(struct restart *r, struct built *b)
{
	const struct task *t = b->task;
	uint64_t top = stock_fd(r, STOCK_FILES, 0) - 1;
	struct script s = {0};
	struct attaching a = {r, t, &s};

	if (t->shares_files)
		return 0;
	script_add(&s, "open files", SYS_close_range, 0, top, 0);
	if (kind_in_order(&r->model.objects, attach_one, &a) < 0)
		return fail(ENOMEM, "out of memory");
	script_add(&s, "open files", SYS_close_range, 0, top, 0);
	for (size_t i = 0; i < t->nfds; i++) {
		script_add(&s, "open files", SYS_dup3, stock_fd(r, STOCK_OFDS, t->fds[i].ofd), (uint64_t)t->fds[i].fd,
		    t->fds[i].cloexec ? O_CLOEXEC : 0);
	}
	return built_run(b, &s);
}

static void
add_membarrier(struct script *s, const struct task *t)
{
	for (int bit = 0; bit < 32; bit++)
		if (t->membarrier >> bit & 1) {
			script_add(s, "membarrier", SYS_membarrier, 1ULL << bit);
			script_may_fail(s);
		}
}

static void
set_proc_files(const struct built *b)
{
	const struct task *t = b->task;
	int proc = proc_open(b->pid), err;
	char text[32];

	if (proc < 0)
		return;
	snprintf(text, sizeof(text), "%#" PRIx64, t->coredump_filter);
	write_file(proc, "coredump_filter", text);
	snprintf(text, sizeof(text), "%" PRId64, t->oom_score_adj);
	err = write_file(proc, "oom_score_adj", text);
	if (err < 0)
		note("pid %d: oom_score_adj %" PRId64 ": %s", b->pid, t->oom_score_adj, strerror(-err));
	close(proc);
}

/* Whom signals of open files go to, when all threads are there. */
static void
add_owners(struct script *s, const struct restart *r, const struct task *t)
{
	for (size_t i = 0; i < t->nfds; i++) {
		const struct ofd *o = &r->model.objects.ofds[t->fds[i].ofd];
		uint64_t fd = (uint64_t)t->fds[i].fd;
		int32_t owner[2] = {(int32_t)o->owner_type, (int32_t)o->owner};

		if (o->owner != 0) {
			script_add(s, "owner of a file", SYS_fcntl, fd, F_SETOWN_EX, script_data(s, owner, sizeof(owner)));
			script_data_arg(s, 2);
			script_may_fail(s);
		}
		if (o->sig != 0) {
			script_add(s, "signal of a file", SYS_fcntl, fd, F_SETSIG, (uint64_t)o->sig);
			script_may_fail(s);
		}
		if (o->flags & O_ASYNC) {
			script_add(s, "flags of a file", SYS_fcntl, fd, F_SETFL,
			    o->flags & (O_APPEND | O_NONBLOCK | O_DIRECT | O_NOATIME | O_ASYNC));
			script_may_fail(s);
		}
	}
}

/* Whose table of open files is it? */
static const struct task *
table_owner(const struct restart *r, const struct task *t)
{
	const struct built *b = &r->built[t - r->model.tasks];

	while (b->task->shares_files)
		b = b->parent;
	return b->task;
}

/* Its directory was checked when its files were. */
static int
add_directory(struct script *s, const struct restart *r, const struct task *t)
{
	char *cwd = is_away(r) ? strdup("/") : files_directory(r, t);

	if (cwd == NULL)
		return -ENOMEM;
	script_add(s, "its working directory", SYS_chdir, script_data(s, cwd, strlen(cwd) + 1));
	script_data_arg(s, 0);
	free(cwd);
	return 0;
}

/* Will another one need the stock that is in its table? */
static bool
shared_later(const struct restart *r, const struct task *t)
{
	bool later = false;

	for (size_t i = (size_t)(t - r->model.tasks) + 1; i < r->model.header.ntasks && !later; i++)
		later = r->model.tasks[i].shares_files && table_owner(r, &r->model.tasks[i]) == table_owner(r, t);
	return later;
}

static int
settle_process(struct restart *r, struct built *b)
{
	const struct task *t = b->task;
	struct script s = {0};
	int err = add_directory(&s, r, t);

	script_add(&s, "umask", SYS_umask, (uint64_t)t->umask);
	add_actions(&s, t);
	add_membarrier(&s, t);
	add_owners(&s, r, t);
	script_add(&s, "personality", SYS_personality, t->personality);
	script_may_fail(&s);
	if (!shared_later(r, t))
		script_add(&s, "restart's own files", SYS_close_range, stock_fd(r, STOCK_FILES, 0), UINT32_MAX, 0);
	if (err == 0)
		err = loop_run(&b->loop, &b->threads[0], &s);
	script_fini(&s);
	return err == 0 && b == r->built ? ipc_fill(r, b) : err;
}

int
settle(struct restart *r, struct built *b)
{
	int err = block_signals(r, &b->threads[0]);

	if (err == 0)
		err = space_finish(r, b);
	if (err == 0)
		err = make_threads(b);
	if (err == 0)
		err = settle_process(r, b);
	if (err == 0)
		err = make_timers(b);
	if (err == 0)
		err = settle_threads(r, b);
	if (err == 0)
		set_proc_files(b);
	return err < 0 ? err : seccomp_prepare(b);
}
