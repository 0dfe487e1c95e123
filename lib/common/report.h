/*
 * report: what cannot be carried (obstacles) and what is lost on the way (losses), one line
 * each, told at once or collected for --check.
 */
#ifndef PMS_REPORT_H
#define PMS_REPORT_H

#include <stdbool.h>
#include <stddef.h>

enum severity { LOSS, OBSTACLE };

struct finding {
	enum severity severity;
	char *object; /* "pid 12: fd 7: socket:[123]" */
	char *what;   /* what is the matter with it */
	char *advice; /* the way out */
	int status;   /* exit status that an obstacle leads to */
};

struct report {
	bool collect; /* keep silent: report_print() or report_json() will tell */
	struct finding *findings;
	size_t n;
};

/*
 * Add a finding; status is for obstacles (sysexits). A loss returns 0, an obstacle -ENOTSUP (or
 * 0 where they are collected), no memory -ENOMEM. advice may be NULL.
 */
int report_add(struct report *r, enum severity severity, int status, const char *object,
    const char *advice, const char *what, ...) __attribute__((format(printf, 6, 7)));

/* Exit status of the gravest obstacle, 0 where there is none. */
int report_status(const struct report *r);

/* On stdout, as lines or as a JSON array. */
void report_print(const struct report *r);
int report_json(const struct report *r);

void report_fini(struct report *r);

#endif
