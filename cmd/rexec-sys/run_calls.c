/*
 * What becomes of a call: the thread executes it itself, or the other machine does, or we know the answer.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "io.h"
#include "log.h"
#include "run.h"

enum { LONG = 64 << 10, PIECE = 128 << 10, PARTS_FROM = 512 << 10 };

static void received(struct run *r, uint32_t id, const unsigned char *body, size_t len);

/* --- answers */

/* It runs again. */
static void
answered(struct thread *t)
{
	t->notification = 0;
	t->phase = PHASE_NONE;
}

/* That fails only where it has been killed. */
static void
answer(struct thread *t, struct seccomp_notif_resp *a)
{
	a->id = t->notification;
	ioctl(t->process->listener, SECCOMP_IOCTL_NOTIF_SEND, a);
	answered(t);
}

void
call_respond(struct thread *t, int64_t result)
{
	bool failed = result < 0 && result >= -4095;

	answer(t, &(struct seccomp_notif_resp){.val = failed ? 0 : result, .error = failed ? (int)result : 0});
}

void
call_continue(struct thread *t)
{
	answer(t, &(struct seccomp_notif_resp){.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE});
}

void
call_give_fd(struct run *r, struct thread *t, int source, int at, bool cloexec, bool answer)
{
	struct seccomp_notif_addfd give = {.id = t->notification, .srcfd = (uint32_t)source, .newfd = (uint32_t)at,
	    .flags = SECCOMP_ADDFD_FLAG_SETFD | (answer ? SECCOMP_ADDFD_FLAG_SEND : 0), .newfd_flags = cloexec ? O_CLOEXEC : 0};

	if (ioctl(t->process->listener, SECCOMP_IOCTL_NOTIF_ADDFD, &give) >= 0) {
		if (answer)
			answered(t);
		return;
	}
	if (errno == ENOENT)
		return; /* it has been killed */
	/* Its limit does not allow the number. */
	file_set(r, t->process, at, NOWHERE);
	CALL_NOW(r, t, SYS_close, (uint64_t)at);
	if (answer)
		call_respond(t, -EMFILE);
}

/* --- there and back */

/* One that waits and was begun again, as a signal did not end it, has waited for a while already. */
static void
shorten(struct thread *t)
{
	unsigned at = t->sent.nr == SYS_poll ? 2 : t->sent.nr == SYS_epoll_wait || t->sent.nr == SYS_epoll_pwait ? 3 : 6;
	int64_t timeout_ms = at < 6 ? (int)t->sent.arg[at] : -1;

	if (timeout_ms <= 0)
		return;
	t->sent.arg[at] = (uint64_t)max_i64(0, timeout_ms - (now_ms() - t->begun_ms));
	t->data.arg[at].value = t->sent.arg[at];
}

void
call_send(struct run *r, struct thread *t)
{
	shorten(t);
	t->parted = 0;
	t->parts_bad = false;
	t->data.parts = (t->sent.nr == SYS_read || t->sent.nr == SYS_pread64) && t->sent.arg[2] >= PARTS_FROM && t->wait == NULL;
	if (r->ended || remote_send(&r->remote, t->number, &t->data, &t->id) < 0) {
		run_lost(r, NULL);
		return;
	}
	t->phase = PHASE_ASKED;
	t->asked_tick = r->tick;
	r->just_asked = true;
	if (t->process->stopping)
		call_recall(r, t);
}

void
call_recall(struct run *r, struct thread *t)
{
	/* What does not wait comes anyway, and a close is done when it has been sent. */
	if (t->phase != PHASE_ASKED || !syscall_blocks(t->sent.nr) || t->sent.nr == SYS_close || t->sent.nr == SYS_close_range)
		return;
	t->phase = PHASE_RECALLED;
	if (!r->ended && link_send(&r->remote.link, MSG_CANCEL, t->id, NULL, 0) < 0)
		run_lost(r, NULL);
}

/* What the table cannot describe. */
static void
refuse(struct thread *t)
{
	if (t->call.nr == SYS_ioctl && t->call.arg[1] == TIOCSCTTY) {
		/* It stays that of here; but who opens a terminal for others wants to hear that this is done. */
		call_respond(t, 0);
	} else if (t->call.nr == SYS_ioctl) {
		debug(1, "ioctl %#llx: not known, and so not forwarded", (unsigned long long)t->call.arg[1]);
		call_respond(t, -ENOTTY);
	} else {
		debug(1, "%s: cannot be forwarded", syscall_name(t->call.nr));
		call_respond(t, t->call.nr == SYS_fcntl ? -EINVAL : -ENOSYS);
	}
}

void
call_forward_as(struct run *r, struct thread *t, const struct arch_call *call)
{
	int err;

	calldata_fini(&t->data);
	t->sent = *call;
	err = calldata_from_memory(&t->data, &t->sent, thread_read, t);
	if (err == -ENOTSUP || err == -ENOSYS) {
		refuse(t);
		return;
	}
	if (err == 0 && table_sends_here(t))
		err = -EINVAL;
	if (err < 0)
		call_respond(t, err);
	else
		call_send(r, t);
}

void
call_forward(struct run *r, struct thread *t)
{
	call_forward_as(r, t, &t->call);
}

/* A write to a pipe or socket that nobody reads. */
static void
raise_sigpipe(struct thread *t)
{
	static const long writes[] = {SYS_write, SYS_writev, SYS_pwrite64, SYS_pwritev, SYS_sendto, SYS_sendmsg, SYS_sendfile, SYS_splice, SYS_tee};
	uint64_t flags = t->sent.nr == SYS_sendto ? t->sent.arg[3] : t->sent.nr == SYS_sendmsg ? t->sent.arg[2] : 0;

	for (size_t i = 0; i < ARRAY_LEN(writes); i++)
		if (t->sent.nr == writes[i] && (flags & MSG_NOSIGNAL) == 0)
			syscall(SYS_tgkill, t->process->pid, t->tid, SIGPIPE);
}

static bool
opens_cloexec(const struct thread *t)
{
	const struct arch_call *c = &t->sent;
	uint64_t flags = 0;

	switch (c->nr) {
	case SYS_open:
		return (c->arg[1] & O_CLOEXEC) != 0;
	case SYS_openat:
		return (c->arg[2] & O_CLOEXEC) != 0;
	case SYS_socket:
		return (c->arg[1] & SOCK_CLOEXEC) != 0;
	case SYS_accept4:
		return (c->arg[3] & SOCK_CLOEXEC) != 0;
	case SYS_inotify_init1:
		return (c->arg[0] & O_CLOEXEC) != 0;
	case SYS_openat2: /* the flags are in a struct */
		if (t->data.arg[2].is_data)
			memcpy(&flags, t->data.data.data + t->data.arg[2].value, min_u64(t->data.arg[2].len, sizeof(flags)));
		return (flags & O_CLOEXEC) != 0;
	default:
		return c->nr == SYS_mq_open;
	}
}

void
call_complete(struct run *r, struct thread *t)
{
	bool not_begun = t->result == ARCH_NOT_BEGUN;
	int err;

	/* Numbers that no program knows stay between us and the kernel. */
	if (t->result <= -512 && t->result >= -4095)
		t->result = -EINTR;
	/* Home says so when a signal has come there, which is sent first. */
	if ((t->phase == PHASE_RECALLED || r->away) && t->result == -EINTR && !wait_called_back(t)) {
		wait_drop(t);
		trace_interrupted(t, not_begun);
		return;
	}
	if (wait_complete(t) || table_complete(r, t) || (r->away && mirror_complete(t)))
		return;
	if (t->result == -EPIPE)
		raise_sigpipe(t);
	err = calldata_to_memory(&t->data, &t->sent, t->result, thread_read, thread_write, t);
	if (err == 0 && t->result >= 0 && syscall_new_fd(t->sent.nr)) {
		file_set(r, t->process, t->result, THERE);
		call_give_fd(r, t, r->placeholder, (int)t->result, opens_cloexec(t), true);
	} else if (t->result >= 0 && t->sent.nr == SYS_ioctl && (t->sent.arg[1] == FIOCLEX || t->sent.arg[1] == FIONCLEX)) {
		call_continue(t);
	} else {
		call_respond(t, err < 0 ? err : t->result);
	}
}

static struct thread *
who_asked(const struct run *r, uint32_t id)
{
	for (size_t i = 0; i < r->nthreads; i++)
		if (r->threads[i]->id == id && (r->threads[i]->phase == PHASE_ASKED || r->threads[i]->phase == PHASE_RECALLED))
			return r->threads[i];
	return NULL;
}

/* The buffer of a call that gives bytes and nothing else, for one who waits for them. */
static struct calldata_arg *
only_bytes(struct thread *t)
{
	struct calldata_arg *bytes = NULL;

	if (t == NULL || t->wait != NULL)
		return NULL;
	for (unsigned i = 0; i < t->data.nargs; i++) {
		if (!t->data.arg[i].is_data || !calldata_gives(&t->data.arg[i]))
			continue;
		if (bytes != NULL || t->data.arg[i].type[0] != 'r')
			return NULL;
		bytes = &t->data.arg[i];
	}
	return bytes;
}

/* So many bytes, that come now, are the next that it reads. */
static int
pull_to_thread(struct run *r, struct thread *t, const struct calldata_arg *a, uint64_t len, bool *bad)
{
	static unsigned char piece[PIECE];
	int err = 0;

	for (uint64_t n; err == 0 && len > 0; len -= n) {
		n = min_u64(PIECE, len);
		err = link_pull(&r->remote.link, piece, n);
		*bad |= err == 0 && thread_write(t, t->sent.arg[a - t->data.arg] + t->parted, piece, n) < 0;
		t->parted += n;
	}
	return err;
}

/* Much data goes to the thread as it comes: while one piece is copied, the next is on its way. */
static int
receive_long(struct run *r, const struct msg_header *h)
{
	struct thread *t = who_asked(r, h->id);
	struct calldata_arg *a = only_bytes(t);
	uint64_t head[2] = {0, h->length}; /* the result, and how many bytes come */
	unsigned char *whole;
	bool bad = false;
	int err = 0;

	if (a == NULL) {
		whole = malloc(h->length);
		err = whole == NULL ? -ENOMEM : link_pull(&r->remote.link, whole, h->length);
		if (err == 0 && h->type == MSG_RESULT)
			received(r, h->id, whole, h->length);
		free(whole);
		return err;
	}
	if (h->type == MSG_RESULT)
		err = link_pull(&r->remote.link, head, sizeof(head));
	if (err == 0 && (head[1] > a->len - t->parted || (h->type == MSG_PART ? !t->data.parts
		: head[1] + sizeof(head) != h->length || head[0] != t->parted + head[1])))
		err = fail(EPROTO, "%s: an answer that makes no sense", r->options->address);
	if (err == 0)
		err = pull_to_thread(r, t, a, head[1], &bad);
	if (err == 0 && h->type == MSG_RESULT) {
		a->is_data = false; /* it has it already */
		t->result = bad || t->parts_bad ? -EFAULT : (int64_t)head[0];
		call_complete(r, t);
	}
	t->parts_bad |= bad;
	return err;
}

/* The last piece of what has come in parts, or one of them: it is short. Returns false where that is not so. */
static bool
last_part(struct run *r, struct thread *t, unsigned type, const unsigned char *body, size_t len)
{
	struct calldata_arg *a = only_bytes(t);
	struct rbuf b = {body, len, 0, false};
	uint64_t result = type == MSG_RESULT ? rbuf_get_u64(&b) : 0, n = type == MSG_RESULT ? rbuf_get_u64(&b) : len;
	const void *data = rbuf_get(&b, n);

	if (a == NULL || (type == MSG_RESULT && t->parted == 0))
		return false;
	if (b.failed || rbuf_left(&b) > 0 || n > a->len - t->parted || !t->data.parts || (type == MSG_RESULT && result != t->parted + n)) {
		run_lost(r, "an answer that makes no sense");
		return true;
	}
	t->parts_bad |= thread_write(t, t->sent.arg[a - t->data.arg] + t->parted, (void *)data, n) < 0;
	t->parted += n;
	if (type == MSG_RESULT) {
		a->is_data = false;
		t->result = t->parts_bad ? -EFAULT : (int64_t)result;
		call_complete(r, t);
	}
	return true;
}

static void
received(struct run *r, uint32_t id, const unsigned char *body, size_t len)
{
	struct thread *t = who_asked(r, id);

	if (t == NULL)
		return; /* it has ended meanwhile */
	if (last_part(r, t, MSG_RESULT, body, len))
		return;
	if (calldata_get_result(&t->data, body, len, &t->result) < 0) {
		run_lost(r, "an answer that makes no sense");
		return;
	}
	call_complete(r, t);
}

static void
received_other(struct run *r, const struct msg_header *h, const unsigned char *body)
{
	struct thread *t = h->type == MSG_PART ? who_asked(r, h->id) : NULL;

	if (h->type != MSG_PART)
		away_received(r, h, body);
	else if (t != NULL && !last_part(r, t, MSG_PART, body, h->length))
		run_lost(r, "an answer that makes no sense");
}

/* Results that came while another was waited for come first. */
static void
take_queued(struct run *r)
{
	while (r->nresults > 0) {
		struct result q = r->results[0];

		memmove(r->results, r->results + 1, --r->nresults * sizeof(*r->results));
		received(r, q.id, q.body.data, q.body.len);
		buf_fini(&q.body);
	}
}

void
calls_received(struct run *r)
{
	const unsigned char *body;
	struct msg_header h;
	int err = 0;

	do {
		take_queued(r);
		if (!r->ended && link_begin_long(&r->remote.link, &h, LONG) == 1) {
			err = receive_long(r, &h);
			continue;
		}
		err = r->ended ? -EAGAIN : link_receive(&r->remote.link, &h, &body, false, 0);
		if (err == 0 && h.type != MSG_RESULT)
			received_other(r, &h, body);
		else if (err == 0)
			received(r, h.id, body, h.length);
	} while (err == 0 && !r->ended && link_waiting(&r->remote.link)); /* else poll(2) tells */
	if (err != -EAGAIN && err != 0)
		run_lost(r, err == -ECONNRESET ? "the connection has ended" : NULL);
	take_queued(r);
}

/* --- at once, for ourselves */

/* Our own memory, by the same way: what is asked for behind the end of a string may not be there. */
static struct thread *
ourselves(void)
{
	static struct thread self;

	self.tid = getpid();
	return &self;
}

int64_t
call_now(struct run *r, struct thread *t, long nr, const uint64_t arg[6])
{
	struct arch_call call = {.nr = nr};
	const unsigned char *body;
	struct calldata c = {0};
	struct msg_header h;
	int64_t result = -EIO;
	uint32_t id;
	int err;

	memcpy(call.arg, arg, sizeof(call.arg));
	err = r->ended ? -EIO : calldata_from_memory(&c, &call, thread_read, ourselves());
	if (err == 0)
		err = remote_send(&r->remote, t->number, &c, &id);
	while (err == 0 && (err = link_receive(&r->remote.link, &h, &body, true, 0)) == 0) {
		struct result *q;

		if (h.type == MSG_RESULT && h.id == id) {
			err = calldata_get_result(&c, body, h.length, &result);
			break;
		}
		if (h.type != MSG_RESULT) {
			received_other(r, &h, body);
			continue;
		}
		q = ARRAY_ADD(r->results, r->nresults);
		if (q == NULL)
			err = -ENOMEM;
		else
			q->id = h.id, buf_put(&q->body, body, h.length);
	}
	if (err == 0)
		err = calldata_to_memory(&c, &call, result, thread_read, thread_write, ourselves());
	else
		run_lost(r, "the connection has ended");
	calldata_fini(&c);
	return err < 0 ? -EIO : result;
}

/* --- what is asked */

static void
known(struct run *r, struct thread *t)
{
	const struct facts *f = &r->remote.facts;
	const uint64_t *a = t->call.arg;
	int64_t result = 0;
	bool bad = false;

	switch (t->call.nr) {
	case SYS_getuid:
		result = f->uid[0];
		break;
	case SYS_geteuid:
		result = f->uid[1];
		break;
	case SYS_getgid:
		result = f->gid[0];
		break;
	case SYS_getegid:
		result = f->gid[1];
		break;
	case SYS_getresuid:
	case SYS_getresgid:
		for (unsigned i = 0; i < 3; i++)
			bad |= thread_write(t, a[i], (void *)(t->call.nr == SYS_getresuid ? &f->uid[i] : &f->gid[i]), 4) < 0;
		break;
	case SYS_getgroups:
		result = f->ngroups;
		if ((int)a[0] != 0 && (int)a[0] < result)
			result = -EINVAL;
		else if ((int)a[0] != 0 && result > 0)
			bad = thread_write(t, a[1], (void *)f->groups, 4 * (size_t)result) < 0;
		break;
	case SYS_uname:
		bad = thread_write(t, a[0], (void *)f->utsname, sizeof(f->utsname)) < 0;
		break;
	}
	call_respond(t, bad ? -EFAULT : result);
}

/* All of its files are of here or all of there; of both only few calls can make something. Returns false where it is not about files. */
static bool
by_files(struct run *r, struct thread *t)
{
	bool here = false, there = false, none = false, any = false;
	struct calldata types;

	if (calldata_init(&types, t->call.nr) < 0)
		return false;
	for (unsigned i = 0; i < types.nargs; i++) {
		if (!calldata_is(&types.arg[i], "fd"))
			continue;
		any = true;
		switch (file_where(t->process, (int)t->call.arg[i])) {
		case NOWHERE:
			none = true;
			break;
		case HERE:
			here = true;
			break;
		case THERE:
			there = true;
		}
	}
	if (t->call.nr == SYS_ioctl && t->call.arg[1] == FICLONE)
		there |= file_where(t->process, (int)t->call.arg[2]) == THERE, here |= file_where(t->process, (int)t->call.arg[2]) == HERE;
	if (!any)
		return false;
	if (none)
		call_respond(t, -EBADF);
	else if (here && there) /* programs that ask so copy by themselves then */
		call_respond(t, t->call.nr == SYS_copy_file_range || t->call.nr == SYS_ioctl ? -EXDEV : -EINVAL);
	else if (there && t->call.nr == SYS_ioctl && t->call.arg[1] == TIOCSCTTY)
		refuse(t);
	else if (here && t->call.nr == SYS_fchdir)
		call_respond(t, -EACCES);
	else if (here && !(t->call.nr == SYS_ioctl && (t->call.arg[1] == FIOCLEX || t->call.arg[1] == FIONCLEX)))
		call_continue(t);
	else
		call_forward(r, t);
	return true;
}

static void
begin(struct run *r, struct thread *t)
{
	if (t->again.nr != t->call.nr || memcmp(t->again.arg, t->call.arg, sizeof(t->again.arg)) != 0)
		t->begun_ms = now_ms();
	t->again.nr = -1;
	if (r->away && mirror_call(r, t))
		return;
	switch (syscall_class(t->call.nr)) {
	case SYSCALL_KNOWN:
		known(r, t);
		return;
	case SYSCALL_BOTH:
		if (!table_call(r, t))
			call_forward(r, t);
		return;
	case SYSCALL_WAIT:
		if (!wait_call(r, t))
			call_forward(r, t);
		return;
	case SYSCALL_HOME:
		if (!by_files(r, t) && !paths_call(r, t))
			call_forward(r, t);
		return;
	default:
		call_continue(t);
	}
}

void
calls_notified(struct run *r, int listener)
{
	struct seccomp_notif n = {0};
	struct thread *t;

	if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &n) < 0)
		return; /* a signal came first, and it begins again */
	t = thread_find(r, (pid_t)n.pid);
	if (t == NULL || t->process == NULL || r->ended)
		return; /* it is being ended */
	t->call.nr = n.data.nr;
	memcpy(t->call.arg, n.data.args, sizeof(t->call.arg));
	t->notification = n.id;
	t->peeked = 0;
	begin(r, t);
}
