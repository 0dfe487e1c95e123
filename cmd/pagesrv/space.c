/*
 * A memory that users have pages of: of one user alone, as when an image is restarted, or of several who share it. What they have written and given back is
 * here, in front of the source.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "log.h"
#include "pagesrv.h"

/* A page that somebody has written. */
struct written {
	int64_t task;
	taddr addr;
	unsigned char *content; /* NULL: this place is free */
};

struct space {
	pthread_mutex_t lock;
	struct page_states *states;
	struct session *users[PAGE_USERS_MAX];
	struct written *written; /* open addressing; a power of two */
	size_t size, nwritten;
};

struct space *
space_new(void)
{
	struct space *s = calloc(1, sizeof(*s));

	if (s == NULL)
		return NULL;
	s->states = page_states_new();
	pthread_mutex_init(&s->lock, NULL);
	if (s->states == NULL) {
		free(s);
		return NULL;
	}
	return s;
}

void
space_free(struct space *s)
{
	if (s == NULL)
		return;
	for (size_t i = 0; i < s->size; i++)
		free(s->written[i].content);
	free(s->written);
	page_states_free(s->states);
	free(s);
}

void
space_lock(struct space *s)
{
	pthread_mutex_lock(&s->lock);
}

void
space_unlock(struct space *s)
{
	pthread_mutex_unlock(&s->lock);
}

int
space_enter(struct space *s, struct session *who)
{
	for (unsigned i = 0; i < PAGE_USERS_MAX; i++)
		if (s->users[i] == NULL) {
			s->users[i] = who;
			who->user = i;
			who->space = s;
			return 0;
		}
	return fail(EBUSY, "no more than %d can use one memory", PAGE_USERS_MAX);
}

/* --- of one user alone */

bool
space_grant(struct space *s, const struct session *who, int64_t task, taddr addr, uint64_t npages)
{
	struct page_actions out = {0};
	bool all = true;

	for (uint64_t i = 0; i < npages; i++) {
		if (page_states_of(s->states, who->user, task, addr + i * PAGE_BYTES) == PAGE_WRITE)
			continue;
		all = false;
		page_states_ask(s->states, who->user, 0, task, addr + i * PAGE_BYTES, PAGE_WRITE, &out);
		out.n = 0;
	}
	page_actions_fini(&out);
	return all;
}

bool
space_has_all(const struct space *s, const struct session *who, int64_t task, const struct page_run *runs, size_t nruns)
{
	for (size_t i = 0; i < nruns; i++)
		for (uint64_t k = 0; k < runs[i].npages; k++)
			if (page_states_of(s->states, who->user, task, runs[i].addr + k * PAGE_BYTES) != PAGE_WRITE)
				return false;
	return true;
}

/* --- of several */

static size_t
slot_of(const struct written *table, size_t size, int64_t task, taddr addr)
{
	size_t i = (size_t)((addr / PAGE_BYTES + (uint64_t)task * 31) * 0x9E3779B97F4A7C15ULL >> 20) & (size - 1);

	while (table[i].content != NULL && (table[i].task != task || table[i].addr != addr))
		i = (i + 1) & (size - 1);
	return i;
}

static bool
grow(struct space *s)
{
	size_t size = s->size == 0 ? 64 : 2 * s->size;
	struct written *table = calloc(size, sizeof(*table));

	if (table == NULL)
		return false;
	for (size_t i = 0; i < s->size; i++)
		if (s->written[i].content != NULL)
			table[slot_of(table, size, s->written[i].task, s->written[i].addr)] = s->written[i];
	free(s->written);
	s->written = table;
	s->size = size;
	return true;
}

static int
keep(struct space *s, int64_t task, taddr addr, const unsigned char *page)
{
	struct written *w;

	if (2 * s->nwritten >= s->size && !grow(s))
		return -ENOMEM;
	w = &s->written[slot_of(s->written, s->size, task, addr)];
	if (w->content == NULL) {
		*w = (struct written){task, addr, malloc(PAGE_BYTES)};
		if (w->content == NULL)
			return -ENOMEM;
		s->nwritten++;
	}
	memcpy(w->content, page, PAGE_BYTES);
	return 0;
}

/* The page as it is here, which is what everybody has who only reads it. */
static int
content_of(struct space *s, struct source_reader *reader, int64_t task, taddr addr, unsigned char *page)
{
	const struct written *w = s->size == 0 ? NULL : &s->written[slot_of(s->written, s->size, task, addr)];

	if (w == NULL || w->content == NULL)
		return source_page(reader, task, addr, page);
	memcpy(page, w->content, PAGE_BYTES);
	return 0;
}

static void
give(struct space *s, struct session *by, const struct page_action *a)
{
	struct page_pieces p = {.task = a->task, .from = a->addr, .to = a->addr + PAGE_BYTES, .granted = a->state, .runs = {{a->addr, 1}}, .nruns = 1};
	struct frame *f = malloc(sizeof(*f));
	struct buf b = message_new();
	int err = f == NULL ? -ENOMEM : 0;

	if (a->what == PAGE_LOST)
		p.flags = PIECE_BAD;
	else if (a->kept)
		p.flags = PIECE_KEPT;
	else if (err == 0)
		err = content_of(s, by->reader, a->task, a->addr, frame_raw(f));
	if (err == -EBADMSG || err == -EIO) {
		p.flags = PIECE_BAD, p.granted = PAGE_NONE, err = 0;
		page_states_lose(s->states, a->task, a->addr);
	}
	if (p.flags & PIECE_BAD)
		p.nruns = 0;
	if (err == 0 && p.flags == 0 && page_is_zero(frame_raw(f)))
		p.nruns = 0;
	page_pieces_put(&b, &p);
	if (err == 0 && p.flags == 0 && p.nruns > 0) {
		f->raw_len = PAGE_BYTES;
		err = frame_pack(f, 0);
		buf_put(&b, f->packed, err == 0 ? f->packed_len : 0);
	}
	free(f);
	b.failed |= err < 0;
	session_post(s->users[a->user], MSG_PIECE, a->id, &b);
}

static int
carry_out(struct space *s, struct session *by, struct page_actions *out)
{
	for (size_t i = 0; i < out->n; i++) {
		const struct page_action *a = &out->action[i];
		struct buf b;

		if (s->users[a->user] == NULL)
			continue;
		if (a->what != PAGE_CALL) {
			give(s, by, a);
			continue;
		}
		b = message_new();
		page_call_put(&b, &(struct page_call){a->task, a->addr, a->state});
		session_post(s->users[a->user], MSG_INVALIDATE, 0, &b);
	}
	if (out->failed)
		fail(ENOMEM, "out of memory");
	page_actions_fini(out);
	return 0;
}

int
space_ask(struct space *s, struct session *who, uint32_t id, const struct page_get *g)
{
	struct page_actions out = {0};

	for (uint32_t i = 0; i < g->npages; i++)
		page_states_ask(s->states, who->user, id, g->task, g->addr + i * PAGE_BYTES, g->want, &out);
	return carry_out(s, who, &out);
}

int
space_called(struct space *s, struct session *who, const struct page_call *c, const unsigned char *page)
{
	struct page_actions out = {0};
	int err = 0;

	/* Who could write it knows what is in it now. */
	if (page_states_of(s->states, who->user, c->task, c->addr) == PAGE_WRITE)
		err = page == NULL ? fail(EPROTO, "%s: a page that was written comes back without content", who->link.peer) : keep(s, c->task, c->addr, page);
	if (err == 0 && !page_states_called(s->states, who->user, c->task, c->addr, &out) &&
	    !page_states_returned(s->states, who->user, c->task, c->addr))
		err = fail(EPROTO, "%s: gives back what nobody has asked for", who->link.peer);
	if (err == 0)
		err = carry_out(s, who, &out);
	page_actions_fini(&out);
	return err;
}

void
space_leave(struct space *s, struct session *who)
{
	struct page_actions out = {0};

	s->users[who->user] = NULL;
	page_states_gone(s->states, who->user, &out);
	carry_out(s, who, &out);
}
