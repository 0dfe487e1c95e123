/*
 * vdso: what to do where a program's vDSO is not this kernel's: its page becomes a page of
 * jumps into the one that is here, and is marked, so that the next checkpoint knows it. Pure.
 */
#ifndef PMS_VDSO_H
#define PMS_VDSO_H

#include "base.h"

/* The mark stands in the padding of e_ident. */
#define VDSO_MARK_END 16
bool vdso_is_proxy(const unsigned char head[VDSO_MARK_END]);

/*
 * Turn code (size bytes, the program's vDSO, or an earlier proxy) into a proxy for `ours`,
 * which will be at ours_at. A function that ours lacks becomes a plain system call, or one
 * that says ENOSYS. Returns 0, or -EBADMSG where either is no vDSO.
 */
int vdso_make_proxy(unsigned char *code, size_t size, const unsigned char *ours, size_t ours_size,
    taddr ours_at);

#endif
