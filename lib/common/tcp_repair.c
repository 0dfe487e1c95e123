/*
 * Where a TCP connection stands, and another socket that stands there: TCP_REPAIR (CAP_NET_ADMIN).
 */
#include "tcp_repair.h"

#include <errno.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "io.h"
#include "sock.h"

enum { NO_QUEUE, RECV_QUEUE, SEND_QUEUE };
/* Codes of struct tcp_repair_opt: those of the options in a packet. */
enum { OPT_MSS = 2, OPT_WINDOW = 3, OPT_SACK_PERMITTED = 4, OPT_TIMESTAMP = 8 };
#define TCP_ULP_ 31

enum { ADDRESS_TRIES_MS = 3000, PIECE = 1 << 20, PUSHED = 32 << 10, MAXSEG_MOST = 32767 };

int
tcp_set_repair(int fd, int how)
{
	return setsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &how, sizeof(how)) < 0 ? -errno : 0;
}

bool
tcp_can_repair(int family)
{
	int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	bool can = fd >= 0 && tcp_set_repair(fd, REPAIR_ON) == 0;

	close_fd(&fd);
	return can;
}

static int
add_pieces(struct packet **list, size_t *n, const unsigned char *data, size_t len)
{
	for (size_t at = 0; at < len; at += PIECE) {
		size_t piece = min_u64(PIECE, len - at);
		struct packet *p = ARRAY_ADD(*list, *n);

		if (p == NULL || (p->data.p = malloc(piece)) == NULL)
			return -ENOMEM;
		memcpy(p->data.p, data + at, piece);
		p->data.n = piece;
	}
	return 0;
}

/* What is in one of the queues, and the number behind its end. */
static int
read_queue(int fd, int which, size_t len, struct packet **list, size_t *n, uint64_t *end)
{
	unsigned char *data = malloc(len + 1);
	uint32_t seq;
	socklen_t size = sizeof(seq);
	ssize_t got = 0;
	int err = data == NULL ? -ENOMEM : 0;

	if (err == 0 && (setsockopt(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, &which, sizeof(which)) < 0 ||
			    getsockopt(fd, IPPROTO_TCP, TCP_QUEUE_SEQ, &seq, &size) < 0))
		err = -errno;
	/* More room than there should be: what does not agree shows. */
	if (err == 0 && len > 0 && (got = recv(fd, data, len + 1, MSG_PEEK | MSG_DONTWAIT)) != (ssize_t)len)
		err = got < 0 ? -errno : -EAGAIN;
	if (err == 0)
		err = add_pieces(list, n, data, len);
	*end = seq;
	free(data);
	return err;
}

static int
read_options(int fd, struct tcp_ref *t)
{
	struct tcp_info info;
	struct tcp_repair_window w;
	uint32_t mss, stamp = 0;
	socklen_t n = sizeof(info), m = sizeof(w), k = sizeof(mss), l = sizeof(stamp);

	if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &n) < 0 ||
	    getsockopt(fd, IPPROTO_TCP, TCP_REPAIR_WINDOW, &w, &m) < 0 ||
	    getsockopt(fd, IPPROTO_TCP, TCP_MAXSEG, &mss, &k) < 0)
		return -errno;
	t->timestamps = (info.tcpi_options & TCPI_OPT_TIMESTAMPS) != 0;
	t->sack = (info.tcpi_options & TCPI_OPT_SACK) != 0;
	t->snd_wscale = info.tcpi_options & TCPI_OPT_WSCALE ? info.tcpi_snd_wscale : -1;
	t->rcv_wscale = info.tcpi_options & TCPI_OPT_WSCALE ? info.tcpi_rcv_wscale : -1;
	if (t->timestamps && getsockopt(fd, IPPROTO_TCP, TCP_TIMESTAMP, &stamp, &l) < 0)
		return -errno;
	t->timestamp = stamp;
	t->mss = mss;
	t->snd_wl1 = w.snd_wl1, t->snd_wnd = w.snd_wnd, t->max_window = w.max_window;
	t->rcv_wnd = w.rcv_wnd, t->rcv_wup = w.rcv_wup;
	return 0;
}

/* In repair mode. Numbers count the end of a direction (FIN) as a byte, and the length of what is unacknowledged too. */
int
tcp_read(int fd, int state, struct tcp_ref *t, struct socket_ref *k)
{
	struct pollfd p = {fd, POLLRDHUP, 0};
	int in = 0, out = 0, unsent = 0, err;
	uint64_t received, written;

	t->sent_fin = tcp_has_sent_fin(state);
	t->got_fin = poll(&p, 1, 0) > 0 && (p.revents & POLLRDHUP) != 0; /* also where that was told by shutdown(2) alone */
	if (ioctl(fd, SIOCINQ, &in) < 0 || ioctl(fd, SIOCOUTQ, &out) < 0 || ioctl(fd, SIOCOUTQNSD, &unsent) < 0)
		return -errno;
	out -= t->sent_fin && out > 0;
	unsent -= t->sent_fin && unsent > 0;
	err = read_queue(fd, RECV_QUEUE, (size_t)in, &k->queue, &k->nqueue, &received);
	if (err == 0)
		err = read_queue(fd, SEND_QUEUE, (size_t)out, &t->out, &t->nout, &written);
	if (err < 0)
		return err;
	t->recv_seq = (uint32_t)(received - (uint64_t)in);
	t->send_seq = (uint32_t)(written - t->sent_fin - (uint64_t)out);
	t->unsent = (uint64_t)unsent;
	return read_options(fd, t);
}

bool
tcp_has_sent_fin(int state)
{
	return state == FIN_WAIT1 || state == FIN_WAIT2 || state == CLOSING || state == LAST_ACK;
}

int
tcp_state(int fd)
{
	struct tcp_info info;
	socklen_t n = sizeof(info);

	return getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &n) < 0 ? CLOSED : info.tcpi_state;
}

static int
set_seq(int fd, int queue, uint64_t seq)
{
	uint32_t value = (uint32_t)seq;

	if (setsockopt(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, &queue, sizeof(queue)) < 0 ||
	    setsockopt(fd, IPPROTO_TCP, TCP_QUEUE_SEQ, &value, sizeof(value)) < 0)
		return -errno;
	return 0;
}

/* With an address that is not here yet, if need be: it goes on when that comes. */
static int
bind_repaired(int fd, const struct socket_ref *k)
{
	int on = 1;

	if (bind(fd, (const struct sockaddr *)k->local.p, (socklen_t)k->local.n) == 0)
		return 0;
	if (errno != EADDRNOTAVAIL)
		return -errno;
	if (setsockopt(fd, k->family == AF_INET6 ? IPPROTO_IPV6 : IPPROTO_IP, k->family == AF_INET6 ? IPV6_TRANSPARENT
	    : IP_TRANSPARENT, &on, sizeof(on)) < 0)
		return -EADDRNOTAVAIL;
	return bind(fd, (const struct sockaddr *)k->local.p, (socklen_t)k->local.n) < 0 ? -errno : 0;
}

static int
set_options(int fd, const struct tcp_ref *t)
{
	struct tcp_repair_opt opts[4];
	uint32_t stamp = (uint32_t)t->timestamp;
	unsigned n = 0;

	opts[n++] = (struct tcp_repair_opt){OPT_MSS, (uint32_t)t->mss};
	if (t->snd_wscale >= 0)
		opts[n++] = (struct tcp_repair_opt){OPT_WINDOW, (uint32_t)(t->snd_wscale | t->rcv_wscale << 16)};
	if (t->sack)
		opts[n++] = (struct tcp_repair_opt){OPT_SACK_PERMITTED, 0};
	if (t->timestamps)
		opts[n++] = (struct tcp_repair_opt){OPT_TIMESTAMP, 0};
	if (setsockopt(fd, IPPROTO_TCP, TCP_REPAIR_OPTIONS, opts, (socklen_t)(n * sizeof(*opts))) < 0)
		return -errno;
	if (t->timestamps && setsockopt(fd, IPPROTO_TCP, TCP_TIMESTAMP, &stamp, sizeof(stamp)) < 0)
		return -errno;
	return 0;
}

/* Bytes [from, to) of all packets; small pieces, as each becomes one buffer of the kernel. */
static int
push(int fd, const struct packet *list, size_t n, uint64_t from, uint64_t to)
{
	uint64_t at = 0;

	for (size_t i = 0; i < n; at += list[i].data.n, i++)
		while (from >= at && from < at + list[i].data.n && from < to) {
			size_t len = min_u64(PUSHED, min_u64(to, at + list[i].data.n) - from);
			ssize_t put = send(fd, list[i].data.p + (from - at), len, MSG_DONTWAIT | MSG_NOSIGNAL);

			if (put <= 0)
				return put < 0 ? -errno : -EIO;
			from += (uint64_t)put;
		}
	return from < to ? -EBADMSG : 0;
}

static uint64_t
total(const struct packet *list, size_t n)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < n; i++)
		sum += list[i].data.n;
	return sum;
}

/* Room for what is pushed; sock_set_options() says afterwards what the program wants. */
static void
make_room(int fd, uint64_t in, uint64_t out)
{
	int rcv = (int)(2 * in + (256 << 10)), snd = (int)(2 * out + (256 << 10)), none = 0;

	if (in > PUSHED)
		setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &rcv, sizeof(rcv));
	if (out > PUSHED)
		setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &snd, sizeof(snd));
	setsockopt(fd, SOL_SOCKET, 72 /* SO_BUF_LOCK: let the kernel choose again */, &none, sizeof(none));
}

static int
fill_queues(int fd, const struct tcp_ref *t, const struct socket_ref *k)
{
	struct tcp_repair_window w = {(uint32_t)t->snd_wl1, (uint32_t)t->snd_wnd, (uint32_t)t->max_window,
	    (uint32_t)t->rcv_wnd, (uint32_t)t->rcv_wup};
	uint64_t in = total(k->queue, k->nqueue), out = total(t->out, t->nout);
	int recv_queue = RECV_QUEUE, send_queue = SEND_QUEUE, none = NO_QUEUE, err = 0;

	make_room(fd, in, out);
	if (setsockopt(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, &recv_queue, sizeof(int)) < 0)
		return -errno;
	err = push(fd, k->queue, k->nqueue, 0, in);
	if (err == 0 && setsockopt(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, &send_queue, sizeof(int)) < 0)
		err = -errno;
	if (err == 0)
		err = push(fd, t->out, t->nout, 0, out - t->unsent);
	if (err == 0 && (setsockopt(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, &none, sizeof(int)) < 0 ||
			    setsockopt(fd, IPPROTO_TCP, TCP_REPAIR_WINDOW, &w, sizeof(w)) < 0))
		err = -errno;
	return err;
}

/* No segment that the other end's window has no room for. */
static int
segment_most(const struct tcp_ref *t)
{
	uint64_t window = t->max_window > 536 ? t->max_window / 2 : t->max_window;

	return (int)min_u64(min_u64(t->mss, MAXSEG_MOST), window > 88 ? window : 88);
}

/* The original may take a moment to be dead. */
int
tcp_connect_repaired(int fd, const struct tcp_ref *t, const struct socket_ref *k, bool moved)
{
	int64_t deadline = now_ms() + (moved ? ADDRESS_TRIES_MS : 0);
	int mss = segment_most(t), none = 0, err = tcp_set_repair(fd, REPAIR_ON);

	if (err == 0)
		err = set_seq(fd, SEND_QUEUE, t->send_seq);
	if (err == 0)
		err = set_seq(fd, RECV_QUEUE, t->recv_seq);
	if (err == 0)
		err = bind_repaired(fd, k);
	/* The size of segments follows from it at once, and from the option only later. */
	if (err == 0)
		setsockopt(fd, IPPROTO_TCP, TCP_MAXSEG, &mss, sizeof(mss));
	while (err == 0 && connect(fd, (const struct sockaddr *)k->remote.p, (socklen_t)k->remote.n) < 0) {
		err = -errno;
		if (err != -EADDRNOTAVAIL || now_ms() >= deadline)
			break;
		poll(NULL, 0, 5);
		err = 0;
	}
	if (err == 0)
		setsockopt(fd, IPPROTO_TCP, TCP_MAXSEG, &none, sizeof(none));
	return err;
}

int
tcp_write(int fd, const struct tcp_ref *t, const struct socket_ref *k)
{
	int err = set_options(fd, t);

	return err < 0 ? err : fill_queues(fd, t, k);
}

int
tcp_write_unsent(int fd, const struct tcp_ref *t)
{
	uint64_t out = total(t->out, t->nout);

	return push(fd, t->out, t->nout, out - t->unsent, out);
}
