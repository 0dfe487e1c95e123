/*
 * pagesrv: pages on demand, from an image or from a process that stands still.
 *
 *   main.c          arguments and the exit status
 *   serve.c         who comes, and when it is over
 *   session.c       one user: what he asks for, and what he is sent
 *   space.c         a memory: who has which page of it
 *   source.c        where pages come from
 *   source_live.c   a process that stands still
 *   owner.c         the process that is served: it is taken over, and ended
 *   ahead.c         what is likely to be asked for next
 *   told.c          how it stands, for people and scripts: stat, wait
 *   use.c           reading and writing of such a memory by hand
 *   fetch.c         the other side: a process whose pages come when it touches them (fetch.h)
 */
#ifndef PAGESRV_H
#define PAGESRV_H

#include <jansson.h>
#include <pthread.h>
#include <sys/types.h>

#include "addr.h"
#include "arch.h"
#include "page_file.h"
#include "page_plan.h"
#include "page_states.h"
#include "page_wire.h"

/* --- source.c: several threads have one each, of the same */

struct source;       /* shared by all */
struct source_reader; /* a thread's */

/* Takes fd. Returns 0, or a negative errno, logged. */
int source_open_image(struct source **s, int fd, const char *name);
/* Takes what is open in the plan. */
int source_open_live(struct source **s, const struct page_plan *plan);
const char *source_id(const struct source *s);
bool source_has_task(const struct source *s, int64_t task);
/* What it holds, as far as it is known; 0: it is not. */
void source_size(const struct source *s, uint64_t *pages, uint64_t *bytes);

/* level: how well pages of a process are packed for the way: 0 not, or zstd's. */
struct source_reader *source_reader_new(struct source *s, int level);
void source_reader_free(struct source_reader *r);
/*
 * Just these pages (at most PIECE_PAGES): *p gets runs and a frame, valid until the next of these. One that cannot be had gives PIECE_BAD. Returns 0, or a negative errno,
 * logged.
 */
int source_pages(struct source_reader *r, int64_t task, taddr addr, uint64_t npages, struct page_pieces *p);
/* The next at or behind addr, as many as go together, below limit. p->to: up to where nothing else is. */
int source_next(struct source_reader *r, int64_t task, taddr addr, taddr limit, struct page_pieces *p);
/* The content of one page: 4096 bytes, zeroes where there is none. */
int source_page(struct source_reader *r, int64_t task, taddr addr, unsigned char out[PAGE_BYTES]);

/* --- source_live.c: pages of [addr, limit) that a process has, up to PIECE_PAGES; *end: nothing else is before it. */
int live_find(int pagemap, taddr addr, taddr limit, struct page_run *runs, size_t *nruns, taddr *end);

/* --- ahead.c. Pure */

enum { AHEAD_STREAMS = 8, AHEAD_MAX = 256 };
struct ahead {
	struct ahead_stream {
		int64_t task;
		taddr next;      /* what would go on, upwards or downwards */
		uint32_t window; /* pages that are sent unasked */
		bool down;
		uint64_t used;
	} stream[AHEAD_STREAMS];
	uint64_t clock;
};
/* A page is asked for: which others are to go with it? Returns their number, from *from on. */
uint32_t ahead_asked(struct ahead *a, int64_t task, taddr addr, uint32_t npages, taddr *from);

/* --- space.c */

struct session;
struct space;
struct space *space_new(void);
void space_free(struct space *s);
/* Everything in it is done by one at a time. */
void space_lock(struct space *s);
void space_unlock(struct space *s);
/* Returns 0, or -EBUSY where no more can use it, logged. */
int space_enter(struct space *s, struct session *who);
void space_leave(struct space *s, struct session *who);
/* For a memory of one user alone: he has these pages now. Were they all his before? */
bool space_grant(struct space *s, const struct session *who, int64_t task, taddr addr, uint64_t npages);
bool space_has_all(const struct space *s, const struct session *who, int64_t task, const struct page_run *runs, size_t nruns);
/* For one of several. Answers go to whom they are for. Returns 0, or a negative errno, logged. */
int space_ask(struct space *s, struct session *who, uint32_t id, const struct page_get *g);
/* INVALIDATED came. page: its content, or NULL. */
int space_called(struct space *s, struct session *who, const struct page_call *c, const unsigned char *page);

/* --- session.c */

struct range {
	int64_t task;
	taddr start, end;
};

struct session {
	struct server *server;
	struct link link;
	bool took, runs, complete, over, lost, serving; /* serving: a thread is at it */
	unsigned char identity[PAGE_SESSION];
	struct space *space;
	bool shared;
	int64_t called_ms;   /* when others began to wait for what he has, or 0 */
	unsigned user;       /* in its space */
	struct source_reader *reader;
	struct ahead ahead;
	struct range *ranges; /* to be streamed, in this order */
	size_t nranges, at_range;
	taddr cursor;
	uint32_t credit;
	bool streamed; /* nothing is left of ranges */
	struct page_counts counts; /* as he has reported */
	uint64_t sent, pieces, ahead_pages, pages; /* as we have counted; bytes */
	int64_t since_ms;
	int wake;                 /* eventfd: something is in the outbox */
	pthread_mutex_t outbox_lock;
	struct outgoing *outbox;
	size_t noutbox;
};

/* A message for a user, sent by his own thread. b begins with room for the header, and is taken. */
void session_post(struct session *s, enum msg_type type, uint32_t id, struct buf *b);
/* A connection has been made: serve it to its end. */
void session_run(struct server *server, struct link *link);
/* Nothing more comes of it: only what has been counted is kept. */
void session_end(struct session *s);
void session_free(struct session *s);
/* Begin the body of a message. */
struct buf message_new(void);

/* --- serve.c */

struct serve_options {
	const char *address, *key;
	const char *image; /* or */
	int pid;
	bool once;         /* the end of the first who has all is that of the server */
	int level, retry_s;
};

struct server {
	const struct serve_options *opt;
	struct source *source;
	struct owner *owner; /* of a process, or NULL */
	struct space *shared;
	const char *name;
	bool single; /* one connection, and no other can come */
	pthread_mutex_t lock;     /* of what follows */
	pthread_cond_t changed;
	struct session **sessions; /* those that have been attached, also where the connection is lost */
	size_t nsessions;
	unsigned threads;
	bool over;
	int wake;                 /* eventfd: over has been set */
};

int serve(const struct serve_options *opt);
/* For a process of our own: until it has all, or does not come for so long. Takes listener. */
int serve_local(const char *image, const struct addr *a, int listener, int retry_s);
/* What ckpt -m leaves to us. */
int serve_plan(int fd);
/* The session with this identity, or a new one, which is then the caller's thread's alone. NULL where it is in use, or memory ran out; logged. */
struct session *server_session(struct server *server, const struct attach *a, bool *known);
void server_left(struct server *server, struct session *s);
void server_end(struct server *server);

/* --- owner.c */

struct owner;
/* By hand: a process that ckpt has parked, with its descendants. Returns 0, or a negative errno, logged. */
int owner_find(struct owner **o, struct page_plan *plan, pid_t pid);
int owner_from_plan(struct owner **o, const struct page_plan *plan);
/* Somebody wants to let it run elsewhere. Returns 0 when it can never run here any more, or a negative errno, logged. */
int owner_take(struct owner *o);
/* Somebody says that he has taken it before. Can he be the one? */
bool owner_retake(struct owner *o);
/* It runs elsewhere; all of its memory is there: it ends. */
void owner_runs(struct owner *o);
int owner_release(struct owner *o);
/* It has ended elsewhere, where it may have run: it stays as it is. */
void owner_unknown(struct owner *o);
/* Whoever came has gone again, before it was taken. */
void owner_failed(struct owner *o);
bool owner_taken(const struct owner *o);
/* Where something can be read when ckpt has gone, or -1. */
int owner_control(const struct owner *o);
/* ckpt has gone: does that end it? */
bool owner_left(struct owner *o);
pid_t owner_pid(const struct owner *o);

/* --- told.c */

/* Where pages are. Returns 0, or a negative errno, logged. */
int page_address(struct addr *a, const char *text);
/* As a user of them: *attach is what is said first, and then what was answered. Returns 0, or a negative errno, logged. */
int page_attach(struct link *link, struct attach *attach, int64_t deadline);

json_t *told_json(struct server *server);
/* Ask, print. wait: when everybody has all. Returns 0, or a negative errno, logged. */
int told(const char *address, const char *key, bool wait, bool json);

/* --- use.c */
int use(const char *address, const char *key, bool shared);

/* --- fetch.c: what restart leaves to us */
int fetch(int fd);

#endif
