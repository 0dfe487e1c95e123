#!/usr/bin/env bats
# The image as others see it, and damaged images: nothing of them ever starts.

load common

image() {
	start_victim anon handlers
	ckpt -p "$PID" -o image
}

@test "bsdtar and tar list it, the task is JSON" {
	image
	bsdtar -tf image >list
	tar --zstd -tf image | diff list -
	[ "$(head -n 1 list)" = header.json ]
	[ "$(tail -n 1 list)" = end.json ]
	[ "$(bsdtar -xOf image "task/$PID.json" | jq .pid)" = "$PID" ]
	bsdtar -xOf image objects.json | jq -e '.ofds | length > 0' >/dev/null
	zstd -tq image
}

@test "zero pages and pages of the program are not stored" {
	start_victim anon
	ckpt -z 0 -p "$PID" -o image
	# 768 stamped pages; not the 1536 others, not the program's 2 MB of libc.
	pages=$(bsdtar -xOf image end.json | jq .pages)
	[ "$pages" -ge 768 ]
	[ "$pages" -lt 1100 ]
}

@test "cut at fifty places it never starts anything" {
	image
	size=$(stat -c %s image)
	for i in $(seq 0 49); do
		head -c $((size * i / 50)) image >cut
		run restart cut
		[ "$status" = 65 ] || { echo "cut at $i/50: $status: $output"; return 1; }
		[ "${#lines[@]}" = 1 ]
		run bash -c 'cat cut | restart -'
		[ "$status" = 65 ]
	done
	head -c $((size - 1)) image >cut
	run restart cut
	[ "$status" = 65 ]
	[ -z "$(victims)" ]
}

@test "flipped at two hundred bits it never starts anything" {
	image
	size=$(stat -c %s image)
	table=$((8 + $(tail -c 9 image | od -An -tu4 -N4 | tr -d ' ') * 8 + 9))
	zstd -dqc image >content
	for i in $(seq 200); do
		cp image bad
		# Anywhere but in the seek table, which restart does not need.
		at=$(((RANDOM * 32768 + RANDOM) % (size - table)))
		byte=$(od -An -tu1 -j "$at" -N1 bad | tr -d ' ')
		printf "\\x$(printf %x $((byte ^ (1 << (RANDOM % 8)))))" | dd of=bad bs=1 seek="$at" conv=notrunc status=none
		# Some bits of a packed frame mean nothing: the image is the same.
		! zstd -dqc bad 2>/dev/null | cmp -s - content || continue
		run timeout 20 restart bad
		[ "$status" = 65 ] || { echo "bit in byte $at of $size: $status: $output"; return 1; }
	done
	[ -z "$(victims)" ]
}

@test "what is no image is refused in one line" {
	for f in /etc/passwd /dev/null "$(command -v victim)"; do
		run restart "$f"
		[ "$status" = 65 ]
		[ "${#lines[@]}" = 1 ]
	done
	run restart /nonexistent
	[ "$status" = 66 ]
	run bash -c 'zstd -q </etc/passwd | restart -'
	[ "$status" = 65 ]
	run bash -c 'tar -C / -cf - etc/hostname | zstd -q | restart -'
	[ "$status" = 65 ]
}

@test "an executable image: -x, and cat restart image" {
	start_victim anon
	ckpt -x -p "$PID" -o job
	gone "$PID"
	NEW=$(./job -d)
	echo "$NEW" >>pids
	check_victim "$NEW"
	ckpt -p "$NEW" -o image
	cat "$(command -v restart)" image >job2
	chmod +x job2
	NEW=$(./job2 -d)
	echo "$NEW" >>pids
	check_victim "$NEW"
	kill -TERM "$NEW"
}

@test "a missing and a changed file are named" {
	start_victim offset
	ckpt -p "$PID" -o image
	mv offset.* away
	run restart image
	[ "$status" = 66 ]
	[[ "$output" == *offset.* ]]
	sed 's/line/LINE/' away >"offset.$PID"
	run restart image
	[ "$status" = 66 ]
	[[ "$output" == *"other contents"* ]]
	rm "offset.$PID"
	mkdir elsewhere
	mv away "elsewhere/offset.$PID"
	mv append.* elsewhere
	run restart image
	[ "$status" = 66 ]
	restart_as_new --map "$T/offset.$PID=$T/elsewhere/offset.$PID" \
		--map "$T/append.$PID=$T/elsewhere/append.$PID" image
	check_victim "$NEW"
}

@test "--embed=all carries open files to where there are none" {
	start_victim offset
	ckpt --embed=all -p "$PID" -o image
	rm offset.* append.*
	restart_as_new image
	check_victim "$NEW"
}
