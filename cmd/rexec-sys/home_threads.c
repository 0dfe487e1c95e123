/*
 * Threads that execute calls for their copies: one stop a call. A thread that has nothing to do stands still for a while, so that the next call begins at
 * once, and then waits in pause(2), where signals reach it.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "home.h"
#include "io.h"
#include "log.h"
#include "proc.h"
#include "session.h"

/* Each thread has so much room for data; for more, memory is mapped for the call. */
enum { ROOM = 128 << 10 };

/* --- who there is */

struct home_process *
home_add_process(struct home *h, pid_t pid)
{
	struct home_process *p = calloc(1, sizeof(*p)), **slot = p != NULL ? ARRAY_ADD(h->processes, h->nprocesses) : NULL;
	struct proc_status st;
	char path[32];

	if (slot == NULL) {
		free(p);
		return NULL;
	}
	*slot = p;
	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	*p = (struct home_process){.pid = pid, .mem = open(path, O_RDWR | O_CLOEXEC), .proc = proc_open(pid), .exit_status = -1};
	if (p->mem < 0 || p->proc < 0 || proc_read_status(p->proc, &st) < 0)
		return NULL;
	p->inner = st.nspid[st.levels - 1];
	proc_status_fini(&st);
	return p;
}

struct home_thread *
home_add_thread(struct home *h, struct home_process *p, pid_t tid, uint32_t number)
{
	struct home_thread *t = calloc(1, sizeof(*t)), **slot = t != NULL ? ARRAY_ADD(h->threads, h->nthreads) : NULL;

	if (slot == NULL) {
		free(t);
		return NULL;
	}
	*slot = t;
	*t = (struct home_thread){.tid = tid, .number = number, .process = p};
	p->number = number;
	p->nthreads++;
	return t;
}

struct home_thread *
home_find_tid(const struct home *h, pid_t tid)
{
	for (size_t i = 0; i < h->nthreads; i++)
		if (h->threads[i]->tid == tid && !h->threads[i]->dead)
			return h->threads[i];
	return NULL;
}

struct home_thread *
home_find(const struct home *h, uint32_t number)
{
	for (size_t i = 0; i < h->nthreads; i++)
		if (h->threads[i]->number == number && !h->threads[i]->gone && !h->threads[i]->dead)
			return h->threads[i];
	return NULL;
}

/* Its copy cannot go on without it. */
static void
tell_killed(struct home *h, const struct home_process *p)
{
	if (h->begun && p->ending_ms == 0)
		home_put_signal(h, p->number, 0, &(siginfo_t){.si_signo = SIGKILL});
}

void
home_thread_over(struct home *h, struct home_thread *t, int status)
{
	struct home_process *p = t->process;

	t->dead = true;
	t->state = HOME_LEAVING;
	calldata_fini(&t->call);
	if (!t->gone)
		p->number = t->number;
	if (--p->nthreads > 0)
		return;
	p->dead = true;
	tell_killed(h, p);
	if (!p->first)
		return;
	h->over = true;
	debug(LOG_VERBOSE, "pid %d: ended (%s %d)", p->pid, WIFEXITED(status) ? "status" : "signal",
	    WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
}

void
home_sweep(struct home *h)
{
	for (size_t i = 0; i < h->nthreads; i++)
		if (h->threads[i]->dead) {
			free(h->threads[i]);
			h->threads[i--] = h->threads[--h->nthreads];
		}
	for (size_t i = 0; i < h->nprocesses; i++)
		if (h->processes[i]->dead) {
			close_fd(&h->processes[i]->mem);
			close_fd(&h->processes[i]->proc);
			free(h->processes[i]);
			h->processes[i--] = h->processes[--h->nprocesses];
		}
}

/* --- giving it a call */

void
home_go(struct home_thread *t, enum __ptrace_request how, int sig)
{
	ptrace(how, t->tid, NULL, (long)sig); /* ESRCH: it has been killed, and its end comes */
}

static void
set_going(struct home_thread *t, const struct arch_call *call, enum home_state state)
{
	struct arch_regs regs = t->regs;

	arch_set_call(&regs, t->process->code, call);
	log_hush(1);
	if (state == HOME_BUSY && t->process->blocked != 0)
		t->masked = tracee_set_sigmask(t->tid, t->process->blocked) == 0;
	if (tracee_set_regs(t->tid, &regs) == 0)
		home_go(t, PTRACE_CONT, 0);
	log_hush(-1);
	t->state = state;
}

int
home_take_thread(struct home_thread *t)
{
	int err = tracee_set_sigmask(t->tid, 0);

	t->taken = err == 0;
	t->state = HOME_READY;
	t->ready_ms = now_ms();
	return err;
}

void
home_rest(struct home_thread *t)
{
	set_going(t, &(struct arch_call){.nr = SYS_pause}, HOME_RESTING);
}

/*
 * The first thread of a process that has been killed is told of only when all others have been looked at, also one that was just being made.
 * The kernel tells of stops of what is traced, too, whatever it is asked for: also of the first one of a child that nobody here knows yet.
 */
static void
reap_others(struct home *h)
{
	siginfo_t info = {0};
	int status;

	while (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT | __WALL) == 0 && info.si_pid != 0) {
		struct home_thread *t = home_find_tid(h, info.si_pid);

		if (waitpid(info.si_pid, &status, __WALL | WNOHANG) == info.si_pid) {
			if (t != NULL)
				home_event(h, t, status);
			else if (WIFSTOPPED(status))
				h->unborn = info.si_pid;
		}
		info.si_pid = 0;
	}
}

/* Until it stands ready or in a group-stop, or is gone: what happens on the way is handled. Returns false where it is gone. */
static bool
await(struct home *h, struct home_thread *t, enum home_state while_in)
{
	const struct timespec little = {0, 2000000};
	sigset_t chld;

	sigemptyset(&chld);
	sigaddset(&chld, SIGCHLD);
	while (!t->dead && t->state == while_in && !t->grouped) {
		int status;
		pid_t got = waitpid(t->tid, &status, __WALL | WNOHANG);

		if (got == t->tid) {
			home_event(h, t, status);
			continue;
		}
		if (got < 0 && errno != EINTR)
			return false;
		/* It may be one of another thread. */
		h->missed = true;
		if (sigtimedwait(&chld, NULL, &little) < 0)
			reap_others(h);
	}
	return !t->dead;
}

bool
home_bring(struct home *h, struct home_thread *t)
{
	if (t->dead)
		return false;
	if (t->state == HOME_RESTING && !t->grouped) {
		t->wanted = true;
		ptrace(PTRACE_INTERRUPT, t->tid, NULL, NULL);
		if (!await(h, t, HOME_RESTING))
			return false;
		t->wanted = false;
	}
	return t->state == HOME_READY;
}

bool
home_force(struct home *h, struct home_thread *t)
{
	t->forced = true;
	if (t->grouped && t->state == HOME_RESTING) {
		t->grouped = false;
		t->wanted = true;
		ptrace(PTRACE_INTERRUPT, t->tid, NULL, NULL);
		await(h, t, HOME_RESTING);
		t->wanted = false;
	}
	home_bring(h, t);
	t->forced = false;
	return !t->dead && t->state == HOME_READY;
}

int64_t
home_own(struct home *h, struct home_thread *t, long nr, const uint64_t arg[6])
{
	struct arch_call call = {.nr = nr};

	memcpy(call.arg, arg, sizeof(call.arg));
	if (!home_bring(h, t))
		return -ESRCH;
	t->born = 0;
	set_going(t, &call, HOME_OWN);
	return await(h, t, HOME_OWN) && t->state == HOME_READY ? t->result : -ESRCH;
}

/*
 * A stop signal that is sent takes a SIGCONT away which has come and is not delivered yet, and nobody would continue it again. So another signal is sent,
 * and is made the stop when it is delivered.
 */
void
home_stop(struct home_process *p)
{
	siginfo_t info = {.si_signo = HOME_VEHICLE, .si_code = SI_QUEUE};

	info.si_pid = getpid();
	info.si_value.sival_ptr = p;
	syscall(SYS_rt_sigqueueinfo, p->pid, HOME_VEHICLE, &info);
}

/*
 * Not by a SIGCONT: one of somebody else, who has stopped it anew meanwhile, would not be queued beside it, and be lost.
 */
void
home_continue(const struct home *h, struct home_process *p)
{
	p->resume = true;
	p->stopped = false;
	p->stop = 0;
	for (size_t i = 0; i < h->nthreads; i++)
		if (h->threads[i]->process == p && h->threads[i]->grouped && !h->threads[i]->dead) {
			h->threads[i]->grouped = false;
			ptrace(PTRACE_INTERRUPT, h->threads[i]->tid, NULL, NULL);
		}
}

/* --- a call of its copy */

static void
answer(struct home *h, struct home_thread *t, int64_t result)
{
	static const unsigned char room[MSG_HEADER];
	struct buf out = {0};
	const void *tail = NULL;
	size_t tail_len = 0;

	/* Who has made it waits for nothing any more. */
	if (t->gone || t->process->ending_ms != 0) {
		calldata_fini(&t->call);
		return;
	}
	buf_put(&out, room, sizeof(room));
	calldata_put_result(&out, &t->call, result, &tail, &tail_len);
	link_send_parts(&h->link, MSG_RESULT, t->id, &out, tail, tail_len); /* that it has gone shows in what comes */
	buf_fini(&out);
	calldata_fini(&t->call);
}

static int
find_room(struct home *h, struct home_thread *t, size_t len)
{
	taddr *at = len <= ROOM ? &t->room : &t->data;
	int64_t result;

	t->data_len = len > ROOM ? page_up(len) : 0;
	if (*at == 0 || len > ROOM) {
		result = HOME_OWN_CALL(h, t, SYS_mmap, 0, len > ROOM ? t->data_len : ROOM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, (uint64_t)-1, 0);
		if (result < 0 && result >= -4095) {
			t->data_len = 0;
			return (int)result;
		}
		*at = (taddr)result;
	}
	t->data = *at;
	return 0;
}

void
home_begin(struct home *h, struct home_thread *t)
{
	struct calldata *c = &t->call;
	struct arch_call call;
	int err;

	t->waiting = true;
	if (!home_bring(h, t) || !t->waiting)
		return; /* when it can, or never; or it has been begun on the way */
	t->waiting = false;
	err = call_is_strange(c) ? -ENOPROTOOPT : calldata_native_room(c);
	call_tame(c);
	if (err == 0)
		err = find_room(h, t, c->data.len);
	if (err == 0) {
		call = calldata_native(c, t->data);
		err = c->data.len > 0 ? mem_write(t->process->mem, t->data, c->data.data, c->data.len) : 0;
	}
	if (t->dead)
		return;
	if (err < 0) {
		answer(h, t, err);
		return;
	}
	t->cancel = false;
	set_going(t, &call, HOME_BUSY);
	h->just_called = true;
}

/* It stands ready: what is it to do? */
void
home_next(struct home *h, struct home_thread *t)
{
	if (t->process->exit_status >= 0)
		home_exit(t, t->process->exit_status);
	else if (t->gone)
		home_leave(h, t);
	else if (t->waiting)
		home_begin(h, t);
}

void
home_call_done(struct home *h, struct home_thread *t, int64_t result)
{
	struct calldata *c = &t->call;
	bool own = t->state == HOME_OWN;

	if (t->state == HOME_BUSY) {
		if (c->data.len > 0 && result != ARCH_NOT_BEGUN && mem_read(t->process->mem, t->data, c->data.data, c->data.len) < 0)
			result = -EFAULT;
		calldata_native_done(c);
		t->state = HOME_READY;
		if (t->masked) {
			t->process->blocked = 0;
			tracee_set_sigmask(t->tid, 0);
			t->masked = false;
		}
		answer(h, t, result);
		if (t->data_len > 0)
			HOME_OWN_CALL(h, t, SYS_munmap, t->data, t->data_len);
		if (t->dead)
			return;
	}
	t->state = HOME_READY;
	t->result = result;
	t->ready_ms = now_ms();
	/* Whoever has had a call of ours executed goes on with it himself. */
	if (!own)
		home_next(h, t);
}

void
home_cancel(struct home_thread *t)
{
	if (t->state != HOME_BUSY || t->dead)
		return;
	t->cancel = true; /* when it comes out of a group-stop */
	if (!t->grouped)
		ptrace(PTRACE_INTERRUPT, t->tid, NULL, NULL);
}

void
home_leave(struct home *h, struct home_thread *t)
{
	t->gone = true;
	t->waiting = false;
	if (t->state == HOME_BUSY)
		home_cancel(t); /* and then */
	else if (home_bring(h, t))
		set_going(t, &(struct arch_call){.nr = SYS_exit}, HOME_LEAVING);
}

void
home_exit(struct home_thread *t, int status)
{
	set_going(t, &(struct arch_call){SYS_exit_group, {(uint64_t)status}}, HOME_LEAVING);
}
