/*
 * digest: XXH3-128, by which files, vDSOs and images are told apart. Against accidents, not
 * against malice: an image is trusted by whoever runs it. Pure.
 */
#ifndef PMS_DIGEST_H
#define PMS_DIGEST_H

#include "base.h"

#define DIGEST_HEX 33 /* 32 digits and a NUL */

struct digest;

/* NULL where memory ran out. */
struct digest *digest_new(void);
void digest_free(struct digest *d);
void digest_add(struct digest *d, const void *data, size_t len);
/* Of everything so far; more may be added. */
void digest_hex(const struct digest *d, char hex[DIGEST_HEX]);

/* Of one buffer. */
void digest_once(const void *data, size_t len, char hex[DIGEST_HEX]);

#endif
