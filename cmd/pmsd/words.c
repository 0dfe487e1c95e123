#include "words.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* In place. Returns 0 or -EINVAL. */
static int
unescape(char *word)
{
	char *out = word;

	for (; *word != '\0'; word++) {
		if (*word != '\\') {
			*out++ = *word;
			continue;
		}
		switch (*++word) {
		case 't':
			*out++ = '\t';
			break;
		case 'n':
			*out++ = '\n';
			break;
		case '\\':
			*out++ = '\\';
			break;
		default:
			return -EINVAL;
		}
	}
	*out = '\0';
	return 0;
}

int
words_split(char *line, char *words[WORDS_MAX])
{
	bool tabs = strchr(line, '\t') != NULL;
	int n = 0;

	while (line != NULL) {
		char *word = strsep(&line, tabs ? "\t" : " ");

		if (!tabs && *word == '\0')
			continue;
		if (n == WORDS_MAX)
			return -E2BIG;
		if (unescape(word) < 0)
			return -EINVAL;
		words[n++] = word;
	}
	return n;
}

void
words_put_word(struct buf *b, const char *word, bool first)
{
	if (!first)
		buf_put_u8(b, '\t');
	for (; *word != '\0'; word++) {
		static const char special[] = "\t\n\\", letter[] = "tn\\";
		const char *s = strchr(special, *word);

		if (s != NULL) {
			buf_put_u8(b, '\\');
			buf_put_u8(b, (uint8_t)letter[s - special]);
		} else {
			buf_put_u8(b, (uint8_t)*word);
		}
	}
}

void
words_put_end(struct buf *b)
{
	buf_put_u8(b, '\n');
}

void
words_put(struct buf *b, const char *first, ...)
{
	va_list ap;

	words_put_word(b, first, true);
	va_start(ap, first);
	for (const char *word; (word = va_arg(ap, const char *)) != NULL;)
		words_put_word(b, word, false);
	va_end(ap);
	words_put_end(b);
}

char *
words_take_line(struct buf *b)
{
	unsigned char *end = b->len > 0 ? memchr(b->data, '\n', b->len) : NULL;
	size_t len = end != NULL ? (size_t)(end - b->data) : 0;
	char *line;

	if (end == NULL || (line = malloc(len + 1)) == NULL)
		return NULL;
	memcpy(line, b->data, len);
	line[len] = '\0';
	b->len -= len + 1;
	memmove(b->data, end + 1, b->len);
	return line;
}
