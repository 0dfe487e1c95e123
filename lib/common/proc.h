/*
 * proc: readers of proc(5). Parsing stands apart from reading: the *_parse functions are
 * pure and take text, the others read the file of a process and parse it.
 */
#ifndef PMS_PROC_H
#define PMS_PROC_H

#include <sys/types.h>

#include "base.h"

/*
 * A line of maps, and of smaps where that was parsed:
 * 7f0e5c000000-7f0e5c021000 rw-p 00000000 00:00 0          [anon:pool]
 */
struct proc_map {
	taddr start, end;
	int prot; /* PROT_* */
	bool shared;
	uint64_t offset;
	unsigned major, minor;
	uint64_t ino;
	char *path;  /* as shown, unescaped; "" where there is none; owned */
	char *flags; /* VmFlags, or NULL from maps; owned */
	int pkey;
	uint64_t page_bytes; /* from smaps: of hugetlbfs more than others */
};

struct proc_maps {
	struct proc_map *map; /* ascending */
	size_t n;
};

/* Returns 0, or -EBADMSG or -ENOMEM. text is changed. */
int proc_maps_parse(struct proc_maps *maps, char *text);
void proc_maps_fini(struct proc_maps *maps);
const struct proc_map *proc_maps_find(const struct proc_maps *maps, taddr addr);

/*
 * What only smaps tells, which takes long as it goes through all page tables: maps gets it from before, smaps of the same process a moment ago. 0, -ENOENT where a mapping was not
 * there or is locked in memory, or -ENOMEM. Is it right? That smaps of a copy by fork(2) tells, made when maps was read.
 */
int proc_maps_assume(struct proc_maps *maps, const struct proc_maps *before);
bool proc_maps_prove(const struct proc_maps *maps, const struct proc_maps *copy);

#define PROC_NS_MAX 33
struct proc_status {
	char name[64];
	char state;
	pid_t tgid, ppid, tracer;
	pid_t nspid[PROC_NS_MAX], nspgid[PROC_NS_MAX], nssid[PROC_NS_MAX]; /* outermost first */
	int levels;
	int threads;
	int64_t uid[4], gid[4];
	int64_t *groups; /* owned */
	size_t ngroups;
	unsigned umask;
	uint64_t rss_anon_kb, rss_shmem_kb, swap_kb, locked_kb;
	uint64_t sigpnd, shdpnd, sigblk, sigign, sigcgt;
	uint64_t cap_inh, cap_prm, cap_eff, cap_bnd, cap_amb;
	unsigned no_new_privs, seccomp, seccomp_filters;
};
int proc_status_parse(struct proc_status *st, const char *text);
void proc_status_fini(struct proc_status *st);

/* Fields of stat by their numbers in proc(5). */
struct proc_stat {
	char state;
	pid_t ppid, pgrp, session;
	int tty; /* device of the controlling terminal, as the kernel encodes it; 0: none */
	pid_t foreground; /* process group in the foreground there */
	uint64_t utime, stime, starttime; /* clock ticks */
	int exit_signal;
	taddr start_code, end_code, start_stack, start_data, end_data, start_brk;
	taddr arg_start, arg_end, env_start, env_end;
	int exit_code;
};
int proc_stat_parse(struct proc_stat *st, const char *text);

/* A lock: line of fdinfo: `lock:\t1: POSIX  ADVISORY  WRITE 4242 fe:00:1234 0 EOF` */
struct proc_lock {
	char type[8]; /* POSIX, FLOCK, OFDLCK, LEASE, DELEG */
	bool write;
	uint64_t ino;
	int64_t start, end; /* end -1: EOF */
};
enum { PROC_LOCKS_MAX = 16 };

/* fdinfo: `pos:\t0\nflags:\t0100002\nmnt_id:\t25\n` */
struct proc_fdinfo {
	int64_t pos;
	uint64_t flags;
	uint64_t ino; /* 5.14 */
	struct proc_lock locks[PROC_LOCKS_MAX];
	int nlocks; /* may exceed PROC_LOCKS_MAX, which keeps the first */
};
int proc_fdinfo_parse(struct proc_fdinfo *info, const char *text);

/*
 * limits, by the numbers of setrlimit(2); UINT64_MAX is unlimited:
 * `Max open files            1024                 524288               files`
 */
struct proc_limit {
	uint64_t soft, hard;
};
int proc_limits_parse(struct proc_limit limits[16], const char *text);

/* A line of timers: ID: 1 / signal: 14/00005651.. / notify: signal/pid.2634 / ClockID: 0 */
struct proc_timer {
	int64_t id, sig, notify, tid, clock;
	uint64_t sigval;
};
int proc_timers_parse(struct proc_timer **timers, size_t *n, const char *text);

/* uid_map: the inner ID of an outer one, or -1. */
int64_t proc_idmap_inner(const char *text, int64_t outer);

/* --- Reading ----------------------------------------------------------------------- */

/* Silent. Open /proc/PID, whose files the others take. Returns an fd, or a negative errno. */
int proc_open(pid_t pid);

/* These log nothing and return 0, or a negative errno. */
int proc_read_maps(int dirfd, bool with_flags, struct proc_maps *maps);
int proc_read_status(int dirfd, struct proc_status *st);
int proc_read_thread_status(int dirfd, pid_t tid, struct proc_status *st);
int proc_read_stat(int dirfd, struct proc_stat *st);
int proc_read_fdinfo(int dirfd, int fd, struct proc_fdinfo *info);
/* A file with one number, in the base it is written in (16 for personality). */
int proc_read_number(int dirfd, const char *name, int base, int64_t *value);

/* Numbers of the entries of a directory below dirfd ("task", "fd"), ascending. Caller frees. */
int proc_list(int dirfd, const char *name, int **numbers, size_t *n);

/* The parent of a process, or -1 where there is no such process. */
pid_t proc_parent(pid_t pid);

/* PIDs of the children of all threads of a process, whose PID is pid, ascending. Caller frees. */
int proc_children(int dirfd, pid_t pid, int **pids, size_t *n);

/*
 * Offset of "monotonic" or "boottime" in the time namespace of its children, in nanoseconds; 0 where
 * there is none. timens_offsets: `monotonic           1000         0`.
 */
int64_t proc_timens_offset(int dirfd, const char *clock);

/* Same namespace as this process? name: "user", "pid", "time", "mnt". */
bool proc_same_ns(int dirfd, const char *name);
/* The same of two processes. */
bool proc_share_ns(int dirfd, int other, const char *name);

#endif
