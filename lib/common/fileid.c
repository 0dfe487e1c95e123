#include "fileid.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "digest.h"
#include "elf_file.h"

enum { PIECE = 256 << 10, SAMPLE = 64 << 10 };

static int
add_range(struct digest *d, int fd, uint64_t at, uint64_t end)
{
	char *data = malloc(PIECE);
	int err = data == NULL ? -ENOMEM : 0;

	while (err == 0 && at < end) {
		ssize_t n = pread(fd, data, min_u64(PIECE, end - at), (off_t)at);

		if (n < 0)
			err = -errno;
		if (n <= 0)
			break;
		digest_add(d, data, (size_t)n);
		at += (uint64_t)n;
	}
	free(data);
	return err;
}

static int
hash_ranges(int fd, uint64_t first_end, uint64_t second, uint64_t end, char hex[DIGEST_HEX])
{
	struct digest *d = digest_new();
	int err = d == NULL ? -ENOMEM : add_range(d, fd, 0, first_end);

	if (err == 0)
		err = add_range(d, fd, second, end);
	if (err == 0)
		digest_hex(d, hex);
	digest_free(d);
	return err;
}

int
fileid_hash(int fd, char hex[33])
{
	return hash_ranges(fd, INT64_MAX, 0, 0, hex);
}

/* The first and the last 64 KiB of `size` bytes. */
static int
hash_sample(int fd, uint64_t size, char hex[DIGEST_HEX])
{
	uint64_t first = min_u64(SAMPLE, size);

	return hash_ranges(fd, first, max_u64(first, size > SAMPLE ? size - SAMPLE : 0), size, hex);
}

static int
keep(char **to, const char *text)
{
	free(*to);
	*to = strdup(text);
	return *to == NULL ? -ENOMEM : 0;
}

/* What was found out ahead. */
static struct known {
	struct stat st;
	char *build_id, *hash;
} *known;
static size_t nknown;

static bool
is_same_time(struct timespec a, struct timespec b)
{
	return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}

static const struct known *
find_known(const struct stat *st)
{
	for (size_t i = 0; i < nknown; i++) {
		const struct stat *k = &known[i].st;

		if (k->st_dev == st->st_dev && k->st_ino == st->st_ino && k->st_size == st->st_size &&
		    is_same_time(k->st_mtim, st->st_mtim) && is_same_time(k->st_ctim, st->st_ctim))
			return &known[i];
	}
	return NULL;
}

void
fileid_look_ahead(int fd)
{
	struct file_ref ref = {0};
	struct known *k;
	struct stat st;

	/* One that was changed just now may be changed again without another time. */
	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_ctim.tv_sec + 2 > time(NULL) || find_known(&st) != NULL)
		return;
	if (fileid_get(&ref, fd, FILEID_BUILD_ID | FILEID_HASH) == 0 && (k = ARRAY_ADD(known, nknown)) != NULL) {
		*k = (struct known){st, ref.build_id, ref.hash};
		return;
	}
	free(ref.build_id);
	free(ref.hash);
}

void
fileid_forget(void)
{
	for (size_t i = 0; i < nknown; i++) {
		free(known[i].build_id);
		free(known[i].hash);
	}
	free(known);
	known = NULL;
	nknown = 0;
}

/* As it was found out ahead. Returns 1, 0 if it was not, or -ENOMEM. */
static int
take_known(struct file_ref *ref, const struct stat *st)
{
	const struct known *k = find_known(st);
	int err = k != NULL && k->build_id != NULL ? keep(&ref->build_id, k->build_id) : 0;

	if (err == 0 && k != NULL && k->hash != NULL)
		err = keep(&ref->hash, k->hash);
	return err < 0 ? err : k != NULL;
}

int
fileid_get(struct file_ref *ref, int fd, int what)
{
	char hex[BUILD_ID_HEX];
	struct stat st;
	int err = 0;

	if (fstat(fd, &st) < 0)
		return -errno;
	ref->size = (uint64_t)st.st_size;
	ref->mode = st.st_mode;
	ref->mtime_ns = (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec;
	if (!S_ISREG(st.st_mode))
		return 0;
	if (what == (FILEID_BUILD_ID | FILEID_HASH) && (err = take_known(ref, &st)) != 0)
		return err < 0 ? err : 0;
	if (what & FILEID_BUILD_ID) {
		err = elf_build_id(fd, hex);
		if (err > 0)
			err = keep(&ref->build_id, hex);
	}
	if (err == 0 && (what & FILEID_HASH) && ref->build_id == NULL) {
		err = fileid_hash(fd, hex);
		if (err == 0)
			err = keep(&ref->hash, hex);
	}
	if (err == 0 && (what & FILEID_SAMPLE)) {
		err = hash_sample(fd, ref->size, hex);
		if (err == 0)
			err = keep(&ref->sample, hex);
	}
	return err;
}

int
fileid_compare_mapped(const struct file_ref *ref, int fd)
{
	char hex[BUILD_ID_HEX];
	struct stat st;
	int err;

	if (fstat(fd, &st) < 0)
		return -errno;
	if (!S_ISREG(st.st_mode))
		return FILE_DIFFERENT;
	if (ref->build_id != NULL) {
		err = elf_build_id(fd, hex);
		if (err < 0)
			return err;
		return err > 0 && strcmp(hex, ref->build_id) == 0 ? FILE_SAME : FILE_DIFFERENT;
	}
	if ((uint64_t)st.st_size != ref->size)
		return FILE_DIFFERENT;
	if (ref->hash == NULL)
		return FILE_DIFFERENT;
	err = fileid_hash(fd, hex);
	if (err < 0)
		return err;
	return strcmp(hex, ref->hash) == 0 ? FILE_SAME : FILE_DIFFERENT;
}
