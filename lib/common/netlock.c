#include "netlock.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <bsd/string.h>

#include "buf.h"
#include "io.h"
#include "log.h"
#include "sock.h"

struct netlock {
	int guard; /* messages to the child */
	pid_t child;
};

enum { TEXT_MAX = 1024, RENEW_MS = 2000, ELEMENT_MAX = 200, OUTPUT_MAX = 16 << 10 };

/* What the child knows. */
struct guard {
	int commands;
	char table[48];
	unsigned held_ms;
	bool release;
	char (*elements)[ELEMENT_MAX]; /* "held4 { ..." up to where the timeout goes */
	size_t nelements;
	struct guarded {
		int fd, reuse; /* SO_REUSEADDR, which the end of repair mode clears */
	} *sockets;
	size_t nsockets;
	bool decided; /* the original ends: its sockets are to go in silence */
	char output[OUTPUT_MAX]; /* of nft(8), what it says is wrong included */
};

/* --- in the child: nf_tables, by nft(8) */

static void
exec_nft(int in, int out)
{
	char name[] = "nft", option[] = "-f", dash[] = "-", *const argv[] = {name, option, dash, NULL};

	dup2(in, 0);
	dup2(out, 1);
	dup2(out, 2);
	execvp("nft", argv);
	execv("/usr/sbin/nft", argv);
	fputs("nft is needed for it (Debian: apt-get install nftables)\n", stderr);
	_exit(127);
}

/* One transaction. Returns whether it was carried out; g->output has what was printed. */
static bool
run(struct guard *g, const struct buf *commands)
{
	int in = memfd_create("nft", MFD_CLOEXEC), out = memfd_create("nft", MFD_CLOEXEC), status = -1;
	ssize_t n = 0;
	pid_t pid = -1;

	if (in >= 0 && out >= 0 && !commands->failed && write_full(in, commands->data, commands->len) == 0 &&
	    lseek(in, 0, SEEK_SET) == 0)
		pid = fork();
	if (pid == 0)
		exec_nft(in, out);
	while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	n = pid > 0 ? pread(out, g->output, sizeof(g->output) - 1, 0) : 0;
	g->output[n > 0 ? n : 0] = '\0';
	close_fd(&in);
	close_fd(&out);
	return status == 0;
}

static bool run_text(struct guard *g, const char *format, ...) __attribute__((format(printf, 2, 3)));

static bool
run_text(struct guard *g, const char *format, ...)
{
	struct buf b = {0};
	char text[512];
	va_list ap;
	bool done;

	va_start(ap, format);
	buf_put(&b, text, (size_t)vsnprintf(text, sizeof(text), format, ap));
	va_end(ap);
	done = run(g, &b);
	buf_fini(&b);
	return done;
}

static void
put_text(struct buf *b, const char *text)
{
	buf_put(b, text, strlen(text));
}

static void
put_table(const struct guard *g, struct buf *b)
{
	static const char format[] =
	    "table inet %1$s {\n"
	    "set held4 { typeof ip saddr . tcp sport . ip daddr . tcp dport; flags timeout; }\n"
	    "set held6 { typeof ip6 saddr . tcp sport . ip6 daddr . tcp dport; flags timeout; }\n"
	    "chain input { type filter hook input priority raw; }\n"
	    "chain output { type filter hook output priority raw; }\n"
	    "}\n"
	    "flush chain inet %1$s input\n"
	    "flush chain inet %1$s output\n"
	    "add rule inet %1$s input ip saddr . tcp sport . ip daddr . tcp dport @held4 drop\n"
	    "add rule inet %1$s input ip6 saddr . tcp sport . ip6 daddr . tcp dport @held6 drop\n"
	    "add rule inet %1$s output ip daddr . tcp dport . ip saddr . tcp sport @held4 drop\n"
	    "add rule inet %1$s output ip6 daddr . tcp dport . ip6 saddr . tcp sport @held6 drop\n";
	char text[2048];

	snprintf(text, sizeof(text), format, g->table);
	put_text(b, text);
}

static void
put_elements(const struct guard *g, struct buf *b, const char *what, unsigned ms)
{
	for (size_t i = 0; i < g->nelements; i++) {
		char text[ELEMENT_MAX + 128];

		if (ms == 0)
			snprintf(text, sizeof(text), "%s element inet %s %s }\n", what, g->table, g->elements[i]);
		else
			snprintf(text, sizeof(text), "%s element inet %s %s timeout %us }\n", what, g->table, g->elements[i],
			    ms / 1000);
		put_text(b, text);
	}
}

/* What an earlier move has kept here of these connections, when they come back: they are somebody's again. */
static void
forget(struct guard *g, const char *table)
{
	for (size_t i = 0; i < g->nelements; i++)
		run_text(g, "delete element inet %s %s }\n", table, g->elements[i]);
}

/* Visit every table of ours but that of this move. */
static void
each_other(struct guard *g, void (*visit)(struct guard *g, const char *table))
{
	char *list = run_text(g, "list tables inet\n") ? strdup(g->output) : NULL, name[48];

	for (const char *p = list; p != NULL && (p = strstr(p, "table inet pms-")) != NULL; p++)
		if (sscanf(p, "table inet %47[a-z0-9-]", name) == 1 && strcmp(name, g->table) != 0)
			visit(g, name);
	free(list);
}

/* Of a move that is long over, if all its elements have timed out. */
static void
sweep(struct guard *g, const char *table)
{
	if (run_text(g, "list table inet %s\n", table) && strstr(g->output, "elements") == NULL)
		run_text(g, "delete table inet %s\n", table);
}

/* All at once, which fails as a whole where they were there no longer. */
static void
renew(struct guard *g, unsigned ms)
{
	struct buf b = {0};

	put_elements(g, &b, "delete", 0);
	put_elements(g, &b, "add", ms);
	if (g->nelements > 0)
		run(g, &b);
	buf_fini(&b);
}

static void
release(struct guard *g)
{
	run_text(g, "delete table inet %s\n", g->table);
	each_other(g, forget);
}

static void
heal(struct guard *g)
{
	int off = -1; /* without a probe of the window */

	for (size_t i = 0; i < g->nsockets; i++) {
		const struct guarded *s = &g->sockets[i];

		if (sock_option(s->fd, IPPROTO_TCP, TCP_REPAIR) != 1)
			continue;
		setsockopt(s->fd, IPPROTO_TCP, TCP_REPAIR, &off, sizeof(off));
		setsockopt(s->fd, SOL_SOCKET, SO_REUSEADDR, &s->reuse, sizeof(s->reuse));
	}
}

/* The original ends with the one who has died: somebody else may have its connections, or will. */
static void
silence(struct guard *g)
{
	int on = 1;

	for (size_t i = 0; i < g->nsockets; i++)
		setsockopt(g->sockets[i].fd, IPPROTO_TCP, TCP_REPAIR, &on, sizeof(on));
	renew(g, NETLOCK_KEPT_MS);
}

/* --- in the child: messages; the answer is empty or says what is wrong */

static const char *
hold(struct guard *g, const char *element)
{
	char (*place)[ELEMENT_MAX];

	/* Once, however many fds there are of it: in one transaction none can be deleted twice. */
	for (size_t i = 0; i < g->nelements; i++)
		if (strcmp(g->elements[i], element) == 0)
			return "";
	place = ARRAY_ADD(g->elements, g->nelements);
	if (place == NULL)
		return "out of memory";
	strlcpy(*place, element, sizeof(*place));
	return "";
}

static const char *
commit(struct guard *g)
{
	struct buf b = {0};
	bool done;

	put_table(g, &b);
	put_elements(g, &b, "add", g->held_ms);
	done = run(g, &b);
	buf_fini(&b);
	return done ? "" : g->output[0] != '\0' ? g->output : "nft has failed";
}

static const char *
guard_socket(struct guard *g, struct msghdr *m)
{
	struct cmsghdr *c = CMSG_FIRSTHDR(m);
	struct guarded *place = ARRAY_ADD(g->sockets, g->nsockets);

	if (place == NULL)
		return "out of memory";
	place->fd = -1;
	if (c != NULL && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS)
		memcpy(&place->fd, CMSG_DATA(c), sizeof(place->fd));
	place->reuse = sock_option(place->fd, SOL_SOCKET, SO_REUSEADDR);
	return "";
}

/* One message; false at the end. */
static bool
serve(struct guard *g)
{
	union {
		char space[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	char text[ELEMENT_MAX];
	struct iovec iov = {text, sizeof(text) - 1};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.space,
	    .msg_controllen = sizeof(control.space)};
	ssize_t n = recvmsg(g->commands, &m, MSG_CMSG_CLOEXEC);
	const char *answer = "";

	if (n < 0 && errno == EINTR)
		return true;
	if (n <= 0) { /* it has died */
		if (g->decided) {
			silence(g);
			return false;
		}
		heal(g);
		if (g->release)
			release(g);
		return false;
	}
	text[n] = '\0';
	if (text[0] == 'h')
		answer = hold(g, text + 1);
	else if (text[0] == 'c')
		answer = commit(g);
	else if (text[0] == 'g')
		answer = guard_socket(g, &m);
	else if (text[0] == 'r')
		release(g);
	else if (text[0] == 'd')
		g->decided = text[1] == '1';
	else if (text[0] == 'k')
		renew(g, NETLOCK_KEPT_MS);
	send(g->commands, answer, strlen(answer) + 1, MSG_NOSIGNAL);
	if (text[0] == 'c' && answer[0] == '\0')
		each_other(g, sweep);
	return strchr("hgcd", text[0]) != NULL;
}

/* Of all that is open only this: a pipe must break when the one who writes to it dies. */
static void
keep_one(int *fd)
{
	int null = open("/dev/null", O_RDWR);

	for (int std = 0; std < 3 && null >= 0; std++)
		dup2(null, std);
	if (*fd != 3 && dup2(*fd, 3) == 3)
		*fd = 3;
	syscall(SYS_close_range, 4, UINT32_MAX, 0);
}

static void
run_guard(struct guard *g)
{
	struct pollfd p = {-1, POLLIN, 0};

	keep_one(&g->commands);
	p.fd = g->commands;
	setsid();
	for (int sig = SIGHUP; sig <= SIGTERM; sig++)
		signal(sig, SIG_IGN);
	signal(SIGCHLD, SIG_DFL);
	for (;;) {
		int n = poll(&p, 1, RENEW_MS);

		if (n == 0 && g->held_ms < NETLOCK_KEPT_MS)
			renew(g, g->held_ms);
		else if (n > 0 && !serve(g))
			return;
	}
}

/* --- here */

static int
get_answer(struct netlock *lock)
{
	char text[TEXT_MAX];
	ssize_t n;

	do
		n = recv(lock->guard, text, sizeof(text) - 1, 0);
	while (n < 0 && errno == EINTR);
	if (n <= 0)
		return fail(EIO, "the connections cannot be held back: their guard has died");
	text[n] = '\0';
	text[strcspn(text, "\n")] = '\0';
	return text[0] == '\0' ? 0 : fail(ENOTSUP, "connections cannot be held back: %s", text);
}

int
netlock_begin(struct netlock **out, const char *id, unsigned held_ms, bool release_it)
{
	struct netlock *lock = calloc(1, sizeof(*lock));
	int sv[2];

	if (lock == NULL)
		return fail(ENOMEM, "out of memory");
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv) < 0) {
		free(lock);
		return fail_errno("socketpair");
	}
	lock->child = fork();
	if (lock->child == 0) {
		struct guard g = {.commands = sv[1], .held_ms = held_ms, .release = release_it};

		close(sv[0]);
		snprintf(g.table, sizeof(g.table), "pms-%.16s", id);
		run_guard(&g);
		_exit(0);
	}
	close(sv[1]);
	lock->guard = sv[0];
	if (lock->child < 0) {
		close(lock->guard);
		free(lock);
		return fail_errno("fork");
	}
	*out = lock;
	return 0;
}

static int
element_of(const struct bytes *local, const struct bytes *remote, char text[ELEMENT_MAX])
{
	struct sockaddr_storage a, b;
	char here[INET6_ADDRSTRLEN], there[INET6_ADDRSTRLEN];
	bool six;

	sock_plain(local, &a);
	sock_plain(remote, &b);
	six = a.ss_family == AF_INET6;
	if (a.ss_family != b.ss_family)
		return fail(EINVAL, "a connection between addresses of two families");
	inet_ntop(a.ss_family, six ? (void *)&((struct sockaddr_in6 *)&a)->sin6_addr
	    : (void *)&((struct sockaddr_in *)&a)->sin_addr, here, sizeof(here));
	inet_ntop(b.ss_family, six ? (void *)&((struct sockaddr_in6 *)&b)->sin6_addr
	    : (void *)&((struct sockaddr_in *)&b)->sin_addr, there, sizeof(there));
	/* As the other end's packets have them. */
	snprintf(text, ELEMENT_MAX, "held%c { %s . %d . %s . %d", six ? '6' : '4', there, sock_port(remote), here,
	    sock_port(local));
	return 0;
}

int
netlock_hold(struct netlock *lock, const struct bytes *local, const struct bytes *remote)
{
	char text[ELEMENT_MAX + 1] = "h";
	int err = element_of(local, remote, text + 1);

	if (err == 0 && send(lock->guard, text, strlen(text), MSG_NOSIGNAL) < 0)
		err = fail_errno("the guard of connections");
	return err < 0 ? err : get_answer(lock);
}

int
netlock_commit(struct netlock *lock)
{
	if (send(lock->guard, "c", 1, MSG_NOSIGNAL) < 0)
		return fail_errno("the guard of connections");
	return get_answer(lock);
}

int
netlock_guard(struct netlock *lock, int socket)
{
	union {
		char space[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = {{0}};
	char kind = 'g';
	struct iovec iov = {&kind, 1};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.space,
	    .msg_controllen = sizeof(control.space)};
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &socket, sizeof(socket));
	if (sendmsg(lock->guard, &m, MSG_NOSIGNAL) < 0)
		return fail_errno("the guard of connections");
	return get_answer(lock);
}

int
netlock_decide(struct netlock *lock, bool decided)
{
	if (lock == NULL)
		return 0;
	if (send(lock->guard, decided ? "d1" : "d0", 2, MSG_NOSIGNAL) < 0)
		return fail_errno("the guard of connections");
	return get_answer(lock);
}

void
netlock_end(struct netlock *lock, enum netlock_end how)
{
	static const char messages[] = {[NETLOCK_RELEASE] = 'r', [NETLOCK_KEEP] = 'k', [NETLOCK_LEAVE] = 'l'};
	char answer[TEXT_MAX];
	int status;

	if (lock == NULL)
		return;
	if (send(lock->guard, &messages[how], 1, MSG_NOSIGNAL) == 1)
		(void)!recv(lock->guard, answer, sizeof(answer), 0);
	close(lock->guard);
	while (lock->child > 0 && waitpid(lock->child, &status, 0) < 0 && errno == EINTR)
		;
	free(lock);
}
