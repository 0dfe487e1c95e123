/* Objects of System V: shared memory, semaphores, message queues. */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/wait.h>
#include <unistd.h>

#include "victim.h"

struct message {
	long type;
	char text[64];
};

static char *segment, *removed;
static int segment_id, sems, queue, empty, key;
static pid_t waiter;

/* Adds what it may take from semaphore 1 to the segment, and says so through a queue. */
static void
wait_and_tell(void)
{
	struct sembuf down = {1, -1, 0};
	struct message m = {1, "taken"};

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;) {
		must(semop(sems, &down, 1), "semop");
		segment[100]++;
		must(msgsnd(empty, &m, 6, 0), "msgsnd");
	}
}

static void
sysv_make(void)
{
	struct message m = {7, "seven"};
	struct sembuf up = {0, 5, 0};
	int id;

	key = 0x706d0000 + 2 * getpid(); /* as tests/bats/common.bash knows them */
	segment_id = must(shmget(key, 10000, IPC_CREAT | IPC_EXCL | 0600), "shmget");
	segment = shmat(segment_id, NULL, 0);
	memset(segment, 's', 10000);
	segment[100] = 0;
	id = must(shmget(IPC_PRIVATE, 4096, 0600), "shmget");
	removed = shmat(id, NULL, 0);
	strcpy(removed, "removed");
	shmctl(id, IPC_RMID, NULL);
	sems = must(semget(key, 3, IPC_CREAT | IPC_EXCL | 0600), "semget");
	must(semop(sems, &up, 1), "semop");
	queue = must(msgget(key, IPC_CREAT | IPC_EXCL | 0600), "msgget");
	empty = must(msgget(key + 1, IPC_CREAT | IPC_EXCL | 0600), "msgget");
	must(msgsnd(queue, &m, 6, 0), "msgsnd");
	m = (struct message){3, ""};
	must(msgsnd(queue, &m, 0, 0), "msgsnd");
	m = (struct message){7, "again"};
	must(msgsnd(queue, &m, sizeof(m.text), 0), "msgsnd");
	waiter = fork();
	if (waiter == 0)
		wait_and_tell();
}

static void
expect(long want, long type, const char *text, ssize_t len)
{
	struct message m = {0};

	SAME(msgrcv(queue, &m, sizeof(m.text), want, IPC_NOWAIT), len);
	SAME(m.type, type);
	SAME(strcmp(m.text, text), 0);
	must(msgsnd(queue, &m, (size_t)len, 0), "msgsnd"); /* three turns: as before */
}

static void
sysv_check(void)
{
	struct sembuf up = {1, 1, 0};
	char before = segment[100];
	struct message m;
	struct shmid_ds ds;

	SAME(shmget(key, 0, 0), segment_id);
	SAME(shmctl(segment_id, IPC_STAT, &ds), 0);
	SAME(ds.shm_segsz, 10000);
	SAME(ds.shm_nattch, 2);
	SAME(segment[9999], 's');
	SAME(strcmp(removed, "removed"), 0);
	SAME(semget(key, 0, 0), sems);
	SAME(semctl(sems, 0, GETVAL), 5);
	SAME(semctl(sems, 1, GETVAL), 0);
	SAME(semctl(sems, 0, GETPID), getpid());
	SAME(semop(sems, &up, 1), 0);
	SAME(msgrcv(empty, &m, sizeof(m.text), 0, 0), 6);
	SAME(segment[100], before + 1);
	SAME(msgget(key, 0), queue);
	expect(0, 7, "seven", 6);
	expect(0, 3, "", 0);
	expect(0, 7, "again", sizeof(m.text));
}

const struct maker sysv_makers[] = {{"sysv", sysv_make, sysv_check}, {0}};
