#include "pipeline.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>

enum { JOB_WAITING, JOB_RUNNING, JOB_DONE };

struct pipeline {
	pthread_mutex_t lock;
	pthread_cond_t work, done;
	struct job *first, *last; /* in order of submission */
	struct job *todo;         /* the first that nobody has begun */
	unsigned count, depth, nthreads;
	bool ending;
	pthread_t threads[];
};

static struct job *
next_waiting(struct job *job)
{
	while (job != NULL && job->state != JOB_WAITING)
		job = job->next;
	return job;
}

static void *
worker(void *arg)
{
	struct pipeline *p = arg;

	pthread_mutex_lock(&p->lock);
	for (;;) {
		struct job *job;

		while (p->todo == NULL && !p->ending)
			pthread_cond_wait(&p->work, &p->lock);
		if (p->todo == NULL)
			break;
		job = p->todo;
		p->todo = next_waiting(job->next);
		job->state = JOB_RUNNING;
		pthread_mutex_unlock(&p->lock);
		job->run(job);
		pthread_mutex_lock(&p->lock);
		job->state = JOB_DONE;
		pthread_cond_signal(&p->done);
	}
	pthread_mutex_unlock(&p->lock);
	return NULL;
}

struct pipeline *
pipeline_new(unsigned nthreads, unsigned depth)
{
	struct pipeline *p = calloc(1, sizeof(*p) + nthreads * sizeof(p->threads[0]));
	sigset_t all, old;

	if (p == NULL)
		return NULL;
	pthread_mutex_init(&p->lock, NULL);
	pthread_cond_init(&p->work, NULL);
	pthread_cond_init(&p->done, NULL);
	p->depth = depth;
	/* Signals are the main thread's business. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	while (p->nthreads < nthreads &&
	    pthread_create(&p->threads[p->nthreads], NULL, worker, p) == 0)
		p->nthreads++;
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return p;
}

void
pipeline_free(struct pipeline *p)
{
	if (p == NULL)
		return;
	pthread_mutex_lock(&p->lock);
	p->ending = true;
	pthread_cond_broadcast(&p->work);
	pthread_mutex_unlock(&p->lock);
	for (unsigned i = 0; i < p->nthreads; i++)
		pthread_join(p->threads[i], NULL);
	pthread_mutex_destroy(&p->lock);
	pthread_cond_destroy(&p->work);
	pthread_cond_destroy(&p->done);
	free(p);
}

unsigned
pipeline_default_threads(void)
{
	cpu_set_t set;

	if (sched_getaffinity(0, sizeof(set), &set) < 0)
		return 1;
	return (unsigned)CPU_COUNT(&set);
}

bool
pipeline_full(const struct pipeline *p)
{
	return p->count >= p->depth;
}

bool
pipeline_empty(const struct pipeline *p)
{
	return p->count == 0;
}

static void
append(struct pipeline *p, struct job *job, int state)
{
	pthread_mutex_lock(&p->lock);
	job->next = NULL;
	job->state = state;
	if (p->last != NULL)
		p->last->next = job;
	else
		p->first = job;
	p->last = job;
	if (p->todo == NULL && state == JOB_WAITING)
		p->todo = job;
	p->count++;
	if (state == JOB_WAITING)
		pthread_cond_signal(&p->work);
	pthread_mutex_unlock(&p->lock);
}

void
pipeline_submit(struct pipeline *p, struct job *job)
{
	append(p, job, JOB_WAITING);
}

void
pipeline_submit_done(struct pipeline *p, struct job *job)
{
	append(p, job, JOB_DONE);
}

struct job *
pipeline_take(struct pipeline *p)
{
	struct job *job;

	pthread_mutex_lock(&p->lock);
	job = p->first;
	if (job != NULL && p->nthreads == 0 && job->state == JOB_WAITING) {
		p->todo = next_waiting(job->next);
		job->run(job);
		job->state = JOB_DONE;
	}
	while (job != NULL && job->state != JOB_DONE)
		pthread_cond_wait(&p->done, &p->lock);
	if (job != NULL) {
		p->first = job->next;
		if (p->first == NULL)
			p->last = NULL;
		p->count--;
	}
	pthread_mutex_unlock(&p->lock);
	return job;
}
