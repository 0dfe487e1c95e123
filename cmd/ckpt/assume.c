/*
 * Flags of mappings, which only smaps tells, and slowly, as it goes through all page tables: of what is to be copied they are asked a moment before the stop, and
 * assumed in it (proc_maps_assume()). Whether that was right is seen in the copies, when the originals run again. Where it was not, nothing has been written
 * yet: they are stopped once more, and asked then.
 */
#include <errno.h>

#include "ckpt.h"
#include "fault.h"
#include "log.h"
#include "netlock.h"

void
assume_ahead(struct ckpt *c)
{
	if (c->opt.assume)
		target_look_ahead(&c->members[0]->target, true);
}

static bool
is_right(const struct member *who)
{
	struct proc_maps there = {0};
	bool right;

	if (!who->target.assumed)
		return true;
	right = proc_read_maps(member_memory(who).proc, true, &there) == 0 && proc_maps_prove(&who->target.maps, &there);
	proc_maps_fini(&there);
	return right;
}

bool
assume_right(const struct ckpt *c)
{
	bool right;

	log_hush(1);
	right = fault(FAULT_proven) == 0;
	log_hush(-1);
	for (size_t i = 0; i < c->nmembers && right; i++)
		right = is_right(c->members[i]);
	return right;
}

int
start_over(struct ckpt *c)
{
	struct ckpt fresh = {.opt = c->opt, .parent = c->parent, .rounds = c->rounds, .home_listener = -1, .home_report = -1};

	debug(LOG_VERBOSE, "pid %d: what is asked of its mappings has changed just before the stop: it is stopped once more", c->opt.pid);
	c->opt.rules = NULL; /* they go on, as what has come before does */
	c->parent = NULL;
	c->rounds = NULL;
	netlock_end(c->shared.netlock, NETLOCK_RELEASE);
	c->shared.netlock = NULL;
	ckpt_fini(c);
	*c = fresh;
	c->opt.assume = false;
	return tree_open(c, c->opt.pid);
}
