/*
 * stats: where the time of one checkpoint or restart goes, and the bytes. One of it in each program, for one thread.
 */
#ifndef PMS_STATS_H
#define PMS_STATS_H

#include "base.h"

enum stat_name {
#define STAT(name, unit, of, what) STAT_##name,
#include "stats.def"
#undef STAT
	STAT_COUNT
};

enum stats_form { STATS_NONE, STATS_TEXT, STATS_JSON };

/* The argument of --stats, NULL where there is none. Returns false if it is unknown. */
bool stats_parse(const char *text, enum stats_form *form);
/* Time begins. */
void stats_begin(void);
/* The time since the last of these, or since the beginning, is its. */
void stats_lap(enum stat_name name);
void stats_add(enum stat_name name, int64_t value);
/* What has a value, on stderr: lines, or one JSON object whose keys are name_ms or name_bytes. */
void stats_print(enum stats_form form);

#endif
