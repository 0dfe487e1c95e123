/*
 * key: the file with the secret that both ends of a TLS connection have.
 */
#ifndef PMS_KEY_H
#define PMS_KEY_H

#include <stddef.h>

enum { KEY_MIN = 16, KEY_MAX = 4096 };

/*
 * What is in it, without the newline at its end; *len bytes. The caller wipes text. Returns 0, or a negative errno, logged: -EACCES if others can
 * read or write it, -EINVAL where it is too short or too long.
 */
int key_read(const char *path, unsigned char text[KEY_MAX + 1], size_t *len);
/* The same, to see whether it could be used. */
int key_check(const char *path);

#endif
