#!/usr/bin/env bats
# Processes that run elsewhere while their files, connections and terminals stay at home.

load common
load hosts

# The process runs elsewhere afterwards, as AWAY (as we see it); HOME_PID is who serves it.
leave_home() {
	: >home.err
	: >restart.err
	: >status
	ADDRESS=${ADDRESS:-unix:$T/home}
	(
		{
			s=0
			ckpt -s "$ADDRESS" -p "$PID" 2>>home.err 5>&- 3>&- || s=$?
			echo "home $s" >>home.err
		} | {
			s=0
			restart --status-fd 5 ${KEY:+--key "$KEY"} - 5>status 2>>restart.err 3>&- || s=$?
			echo "restart $s" >>restart.err
		}
	) </dev/null >/dev/null 3>&- &
	echo $! >>pids
	await status running 30 || {
		cat home.err restart.err
		return 1
	}
	HOME_PID=$(pgrep -f "^rexec-sys home .*" -n)
	AWAY=$(cut -d' ' -f2 status)
	echo "$HOME_PID" >>pids
	echo "$AWAY" >>pids
}

# It has ended there with this status, and here in the same way.
both_end() {
	await restart.err "restart " 20
	grep -qx "restart $1" restart.err || {
		cat restart.err home.err
		return 1
	}
	until_true 'gone "$PID"'
	until_true 'gone "$HOME_PID"'
	grep -qx "home 0" home.err || {
		cat home.err
		return 1
	}
}

need() {
	local p
	for p in "$@"; do
		command -v "$p" >/dev/null || skip "$p is not installed"
	done
}

# A parent that says how its child ends or stops.
parent() {
	cat >parent.py <<-'P'
		import os, sys
		pid = os.fork()
		if pid == 0:
		    os.execvp(sys.argv[1], sys.argv[1:])
		print("child", pid, flush=True)
		while True:
		    _, s = os.waitpid(pid, os.WUNTRACED | os.WCONTINUED)
		    if os.WIFSTOPPED(s): print("stopped", os.WSTOPSIG(s), flush=True)
		    elif os.WIFCONTINUED(s): print("continued", flush=True)
		    else:
		        print("ended", os.waitstatus_to_exitcode(s), flush=True)
		        break
	P
	: >parent.out
	python3 parent.py "$@" >parent.out 2>parent.err </dev/null 3>&- &
	echo $! >>pids
	await parent.out child 20
	PID=$(awk '$1 == "child" { print $2 }' parent.out)
	echo "$PID" >>pids
}

@test "files, directory, numbers and status are those of home; the processor is not" {
	cat >job.py <<-'J'
		import os, sys, time
		out = open("job.out", "a")
		def say(*a): print(*a, file=out, flush=True)
		fresh = open("fresh", "w+")
		os.unlink("fresh")
		say("ready", os.getpid(), os.getcwd())
		while not os.path.exists("go"): time.sleep(0.05)
		fresh.write("kept\n")
		fresh.seek(0)
		say("after", os.getpid(), os.getcwd(), fresh.read().strip(), os.getpgrp(), os.getsid(0), os.uname().nodename)
		n = 0
		while time.process_time() < 1.5: n += 1
		say(open("/proc/self/stat").read().split()[0])
		sys.exit(7)
	J
	: >job.out
	parent python3 job.py
	await job.out ready 20
	before=$(awk '{ print $14 + $15 }' "/proc/$PID/stat")
	group=$(ps -o pgid= -p "$PID") session=$(ps -o sid= -p "$PID")
	leave_home
	touch go
	until_true 'grep -q after job.out'
	grep -qx "after $PID $T kept $((group)) $((session)) $(uname -n)" job.out
	until_true '[ "$(wc -l <job.out)" = 3 ]'
	after=$(awk '{ print $14 + $15 }' "/proc/$PID/stat" 2>/dev/null || echo 0)
	[ $((after - before)) -lt 50 ]
	both_end 7
	await parent.out "ended 7" 20
	grep -qx "$PID" job.out
}

@test "its memory leaves, and nothing is left of it when it has ended" {
	start_victim anon handlers
	leave_home
	until_true '[ "$(awk "/^VmRSS/ { print \$2 }" "/proc/$PID/status")" -lt 2000 ]'
	[ "$(awk '/^Seccomp:/ { print $2 }' "/proc/$PID/status")" = 0 ]
	check_victim "$PID" # its signal goes after it
	kill -KILL "$PID"
	both_end 137
	[ ! -e home ]
	! pgrep -f "rexec-sys (home|away)" -u "$(id -u)" -P "$$"
}

@test "threads that wait in reads, accept, poll and epoll; a signal for one of them" {
	cat >threads.py <<-'P'
		import os, select, signal, socket, threading, time
		lock = threading.Lock()
		out = open("out", "a")
		def say(*a):
		    with lock: print(*a, file=out, flush=True)
		os.mkfifo("fifo")
		server = socket.socket(socket.AF_UNIX); server.bind("sock"); server.listen()
		a, b = socket.socketpair()
		r, w = os.pipe()
		e = select.epoll(); e.register(r, select.EPOLLIN)
		def reader(): say("fifo", os.read(os.open("fifo", os.O_RDONLY), 100).decode().strip())
		def acceptor():
		    while True:
		        c, _ = server.accept(); say("accepted", c.recv(100).decode()); c.send(b"thanks"); c.close()
		def poller():
		    p = select.poll(); p.register(a, select.POLLIN); p.poll(); say("polled", a.recv(10).decode())
		def epoller(): e.poll(); say("epoll", os.read(r, 10).decode())
		def on(sig, frame): say("signal", sig)
		signal.signal(signal.SIGUSR1, on)
		signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
		for f in reader, acceptor, poller, epoller: threading.Thread(target=f, daemon=True).start()
		time.sleep(0.3)
		say("ready")
		info = signal.sigwaitinfo([signal.SIGUSR2])
		say("waited", info.si_pid)
		os.write(w, b"pipe"); b.send(b"pair")
		time.sleep(1)
		say("end")
	P
	start python3 threads.py
	await out ready 20
	leave_home
	echo through >fifo
	until_true 'grep -qx "fifo through" out'
	[ "$(python3 -c 'import socket
s = socket.socket(socket.AF_UNIX); s.connect("sock"); s.send(b"hello"); print(s.recv(10).decode())')" = thanks ]
	kill -USR1 "$PID"
	until_true 'grep -qx "signal 10" out'
	bash -c 'echo $$ >sender; kill -USR2 '"$PID"'; sleep 1'
	until_true 'grep -qx end out'
	grep -qx "waited $(cat sender)" out
	grep -qx "polled pair" out
	grep -qx "epoll pipe" out
	grep -qx "accepted hello" out
	both_end 0
}

@test "stopped and continued at home: the computation is, and the parent is told" {
	parent bash -c 'n=0; while :; do n=$((n + 1)); echo $n >count; done'
	until_true '[ -s count ]'
	leave_home
	kill -STOP "$PID"
	await parent.out "stopped 19" 20
	until_true '[ "$(ps -o stat= -p "$AWAY" | cut -c1)" = t ] || [ "$(ps -o stat= -p "$AWAY" | cut -c1)" = T ]'
	c=$(cat count)
	ticks=$(awk '{ print $14 + $15 }' "/proc/$AWAY/stat")
	sleep 0.3
	[ "$(cat count)" = "$c" ]
	[ "$(awk '{ print $14 + $15 }' "/proc/$AWAY/stat")" = "$ticks" ]
	kill -CONT "$PID"
	await parent.out continued 20
	until_true '[ -n "$(cat count)" ] && [ "$(cat count)" != "$c" ]'
	# Who said that it should leave has gone: his terminal is none of its business.
	[ "$(ps -o sid= -p "$HOME_PID" | tr -d ' ')" = "$HOME_PID" ]
	kill -KILL "$PID"
	await parent.out "ended -9" 20
	both_end 137
}

@test "forks, pipelines and programs after the move; numbers are those of home" {
	cat >job.sh <<-'J'
		until [ -e go ]; do sleep 0.05; done
		seq 1 1000 | sort -rn | head -n 3 | tr '\n' ' '
		(exit 3); echo "status $?"
		sleep 1000 & echo "child $!"; kill $!; wait $!; echo "killed $?"
		for i in 1 2 3 4 5 6 7 8; do /bin/echo "$i" & done | sort | tr '\n' ' '
		wait
		sh -c 'echo "mine $$ $PPID"'
		readlink /proc/self/exe
		exec sh -c 'echo last; exit 9'
	J
	start bash job.sh
	sleep 0.3
	leave_home
	touch go
	both_end 9
	cat out
	grep -q "^1000 999 998 status 3" out
	grep -qx "killed 143" out
	grep -q "^1 2 3 4 5 6 7 8 " out
	grep -qx last out
	grep -q " $PID$" <(grep -o "mine .*" out)
}

@test "vim in tmux: the terminal stays, and so do its windows" {
	need tmux vim
	export SHELL=/bin/sh
	tm() { tmux -S "$T/tmux" "$@"; }
	shows() { tm capture-pane -p | grep -qF -- "$1"; }
	printf 'one\ntwo\nthree\n' >text
	tm -f /dev/null new-session -d -x 80 -y 20 "vim -u NONE -N text; echo ended \$?; sleep 1000" 3>&-
	tm display-message -p '#{pid}' >>pids
	until_true 'shows three'
	PID=$(pgrep -P "$(tm list-panes -F '#{pane_pid}')" -x vim)
	leave_home
	tm send-keys ':%s/three/moved/' Enter
	until_true 'shows moved'
	tm resize-window -x 60 -y 15
	tm send-keys ':set columns?' Enter
	until_true 'shows columns=60'
	tm send-keys ':!hostname; tty' Enter
	until_true 'shows /dev/pts/'
	tm send-keys Enter ':w' Enter
	until_true 'grep -qx moved text'
	tm send-keys ':q' Enter
	until_true 'shows "ended 0"'
	both_end 0
	tm kill-server
}

@test "an interactive shell has its jobs: stopped, in the background, interrupted" {
	need tmux
	tm() { tmux -S "$T/tmux" "$@"; }
	shows() { tm capture-pane -p -J | grep -qE -- "$1"; }
	export SHELL=/bin/sh
	tm -f /dev/null new-session -d -x 80 -y 40 "PS1='ready> ' HISTFILE= bash --norc -i; echo ended \$?; sleep 1000" 3>&-
	tm display-message -p '#{pid}' >>pids
	until_true 'shows "^ready> "'
	PID=$(pgrep -P "$(tm list-panes -F '#{pane_pid}')" -x bash)
	tm send-keys 'x=kept' Enter
	leave_home
	tm send-keys 'echo $x $$ sure' Enter
	until_true "shows '^kept $PID sure'"
	tm send-keys 'sleep 1001' Enter
	until_true 'pgrep -P "$AWAY" -x sleep >/dev/null'
	sleep 0.2
	tm send-keys C-z
	until_true 'shows "Stopped +sleep 1001"'
	tm send-keys 'bg' Enter
	until_true 'shows "\[1\]. sleep 1001 &"'
	tm send-keys 'fg' Enter
	until_true 'shows "^sleep 1001$"'
	sleep 0.2
	tm send-keys C-c
	until_true '! pgrep -P "$AWAY" -x sleep >/dev/null'
	tm send-keys 'echo was $?' Enter
	until_true 'shows "^was 130"'
	tm send-keys 'exit 5' Enter
	until_true 'shows "^ended 5"'
	both_end 5
	tm kill-server
}

@test "redis-server with connected clients: each goes on, and it can still save" {
	need redis-server redis-cli redis-benchmark
	local port=$((20000 + $$ % 20000))
	start redis-server --port $port --save '' --appendonly yes --dir "$T"
	until_true '[ "$(redis-cli -p '$port' ping 2>/dev/null)" = PONG ]'
	redis-cli -p $port set mark "$$" >/dev/null
	exec 6<>/dev/tcp/127.0.0.1/$port
	LOAD=$(spawn load redis-benchmark -p "$port" -n 3000 -c 4 -t incr --csv)
	echo "$LOAD" >>pids
	until_true '[ "$(redis-cli -p '$port' get counter:__rand_int__)" -gt 100 ]'
	leave_home 6>&-
	printf 'GET mark\r\n' >&6
	read -r -t 20 -u 6 line
	read -r -t 20 -u 6 line
	[ "${line%$'\r'}" = $$ ]
	exec 6>&-
	until_true '! kill -0 "$LOAD" 2>/dev/null || gone "$LOAD"'
	[ "$(redis-cli -p $port get counter:__rand_int__)" = 3000 ]
	redis-cli -p $port bgsave
	until_true '[ -s dump.rdb ]'
	until_true 'redis-cli -p '$port' info persistence | grep -q rdb_bgsave_in_progress:0'
	redis-cli -p $port info persistence | grep -q rdb_last_bgsave_status:ok
	redis-cli -p $port shutdown nosave || :
	both_end 0
}

@test "home is killed: the process has ended, which is said; so it is when the other side is" {
	start_victim anon
	leave_home
	kill -KILL "$HOME_PID"
	await restart.err "restart 137" 20
	grep -q "has been ended: its files are out of reach" restart.err
	until_true 'gone "$PID"'
	parent bash -c 'until [ -e go ]; do sleep 0.1; done'
	rm -f home
	leave_home
	kill -KILL "$(ps -o ppid= -p "$AWAY")"
	await home.err "ended, as where it ran is out of reach" 20
	await parent.out "ended -9" 20
	gone "$AWAY"
	until_true 'gone "$HOME_PID"'
}

@test "threads and forks under signals, stops and timers; the original is killed, and so is the connection" {
	cat >busy.py <<-'P'
		import os, signal, subprocess, sys, threading, time
		signal.signal(signal.SIGUSR1, lambda s, f: None)
		signal.siginterrupt(signal.SIGUSR1, False)
		bad = []
		def stats():
		    while not os.path.exists("stop"):
		        os.stat("/etc/passwd"); time.sleep(0.011)
		def forks():
		    while not os.path.exists("stop"):
		        out = subprocess.run(["echo", "x" * 100], capture_output=True).stdout
		        if len(out) != 101: bad.append(len(out))
		        time.sleep(0.02) # numbers of processes are to last
		def threads():
		    while not os.path.exists("stop"):
		        t = threading.Thread(target=lambda: os.stat("/")); t.start(); t.join(); time.sleep(0.02)
		ts = [threading.Thread(target=f) for f in [stats] * 4 + [forks, threads]]
		[t.start() for t in ts]
		print("ready", flush=True)
		while any(t.is_alive() for t in ts): time.sleep(0.05)
		print("end", bad, flush=True)
		os._exit(4)
	P
	local k i
	for k in end kill cut; do
		rm -f home stop
		parent python3 busy.py
		await parent.out ready 20
		leave_home
		for i in $(seq 200); do
			kill -USR1 "$PID" || break
			[ $((i % 20)) != 0 ] || { kill -STOP "$PID" && kill -CONT "$PID"; }
			sleep 0.005
		done
		case $k in
		end)
			touch stop
			await parent.out "ended 4" 30
			grep -qxF 'end []' parent.out
			;;
		kill)
			kill -KILL "$PID"
			await parent.out "ended -9" 20
			;;
		cut)
			kill -KILL "$(ps -o ppid= -p "$AWAY")"
			await parent.out "ended -9" 20
			;;
		esac
		until_true 'gone "$AWAY"'
		until_true 'gone "$HOME_PID"'
		wait
		: >pids # all of them have ended, and their numbers may be somebody else's
	done
}

@test "what fails before the copy has begun harms nobody" {
	local s=0
	start_victim anon offset
	snapshot "$PID" >before
	# The image breaks off.
	{ ckpt -s "unix:$T/home" -p "$PID" 2>home.err 3>&- || echo "home $?" >>home.err; } | head -c 5000 >/dev/null
	grep -q "^home " home.err
	snapshot "$PID" | diff before -
	check_victim "$PID"
	# It cannot be restarted.
	{ ckpt -s "unix:$T/home" -p "$PID" 2>home.err 3>&- || echo "home $?" >>home.err; } | { restart --home "unix:$T/nobody" - 2>restart.err 3>&- || echo "restart $?" >>restart.err; }
	grep -qx "home 76" home.err
	grep -qx "restart 76" restart.err
	snapshot "$PID" | diff before -
	check_victim "$PID"
	# Nobody comes.
	ckpt -s "unix:$T/home" -p "$PID" -o image 2>home.err 3>&- &
	echo $! >>pids
	await home.err "stands still until" 20
	# A stranger, and one with another image, cost nothing.
	printf 'garbage garbage garbage garbage' | timeout 5 python3 -c '
import socket, sys
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.send(sys.stdin.buffer.read()); s.recv(100)' "$T/home" || :
	await home.err "protocol" 20
	pkill -TERM -f "^rexec-sys home" -u "$(id -u)" -n
	wait $! || s=$?
	[ "$s" = 75 ] || [ "$s" = 76 ]
	grep -q "pid $PID runs on" home.err
	snapshot "$PID" | diff before -
	check_victim "$PID"
	bsdtar -xOf image header.json | grep -q "unix:$T/home"
	run -76 restart image
}

@test "an image in a file waits for its home; another home is refused" {
	start_victim anon handlers
	: >home.err
	ckpt -s "unix:$T/home" -p "$PID" -o image 2>home.err 3>&- &
	echo $! >>pids
	await home.err "stands still until" 20
	restart_as_new image
	check_victim "$PID"
	kill -KILL "$PID"
	until_true 'gone "$NEW"'
}

@test "over the connection of --to; and detached" {
	start_victim anon handlers
	: >home.err
	: >status
	ckpt -s - -p "$PID" --to "restart -d --status-fd 5 - 5>'$T/status' 2>'$T/restart.err'" 2>home.err 3>&- &
	echo $! >>pids
	await status running 20
	check_victim "$PID"
	kill -KILL "$PID"
	wait $! || :
	until_true 'gone "$(cut -d" " -f2 status)"'
}

@test "what cannot stay at home is refused by name, the process unharmed" {
	cat >job.py <<-'J'
		import mmap, os, sys, time
		if sys.argv[1] == "map":
		    f = open("shared", "w+b"); f.truncate(4096); m = mmap.mmap(f.fileno(), 4096)
		else:
		    import ctypes
		    ctypes.CDLL(None).signalfd(-1, ctypes.byref(ctypes.c_uint64(1)), 0)
		print("ready", flush=True)
		while True: time.sleep(0.1)
	J
	start python3 job.py map
	await out ready 20
	run -69 ckpt -s "unix:$T/home" -p "$PID" -o image
	[[ $output == *"memory that is a file"* ]]
	[ ! -e image ] && [ ! -e home ]
	start python3 job.py signalfd
	await out ready 20 2
	run -69 ckpt -s "unix:$T/home" -p "$PID" -o image
	[[ $output == *signal* ]]
	run -64 ckpt -s "unix:$T/home" -c -p "$PID" -o image
	run -64 ckpt --key k -p "$PID" -o image
	run ckpt -s ssh:hostB -p "$PID" -o image
	[ "$status" != 0 ]
	[[ $output == *"--to"* ]]
}

@test "between two machines by TCP with a key; the cable is cut" {
	two_hosts
	(umask 077 && head -c 32 /dev/urandom | base64 >secret)
	on A bash -c 'until [ -e go ]; do sleep 0.05; done; cat /mnt/name; uname -n; until [ -e stop ]; do sleep 0.05; done' >out 2>&1 </dev/null 3>&- &
	echo $! >>pids
	until_true 'PID=$(pgrep -f "^bash -c until")'
	PID=$(pgrep -f "^bash -c until" -n)
	echo "$PID" >>pids
	inner=$(awk '/^NSpid/ { print $NF }' "/proc/$PID/status")
	: >status
	on A sh -c "ckpt -s tcp:10.77.0.1:7400 --key secret -p $inner 2>home.err | ssh -F ssh.conf hostB 'cd $T && exec restart --key secret --status-fd 5 - 5>status 2>restart.err'" </dev/null >/dev/null 3>&- &
	echo $! >>pids
	await status running 30
	on B pgrep -f "^bash -c until" >/dev/null
	touch go
	await out hostA 20 2
	on A ip link set "pmsA$$" down
	await restart.err "out of reach" 60
	await home.err "out of reach" 60
	until_true 'gone "$PID"'
	until_true '! on B pgrep -f "^bash -c until" >/dev/null'
}

@test "one that is stopped, with timers that run: it is stopped there, and its timers are there alone" {
	cat >timers.py <<-'P'
		import signal, time
		n = 0
		def on(s, f):
		    global n
		    n += 1
		signal.signal(signal.SIGALRM, on)
		signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
		out = open("ticks", "a")
		end = time.monotonic() + 1e9
		while True:
		    time.sleep(0.05)
		    print(n, round(time.monotonic() * 50), file=out, flush=True)
	P
	parent python3 timers.py
	until_true '[ "$(wc -l <ticks 2>/dev/null)" -gt 5 ]'
	kill -STOP "$PID"
	await parent.out "stopped 19" 20
	leave_home
	sleep 0.3
	lines=$(wc -l <ticks)
	sleep 0.3
	[ "$(wc -l <ticks)" = "$lines" ]
	kill -CONT "$PID"
	until_true '[ "$(wc -l <ticks)" -gt '$((lines + 40))' ]'
	# As many ticks as twentieths of a second went by, and not twice as many.
	awk -v from=$((lines + 5)) 'NR == from { n = $1; t = $2 } END { r = ($1 - n) / ($2 - t); print r; exit !(r < 1.3) }' ticks
	kill -KILL "$PID"
	both_end 137
}
