/*
 * contained [-t] COMMAND [ARG...]: COMMAND under a seccomp filter like that of a container: no new
 * namespaces, no mounts, no clone3(2), no personality(2) but the plain ones, no kcmp(2), no userfaultfd(2).
 * With -t instead only what looks into other processes is forbidden: ptrace(2), process_vm_readv(2) and its like.
 */
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define DENY(nr, err)                                                                          \
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (err))
#define ALLOW BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

int
main(int argc, char **argv)
{
	struct sock_filter filter[] = {
	    LOAD(nr),
	    DENY(SYS_unshare, EPERM), DENY(SYS_setns, EPERM), DENY(SYS_mount, EPERM),
	    DENY(SYS_clone3, ENOSYS), DENY(SYS_kcmp, EPERM), DENY(SYS_userfaultfd, EPERM),
	    DENY(SYS_bpf, EPERM), DENY(SYS_keyctl, EPERM), DENY(SYS_perf_event_open, EPERM),
	    DENY(SYS_io_uring_setup, EPERM), DENY(SYS_open_by_handle_at, EPERM),
	    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_personality, 0, 4), LOAD(args[0]),
	    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 2, 0),
	    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0xffffffff, 1, 0),
	    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
	    ALLOW,
	};
	struct sock_filter untraced[] = {
	    LOAD(nr),
	    DENY(SYS_ptrace, EPERM), DENY(SYS_process_vm_readv, EPERM), DENY(SYS_process_vm_writev, EPERM), DENY(SYS_pidfd_getfd, EPERM),
	    DENY(SYS_kcmp, EPERM),
	    ALLOW,
	};
	struct sock_fprog prog = {sizeof(filter) / sizeof(filter[0]), filter};

	if (argc > 1 && strcmp(argv[1], "-t") == 0) {
		prog = (struct sock_fprog){sizeof(untraced) / sizeof(untraced[0]), untraced};
		argc--;
		argv++;
	}
	if (argc < 2)
		return 2;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
	    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) < 0) {
		fprintf(stderr, "contained: %s\n", strerror(errno));
		return 1;
	}
	execvp(argv[1], argv + 1);
	return 127;
}
