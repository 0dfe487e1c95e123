/*
 * What a caller sends, and what is done with it.
 */
#include "session.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <linux/close_range.h>
#include <linux/magic.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include "io.h"
#include "log.h"
#include "guest.h"

enum { OWN_FILES = 8, PIECE = 128 << 10 };
#define CALL_AT(p) ((uint64_t)(uintptr_t)(p))
#define MQUEUE_MAGIC 0x19800202 /* not in linux/magic.h */

/* --- what may be executed, and where */

/* What tells or asks something of this process, and can do it no harm. */
static bool
is_harmless(long nr)
{
	static const long calls[] = {SYS_getpid, SYS_getppid, SYS_gettid, SYS_getpgid, SYS_getsid, SYS_getpgrp, SYS_getpriority, SYS_getrlimit,
	    SYS_getrusage, SYS_sysinfo, SYS_times, SYS_clock_gettime, SYS_clock_getres, SYS_gettimeofday, SYS_time, SYS_kill, SYS_nanosleep,
	    SYS_clock_nanosleep, SYS_sched_yield, SYS_getrandom, SYS_sched_getaffinity};

	for (size_t i = 0; i < ARRAY_LEN(calls); i++)
		if (calls[i] == nr)
			return true;
	return false;
}

static bool
may_execute(const struct session *s, long nr)
{
	enum syscall_class class = syscall_class(nr);

	if (s->pid != 0)
		return !syscall_never_lent(nr);
	if (syscall_never_lent(nr) || nr == SYS_mmap)
		return false;
	return class == SYSCALL_HERE ? is_harmless(nr) : class != SYSCALL_NONE;
}

/* Our own fds do not exist for callers. Returns false where the call is about one of them. */
static bool
spare_own(const struct session *s, struct calldata *c)
{
	unsigned last = (unsigned)s->floor - 1;

	if (c->nr == SYS_close_range) {
		if ((unsigned)c->arg[0].value > last || (c->arg[2].value & CLOSE_RANGE_UNSHARE) != 0)
			return false;
		c->arg[1].value = min_u64((unsigned)c->arg[1].value, last);
	}
	for (unsigned i = 0; i < c->nargs; i++)
		if (calldata_is(&c->arg[i], "fd") || calldata_is(&c->arg[i], "dfd"))
			if ((int)c->arg[i].value > (int)last)
				return false;
	return true;
}

/* On file systems that are made of programs a regular file may wait for others. */
static bool
is_made_up(const struct statfs *fs)
{
	return fs->f_type == PROC_SUPER_MAGIC || fs->f_type == TRACEFS_MAGIC || fs->f_type == DEBUGFS_MAGIC || fs->f_type == SYSFS_MAGIC ||
	    fs->f_type == FUSE_SUPER_MAGIC || fs->f_type == MQUEUE_MAGIC;
}

static bool
is_plain(int fd)
{
	struct stat st;
	struct statfs fs;

	return fstat(fd, &st) < 0 || S_ISDIR(st.st_mode) || (S_ISREG(st.st_mode) && (fstatfs(fd, &fs) < 0 || !is_made_up(&fs)));
}

/* Opening: what is there now? */
static bool
path_is_plain(const struct calldata *c)
{
	unsigned at = calldata_is(&c->arg[0], "dfd") ? 1 : 0;
	struct stat st;

	if (c->nr == SYS_openat2) /* it may mean another file */
		return false;

	return !c->arg[at].is_data || fstatat(at == 1 ? (int)c->arg[0].value : AT_FDCWD, (const char *)c->data.data + c->arg[at].value, &st, 0) < 0 ||
	    S_ISREG(st.st_mode) || S_ISDIR(st.st_mode);
}

static bool
may_wait(const struct calldata *c)
{
	if (!syscall_blocks(c->nr))
		return c->nr == SYS_nanosleep || c->nr == SYS_clock_nanosleep;
	switch (c->nr) {
	case SYS_open:
	case SYS_openat:
	case SYS_openat2:
	case SYS_creat:
		return !path_is_plain(c);
	case SYS_poll:
		return c->arg[2].value != 0;
	case SYS_epoll_wait:
	case SYS_epoll_pwait:
		return c->arg[3].value != 0;
	case SYS_fcntl:
		return c->arg[1].value == F_SETLKW || c->arg[1].value == F_OFD_SETLKW;
	case SYS_flock:
	case SYS_splice:
	case SYS_tee:
	case SYS_mq_timedsend:
	case SYS_mq_timedreceive:
	case SYS_syslog:
	case SYS_close_range:
		return true;
	case SYS_dup2:
	case SYS_dup3:
		return !is_plain((int)c->arg[1].value); /* which is closed */
	default:
		return c->nargs == 0 || !calldata_is(&c->arg[0], "fd") || !is_plain((int)c->arg[0].value);
	}
}

/* --- executing */

/* In the process that is served: by a thread of ours there. */
static int64_t
execute_in(const struct session *s, struct guest **guest, struct calldata *c, const volatile int *cancelled)
{
	struct guest *g;
	int err;

	if (*guest == NULL) {
		g = calloc(1, sizeof(*g));
		err = g == NULL ? -ENOMEM : guest_begin(g, s->pid);
		if (err < 0) {
			free(g);
			return err;
		}
		*guest = g;
	}
	return guest_call(*guest, c, cancelled);
}

void
session_execute(struct session *s, struct guest **guest, struct calldata *c, const volatile int *cancelled, struct answer *a)
{
	static const unsigned char room[MSG_HEADER];
	int64_t result = calldata_native_room(c);
	struct arch_call call;

	if (s->pid != 0) {
		result = result == 0 ? execute_in(s, guest, c, cancelled) : result;
	} else if (call_is_strange(c)) {
		result = -ENOPROTOOPT;
	} else if (result == 0) {
		call_tame(c);
		call = calldata_native(c, (taddr)(uintptr_t)c->data.data);
		result = arch_interruptible_call(cancelled, &call);
		calldata_native_done(c);
	}
	buf_put(&a->head, room, sizeof(room));
	calldata_put_result(&a->head, c, result, &a->tail, &a->tail_len);
}

void
session_answer(struct session *s, uint32_t id, struct answer *a)
{
	link_send_parts(s->link, MSG_RESULT, id, &a->head, a->tail, a->tail_len);
	buf_fini(&a->head);
}

/* A read of much of a file: while one piece is on its way, the next is read. */
static void
read_in_parts(struct session *s, uint32_t id, struct calldata *c)
{
	static const volatile int never;
	unsigned char *at = c->data.data + c->arg[1].value;
	int64_t result = 0, total = 0, left = (int64_t)min_u64(c->arg[1].len, c->arg[2].value);
	struct answer a = {0};
	int err = 0;

	do {
		struct arch_call call = {c->nr, {c->arg[0].value, CALL_AT(at), min_u64((uint64_t)(left - total), PIECE), c->arg[3].value + (uint64_t)total}};
		static const unsigned char room[MSG_HEADER];

		if (result > 0) {
			a.head = (struct buf){0};
			buf_put(&a.head, room, sizeof(room));
			err = link_send_parts(s->link, MSG_PART, id, &a.head, at, (size_t)result);
			buf_fini(&a.head);
		}
		result = arch_interruptible_call(&never, &call);
		total += max_i64(result, 0);
		if (result < (int64_t)call.arg[2] || total >= left || err < 0) {
			buf_put(&a.head, room, sizeof(room));
			buf_put_u64(&a.head, (uint64_t)(total > 0 ? total : result));
			if (total > 0 || result == 0)
				buf_put_u64(&a.head, (uint64_t)max_i64(result, 0));
			a.tail = at, a.tail_len = (size_t)max_i64(result, 0);
			session_answer(s, id, &a);
			return;
		}
	} while (true);
}

static void
answer(struct session *s, uint32_t id, int64_t result)
{
	struct buf out = {0};

	buf_put_u64(&out, (uint64_t)result);
	link_send(s->link, MSG_RESULT, id, out.data, out.len);
	buf_fini(&out);
}

/* --- his threads */

static struct executor *
find(const struct session *s, uint32_t thread)
{
	for (size_t i = 0; i < s->nexecutors; i++)
		if (s->executors[i]->thread == thread)
			return s->executors[i];
	return NULL;
}

static struct executor *
add(struct session *s, uint32_t thread, struct executor *first)
{
	struct executor *e = calloc(1, sizeof(*e)), **slot;

	if (e == NULL || s->nexecutors >= SESSION_THREADS_MAX || (slot = ARRAY_ADD(s->executors, s->nexecutors)) == NULL) {
		free(e);
		return NULL;
	}
	*slot = e;
	e->session = s;
	e->thread = thread;
	e->first = first != NULL ? first : e;
	e->with_reader = first != NULL && first->with_reader;
	sem_init(&e->go, 0, 0);
	sem_init(&e->done, 0, 0);
	pthread_mutex_init(&e->lock, NULL);
	return e;
}

/* Nothing of the process is left: what the first one had is the reader's. */
static void
gone(struct session *s, struct executor *e)
{
	struct executor *first = e->first, *next = NULL;
	bool with_reader = e->with_reader;
	size_t left = 0;

	for (size_t i = 0; i < s->nexecutors; i++)
		if (s->executors[i] == e)
			s->executors[i--] = s->executors[--s->nexecutors];
		else if (s->executors[i]->first == first)
			left++, next = s->executors[i];
	for (size_t i = 0; i < s->nexecutors && first == e; i++)
		if (s->executors[i]->first == e)
			s->executors[i]->first = next;
	executor_end(e);
	if (left == 0 && with_reader)
		close_others(s, NULL, 0);
}

static int
process_or_thread(struct session *s, const struct msg_header *h, const unsigned char *body)
{
	struct rbuf r = {body, h->length, 0, false};
	uint32_t thread = rbuf_get_u32(&r), by = rbuf_get_u32(&r), *keep = NULL;
	struct executor *parent = find(s, by), *e;
	size_t n = rbuf_left(&r) / 4;
	int err;

	if (r.failed || rbuf_left(&r) % 4 != 0 || parent == NULL || find(s, thread) != NULL)
		return fail(EPROTO, "%s: a thread of a process that is not there", s->link->peer);
	e = add(s, thread, h->type == MSG_THREAD ? parent->first : NULL);
	keep = malloc(4 * n + 4);
	if (e == NULL || keep == NULL) {
		free(keep);
		return fail(EAGAIN, "%s: more threads than %d, or out of memory", s->link->peer, SESSION_THREADS_MAX);
	}
	for (size_t i = 0; i < n; i++)
		keep[i] = rbuf_get_u32(&r);
	err = executor_start(e, parent, keep, n);
	free(keep);
	return err;
}

static int
call(struct session *s, const struct msg_header *h, const unsigned char *body)
{
	static const volatile int never;
	struct rbuf r = {body, h->length, 0, false};
	struct executor *e = find(s, rbuf_get_u32(&r));
	struct calldata c;
	struct answer a = {0};
	int err = r.failed || e == NULL ? -EPROTO : calldata_get_call(&c, body + r.pos, h->length - r.pos);

	if (err == -EPROTO)
		return fail(EPROTO, "%s: a call that makes no sense", s->link->peer);
	if (err == 0 && !may_execute(s, c.nr))
		err = -ENOSYS;
	if (err == 0 && s->pid == 0 && !spare_own(s, &c))
		err = -EBADF;
	if (err < 0)
		answer(s, h->id, err == -ENOTSUP ? -ENOSYS : err);
	else if (s->pid == 0 && e->with_reader && !may_wait(&c) && c.parts && c.arg[1].is_data)
		read_in_parts(s, h->id, &c);
	else if (s->pid == 0 && e->with_reader && !may_wait(&c))
		session_execute(s, NULL, &c, &never, &a), session_answer(s, h->id, &a);
	else if ((err = executor_call(e, &c, h->id)) == -EAGAIN)
		answer(s, h->id, -EAGAIN);
	calldata_fini(&c);
	return err == -EPROTO ? fail(EPROTO, "%s: a thread that waits already calls again", s->link->peer) : 0;
}

static int
handle(struct session *s, const struct msg_header *h, const unsigned char *body)
{
	struct rbuf r = {body, h->length, 0, false};
	struct executor *e = h->type == MSG_GONE || h->type == MSG_EXECUTED ? find(s, rbuf_get_u32(&r)) : NULL;

	if (s->pid != 0 && (h->type == MSG_PROCESS || h->type == MSG_EXECUTED))
		return fail(ENOTSUP, "process %d is served: for calls, not for a command with processes of its own", (int)s->pid);
	switch (h->type) {
	case MSG_CALL:
		return call(s, h, body);
	case MSG_CANCEL:
		for (size_t i = 0; i < s->nexecutors; i++)
			executor_cancel(s->executors[i], h->id);
		return 0;
	case MSG_PROCESS:
	case MSG_THREAD:
		return process_or_thread(s, h, body);
	case MSG_GONE:
		if (e != NULL)
			gone(s, e);
		return 0;
	case MSG_EXECUTED:
		if (e != NULL)
			executor_executed(e);
		return 0;
	default:
		return -EPROTO;
	}
}

/* --- the beginning and the end */

static void
put_own_facts(struct buf *out)
{
	uid_t u[3];
	gid_t g[3], groups[1024];
	int n = getgroups(ARRAY_LEN(groups), groups);

	getresuid(&u[0], &u[1], &u[2]);
	getresgid(&g[0], &g[1], &g[2]);
	put_facts(out, u, g, groups, (size_t)max_i64(n, 0));
}

/* Our fds out of the way, and none for callers but 0, 1 and 2, which lead nowhere. */
static int
clear_the_table(struct session *s)
{
	struct rlimit limit;
	int null = open("/dev/null", O_RDWR), err;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || null < 0)
		return fail_errno("/dev/null");
	limit.rlim_cur = min_u64(limit.rlim_max, SESSION_FILES_MAX + OWN_FILES);
	setrlimit(RLIMIT_NOFILE, &limit);
	s->floor = (int)limit.rlim_cur - OWN_FILES;
	if (link_move_up(s->link, s->floor) < 0)
		return fail(EMFILE, "no fd for the connection");
	/* What is to be said here still goes where it went. */
	err = fd_move_up(dup(STDERR_FILENO), s->floor);
	if (err >= 0)
		log_to(err);
	for (int fd = 0; fd < 3; fd++)
		dup2(null, fd);
	if (null > 2)
		close(null);
	close_range(3, (unsigned)s->floor - 1, 0);
	s->proc = fd_move_up(open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC), s->floor);
	/* From now on nobody gets one of our numbers. */
	limit.rlim_cur = (rlim_t)s->floor;
	return setrlimit(RLIMIT_NOFILE, &limit) < 0 ? fail_errno("limits") : 0;
}

int
session_run(struct link *link, pid_t pid)
{
	struct session s = {.link = link, .pid = pid};
	const unsigned char *body;
	struct msg_header h;
	struct executor *first;
	struct buf facts = {0};
	int err;

	link_start(link, SIDE_HOME);
	err = link_receive(link, &h, &body, true, now_ms() + LINK_HANDSHAKE_MS);
	if (err == 0 && (h.type != MSG_CALLS || msg_get_hello(body, h.length) < 0))
		err = fail(EPROTO, "%s: speaks another version of the protocol", link->peer);
	if (err == -EPROTO)
		link_fail(link, "another version of the protocol, or out of order");
	if (err == 0)
		err = clear_the_table(&s);
	if (err == 0)
		err = executors_begin();
	if (err == 0 && (first = add(&s, 1, NULL)) == NULL)
		err = fail(ENOMEM, "out of memory");
	if (err < 0)
		return err;
	first->with_reader = true;
	put_own_facts(&facts);
	err = link_send(link, MSG_FACTS, 0, facts.data, facts.len);
	buf_fini(&facts);
	while (err == 0 && (err = link_receive(link, &h, &body, true, 0)) == 0)
		err = handle(&s, &h, body);
	if (err == -EPROTO || err == -EAGAIN || err == -ENOTSUP)
		link_fail(link, log_last());
	/* What we have in another process goes; all else ends with us. */
	while (pid != 0 && s.nexecutors > 0)
		executor_end(s.executors[--s.nexecutors]);
	/* The others end with the process. */
	return err == -ECONNRESET ? 0 : err;
}
