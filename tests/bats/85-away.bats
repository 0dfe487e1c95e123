#!/usr/bin/env bats
# Calls on another machine, and commands whose files are there.

load common
load hosts

# The same command there and away prints the same, and ends the same; its files are those of there.
same() {
	local status=0
	nsenter -t "$SERVER" --user --mount --uts --net --ipc --pid --preserve-credentials --wdns=/mnt/home -- "$@" >there.1 2>there.2 </dev/null || status=$?
	run -"$status" bash -c 'exec "$@" >away.1 2>away.2 </dev/null' _ rexec-sys run -q -H "$THERE" "$@"
	diff there.1 away.1
	diff there.2 away.2
}

@test "calls by hand, there: as text, as a script, with errors" {
	there
	rexec-sys call -H "$THERE" uname _ | grep -qF 'nodename="there"'
	rexec-sys call -H "$THERE" - >results <<-'S'
		open file O_RDONLY
		read $1 _ 100
		pipe _
		writev 5 "abc"
		readv 4 10
		-read 99 _ 1
		socketpair AF_UNIX SOCK_STREAM 0 _
		sendmsg 6 "over" MSG_NOSIGNAL
		recvmsg 7 100 0
		close $1
	S
	diff - results <<-'S'
		open("file", O_RDONLY) = 3
		read(3, "of there\n", 100) = 9
		pipe({first=4, second=5}) = 0
		writev(5, [{iov_base="abc", iov_len=3}], 1) = 3
		readv(4, [{iov_base="abc", iov_len=3}], 1) = 3
		read(99, _, 1) = -1 EBADF (Bad file descriptor)
		socketpair(AF_UNIX, SOCK_STREAM, 0, {first=6, second=7}) = 0
		sendmsg(6, {msg_namelen=0, msg_iov=[{iov_base="over", iov_len=4}], msg_controllen=0, msg_flags=0}, MSG_NOSIGNAL) = 4
		recvmsg(7, {msg_namelen=0, msg_iov=[{iov_base="over", iov_len=4}], msg_controllen=0, msg_flags=0}, 0) = 4
		close(3) = 0
	S
	run -1 rexec-sys call -H "$THERE" open nothing O_RDONLY
	run -1 rexec-sys call -H "$THERE" mmap NULL 4096 PROT_READ MAP_PRIVATE 0 0
	[[ $output == *ENOSYS* ]]
	run -76 rexec-sys call -H "unix:$T/nobody" getpid
	run -64 rexec-sys call -H "nowhere:1" getpid
}

@test "in a process that is served: it is none the worse, and its own threads go on meanwhile" {
	start_victim anon handlers offset hundred
	oracle "$PID" >before
	threads() { find "/proc/$PID/task" -mindepth 1 -maxdepth 1 | wc -l; }
	had=$(threads)
	: >served
	rexec-sys serve -l "unix:$T/s" -p "$PID" >served 3>&- &
	server=$!
	echo $server >>pids
	await served unix: 20
	[ "$(rexec-sys call -H "unix:$T/s" getpid)" = "getpid() = $PID" ]
	rexec-sys call -H "unix:$T/s" fstat 1 _ | grep -q "st_size=$(stat -c %s out)[,}]"
	head -c 300000 /dev/urandom >data
	fd=$(rexec-sys call -H "unix:$T/s" open "$T/copy" 'O_RDWR|O_CREAT' 0600 | sed 's/.* = //')
	rexec-sys call -H "unix:$T/s" pwrite64 "$fd" @data 300000 0 | grep -q " = 300000\$"
	cmp data copy
	rexec-sys call -H "unix:$T/s" close "$fd"
	until_true 'as_before "$PID"' >/dev/null
	# A call that waits, in one session, and calls in another; the process checks itself. The link is cut: the wait ends with it.
	mkfifo fifo
	: >waiting
	rexec-sys call -H "unix:$T/s" - >waiting 3>&- <<-S &
		getppid
		open $T/fifo O_RDONLY
	S
	waits=$!
	echo $waits >>pids
	await waiting getppid 20
	check_victim "$PID"
	kill -KILL $waits
	until_true '[ "$(threads)" = '"$had"' ]'
	check_victim "$PID"
	# Whatever dies when: a session that is killed leaves no thread behind.
	rexec-sys call -H "unix:$T/s" - >waiting 3>&- <<-S &
		getppid
		nanosleep {100,0} NULL
	S
	echo $! >>pids
	until_true 'grep -q getppid waiting && [ "$(threads)" = $((had + 1)) ]'
	# shellcheck disable=SC2046
	kill -KILL $(pgrep -P "$server")
	check_victim "$PID"
	# Who serves a process ends with it.
	kill -KILL "$PID"
	wait "$server"
}

@test "TCP: with the key, with another, without one; a key that others can read" {
	(umask 077 && head -c 24 /dev/urandom | base64 >key && head -c 24 /dev/urandom | base64 >other)
	: >address
	rexec-sys serve -l tcp:127.0.0.1:0 --key key >address 2>err 3>&- &
	echo $! >>pids
	await address tcp: 20
	a=$(cat address)
	rexec-sys call -H "$a" -k key getpid
	[ "$(rexec-sys run -H "$a" -k key cat /etc/hostname)" = "$(cat /etc/hostname)" ]
	run -76 rexec-sys call -H "$a" -k other getpid
	run -64 rexec-sys call -H "$a" getpid
	cp key open && chmod 644 open
	run -77 rexec-sys call -H "$a" -k open getpid
	run -77 rexec-sys serve -l tcp:127.0.0.1:0 -k open
	run -77 rexec-sys serve -l tcp-clear:0.0.0.0:0
	rexec-sys call -H "$a" -k key getpid
}

@test "a peer that sends garbage, too much, or nothing costs its own session only" {
	there
	python3 - "$T/there.sock" <<-'P'
		import os, socket, struct, sys
		def session():
		    s = socket.socket(socket.AF_UNIX); s.settimeout(30); s.connect(sys.argv[1]); return s
		def frame(type, id, body): return struct.pack("<HHIQ", type, 0, id, len(body)) + body
		hello = frame(16, 0, b"pms-wire" + struct.pack("<II", 1, 0))
		good = session(); good.sendall(hello)
		assert struct.unpack("<H", good.recv(8192)[:2])[0] == 17
		idle = [session() for i in range(5)]
		def ended(*frames):
		    s = session()
		    try:
		        for f in frames: s.sendall(f)
		        while s.recv(65536): pass
		    except (BrokenPipeError, ConnectionResetError): pass
		ended(os.urandom(4096))
		ended(b"GET / HTTP/1.0\r\n\r\n")
		ended(hello, os.urandom(4096))
		ended(hello, struct.pack("<HHIQ", 18, 0, 1, 1 << 60))
		ended(hello, hello)
		ended(hello, frame(18, 1, struct.pack("<II", 7, 0)))                              # a thread that is not there
		ended(hello, frame(18, 1, struct.pack("<IIBQBQBQ", 1, 0, 0, 0, 2, 10, 0, 1000)))  # read 1000 bytes into room for 10
		ended(hello, frame(18, 1, struct.pack("<IIBQBQBQ", 1, 0, 0, 0, 0, 4096, 0, 10)))  # at an address
		ended(hello, frame(18, 1, struct.pack("<IIBQ", 1, 23, 0, 20000) + (struct.pack("<BQ", 1, 128) + bytes(128)) * 3 + struct.pack("<BQ", 0, 0)))  # select of 20000 files
		waits = session(); waits.sendall(hello); waits.recv(8192)
		waits.sendall(frame(18, 2, struct.pack("<IIBQ", 1, 22, 2, 8))); waits.recv(8192)  # pipe: 3 and 4
		waits.sendall(frame(18, 3, struct.pack("<IIBQBQBQ", 1, 0, 0, 3, 2, 10, 0, 10)))    # read, which waits
		waits.sendall(frame(20, 3, b""))
		assert struct.unpack("<HHIQq", waits.recv(8192)[:24])[4] in (-4, -513)
		half = session(); half.sendall(hello[:7])
		good.sendall(frame(18, 5, struct.pack("<II", 1, 39)))                             # getpid
		answer = good.recv(8192)
		assert struct.unpack("<HHIQ", answer[:16])[:3] == (19, 0, 5), answer
		good.sendall(frame(18, 6, struct.pack("<II", 1, 100000)))
		assert struct.unpack("<HHIQq", good.recv(8192))[4] == -38                         # ENOSYS
	P
	rexec-sys call -H "$THERE" getpid
}

@test "what a command sees is of there: files, host name, user, directory; what is of here is its memory and its processes" {
	there
	[ "$(away hostname)" = there ]
	[ "$(away id -u)" = 0 ]
	[ "$(away pwd)" = /mnt/home ]
	[ "$(away cat file)" = "of there" ]
	[ "$(away cat /mnt/home/started)" = "$T" ]
	[ "$(away readlink /proc/self/exe)" = "$(readlink -f "$(command -v readlink)")" ]
	# shellcheck disable=SC2016
	[ "$(away sh -c 'read -r pid comm rest </proc/$$/stat; echo "$comm"')" = "(sh)" ]
	[ "$(away nproc)" = "$(nproc)" ]
	# shellcheck disable=SC2016
	[ "$(away sh -c 'echo $PPID')" -gt 1 ]
	away sh -c 'echo new >made; mkdir dir; ln -s made dir/link'
	nsenter -t "$SERVER" --user --mount --preserve-credentials grep -qx new /mnt/home/dir/../made
	[ ! -e /mnt/home/made ]
}

@test "coreutils, tar, git, sqlite3, python3 and curl print what they print there" {
	there
	same ls -laR --time-style=full-iso /mnt/home
	same sh -c 'seq 1 20000 | sort -R --random-source=/etc/passwd | sort -n | md5sum'
	same sh -c 'cp -r /etc/skel copy; mv copy moved; find moved | sort; rm -r moved; touch -d @0 x; stat -c %Y x; ln x y; stat -c %h y; rm x y'
	same sh -c 'dd if=/dev/zero of=zeroes bs=1M count=3 status=none; wc -c zeroes; head -c 100000 zeroes | cksum; rm zeroes'
	same cat nothing
	same false
	same sh -c 'exit 7'
	same sh -c 'tar -cf /mnt/home/a.tar -C /usr/share/doc/bash . && tar -tf a.tar | sort; tar -xOf a.tar | md5sum; rm a.tar'
	same sh -c 'xz -T2 -c /usr/bin/env | xz -dc | cksum'
	if command -v git >/dev/null; then
		export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
		export GIT_AUTHOR_DATE='@0 +0000' GIT_COMMITTER_DATE='@0 +0000' GIT_CONFIG_GLOBAL=/dev/null
		same sh -c 'rm -rf r; git init -q r && cd r && echo a >a && git add a && git commit -qm one && git log --stat && git gc -q && git fsck'
		same sh -c 'rm -rf c; git clone -q r c && cd c && git log --oneline && git status --short'
	fi
	same sh -c "rm -f db; sqlite3 db 'create table t(a); insert into t values(1),(2); begin; insert into t values(3); commit; select sum(a) from t; pragma integrity_check;'"
	same python3 -c 'import os, json; print(sorted(os.listdir("/etc"))[:5], os.getcwd(), os.uname().nodename, json.dumps({"a": [1, 2.5]}))'
	same python3 -c 'import hashlib, mmap; f = open("/usr/bin/env", "rb"); m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); print(hashlib.sha256(m).hexdigest())'
	same perl -e 'print join(",", map { sprintf "%s", $_ } sort <"/etc/p*">), "\n"'
	if command -v curl >/dev/null; then
		nsenter -t "$SERVER" --user --mount --net --preserve-credentials --wdns=/mnt/home python3 -m http.server --bind 127.0.0.1 8077 >http 2>&1 3>&- &
		echo $! >>pids
		until_true 'away curl -s -o /dev/null http://127.0.0.1:8077/'
		[ "$(away curl -s http://127.0.0.1:8077/file)" = "of there" ]
		run ! curl -s -o /dev/null http://127.0.0.1:8077/
	fi
}

@test "pipes, here and there: input and output are those of here" {
	there
	[ "$(echo hallo | away cat)" = hallo ]
	[ "$(seq 1 1000 | away sh -c 'cat | sort -n | tail -n 1')" = 1000 ]
	away yes | head -n 3 >three
	[ "$(wc -l <three)" = 3 ]
	away sh -c 'cat file >&5' 5>copied
	[ "$(cat copied)" = "of there" ]
	# shellcheck disable=SC2016
	away bash -c 'diff <(seq 5) <(seq 5) && echo same; exec 7>seven; echo x >&7; cat seven; [ -e /dev/fd/7 ]; wc -l < <(seq 9); ulimit -n 100; for i in $(seq 8); do exec {fd}<file; done; echo "$fd"' >printed
	printf '%s\n' same x 9 17 | diff - printed
}

@test "what a command inherits: signals, standard files that are closed; a pipe that nobody reads" {
	there
	# shellcheck disable=SC2016
	[ "$(away bash -c 'yes | head -n 1 >/dev/null; echo "${PIPESTATUS[@]}"')" = "141 0" ]
	diff <(grep -E 'Sig(Blk|Ign|Cgt)' /proc/self/status) <(away grep -E 'Sig(Blk|Ign|Cgt)' /proc/self/status)
	run ! bash -c 'rexec-sys run -q -H "$1" ls >&-' _ "$THERE"
	run ! bash -c 'rexec-sys run -q -H "$1" cat <&-' _ "$THERE"
}

@test "poll, select and epoll end with EINTR for a handler, also for a signal that only they let through; make" {
	there
	cat >masks.py <<-'P'
		import ctypes, os, select, signal, time
		libc = ctypes.CDLL(None, use_errno=True)
		fired = []
		signal.signal(signal.SIGALRM, lambda *a: fired.append(1))
		signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
		r, w = os.pipe()
		class Pollfd(ctypes.Structure): _fields_ = [("fd", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short)]
		class Timespec(ctypes.Structure): _fields_ = [("s", ctypes.c_long), ("ns", ctypes.c_long)]
		none = (ctypes.c_ulong * 16)()
		for i in range(20):
		    signal.setitimer(signal.ITIMER_REAL, 0.03)
		    got = libc.ppoll(ctypes.byref(Pollfd(r, select.POLLIN)), 1, ctypes.byref(Timespec(20, 0)), none)
		    assert got == -1 and ctypes.get_errno() == 4, (got, ctypes.get_errno())
		    assert len(fired) == i + 1, fired
		    assert signal.SIGALRM in signal.pthread_sigmask(signal.SIG_BLOCK, [])
		signal.setitimer(signal.ITIMER_REAL, 0.03); time.sleep(0.1)
		assert len(fired) == 20 and signal.SIGALRM in signal.sigpending()
		print("ok")
	P
	[ "$(rexec-sys run -H "$THERE" python3 "$T/masks.py")" = ok ]
	printf 'all: a b\n%%: %%.in\n\tsleep 0.1; cat $< >$@\n' >Makefile
	away sh -c 'cat >Makefile; echo 1 >a.in; echo 2 >b.in; make -s -j2; cat a b' <Makefile >printed
	printf '%s\n' 1 2 | diff - printed
}

@test "a server that does not know the key is not believed, whatever certificate it shows" {
	command -v openssl >/dev/null || skip "openssl is not installed"
	(umask 077 && head -c 24 /dev/urandom | base64 >key)
	openssl req -x509 -newkey rsa:2048 -nodes -keyout tls.key -out tls.crt -subj /CN=x -days 2 2>/dev/null
	port=$(free_port)
	: >impostor
	openssl s_server -accept "$port" -key tls.key -cert tls.crt -tls1_3 >impostor 2>&1 </dev/zero 3>&- &
	echo $! >>pids
	await impostor ACCEPT 20
	run -76 rexec-sys call -H "tcp:127.0.0.1:$port" -k key write 1 '"secret"' 
	run ! grep -q secret impostor
}

@test "exec: scripts, arguments of interpreters, programs that are open, none, no permission" {
	there
	same sh -c 'printf "#!/bin/sh -e\necho \$0 \$# \$1\n" >s; chmod 755 s; ./s "a b" c; PATH=$PWD:$PATH s d; printf "#!$PWD/s\n" >t; chmod 755 t; ./t e'
	same sh -c './nothing; echo $?; ./file; echo $?; /mnt; echo $?'
	same python3 -c 'import os; fd = os.open("s", os.O_RDONLY); os.set_inheritable(fd, True); os.execve(fd, ["s", "x"], {})'
	same python3 -c 'import os; fd = os.open("/bin/echo", os.O_RDONLY); os.execve(fd, ["echo", "by fd"], {})'
	same sh -c 'cp /bin/echo mine; ./mine hallo; rm mine'
	run -127 env PATH="$BIN:/usr/bin:/bin" rexec-sys run -H "$THERE" no-such-program
	[[ $output == *no-such-program* ]]
	run -126 away /mnt/home/file
	run -69 away rexec-sys run -H "$THERE" true
	[[ $output == *"another run"* ]]
	# shellcheck disable=SC2016
	[ "$(away --local-program "$BIN/victim-static" 2>&1 | head -c 1 | wc -c)" = 1 ]
}

@test "signals and exit status are as if it were here" {
	there
	# shellcheck disable=SC2016
	run -143 away sh -c 'kill -TERM $$'
	# shellcheck disable=SC2016
	run -4 away bash -c 'trap "exit 4" USR1; kill -USR1 $$; sleep 5'
	run -124 timeout 2 rexec-sys run -H "$THERE" sleep 100
	: >out
	rexec-sys run -H "$THERE" bash -c 'trap "echo term; kill \$!; exit 5" TERM; sleep 100 & echo ready; wait' >out 2>&1 3>&- &
	p=$!
	echo $p >>pids
	await out ready 20
	kill -TERM $p
	wait $p || status=$?
	[ "$status" = 5 ]
	grep -qx term out
}

@test "a storm of signals: nothing that was read, written, accepted or received is lost or doubled" {
	there
	cat >storm.py <<-'P'
		import array, os, select, signal, socket, threading
		fired = 0
		def on_alarm(*a):
		    global fired
		    fired += 1
		def quiet(f, *a):
		    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
		    t = threading.Thread(target=f, args=a); t.start()
		    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
		    return t
		data = bytes(i * 7 % 251 for i in range(150000))
		def write_all(fd, step):
		    at = 0
		    while at < len(data): at += os.write(fd, data[at:at + step])
		    os.close(fd)
		def read_all(fd, step):
		    got = b""
		    while True:
		        b = os.read(fd, step)
		        if not b: return got
		        got += b
		signal.signal(signal.SIGALRM, on_alarm)
		signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
		r, w = os.pipe(); t = quiet(write_all, w, 997); got = read_all(r, 1009); t.join(); print("read", got == data)
		r, w = os.pipe(); box = []; t = quiet(lambda: box.append(read_all(r, 1009))); write_all(w, 70000); t.join(); print("write", box[0] == data)
		s = socket.socket(); s.bind(("127.0.0.1", 0)); s.listen(5)
		def connect():
		    for i in range(40):
		        c = socket.create_connection(s.getsockname()); c.sendall(b"%d" % i); c.close()
		t = quiet(connect); seen = []
		for i in range(40):
		    c, _ = s.accept(); seen.append(int(c.recv(10) or -1)); c.close()
		t.join(); print("accept", seen == list(range(40)))
		a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
		def send():
		    for i in range(60):
		        fd = os.open("/mnt/home/file", os.O_RDONLY); socket.send_fds(b, [b"m%d" % i], [fd]); os.close(fd)
		t = quiet(send); good = True
		for i in range(60):
		    m, fds, _, _ = socket.recv_fds(a, 100, 1); good &= m == b"m%d" % i and os.read(fds[0], 100) == b"of there\n"; os.close(fds[0])
		t.join(); print("recvmsg", good)
		p = select.poll(); r, w = os.pipe(); p.register(r, select.POLLIN)
		t = quiet(lambda: [os.write(w, b"x") for i in range(50)]); n = 0
		while n < 50:
		    if p.poll(1000): n += len(os.read(r, 1))
		t.join(); print("poll", n)
		signal.setitimer(signal.ITIMER_REAL, 0)
		print("signals", fired > 20)
	P
	rexec-sys run -H "$THERE" python3 "$T/storm.py" >printed
	printf '%s\n' "read True" "write True" "accept True" "recvmsg True" "poll 50" "signals True" | diff - printed
}

@test "threads and processes open, close and duplicate at the same time" {
	there
	cat >threads.py <<-'P'
		import os, subprocess, threading
		def work(i):
		    for k in range(60):
		        fd = os.open("t%d" % i, os.O_CREAT | os.O_RDWR | os.O_TRUNC)
		        other = os.dup(fd)
		        os.write(fd, b"%d" % i * 100); os.lseek(other, 0, 0)
		        assert os.read(other, 1000) == b"%d" % i * 100
		        os.close(fd); os.close(other)
		        if k % 20 == 0: assert subprocess.check_output(["cat", "t%d" % i]) == b"%d" % i * 100
		ts = [threading.Thread(target=work, args=(i,)) for i in range(6)]
		[t.start() for t in ts]; [t.join() for t in ts]
		os.set_inheritable(0, True)
		import multiprocessing
		with multiprocessing.get_context("fork").Pool(3) as p: print(sum(p.map(abs, range(-100, 0))))
	P
	[ "$(rexec-sys run -H "$THERE" python3 "$T/threads.py")" = 5050 ]
}

@test "waiting for files of here and of there at once: poll, select, epoll" {
	there
	cat >waits.py <<-'P'
		import os, select, sys, threading, time
		r, w = os.pipe()
		for name in "poll", "select", "epoll":
		    for ready in "here", "there", "none":
		        if ready == "there": threading.Timer(0.2, os.write, (w, b"x")).start()
		        if ready == "here": print("now", flush=True)  # and then something is written to our stdin
		        timeout = 0.3 if ready == "none" else 20
		        if name == "poll":
		            p = select.poll(); p.register(0, select.POLLIN); p.register(r, select.POLLIN)
		            got = [fd for fd, _ in p.poll(timeout * 1000)]
		        elif name == "select":
		            got = select.select([0, r], [], [], timeout)[0]
		        else:
		            e = select.epoll(); e.register(0, select.EPOLLIN); e.register(r, select.EPOLLIN)
		            got = [fd for fd, _ in e.poll(timeout)]
		        print(name, ready, ["here" if fd == 0 else "there" for fd in got], flush=True)
		        for fd in got: os.read(fd, 1)
	P
	mkfifo in
	: >printed
	rexec-sys run -H "$THERE" python3 "$T/waits.py" <in >printed 3>&- &
	p=$!
	echo $p >>pids
	exec 9>in
	for n in 1 2 3; do
		await printed now 20 "$n"
		printf x >&9
	done
	wait $p
	exec 9>&-
	grep -v now printed >rest
	for name in poll select epoll; do printf '%s\n' "$name here ['here']" "$name there ['there']" "$name none []"; done | diff - rest
}

@test "its computing is done here, and none of it there" {
	there
	# Of the server and of those who have served, who are its children.
	served() { awk '{ print $14 + $15 + $16 + $17 }' "/proc/$SERVER/stat"; }
	compute() { away python3 -c 'import os, sys; s = sum(i * i for i in range(int(sys.argv[1]))); t = os.times(); print(int((t.user + t.system) * 100))' "$1"; }
	compute 1 >little
	first=$(served)
	compute 15000000 >much
	second=$(($(served) - first))
	[ "$(cat much)" -gt $(($(cat little) + 50)) ]
	[ $(((second - first) * 5)) -lt $(($(cat much) - $(cat little))) ]
}

@test "the server is killed, or stops in the middle: the command is ended, and this is said" {
	there
	: >out
	rexec-sys run -H "$THERE" sh -c 'mkfifo fifo; echo ready; read -r x <fifo; cat file' >out 2>err 3>&- &
	p=$!
	echo $p >>pids
	await out ready 20
	sessions=$(pgrep -P "$SERVER")
	[ -n "$sessions" ]
	# shellcheck disable=SC2086
	kill -KILL $sessions
	away sh -c 'echo alive' | grep -qx alive
	status=0
	wait $p || status=$?
	[ "$status" = 76 ]
	grep -q "out of reach" err
}

@test "a terminal is that of here: its size, job control, an editor" {
	command -v tmux >/dev/null || skip "tmux is not installed"
	command -v vim >/dev/null || skip "vim is not installed"
	there
	export SHELL=/bin/sh
	tmux -S "$T/tmux" -f /dev/null new-session -d -x 90 -y 25 "rexec-sys run -H $THERE sh -c 'tty; stty size; exec vim -u NONE -N file'"
	tmux -S "$T/tmux" display-message -p '#{pid}' >>pids
	shows() { tmux -S "$T/tmux" capture-pane -p | grep -qF -- "$1"; }
	until_true 'shows "of there"'
	tmux -S "$T/tmux" send-keys ':%s/there/vim/' Enter ':wq' Enter
	until_true '[ "$(away cat file)" = "of vim" ]'
	tmux -S "$T/tmux" kill-server || :
}

@test "between two machines by ssh and by TCP; the cable is cut" {
	two_hosts
	[ "$(on A rexec-sys run -H ssh:hostB hostname)" = hostB ]
	[ "$(on A rexec-sys run -H ssh:hostB cat /mnt/name)" = hostB ]
	on A rexec-sys call -H ssh:hostB uname _ | grep -qF 'nodename="hostB"'
	[ "$(on A rexec-sys run -H ssh:hostB sh -c 'cat /mnt/name | tr B C; exit 0')" = hostC ]
	(umask 077 && head -c 24 /dev/urandom | base64 >tcp.key)
	: >address
	on B rexec-sys serve -l tcp:10.77.0.2:0 -k tcp.key >address 2>err 3>&- &
	echo $! >>pids
	await address tcp: 20
	[ "$(on A rexec-sys run -H "$(cat address)" -k tcp.key cat /mnt/name)" = hostB ]
	run -77 on B rexec-sys serve -l tcp-clear:10.77.0.2:0
	: >out
	on A rexec-sys run -H "$(cat address)" -k tcp.key sh -c 'echo ready; sleep 1; cat /mnt/name' >out 2>cut.err 3>&- &
	p=$!
	echo $p >>pids
	await out ready 20
	on A ip link set "pmsA$$" down
	status=0
	wait $p || status=$?
	[ "$status" = 76 ]
	grep -q "out of reach" cut.err
	[ "$(cat out)" = ready ]
}
