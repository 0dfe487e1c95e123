/*
 * What outlives the daemon: jobs, what happened to them, and loads.
 */
#include <errno.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>

#include "log.h"
#include "pmsd.h"

struct store {
	sqlite3 *db;
	char *path;
};

static const char schema[] =
    "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;"
    "CREATE TABLE IF NOT EXISTS jobs (id TEXT PRIMARY KEY, name TEXT, command TEXT, dir TEXT, state TEXT, place TEXT,"
    " uid INTEGER, pid INTEGER, status INTEGER, started INTEGER, changed INTEGER, hop INTEGER);"
    "CREATE TABLE IF NOT EXISTS events (time INTEGER, job TEXT, what TEXT);"
    "CREATE TABLE IF NOT EXISTS loads (time INTEGER, host TEXT, load REAL, cpus INTEGER, jobs INTEGER);"
    "CREATE INDEX IF NOT EXISTS loads_by_time ON loads (time);"
    "CREATE TABLE IF NOT EXISTS numbers (last INTEGER);"
    "INSERT INTO numbers SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM numbers);";

static int
complain(const struct store *s)
{
	return fail(EIO, "%s: %s", s->path, sqlite3_errmsg(s->db));
}

int
store_open(struct store **out, const char *path)
{
	struct store *s = calloc(1, sizeof(*s));
	int err = 0;

	*out = NULL;
	if (s == NULL || (s->path = strdup(path)) == NULL) {
		free(s);
		return fail(ENOMEM, "out of memory");
	}
	if (sqlite3_open(path, &s->db) != SQLITE_OK || sqlite3_exec(s->db, schema, NULL, NULL, NULL) != SQLITE_OK)
		err = complain(s);
	sqlite3_busy_timeout(s->db, 2000);
	if (err < 0)
		store_close(s);
	else
		*out = s;
	return err;
}

void
store_close(struct store *s)
{
	if (s == NULL)
		return;
	sqlite3_close(s->db);
	free(s->path);
	free(s);
}

/* kinds: i and t for each value, in order: int64_t and const char *; d a double. */
static int
change(struct store *s, const char *sql, const char *kinds, ...)
{
	sqlite3_stmt *st = NULL;
	va_list ap;
	int err = 0;

	if (s == NULL)
		return 0;
	if (sqlite3_prepare_v2(s->db, sql, -1, &st, NULL) != SQLITE_OK)
		return complain(s);
	va_start(ap, kinds);
	for (int i = 1; kinds[i - 1] != '\0'; i++) {
		if (kinds[i - 1] == 'i')
			sqlite3_bind_int64(st, i, va_arg(ap, int64_t));
		else if (kinds[i - 1] == 'd')
			sqlite3_bind_double(st, i, va_arg(ap, double));
		else
			sqlite3_bind_text(st, i, va_arg(ap, const char *), -1, SQLITE_TRANSIENT);
	}
	va_end(ap);
	if (sqlite3_step(st) != SQLITE_DONE)
		err = complain(s);
	sqlite3_finalize(st);
	return err;
}

int64_t
store_next_number(struct store *s)
{
	sqlite3_stmt *st = NULL;
	int64_t n = -1;

	if (change(s, "UPDATE numbers SET last = last + 1", "") < 0)
		return -1;
	if (sqlite3_prepare_v2(s->db, "SELECT last FROM numbers", -1, &st, NULL) == SQLITE_OK && sqlite3_step(st) == SQLITE_ROW)
		n = sqlite3_column_int64(st, 0);
	else
		complain(s);
	sqlite3_finalize(st);
	return n;
}

void
store_job(struct store *s, const struct job_record *r)
{
	change(s, "INSERT OR REPLACE INTO jobs (id, name, command, dir, state, place, uid, pid, status, started, changed, hop) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",
	    "ttttttiiiiii", r->id, r->name, r->command, r->dir, r->state, r->place, r->uid, r->pid, r->status, r->started, r->changed, r->hop);
}

void
store_event(struct store *s, const char *job, const char *what)
{
	change(s, "INSERT INTO events VALUES (?,?,?)", "itt", (int64_t)time(NULL), job, what);
}

void
store_load(struct store *s, const char *host, double load, int cpus, int jobs)
{
	change(s, "INSERT INTO loads VALUES (?,?,?,?,?)", "itdii", (int64_t)time(NULL), host, load, (int64_t)cpus, (int64_t)jobs);
}

static const char *
text(sqlite3_stmt *st, int column)
{
	const unsigned char *t = sqlite3_column_text(st, column);

	return t != NULL ? (const char *)t : "";
}

int
store_jobs(struct store *s, void (*fn)(void *arg, const struct job_record *r), void *arg)
{
	sqlite3_stmt *st = NULL;
	int result;

	if (sqlite3_prepare_v2(s->db, "SELECT id, name, command, dir, state, place, uid, pid, status, started, changed, hop FROM jobs ORDER BY started, id", -1, &st, NULL) != SQLITE_OK)
		return complain(s);
	while ((result = sqlite3_step(st)) == SQLITE_ROW) {
		struct job_record r = {.name = (char *)text(st, 1), .command = (char *)text(st, 2), .dir = (char *)text(st, 3), .place = (char *)text(st, 5),
		    .uid = sqlite3_column_int64(st, 6), .pid = sqlite3_column_int64(st, 7), .status = sqlite3_column_int64(st, 8),
		    .started = sqlite3_column_int64(st, 9), .changed = sqlite3_column_int64(st, 10), .hop = sqlite3_column_int64(st, 11)};

		snprintf(r.id, sizeof(r.id), "%s", text(st, 0));
		snprintf(r.state, sizeof(r.state), "%s", text(st, 4));
		fn(arg, &r);
	}
	sqlite3_finalize(st);
	return result == SQLITE_DONE ? 0 : complain(s);
}

int
store_loads(struct store *s, int64_t since, void (*fn)(void *arg, int64_t at, const char *host, double load, int cpus, int jobs), void *arg)
{
	sqlite3_stmt *st = NULL;
	int result;

	if (sqlite3_prepare_v2(s->db, "SELECT time, host, load, cpus, jobs FROM loads WHERE time >= ? ORDER BY time", -1, &st, NULL) != SQLITE_OK)
		return complain(s);
	sqlite3_bind_int64(st, 1, since);
	while ((result = sqlite3_step(st)) == SQLITE_ROW)
		fn(arg, sqlite3_column_int64(st, 0), text(st, 1), sqlite3_column_double(st, 2), sqlite3_column_int(st, 3), sqlite3_column_int(st, 4));
	sqlite3_finalize(st);
	return result == SQLITE_DONE ? 0 : complain(s);
}
