/*
 * -s: memory and threads leave, files and connections stay. The original's threads become those that execute the calls of the
 * copy: `rexec-sys home` does that, which we become when the image is out. Until the copy has begun nothing of the original is changed: if
 * anything fails it goes on.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <sysexits.h>
#include <unistd.h>

#include "addr.h"
#include "ckpt.h"
#include "handover.h"
#include "io.h"
#include "log.h"

int
home_listen(struct ckpt *c, const struct output *o, char option, const char *what, const char *address, char **reached)
{
	struct addr a;
	int err = addr_parse(&a, address);

	if (err < 0)
		return err;
	if (a.kind == ADDR_STDIO ? o->kind != OUTPUT_CHANNEL : a.kind == ADDR_SSH || a.kind == ADDR_FD)
		err = fail(EINVAL, "-%c %s: %s at unix:PATH, tcp:HOST:PORT or tcp-clear:HOST:PORT, or (-%c -) reached by the channel of --to", option, a.text, what, option);
	else if (a.kind == ADDR_STDIO)
		err = c->opt.key != NULL ? fail(EINVAL, "-%c -: has no use for a key; tcp: has", option) : 0;
	else
		c->home_listener = addr_listen(&a, c->opt.key), err = c->home_listener < 0 ? c->home_listener : 0;
	c->home_address = address;
	/* A port that was 0 is known now. */
	if (err == 0) {
		*reached = a.kind == ADDR_STDIO ? strdup("-") : addr_listening(&a, c->home_listener);
		err = *reached == NULL ? -ENOMEM : 0;
	}
	addr_fini(&a);
	return err;
}

int
home_open(struct ckpt *c, const struct output *o)
{
	return home_listen(c, o, 's', "home is", c->opt.home, &c->model.header.home);
}

void
home_close(struct ckpt *c)
{
	struct addr a;

	if (c->home_listener < 0 || addr_parse(&a, c->home_address) < 0)
		return;
	addr_unlisten(&a, &c->home_listener);
	addr_fini(&a);
}

/* How are we to end? */
static int
told(int report, pid_t home)
{
	char what;
	int status;
	ssize_t n = read_full(report, &what, 1);

	if (n == -EINTR) {
		/* It is the other one's to say what becomes of the process then. */
		kill(home, SIGTERM);
		io_set_interrupt(NULL);
		n = read_full(report, &what, 1);
	}
	if (n == 1 && what == 'R')
		return 0;
	while (waitpid(home, &status, 0) < 0 && errno == EINTR)
		;
	return WIFEXITED(status) ? WEXITSTATUS(status) : EX_SOFTWARE;
}

/* The home outlives us, who are only to say whether the process has left: so another process does all that follows, and this one waits. */
int
home_fork(struct ckpt *c)
{
	int fds[2];
	pid_t pid;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0)
		return fail_errno("socketpair");
	pid = fork();
	if (pid < 0)
		return fail_errno("fork");
	if (pid > 0) {
		close(fds[1]);
		close(STDOUT_FILENO); /* the image's, and not ours */
		_exit(told(fds[0], pid));
	}
	close(fds[0]);
	prctl(PR_SET_PDEATHSIG, SIGTERM); /* until it has begun */
	c->home_report = fds[1];
	return 0;
}

/* --- what cannot stay behind, or leave */

static int
check_mappings(struct ckpt *c, const struct member *who)
{
	char name[96];
	int err = 0;

	for (size_t i = 0; i < who->task->nvmas && err == 0; i++) {
		const struct vma *v = &who->task->vmas[i];
		bool writes = (v->prot & PROT_WRITE) != 0 || (v->flags != NULL && strstr(v->flags, "mw") != NULL);

		if (v->kind == VMA_FILE && v->shared && writes)
			err = report_add(&c->report, OBSTACLE, 69, mapping_name(who, v->start, v->end, name), "have the program unmap it",
			    "memory that is a file: it would have to be the same at home and where the process runs");
		else if (v->kind == VMA_AIO || v->kind == VMA_URING)
			err = report_add(&c->report, OBSTACLE, 69, mapping_name(who, v->start, v->end, name), NULL,
			    "a ring that is shared with the kernel cannot stay at home");
	}
	return err;
}

static int
check_member(struct ckpt *c, const struct member *who)
{
	char name[64];
	int err = 0;

	if (who->filtered)
		err = report_add(&c->report, OBSTACLE, 69, member_name(who, name), "start it without its sandbox",
		    "it has seccomp filters, under which its threads could not execute calls at home");
	if (err == 0 && (who->task->shares_files || who->task->shares_fs))
		err = report_add(&c->report, OBSTACLE, 69, member_name(who, name), NULL, "it shares its files or directory with its parent");
	return err < 0 ? err : check_mappings(c, who);
}

int
collect_home(struct ckpt *c)
{
	struct image_header *h = &c->model.header;
	char **feature = ARRAY_ADD(h->features, h->nfeatures);
	int err = 0;

	if (feature == NULL || (*feature = strdup("home")) == NULL)
		return -ENOMEM;
	for (size_t i = 0; i < c->nmembers && err == 0; i++)
		if (!c->members[i]->zombie)
			err = check_member(c, c->members[i]);
	return err;
}

/* --- we become its home */

static int
add_pending(struct handover_process *p, const struct bytes *pending)
{
	for (size_t i = 0; i + SIGINFO_BYTES <= pending->n; i += SIGINFO_BYTES) {
		int64_t *slot = ARRAY_ADD(p->pending, p->npending);
		int32_t sig;

		if (slot == NULL)
			return -ENOMEM;
		memcpy(&sig, pending->p + i, sizeof(sig));
		*slot = sig;
	}
	return 0;
}

static int
add_process(struct handover *h, const struct member *who)
{
	struct handover_process *p = ARRAY_ADD(h->processes, h->nprocesses);
	int err;

	if (p == NULL)
		return -ENOMEM;
	*p = (struct handover_process){.pid = who->target.pid, .listener = -1};
	err = add_pending(p, &who->task->pending);
	for (size_t i = 0; i < who->target.nthreads && err == 0; i++) {
		struct handover_thread *t = ARRAY_ADD(p->threads, p->nthreads);

		if (t == NULL)
			return -ENOMEM;
		*t = (struct handover_thread){who->target.threads[i].tid, who->task->threads[i].tid};
		err = add_pending(p, &who->task->threads[i].pending);
	}
	return err;
}

/* What was our standard output is the image's, and watched by that number alone. */
static void
leave_stdout(const struct output *o)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	if (o->kind == OUTPUT_PIPE && null >= 0)
		dup2(null, STDOUT_FILENO);
	close_fd(&null);
}

int
home_stay(struct ckpt *c, struct output *o)
{
	struct handover h = {.id = c->model.header.id, .address = c->model.header.home, .key = (char *)c->opt.key, .listen = c->home_listener,
	    .in = -1, .out = -1, .image = o->kind == OUTPUT_FILE ? -1 : o->fd, .report = c->home_report};
	int err = 0;

	if (c->home_listener < 0)
		h.in = h.out = o->fd, h.image = -1;
	/* They stand where they stood, with all that is theirs; nobody lets them go, as we stay their tracer. */
	for (size_t i = 0; i < c->nmembers && err == 0; i++)
		if (!c->members[i]->zombie) {
			target_give_back(&c->members[i]->target);
			err = add_process(&h, c->members[i]);
		}
	if (err == 0) {
		leave_stdout(o);
		err = handover_exec(&h, "home");
	}
	handover_drop(&h);
	return err;
}
