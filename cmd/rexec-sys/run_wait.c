/*
 * Calls that wait for several files: the other machine waits for its own, we for those of here, and whoever is first calls the other back.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ptrace.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "io.h"
#include "log.h"
#include "run.h"

enum { FDS_MAX = 65536, EVENT = 12 /* bytes of a struct epoll_event */, EVENTS_MAX = 1024 };
/* What select(2) takes for readable, writable and exceptional. */
enum { SELECT_IN = POLLIN | POLLRDNORM | POLLRDBAND | POLLHUP | POLLERR, SELECT_OUT = POLLOUT | POLLWRNORM | POLLWRBAND | POLLERR, SELECT_EX = POLLPRI };

struct wait {
	struct pollfd *asked;   /* as the program has them */
	size_t n;
	struct pollfd *ours;    /* those of here, by our own numbers; -1 the others, and of there -2 */
	size_t nthere;
	bool select, called_back;
	uint64_t sets[3][FD_SETSIZE / 64];
	struct epoll *epoll;
};

static void
wait_free(struct wait *w)
{
	if (w == NULL)
		return;
	for (size_t i = 0; w->epoll == NULL && w->ours != NULL && i < w->n; i++)
		close_fd(&w->ours[i].fd);
	free(w->asked);
	free(w->ours);
	free(w);
}

void
wait_drop(struct thread *t)
{
	wait_free(t->wait);
	t->wait = NULL;
}

/* --- the mask that a thread has while it waits */

static bool
mask_argument(struct thread *t, uint64_t *mask)
{
	uint64_t pair[2] = {0, 0}, at = 0;

	switch (t->call.nr) {
	case SYS_ppoll:
		at = t->call.arg[3];
		break;
	case SYS_epoll_pwait:
	case SYS_epoll_pwait2:
		at = t->call.arg[4];
		break;
	case SYS_pselect6:
		if (t->call.arg[5] != 0 && thread_read(t, t->call.arg[5], pair, sizeof(pair)) == 0)
			at = pair[0];
		break;
	}
	return at != 0 && thread_read(t, at, mask, sizeof(*mask)) == 0;
}

/* With another mask it has to be stopped, to get it, and then it calls again; at the end it is stopped once more. */
static bool
needs_mask(struct thread *t)
{
	uint64_t mask;

	if (t->mask != MASK_OWN || !mask_argument(t, &mask))
		return false;
	t->mask_wanted = mask;
	t->mask = MASK_WANTED;
	trace_again(t);
	return true;
}

void
wait_own_mask(struct thread *t)
{
	if (t->mask == MASK_SET)
		tracee_set_sigmask(t->tid, t->mask_own);
	t->mask = MASK_OWN;
}

void
wait_stopped(struct thread *t, bool keep)
{
	if (t->mask == MASK_WANTED && tracee_get_sigmask(t->tid, &t->mask_own) == 0 && tracee_set_sigmask(t->tid, t->mask_wanted) == 0)
		t->mask = MASK_SET;
	else if (!keep && t->mask != MASK_HANDLER)
		wait_own_mask(t);
}

/* It returns this, and has its own mask before it goes on. */
static void
respond(struct thread *t, int64_t result)
{
	if (t->mask == MASK_SET)
		ptrace(PTRACE_INTERRUPT, t->tid, NULL, NULL);
	call_respond(t, result);
}

bool
wait_called_back(const struct thread *t)
{
	return t->wait != NULL && t->wait->called_back;
}

/* --- poll and select */

static int
ours(struct thread *t, struct wait *w)
{
	w->ours = calloc(w->n + 1, sizeof(*w->ours));
	if (w->ours == NULL)
		return -ENOMEM;
	for (size_t i = 0; i < w->n; i++) {
		enum where where = file_where(t->process, w->asked[i].fd);

		w->ours[i] = (struct pollfd){where == HERE ? file_fetch(t, w->asked[i].fd) : where == THERE ? -2 : -1, w->asked[i].events, 0};
		w->nthere += where == THERE;
	}
	return 0;
}

/* Are there files of here that are ready? */
static bool
ready_here(struct wait *w)
{
	struct pollfd e = {w->epoll != NULL ? w->epoll->fd : -1, POLLIN, 0};

	return w->epoll != NULL ? poll(&e, 1, 0) > 0 : poll(w->ours, w->n, 0) > 0;
}

static int64_t
milliseconds(struct thread *t, taddr at, bool nanoseconds)
{
	int64_t pair[2];

	if (at == 0)
		return -1;
	if (thread_read(t, at, pair, sizeof(pair)) < 0)
		return -EFAULT;
	if (pair[0] < 0 || pair[1] < 0 || pair[0] > INT32_MAX / 1000 - 1)
		return pair[0] < 0 || pair[1] < 0 ? -EINVAL : -1;
	return pair[0] * 1000 + (pair[1] + (nanoseconds ? 999999 : 999)) / (nanoseconds ? 1000000 : 1000);
}

/* Of the files of there, in the order of asked[]. */
static int
send_poll(struct run *r, struct thread *t, int64_t timeout_ms)
{
	struct wait *w = t->wait;
	struct pollfd *there = calloc(w->nthere + 1, sizeof(*there));
	size_t n = 0;
	int err = there == NULL ? -ENOMEM : 0;

	for (size_t i = 0; i < w->n && err == 0; i++)
		if (w->ours[i].fd == -2)
			there[n++] = (struct pollfd){w->asked[i].fd, w->asked[i].events, 0};
	calldata_fini(&t->data);
	t->sent = (struct arch_call){SYS_poll, {0, n, (uint64_t)timeout_ms}};
	calldata_init(&t->data, SYS_poll);
	t->data.arg[1].value = n;
	t->data.arg[2].value = (uint64_t)timeout_ms;
	if (err == 0)
		err = calldata_put(&t->data, 0, there, n * sizeof(*there));
	free(there);
	if (err == 0)
		call_send(r, t);
	return err;
}

static int
read_poll(struct thread *t, struct wait *w)
{
	w->n = t->call.arg[1];
	if (w->n > FDS_MAX)
		return -EINVAL;
	w->asked = calloc(w->n + 1, sizeof(*w->asked));
	if (w->asked == NULL)
		return -ENOMEM;
	return w->n == 0 ? 0 : thread_read(t, t->call.arg[0], w->asked, w->n * sizeof(*w->asked));
}

static int
read_select(struct thread *t, struct wait *w)
{
	static const short events[3] = {POLLIN, POLLOUT, POLLPRI};
	uint64_t n = t->call.arg[0];

	w->select = true;
	if ((int)n < 0 || n > FD_SETSIZE)
		return -EINVAL;
	w->asked = calloc(n + 1, sizeof(*w->asked));
	if (w->asked == NULL)
		return -ENOMEM;
	for (int set = 0; set < 3; set++)
		if (t->call.arg[set + 1] != 0 && n > 0 && thread_read(t, t->call.arg[set + 1], w->sets[set], (n + 63) / 64 * 8) < 0)
			return -EFAULT;
	for (uint64_t fd = 0; fd < n; fd++) {
		short want = 0;

		for (int set = 0; set < 3; set++)
			want |= w->sets[set][fd / 64] >> fd % 64 & 1 ? events[set] : 0;
		if (want == 0)
			continue;
		if (file_where(t->process, (int64_t)fd) == NOWHERE)
			return -EBADF;
		w->asked[w->n++] = (struct pollfd){(int)fd, want, 0};
	}
	return 0;
}

static bool
poll_call(struct run *r, struct thread *t)
{
	bool select = t->call.nr == SYS_select || t->call.nr == SYS_pselect6;
	struct wait *w = calloc(1, sizeof(*w));
	size_t there = 0, nowhere = 0;
	int64_t timeout_ms;
	int err = w == NULL ? -ENOMEM : select ? read_select(t, w) : read_poll(t, w);

	for (size_t i = 0; i < (err == 0 ? w->n : 0); i++) {
		there += file_where(t->process, w->asked[i].fd) == THERE;
		nowhere += w->asked[i].fd >= 0 && file_where(t->process, w->asked[i].fd) == NOWHERE;
	}
	/* A number without a file may still have a placeholder. */
	if (err == 0 && there == 0 && nowhere == 0) {
		wait_free(w);
		call_continue(t);
		return true;
	}
	if (err == 0 && there == w->n && t->call.nr == SYS_poll) {
		wait_free(w);
		return false; /* as it is */
	}
	if (err == 0 && needs_mask(t)) {
		wait_free(w);
		return true;
	}
	timeout_ms = t->call.nr == SYS_poll ? (int)t->call.arg[2] : milliseconds(t, t->call.arg[select ? 4 : 2], t->call.nr != SYS_select);
	if (timeout_ms < -1 && t->call.nr != SYS_poll)
		err = err < 0 ? err : (int)timeout_ms;
	if (err == 0)
		err = ours(t, w);
	t->wait = w;
	if (err == 0)
		err = send_poll(r, t, ready_here(w) ? 0 : timeout_ms);
	if (err < 0) {
		wait_drop(t);
		respond(t, err);
	}
	return true;
}

/* What the other machine found, and what we find. */
static int64_t
merge(struct thread *t, struct wait *w)
{
	struct pollfd *there = (struct pollfd *)(t->data.data.data + t->data.arg[0].value);
	int64_t count = 0;

	poll(w->ours, w->n, 0);
	for (size_t i = 0; i < w->n; i++) {
		struct pollfd *a = &w->asked[i];

		a->revents = 0;
		if (a->fd < 0)
			continue;
		if (w->ours[i].fd == -2)
			a->revents = t->result > 0 ? there->revents : 0, there++;
		else
			a->revents = w->ours[i].fd >= 0 ? w->ours[i].revents : POLLNVAL;
		count += a->revents != 0;
	}
	return count;
}

static int64_t
give_select(struct thread *t, struct wait *w)
{
	static const short events[3] = {SELECT_IN, SELECT_OUT, SELECT_EX};
	uint64_t given[3][FD_SETSIZE / 64] = {{0}};
	size_t bytes = ((size_t)t->call.arg[0] + 63) / 64 * 8;
	int64_t count = 0;

	for (size_t i = 0; i < w->n; i++) {
		size_t word = (size_t)w->asked[i].fd / 64, bit = (size_t)w->asked[i].fd % 64;

		for (int set = 0; set < 3; set++)
			if ((w->asked[i].revents & events[set]) != 0 && (w->sets[set][word] >> bit & 1) != 0) {
				given[set][word] |= 1ULL << bit;
				count++;
			}
	}
	for (int set = 0; set < 3; set++)
		if (t->call.arg[set + 1] != 0 && bytes > 0 && thread_write(t, t->call.arg[set + 1], given[set], bytes) < 0)
			return -EFAULT;
	return count;
}

/* --- epoll */

struct member {
	struct process *process;
	int fd, ours;
};

static struct member *
member_of(struct epoll *e, const struct process *p, int fd)
{
	for (size_t i = 0; i < e->nlocal; i++)
		if (e->local[i].process == p && e->local[i].fd == fd)
			return &e->local[i];
	return NULL;
}

static void
member_remove(struct epoll *e, struct member *m)
{
	epoll_ctl(e->fd, EPOLL_CTL_DEL, m->ours, NULL);
	close(m->ours);
	*m = e->local[--e->nlocal];
}

void
wait_forget(struct run *r, const struct process *p, int fd)
{
	for (size_t i = 0; i < r->nepolls; i++) {
		struct member *m = member_of(r->epolls[i], p, fd);

		if (m != NULL)
			member_remove(r->epolls[i], m);
	}
}

/* A file of here in a set of there: it is in the set's placeholder. */
static int64_t
control_here(struct thread *t, struct epoll *e, int op, int fd)
{
	struct member *m = member_of(e, t->process, fd), *slot;
	struct epoll_event event;
	int ours_;

	if (op != EPOLL_CTL_DEL && thread_read(t, t->call.arg[3], &event, EVENT) < 0)
		return -EFAULT;
	if ((op == EPOLL_CTL_ADD) == (m != NULL))
		return m != NULL ? -EEXIST : -ENOENT;
	if (op == EPOLL_CTL_DEL)
		return member_remove(e, m), 0;
	if (op == EPOLL_CTL_MOD)
		return epoll_ctl(e->fd, op, m->ours, &event) < 0 ? -errno : 0;
	ours_ = file_fetch(t, fd);
	if (ours_ < 0)
		return ours_;
	if (epoll_ctl(e->fd, op, ours_, &event) < 0 || (slot = ARRAY_ADD(e->local, e->nlocal)) == NULL) {
		int err = -errno;

		close(ours_);
		return err;
	}
	*slot = (struct member){t->process, fd, ours_};
	return 0;
}

static bool
epoll_call(struct run *r, struct thread *t)
{
	const struct file *f = file_at(t->process, (int)t->call.arg[0]);

	if (f->where != THERE) {
		if (f->where == HERE)
			call_continue(t);
		else
			call_respond(t, -EBADF);
		return true;
	}
	if (t->call.nr == SYS_epoll_ctl) {
		if (file_where(t->process, (int)t->call.arg[2]) != HERE || f->epoll == NULL)
			return false;
		call_respond(t, control_here(t, f->epoll, (int)t->call.arg[1], (int)t->call.arg[2]));
		return true;
	}
	if (needs_mask(t))
		return true;
	if ((f->epoll == NULL || f->epoll->nlocal == 0) && t->mask == MASK_OWN)
		return false;
	t->wait = calloc(1, sizeof(*t->wait));
	if (t->wait == NULL || (t->wait->epoll = f->epoll) == NULL) {
		wait_drop(t);
		return false;
	}
	t->sent = (struct arch_call){SYS_epoll_wait, {t->call.arg[0], t->call.arg[1], min_u64((uint64_t)max_i64(0, (int)t->call.arg[2]), EVENTS_MAX),
							t->call.nr == SYS_epoll_pwait2 ? (uint64_t)milliseconds(t, t->call.arg[3], true) : t->call.arg[3]}};
	if (ready_here(t->wait))
		t->sent.arg[3] = 0;
	call_forward_as(r, t, &(struct arch_call){t->sent.nr, {t->sent.arg[0], t->sent.arg[1], t->sent.arg[2], t->sent.arg[3]}});
	return true;
}

/* Behind those of there, as many as there is room for. */
static int64_t
give_events(struct thread *t, struct wait *w)
{
	struct epoll_event events[64];
	int64_t n = max_i64(0, t->result), room = (int64_t)t->sent.arg[2] - n;
	int more = room > 0 ? epoll_wait(w->epoll->fd, events, (int)min_u64((uint64_t)room, ARRAY_LEN(events)), 0) : 0;

	if (calldata_to_memory(&t->data, &t->sent, t->result, thread_read, thread_write, t) < 0 ||
	    (more > 0 && thread_write(t, t->call.arg[1] + (uint64_t)n * EVENT, events, (size_t)more * EVENT) < 0))
		return -EFAULT;
	return n + (more > 0 ? more : 0);
}

/* --- both */

bool
wait_call(struct run *r, struct thread *t)
{
	switch (t->call.nr) {
	case SYS_poll:
	case SYS_ppoll:
	case SYS_select:
	case SYS_pselect6:
		return poll_call(r, t);
	default:
		return epoll_call(r, t);
	}
}

static int64_t
outcome(struct thread *t, struct wait *w)
{
	int64_t count;

	if (t->result < 0 && !(t->result == -EINTR && w->called_back))
		return t->result;
	if (w->epoll != NULL)
		return give_events(t, w);
	count = merge(t, w);
	if (w->select)
		return give_select(t, w);
	return w->n > 0 && thread_write(t, t->call.arg[0], w->asked, w->n * sizeof(*w->asked)) < 0 ? -EFAULT : count;
}

bool
wait_complete(struct thread *t)
{
	struct wait *w = t->wait;
	int64_t result;

	if (w == NULL)
		return false;
	result = outcome(t, w);
	wait_drop(t);
	respond(t, result);
	return true;
}

size_t
wait_add_fds(struct run *r, struct pollfd **fds, size_t n)
{
	for (size_t i = 0; i < r->nthreads; i++) {
		struct wait *w = r->threads[i]->wait;
		struct pollfd *slot;

		if (w == NULL || w->called_back || r->threads[i]->phase != PHASE_ASKED)
			continue;
		if (w->epoll != NULL) {
			if ((slot = ARRAY_ADD(*fds, n)) != NULL)
				*slot = (struct pollfd){w->epoll->fd, POLLIN, 0};
			continue;
		}
		for (size_t k = 0; k < w->n; k++)
			if (w->ours[k].fd >= 0 && (slot = ARRAY_ADD(*fds, n)) != NULL)
				*slot = w->ours[k];
	}
	return n;
}

void
wait_ready(struct run *r)
{
	for (size_t i = 0; i < r->nthreads; i++) {
		struct thread *t = r->threads[i];

		if (t->wait != NULL && !t->wait->called_back && t->phase == PHASE_ASKED && ready_here(t->wait)) {
			t->wait->called_back = true;
			call_recall(r, t);
		}
	}
}
