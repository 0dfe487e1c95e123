/*
 * The pure half of proc: text in, structs out.
 */
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "proc.h"

/* maps writes a newline in a name as \012. */
static char *
unescape(const char *s)
{
	char *text = malloc(strlen(s) + 1), *p = text;

	if (text == NULL)
		return NULL;
	while (*s != '\0') {
		if (strncmp(s, "\\012", 4) == 0) {
			*p++ = '\n';
			s += 4;
		} else {
			*p++ = *s++;
		}
	}
	*p = '\0';
	return text;
}

static int
parse_map_line(struct proc_map *m, const char *line)
{
	char perm[5];
	int at = 0;

	if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64 " %x:%x %" SCNu64 " %n", &m->start,
		&m->end, perm, &m->offset, &m->major, &m->minor, &m->ino, &at) < 7 || at == 0)
		return -EBADMSG;
	m->prot = (perm[0] == 'r' ? PROT_READ : 0) | (perm[1] == 'w' ? PROT_WRITE : 0) |
	    (perm[2] == 'x' ? PROT_EXEC : 0);
	m->shared = perm[3] == 's';
	m->path = unescape(line + at);
	return m->path == NULL ? -ENOMEM : 0;
}

/* A line of smaps below the first: `VmFlags: rd wr mr mw me ac sd ` */
static int
parse_detail(struct proc_map *m, const char *line)
{
	if (strncmp(line, "VmFlags:", 8) == 0) {
		line += 8 + strspn(line + 8, " ");
		free(m->flags);
		m->flags = strdup(line);
		if (m->flags == NULL)
			return -ENOMEM;
		for (size_t n = strlen(m->flags); n > 0 && m->flags[n - 1] == ' ';)
			m->flags[--n] = '\0';
	} else if (strncmp(line, "ProtectionKey:", 14) == 0) {
		m->pkey = atoi(line + 14);
	} else if (strncmp(line, "KernelPageSize:", 15) == 0) {
		m->page_bytes = strtoull(line + 15, NULL, 10) << 10;
	}
	return 0;
}

int
proc_maps_parse(struct proc_maps *maps, char *text)
{
	struct proc_map *m = NULL;
	char *save = NULL;
	int err = 0;

	*maps = (struct proc_maps){0};
	for (char *line = strtok_r(text, "\n", &save); line != NULL && err == 0;
	     line = strtok_r(NULL, "\n", &save)) {
		/* The keys of smaps begin with a capital letter. */
		if (isupper((unsigned char)line[0])) {
			err = m == NULL ? -EBADMSG : parse_detail(m, line);
			continue;
		}
		m = ARRAY_ADD(maps->map, maps->n);
		err = m == NULL ? -ENOMEM : parse_map_line(m, line);
	}
	if (err < 0)
		proc_maps_fini(maps);
	return err;
}

void
proc_maps_fini(struct proc_maps *maps)
{
	for (size_t i = 0; i < maps->n; i++) {
		free(maps->map[i].path);
		free(maps->map[i].flags);
	}
	free(maps->map);
	*maps = (struct proc_maps){0};
}

const struct proc_map *
proc_maps_find(const struct proc_maps *maps, taddr addr)
{
	for (size_t i = 0; i < maps->n; i++)
		if (addr >= maps->map[i].start && addr < maps->map[i].end)
			return &maps->map[i];
	return NULL;
}

/* Value of `key:` at the beginning of a line, or NULL. */
static const char *
value_of(const char *text, const char *key)
{
	size_t n = strlen(key);

	while (text != NULL && *text != '\0') {
		if (strncmp(text, key, n) == 0 && text[n] == ':')
			return text + n + 1 + strspn(text + n + 1, " \t");
		text = strchr(text, '\n');
		text += text != NULL;
	}
	return NULL;
}

/* Lines that are asked for in the order in which the kernel has them, mostly. */
struct lines {
	const char *text, *at;
};

static const char *
find_value(struct lines *l, const char *key)
{
	const char *v = value_of(l->at, key);

	if (v == NULL)
		v = value_of(l->text, key);
	if (v == NULL)
		return NULL;
	l->at = v + strcspn(v, "\n");
	l->at += *l->at != '\0';
	return v;
}

static uint64_t
number_of(struct lines *l, const char *key, int base)
{
	const char *v = find_value(l, key);

	return v == NULL ? 0 : strtoull(v, NULL, base);
}

/* Numbers up to the end of the line. Returns how many. */
static int
numbers_of(struct lines *l, const char *key, int64_t *out, int max)
{
	const char *v = find_value(l, key);
	int n = 0;

	while (v != NULL && n < max) {
		char *end;

		v += strspn(v, " \t");
		if (!isdigit((unsigned char)*v))
			break;
		out[n++] = strtoll(v, &end, 10);
		v = end;
	}
	return n;
}

static int
pids_of(struct lines *l, const char *key, pid_t *out)
{
	int64_t v[PROC_NS_MAX];
	int n = numbers_of(l, key, v, PROC_NS_MAX);

	for (int i = 0; i < n; i++)
		out[i] = (pid_t)v[i];
	return n;
}

static int
groups_of(struct lines *l, struct proc_status *st)
{
	const char *v = find_value(l, "Groups");
	size_t max = v == NULL ? 0 : strcspn(v, "\n") / 2 + 1; /* a digit and a blank each */

	st->groups = calloc(max + 1, sizeof(*st->groups));
	if (st->groups == NULL)
		return -ENOMEM;
	st->ngroups = (size_t)numbers_of(l, "Groups", st->groups, (int)max);
	return 0;
}

static void
signals_of(struct lines *l, struct proc_status *st)
{
	st->sigpnd = number_of(l, "SigPnd", 16);
	st->shdpnd = number_of(l, "ShdPnd", 16);
	st->sigblk = number_of(l, "SigBlk", 16);
	st->sigign = number_of(l, "SigIgn", 16);
	st->sigcgt = number_of(l, "SigCgt", 16);
}

int
proc_status_parse(struct proc_status *st, const char *text)
{
	struct lines lines = {text, text}, *l = &lines;
	const char *name = find_value(l, "Name"), *state;

	memset(st, 0, sizeof(*st));
	st->umask = (unsigned)number_of(l, "Umask", 8);
	state = find_value(l, "State");
	if (name == NULL || state == NULL)
		return -EBADMSG;
	snprintf(st->name, sizeof(st->name), "%.*s", (int)strcspn(name, "\n"), name);
	st->state = *state;
	st->tgid = (pid_t)number_of(l, "Tgid", 10);
	st->ppid = (pid_t)number_of(l, "PPid", 10);
	st->tracer = (pid_t)number_of(l, "TracerPid", 10);
	if (numbers_of(l, "Uid", st->uid, 4) != 4 || numbers_of(l, "Gid", st->gid, 4) != 4)
		return -EBADMSG;
	if (groups_of(l, st) < 0)
		return -ENOMEM;
	st->levels = pids_of(l, "NSpid", st->nspid);
	if (st->levels < 1) {
		proc_status_fini(st);
		return -EBADMSG;
	}
	pids_of(l, "NSpgid", st->nspgid);
	pids_of(l, "NSsid", st->nssid);
	st->locked_kb = number_of(l, "VmLck", 10);
	st->rss_anon_kb = number_of(l, "RssAnon", 10);
	st->rss_shmem_kb = number_of(l, "RssShmem", 10);
	st->swap_kb = number_of(l, "VmSwap", 10);
	st->threads = (int)number_of(l, "Threads", 10);
	signals_of(l, st);
	st->cap_inh = number_of(l, "CapInh", 16);
	st->cap_prm = number_of(l, "CapPrm", 16);
	st->cap_eff = number_of(l, "CapEff", 16);
	st->cap_bnd = number_of(l, "CapBnd", 16);
	st->cap_amb = number_of(l, "CapAmb", 16);
	st->no_new_privs = (unsigned)number_of(l, "NoNewPrivs", 10);
	st->seccomp = (unsigned)number_of(l, "Seccomp", 10);
	st->seccomp_filters = (unsigned)number_of(l, "Seccomp_filters", 10);
	return 0;
}

void
proc_status_fini(struct proc_status *st)
{
	free(st->groups);
	st->groups = NULL;
}

int
proc_stat_parse(struct proc_stat *st, const char *text)
{
	const char *p = strrchr(text, ')'); /* comm may hold anything, even this */
	uint64_t f[53] = {0};

	memset(st, 0, sizeof(*st));
	if (p == NULL || p[1] != ' ' || p[2] == '\0')
		return -EBADMSG;
	st->state = p[2];
	p += 3;
	for (int i = 4; i <= 52; i++) {
		char *end;

		f[i] = strtoull(p, &end, 10); /* wraps for -1, as the casts below want it */
		if (end == p)
			return -EBADMSG;
		p = end;
	}
	st->ppid = (pid_t)f[4], st->pgrp = (pid_t)f[5], st->session = (pid_t)f[6];
	st->tty = (int)f[7];
	st->foreground = (pid_t)f[8];
	st->utime = f[14], st->stime = f[15], st->starttime = f[22];
	st->start_code = f[26], st->end_code = f[27], st->start_stack = f[28];
	st->exit_signal = (int)f[38];
	st->start_data = f[45], st->end_data = f[46], st->start_brk = f[47];
	st->arg_start = f[48], st->arg_end = f[49];
	st->env_start = f[50], st->env_end = f[51];
	st->exit_code = (int)f[52];
	return 0;
}

static bool
parse_lock(struct proc_lock *l, const char *line)
{
	char mode[8], end[24];

	if (sscanf(line, "%*d: %7s %*s %7s %*d %*x:%*x:%" SCNu64 " %" SCNd64 " %23s", l->type, mode,
		&l->ino, &l->start, end) != 5)
		return false;
	l->write = strcmp(mode, "WRITE") == 0;
	l->end = strcmp(end, "EOF") == 0 ? -1 : strtoll(end, NULL, 10);
	return true;
}

int
proc_fdinfo_parse(struct proc_fdinfo *info, const char *text)
{
	struct lines l = {text, text};

	if (find_value(&l, "pos") == NULL || find_value(&l, "flags") == NULL)
		return -EBADMSG;
	info->pos = (int64_t)number_of(&l, "pos", 10);
	info->flags = number_of(&l, "flags", 8);
	info->ino = number_of(&l, "ino", 10);
	info->nlocks = 0;
	for (const char *v = text; (v = value_of(v, "lock")) != NULL;) {
		if (info->nlocks < PROC_LOCKS_MAX && !parse_lock(&info->locks[info->nlocks], v))
			return -EBADMSG;
		info->nlocks++;
	}
	return 0;
}

int
proc_timers_parse(struct proc_timer **timers, size_t *n, const char *text)
{
	*timers = NULL;
	*n = 0;
	for (const char *p = strstr(text, "ID:"); p != NULL;) {
		struct proc_timer *t = ARRAY_ADD(*timers, *n);
		char notify[32];
		int pid;

		if (t == NULL)
			return -ENOMEM;
		if (sscanf(p, "ID: %" SCNd64 " signal: %" SCNd64 "/%" SCNx64 " notify: %31[^/]/%*[a-z].%d ClockID: %" SCNd64,
			&t->id, &t->sig, &t->sigval, notify, &pid, &t->clock) != 6)
			return -EBADMSG;
		t->notify = strcmp(notify, "signal") == 0 ? 0 : strcmp(notify, "none") == 0 ? 1 : 2;
		/* "tid." for SIGEV_THREAD_ID, "pid." else */
		if (strstr(p, "/tid.") != NULL &&
		    (strstr(p + 1, "\nID:") == NULL || strstr(p, "/tid.") < strstr(p + 1, "\nID:"))) {
			t->notify |= 4;
			t->tid = pid;
		}
		p = strstr(p + 1, "\nID:");
		p += p != NULL;
	}
	return 0;
}

static uint64_t
limit_value(const char *text, char **end)
{
	text += strspn(text, " ");
	if (strncmp(text, "unlimited", 9) == 0) {
		*end = (char *)(uintptr_t)text + 9;
		return UINT64_MAX;
	}
	return strtoull(text, end, 10);
}

int
proc_limits_parse(struct proc_limit limits[16], const char *text)
{
	/* In the order of the numbers. */
	static const char *const names[16] = {"Max cpu time", "Max file size", "Max data size",
	    "Max stack size", "Max core file size", "Max resident set", "Max processes",
	    "Max open files", "Max locked memory", "Max address space", "Max file locks",
	    "Max pending signals", "Max msgqueue size", "Max nice priority",
	    "Max realtime priority", "Max realtime timeout"};

	for (int i = 0; i < 16; i++) {
		const char *line = strstr(text, names[i]);
		char *end;

		if (line == NULL)
			return -EBADMSG;
		limits[i].soft = limit_value(line + strlen(names[i]), &end);
		limits[i].hard = limit_value(end, &end);
	}
	return 0;
}

int64_t
proc_idmap_inner(const char *text, int64_t outer)
{
	int64_t in, out, count;
	int n;

	while (sscanf(text, "%" SCNd64 " %" SCNd64 " %" SCNd64 "%n", &in, &out, &count, &n) == 3) {
		if (outer >= out && outer - out < count)
			return in + (outer - out);
		text += n;
	}
	return -1;
}
