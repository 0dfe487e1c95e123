/*
 * arch: everything that knows the CPU. This one is x86-64; another CPU is another
 * directory with the same header.
 *
 * Registers, the system-call instruction, what the kernel does to an interrupted call,
 * the signal frame through which a borrowed call heals itself, and the script loop.
 * No system calls here: tracee.c moves the bytes.
 */
#ifndef PMS_ARCH_H
#define PMS_ARCH_H

#include "base.h"

#define ARCH_NAME "x86_64"

/* Name and place in struct user_regs_struct, in its order. */
#define ARCH_REGS(R)                                                                           \
	R(r15) R(r14) R(r13) R(r12) R(rbp) R(rbx) R(r11) R(r10) R(r9) R(r8) R(rax) R(rcx)      \
	R(rdx) R(rsi) R(rdi) R(orig_rax) R(rip) R(cs) R(eflags) R(rsp) R(ss) R(fs_base)        \
	R(gs_base) R(ds) R(es) R(fs) R(gs)

struct arch_regs {
#define R(name) uint64_t name;
	ARCH_REGS(R)
#undef R
};

/* Where the frame of a signal handler that is about to run has the mask that is set after it, from the stack pointer. */
#define ARCH_HANDLER_MASK 304

/* One call: number, arguments. */
struct arch_call {
	long nr;
	uint64_t arg[6];
};

/*
 * Where a thread stands in the C code that calls this, as setjmp(3): what a function must keep for its caller. Returns 0 then; whoever is made of it
 * afterwards goes on with arch_set_captured(), and returns that result from here once more.
 */
struct arch_capture {
	uint64_t rbx, rbp, r12, r13, r14, r15, rsp, rip, fs_base, gs_base;
};
__attribute__((returns_twice, visibility("hidden"))) int64_t arch_capture(struct arch_capture *here);
void arch_set_captured(struct arch_regs *regs, const struct arch_capture *there, int64_t result);
/* A system call of this thread, its result as the kernel gives it: errno is left alone. */
__attribute__((visibility("hidden"))) int64_t arch_raw_call(long nr, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f);
/* Where the frame begins that a handler with this context returns through. */
#define ARCH_FRAME_OF(ucontext) ((uint64_t)(uintptr_t)(ucontext) - 8)

/* First address that user space can never have. */
#define ARCH_USER_END 0x7ffffffff000ULL
#define ARCH_HIGH_PAGE 0xffffffffff600000ULL /* [vsyscall]: the kernel's, never saved */

/* `syscall`, what a borrowed call returns through, and where signal handlers return to. */
#define ARCH_SYSCALL_BYTES 2
extern const unsigned char arch_syscall[ARCH_SYSCALL_BYTES];
#define ARCH_SYSCALL_RET_BYTES 3
extern const unsigned char arch_syscall_ret[ARCH_SYSCALL_RET_BYTES];
#define ARCH_RESTORER_BYTES 9
extern const unsigned char arch_restorer[ARCH_RESTORER_BYTES];

/* Make regs ready to run call at the `syscall` instruction at ip. */
void arch_set_call(struct arch_regs *regs, taddr ip, const struct arch_call *call);
uint64_t arch_result(const struct arch_regs *regs);

/* Memory below the stack pointer that the ABI lets a function use. */
#define ARCH_RED_ZONE 128

/* How a call was interrupted, by the registers of a stop outside the kernel. */
enum arch_restart {
	RESTART_NONE,   /* not in a call, or its result is final */
	RESTART_AGAIN,  /* the kernel will begin it again by itself: all of its arguments stand */
	RESTART_BLOCK,  /* a timeout goes on in the kernel; from outside it can only begin again */
	RESTART_EINTR,  /* the kernel has made it EINTR although no handler ran */
};

/*
 * Classify a stop. eintr_restarts(nr) says whether a call returns EINTR for a mere stop.
 */
enum arch_restart arch_restart_kind(const struct arch_regs *regs, bool (*eintr_restarts)(long nr));

/* Is this a stop in restart_syscall(2)? Its arguments are those of the call that goes on. */
bool arch_in_restart_syscall(const struct arch_regs *regs, struct arch_call *call);

/* Is this a stop in a call that goes on as restart_syscall(2), or that is it? */
bool arch_in_timed_wait(const struct arch_regs *regs);

/* Number that the code right before a stop (as many bytes) loads for its call, or -1. */
#define ARCH_CODE_BEFORE 7
long arch_number_before(const unsigned char code[ARCH_CODE_BEFORE]);

/*
 * A call that has returned EINTR for a stop alone: let the kernel decide, as it does for other calls,
 * when the thread goes on: it begins again if no handler runs first, and else is EINTR.
 */
void arch_set_restartable(struct arch_regs *regs);

/* Let regs begin the interrupted call again, or (eintr) return EINTR from it. */
void arch_rewind(struct arch_regs *regs);
void arch_set_eintr(struct arch_regs *regs);

/*
 * A signal frame that puts regs, sigmask and xstate back when the stack pointer is at it
 * and execution returns: signal(7)'s way out of a handler. Built for the highest place
 * below `below` (exclusive).
 *
 *   xstate, n   the XSAVE area as NT_X86_XSTATE gives it; its standard format
 *   restorer    address of an arch_restorer in the tracee
 *   frame       out: the bytes; *frame_at says where they go. Caller frees.
 *
 * Returns the number of bytes, or 0 where memory ran out or the area is malformed.
 */
size_t arch_sigframe(const struct arch_regs *regs, uint64_t sigmask, const unsigned char *xstate,
    size_t n, taddr restorer, taddr below, unsigned char **frame, taddr *frame_at);

/* Read registers and mask back from such a frame (n bytes of it). Returns false if too short. */
bool arch_sigframe_read(const unsigned char *frame, size_t n, struct arch_regs *regs,
    uint64_t *sigmask, taddr *xstate_at);

#define ARCH_SIGFRAME_BYTES 440 /* as many of it are read */
/*
 * The extended state of a frame (n bytes from where it begins) as NT_X86_XSTATE gives it, in place. Returns its length, 0 if it is malformed or
 * there is more of it than n.
 */
size_t arch_sigframe_xstate(unsigned char *xstate, size_t n);

/* The extended state of a thread has at least as many bytes. What is behind the end of a shorter one than the machine's is in its initial state, zeroes. */
#define ARCH_XSTATE_MIN 576

/* State components that xstate says are enabled on this machine, and its size. */
uint64_t arch_xstate_xcr0(const unsigned char *xstate, size_t n);

/*
 * The script loop: position-independent code which executes an array of arch_script_entry,
 * stores each result, and jumps to the last entry at the first result in [-4095,-1] that
 * the entry does not allow. The last entry is a tgkill(SIGSTOP) of itself: the tracer sees the stop.
 */
struct arch_script_entry {
	uint64_t nr, arg[6];
	int64_t result;
	uint64_t may_fail;
};
extern const unsigned char arch_loop[], arch_loop_end[];
/* Start registers: loop_at where the code lies, first and last entry in the tracee. */
void arch_set_loop(struct arch_regs *regs, taddr loop_at, taddr first, taddr last, taddr stack);

/*
 * One thread of several that are asked at once, each in a page of its own that begins with this code: it executes calls, from first to before end (their results
 * where their numbers were), and sends itself a signal, which must be ignored where nobody traces it: with that it stops at arch_asked(). Without a tracer it goes
 * on: it unmaps its page by the `syscall; ret` at gadget, whose `ret` takes the way back at the stack pointer that regs have.
 */
extern const unsigned char arch_ask[], arch_ask_end[];
void arch_set_ask(struct arch_regs *regs, taddr page, taddr first, taddr end, int sig, taddr gadget);
bool arch_asked(const struct arch_regs *regs, taddr page);

/*
 * A thread that is built without a tracer: code at a place of its own, which takes scripts through memory that it shares with the builder. request is
 * a futex of the thread's: 1 has it execute entries from first to before end, after which it sets done, a futex of the builder's, to 1; it does that
 * also when it begins. A clone3(2) there makes a thread whose slot is the sixth argument. When the word at go is not 0 it goes on as here says, with that result. It
 * ends if that is not set and its parent is another one than `parent`.
 */
struct arch_slot {
	uint32_t request, done;
	uint64_t first, end;
	uint32_t parent, pad;
	struct arch_capture here;
	int64_t result;
	int64_t look_s, look_ns; /* how often it looks */
};
extern const unsigned char arch_obey[], arch_obey_end[];
__attribute__((noreturn)) void arch_obey_at(void *code, struct arch_slot *slot, uint32_t *go);

/*
 * The parking loop of a thread that ckpt -S leaves behind: stops its process again whenever
 * something continues it, and never runs the program.
 */
extern const unsigned char arch_park[], arch_park_end[];
void arch_set_park(struct arch_regs *regs, taddr park_at, int64_t pid, int64_t tid, taddr frame);
/* Where the frame is, by the registers of a parked thread. */
taddr arch_park_frame(const struct arch_regs *regs);

/*
 * A copy of a process that nobody is told of: a clone(2) with CLONE_VM, executed at the beginning of this code, makes one that makes the copy and ends, and waits
 * for that one; its `ret` goes back. The copy closes all of its files by ARCH_COPY_LAST, which is where it is to be stopped: behind that it ends.
 */
extern const unsigned char arch_copy[], arch_copy_end[];
#define ARCH_COPY_LAST SYS_close_range

/*
 * A thread that executes calls for others in their process: a clone(2) with its block as sixth argument, executed at the beginning of this code, makes
 * it. In the block nr, six arguments, and then the fd where it takes the same and gives back results; 8 bytes each.
 */
extern const unsigned char arch_guest[], arch_guest_end[];
enum { ARCH_GUEST_REQUEST = 56, ARCH_GUEST_BLOCK = 64 };

/*
 * One call in this process, as the kernel returns it, which a signal handler can end at any instant: with *cancelled set before the signal,
 * and arch_interrupt() called by the handler, it returns -EINTR if it waits, and ARCH_NOT_BEGUN if it has not begun. The handler must be without SA_RESTART.
 */
#define ARCH_NOT_BEGUN (-513)
int64_t arch_interruptible_call(const volatile int *cancelled, const struct arch_call *call);
void arch_interrupt(void *ucontext);

/*
 * A thread that a tracer has execute calls, one after the other: the instruction, and a trap behind it. When it stands ARCH_EXECUTOR_DONE behind
 * the beginning, with SIGTRAP, its call is done.
 */
#define ARCH_EXECUTOR_DONE 3
extern const unsigned char arch_executor[ARCH_EXECUTOR_DONE];

/* Patch the function at code+offset (which will be at `at`) into a jump to `to`, or into a plain
 * system call nr, or into `return -ENOSYS` (nr < 0). room: bytes up to the end of the area. */
#define ARCH_JUMP_BYTES 16
void arch_put_jump(unsigned char *code, taddr to);
void arch_put_stub(unsigned char *code, long nr);

#endif
