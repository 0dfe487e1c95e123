#include "page_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "elf_file.h"
#include "io.h"
#include "log.h"
#include "record.h"
#include "model.h"

struct seek {
	uint64_t at;
	uint32_t packed, raw;
};

struct page_file {
	int fd;
	const char *name;
	char id[33];
	struct seek *frames;
	size_t nframes;
	struct chunk_place *chunks; /* by task and place */
	size_t nchunks;
	int64_t *tasks;
	size_t ntasks;
	bool has_parent;
	uint64_t pages, bytes;
};

struct cached {
	uint32_t frame; /* UINT32_MAX: none */
	uint64_t used;
	unsigned char *content;
};

/* What the header of a chunk says. */
struct known {
	struct page_run *runs; /* NULL: not known */
	size_t nruns;
	uint64_t npages;
};

enum { KNOWN_RUNS_MAX = 1 << 20 };

struct page_cache {
	struct page_file *pf;
	struct cached *slots;
	size_t nslots;
	uint64_t clock;
	unsigned char packed[FRAME_PACKED_MAX], head[FRAME_RAW_MAX];
	struct known *known; /* of each chunk */
	size_t known_runs;
};

static int
bad(const struct page_file *pf, const char *what)
{
	return fail(EBADMSG, "%s: bad image: %s", pf->name, what);
}

static int
read_at(const struct page_file *pf, void *data, size_t len, uint64_t at)
{
	char *p = data;

	while (len > 0) {
		ssize_t n = pread(pf->fd, p, len, (off_t)at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? fail_errno("%s", pf->name) : bad(pf, "truncated");
		p += n, at += (uint64_t)n, len -= (size_t)n;
	}
	return 0;
}

/* --- what is where */

static int
read_seek_table(struct page_file *pf, uint64_t base, uint64_t size)
{
	unsigned char footer[SEEK_FOOTER], *table = NULL;
	uint64_t at = base, len, start;
	int64_t n;
	struct rbuf r;
	int err;

	if (size < base + 8 + SEEK_FOOTER)
		return bad(pf, "truncated");
	err = read_at(pf, footer, sizeof(footer), size - SEEK_FOOTER);
	if (err < 0)
		return err;
	n = seek_table_count(footer);
	len = n < 0 ? 0 : (uint64_t)n * SEEK_ENTRY;
	if (n <= 0 || len + 8 + SEEK_FOOTER > size - base)
		return bad(pf, "it does not end in a seek table (truncated, or a stream that went on)");
	start = size - SEEK_FOOTER - len;
	table = malloc(len);
	pf->frames = calloc((size_t)n, sizeof(*pf->frames));
	if (table == NULL || pf->frames == NULL)
		err = fail(ENOMEM, "%s: out of memory", pf->name);
	if (err == 0)
		err = read_at(pf, table, len, start);
	r = (struct rbuf){table, len, 0, false};
	for (pf->nframes = 0; err == 0 && pf->nframes < (size_t)n; pf->nframes++) {
		struct seek *f = &pf->frames[pf->nframes];

		f->at = at;
		f->packed = rbuf_get_u32(&r);
		f->raw = rbuf_get_u32(&r);
		at += f->packed;
		if (f->packed > FRAME_PACKED_MAX || f->raw > FRAME_RAW_MAX || f->raw == 0 || at > start)
			err = bad(pf, "its seek table does not fit it");
	}
	if (err == 0 && at + 8 != start)
		err = bad(pf, "its seek table does not fit it");
	free(table);
	return err;
}

/* Unpack a frame to out (FRAME_RAW_MAX bytes). *content may be in packed (FRAME_PACKED_MAX bytes) instead. */
static int
unpack(const struct page_file *pf, uint32_t number, unsigned char *packed, unsigned char *out, const unsigned char **content)
{
	const struct seek *f = &pf->frames[number];
	int err = read_at(pf, packed, f->packed, f->at);

	if (err == 0 && frame_unpack(packed, f->packed, out, content) != (int64_t)f->raw)
		err = bad(pf, "a frame is damaged");
	return err;
}

/* The content of frames from first on, up to and without behind. The caller frees. */
static int
join(const struct page_file *pf, size_t first, size_t behind, unsigned char **data, size_t *len)
{
	unsigned char *packed = malloc(FRAME_PACKED_MAX + FRAME_RAW_MAX);
	struct buf b = {0};
	int err = packed == NULL ? -ENOMEM : 0;

	for (size_t i = first; i < behind && err == 0; i++) {
		const unsigned char *content;

		err = unpack(pf, (uint32_t)i, packed, packed + FRAME_PACKED_MAX, &content);
		if (err == 0)
			buf_put(&b, content, pf->frames[i].raw);
	}
	free(packed);
	if (err == 0 && b.failed)
		err = fail(ENOMEM, "%s: out of memory", pf->name);
	if (err < 0)
		buf_fini(&b);
	*data = b.data;
	*len = b.len;
	return err;
}

/* A member of the tar stream with this name that begins at data: its size, or -1. */
static int64_t
tar_member(const unsigned char *data, size_t len, const char *name)
{
	char size[13] = {0};

	if (len < TAR_HEADER || strncmp((const char *)data, name, 100) != 0)
		return -1;
	memcpy(size, data + 124, 12);
	return strspn(size, "01234567") < 11 ? -1 : (int64_t)strtoull(size, NULL, 8);
}

static int
get_member(const struct page_file *pf, size_t first, size_t behind, const char *name, unsigned char **data, size_t *size)
{
	uint64_t most = TAR_HEADER + 2 * FRAME_RAW_MAX + pf->nframes * (uint64_t)CHUNK_PLACE, all = 0;
	size_t len;
	int64_t n;
	int err;

	/* No more than an entry for each frame, however much there claims to be. */
	for (size_t i = first; i < behind; i++)
		all += pf->frames[i].raw;
	if (all > most)
		return bad(pf, "its index is larger than it can be");
	err = join(pf, first, behind, data, &len);
	if (err < 0)
		return err;
	n = tar_member(*data, len, name);
	if (n < 0 || (uint64_t)n > len - TAR_HEADER) {
		free(*data);
		*data = NULL;
		return bad(pf, "its index is not where it should be");
	}
	memmove(*data, *data + TAR_HEADER, (size_t)n);
	*size = (size_t)n;
	return 0;
}

static int
get_record(const struct page_file *pf, size_t first, size_t behind, const char *name, const struct record *rec, void *st)
{
	unsigned char *data = NULL;
	char why[128];
	size_t len;
	int err = get_member(pf, first, behind, name, &data, &len);

	if (err == 0 && record_from_text(rec, st, (char *)data, len, why) < 0)
		err = bad(pf, why);
	free(data);
	return err;
}

static int
compare_chunks(const void *a, const void *b)
{
	const struct chunk_place *x = a, *y = b;

	if (x->task != y->task)
		return x->task < y->task ? -1 : 1;
	return x->start < y->start ? -1 : x->start > y->start;
}

/* Frames of pages behind the header of a chunk. */
static uint64_t
count_pages(const struct page_file *pf, const struct chunk_place *c, uint64_t *bytes)
{
	uint64_t n = 0;

	for (size_t i = c->frame + 1; i < pf->nframes && i <= c->frame + CHUNK_FRAMES && pf->frames[i].raw % PAGE_BYTES == 0; i++) {
		n += pf->frames[i].raw / PAGE_BYTES;
		*bytes += pf->frames[i].packed;
		if (pf->frames[i].raw != FRAME_RAW_MAX)
			break;
	}
	return n;
}

static int
take_index(struct page_file *pf, const unsigned char *data, size_t len)
{
	struct rbuf r = {data, len, 0, false};

	pf->nchunks = len / CHUNK_PLACE;
	pf->chunks = calloc(pf->nchunks + 1, sizeof(*pf->chunks));
	pf->tasks = calloc(pf->nchunks + 1, sizeof(*pf->tasks));
	if (pf->chunks == NULL || pf->tasks == NULL)
		return fail(ENOMEM, "%s: out of memory", pf->name);
	for (size_t i = 0; i < pf->nchunks; i++) {
		struct chunk_place *c = &pf->chunks[i];

		chunk_place_get(&r, c);
		if (c->start % PAGE_BYTES != 0 || c->end % PAGE_BYTES != 0 || c->start >= c->end || c->end > ARCH_USER_END ||
		    c->frame >= pf->nframes || c->at < TAR_HEADER || c->at > FRAME_RAW_MAX)
			return bad(pf, "its index makes no sense");
		if (i == 0 || pf->tasks[pf->ntasks - 1] != c->task)
			pf->tasks[pf->ntasks++] = c->task;
		pf->pages += count_pages(pf, c, &pf->bytes);
	}
	if (len % CHUNK_PLACE != 0)
		return bad(pf, "its index makes no sense");
	qsort(pf->chunks, pf->nchunks, sizeof(*pf->chunks), compare_chunks);
	for (size_t i = 1; i < pf->nchunks; i++)
		if (pf->chunks[i].task == pf->chunks[i - 1].task && pf->chunks[i].start < pf->chunks[i - 1].end)
			return bad(pf, "its index has a place twice");
	return 0;
}

static int
read_index(struct page_file *pf)
{
	struct image_header header = {0};
	struct image_end end = {0};
	unsigned char *data = NULL;
	size_t len;
	int err = get_record(pf, pf->nframes - 1, pf->nframes, "end.json", &record_end, &end);

	if (err == 0 && (end.index == 0 || end.index >= pf->nframes - 1))
		err = end.index == 0 ? fail(ENOTSUP, "%s: has no index, as images of older versions: it can only be read as a whole", pf->name) : bad(pf, "its index is not where it should be");
	if (err == 0)
		err = get_member(pf, end.index, pf->nframes - 1, INDEX_NAME, &data, &len);
	record_free(&record_end, &end);
	if (err == 0)
		err = get_record(pf, 0, 1, "header.json", &record_header, &header);
	if (err == 0 && header.rounds)
		err = fail(ENOTSUP, "%s: its memory came in rounds: restart reads it as a whole", pf->name);
	if (err == 0 && (header.id == NULL || strlen(header.id) != 32))
		err = bad(pf, "it has no identity");
	if (err == 0)
		memcpy(pf->id, header.id, sizeof(pf->id));
	pf->has_parent = header.parent != NULL;
	record_free(&record_header, &header);
	if (err == 0)
		err = take_index(pf, data, len);
	free(data);
	return err;
}

int
page_file_open(struct page_file **out, int fd, const char *name)
{
	struct page_file *pf = calloc(1, sizeof(*pf));
	unsigned char head[8];
	uint32_t skippable;
	uint64_t base = 0;
	struct stat st;
	int err;

	*out = NULL;
	if (pf == NULL) {
		close(fd);
		return fail(ENOMEM, "%s: out of memory", name);
	}
	pf->fd = fd;
	pf->name = name;
	err = fstat(fd, &st) < 0 ? fail_errno("%s", name) : 0;
	if (err == 0 && !S_ISREG(st.st_mode))
		err = fail(EINVAL, "%s: is not a regular file, which alone can be read here and there", name);
	if (err == 0 && (pread(fd, head, sizeof(head), 0) != sizeof(head) || frame_length(head, sizeof(head), &skippable) < 0))
		base = elf_file_end(fd);
	else if (err == 0 && skippable == CONTROL_MAGIC)
		err = fail(ENOTSUP, "%s: a stream that was caught in a file: it can only be read as a whole", name);
	if (err == 0)
		err = read_seek_table(pf, base, (uint64_t)st.st_size);
	if (err == 0)
		err = read_index(pf);
	if (err < 0) {
		page_file_close(pf);
		return err;
	}
	*out = pf;
	return 0;
}

void
page_file_close(struct page_file *pf)
{
	if (pf == NULL)
		return;
	close_fd(&pf->fd);
	free(pf->frames);
	free(pf->chunks);
	free(pf->tasks);
	free(pf);
}

bool
page_file_has_parent(const struct page_file *pf)
{
	return pf->has_parent;
}

const char *
page_file_id(const struct page_file *pf)
{
	return pf->id;
}

void
page_file_size(const struct page_file *pf, uint64_t *pages, uint64_t *bytes)
{
	*pages = pf->pages;
	*bytes = pf->bytes;
}

const int64_t *
page_file_tasks(const struct page_file *pf, size_t *n)
{
	*n = pf->ntasks;
	return pf->tasks;
}

/* --- pages */

struct page_cache *
page_cache_new(struct page_file *pf, size_t nframes)
{
	struct page_cache *c = calloc(1, sizeof(*c));

	if (c == NULL)
		return NULL;
	c->pf = pf;
	c->nslots = nframes;
	c->slots = calloc(nframes, sizeof(*c->slots));
	c->known = calloc(pf->nchunks + 1, sizeof(*c->known));
	if (c->slots == NULL || c->known == NULL) {
		page_cache_free(c);
		return NULL;
	}
	for (size_t i = 0; i < nframes; i++)
		c->slots[i].frame = UINT32_MAX;
	return c;
}

static void
forget_chunks(struct page_cache *c)
{
	for (size_t i = 0; i < c->pf->nchunks && c->known != NULL; i++) {
		free(c->known[i].runs);
		c->known[i] = (struct known){0};
	}
	c->known_runs = 0;
}

void
page_cache_free(struct page_cache *c)
{
	if (c == NULL)
		return;
	for (size_t i = 0; i < c->nslots && c->slots != NULL; i++)
		free(c->slots[i].content);
	free(c->slots);
	forget_chunks(c);
	free(c->known);
	free(c);
}

/* The first chunk of the task that ends behind addr, or NULL. */
static const struct chunk_place *
find_chunk(const struct page_file *pf, int64_t task, taddr addr)
{
	size_t lo = 0, hi = pf->nchunks;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;
		const struct chunk_place *c = &pf->chunks[mid];

		if (c->task < task || (c->task == task && c->end <= addr))
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo < pf->nchunks && pf->chunks[lo].task == task ? &pf->chunks[lo] : NULL;
}

/* What the header says, and that its frames are what they should be. */
static int
check_chunk(const struct page_file *pf, const struct chunk_place *chunk, const struct page_run *runs, size_t nruns, uint64_t npages)
{
	uint64_t left = npages * PAGE_BYTES;

	if (runs[0].addr != chunk->start || runs[nruns - 1].addr + runs[nruns - 1].npages * PAGE_BYTES != chunk->end)
		return bad(pf, "its index does not fit it");
	for (size_t i = chunk->frame + 1; left > 0; i++) {
		if (i >= pf->nframes || pf->frames[i].raw != min_u64(left, FRAME_RAW_MAX))
			return bad(pf, "pages are not in frames of their own");
		left -= pf->frames[i].raw;
	}
	return 0;
}

static int
read_chunk(struct page_cache *c, const struct chunk_place *chunk, const struct known **known)
{
	const struct page_file *pf = c->pf;
	struct known *k = &c->known[chunk - pf->chunks];
	struct page_run runs[CHUNK_PAGES];
	const unsigned char *content;
	size_t nruns;
	uint64_t npages;
	struct rbuf r;
	int err;

	*known = k;
	if (k->runs != NULL)
		return 0;
	err = unpack(pf, chunk->frame, c->packed, c->head, &content);
	if (err < 0)
		return err;
	if (chunk->at >= pf->frames[chunk->frame].raw)
		return bad(pf, "its index does not fit it");
	r = (struct rbuf){content, pf->frames[chunk->frame].raw, chunk->at, false};
	if (chunk_header_get(&r, runs, &nruns, &npages) < 0)
		return bad(pf, "its index does not fit it");
	err = check_chunk(pf, chunk, runs, nruns, npages);
	if (err < 0)
		return err;
	if (c->known_runs + nruns > KNOWN_RUNS_MAX)
		forget_chunks(c);
	k->runs = malloc(nruns * sizeof(*runs));
	if (k->runs == NULL)
		return fail(ENOMEM, "%s: out of memory", pf->name);
	memcpy(k->runs, runs, nruns * sizeof(*runs));
	k->nruns = nruns;
	k->npages = npages;
	c->known_runs += nruns;
	return 0;
}

/* Pages [from, from + 32) of the chunk. */
static void
cut_piece(const struct chunk_place *chunk, const struct known *k, uint64_t from, struct page_piece *piece)
{
	uint64_t left = min_u64(k->npages - from, FRAME_RAW_MAX / PAGE_BYTES), skip = from;

	*piece = (struct page_piece){.frame = chunk->frame + 1 + (uint32_t)(from / (FRAME_RAW_MAX / PAGE_BYTES)), .npages = left};
	for (size_t i = 0; i < k->nruns && left > 0; i++) {
		uint64_t some;

		if (skip >= k->runs[i].npages) {
			skip -= k->runs[i].npages;
			continue;
		}
		some = min_u64(k->runs[i].npages - skip, left);
		piece->runs[piece->nruns++] = (struct page_run){k->runs[i].addr + skip * PAGE_BYTES, some};
		left -= some;
		skip = 0;
	}
}

int
page_cache_find(struct page_cache *c, int64_t task, taddr addr, taddr limit, struct page_piece *piece)
{
	const struct chunk_place *chunk = find_chunk(c->pf, task, addr);
	const struct known *known;
	uint64_t at = 0;
	int err;

	if (chunk == NULL || chunk->start >= limit)
		return 0;
	*piece = (struct page_piece){.runs = {{chunk->start, (chunk->end - chunk->start) / PAGE_BYTES}}, .nruns = 1};
	err = read_chunk(c, chunk, &known);
	if (err < 0)
		return err;
	for (size_t i = 0; i < known->nruns; at += known->runs[i++].npages) {
		const struct page_run *run = &known->runs[i];

		if (run->addr + run->npages * PAGE_BYTES <= addr)
			continue;
		if (run->addr >= limit)
			return 0;
		if (addr > run->addr)
			at += (addr - run->addr) / PAGE_BYTES;
		cut_piece(chunk, known, at - at % (FRAME_RAW_MAX / PAGE_BYTES), piece);
		return 1;
	}
	return bad(c->pf, "its index does not fit it");
}

int
page_cache_packed(struct page_cache *c, const struct page_piece *piece, const unsigned char **packed, size_t *len)
{
	const struct seek *f = &c->pf->frames[piece->frame];

	*packed = c->packed;
	*len = f->packed;
	return read_at(c->pf, c->packed, f->packed, f->at);
}

int
page_cache_content(struct page_cache *c, const struct page_piece *piece, const unsigned char **content)
{
	struct cached *slot = &c->slots[0];
	int err;

	for (size_t i = 0; i < c->nslots; i++) {
		if (c->slots[i].frame == piece->frame) {
			c->slots[i].used = ++c->clock;
			*content = c->slots[i].content;
			return 0;
		}
		if (c->slots[i].used < slot->used)
			slot = &c->slots[i];
	}
	if (slot->content == NULL && (slot->content = malloc(FRAME_RAW_MAX)) == NULL)
		return fail(ENOMEM, "%s: out of memory", c->pf->name);
	slot->frame = UINT32_MAX;
	err = unpack(c->pf, piece->frame, c->packed, slot->content, content);
	if (err < 0)
		return err;
	if (*content != slot->content)
		memcpy(slot->content, *content, c->pf->frames[piece->frame].raw);
	*content = slot->content;
	slot->frame = piece->frame;
	slot->used = ++c->clock;
	return 0;
}

const unsigned char *
page_piece_at(const struct page_piece *piece, const unsigned char *content, taddr addr)
{
	for (size_t i = 0; i < piece->nruns; i++) {
		const struct page_run *run = &piece->runs[i];

		if (addr >= run->addr && addr < run->addr + run->npages * PAGE_BYTES)
			return content + (addr - run->addr);
		content += run->npages * PAGE_BYTES;
	}
	return NULL;
}
