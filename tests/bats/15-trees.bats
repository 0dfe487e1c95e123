#!/usr/bin/env bats
# Process trees: each maker through a file to new processes, and that once more through a pipe.

load common

@test "children, process groups, sessions old and new" { roundtrip children; }
@test "orphans of a dead session, a group whose leader is dead" { roundtrip orphan; }
@test "zombies with their whole status, and no second SIGCHLD" { roundtrip zombie; }
@test "a stopped child" { roundtrip stopped-child; }
@test "memory shared by fork stays shared, and is in the image once" {
	roundtrip forked
	# 32 MiB of random pages, three processes.
	[ "$(stat -c %s image)" -lt 40000000 ]
}
@test "shared memory of several processes" { roundtrip shared-by-fork; }
@test "threads in a child" { roundtrip threads-in-child; }
@test "a table of open files, and a directory, shared with the parent" { roundtrip shared-table; }
@test "all of it at once, with files and timers" {
	roundtrip children zombie forked shared-by-fork threads-in-child shared-table offset timers pipe locks
}

# Whole trees, shared objects, threads: what the faults below must leave as it was.
WHOLE="children zombie forked threads-in-child shared-table socketpair scm epoll-set pipe fifo eventfd"

@test "ckpt of a tree is killed, and fails, at every fault site: as found, or a complete image" {
	# shellcheck disable=SC2086
	start_victim $WHOLE
	oracle "$PID" >before
	for site in seized frozen framed borrowed call_entered asked answered mask_back collected header_out page_out image_out; do
		for n in 1 4; do
			for act in kill fail; do
				faulty_ckpt "$site:$act:$n"
				as_before "$PID"
			done
		done
	done
	check_victim "$PID"
}

@test "restart of a tree is killed, and fails, at each step: the original runs on, and nothing else" {
	# shellcheck disable=SC2086
	start_victim $WHOLE
	oracle "$PID" >before
	for site in read_header execed mapped filled parked; do
		for n in 1 2; do
			for act in kill fail; do
				ckpt -q -p "$PID" 2>/dev/null | restart -q -d -F "$site:$act:$n" - 2>/dev/null >new || :
				if [ -s new ]; then # the site was passed fewer times
					PID=$(cat new)
					echo "$PID" >>pids
				fi
				as_before "$PID"
			done
		done
	done
	check_victim "$PID"
	[ "$(pgrep -c -x -s "$PID" victim)" -ge 1 ]
}

@test "a tree, ten generations: neither the image nor the mappings grow" {
	# shellcheck disable=SC2086
	ten_generations $WHOLE
}

@test "-S parks a tree, --resume lets all of it go on, --end ends all of it" {
	start_victim children threads-in-child
	oracle "$PID" >before
	ckpt -q -S -p "$PID" -o image
	kids=$(pgrep -c -P "$PID")
	kill -CONT "$PID" $(pgrep -P "$PID")
	until_true '[ "$(ckpt --list | grep -c victim)" -gt '"$kids"' ]'
	ckpt --resume "$PID"
	as_before "$PID"
	check_victim "$PID"
	ckpt -q -S -p "$PID" -o image
	all=$(pgrep -P "$PID")
	ckpt --end "$PID"
	for p in $PID $all; do gone "$p"; done
}

@test "--single refuses a process that has children; a tree with ckpt in it is refused" {
	start_victim children
	oracle "$PID" >before
	run -69 ckpt --single -p "$PID" -o image
	[[ $output == *children* ]]
	as_before "$PID"
	run -69 bash -c "ckpt -p \$\$ -o image; exit \$?"
	[[ $output == *"ckpt itself"* ]]
}
