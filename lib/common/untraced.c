#include "untraced.h"

#include <errno.h>
#include <linux/futex.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "io.h"
#include "log.h"
#include "proc.h"

/* Behind the shared bytes: the word that lets all go on, then the slots. */
enum { SLOTS_AT = 64, SLOT_BYTES = 192, LOOK_MS = 500, TIMEOUT_MS = 60000, TURN_MS = 200 };
_Static_assert(sizeof(struct arch_slot) <= SLOT_BYTES, "room");

struct untraced {
	int fd;
	unsigned char *memory; /* without the page of code */
	uint64_t shared, bytes;
	taddr at;
	size_t used;
};

static uint32_t *
go_word(const struct untraced *u)
{
	return (uint32_t *)(void *)(u->memory + u->shared);
}

static struct arch_slot *
slot_of(const struct untraced *u, size_t slot)
{
	return (struct arch_slot *)(void *)(u->memory + u->shared + SLOTS_AT + slot * SLOT_BYTES);
}

int
untraced_new(struct untraced **out, size_t nthreads, uint64_t shared_bytes)
{
	struct untraced *u = calloc(1, sizeof(*u));
	void *p;

	if (u == NULL)
		return -ENOMEM;
	u->shared = page_up(shared_bytes);
	u->bytes = u->shared + page_up(SLOTS_AT + nthreads * SLOT_BYTES);
	u->fd = memfd_create("pms", MFD_CLOEXEC);
	p = u->fd < 0 || ftruncate(u->fd, (off_t)u->bytes) < 0 ? MAP_FAILED : mmap(NULL, u->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, u->fd, 0);
	if (p == MAP_FAILED) {
		int err = fail_errno("memory to be shared with the process");

		close_fd(&u->fd);
		free(u);
		return err;
	}
	u->memory = p;
	*out = u;
	return 0;
}

uint64_t
untraced_bytes(const struct untraced *u)
{
	return PAGE_BYTES + u->bytes;
}

void
untraced_place(struct untraced *u, taddr at)
{
	u->at = at;
}

taddr
untraced_at(const struct untraced *u)
{
	return u->at;
}

void
untraced_free(struct untraced *u)
{
	if (u == NULL)
		return;
	munmap(u->memory, u->bytes);
	close_fd(&u->fd);
	free(u);
}

unsigned char *
untraced_shared(struct untraced *u)
{
	return u->memory;
}

size_t
untraced_slot(struct untraced *u, pid_t parent)
{
	*slot_of(u, u->used) = (struct arch_slot){.parent = (uint32_t)parent, .look_ns = LOOK_MS * 1000000};
	return u->used++;
}

pid_t
untraced_parent(const struct untraced *u, size_t slot)
{
	return (pid_t)slot_of(u, slot)->parent;
}

taddr
untraced_slot_at(const struct untraced *u, size_t slot)
{
	return u->at + PAGE_BYTES + (taddr)((unsigned char *)slot_of(u, slot) - u->memory);
}

/* The kernel would go on writing to what libc has registered, where something else will be. */
static void
forget_rseq(void)
{
#if __GLIBC_PREREQ(2, 35)
	extern const ptrdiff_t __rseq_offset;
	extern const unsigned int __rseq_size;

	for (unsigned size = 32; __rseq_size > 0 && size <= 256; size += 32)
		if (syscall(SYS_rseq, (char *)__builtin_thread_pointer() + __rseq_offset, size, 1 /* unregister */, 0x53053053) == 0)
			break;
#endif
}

int
untraced_move_fd(struct untraced *u, int min)
{
	u->fd = fd_move_up(u->fd, min);
	return u->fd < 0 ? u->fd : 0;
}

int
untraced_map(struct untraced *u)
{
	unsigned char *place = (unsigned char *)(uintptr_t)u->at;
	void *code = mmap(place, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	if (code != place || mmap(place + PAGE_BYTES, u->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED_NOREPLACE, u->fd, 0) == MAP_FAILED)
		return -errno;
	memcpy(code, arch_obey, (size_t)(arch_obey_end - arch_obey));
	return mprotect(code, PAGE_BYTES, PROT_READ | PROT_EXEC) < 0 ? -errno : 0;
}

void
untraced_obey(struct untraced *u, size_t slot)
{
	unsigned char *place = (unsigned char *)(uintptr_t)u->at;

	forget_rseq();
	arch_obey_at(place, (struct arch_slot *)(uintptr_t)untraced_slot_at(u, slot), (uint32_t *)(void *)(place + PAGE_BYTES + u->shared));
}

static void
wake(uint32_t *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL);
}

static bool
has_ended(pid_t pid)
{
	struct proc_stat st = {.state = 'X'};
	int proc = proc_open(pid);

	if (proc >= 0 && proc_read_stat(proc, &st) < 0)
		st.state = 'X';
	close_fd(&proc);
	return st.state == 'X' || st.state == 'Z';
}

int
untraced_await(struct untraced *u, size_t slot, pid_t pid)
{
	struct arch_slot *s = slot_of(u, slot);
	struct timespec turn = {0, TURN_MS * 1000000};
	int64_t deadline = now_ms() + TIMEOUT_MS;

	while (__atomic_load_n(&s->done, __ATOMIC_SEQ_CST) == 0) {
		if (syscall(SYS_futex, &s->done, FUTEX_WAIT, 0, &turn) == 0 || errno != ETIMEDOUT)
			continue;
		if (has_ended(pid))
			return fail(ESRCH, "pid %d: ended while it was being built", pid);
		if (now_ms() >= deadline)
			return fail(ETIMEDOUT, "pid %d: a script does not end", pid);
	}
	return 0;
}

int
untraced_run(struct untraced *u, size_t slot, pid_t pid, taddr first, taddr end)
{
	struct arch_slot *s = slot_of(u, slot);

	s->done = 0;
	s->first = first;
	s->end = end;
	__atomic_store_n(&s->request, 1, __ATOMIC_SEQ_CST);
	wake(&s->request);
	return untraced_await(u, slot, pid);
}

void
untraced_set_final(struct untraced *u, size_t slot, const struct arch_regs *r)
{
	struct arch_slot *s = slot_of(u, slot);

	s->here = (struct arch_capture){r->rbx, r->rbp, r->r12, r->r13, r->r14, r->r15, r->rsp, r->rip, r->fs_base, r->gs_base};
	s->result = (int64_t)r->rax;
}

void
untraced_go(struct untraced *u)
{
	__atomic_store_n(go_word(u), 1, __ATOMIC_SEQ_CST);
	for (size_t i = 0; i < u->used; i++)
		wake(&slot_of(u, i)->request);
}
