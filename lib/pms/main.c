/*
 * main() of a program that has a pms_main(), and files as libc opens them.
 */
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <errno.h>
#include <unistd.h>

#include "internal.h"

PUBLIC int
pms_init(void)
{
	static atomic_bool begun;
	int err;

	if (atomic_exchange(&begun, true))
		return 0;
	err = answer_begin();
	if (err < 0) {
		atomic_store(&begun, false);
		errno = -err;
		return -1;
	}
	register_find();
	register_here(NULL);
	return 0;
}

/* A file of the paper's is one that it can open again elsewhere by name; ckpt(1) and restart(1) see to that for all. */

PUBLIC int
pms_open(const char *path, int flags, ...)
{
	mode_t mode = 0;

	if (flags & (O_CREAT | O_TMPFILE)) {
		va_list ap;

		va_start(ap, flags);
		mode = (mode_t)va_arg(ap, int);
		va_end(ap);
	}
	return open(path, flags, mode);
}

PUBLIC int
pms_close(int fd)
{
	return close(fd);
}

PUBLIC FILE *
pms_fopen(const char *path, const char *mode)
{
	return fopen(path, mode);
}

PUBLIC int
pms_fclose(FILE *file)
{
	return fclose(file);
}
