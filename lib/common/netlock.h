/*
 * netlock: packets of some TCP connections are held back for a while, in both directions, so that nobody answers
 * them while the connection changes hands. The rules are nf_tables' (CAP_NET_ADMIN and nft(8)); what they apply to are elements with a timeout, which the kernel itself removes: that is the journal.
 *
 * A child of ours does it, which outlives us for a moment: it renews the timeouts while we live, and undoes all if we die.
 */
#ifndef PMS_NETLOCK_H
#define PMS_NETLOCK_H

#include "model.h"

struct netlock;

enum netlock_end {
	NETLOCK_RELEASE, /* at once */
	NETLOCK_KEEP,    /* for a quarter of an hour, if it still is there: another one releases it */
	NETLOCK_LEAVE    /* to its timeout */
};

/*
 * id: of the image, the same at both ends of a move. held_ms: how long it stays if all of us die. release: our death
 * releases it, rather than leaving it. Returns 0, or a negative errno, logged.
 */
int netlock_begin(struct netlock **lock, const char *id, unsigned held_ms, bool release);

/* This connection will be held back from netlock_commit() on. Addresses are struct sockaddr_in or _in6. Returns 0, or a negative errno, logged. */
int netlock_hold(struct netlock *lock, const struct bytes *local, const struct bytes *remote);

/* Hold back all of them. Returns 0, or a negative errno, logged; ENOTSUP: this host cannot. */
int netlock_commit(struct netlock *lock);

/* TCP_REPAIR of this socket is switched off if we die. Returns 0, or a negative errno, logged. */
int netlock_guard(struct netlock *lock, int socket);

/*
 * From now on (or no longer) our death is the end of the original: its sockets are not healed then, but go in silence, and
 * what is held back stays so. NULL is permitted. Returns 0, or a negative errno, logged: the guard has died.
 */
int netlock_decide(struct netlock *lock, bool decided);

/* It goes on no longer than how says; the struct is freed. NULL is permitted. */
void netlock_end(struct netlock *lock, enum netlock_end how);

enum { NETLOCK_KEPT_MS = 15 * 60 * 1000 };

#endif
