/*
 * ckpt --merge: an image that has some of its pages in parents becomes whole, with the identity that it has, so that it stays the parent of its children.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "chain.h"
#include "ckpt.h"
#include "elf_file.h"
#include "io.h"
#include "log.h"
#include "record.h"

struct merging {
	struct page_source source; /* first */
	const char *path;
	int fd;
	struct image_reader *from;
	struct image_writer *to;
	struct model model;
	struct page_runs *runs; /* of each task: its own */
	struct chain_reader *reader;
	pthread_mutex_t lock; /* of the reader */
	int64_t task; /* whose pages are put */
};

/* --- pages */

static int
read_chain(struct page_source *s, const struct page_run *runs, size_t nruns, unsigned char *out)
{
	struct merging *m = (struct merging *)s;
	int err = 1;

	pthread_mutex_lock(&m->lock);
	for (size_t i = 0; i < nruns && err > 0; i++) {
		taddr end = runs[i].addr + runs[i].npages * PAGE_BYTES;

		for (taddr at = runs[i].addr; at < end && err > 0;) {
			const unsigned char *content;
			uint64_t n;

			err = chain_find(m->reader, m->task, at, end, &content, &n);
			if (err <= 0)
				break;
			memcpy(out, content, n * PAGE_BYTES);
			at += n * PAGE_BYTES;
			out += n * PAGE_BYTES;
		}
	}
	pthread_mutex_unlock(&m->lock);
	return err > 0 ? 0 : err == 0 ? fail(EBADMSG, "%s: bad image: its parents lack memory of pid %" PRId64, m->path, m->task) : err;
}

static bool
keep_all(struct page_source *s, taddr addr, const unsigned char *page)
{
	(void)s, (void)addr, (void)page;
	return true;
}

static int
check_interrupt(void *ctx, uint64_t done, uint64_t all)
{
	const struct merging *m = ctx;

	(void)done, (void)all;
	return interrupted() ? fail(EINTR, "interrupted; %s is as it was", m->path) : 0;
}

/* Its own pages and those of its parents, which do not overlap, in the order of addresses. */
static int
put_pages(struct merging *m, const struct page_range *earlier, size_t n, const struct page_runs *own)
{
	struct page_runs all = {0};
	int err = 0;

	for (size_t i = 0, k = 0; (i < own->n || k < n) && err == 0;)
		if (k == n || (i < own->n && own->run[i].addr < earlier[k].start)) {
			err = page_runs_add(&all, own->run[i].addr, own->run[i].npages);
			i++;
		} else {
			err = page_runs_add(&all, earlier[k].start, (earlier[k].end - earlier[k].start) / PAGE_BYTES);
			k++;
		}
	if (err == 0 && all.n > 0)
		err = image_put_pages(m->to, m->task, &all, &m->source, check_interrupt, m);
	page_runs_fini(&all);
	return err;
}

/* --- all else */

static ssize_t
read_fd(void *ctx, void *data, size_t len)
{
	const struct merging *m = ctx;
	ssize_t n;

	do
		n = read(m->fd, data, len);
	while (n < 0 && errno == EINTR);
	return n < 0 ? fail_errno("%s", m->path) : n;
}

static int
write_content(void *ctx, const void *data, size_t len)
{
	int err = write_sparse(*(int *)ctx, data, len);

	return err < 0 ? fail(-err, "memory: %s", strerror(-err)) : 0;
}

static int
read_content(void *ctx, uint64_t offset, void *data, size_t len)
{
	return pread(*(int *)ctx, data, len, (off_t)offset) == (ssize_t)len ? 0 : fail(EIO, "memory: is shorter than it was");
}

/* The member at hand as it is. */
static int
copy_member(struct merging *m, const char *name, uint64_t size)
{
	int fd = memfd_create("member", MFD_CLOEXEC);
	int err = fd < 0 || ftruncate(fd, (off_t)size) < 0 ? fail_errno("memory") : image_get_content(m->from, write_content, &fd);

	if (err == 0)
		err = image_put_content(m->to, name, size, read_content, &fd);
	close_fd(&fd);
	return err;
}

/* A chunk: which pages it has. */
static int
note_chunk(struct merging *m, const char *name)
{
	int64_t task = strtoll(name + strlen("pages/"), NULL, 10);
	struct page_run runs[CHUNK_PAGES];
	const unsigned char *data;
	uint64_t npages;
	size_t n, len, t = 0;
	int err = image_get_chunk(m->from, runs, &n, &npages);

	while (t < m->model.header.ntasks && m->model.header.tasks[t] != task)
		t++;
	if (err == 0 && t == m->model.header.ntasks)
		err = fail(EBADMSG, "%s: bad image: %s belongs to nobody", m->path, name);
	for (size_t i = 0; i < n && err == 0; i++)
		err = page_runs_add(&m->runs[t], runs[i].addr, runs[i].npages);
	do
		err = err < 0 ? err : image_chunk_data(m->from, &data, &len);
	while (err == 0 && data != NULL);
	return err;
}

static int
put(struct merging *m, const char *name, const struct record *rec, const void *st)
{
	size_t len;
	char *text = record_to_text(rec, st, &len);
	int err = text == NULL ? fail(ENOMEM, "out of memory") : image_put(m->to, name, text, len);

	free(text);
	return err;
}

/* It has no parent any more. */
static int
copy_header(struct merging *m)
{
	struct image_header *h = &m->model.header;
	size_t n = 0;
	int err = image_get_record(m->from, &record_header, h);

	if (err < 0)
		return err;
	free(h->parent);
	h->parent = NULL;
	for (size_t i = 0; i < h->nfeatures; i++)
		if (strcmp(h->features[i], "parent") != 0)
			h->features[n++] = h->features[i];
		else
			free(h->features[i]);
	h->nfeatures = n;
	m->model.tasks = calloc(h->ntasks + 1, sizeof(*m->model.tasks));
	m->runs = calloc(h->ntasks + 1, sizeof(*m->runs));
	return m->model.tasks == NULL || m->runs == NULL ? fail(ENOMEM, "out of memory") : put(m, "header.json", &record_header, h);
}

static int
copy_task(struct merging *m, const char *name, size_t i)
{
	struct task *t = &m->model.tasks[i];
	size_t n;
	int err = i < m->model.header.ntasks ? image_get_record(m->from, &record_task, t) : fail(EBADMSG, "%s: bad image: more tasks than it says", m->path);

	if (err < 0)
		return err;
	n = t->nearlier;
	t->nearlier = 0;
	err = put(m, name, &record_task, t);
	t->nearlier = n;
	return err;
}

static int
copy_all(struct merging *m)
{
	char name[IMAGE_NAME_MAX];
	uint64_t size;
	size_t ntasks = 0;
	int err = 0;

	while (err == 0 && (err = image_next(m->from, name, &size)) > 0)
		if (m->model.tasks == NULL)
			err = strcmp(name, "header.json") == 0 ? copy_header(m) : fail(EBADMSG, "%s: bad image: it does not begin with its header", m->path);
		else if (strncmp(name, "task/", 5) == 0)
			err = copy_task(m, name, ntasks++);
		else if (strncmp(name, "pages/", 6) == 0)
			err = note_chunk(m, name);
		else
			err = copy_member(m, name, size);
	for (size_t i = 0; i < m->model.header.ntasks && err == 0; i++) {
		m->task = m->model.header.tasks[i];
		err = put_pages(m, m->model.tasks[i].earlier, m->model.tasks[i].nearlier, &m->runs[i]);
	}
	return err < 0 ? err : image_finish(m->to);
}

static void
merging_fini(struct merging *m)
{
	size_t n = m->model.header.ntasks;

	for (size_t i = 0; m->model.tasks != NULL && i < n; i++)
		record_free(&record_task, &m->model.tasks[i]);
	for (size_t i = 0; m->runs != NULL && i < n; i++)
		page_runs_fini(&m->runs[i]);
	free(m->model.tasks);
	free(m->runs);
	record_free(&record_header, &m->model.header);
	image_reader_free(m->from);
	image_writer_free(m->to);
	chain_reader_free(m->reader);
	close_fd(&m->fd);
	pthread_mutex_destroy(&m->lock);
}

static int
write_whole(struct chain *chain, const struct ckpt_options *opt)
{
	struct ckpt_options out = {.output = opt->output, .status_fd = -1, .after = AFTER_COPY};
	struct merging m = {.source = {.read = read_chain, .keep = keep_all}, .path = opt->output,
	    .fd = open(opt->output, O_RDONLY | O_CLOEXEC), .lock = PTHREAD_MUTEX_INITIALIZER};
	uint64_t stub = m.fd < 0 ? 0 : elf_file_end(m.fd);
	struct output o = {.fd = -1, .status_fd = -1};
	int err = m.fd < 0 || lseek(m.fd, (off_t)stub, SEEK_SET) < 0 ? fail_errno("%s", opt->output) : 0;

	out.executable = stub > 0;
	if (err == 0)
		err = output_open(&o, &out);
	m.from = image_reader_new(read_fd, &m, m.path);
	m.to = image_writer_new(output_write, &o, opt->level);
	m.reader = chain_reader_new(chain);
	if (err == 0)
		err = m.from == NULL || m.to == NULL || m.reader == NULL ? fail(ENOMEM, "out of memory") : copy_all(&m);
	if (err == 0)
		err = output_commit(&o);
	output_close(&o);
	merging_fini(&m);
	return err;
}

int
merge(const struct ckpt_options *opt)
{
	struct chain *chain;
	int err = chain_open(&chain, opt->output);

	/* Nothing to do: it is whole. */
	if (err == 0 && chain_length(chain) > 1)
		err = write_whole(chain, opt);
	chain_close(chain);
	return err;
}
