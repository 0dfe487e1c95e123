#include "model_check.h"

#include "coop_abi.h"

#include <asm/termbits.h>
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <netinet/in.h>
#include <sys/un.h>

#include "aio.h"
#include "kind.h"

int
model_bad(char why[128], const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(why, 128, fmt, ap);
	va_end(ap);
	return -EBADMSG;
}

const char *
header_unknown_feature(const struct image_header *h)
{
	/* "tasks": more than one process; "home", "pages": files, memory that are elsewhere; "rounds", "parent": memory that came earlier. */
	static const char *const known[] = {"tasks", "home", "pages", "rounds", "parent"};

	for (size_t i = 0; i < h->nfeatures; i++) {
		size_t k = 0;

		while (k < ARRAY_LEN(known) && strcmp(h->features[i], known[k]) != 0)
			k++;
		if (k == ARRAY_LEN(known))
			return h->features[i];
	}
	return NULL;
}

bool
model_is_pid(int64_t pid)
{
	return pid > 0 && pid <= MODEL_PID_MAX;
}

int
header_check(const struct image_header *h, char why[128])
{
	if (h->arch == NULL || h->id == NULL || h->host == NULL || h->kernel == NULL)
		return model_bad(why, "header: something is missing");
	if (strlen(h->id) != 32 || strspn(h->id, "0123456789abcdef") != 32)
		return model_bad(why, "header.id: not 32 hex digits");
	if (h->parent != NULL && (strlen(h->parent) != 32 || strspn(h->parent, "0123456789abcdef") != 32 || strcmp(h->parent, h->id) == 0))
		return model_bad(why, "header.parent: not 32 hex digits of another image");
	if (!model_is_pid(h->pid))
		return model_bad(why, "header.pid: not a process ID");
	if (h->realtime_ns > INT64_MAX / 2 || h->monotonic_ns > INT64_MAX / 2 || h->boottime_ns > INT64_MAX / 2)
		return model_bad(why, "header: a time that is not yet");
	if (h->ntasks == 0 || h->ntasks > MODEL_LIST_MAX || h->tasks[0] != h->pid)
		return model_bad(why, "header.tasks: does not begin with header.pid");
	for (size_t i = 0; i < h->ntasks; i++)
		if (!model_is_pid(h->tasks[i]))
			return model_bad(why, "header.tasks[%zu]: not a process ID", i);
	return 0;
}

static bool
is_user_range(taddr start, taddr end)
{
	return start < end && start % PAGE_BYTES == 0 && end % PAGE_BYTES == 0 && end <= ARCH_USER_END;
}

bool
model_is_huge(uint64_t huge)
{
	return huge == 0 || ((huge & (huge - 1)) == 0 && huge > PAGE_BYTES && huge <= 1ULL << 34);
}

/* A mapping of whole ones. */
static bool
is_huge(uint64_t huge, taddr start, taddr end)
{
	return model_is_huge(huge) && (huge == 0 || (start % huge == 0 && end % huge == 0));
}

static uint64_t
granule(const struct vma *v)
{
	return v->huge != 0 ? v->huge : PAGE_BYTES;
}

/* As large as the kernel makes it, and as full as it says. */
static bool
is_ring(const struct aio_ref *a, uint64_t pages)
{
	return pages <= AIO_PAGES_MAX && a->nr == aio_entries(pages) && a->head < a->nr && a->tail < a->nr &&
	    a->events.n == (a->tail + a->nr - a->head) % a->nr * AIO_EVENT_BYTES;
}

static int
check_vmas(const struct model *m, const struct task *t, char why[128])
{
	taddr floor = PAGE_BYTES;

	for (size_t i = 0; i < t->nvmas; i++) {
		const struct vma *v = &t->vmas[i];
		int64_t limit = v->kind == VMA_FILE ? (int64_t)m->objects.nfiles
		    : v->kind == VMA_SHM ? (int64_t)m->objects.nshms : v->kind == VMA_AIO ? (int64_t)t->naios
		    : v->kind == VMA_URING ? (int64_t)m->objects.nofds : 0;

		if (!is_user_range(v->start, v->end) || v->start < floor)
			return model_bad(why, "task.vmas[%zu]: out of order or out of range", i);
		if (v->kind < VMA_ANON || v->kind > VMA_URING || (v->prot & ~7LL) != 0)
			return model_bad(why, "task.vmas[%zu]: unknown kind", i);
		if (v->kind != VMA_ANON && (v->ref < 0 || v->ref >= limit))
			return model_bad(why, "task.vmas[%zu]: refers to nothing", i);
		if (!is_huge(v->huge, v->start, v->end) || (v->huge != 0 && v->kind == VMA_FILE) ||
		    (v->kind == VMA_SHM && v->huge != m->objects.shms[v->ref].huge))
			return model_bad(why, "task.vmas[%zu]: huge pages that cannot be", i);
		if (v->offset % granule(v) != 0 || v->offset > INT64_MAX - (v->end - v->start))
			return model_bad(why, "task.vmas[%zu]: bad offset", i);
		if (v->kind == VMA_SHM &&
		    v->offset + (v->end - v->start) > round_up(m->objects.shms[v->ref].size, granule(v)))
			return model_bad(why, "task.vmas[%zu]: behind the end of its object", i);
		if (v->kind == VMA_URING && (m->objects.ofds[v->ref].kind != KIND_uring || !v->shared))
			return model_bad(why, "task.vmas[%zu]: not of a ring", i);
		if (v->kind == VMA_AIO && !is_ring(&t->aios[v->ref], (v->end - v->start) / PAGE_BYTES))
			return model_bad(why, "task.vmas[%zu]: not a ring", i);
		if (v->flags != NULL && strlen(v->flags) > 256)
			return model_bad(why, "task.vmas[%zu]: too many flags", i);
		if (v->name != NULL && strlen(v->name) > 80)
			return model_bad(why, "task.vmas[%zu]: name too long", i);
		floor = v->end;
	}
	for (size_t i = 0, v = 0; i < t->nguards; i++) {
		const struct page_range *g = &t->guards[i];

		while (v < t->nvmas && t->vmas[v].end <= g->start)
			v++;
		if (!is_user_range(g->start, g->end) || v == t->nvmas ||
		    t->vmas[v].start > g->start || t->vmas[v].end < g->end)
			return model_bad(why, "task.guards[%zu]: outside of every mapping", i);
	}
	return 0;
}

/* One range outside of all mappings: where the vDSO and its data go. */
static int
check_vdso(const struct task *t, char why[128])
{
	const struct mm_layout *mm = &t->mm;

	if (mm->auxv.n > 4096 || mm->auxv.n % 16 != 0)
		return model_bad(why, "task.mm.auxv: bad length");
	if (mm->start_brk > ARCH_USER_END || mm->brk > ARCH_USER_END || mm->brk < mm->start_brk ||
	    mm->start_stack > ARCH_USER_END)
		return model_bad(why, "task.mm: out of range");
	if (mm->vdso == 0)
		return mm->vdso_size == 0 && mm->vvar == 0 ? 0 : model_bad(why, "task.mm.vdso: incomplete");
	if (mm->vdso_size > 1 << 20 || mm->vdso > ARCH_USER_END || mm->vvar > mm->vdso ||
	    mm->vdso - mm->vvar > 1 << 20 ||
	    !is_user_range(mm->vvar, page_up(mm->vdso + mm->vdso_size)) ||
	    mm->vdso % PAGE_BYTES != 0 || mm->vdso_size % PAGE_BYTES != 0)
		return model_bad(why, "task.mm.vdso: out of range");
	if (mm->vdso_hash == NULL || mm->vdso_member == NULL)
		return model_bad(why, "task.mm.vdso: incomplete");
	for (size_t i = 0; i < t->nvmas; i++)
		if (t->vmas[i].start < mm->vdso + mm->vdso_size && t->vmas[i].end > mm->vvar)
			return model_bad(why, "task.mm.vdso: in the way of a mapping");
	return 0;
}

static bool
has_fd(const struct task *t, int64_t fd)
{
	size_t lo = 0, hi = t->nfds;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (t->fds[mid].fd < fd)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo < t->nfds && t->fds[lo].fd == fd;
}

static int
check_fds(const struct model *m, const struct task *t, char why[128])
{
	int64_t floor = 0;

	for (size_t i = 0; i < t->nfds; i++) {
		const struct fd_slot *f = &t->fds[i];

		if (f->fd < floor || f->fd > MODEL_FD_MAX)
			return model_bad(why, "task.fds[%zu]: out of order or out of range", i);
		if (f->ofd < 0 || f->ofd >= (int64_t)m->objects.nofds)
			return model_bad(why, "task.fds[%zu]: refers to nothing", i);
		floor = f->fd + 1;
	}
	for (size_t i = 0; i < t->nlocks; i++) {
		const struct file_lock *l = &t->locks[i];

		if (!has_fd(t, l->fd) || l->kind < LOCK_POSIX || l->kind > LOCK_LEASE || l->start < 0 ||
		    l->end == INT64_MAX || (l->end != -1 && l->end < l->start))
			return model_bad(why, "task.locks[%zu]: malformed", i);
	}
	return 0;
}

static bool
is_sig(int64_t sig)
{
	return sig >= 1 && sig <= 64;
}

/* Queued signals: never those that cannot be blocked. */
static bool
are_pending(const struct bytes *b)
{
	if (b->n % SIGINFO_BYTES != 0)
		return false;
	for (size_t i = 0; i < b->n; i += SIGINFO_BYTES) {
		int32_t sig;

		memcpy(&sig, b->p + i, sizeof(sig));
		if (!is_sig(sig) || sig == SIGKILL || sig == SIGSTOP)
			return false;
	}
	return true;
}

static int
check_threads(const struct model *m, const struct task *t, char why[128])
{
	if (t->nthreads == 0 || t->threads[0].tid != t->pid)
		return model_bad(why, "task.threads: the first is not the leader");
	for (size_t i = 0; i < t->nthreads; i++) {
		const struct thread *th = &t->threads[i];

		if (!model_is_pid(th->tid) || th->comm == NULL || strlen(th->comm) > 64 ||
		    !are_pending(&th->pending))
			return model_bad(why, "task.threads[%zu]: malformed", i);
		if (i > 1 && th->tid <= t->threads[i - 1].tid)
			return model_bad(why, "task.threads[%zu]: out of order", i);
		if (i > 0 && th->tid == t->pid)
			return model_bad(why, "task.threads[%zu]: twice", i);
		if (th->rseq % 32 != 0 || th->rseq > ARCH_USER_END)
			return model_bad(why, "task.threads[%zu].rseq: out of range", i);
		if (th->xstate.n < ARCH_XSTATE_MIN || th->xstate.n > 64 << 10)
			return model_bad(why, "task.threads[%zu]: no extended state", i);
		for (size_t j = 0; j < th->nfilters; j++)
			if (th->filters[j] < 0 || th->filters[j] >= (int64_t)m->objects.nfilters || th->strict)
				return model_bad(why, "task.threads[%zu].filters: refers to nothing", i);
		if (th->sched.affinity.n > 8192)
			return model_bad(why, "task.threads[%zu]: affinity too long", i);
		for (size_t j = 0; j < th->nprctls; j++)
			if (th->prctls[j].name == NULL)
				return model_bad(why, "task.threads[%zu]: malformed", i);
	}
	return 0;
}


/* In memory that it may write, and that is its own. */
static bool
is_note(const struct task *t)
{
	for (size_t i = 0; i < t->nvmas; i++) {
		const struct vma *v = &t->vmas[i];

		if (t->note >= v->start && t->note < v->end)
			return v->kind == VMA_ANON && !v->shared && (v->prot & PROT_WRITE) && v->end - t->note >= sizeof(struct coop_note);
	}
	return t->note == 0;
}

static int
check_task(const struct model *m, const struct task *t, char why[128])
{

	if (t->cwd == NULL)
		return model_bad(why, "task: incomplete");
	if (t->exe < 0 || t->exe >= (int64_t)m->objects.nfiles)
		return model_bad(why, "task.exe: refers to nothing");
	if (!is_note(t))
		return model_bad(why, "task.note: is in no memory of its own");
	if (t->tty < -1 || t->tty >= (int64_t)m->objects.nptys || t->foreground < 0)
		return model_bad(why, "task.tty: refers to nothing");
	if (t->stop_signal != 0 && !is_sig(t->stop_signal))
		return model_bad(why, "task.stop_signal: not a signal");
	if (t->nrlimits > 64 || !are_pending(&t->pending) || t->umask < 0 || t->umask > 0777)
		return model_bad(why, "task: malformed");
	for (size_t i = 0; i < t->nactions; i++)
		if (!is_sig(t->actions[i].sig) || t->actions[i].sig == SIGKILL || t->actions[i].sig == SIGSTOP)
			return model_bad(why, "task.actions[%zu]: not a signal", i);
	for (size_t i = 0; i < t->nitimers; i++)
		if (t->itimers[i].which < 0 || t->itimers[i].which > 2 || t->itimers[i].value_us < 0 ||
		    t->itimers[i].interval_us < 0)
			return model_bad(why, "task.itimers[%zu]: malformed", i);
	for (size_t i = 0; i < t->ntimers; i++)
		if (t->timers[i].id < 0 || t->timers[i].id > INT32_MAX || t->timers[i].value_ns < 0 ||
		    t->timers[i].interval_ns < 0 || (i > 0 && t->timers[i].id <= t->timers[i - 1].id))
			return model_bad(why, "task.timers[%zu]: malformed", i);
	for (size_t i = 0; i < t->nprctls; i++)
		if (t->prctls[i].name == NULL)
			return model_bad(why, "task.prctls[%zu]: malformed", i);
	for (int i = 0; i < 4; i++)
		if (t->creds.uid[i] < 0 || t->creds.uid[i] > UINT32_MAX - 1 || t->creds.gid[i] < 0 ||
		    t->creds.gid[i] > UINT32_MAX - 1)
			return model_bad(why, "task.creds: not an ID");
	for (size_t i = 0; i < t->creds.ngroups; i++)
		if (t->creds.groups[i] < 0 || t->creds.groups[i] > UINT32_MAX - 1)
			return model_bad(why, "task.creds.groups[%zu]: not an ID", i);
	return 0;
}

static int
check_counts(const struct objects *o, const struct task *t, char why[128])
{
	if (o->nfiles > MODEL_LIST_MAX || o->nshms > MODEL_LIST_MAX || o->nofds > MODEL_LIST_MAX ||
	    o->npipes > MODEL_LIST_MAX || o->nsockets > MODEL_LIST_MAX || o->nepolls > MODEL_LIST_MAX ||
	    o->ninotifies > MODEL_LIST_MAX || o->nptys > MODEL_LIST_MAX || o->npidfds > MODEL_LIST_MAX || o->nsems > MODEL_LIST_MAX || o->nmsgqs > MODEL_LIST_MAX || o->ntcps > MODEL_LIST_MAX || o->nurings > MODEL_LIST_MAX || o->nfilters > MODEL_LIST_MAX ||
	    t->nvmas > MODEL_LIST_MAX || t->ninherits > MODEL_LIST_MAX || t->nlazy > MODEL_LIST_MAX || t->nearlier > MODEL_LIST_MAX || t->nguards > MODEL_LIST_MAX ||
	    t->nprctls > 64 || t->nitimers > 3 || t->nlocks > MODEL_LIST_MAX || t->ntimers > MODEL_LIST_MAX ||
	    t->nthreads > MODEL_LIST_MAX || t->nactions > MODEL_LIST_MAX ||
	    t->creds.ngroups > MODEL_LIST_MAX)
		return model_bad(why, "more than %d of something", MODEL_LIST_MAX);
	return 0;
}

/* --- the tree */

static const struct task *
find_task(const struct model *m, size_t n, int64_t pid)
{
	for (size_t i = 0; i < n; i++)
		if (m->tasks[i].pid == pid)
			return &m->tasks[i];
	return NULL;
}

/* Signals that end a process by themselves. */
static bool
is_deadly(int64_t sig)
{
	static const int harmless[] = {SIGCHLD, SIGCONT, SIGURG, SIGWINCH, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU};

	for (size_t i = 0; i < ARRAY_LEN(harmless); i++)
		if (sig == harmless[i])
			return false;
	return sig >= 1 && sig <= 64;
}

static bool
is_wait_status(int64_t status)
{
	int64_t sig = status & 0x7f;

	return status >= 0 && (sig == 0 ? (status & ~0xff00LL) == 0 : is_deadly(sig) && (status & ~0xffLL) == 0);
}

/* Private memory without a file, which can be waited for. */
static int
check_lazy(const struct model *m, const struct task *t, char why[128])
{
	taddr floor = 0;

	if (t->nlazy > 0 && m->header.pages == NULL)
		return model_bad(why, "task.lazy: nowhere to be had");
	for (size_t i = 0, v = 0; i < t->nlazy; i++) {
		const struct page_range *r = &t->lazy[i];

		while (v < t->nvmas && t->vmas[v].end <= r->start)
			v++;
		if (!is_user_range(r->start, r->end) || r->start < floor || v == t->nvmas || t->vmas[v].start > r->start ||
		    t->vmas[v].end < r->end || t->vmas[v].kind != VMA_ANON || t->vmas[v].shared || t->vmas[v].huge != 0)
			return model_bad(why, "task.lazy[%zu]: not memory that can come later", i);
		floor = r->end;
	}
	return 0;
}

/* Pages that a task has from its parent lie in a mapping that begins inside of one of the parent's. */
static int
check_inherits(const struct task *t, const struct task *parent, char why[128])
{
	taddr floor = 0;

	if (t->forked ? parent == NULL || (t->ninherits == 0 && !t->shares_files) : t->ninherits > 0)
		return model_bad(why, "task.inherits: without a parent");
	if (t->shares_files ? !t->forked || t->nfds > 0 || t->nlocks > 0 : t->shares_fs && parent == NULL)
		return model_bad(why, "task: shares what it cannot share");
	for (size_t i = 0, v = 0, p = 0; i < t->ninherits; i++) {
		const struct page_range *r = &t->inherits[i];

		while (v < t->nvmas && t->vmas[v].end <= r->start)
			v++;
		if (!is_user_range(r->start, r->end) || r->start < floor || v == t->nvmas ||
		    t->vmas[v].start > r->start || t->vmas[v].end < r->end)
			return model_bad(why, "task.inherits[%zu]: outside of every mapping", i);
		while (p < parent->nvmas && parent->vmas[p].end <= t->vmas[v].start)
			p++;
		if (p == parent->nvmas || parent->vmas[p].start > t->vmas[v].start ||
		    parent->vmas[p].end < r->end || parent->vmas[p].kind != t->vmas[v].kind ||
		    parent->vmas[p].ref != t->vmas[v].ref || parent->vmas[p].shared || t->vmas[v].shared)
			return model_bad(why, "task.inherits[%zu]: the parent has other memory there", i);
		floor = r->end;
	}
	return 0;
}

/* Pages that came earlier are private ones. */
static int
check_earlier(const struct task *t, char why[128])
{
	taddr floor = 0;

	for (size_t i = 0, v = 0; i < t->nearlier; i++) {
		taddr at = t->earlier[i].start;

		if (!is_user_range(at, t->earlier[i].end) || at < floor)
			return model_bad(why, "task.earlier[%zu]: not in order", i);
		for (floor = t->earlier[i].end; at < floor; at = t->vmas[v].end) {
			while (v < t->nvmas && t->vmas[v].end <= at)
				v++;
			if (v == t->nvmas || t->vmas[v].start > at || (t->vmas[v].shared && t->vmas[v].kind == VMA_FILE))
				return model_bad(why, "task.earlier[%zu]: outside of every mapping", i);
		}
	}
	return 0;
}

static int
check_place(const struct model *m, size_t i, char why[128])
{
	const struct task *t = &m->tasks[i], *parent = find_task(m, i, t->ppid);

	if (t->pid != m->header.tasks[i] || !model_is_pid(t->pid) || find_task(m, i, t->pid) != NULL)
		return model_bad(why, "task %" PRId64 ": not the one that it should be", t->pid);
	if (t->comm == NULL || t->pgid < 0 || t->sid < 0 || t->pgid > MODEL_PID_MAX || t->sid > MODEL_PID_MAX)
		return model_bad(why, "task: incomplete");
	if (i == 0 ? t->ppid != 0 || t->zombie || t->pid != m->header.pid : parent == NULL || parent->zombie)
		return model_bad(why, "task.ppid: not before it in the list");
	if (t->exit_signal < 0 || t->exit_signal > 64)
		return model_bad(why, "task.exit_signal: not a signal");
	if (t->zombie)
		return is_wait_status(t->status) && t->nthreads == 0 && t->nvmas == 0 && t->nfds == 0 &&
		    t->nguards == 0 && t->ninherits == 0 && t->nearlier == 0 && t->nlocks == 0 && t->ntimers == 0 && t->mm.vdso == 0 &&
		    t->mm.vvar == 0 && t->mm.vdso_size == 0 && t->mm.start_brk == 0 && strlen(t->comm) <= 64 &&
		    !t->forked && !t->shares_files && !t->shares_fs ? 0 : model_bad(why, "task.status: not how a process ends");
	if (check_earlier(t, why) < 0)
		return -EBADMSG;
	return check_inherits(t, parent, why);
}

static int
check_one(const struct model *m, size_t i, char why[128])
{
	const struct task *t = &m->tasks[i];
	int err = check_counts(&m->objects, t, why);

	if (err == 0)
		err = check_place(m, i, why);
	if (err < 0 || t->zombie)
		return err;
	err = check_task(m, t, why);
	if (err == 0)
		err = check_vmas(m, t, why);
	if (err == 0)
		err = check_lazy(m, t, why);
	if (err == 0)
		err = check_vdso(t, why);
	if (err == 0)
		err = check_fds(m, t, why);
	return err < 0 ? err : check_threads(m, t, why);
}

int
model_check(const struct model *m, char why[128])
{
	int err = m->header.ntasks == 0 ? model_bad(why, "header.tasks: none") : 0;

	if (err == 0)
		err = check_counts(&m->objects, &m->tasks[0], why);
	if (err == 0)
		err = objects_check(&m->objects, why);
	/* All files are at home, or none. */
	for (size_t i = 0; i < m->objects.nofds && err == 0; i++)
		if ((m->objects.ofds[i].kind == KIND_home) != (m->header.home != NULL))
			err = model_bad(why, "objects.ofds[%zu]: at home, or not, unlike the others", i);
	for (size_t i = 0; i < m->header.ntasks && err == 0; i++)
		err = check_one(m, i, why);
	return err;
}
