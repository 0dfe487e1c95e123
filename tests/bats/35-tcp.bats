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
start_client() {
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
n = 0
ok = True
if sys.argv[2] != "shut":
    c.shutdown(socket.SHUT_WR)
while d := c.recv(65536):
    for i, b in enumerate(d[:64]):
        ok &= b == b"0123456789abcdef"[(n + i) % 16]
    n += len(d)
print("received", n, ok, flush=True)
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
			rm -f image
			ckpt -q -p "$PID" -o image -F "$site:$act" 2>/dev/null || :
			if gone "$PID"; then # nothing can fail there
				restart_as_new image
				PID=$NEW
			fi
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
