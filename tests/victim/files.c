/* Open files: offsets, flags, sharing, kinds, locks. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "victim.h"

static char name[64];

static int
file_with(const char *what, int flags)
{
	char text[200];
	int fd;

	snprintf(name, sizeof(name), "%s.%d", what, (int)getpid());
	fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
	for (int i = 0; i < 100; i++) {
		snprintf(text, sizeof(text), "%s line %d\n", what, i);
		if (write(fd, text, strlen(text)) < 0)
			die("write");
	}
	close(fd);
	fd = open(name, flags);
	if (fd < 0)
		die(name);
	return fd;
}

/* --- offset: shared by dup, not by a second open; flags; a high number; close-on-exec */

static int reading, duplicate, other, appending, high = 900;

static void
offset_make(void)
{
	char text[100];

	reading = file_with("offset", O_RDONLY);
	duplicate = dup(reading);
	other = open(name, O_RDONLY | O_CLOEXEC);
	if (read(reading, text, 50) != 50)
		die("read");
	lseek(other, 7, SEEK_SET);
	appending = file_with("append", O_WRONLY | O_APPEND);
	if (dup3(appending, high, O_CLOEXEC) != high)
		die("dup3");
}

static void
offset_check(void)
{
	struct stat a, b;

	SAME(lseek(reading, 0, SEEK_CUR), 50);
	lseek(duplicate, 60, SEEK_SET);
	SAME(lseek(reading, 0, SEEK_CUR), 60);
	lseek(duplicate, 50, SEEK_SET);
	SAME(lseek(other, 0, SEEK_CUR), 7);
	SAME(fcntl(other, F_GETFD), FD_CLOEXEC);
	SAME(fcntl(reading, F_GETFD), 0);
	SAME(fcntl(high, F_GETFD), FD_CLOEXEC);
	SAME(fcntl(appending, F_GETFL) & (O_ACCMODE | O_APPEND), O_WRONLY | O_APPEND);
	fstat(appending, &a);
	SAME(write(appending, "x", 1), 1);
	fstat(high, &b);
	SAME(b.st_size, a.st_size + 1);
	SAME(lseek(high, 0, SEEK_CUR), b.st_size);
	SAME(fcntl(high + 1, F_GETFD), -1);
}

/* --- path: O_PATH and directories, the working directory, the umask */

static int path_fd, dir_fd;
static struct stat path_was, dir_was, cwd_was;

static void
path_make(void)
{
	close(file_with("path", O_RDONLY));
	path_fd = open(name, O_PATH);
	dir_fd = open("/usr", O_RDONLY | O_DIRECTORY);
	fstat(path_fd, &path_was);
	fstat(dir_fd, &dir_was);
	stat(".", &cwd_was);
	umask(037);
}

static void
path_check(void)
{
	struct stat st;
	mode_t mask = umask(037);

	SAME(fstat(path_fd, &st), 0);
	SAME(st.st_ino, path_was.st_ino);
	SAME(read(path_fd, &st, 1), -1);
	SAME(fstatat(dir_fd, "bin", &st, 0), 0);
	fstat(dir_fd, &st);
	SAME(st.st_ino, dir_was.st_ino);
	stat(".", &st);
	SAME(st.st_ino, cwd_was.st_ino);
	SAME(mask, 037);
}

/* --- devices */

static int devices[5];

static void
devices_make(void)
{
	static const char *const names[] = {"null", "zero", "full", "random", "urandom"};
	char path[32];

	for (int i = 0; i < 5; i++) {
		snprintf(path, sizeof(path), "/dev/%s", names[i]);
		devices[i] = open(path, i == 3 ? O_RDONLY | O_NONBLOCK : O_RDWR);
		if (devices[i] < 0)
			die(path);
	}
}

static void
devices_check(void)
{
	static const unsigned minors[] = {3, 5, 7, 8, 9};
	struct stat st;
	char c = 1;

	for (int i = 0; i < 5; i++) {
		SAME(fstat(devices[i], &st), 0);
		SAME(S_ISCHR(st.st_mode) && major(st.st_rdev) == 1, true);
		SAME(minor(st.st_rdev), minors[i]);
	}
	SAME(read(devices[1], &c, 1), 1);
	SAME(c, 0);
	SAME(write(devices[2], &c, 1), -1);
	SAME(errno, ENOSPC);
	SAME(fcntl(devices[3], F_GETFL) & O_NONBLOCK, O_NONBLOCK);
}

/* --- locks: somebody else cannot have them (another process asks) */

static int posix_fd, flock_fd;
static char posix_name[64], flock_name[64];

static void
locks_make(void)
{
	struct flock fl = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 10, .l_len = 20};

	posix_fd = file_with("posix", O_RDWR);
	strcpy(posix_name, name);
	if (fcntl(posix_fd, F_SETLK, &fl) < 0)
		die("F_SETLK");
	flock_fd = file_with("flock", O_RDWR);
	strcpy(flock_name, name);
	if (flock(flock_fd, LOCK_EX) < 0)
		die("flock");
}

static void
locks_check(void)
{
	/* Through an OFD lock we are somebody else to ourselves. */
	struct flock fl = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 15, .l_len = 1};
	struct flock free_part = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 30, .l_len = 1};
	int fd = open(flock_name, O_RDWR);

	SAME(flock(fd, LOCK_EX | LOCK_NB), -1);
	close(fd);
	fcntl(posix_fd, F_OFD_GETLK, &fl);
	SAME(fl.l_type, F_WRLCK);
	SAME(fl.l_start, 10);
	SAME(fl.l_len, 20);
	fcntl(posix_fd, F_OFD_GETLK, &free_part);
	SAME(free_part.l_type, F_UNLCK);
}

/* --- pipe: both ends inside, half full, a size of its own, flags of each end */

static int pipe_fds[2];

static void
pipe_make(void)
{
	char text[3000];

	if (pipe2(pipe_fds, O_CLOEXEC) < 0)
		die("pipe");
	fcntl(pipe_fds[1], F_SETPIPE_SZ, 131072);
	fcntl(pipe_fds[0], F_SETFL, O_NONBLOCK);
	memset(text, 'p', sizeof(text));
	for (int i = 0; i < 30; i++)
		if (write(pipe_fds[1], text, sizeof(text)) != sizeof(text))
			die("write");
}

static void
pipe_check(void)
{
	char text[3000];

	SAME(fcntl(pipe_fds[0], F_GETPIPE_SZ), 131072);
	SAME(fcntl(pipe_fds[0], F_GETFL) & (O_ACCMODE | O_NONBLOCK), O_RDONLY | O_NONBLOCK);
	SAME(fcntl(pipe_fds[1], F_GETFL) & (O_ACCMODE | O_NONBLOCK), O_WRONLY);
	for (int i = 0; i < 30; i++) {
		memset(text, 0, sizeof(text));
		SAME(read(pipe_fds[0], text, sizeof(text)), sizeof(text));
		SAME(text[0] == 'p' && text[sizeof(text) - 1] == 'p', true);
	}
	SAME(read(pipe_fds[0], text, 1), -1);
	close(pipe_fds[0]);
	close(pipe_fds[1]);
	pipe_make();
}

const struct maker file_makers[] = {
    {"offset", offset_make, offset_check}, {"path", path_make, path_check},
    {"devices", devices_make, devices_check}, {"locks", locks_make, locks_check},
    {"pipe", pipe_make, pipe_check}, {NULL, NULL, NULL},
};
