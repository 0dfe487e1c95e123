/* The record codec and the checks of a model. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kind.h"
#include "model.h"
#include "coop_abi.h"
#include "model_check.h"
#include "record.h"
#include "tap.h"

static char why[128];

static void *
copy(const void *p, size_t n)
{
	return memcpy(malloc(n), p, n);
}

static void
make_running(struct task *t)
{
	static const struct vma vmas[] = {{.start = 0x400000, .end = 0x402000, .prot = PROT_READ, .kind = VMA_FILE},
	    {.start = 0x500000, .end = 0x501000, .prot = PROT_READ | PROT_WRITE, .ref = -1}};

	t->comm = strdup("a%\xff"), t->cwd = strdup("/");
	t->vmas = copy(vmas, sizeof(vmas)), t->nvmas = 2;
	t->threads = calloc(1, sizeof(struct thread)), t->nthreads = 1;
	t->threads[0].tid = t->pid, t->tty = -1;
	t->threads[0].comm = strdup("t");
	t->threads[0].xstate.p = calloc(1, 832), t->threads[0].xstate.n = 832;
	t->threads[0].xstate.p[7] = 9;
	t->threads[0].regs.rip = 0xffffffffffffffff;
	t->fds = calloc(1, sizeof(struct fd_slot)), t->nfds = 1;
}

/* A small tree that is right: a process, a child that has ended, one that was forked. */
static void
make(struct model *m)
{
	memset(m, 0, sizeof(*m));
	m->tasks = calloc(3, sizeof(struct task));
	m->header.tasks = calloc(3, sizeof(int64_t)), m->header.ntasks = 3;
	for (int i = 0; i < 3; i++)
		m->header.tasks[i] = m->tasks[i].pid = 42 + i;
	m->header.pid = 42;
	m->tasks[1].ppid = 42, m->tasks[1].zombie = true, m->tasks[1].status = 0xc800;
	m->tasks[1].exe = -1, m->tasks[1].comm = strdup("z");
	m->header.arch = strdup(ARCH_NAME), m->header.host = strdup("h"), m->header.kernel = strdup("k");
	m->header.id = strdup("0123456789abcdef0123456789abcdef");
	make_running(&m->tasks[0]);
	make_running(&m->tasks[2]);
	m->tasks[2].ppid = 42, m->tasks[2].forked = true;
	m->tasks[2].inherits = calloc(1, sizeof(struct page_range)), m->tasks[2].ninherits = 1;
	m->tasks[2].inherits[0] = (struct page_range){0x500000, 0x501000};
	m->objects.ofds = calloc(1, sizeof(struct ofd)), m->objects.nofds = 1;
	m->objects.files = calloc(1, sizeof(struct file_ref)), m->objects.nfiles = 1;
	m->objects.files[0].path = strdup("/bin/x");
}

static void
add_earlier(struct task *t, taddr start, taddr end)
{
	struct page_range *r = ARRAY_ADD(t->earlier, t->nearlier);

	if (r != NULL)
		*r = (struct page_range){start, end};
}

static void
drop(struct model *m)
{
	for (size_t i = 0; i < 3; i++)
		record_free(&record_task, &m->tasks[i]);
	free(m->tasks);
	m->header.ntasks = 3;
	record_free(&record_header, &m->header);
	record_free(&record_objects, &m->objects);
}

static void
test_roundtrip(void)
{
	struct model m;
	struct task back;
	size_t len, len2;
	char *text, *again;

	make(&m);
	ok(model_check(&m, why) == 0 && header_check(&m.header, why) == 0, "a model that is right");
	m.tasks[0].note = 0x501000 - sizeof(struct coop_note);
	ok(model_check(&m, why) == 0, "a note at the end of its memory");
	m.tasks[0].note = 0;
	text = record_to_text(&record_task, &m.tasks[0], &len);
	ok(record_from_text(&record_task, &back, text, len, why) == 0, "a task as text and back");
	again = record_to_text(&record_task, &back, &len2);
	ok(len == len2 && memcmp(text, again, len) == 0, "is the same text again");
	ok(strcmp(back.comm, "a%\xff") == 0 && back.threads[0].xstate.n == 832 &&
		back.threads[0].xstate.p[7] == 9 && back.threads[0].regs.rip == UINT64_MAX &&
		back.vmas[1].ref == -1, "and the same values");
	record_free(&record_task, &back);
	/* Cut anywhere it is refused, and nothing is lost. */
	int refused = 1;
	for (size_t i = 0; i < len; i += 7)
		refused &= record_from_text(&record_task, &back, text, i, why) == -EBADMSG;
	ok(refused, "cut anywhere");
	free(text);
	free(again);
	drop(&m);
}

static void
test_types(void)
{
	static const char *const wrong[] = {
	    "[]", "3", "{}", "{\"files\":{}}", "{\"files\":[3]}", "{\"files\":[{}]}",
	    "{\"files\":[{\"path\":3,\"size\":1,\"mode\":1,\"mtime_ns\":1}]}",
	    "{\"files\":[{\"path\":\"/\",\"size\":-1,\"mode\":1,\"mtime_ns\":1}]}",
	    "{\"files\":[{\"path\":\"/\",\"size\":1.5,\"mode\":1,\"mtime_ns\":1}]}",
	    "{\"files\":[{\"path\":\"%zz\",\"size\":1,\"mode\":1,\"mtime_ns\":1}]}",
	    "{\"files\":[{\"path\":\"\\u0000\",\"size\":1,\"mode\":1,\"mtime_ns\":1}]}",
	    "{\"files\":[{\"path\":\"/\",\"size\":1,\"mode\":1,\"mtime_ns\":1,\"gone\":1}]}",
	    "{\"files\":[],\"files\":[]}", "{\"files\":[]} x",
	};
	struct objects o;

	for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
		/* An object without lists is right: they are optional. */
		bool right = strcmp(wrong[i], "{}") == 0;
		int err = record_from_text(&record_objects, &o, wrong[i], strlen(wrong[i]), why);

		ok(right ? err == 0 : err == -EBADMSG && why[0] != '\0', wrong[i]);
		record_free(&record_objects, &o);
	}
}

static void
test_checks(void)
{
	struct model m;

#define REFUSED(change)                                                                        \
	do {                                                                                   \
		make(&m);                                                                      \
		change;                                                                        \
		why[0] = '\0';                                                                 \
		ok(model_check(&m, why) == -EBADMSG && why[0] != '\0', #change);              \
		m.tasks[0].nthreads = 1; /* it still owns one */                                  \
		drop(&m);                                                                      \
	} while (0)
	REFUSED(m.tasks[0].vmas[0].start++);
	REFUSED(m.tasks[0].vmas[0].end = 0x500000 + 2 * PAGE_BYTES);
	REFUSED(m.tasks[0].vmas[1].end = 0);
	REFUSED(m.tasks[0].vmas[1].end = 0xfffffffffffff000);
	REFUSED(m.tasks[0].vmas[0].start = 0);
	REFUSED(m.tasks[0].vmas[0].ref = 1);
	REFUSED(m.tasks[0].vmas[0].ref = -1);
	REFUSED(m.tasks[0].vmas[0].kind = 77);
	REFUSED(m.tasks[0].vmas[1].kind = VMA_SHM);
	REFUSED(m.tasks[0].vmas[0].offset = 1);
	REFUSED(m.tasks[0].vmas[0].offset = INT64_MAX & PAGE_MASK);
	REFUSED(m.tasks[0].vmas[0].prot = 64);
	REFUSED(m.tasks[0].note = 8);
	REFUSED(m.tasks[0].note = 0x400000);
	REFUSED(m.tasks[0].note = 0x501000 - 8);
	REFUSED(m.tasks[0].note = 0x500000; m.tasks[0].vmas[1].shared = true);
	REFUSED(m.tasks[0].note = 0x500000; m.tasks[0].vmas[1].prot = PROT_READ);
	REFUSED(m.tasks[0].exe = 1);
	REFUSED(m.tasks[0].exe = -1);
	REFUSED(m.tasks[0].fds[0].fd = -1);
	REFUSED(m.tasks[0].fds[0].fd = MODEL_FD_MAX + 1);
	REFUSED(m.tasks[0].fds[0].ofd = 1);
	REFUSED(m.objects.ofds[0].kind = KIND_unknown);
	REFUSED(m.objects.ofds[0].kind = KIND_tty);
	REFUSED(m.objects.ofds[0].kind = KIND_pipe);
	REFUSED(m.objects.ofds[0].ref = 1);
	REFUSED(m.objects.ofds[0].pos = -1);
	REFUSED(m.objects.files[0].path[0] = 'x');
	REFUSED(m.objects.files[0].gone = true);
	REFUSED(m.tasks[0].threads[0].tid = 41);
	REFUSED(m.tasks[0].threads[0].xstate.n = 575);
	REFUSED(m.tasks[0].nthreads = 0);
	REFUSED(m.tasks[0].pid = 0);
	REFUSED(m.tasks[0].stop_signal = 65);
	REFUSED(m.tasks[0].umask = 01000);
	REFUSED(m.tasks[0].creds.uid[2] = -1);
	REFUSED(m.tasks[0].mm.vdso = 0x500000; m.tasks[0].mm.vvar = 0x500000; m.tasks[0].mm.vdso_size = PAGE_BYTES);
	REFUSED(m.tasks[0].mm.vdso_size = 1ULL << 62);
	REFUSED(m.tasks[0].mm.brk = ARCH_USER_END + 1);
	REFUSED(m.tasks[0].threads[0].rseq = 7);
	REFUSED(m.header.ntasks = 0);
	REFUSED(m.tasks[0].ppid = 42);
	REFUSED(m.tasks[0].zombie = true);
	REFUSED(m.tasks[0].exit_signal = 65);
	REFUSED(m.tasks[1].pid = 42);
	REFUSED(m.tasks[1].ppid = 44);
	REFUSED(m.tasks[1].status = 1 << 16);
	REFUSED(m.tasks[1].status = 70);
	REFUSED(m.tasks[2].ppid = 43);
	REFUSED(m.tasks[2].ppid = 44);
	REFUSED(m.tasks[2].forked = false);
	REFUSED(m.tasks[0].forked = true);
	REFUSED(add_earlier(&m.tasks[2], 0x900000, 0x901000));
	REFUSED(add_earlier(&m.tasks[2], 0x500000, 0x500800));
	REFUSED(add_earlier(&m.tasks[2], 0x500000, 0x501000); add_earlier(&m.tasks[2], 0x500000, 0x501000));
	REFUSED(m.tasks[2].inherits[0].end += PAGE_BYTES);
	REFUSED(m.tasks[2].inherits[0].start = 0x400000);
	REFUSED(m.tasks[2].inherits[0] = ((struct page_range){0x900000, 0x901000}));
	REFUSED(m.tasks[0].vmas[1].end += PAGE_BYTES; m.tasks[0].vmas[1].start += PAGE_BYTES);
	REFUSED(m.tasks[0].vmas[1].shared = true);
#undef REFUSED
	make(&m);
	ok(header_check(&m.header, why) == 0, "a header without a parent");
	m.header.parent = strdup("0123");
	ok(header_check(&m.header, why) == -EBADMSG, "a parent without an identity");
	free(m.header.parent);
	m.header.parent = strdup(m.header.id);
	ok(header_check(&m.header, why) == -EBADMSG, "one that is its own parent");
	drop(&m);
}

/* What it makes of the digits of n bytes: -EBADMSG, or the last one that is not zero, and where in *at. */
static int
last_byte(unsigned n, const char *hex, size_t *at)
{
	struct objects o;
	char text[256];
	int err, last = 0, len = snprintf(text, sizeof(text), "{\"filters\":[{\"code\":{\"n\":%u,\"hex\":\"%s\"},\"flags\":\"0x0\"}]}", n, hex);

	err = record_from_text(&record_objects, &o, text, (size_t)len, why);
	for (size_t i = 0; err == 0 && i < o.filters[0].code.n; i++)
		if (o.filters[0].code.p[i] != 0)
			last = o.filters[0].code.p[i], *at = i;
	record_free(&record_objects, &o);
	return err < 0 ? err : last;
}

static void
test_zeroes(void)
{
	static const char *const wrong[] = {"*", "**", "*1", "*x*", "*-1*", "* 1*", "*101*", "*100*01", "01*100*", "*18446744073709551615*01", "*99999999999999999999*", "0*1*", "1",
	    "012", "*2*0", "0x01"};
	struct objects o = {0};
	size_t at = 0, len;
	char *text;

	ok(last_byte(100, "ff*40*07", &at) == 7 && at == 41 && last_byte(100, "*99*fe", &at) == 0xfe && at == 99, "zeroes as their number");
	ok(last_byte(100, "", &at) == 0 && last_byte(100, "*0*02*50**48*03", &at) == 3 && at == 99, "at either end, and none");
	for (size_t i = 0; i < ARRAY_LEN(wrong); i++)
		ok(last_byte(100, wrong[i], &at) == -EBADMSG, wrong[i]);
	o.filters = calloc(1, sizeof(*o.filters)), o.nfilters = 1;
	o.filters->code.p = calloc(1, 60), o.filters->code.n = 60;
	o.filters->code.p[0] = 1, o.filters->code.p[8] = 2, o.filters->code.p[17] = 3;
	text = record_to_text(&record_objects, &o, &len);
	ok(strstr(text, "\"0100000000000000" "02*8*03\"") != NULL, "only where that is shorter");
	free(text);
	record_free(&record_objects, &o);
}

int
main(void)
{
	test_roundtrip();
	test_types();
	test_zeroes();
	test_checks();
	return done();
}
