# Shared by all bats files. BIN holds the programs; each test has a directory of its own, and
# whatever it starts is in the file `pids` there and is ended with the test.
# shellcheck shell=bash

BIN=${PMS_BIN:?run the tests with make check}
PATH=$BIN:$PATH
bats_require_minimum_version 1.5.0

setup() {
	T=$(mktemp -d "${TMPDIR:-/tmp}/pms-test.XXXXXX")
	cd "$T" || return 1
	: >pids
}

teardown() {
	local p
	victims >>pids
	while read -r p; do
		kill -KILL "$p" 2>/dev/null || :
	done <pids
	sysv_left | while read -r kind p; do ipcrm "--$kind-id" "$p"; done
	[ ! -s "$T/huge-before" ] || cat "$T/huge-before" >/proc/sys/vm/nr_hugepages
	cd /
	rm -rf "$T"
}

# What victims have here of System V, by its keys: "shmem ID", "semaphore ID", "queue ID".
sysv_left() {
	awk '$1 >= 1886191616 && $1 < 1886257152 { split(FILENAME, f, "/");
		print (f[4] == "shm" ? "shmem" : f[4] == "sem" ? "semaphore" : "queue"), $2 }' \
		/proc/sysvipc/shm /proc/sysvipc/sem /proc/sysvipc/msg
}

# A program in a session of its own, its output in file `out`; sets PID.
start() {
	: >>out
	PID=$(spawn out "$@")
	echo "$PID" >>pids
}

# A writer that is at it, checked once; sets PID.
start_writer() { VICTIM=writer start_victim "$@"; }

# The victim with these makers, ready and checked once; sets PID.
start_victim() {
	start "${VICTIM:-victim}" "$@"
	await out ready 20
	CHECKS=0
	check_victim "$PID"
}

# It is what it was.
check_victim() {
	CHECKS=$((CHECKS + 1))
	kill -USR2 "$1"
	await out " $CHECKS" 60 # "ok N" or "differs N"
	if ! grep -q "^ok $CHECKS\$" out; then
		cat out
		return 1
	fi
}

# Detached restart of its arguments; sets NEW.
restart_as_new() {
	NEW=$(restart -d "$@")
	echo "$NEW" >>pids
}

# /proc tells the same of the tree as it did in `before`.
as_before() {
	# The mask of a thread is another one while it is in sigwait(3): look until it is.
	until_true "oracle $1 >after && diff -q before after >/dev/null" >/dev/null || diff before after
}

# The victim with these makers, through a file and then through a pipe.
roundtrip() {
	start_victim "$@"
	until_true 'oracle "$PID" >before && oracle "$PID" >after && diff -q before after >/dev/null'
	ckpt -p "$PID" -o image
	gone "$PID"
	restart_as_new image
	as_before "$NEW"
	check_victim "$NEW"
	# The second generation, through a pipe.
	ckpt -p "$NEW" | restart -d - >new
	gone "$NEW"
	NEW=$(cat new)
	echo "$NEW" >>pids
	check_victim "$NEW"
	kill -TERM "$NEW"
}

# The victim with these makers, ten generations: the image does not grow, and /proc tells the same.
ten_generations() {
	local n size
	start_victim "$@"
	oracle "$PID" >before
	for n in 1 2 3 4 5 6 7 8 9 10; do
		ckpt -q -p "$PID" -o image
		restart_as_new image
		PID=$NEW
		[ "$n" = 2 ] && size=$(stat -c %s image)
	done
	as_before "$PID"
	check_victim "$PID"
	[ "$(stat -c %s image)" -le $((size + size / 50)) ]
}

# ckpt with this fault; where it is passed by, or cannot fail, the image goes on as PID.
faulty_ckpt() {
	rm -f image
	ckpt -q -p "$PID" -o image -F "$1" 2>/dev/null || :
	if gone "$PID"; then
		restart_as_new image
		PID=$NEW
	fi
}

# PID has ended (or is a zombie that nobody has asked for).
gone() {
	local state
	state=$(sed -n 's/^State:\t\(.\).*/\1/p' "/proc/$1/status" 2>/dev/null) || :
	[ -z "$state" ] || [ "$state" = Z ] || [ "$state" = X ]
}

# As found: not traced, not stopped, no child, the same mappings and files as in `before`.
snapshot() {
	cat "/proc/$1/maps"
	for f in /proc/"$1"/fd/*; do readlink "$f"; done
	grep -E '^(SigPnd|ShdPnd|SigBlk|SigIgn|SigCgt|TracerPid|Threads|Uid|Groups|Cap)' "/proc/$1/status"
	cat "/proc/$1/task/$1/children" 2>/dev/null
}

as_found() {
	# The mask of a thread is another one while it is in sigwait(3): look until it is.
	until_true "snapshot $1 | diff -q before - >/dev/null" >/dev/null || snapshot "$1" | diff before -
}

# Victims of this test that run: PIDs, one a line.
victims() {
	local p
	for p in $(pgrep -r R,S,D,T,t -x "${1:-victim}"); do
		[ "$(readlink "/proc/$p/cwd")" = "$T" ] && echo "$p"
	done
	return 0
}

# A port that nobody listens at.
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# Wait until exactly one runs, and print it.
one_victim() {
	until_true '[ "$(victims '"${1:-victim}"' | wc -l)" = 1 ]'
	victims "$@"
}

# Try a condition until it holds; fail after 30 seconds.
until_true() {
	local end=$((SECONDS + 30))
	until eval "$1"; do
		[ $SECONDS -lt $end ] || { echo "never: $1"; return 1; }
	done
}

# Without the files that bats holds open.
closed() {
	local fd
	for fd in /proc/self/fd/*; do
		[ "${fd##*/}" -le 2 ] || eval "exec ${fd##*/}>&-" 2>/dev/null
	done
	exec "$@"
}
