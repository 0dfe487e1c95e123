/*
 * Pages on demand: bodies of messages, images that are read here and there, and what is missing where. The first byte says which: 0 bodies, 1 the bytes of
 * an image, 2 what is in the frames of one (with valid checksums and a valid seek table around it), 3 what happens to a memory.
 */
#include <stdbool.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fuzz.h"
#include "arch.h"
#include "image.h"
#include "log.h"
#include "page_file.h"
#include "page_wire.h"
#include "record.h"

#include "../../cmd/pagesrv/lazy_map.c"

static void
must(bool good)
{
	if (!good)
		abort();
}

static void
touch(const unsigned char *p, size_t len)
{
	static volatile unsigned char sum;

	for (size_t i = 0; i < len; i++)
		sum ^= p[i];
}

static bool
whole(taddr at)
{
	return at % PAGE_BYTES == 0 && at <= ARCH_USER_END;
}

/* --- bodies */

/* Ascending, inside [from, to), and as many pages as is said. */
static void
see_runs(const struct page_run *run, size_t n, taddr from, taddr to, uint64_t npages)
{
	must(n <= PIECE_PAGES && npages <= PIECE_PAGES);
	for (size_t i = 0; i < n; i++) {
		must(whole(run[i].addr) && run[i].addr >= from && run[i].npages > 0 && run[i].npages <= npages);
		from = run[i].addr + run[i].npages * PAGE_BYTES;
		must(from <= to);
		npages -= run[i].npages;
	}
	must(npages == 0);
}

static void
see_pieces(const unsigned char *data, size_t len)
{
	struct page_pieces p, again;
	struct buf b = {0};

	if (page_pieces_get(&p, data, len) < 0)
		return;
	must(whole(p.from) && whole(p.to) && p.from <= p.to && p.granted <= PAGE_WRITE && p.frame_len <= FRAME_PACKED_MAX);
	see_runs(p.runs, p.nruns, p.from, p.to, p.npages);
	must((p.frame_len > 0) == (p.npages > 0 && !(p.flags & (PIECE_KEPT | PIECE_BAD))));
	touch(p.frame, p.frame_len);
	page_pieces_put(&b, &p);
	buf_put(&b, p.frame, p.frame_len);
	must(b.len == len && memcmp(b.data, data, len) == 0);
	must(page_pieces_get(&again, b.data, b.len) == 0 && again.npages == p.npages);
	buf_fini(&b);
}

static void
bodies(const unsigned char *data, size_t len)
{
	struct attach a;
	struct page_get g;
	struct page_stream s;
	struct page_call c;
	struct page_counts n;
	const unsigned char *frame;
	size_t frame_len;

	if (attach_get(&a, data, len) == 0)
		must(strlen(a.id) == IMAGE_ID && strspn(a.id, "0123456789abcdef") == IMAGE_ID);
	if (page_get_get(&g, data, len) == 0)
		must(whole(g.addr) && g.npages >= 1 && g.npages <= PIECE_PAGES && whole(g.addr + g.npages * PAGE_BYTES) && (g.want == PAGE_READ || g.want == PAGE_WRITE));
	if (page_stream_get(&s, data, len) == 0)
		must(whole(s.addr));
	if (page_call_get(&c, data, len, &frame, &frame_len) == 0) {
		must(whole(c.addr) && whole(c.addr + PAGE_BYTES) && c.state <= PAGE_READ && frame_len <= FRAME_PACKED_MAX);
		touch(frame, frame_len);
	}
	if (page_counts_get(&n, data, len) == 0) {
		double half = page_counts_percentile(&n, 500), most = page_counts_percentile(&n, 999);

		must(half >= 0 && half <= most);
	}
	see_pieces(data, len);
}

/* --- images */

/* Returns where to go on, always further on. */
static taddr
see_piece(struct page_cache *c, const struct page_piece *piece, taddr addr)
{
	const struct page_run *last = &piece->runs[piece->nruns - 1];
	taddr end = last->addr + last->npages * PAGE_BYTES;
	const unsigned char *packed, *content;
	size_t len;

	see_runs(piece->runs, piece->nruns, 0, ARCH_USER_END, piece->npages);
	must(piece->nruns > 0 && end > addr);
	if (page_cache_packed(c, piece, &packed, &len) == 0) {
		must(len <= FRAME_PACKED_MAX);
		touch(packed, len);
	}
	for (int twice = 0; twice < 2; twice++)
		if (page_cache_content(c, piece, &content) == 0) {
			touch(content, piece->npages * PAGE_BYTES);
			must(page_piece_at(piece, content, last->addr) == content + (piece->npages - last->npages) * PAGE_BYTES);
			must(page_piece_at(piece, content, end) == NULL);
		}
	return end;
}

static void
see_task(struct page_cache *c, int64_t task, taddr limit)
{
	struct page_piece piece;
	int found;

	for (taddr addr = 0; (found = page_cache_find(c, task, addr, limit, &piece)) != 0;) {
		taddr end = piece.runs[0].addr + piece.runs[0].npages * PAGE_BYTES;

		addr = found > 0 ? see_piece(c, &piece, addr) : end > addr ? end : ARCH_USER_END + 1;
		must(addr <= ARCH_USER_END);
	}
}

static void
image(const unsigned char *data, size_t len)
{
	int fd = memfd_create("fuzz", MFD_CLOEXEC);
	struct page_file *pf = NULL;
	struct page_cache *c;
	uint64_t pages, bytes;
	const int64_t *tasks;
	size_t n;

	if (fd < 0 || write(fd, data, len) != (ssize_t)len || page_file_open(&pf, fd, "fuzz") < 0)
		return;
	page_file_size(pf, &pages, &bytes);
	must(strlen(page_file_id(pf)) == 32);
	c = page_cache_new(pf, 2);
	tasks = page_file_tasks(pf, &n);
	for (size_t i = 0; i < n && i < 4; i++) {
		see_task(c, tasks[i], ARCH_USER_END);
		see_task(c, tasks[i], 0x408000);
	}
	see_task(c, -1, ARCH_USER_END);
	page_cache_free(c);
	page_file_close(pf);
}

/* A frame: bytes, or one byte so many times. */
enum { FRAME_BYTES_, FRAME_FILLED };

/* The next frame's content; false at the end. */
static bool
next_content(struct rbuf *r, struct frame *f)
{
	uint8_t kind = rbuf_get_u8(r);
	uint32_t len = rbuf_get_u32(r);

	if (r->failed || rbuf_left(r) == 0)
		return false;
	f->raw_len = 1 + (len - 1) % FRAME_RAW_MAX;
	if (kind % 2 == FRAME_FILLED) {
		memset(frame_raw(f), rbuf_get_u8(r), f->raw_len);
		return true;
	}
	f->raw_len = min_u64(f->raw_len, rbuf_left(r));
	memcpy(frame_raw(f), rbuf_get(r, f->raw_len), f->raw_len);
	return true;
}

static void
frames(const unsigned char *data, size_t len)
{
	struct rbuf r = {data, len, 0, false};
	struct buf out = {0}, table = {0};
	struct frame *f = malloc(sizeof(*f));

	while (next_content(&r, f)) {
		must(frame_pack(f, f->raw_len > 4096) == 0);
		seek_table_add(&table, (uint32_t)f->packed_len, (uint32_t)f->raw_len);
		buf_put(&out, f->packed, f->packed_len);
	}
	seek_table_finish(&out, &table);
	image(out.data, out.len);
	free(f);
	buf_fini(&table);
	buf_fini(&out);
}

/* --- what is missing where, against one entry a page */

enum { SPACE = 160, TASKS = 2 };
#define BASE 0x10000000ULL

struct page {
	enum lazy_page what;
	int64_t task;
	taddr source;
};

static taddr
at_page(unsigned i)
{
	return BASE + i * PAGE_BYTES;
}

static void
see_looks(const struct lazy *l, const struct page *model)
{
	uint64_t missing = 0;

	for (unsigned i = 0; i < SPACE; i++) {
		int64_t task = 0;
		taddr source = 0;

		must(lazy_look(l, at_page(i), &task, &source) == model[i].what);
		must(model[i].what == LAZY_UNKNOWN || (task == model[i].task && source == model[i].source));
		missing += model[i].what == LAZY_MISSING || model[i].what == LAZY_BAD;
	}
	must(l->nmissing == missing);
	for (size_t i = 1; i < l->n; i++)
		must(l->maps[i - 1].at + l->maps[i - 1].npages * PAGE_BYTES <= l->maps[i].at);
}

/* Every page of it that is missing once, and nothing else. */
static void
see_wanted(const struct lazy *l, const struct page *model, int64_t task, taddr from, taddr to)
{
	bool seen[SPACE] = {false};
	size_t map = 0;
	uint64_t page = 0, n;
	taddr at, source;

	while (lazy_wanted(l, task, from, to, &map, &page, &at, &source, &n)) {
		must(n > 0 && at >= BASE && at + n * PAGE_BYTES <= at_page(SPACE));
		for (uint64_t k = 0, i = (at - BASE) / PAGE_BYTES; k < n; k++, i++) {
			must(!seen[i] && model[i].task == task && model[i].source == source + k * PAGE_BYTES);
			seen[i] = true;
		}
	}
	for (unsigned i = 0; i < SPACE; i++)
		must(seen[i] == ((model[i].what == LAZY_MISSING || model[i].what == LAZY_BAD) && model[i].task == task && model[i].source >= from && model[i].source < to));
}

static void
see_first(const struct lazy *l, const struct page *model, unsigned from, uint64_t max)
{
	taddr at = at_page(from), source;
	int64_t task;
	uint64_t n;

	while (from < SPACE && model[from].what != LAZY_MISSING)
		from++;
	if (!lazy_first_missing(l, &at, &task, &source, &n, max)) {
		must(from == SPACE);
		return;
	}
	must(at == at_page(from) && n >= 1 && n <= max && from + n <= SPACE);
	for (uint64_t k = 0; k < n; k++)
		must(model[from + k].what == LAZY_MISSING && model[from + k].task == task && model[from + k].source == source + k * PAGE_BYTES);
}

static void
add(struct lazy *l, struct page *model, unsigned start, unsigned n, int64_t task, taddr source)
{
	/* Behind all others, as is asked for. */
	for (unsigned i = start; i < SPACE; i++)
		if (model[i].what != LAZY_UNKNOWN)
			return;
	must(lazy_add(l, at_page(start), at_page(start + n), task, source) == 0);
	for (unsigned i = 0; i < n; i++)
		model[start + i] = (struct page){LAZY_MISSING, task, source + i * PAGE_BYTES};
}

static void
move(struct lazy *l, struct page *model, unsigned from, unsigned to, unsigned n)
{
	/* The two never overlap in mremap(2). */
	if (from + n > SPACE || to + n > SPACE || (from < to + n && to < from + n))
		return;
	must(lazy_move(l, at_page(from), at_page(to), n * PAGE_BYTES) == 0);
	memcpy(&model[to], &model[from], n * sizeof(*model));
	memset(&model[from], 0, n * sizeof(*model));
}

/* What has come of a source, or cannot. */
static void
come(struct lazy *l, struct page *model, int64_t task, taddr from, taddr to, bool damaged)
{
	size_t map = 0;
	uint64_t page = 0, n;
	taddr at, source;

	while (lazy_wanted(l, task, from, to, &map, &page, &at, &source, &n)) {
		for (uint64_t k = 0; k < n; k++)
			model[(at - BASE) / PAGE_BYTES + k].what = damaged ? LAZY_BAD : LAZY_HERE;
		if (damaged)
			must(lazy_set_bad(l, at, n) == 0);
		else
			lazy_set_here(l, at, n);
	}
}

/* Like fork(2), and the parent goes. */
static void
copy(struct lazy *l)
{
	struct lazy child;

	must(lazy_copy(&child, l) == 0);
	lazy_fini(l);
	*l = child;
}

static void
step(struct lazy *l, struct page *model, const unsigned char op[4])
{
	unsigned start = op[1] % SPACE, n = 1 + op[2] % (SPACE - start);
	taddr from = op[3] % 64 * PAGE_BYTES, to = from + n * PAGE_BYTES;

	switch (op[0] % 8) {
	case 0:
		add(l, model, start, n, 1 + op[0] / 8 % TASKS, op[3] * PAGE_BYTES);
		break;
	case 1:
		must(lazy_unmap(l, at_page(start), at_page(start + n)) == 0);
		memset(&model[start], 0, n * sizeof(*model));
		break;
	case 2:
		must(lazy_drop(l, at_page(start), at_page(start + n)) == 0);
		for (unsigned i = start; i < start + n; i++)
			model[i].what = model[i].what != LAZY_UNKNOWN ? LAZY_HERE : LAZY_UNKNOWN;
		break;
	case 3:
		move(l, model, start, op[3] % SPACE, n);
		break;
	case 4:
		copy(l);
		break;
	case 5:
		come(l, model, 1 + op[0] / 8 % TASKS, from, to, false);
		break;
	case 6:
		come(l, model, 1 + op[0] / 8 % TASKS, from, to, true);
		break;
	default: /* a page alone */
		lazy_set_here(l, at_page(start), 1);
		model[start].what = model[start].what != LAZY_UNKNOWN ? LAZY_HERE : LAZY_UNKNOWN;
	}
	see_looks(l, model);
	see_wanted(l, model, 1 + op[1] % TASKS, from, to);
	see_first(l, model, start, 1 + op[3] % 40);
}

static void
memory(const unsigned char *data, size_t len)
{
	struct page model[SPACE] = {{LAZY_UNKNOWN, 0, 0}};
	struct lazy l = {0};

	for (; len >= 4; data += 4, len -= 4)
		step(&l, model, data);
	lazy_fini(&l);
}

static void
fuzz_one(const unsigned char *data, size_t len)
{
	static void (*const one[])(const unsigned char *, size_t) = {bodies, image, frames, memory};

	log_hush(1);
	if (len > 1)
		one[data[0] % 4](data + 1, len - 1);
	log_hush(-1);
}

/* --- seeds */

static int
sink(void *ctx, const void *data, size_t len)
{
	buf_put(ctx, data, len);
	return 0;
}

static int
read_pages(struct page_source *s, const struct page_run *runs, size_t nruns, unsigned char *out)
{
	(void)s;
	for (size_t i = 0; i < nruns; i++, out += runs[i - 1].npages * PAGE_BYTES)
		memset(out, (int)(1 + i % 255), runs[i].npages * PAGE_BYTES);
	return 0;
}

static bool
keep_page(struct page_source *s, taddr addr, const unsigned char *page)
{
	(void)s, (void)page;
	return addr % (5 * PAGE_BYTES) != 0;
}

static void
whole_image(struct buf *b)
{
	struct image_header h = {.id = (char *)(uintptr_t)"0123456789abcdef0123456789abcdef", .version = IMAGE_VERSION, .pid = 42};
	struct page_source source = {.read = read_pages, .keep = keep_page};
	struct image_writer *w = image_writer_new(sink, b, 1);
	struct page_runs runs = {0};
	size_t len;
	char *text = record_to_text(&record_header, &h, &len);

	image_put(w, "header.json", text, len);
	page_runs_add(&runs, 0x400000, 300);
	page_runs_add(&runs, 0x900000, 3);
	image_put_pages(w, 42, &runs, &source, NULL, NULL);
	image_put_pages(w, 43, &runs, &source, NULL, NULL);
	image_finish(w);
	image_writer_free(w);
	page_runs_fini(&runs);
	free(text);
}

/* What is in the frames of an image, as frames() takes it. */
static void
take_apart(struct buf *out, const struct buf *b)
{
	unsigned char *room = malloc(FRAME_RAW_MAX);
	uint32_t skippable;

	for (size_t at = 0; at < b->len;) {
		int64_t n = frame_length(b->data + at, b->len - at, &skippable), raw;
		const unsigned char *content;

		if (n <= 0 || skippable != 0)
			break;
		raw = frame_unpack(b->data + at, (size_t)n, room, &content);
		must(raw > 0);
		buf_put_u8(out, raw % PAGE_BYTES == 0 ? FRAME_FILLED : FRAME_BYTES_);
		buf_put_u32(out, (uint32_t)raw);
		buf_put(out, content, raw % PAGE_BYTES == 0 ? 1 : (size_t)raw);
		at += (size_t)n;
	}
	free(room);
}

static void
body(struct buf *b, unsigned n)
{
	struct page_pieces p = {.task = 7, .from = 0x1000, .to = 0x9000, .granted = PAGE_READ, .runs = {{0x2000, 1}, {0x5000, 2}}, .nruns = 2};
	struct attach a = {.flags = ATTACH_SHARED};
	struct page_counts c = {.faults = 5, .latency = {1, 2, 3}};

	memset(a.id, 'a', IMAGE_ID);
	switch (n) {
	case 0:
		attach_put(b, &a);
		break;
	case 1:
		page_get_put(b, &(struct page_get){12, 0x7000, 3, PAGE_WRITE});
		break;
	case 2:
		page_stream_put(b, &(struct page_stream){12, 0x7000, 3});
		break;
	case 3:
		page_pieces_put(b, &p);
		buf_put(b, "content", 7);
		break;
	case 4:
		page_call_put(b, &(struct page_call){12, ARCH_USER_END - PAGE_BYTES, PAGE_READ});
		buf_put(b, "content", 7);
		break;
	default:
		page_counts_put(b, &c);
	}
}

/* Steps of a memory: each makes some more of them. */
static void
steps(struct buf *b, unsigned n)
{
	uint32_t x = n * 2654435761U + 1;

	buf_put(b, "\0\0\x1f\0\0\x20\x1f\x20\x08\x40\x5f\0", 12);
	for (unsigned i = 0; i < 60; i++) {
		x = x * 1103515245 + 12345;
		buf_put_u32(b, x >> 8 ^ x << 9);
	}
}

static unsigned char *
fuzz_seed(unsigned n, size_t *len)
{
	struct buf b = {0}, packed = {0};

	if (n >= 24)
		return NULL;
	buf_put_u8(&b, n < 6 ? 0 : n < 8 ? 1 : n < 12 ? 2 : 3);
	if (n < 6) {
		body(&b, n);
	} else if (n < 8) {
		whole_image(&b);
	} else if (n < 12) {
		whole_image(&packed);
		take_apart(&b, &packed);
		buf_fini(&packed);
	} else {
		steps(&b, n);
	}
	*len = b.len;
	return b.data;
}
