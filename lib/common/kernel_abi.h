/*
 * kernel_abi: structs as the kernel takes them where libc has others of the same name, or none.
 */
#ifndef PMS_KERNEL_ABI_H
#define PMS_KERNEL_ABI_H

#include <stdint.h>

/* struct sigaction of rt_sigaction(2) on x86-64 */
struct kernel_sigaction {
	uint64_t handler, flags, restorer, mask;
};

/* struct sched_attr of sched_setattr(2), first version */
struct kernel_sched_attr {
	uint32_t size, policy;
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t runtime, deadline, period;
};

/* struct sigevent of timer_create(2) */
struct kernel_sigevent {
	uint64_t value;
	int32_t signo, notify, tid, pad[11];
};

/* struct flock of fcntl(2) on 64-bit machines */
struct kernel_flock {
	int16_t type, whence;
	int32_t pad;
	int64_t start, len;
	int32_t pid, pad2;
};

#endif
