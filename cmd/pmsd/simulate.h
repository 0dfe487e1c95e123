/*
 * simulate: a policy at work on a trace instead of on hosts.
 */
#ifndef SIMULATE_H
#define SIMULATE_H

/*
 * TRACE has lines of words: `host NAME CPUS [SPEED]`, and `job NAME HOST ARRIVAL-SECONDS CPU-SECONDS [MEMORY-KB]`. The policy is asked each period_s, with the tables that a
 * daemon would give it, but that no host is this one: it decides for all. Prints what came of it. Returns the exit status.
 */
int simulate(const char *policy, int period_s, const char *trace);

#endif
