/*
 * lazy_control: what restart and the pagesrv that it has started tell each other: one message each, over a SOCK_SEQPACKET. cmd/pagesrv/fetch.c has them.
 */
#ifndef PMS_LAZY_CONTROL_H
#define PMS_LAZY_CONTROL_H

#include "base.h"

enum { LAZY_FDS = 2, LAZY_TEXT = 1024 };
struct lazy_message {
	char what;
	uint64_t value;
	char text[LAZY_TEXT + 1];
	int fds[LAZY_FDS];
	size_t nfds;
};

/* data: a text, or a uint64_t. fds are borrowed. Returns 0, or a negative errno. Silent. */
int lazy_tell(int fd, char what, const void *data, size_t len, const int *fds, size_t nfds);
/* Waits for one. Its fds are the caller's. Returns 1, 0 at the end, or a negative errno. Silent. */
int lazy_hear(int fd, struct lazy_message *msg);

#endif
