#!/usr/bin/env bats
# Who ends the original: never two running; always one running, or one complete image that is named.

load common

begin() {
	start_victim anon handlers hundred blocked
	snapshot "$PID" >before
}

# The original runs as before and nothing else does.
original_runs() {
	as_found "$PID"
	check_victim "$PID"
	[ "$(victims)" = "$PID" ]
}

@test "-o FILE ends it when the image is complete, mode 0600" {
	begin
	ckpt -p "$PID" -o image --status-fd 3 3>status
	gone "$PID"
	[ "$(stat -c %a image)" = 600 ]
	[ "$(grep -n -e complete -e ended status | cut -d: -f2 | tr '\n' ' ')" = "complete image ended $PID " ]
	restart --check image
}

@test "stdout on a regular file is a file" {
	begin
	ckpt -p "$PID" >image
	gone "$PID"
	restart_as_new image
	check_victim "$NEW"
}

@test "-o replaces a file in one step and leaves nothing else" {
	begin
	echo old >image
	ckpt -c -p "$PID" -o image
	restart --check image
	[ "$(ls)" = "$(printf 'before\nimage\nout\npids')" ]
	original_runs
}

@test "-c leaves it running; the copy runs as well when asked" {
	begin
	ckpt -c -p "$PID" -o image
	original_runs
	ckpt -c -p "$PID" | restart --check -
	original_runs
}

@test "-k through a pipe ends it after the image" {
	begin
	ckpt -k -p "$PID" | cat >image
	gone "$PID"
	restart_as_new image
	check_victim "$NEW"
}

@test "-S parks it: a SIGCONT changes nothing, --resume does, --end ends it" {
	begin
	ckpt -q -S -p "$PID" -o image
	ckpt --list | grep -q "^$PID"
	kill -CONT "$PID"
	kill -USR2 "$PID" # waits until it runs again
	for _ in 1 2 3 4 5; do
		kill -CONT "$PID"
		ckpt --list | grep -q "^$PID"
	done
	run ! grep -q "ok $((CHECKS + 1))" out
	ckpt --resume "$PID"
	CHECKS=$((CHECKS + 1))
	await out "ok $CHECKS" 30
	run ! ckpt --resume "$PID"
	original_runs
	ckpt -q -S -p "$PID" -o image
	ckpt --end "$PID"
	gone "$PID"
}

@test "a pipe to a restart moves it" {
	begin
	ckpt -p "$PID" | restart -d - >new
	gone "$PID"
	cat new >>pids
	check_victim "$(cat new)"
}

@test "--to moves it, and says so" {
	begin
	ckpt -p "$PID" --to 'restart -d -' --status-fd 3 3>status
	gone "$PID"
	grep -q '^running ' status
	NEW=$(one_victim)
	echo "$NEW" >>pids
	check_victim "$NEW"
}

@test "-c --to starts a copy while it runs on" {
	start_victim anon handlers
	ckpt -c -p "$PID" --to 'restart -d -'
	[ "$(victims | wc -l)" = 2 ]
	victims >>pids
	check_victim "$PID"
}

@test "a reader that fails leaves it running: at once, early, and in the tail" {
	begin
	run -76 --separate-stderr bash -c "ckpt -q -p $PID | true; exit \$((PIPESTATUS[0] == 74 ? 76 : PIPESTATUS[0]))"
	original_runs
	run bash -c "ckpt -q -p $PID | head -c 100 >/dev/null; exit \${PIPESTATUS[0]}"
	[ "$status" = 74 ]
	original_runs
	# All of the image, and then it dies: the tail is never read.
	run bash -c "ckpt -q -p $PID | { ckpt_bytes=\$(head -c 2000000 | wc -c); }; exit \${PIPESTATUS[0]}"
	[ "$status" = 74 ]
	original_runs
}

@test "a restart that refuses the image leaves it running" {
	begin
	run bash -c "ckpt -q -p $PID | restart -d --chdir /nonexistent -; exit \${PIPESTATUS[0]}"
	[ "$status" = 74 ]
	original_runs
	run ckpt -q -p "$PID" --to 'restart -d --chdir /nonexistent -'
	[ "$status" = 76 ]
	original_runs
}

@test "--to with a command that fails, that is no restart, that stops in the middle" {
	begin
	for command in false true 'echo hello' 'sleep 0.1'; do
		run timeout 20 ckpt -q -p "$PID" --to "$command"
		[ "$status" = 76 ]
		original_runs
	done
	# One that never answers can be interrupted.
	run timeout -s INT 2 ckpt -q -p "$PID" --to 'cat >/dev/null'
	[ "$status" = 75 ] || [ "$status" = 124 ]
	original_runs
}

@test "restart dies at each step: the original runs on" {
	begin
	for site in read_header placed execed mapped filled parked; do
		for act in kill fail; do
			run bash -c "ckpt -q -p $PID | restart -q -d -F $site:$act -; exit \${PIPESTATUS[0]}"
			# `placed` is passed in new namespaces only.
			[ "$status" = 74 ]
			original_runs
			run ckpt -q -p "$PID" --to "restart -q -d -F $site:$act -"
			[ "$status" = 76 ]
			original_runs
		done
	done
}

@test "--to: restart dies after GO and says nothing: the original is saved and named" {
	start_victim anon handlers
	run ckpt -p "$PID" --to 'restart -q -d -F released:kill -'
	[ "$status" = 76 ]
	gone "$PID"
	saved=$(echo "$output" | sed -n 's/.*saved here as \([^;]*\);.*/\1/p')
	restart --check "$saved"
	# The copy may run or not (its init, where there is one, has taken it along): never two.
	[ "$(victims | wc -l)" -le 1 ]
	for p in $(victims); do kill -KILL "$p"; done
	restart_as_new "$saved"
	kill -USR2 "$NEW"
	await out ok 30 2
}

@test "no room: /dev/full, a file size limit, a full disk leave it running" {
	begin
	run ckpt -q -c -p "$PID" -o /dev/full
	[ "$status" = 74 ]
	original_runs
	run bash -c "trap '' XFSZ; ulimit -f 16; ckpt -q -p $PID -o image"
	[ "$status" = 74 ]
	[ ! -e image ]
	original_runs
}

@test "output that is neither file nor pipe to somebody is refused" {
	begin
	run ckpt -p "$PID" -o /dev/null
	[ "$status" = 73 ]
	run ckpt -p "$PID" -o "$T/no/such/directory/image"
	[ "$status" = 73 ]
	original_runs
}

@test "ckpt is killed, and fails, at every fault site: as found, or a complete image" {
	start_victim anon handlers hundred blocked vectors
	snapshot "$PID" >before
	for site in seized frozen framed borrowed call_entered page_lent asked answered mask_back collected header_out \
		page_out image_out; do
		for n in 1 7; do
			for act in kill term fail; do
				rm -f image
				ckpt -q -p "$PID" -o image -F "$site:$act:$n" 2>/dev/null || :
				if gone "$PID"; then # the site was passed fewer times
					restart --check image
					restart_as_new image
					PID=$NEW
					snapshot "$PID" >before
					continue
				fi
				[ ! -e image ] || restart --check image
				as_found "$PID"
				check_victim "$PID"
			done
		done
	done
}

@test "ckpt is killed after the image has its name: it is complete" {
	for site in synced before_end ended; do
		rm -f image
		: >out
		start_victim anon
		ckpt -q -p "$PID" -o image -F "$site" 2>/dev/null || :
		restart --check image
		kill -KILL "$PID" 2>/dev/null || :
	done
}

@test "ckpt is killed around the decision of a pipe: one runs, or an image is named" {
	for site in tail_out before_end end_out ended; do
		: >out
		start_victim anon handlers
		(ckpt -q -p "$PID" -F "$site" | restart -d - >new 2>err) 2>/dev/null || :
		if [ -s new ]; then
			cat new >>pids
			timeout 10 tail --pid="$PID" -f /dev/null || gone "$PID"
			check_victim "$(cat new)"
			kill -KILL "$(cat new)"
		else
			saved=$(sed -n 's/.*saved as \([^;]*\);.*/\1/p' err)
			restart --check "$saved"
			times=1
			if ! gone "$PID"; then
				check_victim "$PID"
				kill -KILL "$PID"
				times=2 # the saved one has its own count
			else
				CHECKS=$((CHECKS + 1))
			fi
			restart_as_new "$saved"
			kill -USR2 "$NEW"
			await out "ok $CHECKS" 30 $times
			kill -KILL "$NEW"
			rm "$saved"
		fi
	done
}

@test "a stream without END: --hold saves it, a file is refused, --without-end runs it" {
	start_victim anon handlers
	ckpt -p "$PID" | cat >stream
	gone "$PID"
	head -c -16 stream >cut # END is the last frame
	run restart cut
	[ "$status" = 76 ]
	[[ "$output" == *--without-end* ]]
	# The stream stays open: nothing is ever written into `slow`.
	mkfifo slow
	run bash -c '{ cat cut; read -r -t 5 _ <>slow; } | { restart --hold 1 -; echo "status $?"; }'
	[[ "$output" == *"status 76"* ]]
	saved=$(echo "$output" | sed -n 's/.*saved as \([^;]*\);.*/\1/p')
	restart --check "$saved"
	restart_as_new --without-end cut
	check_victim "$NEW"
	kill -KILL "$NEW"
	# The whole stream in a file has its END.
	restart_as_new stream
}

@test "many threads are asked at once: a signal that comes meanwhile is not lost, and none comes of it" {
	start python3 -c '
import signal, threading
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGURG, signal.SIGUSR1])
for i in range(40):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
print("ready", flush=True)
n = 0
while signal.sigwait([signal.SIGURG, signal.SIGUSR1]) == signal.SIGURG:
    n += 1
    print("urgent", n, flush=True)
print("end", n, flush=True)'
	await out ready 10
	while [ ! -e stop ]; do ckpt -c -p "$PID" -o image 2>>ckpt.err && echo once >>taken; done &
	local copier=$!
	echo "$copier" >>pids
	await taken once 20
	for i in $(seq 200); do
		kill -URG "$PID"
		await out "urgent $i" 10
	done
	: >stop
	wait "$copier"
	kill -USR1 "$PID"
	await out "end 200" 10
	[ ! -s ckpt.err ]
	[ "$(wc -l <taken)" -gt 5 ]
}

@test "a SIGSTOP that comes while it is asked: it is stopped, here and in the copy" {
	start_victim anon hundred
	for _ in $(seq 12); do
		kill -STOP "$PID"
		ckpt -c -p "$PID" -o image
		restart --check image
		kill -CONT "$PID"
	done
	kill -STOP "$PID"
	ckpt -p "$PID" -o image
	NEW=$(restart -d --pid=ns image)
	echo "$NEW" >>pids
	until_true '[ "$(cut -d" " -f3 "/proc/$NEW/stat")" = T ]'
	kill -CONT "$NEW"
	check_victim "$NEW"
}

@test "ckpt is killed at fifty random moments: as found" {
	start_victim anon handlers hundred blocked vectors
	snapshot "$PID" >before
	for i in $(seq 50); do
		setsid ckpt -q -c -p "$PID" -o image &
		killed=$!
		# A moment: some steps of a loop, never a time that anything depends on.
		for _ in $(seq $((RANDOM % 800 + i))); do :; done
		kill -KILL -- "-$killed" 2>/dev/null || kill -KILL "$killed" 2>/dev/null || :
		wait "$killed" 2>/dev/null || :
		as_found "$PID"
	done
	check_victim "$PID"
}
