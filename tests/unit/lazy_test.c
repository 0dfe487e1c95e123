/* lazy_map, lazy_ranges, ahead: what is missing where, what can wait, and what is sent unasked. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "lazy_ranges.h"
#include "page_wire.h"
#include "tap.h"

/* Both have static functions of the same names. */
#include "../../cmd/pagesrv/lazy_map.c"
#define find find_stream
#include "../../cmd/pagesrv/ahead.c"
#undef find

enum { K = 1 << 10 };
#define AT(page) (0x100000ULL + (page)*PAGE_BYTES)
#define FROM(page) (0x700000ULL + (page)*PAGE_BYTES)

/* --- lazy_map */

/* As which page of task 1 is it missing here? -1: it is not; -2: bad; -3: nothing is known of it; -4: of another task. */
static int
missing_as(const struct lazy *l, unsigned page)
{
	int64_t task;
	taddr source;
	enum lazy_page what = lazy_look(l, AT(page), &task, &source);

	if (what == LAZY_MISSING && task == 1)
		return (int)((source - FROM(0)) / PAGE_BYTES);
	return what == LAZY_HERE ? -1 : what == LAZY_BAD ? -2 : what == LAZY_UNKNOWN ? -3 : -4;
}

static void
test_empty(void)
{
	struct lazy l = {0};
	taddr at = 0, source;
	int64_t task;
	uint64_t n, page = 0;
	size_t map = 0;

	ok(missing_as(&l, 0) == -3 && lazy_unmap(&l, AT(0), AT(9)) == 0 && lazy_drop(&l, AT(0), AT(9)) == 0 && lazy_move(&l, AT(0), AT(9), PAGE_BYTES) == 0,
	    "whatever happens to an empty memory");
	ok(!lazy_wanted(&l, 1, 0, UINT64_MAX, &map, &page, &at, &source, &n) && !lazy_first_missing(&l, &at, &task, &source, &n, 9), "nothing is missing there");
	lazy_fini(&l);
}

static void
test_changes(void)
{
	struct lazy l = {0}, child;

	ok(lazy_add(&l, AT(0), AT(64), 1, FROM(0)) == 0 && l.nmissing == 64 && missing_as(&l, 63) == 63 && missing_as(&l, 64) == -3, "64 pages are missing");
	lazy_set_here(&l, AT(10), 2);
	ok(l.nmissing == 62 && missing_as(&l, 10) == -1 && missing_as(&l, 12) == 12, "two have come");
	ok(lazy_unmap(&l, AT(20), AT(30)) == 0 && l.n == 2 && l.nmissing == 52 && missing_as(&l, 20) == -3 && missing_as(&l, 30) == 30, "a hole in the middle");
	ok(lazy_drop(&l, AT(15), AT(35)) == 0 && l.nmissing == 42 && missing_as(&l, 15) == -1 && missing_as(&l, 25) == -3 && missing_as(&l, 35) == 35,
	    "what is dropped is not missing any more");
	ok(lazy_copy(&child, &l) == 0 && child.nmissing == 42, "a child misses the same");
	ok(lazy_move(&l, AT(0), AT(40), 5 * PAGE_BYTES) == 0 && l.nmissing == 37 && missing_as(&l, 40) == 0 && missing_as(&l, 44) == 4 && missing_as(&l, 45) == 45 &&
	    missing_as(&l, 0) == -3, "what is moved over others is wanted there");
	ok(missing_as(&child, 0) == 0 && missing_as(&child, 40) == 40, "and in the child where it was");
	lazy_fini(&child);
	ok(lazy_move(&l, AT(40), AT(200), 5 * PAGE_BYTES) == 0 && lazy_move(&l, AT(50), AT(0), 5 * PAGE_BYTES) == 0 && missing_as(&l, 0) == 50 && missing_as(&l, 204) == 4 &&
	    missing_as(&l, 9) == 9, "behind all others, and before them");
	lazy_fini(&l);
}

static void
test_wanted(void)
{
	struct lazy l = {0};
	taddr at = 0, source;
	uint64_t n, page = 0;
	size_t map = 0;
	int64_t task;

	lazy_add(&l, AT(0), AT(10), 1, FROM(100));
	lazy_add(&l, AT(10), AT(20), 2, FROM(0));
	lazy_add(&l, AT(20), AT(30), 1, FROM(0));
	lazy_set_here(&l, AT(24), 1);
	ok(lazy_wanted(&l, 1, FROM(2), FROM(105), &map, &page, &at, &source, &n) && at == AT(0) && source == FROM(100) && n == 5 &&
	    lazy_wanted(&l, 1, FROM(2), FROM(105), &map, &page, &at, &source, &n) && at == AT(22) && source == FROM(2) && n == 2 &&
	    lazy_wanted(&l, 1, FROM(2), FROM(105), &map, &page, &at, &source, &n) && at == AT(25) && source == FROM(5) && n == 5 &&
	    !lazy_wanted(&l, 1, FROM(2), FROM(105), &map, &page, &at, &source, &n), "where a piece is wanted, run by run");
	ok(lazy_set_bad(&l, AT(0), 3) == 0 && missing_as(&l, 2) == -2 && missing_as(&l, 3) == 103 && l.nmissing == 29, "what cannot be had is still missing");
	at = 0;
	ok(lazy_first_missing(&l, &at, &task, &source, &n, 4) && at == AT(3) && task == 1 && source == FROM(103) && n == 4, "but nobody asks for it");
	at = AT(8);
	ok(lazy_first_missing(&l, &at, &task, &source, &n, 40) && at == AT(8) && n == 2, "what goes on elsewhere is asked for by itself");
	lazy_unmap(&l, AT(0), AT(1));
	ok(missing_as(&l, 1) == -2 && missing_as(&l, 3) == 103, "it stays so when the mapping is cut");
	lazy_set_here(&l, AT(1), 1);
	ok(missing_as(&l, 1) == -1 && missing_as(&l, 2) == -2, "unless it comes all the same");
	lazy_fini(&l);
}

/* --- lazy_ranges */

/* The ranges of one mapping of 64 MB, with a thread, as text: "start-end " in pages of it. */
static const char *
ranges_of(const struct vma *v, const struct thread *t, taddr start_stack)
{
	static char text[256];
	struct task task = {.mm.start_stack = start_stack, .vmas = (struct vma *)(uintptr_t)v, .nvmas = 1, .threads = (struct thread *)(uintptr_t)t, .nthreads = t != NULL};
	struct page_range *r = NULL;
	size_t n = 0;

	text[0] = '\0';
	if (lazy_ranges(&task, &r, &n) < 0)
		return "error";
	for (size_t i = 0; i < n; i++)
		snprintf(text + strlen(text), sizeof(text) - strlen(text), "%llu-%llu ", (unsigned long long)((r[i].start - v->start) / PAGE_BYTES),
		    (unsigned long long)((r[i].end - v->start) / PAGE_BYTES));
	free(r);
	return text;
}

static void
test_ranges(void)
{
	static char plain[] = "rd wr mr mw me ac", locked[] = "rd wr lo ac", stack[] = "rd wr gd";
	struct vma v = {.start = 0x40000000, .end = 0x44000000, .prot = PROT_READ | PROT_WRITE, .kind = VMA_ANON, .ref = -1, .flags = plain}, w = v;
	struct thread t = {0};

	ok(strcmp(ranges_of(&v, NULL, 0), "0-16384 ") == 0, "private memory can wait");
	w.flags = locked;
	ok(ranges_of(&w, NULL, 0)[0] == '\0', "locked memory cannot");
	w.flags = stack;
	ok(ranges_of(&w, NULL, 0)[0] == '\0' && ranges_of(&v, NULL, 0x43fff000)[0] == '\0', "nor a stack");
	w = v, w.shared = true;
	ok(ranges_of(&w, NULL, 0)[0] == '\0', "nor what is shared");
	w = v, w.end = w.start + 256 * K;
	ok(ranges_of(&w, NULL, 0)[0] == '\0', "nor what is small");
	t.regs.rsp = v.start + 32 * K * K;
	ok(strcmp(ranges_of(&v, &t, 0), "0-8160 8256-16384 ") == 0, "around a stack pointer it is there");
	t.rseq = v.start + 100;
	t.tid_address = v.end - 8;
	ok(strcmp(ranges_of(&v, &t, 0), "2-8160 8256-16383 ") == 0, "and where the kernel writes");
	t.robust_head = t.regs.rsp;
	ok(strcmp(ranges_of(&v, &t, 0), "2-8160 8256-16383 ") == 0, "one inside the other");
	w = v, w.end = w.start + 16 * K * K;
	t = (struct thread){.regs.rsp = w.start + 8};
	ok(ranges_of(&w, &t, 0)[0] == '\0', "a small mapping with a stack as a whole");
}

/* --- ahead */

static void
test_ahead(void)
{
	struct ahead a = {0};
	taddr from, at = AT(1000);
	uint32_t n = 0, most = 0, all = 0;
	bool good = true;

	ok(ahead_asked(&a, 1, at, 1, &from) == 0, "the first page alone");
	for (int i = 0; i < 12; i++) {
		taddr next = at + PAGE_BYTES * (1 + n);

		n = ahead_asked(&a, 1, next, 1, &from);
		good &= n > 0 && from == next + PAGE_BYTES && n >= most && n <= AHEAD_MAX;
		most = n, at = next;
	}
	ok(good && most == AHEAD_MAX, "upwards: more and more, up to a limit");
	at = AT(5000), n = most = 0, good = ahead_asked(&a, 1, at, 1, &from) == 0;
	for (int i = 0; i < 12; i++) {
		taddr next = at - PAGE_BYTES * (1 + n);

		n = ahead_asked(&a, 1, next, 1, &from);
		good &= n > 0 && from == next - n * PAGE_BYTES && n >= most && n <= AHEAD_MAX;
		most = n, at = next;
	}
	ok(good && most == AHEAD_MAX, "downwards as well");
	for (unsigned i = 0, x = 1; i < 1000; i++) {
		x = x * 1103515245 + 12345;
		all += ahead_asked(&a, 1, (taddr)(x >> 8 & 0xfffff) * PAGE_BYTES * 3, 1, &from);
	}
	ok(all < 20, "here and there: nothing");
	for (unsigned i = 0; i < AHEAD_STREAMS; i++)
		ahead_asked(&a, 1 + i, AT(0), 1, &from);
	for (good = true, n = 0; n < AHEAD_STREAMS; n++)
		good &= ahead_asked(&a, 1 + n, AT(1), 1, &from) == 4 && from == AT(2);
	ok(good, "several at once, of several tasks");
	a = (struct ahead){0};
	ahead_asked(&a, 1, 2 * PAGE_BYTES, 1, &from);
	ok(ahead_asked(&a, 1, PAGE_BYTES, 1, &from) == 0, "not below the first page of all");
	a = (struct ahead){0};
	ahead_asked(&a, 1, AT(100), 4, &from);
	ok(ahead_asked(&a, 1, AT(104), 4, &from) == 4 && from == AT(108), "several pages a time, upwards");
}

int
main(void)
{
	test_empty();
	test_changes();
	test_wanted();
	test_ranges();
	test_ahead();
	return done();
}
