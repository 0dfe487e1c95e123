/*
 * kind: one kind of kernel object behind a file descriptor each, saving and restoring side by
 * side in kind_NAME.c, and one row in kind.def. The first kind that matches takes an fd.
 */
#ifndef PMS_KIND_H
#define PMS_KIND_H

#include <sys/stat.h>

#include "call.h"
#include "coop.h"
#include "model.h"
#include "proc.h"
#include "report.h"
#include "sock.h"

/* An fd of one of the processes that are looked at together, looked at once. */
struct held {
	pid_t pid;      /* of the process, as we see it */
	int pidfd, proc, fd;
	struct coop *coop; /* the process is asked; borrowed; or NULL */
	char *link;     /* what /proc/PID/fd/N reads as; owned */
	struct stat st;
	struct proc_fdinfo info;
	int pty;        /* number of a pseudoterminal, for either end; -1 for everything else */
	int64_t ofd;    /* index; -1 until it is known */
};

/* A process of those that are looked at together. */
struct held_task {
	pid_t pid;
	int64_t task_pid;
};

/* A file that objects.files has already: mapped, executed, or open. */
struct known_file {
	dev_t dev;
	ino_t ino;
	int64_t ref;
	int fd; /* of ours, to read it by; -1 where it can be had otherwise; owned */
};

/* --external: what becomes of one pipe or socket whose other end is outside, or of all (ino 0). */
struct external_rule {
	bool socket;
	ino_t ino;
	int policy; /* enum external_policy */
};

/* What kinds learn once and need again. */
struct kind_shared {
	struct known_file *files;
	size_t nfiles;
	struct unix_socket *sockets; /* every one of the network namespace; owned */
	size_t nsockets;
	bool sockets_known;
	ino_t *outside; /* sockets that processes outside have: ascending; owned */
	size_t noutside;
	bool outside_known;
	struct netlock *netlock; /* of connections to others; NULL: none yet; ended by the caller */
	/* Index of the ofd that one of our own fds is, which is added where it is new; or a negative errno. */
	int64_t (*ofd_of)(void *ctx, int fd);
	void *ctx;
};

/* An fd of the process that is being looked at. */
struct kind_save {
	pid_t pid;      /* as this process sees it */
	int proc;       /* fd of /proc/PID */
	int pidfd;
	struct coop *coop; /* as in struct held */
	int fd;         /* its number there */
	const char *link; /* what /proc/PID/fd/N reads as */
	struct stat st;
	struct proc_fdinfo info;
	const char *object; /* "pid 12: fd 7", for messages */
	bool embed;         /* open files, too, are to be in the image */
	const struct held *held; /* every fd of every process */
	size_t nheld;
	const struct held_task *tasks; /* every process, also one that has ended */
	size_t ntasks;
	struct kind_shared *shared;
	const struct external_rule *rules;
	size_t nrules;
	bool look_only; /* ckpt --check: nothing of it is touched */
	bool stays;     /* the original goes on, or may: -c, -S */
	bool tcp_reset; /* --tcp=close */
	bool home;      /* all of them stay where they are */
	const char *image_id;
	int64_t elapsed_ns; /* since the times in the header */
	struct objects *objects;
	struct report *report;
};

/* Where an fd of the image comes from here. */
struct inherit {
	int image_fd, fd;
};

struct path_map {
	const char *from, *to;
};

struct kind_load {
	const struct objects *objects;
	int lowest;          /* the lowest number under which the program knows it */
	const int *contents; /* an fd for each file with a member, -1 for the others */
	int (*pipes)[2];     /* both ends of each pipe, -1 until it is made; the caller closes them */
	unsigned char *pipes_given; /* of each pipe, bits: whose end has been given to an ofd */
	int *sockets;        /* of each socket that is made, but not yet its ofd, else -1; the caller closes them */
	int *far;            /* of each socket: where to send what it is to receive, or -1; likewise */
	int *ptys;           /* of each pseudoterminal: the slave while it is filled, else -1; likewise */
	int *fds;            /* of each ofd that is open, else -1 */
	bool moved;          /* the original is there until END */
	int null;            /* an fd of /dev/null */
	/* A file had to make way for another of its name: told under which it is until then. Or NULL. */
	void (*set_aside)(void *ctx, const char *now, const char *before);
	const struct path_map *maps;
	size_t nmaps;
	const struct inherit *inherits;
	size_t ninherits;
	int stdio[3];        /* what takes the place of ends outside that it has as standard input, output and error; -1: /dev/null */
	bool tcp_reset;      /* --tcp=close */
	const char *image_id;
	struct netlock **netlock; /* as in struct kind_shared */
	bool check;          /* leave nothing behind */
	void (*created)(void *ctx, const char *path); /* told of files that were made, or NULL */
	void *ctx;
};

struct kind {
	const char *name;
	bool (*match)(const struct kind_save *s);
	/* Fill *ofd, whose flags and pos are set. Returns 0, or a negative errno, logged or reported. */
	int (*save)(struct kind_save *s, struct ofd *ofd);
	/* An open fd, close-on-exec, at any number; or a negative errno, logged. */
	int (*load)(const struct kind_load *l, const struct ofd *ofd);
	/* Each of the rest may be NULL. The original is about to end; fd: a copy of ours. */
	void (*leave)(const struct objects *o, const struct ofd *ofd, int fd);
	/* The n-th ofd that must be open before this one, or -1. */
	int64_t (*depends)(const struct objects *o, const struct ofd *ofd, size_t n);
	/* When all are open: what goes into it. Returns 0, or a negative errno, logged. */
	int (*fill)(const struct kind_load *l, const struct ofd *ofd, int fd);
	/* After END: what could not be had while the original was there. Returns 0, or a negative errno, logged. */
	int (*late)(const struct objects *o, const struct ofd *ofd, int fd, const int *fds, bool moved);
	/* After late() of all, when nothing is held back any more. Returns 0, or a negative errno, logged. */
	int (*go_on)(const struct objects *o, const struct ofd *ofd, int fd);
	/*
	 * Calls in a process that has it, before its fds have their numbers, when none below the stock is open;
	 * stock: where the fd of an ofd is meanwhile.
	 */
	void (*attach)(struct script *s, const struct objects *o, const struct ofd *ofd, uint64_t self,
	    uint64_t (*stock)(const void *ctx, int64_t ofd), const void *ctx);
	bool attach_everywhere; /* in every process, not in the first that has it alone */
	/* Calls at the very end in a process that has it as fd. */
	void (*arm)(struct script *s, const struct model *m, const struct ofd *ofd, uint64_t fd);
	/*
	 * When every ofd of the image is known, add what this one refers to. Returns 0, or a negative errno, logged or reported.
	 */
	int (*refer)(struct kind_save *s, struct ofd *ofd);
};

enum {
#define KIND(name) KIND_##name,
#include "kind.def"
#undef KIND
	KIND_COUNT
};

extern const struct kind *const kinds[KIND_COUNT];

/* The kind that takes this fd; there is always one (the last refuses). Its index in kinds. */
int kind_of(const struct kind_save *s);

/* For reading and writing, without waiting; -ESTALE where the path is something else, which is not touched. An fd. */
int kind_open_fifo(const char *path);

/* Is the path that its link shows still this file? */
bool kind_still_there(const struct kind_save *s);

/* The path as --map says. The caller frees; NULL where memory ran out. */
char *path_mapped(const struct path_map *maps, size_t n, const char *path);

/* The fd that --inherit names for this image fd, or -1. */
int inherited(const struct kind_load *l, int image_fd);

/* "127.0.0.1:80" */
const char *kind_inet_text(const struct bytes *address, char text[64]);

/* Is the other end of this socket, or of our own fd for it, a process outside? */
bool kind_unix_outside(const struct kind_save *s, int fd);
bool kind_inet_outside(const struct kind_save *s, int fd);
/* Has a process outside, that may be looked at, this very socket as well? */
bool kind_held_outside(const struct kind_save *s);
/* Is it a TCP connection to somebody outside of which --external says nothing? */
bool kind_tcp_takes(const struct kind_save *s, int fd);

/* The listening socket that takes connections to this address: index of its ofd, or -1. */
int64_t kind_inet_listener(const struct objects *o, const struct bytes *local);

/* Is the other end of this pipe held by one of the processes, or by nobody at all any more? */
bool pipe_is_inside(const struct kind_save *s);

void kind_shared_fini(struct kind_shared *shared);

/* Our own stdin, stdout or stderr (or /dev/null) for an fd below 3, else an error. An fd. */
int kind_external_stdio(const struct kind_load *l, const struct ofd *ofd);

/* fdinfo of it as text; the caller frees. Returns 0, or a negative errno. Silent. */
int kind_fdinfo(const struct kind_save *s, char **text);
/* The number behind a key such as "eventfd-count:", in this base; or 0, and false. */
bool kind_fdinfo_number(const char *text, const char *key, int base, uint64_t *value);

/* A copy of it: kind_get_fd() of a held one. */
int kind_held_fd(const struct held *h);

/*
 * Visit each ofd once, after those that it depends on (what goes round in a circle in some order). Ends at the first
 * negative value that visit returns, and returns it; or -ENOMEM.
 */
int kind_in_order(const struct objects *o, int (*visit)(void *ctx, size_t ofd), void *ctx);

/* Number of a pseudoterminal by the device of its slave, or -1; and is a device the one for masters? */
int kind_pty_number(dev_t rdev);
bool kind_is_ptmx(dev_t rdev);
/* The held master (or slave) of this number, or NULL. */
const struct held *kind_held_pty(const struct kind_save *s, bool master, int number);
/* A terminal with its master inside? */
bool kind_pty_inside(const struct kind_save *s);

/* Descriptor N of the process as one of ours (pidfd_getfd(2)). An fd, or a negative errno. Silent. */
int kind_get_fd(const struct kind_save *s);

#endif
