/*
 * client: the commands that talk to the daemon. Each that is not said to do otherwise returns an exit status.
 */
#ifndef CLIENT_H
#define CLIENT_H

#include <stdbool.h>

/* Send these words; print the answer. json: a listing, as an array of objects. */
int client_command(int n, const char *const *words, bool json);
/* Ends as the job does, wherever that is. */
int client_wait(const char *id);
int client_log(const char *id);
/* Standard input and output are those of a daemon at another host, and lead to ours. */
int client_peer(void);

/* Connect to the daemon. An fd, or a negative errno, logged. */
int client_connect(void);
/* The first line of an answer; word may be NULL; the caller frees. Returns 0, or a negative errno, logged. */
int client_ask(char **answer, const char *verb, const char *word);

#endif
