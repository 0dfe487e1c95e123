/* Mappings of every sort, the heap, the stack. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "victim.h"

enum { PAGE = 4096 };

/* A page that can be told from every other. */
static void
stamp(unsigned char *page, unsigned seed)
{
	for (unsigned i = 0; i < PAGE / 4; i++) {
		uint32_t v = (seed * 2654435761u) ^ (i * 40503u);

		memcpy(page + 4 * i, &v, 4);
	}
}

static bool
stamped(const unsigned char *page, unsigned seed)
{
	unsigned char want[PAGE];

	stamp(want, seed);
	return memcmp(page, want, PAGE) == 0;
}

static unsigned char *
map(size_t len, int prot, int flags, int fd)
{
	unsigned char *p = mmap(NULL, len, prot, flags, fd, 0);

	if (p == MAP_FAILED)
		die("mmap");
	return p;
}

/* --- anon: touched, untouched and zeroed pages in turn, over 9 MiB */

enum { ANON_PAGES = 2304 };
static unsigned char *anon;

static void
anon_make(void)
{
	anon = map(ANON_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	for (unsigned i = 0; i < ANON_PAGES; i++)
		if (i % 3 == 0)
			stamp(anon + i * PAGE, i);
		else if (i % 3 == 1)
			memset(anon + i * PAGE, 0, PAGE);
}

static void
anon_check(void)
{
	static const unsigned char zero[PAGE];

	for (unsigned i = 0; i < ANON_PAGES; i++)
		if (i % 3 == 0 ? !stamped(anon + i * PAGE, i) : memcmp(anon + i * PAGE, zero, PAGE) != 0)
			differs("anon: page %u", i);
}

/* --- protection: none with data, read-only, executable, and what they forbid */

static unsigned char *prot_none, *prot_read;
static int (*prot_exec)(void);
static sigjmp_buf trapped;

static void
on_segv(int sig)
{
	(void)sig;
	siglongjmp(trapped, 1);
}

static bool
faults(volatile unsigned char *p, bool write)
{
	struct sigaction sa = {.sa_handler = on_segv}, old;
	volatile bool fault = false;

	sigaction(SIGSEGV, &sa, &old);
	if (sigsetjmp(trapped, 1) == 0) {
		if (write)
			*p = 1;
		else
			(void)*p;
	} else {
		fault = true;
	}
	sigaction(SIGSEGV, &old, NULL);
	return fault;
}

static void
protection_make(void)
{
	static const unsigned char forty_two[] = {0xb8, 42, 0, 0, 0, 0xc3};
	unsigned char *code;

	prot_none = map(2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	stamp(prot_none, 1);
	mprotect(prot_none, 2 * PAGE, PROT_NONE);
	prot_read = map(PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	stamp(prot_read, 2);
	mprotect(prot_read, PAGE, PROT_READ);
	code = map(PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	memcpy(code, forty_two, sizeof(forty_two));
	mprotect(code, PAGE, PROT_READ | PROT_EXEC);
	prot_exec = (int (*)(void))(void *)code;
}

static void
protection_check(void)
{
	SAME(faults(prot_none, false), true);
	SAME(faults(prot_read, true), true);
	mprotect(prot_none, 2 * PAGE, PROT_READ);
	SAME(stamped(prot_none, 1), true);
	mprotect(prot_none, 2 * PAGE, PROT_NONE);
	SAME(stamped(prot_read, 2), true);
	SAME(prot_exec(), 42);
}

/* --- file: a private mapping with some pages changed, a shared one */

static unsigned char *file_private, *file_shared;
static char file_name[64];

static void
file_make(void)
{
	unsigned char page[PAGE];
	int fd;

	snprintf(file_name, sizeof(file_name), "mapped.%d", (int)getpid());
	fd = open(file_name, O_RDWR | O_CREAT | O_TRUNC, 0600);
	for (unsigned i = 0; i < 8; i++) {
		stamp(page, 100 + i);
		if (write(fd, page, PAGE) != PAGE)
			die("write");
	}
	file_private = map(8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
	stamp(file_private + 3 * PAGE, 203);
	memset(file_private + 5 * PAGE, 0, PAGE);
	file_shared = map(8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	close(fd);
}

static void
file_check(void)
{
	static const unsigned char zero[PAGE];
	unsigned char page[PAGE];
	int fd = open(file_name, O_RDONLY);

	for (unsigned i = 0; i < 8; i++) {
		if (i == 5)
			SAME(memcmp(file_private + i * PAGE, zero, PAGE), 0);
		else
			SAME(stamped(file_private + i * PAGE, i == 3 ? 203 : 100 + i), true);
		SAME(stamped(file_shared + i * PAGE, 100 + i), true);
	}
	/* It is the file: what is written through it can be read from it. */
	file_shared[7 * PAGE] ^= 0xff;
	SAME(pread(fd, page, 1, 7 * PAGE), 1);
	SAME(page[0], file_shared[7 * PAGE]);
	file_shared[7 * PAGE] ^= 0xff;
	close(fd);
}

/* --- deleted: a private mapping of a file that has lost its name */

static unsigned char *deleted;

static void
deleted_make(void)
{
	unsigned char page[PAGE];
	int fd = open("deleted.tmp", O_RDWR | O_CREAT | O_TRUNC, 0600);

	for (unsigned i = 0; i < 4; i++) {
		stamp(page, 300 + i);
		if (write(fd, page, PAGE) != PAGE)
			die("write");
	}
	deleted = map(4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
	close(fd);
	unlink("deleted.tmp");
	stamp(deleted + PAGE, 399);
}

static void
deleted_check(void)
{
	for (unsigned i = 0; i < 4; i++)
		SAME(stamped(deleted + i * PAGE, i == 1 ? 399 : 300 + i), true);
}

/* --- shared: anonymous shared memory, mapped whole and in part a second time */

static unsigned char *shared, *shared_again;

static void
shared_make(void)
{
	shared = map(16 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
	for (unsigned i = 0; i < 16; i += 2)
		stamp(shared + i * PAGE, 400 + i);
	/* With an old size of 0 mremap() makes a second mapping. */
	shared_again = mremap(shared + 4 * PAGE, 0, 4 * PAGE, MREMAP_MAYMOVE);
	if (shared_again == MAP_FAILED)
		die("mremap");
}

static void
shared_check(void)
{
	for (unsigned i = 0; i < 16; i += 2)
		SAME(stamped(shared + i * PAGE, 400 + i), true);
	shared[5 * PAGE] = 77;
	SAME(shared_again[PAGE], 77);
	shared[5 * PAGE] = 0;
	SAME(shared_again[PAGE], 0);
}

/* --- heap and stack: both still grow */

static char *heap_end;

static void
grow_make(void)
{
	free(malloc(64)); /* malloc() has begun its heap: the rest of it is ours */
	heap_end = sbrk(3 * PAGE);
	memset(heap_end, 5, 3 * PAGE);
}

static void
deep(unsigned n)
{
	volatile char room[16384];

	memset((char *)room, (int)n, sizeof(room));
	if (n > 0)
		deep(n - 1);
	if (room[1] != (char)n)
		differs("stack: a frame is not what it was");
}

static void
grow_check(void)
{
	char *now = sbrk(0), *more;

	SAME(now >= heap_end + 3 * PAGE, true);
	SAME(heap_end[3 * PAGE - 1], 5);
	more = sbrk(5 * PAGE);
	SAME(more - now, 0);
	memset(more, 6, 5 * PAGE);
	sbrk(-5 * PAGE);
	deep(100);
}

/* --- advice: flags of mappings, as smaps shows them */

static unsigned char *advised[5], *locked;
static const int advice[] = {MADV_DONTFORK, MADV_DONTDUMP, MADV_WIPEONFORK, MADV_NOHUGEPAGE,
    MADV_SEQUENTIAL};
static const char *const advice_flag[] = {"dc", "dd", "wf", "nh", "sr"};

static bool
smaps_has(const void *p, const char *flag)
{
	char line[512], start[24];
	bool here = false, has = false;
	FILE *f = fopen("/proc/self/smaps", "r");

	snprintf(start, sizeof(start), "%lx-", (unsigned long)(uintptr_t)p);
	while (fgets(line, sizeof(line), f) != NULL) {
		if (strncmp(line, start, strlen(start)) == 0)
			here = true;
		if (here && strncmp(line, "VmFlags:", 8) == 0) {
			has = strstr(line, flag) != NULL;
			break;
		}
	}
	fclose(f);
	return has;
}

static void
advice_make(void)
{
	unsigned char *p = map(20 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1);

	for (int i = 0; i < 5; i++) {
		advised[i] = p + (4 * i + 1) * PAGE;
		mprotect(advised[i], 2 * PAGE, PROT_READ | PROT_WRITE);
		if (madvise(advised[i], 2 * PAGE, advice[i]) < 0)
			die("madvise");
		stamp(advised[i], (unsigned)(500 + i));
	}
	locked = map(2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	if (mlock(locked, 2 * PAGE) < 0)
		die("mlock");
}

static void
advice_check(void)
{
	for (int i = 0; i < 5; i++) {
		SAME(stamped(advised[i], (unsigned)(500 + i)), true);
		if (!smaps_has(advised[i], advice_flag[i]))
			differs("advice: %s is lost", advice_flag[i]);
	}
	if (!smaps_has(locked, " lo"))
		differs("advice: mlock is lost");
}

/* --- guard: MADV_GUARD_INSTALL (6.13) */

static unsigned char *guard;

static void
guard_make(void)
{
	guard = map(4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	stamp(guard, 600);
	if (madvise(guard + PAGE, PAGE, 102) < 0)
		guard = NULL;
}

static void
guard_check(void)
{
	if (guard == NULL) {
		puts("guard: not on this kernel");
		return;
	}
	SAME(stamped(guard, 600), true);
	SAME(faults(guard + PAGE, false), true);
	SAME(faults(guard + 2 * PAGE, false), false);
}

/* --- droppable: may lose its content, and must, for it may be a random generator's state */

static unsigned char *droppable;

static void
droppable_make(void)
{
	droppable = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, 0x08 | MAP_ANONYMOUS, -1, 0);
	if (droppable == MAP_FAILED)
		droppable = NULL;
}

static void
droppable_check(void)
{
	if (droppable != NULL && !smaps_has(droppable, " dp"))
		differs("droppable: is an ordinary mapping");
}

/* --- pages of hugetlbfs, private, shared with a child, and of System V */

enum { HUGE = 2 << 20 };
static unsigned char *huge, *huge_shared;
static pid_t huge_child;

static void
huge_make(void)
{
	huge = map(2 * HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1);
	huge_shared = map(2 * HUGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB, -1);
	for (int i = 0; i < 8; i++)
		stamp(huge + i * 100 * PAGE, (unsigned)(700 + i));
	stamp(huge_shared + HUGE, 800);
	huge_child = fork();
	while (huge_child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (__atomic_load_n(&huge_shared[0], __ATOMIC_SEQ_CST) == 1)
			__atomic_store_n(&huge_shared[0], 2, __ATOMIC_SEQ_CST);
		usleep(1000);
	}
}

static void
huge_check(void)
{
	for (int i = 0; i < 8; i++)
		SAME(stamped(huge + i * 100 * PAGE, (unsigned)(700 + i)), true);
	SAME(stamped(huge_shared + HUGE, 800), true);
	__atomic_store_n(&huge_shared[0], 1, __ATOMIC_SEQ_CST);
	while (__atomic_load_n(&huge_shared[0], __ATOMIC_SEQ_CST) != 2)
		usleep(1000);
}

const struct maker memory_makers[] = {
    {"anon", anon_make, anon_check}, {"protection", protection_make, protection_check},
    {"mapped-file", file_make, file_check}, {"deleted-file", deleted_make, deleted_check},
    {"shared", shared_make, shared_check}, {"grow", grow_make, grow_check},
    {"advice", advice_make, advice_check}, {"guard", guard_make, guard_check},
    {"droppable", droppable_make, droppable_check}, {"huge", huge_make, huge_check}, {NULL, NULL, NULL},
};
