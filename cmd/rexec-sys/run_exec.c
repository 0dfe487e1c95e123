/*
 * exec: the program is found and read there, and executed here as a copy; its interpreter, too.
 */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "elf_file.h"
#include "io.h"
#include "log.h"
#include "proc.h"
#include "run.h"

enum { HEAD = 256, SCRIPTS_MAX = 5, ARGS_MAX = 1 << 17 };

/* What is to be executed in the end. */
struct program {
	struct copy *copy;
	char *path;       /* there */
	char *before[2 * SCRIPTS_MAX + 2]; /* arguments that come first, the last one first; owned */
	size_t nbefore;
};

static void
program_fini(struct program *p)
{
	free(p->path);
	while (p->nbefore > 0)
		free(p->before[--p->nbefore]);
}

/* What is open there as fd may be executed: a copy of it. *path: where it is there. */
static struct copy *
copy_program(struct run *r, struct thread *t, int fd, char **path, int64_t *err)
{
	char name[PATH_MAX], link[64];
	const struct facts *f = &r->remote.facts;
	struct stat st;
	int64_t n;

	snprintf(link, sizeof(link), "/proc/thread-self/fd/%d", fd);
	n = CALL_NOW(r, t, SYS_readlink, CALL_ADDRESS(link), CALL_ADDRESS(name), sizeof(name));
	*path = n > 0 ? strndup(name, (size_t)n) : NULL;
	*err = CALL_NOW(r, t, SYS_fstat, (uint64_t)fd, CALL_ADDRESS(&st));
	if (*err == 0 && !S_ISREG(st.st_mode))
		*err = -EACCES;
	if (*err == 0)
		*err = CALL_NOW(r, t, SYS_faccessat2, (uint64_t)fd, CALL_ADDRESS(""), X_OK, AT_EMPTY_PATH | AT_EACCESS);
	if (*err == 0 && (((st.st_mode & S_ISUID) != 0 && st.st_uid != f->uid[1]) ||
			     ((st.st_mode & (S_ISGID | S_IXGRP)) == (S_ISGID | S_IXGRP) && st.st_gid != f->gid[1]))) {
		*err = -EPERM;
		note("%s: gains the rights of another user or group, which cannot be had from here", *path != NULL ? *path : "program");
	}
	return *err == 0 ? copy_of(r, t, fd, &st, err) : NULL;
}

static struct copy *
open_program(struct run *r, struct thread *t, int dfd, const char *path, bool by_fd, char **found, int64_t *err)
{
	int64_t fd = by_fd ? dfd : CALL_NOW(r, t, SYS_openat, (uint64_t)dfd, CALL_ADDRESS(path), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct copy *c;

	*found = NULL;
	*err = fd;
	if (fd < 0)
		return NULL;
	c = copy_program(r, t, (int)fd, found, err);
	if (!by_fd)
		CALL_NOW(r, t, SYS_close, (uint64_t)fd);
	return c;
}

/* "#! interpreter argument". Returns false where there is no interpreter. */
static bool
script_head(char head[HEAD + 1], char **interpreter, char **argument)
{
	char *end = head + strcspn(head, "\n"), *p = head + 2;

	*end = '\0';
	while (end > p && isblank((unsigned char)end[-1]))
		*--end = '\0';
	p += strspn(p, " \t");
	*interpreter = p;
	p += strcspn(p, " \t");
	*argument = NULL;
	if (*p != '\0') {
		*p++ = '\0';
		*argument = p + strspn(p, " \t");
	}
	return (*interpreter)[0] != '\0';
}

static bool
put_before(struct program *p, const char *arg)
{
	return p->nbefore < ARRAY_LEN(p->before) && (p->before[p->nbefore] = strdup(arg)) != NULL && ++p->nbefore > 0;
}

/* A dynamic program needs the linker of there. */
static int64_t
add_interpreter(struct run *r, struct thread *t, struct program *p)
{
	struct copy *linker;
	uint64_t at, room;
	char path[PATH_MAX] = "", *found;
	int64_t err;
	int has = elf_interpreter(p->copy->fd, &at, &room);

	if (has <= 0)
		return has;
	if (room >= sizeof(path) || pread(p->copy->fd, path, room, (off_t)at) != (ssize_t)room)
		return -ENOEXEC;
	linker = open_program(r, t, AT_FDCWD, path, false, &found, &err);
	free(found);
	if (linker == NULL)
		return err;
	p->copy = copy_with_interpreter(r, p->copy, linker, at, room);
	return p->copy != NULL ? 0 : -ENOEXEC;
}

/* path, or by_fd the file that is open there as dfd. */
static int64_t
resolve(struct run *r, struct thread *t, int dfd, const char *path, bool by_fd, struct program *p)
{
	char head[HEAD + 1], *interpreter, *argument, *said = strdup(path), *name = NULL;
	int64_t err = said == NULL ? -ENOMEM : 0;

	for (unsigned depth = 0; err == 0; depth++) {
		ssize_t n;

		free(p->path);
		p->copy = open_program(r, t, dfd, said, by_fd, &p->path, &err);
		if (p->copy == NULL)
			break;
		n = pread(p->copy->fd, head, HEAD, 0);
		head[n > 0 ? n : 0] = '\0';
		if (n < 2 || head[0] != '#' || head[1] != '!') {
			err = add_interpreter(r, t, p);
			break;
		}
		if (depth >= SCRIPTS_MAX || !script_head(head, &interpreter, &argument)) {
			err = depth >= SCRIPTS_MAX ? -ELOOP : -ENOEXEC;
			break;
		}
		/* The script as it was said, its interpreter's argument, its interpreter; in front of these the interpreter's interpreter. */
		if (depth > 0)
			free(p->before[--p->nbefore]);
		/* One that is relative to a directory that is open, or open itself, is called by that. */
		if (dfd != AT_FDCWD && said[0] != '/' && asprintf(&name, "/dev/fd/%d%s%s", dfd, said[0] != '\0' ? "/" : "", said) > 0) {
			free(said);
			said = name;
		}
		if (!put_before(p, said) || (argument != NULL && !put_before(p, argument)) || !put_before(p, interpreter))
			err = -ENOMEM;
		free(said);
		said = strdup(interpreter);
		err = said == NULL ? -ENOMEM : err;
		dfd = AT_FDCWD;
		by_fd = false;
	}
	free(said);
	return err;
}

/* --- in the thread */

static int64_t
count_args(struct thread *t, taddr argv)
{
	uint64_t pointers[64];
	int64_t n = 0;

	for (; argv != 0 && n < ARGS_MAX; n++) {
		if (n % 64 == 0) {
			/* As many as there are in this page, at least. */
			size_t want = min_u64(sizeof(pointers), page_up(argv + 8 * (uint64_t)n + 1) - (argv + 8 * (uint64_t)n));

			if (want < sizeof(pointers) || thread_read(t, argv + 8 * (uint64_t)n, pointers, want) < 0) {
				for (unsigned k = 0; k < 64; k++)
					if (thread_read(t, argv + 8 * (uint64_t)(n + k), &pointers[k], 8) < 0 || pointers[k] == 0) {
						pointers[k] = 0;
						break;
					}
			}
		}
		if (pointers[n % 64] == 0)
			return n;
	}
	return argv == 0 ? 0 : -E2BIG;
}

/*
 * Below the thread's stack, out of the way of everything: the path of the copy, and, if there is anything before the arguments, all of these.
 * The one call that is to come needs it, and no more.
 */
static int64_t
lay_down(const struct run *r, struct thread *t, const struct program *p, struct arch_regs *regs, taddr argv)
{
	int64_t nargs = p->nbefore > 0 ? count_args(t, argv) : 0, err = 0;
	size_t npointers = p->nbefore > 0 ? p->nbefore + (size_t)max_i64(nargs, 1) : 0;
	uint64_t *pointers = calloc(npointers + 1, sizeof(*pointers));
	char path[64];
	struct buf strings = {0};
	taddr at;

	if (nargs < 0 || pointers == NULL) {
		free(pointers);
		return nargs < 0 ? nargs : -ENOMEM;
	}
	snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)r->holder, p->copy->fd);
	buf_put(&strings, path, strlen(path) + 1);
	for (size_t i = p->nbefore; i-- > 0;) {
		pointers[p->nbefore - 1 - i] = strings.len;
		buf_put(&strings, p->before[i], strlen(p->before[i]) + 1);
	}
	at = (regs->rsp - ARCH_RED_ZONE - strings.len - 8 * (npointers + 1)) & ~15ULL;
	for (size_t i = 0; i < p->nbefore; i++)
		pointers[i] += at + 8 * (npointers + 1);
	if (nargs > 1 && thread_read(t, argv + 8, pointers + p->nbefore, 8 * ((size_t)nargs - 1)) < 0)
		err = -EFAULT;
	if (err == 0 && (strings.failed || thread_write(t, at, pointers, 8 * (npointers + 1)) < 0 ||
			    thread_write(t, at + 8 * (npointers + 1), strings.data, strings.len) < 0))
		err = -E2BIG;
	regs->rdi = at + 8 * (npointers + 1);
	regs->rsi = p->nbefore > 0 ? at : argv;
	buf_fini(&strings);
	free(pointers);
	return err;
}

static void
refuse(struct thread *t, int64_t err)
{
	struct arch_regs regs = t->exec_regs;

	regs.orig_rax = (uint64_t)-1;
	regs.rax = (uint64_t)err;
	thread_set_regs(t, &regs);
	ptrace(PTRACE_CONT, t->tid, NULL, NULL);
}

static const char *
base_name(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash != NULL ? slash + 1 : path;
}

/* Of paths that only the thread can follow. */
static const char *
as_there(const struct thread *t, const char *path, char other[PATH_MAX])
{
	if (strcmp(path, "/proc/self/exe") == 0 && t->process->program != NULL)
		return t->process->program;
	if (strncmp(path, "/proc/self/fd/", 14) == 0 || strncmp(path, "/dev/fd/", 8) == 0) {
		snprintf(other, PATH_MAX, "/proc/thread-self/fd/%s", strrchr(path, '/') + 1);
		return other;
	}
	return path;
}

void
exec_stop(struct run *r, struct thread *t)
{
	struct arch_regs regs;
	struct program p = {0};
	char other[PATH_MAX], *path;
	int dfd = AT_FDCWD;
	bool at, by_fd = false;
	int64_t err;

	t->peeked = 0;
	if (thread_get_regs(t, &regs) < 0)
		return;
	t->exec_regs = regs;
	at = regs.orig_rax == SYS_execveat;
	path = thread_string(t, at ? regs.rsi : regs.rdi);
	err = path == NULL ? -errno : 0;
	if (err == 0 && at) {
		dfd = (int)regs.rdi;
		by_fd = path[0] == '\0' && (regs.r8 & AT_EMPTY_PATH) != 0;
	}
	if (r->options->local_program) {
		free(path);
		t->exec = EXEC_BEGUN;
		ptrace(PTRACE_SYSCALL, t->tid, NULL, NULL);
		return;
	}
	if (err == 0 && file_where(t->process, dfd) == HERE)
		err = -EACCES;
	if (err == 0)
		err = resolve(r, t, dfd, as_there(t, path, other), by_fd, &p);
	if (err == 0)
		err = lay_down(r, t, &p, &regs, at ? regs.rdx : regs.rsi);
	/* As the kernel has it: a script is called as it was called. */
	if (err == 0)
		snprintf(t->exec_name, sizeof(t->exec_name), "%s", base_name(path[0] != '\0' ? path : p.path != NULL ? p.path : "program"));
	free(path);
	if (err < 0) {
		program_fini(&p);
		refuse(t, err);
		return;
	}
	regs.rdx = at ? regs.r10 : regs.rdx;
	regs.orig_rax = SYS_execve;
	free(t->exec_program);
	t->exec_program = p.path;
	p.path = NULL;
	program_fini(&p);
	t->exec = EXEC_BEGUN;
	thread_set_regs(t, &regs);
	ptrace(PTRACE_SYSCALL, t->tid, NULL, NULL);
}

/* --- when it has been executed */

/* Those that exec has closed are not there any more. */
static void
look_at_files(struct run *r, struct process *p)
{
	int proc = proc_open(p->pid), *numbers = NULL;
	size_t n = 0;

	if (proc >= 0 && proc_list(proc, "fd", &numbers, &n) == 0)
		for (size_t fd = 0; fd < p->nfiles; fd++) {
			bool open = false;

			for (size_t i = 0; i < n; i++)
				open |= numbers[i] == (int)fd;
			if (!open)
				file_set(r, p, (int64_t)fd, NOWHERE);
		}
	free(numbers);
	close_fd(&proc);
}

void
exec_done(struct run *r, struct thread *t)
{
	struct buf b = {0};
	char *path = NULL, link[64];

	buf_put_u32(&b, t->number);
	link_send(&r->remote.link, MSG_EXECUTED, 0, b.data, b.len);
	buf_fini(&b);
	look_at_files(r, t->process);
	if (r->options->local_program) {
		snprintf(link, sizeof(link), "/proc/%d/exe", t->tid);
		read_link(AT_FDCWD, link, &path);
		free(t->exec_program);
		t->exec_program = path;
	}
	free(t->process->program);
	t->process->program = t->exec_program;
	t->exec_program = NULL;
	t->phase = PHASE_NONE;
	t->exec = EXEC_DONE;
	ptrace(r->options->local_program ? PTRACE_CONT : PTRACE_SYSCALL, t->tid, NULL, NULL);
}

/* It is called as the program, not as the copy; only it can say so. */
static bool
begin_naming(struct thread *t)
{
	struct proc_maps maps = {0};
	struct arch_regs regs;
	char path[32];
	taddr gadget = 0, restorer, at;
	int proc = proc_open(t->tid), mem;

	snprintf(path, sizeof(path), "/proc/%d/mem", t->tid);
	mem = open(path, O_RDONLY | O_CLOEXEC);
	if (proc >= 0 && mem >= 0 && proc_read_maps(proc, false, &maps) == 0)
		tracee_find_gadgets(mem, &maps, &gadget, &restorer);
	proc_maps_fini(&maps);
	close_fd(&proc);
	close_fd(&mem);
	if (gadget == 0 || thread_get_regs(t, &regs) < 0)
		return false;
	t->exec_regs = regs;
	at = (regs.rsp - 64) & ~15ULL;
	if (thread_write(t, at, t->exec_name, sizeof(t->exec_name)) < 0)
		return false;
	arch_set_call(&regs, gadget, &(struct arch_call){SYS_prctl, {PR_SET_NAME, at}});
	return thread_set_regs(t, &regs) == 0;
}

void
exec_syscall_stop(struct thread *t)
{
	struct arch_regs regs;
	enum __ptrace_request how = PTRACE_CONT;

	switch (t->exec) {
	case EXEC_BEGUN:
		/* It has failed: only its result is to be seen. */
		if (thread_get_regs(t, &regs) == 0) {
			t->exec_regs.rax = regs.rax;
			thread_set_regs(t, &t->exec_regs);
		}
		t->exec = EXEC_NONE;
		break;
	case EXEC_DONE:
		t->exec = EXEC_NONE;
		if (begin_naming(t)) {
			t->exec = EXEC_NAMING;
			how = PTRACE_SYSCALL;
		}
		break;
	case EXEC_NAMING:
		t->exec = EXEC_NAMED;
		how = PTRACE_SYSCALL;
		break;
	case EXEC_NAMED:
		thread_set_regs(t, &t->exec_regs);
		t->exec = EXEC_NONE;
		break;
	case EXEC_NONE:
		break;
	}
	ptrace(how, t->tid, NULL, NULL);
}
