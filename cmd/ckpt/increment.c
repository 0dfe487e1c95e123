/*
 * An image that has only what its parent has not (-i): pages are compared with the parent's, byte for byte, by several threads.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "chain.h"
#include "ckpt.h"
#include "io.h"
#include "log.h"
#include "model_check.h"

enum { PIECE_PAGES = FRAME_RAW_MAX / PAGE_BYTES };

/* Pages of one task that are compared by one thread. */
struct comparing {
	struct job job; /* first */
	struct page_source *source;
	struct chain_reader *reader;
	int64_t task;
	struct page_run in[CHUNK_PAGES];
	size_t nin;
	struct page_run same[CHUNK_PAGES];
	size_t nsame;
	int err;
	unsigned char content[FRAME_RAW_MAX];
};

int
increment_open(struct ckpt *c)
{
	if (c->opt.parent == NULL)
		return 0;
	return chain_open(&c->parent, c->opt.parent);
}

void
increment_close(struct ckpt *c)
{
	chain_close(c->parent);
	c->parent = NULL;
}

int
increment_announce(struct ckpt *c)
{
	bool any = false;

	if (c->parent == NULL)
		return 0;
	for (size_t i = 0; i < c->nmembers; i++)
		any |= chain_has_task(c->parent, c->model.header.tasks[i]);
	if (!any)
		return fail(EINVAL, "%s: is an image of other processes, and cannot be the parent of this one", c->opt.parent);
	c->model.header.parent = strdup(chain_id(c->parent));
	return c->model.header.parent == NULL ? fail(ENOMEM, "out of memory") : add_feature(c, "parent");
}

/* Those of n pages from addr on that the parent has as they are. */
static int
compare(struct comparing *k, taddr addr, const unsigned char *page, uint64_t n)
{
	taddr end = addr + n * PAGE_BYTES;

	while (addr < end) {
		const unsigned char *before;
		uint64_t some = 1;
		int got = chain_find(k->reader, k->task, addr, end, &before, &some);

		if (got < 0)
			return got;
		for (uint64_t i = 0; i < some; i++, addr += PAGE_BYTES, page += PAGE_BYTES)
			if (got > 0 && memcmp(page, before + i * PAGE_BYTES, PAGE_BYTES) == 0)
				page_run_put(k->same, &k->nsame, addr);
	}
	return 0;
}

static void
compare_run(struct job *job)
{
	struct comparing *k = (struct comparing *)job;

	k->nsame = 0;
	k->err = 0;
	for (size_t i = 0; i < k->nin; i++)
		for (uint64_t done = 0, n; done < k->in[i].npages && k->err == 0; done += n) {
			struct page_run part = {k->in[i].addr + done * PAGE_BYTES, 0};

			n = part.npages = min_u64(k->in[i].npages - done, PIECE_PAGES);
			k->err = k->source->read(k->source, &part, 1, k->content);
			if (k->err == 0)
				k->err = compare(k, part.addr, k->content, n);
		}
}

static int
take_result(struct comparing *k, struct page_runs *same)
{
	int err = k->err;

	for (size_t i = 0; i < k->nsame && err == 0; i++)
		err = page_runs_add(same, k->same[i].addr, k->same[i].npages);
	return err;
}

static int
compare_all(struct member *who, const struct page_runs *runs, struct comparing **idle, size_t n, struct pipeline *pipe, struct page_runs *same)
{
	struct page_cursor at = {0};
	uint64_t got;
	int err = 0;

	while (err == 0 && (at.next < runs->n || !pipeline_empty(pipe))) {
		while (n > 0 && at.next < runs->n) {
			struct comparing *k = idle[--n];

			k->job.run = compare_run;
			k->task = who->task->pid;
			k->nin = page_cursor_take(&at, runs->run, runs->n, CHUNK_PAGES, k->in, &got);
			pipeline_submit(pipe, &k->job);
		}
		idle[n++] = (struct comparing *)pipeline_take(pipe);
		err = take_result(idle[n - 1], same);
		if (err == 0 && interrupted())
			err = fail(EINTR, "interrupted; pid %d runs on", who->target.pid);
	}
	while (!pipeline_empty(pipe))
		idle[n++] = (struct comparing *)pipeline_take(pipe);
	return err;
}

static int
find_same(struct ckpt *c, struct member *who, struct page_runs *same)
{
	unsigned threads = pipeline_default_threads();
	size_t depth = 2 * threads + 1, n = 0;
	struct live_pages *lp = live_pages_new(c, who);
	struct comparing **all = calloc(2 * depth, sizeof(struct comparing *));
	struct pipeline *pipe = pipeline_new(threads, (unsigned)depth);
	int err = all == NULL || pipe == NULL || lp == NULL ? -ENOMEM : 0;

	for (; err == 0 && n < depth; n++) {
		all[n] = calloc(1, sizeof(*all[n]));
		if (all[n] == NULL || (all[n]->reader = chain_reader_new(c->parent)) == NULL)
			err = -ENOMEM;
		else
			all[n]->source = live_pages_source(lp);
	}
	if (err == 0) {
		memcpy(all + depth, all, depth * sizeof(struct comparing *));
		err = compare_all(who, &who->runs, all + depth, depth, pipe, same);
	}
	pipeline_free(pipe);
	for (size_t i = 0; all != NULL && i < n; i++) {
		if (all[i] != NULL)
			chain_reader_free(all[i]->reader);
		free(all[i]);
	}
	free(all);
	live_pages_free(lp);
	return err;
}

enum { RANGES_MAX = MODEL_LIST_MAX, LENGTHS = 1 << 10 };

static uint64_t
length(const struct page_range *r)
{
	return min_u64((r->end - r->start) / PAGE_BYTES, LENGTHS - 1);
}

/* All that have more pages than *longest_to_go stay, and *spare of those that have as many. */
static void
choose(const struct page_range *ranges, size_t n, uint64_t *longest_to_go, size_t *spare)
{
	size_t count[LENGTHS] = {0};

	for (size_t i = 0; i < n; i++)
		count[length(&ranges[i])]++;
	for (*longest_to_go = 0; n > RANGES_MAX; ++*longest_to_go)
		n -= count[*longest_to_go + 1];
	*spare = RANGES_MAX - n;
}

void
thin_ranges(struct page_range *ranges, size_t *n)
{
	size_t kept = 0, spare;
	uint64_t limit;

	choose(ranges, *n, &limit, &spare);
	for (size_t i = 0; i < *n; i++) {
		bool stays = length(&ranges[i]) > limit || (length(&ranges[i]) == limit && spare > 0);

		spare -= stays && length(&ranges[i]) == limit;
		if (stays)
			ranges[kept++] = ranges[i];
	}
	*n = kept;
}

int
subtract_ranges(struct page_runs *from, const struct page_range *ranges, size_t n)
{
	struct page_runs all = {0};
	int err = 0;

	for (size_t i = 0; i < n && err == 0; i++)
		err = page_runs_add(&all, ranges[i].start, (ranges[i].end - ranges[i].start) / PAGE_BYTES);
	if (err == 0 && n > 0)
		err = runs_subtract(from, &all);
	page_runs_fini(&all);
	return err;
}

int
add_earlier(struct member *who, const struct page_runs *runs)
{
	struct task *t = who->task;

	for (size_t i = 0; i < runs->n; i++) {
		struct page_range *r = ARRAY_ADD(t->earlier, t->nearlier);

		if (r == NULL)
			return -ENOMEM;
		*r = (struct page_range){runs->run[i].addr, runs->run[i].addr + runs->run[i].npages * PAGE_BYTES};
	}
	thin_ranges(t->earlier, &t->nearlier);
	return subtract_ranges(&who->runs, t->earlier, t->nearlier);
}

int
increment_split(struct ckpt *c, struct member *who)
{
	struct page_runs same = {0};
	int err;

	if (c->parent == NULL || !chain_has_task(c->parent, who->task->pid))
		return 0;
	err = find_same(c, who, &same);
	stats_add(STAT_scanned, (int64_t)(same.npages * PAGE_BYTES));
	if (err == 0)
		err = add_earlier(who, &same);
	page_runs_fini(&same);
	return err == -ENOMEM ? fail(ENOMEM, "out of memory") : err;
}
