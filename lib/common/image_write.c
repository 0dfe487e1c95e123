/*
 * Writing an image: libarchive makes the tar stream, which is cut into frames here.
 */
#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "digest.h"
#include "image.h"
#include "io.h"
#include "log.h"
#include "record.h"

/* Chunks after which the level is looked at again, and between what it is. */
enum { AUTO_CHUNKS = 4, AUTO_MIN = 1, AUTO_MAX = 12 };

struct image_writer {
	image_sink *sink;
	void *ctx;
	int level, err;
	bool adapts; /* level follows the reader */
	int64_t waited_ns, wrote_ns; /* since it was last set: for pages to be packed, for the sink to take them */
	unsigned since;
	struct archive *tar;
	struct archive_entry *entry;
	struct frame *frame; /* fills up with what is not pages */
	struct buf zeroes; /* a whole frame of them, packed with that level: sparse files have many */
	int zeroes_level;
	/* While pages are put: the packed frame that stands for the bytes that libarchive is given. */
	const struct frame *ready;
	struct buf seek_table;
	struct buf index; /* where each chunk is */
	struct digest *digest; /* of lengths and checksums */
	uint64_t bytes, members, pages;
	uint64_t chunks; /* their numbers go on from task to task, and from round to round */
};

/* Frames are packed into the sink, told of in the seek table, and summed up. */
static int
emit(struct image_writer *w, const struct frame *f)
{
	/* Pages have their frame's checksum alone: a parked process is saved with what it holds then. */
	uint32_t sum[2] = {(uint32_t)f->raw_len,
	    f == w->ready ? 0 : frame_checksum(f->packed, f->packed_len)};

	digest_add(w->digest, sum, sizeof(sum));
	seek_table_add(&w->seek_table, (uint32_t)f->packed_len, (uint32_t)f->raw_len);
	w->bytes += f->packed_len;
	return w->sink(w->ctx, f->packed, f->packed_len);
}

static bool
is_all_zero(struct frame *f)
{
	const unsigned char *p = frame_raw(f);

	return f->raw_len == FRAME_RAW_MAX && p[0] == 0 && memcmp(p, p + 1, f->raw_len - 1) == 0;
}

static int
pack(struct image_writer *w)
{
	struct frame *f = w->frame;
	bool zero = is_all_zero(f);
	int err;

	if (zero && w->zeroes.len > 0 && w->zeroes_level == w->level) {
		f->packed = w->zeroes.data;
		f->packed_len = w->zeroes.len;
		return 0;
	}
	err = frame_pack(f, w->level);
	if (err == 0 && zero) {
		buf_fini(&w->zeroes);
		buf_put(&w->zeroes, f->packed, f->packed_len);
		w->zeroes_level = w->level;
	}
	return err < 0 || !w->zeroes.failed ? err : -ENOMEM;
}

static int
flush(struct image_writer *w)
{
	int err = 0;

	if (w->frame->raw_len > 0) {
		err = pack(w);
		if (err == 0)
			err = emit(w, w->frame);
		w->frame->raw_len = 0;
	}
	return err;
}

/* libarchive's output. */
static ssize_t
take_tar(struct archive *tar, void *ctx, const void *data, size_t len)
{
	struct image_writer *w = ctx;
	const char *p = data;

	if (w->ready != NULL) {
		/* Written without a buffer between, so these are the very bytes of the frame. */
		if (data == w->ready->store + FRAME_HEAD && len == w->ready->raw_len)
			w->err = emit(w, w->ready);
		else
			w->err = fail(EPROTO, "libarchive split a page");
		if (w->err == 0)
			return (ssize_t)len;
	}
	for (size_t left = len; w->err == 0 && left > 0;) {
		size_t n = min_u64(left, FRAME_RAW_MAX - w->frame->raw_len);

		memcpy(frame_raw(w->frame) + w->frame->raw_len, p, n);
		w->frame->raw_len += n;
		p += n;
		left -= n;
		if (w->frame->raw_len == FRAME_RAW_MAX)
			w->err = flush(w);
	}
	if (w->err == 0)
		return (ssize_t)len;
	archive_set_error(tar, -w->err, "output");
	return -1;
}

struct image_writer *
image_writer_new(image_sink *sink, void *ctx, int level)
{
	struct image_writer *w = calloc(1, sizeof(*w));

	if (w == NULL)
		return NULL;
	w->sink = sink;
	w->ctx = ctx;
	w->adapts = level == IMAGE_LEVEL_AUTO;
	w->level = w->adapts ? AUTO_MIN : level;
	w->frame = malloc(sizeof(*w->frame));
	w->entry = archive_entry_new();
	w->digest = digest_new();
	w->tar = archive_write_new();
	if (w->frame == NULL || w->entry == NULL || w->digest == NULL || w->tar == NULL ||
	    archive_write_set_format_pax_restricted(w->tar) != ARCHIVE_OK ||
	    archive_write_set_bytes_per_block(w->tar, 0) != ARCHIVE_OK ||
	    archive_write_open(w->tar, w, NULL, take_tar, NULL) != ARCHIVE_OK) {
		image_writer_free(w);
		return NULL;
	}
	w->frame->raw_len = 0;
	return w;
}

void
image_writer_free(struct image_writer *w)
{
	if (w == NULL)
		return;
	if (w->tar != NULL) {
		archive_write_fail(w->tar);
		archive_write_free(w->tar);
	}
	archive_entry_free(w->entry);
	digest_free(w->digest);
	buf_fini(&w->seek_table);
	buf_fini(&w->zeroes);
	buf_fini(&w->index);
	free(w->frame);
	free(w);
}

static int
tar_failed(struct image_writer *w, const char *name)
{
	if (w->err < 0)
		return w->err; /* logged by the sink */
	return fail(EIO, "%s: %s", name, archive_error_string(w->tar));
}

static int
put_header(struct image_writer *w, const char *name, uint64_t size)
{
	archive_entry_clear(w->entry);
	archive_entry_set_pathname(w->entry, name);
	archive_entry_set_filetype(w->entry, AE_IFREG);
	archive_entry_set_perm(w->entry, 0600);
	archive_entry_set_size(w->entry, (la_int64_t)size);
	if (archive_write_header(w->tar, w->entry) != ARCHIVE_OK)
		return tar_failed(w, name);
	w->members++;
	return 0;
}

static int
put_data(struct image_writer *w, const char *name, const void *data, size_t len)
{
	if (len > 0 && archive_write_data(w->tar, data, len) != (la_ssize_t)len)
		return tar_failed(w, name);
	return 0;
}

static int
finish_entry(struct image_writer *w, const char *name)
{
	return archive_write_finish_entry(w->tar) == ARCHIVE_OK ? 0 : tar_failed(w, name);
}

int
image_put(struct image_writer *w, const char *name, const void *data, size_t len)
{
	int err = put_header(w, name, len);

	if (err == 0)
		err = put_data(w, name, data, len);
	return err < 0 ? err : finish_entry(w, name);
}

int
image_put_content(struct image_writer *w, const char *name, uint64_t size, image_content *read,
    void *ctx)
{
	size_t piece = 64 << 10;
	char *data = malloc(piece);
	int err = data != NULL ? put_header(w, name, size) : -ENOMEM;

	for (uint64_t at = 0; err == 0 && at < size; at += piece) {
		size_t n = min_u64(piece, size - at);

		err = read(ctx, at, data, n);
		if (err == 0)
			err = put_data(w, name, data, n);
	}
	free(data);
	return err < 0 ? err : finish_entry(w, name);
}

/* How many frames there are. */
static uint32_t
frames_done(const struct image_writer *w)
{
	return (uint32_t)(w->seek_table.len / SEEK_ENTRY);
}

/* The header of a chunk is about to be put, and is all in the frame at hand. */
static void
add_to_index(struct image_writer *w, int64_t pid, const struct chunk_job *c)
{
	const struct page_run *last = &c->out[c->nout - 1];
	struct chunk_place at = {pid, c->out[0].addr, last->addr + last->npages * PAGE_BYTES, frames_done(w), (uint32_t)w->frame->raw_len};

	chunk_place_put(&w->index, &at);
}

static int
put_chunk(struct image_writer *w, int64_t pid, const struct chunk_job *c)
{
	char name[IMAGE_NAME_MAX];
	struct buf head = {0};
	int err = 0;

	if (c->err < 0)
		return fail(-c->err, "pid %" PRId64 ": memory at %#" PRIx64 ": %s", pid, c->in[0].addr,
		    strerror(-c->err));
	if (c->npages == 0)
		return 0;
	snprintf(name, sizeof(name), "pages/%" PRId64 "/%08" PRIu64, pid, w->chunks++);
	chunk_header_put(&head, c->out, c->nout);
	if (w->frame->raw_len + TAR_HEADER + head.len > FRAME_RAW_MAX)
		err = flush(w);
	if (err == 0)
		err = head.failed ? -ENOMEM : put_header(w, name, head.len + c->npages * PAGE_BYTES);
	if (err == 0) {
		add_to_index(w, pid, c);
		err = put_data(w, name, head.data, head.len);
	}
	if (err == 0)
		err = flush(w);
	for (size_t i = 0; err == 0 && i < c->nframes; i++) {
		w->ready = &c->frames[i];
		err = put_data(w, name, w->ready->store + FRAME_HEAD, w->ready->raw_len);
		w->ready = NULL;
	}
	if (err == 0)
		err = finish_entry(w, name);
	w->pages += c->npages;
	buf_fini(&head);
	return err;
}

/*
 * As much compression as the reader leaves time for: where the sink is waited for longer than the processors, these can do more; and the reverse.
 */
static void
adapt(struct image_writer *w)
{
	if (!w->adapts || ++w->since < AUTO_CHUNKS)
		return;
	if (w->wrote_ns > w->waited_ns + w->waited_ns / 4 && w->level < AUTO_MAX)
		w->level++;
	else if (w->waited_ns > w->wrote_ns + w->wrote_ns / 4 && w->level > AUTO_MIN)
		w->level--;
	w->waited_ns = w->wrote_ns = 0;
	w->since = 0;
}

/* The oldest chunk, packed, goes out; it is idle then. */
static struct chunk_job *
put_next(struct image_writer *w, struct pipeline *pipe, int64_t pid, int *err)
{
	int64_t begun = now_ns(), packed;
	struct chunk_job *c = (struct chunk_job *)pipeline_take(pipe);

	packed = now_ns();
	*err = put_chunk(w, pid, c);
	w->waited_ns += packed - begun;
	w->wrote_ns += now_ns() - packed;
	adapt(w);
	return c;
}

int
image_put_pages(struct image_writer *w, int64_t pid, const struct page_runs *runs,
    struct page_source *source, image_progress *progress, void *ctx)
{
	unsigned threads = pipeline_default_threads(), depth = 2 * threads + 1;
	struct pipeline *pipe = pipeline_new(threads, depth);
	struct chunk_job **idle = calloc(depth, sizeof(struct chunk_job *));
	struct page_cursor at = {0};
	size_t nidle = 0;
	uint64_t done = 0, got;
	int err = pipe == NULL || idle == NULL ? -ENOMEM : 0;

	while (err == 0 && nidle < depth) {
		idle[nidle] = malloc(sizeof(**idle));
		if (idle[nidle] == NULL)
			err = -ENOMEM;
		else
			nidle++;
	}
	while (err == 0 && (at.next < runs->n || !pipeline_empty(pipe))) {
		while (nidle > 0 && at.next < runs->n) {
			struct chunk_job *c = idle[--nidle];

			c->job.run = chunk_job_run;
			c->source = source;
			c->level = w->level;
			c->nin = page_cursor_take(&at, runs->run, runs->n, CHUNK_PAGES, c->in, &got);
			done += got;
			pipeline_submit(pipe, &c->job);
		}
		idle[nidle++] = put_next(w, pipe, pid, &err);
		if (err == 0 && progress != NULL)
			err = progress(ctx, done, runs->npages);
	}
	while (pipe != NULL && !pipeline_empty(pipe))
		idle[nidle++] = (struct chunk_job *)pipeline_take(pipe);
	pipeline_free(pipe);
	while (nidle > 0)
		free(idle[--nidle]);
	free(idle);
	return err;
}

int
image_finish(struct image_writer *w)
{
	char hex[DIGEST_HEX];
	struct image_end end = {.digest = hex};
	struct buf table = {0};
	size_t len;
	char *text;
	int err = flush(w);

	end.index = frames_done(w);
	if (err == 0)
		err = w->index.failed ? -ENOMEM : image_put(w, INDEX_NAME, w->index.data, w->index.len);
	/* Frames of their own: so both are found from the end. */
	if (err == 0)
		err = flush(w);
	if (err < 0)
		return err;
	end.members = w->members;
	end.pages = w->pages;
	digest_hex(w->digest, hex);
	text = record_to_text(&record_end, &end, &len);
	err = text == NULL ? -ENOMEM : image_put(w, "end.json", text, len);
	free(text);
	if (err == 0 && archive_write_close(w->tar) != ARCHIVE_OK)
		err = tar_failed(w, "end.json");
	if (err == 0)
		err = flush(w);
	if (err == 0) {
		seek_table_finish(&table, &w->seek_table);
		err = table.failed ? -ENOMEM : w->sink(w->ctx, table.data, table.len);
		w->bytes += table.len;
	}
	buf_fini(&table);
	return err;
}

uint64_t
image_pages(const struct image_writer *w)
{
	return w->pages;
}

uint64_t
image_bytes(const struct image_writer *w)
{
	return w->bytes;
}
