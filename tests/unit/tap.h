/* TAP for unit programs. */
#ifndef TAP_H
#define TAP_H

#include <stdio.h>

static int tap_count, tap_failed;

static void
ok(int good, const char *what)
{
	printf("%sok %d %s\n", good ? "" : "not ", ++tap_count, what);
	tap_failed |= !good;
}

static int
done(void)
{
	printf("1..%d\n", tap_count);
	return tap_failed;
}

#endif
