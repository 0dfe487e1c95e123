/*
 * What keeps a process as a whole from being moved: namespaces, what it shares in unusual ways, sessions.
 */
#include <errno.h>
#include <linux/kcmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "ckpt.h"
#include "io.h"
#include "kfeat.h"
#include "log.h"
#include "sessions.h"

/* Namespaces that restart does not make: it would run in those that are there. */
static int
check_namespaces(struct ckpt *c, struct member *who)
{
	static const char *const kinds_of[] = {"net", "uts", "cgroup"}, *const own[] = {"ipc", "mnt", "pid"};
	char name[64];
	int err = 0;

	for (size_t i = 0; who->parent != NULL && i < ARRAY_LEN(own) && err == 0; i++)
		if (!proc_share_ns(who->target.proc, c->members[0]->target.proc, own[i]))
			err = report_add(&c->report, OBSTACLE, 69, member_name(who, name), NULL,
			    "it lives in another %s namespace than the first process", own[i]);
	for (size_t i = 0; i < ARRAY_LEN(kinds_of) && err == 0; i++)
		if (!proc_same_ns(who->target.proc, kinds_of[i]))
			err = report_add(&c->report, OBSTACLE, 69, member_name(who, name),
			    "run ckpt in there (nsenter -t PID), or --allow-loss=namespaces to carry it into those of restart",
			    "it lives in another %s namespace", kinds_of[i]);
	return err;
}

/* --single takes it from its children, or them from it. */
static int
check_single(struct ckpt *c, struct member *who)
{
	char name[64];
	int *pids, err;
	size_t n;

	if (!c->opt.single)
		return 0;
	err = proc_children(who->target.proc, who->target.pid, &pids, &n);
	if (err < 0)
		return fail(-err, "pid %d: its children cannot be listed: %s", who->target.pid, strerror(-err));
	if (n > 0)
		err = report_add(&c->report, OBSTACLE, 69, member_name(who, name),
		    "leave out --single, or wait until they have ended",
		    "it has %zu child%s, %d first, which it could not wait for", n, n > 1 ? "ren" : "", pids[0]);
	free(pids);
	return err;
}

static bool
same(const struct member *a, const struct member *b, int type)
{
	return kfeat(KFEAT_kcmp) && !a->zombie && !b->zombie &&
	    syscall(SYS_kcmp, a->target.pid, b->target.pid, type, 0, 0) == 0;
}

/* Before the files of all are looked at: a table that several share is listed once. */
void
collect_shares(struct member *who)
{
	if (who->parent == NULL)
		return;
	who->task->shares_files = same(who->parent, who, KCMP_FILES);
	who->task->shares_fs = same(who->parent, who, KCMP_FS);
}

/*
 * What tasks share as threads do, without being threads. A child can be born with its parent's table of files, and with
 * its directory; a shared address space or table of handlers cannot be made by fork(2) and exec(2).
 */
static int
check_sharing(struct ckpt *c, struct member *who)
{
	static const struct {
		int type;
		const char *what;
	} shared[] = {{KCMP_VM, "its memory (a vfork that goes on, or clone with CLONE_VM)"},
	    {KCMP_FILES, "its table of open files (clone with CLONE_FILES), and is not its child"},
	    {KCMP_SIGHAND, "its signal handlers (clone with CLONE_SIGHAND)"},
	    {KCMP_FS, "its working directory (clone with CLONE_FS), and is not its child"}};
	char name[64];
	int err = 0;

	for (size_t m = 0; c->members[m] != who && err == 0; m++)
		for (size_t i = 0; i < ARRAY_LEN(shared) && err == 0; i++) {
			/* What is shared with the parent may well be shared with a brother. */
			if ((shared[i].type == KCMP_FILES && who->task->shares_files) ||
			    (shared[i].type == KCMP_FS && who->task->shares_fs) ||
			    !same(c->members[m], who, shared[i].type))
				continue;
			err = report_add(&c->report, OBSTACLE, 69, member_name(who, name), NULL,
			    "it shares with pid %d %s", c->members[m]->target.pid, shared[i].what);
			break;
		}
	return err;
}

/* A thread may have a table of files or a directory of its own (unshare(2)). */
static int
check_threads(struct ckpt *c, struct member *who)
{
	const struct target *t = &who->target;
	char name[64];

	for (size_t i = 1; i < t->nthreads && kfeat(KFEAT_kcmp); i++) {
		bool files = syscall(SYS_kcmp, t->pid, t->threads[i].tid, KCMP_FILES, 0, 0) > 0;

		snprintf(name, sizeof(name), "pid %d: thread %d", t->pid, t->threads[i].tid);
		if (files || syscall(SYS_kcmp, t->pid, t->threads[i].tid, KCMP_FS, 0, 0) > 0)
			return report_add(&c->report, OBSTACLE, 69, name, NULL, "it has %s of its own (unshare(2))",
			    files ? "open files" : "a working directory");
	}
	return 0;
}

int
collect_obstacles(struct ckpt *c, struct member *who)
{
	int err = check_single(c, who);

	if (err == 0 && !c->opt.lose_namespaces)
		err = check_namespaces(c, who);
	if (err == 0)
		err = check_threads(c, who);
	return err < 0 ? err : check_sharing(c, who);
}

int
collect_sessions(struct ckpt *c)
{
	int64_t *birth = calloc(c->nmembers, sizeof(*birth));
	char name[64];
	int err = birth == NULL ? -ENOMEM : 0;

	if (err == 0)
		sessions_of_birth(&c->model, birth);
	for (size_t i = 0; i < c->nmembers && err == 0; i++)
		if (!sessions_can_make(&c->model, birth, i))
			err = report_add(&c->report, OBSTACLE, 69, member_name(c->members[i], name),
			    "end it, or the leader of its session",
			    "its session %lld cannot be made again: the leader is neither its ancestor nor a brother before it",
			    (long long)birth[i]);
	for (size_t i = 1; i < c->nmembers && err == 0; i++) {
		const struct member *who = c->members[i];
		size_t p = 0;

		while (c->members[p] != who->parent)
			p++;
		/* Born by somebody else than its parent it would share with that one. */
		if ((who->task->shares_files || who->task->shares_fs) && birth[i] != ANY_SESSION && birth[i] != birth[p] &&
		    birth[i] != who->parent->task->sid)
			err = report_add(&c->report, OBSTACLE, 69, member_name(who, name), NULL,
			    "it shares files or directory with a parent of another session");
	}
	free(birth);
	return err;
}
