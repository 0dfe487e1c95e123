/*
 * pipeline: jobs are run by several threads at once and come back in the order in which
 * they were submitted. One thread submits and takes back.
 */
#ifndef PMS_PIPELINE_H
#define PMS_PIPELINE_H

#include "base.h"

/* First member of a struct of the user's, which owns it at all times. */
struct job {
	void (*run)(struct job *job); /* in some thread; keeps its result in the user's struct */
	struct job *next;             /* the pipeline's */
	int state;                    /* the pipeline's */
};

struct pipeline;

/*
 * nthreads 0: jobs run in pipeline_take(), for a process that is about to fork.
 * depth: how many jobs may be under way. Returns NULL where there is no memory or no thread.
 */
struct pipeline *pipeline_new(unsigned nthreads, unsigned depth);

/* Every job must have been taken back. Ends the threads. Accepts NULL. */
void pipeline_free(struct pipeline *p);

/* As many threads as this process has processors. */
unsigned pipeline_default_threads(void);

bool pipeline_full(const struct pipeline *p);
bool pipeline_empty(const struct pipeline *p);
void pipeline_submit(struct pipeline *p, struct job *job);

/* A job that has been run already: it only keeps its place in the order. */
void pipeline_submit_done(struct pipeline *p, struct job *job);

/* Waits for the oldest job and returns it; NULL when there is none. */
struct job *pipeline_take(struct pipeline *p);

#endif
