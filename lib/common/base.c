#include "base.h"

#include <stdlib.h>
#include <string.h>

void *
array_grow(void **arrayp, size_t n, size_t size)
{
	void *p = *arrayp;

	/* The capacity is the next power of two: grow when n reaches one. */
	if (p == NULL || (n & (n - 1)) == 0) {
		size_t cap = n == 0 ? 4 : n < 4 ? 4 : n * 2;

		p = reallocarray(p, cap, size);
		if (p == NULL)
			return NULL;
		*arrayp = p;
	}
	p = (char *)p + n * size;
	memset(p, 0, size);
	return p;
}

void *
array_add_counted(void **arrayp, size_t *n, size_t size)
{
	void *p = array_grow(arrayp, *n, size);

	if (p != NULL)
		++*n;
	return p;
}

void
hex_encode(char *text, const void *data, size_t len)
{
	static const char digits[] = "0123456789abcdef";
	const unsigned char *p = data;

	for (size_t i = 0; i < len; i++) {
		*text++ = digits[p[i] >> 4];
		*text++ = digits[p[i] & 15];
	}
	*text = '\0';
}

static int
hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	return -1;
}

bool
hex_decode(void *data, size_t len, const char *text)
{
	return strlen(text) == 2 * len && hex_decode_some(data, len, text);
}

bool
hex_decode_some(void *data, size_t len, const char *text)
{
	unsigned char *p = data;

	for (size_t i = 0; i < len; i++) {
		int hi = hex_digit(text[2 * i]), lo = hex_digit(text[2 * i + 1]);

		if (hi < 0 || lo < 0)
			return false;
		p[i] = (unsigned char)(hi << 4 | lo);
	}
	return true;
}

char *
percent_encode(const char *s, bool all_high)
{
	char *text = malloc(3 * strlen(s) + 1), *p = text;

	if (text == NULL)
		return NULL;
	for (; *s != '\0'; s++) {
		unsigned char c = (unsigned char)*s;

		if (c == '%' || c < ' ' || c == 0x7f || (all_high && c >= 0x80)) {
			*p++ = '%';
			hex_encode(p, &c, 1);
			p += 2;
		} else {
			*p++ = (char)c;
		}
	}
	*p = '\0';
	return text;
}

bool
percent_decode(char *s)
{
	char *to = s;

	while (*s != '\0') {
		char c = *s++;

		if (c == '%') {
			int hi = hex_digit(s[0]), lo = hi < 0 ? -1 : hex_digit(s[1]);

			if (lo < 0 || (hi | lo) == 0)
				return false;
			c = (char)(hi << 4 | lo);
			s += 2;
		}
		*to++ = c;
	}
	*to = '\0';
	return true;
}
