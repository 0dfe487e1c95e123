/*
 * addr: where the other end of the wire protocol is, and how to get there.
 *
 *   unix:PATH              a Unix socket; only processes of the same user, or of root, may talk
 *   tcp:HOST:PORT          TLS 1.3 with a key that both have (--key FILE); [HOST] where it has colons
 *   tcp-clear:HOST:PORT    without TLS: only where both ends are loopback addresses
 *   ssh:HOST               the program at the other end, started by ssh (PMS_SSH is another command), on its stdio
 *   -                      standard input and output
 *   fd:N                   an open socket
 */
#ifndef PMS_ADDR_H
#define PMS_ADDR_H

#include "link.h"

enum addr_kind { ADDR_UNIX, ADDR_TCP, ADDR_CLEAR, ADDR_SSH, ADDR_STDIO, ADDR_FD };

struct addr {
	enum addr_kind kind;
	char *text, *host, *port; /* owned; host is the path of unix: */
	int fd;
};

/* Returns 0, or -EINVAL, logged. */
int addr_parse(struct addr *a, const char *text);
void addr_fini(struct addr *a);

/*
 * Go there: program is what ssh: executes, by sh. key: a file, or NULL, borrowed. Returns 0, or a negative errno, logged: -EACCES a key
 * that cannot be used, -EHOSTUNREACH and the like.
 */
int addr_connect(const struct addr *a, const char *key, const char *program, struct link *l);

/* A socket that listens (close-on-exec, taken away by addr_unlisten()), or a negative errno, logged. Not for ssh:, - and fd:. */
int addr_listen(const struct addr *a, const char *key);
void addr_unlisten(const struct addr *a, int *fd);
/* Its address in full: a port that was 0 is the one it got. The caller frees; NULL where memory ran out. */
char *addr_listening(const struct addr *a, int fd);
/* Somebody has come, as fd (taken): may he talk? Returns 0, or a negative errno, logged. */
int addr_welcome(const struct addr *a, const char *key, int fd, struct link *l);
/* -, fd:N: the one that is there already. */
int addr_take(const struct addr *a, struct link *l);

/* A socket that is connected to, or bound to and listening at, unix:, tcp: or tcp-clear:. An fd, or a negative errno, logged. */
int addr_socket(const struct addr *a, bool listening);
/* tcp: needs a key, and nothing else has a use for one. Returns 0 or -EINVAL, logged. */
int addr_check_key(const struct addr *a, const char *key);
/* A connection whose other end is gone is to be noticed. */
void addr_set_up(int fd, bool caller);
struct sockaddr;
bool addr_is_loopback(const struct sockaddr *sa);

#endif
