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

@test "a program with a seccomp filter of its own is refused and lives" {
	cat >filter.c <<'C'
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(void)
{
	struct sock_filter f[] = {
	    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
	    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_rt_sigaction, 0, 1),
	    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
	    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
	struct sock_fprog p = {4, f};
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &p);
	puts("ready");
	fflush(stdout);
	for (;;)
		pause();
}
C
	gcc -o filter filter.c
	start ./filter
	await out ready 20
	run ckpt -p "$PID" -o image
	[ "$status" = 69 ]
	[[ "$output" == *seccomp* ]]
	run ckpt --check -p "$PID"
	[ "$status" = 69 ]
	run ! gone "$PID"
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

@test "a process under seccomp filters of its own is refused; --allow-loss=seccomp insists, as root" {
	cat >job.py <<'P'
import ctypes, struct, time
libc = ctypes.CDLL(None, use_errno=True)
# Allow everything but rt_sigaction, which ends the process: what ckpt would ask of it.
prog = [(0x20, 0, 0, 0), (0x15, 0, 1, 13), (0x06, 0, 0, 0x80000000), (0x06, 0, 0, 0x7fff0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *p) for p in prog))
class fprog(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(fprog(len(prog), ctypes.addressof(code))), 0, 0) == 0
print("filtered", flush=True)
for i in range(100000):
    print(i, flush=True)
    time.sleep(0.05)
P
	start python3 job.py
	await out filtered 20
	run -69 ckpt -p "$PID" -o image
	[[ $output == *seccomp* ]]
	run ! gone "$PID"
	if [ "$(id -u)" -ne 0 ]; then
		run -77 ckpt --allow-loss=seccomp -p "$PID" -o image
		[[ $output == *CAP_SYS_ADMIN* ]]
		run ! gone "$PID"
		return 0
	fi
	run ckpt --allow-loss=seccomp -c -p "$PID" -o image
	[ "$status" = 0 ]
	[[ $output == *sandbox* ]]
	run ! gone "$PID"
	n=$(tail -n 1 out)
	until_true '[ "$(tail -n 1 out)" -gt '"$n"' ]'
	grep -q '^Seccomp:.2' "/proc/$PID/status"
	restart --check image
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
