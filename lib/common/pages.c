#include "pages.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "arch.h"

int
page_runs_add(struct page_runs *runs, taddr addr, uint64_t npages)
{
	struct page_run *last = runs->n > 0 ? &runs->run[runs->n - 1] : NULL;

	if (npages == 0)
		return 0;
	if (last == NULL || last->addr + last->npages * PAGE_BYTES != addr) {
		last = ARRAY_ADD(runs->run, runs->n);
		if (last == NULL)
			return -ENOMEM;
		last->addr = addr;
	}
	last->npages += npages;
	runs->npages += npages;
	return 0;
}

size_t
page_cursor_take(struct page_cursor *at, const struct page_run *runs, size_t n, uint64_t want, struct page_run *out, uint64_t *got)
{
	size_t nout = 0;

	*got = 0;
	while (at->next < n && *got < want) {
		const struct page_run *run = &runs[at->next];
		uint64_t some = min_u64(run->npages - at->used, want - *got);

		out[nout++] = (struct page_run){run->addr + at->used * PAGE_BYTES, some};
		*got += some;
		at->used += some;
		if (at->used == run->npages) {
			at->next++;
			at->used = 0;
		}
	}
	return nout;
}

int
page_runs_join(struct page_runs *runs, const struct page_runs *more)
{
	int err = 0;

	for (size_t i = 0; i < more->n && err == 0; i++)
		err = page_runs_add(runs, more->run[i].addr, more->run[i].npages);
	return err;
}

void
page_runs_fini(struct page_runs *runs)
{
	free(runs->run);
	*runs = (struct page_runs){0};
}

bool
page_is_zero(const unsigned char *page)
{
	const uint64_t *w = (const uint64_t *)(const void *)page;

	/* Most pages that are not zero show it early. */
	for (size_t i = 0; i < PAGE_BYTES / 8; i += 8)
		if ((w[i] | w[i + 1] | w[i + 2] | w[i + 3] | w[i + 4] | w[i + 5] | w[i + 6] |
			w[i + 7]) != 0)
			return false;
	return true;
}

/* Keep the pages of part[] that matter, moved together behind those that f holds. */
static void
filter(struct chunk_job *c, struct frame *f, const struct page_run *part, size_t n)
{
	unsigned char *from = frame_raw(f) + f->raw_len;

	for (size_t i = 0; i < n; i++)
		for (uint64_t j = 0; j < part[i].npages; j++, from += PAGE_BYTES) {
			taddr addr = part[i].addr + j * PAGE_BYTES;

			if (!c->source->keep(c->source, addr, from))
				continue;
			if (from != frame_raw(f) + f->raw_len)
				memmove(frame_raw(f) + f->raw_len, from, PAGE_BYTES);
			f->raw_len += PAGE_BYTES;
			c->npages++;
			page_run_put(c->out, &c->nout, addr);
		}
}

void
chunk_job_run(struct job *job)
{
	struct chunk_job *c = (struct chunk_job *)job;
	struct page_run part[CHUNK_PAGES];
	struct page_cursor at = {0};
	uint64_t got;

	c->nout = c->nframes = 0;
	c->npages = 0;
	c->err = 0;
	c->frames[0].raw_len = 0;
	while (at.next < c->nin && c->err == 0) {
		struct frame *f = &c->frames[c->nframes];
		size_t n = page_cursor_take(&at, c->in, c->nin, (FRAME_RAW_MAX - f->raw_len) / PAGE_BYTES, part, &got);

		c->err = c->source->read(c->source, part, n, frame_raw(f) + f->raw_len);
		if (c->err < 0)
			return;
		filter(c, f, part, n);
		if (f->raw_len == FRAME_RAW_MAX) {
			c->err = frame_pack(f, c->level);
			if (++c->nframes < CHUNK_FRAMES)
				c->frames[c->nframes].raw_len = 0;
		}
	}
	if (c->err == 0 && c->nframes < CHUNK_FRAMES && c->frames[c->nframes].raw_len > 0)
		c->err = frame_pack(&c->frames[c->nframes++], c->level);
}

#define CHUNK_MAGIC 0x31534750U /* "PGS1" */

void
chunk_header_put(struct buf *b, const struct page_run *runs, size_t nruns)
{
	buf_put_u32(b, CHUNK_MAGIC);
	buf_put_u32(b, (uint32_t)nruns);
	for (size_t i = 0; i < nruns; i++) {
		buf_put_u64(b, runs[i].addr);
		buf_put_u64(b, runs[i].npages);
	}
}

int
chunk_header_get(struct rbuf *r, struct page_run *runs, size_t *nruns, uint64_t *npages)
{
	taddr floor = 0;

	*npages = 0;
	if (rbuf_get_u32(r) != CHUNK_MAGIC)
		return -EBADMSG;
	*nruns = rbuf_get_u32(r);
	if (r->failed || *nruns == 0 || *nruns > CHUNK_PAGES)
		return -EBADMSG;
	for (size_t i = 0; i < *nruns; i++) {
		struct page_run *run = &runs[i];

		run->addr = rbuf_get_u64(r);
		run->npages = rbuf_get_u64(r);
		if (r->failed || run->addr < floor || run->addr % PAGE_BYTES != 0 ||
		    run->npages == 0 || run->npages > CHUNK_PAGES - *npages ||
		    run->addr >= ARCH_USER_END ||
		    (ARCH_USER_END - run->addr) / PAGE_BYTES < run->npages)
			return -EBADMSG;
		floor = run->addr + run->npages * PAGE_BYTES;
		*npages += run->npages;
	}
	return 0;
}

void
chunk_place_put(struct buf *b, const struct chunk_place *c)
{
	buf_put_u64(b, (uint64_t)c->task);
	buf_put_u64(b, c->start);
	buf_put_u64(b, c->end);
	buf_put_u32(b, c->frame);
	buf_put_u32(b, c->at);
}

void
chunk_place_get(struct rbuf *r, struct chunk_place *c)
{
	c->task = (int64_t)rbuf_get_u64(r);
	c->start = rbuf_get_u64(r);
	c->end = rbuf_get_u64(r);
	c->frame = rbuf_get_u32(r);
	c->at = rbuf_get_u32(r);
}
