/*
 * A process that has a copy of every userfaultfd. Without it the end of the fetcher would be the end of the waiting: what a program then touches would be zero,
 * and nobody would know. It ends quietly when told so; otherwise it ends the programs, and keeps their memories waiting until they are gone.
 */
#include <errno.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fetch.h"
#include "io.h"
#include "lazy_control.h"
#include "log.h"
#include "proc.h"

void
guard_add(int guard, int uffd)
{
	if (guard >= 0)
		lazy_tell(guard, 'U', "", 0, &uffd, 1);
}

void
guard_settle(int guard, bool detached)
{
	if (guard >= 0)
		lazy_tell(guard, detached ? 'R' : 'S', "", 0, NULL, 0);
}

void
guard_done(int guard)
{
	if (guard >= 0)
		lazy_tell(guard, 'D', "", 0, NULL, 0);
}

void
guard_kill(int guard)
{
	if (guard >= 0)
		lazy_tell(guard, 'K', "", 0, NULL, 0);
}

/* --- the process */

/* It has a memory that waits for pages, as smaps tells. */
static bool
waits_for_pages(int proc)
{
	struct proc_maps maps = {0};
	bool waits = false;

	if (proc_read_maps(proc, true, &maps) < 0)
		return false;
	for (size_t i = 0; i < maps.n; i++)
		waits |= maps.map[i].flags != NULL && strstr(maps.map[i].flags, "um") != NULL;
	proc_maps_fini(&maps);
	return waits;
}

/* Its descendants that wait for pages, and it. */
static void
kill_tree(pid_t pid)
{
	int proc = proc_open(pid), *children = NULL;
	size_t n = 0;

	if (proc < 0)
		return;
	if (proc_children(proc, pid, &children, &n) == 0)
		for (size_t i = 0; i < n; i++)
			kill_tree(children[i]);
	if (waits_for_pages(proc))
		kill(pid, SIGKILL);
	free(children);
	close(proc);
}

/* Of those whom nobody knows, such as children whose parents have gone: who touches a page that is not there gets SIGBUS. */
static void
poison(int **uffds, size_t *n, int uffd)
{
	struct uffd_msg msg;
	int *slot;

	while (read(uffd, &msg, sizeof(msg)) == sizeof(msg)) {
		if (msg.event == UFFD_EVENT_FORK) {
			slot = ARRAY_ADD(*uffds, *n);
			if (slot != NULL)
				*slot = (int)msg.arg.fork.ufd;
		}
#ifdef UFFDIO_POISON
		if (msg.event == UFFD_EVENT_PAGEFAULT) {
			struct uffdio_poison p = {.range = {page_down(msg.arg.pagefault.address), PAGE_BYTES}};

			ioctl(uffd, UFFDIO_POISON, &p);
		}
#endif
	}
}

static void
end_them(const struct fetcher *f, int **uffds, size_t *n)
{
	bool left = true;

	for (size_t i = 0; i < f->nmemories; i++) {
		const struct memory *m = f->memories[i];

		if (m->uffd < 0 || memory_is_gone(m->uffd))
			continue; /* it executes something else by now */
		/* Its number is its own as long as it has not ended. */
		if (m->pid > 0 && !m->ended && poll(&(struct pollfd){m->pidfd, POLLIN, 0}, 1, 0) == 0)
			kill_tree(m->pid);
		if (m->pidfd >= 0)
			pidfd_kill(m->pidfd, SIGKILL);
	}
	while (left) {
		left = false;
		for (size_t i = 0; i < *n; i++)
			if (!memory_is_gone((*uffds)[i])) {
				left = true;
				poison(uffds, n, (*uffds)[i]);
			}
		poll(NULL, 0, left ? 50 : 0);
	}
}

static void
guard(const struct fetcher *f, int from)
{
	struct lazy_message msg = {0};
	int *uffds = NULL;
	size_t n = 0;

	prctl(PR_SET_NAME, "pages-guard");
	for (size_t i = 0; i < f->nmemories; i++) {
		int *slot = f->memories[i]->uffd >= 0 ? ARRAY_ADD(uffds, n) : NULL;

		if (slot != NULL)
			*slot = f->memories[i]->uffd;
	}
	while (lazy_hear(from, &msg) > 0 && msg.what != 'D' && msg.what != 'K') {
		int *slot = msg.nfds > 0 ? ARRAY_ADD(uffds, n) : NULL;

		if (msg.what != 'U')
			io_leave_stdio(msg.what == 'R');
		if (slot != NULL)
			*slot = msg.fds[0];
		msg.what = 0;
		/* Those that are no more. */
		for (size_t i = 0; i < n; i++)
			if (memory_is_gone(uffds[i])) {
				close(uffds[i]);
				uffds[i--] = uffds[--n];
			}
	}
	if (msg.what == 0)
		fail(EPIPE, "pid %d: ended, as who fetched its pages was killed", f->first);
	if (msg.what != 'D')
		end_them(f, &uffds, &n);
	_exit(0);
}

int
guard_start(const struct fetcher *f)
{
	int fds[2];
	pid_t pid;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) < 0)
		return fail_errno("socketpair");
	pid = fork();
	if (pid == 0) {
		close(fds[0]);
		close(f->control);
		if (f->link.in >= 0)
			close(f->link.in);
		if (f->link.out >= 0 && f->link.out != f->link.in)
			close(f->link.out);
		guard(f, fds[1]);
	}
	close(fds[1]);
	if (pid < 0) {
		close(fds[0]);
		return fail_errno("fork");
	}
	return fds[0];
}
