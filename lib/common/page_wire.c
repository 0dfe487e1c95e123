#include "page_wire.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#include "arch.h"
#include "msg.h"

static bool
is_range(taddr from, taddr to)
{
	return from % PAGE_BYTES == 0 && to % PAGE_BYTES == 0 && from <= to && to <= ARCH_USER_END;
}

/* Was everything there, and nothing more? */
static int
done(const struct rbuf *r)
{
	return r->failed || rbuf_left(r) > 0 ? -EPROTO : 0;
}

void
attach_put(struct buf *b, const struct attach *a)
{
	msg_put_hello(b);
	buf_put(b, a->id, IMAGE_ID);
	buf_put(b, a->session, PAGE_SESSION);
	buf_put_u32(b, a->flags);
}

int
attach_get(struct attach *a, const unsigned char *body, size_t len)
{
	struct rbuf r = {body, len, 0, false};
	const void *hello = rbuf_get(&r, 16), *id = rbuf_get(&r, IMAGE_ID), *session = rbuf_get(&r, PAGE_SESSION);

	*a = (struct attach){.flags = rbuf_get_u32(&r)};
	if (done(&r) < 0 || msg_get_hello(hello, 16) < 0)
		return -EPROTO;
	memcpy(a->id, id, IMAGE_ID);
	memcpy(a->session, session, PAGE_SESSION);
	return strspn(a->id, "0123456789abcdef") == IMAGE_ID ? 0 : -EPROTO;
}

void
page_get_put(struct buf *b, const struct page_get *g)
{
	buf_put_u64(b, (uint64_t)g->task);
	buf_put_u64(b, g->addr);
	buf_put_u32(b, g->npages);
	buf_put_u32(b, g->want);
}

int
page_get_get(struct page_get *g, const unsigned char *body, size_t len)
{
	struct rbuf r = {body, len, 0, false};

	g->task = (int64_t)rbuf_get_u64(&r);
	g->addr = rbuf_get_u64(&r);
	g->npages = rbuf_get_u32(&r);
	g->want = rbuf_get_u32(&r);
	if (done(&r) < 0 || g->npages == 0 || g->npages > PIECE_PAGES || g->addr >= ARCH_USER_END ||
	    !is_range(g->addr, g->addr + g->npages * PAGE_BYTES) || (g->want != PAGE_READ && g->want != PAGE_WRITE))
		return -EPROTO;
	return 0;
}

void
page_stream_put(struct buf *b, const struct page_stream *s)
{
	buf_put_u64(b, (uint64_t)s->task);
	buf_put_u64(b, s->addr);
	buf_put_u32(b, s->credit);
}

int
page_stream_get(struct page_stream *s, const unsigned char *body, size_t len)
{
	struct rbuf r = {body, len, 0, false};

	s->task = (int64_t)rbuf_get_u64(&r);
	s->addr = rbuf_get_u64(&r);
	s->credit = rbuf_get_u32(&r);
	return done(&r) < 0 || !is_range(s->addr, s->addr) ? -EPROTO : 0;
}

void
page_pieces_put(struct buf *b, const struct page_pieces *p)
{
	buf_put_u64(b, (uint64_t)p->task);
	buf_put_u64(b, p->from);
	buf_put_u64(b, p->to);
	buf_put_u32(b, p->granted);
	buf_put_u32(b, p->flags);
	buf_put_u32(b, (uint32_t)p->nruns);
	for (size_t i = 0; i < p->nruns; i++) {
		buf_put_u64(b, p->runs[i].addr);
		buf_put_u32(b, (uint32_t)p->runs[i].npages);
	}
}

int
page_pieces_get(struct page_pieces *p, const unsigned char *body, size_t len)
{
	struct rbuf r = {body, len, 0, false};
	taddr floor;

	*p = (struct page_pieces){.task = (int64_t)rbuf_get_u64(&r)};
	p->from = floor = rbuf_get_u64(&r);
	p->to = rbuf_get_u64(&r);
	p->granted = rbuf_get_u32(&r);
	p->flags = rbuf_get_u32(&r);
	p->nruns = rbuf_get_u32(&r);
	if (r.failed || !is_range(p->from, p->to) || p->granted > PAGE_WRITE || p->nruns > PIECE_PAGES)
		return -EPROTO;
	for (size_t i = 0; i < p->nruns; i++) {
		struct page_run *run = &p->runs[i];

		run->addr = rbuf_get_u64(&r);
		run->npages = rbuf_get_u32(&r);
		if (r.failed || run->addr < floor || run->npages == 0 || run->npages > PIECE_PAGES - p->npages || run->addr >= p->to ||
		    !is_range(run->addr, run->addr + run->npages * PAGE_BYTES) || run->addr + run->npages * PAGE_BYTES > p->to)
			return -EPROTO;
		floor = run->addr + run->npages * PAGE_BYTES;
		p->npages += run->npages;
	}
	p->frame_len = rbuf_left(&r);
	p->frame = rbuf_get(&r, p->frame_len);
	/* Pages without content, or content without pages. */
	if ((p->npages > 0 && (p->flags & (PIECE_KEPT | PIECE_BAD)) == 0) != (p->frame_len > 0) || p->frame_len > FRAME_PACKED_MAX)
		return -EPROTO;
	return 0;
}

void
page_call_put(struct buf *b, const struct page_call *c)
{
	buf_put_u64(b, (uint64_t)c->task);
	buf_put_u64(b, c->addr);
	buf_put_u32(b, c->state);
}

int
page_call_get(struct page_call *c, const unsigned char *body, size_t len, const unsigned char **frame, size_t *frame_len)
{
	struct rbuf r = {body, len, 0, false};

	c->task = (int64_t)rbuf_get_u64(&r);
	c->addr = rbuf_get_u64(&r);
	c->state = rbuf_get_u32(&r);
	if (r.failed || c->addr >= ARCH_USER_END || !is_range(c->addr, c->addr + PAGE_BYTES) || c->state > PAGE_READ)
		return -EPROTO;
	*frame_len = rbuf_left(&r);
	*frame = rbuf_get(&r, *frame_len);
	return *frame_len > FRAME_PACKED_MAX ? -EPROTO : 0;
}

void
page_counts_put(struct buf *b, const struct page_counts *c)
{
#define COUNT(name, text) buf_put_u64(b, c->name);
#include "page_count.def"
#undef COUNT
	for (size_t i = 0; i < LATENCY_BUCKETS; i++)
		buf_put_u64(b, c->latency[i]);
}

int
page_counts_get(struct page_counts *c, const unsigned char *body, size_t len)
{
	struct rbuf r = {body, len, 0, false};

#define COUNT(name, text) c->name = rbuf_get_u64(&r);
#include "page_count.def"
#undef COUNT
	for (size_t i = 0; i < LATENCY_BUCKETS; i++)
		c->latency[i] = rbuf_get_u64(&r);
	return done(&r);
}

void
page_counts_latency(struct page_counts *c, uint64_t ns)
{
	int k = ns < 1000 ? 0 : (int)(2 * log2((double)ns / 1000));

	c->latency[k < LATENCY_BUCKETS ? k : LATENCY_BUCKETS - 1]++;
}

double
page_counts_percentile(const struct page_counts *c, unsigned per_mille)
{
	double all = 0, so_far = 0;

	for (size_t i = 0; i < LATENCY_BUCKETS; i++)
		all += (double)c->latency[i];
	for (size_t i = 0; i < LATENCY_BUCKETS && all > 0; i++) {
		so_far += (double)c->latency[i];
		if (so_far * 1000 >= all * per_mille)
			return exp2((double)(i + 1) / 2);
	}
	return 0;
}
