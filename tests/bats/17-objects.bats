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
@test "System V: what others use too stays for them" {
	cat >owner.pl <<'P'
use IPC::SysV qw(IPC_CREAT IPC_RMID IPC_NOWAIT); $| = 1;
my $key = 0x706d0000 + 2 * $$;
my $s = semget($key, 2, IPC_CREAT | 0600); my $q = msgget($key, IPC_CREAT | 0600);
semop($s, pack("s3", 0, 1, 0)); msgsnd($q, pack("l! a*", 1, "mine"), 0);
print "key $key\n";
until (-e "go") { select undef, undef, undef, 0.01 }
print semop($s, pack("s3", 1, 1, 0)) ? "semaphores\n" : "no semaphores: $!\n";
print msgrcv($q, my $m, 100, 0, IPC_NOWAIT) ? "queue\n" : "no queue: $!\n";
semctl($s, 0, IPC_RMID, 0); msgctl($q, IPC_RMID, 0); print "end\n";
P
	OWNER=$(spawn owner-out perl owner.pl)
	echo "$OWNER" >>pids
	await owner-out key 20
	start perl -e '$| = 1; my $s = semget($ARGV[0], 0, 0); my $q = msgget($ARGV[0], 0); semop($s, pack("s3", 1, 1, 0));
		msgsnd($q, pack("l! a*", 2, "its"), 0); print "ready\n"; sleep 1000' "$(sed -n 's/^key //p' owner-out)"
	await out ready 20
	ckpt -k -p "$PID" -o image 2>told
	grep -q "semaphores .* pid $OWNER, which is outside" told
	: >go
	await owner-out end 20
	grep -qx semaphores owner-out
	grep -qx queue owner-out
}
@test "asynchronous I/O: rings with events in them" { roundtrip aio; }
@test "io_uring: idle, with completions in it" { roundtrip uring; }
@test "pseudoterminals: settings, window, what is in them; controlling, with a foreground group" { roundtrip pty; }

ALL="eventfd timerfd signalfd epoll-set inotify pidfd memfd unnamed fifo socketpair scm local-server inet aio uring"
ALL="$ALL pty shared-table children forked sysv" # the last counts who has its segment

# shellcheck disable=SC2086
@test "all of it at once, shared with children" { roundtrip $ALL; }

@test "all of it, ten generations: the image does not grow" {
	# shellcheck disable=SC2086
	ten_generations $ALL
}

@test "all of it: ckpt is killed, and fails, at every fault site: as found, or a complete image" {
	# shellcheck disable=SC2086
	start_victim $ALL
	oracle "$PID" >before
	for site in frozen borrowed call_entered mask_back collected header_out image_out; do
		for act in kill fail; do
			faulty_ckpt "$site:$act"
			as_before "$PID"
		done
	done
	check_victim "$PID"
}
