#!/usr/bin/env bats
# PIDs, namespaces, clocks, other kernels, terminals, foreground.

load common

namespaces() {
	unshare -U true 2>/dev/null || [ "$(id -u)" = 0 ]
}

@test "the PID is taken: new namespaces, the same PID inside" {
	namespaces || skip "no user namespaces here"
	start_victim ids hundred clock self
	ckpt -c -p "$PID" -o image
	restart_as_new image
	[ "$NEW" != "$PID" ]
	[ "$(awk '/^NSpid/ { print $NF }' "/proc/$NEW/status")" = "$PID" ]
	kill -KILL "$PID"
	check_victim "$NEW"
}

@test "two copies of one image at once" {
	namespaces || skip "no user namespaces here"
	start_victim hundred
	ckpt -p "$PID" -o image
	restart_as_new --pid=ns image
	A=$NEW
	restart_as_new --pid=ns image
	check_victim "$A"
	kill -USR2 "$NEW" # its count of checks is its own
	await out "ok $CHECKS" 30 2
}

@test "--pid=new for one thread; refused for several" {
	start_victim anon handlers
	ckpt -c -p "$PID" -o image
	restart_as_new --pid=new image
	[ "$NEW" != "$PID" ]
	kill -KILL "$PID"
	check_victim "$NEW"
	kill -KILL "$NEW"
	: >out
	start_victim hundred
	ckpt -c -p "$PID" -o image
	run restart --pid=new image
	[ "$status" = 77 ]
}

@test "without user namespaces and rights: 77, and what would help" {
	[ "$(id -u)" != 0 ] || skip "root has the right"
	start_victim anon
	ckpt -c -p "$PID" -o image
	PMS_WITHOUT=user_namespaces run restart image
	[ "$status" = 77 ]
	[[ "$output" == *sysctl* ]]
	[ "${#lines[@]}" = 1 ]
}

@test "as root: the same PID without namespaces" {
	[ "$(id -u)" = 0 ] || skip "only root may choose PIDs"
	start_victim ids hundred
	ckpt -p "$PID" -o image
	timeout 30 tail --pid="$PID" -f /dev/null # until it is reaped
	NEW=$(restart -d --pid=same image)
	echo "$NEW" >>pids
	[ "$NEW" = "$PID" ]
	check_victim "$NEW"
}

@test "as root: another user's process keeps its user, and nothing else" {
	[ "$(id -u)" = 0 ] || skip "only root may"
	cp "$(command -v victim)" /tmp/victim.$$ && chmod 755 /tmp/victim.$$
	chmod 777 "$T"
	: >out && chmod 666 out
	PID=$(setpriv --reuid=65534 --regid=65534 --clear-groups spawn out /tmp/victim.$$ ids anon offset)
	echo "$PID" >>pids
	await out ready 20
	CHECKS=0
	ckpt -p "$PID" -o image
	restart_as_new image
	rm /tmp/victim.$$
	[ "$(awk '/^Uid/ { print $2 $3 $4 $5 }' "/proc/$NEW/status")" = 65534655346553465534 ]
	[ "$(awk '/^CapPrm/ { print $2 }' "/proc/$NEW/status")" = 0000000000000000 ]
	check_victim "$NEW"
}

@test "another user restarts it: the program goes on seeing its old user" {
	[ "$(id -u)" = 0 ] || skip "only root has another user at hand"
	start_victim ids anon hundred
	ckpt -c -p "$PID" -o image
	chmod 777 . && chmod 666 out && chmod 644 image
	NEW=$(setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all --bounding-set=-all \
		restart -q -d image)
	echo "$NEW" >>pids
	[ "$(awk '/^Uid/ { print $2 }' "/proc/$NEW/status")" = 65534 ]
	kill -KILL "$PID"
	check_victim "$NEW" # getuid() is 0 for it
	# And its new owner can move it again.
	rm -f image
	setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all --bounding-set=-all \
		ckpt -p "$NEW" -o image
	gone "$NEW"
}

@test "the clock a million seconds away, both ways" {
	namespaces || skip "no time namespaces here"
	start_victim clock timers
	for offset in 1000000 -1000000; do
		ckpt -p "$PID" -o image
		if [ "$(id -u)" = 0 ]; then flags=-T; else flags="-U -c -T"; fi
		now=$(cut -d. -f1 /proc/uptime)
		[ $((now + offset)) -gt 0 ] || offset=$((1 - now))
		# shellcheck disable=SC2086
		NEW=$(unshare $flags --monotonic $offset --boottime $offset restart -d image)
		[ -n "$NEW" ]
		NEW=$(one_victim)
		echo "$NEW" >>pids
		check_victim "$NEW"
		PID=$NEW
	done
}

@test "another kernel's vDSO: its functions lead to this one's; ten generations do not grow" {
	export PMS_WITHOUT=same_vdso
	start_victim clock hundred
	NEW=$PID
	for i in 1 2 3 4 5 6 7 8 9 10; do
		ckpt -p "$NEW" -o image
		restart_as_new image
		[ "$i" != 1 ] || lines=$(wc -l <"/proc/$NEW/maps")
	done
	check_victim "$NEW"
	[ "$(wc -l <"/proc/$NEW/maps")" = "$lines" ]
	# And back to a kernel with its own.
	[ "$(bsdtar -xOf image 'vdso/0' | tail -c +10 | head -c 7)" = pmsvdso ]
}

@test "kernels of before: everything with features hidden" {
	for without in linux-5.15 linux-6.1 linux-6.6 pagemap_scan kcmp timer_restore_ids membarrier_get \
		tmpfile process_vm linux-5.15,kcmp,tmpfile,process_vm,same_vdso; do
		: >out
		export PMS_WITHOUT=$without
		start_victim anon protection mapped-file shared offset handlers timers hundred attributes clock
		ckpt -p "$PID" -o image
		restart_as_new image
		check_victim "$NEW"
		kill -KILL "$NEW"
	done
}

@test "under the seccomp profile of a container: a copy is made, and runs with another PID" {
	start contained victim anon protection handlers offset timers clock shared
	await out ready 20
	CHECKS=0
	check_victim "$PID"
	contained ckpt -p "$PID" -o image
	gone "$PID"
	run contained restart image
	[ "$status" = 77 ]
	[ "${#lines[@]}" = 1 ]
	NEW=$(contained restart -d --pid=new image)
	echo "$NEW" >>pids
	check_victim "$NEW"
	# Outside of the container the filter is the program's own, which only root can carry.
	run ckpt -c -p "$NEW" -o image2
	if [ "$(id -u)" = 0 ]; then
		[ "$status" = 0 ]
	else
		[ "$status" = 77 ]
		[[ "$output" == *seccomp* ]]
	fi
	check_victim "$NEW"
}

@test "foreground: output, exit status, signals" {
	start_victim anon
	ckpt -p "$PID" -o image
	restart image &
	R=$!
	echo "$R" >>pids
	NEW=$(one_victim)
	check_victim "$NEW"
	kill -TERM "$R" # is passed on: the victim ends with 7
	wait "$R" && rc=0 || rc=$?
	[ "$rc" = 7 ]
	restart image &
	R=$!
	NEW=$(one_victim)
	kill -KILL "$NEW"
	wait "$R" && rc=0 || rc=$?
	[ "$rc" = 137 ]
}

@test "external pipes become restart's stdio" {
	mkfifo in
	(closed sh -c 'exec gawk "{ print NR, \$0; fflush() } END { print \"sum\", NR }" <in | cat >out') &
	exec 7>in
	echo one >&7
	until_true '[ -e out ] && grep -q "1 one" out'
	PID=$(one_victim gawk)
	ckpt -q -p "$PID" -o image
	exec 7>&-
	printf 'two\nthree\n' | restart image >after
	[ "$(cat after)" = "$(printf '2 two\n3 three\nsum 3')" ]
	# The image from stdin: then there is no input left for the program.
	restart - <image >after
	[ "$(cat after)" = "sum 1" ]
}

@test "a pipe at another number needs --inherit, and restart names it" {
	mkfifo in
	(closed sh -c 'echo $$ >pid; exec bash -c "exec 5<in; echo open; while read -r -u 5 l; do echo got \$l; done; echo end" >out </dev/null 2>&1') &
	exec 7>in
	until_true '[ -e out ] && grep -q open out'
	PID=$(cat pid)
	ckpt -q -p "$PID" -o image
	exec 7>&-
	run restart image
	[ "$status" = 66 ]
	[[ "$output" == *"--inherit 5=FD"* ]]
	echo more | restart --inherit 5=8 image 8<&0
	[ "$(tail -n 2 out)" = "$(printf 'got more\nend')" ]
}

@test "kinds that cannot be carried yet are refused by name, the target unharmed" {
	start_victim netlink
	snapshot "$PID" >before
	run ckpt -p "$PID" -o image
	[ "$status" = 69 ]
	[[ "$output" == *socket* ]]
	as_found "$PID"
	check_victim "$PID"
}

@test "a stopped job stays stopped, and goes on when continued" {
	start_victim handlers
	kill -STOP "$PID"
	ckpt -c -p "$PID" -o image
	[ "$(ps -o stat= -p "$PID" | cut -c1)" = T ]
	kill -KILL "$PID"
	restart_as_new image
	until_true '[ "$(ps -o stat= -p "$NEW" | cut -c1)" = T ]'
	kill -CONT "$NEW"
	check_victim "$NEW"
}

@test "under a terminal: settings, size and output move along" {
	command -v script >/dev/null || skip "no script(1)"
	# shellcheck disable=SC2016
	(closed script -qfc 'stty -echo; exec victim handlers >out 2>&1 </dev/tty' /dev/null </dev/null >/dev/null 2>&1) &
	echo $! >>pids
	until_true '[ -s out ]'
	await out ready 20
	PID=$(one_victim)
	CHECKS=0
	ckpt -p "$PID" -o image
	bsdtar -xOf image objects.json | jq -e '.ofds[] | select(.kind == 3) | .termios.n > 0' >/dev/null
	script -qfc "restart image; echo status \$?" /dev/null </dev/null >tty 2>&1 &
	echo $! >>pids
	NEW=$(one_victim)
	check_victim "$NEW"
	kill -TERM "$NEW"
	await tty "status 7" 20
}
