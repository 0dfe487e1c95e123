/*
 * run: a new job, and a keeper for it.
 */
#ifndef RUN_H
#define RUN_H

#include <stdbool.h>

/* name: NULL for that of the program. wait: end as it does. Prints its id. Returns the exit status. */
int run_job(const char *name, bool wait, char **argv);

#endif
