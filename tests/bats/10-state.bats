#!/usr/bin/env bats
# Each piece of state: through a file to a new process, and that once more.

load common

# So many huge pages in all; skips where that is not to be had.
huge_pages() {
	[ -s huge-before ] || cat /proc/sys/vm/nr_hugepages >huge-before # teardown puts it back
	echo "$1" 2>/dev/null >/proc/sys/vm/nr_hugepages || skip "only root may ask for huge pages"
	[ "$(cat /proc/sys/vm/nr_hugepages)" -ge "$1" ] || skip "no huge pages are to be had"
}

@test "huge pages: private, shared; small ones where there are none" {
	huge_pages 12
	start_victim huge
	oracle "$PID" >before
	ckpt -p "$PID" -o image
	restart_as_new image
	as_before "$NEW"
	check_victim "$NEW"
	grep -q '^VmFlags:.* ht' "/proc/$NEW/smaps"
	ckpt -p "$NEW" -o image
	until_true 'gone "$NEW"'
	huge_pages 0
	restart_as_new image 2>told
	grep -q "12 MiB of huge pages of 2048 KiB are not free here: small pages are used" told
	run ! grep -q '^VmFlags:.* ht' "/proc/$NEW/smaps"
	check_victim "$NEW"
}

@test "anonymous memory: touched, zero and untouched pages" { roundtrip anon; }
@test "protections: none with data, read-only, executable" { roundtrip protection; }
@test "private and shared mappings of a file" { roundtrip mapped-file; }
@test "a mapped file that has been deleted" { roundtrip deleted-file; }
@test "shared anonymous memory, mapped twice" { roundtrip shared; }
@test "heap and stack still grow" { roundtrip grow; }
@test "advice and locked memory" { roundtrip advice; }
@test "guard pages" { roundtrip guard; }
@test "droppable memory" { roundtrip droppable; }
@test "signal handlers" { roundtrip handlers; }
@test "pending signals, in order and with their values" { roundtrip pending; }
@test "alternate signal stack" { roundtrip altstack; }
@test "timers with their numbers and remaining times" { roundtrip timers; }
@test "a timer fires once and not early" { roundtrip fires; }
@test "clocks go on" { roundtrip clock; }
@test "files: shared offsets, append, high numbers, close-on-exec" { roundtrip offset; }
@test "O_PATH, directories, working directory, umask" { roundtrip path; }
@test "devices" { roundtrip devices; }
@test "a pipe with both ends inside, and what is in it" { roundtrip pipe; }
@test "file locks" { roundtrip locks; }
@test "a hundred threads with mutexes and condition variables" { roundtrip hundred; }
@test "threads in blocking calls see no EINTR" { roundtrip blocked; }
@test "waits that return EINTR for a mere stop do not" { roundtrip sigwait epoll; }
@test "vector registers" { roundtrip vectors; }
@test "names, timer slack and CPU affinity of threads" { roundtrip names; }
@test "a thread that ends afterwards is joined" { roundtrip join; }
@test "robust mutexes and rseq" { roundtrip robust; }
@test "process, group, session, user and group IDs" { roundtrip ids; }
@test "limits, nice and I/O priority" { roundtrip limits; }
@test "prctl attributes, coredump filter, membarrier" { roundtrip attributes; }
@test "/proc/self: exe, cmdline, comm" { roundtrip self; }
@test "all of it at once" {
	roundtrip anon protection mapped-file deleted-file shared grow handlers timers clock offset path \
		devices locks hundred blocked join ids self
}
@test "all of it at once, in a static program" {
	VICTIM=victim-static roundtrip anon protection mapped-file deleted-file shared grow handlers \
		timers clock offset path devices locks hundred blocked join ids self
}

@test "ten generations: neither the image nor the mappings grow" {
	start_victim anon hundred deleted-file shared timers
	lines=$(wc -l <"/proc/$PID/maps")
	NEW=$PID
	for i in 1 2 3 4 5 6 7 8 9 10; do
		ckpt -p "$NEW" -o image
		restart_as_new image
		size[i]=$(stat -c %s image)
	done
	check_victim "$NEW"
	[ "$(wc -l <"/proc/$NEW/maps")" -le "$lines" ]
	[ "${size[10]}" -lt $((size[1] + 65536)) ]
}

@test "maps, limits and attributes read as before" {
	start_victim anon protection grow handlers hundred ids
	state() {
		sed 's/\[vvar.*//' "/proc/$1/maps"
		cat "/proc/$1/limits" "/proc/$1/coredump_filter" "/proc/$1/oom_score_adj" \
			"/proc/$1/personality" "/proc/$1/comm"
		tr '\0' '\n' <"/proc/$1/cmdline"
		tr '\0' '\n' <"/proc/$1/environ"
		od -An -tx8 -v "/proc/$1/auxv"
		grep -E '^(Name|Umask|Threads|Uid|Gid|SigBlk|SigIgn|SigCgt|CapEff|CapPrm|NoNewPrivs)' \
			"/proc/$1/status"
	}
	state "$PID" >before
	ckpt -p "$PID" -o image
	restart_as_new image
	state "$NEW" >after
	diff before after
	[ "$(readlink "/proc/$NEW/exe")" = "$(command -v victim)" ]
}
