/*
 * The members of the image, in the order in which a reader of a pipe needs them.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ckpt.h"
#include "fault.h"
#include "io.h"
#include "log.h"
#include "record.h"

struct writing {
	struct ckpt *c;
	struct output *o;
	struct image_writer *w;
};

static int
put_record(struct image_writer *w, const char *name, const struct record *rec, const void *st)
{
	size_t len = 0;
	char *text = record_to_text(rec, st, &len);
	int err = text == NULL ? fail(ENOMEM, "%s: cannot be written", name)
			       : image_put(w, name, text, len);

	free(text);
	return err;
}

/* --- embedded files */

struct file_content {
	struct ckpt *c;
	size_t index;
	int fd;
	int own; /* the same file, opened here, where its holes can be looked for: that moves the offset of whoever has it open; or -1 */
	uint64_t data_from; /* no data is in front of that, as far as it was looked for */
};

/* Is nothing there but a hole? Reading that would fill the page cache with zeroes. */
static bool
is_hole(struct file_content *f, uint64_t offset, size_t len)
{
	off_t at;

	if (f->own < 0 || offset + len <= f->data_from)
		return f->own >= 0;
	at = lseek(f->own, (off_t)offset, SEEK_DATA);
	if (at < 0 && errno != ENXIO)
		close_fd(&f->own);
	else
		f->data_from = at < 0 ? UINT64_MAX : (uint64_t)at;
	return f->own >= 0 && offset + len <= f->data_from;
}

static int
read_from_fd(void *ctx, uint64_t offset, void *data, size_t len)
{
	struct file_content *f = ctx;
	char *p = data;

	if (is_hole(f, offset, len)) {
		memset(data, 0, len);
		return 0;
	}

	while (len > 0) {
		ssize_t n = pread(f->fd, p, len, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? fail_errno("%s", f->c->model.objects.files[f->index].path)
				     : fail(EIO, "%s: became shorter", f->c->model.objects.files[f->index].path);
		p += n;
		offset += (uint64_t)n;
		len -= (size_t)n;
	}
	return 0;
}

/*
 * A file that nothing leads to any more, as the process has it mapped. Where a private page has
 * been changed this gives the changed one: the mapping has its own copy in the image anyway.
 */
static int
read_from_mappings(void *ctx, uint64_t offset, void *data, size_t len)
{
	const struct file_content *f = ctx;

	memset(data, 0, len);
	for (size_t m = 0; m < f->c->nmembers; m++) {
		const struct member *who = f->c->members[m];

		for (size_t i = 0; i < who->task->nvmas; i++) {
			const struct vma *v = &who->task->vmas[i];
			uint64_t from, to;

			if (v->kind != VMA_FILE || (size_t)v->ref != f->index)
				continue;
			from = max_u64(offset, v->offset);
			to = min_u64(offset + len, v->offset + (v->end - v->start));
			/* Behind the end of the file there is nothing to read. */
			for (; from < to; from += PAGE_BYTES)
				mem_read(member_memory(who).mem, v->start + (from - v->offset),
				    (char *)data + (from - offset), min_u64(PAGE_BYTES, to - from));
		}
	}
	return 0;
}

static uint64_t
mapped_end(const struct ckpt *c, size_t index)
{
	uint64_t end = 0;

	for (size_t m = 0; m < c->nmembers; m++) {
		const struct task *t = c->members[m]->task;

		for (size_t i = 0; i < t->nvmas; i++)
			if (t->vmas[i].kind == VMA_FILE && (size_t)t->vmas[i].ref == index)
				end = max_u64(end, t->vmas[i].offset + (t->vmas[i].end - t->vmas[i].start));
	}
	return end;
}

void
set_partial_sizes(struct ckpt *c)
{
	struct objects *o = &c->model.objects;

	for (size_t i = 0; i < o->nfiles; i++)
		if (o->files[i].partial)
			o->files[i].size = mapped_end(c, i);
}

static int
open_for_content(struct ckpt *c, size_t index)
{
	char *path;
	int fd;

	if (index < c->nmapped)
		return fcntl(c->mapped[index].fd, F_DUPFD_CLOEXEC, 3);
	for (size_t i = 0; i < c->shared.nfiles; i++)
		if (c->shared.files[i].ref == (int64_t)index && c->shared.files[i].fd >= 0)
			return fcntl(c->shared.files[i].fd, F_DUPFD_CLOEXEC, 3);
	if (asprintf(&path, "root%s", c->model.objects.files[index].path) < 0)
		return -1;
	fd = openat(c->members[0]->target.proc, path, O_RDONLY | O_CLOEXEC);
	free(path);
	return fd;
}

/* Where its content is read from. f->fd is then the caller's to close. */
static int
find_content(struct ckpt *c, size_t index, struct file_content *f, image_content **read)
{
	const struct file_ref *ref = &c->model.objects.files[index];
	int kept = snapshot_file(c, index);
	char self[32];

	*f = (struct file_content){c, index, -1, -1, 0};
	*read = ref->partial && kept < 0 ? read_from_mappings : read_from_fd;
	if (*read == read_from_mappings)
		return 0;
	f->fd = kept >= 0 ? fcntl(kept, F_DUPFD_CLOEXEC, 3) : open_for_content(c, index);
	if (f->fd < 0)
		return fail_errno("%s: cannot be read, and is to be in the image", ref->path);
	snprintf(self, sizeof(self), "/proc/self/fd/%d", f->fd);
	f->own = open(self, O_RDONLY | O_CLOEXEC);
	return 0;
}

static int
put_file(struct writing *wr, size_t index)
{
	struct file_ref *ref = &wr->c->model.objects.files[index];
	struct file_content f;
	image_content *read;
	int err = find_content(wr->c, index, &f, &read);

	if (err == 0)
		err = image_put_content(wr->w, ref->member, ref->size, read, &f);
	close_fd(&f.own);
	close_fd(&f.fd);
	return err;
}

int
copy_file(struct ckpt *c, size_t index, int fd)
{
	enum { PIECE = 64 << 10 };
	uint64_t size = c->model.objects.files[index].size;
	unsigned char *data = malloc(PIECE);
	struct file_content f = {.fd = -1, .own = -1};
	image_content *read;
	int err = data == NULL ? -ENOMEM : ftruncate(fd, (off_t)size) < 0 ? -errno : 0;
	int kept = c->kept[index];

	c->kept[index] = -1; /* not yet */
	if (err == 0)
		err = find_content(c, index, &f, &read);
	for (uint64_t at = 0; at < size && err == 0; at += PIECE) {
		uint64_t n = min_u64(PIECE, size - at);

		err = read(&f, at, data, n);
		if (err == 0)
			err = write_sparse(fd, data, n);
	}
	c->kept[index] = kept;
	close_fd(&f.own);
	close_fd(&f.fd);
	free(data);
	return err;
}

/* --- all of it */

static int
progress(void *ctx, uint64_t done, uint64_t all)
{
	const struct writing *wr = ctx;

	if (interrupted())
		return fail(EINTR, "interrupted; pid %d runs on", wr->c->members[0]->target.pid);
	log_progress("memory", done * PAGE_BYTES, all * PAGE_BYTES);
	return fault(FAULT_page_out);
}

int
add_feature(struct ckpt *c, const char *name)
{
	char **feature = ARRAY_ADD(c->model.header.features, c->model.header.nfeatures);

	return feature == NULL || (*feature = strdup(name)) == NULL ? fail(ENOMEM, "out of memory") : 0;
}

int
write_records(struct ckpt *c, struct image_writer *w)
{
	char name[IMAGE_NAME_MAX];
	int err = put_record(w, "header.json", &record_header, &c->model.header);

	if (err == 0)
		err = put_record(w, "objects.json", &record_objects, &c->model.objects);
	for (size_t i = 0; err == 0 && i < c->nmembers; i++) {
		snprintf(name, sizeof(name), "task/%" PRId64 ".json", c->members[i]->task->pid);
		err = put_record(w, name, &record_task, c->members[i]->task);
	}
	return err;
}

static int
put_vdsos(struct writing *wr)
{
	struct ckpt *c = wr->c;
	int err = 0;

	for (size_t i = 0; err == 0 && i < c->nmembers; i++)
		if (c->members[i]->vdso != NULL) {
			const struct mm_layout *mm = &c->members[i]->task->mm;

			err = image_put(wr->w, mm->vdso_member, c->members[i]->vdso, mm->vdso_size);
		}
	return err;
}

static int
put_pages(struct writing *wr, struct member *who)
{
	struct live_pages *lp = live_pages_new(wr->c, who);
	int err;

	if (lp == NULL)
		return -ENOMEM;
	stats_add(STAT_scanned, (int64_t)(who->runs.npages * PAGE_BYTES));
	err = image_put_pages(wr->w, who->task->pid, &who->runs, live_pages_source(lp), progress, wr);
	live_pages_free(lp);
	log_progress_end();
	return err;
}

static int
put_members(struct writing *wr)
{
	struct ckpt *c = wr->c;
	struct objects *o = &c->model.objects;
	int err;

	set_partial_sizes(c);
	err = write_records(c, wr->w);
	if (err == 0)
		err = put_vdsos(wr);
	if (err == 0)
		err = fault(FAULT_header_out);
	for (size_t i = 0; err == 0 && i < o->nfiles; i++)
		if (o->files[i].member != NULL)
			err = put_file(wr, i);
	for (size_t i = 0; err == 0 && i < c->nmembers; i++)
		if (c->members[i]->runs.n > 0)
			err = put_pages(wr, c->members[i]);
	return err < 0 ? err : image_finish(wr->w);
}

int
write_image(struct ckpt *c, struct output *o)
{
	struct writing wr = {c, o, NULL};
	int err;

	wr.w = c->rounds != NULL ? rounds_writer(c) : image_writer_new(output_write, o, c->opt.level);
	if (wr.w == NULL)
		return fail(ENOMEM, "out of memory");
	err = put_members(&wr);
	if (err == 0) {
		output_status(o, "image %" PRIu64, image_bytes(wr.w));
		err = fault(FAULT_image_out);
	}
	stats_add(STAT_sent, (int64_t)(image_pages(wr.w) * PAGE_BYTES));
	stats_add(STAT_image, (int64_t)image_bytes(wr.w));
	image_writer_free(wr.w);
	return err;
}
