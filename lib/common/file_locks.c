#include "file_locks.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/syscall.h>

#include "kernel_abi.h"

void
file_lock_add(struct script *s, const struct file_lock *l, bool on)
{
	const int type = !on ? F_UNLCK : l->write ? F_WRLCK : F_RDLCK;
	struct kernel_flock fl = {.type = (short)type, .whence = SEEK_SET, .start = l->start, .len = l->end < 0 ? 0 : l->end - l->start + 1};

	if (l->kind == LOCK_LEASE) {
		script_add(s, "lease", SYS_fcntl, (uint64_t)l->fd, F_SETLEASE, (uint64_t)type);
	} else if (l->kind == LOCK_FLOCK) {
		script_add(s, "lock", SYS_flock, (uint64_t)l->fd, (uint64_t)((!on ? LOCK_UN : l->write ? LOCK_EX : LOCK_SH) | LOCK_NB));
	} else {
		script_add(s, "lock", SYS_fcntl, (uint64_t)l->fd, l->kind == LOCK_POSIX ? F_SETLK : F_OFD_SETLK, script_data(s, &fl, sizeof(fl)));
		script_data_arg(s, 2);
	}
	script_may_fail(s);
}
