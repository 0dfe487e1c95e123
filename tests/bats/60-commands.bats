#!/usr/bin/env bats
# Command lines, exit statuses, --check.

load common

@test "usage errors are 64 and one line says what is wrong" {
	for args in "" "-p" "-p x" "-p 1 -o a --to b" "-p 1 -x" "-p 1 -c -k" "-p 1 extra" "-z 77 -p 1" \
		"--nonsense" "-p 1 --tail 4X" "-p 1 -S --to x" "-F nowhere -p 1"; do
		# shellcheck disable=SC2086
		run ckpt $args
		[ "$status" = 64 ] || { echo "ckpt $args: $status"; return 1; }
	done
	for args in "a b" "--pid=never x" "--inherit 3 x" "--map a=b x" "--hold -1 x" "--nonsense"; do
		# shellcheck disable=SC2086
		run restart $args
		[ "$status" = 64 ] || { echo "restart $args: $status"; return 1; }
	done
	PMS_WITHOUT=nothing run ckpt -p 1 -o x
	[ "$status" = 64 ]
}

@test "no such process, a thread, a zombie, a kernel thread" {
	run ckpt -p 4194303 -o image
	[ "$status" = 66 ]
	start_victim hundred
	tid=$(find "/proc/$PID/task" -mindepth 1 -maxdepth 1 -printf '%f\n' | grep -vx "$PID" | head -n 1)
	run ckpt -p "$tid" -o image
	[ "$status" = 66 ]
	[[ "$output" == *"$PID"* ]]
	run ckpt -p 2 -o image
	[ "$status" = 77 ]
}

@test "a traced process is left to its tracer" {
	command -v strace >/dev/null || skip "no strace"
	start_victim anon
	strace -qq -o /dev/null -p "$PID" &
	S=$!
	until grep -q "TracerPid:.*[1-9]" "/proc/$PID/status"; do :; done
	run ckpt -p "$PID" -o image
	[ "$status" = 75 ]
	kill "$S"
	wait "$S" || :
}

@test "somebody else's process: 77 and what would help" {
	[ "$(id -u)" != 0 ] || skip "root may"
	run ckpt -p 1 -o image
	[ "$status" = 77 ]
	[ ! -e image ]
}

@test "--check lists obstacles and losses, writes nothing, harms nothing" {
	start_victim netlink
	snapshot "$PID" >before
	run ckpt --check -p "$PID"
	[ "$status" = 69 ]
	[[ "$output" == obstacle:*socket* ]]
	ckpt --check --json -p "$PID" >report || [ $? = 69 ]
	jq -e '.[0].severity == "obstacle" and .[0].status == 69' report
	as_found "$PID"
	check_victim "$PID"
	: >out
	start_victim anon handlers
	run ckpt --check -p "$PID"
	[ "$status" = 0 ]
	[ -z "$output" ]
	[ "$(ckpt --check --json -p "$PID")" = "[]" ]
}

@test "stdin of restart on a terminal, stdout of ckpt on a terminal: refused" {
	command -v script >/dev/null || skip "no script(1)"
	start_victim anon
	script -qec "ckpt -p $PID" /dev/null </dev/null >said 2>&1 || [ $? = 73 ]
	grep -q terminal said
	script -qec "restart -" /dev/null </dev/null >said 2>&1 || [ $? = 64 ]
	grep -q terminal said
	check_victim "$PID"
}

@test "ckpt with stdio closed writes nothing into the image" {
	start_victim anon
	ckpt -v -p "$PID" -o image <&- >&- 2>&-
	gone "$PID"
	restart --check image
}

@test "versions" {
	ckpt -V | grep -q pms
	restart -V | grep -q pms
}

@test "a thread that cannot be stopped is named, and nothing has happened" {
	cat >vforks.c <<'C'
#include <stdio.h>
#include <unistd.h>
int main(void)
{
	puts("ready");
	fflush(stdout);
	if (vfork() == 0) { /* the parent cannot be stopped until this one ends */
		sleep(8);
		_exit(0);
	}
	puts("went on");
	fflush(stdout);
	for (;;)
		pause();
}
C
	gcc -o vforks vforks.c
	start ./vforks
	await out ready 20
	until_true '[ "$(cut -d" " -f3 /proc/'"$PID"'/stat)" = D ]'
	run ckpt -p "$PID" --stop-timeout 1 -o image
	[ "$status" = 75 ]
	[[ "$output" == *"thread $PID"*"vfork(2)"* ]]
	[ ! -e image ]
	await out "went on" 30
	until_true 'grep -q "TracerPid:.*0" /proc/'"$PID"'/status'
	run ! gone "$PID"
}

@test "a process under seccomp filters of its own keeps them, as root; --allow-loss=seccomp does without" {
	cat >job.py <<'P'
import ctypes, struct, threading, time
libc = ctypes.CDLL(None, use_errno=True)
# Two filters, in all threads. One makes rt_sigaction, which ckpt asks it for, end the process; the other forbids sync(2).
def install(prog):
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *p) for p in prog))
    class fprog(ctypes.Structure):
        _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
    assert libc.syscall(317, 1, 1, ctypes.byref(fprog(len(prog), ctypes.addressof(code)))) == 0
results = []
def try_sync():
    while True:
        ctypes.set_errno(0)
        results[:] = [libc.syscall(162), ctypes.get_errno()]
        time.sleep(0.01)
threading.Thread(target=try_sync, daemon=True).start()
assert libc.prctl(38, 1, 0, 0, 0) == 0
install([(0x20, 0, 0, 0), (0x15, 0, 1, 13), (0x06, 0, 0, 0x80000000), (0x06, 0, 0, 0x7fff0000)])
install([(0x20, 0, 0, 0), (0x15, 0, 1, 162), (0x06, 0, 0, 0x50000 | 77), (0x06, 0, 0, 0x7fff0000)])
print("filtered", flush=True)
for i in range(100000):
    results.clear()
    time.sleep(0.05)
    ctypes.set_errno(0)
    print(i, libc.syscall(162), ctypes.get_errno(), results, flush=True)
P
	start python3 job.py
	await out filtered 20
	if [ "$(id -u)" -ne 0 ]; then
		run -77 ckpt -p "$PID" -o image
		[[ $output == *seccomp*"as root"* ]] || [[ $output == *"as root"*seccomp* ]]
		run -77 ckpt --check -p "$PID"
		run -77 ckpt --allow-loss=seccomp -p "$PID" -o image
		run ! gone "$PID"
		return 0
	fi
	goes_on() {
		local n
		n=$(grep -c "$1" out || :)
		until_true '[ "$(grep -c "'"$1"'" out)" -gt '"$n"' ]'
	}
	goes_on ' -1 77 \[-1, 77\]'
	oracle "$PID" >before
	ckpt -c --allow-loss=seccomp -p "$PID" -o copy 2>told
	grep -q sandbox told
	goes_on ' -1 77 \[-1, 77\]'
	grep -q '^Seccomp_filters:.2' "/proc/$PID/status"
	ckpt -p "$PID" -o image
	restart_as_new image
	goes_on ' -1 77 \[-1, 77\]'
	for t in /proc/"$NEW"/task/*; do grep -q '^Seccomp_filters:.2' "$t/status"; done
	kill -KILL "$NEW"
	run -77 setpriv --bounding-set=-sys_admin "$BIN/restart" -d image </dev/null
	[[ $output == *seccomp* ]]
	restart_as_new copy
	goes_on ' 0 0 \[0, 0\]'
}

@test "restart -d tells the PID also of a program that ends at once" {
	mkfifo input
	spawn out sh -c 'read -r x <input; exit 3' >pid
	PID=$(cat pid)
	echo "$PID" >>pids
	exec 7>input
	until_true '[ "$(readlink /proc/'"$PID"'/fd/0)" = "$T/input" ]'
	ckpt --external drop -p "$PID" -o image
	exec 7>&-
	for _ in 1 2 3 4 5 6 7 8; do
		n=$(restart --pid=ns -d image </dev/null)
		[ "$n" -gt 1 ]
	done
	run -3 restart image </dev/null
}
