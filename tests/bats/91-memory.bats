#!/usr/bin/env bats
# Processes that run elsewhere before their memory is there (ckpt -m), and whoever is killed on the way.

load common
load hosts
load pages

@test "ckpt -m: it runs elsewhere at once, and the original ends when all has been taken over" {
	start_lazy 256
	leave_memory
	says "random 1000"
	says fork
	says all
	until_true 'gone "$PID"'
	nobody_left
	[ ! -e "$T/pages.sock" ]
	says all
}

@test "ckpt -m: the original is parked while its memory is fetched, and cannot be made to run" {
	need_waiting
	start_lazy 1024
	leave_memory
	kill -CONT "$PID" 2>/dev/null || :
	if ! gone "$PID"; then
		[ "$(ps -o stat= -p "$PID" | cut -c1)" != R ] || sleep 0.1
		c=$(wc -l <out)
		says "random 10"
		[ "$(wc -l <out)" = $((c + 1)) ]
	fi
	says all
	until_true 'gone "$PID"'
}

@test "ckpt -m - --to: everything by one channel" {
	start_lazy 128
	ckpt -m - -p "$PID" --to 'restart -d --status-fd 4 - 4>status' 2>ckpt.err 3>&-
	until_true 'grep -q running status'
	NEW=$(sed -n 's/^running //p' status)
	echo "$NEW" >>pids
	says fork
	says all
	until_true 'gone "$PID"'
	nobody_left
}

@test "ckpt -m into a file, that somebody restarts later" {
	start_lazy 64
	ADDRESS=unix:$T/pages.sock
	ckpt -m "$ADDRESS" -p "$PID" -o image 2>ckpt.err 3>&- &
	c=$!
	echo $c >>pids
	await ckpt.err "stands still" 20
	[ "$(stat -c %s image)" -lt 20000000 ]
	restart_as_new image
	wait $c
	says all
	until_true 'gone "$PID"'
}

@test "ckpt -m --spool: it is served from a file, and whoever serves it can be killed" {
	start_lazy 512
	ADDRESS=unix:$T/pages.sock
	leave_memory --spool spool.ckpt
	until_true 'gone "$PID"'
	SOURCE=$(ours '^pagesrv source ')
	if [ -n "$SOURCE" ]; then
		kill -KILL "$SOURCE"
		rm -f pages.sock
		serve spool.ckpt
	fi
	says "random 1000"
	says all
	kill -KILL "$NEW"
	# And it is a whole image.
	: >commands
	truncate -s 6 out
	# shellcheck disable=SC2034
	SAID=1
	restart_as_new spool.ckpt
	says all
}

@test "stat and wait" {
	need_waiting
	start_lazy 256
	ADDRESS=unix:$T/pages.sock
	leave_memory --spool spool.ckpt
	pagesrv stat --json "$ADDRESS" >stat.json || skip "all was there before it could be asked"
	python3 -c 'import json; s = json.load(open("stat.json")); print(s); assert s["pages"] > 50000 and len(s["sessions"]) == 1'
	pagesrv wait "$ADDRESS" || :
	says all
}

@test "who serves an image is killed and started again: nothing is lost" {
	need_waiting
	start_lazy 512
	leave_memory --spool spool.ckpt
	SOURCE=$(ours '^pagesrv source ')
	[ -n "$SOURCE" ] || skip "all was there already"
	kill -KILL "$SOURCE"
	echo all >>commands
	sleep 0.5
	rm -f pages.sock
	serve spool.ckpt
	until_true 'grep -q "^all ok" out'
	says "random 100" || :
	grep -qx "all ok" out
}

@test "a source that is lost: the process ends with a line, and nothing is left" {
	need_waiting
	start_lazy 1024
	ADDRESS=unix:$T/pages.sock
	(
		ckpt -m "$ADDRESS" -p "$PID" 2>ckpt.err | restart --retry 1 --status-fd 4 - 4>status 2>restart.err || echo "${PIPESTATUS[*]}" >statuses
	) </dev/null >/dev/null 3>&- &
	echo $! >>pids
	until_true 'grep -q running status 2>/dev/null'
	SOURCE=$(ours '^pagesrv source ')
	[ -n "$SOURCE" ] || skip "all was there already"
	kill -KILL "$SOURCE"
	rm -f pages.sock
	if gone "$PID"; then skip "all was there already"; fi
	echo all >>commands
	await restart.err "out of reach" 30
	until_true '[ -s statuses ]'
	[ "$(cat statuses)" = "0 137" ]
	# The original is parked: it is decided by hand what becomes of it.
	ckpt --list | grep -q "^$PID"
	nobody_left
	: >out
	SAID=0
	: >commands
	ckpt --resume "$PID"
	kill -KILL "$PID"
}

@test "whoever serves a process is killed, and another serves it by hand" {
	need_waiting
	start_lazy 256
	ADDRESS=unix:$T/pages.sock
	ckpt -m "$ADDRESS" -p "$PID" 2>ckpt.err | restart -d --demand-only - 2>restart.err >new
	NEW=$(cat new)
	echo "$NEW" >>pids
	says "random 100"
	kill -KILL "$(ours '^pagesrv source ')"
	rm -f pages.sock
	echo "random 2000" >>commands
	serve -p "$PID"
	# Somebody else who looks on, and goes again, does no harm.
	echo "state 1 0x1000" | pagesrv use --alone "$ADDRESS"
	await out "random 2000 ok" 30
	SAID=3
	[ "$(told state)" = running ] || pagesrv stat "$ADDRESS" | grep -qx "state	running"
	kill -KILL "$NEW"
	until_true 'gone "$PID"'
	until_true 'gone "$SERVER"'
}

@test "a parked original that is killed: the copy ends with a line, and sees no zeroes" {
	need_waiting
	start_lazy 64
	ckpt -m "unix:$T/pages.sock" -p "$PID" 2>ckpt.err | restart -d --retry 1 --demand-only - 2>restart.err >new
	NEW=$(cat new)
	echo "$NEW" >>pids
	says "random 100"
	kill -KILL "$PID"
	echo all >>commands
	await restart.err "has ended" 10
	until_true 'gone "$NEW"'
	[ "$(wc -l <out)" = 2 ]
	[ "$(wc -l <restart.err)" -lt 5 ]
	nobody_left
}

@test "ckpt -m fails before anybody comes: that is said, nothing is left, and the original runs on" {
	start_lazy 16
	run ckpt -m "unix:$T/pages.sock" -F collected:fail -p "$PID" -o image
	[ "$status" = 74 ]
	[[ "$output" == *"fault at collected"* ]]
	[ ! -e pages.sock ]
	[ ! -e image ]
	says all
}

@test "killed at each step: the original runs on, or it is parked and that is said" {
	for who in ckpt restart; do
		for site in frozen collected header_out image_out; do
			[ $who = ckpt ] || continue
			start_lazy 16
			ckpt -m "unix:$T/pages.sock" -F $site -p "$PID" 2>ckpt.err | restart -d - >new 2>restart.err || :
			[ ! -s new ]
			rm -f pages.sock
			says all
			kill -KILL "$PID"
			: >out
		done
		for site in read_header execed mapped filled parked; do
			[ $who = restart ] || continue
			start_lazy 16
			ckpt -m "unix:$T/pages.sock" -p "$PID" 2>ckpt.err | restart -d -F $site - >new 2>restart.err || :
			[ ! -s new ]
			nobody_left
			rm -f pages.sock
			says all
			kill -KILL "$PID"
			: >out
		done
	done
}

# Answers are appended, so that those of two who run would be two.
start_appending() {
	rm -f commands out
	: >commands
	: >out
	start sh -c "exec lazy $1 >>$T/answers"
	until_true 'grep -q ready answers'
}

# How many answer, where at least so many should? They are given the time that the first takes, and as much again.
how_many_run() {
	local n before=$SECONDS
	n=$(grep -c "random 7 ok" answers) || :
	echo "random 7" >>commands
	until [ "$(grep -c "random 7 ok" answers)" -gt "$n" ] || [ $((SECONDS - before)) -gt $(($1 > 0 ? 20 : 1)) ]; do sleep 0.02; done
	sleep 0.1
	echo $(($(grep -c "random 7 ok" answers) - n))
}

@test "killed at any moment, whoever it is: never two run; one runs, or is parked and named" {
	for n in $(seq 1 24); do
		: >answers
		start_appending 32
		rm -f restart.err
		ckpt -m - -p "$PID" --to "restart -v --retry 1 - 2>restart.err" 2>ckpt.err </dev/null 3>&- &
		c=$!
		echo $c >>pids
		sleep "0.0$((RANDOM % 80 + 10))"
		case $((n % 5)) in
		0) who='^ckpt ' ;;
		1) who='^restart ' ;;
		2) who='^pagesrv source' ;;
		3) who='^pagesrv fetch' ;;
		4) who='^(pagesrv source|ckpt|restart)' ;;
		esac
		for p in $(ours "$who"); do
			[ "$p" = $BASHPID ] || kill -KILL "$p" 2>/dev/null || :
		done
		wait $c && rc=0 || rc=$?
		until_true '[ -z "$(ours "^ckpt -m")" ]'
		parked=$(ckpt --list | grep -c "^$PID	") || :
		# The first process of its namespace is restart, with which it ends, if it has run: ckpt was told so, or restart has said it before ckpt could be told.
		ended=0
		if [[ $who == *restart* ]] && { [ $rc = 0 ] || grep -q 'pid [0-9]* runs$' restart.err; }; then ended=1; fi
		running=$(how_many_run $((1 - parked - ended)))
		echo "$n $who: $running run, $parked parked, $ended ended, ckpt: $rc: $(cat ckpt.err restart.err 2>/dev/null | tr '\n' ' ')"
		[ "$running" -le 1 ]
		[ $((running + parked + ended)) -ge 1 ]
		[ "$running" = 1 ] || grep -q "parked" ckpt.err || ! gone "$PID" || [ $ended = 1 ]
		ours "^lazy " >kill-these
		cat kill-these >>pids
		xargs -r kill -KILL <kill-these
		ours "^restart|^pagesrv" | xargs -r kill -KILL || :
		until_true '[ -z "$(ours "^lazy |^pagesrv|pages-guard")" ]'
	done
}

# The program on machine A; sets PID, and inner as it is known there, where it is free on B, too.
start_lazy_on_A() {
	: >commands
	: >out
	on A sh -c "cd $T && echo 20000 >/proc/sys/kernel/ns_last_pid; (exec lazy $1 >out 2>&1); :" >/dev/null 2>&1 </dev/null 3>&- &
	echo $! >>pids
	await out ready 60
	# shellcheck disable=SC2034
	SAID=1
	PID=$(ours "^lazy ")
	echo "$PID" >>pids
	inner=$(awk '/^NSpid/ { print $NF }' "/proc/$PID/status")
}

@test "the cable is cut, and comes back: it goes on; for good: it ends, and the original is parked" {
	two_hosts
	(umask 077 && head -c 32 /dev/urandom | base64 >secret)
	start_lazy_on_A 64
	on A sh -c "ckpt -m tcp:10.77.0.1:7402 --key secret -p $inner 2>ckpt.err | ssh -F ssh.conf hostB 'cd $T && exec restart -d --demand-only --retry 10 --key secret --status-fd 4 - 4>status 2>restart.err'" </dev/null 3>&-
	NEW=$(ours "^lazy " | grep -vx "$PID")
	echo "$NEW" >>pids
	says "random 20"
	on A ip link set "pmsA$$" down
	echo "random 3000" >>commands
	sleep 1
	[ "$(wc -l <out)" = 2 ]
	on A ip link set "pmsA$$" up
	await out "random 3000 ok" 60
	on A ip link set "pmsA$$" down
	echo "all" >>commands
	await restart.err "out of reach" 90 2
	until_true 'gone "$NEW"'
	on A ckpt --list | grep -q "^$inner	"
	run ! grep -q wrong out
	on A ckpt --end "$inner"
	until_true 'gone "$PID"'
}

@test "restart is killed while it lets it run, and it ends with it: what it may have done is not done again" {
	: >answers
	start_appending 32
	ckpt -m "unix:$T/pages.sock" -p "$PID" 2>ckpt.err | restart -d -F released - >new 2>restart.err || :
	until_true '[ -z "$(ours "^ckpt -m")" ]'
	cat ckpt.err restart.err answers
	grep -q "cannot be known" restart.err
	grep -q "may run elsewhere, and is parked here" ckpt.err
	[ "$(how_many_run 0)" = 0 ]
	# Whoever knows that it has not, says so.
	ckpt --resume "$PID"
	until_true '[ "$(grep -c "random 7 ok" answers)" = 1 ]'
	[ "$(how_many_run 1)" = 1 ]
}

# Started on A as the only program of that name, in the test's directory; sets PID, INNER.
start_on_A() {
	on A sh -c "cd $T && exec $2" >out 2>&1 </dev/null 3>&- &
	echo $! >>pids
	await out ready 120
	PID=$(ours "^$1" | tail -n 1)
	echo "$PID" >>pids
	INNER=$(awk '/^NSpid/ { print $NF }' "/proc/$PID/status")
	[ "$(resident "$PID")" -gt 1000000 ]
}

# It runs on B, with a tenth of its memory; sets NEW.
runs_on_B() {
	NEW=$(ours "^$1" | grep -vx "$PID" | tail -n 1)
	echo "$NEW" >>pids
	echo "resident: $(resident "$NEW") KiB"
	[ "$(resident "$NEW")" -lt 100000 ]
}

@test "restart is killed while it lets it run on another machine: it runs, and the original never does" {
	two_hosts
	(umask 077 && head -c 32 /dev/urandom | base64 >secret)
	start_lazy_on_A 32
	on A sh -c "ckpt -m tcp:10.77.0.1:7403 --key secret -p $inner 2>ckpt.err | ssh -F ssh.conf hostB 'cd $T && exec restart -d -F released --key secret - 2>restart.err'" </dev/null 3>&- || :
	cat ckpt.err restart.err
	NEW=$(ours "^lazy " | grep -vx "$PID")
	echo "$NEW" >>pids
	cat ckpt.err restart.err
	says all
	until_true 'gone "$PID"'
	grep -q "runs, although restart was killed" restart.err
}

@test "redis, 1 GiB, from one machine to another: it answers at once" {
	command -v redis-server >/dev/null || skip "redis-server is not installed"
	two_hosts
	on A sh -c "cd $T && exec redis-server --port 6399 --enable-debug-command yes --save '' --appendonly no --dir $T" >redis.log 2>&1 </dev/null 3>&- &
	echo $! >>pids
	until_true 'on A redis-cli -p 6399 ping 2>/dev/null | grep -q PONG'
	on A redis-cli -p 6399 debug populate 100000 key 10000 | grep -q OK
	on A redis-cli -p 6399 set nonce 4711 | grep -q OK
	PID=$(pgrep -x redis-server -n)
	echo "$PID" >>pids
	inner=$(awk '/^NSpid/ { print $NF }' "/proc/$PID/status")
	digest=$(on A redis-cli -p 6399 debug digest-value key:{100..400})
	[ "$(resident "$PID")" -gt 900000 ]
	on A sh -c "ckpt -m - -p $inner --to 'ssh -F ssh.conf hostB \"cd $T && exec restart -d --demand-only --status-fd 4 - 4>status 2>restart.err\"' 2>ckpt.err" </dev/null 3>&-
	await status running 30 || {
		cat restart.err ckpt.err
		return 1
	}
	cat restart.err ckpt.err
	[ "$(on B redis-cli -p 6399 get nonce)" = 4711 ]
	runs_on_B "redis-server"
	[ "$(on B redis-cli -p 6399 debug digest-value key:{100..400})" = "$digest" ]
	run ! gone "$PID"
	on B redis-cli -p 6399 shutdown nosave || :
	until_true 'gone "$PID"'
}

@test "python3, 1 GiB, from one machine to another by TCP with a key: it answers at once" {
	two_hosts
	(umask 077 && head -c 32 /dev/urandom | base64 >secret)
	cat >blocks.py <<-'P'
		import hashlib, os, random, sys, time
		r = random.Random(5)
		blocks = [r.randbytes(1 << 20) for _ in range(1024)]
		want = [hashlib.sha1(b).hexdigest() for b in blocks]
		print("ready", flush=True)
		n = 0
		while True:
		    asked = open("asked").read().split() if os.path.exists("asked") else []
		    for what in asked[n:]:
		        which = range(1024) if what == "all" else [int(what)]
		        right = all(hashlib.sha1(blocks[i]).hexdigest() == want[i] for i in which)
		        print(what, "right" if right else "wrong", flush=True)
		        n += 1
		    time.sleep(0.001)
	P
	start_on_A ".*python3 blocks.py" "python3 blocks.py"
	on A sh -c "ckpt -m tcp:10.77.0.1:7401 --key secret -p $INNER 2>ckpt.err | ssh -F ssh.conf hostB 'cd $T && exec restart -d --demand-only --key secret --status-fd 4 - 4>status 2>restart.err'" </dev/null 3>&-
	echo 700 >asked
	await out "700 right" 10
	runs_on_B ".*python3 blocks.py"
	echo 3 900 all >>asked
	await out "all right" 60
	kill -KILL "$NEW"
	until_true 'gone "$PID"'
	run ! grep -q wrong out
}

@test "sqlite3, 1 GiB, in a pipeline, by one channel: it answers at once" {
	two_hosts
	command -v sqlite3 >/dev/null || skip "sqlite3 is not installed"
	echo "create table t(a integer primary key, b); with recursive n(i) as (select 1 union all select i + 1 from n where i < 1000000) insert into t select i, randomblob(1000) from n; select 'ready', sum(length(b)) from t;" >sql
	on A sh -c "cd $T && exec sh -c 'tail -n +1 -f sql | sqlite3 :memory:'" >out 2>&1 </dev/null 3>&- &
	echo $! >>pids
	await out "ready|1000000000" 120
	PID=$(ours "^sh -c tail" | tail -n 1)
	ours "^tail |^sqlite3 |^sh -c tail" >>pids
	INNER=$(awk '/^NSpid/ { print $NF }' "/proc/$PID/status")
	before=$(ours "^sqlite3 ")
	on A sh -c "ckpt -m - -p $INNER --to 'ssh -F ssh.conf hostB \"cd $T && exec restart -d --demand-only --status-fd 4 - 4>status 2>restart.err\"' 2>ckpt.err" </dev/null 3>&-
	echo "select 'one', length(b) from t where a = 500000;" >>sql
	await out "one|1000" 10
	PID=$before
	runs_on_B sqlite3
	echo "select 'sum', sum(a), sum(length(b)), count(distinct hex(b)) from t where a between 400000 and 420000;" >>sql
	await out "sum|8200410000|20001000|20001" 60
	ours "^tail |^sqlite3 |^sh -c tail" >>pids
	kill -KILL "$(ours "^sh -c tail" | grep -vx "$(pgrep -P "$HOSTA" -f "^sh -c tail" || echo 0)" | tail -n 1)" "$NEW"
}
