#include "chain.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "elf_file.h"
#include "image.h"
#include "io.h"
#include "log.h"
#include "record.h"

struct link_of_chain {
	char *path;
	struct page_file *file;
	struct image_header header;
	struct task *tasks; /* as many as header.ntasks */
};

struct chain {
	struct link_of_chain *links; /* each the parent of the one before */
	size_t n;
};

struct chain_reader {
	const struct chain *chain;
	struct page_cache **caches;
};

/* --- opening */

static ssize_t
read_fd(void *ctx, void *data, size_t len)
{
	ssize_t n;

	do
		n = read(*(int *)ctx, data, len);
	while (n < 0 && errno == EINTR);
	return n < 0 ? fail_errno("image") : n;
}

/* The member of this name, which is the next one. */
static int
get_next(struct image_reader *r, const char *path, const char *want, const struct record *rec, void *st)
{
	char name[IMAGE_NAME_MAX];
	uint64_t size;
	int err = image_next(r, name, &size);

	if (err < 0)
		return err;
	if (err == 0 || strcmp(name, want) != 0)
		return fail(EBADMSG, "%s: bad image: %s is not where it belongs", path, want);
	return rec == NULL ? 0 : image_get_record(r, rec, st);
}

static int
read_tasks(struct link_of_chain *l, struct image_reader *r)
{
	int err = get_next(r, l->path, "objects.json", NULL, NULL);

	l->tasks = calloc(l->header.ntasks + 1, sizeof(*l->tasks));
	if (l->tasks == NULL)
		return fail(ENOMEM, "out of memory");
	for (size_t i = 0; i < l->header.ntasks && err == 0; i++) {
		char name[IMAGE_NAME_MAX];

		snprintf(name, sizeof(name), "task/%lld.json", (long long)l->header.tasks[i]);
		err = get_next(r, l->path, name, &record_task, &l->tasks[i]);
	}
	return err;
}

/* Its header; with whole, what else it says. fd is at the image. */
static int
read_text(struct link_of_chain *l, int fd, bool whole)
{
	struct image_reader *r = image_reader_new(read_fd, &fd, l->path);
	int err = r == NULL ? fail(ENOMEM, "out of memory") : get_next(r, l->path, "header.json", &record_header, &l->header);

	if (err == 0 && (l->header.id == NULL || l->header.version != IMAGE_VERSION || l->header.ntasks > IMAGE_TEXT_MAX))
		err = fail(EBADMSG, "%s: bad image: not one that can be a parent", l->path);
	if (err == 0 && whole)
		err = read_tasks(l, r);
	image_reader_free(r);
	return err;
}

static int
open_image(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	struct stat st;

	if (fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && lseek(fd, (off_t)elf_file_end(fd), SEEK_SET) >= 0)
		return fd;
	close_fd(&fd);
	return -1;
}

static void
link_fini(struct link_of_chain *l)
{
	for (size_t i = 0; l->tasks != NULL && i < l->header.ntasks; i++)
		record_free(&record_task, &l->tasks[i]);
	free(l->tasks);
	record_free(&record_header, &l->header);
	page_file_close(l->file);
	free(l->path);
}

static int
add(struct chain *c, const char *path)
{
	struct link_of_chain *l;
	int fd = open_image(path), err;

	if (fd < 0)
		return fail(ENOENT, "%s: no image is there", path);
	if (c->n == CHAIN_MAX) {
		close(fd);
		return fail(EBADMSG, "%s: has more than %d parents", path, CHAIN_MAX);
	}
	l = ARRAY_ADD(c->links, c->n);
	if (l != NULL)
		*l = (struct link_of_chain){.path = strdup(path)};
	if (l == NULL || l->path == NULL) {
		close(fd);
		return fail(ENOMEM, "out of memory");
	}
	err = read_text(l, fd, true);
	close(fd);
	fd = err < 0 ? -1 : open(path, O_RDONLY | O_CLOEXEC);
	if (err == 0)
		err = fd < 0 ? fail_errno("%s", path) : page_file_open(&l->file, fd, l->path);
	return err;
}

/* Is this the image with that identity? Silent. */
static bool
is_image(const char *path, const char *id)
{
	struct link_of_chain l = {.path = strdup(path)};
	int fd = open_image(path);
	bool yes;

	log_hush(1);
	yes = fd >= 0 && l.path != NULL && read_text(&l, fd, false) == 0 && strcmp(l.header.id, id) == 0;
	log_hush(-1);
	close_fd(&fd);
	link_fini(&l);
	return yes;
}

/* In the directory of `beside`, or here. The caller frees; NULL: not there. */
static char *
look_for(const char *beside, const char *id)
{
	const char *slash = beside == NULL ? NULL : strrchr(beside, '/');
	char *dir = slash == NULL ? strdup(".") : strndup(beside, (size_t)(slash - beside) + 1), *path = NULL;
	DIR *d = dir == NULL ? NULL : opendir(dir);
	struct dirent *e;

	while (d != NULL && path == NULL && (e = readdir(d)) != NULL) {
		if (e->d_name[0] == '.' || (e->d_type != DT_REG && e->d_type != DT_LNK && e->d_type != DT_UNKNOWN))
			continue;
		if (asprintf(&path, "%s%s%s", slash == NULL ? "" : dir, "", e->d_name) < 0) {
			path = NULL;
			break;
		}
		if (!is_image(path, id)) {
			free(path);
			path = NULL;
		}
	}
	if (d != NULL)
		closedir(d);
	free(dir);
	return path;
}

/* From the last one on. */
static int
add_parents(struct chain *c, const char *id, const char *beside, const char *hint)
{
	int err = 0;

	while (err == 0 && id != NULL) {
		char *path = hint != NULL && is_image(hint, id) ? strdup(hint) : look_for(beside, id);

		if (path == NULL && hint != NULL)
			return fail(ENOENT, "%s: is not the parent that %s names, which is image %s, and that is not beside it", hint,
			    beside != NULL ? beside : "the image", id);
		if (path == NULL)
			return fail(ENOENT, "%s: its parent, image %s, is not beside it (restart --parent FILE)", beside != NULL ? beside : "the image", id);
		err = add(c, path);
		free(path);
		if (err < 0)
			return err;
		hint = NULL;
		beside = c->links[c->n - 1].path;
		id = c->links[c->n - 1].header.parent;
	}
	return err;
}

static int
finish(struct chain **c, struct chain *made, int err)
{
	if (err < 0) {
		chain_close(made);
		made = NULL;
	}
	*c = made;
	return err;
}

int
chain_open(struct chain **c, const char *path)
{
	struct chain *made = calloc(1, sizeof(*made));
	int err = made == NULL ? fail(ENOMEM, "out of memory") : add(made, path);

	if (err == 0)
		err = add_parents(made, made->links[0].header.parent, path, NULL);
	return finish(c, made, err);
}

int
chain_open_parents(struct chain **c, const struct image_header *header, const char *path, const char *hint)
{
	struct chain *made = calloc(1, sizeof(*made));
	int err = made == NULL ? fail(ENOMEM, "out of memory") : add_parents(made, header->parent, path, hint);

	return finish(c, made, err);
}

void
chain_close(struct chain *c)
{
	for (size_t i = 0; c != NULL && i < c->n; i++)
		link_fini(&c->links[i]);
	if (c != NULL)
		free(c->links);
	free(c);
}

const char *
chain_id(const struct chain *c)
{
	return c->links[0].header.id;
}

size_t
chain_length(const struct chain *c)
{
	return c->n;
}

static const struct task *
find_task(const struct link_of_chain *l, int64_t pid)
{
	for (size_t i = 0; i < l->header.ntasks; i++)
		if (l->tasks[i].pid == pid)
			return &l->tasks[i];
	return NULL;
}

bool
chain_has_task(const struct chain *c, int64_t task)
{
	return find_task(&c->links[0], task) != NULL;
}

/* --- reading */

struct chain_reader *
chain_reader_new(const struct chain *c)
{
	struct chain_reader *r = calloc(1, sizeof(*r));

	if (r == NULL)
		return NULL;
	r->chain = c;
	r->caches = calloc(c->n, sizeof(struct page_cache *));
	for (size_t i = 0; r->caches != NULL && i < c->n; i++) {
		r->caches[i] = page_cache_new(c->links[i].file, 4);
		if (r->caches[i] == NULL) {
			chain_reader_free(r);
			return NULL;
		}
	}
	if (r->caches == NULL) {
		free(r);
		return NULL;
	}
	return r;
}

void
chain_reader_free(struct chain_reader *r)
{
	if (r == NULL)
		return;
	for (size_t i = 0; i < r->chain->n; i++)
		page_cache_free(r->caches[i]);
	free(r->caches);
	free(r);
}

/* The range of pages of a parent that addr is in, or NULL. */
static const struct page_range *
earlier_at(const struct task *t, taddr addr)
{
	size_t lo = 0, hi = t->nearlier;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (t->earlier[mid].end <= addr)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo < t->nearlier && t->earlier[lo].start <= addr ? &t->earlier[lo] : NULL;
}

/* The same from the image's own. */
static int
find_own(struct page_cache *cache, int64_t task, taddr addr, taddr limit, const unsigned char **content, uint64_t *npages)
{
	const unsigned char *all;
	struct page_piece piece;
	int err = page_cache_find(cache, task, addr, limit, &piece);
	uint64_t before = 0;

	if (err <= 0)
		return err;
	for (size_t i = 0; i < piece.nruns; before += piece.runs[i++].npages) {
		const struct page_run *run = &piece.runs[i];
		uint64_t skip = addr >= run->addr ? (addr - run->addr) / PAGE_BYTES : UINT64_MAX;

		if (skip >= run->npages)
			continue;
		err = page_cache_content(cache, &piece, &all);
		*content = err < 0 ? NULL : all + (before + skip) * PAGE_BYTES;
		*npages = max_u64(1, min_u64(run->npages - skip, (limit - addr) / PAGE_BYTES));
		return err < 0 ? err : 1;
	}
	return 0;
}

int
chain_find(struct chain_reader *r, int64_t task, taddr addr, taddr limit, const unsigned char **content, uint64_t *npages)
{
	for (size_t i = 0; i < r->chain->n; i++) {
		const struct task *t = find_task(&r->chain->links[i], task);
		const struct page_range *range;
		int err = t == NULL ? 0 : find_own(r->caches[i], task, addr, limit, content, npages);

		if (err != 0 || t == NULL)
			return err;
		range = earlier_at(t, addr);
		if (range == NULL)
			return 0;
		/* What is behind that is this one's own again. */
		limit = min_u64(limit, range->end);
	}
	return 0;
}
