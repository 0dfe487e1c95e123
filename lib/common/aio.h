/*
 * aio: the ring of io_setup(2) as the kernel lays it out (fs/aio.c), which user space reads too. Pure.
 */
#ifndef PMS_AIO_H
#define PMS_AIO_H

#include "base.h"

#define AIO_RING_MAGIC 0xa10a10a1
#define AIO_EVENT_BYTES 32
#define AIO_PAGES_MAX 1024 /* of one ring: as many events as aio-max-nr permits by default */

/* Behind it nr times struct io_event of linux/aio_abi.h. */
struct aio_ring {
	uint32_t id, nr;     /* nr: entries */
	uint32_t head, tail; /* head: the next to be fetched */
	uint32_t magic, compat_features, incompat_features, header_length;
};

/* Entries of a ring of so many pages. */
static inline uint64_t
aio_entries(uint64_t pages)
{
	return (pages * PAGE_BYTES - sizeof(struct aio_ring)) / AIO_EVENT_BYTES;
}

/* How many requests to ask for, to get as many pages: the kernel doubles them and adds two. */
static inline uint64_t
aio_requests(uint64_t pages)
{
	return (aio_entries(pages) - 2) / 2;
}

#endif
