/*
 * coop_abi: what a process that is linked with libpms and the one that asks it for itself say to each other. Such a process executes calls
 * for ckpt in a signal handler, where others are stopped by ptrace(2); the handler is cmd's counterpart in lib/pms/answer.c, the other side is
 * coop.h. Both sides run on one machine.
 *
 * ckpt listens at an abstract address that holds a random number, and sends COOP_SIGNAL with that number. The handler connects (SOCK_SEQPACKET),
 * stops the other threads by the same signal, sends a struct coop_hello and its /proc/self/mem, and then answers orders, one at a time, until the connection
 * ends.
 */
#ifndef PMS_COOP_ABI_H
#define PMS_COOP_ABI_H

#include <stdint.h>

#include "arch.h"

#define COOP_VERSION 1
/* One that does no harm to whoever has no handler for it: SIGURG. Values of those who ask have the highest bit set. */
#define COOP_SIGNAL 23
#define COOP_ASKING (1ULL << 63)
/* The name of a mapping that it has, as /proc/PID/maps shows it, by which it is known. */
#define COOP_MARK "pms-can-be-asked"
/* The name: a zero byte, this, and the number as 16 hexadecimal digits. */
#define COOP_ADDRESS "pms-ask-"
#define COOP_PARKED "pms-parked" /* another one as long as it is parked, */
#define COOP_ASKED "pms-asked"   /* and as long as it answers somebody */
#define COOP_SCRATCH 16384 /* bytes for a script's data and its entries */
#define COOP_DATA 8192     /* of these the first, for data */
#define COOP_THREADS_MAX 16384
#define COOP_HELD_MAX 4096
#define COOP_SIGINFO 128

enum coop_state {
	COOP_STANDS = 1,  /* every thread does */
	COOP_BUSY,        /* it must not be interrupted now (pms_disable); it will connect once more */
	COOP_THREAD,      /* thread number (struct coop_hello, thread) cannot be stopped, or none can (a negative errno); it has gone on */
};

struct coop_hello {
	uint32_t version, state;
	int32_t thread;     /* as the program sees it */
	int32_t fd;         /* number of its end of the connection: not part of what is saved */
	uint32_t nthreads;
	uint32_t parked;    /* 1: it stood already, since COOP_PARK */
	uint64_t note;      /* of a struct coop_note */
	uint64_t threads;   /* address of an array of struct coop_thread, nthreads of them are meant, but for those whose tid is 0; the first answers */
	uint64_t held;      /* of an array of struct coop_held */
	uint64_t scratch;   /* of COOP_SCRATCH bytes */
	uint32_t nheld, pad; /* signals that are held already */
};

/* What restart leaves in the memory of one that it has made. */
struct coop_note {
	uint64_t loop, loop_bytes; /* to be unmapped when every thread has come out of it; or 0 */
	char socket[256];          /* where the daemon is whose job it is now, as a string; "" if nobody knows */
	char job[80];              /* and what it calls it, "" if it is no job yet */
};

/* A thread that stands in the handler. */
struct coop_thread {
	struct arch_capture captured; /* it goes on here with 1 as the result of arch_capture() */
	uint64_t frame;     /* address of the signal frame that it returns through, as arch_sigframe_read() takes it */
	uint64_t rseq;      /* address, size and signature of what it has registered, or 0 */
	uint32_t rseq_size, rseq_sig;
	int32_t tid;        /* as the program sees it */
	uint32_t wanted;    /* futex: 1 while it has a script to execute, 2 when it may go on */
	uint64_t entries, nentries;
	uint32_t stands;    /* futex: 1: it does; 2: it was given up, and will not */
	uint32_t pad;
};

/* A signal that was pending, and is taken out of the kernel until the process goes on. */
struct coop_held {
	int32_t tid; /* 0: of the process */
	int32_t sig;
	unsigned char info[COOP_SIGINFO];
};

enum coop_order_kind {
	COOP_RUN = 1, /* thread `thread` executes the b struct arch_script_entry at a */
	COOP_TAKE,    /* thread `thread` takes one pending signal of the set a; b: 1 if it is the thread's, 0 the process's. Result: its number, or an error */
	COOP_FD,      /* the result is 0 or an error; with 0 comes open file a */
	COOP_PARK,    /* a: 1: it goes on standing when the connection ends, until somebody asks again who says 0 */
	COOP_DECIDE,  /* a: 1: it ends when the connection does, parked or not; 0: it does not */
};

struct coop_order {
	uint32_t kind, thread;
	uint64_t a, b;
};

struct coop_answer {
	int64_t result;
};

#endif
