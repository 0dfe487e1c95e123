#include "program.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io.h"

static char *
in_directory(const char *dir, const char *name)
{
	char *path = NULL;

	if (asprintf(&path, "%s/%s", dir, name) < 0)
		return NULL;
	if (access(path, R_OK | X_OK) == 0)
		return path;
	free(path);
	return NULL;
}

int
program_find(const char *name, char **path)
{
	char *self = NULL, *dirs = strdup(getenv("PATH") != NULL ? getenv("PATH") : ""), *rest = NULL;

	*path = read_link(AT_FDCWD, "/proc/self/exe", &self) == 0 ? in_directory(dirname(self), name) : NULL;
	for (char *dir = dirs != NULL ? strtok_r(dirs, ":", &rest) : NULL; *path == NULL && dir != NULL; dir = strtok_r(NULL, ":", &rest))
		*path = in_directory(dir, name);
	free(self);
	free(dirs);
	return *path != NULL ? 0 : -ENOENT;
}
