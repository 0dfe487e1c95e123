/*
 * page_plan: what ckpt and restart leave to the pagesrv that they start: where the pages are, and which. As a record in a memory file.
 */
#ifndef PMS_PAGE_PLAN_H
#define PMS_PAGE_PLAN_H

#include "base.h"

/* Pages at [start, end) in a process are those of a task of the image at the same place. */
struct page_part {
	taddr start, end;
	int64_t task;
};

struct page_task {
	int64_t pid;      /* as we see it */
	int64_t number;   /* of the image */
	int64_t memory, pagemap; /* source: its /proc/PID/mem and pagemap, fds of ours; else -1 */
	struct page_part *parts; /* fetch: ascending */
	size_t nparts;
};

struct page_plan {
	char *id;          /* of the image */
	char *address;     /* where the pages are, or are to be had */
	char *key;         /* of tcp: a file, or NULL */
	char *image;       /* the file that has them, or NULL */
	int64_t listen;    /* source: a socket of ours that listens there; -1: none */
	int64_t in, out;   /* a connection to the other side that is there already; -1: none */
	int64_t control;   /* a socket to whoever has started us; -1: none */
	int64_t retry;     /* seconds; fetch: how long a lost connection is tried again */
	bool eager;        /* fetch: all of them before it runs */
	bool demand_only;  /* fetch: nothing that has not been asked for */
	struct page_task *tasks;
	size_t ntasks;
};

extern const struct record record_page_plan;

#endif
