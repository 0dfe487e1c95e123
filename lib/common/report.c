#include "report.h"

#include <errno.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base.h"
#include "log.h"

int
report_add(struct report *r, enum severity severity, int status, const char *object,
    const char *advice, const char *what, ...)
{
	struct finding *f = ARRAY_ADD(r->findings, r->n);
	va_list ap;
	int n;

	if (f == NULL)
		return -ENOMEM;
	va_start(ap, what);
	n = vasprintf(&f->what, what, ap);
	va_end(ap);
	if (n < 0)
		f->what = NULL;
	f->severity = severity;
	f->status = severity == OBSTACLE ? status : 0;
	f->object = strdup(object);
	f->advice = advice != NULL ? strdup(advice) : NULL;
	if (f->what == NULL || f->object == NULL)
		return -ENOMEM;
	if (r->collect)
		return 0;
	if (severity == OBSTACLE)
		return fail(ENOTSUP, "%s: %s%s%s", object, f->what, advice != NULL ? "; " : "",
		    advice != NULL ? advice : "");
	note("%s: %s%s%s", object, f->what, advice != NULL ? "; " : "",
	    advice != NULL ? advice : "");
	return 0;
}

int
report_status(const struct report *r)
{
	for (size_t i = 0; i < r->n; i++)
		if (r->findings[i].severity == OBSTACLE)
			return r->findings[i].status;
	return 0;
}

void
report_print(const struct report *r)
{
	for (size_t i = 0; i < r->n; i++) {
		const struct finding *f = &r->findings[i];

		printf("%s: %s: %s%s%s\n", f->severity == OBSTACLE ? "obstacle" : "loss", f->object,
		    f->what, f->advice != NULL ? "; " : "", f->advice != NULL ? f->advice : "");
	}
}

int
report_json(const struct report *r)
{
	json_t *list = json_array();
	int err = list == NULL;

	for (size_t i = 0; !err && i < r->n; i++) {
		const struct finding *f = &r->findings[i];

		err = json_array_append_new(list,
		    json_pack("{s:s, s:s, s:s, s:s*, s:i}", "severity",
			f->severity == OBSTACLE ? "obstacle" : "loss", "object", f->object, "what",
			f->what, "advice", f->advice, "status", f->status));
	}
	if (!err)
		err = json_dumpf(list, stdout, JSON_INDENT(1));
	if (!err)
		putchar('\n');
	json_decref(list);
	return err ? fail(ENOMEM, "report: cannot be written as JSON") : 0;
}

void
report_fini(struct report *r)
{
	for (size_t i = 0; i < r->n; i++) {
		free(r->findings[i].object);
		free(r->findings[i].what);
		free(r->findings[i].advice);
	}
	free(r->findings);
	*r = (struct report){0};
}
