#include "digest.h"

#include <stdlib.h>
#include <xxhash.h>

struct digest {
	XXH3_state_t *state;
};

struct digest *
digest_new(void)
{
	struct digest *d = malloc(sizeof(*d));

	if (d == NULL)
		return NULL;
	d->state = XXH3_createState();
	if (d->state == NULL) {
		free(d);
		return NULL;
	}
	XXH3_128bits_reset(d->state);
	return d;
}

void
digest_free(struct digest *d)
{
	if (d != NULL)
		XXH3_freeState(d->state);
	free(d);
}

void
digest_add(struct digest *d, const void *data, size_t len)
{
	XXH3_128bits_update(d->state, data, len);
}

static void
to_hex(XXH128_hash_t hash, char hex[DIGEST_HEX])
{
	XXH128_canonical_t c;

	XXH128_canonicalFromHash(&c, hash);
	hex_encode(hex, c.digest, sizeof(c.digest));
}

void
digest_hex(const struct digest *d, char hex[DIGEST_HEX])
{
	to_hex(XXH3_128bits_digest(d->state), hex);
}

void
digest_once(const void *data, size_t len, char hex[DIGEST_HEX])
{
	to_hex(XXH3_128bits(data, len), hex);
}
