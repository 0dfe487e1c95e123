#!/bin/bash
# make bench: memory that comes when it is touched. Writes bench/lazy.tsv: median, least and most of the rounds.
#   bench/lazy.sh BUILD-DIR [MIB...]
#
# start: the time from the start of ckpt -m | restart, and of restart --lazy of an image, to the first instruction of the copy, for each size;
#        it is not to grow with the size.
# fault: a page that is touched and is not there, in memory of 1 GiB (or the largest size, if that is less) of which a third is random. raw: a
#        bare round trip of 64 bytes for 4096 over TCP on the loopback device, each side on a processor of its own; ratio: to that of the same round.
# walk:  200000 reads of random pages, right after the start and when all is there.
# wire:  bytes that were sent, and those of the pages in the image.
# Each needs memory twice as large as what it moves, and as much room for files.
set -eu
build=$(cd "$1" && pwd)
shift
sizes=("$@")
[ ${#sizes[@]} -gt 0 ] || sizes=(64 1024 4096)
here=$(cd "$(dirname "$0")" && pwd)
rounds=${ROUNDS:-5}
reads=200000
touches=2000
lazy=$build/bench/lazy
if [ "$(id -u)" != 0 ]; then
	echo "memory that comes when it is touched: not measured, as this takes root"
	exit 0
fi
if ! why=$("$lazy" able); then
	echo "memory that comes when it is touched: not measured: $why"
	exit 0
fi
work=$(mktemp -d "${BENCH_DIR:-${TMPDIR:-/var/tmp}}/pms-bench.XXXXXX")
running=() # programs, their copies, servers
clean() {
	[ ! -s "$work/new" ] || running+=("$(cat "$work/new")")
	[ ${#running[@]} -eq 0 ] || kill -KILL "${running[@]}" 2>/dev/null || :
	rm -rf "$work"
}
trap clean EXIT
trap 'exit 1' INT TERM HUP
cd "$work"
# Where restart --lazy has its socket.
export TMPDIR=$work
unset XDG_RUNTIME_DIR

is_now() { # PID...: these run, and no others
	running=("$@")
	rm -f new
}

# A program, and its board; sets pid.
hold() { # MIB KIND BOARD
	rm -f out "$3"
	pid=$("$build/tests/spawn" out "$lazy" hold "$1" "$2" "$3")
	running+=("$pid")
	"$build/tests/await" out ready 120
}

# See bench/run.
warm() { # MIB
	sleep 3
	"$build/bench/limit" warm "$(($1 * 2))"
}

# All of it is there. A server that has gone has nothing more to send.
all_there() { # PID
	local address
	address=$(sed -n 's/^restart: pages are at //p' said)
	timeout 600 "$build/pagesrv" wait "$address" 2>/dev/null || :
	for _ in $(seq 6000); do
		grep '^VmFlags:' "/proc/$1/smaps" >flags || break
		grep -q ' um' flags || return 0
		sleep 0.1
	done
	echo "pid $1: has ended, or its memory does not come" >&2
	return 1
}

# Those who served and fetched it are gone, too.
no_more() { # PID
	kill -KILL "$1"
	for _ in $(seq 300); do
		compgen -G 'pms-pages.*' >sockets || return 0
		sleep 0.1
	done
	echo "pid $1: its server does not end" >&2
	return 1
}

no_start() { # FILE...: what was said
	cat "$@" >&2
	return 1
}

# A live process to another one, whose PID new has. measured: what lazy start prints.
move() { # BOARD ADDRESS
	"$lazy" look "$1"
	# shellcheck disable=SC2016
	"$lazy" start "$1" new bash -o pipefail -c '"$1/ckpt" -q -m "$2" -p "$3" 2>said.ckpt | "$1/restart" -v -d - 2>said' \
		sh "$build" "$2" "$pid" >measured || no_start said.ckpt said
	running+=("$(cat new)")
}

# An image to a process, in the same way.
start() { # BOARD IMAGE [OPTION...]
	local board=$1 image=$2
	shift 2
	"$lazy" start "$board" new "$build/restart" -v -d "$@" "$image" 2>said >measured || no_start said
}

# Images of a program that looks at the clock; it ends.
images() { # BOARD LEVEL...
	local board=$1 level
	shift
	"$lazy" look "$board"
	for level; do
		"$build/ckpt" -q -c -z "$level" -p "$pid" -o "image.$level"
	done
	kill -KILL "$pid"
}

note() { # FIELD FILE: one of what was measured
	cut -f "$1" measured >>"$2.t"
}

ratio() { # A B TO: of the last round
	paste <(tail -n 1 "$1.t") <(tail -n 1 "$2.t") | awk '{ print $1 / $2 }' >>"$3.t"
}

row() { # FILE PART MIB FIGURE FORMAT [GOAL]
	sort -g "$1.t" | awk -v what="$2\t$3\t$4" -v f="$5" -v goal="${6-}" '{ v[NR] = $1 }
		END { printf "%s\t" f "\t" f "\t" f "\t%s\n", what, v[int((NR + 1) / 2)], v[1], v[NR], goal }'
}

# --- start

fits() { # MIB
	local memory room
	memory=$(awk '$1 == "MemAvailable:" { print int($2 / 1024) }' /proc/meminfo)
	room=$(df --output=avail -BM . | tail -n 1 | tr -dc 0-9)
	[ "$(($1 * 5 / 2))" -lt "$memory" ] && [ "$(($1 * 5 / 4))" -lt "$room" ] && return 0
	echo "$1 MiB: left out, for want of memory ($memory MiB) or room for files ($room MiB)" >&2
	return 1
}

measure_start() { # MIB
	rm -f ./*.t
	hold "$1" random board
	for _ in $(seq "$rounds"); do
		warm 64
		move board "unix:$work/socket"
		note 1 live
		note 3 still
		all_there "$(cat new)"
		pid=$(cat new)
		is_now "$pid"
	done
	images board 0
	is_now
	for _ in $(seq "$rounds"); do
		warm 64
		start board image.0 --lazy
		note 1 first
		note 2 wall
		no_more "$(cat new)"
		is_now
	done
	rm -f image.*
	row live start "$1" 'ckpt -m | restart: to the first instruction (s)' %.4f 0.050
	row still start "$1" 'ckpt -m | restart: stood still (s)' %.4f
	row first start "$1" 'restart --lazy: to the first instruction (s)' %.4f 0.050
	row wall start "$1" 'restart --lazy: until it returns (s)' %.4f 0.015
}

# --- fault, walk

touch_it() { # BOARD NAME
	"$lazy" touch "$1" "$touches" >measured
	if [ "$(cut -f 1 measured)" -lt 100 ]; then
		echo "$2: only $(cut -f 1 measured) pages were waited for" >&2
	fi
	note 2 "fault_$2"
	ratio "fault_$2" raw "ratio_$2"
}

walk_lazy() { # BOARD NAME
	"$lazy" walk "$1" "$reads" >measured
	note 1 "walk_$2"
}

walk_there() { # BOARD NAME
	"$lazy" walk "$1" "$reads" >measured
	note 1 "there_$2"
	ratio "walk_$2" "there_$2" "slower_$2"
}

raw() {
	"$lazy" raw "$touches" >>raw.t
}

of_image() { # LEVEL
	warm "$memory"
	raw
	start board "image.$1" --lazy
	touch_it board "z$1"
	no_more "$(cat new)"
	is_now "$pid"
	warm "$memory"
	start board "image.$1" --lazy
	walk_lazy board "z$1"
	all_there "$(cat new)"
	walk_there board "z$1"
	no_more "$(cat new)"
	is_now "$pid"
}

of_process() { # NAME ADDRESS
	warm "$memory"
	raw
	move live "$2"
	touch_it live "$1"
	all_there "$(cat new)"
	pid=$(cat new)
	is_now "$pid"
	warm "$memory"
	move live "$2"
	walk_lazy live "$1"
	all_there "$(cat new)"
	walk_there live "$1"
	pid=$(cat new)
	is_now "$pid"
}

measure_fault() {
	local names=('z0:restart --lazy (-z 0)' 'z1:restart --lazy (-z 1)' 'unix:ckpt -m by a Unix socket' 'tcp:ckpt -m by TCP') name
	rm -f ./*.t
	hold "$memory" text board
	images board 0 1
	is_now
	hold "$memory" text live
	for _ in $(seq "$rounds"); do
		of_image 0
		of_image 1
		of_process unix "unix:$work/socket"
		of_process tcp tcp-clear:127.0.0.1:0
	done
	kill -KILL "$pid"
	is_now
	rm -f image.*
	row raw fault "$memory" 'raw: round trip, 64 bytes for 4096 (us)' %.1f
	for name in "${names[@]}"; do
		row "fault_${name%%:*}" fault "$memory" "${name#*:}: a page (us)" %.1f
		row "ratio_${name%%:*}" fault "$memory" "${name#*:}: ratio to raw" %.2f 2
	done
	for name in "${names[@]}"; do
		row "walk_${name%%:*}" walk "$memory" "${name#*:}: while it comes (s)" %.3f
		row "there_${name%%:*}" walk "$memory" "${name#*:}: all is there (s)" %.3f
		row "slower_${name%%:*}" walk "$memory" "${name#*:}: times slower" %.1f
	done
}

# --- wire

# An image without its memory, and a whole one for a server that stays until all has been counted.
measure_wire() { # KIND TOUCHES
	local mover server what=$1
	rm -f ./*.t
	hold "$memory" "$1" board
	"$lazy" look board
	for _ in $(seq "$rounds"); do
		: >said.ckpt
		"$build/ckpt" -m "unix:$work/socket" --spool whole.img -p "$pid" -o stub.img 2>said.ckpt &
		mover=$!
		"$build/tests/await" said.ckpt 'stands still' 600
		: >address
		"$build/pagesrv" serve -l "unix:$work/pages" whole.img >address 2>said.serve &
		server=$!
		running+=("$mover" "$server")
		"$build/tests/await" address unix: 20
		start board stub.img --pages "unix:$work/pages"
		[ "$2" -eq 0 ] || "$lazy" touch board "$2" >measured
		timeout 600 "$build/pagesrv" wait "unix:$work/pages"
		"$build/pagesrv" stat "unix:$work/pages" >stat
		awk -F '\t' '$1 == "wire bytes" { print $2 }' stat >>wire.t
		awk -F '\t' '$1 == "bytes" { print $2 }' stat >>bytes.t
		ratio wire bytes ratio
		no_more "$(cat new)"
		# It has been restarted from elsewhere: let go again, it is there for the next round.
		kill "$mover" "$server"
		wait "$mover" "$server" 2>/dev/null || :
		is_now "$pid"
		"$lazy" look board
	done
	kill -KILL "$pid"
	is_now
	[ "$2" -eq 0 ] || what="$1, $2 pages touched"
	row wire wire "$memory" "$what: sent (bytes)" %.0f
	row bytes wire "$memory" "$what: in the image (bytes)" %.0f
	row ratio wire "$memory" "$what: ratio" %.4f
}

memory=0
for mib in "${sizes[@]}"; do
	[ "$mib" -le "$memory" ] || memory=$mib
done
[ "$memory" -le 1024 ] || memory=1024
printf 'part\tMiB\tfigure\tmedian\tmin\tmax\tgoal\n' >lazy.tsv
for mib in "${sizes[@]}"; do
	fits "$mib" || continue
	measure_start "$mib" >>lazy.tsv
done
if fits "$((memory * 2))"; then
	measure_fault >>lazy.tsv
	measure_wire random 0 >>lazy.tsv
	measure_wire text 0 >>lazy.tsv
	measure_wire text "$touches" >>lazy.tsv
fi
cp lazy.tsv "$here/lazy.tsv"
echo "memory that comes when it is touched (median, least and most of $rounds rounds):"
column -t -s "$(printf '\t')" "$here/lazy.tsv"
