/* words: lines of words, there and back, and what is refused. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tap.h"

#include "../../cmd/pmsd/words.c"

static int
split(const char *text, char *words[WORDS_MAX], char *room)
{
	strcpy(room, text);
	return words_split(room, words);
}

static void
there_and_back(void)
{
	static const char *const hard[] = {"a", "two words", "tab\there", "line\nend", "back\\slash", "\\n", "", "end\\"};
	struct buf b = {0};
	char *w[WORDS_MAX], *line;
	int n = 0, right = 1;

	for (size_t i = 0; i < ARRAY_LEN(hard); i++)
		words_put_word(&b, hard[i], i == 0);
	words_put_end(&b);
	words_put(&b, "next", "one", NULL);
	line = words_take_line(&b);
	n = line != NULL ? words_split(line, w) : 0;
	for (int i = 0; i < n; i++)
		right &= strcmp(w[i], hard[i]) == 0;
	ok(n == (int)ARRAY_LEN(hard) && right, "tabs, ends of lines, backslashes and nothing come back");
	free(line);
	line = words_take_line(&b);
	ok(line != NULL && strcmp(line, "next\tone") == 0 && b.len == 0, "the next line is whole, and nothing is left");
	free(line);
	buf_put(&b, "half", 4);
	ok(words_take_line(&b) == NULL && b.len == 4, "half a line is none");
	buf_fini(&b);
}

int
main(void)
{
	char room[256], *w[WORDS_MAX];

	there_and_back();
	ok(split("  migrate  a.1 b ", w, room) == 3 && strcmp(w[0], "migrate") == 0 && strcmp(w[2], "b") == 0, "spaces where there is no tab");
	ok(split("a\t\tb\t", w, room) == 4 && w[1][0] == '\0' && w[3][0] == '\0', "between tabs a word may be empty");
	ok(split("", w, room) == 0, "an empty line has no words");
	ok(split("a\\x", w, room) == -EINVAL && split("a\\", w, room) == -EINVAL, "a backslash before something else is refused");
	ok(split("1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16", w, room) == 16 && split("1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17", w, room) == -E2BIG, "sixteen words, and not one more");
	return done();
}
