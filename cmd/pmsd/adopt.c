/*
 * Keepers of what they have not started: a job whose keeper was killed, a process that has come by itself (libpms).
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sysexits.h>
#include <unistd.h>

#include "io.h"
#include "keeper.h"
#include "log.h"
#include "proc.h"

/* struct pidfd_info of linux/pidfd.h, first version, and what asks for it. */
struct pidfd_info_ {
	uint64_t mask, cgroup;
	uint32_t ids[11];
	int32_t exit_code;
};
#define PIDFD_GET_INFO_ _IOWR(0xff, 11, struct pidfd_info_)
enum { PIDFD_INFO_EXIT_ = 8, STATUS_UNKNOWN = 255 };

/* While that one has not asked, its stat tells as its last field; afterwards, from Linux 6.15 on, the pidfd. */
int
keeper_stranger_status(const struct keeper *k)
{
	struct pidfd_info_ info = {.mask = PIDFD_INFO_EXIT_};
	char path[40], *text = NULL, *last;
	int status = STATUS_UNKNOWN;

	snprintf(path, sizeof(path), "/proc/%" PRId64 "/stat", k->r.pid);
	if (read_file(AT_FDCWD, path, &text) > 0 && strstr(text, ") Z ") != NULL && (last = strrchr(text, ' ')) != NULL)
		status = status_of((int)strtol(last, NULL, 10));
	else if (ioctl(k->pidfd, PIDFD_GET_INFO_, &info) == 0 && info.mask & PIDFD_INFO_EXIT_)
		status = status_of(info.exit_code);
	free(text);
	return status;
}

int
keeper_again(const char *id, const char *host, const char *address)
{
	struct keeper k = {0};
	char *dir;
	int err;

	snprintf(k.r.id, sizeof(k.r.id), "%s", id);
	err = spawn_prepare(&k);
	dir = k.r.dir;
	if (err == 0)
		err = state_read(dir, &k.r);
	if (err < 0 || set_text(&k.address, address) < 0)
		return EX_UNAVAILABLE;
	snprintf(k.host, sizeof(k.host), "%s", host);
	k.foreign = true;
	k.child_status = 128 + SIGKILL;
	k.unsure = strcmp(k.r.state, "moving") == 0;
	spawn_detach(&k);
	return keeper_loop(&k) < 0 ? EX_OSERR : 0;
}

/* Its arguments, as they stand in /proc. */
static char *
command_of(pid_t pid)
{
	char path[32], *text = NULL;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/cmdline", pid);
	n = read_file(AT_FDCWD, path, &text);
	for (ssize_t i = 0; i + 1 < n; i++)
		if ((unsigned char)text[i] < ' ')
			text[i] = ' ';
	return n > 0 ? text : strdup("?");
}

int
keeper_adopt(const char *id, pid_t pid)
{
	struct keeper k = {0};
	int proc = proc_open(pid), err;
	struct proc_status st = {.name = "?"};

	snprintf(k.r.id, sizeof(k.r.id), "%s", id);
	err = spawn_prepare(&k);
	k.pidfd = pidfd_open_(pid);
	k.r.command = command_of(pid);
	if (err < 0 || k.pidfd < 0 || k.r.command == NULL || proc < 0 || proc_read_status(proc, &st) < 0 || set_text(&k.r.place, "") < 0 || set_text(&k.r.name, st.name) < 0)
		return EX_UNAVAILABLE;
	/* Its number may be another's by now. */
	if (st.uid[0] != (int64_t)getuid())
		return EX_UNAVAILABLE;
	close_fd(&proc);
	k.r.started = (int64_t)time(NULL);
	k.r.pid = pid;
	k.foreign = true;
	k.child_status = 128 + SIGKILL;
	k.runs_ms = now_ms();
	spawn_detach(&k);
	keeper_state(&k, "running", "");
	return keeper_loop(&k) < 0 ? EX_OSERR : 0;
}
