/*
 * tls: TLS 1.3 with a pre-shared key, by OpenSSL. One thread at a time.
 */
#ifndef PMS_TLS_H
#define PMS_TLS_H

#include <stdbool.h>
#include <sys/types.h>

struct ssl_st;

enum { TLS_WANTS_READ = 1, TLS_WANTS_WRITE = 2 };

/*
 * For the socket fd (borrowed), with what stands in the file `key`: key.h.
 * Returns 0, or a negative errno, logged; -EACCES if others can read the file.
 */
int tls_new(struct ssl_st **tls, const char *key, int fd, bool server);
/* Its socket has another number now. Returns 0, or a negative errno. */
int tls_set_fd(struct ssl_st *tls, int fd);
void tls_free(struct ssl_st *tls);

/* Go on with it: 0 when it is done, TLS_WANTS_READ or TLS_WANTS_WRITE, or a negative errno. Silent. */
int tls_handshake(struct ssl_st *tls);
/* As read(2) and write(2), but a negative errno; -EAGAIN where it has to wait for the socket. Silent. */
ssize_t tls_read(struct ssl_st *tls, void *data, size_t len);
ssize_t tls_write(struct ssl_st *tls, const void *data, size_t len);
bool tls_pending(struct ssl_st *tls);

#endif
