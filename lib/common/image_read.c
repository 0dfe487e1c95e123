/*
 * Reading an image: frames are fetched and unpacked ahead, libarchive takes the tar stream apart.
 * Everything here is hostile until its checksum, its grammar and its place have been checked.
 */
#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "digest.h"
#include "frame_input.h"
#include "image.h"
#include "log.h"
#include "record.h"

/* A frame as image_rewrite() needs it: its bytes, or where its pages are. */
struct kept {
	unsigned char *packed; /* NULL: pages */
	size_t len;
	size_t first_run; /* in runs of the reader */
	uint64_t skip;    /* pages of that run before this frame's */
	int64_t pid;      /* whose pages */
};

struct image_reader {
	const char *name;
	struct frame_input *in;
	struct archive *tar;
	struct archive_entry *entry;
	const struct unpacked *frame; /* what libarchive reads now */
	bool is_pages;
	struct digest *digest;        /* of the frames before it */
	uint64_t size, members, pages;
	bool begun, ended;
	struct page_run chunk[CHUNK_PAGES];
	uint64_t chunk_left; /* bytes of pages to come */
	uint64_t chunk_done;
	/* For image_rewrite(). */
	bool keep;
	struct kept *kept;
	size_t nkept;
	struct page_run *runs;
	size_t nruns, chunk_first_run;
	int64_t chunk_pid;
};

static int
bad(const struct image_reader *r, const char *what)
{
	return fail(EBADMSG, "%s: bad image: %s", r->name, what);
}

/* Which page of the chunk at hand comes next, as a place in r->runs. */
static void
keep_pages(const struct image_reader *r, struct kept *k)
{
	uint64_t skip = r->chunk_done / PAGE_BYTES;
	size_t i = r->chunk_first_run;

	while (i < r->nruns && skip >= r->runs[i].npages)
		skip -= r->runs[i++].npages;
	k->first_run = i;
	k->skip = skip;
	k->pid = r->chunk_pid;
}

static int
keep_frame(struct image_reader *r)
{
	struct kept *k = ARRAY_ADD(r->kept, r->nkept);

	if (k == NULL)
		return -ENOMEM;
	k->len = r->frame->content_len;
	if (r->chunk_left > 0) {
		keep_pages(r, k);
		return 0;
	}
	k->packed = malloc(r->frame->packed_len);
	if (k->packed == NULL)
		return -ENOMEM;
	memcpy(k->packed, r->frame->packed, r->frame->packed_len);
	k->len = r->frame->packed_len;
	return 0;
}

/* Go on to the next frame. Returns 1, 0 at the end of the image, or a negative errno, logged. */
static int
next_frame(struct image_reader *r)
{
	int err;

	if (r->frame != NULL) {
		uint32_t sum[2] = {(uint32_t)r->frame->content_len,
		    r->is_pages ? 0 : frame_checksum(r->frame->packed, r->frame->packed_len)};

		digest_add(r->digest, sum, sizeof(sum));
	}
	err = frame_input_next(r->in, &r->frame);
	if (err <= 0)
		return err;
	r->is_pages = r->chunk_left > 0;
	if (r->keep && (err = keep_frame(r)) < 0)
		return err;
	return 1;
}

/* libarchive's input. */
static la_ssize_t
give_tar(struct archive *tar, void *ctx, const void **data)
{
	struct image_reader *r = ctx;
	int err = next_frame(r);

	if (err < 0) {
		archive_set_error(tar, -err, "%s", r->name);
		return -1;
	}
	*data = err == 0 ? NULL : r->frame->content;
	return err == 0 ? 0 : (la_ssize_t)r->frame->content_len;
}

static int
tar_failed(struct image_reader *r)
{
	int err = archive_errno(r->tar);

	if (frame_input_error(r->in) < 0)
		return frame_input_error(r->in); /* logged there */
	if (err == ENOMEM)
		return fail(ENOMEM, "%s: out of memory", r->name);
	return bad(r, frame_input_at_end(r->in) ? "truncated" : "not a well-formed tar stream");
}

struct image_reader *
image_reader_new(image_source *source, void *ctx, const char *name)
{
	struct image_reader *r = calloc(1, sizeof(*r));

	if (r == NULL)
		return NULL;
	r->name = name;
	r->in = frame_input_new(source, ctx, name);
	r->digest = digest_new();
	r->tar = archive_read_new();
	if (r->in == NULL || r->digest == NULL || r->tar == NULL ||
	    archive_read_support_format_tar(r->tar) != ARCHIVE_OK) {
		image_reader_free(r);
		return NULL;
	}
	return r;
}

void
image_reader_free(struct image_reader *r)
{
	if (r == NULL)
		return;
	archive_read_free(r->tar);
	frame_input_free(r->in);
	digest_free(r->digest);
	for (size_t i = 0; i < r->nkept; i++)
		free(r->kept[i].packed);
	free(r->kept);
	free(r->runs);
	free(r);
}

int
image_reader_threads(struct image_reader *r)
{
	return frame_input_threads(r->in);
}

bool
image_wants_end(const struct image_reader *r)
{
	return frame_input_wants_end(r->in);
}

uint64_t
image_pages_read(const struct image_reader *r)
{
	return r->pages;
}

/* header.json, objects.json, end.json, pages.index, task/N.json, file/N, vdso/N, pages/N/N */
static bool
name_is_known(const char *name)
{
	static const char *const exact[] = {"header.json", "objects.json", "end.json", INDEX_NAME};
	static const char *const under[] = {"task/", "file/", "vdso/", "pages/"};

	for (size_t i = 0; i < ARRAY_LEN(exact); i++)
		if (strcmp(name, exact[i]) == 0)
			return true;
	for (size_t i = 0; i < ARRAY_LEN(under); i++) {
		size_t n = strlen(under[i]);

		if (strncmp(name, under[i], n) != 0)
			continue;
		name += n;
		n = strspn(name, "0123456789");
		if (n == 0)
			return false;
		if (i == 3 && name[n] == '/')
			return name[n + 1 + strspn(name + n + 1, "0123456789")] == '\0';
		return strcmp(name + n, i == 0 ? ".json" : "") == 0 && i != 3;
	}
	return false;
}

static int
check_end(struct image_reader *r)
{
	struct image_end end;
	char hex[DIGEST_HEX];
	int err;

	digest_hex(r->digest, hex);
	err = image_get_record(r, &record_end, &end);
	if (err < 0)
		return err;
	if (end.members != r->members || end.pages != r->pages || end.digest == NULL ||
	    strcmp(end.digest, hex) != 0)
		err = bad(r, "its end marker does not fit what is in front of it");
	record_free(&record_end, &end);
	/* To the end of the tar stream, and of the image. */
	if (err == 0 && archive_read_next_header(r->tar, &r->entry) != ARCHIVE_EOF)
		err = bad(r, "something follows its end marker");
	if (err == 0)
		err = frame_input_finish(r->in);
	r->ended = err == 0;
	return err;
}

/* The header of the next member, whatever it is: its name, checked to be one that an image has. */
static int
next_member(struct image_reader *r, char name[IMAGE_NAME_MAX])
{
	const char *path;
	int err = archive_read_next_header(r->tar, &r->entry);

	if (err == ARCHIVE_EOF)
		return bad(r, "truncated: it has no end marker");
	if (err != ARCHIVE_OK)
		return tar_failed(r);
	path = archive_entry_pathname(r->entry);
	if (path == NULL || strlen(path) >= IMAGE_NAME_MAX || !name_is_known(path) ||
	    archive_entry_filetype(r->entry) != AE_IFREG || archive_entry_hardlink(r->entry) != NULL ||
	    !archive_entry_size_is_set(r->entry) || archive_entry_size(r->entry) < 0 ||
	    archive_entry_sparse_count(r->entry) > 0)
		return bad(r, "a member that no image has");
	strcpy(name, path);
	return 0;
}

int
image_next(struct image_reader *r, char name[IMAGE_NAME_MAX], uint64_t *size)
{
	int err;

	if (!r->begun && archive_read_open(r->tar, r, NULL, give_tar, NULL) != ARCHIVE_OK)
		return tar_failed(r);
	r->begun = true;
	if (r->chunk_left > 0)
		return bad(r, "a chunk was not read"); /* the caller's mistake */
	/* The index is for those who do not read from the beginning. */
	while ((err = next_member(r, name)) == 0 && strcmp(name, INDEX_NAME) == 0)
		r->members++;
	if (err < 0)
		return err;
	r->chunk_pid = strncmp(name, "pages/", 6) == 0 ? strtoll(name + 6, NULL, 10) : 0;
	*size = r->size = (uint64_t)archive_entry_size(r->entry);
	if (strcmp(name, "end.json") == 0)
		return check_end(r);
	r->members++;
	return 1;
}

int
image_get(struct image_reader *r, char **data, size_t *len)
{
	char *p;

	if (r->size > IMAGE_TEXT_MAX)
		return bad(r, "a member is too large");
	p = malloc(r->size + 1);
	if (p == NULL)
		return fail(ENOMEM, "%s: out of memory", r->name);
	if (archive_read_data(r->tar, p, r->size) != (la_ssize_t)r->size) {
		free(p);
		return tar_failed(r);
	}
	p[r->size] = '\0';
	*data = p;
	*len = r->size;
	return 0;
}

int
image_get_record(struct image_reader *r, const struct record *rec, void *st)
{
	char why[128], *text;
	size_t len;
	int err = image_get(r, &text, &len);

	if (err < 0)
		return err;
	err = record_from_text(rec, st, text, len, why);
	free(text);
	if (err == -ENOMEM)
		return fail(ENOMEM, "%s: out of memory", r->name);
	return err < 0 ? bad(r, why) : 0;
}

int
image_get_content(struct image_reader *r, image_take *take, void *ctx)
{
	const void *data;
	size_t len;
	la_int64_t at;
	int got, err = 0;

	while (err == 0 && (got = archive_read_data_block(r->tar, &data, &len, &at)) != ARCHIVE_EOF) {
		if (got != ARCHIVE_OK)
			return tar_failed(r);
		err = take(ctx, data, len);
	}
	return err;
}

int
image_get_chunk(struct image_reader *r, struct page_run runs[CHUNK_PAGES], size_t *nruns,
    uint64_t *npages)
{
	unsigned char head[CHUNK_HEADER_MAX];
	struct rbuf b = {head, 8, 0, false};
	size_t claimed;

	if (r->size < 8 || archive_read_data(r->tar, head, 8) != 8)
		return bad(r, "a chunk of pages is too short");
	rbuf_get_u32(&b);
	claimed = rbuf_get_u32(&b);
	if (claimed == 0 || claimed > CHUNK_PAGES || CHUNK_HEADER_BYTES(claimed) > r->size)
		return bad(r, "a chunk of pages is malformed");
	b.len = CHUNK_HEADER_BYTES(claimed);
	b.pos = 0;
	if (archive_read_data(r->tar, head + 8, b.len - 8) != (la_ssize_t)b.len - 8)
		return tar_failed(r);
	if (chunk_header_get(&b, runs, nruns, npages) < 0 ||
	    r->size != b.len + *npages * PAGE_BYTES)
		return bad(r, "a chunk of pages is malformed");
	r->chunk_left = *npages * PAGE_BYTES;
	r->chunk_done = 0;
	r->chunk_first_run = r->nruns;
	for (size_t i = 0; r->keep && i < *nruns; i++) {
		struct page_run *run = ARRAY_ADD(r->runs, r->nruns);

		if (run == NULL)
			return -ENOMEM;
		*run = runs[i];
	}
	return 0;
}

int
image_chunk_data(struct image_reader *r, const unsigned char **data, size_t *len)
{
	const void *p;
	la_int64_t at;
	int got;

	*data = NULL;
	*len = 0;
	if (r->chunk_left == 0)
		return 0;
	do {
		got = archive_read_data_block(r->tar, &p, len, &at);
		if (got != ARCHIVE_OK)
			return tar_failed(r);
	} while (*len == 0);
	/* Pages stand in frames of their own, so no page is ever in two pieces. */
	if (p != r->frame->content || *len != r->frame->content_len || *len % PAGE_BYTES != 0 ||
	    *len > r->chunk_left)
		return bad(r, "pages are not in frames of their own");
	*data = p;
	r->chunk_left -= *len;
	r->chunk_done += *len;
	r->pages += *len / PAGE_BYTES;
	return 0;
}

int
image_await_end(struct image_reader *r)
{
	if (!r->ended)
		return -EINVAL;
	return frame_input_await_end(r->in);
}

void
image_keep(struct image_reader *r)
{
	r->keep = true;
}

/* The pages of a frame that was not kept, packed anew. */
static int
repack(struct image_reader *r, const struct kept *k, struct page_source *source, struct frame *f)
{
	struct page_run part[FRAME_RAW_MAX / PAGE_BYTES];
	uint64_t left = k->len / PAGE_BYTES, skip = k->skip;
	size_t n = 0;
	int err;

	for (size_t i = k->first_run; left > 0 && i < r->nruns; i++, n++) {
		uint64_t some = min_u64(r->runs[i].npages - skip, left);

		part[n] = (struct page_run){r->runs[i].addr + skip * PAGE_BYTES, some};
		left -= some;
		skip = 0;
	}
	source->pid = k->pid;
	err = source->read(source, part, n, frame_raw(f));
	if (err < 0)
		return fail(-err, "%s: pages cannot be read back: %s", r->name, strerror(-err));
	f->raw_len = k->len;
	return frame_pack(f, 1);
}

int
image_rewrite(struct image_reader *r, struct page_source *source, image_sink *sink, void *ctx)
{
	struct frame *f = malloc(sizeof(*f));
	struct buf entries = {0}, table = {0};
	int err = f == NULL ? -ENOMEM : 0;

	for (size_t i = 0; err == 0 && i < r->nkept; i++) {
		const struct kept *k = &r->kept[i];
		const unsigned char *p = k->packed;
		size_t n = k->len, raw = 0;

		if (p == NULL) {
			err = repack(r, k, source, f);
			p = f->packed;
			n = f->packed_len;
			raw = k->len;
		} else {
			raw = frame_content_length(p, n);
		}
		seek_table_add(&entries, (uint32_t)n, (uint32_t)raw);
		if (err == 0)
			err = sink(ctx, p, n);
	}
	seek_table_finish(&table, &entries);
	if (err == 0)
		err = table.failed ? -ENOMEM : sink(ctx, table.data, table.len);
	buf_fini(&entries);
	buf_fini(&table);
	free(f);
	return err;
}
