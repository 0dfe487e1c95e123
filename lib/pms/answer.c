/*
 * The handler of PMS_SIGNAL. The thread that takes the signal has all others stand (stand.c), connects to whoever has asked, and executes calls for him:
 * what ckpt has others do under ptrace(2). What the threads stand in is part of what is saved, so whoever is made of the image comes back here as well,
 * and out of the handler to where it was.
 *
 * Everything up to "not now" is executed in a signal handler that may have interrupted anything: no function of libc that is not async-signal-safe,
 * no memory but the area.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

_Static_assert(PMS_SIGNAL == COOP_SIGNAL, "the header tells the signal");
_Static_assert(sizeof(siginfo_t) == COOP_SIGINFO, "as the kernel has it");

enum { ENTRY_MAX = 256, MARK_BYTES = 4096 };

static _Atomic uint32_t disabled;   /* pms_disable() minus pms_enable() */
static __thread int disabled_here;  /* the same, of this thread */
static _Atomic uint32_t generation; /* of images that this process was made of */
static int64_t mark;                /* address of the mapping by whose name ckpt knows that it may ask */
static _Atomic uint64_t wanted;     /* who was put off until pms_enable(), or until another has been answered */

static struct callbacks {
	void (*before)(void *);
	void (*after)(void *, int);
	void *ctx;
} callbacks[PMS_CALLBACKS_MAX];
static _Atomic uint32_t ncallbacks;

/* What becomes of us when the connection ends. */
static struct fate {
	bool ends, stays;
	int64_t mark; /* address of the mapping by which it is seen that we stay, if there is one */
} fate;

static int64_t asked_mark; /* the same while we answer */

/* --- whoever has asked */

/* Root, or one who is all that we are, and could trace us. */
static bool
may_ask(const struct ucred *who)
{
	uid_t uid[3];
	gid_t gid[3];

	if (who->uid == 0)
		return true;
	if (raw(SYS_getresuid, &uid[0], &uid[1], &uid[2], 0) < 0 || raw(SYS_getresgid, &gid[0], &gid[1], &gid[2], 0) < 0)
		return false;
	for (int i = 0; i < 3; i++)
		if (uid[i] != who->uid || gid[i] != who->gid)
			return false;
	return raw(SYS_prctl, PR_GET_DUMPABLE, 0, 0, 0) == 1;
}

/* Connected to whoever listens at the address with this number, if he may do what he likes with us; or a negative errno. */
static int
connect_to(uint64_t number)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	struct ucred who;
	socklen_t len = sizeof(who);
	int64_t fd = raw(SYS_socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, 0), err;
	char *at = sun.sun_path + 1;

	if (fd < 0)
		return (int)fd;
	memcpy(at, COOP_ADDRESS, sizeof(COOP_ADDRESS) - 1);
	at += sizeof(COOP_ADDRESS) - 1;
	for (int shift = 60; shift >= 0; shift -= 4)
		*at++ = "0123456789abcdef"[number >> shift & 15];
	err = raw(SYS_connect, fd, &sun, (const char *)at - (const char *)&sun, 0);
	if (err == 0)
		err = arch_raw_call(SYS_getsockopt, (uint64_t)fd, SOL_SOCKET, SO_PEERCRED, (uintptr_t)&who, (uintptr_t)&len, 0);
	if (err == 0 && !may_ask(&who))
		err = -EPERM;
	if (err < 0)
		raw(SYS_close, fd, 0, 0, 0);
	return err < 0 ? (int)err : (int)fd;
}

/* A message, with a file. Returns 0, or a negative errno. */
static int
send_with(int fd, const void *data, size_t len, int file)
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec iov = {(void *)(uintptr_t)data, len};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
	int64_t n;

	if (file >= 0) {
		memset(&control, 0, sizeof(control));
		control.header = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
		memcpy(CMSG_DATA(&control.header), &file, sizeof(file));
		m.msg_control = &control;
		m.msg_controllen = sizeof(control.room);
	}
	do
		n = raw(SYS_sendmsg, fd, &m, MSG_NOSIGNAL, 0);
	while (n == -EINTR);
	return n < 0 ? (int)n : 0;
}

static int
say_hello(int fd, enum coop_state state, int32_t thread)
{
	struct coop_hello h = {COOP_VERSION, state, thread, fd, nthreads, fate.stays, (uintptr_t)&area->note, (uintptr_t)area->threads,
	    (uintptr_t)area->held, (uintptr_t)area->scratch, nheld, 0};
	int64_t mem = state == COOP_STANDS ? raw(SYS_openat, AT_FDCWD, "/proc/self/mem", O_RDWR | O_CLOEXEC, 0) : -1;
	int err = send_with(fd, &h, sizeof(h), (int)mem);

	if (mem >= 0)
		raw(SYS_close, mem, 0, 0, 0);
	return err;
}

/* --- what he wants */

static int64_t
run_in(struct coop_thread *t, uint64_t entries, uint64_t n)
{
	if (entries < (uintptr_t)area->scratch || n > ENTRY_MAX ||
	    entries + n * sizeof(struct arch_script_entry) > (uintptr_t)area->scratch + COOP_SCRATCH)
		return -EINVAL;
	t->entries = entries;
	t->nentries = n;
	stand_run(t);
	return 0;
}

/* Kept until we go on, and then queued again. */
static int64_t
take_signal(struct coop_thread *t, uint64_t set, bool of_thread)
{
	struct coop_held *h = &area->held[nheld];
	struct arch_script_entry *e = (void *)area->scratch;
	static const struct timespec now;

	if (nheld == COOP_HELD_MAX)
		return -ENOSPC;
	memcpy(area->scratch + sizeof(*e), &set, sizeof(set));
	*e = (struct arch_script_entry){SYS_rt_sigtimedwait, {(uintptr_t)(e + 1), (uintptr_t)h->info, (uintptr_t)&now, 8, 0, 0}, 0, 0};
	run_in(t, (uintptr_t)e, 1);
	if (e->result > 0) {
		h->tid = of_thread ? t->tid : 0;
		h->sig = (int32_t)e->result;
		nheld++;
	}
	return e->result;
}

static int64_t
do_order(const struct coop_order *o)
{
	struct coop_thread *t;

	if (o->thread >= nthreads || area->threads[o->thread].tid == 0)
		return -ESRCH;
	t = &area->threads[o->thread];
	return o->kind == COOP_RUN ? run_in(t, o->a, o->b) : o->kind == COOP_TAKE ? take_signal(t, o->a, o->b != 0) : -EINVAL;
}

/* A page with nothing but a name, which is seen in /proc/PID/maps; where one was, or (0) anywhere. Returns its address, or a negative errno. */
static int64_t
put_mark(const char *name, int64_t at)
{
	int64_t fd = raw(SYS_memfd_create, name, MFD_CLOEXEC, 0, 0), p = fd;

	if (fd < 0)
		return fd;
	p = raw(SYS_ftruncate, fd, MARK_BYTES, 0, 0);
	if (p == 0)
		p = arch_raw_call(SYS_mmap, (uint64_t)at, MARK_BYTES, PROT_READ, MAP_SHARED | (at != 0 ? MAP_FIXED : 0), (uint64_t)fd, 0);
	raw(SYS_close, fd, 0, 0, 0);
	/* It says nothing of children. */
	if (p > 0)
		raw(SYS_madvise, p, MARK_BYTES, MADV_DONTFORK, 0);
	return p;
}

static void
set_parked(bool parked)
{
	fate.stays = parked;
	if (fate.mark > 0)
		raw(SYS_munmap, fate.mark, MARK_BYTES, 0, 0);
	fate.mark = parked ? put_mark(COOP_PARKED, 0) : 0;
}

/* Nobody else is to begin with us. */
static void
set_asked(bool asked)
{
	if (asked_mark > 0)
		raw(SYS_munmap, asked_mark, MARK_BYTES, 0, 0);
	asked_mark = asked ? put_mark(COOP_ASKED, 0) : 0;
}

static void
give_answer(int fd, const struct coop_order *o)
{
	struct coop_answer a = {0};
	int64_t n;

	if (o->kind == COOP_DECIDE)
		fate.ends = o->a != 0;
	else if (o->kind == COOP_PARK)
		set_parked(o->a != 0);
	else if (o->kind != COOP_FD)
		a.result = do_order(o);
	n = send_with(fd, &a, sizeof(a), o->kind == COOP_FD ? (int)o->a : -1);
	/* What is no open file cannot be sent along. */
	if (n < 0 && o->kind == COOP_FD) {
		a.result = n;
		send_with(fd, &a, sizeof(a), -1);
	}
}

static void
obey(int fd)
{
	struct coop_order o;
	int64_t n;

	while ((n = arch_raw_call(SYS_recvfrom, (uint64_t)fd, (uintptr_t)&o, sizeof(o), 0, 0, 0)) == sizeof(o) || n == -EINTR)
		if (n > 0)
			give_answer(fd, &o);
	raw(SYS_close, fd, 0, 0, 0);
}

/* Connected to the next one who asks. */
static int
next_one(void)
{
	uint64_t set = 1ULL << (PMS_SIGNAL - 1);
	siginfo_t si;
	int fd = -1;

	while (fd < 0)
		if (raw(SYS_rt_sigtimedwait, &set, &si, 0, 8) == PMS_SIGNAL && si.si_code == SI_QUEUE && (uint64_t)(uintptr_t)si.si_value.sival_ptr & COOP_ASKING)
			fd = connect_to((uint64_t)(uintptr_t)si.si_value.sival_ptr);
	return fd;
}

/* Until he has had enough, and nobody has us wait for another one. If he has decided so, that is our end: the copy runs. */
static void
serve(int fd)
{
	fate = (struct fate){0};
	do {
		if (say_hello(fd, COOP_STANDS, 0) == 0)
			obey(fd);
		else
			raw(SYS_close, fd, 0, 0, 0);
		if (fate.ends)
			raw(SYS_kill, first_tid, SIGKILL, 0, 0);
		set_asked(false);
		fd = fate.stays ? next_one() : -1;
		set_asked(fd >= 0);
	} while (fd >= 0);
}

static void
call_before(void)
{
	for (uint32_t i = ncallbacks; i-- > 0;)
		if (callbacks[i].before != NULL)
			callbacks[i].before(callbacks[i].ctx);
}

static void
call_after(int restored)
{
	for (uint32_t i = 0; i < ncallbacks; i++)
		if (callbacks[i].after != NULL)
			callbacks[i].after(callbacks[i].ctx, restored);
}

/* We have just been made. */
static void
begin_again(void)
{
	first_tid = raw(SYS_getpid, 0, 0, 0, 0);
	area->threads[0].tid = (int32_t)raw(SYS_gettid, 0, 0, 0, 0);
	nheld = 0; /* whoever has made us has queued them */
	set_parked(false);
	set_asked(false);
	/* Names of such mappings do not travel. */
	put_mark(COOP_MARK, mark);
	/* What they have come out of must be left by all before it goes. */
	for (uint32_t n; area->note.loop != 0 && (n = returned) < standing;)
		futex_wait(&returned, n, -1);
	if (area->note.loop != 0)
		raw(SYS_munmap, area->note.loop, area->note.loop_bytes, 0, 0);
	area->note.loop = 0;
	atomic_fetch_add(&generation, 1);
	register_here(&area->note);
}

/* All others stand. */
static void
answer(int fd, const void *context)
{
	struct coop_thread *self = &area->threads[0];
	bool restored;

	stand_describe(self, context);
	returned = 0;
	memset(&area->note, 0, sizeof(area->note));
	restored = arch_capture(&self->captured) != 0;
	if (restored) {
		begin_again();
	} else {
		serve(fd);
	}
	call_after(restored);
	stand_queue_again(self->tid);
}

/* Whoever was put off is answered now, if somebody was. */
static void
ask_put_off(void)
{
	uint64_t number = atomic_exchange(&wanted, 0);

	if (number != 0)
		stand_send((int32_t)raw(SYS_gettid, 0, 0, 0, 0), number);
}

/* This number is put off until nobody minds. */
static void
put_off(uint64_t number)
{
	int fd = connect_to(number);

	if (fd < 0)
		return;
	atomic_store(&wanted, number);
	say_hello(fd, COOP_BUSY, 0);
	raw(SYS_close, fd, 0, 0, 0);
	/* Nobody may have minded any more before it was there to be seen. */
	if (atomic_load(&disabled) == 0)
		ask_put_off();
}

static void
asked_by(uint64_t number, const void *context)
{
	uint32_t none = 0;
	int fd, err;

	/* Another thread answers somebody, and will look whether there is more when it has done, unless it has just done so. */
	if (!atomic_compare_exchange_strong(&stopping, &none, 1)) {
		atomic_store(&wanted, number);
		if (atomic_load(&stopping) == 0)
			ask_put_off();
		return;
	}
	answering = (int32_t)raw(SYS_gettid, 0, 0, 0, 0);
	fd = disabled != 0 ? -EBUSY : connect_to(number);
	if (fd == -EBUSY)
		put_off(number);
	if (fd >= 0) {
		own_files[1] = fd + 1;
		set_asked(true);
		stand_begin();
		call_before();
		err = stand_others();
		own_files[1] = 0;
		if (err == 0) {
			answer(fd, context);
			stand_let_go();
		} else {
			stand_let_go();
			call_after(0);
			set_asked(false); /* he may try otherwise at once */
			say_hello(fd, COOP_THREAD, err);
			raw(SYS_close, fd, 0, 0, 0);
		}
	}
	answering = 0;
	stopping = 0;
	futex_wake(&stopping);
	if (atomic_load(&disabled) == 0)
		ask_put_off();
}

static void
on_signal(int sig, siginfo_t *si, void *context)
{
	int saved = errno;
	uint64_t value = (uint64_t)(uintptr_t)si->si_value.sival_ptr;

	(void)sig;
	/* In a child that libc knows nothing of, nobody answers. */
	if (si->si_code == SI_QUEUE && raw(SYS_getpid, 0, 0, 0, 0) == first_tid) {
		if (value & COOP_ASKING)
			asked_by(value, context);
		else if (stand_is_ours(value))
			stand_if_stopped(value, context);
	}
	errno = saved;
}

/* --- not now */

PUBLIC void
pms_disable(void)
{
	atomic_fetch_add(&disabled, 1);
	/* Either whoever begins just now sees that, or we see him, and stand until he has done; unless we are he, in a callback. */
	disabled_here++;
	while (atomic_load(&stopping) != 0 && atomic_load(&answering) != (int32_t)raw(SYS_gettid, 0, 0, 0, 0))
		futex_wait(&stopping, 1, -1);
}

PUBLIC void
pms_enable(void)
{
	disabled_here--;
	if (atomic_fetch_sub(&disabled, 1) == 1)
		ask_put_off();
}

bool
answer_disabled(void)
{
	return disabled != 0;
}

uint32_t
answer_generation(void)
{
	return generation;
}

PUBLIC int
pms_callbacks(void (*before)(void *ctx), void (*after)(void *ctx, int restored), void *ctx)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	uint32_t n;

	pthread_mutex_lock(&lock);
	n = ncallbacks;
	if (n < PMS_CALLBACKS_MAX) {
		callbacks[n] = (struct callbacks){before, after, ctx};
		ncallbacks = n + 1;
	}
	pthread_mutex_unlock(&lock);
	if (n == PMS_CALLBACKS_MAX)
		errno = ENOMEM;
	return n == PMS_CALLBACKS_MAX ? -1 : 0;
}

/* --- once */

/* The threads of its parent are not here. */
static void
in_child(void)
{
	first_tid = raw(SYS_getpid, 0, 0, 0, 0);
	stopping = standing = 0;
	answering = 0;
	wanted = 0;
	disabled = disabled_here > 0 ? (uint32_t)disabled_here : 0;
	for (int i = 0; i < 2; i++)
		if (own_files[i] != 0)
			close(atomic_exchange(&own_files[i], 0) - 1);
	set_asked(false);
	mark = put_mark(COOP_MARK, 0); /* that of the parent is not here */
}

int
answer_begin(void)
{
	struct sigaction before, sa = {.sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK};
	sigset_t it;
	void *p;

	/* Who has started us is not to have what we have. */
	if (getauxval(AT_SECURE) != 0)
		return -EPERM;
	if (sigaction(PMS_SIGNAL, NULL, &before) < 0 || (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN))
		return -EBUSY;
	p = mmap(NULL, sizeof(*area), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		return -errno;
	area = p;
	first_tid = raw(SYS_getpid, 0, 0, 0, 0);
	pthread_atfork(NULL, NULL, in_child);
	sa.sa_sigaction = on_signal;
	memset(&sa.sa_mask, 0xff, sizeof(sa.sa_mask)); /* also those that libc has for itself */
	sigaction(PMS_SIGNAL, &sa, NULL);
	/* Whoever started us may have had it blocked. */
	sigemptyset(&it);
	sigaddset(&it, PMS_SIGNAL);
	pthread_sigmask(SIG_UNBLOCK, &it, NULL);
	mark = put_mark(COOP_MARK, 0);
	return mark < 0 ? (int)mark : 0;
}
