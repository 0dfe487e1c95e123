/*
 * sock: what can be learnt of a socket without taking anything from it (who is at the other end, its options,
 * what is in its queue), and the same put into another one. Which process has it is not its business.
 */
#ifndef PMS_SOCK_H
#define PMS_SOCK_H

#include <sys/socket.h>
#include <sys/types.h>

#include "model.h"

/* A Unix socket as the kernel lists it (sock_diag(7)), whoever holds it. */
struct unix_socket {
	ino_t ino, peer; /* peer 0: none */
	unsigned state;  /* TCP_ESTABLISHED, TCP_LISTEN, TCP_CLOSE */
	unsigned shutdown; /* 1: reads, 2: writes */
	unsigned waiting, backlog; /* of a listening one: connections that nobody has accepted, and the most */
	ino_t *pending; /* their other ends; owned */
	size_t npending;
};

/* All Unix sockets of this network namespace. The caller frees. Returns 0, or a negative errno. Silent. */
int sock_list_unix(struct unix_socket **list, size_t *n);
void sock_free_unix(struct unix_socket *list, size_t n);

/* connect(2) and accept4(2) that give up after a few seconds. Return 0 (an fd), or a negative errno. Silent. */
int sock_connect(int fd, const struct bytes *to);
int sock_accept(int listening);

/* Is it one of those in sock.def, for such a socket? */
bool sock_option_known(const struct socket_ref *s, const struct socket_option *o);

/* An integer option, or -1. */
int sock_option(int fd, int level, int name);

/* Address at this end, or the other, as far as it is there. Returns 0, or -ENOMEM. */
int sock_name(int fd, bool remote, struct bytes *out);

/* For AF_INET and AF_INET6: as it is, but an IPv4 address in the clothes of IPv6 as that IPv4 address. */
void sock_plain(const struct bytes *in, struct sockaddr_storage *out);
bool sock_same_address(const struct bytes *a, const struct bytes *b);
int sock_port(const struct bytes *a);

/*
 * What it is, and the options in which it differs from a new socket of its kind; no peer. Its addresses and its state are
 * the caller's. Returns 0, or a negative errno.
 */
int sock_describe(int fd, ino_t ino, struct socket_ref *s);
/* Set them. What cannot be set is told by a note that names object. */
void sock_set_options(int fd, const struct socket_ref *s, const char *object);

/*
 * What is in the queue, left where it is. ofd_of(ctx, fd) is asked for each fd on its way, which is closed
 * afterwards. Returns 0, or a negative errno.
 */
int sock_peek(int fd, struct socket_ref *s, int64_t (*ofd_of)(void *ctx, int fd), void *ctx);

/* Send it all from far, so that the other end has it in its queue. fds: of each ofd. Returns 0, or a negative errno. */
int sock_send(int far, const struct socket_ref *s, const int *fds);

#endif
