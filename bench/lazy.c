/*
 * lazy: a program whose memory comes when it is touched, seen from inside, and a bare round trip as the measure for a page that is fetched.
 *
 *   lazy hold MIB KIND BOARD     hold MIB MiB (random, text: 3:1 compressible); "ready", then do what BOARD, a file, says
 *   lazy look BOARD              from now on it looks at the clock without a pause
 *   lazy start BOARD OUT COMMAND...    run COMMAND, its stdout to OUT, which moves or restarts it: seconds from the start of COMMAND
 *                                to the first instruction, to its end, and how long the program did not run
 *   lazy touch BOARD N           touch pages in random order, until N have been waited for: their number, their median in microseconds
 *   lazy walk BOARD N            read N random pages: seconds
 *   lazy raw N                   N round trips of 64 bytes for 4096 over the TCP loopback device: their median in microseconds
 *   lazy able                    can memory be waited for here? Exit status 0, or 1 and why not
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8, SAMPLES = 1 << 16, REQUEST = 64, PATIENCE = 120 };
enum command { NOTHING, LOOK, TOUCH, WALK };

static const double waited_us = 5; /* what takes longer has been waited for */

/* Shared by the program, its copies and whoever asks, as a file that is mapped. */
struct board {
	uint32_t command, count; /* to be done */
	uint32_t done, looking, wrong;
	double now;               /* the last look at the clock */
	double gap, first;        /* the longest time between two of them, and when it was over */
	double seconds;
	double sample[SAMPLES];
};

/* CLOCK_MONOTONIC can be another one for a copy. */
static double
now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void
die(const char *what)
{
	fprintf(stderr, "lazy: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int
must(int result, const char *what)
{
	if (result < 0)
		die(what);
	return result;
}

static uint64_t
next(uint64_t *s)
{
	*s ^= *s << 13;
	*s ^= *s >> 7;
	*s ^= *s << 17;
	return *s;
}

static int
compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double
median(double *v, size_t n)
{
	qsort(v, n, sizeof(*v), compare);
	return n > 0 ? v[(n - 1) / 2] : 0;
}

static volatile struct board *
open_board(const char *path)
{
	int fd = must(open(path, O_RDWR | O_CREAT, 0600), path);
	void *p;

	must(ftruncate(fd, sizeof(struct board)), path);
	p = mmap(NULL, sizeof(struct board), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		die(path);
	close(fd);
	return p;
}

/* --- the program */

/* What a page begins with. */
static uint64_t
mark(uint64_t page)
{
	return (page + 1) * 0x9e3779b97f4a7c15ULL;
}

static void
fill(uint64_t *p, uint64_t npages, bool text)
{
	for (uint64_t i = 0; i < npages; i++) {
		uint64_t seed = mark(i), *page = p + i * WORDS;

		page[0] = mark(i);
		for (int k = 1; k < WORDS; k++)
			page[k] = text && k % 3 != 0 ? 0x2020202020202020ULL : next(&seed);
	}
}

static void
touch(volatile struct board *b, const volatile uint64_t *p, uint64_t npages, uint64_t *seed)
{
	uint32_t n = 0;

	/* All of them twice: then what is left comes by itself before it is touched. */
	for (uint64_t i = 0; i < 2 * npages && n < b->count; i++) {
		uint64_t page = next(seed) % npages;
		double at = now(), us;

		b->wrong += p[page * WORDS] != mark(page);
		us = (now() - at) * 1e6;
		if (us > waited_us)
			b->sample[n++] = us;
	}
	b->count = n;
}

static void
walk(volatile struct board *b, const volatile uint64_t *p, uint64_t npages, uint64_t *seed)
{
	double begun = now();

	for (uint32_t i = 0; i < b->count; i++) {
		uint64_t page = next(seed) % npages;

		b->wrong += p[page * WORDS] != mark(page);
	}
	b->seconds = now() - begun;
}

/* Until somebody wants something else. */
static void
look(volatile struct board *b)
{
	double last = now();

	b->gap = 0;
	while (b->command == LOOK) {
		double t = now();

		b->looking = 1;
		if (t - last > b->gap) {
			b->gap = t - last;
			b->first = t;
		}
		b->now = last = t;
	}
}

static void
hold(size_t mib, const char *kind, const char *board)
{
	size_t len = mib << 20;
	volatile struct board *b = open_board(board);
	uint64_t *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), seed = 88172645463325252ULL;

	if (p == MAP_FAILED)
		die("mmap");
	madvise(p, len, MADV_NOHUGEPAGE); /* 4 KiB pages: the harder case, and the same each time */
	fill(p, len / PAGE, strcmp(kind, "text") == 0);
	puts("ready");
	fflush(stdout);
	for (;;) {
		uint32_t command = b->command;

		if (command == NOTHING) {
			usleep(1000);
			continue;
		}
		if (command == LOOK) {
			look(b);
			continue;
		}
		if (command == TOUCH)
			touch(b, p, len / PAGE, &seed);
		else
			walk(b, p, len / PAGE, &seed);
		b->command = NOTHING;
		b->done = 1;
	}
}

/* --- who asks */

static void
wait_until(volatile uint32_t *what)
{
	double begun = now();

	while (*what == 0) {
		usleep(500);
		if (now() - begun > PATIENCE) {
			errno = ETIMEDOUT;
			die("the program does nothing");
		}
	}
}

static int
ask(volatile struct board *b, enum command command, uint32_t count)
{
	b->count = count;
	b->done = b->wrong = 0;
	b->command = command;
	wait_until(&b->done);
	if (b->wrong > 0)
		fprintf(stderr, "lazy: %u pages have another content\n", b->wrong);
	return b->wrong > 0;
}

static int
start(volatile struct board *b, const char *out, char **argv)
{
	double begun, ended;
	int status;
	pid_t pid;

	/* What an image holds looks at the clock already. */
	b->command = LOOK;
	b->gap = b->first = b->now = 0;
	begun = now();
	pid = must(fork(), "fork");
	if (pid == 0) {
		dup2(must(open(out, O_WRONLY | O_CREAT | O_TRUNC, 0600), out), STDOUT_FILENO);
		execvp(argv[0], argv);
		_exit(127);
	}
	if (must(waitpid(pid, &status, 0), argv[0]) != pid || status != 0) {
		fprintf(stderr, "lazy: %s has failed\n", argv[0]);
		return 1;
	}
	ended = now();
	/* When it looks at the clock again that is the copy. */
	while (b->now < ended) {
		usleep(500);
		if (now() - ended > PATIENCE) {
			errno = ETIMEDOUT;
			die("the copy does not run");
		}
	}
	printf("%.6f\t%.6f\t%.6f\n", b->first - begun, ended - begun, b->gap);
	b->command = NOTHING;
	return 0;
}

/* --- the measure */

static bool
read_all(int fd, char *buf, size_t n)
{
	while (n > 0) {
		ssize_t got = read(fd, buf, n);

		if (got <= 0)
			return false;
		n -= (size_t)got;
	}
	return true;
}

static void
on_processor(int n)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(n, &set);
	must(sched_setaffinity(0, sizeof(set), &set), "sched_setaffinity");
}

static int
raw(uint32_t n)
{
	static double t[SAMPLES];
	static char buf[PAGE];
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int listening = must(socket(AF_INET, SOCK_STREAM, 0), "socket"), fd, one = 1;
	socklen_t len = sizeof(a);

	must(bind(listening, (void *)&a, sizeof(a)), "bind");
	must(listen(listening, 1), "listen");
	must(getsockname(listening, (void *)&a, &len), "getsockname");
	if (must(fork(), "fork") == 0) {
		on_processor(1);
		fd = must(accept(listening, NULL, NULL), "accept");
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		while (read_all(fd, buf, REQUEST) && write(fd, buf, PAGE) == PAGE)
			;
		_exit(0);
	}
	on_processor(0);
	fd = must(socket(AF_INET, SOCK_STREAM, 0), "socket");
	must(connect(fd, (void *)&a, sizeof(a)), "connect");
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	for (uint32_t i = 0; i < n; i++) {
		double at = now();

		if (write(fd, buf, REQUEST) != REQUEST || !read_all(fd, buf, PAGE))
			die("round trip");
		t[i] = (now() - at) * 1e6;
	}
	close(fd);
	wait(NULL);
	printf("%.3f\n", median(t, n));
	return 0;
}

static int
able(void)
{
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_EVENT_FORK};
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);

	if (fd >= 0 && ioctl(fd, UFFDIO_API, &api) == 0)
		return 0;
	printf("userfaultfd: %s\n", strerror(errno));
	return 1;
}

static uint32_t
number(const char *text)
{
	unsigned long n = strtoul(text, NULL, 10);

	return n > SAMPLES ? SAMPLES : (uint32_t)n;
}

int
main(int argc, char **argv)
{
	volatile struct board *b = argc >= 3 && strcmp(argv[1], "hold") != 0 && strcmp(argv[1], "raw") != 0 ? open_board(argv[2]) : NULL;

	if (argc == 5 && strcmp(argv[1], "hold") == 0)
		hold(strtoul(argv[2], NULL, 10), argv[3], argv[4]);
	if (argc == 3 && strcmp(argv[1], "look") == 0) {
		b->looking = 0;
		b->command = LOOK;
		wait_until(&b->looking);
		return 0;
	}
	if (argc >= 5 && strcmp(argv[1], "start") == 0)
		return start(b, argv[3], argv + 4);
	if (argc == 4 && strcmp(argv[1], "touch") == 0) {
		int status = ask(b, TOUCH, number(argv[3]));

		printf("%u\t%.3f\n", b->count, median((double *)b->sample, b->count));
		return status;
	}
	if (argc == 4 && strcmp(argv[1], "walk") == 0) {
		int status = ask(b, WALK, (uint32_t)strtoul(argv[3], NULL, 10));

		printf("%.6f\n", b->seconds);
		return status;
	}
	if (argc == 3 && strcmp(argv[1], "raw") == 0)
		return raw(number(argv[2]));
	if (argc == 2 && strcmp(argv[1], "able") == 0)
		return able();
	fputs("usage: lazy hold MIB KIND BOARD | look BOARD | start BOARD OUT COMMAND... |\n"
	      "            touch BOARD N | walk BOARD N | raw N | able\n", stderr);
	return 2;
}
