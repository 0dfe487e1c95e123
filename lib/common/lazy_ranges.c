#include "lazy_ranges.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Around a stack pointer, around thread-local storage; a mapping with one of these that is no larger is there as a whole; so is one that is small. */
enum { BELOW_STACK = 128 << 10, ABOVE_STACK = 256 << 10, AROUND_TLS = 64 << 10, WHOLE_STACK = 16 << 20, SMALL = 256 << 10 };

struct windows {
	struct page_range *window; /* ascending */
	size_t n;
};

static bool
has_flag(const struct vma *v, const char *two)
{
	for (const char *p = v->flags; p != NULL && (p = strstr(p, two)) != NULL; p++)
		if ((p == v->flags || p[-1] == ' ') && (p[2] == ' ' || p[2] == '\0'))
			return true;
	return false;
}

/* Locked, growing downwards, droppable, not a page at a time, a device's. */
static bool
can_wait(const struct vma *v)
{
	static const char not_with[][3] = {"lo", "gd", "dp", "ht", "io", "pf", "um", "uw", "wf"};

	if (v->kind != VMA_ANON || v->shared || v->huge != 0 || v->end - v->start <= SMALL)
		return false;
	for (size_t i = 0; i < ARRAY_LEN(not_with); i++)
		if (has_flag(v, not_with[i]))
			return false;
	return true;
}

/* [at - below, at + above) of the mapping v, or all of it. */
static int
add_window(struct windows *w, const struct vma *v, taddr at, uint64_t below, uint64_t above, bool whole)
{
	struct page_range *r;

	if (at < v->start || at >= v->end)
		return 0;
	r = ARRAY_ADD(w->window, w->n);
	if (r == NULL)
		return -ENOMEM;
	*r = (struct page_range){v->start, v->end};
	if (!whole || v->end - v->start > WHOLE_STACK) {
		r->start = at - v->start > below ? page_down(at - below) : v->start;
		r->end = v->end - at > above ? page_up(at + above) : v->end;
	}
	return 0;
}

static int
add_thread(struct windows *w, const struct vma *v, const struct thread *t)
{
	int err = add_window(w, v, t->regs.rsp, BELOW_STACK, ABOVE_STACK, true);

	if (err == 0)
		err = add_window(w, v, t->regs.fs_base, AROUND_TLS, AROUND_TLS, true);
	if (err == 0)
		err = add_window(w, v, t->rseq, 0, PAGE_BYTES, false);
	if (err == 0)
		err = add_window(w, v, t->robust_head, 0, PAGE_BYTES, false);
	if (err == 0)
		err = add_window(w, v, t->tid_address, 0, PAGE_BYTES, false);
	if (err == 0)
		err = add_window(w, v, t->altstack_sp, 0, t->altstack_size + PAGE_BYTES, false);
	return err;
}

static int
compare(const void *a, const void *b)
{
	const struct page_range *x = a, *y = b;

	return x->start < y->start ? -1 : x->start > y->start;
}

/* What is left of a mapping. */
static int
add_rest(const struct vma *v, struct windows *w, struct page_range **ranges, size_t *nranges)
{
	taddr at = v->start;

	if (w->n > 0)
		qsort(w->window, w->n, sizeof(*w->window), compare);
	for (size_t i = 0; i <= w->n; i++) {
		taddr end = i < w->n ? w->window[i].start : v->end;
		struct page_range *r;

		if (end > at) {
			r = ARRAY_ADD(*ranges, *nranges);
			if (r == NULL)
				return -ENOMEM;
			*r = (struct page_range){at, end};
		}
		at = i < w->n ? max_u64(at, w->window[i].end) : at;
	}
	return 0;
}

int
lazy_ranges(const struct task *t, struct page_range **ranges, size_t *nranges)
{
	int err = 0;

	for (size_t i = 0; i < t->nvmas && err == 0; i++) {
		const struct vma *v = &t->vmas[i];
		struct windows w = {0};

		if (!can_wait(v) || (t->mm.start_stack >= v->start && t->mm.start_stack < v->end))
			continue;
		for (size_t k = 0; k < t->nthreads && err == 0; k++)
			err = add_thread(&w, v, &t->threads[k]);
		if (err == 0)
			err = add_rest(v, &w, ranges, nranges);
		free(w.window);
	}
	return err;
}
