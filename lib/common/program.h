/*
 * program: the other programs of pms.
 */
#ifndef PMS_PROGRAM_H
#define PMS_PROGRAM_H

/* The one that stands beside this program, or in PATH; the caller frees *path. Returns 0, -ENOENT, or -ENOMEM. Silent. */
int program_find(const char *name, char **path);

#endif
