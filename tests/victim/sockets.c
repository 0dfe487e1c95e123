/* Sockets, and what is in their queues. */
#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "victim.h"

/* --- Unix */

static int pairs[3][2];
static const int types[3] = {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET};

static void
say(int fd, const char *text)
{
	must((int)send(fd, text, strlen(text), 0), "send");
}

static void
hear(int fd, const char *want)
{
	char text[64] = "";
	ssize_t n = recv(fd, text, strlen(want), MSG_DONTWAIT);

	if (n != (ssize_t)strlen(want) || strcmp(text, want) != 0)
		differs("socket: got \"%s\", not \"%s\"", text, want);
}

static int half[2], lonely;

static void
socketpair_make(void)
{
	int gone[2], on = 1;

	for (int i = 0; i < 3; i++) {
		must(socketpair(AF_UNIX, types[i] | (i == 1 ? SOCK_NONBLOCK : 0), 0, pairs[i]), "socketpair");
		say(pairs[i][0], "first");
		say(pairs[i][0], "second");
		say(pairs[i][1], "back");
	}
	setsockopt(pairs[0][0], SOL_SOCKET, SO_PASSCRED, &on, sizeof(on));
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, half), "socketpair");
	say(half[0], "last words");
	shutdown(half[0], SHUT_WR);
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, gone), "socketpair");
	say(gone[0], "from the grave");
	close(gone[0]);
	lonely = gone[1];
}

static void
socketpair_check(void)
{
	static int rounds;
	char c;
	int on = 0;
	socklen_t n = sizeof(on);

	for (int i = 0; i < 3; i++) {
		hear(pairs[i][1], "first");
		hear(pairs[i][1], "second");
		hear(pairs[i][0], "back");
		SAME(recv(pairs[i][1], &c, 1, MSG_DONTWAIT), -1);
		say(pairs[i][0], "first");
		say(pairs[i][0], "second");
		say(pairs[i][1], "back");
	}
	SAME(fcntl(pairs[1][0], F_GETFL) & O_NONBLOCK, O_NONBLOCK);
	getsockopt(pairs[0][0], SOL_SOCKET, SO_PASSCRED, &on, &n);
	SAME(on, 1);
	if (rounds++ == 1) { /* once moved */
		hear(half[1], "last words");
		hear(lonely, "from the grave");
	}
	if (rounds > 1) {
		SAME(recv(half[1], &c, 1, MSG_DONTWAIT), 0);
		SAME(recv(lonely, &c, 1, MSG_DONTWAIT), 0);
	}
	SAME(send(half[0], "x", 1, MSG_NOSIGNAL), -1);
}

static int carrier[2], rider;

static void
send_fds(int fd, const int *fds, int n)
{
	char control[CMSG_SPACE(4 * sizeof(int))] = {0};
	struct iovec iov = {"f", 1};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control,
	    .msg_controllen = CMSG_SPACE((size_t)n * sizeof(int))};
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN((size_t)n * sizeof(int));
	memcpy(CMSG_DATA(c), fds, (size_t)n * sizeof(int));
	must((int)sendmsg(fd, &m, 0), "sendmsg");
}

static int
receive_fds(int fd, int fds[4])
{
	char control[CMSG_SPACE(4 * sizeof(int))], text[64];
	struct iovec iov = {text, sizeof(text)};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
	struct cmsghdr *c;
	ssize_t n = recvmsg(fd, &m, MSG_DONTWAIT);

	c = CMSG_FIRSTHDR(&m);
	if (n != 7 || memcmp(text, "beforef", 7) != 0 || c == NULL)
		return 0;
	memcpy(fds, CMSG_DATA(c), c->cmsg_len - CMSG_LEN(0));
	return (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
}

/* An open file on its way: one that is open here too, one that only the message has, and the socket itself. */
static void
scm_make(void)
{
	int fds[3];

	must(socketpair(AF_UNIX, SOCK_STREAM, 0, carrier), "socketpair");
	rider = must(eventfd(3, EFD_NONBLOCK), "eventfd");
	fds[0] = rider;
	fds[1] = must(eventfd(9, EFD_NONBLOCK), "eventfd");
	fds[2] = carrier[1];
	say(carrier[0], "before");
	send_fds(carrier[0], fds, 3);
	say(carrier[0], "after");
	close(fds[1]);
}

static void
scm_check(void)
{
	int fds[4] = {-1, -1, -1, -1};
	eventfd_t v = 0;

	SAME(receive_fds(carrier[1], fds), 3);
	hear(carrier[1], "after");
	eventfd_read(fds[0], &v);
	SAME(v, 3);
	SAME(eventfd_read(rider, &v), -1);
	eventfd_write(rider, 3);
	eventfd_read(fds[1], &v);
	SAME(v, 9);
	eventfd_write(fds[1], 9);
	say(carrier[0], "before");
	fds[0] = rider;
	send_fds(carrier[0], fds, 3);
	say(carrier[0], "after");
	close(fds[1]);
	close(fds[2]);
}

static int listening, served, client, abstract_dgram, sender;

static void
local_make(void)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX, .sun_path = "server.sock"}, b = {.sun_family = AF_UNIX};

	listening = must(socket(AF_UNIX, SOCK_STREAM, 0), "socket");
	must(bind(listening, (struct sockaddr *)&a, sizeof(a)), "bind");
	chmod("server.sock", 0640);
	must(listen(listening, 17), "listen");
	client = must(socket(AF_UNIX, SOCK_STREAM, 0), "socket");
	must(connect(client, (struct sockaddr *)&a, sizeof(a)), "connect");
	served = must(accept(listening, NULL, NULL), "accept");
	say(client, "request");
	snprintf(b.sun_path + 1, 40, "pms-victim-%d", (int)getpid());
	abstract_dgram = must(socket(AF_UNIX, SOCK_DGRAM, 0), "socket");
	must(bind(abstract_dgram, (struct sockaddr *)&b, sizeof(b)), "bind");
	sender = must(socket(AF_UNIX, SOCK_DGRAM, 0), "socket");
	must(connect(sender, (struct sockaddr *)&b, sizeof(b)), "connect");
	say(sender, "one");
	say(sender, "two");
}

static void
local_check(void)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX, .sun_path = "server.sock"}, got;
	socklen_t n = sizeof(got);
	struct stat st;
	int c, s;

	hear(served, "request");
	say(client, "request");
	getpeername(client, (struct sockaddr *)&got, &n);
	SAME(strcmp(got.sun_path, "server.sock"), 0);
	c = socket(AF_UNIX, SOCK_STREAM, 0);
	SAME(connect(c, (struct sockaddr *)&a, sizeof(a)), 0);
	s = accept(listening, NULL, NULL);
	say(c, "new");
	hear(s, "new");
	close(c);
	close(s);
	SAME(stat("server.sock", &st), 0);
	SAME(st.st_mode & 0777, 0640);
	hear(abstract_dgram, "one");
	hear(abstract_dgram, "two");
	say(sender, "one");
	say(sender, "two");
}

/* --- TCP and UDP */

static int tcp, tcp_client, tcp_served, udp, tcp6;
static struct sockaddr_in tcp_at, udp_at;

static void
bind_any(int fd, struct sockaddr_in *a)
{
	socklen_t n = sizeof(*a);

	*a = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	must(bind(fd, (struct sockaddr *)a, sizeof(*a)), "bind");
	getsockname(fd, (struct sockaddr *)a, &n);
}

static void
inet_make(void)
{
	int on = 1;

	tcp = must(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), "socket");
	setsockopt(tcp, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	setsockopt(tcp, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
	bind_any(tcp, &tcp_at);
	must(listen(tcp, 33), "listen");
	udp = must(socket(AF_INET, SOCK_DGRAM, 0), "socket");
	setsockopt(udp, SOL_SOCKET, SO_BROADCAST, &on, sizeof(on));
	bind_any(udp, &udp_at);
	must(connect(udp, (struct sockaddr *)&udp_at, sizeof(udp_at)), "connect");
	tcp6 = must(socket(AF_INET6, SOCK_STREAM, 0), "socket");
}

static void
inet_check(void)
{
	int on = 0, c, s;
	socklen_t n = sizeof(on);
	struct pollfd p = {tcp, POLLIN, 0};

	getsockopt(tcp, SOL_SOCKET, SO_KEEPALIVE, &on, &n);
	SAME(on, 1);
	c = socket(AF_INET, SOCK_STREAM, 0);
	SAME(connect(c, (struct sockaddr *)&tcp_at, sizeof(tcp_at)), 0);
	poll(&p, 1, 5000);
	s = accept(tcp, NULL, NULL);
	say(c, "new");
	p.fd = s;
	poll(&p, 1, 5000);
	hear(s, "new");
	close(c);
	close(s);
	say(udp, "to myself");
	p.fd = udp;
	poll(&p, 1, 5000);
	hear(udp, "to myself");
	SAME(listen(tcp6, 1), 0);
}

static void
tcp_pair_make(void)
{
	int on = 1;
	struct pollfd p = {.events = POLLIN};

	inet_make();
	tcp_client = must(socket(AF_INET, SOCK_STREAM, 0), "socket");
	setsockopt(tcp_client, IPPROTO_TCP, 1 /* TCP_NODELAY */, &on, sizeof(on));
	must(connect(tcp_client, (struct sockaddr *)&tcp_at, sizeof(tcp_at)), "connect");
	p.fd = tcp;
	poll(&p, 1, 5000);
	tcp_served = must(accept(tcp, NULL, NULL), "accept");
	say(tcp_client, "request");
	say(tcp_served, "answer");
	p.fd = tcp_client;
	poll(&p, 1, 5000);
}

static void
tcp_pair_check(void)
{
	struct sockaddr_in a;
	socklen_t n = sizeof(a);
	struct pollfd p = {tcp_served, POLLIN, 0};
	int on = 0;

	inet_check();
	poll(&p, 1, 5000);
	hear(tcp_served, "request");
	p.fd = tcp_client;
	poll(&p, 1, 5000);
	hear(tcp_client, "answer");
	getpeername(tcp_client, (struct sockaddr *)&a, &n);
	SAME(a.sin_port, tcp_at.sin_port);
	n = sizeof(on);
	getsockopt(tcp_client, IPPROTO_TCP, 1, &on, &n);
	SAME(on, 1);
	say(tcp_client, "request");
	say(tcp_served, "answer");
	p.fd = tcp_served;
	poll(&p, 1, 5000);
	p.fd = tcp_client;
	poll(&p, 1, 5000);
}

/* --- a kind that cannot be carried */

static void
netlink_make(void)
{
	must(socket(AF_NETLINK, SOCK_RAW, 0), "netlink");
}

static void
netlink_check(void)
{
}

const struct maker socket_makers[] = {
    {"socketpair", socketpair_make, socketpair_check}, {"scm", scm_make, scm_check},
    {"local-server", local_make, local_check}, {"inet", inet_make, inet_check},
    {"tcp-pair", tcp_pair_make, tcp_pair_check}, {"netlink", netlink_make, netlink_check}, {0},
};
