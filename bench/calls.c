/*
 * System calls and round trips, each timed by itself, medians in microseconds:
 *   calls table DIR    open, close, mkdir, rmdir, symlink, flock in a directory five deep; getppid, of which a thousand are timed at once
 *   calls watched DIR  the same, with the filter of a process that shares itself with other machines: calls about memory, threads and handlers are caught
 *   calls read FILE    read of 4 KiB to 1 MiB
 *   calls raw          what a TCP connection over the loopback device between two processors needs for as many bytes: a call's, and those of each read
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { TIMES = 400, REQUEST = 96, REPLY = 24, OVERHEAD = 32, LARGEST = 1 << 20 };

static char buffer[LARGEST + OVERHEAD];

static double
now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static int
compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static void
tell(const char *name, double *times, size_t n)
{
	qsort(times, n, sizeof(*times), compare);
	printf("%s\t%.3f\n", name, times[n / 2]);
}

static int
must(int result)
{
	if (result < 0) {
		perror("calls");
		exit(1);
	}
	return result;
}

static int
table(const char *top)
{
	static const char *const names[] = {"open", "close", "mkdir", "rmdir", "symlink", "flock"};
	static double t[6][TIMES], none[21];
	char file[4096], dir[4096], link[4096];
	int lock;

	snprintf(file, sizeof(file), "%s/1/2/3/4/5/file", top);
	snprintf(dir, sizeof(dir), "%s/1/2/3/4/5/dir", top);
	snprintf(link, sizeof(link), "%s/1/2/3/4/5/link", top);
	lock = must(open(file, O_RDWR | O_CREAT, 0600));
	for (int i = 0; i < TIMES; i++) {
		double at[7];
		int fd;

		at[0] = now_us();
		fd = must(open(file, O_RDONLY));
		at[1] = now_us();
		must(close(fd));
		at[2] = now_us();
		must(mkdir(dir, 0700));
		at[3] = now_us();
		must(rmdir(dir));
		at[4] = now_us();
		must(symlink("file", link));
		at[5] = now_us();
		must(flock(lock, i % 2 == 0 ? LOCK_EX : LOCK_UN));
		at[6] = now_us();
		must(unlink(link));
		for (int k = 0; k < 6; k++)
			t[k][i] = at[k + 1] - at[k];
	}
	for (int k = 0; k < 6; k++)
		tell(names[k], t[k], TIMES);
	for (int i = 0; i < 21; i++) {
		double at = now_us();

		for (int k = 0; k < 1000; k++)
			syscall(SYS_getppid);
		none[i] = (now_us() - at) / 1000;
	}
	tell("getppid", none, 21);
	return 0;
}

/* None of these is made below: memory that is needed there is had before. */
static void
watch(void)
{
	static const int caught[] = {SYS_mmap, SYS_mprotect, SYS_munmap, SYS_brk, SYS_mremap, SYS_madvise, SYS_msync, SYS_mlock, SYS_clone, SYS_fork,
	    SYS_vfork, SYS_clone3, SYS_execve, SYS_execveat, SYS_rt_sigaction, SYS_rseq, SYS_membarrier, SYS_prctl, SYS_arch_prctl};
	enum { N = sizeof(caught) / sizeof(caught[0]) };
	static char out[4096];
	void *volatile memory;
	struct sock_filter code[2 * N + 2];
	struct sock_fprog program = {2 * N + 2, code};

	code[0] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
	for (int i = 0; i < N; i++) {
		code[2 * i + 1] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)caught[i], 0, 1);
		code[2 * i + 2] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF);
	}
	code[2 * N + 1] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	setvbuf(stdout, out, _IOFBF, sizeof(out));
	memory = malloc(64 << 10);
	free((void *)memory);
	must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	must((int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program));
}

static int
reads(const char *path)
{
	static double t[TIMES];
	int fd = must(open(path, O_RDONLY));

	for (size_t size = 4096; size <= LARGEST; size *= 4) {
		char name[32];

		for (int i = 0; i < TIMES; i++) {
			double at = now_us();

			if (pread(fd, buffer, size, 0) != (ssize_t)size)
				return 1;
			t[i] = now_us() - at;
		}
		snprintf(name, sizeof(name), "read_%zu", size);
		tell(name, t, TIMES);
	}
	return 0;
}

static void
read_all(int fd, size_t n)
{
	while (n > 0) {
		ssize_t got = read(fd, buffer, n);

		if (got <= 0)
			exit(0);
		n -= (size_t)got;
	}
}

static void
write_all(int fd, const char *data, size_t n)
{
	while (n > 0) {
		ssize_t done = write(fd, data, n);

		if (done <= 0)
			exit(0);
		data += done;
		n -= (size_t)done;
	}
}

static void
trips(int fd, const char *name, uint32_t reply)
{
	static double t[TIMES];
	char request[REQUEST] = "";

	memcpy(request, &reply, sizeof(reply));
	for (int i = 0; i < TIMES; i++) {
		double at = now_us();

		write_all(fd, request, sizeof(request));
		read_all(fd, reply);
		t[i] = now_us() - at;
	}
	tell(name, t, TIMES);
}

static void
on_processor(int n)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(n, &set);
	must(sched_setaffinity(0, sizeof(set), &set));
}

static int
raw(void)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int listening = must(socket(AF_INET, SOCK_STREAM, 0)), fd, one = 1;
	socklen_t len = sizeof(a);

	must(bind(listening, (void *)&a, sizeof(a)));
	must(listen(listening, 1));
	must(getsockname(listening, (void *)&a, &len));
	if (must(fork()) == 0) {
		on_processor(1);
		fd = must(accept(listening, NULL, NULL));
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		for (;;) {
			uint32_t reply;

			read_all(fd, REQUEST);
			memcpy(&reply, buffer, sizeof(reply));
			write_all(fd, buffer, reply);
		}
	}
	on_processor(0);
	fd = must(socket(AF_INET, SOCK_STREAM, 0));
	must(connect(fd, (void *)&a, sizeof(a)));
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	trips(fd, "call", REPLY);
	for (uint32_t size = 4096; size <= LARGEST; size *= 4) {
		char name[32];

		snprintf(name, sizeof(name), "read_%u", size);
		trips(fd, name, size + OVERHEAD);
	}
	return 0;
}

int
main(int argc, char **argv)
{
	if (argc == 3 && strcmp(argv[1], "table") == 0)
		return table(argv[2]);
	if (argc == 3 && strcmp(argv[1], "watched") == 0) {
		watch();
		return table(argv[2]);
	}
	if (argc == 3 && strcmp(argv[1], "read") == 0)
		return reads(argv[2]);
	if (argc == 2 && strcmp(argv[1], "raw") == 0)
		return raw();
	fprintf(stderr, "usage: calls table DIR | watched DIR | read FILE | raw\n");
	return 64;
}
