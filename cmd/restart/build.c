/*
 * A process that has executed the program of the image and is stopped before its first
 * instruction, with the right PID, parent, session, directory and open files.
 */
#include <elf.h>
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
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <grp.h>
#include <unistd.h>

#include "fault.h"
#include "io.h"
#include "kfeat.h"
#include "log.h"
#include "restart.h"

#ifndef CAP_CHECKPOINT_RESTORE
#define CAP_CHECKPOINT_RESTORE 40
#endif
#define TRACE_OPTIONS                                                                          \
	(PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL | PTRACE_O_TRACEEXEC | PTRACE_O_TRACECLONE)

/* --- in the child, which tells what failed by a line on its error pipe and exits */

static int error_pipe = -1;

static void
child_failed(const char *what)
{
	dprintf(error_pipe, "%s: %s", what, strerror(errno));
	_exit(127);
}

/* A capability that stays across exec without being root, to choose the TIDs of threads. */
static void
keep_capability(void)
{
	struct __user_cap_header_struct h = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct d[2];
	unsigned bit = 1u << (CAP_CHECKPOINT_RESTORE % 32);
	int word = CAP_CHECKPOINT_RESTORE / 32;

	if (syscall(SYS_capget, &h, d) < 0 || !(d[word].permitted & bit))
		return;
	d[word].inheritable |= bit;
	d[word].effective |= bit;
	if (syscall(SYS_capset, &h, d) == 0)
		prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_CHECKPOINT_RESTORE, 0, 0);
}

static void
set_ids(const struct restart *r)
{
	const struct creds *c = &r->model.task.creds;
	gid_t *groups = calloc(c->ngroups + 1, sizeof(*groups));

	if (!r->own_userns && geteuid() == 0) {
		for (size_t i = 0; groups != NULL && i < c->ngroups; i++)
			groups[i] = (gid_t)c->groups[i];
		prctl(PR_SET_KEEPCAPS, 1);
		if (groups == NULL || setgroups(c->ngroups, groups) < 0 ||
		    setresgid((gid_t)c->gid[0], (gid_t)c->gid[1], (gid_t)c->gid[2]) < 0 ||
		    setresuid((uid_t)c->uid[0], (uid_t)c->uid[1], (uid_t)c->uid[2]) < 0)
			child_failed("user and group IDs");
	}
	free(groups);
	keep_capability();
}

static void
set_surroundings(const struct restart *r)
{
	const struct task *t = &r->model.task;
	char *cwd = path_mapped(r->opt.maps, r->opt.nmaps, t->cwd);
	struct rlimit limit;

	if (t->session_leader)
		setsid();
	else if (t->group_leader)
		setpgid(0, 0);
	umask((mode_t)t->umask);
	if (r->opt.chdir != NULL) {
		if (chdir(r->opt.chdir) < 0)
			child_failed(r->opt.chdir);
	} else if (cwd == NULL || chdir(cwd) < 0) {
		dprintf(error_pipe, "%s: %s (its working directory; --chdir or --map gives another)",
		    t->cwd, strerror(errno));
		_exit(127);
	}
	free(cwd);
	/* The kernel leaves room below the stack by this limit when it executes. */
	if (t->nrlimits > RLIMIT_STACK && getrlimit(RLIMIT_STACK, &limit) == 0) {
		limit.rlim_cur = min_u64(t->rlimits[RLIMIT_STACK].soft, limit.rlim_max);
		setrlimit(RLIMIT_STACK, &limit);
	}
	/* Where it is not permitted (containers) the stub is simply somewhere else. */
	personality(ADDR_NO_RANDOMIZE);
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

/* Numbers above every fd of the image, for those that only restart needs. */
int
build_fd_base(const struct task *t)
{
	return t->nfds == 0 ? 3 : (int)max_u64(3, (uint64_t)t->fds[t->nfds - 1].fd + 1);
}

/*
 * All that is inherited is at a number that depends on nothing: mapped files and shared memory
 * first, in the order of the image (space.c counts on it), then the image's own fds at theirs.
 */
static void
place_fds(struct restart *r, int program)
{
	const struct task *t = &r->model.task;
	const struct objects *o = &r->model.objects;
	int base = build_fd_base(t), high, n = (int)(o->nfiles + o->nshms);

	/* Out of the way first: everything to above where anything is going to be. */
	high = base + n + 8;
	move_up(&error_pipe, high);
	move_up(&program, high);
	for (size_t i = 0; i < o->nfiles; i++)
		move_up(&r->open.mapped[i], high);
	for (size_t i = 0; i < o->nshms; i++)
		move_up(&r->open.shms[i], high);
	for (size_t i = 0; i < o->nofds; i++)
		move_up(&r->open.ofds[i], high);
	syscall(SYS_close_range, 0, (unsigned)high - 1, 0);
	for (size_t i = 0; i < t->nfds; i++)
		if (dup2(r->open.ofds[t->fds[i].ofd], (int)t->fds[i].fd) < 0)
			child_failed("open files");
	for (size_t i = 0; i < o->nfiles; i++)
		if (r->open.mapped[i] >= 0 && dup2(r->open.mapped[i], base + (int)i) < 0)
			child_failed("mapped files");
	for (size_t i = 0; i < o->nshms; i++)
		if (r->open.shms[i] >= 0 && dup2(r->open.shms[i], base + (int)(o->nfiles + i)) < 0)
			child_failed("shared memory");
	/* The rest is close-on-exec. */
	syscall(SYS_execveat, program, "", (const char *const[]){"pms", NULL}, (const char *const[]){NULL}, AT_EMPTY_PATH);
	child_failed("execute the program");
}

static void
child(struct restart *r, int go)
{
	char byte;

	log_hush(1);
	if (read(go, &byte, 1) != 1)
		_exit(127);
	set_surroundings(r);
	set_ids(r);
	reset_signals();
	place_fds(r, r->open.program);
}

/* --- in the builder */

/* fork(2) with a chosen PID. */
static pid_t
fork_as(const struct restart *r)
{
	pid_t pid = (pid_t)r->model.task.pid;
	struct clone_args args = {.exit_signal = SIGCHLD, .set_tid = (uintptr_t)&pid, .set_tid_size = 1};

	if (r->mode == PID_NEW)
		return fork();
	return (pid_t)syscall(SYS_clone3, &args, sizeof(args));
}

static int
cannot_fork(const struct restart *r)
{
	int64_t pid = r->model.task.pid;

	switch (errno) {
	case EEXIST:
		return fail(EBUSY, "PID %" PRId64 " is taken here", pid);
	case EINVAL:
		return fail(ENOTSUP, "PID %" PRId64 " is above this system's limit (as root: sysctl "
		    "kernel.pid_max=4194304)", pid);
	case EPERM:
		return fail(EPERM, "PID %" PRId64 " cannot be chosen: CAP_CHECKPOINT_RESTORE is needed", pid);
	default:
		return fail_errno("clone3 with PID %" PRId64, pid);
	}
}

static int
told_by_child(int fd)
{
	char text[512];
	ssize_t n = read_full(fd, text, sizeof(text) - 1);

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
		int status, err = tracee_wait(t->tid, now_ms() + 60000, &status);

		if (err < 0)
			return fail(-err, "pid %d: does not execute the program: %s", t->tid, strerror(-err));
		if (!WIFSTOPPED(status)) {
			t->dead = true;
			t->seized = false;
			return told_by_child(errors);
		}
		/* Still inside execve(2): on to where the program would begin. */
		if (status >> 8 == (SIGTRAP | PTRACE_EVENT_EXEC << 8))
			return tracee_nudge(t, now_ms() + 60000);
		if (ptrace(PTRACE_CONT, t->tid, NULL,
			(long)(status >> 16 != 0 ? 0 : WSTOPSIG(status))) < 0)
			return fail_errno("pid %d: ptrace", t->tid);
	}
}

static int
seize(struct restart *r, pid_t pid)
{
	struct tracee *t = ARRAY_ADD(r->threads, r->nthreads);

	if (t == NULL)
		return -ENOMEM;
	*t = (struct tracee){.pid = pid, .tid = pid, .mem = -1};
	if (ptrace(PTRACE_SEIZE, pid, NULL, TRACE_OPTIONS) < 0)
		return fail_errno("pid %d: ptrace", pid);
	t->seized = true;
	return 0;
}

/* Find a `syscall` instruction in its vDSO, which it keeps. */
static int
look_at_stub(struct restart *r)
{
	struct tracee *t = &r->threads[0];
	char path[32];
	struct proc_maps maps;
	int proc, err;

	snprintf(path, sizeof(path), "/proc/%d/mem", t->pid);
	r->mem = open(path, O_RDWR | O_CLOEXEC);
	if (r->mem < 0)
		return fail_errno("%s", path);
	t->mem = r->mem;
	proc = proc_open(t->pid);
	err = proc < 0 ? proc : proc_read_maps(proc, false, &maps);
	close_fd(&proc);
	if (err < 0)
		return fail(-err, "pid %d: maps: %s", t->pid, strerror(-err));
	for (size_t i = 0; i < maps.n; i++) {
		const struct proc_map *m = &maps.map[i];
		unsigned char *code, *at;

		if (strcmp(m->path, "[vdso]") != 0)
			continue;
		r->vdso_at = m->start;
		r->vdso_len = m->end - m->start;
		code = malloc(r->vdso_len);
		if (code != NULL && mem_read(r->mem, m->start, code, r->vdso_len) == 0 &&
		    (at = memmem(code, r->vdso_len, arch_syscall, ARCH_SYSCALL_BYTES)) != NULL)
			r->syscall_ip = m->start + (taddr)(at - code);
		free(code);
	}
	proc_maps_fini(&maps);
	if (r->syscall_ip == 0)
		return fail(ENOTSUP, "this kernel gives programs no vDSO");
	return 0;
}

/* Room for all that the child holds at once, at numbers of its own. */
static int
check_numbers(const struct restart *r)
{
	const struct objects *o = &r->model.objects;
	uint64_t need = (uint64_t)build_fd_base(&r->model.task) + 2 * (o->nfiles + o->nshms) + o->nofds + 32;
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && need > limit.rlim_max)
		return fail(ENFILE, "the program has a file open at number %d, and with its mapped files %" PRIu64
		    " numbers are needed here; the limit is %" PRIu64 " (ulimit -Hn)",
		    build_fd_base(&r->model.task) - 1, need, (uint64_t)limit.rlim_max);
	return 0;
}

int
build(struct restart *r)
{
	int go[2] = {-1, -1}, errors[2] = {-1, -1}, err = check_numbers(r);
	pid_t pid;

	if (err < 0)
		return err;

	if (pipe2(go, O_CLOEXEC) < 0 || pipe2(errors, O_CLOEXEC) < 0)
		return fail_errno("pipe");
	pid = fork_as(r);
	if (pid == 0) {
		error_pipe = errors[1];
		close(go[1]);
		child(r, go[0]);
		_exit(127);
	}
	close(go[0]);
	close(errors[1]);
	if (pid < 0) {
		err = cannot_fork(r);
	} else {
		r->pid = pid;
		err = seize(r, pid);
		if (err == 0 && write(go[1], "g", 1) != 1)
			err = fail_errno("pipe");
		if (err == 0)
			err = wait_exec(&r->threads[0], errors[0]);
		if (err == 0)
			err = look_at_stub(r);
		if (err == 0)
			err = fault(FAULT_execed);
	}
	close(go[1]);
	close(errors[0]);
	return err;
}

/* Nothing of it has run: end it. */
void
build_undo(struct restart *r)
{
	int status;

	if (r->pid <= 0)
		return;
	kill(r->pid, SIGKILL);
	tracee_reap(r->threads, r->nthreads);
	while (waitpid(r->pid, &status, __WALL) < 0 && errno == EINTR)
		;
	r->pid = 0;
}
