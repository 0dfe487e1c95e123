/*
 * The readers of an image. Odd inputs are taken as the text of a task (with a valid
 * checksum around it), even ones as the bytes of a whole image.
 */
#include <errno.h>

#include "fuzz.h"
#include "image.h"
#include "log.h"
#include "model_check.h"
#include "record.h"

struct memory {
	const unsigned char *p;
	size_t left;
};

static ssize_t
read_memory(void *ctx, void *data, size_t len)
{
	struct memory *m = ctx;
	size_t n = len < m->left ? len : m->left;

	memcpy(data, m->p, n);
	m->p += n;
	m->left -= n;
	return (ssize_t)n;
}

static int
take(void *ctx, const void *data, size_t len)
{
	(void)ctx, (void)data, (void)len;
	return 0;
}

/* As restart goes through an image. */
static void
read_image(const unsigned char *data, size_t len)
{
	struct memory m = {data, len};
	struct image_reader *r = image_reader_new(read_memory, &m, "fuzz");
	char name[IMAGE_NAME_MAX], *text;
	uint64_t size, npages;
	size_t n;

	image_keep(r);
	while (image_next(r, name, &size) > 0) {
		struct page_run runs[CHUNK_PAGES];
		const unsigned char *page;
		int err;

		if (strncmp(name, "pages/", 6) == 0) {
			err = image_get_chunk(r, runs, &n, &npages);
			do
				err = err < 0 ? err : image_chunk_data(r, &page, &n);
			while (err == 0 && page != NULL);
		} else if (strncmp(name, "file/", 5) == 0) {
			err = image_get_content(r, take, NULL);
		} else {
			err = image_get(r, &text, &n);
			if (err == 0)
				free(text);
		}
		if (err < 0)
			break;
	}
	image_await_end(r);
	image_reader_free(r);
}

static void
read_model(const char *text, size_t len)
{
	struct model m = {0};
	struct task tasks[2] = {0};
	int64_t pids[2];
	char why[128];

	/* As a parent, and as its child. */
	if (record_from_text(&record_task, &tasks[0], text, len, why) == 0 &&
	    record_from_text(&record_task, &tasks[1], text, len, why) == 0) {
		tasks[1].pid++;
		tasks[1].ppid = tasks[0].pid;
		tasks[1].forked = tasks[1].ninherits > 0;
		m.tasks = tasks;
		m.header.pid = pids[0] = tasks[0].pid;
		pids[1] = tasks[1].pid;
		m.header.tasks = pids;
		m.header.ntasks = 2;
		m.objects.files = calloc(2, sizeof(struct file_ref));
		m.objects.nfiles = 2;
		m.objects.files[0].path = strdup("/a");
		m.objects.files[1].path = strdup("/b");
		m.objects.ofds = calloc(4, sizeof(struct ofd));
		m.objects.nofds = 4;
		model_check(&m, why);
		record_free(&record_objects, &m.objects);
	}
	record_free(&record_task, &tasks[0]);
	record_free(&record_task, &tasks[1]);
	m = (struct model){0};
	if (record_from_text(&record_objects, &m.objects, text, len, why) == 0)
		record_free(&record_objects, &m.objects);
	if (record_from_text(&record_header, &m.header, text, len, why) == 0) {
		header_check(&m.header, why);
		record_free(&record_header, &m.header);
	}
}

static void
fuzz_one(const unsigned char *data, size_t len)
{
	log_hush(1);
	if (len > 0 && data[0] == '{')
		read_model((const char *)data, len);
	else
		read_image(data, len);
	log_hush(-1);
}

/* --- seeds: a small image, and its texts */

static int
sink(void *ctx, const void *data, size_t len)
{
	buf_put(ctx, data, len);
	return 0;
}

static int
read_pages(struct page_source *s, const struct page_run *runs, size_t nruns, unsigned char *out)
{
	(void)s;
	for (size_t i = 0; i < nruns; i++)
		for (uint64_t j = 0; j < runs[i].npages * PAGE_BYTES; j++)
			*out++ = (unsigned char)(j * 7 + i);
	return 0;
}

static bool
keep_page(struct page_source *s, taddr addr, const unsigned char *page)
{
	(void)s;
	return !page_is_zero(page) && addr % (5 * PAGE_BYTES) != 0;
}

static const char task[] =
    "{\"pid\":42,\"pgid\":42,\"sid\":42,\"ppid\":0,\"exit_signal\":17,\"tty\":-1,\"foreground\":0,\"status\":0,"
    "\"inherits\":[{\"start\":\"0x401000\",\"end\":\"0x402000\"}],\"session_leader\":true,\"comm\":\"x\",\"cwd\":\"/\",\"exe\":0,"
    "\"umask\":18,\"stop_signal\":0,\"oom_score_adj\":0,\"personality\":\"0x0\",\"coredump_filter\":\"0x33\","
    "\"membarrier\":\"0x0\",\"cpu_ns\":1,\"creds\":{\"uid\":[0,0,0,0],\"gid\":[0,0,0,0],\"groups\":[4,5],"
    "\"cap_inh\":\"0x0\",\"cap_prm\":\"0x0\",\"cap_eff\":\"0x0\",\"cap_bnd\":\"0x0\",\"cap_amb\":\"0x0\"},"
    "\"mm\":{\"start_code\":\"0x1000\",\"end_code\":\"0x2000\",\"start_data\":\"0x3000\",\"end_data\":\"0x4000\","
    "\"start_brk\":\"0x5000\",\"brk\":\"0x6000\",\"start_stack\":\"0x7000\",\"arg_start\":\"0x0\",\"arg_end\":\"0x0\","
    "\"env_start\":\"0x0\",\"env_end\":\"0x0\",\"vdso\":\"0x0\",\"vdso_size\":0,\"vvar\":\"0x0\"},"
    "\"vmas\":[{\"start\":\"0x400000\",\"end\":\"0x402000\",\"prot\":5,\"kind\":1,\"ref\":0,\"offset\":\"0x0\","
    "\"flags\":\"rd ex mr\"}],\"fds\":[{\"fd\":0,\"ofd\":0},{\"fd\":3,\"ofd\":1,\"cloexec\":true}],"
    "\"locks\":[{\"fd\":3,\"kind\":0,\"write\":true,\"start\":10,\"end\":20}],"
    "\"timers\":[{\"id\":1,\"clock\":0,\"notify\":0,\"sig\":14,\"tid\":0,\"sigval\":\"0x1\",\"value_ns\":5,"
    "\"interval_ns\":0,\"overrun\":0}],\"threads\":[]}";

static unsigned char *
whole_image(int level, size_t *len)
{
	struct buf b = {0};
	struct page_source source = {.read = read_pages, .keep = keep_page};
	struct page_runs runs = {0};
	struct image_writer *w = image_writer_new(sink, &b, level);

	control_put(&b, CONTROL_ACK, 0);
	page_runs_add(&runs, 0x400000, 300);
	page_runs_add(&runs, 0x900000, 3);
	image_put(w, "header.json", "{}", 2);
	image_put(w, "objects.json", "{}", 2);
	image_put(w, "task/42.json", task, sizeof(task) - 1);
	image_put(w, "file/0", task, 100);
	image_put_pages(w, 42, &runs, &source, NULL, NULL);
	image_finish(w);
	image_writer_free(w);
	page_runs_fini(&runs);
	control_put(&b, CONTROL_TAIL, 100);
	for (int i = 0; i < 100; i++)
		buf_put_u8(&b, 0);
	control_put(&b, CONTROL_END, 0);
	*len = b.len;
	return b.data;
}

static unsigned char *
fuzz_seed(unsigned n, size_t *len)
{
	static const char objects[] =
	    "{\"files\":[{\"path\":\"/bin/x\",\"size\":1,\"mode\":33261,\"mtime_ns\":5,\"build_id\":\"00ff\"}],"
	    "\"shms\":[{\"size\":4096}],\"ofds\":[{\"kind\":0,\"ref\":0,\"flags\":0,\"pos\":0,\"rdev\":0,\"rows\":0,"
	    "\"cols\":0,\"owner\":0,\"owner_type\":0,\"sig\":0}],\"pipes\":[{\"id\":5,\"size\":4096,"
	    "\"data\":{\"n\":3,\"hex\":\"0102\"}}]}";

	switch (n) {
	case 0:
	case 1:
		return whole_image(n == 0 ? 0 : 3, len);
	case 2:
		*len = sizeof(task) - 1;
		return (unsigned char *)strdup(task);
	case 3:
		*len = sizeof(objects) - 1;
		return (unsigned char *)strdup(objects);
	default:
		return NULL;
	}
}
