/* page_wire, page_states: what is asked for and given, and who has what, also when everything happens at once. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "page_states.h"
#include "page_wire.h"
#include "tap.h"

/* --- bodies */

static void
test_bodies(void)
{
	struct attach a = {.session = "0123456789abcde", .flags = ATTACH_SHARED}, a2;
	struct page_get g = {12, 0x7000, 3, PAGE_WRITE}, g2;
	struct page_pieces p = {.task = 7, .from = 0x1000, .to = 0x9000, .granted = PAGE_READ, .runs = {{0x2000, 1}, {0x5000, 2}}, .nruns = 2}, p2;
	struct page_counts c = {.faults = 5}, c2;
	struct buf b = {0};

	memset(a.id, 'a', IMAGE_ID);
	attach_put(&b, &a);
	ok(attach_get(&a2, b.data, b.len) == 0 && memcmp(&a, &a2, sizeof(a)) == 0, "ATTACH comes back");
	ok(attach_get(&a2, b.data, b.len - 1) == -EPROTO, "a cut one does not");
	b.data[20] = 'X';
	ok(attach_get(&a2, b.data, b.len) == -EPROTO, "nor one whose image has no such name");
	b.len = 0;
	page_get_put(&b, &g);
	ok(page_get_get(&g2, b.data, b.len) == 0 && memcmp(&g, &g2, sizeof(g)) == 0, "GET comes back");
	g.npages = 33;
	b.len = 0;
	page_get_put(&b, &g);
	ok(page_get_get(&g2, b.data, b.len) == -EPROTO, "more pages than a piece has");
	b.len = 0;
	page_pieces_put(&b, &p);
	ok(page_pieces_get(&p2, b.data, b.len) == -EPROTO, "pages without content");
	buf_put(&b, "content", 7);
	ok(page_pieces_get(&p2, b.data, b.len) == 0 && p2.npages == 3 && p2.frame_len == 7 && p2.runs[1].addr == 0x5000, "PIECE comes back");
	p.runs[1].addr = 0x2000;
	b.len = 0;
	page_pieces_put(&b, &p);
	buf_put(&b, "content", 7);
	ok(page_pieces_get(&p2, b.data, b.len) == -EPROTO, "a page twice");
	p.runs[1].addr = 0x8000;
	b.len = 0;
	page_pieces_put(&b, &p);
	buf_put(&b, "content", 7);
	ok(page_pieces_get(&p2, b.data, b.len) == -EPROTO, "a page behind its range");
	for (int i = 0; i < 99; i++)
		page_counts_latency(&c, 50000);
	page_counts_latency(&c, 5000000);
	b.len = 0;
	page_counts_put(&b, &c);
	ok(page_counts_get(&c2, b.data, b.len) == 0 && memcmp(&c, &c2, sizeof(c)) == 0, "REPORT comes back");
	ok(page_counts_percentile(&c2, 500) >= 50 && page_counts_percentile(&c2, 500) < 75 && page_counts_percentile(&c2, 999) >= 5000, "percentiles");
	buf_fini(&b);
}

/* --- states */

enum { USERS = 5, PAGES = 3, STEPS = 200000 };

/* What each user has, as the messages that reached him say; and what is on its way to him, in order. */
struct model {
	uint32_t has[USERS][PAGES];
	uint32_t asked[USERS][PAGES]; /* 0: nothing */
	struct page_action way[USERS][256];
	unsigned n[USERS];
	unsigned given, called, broken;
};

static void
put_on_way(struct model *m, struct page_actions *out)
{
	for (size_t i = 0; i < out->n; i++) {
		struct page_action *a = &out->action[i];

		if (a->user >= USERS || m->n[a->user] >= 256)
			m->broken++;
		else
			m->way[a->user][m->n[a->user]++] = *a;
	}
	m->broken += out->failed;
	page_actions_fini(out);
}

/* One writer and nobody else, or any number of readers. */
static bool
coherent(const struct model *m)
{
	for (unsigned p = 0; p < PAGES; p++) {
		unsigned writers = 0, readers = 0;

		for (unsigned u = 0; u < USERS; u++) {
			writers += m->has[u][p] == PAGE_WRITE;
			readers += m->has[u][p] == PAGE_READ;
		}
		if (writers > 1 || (writers == 1 && readers > 0))
			return false;
	}
	return true;
}

static void
arrive(struct page_states *s, struct model *m, unsigned u)
{
	struct page_action a = m->way[u][0];
	struct page_actions out = {0};
	unsigned p = (unsigned)(a.addr / PAGE_BYTES) % PAGES;

	memmove(m->way[u], m->way[u] + 1, --m->n[u] * sizeof(a));
	if (a.what == PAGE_CALL) {
		m->called++;
		m->has[u][p] = a.state < m->has[u][p] ? a.state : m->has[u][p];
		m->broken += !page_states_called(s, u, a.task, a.addr, &out);
		put_on_way(m, &out);
		return;
	}
	m->given++;
	/* "You have it already" must be true. */
	m->broken += a.what != PAGE_GIVE || a.state < m->asked[u][p] || (a.kept && m->has[u][p] == PAGE_NONE);
	m->has[u][p] = a.state;
	m->asked[u][p] = 0;
}

static void
test_states(void)
{
	static struct model m;
	struct page_states *s = page_states_new();
	struct page_actions out = {0};
	bool good = true, right = true;
	unsigned seed = 12345, left = 0;

	for (unsigned step = 0; step < STEPS && good; step++) {
		unsigned u, p;

		seed = seed * 1103515245 + 12345;
		u = seed >> 16 & 0xff, p = u / USERS % PAGES, u %= USERS;
		if (m.n[u] > 0 && (seed >> 28 & 3) != 0) {
			arrive(s, &m, u);
		} else if (m.asked[u][p] == 0) {
			m.asked[u][p] = seed >> 27 & 1 ? PAGE_WRITE : PAGE_READ;
			page_states_ask(s, u, step, 42, p * PAGE_BYTES, m.asked[u][p], &out);
			put_on_way(&m, &out);
		}
		good = coherent(&m) && m.broken == 0;
	}
	ok(good, "one writer or many readers, whatever is asked when and however long it is on its way");
	for (unsigned more = 1; more != 0;) {
		more = 0;
		for (unsigned u = 0; u < USERS; u++)
			if (m.n[u] > 0)
				arrive(s, &m, u), more++;
	}
	for (unsigned u = 0; u < USERS; u++)
		for (unsigned p = 0; p < PAGES; p++) {
			left += m.asked[u][p] != 0;
			right &= page_states_of(s, u, 42, p * PAGE_BYTES) == m.has[u][p];
		}
	ok(left == 0 && m.given > STEPS / 20 && m.called > STEPS / 20, "whoever asks gets it");
	ok(right, "and what is said of who has what is true");
	page_states_free(s);
}

static void
test_gone(void)
{
	struct page_states *s = page_states_new();
	struct page_actions out = {0};

	page_states_ask(s, 0, 1, 1, 0, PAGE_WRITE, &out);
	page_states_ask(s, 0, 2, 1, PAGE_BYTES, PAGE_READ, &out);
	ok(out.n == 2 && out.action[0].what == PAGE_GIVE && page_states_owned(s, 0) == 1, "the first gets what he asks for");
	page_actions_fini(&out);
	page_states_ask(s, 1, 3, 1, 0, PAGE_READ, &out);
	ok(out.n == 1 && out.action[0].what == PAGE_CALL && out.action[0].user == 0 && out.action[0].state == PAGE_READ, "who can write it is called to read only");
	page_actions_fini(&out);
	page_states_gone(s, 0, &out);
	ok(out.n == 1 && out.action[0].what == PAGE_LOST && out.action[0].user == 1, "who could write it has gone: it is lost, and that is said");
	page_actions_fini(&out);
	page_states_ask(s, 1, 4, 1, PAGE_BYTES, PAGE_WRITE, &out);
	ok(out.n == 1 && out.action[0].what == PAGE_GIVE, "what he could only read is not");
	page_actions_fini(&out);
	page_states_ask(s, 2, 5, 1, PAGE_BYTES, PAGE_WRITE, &out);
	page_states_gone(s, 2, &out);
	page_actions_fini(&out);
	ok(page_states_called(s, 1, 1, PAGE_BYTES, &out) && out.n == 0, "one who waits and goes gets nothing");
	page_states_ask(s, 3, 6, 1, PAGE_BYTES, PAGE_WRITE, &out);
	ok(out.n == 1 && out.action[0].what == PAGE_GIVE && out.action[0].user == 3, "and does not keep it from others");
	ok(!page_states_called(s, 3, 1, PAGE_BYTES, &out), "an answer to nothing is refused");
	page_actions_fini(&out);
	page_states_free(s);
}

/* --- runs */

static void
test_cursor(void)
{
	const struct page_run runs[] = {{0x1000, 3}, {0x8000, 1}, {0x10000, 5}};
	struct page_cursor at = {0};
	struct page_run out[3];
	uint64_t got;

	ok(page_cursor_take(&at, runs, 3, 2, out, &got) == 1 && got == 2 && out[0].addr == 0x1000 && out[0].npages == 2, "a part of a run");
	ok(page_cursor_take(&at, runs, 3, 4, out, &got) == 3 && got == 4 && out[0].addr == 0x3000 && out[0].npages == 1 && out[1].addr == 0x8000 &&
		out[2].addr == 0x10000 && out[2].npages == 2, "the rest of it, and on into others");
	ok(page_cursor_take(&at, runs, 3, 100, out, &got) == 1 && got == 3 && out[0].addr == 0x12000, "what is left");
	ok(page_cursor_take(&at, runs, 3, 100, out, &got) == 0 && got == 0, "nothing is");
}

int
main(void)
{
	test_bodies();
	test_cursor();
	test_states();
	test_gone();
	return done();
}
