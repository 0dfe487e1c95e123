#include "log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char *log_prog = "pms";
static int log_verbosity;
static int log_fd = STDERR_FILENO;
static _Thread_local int log_hushed;
static _Thread_local char last_failure[512] = "failed", last_hushed[512] = "failed";
static bool progress_shown;
static double progress_start;
static double progress_last;

void
log_init(const char *prog, int level)
{
	log_prog = prog;
	log_verbosity = level;
}

const char *
log_last(void)
{
	return last_failure;
}

const char *
log_last_hushed(void)
{
	return last_hushed;
}

int
log_level(void)
{
	return log_verbosity;
}

void
log_to(int fd)
{
	log_fd = fd;
}

void
log_hush(int by)
{
	log_hushed += by;
}

/* One write(2) a line, so that lines of several processes do not mix. */
static void
put_line(const char *fmt, va_list ap, const char *reason)
{
	char line[2048];
	size_t n, room = sizeof(line) - 2;

	log_progress_end();
	n = (size_t)snprintf(line, room, "%s: ", log_prog);
	n += (size_t)vsnprintf(line + n, room - n, fmt, ap);
	if (n > room - 1)
		n = room - 1;
	if (reason != NULL)
		n += (size_t)snprintf(line + n, room - n, ": %s", reason);
	if (n > room - 1)
		n = room - 1;
	/* Names of files may hold anything; a message stays one line. */
	for (size_t i = 0; i < n; i++)
		if ((unsigned char)line[i] < ' ' || line[i] == 0x7f)
			line[i] = '?';
	line[n++] = '\n';
	if (write(log_fd, line, n) < 0)
		return;
}

int
fail(int err, const char *fmt, ...)
{
	va_list ap;

	if (log_hushed == 0) {
		va_start(ap, fmt);
		vsnprintf(last_failure, sizeof(last_failure), fmt, ap);
		va_end(ap);
		va_start(ap, fmt);
		put_line(fmt, ap, NULL);
		va_end(ap);
	} else {
		va_start(ap, fmt);
		vsnprintf(last_hushed, sizeof(last_hushed), fmt, ap);
		va_end(ap);
	}
	return -err;
}

int
fail_errno(const char *fmt, ...)
{
	int err = errno;
	char what[400];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(what, sizeof(what), fmt, ap);
	va_end(ap);
	snprintf(log_hushed == 0 ? last_failure : last_hushed, sizeof(last_failure), "%s: %s", what, strerror(err));
	if (log_hushed == 0) {
		va_start(ap, fmt);
		put_line(fmt, ap, strerror(err));
		va_end(ap);
	}
	return err != 0 ? -err : -EIO;
}

void
note(const char *fmt, ...)
{
	va_list ap;

	if (log_verbosity < LOG_NORMAL)
		return;
	va_start(ap, fmt);
	put_line(fmt, ap, NULL);
	va_end(ap);
}

void
debug(int level, const char *fmt, ...)
{
	va_list ap;

	if (log_verbosity < level)
		return;
	va_start(ap, fmt);
	put_line(fmt, ap, NULL);
	va_end(ap);
}

static double
now_s(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

void
log_progress(const char *what, unsigned long long done, unsigned long long total)
{
	double now = now_s(), rate;
	char of[64] = "";

	if (log_verbosity < LOG_NORMAL || !isatty(STDERR_FILENO))
		return;
	if (progress_start == 0)
		progress_start = progress_last = now;
	if (now - progress_start < 1 || now - progress_last < 0.2)
		return;
	progress_last = now;
	rate = (double)done / (now - progress_start) / 1e6;
	if (total != 0)
		snprintf(of, sizeof(of), " of %.1f", (double)total / 1e6);
	fprintf(stderr, "\r%s: %s: %.1f%s MB, %.1f MB/s\033[K", log_prog, what,
	    (double)done / 1e6, of, rate);
	progress_shown = true;
}

void
log_progress_end(void)
{
	if (progress_shown)
		fputs("\r\033[K", stderr);
	progress_shown = false;
}
