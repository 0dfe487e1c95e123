/*
 * front: what restart does once the program runs, or while another process of it builds:
 * signals, the terminal, the exit status.
 */
#ifndef FRONT_H
#define FRONT_H

#include "restart.h"

/*
 * Outside of the new namespaces: wait for what init reports over `report`, pass signals on,
 * and return the exit status to end with.
 */
int front_outside(struct restart *r, pid_t init, int report);

/* In init: which process it will be, while it is still stopped. Returns 0, or a negative errno, logged. */
int front_announce(const struct restart *r, pid_t pid);

/* The other end is not to wait for us, once all has been said that was to be said over standard input and output. */
void front_leave_channel(const struct restart *r);

/* In init: the program runs (its pidfd is passed on); reap until it has ended. */
int front_init(struct restart *r, pid_t pid);

#endif
