/*
 * userfaultfd: faults and what else happens to a memory, and putting pages there.
 *
 * While an event is on its way that changes the address space, the kernel refuses to put pages (EAGAIN): so nothing is put where it does not belong any more,
 * and no fault at a new place is taken for one of memory that is empty.
 */
#include <errno.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "fetch.h"
#include "io.h"
#include "log.h"
#include "proc.h"
#include "tracee.h"

/* LEFT_MAX: more threads than ever move memory at once. What is told within TOGETHER_MS may have happened in another order. */
enum { LEFT_MAX = 4096, TOGETHER_MS = 1000, EARLY_MS = 5000 };

int
memory_register(const struct memory *m)
{
	for (size_t i = 0; i < m->lazy.n && m->uffd >= 0; i++) {
		struct uffdio_register r = {.range = {m->lazy.maps[i].at, m->lazy.maps[i].npages * PAGE_BYTES}, .mode = UFFDIO_REGISTER_MODE_MISSING};

		if (ioctl(m->uffd, UFFDIO_REGISTER, &r) < 0)
			return fail_errno("pid %d: memory at %#llx: userfaultfd", m->pid, (unsigned long long)m->lazy.maps[i].at);
	}
	return 0;
}

void
memory_unregister(const struct memory *m)
{
	for (size_t i = 0; i < m->lazy.n && m->uffd >= 0; i++) {
		struct uffdio_range r = {m->lazy.maps[i].at, m->lazy.maps[i].npages * PAGE_BYTES};

		ioctl(m->uffd, UFFDIO_UNREGISTER, &r); /* what is no longer there needs none */
	}
}

void
memory_free(struct memory *m)
{
	lazy_fini(&m->lazy);
	close_fd(&m->uffd);
	close_fd(&m->mem);
	close_fd(&m->pidfd);
	free(m->waiting);
	free(m->left);
	free(m->early);
	free(m);
}

/* --- putting */

static void
wake(const struct memory *m, taddr at)
{
	struct uffdio_range r = {at, PAGE_BYTES};

	ioctl(m->uffd, UFFDIO_WAKE, &r);
}

/* UFFDIO_COPY: 0 or an errno; *npages is how many of them have been put. */
static int
copy(const struct memory *m, taddr at, const unsigned char *content, uint64_t *npages)
{
	struct uffdio_copy c = {.dst = at, .src = (uintptr_t)content, .len = *npages * PAGE_BYTES};
	int err = ioctl(m->uffd, UFFDIO_COPY, &c) < 0 ? errno : 0;

	*npages = c.copy > 0 ? (uint64_t)c.copy / PAGE_BYTES : 0;
	return err;
}

/* Pages side by side. Returns how many need not be looked at again. */
static uint64_t
put(struct memory *m, taddr at, const unsigned char *content, uint64_t npages)
{
	uint64_t done = 0;

	if (m->uffd < 0) {
		int err = mem_write(m->mem, at, content, npages * PAGE_BYTES);

		if (err < 0)
			fail(-err, "pid %d: memory at %#llx: %s", m->pid, (unsigned long long)at, strerror(-err));
		m->dead |= err < 0;
		return npages;
	}
	while (done < npages && !m->dead) {
		uint64_t n = npages - done;
		int err = copy(m, at + done * PAGE_BYTES, content + done * PAGE_BYTES, &n);

		/* Linux since 6.9 says this also where the page has been moved a moment ago, and only from then on that the mappings are changing (EAGAIN). */
		if (err == ENOENT && npages - done == 1) {
			n = 1;
			err = copy(m, at + done * PAGE_BYTES, content + done * PAGE_BYTES, &n);
		}
		done += n;
		if (err == 0 || (err == EAGAIN && n > 0))
			continue;
		if (err == EAGAIN || err == ENOMEM || err == EINTR)
			break; /* it is changing: what has happened comes first; or there is no memory just now */
		m->dead |= err == ESRCH;
		/* Nothing tells of a mapping that has been split, and a piece goes into one alone. */
		if (err == ENOENT && npages - done > 1) {
			if (put(m, at + done * PAGE_BYTES, content + done * PAGE_BYTES, 1) == 0)
				break;
			done++;
			continue;
		}
		if (err != EEXIST && err != ENOENT && err != ESRCH) {
			m->failed = err;
			break;
		}
		/* It is there already, or has no place any more. */
		if (done < npages)
			wake(m, at + done++ * PAGE_BYTES);
	}
	return done;
}

/* Nothing was there: returns false where it is to be tried again. */
static bool
put_zero(struct memory *m, taddr at)
{
	struct uffdio_zeropage z = {.range = {at, PAGE_BYTES}};

	if (m->uffd < 0 || ioctl(m->uffd, UFFDIO_ZEROPAGE, &z) == 0)
		return true;
	if (errno == EAGAIN || errno == ENOMEM || errno == EINTR)
		return false;
	m->dead |= errno == ESRCH;
	wake(m, at);
	return true;
}

/* --- waiting */

static void
wait_for(struct memory *m, taddr addr)
{
	struct waiting *w;

	/* One that a signal keeps waking asks again and again. */
	for (size_t i = 0; i < m->nwaiting; i++)
		if (m->waiting[i].addr == addr)
			return;
	w = ARRAY_ADD(m->waiting, m->nwaiting);
	/* Without: it is woken with whatever comes next to it, or asks again. */
	if (w != NULL)
		*w = (struct waiting){addr, now_ns()};
	else
		wake(m, addr);
}

void
memory_settle(struct fetcher *f, struct memory *m)
{
	m->again = false;
	if (m->failed != 0)
		fetch_end_all(f, "its pages cannot be put in place: %s", strerror(m->failed));
	for (size_t i = 0; i < m->nwaiting; i++) {
		struct waiting *w = &m->waiting[i];
		int64_t task;
		taddr source;
		enum lazy_page what = lazy_look(&m->lazy, w->addr, &task, &source);

		if (what == LAZY_BAD) {
			fetch_end_all(f, "the page at %#llx that it needs is damaged where it is kept", (unsigned long long)w->addr);
			return;
		}
		if (what == LAZY_MISSING) {
			fetch_ask(f, task, source, 1);
			continue;
		}
		/* Never a page of zeroes where something may be. */
		if (what == LAZY_UNKNOWN && m->unsure) {
			fetch_end_all(f, "the page at %#llx cannot be told: mappings were changed while it was forked", (unsigned long long)w->addr);
			return;
		}
		if (m->nearly > 0 || !put_zero(m, w->addr)) {
			m->again = true;
			continue;
		}
		page_counts_latency(&f->counts, (uint64_t)(now_ns() - w->since_ns));
		*w = m->waiting[--m->nwaiting];
		i--;
	}
}

/* --- what has come */

void
memory_take(struct fetcher *f, struct memory *m, const struct page_pieces *p, const unsigned char *content)
{
	size_t map = 0;
	uint64_t page = 0, n;
	taddr at, source;

	for (size_t i = 0; i < p->nruns && content != NULL; i++) {
		taddr start = p->runs[i].addr, end = start + p->runs[i].npages * PAGE_BYTES;

		for (map = 0, page = 0; lazy_wanted(&m->lazy, p->task, start, end, &map, &page, &at, &source, &n) && !m->dead;) {
			/* Where it belongs is not known just now: it is asked for again. */
			uint64_t done = m->nearly > 0 ? 0 : put(m, at, content + (source - start), n);

			lazy_set_here(&m->lazy, at, done);
			m->again |= done < n;
		}
		content += end - start;
	}
	/* Between the runs there is nothing. */
	for (size_t i = 0; i <= p->nruns; i++) {
		taddr start = i == 0 ? p->from : p->runs[i - 1].addr + p->runs[i - 1].npages * PAGE_BYTES, end = i == p->nruns ? p->to : p->runs[i].addr;

		for (map = 0, page = 0; start < end && lazy_wanted(&m->lazy, p->task, start, end, &map, &page, &at, &source, &n);) {
			f->counts.zero += n;
			lazy_set_here(&m->lazy, at, n);
		}
	}
	memory_settle(f, m);
}

void
memory_bad(struct fetcher *f, struct memory *m, const struct page_pieces *p)
{
	size_t map = 0;
	uint64_t page = 0, n;
	taddr at, source;

	while (lazy_wanted(&m->lazy, p->task, p->from, p->to, &map, &page, &at, &source, &n)) {
		f->nbad += n;
		if (lazy_set_bad(&m->lazy, at, n) < 0)
			fetch_end_all(f, "out of memory");
	}
	memory_settle(f, m);
}

/* --- what it tells */

/* MADV_WIPEONFORK: nothing of that is for the child. */
static int
drop_wiped(const struct memory *parent, struct lazy *child)
{
	int proc = parent->pid > 0 ? proc_open(parent->pid) : -1, err = 0;
	struct proc_maps maps = {0};

	if (proc >= 0 && proc_read_maps(proc, true, &maps) == 0)
		for (size_t i = 0; i < maps.n && err == 0; i++)
			if (maps.map[i].flags != NULL && strstr(maps.map[i].flags, "wf") != NULL)
				err = lazy_drop(child, maps.map[i].start, maps.map[i].end);
	proc_maps_fini(&maps);
	close_fd(&proc);
	return err;
}

static void
forked(struct fetcher *f, struct memory *parent, int uffd)
{
	struct memory *m = calloc(1, sizeof(*m)), **slot = m != NULL ? ARRAY_ADD(f->memories, f->nmemories) : NULL;

	if (slot == NULL || lazy_copy(&m->lazy, &parent->lazy) < 0 || drop_wiped(parent, &m->lazy) < 0) {
		fetch_end_all(f, "no memory to follow its fork");
		free(m);
		f->nmemories -= slot != NULL;
		close(uffd);
		return;
	}
	m->uffd = uffd;
	m->mem = m->pidfd = -1;
	m->forked_ms = now_ms();
	m->parent = parent;
	m->unsure = parent->nearly > 0 || (parent->changed_ms != 0 && m->forked_ms - parent->changed_ms < TOGETHER_MS);
	*slot = m;
	guard_add(f->guard, uffd);
}

/*
 * mremap(2) tells that pages have moved, and then that nothing is where they were. In between somebody else may have moved there: what he has put there
 * is not what is unmapped.
 */
static bool
is_of_remap(struct memory *m, taddr start, taddr end)
{
	for (size_t i = 0; i < m->nleft; i++)
		if (m->left[i].start == start && m->left[i].end == end) {
			m->left[i] = m->left[--m->nleft];
			return true;
		}
	return false;
}

static int
move(struct memory *m, const struct remap *r)
{
	struct page_range *left;

	if (m->nleft == LEFT_MAX) /* MREMAP_DONTUNMAP leaves them */
		memmove(m->left, m->left + 1, --m->nleft * sizeof(*m->left));
	left = ARRAY_ADD(m->left, m->nleft);
	if (left == NULL)
		return -ENOMEM;
	*left = (struct page_range){r->from, r->from + r->len};
	return lazy_move(&m->lazy, r->from, r->to, r->len);
}

/* Whoever unmaps or moves tells of it after he has done so: somebody else may have moved to where he was, and be heard of before him. */
static bool
comes_early(const struct memory *m, const struct remap *r, size_t before)
{
	bool early = !lazy_is_empty(&m->lazy, r->to, r->to + r->len);

	for (size_t i = 0; i < before; i++)
		early |= r->from < m->early[i].to + m->early[i].len && m->early[i].to < r->from + r->len;
	return early;
}

static int
retry_early(struct memory *m)
{
	int err = 0;

	for (size_t i = 0; i < m->nearly && err == 0;) {
		struct remap r = m->early[i];

		if (comes_early(m, &r, i)) {
			i++;
			continue;
		}
		memmove(&m->early[i], &m->early[i + 1], (--m->nearly - i) * sizeof(r));
		err = move(m, &r);
		i = 0;
	}
	return err;
}

static int
remapped(struct memory *m, taddr from, taddr to, uint64_t len)
{
	struct remap r = {from, to, len, now_ms()}, *slot;

	if (!comes_early(m, &r, m->nearly))
		return move(m, &r);
	slot = ARRAY_ADD(m->early, m->nearly);
	if (slot != NULL)
		*slot = r;
	return slot == NULL ? -ENOMEM : 0;
}

/* Who was forked at about the same time may have been so before or after. */
static void
mappings_changed(struct fetcher *f, struct memory *m)
{
	int64_t now = now_ms();

	m->changed_ms = now;
	for (size_t i = 0; i < f->nmemories; i++)
		if (f->memories[i]->parent == m && now - f->memories[i]->forked_ms < TOGETHER_MS)
			f->memories[i]->unsure = true;
}

static void
changed(struct fetcher *f, struct memory *m, const struct uffd_msg *msg)
{
	int err = 0;

	if (msg->event == UFFD_EVENT_REMAP || msg->event == UFFD_EVENT_UNMAP)
		mappings_changed(f, m);
	switch (msg->event) {
	case UFFD_EVENT_FORK:
		forked(f, m, (int)msg->arg.fork.ufd);
		break;
	case UFFD_EVENT_REMAP:
		err = remapped(m, msg->arg.remap.from, msg->arg.remap.to, msg->arg.remap.len);
		break;
	case UFFD_EVENT_REMOVE:
		err = lazy_drop(&m->lazy, msg->arg.remove.start, msg->arg.remove.end);
		break;
	case UFFD_EVENT_UNMAP:
		if (is_of_remap(m, msg->arg.remove.start, msg->arg.remove.end))
			break;
		err = lazy_unmap(&m->lazy, msg->arg.remove.start, msg->arg.remove.end);
		break;
	}
	if (err == 0)
		err = retry_early(m);
	if (err < 0)
		fetch_end_all(f, "no memory to follow what it does with its mappings");
}

void
memory_events(struct fetcher *f, struct memory *m)
{
	struct uffd_msg msg[16];
	ssize_t n;

	/* All of them, before anything is decided: what happened before a fault may be told after it. */
	while ((n = read(m->uffd, msg, sizeof(msg))) > 0)
		for (size_t i = 0; i < (size_t)n / sizeof(msg[0]); i++) {
			if (msg[i].event != UFFD_EVENT_PAGEFAULT) {
				changed(f, m, &msg[i]);
				continue;
			}
			f->counts.faults++;
			wait_for(m, page_down(msg[i].arg.pagefault.address));
		}
	if (n < 0 && errno != EAGAIN && errno != EINTR)
		fetch_end_all(f, "what it does with its memory cannot be followed: %s", strerror(errno));
	if (m->nearly > 0 && now_ms() - m->early[0].since_ms > EARLY_MS)
		fetch_end_all(f, "what it does with its mappings cannot be followed: it moves memory to where other memory is");
	memory_settle(f, m);
	m->again |= m->nearly > 0;
}

/* Asked by what does nothing: memory without a file has nothing to continue with. */
bool
memory_is_gone(int uffd)
{
	struct uffdio_continue c = {.range = {1 << 20, PAGE_BYTES}};

	return ioctl(uffd, UFFDIO_CONTINUE, &c) < 0 && errno == ESRCH;
}
