/*
 * The address space of the image in place of that which exec(2) made.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "digest.h"
#include "fault.h"
#include "kfeat.h"
#include "io.h"
#include "log.h"
#include "restart.h"
#include "vdso.h"

#define VDSO_ROOM (1ULL << 20)
#define MARGIN (1ULL << 20)
#define HEAP_ROOM (4ULL << 30)

enum how { MAP, ADVICE, LOCK, SEAL };

static const struct vmflag {
	char letters[3];
	enum how how;
	int argument;
} vmflags[] = {
#define VMFLAG(letters, how, argument) {#letters, how, argument},
#include "vmflag.def"
#undef VMFLAG
};

static bool
has_letters(const struct vma *v, const char *letters)
{
	for (const char *p = v->flags; p != NULL && *p != '\0'; p += p[1] == '\0' ? 1 : p[2] == ' ' ? 3 : 2)
		if (p[0] == letters[0] && p[1] == letters[1])
			return true;
	return false;
}

static bool
has_flag(const struct vma *v, const struct vmflag *f)
{
	return has_letters(v, f->letters);
}

/* --- a free place */

static bool
in_the_way(taddr at, taddr end, taddr start, taddr stop)
{
	return at < stop + MARGIN && end + MARGIN > start;
}

/* Room that neither the image nor the stub uses, and where nothing of the program's will grow. */
static taddr
find_gap(const struct restart *r, const struct proc_maps *stub, uint64_t size)
{
	const struct task *t = &r->model.task;
	taddr at = 0x10000000;

	for (bool moved = true; moved && at < ARCH_USER_END - size;) {
		moved = false;
		for (size_t i = 0; i < t->nvmas; i++)
			if (in_the_way(at, at + size, t->vmas[i].start, t->vmas[i].end)) {
				at = t->vmas[i].end + MARGIN;
				moved = true;
			}
		for (size_t i = 0; i < stub->n; i++)
			if (stub->map[i].start < ARCH_USER_END &&
			    in_the_way(at, at + size, stub->map[i].start, stub->map[i].end)) {
				at = stub->map[i].end + MARGIN;
				moved = true;
			}
		if (in_the_way(at, at + size, t->mm.vvar, t->mm.vdso + t->mm.vdso_size)) {
			at = t->mm.vdso + t->mm.vdso_size + MARGIN;
			moved = true;
		}
		if (t->mm.start_brk != 0 &&
		    in_the_way(at, at + size, t->mm.start_brk, t->mm.start_brk + HEAP_ROOM)) {
			at = t->mm.start_brk + HEAP_ROOM + MARGIN;
			moved = true;
		}
	}
	return page_up(at);
}

/* --- clearing what exec made */

static bool
is_kernels(const struct proc_map *m)
{
	return strncmp(m->path, "[vvar", 5) == 0 || strcmp(m->path, "[vdso]") == 0;
}

/* Move the vDSO and its data, keeping their distances. from and to: the lowest of them. */
static void
move_vdso(struct script *s, const struct proc_maps *stub, taddr from, taddr to)
{
	taddr base = 0;

	for (size_t i = 0; i < stub->n; i++) {
		const struct proc_map *m = &stub->map[i];

		if (!is_kernels(m))
			continue;
		if (base == 0)
			base = m->start;
		script_add(s, "vDSO", SYS_mremap, from + (m->start - base), m->end - m->start,
		    m->end - m->start, MREMAP_MAYMOVE | MREMAP_FIXED, to + (m->start - base));
	}
}

static taddr
lowest_of_kernel(const struct proc_maps *stub)
{
	for (size_t i = 0; i < stub->n; i++)
		if (is_kernels(&stub->map[i]))
			return stub->map[i].start;
	return 0;
}

static void
clear_stub(struct script *s, const struct proc_maps *stub)
{
	for (size_t i = 0; i < stub->n; i++) {
		const struct proc_map *m = &stub->map[i];

		if (m->start < ARCH_USER_END && !is_kernels(m))
			script_add(s, "clearing", SYS_munmap, m->start, m->end - m->start);
	}
}

/* --- mapping what the image has */

static void
map_vma(const struct restart *r, struct script *s, const struct vma *v)
{
	const struct objects *o = &r->model.objects;
	int base = build_fd_base(&r->model.task);
	uint64_t flags = v->shared ? MAP_SHARED : MAP_PRIVATE, fd = (uint64_t)-1, offset = v->offset;
	bool accounted;

	for (size_t i = 0; i < ARRAY_LEN(vmflags); i++)
		if (vmflags[i].how == MAP && has_flag(v, &vmflags[i]))
			flags = strcmp(vmflags[i].letters, "dp") == 0
			    ? (flags & ~(uint64_t)MAP_TYPE) | (uint64_t)vmflags[i].argument
			    : flags | (uint64_t)vmflags[i].argument;
	if (v->kind == VMA_FILE)
		fd = (uint64_t)(base + v->ref);
	else if (v->kind == VMA_SHM && r->open.shms[v->ref] >= 0)
		fd = (uint64_t)base + o->nfiles + (uint64_t)v->ref;
	if (fd == (uint64_t)-1) {
		flags |= MAP_ANONYMOUS;
		offset = 0;
	}
	/*
	 * Private memory that was writable once is accounted for ever after: without that flag the
	 * kernel would join mappings that were two.
	 */
	accounted = !v->shared && !(v->prot & PROT_WRITE) && has_letters(v, "ac");
	script_add(s, "mapping", SYS_mmap, v->start, v->end - v->start,
	    (uint64_t)v->prot | (accounted ? PROT_WRITE : 0), flags | MAP_FIXED_NOREPLACE, fd, offset);
	if (accounted)
		script_add(s, "mapping", SYS_mprotect, v->start, v->end - v->start, (uint64_t)v->prot);
}

/* struct prctl_mm_map of linux/prctl.h */
struct mm_map {
	uint64_t start_code, end_code, start_data, end_data, start_brk, brk, start_stack;
	uint64_t arg_start, arg_end, env_start, env_end, auxv;
	uint32_t auxv_size, exe_fd;
};

/* The vector ends at AT_NULL; behind it other kernels may have more room than this one. */
static size_t
auxv_length(const struct bytes *auxv)
{
	for (size_t i = 0; i + 16 <= auxv->n; i += 16) {
		uint64_t type;

		memcpy(&type, auxv->p + i, sizeof(type));
		if (type == 0)
			return i + 16;
	}
	return auxv->n;
}

static int
set_layout(struct restart *r)
{
	const struct mm_layout *mm = &r->model.task.mm;
	struct mm_map map = {mm->start_code, mm->end_code, mm->start_data, mm->end_data,
	    mm->start_brk, mm->brk, mm->start_stack, mm->arg_start, mm->arg_end, mm->env_start,
	    mm->env_end, 0, (uint32_t)auxv_length(&mm->auxv), UINT32_MAX};
	struct script s = {0};
	uint64_t auxv = script_data(&s, mm->auxv.p, mm->auxv.n);
	uint64_t at;
	int err;

	map.auxv = loop_data(&r->loop) + auxv;
	at = script_data(&s, &map, sizeof(map));
	script_add(&s, "address space fields", SYS_prctl, PR_SET_MM, PR_SET_MM_MAP, at, sizeof(map));
	script_data_arg(&s, 2);
	err = loop_run(&r->loop, &r->threads[0], &s);
	script_fini(&s);
	return err;
}

/* --- the vDSO where the program expects it */

static bool
same_vdso(const struct restart *r, const unsigned char *ours, const struct proc_maps *stub)
{
	const struct mm_layout *mm = &r->model.task.mm;
	char hex[DIGEST_HEX];

	if (!kfeat(KFEAT_same_vdso) || mm->vdso_size != r->vdso_len)
		return false;
	digest_once(ours, r->vdso_len, hex);
	for (size_t i = 0; i < stub->n; i++)
		if (strcmp(stub->map[i].path, "[vdso]") == 0 &&
		    stub->map[i].start - lowest_of_kernel(stub) != mm->vdso - mm->vvar)
			return false;
	return strcmp(hex, mm->vdso_hash) == 0;
}

/* Another kernel's: its page becomes jumps into ours, which stays in its gap. */
static int
put_proxy(struct restart *r, const unsigned char *ours)
{
	const struct mm_layout *mm = &r->model.task.mm;
	struct script s = {0};
	int err;

	if (mm->in_vdso)
		return fail(ENOTSUP, "a thread stands inside the vDSO of %s, and this kernel has another one",
		    r->model.header.kernel);
	if (vdso_make_proxy(r->vdso, mm->vdso_size, ours, r->vdso_len, r->vdso_at) < 0)
		return fail(EBADMSG, "%s: bad image: its vDSO is malformed", r->source.name);
	script_add(&s, "vDSO", SYS_mmap, mm->vdso, mm->vdso_size, PROT_READ | PROT_EXEC,
	    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, (uint64_t)-1, 0);
	err = loop_run(&r->loop, &r->threads[0], &s);
	script_fini(&s);
	if (err == 0)
		err = mem_write(r->mem, mm->vdso, r->vdso, mm->vdso_size);
	debug(LOG_VERBOSE, "the vDSO of %s is not this kernel's: its functions lead to ours",
	    r->model.header.kernel);
	return err;
}

/* parked: the lowest of this kernel's areas now. */
static int
put_vdso(struct restart *r, const struct proc_maps *stub, taddr parked)
{
	const struct mm_layout *mm = &r->model.task.mm;
	unsigned char *ours = malloc(r->vdso_len);
	struct script s = {0};
	int err = ours == NULL ? -ENOMEM : mem_read(r->mem, r->vdso_at, ours, r->vdso_len);

	if (err == 0 && mm->vdso != 0 && same_vdso(r, ours, stub)) {
		move_vdso(&s, stub, parked, mm->vvar);
		err = loop_run(&r->loop, &r->threads[0], &s);
		r->syscall_ip += mm->vdso - r->vdso_at;
		r->vdso_at = mm->vdso;
	} else if (err == 0 && mm->vdso != 0) {
		err = put_proxy(r, ours);
	}
	script_fini(&s);
	free(ours);
	return err;
}

int
space_make(struct restart *r)
{
	const struct task *t = &r->model.task;
	struct tracee *leader = &r->threads[0];
	struct proc_maps stub = {0};
	struct script s = {0};
	taddr gap, parked, from;
	int proc = proc_open(leader->pid);
	int err = proc < 0 ? proc : proc_read_maps(proc, false, &stub);

	close_fd(&proc);
	if (err < 0)
		return fail(-err, "pid %d: maps: %s", leader->pid, strerror(-err));
	gap = find_gap(r, &stub, LOOP_BYTES + VDSO_ROOM);
	parked = gap + LOOP_BYTES;
	from = lowest_of_kernel(&stub);
	err = loop_map(&r->loop, leader, r->syscall_ip, gap);
	if (err < 0)
		goto out;
	clear_stub(&s, &stub);
	move_vdso(&s, &stub, from, parked);
	r->vdso_at = r->vdso_at - from + parked;
	r->syscall_ip = r->syscall_ip - from + parked;
	for (size_t i = 0; i < t->nvmas; i++)
		map_vma(r, &s, &t->vmas[i]);
	err = loop_run(&r->loop, leader, &s);
	if (err == 0)
		err = put_vdso(r, &stub, parked);
	if (err == 0)
		err = set_layout(r);
	if (err == 0)
		err = fault(FAULT_mapped);
out:
	script_fini(&s);
	proc_maps_fini(&stub);
	return err;
}

/* --- when the content is in place */

#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d41
#define PR_SET_VMA_ANON_NAME 0
#endif
#define MADV_GUARD_INSTALL_ 102

static void
finish_vma(struct script *s, const struct vma *v)
{
	uint64_t len = v->end - v->start;

	for (size_t i = 0; i < ARRAY_LEN(vmflags); i++) {
		if (!has_flag(v, &vmflags[i]))
			continue;
		/* What a droppable mapping has by nature cannot be asked for. */
		if (vmflags[i].how == ADVICE)
			script_add(s, "advice", SYS_madvise, v->start, len, (uint64_t)vmflags[i].argument);
		else if (vmflags[i].how == LOCK)
			script_add(s, "mlock", SYS_mlock, v->start, len);
		else
			continue;
		script_may_fail(s);
	}
	if (v->name != NULL) {
		script_add(s, "name of a mapping", SYS_prctl, PR_SET_VMA, PR_SET_VMA_ANON_NAME, v->start,
		    len, script_data(s, v->name, strlen(v->name) + 1));
		script_data_arg(s, 4);
		script_may_fail(s);
	}
}

int
space_finish(struct restart *r)
{
	const struct task *t = &r->model.task;
	struct script s = {0};
	int err;

	for (size_t i = 0; i < t->nvmas; i++)
		finish_vma(&s, &t->vmas[i]);
	for (size_t i = 0; i < t->nguards; i++)
		script_add(&s, "guard pages", SYS_madvise, t->guards[i].start,
		    t->guards[i].end - t->guards[i].start, MADV_GUARD_INSTALL_);
	script_add(&s, "restart's own files", SYS_close_range, (uint64_t)build_fd_base(t), UINT32_MAX, 0);
	err = loop_run(&r->loop, &r->threads[0], &s);
	for (size_t i = 0; err == 0 && i < s.ncalls; i++)
		if (s.calls[i].result < 0 && strcmp(s.calls[i].what, "mlock") == 0) {
			note("pid %" PRId64 ": memory cannot be locked as it was: %s (ulimit -l)", t->pid,
			    strerror((int)-s.calls[i].result));
			break;
		}
	script_fini(&s);
	return err;
}
