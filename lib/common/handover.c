#include "handover.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "io.h"
#include "log.h"
#include "program.h"
#include "record.h"

int
handover_become(const char *program, const char *command, const struct record *rec, const void *st, const int64_t *fds, size_t n)
{
	char number[16], *path = NULL, *text;
	const char *argv[8] = {program};
	unsigned argc = 1;
	size_t len = 0;
	int err = program_find(program, &path), fd;

	if (err < 0)
		return fail(-err, "%s is not to be found, and is needed in PATH", program);
	text = record_to_text(rec, st, &len);
	fd = memfd_create("handover", MFD_CLOEXEC);
	err = text == NULL || fd < 0 ? -ENOMEM : write_full(fd, text, len);
	if (err == 0 && lseek(fd, 0, SEEK_SET) != 0)
		err = -EIO;
	/* Also what we have been given by others: whoever reads there would wait for its end. */
	syscall(SYS_close_range, STDERR_FILENO + 1, ~0U, CLOSE_RANGE_CLOEXEC);
	for (size_t i = 0; i < n; i++)
		if (fds[i] >= 0)
			fcntl((int)fds[i], F_SETFD, 0);
	if (fd >= 0)
		fcntl(fd, F_SETFD, 0);
	snprintf(number, sizeof(number), "%d", fd);
	argv[argc++] = command;
	if (log_level() > 0)
		argv[argc++] = log_level() > 1 ? "-vv" : "-v";
	argv[argc++] = log_level() < 0 ? "-q" : "--";
	argv[argc++] = number;
	argv[argc] = NULL;
	if (err == 0) {
		fflush(NULL);
		execv(path, (char **)argv);
		err = -errno;
	}
	fail(-err, "%s: %s", path, strerror(-err));
	close_fd(&fd);
	free(text);
	free(path);
	return err;
}

int
handover_exec(const struct handover *h, const char *command)
{
	size_t n = 5 + h->nprocesses;
	int64_t *fds = calloc(n, sizeof(*fds));
	int err;

	if (fds == NULL)
		return fail(ENOMEM, "out of memory");
	fds[0] = h->listen, fds[1] = h->in, fds[2] = h->out, fds[3] = h->image, fds[4] = h->report;
	for (size_t i = 0; i < h->nprocesses; i++)
		fds[5 + i] = h->processes[i].listener;
	err = handover_become("rexec-sys", command, &record_handover, h, fds, n);
	free(fds);
	return err;
}

void
handover_drop(struct handover *h)
{
	for (size_t i = 0; i < h->nprocesses; i++) {
		free(h->processes[i].threads);
		free(h->processes[i].fds);
		free(h->processes[i].pending);
	}
	free(h->processes);
}

int
handover_read_as(const struct record *rec, void *st, int fd)
{
	char why[128], name[32], *text = NULL;
	ssize_t n;
	int err;

	snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
	n = read_file(AT_FDCWD, name, &text);
	err = n < 0 ? (int)n : record_from_text(rec, st, text, (size_t)n, why);
	close(fd);
	free(text);
	return err < 0 ? fail(EINVAL, "not what ckpt or restart hand over") : 0;
}

int
handover_read(struct handover *h, int fd)
{
	return handover_read_as(&record_handover, h, fd);
}
