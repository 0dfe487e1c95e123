/*
 * outside: what the first process of new namespaces tells the restart that waits outside of them: one message each, 'P' which process it will
 * be, 'R' that it runs (with a pidfd), 'S' that it has been stopped, 'E' its exit status where others run on.
 */
#ifndef PMS_OUTSIDE_H
#define PMS_OUTSIDE_H

/* pidfd is passed on where it is not -1; borrowed. Returns 0, or a negative errno. Silent. */
int outside_tell(int fd, char what, int status, int pidfd);

#endif
