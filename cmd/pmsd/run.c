/*
 * pmsd run: a new job, with the directory, the environment and the limits of who starts it, in the hands of a keeper of its own.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

#include "client.h"
#include "io.h"
#include "keeper.h"
#include "log.h"
#include "run.h"

static int
take_number(char id[ID_MAX])
{
	char *answer = NULL;
	int err = client_ask(&answer, "number", NULL);

	if (err < 0)
		return err;
	if (strncmp(answer, "id\t", 3) == 0 && place_is_name(answer + 3))
		snprintf(id, ID_MAX, "%s", answer + 3);
	else
		err = fail(EREMOTEIO, "%s", strncmp(answer, "error\t", 6) == 0 ? answer + 6 : answer);
	free(answer);
	return err;
}

static char *
join(char **argv)
{
	struct buf b = {0};

	for (size_t i = 0; argv[i] != NULL; i++) {
		if (i > 0)
			buf_put_u8(&b, ' ');
		buf_put(&b, argv[i], strlen(argv[i]));
	}
	buf_put_u8(&b, '\0');
	if (b.failed)
		buf_fini(&b);
	return (char *)b.data;
}

/* In the keeper, which tells the caller '+' when it runs, or why not. */
static int
keep(struct keeper *k, char **argv, int report)
{
	int err;

	err = spawn_job(k, argv);
	if (err < 0) {
		write_full(report, log_last(), strlen(log_last()));
		return EX_OSERR;
	}
	k->report = report;
	return keeper_loop(k) < 0 ? EX_OSERR : 0;
}

int
run_job(const char *name, bool wait, char **argv)
{
	struct keeper k = {0};
	char said[512];
	int report[2], err = take_number(k.r.id);
	ssize_t n = -1;
	pid_t pid;

	if (err < 0)
		return EX_UNAVAILABLE;
	/* What the caller has open besides is not the job's: it could not move with it. */
	close_range(3, ~0U, 0);
	if (err == 0)
		err = spawn_prepare(&k);
	k.r.started = (int64_t)time(NULL);
	k.r.command = join(argv);
	if (err == 0 && (k.r.command == NULL || set_text(&k.r.place, "") < 0 || set_text(&k.r.name, name != NULL ? name : basename(argv[0])) < 0 || pipe2(report, O_CLOEXEC) < 0))
		err = fail_errno("pipe");
	if (err < 0)
		return EX_OSERR;
	pid = fork();
	if (pid == 0) {
		close(report[0]);
		spawn_detach(&k);
		_exit(keep(&k, argv, report[1]));
	}
	close(report[1]);
	close_fd(&k.lock);
	if (pid > 0)
		n = read_full(report[0], said, sizeof(said) - 1);
	close(report[0]);
	if (n != 1 || said[0] != '+') {
		said[max_i64(n, 0)] = '\0';
		fail(ENOEXEC, "%s", n > 0 ? said : "it could not be started");
		return EX_UNAVAILABLE;
	}
	if (!wait) {
		printf("%s\n", k.r.id);
		return fflush(stdout) == 0 ? 0 : EX_IOERR;
	}
	fprintf(stderr, "%s\n", k.r.id);
	return client_wait(k.r.id);
}
