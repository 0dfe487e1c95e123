/* The parsers of what a kernel, a vDSO or a peer says. */
#include "elf_file.h"
#include "fuzz.h"
#include "msg.h"
#include "proc.h"
#include "vdso.h"

static void
see(void *ctx, const char *name, uint64_t offset, uint64_t size)
{
	*(uint64_t *)ctx += strlen(name) + offset + size;
}

static void
fuzz_one(const unsigned char *data, size_t len)
{
	char *text = malloc(len + 1);
	unsigned char *code = malloc(len + 1);
	struct proc_maps maps;
	struct proc_status status;
	struct proc_stat stat;
	struct proc_fdinfo info;
	struct proc_timer *timers = NULL;
	struct msg_header h;
	uint64_t sum = 0;
	size_t n;

	memcpy(text, data, len);
	text[len] = '\0';
	if (proc_status_parse(&status, text) == 0)
		proc_status_fini(&status);
	else
		proc_status_fini(&status);
	proc_stat_parse(&stat, text);
	proc_fdinfo_parse(&info, text);
	proc_timers_parse(&timers, &n, text);
	free(timers);
	proc_idmap_inner(text, 1000);
	if (proc_maps_parse(&maps, text) == 0)
		proc_maps_fini(&maps);
	memcpy(code, data, len);
	elf_functions(code, len, see, &sum);
	vdso_make_proxy(code, len, data, len, 0x1000);
	if (len >= MSG_HEADER && msg_get_header(&h, data) == 0) {
		enum msg_state state = STATE_IMAGE;

		msg_step(&state, SIDE_CKPT, &h);
	}
	msg_get_hello(data, len);
	free(text);
	free(code);
}

/* This process's own files, and its vDSO. */
static unsigned char *
slurp(const char *path, size_t *len)
{
	FILE *f = fopen(path, "r");
	unsigned char *p = malloc(65536);

	*len = f != NULL ? fread(p, 1, 65536, f) : 0;
	if (f != NULL)
		fclose(f);
	return p;
}

#include <sys/auxv.h>

static unsigned char *
fuzz_seed(unsigned n, size_t *len)
{
	static const char *const files[] = {"/proc/self/status", "/proc/self/stat", "/proc/self/maps",
	    "/proc/self/smaps", "/proc/self/fdinfo/0", "/proc/self/uid_map"};
	static const char timers[] =
	    "ID: 1\nsignal: 14/00000000deadbeef\nnotify: signal/tid.2634\nClockID: 0\n";
	unsigned char *p;

	if (n < sizeof(files) / sizeof(files[0]))
		return slurp(files[n], len);
	if (n == 6) {
		*len = sizeof(timers) - 1;
		return (unsigned char *)strdup(timers);
	}
	if (n > 7 || getauxval(AT_SYSINFO_EHDR) == 0)
		return NULL;
	*len = 8192;
	p = malloc(*len);
	return memcpy(p, (const void *)getauxval(AT_SYSINFO_EHDR), *len);
}
