/*
 * The commands that talk to the daemon: a line, and its answer.
 */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sysexits.h>
#include <unistd.h>

#include "client.h"
#include "io.h"
#include "log.h"
#include "server.h"

int
client_connect(void)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	char *path = place_socket();
	int fd = -1, err = path == NULL ? -ENOENT : strlen(path) >= sizeof(sun.sun_path) ? fail(ENAMETOOLONG, "%s: too long for a socket", path) : 0;

	if (err == 0) {
		strcpy(sun.sun_path, path);
		fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
		if (fd < 0 || connect(fd, (struct sockaddr *)&sun, sizeof(sun)) < 0)
			err = fail(errno, "%s: no daemon answers there (%s): start one with pmsd serve", path, strerror(errno));
	}
	if (err < 0)
		close_fd(&fd);
	free(path);
	return err < 0 ? err : fd;
}

/* --- a question and its answer */

struct talk {
	int fd;
	struct buf in;
};

static int
ask(struct talk *t, const char *const *words, int n)
{
	struct buf b = {0};
	int err;

	*t = (struct talk){.fd = client_connect()};
	if (t->fd < 0)
		return t->fd;
	for (int i = 0; i < n; i++)
		words_put_word(&b, words[i], i == 0);
	words_put_end(&b);
	err = b.failed ? fail(ENOMEM, "out of memory") : write_full(t->fd, b.data, b.len);
	buf_fini(&b);
	return err < 0 ? fail(-err, "the daemon has gone") : 0;
}

/* The next line of the answer; the caller frees. NULL where the daemon has gone. */
static char *
next_line(struct talk *t)
{
	unsigned char data[4096];
	char *line;
	ssize_t n;

	while ((line = words_take_line(&t->in)) == NULL) {
		n = read(t->fd, data, sizeof(data));
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return NULL;
		buf_put(&t->in, data, (size_t)n);
	}
	return line;
}

static void
end(struct talk *t)
{
	close_fd(&t->fd);
	buf_fini(&t->in);
}

/* The end of an answer: 0 or 1 where it goes on, or a negative errno, logged. */
static int
last_line(const char *line)
{
	if (line == NULL)
		return fail(ECONNRESET, "the daemon has gone");
	if (strcmp(line, "ok") == 0)
		return 0;
	if (strncmp(line, "error\t", 6) == 0)
		return fail(EREMOTEIO, "%s", line + 6);
	return 1;
}

int
client_ask(char **answer, const char *verb, const char *word)
{
	const char *words[] = {verb, word};
	struct talk t;
	int err = ask(&t, words, word != NULL ? 2 : 1);

	*answer = err == 0 ? next_line(&t) : NULL;
	end(&t);
	return err < 0 ? err : *answer == NULL ? fail(ECONNRESET, "the daemon has gone") : 0;
}

static int
exit_status(int err)
{
	switch (-err) {
	case 0:
		return 0;
	case EREMOTEIO:
		return EX_TEMPFAIL;
	case ENOENT:
	case ECONNREFUSED:
		return EX_UNAVAILABLE;
	default:
		return EX_PROTOCOL;
	}
}

/* --- listings */

static json_t *
value(const char *text)
{
	char *rest;
	double d = strtod(text, &rest);

	if (*text == '\0' || *rest != '\0')
		return json_string(text);
	return strpbrk(text, ".eEnN") == NULL ? json_integer(strtoll(text, NULL, 10)) : json_real(d);
}

static void
add_row(json_t *rows, char **names, int n, char **w, int nwords)
{
	json_t *row = json_object();

	for (int i = 0; i < n && i < nwords; i++)
		json_object_set_new(row, names[i], value(w[i]));
	json_array_append_new(rows, row);
}

/* The first line has the names of the columns. */
static int
print_json(struct talk *t)
{
	json_t *rows = json_array();
	char *head = next_line(t), *line = NULL, *names[WORDS_MAX], *w[WORDS_MAX];
	int n, err = last_line(head);

	n = err > 0 ? words_split(head, names) : 0;
	while (err > 0 && (free(line), err = last_line(line = next_line(t))) > 0)
		add_row(rows, names, n, w, words_split(line, w));
	if (err == 0) {
		json_dumpf(rows, stdout, JSON_INDENT(2));
		putchar('\n');
	}
	free(line);
	free(head);
	json_decref(rows);
	return err;
}

int
client_command(int n, const char *const *words, bool json)
{
	struct talk t;
	char *line = NULL;
	int err = ask(&t, words, n);

	if (err == 0 && json)
		err = print_json(&t);
	else if (err == 0) {
		while (err == 0 && (err = last_line(line = next_line(&t))) > 0) {
			puts(line);
			free(line);
			line = NULL;
			err = 0;
		}
	}
	free(line);
	end(&t);
	if (err == 0 && fflush(stdout) != 0)
		return EX_IOERR;
	return exit_status(err);
}

/* --- wherever it is */

/* `pmsd VERB ID` on the host that has it. Returns the exit status. */
static int
go_there(const char *address, const char *verb, const char *id, bool again)
{
	char *arguments = NULL, *command = NULL;
	int status = EX_UNAVAILABLE;
	bool said = false;

	/* ssh would read what is not meant for it. */
	if (asprintf(&arguments, "%s %s </dev/null", verb, id) >= 0)
		command = host_command(address, arguments);
	free(arguments);
	while (command != NULL) {
		status = system(command);
		status = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
		/* ssh says so where it cannot get there. */
		if (status != 255 || !again)
			break;
		if (!said)
			note("%s: cannot be reached; trying again", address);
		said = true;
		poll(NULL, 0, 2000);
	}
	free(command);
	return status;
}

/* The first line of the answer, which the caller frees. Returns 1, or a negative errno, logged. */
static int
ask_about(char **line, const char *verb, const char *id)
{
	const char *words[] = {verb, id};
	struct talk t;
	int err = ask(&t, words, 2);

	*line = err == 0 ? next_line(&t) : NULL;
	if (err == 0)
		err = last_line(*line);
	end(&t);
	return err;
}

int
client_wait(const char *id)
{
	char *line, *w[WORDS_MAX];
	int err = ask_about(&line, "wait", id), status = EX_PROTOCOL;

	if (err > 0 && words_split(line, w) == 5) {
		if (strcmp(w[1], "ended") == 0)
			status = (int)strtol(w[2], NULL, 10);
		else if (strcmp(w[1], "moved") == 0 && w[4][0] != '\0')
			status = go_there(w[4], "wait", id, true);
		else
			status = fail(ENOENT, "%s: is %s %s", id, w[1], w[3]) < 0 ? EX_NOINPUT : 0;
	} else if (err < 0) {
		status = err == -EREMOTEIO ? EX_NOINPUT : exit_status(err);
	}
	free(line);
	return status;
}

static int
print_file(const char *dir, const char *name)
{
	char *path = NULL, data[65536];
	int fd = asprintf(&path, "%s/%s", dir, name) < 0 ? -1 : open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW), err = 0;
	ssize_t n;

	if (fd < 0 && errno != ENOENT)
		err = fail_errno("%s", path);
	while (fd >= 0 && err == 0 && (n = read(fd, data, sizeof(data))) > 0)
		err = write_full(STDOUT_FILENO, data, (size_t)n);
	close_fd(&fd);
	free(path);
	return err;
}

int
client_log(const char *id)
{
	char *line, *w[WORDS_MAX];
	int err = ask_about(&line, "log", id), status;

	status = err < 0 ? (err == -EREMOTEIO ? EX_NOINPUT : exit_status(err)) : EX_PROTOCOL;
	if (err > 0 && words_split(line, w) == 4) {
		/* Where it has gone to, all of its output is. */
		if (w[3][0] != '\0')
			status = go_there(w[3], "log", id, false);
		else
			status = print_file(w[1], "before") < 0 || print_file(w[1], "output") < 0 ? EX_IOERR : 0;
	}
	free(line);
	return status;
}

/* --- another host's daemon */

static bool
copy(int from, int to)
{
	char data[65536];
	ssize_t n = read(from, data, sizeof(data));

	return n > 0 && write_full(to, data, (size_t)n) == 0;
}

int
client_peer(void)
{
	int fd = client_connect();
	struct pollfd p[2] = {{STDIN_FILENO, POLLIN, 0}, {fd, POLLIN, 0}};

	if (fd < 0)
		return EX_UNAVAILABLE;
	for (;;) {
		if (poll(p, 2, -1) < 0 && errno != EINTR)
			break;
		if (p[0].revents != 0 && !copy(STDIN_FILENO, fd))
			break;
		if (p[1].revents != 0 && !copy(fd, STDOUT_FILENO))
			break;
	}
	close(fd);
	return 0;
}
