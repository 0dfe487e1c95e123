#include "io.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <time.h>
#include <sys/resource.h>
#include <unistd.h>

static bool (*give_up)(void);

void
io_set_interrupt(bool (*interrupted)(void))
{
	give_up = interrupted;
}

static bool
goes_on(void)
{
	return errno == EINTR && (give_up == NULL || !give_up());
}

static bool stood_in[STDERR_FILENO + 1];

void
io_keep_stdio(void)
{
	int fd;

	while ((fd = open("/dev/null", O_RDWR)) >= 0 && fd <= STDERR_FILENO)
		stood_in[fd] = true;
	if (fd >= 0)
		close(fd);
}

bool
io_stood_in(int fd)
{
	return fd >= 0 && fd <= STDERR_FILENO && stood_in[fd];
}

void
io_raise_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
}

void
io_leave_stdio(bool errors)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	struct stat st;

	for (int fd = 0; null >= 0 && fd < 3; fd++)
		if (fd < 2 || (errors && fstat(fd, &st) == 0 && !S_ISREG(st.st_mode) && !S_ISCHR(st.st_mode)))
			dup2(null, fd);
	close_fd(&null);
}

int
write_full(int fd, const void *data, size_t len)
{
	const char *p = data;

	while (len > 0) {
		ssize_t n = write(fd, p, len);

		if (n < 0 && goes_on())
			continue;
		if (n < 0)
			return -errno;
		p += n;
		len -= (size_t)n;
	}
	return 0;
}

int
write_sparse(int fd, const void *data, size_t len)
{
	static const char zeroes[PAGE_BYTES];
	const char *p = data;
	int err = 0;

	for (size_t n; err == 0 && len > 0; p += n, len -= n) {
		n = min_u64(len, sizeof(zeroes));
		if (memcmp(p, zeroes, n) != 0)
			err = write_full(fd, p, n);
		else if (lseek(fd, (off_t)n, SEEK_CUR) < 0)
			err = -errno;
	}
	return err;
}

void
write_status(int fd, const char *fmt, va_list ap)
{
	char line[4200];
	int n;

	if (fd < 0)
		return;
	n = vsnprintf(line, sizeof(line) - 1, fmt, ap);
	if (n < 0 || n >= (int)sizeof(line) - 1)
		return;
	line[n++] = '\n';
	if (write_full(fd, line, (size_t)n) < 0)
		return;
}

ssize_t
read_full(int fd, void *data, size_t len)
{
	size_t got = 0;

	while (got < len) {
		ssize_t n = read(fd, (char *)data + got, len - got);

		if (n < 0 && goes_on())
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		got += (size_t)n;
	}
	return (ssize_t)got;
}

ssize_t
read_file(int dirfd, const char *path, char **text)
{
	size_t len = 0, cap = 4096;
	char *p = NULL, *bigger;
	ssize_t n;
	int err, fd = openat(dirfd, path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	for (;;) {
		bigger = realloc(p, cap);
		if (bigger == NULL) {
			err = -ENOMEM;
			goto out;
		}
		p = bigger;
		n = read_full(fd, p + len, cap - len - 1);
		if (n < 0) {
			err = (int)n;
			goto out;
		}
		len += (size_t)n;
		if (len < cap - 1)
			break;
		cap *= 2;
	}
	p[len] = '\0';
	close(fd);
	*text = p;
	return (ssize_t)len;
out:
	close(fd);
	free(p);
	return err;
}

int
write_file(int dirfd, const char *path, const char *text)
{
	int err, fd = openat(dirfd, path, O_WRONLY | O_CLOEXEC);
	size_t len = 0;

	if (fd < 0)
		return -errno;
	while (text[len] != '\0')
		len++;
	err = write(fd, text, len) == (ssize_t)len ? 0 : errno != 0 ? -errno : -EIO;
	close(fd);
	return err;
}

int
read_link(int dirfd, const char *path, char **target)
{
	size_t cap = 256;

	for (;;) {
		char *p = malloc(cap);
		ssize_t n;

		if (p == NULL)
			return -ENOMEM;
		n = readlinkat(dirfd, path, p, cap);
		if (n < 0) {
			int err = -errno;

			free(p);
			return err;
		}
		if ((size_t)n < cap) {
			p[n] = '\0';
			*target = p;
			return 0;
		}
		free(p);
		cap *= 2;
	}
}

int
open_plain(const char *path, int flags)
{
	enum { PROC_MAGIC = 0x9fa0, SYSFS_MAGIC_ = 0x62656572 };
	char by_fd[32];
	struct stat st;
	struct statfs fs;
	int fd, at = open(path, O_PATH | O_CLOEXEC | (flags & O_NOFOLLOW));

	if (at < 0)
		return -errno;
	if (fstat(at, &st) < 0 || (!S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode)) ||
	    fstatfs(at, &fs) < 0 || fs.f_type == PROC_MAGIC || fs.f_type == SYSFS_MAGIC_) {
		close(at);
		return -EMEDIUMTYPE;
	}
	if (flags & O_PATH)
		return at;
	snprintf(by_fd, sizeof(by_fd), "/proc/self/fd/%d", at);
	fd = open(by_fd, (flags & ~O_NOFOLLOW) | O_CLOEXEC);
	if (fd < 0)
		fd = -errno;
	close(at);
	return fd;
}

void
close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

int
fd_move_up(int fd, int min)
{
	int up;

	if (fd >= min)
		return fd;
	up = fcntl(fd, F_DUPFD_CLOEXEC, min);
	if (up < 0)
		up = -errno;
	close(fd);
	return up;
}

int
pidfd_open_(pid_t pid)
{
	long fd = syscall(SYS_pidfd_open, pid, 0);

	return fd < 0 ? -errno : (int)fd;
}

int
pidfd_kill(int pidfd, int sig)
{
	return syscall(SYS_pidfd_send_signal, pidfd, sig, NULL, 0) < 0 ? -errno : 0;
}

int
poll_looking(struct pollfd *fds, size_t n, int timeout_ms, int64_t look_ns)
{
	struct timespec now, from;
	int ready = 0;

	if (look_ns > 0 && timeout_ms != 0) {
		clock_gettime(CLOCK_MONOTONIC, &from);
		do {
			ready = poll(fds, n, 0);
			if (ready == 0)
				sched_yield();
			clock_gettime(CLOCK_MONOTONIC, &now);
		} while (ready == 0 && (now.tv_sec - from.tv_sec) * 1000000000L + now.tv_nsec - from.tv_nsec < look_ns);
	}
	return ready != 0 ? ready : poll(fds, n, timeout_ms);
}

int64_t
now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

int64_t
now_ms(void)
{
	return now_ns() / 1000000;
}

int
mem_read(int mem, taddr addr, void *data, size_t len)
{
	char *p = data;

	while (len > 0) {
		ssize_t n = pread(mem, p, len, (off_t)addr);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		p += n;
		addr += (uint64_t)n;
		len -= (size_t)n;
	}
	return 0;
}

int
mem_write(int mem, taddr addr, const void *data, size_t len)
{
	const char *p = data;

	while (len > 0) {
		ssize_t n = pwrite(mem, p, len, (off_t)addr);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		p += n;
		addr += (uint64_t)n;
		len -= (size_t)n;
	}
	return 0;
}

/* Room for one. */
union one_file {
	struct cmsghdr header;
	char room[CMSG_SPACE(sizeof(int))];
};

ssize_t
io_send_file(int sock, const void *data, size_t len, int file)
{
	union one_file control = {.header = {.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
	struct iovec iov = {(void *)(uintptr_t)data, len};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = file >= 0 ? &control : NULL, .msg_controllen = file >= 0 ? sizeof(control.room) : 0};
	ssize_t n;

	memcpy(CMSG_DATA(&control.header), &file, sizeof(file));
	do
		n = sendmsg(sock, &m, MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : n;
}

ssize_t
io_receive_file(int sock, void *data, size_t len, int *file)
{
	union one_file control;
	struct iovec iov = {data, len};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control.room)};
	const struct cmsghdr *c;
	ssize_t n;

	*file = -1;
	do
		n = recvmsg(sock, &m, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	c = n < 0 ? NULL : CMSG_FIRSTHDR(&m);
	if (c != NULL && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS && c->cmsg_len >= CMSG_LEN(sizeof(int)))
		memcpy(file, CMSG_DATA(c), sizeof(*file));
	return n < 0 ? -errno : n;
}
