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
import mmap, os, random, sys, time
r = random.Random(7)
areas = {}
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
        m.close(); del areas[i]; new(i)
    elif what < 6:
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
