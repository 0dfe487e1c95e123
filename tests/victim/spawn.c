/*
 * spawn OUT COMMAND [ARG...]: COMMAND in a session of its own, stdin from /dev/null, stdout
 * and stderr appended to OUT, no other file open. Prints its PID.
 */
#include <fcntl.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

int
main(int argc, char **argv)
{
	pid_t pid;
	int in, out;

	if (argc < 3)
		return 2;
	in = open("/dev/null", O_RDONLY);
	out = open(argv[1], O_WRONLY | O_CREAT | O_APPEND, 0666);
	if (in < 0 || out < 0)
		return 1;
	pid = fork();
	if (pid == 0) {
		setsid();
		dup2(in, 0);
		dup2(out, 1);
		dup2(out, 2);
		syscall(SYS_close_range, 3, ~0U, 0);
		execvp(argv[2], argv + 2);
		_exit(127);
	}
	printf("%d\n", (int)pid);
	return pid < 0;
}
