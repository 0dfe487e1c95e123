/*
 * The seccomp filter: as syscall.def says where each call is to be executed.
 */
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "run.h"

#define WAIT_KILLABLE_RECV (1UL << 5) /* Linux 5.19; not in every header */
#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define RETURN(value) BPF_STMT(BPF_RET | BPF_K, value)
/* The flags of mmap(2) are in its fourth argument, of which the low half comes first. */
#define MMAP_FLAGS LOAD(args[3])

static uint32_t
action(long nr)
{
	if (nr == SYS_execve || nr == SYS_execveat)
		return SECCOMP_RET_TRACE;
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

int
filter_install(void)
{
	struct sock_filter code[2 * (SYSCALL_LAST + 1) + 16];
	struct sock_fprog program = {0, code};
	unsigned n = 0;

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
		if (nr < SYSCALL_LAST && (action(nr + 1) == action(nr)))
			continue;
		code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, (uint32_t)nr, 1, 0);
		code[n++] = (struct sock_filter)RETURN(action(nr));
	}
	code[n++] = (struct sock_filter)RETURN(SECCOMP_RET_ERRNO | ENOSYS);
	program.len = (unsigned short)n;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return -1;
	return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER | WAIT_KILLABLE_RECV, &program);
}
