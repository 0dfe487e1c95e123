/*
 * What exec(2) made goes, but for the kernel's own areas (the vDSO and its data), which wait beside the script loop until the program's place for them is free.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "digest.h"
#include "io.h"
#include "kfeat.h"
#include "log.h"
#include "restart.h"
#include "vdso.h"

#define VDSO_ROOM (1ULL << 20)
#define MARGIN (1ULL << 20)
#define HEAP_ROOM (4ULL << 30)

/* --- a free place */

static bool
in_the_way(taddr at, taddr end, taddr start, taddr stop)
{
	return at < stop + MARGIN && end + MARGIN > start;
}

/* Where the gap may be instead, if a task of the image has something at [at, end), else `at`. */
static taddr
pass_task(const struct task *t, taddr at, taddr end)
{
	for (size_t i = 0; i < t->nvmas; i++)
		if (in_the_way(at, end, t->vmas[i].start, t->vmas[i].end))
			return t->vmas[i].end + MARGIN;
	if (in_the_way(at, end, t->mm.vvar, t->mm.vdso + t->mm.vdso_size))
		return t->mm.vdso + t->mm.vdso_size + MARGIN;
	if (t->mm.start_brk != 0 && in_the_way(at, end, t->mm.start_brk, t->mm.start_brk + HEAP_ROOM))
		return t->mm.start_brk + HEAP_ROOM + MARGIN;
	return at;
}

/*
 * Room that neither a task of the image (a child may be a copy of its parent) nor the stub uses, and where
 * nothing of the program's will grow.
 */
static taddr
find_gap(const struct restart *r, const struct proc_maps *stub, uint64_t size)
{
	taddr at = 0x10000000, before;

	do {
		before = at;
		for (size_t i = 0; i < r->model.header.ntasks; i++)
			at = pass_task(&r->model.tasks[i], at, at + size);
		for (size_t i = 0; i < stub->n; i++)
			if (stub->map[i].start < ARCH_USER_END &&
			    in_the_way(at, at + size, stub->map[i].start, stub->map[i].end))
				at = stub->map[i].end + MARGIN;
	} while (at != before && at < ARCH_USER_END - size);
	return page_up(at);
}

int
space_gap(const struct restart *r, pid_t pid, uint64_t size, taddr *at)
{
	struct proc_maps stub = {0};
	int proc = proc_open(pid), err = proc < 0 ? proc : proc_read_maps(proc, false, &stub);

	close_fd(&proc);
	if (err < 0)
		return fail(-err, "pid %d: maps: %s", pid, strerror(-err));
	*at = find_gap(r, &stub, size + VDSO_ROOM);
	proc_maps_fini(&stub);
	return 0;
}

bool
space_is_apart(const struct restart *r, const struct built *b)
{
	taddr at = b->loop.at, end = at + LOOP_BYTES + VDSO_ROOM;

	for (size_t i = 0; i < r->model.header.ntasks; i++)
		if (pass_task(&r->model.tasks[i], at, end) != at)
			return false;
	return true;
}

/* --- clearing what exec made */

/* The vDSO and its data go to `to`, keeping their distances. */
static void
move_areas(struct built *b, struct script *s, taddr to)
{
	taddr from = b->nareas > 0 ? b->areas[0].start : to;

	for (size_t i = 0; i < b->nareas; i++) {
		struct page_range *a = &b->areas[i];
		uint64_t len = a->end - a->start;

		script_add(s, "vDSO", SYS_mremap, a->start, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, to + (a->start - from));
		*a = (struct page_range){to + (a->start - from), to + (a->end - from)};
	}
	b->vdso_at += to - from;
	b->syscall_ip += to - from;
}

static void
clear_stub(struct script *s, const struct proc_maps *stub, const struct loop *loop)
{
	uint64_t bytes = loop->untraced != NULL ? untraced_bytes(loop->untraced) : 0;

	for (size_t i = 0; i < stub->n; i++) {
		const struct proc_map *m = &stub->map[i];

		if (m->start < ARCH_USER_END && !build_is_kernels(m) && (m->start < loop->at || m->end > loop->at + bytes))
			script_add(s, "clearing", SYS_munmap, m->start, m->end - m->start);
	}
}

int
clear_space(struct restart *r, struct built *b)
{
	struct tracee *leader = &b->threads[0];
	struct proc_maps stub = {0};
	struct script s = {0};
	taddr at, beside;
	int proc = proc_open(leader->pid), err = proc < 0 ? proc : proc_read_maps(proc, false, &stub);

	close_fd(&proc);
	if (err < 0)
		return fail(-err, "pid %d: maps: %s", leader->pid, strerror(-err));
	if (b->loop.untraced != NULL) {
		beside = b->loop.at + untraced_bytes(b->loop.untraced);
	} else {
		at = find_gap(r, &stub, LOOP_BYTES + VDSO_ROOM);
		beside = at + LOOP_BYTES;
		err = loop_map(&b->loop, leader, b->syscall_ip, at);
	}
	if (err == 0) {
		clear_stub(&s, &stub, &b->loop);
		move_areas(b, &s, beside);
		err = loop_run(&b->loop, leader, &s);
	}
	script_fini(&s);
	proc_maps_fini(&stub);
	return err;
}

/* --- the vDSO where the program expects it */

static bool
same_vdso(const struct built *b, const unsigned char *ours)
{
	const struct mm_layout *mm = &b->task->mm;
	char hex[DIGEST_HEX];

	if (!kfeat(KFEAT_same_vdso) || mm->vdso_size != b->vdso_len || b->vdso_at - b->areas[0].start != mm->vdso - mm->vvar)
		return false;
	digest_once(ours, b->vdso_len, hex);
	return strcmp(hex, mm->vdso_hash) == 0;
}

/* Another kernel's: its page becomes jumps into ours, which stays in its gap. */
static int
put_proxy(struct restart *r, struct built *b, const unsigned char *ours)
{
	const struct mm_layout *mm = &b->task->mm;
	struct script s = {0};
	unsigned char *code;
	int err;

	if (mm->in_vdso)
		return fail(ENOTSUP, "a thread stands inside the vDSO of %s, and this kernel has another one",
		    r->model.header.kernel);
	code = malloc(mm->vdso_size);
	if (code == NULL)
		return -ENOMEM;
	memcpy(code, load_vdso(r, mm), mm->vdso_size);
	if (vdso_make_proxy(code, mm->vdso_size, ours, b->vdso_len, b->vdso_at) < 0) {
		free(code);
		return fail(EBADMSG, "%s: bad image: its vDSO is malformed", r->source.name);
	}
	script_add(&s, "vDSO", SYS_mmap, mm->vdso, mm->vdso_size, PROT_READ | PROT_EXEC,
	    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, (uint64_t)-1, 0);
	err = loop_run(&b->loop, &b->threads[0], &s);
	script_fini(&s);
	if (err == 0)
		err = mem_write(b->mem, mm->vdso, code, mm->vdso_size);
	free(code);
	debug(LOG_VERBOSE, "the vDSO of %s is not this kernel's: its functions lead to ours",
	    r->model.header.kernel);
	return err;
}

int
clear_put_vdso(struct restart *r, struct built *b)
{
	const struct mm_layout *mm = &b->task->mm;
	unsigned char *ours = malloc(b->vdso_len);
	struct script s = {0};
	int err = ours == NULL ? -ENOMEM : mem_read(b->mem, b->vdso_at, ours, b->vdso_len);

	if (err == 0 && mm->vdso != 0 && same_vdso(b, ours)) {
		move_areas(b, &s, mm->vvar);
		err = loop_run(&b->loop, &b->threads[0], &s);
	} else if (err == 0 && mm->vdso != 0) {
		err = put_proxy(r, b, ours);
	}
	script_fini(&s);
	free(ours);
	return err;
}
