/*
 * model_check: does a model that was read from an image make sense? Ranges, references and
 * order are checked here once; whoever uses the model afterwards relies on it. Pure.
 */
#ifndef PMS_MODEL_CHECK_H
#define PMS_MODEL_CHECK_H

#include "model.h"

/* Each returns 0, or -EBADMSG with why[] in words. */
int header_check(const struct image_header *h, char why[128]);
int model_check(const struct model *m, char why[128]);

/* The feature that this version does not know, or NULL. */
const char *header_unknown_feature(const struct image_header *h);

/* --- between its files */
/* Fill why[]. Returns -EBADMSG. */
int model_bad(char why[128], const char *fmt, ...) __attribute__((format(printf, 2, 3)));
bool model_is_pid(int64_t pid);
int objects_check(const struct objects *o, char why[128]);

/* Limits of what a reader builds. */
enum { MODEL_FD_MAX = 1 << 20, MODEL_PID_MAX = 1 << 22, MODEL_LIST_MAX = 1 << 16 };

/* 0 (not of hugetlbfs), or a size of pages that a kernel may have. */
bool model_is_huge(uint64_t huge);

#endif
