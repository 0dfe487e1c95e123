/*
 * rexec-sys: arguments, and the exit status.
 */
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <malloc.h>
#include <signal.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

#include "home.h"
#include "io.h"
#include "log.h"
#include "options.h"
#include "rexec.h"
#include "run.h"

/* SIGINT and the like end it when the thread has what is its own. */
static volatile sig_atomic_t ending;

static void
on_signal(int sig)
{
	ending = sig;
}

bool
cancelled(void)
{
	return ending != 0;
}

static const char usage[] =
    "usage: rexec-sys call (-p PID [-t TID] [-w SECONDS] | -H ADDRESS [-k KEY]) [--json] NAME [ARG...]\n"
    "       rexec-sys call ... - <SCRIPT\n"
    "       rexec-sys serve [-l ADDRESS [-k KEY]] [-p PID]\n"
    "       rexec-sys run -H ADDRESS [-k KEY] [--local-program] [--] COMMAND [ARG...]\n";

enum { OPT_JSON = 256, OPT_LOCAL_PROGRAM };
static const struct option long_options[] = {
    {"pid", required_argument, NULL, 'p'}, {"tid", required_argument, NULL, 't'}, {"wait", required_argument, NULL, 'w'},
    {"host", required_argument, NULL, 'H'}, {"listen", required_argument, NULL, 'l'}, {"key", required_argument, NULL, 'k'},
    {"json", no_argument, NULL, OPT_JSON}, {"local-program", no_argument, NULL, OPT_LOCAL_PROGRAM}, OPTIONS_COMMON,
};

struct options {
	struct call_options call;
	const char *listen;
	bool local_program, waits;
};

/* allowed: letters of the options that this command has. */
static void
get_options(int argc, char **argv, const char *allowed, struct options *o)
{
	int opt;

	while ((opt = getopt_long(argc, argv, "+p:t:w:H:l:k:F:qvV", long_options, NULL)) != -1) {
		if (strchr("ptwHlk", opt < 128 ? opt : 'F') != NULL && strchr(allowed, opt) == NULL)
			options_misused("an option of another command");
		switch (opt) {
		case 'p':
			o->call.pid = options_number(optarg, 1, INT_MAX, "-p");
			break;
		case 't':
			o->call.tid = options_number(optarg, 1, INT_MAX, "-t");
			break;
		case 'w':
			o->waits = true;
			o->call.block_ms = 1000LL * options_number(optarg, 1, INT_MAX / 1000, "-w");
			break;
		case 'H':
			o->call.address = optarg;
			break;
		case 'l':
			o->listen = optarg;
			break;
		case 'k':
			o->call.key = optarg;
			break;
		case OPT_JSON:
			if (strchr(allowed, 'J') == NULL)
				options_misused("--json is for call");
			o->call.json = true;
			break;
		case OPT_LOCAL_PROGRAM:
			if (strchr(allowed, 'L') == NULL)
				options_misused("--local-program is for run");
			o->local_program = true;
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
	return err > 0 ? err : options_exit_status(err); /* 1: the call returned an error */
}

static int
do_call(struct options *o, int argc, char **argv)
{
	struct script_text script = {0};
	int err;

	if ((o->call.pid == 0) == (o->call.address == NULL))
		options_misused("one of -p and -H is needed");
	if ((o->call.tid != 0 || o->waits || argc == 0) && o->call.pid == 0)
		options_misused(argc == 0 ? NULL : "-t and -w go with -p");
	if (argc == 0)
		options_misused(NULL);
	err = strcmp(argv[0], "-") == 0 && argc == 1 ? script_read(&script, STDIN_FILENO) : script_take(&script, argv, (size_t)argc);
	if (err == 0)
		err = script_check(&script);
	if (o->call.address == NULL)
		options_catch(on_signal); /* there is nothing of ours to give back on another machine */
	if (err == 0)
		err = call_by_hand(&o->call, &script);
	script_free(&script);
	if (cancelled()) {
		signal(ending, SIG_DFL);
		raise(ending);
	}
	return exit_status(err);
}

static int
do_serve(struct options *o, int argc, char **argv)
{
	struct serve_options s = {o->listen != NULL ? o->listen : "-", o->call.key, o->call.pid};

	(void)argv;
	if (argc != 0)
		options_misused(NULL);
	return exit_status(serve(&s));
}

static int
do_run(struct options *o, int argc, char **argv)
{
	struct run_options r = {o->call.address, o->call.key, o->local_program, argv};
	int status;

	if (argc == 0 || o->call.address == NULL)
		options_misused(NULL);
	status = run(&r);
	return status < 0 ? exit_status(status) : status;
}

/* What ckpt -s and restart become: handover.h. */
static int
do_home(struct options *o, int argc, char **argv)
{
	(void)o;
	if (argc != 1)
		options_misused(NULL);
	return exit_status(home(options_number(argv[0], 3, INT_MAX, "home")));
}

static int
do_away(struct options *o, int argc, char **argv)
{
	int status;

	(void)o;
	if (argc != 1)
		options_misused(NULL);
	status = run_away(options_number(argv[0], 3, INT_MAX, "away"));
	return status < 0 ? exit_status(status) : status;
}

static const struct {
	const char *name, *options;
	int (*run)(struct options *o, int argc, char **argv);
} commands[] = {{"call", "ptwHkJ", do_call}, {"serve", "lkp", do_serve}, {"run", "HkL", do_run}, {"home", "", do_home}, {"away", "", do_away}};

int
main(int argc, char **argv)
{
	struct options o = {.call = {.block_ms = 10000}};
	size_t i = 0;

	/* Buffers of a call are as large as the next one's: let them stay where they are. */
	mallopt(M_MMAP_THRESHOLD, 64 << 20);
	mallopt(M_TRIM_THRESHOLD, 64 << 20);
	io_keep_stdio();
	options_begin("rexec-sys", usage);
	while (argc >= 2 && i < ARRAY_LEN(commands) && strcmp(argv[1], commands[i].name) != 0)
		i++;
	if (argc >= 2 && argv[1][0] == '-')
		get_options(argc, argv, "", &o); /* --version */
	if (argc < 2 || i == ARRAY_LEN(commands))
		options_misused(NULL);
	get_options(argc - 1, argv + 1, commands[i].options, &o);
	return commands[i].run(&o, argc - 1 - optind, argv + 1 + optind);
}
