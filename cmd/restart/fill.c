/*
 * The pages of the image into the address space that stands.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>

#include "fault.h"
#include "kfeat.h"
#include "log.h"
#include "restart.h"

enum { PUT_AT_ONCE = 4 << 20 };

/* Where the next page of a chunk goes. */
struct place_of {
	const struct page_run *run;
	uint64_t done; /* pages of it */
};

/* Pages go where the image has mappings and nowhere else. */
static int
check_runs(const struct restart *r, const struct task *t, const struct page_run *runs, size_t n)
{
	size_t v = 0, hi = t->nvmas;

	while (v < hi) { /* the first that ends behind the first page */
		size_t mid = v + (hi - v) / 2;

		if (t->vmas[mid].end <= runs[0].addr)
			v = mid + 1;
		else
			hi = mid;
	}
	for (size_t i = 0; i < n; i++) {
		taddr at = runs[i].addr, end = at + runs[i].npages * PAGE_BYTES;

		while (at < end) {
			while (v < t->nvmas && t->vmas[v].end <= at)
				v++;
			if (v == t->nvmas || t->vmas[v].start > at ||
			    (t->vmas[v].shared && t->vmas[v].kind == VMA_FILE))
				return fail(EBADMSG, "%s: bad image: a page at %#" PRIx64 " belongs to no mapping",
				    r->source.name, at);
			at = t->vmas[v].end;
		}
	}
	return 0;
}

/* One piece of content: as many runs, or parts of them, as it holds. */
static int
put(struct built *b, struct place_of *p, const unsigned char *data, size_t len)
{
	struct iovec remote[FRAME_RAW_MAX / PAGE_BYTES], local = {(void *)(uintptr_t)data, len};
	size_t n = 0;

	for (uint64_t left = len / PAGE_BYTES; left > 0; n++) {
		uint64_t some = min_u64(p->run->npages - p->done, left);

		remote[n].iov_base = (void *)(uintptr_t)(p->run->addr + p->done * PAGE_BYTES);
		remote[n].iov_len = some * PAGE_BYTES;
		left -= some;
		p->done += some;
		if (p->done == p->run->npages) {
			p->run++;
			p->done = 0;
		}
	}
	if (kfeat(KFEAT_process_vm) &&
	    process_vm_writev(b->pid, &local, 1, remote, n, 0) == (ssize_t)len)
		return 0;
	/* Mappings that the program may not write take it by this way. */
	for (size_t i = 0; i < n; i++) {
		int err = mem_write(b->mem, (taddr)(uintptr_t)remote[i].iov_base, data, remote[i].iov_len);

		if (err < 0)
			return fail(-err, "pid %d: memory at %p: %s", b->pid, remote[i].iov_base,
			    strerror(-err));
		data += remote[i].iov_len;
	}
	return 0;
}

int
fill_memory(struct built *b, taddr addr, const unsigned char *content, uint64_t len)
{
	int err = 0;

	for (uint64_t n; len > 0 && err == 0; addr += n, content += n, len -= n) {
		struct page_run run;
		struct place_of p = {&run, 0};

		n = min_u64(len, PUT_AT_ONCE);
		run = (struct page_run){addr, n / PAGE_BYTES};
		err = put(b, &p, content, n);
	}
	return err;
}

int
fill_piece(const struct restart *r, struct built *b, const struct page_run *runs, size_t n, const unsigned char *content, taddr start, taddr end)
{
	int err = 0;

	for (size_t i = 0; i < n && err == 0; content += runs[i++].npages * PAGE_BYTES) {
		taddr from = max_u64(start, runs[i].addr), to = min_u64(end, runs[i].addr + runs[i].npages * PAGE_BYTES);
		struct page_run part = {from, from < to ? (to - from) / PAGE_BYTES : 0};
		struct place_of p = {&part, 0};

		if (part.npages == 0)
			continue;
		err = check_runs(r, b->task, &part, 1);
		if (err == 0)
			err = put(b, &p, content + (from - runs[i].addr), part.npages * PAGE_BYTES);
	}
	return err;
}

static int
fill_chunk(struct restart *r, const struct task *t, struct built *b)
{
	struct page_run runs[CHUNK_PAGES];
	struct place_of p = {runs, 0};
	const unsigned char *data;
	uint64_t npages;
	size_t nruns, len;
	int err = image_get_chunk(r->reader, runs, &nruns, &npages);

	if (err == 0)
		err = check_runs(r, t, runs, nruns);
	while (err == 0) {
		err = image_chunk_data(r->reader, &data, &len);
		if (err < 0)
			return err;
		if (data == NULL) {
			earlier_filled(r, b, runs, nruns);
			return 0;
		}
		if (b != NULL)
			err = put(b, &p, data, len);
	}
	return err;
}

/* As long as the member at hand is pages of this task. */
static int
fill_task(struct restart *r, const struct task *t, struct built *b)
{
	char prefix[IMAGE_NAME_MAX];
	int err = 1;

	snprintf(prefix, sizeof(prefix), "pages/%" PRId64 "/", t->pid);
	while (err > 0 && strncmp(r->member, prefix, strlen(prefix)) == 0) {
		err = fill_chunk(r, t, b);
		if (err < 0)
			return err;
		log_progress("memory", image_pages_read(r->reader) * PAGE_BYTES, 0);
		err = image_next(r->reader, r->member, &r->member_size);
		if (err == 0)
			r->member[0] = '\0'; /* the end marker was there */
	}
	return err < 0 ? err : 0;
}

int
fill(struct restart *r, struct built *b)
{
	size_t n = r->model.header.ntasks;
	bool last = b == NULL || b == &r->built[n - 1];
	int err = 0;

	if (lazy_from_file(r) && b != NULL) {
		err = b->task->zombie ? 0 : lazy_fill(r, b);
		return err == 0 && last ? fault(FAULT_filled) : err;
	}

	for (size_t i = 0; b == NULL && i < n && err == 0; i++) {
		err = earlier_fill(r, NULL, &r->model.tasks[i]);
		if (err == 0)
			err = fill_task(r, &r->model.tasks[i], NULL);
	}
	if (b != NULL && !b->task->zombie)
		err = earlier_fill(r, b, b->task);
	if (err == 0 && b != NULL && !b->task->zombie)
		err = fill_task(r, b->task, b);
	if (err == 0 && b != NULL)
		err = earlier_finish(r, b);
	if (last)
		log_progress_end();
	if (err == 0 && last && r->member[0] != '\0')
		return fail(EBADMSG, "%s: bad image: %s is not where it belongs", r->source.name, r->member);
	return err == 0 && last ? fault(FAULT_filled) : err;
}
