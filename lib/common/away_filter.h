/*
 * away_filter: the seccomp program that a process has whose files are on another machine: calls that need that machine are stopped for the
 * supervisor, as syscall.def says; execve(2) for the tracer.
 */
#ifndef PMS_AWAY_FILTER_H
#define PMS_AWAY_FILTER_H

#include <linux/filter.h>
#include <stddef.h>

#include "call.h"

enum { AWAY_FILTER_MAX = 2 * (SYSCALL_LAST + 1) + 16 };
/* A thread waits for its answer whatever comes but SIGKILL: Linux 5.19; not in every header. */
#define AWAY_FILTER_WAIT_KILLABLE (1UL << 5)

/* Its processes have originals at home: what tells who belongs together is asked there, and forks happen there first, for the tracer. */
bool away_filter_mirrors(long nr);
bool away_filter_forks(long nr);
/* home: as above. Returns how many instructions. */
size_t away_filter(struct sock_filter code[AWAY_FILTER_MAX], bool home);

#endif
