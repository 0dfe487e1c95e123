/*
 * Processes that were asked for themselves (lib/pms) go on by themselves, too. So where nobody may trace, as in many containers, they can be built without
 * that: each begins as a copy of restart, takes scripts through shared memory until its address space is made, and then goes on where its image says.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "coop_abi.h"
#include "fault.h"
#include "io.h"
#include "kfeat.h"
#include "log.h"
#include "restart.h"

enum { FIRST_MS = 60000 };

/* Tried with a child that does nothing. */
static bool
may_trace(void)
{
	pid_t builder = getpid(), child = kfeat(KFEAT_ptrace) ? fork() : -1;
	bool may;

	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		syscall(SYS_close_range, 0, ~0U, 0);
		while (getppid() == builder)
			poll(NULL, 0, 1000);
		_exit(0);
	}
	if (child < 0)
		return false;
	may = ptrace(PTRACE_SEIZE, child, NULL, 0L) == 0;
	kill(child, SIGKILL);
	while (waitpid(child, NULL, __WALL) < 0 && errno == EINTR)
		;
	return may;
}

/* Threads of all of them, and helpers. */
static size_t
count_threads(const struct restart *r)
{
	size_t n = 0;

	for (size_t i = 0; i < r->model.header.ntasks; i++)
		n += max_u64(r->model.tasks[i].nthreads, 1) + 3;
	return n;
}

int
coop_choose(struct restart *r)
{
	const struct task *other = NULL;

	for (size_t i = 0; i < r->model.header.ntasks; i++)
		if (r->model.tasks[i].note == 0 && !r->model.tasks[i].zombie)
			other = &r->model.tasks[i];
	/* Whoever builds others finds out. */
	if (other != NULL && r->model.tasks[0].note == 0)
		return 0;
	if (may_trace())
		return 0;
	if (other != NULL)
		return fail(EPERM, "pid %" PRId64 ": ptrace(2) is not permitted here (a container?), and it is not linked with libpms", other->pid);
	if (r->lazy != NULL)
		return fail(EPERM, "ptrace(2) is not permitted here (a container?), and without it all memory must come first: restart it without --lazy, from a whole image");
	debug(LOG_VERBOSE, "ptrace(2) is not permitted here: they are built without it");
	return untraced_new(&r->untraced, count_threads(r), LOOP_SHARED_BYTES);
}

/* --- the first one */

void
coop_first_child(struct restart *r, size_t slot, int to)
{
	taddr at = 0;
	int mem = open("/proc/self/mem", O_RDWR | O_CLOEXEC);

	/* Only itself may look into it everywhere; and where it is to go on depends on what it has. */
	if (mem < 0 || io_send_file(to, "m", 1, mem) != 1 || read(to, &at, sizeof(at)) != sizeof(at))
		_exit(127);
	untraced_place(r->untraced, at);
	if (untraced_map(r->untraced) < 0)
		_exit(127);
	syscall(SYS_close_range, (unsigned)stock_fd(r, STOCK_END, 0), ~0U, 0);
	untraced_obey(r->untraced, slot);
	_exit(127);
}

static int
receive_memory(int from, int *mem)
{
	char byte;

	return io_receive_file(from, &byte, 1, mem) == 1 && *mem >= 0 ? 0 : fail(EIO, "the process that is to be built does not begin (open files: ulimit -n)");
}

int
coop_first(struct restart *r, struct built *b, size_t slot, int from)
{
	struct tracee *t = ARRAY_ADD(b->threads, b->nthreads);
	taddr at;
	int err = t == NULL ? -ENOMEM : receive_memory(from, &b->mem);

	if (err == 0)
		err = space_gap(r, b->pid, untraced_bytes(r->untraced), &at);
	if (err < 0)
		return err;
	*t = (struct tracee){.pid = b->pid, .tid = b->pid, .mem = b->mem, .slot = slot};
	untraced_place(r->untraced, at);
	b->loop = (struct loop){at, b->mem, r->untraced};
	if (write(from, &at, sizeof(at)) != sizeof(at))
		return fail(EIO, "pid %d: ended before it was built", b->pid);
	return untraced_await(r->untraced, slot, b->pid);
}

/* --- what they are told */

int
coop_note_down(const struct restart *r, const struct built *b)
{
	const char *given = getenv("PMSD_SOCKET"), *state = getenv("PMSD_STATE"), *job = getenv("PMSD_JOB");
	struct coop_note note = {0};
	int n = 0, err;

	if (b->task->note == 0)
		return 0;
	if (r->untraced != NULL) {
		note.loop = untraced_at(r->untraced);
		note.loop_bytes = untraced_bytes(r->untraced);
	}
	if (given != NULL)
		n = snprintf(note.socket, sizeof(note.socket), "%s", given);
	else if (state != NULL)
		n = snprintf(note.socket, sizeof(note.socket), "%s/socket", state);
	if (n < 0 || (size_t)n >= sizeof(note.socket))
		note.socket[0] = '\0';
	if (job != NULL && strlen(job) < sizeof(note.job))
		snprintf(note.job, sizeof(note.job), "%s", job);
	err = mem_write(b->mem, b->task->note, &note, sizeof(note));
	return err < 0 ? fail(-err, "pid %d: its memory: %s", b->pid, strerror(-err)) : 0;
}

int
coop_set_final(struct restart *r, struct built *b)
{
	for (size_t i = 0; i < b->nthreads; i++)
		untraced_set_final(r->untraced, b->threads[i].slot, &b->task->threads[i].regs);
	return 0;
}
