/*
 * What the kernel tells of the stopped process without the process's own help.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include "ckpt.h"
#include "cpu.h"
#include "io.h"
#include "kernel_abi.h"
#include "kfeat.h"
#include "log.h"

/* --- the header */

static int
random_id(char **id)
{
	unsigned char bytes[16];
	char hex[33];
	int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -errno : read_full(fd, bytes, sizeof(bytes));

	close_fd(&fd);
	if (n != sizeof(bytes))
		return fail(EIO, "/dev/urandom cannot be read");
	hex_encode(hex, bytes, sizeof(bytes));
	*id = strdup(hex);
	return *id == NULL ? -ENOMEM : 0;
}

/* The clock as the process sees it: our own, less our offset, plus its. */
static uint64_t
clock_there(const struct member *who, clockid_t clock, const char *name)
{
	struct timespec ts;
	int64_t ns;
	int self = proc_open(getpid());

	clock_gettime(clock, &ts);
	ns = (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
	if (!proc_same_ns(who->target.proc, "time"))
		ns += proc_timens_offset(who->target.proc, name) - (self < 0 ? 0 : proc_timens_offset(self, name));
	close_fd(&self);
	return ns < 0 ? 0 : (uint64_t)ns;
}

/* Where all the tasks are, and the first of them. */
static int
list_tasks(struct ckpt *c)
{
	struct image_header *h = &c->model.header;

	h->tasks = calloc(c->nmembers, sizeof(*h->tasks));
	c->model.tasks = calloc(c->nmembers, sizeof(*c->model.tasks));
	if (h->tasks == NULL || c->model.tasks == NULL)
		return -ENOMEM;
	h->ntasks = c->nmembers;
	for (size_t i = 0; i < c->nmembers; i++) {
		const struct proc_status *st = &c->members[i]->target.status;

		h->tasks[i] = st->nspid[st->levels - 1];
		c->members[i]->task = &c->model.tasks[i];
	}
	if (c->nmembers > 1) {
		h->features = calloc(1, sizeof(char *));
		if (h->features == NULL || (h->features[0] = strdup("tasks")) == NULL)
			return -ENOMEM;
		h->nfeatures = 1;
	}
	return 0;
}

static int64_t
our_time_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

int64_t
collect_elapsed_ns(const struct ckpt *c)
{
	return our_time_ns() - c->stamped_ns;
}

int
collect_host(struct ckpt *c)
{
	struct image_header *h = &c->model.header;
	struct utsname un;
	char *boot = NULL;
	int err;

	if (h->arch != NULL)
		return 0;
	uname(&un);
	h->arch = strdup(ARCH_NAME);
	h->host = strdup(un.nodename);
	h->kernel = strdup(un.release);
	h->program = strdup("pms " PMS_VERSION);
	if (read_file(AT_FDCWD, "/proc/sys/kernel/random/boot_id", &boot) > 0)
		boot[strcspn(boot, "\n")] = '\0';
	h->boot_id = boot;
	if (h->arch == NULL || h->host == NULL || h->kernel == NULL || h->program == NULL)
		return fail(ENOMEM, "out of memory");
	err = cpu_identify(&h->cpu);
	return err < 0 ? fail(-err, "/proc/cpuinfo: %s", strerror(-err)) : 0;
}

int
collect_header(struct ckpt *c)
{
	struct image_header *h = &c->model.header;
	const struct member *who = c->members[0];
	struct timespec ts;
	int err;

	clock_gettime(CLOCK_REALTIME, &ts);
	h->version = IMAGE_VERSION;
	h->page_bytes = PAGE_BYTES;
	h->host_pid = who->target.pid;
	h->pid = who->target.status.nspid[who->target.status.levels - 1];
	h->realtime_ns = (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
	h->monotonic_ns = clock_there(who, CLOCK_MONOTONIC, "monotonic");
	h->boottime_ns = clock_there(who, CLOCK_BOOTTIME, "boottime");
	c->stamped_ns = our_time_ns();
	err = list_tasks(c);
	return err < 0 ? err : random_id(&h->id);
}

/* --- IDs and credentials, as the program sees them */

static int64_t
inner_id(const char *map, int64_t id)
{
	int64_t in = map == NULL ? id : proc_idmap_inner(map, id);

	return in < 0 ? id : in;
}

static int
collect_creds(struct member *who)
{
	const struct proc_status *st = &who->target.status;
	struct creds *cr = &who->task->creds;
	char *uids = NULL, *gids = NULL;

	if (!proc_same_ns(who->target.proc, "user") &&
	    (read_file(who->target.proc, "uid_map", &uids) < 0 ||
		read_file(who->target.proc, "gid_map", &gids) < 0))
		return fail(EIO, "pid %d: its user namespace cannot be read", who->target.pid);
	for (int i = 0; i < 4; i++) {
		cr->uid[i] = inner_id(uids, st->uid[i]);
		cr->gid[i] = inner_id(gids, st->gid[i]);
	}
	cr->groups = calloc(st->ngroups + 1, sizeof(*cr->groups));
	if (cr->groups == NULL)
		return -ENOMEM;
	for (size_t i = 0; i < st->ngroups; i++)
		cr->groups[i] = inner_id(gids, st->groups[i]);
	cr->ngroups = st->ngroups;
	free(uids);
	free(gids);
	cr->cap_inh = st->cap_inh;
	cr->cap_prm = st->cap_prm;
	cr->cap_eff = st->cap_eff;
	cr->cap_bnd = st->cap_bnd;
	cr->cap_amb = st->cap_amb;
	return 0;
}

/* --- attributes */

/* Not by prlimit(2), which needs CAP_SYS_RESOURCE for another user's process. */
static int
collect_rlimits(struct member *who)
{
	struct task *t = who->task;
	struct proc_limit limits[16];
	char *text;
	int err = (int)read_file(who->target.proc, "limits", &text);

	if (err >= 0) {
		err = proc_limits_parse(limits, text);
		free(text);
	}
	if (err < 0)
		return fail(-err, "pid %d: limits: %s", who->target.pid, strerror(-err));
	for (size_t i = 0; i < ARRAY_LEN(limits); i++) {
		struct rlimit_pair *pair = ARRAY_ADD(t->rlimits, t->nrlimits);

		if (pair == NULL)
			return -ENOMEM;
		*pair = (struct rlimit_pair){limits[i].soft, limits[i].hard};
	}
	return 0;
}

static int
collect_links(struct ckpt *c, struct member *who)
{
	struct task *t = who->task;
	char *root = NULL, name[64];
	struct stat theirs, ours;
	int err = read_link(who->target.proc, "cwd", &t->cwd);

	if (err == 0)
		err = read_link(who->target.proc, "root", &root);
	if (err < 0)
		return fail(-err, "pid %d: its directories cannot be read: %s", who->target.pid,
		    strerror(-err));
	if (fstatat(who->target.proc, "root", &theirs, 0) < 0 || stat("/", &ours) < 0)
		err = fail_errno("pid %d: its root", who->target.pid);
	else if (theirs.st_dev != ours.st_dev || theirs.st_ino != ours.st_ino)
		err = report_add(&c->report, OBSTACLE, 69, member_name(who, name), NULL,
		    "it lives in a changed root, %s", root);
	free(root);
	return err;
}

/* Who it is, which is all that is left of one that has ended. */
static int
collect_identity(struct member *who)
{
	const struct target *tg = &who->target;
	const struct proc_status *st = &tg->status;
	struct task *t = who->task;
	int last = st->levels - 1;

	t->pid = st->nspid[last];
	t->pgid = st->nspgid[last];
	t->sid = st->nssid[last];
	t->group_leader = t->pid == t->pgid;
	t->session_leader = t->pid == t->sid;
	t->exit_signal = tg->stat.exit_signal;
	t->exe = -1;
	if (who->parent != NULL)
		t->ppid = who->parent->task->pid;
	t->zombie = who->zombie;
	t->comm = strdup(st->name);
	return t->comm == NULL ? -ENOMEM : 0;
}

static int
collect_task_outside(struct member *who)
{
	const struct target *tg = &who->target;
	const struct proc_status *st = &tg->status;
	struct task *t = who->task;
	int64_t number;

	t->umask = st->umask;
	t->note = tg->coop != NULL ? coop_note(tg->coop) : 0;
	t->stop_signal = tg->threads[0].stop_signal;
	t->cpu_ns = (tg->stat.utime + tg->stat.stime) * (1000000000 / (uint64_t)sysconf(_SC_CLK_TCK));
	if (proc_read_number(tg->proc, "personality", 16, &number) == 0)
		t->personality = (uint64_t)number;
	if (proc_read_number(tg->proc, "coredump_filter", 16, &number) == 0)
		t->coredump_filter = (uint64_t)number;
	if (proc_read_number(tg->proc, "oom_score_adj", 10, &number) == 0)
		t->oom_score_adj = number;
	return 0;
}

/* --- threads */

enum { AFFINITY_MAX = 8192 };

/* Where it may run like everything here, ourselves for one, that is the host's or the container's doing, and elsewhere it may be otherwise. */
static int
collect_affinity(const struct tracee *th, struct sched *s)
{
	unsigned char *set = calloc(2, AFFINITY_MAX), *ours = set + AFFINITY_MAX;
	long n;

	if (set == NULL)
		return -ENOMEM;
	n = syscall(SYS_sched_getaffinity, th->tid, AFFINITY_MAX, set);
	if (n > 0 && (syscall(SYS_sched_getaffinity, 0, AFFINITY_MAX, ours) != n || memcmp(set, ours, (size_t)n) != 0)) {
		s->affinity.p = set;
		s->affinity.n = (size_t)n;
		return 0;
	}
	free(set);
	return 0;
}

static int
collect_sched(const struct tracee *th, struct sched *s)
{
	struct kernel_sched_attr a = {0};

	if (syscall(SYS_sched_getattr, th->tid, &a, sizeof(a), 0) < 0)
		return fail_errno("pid %d: scheduling", th->tid);
	s->policy = a.policy;
	s->nice = a.nice;
	s->priority = a.priority;
	s->flags = a.flags;
	s->runtime = a.runtime;
	s->deadline = a.deadline;
	s->period = a.period;
	s->ioprio = syscall(SYS_ioprio_get, 1 /* IOPRIO_WHO_PROCESS */, th->tid);
	return collect_affinity(th, s);
}

/* The registers with which the copy goes on: an interrupted call begins again. */
static int
copy_regs(struct ckpt *c, const struct tracee *th, struct thread *out)
{
	char name[64];

	out->regs = th->regs;
	if (th->restarted > 0)
		out->regs.orig_rax = (uint64_t)th->restarted;
	switch (arch_restart_kind(&th->regs, syscall_eintr_restarts)) {
	case RESTART_NONE:
		break;
	case RESTART_BLOCK:
		if (c->opt.eintr || th->restarted < 0) {
			arch_set_eintr(&out->regs);
			break;
		}
		/* fall through */
	default:
		arch_rewind(&out->regs);
	}
	out->regs.orig_rax = UINT64_MAX;
	if (th->restarted >= 0)
		return 0;
	snprintf(name, sizeof(name), "pid %d: thread %d", th->pid, th->tid);
	return report_add(&c->report, LOSS, 0, name, NULL,
	    "it is in a wait with a timeout that cannot be told, which will return EINTR");
}

struct rseq_configuration {
	uint64_t pointer;
	uint32_t size, signature, flags, pad;
};
#define PTRACE_GET_RSEQ_CONFIGURATION_ 0x420f

/* struct rseq_cs of linux/rseq.h, the critical section a thread is in. */
struct critical_section {
	uint32_t version, flags;
	uint64_t start, length, abort;
};

/*
 * A thread that was stopped inside a restartable sequence goes on at its abort handler, here
 * as in the copy: that is what the kernel does to one that was preempted.
 */
static int
collect_rseq(struct tracee *th, struct thread *out)
{
	struct rseq_configuration conf = {0};
	struct critical_section cs;
	uint64_t cs_at = 0;

	if (th->coop != NULL)
		conf = (struct rseq_configuration){.pointer = th->rseq, .size = (uint32_t)th->rseq_size, .signature = (uint32_t)th->rseq_sig};
	else if (ptrace(PTRACE_GET_RSEQ_CONFIGURATION_, th->tid, (void *)sizeof(conf), &conf) < 0)
		return 0;
	if (conf.pointer == 0)
		return 0;
	out->rseq = conf.pointer;
	out->rseq_size = conf.size;
	out->rseq_sig = conf.signature;
	if (mem_read(th->mem, conf.pointer + 8, &cs_at, sizeof(cs_at)) < 0 || cs_at == 0 ||
	    mem_read(th->mem, cs_at, &cs, sizeof(cs)) < 0)
		return 0;
	if (th->regs.rip - cs.start >= cs.length)
		return 0;
	if (th->coop != NULL) /* the kernel has seen to that when it called the handler */
		return 0;
	th->regs.rip = cs.abort;
	return tracee_set_regs(th->tid, &th->regs);
}

static int
collect_name(const struct target *t, const struct tracee *th, struct thread *out)
{
	char path[64];
	int len;

	out->tid = th->inner_tid;
	snprintf(path, sizeof(path), "task/%d/comm", th->tid);
	len = (int)read_file(t->proc, path, &out->comm);
	if (len < 0)
		return fail(-len, "pid %d: comm: %s", th->tid, strerror(-len));
	if (len > 0 && out->comm[len - 1] == '\n')
		out->comm[len - 1] = '\0';
	return 0;
}

static bool
same_creds(const struct proc_status *a, const struct proc_status *b)
{
	return memcmp(a->uid, b->uid, sizeof(a->uid)) == 0 && memcmp(a->gid, b->gid, sizeof(a->gid)) == 0 &&
	    a->ngroups == b->ngroups && memcmp(a->groups, b->groups, a->ngroups * sizeof(*a->groups)) == 0 &&
	    a->cap_inh == b->cap_inh && a->cap_prm == b->cap_prm && a->cap_eff == b->cap_eff &&
	    a->cap_bnd == b->cap_bnd && a->cap_amb == b->cap_amb;
}

/* The kernel keeps credentials for each thread; libraries keep them equal. */
static int
collect_thread_creds(struct ckpt *c, struct member *who, const struct tracee *th, struct thread *out)
{
	char name[64];
	struct proc_status st;
	int err;

	if (th->tid == th->pid) { /* what is known of the process is this thread's */
		out->no_new_privs = who->target.status.no_new_privs != 0;
		who->filtered |= who->target.status.seccomp != 0;
		return 0;
	}
	err = proc_read_thread_status(who->target.proc, th->tid, &st);
	if (err < 0)
		return fail(-err, "pid %d: thread %d: %s", who->target.pid, th->tid, strerror(-err));
	out->no_new_privs = st.no_new_privs != 0;
	who->filtered |= st.seccomp != 0;
	if (!same_creds(&st, &who->target.status)) {
		snprintf(name, sizeof(name), "pid %d: thread %d", who->target.pid, th->tid);
		err = report_add(&c->report, OBSTACLE, 69, name, NULL,
		    "it has credentials or capabilities of its own");
	}
	proc_status_fini(&st);
	return err;
}

static int
collect_thread(struct ckpt *c, struct member *who, struct tracee *th)
{
	struct thread *out = ARRAY_ADD(who->task->threads, who->task->nthreads);
	size_t robust_len = 0;
	void *head = NULL;
	int err;

	if (out == NULL)
		return -ENOMEM;
	err = collect_name(&who->target, th, out);
	if (err == 0)
		err = collect_rseq(th, out);
	if (err == 0)
		err = collect_sched(th, &out->sched);
	if (err < 0)
		return err;
	err = copy_regs(c, th, out);
	if (err < 0)
		return err;
	out->sigmask = th->sigmask;
	err = collect_thread_creds(c, who, th, out);
	if (err < 0)
		return err;
	out->xstate.p = malloc(th->xstate_len);
	if (out->xstate.p == NULL)
		return -ENOMEM;
	memcpy(out->xstate.p, th->xstate, th->xstate_len);
	out->xstate.n = th->xstate_len;
	if (syscall(SYS_get_robust_list, th->tid, &head, &robust_len) == 0) {
		out->robust_head = (taddr)(uintptr_t)head;
		out->robust_len = robust_len;
	}
	return 0;
}

int
collect_outside(struct ckpt *c, struct member *who)
{
	int err = collect_identity(who);

	if (err < 0 || who->zombie)
		return err;
	err = collect_task_outside(who);
	if (err == 0)
		err = collect_creds(who);
	if (err == 0)
		err = collect_obstacles(c, who);
	if (err == 0)
		err = collect_rlimits(who);
	if (err == 0)
		err = collect_links(c, who);
	for (size_t i = 0; i < who->target.nthreads && err == 0; i++)
		err = collect_thread(c, who, &who->target.threads[i]);
	return err < 0 ? err : collect_seccomp(c, who);
}
