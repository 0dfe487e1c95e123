/*
 * Which PIDs: those of the image in the namespaces that are here, those of the image in
 * new namespaces, or new ones. In new namespaces a process of ours is PID 1: it builds, and
 * then reaps; the one outside passes signals on and ends as the program ends.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "fault.h"
#include "front.h"
#include "io.h"
#include "kfeat.h"
#include "log.h"
#include "restart.h"

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x80
#endif
#ifndef CAP_CHECKPOINT_RESTORE
#define CAP_CHECKPOINT_RESTORE 40
#endif

static bool
have_cap(int cap)
{
	struct __user_cap_header_struct h = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct d[2];

	if (syscall(SYS_capget, &h, d) < 0)
		return false;
	return d[cap / 32].effective >> (cap % 32) & 1;
}

/* Has this user namespace such an ID at all? A line of uid_map: `INSIDE OUTSIDE COUNT`. */
static bool
id_exists(const char *map, int64_t id)
{
	char *text, *p;
	int64_t inside, outside, count;
	bool found = false;
	int n;

	if (read_file(AT_FDCWD, map, &text) < 0)
		return true;
	for (p = text; !found && sscanf(p, "%" SCNd64 " %" SCNd64 " %" SCNd64 "%n", &inside, &outside,
		&count, &n) == 3; p += n)
		found = id >= inside && id - inside < count;
	free(text);
	return found;
}

/* Can its users and groups be had without a user namespace of its own? */
static bool
ids_exist(const struct restart *r)
{
	for (size_t k = 0; k < r->model.header.ntasks; k++)
		for (int i = 0; i < 4; i++) {
			const struct creds *c = &r->model.tasks[k].creds;

			if (!id_exists("/proc/self/uid_map", c->uid[i]) || !id_exists("/proc/self/gid_map", c->gid[i]))
				return false;
		}
	return true;
}

/* As a thread, a process, a process group or a session: then it cannot be had again. */
static bool
number_taken(int64_t id)
{
	char path[48];

	if (kill((pid_t)id, 0) == 0 || errno != ESRCH)
		return true;
	if (id > 1 && (kill(-(pid_t)id, 0) == 0 || errno != ESRCH))
		return true;
	snprintf(path, sizeof(path), "/proc/%" PRId64, id);
	return access(path, F_OK) == 0;
}

bool
place_taken(const struct restart *r)
{
	for (size_t k = 0; k < r->model.header.ntasks; k++) {
		const struct task *t = &r->model.tasks[k];

		if (number_taken(t->pid))
			return true;
		for (size_t i = 1; i < t->nthreads; i++)
			if (number_taken(t->threads[i].tid))
				return true;
	}
	return false;
}

enum { SOON = 1000 };

/* Where no program is soon: below the limit, or where numbers begin once more. */
enum { ASIDE = 1000, FIRST_NUMBER = 400 };

/*
 * Numbers are given out in order: one that comes soon is free now, and taken when the image has come. /proc/loadavg ends with the number given out last:
 * `0.20 0.18 0.12 1/80 11206`
 */
static bool
taken_soon(const struct restart *r)
{
	char *text, *last;
	int64_t given = INT64_MAX;
	bool soon = false;

	if (read_file(AT_FDCWD, "/proc/loadavg", &text) < 0)
		return false;
	last = strrchr(text, ' ');
	if (last != NULL)
		given = strtoll(last, NULL, 10);
	free(text);
	for (size_t k = 0; k < r->model.header.ntasks; k++)
		for (size_t i = 0; i < max_u64(r->model.tasks[k].nthreads, 1); i++) {
			int64_t id = i == 0 ? r->model.tasks[k].pid : r->model.tasks[k].threads[i].tid;

			soon |= id > given && id - given <= SOON;
		}
	return soon;
}

/* --- clocks */

static int64_t
own_offset(const char *clock)
{
	int self = proc_open(getpid());
	int64_t offset = self < 0 ? 0 : proc_timens_offset(self, clock);

	close_fd(&self);
	return offset;
}

/* What to add to the kernel's clock, which is `own` behind ours, so that it goes on where the image's stood still. */
static int64_t
needed_offset(clockid_t clock, int64_t own, uint64_t image_ns)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return (int64_t)image_ns - ((int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec - own);
}

static void
split(int64_t ns, int64_t *s, int64_t *rest)
{
	*s = ns / 1000000000;
	*rest = ns % 1000000000;
	if (*rest < 0) {
		--*s;
		*rest += 1000000000;
	}
}

enum { STEP_MAX_S = 60 };

/*
 * For how long the image was on its way, as the wall clocks say, where it came while the program ran on: so much later it is there. What they cannot
 * say, or would not say of the same time, is 0.
 */
static int64_t
on_its_way(const struct image_header *h)
{
	struct timespec ts;
	int64_t ns;

	clock_gettime(CLOCK_REALTIME, &ts);
	ns = (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec - (int64_t)h->realtime_ns;
	return h->rounds && ns > 0 && ns < STEP_MAX_S * 1000000000LL ? ns : 0;
}

/* How far the clocks of the program are behind those of the image; in the machine's time if it gets none of its own. */
static int64_t
clocks_lag(const struct restart *r)
{
	const struct image_header *h = &r->model.header;
	/* /proc tells what children get: that is ours as well where we are such a child. */
	int64_t monotonic = r->mode == PID_NS ? own_offset("monotonic") : r->our_clock_ns[0];
	int64_t boottime = r->mode == PID_NS ? own_offset("boottime") : r->our_clock_ns[1];

	return max_i64(needed_offset(CLOCK_MONOTONIC, monotonic, h->monotonic_ns) - r->clock_ns[0], needed_offset(CLOCK_BOOTTIME, boottime, h->boottime_ns) - r->clock_ns[1]);
}

static bool
clock_goes_back(const struct restart *r)
{
	return needed_offset(CLOCK_MONOTONIC, 0, r->model.header.monotonic_ns) > 0;
}

static int
no_clock(const struct restart *r, int err)
{
	if (!clock_goes_back(r))
		return 0;
	return fail(EPERM, "CLOCK_MONOTONIC would go back for the program, and a time namespace cannot be "
	    "had: %s (kernel 5.6 and CAP_SYS_ADMIN, or user namespaces, are needed)", strerror(err));
}

/* The children of this process will live in a time namespace with the image's clocks. */
static int
enter_time(struct restart *r)
{
	const struct image_header *h = &r->model.header;
	int64_t ms, mns, bs, bns, later = on_its_way(h);
	int64_t monotonic, boottime;
	char text[128];
	int err;

	r->clock_ns[0] = r->our_clock_ns[0] = own_offset("monotonic");
	r->clock_ns[1] = r->our_clock_ns[1] = own_offset("boottime");
	monotonic = needed_offset(CLOCK_MONOTONIC, r->our_clock_ns[0], h->monotonic_ns) + later;
	boottime = needed_offset(CLOCK_BOOTTIME, r->our_clock_ns[1], h->boottime_ns) + later;
	if (!kfeat(KFEAT_time_namespaces))
		return no_clock(r, ENOSYS);
	split(monotonic, &ms, &mns);
	split(boottime, &bs, &bns);
	if (unshare(CLONE_NEWTIME) < 0)
		return no_clock(r, errno);
	snprintf(text, sizeof(text), "monotonic %" PRId64 " %" PRId64 "\nboottime %" PRId64 " %" PRId64 "\n",
	    ms, mns, bs, bns);
	err = write_file(AT_FDCWD, "/proc/self/timens_offsets", text);
	if (err < 0)
		return no_clock(r, -err);
	r->clock_ns[0] = monotonic;
	r->clock_ns[1] = boottime;
	return 0;
}

enum { WAIT_MAX_S = 10, SAID_NS = 100000000 };

/* The program looked at them until it was stopped: they must not be behind that. */
static int
wait_for_clocks(const struct restart *r)
{
	int64_t lag = clocks_lag(r);
	struct timespec ts = {lag / 1000000000, lag % 1000000000};

	if (lag <= 0)
		return 0;
	if (ts.tv_sec >= WAIT_MAX_S)
		return fail(ETIME, "CLOCK_MONOTONIC would go back by %" PRId64 " s for the program: restart began so much later than ckpt (start both "
		    "together, or use ckpt --to)", (int64_t)ts.tv_sec);
	if (lag > SAID_NS)
		note("the program's clocks are waited for, for %.1f s: restart began later than ckpt", (double)lag / 1e9);
	while (nanosleep(&ts, &ts) < 0 && errno == EINTR)
		;
	return 0;
}

/* --- namespaces */

static int
one_id(const struct restart *r)
{
	const struct creds *first = &r->model.tasks[0].creds;

	for (size_t k = 0; k < r->model.header.ntasks; k++)
		for (int i = 0; i < 4; i++) {
			const struct creds *c = &r->model.tasks[k].creds;

			if (r->model.tasks[k].zombie || (c->uid[i] == first->uid[0] && c->gid[i] == first->gid[0]))
				continue;
			return fail(EPERM, "the program has several user or group IDs, which only root can give "
			    "it again");
		}
	return 0;
}

static int
map_ids(const struct restart *r, uid_t uid, gid_t gid)
{
	const struct creds *c = &r->model.tasks[0].creds;
	char map[64];
	int err;

	err = write_file(AT_FDCWD, "/proc/self/setgroups", "deny");
	snprintf(map, sizeof(map), "%" PRId64 " %u 1", c->uid[1], uid);
	if (err == 0)
		err = write_file(AT_FDCWD, "/proc/self/uid_map", map);
	snprintf(map, sizeof(map), "%" PRId64 " %u 1", c->gid[1], gid);
	if (err == 0)
		err = write_file(AT_FDCWD, "/proc/self/gid_map", map);
	return err < 0 ? fail(EPERM, "user namespace: IDs cannot be mapped: %s", strerror(-err)) : 0;
}

static int
enter_user(struct restart *r)
{
	uid_t uid = geteuid();
	gid_t gid = getegid();
	int err = one_id(r);

	if (err < 0)
		return err;
	if (!kfeat(KFEAT_user_namespaces) || unshare(CLONE_NEWUSER) < 0)
		return fail(EPERM, "the PIDs of the image cannot be given to the program: user namespaces are not "
		    "permitted here, nor is CAP_CHECKPOINT_RESTORE there (as root: sysctl "
		    "user.max_user_namespaces=10000, kernel.unprivileged_userns_clone=1 or "
		    "kernel.apparmor_restrict_unprivileged_userns=0; or --pid=new for a program of one "
		    "thread that does not mind)");
	r->own_userns = true;
	err = map_ids(r, uid, gid);
	if (err == 0 && r->model.tasks[0].creds.ngroups > 1)
		note("pid %" PRId64 ": its supplementary groups cannot be kept, and setuid programs that it "
		     "starts gain nothing", r->model.tasks[0].pid);
	return err;
}

static int64_t
highest_number(const struct restart *r)
{
	int64_t highest = 0;

	for (size_t k = 0; k < r->model.header.ntasks; k++) {
		const struct task *t = &r->model.tasks[k];

		highest = max_i64(highest, t->pid);
		for (size_t i = 0; i < t->nthreads; i++)
			highest = max_i64(highest, t->threads[i].tid);
	}
	return highest;
}

/* The next number that is given out in this namespace, if it is free. */
static void
count_from(int64_t number)
{
	char text[24];

	snprintf(text, sizeof(text), "%" PRId64, number);
	write_file(AT_FDCWD, "/proc/sys/kernel/ns_last_pid", text);
}

void
place_aside(const struct restart *r, bool on)
{
	int64_t highest = highest_number(r), limit;

	/* Nobody else is in it. */
	if (r->mode != PID_NS || proc_read_number(AT_FDCWD, "/proc/sys/kernel/pid_max", 10, &limit) < 0)
		return;
	if (on)
		count_from(highest < limit / 2 ? limit - ASIDE : FIRST_NUMBER);
	else
		count_from(highest);
}

/* PIDs above this system's limit: since 6.14 each PID namespace has its own. */
static void
raise_pid_max(const struct restart *r)
{
	int64_t highest = highest_number(r), limit;
	char text[24];

	/* Our own threads are not to take numbers of the image. */
	count_from(highest);
	if (proc_read_number(AT_FDCWD, "/proc/sys/kernel/pid_max", 10, &limit) < 0 || highest < limit)
		return;
	snprintf(text, sizeof(text), "%" PRId64, highest + 1);
	write_file(AT_FDCWD, "/proc/sys/kernel/pid_max", text);
}

/* Objects of System V get their IDs in a namespace where none are taken. */
static int
enter_ipc(const struct restart *r)
{
	if (!ipc_wanted(r) || unshare(CLONE_NEWIPC) == 0)
		return 0;
	return fail(EPERM, "the program has objects of System V IPC, which takes an IPC namespace: %s (CAP_SYS_ADMIN, "
	    "or user namespaces with --pid=ns)", strerror(errno));
}

static int
begin_init(struct restart *r)
{
	/* Until the program runs nothing must be left behind. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (r->opt.detach)
		setsid();
	/* Mounts of the host go on to appear; what is mounted here stays here. */
	if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_SLAVE | MS_REC, NULL) < 0)
		return fail(EPERM, "mount namespaces are not permitted here: %s", strerror(errno));
	if (mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0)
		note("/proc cannot be mounted (%s): the program sees that of the host", strerror(errno));
	raise_pid_max(r);
	return fault(FAULT_placed);
}

static int
enter_namespaces(struct restart *r)
{
	int err, sv[2];
	pid_t init;

	if (r->model.tasks[0].pid == 1)
		return fail(ENOTSUP, "pid 1: the first process of a container cannot be restarted as such");
	r->privileged = have_cap(CAP_SYS_ADMIN) && ids_exist(r);
	err = r->privileged ? 0 : enter_user(r);
	if (err < 0)
		return err;
	if (unshare(CLONE_NEWPID) < 0)
		return fail(EPERM, "PID namespaces are not permitted here: %s", strerror(errno));
	err = enter_ipc(r);
	if (err == 0)
		err = enter_time(r);
	if (err < 0)
		return err;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv) < 0)
		return fail_errno("socketpair");
	init = fork();
	if (init < 0)
		return fail_errno("fork");
	if (init > 0) {
		close(sv[1]);
		/* The image is the other one's; a pipe must break when that one dies. */
		close_fd(&r->source.fd);
		lazy_leave(r);
		earlier_drop(r);
		exit(front_outside(r, init, sv[0]));
	}
	close(sv[0]);
	r->report_fd = sv[1];
	return begin_init(r);
}

static int
too_many_for_new(const struct restart *r)
{
	const struct task *t = &r->model.tasks[0];
	size_t tasks = r->model.header.ntasks;

	return fail(EPERM, "--pid=new: the program has %zu %s, which know each other by their numbers",
	    tasks > 1 ? tasks : t->nthreads, tasks > 1 ? "processes" : "threads");
}

static bool
are_several(const struct restart *r)
{
	return r->model.tasks[0].nthreads > 1 || r->model.header.ntasks > 1;
}

int
place_again(struct restart *r, bool had_ipc)
{
	if (r->mode == PID_NEW && are_several(r))
		return too_many_for_new(r);
	if (r->own_userns && one_id(r) < 0)
		return -EPERM;
	if (ipc_wanted(r) && !had_ipc)
		return fail(EAGAIN, "the program has come to System V IPC while its memory was sent, for which it needs another namespace: move it once more");
	return wait_for_clocks(r);
}

int
place(struct restart *r)
{
	const struct task *t = &r->model.tasks[0];
	bool can = kfeat(KFEAT_set_tid) && ids_exist(r) &&
	    (have_cap(CAP_CHECKPOINT_RESTORE) || have_cap(CAP_SYS_ADMIN));

	r->mode = r->opt.pid_mode;
	r->report_fd = -1;
	/* What it starts gets its numbers at home, so here they must be free. */
	if (is_away(r) && r->mode != PID_AUTO && r->mode != PID_NS)
		return fail(EINVAL, "--pid: its files are at home, and so are its numbers: only ns");
	if (is_away(r))
		r->mode = PID_NS;
	if (r->mode == PID_NEW) {
		if (are_several(r))
			return too_many_for_new(r);
		return enter_ipc(r) < 0 || enter_time(r) < 0 ? -EPERM : 0;
	}
	if (r->mode == PID_SAME && !can)
		return fail(EPERM, "--pid=same: CAP_CHECKPOINT_RESTORE is needed to choose PIDs");
	if (r->mode == PID_SAME && place_taken(r))
		return fail(EBUSY, "--pid=same: PID %" PRId64 " (or that of a thread) is taken here", t->pid);
	if (r->mode == PID_AUTO)
		r->mode = can && !place_taken(r) && !(taken_soon(r) && have_cap(CAP_SYS_ADMIN)) ? PID_SAME : PID_NS;
	if (r->mode == PID_NS)
		return enter_namespaces(r);
	return enter_ipc(r) < 0 ? -EPERM : enter_time(r);
}
