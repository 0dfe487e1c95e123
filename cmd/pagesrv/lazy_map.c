#include "lazy_map.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static bool
has(const uint64_t *bits, uint64_t i)
{
	return bits != NULL && (bits[i / 64] >> (i % 64) & 1) != 0;
}

static void
clear(uint64_t *bits, uint64_t i)
{
	bits[i / 64] &= ~(1ULL << (i % 64));
}

static void
set(uint64_t *bits, uint64_t i)
{
	bits[i / 64] |= 1ULL << (i % 64);
}

static uint64_t *
new_bits(uint64_t n)
{
	return calloc(n / 64 + 1, sizeof(uint64_t));
}

static taddr
end_of(const struct lazy_map *m)
{
	return m->at + m->npages * PAGE_BYTES;
}

static void
free_map(struct lazy_map *m)
{
	free(m->missing);
	free(m->bad);
}

void
lazy_fini(struct lazy *l)
{
	for (size_t i = 0; i < l->n; i++)
		free_map(&l->maps[i]);
	free(l->maps);
	*l = (struct lazy){0};
}

int
lazy_add(struct lazy *l, taddr start, taddr end, int64_t task, taddr source)
{
	uint64_t n = (end - start) / PAGE_BYTES, *bits = new_bits(n);
	struct lazy_map *m = bits != NULL ? ARRAY_ADD(l->maps, l->n) : NULL;

	if (m == NULL) {
		free(bits);
		return -ENOMEM;
	}
	for (uint64_t i = 0; i < n / 64; i++)
		bits[i] = UINT64_MAX;
	bits[n / 64] = (1ULL << (n % 64)) - 1;
	*m = (struct lazy_map){start, n, task, source, bits, n, NULL};
	l->nmissing += n;
	return 0;
}

/* Pages [first, first + n) of a map, as one of its own. */
static int
part_of(struct lazy_map *out, const struct lazy_map *m, uint64_t first, uint64_t n)
{
	*out = (struct lazy_map){m->at + first * PAGE_BYTES, n, m->task, m->source + first * PAGE_BYTES, new_bits(n), 0, m->bad != NULL ? new_bits(n) : NULL};
	if (out->missing == NULL || (m->bad != NULL && out->bad == NULL)) {
		free_map(out);
		return -ENOMEM;
	}
	for (uint64_t i = 0; i < n; i++) {
		if (has(m->missing, first + i)) {
			set(out->missing, i);
			out->nmissing++;
		}
		if (has(m->bad, first + i))
			set(out->bad, i);
	}
	return 0;
}

int
lazy_copy(struct lazy *to, const struct lazy *from)
{
	*to = (struct lazy){0};
	for (size_t i = 0; i < from->n; i++) {
		struct lazy_map *m = ARRAY_ADD(to->maps, to->n);

		if (m == NULL || part_of(m, &from->maps[i], 0, from->maps[i].npages) < 0) {
			to->n -= m != NULL;
			lazy_fini(to);
			return -ENOMEM;
		}
	}
	to->nmissing = from->nmissing;
	return 0;
}

/* The first that ends behind addr. */
static size_t
find(const struct lazy *l, taddr addr)
{
	size_t lo = 0, hi = l->n;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (end_of(&l->maps[mid]) <= addr)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

enum lazy_page
lazy_look(const struct lazy *l, taddr addr, int64_t *task, taddr *source)
{
	size_t i = find(l, addr);
	const struct lazy_map *m = &l->maps[i];
	uint64_t page;

	if (i == l->n || m->at > addr)
		return LAZY_UNKNOWN;
	page = (addr - m->at) / PAGE_BYTES;
	*task = m->task;
	*source = m->source + page * PAGE_BYTES;
	return has(m->bad, page) ? LAZY_BAD : has(m->missing, page) ? LAZY_MISSING : LAZY_HERE;
}

bool
lazy_is_empty(const struct lazy *l, taddr start, taddr end)
{
	size_t i = find(l, start);

	return i == l->n || l->maps[i].at >= end;
}

/* --- what the process does */

/* A map that ends at addr, and one that begins there. */
static int
cut(struct lazy *l, taddr addr)
{
	size_t i = find(l, addr);
	struct lazy_map low, high, *slot;
	uint64_t first;

	if (i == l->n || l->maps[i].at >= addr)
		return 0;
	first = (addr - l->maps[i].at) / PAGE_BYTES;
	if (part_of(&low, &l->maps[i], 0, first) < 0)
		return -ENOMEM;
	slot = part_of(&high, &l->maps[i], first, l->maps[i].npages - first) < 0 ? NULL : ARRAY_ADD(l->maps, l->n);
	if (slot == NULL) {
		free_map(&low);
		return -ENOMEM;
	}
	memmove(&l->maps[i + 2], &l->maps[i + 1], (l->n - i - 2) * sizeof(*l->maps));
	free_map(&l->maps[i]);
	l->maps[i] = low;
	l->maps[i + 1] = high;
	return 0;
}

static void
remove_at(struct lazy *l, size_t i)
{
	l->nmissing -= l->maps[i].nmissing;
	free_map(&l->maps[i]);
	memmove(&l->maps[i], &l->maps[i + 1], (l->n - i - 1) * sizeof(*l->maps));
	l->n--;
}

int
lazy_unmap(struct lazy *l, taddr start, taddr end)
{
	if (cut(l, start) < 0 || cut(l, end) < 0)
		return -ENOMEM;
	for (size_t i = find(l, start); i < l->n && l->maps[i].at < end;)
		remove_at(l, i);
	return 0;
}

int
lazy_drop(struct lazy *l, taddr start, taddr end)
{
	for (size_t i = find(l, start); i < l->n && l->maps[i].at < end; i++) {
		const struct lazy_map *m = &l->maps[i];
		taddr from = max_u64(start, m->at), to = min_u64(end, end_of(m));

		lazy_set_here(l, from, (to - from) / PAGE_BYTES);
	}
	return 0;
}

static int
compare(const void *a, const void *b)
{
	const struct lazy_map *x = a, *y = b;

	return x->at < y->at ? -1 : x->at > y->at;
}

int
lazy_move(struct lazy *l, taddr from, taddr to, uint64_t len)
{
	if (cut(l, from) < 0 || cut(l, from + len) < 0 || lazy_unmap(l, to, to + len) < 0)
		return -ENOMEM;
	for (size_t i = find(l, from); i < l->n && l->maps[i].at < from + len; i++)
		l->maps[i].at += to - from;
	if (l->n > 1)
		qsort(l->maps, l->n, sizeof(*l->maps), compare);
	return 0;
}

/* --- what comes */

bool
lazy_wanted(const struct lazy *l, int64_t task, taddr from, taddr to, size_t *map, uint64_t *page, taddr *at, taddr *source, uint64_t *npages)
{
	for (; *map < l->n; ++*map, *page = 0) {
		const struct lazy_map *m = &l->maps[*map];
		uint64_t first, end;

		if (m->task != task || m->nmissing == 0 || m->source >= to || m->source + m->npages * PAGE_BYTES <= from)
			continue;
		first = from > m->source ? (from - m->source) / PAGE_BYTES : 0;
		end = min_u64(m->npages, (to - m->source) / PAGE_BYTES);
		first = max_u64(first, *page);
		while (first < end && !has(m->missing, first))
			first++;
		for (*npages = 0; first + *npages < end && has(m->missing, first + *npages);)
			++*npages;
		if (*npages == 0)
			continue;
		*at = m->at + first * PAGE_BYTES;
		*source = m->source + first * PAGE_BYTES;
		*page = first + *npages;
		return true;
	}
	return false;
}

void
lazy_set_here(struct lazy *l, taddr at, uint64_t npages)
{
	size_t i = find(l, at);
	struct lazy_map *m = &l->maps[i];

	if (i == l->n || m->at > at)
		return;
	for (uint64_t first = (at - m->at) / PAGE_BYTES, k = first; k < m->npages && k < first + npages; k++) {
		if (has(m->missing, k)) {
			clear(m->missing, k);
			m->nmissing--;
			l->nmissing--;
		}
		if (m->bad != NULL)
			clear(m->bad, k);
	}
}

int
lazy_set_bad(struct lazy *l, taddr at, uint64_t npages)
{
	size_t i = find(l, at);
	struct lazy_map *m = &l->maps[i];

	if (i == l->n || m->at > at)
		return 0;
	if (m->bad == NULL && (m->bad = new_bits(m->npages)) == NULL)
		return -ENOMEM;
	for (uint64_t first = (at - m->at) / PAGE_BYTES, k = first; k < m->npages && k < first + npages; k++)
		set(m->bad, k);
	return 0;
}

bool
lazy_first_missing(const struct lazy *l, taddr *at, int64_t *task, taddr *source, uint64_t *npages, uint64_t max)
{
	for (size_t i = 0; i < l->n; i++) {
		const struct lazy_map *m = &l->maps[i];

		if (m->nmissing == 0 || m->at + m->npages * PAGE_BYTES <= *at)
			continue;
		for (uint64_t k = *at > m->at ? (*at - m->at) / PAGE_BYTES : 0; k < m->npages; k++) {
			if (!has(m->missing, k) || has(m->bad, k))
				continue;
			*at = m->at + k * PAGE_BYTES;
			*task = m->task;
			*source = m->source + k * PAGE_BYTES;
			for (*npages = 0; *npages < max && k + *npages < m->npages && has(m->missing, k + *npages) && !has(m->bad, k + *npages);)
				++*npages;
			return true;
		}
	}
	return false;
}
