/*
 * lazy_map: which pages of an address space are still to come, and from where. Follows what the process does with its mappings. Pure.
 */
#ifndef LAZY_MAP_H
#define LAZY_MAP_H

#include "base.h"
#include "pages.h"

/* A stretch of memory; its pages are those of a task of the image, from `source` on. */
struct lazy_map {
	taddr at;
	uint64_t npages;
	int64_t task;
	taddr source;
	uint64_t *missing; /* a bit a page; owned */
	uint64_t nmissing;
	uint64_t *bad;     /* those of them that cannot be had, or NULL; owned */
};

struct lazy {
	struct lazy_map *maps; /* ascending, owned */
	size_t n;
	uint64_t nmissing;
};

void lazy_fini(struct lazy *l);
/* Behind all others: pages that are all missing. Returns 0, or -ENOMEM. */
int lazy_add(struct lazy *l, taddr start, taddr end, int64_t task, taddr source);
/* fork(2): the same once more. */
int lazy_copy(struct lazy *to, const struct lazy *from);

enum lazy_page { LAZY_UNKNOWN, LAZY_HERE, LAZY_MISSING, LAZY_BAD };
/* What is known of the page at addr; of one that is missing, where it comes from. */
enum lazy_page lazy_look(const struct lazy *l, taddr addr, int64_t *task, taddr *source);

/* Is nothing known of [start, end)? */
bool lazy_is_empty(const struct lazy *l, taddr start, taddr end);

/* munmap(2); its content is dropped (MADV_DONTNEED), so that zeroes are right; mremap(2), also over others. Return 0, or -ENOMEM. */
int lazy_unmap(struct lazy *l, taddr start, taddr end);
int lazy_drop(struct lazy *l, taddr start, taddr end);
int lazy_move(struct lazy *l, taddr from, taddr to, uint64_t len);

/*
 * Missing pages whose source is in [from, to) of a task, run by run: the next one from *map and *page on (begin with 0, 0). Returns false at the end. *at: where they
 * are wanted, *source: where they come from.
 */
bool lazy_wanted(const struct lazy *l, int64_t task, taddr from, taddr to, size_t *map, uint64_t *page, taddr *at, taddr *source, uint64_t *npages);
/* These pages, in one mapping, are here now; or cannot be had. */
void lazy_set_here(struct lazy *l, taddr at, uint64_t npages);
int lazy_set_bad(struct lazy *l, taddr at, uint64_t npages);
/* The first that is missing and not bad, and how many go on from there in the source, up to max. Returns false where there is none. */
bool lazy_first_missing(const struct lazy *l, taddr *at, int64_t *task, taddr *source, uint64_t *npages, uint64_t max);

#endif
