/*
 * How it stands: as JSON on the wire, and as text.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io.h"
#include "log.h"
#include "pagesrv.h"

/* --- the server */

static json_t *
session_json(const struct session *s)
{
	json_t *j = json_object();
	char hex[2 * 4 + 1]; /* who has all of it could come in its place */

	hex_encode(hex, s->identity, 4);
	json_object_set_new(j, "session", json_string(hex));
	json_object_set_new(j, "state", json_string(s->complete ? "complete" : s->over ? "over" : !s->serving ? "lost" : s->runs ? "running" : "attached"));
	json_object_set_new(j, "shared", json_boolean(s->shared));
	json_object_set_new(j, "pages sent", json_integer((json_int_t)s->pages));
	json_object_set_new(j, "pages sent ahead", json_integer((json_int_t)s->ahead_pages));
	json_object_set_new(j, "pieces sent", json_integer((json_int_t)s->pieces));
	json_object_set_new(j, "wire bytes", json_integer((json_int_t)s->sent));
#define COUNT(name, text) json_object_set_new(j, text, json_integer((json_int_t)s->counts.name));
#include "page_count.def"
#undef COUNT
	json_object_set_new(j, "fault us p50", json_real(page_counts_percentile(&s->counts, 500)));
	json_object_set_new(j, "fault us p90", json_real(page_counts_percentile(&s->counts, 900)));
	json_object_set_new(j, "fault us p99", json_real(page_counts_percentile(&s->counts, 990)));
	return j;
}

json_t *
told_json(struct server *server)
{
	json_t *j = json_object(), *list = json_array();
	uint64_t pages, bytes;

	source_size(server->source, &pages, &bytes);
	json_object_set_new(j, "source", json_string(server->name));
	json_object_set_new(j, "image", json_string(source_id(server->source)));
	json_object_set_new(j, "pages", json_integer((json_int_t)pages));
	json_object_set_new(j, "bytes", json_integer((json_int_t)bytes));
	pthread_mutex_lock(&server->lock);
	for (size_t i = 0; i < server->nsessions; i++)
		json_array_append_new(list, session_json(server->sessions[i]));
	pthread_mutex_unlock(&server->lock);
	json_object_set_new(j, "sessions", list);
	return j;
}

/* --- the one who asks */

int
page_address(struct addr *a, const char *text)
{
	int err = addr_parse(a, text);

	return err == 0 && a->kind == ADDR_SSH ? fail(EINVAL, "%s: a pagesrv is at unix:PATH or tcp:HOST:PORT (by ssh, ssh -L leads to one)", text) : err;
}

static void
print_value(const char *key, const json_t *v)
{
	char *text = json_dumps(v, JSON_ENCODE_ANY | JSON_REAL_PRECISION(6));

	if (json_is_string(v) && json_string_value(v)[strcspn(json_string_value(v), "\033\n\t\r")] == '\0')
		printf("%s\t%s\n", key, json_string_value(v));
	else if (text != NULL && !json_is_array(v))
		printf("%s\t%s\n", key, text);
	free(text);
}

/* "what<tab>value", a line each; sessions one behind the other, each begun by "session". */
static void
print_text(json_t *j)
{
	const char *key;
	json_t *v, *session;
	size_t i;

	json_object_foreach(j, key, v)
		print_value(key, v);
	json_array_foreach(json_object_get(j, "sessions"), i, session)
		json_object_foreach(session, key, v)
			print_value(key, v);
}

int
page_attach(struct link *link, struct attach *attach, int64_t deadline)
{
	struct buf b = message_new();
	const unsigned char *body;
	struct msg_header h;
	int err;

	link_start(link, SIDE_USER);
	attach_put(&b, attach);
	err = link_send_buf(link, MSG_ATTACH, 0, &b);
	buf_fini(&b);
	if (err == 0)
		err = link_receive(link, &h, &body, true, deadline);
	if (err == -ECONNRESET)
		return fail(ECONNRESET, "%s: ended without an answer", link->peer);
	return err == 0 && (h.type != MSG_ATTACHED || attach_get(attach, body, h.length) < 0) ? fail(EPROTO, "%s: no pagesrv", link->peer) : err;
}

static int
ask(struct link *link, bool wait, json_t **json)
{
	struct buf b = message_new();
	const unsigned char *body;
	struct msg_header h;
	int err;

	link_start(link, SIDE_USER);
	msg_put_hello(&b);
	buf_put_u32(&b, wait);
	err = link_send_buf(link, MSG_ASK, 0, &b);
	buf_fini(&b);
	if (err == 0)
		err = link_receive(link, &h, &body, true, wait ? 0 : now_ms() + LINK_HANDSHAKE_MS);
	if (err == -ECONNRESET)
		return fail(ECONNRESET, "%s: ended without an answer", link->peer);
	if (err == 0) {
		*json = json_loadb((const char *)body, h.length, 0, NULL);
		err = json_is_object(*json) ? 0 : fail(EPROTO, "%s: does not answer in JSON", link->peer);
	}
	return err;
}

int
told(const char *address, const char *key, bool wait, bool json)
{
	struct link link = {.in = -1, .out = -1};
	json_t *answer = NULL;
	struct addr a;
	int err = page_address(&a, address);

	if (err == 0) {
		err = addr_connect(&a, key, "pagesrv serve", &link);
		if (err == 0)
			err = ask(&link, wait, &answer);
		if (link.peer != NULL)
			link_close(&link);
	}
	if (err == 0 && json) {
		json_dumpf(answer, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(6));
		putchar('\n');
	} else if (err == 0 && !wait) {
		print_text(answer);
	}
	if (err == 0 && (fflush(stdout) != 0 || ferror(stdout)))
		err = fail(EIO, "stdout: cannot be written");
	json_decref(answer);
	addr_fini(&a);
	return err;
}
