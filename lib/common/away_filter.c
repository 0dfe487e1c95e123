#include "away_filter.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define RETURN(value) BPF_STMT(BPF_RET | BPF_K, value)
/* The flags of mmap(2) are in its fourth argument, of which the low half comes first. */
#define MMAP_FLAGS LOAD(args[3])

bool
away_filter_mirrors(long nr)
{
	return nr == SYS_setpgid || nr == SYS_setsid || nr == SYS_getpgid || nr == SYS_getpgrp || nr == SYS_getsid || nr == SYS_kill ||
	    nr == SYS_rt_sigqueueinfo || nr == SYS_setrlimit || nr == SYS_prlimit64;
}

bool
away_filter_forks(long nr)
{
	return nr == SYS_clone || nr == SYS_fork || nr == SYS_vfork || nr == SYS_clone3;
}

static uint32_t
action(long nr, bool home)
{
	if (nr == SYS_execve || nr == SYS_execveat || (home && away_filter_forks(nr)))
		return SECCOMP_RET_TRACE;
	if (home && away_filter_mirrors(nr))
		return SECCOMP_RET_USER_NOTIF;
	if (syscall_name(nr) == NULL)
		return SECCOMP_RET_ERRNO | ENOSYS;
	switch (syscall_class(nr)) {
	case SYSCALL_NONE:
		return SECCOMP_RET_ERRNO | ENOSYS;
	case SYSCALL_HERE:
		return SECCOMP_RET_ALLOW;
	default:
		return SECCOMP_RET_USER_NOTIF;
	}
}

size_t
away_filter(struct sock_filter code[AWAY_FILTER_MAX], bool home)
{
	size_t n = 0;

	code[n++] = (struct sock_filter)LOAD(arch);
	code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0);
	code[n++] = (struct sock_filter)RETURN(SECCOMP_RET_ERRNO | ENOSYS); /* of another kind: nobody could forward it */
	code[n++] = (struct sock_filter)LOAD(nr);
	code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mmap, 0, 4);
	code[n++] = (struct sock_filter)MMAP_FLAGS;
	code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, MAP_ANONYMOUS, 0, 1);
	code[n++] = (struct sock_filter)RETURN(SECCOMP_RET_ALLOW);
	code[n++] = (struct sock_filter)RETURN(SECCOMP_RET_USER_NOTIF);
	/* A row for each run of numbers with the same action; the kernel remembers which are always allowed, and does not look again. */
	for (long nr = 0; nr <= SYSCALL_LAST; nr++) {
		if (nr < SYSCALL_LAST && action(nr + 1, home) == action(nr, home))
			continue;
		code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, (uint32_t)nr, 1, 0);
		code[n++] = (struct sock_filter)RETURN(action(nr, home));
	}
	code[n++] = (struct sock_filter)RETURN(SECCOMP_RET_ERRNO | ENOSYS);
	return n;
}
