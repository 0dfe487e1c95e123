/*
 * link: frames of the wire protocol to and from a peer, over fds or TLS. One thread reads; any may send.
 */
#ifndef PMS_LINK_H
#define PMS_LINK_H

#include <pthread.h>
#include <sys/types.h>

#include "msg.h"

struct ssl_st;

struct link {
	int in, out;          /* owned; may be one */
	pid_t helper;         /* ssh, or 0 */
	int urgent;           /* where this can be read, a wait that takes long is given up; -1: never. Borrowed */
	struct ssl_st *tls;   /* owned, or NULL */
	enum msg_side side;
	enum msg_state state; /* set by link_start() */
	char *peer;           /* owned, for messages */
	pthread_mutex_t lock; /* of sending, and of tls */
	struct buf input;     /* what has come, from `taken` on not yet taken */
	size_t taken;
	bool broken;
	bool mute;            /* nothing can be sent any more */
	bool alone;           /* who sends is who reads, and must not wait for ever: urgent ends that, too */
};

enum { LINK_HANDSHAKE_MS = 10000 };

/* Takes fds. */
void link_init(struct link *l, int in, int out, const char *peer);
/* TLS 1.3 with the key in this file, as server or as client. Returns 0, or a negative errno, logged. */
int link_secure(struct link *l, const char *key, bool server);
/* The second half of that, where tls is there already. */
int link_handshake(struct link *l);
/* Its fds get numbers of at least min, close-on-exec. Returns 0, or a negative errno. Silent. */
int link_move_up(struct link *l, int min);
void link_close(struct link *l);

/* First of all which side we are. */
void link_start(struct link *l, enum msg_side side);

/*
 * Send a frame; what comes meanwhile is kept, so that two who send much do not wait for each other for ever.
 * Returns 0, or a negative errno, logged once.
 */
int link_send(struct link *l, enum msg_type type, uint32_t id, const void *body, size_t len);
/* The same where b begins with MSG_HEADER bytes of room for the header. */
int link_send_buf(struct link *l, enum msg_type type, uint32_t id, struct buf *b);
/* And behind b there is more. */
int link_send_parts(struct link *l, enum msg_type type, uint32_t id, struct buf *b, const void *tail, size_t tail_len);

/*
 * The next frame; *body is valid until the next of these. wait: until there is one; else -EAGAIN where there is not. deadline: now_ms(), or
 * 0. Returns 0, -ETIMEDOUT, or a negative errno, logged once; -ECONNRESET where it has ended, silent between two frames. FAILED is told, and -EREMOTEIO.
 */
int link_receive(struct link *l, struct msg_header *h, const unsigned char **body, bool wait, int64_t deadline);
/*
 * Does the next thing that comes begin a frame longer than this, which is not here whole? Returns 1, and then its body is to be taken by
 * link_pull(), which waits; 0; or a negative errno as above.
 */
int link_begin_long(struct link *l, struct msg_header *h, size_t longer_than);
int link_pull(struct link *l, void *data, size_t len);
/* Is there something in the buffers, so that poll(2) does not tell? */
bool link_waiting(struct link *l);

/* Tell the other end that it is over. Silent. */
void link_fail(struct link *l, const char *why);

#endif
