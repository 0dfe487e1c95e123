#include "attr.h"

#include <errno.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

enum how { VALUE, POINTER, SPEC, MCE };

static const struct attr {
	const char *name;
	int get, set;
	uint64_t arg;
	enum how how;
	int64_t normal;
	enum attr_scope scope;
} attrs[] = {
#define PROCESS ATTR_PROCESS
#define THREAD ATTR_THREAD
#define PRCTL(name, get, set, arg, how, normal, scope) {#name, get, set, arg, how, normal, scope},
#include "prctl.def"
#undef PRCTL
};

void
attr_ask(struct script *s, enum attr_scope scope)
{
	for (size_t i = 0; i < ARRAY_LEN(attrs); i++) {
		const struct attr *a = &attrs[i];

		if (a->scope != scope)
			continue;
		if (a->how == POINTER) {
			script_add(s, a->name, SYS_prctl, (uint64_t)a->get, script_data(s, NULL, 8));
			script_data_arg(s, 1);
		} else {
			script_add(s, a->name, SYS_prctl, (uint64_t)a->get,
			    a->how == SPEC ? a->arg : 0);
		}
		script_may_fail(s);
	}
}

int
attr_answers(const struct script *s, size_t first, enum attr_scope scope,
    struct prctl_value **values, size_t *n)
{
	for (size_t i = 0; i < ARRAY_LEN(attrs); i++) {
		const struct attr *a = &attrs[i];
		const struct script_call *c;
		struct prctl_value *v;
		int64_t value;
		int stored;

		if (a->scope != scope)
			continue;
		c = &s->calls[first++];
		if (c->result < 0)
			continue; /* a kernel without it */
		value = c->result;
		if (a->how == POINTER) {
			memcpy(&stored, s->data.data + c->call.arg[1], sizeof(stored));
			value = stored;
		}
		if (a->how == SPEC)
			value = (value & PR_SPEC_PRCTL) != 0 && (value & PR_SPEC_ENABLE) == 0
			    ? value & ~(int64_t)PR_SPEC_PRCTL : 0;
		/* What fs.suid_dumpable has made 2 nobody can ask for: the stricter one. */
		if (strcmp(a->name, "dumpable") == 0 && value == 2)
			value = 0;
		if (value == a->normal)
			continue;
		v = ARRAY_ADD(*values, *n);
		if (v == NULL || (v->name = strdup(a->name)) == NULL)
			return -ENOMEM;
		v->value = value;
	}
	return 0;
}

int
attr_set(struct script *s, const struct prctl_value *values, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		const struct attr *a = NULL;
		uint64_t value = (uint64_t)values[i].value;

		for (size_t j = 0; j < ARRAY_LEN(attrs) && a == NULL; j++)
			if (strcmp(attrs[j].name, values[i].name) == 0)
				a = &attrs[j];
		if (a == NULL)
			return -EBADMSG;
		if (a->how == SPEC || a->how == MCE)
			script_add(s, a->name, SYS_prctl, (uint64_t)a->set, a->arg, value);
		else
			script_add(s, a->name, SYS_prctl, (uint64_t)a->set, value);
		script_may_fail(s);
	}
	return 0;
}
