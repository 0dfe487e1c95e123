#include "kind.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define KIND(name) extern const struct kind kind_##name;
#include "kind.def"
#undef KIND

const struct kind *const kinds[KIND_COUNT] = {
#define KIND(name) &kind_##name,
#include "kind.def"
#undef KIND
};

int
kind_of(const struct kind_save *s)
{
	int i = 0;

	while (i < KIND_unknown && !kinds[i]->match(s))
		i++;
	return i;
}

char *
path_mapped(const struct path_map *maps, size_t n, const char *path)
{
	char *to;

	for (size_t i = 0; i < n; i++) {
		size_t len = strlen(maps[i].from);

		if (strncmp(path, maps[i].from, len) != 0 || (path[len] != '/' && path[len] != '\0'))
			continue;
		if (asprintf(&to, "%s%s", maps[i].to, path + len) < 0)
			return NULL;
		return to;
	}
	return strdup(path);
}

int
inherited(const struct kind_load *l, int image_fd)
{
	for (size_t i = 0; i < l->ninherits; i++)
		if (l->inherits[i].image_fd == image_fd)
			return l->inherits[i].fd;
	return -1;
}

int
kind_get_fd(const struct kind_save *s)
{
	long fd = syscall(SYS_pidfd_getfd, s->pidfd, s->fd, 0);

	return fd < 0 ? -errno : (int)fd;
}

void
kind_shared_fini(struct kind_shared *shared)
{
	free(shared->sockets);
	*shared = (struct kind_shared){0};
}
