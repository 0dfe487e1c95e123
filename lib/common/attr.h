/*
 * attr: process attributes that prctl(2) tells and sets, off one table, as pieces of a script.
 */
#ifndef PMS_ATTR_H
#define PMS_ATTR_H

#include "call.h"
#include "model.h"

enum attr_scope { ATTR_PROCESS, ATTR_THREAD };

/* Append the calls that ask for every attribute of this scope. */
void attr_ask(struct script *s, enum attr_scope scope);

/*
 * After execution: append what differs from its default to *values. first: index of the first
 * call that attr_ask() added. Returns 0, or -ENOMEM.
 */
int attr_answers(const struct script *s, size_t first, enum attr_scope scope,
    struct prctl_value **values, size_t *n);

/* Append the calls that set these values; each may fail. Unknown names are -EBADMSG. */
int attr_set(struct script *s, const struct prctl_value *values, size_t n);

#endif
