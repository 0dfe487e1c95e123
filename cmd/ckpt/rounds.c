/*
 * Memory is sent while it is in use, again and again what has been written since, so that little is left for the stop.
 *
 * What is written the kernel tells: each private mapping is registered with a userfaultfd that is asynchronous, so that nobody ever waits for it, and
 * PAGEMAP_SCAN says and forgets at once. The userfaultfd is made in the process, which does not keep it. What is mapped later, moved, or not private is sent at the end.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "ckpt.h"
#include "fault.h"
#include "io.h"
#include "kfeat.h"
#include "log.h"
#include "netlock.h"
#include "pagemap.h"

/* linux/userfaultfd.h of 6.7 */
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif

/* Rounds are given up when twice in a row more than this part of what was sent is to be sent once more. */
enum { FALLING_PERCENT = 80, OFTEN = 2 };

struct tracker {
	struct page_source source; /* first */
	struct memory memory;
	int64_t number; /* in the image */
	int uffd, pagemap;
	struct page_range *ranges;
	size_t nranges;
	bool first, broken;
};

struct rounds {
	struct image_writer *writer;
	struct tracker *trackers;
	size_t n;
};

/* --- tracking */

/* The number that its next fd will have; -1, which nothing has, where that cannot be told. */
static int
next_fd(const struct target *t)
{
	int *fds, next = 0;
	size_t n;

	if (proc_list(t->proc, "fd", &fds, &n) < 0)
		return -1;
	while ((size_t)next < n && fds[next] == next)
		next++;
	free(fds);
	return next;
}

/* Made by it, and ours then: should ckpt die meanwhile, it is closed on the way back. */
static int
make_userfaultfd(struct member *who)
{
	struct tracee *th = &who->target.threads[0];
	struct arch_call make = {SYS_userfaultfd, {O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY}};
	struct arch_call let_go = {SYS_close, {(uint64_t)next_fd(&who->target)}};
	int64_t theirs = 0, closed = 0;
	taddr sp;
	int fd, err = target_borrow(&who->target, th);

	if (err == 0)
		err = th->frame_at != 0 ? call_undone(who, &make, &let_go, &theirs, &sp) : tracee_call(th, &make, &theirs);
	if (err < 0 || theirs < 0)
		return err < 0 ? err : (int)theirs;
	fault(FAULT_uffd_made);
	fd = (int)syscall(SYS_pidfd_getfd, who->target.pidfd, (int)theirs, 0);
	if (fd < 0)
		fd = -errno;
	let_go.arg[0] = (uint64_t)theirs;
	err = tracee_call(th, &let_go, &closed);
	if (err < 0 && fd >= 0)
		close_fd(&fd);
	return err < 0 ? err : fd;
}

/* All of it counts as written. */
static int
unprotect(struct tracker *t, taddr start, taddr end)
{
	struct uffdio_writeprotect wp = {.range = {start, end - start}};
	int err;

	do
		err = ioctl(t->uffd, UFFDIO_WRITEPROTECT, &wp) < 0 ? -errno : 0;
	while (err == -EAGAIN);
	return err;
}

static int
add_range(struct tracker *t, taddr start, taddr end)
{
	struct page_range *r = ARRAY_ADD(t->ranges, t->nranges);

	if (r == NULL)
		return -ENOMEM;
	*r = (struct page_range){start, end};
	return 0;
}

/* Before the first round: older kernels leave marks on what mremap(2) moved. What is not there any more is not tracked. */
static void
unprotect_all(struct tracker *t)
{
	size_t n = 0;

	for (size_t i = 0; i < t->nranges; i++)
		if (unprotect(t, t->ranges[i].start, t->ranges[i].end) == 0)
			t->ranges[n++] = t->ranges[i];
	t->nranges = n;
}

/*
 * A whole mapping of one that stands still: a part would be made a mapping of its own, which a program notices that moves it. What cannot be registered, as it
 * has a userfaultfd of its own, say, is not tracked.
 */
static int
register_mapping(struct tracker *t, const struct vma *v)
{
	struct uffdio_register reg = {.range = {v->start, v->end - v->start}, .mode = UFFDIO_REGISTER_MODE_WP};

	return ioctl(t->uffd, UFFDIO_REGISTER, &reg) < 0 ? 0 : add_range(t, v->start, v->end);
}

static void
forget(struct tracker *t, taddr page)
{
	int err = unprotect(t, page, page + PAGE_BYTES);

	/* Where there is nothing any more, there is nothing to know. */
	if (err < 0 && err != -ENOENT && err != -ESRCH)
		__atomic_store_n(&t->broken, true, __ATOMIC_RELAXED);
}

/* It runs: what has gone meanwhile is sent as zeroes, and once more if it comes again. */
static int
read_running(struct page_source *s, const struct page_run *runs, size_t nruns, unsigned char *out)
{
	struct tracker *t = (struct tracker *)s;

	for (size_t i = 0; i < nruns; i++) {
		uint64_t len = runs[i].npages * PAGE_BYTES;

		if (mem_read(t->memory.mem, runs[i].addr, out, len) < 0)
			for (uint64_t k = 0; k < len; k += PAGE_BYTES)
				if (mem_read(t->memory.mem, runs[i].addr + k, out + k, PAGE_BYTES) < 0) {
					memset(out + k, 0, PAGE_BYTES);
					forget(t, runs[i].addr + k);
				}
		out += len;
	}
	return 0;
}

/* Zeroes need not be sent as long as nothing else was. */
static bool
keep_running(struct page_source *s, taddr addr, const unsigned char *page)
{
	(void)addr;
	return !((struct tracker *)s)->first || !page_is_zero(page);
}

static bool
is_tracked(const struct vma *v)
{
	return v->kind == VMA_ANON && !v->shared && v->huge == 0 && (v->flags == NULL || strstr(v->flags, "dp") == NULL);
}

static int
track(struct tracker *t, struct member *who)
{
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_WP_ASYNC};
	int err = 0;

	*t = (struct tracker){.source = {.read = read_running, .keep = keep_running}, .memory = {who->target.pid, -1, -1},
	    .number = who->task->pid, .pagemap = -1, .first = true};
	t->uffd = make_userfaultfd(who);
	if (t->uffd < 0)
		return t->uffd;
	t->memory.mem = fcntl(who->target.mem, F_DUPFD_CLOEXEC, 3);
	t->pagemap = openat(who->target.proc, "pagemap", O_RDONLY | O_CLOEXEC);
	if (t->memory.mem < 0 || t->pagemap < 0 || ioctl(t->uffd, UFFDIO_API, &api) < 0)
		return -errno;
	for (size_t i = 0; i < who->task->nvmas && err == 0; i++)
		if (is_tracked(&who->task->vmas[i]))
			err = register_mapping(t, &who->task->vmas[i]);
	return err;
}

/*
 * A part of this range is another mapping by now. What the kernel has said of it is lost, with what it has forgotten by that: so the range is given up, and
 * of what is there now those mappings are tracked that still are registered, all of which is written.
 */
static int
split_range(struct tracker *t, size_t i)
{
	struct page_range old = t->ranges[i];
	struct proc_maps maps = {0};
	int proc = proc_open(t->memory.pid), err = proc < 0 ? proc : proc_read_maps(proc, false, &maps);

	memmove(&t->ranges[i], &t->ranges[i + 1], (--t->nranges - i) * sizeof(*t->ranges));
	close_fd(&proc);
	for (size_t k = 0; err == 0 && k < maps.n; k++) {
		taddr start = max_u64(old.start, maps.map[k].start), end = min_u64(old.end, maps.map[k].end);

		/* If it is registered. */
		if (start < end && unprotect(t, start, end) == 0)
			err = add_range(t, start, end);
	}
	proc_maps_fini(&maps);
	return err == -ENOMEM ? err : 0;
}

static int
by_address(const void *a, const void *b)
{
	const struct page_range *x = a, *y = b;

	return x->start < y->start ? -1 : x->start > y->start;
}

/* In the ranges from *i on, to the end or to one that is split. */
static int
scan_ranges(struct tracker *t, size_t *i, bool rearm, struct page_runs *runs)
{
	int err = 0;

	for (; *i < t->nranges && err == 0; ++*i) {
		struct page_runs some = {0};

		err = pagemap_written(t->pagemap, t->ranges[*i].start, t->ranges[*i].end, rearm, &some);
		if (err == 0)
			err = page_runs_join(runs, &some);
		page_runs_fini(&some);
	}
	return err;
}

/* Pages that have been written since the last time; with rearm, which begins now. */
static int
find_written(struct tracker *t, bool rearm, struct page_runs *runs)
{
	size_t i = 0;
	int err;

	while ((err = scan_ranges(t, &i, rearm, runs)) == -EPERM) {
		err = split_range(t, --i);
		if (err < 0)
			return err;
		/* Its pieces come to where it was, and are looked at next. */
		if (t->nranges > 0)
			qsort(t->ranges, t->nranges, sizeof(*t->ranges), by_address);
	}
	/* A child that has ended meanwhile. */
	if (err == -ESRCH) {
		t->nranges = 0;
		err = 0;
	}
	return err;
}

static void
untrack(struct tracker *t)
{
	close_fd(&t->uffd);
	close_fd(&t->pagemap);
	close_fd(&t->memory.mem);
	free(t->ranges);
}

/* --- rounds */

static int
check_interrupt(void *ctx, uint64_t done, uint64_t all)
{
	(void)done, (void)all;
	return interrupted() ? fail(EINTR, "interrupted; pid %d runs on", *(int *)ctx) : fault(FAULT_page_out);
}

/* One round of all of them; *pages: how many were sent. */
static int
send_round(struct ckpt *c, struct rounds *r, uint64_t *pages)
{
	int err = 0;

	*pages = 0;
	for (size_t i = 0; i < r->n && err == 0; i++) {
		struct tracker *t = &r->trackers[i];
		struct page_runs runs = {0};

		err = find_written(t, true, &runs);
		if (err < 0)
			fail(-err, "pid %d: pagemap: %s", t->memory.pid, strerror(-err));
		*pages += runs.npages;
		if (err == 0 && runs.n > 0)
			err = image_put_pages(r->writer, t->number, &runs, &t->source, check_interrupt, &c->opt.pid);
		t->first = false;
		page_runs_fini(&runs);
	}
	return err;
}

static uint64_t
count_written(struct rounds *r)
{
	uint64_t pages = 0;

	for (size_t i = 0; i < r->n; i++) {
		struct page_runs runs = {0};

		if (find_written(&r->trackers[i], false, &runs) == 0)
			pages += runs.npages;
		page_runs_fini(&runs);
	}
	return pages;
}

/*
 * As long as it helps: until what is left takes no longer than the stop may, or it does not get less.
 */
static int
send_rounds(struct ckpt *c, struct rounds *r)
{
	uint64_t sent, left = UINT64_MAX;
	int err = 0, in_vain = 0;

	for (int n = 1; n <= c->opt.rounds && err == 0; n++) {
		int64_t begun = now_ns(), took;
		double rest_ms;

		err = send_round(c, r, &sent);
		if (err < 0)
			break;
		took = max_i64(1, now_ns() - begun);
		left = count_written(r);
		rest_ms = sent == 0 ? 0 : (double)left / (double)sent * (double)took / 1e6;
		in_vain = left * 100 > sent * FALLING_PERCENT ? in_vain + 1 : 0;
		debug(LOG_VERBOSE, "round %d: %.1f MB in %.1f ms; %.1f MB have been written since, which would take %.1f ms", n,
		    (double)(sent * PAGE_BYTES) / 1e6, (double)took / 1e6, (double)(left * PAGE_BYTES) / 1e6, rest_ms);
		if (rest_ms <= (double)c->opt.max_stop_ms) {
			debug(LOG_VERBOSE, "that is short enough: it is stopped");
			break;
		}
		if (in_vain >= OFTEN) {
			debug(LOG_VERBOSE, "it is written as fast as it is sent: it is stopped");
			break;
		}
		if (n == c->opt.rounds)
			debug(LOG_VERBOSE, "these were the rounds that were asked for: it is stopped");
	}
	return err;
}

/* What writes to memory past its page tables, so that the kernel does not see it? */
static const char *
writes_past(const struct ckpt *c)
{
	for (size_t i = 0; i < c->model.objects.nofds; i++)
		if (c->model.objects.ofds[i].flags & O_DIRECT)
			return "it has a file open with O_DIRECT, which writes to memory unseen";
	for (size_t i = 0; i < c->nmembers; i++)
		for (size_t k = 0; k < c->members[i]->task->nvmas; k++)
			if (c->members[i]->task->vmas[k].kind == VMA_AIO || c->members[i]->task->vmas[k].kind == VMA_URING)
				return "it has rings of asynchronous I/O, which writes to memory unseen";
	return NULL;
}

/* All that is known, and their memory from now on. Where it cannot be tracked, *why says so. */
static int
begin(struct ckpt *first, struct rounds *r, const char **why)
{
	int err = 0;

	r->trackers = calloc(first->nmembers, sizeof(*r->trackers));
	if (r->trackers == NULL)
		return -ENOMEM;
	*why = writes_past(first);
	for (size_t i = 0; i < first->nmembers && *why == NULL; i++) {
		struct member *who = first->members[i];

		if (who->zombie)
			continue;
		if (who->target.coop != NULL) {
			*why = "it answers for itself";
			break;
		}
		log_hush(1);
		err = track(&r->trackers[r->n++], who);
		log_hush(-1);
		if (err < 0)
			*why = err == -EINVAL || err == -ENOSYS ? "this kernel cannot track what is written (Linux 6.7 can)" : strerror(-err);
	}
	return 0;
}

static int
send_all(struct ckpt *c, struct ckpt *first, struct output *o, struct rounds *r)
{
	const char *why = kfeat(KFEAT_wp_async) && kfeat(KFEAT_pagemap_scan) ? NULL : "this kernel cannot track what is written (Linux 6.7 can)";
	int err = why == NULL ? tree_freeze(first) : 0;

	if (err == 0 && why == NULL)
		err = collect(first);
	if (err == 0 && why == NULL)
		err = begin(first, r, &why);
	tree_thaw(first);
	if (err < 0)
		return err;
	if (why != NULL) {
		note("pid %d: its memory is sent at once, while it stands still: %s", c->opt.pid, why);
		return 0;
	}
	for (size_t i = 0; i < r->n; i++)
		unprotect_all(&r->trackers[i]);
	r->writer = image_writer_new(output_write, o, c->opt.level);
	first->model.header.rounds = true;
	err = r->writer == NULL ? fail(ENOMEM, "out of memory") : add_feature(first, "rounds");
	if (err == 0)
		err = write_records(first, r->writer);
	if (err == 0)
		err = send_rounds(c, r);
	return err == 0 ? 1 : err;
}

int
rounds_send(struct ckpt *c, struct output *o)
{
	struct ckpt first = {.opt = c->opt, .home_listener = -1, .home_report = -1};
	int err = tree_open(&first, c->opt.pid);

	/* restart is to have a picture of it, which the end may correct. */
	first.opt.assume = true;
	if (err == 0)
		assume_ahead(&first);
	c->rounds = calloc(1, sizeof(*c->rounds));
	if (c->rounds == NULL)
		err = -ENOMEM;
	if (err == 0)
		err = send_all(c, &first, o, c->rounds);
	first.opt.rules = NULL; /* they are c's */
	netlock_end(first.shared.netlock, NETLOCK_RELEASE);
	first.shared.netlock = NULL;
	ckpt_fini(&first);
	if (err <= 0)
		rounds_end(c);
	else
		stats_add(STAT_before, (int64_t)(image_pages(c->rounds->writer) * PAGE_BYTES));
	return err < 0 ? err : 0;
}

static struct tracker *
tracker_of(const struct ckpt *c, const struct member *who)
{
	for (size_t i = 0; c->rounds != NULL && i < c->rounds->n; i++)
		if (c->rounds->trackers[i].memory.pid == who->target.pid)
			return &c->rounds->trackers[i];
	return NULL;
}

bool
rounds_track(const struct ckpt *c, const struct member *who)
{
	return tracker_of(c, who) != NULL;
}

/* Pages of a and b: both ascend. */
static int
intersect(const struct page_runs *a, const struct page_runs *b, struct page_runs *both)
{
	int err = 0;

	for (size_t i = 0, k = 0; i < a->n && k < b->n && err == 0;) {
		taddr a_end = a->run[i].addr + a->run[i].npages * PAGE_BYTES, b_end = b->run[k].addr + b->run[k].npages * PAGE_BYTES;
		taddr from = max_u64(a->run[i].addr, b->run[k].addr), to = min_u64(a_end, b_end);

		if (from < to)
			err = page_runs_add(both, from, (to - from) / PAGE_BYTES);
		if (a_end < b_end)
			i++;
		else
			k++;
	}
	return err;
}

bool
rounds_knows(const struct ckpt *c, const struct member *who, taddr at, taddr *end)
{
	const struct tracker *t = tracker_of(c, who);
	size_t lo = 0, hi = t == NULL || t->broken ? 0 : t->nranges;

	while (lo < hi) { /* the first that ends behind it */
		size_t mid = lo + (hi - lo) / 2;

		if (t->ranges[mid].end <= at)
			lo = mid + 1;
		else
			hi = mid;
	}
	if (t == NULL || t->broken || lo == t->nranges)
		return false;
	*end = min_u64(*end, t->ranges[lo].start > at ? t->ranges[lo].start : t->ranges[lo].end);
	return t->ranges[lo].start <= at;
}

int
rounds_split(struct ckpt *c, struct member *who)
{
	const struct tracker *t = tracker_of(c, who);
	struct page_runs both = {0};
	int err = 0;

	if (t == NULL || t->broken || writes_past(c) != NULL)
		return 0;
	err = intersect(&who->runs, &who->unwritten, &both);
	if (err == 0)
		err = add_earlier(who, &both);
	page_runs_fini(&both);
	return err;
}

struct image_writer *
rounds_writer(struct ckpt *c)
{
	struct image_writer *w = c->rounds->writer;

	c->rounds->writer = NULL;
	return w;
}

void
rounds_end(struct ckpt *c)
{
	if (c->rounds == NULL)
		return;
	for (size_t i = 0; i < c->rounds->n; i++)
		untrack(&c->rounds->trackers[i]);
	free(c->rounds->trackers);
	image_writer_free(c->rounds->writer);
	free(c->rounds);
	c->rounds = NULL;
}
