/* Children and their children: who they are, how they ended, what they share. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "victim.h"

/* What a child says of itself when it is asked. */
struct facts {
	pid_t pid, ppid, pgid, sid;
	uint64_t sum;
};

static struct child {
	pid_t pid;
	int ask[2], answer[2];
	struct facts was;
} kids[16];
static int nkids;

static uint64_t
no_sum(void)
{
	return 0;
}

static struct facts
facts_now(uint64_t (*sum)(void))
{
	return (struct facts){getpid(), getppid(), getpgid(0), getsid(0), sum()};
}

static void
serve(const struct child *k, uint64_t (*sum)(void))
{
	char c;

	close(k->ask[1]);
	while (read(k->ask[0], &c, 1) == 1) {
		struct facts f = facts_now(sum);

		if (write(k->answer[1], &f, sizeof(f)) != sizeof(f))
			_exit(4);
	}
	_exit(0);
}

static struct child *
new_child(void)
{
	struct child *k = &kids[nkids++];

	if (pipe(k->ask) < 0 || pipe(k->answer) < 0)
		die("pipe");
	return k;
}

static struct facts
ask(const struct child *k)
{
	struct facts f = {0};

	if (write(k->ask[1], "?", 1) != 1 || read(k->answer[0], &f, sizeof(f)) != sizeof(f))
		differs("a child does not answer");
	return f;
}

/* A child that prepares itself and then serves. */
static struct child *
child(void (*prepare)(void), uint64_t (*sum)(void))
{
	struct child *k = new_child();

	k->pid = fork();
	if (k->pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (struct child *o = kids; o < k; o++)
			close(o->ask[1]);
		if (prepare != NULL)
			prepare();
		serve(k, sum);
	}
	k->was = ask(k);
	return k;
}

static void
check_kids(void)
{
	for (int i = 0; i < nkids; i++) {
		struct facts f = ask(&kids[i]);

		SAME(f.pid, kids[i].was.pid);
		SAME(f.ppid, kids[i].was.ppid);
		SAME(f.pgid, kids[i].was.pgid);
		SAME(f.sid, kids[i].was.sid);
		SAME(f.sum, kids[i].was.sum);
	}
}

/* --- groups and sessions */

static void
own_group(void)
{
	setpgid(0, 0);
}

static void
own_session(void)
{
	setsid();
}

static struct child *inner, *inner_late;

/* A child of the older session, then a session of its own, then a child of that one. */
static void
two_sessions(void)
{
	if (fork() == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		serve(inner, no_sum);
	}
	setsid();
	if (fork() == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		serve(inner_late, no_sum);
	}
}

static void
children_make(void)
{
	child(NULL, no_sum);
	child(own_group, no_sum);
	child(own_session, no_sum);
	inner = new_child();
	inner_late = new_child();
	child(two_sessions, no_sum);
	inner->was = ask(inner);
	inner_late->was = ask(inner_late);
}

static struct child *left_behind;

/* A session and a group whose leaders are dead; the one left behind is ours, as the nearest subreaper. */
static void
leave_orphan(void)
{
	setsid();
	if (fork() == 0)
		serve(left_behind, no_sum);
	_exit(0);
}

static void
orphan_make(void)
{
	pid_t pid;
	int leader;

	prctl(PR_SET_CHILD_SUBREAPER, 1);
	left_behind = new_child();
	pid = fork();
	if (pid == 0)
		leave_orphan();
	waitpid(pid, NULL, 0);
	left_behind->was = ask(left_behind);
	/* A group of a live session. */
	leader = fork();
	if (leader == 0) {
		setpgid(0, 0);
		_exit(0);
	}
	setpgid(leader, leader);
	struct child *k = child(NULL, no_sum);
	setpgid(k->pid, leader);
	waitpid(leader, NULL, 0);
	k->was = ask(k);
	SAME(k->was.pgid, leader);
	SAME(left_behind->was.ppid, getpid());
	SAME(left_behind->was.sid, pid);
}

/* --- those that have ended */

static pid_t ended[4];
static volatile sig_atomic_t told;

static void
on_child(int sig)
{
	(void)sig;
	told++;
}

static void
check_ended(int i, int code, int status)
{
	siginfo_t si = {0};

	if (waitid(P_PID, (id_t)ended[i], &si, WEXITED | WNOWAIT | WNOHANG) < 0)
		differs("zombie %d: %s", i, strerror(errno));
	SAME(si.si_pid, ended[i]);
	SAME(si.si_code, code);
	SAME(si.si_status, status);
}

static void
zombie_check(void)
{
	check_ended(0, CLD_EXITED, 200);
	check_ended(1, CLD_KILLED, SIGKILL);
	check_ended(2, CLD_KILLED, SIGSEGV);
	check_ended(3, CLD_EXITED, 0);
	SAME(told, 4);
}

static void
zombie_make(void)
{
	struct sigaction sa = {.sa_handler = on_child, .sa_flags = SA_RESTART};

	sigaction(SIGCHLD, &sa, NULL);
	for (int i = 0; i < 4; i++) {
		siginfo_t si;

		ended[i] = fork();
		if (ended[i] == 0) {
			prctl(PR_SET_DUMPABLE, 0);
			signal(SIGSEGV, SIG_DFL);
			if (i == 3)
				setsid();
			if (i == 1 || i == 2)
				raise(i == 1 ? SIGKILL : SIGSEGV);
			_exit(i == 0 ? 200 : 0);
		}
		while (waitid(P_PID, (id_t)ended[i], &si, WEXITED | WNOWAIT) < 0 && errno == EINTR)
			;
		while (told <= i)
			usleep(1000);
	}
	zombie_check();
}

static pid_t stopped;

static void
stopped_check(void)
{
	siginfo_t si = {0};

	if (waitid(P_PID, (id_t)stopped, &si, WSTOPPED | WNOWAIT | WNOHANG) < 0)
		differs("stopped child: %s", strerror(errno));
	SAME(si.si_pid, stopped);
	SAME(si.si_status, SIGSTOP);
}

static void
stopped_make(void)
{
	siginfo_t si;

	stopped = fork();
	if (stopped == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			raise(SIGSTOP);
	}
	waitid(P_PID, (id_t)stopped, &si, WSTOPPED | WNOWAIT);
}

/* --- memory by fork */

enum { PAGE = 4096, PAGES = 8192 };
static unsigned char *big;

static uint64_t
big_sum(void)
{
	uint64_t sum = 1469598103934665603ULL;

	for (size_t i = 0; i < (size_t)PAGES * PAGE; i += 64)
		sum = (sum ^ big[i]) * 1099511628211ULL;
	return sum;
}

static void
change_some(void)
{
	for (size_t i = 0; i < PAGES; i += 100)
		big[i * PAGE] ^= 0xff;
	madvise(big + 1000 * PAGE, 50 * PAGE, MADV_DONTNEED);
	/* Within 2000 pages of the parent's, another mapping. */
	if (mmap(big + 2000 * PAGE, 10 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
		-1, 0) == MAP_FAILED)
		die("mmap");
	big[2005 * PAGE] = 7;
}

/* How much of it only this process has, in KiB. */
static long
private_kib(void)
{
	FILE *f = fopen("/proc/self/smaps", "r");
	char line[512];
	unsigned long start, end;
	long kib = 0, n;
	bool in = false;

	while (f != NULL && fgets(line, sizeof(line), f) != NULL) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			in = start >= (unsigned long)big && end <= (unsigned long)big + (unsigned long)PAGES * PAGE;
		else if (in && sscanf(line, "Private_Dirty: %ld", &n) == 1)
			kib += n;
	}
	if (f != NULL)
		fclose(f);
	return kib;
}

static uint64_t
shared_sum(void)
{
	/* Most pages are still the parent's: a tenth of them at most is its own. */
	if (private_kib() > (long)PAGES * PAGE / 1024 / 10)
		return 0;
	return big_sum();
}

static void
forked_make(void)
{
	uint64_t seed = 88172645463325252ULL;

	big = mmap(NULL, (size_t)PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (big == MAP_FAILED)
		die("mmap");
	madvise(big, (size_t)PAGES * PAGE, MADV_NOHUGEPAGE);
	for (size_t i = 0; i < (size_t)PAGES * PAGE; i += 8) {
		seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
		memcpy(big + i, &seed, 8);
	}
	child(NULL, shared_sum);
	child(change_some, big_sum);
}

static int *counter;

static uint64_t
count(void)
{
	counter[0]++;
	return 0;
}

static void
shared_make(void)
{
	counter = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (counter == MAP_FAILED)
		die("mmap");
	counter[PAGE / sizeof(int)] = 0;
	child(NULL, count);
	child(NULL, count);
	counter[PAGE / sizeof(int)] = counter[0];
}

static void
shared_check(void)
{
	int before = counter[0];

	check_kids();
	SAME(counter[0], before + 2);
}

/* --- threads in a child */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t turns[3];

static void *
turn(void *arg)
{
	for (;;) {
		pthread_mutex_lock(&lock);
		++*(uint64_t *)arg;
		pthread_mutex_unlock(&lock);
		usleep(1000);
	}
	return NULL;
}

static void
start_threads(void)
{
	pthread_t t;

	for (int i = 0; i < 3; i++)
		if (pthread_create(&t, NULL, turn, &turns[i]) != 0)
			die("pthread_create");
}

/* All of them go on. */
static uint64_t
turns_taken(void)
{
	uint64_t was[3];

	pthread_mutex_lock(&lock);
	memcpy(was, turns, sizeof(was));
	pthread_mutex_unlock(&lock);
	for (int i = 0; i < 3; i++)
		for (bool moved = false; !moved; usleep(1000)) {
			pthread_mutex_lock(&lock);
			moved = turns[i] > was[i];
			pthread_mutex_unlock(&lock);
		}
	return 1;
}

static void
threads_make(void)
{
	child(start_threads, turns_taken);
}

/* --- a child with the table of open files, and another with the directory, of its parent */

static int table_ask[2], table_answer[2], dir_ask[2], dir_answer[2];

static void
until_told(int from, int to, void (*act)(void))
{
	char c;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	while (read(from, &c, 1) == 1) {
		act();
		if (write(to, "!", 1) != 1)
			break;
	}
	_exit(0);
}

static void
open_one(void)
{
	must(fcntl(table_ask[0], F_DUPFD, 500), "dup");
}

static void
go_elsewhere(void)
{
	must(chdir("elsewhere"), "chdir");
}

static void
tell(const int ask[2], const int answer[2])
{
	char c;

	SAME(write(ask[1], "?", 1), 1);
	SAME(read(answer[0], &c, 1), 1);
}

static void
table_make(void)
{
	if (pipe(table_ask) < 0 || pipe(table_answer) < 0 || pipe(dir_ask) < 0 || pipe(dir_answer) < 0)
		die("pipe");
	must(mkdir("elsewhere", 0700), "mkdir");
	if (must((int)syscall(SYS_clone, CLONE_FILES | CLONE_FS | SIGCHLD, 0, 0, 0, 0), "clone") == 0)
		until_told(table_ask[0], table_answer[1], open_one);
	if (must((int)syscall(SYS_clone, CLONE_FS | SIGCHLD, 0, 0, 0, 0), "clone") == 0)
		until_told(dir_ask[0], dir_answer[1], go_elsewhere);
}

static void
table_check(void)
{
	char cwd[4096];

	SAME(fcntl(500, F_GETFD), -1);
	tell(table_ask, table_answer);
	SAME(fcntl(500, F_GETFD), 0);
	close(500);
	tell(dir_ask, dir_answer);
	SAME(getcwd(cwd, sizeof(cwd)) != NULL && strstr(cwd, "/elsewhere") != NULL, 1);
	must(chdir(".."), "chdir");
}

const struct maker tree_makers[] = {
    {"children", children_make, check_kids}, {"orphan", orphan_make, check_kids},
    {"zombie", zombie_make, zombie_check}, {"stopped-child", stopped_make, stopped_check},
    {"forked", forked_make, check_kids}, {"shared-by-fork", shared_make, shared_check},
    {"threads-in-child", threads_make, check_kids},
    {"shared-table", table_make, table_check}, {0},
};
