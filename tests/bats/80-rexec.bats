#!/usr/bin/env bats
# System calls in a running process, by hand.

load common

# Waits in sigwait(3), writes a line each time it is asked.
start_job() {
	start_victim anon handlers offset hundred
	oracle "$PID" >before
}

call() {
	rexec-sys call -p "$PID" "$@"
}

@test "a call and what it gives, as text and as JSON" {
	start_job
	[ "$(call getpid)" = "getpid() = $PID" ]
	[ "$(call getcwd _ 4096)" = "getcwd(\"$T\", 4096) = $((${#T} + 1))" ]
	call fstat 1 _ | grep -q "st_size=$(stat -c %s out)[,}]"
	call --json getcwd _ 4096 | jq -e --arg t "\"$T\"" '.call == "getcwd" and .arguments[0] == $t and .error == null'
	printf 'one\ntwo\0\1' >content
	call open "$T/content" O_RDONLY >opened
	fd=$(sed 's/.* = //' opened)
	grep -qxF "open(\"$T/content\", O_RDONLY) = $fd" opened
	[ "$(call pread64 "$fd" _ 100 0)" = "pread64($fd, \"one\\ntwo\\0\\1\", 100, 0) = 9" ]
	call close "$fd"
	call uname _ | grep -qF "release=\"$(uname -r)\""
	as_before "$PID"
	check_victim "$PID"
}

@test "an error is printed and is the exit status 1; data of many sizes" {
	start_job
	run -1 rexec-sys call -p "$PID" read 99 _ 100
	[ "$output" = 'read(99, _, 100) = -1 EBADF (Bad file descriptor)' ]
	for size in 1 1000 1100 5000 300000; do
		head -c "$size" /dev/urandom >data
		fd=$(call open "$T/copy" 'O_RDWR|O_CREAT|O_TRUNC' 0600 | sed 's/.* = //')
		call write "$fd" @data | grep -q " = $size\$"
		cmp data copy
		call close "$fd" >/dev/null
	done
	as_before "$PID"
	check_victim "$PID"
}

@test "its stdout is redirected by a script, and back" {
	start_job
	rexec-sys call -p "$PID" - <<-S >results
		# somewhere else
		dup 1
		open "$T/else where" O_WRONLY|O_CREAT|O_APPEND 0644
		dup2 \$2 1
		close \$2
		-close 999
	S
	[ "$(wc -l <results)" = 5 ]
	saved=$(sed -n '1s/.* = //p' results)
	kill -USR2 "$PID"
	await "else where" "ok 2" 20
	run ! grep -q "ok 2" out
	printf 'dup2 %s 1\nclose %s\n' "$saved" "$saved" | rexec-sys call -p "$PID" -
	CHECKS=2
	check_victim "$PID"
}

@test "a script ends at the first error; one that is malformed does nothing" {
	start_job
	run -1 rexec-sys call -p "$PID" - <<<$'close 999\nchdir /'
	[ "${#lines[@]}" = 1 ]
	run -64 rexec-sys call -p "$PID" - <<<$'chdir /\nchdir'
	run -64 rexec-sys call -p "$PID" - <<<$'chdir /\nread $9 _ 1'
	[[ $output == *"line 2"* ]]
	as_before "$PID"
	check_victim "$PID"
}

@test "what cannot be had executed is refused by name" {
	start_job
	for words in "fork" "exit_group 0" "execve /bin/true NULL NULL" "rt_sigreturn" "ptrace 0" "ioctl 0 0x1234 _" "msgsnd 1 _ 1 0"; do
		# shellcheck disable=SC2086
		run -69 rexec-sys call -p "$PID" $words
		[[ $output == *"${words%% *}"* ]]
	done
	for words in "nothing" "read 0 _" "close 1 2" "kill 1 SIGNOTHING" "open $T/x O_NOTHING" "nanosleep {1,2,3} NULL" "read \$1 _ 1"; do
		# shellcheck disable=SC2086
		run -64 rexec-sys call -p "$PID" $words
	done
	run -66 rexec-sys call -p 4194303 getpid
	as_before "$PID"
	check_victim "$PID"
}

@test "threads: the one that is named executes it, the others run on" {
	start_victim threads-in-child
	KID=$(pgrep -P "$PID")
	for tid in /proc/"$KID"/task/*; do
		[ "$(rexec-sys call -p "$KID" -t "${tid##*/}" gettid)" = "gettid() = ${tid##*/}" ]
	done
	run -66 rexec-sys call -p "$KID" -t 1 gettid
	check_victim "$PID"
}

@test "a call that blocks is interrupted; the process and its own call are none the worse" {
	start sh -c 'echo ready; sleep 3; echo slept $?'
	await out ready 20
	SLEEP=$(pgrep -P "$PID")
	run -69 rexec-sys call -p "$SLEEP" -w 1 nanosleep '{100, 0}' NULL # would take the place of its own
	run -1 rexec-sys call -p "$SLEEP" -w 1 pause
	[[ $output == *EINTR* ]]
	await out slept 20
	grep -qx "slept 0" out
}

@test "rexec-sys is interrupted in a call that blocks: the thread gets its own back first" {
	start sleep 1000
	rexec-sys call -w 100 -p "$PID" pause &
	R=$!
	until_true 'grep -q "TracerPid:.*[1-9]" /proc/'"$PID"'/status && grep -q "^34 " /proc/'"$PID"'/syscall'
	kill -TERM "$R"
	status=0
	wait "$R" || status=$?
	[ "$status" = 143 ]
	until_true 'grep -q "TracerPid:.*0" /proc/'"$PID"'/status'
	run ! grep -q "^34 " "/proc/$PID/syscall"
	grep -q "^SigBlk:.0*$" "/proc/$PID/status"
}

@test "sockets and structs: addresses, options, polls, limits" {
	cat >job.py <<'P'
import socket, time
s = socket.socket(); s.bind(("127.0.0.1", 0)); s.listen()
print(s.fileno(), s.getsockname()[1], flush=True)
time.sleep(1000)
P
	start python3 job.py
	await out " " 20
	read -r fd port <out
	call getsockname "$fd" _ 128 | grep -qF "inet:127.0.0.1:$port"
	call getsockopt "$fd" SOL_SOCKET SO_TYPE _ 4 | grep -qF 'SO_TYPE, "\1\0\0\0"'
	rexec-sys call -p "$PID" - <<-S >results
		socket AF_INET SOCK_STREAM 0
		connect \$1 inet:127.0.0.1:$port
		poll [{$fd,1}] 1 1000
		accept $fd _ 128
		write \$1 "through" 7
		read \$4 _ 100
		close \$4
		close \$1
	S
	grep -qF "poll([{fd=$fd, events=1, revents=1}], 1, 1000) = 1" results
	grep -qF ', "through", 100) = 7' results
	call setrlimit RLIMIT_CORE '{rlim_cur=0, rlim_max=4096}'
	call getrlimit RLIMIT_CORE _ | grep -qF '{rlim_cur=0, rlim_max=4096}'
	grep -q '^Max core file size  *0  *4096' "/proc/$PID/limits"
}

@test "rexec-sys is killed at each step: the process is as it was" {
	start_job
	for site in framed borrowed call_entered mask_back; do
		run ! rexec-sys call -F "$site:kill" -p "$PID" getpid
		as_before "$PID"
	done
	check_victim "$PID"
}

@test "filters that would end it for the call: refused, or suspended as root" {
	start contained victim anon
	await out ready 20
	export CHECKS=0
	if [ "$(id -u)" = 0 ]; then
		rexec-sys call -p "$PID" getpid
	else
		run -77 rexec-sys call -p "$PID" getpid
	fi
	check_victim "$PID"
}
