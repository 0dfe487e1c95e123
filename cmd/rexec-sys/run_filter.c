/*
 * The seccomp filter of the command.
 */
#include <linux/filter.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "away_filter.h"
#include "run.h"

int
filter_install(void)
{
	struct sock_filter code[AWAY_FILTER_MAX];
	struct sock_fprog program = {(unsigned short)away_filter(code, false), code};

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return -1;
	return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER | AWAY_FILTER_WAIT_KILLABLE, &program);
}
