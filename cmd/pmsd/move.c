/*
 * A job goes to another host, in steps, each a program that runs beside the keeper:
 *
 *   offer    its name and all of its output so far; may it come?
 *   ckpt     --to the keeper that receives it there
 *   tail     the output that came since
 *
 * If the connection is lost in the middle of the second, so that nobody here can know whether it runs there, ckpt leaves it as an image or parked, and the other
 * host is asked until it answers. Only its answer decides: it runs there, or it will not.
 */
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "arrive.h"
#include "io.h"
#include "keeper.h"
#include "log.h"
#include "server.h"

enum { ASK_MS = 3000, COMMAND_MAX = 1000 };

static char *
to_hex(const char *text)
{
	size_t n = strnlen(text, COMMAND_MAX);
	char *hex = malloc(2 * n + 2);

	if (hex != NULL) {
		hex_encode(hex, text, n);
		if (n == 0)
			strcpy(hex, "-");
	}
	return hex;
}

/* `pmsd VERB ID HOP...` there. */
static char *
there(const struct keeper *k, const char *verb, const char *more)
{
	char *arguments = NULL, *command = NULL;

	if (asprintf(&arguments, "%s %s %" PRId64 "%s%s", verb, k->r.id, k->r.hop + 1, more[0] != '\0' ? " " : "", more) >= 0)
		command = host_command(k->address, arguments);
	free(arguments);
	return command;
}

static void
over(struct keeper *k, const char *why)
{
	char text[SAID_MAX + 200];

	if (why != NULL) {
		snprintf(text, sizeof(text), "%s to %s: %s", k->r.id, k->host, why);
		note("%s", text);
	}
	keeper_answer(k, k->tag, why != NULL ? text : NULL);
	k->tag[0] = '\0';
	k->moved = k->unsure = false;
}

/* It has not left: it runs, or it has ended meanwhile. */
static void
stays(struct keeper *k, const char *why)
{
	keeper_state(k, k->was_paused ? "paused" : "running", "");
	over(k, why);
}

static void
run(struct keeper *k, char *command, int in, void (*then)(struct keeper *k, int status))
{
	if (command == NULL || keeper_task(k, command, in, then) < 0) {
		close_fd(&in);
		if (k->moved)
			then(k, 1);
		else
			stays(k, "no program can be started");
	}
	free(command);
}

/* --- the image that ckpt leaves where it cannot know */

static void
each_image(const struct keeper *k, void (*fn)(void *arg, const char *path), void *arg)
{
	char *pattern = NULL;
	glob_t g = {0};

	if (asprintf(&pattern, "%s/pid-*.ckpt", k->r.dir) >= 0 && glob(pattern, 0, NULL, &g) == 0)
		for (size_t i = 0; i < g.gl_pathc; i++)
			fn(arg, g.gl_pathv[i]);
	globfree(&g);
	free(pattern);
}

static void
remove_image(void *arg, const char *path)
{
	(void)arg;
	unlink(path);
}

static void
take_image(void *arg, const char *path)
{
	set_text(arg, path);
}

/* Only where the original has ended is it the job. */
static char *
left_image(const struct keeper *k)
{
	static const char saved[] = "saved here as ";
	const char *at = strstr(k->task.said, saved);
	char *found = NULL;

	if (job_lives(k))
		return NULL;
	each_image(k, take_image, &found);
	/* There was no room, and it is somewhere else. */
	if (found == NULL && at != NULL && at[sizeof(saved) - 1] == '/')
		found = strndup(at + sizeof(saved) - 1, strcspn(at + sizeof(saved) - 1, ";"));
	return found;
}

/* --- the steps */

static void
tail_sent(struct keeper *k, int status)
{
	if (status != 0)
		note("%s: the last of its output stays here: %s", k->r.id, k->task.said);
	over(k, NULL);
}

/* All that it has said is here when it has ended. */
static void
send_tail(struct keeper *k)
{
	char *path = NULL;
	struct stat st;
	int fd;

	k->moved = true;
	keeper_drain(k);
	k->r.pid = 0;
	keeper_state(k, "moved", k->host);
	fd = asprintf(&path, "%s/output", k->r.dir) < 0 ? -1 : open(path, O_RDONLY | O_CLOEXEC);
	free(path);
	if (fd >= 0 && fstat(fd, &st) == 0 && st.st_size > k->sent && lseek(fd, k->sent, SEEK_SET) >= 0) {
		run(k, there(k, "tail", ""), fd, tail_sent);
		return;
	}
	close_fd(&fd);
	over(k, NULL);
}

/* --- it is not known whether it runs there */

static void
goes_on(struct keeper *k, int status)
{
	(void)status; /* one that was not parked runs anyhow */
	k->unsure = false;
	stays(k, "it was lost on its way, and goes on here");
}

static void
given_up_there(struct keeper *k, int status)
{
	char *command = NULL;

	(void)status;
	run(k, asprintf(&command, "ckpt -q --resume %" PRId64, k->r.pid) < 0 ? NULL : command, -1, goes_on);
}

static void
original_ended(struct keeper *k, int status)
{
	(void)status;
	k->unsure = false;
	each_image(k, remove_image, NULL);
	send_tail(k);
}

static void
resumed_there(struct keeper *k, int status)
{
	if (status == 0)
		original_ended(k, 0);
	else
		note("%s: is at %s as an image, and cannot be restarted there: %s", k->r.id, k->host, k->task.said);
}

/* It does not run there, and never will. */
static void
comes_back(struct keeper *k)
{
	char *image = left_image(k), *command = NULL;

	if (image != NULL) {
		k->unsure = false;
		keeper_state(k, "saved", image);
		over(k, "it was lost on its way, and is restarted here");
		move_resume_saved(k, "");
	} else if (job_lives(k)) {
		run(k, asprintf(&command, "ckpt -q --resume %" PRId64, k->r.pid) < 0 ? NULL : command, -1, goes_on);
	} else if (k->child == 0 && k->child_status != 128 + SIGKILL) {
		k->unsure = false;
		stays(k, "it has ended by itself");
	} else {
		k->unsure = false;
		k->r.status = k->child_status;
		keeper_state(k, "lost", "");
		over(k, "it is neither here nor there");
	}
	free(image);
}

static void
drop_then_restart(struct keeper *k, int status)
{
	(void)status;
	comes_back(k);
}

/* An image of it is there, that never ran. */
static void
is_held_there(struct keeper *k)
{
	char *image = left_image(k), *arguments = NULL;
	bool here = image != NULL || job_lives(k);

	if (asprintf(&arguments, here ? "drop %s" : "resume --force %s", k->r.id) >= 0)
		run(k, host_command(k->address, arguments), -1, image != NULL ? drop_then_restart : here ? given_up_there : resumed_there);
	free(arguments);
	free(image);
}

static void
has_answered(struct keeper *k, int status)
{
	char *command = NULL;

	k->ask_ms = now_ms() + ASK_MS;
	switch (status) {
	case HAS_COME:
		if (!job_lives(k))
			original_ended(k, 0);
		else
			run(k, asprintf(&command, "ckpt -q --end %" PRId64, k->r.pid) < 0 ? NULL : command, -1, original_ended);
		break;
	case HAS_NOT:
		comes_back(k);
		break;
	case HAS_IMAGE:
		is_held_there(k);
		break;
	default:
		break; /* out of reach, or not known yet */
	}
}

void
move_go_on(struct keeper *k)
{
	if (k->unsure && k->task.pid == 0 && now_ms() >= k->ask_ms)
		run(k, there(k, "has", ""), -1, has_answered);
}

static void
moved(struct keeper *k, int status)
{
	char *image = left_image(k);

	if (status == 0) {
		send_tail(k);
	} else if (image == NULL && status < 128 && strstr(k->task.said, " is parked") == NULL) {
		char why[SAID_MAX + 1];

		/* It runs on, or had ended before. */
		snprintf(why, sizeof(why), "%s", k->task.said);
		stays(k, why[0] != '\0' ? why : "it cannot be moved");
	} else {
		/* ckpt could not know, or was killed before it could say. */
		note("%s: %s", k->r.id, k->task.said);
		keeper_state(k, "saved", image != NULL ? image : "");
		keeper_answer(k, k->tag, "the connection was lost in the middle; it is asked there whether it runs");
		k->tag[0] = '\0';
		k->unsure = true;
		k->ask_ms = 0;
	}
	free(image);
}

static void
offered(struct keeper *k, int status)
{
	char *receive, *command = NULL;

	if (status != 0) {
		stays(k, k->task.said[0] != '\0' ? k->task.said : "it may not come");
		return;
	}
	each_image(k, remove_image, NULL);
	receive = there(k, "receive", "");
	/* The command that ckpt runs has quotes of its own. */
	if (receive != NULL) {
		setenv("PMSD_RECEIVE", receive, 1);
		if (asprintf(&command, "exec ckpt -q -p %" PRId64 " --to \"$PMSD_RECEIVE\"", k->r.pid) < 0)
			command = NULL;
	}
	free(receive);
	run(k, command, -1, moved);
}

void
move_begin(struct keeper *k, const char *tag, const char *host, const char *address)
{
	char *name = to_hex(k->r.name), *text = to_hex(k->r.command), *more = NULL, *command = NULL, *all = NULL;
	struct stat st;

	k->was_paused = strcmp(k->r.state, "paused") == 0;
	snprintf(k->tag, sizeof(k->tag), "%s", tag);
	snprintf(k->host, sizeof(k->host), "%s", host);
	if (set_text(&k->address, address) == 0 && name != NULL && text != NULL && asprintf(&more, "%" PRId64 " %s %s", k->r.started, name, text) >= 0)
		command = there(k, "offer", more);
	k->sent = fstat(k->log, &st) == 0 ? st.st_size : 0;
	/* With what it said where it was before. */
	if (command == NULL || asprintf(&all, "{ [ ! -e before ] || cat before; head -c %jd output; } | %s", (intmax_t)k->sent, command) < 0)
		all = NULL;
	keeper_state(k, "moving", host);
	run(k, all, -1, offered);
	free(command);
	free(name);
	free(text);
	free(more);
}

/* It is saved until it runs. */
void
move_resume_saved(struct keeper *k, const char *tag)
{
	if (k->r.place[0] == '\0') {
		keeper_answer(k, tag, "has no image");
		return;
	}
	free(k->image);
	k->image = strdup(k->r.place);
	snprintf(k->resume_tag, sizeof(k->resume_tag), "%s", tag);
	if (k->image == NULL || spawn_restart(k, k->image, -1, -1) < 0) {
		keeper_answer(k, tag, log_last());
		k->resume_tag[0] = '\0';
		free(k->image);
		k->image = NULL;
	}
}
