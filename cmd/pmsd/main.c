/*
 * pmsd: arguments, and the exit status.
 */
#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sysexits.h>
#include <unistd.h>

#include "arrive.h"
#include "client.h"
#include "io.h"
#include "keeper.h"
#include "log.h"
#include "options.h"
#include "plot.h"
#include "remote.h"
#include "run.h"
#include "server.h"
#include "simulate.h"

static const char usage[] =
    "usage: pmsd serve [--hosts FILE] [--policy NAME] [--period SECONDS] [--drain-on-term [--grace SECONDS]]\n"
    "                  [--listen tcp:HOST:PORT] [--key FILE]\n"
    "       pmsd run [-n NAME] [-w] [--] COMMAND [ARGUMENT...]\n"
    "       pmsd list [-a] | peers  [--json]\n"
    "       pmsd migrate JOB HOST | pause JOB | resume JOB | kill JOB [SIGNAL] | ckpt [-x] JOB FILE | wait JOB | log JOB\n"
    "       pmsd drain [stop] | policy [NAME]\n"
    "       pmsd load [--since TIME] [--plot FILE]\n"
    "       pmsd simulate -p POLICY [--period SECONDS] TRACE\n";

enum { OPT_HOSTS = 256, OPT_POLICY, OPT_PERIOD, OPT_DRAIN, OPT_GRACE, OPT_JSON, OPT_SINCE, OPT_PLOT, OPT_SOCKET, OPT_FORCE, OPT_LISTEN, OPT_KEY };
static const struct option long_options[] = {
    {"hosts", required_argument, NULL, OPT_HOSTS}, {"policy", required_argument, NULL, 'p'}, {"period", required_argument, NULL, OPT_PERIOD},
    {"drain-on-term", no_argument, NULL, OPT_DRAIN}, {"grace", required_argument, NULL, OPT_GRACE}, {"socket", required_argument, NULL, OPT_SOCKET},
    {"listen", required_argument, NULL, OPT_LISTEN}, {"key", required_argument, NULL, OPT_KEY},
    {"name", required_argument, NULL, 'n'}, {"wait", no_argument, NULL, 'w'}, {"all", no_argument, NULL, 'a'}, {"json", no_argument, NULL, OPT_JSON},
    {"since", required_argument, NULL, OPT_SINCE}, {"plot", required_argument, NULL, OPT_PLOT}, {"force", no_argument, NULL, OPT_FORCE}, {"executable", no_argument, NULL, 'x'}, OPTIONS_COMMON,
};

struct options {
	struct serve_options serve;
	const char *name, *since, *plot;
	bool wait, all, json, force, executable;
	char *command;
};

static void
get_options(int argc, char **argv, struct options *o)
{
	int opt;

	while ((opt = getopt_long(argc, argv, "+p:n:waxF:qvV", long_options, NULL)) != -1) {
		switch (opt) {
		case OPT_HOSTS:
			o->serve.hosts = optarg;
			break;
		case 'p':
			o->serve.policy = optarg;
			break;
		case OPT_PERIOD:
			o->serve.period_s = options_number(optarg, 1, 86400, "--period");
			break;
		case OPT_GRACE:
			o->serve.grace_s = options_number(optarg, 0, 86400, "--grace");
			break;
		case OPT_DRAIN:
			o->serve.drain_on_term = true;
			break;
		case OPT_LISTEN:
			o->serve.listen = optarg;
			break;
		case OPT_KEY:
			o->serve.key = optarg;
			break;
		case OPT_SOCKET:
			o->serve.socket = optarg;
			break;
		case 'n':
			o->name = optarg;
			break;
		case 'w':
			o->wait = true;
			break;
		case 'x':
			o->executable = true;
			break;
		case 'a':
			o->all = true;
			break;
		case OPT_JSON:
			o->json = true;
			break;
		case OPT_FORCE:
			o->force = true;
			break;
		case OPT_SINCE:
			o->since = optarg;
			break;
		case OPT_PLOT:
			o->plot = optarg;
			break;
		default:
			options_common(opt, optarg);
		}
	}
	options_end();
}

/* --- each command */

static int
do_serve(struct options *o, int argc, char **argv)
{
	(void)argc, (void)argv;
	switch (-serve(&o->serve)) {
	case 0:
		return 0;
	case EINVAL:
		return EX_USAGE;
	case EADDRINUSE:
		return EX_TEMPFAIL;
	case EACCES:
	case EPERM:
		return EX_NOPERM;
	case ENOENT:
		return EX_NOINPUT;
	default:
		return EX_OSERR;
	}
}

static int
do_run(struct options *o, int argc, char **argv)
{
	(void)argc;
	return run_job(o->name, o->wait, argv);
}

static int
do_list(struct options *o, int argc, char **argv)
{
	const char *words[] = {o->command, "all"};

	(void)argc, (void)argv;
	return client_command(o->all ? 2 : 1, words, o->json);
}

/* The words as they are. */
static int
do_ask(struct options *o, int argc, char **argv)
{
	const char *words[4] = {o->command};
	int n = 1;

	for (int i = 0; i < argc; i++)
		words[n++] = argv[i];
	if (o->force)
		words[n++] = "force";
	return client_command(n, words, o->json);
}

static int
signal_number(const char *text)
{
	if (isdigit((unsigned char)text[0]))
		return options_number(text, 1, SIGRTMAX, "the signal");
	if (strncasecmp(text, "SIG", 3) == 0)
		text += 3;
	for (int sig = 1; sig < NSIG; sig++)
		if (sigabbrev_np(sig) != NULL && strcasecmp(sigabbrev_np(sig), text) == 0)
			return sig;
	options_misused("no such signal");
}

static int
do_kill(struct options *o, int argc, char **argv)
{
	char number[16];
	const char *words[] = {"kill", argv[0], number};

	snprintf(number, sizeof(number), "%d", argc > 1 ? signal_number(argv[1]) : SIGTERM);
	return client_command(3, words, o->json);
}

static int
do_ckpt(struct options *o, int argc, char **argv)
{
	char cwd[PATH_MAX], *path = NULL;
	const char *words[] = {"ckpt", argv[0], NULL, "executable"};
	int status;

	(void)argc;
	if (argv[1][0] == '/')
		path = strdup(argv[1]);
	else if (getcwd(cwd, sizeof(cwd)) == NULL || asprintf(&path, "%s/%s", cwd, argv[1]) < 0)
		path = NULL;
	words[2] = path;
	status = path == NULL ? EX_OSERR : client_command(o->executable ? 4 : 3, words, o->json);
	free(path);
	return status;
}

static int
do_wait(struct options *o, int argc, char **argv)
{
	(void)o, (void)argc;
	return client_wait(argv[0]);
}

static int
do_log(struct options *o, int argc, char **argv)
{
	(void)o, (void)argc;
	return client_log(argv[0]);
}

static int
do_load(struct options *o, int argc, char **argv)
{
	(void)argc, (void)argv;
	return plot_loads(o->since, o->plot);
}

static int
do_simulate(struct options *o, int argc, char **argv)
{
	(void)argc;
	if (o->serve.policy == NULL)
		options_misused("simulate takes -p POLICY");
	return simulate(o->serve.policy, o->serve.period_s, argv[0]);
}

static int
do_peer(struct options *o, int argc, char **argv)
{
	(void)o, (void)argc, (void)argv;
	return client_peer();
}

/* What keepers have executed here: arrive.h. */
static int64_t
hop(const char *id, const char *text)
{
	if (!place_is_name(id))
		options_misused("no name of a job");
	return options_number(text, 0, INT_MAX, "how often it has moved");
}

static int
do_offer(struct options *o, int argc, char **argv)
{
	(void)o, (void)argc;
	return arrive_offer(argv[0], hop(argv[0], argv[1]), argv[2], argv[3], argv[4]);
}

static int
do_receive(struct options *o, int argc, char **argv)
{
	(void)o, (void)argc;
	return arrive_receive(argv[0], hop(argv[0], argv[1]));
}

static int
do_tail(struct options *o, int argc, char **argv)
{
	(void)o, (void)argc;
	return arrive_tail(argv[0], hop(argv[0], argv[1]));
}

static int
do_has(struct options *o, int argc, char **argv)
{
	(void)o, (void)argc;
	return arrive_has(argv[0], hop(argv[0], argv[1]));
}

static int
do_keep(struct options *o, int argc, char **argv)
{
	(void)o, (void)argc;
	hop(argv[0], "0");
	return keeper_again(argv[0], argv[1], argv[2]);
}

static int
do_dial(struct options *o, int argc, char **argv)
{
	(void)o, (void)argc;
	return remote_dial(argv);
}

static int
do_adopt(struct options *o, int argc, char **argv)
{
	(void)o, (void)argc;
	hop(argv[0], "0");
	return keeper_adopt(argv[0], (pid_t)strtol(argv[1], NULL, 10));
}

static const struct {
	const char *name;
	int least, most; /* operands */
	int (*run)(struct options *o, int argc, char **argv);
} commands[] = {{"serve", 0, 0, do_serve}, {"run", 1, INT_MAX, do_run}, {"list", 0, 0, do_list}, {"peers", 0, 0, do_list}, {"migrate", 2, 2, do_ask}, {"pause", 1, 1, do_ask},
    {"resume", 1, 1, do_ask}, {"kill", 1, 2, do_kill}, {"ckpt", 2, 2, do_ckpt}, {"wait", 1, 1, do_wait}, {"log", 1, 1, do_log}, {"drain", 0, 1, do_ask}, {"policy", 0, 1, do_ask}, {"drop", 1, 1, do_ask},
    {"load", 0, 0, do_load}, {"simulate", 1, 1, do_simulate}, {"peer", 0, 0, do_peer}, {"offer", 5, 5, do_offer}, {"receive", 2, 2, do_receive}, {"tail", 2, 2, do_tail},
    {"has", 2, 2, do_has}, {"keep", 3, 3, do_keep}, {"adopt", 2, 2, do_adopt}, {"dial", 4, INT_MAX, do_dial}};

int
main(int argc, char **argv)
{
	struct options o = {.serve = {.period_s = 5, .grace_s = 60}};
	size_t i = 0;

	io_keep_stdio();
	options_begin("pmsd", usage);
	while (argc >= 2 && i < ARRAY_LEN(commands) && strcmp(argv[1], commands[i].name) != 0)
		i++;
	if (argc >= 2 && argv[1][0] == '-')
		get_options(argc, argv, &o); /* --version */
	if (argc < 2 || i == ARRAY_LEN(commands))
		options_misused(NULL);
	o.command = argv[1];
	get_options(argc - 1, argv + 1, &o);
	argc -= 1 + optind;
	argv += 1 + optind;
	if (argc < commands[i].least || argc > commands[i].most)
		options_misused(NULL);
	return commands[i].run(&o, argc, argv);
}
