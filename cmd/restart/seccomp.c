/*
 * Sandboxes: the last that a thread gets while it has the right to, and without effect until it is let go.
 */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>

#include "log.h"
#include "restart.h"

static bool
is_sandboxed(const struct task *t)
{
	bool yes = false;

	for (size_t i = 0; i < t->nthreads; i++)
		yes |= t->threads[i].strict || t->threads[i].nfilters > 0;
	return yes;
}

int
seccomp_prepare(struct built *b)
{
	for (size_t i = 0; is_sandboxed(b->task) && i < b->nthreads; i++)
		if (ptrace(PTRACE_SETOPTIONS, b->threads[i].tid, NULL, BUILD_TRACE_OPTIONS | PTRACE_O_SUSPEND_SECCOMP) < 0)
			return fail(EPERM, "pid %d: it has seccomp filters, which takes root (CAP_SYS_ADMIN) outside of "
			    "containers; ckpt --allow-loss=seccomp leaves them out", b->pid);
	return 0;
}

/* Threads that had the same have one another's, as the kernel synchronizes only those. */
static bool
all_alike(const struct task *t)
{
	bool same = t->nthreads > 1;

	for (size_t i = 1; i < t->nthreads && same; i++)
		same = t->threads[i].nfilters == t->threads[0].nfilters && t->threads[0].nfilters > 0 &&
		    memcmp(t->threads[i].filters, t->threads[0].filters, t->threads[0].nfilters * sizeof(int64_t)) == 0;
	return same;
}

static int
add_filter(struct built *b, struct tracee *th, const struct filter_ref *f, unsigned flags)
{
	/* struct sock_fprog, whose second member is a pointer. */
	uint64_t prog[2] = {f->code.n / sizeof(struct sock_filter), 0};
	struct script s = {0};
	uint64_t code = script_data(&s, f->code.p, f->code.n);
	int err;

	prog[1] = loop_data(&b->loop) + code;
	script_add(&s, "seccomp filter", SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags | (unsigned)f->flags,
	    script_data(&s, prog, sizeof(prog)));
	script_data_arg(&s, 2);
	err = loop_run(&b->loop, th, &s);
	script_fini(&s);
	return err;
}

static int
make_strict(struct built *b, struct tracee *th)
{
	struct script s = {0};
	int err;

	script_add(&s, "seccomp", SYS_prctl, PR_SET_SECCOMP, SECCOMP_MODE_STRICT);
	err = loop_run(&b->loop, th, &s);
	script_fini(&s);
	return err;
}

int
seccomp_install(struct restart *r, struct built *b)
{
	const struct task *t = b->task;
	bool together = all_alike(t);
	int err = 0;

	for (size_t i = 0; i < t->nthreads && err == 0; i++) {
		for (size_t k = 0; k < t->threads[i].nfilters && err == 0 && (i == 0 || !together); k++)
			err = add_filter(b, &b->threads[i], &r->model.objects.filters[t->threads[i].filters[k]],
			    together ? SECCOMP_FILTER_FLAG_TSYNC : 0);
		if (err == 0 && t->threads[i].strict)
			err = make_strict(b, &b->threads[i]);
	}
	return err;
}
