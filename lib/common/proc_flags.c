#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "arch.h"
#include "proc.h"

static bool
has(const char *flags, const char *two)
{
	for (const char *p = flags; p != NULL && *p != '\0'; p += strcspn(p, " "), p += *p == ' ')
		if (p[0] == two[0] && p[1] == two[1])
			return true;
	return false;
}

/* One that has grown since is still that one. */
static bool
is_same(const struct proc_map *now, const struct proc_map *before)
{
	return now->start < before->end && before->start < now->end && now->prot == before->prot && now->shared == before->shared &&
	    now->ino == before->ino && now->major == before->major && now->minor == before->minor && strcmp(now->path, before->path) == 0 &&
	    (now->ino == 0 || now->offset - before->offset == now->start - before->start);
}

static int
take(struct proc_map *now, const struct proc_map *before)
{
	/* A copy by fork(2) has nothing locked, so it could not prove that. */
	if (before->flags == NULL || has(before->flags, "lo") || has(before->flags, "lf"))
		return -ENOENT;
	free(now->flags);
	now->flags = strdup(before->flags);
	now->pkey = before->pkey;
	now->page_bytes = before->page_bytes;
	return now->flags == NULL ? -ENOMEM : 0;
}

int
proc_maps_assume(struct proc_maps *maps, const struct proc_maps *before)
{
	size_t k = 0;
	int err = 0;

	for (size_t i = 0; i < maps->n && err == 0; i++) {
		while (k < before->n && before->map[k].end <= maps->map[i].start)
			k++;
		err = k < before->n && is_same(&maps->map[i], &before->map[k]) ? take(&maps->map[i], &before->map[k]) : -ENOENT;
	}
	return err;
}

/* What comes and goes without anybody asking for it, and what fork(2) takes away. */
static bool
is_of_no_matter(const char *two)
{
	static const char none[][3] = {"sd", "lo", "lf", "uw", "um", "ui"};

	for (size_t i = 0; i < ARRAY_LEN(none); i++)
		if (two[0] == none[i][0] && two[1] == none[i][1])
			return true;
	return false;
}

/* All of a that matter are in b. */
static bool
are_in(const char *a, const char *b)
{
	for (const char *p = a; p != NULL && *p != '\0'; p += strcspn(p, " "), p += *p == ' ')
		if (!is_of_no_matter(p) && !has(b, p))
			return false;
	return true;
}

bool
proc_maps_prove(const struct proc_maps *maps, const struct proc_maps *copy)
{
	for (size_t i = 0; i < maps->n; i++) {
		const struct proc_map *m = &maps->map[i];
		const struct proc_map *there = proc_maps_find(copy, m->end - 1);

		if (m->start >= ARCH_USER_END)
			continue;
		/* MADV_DONTFORK */
		if (has(m->flags, "dc") && there == NULL)
			continue;
		if (there == NULL || m->pkey != there->pkey || m->page_bytes != there->page_bytes || !are_in(m->flags, there->flags) ||
		    !are_in(there->flags, m->flags))
			return false;
	}
	return true;
}
