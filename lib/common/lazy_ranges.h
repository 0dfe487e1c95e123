/*
 * lazy_ranges: which memory of a task can come when it is touched. Pure.
 *
 * That is private memory without a file: what userfaultfd(2) can wait for on behalf of one process. Stacks, what the kernel writes by itself (thread-local
 * storage, rseq, robust lists), small mappings, and what is locked, are there from the beginning.
 */
#ifndef PMS_LAZY_RANGES_H
#define PMS_LAZY_RANGES_H

#include "model.h"

/* Appends ranges, ascending. Returns 0, or -ENOMEM. */
int lazy_ranges(const struct task *t, struct page_range **ranges, size_t *nranges);

#endif
