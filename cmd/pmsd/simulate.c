/*
 * Each host shares its processors equally among its jobs; a job uses one at most. A job that moves stands still as long as its memory takes.
 */
#include "simulate.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <sysexits.h>
#include <unistd.h>

#include "log.h"
#include "server.h"

enum { HOSTS_MAX = 10000, JOBS_MAX = 1000000 };
static const double start_s = 0.05, kb_a_second = 100e3, forever = 1e18;

struct sim_job {
	char name[HOST_MAX];
	int host, memory_kb;
	double arrival, work, left; /* seconds of a processor of speed 1 */
	double since, ready;        /* at this host; it stands still until then */
	double end;
	bool here;
};

struct sim_host {
	char name[HOST_MAX];
	int cpus;
	double speed;
	int *jobs; /* that are here and not ready yet or running */
	size_t njobs, room;
	double at, next; /* its jobs are as they were then; when the next thing happens */
};

struct sim {
	struct sim_host *hosts;
	size_t nhosts;
	struct sim_job *jobs;
	size_t njobs, arrived, ended;
	int *by_name; /* jobs, in the order of their names */
	double now;
	uint64_t moves, refused;
	char *policy;
};

/* --- the trace */

static int
compare_arrival(const void *a, const void *b)
{
	const struct sim_job *x = a, *y = b;

	return x->arrival < y->arrival ? -1 : x->arrival > y->arrival;
}

static const struct sim *sorted;

static int
compare_name(const void *a, const void *b)
{
	return strcmp(sorted->jobs[*(const int *)a].name, sorted->jobs[*(const int *)b].name);
}

static int
find_host(const struct sim *s, const char *name)
{
	for (size_t i = 0; i < s->nhosts; i++)
		if (strcmp(s->hosts[i].name, name) == 0)
			return (int)i;
	return -1;
}

static int
find_job(const struct sim *s, const char *name)
{
	size_t lo = 0, hi = s->njobs;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;
		int order = strcmp(s->jobs[s->by_name[mid]].name, name);

		if (order == 0)
			return s->by_name[mid];
		if (order < 0)
			lo = mid + 1;
		else
			hi = mid;
	}
	return -1;
}

static int
read_host(struct sim *s, char **w, int n)
{
	struct sim_host *h = s->nhosts < HOSTS_MAX && place_is_name(w[1]) ? ARRAY_ADD(s->hosts, s->nhosts) : NULL;

	if (h == NULL)
		return -EINVAL;
	*h = (struct sim_host){.cpus = (int)strtol(w[2], NULL, 10), .speed = n > 3 ? strtod(w[3], NULL) : 1, .next = forever};
	snprintf(h->name, sizeof(h->name), "%s", w[1]);
	return h->cpus > 0 && h->cpus <= 4096 && h->speed > 0 ? 0 : -EINVAL;
}

static int
read_job(struct sim *s, char **w, int n)
{
	int host = find_host(s, w[2]);
	struct sim_job *j = s->njobs < JOBS_MAX && host >= 0 && place_is_name(w[1]) ? ARRAY_ADD(s->jobs, s->njobs) : NULL;

	if (j == NULL)
		return -EINVAL;
	*j = (struct sim_job){.host = host, .arrival = strtod(w[3], NULL), .work = strtod(w[4], NULL), .memory_kb = n > 5 ? (int)strtol(w[5], NULL, 10) : 10000};
	j->left = j->work;
	snprintf(j->name, sizeof(j->name), "%s", w[1]);
	return j->arrival >= 0 && j->work > 0 && j->memory_kb >= 0 ? 0 : -EINVAL;
}

static int
read_trace(struct sim *s, const char *file)
{
	FILE *f = strcmp(file, "-") == 0 ? stdin : fopen(file, "re");
	char *line = NULL, *w[WORDS_MAX];
	size_t room = 0;
	int err = f == NULL ? fail_errno("%s", file) : 0, number = 0;

	while (err == 0 && getline(&line, &room, f) > 0) {
		int n;

		number++;
		line[strcspn(line, "#\n")] = '\0';
		n = words_split(line, w);
		if (n == 0)
			continue;
		if (n >= 3 && n <= 4 && strcmp(w[0], "host") == 0)
			err = read_host(s, w, n);
		else
			err = n >= 5 && n <= 6 && strcmp(w[0], "job") == 0 ? read_job(s, w, n) : -EINVAL;
		if (err < 0)
			fail(EINVAL, "%s:%d: neither `host NAME CPUS [SPEED]` nor `job NAME HOST ARRIVAL CPU-SECONDS [MEMORY-KB]`, of a host that was named before", file, number);
	}
	if (err == 0 && (s->njobs == 0 || s->nhosts == 0))
		err = fail(EINVAL, "%s: has no jobs", file);
	free(line);
	if (f != NULL && f != stdin)
		fclose(f);
	return err;
}

/* --- hosts */

static size_t
running(const struct sim *s, const struct sim_host *h)
{
	size_t n = 0;

	for (size_t i = 0; i < h->njobs; i++)
		n += s->jobs[h->jobs[i]].ready <= h->at;
	return n;
}

static double
rate(const struct sim_host *h, size_t n)
{
	return n == 0 ? 0 : h->speed * fmin(1, (double)h->cpus / (double)n);
}

/* Its jobs have gone on until now; when does something happen next? */
static void
advance(struct sim *s, struct sim_host *h)
{
	double each = rate(h, running(s, h)), next = forever;

	for (size_t i = 0; i < h->njobs; i++) {
		struct sim_job *j = &s->jobs[h->jobs[i]];

		if (j->ready <= h->at)
			j->left -= (s->now - h->at) * each;
	}
	h->at = s->now;
	for (size_t i = 0; i < h->njobs;) {
		struct sim_job *j = &s->jobs[h->jobs[i]];

		if (j->left <= 1e-9) {
			j->end = s->now;
			j->here = false;
			s->ended++;
			h->jobs[i] = h->jobs[--h->njobs];
		} else {
			i++;
		}
	}
	each = rate(h, running(s, h));
	for (size_t i = 0; i < h->njobs; i++) {
		const struct sim_job *j = &s->jobs[h->jobs[i]];

		next = fmin(next, j->ready > s->now ? j->ready : s->now + j->left / each);
	}
	h->next = next;
}

static int
put(struct sim *s, int job, int host)
{
	struct sim_host *h = &s->hosts[host];
	int *slot;

	advance(s, h);
	slot = ARRAY_ADD(h->jobs, h->njobs);
	if (slot == NULL)
		return fail(ENOMEM, "out of memory");
	*slot = job;
	s->jobs[job].host = host;
	s->jobs[job].since = s->now;
	s->jobs[job].here = true;
	advance(s, h);
	return 0;
}

static int
move(struct sim *s, int job, int host)
{
	struct sim_job *j = &s->jobs[job];
	struct sim_host *from = &s->hosts[j->host];

	advance(s, from);
	if (!j->here || j->ready > s->now)
		return 0;
	for (size_t i = 0; i < from->njobs; i++)
		if (from->jobs[i] == job) {
			from->jobs[i] = from->jobs[--from->njobs];
			break;
		}
	advance(s, from);
	j->ready = s->now + start_s + j->memory_kb / kb_a_second;
	s->moves++;
	return put(s, job, host);
}

/* --- the policy */

static void
write_tables(const struct sim *s, FILE *f)
{
	for (size_t i = 0; i < s->nhosts; i++) {
		const struct sim_host *h = &s->hosts[i];

		fprintf(f, "host\t%s\t%zu.00\t%d\t%d\t%d\tx86_64\tx86-64-v3\tup\n", h->name, running(s, h), h->cpus, 16 << 20, 16 << 20);
	}
	for (size_t i = 0; i < s->arrived; i++) {
		const struct sim_job *j = &s->jobs[i];

		if (j->here)
			fprintf(f, "job\t%s\t%s\trunning\t%.2f\t%d\t%.0f\t%.0f\t%s\n", j->name, s->hosts[j->host].name, rate(&s->hosts[j->host], s->hosts[j->host].njobs), j->memory_kb,
			    s->now - j->arrival, s->now - j->since, j->name);
	}
}

static int
ask_policy(struct sim *s)
{
	char *command = NULL, *line = NULL, *w[WORDS_MAX];
	size_t room = 0;
	int fd = memfd_create("table", MFD_CLOEXEC), status, err = 0;
	FILE *table = fd >= 0 ? fdopen(fd, "w") : NULL, *f = NULL;

	if (table == NULL)
		return fail_errno("memfd_create");
	write_tables(s, table);
	if (fflush(table) != 0)
		err = fail_errno("the tables");
	if (err == 0 && asprintf(&command, "'%s' </proc/%d/fd/%d", s->policy, getpid(), fd) >= 0)
		f = popen(command, "r");
	while (f != NULL && err == 0 && getline(&line, &room, f) > 0) {
		int n, job, host;

		line[strcspn(line, "\n")] = '\0';
		n = words_split(line, w);
		job = n == 3 && strcmp(w[0], "migrate") == 0 ? find_job(s, w[1]) : -1;
		host = job >= 0 ? find_host(s, w[2]) : -1;
		if (job < 0 || host < 0 || host == s->jobs[job].host)
			s->refused++;
		else
			err = move(s, job, host);
	}
	status = f != NULL ? pclose(f) : -1;
	fclose(table);
	free(line);
	free(command);
	if (err == 0 && (!WIFEXITED(status) || WEXITSTATUS(status) != 0))
		err = fail(EIO, "%s: has failed", s->policy);
	return err;
}

/* --- until all have ended */

static int
step(struct sim *s, double period, double *ask)
{
	double next = s->arrived < s->njobs ? s->jobs[s->arrived].arrival : forever;
	size_t first = s->nhosts;
	int err = 0;

	for (size_t i = 0; i < s->nhosts; i++)
		if (s->hosts[i].next < next) {
			next = s->hosts[i].next;
			first = i;
		}
	if (*ask <= next && s->policy != NULL && next < forever) {
		s->now = *ask;
		for (size_t i = 0; i < s->nhosts; i++)
			advance(s, &s->hosts[i]);
		*ask += period;
		return ask_policy(s);
	}
	s->now = next;
	if (first < s->nhosts) {
		advance(s, &s->hosts[first]);
	} else {
		s->arrived++;
		err = put(s, (int)s->arrived - 1, s->jobs[s->arrived - 1].host);
	}
	return err;
}

static void
report(const struct sim *s)
{
	double response = 0, slowdown = 0;

	for (size_t i = 0; i < s->njobs; i++) {
		const struct sim_job *j = &s->jobs[i];

		response += j->end - j->arrival;
		slowdown += (j->end - j->arrival) / j->work;
	}
	printf("jobs\t%zu\nhosts\t%zu\nmakespan_s\t%.1f\njobs_an_hour\t%.1f\nmean_response_s\t%.2f\nmean_slowdown\t%.3f\nmigrations\t%" PRIu64 "\nrefused\t%" PRIu64 "\n", s->njobs, s->nhosts, s->now,
	    (double)s->njobs / fmax(s->now, 1e-9) * 3600, response / (double)s->njobs, slowdown / (double)s->njobs, s->moves, s->refused);
}

int
simulate(const char *policy, int period_s, const char *trace)
{
	struct sim s = {0};
	double ask = period_s;
	int err = read_trace(&s, trace);

	if (err == 0 && strcmp(policy, "none") != 0)
		err = policy_find(policy, &s.policy);
	if (err == 0) {
		qsort(s.jobs, s.njobs, sizeof(*s.jobs), compare_arrival);
		s.by_name = calloc(s.njobs, sizeof(*s.by_name));
		err = s.by_name == NULL ? fail(ENOMEM, "out of memory") : 0;
	}
	if (err == 0) {
		for (size_t i = 0; i < s.njobs; i++)
			s.by_name[i] = (int)i;
		sorted = &s;
		qsort(s.by_name, s.njobs, sizeof(*s.by_name), compare_name);
	}
	while (err == 0 && s.ended < s.njobs)
		err = step(&s, period_s, &ask);
	if (err == 0)
		report(&s);
	for (size_t i = 0; i < s.nhosts; i++)
		free(s.hosts[i].jobs);
	free(s.hosts);
	free(s.jobs);
	free(s.by_name);
	free(s.policy);
	return err == 0 ? 0 : err == -ENOENT ? EX_NOINPUT : EX_DATAERR;
}
