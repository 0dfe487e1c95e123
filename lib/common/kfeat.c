#include "kfeat.h"

#include <stdio.h>
#include <string.h>

static const struct {
	const char *name;
	int since; /* 100 * major + minor */
} features[] = {
#define KFEAT(name, since) {#name, since},
#include "kfeat.def"
#undef KFEAT
};

static bool hidden[KFEAT_COUNT];

static bool
hide_one(const char *name, size_t len)
{
	int major, minor;

	for (size_t i = 0; i < KFEAT_COUNT; i++)
		if (strlen(features[i].name) == len && memcmp(features[i].name, name, len) == 0) {
			hidden[i] = true;
			return true;
		}
	if (sscanf(name, "linux-%d.%d", &major, &minor) != 2)
		return false;
	for (size_t i = 0; i < KFEAT_COUNT; i++)
		if (features[i].since > 100 * major + minor)
			hidden[i] = true;
	return true;
}

bool
kfeat_hide(const char *list, const char **bad)
{
	while (list != NULL && *list != '\0') {
		size_t len = strcspn(list, ",");

		if (len > 0 && !hide_one(list, len)) {
			*bad = list;
			return false;
		}
		list += len;
		list += *list == ',';
	}
	return true;
}

bool
kfeat(enum kfeat f)
{
	return !hidden[f];
}
