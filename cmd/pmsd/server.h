/*
 * server: the daemon. serve.c has the loop and its connections, requests.c what can be asked of it, hosts.c the other hosts, policy.c who decides what moves, register.c
 * processes that come by themselves.
 */
#ifndef SERVER_H
#define SERVER_H

#include <poll.h>

#include "pmsd.h"

enum { REMOTES_MAX = 64 };

struct serve_options {
	const char *socket, *hosts, *policy; /* NULL: the usual ones */
	const char *listen, *key; /* tcp:HOST:PORT, or NULL; what both ends of such a connection have */
	int period_s, grace_s;
	bool drain_on_term;
};

struct job {
	struct job_record r;
	struct client *keeper; /* NULL: it is away, or the job has no keeper any more */
	int64_t cpu_ms, rss_kb, sampled_ms;
	double busy;        /* processors that it uses */
	int64_t arrived_ms; /* here */
	int64_t moving_tag; /* of the move that is under way, or 0 */
	int64_t forsaken_ms; /* since when it has no keeper */
};

/* A connection: of a shell, a keeper, or another host's daemon. */
struct client {
	int fd;
	pid_t pid;
	int64_t uid;
	struct buf in, out;
	bool eof, dead;
	struct job *keeps;
	int64_t tag;        /* waits for the answer of a keeper, or 0 */
	const struct job *asked; /* that of this job */
	char waits[ID_MAX]; /* waits for the end of this job, or "" */
	bool waits_for_empty; /* drain */
};

/* A job elsewhere. */
struct far_job {
	char id[ID_MAX], state[16], name[NAME_MAX_BYTES];
	double busy;
	int64_t rss_kb, age_s, here_s;
};

struct host {
	char name[HOST_MAX];
	char *address;       /* ssh:NAME, via:COMMAND; NULL: this host */
	char *route;         /* the same for somebody else, with the ssh that we use */
	bool up, draining;
	struct load load;
	struct far_job *jobs;
	size_t njobs;
	/* The connection to its daemon. */
	pid_t child;
	int fd;
	struct buf in;
	struct far_job *news; /* what it is saying */
	size_t nnews;
	int64_t asked_ms, try_ms;
};

struct policy {
	char *path;
	pid_t child;
	int in, out;         /* its output and its input; -1 */
	struct buf said;
	char *table;         /* what is still to be written */
	size_t table_len, table_done;
	int64_t since_ms, next_ms;
	bool drains;         /* this run is of the policy that empties the host */
};

struct server {
	struct serve_options opt;
	char *socket;
	int listener, signals;
	int remote;          /* where others come by TLS, or -1 */
	char *remote_name;   /* its address in full */
	pid_t remotes[REMOTES_MAX]; /* children that see to them, or 0 */
	struct store *store;
	struct load load;
	struct job **jobs;
	size_t njobs;
	struct client **clients;
	size_t nclients;
	struct host *hosts; /* the first is this one */
	size_t nhosts;
	struct policy policy;
	int64_t last_tag, stored_ms, sampled_ms, term_ms;
	bool draining, over;
};

int serve(const struct serve_options *opt);

/* --- serve.c */

/* Append to what a client is to read; a line: words, the last of which is NULL. */
void client_say(struct client *c, const char *first, ...) __attribute__((sentinel));
void client_ok(struct client *c);
void client_error(struct client *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* --- requests.c */

/* A line that a client has sent, which is changed. */
void request(struct server *s, struct client *c, char *line);
struct job *job_find(const struct server *s, const char *id);
/* It has another state: written down, and told to whoever waits. */
void job_changed(struct server *s, struct job *j, const char *what);
/* Its keeper is to do this. Returns a tag, or 0 where it has none. */
int64_t job_order(struct server *s, struct job *j, const char *verb, const char *a, const char *b);
/* Returns 0, or a negative errno and why, in words. */
int job_migrate(struct server *s, struct job *j, const char *host, char why[160]);
/* The next free name of a job, for this client's. Returns 0, or a negative errno, and he has been told. */
int job_reserve_next(struct server *s, struct client *c, char id[ID_MAX]);
/* --- register.c: a process says that it is there. */
void do_register(struct server *s, struct client *c, char **w, int n);
/* A keeper has gone. */
void job_forsaken(struct server *s, struct job *j);

/* --- hosts.c */

int hosts_read(struct server *s);
struct host *host_find(const struct server *s, const char *name);
/* What is to be watched, and what came of it. */
size_t hosts_poll(const struct server *s, struct pollfd *p);
void hosts_polled(struct server *s, const struct pollfd *p);
void hosts_tick(struct server *s);
void hosts_close(struct server *s);
/* The host that has this job is asked to let it move to another one. */
void hosts_please(struct server *s, const char *job, const char *to);
/* A child of ours has ended. */
void hosts_child(struct server *s, pid_t pid);
/* The tables that a policy reads, and that daemons tell each other: lines. all: of all hosts. */
void hosts_table(const struct server *s, struct buf *b, bool all, int64_t uid);
/* `PREFIX pmsd ARGUMENTS` for a shell here, that runs there. The caller frees. */
char *host_command(const char *address, const char *arguments);

/* --- policy.c */

/* A name of one of those that come with pms, or a path; the caller frees. Returns 0, or a negative errno, logged. */
int policy_find(const char *name, char **path);
int policy_set(struct server *s, const char *name);
void policy_tick(struct server *s);
size_t policy_poll(const struct server *s, struct pollfd *p);
void policy_polled(struct server *s, const struct pollfd *p, size_t n);
void policy_child(struct server *s, pid_t pid, int status);
/* It is to be asked at once. */
void policy_event(struct server *s);
void policy_close(struct server *s);

#endif
