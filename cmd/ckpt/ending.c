/*
 * Who ends the original, and when: never two running; always one running, or one complete
 * image that is named. See ARCHITECTURE.md, "Who ends the original".
 *
 * The decision is PTRACE_O_EXITKILL: from then on the original ends with ckpt, if not
 * before; it stands still until then, so it can still be let go where the other side is
 * known not to run.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ckpt.h"
#include "fault.h"
#include "io.h"
#include "log.h"
#include "netlock.h"

/* The other side is known not to run: the original goes on. */
static void
undecide(struct ckpt *c)
{
	log_hush(1);
	tree_set_exitkill(c, false);
	log_hush(-1);
	c->decided = false;
}

/* Signals that came while it stood still end with it: the image was made before them. */
static void
tell_late_signals(const struct member *who)
{
	struct proc_status st;
	uint64_t known = 0;

	for (size_t i = 0; i < who->task->pending.n; i += SIGINFO_BYTES) {
		int32_t sig;

		memcpy(&sig, who->task->pending.p + i, sizeof(sig));
		known |= 1ULL << (sig - 1);
	}
	if (proc_read_status(who->target.proc, &st) < 0)
		return;
	for (int sig = 1; sig <= 64; sig++)
		if ((st.shdpnd & ~known) >> (sig - 1) & 1)
			note("pid %d: signal %d came while it stood still, and is lost", who->target.pid, sig);
	proc_status_fini(&st);
}

int
end_original(struct ckpt *c, struct output *o)
{
	bool here;
	int err;

	for (size_t i = 0; i < c->nmembers; i++)
		if (!c->members[i]->zombie)
			tell_late_signals(c->members[i]);
	leave_fds(c);
	here = proc_same_ns(c->members[0]->target.proc, "ipc");
	err = tree_end(c);
	if (err < 0)
		return err;
	if (here)
		leave_ipc(c);
	netlock_end(c->shared.netlock, NETLOCK_KEEP);
	c->shared.netlock = NULL;
	c->decided = false; /* carried out */
	if (o != NULL)
		output_status(o, "ended %d", c->members[0]->target.pid);
	debug(LOG_VERBOSE, "pid %d: ended", c->members[0]->target.pid);
	return fault(FAULT_ended);
}

/* --- a pipe: padding that is read only when everything stands, then END */

int
put_ack(struct output *o)
{
	struct buf b = {0};
	int err;

	control_put(&b, CONTROL_ACK, 0);
	err = b.failed ? -ENOMEM : output_write(o, b.data, b.len);
	buf_fini(&b);
	return err;
}

static int
put_tail(struct output *o, uint64_t size)
{
	char *zeroes = calloc(1, 64 << 10);
	struct buf b = {0};
	int err;

	control_put(&b, CONTROL_TAIL, (uint32_t)size);
	err = zeroes == NULL || b.failed ? -ENOMEM : output_write(o, b.data, b.len);
	for (uint64_t left = size; err == 0 && left > 0;) {
		size_t n = min_u64(left, 64 << 10);

		err = output_write(o, zeroes, n);
		left -= n;
	}
	buf_fini(&b);
	free(zeroes);
	return err;
}

static int
put_end(struct output *o)
{
	struct buf b = {0};
	int err;

	control_put(&b, CONTROL_END, 0);
	/* One write: it is out, or nothing is. */
	err = b.failed ? -ENOMEM : write_full(o->fd, b.data, b.len);
	buf_fini(&b);
	if (err < 0)
		return fail(-err, "%s: the reader has gone before the end: %s", o->name, strerror(-err));
	interrupts_end();
	fault(FAULT_end_out); /* it is out: what fails now changes nothing */
	return 0;
}

static int
move_by_pipe(struct ckpt *c, struct output *o)
{
	int err = put_tail(o, c->opt.tail);

	if (err == 0)
		err = fault(FAULT_tail_out);
	if (err == 0)
		err = tree_set_exitkill(c, true);
	if (err == 0)
		err = put_end(o);
	c->decided = err == 0;
	if (err < 0) {
		undecide(c);
		return err;
	}
	tree_stopped(c);
	return end_original(c, o);
}

/* --- a channel: READY, decision, GO, RUNNING */

int
save_as(struct ckpt *c, const char *name)
{
	struct ckpt_options opt = {.pid = c->opt.pid, .output = name, .after = AFTER_KILL, .status_fd = -1};
	struct output o;
	int err = output_open(&o, &opt);

	if (err == 0)
		err = write_image(c, &o);
	if (err == 0)
		err = output_commit(&o);
	output_close(&o);
	return err;
}

/*
 * GO is out and nobody answers: whether the copy runs cannot be known here. The original must not
 * run, nor be lost: it is saved, or where no file can be made, parked.
 */
static int
rescue(struct ckpt *c, const struct output *lost)
{
	const char *tmp = getenv("TMPDIR"), *dirs[] = {".", tmp != NULL ? tmp : "/tmp", "/var/tmp"};
	int err = -1;

	for (size_t i = 0; i < ARRAY_LEN(dirs) && err < 0; i++) {
		char *name;

		if (asprintf(&name, "%s/pid-%d-%.8s.ckpt", dirs[i], c->members[0]->target.pid, c->model.header.id) < 0)
			break;
		err = save_as(c, name);
		if (err == 0)
			fail(ECONNRESET, "%s: lost after it was told to go on: pid %d may run there, and is saved "
			    "here as %s; restart that only if it does not", lost->name, c->members[0]->target.pid, name);
		free(name);
	}
	if (err == 0)
		return end_original(c, NULL) < 0 ? -EIO : -ECONNRESET;
	tree_set_exitkill(c, false);
	c->decided = false;
	err = park(c, false);
	if (err < 0) {
		c->decided = true;
		return err;
	}
	return fail(ECONNRESET, "%s: lost after it was told to go on: pid %d may run there, and is parked "
	    "here; ckpt --resume %d only if it does not", lost->name, c->members[0]->target.pid, c->members[0]->target.pid);
}

static int
move_by_channel(struct ckpt *c, struct output *o)
{
	unsigned char body[8];
	struct rbuf r = {body, sizeof(body), 0, false};
	size_t got = 0;
	int err = channel_send(&o->channel, MSG_DATA_END, NULL, 0);

	if (err == 0)
		err = channel_expect(&o->channel, MSG_READY, NULL, 0, NULL);
	if (err == 0)
		err = fault(FAULT_tail_out);
	if (err == 0 && c->opt.after == AFTER_MOVE)
		err = tree_set_exitkill(c, true);
	if (err == 0)
		err = channel_send(&o->channel, MSG_GO, NULL, 0);
	if (err < 0) {
		undecide(c);
		return err;
	}
	c->decided = c->opt.after == AFTER_MOVE;
	interrupts_end();
	fault(FAULT_end_out);
	err = channel_expect(&o->channel, MSG_RUNNING, body, sizeof(body), &got);
	if (err == 0)
		tree_stopped(c);
	if (err == 0 && got == sizeof(body))
		output_status(o, "running %" PRIu64, rbuf_get_u64(&r));
	if (c->opt.after == AFTER_COPY)
		return err;
	/* It says itself that it has failed: then the original is the one that goes on. */
	if (err == -EREMOTEIO) {
		undecide(c);
		return err;
	}
	return err < 0 ? rescue(c, o) : end_original(c, o);
}

int
ending(struct ckpt *c, struct output *o)
{
	int err;

	if (c->opt.after == AFTER_HOME || c->opt.after == AFTER_LAZY) {
		err = o->kind == OUTPUT_CHANNEL ? channel_send(&o->channel, MSG_DATA_END, NULL, 0) : output_commit(o);
		if (err < 0)
			return err;
		return c->opt.after == AFTER_LAZY ? lazy_stay(c, o) : home_stay(c, o);
	}
	if (o->kind == OUTPUT_CHANNEL)
		return move_by_channel(c, o);
	if (o->kind == OUTPUT_PIPE && c->opt.after == AFTER_MOVE)
		return move_by_pipe(c, o);
	err = output_commit(o);
	if (err < 0)
		return err;
	if (o->kind == OUTPUT_FILE)
		output_status(o, "complete %s", o->name);
	switch (c->opt.after) {
	case AFTER_COPY:
		return 0;
	case AFTER_PARK:
		err = park(c, o->kind == OUTPUT_FILE);
		if (err == 0)
			note("pid %d: parked (ckpt --resume %d lets it go on, ckpt --end %d ends it)", c->members[0]->target.pid,
			    c->members[0]->target.pid, c->members[0]->target.pid);
		return err;
	default:
		/* Should ckpt die while it ends them one after another, they end with it. */
		err = tree_set_exitkill(c, true);
		if (err < 0) {
			undecide(c);
			return err;
		}
		c->decided = true;
		return end_original(c, o);
	}
}
