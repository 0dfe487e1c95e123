/*
 * ckpt: arguments, the order of the phases, the exit status.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

#include "ckpt.h"
#include "cpu.h"
#include "fault.h"
#include "fileid.h"
#include "io.h"
#include "log.h"
#include "model_check.h"
#include "netlock.h"
#include "options.h"
#include "record.h"
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

int
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
	for (size_t i = 0; i < c->nmembers && err == 0; i++)
		if (!c->members[i]->zombie)
			err = rounds_split(c, c->members[i]);
	if (err == 0)
		err = increment_announce(c);
	for (size_t i = 0; i < c->nmembers && err == 0; i++)
		if (!c->members[i]->zombie)
			err = increment_split(c, c->members[i]);
	return err;
}

/* What is copied runs on while the copy is written, where that is possible. */
static int
take_snapshot(struct ckpt *c, const struct output *o)
{
	int err = snapshot_take(c);

	if (err == 0 && c->snapshot) {
		tree_thaw(c);
		output_status(o, "runs %d", c->members[0]->target.pid);
		err = fault(FAULT_let_go);
	}
	return err < 0 || !c->opt.assume || assume_right(c) ? err : -ERESTART;
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

/* What restart would refuse must not take the place of anybody. */
static int
check_image(const struct ckpt *c)
{
	char why[128];

	if (header_check(&c->model.header, why) == 0 && model_check(&c->model, why) == 0)
		return 0;
	return fail(ENOTSUP, "pid %d: restart would not take its image (%s); it runs on", c->members[0]->target.pid, why);
}

/* They stand still, and go on in the end, or have ended. */
static int
take_image(struct ckpt *c, struct output *o)
{
	int err;

	stats_lap(STAT_freeze);
	output_status(o, "stopped %d", c->members[0]->target.pid);
	err = collect(c);
	stats_lap(STAT_collect);
	if (err == 0 && c->opt.after == AFTER_COPY)
		err = take_snapshot(c, o);
	stats_lap(STAT_snapshot);
	if (err == 0)
		err = collect_pages(c);
	stats_lap(STAT_look);
	if (err == 0 && c->opt.spool != NULL)
		err = lazy_spool(c, o);
	if (err == 0 && c->opt.pages != NULL)
		err = lazy_announce(c);
	if (err == 0)
		err = check_image(c);
	if (err == 0)
		err = write_image(c, o);
	stats_lap(STAT_write);
	snapshot_drop(c);
	/* What is copied need not wait for the disk. */
	if (c->opt.after == AFTER_COPY)
		tree_thaw(c);
	else if (err == 0)
		sync_files(c);
	if (err == 0)
		err = ending(c, o);
	stats_lap(STAT_end);
	tree_thaw(c);
	return err;
}

static int
stop_and_take(struct ckpt *c, struct output *o)
{
	int err = tree_freeze(c);

	return err < 0 ? err : take_image(c, o);
}

int
run_ckpt(struct ckpt *c)
{
	struct output o = {.fd = -1, .status_fd = -1};
	bool stays = c->opt.home != NULL || c->opt.pages != NULL;
	int err = stays ? home_fork(c) : 0;

	if (err == 0)
		err = increment_open(c);
	if (err < 0)
		return err;
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
	if (err == 0 && o.kind == OUTPUT_PIPE && c->opt.after == AFTER_MOVE)
		err = put_ack(&o);
	if (err == 0 && c->opt.rounds > 0)
		err = rounds_send(c, &o);
	if (err == 0)
		assume_ahead(c);
	stats_lap(STAT_rounds);
	if (err == 0)
		err = stop_and_take(c, &o);
	if (err == -ERESTART) {
		err = start_over(c);
		if (err == 0)
			err = stop_and_take(c, &o);
	}
	rounds_end(c);
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
	increment_close(c);
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
	fileid_forget();
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
	struct ckpt c = {.home_listener = -1, .home_report = -1};
	enum action action;
	int err, status;

	io_keep_stdio();
	action = arguments(argc, argv, &c.opt);
	options_catch(on_signal);
	io_set_interrupt(interrupted);
	stats_begin();
	if (action == DO_CKPT) {
		err = tree_open(&c, c.opt.pid);
		if (err == 0)
			err = c.opt.check ? run_check(&c) : c.opt.every_ms > 0 ? every(&c) : run_ckpt(&c);
	} else {
		err = action == DO_MERGE ? merge(&c.opt) : action == DO_LIST ? park_list()
		    : action == DO_END ? park_end(&c, c.opt.pid) : park_resume(&c, c.opt.pid);
	}
	status = exit_status(&c, err);
	ckpt_fini(&c);
	return status;
}
