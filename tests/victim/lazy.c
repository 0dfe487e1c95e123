/*
 * A program that knows what is in each of its pages: lazy MIB. It does what the lines of the file `commands` say, in turn, and tells what it found:
 * "COMMAND ok", or what was wrong. It looks for the next line every millisecond.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, THREADS = 4 };

static unsigned char *memory;
static size_t npages;
static uint32_t *seeds; /* of each page; 0: zeroes */
static size_t wrong;

static void
stamp(unsigned char *page, uint32_t seed)
{
	for (uint32_t i = 0; i < PAGE / 4; i++) {
		uint32_t v = seed == 0 ? 0 : seed * 2654435761u ^ i * 40503u;

		memcpy(page + 4 * i, &v, 4);
	}
}

static bool
stamped(const unsigned char *page, uint32_t seed)
{
	unsigned char want[PAGE];

	stamp(want, seed);
	return memcmp(page, want, PAGE) == 0;
}

static void
look(size_t i)
{
	if (!stamped(memory + i * PAGE, seeds[i]))
		__atomic_add_fetch(&wrong, 1, __ATOMIC_RELAXED);
}

static void *
look_at_quarter(void *arg)
{
	size_t k = (size_t)arg;

	for (size_t i = k; i < npages; i += THREADS)
		look(i);
	return NULL;
}

/* By several threads, each everywhere. */
static void
look_at_all(void)
{
	pthread_t t[THREADS];

	for (size_t k = 0; k < THREADS; k++)
		if (pthread_create(&t[k], NULL, look_at_quarter, (void *)k) != 0)
			exit(3);
	for (size_t k = 0; k < THREADS; k++)
		pthread_join(t[k], NULL);
}

static void
look_at_random(unsigned n)
{
	uint64_t x = 88172645463325252ULL;

	while (n-- > 0) {
		x ^= x << 13, x ^= x >> 7, x ^= x << 17;
		look(x % npages);
	}
}

/* A child, and a child of that, look at all, while this one writes. */
static void
fork_and_look(void)
{
	pid_t pid = fork();
	int status;

	if (pid == 0) {
		pid_t other = fork();

		wrong = 0;
		look_at_all();
		if (other == 0)
			_exit(wrong != 0);
		if (waitpid(other, &status, 0) < 0 || status != 0)
			wrong++;
		_exit(wrong != 0);
	}
	for (size_t i = 0; i < npages; i += 7) {
		look(i);
		stamp(memory + i * PAGE, seeds[i] = (uint32_t)i + 77);
	}
	if (waitpid(pid, &status, 0) < 0 || status != 0)
		wrong++;
}

/* It moves to another place, a quarter after the other: one may be a mapping of its own, and mremap(2) moves one alone. */
static void
remap(void)
{
	size_t quarter = npages / 4 * PAGE;
	unsigned char *room = mmap(NULL, 4 * quarter, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	for (size_t k = 4; k-- > 0;)
		if (room == MAP_FAILED || mremap(memory + k * quarter, quarter, quarter, MREMAP_MAYMOVE | MREMAP_FIXED, room + k * quarter) == MAP_FAILED) {
			perror("lazy: mremap");
			wrong++;
			return;
		}
	memory = room;
}

/* What is given up is zero when it is touched again, or not there. */
static void
give_up(bool unmap)
{
	size_t from = npages / 4, n = npages / 4;

	if (!unmap)
		wrong += madvise(memory + from * PAGE, n * PAGE, MADV_DONTNEED) != 0;
	else
		wrong += mmap(memory + from * PAGE, n * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED;
	for (size_t i = from; i < from + n; i++)
		seeds[i] = 0;
}

/* The kernel reads pages that are not there, and writes others. */
static void
by_kernel(void)
{
	int fd = open("by-kernel", O_RDWR | O_CREAT | O_TRUNC, 0600);
	size_t n = npages / 8;

	if (fd < 0 || write(fd, memory, n * PAGE) != (ssize_t)(n * PAGE) || pread(fd, memory + (npages - n) * PAGE, n * PAGE, 0) != (ssize_t)(n * PAGE))
		wrong++;
	memmove(seeds + (npages - n), seeds, n * sizeof(*seeds));
	close(fd);
	unlink("by-kernel");
}

/* Every seventh page gets a mapping of its own. */
static void
split(void)
{
	for (size_t i = 0; i < npages; i += 7)
		wrong += mprotect(memory + i * PAGE, PAGE, PROT_READ) != 0;
	look_at_all();
	wrong += mprotect(memory, npages * PAGE, PROT_READ | PROT_WRITE) != 0;
}

/* Blocks that several threads move about, to where others have just been. */
static void *
move_block(void *arg)
{
	size_t k = (size_t)arg, n = npages / THREADS / 8;
	unsigned char *at = memory + k * n * PAGE;

	for (int turn = 0; turn < 50 && at != MAP_FAILED; turn++) {
		unsigned char *room = mmap(NULL, n * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		at = room == MAP_FAILED ? MAP_FAILED : mremap(at, n * PAGE, n * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, room);
	}
	for (size_t i = 0; i < n; i++)
		if (at == MAP_FAILED || !stamped(at + i * PAGE, seeds[k * n + i]))
			__atomic_add_fetch(&wrong, 1, __ATOMIC_RELAXED);
	return at;
}

static void
move_blocks(void)
{
	size_t n = npages / THREADS / 8;
	unsigned char *room = mmap(NULL, THREADS * n * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	pthread_t t[THREADS];
	void *at[THREADS];

	for (size_t k = 0; k < THREADS; k++)
		if (pthread_create(&t[k], NULL, move_block, (void *)k) != 0)
			exit(3);
	for (size_t k = 0; k < THREADS; k++)
		pthread_join(t[k], &at[k]);
	/* Where one was another one may be by now. */
	for (size_t k = 0; k < 2 * THREADS; k++) {
		size_t block = k % THREADS;
		unsigned char *to = (k < THREADS ? room : memory) + block * n * PAGE;

		if (mremap(k < THREADS ? at[block] : room + block * n * PAGE, n * PAGE, n * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == MAP_FAILED) {
			perror("lazy: mremap");
			wrong++;
		}
	}
	look_at_all();
}

static void
command(const char *what)
{
	unsigned n;

	wrong = 0;
	if (strcmp(what, "all") == 0)
		look_at_all();
	else if (sscanf(what, "random %u", &n) == 1)
		look_at_random(n);
	else if (strcmp(what, "fork") == 0)
		fork_and_look();
	else if (strcmp(what, "remap") == 0)
		remap();
	else if (strcmp(what, "dontneed") == 0)
		give_up(false);
	else if (strcmp(what, "unmap") == 0)
		give_up(true);
	else if (strcmp(what, "split") == 0)
		split();
	else if (strcmp(what, "move") == 0)
		move_blocks();
	else if (strcmp(what, "kernel") == 0)
		by_kernel();
	else if (strcmp(what, "reverse") == 0)
		for (size_t i = npages; i-- > 0;)
			look(i);
	else
		wrong = npages + 1;
	if (wrong == 0)
		printf("%s ok\n", what);
	else
		printf("%s: %zu pages are wrong\n", what, wrong);
	fflush(stdout);
}

int
main(int argc, char **argv)
{
	char text[65536];
	size_t done = 0;

	npages = argc > 1 ? strtoul(argv[1], NULL, 10) * 256 : 4096;
	memory = mmap(NULL, npages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	seeds = mmap(NULL, npages * sizeof(*seeds), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED || seeds == MAP_FAILED)
		return 1;
	for (size_t i = 0; i < npages; i++)
		/* Some are zeroes that were written, some have never been touched. */
		if (i % 11 != 5 && i % 13 != 6)
			stamp(memory + i * PAGE, seeds[i] = (uint32_t)i + 1);
		else if (i % 11 == 5)
			stamp(memory + i * PAGE, 0);
	printf("ready\n");
	fflush(stdout);
	for (;;) {
		int fd = open("commands", O_RDONLY);
		ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof(text) - 1);
		char *line, *end;

		close(fd);
		text[n > 0 ? n : 0] = '\0';
		for (line = text + (done < strlen(text) ? done : strlen(text)); (end = strchr(line, '\n')) != NULL; line = end + 1) {
			*end = '\0';
			done = (size_t)(end + 1 - text);
			command(line);
		}
		usleep(1000);
	}
}
