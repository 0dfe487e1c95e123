/* io_uring: completions that have not been fetched, in rings that have gone round. */
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "victim.h"

static struct io_uring_params p;
static int ring = -1, file;
static unsigned char *rings;
static struct io_uring_sqe *sqes;
static unsigned tail; /* as libraries do, it keeps its own */
static char text[8];

static unsigned *
word(unsigned offset)
{
	return (unsigned *)(void *)(rings + offset);
}

static void
submit(unsigned long long data)
{
	unsigned at = tail & *word(p.sq_off.ring_mask);

	sqes[at] = (struct io_uring_sqe){.opcode = IORING_OP_READ, .fd = file, .addr = (uintptr_t)text, .len = 8,
	    .user_data = data};
	word(p.sq_off.array)[at] = at;
	__atomic_store_n(word(p.sq_off.tail), ++tail, __ATOMIC_RELEASE);
	SAME(syscall(SYS_io_uring_enter, ring, 1, 0, 0, NULL, 0), 1);
}

static void
fetch(unsigned long long data)
{
	unsigned head = *word(p.cq_off.head);
	struct io_uring_cqe *cqe;

	if (head == __atomic_load_n(word(p.cq_off.tail), __ATOMIC_ACQUIRE))
		SAME(syscall(SYS_io_uring_enter, ring, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0), 0);
	cqe = (struct io_uring_cqe *)(void *)(rings + p.cq_off.cqes) + (head & *word(p.cq_off.ring_mask));
	SAME(cqe->user_data, data);
	SAME(cqe->res, 8);
	__atomic_store_n(word(p.cq_off.head), head + 1, __ATOMIC_RELEASE);
}

static void
uring_make(void)
{
	file = must(open("read-by-uring", O_RDWR | O_CREAT, 0600), "file");
	must((int)write(file, "abcdefgh", 8), "write");
	ring = (int)syscall(SYS_io_uring_setup, 8, &p);
	if (ring < 0)
		return;
	rings = mmap(NULL, p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe) + p.sq_entries * 4,
	    PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
	sqes = mmap(NULL, p.sq_entries * sizeof(*sqes), PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
	if (rings == MAP_FAILED || sqes == MAP_FAILED)
		die("memory of an io_uring");
	for (unsigned i = 0; i < 333; i++) {
		submit(i);
		fetch(i);
	}
	for (unsigned i = 0; i < 3; i++)
		submit(1000 + i);
}

static void
uring_check(void)
{
	if (ring < 0) {
		puts("uring: not on this kernel");
		return;
	}
	SAME(*word(p.sq_off.head), tail);
	for (unsigned i = 0; i < 3; i++)
		fetch(1000 + i);
	for (unsigned i = 0; i < 100; i++) {
		memset(text, 0, 8);
		submit(i);
		fetch(i);
		SAME(memcmp(text, "abcdefgh", 8), 0);
	}
	for (unsigned i = 0; i < 3; i++)
		submit(1000 + i);
}

const struct maker uring_makers[] = {{"uring", uring_make, uring_check}, {0}};
