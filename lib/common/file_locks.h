/*
 * file_locks: taking and letting go of a lock that a process has on a file, as a call in a script.
 */
#ifndef PMS_FILE_LOCKS_H
#define PMS_FILE_LOCKS_H

#include "call.h"
#include "model.h"

/* Without waiting; it may fail. */
void file_lock_add(struct script *s, const struct file_lock *l, bool on);

#endif
