/* What belongs to the process as a whole. */
#include <errno.h>
#include <fcntl.h>
#include <linux/membarrier.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include "victim.h"

static pid_t pid, pgid, sid;
static uid_t uid;
static gid_t gid;

static void
ids_make(void)
{
	pid = getpid(), pgid = getpgid(0), sid = getsid(0);
	uid = getuid(), gid = getgid();
}

static void
ids_check(void)
{
	SAME(getpid(), pid);
	SAME(syscall(SYS_gettid), pid);
	if (pgid == pid)
		SAME(getpgid(0), pgid);
	if (sid == pid)
		SAME(getsid(0), sid);
	SAME(getuid(), uid);
	SAME(geteuid(), uid);
	SAME(getgid(), gid);
}

static void
limits_make(void)
{
	struct rlimit r = {200, 3000};

	setrlimit(RLIMIT_NOFILE, &r);
	r = (struct rlimit){0, 0};
	setrlimit(RLIMIT_CORE, &r);
	setpriority(PRIO_PROCESS, 0, 7);
	syscall(SYS_ioprio_set, 1, 0, 2 << 13 | 6);
}

static void
limits_check(void)
{
	struct rlimit r;

	getrlimit(RLIMIT_NOFILE, &r);
	SAME(r.rlim_cur, 200);
	SAME(r.rlim_max, 3000);
	getrlimit(RLIMIT_CORE, &r);
	SAME(r.rlim_max, 0);
	SAME(getpriority(PRIO_PROCESS, 0), 7);
	SAME(syscall(SYS_ioprio_get, 1, 0), 2 << 13 | 6);
}

static void
put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		die(path);
	close(fd);
}

static long
number(const char *path, int base)
{
	char text[64] = "";
	int fd = open(path, O_RDONLY);

	if (read(fd, text, sizeof(text) - 1) < 0)
		die(path);
	close(fd);
	return strtol(text, NULL, base);
}

static void
attributes_make(void)
{
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	put("/proc/self/coredump_filter", "0x7");
	put("/proc/self/oom_score_adj", "300");
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0);
}

static void
attributes_check(void)
{
	int reaper = 0;

	prctl(PR_GET_CHILD_SUBREAPER, &reaper);
	SAME(reaper, 1);
	SAME(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0), 1);
	SAME(number("/proc/self/coredump_filter", 16), 7);
	SAME(number("/proc/self/oom_score_adj", 10), 300);
	SAME(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), 1);
	SAME(syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0), 0);
	SAME(prctl(PR_GET_DUMPABLE), 1);
}

/* --- self: what /proc says of the program itself */

static char exe[4096], cmdline[4096], comm[64];
static ssize_t exe_len, cmdline_len;

static ssize_t
slurp(const char *path, char *text, size_t len)
{
	int fd = open(path, O_RDONLY);
	ssize_t n = read(fd, text, len - 1);

	close(fd);
	text[n < 0 ? 0 : n] = '\0';
	return n;
}

static void
self_make(void)
{
	exe_len = readlink("/proc/self/exe", exe, sizeof(exe));
	cmdline_len = slurp("/proc/self/cmdline", cmdline, sizeof(cmdline));
	slurp("/proc/self/comm", comm, sizeof(comm));
}

static void
self_check(void)
{
	char text[4096];
	ssize_t n = readlink("/proc/self/exe", text, sizeof(text));

	SAME(n, exe_len);
	SAME(memcmp(text, exe, (size_t)exe_len), 0);
	n = slurp("/proc/self/cmdline", text, sizeof(text));
	SAME(n, cmdline_len);
	SAME(memcmp(text, cmdline, (size_t)cmdline_len), 0);
	slurp("/proc/self/comm", text, sizeof(text));
	SAME(strcmp(text, comm), 0);
}

const struct maker process_makers[] = {
    {"ids", ids_make, ids_check}, {"limits", limits_make, limits_check},
    {"attributes", attributes_make, attributes_check}, {"self", self_make, self_check},
    {NULL, NULL, NULL},
};
