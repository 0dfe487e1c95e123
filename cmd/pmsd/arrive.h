/*
 * arrive: what a keeper at another host has executed here. Each returns an exit status.
 */
#ifndef ARRIVE_H
#define ARRIVE_H

#include <stdint.h>

/* The answers of `has`: it runs or ran here; it does not, and never will; that cannot be said yet; an image of it is here, which never ran. */
enum { HAS_COME, HAS_NOT, HAS_UNKNOWN, HAS_IMAGE };

int arrive_offer(const char *id, int64_t hop, const char *started, const char *name, const char *command);
int arrive_receive(const char *id, int64_t hop);
int arrive_tail(const char *id, int64_t hop);
int arrive_has(const char *id, int64_t hop);

#endif
