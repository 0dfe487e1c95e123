/*
 * Files that others see: what the originals have written to them must be there when the new processes run, also
 * on another host that has them by a network.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "ckpt.h"
#include "io.h"
#include "log.h"

/* A file system whose files another host may have open (linux/magic.h, and that of CIFS and SMB). */
static bool
is_remote(int fd)
{
	static const unsigned magics[] = {0x6969 /* NFS */, 0xff534d42, 0xfe534d42 /* CIFS, SMB2 */, 0x65735546 /* FUSE */,
	    0x01021997 /* 9P */, 0x00c36400 /* Ceph */, 0x5346414f /* AFS */, 0x0bd00bd0 /* Lustre */};
	struct statfs fs;

	for (size_t i = 0; fstatfs(fd, &fs) == 0 && i < ARRAY_LEN(magics); i++)
		if ((unsigned)fs.f_type == magics[i])
			return true;
	return false;
}

static void
sync_one(int fd, const char *name)
{
	if (fdatasync(fd) < 0 && errno != EINVAL && errno != EROFS)
		note("%s: what was written to it may not be there yet: %s", name, strerror(errno));
}

/* Mapped shared by one of them, who may write to it? */
static bool
is_written(const struct ckpt *c, size_t file)
{
	for (size_t m = 0; m < c->nmembers; m++) {
		const struct task *t = c->members[m]->task;

		for (size_t i = 0; i < t->nvmas; i++) {
			const struct vma *v = &t->vmas[i];

			if (v->kind == VMA_FILE && (size_t)v->ref == file && v->shared &&
			    ((v->prot & PROT_WRITE) || (v->flags != NULL && strstr(v->flags, "mw") != NULL)))
				return true;
		}
	}
	return false;
}

void
sync_files(const struct ckpt *c)
{
	for (size_t i = 0; i < c->nmapped; i++)
		if (c->mapped[i].fd >= 0 && is_written(c, i))
			sync_one(c->mapped[i].fd, c->model.objects.files[i].path);
	for (size_t i = 0; i < c->nheld; i++) {
		const struct held *h = &c->held[i];
		int fd = S_ISREG(h->st.st_mode) && (h->info.flags & O_ACCMODE) != O_RDONLY && !(h->info.flags & O_PATH)
		    ? kind_held_fd(h) : -1;

		if (fd >= 0 && is_remote(fd))
			sync_one(fd, h->link);
		close_fd(&fd);
	}
}
