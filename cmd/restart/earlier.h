/*
 * Memory that comes in rounds, between earlier.c and early.c.
 */
#ifndef RESTART_EARLIER_H
#define RESTART_EARLIER_H

#include "restart.h"

/* A private mapping of the original when the rounds began. */
struct waiting {
	taddr start, end;
	unsigned char *memory; /* of the same size; NULL: it is in the first process, at these addresses */
	/* Only of that: */
	int prot;
	unsigned traits, pages; /* space_traits() */
	bool accounted;
	bool gone;              /* not mapped any more there */
	uint64_t *came;         /* a bit for each page that came, and is not known to be right in the end */
	uint64_t lowest, highest; /* there are none but in [lowest, highest), in pages */
};

struct earlier {
	struct waiting *waiting; /* in the order of tasks, of each by address */
	size_t n;
	struct owner {
		int64_t pid;
		size_t first, end; /* of waiting */
	} *owners; /* of the tasks */
	size_t nowners;
};

/* Memory here for it. Returns 0, or a negative errno, logged. */
int earlier_add_memory(struct waiting *w);

/*
 * The first process is made, with mappings for all that waits and can wait there. Where it cannot be (which is not said): nothing is there, and all of it
 * waits here.
 */
void early_begin(struct restart *r);
/* Pages for w, which is there. */
int early_put(struct restart *r, struct waiting *w, taddr addr, const unsigned char *data, uint64_t len);
/* Pages of w in [start, end) that came are right, if they are there. */
void early_right(struct waiting *w, taddr start, taddr end);

#endif
