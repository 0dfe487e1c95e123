#!/bin/bash
# make bench: what a move costs beside the context itself, for a program with pms_main() and for one that knows nothing of it. Writes bench/paper.tsv.
#   bench/paper.sh BUILD-DIR
#
# capture: the whole of ckpt -p PID -o FILE on tmpfs, its own start included, until the program has ended. Milliseconds, median (least-most) of the rounds.
# fork+exec: a shell starts a program that does nothing, and waits for it.
# restoration: restart -d FILE, without fork+exec.
# bytes: what the daemons of two machines exchange for one move, both ways, without the context: all that passes in the offer, the move and the tail, less the image as a file.
set -eu
build=$(cd "$1" && pwd)
rounds=${ROUNDS:-9}
work=$(mktemp -d /dev/shm/pms-bench.XXXXXX)
running=()
clean() {
	touch "$work/stop"
	[ ${#running[@]} -eq 0 ] || kill -TERM "${running[@]}" 2>/dev/null || :
	wait
	rm -rf "$work"
}
trap clean EXIT
trap 'exit 1' INT TERM HUP
here=$(cd "$(dirname "$0")" && pwd)
cd "$work"
export PATH=$build:$build/tests:$PATH

cat >asked.c <<'C'
#include <unistd.h>
#include <pms.h>
int pms_main(int argc, char **argv)
{
	(void)argc, (void)argv;
	while (access("stop", F_OK) != 0)
		usleep(1000);
	return 0;
}
C
sed -e 's/pms_main/main/' -e '/pms.h/d' asked.c >plain.c
cc -O2 -I"$here/../lib/pms" -o asked asked.c -L"$build" -l:libpms.a -pthread
cc -O2 -o plain plain.c

# A program through which all that passes is counted: count.py FILE COMMAND
cat >count.py <<'P'
import os, subprocess, sys, threading
def copy(src, dst, n):
    while True:
        data = os.read(src, 65536)
        if not data:
            break
        n[0] += len(data)
        while data:
            data = data[os.write(dst, data):]
    os.close(dst)
p = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
into, out = [0], [0]
t = threading.Thread(target=copy, args=(0, p.stdin.fileno(), into), daemon=True)
t.start()
copy(p.stdout.fileno(), 1, out)
status = p.wait()
with open(sys.argv[1], "a") as f:
    print(sys.argv[sys.argv.index("pmsd") + 1], into[0], out[0], file=f)
sys.exit(status)
P

now() { echo "${EPOCHREALTIME/./}"; }
summary() { # FILE of numbers: median (least-most)
	sort -n "$1" | awk -v fmt="${2:-%.1f}" '{ v[NR] = $1 } END { m = NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2
		printf fmt " (" fmt "-" fmt ")", m, v[1], v[NR] }'
}

for h in a b; do
	[ $h = a ] && o=b || o=a
	echo "$o via:env PMSD_STATE=$work/state.$o PMSD_HOST=$o python3 $work/count.py $work/bytes" >hosts.$h
	: >serve.$h
	PMSD_STATE=$work/state.$h PMSD_HOST=$h pmsd serve --hosts hosts.$h --period 3600 >serve.$h 2>err.$h </dev/null &
	running+=($!)
	await serve.$h socket 20
done
export PMSD_STATE=$work/state.a PMSD_HOST=a

for _ in $(seq "$rounds"); do
	t0=$(now)
	/bin/true
	t1=$(now)
	echo "$((t1 - t0))" | awk '{ print $1 / 1000 }' >>fork
	for what in asked plain; do
		rm -f out
		pid=$(PMSD_SOCKET=/nonexistent spawn out "$work/$what")
		running+=("$pid")
		until [ "$(cut -d' ' -f3 "/proc/$pid/stat")" = S ]; do :; done
		sleep 0.05
		t0=$(now)
		ckpt -q -p "$pid" -o image
		t1=$(now)
		new=$(PMSD_SOCKET=/nonexistent restart -d image)
		t2=$(now)
		running+=("$new")
		echo "$((t1 - t0))" | awk '{ print $1 / 1000 }' >>capture.$what
		echo "$((t2 - t1)) $(tail -n 1 fork)" | awk '{ print $1 / 1000 - $2 }' >>restoration.$what
		kill -KILL "$new"
		rm image
		# And between daemons.
		job=$(pmsd run -n "$what" -- "$work/$what")
		sleep 0.05
		# So that the image as a file is that which is sent.
		pmsd pause "$job"
		pmsd ckpt "$job" "$work/image"
		: >bytes
		pmsd migrate "$job" b
		for part in offer receive; do
			until grep -q "^$part" bytes; do :; done
		done
		awk -v image="$(stat -c %s image)" '$1 ~ /^(offer|receive|tail)$/ { n += $2 + $3 } END { print n - image }' bytes >>bytes.$what
		PMSD_STATE=$work/state.b PMSD_HOST=b pmsd kill "$job" KILL
		pmsd wait "$job" || :
		rm image
	done
done
{
	printf 'program\tcapture_ms\tfork_exec_ms\trestoration_ms\tbytes\n'
	for what in asked plain; do
		printf '%s\t%s\t%s\t%s\t%s\n' $what "$(summary capture.$what)" "$(summary fork)" "$(summary restoration.$what)" "$(summary bytes.$what %d)"
	done
} | tee "$here/paper.tsv"
echo "(asked: with pms_main(); plain: without. A 16.67 MHz 68020 took 113 ms, fork+exec + 66 ms, 48 bytes.)"
