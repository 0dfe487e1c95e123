/*
 * A process that answers for itself (coop.h) as a target: whether it may be asked, and what it says of its threads, checked.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "coop.h"
#include "coop_abi.h"
#include "io.h"
#include "log.h"
#include "target.h"

/* It answers at once, unless it must not be interrupted. */
enum { ASK_MS = 2000, VDSO_TRIES = 100 };

unsigned
target_own_filters(void)
{
	int self = proc_open(getpid());
	struct proc_status own;
	unsigned n = 0;

	if (self >= 0 && proc_read_status(self, &own) == 0) {
		n = own.seccomp == SECCOMP_MODE_FILTER ? own.seccomp_filters : 0;
		proc_status_fini(&own);
	}
	close_fd(&self);
	return n;
}

static bool
is_sandboxed(const struct target *t)
{
	return t->status.seccomp == SECCOMP_MODE_STRICT || (t->status.seccomp == SECCOMP_MODE_FILTER && t->status.seccomp_filters > target_own_filters());
}

int
target_mark(const struct target *t)
{
	struct proc_maps maps;
	bool can = false, busy = false;

	if (proc_read_maps(t->proc, false, &maps) < 0)
		return 0;
	for (size_t i = 0; i < maps.n; i++) {
		can |= coop_is_mark(maps.map[i].path);
		busy |= coop_is_asked_mark(maps.map[i].path);
	}
	proc_maps_fini(&maps);
	return can && busy ? fail(EBUSY, "pid %d: is being saved by another ckpt", t->pid) : can;
}

/* One that is stopped could not answer; its own filters might end it for what it is asked. */
int
target_can_be_asked(const struct target *t)
{
	bool handler = t->status.sigcgt >> (COOP_SIGNAL - 1) & 1;

	return t->may_ask && handler && t->status.state != 'T' && !is_sandboxed(t) ? target_mark(t) : 0;
}

/* A thread by both of its numbers, and whether it has been said to stand. */
struct numbers {
	pid_t inner, outer;
	bool stands;
};

static int
by_inner(const void *a, const void *b)
{
	const struct numbers *x = a, *y = b;

	return x->inner < y->inner ? -1 : x->inner > y->inner;
}

static int
read_numbers(const struct target *t, struct numbers **out, size_t *n)
{
	struct numbers *v;
	int *tids, err = proc_list(t->proc, "task", &tids, n);

	if (err < 0)
		return fail(-err, "pid %d: its threads: %s", t->pid, strerror(-err));
	v = calloc(*n + 1, sizeof(*v));
	for (size_t i = 0; v != NULL && i < *n; i++) {
		struct proc_status st;

		v[i].inner = v[i].outer = tids[i];
		if (t->status.levels > 1 && proc_read_thread_status(t->proc, tids[i], &st) == 0) {
			v[i].inner = st.nspid[st.levels - 1];
			proc_status_fini(&st);
		}
	}
	free(tids);
	if (v == NULL)
		return fail(ENOMEM, "out of memory");
	qsort(v, *n, sizeof(*v), by_inner);
	*out = v;
	return 0;
}

static int
add_standing(struct target *t, size_t index, struct numbers *numbers, size_t n)
{
	struct coop_standing s;
	struct numbers *who;
	struct tracee *th;
	int err = coop_standing(t->coop, index, &s);

	if (err < 0)
		return err == -ESRCH ? 0 : err;
	who = bsearch(&(struct numbers){.inner = s.tid}, numbers, n, sizeof(*numbers), by_inner);
	th = who == NULL || who->stands ? NULL : ARRAY_ADD(t->threads, t->nthreads);
	if (th == NULL) {
		free(s.xstate);
		return fail(EPROTO, "pid %d: thread %d, of which it speaks, is not there", t->pid, s.tid);
	}
	who->stands = true;
	*th = (struct tracee){.pid = t->pid, .tid = who->outer, .inner_tid = s.tid, .mem = t->mem, .coop = t->coop, .coop_index = index, .inside = s.inside,
	    .rseq = s.rseq, .rseq_size = s.rseq_size, .rseq_sig = s.rseq_sig, .regs = s.regs, .sigmask = s.sigmask, .xstate = s.xstate,
	    .xstate_len = s.xstate_len};
	return 0;
}

/* Opened by ourselves it is what it says; where we may not, it gives us its own. */
static int
memory_of_asked(struct target *t)
{
	struct statfs fs;

	t->mem = openat(t->proc, "mem", O_RDWR | O_CLOEXEC);
	if (t->mem >= 0) {
		coop_set_memory(t->coop, t->mem);
		return 0;
	}
	t->mem = coop_memory(t->coop) < 0 ? -1 : dup(coop_memory(t->coop));
	if (t->mem < 0 || fstatfs(t->mem, &fs) < 0 || fs.f_type != PROC_SUPER_MAGIC)
		return fail(EPERM, "pid %d: its memory cannot be had", t->pid);
	return 0;
}

static int
list_asked(struct target *t)
{
	struct numbers *numbers = NULL;
	size_t n = 0;
	int err = read_numbers(t, &numbers, &n);

	for (size_t i = 0; i < coop_threads(t->coop) && err == 0; i++)
		err = add_standing(t, i, numbers, n);
	if (err == 0 && t->nthreads != n)
		err = fail(EPROTO, "pid %d: not all of its threads stand", t->pid);
	free(numbers);
	return err;
}

static void
let_asked_go(struct target *t)
{
	target_detach(t);
	close_fd(&t->mem);
}

/* Does a thread return into the vDSO, which is this kernel's? */
static bool
in_vdso(const struct target *t)
{
	struct proc_maps maps;
	bool in = false;

	if (proc_read_maps(t->proc, false, &maps) < 0)
		return false;
	for (size_t i = 0; i < t->nthreads && !in; i++)
		in = target_in_vdso(t, &maps, t->threads[i].inside);
	proc_maps_fini(&maps);
	return in;
}

int
target_ask(struct target *t, int64_t deadline, bool *traceable)
{
	int err;

	*traceable = false;
	for (int tries = 0;; tries++) {
		log_hush(1);
		err = coop_ask(&t->coop, t->pid, min_i64(deadline, now_ms() + ASK_MS), deadline);
		if (err < 0)
			t->coop = NULL;
		if (err == 0)
			err = memory_of_asked(t);
		log_hush(-1);
		*traceable = err < 0 && err != -EBUSY;
		if (err == -EBUSY)
			return fail(ETIMEDOUT, "%s", log_last_hushed());
		if (err == 0)
			err = list_asked(t);
		/* It comes out of there if it is let go on. */
		if (err < 0 || tries == VDSO_TRIES || !in_vdso(t))
			break;
		let_asked_go(t);
		poll(NULL, 0, 1);
	}
	if (err < 0)
		let_asked_go(t);
	return err;
}
