/*
 * Reading and writing by hand: a user like any other, whose memory is that of this program. Commands on stdin, a line each:
 *
 *     r TASK ADDRESS [BYTES]     read; prints the bytes in hex
 *     w TASK ADDRESS HEX         write
 *     state TASK ADDRESS         none, read or write: as what it is here
 *     sleep MS                   others have time to take something away
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io.h"
#include "log.h"
#include "pagesrv.h"

enum { ANSWER_MS = 60000 };

struct held {
	int64_t task;
	taddr addr;
	uint32_t state;
	unsigned char content[PAGE_BYTES];
};

struct user {
	struct link link;
	struct held **held;
	size_t nheld;
	uint32_t last_id;
	bool live;    /* of a process, which is not ours */
	unsigned char room[FRAME_RAW_MAX];
};

static struct held *
find(const struct user *u, int64_t task, taddr addr)
{
	for (size_t i = 0; i < u->nheld; i++)
		if (u->held[i]->task == task && u->held[i]->addr == addr)
			return u->held[i];
	return NULL;
}

/* The page of this place, which may be none yet. */
static struct held *
hold(struct user *u, int64_t task, taddr addr)
{
	struct held *h = find(u, task, addr), **slot = h == NULL ? ARRAY_ADD(u->held, u->nheld) : NULL;

	if (h != NULL || slot == NULL)
		return h;
	*slot = h = calloc(1, sizeof(*h));
	if (h == NULL)
		u->nheld--;
	else
		h->task = task, h->addr = addr;
	return h;
}

/* Others are to have it. */
static int
give_back(struct user *u, const struct page_call *c)
{
	struct held *h = find(u, c->task, c->addr);
	struct frame *f = malloc(sizeof(*f));
	struct buf b = message_new();
	int err;

	page_call_put(&b, c);
	if (f != NULL && h != NULL && h->state == PAGE_WRITE) {
		memcpy(frame_raw(f), h->content, PAGE_BYTES);
		f->raw_len = PAGE_BYTES;
		frame_pack(f, 0);
		buf_put(&b, f->packed, f->packed_len);
	}
	b.failed |= f == NULL;
	if (h != NULL && h->state > c->state)
		h->state = c->state;
	err = link_send_buf(&u->link, MSG_INVALIDATED, 0, &b);
	buf_fini(&b);
	free(f);
	return err;
}

static int
take(struct user *u, const struct page_pieces *p)
{
	const unsigned char *content = NULL;
	struct held *h;
	int64_t n = p->frame_len > 0 ? frame_unpack(p->frame, p->frame_len, u->room, &content) : 0;

	if (n != (int64_t)(p->frame_len > 0 ? p->npages * PAGE_BYTES : 0))
		return fail(EBADMSG, "%s: a piece is damaged", u->link.peer);
	if (p->to - p->from > PIECE_PAGES * PAGE_BYTES)
		return fail(EPROTO, "%s: more than was asked for", u->link.peer);
	if (p->flags & PIECE_BAD)
		return fail(EBADMSG, "%s: page %#llx of task %lld cannot be had any more", u->link.peer, (unsigned long long)p->from, (long long)p->task);
	for (taddr at = p->from; at < p->to; at += PAGE_BYTES) {
		h = hold(u, p->task, at);
		if (h == NULL)
			return fail(ENOMEM, "out of memory");
		h->state = p->granted;
		if (!(p->flags & PIECE_KEPT))
			memset(h->content, 0, PAGE_BYTES);
	}
	for (size_t i = 0; i < p->nruns && content != NULL; i++)
		for (uint64_t k = 0; k < p->runs[i].npages; k++, content += PAGE_BYTES)
			memcpy(find(u, p->task, p->runs[i].addr + k * PAGE_BYTES)->content, content, PAGE_BYTES);
	return 0;
}

/* The next message. *id: what it answers. */
static int
receive(struct user *u, bool wait, uint32_t *id)
{
	const unsigned char *body, *frame;
	struct page_pieces p;
	struct msg_header h;
	struct page_call c;
	size_t len;
	int err = link_receive(&u->link, &h, &body, wait, wait ? now_ms() + ANSWER_MS : 0);

	*id = 0;
	if (err == -ECONNRESET)
		return fail(ECONNRESET, "%s: has gone", u->link.peer);
	if (err < 0)
		return err;
	*id = h.id;
	if (h.type == MSG_PIECE)
		return page_pieces_get(&p, body, h.length) < 0 ? fail(EPROTO, "%s: a piece that makes no sense", u->link.peer) : take(u, &p);
	if (h.type == MSG_INVALIDATE)
		return page_call_get(&c, body, h.length, &frame, &len) < 0 ? fail(EPROTO, "%s: a call that makes no sense", u->link.peer) : give_back(u, &c);
	return fail(EPROTO, "%s: a message out of order", u->link.peer);
}

static int
need(struct user *u, int64_t task, taddr addr, uint32_t want)
{
	struct held *h = find(u, task, addr);
	struct buf b = message_new();
	uint32_t id = ++u->last_id, answered = 0;
	int err;

	if (h != NULL && h->state >= want) {
		buf_fini(&b);
		return 0;
	}
	page_get_put(&b, &(struct page_get){task, addr, 1, want});
	err = link_send_buf(&u->link, MSG_GET, id, &b);
	buf_fini(&b);
	while (err == 0 && answered != id)
		err = receive(u, true, &answered);
	h = find(u, task, addr);
	return err == 0 && (h == NULL || h->state < want) ? fail(EPROTO, "%s: does not give what was asked for", u->link.peer) : err;
}

/* --- commands */

static int
do_read(struct user *u, int64_t task, taddr addr, uint64_t n)
{
	int err = 0;

	for (; n > 0 && err == 0; n--, addr++) {
		err = need(u, task, page_down(addr), PAGE_READ);
		if (err == 0)
			printf("%02x", find(u, task, page_down(addr))->content[addr % PAGE_BYTES]);
	}
	printf("\n");
	return err;
}

static int
do_write(struct user *u, int64_t task, taddr addr, const char *hex)
{
	int err = 0;

	for (; *hex != '\0' && err == 0; hex += 2, addr++) {
		char two[3] = {hex[0], hex[1], '\0'};
		unsigned char byte;

		if (hex[1] == '\0' || !hex_decode(&byte, 1, two))
			return fail(EINVAL, "w: bytes are pairs of lower-case hex digits");
		err = need(u, task, page_down(addr), PAGE_WRITE);
		if (err == 0)
			find(u, task, page_down(addr))->content[addr % PAGE_BYTES] = byte;
	}
	printf("ok\n");
	return err;
}

/* Meanwhile others are given what they need. */
static int
do_sleep(struct user *u, int64_t ms)
{
	int64_t end = now_ms() + ms;
	int err = 0;

	while (err == 0 && now_ms() < end) {
		struct pollfd p = {u->link.in, POLLIN, 0};
		uint32_t id;

		if (!link_waiting(&u->link) && poll(&p, 1, (int)max_i64(1, end - now_ms())) == 0)
			break;
		err = receive(u, false, &id);
		err = err == -EAGAIN ? 0 : err;
	}
	printf("ok\n");
	return err;
}

static int
command(struct user *u, char *line)
{
	static const char *const states[] = {"none", "read", "write"};
	char hex[8193];
	long long task, ms;
	unsigned long long addr, n = 1;
	const struct held *h;

	if (sscanf(line, "r %lld %lli %lli", &task, (long long *)&addr, (long long *)&n) >= 2 && addr < ARCH_USER_END - (1 << 20) && n <= 1 << 20)
		return do_read(u, task, addr, n);
	if (sscanf(line, "w %lld %lli %8192s", &task, (long long *)&addr, hex) == 3 && addr < ARCH_USER_END - (1 << 20))
		return do_write(u, task, addr, hex);
	if (sscanf(line, "state %lld %lli", &task, (long long *)&addr) == 2) {
		h = find(u, task, page_down(addr));
		printf("%s\n", states[h != NULL ? h->state : 0]);
		return 0;
	}
	if (sscanf(line, "sleep %lld", &ms) == 1 && ms >= 0 && ms < 86400000)
		return do_sleep(u, ms);
	return fail(EINVAL, "%s: r TASK ADDRESS [BYTES], w TASK ADDRESS HEX, state TASK ADDRESS, sleep MS", line);
}

static int
attach(struct user *u, bool shared)
{
	struct attach a = {.flags = shared ? ATTACH_SHARED : 0};
	int err;

	memset(a.id, '0', IMAGE_ID);
	err = page_attach(&u->link, &a, now_ms() + LINK_HANDSHAKE_MS);
	u->live = (a.flags & ATTACH_LIVE) != 0;
	return err;
}

/* He needs nothing any more. */
static int
finish(struct user *u)
{
	const unsigned char *body;
	struct msg_header h = {0};
	int err = link_send(&u->link, MSG_HAVE_ALL, 0, NULL, 0);

	while (err == 0 && h.type != MSG_RELEASED)
		err = link_receive(&u->link, &h, &body, true, now_ms() + ANSWER_MS);
	return err;
}

int
use(const char *address, const char *key, bool shared)
{
	struct user *u = calloc(1, sizeof(*u));
	char *line = NULL;
	size_t cap = 0;
	struct addr a;
	int err = page_address(&a, address);

	if (u == NULL)
		return fail(ENOMEM, "out of memory");
	setvbuf(stdin, NULL, _IONBF, 0); /* poll(2) is to tell of every line */
	u->link = (struct link){.in = -1, .out = -1};
	if (err == 0)
		err = addr_connect(&a, key, "pagesrv serve", &u->link);
	if (err == 0)
		err = attach(u, shared);
	while (err == 0) {
		struct pollfd p[2] = {{STDIN_FILENO, POLLIN, 0}, {u->link.in, POLLIN, 0}};
		ssize_t n;
		uint32_t id;

		/* Between two commands, too, others need what is here. */
		if (!link_waiting(&u->link) && poll(p, 2, -1) > 0 && p[0].revents != 0) {
			n = getline(&line, &cap, stdin);
			if (n < 0)
				break;
			line[strcspn(line, "\n")] = '\0';
			err = line[0] == '\0' || line[0] == '#' ? 0 : command(u, line);
			fflush(stdout);
		} else {
			err = receive(u, false, &id);
			err = err == -EAGAIN ? 0 : err;
		}
	}
	/* What has been written here is the memory's: it does not go with us. */
	for (size_t i = 0; i < u->nheld && err == 0; i++)
		if (u->held[i]->state == PAGE_WRITE)
			err = give_back(u, &(struct page_call){u->held[i]->task, u->held[i]->addr, PAGE_NONE});
	if (err == 0 && !u->live)
		err = finish(u);
	if (u->link.peer != NULL)
		link_close(&u->link);
	for (size_t i = 0; i < u->nheld; i++)
		free(u->held[i]);
	free(u->held);
	free(line);
	free(u);
	addr_fini(&a);
	return err;
}
