#!/usr/bin/env bats
# Memory that comes when it is touched, from an image: what a process may do meanwhile, who uses it, and what is damaged.

load common
load pages

@test "restart --lazy: it runs at once, and has every page right" {
	start_lazy
	ckpt -p "$PID" -o image
	gone "$PID"
	restart_as_new --lazy image
	says "random 2000"
	says all
	nobody_left
	says all
}

@test "restart --lazy: what it does not touch is not there, and what it touches is" {
	need_waiting
	start_lazy 1024
	ckpt -p "$PID" -o image
	: >status
	restart -d --lazy --demand-only --status-fd 4 image 4>status >new
	NEW=$(cat new)
	echo "$NEW" >>pids
	ADDRESS=$(sed -n 's/^pages //p' status)
	says "random 1000"
	[ "$(resident "$NEW")" -lt 20000 ]
	until_true '[ "$(told faults)" -gt 900 ]'
	[ "$(told "pages by demand")" -gt 700 ]
	[ "$(told "pages by stream")" = 0 ]
	says all
	[ "$(resident "$NEW")" -gt 800000 ]
	kill -KILL "$NEW"
	nobody_left
}

@test "one whose memory is not all there is not checkpointed: what is missing is nothing that ckpt could see" {
	need_waiting
	start_lazy 64
	ckpt -p "$PID" -o image
	NEW=$(restart -d --lazy --demand-only image)
	echo "$NEW" >>pids
	run ckpt -p "$NEW" -o again
	[ "$status" = 69 ]
	[[ "$output" == *userfaultfd* ]]
	says all
	nobody_left
	ckpt -p "$NEW" -o again
	restart_as_new again
	says "random 5000"
	says all
}

@test "the rest comes by itself" {
	need_waiting
	start_lazy 256
	ckpt -p "$PID" -o image
	restart_as_new --lazy image
	until_true '[ "$(resident "$NEW")" -gt 200000 ]'
	nobody_left
	says all
}

@test "what a process does with memory that is not there yet: fork, mremap, munmap, madvise, read and write" {
	for what in fork split move remap dontneed unmap kernel reverse; do
		start_lazy 256
		ckpt -z 0 -p "$PID" -o image
		restart_as_new --lazy image
		says "$what"
		says "random 5000"
		says remap
		says fork
		says all
		kill -KILL "$NEW"
		rm -f image
	done
}

@test "victims of every kind, lazily, twice" {
	start_victim anon hundred handlers
	ckpt -p "$PID" -o image
	restart_as_new --lazy image
	check_victim "$NEW"
	nobody_left
	ckpt -p "$NEW" | restart -d - >again
	echo "$(cat again)" >>pids
	check_victim "$(cat again)"
}

@test "a tree of processes that have forked, lazily" {
	cat >tree.py <<-'P'
		import os, time, random, hashlib
		data = bytearray(random.Random(1).randbytes(16 << 20))
		want = hashlib.sha1(data).hexdigest()
		children = []
		for n in range(3):
		    if n == 0 or os.getpid() != first:
		        pass
		    first = os.getpid()
		    pid = os.fork()
		    if pid == 0:
		        data[n << 20:(n << 20) + 100] = bytes(100)
		        mine = hashlib.sha1(data).hexdigest()
		        open(f"ready{n}", "w").close()
		        while not os.path.exists("go"):
		            time.sleep(0.01)
		        open(f"found{n}", "w").write("right" if hashlib.sha1(data).hexdigest() == mine else "wrong")
		        time.sleep(1000)
		while not os.path.exists("ready2"):
		    time.sleep(0.01)
		print("ready", flush=True)
		while not os.path.exists("go"):
		    time.sleep(0.01)
		print("right" if hashlib.sha1(data).hexdigest() == want else "wrong", flush=True)
		time.sleep(1000)
	P
	for how in file live; do
		rm -f go found? ready? out
		start python3 tree.py
		await out ready 30
		if [ $how = file ]; then
			ckpt -p "$PID" -o image
			restart_as_new --lazy image
		else
			leave_memory
		fi
		touch go
		await out right 30
		for n in 0 1 2; do
			until_true "[ -s found$n ]"
			[ "$(cat found$n)" = right ]
		done
		pgrep -P "$NEW" >>pids || :
		[ $how != live ] || until_true 'gone "$PID"'
		pkill -KILL -P "$NEW" || :
		kill -KILL "$NEW"
	done
}

@test "one image, several clients at once" {
	need_waiting
	start_lazy 128
	ckpt -c -p "$PID" -o image
	kill -KILL "$PID"
	for n in 1 2 3; do
		mkdir "d$n"
		: >"d$n/commands"
		(cd "d$n" && cp ../out . && restart -d --pid=ns --map "$T=$T/d$n" --chdir "$T/d$n" --lazy ../image >new 2>err)
		cat "d$n/new" >>pids
	done
	for n in 1 2 3; do
		echo all >>"d$n/commands"
	done
	echo all >>commands
	for n in 1 2 3; do
		until_true 'grep -q "all ok" d'$n'/out || [ "$(grep -c "all ok" out)" -ge 3 ]'
	done
}

@test "one memory, several users: one writer or many readers" {
	start_lazy 16
	ckpt -p "$PID" -o image
	task=$(bsdtar -tf image | sed -n 's,^task/\(.*\).json,\1,p' | head -n 1)
	at=$(bsdtar -xOf image "task/$task.json" | python3 -c 'import json, sys
print([v["start"] for v in json.load(sys.stdin)["vmas"] if int(v["end"], 16) - int(v["start"], 16) >= 16 << 20 and v["prot"] == 3][0])')
	serve image
	mkfifo in1 in2
	pagesrv use "$ADDRESS" <in1 >out1 2>err1 3>&- &
	echo $! >>pids
	exec 7>in1
	pagesrv use "$ADDRESS" <in2 >out2 2>err2 3>&- &
	echo $! >>pids
	exec 8>in2
	echo "r $task $at 8" >&7
	echo "r $task $at 8" >&8
	until_true '[ -s out1 ] && [ -s out2 ]'
	[ "$(cat out1)" = "$(cat out2)" ]
	[ "$(cat out1)" != 0000000000000000 ]
	echo "w $task $at 11223344" >&7
	until_true '[ "$(wc -l <out1)" = 2 ]'
	echo "state $task $at" >&8
	until_true '[ "$(wc -l <out2)" = 2 ]'
	[ "$(tail -n 1 out2)" = none ]
	echo "r $task $at 4" >&8
	until_true '[ "$(wc -l <out2)" = 3 ]'
	[ "$(tail -n 1 out2)" = 11223344 ]
	echo "state $task $at" >&7
	until_true '[ "$(wc -l <out1)" = 3 ]'
	[ "$(tail -n 1 out1)" = read ]
	# Both count on one word, by turns: nothing is lost.
	for n in $(seq 1 40); do
		printf 'w %s %s %02x\n' "$task" "$at" "$n" >&$((7 + n % 2))
		until_true '[ "$(wc -l <out1)" -ge '$((3 + n / 2))' ]'
	done
	until_true '[ "$(cat out1 out2 | wc -l)" = 46 ]'
	echo "r $task $at 1" >&7
	until_true '[ "$(wc -l <out1)" = 24 ]'
	[ "$(tail -n 1 out1)" = 28 ]
	# What they have written stays when they go.
	exec 7>&- 8>&-
	until_true '[ "$(pagesrv stat "$ADDRESS" | grep -c "^state	complete")" = 2 ]'
	echo "r $task $at 1" | pagesrv use "$ADDRESS" >out3
	[ "$(cat out3)" = 28 ]
}

@test "whoever fetches is killed: the process is ended and not left with zeroes" {
	need_waiting
	start_lazy 512
	ckpt -p "$PID" -o image
	PMS_FAULT=fetching:kill:10 restart -d --lazy image >new 2>restart.err
	NEW=$(cat new)
	echo "$NEW" >>pids
	echo all >>commands
	until_true 'gone "$NEW"'
	run ! grep -q wrong out
	grep -q "was killed" restart.err
	until_true '! pgrep -r RSD -x pages-guard >/dev/null'
}

@test "pages that are damaged: it runs until it needs one of them" {
	need_waiting
	start_lazy 64
	ckpt -z 0 -p "$PID" -o image
	# A byte of a page in the middle of the file.
	at=$(($(stat -c %s image) / 2))
	byte=$(od -An -tu1 -j "$at" -N 1 image)
	printf "$(printf '\\%03o' $((byte ^ 255)))" | dd of=image bs=1 seek="$at" conv=notrunc status=none
	restart -d --lazy image >new 2>restart.err
	NEW=$(cat new)
	echo "$NEW" >>pids
	await restart.err "are damaged" 30
	run ! gone "$NEW"
	echo all >>commands
	await restart.err "that it needs is damaged" 30
	until_true 'gone "$NEW"'
	cat restart.err
	[ "$(grep -c damaged restart.err)" = 2 ]
	run ! grep -q "wrong" out
}

@test "images that cannot be served, and users who make no sense" {
	start_lazy 16
	ckpt -p "$PID" -o image
	head -c 100000 image >short
	run pagesrv serve -l "unix:$T/s" short
	[ "$status" = 65 ]
	run pagesrv serve -l "unix:$T/s" nothing
	[ "$status" = 66 ]
	run pagesrv serve -l "unix:$T/s" -p $$
	[ "$status" = 75 ]
	[[ "$output" == *"is not parked"* ]]
	serve image
	head -c 100000 /dev/urandom | nc -U -q 1 "$T/pages.sock" >/dev/null || :
	printf 'GET / HTTP/1.0\r\n\r\n' | nc -U -q 1 "$T/pages.sock" >/dev/null || :
	[ "$(pagesrv stat "$ADDRESS" | sed -n 's/^source\t//p')" = image ]
	run pagesrv stat "unix:$T/nobody"
	[ "$status" = 76 ] || [ "$status" = 66 ]
}
