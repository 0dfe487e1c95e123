#!/usr/bin/env bats
# Each kind of kernel object: through a file to a new process, and that once more through a pipe.

load common

@test "eventfd: counts and semaphores" { roundtrip eventfd; }
@test "timerfd: relative, absolute, expired" { roundtrip timerfd; }
@test "signalfd" { roundtrip signalfd; }
@test "epoll: nested, edge-triggered, fired once, under a number that is closed" { roundtrip epoll-set; }
@test "inotify: watches with their numbers" { roundtrip inotify; }
@test "pidfd: of itself, of a process that is no more" { roundtrip pidfd; }
@test "memfd: content, mapping, seals" { roundtrip memfd; }
@test "files without a name: deleted, sparse, O_TMPFILE" { roundtrip unnamed; }
@test "a FIFO and what is in it" { roundtrip fifo; }
@test "socketpairs: stream, datagram, seqpacket; queues; shut down; closed at the other end" { roundtrip socketpair; }
@test "open files on their way through a socket" { roundtrip scm; }
@test "Unix sockets with names: listening, connected, datagrams" { roundtrip local-server; }
@test "TCP and UDP: listening, bound, connected to itself" { roundtrip inet; }
@test "a TCP connection with both ends inside" {
	start_victim tcp-pair
	for _ in 1 2; do # the original has the addresses as long as it lives: by files
		ckpt -p "$PID" -o image
		restart_as_new image
		check_victim "$NEW"
		PID=$NEW
	done
	run -71 bash -c "ckpt -p $PID | restart -d -"
	[[ $output == *"the original has it until it ends"* ]]
	check_victim "$PID"
}
@test "System V: shared memory, semaphores, message queues, one who waits" {
	roundtrip sysv
	[ "$(sysv_left)" = "" ] # they went with the original
}
@test "System V: what SEM_UNDO would give back cannot be read, and that is said" {
	start perl -e 'use IPC::SysV qw(IPC_PRIVATE IPC_RMID SEM_UNDO); $| = 1;
		$s = semget(IPC_PRIVATE, 1, 0600); semop($s, pack("s3", 0, 1, SEM_UNDO));
		$SIG{TERM} = sub { semctl($s, 0, IPC_RMID, 0); exit }; print "ready\n"; sleep 1000'
	await out ready 20
	run -0 ckpt --check -p "$PID"
	[[ $output == *"pid $PID: what SEM_UNDO"* ]]
	kill "$PID"
	until_true 'gone "$PID"'
}
@test "asynchronous I/O: rings with events in them" { roundtrip aio; }
@test "all of it at once, shared with children" {
	roundtrip eventfd timerfd signalfd epoll-set inotify pidfd memfd unnamed fifo socketpair scm local-server \
		inet aio children forked sysv
}
