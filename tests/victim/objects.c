/* Kernel objects behind fds. */
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "victim.h"

/* fd is ready for reading, at once. */
static int
readable(int fd)
{
	struct pollfd p = {fd, POLLIN, 0};

	return poll(&p, 1, 0) > 0 && (p.revents & POLLIN);
}

/* --- eventfd, timerfd, signalfd */

static int counter, semaphore;

static void
eventfd_make(void)
{
	counter = must(eventfd(0, EFD_NONBLOCK), "eventfd");
	semaphore = must(eventfd(3, EFD_SEMAPHORE | EFD_CLOEXEC), "eventfd");
	eventfd_write(counter, 0x123456789abcULL);
}

static void
eventfd_check(void)
{
	eventfd_t v = 0;

	SAME(eventfd_read(counter, &v), 0);
	SAME(v, 0x123456789abcULL);
	SAME(eventfd_read(counter, &v), -1);
	eventfd_write(counter, 0x123456789abcULL);
	SAME(eventfd_read(semaphore, &v), 0);
	SAME(v, 1);
	eventfd_write(semaphore, 1);
	SAME(fcntl(semaphore, F_GETFD), FD_CLOEXEC);
	SAME(fcntl(counter, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
}

static int relative, absolute, expired;
static struct timespec due;

static void
timerfd_make(void)
{
	struct itimerspec v = {{100, 0}, {1000, 0}};

	relative = must(timerfd_create(CLOCK_MONOTONIC, 0), "timerfd");
	timerfd_settime(relative, 0, &v, NULL);
	absolute = must(timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK), "timerfd");
	clock_gettime(CLOCK_REALTIME, &due);
	due.tv_sec += 5000;
	due.tv_nsec = 999999999;
	v = (struct itimerspec){{0, 0}, due};
	timerfd_settime(absolute, TFD_TIMER_ABSTIME, &v, NULL);
	expired = must(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK), "timerfd");
	v = (struct itimerspec){{0, 0}, {0, 1}};
	timerfd_settime(expired, 0, &v, NULL);
	while (!readable(expired))
		;
}

static void
timerfd_check(void)
{
	struct itimerspec v;
	struct timespec now;
	double left;

	timerfd_gettime(relative, &v);
	if (v.it_value.tv_sec > 1000 || v.it_value.tv_sec < 900)
		differs("timerfd: %ld s left, not about 1000", (long)v.it_value.tv_sec);
	SAME(v.it_interval.tv_sec, 100);
	timerfd_gettime(absolute, &v);
	clock_gettime(CLOCK_REALTIME, &now);
	left = (double)(due.tv_sec - now.tv_sec) + (double)(due.tv_nsec - now.tv_nsec) / 1e9;
	left -= (double)v.it_value.tv_sec + (double)v.it_value.tv_nsec / 1e9;
	if (left > 0.2 || left < -0.2)
		differs("timerfd: due %f s off", left);
	SAME(readable(expired), 1);
	SAME(readable(relative), 0);
}

static int sigs;

static void
signalfd_make(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGRTMIN + 3);
	sigprocmask(SIG_BLOCK, &set, NULL);
	sigs = must(signalfd(-1, &set, SFD_NONBLOCK), "signalfd");
	sigqueue(getpid(), SIGRTMIN + 3, (union sigval){.sival_int = 42});
}

static void
signalfd_check(void)
{
	struct signalfd_siginfo si = {0};

	SAME(read(sigs, &si, sizeof(si)), sizeof(si));
	SAME(si.ssi_signo, SIGRTMIN + 3);
	SAME(si.ssi_int, 42);
	SAME(read(sigs, &si, sizeof(si)), -1);
	sigqueue(getpid(), SIGRTMIN + 3, (union sigval){.sival_int = 42});
}

/* --- epoll */

static int set, inner_set, ready, idle[2], once;

static void
add(int ep, int fd, uint32_t events, uint64_t data)
{
	struct epoll_event ev = {.events = events, .data.u64 = data};

	must(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev), "epoll_ctl");
}

static void
epoll_make(void)
{
	int other;
	struct epoll_event ev;

	set = must(epoll_create1(EPOLL_CLOEXEC), "epoll");
	inner_set = must(epoll_create1(0), "epoll");
	ready = must(eventfd(7, EFD_NONBLOCK), "eventfd");
	must(pipe(idle), "pipe");
	once = must(eventfd(1, EFD_NONBLOCK), "eventfd");
	add(set, ready, EPOLLIN, 0x1111222233334444ULL);
	add(set, idle[0], EPOLLIN | EPOLLET, 2);
	add(inner_set, ready, EPOLLIN, 5);
	add(set, inner_set, EPOLLIN, 3);
	/* By a number that is closed since; the object lives on under another. */
	other = must(fcntl(ready, F_DUPFD, 300), "dup");
	add(set, other, EPOLLIN, 4);
	close(other);
	/* Fired, and not armed again. */
	add(set, once, EPOLLIN | EPOLLONESHOT, 6);
	for (int i = 0; i < 8; i++)
		if (epoll_wait(set, &ev, 1, 0) == 1 && ev.data.u64 == 6)
			break;
}

static void
epoll_check(void)
{
	struct epoll_event ev[16];
	int n = epoll_wait(set, ev, 16, 0);
	uint64_t seen = 0;

	SAME(n, 3);
	for (int i = 0; i < n; i++)
		seen |= ev[i].data.u64 == 0x1111222233334444ULL ? 1 : 1ULL << ev[i].data.u64;
	SAME(seen, 1 | 1 << 3 | 1 << 4);
	if (write(idle[1], "x", 1) != 1)
		die("pipe");
	n = epoll_wait(set, ev, 16, 0);
	SAME(n, 4);
	n = epoll_wait(set, ev, 16, 0);
	SAME(n, 3); /* edge-triggered */
	if (read(idle[0], ev, 1) != 1)
		die("pipe");
	/* The kernel knows the item by its number. */
	ev[0] = (struct epoll_event){.events = EPOLLIN, .data.u64 = 0x1111222233334444ULL};
	SAME(epoll_ctl(set, EPOLL_CTL_MOD, ready, &ev[0]), 0);
	SAME(epoll_ctl(set, EPOLL_CTL_MOD, idle[1], &ev[0]), -1);
}

/* --- inotify, pidfd */

static int watch, wd_dir, wd_file;

static void
touch(const char *path)
{
	close(must(open(path, O_CREAT | O_WRONLY, 0600), path));
}

static void
inotify_make(void)
{
	mkdir("watched", 0700);
	touch("watched/file");
	watch = must(inotify_init1(IN_NONBLOCK), "inotify");
	inotify_rm_watch(watch, inotify_add_watch(watch, "watched", IN_CREATE));
	wd_dir = must(inotify_add_watch(watch, "watched", IN_CREATE | IN_DELETE), "inotify");
	wd_file = must(inotify_add_watch(watch, "watched/file", IN_MODIFY), "inotify");
	for (char buf[512]; read(watch, buf, sizeof(buf)) > 0;)
		;
}

static void
inotify_check(void)
{
	char buf[1024] __attribute__((aligned(8)));
	struct inotify_event *e = (void *)buf;

	SAME(read(watch, buf, sizeof(buf)), -1);
	touch("watched/new");
	unlink("watched/new");
	if (read(watch, buf, sizeof(buf)) <= 0)
		differs("inotify: no event");
	SAME(e->wd, wd_dir);
	SAME(e->mask, IN_CREATE);
	SAME(inotify_add_watch(watch, "watched/file", IN_MODIFY), wd_file);
}

static int own_handle, dead_handle;

static void
pidfd_make(void)
{
	pid_t pid = fork();

	if (pid == 0)
		_exit(0);
	own_handle = must((int)syscall(SYS_pidfd_open, getpid(), 0), "pidfd");
	dead_handle = must((int)syscall(SYS_pidfd_open, pid, 0), "pidfd");
	while (!readable(dead_handle))
		;
	syscall(SYS_wait4, pid, NULL, 0, NULL);
}

static void
pidfd_check(void)
{
	SAME(syscall(SYS_pidfd_send_signal, own_handle, 0, NULL, 0), 0);
	SAME(readable(own_handle), 0);
	SAME(syscall(SYS_pidfd_send_signal, dead_handle, 0, NULL, 0), -1);
	SAME(errno, ESRCH);
	SAME(fcntl(own_handle, F_GETFD), FD_CLOEXEC);
}

/* --- files without a name */

static int memory, sealed;
static char *window;

static void
memfd_make(void)
{
	memory = must(memfd_create("growing", MFD_ALLOW_SEALING), "memfd");
	must(ftruncate(memory, 5 << 20), "ftruncate");
	window = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 1 << 20);
	if (window == MAP_FAILED)
		die("mmap");
	strcpy(window + 5000, "through the mapping");
	must((int)pwrite(memory, "through the fd", 14, (3 << 20) + 1), "pwrite");
	must(fcntl(memory, F_ADD_SEALS, F_SEAL_GROW), "seal");
	lseek(memory, 4711, SEEK_SET);
	sealed = must(memfd_create("sealed", MFD_ALLOW_SEALING | MFD_CLOEXEC), "memfd");
	must((int)write(sealed, "for ever", 8), "write");
	must(fcntl(sealed, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL), "seal");
}

static void
memfd_check(void)
{
	char text[20] = "";
	struct stat st;

	fstat(memory, &st);
	SAME(st.st_size, 5 << 20);
	SAME(strcmp(window + 5000, "through the mapping"), 0);
	pread(memory, text, 19, (1 << 20) + 5000);
	SAME(memcmp(text, "through the mapping", 19), 0);
	pread(memory, text, 14, (3 << 20) + 1);
	SAME(memcmp(text, "through the fd", 14), 0);
	window[7]++;
	pread(memory, text, 1, (1 << 20) + 7);
	SAME(text[0], window[7]);
	SAME(fcntl(memory, F_GET_SEALS), F_SEAL_GROW);
	SAME(lseek(memory, 0, SEEK_CUR), 4711);
	SAME(fcntl(sealed, F_GET_SEALS), F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL);
	SAME(pwrite(sealed, "x", 1, 0), -1);
	memset(text, 0, sizeof(text));
	pread(sealed, text, 8, 0);
	SAME(strcmp(text, "for ever"), 0);
}

static int deleted, deleted_too, nameless;

static void
unnamed_make(void)
{
	deleted = must(open("deleted", O_RDWR | O_CREAT | O_APPEND, 0640), "deleted");
	must((int)write(deleted, "still here", 10), "write");
	must(ftruncate(deleted, 3LL << 30), "ftruncate");
	deleted_too = must(open("deleted", O_RDONLY), "deleted");
	unlink("deleted");
	nameless = must(open(".", O_TMPFILE | O_RDWR, 0600), "O_TMPFILE");
	must((int)write(nameless, "never had one", 13), "write");
}

static void
unnamed_check(void)
{
	char text[16] = "";
	struct stat st, too;

	fstat(deleted, &st);
	fstat(deleted_too, &too);
	SAME(st.st_size, 3LL << 30);
	SAME(st.st_ino, too.st_ino);
	SAME(st.st_nlink, 0);
	SAME(st.st_mode & 0777, 0640);
	if (st.st_blocks > 100000)
		differs("a sparse file has become %ld blocks", (long)st.st_blocks);
	pread(deleted_too, text, 10, 0);
	SAME(strcmp(text, "still here"), 0);
	SAME(fcntl(deleted, F_GETFL) & O_APPEND, O_APPEND);
	memset(text, 0, sizeof(text));
	pread(nameless, text, 13, 0);
	SAME(strcmp(text, "never had one"), 0);
	SAME(lseek(nameless, 0, SEEK_CUR), 13);
}

static int fifo_in, fifo_out;

static void
fifo_make(void)
{
	mkfifo("fifo", 0600);
	fifo_in = must(open("fifo", O_RDONLY | O_NONBLOCK), "fifo");
	fifo_out = must(open("fifo", O_WRONLY), "fifo");
	must((int)write(fifo_out, "in the fifo", 11), "write");
}

static void
fifo_check(void)
{
	char text[32] = "";

	SAME(read(fifo_in, text, sizeof(text)), 11);
	SAME(memcmp(text, "in the fifo", 11), 0);
	SAME(read(fifo_in, text, sizeof(text)), -1);
	must((int)write(fifo_out, "in the fifo", 11), "write");
}

/* --- asynchronous I/O: three events that have not been fetched, in a ring that has gone round */

static aio_context_t ring_used, ring_new;
static int ring_file;
static char ring_data[8];

static void
submit(aio_context_t ring, uint64_t data)
{
	struct iocb cb = {.aio_data = data, .aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = (uint32_t)ring_file,
	    .aio_buf = (uintptr_t)ring_data, .aio_nbytes = 8}, *list = &cb;

	must((int)syscall(SYS_io_submit, ring, 1, &list), "io_submit");
}

static void
fetch(aio_context_t ring, uint64_t data)
{
	struct io_event e = {0};

	SAME(syscall(SYS_io_getevents, ring, 1, 1, &e, NULL), 1);
	SAME(e.data, data);
	SAME(e.res, 8);
}

static void
aio_make(void)
{
	ring_file = must(open("read-by-aio", O_RDWR | O_CREAT, 0600), "file");
	must((int)write(ring_file, "abcdefgh", 8), "write");
	must((int)syscall(SYS_io_setup, 20, &ring_used), "io_setup");
	must((int)syscall(SYS_io_setup, 1000, &ring_new), "io_setup");
	for (unsigned i = 0; i < 333; i++) {
		submit(ring_used, i);
		fetch(ring_used, i);
	}
	for (unsigned i = 0; i < 3; i++)
		submit(ring_used, 1000 + i);
}

static void
aio_check(void)
{
	for (unsigned i = 0; i < 3; i++)
		fetch(ring_used, 1000 + i);
	for (unsigned i = 0; i < 100; i++) {
		memset(ring_data, 0, 8);
		submit(ring_used, i);
		submit(ring_new, i);
		fetch(ring_new, i);
		fetch(ring_used, i);
		SAME(memcmp(ring_data, "abcdefgh", 8), 0);
	}
	for (unsigned i = 0; i < 3; i++)
		submit(ring_used, 1000 + i);
}

const struct maker object_makers[] = {
    {"eventfd", eventfd_make, eventfd_check}, {"timerfd", timerfd_make, timerfd_check},
    {"signalfd", signalfd_make, signalfd_check}, {"epoll-set", epoll_make, epoll_check},
    {"inotify", inotify_make, inotify_check}, {"pidfd", pidfd_make, pidfd_check},
    {"memfd", memfd_make, memfd_check}, {"unnamed", unnamed_make, unnamed_check},
    {"fifo", fifo_make, fifo_check}, {"aio", aio_make, aio_check}, {0},
};
