#!/usr/bin/env bats
# What a real job is: scripts with children and pipes, servers with clients, a terminal with an editor.
# Programs as Debian ships them; `tools/deps servers` installs those that are often missing.

load common

need() {
	local p
	for p; do
		command -v "$p" >/dev/null || skip "$p is not installed (tools/deps servers)"
	done
}

# Whatever of the tree is left belongs to this test.
end_tree() { # PID
	[ "${1:-0}" -gt 1 ] || return 0
	local child
	for child in $(cat /proc/"$1"/task/*/children 2>/dev/null); do end_tree "$child"; done
	kill -KILL "$1" 2>/dev/null || :
}

teardown() {
	local p
	while read -r p; do end_tree "$p"; done <pids
	cd /
	rm -rf "$T"
}

# Through a file: PID becomes NEW.
move() {
	ckpt -p "$PID" -o image
	gone "$PID"
	restart_as_new image
	PID=$NEW
}

ended() { timeout "${1:-120}" tail --pid="$PID" -f /dev/null; }


@test "bash: a pipeline with background jobs, moved again and again" {
	cat >job.sh <<'S'
nonce=$(od -An -tx8 -N8 /dev/urandom)
( for i in $(seq 1 60); do echo "line $i"; sleep 0.05; done ) | sed -u 's/line/LINE/' | while read -r l; do echo "got $l"; done >result &
(exit 200) &
other=$!
echo "nonce $nonce" >&2
wait %1
wait $other
echo "status $? nonce $nonce"
S
	: >result
	start bash job.sh
	await out nonce 20
	for n in 5 20 35 50; do
		await result "LINE $n" 60
		move
	done
	ended
	[ "$(grep -c . result)" = 60 ]
	seq 1 60 | sed 's/^/got LINE /' | diff - result
	[ "$(sed -n 's/^nonce//p' out)" = "$(sed -n 's/^status 200 nonce//p' out)" ]
	[ "$(grep -c nonce out)" = 2 ]
}

@test "make -j2 compiling a project" {
	need make gcc
	mkdir p
	for i in $(seq 1 30); do echo "int f$i(int x) { int s = 0; for (int i = 0; i < x; i++) s += i * $i; return s; }" >p/f$i.c; done
	printf 'lib.a: $(patsubst %%.c,%%.o,$(wildcard *.c))\n\tar rcsD $@ $(sort $^)\n%%.o: %%.c\n\tgcc -O2 -c -o $@ $<; sleep 0.1; echo made $@\n' >p/Makefile
	cp -r p whole
	make -s -C whole -j2 >/dev/null
	start make -s -C p -j2
	for n in 3 12 20; do
		until_true "[ \$(grep -c made out) -ge $n ]"
		move
	done
	ended
	[ "$(grep -c made out)" = 30 ]
	cmp p/lib.a whole/lib.a
}

@test "python3: multiprocessing with threads, pipes and semaphores" {
	cat >job.py <<'P'
import multiprocessing as mp
def f(x):
    s = 0
    for i in range(100000): s = (s * 31 + i * x) % 1000003
    return (x, s)
if __name__ == "__main__":
    with mp.Pool(3) as p:
        for r in p.imap(f, range(120)): print(r, flush=True)
    print("end", flush=True)
P
	python3 job.py >whole
	start python3 job.py
	await out "(40," 60
	move
	await out "(80," 60
	ckpt -p "$PID" | restart -d - >new
	PID=$(cat new)
	echo "$PID" >>pids
	await out end 60
	diff whole out
}

@test "perl, ruby and lua with pipes to their children" {
	cat >job.pl <<'P'
$| = 1;
open(my $to, "|-", "sort -n | tail -n 3") or die;
for my $i (1 .. 40) { print $to ($i * 7919 % 101), "\n"; print "perl $i\n"; select undef, undef, undef, 0.02 }
close $to;
print "end\n";
P
	perl job.pl | grep -v perl >whole
	start perl job.pl
	await out "perl 20" 20
	move
	await out end 60
	grep -v perl out | diff whole -
	[ "$(grep -c perl out)" = 40 ]
	if command -v ruby >/dev/null; then
		: >out
		start ruby -e '$stdout.sync = true; r, w = IO.pipe; fork { r.close; 30.times { |i| w.puts i; sleep 0.03 } }; w.close; while (l = r.gets); puts "ruby #{l}"; end; Process.wait; puts "end"'
		await out "ruby 10" 20
		move
		await out end 60
		[ "$(grep -c ruby out)" = 30 ]
	fi
	if command -v lua5.4 >/dev/null; then
		: >out
		start lua5.4 -e 'io.stdout:setvbuf("line"); local p = io.popen("for i in $(seq 30); do echo $i; sleep 0.03; done"); for l in p:lines() do print("lua " .. l) end; print("end")'
		await out "lua 10" 20
		move
		await out end 60
		[ "$(grep -c lua out)" = 30 ]
	fi
}

@test "redis-server and redis-benchmark in one tree" {
	need redis-server redis-benchmark
	port=$(free_port)
	cat >job.sh <<S
redis-server --port $port --save '' --appendonly yes --dir "$T" >server.log &
until redis-cli -p $port ping >/dev/null 2>&1; do sleep 0.1; done
redis-cli -p $port set nonce \$(od -An -tx8 -N8 /dev/urandom | tr -d ' ')
redis-cli -p $port get nonce
redis-benchmark -p $port -n 200000 -r 1000 -t set,incr -c 5 -q --csv
echo "status \$?"
redis-cli -p $port get counter:__rand_int__ >/dev/null
redis-cli -p $port get nonce
redis-cli -p $port shutdown nosave
echo end
S
	start sh job.sh
	until_true 'grep -qxE "[0-9a-f]{16}" out'
	for n in 1 2 3; do
		# Bytes on their way at that moment are told, and the process unharmed: then once more.
		for _ in $(seq 20); do
			status=0
			ckpt -p "$PID" -o image || status=$?
			[ $status = 75 ] || break
		done
		[ $status = 0 ]
		restart_as_new image
		PID=$NEW
	done
	await out end 120
	grep -q '^status 0' out
	grep -q '"SET",' out
	grep -q '"INCR",' out
	[ "$(grep -xcE '[0-9a-f]{16}' out)" = 2 ]
	[ "$(grep -xE '[0-9a-f]{16}' out | sort -u | wc -l)" = 1 ]
}

@test "redis-server under load from outside, with AOF: every answer comes, nothing is lost" {
	need redis-server redis-benchmark
	[ "$(id -u)" = 0 ] || skip "only root may take up connections"
	PATH=$PATH:/usr/sbin command -v nft >/dev/null || skip "nft is not installed"
	port=$(free_port)
	start redis-server --port "$port" --save '' --appendonly yes --dir "$T"
	until_true '[ "$(redis-cli -p '"$port"' ping 2>/dev/null)" = PONG ]'
	LOAD=$(spawn load redis-benchmark -p "$port" -n 200000 -c 8 -t incr --csv)
	echo "$LOAD" >>pids
	for n in 1 2 3; do
		before=$(redis-cli -p "$port" get counter:__rand_int__)
		until_true '[ "$(redis-cli -p '"$port"' get counter:__rand_int__)" -gt '"$((${before:-0} + 1000))"' ]'
		[ "$n" = 2 ] || ckpt -p "$PID" -o image
		[ "$n" = 2 ] || restart_as_new image
		[ "$n" != 2 ] || ckpt -p "$PID" | restart -d - >new
		[ "$n" != 2 ] || NEW=$(cat new)
		PID=$NEW
		echo "$PID" >>pids
	done
	run ! gone "$LOAD" # it was not over before
	until_true 'gone "$LOAD"'
	grep -q '"INCR"' load
	run ! grep -i error load
	[ "$(redis-cli -p "$port" get counter:__rand_int__)" = 200000 ]
	redis-cli -p "$port" shutdown nosave || :
	start redis-server --port "$port" --save '' --appendonly yes --dir "$T"
	until_true '[ "$(redis-cli -p '"$port"' get counter:__rand_int__ 2>/dev/null)" = 200000 ]'
}

@test "node with timers and an HTTP server" {
	need node curl
	port=$(free_port)
	cat >job.js <<S
let n = 0; setInterval(() => n++, 20);
const nonce = require('crypto').randomBytes(8).toString('hex');
require('http').createServer((q, r) => r.end(n + ' ' + nonce + '\n')).listen($port, '127.0.0.1', () => console.log('listening'));
S
	start node job.js
	await out listening 20
	first=$(curl -s -m 10 "127.0.0.1:$port")
	for n in 1 2; do
		move
		next=$(curl -s -m 10 "127.0.0.1:$port")
		[ "${first#* }" = "${next#* }" ]
		[ "${next% *}" -ge "${first% *}" ]
		# The timer goes on.
		until_true '[ "$(curl -s -m 10 127.0.0.1:'"$port"' | cut -d" " -f1)" -gt '"$((${next% *} + 5))"' ]'
	done
}

@test "nginx with workers serving a file" {
	need nginx curl
	port=$(free_port)
	mkdir www
	chmod 755 "$T" www
	head -c 3000000 /dev/urandom >www/file
	cat >nginx.conf <<S
daemon off; worker_processes 2; pid $T/nginx.pid; error_log $T/error.log;
events { worker_connections 64; }
http { access_log off; client_body_temp_path $T/1; proxy_temp_path $T/2; fastcgi_temp_path $T/3; uwsgi_temp_path $T/4;
scgi_temp_path $T/5; server { listen 127.0.0.1:$port; root $T/www; } }
S
	start nginx -c "$T/nginx.conf"
	until_true "curl -s -m 5 -o /dev/null 127.0.0.1:$port/file"
	users=$(ps -o user= --ppid "$PID" | sort)
	for n in 1 2; do
		move
		curl -s -m 10 "127.0.0.1:$port/file" | cmp - www/file
		[ "$(ps -o user= --ppid "$PID" | sort)" = "$users" ]
	done
	kill -QUIT "$PID"
	ended 30
	run ! grep -sE 'crit|alert|emerg' error.log
}

@test "postgresql with an open transaction of a client in its tree" {
	bin=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | tail -n 1)
	[ -n "$bin" ] || skip "postgresql is not installed (tools/deps servers)"
	run=()
	if [ "$(id -u)" = 0 ]; then # it refuses to run as root
		run=(setpriv --reuid=65534 --regid=65534 --clear-groups env HOME=/tmp)
		: >out
		chown 65534 "$T" out
	fi
	"${run[@]}" "$bin/initdb" -D "$T/d" -A trust -U me >/dev/null
	cat >job.sh <<S
"$bin/postgres" -D "$T/d" -k "$T" -c listen_addresses= 2>server.log &
until "$bin/psql" -qh "$T" -U me -c 'select 1' postgres >/dev/null 2>&1; do sleep 0.1; done
( echo 'create table t (x int); begin; insert into t select generate_series(1, 1000);'
  echo "select 'begun';"; while [ ! -e moved ]; do sleep 0.05; done
  echo 'commit; select sum(x) from t;' "select 'end';" ) | "$bin/psql" -qtA -h "$T" -U me postgres
S
	start "${run[@]}" sh job.sh
	await out begun 30
	move
	until_true '[ "$(ls -d /proc/'"$PID"'/task | wc -l)" = 1 ]'
	ckpt -c -p "$PID" -o copy
	: >moved
	await out end 30
	grep -qx 500500 out
	[ "$("$bin/psql" -qtA -h "$T" -U me -c 'select count(*) from t' postgres)" = 1000 ]
	run ! grep -E 'PANIC|FATAL' server.log
}

@test "tmux holding a shell and vim: the screen is the same, and so is the work" {
	need tmux vim
	export TMUX_TMPDIR=$T
	export SHELL=/bin/sh # tmux starts commands with it; a service's user has /usr/sbin/nologin
	unset TMUX
	tm() { (closed tmux -L x "$@"); }
	seq -f 'line %g' 200 >text
	tm -f /dev/null new -d -x 90 -y 25 'PS1=% bash --norc' </dev/null >/dev/null 2>&1
	PID=$(tm display -p '#{pid}')
	echo "$PID" >>pids
	tm send-keys 'vim -u NONE -n text' Enter
	until_true 'tm capture-pane -p | grep -q "line 20"'
	tm send-keys 100G dd 'iHELLO '
	until_true 'tm capture-pane -p | grep -q "HELLO line 101"'
	for n in 1 2; do
		tm capture-pane -p >before
		move
		tm capture-pane -p >after
		diff before after
	done
	tm send-keys WORLD Escape :wq Enter
	until_true 'grep -q "HELLO WORLDline 101" text'
	[ "$(wc -l <text)" = 199 ]
	# Job control in the shell.
	tm send-keys 'sleep 1000' Enter
	until_true 'pgrep -f "^sleep 1000" >/dev/null'
	tm send-keys C-z
	until_true 'tm capture-pane -p | grep -q Stopped'
	tm send-keys 'kill %1; echo gone' Enter
	until_true 'tm capture-pane -p | grep -q "^gone"'
	tm kill-server
}

@test "a connection to somebody outside is named; it can be dropped" {
	cat >job.py <<'P'
import socket, time, sys
s = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
print("connected", flush=True)
s.recv(1)
print("end", flush=True)
P
	exec 9< <(exec python3 -u -c 'import socket
s = socket.socket(); s.bind(("127.0.0.1", 0)); s.listen(); print(s.getsockname()[1], flush=True)
c, a = s.accept()
import sys
while True:
    d = c.recv(1)
    if not d: break
print("closed", flush=True)')
	read -r port <&9
	start python3 job.py "$port"
	await out connected 20
	# At home it is named with its address; elsewhere it must be given one, or do without.
	run ckpt --check --external=inherit -p "$PID"
	[ "$status" = 0 ]
	[[ $output == *"127.0.0.1:$port"* ]]
	ckpt -c --external=inherit -p "$PID" -o image
	run -66 restart --check image
	[[ $output == *--inherit* ]]
	ckpt --external drop -p "$PID" -o image
	restart_as_new image
	await out end 20
	exec 9<&-
}

@test "--external=reopen: a socket is connected again, a FIFO opened again" {
	mkfifo fifo
	cat >server.py <<'P'
import socket
s = socket.socket(); s.bind(("127.0.0.1", 0)); s.listen(); print("port", s.getsockname()[1], flush=True)
while True:
    c, a = s.accept()
    print("got", c.recv(100), flush=True)
P
	SERVER=$(spawn server-out python3 server.py)
	echo "$SERVER" >>pids
	await server-out port 20
	READER=$(spawn fifo-out sh -c 'exec 9<>fifo; cat <fifo') # it has both ends: there is always somebody outside
	echo "$READER" >>pids
	cat >job.py <<'P'
import os, socket, sys, time
c = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
c.send(b"first")
f = open("fifo", "w")
print("ready", flush=True)
while not os.path.exists("moved"):
    time.sleep(0.01)
c.send(b"second")
print("through the fifo", file=f, flush=True)
time.sleep(1000)
P
	start python3 job.py "$(sed -n 's/^port //p' server-out)"
	await out ready 20
	await server-out first 20
	ckpt --external=reopen -p "$PID" -o image
	restart_as_new image
	: >moved
	await server-out second 20
	await fifo-out "through the fifo" 20
}

@test "a Java virtual machine" {
	need java javac
	cat >J.java <<'J'
import java.util.concurrent.*;
public class J {
	static volatile int n = 0;
	public static void main(String[] a) throws Exception {
		ConcurrentHashMap<Integer, String> m = new ConcurrentHashMap<>();
		Executors.newScheduledThreadPool(3).scheduleAtFixedRate(() -> { n++; m.put(n, "v" + n); }, 0, 10, TimeUnit.MILLISECONDS);
		for (;;) {
			Thread.sleep(50);
			System.gc();
			int k = m.size();
			for (int i = 1; i <= k; i++)
				if (!m.get(i).equals("v" + i)) System.out.println("wrong " + i);
			System.out.println("at " + k);
		}
	}
}
J
	javac J.java
	start java -Xmx64m J
	await out "at " 60
	for n in 1 2; do
		at=$(sed -n 's/^at //p' out | tail -n 1)
		move
		until_true '[ "$(sed -n "s/^at //p" out | tail -n 1)" -gt '$((at + 50))' ]'
	done
	run ! grep wrong out
}

@test "a session whose living leader is out of the way is refused before anything is ended" {
	cat >job.py <<'P'
import ctypes, os, time
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # the nearest subreaper
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()
        middle = os.fork()
        if middle == 0:
            if os.fork() == 0:
                time.sleep(1000)
            os._exit(0)
        os.waitpid(middle, 0)
    time.sleep(1000)
while len(open("/proc/self/task/%d/children" % os.getpid()).read().split()) < 2:
    time.sleep(0.01)
print("ready", flush=True)
time.sleep(1000)
P
	start python3 job.py
	await out ready 20
	oracle "$PID" >before
	run -69 ckpt -p "$PID" -o image
	[[ $output == *session* ]]
	[ ! -e image ]
	as_before "$PID"
}
