/*
 * Where pages come from: an image file, or a process that stands still. Shared memory of several users has what they have written in front of that (space.c).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "log.h"
#include "pagesrv.h"
#include "tracee.h"

enum { CACHE_FRAMES = 256 };

struct live_task {
	int64_t number;
	int memory, pagemap;
};

struct source {
	struct page_file *file; /* or */
	struct live_task *tasks;
	size_t ntasks;
	char id[IMAGE_ID + 1];
};

struct source_reader {
	struct source *source;
	struct page_cache *cache;
	int level;
	struct frame frame;
	unsigned char scratch[FRAME_RAW_MAX];
};

int
source_open_image(struct source **out, int fd, const char *name)
{
	struct source *s = calloc(1, sizeof(*s));
	int err;

	*out = s;
	if (s == NULL) {
		close(fd);
		return fail(ENOMEM, "out of memory");
	}
	err = page_file_open(&s->file, fd, name);
	if (err == 0 && page_file_has_parent(s->file))
		err = fail(ENOTSUP, "%s: some of its pages are in its parent (ckpt --merge %s puts them into it)", name, name);
	if (err == 0)
		memcpy(s->id, page_file_id(s->file), sizeof(s->id));
	return err;
}

int
source_open_live(struct source **out, const struct page_plan *plan)
{
	struct source *s = calloc(1, sizeof(*s));

	*out = s;
	if (s == NULL)
		return fail(ENOMEM, "out of memory");
	memset(s->id, '0', IMAGE_ID);
	if (plan->id != NULL && strlen(plan->id) == IMAGE_ID)
		memcpy(s->id, plan->id, IMAGE_ID);
	s->tasks = calloc(plan->ntasks + 1, sizeof(*s->tasks));
	if (s->tasks == NULL)
		return fail(ENOMEM, "out of memory");
	for (size_t i = 0; i < plan->ntasks; i++)
		s->tasks[s->ntasks++] = (struct live_task){plan->tasks[i].number, (int)plan->tasks[i].memory, (int)plan->tasks[i].pagemap};
	return 0;
}

const char *
source_id(const struct source *s)
{
	return s->id;
}

static const struct live_task *
find_task(const struct source *s, int64_t number)
{
	for (size_t i = 0; i < s->ntasks; i++)
		if (s->tasks[i].number == number)
			return &s->tasks[i];
	return NULL;
}

bool
source_has_task(const struct source *s, int64_t task)
{
	const int64_t *tasks;
	size_t n;

	if (find_task(s, task) != NULL)
		return true;
	tasks = s->file != NULL ? page_file_tasks(s->file, &n) : NULL;
	for (size_t i = 0; tasks != NULL && i < n; i++)
		if (tasks[i] == task)
			return true;
	return false;
}

void
source_size(const struct source *s, uint64_t *pages, uint64_t *bytes)
{
	*pages = *bytes = 0;
	if (s->file != NULL)
		page_file_size(s->file, pages, bytes);
}

struct source_reader *
source_reader_new(struct source *s, int level)
{
	struct source_reader *r = calloc(1, sizeof(*r));

	if (r == NULL)
		return NULL;
	r->source = s;
	r->level = level;
	r->cache = s->file != NULL ? page_cache_new(s->file, CACHE_FRAMES) : NULL;
	if (s->file != NULL && r->cache == NULL) {
		free(r);
		return NULL;
	}
	return r;
}

void
source_reader_free(struct source_reader *r)
{
	if (r != NULL)
		page_cache_free(r->cache);
	free(r);
}

/* --- pages that were asked for */

/* Behind those that are in the frame. */
static void
add_page(struct source_reader *r, struct page_pieces *p, taddr addr, const unsigned char *page)
{
	memcpy(frame_raw(&r->frame) + p->npages++ * PAGE_BYTES, page, PAGE_BYTES);
	page_run_put(p->runs, &p->nruns, addr);
}

/* Content of an image's pages [addr, end), put behind each other; runs say which there are. */
static int
gather_stored(struct source_reader *r, int64_t task, taddr addr, taddr end, struct page_pieces *p)
{
	struct page_piece piece;
	int found = 1, err;

	while (addr < end && (found = page_cache_find(r->cache, task, addr, end, &piece)) > 0) {
		const unsigned char *content, *page;

		err = page_cache_content(r->cache, &piece, &content);
		if (err < 0)
			return err;
		for (; addr < end; addr += PAGE_BYTES) {
			const struct page_run *last = &piece.runs[piece.nruns - 1];

			if (addr >= last->addr + last->npages * PAGE_BYTES)
				break; /* in the next one */
			page = page_piece_at(&piece, content, addr);
			if (page != NULL)
				add_page(r, p, addr, page);
		}
	}
	return found < 0 ? found : 0;
}

/* The pages of runs from a process into the frame; those that are zero drop out. */
static int
read_runs(struct source_reader *r, const struct live_task *t, const struct page_run *runs, size_t nruns, struct page_pieces *p)
{
	for (size_t i = 0; i < nruns; i++) {
		int err = mem_read(t->memory, runs[i].addr, r->scratch, runs[i].npages * PAGE_BYTES);

		if (err < 0)
			return fail(-err, "memory at %#llx: %s", (unsigned long long)runs[i].addr, strerror(-err));
		for (uint64_t k = 0; k < runs[i].npages; k++) {
			const unsigned char *page = r->scratch + k * PAGE_BYTES;
			taddr addr = runs[i].addr + k * PAGE_BYTES;

			if (!page_is_zero(page))
				add_page(r, p, addr, page);
		}
	}
	return 0;
}

static int
gather_live(struct source_reader *r, int64_t task, taddr addr, taddr end, struct page_pieces *p)
{
	const struct live_task *t = find_task(r->source, task);
	struct page_run runs[PIECE_PAGES];
	size_t nruns;
	int err = 0;

	while (t != NULL && addr < end && err == 0) {
		err = live_find(t->pagemap, addr, end, runs, &nruns, &addr);
		if (err == 0)
			err = read_runs(r, t, runs, nruns, p);
	}
	return err;
}

static int
pack(struct source_reader *r, struct page_pieces *p, int level)
{
	int err = 0;

	if (p->npages == 0)
		return 0;
	r->frame.raw_len = p->npages * PAGE_BYTES;
	err = frame_pack(&r->frame, level);
	p->frame = r->frame.packed;
	p->frame_len = r->frame.packed_len;
	return err < 0 ? fail(-err, "packing pages: %s", strerror(-err)) : 0;
}

/* What is damaged is for the one who needs it to know; everything else goes on. */
static int
or_bad(int err, struct page_pieces *p)
{
	if (err != -EBADMSG && err != -EIO)
		return err;
	p->nruns = p->npages = 0;
	p->frame_len = 0;
	p->flags |= PIECE_BAD;
	return 0;
}

int
source_pages(struct source_reader *r, int64_t task, taddr addr, uint64_t npages, struct page_pieces *p)
{
	taddr end = addr + npages * PAGE_BYTES;
	int err;

	*p = (struct page_pieces){.task = task, .from = addr, .to = end};
	err = r->cache != NULL ? gather_stored(r, task, addr, end, p) : gather_live(r, task, addr, end, p);
	/* A single page is waited for: packing takes longer than the way, mostly. */
	if (err == 0)
		err = pack(r, p, npages > 1 ? r->level : 0);
	return or_bad(err, p);
}

int
source_page(struct source_reader *r, int64_t task, taddr addr, unsigned char out[PAGE_BYTES])
{
	struct page_pieces p = {0};
	int err = r->cache != NULL ? gather_stored(r, task, addr, addr + PAGE_BYTES, &p) : gather_live(r, task, addr, addr + PAGE_BYTES, &p);

	if (p.npages > 0)
		memcpy(out, frame_raw(&r->frame), PAGE_BYTES);
	else
		memset(out, 0, PAGE_BYTES);
	return err;
}

/* --- one piece after the other */

/* The frame as it is in the file; its pages may begin before addr and end behind limit, as they may. */
static int
next_stored(struct source_reader *r, int64_t task, taddr addr, taddr limit, struct page_pieces *p)
{
	struct page_piece piece;
	const struct page_run *last;
	int found = page_cache_find(r->cache, task, addr, limit, &piece);

	last = found != 0 ? &piece.runs[piece.nruns - 1] : NULL;
	p->to = found == 0 ? limit : last->addr + last->npages * PAGE_BYTES;
	if (found <= 0)
		return found;
	p->from = addr < piece.runs[0].addr ? addr : piece.runs[0].addr;
	p->nruns = piece.nruns;
	p->npages = piece.npages;
	memcpy(p->runs, piece.runs, sizeof(p->runs));
	found = page_cache_packed(r->cache, &piece, &p->frame, &p->frame_len);
	return found; /* whether it is damaged shows where it is unpacked */
}

static int
next_live(struct source_reader *r, int64_t task, taddr addr, taddr limit, struct page_pieces *p)
{
	const struct live_task *t = find_task(r->source, task);
	struct page_run runs[PIECE_PAGES];
	size_t nruns = 0;
	int err = 0;

	p->to = limit;
	while (t != NULL && err == 0 && p->npages == 0 && addr < limit) {
		err = live_find(t->pagemap, addr, limit, runs, &nruns, &addr);
		if (err == 0)
			err = read_runs(r, t, runs, nruns, p);
		p->to = addr;
	}
	return err < 0 ? err : pack(r, p, r->level);
}

int
source_next(struct source_reader *r, int64_t task, taddr addr, taddr limit, struct page_pieces *p)
{
	int err;

	*p = (struct page_pieces){.task = task, .from = addr};
	err = r->cache != NULL ? next_stored(r, task, addr, limit, p) : next_live(r, task, addr, limit, p);
	if (err < 0 && p->to <= addr)
		p->to = limit;
	return or_bad(err, p);
}
