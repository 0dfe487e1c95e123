/*
 * Memory of an io_uring: the kernel maps it where it likes and moves it nowhere (it may alias with its own). So it is
 * given no choice: everything above the place is filled for a moment, and it takes the highest that is free.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "io.h"
#include "log.h"
#include "restart.h"

/* Fill, or empty again, what is free from `from` on. */
static void
add_gaps(struct script *s, const struct proc_maps *maps, taddr from, bool fill)
{
	for (size_t i = 0; i <= maps->n; i++) {
		taddr end = i < maps->n && maps->map[i].start < ARCH_USER_END ? maps->map[i].start : ARCH_USER_END;

		if (from < end && fill)
			script_add(s, "place of an io_uring", SYS_mmap, from, end - from, PROT_NONE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, (uint64_t)-1, 0);
		else if (from < end)
			script_add(s, "place of an io_uring", SYS_munmap, from, end - from);
		if (from < end)
			script_may_fail(s);
		if (i < maps->n)
			from = max_u64(from, maps->map[i].end);
	}
}

static int
map_one(struct restart *r, struct built *b, const struct vma *v)
{
	struct proc_maps maps = {0};
	struct script s = {0};
	size_t mapping;
	int proc = proc_open(b->pid), err = proc < 0 ? proc : proc_read_maps(proc, false, &maps);

	close_fd(&proc);
	if (err < 0)
		return fail(-err, "pid %d: maps: %s", b->pid, strerror(-err));
	add_gaps(&s, &maps, v->end, true);
	mapping = script_add(&s, "memory of an io_uring", SYS_mmap, 0, v->end - v->start, (uint64_t)v->prot, MAP_SHARED,
	    stock_fd(r, STOCK_OFDS, v->ref), v->offset);
	add_gaps(&s, &maps, v->end, false);
	err = loop_run(&b->loop, &b->threads[0], &s);
	if (err == 0 && (taddr)s.calls[mapping].result != v->start)
		err = fail(ENOTSUP, "pid %d: this kernel does not map an io_uring where it was", b->pid);
	script_fini(&s);
	proc_maps_fini(&maps);
	return err;
}

int
uring_map(struct restart *r, struct built *b)
{
	int err = 0;

	for (size_t i = 0; i < b->task->nvmas && err == 0; i++)
		if (b->task->vmas[i].kind == VMA_URING)
			err = map_one(r, b, &b->task->vmas[i]);
	return err;
}
