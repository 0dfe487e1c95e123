/*
 * rexec-sys call: calls as text, one after the other, in a running process or on another machine.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "log.h"
#include "rexec.h"

/* --- what came of it */

static int
print_text(const struct calldata *c, int64_t result)
{
	struct buf out = {0};
	int err;

	syscall_text_put(&out, c, result);
	buf_put(&out, "\n", 1);
	err = out.failed || fwrite(out.data, 1, out.len, stdout) != out.len || fflush(stdout) != 0 ? -EIO : 0;
	buf_fini(&out);
	return err < 0 ? fail(EIO, "output: %s", strerror(errno)) : 0;
}

static json_t *
arg_as_json(const struct calldata *c, unsigned i, int64_t result)
{
	struct buf out = {0};
	json_t *text;

	syscall_text_put_arg(&out, c, i, result);
	text = json_stringn((const char *)out.data, out.len);
	buf_fini(&out);
	return text;
}

static int
print_json(const struct calldata *c, int64_t result)
{
	json_t *o = json_object(), *args = json_array();
	bool failed = result < 0 && result >= -4095;
	char *text;
	int err;

	json_object_set_new(o, "call", json_string(syscall_name(c->nr)));
	for (unsigned i = 0; i < c->shown; i++)
		json_array_append_new(args, arg_as_json(c, i, result));
	json_object_set_new(o, "arguments", args);
	json_object_set_new(o, "result", json_integer(failed ? -1 : result));
	json_object_set_new(o, "error", failed ? json_string(strerrorname_np((int)-result)) : json_null());
	text = json_dumps(o, JSON_COMPACT);
	err = text == NULL || puts(text) < 0 || fflush(stdout) != 0 ? fail(EIO, "output: %s", strerror(errno)) : 0;
	free(text);
	json_decref(o);
	return err;
}

/* --- calls */

/* Who executes them: the one or the other. */
struct executes {
	struct lender lender;
	struct remote *remote;
};

/* 1 where the call has returned an error that it may not have. */
static int
run_line(struct executes *x, const struct call_options *o, const struct line *line, int64_t *results, size_t n)
{
	struct calldata c;
	char why[200];
	int err = syscall_text_parse(&c, line->words[0], line->words + 1, line->nwords - 1, results, n, why);

	if (err < 0)
		fail(-err, "%s", why);
	if (err == 0 && calldata_check(&c) < 0)
		err = fail(EINVAL, "%s: there is not as much data as the call would touch", syscall_name(c.nr));
	if (err == 0)
		err = x->remote != NULL ? remote_call(x->remote, 1, &c, &results[n]) : lend_call(&x->lender, &c, &results[n]);
	if (err == 0)
		err = o->json ? print_json(&c, results[n]) : print_text(&c, results[n]);
	calldata_fini(&c);
	return err < 0 ? err : results[n] < 0 && results[n] >= -4095 && !line->may_fail;
}

static int
run_lines(struct executes *x, const struct call_options *o, const struct script_text *s)
{
	int64_t *results = calloc(s->nlines + 1, sizeof(*results));
	int err = results == NULL ? fail(ENOMEM, "out of memory") : 0;

	for (size_t i = 0; i < s->nlines && err == 0 && !cancelled(); i++)
		err = run_line(x, o, &s->lines[i], results, i);
	free(results);
	return err;
}

int
call_by_hand(const struct call_options *o, const struct script_text *s)
{
	struct executes x = {.lender = {.target = TARGET_NONE, .block_ms = o->block_ms, .cancelled = cancelled}};
	int err, ended = 0;

	if (o->address != NULL) {
		x.remote = calloc(1, sizeof(*x.remote));
		err = x.remote == NULL ? fail(ENOMEM, "out of memory") : remote_open(x.remote, o->address, o->key);
	} else {
		err = lend_begin(&x.lender, o->pid, o->tid != 0 ? o->tid : o->pid);
	}
	if (err == 0)
		err = run_lines(&x, o, s);
	if (o->address == NULL)
		ended = lend_end(&x.lender);
	else if (x.remote != NULL)
		remote_close(x.remote);
	free(x.remote);
	return err < 0 ? err : ended < 0 ? ended : err;
}
