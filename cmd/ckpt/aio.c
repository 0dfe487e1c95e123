/*
 * Rings of asynchronous I/O (io_setup(2)). How many requests are under way the kernel does not tell: it is waited until
 * none has ended for a while, which is long for disks.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "aio.h"
#include "ckpt.h"
#include "io.h"
#include "log.h"

enum { QUIET_MS = 50, WAIT_MS = 5000 };

/* Visit every ring of every process. Ends at the first that is not 0, and returns it. */
static int
each_ring(struct ckpt *c, int (*visit)(struct ckpt *c, struct member *who, const struct vma *v))
{
	int err = 0;

	for (size_t m = 0; m < c->nmembers && err == 0; m++)
		for (size_t i = 0; i < c->members[m]->task->nvmas && err == 0; i++)
			if (c->members[m]->task->vmas[i].kind == VMA_AIO)
				err = visit(c, c->members[m], &c->members[m]->task->vmas[i]);
	return err;
}

static int
refuse(struct ckpt *c, const struct member *who, const struct vma *v, int status, const char *advice, const char *what)
{
	char name[96];

	return report_add(&c->report, OBSTACLE, status, mapping_name(who, v->start, v->end, name), advice, "%s", what);
}

/* 1 where it has moved on since it was read last. */
static int
look(struct ckpt *c, struct member *who, const struct vma *v)
{
	struct aio_ref *a = &who->task->aios[v->ref];
	struct aio_ref was = *a;
	struct aio_ring ring;
	int err = mem_read(who->target.mem, v->start, &ring, sizeof(ring));

	if (err < 0)
		return fail(-err, "pid %d: ring of asynchronous I/O: %s", who->target.pid, strerror(-err));
	if (ring.magic != AIO_RING_MAGIC || (v->end - v->start) / PAGE_BYTES > AIO_PAGES_MAX || ring.nr != aio_entries((v->end - v->start) / PAGE_BYTES) ||
	    ring.head >= ring.nr || ring.tail >= ring.nr)
		return refuse(c, who, v, 69, NULL, "a ring of asynchronous I/O that is not as the kernel makes it");
	a->nr = ring.nr, a->head = ring.head, a->tail = ring.tail;
	return was.nr != 0 && was.tail != a->tail;
}

static int
look_again(struct ckpt *c, struct member *who, const struct vma *v)
{
	int moved = look(c, who, v);

	return moved > 0 ? refuse(c, who, v, 75, "try again when it does less", "a ring of asynchronous I/O that is at work")
			 : moved;
}

static int
tell(struct ckpt *c, const struct member *who, const struct vma *v)
{
	char name[96];

	return report_add(&c->report, LOSS, 0, mapping_name(who, v->start, v->end, name), NULL, "a ring of asynchronous I/O: requests that take longer than %d ms, such as "
	    "to wait for a file (IOCB_CMD_POLL), are lost", QUIET_MS);
}

static int
read_events(struct ckpt *c, struct member *who, const struct vma *v)
{
	struct aio_ref *a = &who->task->aios[v->ref];
	int err = 0;

	if (a->nr == 0) /* refused */
		return 0;
	a->events.n = (a->tail + a->nr - a->head) % a->nr * AIO_EVENT_BYTES;
	a->events.p = malloc(a->events.n + 1);
	if (a->events.p == NULL)
		return -ENOMEM;
	for (uint64_t i = 0; i < a->events.n / AIO_EVENT_BYTES && err == 0; i++)
		err = mem_read(who->target.mem, v->start + sizeof(struct aio_ring) + (a->head + i) % a->nr * AIO_EVENT_BYTES,
		    a->events.p + i * AIO_EVENT_BYTES, AIO_EVENT_BYTES);
	return err < 0 ? err : tell(c, who, v);
}

static int
any(struct ckpt *c, struct member *who, const struct vma *v)
{
	(void)c, (void)who, (void)v;
	return 1;
}

int
collect_aio(struct ckpt *c)
{
	int64_t deadline = now_ms() + WAIT_MS;
	int moved;

	if (each_ring(c, any) == 0)
		return 0;
	moved = each_ring(c, look);
	do {
		poll(NULL, 0, QUIET_MS);
		moved = each_ring(c, look);
	} while (moved > 0 && now_ms() < deadline);
	if (moved > 0) {
		poll(NULL, 0, QUIET_MS);
		moved = each_ring(c, look_again);
	}
	return moved < 0 ? moved : each_ring(c, read_events);
}
