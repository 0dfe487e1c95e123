#include "key.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io.h"
#include "log.h"

int
key_read(const char *path, unsigned char text[KEY_MAX + 1], size_t *len)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY), err = 0;
	struct stat st;
	ssize_t n;

	if (fd < 0)
		return fail_errno("key %s", path);
	n = fstat(fd, &st) < 0 ? -1 : read_full(fd, text, KEY_MAX + 1);
	if (n < 0)
		err = fail(EIO, "key %s: cannot be read", path);
	else if ((st.st_mode & 077) != 0)
		err = fail(EACCES, "key %s: others can read or write it (chmod 600)", path);
	while (n > 0 && (text[n - 1] == '\n' || text[n - 1] == '\r'))
		n--;
	if (err == 0 && (n < KEY_MIN || n > KEY_MAX))
		err = fail(EINVAL, "key %s: has to have %d to %d bytes", path, KEY_MIN, KEY_MAX);
	close(fd);
	*len = err == 0 ? (size_t)n : 0;
	return err;
}

int
key_check(const char *path)
{
	unsigned char text[KEY_MAX + 1];
	size_t len;
	int err = key_read(path, text, &len);

	explicit_bzero(text, sizeof(text));
	return err;
}
