#!/usr/bin/env bats
# TCP connections to a process that stays where it is.

load common

setup_file() {
	export ROOT=
	[ "$(id -u)" != 0 ] || ROOT=1
}

# What a test that failed half-way has left.
teardown_file() {
	[ -z "$ROOT" ] || PATH=$PATH:/usr/sbin nft list tables 2>/dev/null | grep pms- | while read -r _ family name; do
		PATH=$PATH:/usr/sbin nft delete table "$family" "$name"
	done
}

need_right() {
	[ -n "$ROOT" ] || skip "only root may take up connections"
	command -v nft >/dev/null || [ -x /usr/sbin/nft ] || skip "nft is not installed"
}

# Nothing is held back any more.
none_held() {
	run ! nft_has_ours
}

nft_has_ours() {
	PATH=$PATH:/usr/sbin nft list tables | grep -q pms-
}

# What is moved: answers every line; the other end stays.
start_server() {
	cat >server.py <<'P'
import socket, sys
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("127.0.0.1", 0)); s.listen()
print("port", s.getsockname()[1], flush=True)
c, a = s.accept()
f = c.makefile("rw")
for line in f:
    f.write("answer " + line); f.flush()
print("end of input", flush=True)
c.close()
P
	start python3 server.py
	await out port 20
	PORT=$(sed -n 's/^port //p' out)
}

# The other end: as many questions as it is told, then it closes; "all N" if every answer came, in order.
write_client() {
	cat >client.py <<'P'
import socket, sys, time
c = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
f = c.makefile("rw")
n = 0
while True:
    n += 1
    f.write("%d\n" % n); f.flush()
    if f.readline() != "answer %d\n" % n:
        print("wrong", n, flush=True); sys.exit(1)
    print(n, flush=True)
    try:
        open("enough"); break
    except OSError:
        time.sleep(0.01)
c.shutdown(socket.SHUT_WR)
print("all", n, repr(f.read()), flush=True)
P
}

start_client() {
	write_client
	CLIENT=$(spawn client-out python3 client.py "$PORT")
	echo "$CLIENT" >>pids
	await client-out 5 20
}

goes_on() {
	local n
	n=$(wc -l <client-out)
	until_true '[ "$(wc -l <client-out)" -gt '$((n + 5))' ]'
	run ! grep -q wrong client-out
}

finish_client() {
	: >enough
	await client-out all 20
	grep -q "^all [0-9]* ''" client-out
	await out "end of input" 20
}

@test "a connection to somebody outside goes along: by file, by pipe" {
	need_right
	start_server
	start_client
	ckpt -p "$PID" -o image
	sleep 0.3 # the other end goes on sending, and is not told that nobody is there
	restart_as_new image
	goes_on
	none_held
	ckpt -p "$NEW" | restart -d - >new
	NEW=$(cat new) && echo "$NEW" >>pids
	goes_on
	none_held
	finish_client
}

@test "its memory cannot be fetched by one on the same host, who could not have the address: it goes on" {
	need_right
	start_server
	start_client
	run bash -c "ckpt -m unix:$T/pages -p $PID 2>ckpt.err 3>&- | restart -d - 2>restart.err 3>&-; exit \${PIPESTATUS[0]}"
	[ "$status" = 76 ]
	grep -q "runs on" ckpt.err
	goes_on
	none_held
	finish_client
}

# Much in both queues, and both directions closed by one side or the other.
start_hoard() {
	cat >hoard.py <<'P'
import hashlib, os, socket, sys, time
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("127.0.0.1", 0)); s.listen()
print("port", s.getsockname()[1], flush=True)
c, a = s.accept()
c.setblocking(False)
sent = 0
out = b"0123456789abcdef" * 65536
try:
    while True:
        sent += c.send(out[sent % 16:])
except BlockingIOError:
    pass
if sys.argv[1] == "shut":
    c.shutdown(socket.SHUT_WR)
print("sent", sent, flush=True)
while not os.path.exists("go"):
    time.sleep(0.01)
c.setblocking(True)
h = hashlib.sha256()
while d := c.recv(65536):
    h.update(d)
print("got", h.hexdigest(), flush=True)
try:
    c.send(b"x")
    print("could send", flush=True)
except BrokenPipeError:
    print("could not send", flush=True)
c.close()
P
	cat >peer.py <<'P'
import hashlib, os, socket, sys, time
c = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
data = os.urandom(50000)
c.send(data)
if sys.argv[2] == "shut":
    c.shutdown(socket.SHUT_WR)
print("hash", hashlib.sha256(data).hexdigest(), flush=True)
while not os.path.exists("go"):
    time.sleep(0.01)
if sys.argv[2] != "shut":
    c.shutdown(socket.SHUT_WR)
got = bytearray()
while d := c.recv(65536):
    got += d
n = len(got)
if got.endswith(b"x"):
    got.pop()
print("received", n, got == (b"0123456789abcdef" * (n // 16 + 1))[:len(got)], flush=True)
P
	start python3 hoard.py "$1"
	await out port 20
	CLIENT=$(spawn peer-out python3 peer.py "$(sed -n 's/^port //p' out)" "$2")
	echo "$CLIENT" >>pids
	await peer-out hash 20
	await out sent 20
}

hoard_goes() {
	start_hoard "$1" "$2"
	ckpt -p "$PID" -o image
	restart_as_new image
	ckpt -p "$NEW" | restart -d - >new
	cat new >>pids
	none_held
	: >go
	await out send 60 # "could send" or not
	await peer-out received 60
	[ "$(sed -n 's/^got //p' out)" = "$(sed -n 's/^hash //p' peer-out)" ]
	sent=$(sed -n 's/^sent //p' out)
	grep -qx "$3" out
	[ "$3" = "could not send" ] || sent=$((sent + 1))
	grep -qx "received $sent True" peer-out
}

@test "queues that are full in both directions" {
	need_right
	hoard_goes open open "could send"
}

@test "this end has closed its direction (FIN_WAIT)" {
	need_right
	hoard_goes shut open "could not send"
}

@test "the other end has closed its direction (CLOSE_WAIT)" {
	need_right
	hoard_goes open shut "could send"
}

@test "both have (CLOSING, LAST_ACK)" {
	need_right
	hoard_goes shut shut "could not send"
}

@test "ckpt is killed, and fails, at every fault site: the connection goes on, and nothing is held back" {
	need_right
	start_server
	start_client
	for site in frozen borrowed collected header_out image_out; do
		for act in kill fail; do
			faulty_ckpt "$site:$act"
			goes_on
			until_true '! nft_has_ours'
		done
	done
	finish_client
}

@test "--tcp=close: the program finds it reset; so does a copy" {
	start_server
	start_client
	run -0 ckpt -c --tcp=close -p "$PID" -o image
	[[ $output == *"127.0.0.1:"* ]]
	goes_on
	if [ -n "$ROOT" ]; then
		run -0 ckpt -c -p "$PID" -o copy
		[[ $output == *"stays with the original"* ]]
	else
		run -77 ckpt -p "$PID" -o copy
		[[ $output == *"connected by TCP to 127.0.0.1:"*"--tcp=close"* ]]
	fi
	finish_client
	until_true 'gone "$PID"'
	restart_as_new image
	await out "reset by peer" 20
}

@test "a session of sshd, with its terminal and shell: moves as root; refused without the right, and goes on" {
	need_right
	SSHD=$(PATH=$PATH:/usr/sbin:/sbin command -v sshd) || skip "no sshd"
	mkdir -p /run/sshd
	ssh-keygen -q -t ed25519 -N '' -f host
	ssh-keygen -q -t ed25519 -N '' -f key
	port=$(free_port)
	cat >sshd.conf <<-C
		HostKey $T/host
		AuthorizedKeysFile $T/key.pub
		StrictModes no
		UsePAM no
		PermitRootLogin yes
		PidFile none
		SetEnv HOME=$T
		ListenAddress 127.0.0.1
		Port $port
	C
	start "$SSHD" -D -f sshd.conf -E sshd.log
	until_true 'grep -q listening sshd.log'
	mkfifo typed
	cat >client.sh <<-C
		exec ssh -tt -F none -p $port -i key -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
			-o LogLevel=ERROR root@127.0.0.1 'stty -echo; tty; while read -r x; do echo answer \$x
			[ \$x != enough ] || exit 5; done' <typed
	C
	CLIENT=$(spawn client-out sh -c 'sh client.sh; echo "status $?"')
	echo "$CLIENT" >>pids
	exec 8>typed
	await client-out /dev/pts 20
	SESSION=$(pgrep -P "$PID")
	echo "$SESSION" >>pids
	echo one >&8
	await client-out "answer one" 20
	run -77 setpriv --bounding-set=-net_admin "$BIN/ckpt" -p "$SESSION" -o image
	[[ $output == *"connected by TCP to 127.0.0.1:"* ]]
	echo two >&8
	await client-out "answer two" 20
	ckpt -p "$SESSION" -o image
	echo three >&8
	restart_as_new image
	await client-out "answer three" 20
	ckpt -p "$NEW" | restart -d - >new
	cat new >>pids
	echo four >&8
	await client-out "answer four" 20
	echo enough >&8
	await client-out "status 5" 20
	until_true 'gone "$(cat new)"'
	exec 8>&-
}

# A host: a network namespace with an address of its own, at a bridge in a third.
host_in() {
	local pid
	pid=$(spawn hosts unshare -n sleep 1000)
	echo "$pid" >>pids
	until_true '[ "$(readlink /proc/'"$pid"'/ns/net)" != "$(readlink /proc/self/ns/net)" ]'
	if [ -n "$2" ]; then
		nsenter -t "$SWITCH" -n ip link add name "veth-$1" type veth peer name eth0 netns "/proc/$pid/ns/net"
		nsenter -t "$SWITCH" -n ip link set dev "veth-$1" master br0 up
		nsenter -t "$pid" -n ip addr add "$2/24" dev eth0
		nsenter -t "$pid" -n ip link set eth0 up
	fi
	nsenter -t "$pid" -n ip link set lo up
	HOST=$pid
}

@test "from one host to another, and the address with it" {
	need_right
	command -v ip >/dev/null || skip "ip is not installed"
	SWITCH=
	host_in switch ""
	SWITCH=$HOST
	nsenter -t "$SWITCH" -n ip link add name br0 type bridge
	nsenter -t "$SWITCH" -n ip link set dev br0 up
	host_in a 10.77.0.1 && A=$HOST
	host_in b 10.77.0.2 && B=$HOST
	host_in c 10.77.0.3 && C=$HOST
	nsenter -t "$A" -n ip addr add 10.77.0.100/32 dev eth0
	cat >server.py <<'P'
import socket
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("0.0.0.0", 7000)); s.listen()
print("port", flush=True)
c, a = s.accept()
f = c.makefile("rw")
for line in f:
    f.write("answer " + line); f.flush()
print("end of input", flush=True)
P
	start nsenter -t "$A" -n python3 server.py
	await out port 20
	start_client_at() {
		sed "s/127.0.0.1/10.77.0.100/" client.py >client-far.py
		CLIENT=$(spawn client-out nsenter -t "$C" -n python3 client-far.py 7000)
		echo "$CLIENT" >>pids
		await client-out 5 20
	}
	write_client
	start_client_at
	for hosts in "$A $B" "$B $A lazily" "$A $B lazily"; do
		read -r from to how <<<"$hosts"
		if [ -z "$how" ]; then
			nsenter -t "$from" -n "$BIN/ckpt" -p "$PID" | nsenter -t "$to" -n "$BIN/restart" -d - >new
			PID=$(cat new)
		else
			nsenter -t "$from" -n "$BIN/ckpt" -m - -p "$PID" --to "nsenter -t $to -n $BIN/restart -d --status-fd 4 - 4>status 3>&-" 3>&-
			until_true 'grep -q running status'
			PID=$(sed -n 's/^running //p' status)
		fi
		echo "$PID" >>pids
		nsenter -t "$from" -n ip addr del 10.77.0.100/32 dev eth0
		nsenter -t "$to" -n ip addr add 10.77.0.100/32 dev eth0
		nsenter -t "$C" -n ip neigh flush dev eth0
		goes_on
	done
	finish_client
}

@test "an image whose connection is in use already is refused, and the connection goes on" {
	need_right
	start_server
	start_client
	ckpt -p "$PID" -o image
	restart_as_new image
	goes_on
	run -75 restart -d --pid=ns image </dev/null
	[[ $output == *"already"* ]]
	none_held
	goes_on
	finish_client
}

@test "a socket that a process outside has as well is refused" {
	need_right
	cat >job.py <<'P'
import os, socket, time
s = socket.socket(); s.bind(("127.0.0.1", 0)); s.listen()
c = socket.create_connection(s.getsockname())
d, _ = s.accept()
kid = os.fork()
if kid == 0:
    s.close(); d.close()
    time.sleep(1000)
c.send(b"one")
print("kid", kid, flush=True)
d.recv(3)
while not os.path.exists("go"):
    time.sleep(0.01)
c.send(b"two")
print("got", d.recv(3), flush=True)
os.kill(kid, 9)
P
	start python3 job.py
	await out kid 20
	KID=$(sed -n 's/^kid //p' out)
	echo "$KID" >>pids
	run -69 ckpt -p "$KID" -k -o image
	[[ $output == *"a process outside has as well"* ]]
	none_held
	: >go
	await out "got b'two'" 20
}

@test "restart fails after END, but before it lets anything run: the connection can still be taken up" {
	need_right
	start_server
	start_client
	# Somebody else has taken a lock that the program had.
	rexec-sys call -p "$PID" - <<-S >/dev/null
		open $T/locked O_RDWR|O_CREAT 0600
		flock \$1 LOCK_EX
	S
	ckpt -p "$PID" -o image
	exec 7<locked
	flock -n 7
	run -75 restart -d image </dev/null
	exec 7<&-
	restart_as_new image
	goes_on
	none_held
	finish_client
}

@test "ckpt dies after the decision: the original ends in silence, and its image takes the connection up" {
	need_right
	start_server
	start_client
	ckpt -q -p "$PID" -o image -F before_end:kill || :
	until_true 'gone "$PID"'
	restart_as_new image
	goes_on
	finish_client
}
