/*
 * The address space of the image.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "fault.h"
#include "io.h"
#include "log.h"
#include "restart.h"

enum how { MAP, ADVICE, PAGES, LOCK, SEAL };

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

/* --- huge pages */

static int
page_bits(uint64_t huge)
{
	return __builtin_ctzll(huge);
}

uint64_t
space_huge_flags(const struct restart *r, uint64_t huge, uint64_t flag)
{
	if (huge == 0 || (r->no_huge & huge) != 0)
		return 0;
	return flag | (uint64_t)page_bits(huge) << MAP_HUGE_SHIFT;
}

enum { HUGE_BITS = 35 }; /* sizes of pages below 2^35 bytes: model_check.c */

/* How much of each size the image has, in one pass. */
static void
add_up(const struct restart *r, uint64_t total[HUGE_BITS])
{
	for (size_t i = 0; i < r->model.header.ntasks; i++)
		for (size_t k = 0; k < r->model.tasks[i].nvmas; k++) {
			const struct vma *v = &r->model.tasks[i].vmas[k];

			if (v->huge != 0 && v->kind == VMA_ANON)
				total[page_bits(v->huge)] += v->end - v->start;
		}
	for (size_t i = 0; i < r->model.objects.nshms; i++)
		if (r->model.objects.shms[i].huge != 0)
			total[page_bits(r->model.objects.shms[i].huge)] += r->model.objects.shms[i].size;
}

/* A mapping reserves what it may need: so it is tried with one. */
void
space_choose_pages(struct restart *r)
{
	uint64_t total[HUGE_BITS] = {0};

	add_up(r, total);
	for (int bits = 0; bits < HUGE_BITS; bits++) {
		uint64_t huge = 1ULL << bits;
		void *p;

		if (total[bits] == 0)
			continue;
		p = mmap(NULL, total[bits], PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS |
		    (int)space_huge_flags(r, huge, MAP_HUGETLB), -1, 0);
		if (p != MAP_FAILED) {
			munmap(p, total[bits]);
			continue;
		}
		note("%" PRIu64 " MiB of huge pages of %" PRIu64 " KiB are not free here: small pages are used "
		     "(/proc/sys/vm/nr_hugepages)", total[bits] >> 20, huge >> 10);
		r->no_huge |= huge;
	}
}

/* --- mapping what the image has */

/*
 * Private memory that has been written is accounted for ever after, also when it may no longer be written: without that
 * flag the kernel would join mappings that were two. So it is made writable until its pages are there.
 */
static bool
was_writable(const struct vma *v)
{
	return !v->shared && !(v->prot & PROT_WRITE) && has_letters(v, "ac");
}

int
space_first_prot(const struct vma *v)
{
	return (int)v->prot | (was_writable(v) ? PROT_WRITE : 0);
}

bool
space_is_accounted(const struct vma *v)
{
	return has_letters(v, "ac");
}

unsigned
space_traits(const struct vma *v, bool pages)
{
	unsigned traits = 0;

	for (size_t i = 0; i < ARRAY_LEN(vmflags); i++)
		if (vmflags[i].how == (pages ? PAGES : MAP) && has_flag(v, &vmflags[i]))
			traits |= 1u << i;
	return traits;
}

/* Huge pages are so from the first byte, and those that shall be small never huge. */
static void
add_pages(struct script *s, const struct vma *v, taddr start, taddr end)
{
	for (size_t i = 0; i < ARRAY_LEN(vmflags); i++)
		if (vmflags[i].how == PAGES && has_flag(v, &vmflags[i])) {
			script_add(s, "advice", SYS_madvise, start, end - start, (uint64_t)vmflags[i].argument);
			script_may_fail(s);
		}
}

/* prot: the rights of private anonymous memory. */
static void
add_mapping(const struct restart *r, struct script *s, const struct vma *v, taddr start, taddr end, int prot)
{
	uint64_t flags = v->shared ? MAP_SHARED : MAP_PRIVATE, fd = (uint64_t)-1, offset = v->offset + (start - v->start);

	if (v->kind == VMA_URING) /* when all others are there: uring_map() */
		return;
	if (v->kind == VMA_AIO) { /* keeps its place free */
		script_add(s, "mapping", SYS_mmap, v->start, v->end - v->start, PROT_NONE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, (uint64_t)-1, 0);
		return;
	}
	if (v->kind == VMA_SHM && r->model.objects.shms[v->ref].sysv) {
		script_add(s, "System V segment", SYS_shmat, (uint64_t)r->model.objects.shms[v->ref].id, v->start,
		    has_letters(v, "mw") ? 0 : SHM_RDONLY);
		if ((v->prot & PROT_WRITE) == 0 && has_letters(v, "mw"))
			script_add(s, "mapping", SYS_mprotect, v->start, v->end - v->start, (uint64_t)v->prot);
		return;
	}
	for (size_t i = 0; i < ARRAY_LEN(vmflags); i++)
		if (vmflags[i].how == MAP && has_flag(v, &vmflags[i]))
			flags = strcmp(vmflags[i].letters, "dp") == 0
			    ? (flags & ~(uint64_t)MAP_TYPE) | (uint64_t)vmflags[i].argument
			    : flags | (uint64_t)vmflags[i].argument;
	if (v->kind == VMA_FILE)
		fd = stock_fd(r, STOCK_FILES, v->ref);
	else if (v->kind == VMA_SHM && r->open.shms[v->ref] >= 0)
		fd = stock_fd(r, STOCK_SHMS, v->ref);
	if (fd == (uint64_t)-1) {
		flags |= MAP_ANONYMOUS | space_huge_flags(r, v->huge, MAP_HUGETLB);
		offset = 0;
	}
	script_add(s, "mapping", SYS_mmap, start, end - start, (uint64_t)prot, flags | MAP_FIXED_NOREPLACE, fd, offset);
	add_pages(s, v, start, end);
}

void
space_add_mapping(const struct restart *r, struct script *s, const struct vma *v)
{
	add_mapping(r, s, v, v->start, v->end, space_first_prot(v));
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

/* The kernel takes the program's fields, with exe_fd (of it; UINT32_MAX: none) what /proc/PID/exe is to say. */
static int
set_fields(struct built *b, uint32_t exe_fd, bool may_fail)
{
	const struct mm_layout *mm = &b->task->mm;
	struct mm_map map = {mm->start_code, mm->end_code, mm->start_data, mm->end_data,
	    mm->start_brk, mm->brk, mm->start_stack, mm->arg_start, mm->arg_end, mm->env_start,
	    mm->env_end, 0, (uint32_t)auxv_length(&mm->auxv), exe_fd};
	struct script s = {0};
	uint64_t auxv = script_data(&s, mm->auxv.p, mm->auxv.n);
	uint64_t at;

	map.auxv = loop_data(&b->loop) + auxv;
	at = script_data(&s, &map, sizeof(map));
	script_add(&s, "address space fields", SYS_prctl, PR_SET_MM, PR_SET_MM_MAP, at, sizeof(map));
	script_data_arg(&s, 2);
	if (may_fail)
		script_may_fail(&s);
	return built_run(b, &s);
}

/* What has not executed its program gets that named where it is permitted: with CAP_CHECKPOINT_RESTORE in its user namespace. */
static int
set_layout(const struct restart *r, struct built *b)
{
	int err = 0;

	if (b->loop.untraced != NULL)
		err = set_fields(b, (uint32_t)stock_fd(r, STOCK_PROGRAMS, b->task->exe), true);
	return err < 0 ? err : set_fields(b, UINT32_MAX, false);
}

/*
 * [start, end) of v becomes one mapping with what there is of that already, and not with its neighbour on the other side: so these two differ from all
 * others for a moment, and it has no rights until then.
 */
static void
map_beside(const struct restart *r, struct script *s, const struct vma *v, taddr start, taddr end)
{
	if (start >= end)
		return;
	add_mapping(r, s, v, start, end, PROT_NONE);
	script_add(s, "mapping", SYS_madvise, start, end - start, MADV_DONTDUMP);
	script_add(s, "mapping", SYS_mprotect, start, end - start, (uint64_t)space_first_prot(v));
}

static void
map_vma(const struct restart *r, const struct built *b, struct script *s, const struct vma *v)
{
	taddr start, end;
	int prot;

	if (!earlier_in_place(r, b, v, &start, &end, &prot)) {
		space_add_mapping(r, s, v);
		return;
	}
	if (prot != space_first_prot(v))
		script_add(s, "protection", SYS_mprotect, start, end - start, (uint64_t)space_first_prot(v));
	add_pages(s, v, start, end);
	if (v->start == start && v->end == end)
		return;
	script_add(s, "mapping", SYS_madvise, start, end - start, MADV_DONTDUMP);
	map_beside(r, s, v, v->start, start);
	map_beside(r, s, v, end, v->end);
	script_add(s, "mapping", SYS_madvise, v->start, v->end - v->start, MADV_DODUMP);
}

/* In place of what exec(2) made. */
static int
make_anew(struct restart *r, struct built *b)
{
	const struct task *t = b->task;
	struct script s = {0};
	int err = earlier_is_there(r, b) ? 0 : clear_space(r, b);

	if (err < 0)
		return err;
	earlier_trim(r, b, &s);
	for (size_t i = 0; i < t->nvmas; i++)
		map_vma(r, b, &s, &t->vmas[i]);
	err = built_run(b, &s);
	return err < 0 ? err : clear_put_vdso(r, b);
}

/* --- a copy of its parent's, which is that of the image */

/* Pages of [start, end) that the task does not have from its parent. */
static void
drop_others(struct script *s, const struct task *t, taddr start, taddr end)
{
	for (size_t i = 0; i < t->ninherits && start < end; i++) {
		const struct page_range *in = &t->inherits[i];

		if (in->end <= start || in->start >= end)
			continue;
		if (in->start > start)
			script_add(s, "pages", SYS_madvise, start, in->start - start, MADV_DONTNEED);
		start = in->end;
	}
	if (start < end)
		script_add(s, "pages", SYS_madvise, start, end - start, MADV_DONTNEED);
}

static bool
has_inherited(const struct task *t, const struct vma *v)
{
	for (size_t k = 0; k < t->ninherits; k++)
		if (t->inherits[k].start >= v->start && t->inherits[k].end <= v->end)
			return true;
	return false;
}

/* What the parent has in [start, end) goes; with an end below start, nothing. */
static void
clear_range(struct script *s, taddr start, taddr end)
{
	if (start < end)
		script_add(s, "clearing", SYS_munmap, start, end - start);
}

/* A mapping of the parent: those of the child that begin in it and hold its pages stay, the rest goes. */
static void
clear_but_kept(struct script *s, const struct task *t, const bool *kept, const struct vma *parent)
{
	taddr at = parent->start;

	for (size_t i = 0; i < t->nvmas; i++) {
		const struct vma *v = &t->vmas[i];

		if (!kept[i] || v->start < parent->start || v->start >= parent->end)
			continue;
		clear_range(s, at, v->start);
		at = v->end;
	}
	clear_range(s, at, parent->end);
}

static void
adjust_kept(struct script *s, const struct task *t, const struct vma *v, const struct vma *parent)
{
	if (v->end > parent->end)
		script_add(s, "mapping", SYS_mremap, v->start, parent->end - v->start, v->end - v->start, 0);
	if (v->prot != parent->prot)
		script_add(s, "mapping", SYS_mprotect, v->start, v->end - v->start, (uint64_t)v->prot);
	drop_others(s, t, v->start, min_u64(v->end, parent->end));
}

/* The parent's mappings become the child's where they hold its pages, and go otherwise. */
static int
make_from_parent(struct restart *r, struct built *b)
{
	const struct task *t = b->task, *parent = b->parent->task;
	bool *kept = calloc(t->nvmas + 1, sizeof(*kept));
	struct script s = {0};

	if (kept == NULL)
		return -ENOMEM;
	for (size_t i = 0; i < t->nvmas; i++)
		kept[i] = has_inherited(t, &t->vmas[i]);
	for (size_t i = 0; i < parent->nvmas; i++)
		clear_but_kept(&s, t, kept, &parent->vmas[i]);
	for (size_t i = 0, p = 0; i < t->nvmas; i++) {
		while (p < parent->nvmas && parent->vmas[p].end <= t->vmas[i].start)
			p++;
		if (kept[i])
			adjust_kept(&s, t, &t->vmas[i], &parent->vmas[p]);
		else
			space_add_mapping(r, &s, &t->vmas[i]);
	}
	free(kept);
	return built_run(b, &s);
}

int
space_make(struct restart *r, struct built *b)
{
	int err = b->task->forked ? make_from_parent(r, b) : make_anew(r, b);

	if (err == 0)
		err = uring_map(r, b);
	if (err == 0)
		err = set_layout(r, b);
	return err < 0 ? err : fault(FAULT_mapped);
}

/* --- when the content is in place */

#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d41
#define PR_SET_VMA_ANON_NAME 0
#endif
#define MADV_GUARD_INSTALL_ 102

static void
finish_vma(const struct restart *r, struct script *s, const struct vma *v)
{
	uint64_t len = v->end - v->start;

	if (v->kind == VMA_AIO || v->kind == VMA_URING)
		return;
	if (was_writable(v))
		script_add(s, "protection", SYS_mprotect, v->start, len, (uint64_t)v->prot);
	for (size_t i = 0; i < ARRAY_LEN(vmflags); i++) {
		if (!has_flag(v, &vmflags[i]))
			continue;
		/* What a droppable mapping has by nature cannot be asked for. */
		if (vmflags[i].how == ADVICE || vmflags[i].how == PAGES)
			script_add(s, "advice", SYS_madvise, v->start, len, (uint64_t)vmflags[i].argument);
		else if (vmflags[i].how == LOCK)
			script_add(s, "mlock", SYS_mlock, v->start, len);
		else
			continue;
		script_may_fail(s);
	}
	/* The kernel may join small pages to huge ones by itself. */
	if (v->huge != 0 && space_huge_flags(r, v->huge, MAP_HUGETLB) == 0) {
		script_add(s, "advice", SYS_madvise, v->start, len, MADV_HUGEPAGE);
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
space_finish(struct restart *r, struct built *b)
{
	const struct task *t = b->task;
	struct script s = {0};
	int err;

	for (size_t i = 0; i < t->nvmas; i++)
		finish_vma(r, &s, &t->vmas[i]);
	for (size_t i = 0; i < t->nguards; i++)
		script_add(&s, "guard pages", SYS_madvise, t->guards[i].start,
		    t->guards[i].end - t->guards[i].start, MADV_GUARD_INSTALL_);
	err = loop_run(&b->loop, &b->threads[0], &s);
	for (size_t i = 0; err == 0 && i < s.ncalls; i++)
		if (s.calls[i].result < 0 && strcmp(s.calls[i].what, "mlock") == 0) {
			note("pid %" PRId64 ": memory cannot be locked as it was: %s (ulimit -l)", t->pid,
			    strerror((int)-s.calls[i].result));
			break;
		}
	script_fini(&s);
	return err;
}
