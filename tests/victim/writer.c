/*
 * A program that writes all over its memory, in two threads a process, and knows at every instant what has to be in each page: writer MIB [SHARED-MIB [PROCESSES]].
 * What a page is to hold is in private memory, also of those that are shared: a snapshot whose parts are not of one instant differs. A page is looked at
 * before it is written. On SIGUSR2 all look at all of theirs, and it prints "ok N" or "differs N".
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

enum { PAGE = 4096, THREADS = 2, WORDS = PAGE / 8, STEP = 31 };

struct board {
	uint32_t request, answers, wrong;
};

struct area {
	unsigned char *memory;
	uint32_t *seeds;
	size_t npages;
};

static struct board *board;
static struct area private, shared;

static uint64_t
word(size_t page, uint32_t seed, size_t i)
{
	return seed == 0 ? 0 : (page * 0x9e3779b97f4a7c15u + i) ^ (uint64_t)seed << 32;
}

static void
check(const struct area *a, size_t page)
{
	const uint64_t *w = (const void *)(a->memory + page * PAGE);

	for (size_t i = 0; i < WORDS; i += STEP)
		if (w[i] != word(page, a->seeds[page], i)) {
			__atomic_add_fetch(&board->wrong, 1, __ATOMIC_RELAXED);
			return;
		}
}

static void
change(const struct area *a, size_t page)
{
	volatile uint64_t *w = (void *)(a->memory + page * PAGE);
	uint32_t seed = a->seeds[page] + 1;

	for (size_t i = 0; i < WORDS; i += STEP)
		w[i] = word(page, seed, i);
	a->seeds[page] = seed;
}

static void
go_over(const struct area *a, size_t k, size_t step, void (*each)(const struct area *, size_t))
{
	for (size_t i = k; i < a->npages; i += step)
		each(a, i);
}

static void *
work(void *arg)
{
	size_t k = (size_t)arg;
	uint64_t x = 88172645463325252ULL + k;
	uint32_t seen = 0;

	for (;;) {
		uint32_t asked = __atomic_load_n(&board->request, __ATOMIC_ACQUIRE);

		if (asked != seen) {
			go_over(&private, k, THREADS, check);
			go_over(&shared, k, THREADS, check);
			seen = asked;
			__atomic_add_fetch(&board->answers, 1, __ATOMIC_RELEASE);
		}
		for (int n = 0; n < 1000; n++) {
			const struct area *a = n % 4 == 3 && shared.npages > 0 ? &shared : &private;
			size_t page;

			x ^= x << 13, x ^= x >> 7, x ^= x << 17;
			page = x % (a->npages / THREADS) * THREADS + k;
			check(a, page);
			change(a, page);
		}
	}
	return NULL;
}

static void *
get(size_t n, int flags)
{
	void *p = mmap(NULL, n > 0 ? n : PAGE, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		exit(2);
	return p;
}

int
main(int argc, char **argv)
{
	size_t processes = argc > 3 ? strtoul(argv[3], NULL, 10) : 1, part;
	unsigned char *all;
	sigset_t set;
	int sig;

	private.npages = argc > 1 ? strtoul(argv[1], NULL, 10) * 256 : 1024;
	part = argc > 2 ? strtoul(argv[2], NULL, 10) * 256 / processes : 0;
	board = get(sizeof(*board), MAP_SHARED);
	private.memory = get(private.npages * PAGE, MAP_PRIVATE);
	private.seeds = get(private.npages * 4, MAP_PRIVATE);
	all = get(processes * part * PAGE, MAP_SHARED);
	shared.seeds = get(part * 4, MAP_PRIVATE);
	shared.npages = part;
	shared.memory = all;
	go_over(&private, 0, 3, change); /* others are zero */
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	sigprocmask(SIG_BLOCK, &set, NULL);
	for (size_t p = 1; p < processes; p++) {
		if (fork() != 0)
			continue;
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		shared.memory = all + p * part * PAGE;
		sigdelset(&set, SIGUSR2);
		break;
	}
	for (size_t k = 0; k < THREADS; k++) {
		pthread_t t;

		if (pthread_create(&t, NULL, work, (void *)k) != 0)
			return 3;
	}
	for (uint32_t n = 1; sigismember(&set, SIGUSR2); n++) {
		if (n == 1)
			printf("ready\n"), fflush(stdout);
		sigwait(&set, &sig);
		__atomic_store_n(&board->request, n, __ATOMIC_RELEASE);
		while (__atomic_load_n(&board->answers, __ATOMIC_ACQUIRE) < n * processes * THREADS)
			usleep(1000);
		printf("%s %u\n", board->wrong == 0 ? "ok" : "differs", n);
		fflush(stdout);
	}
	for (;;)
		pause();
}
