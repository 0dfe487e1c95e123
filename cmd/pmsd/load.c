/*
 * How busy this host is, and its jobs.
 *
 * The load is counted by ourselves, in the processes that can be seen here: loadavg(5) is that of the whole machine also in a container, and lags by minutes.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "io.h"
#include "log.h"
#include "pmsd.h"
#include "proc.h"

enum { SAMPLE_MS = 1000 };
static const double mean_ms = 20000; /* the weight of a sample has gone down to 1/e after this */

/* The fields behind the name: state, ppid, ... of proc(5). */
static char *
behind_name(char *stat)
{
	char *end = strrchr(stat, ')');

	return end != NULL && end[1] == ' ' ? end + 2 : NULL;
}

static int
runnable_threads(const char *pid)
{
	char name[64], *text = NULL, *fields;
	int n = 0, threads = 0;

	snprintf(name, sizeof(name), "/proc/%.20s/stat", pid);
	if (read_file(AT_FDCWD, name, &text) > 0 && (fields = behind_name(text)) != NULL) {
		n = fields[0] == 'R';
		sscanf(fields, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %d", &threads);
	}
	free(text);
	if (threads > 1) {
		DIR *d;
		struct dirent *e;

		snprintf(name, sizeof(name), "/proc/%.20s/task", pid);
		d = opendir(name);
		n = 0;
		while (d != NULL && (e = readdir(d)) != NULL) {
			char path[sizeof(name) + 32];

			snprintf(path, sizeof(path), "%s/%.20s/stat", name, e->d_name);
			if (e->d_name[0] != '.' && read_file(AT_FDCWD, path, &text) > 0) {
				fields = behind_name(text);
				n += fields != NULL && fields[0] == 'R';
				free(text);
			}
		}
		if (d != NULL)
			closedir(d);
	}
	return n;
}

static int
runnable(void)
{
	DIR *d = opendir("/proc");
	struct dirent *e;
	int n = 0;

	while (d != NULL && (e = readdir(d)) != NULL)
		if (e->d_name[0] >= '0' && e->d_name[0] <= '9' && atoi(e->d_name) != getpid())
			n += runnable_threads(e->d_name);
	if (d != NULL)
		closedir(d);
	return n;
}

/* The level of the x86-64 ABI that the processor has. */
static void
find_level(char *level, size_t size)
{
	static const char *const needed[] = {"cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3", "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave",
	    "avx512f avx512bw avx512cd avx512dq avx512vl"};
	char *text = NULL, *flags, *rest;
	int n = 1;

	if (read_file(AT_FDCWD, "/proc/cpuinfo", &text) <= 0 || (flags = strstr(text, "\nflags")) == NULL) {
		free(text);
		snprintf(level, size, "-");
		return;
	}
	rest = strchr(flags + 1, '\n');
	if (rest != NULL)
		strcpy(rest, " ");
	for (size_t i = 0; i < ARRAY_LEN(needed) && n == (int)i + 1; i++) {
		char *all = strdup(needed[i]), *save = NULL;
		bool has = all != NULL;

		for (char *w = has ? strtok_r(all, " ", &save) : NULL; w != NULL && has; w = strtok_r(NULL, " ", &save)) {
			char padded[40];

			snprintf(padded, sizeof(padded), " %s ", w);
			has = strstr(flags, padded) != NULL;
		}
		n += has;
		free(all);
	}
	free(text);
	snprintf(level, size, "x86-64-v%d", n);
}

static int64_t
memory_field(const char *text, const char *name)
{
	const char *at = strstr(text, name);

	return at != NULL ? strtoll(at + strlen(name), NULL, 10) : 0;
}

static void
count_cpus(struct load *l)
{
	cpu_set_t set;

	l->cpus = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : (int)sysconf(_SC_NPROCESSORS_ONLN);
}

void
load_sample(struct load *l)
{
	int64_t now = now_ms();
	char *text = NULL;
	double n;

	if (l->sampled_ms != 0 && now - l->sampled_ms < SAMPLE_MS)
		return;
	n = runnable();
	if (l->sampled_ms == 0) {
		struct utsname u;

		l->runnable = n;
		snprintf(l->arch, sizeof(l->arch), "%.15s", uname(&u) == 0 ? u.machine : "-");
		find_level(l->level, sizeof(l->level));
	} else {
		l->runnable += (n - l->runnable) * (1 - exp(-(double)(now - l->sampled_ms) / mean_ms));
	}
	l->sampled_ms = now;
	count_cpus(l);
	if (read_file(AT_FDCWD, "/proc/meminfo", &text) > 0) {
		l->memory_kb = memory_field(text, "MemTotal:");
		l->free_kb = memory_field(text, "MemAvailable:");
	}
	free(text);
}

static int
children_of(pid_t pid, pid_t **children, size_t *n)
{
	char name[64], *text = NULL, *at;
	int tid = 0;
	DIR *d;
	struct dirent *e;

	snprintf(name, sizeof(name), "/proc/%d/task", pid);
	d = opendir(name);
	while (d != NULL && (e = readdir(d)) != NULL) {
		char path[128];

		tid = atoi(e->d_name);
		snprintf(path, sizeof(path), "/proc/%d/task/%d/children", pid, tid);
		if (tid == 0 || read_file(AT_FDCWD, path, &text) < 0)
			continue;
		for (at = text; *at != '\0';) {
			char *end;
			pid_t child = (pid_t)strtol(at, &end, 10);
			pid_t *slot = end != at ? ARRAY_ADD(*children, *n) : NULL;

			if (slot == NULL)
				break;
			*slot = child;
			at = end + strspn(end, " ");
		}
		free(text);
		text = NULL;
	}
	if (d != NULL)
		closedir(d);
	return 0;
}

void
load_of_tree(pid_t root, int64_t *cpu_ms, int64_t *rss_kb)
{
	pid_t *pids = NULL, *slot;
	size_t n = 0;
	long tick = sysconf(_SC_CLK_TCK), page = sysconf(_SC_PAGESIZE) / 1024;

	*cpu_ms = *rss_kb = 0;
	slot = ARRAY_ADD(pids, n);
	if (slot == NULL)
		return;
	*slot = root;
	for (size_t i = 0; i < n && n < 10000; i++) {
		char name[64], *text = NULL, *fields;
		unsigned long long utime = 0, stime = 0;
		long rss = 0;

		snprintf(name, sizeof(name), "/proc/%d/stat", pids[i]);
		if (read_file(AT_FDCWD, name, &text) > 0 && (fields = behind_name(text)) != NULL &&
		    sscanf(fields, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu %*d %*d %*d %*d %*d %*d %*u %*u %ld", &utime, &stime, &rss) == 3) {
			*cpu_ms += (int64_t)(utime + stime) * 1000 / tick;
			*rss_kb += rss * page;
		}
		free(text);
		children_of(pids[i], &pids, &n);
	}
	free(pids);
}
