/*
 * main(), in a file of its own: a program that has one is linked without it.
 */
#include "internal.h"

#ifdef PMS_SHARED /* where this main() is there also for programs that have one */
#pragma weak pms_main
#endif

PUBLIC int
main(int argc, char **argv)
{
	/* What cannot be asked runs all the same. */
	pms_init();
	return pms_main(argc, argv);
}
