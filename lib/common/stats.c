#include "stats.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum unit { TIME, BYTES };

static const struct {
	const char *name, *what;
	enum unit unit;
} stats[] = {
#define STAT(name, unit, of, what) {#name, what, unit},
#include "stats.def"
#undef STAT
};

static int64_t values[STAT_COUNT], begun_ns, last_ns;

/* The one clock that is the same in time namespaces. */
static int64_t
clock_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

bool
stats_parse(const char *text, enum stats_form *form)
{
	*form = text == NULL || strcmp(text, "text") == 0 ? STATS_TEXT : STATS_JSON;
	return *form == STATS_TEXT || strcmp(text, "json") == 0;
}

void
stats_begin(void)
{
	begun_ns = last_ns = clock_ns();
}

void
stats_lap(enum stat_name name)
{
	int64_t now = clock_ns();

	values[name] += now - last_ns;
	last_ns = now;
}

void
stats_add(enum stat_name name, int64_t value)
{
	values[name] += value;
}

static void
print_json(void)
{
	json_t *all = json_object();
	char key[64];

	for (size_t i = 0; i < STAT_COUNT; i++) {
		snprintf(key, sizeof(key), "%s_%s", stats[i].name, stats[i].unit == TIME ? "ms" : "bytes");
		if (values[i] != 0)
			json_object_set_new(all, key, stats[i].unit == TIME ? json_real((double)values[i] / 1e6) : json_integer(values[i]));
	}
	json_dumpf(all, stderr, JSON_INDENT(1) | JSON_REAL_PRECISION(9));
	fputc('\n', stderr);
	json_decref(all);
}

void
stats_print(enum stats_form form)
{
	values[STAT_total] = clock_ns() - begun_ns;
	if (form == STATS_JSON)
		print_json();
	for (size_t i = 0; i < STAT_COUNT && form == STATS_TEXT; i++)
		if (values[i] != 0 && stats[i].unit == TIME)
			fprintf(stderr, "%-9s %12.3f ms  %s\n", stats[i].name, (double)values[i] / 1e6, stats[i].what);
		else if (values[i] != 0)
			fprintf(stderr, "%-9s %12.3f MB  %s\n", stats[i].name, (double)values[i] / 1e6, stats[i].what);
}
