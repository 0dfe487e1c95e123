/*
 * cpu: which CPU is this, as far as a running program has looked at it.
 */
#ifndef PMS_CPU_H
#define PMS_CPU_H

#include "model.h"

/* This machine. The caller frees the strings. Returns 0, or a negative errno. Silent. */
int cpu_identify(struct cpu_id *cpu);
void cpu_fini(struct cpu_id *cpu);

/* The first feature of `theirs` that `ours` lacks, or NULL. */
const char *cpu_missing(const struct cpu_id *theirs, const struct cpu_id *ours);

#endif
