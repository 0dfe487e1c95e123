/*
 * remote: pmsd on another host, by TLS with a key that both have, where ssh is not to be had. As ssh does it, a command's input, output, errors and
 * exit status are carried; unlike it, only the commands with which daemons and keepers talk.
 *
 * Frames, both ways: kind (1 byte), length (4, little-endian, at most REMOTE_MAX), as many bytes.
 */
#ifndef REMOTE_H
#define REMOTE_H

#include <sys/types.h>

enum { REMOTE_MAX = 32768 };

/*
 * `pmsd dial tcp:HOST:PORT KEY pmsd VERB ARGUMENT...`: that command there. argv: from the address on. Returns the exit status: that of the command, 255 where
 * the other host cannot be reached, or it is lost.
 */
int remote_dial(char **argv);

/* tcp:HOST:PORT, with the key in this file. Returns a socket that listens, or a negative errno, logged. Its address in full is written to *name, which the caller frees. */
int remote_listen(const char *address, const char *key, char **name);
/* Somebody has come: a child of ours sees to him. Returns its PID, or -1. */
pid_t remote_welcome(int listener, const char *key);

#endif
