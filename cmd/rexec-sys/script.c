/*
 * Calls as lines of text: words separated by blanks; "strings", {structs} and [lists] are one word.
 */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io.h"
#include "log.h"
#include "rexec.h"

/* What isspace(3) takes, and a line can hold. */
#define BLANKS " \t\r\f\v"

void
script_free(struct script_text *s)
{
	for (size_t i = 0; i < s->nlines; i++) {
		for (size_t k = 0; k < s->lines[i].nwords; k++)
			free(s->lines[i].words[k]);
		free(s->lines[i].words);
	}
	free(s->lines);
	*s = (struct script_text){0};
}

/* Where the word at p ends. */
static const char *
word_end(const char *p)
{
	int depth = 0;

	for (; *p != '\0' && (depth > 0 || !isspace((unsigned char)*p)); p++) {
		if (*p == '"') {
			for (p++; *p != '\0' && *p != '"'; p++)
				p += *p == '\\' && p[1] != '\0';
			if (*p == '\0')
				return p;
		}
		depth += (*p == '{' || *p == '[') - (*p == '}' || *p == ']');
	}
	return p;
}

static int
add_word(struct line *l, const char *p, size_t n)
{
	char **word = ARRAY_ADD(l->words, l->nwords);

	if (word == NULL || (*word = strndup(p, n)) == NULL)
		return fail(ENOMEM, "out of memory");
	return 0;
}

static int
add_line(struct script_text *s, const char *p, unsigned number)
{
	struct line *l;
	int err = 0;

	p += strspn(p, BLANKS);
	if (*p == '\0' || *p == '#')
		return 0;
	l = ARRAY_ADD(s->lines, s->nlines);
	if (l == NULL)
		return fail(ENOMEM, "out of memory");
	*l = (struct line){.number = number, .may_fail = *p == '-'};
	p += l->may_fail;
	for (p += strspn(p, BLANKS); *p != '\0' && err == 0; p += strspn(p, BLANKS)) {
		const char *end = word_end(p);

		err = add_word(l, p, (size_t)(end - p));
		p = end;
	}
	return err;
}

int
script_read(struct script_text *s, int fd)
{
	FILE *f = fdopen(dup(fd), "r");
	char *text = NULL;
	size_t room = 0;
	ssize_t n;
	int err = f == NULL ? fail_errno("script") : 0;

	for (unsigned number = 1; err == 0 && (n = getline(&text, &room, f)) >= 0; number++) {
		text[strcspn(text, "\n")] = '\0';
		err = strlen(text) + 1 < (size_t)n ? fail(EINVAL, "line %u: not text", number) : add_line(s, text, number);
	}
	free(text);
	if (f != NULL)
		fclose(f);
	return err;
}

int
script_take(struct script_text *s, char *const *words, size_t n)
{
	struct line *l = ARRAY_ADD(s->lines, s->nlines);
	int err = l == NULL ? -ENOMEM : 0;

	if (l != NULL)
		*l = (struct line){0};
	for (size_t i = 0; i < n && err == 0; i++)
		err = add_word(l, words[i], strlen(words[i]));
	return err;
}

int
script_check(const struct script_text *s)
{
	int64_t *none = calloc(s->nlines + 1, sizeof(*none));
	int err = none == NULL ? fail(ENOMEM, "out of memory") : 0;

	for (size_t i = 0; i < s->nlines && err == 0; i++) {
		const struct line *l = &s->lines[i];
		struct calldata c;
		char why[200];

		err = l->nwords == 0 ? -EINVAL : syscall_text_parse(&c, l->words[0], l->words + 1, l->nwords - 1, none, i, why);
		if (l->nwords == 0)
			fail(EINVAL, "line %u: no call", l->number);
		else if (err < 0 && l->number > 0)
			fail(-err, "line %u: %s", l->number, why);
		else if (err < 0)
			fail(-err, "%s", why);
		if (l->nwords > 0)
			calldata_fini(&c);
	}
	free(none);
	return err;
}
