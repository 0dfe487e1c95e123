/*
 * kfeat: kernel features that can be hidden. Code that uses one asks first, and finds
 * out by the call's own error whether this kernel really has it.
 */
#ifndef PMS_KFEAT_H
#define PMS_KFEAT_H

#include "base.h"

enum kfeat {
#define KFEAT(name, since) KFEAT_##name,
#include "kfeat.def"
#undef KFEAT
	KFEAT_COUNT
};

/*
 * Read a list as of PMS_WITHOUT. Returns false at an unknown name, which *bad then points to.
 */
bool kfeat_hide(const char *list, const char **bad);

/* True unless hidden. */
bool kfeat(enum kfeat f);

#endif
