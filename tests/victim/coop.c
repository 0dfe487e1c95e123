/*
 * A program with pms_main(): threads that compute, lock, allocate, sleep, and check what they have; a timer interrupts all of it. Its arguments:
 *
 *   threads=N       that compute (2)
 *   blocked         one more, which blocks every signal
 *   busy            the first thread is between pms_disable() and pms_enable() until the file `enable` is there
 *   callbacks       says "before", "after 0" and "after 1"
 *   seccomp         ptrace(2), process_vm_readv(2) and what else looks into others: EPERM from here on
 *   save=FILE       calls pms_checkpoint() once, and says what it returned
 *   fork            a child that computes, too, and is waited for
 *
 * It says "ready"; with SIGUSR2 "ok N", or "differs N"; and ends when the file `stop` is there, with status 3 if all was right.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <pms.h>

enum { THREADS_MAX = 64 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic int wrong, ended, checks;
static _Atomic long rounds[THREADS_MAX];
static volatile sig_atomic_t alarms;

static void
on_alarm(int sig)
{
	(void)sig;
	alarms++;
}

static double
step(double x)
{
	return x * 3.9 * (1.0 - x);
}

/* Vector registers, the heap, errno, a lock and a wait with a timeout. */
static void *
compute(void *arg)
{
	long id = (long)arg;
	double a[8], b[8];

	for (int i = 0; i < 8; i++)
		a[i] = b[i] = 0.1 + 0.01 * (double)(id + i);
	while (!ended) {
		unsigned char *p;
		size_t n = 1000 + (size_t)(rounds[id] * 7919 % 50000);
		struct timespec ts = {0, 200000};

		errno = 1234;
		for (int k = 0; k < 2000; k++)
			for (int i = 0; i < 8; i++)
				a[i] = step(a[i]);
		for (int k = 0; k < 2000; k++)
			for (int i = 0; i < 8; i++)
				b[i] = step(b[i]);
		if (memcmp(a, b, sizeof(a)) != 0 || errno != 1234)
			wrong++;
		p = malloc(n);
		memset(p, (int)id, n);
		for (size_t i = 0; i < n; i++)
			if (p[i] != (unsigned char)id)
				wrong++;
		free(p);
		pthread_mutex_lock(&lock);
		rounds[id]++;
		pthread_mutex_unlock(&lock);
		if (rounds[id] % 8 == 0 && nanosleep(&ts, NULL) < 0 && errno != EINTR)
			wrong++;
	}
	return NULL;
}

static void *
blocked(void *arg)
{
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, NULL);
	while (!ended)
		usleep(10000);
	return arg;
}

static void
put(const char *text)
{
	if (write(1, text, strlen(text)) < 0)
		wrong++;
}

static void
before(void *ctx)
{
	(void)ctx;
	put("before\n");
}

static void
after(void *ctx, int restored)
{
	(void)ctx;
	put(restored ? "after 1\n" : "after 0\n");
}

/* As containers have it. */
static void
forbid(void)
{
	static const int denied[] = {SYS_ptrace, SYS_process_vm_readv, SYS_process_vm_writev, SYS_pidfd_getfd, SYS_kcmp};
	struct sock_filter f[2 + 2 * sizeof(denied) / sizeof(denied[0])];
	struct sock_fprog prog = {0, f};

	f[prog.len++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
	for (size_t i = 0; i < sizeof(denied) / sizeof(denied[0]); i++) {
		f[prog.len++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, denied[i], 0, 1);
		f[prog.len++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM);
	}
	f[prog.len++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) < 0)
		exit(70);
}

static void
save(const char *path)
{
	char text[64];
	int r = pms_checkpoint(path);

	snprintf(text, sizeof(text), "saved %d%s%s\n", r, r < 0 ? " " : "", r < 0 ? strerror(errno) : "");
	put(text);
}

/* What it is told from outside. */
static void
wait_for_orders(FILE *log)
{
	sigset_t check;
	char text[64];

	sigemptyset(&check);
	sigaddset(&check, SIGUSR2);
	while (access("stop", F_OK) < 0) {
		struct timespec ts = {0, 50000000};
		int sig = sigtimedwait(&check, NULL, &ts);

		if (sig != SIGUSR2)
			continue;
		fprintf(log, "check %d\n", ++checks);
		fflush(log);
		snprintf(text, sizeof(text), "%s %d\n", wrong ? "differs" : "ok", (int)checks);
		put(text);
	}
}

int
pms_main(int argc, char **argv)
{
	int threads = 2, status = 3;
	pthread_t t[THREADS_MAX];
	struct sigaction sa = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
	struct itimerval it = {{0, 3000}, {0, 3000}};
	pid_t child = 0;
	sigset_t check;
	FILE *log;
	const char *file = NULL;
	bool is_child = false;

	sigemptyset(&check);
	sigaddset(&check, SIGUSR2);
	pthread_sigmask(SIG_BLOCK, &check, NULL);
	for (int i = 1; i < argc; i++) {
		if (strncmp(argv[i], "threads=", 8) == 0)
			threads = atoi(argv[i] + 8);
		else if (strncmp(argv[i], "save=", 5) == 0)
			file = argv[i] + 5;
		else if (strcmp(argv[i], "callbacks") == 0)
			pms_callbacks(before, after, NULL);
		else if (strcmp(argv[i], "seccomp") == 0)
			forbid();
		else if (strcmp(argv[i], "busy") == 0)
			pms_disable();
	}
	log = pms_fopen("coop.log", "a");
	if (log == NULL)
		return 73;
	for (int i = 1; i < argc; i++)
		if (strcmp(argv[i], "fork") == 0 && (child = fork()) == 0) {
			is_child = true;
			threads = 1;
			break;
		}
	sigaction(SIGALRM, &sa, NULL);
	setitimer(ITIMER_REAL, &it, NULL);
	for (int i = 0; i < threads; i++)
		pthread_create(&t[i], NULL, compute, (void *)(long)i);
	for (int i = 1; i < argc; i++)
		if (strcmp(argv[i], "blocked") == 0)
			pthread_create(&t[threads++], NULL, blocked, NULL);
	if (!is_child)
		put("ready\n");
	for (int i = 1; i < argc; i++)
		if (strcmp(argv[i], "busy") == 0) {
			while (access("enable", F_OK) < 0)
				usleep(1000);
			pms_enable();
		}
	if (file != NULL)
		save(file);
	wait_for_orders(log);
	ended = 1;
	for (int i = 0; i < threads; i++)
		pthread_join(t[i], NULL);
	if (child > 0 && (waitpid(child, &status, 0) != child || WEXITSTATUS(status) != 3))
		wrong++;
	if (alarms == 0 || pms_fclose(log) != 0)
		wrong++;
	return wrong ? 1 : 3;
}
