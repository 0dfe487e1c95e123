/*
 * The program, the mapped files and the open files: found here, checked to be the same.
 */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fileid.h"
#include "io.h"
#include "log.h"
#include "restart.h"

/* Does some writable shared mapping need the file open for writing? */
static bool
needs_writing(const struct task *t, size_t file)
{
	for (size_t i = 0; i < t->nvmas; i++) {
		const struct vma *v = &t->vmas[i];

		if (v->kind == VMA_FILE && (size_t)v->ref == file && v->shared &&
		    ((v->prot & PROT_WRITE) || (v->flags != NULL && strstr(v->flags, "mw") != NULL)))
			return true;
	}
	return false;
}

static bool
is_mapped(const struct task *t, size_t file)
{
	if ((size_t)t->exe == file)
		return true;
	for (size_t i = 0; i < t->nvmas; i++)
		if (t->vmas[i].kind == VMA_FILE && (size_t)t->vmas[i].ref == file)
			return true;
	return false;
}

static bool
shared_only(const struct task *t, size_t file)
{
	for (size_t i = 0; i < t->nvmas; i++)
		if (t->vmas[i].kind == VMA_FILE && (size_t)t->vmas[i].ref == file && !t->vmas[i].shared)
			return false;
	return (size_t)t->exe != file;
}

/* The file at its path, if it is the same; else what the image has of it. */
static int
open_mapped(struct restart *r, size_t i)
{
	const struct file_ref *ref = &r->model.objects.files[i];
	char *path = path_mapped(r->opt.maps, r->opt.nmaps, ref->path);
	bool writing = needs_writing(&r->model.task, i);
	int content = r->open.contents[i];
	int fd, same = FILE_DIFFERENT;

	if (path == NULL)
		return -ENOMEM;
	fd = ref->gone && content >= 0 ? -1 : open(path, (writing ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NOCTTY);
	if (fd >= 0) {
		/* What several programs write to together changes: its path is what it is. */
		same = shared_only(&r->model.task, i) && writing ? FILE_SAME
								   : fileid_compare_mapped(ref, fd);
		if (same != FILE_SAME)
			close_fd(&fd);
	}
	if (fd < 0 && content >= 0) {
		fd = fcntl(content, F_DUPFD_CLOEXEC, 3);
		if (!ref->gone)
			debug(LOG_VERBOSE, "%s: taken from the image", ref->path);
	} else if (fd < 0 && same < 0) {
		fd = fail(-same, "%s: cannot be compared: %s", path, strerror(-same));
	} else if (fd < 0 && errno != ENOENT && errno != ENOTDIR && access(path, F_OK) == 0 &&
	    access(path, R_OK) != 0) {
		fd = fail(EACCES, "%s: not readable here", path);
	} else if (fd < 0) {
		fd = fail(access(path, F_OK) == 0 ? ESTALE : ENOENT,
		    "%s: the program needs it, and it is %s here (ckpt -e puts it into the image, --map "
		    "OLD=NEW tells where it is)", path, access(path, F_OK) == 0 ? "another one" : "not");
	}
	if (fd < 0)
		free(path);
	else
		free(path);
	r->open.mapped[i] = fd;
	return fd < 0 ? fd : 0;
}

/* --- the program to execute */

/*
 * A copy in memory without an interpreter: the kernel loads the program alone, which
 * is all that is wanted, for its address space is replaced before it runs.
 */
static int
copy_without_interpreter(int fd, const char *name)
{
	int copy = memfd_create(name, MFD_CLOEXEC);
	struct stat st;
	Elf64_Ehdr eh;

	if (copy < 0 || fstat(fd, &st) < 0)
		return fail_errno("memory for %s", name);
	for (off_t at = 0; at < st.st_size;) {
		ssize_t n = sendfile(copy, fd, &at, (size_t)(st.st_size - at));

		if (n <= 0)
			break;
	}
	if (pread(copy, &eh, sizeof(eh), 0) != sizeof(eh) || eh.e_phentsize != sizeof(Elf64_Phdr)) {
		close(copy);
		return fail(ENOEXEC, "%s: not a program", name);
	}
	for (unsigned i = 0; i < eh.e_phnum; i++) {
		off_t at = (off_t)(eh.e_phoff + i * sizeof(Elf64_Phdr));
		Elf64_Phdr ph;

		if (pread(copy, &ph, sizeof(ph), at) != sizeof(ph) || ph.p_type != PT_INTERP)
			continue;
		ph.p_type = PT_NULL;
		if (pwrite(copy, &ph, sizeof(ph), at) != sizeof(ph)) {
			close(copy);
			return fail_errno("memory for %s", name);
		}
	}
	fchmod(copy, 0500);
	return copy;
}

static int
open_program(struct restart *r)
{
	size_t exe = (size_t)r->model.task.exe;
	const char *path = r->model.objects.files[exe].path, *slash = strrchr(path, '/');
	struct stat st;
	int fd = r->open.mapped[exe];

	r->open.program = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (r->open.program < 0)
		return fail_errno("%s", path);
	/* From the image, or not executable for us: it may lack its interpreter, too. */
	if (fstat(fd, &st) == 0 && (st.st_nlink == 0 || faccessat(fd, "", X_OK, AT_EMPTY_PATH | AT_EACCESS) < 0)) {
		int copy = copy_without_interpreter(fd, slash != NULL ? slash + 1 : path);

		if (copy < 0)
			return copy;
		close(r->open.program);
		r->open.program = copy;
	}
	return 0;
}

/* --- open files */

static int
lowest_fd(const struct task *t, size_t ofd)
{
	for (size_t i = 0; i < t->nfds; i++)
		if ((size_t)t->fds[i].ofd == ofd)
			return (int)t->fds[i].fd;
	return -1;
}

static int
open_ofds(struct restart *r)
{
	const struct objects *o = &r->model.objects;
	struct kind_load l = {.objects = o, .contents = r->open.contents, .maps = r->opt.maps,
	    .nmaps = r->opt.nmaps, .inherits = r->opt.inherits, .ninherits = r->opt.ninherits,
	    .stdin_taken = r->source.is_stdin, .stdout_taken = r->source.is_channel,
	    .check = r->opt.check};

	for (size_t i = 0; i < o->nofds; i++) {
		l.lowest = lowest_fd(&r->model.task, i);
		if (l.lowest < 0)
			continue;
		r->open.ofds[i] = kinds[o->ofds[i].kind]->load(&l, &o->ofds[i]);
		if (r->open.ofds[i] < 0)
			return r->open.ofds[i];
	}
	return 0;
}

/* Shared anonymous memory that is mapped in several pieces needs a file to be one object. */
static int
open_shms(struct restart *r)
{
	const struct task *t = &r->model.task;

	for (size_t i = 0; i < r->model.objects.nshms; i++) {
		size_t n = 0;
		bool whole = false;

		for (size_t j = 0; j < t->nvmas; j++)
			if (t->vmas[j].kind == VMA_SHM && (size_t)t->vmas[j].ref == i) {
				n++;
				whole = t->vmas[j].offset == 0;
			}
		if (n == 0 || (n == 1 && whole))
			continue;
		r->open.shms[i] = memfd_create("shared", MFD_CLOEXEC);
		if (r->open.shms[i] < 0 ||
		    ftruncate(r->open.shms[i], (off_t)page_up(r->model.objects.shms[i].size)) < 0)
			return fail_errno("shared memory");
	}
	return 0;
}

/* Root opens files with the rights of the process, not with its own. */
static void
assume_ids(const struct restart *r, bool on)
{
	const struct creds *c = &r->model.task.creds;

	if (geteuid() != 0 && !on)
		return;
	if (geteuid() == 0 || !on) {
		setfsgid(on ? (gid_t)c->gid[1] : getegid());
		setfsuid(on ? (uid_t)c->uid[1] : geteuid());
	}
}

int
files_open(struct restart *r)
{
	const struct objects *o = &r->model.objects;
	int err = 0;

	assume_ids(r, true);
	for (size_t i = 0; i < o->nfiles && err == 0; i++)
		if (is_mapped(&r->model.task, i))
			err = open_mapped(r, i);
	if (err == 0)
		err = open_program(r);
	if (err == 0)
		err = open_shms(r);
	if (err == 0)
		err = open_ofds(r);
	assume_ids(r, false);
	return err;
}

static void
close_all(int *fds, size_t n)
{
	for (size_t i = 0; fds != NULL && i < n; i++)
		close_fd(&fds[i]);
	free(fds);
}

void
files_close(struct restart *r)
{
	const struct objects *o = &r->model.objects;

	close_all(r->open.contents, o->nfiles);
	close_all(r->open.mapped, o->nfiles);
	close_all(r->open.shms, o->nshms);
	close_all(r->open.ofds, o->nofds);
	close_fd(&r->open.program);
	r->open = (struct opened){.program = -1};
}
