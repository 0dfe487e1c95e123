/*
 * Memory of the first process that comes in rounds goes to where it is to be: the process is made before they come, with mappings as they were when they
 * began. When the image says what has become of those, they are kept where they still belong to one mapping of it, and their pages are dropped which are
 * not right any more.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "earlier.h"
#include "log.h"

enum { WORD_BITS = 64 };

/* The mappings of b which are there, or none: *n of them. */
static struct waiting *
list(const struct restart *r, const struct built *b, size_t *n)
{
	const struct earlier *e = r->earlier;

	*n = e == NULL || b != r->built ? 0 : e->owners[0].end;
	return e == NULL ? NULL : e->waiting;
}

static bool
is_there(const struct waiting *w)
{
	return w->came != NULL && !w->gone && w->memory == NULL;
}

static bool
overlaps(const struct waiting *w, const struct vma *v)
{
	return v->start < w->end && v->end > w->start;
}

/* --- pages that came */

static void
mark(struct waiting *w, taddr start, taddr end, bool on)
{
	uint64_t to;

	start = max_u64(start, w->start);
	end = min_u64(end, w->end);
	if (start >= end)
		return;
	to = (end - w->start) / PAGE_BYTES;
	if (on) {
		w->lowest = min_u64(w->lowest, (start - w->start) / PAGE_BYTES);
		w->highest = max_u64(w->highest, to);
	}
	to = min_u64(to, w->highest);
	for (uint64_t page = max_u64(w->lowest, (start - w->start) / PAGE_BYTES); page < to;) {
		uint64_t *word = &w->came[page / WORD_BITS], bit = 1ULL << page % WORD_BITS;

		if (page % WORD_BITS == 0 && to - page >= WORD_BITS) {
			*word = on ? ~0ULL : 0;
			page += WORD_BITS;
			continue;
		}
		*word = on ? *word | bit : *word & ~bit;
		page++;
	}
}

/* The next run of pages that are marked, from page *at on. */
static bool
next_run(const struct waiting *w, uint64_t *at, uint64_t *end)
{
	uint64_t n = w->highest;

	*at = max_u64(*at, w->lowest);
	while (*at < n && !(w->came[*at / WORD_BITS] >> *at % WORD_BITS & 1))
		*at += *at % WORD_BITS == 0 && w->came[*at / WORD_BITS] == 0 ? WORD_BITS : 1;
	if (*at >= n)
		return false;
	for (*end = *at + 1; *end < n && w->came[*end / WORD_BITS] >> *end % WORD_BITS & 1;)
		++*end;
	return true;
}

int
early_put(struct restart *r, struct waiting *w, taddr addr, const unsigned char *data, uint64_t len)
{
	mark(w, addr, addr + len, true);
	return fill_memory(&r->early->built, addr, data, len);
}

void
early_right(struct waiting *w, taddr start, taddr end)
{
	if (is_there(w))
		mark(w, start, end, false);
}

void
earlier_filled(const struct restart *r, const struct built *b, const struct page_run *runs, size_t n)
{
	size_t nw, k = 0;
	struct waiting *w = list(r, b, &nw);

	for (size_t i = 0; i < n && nw > 0; i++) {
		taddr end = runs[i].addr + runs[i].npages * PAGE_BYTES;

		while (k < nw && w[k].end <= runs[i].addr)
			k++;
		for (size_t j = k; j < nw && w[j].start < end; j++)
			early_right(&w[j], runs[i].addr, end);
	}
}

int
earlier_finish(const struct restart *r, struct built *b)
{
	struct script s = {0};
	size_t n;
	struct waiting *w = list(r, b, &n);

	for (size_t i = 0; i < n; i++)
		for (uint64_t at = 0, end; is_there(&w[i]) && next_run(&w[i], &at, &end); at = end)
			script_add(&s, "pages", SYS_madvise, w[i].start + at * PAGE_BYTES, (end - at) * PAGE_BYTES, MADV_DONTNEED);
	return built_run(b, &s);
}

/* --- the process, early */

static bool
can_wait_there(const struct vma *v)
{
	/* What grows downwards does so from where it is mapped. */
	return strstr(v->flags == NULL ? "" : v->flags, "gd") == NULL;
}

static int
map_there(struct restart *r, struct built *b)
{
	const struct task *t = &r->model.tasks[0];
	struct script s = {0};
	size_t k = 0;

	for (size_t i = 0; i < r->earlier->owners[0].end; i++) {
		struct waiting *w = &r->earlier->waiting[i];

		while (t->vmas[k].start != w->start)
			k++;
		if (!can_wait_there(&t->vmas[k]))
			continue;
		w->lowest = UINT64_MAX;
		w->came = calloc((w->end - w->start) / PAGE_BYTES / WORD_BITS + 1, sizeof(*w->came));
		if (w->came == NULL) {
			script_fini(&s);
			return -ENOMEM;
		}
		space_add_mapping(r, &s, &t->vmas[k]);
	}
	return built_run(b, &s);
}

void
early_begin(struct restart *r)
{
	struct earlier *e = r->earlier;
	int err = 0;

	/* Those that answer for themselves may be built otherwise. */
	for (size_t i = 0; i < r->model.header.ntasks; i++)
		if (r->model.tasks[i].note != 0)
			return;
	log_hush(1);
	if (r->model.objects.files[r->model.tasks[0].exe].member != NULL)
		err = -ENOENT; /* its program has not come yet */
	if (err == 0)
		err = first_early(r);
	if (err == 0)
		err = clear_space(r, &r->early->built);
	if (err == 0)
		err = map_there(r, &r->early->built);
	/* All that forks has done so. */
	place_aside(r, true);
	if (err == 0)
		err = image_reader_threads(r->reader);
	place_aside(r, false);
	log_hush(-1);
	if (err == 0)
		return;
	debug(LOG_VERBOSE, "the first process cannot be made yet: its memory waits here");
	first_drop_early(r);
	for (size_t i = 0; i < e->n; i++) {
		free(e->waiting[i].came);
		e->waiting[i].came = NULL;
	}
}

/* --- what becomes of it */

/* It is put in once more. */
static int
take_back(struct built *b, struct waiting *w)
{
	int err = earlier_add_memory(w);

	for (uint64_t at = 0, end; err == 0 && next_run(w, &at, &end); at = end)
		err = mem_read(b->mem, w->start + at * PAGE_BYTES, w->memory + at * PAGE_BYTES, (end - at) * PAGE_BYTES);
	return err < 0 ? fail(-err, "pid %d: its memory: %s", b->pid, strerror(-err)) : 0;
}

/* May w be part of that? Advice can be added later, but not taken away. */
static bool
is_part(const struct waiting *w, const struct vma *v)
{
	return v->kind == VMA_ANON && !v->shared && v->huge == 0 && space_traits(v, false) == w->traits &&
	    (w->pages & ~space_traits(v, true)) == 0 && (!w->accounted || space_is_accounted(v));
}

/*
 * Two that came apart do not become one mapping, even where nothing is between them; so each mapping has one at most, and one stays only whole: with all
 * mappings that it is part of.
 */
static void
choose(const struct task *t, struct waiting *all, size_t n, bool *stays)
{
	size_t first = 0;
	taddr taken = 0; /* the end of the last mapping that has one */

	for (size_t i = 0; i < n; i++) {
		struct waiting *w = &all[i];

		while (first < t->nvmas && t->vmas[first].end <= w->start)
			first++;
		stays[i] = is_there(w);
		for (size_t k = first; k < t->nvmas && overlaps(w, &t->vmas[k]); k++)
			stays[i] &= is_part(w, &t->vmas[k]) && t->vmas[k].start >= taken;
		for (size_t k = first; k < t->nvmas && overlaps(w, &t->vmas[k]) && stays[i]; k++)
			taken = t->vmas[k].end;
	}
}

int
earlier_settle(struct restart *r, struct built *b, bool same)
{
	bool stays_here = same && space_is_apart(r, b);
	size_t n;
	struct waiting *w = list(r, b, &n);
	bool *stays = calloc(n + 1, sizeof(*stays));
	int err = stays == NULL ? fail(ENOMEM, "out of memory") : 0;

	if (err == 0 && stays_here)
		choose(b->task, w, n, stays);
	for (size_t i = 0; i < n && err == 0; i++)
		if (is_there(&w[i]) && !stays[i])
			err = take_back(b, &w[i]);
	free(stays);
	if (err < 0 || stays_here)
		return err;
	debug(LOG_VERBOSE, "it is another program than when the rounds began, or where the scripts are is not free any more: its memory is put in once more");
	for (size_t i = 0; i < n; i++)
		w[i].gone = true;
	return build_execute(r, b);
}

bool
earlier_is_there(const struct restart *r, const struct built *b)
{
	size_t n;
	const struct waiting *w = list(r, b, &n);

	for (size_t i = 0; i < n; i++)
		if (w[i].came != NULL && !w[i].gone)
			return true;
	return false;
}

void
earlier_trim(const struct restart *r, const struct built *b, struct script *s)
{
	const struct task *t = b->task;
	size_t n, k = 0;
	struct waiting *w = list(r, b, &n);

	for (size_t i = 0; i < n; i++) {
		taddr at = w[i].start;

		if (w[i].came == NULL || w[i].gone)
			continue;
		while (k < t->nvmas && t->vmas[k].end <= at)
			k++;
		for (size_t j = k; is_there(&w[i]) && j < t->nvmas && overlaps(&w[i], &t->vmas[j]); j++) {
			if (t->vmas[j].start > at)
				script_add(s, "clearing", SYS_munmap, at, t->vmas[j].start - at);
			mark(&w[i], at, t->vmas[j].start, false);
			at = t->vmas[j].end;
		}
		if (at < w[i].end)
			script_add(s, "clearing", SYS_munmap, at, w[i].end - at);
		mark(&w[i], at, w[i].end, false);
	}
}

bool
earlier_in_place(const struct restart *r, const struct built *b, const struct vma *v, taddr *start, taddr *end, int *prot)
{
	size_t n, lo = 0, hi;
	const struct waiting *w = list(r, b, &n);

	hi = n;
	while (lo < hi) { /* the first that ends behind its begin */
		size_t mid = lo + (hi - lo) / 2;

		if (w[mid].end <= v->start)
			lo = mid + 1;
		else
			hi = mid;
	}
	/* Of those that are part of it one has stayed at most. */
	while (lo < n && overlaps(&w[lo], v) && !is_there(&w[lo]))
		lo++;
	if (lo == n || !overlaps(&w[lo], v))
		return false;
	*start = max_u64(v->start, w[lo].start);
	*end = min_u64(v->end, w[lo].end);
	*prot = w[lo].prot;
	return true;
}
