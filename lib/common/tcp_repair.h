/*
 * tcp_repair: where a TCP connection stands, and another socket that stands there: TCP_REPAIR of tcp(7), which takes
 * CAP_NET_ADMIN. Nothing is logged; functions return 0, or a negative errno.
 */
#ifndef PMS_TCP_REPAIR_H
#define PMS_TCP_REPAIR_H

#include "model.h"

/* tcpi_state; include/net/tcp_states.h */
enum { ESTABLISHED = 1, SYN_SENT, SYN_RECV, FIN_WAIT1, FIN_WAIT2, TIME_WAIT, CLOSED, CLOSE_WAIT, LAST_ACK, LISTENING,
	CLOSING };
enum { REPAIR_ON = 1, REPAIR_OFF = 0, REPAIR_OFF_QUIETLY = -1 };

/* In repair mode a socket sends nothing when it is closed. The end of it clears SO_REUSEADDR. */
int tcp_set_repair(int fd, int how);
/* Is it permitted here? Tried on a socket that is nobody's. */
bool tcp_can_repair(int family);
int tcp_state(int fd);
/* Has this end closed its direction in that state? */
bool tcp_has_sent_fin(int state);

/* In repair mode: the queues, numbers, options and windows; state: of tcp_state(). */
int tcp_read(int fd, int state, struct tcp_ref *t, struct socket_ref *k);

/* A new socket, which is in repair mode then, is connected to the other end without a packet. moved: its original may just be ending. */
int tcp_connect_repaired(int fd, const struct tcp_ref *t, const struct socket_ref *k, bool moved);
/* Options, queues, windows; all but what had not been sent. */
int tcp_write(int fd, const struct tcp_ref *t, const struct socket_ref *k);
/* What had not been sent, when repair mode is over. */
int tcp_write_unsent(int fd, const struct tcp_ref *t);

#endif
