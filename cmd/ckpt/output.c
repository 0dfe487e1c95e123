/*
 * Where the image goes: a file that gets its name when it is complete, a pipe, or the
 * channel to the command of --to.
 */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zstd.h>

#include "channel.h"
#include "ckpt.h"
#include "fault.h"
#include "io.h"
#include "kfeat.h"
#include "log.h"
#include "program.h"

/* --- a file */

/* Without a name until it is complete, so that nothing is left behind whatever happens. */
static int
open_nameless(struct output *o)
{
	if (!kfeat(KFEAT_tmpfile))
		return -1;
	return open(o->dir, O_TMPFILE | O_RDWR | O_CLOEXEC, o->mode);
}

static int
open_temporary(struct output *o)
{
	if (asprintf(&o->temporary, "%s.XXXXXX", o->name) < 0)
		return -1;
	return mkostemp(o->temporary, O_CLOEXEC);
}

/* The stub that -x puts in front. */
static int
open_restart(void)
{
	char *path;
	int fd;

	if (program_find("restart", &path) < 0)
		return fail(ENOENT, "restart is not to be found, and -x needs it in PATH");
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		fd = fail_errno("%s", path);
	free(path);
	return fd;
}

static int
put_stub(struct output *o)
{
	int in = open_restart();
	char *data = malloc(1 << 20);
	ssize_t n = -1;
	int err = 0;

	if (in < 0 || data == NULL) {
		free(data);
		return in < 0 ? in : -ENOMEM;
	}
	while (err == 0 && (n = read_full(in, data, 1 << 20)) > 0)
		err = output_write(o, data, (size_t)n);
	if (err == 0 && n < 0)
		err = fail((int)-n, "restart: %s", strerror((int)-n));
	free(data);
	close(in);
	return err;
}

/* To move a process through it there must be somebody at the other end. */
static int
check_stream(const struct output *o, const struct ckpt_options *opt)
{
	struct stat st;

	if (isatty(o->fd))
		return fail(EINVAL, "%s: an image does not go to a terminal: redirect stdout, or give -o FILE",
		    o->name);
	if ((opt->after == AFTER_MOVE || opt->after == AFTER_HOME || opt->after == AFTER_LAZY) && fstat(o->fd, &st) == 0 && !S_ISFIFO(st.st_mode) &&
	    !S_ISSOCK(st.st_mode))
		return fail(EINVAL, "%s: neither a file nor a pipe to a restart: -c leaves the process running, "
		    "-k ends it all the same", o->name);
	return 0;
}

static int
open_file(struct output *o, const struct ckpt_options *opt)
{
	struct stat st;
	char *copy;

	o->kind = OUTPUT_FILE;
	o->mode = opt->executable ? 0700 : 0600;
	if (stat(opt->output, &st) == 0 && !S_ISREG(st.st_mode)) {
		o->fd = open(opt->output, O_WRONLY | O_CLOEXEC);
		if (o->fd < 0)
			return fail_errno("%s", opt->output);
		o->kind = OUTPUT_PIPE;
		return check_stream(o, opt);
	}
	copy = strdup(opt->output);
	o->dir = copy != NULL ? strdup(dirname(copy)) : NULL;
	free(copy);
	if (o->dir == NULL)
		return -ENOMEM;
	o->fd = open_nameless(o);
	if (o->fd < 0)
		o->fd = open_temporary(o);
	if (o->fd < 0) {
		free(o->temporary);
		o->temporary = NULL;
		return fail_errno("%s", opt->output);
	}
	return 0;
}

/* --- the command of --to */

static int
open_channel(struct output *o, const char *command)
{
	int sv[2];
	pid_t pid;

	o->kind = OUTPUT_CHANNEL;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) < 0)
		return fail_errno("socketpair");
	pid = fork();
	if (pid < 0) {
		close(sv[0]);
		close(sv[1]);
		return fail_errno("fork");
	}
	if (pid == 0) {
		sigset_t none;

		sigemptyset(&none);
		sigprocmask(SIG_SETMASK, &none, NULL);
		signal(SIGPIPE, SIG_DFL);
		dup2(sv[1], STDIN_FILENO);
		dup2(sv[1], STDOUT_FILENO);
		execl("/bin/sh", "sh", "-c", command, (char *)NULL);
		_exit(127);
	}
	close(sv[1]);
	o->fd = sv[0];
	o->child = pid;
	channel_init(&o->channel, SIDE_CKPT, o->fd, o->fd, o->name);
	return 0;
}

/* Before the process is stopped: is there a restart at all? */
static int
greet(struct output *o)
{
	unsigned char body[64];
	struct buf hello = {0};
	size_t len;
	int err;

	msg_put_hello(&hello);
	err = channel_send(&o->channel, MSG_HELLO, hello.data, hello.len);
	buf_fini(&hello);
	if (err == 0)
		err = channel_expect(&o->channel, MSG_WELCOME, body, sizeof(body), &len);
	if (err == 0 && msg_get_hello(body, len) < 0)
		err = fail(EPROTO, "%s: speaks another version of the protocol", o->name);
	return err;
}

/* --- all three */

int
output_open(struct output *o, const struct ckpt_options *opt)
{
	struct stat st;
	int err;

	*o = (struct output){.fd = -1, .status_fd = opt->status_fd};
	o->name = strdup(opt->to != NULL ? opt->to : opt->output != NULL ? opt->output : "stdout");
	if (o->name == NULL)
		return -ENOMEM;
	if (opt->to != NULL) {
		err = open_channel(o, opt->to);
		return err < 0 ? err : greet(o);
	}
	if (opt->output != NULL) {
		err = open_file(o, opt);
		if (err == 0 && opt->executable)
			err = put_stub(o);
		return err;
	}
	if (fstat(STDOUT_FILENO, &st) < 0)
		return fail_errno("stdout");
	o->fd = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3);
	if (o->fd < 0)
		return fail_errno("stdout");
	/* A regular file is complete when it is synced; it has its name already. */
	o->kind = S_ISREG(st.st_mode) ? OUTPUT_FILE : OUTPUT_PIPE;
	if (o->kind == OUTPUT_PIPE)
		return check_stream(o, opt);
	fchmod(o->fd, 0600);
	return 0;
}

/* How well does it compress? From some pages of the running process. */
static double
sample_ratio(const struct ckpt *c)
{
	enum { SAMPLES = 64 };
	size_t cap = ZSTD_compressBound(SAMPLES * PAGE_BYTES), packed;
	unsigned char *data = calloc(SAMPLES, PAGE_BYTES), *out = malloc(cap);
	uint64_t all = 0, step, n = 0;
	double ratio = 1;
	struct proc_maps maps = {0};
	int mem;
	char path[32];

	snprintf(path, sizeof(path), "/proc/%d/mem", c->members[0]->target.pid);
	mem = open(path, O_RDONLY | O_CLOEXEC);
	if (data == NULL || out == NULL || mem < 0 || proc_read_maps(c->members[0]->target.proc, false, &maps) < 0)
		goto out;
	for (size_t i = 0; i < maps.n; i++)
		all += maps.map[i].ino == 0 ? maps.map[i].end - maps.map[i].start : 0;
	step = page_up(all / SAMPLES + 1);
	all = 0;
	for (size_t i = 0; i < maps.n; i++) {
		if (maps.map[i].ino != 0 || maps.map[i].start >= ARCH_USER_END)
			continue;
		for (taddr at = maps.map[i].start; at < maps.map[i].end && n < SAMPLES; at += step)
			if (mem_read(mem, at, data + n * PAGE_BYTES, PAGE_BYTES) == 0 &&
			    !page_is_zero(data + n * PAGE_BYTES))
				n++;
	}
	packed = n == 0 ? 0 : ZSTD_compress(out, cap, data, n * PAGE_BYTES, (int)max_i64(1, c->opt.level));
	if (n > 8 && !ZSTD_isError(packed))
		ratio = (double)packed / (double)(n * PAGE_BYTES);
out:
	proc_maps_fini(&maps);
	close_fd(&mem);
	free(data);
	free(out);
	return ratio < 1 ? ratio : 1;
}

int
output_check_room(struct output *o, const struct ckpt *c)
{
	uint64_t need, room;
	struct statvfs fs;

	if (o->kind != OUTPUT_FILE || fstatvfs(o->fd, &fs) < 0)
		return 0;
	need = tree_memory(c);
	room = (uint64_t)fs.f_bavail * fs.f_frsize;
	if (need <= room)
		return 0;
	if (c->opt.level != 0)
		need = (uint64_t)((double)need * sample_ratio(c));
	if (need <= room)
		return 0;
	return fail(ENOSPC, "%s: no room: about %llu MB will be needed and %llu MB are free", o->name,
	    (unsigned long long)(need >> 20), (unsigned long long)(room >> 20));
}

static int
send_data(struct channel *ch, const char *data, size_t len)
{
	enum { PIECE = 1 << 20 };
	int err = 0;

	/* Whatever the other side has to say now is that it has failed. */
	if (channel_pending(ch))
		return channel_expect(ch, MSG_READY, NULL, 0, NULL);
	for (size_t n; err == 0 && len > 0; data += n, len -= n) {
		n = min_u64(len, PIECE);
		err = channel_send(ch, MSG_DATA, data, n);
	}
	return err;
}

int
output_write(void *ctx, const void *data, size_t len)
{
	struct output *o = ctx;
	int err;

	if (interrupted())
		return fail(EINTR, "interrupted; the process runs on");
	if (o->kind == OUTPUT_CHANNEL) {
		err = send_data(&o->channel, data, len);
	} else {
		err = write_full(o->fd, data, len);
		if (err < 0)
			fail(-err, "%s: %s%s", o->name, strerror(-err),
			    err == -EPIPE ? " (the reader has gone)" : "");
	}
	if (err == 0)
		o->bytes += len;
	return err;
}

/* The nameless file gets its name, replacing what had it, in one step. */
static int
give_name(struct output *o)
{
	char fd_path[32];

	if (o->temporary == NULL) {
		snprintf(fd_path, sizeof(fd_path), "/proc/self/fd/%d", o->fd);
		if (linkat(AT_FDCWD, fd_path, AT_FDCWD, o->name, AT_SYMLINK_FOLLOW) == 0)
			return 0;
		if (errno != EEXIST)
			return fail_errno("%s", o->name);
		for (unsigned i = 0; i < 1000; i++) {
			if (asprintf(&o->temporary, "%s.%d.%u", o->name, (int)getpid(), i) < 0)
				return -ENOMEM;
			if (linkat(AT_FDCWD, fd_path, AT_FDCWD, o->temporary, AT_SYMLINK_FOLLOW) == 0)
				break;
			free(o->temporary);
			o->temporary = NULL;
			if (errno != EEXIST)
				return fail_errno("%s", o->name);
		}
	}
	if (o->temporary == NULL || rename(o->temporary, o->name) < 0)
		return fail_errno("%s", o->name);
	free(o->temporary);
	o->temporary = NULL;
	return 0;
}

int
output_commit(struct output *o)
{
	int dir, err;

	if (o->kind != OUTPUT_FILE)
		return 0;
	if (fsync(o->fd) < 0)
		return fail_errno("%s: sync", o->name);
	if (o->dir == NULL)
		return fault(FAULT_synced);
	err = give_name(o);
	if (err < 0)
		return err;
	dir = open(o->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dir < 0 || fsync(dir) < 0)
		err = fail_errno("%s: sync", o->dir);
	close_fd(&dir);
	return err < 0 ? err : fault(FAULT_synced);
}

void
output_status(const struct output *o, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	write_status(o->status_fd, fmt, ap);
	va_end(ap);
}

void
output_close(struct output *o)
{
	if (o->kind == OUTPUT_CHANNEL && o->fd >= 0)
		channel_fail(&o->channel, "given up");
	close_fd(&o->fd);
	if (o->temporary != NULL)
		unlink(o->temporary);
	if (o->child > 0)
		waitpid(o->child, NULL, 0);
	free(o->temporary);
	free(o->dir);
	free(o->name);
}
