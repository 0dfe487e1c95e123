/*
 * rexec-sys home: waits for the copy, takes the originals over, and ends when the first of them does.
 */
#include "home.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <sysexits.h>
#include <time.h>
#include <unistd.h>

#include "addr.h"
#include "io.h"
#include "kernel_abi.h"
#include "log.h"
#include "outside.h"
#include "proc.h"
#include "record.h"
#include "session.h"

enum { OPTIONS = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_EXITKILL };
enum { HELLO = 16, BEGIN_MS = 60000 };
#ifndef PTRACE_GET_RSEQ_CONFIGURATION
#define PTRACE_GET_RSEQ_CONFIGURATION 0x420f
#endif
#define RSEQ_UNREGISTER 1
#define NO_LINK ((struct link){.in = -1, .out = -1, .urgent = -1})

/* --- who is here */

static int
list_processes(struct home *h)
{
	for (size_t i = 0; i < h->handover->nprocesses; i++) {
		const struct handover_process *from = &h->handover->processes[i];
		struct home_process *p = home_add_process(h, (pid_t)from->pid);

		if (p == NULL)
			return fail(ESRCH, "pid %lld: has ended", (long long)from->pid);
		p->first = i == 0;
		for (size_t k = 0; k < from->nthreads; k++) {
			struct home_thread *t = home_add_thread(h, p, (pid_t)from->threads[k].tid, (uint32_t)from->threads[k].number);

			if (t == NULL)
				return fail(ENOMEM, "out of memory");
			if (tracee_get_regs(t->tid, &t->regs) < 0 || tracee_get_sigmask(t->tid, &t->mask) < 0)
				return -ESRCH;
		}
		for (size_t k = 0; k < from->npending; k++)
			if (from->pending[k] > 0 && from->pending[k] <= 64)
				p->known[from->pending[k]]++;
	}
	return 0;
}

/* --- waiting for the copy */

/* Does he have the image? Then he is told who he will be. */
static int
greet(struct home *h)
{
	const unsigned char *body;
	struct proc_status st;
	struct msg_header m;
	struct buf facts = {0};
	uint32_t ids[2][3], *groups;
	int err;

	link_start(&h->link, SIDE_HOME);
	err = link_receive(&h->link, &m, &body, true, now_ms() + LINK_HANDSHAKE_MS);
	if (err == 0 && (m.type != MSG_ADOPT || m.length != HELLO + 32 || msg_get_hello(body, m.length) < 0))
		err = fail(EPROTO, "%s: speaks another version of the protocol, or of something else", h->link.peer);
	if (err == 0 && memcmp(body + HELLO, h->handover->id, 32) != 0)
		err = fail(EPERM, "%s: came with another image", h->link.peer);
	if (err == 0)
		err = proc_read_status(h->processes[0]->proc, &st);
	if (err < 0) {
		link_fail(&h->link, "not the home of this image");
		return err;
	}
	groups = calloc(st.ngroups + 1, sizeof(*groups));
	for (size_t i = 0; groups != NULL && i < st.ngroups; i++)
		groups[i] = (uint32_t)st.groups[i];
	for (size_t i = 0; i < 3; i++)
		ids[0][i] = (uint32_t)st.uid[i], ids[1][i] = (uint32_t)st.gid[i];
	put_facts(&facts, ids[0], ids[1], groups, groups != NULL ? min_u64(st.ngroups, 1024) : 0);
	err = link_send(&h->link, MSG_ADOPTED, 0, facts.data, facts.len);
	if (err == 0)
		err = link_receive(&h->link, &m, &body, true, now_ms() + BEGIN_MS);
	if (err == 0 && m.type != MSG_BEGUN)
		err = -EPROTO;
	buf_fini(&facts);
	free(groups);
	proc_status_fini(&st);
	return err == -ECONNRESET ? fail(ECONNRESET, "%s: went away before it began", h->link.peer) : err;
}

/* Signals that come while we wait: to end, or that one of the originals has been killed. */
static int
take_signals(const struct home *h)
{
	struct signalfd_siginfo info;

	while (read(h->signals, &info, sizeof(info)) == sizeof(info)) {
		if (info.ssi_signo != SIGCHLD)
			return fail(EINTR, "ended before the copy came");
		for (size_t i = 0; i < h->nthreads; i++) {
			int status;

			if (waitpid(h->threads[i]->tid, &status, __WALL | WNOHANG) > 0 && !WIFSTOPPED(status))
				return fail(ESRCH, "pid %d: was killed before the copy came", h->threads[i]->process->pid);
		}
	}
	return 0;
}

/* Why does nobody come any more? The one who had the image has gone, perhaps with a word. */
static int
image_lost(const struct home *h)
{
	const unsigned char *body;
	struct msg_header m;
	struct link l;
	int err;

	link_init(&l, (int)h->handover->image, (int)h->handover->image, "the reader of the image");
	link_start(&l, SIDE_HOME);
	err = link_receive(&l, &m, &body, false, 0);
	return err == -EREMOTEIO ? err : fail(ECONNRESET, "the reader of the image has gone");
}

static int
wait_for_copy(struct home *h, const struct addr *a)
{
	struct pollfd p[3] = {{h->signals, POLLIN, 0}, {(int)h->handover->listen, POLLIN, 0}, {(int)h->handover->image, 0, 0}};
	int err = 0;

	if (h->handover->in >= 0)
		p[1].fd = (int)h->handover->in;
	else if (h->handover->image < 0)
		note("pid %d stands still until its copy comes to %s", h->processes[0]->pid, a->text);
	while (err == 0) {
		int fd;

		if (poll(p, 3, -1) < 0 && errno != EINTR)
			return fail_errno("poll");
		err = take_signals(h);
		if (err < 0)
			break;
		if (p[1].revents == 0 && p[2].revents != 0)
			return image_lost(h);
		if (p[1].revents == 0)
			continue;
		if (h->handover->in >= 0) {
			link_init(&h->link, (int)h->handover->in, (int)h->handover->out, "the other end");
			return greet(h);
		}
		fd = accept4((int)h->handover->listen, NULL, NULL, SOCK_CLOEXEC);
		if (fd < 0)
			continue;
		/* A stranger costs the time that he is given, and nothing else. */
		if (addr_welcome(a, h->handover->key, fd, &h->link) == 0 && greet(h) == 0) {
			addr_set_up(h->link.in, true); /* it answers at any time, or it is gone */
			return 0;
		}
		if (h->link.peer != NULL)
			link_close(&h->link);
		h->link = NO_LINK;
	}
	return err;
}

/* --- taking over */

static int
call_at(struct home_thread *t, taddr ip, int64_t *result, long nr, const uint64_t arg[6])
{
	struct tracee tracee = {.pid = t->process->pid, .tid = t->tid, .mem = t->process->mem, .seized = true, .regs = t->regs};
	struct arch_call call = {.nr = nr};
	int err;

	memcpy(call.arg, arg, sizeof(call.arg));
	err = tracee_call_at(&tracee, &t->regs, ip, &call, result);
	return err < 0 ? err : *result < 0 && *result >= -4095 ? (int)*result : 0;
}

/* Code of an executor, in memory of its own. */
static int
put_code(const struct home *h, struct home_process *p)
{
	struct home_thread *leader = NULL;
	struct proc_maps maps = {0};
	taddr gadget = 0, restorer;
	int64_t at = 0, result;
	int err = proc_read_maps(p->proc, false, &maps);

	for (size_t i = h->nthreads; i-- > 0;)
		if (h->threads[i]->process == p)
			leader = h->threads[i];
	if (err == 0)
		tracee_find_gadgets(p->mem, &maps, &gadget, &restorer);
	proc_maps_fini(&maps);
	if (err < 0 || gadget == 0 || leader == NULL)
		return fail(ENOTSUP, "pid %d: has no instruction to make calls by", p->pid);
	err = call_at(leader, gadget, &at, SYS_mmap, (const uint64_t[6]){0, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, (uint64_t)-1, 0});
	if (err == 0)
		err = mem_write(p->mem, (taddr)at, arch_executor, sizeof(arch_executor));
	if (err == 0)
		err = call_at(leader, gadget, &result, SYS_mprotect, (const uint64_t[6]){(uint64_t)at, PAGE_BYTES, PROT_READ | PROT_EXEC});
	p->code = (taddr)at;
	return err < 0 ? fail(-err, "pid %d: no memory for an executor: %s", p->pid, strerror(-err)) : 0;
}

/* The kernel would go on to write there when it runs. */
static void
unregister(struct home *h, struct home_thread *t)
{
	struct {
		uint64_t at;
		uint32_t size, signature, flags, pad;
	} rseq = {0};

	if (ptrace(PTRACE_GET_RSEQ_CONFIGURATION, t->tid, (void *)sizeof(rseq), &rseq) > 0 && rseq.at != 0)
		HOME_OWN_CALL(h, t, SYS_rseq, rseq.at, rseq.size, RSEQ_UNREGISTER, rseq.signature);
	HOME_OWN_CALL(h, t, SYS_set_robust_list, 0, 24);
	HOME_OWN_CALL(h, t, SYS_set_tid_address, 0);
}

static void
delete_timers(struct home *h, struct home_thread *t)
{
	struct proc_timer *timers = NULL;
	char *text = NULL;
	size_t n = 0;

	if (read_file(t->process->proc, "timers", &text) > 0 && proc_timers_parse(&timers, &n, text) == 0)
		for (size_t i = 0; i < n; i++)
			HOME_OWN_CALL(h, t, SYS_timer_delete, (uint64_t)timers[i].id);
	free(timers);
	free(text);
}

/*
 * Handlers and timers are the copy's: here each signal does what it does by itself. Children that it has made here are nobody's to
 * wait for.
 */
static void
reset_signals(struct home *h, struct home_thread *t)
{
	struct kernel_sigaction action = {0};
	int64_t at = HOME_OWN_CALL(h, t, SYS_mmap, 0, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, (uint64_t)-1, 0);

	if (at < 0)
		return;
	for (int sig = 1; sig <= 64; sig++)
		if (sig != SIGKILL && sig != SIGSTOP && sig != SIGCHLD)
			HOME_OWN_CALL(h, t, SYS_rt_sigaction, (uint64_t)sig, (uint64_t)at, 0, 8);
	for (uint64_t which = ITIMER_REAL; which <= ITIMER_PROF; which++)
		HOME_OWN_CALL(h, t, SYS_setitimer, which, (uint64_t)at, 0);
	delete_timers(h, t);
	action.handler = (uint64_t)(uintptr_t)SIG_IGN;
	if (mem_write(t->process->mem, (taddr)at, &action, sizeof(action)) == 0)
		HOME_OWN_CALL(h, t, SYS_rt_sigaction, SIGCHLD, (uint64_t)at, 0, 8);
	HOME_OWN_CALL(h, t, SYS_munmap, (uint64_t)at, PAGE_BYTES);
}

/* Its memory has left. What ps(1) shows of it stays. */
static void
drop_memory(struct home *h, struct home_thread *t)
{
	struct proc_maps maps = {0};

	if (proc_read_maps(t->process->proc, false, &maps) < 0)
		return;
	for (size_t i = 0; i < maps.n; i++) {
		const struct proc_map *m = &maps.map[i];
		taddr code = t->process->code, behind = code + PAGE_BYTES;

		if (m->start >= ARCH_USER_END || strcmp(m->path, "[stack]") == 0 || strncmp(m->path, "[v", 2) == 0)
			continue;
		/* The kernel may have made one mapping of ours and a neighbour. */
		if (code < m->start || code >= m->end)
			HOME_OWN_CALL(h, t, SYS_munmap, m->start, m->end - m->start);
		if (code > m->start && code < m->end)
			HOME_OWN_CALL(h, t, SYS_munmap, m->start, code - m->start);
		if (code >= m->start && behind < m->end)
			HOME_OWN_CALL(h, t, SYS_munmap, behind, m->end - behind);
	}
	proc_maps_fini(&maps);
}

/* Nothing has been executed yet: they go on as if nothing had been. */
static void
give_back(struct home *h)
{
	for (size_t i = 0; i < h->nthreads; i++) {
		ptrace(PTRACE_SETOPTIONS, h->threads[i]->tid, NULL, 0L);
		tracee_set_regs(h->threads[i]->tid, &h->threads[i]->regs);
		tracee_set_sigmask(h->threads[i]->tid, h->threads[i]->mask);
	}
}

static int
take_over(struct home *h)
{
	int err = 0;

	/* POINT OF NO RETURN: the copy runs. If we end, they end. */
	for (size_t i = 0; i < h->nthreads && err == 0; i++)
		err = ptrace(PTRACE_SETOPTIONS, h->threads[i]->tid, NULL, (long)OPTIONS) < 0 ? fail_errno("pid %d: ptrace", h->threads[i]->tid) : 0;
	for (size_t i = 0; i < h->nprocesses && err == 0; i++)
		err = put_code(h, h->processes[i]);
	for (size_t i = 0; i < h->nthreads && err == 0; i++)
		err = home_take_thread(h->threads[i]);
	if (err < 0) {
		give_back(h);
		return err;
	}
	h->begun = true;
	for (size_t i = 0; i < h->nthreads; i++)
		unregister(h, h->threads[i]);
	for (size_t i = 0; i < h->nprocesses; i++) {
		struct home_thread *t = NULL;

		for (size_t k = 0; k < h->nthreads && t == NULL; k++)
			if (h->threads[k]->process == h->processes[i] && !h->threads[k]->dead)
				t = h->threads[k];
		if (t != NULL) {
			reset_signals(h, t);
			drop_memory(h, t);
		}
	}
	return 0;
}

/* --- as long as the copy runs */

enum { REST_MS = 10, LOOK_NS = 60000, END_MS = 2000, MESSAGES_MAX = 64 };

/* Those that have had nothing to do for a while. Is somebody left who will have? */
static bool
let_rest(struct home *h)
{
	int64_t now = now_ms();
	bool left = false;

	for (size_t i = 0; i < h->nthreads; i++) {
		struct home_thread *t = h->threads[i];

		if (t->state != HOME_READY || t->grouped || t->dead)
			continue;
		if (now - t->ready_ms >= REST_MS)
			home_rest(t);
		else
			left = true;
	}
	return left;
}

/* Most calls are done before a processor could have gone to sleep and come back. */
static int
wait_for_any(struct home *h, struct pollfd p[2], int timeout_ms)
{
	int64_t look_ns = h->just_called ? LOOK_NS : 0;

	h->just_called = false;
	return poll_looking(p, 2, timeout_ms, look_ns);
}

static bool
all_ending(const struct home *h)
{
	for (size_t i = 0; i < h->nprocesses; i++)
		if (h->processes[i]->ending_ms == 0 && !h->processes[i]->dead)
			return false;
	return true;
}

/* What was to end a process does not always, when somebody else says it. Is there one that is ending? */
static bool
see_to_the_end(const struct home *h)
{
	int64_t now = now_ms();
	bool any = false;

	for (size_t i = 0; i < h->nprocesses; i++) {
		any |= h->processes[i]->ending_ms != 0;
		if (h->processes[i]->ending_ms != 0 && !h->processes[i]->dead && now - h->processes[i]->ending_ms > END_MS)
			kill(h->processes[i]->pid, SIGKILL);
	}
	return any;
}

static int
serve_copy(struct home *h)
{
	struct pollfd p[2] = {{h->signals, POLLIN, 0}, {h->link.in, POLLIN, 0}};
	int err = 0;

	while (err == 0) {
		const unsigned char *body;
		struct msg_header m;
		struct signalfd_siginfo info;
		bool soon, ending;

		home_sweep(h);
		if (h->nthreads == 0)
			break;
		soon = let_rest(h), ending = see_to_the_end(h);
		if (h->link.broken || !link_waiting(&h->link))
			wait_for_any(h, p, h->missed ? 0 : soon ? REST_MS : ending ? END_MS : -1);
		while (read(h->signals, &info, sizeof(info)) == sizeof(info))
			if (info.ssi_signo != SIGCHLD)
				return fail(EINTR, "ended by signal %d, and with us what we are the home of", (int)info.ssi_signo);
		home_events(h);
		/* Not without end: signals and events have their turn. */
		for (unsigned i = 0; i < MESSAGES_MAX && err == 0 && !h->link.broken; i++)
			if ((err = link_receive(&h->link, &m, &body, false, 0)) == 0)
				err = home_received(h, &m, body);
		err = err == -EAGAIN ? 0 : err;
		if (err == 0 && h->link.broken && p[1].fd >= 0)
			err = -ECONNRESET;
		/* It has said how they end: that is all. */
		if (err == -ECONNRESET && all_ending(h)) {
			err = 0;
			p[1].fd = -1;
			h->link.broken = true;
		}
	}
	return h->over ? 0 : err;
}

/* It cannot go on without its copy. */
static void
end_all(struct home *h, int err)
{
	if (h->over || h->nthreads == 0)
		return;
	link_fail(&h->link, log_last());
	note("pid %d: ended, as %s", h->processes[0]->pid, err == -ECONNRESET ? "where it ran is out of reach" : "its home is");
	for (size_t i = 0; i < h->nprocesses; i++)
		if (!h->processes[i]->dead)
			kill(h->processes[i]->pid, SIGKILL);
	/* The first of a process when all others have been looked at. What is left then ends with us. */
	for (int64_t end = now_ms() + END_MS; h->nthreads > 0 && now_ms() < end; home_sweep(h)) {
		home_events(h);
		poll(NULL, 0, 1);
	}
}

/* From now on we are nobody's but theirs. */
static void
settle_down(const struct handover *handover)
{
	prctl(PR_SET_PDEATHSIG, 0); /* first of all: who is told ends */
	if (handover->image >= 0)
		close((int)handover->image);
	if (handover->report >= 0) {
		outside_tell((int)handover->report, 'R', 0, -1);
		close((int)handover->report);
	}
	setsid();
	io_leave_stdio(true);
}

int
home(int fd)
{
	struct handover handover = {0};
	struct home h = {.handover = &handover, .signals = -1, .link = NO_LINK};
	struct addr a = {.fd = -1};
	sigset_t set;
	int err = handover_read(&handover, fd), urgent;

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD), sigaddset(&set, SIGTERM), sigaddset(&set, SIGINT), sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	h.signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	sigdelset(&set, SIGCHLD);
	urgent = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (err == 0)
		err = addr_parse(&a, handover.address);
	if (err == 0)
		err = list_processes(&h);
	if (err == 0)
		err = wait_for_copy(&h, &a);
	if (handover.listen >= 0)
		addr_unlisten(&a, (int[]){(int)handover.listen});
	if (err == 0)
		err = take_over(&h);
	if (err < 0) {
		/* As nothing has been changed, they go on when we end. */
		note("pid %lld runs on", handover.nprocesses > 0 ? (long long)handover.processes[0].pid : 0);
		return err;
	}
	settle_down(&handover);
	h.link.urgent = urgent;
	h.link.alone = true;
	err = serve_copy(&h);
	if (err < 0 || !h.over)
		end_all(&h, err);
	if (h.link.peer != NULL)
		link_close(&h.link);
	addr_fini(&a);
	record_free(&record_handover, &handover);
	return err == -EINTR ? -ECONNRESET : err;
}
