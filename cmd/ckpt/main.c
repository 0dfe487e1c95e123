/*
 * ckpt: arguments, the order of the phases, the exit status.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

#include "ckpt.h"
#include "cpu.h"
#include "fault.h"
#include "io.h"
#include "log.h"
#include "netlock.h"
#include "options.h"
#include "record.h"
#include "size.h"
#include "stats.h"

static volatile sig_atomic_t signal_came;

static void
on_signal(int sig)
{
	signal_came = sig;
}

static bool too_late;

bool
interrupted(void)
{
	return signal_came != 0 && !too_late;
}

void
interrupts_end(void)
{
	too_late = true;
}

static const char usage[] =
    "usage: ckpt -p PID [-o FILE | --to COMMAND] [-c | -k | -S | -s ADDRESS | -m ADDRESS [--spool FILE]]\n"
    "            [--key KEY] [-x] [-e] [-z LEVEL] [--stats[=json]] [-qv]\n"
    "       ckpt -p PID --check [--json]\n"
    "       ckpt --resume PID | --end PID | --list\n";

enum { OPT_TO = 256, OPT_TAIL, OPT_TIMED, OPT_CHECK, OPT_JSON, OPT_STATUS, OPT_TIMEOUT, OPT_RESUME,
	OPT_END, OPT_LIST, OPT_EMBED, OPT_SINGLE, OPT_EXTERNAL, OPT_LOSS, OPT_TCP, OPT_KEY, OPT_SPOOL, OPT_STATS };

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
    {"list", no_argument, NULL, OPT_LIST}, {"stats", optional_argument, NULL, OPT_STATS}, {"single", no_argument, NULL, OPT_SINGLE}, OPTIONS_COMMON,
};

enum action { DO_CKPT, DO_RESUME, DO_END, DO_LIST };

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

static enum action
get_long_option(struct ckpt_options *o, int opt, enum action action)
{
	switch (opt) {
	case OPT_TO:
		o->to = optarg;
		break;
	case OPT_TAIL:
		if (!size_parse(optarg, &o->tail) || o->tail > UINT32_MAX / 2)
			options_misused("--tail is a size below 2G, such as 4M");
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
	case OPT_STATS:
		if (!stats_parse(optarg, &o->stats))
			options_misused("--stats is text or json");
		break;
	case OPT_SINGLE:
		o->single = true;
		break;
	case OPT_JSON:
		o->json = true;
		break;
	case OPT_STATUS:
		o->status_fd = options_number(optarg, 0, INT_MAX, "--status-fd");
		break;
	case OPT_TIMEOUT:
		o->stop_timeout_ms = 1000LL * options_number(optarg, 0, 86400, "--stop-timeout");
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

	while ((opt = getopt_long(argc, argv, "p:o:ckSs:m:xez:F:qvV", long_options, NULL)) != -1) {
		switch (opt) {
		case 'p':
			o->pid = options_number(optarg, 1, INT_MAX, "-p");
			break;
		case 'o':
			o->output = strcmp(optarg, "-") == 0 ? NULL : optarg;
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
			o->level = options_number(optarg, 0, 19, "-z");
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
	if (o->json && !o->check)
		options_misused("--json goes with --check");
}

static int
exit_status(const struct ckpt *c, int err)
{
	int status = report_status(&c->report);

	if (err == 0)
		return 0;
	if (status != 0)
		return status;
	if (c->no_output && err != -EPROTO && err != -EREMOTEIO && err != -ECONNRESET)
		return EX_CANTCREAT;
	switch (-err) {
	case ESRCH:
	case ENOENT:
		return EX_NOINPUT;
	case EPERM:
	case EACCES:
		return EX_NOPERM;
	case ENOTSUP:
		return EX_UNAVAILABLE;
	case EBUSY:
	case ETIMEDOUT:
	case EINTR:
		return EX_TEMPFAIL;
	case EPROTO:
	case EREMOTEIO:
	case ECONNRESET:
		return EX_PROTOCOL;
	case EROFS:
	case EISDIR:
	case EEXIST:
	case EINVAL:
		return EX_CANTCREAT;
	case ENOSPC:
	case EPIPE:
	case EIO:
	case EFBIG:
	case EDQUOT:
		return EX_IOERR;
	default:
		return EX_OSERR;
	}
}

/* What takes no help of theirs: obstacles show before anything is borrowed. */
static int
collect_from_outside(struct ckpt *c)
{
	int err = collect_header(c);

	if (err == 0)
		err = collect_held(c);
	for (size_t i = 0; i < c->nmembers && err == 0; i++) {
		err = collect_outside(c, c->members[i]);
		if (err == 0 && !c->members[i]->zombie)
			err = collect_space(c, c->members[i]);
	}
	if (err == 0)
		err = collect_sessions(c);
	if (err == 0)
		err = collect_aio(c);
	if (err == 0)
		err = collect_ipc(c);
	if (err == 0 && c->opt.home != NULL)
		err = collect_home(c);
	return err < 0 ? err : collect_fds(c);
}

static int
collect_from_inside(struct ckpt *c, struct member *who)
{
	int err = collect_inside(c, who);

	return err < 0 ? err : collect_signals(who);
}

/* Everything but the pages, with the processes stopped. */
static int
collect(struct ckpt *c)
{
	int err = collect_from_outside(c);

	/* Nothing is borrowed from a process that cannot be moved anyway (its filters might kill it). */
	if (err == 0 && report_status(&c->report) != 0)
		return 0;
	for (size_t i = 0; i < c->nmembers && err == 0; i++)
		if (!c->members[i]->zombie)
			err = collect_from_inside(c, c->members[i]);
	return err < 0 ? err : fault(FAULT_collected);
}

/* Which pages there are, of processes that stand still or of their copies. */
static int
collect_pages(struct ckpt *c)
{
	int err = 0;

	for (size_t i = 0; i < c->nmembers && err == 0; i++)
		if (!c->members[i]->zombie)
			err = collect_contents(c, c->members[i]);
	for (size_t i = 0; i < c->nmembers && err == 0; i++)
		if (!c->members[i]->zombie)
			err = collect_inherited(c, c->members[i]);
	return err;
}

/* What is copied runs on while the copy is written, where that is possible. */
static int
take_snapshot(struct ckpt *c, const struct output *o)
{
	int err = snapshot_take(c);

	if (err < 0 || !c->snapshot)
		return err;
	tree_thaw(c);
	output_status(o, "runs %d", c->members[0]->target.pid);
	return fault(FAULT_let_go);
}

static int
run_check(struct ckpt *c)
{
	int err;

	c->report.collect = true;
	err = tree_freeze(c);
	if (err == 0)
		err = collect(c);
	if (err == 0 && report_status(&c->report) == 0)
		err = collect_pages(c);
	tree_thaw(c);
	if (err < 0)
		return err;
	if (c->opt.json)
		err = report_json(&c->report);
	else
		report_print(&c->report);
	return err == 0 && report_status(&c->report) != 0 ? -ENOTSUP : err;
}

static int
run_ckpt(struct ckpt *c)
{
	struct output o = {.fd = -1, .status_fd = -1};
	bool stays = c->opt.home != NULL || c->opt.pages != NULL;
	int err = stays ? home_fork(c) : 0;

	if (err == 0)
		err = output_open(&o, &c->opt);

	c->no_output = err < 0;
	if (err == 0 && c->opt.home != NULL)
		err = home_open(c, &o);
	if (err == 0 && c->opt.pages != NULL)
		err = lazy_open(c, &o);
	if (err == 0)
		err = output_check_room(&o, c);
	if (err == 0 && interrupted())
		err = fail(EINTR, "interrupted");
	if (err == 0)
		err = tree_freeze(c);
	if (err == 0) {
		stats_lap(STAT_freeze);
		output_status(&o, "stopped %d", c->members[0]->target.pid);
		err = collect(c);
		stats_lap(STAT_collect);
		if (err == 0 && c->opt.after == AFTER_COPY)
			err = take_snapshot(c, &o);
		stats_lap(STAT_snapshot);
		if (err == 0)
			err = collect_pages(c);
		stats_lap(STAT_look);
		if (err == 0 && c->opt.spool != NULL)
			err = lazy_spool(c, &o);
		if (err == 0 && c->opt.pages != NULL)
			err = lazy_announce(c);
		if (err == 0 && o.kind == OUTPUT_PIPE && c->opt.after == AFTER_MOVE)
			err = put_ack(&o);
		if (err == 0)
			err = write_image(c, &o);
		stats_lap(STAT_write);
		snapshot_drop(c);
		/* What is copied need not wait for the disk. */
		if (c->opt.after == AFTER_COPY)
			tree_thaw(c);
		else if (err == 0)
			sync_files(c);
		if (err == 0)
			err = ending(c, &o);
		stats_lap(STAT_end);
		tree_thaw(c);
	}
	/* Kept only if the originals have ended. */
	netlock_end(c->shared.netlock, NETLOCK_RELEASE);
	c->shared.netlock = NULL;
	output_status(&o, err == 0 ? "done" : "failed");
	home_close(c);
	output_close(&o);
	if (err == 0)
		stats_print(c->opt.stats);
	return err;
}

void
ckpt_fini(struct ckpt *c)
{
	size_t ntasks = c->model.header.ntasks;

	snapshot_drop(c);
	tree_close(c);
	for (size_t i = 0; i < c->nmapped; i++)
		close_fd(&c->mapped[i].fd);
	free(c->mapped);
	free(c->opt.rules);
	free(c->shm_inos);
	free(c->shm_parts);
	for (size_t i = 0; i < c->nheld; i++)
		free(c->held[i].link);
	free(c->held);
	for (size_t i = 0; i < c->nin_flight; i++) {
		free(c->in_flight[i].link);
		close_fd(&c->in_flight[i].fd);
		close_fd(&c->in_flight[i].pidfd);
		close_fd(&c->in_flight[i].proc);
	}
	free(c->in_flight);
	free(c->tasks);
	kind_shared_fini(&c->shared);
	report_fini(&c->report);
	record_free(&record_header, &c->model.header);
	record_free(&record_objects, &c->model.objects);
	for (size_t i = 0; c->model.tasks != NULL && i < ntasks; i++)
		record_free(&record_task, &c->model.tasks[i]);
	free(c->model.tasks);
}

int
main(int argc, char **argv)
{
	struct ckpt c = {.opt = {.level = 1, .tail = 4 << 20, .status_fd = -1, .stop_timeout_ms = 5000}, .home_listener = -1, .home_report = -1};
	enum action action;
	int err, status;

	io_keep_stdio();
	options_begin("ckpt", usage);
	action = get_options(argc, argv, &c.opt);
	options_catch(on_signal);
	io_set_interrupt(interrupted);
	stats_begin();
	if (action == DO_CKPT) {
		check_options(&c.opt);
		err = tree_open(&c, c.opt.pid);
		if (err == 0)
			err = c.opt.check ? run_check(&c) : run_ckpt(&c);
	} else {
		err = action == DO_LIST ? park_list()
		    : action == DO_END ? park_end(&c, c.opt.pid) : park_resume(&c, c.opt.pid);
	}
	status = exit_status(&c, err);
	ckpt_fini(&c);
	return status;
}
