/*
 * Memory that comes when it is touched: of an image whose pages are at a pagesrv (ckpt -m), or of an image file with --lazy. Here the processes get what they
 * need at once, and a userfaultfd each; these go to `pagesrv fetch`, which is started first of all, so that it is connected when they are built.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fault.h"
#include "handover.h"
#include "io.h"
#include "kfeat.h"
#include "lazy_control.h"
#include "lazy_ranges.h"
#include "log.h"
#include "page_file.h"
#include "page_plan.h"
#include "record.h"
#include "restart.h"

struct lazy_restart {
	int control;
	pid_t fetcher;
	bool handed_over;       /* what is to be told the other side is its to tell */
	bool by_channel;        /* it uses the connection that the image came by, which lasts as long as we do */
	bool eager;             /* all is fetched before it runs */
	struct page_file *file; /* --lazy: the image, for what is needed at once */
	struct page_cache *cache;
	struct page_range **ranges; /* of each task: what comes later */
	size_t *nranges;
};

bool
lazy_is_elsewhere(const struct restart *r)
{
	return r->model.header.pages != NULL;
}

/* --- the right to wait for pages also when the kernel touches them */

/* A userfaultfd with all that is needed, or a negative errno. */
static int
try_userfaultfd(uint64_t features)
{
	struct uffdio_api api = {.api = UFFD_API, .features = features};
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK), device, err;

	if (fd < 0 && errno == EPERM && (device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC)) >= 0) {
		fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
		close(device);
	}
	if (fd < 0)
		return -errno;
	err = ioctl(fd, UFFDIO_API, &api) < 0 ? -errno : 0;
	close(fd);
	return err;
}

/* Why not, or NULL. */
static const char *
why_not(void)
{
	const uint64_t changes = UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP;
	int err = kfeat(KFEAT_userfaultfd) ? try_userfaultfd(changes | UFFD_FEATURE_EVENT_FORK) : -ENOSYS;

	if (err == 0)
		return NULL;
	if (err == -ENOSYS || err == -EINVAL)
		return "this kernel has no userfaultfd (CONFIG_USERFAULTFD)";
	if (try_userfaultfd(changes) == 0)
		return "to follow a process that forks takes CAP_SYS_PTRACE";
	return "to wait for pages that the kernel touches takes CAP_SYS_PTRACE (which also follows forks)";
}

/* --- which pages, and whose */

static const struct task *
find_task(const struct restart *r, int64_t pid)
{
	for (size_t i = 0; i < r->model.header.ntasks; i++)
		if (r->model.tasks[i].pid == pid)
			return &r->model.tasks[i];
	return NULL;
}

/* [start, end) of t: its own pages, or those of the task that it has them from. */
static int
add_parts(const struct restart *r, struct page_task *out, const struct task *t, taddr start, taddr end)
{
	int err = 0;

	for (size_t i = 0; i <= t->ninherits && start < end && err == 0; i++) {
		const struct page_range *in = i < t->ninherits ? &t->inherits[i] : NULL;
		const struct task *parent = in != NULL ? find_task(r, t->ppid) : NULL;
		taddr from, to;
		struct page_part *p;

		if (in != NULL && (in->end <= start || parent == NULL))
			continue;
		from = in != NULL ? max_u64(start, min_u64(in->start, end)) : end;
		if (from > start) {
			p = ARRAY_ADD(out->parts, out->nparts);
			if (p == NULL)
				return -ENOMEM;
			*p = (struct page_part){start, from, t->pid};
		}
		to = in != NULL ? min_u64(in->end, end) : end;
		if (from < to)
			err = add_parts(r, out, parent, from, to);
		start = max_u64(from, to);
	}
	return err;
}

static int
make_plan(struct restart *r, struct page_plan *plan)
{
	size_t n = r->model.header.ntasks;
	int err = 0;

	for (size_t i = 0; i < n && err == 0; i++) {
		const struct task *t = &r->model.tasks[i];
		struct page_task *out = t->zombie ? NULL : ARRAY_ADD(plan->tasks, plan->ntasks);

		if (t->zombie)
			continue;
		if (out == NULL)
			return -ENOMEM;
		*out = (struct page_task){.number = t->pid, .memory = -1, .pagemap = -1};
		for (size_t k = 0; k < r->lazy->nranges[i] && err == 0; k++)
			err = add_parts(r, out, t, r->lazy->ranges[i][k].start, r->lazy->ranges[i][k].end);
	}
	return err;
}

static int
find_ranges(struct restart *r)
{
	size_t n = r->model.header.ntasks;
	int err = 0;

	r->lazy->ranges = calloc(n + 1, sizeof(struct page_range *));
	r->lazy->nranges = calloc(n + 1, sizeof(size_t));
	if (r->lazy->ranges == NULL || r->lazy->nranges == NULL)
		return -ENOMEM;
	for (size_t i = 0; i < n && err == 0; i++) {
		const struct task *t = &r->model.tasks[i];

		if (lazy_is_elsewhere(r)) {
			r->lazy->ranges[i] = t->lazy;
			r->lazy->nranges[i] = t->nlazy;
		} else if (!t->zombie) {
			err = lazy_ranges(t, &r->lazy->ranges[i], &r->lazy->nranges[i]);
		}
	}
	return err;
}

/* --- the one who fetches them */

/* Where a server of our own can be asked how it stands. */
static char *
own_address(const struct restart *r)
{
	const char *dir = getenv("XDG_RUNTIME_DIR");
	char *text = NULL;

	if (dir == NULL || access(dir, W_OK) < 0)
		dir = getenv("TMPDIR") != NULL ? getenv("TMPDIR") : "/tmp";
	return asprintf(&text, "unix:%s/pms-pages.%d.%.8s", dir, (int)getpid(), r->model.header.id) < 0 ? NULL : text;
}

static int
start(struct restart *r)
{
	struct page_plan plan = {.id = r->model.header.id, .listen = -1, .in = -1, .out = -1, .retry = r->opt.retry_s, .eager = r->lazy->eager, .demand_only = r->opt.demand_only, .key = (char *)r->opt.key};
	char *own = NULL, name[32];
	int sv[2], err = make_plan(r, &plan);
	pid_t pid;

	if (err == 0 && socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv) < 0)
		err = fail_errno("socketpair");
	if (err < 0)
		goto out;
	plan.address = r->opt.pages != NULL ? (char *)r->opt.pages : r->model.header.pages;
	if (!lazy_is_elsewhere(r)) {
		plan.address = own = own_address(r);
		snprintf(name, sizeof(name), "/proc/self/fd/%d", r->source.fd);
		plan.image = name; /* whatever becomes of its path */
		err = own == NULL ? -ENOMEM : 0;
	} else if (strcmp(plan.address, "-") == 0) {
		if (!r->source.is_channel)
			err = fail(EPROTO, "%s: its pages were reached by the connection that brought it, which is no more (--pages tells another way)", r->source.name);
		else
			plan.in = dup(r->source.channel.in), plan.out = dup(r->source.channel.out);
	}
	plan.control = sv[1];
	pid = err < 0 ? -1 : fork();
	if (pid == 0) {
		const int64_t fds[] = {plan.control, plan.in, plan.out, plan.image != NULL ? r->source.fd : -1};

		_exit(exit_status(handover_become("pagesrv", "fetch", &record_page_plan, &plan, fds, ARRAY_LEN(fds))));
	}
	if (err == 0 && pid < 0)
		err = fail_errno("fork");
	close(sv[1]);
	r->lazy->fetcher = pid;
	r->lazy->by_channel = plan.in >= 0;
	r->lazy->control = sv[0];
	if (err == 0)
		restart_status(r, "pages %s", plan.address);
	if (err == 0)
		debug(LOG_VERBOSE, "pages are at %s", plan.address);
out:
	if (plan.in >= 0)
		close((int)plan.in), close((int)plan.out);
	for (size_t i = 0; i < plan.ntasks; i++)
		free(plan.tasks[i].parts);
	free(plan.tasks);
	free(own);
	return err == -ENOMEM ? fail(ENOMEM, "out of memory") : err;
}

static int
open_file(struct restart *r)
{
	int fd = fcntl(r->source.fd, F_DUPFD_CLOEXEC, 3);
	int err = fd < 0 ? fail_errno("%s", r->source.name) : page_file_open(&r->lazy->file, fd, r->source.name);

	if (err < 0)
		return err;
	r->lazy->cache = page_cache_new(r->lazy->file, 8);
	return r->lazy->cache == NULL ? fail(ENOMEM, "out of memory") : 0;
}

int
lazy_begin(struct restart *r)
{
	const char *why;
	int err = 0;

	if (!r->opt.lazy && !lazy_is_elsewhere(r))
		return 0;
	if (r->model.header.rounds || r->model.header.parent != NULL) {
		note("%s: its memory %s: all of it is read before it runs", r->source.name, r->model.header.rounds ? "came in rounds" : "is in several images");
		return 0;
	}
	if (!lazy_is_elsewhere(r) && (r->source.total == 0 || image_wants_end(r->reader))) {
		note("%s: is a stream, which can only be read as a whole: all of its memory is read before it runs", r->source.name);
		return 0;
	}
	why = why_not();
	if (why != NULL)
		note("all of its memory is fetched before it runs: %s", why);
	if (why != NULL && !lazy_is_elsewhere(r))
		return 0;
	r->lazy = calloc(1, sizeof(*r->lazy));
	if (r->lazy == NULL)
		return fail(ENOMEM, "out of memory");
	r->lazy->control = -1;
	r->lazy->eager = why != NULL;
	if (!lazy_is_elsewhere(r))
		err = open_file(r);
	if (err == 0 && find_ranges(r) < 0)
		err = fail(ENOMEM, "out of memory");
	return err < 0 ? err : start(r);
}

/* --- while they are built */

/* Pages of a task at [at, end) into b. */
static int
fill_part(struct restart *r, struct built *b, int64_t task, taddr at, taddr end)
{
	struct page_piece piece;
	const unsigned char *content;
	int found, err = 0;

	while (err == 0 && at < end && (found = page_cache_find(r->lazy->cache, task, at, end, &piece)) != 0) {
		const struct page_run *last = &piece.runs[piece.nruns - 1];

		err = found < 0 ? found : page_cache_content(r->lazy->cache, &piece, &content);
		if (err == 0)
			err = fill_piece(r, b, piece.runs, piece.nruns, content, at, end);
		at = last->addr + last->npages * PAGE_BYTES;
	}
	return err;
}

/* It needs these at once. Those that it has from its parent are there, unless they come later there. */
static int
fill_range(struct restart *r, struct built *b, taddr start, taddr end)
{
	struct page_task parts = {0};
	int err = add_parts(r, &parts, b->task, start, end);

	for (size_t i = 0; i < parts.nparts && err == 0; i++) {
		const struct page_part *p = &parts.parts[i];
		size_t owner = (size_t)(find_task(r, p->task) - r->model.tasks);

		if (p->task == b->task->pid) {
			err = fill_part(r, b, p->task, p->start, p->end);
			continue;
		}
		for (size_t k = 0; k < r->lazy->nranges[owner] && err == 0; k++) {
			const struct page_range *later = &r->lazy->ranges[owner][k];

			err = fill_part(r, b, p->task, max_u64(p->start, later->start), min_u64(p->end, later->end));
		}
	}
	free(parts.parts);
	return err;
}

/* What is needed at once, from an image file: everything else than what comes later. */
int
lazy_fill(struct restart *r, struct built *b)
{
	const struct page_range *ranges = r->lazy->ranges[b - r->built];
	size_t n = r->lazy->nranges[b - r->built];
	taddr at = 0;
	int err = 0;

	for (size_t i = 0; i <= n && err == 0; i++) {
		taddr end = i < n ? ranges[i].start : ARCH_USER_END;

		if (at < end)
			err = fill_range(r, b, at, end);
		at = i < n ? max_u64(at, ranges[i].end) : at;
	}
	return err;
}

bool
lazy_from_file(const struct restart *r)
{
	return r->lazy != NULL && r->lazy->file != NULL;
}

/* A userfaultfd of the process, which does not keep it. */
static int
get_userfaultfd(struct built *b)
{
	static const char device[] = "/dev/userfaultfd";
	struct script s = {0};
	int64_t theirs;
	int fd = -1, pidfd, err;

	script_add(&s, "userfaultfd", SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	script_may_fail(&s);
	err = loop_run(&b->loop, &b->threads[0], &s);
	theirs = err == 0 ? s.calls[0].result : -1;
	script_fini(&s);
	if (err == 0 && theirs == -EPERM) {
		script_add(&s, device, SYS_openat, (uint64_t)AT_FDCWD, script_data(&s, device, sizeof(device)), O_RDWR | O_CLOEXEC);
		script_data_arg(&s, 1);
		err = loop_run(&b->loop, &b->threads[0], &s);
		theirs = err == 0 ? s.calls[0].result : -1;
		script_fini(&s);
		if (err == 0) {
			uint64_t opened = (uint64_t)theirs;

			script_add(&s, device, SYS_ioctl, opened, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
			script_add(&s, device, SYS_close, opened);
			err = loop_run(&b->loop, &b->threads[0], &s);
			theirs = err == 0 ? s.calls[0].result : -1;
			script_fini(&s);
		}
	}
	if (err < 0 || theirs < 0)
		return err < 0 ? err : fail((int)-theirs, "pid %d: userfaultfd: %s", b->pid, strerror((int)-theirs));
	pidfd = pidfd_open_(b->pid);
	if (pidfd >= 0)
		fd = (int)syscall(SYS_pidfd_getfd, pidfd, (int)theirs, 0);
	err = fd < 0 ? fail_errno("pid %d: userfaultfd", b->pid) : 0;
	close_fd(&pidfd);
	script_add(&s, "userfaultfd", SYS_close, (uint64_t)theirs);
	if (err == 0)
		err = loop_run(&b->loop, &b->threads[0], &s);
	script_fini(&s);
	if (err < 0)
		close_fd(&fd);
	return err < 0 ? err : fd;
}

/* As long as it has all rights of ours. */
int
lazy_prepare(struct restart *r, struct built *b)
{
	if (r->lazy == NULL || r->lazy->eager)
		return 0;
	b->uffd = get_userfaultfd(b);
	return b->uffd < 0 ? b->uffd : 0;
}

/* --- when all are built */

static int
hand_over(struct restart *r, struct built *b)
{
	int fds[2] = {r->lazy->eager ? b->mem : b->uffd, pidfd_open_(b->pid)};
	int err = fds[1] < 0 ? fds[1] : lazy_tell(r->lazy->control, r->lazy->eager ? 'M' : 'U', "", 0, fds, 2);

	close_fd(&fds[1]);
	close_fd(&b->uffd);
	return err < 0 ? fail(ECONNRESET, "pagesrv has gone") : 0;
}

/* Its own words, or that there are none. */
static int
not_fetched(const struct lazy_message *msg, int heard)
{
	if (heard > 0 && msg->what == 'F')
		return fail(EREMOTEIO, "its pages cannot be fetched: %s", msg->text);
	return fail(ECONNRESET, "its pages cannot be fetched: pagesrv has gone");
}

int
lazy_take(struct restart *r)
{
	struct lazy_message msg = {0};
	int heard, err = fault(FAULT_parked);
	char more;

	if (err == 0 && r->source.is_channel && channel_read_data(&r->source.channel, &more, 1) != 0)
		err = fail(EPROTO, "%s: something follows the image", r->source.name);
	for (size_t i = 0; i < r->model.header.ntasks && err == 0; i++)
		if (!r->built[i].task->zombie)
			err = hand_over(r, &r->built[i]);
	r->lazy->handed_over = err == 0;
	if (err == 0 && lazy_tell(r->lazy->control, 'B', "", 0, NULL, 0) < 0)
		err = -ECONNRESET;
	/* What it has said before it went is still to be read. */
	heard = err == 0 || err == -ECONNRESET ? lazy_hear(r->lazy->control, &msg) : 0;
	if (err == 0 || err == -ECONNRESET)
		err = heard > 0 && msg.what == 'G' ? 1 : not_fetched(&msg, heard);
	return err;
}

void
lazy_leave(struct restart *r)
{
	if (r->lazy != NULL)
		close_fd(&r->lazy->control);
}

bool
lazy_failed(const struct restart *r)
{
	if (r->lazy == NULL || !r->lazy->handed_over)
		return false;
	lazy_tell(r->lazy->control, 'X', log_last(), strlen(log_last()), NULL, 0);
	return true;
}

void
lazy_linger(const struct restart *r)
{
	if (r->lazy == NULL || !r->lazy->by_channel)
		return;
	while (waitpid(r->lazy->fetcher, NULL, 0) < 0 && errno == EINTR)
		;
}

void
lazy_lets_run(const struct restart *r)
{
	if (r->lazy != NULL)
		lazy_tell(r->lazy->control, 'L', "", 0, NULL, 0);
}

void
lazy_runs(struct restart *r)
{
	uint64_t detached = r->opt.detach;

	if (r->lazy == NULL)
		return;
	lazy_tell(r->lazy->control, 'R', &detached, sizeof(detached), NULL, 0);
	close_fd(&r->lazy->control);
	page_cache_free(r->lazy->cache);
	page_file_close(r->lazy->file);
}
