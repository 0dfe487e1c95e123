#include "cpu.h"

#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io.h"

static const char *const known[] = {
#define CPU(name, flag) #flag,
#include "cpu.def"
#undef CPU
};

static bool
is_known(const char *flag, size_t len)
{
	for (size_t i = 0; i < ARRAY_LEN(known); i++)
		if (strlen(known[i]) == len && memcmp(known[i], flag, len) == 0)
			return true;
	return false;
}

/* One line says what every CPU of the machine has; the file has as many of them as CPUs. */
static int
read_flags(struct cpu_id *cpu)
{
	char text[16384], *p, *end;
	int fd = open("/proc/cpuinfo", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -errno : read_full(fd, text, sizeof(text) - 1);

	close_fd(&fd);
	if (n < 0)
		return (int)n;
	text[n] = '\0';
	p = strstr(text, "\nflags\t");
	if (p == NULL || (p = strchr(p, ':')) == NULL)
		return -ENOTSUP;
	end = p + strcspn(p, "\n");
	for (p++; p < end;) {
		size_t len;

		p += strspn(p, " ");
		len = strcspn(p, " \n");
		if (len > 0 && is_known(p, len)) {
			char **flag = ARRAY_ADD(cpu->flags, cpu->nflags);

			if (flag == NULL || (*flag = strndup(p, len)) == NULL)
				return -ENOMEM;
		}
		p += len;
		if (len == 0)
			break;
	}
	return 0;
}

int
cpu_identify(struct cpu_id *cpu)
{
	unsigned a, b, c, d;
	int err;

	memset(cpu, 0, sizeof(*cpu));
	err = read_flags(cpu);
	if (err < 0) {
		cpu_fini(cpu);
		return err;
	}
	if (__get_cpuid(1, &a, &b, &c, &d) && (c & bit_OSXSAVE)) {
		unsigned lo, hi;

		__asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
		cpu->xcr0 = (uint64_t)hi << 32 | lo;
		if (__get_cpuid_count(0xd, 0, &a, &b, &c, &d))
			cpu->xsave_size = b;
	}
	return 0;
}

void
cpu_fini(struct cpu_id *cpu)
{
	for (size_t i = 0; i < cpu->nflags; i++)
		free(cpu->flags[i]);
	free(cpu->flags);
	memset(cpu, 0, sizeof(*cpu));
}

const char *
cpu_missing(const struct cpu_id *theirs, const struct cpu_id *ours)
{
	for (size_t i = 0; i < theirs->nflags; i++) {
		bool have = false;

		for (size_t j = 0; j < ours->nflags && !have; j++)
			have = strcmp(theirs->flags[i], ours->flags[j]) == 0;
		if (!have)
			return theirs->flags[i];
	}
	return NULL;
}
