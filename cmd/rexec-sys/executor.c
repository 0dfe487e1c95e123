/*
 * Executor threads.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "guest.h"
#include "log.h"
#include "session.h"

enum { STACK = 256 << 10, WAKE = SIGUSR1 };

static void
on_wake(int sig, siginfo_t *info, void *context)
{
	(void)sig, (void)info;
	arch_interrupt(context);
}

int
executors_begin(void)
{
	struct sigaction wake = {.sa_sigaction = on_wake, .sa_flags = SA_SIGINFO};

	signal(SIGPIPE, SIG_IGN); /* the caller raises it */
	return sigaction(WAKE, &wake, NULL) < 0 ? fail_errno("sigaction") : 0;
}

/* Each fd of this thread's table that is not ours to keep. */
static void
each_fd(const struct session *s, void (*act)(int fd, const uint32_t *keep, size_t n), const uint32_t *keep, size_t n)
{
	int dir = openat(s->proc, "thread-self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = dir >= 0 ? fdopendir(dir) : NULL;
	struct dirent *e;

	for (int fd = 0; d == NULL && fd < s->floor; fd++) /* the table may be full */
		if (fcntl(fd, F_GETFD) >= 0)
			act(fd, keep, n);
	while (d != NULL && (e = readdir(d)) != NULL) {
		int fd = atoi(e->d_name);

		if (e->d_name[0] != '.' && fd < s->floor && fd != dirfd(d))
			act(fd, keep, n);
	}
	if (d != NULL)
		closedir(d);
}

static void
close_if_cloexec(int fd, const uint32_t *keep, size_t n)
{
	(void)keep, (void)n;
	if ((fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0)
		close(fd);
}

static void
close_if_not_kept(int fd, const uint32_t *keep, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (keep[i] == (uint32_t)fd)
			return;
	close(fd);
}

void
close_on_exec(const struct session *s)
{
	each_fd(s, close_if_cloexec, NULL, 0);
}

void
close_others(const struct session *s, const uint32_t *keep, size_t n)
{
	each_fd(s, close_if_not_kept, keep, n);
}

static void
execute(struct executor *e)
{
	struct answer a = {0};
	struct calldata c = e->call; /* it has the data of the answer until that is sent */
	uint32_t id = e->id;

	e->call = (struct calldata){0};
	session_execute(e->session, &e->guest, &c, &e->cancelled, &a);
	/* As soon as he has the result he may send the next call. */
	pthread_mutex_lock(&e->lock);
	e->busy = false;
	pthread_mutex_unlock(&e->lock);
	session_answer(e->session, id, &a);
	calldata_fini(&c);
}

static int start_thread(struct executor *e);

static void *
executor_main(void *arg)
{
	struct executor *e = arg;
	bool own_files = e->first == e && !e->with_reader;

	e->tid = gettid();
	/* Still those of the thread that has made it. */
	e->failed = own_files && unshare(CLONE_FILES | CLONE_FS) < 0;
	if (own_files && !e->failed)
		close_others(e->session, e->keep, e->nkeep);
	sem_post(&e->done);
	for (;;) {
		while (sem_wait(&e->go) < 0)
			;
		switch (e->order) {
		case ORDER_CALL:
			execute(e);
			if (e->ending)
				return NULL; /* freed by the one that joins it */
			continue;
		case ORDER_CHILD:
			e->child->failed |= start_thread(e->child) < 0;
			break;
		case ORDER_EXECUTED:
			close_on_exec(e->session);
			break;
		case ORDER_END:
			return NULL;
		}
		sem_post(&e->done);
	}
}

/* A pthread with the files of the calling one; waits until it is ready. */
static int
start_thread(struct executor *e)
{
	pthread_attr_t attr;
	sigset_t all, old;
	int err;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, STACK);
	/* Only the reader's own signals end the session. */
	sigfillset(&all);
	sigdelset(&all, WAKE);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	err = pthread_create(&e->pthread, &attr, executor_main, e);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&attr);
	if (err != 0)
		return -err;
	while (sem_wait(&e->done) < 0)
		;
	e->running = true;
	return 0;
}

static void
order_and_wait(struct executor *e, int order)
{
	e->order = order;
	sem_post(&e->go);
	while (sem_wait(&e->done) < 0)
		;
}

/* Has it something under way? Then only a cancel or the end may come. */
static bool
is_busy(struct executor *e)
{
	bool busy;

	pthread_mutex_lock(&e->lock);
	busy = e->busy;
	pthread_mutex_unlock(&e->lock);
	return busy;
}

int
executor_start(struct executor *e, const struct executor *parent, const uint32_t *keep, size_t nkeep)
{
	struct executor *maker = (struct executor *)parent;

	e->keep = keep;
	e->nkeep = nkeep;
	if (e->with_reader && e->first != e)
		return 0; /* when it waits for the first time */
	if (maker->with_reader) {
		e->failed |= start_thread(e) < 0;
	} else if (maker->running && !is_busy(maker)) {
		maker->child = e;
		order_and_wait(maker, ORDER_CHILD);
	} else if (maker->running) {
		return fail(EPROTO, "a thread that waits cannot have made another");
	} else {
		e->failed = true;
	}
	e->keep = NULL;
	return 0;
}

int
executor_call(struct executor *e, struct calldata *c, uint32_t id)
{
	if (!e->running && !e->failed)
		e->failed = start_thread(e) < 0;
	if (e->failed)
		return -EAGAIN;
	if (is_busy(e))
		return -EPROTO;
	e->order = ORDER_CALL;
	e->call = *c;
	*c = (struct calldata){0};
	e->id = id;
	e->cancelled = 0;
	e->busy = true;
	sem_post(&e->go);
	return 0;
}

void
executor_cancel(struct executor *e, uint32_t id)
{
	pthread_mutex_lock(&e->lock);
	if (e->busy && (id == 0 || e->id == id)) {
		e->cancelled = 1;
		syscall(SYS_tgkill, getpid(), e->tid, WAKE);
	}
	pthread_mutex_unlock(&e->lock);
}

void
executor_executed(struct executor *e)
{
	if (e->with_reader)
		close_on_exec(e->session);
	else if (e->running && !is_busy(e))
		order_and_wait(e, ORDER_EXECUTED);
}

void
executor_end(struct executor *e)
{
	executor_cancel(e, 0);
	if (e->running) {
		/* When it has come back from what it is busy with, which it may not have begun yet. */
		pthread_mutex_lock(&e->lock);
		e->ending = true;
		if (!e->busy)
			e->order = ORDER_END;
		sem_post(&e->go);
		pthread_mutex_unlock(&e->lock);
		pthread_join(e->pthread, NULL);
	}
	if (e->guest != NULL)
		guest_end(e->guest);
	free(e->guest);
	calldata_fini(&e->call);
	sem_destroy(&e->go);
	sem_destroy(&e->done);
	pthread_mutex_destroy(&e->lock);
	free(e);
}
