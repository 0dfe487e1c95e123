/*
 * rexec-sys run: start, the loop, the end.
 */
#include "run.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sysexits.h>
#include <time.h>
#include <unistd.h>

#include "io.h"
#include "log.h"
#include "options.h"
#include "proc.h"

static const int passed_on[] = {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGALRM, SIGCONT, SIGTSTP, SIGWINCH};

/* --- the end */

void
run_lost(struct run *r, const char *why)
{
	if (r->ended)
		return;
	r->ended = true;
	r->status = r->away ? 128 + SIGKILL : EX_PROTOCOL; /* as it was ended, who waits for it knows nothing of machines */
	if (why != NULL)
		fail(ECONNRESET, "%s: %s", r->options->address, why);
	note("%s has been ended: its files are out of reach", r->options->command[0]);
	for (size_t i = 0; i < r->nprocesses; i++)
		kill(r->processes[i]->pid, SIGKILL);
	for (size_t i = 0; i < r->nthreads; i++)
		if (r->threads[i]->process == NULL)
			kill(r->threads[i]->tid, SIGKILL);
}

/* --- the beginning */

/* In the child: `go` says that we are its tracer. */
static _Noreturn void
become_command(const struct run_options *o, int go)
{
	char byte;

	if (read_full(go, &byte, 1) != 1)
		_exit(EX_OSERR);
	close(go);
	options_give_back();
	for (int fd = 0; fd <= STDERR_FILENO; fd++)
		if (io_stood_in(fd))
			close(fd);
	if (filter_install() < 0) {
		fail(errno, errno == EINVAL ? "run: needs Linux 5.19 or newer" : errno == EBUSY ? "run: is run under another run, or something else that supervises calls" : "seccomp: %s", strerror(errno));
		_exit(EX_UNAVAILABLE);
	}
	execvp(o->command[0], o->command);
	fail(errno, "%s: %s%s", o->command[0], strerror(errno), errno == ENOENT && !o->local_program ? " there" : "");
	_exit(errno == ENOENT ? 127 : 126);
}

/* Its files from the start are of here; their numbers are taken there, too. */
static int
take_files(struct run *r, struct thread *t)
{
	enum { STOCK = 1000 }; /* out of the way */
	int proc = proc_open(getpid()), *numbers = NULL, err, stock;
	size_t n = 0;

	err = proc < 0 ? proc : proc_list(proc, "fd", &numbers, &n);
	stock = err < 0 ? -1 : (int)CALL_NOW(r, t, SYS_fcntl, 0, F_DUPFD_CLOEXEC, STOCK);
	for (size_t i = 0; i < n && err >= 0; i++) {
		if (fcntl(numbers[i], F_GETFD) != 0) /* closed meanwhile, or not for others */
			continue;
		if (io_stood_in(numbers[i])) {
			CALL_NOW(r, t, SYS_close, (uint64_t)numbers[i]);
			continue;
		}
		file_set(r, t->process, numbers[i], HERE);
		if (numbers[i] > 2)
			err = (int)CALL_NOW(r, t, SYS_dup2, (uint64_t)stock, (uint64_t)numbers[i]);
	}
	CALL_NOW(r, t, SYS_close, (uint64_t)stock);
	free(numbers);
	close_fd(&proc);
	return err < 0 ? fail(-err, "files that are open: %s", strerror(-err)) : 0;
}

int
run_add_listener(struct run *r, struct process *p, int listener)
{
	int *slot = ARRAY_ADD(r->listeners, r->nlisteners);

	if (slot == NULL)
		return fail(ENOMEM, "out of memory");
	*slot = p->listener = listener;
	return 0;
}

/* The listener is in the child, which stands still at its first exec. */
static int
fetch_listener(struct run *r)
{
	int proc = proc_open(r->first), pidfd = pidfd_open_(r->first), *numbers = NULL, listener = -1;
	char name[32], *target;
	size_t n = 0;

	if (proc >= 0)
		proc_list(proc, "fd", &numbers, &n);
	for (size_t i = 0; i < n && listener < 0; i++) {
		snprintf(name, sizeof(name), "fd/%d", numbers[i]);
		if (read_link(proc, name, &target) < 0)
			continue;
		if (strcmp(target, "anon_inode:seccomp notify") == 0)
			listener = (int)syscall(SYS_pidfd_getfd, pidfd, numbers[i], 0);
		free(target);
	}
	free(numbers);
	close_fd(&proc);
	close_fd(&pidfd);
	return listener < 0 ? fail(EPERM, "the filter's listener: %s", strerror(errno)) : run_add_listener(r, r->processes[0], listener);
}

int
run_prepare(struct run *r)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	for (size_t i = 0; i < ARRAY_LEN(passed_on); i++)
		sigaddset(&set, passed_on[i]);
	sigprocmask(SIG_BLOCK, &set, NULL);
	r->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	r->holder = getpid();
	r->placeholder = open("/dev/null", O_RDONLY | O_CLOEXEC);
	sigemptyset(&set);
	sigaddset(&set, SIGINT), sigaddset(&set, SIGTERM), sigaddset(&set, SIGHUP), sigaddset(&set, SIGQUIT);
	r->remote.link.urgent = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return r->signals < 0 || r->placeholder < 0 || r->remote.link.urgent < 0 ? fail_errno("run") : 0;
}

static int
start(struct run *r)
{
	int go[2], err = run_prepare(r), status;
	pid_t pid;

	if (err < 0)
		return err;
	if (pipe2(go, O_CLOEXEC) < 0)
		return fail_errno("run");
	pid = fork();
	if (pid == 0) {
		close(go[1]);
		become_command(r->options, go[0]);
	}
	close(go[0]);
	err = pid < 0 ? fail_errno("fork") : trace_begin(r, pid);
	if (err == 0)
		err = take_files(r, r->threads[0]);
	if (err == 0 && write(go[1], "", 1) != 1)
		err = fail_errno("pipe");
	close(go[1]);
	/* Up to its first exec, or its end. */
	if (err == 0 && (err = tracee_wait(pid, now_ms() + 10000, &status)) == 0 && WIFSTOPPED(status)) {
		err = fetch_listener(r);
		if (err == 0)
			exec_stop(r, r->threads[0]);
	} else if (err == 0) {
		r->nthreads = 0;
		return WIFEXITED(status) ? WEXITSTATUS(status) : EX_OSERR;
	}
	return err;
}

/* --- the loop */

static void
take_signals(struct run *r)
{
	struct signalfd_siginfo info;

	while (read(r->signals, &info, sizeof(info)) == sizeof(info)) {
		/* What the terminal sends reaches the command as well. */
		if (info.ssi_signo == SIGCHLD || info.ssi_code == SI_KERNEL)
			continue;
		/* If the command has ended, those that it has left behind are meant. */
		for (size_t i = 0; i < r->nprocesses; i++)
			if (r->first == 0 || r->processes[i]->pid == r->first)
				kill(r->processes[i]->pid, (int)info.ssi_signo);
	}
	trace_events(r);
}

/* A signal for a thread whose call is there is noticed about so much later, as nothing tells of it. */
enum { TICK_MS = 10 };

static bool
anybody_away(const struct run *r)
{
	for (size_t i = 0; i < r->nthreads; i++)
		if (r->threads[i]->phase == PHASE_ASKED)
			return true;
	return false;
}

/*
 * Most answers come within the time that a processor needs to fall asleep and wake up again. So for that long one looks, and lets others run
 * who want to.
 */
enum { LOOK_NS = 80000 };

static int
wait_for_any(struct run *r, struct pollfd *fds, size_t n, int timeout_ms)
{
	int64_t look_ns = r->just_asked ? LOOK_NS : 0;

	r->just_asked = false;
	return poll_looking(fds, n, timeout_ms, look_ns);
}

void
run_loop(struct run *r)
{
	struct pollfd *fds = NULL;
	int64_t next_tick = 0, now;
	size_t n, always = 2 + r->nlisteners;

	while (r->nthreads > 0) {
		bool buffered = !r->ended && link_waiting(&r->remote.link);

		n = 0;
		while (n < always)
			if (ARRAY_ADD(fds, n) == NULL)
				return;
		fds[0] = (struct pollfd){r->signals, POLLIN, 0};
		fds[1] = (struct pollfd){r->ended ? -1 : r->remote.link.in, POLLIN, 0};
		for (size_t i = 2; i < always; i++)
			fds[i] = (struct pollfd){r->listeners[i - 2], POLLIN, 0};
		n = wait_add_fds(r, &fds, n);
		if (wait_for_any(r, fds, n, buffered || r->nresults > 0 ? 0 : anybody_away(r) ? TICK_MS : -1) < 0 && errno != EINTR)
			return;
		now = now_ms();
		if (now >= next_tick) {
			trace_tick(r);
			next_tick = now + TICK_MS;
		}
		if (fds[1].revents != 0 || buffered || r->nresults > 0)
			calls_received(r);
		if (fds[0].revents != 0)
			take_signals(r);
		for (size_t i = 2; i < always; i++)
			if ((fds[i].revents & POLLIN) != 0)
				calls_notified(r, fds[i].fd);
		for (size_t i = always; i < n; i++)
			if (fds[i].revents != 0) {
				wait_ready(r);
				break;
			}
	}
	free(fds);
}

int
run(const struct run_options *o)
{
	struct run r = {.options = o, .status = -1, .signals = -1, .placeholder = -1};
	int err = remote_open(&r.remote, o->address, o->key);

	if (err == 0) {
		debug(1, "the clock there is %+.3f s off ours", (double)r.remote.facts.ahead_ns / 1e9);
		err = start(&r);
	}
	if (err == 0)
		run_loop(&r);
	else if (r.first > 0 && r.nthreads > 0)
		kill(r.first, SIGKILL);
	remote_close(&r.remote);
	return err != 0 ? err : r.status;
}
