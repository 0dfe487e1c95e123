/*
 * Calls that change the table of files, or that must find something else behind a number.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "io.h"
#include "proc.h"
#include "run.h"

enum { FILES_MAX = 1 << 20 };

/* --- the table */

enum where
file_where(const struct process *p, int64_t fd)
{
	return fd >= 0 && (uint64_t)fd < p->nfiles ? p->files[fd].where : NOWHERE;
}

struct file *
file_at(struct process *p, int64_t fd)
{
	static const struct file none;

	while (fd >= 0 && (uint64_t)fd >= p->nfiles && fd < FILES_MAX)
		if (ARRAY_ADD(p->files, p->nfiles) == NULL)
			break;
	return fd >= 0 && (uint64_t)fd < p->nfiles ? &p->files[fd] : (struct file *)&none;
}

void
file_set(struct run *r, struct process *p, int64_t fd, enum where where)
{
	struct file *f;

	if (file_where(p, fd) == HERE)
		wait_forget(r, p, (int)fd);
	if (fd < 0 || fd >= FILES_MAX || (where == NOWHERE && (uint64_t)fd >= p->nfiles))
		return;
	f = file_at(p, fd);
	if ((uint64_t)fd < p->nfiles)
		*f = (struct file){.where = where};
}

int
file_fetch(const struct thread *t, int fd)
{
	int pidfd = pidfd_open_(t->process->pid), got;

	if (pidfd < 0)
		return pidfd;
	got = (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0);
	got = got < 0 ? -errno : got;
	close(pidfd);
	return got;
}

/* Does it close on exec, as the placeholder has it? */
static bool
is_cloexec(const struct thread *t, int fd)
{
	struct proc_fdinfo info;
	int proc = proc_open(t->tid);
	bool cloexec = proc >= 0 && proc_read_fdinfo(proc, fd, &info) == 0 && (info.flags & O_CLOEXEC) != 0;

	close_fd(&proc);
	return cloexec;
}

/* What is closed there stays here as a placeholder that no exec leaves. */
static void
put_placeholder(struct run *r, struct thread *t, int fd, bool cloexec, bool answer)
{
	file_set(r, t->process, fd, THERE);
	call_give_fd(r, t, r->placeholder, fd, cloexec, answer);
}

static void
forget(struct run *r, struct thread *t, int fd)
{
	if (file_where(t->process, fd) == HERE)
		call_give_fd(r, t, r->placeholder, fd, true, false); /* and so what was there is closed, here and now */
	file_set(r, t->process, fd, NOWHERE);
}

/* A free number for a file of here: one of /dev/null there, opened for it. */
static int64_t
reserve(struct run *r, struct thread *t, bool cloexec)
{
	return CALL_NOW(r, t, SYS_openat, (uint64_t)AT_FDCWD, CALL_ADDRESS("/dev/null"), O_RDWR | (cloexec ? O_CLOEXEC : 0));
}

void
table_add_here(struct run *r, struct thread *t, int fd, bool cloexec)
{
	int64_t at = fd < 0 ? fd : reserve(r, t, cloexec);

	if (at < 0) {
		call_respond(t, at);
	} else {
		file_set(r, t->process, at, HERE);
		call_give_fd(r, t, fd, (int)at, cloexec, true);
	}
	if (fd >= 0)
		close(fd);
}

/* --- files of here that a call makes */

static bool
make_here(struct run *r, struct thread *t)
{
	const uint64_t *a = t->call.arg;
	sigset_t set;
	char *name;
	int fd;

	switch (t->call.nr) {
	case SYS_eventfd:
		fd = eventfd((unsigned)a[0], 0);
		break;
	case SYS_eventfd2:
		fd = eventfd((unsigned)a[0], (int)a[1] & ~EFD_CLOEXEC);
		break;
	case SYS_timerfd_create:
		fd = timerfd_create((int)a[0], (int)a[1] & ~TFD_CLOEXEC);
		break;
	case SYS_signalfd:
	case SYS_signalfd4:
		sigemptyset(&set);
		if (thread_read(t, a[1], &set, 8) < 0)
			return call_respond(t, -EFAULT), true;
		fd = signalfd(-1, &set, t->call.nr == SYS_signalfd4 ? (int)a[3] & ~SFD_CLOEXEC : 0);
		break;
	case SYS_memfd_create:
		name = thread_string(t, a[0]);
		fd = name != NULL ? memfd_create(name, (unsigned)a[1] & ~MFD_CLOEXEC) : -1;
		free(name);
		break;
	case SYS_pidfd_open:
		fd = (int)syscall(SYS_pidfd_open, (pid_t)a[0], (unsigned)a[1]);
		break;
	default:
		return false;
	}
	if (fd < 0)
		return call_respond(t, -errno), true;
	table_add_here(r, t, fd, t->call.nr == SYS_pidfd_open ||
	    (t->call.nr == SYS_memfd_create ? a[1] & MFD_CLOEXEC : t->call.nr == SYS_signalfd4 ? a[3] & O_CLOEXEC :
		t->call.nr == SYS_signalfd || t->call.nr == SYS_eventfd ? 0 : a[1] & O_CLOEXEC) != 0);
	return true;
}

/* --- mapping */

static void
map(struct run *r, struct thread *t)
{
	bool writes = (t->call.arg[3] & MAP_TYPE) != MAP_PRIVATE && (t->call.arg[2] & PROT_WRITE) != 0;
	int fd = (int)t->call.arg[4];
	struct stat st;
	struct copy *c;
	int64_t err;

	if (file_where(t->process, fd) != THERE) {
		call_continue(t);
		return;
	}
	err = CALL_NOW(r, t, SYS_fstat, (uint64_t)fd, CALL_ADDRESS(&st));
	/* Its pages would have to be the same there and here. */
	if (err == 0 && (writes || !S_ISREG(st.st_mode)))
		err = -ENODEV;
	c = err == 0 ? copy_of(r, t, fd, &st, &err) : NULL;
	if (c == NULL) {
		call_respond(t, err);
		return;
	}
	call_give_fd(r, t, c->fd, fd, is_cloexec(t, fd), false);
	call_continue(t);
}

/* --- user and group numbers: they are the other machine's, and stay as they are */

static bool
is_one_of(uint64_t id, const uint32_t *ids, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if ((uint32_t)id == ids[i] || (uint32_t)id == UINT32_MAX)
			return true;
	return false;
}

static bool
set_ids(struct run *r, struct thread *t)
{
	const struct facts *f = &r->remote.facts;
	unsigned n = 1;
	bool user = false, same = true;

	switch (t->call.nr) {
	case SYS_setuid:
	case SYS_setfsuid:
		user = true;
		break;
	case SYS_setreuid:
		user = true, n = 2;
		break;
	case SYS_setresuid:
		user = true, n = 3;
		break;
	case SYS_setgid:
	case SYS_setfsgid:
		break;
	case SYS_setregid:
		n = 2;
		break;
	case SYS_setresgid:
		n = 3;
		break;
	case SYS_setgroups:
		n = 0, same = false;
		break;
	default:
		return false;
	}
	for (unsigned i = 0; i < n; i++)
		same &= is_one_of(t->call.arg[i], user ? f->uid : f->gid, 3);
	if (t->call.nr == SYS_setfsuid || t->call.nr == SYS_setfsgid)
		call_respond(t, user ? f->uid[1] : f->gid[1]);
	else
		call_respond(t, same ? 0 : -EPERM);
	return true;
}

/* --- the calls */

static bool
duplicates(const struct arch_call *c)
{
	return c->nr == SYS_dup || c->nr == SYS_dup2 || c->nr == SYS_dup3 ||
	    (c->nr == SYS_fcntl && (c->arg[1] == F_DUPFD || c->arg[1] == F_DUPFD_CLOEXEC));
}

/*
 * The next descriptor in control data of a message, from *at on, where the one before is (at first 0). Returns false where there is none.
 * What another machine has sent is no better than anything else from there.
 */
static bool
next_passed(const unsigned char *control, size_t len, size_t *at, int *fd)
{
	size_t next = *at + sizeof(*fd);
	struct cmsghdr c;

	for (size_t head = 0; head + sizeof(c) <= len; head += CMSG_ALIGN(c.cmsg_len)) {
		memcpy(&c, control + head, sizeof(c));
		if (c.cmsg_len < sizeof(c) || c.cmsg_len > len - head)
			return false;
		next = max_u64(next, head + sizeof(c));
		if (c.cmsg_level != SOL_SOCKET || c.cmsg_type != SCM_RIGHTS || next + sizeof(*fd) > head + c.cmsg_len)
			continue;
		memcpy(fd, control + next, sizeof(*fd));
		*at = next;
		return true;
	}
	return false;
}

/* Descriptors of here cannot go through a socket of there. */
bool
table_sends_here(const struct thread *t)
{
	const unsigned char *data = t->data.data.data + t->data.arg[1].value;
	struct calldata_parts p;
	size_t at = 0;
	int fd;

	if (t->sent.nr != SYS_sendmsg || !t->data.arg[1].is_data)
		return false;
	p = calldata_parts(data);
	while (next_passed(data + p.control_at, p.control, &at, &fd))
		if (file_where(t->process, fd) == HERE)
			return true;
	return false;
}

static void
close_range_begins(struct run *r, struct thread *t)
{
	struct process *p = t->process;

	if ((t->call.arg[2] & CLOSE_RANGE_CLOEXEC) == 0)
		for (uint64_t fd = (unsigned)t->call.arg[0]; fd < p->nfiles && fd <= (unsigned)t->call.arg[1]; fd++)
			forget(r, t, (int)fd);
	call_forward(r, t);
}

/* One message is as good as many: who wants more asks again. */
static void
one_of_many(struct run *r, struct thread *t)
{
	const uint64_t *a = t->call.arg;

	if ((int)a[2] <= 0)
		call_respond(t, 0);
	else
		call_forward_as(r, t, &(struct arch_call){t->call.nr == SYS_sendmmsg ? SYS_sendmsg : SYS_recvmsg, {a[0], a[1], a[3]}});
}

static void
close_begins(struct run *r, struct thread *t)
{
	/* Now: when the answer comes, another thread may have the number again. */
	if (t->process->nthreads > 1)
		forget(r, t, (int)t->call.arg[0]);
	else
		file_set(r, t->process, (int)t->call.arg[0], NOWHERE);
	call_forward(r, t);
}

/* Of calls about one file, which is there or here. */
static bool
is_native(const struct arch_call *c, enum where where)
{
	switch (c->nr) {
	case SYS_recvmsg:
	case SYS_recvmmsg:
	case SYS_sendmmsg:
		return where == HERE;
	case SYS_fcntl:
		/* Flags of the number are the placeholder's, too. */
		return where == HERE ? !duplicates(c) && c->arg[1] != F_SETFD : where == THERE && c->arg[1] == F_GETFD;
	default:
		return c->nr == SYS_pidfd_send_signal;
	}
}

bool
table_call(struct run *r, struct thread *t)
{
	enum where where = file_where(t->process, (int)t->call.arg[0]);

	if (make_here(r, t) || set_ids(r, t))
		return true;
	if (is_native(&t->call, where)) {
		call_continue(t);
		return true;
	}
	switch (t->call.nr) {
	case SYS_mmap:
		map(r, t);
		break;
	case SYS_recvmmsg:
	case SYS_sendmmsg:
		one_of_many(r, t);
		break;
	case SYS_close_range:
		if ((t->call.arg[2] & CLOSE_RANGE_UNSHARE) != 0)
			call_respond(t, -EINVAL);
		else
			close_range_begins(r, t);
		break;
	case SYS_close:
	case SYS_dup:
	case SYS_dup2:
	case SYS_dup3:
		if (where == NOWHERE)
			call_respond(t, -EBADF);
		else if (t->call.nr == SYS_close)
			close_begins(r, t);
		else
			call_forward(r, t);
		break;
	default:
		return false; /* as it is */
	}
	return true;
}

/* --- what has come of them */

static void
duplicated(struct run *r, struct thread *t)
{
	int from = (int)t->call.arg[0], to = (int)t->result;
	bool cloexec = (t->call.nr == SYS_dup3 && (t->call.arg[2] & O_CLOEXEC) != 0) ||
	    (t->call.nr == SYS_fcntl && t->call.arg[1] == F_DUPFD_CLOEXEC);
	struct file f = *file_at(t->process, from);
	int fd = f.where == HERE ? file_fetch(t, from) : f.epoll != NULL ? f.epoll->fd : r->placeholder;

	if (fd < 0) {
		call_respond(t, fd);
		return;
	}
	if (from != to) {
		file_set(r, t->process, to, f.where);
		file_at(t->process, to)->epoll = f.epoll;
		call_give_fd(r, t, fd, to, cloexec, true);
	} else {
		call_respond(t, to);
	}
	if (f.where == HERE)
		close(fd);
}

static void
pair_made(struct run *r, struct thread *t)
{
	unsigned at = t->call.nr == SYS_socketpair ? 3 : 0;
	uint64_t flags = t->call.nr == SYS_pipe ? 0 : t->call.arg[1];
	int fds[2];

	memcpy(fds, t->data.data.data + t->data.arg[at].value, sizeof(fds));
	if (thread_write(t, t->call.arg[at], fds, sizeof(fds)) < 0) {
		CALL_NOW(r, t, SYS_close, (uint64_t)fds[0]);
		CALL_NOW(r, t, SYS_close, (uint64_t)fds[1]);
		call_respond(t, -EFAULT);
		return;
	}
	put_placeholder(r, t, fds[0], (flags & O_CLOEXEC) != 0, false);
	put_placeholder(r, t, fds[1], (flags & O_CLOEXEC) != 0, false);
	call_respond(t, 0);
}

struct epoll *
epoll_add(struct run *r)
{
	struct epoll *e = calloc(1, sizeof(*e)), **slot = e != NULL ? ARRAY_ADD(r->epolls, r->nepolls) : NULL;

	if (slot == NULL || (e->fd = epoll_create1(EPOLL_CLOEXEC)) < 0) {
		if (slot != NULL)
			r->nepolls--;
		free(e);
		return NULL;
	}
	return *slot = e;
}

static void
epoll_made(struct run *r, struct thread *t)
{
	bool cloexec = t->call.nr == SYS_epoll_create1 && (t->call.arg[0] & EPOLL_CLOEXEC) != 0;
	struct epoll *e = epoll_add(r);

	if (e == NULL) {
		put_placeholder(r, t, (int)t->result, cloexec, true);
		return;
	}
	file_set(r, t->process, t->result, THERE);
	file_at(t->process, t->result)->epoll = e;
	call_give_fd(r, t, e->fd, (int)t->result, cloexec, true);
}

/* One message of struct mmsghdr, which has its length behind the struct msghdr. */
static void
message_of_many(struct thread *t)
{
	uint32_t len = (uint32_t)t->result;

	call_respond(t, thread_write(t, t->call.arg[1] + 56, &len, sizeof(len)) < 0 ? -EFAULT : 1);
}

/* Files that came with a message. */
static void
received(struct run *r, struct thread *t)
{
	const unsigned char *data = t->data.data.data + t->data.arg[1].value;
	/* The rooms are as long as they were asked for; the head says how much came. */
	const unsigned char *control = data + CALLDATA_MSG + round_up(t->data.rooms[0], 16);
	size_t len = min_u64(calldata_parts(data).control, t->data.rooms[1]), at = 0;
	int fd, err;

	while (next_passed(control, len, &at, &fd))
		if (fd >= 0 && fd < FILES_MAX)
			put_placeholder(r, t, fd, (t->sent.arg[2] & MSG_CMSG_CLOEXEC) != 0, false);
	err = calldata_to_memory(&t->data, &t->sent, t->result, thread_read, thread_write, t);
	if (err == 0 && t->call.nr == SYS_recvmmsg)
		message_of_many(t);
	else
		call_respond(t, err < 0 ? err : t->result);
}

bool
table_complete(struct run *r, struct thread *t)
{
	if (syscall_class(t->call.nr) != SYSCALL_BOTH)
		return false;
	if (t->result < 0) {
		call_respond(t, t->result);
		return true;
	}
	switch (t->call.nr) {
	case SYS_close:
		/* Nobody else can see that the placeholder goes, or what is of here; else it has been overlaid already. */
		if (t->process->nthreads == 1)
			call_continue(t);
		else
			call_respond(t, t->result);
		return true;
	case SYS_close_range:
		if ((t->call.arg[2] & CLOSE_RANGE_CLOEXEC) != 0)
			call_continue(t); /* placeholders, too */
		else
			call_respond(t, 0);
		return true;
	case SYS_pipe:
	case SYS_pipe2:
	case SYS_socketpair:
		pair_made(r, t);
		return true;
	case SYS_epoll_create:
	case SYS_epoll_create1:
		epoll_made(r, t);
		return true;
	case SYS_sendmmsg:
		message_of_many(t);
		return true;
	case SYS_recvmsg:
	case SYS_recvmmsg:
		received(r, t);
		return true;
	case SYS_fcntl:
		if (t->call.arg[1] == F_SETFD) {
			call_continue(t); /* the placeholder, too */
			return true;
		}
		if (!duplicates(&t->call))
			return false;
		duplicated(r, t);
		return true;
	case SYS_dup:
	case SYS_dup2:
	case SYS_dup3:
		duplicated(r, t);
		return true;
	default:
		return false;
	}
}
