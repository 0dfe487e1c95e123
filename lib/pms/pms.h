/*
 * libpms: a program that can be moved even where nobody may trace it, and that knows when it is.
 *
 *     int pms_main(int argc, char **argv) { ... }      instead of main
 *     cc job.c -lpms                                   (pkg-config --libs pms)
 *
 * A program that defines pms_main() instead of main() tells the daemon of this machine, pmsd(1), of itself when it starts, and is one of its jobs from
 * then on; where no daemon is, it simply runs. When it is to be moved it executes, in a handler of signal PMS_SIGNAL, the system calls that
 * ckpt(1) asks it for, in place of being stopped and looked at by ptrace(2). What comes of it is an image as of any other process.
 *
 * All functions may be called by any thread. See pms(3).
 */
#ifndef PMS_H
#define PMS_H

#include <stdio.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The signal that asks the program, SIGURG; it must not be blocked, and must not be given another handler. */
#define PMS_SIGNAL 23

/* What the program begins with; its result is the exit status. Defined by the program. */
int pms_main(int argc, char **argv);

/*
 * For a program that has a main() of its own: from here on it can be asked, and a daemon that is here knows of it. Returns 0, or -1 with errno: it
 * cannot be asked (a kernel without memfd_create(2), or another handler for PMS_SIGNAL). Does nothing the second time.
 */
int pms_init(void);

/*
 * As open(2), close(2), fopen(3), fclose(3), with the same results and errno: a moved program has the same files open, at the same positions. The fd has
 * close-on-exec only where flags say so.
 */
int pms_open(const char *path, int flags, ...);
int pms_close(int fd);
FILE *pms_fopen(const char *path, const char *mode);
int pms_fclose(FILE *file);

/*
 * Write an image of this process and its descendants to path (its mode is 0600; an existing file is replaced when the image is complete), and go on. It
 * takes ckpt(1), which is looked for in PATH. Returns 0 here; 1 in a process that was made of that image; -1 with errno, and nothing
 * at path: EBUSY (between pms_disable() and pms_enable()), ENOENT (no ckpt), EIO (ckpt has said on standard error why).
 */
int pms_checkpoint(const char *path);

/*
 * Between these the process is not saved or moved: whoever asks waits, or gives up with status 75. They nest, and count for the process, not for the thread. After
 * pms_disable() has returned nothing is under way. For a few milliseconds, not for long: a host that is to be drained waits for you.
 */
void pms_disable(void);
void pms_enable(void);

/*
 * Called in the signal handler of the thread that answers: before, while the other threads still run; after, while they stand. restored is 1 in the process that
 * was made of the image, else 0. Only async-signal-safe functions may be called (signal-safety(7)). The befores are called in the
 * reverse order, the afters in the order in which they were registered. Either may be NULL; ctx is handed on. Returns 0, or -1 with ENOMEM: there are PMS_CALLBACKS_MAX already.
 */
#define PMS_CALLBACKS_MAX 32
int pms_callbacks(void (*before)(void *ctx), void (*after)(void *ctx, int restored), void *ctx);

#ifdef __cplusplus
}
#endif

#endif
