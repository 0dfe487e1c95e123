#include "frame_input.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "log.h"
#include "pipeline.h"

/* A frame on its way through a thread. */
struct unpack_job {
	struct job job; /* first */
	struct unpacked done;
	int64_t result;
	size_t have; /* bytes in packed[]; what is behind the frame belongs to the next one */
	size_t len;
	unsigned char packed[FRAME_PACKED_MAX + CONTROL_HEADER];
	unsigned char content[FRAME_RAW_MAX];
};

struct frame_input {
	ssize_t (*source)(void *, void *, size_t);
	void *ctx;
	const char *name;
	struct pipeline *pipe;
	struct unpack_job *idle[64];
	unsigned nidle, njobs;
	struct unpack_job *current;
	/* Read too far: the beginning of the next frame. */
	unsigned char ahead[FRAME_PACKED_MAX + CONTROL_HEADER];
	size_t nahead;
	size_t last_len; /* length of the last frame: about as long the next will be */
	bool begun, eof, image_end, wants_end;
	int err;
	/*
	 * Once there are threads one of them fetches; it alone uses what is above until it has
	 * ended, but for the idle jobs, which the lock guards with what follows.
	 */
	bool fetching;
	bool threaded; /* there is the pipeline for it */
	pthread_t fetcher;
	pthread_mutex_t lock;
	pthread_cond_t idle_again, fetched;
	unsigned nfetched; /* in the pipeline and not yet asked for */
	bool fetch_done;
};

static void
unpack(struct job *job)
{
	struct unpack_job *u = (struct unpack_job *)job;

	u->result = frame_unpack(u->packed, u->len, u->content, &u->done.content);
	u->done.content_len = u->result > 0 ? (size_t)u->result : 0;
	u->done.packed = u->packed;
	u->done.packed_len = u->len;
}

static int
set_jobs(struct frame_input *in, unsigned nthreads, unsigned depth)
{
	in->pipe = pipeline_new(nthreads, depth);
	if (in->pipe == NULL)
		return -ENOMEM;
	while (in->njobs < depth + 1) {
		struct unpack_job *u = malloc(sizeof(*u));

		if (u == NULL)
			return -ENOMEM;
		u->job.run = unpack;
		in->idle[in->nidle++] = u;
		in->njobs++;
	}
	return 0;
}

struct frame_input *
frame_input_new(ssize_t (*source)(void *, void *, size_t), void *ctx, const char *name)
{
	struct frame_input *in = calloc(1, sizeof(*in));

	if (in == NULL)
		return NULL;
	in->source = source;
	in->ctx = ctx;
	in->name = name;
	in->last_len = 4096;
	pthread_mutex_init(&in->lock, NULL);
	pthread_cond_init(&in->idle_again, NULL);
	pthread_cond_init(&in->fetched, NULL);
	if (set_jobs(in, 0, 1) < 0) {
		frame_input_free(in);
		return NULL;
	}
	return in;
}

void
frame_input_free(struct frame_input *in)
{
	struct job *job;

	if (in == NULL)
		return;
	if (in->fetching) { /* it may be waiting in read(2) */
		pthread_cancel(in->fetcher);
		pthread_join(in->fetcher, NULL);
	}
	while (in->pipe != NULL && (job = pipeline_take(in->pipe)) != NULL)
		in->idle[in->nidle++] = (struct unpack_job *)job;
	pipeline_free(in->pipe);
	while (in->nidle > 0)
		free(in->idle[--in->nidle]);
	free(in->current);
	free(in);
}

static int
bad(struct frame_input *in, const char *what)
{
	return in->err = fail(EBADMSG, "%s: bad image: %s", in->name, what);
}

/* More bytes into u. Returns 1, 0 at the end of the stream, or a negative errno. */
static int
read_more(struct frame_input *in, struct unpack_job *u, size_t want)
{
	ssize_t n = in->source(in->ctx, u->packed + u->have, want - u->have);

	if (n < 0)
		return in->err = (int)n;
	u->have += (size_t)n;
	in->eof = n == 0;
	return n > 0;
}

/* ACK in front of everything, the seek table behind everything: else nothing is skipped. */
static int
skippable(struct frame_input *in, struct unpack_job *u, uint32_t magic)
{
	if (magic == SEEK_TABLE_MAGIC && in->begun) {
		in->image_end = true;
		memcpy(in->ahead, u->packed, u->have);
		in->nahead = u->have;
		return 0;
	}
	if (magic != CONTROL_MAGIC || in->begun || in->wants_end)
		return bad(in, "a frame that is not the image's");
	while (u->have < CONTROL_HEADER)
		if (read_more(in, u, CONTROL_HEADER) <= 0)
			return in->err < 0 ? in->err : bad(in, "truncated");
	if (control_get(u->packed, u->have) != CONTROL_ACK ||
	    frame_length(u->packed, u->have, &magic) != CONTROL_HEADER)
		return bad(in, "it does not begin as one");
	in->wants_end = true;
	u->have -= CONTROL_HEADER;
	memmove(u->packed, u->packed + CONTROL_HEADER, u->have);
	return 1;
}

/* Fetch one frame into u. Returns 1, 0 where no more is to come, or a negative errno. */
static int
fetch(struct frame_input *in, struct unpack_job *u)
{
	uint32_t magic;
	int64_t len;
	int err;

	memcpy(u->packed, in->ahead, in->nahead);
	u->have = in->nahead;
	in->nahead = 0;
	for (;;) {
		size_t want;

		len = frame_length(u->packed, u->have, &magic);
		if (len < 0)
			return bad(in, in->begun ? "a frame is damaged" : "it is not one");
		if (magic != 0) {
			err = skippable(in, u, magic);
			if (err <= 0)
				return err;
			continue;
		}
		if (len > 0)
			break;
		want = u->have < 8 ? 8 : max_u64(in->last_len, u->have + 4096);
		err = read_more(in, u, min_u64(max_u64(want, in->last_len), FRAME_PACKED_MAX));
		if (err < 0)
			return err;
		if (err == 0)
			return u->have == 0 && in->begun ? 0
			    : bad(in, in->begun ? "truncated" : u->have == 0 ? "empty" : "it is not one");
	}
	in->begun = true;
	u->len = (size_t)len;
	in->last_len = u->len;
	in->nahead = u->have - u->len;
	memcpy(in->ahead, u->packed + u->len, in->nahead);
	return 1;
}

/* The thread that fetches, until there is no more or something is wrong. */
static void *
fetch_all(void *arg)
{
	struct frame_input *in = arg;
	int err = 1;

	while (err > 0) {
		struct unpack_job *u;
		bool stored;

		pthread_mutex_lock(&in->lock);
		while (in->nidle == 0)
			pthread_cond_wait(&in->idle_again, &in->lock);
		u = in->idle[--in->nidle];
		pthread_mutex_unlock(&in->lock);
		err = fetch(in, u);
		/* To check a stored frame costs less than to hand it to another thread. */
		stored = err > 0 && frame_is_stored(u->packed, u->len);
		if (stored)
			unpack(&u->job);
		pthread_mutex_lock(&in->lock);
		if (err > 0) {
			if (stored)
				pipeline_submit_done(in->pipe, &u->job);
			else
				pipeline_submit(in->pipe, &u->job);
			in->nfetched++;
		} else {
			in->idle[in->nidle++] = u;
			in->fetch_done = true;
		}
		pthread_cond_signal(&in->fetched);
		pthread_mutex_unlock(&in->lock);
	}
	return NULL;
}

int
frame_input_threads(struct frame_input *in)
{
	unsigned n = pipeline_default_threads();
	sigset_t all, old;
	int err;

	if (in->threaded)
		return 0;
	in->threaded = true;
	if (n > 16)
		n = 16;
	/* Nothing is under way: without threads a job is run when it is taken. */
	pipeline_free(in->pipe);
	in->pipe = NULL;
	err = set_jobs(in, n, n > 6 ? 3 * n : 20); /* enough to seldom wait for each other */
	if (err < 0 || in->image_end || in->eof)
		return err;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	in->fetching = pthread_create(&in->fetcher, NULL, fetch_all, in) == 0;
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return 0;
}

/* Is there a frame that the fetcher has fetched? Waits for it, or for the fetcher's end. */
static bool
wait_fetched(struct frame_input *in)
{
	bool have;

	pthread_mutex_lock(&in->lock);
	if (in->current != NULL) {
		in->idle[in->nidle++] = in->current;
		in->current = NULL;
		pthread_cond_signal(&in->idle_again);
	}
	while (in->nfetched == 0 && !in->fetch_done)
		pthread_cond_wait(&in->fetched, &in->lock);
	have = in->nfetched > 0;
	in->nfetched -= have;
	pthread_mutex_unlock(&in->lock);
	if (!have) {
		pthread_join(in->fetcher, NULL);
		in->fetching = false;
	}
	return have;
}

/* Without a thread for it: fetch as much as may be under way. Returns 0, or a negative errno. */
static int
fetch_some(struct frame_input *in)
{
	if (in->current != NULL)
		in->idle[in->nidle++] = in->current;
	in->current = NULL;
	while (!in->image_end && !in->eof && in->nidle > 0 && !pipeline_full(in->pipe)) {
		struct unpack_job *u = in->idle[in->nidle - 1];
		int err = fetch(in, u);

		if (err <= 0)
			return err;
		in->nidle--;
		pipeline_submit(in->pipe, &u->job);
	}
	return 0;
}

int
frame_input_next(struct frame_input *in, const struct unpacked **frame)
{
	struct unpack_job *u;

	*frame = NULL;
	if (in->fetching ? !wait_fetched(in) : in->err < 0 || fetch_some(in) < 0)
		return in->err;
	u = (struct unpack_job *)pipeline_take(in->pipe);
	in->current = u;
	if (u == NULL)
		return 0;
	if (u->result <= 0)
		return bad(in, "a frame is damaged");
	*frame = &u->done;
	return 1;
}

int
frame_input_error(const struct frame_input *in)
{
	return in->err;
}

bool
frame_input_at_end(const struct frame_input *in)
{
	return in->eof;
}

bool
frame_input_wants_end(const struct frame_input *in)
{
	return in->wants_end;
}

/* Bytes of the stream, first those that were read too far. */
static ssize_t
get_bytes(struct frame_input *in, void *data, size_t want)
{
	if (in->nahead > 0) {
		size_t n = min_u64(want, in->nahead);

		memcpy(data, in->ahead, n);
		in->nahead -= n;
		memmove(in->ahead, in->ahead + n, in->nahead);
		return (ssize_t)n;
	}
	return in->source(in->ctx, data, want);
}

/* Returns 1, 0 at a clean or unclean end of the stream, or a negative errno. */
static int
get_all(struct frame_input *in, unsigned char *data, size_t want)
{
	for (size_t got = 0; got < want;) {
		ssize_t n = get_bytes(in, data + got, want - got);

		if (n <= 0)
			return (int)n;
		got += (size_t)n;
	}
	return 1;
}

static int
skip(struct frame_input *in, uint64_t n)
{
	unsigned char waste[16384];
	int err = 1;

	for (; err > 0 && n > 0; n -= min_u64(n, sizeof(waste)))
		err = get_all(in, waste, min_u64(n, sizeof(waste)));
	return err;
}

int
frame_input_finish(struct frame_input *in)
{
	unsigned char head[8];
	const struct unpacked *frame;
	uint32_t magic;
	int err = frame_input_next(in, &frame);

	if (err < 0)
		return err;
	if (err > 0)
		return bad(in, "something follows its end marker");
	if (!in->image_end)
		return bad(in, "truncated: it has no seek table");
	err = get_all(in, head, sizeof(head));
	if (err > 0)
		err = skip(in, (uint64_t)frame_length(head, sizeof(head), &magic) - sizeof(head));
	return err > 0 ? 0 : err < 0 ? err : bad(in, "truncated in its seek table");
}

int
frame_input_await_end(struct frame_input *in)
{
	for (;;) {
		unsigned char head[CONTROL_HEADER];
		uint32_t magic;
		int64_t len;
		int type, err = get_all(in, head, sizeof(head));

		if (err <= 0)
			return err;
		type = control_get(head, sizeof(head));
		len = frame_length(head, sizeof(head), &magic);
		if (type == CONTROL_END)
			return 1;
		if (type != CONTROL_TAIL || len < CONTROL_HEADER)
			return bad(in, "its tail is malformed");
		err = skip(in, (uint64_t)len - CONTROL_HEADER);
		if (err <= 0)
			return err;
	}
}
