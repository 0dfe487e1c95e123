/* Parsers of proc(5): lines as kernels write them. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "proc.h"
#include "tap.h"

static void
test_maps(void)
{
	char text[] =
	    "00400000-0041f000 r--p 00000000 fe:00 247970                             /usr/bin/my prog\\012x\n"
	    "7fe0-8000 rw-s 00001000 00:01 5  /dev/zero (deleted)\n"
	    "Size:                124 kB\nProtectionKey:         3\nVmFlags: rd wr sh mr mw me ms sd \n"
	    "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n";
	struct proc_maps m;

	ok(proc_maps_parse(&m, text) == 0 && m.n == 3, "maps and smaps");
	ok(m.map[0].start == 0x400000 && m.map[0].prot == PROT_READ && !m.map[0].shared &&
		m.map[0].major == 0xfe && m.map[0].ino == 247970 &&
		strcmp(m.map[0].path, "/usr/bin/my prog\nx") == 0, "a file with a space and a newline");
	ok(m.map[1].shared && m.map[1].offset == 0x1000 && m.map[1].pkey == 3 &&
		strcmp(m.map[1].flags, "rd wr sh mr mw me ms sd") == 0, "details belong to their mapping");
	ok(proc_maps_find(&m, 0x7fff) == &m.map[1] && proc_maps_find(&m, 0x8000) == NULL, "lookup");
	proc_maps_fini(&m);
	char bad[] = "not a mapping\n";
	ok(proc_maps_parse(&m, bad) < 0, "garbage");
	char empty[] = "";
	ok(proc_maps_parse(&m, empty) == 0 && m.n == 0, "nothing");
	proc_maps_fini(&m);
}

/* Four mappings: a program, a heap, memory that is not given to children, a page of the kernel's. */
static void
parse_four(struct proc_maps *m, const char *heap_end, const char *heap, const char *apart)
{
	char text[1024];

	snprintf(text, sizeof(text),
	    "1000-3000 r-xp 00000000 fe:00 7 /bin/x\nVmFlags: rd ex mr mw me \n"
	    "5000-%s rw-p 00000000 00:00 0 [heap]\nVmFlags: %s \n"
	    "%s"
	    "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\nVmFlags: ex \n",
	    heap_end, heap, apart);
	proc_maps_parse(m, text);
}

#define APART "a000-b000 rw-p 00000000 00:00 0 \nVmFlags: rd wr mr mw me dc ac \n"

static void
test_assume(void)
{
	struct proc_maps now, before, copy;
	char fresh[] = "1000-3000 r-xp 00000000 fe:00 7 /bin/x\n5000-8000 rw-p 00000000 00:00 0 [heap]\na000-b000 rw-p 00000000 00:00 0 \n"
		       "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n";
	char other[] = "1000-3000 r-xp 00000000 fe:00 8 /bin/y\n";

	parse_four(&before, "7000", "rd wr mr mw me ac sd", APART);
	proc_maps_parse(&now, fresh);
	ok(proc_maps_assume(&now, &before) == 0 && strcmp(now.map[1].flags, "rd wr mr mw me ac sd") == 0, "one that has grown has the flags that it had");
	parse_four(&copy, "8000", "rd wr mr mw me ac", "");
	ok(proc_maps_prove(&now, &copy), "soft-dirty is of no matter, and what is not given to children is not there");
	proc_maps_fini(&copy);
	parse_four(&copy, "8000", "rd wr mr mw me ac wf", "");
	ok(!proc_maps_prove(&now, &copy), "one that it has got since");
	proc_maps_fini(&copy);
	parse_four(&copy, "8000", "rd wr mr mw me", "");
	ok(!proc_maps_prove(&now, &copy), "one that it has lost since");
	proc_maps_fini(&copy);
	parse_four(&copy, "8000", "rd wr mr mw me ac", APART);
	ok(proc_maps_prove(&now, &copy), "that of a process itself");
	proc_maps_fini(&copy);
	parse_four(&copy, "8000", "rd wr mr mw me ac", "a000-b000 rw-p 00000000 00:00 0 \nVmFlags: rd wr mr mw me ac \n");
	ok(!proc_maps_prove(&now, &copy), "it is given to children now");
	proc_maps_fini(&copy);
	proc_maps_fini(&now);
	proc_maps_parse(&now, other);
	ok(proc_maps_assume(&now, &before) == -ENOENT, "another file");
	proc_maps_fini(&now);
	proc_maps_fini(&before);
	parse_four(&before, "8000", "rd wr mr mw me lo ac", APART);
	char again[] = "5000-8000 rw-p 00000000 00:00 0 [heap]\n";
	proc_maps_parse(&now, again);
	ok(proc_maps_assume(&now, &before) == -ENOENT, "locked memory");
	proc_maps_fini(&now);
	proc_maps_fini(&before);
}

static void
test_stat(void)
{
	struct proc_stat st;

	ok(proc_stat_parse(&st, "12 (a) b) (c) S 1 12 12 34816 -1 4194560 1 2 3 4 55 66 7 8 20 0 1 0 777 "
	    "9 10 18446744073709551615 4096 8192 140737488347136 0 0 0 0 0 0 0 0 0 17 0 0 0 0 0 0 "
	    "12288 16384 20480 24576 28672 32768 36864 9\n") == 0, "stat");
	ok(st.state == 'S' && st.ppid == 1 && st.tty == 34816 && st.utime == 55 && st.stime == 66 &&
		st.starttime == 777 && st.start_code == 4096 && st.exit_signal == 17 &&
		st.start_brk == 20480 && st.env_end == 36864 && st.exit_code == 9,
	    "whatever the name is, the fields are theirs");
	ok(proc_stat_parse(&st, "12 (x") < 0 && proc_stat_parse(&st, "12 (x) S 1 2") < 0, "cut");
}

static void
test_status(void)
{
	struct proc_status st;

	ok(proc_status_parse(&st, "Name:\tx y\nUmask:\t0022\nState:\tT (stopped)\nTgid:\t7\nPid:\t7\n"
	    "PPid:\t1\nTracerPid:\t0\nUid:\t1000\t1001\t1002\t1003\nGid:\t5\t6\t7\t8\nGroups:\t4 24 \n"
	    "NStgid:\t7\t2\nNSpid:\t7\t2\nNSpgid:\t7\t0\nNSsid:\t7\t0\nThreads:\t3\n"
	    "SigPnd:\t0000000000000000\nShdPnd:\t0000000000010000\nCapEff:\t000001ffffffffff\n"
	    "NoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t4\n") == 0, "status");
	ok(strcmp(st.name, "x y") == 0 && st.state == 'T' && st.umask == 022 && st.uid[3] == 1003 &&
		st.ngroups == 2 && st.groups[1] == 24 && st.levels == 2 && st.nspid[1] == 2 &&
		st.threads == 3 && st.shdpnd == 0x10000 && st.cap_eff == 0x1ffffffffff &&
		st.no_new_privs == 1 && st.seccomp_filters == 4, "its fields");
	proc_status_fini(&st);
	ok(proc_status_parse(&st, "Name:\tState:\tX\nState:\tS\nUid:\t1 1 1 1\nNSpid:\t7\nGid:\t2 2 2 2\nSeccomp:\t2\nTgid:\t9\n") == 0 && st.state == 'S' && st.uid[0] == 1 &&
	    st.gid[0] == 2 && st.ngroups == 0 && st.tgid == 9 && st.seccomp == 2, "a name like a line, another order, lines that are not there");
	proc_status_fini(&st);
	ok(proc_status_parse(&st, "Name:\tx\n") < 0, "cut");
	proc_status_fini(&st);
}

static void
test_rest(void)
{
	struct proc_fdinfo info;
	struct proc_timer *timers;
	struct proc_limit limits[16];
	size_t n;

	ok(proc_fdinfo_parse(&info, "pos:\t100\nflags:\t0102001\nmnt_id:\t25\nino:\t9\n"
	    "lock:\t1: POSIX  ADVISORY  WRITE 4242 fe:00:1234 10 29\n"
	    "lock:\t2: FLOCK  ADVISORY  READ 4242 fe:00:1234 0 EOF\n") == 0, "fdinfo");
	ok(info.pos == 100 && info.flags == 0102001 && info.nlocks == 2 &&
		strcmp(info.locks[0].type, "POSIX") == 0 && info.locks[0].write &&
		info.locks[0].start == 10 && info.locks[0].end == 29 && !info.locks[1].write &&
		info.locks[1].end == -1, "its locks");
	ok(proc_fdinfo_parse(&info, "pos:\t1\n") < 0, "cut");
	ok(proc_timers_parse(&timers, &n, "ID: 1\nsignal: 14/00000000deadbeef\nnotify: signal/pid.2634\nClockID: 0\n"
	    "ID: 5\nsignal: 0/0000000000000000\nnotify: signal/tid.77\nClockID: 1\n") == 0 && n == 2, "timers");
	ok(timers[0].id == 1 && timers[0].sig == 14 && timers[0].sigval == 0xdeadbeef &&
		timers[0].notify == 0 && timers[1].notify == 4 && timers[1].tid == 77 && timers[1].clock == 1,
	    "their fields");
	free(timers);
	ok(proc_idmap_inner("         0       1000          1\n      5000     100000      65536\n", 1000) == 0 &&
		proc_idmap_inner("0 1000 1\n5000 100000 65536\n", 100007) == 5007 &&
		proc_idmap_inner("0 1000 1\n", 7) == -1, "ID maps");
	ok(proc_limits_parse(limits, "Limit                     Soft Limit           Hard Limit           Units\n") < 0,
	    "limits cut");
}

int
main(void)
{
	test_maps();
	test_assume();
	test_stat();
	test_status();
	test_rest();
	return done();
}
