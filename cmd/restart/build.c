/*
 * Processes with the right PIDs and parents. The first is made by first.c; every other one is cloned by its
 * parent, in the script loop, and executes its own program or keeps the parent's memory.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fault.h"
#include "io.h"
#include "kfeat.h"
#include "log.h"
#include "restart.h"

enum { EXEC_TIMEOUT_MS = 60000 };

int
build_cannot_fork(int err, int64_t pid)
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
int
build_wait_exec(struct tracee *t, int errors)
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

int
build_seize(struct built *b)
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

/* It is one of the kernel's own mappings: it stays, wherever that is. */
static int
take_area(struct built *b, const struct proc_map *m)
{
	unsigned char *code, *at;

	if (!build_is_kernels(m))
		return 0;
	if (b->nareas == ARRAY_LEN(b->areas))
		return fail(ENOTSUP, "this kernel gives programs more mappings of its own than this version knows");
	b->areas[b->nareas++] = (struct page_range){m->start, m->end};
	if (strcmp(m->path, "[vdso]") != 0)
		return 0;
	b->vdso_at = m->start;
	b->vdso_len = m->end - m->start;
	code = malloc(b->vdso_len);
	if (code != NULL && mem_read(b->mem, m->start, code, b->vdso_len) == 0 &&
	    (at = memmem(code, b->vdso_len, arch_syscall, ARCH_SYSCALL_BYTES)) != NULL)
		b->syscall_ip = m->start + (taddr)(at - code);
	free(code);
	return 0;
}

bool
build_is_kernels(const struct proc_map *m)
{
	return strncmp(m->path, "[vvar", 5) == 0 || strcmp(m->path, "[vdso]") == 0;
}

/* Find a `syscall` instruction in its vDSO, which it keeps. */
int
build_look_at_stub(struct built *b)
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
	b->nareas = 0;
	b->syscall_ip = 0;
	for (size_t i = 0; i < maps.n && err == 0; i++)
		err = take_area(b, &maps.map[i]);
	proc_maps_fini(&maps);
	if (err == 0 && b->syscall_ip == 0)
		err = fail(ENOTSUP, "this kernel gives programs no vDSO");
	return err;
}

/* The kernel leaves room below the stack by this limit when it executes. */
void
build_limit_stack(pid_t pid, const struct task *t)
{
	struct rlimit limit;

	if (t->nrlimits <= RLIMIT_STACK || prlimit(pid, RLIMIT_STACK, NULL, &limit) < 0)
		return;
	limit.rlim_cur = min_u64(t->rlimits[RLIMIT_STACK].soft, limit.rlim_max);
	prlimit(pid, RLIMIT_STACK, &limit, NULL);
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
		return build_cannot_fork((int)-result, pid);
	b->pid = (pid_t)result;
	b->mem = -1;
	b->loop = creator->loop;
	b->born = creator->born;
	err = build_wait_born(b, b->pid);
	b->syscall_ip = creator->syscall_ip;
	b->vdso_at = creator->vdso_at;
	b->vdso_len = creator->vdso_len;
	b->nareas = creator->nareas;
	memcpy(b->areas, creator->areas, sizeof(b->areas));
	b->session = creator->session;
	return err < 0 ? err : open_memory(b);
}

/* In a copy of its parent: another program takes its place. */
int
build_execute(struct restart *r, struct built *b)
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
	build_limit_stack(b->pid, b->task);
	arch_set_call(&regs, b->syscall_ip, &call);
	err = tracee_set_regs(t->tid, &regs);
	if (err == 0 && ptrace(PTRACE_CONT, t->tid, NULL, NULL) < 0)
		err = fail_errno("pid %d: ptrace", t->tid);
	if (err == 0)
		err = build_wait_exec(t, -1);
	if (err == 0)
		err = build_look_at_stub(b);
	return err < 0 ? err : fault(FAULT_execed);
}

int
build(struct restart *r, struct built *b)
{
	if (b == r->built)
		return first_build(r, b);
	if (r->untraced != NULL)
		return build_look_at_stub(b);
	return b->task->forked ? 0 : build_execute(r, b);
}

void
build_end_one(struct built *b)
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
		build_end_one(r->helpers[i]);
	if (r->early != NULL)
		build_end_one(&r->early->built);
	for (size_t i = r->built == NULL ? 0 : r->model.header.ntasks; i-- > 0;)
		build_end_one(&r->built[i]);
}
