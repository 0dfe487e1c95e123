/*
 * untraced: processes that are built where nobody may trace: their threads take scripts through memory that they share with us, and then go on by
 * themselves, all at once. Only such can be built so as will go on from arch_capture(): those that were asked for themselves (coop.h).
 */
#ifndef PMS_UNTRACED_H
#define PMS_UNTRACED_H

#include <sys/types.h>

#include "arch.h"
#include "base.h"

struct untraced;

/* Memory for this many threads, which the processes will have at `at`, behind a page of code, followed by as many bytes as untraced_bytes() says. */
int untraced_new(struct untraced **u, size_t nthreads, uint64_t shared_bytes);
/* Of the code, the shared bytes, and what the threads need. */
uint64_t untraced_bytes(const struct untraced *u);
/* Where they will have it; before the first begins. */
void untraced_place(struct untraced *u, taddr at);
taddr untraced_at(const struct untraced *u);
void untraced_free(struct untraced *u);
/* The shared bytes, as we have them; they have them one page behind `at`. */
unsigned char *untraced_shared(struct untraced *u);

/* A slot that nobody has had, for a thread whose process ends when this is not its parent any more; who that is; its address there. */
size_t untraced_slot(struct untraced *u, pid_t parent);
pid_t untraced_parent(const struct untraced *u, size_t slot);
taddr untraced_slot_at(const struct untraced *u, size_t slot);

/* Its open file gets a number from min on. Returns 0, or a negative errno. */
int untraced_move_fd(struct untraced *u, int min);
/* In a process that is to be built: map it, which takes an open file; then become the thread of this slot. Returns 0, or a negative errno. */
int untraced_map(struct untraced *u);
void untraced_obey(struct untraced *u, size_t slot) __attribute__((noreturn));

/* Execute entries [first, end), addresses there. pid: whose end would be in vain to wait for. Or wait until a new one is there. Returns 0, or a negative errno, logged. */
int untraced_run(struct untraced *u, size_t slot, pid_t pid, taddr first, taddr end);
int untraced_await(struct untraced *u, size_t slot, pid_t pid);

/* As which it goes on. */
void untraced_set_final(struct untraced *u, size_t slot, const struct arch_regs *regs);
/* All of them do, and we are not needed any more. */
void untraced_go(struct untraced *u);

#endif
