/*
 * page_states: who has which page of a memory that several use, and as what: one writer, or many readers. A state machine without input or output: it says
 * what is to be sent, and is told what has come. Pure.
 *
 * What is asked for one page is done in the order in which it was asked. A page is given only when everybody who must not have it any more, or no longer
 * write it, has said so: that makes the memory sequentially consistent, page by page.
 *
 * Source: Li and Hudak, Memory Coherence in Shared Virtual Memory Systems, 1989 (the centralized manager).
 */
#ifndef PMS_PAGE_STATES_H
#define PMS_PAGE_STATES_H

#include "base.h"

#define PAGE_USERS_MAX 63

enum page_action_what {
	PAGE_GIVE, /* id of the user can be answered: he has the page as `state` now */
	PAGE_CALL, /* the user is to have the page as `state` only; whether he has it is told by page_states_called() */
	PAGE_LOST, /* id of the user can only be answered so: who could write the page has gone with it */
};

struct page_action {
	enum page_action_what what;
	unsigned user;
	uint32_t id;
	int64_t task;
	taddr addr;
	uint32_t state;
	bool kept;   /* PAGE_GIVE: the user has its content already */
};

struct page_actions {
	struct page_action *action; /* owned */
	size_t n;
	bool failed; /* memory ran out */
};
void page_actions_fini(struct page_actions *a);

struct page_states;
struct page_states *page_states_new(void);
void page_states_free(struct page_states *s);

/* A user (below PAGE_USERS_MAX) wants a page as this (PAGE_READ or PAGE_WRITE). Appends what is to be done. */
void page_states_ask(struct page_states *s, unsigned user, uint32_t id, int64_t task, taddr addr, uint32_t want, struct page_actions *out);
/* What PAGE_CALL was for has been done. Returns false where nobody was called so. */
bool page_states_called(struct page_states *s, unsigned user, int64_t task, taddr addr, struct page_actions *out);
/* Its content is nowhere to be had: whoever asks is told so. */
void page_states_lose(struct page_states *s, int64_t task, taddr addr);
/* He gives back what he could write, unasked. Returns false where he could not. */
bool page_states_returned(struct page_states *s, unsigned user, int64_t task, taddr addr);
/* He has gone, with all that he had. */
void page_states_gone(struct page_states *s, unsigned user, struct page_actions *out);

/* PAGE_NONE, PAGE_READ, PAGE_WRITE. */
uint32_t page_states_of(const struct page_states *s, unsigned user, int64_t task, taddr addr);
/* Pages that this user can write. */
uint64_t page_states_owned(const struct page_states *s, unsigned user);

#endif
