#!/bin/bash
# make bench: how long a process stands still, beside what the machine needs for the same. Each figure is a median of the rounds, with the least and the most. Writes bench/stop.tsv.
#   bench/stop.sh BUILD-DIR [MIB...]
#
# fork: a bare fork(2) of the process by itself, in the same round; ckpt -c stops it for that and what is asked of it. ratio: of the two.
# move, rounds: how long it stands still on a move through a pipe to a restart on this machine, at once and with --rounds auto: idle, and writing to a tenth of its memory all the time.
#   stopped: as ckpt sees it, all stops together, up to the decision; gap: the longest time for which the process itself could not look at the clock.
# text: 1 GiB of text, whose image at level 1 is measured beside zstd -1 -T2 of the same bytes.
set -eu
build=$(cd "$1" && pwd)
shift
sizes=("$@")
[ ${#sizes[@]} -gt 0 ] || sizes=(64 1024 4096)
here=$(cd "$(dirname "$0")" && pwd)
rounds=${ROUNDS:-5}
work=$(mktemp -d "${BENCH_DIR:-${TMPDIR:-/var/tmp}}/pms-bench.XXXXXX")
pid=''
clean() {
	[ -z "$pid" ] || kill -KILL "$pid" 2>/dev/null || :
	rm -rf "$work"
}
trap clean EXIT
cd "$work"
export PATH=$build:$build/tests:$PATH

begin() { # ARGUMENTS of limit
	rm -f ./*.t out
	pid=$(spawn out "$build/bench/limit" "$@")
	await out ready 300
}
over() {
	kill -KILL "$pid"
	pid=''
}
row() { # FILE NAME...
	printf '%s\t' "${@:2}"
	sort -n "$1" | awk '{ v[NR] = $1 } END { printf "%.3f\t%.3f\t%.3f\n", v[int((NR + 1) / 2)], v[1], v[NR] }'
}
json() { sed -n "s/.*\"$1\": \([0-9.]*\).*/\1/p" stats; }

copies() { # MIB KIND
	begin hold "$1" "$2"
	for n in $(seq "$rounds"); do
		kill -USR1 "$pid"
		until [ "$(grep -c fork out)" -ge "$n" ]; do sleep 0.01; done
		tail -n 1 out | awk '{ print $2 * 1000 }' >>fork.t
		ckpt -q -c -z 1 --stats=json -p "$pid" -o image 2>stats
		json stopped_ms >>stopped.t
		paste stopped.t fork.t | tail -n 1 | awk '{ print $1 / $2 }' >>ratio.t
	done
	over
	for what in fork stopped ratio; do row $what.t "$1" "$2" -c $what; done
}

# Of the lines behind the first $seen.
longest_gap() {
	until [ "$(wc -l <out)" -gt "$seen" ]; do sleep 0.01; done
	sleep 0.1
	tail -n +$((seen + 1)) out | sort -k 2 -n | awk '{ ms = $2 } END { print ms }'
}

moves() { # MIB NAME ARGUMENTS of limit
	local mib=$1 name=$2 how
	shift 2
	begin "$@"
	for _ in $(seq "$rounds"); do
		for how in move rounds; do
			if [ $how = rounds ]; then set -- --rounds auto; else set --; fi
			seen=$(wc -l <out)
			ckpt -q "$@" -z 1 --stats=json -p "$pid" 2>stats | restart -q -d - >new
			pid=$(cat new)
			json stopped_ms >>$how.t
			[ "$name" != idle ] || longest_gap >>$how-gap.t
		done
	done
	over
	for how in move rounds; do
		row $how.t "$mib" "$name" $how stopped
		[ ! -e $how-gap.t ] || row $how-gap.t "$mib" "$name" $how gap
	done
}

text() {
	begin hold 1024 text
	"$build/bench/limit" save "$pid" raw >/dev/null
	for _ in $(seq "$rounds"); do
		"$build/bench/limit" time /dev/null sh -c 'zstd -q -1 -T2 -c <raw >raw.zst' >>zstd.t
		stat -c %s raw.zst | awk '{ print $1 / 1e6 }' >>zstd-MB.t
		ckpt -q -c -z 1 --stats=json -p "$pid" -o image 2>stats
		awk "BEGIN { print ($(json total_ms) - $(json end_ms)) / 1000 }" >>image.t
		stat -c %s image | awk '{ print $1 / 1e6 }' >>image-MB.t
	done
	over
	for what in zstd image zstd-MB image-MB; do row $what.t 1024 text level-1 $what; done
}

{
	printf 'MiB\tprocess\thow\tfigure\tmedian\tmin\tmax\n'
	for mib in "${sizes[@]}"; do
		copies "$mib" text
		copies "$mib" text-huge
	done
	moves 1024 idle gap 1024 text
	moves 1024 writing write 1024 10
	text
} >"$here/stop.tsv"
echo "how long it stands still (ms), and an image of text (seconds, MB):"
column -t -s "$(printf '\t')" "$here/stop.tsv"
