/*
 * size: sizes as people write them. Pure.
 */
#ifndef PMS_SIZE_H
#define PMS_SIZE_H

#include "base.h"

/* "4M", "65536", "2G": a number with an optional K, M or G (powers of 1024). */
bool size_parse(const char *text, uint64_t *size);

#endif
