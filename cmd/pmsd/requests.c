/*
 * What can be asked of the daemon: one function for each verb, in a table.
 */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io.h"
#include "log.h"
#include "server.h"

/* --- jobs */

struct job *
job_find(const struct server *s, const char *id)
{
	for (size_t i = 0; i < s->njobs; i++)
		if (strcmp(s->jobs[i]->r.id, id) == 0)
			return s->jobs[i];
	return NULL;
}

/* What he may see and do: his own, and root all. */
static struct job *
own_job(const struct server *s, struct client *c, const char *id)
{
	struct job *j = job_find(s, id);

	if (j != NULL && (c->uid == 0 || c->uid == j->r.uid))
		return j;
	client_error(c, "no job %s here", id);
	return NULL;
}

static void
put_number(char text[24], int64_t n)
{
	snprintf(text, 24, "%" PRId64, n);
}

static bool
is_final(const struct job *j)
{
	return strcmp(j->r.state, "ended") == 0 || strcmp(j->r.state, "lost") == 0 || strcmp(j->r.state, "moved") == 0 || strcmp(j->r.state, "refused") == 0;
}

/* The answer to wait: what became of it. */
static void
tell_end(const struct server *s, const struct job *j, struct client *c)
{
	const struct host *h = strcmp(j->r.state, "moved") == 0 ? host_find(s, j->r.place) : NULL;
	char status[24];

	put_number(status, j->r.status);
	client_say(c, "became", j->r.state, status, j->r.place, h != NULL && h->route != NULL ? h->route : "", NULL);
	client_ok(c);
}

void
job_changed(struct server *s, struct job *j, const char *what)
{
	j->r.changed = (int64_t)time(NULL);
	store_job(s->store, &j->r);
	store_event(s->store, j->r.id, what);
	for (size_t i = 0; i < s->nclients && is_final(j); i++) {
		struct client *c = s->clients[i];

		if (strcmp(c->waits, j->r.id) != 0)
			continue;
		c->waits[0] = '\0';
		tell_end(s, j, c);
	}
}

void
job_forsaken(struct server *s, struct job *j)
{
	for (size_t i = 0; i < s->nclients; i++)
		if (s->clients[i]->tag != 0 && s->clients[i]->tag == j->moving_tag) {
			s->clients[i]->tag = 0;
			client_error(s->clients[i], "%s: its keeper has gone", j->r.id);
		}
	j->moving_tag = 0;
	if (is_final(j) || strcmp(j->r.state, "saved") == 0)
		return;
	note("%s: its keeper has gone", j->r.id);
}

int64_t
job_order(struct server *s, struct job *j, const char *verb, const char *a, const char *b)
{
	char tag[24];

	if (j->keeper == NULL)
		return 0;
	put_number(tag, ++s->last_tag);
	client_say(j->keeper, "do", tag, verb, a, b, NULL);
	return s->last_tag;
}

int
job_migrate(struct server *s, struct job *j, const char *host, char why[160])
{
	const struct host *h = host_find(s, host);

	if (h == NULL)
		snprintf(why, 160, "no host %s among the peers", host);
	else if (h->address == NULL)
		snprintf(why, 160, "%s: is here", j->r.id);
	else if (j->keeper == NULL || (strcmp(j->r.state, "running") != 0 && strcmp(j->r.state, "paused") != 0))
		snprintf(why, 160, "%s: is %s", j->r.id, j->keeper == NULL && job_is_here(&j->r) ? "without its keeper" : j->r.state);
	else if (j->moving_tag != 0)
		snprintf(why, 160, "%s: is moving already", j->r.id);
	else
		j->moving_tag = job_order(s, j, "migrate", h->name, h->route);
	return h != NULL && h->address != NULL && j->moving_tag != 0 && j->moving_tag == s->last_tag ? 0 : -EBUSY;
}

/* --- of shells */

static void
do_list(struct server *s, struct client *c, char **w, int n)
{
	bool all = n > 1 && strcmp(w[1], "all") == 0;

	client_say(c, "job", "state", "host", "pid", "status", "age", "busy", "memory_kb", "name", "command", "place", NULL);
	for (size_t i = 0; i < s->njobs; i++) {
		const struct job *j = s->jobs[i];
		char pid[24], status[24], age[24], busy[24], rss[24];
		bool here = job_is_here(&j->r), moved = strcmp(j->r.state, "moved") == 0, saved = strcmp(j->r.state, "saved") == 0;

		if ((c->uid != 0 && c->uid != j->r.uid) || (!all && !here && !saved))
			continue;
		put_number(pid, here ? j->r.pid : 0);
		put_number(status, j->r.status);
		put_number(age, (int64_t)time(NULL) - j->r.started);
		put_number(rss, here ? j->rss_kb : 0);
		snprintf(busy, sizeof(busy), "%.2f", here ? j->busy : 0);
		client_say(c, j->r.id, here && j->keeper == NULL ? "unkept" : j->r.state, moved ? j->r.place : place_host(), here ? pid : "-", is_final(j) && !moved ? status : "-", age, busy, rss,
		    j->r.name, j->r.command, j->r.place, NULL);
	}
	client_ok(c);
}

static void
do_peers(struct server *s, struct client *c, char **w, int n)
{
	(void)w, (void)n;
	client_say(c, "host", "state", "load", "cpus", "memory_kb", "free_kb", "arch", "level", "jobs", "address", NULL);
	for (size_t i = 0; i < s->nhosts; i++) {
		const struct host *h = &s->hosts[i];
		const struct load *l = h->address == NULL ? &s->load : &h->load;
		char load[24], cpus[24], memory[24], room[24], jobs[24];
		size_t here = 0;

		for (size_t k = 0; k < s->njobs; k++)
			here += job_is_here(&s->jobs[k]->r);
		snprintf(load, sizeof(load), "%.2f", l->runnable);
		put_number(cpus, l->cpus);
		put_number(memory, l->memory_kb);
		put_number(room, l->free_kb);
		put_number(jobs, (int64_t)(h->address == NULL ? here : h->njobs));
		client_say(c, h->name, h->address == NULL ? (s->draining ? "draining" : "up") : !h->up ? "down" : h->draining ? "draining" : "up", load, cpus, memory, room, l->arch[0] ? l->arch : "-",
		    l->level[0] ? l->level : "-", jobs, h->address == NULL ? "-" : h->address, NULL);
	}
	client_ok(c);
}

static void
do_table(struct server *s, struct client *c, char **w, int n)
{
	hosts_table(s, &c->out, n > 1 && strcmp(w[1], "all") == 0, c->uid == 0 ? -1 : c->uid);
	client_ok(c);
}

/* For a keeper, and by and by an answer. */
static void
do_order(struct server *s, struct client *c, char **w, int n)
{
	struct job *j = own_job(s, c, w[1]);

	if (j == NULL)
		return;
	if (strcmp(w[0], "migrate") == 0) {
		char why[160];

		if (job_migrate(s, j, w[2], why) < 0)
			client_error(c, "%s", why);
		else
			c->tag = j->moving_tag, c->asked = j;
		return;
	}
	if (strcmp(j->r.state, "saved") == 0 && strcmp(w[0], "resume") != 0 && strcmp(w[0], "drop") != 0) {
		client_error(c, "%s: is saved as %s; pmsd resume %s", j->r.id, j->r.place, j->r.id);
		return;
	}
	c->tag = job_order(s, j, w[0], n > 2 ? w[2] : "", n > 3 ? w[3] : "");
	c->asked = j;
	if (c->tag == 0)
		client_error(c, "%s: is %s", j->r.id, job_is_here(&j->r) ? "without its keeper" : j->r.state);
}

static void
do_wait(struct server *s, struct client *c, char **w, int n)
{
	struct job *j = own_job(s, c, w[1]);

	(void)n;
	if (j != NULL && is_final(j))
		tell_end(s, j, c);
	else if (j != NULL)
		snprintf(c->waits, sizeof(c->waits), "%s", w[1]);
}

/* Where its output is, for who may read it. */
static void
do_log(struct server *s, struct client *c, char **w, int n)
{
	struct job *j = own_job(s, c, w[1]);
	const struct host *h;

	(void)n;
	if (j == NULL)
		return;
	h = strcmp(j->r.state, "moved") == 0 ? host_find(s, j->r.place) : NULL;
	client_say(c, "at", j->r.dir, j->r.state, h != NULL && h->route != NULL ? h->route : "", NULL);
	client_ok(c);
}

static void
do_drain(struct server *s, struct client *c, char **w, int n)
{
	bool stop = n > 1 && strcmp(w[1], "stop") == 0;

	if (c->uid != 0 && c->uid != (int64_t)geteuid()) {
		client_error(c, "only who runs the daemon may empty this host");
		return;
	}
	s->draining = !stop;
	c->waits_for_empty = !stop;
	if (stop)
		client_ok(c);
	else
		policy_event(s);
}

static void
do_policy(struct server *s, struct client *c, char **w, int n)
{
	if (n == 1) {
		client_say(c, "policy", s->policy.path != NULL ? s->policy.path : "none", NULL);
	} else if (c->uid != 0 && c->uid != (int64_t)geteuid()) {
		client_error(c, "only who runs the daemon may set its policy");
		return;
	} else if (policy_set(s, w[1]) < 0) {
		client_error(c, "%s", log_last());
		return;
	}
	client_ok(c);
}

/* Another host would have this job there. It is not told what came of it, but sees it. */
static void
do_please(struct server *s, struct client *c, char **w, int n)
{
	struct job *j = job_find(s, w[1]);
	char why[160];

	(void)n;
	if (j != NULL && (c->uid == 0 || c->uid == j->r.uid) && j->moving_tag == 0 && job_migrate(s, j, w[2], why) < 0)
		note("%s", why);
}

static struct job *reserve(struct server *s, const struct client *c, const char *id);

/* May a job come? */
static void
do_may(struct server *s, struct client *c, char **w, int n)
{
	const struct job *j = job_find(s, w[1]);

	(void)n;
	if (s->draining)
		client_error(c, "%s is being emptied", place_host());
	else if (j != NULL && (job_is_here(&j->r) || strcmp(j->r.state, "saved") == 0))
		client_error(c, "%s is at %s already", w[1], place_host());
	else if (j != NULL && j->r.uid != c->uid)
		client_error(c, "%s is somebody else's", w[1]);
	else if (j == NULL && (!place_is_job(w[1]) || reserve(s, c, w[1]) == NULL))
		client_error(c, "%.80s: is no name of a job", w[1]);
	else
		client_ok(c);
}

/* --- of keepers */

static struct job *
new_job(struct server *s, const char *id)
{
	struct job *j = calloc(1, sizeof(*j)), **slot = j != NULL ? ARRAY_ADD(s->jobs, s->njobs) : NULL;

	if (slot == NULL) {
		free(j);
		return NULL;
	}
	*slot = j;
	snprintf(j->r.id, sizeof(j->r.id), "%s", id);
	j->r.started = (int64_t)time(NULL);
	set_text(&j->r.place, "");
	return j;
}

enum { EXPECTED_MAX = 4096, EXPECTED_S = 600 };

/* Those whom nobody has come to keep are forgotten after a while. Returns how many this user has left. */
static size_t
forget_expected(struct server *s, int64_t uid)
{
	int64_t now = (int64_t)time(NULL);
	size_t kept = 0, of_user = 0;

	for (size_t i = 0; i < s->njobs; i++) {
		struct job *j = s->jobs[i];
		bool expected = strcmp(j->r.state, "expected") == 0 && j->keeper == NULL;

		if (expected && now - j->r.started > EXPECTED_S) {
			job_record_fini(&j->r);
			free(j);
			continue;
		}
		of_user += expected && j->r.uid == uid;
		s->jobs[kept++] = j;
	}
	s->njobs = kept;
	return of_user;
}

/* Nobody else may say that he keeps it. */
static struct job *
reserve(struct server *s, const struct client *c, const char *id)
{
	struct job *j = forget_expected(s, c->uid) < EXPECTED_MAX ? new_job(s, id) : NULL;

	if (j == NULL)
		return NULL;
	j->r.uid = c->uid;
	strcpy(j->r.state, "expected");
	set_text(&j->r.name, "");
	set_text(&j->r.command, "");
	set_text(&j->r.dir, "");
	return j;
}

int
job_reserve_next(struct server *s, struct client *c, char id[ID_MAX])
{
	int64_t number = store_next_number(s->store);

	if (number < 0 || s->draining) {
		client_error(c, number < 0 ? "the history cannot be written" : "%s is being emptied", place_host());
		return -EBUSY;
	}
	snprintf(id, ID_MAX, "%s.%" PRId64, place_host(), number);
	if (reserve(s, c, id) == NULL) {
		client_error(c, "too many jobs are expected, and none of them comes");
		return -ENOMEM;
	}
	return 0;
}

/* The next free name of a job. */
static void
do_number(struct server *s, struct client *c, char **w, int n)
{
	char id[ID_MAX];

	(void)w, (void)n;
	if (job_reserve_next(s, c, id) < 0)
		return;
	client_say(c, "id", id, NULL);
	client_ok(c);
}

static void
take_state(struct job *j, char **w)
{
	snprintf(j->r.state, sizeof(j->r.state), "%s", w[0]);
	j->r.pid = strtoll(w[1], NULL, 10);
	j->r.status = strtoll(w[2], NULL, 10);
	j->r.hop = strtoll(w[3], NULL, 10);
	set_text(&j->r.place, w[4]);
}

/* keep ID NAME COMMAND DIR STARTED STATE PID STATUS HOP PLACE: I am its keeper. */
static void
do_keep(struct server *s, struct client *c, char **w, int n)
{
	struct job *j = job_find(s, w[1]);

	(void)n;
	/* Of a job that we have never heard of he is only believed in our own name. */
	if (!place_is_job(w[1]) || (j == NULL && c->uid != (int64_t)geteuid()) || (j != NULL && j->r.uid != c->uid) || (j != NULL && j->keeper != NULL && j->keeper != c) ||
	    (c->keeps != NULL && c->keeps != j)) {
		client_error(c, "%.80s: is kept by another", w[1]);
		return;
	}
	if (j == NULL && (j = new_job(s, w[1])) == NULL) {
		client_error(c, "out of memory");
		return;
	}
	if (set_text(&j->r.name, w[2]) < 0 || set_text(&j->r.command, w[3]) < 0 || set_text(&j->r.dir, w[4]) < 0) {
		client_error(c, "out of memory");
		return;
	}
	j->r.uid = c->uid;
	j->r.started = strtoll(w[5], NULL, 10);
	j->keeper = c;
	c->keeps = j;
	j->arrived_ms = now_ms();
	j->sampled_ms = 0;
	take_state(j, w + 6);
	job_changed(s, j, j->r.state);
	client_ok(c);
	policy_event(s);
}

/* state STATE PID STATUS HOP PLACE */
static void
do_state(struct server *s, struct client *c, char **w, int n)
{
	struct job *j = c->keeps;
	char what[128];

	(void)n;
	if (j == NULL) {
		client_error(c, "keeps no job");
		return;
	}
	take_state(j, w + 1);
	snprintf(what, sizeof(what), "%s %.80s", j->r.state, j->r.place);
	job_changed(s, j, what);
	client_say(c, "noted", NULL);
}

/* answer TAG ok|error TEXT */
static void
do_answer(struct server *s, struct client *c, char **w, int n)
{
	int64_t tag = strtoll(w[1], NULL, 10);
	bool good = strcmp(w[2], "ok") == 0;

	if (c->keeps != NULL && c->keeps->moving_tag == tag) {
		c->keeps->moving_tag = 0;
		if (!good)
			note("%s: %s", c->keeps->r.id, n > 3 ? w[3] : "has failed");
		policy_event(s);
	}
	for (size_t i = 0; i < s->nclients; i++) {
		struct client *to = s->clients[i];

		if (to->tag != tag || tag == 0 || to->asked != c->keeps || to->asked == NULL)
			continue;
		to->tag = 0;
		if (good)
			client_ok(to);
		else
			client_error(to, "%s", n > 3 ? w[3] : "has failed");
	}
}

static const struct verb {
	const char *name;
	int least, most; /* words, with the verb */
	void (*run)(struct server *s, struct client *c, char **w, int n);
} verbs[] = {
    {"list", 1, 2, do_list}, {"peers", 1, 1, do_peers}, {"table", 1, 2, do_table}, {"pause", 2, 2, do_order}, {"resume", 2, 3, do_order}, {"kill", 2, 3, do_order},
    {"drop", 2, 2, do_order}, {"ckpt", 3, 4, do_order}, {"migrate", 3, 3, do_order}, {"wait", 2, 2, do_wait}, {"log", 2, 2, do_log}, {"drain", 1, 2, do_drain}, {"policy", 1, 2, do_policy},
    {"please", 3, 3, do_please},
    {"may", 2, 2, do_may}, {"number", 1, 1, do_number}, {"register", 1, 2, do_register}, {"keep", 11, 11, do_keep}, {"state", 6, 6, do_state}, {"answer", 3, 4, do_answer},
};

void
request(struct server *s, struct client *c, char *line)
{
	char *w[WORDS_MAX];
	int n = words_split(line, w);

	if (n == 0)
		return;
	for (size_t i = 0; i < ARRAY_LEN(verbs) && n > 0; i++) {
		if (strcmp(verbs[i].name, w[0]) != 0)
			continue;
		if (n < verbs[i].least || n > verbs[i].most)
			client_error(c, "%s: takes %d to %d words", w[0], verbs[i].least - 1, verbs[i].most - 1);
		else
			verbs[i].run(s, c, w, n);
		return;
	}
	client_error(c, "%.40s: is nothing that could be asked", n > 0 ? w[0] : "that");
}
