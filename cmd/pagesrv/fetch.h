/*
 * fetch: pages come into processes when they are touched, and the rest behind that. restart builds the processes and leaves us their userfaultfds.
 *
 *   fetch.c        what restart says, and the order of things
 *   fetch_link.c   the one who has the pages: asking, and coming again when the connection is lost
 *   fetch_fault.c  userfaultfd: faults and what else happens to a memory, and putting pages there
 *   fetch_guard.c  a process that keeps memories from filling with zeroes should we be killed
 *   lazy_map.c     what is missing where
 */
#ifndef FETCH_H
#define FETCH_H

#include "lazy_map.h"
#include "model.h"
#include "pagesrv.h"

/* A thread that waits for a page. */
struct waiting {
	taddr addr;
	int64_t since_ns;
};

/* mremap(2) */
struct remap {
	taddr from, to;
	uint64_t len;
	int64_t since_ms;
};

struct memory {
	struct lazy lazy;
	pid_t pid;     /* 0: of a child, which nobody has told us */
	int uffd;      /* -1: pages are written before it runs */
	int mem;       /* then: its /proc/PID/mem */
	int pidfd;     /* -1: not known */
	bool dead, ended; /* its memory is gone; its first process has ended, others may have its memory */
	struct waiting *waiting;
	size_t nwaiting;
	int failed;    /* errno: pages cannot be put there */
	struct page_range *left; /* from where mremap(2) has moved pages, and has not yet said that nothing is there */
	size_t nleft;
	struct remap *early;     /* to where others still are, as far as has been told */
	size_t nearly;
	int64_t changed_ms;      /* the last time that its mappings changed; 0: never */
	struct memory *parent;   /* forked from this one at forked_ms; NULL: long ago */
	int64_t forked_ms;
	bool unsure;             /* mappings changed while it was forked: nobody can tell which it has */
	bool again;    /* something could not be done as the memory was changing: look once more */
};

/* What has been asked for and has not come. */
struct asked {
	uint32_t id;
	struct page_get get;
};

struct fetcher {
	struct page_plan plan;
	struct addr addr;
	struct link link;
	bool connected, progress; /* something has come since */
	char why[512]; /* what the other side has said last before it went, or "" */
	bool taken, letting, released, runs; /* the original cannot run any more; restart lets ours go, and has; it runs */
	bool unsure;			     /* nobody knows whether it has run */
	bool over, ended, detached;
	unsigned char session[PAGE_SESSION];
	struct memory **memories;
	size_t nmemories;
	struct asked *asked;
	size_t nasked;
	uint32_t last_id;
	struct page_counts counts, reported;
	bool streamed;       /* nothing more comes unasked */
	uint32_t owed;       /* pieces that may come, as soon as nobody waits */
	uint32_t under_way;  /* that have been asked for */
	bool begun;          /* the stream */
	int64_t fault_ms, lost_ms, try_ms, report_ms;
	unsigned tries;
	pid_t first;         /* for messages */
	uint64_t nbad;
	bool careful;        /* some are damaged: page by page */
	int64_t probe_ms;
	bool said_bad;
	int control, guard;
	pid_t server;        /* a child of ours that serves an image, or 0 */
	unsigned restarts;
	unsigned char room[FRAME_RAW_MAX];
};

/* --- fetch.c */
/* One of our own that has ended is started again. */
void fetch_see_to_server(struct fetcher *f);
/* It cannot go on: all of them end, with this line. */
void fetch_end_all(struct fetcher *f, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* --- fetch_link.c. They return 0, or a negative errno, logged; what is lost is tried again by fetch_reconnect() */
int fetch_connect(struct fetcher *f);
void fetch_lost(struct fetcher *f);
/* If it is time. */
void fetch_reconnect(struct fetcher *f);
/* A page, unless it has been asked for already. */
void fetch_ask(struct fetcher *f, int64_t task, taddr source, uint32_t npages);
/* As many pieces of the rest as may come now. */
void fetch_stream(struct fetcher *f);
/* One message, if there is one. Returns 0, -EAGAIN, or -ECONNRESET where the connection is lost. */
int fetch_receive(struct fetcher *f, bool wait);
enum { REPORT_MS = 200 };
/* Has something been counted that has not been reported? */
bool fetch_has_news(const struct fetcher *f);
void fetch_report(struct fetcher *f);
/* When all memories have all. */
bool fetch_has_all(const struct fetcher *f);
int fetch_finish(struct fetcher *f);

/* --- fetch_fault.c */
/* Its missing pages are waited for from now on. Returns 0, or a negative errno, logged. */
int memory_register(const struct memory *m);
void memory_unregister(const struct memory *m);
/* Everything that it has to tell. */
void memory_events(struct fetcher *f, struct memory *m);
/* Pages of a task that have come: content of p->runs, one behind the other, or NULL; what is in no run is zero. */
void memory_take(struct fetcher *f, struct memory *m, const struct page_pieces *p, const unsigned char *content);
void memory_bad(struct fetcher *f, struct memory *m, const struct page_pieces *p);
/* Those who wait for what is here, and those for whom nobody has asked. */
void memory_settle(struct fetcher *f, struct memory *m);
/* Has it no memory any more? */
bool memory_is_gone(int uffd);
void memory_free(struct memory *m);

/* --- fetch_guard.c */
/* Returns its fd: it ends quietly when told so by guard_done(), and kills them all when we end otherwise. */
int guard_start(const struct fetcher *f);
void guard_add(int guard, int uffd);
/* They run, and perhaps nobody waits for them. */
void guard_settle(int guard, bool detached);
void guard_done(int guard);
/* They are to end. */
void guard_kill(int guard);

#endif
