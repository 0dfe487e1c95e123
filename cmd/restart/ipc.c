/*
 * Objects of System V, with their IDs, in an IPC namespace of their own (place.c).
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/syscall.h>

#include "io.h"
#include "log.h"
#include "restart.h"

union semun {
	int val;
	struct semid_ds *buf;
	unsigned short *array;
};

bool
ipc_wanted(const struct restart *r)
{
	const struct objects *o = &r->model.objects;
	bool wanted = o->nsems > 0 || o->nmsgqs > 0;

	for (size_t i = 0; i < o->nshms; i++)
		wanted |= o->shms[i].sysv;
	return wanted;
}

/* The next object of this kind is to have this ID. */
static void
want_id(const char *file, int64_t id)
{
	char text[24];

	snprintf(text, sizeof(text), "%" PRId64, id);
	write_file(AT_FDCWD, file, text);
}

static int
check_id(const char *what, int64_t id, int got)
{
	if (got < 0)
		return fail_errno("System V %s %" PRId64, what, id);
	if (got != id)
		return fail(ENOTSUP, "System V %s %" PRId64 ": its ID cannot be had on this kernel "
		    "(CONFIG_CHECKPOINT_RESTORE)", what, id);
	return 0;
}

static int
make_segment(const struct restart *r, const struct shm_ref *shm)
{
	struct shmid_ds ds;
	int flags = IPC_CREAT | IPC_EXCL | (int)shm->mode | (int)space_huge_flags(r, shm->huge, SHM_HUGETLB);
	int id, err;

	want_id("/proc/sys/kernel/shm_next_id", shm->id);
	id = shmget((key_t)shm->key, shm->size, flags);
	err = check_id("segment", shm->id, id);
	if (err == 0 && !r->own_userns && shmctl(id, IPC_STAT, &ds) == 0) {
		ds.shm_perm.uid = (uid_t)shm->uid;
		ds.shm_perm.gid = (gid_t)shm->gid;
		shmctl(id, IPC_SET, &ds);
	}
	return err;
}

static int
make_semaphores(const struct restart *r, const struct sem_ref *sem)
{
	struct semid_ds ds;
	int id, err;

	want_id("/proc/sys/kernel/sem_next_id", sem->id);
	id = semget((key_t)sem->key, (int)sem->nvalues, IPC_CREAT | IPC_EXCL | (int)sem->mode);
	err = check_id("semaphore set", sem->id, id);
	if (err == 0 && !r->own_userns && semctl(id, 0, IPC_STAT, (union semun){.buf = &ds}) == 0) {
		ds.sem_perm.uid = (uid_t)sem->uid;
		ds.sem_perm.gid = (gid_t)sem->gid;
		semctl(id, 0, IPC_SET, (union semun){.buf = &ds});
	}
	return err;
}

static int
put_message(const struct msgq_ref *q, const struct sysv_message *m)
{
	char *room = malloc(sizeof(long) + m->data.n + 1);
	long type = (long)m->type;
	int err = 0;

	if (room == NULL)
		return fail(ENOMEM, "out of memory");
	memcpy(room, &type, sizeof(type));
	if (m->data.n > 0)
		memcpy(room + sizeof(type), m->data.p, m->data.n);
	if (msgsnd((int)q->id, room, m->data.n, IPC_NOWAIT) < 0)
		err = fail_errno("System V message queue %" PRId64 ": a message of %zu bytes", q->id, m->data.n);
	free(room);
	return err;
}

static int
make_queue(const struct restart *r, const struct msgq_ref *q)
{
	struct msqid_ds ds;
	int id, err;

	want_id("/proc/sys/kernel/msg_next_id", q->id);
	id = msgget((key_t)q->key, IPC_CREAT | IPC_EXCL | (int)q->mode);
	err = check_id("message queue", q->id, id);
	if (err < 0 || msgctl(id, IPC_STAT, &ds) < 0)
		return err < 0 ? err : fail_errno("System V message queue %" PRId64, q->id);
	if (!r->own_userns) {
		ds.msg_perm.uid = (uid_t)q->uid;
		ds.msg_perm.gid = (gid_t)q->gid;
	}
	ds.msg_qbytes = q->limit;
	if (msgctl(id, IPC_SET, &ds) < 0)
		note("System V message queue %" PRId64 ": cannot hold %" PRIu64 " bytes here: %s", q->id, q->limit,
		    strerror(errno));
	for (size_t i = 0; i < q->nmessages && err == 0; i++)
		err = put_message(q, &q->messages[i]);
	return err;
}

/* The new namespace has the limits of the kernel, not of the host. */
static void
raise_limits(const struct objects *o)
{
	uint64_t longest = 0, most = 0;
	char text[24];

	for (size_t i = 0; i < o->nmsgqs; i++) {
		most = max_u64(most, o->msgqs[i].limit);
		for (size_t k = 0; k < o->msgqs[i].nmessages; k++)
			longest = max_u64(longest, o->msgqs[i].messages[k].data.n);
	}
	snprintf(text, sizeof(text), "%" PRIu64, longest);
	if (longest > 8192)
		write_file(AT_FDCWD, "/proc/sys/kernel/msgmax", text);
	snprintf(text, sizeof(text), "%" PRIu64, most);
	if (most > 16384)
		write_file(AT_FDCWD, "/proc/sys/kernel/msgmnb", text);
}

int
ipc_make(struct restart *r)
{
	const struct objects *o = &r->model.objects;
	int err = 0;

	raise_limits(o);
	for (size_t i = 0; i < o->nshms && err == 0; i++)
		if (o->shms[i].sysv)
			err = make_segment(r, &o->shms[i]);
	for (size_t i = 0; i < o->nsems && err == 0; i++)
		err = make_semaphores(r, &o->sems[i]);
	for (size_t i = 0; i < o->nmsgqs && err == 0; i++)
		err = make_queue(r, &o->msgqs[i]);
	return err;
}

/* By the process itself: the kernel remembers who was the last to change them. */
int
ipc_fill(struct restart *r, struct built *b)
{
	const struct objects *o = &r->model.objects;
	int err = 0;

	for (size_t i = 0; i < o->nsems && err == 0; i++) {
		const struct sem_ref *sem = &o->sems[i];
		struct script s = {0};
		uint64_t at = script_data(&s, NULL, 0);

		for (size_t k = 0; k < sem->nvalues; k++) {
			uint16_t v = (uint16_t)sem->values[k];

			buf_put(&s.data, &v, sizeof(v));
		}
		script_add(&s, "semaphores", SYS_semctl, (uint64_t)sem->id, 0, SETALL, at);
		script_data_arg(&s, 3);
		err = built_run(b, &s);
	}
	return err;
}

void
ipc_late(const struct restart *r)
{
	const struct objects *o = &r->model.objects;

	for (size_t i = 0; i < o->nshms; i++)
		if (o->shms[i].sysv && o->shms[i].removed)
			shmctl((int)o->shms[i].id, IPC_RMID, NULL);
}
