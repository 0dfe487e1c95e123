/*
 * The first process: forked here, with its PID and all that the others inherit from it; it executes its program. Where the memory comes before the
 * rest of the image it is made early, and gets its files when they are known: by a socket that it has for that.
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
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "fault.h"
#include "io.h"
#include "kfeat.h"
#include "log.h"
#include "restart.h"

#ifndef CAP_CHECKPOINT_RESTORE
#define CAP_CHECKPOINT_RESTORE 40
#endif

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

/* Each file of the stock, with its number in the process. Returns what fn does where that is not 0. */
typedef int stock_fn(void *ctx, int fd, uint64_t number);

static int
stock_each(const struct restart *r, stock_fn *fn, void *ctx)
{
	const struct objects *o = &r->model.objects;
	const struct {
		enum stock what;
		const int *fds;
		size_t n;
	} all[] = {{STOCK_FILES, r->open.mapped, o->nfiles}, {STOCK_SHMS, r->open.shms, o->nshms}, {STOCK_OFDS, r->open.ofds, o->nofds},
	    {STOCK_PROGRAMS, r->open.programs, o->nfiles}};
	int err = 0;

	for (size_t k = 0; k < ARRAY_LEN(all); k++)
		for (size_t i = 0; i < all[k].n && err == 0; i++)
			if (all[k].fds[i] >= 0)
				err = fn(ctx, all[k].fds[i], stock_fd(r, all[k].what, (int64_t)i));
	return err;
}

static int
stock_put(void *ctx, int fd, uint64_t number)
{
	(void)ctx;
	if (dup2(fd, (int)number) < 0)
		child_failed("open files (ulimit -n)");
	return 0;
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
	stock_each(r, stock_put, NULL);
}

/* Of one that is made early: the end of the socket for its files. Below it is nothing. */
enum { HAND_FD = 64 };

static int
hand_up(int program, int hand)
{
	move_up(&error_pipe, HAND_FD + 1);
	move_up(&program, HAND_FD + 1);
	move_up(&hand, HAND_FD + 1);
	if (dup2(hand, HAND_FD) < 0)
		child_failed("open files (ulimit -n)");
	syscall(SYS_close_range, 0, HAND_FD - 1, 0);
	return program;
}

/* hand: -1, or that end. */
static void
child(struct restart *r, const struct task *t, int go, int hand)
{
	char byte;
	int program;

	log_hush(1);
	if (read(go, &byte, 1) != 1)
		_exit(127);
	/* Where it is not permitted (containers) the stub is simply somewhere else. */
	personality(ADDR_NO_RANDOMIZE);
	build_keep_capabilities(false);
	reset_signals();
	if (hand < 0)
		stock_up(r);
	program = hand < 0 ? (int)stock_fd(r, STOCK_PROGRAMS, t->exe) : hand_up(r->open.programs[t->exe], hand);
	/* The rest is close-on-exec. */
	syscall(SYS_execveat, program, "", (const char *const[]){"pms", NULL}, (const char *const[]){NULL}, AT_EMPTY_PATH);
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

/* It exists. */
static void
first_is_born(struct built *b, pid_t pid)
{
	b->pid = pid;
	b->session = b->task->session_leader ? 0 : b->task->sid;
	build_limit_stack(pid, b->task);
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
		err = build_cannot_fork(errno, b->task->pid);
	} else {
		first_is_born(b, pid);
		err = coop_first(r, b, slot, ends[0]);
		if (err == 0)
			err = build_look_at_stub(b);
		if (err == 0)
			err = fault(FAULT_execed);
	}
	close(ends[0]);
	return err;
}

static int
fork_first(struct restart *r, struct built *b, int hand)
{
	int go[2] = {-1, -1}, errors[2] = {-1, -1}, err;
	pid_t pid;

	if (pipe2(go, O_CLOEXEC) < 0 || pipe2(errors, O_CLOEXEC) < 0)
		return fail_errno("pipe");
	pid = fork_as(r, b->task);
	if (pid == 0) {
		error_pipe = errors[1];
		close(go[1]);
		child(r, b->task, go[0], hand);
		_exit(127);
	}
	close(go[0]);
	close(errors[1]);
	if (pid < 0) {
		err = build_cannot_fork(errno, b->task->pid);
	} else {
		first_is_born(b, pid);
		err = build_seize(b);
		if (err == 0 && write(go[1], "g", 1) != 1)
			err = fail_errno("pipe");
		if (err == 0)
			err = build_wait_exec(&b->threads[0], errors[0]);
		if (err == 0)
			err = build_look_at_stub(b);
		if (err == 0)
			err = fault(FAULT_execed);
	}
	close(go[1]);
	close(errors[0]);
	return err;
}

/* --- one that is there before its files are known */

/* By which file its program is known. */
static int
identify(const struct restart *r, const struct task *t, struct stat *st)
{
	return fstat(r->open.mapped[t->exe], st) < 0 ? fail_errno("%s", r->model.objects.files[t->exe].path) : 0;
}

int
first_early(struct restart *r)
{
	const struct task *t = &r->model.tasks[0];
	struct early *e = calloc(1, sizeof(*e));
	int ends[2], err = e == NULL ? fail(ENOMEM, "out of memory") : files_open_program(r, t);

	if (err == 0)
		err = identify(r, t, &e->program);
	if (err == 0 && socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
		err = fail_errno("socketpair");
	if (err < 0) {
		free(e);
		return err;
	}
	e->pid = t->pid;
	e->hand = ends[0];
	e->built = (struct built){.task = t, .mem = -1, .listener = -1, .uffd = -1};
	r->early = e;
	err = fork_first(r, &e->built, ends[1]);
	close(ends[1]);
	return err;
}

void
first_drop_early(struct restart *r)
{
	if (r->early == NULL)
		return;
	close_fd(&r->early->hand);
	build_end_one(&r->early->built);
	free(r->early->built.threads);
	free(r->early);
	r->early = NULL;
}

/* Files on their way to the process. */
struct handing {
	struct early *early;
	struct built *b;
	uint64_t numbers[16];
	size_t n;
};

/* Room for one message in the memory of the process, all addresses being those there. */
struct landing {
	struct msghdr header;
	struct iovec bytes;
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int))];
	} control;
	char byte;
};

static void
put_landing(struct script *s, taddr at)
{
	struct landing l = {0};

	/* The first data of a short script are where all data begin. */
	l.header = (struct msghdr){.msg_iov = (void *)(uintptr_t)(at + offsetof(struct landing, bytes)), .msg_iovlen = 1,
	    .msg_control = (void *)(uintptr_t)(at + offsetof(struct landing, control)), .msg_controllen = sizeof(l.control.room)};
	l.bytes = (struct iovec){(void *)(uintptr_t)(at + offsetof(struct landing, byte)), 1};
	script_data(s, &l, sizeof(l));
}

/* Each comes at the lowest number, which is 0 as nothing else is open so low. */
static int
take_handed(struct handing *h)
{
	struct script s = {0};

	if (h->n == 0)
		return 0;
	put_landing(&s, loop_data(&h->b->loop));
	for (size_t i = 0; i < h->n; i++) {
		script_add(&s, "its files", SYS_recvmsg, h->early->number, 0, 0);
		script_data_arg(&s, 1);
		script_add(&s, "its files", SYS_dup3, 0, h->numbers[i], 0);
		script_add(&s, "its files", SYS_close, 0);
	}
	h->n = 0;
	return built_run(h->b, &s);
}

static int
hand_one(void *ctx, int fd, uint64_t number)
{
	struct handing *h = ctx;
	ssize_t n = io_send_file(h->early->hand, "f", 1, fd);

	if (n != 1)
		return fail((int)-n, "pid %d: its files cannot be handed to it: %s", h->b->pid, strerror((int)-n));
	h->numbers[h->n++] = number;
	return h->n == ARRAY_LEN(h->numbers) ? take_handed(h) : 0;
}

static int
hand_over(struct restart *r, struct built *b)
{
	struct handing h = {r->early, b, {0}, 0};
	struct script s = {0};
	int err;

	/* Out of the way of what comes. */
	script_add(&s, "its files", SYS_fcntl, HAND_FD, F_DUPFD_CLOEXEC, stock_fd(r, STOCK_END, 0));
	script_add(&s, "its files", SYS_close, HAND_FD);
	err = loop_run(&b->loop, &b->threads[0], &s);
	if (err == 0)
		h.early->number = (uint64_t)s.calls[0].result;
	script_fini(&s);
	if (err == 0)
		err = stock_each(r, hand_one, &h);
	if (err == 0)
		err = take_handed(&h);
	script_add(&s, "its files", SYS_close, h.early->number);
	return err < 0 ? err : built_run(b, &s);
}

/* It becomes the first task, as that is now. */
static int
adopt(struct restart *r, struct built *b)
{
	struct built *e = &r->early->built;
	struct stat now;
	int err = r->early->pid == b->task->pid ? identify(r, b->task, &now) : fail(EBADMSG, "%s: bad image: another process follows the rounds", r->source.name);
	bool same = err == 0 && now.st_dev == r->early->program.st_dev && now.st_ino == r->early->program.st_ino;

	if (err < 0)
		return err;
	e->task = b->task;
	e->birth = b->birth;
	*b = *e;
	*e = (struct built){0};
	first_is_born(b, b->pid);
	err = hand_over(r, b);
	if (err == 0)
		err = earlier_settle(r, b, same);
	first_drop_early(r);
	return err;
}

int
first_build(struct restart *r, struct built *b)
{
	int err;

	r->stock_base = find_stock_base(r);
	err = check_numbers(r);
	if (err < 0)
		return err;
	if (r->early != NULL)
		return adopt(r, b);
	return r->untraced != NULL ? build_first_untraced(r, b) : fork_first(r, b, -1);
}
