/*
 * The stream has ended without END: whether the original runs is not known here, so the parked
 * process does not. It becomes an image again.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io.h"
#include "log.h"
#include "restart.h"

struct parked_pages {
	struct page_source source; /* first */
	struct restart *r;
};

static int
read_parked(struct page_source *s, const struct page_run *runs, size_t nruns, unsigned char *out)
{
	const struct restart *r = ((struct parked_pages *)s)->r;
	size_t t = 0;

	while (t < r->model.header.ntasks && r->model.tasks[t].pid != s->pid)
		t++;
	for (size_t i = 0; i < nruns; i++)
		for (uint64_t k = 0; k < runs[i].npages; k++, out += PAGE_BYTES) {
			int err = t == r->model.header.ntasks ? -EIO : mem_read(r->built[t].mem, runs[i].addr + k * PAGE_BYTES, out, PAGE_BYTES);

			/* What came in a round may not be there any more. */
			if (err < 0 && r->earlier == NULL)
				return err;
			if (err < 0)
				memset(out, 0, PAGE_BYTES);
		}
	return 0;
}

static int
write_fd(void *ctx, const void *data, size_t len)
{
	int err = write_full(*(int *)ctx, data, len);

	return err < 0 ? fail(-err, "image: %s", strerror(-err)) : 0;
}

/* In the working directory, or where temporary files go. */
static int
open_somewhere(const struct restart *r, char **name)
{
	const char *tmp = getenv("TMPDIR"), *dirs[] = {".", tmp != NULL ? tmp : "/tmp", "/var/tmp"};
	char *here = getcwd(NULL, 0);
	int fd = -1;

	if (here != NULL)
		dirs[0] = here;
	for (size_t i = 0; i < ARRAY_LEN(dirs) && fd < 0; i++) {
		if (asprintf(name, "%s/pid-%" PRId64 "-%.8s.ckpt", dirs[i], r->model.header.host_pid,
			r->model.header.id) < 0)
			break;
		fd = open(*name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
		if (fd < 0)
			free(*name);
	}
	free(here);
	return fd;
}

int
save(struct restart *r)
{
	struct parked_pages pages = {{.read = read_parked}, r};
	char *name;
	int fd = open_somewhere(r, &name), err;

	if (fd < 0)
		return fail_errno("the stream ended before END, and there is no place to save the process");
	err = image_rewrite(r->reader, &pages.source, write_fd, &fd);
	if (err == 0 && fsync(fd) < 0)
		err = fail_errno("%s", name);
	close(fd);
	if (err < 0) {
		unlink(name);
	} else {
		err = fail(EPROTO, "the stream ended before END: the process is saved as %s; restart it only "
		    "if PID %" PRId64 " on %s does not run", name, r->model.header.host_pid,
		    r->model.header.host);
		restart_status(r, "saved %s", name);
	}
	free(name);
	return err;
}
