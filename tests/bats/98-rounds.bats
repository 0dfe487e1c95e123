# ckpt --rounds: memory is sent while it is in use.
load common

# The writer's tree is moved in rounds to PIDs of its own, by a pipe or by --to; sets PID.
move_in_rounds() {
	local old=$PID
	if [ "$1" = pipe ]; then
		ckpt -v --rounds "${2:-auto}" -p "$PID" 2>ckpt.err | restart -d - 2>restart.err >new
		PID=$(cat new)
	else
		ckpt -v --rounds "${2:-auto}" -p "$PID" --to "restart -d --status-fd 4 - 4>status 2>restart.err" 2>ckpt.err
		PID=$(sed -n 's/^running //p' status)
	fi
	echo "$PID" >>pids
	[ "$PID" -gt 0 ]
	gone "$old" || [ "$old" = "$PID" ]
	grep -q "^ckpt: round 1: " ckpt.err
	check_victim "$PID"
}

@test "memory that two threads write to all the time is moved in rounds, and is right" {
	start_writer 64
	for _ in 1 2 3; do
		move_in_rounds pipe
		move_in_rounds to 3
	done
}

@test "a tree with shared memory is moved in rounds" {
	start_writer 16 16 3
	for _ in 1 2 3; do
		move_in_rounds pipe
		[ "$(victims writer | wc -l)" = 3 ]
	done
}

@test "memory that is mapped, unmapped, moved, given up and forked meanwhile" {
	start python3 -c '
import ctypes, mmap, os, random, sys, time
r = random.Random(7)
areas, apart = {}, set()
libc = ctypes.CDLL(None)
def stamp(i, n): return bytes([(i * 37 + n) % 255 + 1]) * mmap.PAGESIZE
def new(i):
    m = mmap.mmap(-1, 64 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    areas[i] = (m, [0] * 64)
for i in range(64): new(i)
def check():
    for i, (m, s) in areas.items():
        for n in range(len(s)):
            want = stamp(i, s[n]) if s[n] else bytes(mmap.PAGESIZE)
            if m[n * mmap.PAGESIZE:(n + 1) * mmap.PAGESIZE] != want:
                print("wrong", i, n, flush=True)
                sys.exit(1)
print("ready", flush=True)
turn = 0
while not os.path.exists("stop"):
    turn += 1
    i = r.choice(list(areas))
    m, s = areas[i]
    what = r.randrange(100)
    if what < 3:
        m.close(); del areas[i]; new(i); apart.discard(i)
    elif what == 3:
        # Of several mappings from then on, so it cannot be moved.
        n = r.randrange(len(s) - 4); m.madvise(r.choice([mmap.MADV_HUGEPAGE, mmap.MADV_NOHUGEPAGE]), n * mmap.PAGESIZE, 4 * mmap.PAGESIZE); apart.add(i)
    elif what == 4:
        n = r.randrange(len(s) - 4); apart.add(i)
        for rights in 1, 3: libc.mprotect(ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(m, n * mmap.PAGESIZE))), 4 * mmap.PAGESIZE, rights)
    elif what < 8 and i in apart:
        pass
    elif what < 8:
        m.resize(len(m) + 16 * mmap.PAGESIZE); s += [0] * 16
    elif what < 12:
        n = r.randrange(len(s)); m.madvise(mmap.MADV_DONTNEED, n * mmap.PAGESIZE, mmap.PAGESIZE); s[n] = 0
    elif what < 13:
        pid = os.fork()
        if pid == 0: os._exit(0)
        os.waitpid(pid, 0)
    elif what < 16:
        n = r.randrange(len(s)); m[n * mmap.PAGESIZE:(n + 1) * mmap.PAGESIZE] = bytes(mmap.PAGESIZE); s[n] = 0
    else:
        n = r.randrange(len(s)); s[n] = s[n] % 200 + 1; m[n * mmap.PAGESIZE:(n + 1) * mmap.PAGESIZE] = stamp(i, s[n])
    if turn % 5000 == 0: check()
check()
print("right", turn, flush=True)
'
	await out ready 10
	for n in 1 2 3 4 5 6; do
		ckpt -v --rounds "$n" -p "$PID" 2>ckpt.err | restart -d - 2>restart.err >new || { cat ckpt.err restart.err out; return 1; }
		PID=$(cat new)
		echo "$PID" >>pids
		grep -q "^ckpt: round 1: " ckpt.err
		sleep 0.3
		run ! grep wrong out
	done
	: >stop
	await out right 20
}

@test "another program has taken its place meanwhile" {
	cat >second.py <<-'P'
		import hashlib, os
		b = os.urandom(3000000)
		h = hashlib.sha256(b).hexdigest()
		print("second", flush=True)
		while not os.path.exists("stop"): pass
		print("right" if hashlib.sha256(b).hexdigest() == h else "wrong", flush=True)
	P
	cat >second.sh <<-'P'
		b=$(head -c 1000000 /dev/urandom | od -x)
		h=$(md5sum <<<"$b")
		echo second
		until [ -e stop ]; do sleep 0.02; done
		[ "$(md5sum <<<"$b")" = "$h" ] && echo right
	P
	for second in "/usr/bin/python3 second.py" "/usr/bin/env python3 second.py" "/bin/bash second.sh"; do
		rm -f go stop new out
		start python3 -c '
import os, sys
b = os.urandom(30000000)
print("first", flush=True)
while not os.path.exists("go"): pass
os.execv(sys.argv[1], sys.argv[1:])
' $second
		await out first 10
		# What is in the pipe is a part of the first round.
		ckpt -v --rounds 3 -p "$PID" 2>ckpt.err | { head -c 2000000; touch go; await out second 20; cat; } | restart -v -d - 2>restart.err >new || { cat ckpt.err restart.err out; return 1; }
		PID=$(cat new)
		echo "$PID" >>pids
		touch stop
		await out right 20
	done
	grep -q "it is another program" restart.err
}

@test "its program comes behind the rounds: until then its memory waits" {
	cp "$(command -v writer)" program
	VICTIM=./program start_victim 8
	rm program
	ckpt --rounds 3 -p "$PID" 2>ckpt.err | restart -v -d - 2>restart.err >new
	grep -q "cannot be made yet: its memory waits here" restart.err
	PID=$(cat new)
	echo "$PID" >>pids
	check_victim "$PID"
}

@test "what cannot be tracked is sent at once, and that is said" {
	start_writer 8
	PMS_WITHOUT=wp_async ckpt --rounds auto -p "$PID" 2>ckpt.err | restart -d - 2>restart.err >new
	grep -q "sent at once, while it stands still: this kernel cannot track" ckpt.err
	PID=$(cat new)
	echo "$PID" >>pids
	check_victim "$PID"
	start python3 -c '
import os, time
os.open("direct", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
print("ready now", flush=True)
time.sleep(1000)'
	if await out "ready now" 10; then
		ckpt --rounds auto -p "$PID" 2>ckpt.err | restart -d - 2>restart.err >new
		cat new >>pids
		grep -q "sent at once, while it stands still: it has a file open with O_DIRECT" ckpt.err
	fi
}

@test "when either side dies in the middle of a round the original runs on, untouched" {
	start_writer 24
	until_true 'snapshot "$PID" >before && snapshot "$PID" >after && diff -q before after >/dev/null'
	for site in page_out:3 page_out:9 header_out image_out tail_out; do
		ckpt --rounds 3 -p "$PID" -F "${site%:*}:kill${site#"${site%:*}"}" 2>/dev/null | restart -d - 2>restart.err >new || :
		[ ! -s new ]
		as_found "$PID"
		check_victim "$PID"
	done
	for site in placed execed mapped filled parked; do
		ckpt --rounds 3 -p "$PID" 2>ckpt.err | restart -d -F "$site" - 2>restart.err >new || :
		[ ! -s new ]
		as_found "$PID"
		check_victim "$PID"
	done
	for n in $(seq 1 12); do
		ckpt --rounds 4 -p "$PID" 2>ckpt.err | restart -d - 2>restart.err >new &
		sleep "0.$((RANDOM % 15 + 5))"
		pkill -KILL -f -- "^ckpt --rounds 4 -p $PID\$" || :
		wait $! || :
		# Between its decision and END the original ends with ckpt: then there is an image.
		if [ ! -s new ] && gone "$PID"; then
			restart -d "$(sed -n 's/.* saved as \([^;]*\);.*/\1/p' restart.err)" >new
		fi
		if [ -s new ]; then
			PID=$(cat new)
			echo "$PID" >>pids
		fi
		check_victim "$PID"
		[ "$(victims writer | wc -l)" = 1 ]
	done
}

@test "--rounds: what it does not go with" {
	run ckpt --rounds auto -c -p $$
	[ "$status" = 64 ]
	[[ "${lines[0]}" == *"for a file, -c hardly stops it"* ]]
	run ckpt --rounds x -p $$
	[ "$status" = 64 ]
	run ckpt --max-stop 5 -p $$
	[ "$status" = 64 ]
}

@test "a file that came by rounds is restarted as a whole, also where it was to be lazy" {
	start_writer 16
	ckpt --rounds 2 -p "$PID" >image
	gone "$PID"
	run timeout 20 pagesrv serve -l "unix:$T/sock" image
	[ "$status" = 69 ]
	[[ "$output" == *"came in rounds"* ]]
	restart --check image
	restart_as_new --lazy image 2>restart.err
	grep -q "came in rounds" restart.err
	check_victim "$NEW"
}

# In rounds, as soon as nothing is on its way in its tree; sets PID.
move_busy() {
	local status
	for _ in $(seq 20); do
		status=0
		ckpt --rounds auto -p "$PID" 2>ckpt.err | restart -d - 2>restart.err >new || status=${PIPESTATUS[0]}
		[ ! -s new ] || break
	done
	[ "$status" = 0 ] || { cat ckpt.err restart.err; return 1; }
	PID=$(cat new)
	echo "$PID" >>pids
	[ "$status" = 0 ]
}

@test "redis under load: snapshots, increments and rounds; the last snapshot goes on as well as the job" {
	command -v redis-server >/dev/null || skip "redis-server is not installed (tools/deps servers)"
	cat >job.sh <<S
redis-server --port 0 --unixsocket $T/s --save '' --appendonly no --dir "$T" >server.log &
until redis-cli -s $T/s ping >/dev/null 2>&1; do sleep 0.1; done
redis-cli -s $T/s set nonce \$(od -An -tx8 -N8 /dev/urandom | tr -d ' ')
redis-cli -s $T/s get nonce
redis-benchmark -s $T/s -n 120000 -r 20000 -d 500 -t set,incr -c 5 -q --csv
echo "status \$?"
redis-cli -s $T/s get nonce
redis-cli -s $T/s shutdown nosave
echo end
S
	start sh job.sh
	until_true 'grep -qxE "[0-9a-f]{16}" out'
	parent=()
	for n in 1 2 3; do
		for _ in $(seq 20); do
			status=0
			ckpt -c "${parent[@]}" -p "$PID" -o "job.$n.ckpt" 2>ckpt.err || status=$?
			[ $status = 75 ] || break
		done
		[ $status = 0 ]
		run ! grep "stands still until" ckpt.err
		parent=(-i "job.$n.ckpt")
		move_busy
	done
	await out end 120
	[ "$(grep -c '^status 0' out)" = 1 ]
	[ "$(grep -xE '[0-9a-f]{16}' out | sort -u | wc -l)" = 1 ]
	until_true 'gone "$PID"'
	restart_as_new job.3.ckpt 2>restart.err
	until_true '[ "$(grep -c "^end" out)" = 2 ]'
	[ "$(grep -c '^status 0' out)" = 2 ]
	[ "$(grep -xE '[0-9a-f]{16}' out | sort -u | wc -l)" = 1 ]
}

@test "postgresql under pgbench, snapshots and rounds: no transaction is lost" {
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
"$bin/postgres" -D "$T/d" -k "$T" -c listen_addresses= -c shared_buffers=16MB 2>server.log &
until "$bin/psql" -qh "$T" -U me -c 'select 1' postgres >/dev/null 2>&1; do sleep 0.1; done
"$bin/pgbench" -q -i -h "$T" -U me postgres >init.log 2>&1
echo begun
"$bin/pgbench" -h "$T" -U me -c 2 -j 2 -t 1500 postgres >bench.log 2>&1
echo "status \$?"
"$bin/psql" -qtA -h "$T" -U me -c 'select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history),
  (select sum(bbalance) from pgbench_branches) = (select sum(delta) from pgbench_history), (select count(*) from pgbench_history)' postgres
echo end
S
	start "${run[@]}" sh job.sh
	await out begun 60
	for n in 1 2 3; do
		until_true 'ckpt -c -p "$PID" -o copy 2>ckpt.err || ! grep "on its way\|in flight" ckpt.err >/dev/null'
		move_busy
		# Part of the job is still before it.
		[ "$n" = 3 ] || run ! grep -q status out
	done
	await out end 120
	grep -qx "status 0" out
	grep -qx "t|t|3000" out
}

@test "-z auto: who reads slowly gets less to read" {
	start python3 -c '
import glob, os, time
text = b"".join(open(f, "rb").read() for f in sorted(glob.glob(os.path.dirname(os.__file__) + "/*.py")))
text = text * ((48 << 20) // len(text))
print("ready", flush=True)
time.sleep(1000)'
	await out ready 60
	ckpt -c -z 1 -p "$PID" | wc -c >fast
	ckpt -c -z auto -p "$PID" | python3 -c '
import os, sys, time
n = 0
while data := os.read(0, 65536):
    n += len(data)
    time.sleep(0.02)
print(n)' >slow
	[ "$(cat slow)" -lt $(($(cat fast) * 95 / 100)) ]
	ckpt -c -z auto -p "$PID" -o image
	restart --check image
}

@test "huge pages are huge pages again, small ones small" {
	[[ $(cat /sys/kernel/mm/transparent_hugepage/enabled) != *"[never]"* ]] || skip "this system has no transparent huge pages"
	start python3 -c '
import mmap, time
for advice in (14, 15):
    m = mmap.mmap(-1, 16 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    m.madvise(advice)
    for i in range(0, len(m), 4096): m[i] = advice
    globals()["m%d" % advice] = m
print("ready", flush=True)
time.sleep(1000)'
	await out ready 20
	huge() { awk '/^AnonHugePages/ { n += $2 } END { print n }' "/proc/$1/smaps"; }
	before=$(huge "$PID")
	[ "$before" -ge 8192 ] || skip "no huge pages are free"
	ckpt -p "$PID" -o image
	restart_as_new image
	[ "$(huge "$NEW")" -ge $((before / 2)) ]
	[ "$(huge "$NEW")" -le 20480 ]
}

@test "restart begins later than ckpt: its clocks do not go back" {
	start python3 -c '
import os, time
memory = os.urandom(16 << 20)
print("ready", flush=True)
last, wall = time.monotonic(), time.time()
while True:
    now, at = time.monotonic(), time.time()
    if now < last: print("back by", last - now, flush=True)
    if at - wall > 0.5 or now - last > 0.5: print("later by", now - last, at - wall, flush=True)
    last, wall = now, at
    os.sched_yield()'
	await out ready 10
	ckpt -v --rounds 4 -p "$PID" 2>ckpt.err | (
		sleep 2
		restart -d --pid=ns - 2>restart.err
	) >new
	PID=$(cat new)
	echo "$PID" >>pids
	kill -STOP "$PID" # a step that it makes then shows that it runs
	sleep 0.6
	kill -CONT "$PID"
	await out later 10
	run ! grep back out
}

@test "killed while it is made ready for rounds: nothing of that stays" {
	start_writer 8
	until_true 'snapshot "$PID" >before && snapshot "$PID" >after && diff -q before after >/dev/null'
	ls "/proc/$PID/fd" >fds
	for site in framed borrowed call_entered uffd_made mask_back; do
		for n in 1 2 3; do
			for act in kill term; do
				ckpt -q --rounds 2 -p "$PID" -F "$site:$act:$n" 2>ckpt.err | head -c 100000 >part || :
				as_found "$PID"
				ls "/proc/$PID/fd" | diff fds -
			done
		done
	done
	ckpt --check -p "$PID"
	check_victim "$PID"
}

@test "System V objects that come while the memory is sent: it stays where it is, and that is said" {
	start python3 -c '
import ctypes, os, time
memory = os.urandom(16 << 20)
print("ready", flush=True)
while not os.path.exists("go"): time.sleep(0.01)
libc = ctypes.CDLL(None)
segment = libc.shmget(0, 4096, 0o1600)
libc.shmat(segment, None, 0)
print("shm", segment, flush=True)
while True: time.sleep(1)'
	await out ready 10
	ckpt -z 0 --rounds 3 -p "$PID" 2>ckpt.err | {
		head -c 4000000
		: >go
		await out shm 10 >&2
		cat
	} | (restart -d - 2>restart.err || :) >new
	id=$(sed -n 's/^shm //p' out)
	ipcrm -m "$id"
	cat restart.err ckpt.err
	[ ! -s new ]
	grep -q "move it once more" restart.err
	run ! gone "$PID"
}

@test "cut off behind its rounds: nothing is started, and nobody else is ended" {
	[ "$(id -u)" = 0 ] || skip "only root chooses PIDs without a namespace"
	start python3 -c '
import os, time
for i in range(7):
    if os.fork() == 0: break
else: print("ready", flush=True)
time.sleep(1000)'
	await out ready 10
	ckpt -z 0 --rounds 2 -p "$PID" 2>ckpt.err | cat >whole
	begins=$(grep -obUa header.json whole | sed -n '2s/:.*//p') # what is known of the last stop
	# In a namespace of its own, where it is seen whom else it would end.
	cat >cut <<-'S'
		mount -t proc proc /proc
		for _ in 1 2 3 4; do sleep 1000 & done
		for n in $(seq 150); do
			head -c $(($1 + n * 1499)) whole | restart -d --pid=same - >>started 2>>said || echo "$?" >>ended
		done
		pgrep -c sleep >beside
	S
	: >started
	unshare -pfm --kill-child sh cut "$begins"
	[ ! -s started ]
	[ "$(cat beside)" = 4 ]
	[ "$(wc -l <ended)" = 150 ]
	[ "$(sort -u ended)" = 65 ]
}

@test "every other page is written: more ranges than an image may have" {
	start python3 -c '
import mmap, os, time
n = 140000
m = mmap.mmap(-1, n * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
m.madvise(15) # MADV_NOHUGEPAGE
want = [1] * n
def write(first, value):
    for i in range(first, n, 2):
        m[i * 4096] = want[i] = value
write(0, 2), write(1, 3)
print("ready", flush=True)
for turn in range(4, 7):
    while not os.path.exists("go%d" % turn): time.sleep(0.01)
    if turn == 6 and os.fork() == 0: write(1, 60)
    else: write(turn % 2, turn)
    print("written", turn, flush=True)
    while not os.path.exists("check%d" % turn): time.sleep(0.01)
    print("right" if all(m[i * 4096] == want[i] for i in range(n)) else "wrong", turn, flush=True)
'
	await out ready 30
	ckpt -z 0 --rounds 2 -p "$PID" 2>ckpt.err | {
		head -c 300000000
		: >go4
		await out "written 4" 30 >&2
		cat
	} | restart -d - 2>restart.err >new
	PID=$(cat new)
	echo "$PID" >>pids
	: >check4
	await out "right 4" 30
	ckpt -c -p "$PID" -o a.ckpt
	: >go5
	await out "written 5" 30
	ckpt -p "$PID" -i a.ckpt -o b.ckpt
	: >check5
	restart_as_new b.ckpt
	await out "right 5" 30
	: >go6
	await out "written 6" 30 2
	ckpt -p "$NEW" -o c.ckpt
	: >check6
	restart_as_new c.ckpt
	await out "right 6" 30 2
	run ! grep wrong out
}
