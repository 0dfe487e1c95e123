/*
 * io_uring(7), idle: nothing under way and nothing registered, as far as the kernel shows. The counters of a new ring start
 * from 0, and programs keep copies of them: it is turned on to where the old one stood by requests that do nothing.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "io.h"
#include "kind.h"
#include "log.h"

#ifndef IOSQE_CQE_SKIP_SUCCESS
#define IOSQE_CQE_SKIP_SUCCESS (1U << 6)
#endif
enum { QUIET_MS = 50 };
/* How often a ring may have been used; so many requests take some seconds. */
#define TURNS_MOST (50U << 20)
#define NO_SQARRAY (1U << 16) /* IORING_SETUP_NO_SQARRAY (6.6) */

/* A ring that is mapped here. */
struct ring {
	struct io_uring_params p;
	int fd;
	unsigned char *rings, *sqes;
	size_t rings_len, sqes_len;
};

static bool
match(const struct kind_save *s)
{
	return strcmp(s->link, "anon_inode:[io_uring]") == 0;
}

static uint32_t *
word(const struct ring *r, uint32_t offset)
{
	return (uint32_t *)(void *)(r->rings + offset);
}

static void
unmap(struct ring *r)
{
	if (r->rings != NULL)
		munmap(r->rings, r->rings_len);
	if (r->sqes != NULL)
		munmap(r->sqes, r->sqes_len);
	r->rings = r->sqes = NULL;
}

static bool
has_array(const struct ring *r)
{
	return (r->p.flags & NO_SQARRAY) == 0;
}

/* fd: of a ring like that of r->p, whose offsets are known. */
static int
map(struct ring *r, int fd)
{
	size_t cq = r->p.cq_off.cqes + r->p.cq_entries * sizeof(struct io_uring_cqe);
	size_t sq = has_array(r) ? r->p.sq_off.array + r->p.sq_entries * sizeof(uint32_t) : 0;
	void *rings, *sqes;

	r->rings_len = cq > sq ? cq : sq;
	r->sqes_len = r->p.sq_entries * sizeof(struct io_uring_sqe);
	rings = mmap(NULL, r->rings_len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, IORING_OFF_SQ_RING);
	sqes = mmap(NULL, r->sqes_len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)IORING_OFF_SQES);
	r->rings = rings == MAP_FAILED ? NULL : rings;
	r->sqes = sqes == MAP_FAILED ? NULL : sqes;
	if (r->rings != NULL && r->sqes != NULL)
		return 0;
	unmap(r);
	return -EIO;
}

/* A new one, which also tells where this kernel has what. Its fd, or a negative errno. */
static int
set_up(struct ring *r, uint64_t sq_entries, uint64_t cq_entries, bool no_array)
{
	*r = (struct ring){.p = {.flags = IORING_SETUP_CQSIZE | (no_array ? NO_SQARRAY : 0), .cq_entries = (uint32_t)cq_entries}};
	r->fd = (int)syscall(SYS_io_uring_setup, (uint32_t)sq_entries, &r->p);
	if (r->fd < 0)
		return -errno;
	if (r->p.sq_entries == sq_entries && r->p.cq_entries == cq_entries)
		return r->fd;
	close_fd(&r->fd);
	return -EINVAL;
}

/* --- ckpt */

/* What the kernel shows that cannot be made again, or NULL. */
static const char *
busy(const char *text)
{
	uint64_t n;
	const char *list = strstr(text, "PollList:\n"), *overflow = strstr(text, "CqOverflowList:\n");

	if (strstr(text, "SqThread:\t-1") == NULL)
		return "has a thread of the kernel (IORING_SETUP_SQPOLL)";
	if (kind_fdinfo_number(text, "UserFiles:", 10, &n) && n > 0)
		return "has registered files";
	if (kind_fdinfo_number(text, "UserBufs:", 10, &n) && n > 0)
		return "has registered buffers";
	if (strstr(text, "Personalities:") != NULL)
		return "has registered credentials";
	if (list != NULL && strncmp(list + 10, "  op=", 5) == 0)
		return "waits for something";
	if (overflow != NULL && strncmp(overflow + 16, "  user_data=", 12) == 0)
		return "has overflown";
	return NULL;
}

static bool
equal_counters(const char *a, const char *b)
{
	static const char *const keys[] = {"CachedSqHead:", "CachedCqTail:"};
	bool same = true;

	for (size_t i = 0; i < ARRAY_LEN(keys); i++) {
		uint64_t x, y;

		same &= kind_fdinfo_number(a, keys[i], 10, &x) && kind_fdinfo_number(b, keys[i], 10, &y) && x == y;
	}
	return same;
}

/* Waits that the kernel does not list, such as IORING_OP_TIMEOUT (or requests that were to tell nothing). */
static bool
missing(const char *text)
{
	uint64_t made, completed;

	kind_fdinfo_number(text, "CachedSqHead:", 10, &made);
	kind_fdinfo_number(text, "CachedCqTail:", 10, &completed);
	return (int32_t)(uint32_t)(made - completed) > 0;
}

static int
save_content(struct uring_ref *u, const struct ring *r)
{
	u->sq_head = *word(r, r->p.sq_off.head), u->sq_tail = *word(r, r->p.sq_off.tail);
	u->cq_head = *word(r, r->p.cq_off.head), u->cq_tail = *word(r, r->p.cq_off.tail);
	u->array_at = has_array(r) ? r->p.sq_off.array : 0, u->cqes_at = r->p.cq_off.cqes;
	u->array = (struct bytes){malloc(r->p.sq_entries * 4), r->p.sq_entries * 4};
	u->cqes = (struct bytes){malloc(r->p.cq_entries * sizeof(struct io_uring_cqe)),
	    r->p.cq_entries * sizeof(struct io_uring_cqe)};
	u->sqes = (struct bytes){malloc(r->sqes_len), r->sqes_len};
	if (u->array.p == NULL || u->cqes.p == NULL || u->sqes.p == NULL)
		return -ENOMEM;
	if (has_array(r))
		memcpy(u->array.p, r->rings + u->array_at, u->array.n);
	else
		memset(u->array.p, 0, u->array.n);
	memcpy(u->cqes.p, r->rings + u->cqes_at, u->cqes.n);
	memcpy(u->sqes.p, r->sqes, u->sqes.n);
	return 0;
}

/*
 * Nobody has ever written to it, though requests have been made: there is none (IORING_SETUP_NO_SQARRAY), which the kernel
 * does not tell.
 */
static bool
array_is_unused(const struct ring *r)
{
	bool unused = *word(r, r->p.sq_off.tail) > 1 && r->p.sq_entries > 1;

	for (uint32_t i = 0; i < r->p.sq_entries && unused; i++)
		unused = word(r, r->p.sq_off.array)[i] == 0;
	return unused;
}

static int
read_ring(struct kind_save *s, struct uring_ref *u)
{
	int fd = kind_get_fd(s), scratch, err;
	struct ring r;

	if (fd < 0)
		return fd;
	scratch = set_up(&r, u->sq_entries, u->cq_entries, false);
	err = scratch < 0 ? scratch : map(&r, fd);
	u->no_array = scratch >= 0 && (err < 0 || array_is_unused(&r));
	if (u->no_array) { /* another layout, and less memory */
		unmap(&r);
		close_fd(&scratch);
		scratch = set_up(&r, u->sq_entries, u->cq_entries, true);
		err = scratch < 0 ? scratch : map(&r, fd);
	}
	if (err == 0 && (*word(&r, r.p.sq_off.ring_entries) != u->sq_entries ||
			    *word(&r, r.p.cq_off.ring_entries) != u->cq_entries))
		err = -EBADMSG;
	if (err == 0)
		err = save_content(u, &r);
	unmap(&r);
	close_fd(&scratch);
	close(fd);
	return err;
}

static int
refuse(struct kind_save *s, int status, const char *what)
{
	return report_add(s->report, OBSTACLE, status, s->object, status == 75 ? "try again when it does less"
	    : "have the program do without it (node: UV_USE_IO_URING=0; nginx: no aio; as root for all: "
	      "sysctl kernel.io_uring_disabled=2)", "an io_uring that %s", what);
}

static int
save(struct kind_save *s, struct ofd *ofd)
{
	struct uring_ref *u = ARRAY_ADD(s->objects->urings, s->objects->nurings);
	char *text = NULL, *later = NULL;
	const char *what = NULL;
	int err = u == NULL ? -ENOMEM : kind_fdinfo(s, &text);

	ofd->ref = (int64_t)s->objects->nurings - 1;
	ofd->flags &= O_ACCMODE | O_NONBLOCK | O_ASYNC;
	/* What is under way, and not waited for, shows when it ends. */
	poll(NULL, 0, QUIET_MS);
	if (err == 0)
		err = kind_fdinfo(s, &later);
	if (err == 0) {
		kind_fdinfo_number(later, "SqMask:", 16, &u->sq_entries);
		kind_fdinfo_number(later, "CqMask:", 16, &u->cq_entries);
		u->sq_entries++, u->cq_entries++;
		what = busy(later);
		if (what != NULL)
			err = refuse(s, 69, what);
		else if (!equal_counters(text, later))
			err = refuse(s, 75, "is at work");
		else if (missing(later))
			err = refuse(s, 69, "has made requests that have not been completed");
		else
			err = read_ring(s, u);
		if (what == NULL && err == 0 && u->sq_head > TURNS_MOST)
			err = refuse(s, 69, "has been used too often to be turned on to where it stands");
	}
	free(text);
	free(later);
	if (err == 0)
		err = report_add(s->report, LOSS, 0, s->object, NULL, "io_uring: what it may have registered and the kernel does "
		    "not show is lost (eventfd, the ring itself, provided buffers, restrictions)");
	return err < 0 && err != -ENOTSUP ? fail(-err, "%s: io_uring: %s", s->object, strerror(-err)) : err;
}

/* --- restart */

/* n requests that do nothing; the first `told` of them leave a completion, which is taken out. */
static int
turn(struct ring *r, uint32_t n, uint32_t told)
{
	uint32_t *sq_tail = word(r, r->p.sq_off.tail), *cq_head = word(r, r->p.cq_off.head);
	uint32_t *cq_tail = word(r, r->p.cq_off.tail), mask = r->p.sq_entries - 1;

	for (uint32_t done = 0; done < n;) {
		uint32_t batch = (uint32_t)min_u64(n - done, r->p.sq_entries);

		for (uint32_t i = 0; i < batch; i++) {
			uint32_t at = (*sq_tail + i) & mask;
			struct io_uring_sqe *sqe = (struct io_uring_sqe *)(void *)r->sqes + at;

			memset(sqe, 0, sizeof(*sqe));
			sqe->opcode = IORING_OP_NOP;
			sqe->flags = done + i < told ? 0 : IOSQE_CQE_SKIP_SUCCESS;
			if (has_array(r))
				word(r, r->p.sq_off.array)[at] = at;
		}
		__atomic_store_n(sq_tail, *sq_tail + batch, __ATOMIC_RELEASE);
		if (syscall(SYS_io_uring_enter, r->fd, batch, 0, IORING_ENTER_GETEVENTS, NULL, 0) != (long)batch)
			return -EIO;
		__atomic_store_n(cq_head, __atomic_load_n(cq_tail, __ATOMIC_ACQUIRE), __ATOMIC_RELEASE);
		done += batch;
	}
	return 0;
}

/*
 * Both counters as they were. Where there had been more completions than requests (multishot) those are shifted, which
 * programs that look at the ring do not notice.
 */
static int
put_content(struct ring *r, const struct uring_ref *u)
{
	uint32_t pending = (uint32_t)(u->cq_tail - u->cq_head), mask = r->p.cq_entries - 1, *cq_tail;
	int err = turn(r, (uint32_t)u->sq_head, (uint32_t)min_u64(u->sq_head, u->cq_tail));

	if (err < 0)
		return err;
	cq_tail = word(r, r->p.cq_off.tail);
	for (uint32_t i = 0; i < pending; i++)
		memcpy(r->rings + u->cqes_at + ((*cq_tail - pending + i) & mask) * sizeof(struct io_uring_cqe),
		    u->cqes.p + (((uint32_t)u->cq_head + i) & mask) * sizeof(struct io_uring_cqe), sizeof(struct io_uring_cqe));
	*word(r, r->p.cq_off.head) = *cq_tail - pending;
	if (has_array(r))
		memcpy(r->rings + u->array_at, u->array.p, u->array.n);
	memcpy(r->sqes, u->sqes.p, u->sqes.n);
	*word(r, r->p.sq_off.tail) = (uint32_t)u->sq_tail;
	return 0;
}

static int
load(const struct kind_load *l, const struct ofd *ofd)
{
	const struct uring_ref *u = &l->objects->urings[ofd->ref];
	struct ring r = {.fd = -1};
	int fd = set_up(&r, u->sq_entries, u->cq_entries, u->no_array), err;

	if (fd < 0)
		return fail(-fd, "fd %d: io_uring: %s%s", l->lowest, strerror(-fd),
		    fd == -EPERM ? " (sysctl kernel.io_uring_disabled)" : "");
	if ((has_array(&r) && u->array_at != r.p.sq_off.array) || u->cqes_at != r.p.cq_off.cqes) {
		close(fd);
		return fail(ENOTSUP, "fd %d: io_uring: this kernel lays it out in another way", l->lowest);
	}
	err = l->check ? 0 : map(&r, fd);
	if (err == 0 && !l->check)
		err = put_content(&r, u);
	unmap(&r);
	if (err < 0) {
		close(fd);
		return fail(-err, "fd %d: io_uring: %s", l->lowest, strerror(-err));
	}
	if (ofd->flags & O_NONBLOCK)
		fcntl(fd, F_SETFL, O_NONBLOCK);
	return fd;
}

const struct kind kind_uring = {.name = "io_uring", .match = match, .save = save, .load = load};
