/*
 * parked: is a process in the loop that ckpt -S and -m leave it in, where it stops itself again whatever continues it?
 */
#ifndef PMS_PARKED_H
#define PMS_PARKED_H

#include <sys/types.h>

#include "base.h"

#define PARK_MARK "pms-park"

/* Page of the parking loop that a thread at ip is in, or 0. mem: /proc/PID/mem. */
taddr park_page(int mem, taddr ip);
/* A stopped process. Silent. */
bool is_parked(pid_t pid);

#endif
