#include "options.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sysexits.h>

#include <bsd/stdlib.h>

#include "base.h"
#include "fault.h"
#include "kfeat.h"
#include "log.h"

static const char *program, *usage_text;
static int level;

void
options_begin(const char *name, const char *usage)
{
	program = name;
	usage_text = usage;
	log_init(name, LOG_NORMAL);
}

void
options_misused(const char *what)
{
	if (what != NULL)
		fail(EINVAL, "%s", what);
	fprintf(stderr, "%sSee %s(1).\n", usage_text, program);
	exit(EX_USAGE);
}

int
options_number(const char *text, int min, int max, const char *what)
{
	const char *bad;
	int n = (int)strtonum(text, min, max, &bad);

	if (bad != NULL) {
		fail(EINVAL, "%s %s: %s", what, text, bad);
		options_misused(NULL);
	}
	return n;
}

void
options_common(int opt, const char *argument)
{
	switch (opt) {
	case 'F':
		if (fault_arm(argument) < 0)
			options_misused("-F: no such fault site");
		break;
	case 'q':
		level = LOG_QUIET;
		break;
	case 'v':
		level++;
		break;
	case 'V':
		printf("%s (pms) %s\n", program, PMS_VERSION);
		exit(0);
	default:
		options_misused(NULL);
	}
}

static struct {
	sigset_t mask;
	struct sigaction pipe;
} inherited;

void
options_end(void)
{
	const char *bad;
	sigset_t chld;

	log_init(program, level);
	/* Waiting for tracees is sigtimedwait(): tracee.c. */
	sigemptyset(&chld);
	sigaddset(&chld, SIGCHLD);
	sigprocmask(SIG_BLOCK, &chld, &inherited.mask);
	sigaction(SIGPIPE, &(struct sigaction){.sa_handler = SIG_IGN}, &inherited.pipe);
	if (!kfeat_hide(getenv("PMS_WITHOUT"), &bad)) {
		fail(EINVAL, "PMS_WITHOUT: %s: no such feature", bad);
		exit(EX_USAGE);
	}
}

void
options_give_back(void)
{
	sigaction(SIGPIPE, &inherited.pipe, NULL);
	sigprocmask(SIG_SETMASK, &inherited.mask, NULL);
}

int
options_exit_status(int err)
{
	switch (-err) {
	case 0:
		return 0;
	case ESRCH:
	case ENOENT:
		return EX_NOINPUT;
	case EPERM:
	case EACCES:
		return EX_NOPERM;
	case EINVAL:
		return EX_USAGE;
	case ENOTSUP:
		return EX_UNAVAILABLE;
	case EBUSY:
	case EINTR:
	case ETIMEDOUT:
		return EX_TEMPFAIL;
	case EIO:
		return EX_IOERR;
	case EPROTO:
	case ECONNRESET:
	case ECONNREFUSED:
	case EHOSTUNREACH:
	case ENETUNREACH:
	case EREMOTEIO:
		return EX_PROTOCOL;
	default:
		return EX_OSERR;
	}
}

void
options_catch(void (*handler)(int sig))
{
	static const int sigs[] = {SIGINT, SIGTERM, SIGHUP};
	struct sigaction sa = {.sa_handler = handler}, old;

	for (size_t i = 0; i < ARRAY_LEN(sigs); i++)
		if (sigaction(sigs[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN)
			sigaction(sigs[i], &sa, NULL);
}
