/*
 * Handles of processes: pidfd_open(2). They are opened in each process anew, when all others exist.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "io.h"
#include "kind.h"
#include "log.h"

static bool
match(const struct kind_save *s)
{
	return strcmp(s->link, "anon_inode:[pidfd]") == 0 || strncmp(s->link, "pidfd:[", 7) == 0;
}

/* `Pid:	42`, as we see it; -1 when it is no more. */
static int
save(struct kind_save *s, struct ofd *ofd)
{
	struct pidfd_ref *p = ARRAY_ADD(s->objects->pidfds, s->objects->npidfds);
	char *text;
	const char *at;
	int pid, err = p == NULL ? -ENOMEM : kind_fdinfo(s, &text);

	if (err < 0)
		return fail(-err, "%s: pidfd: %s", s->object, strerror(-err));
	at = strstr(text, "\nPid:");
	pid = at == NULL ? -1 : atoi(at + 5);
	free(text);
	ofd->ref = (int64_t)s->objects->npidfds - 1;
	ofd->flags &= O_ACCMODE | O_NONBLOCK;
	for (size_t i = 0; pid > 0 && i < s->ntasks; i++)
		if (s->tasks[i].pid == pid)
			p->pid = s->tasks[i].task_pid;
	if (pid > 0 && p->pid == 0)
		return report_add(s->report, OBSTACLE, 69, s->object, "have the program close it",
		    "a pidfd of process %d, which is not among those that are moved", pid);
	return 0;
}

/* Something at its number until attach(); for a process that is no more, the real thing. */
static int
load(const struct kind_load *l, const struct ofd *ofd)
{
	const struct pidfd_ref *p = &l->objects->pidfds[ofd->ref];
	pid_t pid;
	int fd;

	if (p->pid != 0) {
		fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
		return fd < 0 ? fail_errno("/dev/null") : fd;
	}
	pid = fork();
	if (pid == 0)
		_exit(0);
	fd = pid < 0 ? -errno : pidfd_open_(pid);
	if (pid > 0)
		waitpid(pid, NULL, 0);
	return fd < 0 ? fail(-fd, "fd %d: pidfd: %s", l->lowest, strerror(-fd)) : fd;
}

/* pidfd_open(2) takes the lowest number, 0, since none below the stock is open. */
static void
attach(struct script *s, const struct objects *o, const struct ofd *ofd, uint64_t self,
    uint64_t (*stock)(const void *ctx, int64_t ofd), const void *ctx)
{
	const struct pidfd_ref *p = &o->pidfds[ofd->ref];

	(void)stock, (void)ctx;
	if (p->pid == 0)
		return;
	script_add(s, "pidfd", SYS_pidfd_open, (uint64_t)p->pid, ofd->flags & O_NONBLOCK);
	script_add(s, "pidfd", SYS_dup3, 0, self, O_CLOEXEC);
	script_add(s, "pidfd", SYS_close, 0);
}

const struct kind kind_pidfd = {.name = "pidfd", .match = match, .save = save, .load = load, .attach = attach,
    .attach_everywhere = true};
