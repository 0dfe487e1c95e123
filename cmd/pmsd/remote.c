#include "remote.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <sysexits.h>
#include <unistd.h>

#include "addr.h"
#include "io.h"
#include "key.h"
#include "log.h"
#include "pmsd.h"
#include "tls.h"
#include "words.h"

enum frame { FRAME_INPUT, FRAME_OUTPUT, FRAME_ERRORS, FRAME_STATUS, FRAME_COMMAND };
enum { HEADER = 5, QUEUE_MAX = 256 << 10, LOST = 255, WORD_MAX = 8192 };

/* What may be asked for, and how many words that has. */
static const struct {
	const char *verb;
	int words;
} verbs[] = {{"peer", 1}, {"offer", 6}, {"receive", 3}, {"tail", 3}, {"has", 3}, {"drop", 2}, {"resume", 2}, {"resume", 3}, {"wait", 2}, {"log", 2}};

/* The connection, and what is on its way. */
struct relay {
	struct link l;
	struct buf in, out;
	bool lost;
};

static void
put_frame(struct relay *r, enum frame kind, const void *data, size_t len)
{
	buf_put_u8(&r->out, (uint8_t)kind);
	buf_put_u32(&r->out, (uint32_t)len);
	buf_put(&r->out, data, len);
}

static void
drop_front(struct buf *b, size_t n)
{
	b->len -= n;
	memmove(b->data, b->data + n, b->len);
}

/* The first whole frame, or false. What is no frame ends it. */
static bool
first_frame(struct relay *r, enum frame *kind, const unsigned char **data, size_t *len)
{
	struct rbuf b = {r->in.data, r->in.len, 0, false};

	if (r->in.len < HEADER)
		return false;
	*kind = rbuf_get_u8(&b);
	*len = rbuf_get_u32(&b);
	if (*kind > FRAME_COMMAND || *len > REMOTE_MAX) {
		r->lost = true;
		return false;
	}
	*data = r->in.data + HEADER;
	return r->in.len >= HEADER + *len;
}

static void
receive(struct relay *r)
{
	unsigned char data[REMOTE_MAX];
	ssize_t n = 0;

	while (!r->lost && r->in.len < QUEUE_MAX && (n = tls_read(r->l.tls, data, sizeof(data))) > 0)
		buf_put(&r->in, data, (size_t)n);
	r->lost |= (n <= 0 && n != -EAGAIN) || r->in.failed;
}

static void
deliver(struct relay *r)
{
	ssize_t n = 1;

	while (!r->lost && r->out.len > 0 && (n = tls_write(r->l.tls, r->out.data, r->out.len)) > 0)
		drop_front(&r->out, (size_t)n);
	r->lost |= (n <= 0 && n != -EAGAIN) || r->out.failed;
}

/* Wait for the connection, and for these. */
static void
turn(struct relay *r, struct pollfd *p, nfds_t n)
{
	bool more = r->in.len < QUEUE_MAX;

	p[0] = (struct pollfd){r->l.in, (short)((more ? POLLIN : 0) | (r->out.len > 0 ? POLLOUT : 0)), 0};
	if (more && tls_pending(r->l.tls))
		p[0].revents = POLLIN;
	else if (poll(p, n, -1) < 0)
		return;
	if (p[0].revents != 0) {
		receive(r);
		deliver(r);
	}
}

/* What there is to read in a file, as frames of a kind; its end, an empty one. Returns whether it goes on. */
static bool
take_in(struct relay *r, int fd, enum frame kind)
{
	unsigned char data[REMOTE_MAX];
	ssize_t n = read(fd, data, sizeof(data));

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return true;
	put_frame(r, kind, data, (size_t)max_i64(n, 0));
	deliver(r);
	return n > 0;
}

static void
relay_end(struct relay *r)
{
	buf_fini(&r->in);
	buf_fini(&r->out);
	link_close(&r->l);
}

/* --- who asks */

/* Returns the exit status, or -1 where there is none yet. */
static int
hear_answers(struct relay *r)
{
	const unsigned char *data;
	enum frame kind;
	size_t len;

	while (first_frame(r, &kind, &data, &len)) {
		if (kind == FRAME_STATUS && len == 1)
			return data[0];
		if ((kind == FRAME_OUTPUT || kind == FRAME_ERRORS) && write_full(kind == FRAME_OUTPUT ? STDOUT_FILENO : STDERR_FILENO, data, len) < 0)
			return EX_IOERR;
		drop_front(&r->in, HEADER + len);
	}
	return -1;
}

static int
connect_to(const char *address, const char *key, struct relay *r)
{
	struct addr a;
	int err = addr_parse(&a, address);

	if (err < 0)
		return err;
	err = a.kind != ADDR_TCP ? fail(EINVAL, "%s: is not tcp:HOST:PORT", address) : addr_connect(&a, key, NULL, &r->l);
	if (err == 0)
		fcntl(r->l.in, F_SETFL, fcntl(r->l.in, F_GETFL) | O_NONBLOCK);
	addr_fini(&a);
	return err;
}

int
remote_dial(char **argv)
{
	struct relay r = {0};
	struct buf line = {0};
	int status = -1;
	bool input = true;

	signal(SIGPIPE, SIG_IGN);
	if (connect_to(argv[0], argv[1], &r) < 0)
		return LOST;
	for (int i = 3; argv[2] != NULL && argv[i] != NULL; i++)
		words_put_word(&line, argv[i], i == 3);
	put_frame(&r, FRAME_COMMAND, line.data, line.len);
	buf_fini(&line);
	deliver(&r);
	while (!r.lost && status < 0) {
		struct pollfd p[2] = {{0}, {STDIN_FILENO, POLLIN, 0}};

		turn(&r, p, input && r.out.len < QUEUE_MAX ? 2 : 1);
		if (p[1].revents != 0)
			input = take_in(&r, STDIN_FILENO, FRAME_INPUT);
		status = hear_answers(&r);
	}
	if (status < 0)
		fail(ECONNRESET, "%s: the connection was lost", argv[0]);
	relay_end(&r);
	return status < 0 ? LOST : status;
}

/* --- who answers */

struct command {
	pid_t pid;
	int in, out, err; /* our ends; -1: closed */
	bool input_ended;
};

static bool
may_ask(char **w, int n)
{
	bool may = false;

	for (size_t i = 0; i < ARRAY_LEN(verbs); i++)
		may |= n == verbs[i].words && strcmp(w[0], verbs[i].verb) == 0;
	/* Names of jobs, numbers, hexadecimal digits: nothing that could be an option but the one that may. */
	for (int i = 1; i < n && may; i++)
		may = strspn(w[i], "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_.") == strlen(w[i]) && (w[i][0] != '-' || strcmp(w[i], "-") == 0 ||
		    (i == 1 && strcmp(w[i], "--force") == 0));
	return may;
}

/* The one that becomes the command, with our rights, when it has read which: a line from `words`. */
static void
become_command(int words)
{
	static const char why[] = "pmsd: that is nothing to be asked for from elsewhere\n";
	char line[WORD_MAX + 1], *self = NULL, *w[WORDS_MAX + 1], *argv[WORDS_MAX + 2] = {(char[]){"pmsd"}};
	ssize_t len = read_full(words, line, WORD_MAX);
	int n;

	/* Nobody has come who may ask. */
	if (len <= 0)
		_exit(EX_PROTOCOL);
	line[len] = '\0';
	line[strcspn(line, "\n")] = '\0';
	n = words_split(line, w);
	if (n <= 0 || !may_ask(w, n)) {
		write_full(STDERR_FILENO, why, sizeof(why) - 1);
		_exit(EX_USAGE);
	}
	memcpy(argv + 1, w, (size_t)n * sizeof(*w));
	if (read_link(AT_FDCWD, "/proc/self/exe", &self) == 0)
		execv(self, argv);
	_exit(127);
}

/* *words: where the line goes. Before anything has been read that has come. */
static int
prepare_command(struct command *c, int *words)
{
	int in[2], out[2], err[2], line[2];

	if (pipe2(in, O_CLOEXEC) < 0 || pipe2(out, O_CLOEXEC) < 0 || pipe2(err, O_CLOEXEC) < 0 || pipe2(line, O_CLOEXEC) < 0)
		return -errno;
	*c = (struct command){fork(), in[1], out[0], err[0], false};
	if (c->pid == 0) {
		child_begin();
		close(line[1]);
		dup2(in[0], STDIN_FILENO);
		dup2(out[1], STDOUT_FILENO);
		dup2(err[1], STDERR_FILENO);
		close(in[1]);
		become_command(line[0]);
	}
	close(in[0]);
	close(out[1]);
	close(err[1]);
	close(line[0]);
	*words = line[1];
	fcntl(c->in, F_SETFL, O_NONBLOCK);
	fcntl(c->out, F_SETFL, O_NONBLOCK);
	fcntl(c->err, F_SETFL, O_NONBLOCK);
	return c->pid < 0 ? -EAGAIN : 0;
}

enum { NOBODY = 65534 };

/* What has come is read by nobody in particular. */
static int
drop_rights(void)
{
	if (geteuid() == 0 && (setgroups(0, NULL) < 0 || setresgid(NOBODY, NOBODY, NOBODY) < 0 || setresuid(NOBODY, NOBODY, NOBODY) < 0))
		return fail_errno("giving up the rights of root");
	return prctl(PR_SET_NO_NEW_PRIVS, 1L, 0L, 0L, 0L) < 0 ? fail_errno("prctl") : 0;
}

/* Input for the command, as much as it takes. */
static void
feed(struct relay *r, struct command *c)
{
	const unsigned char *data;
	enum frame kind;
	size_t len;

	while (first_frame(r, &kind, &data, &len)) {
		ssize_t n = kind != FRAME_INPUT || c->in < 0 ? (ssize_t)len : write(c->in, data, len);

		if (n < 0 && errno == EAGAIN)
			return;
		if (n < 0 || (kind == FRAME_INPUT && len == 0))
			close_fd(&c->in);
		if (n < 0 || (size_t)n == len) {
			drop_front(&r->in, HEADER + len);
			continue;
		}
		/* The rest of the frame is a frame. */
		drop_front(&r->in, (size_t)n);
		len -= (size_t)n;
		r->in.data[0] = FRAME_INPUT;
		for (int i = 0; i < 4; i++)
			r->in.data[1 + i] = (unsigned char)(len >> 8 * i);
		return;
	}
}

/* Is there something that it could not take yet? */
static bool
has_input(struct relay *r, const struct command *c)
{
	const unsigned char *data;
	enum frame kind;
	size_t len;

	return c->in >= 0 && first_frame(r, &kind, &data, &len);
}

static void
see_through(struct relay *r, struct command *c)
{
	unsigned char status = LOST;
	int how;

	while (!r->lost && (c->out >= 0 || c->err >= 0)) {
		bool room = r->out.len < QUEUE_MAX;
		struct pollfd p[4] = {{0}, {room ? c->out : -1, POLLIN, 0}, {room ? c->err : -1, POLLIN, 0}, {has_input(r, c) ? c->in : -1, POLLOUT, 0}};

		turn(r, p, ARRAY_LEN(p));
		if (p[1].revents != 0 && !take_in(r, c->out, FRAME_OUTPUT))
			close_fd(&c->out);
		if (p[2].revents != 0 && !take_in(r, c->err, FRAME_ERRORS))
			close_fd(&c->err);
		feed(r, c);
	}
	/* As with ssh: who is lost takes his input and output with him, and the command sees to what that means. */
	close_fd(&c->in);
	close_fd(&c->out);
	close_fd(&c->err);
	while (waitpid(c->pid, &how, 0) < 0 && errno == EINTR)
		;
	status = (unsigned char)(WIFSIGNALED(how) ? 128 + WTERMSIG(how) : WEXITSTATUS(how));
	put_frame(r, FRAME_STATUS, &status, 1);
	while (!r->lost && r->out.len > 0) {
		struct pollfd p[1];

		turn(r, p, 1);
	}
}

/* His first frame, as words of a line that is the caller's. */
static char *
await_command(struct relay *r)
{
	int64_t deadline = now_ms() + LINK_HANDSHAKE_MS;
	const unsigned char *data = NULL;
	enum frame kind = FRAME_INPUT;
	size_t len = 0;
	char *line = NULL;

	while (!r->lost && !first_frame(r, &kind, &data, &len) && now_ms() < deadline) {
		struct pollfd p = {r->l.in, POLLIN, 0};

		if (tls_pending(r->l.tls) || poll(&p, 1, 100) > 0)
			receive(r);
	}
	if (!r->lost && first_frame(r, &kind, &data, &len) && kind == FRAME_COMMAND && len < WORD_MAX) {
		line = strndup((const char *)data, len);
		drop_front(&r->in, HEADER + len);
	}
	return line;
}

static void
answer(const char *key, int fd)
{
	struct relay r = {0};
	struct command c;
	char *line = NULL;
	int words = -1;

	signal(SIGPIPE, SIG_IGN);
	/* Nothing else that the daemon has. */
	if (dup2(fd, STDERR_FILENO + 1) < 0 || close_range(STDERR_FILENO + 2, ~0U, 0) < 0)
		_exit(EX_OSERR);
	fd = STDERR_FILENO + 1;
	addr_set_up(fd, false);
	link_init(&r.l, fd, fd, "caller");
	if (tls_new(&r.l.tls, key, fd, true) < 0 || prepare_command(&c, &words) < 0 || drop_rights() < 0 || link_handshake(&r.l) < 0)
		_exit(EX_PROTOCOL);
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
	line = await_command(&r);
	if (line != NULL && write_full(words, line, strlen(line)) < 0)
		r.lost = true;
	close(words);
	if (line != NULL)
		see_through(&r, &c);
	free(line);
	relay_end(&r);
	_exit(0);
}

int
remote_listen(const char *address, const char *key, char **name)
{
	struct addr a;
	int fd, err = addr_parse(&a, address);

	if (err < 0)
		return err;
	if (a.kind != ADDR_TCP)
		err = fail(EINVAL, "%s: is not tcp:HOST:PORT", address);
	else
		err = key == NULL ? fail(EINVAL, "%s: takes a key (--key FILE)", address) : key_check(key);
	fd = err < 0 ? err : addr_listen(&a, key);
	*name = fd >= 0 ? addr_listening(&a, fd) : NULL;
	addr_fini(&a);
	return fd;
}

pid_t
remote_welcome(int listener, const char *key)
{
	int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	pid_t pid;

	if (fd < 0)
		return -1;
	/* What comes is read in a process of its own, which has no rights when it reads. */
	pid = fork();
	if (pid == 0) {
		child_begin();
		close(listener);
		answer(key, fd);
	}
	close(fd);
	return pid;
}
