/*
 * kind: one kind of kernel object behind a file descriptor each, saving and restoring side by
 * side in kind_NAME.c, and one row in kind.def. The first kind that matches takes an fd.
 */
#ifndef PMS_KIND_H
#define PMS_KIND_H

#include <sys/stat.h>

#include "model.h"
#include "proc.h"
#include "report.h"

/* An fd of the process that is being looked at. */
struct kind_save {
	pid_t pid;      /* as this process sees it */
	int proc;       /* fd of /proc/PID */
	int pidfd;
	int fd;         /* its number there */
	const char *link; /* what /proc/PID/fd/N reads as */
	struct stat st;
	struct proc_fdinfo info;
	const char *object; /* "pid 12: fd 7", for messages */
	bool embed;         /* open files, too, are to be in the image */
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
	const struct path_map *maps;
	size_t nmaps;
	const struct inherit *inherits;
	size_t ninherits;
	bool stdin_taken;    /* restart reads the image from its stdin, */
	bool stdout_taken;   /* and its stdout is a channel: not for the program */
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

/* The path as --map says. The caller frees; NULL where memory ran out. */
char *path_mapped(const struct path_map *maps, size_t n, const char *path);

/* The fd that --inherit names for this image fd, or -1. */
int inherited(const struct kind_load *l, int image_fd);

/* Does the process hold the other end of this pipe itself? */
bool pipe_is_inside(const struct kind_save *s);

/* Our own stdin, stdout or stderr (or /dev/null) for an fd below 3, else an error. An fd. */
int kind_external_stdio(const struct kind_load *l, const struct ofd *ofd);

/* Descriptor N of the process as one of ours (pidfd_getfd(2)). An fd, or a negative errno. Silent. */
int kind_get_fd(const struct kind_save *s);

#endif
