/*
 * sessions: a session is inherited at birth, so who must be born in which, and whether that can be done again.
 * Pure; relies on parents standing before their children.
 */
#ifndef PMS_SESSIONS_H
#define PMS_SESSIONS_H

#include "model.h"

#define ANY_SESSION 0

/*
 * birth[i], of header.ntasks: the session that task i must be born in. Its own; for a leader that of a child
 * that is of an older one; else any.
 */
void sessions_of_birth(const struct model *m, int64_t *birth);

/*
 * Can task i be born in its session: by its parent before or after that begins one of its own, by a brother that
 * leads it, or by somebody who stands in for a leader that is dead?
 */
bool sessions_can_make(const struct model *m, const int64_t *birth, size_t i);

#endif
