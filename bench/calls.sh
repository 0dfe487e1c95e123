#!/bin/bash
# make bench: system calls that another machine executes, over TCP on the loopback device, beside the same calls here and a bare round
# trip of as many bytes; the three in turn, in each of nine rounds. Writes bench/calls.tsv: medians of the rounds, in microseconds.
#   bench/calls.sh BUILD-DIR
#
# Each side has a processor of its own, as two machines have; else it is left to chance whether a round trip crosses from one to another.
#
# A: the call, executed here. B: the same in a process at home that shares itself with other machines, where these calls are not caught; B - A in nanoseconds,
# to reach 60, each pair of one round. C: forwarded. raw: a bare round trip. ratio: C / (raw + A), to reach 1.5; of reads C / raw, to reach 1.3.
# getppid needs no other machine; (run): B is that of a command of rexec-sys run.
set -eu
build=$(cd "$1" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
rounds=${ROUNDS:-9}
work=$(mktemp -d "${BENCH_DIR:-${TMPDIR:-/var/tmp}}/pms-bench.XXXXXX")
server=''
clean() {
	[ -z "$server" ] || kill "$server" 2>/dev/null || :
	rm -rf "$work"
}
trap clean EXIT
cd "$work"
mkdir -p 1/2/3/4/5
head -c 1048576 /dev/urandom >file
: >address
taskset -c 1 "$build/rexec-sys" serve -l tcp-clear:127.0.0.1:0 >address &
server=$!
"$build/tests/await" address tcp-clear: 20
for _ in $(seq "$rounds"); do
	"$build/bench/calls" raw >>raw
	taskset -c 0 "$build/bench/calls" table "$work" >>A
	taskset -c 0 "$build/bench/calls" watched "$work" >>B
	taskset -c 0 "$build/rexec-sys" run -H "$(cat address)" "$build/bench/calls" table "$work" >>C
	taskset -c 0 "$build/bench/calls" read "$work/file" >>A
	"$build/bench/calls" raw >>raw
	taskset -c 0 "$build/rexec-sys" run -H "$(cat address)" "$build/bench/calls" read "$work/file" >>C
done
values() { awk -v n="$2" '$1 == n { print $2 }' "$1"; }
more() { paste <(values A "$2") <(values "$1" "$2") | awk '{ print ($2 - $1) * 1000 }' | stat; }
stat() { sort -n | awk '{ v[NR] = $1 } END { printf "%.2f (%.2f-%.2f)", v[int((NR + 1) / 2)], v[1], v[NR] }'; }
{
	printf 'call\tA\tB\tB - A\tC\traw\tratio\n'
	for name in open close mkdir rmdir symlink flock; do
		ratio=$(paste <(values A "$name") <(values C "$name") <(values raw call | awk 'NR % 2') | awk '{ print $2 / ($3 + $1) }' | stat)
		printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$name" "$(values A "$name" | stat)" "$(values B "$name" | stat)" "$(more B "$name")" \
			"$(values C "$name" | stat)" "$(values raw call | stat)" "$ratio"
	done
	for size in 4096 16384 65536 262144 1048576; do
		ratio=$(paste <(values C "read_$size") <(values raw "read_$size" | awk 'NR % 2 == 0') | awk '{ print $1 / $2 }' | stat)
		printf 'read %s\t%s\t\t\t%s\t%s\t%s\n' "$size" "$(values A "read_$size" | stat)" "$(values C "read_$size" | stat)" \
			"$(values raw "read_$size" | stat)" "$ratio"
	done
	printf 'getppid\t%s\t%s\t%s\n' "$(values A getppid | stat)" "$(values B getppid | stat)" "$(more B getppid)"
	printf 'getppid (run)\t%s\t%s\t%s\n' "$(values A getppid | stat)" "$(values C getppid | stat)" "$(more C getppid)"
} >"$here/calls.tsv"
echo "system calls (microseconds, median of $rounds rounds, least and most):"
column -t -s "$(printf '\t')" "$here/calls.tsv"
