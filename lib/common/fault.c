#include "fault.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base.h"
#include "log.h"

static const char *const names[] = {
#define FAULT(name) #name,
#include "fault.def"
#undef FAULT
};

static enum { ACT_NONE, ACT_FAIL, ACT_KILL, ACT_TERM } armed_act;
static size_t armed_site;
static long armed_count;

int
fault_arm(const char *spec)
{
	size_t n = strcspn(spec, ":");

	for (armed_site = 0; armed_site < FAULT_COUNT; armed_site++)
		if (strlen(names[armed_site]) == n && memcmp(names[armed_site], spec, n) == 0)
			break;
	if (armed_site == FAULT_COUNT)
		return -EINVAL;
	armed_act = ACT_KILL;
	armed_count = 1;
	for (spec += n; *spec == ':'; spec += n) {
		spec++;
		n = strcspn(spec, ":");
		if (n == 4 && memcmp(spec, "fail", n) == 0)
			armed_act = ACT_FAIL;
		else if (n == 4 && memcmp(spec, "kill", n) == 0)
			armed_act = ACT_KILL;
		else if (n == 4 && memcmp(spec, "term", n) == 0)
			armed_act = ACT_TERM;
		else if (strspn(spec, "0123456789") == n && n > 0)
			armed_count = strtol(spec, NULL, 10);
		else
			return -EINVAL;
	}
	return 0;
}

int
fault(enum fault_site site)
{
	if (armed_act == ACT_NONE || site != armed_site || --armed_count != 0)
		return 0;
	if (armed_act == ACT_FAIL)
		return fail(EIO, "fault at %s", names[site]);
	/* The init of a PID namespace cannot kill itself; its exit takes all of it along as well. */
	if (getpid() == 1)
		_exit(128 + SIGKILL);
	kill(getpid(), armed_act == ACT_KILL ? SIGKILL : SIGTERM);
	return 0;
}
