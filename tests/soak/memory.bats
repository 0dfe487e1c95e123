# make soak: the same as 97 to 99 of tests/bats, with 1 GiB and often. SOAK_MIB, SOAK_TIMES (percent) make it smaller.
load common

MIB=${SOAK_MIB:-1024}
times() { seq $(($1 * ${SOAK_TIMES:-100} / 100)); }

# The image is run beside the original, and is right.
image_is_right() {
	cp out out.before
	restart_as_new "$@" 2>restart.err
	kill -USR2 "$NEW"
	await_line
	kill -KILL "$NEW"
	until_true "gone $NEW"
	cp out.before out
}

# One more line than in out.before, and it is ok.
await_line() {
	local end=$((SECONDS + 300))
	until [ "$(wc -l <out)" -gt "$(wc -l <out.before)" ]; do
		[ $SECONDS -lt $end ]
		sleep 0.05
	done
	tail -n 1 out | grep -q "^ok "
}

@test "a hundred snapshots of a program that writes all over its memory" {
	start_writer "$MIB"
	for n in $(times 100); do
		ckpt -c -p "$PID" -o image 2>ckpt.err
		run ! grep "stands still until" ckpt.err
		[ $((n % 5)) != 0 ] || image_is_right image
		check_victim "$PID"
	done
}

@test "twenty moves in rounds" {
	start_writer "$MIB"
	for n in $(times 20); do
		ckpt --rounds $((n % 4 + 1)) -p "$PID" 2>ckpt.err | restart -d - 2>restart.err >new
		PID=$(cat new)
		echo "$PID" >>pids
		check_victim "$PID"
	done
}

@test "twenty increments" {
	start_writer "$MIB"
	ckpt -c -p "$PID" -o job.0.ckpt
	for n in $(times 20); do
		ckpt -c -i job.$((n - 1)).ckpt -p "$PID" -o job.$n.ckpt
		[ "$n" -lt 3 ] || rm job.$((n - 3)).ckpt
		[ "$n" -lt 2 ] || ckpt --merge job.$((n - 1)).ckpt
		[ $((n % 4)) != 0 ] || image_is_right job.$n.ckpt
		check_victim "$PID"
	done
}

@test "a forked tree with shared memory: snapshots, increments and rounds" {
	start_writer $((MIB / 8)) $((MIB / 4)) 3
	for n in $(times 20); do
		ckpt -c -p "$PID" -o a.ckpt
		ckpt -c -i a.ckpt -p "$PID" -o b.ckpt
		[ $((n % 4)) != 0 ] || image_is_right b.ckpt
		ckpt --rounds 2 -p "$PID" 2>ckpt.err | restart -d - 2>restart.err >new
		PID=$(cat new)
		echo "$PID" >>pids
		check_victim "$PID"
	done
}
