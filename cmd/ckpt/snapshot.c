/*
 * Copies of the memory of all processes at one instant, made by fork(2) without anybody being told (tracee_copy()): the originals go on while the image is
 * written. What fork does not copy is read while they stand still: shared memory, memory that asked not to be copied, files that are in the image.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ckpt.h"
#include "fault.h"
#include "io.h"
#include "kfeat.h"
#include "log.h"

enum { KEPT_MAX = 64 << 20, FIRST_PID = 1 };

struct copy {
	pid_t pid;
	struct memory memory;
	struct page_runs still;
	unsigned char *pages; /* those of `still`, in order */
};

/* --- what was read while they stood still */

struct memory
member_memory(const struct member *who)
{
	const struct target *t = &who->target;

	return who->copy != NULL ? who->copy->memory : (struct memory){t->pid, t->mem, t->proc};
}

const struct page_runs *
snapshot_still(const struct member *who)
{
	return who->copy != NULL && who->copy->still.n > 0 ? &who->copy->still : NULL;
}

const unsigned char *
snapshot_page(const struct member *who, taddr addr, uint64_t *npages)
{
	const unsigned char *pages = who->copy->pages;

	for (size_t i = 0; i < who->copy->still.n; i++) {
		const struct page_run *run = &who->copy->still.run[i];
		uint64_t before = addr >= run->addr ? (addr - run->addr) / PAGE_BYTES : 0;

		if (addr < run->addr) {
			*npages = min_u64(*npages, (run->addr - addr) / PAGE_BYTES);
			return NULL;
		}
		if (before < run->npages) {
			*npages = min_u64(*npages, run->npages - before);
			return pages + before * PAGE_BYTES;
		}
		pages += run->npages * PAGE_BYTES;
	}
	return NULL;
}

static int
read_still(struct ckpt *c, struct member *who)
{
	struct page_runs *still = &who->copy->still;
	int err = contents_still(c, who, still);
	unsigned char *to;

	if (err < 0 || still->n == 0)
		return err;
	to = mmap(NULL, still->npages * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (to == MAP_FAILED)
		return -ENOMEM;
	who->copy->pages = to;
	for (size_t i = 0; i < still->n && err == 0; i++) {
		uint64_t len = still->run[i].npages * PAGE_BYTES;

		err = mem_read(member_memory(who).mem, still->run[i].addr, to, len);
		to += len;
	}
	return err;
}

int
snapshot_file(const struct ckpt *c, size_t index)
{
	return c->kept != NULL ? c->kept[index] : -1;
}

/* One that is only mapped can be read later: it is not theirs to write. */
static bool
is_to_be_kept(const struct ckpt *c, size_t i)
{
	const struct file_ref *f = &c->model.objects.files[i];

	return f->member != NULL && (i >= c->nmapped || f->gone || f->partial);
}

/* Files in the image may change as soon as they run: copies of those, too. */
static int
keep_files(struct ckpt *c)
{
	const struct objects *o = &c->model.objects;
	uint64_t sum = 0;
	int err = 0;

	set_partial_sizes(c);
	for (size_t i = 0; i < o->nfiles; i++)
		sum += is_to_be_kept(c, i) ? o->files[i].size : 0;
	if (sum > KEPT_MAX)
		return -EFBIG;
	c->kept = malloc((o->nfiles + 1) * sizeof(*c->kept));
	if (c->kept == NULL)
		return -ENOMEM;
	for (size_t i = 0; i < o->nfiles; i++)
		c->kept[i] = -1;
	for (size_t i = 0; i < o->nfiles && err == 0; i++)
		if (is_to_be_kept(c, i)) {
			c->kept[i] = memfd_create("kept", MFD_CLOEXEC);
			err = c->kept[i] < 0 ? -errno : copy_file(c, i, c->kept[i]);
		}
	return err;
}

/* --- the copies */

/* Whoever is left without parents comes to it: the copy would. */
static bool
adopts(const struct member *who)
{
	const struct proc_status *st = &who->target.status;

	if (st->levels > 0 && st->nspid[st->levels - 1] == FIRST_PID)
		return true;
	for (size_t i = 0; i < who->task->nprctls; i++)
		if (strcmp(who->task->prctls[i].name, "child_subreaper") == 0 && who->task->prctls[i].value != 0)
			return true;
	return false;
}

/* Why can this one not be copied? NULL: it can. */
static const char *
obstacle(const struct member *who)
{
	const struct target *t = &who->target;

	if (t->coop != NULL)
		return "it answers for itself";
	if (t->suspended)
		return "it is in a sandbox";
	return adopts(who) ? "orphans come to it, and the copy would be one" : NULL;
}

static const char *
why_not(const struct ckpt *c)
{
	const char *why = NULL;

	if (!kfeat(KFEAT_snapshot))
		return "this kernel cannot close all files of a copy (Linux 5.9 can)";
	for (size_t i = 0; i < c->nmembers && why == NULL; i++)
		if (!c->members[i]->zombie)
			why = obstacle(c->members[i]);
	return why;
}

static int
fork_member(struct member *who)
{
	struct tracee *th = &who->target.threads[0];
	struct copy *copy = who->copy;
	int err = target_borrow(&who->target, th);

	if (err == 0)
		err = th->frame_at == 0 ? -ENOSTR : lend_pages(who, 1, arch_copy, (size_t)(arch_copy_end - arch_copy));
	if (err < 0)
		return err;
	copy->pid = tracee_copy(th, who->page.at, who->page.sp);
	take_page_back(who);
	if (copy->pid < 0)
		return copy->pid;
	copy->memory = (struct memory){copy->pid, -1, proc_open(copy->pid)};
	if (copy->memory.proc < 0)
		return copy->memory.proc;
	copy->memory.mem = openat(copy->memory.proc, "mem", O_RDWR | O_CLOEXEC);
	if (copy->memory.mem < 0)
		return -errno;
	/* Below its stack there is what borrowed calls needed. */
	return mem_write(copy->memory.mem, th->scratch, th->saved, th->saved_len);
}

static int
take(struct ckpt *c)
{
	int err = keep_files(c);

	for (size_t i = 0; i < c->nmembers && err == 0; i++) {
		struct member *who = c->members[i];
		struct copy *copy = who->zombie ? NULL : calloc(1, sizeof(*copy));

		if (who->zombie)
			continue;
		if (copy == NULL)
			return -ENOMEM;
		copy->memory = member_memory(who);
		who->copy = copy;
		err = read_still(c, who);
	}
	/* Those that take long last: what is shared is as it was when they are copied. */
	for (size_t i = 0; i < c->nmembers && err == 0; i++)
		if (!c->members[i]->zombie)
			err = fork_member(c->members[i]);
	return err;
}

static const char *
explain(int err)
{
	switch (-err) {
	case EAGAIN:
		return "no more processes are allowed (RLIMIT_NPROC, pids.max)";
	case ENOMEM:
		return "no memory for a copy is allowed (memory limits, vm.overcommit_memory)";
	case ENOSTR:
		return "its stack has no room, or its program no way back from a signal";
	case EFBIG:
		return "files of more than 64 MiB are in the image";
	default:
		return strerror(-err);
	}
}

int
snapshot_take(struct ckpt *c)
{
	const char *why = why_not(c);
	int err = 0;

	if (why == NULL) {
		log_hush(1);
		err = take(c);
		log_hush(-1);
		c->snapshot = err == 0;
		if (err == 0)
			return 0;
		why = explain(err);
		snapshot_drop(c);
	}
	if (interrupted())
		return fail(EINTR, "interrupted; pid %d runs on", c->members[0]->target.pid);
	for (size_t i = 0; i < c->nmembers && err < 0; i++)
		for (size_t k = 0; k < c->members[i]->target.nthreads; k++)
			if (c->members[i]->target.threads[k].dead)
				return fail(ESRCH, "pid %d: ended while it was being copied", c->members[i]->target.pid);
	note("pid %d: stands still until its image is written: %s", c->members[0]->target.pid, why);
	return 0;
}

static void
drop(struct copy *copy, const struct target *t)
{
	if (copy->pid > 0)
		tracee_end_copy(copy->pid);
	if (copy->memory.mem != t->mem)
		close_fd(&copy->memory.mem);
	if (copy->memory.proc != t->proc)
		close_fd(&copy->memory.proc);
	if (copy->pages != NULL)
		munmap(copy->pages, copy->still.npages * PAGE_BYTES);
	page_runs_fini(&copy->still);
	free(copy);
}

void
snapshot_drop(struct ckpt *c)
{
	for (size_t i = 0; i < c->nmembers; i++) {
		if (c->members[i]->copy != NULL)
			drop(c->members[i]->copy, &c->members[i]->target);
		c->members[i]->copy = NULL;
	}
	for (size_t i = 0; c->kept != NULL && i < c->model.objects.nfiles; i++)
		close_fd(&c->kept[i]);
	free(c->kept);
	c->kept = NULL;
	c->nshm_parts = 0;
}
