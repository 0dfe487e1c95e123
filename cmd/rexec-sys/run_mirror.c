/*
 * Forks, process groups and sessions of processes whose originals are at home: they are made there first, and here as well, with the same numbers. So a
 * terminal of home knows them, and nobody has to translate a number.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "away_filter.h"
#include "io.h"
#include "log.h"
#include "run.h"

/* --- groups and sessions */

/* Is there such a process, or group (negative), in these namespaces? 1 is ourselves. */
static bool
is_here(int64_t pid)
{
	return pid != 0 && pid != 1 && pid != -1 && (kill((pid_t)pid, 0) == 0 || errno != ESRCH);
}

/* Limits of files count at home, all others here; who asks is told those of here, which are the same. */
static void
limit(struct run *r, struct thread *t)
{
	unsigned at = t->call.nr == SYS_prlimit64;
	uint64_t resource = t->call.arg[at], new = t->call.arg[at + 1];

	if (new != 0 && (resource == RLIMIT_NOFILE || resource == RLIMIT_FSIZE) && (at == 0 || t->call.arg[0] == 0 || is_here((int)t->call.arg[0])))
		call_forward(r, t);
	else
		call_continue(t);
}

bool
mirror_call(struct run *r, struct thread *t)
{
	if (!away_filter_mirrors(t->call.nr))
		return false;
	if (t->call.nr == SYS_setrlimit || t->call.nr == SYS_prlimit64) {
		limit(r, t);
		return true;
	}
	/* One of these processes is nearer; a group may have members at home that have not moved. */
	if ((t->call.nr == SYS_kill || t->call.nr == SYS_rt_sigqueueinfo) && (int)t->call.arg[0] > 0 && is_here((int)t->call.arg[0]))
		call_continue(t);
	else
		call_forward(r, t);
	return true;
}

bool
mirror_complete(struct thread *t)
{
	int group = (int)t->call.arg[1];
	bool limits = t->call.nr == SYS_setrlimit || t->call.nr == SYS_prlimit64;

	if (t->result < 0 || (t->call.nr != SYS_setsid && t->call.nr != SYS_setpgid && !limits))
		return false;
	/* Into a group whose leader has not moved: there is none here, and what counts is home. */
	if (t->call.nr == SYS_setpgid && group > 0 && group != (int)t->call.arg[0] && !is_here(-group) && !is_here(group))
		return false;
	call_continue(t);
	return true;
}

/* --- forks */

static void
ask(struct run *r, struct thread *t)
{
	const struct process *from = t->process;
	struct buf b = {0};

	r->forking = t;
	t->fork = FORK_ASKED;
	t->fork_number = ++r->last_number;
	t->fork_child = (t->fork_flags & CLONE_FILES) != 0 ? NULL : process_copy(r, from);
	buf_put_u32(&b, t->fork_number);
	buf_put_u32(&b, t->number);
	buf_put_u64(&b, t->fork_flags & (CLONE_FILES | CLONE_FS | CLONE_THREAD));
	if (t->fork_child != NULL)
		process_put_files(&b, from);
	if (b.failed || link_send(&r->remote.link, MSG_FORK, 0, b.data, b.len) < 0)
		run_lost(r, NULL);
	buf_fini(&b);
}

static void
next(struct run *r)
{
	r->forking = NULL;
	for (size_t i = 0; i < r->nthreads && r->forking == NULL && !r->ended; i++)
		if (r->threads[i]->fork == FORK_QUEUED)
			ask(r, r->threads[i]);
}

bool
fork_stop(struct run *r, struct thread *t)
{
	struct arch_regs regs;

	if (!r->away || thread_get_regs(t, &regs) < 0 || !away_filter_forks((long)regs.orig_rax))
		return false;
	t->peeked = 0;
	t->fork_flags = regs.orig_rax == SYS_clone ? regs.rdi : regs.orig_rax == SYS_vfork ? CLONE_VM | CLONE_VFORK : 0;
	if (regs.orig_rax == SYS_clone3 && thread_read(t, regs.rdi, &t->fork_flags, sizeof(t->fork_flags)) < 0)
		t->fork_flags = 0; /* it fails */
	t->fork = FORK_QUEUED;
	if (r->forking == NULL)
		next(r);
	return true;
}

/* Nothing has come of it. */
static void
give_up(struct run *r, struct thread *t)
{
	if (t->fork_child != NULL)
		process_remove(r, t->fork_child);
	t->fork_child = NULL;
	t->fork = FORK_NONE;
	if (r->forking == t)
		next(r);
}

void
fork_answered(struct run *r, const struct msg_header *h, const unsigned char *body)
{
	struct rbuf b = {body, h->length, 0, false};
	uint32_t number = rbuf_get_u32(&b);
	int64_t pid = (int64_t)rbuf_get_u64(&b);
	struct thread *t = r->forking;
	struct arch_regs regs;
	char text[24];

	if (b.failed) {
		run_lost(r, "a message that makes no sense");
		return;
	}
	if (t == NULL || t->fork != FORK_ASKED || t->fork_number != number) {
		away_tell(r, MSG_GONE, &number, 1); /* its parent has been killed */
		return;
	}
	if (pid <= 0) {
		if (thread_get_regs(t, &regs) == 0) {
			regs.orig_rax = (uint64_t)-1;
			regs.rax = (uint64_t)pid;
			thread_set_regs(t, &regs);
		}
		give_up(r, t);
		ptrace(PTRACE_CONT, t->tid, NULL, NULL);
		return;
	}
	t->fork = FORK_GOING;
	t->fork_pid = (pid_t)pid;
	snprintf(text, sizeof(text), "%d", (int)pid - 1);
	write_file(AT_FDCWD, "/proc/sys/kernel/ns_last_pid", text);
	ptrace(PTRACE_SYSCALL, t->tid, NULL, NULL);
}

bool
fork_failed(struct run *r, struct thread *t)
{
	if (t->fork != FORK_GOING)
		return false;
	away_tell(r, MSG_GONE, &t->fork_number, 1);
	give_up(r, t);
	return true;
}

struct process *
fork_done(struct run *r, struct thread *t, struct thread *child)
{
	struct process *p = t->fork_child != NULL ? t->fork_child : t->process;

	if (child->tid != t->fork_pid)
		note("pid %d: is %d at home, as that number is taken here: who sends it signals by number does not find it", child->tid, t->fork_pid);
	child->number = t->fork_number;
	t->fork_child = NULL;
	t->fork = FORK_NONE;
	next(r);
	return p;
}

void
fork_drop(struct run *r, struct thread *t)
{
	if (t->fork == FORK_GOING)
		away_tell(r, MSG_GONE, &t->fork_number, 1);
	if (t->fork != FORK_NONE)
		give_up(r, t);
}
