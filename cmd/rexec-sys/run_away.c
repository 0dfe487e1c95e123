/*
 * Processes that have left their files at home: restart has made them, installed the filter in each, and has become us, their tracer. They stand
 * still until home has said that it is there. Signals that come from home get what home says of them when they are delivered: to send
 * them so is not permitted to anybody.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "io.h"
#include "log.h"
#include "outside.h"
#include "proc.h"
#include "record.h"
#include "run.h"

/* Above any that home has given out. */
enum { FIRST_NUMBER = 1 << 23, FORWARDED_MAX = 4096 };
/* How a signal comes: to a process, to a thread, or as the answer to whether one stops it. */
enum { TO_PROCESS, TO_THREAD, STOPS };

struct forwarded {
	uint64_t id;
	pid_t pid;
	siginfo_t info; /* as it came to the original */
};

/* For a process that is just being born. */
struct early {
	uint32_t number, how;
	unsigned char info[sizeof(siginfo_t)];
};
enum { EARLY_MAX = 256 };

/* --- signals */

/* One that is not queued twice: what is said of the later one does for both. */
static struct forwarded *
same_pending(struct run *r, pid_t pid, int sig)
{
	for (size_t i = 0; i < r->nforwarded && sig < SIGRTMIN; i++)
		if (r->forwarded[i].pid == pid && r->forwarded[i].info.si_signo == sig)
			return &r->forwarded[i];
	return NULL;
}

static bool
has_no_effect(const struct thread *t, int sig)
{
	struct proc_status st = {0};
	bool none = thread_read_status(t, &st) == 0 && ((st.sigblk | st.sigign) >> (sig - 1) & 1) != 0;

	proc_status_fini(&st);
	return none;
}

static void
forward(struct run *r, const struct thread *t, uint32_t how, const unsigned char info[sizeof(siginfo_t)])
{
	union {
		siginfo_t info;
		unsigned char bytes[sizeof(siginfo_t)];
	} u;
	struct forwarded *f;
	pid_t pid = t->process->pid;
	int sig;

	memcpy(u.bytes, info, sizeof(siginfo_t));
	sig = u.info.si_signo;
	if (sig <= 0 || sig > 64)
		return;
	if (how == STOPS && t->process->asked_stop != 0) {
		t->process->let_stop = t->process->asked_stop;
		t->process->asked_stop = 0;
		/* The first has nobody here for whose sake the kernel would let it be stopped so. */
		kill(pid, pid == r->first ? SIGSTOP : t->process->let_stop);
	}
	if (how == STOPS)
		return;
	if (sig == SIGKILL || sig == SIGSTOP) {
		t->process->asked_stop = 0;
		kill(pid, sig);
		return;
	}
	/* Here it would do nothing; so it is not to keep the call at home from being made. */
	if ((sig == SIGTTIN || sig == SIGTTOU) && has_no_effect(t, sig)) {
		away_tell(r, MSG_BLOCKED, (const uint32_t[2]){t->number, (uint32_t)sig}, 2);
		return;
	}
	f = same_pending(r, pid, sig);
	if (f == NULL) {
		if (r->nforwarded >= FORWARDED_MAX)
			r->forwarded[0] = r->forwarded[--r->nforwarded];
		if ((f = ARRAY_ADD(r->forwarded, r->nforwarded)) == NULL)
			return;
		f->id = ++r->last_forwarded;
	}
	f->pid = pid;
	memcpy(&f->info, info, sizeof(siginfo_t));
	/* Who takes it by sigwaitinfo(2) sees who sent it, as if by sigqueue(3). */
	u.info.si_code = SI_QUEUE;
	u.info.si_value.sival_ptr = (void *)(uintptr_t)f->id;
	if (how == TO_THREAD)
		syscall(SYS_rt_tgsigqueueinfo, pid, t->tid, sig, &u.info);
	else
		syscall(SYS_rt_sigqueueinfo, pid, sig, &u.info);
}

bool
away_signal(struct run *r, struct thread *t, int sig, bool handled)
{
	siginfo_t info;

	if (ptrace(PTRACE_GETSIGINFO, t->tid, NULL, &info) == 0 && info.si_code == SI_QUEUE)
		for (size_t i = 0; i < r->nforwarded; i++) {
			struct forwarded *f = &r->forwarded[i];

			if (f->id != (uint64_t)(uintptr_t)info.si_value.sival_ptr || f->pid != t->process->pid)
				continue;
			ptrace(PTRACE_SETSIGINFO, t->tid, NULL, &f->info);
			*f = r->forwarded[--r->nforwarded];
			break;
		}
	/* Whether a terminal's signal stops it depends on who else is in its session, at home. */
	if (handled || (sig != SIGTSTP && sig != SIGTTIN && sig != SIGTTOU) || has_no_effect(t, sig))
		return true;
	if (t->process->let_stop == sig) {
		t->process->let_stop = 0;
		return true;
	}
	t->process->asked_stop = sig;
	away_stopped(r, t, sig, true);
	return false;
}

void
away_tell(struct run *r, enum msg_type type, const uint32_t *words, size_t n)
{
	struct buf b = {0};

	for (size_t i = 0; i < n; i++)
		buf_put_u32(&b, words[i]);
	if (!r->ended && (b.failed || link_send(&r->remote.link, type, 0, b.data, b.len) < 0))
		run_lost(r, NULL);
	buf_fini(&b);
}

void
away_stopped(struct run *r, struct thread *t, int sig, bool asks)
{
	away_tell(r, MSG_STOPPED, (const uint32_t[3]){t->number, (uint32_t)sig, asks}, 3);
}

void
away_received(struct run *r, const struct msg_header *h, const unsigned char *body)
{
	struct rbuf b = {body, h->length, 0, false};
	uint32_t number = rbuf_get_u32(&b), how = rbuf_get_u32(&b);
	struct early *e;
	const void *info;

	if (r->away && h->type == MSG_BORN) {
		fork_answered(r, h, body);
		return;
	}
	info = rbuf_get(&b, sizeof(siginfo_t));
	if (!r->away || h->type != MSG_SIGNAL || b.failed || rbuf_left(&b) > 0) {
		run_lost(r, "a message that makes no sense");
		return;
	}
	for (size_t i = 0; i < r->nthreads; i++)
		if (r->threads[i]->number == number && r->threads[i]->process != NULL) {
			forward(r, r->threads[i], how, info);
			return;
		}
	if (r->forking == NULL || r->forking->fork_number != number || r->nearly >= EARLY_MAX || (e = ARRAY_ADD(r->early, r->nearly)) == NULL)
		return;
	e->number = number;
	e->how = how;
	memcpy(e->info, info, sizeof(e->info));
}

void
away_born(struct run *r, struct thread *t)
{
	size_t left = 0;

	for (size_t i = 0; i < r->nearly; i++) {
		struct early e = r->early[i];

		if (e.number == t->number)
			forward(r, t, e.how, e.info);
		else
			r->early[left++] = e;
	}
	r->nearly = left;
}

/* --- the beginning */

static int
adopt(struct run *r, const struct handover_process *from)
{
	struct process *p = trace_adopt(r, from);
	int err = p == NULL ? fail(ENOMEM, "out of memory") : run_add_listener(r, p, (int)from->listener);

	for (size_t i = 0; i < from->nfds && err == 0; i++) {
		struct epoll *e = from->fds[i].epoll ? epoll_add(r) : NULL;

		if (from->fds[i].epoll && e == NULL)
			return fail(ENOMEM, "no memory for an epoll set");
		file_set(r, p, from->fds[i].fd, THERE);
		file_at(p, from->fds[i].fd)->epoll = e;
	}
	return err;
}

/* A process may look at our fds only if it is nobody else, and has no fewer rights: so one that is as it is shares them. */
static int
hold(void *ids)
{
	const uint32_t *id = ids;
	struct __user_cap_header_struct h = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct none[2] = {{0, 0, 0}, {0, 0, 0}};

	prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	if (syscall(SYS_setresgid, id[1], id[1], id[1]) < 0 || syscall(SYS_setresuid, id[0], id[0], id[0]) < 0)
		_exit(1);
	/* Of root all, as root has them. */
	if (id[0] != 0)
		syscall(SYS_capset, &h, none);
	prctl(PR_SET_DUMPABLE, 1);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;)
		pause();
}

static int
make_holder(struct run *r)
{
	static unsigned char stack[16 << 10] __attribute__((aligned(16)));
	struct proc_status st;
	uint32_t id[2];
	int err = thread_read_status(r->threads[0], &st);

	if (err < 0)
		return fail(-err, "pid %d: status: %s", r->first, strerror(-err));
	id[0] = (uint32_t)st.uid[1], id[1] = (uint32_t)st.gid[1];
	proc_status_fini(&st);
	r->holder = clone(hold, stack + sizeof(stack), CLONE_FILES | SIGCHLD, id);
	return r->holder < 0 ? fail_errno("fork") : 0;
}

static void
has_begun(const struct run *r, const struct handover *h)
{
	int pidfd, null;

	prctl(PR_SET_PDEATHSIG, 0);
	if (h->image >= 0)
		close((int)h->image);
	if (h->report >= 0) {
		pidfd = pidfd_open_(r->first);
		outside_tell((int)h->report, 'R', 0, pidfd);
		close_fd(&pidfd);
	}
	/* Whoever reads what we were given must not wait for us. */
	null = h->detached ? open("/dev/null", O_RDWR | O_CLOEXEC) : -1;
	for (int fd = 0; null >= 0 && fd < 3; fd++)
		dup2(null, fd);
	close_fd(&null);
}

int
run_away(int fd)
{
	struct handover h = {0};
	char program[] = "the program", *command[] = {program, NULL};
	struct run_options o = {.command = command};
	struct run r = {.options = &o, .status = -1, .signals = -1, .placeholder = -1, .away = true, .last_number = FIRST_NUMBER};
	int err = handover_read(&h, fd);

	if (err == 0 && h.nprocesses > 0 && h.processes[0].program != NULL)
		command[0] = h.processes[0].program;
	o.address = h.address;
	if (err == 0)
		err = remote_adopt(&r.remote, h.address, h.key, (int)h.in, (int)h.out, h.id);
	if (err == 0)
		err = run_prepare(&r);
	for (size_t i = 0; i < h.nprocesses && err == 0; i++)
		err = adopt(&r, &h.processes[i]);
	if (err == 0)
		err = make_holder(&r);
	if (err == 0)
		err = link_send(&r.remote.link, MSG_BEGUN, 0, NULL, 0);
	/* Else they end with us: none of them has run. */
	if (err == 0) {
		has_begun(&r, &h);
		trace_start(&r);
		run_loop(&r);
	}
	if (r.holder > 0 && r.holder != getpid())
		kill(r.holder, SIGKILL);
	remote_close(&r.remote);
	free(r.forwarded);
	free(r.early);
	record_free(&record_handover, &h);
	return err < 0 ? err : r.status;
}
