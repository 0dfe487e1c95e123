/*
 * Processes with the right PIDs and parents. The first is forked here and executes its program; every
 * other one is cloned by its parent, in the script loop, and executes its own or keeps the parent's memory.
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
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fault.h"
#include "io.h"
#include "kfeat.h"
#include "log.h"
#include "restart.h"

#ifndef CAP_CHECKPOINT_RESTORE
#define CAP_CHECKPOINT_RESTORE 40
#endif
enum { EXEC_TIMEOUT_MS = 60000 };

/* --- what is inherited */

/* Above every fd of every process of the image. */
static uint64_t
find_stock_base(const struct restart *r)
{
	const struct objects *o = &r->model.objects;
	uint64_t base = 3;

	for (size_t i = 0; i < r->model.header.ntasks; i++) {
		const struct task *t = &r->model.tasks[i];

		if (t->nfds > 0)
			base = max_u64(base, (uint64_t)t->fds[t->nfds - 1].fd + 1);
	}
	/* Epoll sets know their items by numbers that may be closed since. */
	for (size_t i = 0; i < o->nepolls; i++)
		for (size_t k = 0; k < o->epolls[i].nitems; k++)
			base = max_u64(base, (uint64_t)o->epolls[i].items[k].fd + 1);
	return base;
}

uint64_t
stock_fd(const struct restart *r, enum stock what, int64_t index)
{
	const struct objects *o = &r->model.objects;
	uint64_t at = r->stock_base + (uint64_t)index;

	switch (what) {
	case STOCK_END:
		at += o->nfiles;
		/* fall through */
	case STOCK_PROGRAMS:
		at += o->nofds;
		/* fall through */
	case STOCK_OFDS:
		at += o->nshms;
		/* fall through */
	case STOCK_SHMS:
		at += o->nfiles;
		/* fall through */
	default:
		return at;
	}
}

/* --- in the first process, which tells what failed by a line on its error pipe and exits */

static int error_pipe = -1;

static void
child_failed(const char *what)
{
	dprintf(error_pipe, "%s: %s", what, strerror(errno));
	_exit(127);
}

void
build_keep_capabilities(bool tracer)
{
	static const int kept[] = {CAP_CHECKPOINT_RESTORE, CAP_SETPCAP, CAP_SYS_PTRACE};
	struct __user_cap_header_struct h = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct d[2];

	for (size_t i = 0; i < ARRAY_LEN(kept) - !tracer; i++) {
		unsigned bit = 1u << (kept[i] % 32);
		int word = kept[i] / 32;

		if (syscall(SYS_capget, &h, d) < 0 || !(d[word].permitted & bit))
			continue;
		d[word].inheritable |= bit;
		d[word].effective |= bit;
		if (syscall(SYS_capset, &h, d) == 0)
			prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, kept[i], 0, 0);
	}
}

static void
reset_signals(void)
{
	struct sigaction dfl = {.sa_handler = SIG_DFL};
	sigset_t none;

	for (int sig = 1; sig <= 64; sig++)
		sigaction(sig, &dfl, NULL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

/* As fd_move_up(), or the end of the child. -1 stays. */
static void
move_up(int *fd, int min)
{
	if (*fd < 0)
		return;
	*fd = fd_move_up(*fd, min);
	if (*fd < 0)
		child_failed("open files (ulimit -n)");
}

static void
stock_put(const struct restart *r, enum stock what, const int *fds, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (fds[i] >= 0 && dup2(fds[i], (int)stock_fd(r, what, (int64_t)i)) < 0)
			child_failed("open files (ulimit -n)");
}

/* The stock at its numbers, and nothing else below. */
static void
stock_up(struct restart *r)
{
	const struct objects *o = &r->model.objects;
	int high = (int)stock_fd(r, STOCK_END, 0) + 8;

	move_up(&error_pipe, high);
	if (r->untraced != NULL && untraced_move_fd(r->untraced, high) < 0)
		child_failed("open files (ulimit -n)");
	for (size_t i = 0; i < o->nfiles; i++) {
		move_up(&r->open.mapped[i], high);
		move_up(&r->open.programs[i], high);
	}
	for (size_t i = 0; i < o->nshms; i++)
		move_up(&r->open.shms[i], high);
	for (size_t i = 0; i < o->nofds; i++)
		move_up(&r->open.ofds[i], high);
	syscall(SYS_close_range, 0, (unsigned)high - 1, 0);
	stock_put(r, STOCK_FILES, r->open.mapped, o->nfiles);
	stock_put(r, STOCK_SHMS, r->open.shms, o->nshms);
	stock_put(r, STOCK_OFDS, r->open.ofds, o->nofds);
	stock_put(r, STOCK_PROGRAMS, r->open.programs, o->nfiles);
}

static void
child(struct restart *r, const struct task *t, int go)
{
	char byte;

	log_hush(1);
	if (read(go, &byte, 1) != 1)
		_exit(127);
	/* Where it is not permitted (containers) the stub is simply somewhere else. */
	personality(ADDR_NO_RANDOMIZE);
	build_keep_capabilities(false);
	reset_signals();
	stock_up(r);
	/* The rest is close-on-exec. */
	syscall(SYS_execveat, (int)stock_fd(r, STOCK_PROGRAMS, t->exe), "", (const char *const[]){"pms", NULL},
	    (const char *const[]){NULL}, AT_EMPTY_PATH);
	child_failed("execute the program");
}

static void
child_untraced(struct restart *r, size_t slot, int to)
{
	sigset_t all;

	log_hush(1);
	sigfillset(&all);
	build_keep_capabilities(false);
	reset_signals();
	sigprocmask(SIG_SETMASK, &all, NULL);
	error_pipe = to;
	stock_up(r);
	coop_first_child(r, slot, error_pipe);
}

/* --- in the builder */

/* fork(2) with a chosen PID. */
static pid_t
fork_as(const struct restart *r, const struct task *t)
{
	pid_t pid = (pid_t)t->pid;
	struct clone_args args = {.exit_signal = SIGCHLD, .set_tid = (uintptr_t)&pid, .set_tid_size = 1};

	if (r->mode == PID_NEW)
		return fork();
	return (pid_t)syscall(SYS_clone3, &args, sizeof(args));
}

static int
cannot_fork(int err, int64_t pid)
{
	switch (err) {
	case EEXIST:
		return fail(EBUSY, "PID %" PRId64 " is taken here", pid);
	case EINVAL:
		return fail(ENOTSUP, "PID %" PRId64 " is above this system's limit (as root: sysctl "
		    "kernel.pid_max=4194304)", pid);
	case EPERM:
		return fail(EPERM, "PID %" PRId64 " cannot be chosen: CAP_CHECKPOINT_RESTORE is needed", pid);
	default:
		return fail(err, "clone3 with PID %" PRId64 ": %s", pid, strerror(err));
	}
}

static int
told_by_child(int fd)
{
	char text[512];
	ssize_t n = fd < 0 ? 0 : read_full(fd, text, sizeof(text) - 1);

	if (n <= 0)
		return fail(EIO, "the program could not be executed");
	text[n] = '\0';
	return fail(strstr(text, strerror(ENOENT)) != NULL ? ENOENT : EACCES, "%s", text);
}

/* Until the program is executed. */
static int
wait_exec(struct tracee *t, int errors)
{
	for (;;) {
		int status, err = tracee_wait(t->tid, now_ms() + EXEC_TIMEOUT_MS, &status);

		if (err < 0)
			return fail(-err, "pid %d: does not execute the program: %s", t->tid, strerror(-err));
		if (!WIFSTOPPED(status)) {
			t->dead = true;
			t->seized = false;
			return told_by_child(errors);
		}
		/* Still inside execve(2): on to where the program would begin. */
		if (status >> 8 == (SIGTRAP | PTRACE_EVENT_EXEC << 8))
			return tracee_nudge(t, now_ms() + EXEC_TIMEOUT_MS);
		if (ptrace(PTRACE_CONT, t->tid, NULL,
			(long)(status >> 16 != 0 ? 0 : WSTOPSIG(status))) < 0)
			return fail_errno("pid %d: ptrace", t->tid);
	}
}

static int
seize(struct built *b)
{
	struct tracee *t = ARRAY_ADD(b->threads, b->nthreads);

	if (t == NULL)
		return -ENOMEM;
	*t = (struct tracee){.pid = b->pid, .tid = b->pid, .mem = -1};
	if (ptrace(PTRACE_SEIZE, b->pid, NULL, BUILD_TRACE_OPTIONS) < 0)
		return fail_errno("pid %d: ptrace", b->pid);
	t->seized = true;
	return 0;
}

static int
open_memory(struct built *b)
{
	char path[32];

	close_fd(&b->mem);
	snprintf(path, sizeof(path), "/proc/%d/mem", b->pid);
	b->mem = open(path, O_RDWR | O_CLOEXEC);
	if (b->mem < 0)
		return fail_errno("%s", path);
	b->threads[0].mem = b->mem;
	b->loop.mem = b->mem;
	return 0;
}

/* Find a `syscall` instruction in its vDSO, which it keeps. */
static int
look_at_stub(struct built *b)
{
	struct proc_maps maps;
	int proc, err = b->loop.untraced != NULL && b->mem >= 0 ? 0 : open_memory(b);

	if (err < 0)
		return err;
	proc = proc_open(b->pid);
	err = proc < 0 ? proc : proc_read_maps(proc, false, &maps);
	close_fd(&proc);
	if (err < 0)
		return fail(-err, "pid %d: maps: %s", b->pid, strerror(-err));
	for (size_t i = 0; i < maps.n; i++) {
		const struct proc_map *m = &maps.map[i];
		unsigned char *code, *at;

		if (strcmp(m->path, "[vdso]") != 0)
			continue;
		b->vdso_at = m->start;
		b->vdso_len = m->end - m->start;
		code = malloc(b->vdso_len);
		if (code != NULL && mem_read(b->mem, m->start, code, b->vdso_len) == 0 &&
		    (at = memmem(code, b->vdso_len, arch_syscall, ARCH_SYSCALL_BYTES)) != NULL)
			b->syscall_ip = m->start + (taddr)(at - code);
		free(code);
	}
	proc_maps_fini(&maps);
	if (b->syscall_ip == 0)
		return fail(ENOTSUP, "this kernel gives programs no vDSO");
	return 0;
}

/* Room for all that a process holds at once, at numbers of its own. */
static int
check_numbers(const struct restart *r)
{
	uint64_t base = r->stock_base, need = 2 * stock_fd(r, STOCK_END, 0) - base + 32;
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && need > limit.rlim_max)
		return fail(ENFILE, "the program has a file open at number %" PRIu64 ", and with its mapped files %"
		    PRIu64 " numbers are needed here; the limit is %" PRIu64 " (ulimit -Hn)", base - 1, need,
		    (uint64_t)limit.rlim_max);
	return 0;
}

/* The kernel leaves room below the stack by this limit when it executes. */
static void
limit_stack(pid_t pid, const struct task *t)
{
	struct rlimit limit;

	if (t->nrlimits <= RLIMIT_STACK || prlimit(pid, RLIMIT_STACK, NULL, &limit) < 0)
		return;
	limit.rlim_cur = min_u64(t->rlimits[RLIMIT_STACK].soft, limit.rlim_max);
	prlimit(pid, RLIMIT_STACK, &limit, NULL);
}

/* It exists. */
static void
first_is_born(struct built *b, pid_t pid)
{
	b->pid = pid;
	b->session = b->task->session_leader ? 0 : b->task->sid;
	limit_stack(pid, b->task);
}

/* Without ptrace(2) it stays a copy of us, until its address space is made. */
static int
build_first_untraced(struct restart *r, struct built *b)
{
	int ends[2], err = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0 ? fail_errno("socketpair") : 0;
	size_t slot = untraced_slot(r->untraced, getpid());
	pid_t pid = err < 0 ? -1 : fork_as(r, b->task);

	if (err < 0)
		return err;
	if (pid == 0)
		child_untraced(r, slot, ends[1]);
	close(ends[1]);
	if (pid < 0) {
		err = cannot_fork(errno, b->task->pid);
	} else {
		first_is_born(b, pid);
		err = coop_first(r, b, slot, ends[0]);
		if (err == 0)
			err = look_at_stub(b);
		if (err == 0)
			err = fault(FAULT_execed);
	}
	close(ends[0]);
	return err;
}

static int
build_first(struct restart *r, struct built *b)
{
	int go[2] = {-1, -1}, errors[2] = {-1, -1}, err;
	pid_t pid;

	r->stock_base = find_stock_base(r);
	err = check_numbers(r);
	if (err < 0)
		return err;
	if (r->untraced != NULL)
		return build_first_untraced(r, b);
	if (pipe2(go, O_CLOEXEC) < 0 || pipe2(errors, O_CLOEXEC) < 0)
		return fail_errno("pipe");
	pid = fork_as(r, b->task);
	if (pid == 0) {
		error_pipe = errors[1];
		close(go[1]);
		child(r, b->task, go[0]);
		_exit(127);
	}
	close(go[0]);
	close(errors[1]);
	if (pid < 0) {
		err = cannot_fork(errno, b->task->pid);
	} else {
		first_is_born(b, pid);
		err = seize(b);
		if (err == 0 && write(go[1], "g", 1) != 1)
			err = fail_errno("pipe");
		if (err == 0)
			err = wait_exec(&b->threads[0], errors[0]);
		if (err == 0)
			err = look_at_stub(b);
		if (err == 0)
			err = fault(FAULT_execed);
	}
	close(go[1]);
	close(errors[0]);
	return err;
}

/* --- by their parents */

int
built_run(struct built *b, struct script *s)
{
	int err = loop_run(&b->loop, &b->threads[0], s);

	script_fini(s);
	return err;
}

int
build_wait_born(struct built *b, pid_t tid)
{
	struct tracee *t = ARRAY_ADD(b->threads, b->nthreads);
	int status, err;

	if (t == NULL)
		return -ENOMEM;
	*t = (struct tracee){.pid = b->pid, .tid = tid, .mem = b->mem, .seized = true};
	if (b->loop.untraced != NULL) {
		t->seized = false;
		t->slot = b->born;
		return untraced_await(b->loop.untraced, t->slot, tid);
	}
	err = tracee_wait(tid, now_ms() + EXEC_TIMEOUT_MS, &status);
	if (err < 0 || !WIFSTOPPED(status))
		return fail(EIO, "pid %d: thread %d does not begin", b->pid, tid);
	return tracee_get_regs(tid, &t->regs);
}

/* By a script; the new one finds its slot there. */
static int
clone3_untraced(struct built *creator, struct clone_args *args, int64_t tid, int64_t *result)
{
	struct untraced *u = creator->loop.untraced;
	struct script s = {0};
	pid_t number = (pid_t)tid;
	uint64_t at;
	int err;

	creator->born = untraced_slot(u, args->flags & (CLONE_THREAD | CLONE_PARENT) ? untraced_parent(u, creator->threads[0].slot) : creator->pid);
	/* The number stands in front of what leads to it. */
	args->set_tid = loop_data(&creator->loop) + script_data(&s, &number, sizeof(number));
	args->set_tid_size = 1;
	at = script_data(&s, args, sizeof(*args));
	script_add(&s, "thread", SYS_clone3, at, sizeof(*args), 0, 0, 0, untraced_slot_at(u, creator->born));
	script_data_arg(&s, 0);
	script_may_fail(&s);
	err = loop_run(&creator->loop, &creator->threads[0], &s);
	*result = err < 0 ? err : s.calls[0].result;
	script_fini(&s);
	return err;
}

int
build_clone3(struct built *creator, struct clone_args *args, int64_t tid, int64_t *result)
{
	struct tracee *leader = &creator->threads[0];
	struct {
		struct clone_args args;
		pid_t tid;
	} data = {*args, (pid_t)tid};
	taddr at = loop_data(&creator->loop);
	struct arch_call clone3 = {SYS_clone3, {at, sizeof(data.args)}};
	int err;

	if (creator->loop.untraced != NULL)
		return clone3_untraced(creator, args, tid, result);
	data.args.set_tid = at + offsetof(__typeof__(data), tid);
	data.args.set_tid_size = 1;
	err = mem_write(creator->mem, at, &data, sizeof(data));
	if (err < 0)
		return fail(-err, "pid %d: %s", creator->pid, strerror(-err));
	return tracee_call_at(leader, &leader->regs, creator->syscall_ip, &clone3, result);
}

int
build_clone(struct built *creator, struct built *b, int64_t pid, uint64_t flags, int exit_signal)
{
	struct clone_args args = {.flags = flags, .exit_signal = (uint64_t)exit_signal};
	int64_t result;
	int err = build_clone3(creator, &args, pid, &result);

	if (err < 0)
		return err;
	if (result < 0)
		return cannot_fork((int)-result, pid);
	b->pid = (pid_t)result;
	b->mem = -1;
	b->loop = creator->loop;
	b->born = creator->born;
	err = build_wait_born(b, b->pid);
	b->syscall_ip = creator->syscall_ip;
	b->vdso_at = creator->vdso_at;
	b->vdso_len = creator->vdso_len;
	b->session = creator->session;
	return err < 0 ? err : open_memory(b);
}

/* In a copy of its parent: another program takes its place. */
static int
execute(struct restart *r, struct built *b)
{
	struct tracee *t = &b->threads[0];
	taddr at = loop_data(&b->loop);
	/* "" and, behind it, a list that holds nothing but it, and its end. */
	uint64_t data[3] = {0, at, 0};
	struct arch_call call = {SYS_execveat, {stock_fd(r, STOCK_PROGRAMS, b->task->exe), at, at + 8, at + 16,
	    AT_EMPTY_PATH}};
	struct arch_regs regs = t->regs;
	int err = mem_write(b->mem, at, data, sizeof(data));

	if (err < 0)
		return fail(-err, "pid %d: %s", b->pid, strerror(-err));
	limit_stack(b->pid, b->task);
	arch_set_call(&regs, b->syscall_ip, &call);
	err = tracee_set_regs(t->tid, &regs);
	if (err == 0 && ptrace(PTRACE_CONT, t->tid, NULL, NULL) < 0)
		err = fail_errno("pid %d: ptrace", t->tid);
	if (err == 0)
		err = wait_exec(t, -1);
	if (err == 0)
		err = look_at_stub(b);
	return err < 0 ? err : fault(FAULT_execed);
}

int
build(struct restart *r, struct built *b)
{
	if (b == r->built)
		return build_first(r, b);
	if (r->untraced != NULL)
		return look_at_stub(b);
	return b->task->forked ? 0 : execute(r, b);
}

static void
end_one(struct built *b)
{
	int status;

	if (b->pid <= 0 || b->ended)
		return;
	kill(b->pid, SIGKILL);
	if (b->loop.untraced == NULL)
		tracee_reap(b->threads, b->nthreads);
	/* A child of ours, or of one that has ended before and was reaped by whoever took it over. */
	while (waitpid(b->pid, &status, __WALL) < 0 && errno == EINTR)
		;
	b->ended = true;
	close_fd(&b->mem);
}

void
build_undo(struct restart *r)
{
	for (size_t i = r->nhelpers; i-- > 0;)
		end_one(r->helpers[i]);
	for (size_t i = r->built == NULL ? 0 : r->model.header.ntasks; i-- > 0;)
		end_one(&r->built[i]);
}
