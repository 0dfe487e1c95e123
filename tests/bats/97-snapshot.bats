# ckpt -c: copies by fork, of all at one instant, while the originals run on.
load common

# Nobody but the originals is there, traced or stopped.
nobody_else() {
	local p c
	until_true "[ \"\$(victims $1 | sort | tr '\n' ' ')\" = '$2' ]"
	for p in $2; do
		grep -q '^TracerPid:	0$' "/proc/$p/status"
		[[ $(sed -n 's/^State:\t\(.\).*/\1/p' "/proc/$p/status") != [tTZ] ]]
	done
	for p in $2; do
		for c in $(cat /proc/"$p"/task/*/children); do
			run ! grep -q '^State:	Z' "/proc/$c/status"
		done
	done
}

# The image is run beside the original, and is right.
image_is_right() {
	cp out "out.before"
	restart_as_new "$1" 2>restart.err
	sleep 0.1
	kill -USR2 "$NEW"
	until_true "[ \$(wc -l <out) -gt $(wc -l <out.before) ]"
	tail -n 1 out | grep -q "^ok "
	kill -KILL "$NEW"
	until_true "gone $NEW"
}

@test "memory that two threads write to all the time: what is copied is of one instant" {
	start_writer 96
	for _ in 1 2 3 4 5 6; do
		ckpt -v -c -p "$PID" -o image 2>ckpt.err
		run ! grep -q "stands still until" ckpt.err
		image_is_right image
		check_victim "$PID"
	done
	nobody_else writer "$PID "
}

@test "a tree with shared memory: private and shared, parent and children, are of one instant" {
	start_writer 16 24 3
	tree=$(victims writer | sort | tr '\n' ' ')
	for _ in 1 2 3 4 5 6; do
		ckpt -v -c -p "$PID" -o image 2>ckpt.err
		run ! grep -q "stands still until" ckpt.err
		cp out out.before
		# Only the first prints: a second tree of the same board would mix with it.
		restart_as_new image 2>restart.err
		kill -USR2 "$NEW"
		until_true '[ "$(wc -l <out)" -gt "$(wc -l <out.before)" ]'
		tail -n 1 out | grep -q "^ok "
		kill -KILL "$NEW"
		until_true "[ \"\$(victims writer | sort | tr '\n' ' ')\" = '$tree' ]"
		check_victim "$PID"
	done
	nobody_else writer "$tree"
}

@test "what was asked of its mappings before the stop is proven, or asked once more" {
	start_writer 16
	ckpt -v -c -F proven:fail -p "$PID" -o image 2>ckpt.err
	grep -q "it is stopped once more" ckpt.err
	image_is_right image
	check_victim "$PID"
	nobody_else writer "$PID "
	ckpt -v -c -F proven:fail -p "$PID" 2>ckpt.err | cat >image
	grep -q "it is stopped once more" ckpt.err
	image_is_right image
	kill -KILL "$PID"
	rm out
	start python3 -c '
import mmap, sys
page = mmap.PAGESIZE
def fill(m):
    for i in range(16): m[i * page:(i + 1) * page] = bytes([i + 1]) * page
def area():
    m = mmap.mmap(-1, 16 * page, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    fill(m)
    return m
a, b, turn = area(), area(), 0
while True:
    turn += 1
    a.madvise(mmap.MADV_DONTFORK if turn % 2 else mmap.MADV_DOFORK)
    if turn % 7 == 0: a.close(); a = area()
    if turn % 5 == 0: b.madvise(mmap.MADV_DONTFORK, 0, 4 * page); b.madvise(mmap.MADV_DOFORK)
    for m in a, b:
        for i in range(16):
            if m[i * page:(i + 1) * page] != bytes([i + 1]) * page: print("wrong", i, flush=True); sys.exit(1)
    if turn % 50 == 0: print("right", turn, flush=True)
'
	await out right 20
	for _ in 1 2 3 4 5 6 7 8 9 10; do
		ckpt -v -c -p "$PID" -o image 2>>ckpt.err
		run ! grep -q "stands still until" ckpt.err
		kill -STOP "$PID"
		before=$(wc -l <out)
		restart_as_new image
		until_true '[ "$(wc -l <out)" -gt '$((before + 2))' ]'
		run ! grep wrong out
		kill -KILL "$NEW"
		until_true "gone $NEW"
		kill -CONT "$PID"
	done
}

@test "it is not to be seen: mappings, files, children, masks are as they were, and nothing can be waited for" {
	start python3 -c '
import os, signal, time
seen = []
signal.signal(signal.SIGCHLD, lambda *a: seen.append(a))
print("ready", flush=True)
while not os.path.exists("stop"):
    time.sleep(0.01)
try:
    print("child", os.waitpid(-1, 0x40000000 | os.WNOHANG), flush=True)
except ChildProcessError:
    print("no child", seen, flush=True)
'
	await out ready 10
	until_true 'snapshot "$PID" >before && snapshot "$PID" >after && diff -q before after >/dev/null'
	for _ in 1 2 3; do
		ckpt -c -p "$PID" -o image 2>ckpt.err
		[ ! -s ckpt.err ]
		as_found "$PID"
	done
	: >stop
	await out child 10
	grep -q '^no child \[\]$' out
}

@test "its pipes end when it closes them, while its copy is being written" {
	mkfifo fifo go slow
	start python3 -c '
import os, time
more = os.urandom(8 << 20) # than pipes take
f = open("fifo", "w")
print("ready", flush=True)
open("go").read()
f.close()
print("closed", flush=True)
time.sleep(1000)'
	cat fifo >reader && echo end >>reader &
	echo $! >>pids
	await out ready 10
	ckpt -c --external=drop -p "$PID" >slow --status-fd 4 4>status 2>ckpt.err &
	c=$!
	echo $c >>pids
	exec 5<slow
	await status runs 10
	echo >go
	await out closed 10
	await reader end 10
	run ! gone "$c"
	cat <&5 >image
	wait $c
	exec 5<&-
	bsdtar -tf image | grep -q end.json
}

@test "killed at any moment: no copy is left, nobody stands still, nothing is to be waited for" {
	start_writer 16 8 2
	tree=$(victims writer | sort | tr '\n' ' ')
	until_true 'snapshot "$PID" >before && snapshot "$PID" >after && diff -q before after >/dev/null'
	for site in page_lent between copied copy_closed let_go header_out page_out image_out synced; do
		for nth in 1 2; do
			for act in kill term; do
				ckpt -c -p "$PID" -o image -F "$site:$act:$nth" 2>ckpt.err || :
				nobody_else writer "$tree"
				as_found "$PID"
			done
		done
	done
	check_victim "$PID"
	for _ in $(seq 1 40); do
		ckpt -c -p "$PID" -o image 2>/dev/null &
		sleep "0.0$((RANDOM % 60 + 10))"
		kill -KILL $! 2>/dev/null || :
		wait $! || :
		nobody_else writer "$tree"
	done
	as_found "$PID"
	check_victim "$PID"
	ckpt -c -p "$PID" -o image
	image_is_right image
}

@test "where no copy can be made it stands still, and that is said" {
	start_writer 16
	PMS_WITHOUT=snapshot ckpt -c -p "$PID" -o image 2>ckpt.err
	grep -q "stands still until its image is written: this kernel" ckpt.err
	image_is_right image
	if [ "$(id -u)" != 0 ]; then
		limit=$(prlimit --pid "$PID" --nproc --output=SOFT --noheadings --raw)
		prlimit --pid "$PID" --nproc=1:
		ckpt -c -p "$PID" -o image 2>ckpt.err
		grep -q "stands still until its image is written: no more processes are allowed" ckpt.err
		prlimit --pid "$PID" --nproc="$limit:"
		image_is_right image
	fi
	nobody_else writer "$PID "
	check_victim "$PID"
	start python3 -c '
import ctypes, time
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
print("ready now", flush=True)
time.sleep(1000)'
	await out "ready now" 10
	ckpt -c -p "$PID" -o image 2>ckpt.err
	grep -q "stands still until its image is written: orphans come to it" ckpt.err
}

@test "what fork does not copy is in the image, too" {
	start python3 -c '
import ctypes, mmap, os, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
def area(advice):
    a = libc.mmap(None, 1 << 20, 3, 0x22, -1, 0)
    ctypes.memset(a, 65 + advice, 1 << 20)
    assert libc.madvise(ctypes.c_void_p(a), 1 << 20, advice) == 0
    return a
areas = [(area(n), n) for n in (10, 18)]
f = open("deleted", "w+b")
f.write(b"what was there" * 100)
f.flush()
os.unlink("deleted")
print("ready", flush=True)
while not os.path.exists("look"):
    time.sleep(0.01)
f.seek(0)
print("same", [ctypes.string_at(a, 1 << 20) == bytes([65 + n]) * (1 << 20) for a, n in areas], f.read() == b"what was there" * 100, flush=True)
'
	await out ready 10
	ckpt -c -p "$PID" -o image 2>ckpt.err
	[ ! -s ckpt.err ]
	kill -KILL "$PID"
	until_true 'gone "$PID"'
	: >look
	restart_as_new image
	await out same 10
	grep -q '^same \[True, True\] True$' out
}
