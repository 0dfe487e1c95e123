/*
 * One user: a thread reads what he asks for, and sends him what is his, also what others have done for him.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "io.h"
#include "log.h"
#include "pagesrv.h"

enum { LOOK_NS = 60000, RANGES_MAX = 1 << 20, RANGE_BYTES = 16, CREDIT_MAX = 1024, OUTBOX_MAX = 65536, CALLED_MS = 10000 };

struct outgoing {
	enum msg_type type;
	uint32_t id;
	struct buf body;
};

struct buf
message_new(void)
{
	static const unsigned char room[MSG_HEADER];
	struct buf b = {0};

	buf_put(&b, room, sizeof(room));
	return b;
}

void
session_post(struct session *s, enum msg_type type, uint32_t id, struct buf *b)
{
	struct outgoing *o;
	uint64_t one = 1;

	pthread_mutex_lock(&s->outbox_lock);
	o = s->lost || s->noutbox >= OUTBOX_MAX ? NULL : ARRAY_ADD(s->outbox, s->noutbox);
	if (o != NULL && type == MSG_INVALIDATE && s->called_ms == 0)
		s->called_ms = now_ms();
	if (o != NULL)
		*o = (struct outgoing){type, id, *b};
	else
		buf_fini(b);
	pthread_mutex_unlock(&s->outbox_lock);
	*b = (struct buf){0};
	if (write(s->wake, &one, sizeof(one)) < 0)
		debug(LOG_DEBUG, "wake: %s", strerror(errno));
}

static int
send_outbox(struct session *s)
{
	struct outgoing *o;
	size_t n;
	int err = 0;

	pthread_mutex_lock(&s->outbox_lock);
	o = s->outbox;
	n = s->noutbox;
	s->outbox = NULL;
	s->noutbox = 0;
	pthread_mutex_unlock(&s->outbox_lock);
	for (size_t i = 0; i < n; i++) {
		if (err == 0) {
			s->sent += o[i].body.len;
			s->pieces += o[i].type == MSG_PIECE;
			err = link_send_buf(&s->link, o[i].type, o[i].id, &o[i].body);
		}
		buf_fini(&o[i].body);
	}
	free(o);
	return err;
}

/* --- pages */

static int
send_piece(struct session *s, uint32_t id, struct page_pieces *p)
{
	struct buf b = message_new();
	int err;

	page_pieces_put(&b, p);
	s->sent += b.len + p->frame_len;
	s->pieces++;
	s->pages += p->npages;
	err = link_send_parts(&s->link, MSG_PIECE, id, &b, p->frame, p->frame_len);
	buf_fini(&b);
	return err;
}

/* Of a memory that is his alone. */
static int
give_alone(struct session *s, uint32_t id, const struct page_get *g)
{
	struct page_pieces p;
	taddr from;
	uint32_t ahead;
	int err = source_pages(s->reader, g->task, g->addr, g->npages, &p);

	if (err < 0)
		return err;
	p.granted = p.flags & PIECE_BAD ? PAGE_NONE : PAGE_WRITE;
	if (p.granted != PAGE_NONE)
		space_grant(s->space, s, g->task, g->addr, g->npages);
	err = send_piece(s, id, &p);
	ahead = ahead_asked(&s->ahead, g->task, g->addr, g->npages, &from);
	for (uint32_t done = 0, n; err == 0 && done < ahead; done += n) {
		n = (uint32_t)min_u64(ahead - done, PIECE_PAGES);
		if (from + (done + n) * PAGE_BYTES > ARCH_USER_END || space_grant(s->space, s, g->task, from + done * PAGE_BYTES, n))
			continue; /* all his already */
		err = source_pages(s->reader, g->task, from + done * PAGE_BYTES, n, &p);
		p.flags |= PIECE_AHEAD;
		p.granted = PAGE_WRITE;
		s->ahead_pages += p.npages;
		if (err == 0 && !(p.flags & PIECE_BAD))
			err = send_piece(s, 0, &p);
	}
	return err;
}

static int
get(struct session *s, const struct msg_header *h, const unsigned char *body)
{
	struct page_get g;
	int err = page_get_get(&g, body, h->length);

	if (err == 0 && !source_has_task(s->server->source, g.task))
		err = -EPROTO;
	if (err < 0)
		return fail(EPROTO, "%s: asks for what cannot be", s->link.peer);
	space_lock(s->space);
	err = s->shared ? space_ask(s->space, s, h->id, &g) : give_alone(s, h->id, &g);
	space_unlock(s->space);
	return err;
}

static int
called(struct session *s, const struct msg_header *h, const unsigned char *body)
{
	struct page_call c;
	unsigned char *out = NULL;
	const unsigned char *frame, *content = NULL;
	size_t len;
	int err = page_call_get(&c, body, h->length, &frame, &len);

	if (err == 0 && len > 0) {
		out = malloc(FRAME_RAW_MAX);
		if (out == NULL)
			return fail(ENOMEM, "out of memory");
		err = frame_unpack(frame, len, out, &content) == (int64_t)PAGE_BYTES ? 0 : -EPROTO;
	}
	if (err == -EPROTO)
		fail(EPROTO, "%s: gives back what makes no sense", s->link.peer);
	space_lock(s->space);
	s->called_ms = 0;
	if (err == 0)
		err = space_called(s->space, s, &c, content);
	space_unlock(s->space);
	free(out);
	return err;
}

/* --- the rest, behind what is asked for */

static int
add_ranges(struct session *s, const unsigned char *body, size_t len)
{
	struct rbuf r = {body, len, 0, false};
	int64_t task = (int64_t)rbuf_get_u64(&r);

	while (!r.failed && rbuf_left(&r) >= RANGE_BYTES) {
		taddr start = rbuf_get_u64(&r), end = rbuf_get_u64(&r);
		bool at_end = s->at_range == s->nranges;
		struct range *range = s->nranges < RANGES_MAX ? ARRAY_ADD(s->ranges, s->nranges) : NULL;

		if (range == NULL)
			return fail(ENOMEM, "%s: more memory than can be told of", s->link.peer);
		*range = (struct range){task, start, end};
		if (range->start % PAGE_BYTES != 0 || range->end % PAGE_BYTES != 0 || range->start >= range->end || range->end > ARCH_USER_END)
			return fail(EPROTO, "%s: tells of memory that cannot be", s->link.peer);
		if (at_end)
			s->cursor = range->start;
	}
	s->streamed = false;
	return r.failed || rbuf_left(&r) > 0 ? fail(EPROTO, "%s: tells of memory that cannot be", s->link.peer) : 0;
}

static int
stream(struct session *s, const unsigned char *body, size_t len)
{
	struct page_stream p;

	if (page_stream_get(&p, body, len) < 0)
		return fail(EPROTO, "%s: asks for what cannot be", s->link.peer);
	for (size_t i = 0; p.task != 0 && i < s->nranges; i++)
		if (s->ranges[i].task == p.task && p.addr >= s->ranges[i].start && p.addr < s->ranges[i].end) {
			s->at_range = i;
			s->cursor = p.addr;
		}
	s->credit = (uint32_t)min_u64((uint64_t)s->credit + p.credit, CREDIT_MAX);
	return 0;
}

static int
send_last(struct session *s)
{
	struct page_pieces p = {.flags = PIECE_STREAM | PIECE_LAST};

	s->credit--;
	s->streamed = true;
	return send_piece(s, 0, &p);
}

/* One more. */
static int
stream_on(struct session *s)
{
	struct range *range = s->at_range < s->nranges ? &s->ranges[s->at_range] : NULL;
	struct page_pieces p;
	int err;
	bool has;

	if (range == NULL)
		return send_last(s);
	err = source_next(s->reader, range->task, s->cursor, range->end, &p);
	if (err < 0)
		return err;
	s->cursor = p.to;
	if (s->cursor >= range->end && ++s->at_range < s->nranges)
		s->cursor = s->ranges[s->at_range].start;
	space_lock(s->space);
	has = p.npages > 0 && space_has_all(s->space, s, p.task, p.runs, p.nruns);
	for (size_t i = 0; i < p.nruns && !has && !(p.flags & PIECE_BAD); i++)
		space_grant(s->space, s, p.task, p.runs[i].addr, p.runs[i].npages);
	space_unlock(s->space);
	/* What it covers is told even where he has it: so he knows what is zero. */
	p.flags |= PIECE_STREAM | (has ? PIECE_KEPT : 0);
	p.granted = PAGE_WRITE;
	if (has)
		p.frame_len = 0;
	else
		s->credit--;
	return send_piece(s, 0, &p);
}

/* --- what he says of himself */

static int
take(struct session *s)
{
	struct owner *o = s->server->owner;
	/* He asks again where the answer was lost with the connection. */
	int err = o != NULL && !s->took ? owner_take(o) : 0;

	s->took |= err == 0;
	return err < 0 ? err : link_send(&s->link, MSG_TAKEN, 0, NULL, 0);
}

static int
runs(struct session *s)
{
	if (s->server->owner != NULL && !s->took)
		return fail(EPROTO, "%s: runs what it has not taken", s->link.peer);
	s->runs = true;
	if (s->server->owner != NULL)
		owner_runs(s->server->owner);
	return 0;
}

/* It runs; or it may have run, and has ended: then nobody comes for its memory any more, and the original is not to be run unseen. */
static int
said_to_run(struct session *s, const unsigned char *body, size_t len)
{
	struct rbuf r = {body, len, 0, false};
	struct owner *o = s->server->owner;
	bool surely = (rbuf_get_u64(&r), rbuf_get_u8(&r) != 0);

	if (r.failed)
		return fail(EPROTO, "%s: runs, but does not say what", s->link.peer);
	if (surely)
		return runs(s);
	if (s->runs || (o != NULL && !s->took))
		return fail(EPROTO, "%s: may have run what it has not taken", s->link.peer);
	s->runs = s->over = true;
	if (o != NULL) {
		owner_unknown(o);
		server_end(s->server);
	}
	return 0;
}

static int
have_all(struct session *s)
{
	struct owner *o = s->server->owner;
	int err = o == NULL ? 0 : s->runs ? owner_release(o) : fail(EPROTO, "%s: has all of what it has not taken", s->link.peer);

	if (err < 0)
		return err;
	s->complete = true;
	return link_send(&s->link, MSG_RELEASED, 0, NULL, 0);
}

static int
report(struct session *s, const unsigned char *body, size_t len)
{
	struct page_counts counts;

	if (page_counts_get(&counts, body, len) < 0)
		return fail(EPROTO, "%s: counts what nobody else does", s->link.peer);
	pthread_mutex_lock(&s->server->lock);
	s->counts = counts;
	pthread_mutex_unlock(&s->server->lock);
	return 0;
}

static int
received(struct session *s, const struct msg_header *h, const unsigned char *body)
{
	/* A memory of several has no stream, and is nobody's to take. */
	if (s->shared && h->type != MSG_GET && h->type != MSG_INVALIDATED && h->type != MSG_REPORT && h->type != MSG_HAVE_ALL)
		return fail(EPROTO, "%s: asks for what a shared memory has not", s->link.peer);
	switch (h->type) {
	case MSG_GET:
		return get(s, h, body);
	case MSG_STREAM:
		return stream(s, body, h->length);
	case MSG_RANGES:
		return add_ranges(s, body, h->length);
	case MSG_INVALIDATED:
		return called(s, h, body);
	case MSG_REPORT:
		return report(s, body, h->length);
	case MSG_TAKE:
		return take(s);
	case MSG_RUNS:
		return said_to_run(s, body, h->length);
	case MSG_HAVE_ALL:
		return have_all(s);
	default:
		return fail(EPROTO, "%s: a message out of order", s->link.peer);
	}
}

/* --- from beginning to end */

static int
attached(struct session *s, bool known)
{
	struct attach a = {.flags = (known ? ATTACH_KNOWN : 0) | (s->server->owner != NULL ? ATTACH_LIVE : 0)};
	struct buf b = message_new();
	int err;

	memcpy(a.id, source_id(s->server->source), sizeof(a.id));
	memcpy(a.session, s->identity, sizeof(a.session));
	attach_put(&b, &a);
	err = link_send_buf(&s->link, MSG_ATTACHED, 0, &b);
	buf_fini(&b);
	return err;
}

/* What is at hand is done first, then what is asked for, then the rest. */
static int
work(struct session *s)
{
	struct pollfd p[3] = {{s->link.in, POLLIN, 0}, {s->wake, POLLIN, 0}, {s->server->wake, POLLIN, 0}};
	bool just_asked = false;
	int err = 0;

	while (err == 0 && !s->complete) {
		const unsigned char *body;
		struct msg_header h;
		uint64_t n;
		bool more = s->credit > 0 && !s->streamed;

		/* Others wait for what he has been called for. */
		if (s->called_ms != 0 && now_ms() - s->called_ms > CALLED_MS)
			return fail(ETIMEDOUT, "%s: does not give back what others need", s->link.peer);
		if (!link_waiting(&s->link) && !more)
			poll_looking(p, 3, s->called_ms != 0 ? CALLED_MS / 10 : -1, just_asked ? LOOK_NS : 0);
		else if (more)
			poll(p, 3, 0);
		if (p[2].revents != 0)
			return fail(EINTR, "%s: ended", s->server->name);
		if (p[1].revents != 0 && read(s->wake, &n, sizeof(n)) < 0 && errno != EAGAIN)
			return fail_errno("eventfd");
		err = link_receive(&s->link, &h, &body, false, 0);
		just_asked = err == 0;
		if (err == 0)
			err = received(s, &h, body);
		else if (err == -EAGAIN)
			err = more ? stream_on(s) : 0;
		if (err == 0)
			err = send_outbox(s);
	}
	return err;
}

void
session_end(struct session *s)
{
	for (size_t i = 0; i < s->noutbox; i++)
		buf_fini(&s->outbox[i].body);
	free(s->outbox);
	s->outbox = NULL;
	s->noutbox = 0;
	free(s->ranges);
	s->ranges = NULL;
	s->nranges = 0;
	source_reader_free(s->reader);
	s->reader = NULL;
	if (s->space != NULL && !s->shared)
		space_free(s->space);
	s->space = NULL;
	close_fd(&s->wake);
}

void
session_free(struct session *s)
{
	if (s != NULL)
		session_end(s);
	free(s);
}

/* Somebody who asks how it stands; where he waits, until everybody has all. */
static void
answer(struct server *server, struct link *link, const unsigned char *body, size_t len)
{
	struct rbuf r = {body, len, 0, false};
	const void *hello = rbuf_get(&r, 16);
	uint32_t waits = rbuf_get_u32(&r);
	struct pollfd p[2] = {{link->in, POLLIN, 0}, {server->wake, POLLIN, 0}};
	char *text;
	json_t *json;
	bool busy;

	if (r.failed || msg_get_hello(hello, 16) < 0) {
		link_fail(link, "another version of the protocol");
		return;
	}
	do {
		busy = false;
		pthread_mutex_lock(&server->lock);
		for (size_t i = 0; i < server->nsessions; i++)
			busy |= !server->sessions[i]->complete && !server->sessions[i]->over;
		pthread_mutex_unlock(&server->lock);
	} while (waits && busy && poll(p, 2, 20) == 0);
	if (waits && busy) {
		link_fail(link, "ended before everybody had all");
		return;
	}
	json = told_json(server);
	text = json != NULL ? json_dumps(json, JSON_COMPACT) : NULL;
	if (text != NULL)
		link_send(link, MSG_TOLD, 0, text, strlen(text));
	json_decref(json);
	free(text);
}

/* The same image? All zeroes: whatever there is, or it is not known. */
static bool
is_same(const char *a, const char *b)
{
	return strspn(a, "0") == IMAGE_ID || strspn(b, "0") == IMAGE_ID || strcmp(a, b) == 0;
}

/* A user who has come, perhaps again. */
static void
attach(struct server *server, struct link *link, const unsigned char *body, size_t len)
{
	struct attach a;
	struct session *s;
	bool known = false;
	int err = attach_get(&a, body, len);

	if (err < 0 || !is_same(a.id, source_id(server->source))) {
		link_fail(link, err < 0 ? "another version of the protocol" : "pages of another image");
		link_close(link);
		return;
	}
	s = server_session(server, &a, &known);
	if (s == NULL) {
		link_fail(link, log_last());
		link_close(link);
		return;
	}
	pthread_mutex_lock(&server->lock);
	s->link = *link;
	pthread_mutex_unlock(&server->lock);
	pthread_mutex_lock(&s->outbox_lock);
	s->lost = false;
	pthread_mutex_unlock(&s->outbox_lock);
	/* Who runs already is the one that it was left to, if nobody else is. */
	if (a.flags & ATTACH_RUNS && !s->took && server->owner != NULL)
		s->took = owner_retake(server->owner);
	err = attached(s, known);
	if (err == 0 && a.flags & ATTACH_RUNS)
		err = runs(s);
	if (err == 0)
		err = work(s);
	if (err < 0)
		link_fail(&s->link, log_last());
	/* The process whose memory it is has ended, and not by us: there is nothing to be had here any more. */
	if (err == -ESRCH && server->owner != NULL) {
		s->over = true;
		server_end(server);
	}
	pthread_mutex_lock(&s->outbox_lock);
	s->lost = true;
	pthread_mutex_unlock(&s->outbox_lock);
	/* He has said that he does not come again; what he had taken has never run. */
	s->over |= err == -EREMOTEIO && (server->owner == NULL || !s->runs);
	server_left(server, s);
}

void
session_run(struct server *server, struct link *link)
{
	const unsigned char *body;
	struct msg_header h;
	int err;

	link_start(link, SIDE_KEEPER);
	err = link_receive(link, &h, &body, true, now_ms() + LINK_HANDSHAKE_MS);
	if (err == 0 && h.type == MSG_ATTACH) {
		attach(server, link, body, h.length);
		return;
	}
	if (err == 0 && h.type == MSG_ASK)
		answer(server, link, body, h.length);
	link_close(link);
}
