/*
 * A thread of ours in a running process, which executes calls there while the process's own threads go on. It needs no tracer: it ends
 * when nobody is left who could have it execute anything.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "guest.h"
#include "io.h"
#include "log.h"

/* A page of code, and one with the block and room for data; for more data memory is mapped as long as it is needed. */
enum { ROOM = 64 << 10, DATA_AT = PAGE_BYTES + ARCH_GUEST_BLOCK, ALL = PAGE_BYTES + ROOM, BELOW_LIMIT = 16, END_MS = 5000, LOOK_MS = 20, PATIENCE_MS = 2000 };

/* --- it is made by the process's first thread, which is borrowed for that */

static int
borrowed(struct lender *l, int64_t *result, long nr, const uint64_t arg[6])
{
	struct arch_call call = {.nr = nr};
	int err;

	memcpy(call.arg, arg, sizeof(call.arg));
	err = tracee_call(l->thread, &call, result);
	return err < 0 ? err : *result < 0 && *result >= -4095 ? (int)*result : 0;
}
#define BORROWED(l, result, nr, ...) borrowed(l, result, nr, (const uint64_t[6]){__VA_ARGS__})

/* Both ends are made in the process; one of them is ours then. */
static int
make_socket(struct guest *g, struct lender *l)
{
	struct rlimit limit = {1024, 1024};
	int64_t result, high;
	int fds[2], err = BORROWED(l, &result, SYS_socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, l->thread->scratch);

	if (err == 0)
		err = mem_read(l->thread->mem, l->thread->scratch, fds, sizeof(fds));
	if (err < 0)
		return err;
	g->fd = (int)syscall(SYS_pidfd_getfd, l->target.pidfd, fds[0], 0);
	err = g->fd < 0 ? -errno : 0;
	BORROWED(l, &result, SYS_close, (uint64_t)fds[0]);
	/* Out of the way of the program's own numbers, if it may have so many. */
	g->theirs = fds[1];
	prlimit(g->pid, RLIMIT_NOFILE, NULL, &limit);
	if (BORROWED(l, &high, SYS_fcntl, (uint64_t)fds[1], F_DUPFD_CLOEXEC, min_u64(limit.rlim_cur, 4096) - BELOW_LIMIT) == 0) {
		BORROWED(l, &result, SYS_close, (uint64_t)fds[1]);
		g->theirs = (int)high;
	}
	return err;
}

static int
make_room(struct guest *g, struct lender *l)
{
	int64_t at, result;
	uint64_t fd = (uint64_t)g->theirs;
	int err = BORROWED(l, &at, SYS_mmap, 0, ALL, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, (uint64_t)-1, 0);

	if (err < 0)
		return err;
	g->room = (taddr)at;
	err = mem_write(l->thread->mem, g->room, arch_guest, (size_t)(arch_guest_end - arch_guest));
	if (err == 0)
		err = mem_write(l->thread->mem, g->room + PAGE_BYTES + ARCH_GUEST_REQUEST, &fd, sizeof(fd));
	return err < 0 ? err : BORROWED(l, &result, SYS_mprotect, g->room, PAGE_BYTES, PROT_READ | PROT_EXEC);
}

static int
make_thread(struct guest *g, struct lender *l)
{
	const uint64_t flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
	taddr gadget = l->thread->gadget;
	int64_t result;
	int err;

	/* At its own code, so that it is born in it. */
	l->thread->gadget = g->room;
	err = BORROWED(l, &result, SYS_clone, flags, 0, 0, 0, 0, g->room + PAGE_BYTES);
	l->thread->gadget = gadget;
	return err;
}

/* Is this thread's instruction in our room? It is, and said, when it waits for us. */
static bool
is_ours(const struct guest *g, int tid)
{
	char name[64], *text = NULL;
	unsigned long long ip = 0;
	const char *p;

	snprintf(name, sizeof(name), "task/%d/syscall", tid);
	if (read_file(g->proc, name, &text) > 0 && (p = strrchr(text, ' ')) != NULL)
		ip = strtoull(p, NULL, 16);
	free(text);
	return ip >= g->room && ip < g->room + PAGE_BYTES;
}

/* What number it has for us: the process may count otherwise. */
static int
find_thread(struct guest *g)
{
	int64_t end = now_ms() + END_MS;

	while (g->tid == 0 && now_ms() < end) {
		int *tids = NULL, err;
		size_t n = 0;

		err = proc_list(g->proc, "task", &tids, &n);
		for (size_t i = 0; err == 0 && i < n; i++)
			if (is_ours(g, tids[i]))
				g->tid = tids[i];
		free(tids);
		if (err < 0)
			return err;
	}
	return g->tid == 0 ? -ESRCH : 0;
}

static int64_t ask(struct guest *g, const struct arch_call *call, const volatile int *cancelled);

/* One after the other, as the same thread is borrowed; another session may have it for a moment. */
static pthread_mutex_t borrowing = PTHREAD_MUTEX_INITIALIZER;

static int
lend_patiently(struct lender *l, pid_t pid)
{
	int64_t end = now_ms() + PATIENCE_MS;

	for (;;) {
		bool last = now_ms() >= end;
		int err;

		log_hush(!last);
		err = lend_begin(l, pid, pid);
		log_hush(-!last);
		if (err != -EBUSY || last) {
			if (err < 0 && !last)
				fail(-err, "%s", log_last_hushed());
			return err;
		}
		lend_end(l);
		*l = (struct lender){.target = TARGET_NONE, .block_ms = l->block_ms};
		poll(NULL, 0, LOOK_MS);
	}
}

int
guest_begin(struct guest *g, pid_t pid)
{
	struct lender l = {.target = TARGET_NONE, .block_ms = 10000};
	int64_t result;
	int err, ended;

	*g = (struct guest){.pid = pid, .fd = -1, .theirs = -1, .proc = -1, .mem = -1};
	pthread_mutex_lock(&borrowing);
	err = lend_patiently(&l, pid);
	if (err == 0 && l.target.status.seccomp != 0)
		err = fail(EPERM, "pid %d: has seccomp filters, which a thread of ours would be under", pid);
	if (err == 0 && ((g->proc = fcntl(l.target.proc, F_DUPFD_CLOEXEC, 0)) < 0 || (g->mem = openat(g->proc, "mem", O_RDWR | O_CLOEXEC)) < 0))
		err = -errno;
	if (err == 0)
		err = make_socket(g, &l);
	if (err == 0)
		err = make_room(g, &l);
	if (err == 0)
		err = make_thread(g, &l);
	if (err < 0 && l.thread != NULL && !l.thread->dead) {
		if (g->room != 0)
			BORROWED(&l, &result, SYS_munmap, g->room, ALL);
		if (g->theirs >= 0)
			BORROWED(&l, &result, SYS_close, (uint64_t)g->theirs);
	}
	ended = lend_end(&l);
	pthread_mutex_unlock(&borrowing);
	if (err == 0)
		err = ended;
	/* It answers: so it is there, and waits for the next. */
	if (err == 0 && (result = ask(g, &(struct arch_call){.nr = SYS_gettid}, NULL)) <= 0)
		err = -EIO;
	if (err == 0)
		err = find_thread(g);
	if (err == 0) /* a child of the process has no use for it */
		ask(g, &(struct arch_call){SYS_madvise, {g->room, ALL, MADV_DONTFORK}}, NULL);
	if (err < 0) {
		close_fd(&g->fd);
		close_fd(&g->proc);
		close_fd(&g->mem);
	}
	return err;
}

/* --- calls */

/* It waits in a call: let that return. Only for this it is traced. */
static void
interrupt(struct guest *g)
{
	struct tracee t = {.pid = g->pid, .tid = g->tid};

	if (tracee_seize(&t, g->pid, g->tid, 0) < 0)
		return;
	if (tracee_wait_interrupt(&t, now_ms() + END_MS) == 0 && arch_restart_kind(&t.regs, syscall_eintr_restarts) != RESTART_NONE) {
		/* But not if that was for the next call. */
		bool waits = t.regs.orig_rax == SYS_read && t.regs.rdi == (uint64_t)g->theirs;

		if (!waits) {
			arch_set_eintr(&t.regs);
			tracee_set_regs(g->tid, &t.regs);
		}
	}
	tracee_detach(&t);
}

/* Is it still there? The process may have ended, or execute another program; who else has its socket then does not count. */
static bool
is_there(const struct guest *g)
{
	char name[32] = "task";

	if (g->tid != 0)
		snprintf(name, sizeof(name), "task/%d", g->tid);
	return faccessat(g->proc, name, F_OK, 0) == 0;
}

static int64_t
ask(struct guest *g, const struct arch_call *call, const volatile int *cancelled)
{
	uint64_t request[ARCH_GUEST_REQUEST / 8] = {(uint64_t)call->nr};
	int64_t result, end = cancelled == NULL ? now_ms() + END_MS : INT64_MAX;
	struct pollfd p = {g->fd, POLLIN, 0};

	memcpy(request + 1, call->arg, sizeof(call->arg));
	if (send(g->fd, request, sizeof(request), MSG_NOSIGNAL) != sizeof(request))
		return -ESRCH;
	/* Nothing tells of the end of a thread, and a cancel may come at any instant: so one looks now and then. */
	while (poll(&p, 1, LOOK_MS) <= 0) {
		if (!is_there(g) || now_ms() >= end)
			return -ESRCH;
		if (cancelled != NULL && *cancelled)
			interrupt(g);
	}
	return recv(g->fd, &result, sizeof(result), 0) == sizeof(result) ? result : -ESRCH;
}

int64_t
guest_call(struct guest *g, struct calldata *c, const volatile int *cancelled)
{
	bool much = c->data.len > ROOM - DATA_AT + PAGE_BYTES;
	int64_t at = (int64_t)(g->room + DATA_AT), result;
	struct arch_call call;

	/* Its own way to us is none of the program's files. */
	for (unsigned i = 0; i < c->nargs; i++)
		if (calldata_is(&c->arg[i], "fd") && (int)c->arg[i].value == g->theirs)
			return -EBADF;
	if (c->nr == SYS_close_range)
		return -EINVAL;
	if (much)
		at = ask(g, &(struct arch_call){SYS_mmap, {0, page_up(c->data.len), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, (uint64_t)-1, 0}}, NULL);
	if (at < 0 && at >= -4095)
		return at;
	call = calldata_native(c, (taddr)at);
	/* Of the program that it was made in: another one that is executed there since has other memory. */
	if (*cancelled)
		result = ARCH_NOT_BEGUN;
	else if (c->data.len > 0 && mem_write(g->mem, (taddr)at, c->data.data, c->data.len) < 0)
		result = -ESRCH;
	else
		result = ask(g, &call, cancelled);
	if (result != -ESRCH && result != ARCH_NOT_BEGUN && c->data.len > 0 && mem_read(g->mem, (taddr)at, c->data.data, c->data.len) < 0)
		result = -ESRCH;
	calldata_native_done(c);
	if (much)
		ask(g, &(struct arch_call){SYS_munmap, {(taddr)at, page_up(c->data.len)}}, NULL);
	return result;
}

/* Is our room still there, in the memory of this program? */
static bool
has_room(const struct guest *g, int mem)
{
	unsigned char code[256];
	size_t n = min_u64(sizeof(code), (size_t)(arch_guest_end - arch_guest));

	return mem_read(mem, g->room, code, n) == 0 && memcmp(code, arch_guest, n) == 0;
}

void
guest_end(struct guest *g)
{
	struct lender l = {.target = TARGET_NONE, .block_ms = 10000};
	int64_t result, end = now_ms() + END_MS;

	if (g->fd < 0)
		return;
	close_fd(&g->fd);
	/* It ends by itself, and then its memory is nobody's. */
	while (is_there(g) && now_ms() < end)
		sched_yield();
	pthread_mutex_lock(&borrowing);
	log_hush(1);
	/* Not that of a program which is executed there since, or of another process with the number. */
	if (!is_there(g) && has_room(g, g->mem) && faccessat(g->proc, "task", F_OK, 0) == 0 && lend_patiently(&l, g->pid) == 0 &&
	    has_room(g, l.target.mem))
		BORROWED(&l, &result, SYS_munmap, g->room, ALL);
	lend_end(&l);
	log_hush(-1);
	pthread_mutex_unlock(&borrowing);
	close_fd(&g->mem);
	close_fd(&g->proc);
}
