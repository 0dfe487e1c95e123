/*
 * Whoever asks for page after page, upwards or downwards, is sent more each time, without having asked.
 */
#include "pagesrv.h"

/* The stream that this page goes on with, else the one that has not been used for longest. */
static struct ahead_stream *
find(struct ahead *a, int64_t task, taddr addr, taddr end, bool *goes_on)
{
	struct ahead_stream *oldest = &a->stream[0];

	for (size_t i = 0; i < AHEAD_STREAMS; i++) {
		struct ahead_stream *s = &a->stream[i];

		*goes_on = s->used != 0 && s->task == task && (s->window == 0 ? addr == s->next || end == s->next - PAGE_BYTES : s->down ? end == s->next : addr == s->next);
		if (*goes_on)
			return s;
		if (s->used < oldest->used)
			oldest = s;
	}
	return oldest;
}

uint32_t
ahead_asked(struct ahead *a, int64_t task, taddr addr, uint32_t npages, taddr *from)
{
	taddr end = addr + npages * PAGE_BYTES;
	bool goes_on;
	struct ahead_stream *s = find(a, task, addr, end, &goes_on);

	if (!goes_on) {
		*s = (struct ahead_stream){.task = task, .next = end};
	} else if (s->window == 0) {
		s->down = addr != s->next;
		s->window = 4;
	} else {
		s->window = s->window < AHEAD_MAX ? 2 * s->window : AHEAD_MAX;
	}
	s->used = ++a->clock;
	if (s->down && s->window * PAGE_BYTES > addr)
		s->window = 0;
	*from = s->down ? addr - s->window * PAGE_BYTES : end;
	s->next = s->down ? *from : end + s->window * PAGE_BYTES;
	return s->window;
}
