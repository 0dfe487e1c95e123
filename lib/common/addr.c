#include "addr.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "io.h"
#include "key.h"
#include "log.h"

/* A peer that is gone without a word is noticed after about this time. */
enum { SILENT_S = 5, SILENT_TIMES = 3, CONNECT_MS = 10000 };

void
addr_fini(struct addr *a)
{
	free(a->text);
	free(a->host);
	free(a->port);
	*a = (struct addr){0};
}

static int
host_and_port(struct addr *a, const char *text)
{
	const char *colon = strrchr(text, ':');
	size_t n;

	if (colon == NULL || colon == text || colon[1] == '\0')
		return -EINVAL;
	n = (size_t)(colon - text);
	if (text[0] == '[' && colon[-1] == ']')
		a->host = strndup(text + 1, n - 2);
	else if (memchr(text, ':', n) == NULL)
		a->host = strndup(text, n);
	a->port = strdup(colon + 1);
	return a->host != NULL && a->port != NULL && strspn(a->port, "0123456789") == strlen(a->port) && strlen(a->port) <= 5 &&
	    atoi(a->port) <= UINT16_MAX ? 0 : -EINVAL;
}

int
addr_parse(struct addr *a, const char *text)
{
	static const struct {
		const char *prefix;
		enum addr_kind kind;
	} kinds[] = {{"unix:", ADDR_UNIX}, {"tcp:", ADDR_TCP}, {"tcp-clear:", ADDR_CLEAR}, {"ssh:", ADDR_SSH}, {"fd:", ADDR_FD}};
	const char *rest = NULL;
	char *end;
	int err = 0;

	*a = (struct addr){.kind = ADDR_STDIO, .text = strdup(text), .fd = -1};
	for (size_t i = 0; i < ARRAY_LEN(kinds) && rest == NULL; i++)
		if (strncmp(text, kinds[i].prefix, strlen(kinds[i].prefix)) == 0) {
			a->kind = kinds[i].kind;
			rest = text + strlen(kinds[i].prefix);
		}
	if (rest == NULL)
		err = strcmp(text, "-") == 0 ? 0 : -EINVAL;
	else if (a->kind == ADDR_TCP || a->kind == ADDR_CLEAR)
		err = host_and_port(a, rest);
	else if (a->kind == ADDR_FD)
		a->fd = (int)strtol(rest, &end, 10), err = *rest != '\0' && *end == '\0' && a->fd >= 0 && fcntl(a->fd, F_GETFD) >= 0 ? 0 : -EINVAL;
	else /* ssh must not take it for an option */
		a->host = strdup(rest), err = *rest == '\0' || *rest == '-' ? -EINVAL : 0;
	if (err == 0 && a->kind == ADDR_UNIX && (strlen(rest) >= sizeof(((struct sockaddr_un *)0)->sun_path) || rest[0] == '@'))
		err = -EINVAL; /* who may use a name without a file nobody can say */
	if (err < 0) {
		addr_fini(a);
		return fail(EINVAL, "%s: not an address: unix:PATH, tcp:HOST:PORT, tcp-clear:HOST:PORT, ssh:HOST, - or fd:N", text);
	}
	return 0;
}

/* --- TCP */

bool
addr_is_loopback(const struct sockaddr *sa)
{
	const struct sockaddr_in *in = (const void *)sa;
	const struct sockaddr_in6 *in6 = (const void *)sa;

	return sa->sa_family == AF_INET ? ntohl(in->sin_addr.s_addr) >> 24 == 127 : sa->sa_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&in6->sin6_addr);
}

void
addr_set_up(int fd, bool caller)
{
	static const struct {
		int level, name, value;
	} options[] = {{IPPROTO_TCP, TCP_NODELAY, 1}, {SOL_SOCKET, SO_KEEPALIVE, 1}, {IPPROTO_TCP, TCP_KEEPIDLE, SILENT_S},
	    {IPPROTO_TCP, TCP_KEEPINTVL, SILENT_S}, {IPPROTO_TCP, TCP_KEEPCNT, SILENT_TIMES},
	    {IPPROTO_TCP, TCP_USER_TIMEOUT, 1000 * SILENT_S * (SILENT_TIMES + 1)}};

	/* Also one that is gone in the middle of what we send; but a caller may have been stopped by his user, and not take anything for a while. */
	for (size_t i = 0; i < ARRAY_LEN(options) - !caller; i++)
		setsockopt(fd, options[i].level, options[i].name, &options[i].value, sizeof(int)); /* best effort: a Unix socket has none */
}

/* connect(2) with a deadline. Returns 0, or a negative errno. */
static int
connect_within(int fd, const struct sockaddr *sa, socklen_t len)
{
	struct pollfd p = {fd, POLLOUT, 0};
	socklen_t n = sizeof(int);
	int err;

	fcntl(fd, F_SETFL, O_NONBLOCK);
	if (connect(fd, sa, len) == 0)
		return 0;
	if (errno != EINPROGRESS)
		return -errno;
	err = poll(&p, 1, CONNECT_MS);
	if (err <= 0)
		return err == 0 ? -ETIMEDOUT : -errno;
	return getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &n) < 0 ? -errno : -err;
}

/* A socket that is connected to, or (listening) bound to, the first of its addresses that can be. */
static int
tcp_socket(const struct addr *a, bool listening)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = listening ? AI_PASSIVE : 0}, *all, *ai;
	int found = getaddrinfo(a->host, a->port, &hints, &all), fd = -1, err = -EHOSTUNREACH, one = 1;

	if (found != 0)
		return fail(EHOSTUNREACH, "%s: %s", a->text, gai_strerror(found));
	for (ai = all; ai != NULL && fd < 0; ai = ai->ai_next) {
		if (a->kind == ADDR_CLEAR && !addr_is_loopback(ai->ai_addr)) {
			err = -EPERM;
			continue;
		}
		fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
		err = fd < 0 ? -errno : 0;
		if (err == 0 && listening) {
			setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
			err = bind(fd, ai->ai_addr, ai->ai_addrlen) < 0 || listen(fd, 16) < 0 ? -errno : 0;
		} else if (err == 0) {
			err = connect_within(fd, ai->ai_addr, ai->ai_addrlen);
		}
		if (err < 0)
			close_fd(&fd);
	}
	freeaddrinfo(all);
	if (fd < 0)
		return fail(-err, err == -EPERM ? "%s: not a loopback address, and what is sent could be read (tcp: with --key)" : "%s: %s", a->text,
		    strerror(-err));
	addr_set_up(fd, !listening);
	return fd;
}

/* --- Unix sockets */

static int
unix_socket(const struct addr *a, bool listening)
{
	struct sockaddr_un un = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), err;
	struct stat st;
	mode_t mask;

	if (fd < 0)
		return fail_errno("socket");
	memcpy(un.sun_path, a->host, strlen(a->host));
	if (!listening && connect(fd, (void *)&un, sizeof(un)) == 0)
		return fd;
	err = listening ? 0 : -errno;
	if (listening) {
		/* One that somebody has left behind who is no more. */
		if (lstat(a->host, &st) == 0 && S_ISSOCK(st.st_mode) && connect(fd, (void *)&un, sizeof(un)) < 0 && errno == ECONNREFUSED)
			unlink(a->host);
		mask = umask(0177);
		err = bind(fd, (void *)&un, sizeof(un)) < 0 || listen(fd, 16) < 0 ? -errno : 0;
		umask(mask);
	}
	if (err < 0) {
		close(fd);
		fail(-err, "%s: %s", a->text, strerror(-err));
		return listening ? err : -EHOSTUNREACH;
	}
	return fd;
}

int
addr_socket(const struct addr *a, bool listening)
{
	return a->kind == ADDR_UNIX ? unix_socket(a, listening) : tcp_socket(a, listening);
}

int
addr_check_key(const struct addr *a, const char *key)
{
	if ((a->kind == ADDR_TCP) == (key != NULL))
		return 0;
	return fail(EINVAL, key == NULL ? "%s: needs a key that both ends have (--key FILE)" : "%s: has no use for a key; tcp: has", a->text);
}

int
addr_listen(const struct addr *a, const char *key)
{
	int err = addr_check_key(a, key);

	if (err == 0)
		err = a->kind == ADDR_TCP ? key_check(key) : 0;
	if (err < 0)
		return err;
	return addr_socket(a, true);
}

void
addr_unlisten(const struct addr *a, int *fd)
{
	if (*fd >= 0 && a->kind == ADDR_UNIX)
		unlink(a->host);
	close_fd(fd);
}

char *
addr_listening(const struct addr *a, int fd)
{
	struct sockaddr_storage sa;
	socklen_t len = sizeof(sa);
	char *text = NULL;

	if (a->kind == ADDR_UNIX)
		return strdup(a->text);
	if (getsockname(fd, (void *)&sa, &len) < 0)
		return NULL;
	/* The host as it was said; only the port may be new. */
	if (asprintf(&text, "%.*s:%d", (int)(strrchr(a->text, ':') - a->text), a->text,
		ntohs(sa.ss_family == AF_INET ? ((struct sockaddr_in *)&sa)->sin_port : ((struct sockaddr_in6 *)&sa)->sin6_port)) < 0)
		return NULL;
	return text;
}
