/*
 * Contexts of asynchronous I/O (io_setup(2)): the kernel gives each a ring, whose address is its name. It is moved to where it
 * was, and turned on to where it stood by requests that do nothing.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "aio.h"
#include "io.h"
#include "log.h"
#include "restart.h"

enum { AT_ONCE = 512 };

/* In a process without open files: so the first is 0. */
static int
open_null(struct built *b, uint64_t top)
{
	struct script s = {0};

	script_add(&s, "open files", SYS_close_range, 0, top, 0);
	script_add(&s, "/dev/null", SYS_open, script_data(&s, "/dev/null", 10), O_RDONLY);
	script_data_arg(&s, 0);
	return built_run(b, &s);
}

static int
setup(struct built *b, uint64_t pages, uint64_t *ctx)
{
	struct script s = {0};
	uint64_t at = script_data(&s, NULL, sizeof(*ctx));
	int err;

	script_add(&s, "io_setup", SYS_io_setup, aio_requests(pages), at);
	script_data_arg(&s, 1);
	err = loop_run(&b->loop, &b->threads[0], &s);
	if (err == 0)
		memcpy(ctx, s.data.data + at, sizeof(*ctx));
	script_fini(&s);
	return err;
}

/* n reads from /dev/null, and their events taken out again. */
static int
turn(struct built *b, uint64_t ctx, uint64_t n)
{
	struct iocb nothing = {.aio_lio_opcode = IOCB_CMD_PREAD};
	struct script s = {0};
	uint64_t at = script_data(&s, &nothing, sizeof(nothing)), list = script_data(&s, NULL, n * sizeof(uint64_t));
	uint64_t events = script_data(&s, NULL, n * sizeof(struct io_event));

	for (uint64_t i = 0; i < n && !s.failed; i++) {
		uint64_t p = loop_data(&b->loop) + at;

		memcpy(s.data.data + list + i * sizeof(p), &p, sizeof(p));
	}
	script_add(&s, "io_submit", SYS_io_submit, ctx, n, list);
	script_data_arg(&s, 2);
	script_add(&s, "io_getevents", SYS_io_getevents, ctx, n, n, events, 0);
	script_data_arg(&s, 3);
	return built_run(b, &s);
}

/* What the program has not fetched yet. */
static int
put_events(struct built *b, taddr ring, const struct aio_ref *a)
{
	uint32_t head = (uint32_t)a->head;
	int err = mem_write(b->mem, ring + offsetof(struct aio_ring, head), &head, sizeof(head));

	for (uint64_t i = 0; i < a->events.n / sizeof(struct io_event) && err == 0; i++)
		err = mem_write(b->mem, ring + sizeof(struct aio_ring) + (a->head + i) % a->nr * sizeof(struct io_event),
		    a->events.p + i * sizeof(struct io_event), sizeof(struct io_event));
	return err;
}

static int
make_one(struct built *b, const struct vma *v)
{
	const struct aio_ref *a = &b->task->aios[v->ref];
	uint64_t len = v->end - v->start, ctx = 0;
	struct aio_ring ring;
	struct script s = {0};
	int err = setup(b, len / PAGE_BYTES, &ctx);

	if (err == 0)
		err = mem_read(b->mem, ctx, &ring, sizeof(ring));
	if (err < 0)
		return err;
	/* It also depends on how many CPUs there are. */
	if (ring.nr != a->nr)
		return fail(ENOTSUP, "pid %d: a ring of asynchronous I/O has %u entries here and had %llu: this host has more CPUs",
		    b->pid, ring.nr, (unsigned long long)a->nr);
	for (uint64_t left = a->tail, n; left > 0 && err == 0; left -= n) {
		n = min_u64(left, min_u64(AT_ONCE, aio_requests(len / PAGE_BYTES)));
		err = turn(b, ctx, n);
	}
	if (err < 0)
		return err;
	script_add(&s, "ring of asynchronous I/O", SYS_mremap, ctx, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, v->start);
	err = built_run(b, &s);
	return err < 0 ? err : put_events(b, v->start, a);
}

int
aio_make(struct restart *r, struct built *b)
{
	const struct task *t = b->task;
	int err = t->naios == 0 ? 0 : open_null(b, stock_fd(r, STOCK_FILES, 0) - 1);

	for (size_t i = 0; i < t->nvmas && err == 0; i++)
		if (t->vmas[i].kind == VMA_AIO)
			err = make_one(b, &t->vmas[i]);
	return err;
}
