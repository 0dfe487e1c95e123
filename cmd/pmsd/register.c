/*
 * A process says that it is there: one that is linked with libpms. Either it is of a job that is here already, or it becomes one.
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io.h"
#include "log.h"
#include "proc.h"
#include "server.h"

enum { DEPTH = 64 };

/* The job of this user that pid is of, itself or by its ancestors: the job's first process, or its keeper, who may not know yet which process it is. */
static const struct job *
job_of(const struct server *s, int64_t uid, pid_t pid)
{
	for (int depth = 0; pid > 1 && depth < DEPTH; depth++, pid = proc_parent(pid))
		for (size_t i = 0; i < s->njobs; i++) {
			const struct job *j = s->jobs[i];
			bool awaited = strcmp(j->r.state, "expected") == 0;

			if (j->r.uid != uid)
				continue;
			if ((j->keeper != NULL && j->keeper->pid == pid) || ((awaited || job_is_here(&j->r)) && j->r.pid == pid))
				return j;
		}
	return NULL;
}

/* In a child of a daemon of root: a process of this user. */
static bool
become(uid_t uid, const char *socket)
{
	const struct passwd *pw = getpwuid(uid);

	if (pw == NULL || initgroups(pw->pw_name, pw->pw_gid) < 0 || setresgid(pw->pw_gid, pw->pw_gid, pw->pw_gid) < 0 || setresuid(uid, uid, uid) < 0)
		return false;
	unsetenv("PMSD_STATE");
	unsetenv("XDG_STATE_HOME");
	return setenv("HOME", pw->pw_dir, 1) == 0 && setenv("PMSD_SOCKET", socket, 1) == 0;
}

static int
start_keeper(const struct server *s, const struct client *c, const char *id)
{
	char pid[16], *self = NULL;
	int err = read_link(AT_FDCWD, "/proc/self/exe", &self);
	pid_t child;

	if (err < 0)
		return err;
	snprintf(pid, sizeof(pid), "%d", c->pid);
	child = fork();
	if (child == 0) {
		child_begin();
		if (c->uid != (int64_t)geteuid() && !become((uid_t)c->uid, s->socket))
			_exit(126);
		execl(self, "pmsd", "adopt", id, pid, (char *)NULL);
		_exit(127);
	}
	free(self);
	return child < 0 ? -errno : 0;
}

void
do_register(struct server *s, struct client *c, char **w, int n)
{
	const struct job *j = c->pid > 0 ? job_of(s, c->uid, c->pid) : NULL;
	char id[ID_MAX];

	/* It says of which job it is, whose keeper may not have come yet. */
	if (j == NULL && n > 1 && place_is_job(w[1])) {
		const struct job *named = job_find(s, w[1]);

		if (named != NULL && named->r.uid == c->uid)
			store_event(s->store, w[1], "registered");
		client_say(c, "id", w[1], NULL);
		client_ok(c);
		return;
	}
	if (j != NULL) {
		store_event(s->store, j->r.id, "registered");
		client_say(c, "id", j->r.id, NULL);
		client_ok(c);
		return;
	}
	if (c->pid <= 0) {
		client_error(c, "a process that cannot be seen from here");
		return;
	}
	if (job_reserve_next(s, c, id) < 0)
		return;
	/* Before its keeper comes it may say so again, and so may its children. */
	job_find(s, id)->r.pid = c->pid;
	if (start_keeper(s, c, id) < 0) {
		client_error(c, "no keeper can be started");
		return;
	}
	store_event(s->store, id, "registered");
	client_say(c, "id", id, NULL);
	client_ok(c);
}
