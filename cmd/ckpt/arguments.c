/*
 * What ckpt is asked for.
 */
#include <getopt.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "ckpt.h"
#include "options.h"
#include "size.h"

static const char usage[] =
    "usage: ckpt -p PID [-o FILE | --to COMMAND] [-c | -k | -S | -s ADDRESS | -m ADDRESS [--spool FILE]]\n"
    "            [--rounds N|auto [--max-stop MS]] [--key KEY] [-i PARENT] [-x] [-e] [-z LEVEL] [--stats[=json]] [-qv]\n"
    "       ckpt -p PID --check [--json]\n"
    "       ckpt --every TIME -p PID -o NAME.%n.ckpt [--keep N]\n"
    "       ckpt --merge FILE\n"
    "       ckpt --resume PID | --end PID | --list\n";

enum { OPT_TO = 256, OPT_TAIL, OPT_TIMED, OPT_CHECK, OPT_JSON, OPT_STATUS, OPT_TIMEOUT, OPT_RESUME,
	OPT_END, OPT_LIST, OPT_EMBED, OPT_SINGLE, OPT_EXTERNAL, OPT_LOSS, OPT_TCP, OPT_KEY, OPT_SPOOL, OPT_STATS, OPT_ROUNDS, OPT_MAX_STOP,
	OPT_EVERY, OPT_KEEP, OPT_MERGE };

static const struct option long_options[] = {
    {"pid", required_argument, NULL, 'p'}, {"output", required_argument, NULL, 'o'},
    {"to", required_argument, NULL, OPT_TO}, {"leave-running", no_argument, NULL, 'c'},
    {"copy", no_argument, NULL, 'c'}, {"kill", no_argument, NULL, 'k'},
    {"leave-stopped", no_argument, NULL, 'S'}, {"executable", no_argument, NULL, 'x'},
    {"home", required_argument, NULL, 's'}, {"memory", required_argument, NULL, 'm'}, {"spool", required_argument, NULL, OPT_SPOOL}, {"key", required_argument, NULL, OPT_KEY},
    {"embed", optional_argument, NULL, OPT_EMBED}, {"level", required_argument, NULL, 'z'},
    {"tail", required_argument, NULL, OPT_TAIL},
    {"timed-syscalls", required_argument, NULL, OPT_TIMED},
    {"check", no_argument, NULL, OPT_CHECK}, {"json", no_argument, NULL, OPT_JSON},
    {"status-fd", required_argument, NULL, OPT_STATUS},
    {"stop-timeout", required_argument, NULL, OPT_TIMEOUT},
    {"resume", required_argument, NULL, OPT_RESUME}, {"end", required_argument, NULL, OPT_END},
    {"external", required_argument, NULL, OPT_EXTERNAL},
    {"allow-loss", required_argument, NULL, OPT_LOSS}, {"tcp", required_argument, NULL, OPT_TCP},
    {"list", no_argument, NULL, OPT_LIST}, {"incremental", required_argument, NULL, 'i'}, {"every", required_argument, NULL, OPT_EVERY}, {"keep", required_argument, NULL, OPT_KEEP}, {"merge", required_argument, NULL, OPT_MERGE}, {"rounds", required_argument, NULL, OPT_ROUNDS}, {"max-stop", required_argument, NULL, OPT_MAX_STOP}, {"stats", optional_argument, NULL, OPT_STATS}, {"single", no_argument, NULL, OPT_SINGLE}, OPTIONS_COMMON,
};

enum { AUTO_ROUNDS = 30, DEFAULT_MAX_STOP_MS = 10 };
static enum embed
get_embed(const char *text)
{
	if (text == NULL || strcmp(text, "mapped") == 0)
		return EMBED_MAPPED;
	if (strcmp(text, "all") != 0)
		options_misused("--embed is mapped or all");
	return EMBED_ALL;
}

/* pipe:ID=POLICY, socket:ID=POLICY, or POLICY for all. */
static void
add_rule(struct ckpt_options *o, const char *text)
{
	static const char *const policies[] = {[EXTERNAL_INHERIT] = "inherit", [EXTERNAL_DROP] = "drop",
	    [EXTERNAL_REOPEN] = "reopen"};
	struct external_rule *rule = ARRAY_ADD(o->rules, o->nrules);
	const char *eq = strchr(text, '=');
	int used = 0;
	unsigned long long ino = 0;

	if (rule == NULL)
		options_misused("out of memory");
	rule->policy = -1;
	for (int i = 0; i < (int)ARRAY_LEN(policies); i++)
		if (strcmp(eq != NULL ? eq + 1 : text, policies[i]) == 0)
			rule->policy = i;
	if (eq != NULL && (sscanf(text, "pipe:%llu=%n", &ino, &used) != 1 || used != eq + 1 - text)) {
		rule->socket = true;
		if (sscanf(text, "socket:%llu=%n", &ino, &used) != 1 || used != eq + 1 - text)
			rule->policy = -1;
	}
	rule->ino = (ino_t)ino;
	if (rule->policy < 0 || (eq != NULL && ino == 0))
		options_misused("--external is pipe:ID=POLICY, socket:ID=POLICY, or POLICY; one of inherit, drop, reopen");
}

static void
allow_loss(struct ckpt_options *o, const char *of)
{
	o->lose_seccomp |= strcmp(of, "seccomp") == 0;
	o->lose_namespaces |= strcmp(of, "namespaces") == 0;
	if (strcmp(of, "seccomp") != 0 && strcmp(of, "namespaces") != 0)
		options_misused("--allow-loss is seccomp or namespaces");
}

/* "10m", "90", "1.5h": in milliseconds. */
static int64_t
get_duration(const char *text)
{
	char unit = 's';
	double n = 0;
	int used = 0;

	if (sscanf(text, "%lf%n%c%n", &n, &used, &unit, &used) < 1 || text[used] != '\0' || strchr("smhd", unit) == NULL || !(n > 0 && n < 1e6))
		options_misused("--every is a time such as 30s, 10m, 2h or 1d");
	return (int64_t)(n * (unit == 's' ? 1e3 : unit == 'm' ? 6e4 : unit == 'h' ? 3.6e6 : 8.64e7)) + (n * 1e3 < 1);
}

/* How it is measured and sent. Returns false if it is none of these. */
static bool
get_sending_option(struct ckpt_options *o, int opt)
{
	switch (opt) {
	case OPT_TAIL:
		if (!size_parse(optarg, &o->tail) || o->tail > UINT32_MAX / 2)
			options_misused("--tail is a size below 2G, such as 4M");
		return true;
	case OPT_STATS:
		if (!stats_parse(optarg, &o->stats))
			options_misused("--stats is text or json");
		return true;
	case OPT_ROUNDS:
		o->rounds = strcmp(optarg, "auto") == 0 ? AUTO_ROUNDS : options_number(optarg, 1, 1000, "--rounds");
		return true;
	case OPT_EVERY:
		o->every_ms = get_duration(optarg);
		return true;
	case OPT_KEEP:
		o->keep = options_number(optarg, 1, 100000, "--keep");
		return true;
	case OPT_STATUS:
		o->status_fd = options_number(optarg, 0, INT_MAX, "--status-fd");
		return true;
	case OPT_TIMEOUT:
		o->stop_timeout_ms = 1000LL * options_number(optarg, 0, 86400, "--stop-timeout");
		return true;
	case OPT_MAX_STOP:
		o->max_stop_ms = options_number(optarg, 0, INT_MAX, "--max-stop");
		return true;
	default:
		return false;
	}
}

static enum action
get_long_option(struct ckpt_options *o, int opt, enum action action)
{
	if (get_sending_option(o, opt))
		return action;
	switch (opt) {
	case OPT_TO:
		o->to = optarg;
		break;
	case OPT_TIMED:
		o->eintr = strcmp(optarg, "eintr") == 0;
		if (!o->eintr && strcmp(optarg, "again") != 0)
			options_misused("--timed-syscalls is again or eintr");
		break;
	case OPT_CHECK:
		o->check = true;
		break;
	case OPT_LOSS:
		allow_loss(o, optarg);
		break;
	case OPT_TCP:
		if (strcmp(optarg, "close") != 0)
			options_misused("--tcp is close");
		o->tcp_reset = true;
		break;
	case OPT_EXTERNAL:
		add_rule(o, optarg);
		break;
	case OPT_KEY:
		o->key = optarg;
		break;
	case OPT_SPOOL:
		o->spool = optarg;
		break;
	case OPT_SINGLE:
		o->single = true;
		break;
	case OPT_JSON:
		o->json = true;
		break;
	case OPT_EMBED:
		o->embed = get_embed(optarg);
		break;
	case OPT_RESUME:
		o->pid = options_number(optarg, 1, INT_MAX, "--resume");
		return DO_RESUME;
	case OPT_END:
		o->pid = options_number(optarg, 1, INT_MAX, "--end");
		return DO_END;
	case OPT_LIST:
		return DO_LIST;
	case OPT_MERGE:
		o->output = optarg;
		return DO_MERGE;
	default:
		options_common(opt, optarg);
	}
	return action;
}

static void
set_after(struct ckpt_options *o, enum after after)
{
	if (o->after != AFTER_MOVE && o->after != after)
		options_misused("only one of -c, -k, -S, -s and -m");
	o->after = after;
}

static enum action
get_options(int argc, char **argv, struct ckpt_options *o)
{
	enum action action = DO_CKPT;
	int opt;

	while ((opt = getopt_long(argc, argv, "p:o:i:ckSs:m:xez:F:qvV", long_options, NULL)) != -1) {
		switch (opt) {
		case 'p':
			o->pid = options_number(optarg, 1, INT_MAX, "-p");
			break;
		case 'o':
			o->output = strcmp(optarg, "-") == 0 ? NULL : optarg;
			break;
		case 'i':
			o->parent = optarg;
			break;
		case 'c':
			set_after(o, AFTER_COPY);
			break;
		case 'k':
			set_after(o, AFTER_KILL);
			break;
		case 'S':
			set_after(o, AFTER_PARK);
			break;
		case 's':
			set_after(o, AFTER_HOME);
			o->home = optarg;
			break;
		case 'm':
			set_after(o, AFTER_LAZY);
			o->pages = optarg;
			break;
		case 'x':
			o->executable = true;
			break;
		case 'e':
			o->embed = EMBED_MAPPED;
			break;
		case 'z':
			o->level = strcmp(optarg, "auto") == 0 ? IMAGE_LEVEL_AUTO : options_number(optarg, 0, 19, "-z");
			break;
		default:
			action = get_long_option(o, opt, action);
		}
	}
	options_end();
	if (optind < argc)
		options_misused("arguments are options only");
	return action;
}

static void
check_options(const struct ckpt_options *o)
{
	if (o->pid == 0)
		options_misused("-p PID says which process");
	if (o->output != NULL && o->to != NULL)
		options_misused("-o and --to exclude each other");
	if (o->executable && o->output == NULL)
		options_misused("-x goes with -o FILE");
	if (o->to != NULL && (o->after == AFTER_KILL || o->after == AFTER_PARK))
		options_misused("--to waits for the other side; -k and -S do not go with it");
	if (o->key != NULL && o->home == NULL && o->pages == NULL)
		options_misused("--key goes with -s tcp:HOST:PORT or -m tcp:HOST:PORT");
	if ((o->home != NULL || o->pages != NULL) && o->single)
		options_misused("--single takes it from its children, which stay with -s and -m");
	if (o->spool != NULL && o->pages == NULL)
		options_misused("--spool goes with -m");
	if (o->rounds > 0 && (o->output != NULL || o->after != AFTER_MOVE))
		options_misused("--rounds is for a move by a pipe or --to; for a file, -c hardly stops it");
	if (o->parent != NULL && (o->rounds > 0 || o->home != NULL || o->pages != NULL))
		options_misused("-i does not go with --rounds, -s and -m");
	if (o->every_ms > 0 && (o->output == NULL || strstr(o->output, "%n") == NULL || (o->after != AFTER_MOVE && o->after != AFTER_COPY)))
		options_misused("--every makes copies: -o FILE with %n in it, where the number is to be");
	if (o->every_ms > 0 && (strchr(strstr(o->output, "%n"), '/') != NULL || o->parent != NULL || o->check))
		options_misused("--every numbers files of one directory, and finds parents itself");
	if (o->keep > 0 && o->every_ms == 0)
		options_misused("--keep goes with --every");
	if (o->max_stop_ms >= 0 && o->rounds == 0)
		options_misused("--max-stop goes with --rounds");
	if (o->json && !o->check)
		options_misused("--json goes with --check");
}

enum action
arguments(int argc, char **argv, struct ckpt_options *o)
{
	enum action action;

	*o = (struct ckpt_options){.level = 1, .tail = 4 << 20, .status_fd = -1, .stop_timeout_ms = 5000, .max_stop_ms = -1};
	options_begin("ckpt", usage);
	action = get_options(argc, argv, o);
	if (action == DO_CKPT)
		check_options(o);
	if (o->every_ms > 0)
		o->after = AFTER_COPY;
	o->assume = o->after == AFTER_COPY;
	if (o->max_stop_ms < 0)
		o->max_stop_ms = DEFAULT_MAX_STOP_MS;
	return action;
}
