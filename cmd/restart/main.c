/*
 * restart: arguments, the order of the phases, the exit status.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

#include "elf_file.h"
#include "front.h"
#include "io.h"
#include "log.h"
#include "options.h"
#include "netlock.h"
#include "record.h"
#include "stats.h"

static const char usage[] =
    "usage: restart [-d] [--pid=same|ns|new] [--inherit IMAGE_FD=FD] [--stdio IN,OUT,ERR]\n"
    "               [--map OLD=NEW] [--chdir DIR] [--check] [--hold SECONDS]\n"
    "               [--lazy] [--demand-only] [--pages ADDRESS]\n"
    "               [--home ADDRESS] [--key KEY] [--retry SECONDS] [--parent FILE] [--stats[=json]]\n"
    "               [-qv] [FILE | -]\n";

enum { OPT_PID = 256, OPT_INHERIT, OPT_MAP, OPT_CHDIR, OPT_CHECK, OPT_HOLD, OPT_STATUS, OPT_CPU,
	OPT_WITHOUT_END, OPT_TCP, OPT_HOME, OPT_KEY, OPT_LAZY, OPT_DEMAND, OPT_PAGES, OPT_RETRY, OPT_STDIO, OPT_STATS, OPT_PARENT };

static const struct option long_options[] = {
    {"detach", no_argument, NULL, 'd'}, {"pid", required_argument, NULL, OPT_PID},
    {"inherit", required_argument, NULL, OPT_INHERIT}, {"stdio", required_argument, NULL, OPT_STDIO}, {"map", required_argument, NULL, OPT_MAP},
    {"chdir", required_argument, NULL, OPT_CHDIR}, {"check", no_argument, NULL, OPT_CHECK},
    {"hold", required_argument, NULL, OPT_HOLD}, {"status-fd", required_argument, NULL, OPT_STATUS},
    {"cpu", required_argument, NULL, OPT_CPU}, {"tcp", required_argument, NULL, OPT_TCP},
    {"home", required_argument, NULL, OPT_HOME}, {"key", required_argument, NULL, OPT_KEY},
    {"lazy", no_argument, NULL, OPT_LAZY}, {"demand-only", no_argument, NULL, OPT_DEMAND}, {"pages", required_argument, NULL, OPT_PAGES}, {"retry", required_argument, NULL, OPT_RETRY},
    {"parent", required_argument, NULL, OPT_PARENT}, {"stats", optional_argument, NULL, OPT_STATS}, {"without-end", no_argument, NULL, OPT_WITHOUT_END}, OPTIONS_COMMON,
};

static void
add_inherit(struct restart_options *o, char *text)
{
	char *eq = strchr(text, '=');
	struct inherit *in = ARRAY_ADD(o->inherits, o->ninherits);

	if (eq == NULL || in == NULL)
		options_misused("--inherit is IMAGE_FD=FD, such as 7=3");
	*eq = '\0';
	in->image_fd = options_number(text, 0, INT_MAX, "--inherit");
	in->fd = options_number(eq + 1, 0, INT_MAX, "--inherit");
	if (fcntl(in->fd, F_GETFD) < 0)
		options_misused("--inherit: that FD is not open");
}

static void
set_stdio(struct restart_options *o, const char *text)
{
	int used = 0;

	if (sscanf(text, "%d,%d,%d%n", &o->stdio[0], &o->stdio[1], &o->stdio[2], &used) != 3 || text[used] != '\0')
		options_misused("--stdio is IN,OUT,ERR: three open files, such as 5,6,6");
	for (size_t i = 0; i < 3; i++)
		if (fcntl(o->stdio[i], F_GETFD) < 0)
			options_misused("--stdio: one of them is not open");
}

static void
add_map(struct restart_options *o, char *text)
{
	char *eq = strchr(text, '=');
	struct path_map *map = ARRAY_ADD(o->maps, o->nmaps);

	if (eq == NULL || map == NULL || text[0] != '/' || eq[1] != '/')
		options_misused("--map is OLD=NEW, both absolute, such as /home/a=/scratch/a");
	*eq = '\0';
	map->from = text;
	map->to = eq + 1;
	/* "/a/" means the same as "/a". */
	while (eq > text + 1 && eq[-1] == '/')
		*--eq = '\0';
}

static enum pid_mode
get_mode(const char *text)
{
	static const char *const names[] = {[PID_SAME] = "same", [PID_NS] = "ns", [PID_NEW] = "new"};

	for (int mode = PID_SAME; mode <= PID_NEW; mode++)
		if (strcmp(text, names[mode]) == 0)
			return (enum pid_mode)mode;
	options_misused("--pid is same, ns or new");
	return PID_AUTO;
}

/* What is elsewhere: files, memory. Returns false if it is none of these. */
static bool
get_place_option(struct restart_options *o, int opt)
{
	switch (opt) {
	case OPT_PARENT:
		o->parent = optarg;
		return true;
	case OPT_HOME:
		o->home = optarg;
		return true;
	case OPT_KEY:
		o->key = optarg;
		return true;
	case OPT_LAZY:
		o->lazy = true;
		return true;
	case OPT_DEMAND:
		o->demand_only = true;
		return true;
	case OPT_PAGES:
		o->pages = optarg;
		return true;
	case OPT_RETRY:
		o->retry_s = options_number(optarg, 0, INT_MAX / 1000, "--retry");
		return true;
	default:
		return false;
	}
}

static void
get_long_option(struct restart_options *o, int opt)
{
	if (get_place_option(o, opt))
		return;
	switch (opt) {
	case OPT_PID:
		o->pid_mode = get_mode(optarg);
		break;
	case OPT_INHERIT:
		add_inherit(o, optarg);
		break;
	case OPT_STDIO:
		set_stdio(o, optarg);
		break;
	case OPT_MAP:
		add_map(o, optarg);
		break;
	case OPT_CHDIR:
		o->chdir = optarg;
		break;
	case OPT_CHECK:
		o->check = true;
		break;
	case OPT_HOLD:
		o->hold_ms = 1000LL * options_number(optarg, 0, INT_MAX, "--hold");
		break;
	case OPT_STATUS:
		o->status_fd = options_number(optarg, 0, INT_MAX, "--status-fd");
		break;
	case OPT_CPU:
		if (strcmp(optarg, "force") != 0)
			options_misused("--cpu is force");
		o->cpu_force = true;
		break;
	case OPT_TCP:
		if (strcmp(optarg, "close") != 0)
			options_misused("--tcp is close");
		o->tcp_reset = true;
		break;
	case OPT_STATS:
		if (!stats_parse(optarg, &o->stats))
			options_misused("--stats is text or json");
		break;
	case OPT_WITHOUT_END:
		o->without_end = true;
		break;
	default:
		options_common(opt, optarg);
	}
}

/* Something follows the program in its own file: an image, for `cat restart image > job`. */
static bool
image_behind_us(void)
{
	int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	uint64_t end = fd < 0 ? 0 : elf_file_end(fd);
	unsigned char head[8];
	uint32_t skippable;
	bool behind;

	behind = end > 0 && pread(fd, head, sizeof(head), (off_t)end) == sizeof(head) &&
	    frame_length(head, sizeof(head), &skippable) >= 0;
	close_fd(&fd);
	return behind;
}

static void
get_options(int argc, char **argv, struct restart_options *o)
{
	int opt;

	while ((opt = getopt_long(argc, argv, "dF:qvV", long_options, NULL)) != -1) {
		switch (opt) {
		case 'd':
			o->detach = true;
			break;
		default:
			get_long_option(o, opt);
		}
	}
	options_end();
	o->self = image_behind_us();
	if (optind + (o->self ? 0 : 1) < argc)
		options_misused(o->self ? "this program holds its image: it takes options only"
				: "at most one image");
	if (optind < argc && strcmp(argv[optind], "-") != 0)
		o->image = argv[optind];
}

void
restart_status(const struct restart *r, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	write_status(r->opt.status_fd, fmt, ap);
	va_end(ap);
}

int
exit_status(int err)
{
	switch (-err) {
	case 0:
		return 0;
	case EBADMSG:
		return EX_DATAERR;
	case ENOENT:
	case ESTALE:
	case EISDIR:
	case ENOTDIR:
		return EX_NOINPUT;
	case ENOTSUP:
		return EX_UNAVAILABLE;
	case EPERM:
	case EACCES:
		return EX_NOPERM;
	case EBUSY:
	case EADDRINUSE:
		return EX_TEMPFAIL;
	case EINVAL:
		return EX_USAGE;
	case EPROTO:
	case EREMOTEIO:
	case ECONNRESET:
	case EPIPE:
		return EX_PROTOCOL;
	default:
		return EX_OSERR;
	}
}

static int
run_check(struct restart *r)
{
	int err = earlier_receive(r);

	if (err == 0)
		err = files_open(r);
	if (err == 0)
		err = image_reader_threads(r->reader);
	return err < 0 ? err : fill(r, NULL);
}

/* Each after its parent, whose memory it may have; then who belongs together. */
static int
make_processes(struct restart *r)
{
	size_t n = r->model.header.ntasks;
	int err = 0;

	for (size_t i = 0; i < n && err == 0; i++) {
		struct built *b = &r->built[i];

		if (b->task->zombie) {
			err = fill(r, b);
			continue;
		}
		err = build(r, b);
		/* No process is forked from here on, that would lack them. */
		if (err == 0 && i == 0 && !lazy_from_file(r))
			err = image_reader_threads(r->reader);
		if (err == 0)
			err = space_make(r, b);
		if (err == 0)
			err = lazy_prepare(r, b);
		stats_lap(STAT_build);
		if (err == 0)
			err = fill(r, b);
		stats_lap(STAT_fill);
		if (err == 0)
			err = coop_note_down(r, b);
		if (err == 0)
			err = tree_children(r, b);
	}
	return err < 0 ? err : tree_finish(r);
}

/* From the metadata to parked processes that only wait for END. */
static int
make(struct restart *r)
{
	size_t n = r->model.header.ntasks;
	int err = files_open(r);

	for (size_t i = 0; i < n; i++) {
		r->built[i] = (struct built){.task = &r->model.tasks[i], .mem = -1, .listener = -1, .uffd = -1};
		for (size_t k = 0; k < i; k++)
			if (r->model.tasks[k].pid == r->model.tasks[i].ppid)
				r->built[i].parent = &r->built[k];
	}
	if (err == 0)
		err = coop_choose(r);
	if (err == 0)
		err = tree_find_births(r);
	if (err == 0)
		err = make_processes(r);
	for (size_t i = 0; i < n && err == 0; i++)
		if (!r->model.tasks[i].zombie)
			err = aio_make(r, &r->built[i]);
	for (size_t i = 0; i < n && err == 0; i++)
		if (!r->model.tasks[i].zombie)
			err = place_fds(r, &r->built[i]);
	for (size_t i = 0; i < n && err == 0; i++)
		if (!r->model.tasks[i].zombie)
			err = settle(r, &r->built[i]);
	stats_lap(STAT_settle);
	return err;
}

static int
let_run(struct restart *r)
{
	struct buf pid = {0};
	int err;

	r->ended = true;
	front_terminal(r);
	err = front_announce(r, r->built[0].pid);
	if (err == 0)
		err = release(r);
	if (err < 0)
		return err;
	debug(LOG_VERBOSE, "pid %d runs", r->built[0].pid);
	files_keep(r);
	files_close(r);
	stats_lap(STAT_release);
	stats_add(STAT_placed, (int64_t)(image_pages_read(r->reader) * PAGE_BYTES));
	stats_print(r->opt.stats);
	/* Whoever waits for the program does not keep its memory. */
	earlier_drop(r);
	if (r->report_fd < 0)
		restart_status(r, "running %d", r->built[0].pid);
	lazy_runs(r);
	if (r->source.is_channel && r->lazy == NULL) {
		buf_put_u64(&pid, (uint64_t)r->built[0].pid);
		channel_send(&r->source.channel, MSG_RUNNING, pid.data, pid.len);
		buf_fini(&pid);
	}
	close_fd(&r->source.fd);
	return 0;
}

static int
run_restart(struct restart *r)
{
	int status, err = place(r);

	if (err == 0)
		err = earlier_receive(r);
	stats_lap(STAT_rounds);
	if (err == 0)
		err = make(r);
	if (err == 0 && is_away(r)) {
		err = away_go(r);
	} else if (err == 0) {
		err = r->lazy != NULL ? lazy_take(r) : await_end(r);
		stats_lap(STAT_wait);
		err = err > 0 ? let_run(r) : err == 0 ? save(r) : err;
		/* END was there, so there is no original: what cannot run here must not be lost. */
		if (err < 0 && r->ended && r->lazy == NULL && !r->source.is_channel && r->source.total == 0)
			save(r);
	}
	netlock_end(r->netlock, NETLOCK_LEAVE); /* it has not come to run */
	if (err < 0) {
		build_undo(r);
		files_undo(r);
		if (!lazy_failed(r) && r->source.is_channel)
			channel_fail(&r->source.channel, log_last());
		return exit_status(err);
	}
	image_reader_free(r->reader);
	r->reader = NULL;
	front_leave_channel(r);
	if (r->report_fd >= 0)
		return front_init(r, r->built[0].pid);
	if (!r->opt.detach)
		return front_wait(r->built[0].pid);
	if (!r->source.is_channel)
		printf("%d\n", r->built[0].pid);
	status = fflush(stdout) == 0 ? 0 : EX_IOERR;
	lazy_linger(r);
	return status;
}

int
main(int argc, char **argv)
{
	struct restart r = {.opt = {.stdio = {0, 1, 2}, .hold_ms = -1, .status_fd = -1, .retry_s = 60}, .source = {.fd = -1},
	    .report_fd = -1};
	int err;

	io_keep_stdio();
	options_begin("restart", usage);
	get_options(argc, argv, &r.opt);
	/* Mapped and open files are all open here at once; the program gets its own limit back. */
	io_raise_limit();
	stats_begin();
	err = load_open(&r);
	if (err == 0 && r.source.total == 0)
		image_keep(r.reader);
	if (err == 0)
		err = load_metadata(&r);
	if (err == 0)
		err = load_host_check(&r);
	if (err == 0)
		err = earlier_open(&r);
	if (err == 0 && r.opt.check)
		err = run_check(&r);
	else if (err == 0)
		err = lazy_begin(&r);
	stats_lap(STAT_read);
	if (err < 0 && r.source.is_channel)
		channel_fail(&r.source.channel, log_last());
	if (err < 0 || r.opt.check)
		return exit_status(err);
	return run_restart(&r);
}
