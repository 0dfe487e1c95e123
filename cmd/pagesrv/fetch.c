/*
 * Pages come into processes when they are touched, and the rest behind that.
 *
 * Between restart and us, a message each: 'U' a userfaultfd and a pidfd of the next process ('M' its memory instead: all is to be there before it runs), 'B' they
 * are built: may they run? 'R' they run (and whether somebody waits for them); from us: 'G' they may, 'F' and why they may not.
 */
#include "fetch.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "handover.h"
#include "io.h"
#include "lazy_control.h"
#include "log.h"
#include "proc.h"
#include "record.h"

enum { LOOK_NS = 60000, MESSAGES_MAX = 16, TAKE_MS = 60000, PROBE_MS = 200 };

void
fetch_end_all(struct fetcher *f, const char *fmt, ...)
{
	char why[600];
	va_list ap;

	if (f->ended)
		return;
	f->ended = true;
	va_start(ap, fmt);
	vsnprintf(why, sizeof(why), fmt, ap);
	va_end(ap);
	if (f->released)
		fail(EPIPE, "pid %d: ended: %s", f->first, why);
	else
		fail(EPIPE, "%s", why);
}

/* --- what restart says */

static int
tell_restart(const struct fetcher *f, char what, const char *text)
{
	return lazy_tell(f->control, what, text, strlen(text), NULL, 0);
}

/* restart may be in a namespace, where it counts otherwise than we. */
static pid_t
pid_of(int pidfd)
{
	char name[40], *text = NULL;
	const char *line;
	pid_t pid = 0;

	snprintf(name, sizeof(name), "/proc/self/fdinfo/%d", pidfd);
	if (read_file(AT_FDCWD, name, &text) > 0 && (line = strstr(text, "\nPid:\t")) != NULL)
		pid = (pid_t)strtol(line + 6, NULL, 10);
	free(text);
	return pid > 0 ? pid : 0;
}

/* A memory, whose pages are those of the next task of the plan. */
static int
add_memory(struct fetcher *f, const struct lazy_message *msg)
{
	const struct page_task *t = &f->plan.tasks[f->nmemories];
	struct memory *m, **slot;
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP};
	int err = 0;

	if (f->nmemories >= f->plan.ntasks || msg->nfds != 2)
		return fail(EPROTO, "restart: a process too many");
	m = calloc(1, sizeof(*m));
	slot = m != NULL ? ARRAY_ADD(f->memories, f->nmemories) : NULL;
	if (slot == NULL) {
		free(m);
		return fail(ENOMEM, "out of memory");
	}
	*slot = m;
	*m = (struct memory){.pid = pid_of(msg->fds[1]), .uffd = msg->what == 'U' ? msg->fds[0] : -1, .mem = msg->what == 'M' ? msg->fds[0] : -1, .pidfd = msg->fds[1]};
	f->plan.eager |= msg->what == 'M';
	if (f->first == 0)
		f->first = m->pid;
	for (size_t i = 0; i < t->nparts && err == 0; i++)
		err = lazy_add(&m->lazy, t->parts[i].start, t->parts[i].end, t->parts[i].task, t->parts[i].start);
	if (err < 0)
		return fail(ENOMEM, "out of memory");
	if (m->uffd >= 0 && ioctl(m->uffd, UFFDIO_API, &api) < 0)
		return fail_errno("userfaultfd");
	return 0;
}

/* All of it, before it runs. */
static int
fetch_eagerly(struct fetcher *f)
{
	int err = 0;

	while (err == 0 && !fetch_has_all(f) && !f->ended) {
		fetch_stream(f);
		err = fetch_receive(f, true);
		if (!f->connected)
			fetch_reconnect(f), err = 0, poll(NULL, 0, f->connected ? 0 : 20);
		if (f->nbad > 0)
			err = fail(EBADMSG, "%s: pages are damaged where they are kept", f->plan.address);
	}
	return f->ended ? -EPIPE : err == -EAGAIN ? 0 : err;
}

/* The other side says that the original will never run again. */
static int
take(struct fetcher *f)
{
	int64_t deadline = now_ms() + TAKE_MS;
	bool asked = false;

	f->lost_ms = now_ms();
	while (!f->taken && !f->ended) {
		if (!f->connected)
			asked = false, fetch_reconnect(f), poll(NULL, 0, f->connected ? 0 : 20);
		if (f->connected && !asked)
			asked = link_send(&f->link, MSG_TAKE, 0, NULL, 0) == 0;
		if (f->connected && fetch_receive(f, true) == -EREMOTEIO)
			return -EREMOTEIO;
		if (now_ms() > deadline)
			return fail(ETIMEDOUT, "%s: does not answer", f->plan.address);
	}
	return f->ended ? -EPIPE : 0;
}

static int
get_ready(struct fetcher *f)
{
	int err = 0;

	if (f->nmemories != f->plan.ntasks)
		return fail(EPROTO, "restart: a process is missing");
	if (f->plan.in >= 0)
		err = fetch_connect(f);
	if (err == 0 && f->plan.eager)
		err = fetch_eagerly(f);
	for (size_t i = 0; i < f->nmemories && err == 0; i++)
		err = memory_register(f->memories[i]);
	if (err == 0 && !f->plan.eager) {
		f->guard = guard_start(f);
		err = f->guard < 0 ? f->guard : 0;
	}
	return err < 0 ? err : take(f);
}

/* Or it has ended, and nobody knows whether it ran before. */
static void
tell_runs(struct fetcher *f, bool surely)
{
	struct buf b = message_new();

	buf_put_u64(&b, (uint64_t)f->first);
	buf_put_u8(&b, surely);
	if (f->connected)
		link_send_buf(&f->link, MSG_RUNS, 0, &b);
	buf_fini(&b);
}

/* How deep in PID namespaces we are. */
static int
own_levels(void)
{
	int proc = proc_open(getpid()), levels = 1;
	struct proc_status st;

	if (proc >= 0 && proc_read_status(proc, &st) == 0) {
		levels = st.levels;
		proc_status_fini(&st);
	}
	close_fd(&proc);
	return levels;
}

/*
 * restart has gone while it let them run. Those who run must not be given up: the original would run as well. They have ended where it was the first process of their namespace,
 * and where it had not come to let them run.
 */
static bool
runs_all_the_same(const struct fetcher *f)
{
	int levels = own_levels();

	for (size_t i = 0; i < f->nmemories;) {
		struct pollfd p = {f->memories[i]->pidfd, POLLIN, 0};
		int proc = proc_open(f->memories[i]->pid);
		struct proc_status st = {.tracer = -1};
		bool known = proc >= 0 && proc_read_status(proc, &st) == 0;

		close_fd(&proc);
		if (known)
			proc_status_fini(&st);
		if (poll(&p, 1, 0) > 0) {
			i++;
			continue;
		}
		if (known && st.tracer == 0 && st.levels == levels)
			return true;
		poll(NULL, 0, 2);
	}
	return false;
}

/* Returns 0, or a negative errno where it is over. */
static int
from_restart(struct fetcher *f)
{
	struct lazy_message msg;
	int err = lazy_hear(f->control, &msg);

	if (err <= 0) {
		close_fd(&f->control);
		if (f->released)
			return 0;
		if (!f->letting)
			return fail(ECONNRESET, "restart has failed");
		f->unsure = !runs_all_the_same(f);
		if (f->unsure)
			return fail(ECONNRESET, "restart was killed while it let pid %d run, which has ended: whether it ran cannot be known", f->first);
		note("pid %d runs, although restart was killed", f->first);
		msg = (struct lazy_message){.what = 'R', .value = 1};
	}
	switch (msg.what) {
	case 'U':
	case 'M':
		return add_memory(f, &msg);
	case 'B':
		err = get_ready(f);
		return err < 0 ? err : tell_restart(f, 'G', "");
	case 'X':
		return fail(ECONNRESET, "restart: %s", msg.text);
	case 'L':
		f->letting = f->taken;
		return 0;
	case 'R':
		f->released = f->runs = true;
		f->detached = msg.value != 0;
		io_leave_stdio(f->detached);
		guard_settle(f->guard, f->detached);
		tell_runs(f, true);
		return 0;
	default:
		return fail(EPROTO, "restart: says what makes no sense");
	}
}

/* --- a server of our own */

static int
start_server(struct fetcher *f)
{
	pid_t pid = fork();

	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGTERM);
		io_leave_stdio(false);
		close_fd(&f->control);
		close_fd(&f->guard);
		for (size_t i = 0; i < f->nmemories; i++)
			memory_free(f->memories[i]);
		_exit(serve_local(f->plan.image, &f->addr, (int)f->plan.listen, (int)f->plan.retry) == 0 ? 0 : 1);
	}
	f->server = pid > 0 ? pid : 0;
	return pid < 0 ? fail_errno("fork") : 0;
}

void
fetch_see_to_server(struct fetcher *f)
{
	int status;

	if (f->server <= 0 || waitpid(f->server, &status, WNOHANG) != f->server)
		return;
	f->server = 0;
	/* One that was killed is started again; one that could not go on cannot. */
	if (WIFEXITED(status) && WEXITSTATUS(status) != 0)
		fetch_end_all(f, "%s cannot be served any more", f->plan.image);
	else
		start_server(f);
}

/* --- as long as pages are missing */

static bool
look_again(const struct fetcher *f)
{
	for (size_t i = 0; i < f->nmemories; i++)
		if (f->memories[i]->again)
			return true;
	return false;
}

/* Memories of which nobody tells when they are gone. */
static bool
without_process(const struct fetcher *f)
{
	for (size_t i = 0; i < f->nmemories; i++)
		if (f->memories[i]->pidfd < 0 || f->memories[i]->ended)
			return true;
	return false;
}

static void
probe(struct fetcher *f)
{
	int64_t now = now_ms();

	if (now - f->probe_ms < PROBE_MS || !f->released)
		return;
	f->probe_ms = now;
	for (size_t i = 0; i < f->nmemories; i++)
		if (f->memories[i]->uffd >= 0 && (f->memories[i]->pidfd < 0 || f->memories[i]->ended))
			f->memories[i]->dead |= memory_is_gone(f->memories[i]->uffd);
}

static int
timeout_of(const struct fetcher *f)
{
	if (look_again(f))
		return 0;
	if (!f->connected)
		return (int)max_i64(0, f->try_ms - now_ms()) + 1;
	if (f->released && !f->streamed && f->owed > 0 && !f->plan.demand_only)
		return 1;
	if (fetch_has_news(f))
		return REPORT_MS;
	return without_process(f) ? PROBE_MS : -1;
}

static void
drop_dead(struct fetcher *f)
{
	for (size_t i = 0; i < f->nmemories; i++)
		if (f->memories[i]->dead) {
			for (size_t k = 0; k < f->nmemories; k++)
				if (f->memories[k]->parent == f->memories[i])
					f->memories[k]->parent = NULL;
			memory_free(f->memories[i]);
			f->memories[i--] = f->memories[--f->nmemories];
		}
}

/* Without one the end of us would be zeroes. */
static void
see_to_guard(struct fetcher *f)
{
	struct pollfd p = {f->guard, 0, 0};

	if (f->guard < 0 || !f->released || poll(&p, 1, 0) == 0)
		return;
	close_fd(&f->guard);
	f->guard = guard_start(f);
	guard_settle(f->guard, f->detached);
}

static int
turn(struct fetcher *f, struct pollfd *p, size_t n)
{
	bool looking = f->nasked > 0 || now_ms() - f->fault_ms < 2;
	size_t nmemories = f->nmemories;
	int err = 0;

	if (f->connected && link_waiting(&f->link))
		poll(p, n, 0);
	else
		poll_looking(p, n, timeout_of(f), looking ? LOOK_NS : 0);
	if (p[0].revents != 0)
		err = from_restart(f);
	for (size_t i = 0; i < nmemories && err == 0; i++) {
		struct memory *m = f->memories[i];

		if (m->uffd >= 0 && (p[2 + 2 * i].revents != 0 || m->again))
			memory_events(f, m);
		/* Another process may have the same memory: vfork(2), clone(2). */
		if (p[3 + 2 * i].revents != 0) {
			m->ended = true;
			m->dead |= m->uffd < 0 || memory_is_gone(m->uffd);
		}
	}
	for (unsigned i = 0; i < MESSAGES_MAX && err == 0 && fetch_receive(f, false) == 0; i++)
		;
	if (!f->connected)
		fetch_reconnect(f);
	fetch_stream(f);
	fetch_report(f);
	probe(f);
	drop_dead(f);
	see_to_guard(f);
	return f->ended ? -EPIPE : err;
}

static int
run(struct fetcher *f)
{
	int err = 0;

	while (err == 0 && !(f->released && (f->nmemories == 0 || fetch_has_all(f)))) {
		size_t n = 2 + 2 * f->nmemories;
		struct pollfd *p = calloc(n, sizeof(*p));

		if (p == NULL) {
			fetch_end_all(f, "out of memory");
			return -ENOMEM;
		}
		p[0] = (struct pollfd){f->control, POLLIN, 0};
		p[1] = (struct pollfd){f->connected ? f->link.in : -1, POLLIN, 0};
		for (size_t i = 0; i < f->nmemories; i++) {
			p[2 + 2 * i] = (struct pollfd){f->released || f->taken ? f->memories[i]->uffd : -1, POLLIN, 0};
			p[3 + 2 * i] = (struct pollfd){f->memories[i]->ended ? -1 : f->memories[i]->pidfd, POLLIN, 0};
		}
		err = turn(f, p, n);
		free(p);
	}
	return err;
}

static void
finish(struct fetcher *f)
{
	for (size_t i = 0; i < f->nmemories; i++)
		memory_unregister(f->memories[i]);
	guard_done(f->guard);
	for (size_t i = 0; i < f->nmemories; i++)
		memory_free(f->memories[i]);
	f->nmemories = 0;
	for (int64_t end = now_ms() + f->plan.retry * 1000; fetch_finish(f) < 0 && now_ms() < end && f->addr.kind != ADDR_STDIO;) {
		f->connected = false;
		log_hush(1);
		if (fetch_connect(f) < 0)
			poll(NULL, 0, 100);
		log_hush(-1);
	}
}

static int
begin(struct fetcher *f)
{
	int err = page_address(&f->addr, f->plan.address);

	if (err == 0 && (f->plan.id == NULL || strlen(f->plan.id) != IMAGE_ID))
		err = fail(EINVAL, "restart: an image without identity");
	if (err == 0 && f->plan.image != NULL) {
		f->plan.listen = addr_listen(&f->addr, f->plan.key);
		err = f->plan.listen < 0 ? (int)f->plan.listen : start_server(f);
	}
	/* A connection that restart still reads the image from is ours when all is built. */
	return err < 0 || f->plan.in >= 0 ? err : fetch_connect(f);
}

int
fetch(int fd)
{
	struct fetcher *f = calloc(1, sizeof(*f));
	sigset_t set;
	int err;

	if (f == NULL)
		return fail(ENOMEM, "out of memory");
	f->link = (struct link){.in = -1, .out = -1};
	f->control = f->guard = -1;
	/* Whoever wants to end the program ends the program. */
	sigemptyset(&set);
	sigaddset(&set, SIGTERM), sigaddset(&set, SIGINT), sigaddset(&set, SIGHUP), sigaddset(&set, SIGTSTP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	setsid();
	io_raise_limit(); /* each child of the program takes one */
	err = handover_read_as(&record_page_plan, &f->plan, fd);
	f->control = err == 0 ? (int)f->plan.control : -1;
	if (f->control >= 0)
		fcntl(f->control, F_SETFD, FD_CLOEXEC);
	if (err == 0)
		err = begin(f);
	if (err == 0)
		err = run(f);
	if (err == 0) {
		finish(f);
	} else {
		if (f->control >= 0 && !f->released)
			tell_restart(f, 'F', log_last());
		/* What may have run must not run on elsewhere. */
		if (f->unsure)
			tell_runs(f, false);
		link_fail(&f->link, log_last());
		/* What has never run is restart's to end. */
		if (f->released)
			guard_kill(f->guard);
		else
			guard_done(f->guard);
	}
	if (f->plan.listen >= 0)
		addr_unlisten(&f->addr, (int[]){(int)f->plan.listen});
	return err;
}
