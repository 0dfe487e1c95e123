/*
 * The address space: its mappings, the files behind them, the vDSO, the kernel's fields.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "ckpt.h"
#include "digest.h"
#include "fileid.h"
#include "io.h"
#include "log.h"
#include "vdso.h"

#define DELETED " (deleted)"

static bool
has_flag(const char *flags, const char *two)
{
	for (; flags != NULL && *flags != '\0'; flags += flags[2] == ' ' ? 3 : 2)
		if (flags[0] == two[0] && flags[1] == two[1])
			return true;
	return false;
}

static void
drop_flag(char *flags, const char *two)
{
	for (; *flags != '\0'; flags += flags[2] == ' ' ? 3 : 2)
		if (flags[0] == two[0] && flags[1] == two[1]) {
			memmove(flags, flags + (flags[2] == ' ' ? 3 : 2), strlen(flags + (flags[2] == ' ' ? 3 : 2)) + 1);
			return;
		}
}

/* --- files */

/* File systems whose inodes have another device number in maps than in stat(2). */
static bool
device_differs(int fd)
{
	enum { OVERLAYFS = 0x794c7630, BTRFS = (int)0x9123683E };
	struct statfs fs;

	return fstatfs(fd, &fs) == 0 && (fs.f_type == OVERLAYFS || (int)fs.f_type == BTRFS);
}

static bool
is_file_of(int fd, const struct proc_map *m)
{
	struct stat st;

	return fstat(fd, &st) == 0 && st.st_ino == m->ino &&
	    (st.st_dev == makedev(m->major, m->minor) || device_differs(fd));
}

static int
open_if_same(int dirfd, const char *path, const struct proc_map *m)
{
	int fd = openat(dirfd, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);

	if (fd >= 0 && !is_file_of(fd, m))
		close_fd(&fd);
	return fd;
}

/* By an fd of any of the processes. */
static int
open_by_fd(const struct ckpt *c, const struct proc_map *m)
{
	char name[64];
	int fd = -1;

	for (size_t i = 0; i < c->nheld && fd < 0; i++) {
		if (c->held[i].st.st_ino != m->ino)
			continue;
		snprintf(name, sizeof(name), "fd/%d", c->held[i].fd);
		fd = open_if_same(c->held[i].proc, name, m);
	}
	return fd;
}

/* The mapped file by any way that leads to it, or -1. *at_path: it is still at its path. */
static int
open_mapped(const struct ckpt *c, const struct target *t, const struct proc_map *m, const char *path, bool *at_path)
{
	char name[64], *inside;
	int fd = -1;

	*at_path = false;
	if (path[0] == '/' && asprintf(&inside, "root%s", path) > 0) {
		fd = open_if_same(t->proc, inside, m);
		*at_path = fd >= 0;
		free(inside);
	}
	if (fd < 0)
		fd = open_if_same(t->proc, "exe", m);
	if (fd < 0)
		fd = open_by_fd(c, m);
	if (fd < 0) { /* with CAP_CHECKPOINT_RESTORE */
		snprintf(name, sizeof(name), "map_files/%llx-%llx", (unsigned long long)m->start,
		    (unsigned long long)m->end);
		fd = open_if_same(t->proc, name, m);
	}
	return fd;
}

void
space_look_ahead(const struct target *t)
{
	struct proc_maps maps = {0};

	if (proc_read_maps(t->proc, false, &maps) < 0)
		return;
	for (size_t i = 0; i < maps.n; i++) {
		char *path;
		int fd;

		if (maps.map[i].ino == 0 || maps.map[i].path[0] != '/' || (i > 0 && maps.map[i].ino == maps.map[i - 1].ino) ||
		    asprintf(&path, "root%s", maps.map[i].path) < 0)
			continue;
		fd = openat(t->proc, path, O_RDONLY | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
		if (fd >= 0)
			fileid_look_ahead(fd);
		close_fd(&fd);
		free(path);
	}
	proc_maps_fini(&maps);
}

/* A file in memory has no other place than this host's. */
static bool
is_in_memory(int fd)
{
	enum { TMPFS = 0x01021994 };
	struct statfs fs;

	return fd >= 0 && fstatfs(fd, &fs) == 0 && fs.f_type == TMPFS;
}

static bool
must_embed(const struct ckpt *c, const struct file_ref *ref, bool at_path)
{
	if (!at_path || c->opt.embed != EMBED_NEEDED)
		return true;
	return ref->build_id == NULL && ref->size < EMBED_MAX;
}

int64_t
space_file(struct ckpt *c, struct member *who, const struct proc_map *m)
{
	struct objects *o = &c->model.objects;
	struct mapped_file *mf;
	struct file_ref *ref;
	struct stat st;
	size_t len;
	bool at_path;
	int err;

	for (size_t i = 0; i < c->nmapped; i++)
		if (c->mapped[i].ino == m->ino && c->mapped[i].major == m->major &&
		    c->mapped[i].minor == m->minor)
			return (int64_t)i;
	mf = ARRAY_ADD(c->mapped, c->nmapped);
	ref = ARRAY_ADD(o->files, o->nfiles);
	if (mf == NULL || ref == NULL || (ref->path = strdup(m->path)) == NULL)
		return -ENOMEM;
	*mf = (struct mapped_file){m->major, m->minor, m->ino, -1};
	mf->fd = open_mapped(c, &who->target, m, ref->path, &at_path);
	len = strlen(ref->path);
	if (!at_path && len > strlen(DELETED) &&
	    strcmp(ref->path + len - strlen(DELETED), DELETED) == 0)
		ref->path[len - strlen(DELETED)] = '\0';
	ref->gone = !at_path;
	ref->partial = mf->fd < 0;
	if (mf->fd >= 0) {
		err = fileid_get(ref, mf->fd, FILEID_BUILD_ID | FILEID_HASH);
		if (err < 0)
			return fail(-err, "%s: %s", ref->path, strerror(-err));
	}
	if (mf->fd >= 0 && fstat(mf->fd, &st) == 0) {
		struct known_file *known = ARRAY_ADD(c->shared.files, c->shared.nfiles);

		if (known == NULL)
			return -ENOMEM;
		*known = (struct known_file){st.st_dev, st.st_ino, (int64_t)o->nfiles - 1, -1};
	}
	if ((must_embed(c, ref, at_path) || is_in_memory(mf->fd)) && asprintf(&ref->member, "file/%zu", o->nfiles - 1) < 0)
		return -ENOMEM;
	return (int64_t)o->nfiles - 1;
}

/* --- mappings */

static int
refuse(struct ckpt *c, struct member *who, const struct proc_map *m, const char *advice, const char *what)
{
	char name[96];

	return report_add(&c->report, OBSTACLE, 69, mapping_name(who, m->start, m->end, name), advice, "%s%s%s", what,
	    m->path[0] != '\0' ? ": " : "", m->path);
}

/* An object that may be mapped in several places: found again by its inode. */
static int64_t
shm_object(struct ckpt *c, const struct proc_map *m)
{
	struct objects *o = &c->model.objects;
	uint64_t end = m->offset + (m->end - m->start);
	size_t i = 0;

	while (i < c->nshm_inos && c->shm_inos[i] != m->ino)
		i++;
	if (i == c->nshm_inos) {
		uint64_t *ino = ARRAY_ADD(c->shm_inos, c->nshm_inos);

		if (ino == NULL || ARRAY_ADD(o->shms, o->nshms) == NULL)
			return -ENOMEM;
		*ino = m->ino;
	}
	o->shms[i].size = max_u64(o->shms[i].size, end);
	return (int64_t)i;
}

/* A segment of System V, whose ID is the inode. What else it is the process itself tells (inside.c). */
static int
sysv_segment(struct ckpt *c, struct member *who, const struct proc_map *m, struct vma *v)
{
	struct proc_map by_id = *m;
	struct shm_ref *shm;

	if (m->offset != 0)
		return refuse(c, who, m, NULL, "a part of a System V segment");
	by_id.ino = m->ino | 1ULL << 63; /* not the inode of other shared memory */
	v->kind = VMA_SHM;
	v->ref = shm_object(c, &by_id);
	if (v->ref < 0)
		return (int)v->ref;
	shm = &c->model.objects.shms[v->ref];
	if (!shm->sysv)
		*shm = (struct shm_ref){.size = shm->size, .sysv = true, .id = (int64_t)m->ino, .mode = -1, .huge = v->huge};
	return 0;
}

/* What is in it collect_aio() looks at when all are known. */
static int
aio_ring(struct member *who, struct vma *v)
{
	if (ARRAY_ADD(who->task->aios, who->task->naios) == NULL)
		return -ENOMEM;
	v->kind = VMA_AIO;
	v->ref = (int64_t)who->task->naios - 1;
	return 0;
}

/* Until the files are known it refers to the fd (held), then to its ofd: space_refer(). */
static int
uring_memory(struct ckpt *c, struct member *who, const struct proc_map *m, struct vma *v)
{
	size_t i = 0;

	while (i < c->nheld && (c->held[i].st.st_ino != m->ino || strcmp(c->held[i].link, "anon_inode:[io_uring]") != 0))
		i++;
	if (i == c->nheld)
		return refuse(c, who, m, "have the program do without io_uring", "memory of a ring that it has closed or registered");
	v->kind = VMA_URING;
	v->ref = (int64_t)i;
	return 0;
}

void
space_refer(struct ckpt *c)
{
	for (size_t m = 0; m < c->nmembers; m++)
		for (size_t i = 0; i < c->members[m]->task->nvmas; i++) {
			struct vma *v = &c->members[m]->task->vmas[i];

			if (v->kind == VMA_URING)
				v->ref = c->held[v->ref].ofd;
		}
}

/* A memfd that is also open is a file, with pages that no mapping may show. */
static bool
has_fd(const struct ckpt *c, const struct proc_map *m)
{
	for (size_t i = 0; i < c->nheld; i++)
		if (c->held[i].st.st_ino == m->ino && c->held[i].st.st_dev == makedev(m->major, m->minor))
			return true;
	return false;
}

/* Huge pages as the kernel calls them without a file, or as an earlier restart has made them shared. */
static bool
is_unnamed_huge(const struct proc_map *m)
{
	return strncmp(m->path, "/anon_hugepage", 14) == 0 || (m->shared && strncmp(m->path, "/memfd:", 7) == 0);
}

/* What is behind a mapping. Returns 0, 1 to leave it out, or a negative errno. */
static int
classify(struct ckpt *c, struct member *who, const struct proc_map *m,
    struct vma *v)
{
	bool special = m->path[0] == '[';

	v->kind = VMA_ANON;
	v->ref = -1;
	if (m->start >= ARCH_USER_END || strncmp(m->path, "[vvar", 5) == 0 ||
	    strcmp(m->path, "[vdso]") == 0)
		return 1;
	v->huge = has_flag(m->flags, "ht") ? m->page_bytes : 0;
	if (v->huge != 0 && (has_fd(c, m) || (!is_unnamed_huge(m) && strncmp(m->path, "/SYSV", 5) != 0)))
		return refuse(c, who, m, "have the program map it as anonymous memory (MAP_HUGETLB)",
		    "a file of hugetlbfs");
	if (has_flag(m->flags, "io") || has_flag(m->flags, "pf"))
		return refuse(c, who, m, "have the program release the device", "memory of a device");
	/* Its own would show as an open file; ours does not. */
	if (has_flag(m->flags, "um") || (has_flag(m->flags, "uw") && !rounds_track(c, who)))
		return refuse(c, who, m, "where it was restarted lazily, wait until all of its memory is there (pagesrv wait)", "under a userfaultfd");
	if (has_flag(m->flags, "ss"))
		return refuse(c, who, m, "start it with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off",
		    "a shadow stack");
	if (m->pkey != 0)
		return refuse(c, who, m, NULL, "memory under a protection key");
	if (strncmp(m->path, "/[aio]", 6) == 0)
		return aio_ring(who, v);
	if (strncmp(m->path, "/SYSV", 5) == 0)
		return sysv_segment(c, who, m, v);
	if (strncmp(m->path, "[anon:", 6) == 0 || strncmp(m->path, "[anon_shmem:", 12) == 0) {
		v->name = strdup(strchr(m->path, ':') + 1);
		if (v->name == NULL)
			return -ENOMEM;
		v->name[strcspn(v->name, "]")] = '\0';
	}
	if (v->huge != 0 && !m->shared)
		return 0;
	if (m->shared && m->ino != 0 && !has_fd(c, m) && (v->huge != 0 ||
	    strncmp(m->path, "/dev/zero (deleted)", 19) == 0 || strncmp(m->path, "/memfd:", 7) == 0 ||
	    strncmp(m->path, "[anon_shmem:", 12) == 0)) {
		v->kind = VMA_SHM;
		v->ref = shm_object(c, m);
		if (v->ref >= 0)
			c->model.objects.shms[v->ref].huge = v->huge;
		return v->ref < 0 ? (int)v->ref : 0;
	}
	if (m->ino == 0 && (special || m->path[0] == '\0'))
		return 0;
	if (strncmp(m->path, "anon_inode:[io_uring]", 21) == 0)
		return uring_memory(c, who, m, v);
	if (m->path[0] != '/')
		return refuse(c, who, m, NULL, "a kind of memory that cannot be moved");
	v->kind = VMA_FILE;
	v->ref = space_file(c, who, m);
	if (v->ref < 0)
		return (int)v->ref;
	return 0;
}

static int
add_mapping(struct ckpt *c, struct member *who, const struct proc_map *m)
{
	struct task *t = who->task;
	struct vma v = {.start = m->start, .end = m->end, .prot = m->prot, .shared = m->shared,
	    .offset = m->offset};
	struct vma *out;
	int err = classify(c, who, m, &v);

	if (err != 0) {
		free(v.name);
		return err < 0 ? err : 0;
	}
	out = ARRAY_ADD(t->vmas, t->nvmas);
	v.flags = m->flags != NULL ? strdup(m->flags) : NULL;
	if (v.flags != NULL && rounds_track(c, who))
		drop_flag(v.flags, "uw");
	if (out == NULL) {
		free(v.name);
		free(v.flags);
		return -ENOMEM;
	}
	*out = v;
	return 0;
}

/* --- the vDSO */

/* Where its code is in the image: with the first member that has the same. */
static int
name_vdso(struct ckpt *c, struct member *who)
{
	struct mm_layout *mm = &who->task->mm;
	size_t i = 0;

	if (mm->vdso_hash == NULL)
		return -ENOMEM;
	while (c->members[i] != who && (c->members[i]->vdso == NULL ||
		strcmp(c->members[i]->task->mm.vdso_hash, mm->vdso_hash) != 0))
		i++;
	if (asprintf(&mm->vdso_member, "vdso/%zu", i) < 0)
		return -ENOMEM;
	if (c->members[i] != who) {
		free(who->vdso);
		who->vdso = NULL;
	}
	return 0;
}

/*
 * Either the kernel's own, or the page of jumps that an earlier restart has put in the
 * place of another kernel's: then that is what the program knows as its vDSO.
 */
static int
collect_vdso(struct ckpt *c, struct member *who)
{
	struct mm_layout *mm = &who->task->mm;
	const struct proc_map *vdso = NULL, *proxy = NULL;
	unsigned char head[VDSO_MARK_END];
	char hex[DIGEST_HEX];
	int err;

	for (size_t i = 0; i < who->target.maps.n; i++) {
		const struct proc_map *m = &who->target.maps.map[i];

		if (strcmp(m->path, "[vdso]") == 0)
			vdso = m;
		else if (strncmp(m->path, "[vvar", 5) == 0 && (mm->vvar == 0 || m->start < mm->vvar))
			mm->vvar = m->start;
		else if (m->path[0] == '\0' && m->prot == (PROT_READ | PROT_EXEC) && !m->shared &&
		    mem_read(who->target.mem, m->start, head, sizeof(head)) == 0 && vdso_is_proxy(head))
			proxy = m;
	}
	if (proxy != NULL) {
		vdso = proxy;
		mm->vvar = proxy->start;
	}
	if (vdso == NULL)
		return 0;
	mm->vdso = vdso->start;
	mm->vdso_size = vdso->end - vdso->start;
	if (mm->vvar == 0 || mm->vvar > mm->vdso)
		mm->vvar = mm->vdso;
	who->vdso = malloc(mm->vdso_size);
	if (who->vdso == NULL)
		return -ENOMEM;
	if (mem_read(who->target.mem, mm->vdso, who->vdso, mm->vdso_size) < 0)
		return fail(EIO, "pid %d: its vDSO cannot be read", who->target.pid);
	digest_once(who->vdso, mm->vdso_size, hex);
	mm->vdso_hash = strdup(hex);
	err = name_vdso(c, who);
	if (err < 0)
		return err;
	for (size_t i = 0; i < who->target.nthreads; i++) {
		const struct tracee *th = &who->target.threads[i];
		taddr ip = th->coop != NULL ? th->inside : th->regs.rip;

		mm->in_vdso |= ip >= vdso->start && ip < vdso->end;
	}
	/* The page of jumps is remade at the other end. */
	if (proxy != NULL)
		for (size_t i = 0; i < who->task->nvmas; i++) {
			struct vma *v = &who->task->vmas[i];

			if (v->start != proxy->start)
				continue;
			free(v->flags);
			free(v->name);
			memmove(v, v + 1, (--who->task->nvmas - i) * sizeof(*v));
		}
	return 0;
}

/* --- the kernel's fields */

static int
collect_layout(struct member *who)
{
	const struct proc_stat *st = &who->target.stat;
	struct mm_layout *mm = &who->task->mm;
	ssize_t n;

	mm->start_code = st->start_code, mm->end_code = st->end_code;
	mm->start_data = st->start_data, mm->end_data = st->end_data;
	mm->start_brk = st->start_brk, mm->start_stack = st->start_stack;
	mm->arg_start = st->arg_start, mm->arg_end = st->arg_end;
	mm->env_start = st->env_start, mm->env_end = st->env_end;
	n = read_file(who->target.proc, "auxv", (char **)&mm->auxv.p);
	if (n < 0)
		return fail((int)-n, "pid %d: auxv: %s", who->target.pid, strerror((int)-n));
	mm->auxv.n = (size_t)n;
	return 0;
}

static int
collect_exe(struct ckpt *c, struct member *who)
{
	struct proc_map m = {0};
	struct stat st;
	int64_t ref;

	if (fstatat(who->target.proc, "exe", &st, 0) < 0)
		return fail_errno("pid %d: its program", who->target.pid);
	m.major = major(st.st_dev);
	m.minor = minor(st.st_dev);
	m.ino = st.st_ino;
	if (read_link(who->target.proc, "exe", &m.path) < 0)
		return fail_errno("pid %d: its program", who->target.pid);
	/* Usually mapped, and then known by the device number that maps shows. */
	for (size_t i = 0; i < c->nmapped; i++)
		if (c->mapped[i].ino == m.ino && c->mapped[i].fd >= 0 && is_file_of(c->mapped[i].fd, &m)) {
			free(m.path);
			who->task->exe = (int64_t)i;
			return 0;
		}
	ref = space_file(c, who, &m);
	free(m.path);
	who->task->exe = ref;
	return ref < 0 ? (int)ref : 0;
}

int
collect_space(struct ckpt *c, struct member *who)
{
	int err = collect_layout(who);

	for (size_t i = 0; err == 0 && i < who->target.maps.n; i++)
		err = add_mapping(c, who, &who->target.maps.map[i]);
	if (err == 0)
		err = collect_exe(c, who);
	if (err == 0)
		err = collect_vdso(c, who);
	return err;
}
