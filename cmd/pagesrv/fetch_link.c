/*
 * The one who has the pages: asking, and coming again when the connection is lost.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fault.h"
#include "fetch.h"
#include "io.h"
#include "log.h"

enum { FIRST_CREDIT = 16, QUIET_MS = 2, TURN_MS = 4, AGAIN_MS = 100, SWEEP = 8, RELEASE_MS = 60000 };

/* --- coming, and coming again */

/* Memory of a task, as ranges of the source. */
static int
send_ranges(struct fetcher *f, const struct page_task *t)
{
	enum { SOME = 60000 };
	int err = 0;

	for (size_t i = 0; i < t->nparts && err == 0;) {
		struct buf b = message_new();
		int64_t task = t->parts[i].task;

		buf_put_u64(&b, (uint64_t)task);
		for (size_t n = 0; n < SOME && i < t->nparts && t->parts[i].task == task; n++, i++) {
			buf_put_u64(&b, t->parts[i].start);
			buf_put_u64(&b, t->parts[i].end);
		}
		err = link_send_buf(&f->link, MSG_RANGES, 0, &b);
		buf_fini(&b);
	}
	return err;
}

static int
attach(struct fetcher *f)
{
	struct attach a = {.flags = f->runs ? ATTACH_RUNS : 0};
	int err;

	/* What the other side has said before it went is still read when nothing can be sent any more: so only what comes tells that it is lost. */
	f->link.alone = true;
	memcpy(a.id, f->plan.id, IMAGE_ID);
	memcpy(a.session, f->session, PAGE_SESSION);
	err = page_attach(&f->link, &a, now_ms() + min_u64(LINK_HANDSHAKE_MS, 500 + (uint64_t)f->plan.retry * 1000));
	if (err < 0)
		return err;
	memcpy(f->session, a.session, PAGE_SESSION);
	for (size_t i = 0; i < f->plan.ntasks && err == 0; i++)
		err = send_ranges(f, &f->plan.tasks[i]);
	return err;
}

int
fetch_connect(struct fetcher *f)
{
	int err;

	if (f->plan.in >= 0) {
		link_init(&f->link, (int)f->plan.in, (int)f->plan.out, "the other end");
		f->plan.in = f->plan.out = -1;
		err = 0;
	} else if (f->addr.kind == ADDR_STDIO) {
		err = fail(ENOTCONN, "the connection is lost, and cannot be made anew");
	} else {
		err = addr_connect(&f->addr, f->plan.key, "pagesrv serve", &f->link);
	}
	if (err == 0)
		err = attach(f);
	f->connected = err == 0;
	if (err < 0 && f->link.peer != NULL)
		link_close(&f->link);
	f->link = err < 0 ? (struct link){.in = -1, .out = -1} : f->link;
	return err;
}

void
fetch_lost(struct fetcher *f)
{
	if (f->link.peer != NULL)
		link_close(&f->link);
	f->link = (struct link){.in = -1, .out = -1};
	/* A connection by which nothing has come is none: the time goes on that there is for that. */
	if (f->connected && f->progress)
		f->lost_ms = now_ms(), f->tries = 0;
	if (f->connected)
		f->try_ms = now_ms() + (f->progress ? 0 : AGAIN_MS);
	f->connected = f->progress = false;
}

/* Where the rest goes on: at the first page that is missing. */
static void
stream_again(struct fetcher *f)
{
	f->begun = false;
	f->streamed = false;
	f->under_way = 0;
	f->owed = 0;
}

static void
ask_again(struct fetcher *f)
{
	for (size_t i = 0; i < f->nasked && f->connected; i++) {
		struct buf b = message_new();

		page_get_put(&b, &f->asked[i].get);
		link_send_buf(&f->link, MSG_GET, f->asked[i].id, &b);
		buf_fini(&b);
	}
}

void
fetch_reconnect(struct fetcher *f)
{
	int64_t now = now_ms();
	char why[512];

	/* One that restart still uses is not ours yet. */
	if (f->connected || f->plan.in >= 0 || now < f->try_ms)
		return;
	fetch_see_to_server(f);
	log_hush(1);
	if (now - f->lost_ms < f->plan.retry * 1000 && fetch_connect(f) == 0) {
		log_hush(-1);
		f->counts.reconnects++;
		debug(LOG_VERBOSE, "%s: connected again", f->plan.address);
		stream_again(f);
		ask_again(f);
		return;
	}
	log_hush(-1);
	snprintf(why, sizeof(why), "%s", f->why[0] != '\0' ? f->why : log_last_hushed());
	if (now - f->lost_ms >= f->plan.retry * 1000 || f->addr.kind == ADDR_STDIO) {
		fetch_end_all(f, "its pages are out of reach: %s: %s", f->plan.address, why);
		return;
	}
	if (f->tries++ == 0)
		note("pid %d: its pages are out of reach for now: %s", f->first, why);
	f->try_ms = now_ms() + AGAIN_MS;
}

/* --- asking */

static struct asked *
find_asked(const struct fetcher *f, int64_t task, taddr source)
{
	for (size_t i = 0; i < f->nasked; i++)
		if (f->asked[i].get.task == task && source >= f->asked[i].get.addr && source < f->asked[i].get.addr + f->asked[i].get.npages * PAGE_BYTES)
			return &f->asked[i];
	return NULL;
}

void
fetch_ask(struct fetcher *f, int64_t task, taddr source, uint32_t npages)
{
	struct asked *a = find_asked(f, task, source);
	struct buf b;

	if (a != NULL || (a = ARRAY_ADD(f->asked, f->nasked)) == NULL)
		return;
	*a = (struct asked){++f->last_id, {task, source, npages, PAGE_WRITE}};
	f->fault_ms = now_ms();
	if (!f->connected)
		return; /* with all others when it is */
	b = message_new();
	page_get_put(&b, &a->get);
	f->counts.wire_out += b.len;
	link_send_buf(&f->link, MSG_GET, a->id, &b);
	buf_fini(&b);
}

static bool
anybody_waits(const struct fetcher *f)
{
	for (size_t i = 0; i < f->nmemories; i++)
		if (f->memories[i]->nwaiting > 0)
			return true;
	return false;
}

/* When nothing more comes by itself, and something is missing all the same: what was lost on its way. */
static void
sweep(struct fetcher *f)
{
	for (size_t i = 0; i < f->nmemories; i++) {
		int64_t task;
		taddr at = 0, source;
		uint64_t n;

		while (f->nasked < SWEEP && lazy_first_missing(&f->memories[i]->lazy, &at, &task, &source, &n, f->careful ? 1 : PIECE_PAGES)) {
			fetch_ask(f, task, source, (uint32_t)n);
			at += n * PAGE_BYTES;
		}
	}
}

static void
send_credit(struct fetcher *f, uint32_t credit)
{
	struct page_stream s = {.credit = credit};
	struct buf b = message_new();
	taddr at = 0;
	uint64_t n;

	/* Where it begins, for somebody who does not know what has come already. */
	for (size_t i = 0; i < f->nmemories && !f->begun && s.task == 0; i++)
		lazy_first_missing(&f->memories[i]->lazy, &at, &s.task, &s.addr, &n, 1);
	f->begun = true;
	page_stream_put(&b, &s);
	f->counts.wire_out += b.len;
	link_send_buf(&f->link, MSG_STREAM, 0, &b);
	buf_fini(&b);
}

void
fetch_stream(struct fetcher *f)
{
	int64_t now = now_ms();
	uint32_t credit;

	if (!f->connected || (!f->plan.eager && (!f->runs || f->plan.demand_only)))
		return;
	if (f->streamed) {
		sweep(f);
		return;
	}
	if (!f->begun)
		f->owed = FIRST_CREDIT, f->under_way = 0;
	/*
	 * Where pages are waited for again and again, they and the rest take turns: a page then comes as soon as the network allows, half of the time, and else behind
	 * one piece at most; and the rest goes on coming, which is what ends the waiting.
	 */
	credit = f->owed;
	if (anybody_waits(f) || now - f->fault_ms < QUIET_MS)
		credit = now / TURN_MS % 2 == 0 && f->under_way == 0 && f->owed > 0;
	if (credit == 0)
		return;
	send_credit(f, credit);
	f->under_way += credit;
	f->owed -= credit;
}

/* --- what comes */

static void
count(struct fetcher *f, const struct page_pieces *p)
{
	uint64_t missing = 0, n;

	for (size_t i = 0; i < f->nmemories && missing == 0; i++)
		for (size_t k = 0; k < p->nruns; k++) {
			size_t map = 0;
			uint64_t page = 0;
			taddr at, source;

			while (lazy_wanted(&f->memories[i]->lazy, p->task, p->runs[k].addr, p->runs[k].addr + p->runs[k].npages * PAGE_BYTES, &map, &page, &at, &source, &n))
				missing += n;
		}
	n = missing < p->npages ? missing : p->npages;
	f->counts.twice += p->npages - n;
	if (p->flags & PIECE_STREAM)
		f->counts.by_stream += n;
	else if (p->flags & PIECE_AHEAD)
		f->counts.by_ahead += n;
	else if (f->streamed)
		f->counts.by_stream += n; /* swept up */
	else
		f->counts.by_demand += n;
}

static void
answered(struct fetcher *f, uint32_t id)
{
	for (size_t i = 0; i < f->nasked; i++)
		if (f->asked[i].id == id) {
			f->asked[i] = f->asked[--f->nasked];
			return;
		}
}

static int
take_piece(struct fetcher *f, const struct msg_header *h, const unsigned char *body)
{
	const unsigned char *content = NULL;
	struct page_pieces p;
	bool bad;

	if (page_pieces_get(&p, body, h->length) < 0)
		return fail(EPROTO, "%s: a piece that makes no sense", f->link.peer);
	f->counts.wire_in += MSG_HEADER + h->length;
	f->progress = true;
	f->why[0] = '\0';
	if (p.flags & PIECE_STREAM && p.flags & PIECE_LAST) {
		f->streamed = true;
		return 0;
	}
	if (p.flags & PIECE_STREAM && !(p.flags & PIECE_KEPT)) {
		f->under_way -= f->under_way > 0;
		f->owed++;
	}
	bad = (p.flags & PIECE_BAD) != 0 || (p.frame_len > 0 && frame_unpack(p.frame, p.frame_len, f->room, &content) != (int64_t)(p.npages * PAGE_BYTES));
	if (!bad && !(p.flags & PIECE_KEPT))
		count(f, &p);
	/* Of several that were packed together some may be had. */
	f->careful |= bad;
	for (size_t i = 0; i < f->nmemories && bad && p.to - p.from == PAGE_BYTES; i++)
		memory_bad(f, f->memories[i], &p);
	if (h->id != 0)
		answered(f, h->id);
	for (size_t i = 0; i < f->nmemories && !bad; i++)
		memory_take(f, f->memories[i], &p, content);
	if (f->nbad > 0 && !f->said_bad && !f->over) {
		f->said_bad = true;
		note("pid %d: pages are damaged where they are kept (%llu so far): it runs on until it needs one of them", f->first, (unsigned long long)f->nbad);
	}
	return fault(FAULT_fetching);
}

int
fetch_receive(struct fetcher *f, bool wait)
{
	const unsigned char *body;
	struct msg_header h;
	int err;

	if (!f->connected)
		return -EAGAIN;
	log_hush(1);
	err = link_receive(&f->link, &h, &body, wait, wait ? now_ms() + f->plan.retry * 1000 + 1 : 0);
	log_hush(-1);
	if (err == -EAGAIN)
		return err;
	if (err == 0 && h.type == MSG_PIECE) {
		err = take_piece(f, &h, body);
		if (err == 0)
			return 0;
	}
	if (err == 0 && h.type == MSG_INVALIDATE) {
		fetch_end_all(f, "somebody else is to have its pages, which are its own");
		return 0;
	}
	if (err == 0 && h.type == MSG_RELEASED) {
		f->over = true;
		return 0;
	}
	if (err == 0 && h.type == MSG_TAKEN) {
		f->taken = true;
		return 0;
	}
	/* Before it runs, what the other side says against it is final. */
	if (err == -EREMOTEIO && !f->released) {
		fail(EREMOTEIO, "%s", log_last_hushed());
		return err;
	}
	/* The first word is the reason, later ones are only that it is over. */
	if (err == -EREMOTEIO && f->why[0] == '\0')
		snprintf(f->why, sizeof(f->why), "%s", log_last_hushed());
	fetch_lost(f);
	return -ECONNRESET;
}

bool
fetch_has_news(const struct fetcher *f)
{
	return f->counts.faults != f->reported.faults || f->counts.wire_in != f->reported.wire_in;
}

void
fetch_report(struct fetcher *f)
{
	struct buf b;
	int64_t now = now_ms();

	if (!f->connected || now - f->report_ms < REPORT_MS || !fetch_has_news(f))
		return;
	f->report_ms = now;
	f->counts.missing = 0;
	for (size_t i = 0; i < f->nmemories; i++)
		f->counts.missing += f->memories[i]->lazy.nmissing;
	f->reported = f->counts;
	b = message_new();
	page_counts_put(&b, &f->counts);
	link_send_buf(&f->link, MSG_REPORT, 0, &b); /* that it is lost shows in what comes */
	buf_fini(&b);
}

/* --- the end */

bool
fetch_has_all(const struct fetcher *f)
{
	for (size_t i = 0; i < f->nmemories; i++)
		if (!f->memories[i]->dead && f->memories[i]->lazy.nmissing > 0)
			return false;
	return true;
}

int
fetch_finish(struct fetcher *f)
{
	int64_t deadline = now_ms() + RELEASE_MS;
	int err = 0;

	f->report_ms = 0;
	fetch_report(f);
	if (f->connected)
		err = link_send(&f->link, MSG_HAVE_ALL, 0, NULL, 0);
	while (err == 0 && f->connected && !f->over && now_ms() < deadline) {
		err = fetch_receive(f, true);
		err = err == -EAGAIN ? 0 : err;
	}
	return f->over ? 0 : -ECONNRESET;
}
