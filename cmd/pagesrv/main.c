/*
 * pagesrv: arguments, and the exit status.
 */
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

#include "fault.h"
#include "io.h"
#include "log.h"
#include "options.h"
#include "pagesrv.h"

static const char usage[] =
    "usage: pagesrv serve [-l ADDRESS [-k KEY]] [--once] [--retry SECONDS] [-z LEVEL] IMAGE | -p PID\n"
    "       pagesrv stat [--json] [-k KEY] ADDRESS\n"
    "       pagesrv wait [-k KEY] ADDRESS\n"
    "       pagesrv use [--alone] [-k KEY] ADDRESS <COMMANDS\n";

enum { OPT_JSON = 256, OPT_ONCE, OPT_RETRY, OPT_ALONE };
static const struct option long_options[] = {
    {"pid", required_argument, NULL, 'p'}, {"listen", required_argument, NULL, 'l'}, {"key", required_argument, NULL, 'k'},
    {"level", required_argument, NULL, 'z'}, {"json", no_argument, NULL, OPT_JSON}, {"once", no_argument, NULL, OPT_ONCE},
    {"retry", required_argument, NULL, OPT_RETRY}, {"alone", no_argument, NULL, OPT_ALONE}, OPTIONS_COMMON,
};

struct options {
	struct serve_options serve;
	bool json, alone;
};

/* Which letter stands for a long option in what a command allows. */
static int
letter(int opt)
{
	switch (opt) {
	case OPT_JSON:
		return 'J';
	case OPT_ONCE:
		return 'O';
	case OPT_RETRY:
		return 'R';
	case OPT_ALONE:
		return 'A';
	default:
		return opt;
	}
}

static void
get_options(int argc, char **argv, const char *allowed, struct options *o)
{
	int opt;

	while ((opt = getopt_long(argc, argv, "+p:l:k:z:F:qvV", long_options, NULL)) != -1) {
		if (opt != '?' && strchr("plkzJORA", letter(opt)) != NULL && strchr(allowed, letter(opt)) == NULL)
			options_misused("an option of another command");
		switch (opt) {
		case 'p':
			o->serve.pid = options_number(optarg, 1, INT_MAX, "-p");
			break;
		case 'l':
			o->serve.address = optarg;
			break;
		case 'k':
			o->serve.key = optarg;
			break;
		case 'z':
			o->serve.level = options_number(optarg, 0, 19, "-z");
			break;
		case OPT_JSON:
			o->json = true;
			break;
		case OPT_ONCE:
			o->serve.once = true;
			break;
		case OPT_RETRY:
			o->serve.retry_s = options_number(optarg, 0, INT_MAX / 1000, "--retry");
			break;
		case OPT_ALONE:
			o->alone = true;
			break;
		default:
			options_common(opt, optarg);
		}
	}
	options_end();
}

static int
exit_status(int err)
{
	switch (-err) {
	case EBADMSG:
		return EX_DATAERR;
	case EISDIR:
		return EX_NOINPUT;
	default:
		return options_exit_status(err);
	}
}

static int
do_serve(struct options *o, int argc, char **argv)
{
	if (argc != (o->serve.pid == 0))
		options_misused(o->serve.pid == 0 ? "serve takes an image, or -p PID" : NULL);
	o->serve.image = argc > 0 ? argv[0] : NULL;
	return exit_status(serve(&o->serve));
}

static int
do_stat(struct options *o, int argc, char **argv)
{
	if (argc != 1)
		options_misused(NULL);
	return exit_status(told(argv[0], o->serve.key, false, o->json));
}

static int
do_wait(struct options *o, int argc, char **argv)
{
	if (argc != 1)
		options_misused(NULL);
	return exit_status(told(argv[0], o->serve.key, true, false));
}

static int
do_use(struct options *o, int argc, char **argv)
{
	if (argc != 1)
		options_misused(NULL);
	return exit_status(use(argv[0], o->serve.key, !o->alone));
}

/* What ckpt -m and restart start: page_plan.h. */
static int
do_source(struct options *o, int argc, char **argv)
{
	(void)o;
	if (argc != 1)
		options_misused(NULL);
	return exit_status(serve_plan(options_number(argv[0], 3, INT_MAX, "source")));
}

static int
do_fetch(struct options *o, int argc, char **argv)
{
	(void)o;
	if (argc != 1)
		options_misused(NULL);
	return exit_status(fetch(options_number(argv[0], 3, INT_MAX, "fetch")));
}

static const struct {
	const char *name, *options;
	int (*run)(struct options *o, int argc, char **argv);
} commands[] = {{"serve", "lkpzOR", do_serve}, {"stat", "kJ", do_stat}, {"wait", "k", do_wait}, {"use", "kA", do_use}, {"source", "", do_source}, {"fetch", "", do_fetch}};

int
main(int argc, char **argv)
{
	struct options o = {.serve = {.address = "-", .level = 1, .retry_s = 60}};
	size_t i = 0;

	io_keep_stdio();
	options_begin("pagesrv", usage);
	/* ckpt and restart, which start it, have faults of their own: this one is for tests. */
	if (getenv("PMS_FAULT") != NULL && fault_arm(getenv("PMS_FAULT")) < 0)
		options_misused("PMS_FAULT is none of fault.def");
	while (argc >= 2 && i < ARRAY_LEN(commands) && strcmp(argv[1], commands[i].name) != 0)
		i++;
	if (argc >= 2 && argv[1][0] == '-')
		get_options(argc, argv, "", &o); /* --version */
	if (argc < 2 || i == ARRAY_LEN(commands))
		options_misused(NULL);
	get_options(argc - 1, argv + 1, commands[i].options, &o);
	return commands[i].run(&o, argc - 1 - optind, argv + 1 + optind);
}
