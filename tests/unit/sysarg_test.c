/* System calls as text: what is printed can be given again. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>

#include "sysarg.h"
#include "sysnames.h"
#include "tap.h"

static char why[200];

/* Words separated by blanks (strings and structs here have none). Returns what syscall_text_parse() does. */
static int
parse(struct calldata *c, const char *line)
{
	static const int64_t results[] = {7, -1};
	char copy[512], *words[8], *save = NULL;
	size_t n = 0;

	strcpy(copy, line);
	for (char *w = strtok_r(copy, " ", &save); w != NULL && n < 8; w = strtok_r(NULL, " ", &save))
		words[n++] = w;
	return syscall_text_parse(c, words[0], words + 1, n - 1, results, 2, why);
}

static void
prints(const char *line, int64_t result, const char *want)
{
	struct calldata c;
	struct buf out = {0};
	int err = parse(&c, line);

	/* A kernel that gives zeroes. */
	for (unsigned i = 0; err == 0 && i < c.nargs; i++)
		if (c.arg[i].is_data && (c.arg[i].type[0] == 'r' || strncmp(c.arg[i].type, "iovr", 4) == 0))
			memset(c.data.data + c.arg[i].value, 0, c.arg[i].len);
	if (err == 0)
		syscall_text_put(&out, &c, result);
	buf_put(&out, "", 1);
	if (err < 0 || strcmp((char *)out.data, want) != 0)
		printf("# %s: %s\n", line, err < 0 ? why : (char *)out.data);
	ok(err == 0 && strcmp((char *)out.data, want) == 0, line);
	buf_fini(&out);
	calldata_fini(&c);
}

static void
refused(const char *line, int status)
{
	struct calldata c;
	int err = parse(&c, line);

	ok(err == status, line);
	calldata_fini(&c);
}

/* Every row of the table is one that the parser understands: each argument given as NULL or 0. */
static void
whole_table(void)
{
	char zero[] = "0", null[] = "NULL";
	bool good = true;
	int known = 0;

	for (long nr = 0; nr < 512; nr++) {
		const char *spec = syscall_arguments(nr);
		char *args[6];
		struct calldata c;
		size_t n = 0;

		if (spec == NULL || strcmp(spec, "?") == 0 || syscall_never_lent(nr))
			continue;
		known++;
		for (; *spec != '\0'; spec += strspn(spec, " ")) {
			size_t len = strcspn(spec, " ");
			bool pointer = strchr("<>~wrRB", spec[0]) != NULL || (spec[0] == 's' && len == 1) || strncmp(spec, "iov", 3) == 0 ||
			    strncmp(spec, "msg", 3) == 0;

			if (strchr("<>~", spec[0]) != NULL && strncmp(spec + 1, "sockaddr", 8) != 0)
				good &= struct_size(spec + 1, strcspn(spec + 1, " *")) > 0;
			args[n++] = pointer ? null : zero;
			spec += len;
		}
		if (nr != SYS_ioctl && nr != SYS_fcntl && nr != SYS_prctl && syscall_text_parse(&c, syscall_name(nr), args, n, NULL, 0, why) < 0) {
			printf("# %s: %s\n", syscall_name(nr), why);
			good = false;
		}
		calldata_fini(&c);
	}
	ok(good && known > 250, "every row of syscall.def");
}

int
main(void)
{
	whole_table();
	prints("open /tmp/x O_WRONLY|O_CREAT|O_TRUNC 0644", 3, "open(\"/tmp/x\", O_WRONLY|O_CREAT|O_TRUNC, 0644) = 3");
	prints("open x O_RDONLY", -2, "open(\"x\", O_RDONLY) = -1 ENOENT (No such file or directory)");
	prints("openat AT_FDCWD \"a\\tb\\\"\\1012\" O_CLOEXEC|0x40000000", 3, "openat(AT_FDCWD, \"a\\tb\\\"A2\", O_CLOEXEC|O_RDONLY|0x40000000) = 3");
	prints("dup2 $1 1", 1, "dup2(7, 1) = 1");
	prints("write 1 \"ab\\0\\1\"", 4, "write(1, \"ab\\0\\1\", 4) = 4");
	prints("write 1 \"abc\" 3", 3, "write(1, \"abc\", 3) = 3");
	prints("read 0 _ 4", 2, "read(0, \"\\0\\0\", 4) = 2");
	prints("read 0 _ 4", -9, "read(0, _, 4) = -1 EBADF (Bad file descriptor)");
	prints("kill -5 SIGTERM", 0, "kill(-5, SIGTERM) = 0");
	prints("kill 5 TERM", 0, "kill(5, SIGTERM) = 0");
	prints("nanosleep {1,tv_nsec=5} NULL", 0, "nanosleep({tv_sec=1, tv_nsec=5}, NULL) = 0");
	prints("poll [{3,1},{events=4,fd=5}] 2 -1", 1,
	    "poll([{fd=3, events=1, revents=0}, {fd=5, events=4, revents=0}], 2, -1) = 1");
	prints("connect 3 inet:127.0.0.1:80", 0, "connect(3, inet:127.0.0.1:80, 16) = 0");
	prints("connect 3 inet:[::1]:80", 0, "connect(3, inet:[::1]:80, 28) = 0");
	prints("connect 3 unix:/run/x", 0, "connect(3, unix:/run/x, 9) = 0");
	prints("bind 3 unix:@name", 0, "bind(3, unix:@name, 7) = 0");
	prints("fcntl 1 F_SETFL O_APPEND", 0, "fcntl(1, F_SETFL, O_APPEND|O_RDONLY) = 0");
	prints("fcntl 1 F_GETLK {0,0,5,9}", 0,
	    "fcntl(1, F_GETLK, {l_type=0, l_whence=0, l_start=5, l_len=9, l_pid=0}) = 0");
	prints("ioctl 0 TIOCSWINSZ {24,80}", 0,
	    "ioctl(0, TIOCSWINSZ, {ws_row=24, ws_col=80, ws_xpixel=0, ws_ypixel=0}) = 0");
	prints("mmap NULL 4096 PROT_READ|PROT_WRITE MAP_PRIVATE|MAP_ANONYMOUS -1 0", 0x7f0000001000,
	    "mmap(NULL, 4096, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7f0000001000");
	prints("mprotect 0x1000 4096 PROT_NONE", 0, "mprotect(0x1000, 4096, PROT_NONE) = 0");
	prints("lseek 3 -5 SEEK_END", 100, "lseek(3, -5, SEEK_END) = 100");
	prints("getgroups 4 _", 2, "getgroups(4, [[0], [0]]) = 2");
	prints("setgroups 3 [7,8,9]", 0, "setgroups(3, [[7], [8], [9]]) = 0");
	prints("poll [{0,1}] 2 0", 1, "poll([{fd=0, events=1, revents=0}, {fd=0, events=0, revents=0}], 2, 0) = 1");
	prints("sched_getattr 0 _ 4 0", 0, "sched_getattr(0, \"\\0\\0\\0\\0\", 4, 0) = 0");
	prints("fcntl 1 F_GETFD", 1, "fcntl(1, F_GETFD) = 1");
	prints("poll [{fd=-1,events=1}] 1 0", 0, "poll([{fd=-1, events=1, revents=0}], 1, 0) = 0");
	prints("writev 1 \"abc\"", 3, "writev(1, [{iov_base=\"abc\", iov_len=3}], 1) = 3");
	prints("readv 0 2 1", 1, "readv(0, [{iov_base=\"\\0\", iov_len=1}], 1) = 1");
	prints("sendmsg 3 \"abc\" MSG_NOSIGNAL", 3,
	    "sendmsg(3, {msg_namelen=0, msg_iov=[{iov_base=\"abc\", iov_len=3}], msg_controllen=0, msg_flags=0}, MSG_NOSIGNAL) = 3");
	prints("getpid", 12, "getpid() = 12");
	refused("nothing", -EINVAL);
	refused("close 1 2", -EINVAL);
	refused("close x", -EINVAL);
	refused("close $3", -EINVAL);
	refused("close $0", -EINVAL);
	refused("chdir", -EINVAL);
	refused("read 0 _", -EINVAL);
	refused("read 0 _ 99999999999", -EINVAL);
	refused("write 1 \"open", -EINVAL);
	refused("write 1 \"\\", -EINVAL);
	refused("nanosleep {1,2,3} NULL", -EINVAL);
	refused("nanosleep {1 NULL", -EINVAL);
	refused("nanosleep {tv_no=1} NULL", -EINVAL);
	refused("poll _ 99999999999999 0", -EINVAL);
	refused("connect 3 inet:name:80", -EINVAL);
	refused("connect 3 inet:127.0.0.1:99999", -EINVAL);
	refused("read $2 \"x\" 99999999", -EINVAL);
	refused("read 0 \"x\" $2", -EINVAL);
	refused("getsockopt 3 SOL_SOCKET SO_TYPE \"a\" {300}", -EINVAL);
	refused("poll {0,1},{1,1} 1 0", -EINVAL);
	refused("poll [{0,1},{1,1}] 1 0", -EINVAL);
	refused("poll [{0,1},{1,1} 2 0", -EINVAL);
	refused("poll [{0,1}]x 2 0", -EINVAL);
	refused("setrlimit RLIMIT_CORE {1,2}junk", -EINVAL);
	refused("poll [{fd=4294967296,events=1}] 1 0", -EINVAL);
	refused("prctl 22 1", -EINVAL);
	refused("ioctl 0 TIOCGWINSZ", -EINVAL);
	refused("ioctl 0 0x9999", -ENOTSUP);
	refused("set_tid_address NULL", -ENOTSUP);
	refused("fork", -ENOTSUP);
	refused("writev 1 _ 1", -EINVAL);
	refused("msgsnd 1 _ 1 0", -ENOTSUP);
	refused("ioctl 0 0x1234 0", -ENOTSUP);
	return done();
}
