/*
 * Character devices that are the same everywhere.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/sysmacros.h>

#include "kind.h"
#include "log.h"

#define KEPT_FLAGS (O_ACCMODE | O_APPEND | O_NONBLOCK | O_PATH)

/* Documentation/admin-guide/devices.txt, major 1. */
static const struct {
	unsigned minor;
	const char *path;
} devices[] = {
    {3, "/dev/null"}, {5, "/dev/zero"}, {7, "/dev/full"}, {8, "/dev/random"}, {9, "/dev/urandom"},
};

static const char *
device_path(dev_t rdev)
{
	for (size_t i = 0; i < ARRAY_LEN(devices); i++)
		if (major(rdev) == 1 && minor(rdev) == devices[i].minor)
			return devices[i].path;
	return NULL;
}

static bool
match(const struct kind_save *s)
{
	return S_ISCHR(s->st.st_mode) && device_path(s->st.st_rdev) != NULL;
}

static int
save(struct kind_save *s, struct ofd *ofd)
{
	ofd->rdev = s->st.st_rdev;
	ofd->flags &= KEPT_FLAGS;
	ofd->path = strdup(device_path(s->st.st_rdev));
	return ofd->path == NULL ? -ENOMEM : 0;
}

static int
load(const struct kind_load *l, const struct ofd *ofd)
{
	const char *path = device_path(ofd->rdev);
	int fd = path == NULL ? -1 : open(path, ((int)ofd->flags & KEPT_FLAGS) | O_CLOEXEC | O_NOCTTY);

	if (path == NULL)
		return fail(EBADMSG, "fd %d: a device that no image has", l->lowest);
	return fd < 0 ? fail_errno("fd %d: %s", l->lowest, path) : fd;
}

const struct kind kind_chr = {.name = "device", .match = match, .save = save, .load = load};
