/*
 * elf_file: the few things that pms wants to know of an ELF file. Every offset in it is hostile.
 */
#ifndef PMS_ELF_FILE_H
#define PMS_ELF_FILE_H

#include "base.h"

#define BUILD_ID_HEX 129

/*
 * Build-id of the ELF file fd, in hex. Returns 1, 0 where it has none or is no ELF file, or
 * a negative errno. Silent.
 */
int elf_build_id(int fd, char hex[BUILD_ID_HEX]);

/* Where the last byte is that the ELF headers account for. 0 where fd is no ELF file. */
uint64_t elf_file_end(int fd);

/*
 * Its program interpreter: where in the file its path is, and how many bytes there are for it, a NUL included.
 * Returns 1, 0 where it has none, -ENOEXEC where fd is no ELF file. Silent.
 */
int elf_interpreter(int fd, uint64_t *at, uint64_t *room);

/*
 * The dynamic symbols of an ELF file in memory, as it is loaded (a vDSO): gives each function's
 * name and offset to see(). Returns how many there were, or -EBADMSG. Pure.
 */
typedef void elf_see(void *ctx, const char *name, uint64_t offset, uint64_t size);
int elf_functions(const unsigned char *image, size_t len, elf_see *see, void *ctx);

#endif
