#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "log.h"
#include "pmsd.h"

void
job_record_fini(struct job_record *r)
{
	free(r->name);
	free(r->command);
	free(r->dir);
	free(r->place);
	r->name = r->command = r->dir = r->place = NULL;
}

int
set_text(char **slot, const char *text)
{
	char *copy;

	if (*slot != NULL && strcmp(*slot, text) == 0)
		return 0;
	copy = strdup(text);
	if (copy == NULL)
		return fail(ENOMEM, "out of memory");
	free(*slot);
	*slot = copy;
	return 0;
}

bool
job_is_here(const struct job_record *r)
{
	return strcmp(r->state, "running") == 0 || strcmp(r->state, "paused") == 0 || strcmp(r->state, "moving") == 0;
}
