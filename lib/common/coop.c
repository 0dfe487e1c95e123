#include "coop.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "coop_abi.h"
#include "io.h"
#include "log.h"

/* An answer that takes longer has been lost with whoever should give it. */
enum { ANSWER_MS = 10000, XSTATE_MAX = 65536 };

struct coop {
	pid_t pid;
	int fd, mem;
	struct coop_hello hello;
	size_t taken; /* of its pending signals */
};

static bool
is_memfd(const char *mapping, const char *name)
{
	return strncmp(mapping, "/memfd:", 7) == 0 && strncmp(mapping + 7, name, strlen(name)) == 0;
}

bool
coop_is_mark(const char *mapping)
{
	return is_memfd(mapping, COOP_MARK);
}

bool
coop_is_asked_mark(const char *mapping)
{
	return is_memfd(mapping, COOP_ASKED);
}

bool
coop_is_parked_mark(const char *mapping)
{
	return is_memfd(mapping, COOP_PARKED);
}

/* --- the connection */

/* Where it will come. *number: what the address is made of. */
static int
listen_somewhere(uint64_t *number)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), n;

	if (fd < 0)
		return fail_errno("socket");
	if (getrandom(number, sizeof(*number), 0) != sizeof(*number)) {
		close(fd);
		return fail(EIO, "getrandom");
	}
	/* Addresses of its own memory are smaller. */
	*number |= COOP_ASKING;
	n = snprintf(sun.sun_path + 1, sizeof(sun.sun_path) - 1, COOP_ADDRESS "%016llx", (unsigned long long)*number);
	if (bind(fd, (struct sockaddr *)&sun, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)n)) < 0 || listen(fd, 4) < 0) {
		int err = fail_errno("a socket to be asked at");

		close(fd);
		return err;
	}
	return fd;
}

static int
send_number(pid_t pid, uint64_t number)
{
	siginfo_t si;

	memset(&si, 0, sizeof(si));
	si.si_signo = COOP_SIGNAL;
	si.si_code = SI_QUEUE;
	si.si_pid = getpid();
	si.si_uid = getuid();
	si.si_value.sival_ptr = (void *)(uintptr_t)number;
	return syscall(SYS_rt_sigqueueinfo, pid, COOP_SIGNAL, &si) < 0 ? fail_errno("pid %d: signal %d", pid, COOP_SIGNAL) : 0;
}

/* The next one who comes, if it is this process; others are sent away. Returns an fd, or -ETIMEDOUT. */
static int
accept_it(int listener, pid_t pid, int64_t deadline)
{
	for (;;) {
		struct pollfd p = {listener, POLLIN, 0};
		struct ucred who;
		socklen_t len = sizeof(who);
		int64_t left = deadline - now_ms();
		int fd, n;

		if (left <= 0)
			return -ETIMEDOUT;
		n = poll(&p, 1, (int)min_u64((uint64_t)left, 100));
		if (n < 0 && errno != EINTR)
			return -errno;
		if (n <= 0) {
			if (kill(pid, 0) < 0 && errno == ESRCH)
				return -ESRCH;
			continue;
		}
		fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		if (fd >= 0 && getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &len) == 0 && who.pid == pid)
			return fd;
		close_fd(&fd);
	}
}

/* A message of exactly this length. *file: what came with it, or -1; NULL: nothing is to. */
static int
receive(int fd, void *data, size_t len, int *file, int64_t deadline)
{
	struct pollfd p = {fd, POLLIN, 0};
	int got = -1;
	ssize_t n;

	do
		n = poll(&p, 1, (int)min_u64(deadline > now_ms() ? (uint64_t)(deadline - now_ms()) : 0, ANSWER_MS));
	while (n < 0 && errno == EINTR);
	if (n == 0)
		return -ETIMEDOUT;
	n = io_receive_file(fd, data, len, &got);
	if (n < 0)
		return (int)n;
	if (file != NULL)
		*file = got;
	else
		close_fd(&got);
	if ((size_t)n != len && file != NULL)
		close_fd(file);
	return (size_t)n == len ? 0 : n == 0 ? -ECONNRESET : -EPROTO;
}

static bool
is_sane(const struct coop_hello *h)
{
	return h->version == COOP_VERSION && h->nthreads > 0 && h->nthreads <= COOP_THREADS_MAX && h->nheld <= COOP_HELD_MAX;
}

/* What the one who came has to say. Returns 0 where it stands, 1 where it will come again (*busy: and why), or a negative errno, logged. */
static int
greet(struct coop *c, bool *busy, int64_t deadline)
{
	int err = receive(c->fd, &c->hello, sizeof(c->hello), &c->mem, max_i64(deadline, now_ms() + 1000));

	if (err < 0)
		return err == -ECONNRESET ? 1 : fail(-err, "pid %d: does not say how it stands: %s", c->pid, strerror(-err));
	if (c->hello.state == COOP_BUSY) {
		*busy = true;
		return 1;
	}
	if (c->hello.state == COOP_THREAD && c->hello.thread <= 0)
		return fail(ETIMEDOUT, "pid %d: cannot stop its threads: %s", c->pid, strerror(-c->hello.thread));
	if (c->hello.state == COOP_THREAD)
		return fail(ETIMEDOUT, "pid %d: its thread %d does not take signal %d (does it block it?), which stops it", c->pid, c->hello.thread, COOP_SIGNAL);
	if (c->hello.state != COOP_STANDS || !is_sane(&c->hello))
		return fail(EPROTO, "pid %d: is linked with another version of libpms, which is not understood", c->pid);
	c->taken = c->hello.nheld;
	/* When it answers it has closed what it has sent. */
	return coop_decide(c, false);
}

/* Until it stands. */
static int
meet(struct coop *c, int listener, int64_t soon_ms, int64_t deadline)
{
	bool busy = false;
	int err;

	do {
		close_fd(&c->fd);
		close_fd(&c->mem);
		c->fd = accept_it(listener, c->pid, busy ? deadline : soon_ms);
		if (c->fd == -ETIMEDOUT && busy)
			return fail(EBUSY, "pid %d: must not be interrupted (pms_disable) for as long as was waited (wait for it, or give --stop-timeout more)", c->pid);
		if (c->fd < 0)
			return fail(-c->fd, "pid %d: does not answer signal %d", c->pid, COOP_SIGNAL);
		err = greet(c, &busy, deadline);
	} while (err > 0);
	return err;
}

int
coop_ask(struct coop **out, pid_t pid, int64_t soon_ms, int64_t deadline)
{
	struct coop *c = calloc(1, sizeof(*c));
	uint64_t number;
	int listener, err;

	if (c == NULL)
		return fail(ENOMEM, "out of memory");
	*c = (struct coop){.pid = pid, .fd = -1, .mem = -1};
	listener = listen_somewhere(&number);
	err = listener < 0 ? listener : send_number(pid, number);
	if (err == 0)
		err = meet(c, listener, soon_ms, deadline);
	close_fd(&listener);
	if (err < 0) {
		coop_go_on(c);
		return err;
	}
	*out = c;
	return 0;
}

void
coop_go_on(struct coop *c)
{
	if (c == NULL)
		return;
	close_fd(&c->fd);
	close_fd(&c->mem);
	free(c);
}

void
coop_set_memory(struct coop *c, int mem)
{
	close_fd(&c->mem);
	c->mem = dup(mem);
}

int
coop_memory(const struct coop *c)
{
	return c->mem;
}

size_t
coop_threads(const struct coop *c)
{
	return c->hello.nthreads;
}

int
coop_own_fd(const struct coop *c)
{
	return c->hello.fd;
}

taddr
coop_note(const struct coop *c)
{
	return c->hello.note;
}

/* --- orders */

static int
order(struct coop *c, enum coop_order_kind kind, size_t thread, uint64_t a, uint64_t b, int *file, int64_t *result)
{
	struct coop_order o = {kind, (uint32_t)thread, a, b};
	struct coop_answer answer;
	int err = send(c->fd, &o, sizeof(o), MSG_NOSIGNAL) == sizeof(o) ? 0 : -errno;

	if (err == 0)
		err = receive(c->fd, &answer, sizeof(answer), file, now_ms() + ANSWER_MS);
	if (err < 0)
		return fail(-err, "pid %d: does not answer any more: %s", c->pid, strerror(-err));
	*result = answer.result;
	return 0;
}

static int
lost(const struct coop *c, int err)
{
	return fail(-err, "pid %d: its memory: %s", c->pid, strerror(-err));
}

int
coop_standing(struct coop *c, size_t thread, struct coop_standing *s)
{
	unsigned char frame[ARCH_SIGFRAME_BYTES], *xstate;
	struct coop_thread t;
	struct arch_regs there;
	taddr xstate_at = 0;
	uint64_t mask;
	size_t n = XSTATE_MAX;
	int err = mem_read(c->mem, c->hello.threads + thread * sizeof(t), &t, sizeof(t));

	if (err < 0)
		return lost(c, err);
	if (t.tid == 0)
		return -ESRCH;
	*s = (struct coop_standing){.tid = t.tid, .sigmask = ~0ULL, .rseq = t.rseq, .rseq_size = t.rseq_size, .rseq_sig = t.rseq_sig};
	arch_set_captured(&s->regs, &t.captured, 1);
	err = mem_read(c->mem, t.frame, frame, sizeof(frame));
	if (err == 0 && (!arch_sigframe_read(frame, sizeof(frame), &there, &mask, &xstate_at) || xstate_at == 0))
		err = -EPROTO;
	s->inside = err == 0 ? there.rip : 0;
	/* It may end less far below the top of its stack. */
	xstate = malloc(XSTATE_MAX);
	if (xstate == NULL)
		return -ENOMEM;
	while (err == 0 && (err = mem_read(c->mem, xstate_at, xstate, n)) < 0 && n > 1024) {
		n -= 256;
		err = 0;
	}
	s->xstate_len = err == 0 ? arch_sigframe_xstate(xstate, n) : 0;
	if (s->xstate_len == 0) {
		free(xstate);
		return lost(c, err < 0 ? err : -EPROTO);
	}
	s->xstate = xstate;
	return 0;
}

/* Data first, then the entries. */
static int
run_part(struct coop *c, size_t thread, struct script *s, size_t first, size_t n)
{
	struct arch_script_entry e[(COOP_SCRATCH - COOP_DATA) / sizeof(struct arch_script_entry)];
	taddr data = c->hello.scratch, entries = data + COOP_DATA;
	int64_t result = 0;
	int err;

	for (size_t i = 0; i < n; i++) {
		const struct script_call *call = &s->calls[first + i];

		e[i] = (struct arch_script_entry){.nr = (uint64_t)call->call.nr, .result = SCRIPT_NOT_RUN, .may_fail = call->may_fail};
		for (unsigned a = 0; a < 6; a++)
			e[i].arg[a] = call->call.arg[a] + (call->data_args & 1u << a ? data : 0);
	}
	err = mem_write(c->mem, data, s->data.data, s->data.len);
	if (err == 0)
		err = mem_write(c->mem, entries, e, n * sizeof(e[0]));
	if (err < 0)
		return lost(c, err);
	err = order(c, COOP_RUN, thread, entries, n, NULL, &result);
	if (err == 0 && result < 0)
		err = fail((int)-result, "pid %d: %s", c->pid, strerror((int)-result));
	if (err < 0)
		return err;
	err = mem_read(c->mem, entries, e, n * sizeof(e[0]));
	if (err == 0)
		err = mem_read(c->mem, data, s->data.data, s->data.len);
	for (size_t i = 0; i < n && err == 0; i++)
		s->calls[first + i].result = e[i].result;
	return err < 0 ? lost(c, err) : 0;
}

int
coop_run_script(struct coop *c, size_t thread, struct script *s)
{
	size_t most = (COOP_SCRATCH - COOP_DATA) / sizeof(struct arch_script_entry);

	if (s->failed || s->data.len > COOP_DATA)
		return fail(ENOMEM, "pid %d: a script is too long", c->pid);
	for (size_t i = 0; i < s->ncalls; i += most) {
		size_t n = min_u64(s->ncalls - i, most);
		int err = run_part(c, thread, s, i, n);

		if (err < 0)
			return err;
		if (s->calls[i + n - 1].result == SCRIPT_NOT_RUN)
			break;
	}
	return 0;
}

int
coop_take_signal(struct coop *c, size_t thread, uint64_t set, bool of_thread, unsigned char info[128])
{
	struct coop_held held;
	int64_t sig;
	int err = order(c, COOP_TAKE, thread, set, of_thread, NULL, &sig);

	if (err < 0)
		return err;
	if (sig == -EAGAIN)
		return 0;
	if (sig <= 0 || sig > 64 || !(set >> (sig - 1) & 1) || c->taken >= COOP_HELD_MAX)
		return fail(sig < 0 ? (int)-sig : EPROTO, "pid %d: its pending signals: %s", c->pid, sig == -ENOSPC ? "there are too many" : strerror((int)-sig));
	/* They are kept in the order in which they were taken. */
	err = mem_read(c->mem, c->hello.held + c->taken * sizeof(held), &held, sizeof(held));
	if (err < 0)
		return lost(c, err);
	c->taken++;
	memcpy(info, held.info, sizeof(held.info));
	/* As it says itself. */
	memcpy(info, &(int32_t){(int32_t)sig}, sizeof(int32_t));
	return (int)sig;
}

int
coop_held_signal(struct coop *c, size_t i, pid_t *tid, unsigned char info[128])
{
	struct coop_held held;
	int err = i >= c->hello.nheld ? 0 : mem_read(c->mem, c->hello.held + i * sizeof(held), &held, sizeof(held));

	if (i >= c->hello.nheld)
		return 0;
	if (err < 0 || held.sig < 1 || held.sig > 64)
		return lost(c, err < 0 ? err : -EPROTO);
	*tid = held.tid;
	memcpy(info, held.info, sizeof(held.info));
	memcpy(info, &held.sig, sizeof(held.sig));
	return held.sig;
}

int
coop_get_fd(struct coop *c, int fd)
{
	int got = -1, err;
	int64_t result;

	log_hush(1);
	err = order(c, COOP_FD, 0, (uint64_t)fd, 0, &got, &result);
	log_hush(-1);
	if (err == 0 && result == 0 && got < 0)
		err = -EBADF;
	if (err == 0 && result < 0)
		err = (int)max_i64(result, -4095);
	if (err < 0)
		close_fd(&got);
	return err < 0 ? err : got;
}

int
coop_decide(struct coop *c, bool ends)
{
	int64_t result;

	return order(c, COOP_DECIDE, 0, ends, 0, NULL, &result);
}

int
coop_park(struct coop *c, bool parked)
{
	int64_t result;

	return order(c, COOP_PARK, 0, parked, 0, NULL, &result);
}

bool
coop_was_parked(const struct coop *c)
{
	return c->hello.parked != 0;
}
