/*
 * Another machine: what its rexec-sys serve executes for us.
 */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "addr.h"
#include "io.h"
#include "log.h"
#include "rexec.h"

/* What ssh: executes at the other end. */
#define PROGRAM "rexec-sys serve -l -"

static int64_t
clock_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static int
get_facts(struct facts *f, const unsigned char *body, size_t len, int64_t at_ns)
{
	struct rbuf r = {body, len, 16, false};
	const void *u;

	if (msg_get_hello(body, len) < 0)
		return -EPROTO;
	for (size_t i = 0; i < 3; i++)
		f->uid[i] = rbuf_get_u32(&r);
	for (size_t i = 0; i < 3; i++)
		f->gid[i] = rbuf_get_u32(&r);
	f->ngroups = rbuf_get_u32(&r);
	if (f->ngroups > REMOTE_GROUPS_MAX)
		return -EPROTO;
	for (size_t i = 0; i < f->ngroups; i++)
		f->groups[i] = rbuf_get_u32(&r);
	u = rbuf_get(&r, sizeof(f->utsname));
	if (u != NULL)
		memcpy(f->utsname, u, sizeof(f->utsname));
	f->ahead_ns = (int64_t)(rbuf_get_u64(&r) * 1000000000ULL + rbuf_get_u64(&r)) - at_ns;
	return r.failed || rbuf_left(&r) > 0 ? -EPROTO : 0;
}

/* Say who we are, and hear who they are. */
static int
greet(struct remote *r, const char *address, enum msg_type type, const char *image)
{
	const unsigned char *body;
	struct msg_header h;
	struct buf hello = {0};
	int64_t asked_ns = clock_ns();
	int err;

	link_start(&r->link, SIDE_CALLER);
	msg_put_hello(&hello);
	if (image != NULL)
		buf_put(&hello, image, strlen(image));
	err = link_send(&r->link, type, 0, hello.data, hello.len);
	buf_fini(&hello);
	/* ssh may have to ask its user something. */
	if (err == 0)
		err = link_receive(&r->link, &h, &body, true, r->link.helper > 0 ? 0 : now_ms() + LINK_HANDSHAKE_MS);
	if (err == -ETIMEDOUT)
		err = -EHOSTUNREACH;
	if (err == -ECONNRESET)
		fail(ECONNRESET, r->link.helper > 0 ? "%s: ended without an answer (is rexec-sys in the PATH there?)" : "%s: ended without an answer", address);
	if (err == 0 && get_facts(&r->facts, body, h.length, (asked_ns + clock_ns()) / 2) < 0)
		err = fail(EPROTO, "%s: speaks another version of the protocol", address);
	return err;
}

int
remote_open(struct remote *r, const char *address, const char *key)
{
	struct addr a;
	int err = addr_parse(&a, address);

	if (err < 0)
		return err;
	err = addr_connect(&a, key, PROGRAM, &r->link);
	addr_fini(&a);
	return err < 0 ? err : greet(r, address, MSG_CALLS, NULL);
}

int
remote_adopt(struct remote *r, const char *address, const char *key, int in, int out, const char *image)
{
	struct addr a;
	int err = 0;

	if (in >= 0) {
		link_init(&r->link, in, out, address);
		if (link_move_up(&r->link, 10) < 0) /* stdio is not for this */
			return fail(EMFILE, "no fd for the connection");
	} else {
		err = addr_parse(&a, address);
		if (err < 0)
			return err;
		err = a.kind == ADDR_UNIX || a.kind == ADDR_TCP || a.kind == ADDR_CLEAR ? addr_connect(&a, key, NULL, &r->link)
		    : fail(EINVAL, "%s: not where a home can be", address);
		addr_fini(&a);
	}
	return err < 0 ? err : greet(r, address, MSG_ADOPT, image);
}

void
remote_close(struct remote *r)
{
	if (r->link.peer != NULL)
		link_close(&r->link);
}

int
remote_send(struct remote *r, uint32_t thread, const struct calldata *c, uint32_t *id)
{
	static const unsigned char room[MSG_HEADER];
	struct buf out = {0};
	int err;

	*id = ++r->last_id == 0 ? ++r->last_id : r->last_id;
	buf_put(&out, room, sizeof(room));
	buf_put_u32(&out, thread);
	calldata_put_call(&out, c);
	err = link_send_buf(&r->link, MSG_CALL, *id, &out);
	buf_fini(&out);
	return err;
}

int
remote_call(struct remote *r, uint32_t thread, struct calldata *c, int64_t *result)
{
	const unsigned char *body;
	struct msg_header h;
	uint32_t id;
	int err = remote_send(r, thread, c, &id);

	if (err == 0)
		err = link_receive(&r->link, &h, &body, true, 0);
	if (err == -ECONNRESET)
		return fail(ECONNRESET, "%s: ended without an answer", r->link.peer);
	if (err == 0 && (h.type != MSG_RESULT || h.id != id || calldata_get_result(c, body, h.length, result) < 0))
		err = fail(EPROTO, "%s: an answer to something else", r->link.peer);
	return err;
}
