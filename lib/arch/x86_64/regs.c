/*
 * Registers, interrupted calls, and the signal frame of x86-64.
 */
#include <cpuid.h>
#include <ucontext.h>
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>

#include "arch.h"

const unsigned char arch_syscall[] = {0x0f, 0x05};
const unsigned char arch_syscall_ret[] = {0x0f, 0x05, 0xc3};
const unsigned char arch_executor[] = {0x0f, 0x05, 0xcc};
const unsigned char arch_restorer[] = {0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05};

/* Kernel-internal results that a tracer sees at a stop (include/linux/errno.h). */
enum { K_ERESTARTSYS = 512, K_ERESTARTNOINTR, K_ERESTARTNOHAND, K_ERESTART_RESTARTBLOCK = 516 };

#define EFLAGS_TF 0x100
#define EFLAGS_DF 0x400

void
arch_set_call(struct arch_regs *regs, taddr ip, const struct arch_call *call)
{
	regs->rip = ip;
	regs->rax = (uint64_t)call->nr;
	regs->orig_rax = UINT64_MAX; /* or the kernel "restarts" a call on top of this one */
	regs->rdi = call->arg[0];
	regs->rsi = call->arg[1];
	regs->rdx = call->arg[2];
	regs->r10 = call->arg[3];
	regs->r8 = call->arg[4];
	regs->r9 = call->arg[5];
	regs->eflags &= ~(uint64_t)(EFLAGS_TF | EFLAGS_DF);
}

uint64_t
arch_result(const struct arch_regs *regs)
{
	return regs->rax;
}

enum arch_restart
arch_restart_kind(const struct arch_regs *regs, bool (*eintr_restarts)(long nr))
{
	if ((int64_t)regs->orig_rax < 0)
		return RESTART_NONE;
	switch (-(int64_t)regs->rax) {
	case K_ERESTARTSYS:
	case K_ERESTARTNOINTR:
	case K_ERESTARTNOHAND:
		return RESTART_AGAIN;
	case K_ERESTART_RESTARTBLOCK:
		return RESTART_BLOCK;
	case EINTR:
		return eintr_restarts((long)regs->orig_rax) ? RESTART_EINTR : RESTART_NONE;
	default:
		return RESTART_NONE;
	}
}

void
arch_rewind(struct arch_regs *regs)
{
	regs->rip -= ARCH_SYSCALL_BYTES;
	regs->rax = regs->orig_rax;
	regs->orig_rax = UINT64_MAX;
}

bool
arch_in_timed_wait(const struct arch_regs *regs)
{
	return (int64_t)regs->orig_rax >= 0 && -(int64_t)regs->rax == K_ERESTART_RESTARTBLOCK;
}

bool
arch_in_restart_syscall(const struct arch_regs *regs, struct arch_call *call)
{
	enum { RESTART_SYSCALL = 219 };

	if (regs->orig_rax != RESTART_SYSCALL || -(int64_t)regs->rax != K_ERESTART_RESTARTBLOCK)
		return false;
	*call = (struct arch_call){RESTART_SYSCALL,
	    {regs->rdi, regs->rsi, regs->rdx, regs->r10, regs->r8, regs->r9}};
	return true;
}

long
arch_number_before(const unsigned char code[ARCH_CODE_BEFORE])
{
	int32_t nr;

	/* mov $nr, %eax; syscall */
	if (code[0] != 0xb8 || memcmp(code + 5, arch_syscall, ARCH_SYSCALL_BYTES) != 0)
		return -1;
	memcpy(&nr, code + 1, sizeof(nr));
	return nr;
}

void
arch_set_restartable(struct arch_regs *regs)
{
	regs->rax = (uint64_t)-K_ERESTARTNOHAND;
}

void
arch_set_eintr(struct arch_regs *regs)
{
	regs->rax = (uint64_t)-EINTR;
	regs->orig_rax = UINT64_MAX;
}

/*
 * struct rt_sigframe of arch/x86/include/asm/sigframe.h, as 64-bit words:
 * pretcode, ucontext {flags, link, stack {sp, flags, size}, sigcontext, sigmask}, siginfo.
 */
enum {
	W_PRETCODE, W_UC_FLAGS, W_UC_LINK, W_SS_SP, W_SS_FLAGS, W_SS_SIZE,
	W_R8, W_R9, W_R10, W_R11, W_R12, W_R13, W_R14, W_R15, W_RDI, W_RSI, W_RBP, W_RBX,
	W_RDX, W_RAX, W_RCX, W_RSP, W_RIP, W_EFLAGS, W_SEGS, W_ERR, W_TRAPNO, W_OLDMASK,
	W_CR2, W_FPSTATE, W_RESERVED,
	W_SIGMASK = W_RESERVED + 8,
	FRAME_WORDS = W_SIGMASK + 1 + 128 / 8
};
enum { UC_FP_XSTATE = 1, UC_SIGCONTEXT_SS = 2, UC_STRICT_RESTORE_SS = 4 };

/* The frame keeps what is at these bytes of an XSAVE area for its own marks. */
enum { XSAVE_SW_BYTES = 464, XSAVE_HEADER = 512 };
#define FP_MAGIC1 0x46505853U
#define FP_MAGIC2 0x46505845U

uint64_t
arch_xstate_xcr0(const unsigned char *xstate, size_t n)
{
	uint64_t v = 0;

	/* The kernel puts XCR0 into the first of the software bytes. */
	if (n >= ARCH_XSTATE_MIN)
		memcpy(&v, xstate + XSAVE_SW_BYTES, sizeof(v));
	return v;
}

#define XFEATURE_TILEDATA (1ULL << 18)

enum { XSAVE_COMPONENTS = 63 };

/* Where component i ends in the standard format. cpuid is asked once: a virtual machine asks its host for each answer. */
static size_t
component_end(unsigned i)
{
	static _Atomic uint32_t ends[XSAVE_COMPONENTS];
	unsigned a, b, c, d;

	if (ends[i] == 0 && __get_cpuid_count(0xd, i, &a, &b, &c, &d))
		ends[i] = a + b;
	return ends[i];
}

/* Bytes of an XSAVE area of these components in the standard format. */
static size_t
xsave_bytes(uint64_t features, size_t max)
{
	size_t size = ARCH_XSTATE_MIN;

	for (unsigned i = 2; i < XSAVE_COMPONENTS; i++)
		if (features >> i & 1)
			size = max_u64(size, component_end(i));
	return min_u64(size, max);
}

/*
 * What a frame holds: a process that has not asked for AMX has no room for its tiles, and
 * sigreturn takes a frame with them for one without any extended state.
 */
static uint64_t
frame_features(const unsigned char *xstate, size_t n)
{
	uint64_t in_use;

	memcpy(&in_use, xstate + XSAVE_HEADER, sizeof(in_use));
	return arch_xstate_xcr0(xstate, n) & ~(in_use & XFEATURE_TILEDATA ? 0 : XFEATURE_TILEDATA);
}

/* xstate as a signal frame wants it, n + 4 bytes into out. */
static void
put_xstate(unsigned char *out, const unsigned char *xstate, size_t n, uint64_t xcr0)
{
	uint32_t magic1 = FP_MAGIC1, magic2 = FP_MAGIC2;
	uint32_t extended = (uint32_t)(n + 4), size = (uint32_t)n;

	memcpy(out, xstate, n);
	memset(out + XSAVE_SW_BYTES, 0, 48);
	memcpy(out + XSAVE_SW_BYTES, &magic1, 4);
	memcpy(out + XSAVE_SW_BYTES + 4, &extended, 4);
	memcpy(out + XSAVE_SW_BYTES + 8, &xcr0, 8);
	memcpy(out + XSAVE_SW_BYTES + 16, &size, 4);
	memcpy(out + n, &magic2, 4);
}

static bool
never(long nr)
{
	(void)nr;
	return false;
}

static void
put_regs(uint64_t *w, const struct arch_regs *r)
{
	struct arch_regs back = *r;

	/* What the kernel would restart by itself, it cannot once a frame has been used. */
	if (arch_restart_kind(r, never) != RESTART_NONE)
		arch_rewind(&back);
	w[W_R8] = back.r8, w[W_R9] = back.r9, w[W_R10] = back.r10, w[W_R11] = back.r11;
	w[W_R12] = back.r12, w[W_R13] = back.r13, w[W_R14] = back.r14, w[W_R15] = back.r15;
	w[W_RDI] = back.rdi, w[W_RSI] = back.rsi, w[W_RBP] = back.rbp, w[W_RBX] = back.rbx;
	w[W_RDX] = back.rdx, w[W_RAX] = back.rax, w[W_RCX] = back.rcx, w[W_RSP] = back.rsp;
	w[W_RIP] = back.rip, w[W_EFLAGS] = back.eflags;
	w[W_SEGS] = (back.cs & 0xffff) | (back.ss & 0xffff) << 48;
}

size_t
arch_sigframe(const struct arch_regs *regs, uint64_t sigmask, const unsigned char *xstate,
    size_t n, taddr restorer, taddr below, unsigned char **frame, taddr *frame_at)
{
	uint64_t w[FRAME_WORDS] = {0}, features;
	taddr fp_at, at;
	size_t size;
	unsigned char *p;

	if (n < ARCH_XSTATE_MIN || below < n + 4096)
		return 0;
	features = frame_features(xstate, n);
	n = xsave_bytes(features, n);
	fp_at = (below - n - 4) & ~63ULL;
	/* As the kernel lays it out: rsp is 8 below a multiple of 16 when a handler starts. */
	at = ((fp_at - sizeof(w)) & ~15ULL) - 8;
	size = (size_t)(below - at);
	p = calloc(1, size);
	if (p == NULL)
		return 0;
	put_regs(w, regs);
	w[W_PRETCODE] = restorer;
	w[W_UC_FLAGS] = UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS;
	/* Invalid on purpose: sigreturn ignores that and leaves the alternate stack alone. */
	w[W_SS_FLAGS] = 0xffffffffULL;
	w[W_FPSTATE] = fp_at;
	w[W_SIGMASK] = sigmask;
	memcpy(p, w, sizeof(w));
	put_xstate(p + (fp_at - at), xstate, n, features);
	*frame = p;
	*frame_at = at;
	return size;
}

bool
arch_sigframe_read(const unsigned char *frame, size_t n, struct arch_regs *r, uint64_t *sigmask,
    taddr *xstate_at)
{
	uint64_t w[FRAME_WORDS];

	if (n < sizeof(w))
		return false;
	memcpy(w, frame, sizeof(w));
	r->r8 = w[W_R8], r->r9 = w[W_R9], r->r10 = w[W_R10], r->r11 = w[W_R11];
	r->r12 = w[W_R12], r->r13 = w[W_R13], r->r14 = w[W_R14], r->r15 = w[W_R15];
	r->rdi = w[W_RDI], r->rsi = w[W_RSI], r->rbp = w[W_RBP], r->rbx = w[W_RBX];
	r->rdx = w[W_RDX], r->rax = w[W_RAX], r->rcx = w[W_RCX], r->rsp = w[W_RSP];
	r->rip = w[W_RIP], r->eflags = w[W_EFLAGS];
	r->orig_rax = UINT64_MAX;
	*sigmask = w[W_SIGMASK];
	*xstate_at = w[W_FPSTATE];
	return true;
}

size_t
arch_sigframe_xstate(unsigned char *xstate, size_t n)
{
	uint32_t magic1, size;
	uint64_t features;

	if (n < ARCH_XSTATE_MIN)
		return 0;
	memcpy(&magic1, xstate + XSAVE_SW_BYTES, sizeof(magic1));
	memcpy(&features, xstate + XSAVE_SW_BYTES + 8, sizeof(features));
	memcpy(&size, xstate + XSAVE_SW_BYTES + 16, sizeof(size));
	if (magic1 != FP_MAGIC1 || size < ARCH_XSTATE_MIN || size > n)
		return 0;
	memset(xstate + XSAVE_SW_BYTES, 0, 48);
	memcpy(xstate + XSAVE_SW_BYTES, &features, sizeof(features));
	return size;
}

enum { USER_CS = 0x33, USER_SS = 0x2b, EFLAGS_PLAIN = 0x202 };

void
arch_set_captured(struct arch_regs *regs, const struct arch_capture *there, int64_t result)
{
	*regs = (struct arch_regs){.rbx = there->rbx, .rbp = there->rbp, .r12 = there->r12, .r13 = there->r13,
	    .r14 = there->r14, .r15 = there->r15, .rsp = there->rsp, .rip = there->rip, .fs_base = there->fs_base, .gs_base = there->gs_base, .rax = (uint64_t)result,
	    .orig_rax = UINT64_MAX, .cs = USER_CS, .ss = USER_SS, .eflags = EFLAGS_PLAIN};
}

void
arch_set_loop(struct arch_regs *regs, taddr loop_at, taddr first, taddr last, taddr stack)
{
	regs->rip = loop_at;
	regs->r15 = first;
	regs->r14 = last;
	regs->rsp = stack;
	regs->orig_rax = UINT64_MAX;
	regs->eflags &= ~(uint64_t)(EFLAGS_TF | EFLAGS_DF);
}

extern const unsigned char arch_ask_told[];
_Static_assert(sizeof(struct arch_call) == 56 && PAGE_BYTES == 4096, "as loop.S has it");

void
arch_set_ask(struct arch_regs *regs, taddr page, taddr first, taddr end, int sig, taddr gadget)
{
	arch_set_call(regs, page, &(struct arch_call){.nr = -1});
	regs->r15 = first;
	regs->r14 = end;
	regs->r13 = (uint64_t)sig;
	regs->r12 = gadget;
	regs->rbx = page;
}

bool
arch_asked(const struct arch_regs *regs, taddr page)
{
	return regs->rip == page + (taddr)(arch_ask_told - arch_ask);
}

_Static_assert(offsetof(struct arch_slot, here) == 32 && offsetof(struct arch_slot, result) == 112 && offsetof(struct arch_slot, look_s) == 120, "as loop.S has it");

enum { PARK_ENTRY = 16 }; /* behind the mark */

void
arch_set_park(struct arch_regs *regs, taddr park_at, int64_t pid, int64_t tid, taddr frame)
{
	regs->rip = park_at + PARK_ENTRY;
	regs->r12 = (uint64_t)pid;
	regs->r13 = (uint64_t)tid;
	regs->rsp = frame;
	regs->orig_rax = UINT64_MAX;
	regs->eflags &= ~(uint64_t)(EFLAGS_TF | EFLAGS_DF);
}

taddr
arch_park_frame(const struct arch_regs *regs)
{
	return regs->rsp;
}

void
arch_put_jump(unsigned char *code, taddr to)
{
	/* movabs $to, %rax; jmp *%rax: rax holds no argument of a C function. */
	static const unsigned char jump[ARCH_JUMP_BYTES] = {0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0,
	    0xff, 0xe0, 0x0f, 0x0b, 0x0f, 0x0b};

	memcpy(code, jump, sizeof(jump));
	memcpy(code + 2, &to, sizeof(to));
}

void
arch_put_stub(unsigned char *code, long nr)
{
	/* mov $nr, %eax; syscall; ret. Or mov $-ENOSYS, %rax; ret. */
	static const unsigned char call[ARCH_JUMP_BYTES] = {0xb8, 0, 0, 0, 0, 0x0f, 0x05, 0xc3,
	    0x0f, 0x0b, 0x0f, 0x0b, 0x0f, 0x0b, 0x0f, 0x0b};
	static const unsigned char none[ARCH_JUMP_BYTES] = {0x48, 0xc7, 0xc0, 0xda, 0xff, 0xff,
	    0xff, 0xc3, 0x0f, 0x0b, 0x0f, 0x0b, 0x0f, 0x0b, 0x0f, 0x0b};
	uint32_t n = (uint32_t)nr;

	memcpy(code, nr < 0 ? none : call, ARCH_JUMP_BYTES);
	if (nr >= 0)
		memcpy(code + 1, &n, sizeof(n));
}

extern const char arch_interruptible_begin[], arch_interruptible_end[], arch_interruptible_out[];

void
arch_interrupt(void *ucontext)
{
	greg_t *rip = &((ucontext_t *)ucontext)->uc_mcontext.gregs[REG_RIP];

	if ((const char *)*rip >= arch_interruptible_begin && (const char *)*rip < arch_interruptible_end)
		*rip = (greg_t)arch_interruptible_out;
}
