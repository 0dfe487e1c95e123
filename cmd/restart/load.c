/*
 * Where the image comes from, and its first members, checked.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "cpu.h"
#include "digest.h"
#include "elf_file.h"
#include "fault.h"
#include "io.h"
#include "log.h"
#include "model_check.h"
#include "record.h"
#include "restart.h"

/* --- bytes */

static ssize_t
read_source(void *ctx, void *data, size_t len)
{
	struct source *s = ctx;
	ssize_t n;

	if (s->is_channel)
		return channel_read_data(&s->channel, data, len);
	if (s->npeek > 0) {
		n = (ssize_t)min_u64(len, s->npeek);
		memcpy(data, s->peek, (size_t)n);
		s->npeek -= (size_t)n;
		memmove(s->peek, s->peek + n, s->npeek);
	} else {
		/* Past the deadline the stream counts as ended. */
		struct pollfd p = {s->fd, POLLIN, 0};

		if (s->deadline_ms != 0 && poll(&p, 1, (int)max_i64(0, s->deadline_ms - now_ms())) == 0)
			return 0;
		do
			n = read(s->fd, data, len);
		while (n < 0 && errno == EINTR);
	}
	if (n < 0)
		return fail_errno("%s", s->name);
	s->bytes += (uint64_t)n;
	return n;
}

/* The first bytes of a pipe say whether it is one way or a channel. */
static int
greet(struct source *s)
{
	unsigned char head[MSG_HEADER], body[64];
	struct buf hello = {0};
	struct msg_header h;
	int err;
	ssize_t n = read_full(s->fd, s->peek, 4);

	if (n < 0)
		return fail((int)-n, "%s: %s", s->name, strerror((int)-n));
	s->npeek = (size_t)n;
	if (!msg_is_hello(s->peek, s->npeek))
		return 0;
	s->is_channel = true;
	channel_init(&s->channel, SIDE_RESTART, s->fd, STDOUT_FILENO, "ckpt");
	memcpy(head, s->peek, 4);
	if (read_full(s->fd, head + 4, MSG_HEADER - 4) != MSG_HEADER - 4 ||
	    msg_get_header(&h, head) < 0 || msg_step(&s->channel.state, SIDE_CKPT, &h) < 0 ||
	    read_full(s->fd, body, h.length) != (ssize_t)h.length || msg_get_hello(body, h.length) < 0)
		return fail(EPROTO, "%s: does not speak this version of the protocol", s->name);
	msg_put_hello(&hello);
	err = hello.failed ? -ENOMEM
			   : channel_send(&s->channel, MSG_WELCOME, hello.data, hello.len);
	buf_fini(&hello);
	return err;
}

static int
open_self(struct source *s)
{
	uint64_t end;

	s->name = "/proc/self/exe";
	s->fd = open(s->name, O_RDONLY | O_CLOEXEC);
	end = s->fd < 0 ? 0 : elf_file_end(s->fd);
	if (end == 0 || lseek(s->fd, (off_t)end, SEEK_SET) < 0)
		return fail_errno("%s", s->name);
	return 0;
}

int
load_open(struct restart *r)
{
	struct source *s = &r->source;
	struct stat st;
	int err = 0;

	if (r->opt.self) {
		err = open_self(s);
	} else if (r->opt.image != NULL) {
		s->name = r->opt.image;
		s->fd = open(s->name, O_RDONLY | O_CLOEXEC);
		if (s->fd < 0)
			return fail_errno("%s", s->name);
	} else {
		s->name = "stdin";
		s->is_stdin = true;
		if (isatty(STDIN_FILENO))
			return fail(EINVAL, "an image does not come from a terminal: name a FILE, or redirect stdin");
		s->fd = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 3);
		if (s->fd < 0)
			return fail_errno("stdin");
		err = greet(s);
	}
	if (err < 0)
		return err;
	if (fstat(s->fd, &st) == 0 && S_ISREG(st.st_mode))
		s->total = (uint64_t)st.st_size;
	else if (fstat(s->fd, &st) == 0 && S_ISDIR(st.st_mode))
		return fail(EISDIR, "%s: is a directory", s->name);
	posix_fadvise(s->fd, 0, 0, POSIX_FADV_SEQUENTIAL);
	fcntl(s->fd, F_SETPIPE_SZ, 1 << 20);
	r->reader = image_reader_new(read_source, s, s->name);
	return r->reader == NULL ? fail(ENOMEM, "out of memory") : 0;
}

bool
load_is_move(const struct restart *r)
{
	return r->source.is_channel || lazy_is_elsewhere(r) || image_wants_end(r->reader);
}

/* --- members */

static int
get_record(struct restart *r, const struct record *rec, void *st)
{
	r->text_bytes += r->member_size;
	if (r->text_bytes > 4ULL * IMAGE_TEXT_MAX)
		return fail(EBADMSG, "%s: bad image: more text than any has", r->source.name);
	return image_get_record(r->reader, rec, st);
}

static int
next_is(struct restart *r, const char *name)
{
	int err = image_next(r->reader, r->member, &r->member_size);

	if (err < 0)
		return err;
	if (err == 0 || strcmp(r->member, name) != 0)
		return fail(EBADMSG, "%s: bad image: %s is not where it belongs", r->source.name, name);
	return 0;
}

static int
get_header(struct restart *r)
{
	struct image_header *h = &r->model.header;
	char why[128];
	const char *feature;
	int err = get_record(r, &record_header, h);

	if (err < 0)
		return err;
	if (h->version != IMAGE_VERSION)
		return fail(EBADMSG, "%s: an image of format version %" PRIu64 "; this program reads %d",
		    r->source.name, h->version, IMAGE_VERSION);
	if (header_check(h, why) < 0)
		return fail(EBADMSG, "%s: bad image: %s", r->source.name, why);
	if (strcmp(h->arch, ARCH_NAME) != 0 || h->page_bytes != PAGE_BYTES)
		return fail(EBADMSG, "%s: an image of a process on %s with pages of %" PRIu64
		    " bytes; this is %s with %llu", r->source.name, h->arch, h->page_bytes, ARCH_NAME,
		    PAGE_BYTES);
	feature = header_unknown_feature(h);
	if (feature != NULL)
		return fail(EBADMSG, "%s: the image needs \"%s\", which this version does not know",
		    r->source.name, feature);
	return 0;
}

/* Zeroes take no memory, however many there are. */
static int
take_content(void *ctx, const void *data, size_t len)
{
	int err = write_sparse(*(int *)ctx, data, len);

	return err < 0 ? fail(-err, "embedded file: %s", strerror(-err)) : 0;
}

/* What embedded files may take in memory. */
static uint64_t
memory_available(void)
{
	char *text;
	const char *p;
	unsigned long long kib = 0;

	if (read_file(AT_FDCWD, "/proc/meminfo", &text) < 0)
		return UINT64_MAX;
	p = strstr(text, "MemAvailable:");
	if (p == NULL || sscanf(p, "MemAvailable: %llu", &kib) != 1)
		kib = UINT64_MAX >> 10;
	free(text);
	return kib << 10;
}

/* Is it open, not only mapped? */
static bool
is_open_file(const struct objects *o, size_t i)
{
	for (size_t k = 0; k < o->nofds; k++)
		if (o->ofds[k].kind == KIND_gone && o->ofds[k].ref == (int64_t)i)
			return true;
	return false;
}

/*
 * A file without a name that a program has open is one again: where it was, under its name for a moment if that is
 * free, else beside it. An fd, or -1.
 */
static int
nameless_file(const struct restart *r, const struct file_ref *f)
{
	char *path = path_mapped(r->opt.maps, r->opt.nmaps, f->path), *slash;
	int fd = -1;

	if (path == NULL || strncmp(path, "/memfd:", 7) == 0) {
		free(path);
		return -1;
	}
	fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd >= 0)
		unlink(path);
	slash = strrchr(path, '/');
	slash[slash == path ? 1 : 0] = '\0';
	if (fd < 0)
		fd = open(path, O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);
	free(path);
	return fd;
}

/* Embedded files wait where they will be used, or in memory, each in a memfd of its name. */
static int
content_place(struct restart *r, size_t i)
{
	const struct file_ref *f = &r->model.objects.files[i];
	const char *slash = strrchr(f->path, '/');
	const char *name = strncmp(f->path, "/memfd:", 7) == 0 ? f->path + 7 : slash + 1;
	char short_name[201];
	int fd = f->gone && is_open_file(&r->model.objects, i) && !r->opt.check ? nameless_file(r, f) : -1;

	if (fd >= 0)
		return fd;
	if (r->member_size > memory_available())
		return fail(ENOMEM, "no memory for %s, which is in the image with %" PRIu64 " MB", f->path,
		    r->member_size >> 20);
	snprintf(short_name, sizeof(short_name), "%.200s", name);
	fd = memfd_create(short_name, MFD_CLOEXEC | (f->seals != 0 ? MFD_ALLOW_SEALING : 0));
	if (fd >= 0)
		fchmod(fd, 0700);
	return fd < 0 ? fail_errno("memory for %s", f->path) : fd;
}

static int
get_file(struct restart *r)
{
	const struct objects *o = &r->model.objects;
	size_t i = 0;

	while (i < o->nfiles &&
	    (o->files[i].member == NULL || strcmp(o->files[i].member, r->member) != 0))
		i++;
	if (i == o->nfiles || r->open.contents[i] >= 0 || r->member_size != o->files[i].size)
		return fail(EBADMSG, "%s: bad image: %s belongs to nothing", r->source.name, r->member);
	r->open.contents[i] = content_place(r, i);
	if (r->open.contents[i] < 0)
		return r->open.contents[i];
	if (ftruncate(r->open.contents[i], (off_t)r->member_size) < 0)
		return fail_errno("room for %s", o->files[i].path);
	return image_get_content(r->reader, take_content, &r->open.contents[i]);
}

/* The first task that names this member; the others have the same. */
static size_t
vdso_index(const struct restart *r, const char *member)
{
	size_t i = 0;

	while (i < r->model.header.ntasks && (r->model.tasks[i].mm.vdso == 0 ||
		strcmp(r->model.tasks[i].mm.vdso_member, member) != 0))
		i++;
	return i;
}

const unsigned char *
load_vdso(const struct restart *r, const struct mm_layout *mm)
{
	return r->vdsos[vdso_index(r, mm->vdso_member)];
}

static int
get_vdso(struct restart *r)
{
	size_t i = vdso_index(r, r->member), len;
	char hex[DIGEST_HEX];
	int err;

	if (i == r->model.header.ntasks || r->vdsos[i] != NULL)
		return fail(EBADMSG, "%s: bad image: %s belongs to nothing", r->source.name, r->member);
	err = image_get(r->reader, (char **)&r->vdsos[i], &len);
	if (err < 0)
		return err;
	digest_once(r->vdsos[i], len, hex);
	for (size_t k = i; k < r->model.header.ntasks; k++) {
		const struct mm_layout *mm = &r->model.tasks[k].mm;

		if (mm->vdso != 0 && strcmp(mm->vdso_member, r->member) == 0 &&
		    (len != mm->vdso_size || strcmp(hex, mm->vdso_hash) != 0))
			return fail(EBADMSG, "%s: bad image: its vDSO is not what it says", r->source.name);
	}
	return 0;
}

static int
check_model(struct restart *r)
{
	const struct objects *o = &r->model.objects;
	char why[128];

	if (model_check(&r->model, why) < 0)
		return fail(EBADMSG, "%s: bad image: %s", r->source.name, why);
	r->open.contents = files_none(o->nfiles);
	r->open.mapped = files_none(o->nfiles);
	r->open.shms = files_none(o->nshms);
	r->open.ofds = files_none(o->nofds);
	r->open.programs = files_none(o->nfiles);
	r->vdsos = calloc(r->model.header.ntasks, sizeof(*r->vdsos));
	r->built = calloc(r->model.header.ntasks, sizeof(*r->built));
	if (r->vdsos == NULL || r->built == NULL || r->open.programs == NULL)
		return fail(ENOMEM, "out of memory");
	if (r->open.contents == NULL || r->open.mapped == NULL || r->open.shms == NULL ||
	    r->open.ofds == NULL)
		return fail(ENOMEM, "out of memory");
	return 0;
}

static int
check_complete(struct restart *r)
{
	const struct objects *o = &r->model.objects;

	for (size_t i = 0; i < r->model.header.ntasks; i++)
		if (r->model.tasks[i].mm.vdso != 0 && load_vdso(r, &r->model.tasks[i].mm) == NULL)
			return fail(EBADMSG, "%s: bad image: its vDSO is missing", r->source.name);
	for (size_t i = 0; i < o->nfiles; i++)
		if (o->files[i].member != NULL && r->open.contents[i] < 0)
			return fail(EBADMSG, "%s: bad image: %s is missing", r->source.name,
			    o->files[i].member);
	return 0;
}

static int
get_tasks(struct restart *r)
{
	const struct image_header *h = &r->model.header;
	char name[IMAGE_NAME_MAX];
	int err = 0;

	r->model.tasks = calloc(h->ntasks, sizeof(*r->model.tasks));
	if (r->model.tasks == NULL)
		return fail(ENOMEM, "out of memory");
	for (size_t i = 0; i < h->ntasks && err == 0; i++) {
		snprintf(name, sizeof(name), "task/%" PRId64 ".json", h->tasks[i]);
		err = next_is(r, name);
		if (err == 0)
			err = get_record(r, &record_task, &r->model.tasks[i]);
	}
	return err;
}

/* What is text, the header being at hand. */
static int
get_text(struct restart *r)
{
	int err = get_header(r);

	if (err == 0)
		err = next_is(r, "objects.json");
	if (err == 0)
		err = get_record(r, &record_objects, &r->model.objects);
	if (err == 0)
		err = get_tasks(r);
	return err < 0 ? err : check_model(r);
}

/* What is not, up to the first pages, whose member is then at hand. */
static int
get_contents(struct restart *r)
{
	int err = 0;

	while (err == 0) {
		err = image_next(r->reader, r->member, &r->member_size);
		if (err == 0) {
			r->member[0] = '\0'; /* an image without pages */
			break;
		}
		if (err < 0)
			return err;
		if (strncmp(r->member, "file/", 5) == 0)
			err = get_file(r);
		else if (strncmp(r->member, "vdso/", 5) == 0)
			err = get_vdso(r);
		else if (strncmp(r->member, "pages/", 6) == 0)
			break;
		else
			err = fail(EBADMSG, "%s: bad image: %s is not where it belongs", r->source.name,
			    r->member);
	}
	err = err > 0 ? 0 : err;
	return err < 0 ? err : check_complete(r);
}

int
load_metadata(struct restart *r)
{
	int err = next_is(r, "header.json");

	if (err == 0)
		err = get_text(r);
	if (err < 0)
		return err;
	if (!r->model.header.rounds)
		err = get_contents(r);
	else if (image_next(r->reader, r->member, &r->member_size) <= 0)
		err = fail(EBADMSG, "%s: bad image: it ends in front of its rounds", r->source.name);
	return err < 0 ? err : fault(FAULT_read_header);
}

/* What was known when the rounds began. */
static void
forget(struct restart *r)
{
	files_close(r);
	free(r->vdsos);
	free(r->built);
	r->vdsos = NULL;
	r->built = NULL;
	for (size_t i = 0; i < r->model.header.ntasks; i++)
		record_free(&record_task, &r->model.tasks[i]);
	free(r->model.tasks);
	r->model.tasks = NULL;
	record_free(&record_objects, &r->model.objects);
	record_free(&record_header, &r->model.header);
	r->text_bytes = 0;
}

int
load_again(struct restart *r)
{
	int err;

	forget(r);
	if (strcmp(r->member, "header.json") != 0)
		return fail(EBADMSG, "%s: bad image: %s is not where it belongs", r->source.name, r->member);
	err = get_text(r);
	if (err == 0 && (r->model.header.rounds || r->model.header.pages != NULL || r->model.header.home != NULL))
		err = fail(EBADMSG, "%s: bad image: more follows its rounds than may", r->source.name);
	return err < 0 ? err : get_contents(r);
}

/* --- this machine */

int
load_host_check(struct restart *r)
{
	const struct image_header *h = &r->model.header;
	struct cpu_id here;
	const char *missing;
	int err = cpu_identify(&here);

	if (err < 0)
		return fail(-err, "/proc/cpuinfo: %s", strerror(-err));
	missing = cpu_missing(&h->cpu, &here);
	if (r->opt.cpu_force) {
		if (missing != NULL)
			note("this CPU lacks %s, which the program may use", missing);
	} else if (missing != NULL) {
		err = fail(ENOTSUP, "this CPU lacks %s, which the program may use (--cpu=force goes on "
		    "all the same)", missing);
	} else if (h->cpu.xcr0 != here.xcr0 || h->cpu.xsave_size != here.xsave_size) {
		err = fail(ENOTSUP, "this CPU saves other registers (XCR0 %#" PRIx64 " instead of %#" PRIx64
		    "), for which the program has reserved no room (--cpu=force goes on all the same)",
		    here.xcr0, h->cpu.xcr0);
	}
	cpu_fini(&here);
	return err;
}
