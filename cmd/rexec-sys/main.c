/*
 * rexec-sys: arguments, one call after the other, the exit status.
 */
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

#include <jansson.h>

#include "io.h"
#include "log.h"
#include "options.h"
#include "rexec.h"

/* SIGINT and the like end it when the thread has what is its own. */
static volatile sig_atomic_t ending;

static void
on_signal(int sig)
{
	ending = sig;
}

static bool
cancelled(void)
{
	return ending != 0;
}

struct options {
	int pid, tid;
	int64_t block_ms;
	bool json;
};

static const char usage[] =
    "usage: rexec-sys call -p PID [-t TID] [-w SECONDS] [--json] NAME [ARG...]\n"
    "       rexec-sys call -p PID [-t TID] [-w SECONDS] [--json] - <SCRIPT\n";

enum { OPT_JSON = 256 };
static const struct option long_options[] = {
    {"pid", required_argument, NULL, 'p'}, {"tid", required_argument, NULL, 't'}, {"wait", required_argument, NULL, 'w'},
    {"json", no_argument, NULL, OPT_JSON}, OPTIONS_COMMON,
};

static void
get_options(int argc, char **argv, struct options *o)
{
	int opt;

	while ((opt = getopt_long(argc, argv, "+p:t:w:F:qvV", long_options, NULL)) != -1) {
		switch (opt) {
		case 'p':
			o->pid = options_number(optarg, 1, INT_MAX, "-p");
			break;
		case 't':
			o->tid = options_number(optarg, 1, INT_MAX, "-t");
			break;
		case 'w':
			o->block_ms = 1000LL * options_number(optarg, 1, INT_MAX / 1000, "-w");
			break;
		case OPT_JSON:
			o->json = true;
			break;
		default:
			options_common(opt, optarg);
		}
	}
	options_end();
}

/* --- what came of it */

static int
print_text(const struct syscall_text *c, int64_t result)
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
arg_as_json(const struct syscall_text *c, unsigned i, int64_t result)
{
	struct buf out = {0};
	json_t *text;

	syscall_text_put_arg(&out, c, i, result);
	text = json_stringn((const char *)out.data, out.len);
	buf_fini(&out);
	return text;
}

static int
print_json(const struct syscall_text *c, int64_t result)
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

/* 1 where the call has returned an error that it may not have. */
static int
run_line(struct lender *l, const struct options *o, const struct line *line, int64_t *results, size_t n)
{
	struct syscall_text c;
	char why[200];
	int err = syscall_text_parse(&c, line->words[0], line->words + 1, line->nwords - 1, results, n, why);

	if (err < 0)
		fail(-err, "%s", why);
	if (err == 0)
		err = lend_call(l, &c, &results[n]);
	if (err == 0)
		err = o->json ? print_json(&c, results[n]) : print_text(&c, results[n]);
	syscall_text_fini(&c);
	return err < 0 ? err : results[n] < 0 && results[n] >= -4095 && !line->may_fail;
}

static int
run_script(const struct options *o, const struct script_text *s)
{
	struct lender l = {.target = {.pidfd = -1, .proc = -1, .mem = -1}, .block_ms = o->block_ms, .cancelled = cancelled};
	int64_t *results = calloc(s->nlines + 1, sizeof(*results));
	int err = results == NULL ? fail(ENOMEM, "out of memory") : lend_begin(&l, o->pid, o->tid != 0 ? o->tid : o->pid), ended;

	for (size_t i = 0; i < s->nlines && err == 0 && !cancelled(); i++)
		err = run_line(&l, o, &s->lines[i], results, i);
	ended = lend_end(&l);
	free(results);
	return err < 0 ? err : ended < 0 ? ended : err;
}

static int
exit_status(int err)
{
	switch (-err) {
	case 0:
	case -1:
		return err;
	case ESRCH:
		return EX_NOINPUT;
	case EPERM:
		return EX_NOPERM;
	case EINVAL:
		return EX_USAGE;
	case ENOTSUP:
		return EX_UNAVAILABLE;
	case EBUSY:
	case ETIMEDOUT:
		return EX_TEMPFAIL;
	case EIO:
		return EX_IOERR;
	default:
		return EX_OSERR;
	}
}

int
main(int argc, char **argv)
{
	struct options o = {.block_ms = 10000};
	struct script_text script = {0};
	int err;

	io_keep_stdio();
	options_begin("rexec-sys", usage);
	if (argc >= 2 && strcmp(argv[1], "call") == 0)
		argc--, argv++;
	else if (argc < 2 || argv[1][0] != '-')
		options_misused(NULL);
	get_options(argc, argv, &o);
	if (o.pid == 0 || optind == argc)
		options_misused(NULL);
	if (strcmp(argv[optind], "-") == 0 && optind + 1 == argc)
		err = script_read(&script, STDIN_FILENO);
	else
		err = script_take(&script, argv + optind, (size_t)(argc - optind));
	if (err == 0)
		err = script_check(&script);
	options_catch(on_signal);
	if (err == 0)
		err = run_script(&o, &script);
	script_free(&script);
	if (cancelled()) {
		signal(ending, SIG_DFL);
		raise(ending);
	}
	return exit_status(err);
}
