/*
 * Semaphores and message queues of System V. They belong to no process: those go along that somebody of the
 * tree was the last to use, or waits for; of an IPC namespace that is not ours, all.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "ckpt.h"
#include "io.h"
#include "kfeat.h"
#include "log.h"
#include "record.h"

#ifndef SEM_STAT_ANY
#define SEM_STAT_ANY 20
#endif
#ifndef MSG_STAT_ANY
#define MSG_STAT_ANY 13
#endif
#ifndef MSG_COPY
#define MSG_COPY 040000
#endif

union semun {
	int val;
	struct semid_ds *buf;
	unsigned short *array;
	struct seminfo *info;
};

/* What is read: with whose eyes, and into what. */
struct ipc {
	const struct ckpt *c;
	struct objects *out;
	bool all; /* a namespace of its own */
};

/* --- whose is it? */

static bool
waits_for(const struct ckpt *c, const long *calls, size_t ncalls, int id)
{
	for (size_t m = 0; m < c->nmembers; m++)
		for (size_t i = 0; i < c->members[m]->target.nthreads; i++) {
			const struct arch_regs *regs = &c->members[m]->target.threads[i].regs;

			for (size_t k = 0; k < ncalls; k++)
				if ((int64_t)regs->orig_rax == calls[k] && (int)regs->rdi == id)
					return true;
		}
	return false;
}

static bool
dead(pid_t pid)
{
	return pid == 0 || (kill(pid, 0) < 0 && errno == ESRCH);
}

static bool
is_ours(const struct ckpt *c, pid_t pid)
{
	return tree_find(c, pid) != NULL || dead(pid);
}

/* Made since the first process began, by its user, and used by nobody who lives. */
static bool
left_behind(const struct ckpt *c, uid_t maker, time_t changed)
{
	const struct target *first = &c->members[0]->target;
	struct timespec up = {0};

	clock_gettime(CLOCK_BOOTTIME, &up);
	return maker == (uid_t)first->status.uid[1] && changed >=
	    time(NULL) - (up.tv_sec - (time_t)(first->stat.starttime / (uint64_t)sysconf(_SC_CLK_TCK))) - 1;
}

/* --- semaphores */

static bool
semaphores_used(const struct ipc *ipc, int id, const struct semid_ds *ds)
{
	static const long calls[] = {SYS_semop, SYS_semtimedop};
	bool unused = true;

	if (ipc->all)
		return true;
	for (unsigned long i = 0; i < ds->sem_nsems; i++) {
		int pid = semctl(id, (int)i, GETPID);

		if (pid > 0 && tree_find(ipc->c, pid) != NULL)
			return true;
		unused &= pid < 0 ? false : dead(pid);
	}
	return waits_for(ipc->c, calls, ARRAY_LEN(calls), id) ||
	    (unused && left_behind(ipc->c, ds->sem_perm.cuid, ds->sem_ctime));
}

static int
read_semaphores(const struct ipc *ipc, int id, const struct semid_ds *ds)
{
	unsigned short *values = calloc(ds->sem_nsems, sizeof(*values));
	int64_t *wide = calloc(ds->sem_nsems, sizeof(*wide));
	struct sem_ref *sem = ARRAY_ADD(ipc->out->sems, ipc->out->nsems);

	if (values == NULL || wide == NULL || sem == NULL) {
		free(values);
		free(wide);
		return fail(ENOMEM, "out of memory");
	}
	*sem = (struct sem_ref){.id = id, .key = ds->sem_perm.__key, .mode = ds->sem_perm.mode & 0777,
	    .uid = ds->sem_perm.uid, .gid = ds->sem_perm.gid, .values = wide, .nvalues = ds->sem_nsems};
	if (semctl(id, 0, GETALL, (union semun){.array = values}) < 0) {
		free(values);
		return fail_errno("semaphores %d of System V", id);
	}
	for (size_t i = 0; i < sem->nvalues; i++)
		wide[i] = values[i];
	free(values);
	return 0;
}

static int
find_semaphores(const struct ipc *ipc)
{
	struct seminfo info;
	int highest = semctl(0, 0, SEM_INFO, (union semun){.info = &info}), err = 0;

	for (int i = 0; i <= highest && err == 0; i++) {
		struct semid_ds ds;
		int id = semctl(i, 0, SEM_STAT_ANY, (union semun){.buf = &ds});

		if (id >= 0 && semaphores_used(ipc, id, &ds))
			err = read_semaphores(ipc, id, &ds);
	}
	return err;
}

/* --- message queues */

static bool
queue_used(const struct ipc *ipc, int id, const struct msqid_ds *ds)
{
	static const long calls[] = {SYS_msgsnd, SYS_msgrcv};

	if (ipc->all || tree_find(ipc->c, ds->msg_lspid) != NULL || tree_find(ipc->c, ds->msg_lrpid) != NULL ||
	    waits_for(ipc->c, calls, ARRAY_LEN(calls), id))
		return true;
	return dead(ds->msg_lspid) && dead(ds->msg_lrpid) && left_behind(ipc->c, ds->msg_perm.cuid, ds->msg_ctime);
}

/* A copy of the n-th message; it stays where it is. */
static int
read_message(struct msgq_ref *q, long n, char *room, size_t size)
{
	ssize_t len = msgrcv((int)q->id, room, size, n, MSG_COPY | IPC_NOWAIT | MSG_NOERROR);
	struct sysv_message *m;
	long type;

	if (len < 0)
		return fail_errno("message queue %d of System V", (int)q->id);
	m = ARRAY_ADD(q->messages, q->nmessages);
	if (m == NULL)
		return fail(ENOMEM, "out of memory");
	memcpy(&type, room, sizeof(type));
	*m = (struct sysv_message){.type = type, .data = {malloc((size_t)len + 1), (size_t)len}};
	if (m->data.p == NULL)
		return fail(ENOMEM, "out of memory");
	memcpy(m->data.p, room + sizeof(type), (size_t)len);
	return 0;
}

static int
read_queue(const struct ipc *ipc, int id, const struct msqid_ds *ds)
{
	struct msgq_ref *q = ARRAY_ADD(ipc->out->msgqs, ipc->out->nmsgqs);
	char *room = malloc(sizeof(long) + ds->msg_cbytes + 1);
	int err = 0;

	if (q == NULL || room == NULL) {
		free(room);
		return fail(ENOMEM, "out of memory");
	}
	*q = (struct msgq_ref){.id = id, .key = ds->msg_perm.__key, .mode = ds->msg_perm.mode & 0777,
	    .uid = ds->msg_perm.uid, .gid = ds->msg_perm.gid, .limit = ds->msg_qbytes};
	for (unsigned long i = 0; i < ds->msg_qnum && err == 0; i++)
		err = read_message(q, (long)i, room, ds->msg_cbytes);
	free(room);
	return err;
}

static int
find_queues(const struct ipc *ipc)
{
	struct msginfo info;
	int highest = msgctl(0, MSG_INFO, (struct msqid_ds *)&info), err = 0;

	for (int i = 0; i <= highest && err == 0; i++) {
		struct msqid_ds ds;
		int id = msgctl(i, MSG_STAT_ANY, &ds);

		if (id >= 0 && queue_used(ipc, id, &ds))
			err = read_queue(ipc, id, &ds);
	}
	return err;
}

static int
find_all(const struct ipc *ipc)
{
	int err = find_semaphores(ipc);

	return err < 0 ? err : find_queues(ipc);
}

/* --- in another namespace: a child of ours goes there, and tells as JSON */

static int
look_there(struct ckpt *c, int out)
{
	const struct target *first = &c->members[0]->target;
	int user = proc_same_ns(first->proc, "user") ? 0 : CLONE_NEWUSER;
	struct objects found = {0};
	struct ipc ipc = {c, &found, true};
	size_t len = 0;
	char *text;
	int err = 0;

	if (setns(first->pidfd, user | CLONE_NEWIPC) < 0)
		return fail_errno("pid %d: its IPC namespace", first->pid);
	err = find_all(&ipc);
	text = err < 0 ? NULL : record_to_text(&record_objects, &found, &len);
	if (text != NULL)
		err = write_full(out, text, len);
	else if (err == 0)
		err = -ENOMEM;
	free(text);
	record_free(&record_objects, &found);
	return err;
}

static int
read_all(int fd, struct buf *b)
{
	char piece[4096];
	ssize_t n;

	while ((n = read(fd, piece, sizeof(piece))) > 0 || (n < 0 && errno == EINTR))
		if (n > 0)
			buf_put(b, piece, (size_t)n);
	return n < 0 || b->failed ? -EIO : 0;
}

static int
collect_there(struct ckpt *c)
{
	struct objects *o = &c->model.objects, found = {0};
	struct buf text = {0};
	int p[2], status = -1, err;
	char why[128];
	pid_t child;

	if (pipe2(p, O_CLOEXEC) < 0)
		return fail_errno("pipe");
	child = fork();
	if (child == 0)
		_exit(look_there(c, p[1]) < 0);
	close(p[1]);
	err = child < 0 ? fail_errno("fork") : read_all(p[0], &text);
	close(p[0]);
	while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR)
		;
	/* It has told why; without the right to look there is no telling what the program needs. */
	if (err == 0 && status != 0)
		err = -EPERM;
	if (err == 0 && record_from_text(&record_objects, &found, (const char *)text.data, text.len, why) < 0)
		err = fail(EIO, "System V objects: %s", why);
	buf_fini(&text);
	if (err < 0)
		return err;
	o->sems = found.sems;
	o->nsems = found.nsems;
	o->msgqs = found.msgqs;
	o->nmsgqs = found.nmsgqs;
	return 0;
}

/* --- what nobody can read */

/* A process that has neither asked for SEM_UNDO nor made threads has the same list as we: none. */
static int
tell_undo(struct ckpt *c, const struct member *who)
{
	char name[64];

	if (!kfeat(KFEAT_kcmp) || syscall(SYS_kcmp, getpid(), who->target.pid, KCMP_SYSVSEM, 0, 0) <= 0)
		return 0;
	return report_add(&c->report, LOSS, 0, member_name(who, name), NULL, "what SEM_UNDO would give back if it ended now, if it "
	    "has used that, cannot be read: a semaphore that it holds stays taken if it ends there");
}

/* Whoever else uses them keeps them: the new process has copies. */
static int
tell_others(struct ckpt *c)
{
	const struct objects *o = &c->model.objects;
	char name[64];
	int err = 0;

	for (size_t i = 0; i < o->nsems && err == 0; i++)
		for (size_t k = 0; k < o->sems[i].nvalues; k++) {
			int pid = semctl((int)o->sems[i].id, (int)k, GETPID);

			if (pid <= 0 || is_ours(c, pid))
				continue;
			snprintf(name, sizeof(name), "semaphores %d of System V", (int)o->sems[i].id);
			err = report_add(&c->report, LOSS, 0, name, NULL, "pid %d, which is outside, uses them too: it keeps them, "
			    "and the new process has a copy", pid);
			break;
		}
	for (size_t i = 0; i < o->nmsgqs && err == 0; i++) {
		struct msqid_ds q;

		if (msgctl((int)o->msgqs[i].id, IPC_STAT, &q) < 0 || (is_ours(c, q.msg_lspid) && is_ours(c, q.msg_lrpid)))
			continue;
		snprintf(name, sizeof(name), "message queue %d of System V", (int)o->msgqs[i].id);
		err = report_add(&c->report, LOSS, 0, name, NULL, "pid %d, which is outside, uses it too: it keeps it, and the new "
		    "process has a copy", is_ours(c, q.msg_lspid) ? q.msg_lrpid : q.msg_lspid);
	}
	return err;
}

int
collect_ipc(struct ckpt *c)
{
	struct ipc ipc = {c, &c->model.objects, false};
	int err;
	bool here = proc_same_ns(c->members[0]->target.proc, "ipc");

	err = here ? find_all(&ipc) : collect_there(c);
	if (err == 0 && here)
		err = tell_others(c);
	for (size_t i = 0; i < c->nmembers && err == 0 && c->model.objects.nsems > 0; i++)
		if (!c->members[i]->zombie)
			err = tell_undo(c, c->members[i]);
	return err;
}

/* --- the originals have ended */

/* Nobody else was the last to use one of them, or waits for it. */
static bool
semaphores_are_ours(const struct ckpt *c, const struct sem_ref *sem)
{
	bool used = false;

	for (size_t k = 0; k < sem->nvalues; k++) {
		int id = (int)sem->id, pid = semctl(id, (int)k, GETPID);

		if (pid < 0 || !is_ours(c, pid) || semctl(id, (int)k, GETNCNT) > 0 || semctl(id, (int)k, GETZCNT) > 0)
			return false;
		used |= pid > 0;
	}
	return used;
}

void
leave_ipc(const struct ckpt *c)
{
	const struct objects *o = &c->model.objects;
	struct shmid_ds ds;
	struct msqid_ds q;

	for (size_t i = 0; i < o->nshms; i++)
		if (o->shms[i].sysv && shmctl((int)o->shms[i].id, IPC_STAT, &ds) == 0 && ds.shm_nattch == 0 &&
		    tree_find(c, ds.shm_cpid) != NULL)
			shmctl((int)o->shms[i].id, IPC_RMID, NULL);
	for (size_t i = 0; i < o->nsems; i++)
		if (semaphores_are_ours(c, &o->sems[i]))
			semctl((int)o->sems[i].id, 0, IPC_RMID);
	for (size_t i = 0; i < o->nmsgqs; i++)
		if (msgctl((int)o->msgqs[i].id, IPC_STAT, &q) == 0 && is_ours(c, q.msg_lspid) &&
		    tree_find(c, q.msg_lrpid) != NULL)
			msgctl((int)o->msgqs[i].id, IPC_RMID, NULL);
}
