/*
 * Registers and memory of a thread; that it has been killed shows in its end, and is nothing to tell.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#include "io.h"
#include "log.h"
#include "proc.h"
#include "run.h"

int
thread_get_regs(const struct thread *t, struct arch_regs *regs)
{
	int err;

	log_hush(1);
	err = tracee_get_regs(t->tid, regs);
	log_hush(-1);
	return err;
}

int
thread_set_regs(const struct thread *t, const struct arch_regs *regs)
{
	int err;

	log_hush(1);
	err = tracee_set_regs(t->tid, regs);
	log_hush(-1);
	return err;
}

static int
copy_memory(pid_t tid, taddr at, void *data, size_t len, bool writing)
{
	struct iovec ours = {data, len}, theirs = {(void *)(uintptr_t)at, len};
	ssize_t n = writing ? process_vm_writev(tid, &ours, 1, &theirs, 1, 0) : process_vm_readv(tid, &ours, 1, &theirs, 1, 0);

	return n == (ssize_t)len ? 0 : -EFAULT;
}

int
thread_read(void *ctx, taddr at, void *data, size_t len)
{
	struct thread *t = ctx;

	if (at >= t->peek_at && at - t->peek_at <= t->peeked && len <= t->peeked - (at - t->peek_at)) {
		memcpy(data, t->peek + (at - t->peek_at), len);
		return 0;
	}
	return copy_memory(t->tid, at, data, len, false);
}

int
thread_write(void *ctx, taddr at, void *data, size_t len)
{
	struct thread *t = ctx;

	t->peeked = 0;
	return copy_memory(t->tid, at, data, len, true);
}

int
thread_read_status(const struct thread *t, struct proc_status *st)
{
	int proc = proc_open(t->tid), err = proc < 0 ? proc : proc_read_status(proc, st);

	close_fd(&proc);
	return err;
}

char *
thread_string(struct thread *t, taddr at)
{
	size_t len = 0, room = 0;
	char *text = NULL;

	/* Up to the next page, or as much as an argument may have. */
	while (len <= 128 << 10) {
		size_t step = min_u64(page_up(at + len + 1) - (at + len), 1024);
		char *more = realloc(text, room + step), *end;

		if (more == NULL || thread_read(t, at + len, more + len, step) < 0) {
			free(more != NULL ? more : text);
			errno = more != NULL ? EFAULT : ENOMEM;
			return NULL;
		}
		text = more;
		room += step;
		if (len == 0) {
			t->peek_at = at;
			t->peeked = min_u64(step, sizeof(t->peek));
			memcpy(t->peek, text, t->peeked);
		}
		end = memchr(text + len, '\0', step);
		if (end != NULL)
			return text;
		len += step;
	}
	free(text);
	errno = ENAMETOOLONG;
	return NULL;
}
