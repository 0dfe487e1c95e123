#include "sessions.h"

/* Index of a task by its PID, or header.ntasks. */
static size_t
find(const struct model *m, int64_t pid)
{
	size_t i = 0;

	while (i < m->header.ntasks && m->tasks[i].pid != pid)
		i++;
	return i;
}

void
sessions_of_birth(const struct model *m, int64_t *birth)
{
	for (size_t i = 0; i < m->header.ntasks; i++)
		birth[i] = m->tasks[i].session_leader ? ANY_SESSION : m->tasks[i].sid;
	/* From the last to the first: all children of a task are known when it is its turn. */
	for (size_t i = m->header.ntasks; i-- > 1;) {
		size_t p = find(m, m->tasks[i].ppid), leader = find(m, birth[i]);

		/* A session that somebody behind the parent leads is no older one. */
		if (p < i && birth[i] != ANY_SESSION && m->tasks[p].session_leader &&
		    (leader == m->header.ntasks || leader < p))
			birth[p] = birth[i];
	}
}

bool
sessions_can_make(const struct model *m, const int64_t *birth, size_t i)
{
	size_t p = find(m, m->tasks[i].ppid), leader;

	if (i == 0 || birth[i] == ANY_SESSION || birth[i] == m->tasks[p].sid || birth[i] == birth[p])
		return true;
	leader = find(m, birth[i]);
	return leader == m->header.ntasks || (leader < i && m->tasks[leader].ppid == m->tasks[i].ppid &&
	    birth[leader] == ANY_SESSION && m->tasks[leader].exit_signal == m->tasks[i].exit_signal);
}
