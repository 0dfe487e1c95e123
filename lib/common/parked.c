#include "parked.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io.h"
#include "tracee.h"

taddr
park_page(int mem, taddr ip)
{
	char mark[8];

	if (mem_read(mem, page_down(ip), mark, sizeof(mark)) < 0 ||
	    memcmp(mark, PARK_MARK, sizeof(mark)) != 0)
		return 0;
	return page_down(ip);
}

/* /proc/PID/syscall of a stopped task ends in its stack pointer and its place. */
bool
is_parked(pid_t pid)
{
	char path[32], *text, *ip;
	bool parked = false;
	int mem;

	snprintf(path, sizeof(path), "/proc/%d/syscall", pid);
	if (read_file(AT_FDCWD, path, &text) < 0)
		return false;
	ip = strrchr(text, ' ');
	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	mem = open(path, O_RDONLY | O_CLOEXEC);
	if (ip != NULL && mem >= 0)
		parked = park_page(mem, strtoull(ip, NULL, 16)) != 0;
	close_fd(&mem);
	free(text);
	return parked;
}
