/*
 * Seccomp: filters, and the strict mode, which only root may read and suspend. They are suspended as long as the process is
 * traced: they might end it for a call that it is asked to make.
 */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <unistd.h>

#include "ckpt.h"
#include "io.h"
#include "log.h"

/* linux/ptrace.h, which does not go with sys/ptrace.h */
#define PTRACE_SECCOMP_GET_FILTER_ 0x420c
#define PTRACE_SECCOMP_GET_METADATA_ 0x420d
struct seccomp_metadata_ {
	uint64_t filter_off, flags;
};

/* One that leaves the decision to a process which holds the other end of it. */
static bool
asks_somebody(const struct sock_filter *code, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (code[i].code == (BPF_RET | BPF_K) && (code[i].k & SECCOMP_RET_ACTION_FULL) == SECCOMP_RET_USER_NOTIF)
			return true;
	return false;
}

/* Its index in objects.filters, where the same may be already. */
static int64_t
add_filter(struct objects *o, const struct sock_filter *code, size_t n, uint64_t flags)
{
	struct filter_ref *f;
	size_t bytes = n * sizeof(*code);

	for (size_t i = 0; i < o->nfilters; i++)
		if (o->filters[i].flags == flags && o->filters[i].code.n == bytes &&
		    memcmp(o->filters[i].code.p, code, bytes) == 0)
			return (int64_t)i;
	f = ARRAY_ADD(o->filters, o->nfilters);
	if (f == NULL || (f->code.p = malloc(bytes)) == NULL)
		return -ENOMEM;
	memcpy(f->code.p, code, bytes);
	f->code.n = bytes;
	f->flags = flags;
	return (int64_t)o->nfilters - 1;
}

/* The n-th, oldest first. */
static int
read_filter(struct ckpt *c, const struct tracee *th, struct thread *out, unsigned n)
{
	struct sock_filter code[BPF_MAXINSNS];
	struct seccomp_metadata_ meta = {n, 0};
	long len = ptrace(PTRACE_SECCOMP_GET_FILTER_, th->tid, (void *)(uintptr_t)n, code);
	int64_t *place;
	char name[64];

	if (len <= 0 || ptrace(PTRACE_SECCOMP_GET_METADATA_, th->tid, (void *)sizeof(meta), &meta) < 0)
		return fail_errno("pid %d: thread %d: its seccomp filters cannot be read", th->pid, th->tid);
	snprintf(name, sizeof(name), "pid %d", th->pid);
	if (asks_somebody(code, (size_t)len))
		return report_add(&c->report, OBSTACLE, 69, name, "--allow-loss=seccomp",
		    "a seccomp filter that asks another process (SECCOMP_RET_USER_NOTIF)");
	place = ARRAY_ADD(out->filters, out->nfilters);
	if (place == NULL)
		return -ENOMEM;
	*place = add_filter(&c->model.objects, code, (size_t)len, meta.flags);
	return *place < 0 ? (int)*place : 0;
}

static int
read_thread(struct ckpt *c, struct member *who, size_t i)
{
	const struct tracee *th = &who->target.threads[i];
	struct thread *out = &who->task->threads[i];
	struct proc_status st;
	int err = proc_read_thread_status(who->target.proc, th->tid, &st);

	if (err < 0)
		return fail(-err, "pid %d: thread %d: %s", th->pid, th->tid, strerror(-err));
	out->strict = st.seccomp == SECCOMP_MODE_STRICT;
	for (unsigned n = 0; n < st.seccomp_filters && err == 0; n++)
		err = read_filter(c, th, out, n);
	proc_status_fini(&st);
	return err;
}

/* Has one of the threads a sandbox of its own? */
static int
is_sandboxed(const struct member *who, bool *yes)
{
	unsigned ours = target_own_filters();

	*yes = false;
	for (size_t i = 0; i < who->target.nthreads && !*yes; i++) {
		struct proc_status st;
		int err = proc_read_thread_status(who->target.proc, who->target.threads[i].tid, &st);

		if (err < 0)
			return fail(-err, "pid %d: thread %d: %s", who->target.pid, who->target.threads[i].tid, strerror(-err));
		*yes = st.seccomp == SECCOMP_MODE_STRICT || (st.seccomp == SECCOMP_MODE_FILTER && st.seccomp_filters > ours);
		proc_status_fini(&st);
	}
	return 0;
}

int
collect_seccomp(struct ckpt *c, struct member *who)
{
	char name[64];
	bool sandboxed = false;
	int err = who->filtered ? is_sandboxed(who, &sandboxed) : 0;

	if (err < 0 || !sandboxed)
		return err;
	member_name(who, name);
	/* Parked it would be under them again, and so would what lets it go on. */
	if (c->opt.after == AFTER_PARK)
		return report_add(&c->report, OBSTACLE, 69, name, "move it, or make a copy (-c)",
		    "it has seccomp filters, which might end it for being parked");
	if (target_suspend_seccomp(&who->target) < 0)
		return report_add(&c->report, OBSTACLE, 77, name,
		    "run ckpt as root (CAP_SYS_ADMIN) outside of containers, or start it without its sandbox",
		    "it has seccomp filters of its own, which only root can read and suspend");
	if (c->opt.lose_seccomp)
		return report_add(&c->report, LOSS, 0, name, NULL, "its seccomp filters: it will run without its sandbox");
	for (size_t i = 0; i < who->target.nthreads && err == 0; i++)
		err = read_thread(c, who, i);
	return err;
}
