#include "size.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

bool
size_parse(const char *text, uint64_t *size)
{
	static const char units[] = "KMG";
	unsigned long long n;
	const char *unit;
	char *end;

	if (!isdigit((unsigned char)*text))
		return false;
	errno = 0;
	n = strtoull(text, &end, 10);
	if (errno != 0)
		return false;
	unit = *end == '\0' ? NULL : strchr(units, toupper((unsigned char)*end));
	if (unit == NULL ? *end != '\0' : end[1] != '\0')
		return false;
	for (const char *u = units; unit != NULL && u <= unit; u++)
		if (__builtin_mul_overflow(n, 1024ULL, &n))
			return false;
	*size = n;
	return true;
}
