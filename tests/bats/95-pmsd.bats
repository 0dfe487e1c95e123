#!/usr/bin/env bats
# pmsd: jobs and their keepers, moves between hosts, policies. Hosts here are daemons with directories of their own.
load common
load hosts

# pmsd on that host.
at() {
	PMSD_STATE=$T/$1 PMSD_HOST=$1 pmsd "${@:2}"
}

# Daemons with these names, that know each other; each is up where the others see it so.
daemons() {
	local h k
	for h; do
		for k; do
			[ "$h" = "$k" ] || echo "$k via:env PMSD_STATE=$T/$k PMSD_HOST=$k" >>"hosts.$h"
		done
		touch "hosts.$h"
		daemon "$h"
	done
	for h; do
		for k; do
			until_true "at $h peers | grep -q '^$k	up'"
		done
	done
}

# Its exit status is ours.
end_daemon() { # HOST SIGNAL
	local pid=DAEMON_$1
	kill "-$2" "${!pid}"
	wait "${!pid}" || [ "$2" = KILL ]
}

# One of them; sets DAEMON_NAME to its pid.
daemon() {
	: >"serve.$1"
	PMSD_STATE=$T/$1 PMSD_HOST=$1 pmsd serve --hosts "hosts.$1" --period 1 "${@:2}" >"serve.$1" 2>>"err.$1" </dev/null 3>&- &
	echo $! >>pids
	declare -g "DAEMON_$1=$!"
	await "serve.$1" socket 20 || {
		cat "err.$1"
		return 1
	}
}

# What says its standard input to a socket, and prints the answer.
write_ask() {
	cat >ask.py <<-'P'
		import socket, sys
		s = socket.socket(socket.AF_UNIX)
		s.connect(sys.argv[1])
		s.send(sys.stdin.read().encode())
		s.shutdown(socket.SHUT_WR)
		print(s.makefile().read(), end="")
	P
}

# A job there that counts into a file and onto its output; sets JOB and PID.
start_job() {
	JOB=$(at "$1" run -n counter -- sh -c "n=0; while [ ! -e $T/stop ]; do n=\$((n + 1)); echo \$n >>$T/counted; echo line \$n; sleep 0.05; done; exit 7")
	known "$1"
	until_true '[ -s counted ]'
}

# What is to be ended with the test; sets PID.
known() {
	PID=$(at "$1" list | awk -F'\t' -v job="$JOB" '$1 == job { print $4 }')
	echo "$PID" >>pids
	pgrep -f "pmsd (run|receive) .*" >>pids || :
}

# Nothing was counted twice or left out, also as a job tells it on its output.
counted_right() {
	awk '$1 != NR { print "line " NR ": " $1; bad = 1 } END { exit bad }' counted
	at "$1" log "$JOB" | sed 's/^line //' | cmp - counted
}

field() { # HOST JOB COLUMN
	at "$1" list -a | awk -F'\t' -v job="$2" -v what="$3" 'NR == 1 { for (i = 1; i <= NF; i++) if ($i == what) c = i } $1 == job { print $c }'
}

@test "a job: it runs where it was started, its output and its status are kept" {
	daemons a
	mkdir here && cd here
	JOB=$(at a run -n one -- sh -c 'echo "in $PWD as $PMSD_JOB with $SPECIAL"; echo err >&2; exit 3')
	[ "$JOB" = a.1 ]
	cd ..
	run at a wait "$JOB"
	[ "$status" = 3 ]
	[ "$(at a log "$JOB")" = "in $T/here as a.1 with 
err" ]
	[ "$(field a "$JOB" state)" = ended ]
	[ "$(field a "$JOB" status)" = 3 ]
	run at a run -w -- sh -c 'kill -TERM $$'
	[ "$status" = 143 ]
	run at a run -- /no/such/program
	[ "$status" = 69 ]
	[[ $output == *"/no/such/program: No such file"* ]]
	run at a wait a.99
	[ "$status" = 66 ]
}

@test "no daemon: that is said, with what to do" {
	run at a list
	[ "$status" = 69 ]
	[[ $output == *"start one with pmsd serve"* ]]
	run at a run true
	[ "$status" = 69 ]
}

@test "listings are lines of words, for programs and for shells, and JSON where asked" {
	daemons a
	start_job a
	at a list --json | jq -e '.[0].job == "a.1" and .[0].state == "running" and (.[0].pid > 1) and .[0].name == "counter"'
	at a peers --json | jq -e '.[0].host == "a" and .[0].cpus >= 1 and .[0].memory_kb > 1000'
	write_ask
	printf 'list\n' | python3 ask.py "$T/a/socket" >talk
	grep -q "^a.1	running	a	$PID	" talk
	[ "$(tail -n 1 talk)" = ok ]
	run at a pause
	[ "$status" = 64 ]
	run at a pause a.99
	[ "$status" = 75 ]
	[[ $output == *"no job a.99 here"* ]]
}

@test "pause, resume, kill" {
	daemons a
	start_job a
	at a pause "$JOB"
	[ "$(field a "$JOB" state)" = paused ]
	until_true "grep -q '^State:.T' /proc/$PID/status"
	at a resume "$JOB"
	until_true "! grep -q '^State:.T' /proc/$PID/status"
	at a kill "$JOB" KILL
	run at a wait "$JOB"
	[ "$status" = 137 ]
}

@test "a copy of a job in a file" {
	daemons a
	start_job a
	at a ckpt "$JOB" copy.ckpt
	bsdtar -tf copy.ckpt | grep -q header.json
	[ "$(field a "$JOB" state)" = running ]
	run at a ckpt "$JOB" no/such/dir/copy.ckpt
	[ "$status" = 75 ]
	[[ $output == *"No such file or directory"* ]]
}

@test "the daemon is killed: jobs run on, and the next daemon finds them, also those that have ended meanwhile" {
	daemons a
	start_job a
	first=$JOB
	JOB=$(at a run -- sh -c "until [ -e $T/go ]; do sleep 0.05; done; echo done; exit 5")
	known a
	end_daemon a KILL
	touch go
	until_true 'gone "$PID"'
	daemon a
	run at a wait "$JOB"
	[ "$status" = 5 ]
	[ "$(at a log "$JOB")" = "done" ]
	until_true '[ "$(field a "'"$first"'" state)" = running ]'
	JOB=$first
	touch stop
	run at a wait "$JOB"
	[ "$status" = 7 ]
	counted_right a
}

@test "migrate: it goes on there, is waited for and read from both sides, and counts on" {
	daemons a b
	start_job a
	at a migrate "$JOB" b
	gone "$PID"
	[ "$(field a "$JOB" state)" = moved ]
	[ "$(field a "$JOB" host)" = b ]
	[ "$(field b "$JOB" state)" = running ]
	known b
	n=$(wc -l <counted)
	until_true '[ $(wc -l <counted) -gt '$((n + 3))' ]'
	touch stop
	run at a wait "$JOB"
	[ "$status" = 7 ]
	run at b wait "$JOB"
	[ "$status" = 7 ]
	counted_right a
	counted_right b
}

@test "there and back, and there again" {
	daemons a b
	start_job a
	for pair in "a b" "b a" "a b" "b a"; do
		set -- $pair
		at "$1" migrate "$JOB" "$2"
		known "$2"
		n=$(wc -l <counted)
		until_true '[ $(wc -l <counted) -gt '$((n + 2))' ]'
	done
	[ "$(field a "$JOB" state)" = running ]
	touch stop
	run at b wait "$JOB"
	[ "$status" = 7 ]
	counted_right a
	counted_right b
}

@test "what may not come stays: an unknown host, one that is being emptied, one that is not there" {
	daemons a b
	start_job a
	run at a migrate "$JOB" c
	[ "$status" = 75 ]
	[[ $output == *"no host c among the peers"* ]]
	at b drain
	run at a migrate "$JOB" b
	[ "$status" = 75 ]
	[[ $output == *"b is being emptied"* ]]
	at b drain stop
	end_daemon b KILL
	run at a migrate "$JOB" b
	[ "$status" = 75 ]
	[ "$(field a "$JOB" state)" = running ]
	run ! gone "$PID"
	touch stop
	run at a wait "$JOB"
	[ "$status" = 7 ]
	counted_right a
}

@test "it ends while it is being moved: that is its end" {
	touch gate
	echo "b via:until [ -e $T/gate ]; do sleep 0.05; done; env PMSD_STATE=$T/b PMSD_HOST=b" >hosts.a
	daemon a
	touch hosts.b
	daemon b
	until_true "at a peers | grep -q '^b	up'"
	start_job a
	rm gate
	at a migrate "$JOB" b >said 2>&1 3>&- &
	m=$!
	until_true '[ "$(field a "$JOB" state)" = moving ]'
	touch stop
	until_true 'gone "$PID"'
	touch gate
	wait $m && false
	run at a wait "$JOB"
	[ "$status" = 7 ]
	[ "$(field a "$JOB" state)" = ended ]
	counted_right a
}

@test "its keeper is killed while it moves: another one finishes that" {
	touch gate
	echo "b via:until [ -e $T/gate ]; do sleep 0.05; done; env PMSD_STATE=$T/b PMSD_HOST=b" >hosts.a
	daemon a
	touch hosts.b
	daemon b
	until_true "at a peers | grep -q '^b	up'"
	# One that says nothing: the pipe of its output ends with the keeper.
	JOB=$(at a run -n counter -- sh -c "n=0; while :; do n=\$((n + 1)); echo \$n >>$T/counted; sleep 0.05; done")
	known a
	until_true '[ -s counted ]'
	rm gate
	at a migrate "$JOB" b >said 2>&1 3>&- &
	m=$!
	until_true '[ "$(field a "$JOB" state)" = moving ]'
	of_test '^pmsd run' | xargs kill -KILL
	wait $m && false
	touch gate
	until_true '[ -n "$(where_is)" ]'
	from=$(where_is)
	[ "$from" = a ]
	n=$(wc -l <counted)
	until_true '[ $(wc -l <counted) -gt '$((n + 3))' ]'
	at a migrate "$JOB" b
	known b
	n=$(wc -l <counted)
	until_true '[ $(wc -l <counted) -gt '$((n + 3))' ]'
	awk '$1 != NR { exit 1 }' counted
	at b kill "$JOB" KILL
	run at a wait "$JOB"
	[ "$status" = 137 ]
}

@test "what cannot be carried stays, and why is said" {
	daemons a b
	JOB=$(at a run -- python3 -c '
import socket, time
s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
print("ready", flush=True)
time.sleep(1000)')
	known a
	until_true '[ "$(at a log "$JOB")" = ready ]'
	run at a migrate "$JOB" b
	[ "$status" = 75 ]
	echo "$output"
	[[ $output == *socket* ]]
	[ "$(field a "$JOB" state)" = running ]
	at a kill "$JOB" KILL
	run at a wait "$JOB"
	[ "$status" = 137 ]
}

@test "drain: all leave this host, which takes none meanwhile" {
	daemons a b
	start_job a
	first=$JOB
	JOB=$(at a run -- sleep 1000)
	known a
	at a drain
	[ "$(at a list | wc -l)" = 1 ]
	run at a run true
	[ "$status" = 69 ]
	[[ $output == *"a is being emptied"* ]]
	[ "$(field b "$JOB" state)" = running ]
	known b
	at b kill "$JOB"
	JOB=$first
	known b
	touch stop
	run at a wait "$JOB"
	[ "$status" = 7 ]
	counted_right b
}

@test "examples/evacuate: what has nowhere to go is saved" {
	daemons a
	start_job a
	mkdir saved
	PMSD_STATE=$T/a PMSD_HOST=a PATIENCE=1 evacuate "$T/saved"
	gone "$PID"
	n=$(wc -l <counted)
	restart -d --stdio 0,7,7 "saved/$JOB.ckpt" </dev/null >new 3>&- 7>said
	cat new >>pids
	until_true '[ $(wc -l <counted) -gt '$((n + 3))' ]'
	awk '$1 != NR { exit 1 }' counted
	touch stop
	until_true 'gone "$(cat new)"'
}

@test "drain on SIGTERM: the daemon ends when all have left" {
	daemons b
	echo "b via:env PMSD_STATE=$T/b PMSD_HOST=b" >hosts.a
	daemon a --drain-on-term --grace 60
	until_true "at a peers | grep -q '^b	up'"
	start_job a
	end_daemon a TERM
	known b
	[ "$(field b "$JOB" state)" = running ]
	touch stop
	run at b wait "$JOB"
	[ "$status" = 7 ]
	counted_right b
}

@test "a policy moves jobs; one that fails, hangs or prints nonsense does no harm" {
	daemons a b
	start_job a
	cat >policy <<-'P'
		#!/bin/sh
		cat >>tables
		echo === >>tables
		[ -e bad ] && { echo 'dance a.1 b'; echo 'migrate x'; echo 'migrate a.1 nowhere'; exit 0; }
		[ -e crash ] && kill -SEGV $$
		[ -e move ] && printf 'migrate\ta.1\tb\n'
		exit 0
	P
	chmod +x policy
	at a policy "$T/policy"
	touch bad
	await err.a "makes no sense" 20
	await err.a "no host nowhere" 20
	rm bad && touch crash
	await err.a "the policy was ended by signal 11" 20
	[ "$(field a "$JOB" state)" = running ]
	rm crash && touch move
	until_true '[ "$(field b "$JOB" state)" = running ]'
	known b
	grep -q "^host	a	.*	self\$" tables
	grep -q "^host	b	.*	up\$" tables
	grep -q "^job	a.1	a	running	.*	counter\$" tables
	touch stop
	run at a wait "$JOB"
	[ "$status" = 7 ]
	counted_right b
	run at a policy no-such
	[ "$status" = 75 ]
}

@test "a host asks another for a job" {
	daemons a b
	start_job a
	printf '#!/bin/sh\necho migrate a.1 b\n' >policy
	chmod +x policy
	at b policy "$T/policy"
	until_true '[ "$(field b "$JOB" state)" = running ]'
	known b
	touch stop
	run at b wait "$JOB"
	[ "$status" = 7 ]
	counted_right b
}

@test "a daemon of root: each sees and ends his own jobs, which run as he" {
	[ "$(id -u)" = 0 ] || skip "only root can be two"
	daemons a
	chmod 755 .
	mkdir theirs
	chown 65534:65534 theirs
	as_user() { setpriv --reuid=65534 --regid=65534 --clear-groups env PMSD_SOCKET="$T/a/socket" PMSD_STATE="$T/theirs" PMSD_HOST=a pmsd "$@"; }
	at a run sleep 1000
	JOB=a.1
	known a
	[ "$(as_user run sleep 1000)" = a.2 ]
	JOB=a.2
	known a
	[ "$(stat -c %u "/proc/$PID")" = 65534 ]
	[ "$(as_user list | wc -l)" = 2 ]
	as_user list | grep -q "^a.2	running"
	[ "$(at a list | wc -l)" = 3 ]
	run as_user kill a.1
	[ "$status" = 75 ]
	[[ $output == *"no job a.1 here"* ]]
	run as_user drain
	[ "$status" = 75 ]
	run as_user policy none
	[ "$status" = 75 ]
	as_user kill a.2
	run as_user wait a.2
	[ "$status" = 143 ]
	# Nobody keeps what is another's, or what was never given out.
	printf 'keep\ta.1\tx\tx\t/\t0\trunning\t1\t0\t0\t\n' >forged
	printf 'keep\ta.77\tx\tx\t/\t0\trunning\t1\t0\t0\t\n' >>forged
	write_ask
	chmod 644 ask.py
	[ "$(setpriv --reuid=65534 --regid=65534 --clear-groups env PATH=/usr/bin:/bin python3 ask.py "$T/a/socket" <forged | grep -c "^error.*is kept by another")" = 2 ]
	[ "$(field a a.1 state)" = running ]
	[ -z "$(field a a.77 state)" ]
	[ "$(stat -c %a a/history.db)" = 600 ]
}

@test "loads over time, as a picture" {
	daemons a
	until_true 'sqlite3 a/history.db "select count(*) from loads" | grep -qv "^0"'
	at a load --since 1h | grep -q '^a  *|'
	run at a load --since yesterday
	[ "$status" = 64 ]
	if command -v gnuplot; then
		at a load --plot load.svg
		grep -q "<svg" load.svg
	fi
}

@test "simulate: a policy that moves ends sooner than none" {
	{
		for h in $(seq 4); do echo "host h$h 2"; done
		for j in $(seq 40); do echo "job j$j h1 $j 60 1000"; done
	} >trace
	for p in none threshold receiver balance; do
		pmsd simulate -p $p --period 5 trace >"result.$p"
		grep -q "^jobs	40" "result.$p"
	done
	[ "$(awk '$1 == "migrations" { print $2 }' result.none)" = 0 ]
	none=$(awk '$1 == "makespan_s" { print int($2) }' result.none)
	[ "$none" = 1200 ] || [ "$none" = 1201 ]
	for p in threshold receiver balance; do
		[ "$(awk '$1 == "makespan_s" { print int($2) }' result.$p)" -lt $((none / 2)) ]
		[ "$(awk '$1 == "migrations" { print $2 }' result.$p)" -gt 5 ]
	done
	echo "job x nowhere 1 1" >>trace
	run pmsd simulate -p none trace
	[ "$status" = 65 ]
	[[ $output == *"trace:45:"* ]]
}

# Processes of ours, whose state or working directory is in that of the test, with this command line.
of_test() {
	local p
	for p in $(pgrep -f "$1"); do
		if [ "$p" != $BASHPID ] && grep -qz "$T" "/proc/$p/environ" "/proc/$p/cmdline" 2>/dev/null; then echo "$p"; fi
	done
	return 0
}

@test "killed at any moment, whoever it is: it runs once, and is found again" {
	daemons a b
	JOB=
	for n in $(seq 12); do
		if [ -z "$JOB" ]; then
			: >counted
			rm -f stop
			start_job a
			from=a to=b
		fi
		case $((n % 6)) in
		0) who='^pmsd serve' ;;
		1) who='ckpt -q -p' ;;
		2) who='^restart -q' ;;
		3) who='pmsd receive' ;;
		4) who='^(ckpt|restart)' ;;
		5) who='pmsd (offer|tail)' ;;
		esac
		at $from migrate "$JOB" $to >said 2>&1 &
		m=$!
		sleep "0.$(printf %03d $((RANDOM % 250 + 5)))"
		of_test "$who" >victims_now
		xargs -r kill -KILL <victims_now || :
		wait $m || :
		for h in a b; do
			local pid=DAEMON_$h
			! gone "${!pid}" || daemon $h
		done
		echo "$n $who: $(tr '\n' ' ' <said)"
		# It counts on; only where its keeper, or restart in whose namespace it is, was killed it may have ended with it.
		before=$(wc -l <counted) dead=0
		for _ in $(seq 150); do
			[ "$(wc -l <counted)" -le $((before + 5)) ] || break
			if is_over; then dead=$((dead + 1)); else dead=0; fi
			[ "$dead" -lt 15 ] || break
			sleep 0.1
		done
		awk '$1 != NR { print "line " NR ": " $1; bad = 1 } END { exit bad }' counted
		if [ "$(wc -l <counted)" -le $((before + 5)) ]; then
			echo "$JOB: $(field a "$JOB" state) at a, $(field b "$JOB" state) at b"
			[[ $who == *receive* || $who == *restart* ]]
			JOB=
			continue
		fi
		until_true '[ -n "$(where_is)" ]'
		from=$(where_is)
		to=$([ "$from" = a ] && echo b || echo a)
		known "$from"
	done
}

# Nobody will bring it back.
is_over() {
	local h
	for h in a b; do
		case $(field $h "$JOB" state) in
		'' | ended | moved | refused | lost) ;;
		*) return 1 ;;
		esac
	done
}

# The host where it runs, or nothing.
where_is() {
	local h
	for h in a b; do
		[ "$(field $h "$JOB" state)" != running ] || echo $h
	done
}

# Daemons on both machines, of which A knows B.
two_daemons() {
	local h
	printf 'hostA via:false\nhostB ssh:hostB\n' >hosts
	for h in A B; do
		: >"serve.$h"
		PMSD_STATE=$T/state.$h on "$h" pmsd serve --hosts hosts --period 1 >"serve.$h" 2>"err.$h" </dev/null 3>&- &
		echo $! >>pids
		await "serve.$h" socket 20
	done
	export PMSD_STATE=$T/state.A
	until_true 'on A pmsd peers | grep -q "^hostB	up"'
}

@test "names of jobs that nobody comes to keep are not given out without end" {
	daemons a
	cat >flood.py <<-'P'
		import socket
		s = socket.socket(socket.AF_UNIX)
		s.connect("a/socket")
		f = s.makefile("rw")
		for i in range(4200):
		    f.write("number\n")
		    f.flush()
		    line = f.readline()
		    print(line, end="")
		    if line.startswith("error"):
		        break
		    f.readline()
	P
	timeout 60 python3 flood.py >answers
	grep -q "too many jobs are expected" answers
	[ "$(grep -c '^id' answers)" = 4096 ]
	run at a run true
	[ "$status" = 69 ]
}

@test "by TLS with a key: moved there and back; without the key, and with garbage, nothing" {
	PORT_a=$(free_port)
	PORT_b=$PORT_a
	until_true 'PORT_b=$(free_port) && [ "$PORT_b" != "$PORT_a" ]'
	(umask 077 && head -c 32 /dev/urandom | base64 >key && head -c 32 /dev/urandom | base64 >other)
	echo "b tcp:127.0.0.1:$PORT_b" >hosts.a
	echo "a tcp:127.0.0.1:$PORT_a" >hosts.b
	daemon a --key key --listen "tcp:127.0.0.1:$PORT_a"
	daemon b --key key --listen "tcp:127.0.0.1:$PORT_b"
	until_true "at a peers | grep -q '^b	up' && at b peers | grep -q '^a	up'"
	start_job a
	at a migrate "$JOB" b
	until_true '[ "$(field b "$JOB" state)" = running ]'
	at b migrate "$JOB" a
	until_true '[ "$(field a "$JOB" state)" = running ]'
	at a migrate "$JOB" b
	# From the first one its status and all that it has said can be had.
	touch stop
	run at a wait "$JOB"
	[ "$status" = 7 ]
	at a log "$JOB" | sed 's/^line //' | cmp - counted
	# Nobody else.
	run pmsd dial "tcp:127.0.0.1:$PORT_b" "$T/other" pmsd peer
	[ "$status" = 255 ]
	[[ $output == *"another key"* ]]
	cp key open
	chmod 644 open
	run pmsd dial "tcp:127.0.0.1:$PORT_b" "$T/open" pmsd peer
	[ "$status" = 255 ]
	# And nothing else.
	for words in "run sh" "serve" "list" "has --help" "has a.1 -x" "wait"; do
		# shellcheck disable=SC2086
		run -64 pmsd dial "tcp:127.0.0.1:$PORT_b" "$T/key" pmsd $words
		[[ $output == *"nothing to be asked for"* ]]
	done
	for n in 1 2 3 4 5; do
		timeout 20 bash -c "head -c 100000 /dev/urandom >/dev/tcp/127.0.0.1/$PORT_b" || :
	done
	# A hundred who say nothing are sent away in the end; meanwhile whoever is there goes on.
	python3 - "$PORT_b" <<-'P' &
		import socket, sys, time
		s = []
		for i in range(100):
		    s.append(socket.create_connection(("127.0.0.1", int(sys.argv[1]))))
		time.sleep(1000)
	P
	echo $! >>pids
	until_true 'timeout 20 env PMSD_STATE=$T/b pmsd dial "tcp:127.0.0.1:$PORT_b" "$T/key" pmsd has "$JOB" 99 >/dev/null 2>&1; [ $? != 124 ] && [ $? != 255 ]'
	at a peers | grep -q '^b	up'
	end_daemon a TERM
	end_daemon b TERM
	run ! pmsd serve --listen "tcp:127.0.0.1:$PORT_b"
	[[ $output == *key* ]]
}

@test "between two machines by ssh; the cable is cut" {
	# What ssh runs there finds its state by this.
	SSHD_ENV=PMSD_STATE=$T/state.B two_hosts
	two_daemons
	JOB=$(on A pmsd run -n counter -- sh -c "n=0; while [ ! -e $T/stop ]; do n=\$((n + 1)); echo \$n >>$T/counted; echo line \$n; sleep 0.05; done; exit 7")
	until_true '[ -s counted ]'
	on A pmsd migrate "$JOB" hostB
	n=$(wc -l <counted)
	until_true '[ $(wc -l <counted) -gt '$((n + 3))' ]'
	[ "$(on A pmsd list -a | awk -F'\t' -v job="$JOB" '$1 == job { print $2, $3 }')" = "moved hostB" ]
	touch stop
	run on A pmsd wait "$JOB"
	[ "$status" = 7 ]
	on A pmsd log "$JOB" | sed 's/^line //' | cmp - counted
	rm stop
	# The next one does not get there.
	: >counted
	JOB=$(on A pmsd run -n counter -- sh -c "n=0; while [ ! -e $T/stop ]; do n=\$((n + 1)); echo \$n >>$T/counted; sleep 0.05; done; exit 8")
	until_true '[ -s counted ]'
	on A ip link set "pmsA$$" down
	run on A pmsd migrate "$JOB" hostB
	[ "$status" = 75 ]
	n=$(wc -l <counted)
	until_true '[ $(wc -l <counted) -gt '$((n + 3))' ]'
	until_true 'on A pmsd peers | grep -q "^hostB	down"'
	on A ip link set "pmsA$$" up
	until_true 'on A pmsd peers | grep -q "^hostB	up"'
	on A pmsd migrate "$JOB" hostB
	touch stop
	run on A pmsd wait "$JOB"
	[ "$status" = 8 ]
	awk '$1 != NR { exit 1 }' counted
}
