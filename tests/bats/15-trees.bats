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
@test "all of it at once, with files and timers" {
	roundtrip children zombie forked shared-by-fork threads-in-child offset timers pipe locks
}
