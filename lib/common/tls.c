#include "tls.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>

#include "base.h"
#include "key.h"
#include "log.h"

enum { KEY_BYTES = 32 }; /* as long as the hash of the cipher suite */
static const unsigned char identity[] = "pms";
/* TLS_AES_128_GCM_SHA256; the key goes with its hash. */
static const unsigned char suite[] = {0x13, 0x01};

/* The key of the connection is made of what the file has, so that it may be of any length. */
static int
make_key(const char *path, unsigned char key[KEY_BYTES])
{
	unsigned char text[KEY_MAX + 1];
	size_t len;
	int err = key_read(path, text, &len);

	if (err == 0 && EVP_Digest(text, len, key, NULL, EVP_sha256(), NULL) != 1)
		err = fail(ENOMEM, "key %s: out of memory", path);
	OPENSSL_cleanse(text, sizeof(text));
	return err;
}

static int key_index = -1;

static void
free_key(void *parent, void *ptr, CRYPTO_EX_DATA *ad, int idx, long argl, void *argp)
{
	(void)parent, (void)ad, (void)idx, (void)argl, (void)argp;
	OPENSSL_clear_free(ptr, KEY_BYTES);
}

static SSL_SESSION *
make_session(SSL *ssl)
{
	const unsigned char *key = SSL_get_ex_data(ssl, key_index);
	SSL_SESSION *session = SSL_SESSION_new();

	if (session == NULL || key == NULL || SSL_SESSION_set1_master_key(session, key, KEY_BYTES) != 1 ||
	    SSL_SESSION_set_cipher(session, SSL_CIPHER_find(ssl, suite)) != 1 ||
	    SSL_SESSION_set_protocol_version(session, TLS1_3_VERSION) != 1) {
		SSL_SESSION_free(session);
		return NULL;
	}
	return session;
}

static int
as_client(SSL *ssl, const EVP_MD *md, const unsigned char **id, size_t *len, SSL_SESSION **session)
{
	(void)md;
	*id = identity;
	*len = sizeof(identity) - 1;
	*session = make_session(ssl);
	return *session != NULL;
}

static int
as_server(SSL *ssl, const unsigned char *id, size_t len, SSL_SESSION **session)
{
	*session = len == sizeof(identity) - 1 && memcmp(id, identity, len) == 0 ? make_session(ssl) : NULL;
	return 1;
}

int
tls_new(struct ssl_st **tls, const char *path, int fd, bool server)
{
	unsigned char *key = OPENSSL_malloc(KEY_BYTES);
	SSL_CTX *ctx = SSL_CTX_new(server ? TLS_server_method() : TLS_client_method());
	int err = key == NULL || ctx == NULL ? fail(ENOMEM, "TLS: out of memory") : make_key(path, key);

	if (key_index < 0)
		key_index = SSL_get_ex_new_index(0, NULL, NULL, NULL, free_key);
	*tls = NULL;
	if (err == 0) {
		SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION);
		SSL_CTX_set_ciphersuites(ctx, "TLS_AES_128_GCM_SHA256");
		SSL_CTX_set_mode(ctx, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
		SSL_CTX_set_num_tickets(ctx, 0);
		SSL_CTX_set_psk_use_session_callback(ctx, as_client);
		SSL_CTX_set_psk_find_session_callback(ctx, as_server);
		if (!server)
			SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER, NULL);
		*tls = SSL_new(ctx);
		if (*tls == NULL || SSL_set_ex_data(*tls, key_index, key) != 1)
			err = fail(ENOMEM, "TLS: out of memory");
		else
			key = NULL;
	}
	if (err == 0 && fd >= 0)
		SSL_set_fd(*tls, fd);
	if (err == 0)
		server ? SSL_set_accept_state(*tls) : SSL_set_connect_state(*tls);
	OPENSSL_clear_free(key, KEY_BYTES);
	SSL_CTX_free(ctx);
	return err;
}

int
tls_set_fd(struct ssl_st *tls, int fd)
{
	return SSL_set_fd(tls, fd) == 1 ? 0 : -ENOMEM;
}

void
tls_free(struct ssl_st *tls)
{
	if (tls != NULL && SSL_get_fd(tls) >= 0 && SSL_is_init_finished(tls))
		SSL_shutdown(tls);
	SSL_free(tls);
}

static ssize_t
outcome(struct ssl_st *tls, int n)
{
	switch (SSL_get_error(tls, n)) {
	case SSL_ERROR_WANT_READ:
	case SSL_ERROR_WANT_WRITE:
		return -EAGAIN;
	case SSL_ERROR_ZERO_RETURN:
		return 0;
	default:
		return -ECONNRESET;
	}
}

int
tls_handshake(struct ssl_st *tls)
{
	int n;

	ERR_clear_error();
	n = SSL_do_handshake(tls);
	/* A server that does not know the key could do without it, and bring a certificate of its own making. */
	if (n == 1)
		return SSL_session_reused(tls) == 1 ? 0 : -EPROTO;
	switch (SSL_get_error(tls, n)) {
	case SSL_ERROR_WANT_READ:
		return TLS_WANTS_READ;
	case SSL_ERROR_WANT_WRITE:
		return TLS_WANTS_WRITE;
	default:
		return -EPROTO;
	}
}

ssize_t
tls_read(struct ssl_st *tls, void *data, size_t len)
{
	int n;

	ERR_clear_error();
	n = SSL_read(tls, data, (int)min_u64(len, 1 << 20));
	return n > 0 ? n : outcome(tls, n);
}

ssize_t
tls_write(struct ssl_st *tls, const void *data, size_t len)
{
	int n;

	ERR_clear_error();
	n = SSL_write(tls, data, (int)min_u64(len, 1 << 20));
	return n > 0 ? n : outcome(tls, n);
}

bool
tls_pending(struct ssl_st *tls)
{
	return SSL_has_pending(tls) == 1;
}
