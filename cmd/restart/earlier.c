/*
 * Memory that came before the rest of the image: in its parents (ckpt -i), which are files; or in rounds, while the original was running (ckpt --rounds). Then it waits
 * in the first process where it is to be, and here for the others, for each by its addresses; what is still so in the end goes to where it belongs.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "chain.h"
#include "earlier.h"
#include "log.h"

static bool
may_wait(const struct vma *v)
{
	return v->kind == VMA_ANON && !v->shared && v->huge == 0;
}

static int
add_room(struct earlier *e, const struct vma *v)
{
	struct waiting *w = ARRAY_ADD(e->waiting, e->n);

	if (w == NULL)
		return fail(ENOMEM, "out of memory");
	*w = (struct waiting){.start = v->start, .end = v->end, .prot = space_first_prot(v), .traits = space_traits(v, false),
	    .pages = space_traits(v, true), .accounted = space_is_accounted(v)};
	return 0;
}

int
earlier_add_memory(struct waiting *w)
{
	void *p = mmap(NULL, w->end - w->start, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		return fail(ENOMEM, "no room for %" PRIu64 " MB of memory", (w->end - w->start) >> 20);
	w->memory = p;
	return 0;
}

static int
make_room(struct restart *r, struct earlier *e)
{
	int err = 0;

	for (size_t i = 0; i < r->model.header.ntasks && err == 0; i++) {
		const struct task *t = &r->model.tasks[i];
		struct owner *o = ARRAY_ADD(e->owners, e->nowners);

		if (o == NULL)
			return fail(ENOMEM, "out of memory");
		*o = (struct owner){t->pid, e->n, e->n};
		for (size_t k = 0; k < t->nvmas && err == 0; k++)
			if (may_wait(&t->vmas[k]))
				err = add_room(e, &t->vmas[k]);
		o->end = e->n;
	}
	return err;
}

static const struct owner *
find_owner(const struct earlier *e, int64_t pid)
{
	for (size_t i = 0; i < e->nowners; i++)
		if (e->owners[i].pid == pid)
			return &e->owners[i];
	return NULL;
}

/* The one of a task that has this address. */
static struct waiting *
find(const struct earlier *e, int64_t pid, taddr addr)
{
	const struct owner *o = find_owner(e, pid);
	size_t lo = o == NULL ? 0 : o->first, hi = o == NULL ? 0 : o->end, end = hi;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (e->waiting[mid].end <= addr)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo < end && e->waiting[lo].start <= addr ? &e->waiting[lo] : NULL;
}

/* Pages at addr, which may be of several mappings. */
static int
put(struct restart *r, int64_t pid, taddr addr, const unsigned char *data, uint64_t len)
{
	while (len > 0) {
		struct waiting *w = find(r->earlier, pid, addr);
		uint64_t some = w == NULL ? 0 : min_u64(len, w->end - addr);

		if (w == NULL)
			return fail(EBADMSG, "%s: bad image: a page at %#" PRIx64 " belongs to no mapping", r->source.name, addr);
		if (w->memory == NULL) {
			int err = early_put(r, w, addr, data, some);

			if (err < 0)
				return err;
		} else {
			memcpy(w->memory + (addr - w->start), data, some);
		}
		addr += some;
		data += some;
		len -= some;
	}
	return 0;
}

static int
take_chunk(struct restart *r)
{
	int64_t pid = strtoll(r->member + strlen("pages/"), NULL, 10);
	struct page_run runs[CHUNK_PAGES];
	const unsigned char *data;
	uint64_t npages, used = 0;
	size_t nruns, len, i = 0;
	int err = image_get_chunk(r->reader, runs, &nruns, &npages);

	while (err == 0 && (err = image_chunk_data(r->reader, &data, &len)) == 0 && data != NULL)
		while (len > 0 && err == 0) {
			uint64_t some = min_u64(len, (runs[i].npages - used) * PAGE_BYTES);

			err = put(r, pid, runs[i].addr + used * PAGE_BYTES, data, some);
			data += some;
			len -= some;
			used += some / PAGE_BYTES;
			if (used == runs[i].npages) {
				i++;
				used = 0;
			}
		}
	return err;
}

int
earlier_receive(struct restart *r)
{
	bool had_ipc;
	int err;

	if (!r->model.header.rounds)
		return 0;
	had_ipc = ipc_wanted(r);
	r->earlier = calloc(1, sizeof(*r->earlier));
	err = r->earlier == NULL ? fail(ENOMEM, "out of memory") : make_room(r, r->earlier);
	if (err == 0 && !r->opt.check)
		early_begin(r);
	for (size_t i = 0; err == 0 && i < r->earlier->n; i++)
		if (r->early == NULL || r->earlier->waiting[i].came == NULL)
			err = earlier_add_memory(&r->earlier->waiting[i]);
	while (err == 0 && strncmp(r->member, "pages/", 6) == 0) {
		err = take_chunk(r);
		if (err == 0)
			err = image_next(r->reader, r->member, &r->member_size) <= 0 ? fail(EBADMSG, "%s: bad image: it ends in a round", r->source.name) : 0;
		log_progress("memory", image_pages_read(r->reader) * PAGE_BYTES, 0);
	}
	log_progress_end();
	if (err == 0)
		err = load_again(r);
	return err < 0 || r->opt.check ? err : place_again(r, had_ipc);
}

int
earlier_open(struct restart *r)
{
	if (r->model.header.parent == NULL)
		return 0;
	return chain_open_parents(&r->parents, &r->model.header, r->source.is_stdin ? NULL : r->source.name, r->opt.parent);
}

static int
missing(const struct restart *r, taddr at)
{
	return fail(EBADMSG, "%s: bad image: nothing came earlier for memory at %#" PRIx64, r->source.name, at);
}

/* From its parents. */
static int
fill_from_parents(const struct restart *r, struct built *b, const struct task *t)
{
	struct chain_reader *reader = chain_reader_new(r->parents);
	int err = reader == NULL ? fail(ENOMEM, "out of memory") : 0;
	const unsigned char *content;
	uint64_t n;

	for (size_t i = 0; i < t->nearlier && err == 0; i++)
		for (taddr at = t->earlier[i].start; at < t->earlier[i].end && err == 0; at += n * PAGE_BYTES) {
			err = chain_find(reader, t->pid, at, t->earlier[i].end, &content, &n);
			if (err == 0)
				err = missing(r, at);
			if (err > 0)
				err = b == NULL ? 0 : fill_memory(b, at, content, n * PAGE_BYTES);
		}
	chain_reader_free(reader);
	return err;
}

/* From the rounds. */
static int
fill_from_rounds(const struct restart *r, struct built *b, const struct task *t)
{
	int err = 0;

	for (size_t i = 0; i < t->nearlier && err == 0; i++)
		for (taddr at = t->earlier[i].start, end; at < t->earlier[i].end && err == 0; at = end) {
			struct waiting *w = r->earlier == NULL ? NULL : find(r->earlier, t->pid, at);

			if (w == NULL)
				return missing(r, at);
			end = min_u64(t->earlier[i].end, w->end);
			if (w->memory == NULL)
				early_right(w, at, end);
			else if (b != NULL)
				err = fill_memory(b, at, w->memory + (at - w->start), end - at);
		}
	return err;
}

int
earlier_fill(const struct restart *r, struct built *b, const struct task *t)
{
	return r->parents != NULL && t->nearlier > 0 ? fill_from_parents(r, b, t) : fill_from_rounds(r, b, t);
}

void
earlier_drop(struct restart *r)
{
	for (size_t i = 0; r->earlier != NULL && i < r->earlier->n; i++) {
		struct waiting *w = &r->earlier->waiting[i];

		if (w->memory != NULL)
			munmap(w->memory, w->end - w->start);
		free(w->came);
	}
	if (r->earlier != NULL) {
		free(r->earlier->waiting);
		free(r->earlier->owners);
	}
	free(r->earlier);
	r->earlier = NULL;
	chain_close(r->parents);
	r->parents = NULL;
}
