/*
 * A process whose files have stayed at home (ckpt -s). It is made like any other, but what it has open only keeps the numbers, and a filter stops the
 * calls that need home. Who answers them is `rexec-sys away`, which we become: so it is the tracer of what we have built.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "away_filter.h"
#include "fault.h"
#include "front.h"
#include "handover.h"
#include "io.h"
#include "log.h"

#ifndef SECCOMP_FILTER_FLAG_TSYNC_ESRCH
#define SECCOMP_FILTER_FLAG_TSYNC_ESRCH (1UL << 4)
#endif

bool
is_away(const struct restart *r)
{
	return r->model.header.home != NULL;
}

/* --- the filter */

static void *
let_one_through(void *arg)
{
	int listener = *(int *)arg;
	struct seccomp_notif n = {0};
	struct seccomp_notif_resp answer = {.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE};

	while (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &n) < 0)
		if (errno != EINTR && errno != ENOENT)
			return NULL;
	answer.id = n.id;
	ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &answer);
	return NULL;
}

/* It is ours; the process is not to have it. Closing it is a call that the filter stops already: somebody has to let it through. */
static int
take_listener(struct built *b, int theirs)
{
	struct arch_call call = {SYS_close, {(uint64_t)theirs}};
	int pidfd = pidfd_open_(b->pid), err = 0;
	struct tracee *leader = &b->threads[0];
	pthread_t helper;
	int64_t result;

	b->listener = pidfd < 0 ? -1 : (int)syscall(SYS_pidfd_getfd, pidfd, theirs, 0);
	close_fd(&pidfd);
	if (b->listener < 0)
		return fail_errno("pid %d: the filter's listener", b->pid);
	if (pthread_create(&helper, NULL, let_one_through, &b->listener) != 0)
		return fail(EAGAIN, "out of threads");
	err = tracee_call_at(leader, &leader->regs, b->syscall_ip, &call, &result);
	if (err < 0)
		pthread_cancel(helper);
	pthread_join(helper, NULL);
	return err == 0 && result < 0 ? fail((int)-result, "pid %d: the filter's listener: %s", b->pid, strerror((int)-result)) : err;
}

int
away_filter_install(struct built *b)
{
	const unsigned long flags = SECCOMP_FILTER_FLAG_NEW_LISTENER | AWAY_FILTER_WAIT_KILLABLE |
	    (b->nthreads > 1 ? SECCOMP_FILTER_FLAG_TSYNC | SECCOMP_FILTER_FLAG_TSYNC_ESRCH : 0);
	struct sock_filter code[AWAY_FILTER_MAX];
	uint64_t prog[2] = {away_filter(code, true), 0}; /* struct sock_fprog, whose second member is a pointer */
	struct script s = {0};
	uint64_t at = script_data(&s, code, prog[0] * sizeof(code[0]));
	int64_t listener = -1;
	int err;

	prog[1] = loop_data(&b->loop) + at;
	script_add(&s, "no_new_privs", SYS_prctl, PR_SET_NO_NEW_PRIVS, 1);
	script_add(&s, "filter (Linux 5.19)", SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, script_data(&s, prog, sizeof(prog)));
	script_data_arg(&s, 2);
	err = loop_run(&b->loop, &b->threads[0], &s);
	if (err == 0)
		listener = s.calls[1].result;
	script_fini(&s);
	return err < 0 ? err : take_listener(b, (int)listener);
}

/* --- we become rexec-sys */

static int
add_process(const struct restart *r, struct handover *h, const struct built *b)
{
	const struct objects *o = &r->model.objects;
	struct handover_process *p = ARRAY_ADD(h->processes, h->nprocesses);
	const struct task *t = b->task;

	if (p == NULL)
		return -ENOMEM;
	*p = (struct handover_process){.pid = b->pid, .listener = b->listener, .program = o->files[t->exe].path};
	for (size_t i = 0; i < b->nthreads; i++) {
		struct handover_thread *th = ARRAY_ADD(p->threads, p->nthreads);

		if (th == NULL)
			return -ENOMEM;
		*th = (struct handover_thread){b->threads[i].tid, t->threads[i].tid};
	}
	for (size_t i = 0; i < t->nfds; i++) {
		struct handover_fd *fd = ARRAY_ADD(p->fds, p->nfds);

		if (fd == NULL)
			return -ENOMEM;
		*fd = (struct handover_fd){t->fds[i].fd, strcmp(o->ofds[t->fds[i].ofd].path, "anon_inode:[eventpoll]") == 0};
	}
	return 0;
}

int
away_go(struct restart *r)
{
	struct handover h = {.id = r->model.header.id, .address = r->opt.home != NULL ? (char *)r->opt.home : r->model.header.home,
	    .key = (char *)r->opt.key, .listen = -1, .in = -1, .out = -1, .image = r->source.fd, .report = r->report_fd, .detached = r->opt.detach};
	char more;
	int err = 0;

	if (r->source.is_channel && channel_read_data(&r->source.channel, &more, 1) != 0)
		return fail(EPROTO, "%s: something follows the image", r->source.name);
	if (strcmp(h.address, "-") == 0) {
		if (!r->source.is_channel)
			return fail(EPROTO, "%s: its home was reached by the connection that brought it, which is no more (--home tells another way)",
			    r->source.name);
		h.in = r->source.channel.in, h.out = r->source.channel.out, h.image = -1;
	}
	err = release_arm(r);
	if (err == 0)
		err = front_announce(r, r->built[0].pid);
	for (size_t i = 0; i < r->model.header.ntasks && err == 0; i++)
		if (!r->model.tasks[i].zombie)
			err = add_process(r, &h, &r->built[i]);
	if (err == 0)
		err = fault(FAULT_parked);
	if (err == 0) {
		build_keep_capabilities(true);
		err = handover_exec(&h, "away");
	}
	handover_drop(&h);
	return err;
}
