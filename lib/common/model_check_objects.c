/*
 * What tasks share: open file descriptions and what is behind them.
 */
#include <asm/termbits.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

#include "kind.h"
#include "model_check.h"

/* How many of what the ref of this kind counts, or -1 where it has none. */
static int64_t
list_length(const struct objects *o, int64_t kind)
{
	switch (kind) {
	case KIND_reg:
	case KIND_dir:
	case KIND_gone:
		return (int64_t)o->nfiles;
	case KIND_pipe:
	case KIND_fifo:
		return (int64_t)o->npipes;
	case KIND_eventfd:
		return (int64_t)o->neventfds;
	case KIND_timerfd:
		return (int64_t)o->ntimerfds;
	case KIND_signalfd:
		return (int64_t)o->nsignalfds;
	case KIND_epoll:
		return (int64_t)o->nepolls;
	case KIND_inotify:
		return (int64_t)o->ninotifies;
	case KIND_pidfd:
		return (int64_t)o->npidfds;
	case KIND_unix:
	case KIND_inet:
		return (int64_t)o->nsockets;
	case KIND_uring:
		return (int64_t)o->nurings;
	case KIND_tcp:
		return (int64_t)o->ntcps;
	case KIND_ptm:
	case KIND_pts:
		return (int64_t)o->nptys;
	default:
		return -1;
	}
}

static int
check_files(const struct objects *o, char why[128])
{
	for (size_t i = 0; i < o->nfiles; i++) {
		const struct file_ref *f = &o->files[i];

		if (f->path == NULL || f->path[0] != '/' || strlen(f->path) >= 4096)
			return model_bad(why, "objects.files[%zu]: not an absolute path", i);
		if (f->gone && f->member == NULL)
			return model_bad(why, "objects.files[%zu]: neither here nor there", i);
		if (f->size > INT64_MAX - PAGE_BYTES)
			return model_bad(why, "objects.files[%zu]: too large", i);
	}
	return 0;
}

/* Of what is made once, there is one ofd: sockets, and masters of pseudoterminals. */
static int
check_once(const struct objects *o, char why[128])
{
	unsigned char *sockets = calloc(o->nsockets + 1, 1), *ptys = calloc(o->nptys + 1, 1);
	int err = sockets == NULL || ptys == NULL ? -ENOMEM : 0;

	for (size_t i = 0; i < o->nofds && err == 0; i++) {
		const struct ofd *d = &o->ofds[i];
		bool socket = d->kind == KIND_unix || d->kind == KIND_inet || d->kind == KIND_tcp;
		size_t at = d->kind == KIND_tcp ? (size_t)o->tcps[d->ref].socket : (size_t)d->ref;

		if ((socket && sockets[at]++ != 0) || (d->kind == KIND_ptm && ptys[d->ref]++ != 0))
			err = model_bad(why, "objects.ofds[%zu]: a second one of the same", i);
	}
	free(sockets);
	free(ptys);
	return err;
}

static int
check_ofds(const struct objects *o, char why[128])
{
	for (size_t i = 0; i < o->nofds; i++) {
		const struct ofd *d = &o->ofds[i];
		int64_t n = list_length(o, d->kind);

		if (d->kind < 0 || d->kind >= KIND_unknown)
			return model_bad(why, "objects.ofds[%zu]: unknown kind", i);
		if (n >= 0 ? d->ref < 0 || d->ref >= n : d->path == NULL)
			return model_bad(why, "objects.ofds[%zu]: refers to nothing", i);
		if (d->kind == KIND_gone && o->files[d->ref].member == NULL)
			return model_bad(why, "objects.ofds[%zu]: refers to nothing", i);
		if (d->kind == KIND_unix ? o->sockets[d->ref].family != AF_UNIX
					 : d->kind == KIND_inet && o->sockets[d->ref].family == AF_UNIX)
			return model_bad(why, "objects.ofds[%zu]: refers to another family", i);
		if (d->kind == KIND_inet && o->sockets[d->ref].type == SOCK_STREAM &&
		    o->sockets[d->ref].state == SOCKET_CONNECTED && o->sockets[d->ref].peer < 0)
			return model_bad(why, "objects.ofds[%zu]: connected to nothing", i);
		if (d->policy < EXTERNAL_INHERIT || d->policy > EXTERNAL_REOPEN || (d->policy != 0 && d->path == NULL) ||
		    (d->policy == EXTERNAL_REOPEN && d->path[0] != '/' && (d->ref < 0 || d->ref >= (int64_t)o->nsockets)))
			return model_bad(why, "objects.ofds[%zu]: unknown policy", i);
		if (d->flags > UINT32_MAX || d->pos < 0)
			return model_bad(why, "objects.ofds[%zu]: out of range", i);
	}
	return 0;
}

static int
check_waits(const struct objects *o, char why[128])
{
	for (size_t i = 0; i < o->nepolls; i++)
		for (size_t k = 0; k < o->epolls[i].nitems; k++) {
			const struct epoll_item *item = &o->epolls[i].items[k];

			if (item->fd < 0 || item->fd > MODEL_FD_MAX || item->ofd < 0 || item->ofd >= (int64_t)o->nofds)
				return model_bad(why, "objects.epolls[%zu]: refers to nothing", i);
		}
	for (size_t i = 0; i < o->ninotifies; i++)
		for (size_t k = 0; k < o->inotifies[i].nwatches; k++) {
			const struct inotify_watch *w = &o->inotifies[i].watches[k];

			if (w->path == NULL || w->path[0] != '/' || w->wd < 1 || w->wd > INT32_MAX)
				return model_bad(why, "objects.inotifies[%zu]: malformed", i);
		}
	for (size_t i = 0; i < o->ntimerfds; i++)
		if (o->timerfds[i].value_ns < 0 || o->timerfds[i].interval_ns < 0 ||
		    o->timerfds[i].value_ns > INT64_MAX / 2 || o->timerfds[i].clock < 0 || o->timerfds[i].clock > 15)
			return model_bad(why, "objects.timerfds[%zu]: malformed", i);
	for (size_t i = 0; i < o->nptys; i++)
		if (o->ptys[i].termios.n != sizeof(struct termios2) || o->ptys[i].rows > UINT16_MAX ||
		    o->ptys[i].cols > UINT16_MAX || o->ptys[i].number < 0 || o->ptys[i].number > INT32_MAX)
			return model_bad(why, "objects.ptys[%zu]: malformed", i);
	for (size_t i = 0; i < o->npidfds; i++)
		if (o->pidfds[i].pid != 0 && !model_is_pid(o->pidfds[i].pid))
			return model_bad(why, "objects.pidfds[%zu]: not a process ID", i);
	return 0;
}

/* An address of the family that it is said to be. */
static bool
is_address(const struct bytes *b, int64_t family)
{
	size_t least = family == AF_UNIX ? 2 : family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
	size_t most = family == AF_UNIX ? sizeof(struct sockaddr_un) : least;
	sa_family_t f;

	if (b->n == 0)
		return true;
	if (b->n < least || b->n > most)
		return false;
	memcpy(&f, b->p, sizeof(f));
	return f == family;
}

static bool
are_packets(const struct objects *o, const struct socket_ref *s)
{
	for (size_t i = 0; i < s->nqueue; i++) {
		if (s->queue[i].nofds > 253 /* SCM_MAX_FD */)
			return false;
		for (size_t k = 0; k < s->queue[i].nofds; k++)
			if (s->queue[i].ofds[k] < 0 || s->queue[i].ofds[k] >= (int64_t)o->nofds)
				return false;
	}
	return true;
}

static int
check_socket(const struct objects *o, size_t i, char why[128])
{
	const struct socket_ref *s = &o->sockets[i], *peer;
	bool inet = s->family == AF_INET || s->family == AF_INET6;

	if ((!inet && s->family != AF_UNIX) || s->state < SOCKET_OPEN || s->state > SOCKET_CONNECTED ||
	    (s->type != SOCK_STREAM && s->type != SOCK_DGRAM && (inet || s->type != SOCK_SEQPACKET)))
		return model_bad(why, "objects.sockets[%zu]: unknown kind", i);
	if (!is_address(&s->local, s->family) || !is_address(&s->remote, s->family) || s->backlog < 0 ||
	    s->backlog > INT32_MAX || s->shutdown > 3 || (s->dir != NULL && s->dir[0] != '/') || !are_packets(o, s))
		return model_bad(why, "objects.sockets[%zu]: malformed", i);
	for (size_t k = 0; k < s->noptions; k++)
		if (!sock_option_known(s, &s->options[k]))
			return model_bad(why, "objects.sockets[%zu]: an option that is not known", i);
	if (s->state == SOCKET_LISTENING && (s->nqueue > 0 || s->type == SOCK_DGRAM))
		return model_bad(why, "objects.sockets[%zu]: listens and holds messages", i);
	if (!inet && s->dir == NULL && s->local.n > 2 && s->local.p[2] != '/' && s->local.p[2] != '\0')
		return model_bad(why, "objects.sockets[%zu]: a path from nowhere", i);
	if (s->peer < -1 || s->peer >= (int64_t)o->nsockets || s->peer == (int64_t)i)
		return model_bad(why, "objects.sockets[%zu]: refers to nothing", i);
	if (s->peer < 0)
		return 0;
	peer = &o->sockets[s->peer];
	if (inet && s->state == SOCKET_CONNECTED && s->type == SOCK_STREAM && (s->local.n == 0 || s->remote.n == 0))
		return model_bad(why, "objects.sockets[%zu]: connected without an address", i);
	if (s->state == SOCKET_CONNECTED && (s->type != SOCK_DGRAM || s->remote.n == 0) &&
	    (peer->peer != (int64_t)i || peer->state != SOCKET_CONNECTED || peer->type != s->type ||
		(peer->family == AF_UNIX) == inet))
		return model_bad(why, "objects.sockets[%zu]: its peer is another one's", i);
	return 0;
}

static int
check_shms(const struct objects *o, char why[128])
{
	for (size_t i = 0; i < o->nshms; i++) {
		const struct shm_ref *s = &o->shms[i];

		if (s->removed && !s->sysv)
			return model_bad(why, "objects.shms[%zu]: malformed", i);
		if (s->size == 0 || s->size > ARCH_USER_END || !model_is_huge(s->huge))
			return model_bad(why, "objects.shms[%zu]: bad size", i);
		if (s->sysv && (s->id < 0 || s->id > INT32_MAX))
			return model_bad(why, "objects.shms[%zu]: not an ID", i);
	}
	return 0;
}

static int
check_tcps(const struct objects *o, char why[128])
{
	for (size_t i = 0; i < o->ntcps; i++) {
		const struct tcp_ref *t = &o->tcps[i];
		const struct socket_ref *s = t->socket < 0 || t->socket >= (int64_t)o->nsockets ? NULL : &o->sockets[t->socket];
		uint64_t all = 0;

		if (s == NULL || s->family == AF_UNIX || s->type != SOCK_STREAM || s->peer >= 0 || s->local.n == 0 ||
		    s->remote.n == 0)
			return model_bad(why, "objects.tcps[%zu]: not a connection", i);
		for (size_t k = 0; k < t->nout; k++)
			all += t->out[k].data.n;
		if (t->closed)
			continue;
		if (t->unsent > all || t->snd_wscale < -1 || t->snd_wscale > 14 || t->rcv_wscale < -1 || t->rcv_wscale > 14 ||
		    t->mss == 0 || ((t->send_seq | t->recv_seq | t->mss | t->timestamp | t->snd_wl1 | t->snd_wnd |
		    t->max_window | t->rcv_wnd | t->rcv_wup) >> 32) != 0)
			return model_bad(why, "objects.tcps[%zu]: out of range", i);
	}
	return 0;
}

/* io_uring_setup(2): powers of two, at most so many. */
enum { URING_MOST = 32768 };

static int
check_urings(const struct objects *o, char why[128])
{
	uint64_t turns = 0;

	for (size_t i = 0; i < o->nurings; i++) {
		const struct uring_ref *u = &o->urings[i];
		uint64_t sq = u->sq_entries, cq = u->cq_entries;

		turns += u->sq_head;
		if (sq == 0 || cq < sq || sq > URING_MOST || cq > 2 * URING_MOST || (sq & (sq - 1)) != 0 || (cq & (cq - 1)) != 0 ||
		    ((u->sq_head | u->sq_tail | u->cq_head | u->cq_tail) >> 32) != 0 || (uint32_t)(u->sq_tail - u->sq_head) > sq ||
		    (uint32_t)(u->cq_tail - u->cq_head) > cq || u->array.n != 4 * sq || u->cqes.n != 16 * cq ||
		    u->sqes.n != 64 * sq || turns > 64U << 20)
			return model_bad(why, "objects.urings[%zu]: malformed", i);
	}
	return 0;
}

/* As many as the kernel could have. */
enum { SEMAPHORES_MAX = 32000, SEMAPHORE_MAX = 32767 };

static int
check_sysv(const struct objects *o, char why[128])
{
	for (size_t i = 0; i < o->nsems; i++) {
		const struct sem_ref *s = &o->sems[i];

		if (s->id < 0 || s->id > INT32_MAX || s->nvalues == 0 || s->nvalues > SEMAPHORES_MAX)
			return model_bad(why, "objects.sems[%zu]: malformed", i);
		for (size_t k = 0; k < s->nvalues; k++)
			if (s->values[k] < 0 || s->values[k] > SEMAPHORE_MAX)
				return model_bad(why, "objects.sems[%zu]: not the value of a semaphore", i);
	}
	for (size_t i = 0; i < o->nmsgqs; i++) {
		const struct msgq_ref *q = &o->msgqs[i];

		if (q->id < 0 || q->id > INT32_MAX || q->limit > INT64_MAX)
			return model_bad(why, "objects.msgqs[%zu]: malformed", i);
		for (size_t k = 0; k < q->nmessages; k++)
			if (q->messages[k].type < 1)
				return model_bad(why, "objects.msgqs[%zu]: a message without a type", i);
	}
	return 0;
}

int
objects_check(const struct objects *o, char why[128])
{
	int err = check_files(o, why);

	if (err == 0)
		err = check_shms(o, why);
	if (err == 0)
		err = check_sysv(o, why);
	if (err == 0)
		err = check_tcps(o, why);
	if (err == 0)
		err = check_urings(o, why);
	for (size_t i = 0; i < o->nfilters && err == 0; i++)
		if (o->filters[i].code.n == 0 || o->filters[i].code.n % 8 != 0 || o->filters[i].code.n > 4096 * 8 ||
		    o->filters[i].flags >> 16 != 0)
			err = model_bad(why, "objects.filters[%zu]: not a filter", i);
	for (size_t i = 0; i < o->nsockets && err == 0; i++)
		err = check_socket(o, i, why);
	if (err == 0)
		err = check_ofds(o, why);
	if (err == 0)
		err = check_once(o, why);
	if (err == 0)
		err = check_waits(o, why);
	for (size_t i = 0; i < o->npipes && err == 0; i++)
		if (o->pipes[i].size > INT32_MAX || o->pipes[i].data.n > o->pipes[i].size ||
		    (o->pipes[i].path != NULL && o->pipes[i].path[0] != '/'))
			err = model_bad(why, "objects.pipes[%zu]: holds more than it can", i);
	return err;
}
