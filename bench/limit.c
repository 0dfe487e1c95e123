/*
 * limit: what this machine itself needs to copy memory, as the measure for ckpt and restart.
 *
 *   limit hold MIB KIND       hold MIB MiB (random, text: 3:1 compressible, zero); "ready", then wait
 *                             with KIND-huge in huge pages; SIGUSR1: fork(2), and how long that took goes to stdout
 *   limit gap MIB KIND        the same, and look at the clock all the time: how long it could not goes to stdout, if that was some milliseconds
 *   limit threads N           as many that do nothing; "ready"
 *   limit write MIB PERCENT   hold MIB MiB, and write all over that part of them all the time
 *   limit save PID FILE       copy the largest mapping of PID by process_vm_readv(2) and write(2)
 *   limit load FILE           mmap(2) memory of that size and read(2) FILE into it
 *   limit warm MIB            touch that much memory, and free it
 *   limit time OUT COMMAND...    run COMMAND, its stdout to OUT
 *   save, load and time print seconds.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PIECE = 1 << 20 };

static double
now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void
die(const char *what)
{
	fprintf(stderr, "limit: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t
next(uint64_t *s)
{
	*s ^= *s << 13;
	*s ^= *s >> 7;
	*s ^= *s << 17;
	return *s;
}

static volatile sig_atomic_t asked;

static void
ask(int sig)
{
	asked = sig;
}

/* A bare fork(2), of a child that ends at once. */
static void
time_fork(void)
{
	double before = now(), took;
	pid_t pid = fork();

	if (pid == 0)
		_exit(0);
	took = now() - before;
	waitpid(pid, NULL, 0);
	printf("fork %.6f\n", took);
	fflush(stdout);
}

static uint64_t *
fill(size_t mib, const char *kind, bool huge)
{
	size_t len = mib << 20, room = len + (2 << 20), n = strcspn(kind, "-");
	uint64_t seed = 88172645463325252ULL;
	char *all = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t *p = (uint64_t *)(((uintptr_t)all + (2 << 20) - 1) & -(uintptr_t)(2 << 20));

	if (all == MAP_FAILED)
		die("mmap");
	madvise(all, room, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE); /* 4 KiB pages: the harder case, and the same each time */
	for (size_t i = 0; i < len / 8; i++)
		p[i] = strncmp(kind, "random", n) == 0 ? next(&seed)
		    : strncmp(kind, "zero", n) == 0    ? 0
		    : i % 3 == 0		       ? next(&seed)
						       : 0x2020202020202020ULL;
	return p;
}

static void
hold(size_t mib, const char *kind)
{
	struct sigaction sa = {.sa_handler = ask};

	fill(mib, kind, strstr(kind, "-huge") != NULL);
	sigaction(SIGUSR1, &sa, NULL);
	puts("ready");
	fflush(stdout);
	for (;;) {
		pause();
		if (asked)
			time_fork();
		asked = 0;
	}
}

enum { SOME_US = 3000, LOOK_NS = 50000 };

/* The clock of the day, which goes on while a program stands still, and is the same on the other side. */
static void
gap(size_t mib, const char *kind)
{
	struct timespec before, after, pause = {0, LOOK_NS};

	fill(mib, kind, strstr(kind, "-huge") != NULL);
	puts("ready");
	fflush(stdout);
	for (clock_gettime(CLOCK_REALTIME, &before);; before = after) {
		double us;

		nanosleep(&pause, NULL);
		clock_gettime(CLOCK_REALTIME, &after);
		us = (double)(after.tv_sec - before.tv_sec) * 1e6 + (double)(after.tv_nsec - before.tv_nsec) / 1e3;
		if (us > SOME_US) {
			printf("gap %.3f\n", us / 1e3);
			fflush(stdout);
			clock_gettime(CLOCK_REALTIME, &after);
		}
	}
}

static void
write_all_over(size_t mib, unsigned percent)
{
	volatile uint64_t *p = fill(mib, "text", false);
	size_t pages = mib * 256 * percent / 100;
	uint64_t seed = 88172645463325252ULL;

	puts("ready");
	fflush(stdout);
	for (;;)
		p[next(&seed) % (pages > 0 ? pages : 1) * 512]++;
}

static int
save(int pid, const char *file)
{
	char path[64], line[512];
	unsigned long long start, end, best = 0, best_len = 0;
	char *buf = malloc(PIECE);
	double begun;
	FILE *maps;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/maps", pid);
	maps = fopen(path, "r");
	while (maps != NULL && fgets(line, sizeof(line), maps) != NULL)
		if (sscanf(line, "%llx-%llx rw", &start, &end) == 2 && end - start > best_len) {
			best = start;
			best_len = end - start;
		}
	if (maps == NULL || buf == NULL)
		die(path);
	fclose(maps);
	unlink(file);
	begun = now();
	fd = open(file, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	for (unsigned long long at = 0; at < best_len; at += PIECE) {
		struct iovec local = {buf, PIECE}, remote = {(void *)(uintptr_t)(best + at), PIECE};

		if (process_vm_readv(pid, &local, 1, &remote, 1, 0) != PIECE)
			die("process_vm_readv");
		if (write(fd, buf, PIECE) != PIECE)
			die(file);
	}
	close(fd);
	printf("%.4f\n", now() - begun);
	return 0;
}

static int
load(const char *file)
{
	int fd = open(file, O_RDONLY);
	struct stat st;
	double begun = now();
	char *p;

	if (fd < 0 || fstat(fd, &st) < 0)
		die(file);
	p = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		die("mmap");
	madvise(p, (size_t)st.st_size, MADV_NOHUGEPAGE);
	for (off_t at = 0; at < st.st_size;) {
		ssize_t n = read(fd, p + at, PIECE);

		if (n <= 0)
			die(file);
		at += n;
	}
	printf("%.4f\n", now() - begun);
	return 0;
}

static int
warm(size_t mib)
{
	size_t len = mib << 20;
	char *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		die("mmap");
	for (size_t at = 0; at < len; at += 4096)
		p[at] = 1;
	return 0;
}

static int
time_command(const char *out, char **argv)
{
	double begun = now();
	pid_t pid = fork();
	int status;

	if (pid == 0) {
		int fd = open(out, O_WRONLY | O_CREAT | O_TRUNC, 0600);

		dup2(fd, STDOUT_FILENO);
		execvp(argv[0], argv);
		_exit(127);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		die(argv[0]);
	printf("%.4f\n", now() - begun);
	return status != 0;
}

static void *
sleeper(void *arg)
{
	for (;;)
		pause();
	return arg;
}

static void
threads(unsigned n)
{
	pthread_t t;

	while (n-- > 1)
		if (pthread_create(&t, NULL, sleeper, NULL) != 0)
			die("thread");
	puts("ready");
	fflush(stdout);
	sleeper(NULL);
}

int
main(int argc, char **argv)
{
	if (argc == 3 && strcmp(argv[1], "threads") == 0)
		threads((unsigned)strtoul(argv[2], NULL, 10));
	if (argc == 4 && strcmp(argv[1], "hold") == 0)
		hold(strtoul(argv[2], NULL, 10), argv[3]);
	if (argc == 4 && strcmp(argv[1], "gap") == 0)
		gap(strtoul(argv[2], NULL, 10), argv[3]);
	if (argc == 4 && strcmp(argv[1], "write") == 0)
		write_all_over(strtoul(argv[2], NULL, 10), (unsigned)strtoul(argv[3], NULL, 10));
	if (argc == 4 && strcmp(argv[1], "save") == 0)
		return save(atoi(argv[2]), argv[3]);
	if (argc == 3 && strcmp(argv[1], "load") == 0)
		return load(argv[2]);
	if (argc == 3 && strcmp(argv[1], "warm") == 0)
		return warm(strtoul(argv[2], NULL, 10));
	if (argc >= 4 && strcmp(argv[1], "time") == 0)
		return time_command(argv[2], argv + 3);
	fputs("usage: limit threads N | hold MIB KIND | gap MIB KIND | write MIB PERCENT | save PID FILE | load FILE | warm MIB | time OUT COMMAND...\n", stderr);
	return 2;
}
