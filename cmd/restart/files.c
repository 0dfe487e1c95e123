/*
 * The program, the mapped files and the open files: found here, checked to be the same.
 */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
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
#include "model_check.h"
#include "netlock.h"
#include "restart.h"

/* What the mappings want of each file, in one pass over them. */
enum { USE_MAPPED = 1, USE_WRITING = 2, USE_PRIVATE = 4 };

static void
add_uses(const struct task *t, unsigned char *uses)
{
	for (size_t i = 0; i < t->nvmas; i++) {
		const struct vma *v = &t->vmas[i];

		if (v->kind != VMA_FILE)
			continue;
		uses[v->ref] |= USE_MAPPED | (v->shared ? 0 : USE_PRIVATE);
		if (v->shared &&
		    ((v->prot & PROT_WRITE) || (v->flags != NULL && strstr(v->flags, "mw") != NULL)))
			uses[v->ref] |= USE_WRITING;
	}
	uses[t->exe] |= USE_MAPPED | USE_PRIVATE;
}

static unsigned char *
file_uses(const struct restart *r)
{
	unsigned char *uses = calloc(r->model.objects.nfiles + 1, 1);

	for (size_t i = 0; uses != NULL && i < r->model.header.ntasks; i++)
		if (!r->model.tasks[i].zombie)
			add_uses(&r->model.tasks[i], uses);
	return uses;
}

static int
not_here(const char *path, int err)
{
	if (err == -EACCES)
		return fail(EACCES, "%s: not readable here", path);
	return fail(err == -ENOENT || err == -ENOTDIR ? ENOENT : ESTALE, "%s: the program needs it, and it is "
	    "%s here (ckpt -e puts it into the image, --map OLD=NEW tells where it is)", path,
	    err == -ENOENT || err == -ENOTDIR ? "not" : "another one");
}

/* For reading only, unless it is to be written: what is mapped so does not stand against seals. */
static int
open_content(int content, bool writing)
{
	char path[32];
	int fd;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", content);
	fd = open(path, (writing ? O_RDWR : O_RDONLY) | O_CLOEXEC);
	return fd < 0 ? fail_errno("a file from the image") : fd;
}

/* The file at its path, if it is the same; else what the image has of it. */
static int
open_mapped(struct restart *r, size_t i, unsigned uses)
{
	const struct file_ref *ref = &r->model.objects.files[i];
	char *path = path_mapped(r->opt.maps, r->opt.nmaps, ref->path);
	bool writing = (uses & USE_WRITING) != 0;
	int content = r->open.contents[i], fd, same;

	if (path == NULL)
		return -ENOMEM;
	fd = ref->gone ? -ENOENT : open_plain(path, (writing ? O_RDWR : O_RDONLY) | O_NOCTTY);
	if (fd >= 0) {
		/* What several programs write to together changes: its path is what it is. */
		same = writing && !(uses & USE_PRIVATE) ? FILE_SAME : fileid_compare_mapped(ref, fd);
		if (same != FILE_SAME) {
			close(fd);
			fd = same < 0 ? same : -ESTALE;
		}
	}
	if (fd < 0 && content >= 0) {
		fd = open_content(content, writing);
		if (!ref->gone)
			debug(LOG_VERBOSE, "%s: taken from the image", ref->path);
	} else if (fd < 0) {
		fd = not_here(path, fd);
	}
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
open_program(struct restart *r, size_t exe)
{
	const char *path = r->model.objects.files[exe].path, *slash = strrchr(path, '/');
	struct stat st;
	int fd = r->open.mapped[exe];

	if (r->open.programs[exe] >= 0)
		return 0;
	r->open.programs[exe] = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (r->open.programs[exe] < 0)
		return fail_errno("%s", path);
	/* From the image, or not executable for us: it may lack its interpreter, too. */
	/* A set-uid program must not give back what its process has dropped. */
	if (fstat(fd, &st) == 0 && ((st.st_mode & (S_ISUID | S_ISGID)) != 0 || st.st_nlink == 0 ||
		faccessat(fd, "", X_OK, AT_EMPTY_PATH | AT_EACCESS) < 0)) {
		int copy = copy_without_interpreter(fd, slash != NULL ? slash + 1 : path);

		if (copy < 0)
			return copy;
		close(r->open.programs[exe]);
		r->open.programs[exe] = copy;
	}
	return 0;
}

/* --- open files */

/* The lowest number of each open file description in the first process that has it, -1 where none has. */
static int *
lowest_fds(const struct restart *r)
{
	int *lowest = malloc((r->model.objects.nofds + 1) * sizeof(*lowest));

	for (size_t i = 0; lowest != NULL && i < r->model.objects.nofds; i++)
		lowest[i] = -1;
	for (size_t k = r->model.header.ntasks; lowest != NULL && k-- > 0;) {
		const struct task *t = &r->model.tasks[k];

		for (size_t i = t->nfds; i-- > 0;)
			lowest[t->fds[i].ofd] = (int)t->fds[i].fd;
	}
	return lowest;
}

static void
remember_created(void *ctx, const char *path)
{
	struct restart *r = ctx;
	char **p = ARRAY_ADD(r->created, r->ncreated);

	if (p != NULL)
		*p = strdup(path);
}

void
files_undo(struct restart *r)
{
	for (size_t i = 0; i < r->ncreated; i++)
		if (r->created[i] != NULL)
			unlink(r->created[i]);
	r->ncreated = 0;
	for (size_t i = 0; i < r->naside; i++)
		if (rename(r->aside[i].now, r->aside[i].before) < 0)
			note("%s: is now %s: %s", r->aside[i].before, r->aside[i].now, strerror(errno));
	r->naside = 0;
}

void
files_keep(struct restart *r)
{
	for (size_t i = 0; i < r->naside; i++)
		unlink(r->aside[i].now);
	r->naside = 0;
}

static void
remember_aside(void *ctx, const char *now, const char *before)
{
	struct restart *r = ctx;
	struct aside *a = ARRAY_ADD(r->aside, r->naside);

	if (a != NULL)
		*a = (struct aside){strdup(now), strdup(before)};
}

struct loading {
	struct restart *r;
	struct kind_load *l;
	const int *lowest;
};

static int
load_one(void *ctx, size_t i)
{
	struct loading *w = ctx;
	const struct ofd *ofd = &w->l->objects->ofds[i];

	w->l->lowest = w->lowest[i] < 0 ? MODEL_FD_MAX : w->lowest[i];
	w->r->open.ofds[i] = kinds[ofd->kind]->load(w->l, ofd);
	return w->r->open.ofds[i] < 0 ? w->r->open.ofds[i] : 0;
}

static int
late_one(void *ctx, size_t i)
{
	const struct restart *r = ctx;
	const struct ofd *ofd = &r->model.objects.ofds[i];
	const struct kind *kind = kinds[ofd->kind];

	if (kind->late == NULL || r->open.ofds[i] < 0)
		return 0;
	return kind->late(&r->model.objects, ofd, r->open.ofds[i], r->open.ofds, load_is_move(r));
}

static int
go_on_one(void *ctx, size_t i)
{
	const struct restart *r = ctx;
	const struct ofd *ofd = &r->model.objects.ofds[i];
	const struct kind *kind = kinds[ofd->kind];

	return kind->go_on == NULL || r->open.ofds[i] < 0 ? 0 : kind->go_on(&r->model.objects, ofd, r->open.ofds[i]);
}

int *
files_none(size_t n)
{
	int *fds = malloc((n + 1) * sizeof(*fds));

	for (size_t i = 0; fds != NULL && i < n; i++)
		fds[i] = -1;
	return fds;
}

static int
load_ofds(struct restart *r, struct kind_load *l, const int *lowest)
{
	const struct objects *o = l->objects;
	struct loading w = {r, l, lowest};
	int err = kind_in_order(o, load_one, &w);

	for (size_t i = 0; i < o->nofds && err == 0 && !r->opt.check; i++) {
		const struct kind *kind = kinds[o->ofds[i].kind];

		l->lowest = lowest[i] < 0 ? MODEL_FD_MAX : lowest[i];
		if (kind->fill != NULL)
			err = kind->fill(l, &o->ofds[i], r->open.ofds[i]);
	}
	return err;
}

static int
open_ofds(struct restart *r)
{
	const struct objects *o = &r->model.objects;
	struct kind_load l = {.objects = o, .contents = r->open.contents, .maps = r->opt.maps,
	    .nmaps = r->opt.nmaps, .inherits = r->opt.inherits, .ninherits = r->opt.ninherits,
	    .stdio = {r->opt.stdio[0] == 0 && r->source.is_stdin ? -1 : r->opt.stdio[0],
		r->opt.stdio[1] == 1 && r->source.is_channel ? -1 : r->opt.stdio[1], r->opt.stdio[2]},
	    .check = r->opt.check, .created = remember_created, .set_aside = remember_aside, .ctx = r,
	    .fds = r->open.ofds, .moved = load_is_move(r), .tcp_reset = r->opt.tcp_reset,
	    .image_id = r->model.header.id, .netlock = &r->netlock};
	int *lowest = lowest_fds(r), err = 0;

	l.null = open("/dev/null", O_RDWR | O_CLOEXEC);
	l.pipes = calloc(o->npipes + 1, sizeof(*l.pipes));
	l.pipes_given = calloc(o->npipes + 1, 1);
	l.sockets = files_none(o->nsockets);
	l.far = files_none(o->nsockets);
	l.ptys = files_none(o->nptys);
	if (lowest == NULL || l.pipes == NULL || l.pipes_given == NULL || l.sockets == NULL || l.far == NULL ||
	    l.ptys == NULL)
		err = -ENOMEM;
	for (size_t i = 0; err == 0 && i < o->npipes; i++)
		l.pipes[i][0] = l.pipes[i][1] = -1;
	if (err == 0)
		err = load_ofds(r, &l, lowest);
	for (size_t i = 0; l.pipes != NULL && i < o->npipes; i++) {
		close_fd(&l.pipes[i][0]);
		close_fd(&l.pipes[i][1]);
	}
	for (size_t i = 0; i < o->nsockets; i++) {
		if (l.sockets != NULL)
			close_fd(&l.sockets[i]);
		if (l.far != NULL)
			close_fd(&l.far[i]);
	}
	for (size_t i = 0; l.ptys != NULL && i < o->nptys; i++)
		close_fd(&l.ptys[i]);
	close_fd(&l.null);
	free(l.ptys);
	free(l.sockets);
	free(l.far);
	free(l.pipes);
	free(l.pipes_given);
	free(lowest);
	return err;
}

int
files_late(struct restart *r)
{
	const struct objects *o = &r->model.objects;
	int err = kind_in_order(o, late_one, r);

	ipc_late(r);
	/* Seals forbid what was needed until now. */
	for (size_t i = 0; i < o->nfiles && err == 0; i++) {
		const struct file_ref *f = &o->files[i];

		if (r->open.contents[i] < 0 || !f->gone)
			continue;
		fchmod(r->open.contents[i], (mode_t)f->mode & 07777);
		if (f->seals != 0 && fcntl(r->open.contents[i], F_ADD_SEALS, (int)f->seals) < 0)
			note("%s: its seals cannot be had here: %s", f->path, strerror(errno));
	}
	return err;
}

/* Until now their end would have been silent. */
int
files_go_on(struct restart *r)
{
	netlock_end(r->netlock, NETLOCK_RELEASE);
	r->netlock = NULL;
	return kind_in_order(&r->model.objects, go_on_one, r);
}

/* Shared anonymous memory that is mapped in several pieces, or by several processes, needs a file to be one object. */
static int
open_shms(struct restart *r)
{
	size_t n = r->model.objects.nshms;
	unsigned char *pieces = calloc(n + 1, 1);
	int err = pieces == NULL ? -ENOMEM : 0;

	for (size_t k = 0; err == 0 && k < r->model.header.ntasks; k++) {
		const struct task *t = &r->model.tasks[k];

		for (size_t i = 0; i < t->nvmas; i++)
			if (t->vmas[i].kind == VMA_SHM && pieces[t->vmas[i].ref] < 2)
				pieces[t->vmas[i].ref] += t->vmas[i].offset == 0 ? 1 : 2;
	}
	for (size_t i = 0; err == 0 && i < n; i++) {
		if (r->model.objects.shms[i].sysv || pieces[i] < 2)
			continue;
		r->open.shms[i] = memfd_create("shared", MFD_CLOEXEC |
		    (unsigned)space_huge_flags(r, r->model.objects.shms[i].huge, MFD_HUGETLB));
		if (r->open.shms[i] < 0 ||
		    ftruncate(r->open.shms[i], (off_t)page_up(r->model.objects.shms[i].size)) < 0)
			err = fail_errno("shared memory");
	}
	free(pieces);
	return err;
}

/* Root opens files with the rights of the process, not with its own. */
static void
assume_ids(const struct restart *r, bool on)
{
	const struct creds *c = &r->model.tasks[0].creds;

	if (geteuid() != 0 && !on)
		return;
	if (geteuid() == 0 || !on) {
		setfsgid(on ? (gid_t)c->gid[1] : getegid());
		setfsuid(on ? (uid_t)c->uid[1] : geteuid());
	}
}

char *
files_directory(const struct restart *r, const struct task *t)
{
	return r->opt.chdir != NULL ? strdup(r->opt.chdir) : path_mapped(r->opt.maps, r->opt.nmaps, t->cwd);
}

/* Before anything is made: is there a place for each to be in? */
static int
check_directories(const struct restart *r)
{
	int err = 0;

	for (size_t i = 0; i < r->model.header.ntasks && err == 0; i++) {
		const struct task *t = &r->model.tasks[i];
		char *path;
		struct stat st;

		if (t->zombie)
			continue;
		path = files_directory(r, t);
		if (path == NULL)
			return -ENOMEM;
		if (stat(path, &st) < 0)
			err = fail_errno("%s (its working directory; --chdir or --map gives another)", path);
		else if (!S_ISDIR(st.st_mode))
			err = fail(ENOTDIR, "%s: not a directory (--chdir or --map gives another)", path);
		free(path);
	}
	return err;
}

int
files_open(struct restart *r)
{
	const struct objects *o = &r->model.objects;
	unsigned char *uses = file_uses(r);
	int err = uses == NULL ? -ENOMEM : is_away(r) ? 0 : check_directories(r);

	assume_ids(r, true);
	for (size_t i = 0; i < o->nfiles && err == 0; i++)
		if (uses[i] & USE_MAPPED)
			err = open_mapped(r, i, uses[i]);
	free(uses);
	for (size_t i = 0; i < r->model.header.ntasks && err == 0; i++)
		if (!r->model.tasks[i].zombie)
			err = open_program(r, (size_t)r->model.tasks[i].exe);
	space_choose_pages(r);
	if (err == 0 && !r->opt.check)
		err = ipc_make(r);
	if (err == 0)
		err = open_shms(r);
	if (err == 0)
		err = open_ofds(r);
	if (err == 0 && r->netlock != NULL)
		err = netlock_commit(r->netlock);
	assume_ids(r, false);
	return err;
}

int
files_open_program(struct restart *r, const struct task *t)
{
	int err;

	assume_ids(r, true);
	err = open_mapped(r, (size_t)t->exe, USE_MAPPED | USE_PRIVATE);
	if (err == 0)
		err = open_program(r, (size_t)t->exe);
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
	close_all(r->open.programs, o->nfiles);
	r->open = (struct opened){0};
}
