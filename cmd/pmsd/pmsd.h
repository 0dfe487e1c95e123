/*
 * pmsd: what its files share. `pmsd serve` (serve.c and on) knows jobs, hosts and loads, and decides by a policy; each job has a keeper (keeper.c), a process of its
 * own and of the job's user, which does what is decided and survives the daemon; everything else (client.c) is a line to the daemon's socket and its answer.
 */
#ifndef PMSD_H
#define PMSD_H

#include <stdio.h>
#include <sys/types.h>
#include <time.h>

#include "addr.h"
#include "words.h"

enum { ID_MAX = 80, HOST_MAX = 64, NAME_MAX_BYTES = 64 };

/* --- place.c: where things are */

/* A directory for this user on this host, made if need be: PMSD_STATE, or below XDG_STATE_HOME or ~/.local/state, or /var/lib/pmsd. Owned by nobody. NULL: logged. */
const char *place_state(void);
/* The socket of a daemon: PMSD_SOCKET, this user's own, or that of root. The caller frees. */
char *place_socket(void);
/* The name of this host: PMSD_HOST, or what uname(2) says, without its domain. */
const char *place_host(void);
/* Is it a name of a host, or of a job (HOST.N), and nothing that a shell or a path could take for something else? */
bool place_is_name(const char *text);
bool place_is_job(const char *text);
/* The directory of a job, which is made where `make`. The caller frees; NULL: logged. */
char *place_job(const char *id, bool make);

/* --- child.c */

/* In a child that is to be another program: signals as a program expects them. */
void child_begin(void);

/* --- record.c: a job as it is known */

struct job_record {
	char id[ID_MAX];
	char *name, *command, *dir; /* owned; dir is its keeper's */
	char state[16];             /* running, paused, moving, moved, saved, ended, lost */
	char *place;                /* owned: the host it has moved to, the file it is saved in; "" */
	int64_t uid, pid, status;   /* status: as a shell tells it, once it has ended */
	int64_t started, changed;   /* seconds since the epoch */
	int64_t hop;                /* how often it has moved */
};

void job_record_fini(struct job_record *r);
/* Replace an owned string. Returns 0, or -ENOMEM, logged. */
int set_text(char **slot, const char *text);
bool job_is_here(const struct job_record *r);

/* --- store.c: what outlives the daemon, in a database of sqlite3(1) */

struct store;
int store_open(struct store **s, const char *path);
void store_close(struct store *s);
/* A number that no job of this host has had. Negative: logged. */
int64_t store_next_number(struct store *s);
/* Those that fail are logged, and lost: the daemon goes on. */
void store_job(struct store *s, const struct job_record *r);
void store_event(struct store *s, const char *job, const char *what);
void store_load(struct store *s, const char *host, double load, int cpus, int jobs);
/* For each: fn, which borrows. Returns 0, or a negative errno, logged. */
int store_jobs(struct store *s, void (*fn)(void *arg, const struct job_record *r), void *arg);
int store_loads(struct store *s, int64_t since, void (*fn)(void *arg, int64_t at, const char *host, double load, int cpus, int jobs), void *arg);

/* --- load.c: how busy this host is */

struct load {
	double runnable; /* threads that run or could, a mean over half a minute */
	int cpus;
	int64_t memory_kb, free_kb;
	char arch[16], level[16]; /* x86_64, x86-64-v3 */
	int64_t sampled_ms;
};

/* Samples at most once a second. */
void load_sample(struct load *l);
/* Of a process and its descendants: processor time in milliseconds, and memory. */
void load_of_tree(pid_t pid, int64_t *cpu_ms, int64_t *rss_kb);

#endif
