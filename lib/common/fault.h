/*
 * fault: places where a test can make the program fail or die. Off unless asked for.
 */
#ifndef PMS_FAULT_H
#define PMS_FAULT_H

enum fault_site {
#define FAULT(name) FAULT_##name,
#include "fault.def"
#undef FAULT
	FAULT_COUNT
};

/* The argument of -F. Returns 0, or -EINVAL for an unknown site or action. */
int fault_arm(const char *spec);

/*
 * Passing a site. Returns 0, or -EIO (logged) where the site is to fail; does not return where
 * the program is to die there. May be ignored where nothing can fail.
 */
int fault(enum fault_site site);

#endif
