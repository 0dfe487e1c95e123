#!/usr/bin/env bats
# Jobs on three machines with sshd: the seven steps of a move, and what happens when a machine is switched off in the middle.
load common
load hosts

teardown() {
	victims coop >>pids
	while read -r p; do
		kill -KILL "$p" 2>/dev/null || :
	done <pids
	cd /
	# What dies with its machine may still be writing.
	rm -rf "$T" || rm -rf "$T"
}

# pmsd on that machine.
at() {
	PMSD_STATE=$T/state.$1 on "$1" pmsd "${@:2}"
}

field() { # HOST JOB COLUMN
	at "$1" list -a --json | jq -r --arg job "$2" --arg field "$3" '.[] | select(.job == $job) | .[$field]'
}

# The daemon of a machine; all know one another.
daemon() { # HOST [ARGUMENT...]
	printf 'hostA ssh:hostA\nhostB ssh:hostB\nhostC ssh:hostC\n' >hosts
	: >"serve.$1"
	PMSD_STATE=$T/state.$1 on "$1" pmsd serve --hosts hosts --period 1 "${@:2}" >"serve.$1" 2>>"err.$1" </dev/null 3>&- &
	echo $! >>pids
	await "serve.$1" socket 20
}

# shellcheck disable=SC2120
all_daemons() { # [ARGUMENT...]: of each
	local h k
	three_hosts
	for h in A B C; do
		daemon $h "$@"
	done
	for h in A B C; do
		for k in A B C; do
			[ $h = $k ] || until_true "at $h peers | grep -q '^host$k	up'"
		done
	done
}

events() { # HOST JOB
	sqlite3 "state.$1/history.db" "select what from events where job = '$2' order by rowid"
}

# A job that counts, started there; sets JOB.
start_counter() { # HOST
	: >counted
	JOB=$(at "$1" run -n counter -- sh -c "n=0; while [ ! -e $T/stop ]; do n=\$((n + 1)); echo \$n >>$T/counted; sleep 0.01; done; exit 7")
	until_true '[ -s counted ]'
}

goes_on() {
	local n
	n=$(wc -l <counted)
	until_true '[ $(wc -l <counted) -gt '$((n + 3))' ]'
	# One, and no two: every number is there once.
	awk '$1 != NR { print "line " NR ": " $1; exit 1 }' counted
}

@test "a program with pms_main(): the seven steps, and again" {
	all_daemons
	# 1: it begins by itself, and the daemon of its machine knows it.
	PMSD_STATE=$T/state.A on A spawn out coop threads=2 callbacks >/dev/null
	until_true 'at A list | grep -q "	running	hostA	.*	coop	"'
	JOB=$(at A list | awk -F'\t' '$9 == "coop" { print $1 }')
	PID=$(pgrep -x coop)
	[ "$(events A "$JOB" | head -n 1)" = registered ]
	await out ready 20
	# 2 to 4: it is told, saves itself in its handler, and ends; the other machine is asked.
	at A migrate "$JOB" hostB
	await out before 20
	gone "$PID"
	[ "$(field A "$JOB" state)" = moved ]
	# 5: it is executed there, 6: finds itself, and tells the daemon that is there.
	until_true '[ "$(field B "$JOB" state)" = running ]'
	await out "after 1" 20
	until_true 'events B "$JOB" | grep -q "^registered"'
	on B pgrep -x coop >/dev/null
	# 7: and so on.
	at B migrate "$JOB" hostC
	await out "after 1" 20 2
	until_true 'events C "$JOB" | grep -q "^registered"'
	on C pgrep -x coop >/dev/null
	# Its context as a program: executed by anybody, it goes on, and is a job of that machine.
	at C ckpt -x "$JOB" "$T/context"
	[ -x context ]
	at C kill "$JOB" KILL
	run at A wait "$JOB"
	[ "$status" = 137 ]
	PMSD_STATE=$T/state.B on B spawn run.out ./context >/dev/null
	await out "after 1" 20 3
	until_true 'at B list | grep -q "	running	hostB	.*	coop	"'
	JOB=$(at B list | awk -F'\t' '$9 == "coop" { print $1 }')
	touch stop
	run at B wait "$JOB"
	[ "$status" = 3 ]
}

@test "a program with pms_main() where nobody may trace: moved by the daemons of such machines" {
	three_hosts
	printf 'hostA via:false\nhostB ssh:hostB\n' >hosts
	# Whatever ssh starts there is forbidden it, too.
	mkdir bin
	printf '#!/bin/sh\nexec %s -t %s "$@"\n' "$BIN/contained" "$BIN/pmsd" >bin/pmsd
	chmod +x bin/pmsd
	pkill -KILL -f "sshd.*$T/sshd.B" || :
	PATH=$T/bin:$PATH SSHD_ENV="PMSD_STATE=$T/state.B" sshd_conf "$(address_of B)" sshd.B
	on B "$SSHD" -f "$T/sshd.B" -E "$T/sshd.log"
	for h in A B; do
		: >"serve.$h"
		PMSD_STATE=$T/state.$h on $h contained -t pmsd serve --hosts hosts --period 1 >"serve.$h" 2>>"err.$h" </dev/null 3>&- &
		echo $! >>pids
		await "serve.$h" socket 20
	done
	until_true 'at A peers | grep -q "^hostB	up"'
	JOB=$(PMSD_STATE=$T/state.A on A contained -t pmsd run -- coop threads=3)
	until_true 'at A log "$JOB" | grep -q ready'
	at A migrate "$JOB" hostB
	until_true '[ "$(field B "$JOB" state)" = running ]'
	[ "$(sed -n 's/^Seccomp:\t//p' "/proc/$(pgrep -x coop)/status")" = 2 ]
	touch stop
	run at A wait "$JOB"
	[ "$status" = 3 ]
}

@test "a machine is switched off while a job is on its way there: it runs here, or was there already" {
	all_daemons
	for n in 1 2 3 4 5 6 7 8; do
		start_counter A
		at A migrate "$JOB" hostB >/dev/null 2>&1 &
		M=$!
		perl -e "select undef, undef, undef, $n / 20"
		power_off B
		wait $M || :
		boot B
		daemon B
		# When B is there again it is known what became of it.
		until_true 'case $(field A "$JOB" state) in running | moved | ended | lost) true ;; *) false ;; esac'
		if [ "$(field A "$JOB" state)" = running ]; then
			goes_on
			touch stop
			run at A wait "$JOB"
			[ "$status" = 7 ]
			rm stop
		else
			# It had come to run there, and went with its machine.
			[ "$(field A "$JOB" state)" = moved ]
			! on B pgrep -f counted
		fi
		awk '$1 != NR { print "line " NR ": " $1; exit 1 }' counted
	done
}

@test "a machine is emptied before it is switched off: its jobs run on the other two" {
	all_daemons
	for n in 1 2 3 4; do
		: >"count.$n"
		at A run -n "job$n" -- sh -c "n=0; while [ ! -e $T/stop ]; do n=\$((n + 1)); echo \$n >>$T/count.$n; sleep 0.01; done; exit $n" >>jobs
	done
	at A drain
	[ "$(at A list | wc -l)" = 1 ]
	power_off A
	until_true '[ $(($(at B list | wc -l) + $(at C list | wc -l))) = 6 ]'
	for n in 1 2 3 4; do
		lines=$(wc -l <count.$n)
		until_true '[ $(wc -l <count.'$n') -gt '$((lines + 3))' ]'
		awk '$1 != NR { print "line " NR ": " $1; exit 1 }' count.$n
	done
	touch stop
	n=0
	while read -r job; do
		n=$((n + 1))
		[ -n "$(field B "$job" state)" ] && h=B || h=C
		run at $h wait "$job"
		[ "$status" = $n ]
	done <jobs
}
