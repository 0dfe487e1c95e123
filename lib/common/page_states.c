#include "page_states.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCKS_MAX = 1 << 22, /* 8 TiB */ BLOCK_PAGES = 512, NOBODY = 0xff, LOST = 0xfe, READ = 1, WRITE = 2 };

/* Pages side by side. */
struct block {
	int64_t task;
	taddr base;
	uint8_t writer[BLOCK_PAGES];
	uint64_t *readers; /* bits of users; made when there is the first */
};

struct wish {
	unsigned user;
	uint32_t id, want;
};

/* A page that somebody waits for. */
struct waiting {
	int64_t task;
	taddr addr;
	uint64_t called; /* users who have not yet said that they have done what they were called for */
	struct wish *wish; /* the first is being fulfilled */
	size_t nwishes;
};

struct page_states {
	struct block **table; /* open addressing; a power of two */
	size_t size, nblocks;
	struct waiting *waiting;
	size_t nwaiting;
	uint64_t owned[PAGE_USERS_MAX];
};

void
page_actions_fini(struct page_actions *a)
{
	free(a->action);
	*a = (struct page_actions){0};
}

struct page_states *
page_states_new(void)
{
	return calloc(1, sizeof(struct page_states));
}

void
page_states_free(struct page_states *s)
{
	if (s == NULL)
		return;
	for (size_t i = 0; i < s->size; i++)
		if (s->table[i] != NULL) {
			free(s->table[i]->readers);
			free(s->table[i]);
		}
	for (size_t i = 0; i < s->nwaiting; i++)
		free(s->waiting[i].wish);
	free(s->waiting);
	free(s->table);
	free(s);
}

/* --- blocks */

static size_t
slot_of(struct block *const *table, size_t size, int64_t task, taddr base)
{
	uint64_t h = ((uint64_t)task * 0x9E3779B97F4A7C15ULL) ^ (base / (BLOCK_PAGES * PAGE_BYTES) * 0xC2B2AE3D27D4EB4FULL);
	size_t i = (size_t)(h ^ h >> 29) & (size - 1);

	while (table[i] != NULL && (table[i]->task != task || table[i]->base != base))
		i = (i + 1) & (size - 1);
	return i;
}

static struct block *
find_block(const struct page_states *s, int64_t task, taddr addr)
{
	taddr base = addr - addr % (BLOCK_PAGES * PAGE_BYTES);

	return s->size == 0 ? NULL : s->table[slot_of(s->table, s->size, task, base)];
}

static bool
grow(struct page_states *s)
{
	size_t size = s->size == 0 ? 64 : 2 * s->size;
	struct block **table = calloc(size, sizeof(struct block *));

	if (table == NULL)
		return false;
	for (size_t i = 0; i < s->size; i++)
		if (s->table[i] != NULL)
			table[slot_of(table, size, s->table[i]->task, s->table[i]->base)] = s->table[i];
	free(s->table);
	s->table = table;
	s->size = size;
	return true;
}

static struct block *
get_block(struct page_states *s, int64_t task, taddr addr)
{
	struct block *b = find_block(s, task, addr);
	taddr base = addr - addr % (BLOCK_PAGES * PAGE_BYTES);

	if (b != NULL || s->nblocks >= BLOCKS_MAX || (2 * s->nblocks >= s->size && !grow(s)))
		return b;
	b = calloc(1, sizeof(*b));
	if (b == NULL)
		return NULL;
	b->task = task;
	b->base = base;
	memset(b->writer, NOBODY, sizeof(b->writer));
	s->table[slot_of(s->table, s->size, task, base)] = b;
	s->nblocks++;
	return b;
}

static size_t
page_in(const struct block *b, taddr addr)
{
	return (addr - b->base) / PAGE_BYTES;
}

static uint64_t
readers_of(const struct block *b, size_t page)
{
	return b->readers != NULL ? b->readers[page] : 0;
}

static bool
set_readers(struct block *b, size_t page, uint64_t users)
{
	if (b->readers == NULL && users != 0)
		b->readers = calloc(BLOCK_PAGES, sizeof(*b->readers));
	if (b->readers != NULL)
		b->readers[page] = users;
	return b->readers != NULL || users == 0;
}

static void
set_writer(struct page_states *s, struct block *b, size_t page, uint8_t writer)
{
	if (b->writer[page] < PAGE_USERS_MAX)
		s->owned[b->writer[page]]--;
	b->writer[page] = writer;
	if (writer < PAGE_USERS_MAX)
		s->owned[writer]++;
}

uint32_t
page_states_of(const struct page_states *s, unsigned user, int64_t task, taddr addr)
{
	const struct block *b = find_block(s, task, addr);
	size_t page = b != NULL ? page_in(b, addr) : 0;

	if (b == NULL)
		return 0;
	return b->writer[page] == user ? WRITE : readers_of(b, page) >> user & 1 ? READ : 0;
}

uint64_t
page_states_owned(const struct page_states *s, unsigned user)
{
	return s->owned[user];
}

/* --- wishes */

static void
act(struct page_actions *out, struct page_action a)
{
	struct page_action *slot = ARRAY_ADD(out->action, out->n);

	if (slot != NULL)
		*slot = a;
	out->failed |= slot == NULL;
}

static struct waiting *
find_waiting(const struct page_states *s, int64_t task, taddr addr)
{
	for (size_t i = 0; i < s->nwaiting; i++)
		if (s->waiting[i].addr == addr && s->waiting[i].task == task)
			return &s->waiting[i];
	return NULL;
}

/* Nobody has to be asked (any more): he gets it. */
static void
give(struct page_states *s, struct block *b, const struct wish *w, taddr addr, struct page_actions *out)
{
	size_t page = page_in(b, addr);
	uint32_t had = page_states_of(s, w->user, b->task, addr);

	if (b->writer[page] == LOST) {
		act(out, (struct page_action){PAGE_LOST, w->user, w->id, b->task, addr, 0, false});
		return;
	}
	if (w->want == WRITE) {
		set_readers(b, page, 0);
		set_writer(s, b, page, (uint8_t)w->user);
	} else if (had == 0 && !set_readers(b, page, readers_of(b, page) | 1ULL << w->user)) {
		out->failed = true;
	}
	act(out, (struct page_action){PAGE_GIVE, w->user, w->id, b->task, addr, had == WRITE ? WRITE : w->want, had != 0});
}

/* Who has to be called before this wish can be fulfilled? */
static uint64_t
call_others(struct block *b, const struct wish *w, taddr addr, struct page_actions *out)
{
	size_t page = page_in(b, addr);
	uint8_t writer = b->writer[page];
	uint64_t users = w->want == WRITE ? readers_of(b, page) : 0;

	if (writer < PAGE_USERS_MAX)
		users |= 1ULL << writer;
	users &= ~(1ULL << w->user);
	for (unsigned user = 0; user < PAGE_USERS_MAX; user++)
		if (users >> user & 1)
			act(out, (struct page_action){PAGE_CALL, user, 0, b->task, addr, w->want == WRITE ? 0 : READ, false});
	return users;
}

void
page_states_ask(struct page_states *s, unsigned user, uint32_t id, int64_t task, taddr addr, uint32_t want, struct page_actions *out)
{
	struct block *b = get_block(s, task, addr);
	struct waiting *wait = find_waiting(s, task, addr);
	struct wish wish = {user, id, want}, *slot;
	uint64_t called = 0;

	if (b == NULL) {
		out->failed = true;
		return;
	}
	if (wait == NULL) {
		called = call_others(b, &wish, addr, out);
		if (called == 0) {
			give(s, b, &wish, addr, out);
			return;
		}
		wait = ARRAY_ADD(s->waiting, s->nwaiting);
		if (wait != NULL)
			*wait = (struct waiting){.task = task, .addr = addr, .called = called};
	}
	/* Whoever asks twice is answered once, as he asked last. */
	for (size_t i = 1; wait != NULL && i < wait->nwishes; i++)
		if (wait->wish[i].user == user) {
			wait->wish[i] = wish;
			return;
		}
	slot = wait != NULL ? ARRAY_ADD(wait->wish, wait->nwishes) : NULL;
	if (slot != NULL)
		*slot = wish;
	out->failed |= slot == NULL;
}

/* As many as can be fulfilled now. */
static void
go_on(struct page_states *s, struct waiting *wait, struct page_actions *out)
{
	struct block *b = find_block(s, wait->task, wait->addr);

	while (wait->called == 0 && wait->nwishes > 0) {
		struct wish w = wait->wish[0];

		if (w.user != NOBODY)
			give(s, b, &w, wait->addr, out);
		memmove(wait->wish, wait->wish + 1, --wait->nwishes * sizeof(*wait->wish));
		if (wait->nwishes > 0)
			wait->called = call_others(b, &wait->wish[0], wait->addr, out);
	}
	if (wait->nwishes > 0)
		return;
	free(wait->wish);
	*wait = s->waiting[--s->nwaiting];
}

bool
page_states_called(struct page_states *s, unsigned user, int64_t task, taddr addr, struct page_actions *out)
{
	struct waiting *wait = find_waiting(s, task, addr);
	struct block *b = find_block(s, task, addr);
	size_t page;

	if (wait == NULL || b == NULL || !(wait->called >> user & 1))
		return false;
	page = page_in(b, addr);
	wait->called &= ~(1ULL << user);
	if (b->writer[page] == user)
		set_writer(s, b, page, NOBODY);
	if (wait->wish[0].want == READ && !set_readers(b, page, readers_of(b, page) | 1ULL << user))
		out->failed = true;
	if (wait->wish[0].want == WRITE)
		set_readers(b, page, readers_of(b, page) & ~(1ULL << user));
	go_on(s, wait, out);
	return true;
}

void
page_states_lose(struct page_states *s, int64_t task, taddr addr)
{
	struct block *b = find_block(s, task, addr);

	if (b == NULL)
		return;
	set_readers(b, page_in(b, addr), 0);
	set_writer(s, b, page_in(b, addr), LOST);
}

bool
page_states_returned(struct page_states *s, unsigned user, int64_t task, taddr addr)
{
	struct block *b = find_block(s, task, addr);

	if (b == NULL || b->writer[page_in(b, addr)] != user)
		return false;
	set_writer(s, b, page_in(b, addr), NOBODY);
	return true;
}

static void
forget_wishes(struct waiting *wait, unsigned user)
{
	size_t left = 0;

	for (size_t i = 0; i < wait->nwishes; i++)
		if (i == 0 || wait->wish[i].user != user)
			wait->wish[left++] = wait->wish[i];
	/* The first is under way: it is fulfilled, for nobody. */
	if (left > 0 && wait->wish[0].user == user)
		wait->wish[0].user = NOBODY;
	wait->nwishes = left;
}

void
page_states_gone(struct page_states *s, unsigned user, struct page_actions *out)
{
	for (size_t i = 0; i < s->size; i++) {
		struct block *b = s->table[i];

		for (size_t page = 0; b != NULL && page < BLOCK_PAGES; page++) {
			if (b->writer[page] == user)
				set_writer(s, b, page, LOST);
			if (readers_of(b, page) != 0)
				b->readers[page] &= ~(1ULL << user);
		}
	}
	for (size_t i = s->nwaiting; i-- > 0;) {
		struct waiting *wait = &s->waiting[i];

		forget_wishes(wait, user);
		if (!(wait->called >> user & 1))
			continue;
		wait->called &= ~(1ULL << user);
		go_on(s, wait, out);
	}
}
