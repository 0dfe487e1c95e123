/* The record codec and the checks of a model. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kind.h"
#include "model.h"
#include "model_check.h"
#include "record.h"
#include "tap.h"

static char why[128];

static void *
copy(const void *p, size_t n)
{
	return memcpy(malloc(n), p, n);
}

/* A small process that is right. */
static void
make(struct model *m)
{
	static const struct vma vmas[] = {{.start = 0x400000, .end = 0x402000, .prot = PROT_READ, .kind = VMA_FILE},
	    {.start = 0x500000, .end = 0x501000, .prot = PROT_READ | PROT_WRITE, .ref = -1}};

	memset(m, 0, sizeof(*m));
	m->header.pid = m->task.pid = 42;
	m->header.arch = strdup(ARCH_NAME), m->header.host = strdup("h"), m->header.kernel = strdup("k");
	m->header.id = strdup("0123456789abcdef0123456789abcdef");
	m->task.comm = strdup("a%\xff"), m->task.cwd = strdup("/");
	m->task.vmas = copy(vmas, sizeof(vmas)), m->task.nvmas = 2;
	m->task.threads = calloc(1, sizeof(struct thread)), m->task.nthreads = 1;
	m->task.threads[0].tid = 42;
	m->task.threads[0].comm = strdup("t");
	m->task.threads[0].xstate.p = calloc(1, 832), m->task.threads[0].xstate.n = 832;
	m->task.threads[0].xstate.p[7] = 9;
	m->task.threads[0].regs.rip = 0xffffffffffffffff;
	m->task.fds = calloc(1, sizeof(struct fd_slot)), m->task.nfds = 1;
	m->objects.ofds = calloc(1, sizeof(struct ofd)), m->objects.nofds = 1;
	m->objects.files = calloc(1, sizeof(struct file_ref)), m->objects.nfiles = 1;
	m->objects.files[0].path = strdup("/bin/x");
}

static void
drop(struct model *m)
{
	record_free(&record_header, &m->header);
	record_free(&record_task, &m->task);
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
	text = record_to_text(&record_task, &m.task, &len);
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
		m.task.nthreads = 1; /* it still owns one */                                  \
		drop(&m);                                                                      \
	} while (0)
	REFUSED(m.task.vmas[0].start++);
	REFUSED(m.task.vmas[0].end = 0x500000 + 2 * PAGE_BYTES);
	REFUSED(m.task.vmas[1].end = 0);
	REFUSED(m.task.vmas[1].end = 0xfffffffffffff000);
	REFUSED(m.task.vmas[0].start = 0);
	REFUSED(m.task.vmas[0].ref = 1);
	REFUSED(m.task.vmas[0].ref = -1);
	REFUSED(m.task.vmas[0].kind = 77);
	REFUSED(m.task.vmas[1].kind = VMA_SHM);
	REFUSED(m.task.vmas[0].offset = 1);
	REFUSED(m.task.vmas[0].offset = INT64_MAX & PAGE_MASK);
	REFUSED(m.task.vmas[0].prot = 64);
	REFUSED(m.task.exe = 1);
	REFUSED(m.task.exe = -1);
	REFUSED(m.task.fds[0].fd = -1);
	REFUSED(m.task.fds[0].fd = MODEL_FD_MAX + 1);
	REFUSED(m.task.fds[0].ofd = 1);
	REFUSED(m.objects.ofds[0].kind = KIND_unknown);
	REFUSED(m.objects.ofds[0].kind = KIND_tty);
	REFUSED(m.objects.ofds[0].kind = KIND_pipe);
	REFUSED(m.objects.ofds[0].ref = 1);
	REFUSED(m.objects.ofds[0].pos = -1);
	REFUSED(m.objects.files[0].path[0] = 'x');
	REFUSED(m.objects.files[0].gone = true);
	REFUSED(m.task.threads[0].tid = 41);
	REFUSED(m.task.threads[0].xstate.n = 575);
	REFUSED(m.task.nthreads = 0);
	REFUSED(m.task.pid = 0);
	REFUSED(m.task.stop_signal = 65);
	REFUSED(m.task.umask = 01000);
	REFUSED(m.task.creds.uid[2] = -1);
	REFUSED(m.task.mm.vdso = 0x500000; m.task.mm.vvar = 0x500000; m.task.mm.vdso_size = PAGE_BYTES);
	REFUSED(m.task.mm.vdso_size = 1ULL << 62);
	REFUSED(m.task.mm.brk = ARCH_USER_END + 1);
	REFUSED(m.task.threads[0].rseq = 7);
#undef REFUSED
}

int
main(void)
{
	test_roundtrip();
	test_types();
	test_checks();
	return done();
}
